"""The specification of augmentation: each operation on one picture in NumPy, plainly.

A picture is (h, w, c), of uint8 or float32; what is stored as float16 or bfloat16 comes widened and is rounded after
the last operation. Numbers are float32 unless it says otherwise, and sums run from left to right. A byte that is stored
is rounded to nearest (even) and clamped; but for the colours, where torchvision cuts off the fraction after each step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import layers_reference

Array: TypeAlias = NDArray[Any]

F32, F64, U8 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.uint8)
I64 = np.dtype(np.int64)

CHUNK = 16384
"""Elements of a block of a sum."""

BORDERS = ["constant", "edge", "reflect", "symmetric", "wrap"]
"""In the words of numpy.pad."""


def narrowed(x: Array, like: Array) -> Array:
    """Numbers as the pixels that `like` has."""
    if like.dtype != U8:
        return x.astype(F32)
    x = np.where(np.isnan(x), F32.type(0), x)
    return np.rint(np.clip(x, 0, 255)).astype(U8)


def per_channel(value: Any, c: int) -> Array:
    """A number, or one for each channel, as numbers of each channel."""
    return np.broadcast_to(np.asarray(value, F64), (c,)).astype(F32)


# -- Moves -------------------------------------------------------------------------------------------------------------


def flip(x: Array, horizontal: bool, vertical: bool) -> Array:
    if horizontal:
        x = x[:, ::-1]
    if vertical:
        x = x[::-1]
    return x


def turn(x: Array, k: int) -> Array:
    """Quarter turns, counter-clockwise."""
    return np.rot90(x, k)


def crop(x: Array, top: int, left: int, h: int, w: int, border: str = "constant", fill: Any = 0) -> Array:
    """h x w pixels from (top, left) on, which may lie outside."""
    before = max(0, -top), max(0, -left)
    after = max(0, top + h - x.shape[0]), max(0, left + w - x.shape[1])
    channels = []
    for k, value in enumerate(narrowed(per_channel(fill, x.shape[2]), x)):
        options = {"constant_values": value} if border == "constant" else {}
        width = [(before[0], after[0]), (before[1], after[1])]
        padded = np.pad(x[:, :, k], width, border, **options)  # type: ignore[call-overload]
        y, x_ = top + before[0], left + before[1]
        channels.append(padded[y : y + h, x_ : x_ + w])
    return np.stack(channels, axis=2)


# -- Warp --------------------------------------------------------------------------------------------------------------


def taps(x: Array, rows: Array, columns: Array, border: str, fill: Any) -> Array:
    """The pixels at these indices, which may lie outside, as float32."""
    h, w, c = x.shape

    def inside(i: Array, n: int) -> Array:
        far = int(max(0, -i.min(), i.max() - n + 1))
        mode: Any = "edge" if border == "constant" else border
        return np.pad(np.arange(n), far, mode)[i + far]

    value = x[inside(rows, h), inside(columns, w)].astype(F32)
    if border == "constant":
        out = (rows < 0) | (rows >= h) | (columns < 0) | (columns >= w)
        value[out] = narrowed(per_channel(fill, c), x)
    return value


def warp(x: Array, matrix: Any, interpolation: str = "nearest", border: str = "constant", fill: Any = 0) -> Array:
    """Pixel (x, y) of the result comes from (a x + b y + c, d x + e y + f): indices, in steps of 2^-32.

    The nearest pixel is the one at floor(s + 1 / 2). Bilinear: the weight is the upper 24 bits of the fraction; two are
    combined as p + f (q - p), those above each other first. A matrix of whole numbers moves pixels: the same, but for
    infinities, NaN and the sign of zero. The fill is a pixel.
    """
    h, w, _ = x.shape
    a, b, c, d, e, f = (int(v) for v in np.rint(np.asarray(matrix, F64).reshape(6) * 2.0**32))
    rows, columns = np.mgrid[:h, :w].astype(I64)
    sx, sy = a * columns + b * rows + c, d * columns + e * rows + f
    if interpolation == "nearest" or not any(v % 2**32 for v in (a, b, c, d, e, f)):
        return narrowed(taps(x, (sy + 2**31) >> 32, (sx + 2**31) >> 32, border, fill), x)
    i, j = sy >> 32, sx >> 32
    fy, fx = ((((s & 0xFFFFFFFF) >> 8).astype(F32) * F32.type(2.0**-24))[:, :, None] for s in (sy, sx))
    p00, p01 = taps(x, i, j, border, fill), taps(x, i, j + 1, border, fill)
    p10, p11 = taps(x, i + 1, j, border, fill), taps(x, i + 1, j + 1, border, fill)
    left = p00 + fy * (p10 - p00)
    right = p01 + fy * (p11 - p01)
    return narrowed(left + fx * (right - left), x)


def inverse_affine(
    h: int,
    w: int,
    angle: float,
    translate: Sequence[float] = (0.0, 0.0),
    scale: float = 1.0,
    shear: Sequence[float] = (0.0, 0.0),
    center: Sequence[float] | None = None,
) -> Array:
    """The matrix for `warp` of a map: shear by (x, y) degrees, scale, turn by an angle about the centre; translate.

    As torchvision's `affine`: the angle is clockwise for someone who looks at the picture (y points down), so a
    `rotate` by d is one by -d here. The centre is in coordinates where pixel i covers i to i + 1. In float64.
    """
    cx, cy = (w / 2, h / 2) if center is None else center
    a, sx, sy = (math.radians(v) for v in (angle, *shear))
    turned = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    sheared = np.array([[1.0, 0.0], [-math.tan(sy), 1.0]]) @ np.array([[1.0, -math.tan(sx)], [0.0, 1.0]])
    # torchvision's RSS has cos(a - sy) / cos(sy) in its first place: R(a) SHy(sy) SHx(sx).
    forward = scale * turned @ sheared
    back = np.linalg.inv(forward)
    # From continuous coordinates to continuous coordinates; half a pixel to get from indices to them and back.
    offset = np.array([cx, cy]) + back @ (0.5 - np.array([cx, cy]) - np.asarray(translate)) - 0.5
    return np.array([*back[0], offset[0], *back[1], offset[1]])


# -- Resize ------------------------------------------------------------------------------------------------------------


def resize_weights(n: int, m: int, antialias: bool) -> list[tuple[int, Array]]:
    """For each of m pixels made of n: the first of those that it is made of, and their weights.

    A triangle around the place (i + 1/2) n / m, as wide as the scale with antialias. Distances in steps of 1 / (2 m)
    are whole numbers, and so are the weights and their sum.
    """
    radius = 2 * (max(m, n) if antialias else m)
    weights = []
    for i in range(m):
        k = [max(0, radius - abs((2 * j + 1) * m - (2 * i + 1) * n)) for j in range(n)]
        inside = [j for j in range(n) if k[j]]
        weights.append((inside[0], np.array([k[j] / sum(k) for j in inside]).astype(F32)))
    return weights


def weighted(x: Array, weights: list[tuple[int, Array]]) -> Array:
    """Sums along the first axis, of those with a weight."""
    rows = []
    for first, k in weights:
        row = k[0] * x[first]
        for j in range(1, len(k)):
            row = row + k[j] * x[first + j]
        rows.append(row)
    return np.stack(rows)


def resize(
    x: Array,
    h: int,
    w: int,
    interpolation: str = "bilinear",
    antialias: bool = True,
    box: tuple[int, int, int, int] | None = None,
) -> Array:
    """The part (top, left, height, width) of the picture, or all of it, as h x w pixels: nothing else of it is seen.

    Bilinear: down the columns, then along the rows.
    """
    if box is not None:
        top, left, height, width = box
        x = x[top : top + height, left : left + width]
    n, m, _ = x.shape
    if (n, m) == (h, w):
        return x
    if interpolation == "nearest":
        return x[(2 * np.arange(h) + 1) * n // (2 * h)][:, (2 * np.arange(w) + 1) * m // (2 * w)]
    y = weighted(x.astype(F32), resize_weights(n, h, antialias))
    y = weighted(y.swapaxes(0, 1), resize_weights(m, w, antialias)).swapaxes(0, 1)
    return narrowed(y + F32.type(0), x)  # a sum of zeros is +0


# -- Blur --------------------------------------------------------------------------------------------------------------


def gaussian(size: int, sigma: float) -> Array:
    """The weights of a kernel from its middle on, computed in float64; without those that are 0 in float32."""
    k = [math.exp(-0.5 * (i / sigma) * (i / sigma)) for i in range(size // 2 + 1)]
    total = sum([*k[:0:-1], *k])
    weights = np.array([v / total for v in k]).astype(F32)
    return weights[weights != 0]


def blur(x: Array, size: tuple[int, int], sigma: tuple[float, float]) -> Array:
    """With a kernel of (height, width) and (x, y) standard deviations: down the columns, then along the rows.

    The two pixels that are as far from the middle are added first, from the nearest ones to the farthest.
    """
    kernels = [gaussian(size[0], sigma[1]), gaussian(size[1], sigma[0])]
    if len(kernels[0]) == len(kernels[1]) == 1:
        return x
    y = x.astype(F32)
    for axis, kernel in enumerate(kernels):
        r, n = len(kernel) - 1, x.shape[axis]
        padded = np.pad(y, [(r, r) if k == axis else (0, 0) for k in range(3)], "reflect").swapaxes(0, axis)
        y = kernel[0] * padded[r : r + n]
        for k in range(1, r + 1):
            y = y + kernel[k] * (padded[r - k : r - k + n] + padded[r + k : r + k + n])
        y = y.swapaxes(0, axis)
    return narrowed(y, x)


# -- Colours -----------------------------------------------------------------------------------------------------------


def cut(x: Array, like: Array) -> Array:
    """Clamped to what a pixel may be; the fraction of a byte is cut off."""
    return np.clip(x, 0, 255 if like.dtype == U8 else 1).astype(like.dtype)


def gray_of(x: Array) -> Array:
    """(h, w, 1); for bytes a whole number, also as float32."""
    if x.shape[2] == 1:
        return x.astype(F32)
    r, g, b = (x[:, :, k : k + 1].astype(F32) for k in range(3))
    y = (F32.type(0.2989) * r + F32.type(0.587) * g) + F32.type(0.114) * b
    return np.floor(y) if x.dtype == U8 else y


def gray(x: Array) -> Array:
    """All three channels alike."""
    if x.shape[2] == 1:
        return x
    y = x.copy()
    y[:, :, :3] = gray_of(x).astype(x.dtype)
    return y


def blend(x: Array, other: Array, ratio: float) -> Array:
    """1 - ratio is computed in float64."""
    return cut(F32.type(ratio) * x.astype(F32) + F32.type(1.0 - ratio) * other, x)


def mean_of(y: Array) -> Any:
    """In float64, in the shape of sums that the core promises; rounded to float32."""
    flat = y.reshape(-1).astype(F64)
    return F32.type(layers_reference.sum_of(flat, CHUNK) / flat.size)


def brightness(x: Array, factor: float) -> Array:
    return cut(F32.type(factor) * x.astype(F32), x)


def contrast(x: Array, factor: float) -> Array:
    return blend(x, mean_of(gray_of(x)), factor)


def saturation(x: Array, factor: float) -> Array:
    return x if x.shape[2] == 1 else blend(x, gray_of(x), factor)


def hue(x: Array, turn: float) -> Array:
    """By (hue, saturation, value); hue goes from 0 to 1."""
    if x.shape[2] == 1:
        return x
    one, two, four, six = (F32.type(v) for v in (1, 2, 4, 6))
    byte = x.dtype == U8
    r, g, b = (x[:, :, k].astype(F32) * F32.type(1 / 255) if byte else x[:, :, k] for k in range(3))
    v = np.maximum(np.maximum(r, g), b)
    low = np.minimum(np.minimum(r, g), b)
    same = v == low
    s = (v - low) / np.where(same, one, v)
    d = np.where(same, one, v - low)
    rc, gc, bc = (v - r) / d, (v - g) / d, (v - b) / d
    h = np.where(v == r, bc - gc, np.where(v == g, (rc + two) - bc, (gc + four) - rc))
    h = np.fmod(h * F32.type(1.0 / 6.0) + one, one)
    h = np.mod(h + F32.type(turn), one)
    h6 = h * six
    sector = np.floor(h6)
    f = h6 - sector
    p = np.clip((one - s) * v, 0, 1)
    q = np.clip((one - s * f) * v, 0, 1)
    t = np.clip((s * f + (one - s)) * v, 0, 1)
    i = sector.astype(np.int32) % 6
    y = np.stack(
        [np.choose(i, [v, q, p, p, t, v]), np.choose(i, [t, v, v, q, p, p]), np.choose(i, [p, p, t, v, v, q])], axis=2
    )
    if byte:
        y = (y * F32.type(255.0 + 1.0 - 1e-3)).astype(U8)
    return y.astype(x.dtype)


STEPS = [brightness, contrast, saturation, hue]


def jitter(x: Array, factors: Sequence[float], order: Sequence[int]) -> Array:
    """The steps in that order, without those whose factor is NaN. The fourth of four channels stays."""
    y = x[:, :, :3] if x.shape[2] == 4 else x
    for k in order:
        if not math.isnan(factors[k]):
            y = STEPS[k](y, float(factors[k]))
    return np.concatenate([y, x[:, :, 3:]], axis=2) if x.shape[2] == 4 else y


# -- Values ------------------------------------------------------------------------------------------------------------


def normalize(x: Array, mean: Any, std: Any) -> Array:
    y = x.astype(F32) / F32.type(255) if x.dtype == U8 else x
    return (y - per_channel(mean, x.shape[2])) / per_channel(std, x.shape[2])


def noise(x: Array, z: Array, mean: float, sigma: float, clip: bool = True) -> Array:
    """z is normal, of the shape of x."""
    mean, sigma = F32.type(mean), F32.type(sigma)
    if x.dtype == U8:
        return narrowed(x.astype(F32) + (F32.type(255) * mean + F32.type(255) * sigma * z), x)
    y = x + (mean + sigma * z)
    return np.clip(y, 0, 1) if clip else y


def erase(x: Array, boxes: Sequence[Sequence[int]], value: Any) -> Array:
    """Boxes are (top, left, bottom, right); the value is a number, one for each channel, or a picture of them."""
    c = x.shape[2]
    y = x.copy()
    value = np.asarray(value)
    fill = value if value.ndim == 3 else np.broadcast_to(narrowed(per_channel(value, c), x), x.shape)
    for top, left, bottom, right in boxes:
        rows, columns = slice(max(0, top), max(0, bottom)), slice(max(0, left), max(0, right))
        y[rows, columns] = fill[rows, columns]
    return y


def mix(x: Array, partner: Array, weight: Array, boxes: Array) -> Array:
    """Of a batch (n, h, w, c) of any type: inside of the box w x + (1 - w) x[partner], outside x."""
    wide = x if x.dtype == F64 else x.astype(F32)
    y = x.copy()
    for i, (p, w, (top, left, bottom, right)) in enumerate(zip(partner, weight, boxes, strict=True)):
        here = i, slice(top, bottom), slice(left, right)
        there = p, slice(top, bottom), slice(left, right)
        if w == 0.0:
            y[here] = x[there]
        elif w != 1.0:
            a, b = wide.dtype.type(w), wide.dtype.type(1.0 - w)
            mixed = a * wide[here] + b * wide[there]
            y[here] = narrowed(mixed, x) if x.dtype == U8 else mixed.astype(x.dtype)
    return y


# -- Random numbers ----------------------------------------------------------------------------------------------------


def words(key: Sequence[int], counter: Sequence[int], groups: int) -> Array:
    """64 `groups` words of 32 bits: 16 in a row are the same word of 16 blocks, of 7 rounds.

    `counter` is words 1 to 3 of the blocks' counters; word 0 is the number of the block with the top bit set.
    """
    blocks = np.arange(16 * groups, dtype=np.uint64) + np.uint64(2**31)
    four = np.stack(layers_reference.philox((blocks, *counter), key, 7))
    return four.reshape(4, groups, 16).swapaxes(0, 1).reshape(-1).astype(np.uint32)


def uniform(key: Sequence[int], counter: Sequence[int], j: int) -> float:
    """Number j of a sample, with 53 bits: two words of a block."""
    block = [int(v) for v in layers_reference.philox((j // 2, *counter), key, 10)]
    high, low = block[2 * (j % 2)], block[2 * (j % 2) + 1]
    return ((high >> 5) * 2.0**26 + (low >> 6)) * 2.0**-53


def key_of(seed: int) -> tuple[int, int]:
    """The key of the seed: two words of the block of a tag, "ironstep augment"."""
    tag = np.frombuffer(b"ironstep augment", "<u4").astype(np.uint64)
    first, second, *_ = layers_reference.philox(tuple(tag), (seed % 2**32, seed >> 32))
    return int(first), int(second)


def counter_of(index: int, epoch: int, transform: int) -> tuple[int, int, int]:
    """Words 1 to 3 of the counters of a sample."""
    return index % 2**32, (index >> 32) | transform << 16, epoch


def polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    """By Horner's rule, the constant coefficient first."""
    y = np.full(x.shape, coefficients[-1], F32)
    for k in coefficients[-2::-1]:
        y = y * x + F32.type(k)
    return y


