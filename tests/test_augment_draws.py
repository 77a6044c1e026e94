"""What augmentation draws: distributions, what the numbers depend on and what they do not, replay, and text."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch
from torchvision.transforms import v2
from torchvision.tv_tensors import Image

import augment_reference as reference
import ironstep
from helpers import ISAS, assert_same, assert_same_bits
from ironstep import _core
from ironstep.augment import (
    CenterCrop,
    ColorJitter,
    Compose,
    CutMix,
    Cutout,
    GaussianBlur,
    GaussianNoise,
    MixUp,
    Normalize,
    OneOf,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotate90,
    RandomRotation,
    RandomVerticalFlip,
    Resize,
    Transform,
)
from ironstep.data import Batches, BatchKey

Array = np.ndarray

RARE = 1e-4
"""A test of a distribution fails below this probability. Seeds are fixed: it fails always or never."""

LONE: list[Transform] = [
    RandomHorizontalFlip(),
    RandomVerticalFlip(p=0.25),
    RandomRotate90(p=0.75),
    RandomRotation(30),
    RandomRotation((10, 20), "bilinear", center=(3, 4.5), fill=(0, 1, 0), padding_mode="wrap", p=0.5),
    RandomAffine(0),
    RandomAffine((-10, 40), translate=(0.1, 0.3), scale=(0.5, 1.5), shear=(-5, 5, -20, 20), interpolation="bilinear"),
    RandomCrop(8, padding=2, padding_mode="reflect"),
    RandomCrop((20, 6), pad_if_needed=True, fill=1),
    CenterCrop((4, 30)),
    RandomResizedCrop((6, 9), scale=(0.3, 0.9), ratio=(0.5, 2), interpolation="nearest"),
    Resize(9, antialias=False),
    ColorJitter(),
    ColorJitter(0.4, (0.5, 0.8), 0.2, 0.1, p=0.8),
    RandomGrayscale(),
    GaussianNoise(),
    GaussianNoise(0.1, (0.05, 0.2), clip=False, p=0.5),
    GaussianBlur(3),
    GaussianBlur((5, 3), (0.5, 1.5), p=0.5),
    RandomErasing(),
    RandomErasing(1, (0.1, 0.2), (0.5, 1), "random"),
    Cutout(4),
    Cutout((3, 5), count=3, value=(0.1, 0.2, 0.3), p=0.5),
    Normalize((0.1, 0.2, 0.3), 0.5),
]
PAIRS: list[Transform] = [
    MixUp(),
    MixUp(0.2, 10, "pair", 0.5),
    MixUp(3.0, mode="sample"),
    CutMix(num_classes=10),
    CutMix(0.5, mode="pair", p=0.9),
    CutMix(mode="sample"),
]
GROUPS: list[Transform] = [
    OneOf([RandomHorizontalFlip(p=1), RandomRotation(20)], weights=[1, 3], p=0.7),
    OneOf([MixUp(num_classes=10), CutMix(num_classes=10)]),
    Compose(
        [RandomCrop(12, padding=3), RandomHorizontalFlip(), ColorJitter(0.3), Normalize(0.5, 0.25)], out_layout="NCHW"
    ),
    Compose(
        [
            OneOf([GaussianBlur(3), Compose([GaussianNoise(), RandomGrayscale(0.5)], p=0.5)]),
            RandomErasing(value="random"),
        ],
        p=0.9,
    ),
    Compose([]),
]
each_lone = pytest.mark.parametrize("transform", LONE, ids=repr)
each = pytest.mark.parametrize("transform", LONE + PAIRS + GROUPS, ids=lambda t: " ".join(repr(t).split()))


def images(n: int = 6, dtype: Any = np.float32) -> Array:
    x = np.random.default_rng(n).random((n, 14, 14, 3))
    return (255 * x).astype(np.uint8) if dtype == np.uint8 else x.astype(dtype)


def labels(n: int) -> Array:
    """Soft ones."""
    return np.eye(10, dtype=np.float32)[np.arange(n) % 10]


def key(indices: Any, seed: int = 0, epoch: int = 0, batch: int = 0) -> BatchKey:
    return BatchKey(seed, epoch, batch, np.asarray(indices))


def rows_of(params: Any, rows: Any) -> Any:
    """These rows of what was drawn."""
    if isinstance(params, dict):
        return {name: value[rows] for name, value in params.items()}
    return [rows_of(p, rows) for p in params]


def arrays_of(params: Any) -> list[Array]:
    if isinstance(params, dict):
        return list(params.values())
    return [array for p in params for array in arrays_of(p)]


# -- The numbers -------------------------------------------------------------------------------------------------------

SEEDS = [0, 1, 2**32, 0x0123456789ABCDEF, 2**64 - 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_are_philoxs(seed: int) -> None:
    indices = np.array([0, 5, 2**32 - 1, 2**32, 2**48 - 1])
    philox = reference.key_of(seed)
    for epoch, transform, first, count in [(0, 0, 0, 5), (2**32 - 1, 3, 1, 4), (7, 2**16 - 1, 100, 3)]:
        got = _core.uniforms(seed, epoch, indices, transform, first, count)
        words = _core.draw_words(seed, epoch, indices, transform)
        for i, index in enumerate(indices.tolist()):
            counter = reference.counter_of(index, epoch, transform)
            want = [reference.uniform(philox, counter, j) for j in range(first, first + count)]
            assert_same_bits(got[i], np.array(want))
            assert words[i].tolist() == [*philox, *counter]


def test_numbers_do_not_depend_on_who_else_is_drawn_for() -> None:
    indices = np.random.default_rng(0).permutation(3000)
    want = _core.uniforms(4, 2, indices, 1, 0, 7)
    for threads in (1, 2, 3):
        ironstep.set_num_threads(threads)
        try:
            assert_same_bits(_core.uniforms(4, 2, indices, 1, 0, 7), want)
        finally:
            ironstep.set_num_threads(0)
    assert_same_bits(_core.uniforms(4, 2, indices[::-1].copy(), 1, 0, 7)[::-1], want)
    assert_same_bits(_core.uniforms(4, 2, indices[100:103], 1, 3, 2), want[100:103, 3:5].copy())
    assert (want >= 0).all()
    assert (want < 1).all()
    assert scipy.stats.kstest(want.ravel(), "uniform").pvalue > RARE
    # Neighbours of any kind have nothing to do with each other.
    one = _core.uniforms(4, 2, np.arange(3000), 1, 0, 1)[:, 0]
    others = [
        _core.uniforms(*of, 1)[:, 0]
        for of in [
            (4, 2, np.arange(1, 3001), 1, 0),
            (4, 3, np.arange(3000), 1, 0),
            (5, 2, np.arange(3000), 1, 0),
            (4, 2, np.arange(3000), 2, 0),
            (4, 2, np.arange(3000), 1, 1),
            (4, 2, np.arange(3000), 1, 2),
        ]
    ]
    for other in others:
        assert scipy.stats.pearsonr(one, other).pvalue > RARE


def test_noise_is_box_and_mullers_of_philoxs_words() -> None:
    """The normal numbers of elements, within rounding (of the radius, and of u for small radii)."""
    h, w, c = 9, 13, 3
    noise = GaussianNoise(sigma=1.0, clip=False)
    params = noise.sample(key([3, 2**40], seed=9, epoch=4), (2, h, w, c))
    z = noise.apply(params, np.zeros((2, h, w, c), np.float32)).reshape(2, -1)
    for got, words in zip(z, params["words"].astype(np.int64).tolist(), strict=True):
        want, radius = reference.normals(words[:2], words[2:], h * w * c)
        assert (np.abs(got - want) < 4e-7 * radius + 1e-6 / (radius + 1e-3)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_noise_adds_the_same_numbers_everywhere(isa: str) -> None:
    """In (h, w, c) order whatever the layout, in units of the full range, on any number of channels."""
    _core.use_instruction_set(isa)
    try:
        for c, (h, w) in itertools.product((1, 3, 4), ((1, 1), (3, 7), (17, 30))):
            n, shape = 3, (3, h, w, c)
            words = GaussianNoise().sample(5, shape)["words"]
            params = {"apply": np.array([True, False, True]), "sigma": np.array([0.1, 0.2, 0.03]), "words": words}
            unit = {"apply": np.ones(n, bool), "sigma": np.ones(n), "words": words}
            z = GaussianNoise(sigma=1.0, clip=False).apply(unit, np.zeros(shape, np.float32))
            for dtype, clip in itertools.product((np.uint8, np.float32), (True, False)):
                x = np.random.default_rng(1).random(shape)
                x = (255 * x).astype(np.uint8) if dtype == np.uint8 else x.astype(np.float32)
                t = GaussianNoise(0.02, (0.0, 1.0), clip=clip)
                want = np.stack([reference.noise(x[i], z[i], 0.02, params["sigma"][i], clip) for i in range(n)])
                want[1] = x[1]
                assert_same_bits(t.apply(params, x), want, f"{c}, {h} x {w}, {dtype}, {clip}")
                planar = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
                got = Compose([t], layout="NCHW").apply([params], planar)
                assert_same_bits(got.transpose(0, 2, 3, 1), want, f"planar {c}, {h} x {w}, {dtype}, {clip}")
    finally:
        _core.use_instruction_set(None)


# -- Distributions -----------------------------------------------------------------------------------------------------

N = 3000
SIDE = (40, 60)


def uniform(low: float, high: float) -> Callable[[Array], float]:
    return lambda x: scipy.stats.kstest(x, scipy.stats.uniform(low, high - low).cdf).pvalue


def equally(*values: Any) -> Callable[[Array], float]:
    """Each of these, and no other."""

    def test(x: Array) -> float:
        found, counts = np.unique(x, return_counts=True, axis=0)
        assert_same(np.asarray(found, np.int64), np.asarray(values, np.int64))
        return float(scipy.stats.chisquare(counts).pvalue) if len(counts) > 1 else 1.0

    return test


def likely(p: float) -> Callable[[Array], float]:
    return lambda x: float(scipy.stats.binomtest(int(x.sum()), len(x), p).pvalue)


class Drawn(NamedTuple):
    """A parameter, and the test of its distribution, which gives a probability."""

    transform: Transform
    name: str
    test: Callable[[Array], float]


ORDERS = list(itertools.permutations(range(4)))
DRAWN = [
    Drawn(RandomHorizontalFlip(), "apply", likely(0.5)),
    Drawn(RandomErasing(p=0.125), "apply", likely(0.125)),
    Drawn(RandomGrayscale(), "apply", likely(0.1)),
    Drawn(RandomRotate90(), "k", equally(2)),
    Drawn(RandomRotation(30), "angle", uniform(-30, 30)),
    Drawn(RandomRotation((5, 7)), "angle", uniform(5, 7)),
    Drawn(RandomAffine(10), "angle", uniform(-10, 10)),
    Drawn(RandomAffine(0, scale=(0.5, 3)), "scale", uniform(0.5, 3)),
    Drawn(RandomAffine(0, shear=20), "shear", lambda x: min(uniform(-20, 20)(x[:, 0]), float((x[:, 1] == 0).all()))),
    Drawn(
        RandomAffine(0, shear=(0, 5, -8, 8)), "shear", lambda x: min(uniform(0, 5)(x[:, 0]), uniform(-8, 8)(x[:, 1]))
    ),
    # 6 and 8 pixels; the ends are half as likely.
    Drawn(
        RandomAffine(0, translate=(0.1, 0.2)), "translate", lambda x: rounded(x[:, 0], 6) * (rounded(x[:, 1], 8) > RARE)
    ),
    Drawn(RandomCrop(40, padding=3), "top", equally(*range(-3, 4))),
    Drawn(RandomCrop((30, 50), padding=(1, 2)), "left", equally(*range(-1, 12))),
    Drawn(RandomCrop((45, 50), pad_if_needed=True), "top", equally(*range(-5, 1))),
    Drawn(ColorJitter(brightness=0.4), "brightness", uniform(0.6, 1.4)),
    Drawn(ColorJitter(contrast=2.0), "contrast", uniform(0, 3)),
    Drawn(ColorJitter(saturation=(0.1, 0.3)), "saturation", uniform(0.1, 0.3)),
    Drawn(ColorJitter(hue=0.5), "hue", uniform(-0.5, 0.5)),
    Drawn(ColorJitter(0.1), "order", equally(*ORDERS)),
    Drawn(GaussianNoise(sigma=(0.1, 0.2)), "sigma", uniform(0.1, 0.2)),
    Drawn(GaussianBlur(5), "sigma", uniform(0.1, 2.0)),
    Drawn(Cutout(10), "top", equally(*range(-5, 35))),
    Drawn(Cutout((4, 7), 2), "left", lambda x: equally(*range(-3, 57))(x.ravel())),
    Drawn(MixUp(mode="sample"), "lam", uniform(0, 1)),
    Drawn(MixUp(0.2, mode="sample"), "lam", lambda x: scipy.stats.kstest(x, scipy.stats.beta(0.2, 0.2).cdf).pvalue),
    Drawn(MixUp(8.0, mode="sample"), "lam", lambda x: scipy.stats.kstest(x, scipy.stats.beta(8.0, 8.0).cdf).pvalue),
    Drawn(CutMix(p=0.3, mode="sample"), "apply", likely(0.3)),
]


def rounded(x: Array, most: int) -> float:
    values, counts = np.unique(x, return_counts=True)
    assert values.tolist() == list(range(-most, most + 1))
    shares = np.full(len(values), 2.0)
    shares[[0, -1]] = 1.0
    return float(scipy.stats.chisquare(counts, shares / shares.sum() * len(x)).pvalue)


@pytest.mark.parametrize("drawn", DRAWN, ids=lambda drawn: f"{drawn.transform!r} {drawn.name}")
def test_distributions(drawn: Drawn) -> None:
    params = drawn.transform.sample(11, (N, *SIDE, 3))
    assert len(params[drawn.name]) == N
    assert drawn.test(params[drawn.name]) > RARE


def test_turns_of_square_pictures() -> None:
    assert equally(1, 2, 3)(RandomRotate90().sample(0, (N, 8, 8, 3))["k"]) > RARE


@pytest.mark.parametrize("name", ["RandomResizedCrop", "RandomErasing", "RandomErasing_tall", "RandomResizedCrop_wide"])
def test_boxes_are_distributed_as_torchvisions(name: str) -> None:
    """Sides, places, area and ratio: two samples of the same distribution. Some do not fit and are drawn again."""
    ours, theirs, names = {
        "RandomResizedCrop": (RandomResizedCrop(8), v2.RandomResizedCrop(8), ("top", "left", "height", "width")),
        "RandomResizedCrop_wide": (
            RandomResizedCrop(8, (0.5, 1), (2, 3)),
            v2.RandomResizedCrop(8, (0.5, 1), (2, 3)),
            ("top", "left", "height", "width"),
        ),
        "RandomErasing": (RandomErasing(1), v2.RandomErasing(1), ("i", "j", "h", "w")),
        "RandomErasing_tall": (
            RandomErasing(1, (0.5, 1), (1, 3)),
            v2.RandomErasing(1, (0.5, 1), (1, 3)),
            ("i", "j", "h", "w"),
        ),
    }[name]
    got = ours.sample(3, (N, *SIDE, 3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        many = [theirs.make_params([Image(torch.zeros(3, *SIDE))]) for _ in range(N // 3)]
    want = {
        k: np.array([m[theirs_k] for m in many])
        for k, theirs_k in zip(("top", "left", "height", "width"), names, strict=True)
    }
    if "Erasing" in name:  # where none of ten fits, nothing is erased; torchvision then has no value
        none = np.array([m["v"] is None for m in many])
        share = float((got["height"] == 0).mean())
        assert scipy.stats.binomtest(int(none.sum()), len(none), share).pvalue > RARE if share else not none.any()
        assert ("tall" in name) == (share > 0.01)
        want = rows_of(want, ~none)
        got = rows_of(got, got["height"] > 0)
    for of in (
        lambda p: p["height"],
        lambda p: p["width"],
        lambda p: p["top"],
        lambda p: p["left"],
        lambda p: p["height"] * p["width"],
        lambda p: p["height"] - p["width"],
    ):
        assert scipy.stats.ks_2samp(of(got), of(want)).pvalue > RARE
    assert (got["top"] >= 0).all()
    assert (got["left"] >= 0).all()
    assert (got["top"] + got["height"] <= SIDE[0]).all()
    assert (got["left"] + got["width"] <= SIDE[1]).all()


def test_cutmix_is_distributed_as_torchvisions() -> None:
    got = CutMix(mode="sample").sample(5, (N, *SIDE, 3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        many = [v2.CutMix(num_classes=2).make_params([Image(torch.zeros(3, *SIDE))]) for _ in range(N // 3)]
    want = np.array([m["box"] for m in many])[:, [1, 0, 3, 2]]
    for k in range(4):
        assert scipy.stats.ks_2samp(got["box"][:, k], want[:, k]).pvalue > RARE
    assert scipy.stats.ks_2samp(got["lam"], np.array([m["lam_adjusted"] for m in many])).pvalue > RARE
    top, left, bottom, right = got["box"].T
    assert_same_bits(got["lam"], 1.0 - (bottom - top) * (right - left) / (SIDE[0] * SIDE[1]))


@pytest.mark.parametrize(("weights", "want"), [(None, [1, 1, 1]), ([2, 0, 3], [2, 0, 3]), ([0, 0, 1e-9], [0, 0, 1])])
def test_one_of_several(weights: Any, want: list[float]) -> None:
    t = OneOf([RandomHorizontalFlip(1), RandomVerticalFlip(1), RandomGrayscale(0.5)], weights=weights, p=0.8)
    *others, gray = (params["apply"] for params in t.sample(1, (N, 4, 4, 3)))
    shares = 0.8 * np.array(want) / sum(want) * [1, 1, 0.5]
    for apply, share in zip([*others, gray], shares, strict=True):
        assert scipy.stats.binomtest(int(apply.sum()), N, float(share)).pvalue > RARE
    assert (np.sum([*others, gray], axis=0) <= 1).all()


def test_transforms_of_a_chain_draw_apart() -> None:
    """Two of the same kind have nothing to do with each other, nor has p with the parameters or with the chain's p."""
    t = Compose([RandomRotation(10, p=0.5), RandomRotation(10, p=0.5)], p=0.5)
    one, two = t.sample(2, (N, 4, 4, 1))
    assert scipy.stats.pearsonr(one["angle"], two["angle"]).pvalue > RARE
    both = one["apply"] & two["apply"]
    assert scipy.stats.binomtest(int(both.sum()), N, 0.125).pvalue > RARE
    for p in (one, two):
        assert scipy.stats.binomtest(int(p["apply"].sum()), N, 0.25).pvalue > RARE
        assert scipy.stats.ks_2samp(p["angle"][p["apply"]], p["angle"][~p["apply"]]).pvalue > RARE
    # All or none of a chain.
    first, second = Compose([RandomHorizontalFlip(1), RandomVerticalFlip(1)], p=0.5).sample(3, (100, 4, 4, 1))
    assert_same(first["apply"], second["apply"])
    assert 20 < first["apply"].sum() < 80


