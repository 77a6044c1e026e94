"""Augmentation of 64 x 224 x 224 x 3 images beside every installed peer, on one core and on two.

    python benches/augment.py [--only TEXT] [--out FOLDER] [--seconds S] [--threads N] [--keep-memory] [--no-memory]

Every contestant draws its random numbers within the measured time, anew in each step and for each sample (torchvision's
MixUp and CutMix, once for the batch), and ends in one batch that is newly allocated; a large part of the time of a
large result may be page faults, which `--keep-memory` spares everybody. Only `ironstep out=` writes to an array that
is there. Contestants whose name ends in 'in place' change the batch, and are compared among themselves.

Peers that take one picture are called in a loop, and with two cores also in a pool of threads, each with its own half
of the batch, its own transform and one thread inside ('pool'); worker processes could at best halve the time of the
loop. What is called OpenCV or NumPy is written here, by hand, as well as we could; the libraries are as they come, in
their own layout (torch's are planar, and kornia computes in float32 only, so that is what it is given). Resizing is
bilinear without antialiasing, which albumentations, OpenCV and kornia do not have.

Before a work item is timed the results are checked. The contestants take turns as in `peers.py`; medians, with the
quartiles. Then the peak of the memory of the whole chain is measured in a process for each contestant.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks the network when it is imported

import numpy as np
from timing import MISSING, PAUSE, TURN, Contestants, Step, machine, optional, parser, timed

import ironstep
from ironstep import augment
from ironstep.data import BatchKey

cv2 = optional("cv2")
albumentations = optional("albumentations")
torch = optional("torch")
transforms = optional("torchvision.transforms.v2")
kornia = optional("kornia.augmentation")
rust = optional("kornia_rs")
timm = optional("timm.data")

Array = Any
Each = Callable[[int, Array], None]
"""`each(i, out)` writes the result of sample `i` to `out`."""

U8, F32 = np.uint8, np.float32
SHAPE = N, H, W, C = 64, 224, 224, 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BRIGHTNESS = CONTRAST = SATURATION = 0.4
HUE = 0.1
JITTER = BRIGHTNESS, CONTRAST, SATURATION, HUE
SIGMA = 0.1
DEGREES = 15
CLASSES = 1000
GRAY = np.array([0.299, 0.587, 0.114], F32)
PACKAGES = "numpy", "opencv-python-headless", "albumentations", "torch", "torchvision", "kornia", "kornia_rs", "timm"


class Work(NamedTuple):
    """An operation: contestants by name, what their results must be like, and the target."""

    name: str
    make: Callable[[], Contestants]
    check: Callable[[Array], None]
    """Raises `AssertionError` for a batch (as N, H, W, C) that is not a result of this operation."""
    targets: dict[str, float]
    """'peer' (the best of all), 'library' (without what is written by hand here) or the beginning of names."""


# -- Pictures, threads -------------------------------------------------------------------------------------------------


def pictures(shape: tuple[int, ...] = SHAPE) -> Array:
    """Smooth, in colour, with some grain, and nowhere black: values from 16 to 240."""
    rng = np.random.default_rng(0)
    n, h, w, c = shape
    y, x = np.ogrid[0 : 1 : h * 1j, 0 : 1 : w * 1j]
    out = np.empty(shape, U8)
    for i, j in itertools.product(range(n), range(c)):
        a, b, phase, level = rng.uniform((-9, -9, 0, 90), (9, 9, 6, 160))
        wave = level + 60 * np.sin(a * x + b * y + phase) + rng.normal(0, 6, (h, w)).astype(F32)
        out[i, ..., j] = wave.clip(16, 240)
    return out


def unit(x: Array) -> Array:
    """As float32 from 0 to 1."""
    return (x / F32(255)).astype(F32)


THREADS = 1
POOL: ThreadPoolExecutor | None = None


def use_threads(n: int) -> None:
    """For everybody. kornia-rs reads its number from the environment."""
    global THREADS, POOL
    THREADS = n
    POOL = ThreadPoolExecutor(n) if n > 1 else None
    ironstep.set_num_threads(n)
    library_threads(n)
    if timm:
        timm.random_erasing.random.seed(0)


def library_threads(n: int) -> None:
    """Inside the peers: 1 within a pool."""
    if cv2 and cv2.getNumThreads() != n:
        cv2.setNumThreads(n)
    if torch and torch.get_num_threads() != n:
        torch.set_num_threads(n)


def loops(name: str, make: Callable[[int], Each], dtype: Any, shape: tuple[int, ...] = SHAPE) -> Contestants:
    """Calls for one sample each, in a loop and (with several threads) in a pool.

    `make(seed)` gives a function with a state of its own, since most transforms hold a generator.
    """

    def run(each: Each, out: Array, samples: range) -> None:
        for i in samples:
            each(i, out[i])

    whole = make(0)

    def loop() -> Array:
        library_threads(THREADS)
        out = np.empty(shape, dtype)
        run(whole, out, range(shape[0]))
        return out

    if not POOL:
        return {f"{name} loop": loop}
    parts = [make(1 + k) for k in range(THREADS)]
    cuts = [shape[0] * k // THREADS for k in range(THREADS + 1)]
    samples = [range(*pair) for pair in itertools.pairwise(cuts)]

    def pool() -> Array:
        library_threads(1)
        out = np.empty(shape, dtype)
        list(POOL.map(run, parts, [out] * THREADS, samples))
        return out

    return {f"{name} loop": loop, f"{name} pool": pool}


# -- Contestants that take what is needed only from their library ------------------------------------------------------


def ours(transform: Any, x: Array, *labels: Array, in_place: bool = False, **forms: Any) -> Contestants:
    """New draws in each step, since the epoch counts on."""
    epochs = itertools.count()
    indices = np.arange(len(x))

    def key() -> BatchKey:
        return BatchKey(seed=0, epoch=next(epochs), index=0, indices=indices)

    def first(result: Any) -> Array:
        return result[0] if isinstance(result, tuple) else result

    out = np.empty_like(first(transform(key(), x, *labels)))
    contestants: Contestants = {
        "ironstep": lambda: first(transform(key(), x, *labels)),
        "ironstep out=": lambda: first(transform(key(), x, *labels, out=out)),
    }
    if in_place:
        mine = x.copy()
        contestants["ironstep in place"] = lambda: first(transform(key(), mine, *labels, out=mine))
    for name, other in forms.items():
        contestants[f"ironstep {name}"] = lambda other=other: first(other(key(), x, *labels))
    return contestants


def planar(x: Array) -> Any:
    """A tensor (N, C, H, W) of its own."""
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()


def interleaved_batch(result: Any) -> Array:
    """What a contestant gave, as an array (N, H, W, C)."""
    if isinstance(result, list | tuple):
        result = result[0]
    if not isinstance(result, np.ndarray):
        result = result.numpy()
    return result.transpose(0, 2, 3, 1) if result.shape[1] == C else result


def on_batch(name: str, module: Any, x: Array) -> Contestants:
    """A module of torch on the whole batch."""
    images = planar(x)

    def step() -> Any:
        library_threads(THREADS)
        with torch.no_grad():
            return module(images)

    return {name: step}


def kornia_batch(transform: str, x: Array, **kwargs: Any) -> Contestants:
    """Of kornia, which has torch, but not everything else here."""
    if not kornia:
        return {}
    return on_batch("kornia", getattr(kornia, transform)(**kwargs), x if x.dtype == F32 else unit(x))


def torchvision_batch(make: Callable[[], Any], x: Array) -> Contestants:
    return on_batch("torchvision", make(), x) if transforms else {}


def torchvision_loops(make: Callable[[], Any], x: Array, dtype: Any = None) -> Contestants:
    if not transforms:
        return {}
    images = planar(x)

    def each_of(_seed: int) -> Each:
        module = make()

        def each(i: int, out: Array) -> None:
            out[...] = module(images[i]).numpy()

        return each

    return loops("torchvision", each_of, dtype or x.dtype, (N, C, H, W))


def albumentations_loops(make: Callable[[int], Any], x: Array, dtype: Any = None) -> Contestants:
    """`make(seed)`: a transform, or several in a `Compose`."""
    if not albumentations:
        return {}

    def each_of(seed: int) -> Each:
        transform = make(seed)
        if not isinstance(transform, albumentations.Compose):
            transform.set_random_seed(seed)

        def each(i: int, out: Array) -> None:
            out[...] = transform(image=x[i])["image"]

        return each

    return loops("albumentations", each_of, dtype or x.dtype)


def by_hand(name: str, make: Callable[[np.random.Generator], Each], dtype: Any) -> Contestants:
    """Functions written here, with OpenCV, kornia-rs or NumPy."""
    needed = {"OpenCV": cv2, "kornia-rs": rust}
    if needed.get(name, True) is None:
        return {}
    return loops(name, lambda seed: make(np.random.default_rng(seed)), dtype)


# -- What is done to one picture, by hand ------------------------------------------------------------------------------


def flip_with(flip: Callable[[Array, Array], None], x: Array) -> Callable[[np.random.Generator], Each]:
    """Half of the samples, the others are copied."""

    def make(rng: np.random.Generator) -> Each:
        def each(i: int, out: Array) -> None:
            if rng.random() < 0.5:
                flip(x[i], out)
            else:
                out[...] = x[i]

        return each

    return make


def cv2_flip(image: Array, out: Array) -> None:
    cv2.flip(image, 1, dst=out)


def numpy_flip(image: Array, out: Array) -> None:
    out[...] = image[:, ::-1]


def rust_flip(image: Array, out: Array) -> None:
    out[...] = rust.imgproc.horizontal_flip(image)


def turn(degrees: float) -> Array:
    """As torchvision and OpenCV: counter-clockwise, about the middle of the pixels' centres."""
    angle = math.radians(degrees)
    a, b, x, y = math.cos(angle), math.sin(angle), (W - 1) / 2, (H - 1) / 2
    return np.array([[a, b, (1 - a) * x - b * y], [-b, a, b * x + (1 - a) * y]])