def normals(key: Sequence[int], counter: Sequence[int], n: int) -> tuple[Array, Array]:
    """Box and Muller: two numbers of each word, 16 words after each other; and their radii. Bit for bit.

    The radius is sqrt(-2 ln u) of u = (k + 1 / 2) 2^-16 with the lower 16 bits k; the angle is the word without its
    upper bit, as -1 to 1 quarter turns, and the upper bit is the sign of both numbers. All in float32: u is
    2^-i (1 - v / 2), and -2 ln u is 2 ln 2 (i + v) and v times a polynomial in v.
    """
    word = words(key, counter, -(-n // 128))
    x = (word & np.uint32(0xFFFF)).astype(F32) + F32.type(0.5)
    bits = np.uint32(0x47800000) - x.view(np.uint32)  # of 2^16 and of x: (i + v) 2^23
    v = ((bits & np.uint32(0x7FFFFF)) | np.uint32(0x3F800000)).view(F32) - F32.type(1)
    linear = bits.astype(F32) * F32.type(F32.type(2) * F32.type(math.log(2)) / F32.type(2**23))
    even = polynomial(v * v, [-0.3863458, 0.07334882, -0.031075563])
    odd = polynomial(v * v, [0.25135022, 0.06203236, 0.030685153])
    radius = np.sqrt((linear + v * even) + v * v * odd)
    a = (word << np.uint32(1)).view(np.int32).astype(F32) * F32.type(2.0**-31)
    cos = polynomial(a * a, [0.99999995, -1.2336982, 0.25365075, -0.020810628, 0.0008581906])
    sin = a * polynomial(a * a, [1.570791, -0.64589285, 0.07943434, -0.0043331])
    signed = np.where(word >> np.uint32(31), -radius, radius)
    z = np.stack([(signed * cos).reshape(-1, 16), (signed * sin).reshape(-1, 16)], axis=1)
    return z.reshape(-1)[:n], np.stack([radius.reshape(-1, 16)] * 2, axis=1).reshape(-1)[:n]