def test_who_shares_lambda() -> None:
    for cls in (MixUp, CutMix):
        batch, pair, sample = (cls(mode=mode, p=0.5).sample(6, (9, 30, 30, 3)) for mode in ("batch", "pair", "sample"))
        for name in set(batch) - {"partner"}:
            assert (batch[name] == batch[name][:1]).all()
            assert_same(pair[name], pair[name][::-1])
        assert len(np.unique(batch["lam"])) == 1
        assert len(np.unique(pair["lam"])) > 2
        assert len(np.unique(sample["lam"])) > 4
        assert batch["partner"].tolist() == sample["partner"].tolist() == [8, 0, 1, 2, 3, 4, 5, 6, 7]
        assert pair["partner"].tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]


# -- What the numbers depend on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", LONE + GROUPS[:1] + GROUPS[2:], ids=lambda t: " ".join(repr(t).split()))
def test_a_picture_depends_on_seed_epoch_and_number_only(transform: Transform) -> None:
    n = 24
    x, of = images(n), np.random.default_rng(1).permutation(10**6)[:n]
    whole_params = transform.sample(key(of, 3, 2, 0), x.shape)
    whole = transform(key(of, 3, 2, 0), x)
    assert_same(transform.sample(key(of, 3, 2, 77), x), whole_params)  # not on the number of the batch
    for size in (1, 7):
        for start in range(0, n, size):
            rows = slice(start, start + size)
            assert_same(transform.sample(key(of[rows], 3, 2, start), x[rows].shape), rows_of(whole_params, rows))
        pieces = [transform(key(of[i : i + size], 3, 2, i), x[i : i + size]) for i in range(0, n, size)]
        assert_same_bits(np.concatenate(pieces), whole, f"batches of {size}")
    order = np.random.default_rng(2).permutation(n)
    assert_same_bits(transform(key(of[order], 3, 2), x[order]), whole[order], "another order")
    for threads in (1, 3):
        ironstep.set_num_threads(threads)
        try:
            assert_same_bits(transform(key(of, 3, 2), x), whole, f"{threads} threads")
        finally:
            ironstep.set_num_threads(0)
    # What is random is another one for another seed, epoch or sample.
    random = [i for i, array in enumerate(arrays_of(whole_params)) if len(np.unique(array, axis=0)) > 2]
    for other in (key(of, 4, 2), key(of, 3, 1), key(of + 1, 3, 2)):
        drawn = arrays_of(transform.sample(other, x.shape))
        for i in random:
            assert not np.array_equal(drawn[i], arrays_of(whole_params)[i])