def cv2_rotate(image: Array, degrees: float, out: Array) -> None:
    cv2.warpAffine(image, turn(degrees), (W, H), dst=out, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def rust_rotate(image: Array, degrees: float, out: Array) -> None:
    rust.imgproc.warp_affine(image, turn(degrees).ravel().tolist(), (H, W), "bilinear", out)


def rotate_with(rotate: Callable[[Array, float, Array], None], x: Array) -> Callable[[np.random.Generator], Each]:
    def make(rng: np.random.Generator) -> Each:
        return lambda i, out: rotate(x[i], rng.uniform(-DEGREES, DEGREES), out)

    return make


class Colours:
    """Colour jitter of one picture with OpenCV, in place: what `cv2` does in the fewest and fastest passes.

    On uint8 the hue has 256 steps, as OpenCV's HSV of bytes has; the shift wraps by itself.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.shift = np.zeros((W, C), U8)

    def __call__(self, image: Array) -> None:
        low = [1 - BRIGHTNESS, 1 - CONTRAST, 1 - SATURATION, -HUE]
        high = [1 + BRIGHTNESS, 1 + CONTRAST, 1 + SATURATION, HUE]
        self.apply(image, self.rng.uniform(low, high), self.rng.permutation(4))

    def apply(self, image: Array, factors: Any, order: Any) -> None:
        steps = self.brightness, self.contrast, self.saturation, self.hue
        for k in order:
            steps[k](image, float(factors[k]))

    def brightness(self, image: Array, factor: float) -> None:
        if image.dtype == U8:
            cv2.convertScaleAbs(image, dst=image, alpha=factor)
        else:
            cv2.addWeighted(image, factor, image, 0, 0, dst=image)
            cv2.threshold(image, 1, 0, cv2.THRESH_TRUNC, dst=image)

    def contrast(self, image: Array, factor: float) -> None:
        mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
        cv2.addWeighted(image, factor, image, 0, mean * (1 - factor), dst=image)
        self.clip(image)

    def saturation(self, image: Array, factor: float) -> None:
        cv2.transform(image, factor * np.eye(C, dtype=F32) + F32(1 - factor) * GRAY, dst=image)
        self.clip(image)

    def hue(self, image: Array, factor: float) -> None:
        if image.dtype == U8:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
            self.shift[:, 0] = round(256 * factor) % 256
            hsv += self.shift
            cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=image)
        else:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            cv2.add(hsv, (360 * factor % 360, 0, 0, 0), dst=hsv)  # the way back takes it by 360 degrees
            cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=image)

    def clip(self, image: Array) -> None:
        if image.dtype != U8:
            cv2.threshold(image, 1, 0, cv2.THRESH_TRUNC, dst=image)
            cv2.threshold(image, 0, 0, cv2.THRESH_TOZERO, dst=image)


def cv2_jitter(x: Array) -> Callable[[np.random.Generator], Each]:
    def make(rng: np.random.Generator) -> Each:
        colours = Colours(rng)

        def each(i: int, out: Array) -> None:
            out[...] = x[i]
            colours(out)

        return each

    return make


def rust_jitter(x: Array) -> Callable[[np.random.Generator], Each]:
    def make(_: np.random.Generator) -> Each:
        jitter = rust.augmentations.ColorJitter(*JITTER)

        def each(i: int, out: Array) -> None:
            out[...] = np.asarray(jitter(rust.image.Image(x[i])))

        return each

    return make


def cv2_noise(x: Array) -> Callable[[np.random.Generator], Each]:
    """Rounded and clipped by `add` itself for uint8."""

    def make(_: np.random.Generator) -> Each:
        noise = np.empty((H, W, C), F32)

        def each_u8(i: int, out: Array) -> None:
            cv2.randn(noise, (0, 0, 0), (255 * SIGMA,) * C)
            cv2.add(x[i], noise, dst=out, dtype=cv2.CV_8U)

        def each_f32(i: int, out: Array) -> None:
            cv2.randn(out, (0, 0, 0), (SIGMA,) * C)
            cv2.add(x[i], out, dst=out)
            cv2.threshold(out, 1, 0, cv2.THRESH_TRUNC, dst=out)
            cv2.threshold(out, 0, 0, cv2.THRESH_TOZERO, dst=out)

        return each_u8 if x.dtype == U8 else each_f32

    return make


def numpy_noise(x: Array) -> Callable[[np.random.Generator], Each]:
    """Sample by sample, so that it stays in the cache, with NumPy's fastest generator."""
    full = F32(255 if x.dtype == U8 else 1)

    def make(rng: np.random.Generator) -> Each:
        rng = np.random.Generator(np.random.SFC64(rng.integers(2**32)))
        noise = np.empty((H, W, C), F32)

        def each(i: int, out: Array) -> None:
            rng.standard_normal(dtype=F32, out=noise)
            np.multiply(noise, full * F32(SIGMA), out=noise)
            np.add(noise, x[i], out=noise)
            if x.dtype == U8:
                np.rint(noise, out=noise)
            np.clip(noise, 0, full, out=noise)
            out[...] = noise

        return each

    return make


class Normalise:
    """uint8 to float32, by OpenCV's table of 256 x 3 values or by two arrays of the picture's size."""

    def __init__(self, _: np.random.Generator | None = None) -> None:
        mean, std = np.array(MEAN, F32), np.array(STD, F32)
        self.table = ((np.arange(256, dtype=F32)[:, None] / 255 - mean) / std)[None]
        self.mean = np.tile(255 * mean, (H, W, 1))
        self.scale = np.tile(1 / (255 * std), (H, W, 1))

    def by_table(self, image: Array, out: Array) -> None:
        cv2.LUT(image, self.table, dst=out)

    def by_arrays(self, image: Array, out: Array) -> None:
        cv2.subtract(image, self.mean, dst=out, dtype=cv2.CV_32F)
        cv2.multiply(out, self.scale, dst=out)

    def by_numpy(self, image: Array, out: Array) -> None:
        np.subtract(image, self.mean, out=out)
        np.multiply(out, self.scale, out=out)

    @staticmethod
    def by_rust(image: Array, out: Array) -> None:
        mean, std = [255 * m for m in MEAN], [255 * s for s in STD]  # its documentation is wrong: it divides by nothing
        out[...] = rust.imgproc.normalize_mean_std(image, mean, std)


def normalise_with(x: Array, method: str) -> Callable[[np.random.Generator], Each]:
    def make(rng: np.random.Generator) -> Each:
        function = getattr(Normalise(rng), method)
        return lambda i, out: function(x[i], out)

    return make


def cv2_mixup(x: Array) -> Callable[[np.random.Generator], Each]:
    def make(rng: np.random.Generator) -> Each:
        def each(i: int, out: Array) -> None:
            weight = rng.beta(1, 1)
            cv2.addWeighted(x[i], weight, x[i - 1], 1 - weight, 0, dst=out)

        return each

    return make


def numpy_mixup(x: Array) -> Callable[[np.random.Generator], Each]:
    def make(rng: np.random.Generator) -> Each:
        other = np.empty((H, W, C), F32)

        def each(i: int, out: Array) -> None:
            weight = rng.beta(1, 1)
            np.multiply(x[i], F32(weight), out=out)
            np.multiply(x[i - 1], F32(1 - weight), out=other)
            np.add(out, other, out=out)

        return each

    return make


def cut_box(rng: np.random.Generator) -> tuple[slice, slice]:
    """CutMix: the middle anywhere, clipped."""
    side = math.sqrt(1 - rng.beta(1, 1))
    y, x = int(rng.integers(H)), int(rng.integers(W))
    h, w = int(side * H) // 2, int(side * W) // 2
    return slice(max(y - h, 0), y + h), slice(max(x - w, 0), x + w)


def numpy_cutmix(x: Array) -> Callable[[np.random.Generator], Each]:
    def make(rng: np.random.Generator) -> Each:
        def each(i: int, out: Array) -> None:
            out[...] = x[i]
            box = cut_box(rng)
            out[box] = x[i - 1][box]

        return each

    return make


def numpy_cutmix_in_place(x: Array) -> Step:
    """From the last to the first, so that a partner is taken before it changes."""
    x, rng = x.copy(), np.random.default_rng(0)

    def step() -> Array:
        last = x[-1].copy()
        for i in reversed(range(N)):
            box = cut_box(rng)
            x[i][box] = x[i - 1][box] if i else last[box]
        return x

    return step


def numpy_mixup_in_place(x: Array) -> Step:
    x, rng, other = x.copy(), np.random.default_rng(0), np.empty((H, W, C), F32)

    def step() -> Array:
        last = x[-1].copy()
        for i in reversed(range(N)):
            weight = rng.beta(1, 1)
            np.multiply(x[i - 1] if i else last, F32(1 - weight), out=other)
            np.multiply(x[i], F32(weight), out=x[i])
            np.add(x[i], other, out=x[i])
        return x

    return step


def cv2_mixup_in_place(x: Array) -> Step:
    x, rng = x.copy(), np.random.default_rng(0)

    def step() -> Array:
        library_threads(THREADS)
        last = x[-1].copy()
        for i in reversed(range(N)):
            weight = rng.beta(1, 1)
            cv2.addWeighted(x[i], weight, x[i - 1] if i else last, 1 - weight, 0, dst=x[i])
        return x

    return step


def area_box(rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[slice, slice]:
    """Of a random share of the area and a random ratio, fully inside."""
    for _ in range(10):
        area = H * W * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= W and 0 < h <= H:
            top, left = int(rng.integers(H - h + 1)), int(rng.integers(W - w + 1))
            return slice(top, top + h), slice(left, left + w)
    return slice(H), slice(W)


def erase_box(rng: np.random.Generator) -> tuple[slice, slice]:
    return area_box(rng, (0.02, 0.33), (0.3, 3.3))


def crop_box(rng: np.random.Generator) -> tuple[slice, slice]:
    return area_box(rng, (0.08, 1.0), (3 / 4, 4 / 3))


def numpy_erase(x: Array) -> Callable[[np.random.Generator], Each]:
    def make(rng: np.random.Generator) -> Each:
        def each(i: int, out: Array) -> None:
            out[...] = x[i]
            if rng.random() < 0.5:
                out[erase_box(rng)] = 0

        return each

    return make


def numpy_erase_in_place(x: Array) -> Step:
    x, rng = x.copy(), np.random.default_rng(0)

    def step() -> Array:
        for i in range(N):
            if rng.random() < 0.5:
                x[i][erase_box(rng)] = 0
        return x

    return step


def numpy_flip_in_place(x: Array) -> Step:
    x, rng = x.copy(), np.random.default_rng(0)

    def step() -> Array:
        for i in range(N):
            if rng.random() < 0.5:
                x[i] = x[i, :, ::-1]  # through a copy, since they overlap
        return x

    return step


def cv2_flip_in_place(x: Array) -> Step:
    x, rng = x.copy(), np.random.default_rng(0)

    def step() -> Array:
        for i in range(N):
            if rng.random() < 0.5:
                cv2.flip(x[i], 1, dst=x[i])
        return x

    return step


def cv2_resize(image: Array, out: Array) -> None:
    cv2.resize(image, (W, H), dst=out, interpolation=cv2.INTER_LINEAR)


def rust_resize(image: Array, out: Array) -> None:
    out[...] = rust.imgproc.resize(np.ascontiguousarray(image), (H, W), "bilinear")


def crop_with(resize: Callable[[Array, Array], None], x: Array) -> Callable[[np.random.Generator], Each]:
    def make(rng: np.random.Generator) -> Each:
        return lambda i, out: resize(x[i][crop_box(rng)], out)

    return make


def cv2_chain(x: Array) -> Callable[[np.random.Generator], Each]:
    """With buffers that stay in the cache, and no pass that can be saved."""

    def make(rng: np.random.Generator) -> Each:
        colours, normalise = Colours(rng), Normalise()
        image, other = np.empty((H, W, C), U8), np.empty((H, W, C), U8)

        def each(i: int, out: Array) -> None:
            now = image
            cv2_resize(x[i][crop_box(rng)], now)
            if rng.random() < 0.5:
                cv2.flip(now, 1, dst=other)
                now = other
            colours(now)
            normalise.by_arrays(now, out)
            if rng.random() < 0.5:
                out[erase_box(rng)] = 0

        return each

    return make


def rust_chain(x: Array) -> Callable[[np.random.Generator], Each]:
    """The erasing is NumPy's."""

    def make(rng: np.random.Generator) -> Each:
        jitter = rust.augmentations.ColorJitter(*JITTER)

        def each(i: int, out: Array) -> None:
            now = rust.imgproc.resize(np.ascontiguousarray(x[i][crop_box(rng)]), (H, W), "bilinear")
            if rng.random() < 0.5:
                now = rust.imgproc.horizontal_flip(now)
            now = np.asarray(jitter(rust.image.Image(now)))
            Normalise.by_rust(now, out)
            if rng.random() < 0.5:
                out[erase_box(rng)] = 0

        return each

    return make


def timm_mix(x: Array, **alphas: float) -> Contestants:
    """A weight for each sample; it changes its input, of which it makes a copy."""
    if not timm:
        return {}
    images, labels = planar(x), torch.arange(N)
    mix = timm.Mixup(switch_prob=0, mode="elem", num_classes=CLASSES, **alphas)

    def step() -> Any:
        library_threads(THREADS)
        return mix(images, labels)

    return {"timm in place": step}


# -- Operations --------------------------------------------------------------------------------------------------------


def flips(x: Array) -> Contestants:
    out = ours(augment.RandomHorizontalFlip(), x, in_place=True) if augment else {}
    out |= by_hand("OpenCV", flip_with(cv2_flip, x), x.dtype)
    out |= albumentations_loops(lambda _: albumentations.HorizontalFlip(p=0.5), x)
    out |= torchvision_loops(lambda: transforms.RandomHorizontalFlip(), x)
    out |= kornia_batch("RandomHorizontalFlip", x, p=0.5)
    if x.dtype == U8:
        out |= by_hand("kornia-rs", flip_with(rust_flip, x), x.dtype)
    out |= by_hand("NumPy", flip_with(numpy_flip, x), x.dtype)
    out["NumPy in place"] = numpy_flip_in_place(x)
    if cv2:
        out["OpenCV in place"] = cv2_flip_in_place(x)
    return out


def rotations(x: Array) -> Contestants:
    out = {}
    if augment:
        out |= ours(augment.RandomRotation(DEGREES, interpolation="bilinear"), x)
    out |= by_hand("OpenCV", rotate_with(cv2_rotate, x), x.dtype)
    out |= albumentations_loops(lambda _: albumentations.Rotate(limit=DEGREES, interpolation=1, border_mode=0, p=1), x)
    bilinear = transforms and transforms.InterpolationMode.BILINEAR
    out |= torchvision_loops(lambda: transforms.RandomRotation(DEGREES, bilinear), x)
    out |= kornia_batch("RandomRotation", x, degrees=float(DEGREES), align_corners=False, p=1.0)
    if x.dtype == U8:
        out |= by_hand("kornia-rs", rotate_with(rust_rotate, x), x.dtype)
    return out


def jitters(x: Array) -> Contestants:
    out = ours(augment.ColorJitter(*JITTER), x) if augment else {}
    out |= by_hand("OpenCV", cv2_jitter(x), x.dtype)
    limits = ((1 - BRIGHTNESS, 1 + BRIGHTNESS),) * 3
    out |= albumentations_loops(lambda _: albumentations.ColorJitter(*limits, (-HUE, HUE), p=1), x)
    out |= torchvision_loops(lambda: transforms.ColorJitter(*JITTER), x)
    b, c, s, h = JITTER
    out |= kornia_batch("ColorJitter", x, brightness=b, contrast=c, saturation=s, hue=h, p=1.0)
    if x.dtype == U8:
        out |= by_hand("kornia-rs", rust_jitter(x), x.dtype)
    return out


def noises(x: Array) -> Contestants:
    out = ours(augment.GaussianNoise(sigma=SIGMA), x) if augment else {}
    out |= by_hand("OpenCV", cv2_noise(x), x.dtype)
    out |= albumentations_loops(lambda _: albumentations.GaussNoise(std_range=(SIGMA, SIGMA), p=1), x)
    out |= torchvision_batch(lambda: transforms.GaussianNoise(sigma=SIGMA), x)
    out |= kornia_batch("RandomGaussianNoise", x, std=SIGMA, p=1.0)
    return out | by_hand("NumPy", numpy_noise(x), x.dtype)


def normalisations(x: Array) -> Contestants:
    out = {}
    if augment:
        normal = augment.Normalize(MEAN, STD)
        out |= ours(normal, x, NCHW=augment.Compose([normal], out_layout="NCHW"))
    out |= {f"{k} table": v for k, v in by_hand("OpenCV", normalise_with(x, "by_table"), F32).items()}
    out |= by_hand("OpenCV", normalise_with(x, "by_arrays"), F32)
    out |= albumentations_loops(lambda _: albumentations.Normalize(MEAN, STD), x, F32)
    out |= torchvision_batch(lambda: torchvision_normalise(), x)
    if kornia:
        normalise = kornia.Normalize(MEAN, STD)
        out |= on_batch("kornia", lambda images: normalise(images.float().div_(255)), x)
    out |= by_hand("kornia-rs", normalise_with(x, "by_rust"), F32)
    return out | by_hand("NumPy", normalise_with(x, "by_numpy"), F32)


def torchvision_normalise() -> Any:
    return transforms.Compose([transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(MEAN, STD)])


def mixups(x: Array) -> Contestants:
    labels = np.arange(N)
    out = {}
    if augment:
        out |= ours(augment.MixUp(num_classes=CLASSES, mode="sample"), x, labels, in_place=True)
    out |= by_hand("OpenCV", cv2_mixup(x), F32) | by_hand("NumPy", numpy_mixup(x), F32)
    if transforms:
        mix, tensor = transforms.MixUp(num_classes=CLASSES), torch.from_numpy(labels)
        out |= on_batch("torchvision", lambda images: mix(images, tensor), x)
    out |= kornia_batch("RandomMixUpV2", x, p=1.0, data_keys=["input"])
    out |= timm_mix(x, mixup_alpha=1.0)
    out["NumPy in place"] = numpy_mixup_in_place(x)
    if cv2:
        out["OpenCV in place"] = cv2_mixup_in_place(x)
    return out


def cutmixes(x: Array) -> Contestants:
    labels = np.arange(N)
    out = {}
    if augment:
        out |= ours(augment.CutMix(num_classes=CLASSES, mode="sample"), x, labels, in_place=True)
    out |= by_hand("NumPy", numpy_cutmix(x), F32)
    if transforms:
        mix, tensor = transforms.CutMix(num_classes=CLASSES), torch.from_numpy(labels)
        out |= on_batch("torchvision", lambda images: mix(images, tensor), x)
    out |= kornia_batch("RandomCutMixV2", x, p=1.0, data_keys=["input"], use_correct_lambda=True)
    out |= timm_mix(x, mixup_alpha=0.0, cutmix_alpha=1.0)
    out["NumPy in place"] = numpy_cutmix_in_place(x)
    return out


def erasings(x: Array) -> Contestants:
    out = ours(augment.RandomErasing(), x, in_place=True) if augment else {}
    out |= albumentations_loops(lambda _: albumentations.Erasing(p=0.5), x)
    out |= torchvision_loops(lambda: transforms.RandomErasing(), x)
    out |= kornia_batch("RandomErasing", x, p=0.5)
    out |= by_hand("NumPy", numpy_erase(x), x.dtype)
    out["NumPy in place"] = numpy_erase_in_place(x)
    if timm:
        out |= {"timm in place": on_batch("", timm.random_erasing.RandomErasing(0.5, device="cpu"), x)[""]}
    return out


def crops(x: Array) -> Contestants:
    out = ours(augment.RandomResizedCrop((H, W), antialias=False), x) if augment else {}
    out |= by_hand("OpenCV", crop_with(cv2_resize, x), x.dtype)
    out |= albumentations_loops(lambda _: albumentations.RandomResizedCrop((H, W)), x)
    out |= torchvision_loops(lambda: transforms.RandomResizedCrop((H, W), antialias=False), x)
    out |= kornia_batch("RandomResizedCrop", x, size=(H, W), align_corners=False)
    return out | by_hand("kornia-rs", crop_with(rust_resize, x), x.dtype)


def own_chain(size: tuple[int, int] = (H, W), **kwargs: Any) -> Any:
    a = augment
    crop, erase = a.RandomResizedCrop(size, antialias=False), a.RandomErasing()
    return a.Compose([crop, a.RandomHorizontalFlip(), a.ColorJitter(*JITTER), a.Normalize(MEAN, STD), erase], **kwargs)


def chains(x: Array) -> Contestants:
    out = ours(own_chain(), x, NCHW=own_chain(out_layout="NCHW")) if augment else {}
    out |= by_hand("OpenCV", cv2_chain(x), F32)
    if albumentations:
        a, near = albumentations, (1 - BRIGHTNESS, 1 + BRIGHTNESS)
        jitter = near, near, near, (-HUE, HUE)

        def composed(seed: int) -> Any:
            steps = [a.RandomResizedCrop((H, W)), a.HorizontalFlip(), a.ColorJitter(*jitter, p=1)]
            return a.Compose([*steps, a.Normalize(MEAN, STD), a.Erasing()], seed=seed)

        out |= albumentations_loops(composed, x, F32)
    if transforms:
        t = transforms

        def steps() -> Any:
            crop = t.RandomResizedCrop((H, W), antialias=False)
            return t.Compose(
                [crop, t.RandomHorizontalFlip(), t.ColorJitter(*JITTER), torchvision_normalise(), t.RandomErasing()]
            )

        out |= torchvision_loops(steps, x, F32)
    if kornia:
        k, (b, c, s, h) = kornia, JITTER
        modules = [
            k.RandomResizedCrop((H, W), align_corners=False),
            k.RandomHorizontalFlip(),
            k.ColorJitter(b, c, s, h, p=1.0),
            k.Normalize(MEAN, STD),
            k.RandomErasing(),
        ]
        chain = torch.nn.Sequential(*modules)
        out |= on_batch("kornia", lambda images: chain(images.float().div_(255)), x)
    return out | by_hand("kornia-rs", rust_chain(x), F32)


# -- Checks ------------------------------------------------------------------------------------------------------------


def same_unit(x: Array, y: Array) -> tuple[Array, Array]:
    """Both as float32 from 0 to 1: kornia has floats where the others have bytes."""
    return unit(x) if x.dtype == U8 else x, unit(y) if y.dtype == U8 else y


def is_flipped(x: Array) -> Callable[[Array], None]:
    def check(y: Array) -> None:
        a, b = same_unit(x, y)
        kept = [np.array_equal(p, q) for p, q in zip(a, b, strict=True)]
        turned = [np.array_equal(p[:, ::-1], q) for p, q in zip(a, b, strict=True)]
        assert all(k or t for k, t in zip(kept, turned, strict=True))
        assert N / 4 < sum(turned) < 3 * N / 4

    return check


def is_rotated(x: Array) -> Callable[[Array], None]:
    """The middle has the colour that it had; the corners are black for all but a few."""

    def check(y: Array) -> None:
        a, b = same_unit(x, y)
        middle = slice(None), slice(H // 2 - 30, H // 2 + 30), slice(W // 2 - 30, W // 2 + 30)
        assert abs(a[middle].mean((1, 2)) - b[middle].mean((1, 2))).max() < 0.04
        assert (b[:, 0, 0] == 0).all(-1).sum() > N // 2
        assert (b[:, H // 2, W // 2] > 0).all()

    return check


def is_jittered(x: Array) -> Callable[[Array], None]:
    """Changed, in range, some darker and some lighter (kornia-rs adds brightness where the others multiply)."""

    def check(y: Array) -> None:
        a, b = same_unit(x, y)
        assert b.min() >= 0
        assert b.max() <= 1
        assert np.ptp(b.mean((1, 2, 3))) > 0.05
        assert abs(b.mean() / a.mean() - 1) < 0.25, b.mean() / a.mean()
        assert abs(a - b).mean((1, 2, 3)).min() > 0.001

    return check


def is_noisy(x: Array) -> Callable[[Array], None]:
    """Moments of the difference where nothing is clipped."""

    def check(y: Array) -> None:
        a, b = same_unit(x, y)
        z = (b - a)[(a > 0.45) & (a < 0.55)]
        assert abs(z.mean()) < 0.003, z.mean()
        assert abs(z.std() - SIGMA) < 0.002, z.std()

    return check


def is_normal(x: Array) -> Callable[[Array], None]:
    right = ((x / 255.0 - MEAN) / STD).astype(F32)

    def check(y: Array) -> None:
        assert y.dtype == F32
        assert abs(y - right).max() < 1e-4, abs(y - right).max()

    return check


def is_mixed(x: Array) -> Callable[[Array], None]:
    """Each sample is a combination of itself and one other sample, by some weight."""
    points = x[:, ::16, ::16].reshape(N, -1)

    def check(y: Array) -> None:
        for a, b in zip(points, y[:, ::16, ::16].reshape(N, -1), strict=True):
            others = points - a
            moved = b - a
            weight = (others @ moved) / np.maximum((others**2).sum(1), 1e-9)
            left = abs(moved - weight[:, None] * others).max(1)
            assert left.min() < 1e-4, left.min()

    return check


def outline(changed: Array) -> tuple[slice, slice]:
    """The smallest box around what is true."""
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def is_cut(x: Array) -> Callable[[Array], None]:
    """Each sample is itself with a box of one other sample."""

    def check(y: Array) -> None:
        changed = 0
        for a, b in zip(x, y, strict=True):
            if not np.array_equal(a, b):
                box = outline((a != b).any(-1))
                assert any(np.array_equal(other[box], b[box]) for other in x)
                changed += 1
        assert changed > N // 2

    return check


def is_erased(x: Array) -> Callable[[Array], None]:
    """Some samples have a black box."""

    def check(y: Array) -> None:
        a, b = same_unit(x, y)
        changed = 0
        for p, q in zip(a, b, strict=True):
            if not np.array_equal(p, q):
                box = q[outline((p != q).any(-1))]
                assert not box.any()
                assert box.size < 0.4 * q.size
                changed += 1
        assert N / 4 < changed < 3 * N / 4

    return check


def is_cropped(x: Array) -> Callable[[Array], None]:
    """Other pictures in the same range of colours."""

    def check(y: Array) -> None:
        a, b = same_unit(x, y)
        assert b.shape == SHAPE
        assert b.min() >= a.min() - 0.01
        assert b.max() <= a.max() + 0.01
        assert abs(a.mean() - b.mean()) < 0.05
        assert abs(a - b).mean((1, 2, 3)).min() > 0.001

    return check


def is_trained_on(x: Array) -> Callable[[Array], None]:
    """Normalised, and a tenth or so of it erased."""
    normal = (x.mean((0, 1, 2)) / 255.0 - MEAN) / STD

    def check(y: Array) -> None:
        assert y.shape == SHAPE
        assert y.dtype == F32
        assert np.isfinite(y).all()
        assert abs(y.mean((0, 1, 2)) - normal).max() < 0.6
        assert 0.4 < y.std() < 2
        assert 0.02 < (y == 0).all(-1).mean() < 0.2, (y == 0).all(-1).mean()

    return check


def agree_with_opencv(x: Array) -> Iterator[str]:
    """Ours and OpenCV's with the same parameters: what is compared is the same work."""
    if not (augment and cv2):
        return
    for dtype, images in (("uint8", x[:8]), ("float32", unit(x[:8]))):
        rotation = augment.RandomRotation(DEGREES, interpolation="bilinear")
        params = rotation.sample(0, images)
        y, right = rotation.apply(params, images), np.empty_like(images)
        for i in range(len(images)):
            cv2_rotate(images[i], params["angle"][i], right[i])
        yield difference(f"rotation {dtype}", y, right, mean=0.004)
        jitter = augment.ColorJitter(*JITTER)
        params = jitter.sample(0, images)
        y, right = jitter.apply(params, images), images.copy()
        for i in range(len(images)):
            factors = [params[k][i] for k in ("brightness", "contrast", "saturation", "hue")]
            Colours(np.random.default_rng()).apply(right[i], factors, params["order"][i])
        yield difference(f"jitter {dtype}", y, right, mean=0.01)


def difference(name: str, y: Array, right: Array, mean: float) -> str:
    a, b = same_unit(y, right)
    off = abs(a - b)
    assert off.mean() < mean, (name, off.mean())
    return f"{name}: mean {255 * off.mean():.2g}, largest {255 * off.max():.3g} of 255"


# -- Measuring ---------------------------------------------------------------------------------------------------------


def works() -> list[Work]:
    x = pictures()
    f = unit(x)
    four, two = {"peer": 4.0, "library": 4.0}, {"peer": 2.0, "library": 2.0}
    return [
        Work("flip u8", lambda: flips(x), is_flipped(x), two),
        Work("flip f32", lambda: flips(f), is_flipped(f), two),
        Work("rotation u8", lambda: rotations(x), is_rotated(x), {"OpenCV": 1.5}),
        Work("rotation f32", lambda: rotations(f), is_rotated(f), {}),
        Work("jitter u8", lambda: jitters(x), is_jittered(x), four),
        Work("jitter f32", lambda: jitters(f), is_jittered(f), four),
        Work("noise u8", lambda: noises(x), is_noisy(x), four),
        Work("noise f32", lambda: noises(f), is_noisy(f), four),
        Work("normalise u8 to f32", lambda: normalisations(x), is_normal(x), four),
        Work("mixup f32", lambda: mixups(f), is_mixed(f), four),
        Work("cutmix f32", lambda: cutmixes(f), is_cut(f), four),
        Work("erasing u8", lambda: erasings(x), is_erased(x), {}),
        Work("resized crop u8", lambda: crops(x), is_cropped(x), {}),
        Work("chain u8 to f32", lambda: chains(x), is_trained_on(x), {"peer": 3.0, "library": 3.0}),
    ]


def turns(contestants: Contestants, seconds: float) -> dict[str, list[float]]:
    """Quartiles of the seconds of a step of each, who take turns as in `timing.interleaved`, with three quartiles."""
    times: dict[str, list[float]] = {}
    counts = {}
    for name, step in contestants.items():
        step()
        once = timed(step, 1)
        times[name], counts[name] = [], max(1, round(TURN / once))
    end = time.perf_counter() + seconds * len(contestants)
    turn = 0
    while turn < 7 or time.perf_counter() < end:
        for name, step in contestants.items():
            if turn >= 3 and times[name][0] > 0.3:
                continue
            time.sleep(PAUSE)
            if not times[name] or times[name][0] < 0.3:
                step()
            times[name] += [timed(step, 1) for _ in range(counts[name])]
        turn += 1
    return {name: statistics.quantiles(values, n=4, method="inclusive") for name, values in times.items()}


def family(name: str) -> str:
    """'OpenCV pool' is of OpenCV."""
    return name.split(" ")[0]


def in_place(name: str) -> bool:
    return name.endswith("in place")


def rivals(against: str, ns: dict[str, list[float]]) -> dict[str, float]:
    """Medians of those that a target names; results in place are another matter."""
    medians = {k: v[1] for k, v in ns.items() if not k.startswith("ironstep") and not in_place(k)}
    if against == "peer":
        return medians
    if against == "library":
        return {k: v for k, v in medians.items() if family(k) not in ("OpenCV", "NumPy")}
    return {k: v for k, v in medians.items() if k.startswith(against)}


def verdicts(work: Work, ns: dict[str, list[float]]) -> Iterator[dict[str, Any]]:
    """How many times faster than the best rival, and than the best one in place."""
    own = ns.get("ironstep")
    for against, wanted in (work.targets or {"peer": 0.0}).items():
        if own and (others := rivals(against, ns)):
            best = min(others, key=others.__getitem__)
            yield {"against": against, "best": best, "got": others[best] / own[1], "wanted": wanted}
    own = ns.get("ironstep in place")
    others = {k: v[1] for k, v in ns.items() if in_place(k) and not k.startswith("ironstep")}
    if own and others:
        best = min(others, key=others.__getitem__)
        yield {"against": "in place", "best": best, "got": others[best] / own[1], "wanted": 0.0}


def checked(work: Work, name: str, step: Step) -> None:
    """One step, looked at."""
    try:
        work.check(interleaved_batch(step()).copy())
    except AssertionError as error:
        raise AssertionError(f"{work.name}: {name} gave something else: {error}") from error


def measure(args: Any) -> list[dict[str, Any]]:
    """Rows of the table, printed as they come."""
    rows = []
    print(f"\n{THREADS} thread{'s' * (THREADS > 1)}: ns per element of {SHAPE}, median (quartiles)")
    for work in works():
        if not any(o in work.name for o in args.only.split(",")):
            continue
        contestants = work.make()
        for name, step in contestants.items():
            checked(work, name, step)
        size = math.prod(SHAPE)
        ns = {k: [1e9 * t / size for t in v] for k, v in turns(contestants, args.seconds).items()}
        del contestants
        print(f"\n{work.name}")
        for name, (low, median, high) in sorted(ns.items(), key=lambda item: item[1][1]):
            print(f"  {name:<24} {median:8.3f}  ({low:.3f} .. {high:.3f})")
        results = list(verdicts(work, ns))
        for v in results:
            wanted = f"target {v['wanted']:g}: {'met' if v['got'] >= v['wanted'] else 'MISSED'}" if v["wanted"] else ""
            label = {"peer": "of all", "library": "of the libraries"}.get(v["against"], v["against"])
            print(f"  {v['got']:6.2f} x {v['best']}, best {label}  {wanted}")
        rows.append({"work": work.name, "threads": THREADS, "ns": ns, "targets": results})
        sys.stdout.flush()
    return rows


# -- Memory ------------------------------------------------------------------------------------------------------------


def memory_of(name: str, side: int) -> None:
    """Prints the peak of the memory above what the arrays take, in bytes; runs in a process of its own (Linux).

    Ours has pictures of any size and an `out=` that is there. The peers' result is new, and is not counted.
    """
    global N, H, W, SHAPE
    N, H, W = (SHAPE[0], SHAPE[1], SHAPE[2]) if not side else (4 * THREADS, side, side)
    SHAPE = N, H, W, C
    x = pictures((N, H, W, C))
    if name == "ironstep":
        out = np.ones(SHAPE, F32)  # zeros would not be there yet
        chain, small = own_chain((H, W)), own_chain((8, 8))
        small(0, np.tile(x[:1, :16, :16], (2 * THREADS, 1, 1, 1)))  # what a first call needs
        step: Step = lambda: chain(0, x, out=out)  # noqa: E731
        result = 0
    else:
        step, result = chains(x)[name], 4 * math.prod(SHAPE)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = status("VmRSS")
    step()
    print(json.dumps(status("VmHWM") - before - result))


def status(field: str) -> int:
    """Of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def memory() -> list[dict[str, Any]]:
    """Of the chain: contestants at the size of the bench, and ours on pictures that are so large that nothing hides."""
    if not Path("/proc/self/clear_refs").exists():
        MISSING["memory"] = "needs Linux"
        return []
    names = list(chains(pictures((N, H, W, C))))
    cases = [(name, 0) for name in names if not name.startswith("ironstep ")]
    cases += [("ironstep", 2048)] * (augment is not None)
    rows = []
    for name, side in cases:
        command = [sys.executable, __file__, "--threads", str(THREADS), "--peak", name, "--side", str(side)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        if done.returncode:
            MISSING[f"memory of {name}"] = done.stderr.strip().splitlines()[-1]
            continue
        extra = json.loads(done.stdout.splitlines()[-1])
        sample = 4 * C * (side or H) * (side or W)
        rows.append({"name": name, "side": side or H, "threads": THREADS, "bytes": extra, "samples": extra / sample})
        print(
            f"  {name:<24} {extra / 2**20:8.1f} MB beside input and result: "
            f"{extra / sample / THREADS:.2f} float32 samples of {side or H} x {side or W} per thread",
            flush=True,
        )
    return rows


# -- The picture -------------------------------------------------------------------------------------------------------

COLOURS = {
    "ironstep": "#0072b2",
    "OpenCV": "#56b4e9",
    "albumentations": "#009e73",
    "kornia-rs": "#e69f00",
    "torchvision": "#d55e00",
    "kornia": "#cc79a7",
    "timm": "#b8860b",
    "NumPy": "#777777",
}


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """A panel for each operation, a bar for each contestant (its fastest form): the full one has the fewest threads."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["work"] for row in rows))
    counts = sorted({row["threads"] for row in rows})
    if not names:
        return
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    fig, grid = plt.subplots(lines, columns, figsize=(3.6 * columns, 2.7 * lines + 0.6), dpi=130, squeeze=False)
    for ax, name in itertools.zip_longest(grid.flat, names):
        if name is None:
            ax.axis("off")
            continue
        best: dict[str, dict[int, float]] = {}
        for row in rows:
            if row["work"] == name:
                for k, v in row["ns"].items():
                    if not in_place(k) and k not in ("ironstep out=", "ironstep NCHW"):
                        of = best.setdefault(family(k), {})
                        of[row["threads"]] = min(v[1], of.get(row["threads"], math.inf))
        order = sorted(best, key=lambda k: best[k].get(counts[0], math.inf))
        # The slowest would leave no room for the others: bars end at 8 times the third.
        limit = 8 * sorted(best[k].get(counts[0], 0.0) for k in order)[min(2, len(order) - 1)]
        height = 0.8 / len(counts)
        for (y, k), (j, n) in itertools.product(enumerate(order), enumerate(counts)):
            if n in best[k]:
                value = best[k][n]
                at = y + (j - (len(counts) - 1) / 2) * height
                ax.barh(at, min(value, limit), height, color=COLOURS.get(k, "black"), alpha=1 if j == 0 else 0.5)
                cut = " ..." if value > limit else ""
                ax.text(min(value, limit), at, f" {value:.3g}{cut}", va="center", fontsize=6.5)
        ax.set_yticks(range(len(order)), order, fontsize=8)
        ax.invert_yaxis()
        ax.set_xlim(0, 1.2 * min(limit, max(max(v.values()) for v in best.values())))
        ax.set_title(name, loc="left", fontsize=10)
        ax.tick_params(axis="x", labelsize=7)
        ax.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
    shades = " and ".join(f"{n} thread{'s' * (n > 1)} ({s})" for n, s in zip(counts, ("dark", "light"), strict=False))
    fig.suptitle(f"{title}\nns per element, {shades}; less is better", x=0.01, ha="left", fontsize=11)
    fig.tight_layout()
    fig.savefig(path, bbox_inches="tight")


# -- The run -----------------------------------------------------------------------------------------------------------


def keep_memory() -> None:
    """Freed memory stays in the process from now on, so that nobody's results cost page faults (glibc)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if not mallopt or not mallopt(-4, 0) or not mallopt(-1, -1):  # M_MMAP_MAX, M_TRIM_THRESHOLD
        sys.exit("--keep-memory needs glibc")


def run(args: Any) -> dict[str, Any]:
    """With so many threads, in this process."""
    about = machine(PACKAGES)
    print(f"ironstep {about['ironstep']} on {about['cpu']}, {about['instruction_set']}; {about['versions']}")
    if args.keep_memory:
        print("results come from memory that was used before")
    for line in agree_with_opencv(pictures((8, H, W, C))):
        print(f"beside OpenCV, with the same parameters, {line}")
    rows = measure(args)
    peaks = [] if args.no_memory or args.keep_memory else memory()
    for name, why in MISSING.items():
        print(f"left out: {name} ({why})")
    return {"machine": about, "rows": rows, "memory": peaks, "missing": MISSING}


def main() -> int:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--threads", type=int, help="for everybody; default: 1, then as many as there are cores")
    arguments.add_argument("--keep-memory", action="store_true", help="results come from memory that was used before")
    arguments.add_argument("--no-memory", action="store_true", help="do not measure the peaks of the memory")
    arguments.add_argument("--peak", help="print the peak of the memory of this contestant in the chain, and end")
    arguments.add_argument("--side", type=int, default=0, help="of the pictures of --peak")
    args = arguments.parse_args()
    warnings.simplefilter("ignore")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    args.out.mkdir(parents=True, exist_ok=True)
    name = "augment" + ("-kept" if args.keep_memory else "")
    if args.threads:
        if args.keep_memory:
            keep_memory()
        use_threads(args.threads)
        if args.peak:
            memory_of(args.peak, args.side)
            return 0
        (args.out / f"{name}-{args.threads}.json").write_text(json.dumps(run(args), indent=1))
        return 0
    tables = []
    for n in sorted({1, min(2, cores)}):  # each in a process of its own: some libraries count their threads only once
        variables = {"RAYON_NUM_THREADS": str(n), "OMP_NUM_THREADS": str(n)}
        subprocess.run([sys.executable, *sys.argv, "--threads", str(n)], check=True, env=os.environ | variables)
        tables.append(json.loads((args.out / f"{name}-{n}.json").read_text()))
    rows = [row for table in tables for row in table["rows"]]
    table, picture = args.out / f"{name}.json", args.out / f"{name}.png"
    table.write_text(json.dumps({"machine": tables[0]["machine"], "tables": tables}, indent=1))
    draw(rows, f"Augmentation of {N} x {H} x {W} x {C} on {tables[0]['machine']['cpu']}", picture)
    missed = sum(v["got"] < v["wanted"] for row in rows for v in row["targets"])
    print(f"\n{missed} targets missed; table in {table}, picture in {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