def test_a_seed_alone_is_the_first_samples_of_the_first_epoch() -> None:
    t = Compose([RandomRotation(20), ColorJitter(0.3)])
    assert_same(t(5, images()), t(key(np.arange(6), 5), images()))
    assert_same(t.sample(np.uint64(5), images()), t.sample(5, images().shape))


def test_what_is_drawn_does_not_depend_on_type_or_layout() -> None:
    t = GROUPS[2]
    assert isinstance(t, Compose)
    want = t.sample(1, (6, 14, 14, 3))
    planar = Compose(t.transforms, layout="NCHW")
    assert_same(planar.sample(1, (6, 3, 14, 14)), want)
    assert_same(planar.sample(1, images(dtype=np.uint8).transpose(0, 3, 1, 2)), want)


def test_a_transform_of_batches() -> None:
    """The same pictures for every batch size, with and without the thread that works ahead."""
    x, number = images(20), np.arange(20)
    t = Compose([RandomCrop(10), ColorJitter(0.3), GaussianNoise()], targets=("image", None))
    want: dict[int, dict[int, Array]] = {}
    for size, prefetch in ((20, 0), (7, 0), (3, 2)):
        batches = Batches(x, number, batch_size=size, seed=4, transform=t, prefetch=prefetch)
        for epoch in range(2):
            for pictures, numbers in batches:
                for picture, i in zip(pictures, numbers.tolist(), strict=True):
                    assert_same_bits(picture, want.setdefault(epoch, {}).setdefault(i, picture), f"{size}, sample {i}")
    assert not np.array_equal(want[0][3], want[1][3])


# -- Replay ------------------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("dtype", [np.uint8, np.float32], ids=lambda dtype: dtype.__name__)
def test_sample_and_apply_are_the_call(transform: Transform, dtype: Any) -> None:
    x, y = images(dtype=dtype), labels(6)
    kept = x.copy(), y.copy()
    want = transform(8, x, y)
    params = transform.sample(8, x)
    assert_same(transform.apply(params, x, y), want)
    # Stored and loaded.
    assert_same(transform.apply(pickle.loads(pickle.dumps(params)), x, y), want)
    if isinstance(params, dict):
        file = io.BytesIO()
        np.savez(file, **params)
        file.seek(0)
        assert_same(transform.apply(dict(np.load(file)), x, y), want)
    for other in (copy.copy(transform), copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert other == transform
        assert_same(other(8, x, y), want)
    assert_same((x, y), kept)


@each
def test_text_can_be_pasted_back(transform: Transform) -> None:
    again = eval(repr(transform))
    assert type(again) is type(transform)
    assert again == transform
    assert hash(again) == hash(transform)
    assert repr(again) == repr(transform)
    for other in LONE + PAIRS + GROUPS:
        assert (transform == other) == (transform is other)


def test_text_has_what_is_not_the_default() -> None:
    assert repr(RandomHorizontalFlip()) == "RandomHorizontalFlip()"
    assert repr(RandomRotation(30)) == "RandomRotation(degrees=(-30.0, 30.0))"
    assert repr(Compose([])) == "Compose([])"
    assert (
        repr(Compose([RandomVerticalFlip(p=1)], layout="NCHW"))
        == "Compose([\n    RandomVerticalFlip(p=1.0),\n], layout='NCHW')"
    )


# -- Injected parameters that do not fit -------------------------------------------------------------------------------


class Refused(NamedTuple):
    """A parameter that is no good."""

    transform: Transform
    name: str
    value: Any
    error: type[Exception]
    message: str


ROT, AFF, CROP, RRC = RandomRotation(20), RandomAffine(10), RandomCrop(4), RandomResizedCrop(4)
JIT, NOISE, BLUR, ERASE = ColorJitter(0.3, hue=0.1), GaussianNoise(), GaussianBlur(3), RandomErasing()
REFUSED = [
    Refused(ROT, "angle", None, ValueError, "params must have 'angle'"),
    Refused(ROT, "angle", np.zeros(5), ValueError, "params['angle'] must have shape (6,), a row for each sample"),
    Refused(ROT, "angle", np.zeros((6, 1)), ValueError, "params['angle'] must have shape (6,)"),
    Refused(ROT, "angle", np.full(6, np.nan), ValueError, "params['angle'] must be finite"),
    Refused(ROT, "angle", np.full(6, np.inf), ValueError, "params['angle'] must be finite"),
    Refused(ROT, "angle", np.array(["1"] * 6), TypeError, "params['angle'] must be an array of numbers"),
    Refused(ROT, "apply", np.ones(5, bool), ValueError, "apply"),
    Refused(ROT, "apply", np.full(6, 0.5), TypeError, "apply"),
    Refused(ROT, "apply", None, ValueError, "apply"),
    Refused(AFF, "scale", np.zeros(6), ValueError, "params['scale'] must be above 0, got 0"),
    Refused(AFF, "shear", np.full((6, 2), 90.0), ValueError, "params['shear'] must be above -90 and below 90"),
    Refused(AFF, "shear", np.zeros(6), ValueError, "params['shear'] must have shape (6, 2)"),
    Refused(AFF, "translate", np.full((6, 2), 1e12), ValueError, "2^30"),
    Refused(AFF, "scale", np.full(6, 1e-300), ValueError, "2^30"),
    Refused(RandomRotate90(), "k", np.full(6, 4), ValueError, "params['k'] must be quarter turns from 0 to 3, got 4"),
    Refused(RandomRotate90(), "k", np.full(6, 1.0), TypeError, "params['k'] must be an array of whole numbers"),
    Refused(CROP, "top", np.full(6, 0.5), TypeError, "params['top'] must be an array of whole numbers"),
    Refused(
        RRC,
        "height",
        np.zeros(6, int),
        ValueError,
        "params['height'] must be at least 1, ending within 14 pixels, got 0",
    ),
    Refused(RRC, "left", np.full(6, 14), ValueError, "params['left'] must be from 0 to 13, in the images, got 14"),
    Refused(RRC, "left", np.full(6, -1), ValueError, "params['left'] must be from 0 to 13, in the images, got -1"),
    Refused(RRC, "width", np.full(6, 2**62), ValueError, "params['width'] must be at least 1, ending within 14 pixels"),
    Refused(JIT, "brightness", np.full(6, -0.1), ValueError, "brightness"),
    Refused(JIT, "brightness", np.full(6, 1e300), ValueError, "brightness"),
    Refused(JIT, "hue", np.full(6, 0.6), ValueError, "params['hue'] must be from -0.5 to 0.5, got 0.6"),
    Refused(JIT, "order", np.zeros((6, 4), int), ValueError, "params['order'] must be 0, 1, 2 and 3 in each row"),
    Refused(NOISE, "sigma", np.full(6, -1.0), ValueError, "params['sigma'] must be at least 0"),
    Refused(NOISE, "sigma", np.full(6, 1e300), ValueError, "sigma"),
    Refused(NOISE, "words", np.full((6, 5), -1), ValueError, "params['words'] must be whole numbers from 0"),
    Refused(NOISE, "words", np.zeros((6, 4), int), ValueError, "params['words'] must have shape (6, 5)"),
    Refused(BLUR, "sigma", np.zeros(6), ValueError, "params['sigma'] must be above 0"),
    Refused(ERASE, "height", np.full(6, -1), ValueError, "params['height'] must be at least 0"),
    Refused(MixUp(), "lam", np.full(6, 1.1), ValueError, "params['lam'] must be from 0 to 1"),
    Refused(
        MixUp(),
        "partner",
        np.full(6, 6),
        ValueError,
        "params['partner'] must be a sample of the batch, from 0 to 5, got 6",
    ),
    Refused(MixUp(), "partner", np.full(6, -1), ValueError, "params['partner'] must be a sample of the batch"),
    Refused(
        CutMix(), "box", np.tile([0, 0, 15, 3], (6, 1)), ValueError, "params['box'] must be (top, left, bottom, right)"
    ),
    Refused(
        CutMix(), "box", np.tile([5, 0, 4, 3], (6, 1)), ValueError, "params['box'] must be (top, left, bottom, right)"
    ),
]


@pytest.mark.parametrize("refused", REFUSED, ids=lambda r: f"{type(r.transform).__name__} {r.name} {r.message}")
@pytest.mark.parametrize("dtype", [np.uint8, np.float32], ids=lambda dtype: dtype.__name__)
def test_injected_parameters_that_do_not_fit(refused: Refused, dtype: Any) -> None:
    x = images(dtype=dtype)
    params = dict(refused.transform.sample(0, x)) | {"apply": np.ones(6, bool)}
    if refused.value is None:
        del params[refused.name]
    else:
        params[refused.name] = refused.value
    out = np.full_like(refused.transform(0, x, labels(6))[0], 7)
    kept = x.copy()
    for target in (None, out, x):
        if target is x and out.shape != x.shape:
            continue
        with pytest.raises(refused.error, match=re.escape(refused.message)):
            refused.transform.apply(params, x, labels(6), out=target)
    assert (out == 7).all()
    assert_same(x, kept)


KEYS = [
    (-1, ValueError, "key must be from 0 to 18446744073709551615, got -1"),
    (2**64, ValueError, "key must be from 0 to 18446744073709551615"),
    (True, TypeError, "key must be a BatchKey or a seed"),
    (1.0, TypeError, "key must be a BatchKey or a seed"),
    (key([0] * 5), ValueError, "key.indices must have the number of each of 6 samples, got shape (5,)"),
    (key(np.full(6, 0.5)), TypeError, "indices must be"),
    (key([-1] * 6), ValueError, "indices must be from 0 to 2**48 - 1, got -1"),
    (key([2**48] * 6), ValueError, "indices must be from 0 to 2**48 - 1"),
    (key([0] * 6, epoch=-1), ValueError, "epoch must be"),
    (key([0] * 6, epoch=2**32), ValueError, "epoch must be"),
    (BatchKey(None, 0, 0, np.arange(6)), ValueError, "seed must be given"),
]


@pytest.mark.parametrize(("given", "error", "message"), KEYS)
def test_keys_that_do_not_fit(given: Any, error: type[Exception], message: str) -> None:
    x = images()
    kept = x.copy()
    for call in (lambda: ROT(given, x, out=x), lambda: GROUPS[2](given, x), lambda: ROT.sample(given, x)):
        with pytest.raises(error, match=re.escape(message)):
            call()
    assert_same(x, kept)


@pytest.mark.parametrize("params", [None, 3, [], [{}], {"apply": 1}, np.zeros(6)], ids=repr)
def test_parameters_that_are_none(params: Any) -> None:
    for t in (ROT, GROUPS[0], GROUPS[2]):
        with pytest.raises((TypeError, ValueError), match="params"):
            t.apply(params, images())


def test_parameters_of_other_images() -> None:
    params = GROUPS[2].sample(0, (6, 14, 14, 3))
    with pytest.raises(ValueError, match=r"row for each sample"):
        GROUPS[2].apply(params, images(7))
