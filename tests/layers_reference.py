"""The specification of layers: norms, dropout and their gradients in NumPy, sums in the shape that the core promises.

Arrays come in the type T that they are computed in, float32 or float64; results leave in it, statistics are float64.
Norms over rows take (rows, width), norms over channels (N, C, S) with the spatial axes as one. Absent weights are None.
A block is up to BLOCK elements of the last axis; functions of blocks work on any leading axes at once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

BLOCK = 1024
LANES = 16
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
BF16 = np.dtype(ml_dtypes.bfloat16)


# -- Types -------------------------------------------------------------------------------------------------------------


def widened(x: Array) -> Array:
    """In the type T of its computations, C order."""
    return np.array(x, F64 if x.dtype.newbyteorder("=") == F64 else F32, order="C")


def narrowed(x: Array, dtype: np.dtype[Any]) -> Array:
    """Rounded once to the nearest even. `astype` goes from float64 to bfloat16 by way of float32, and rounds twice."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == BF16 and x.dtype == F64:
            y = x.astype(F32)
            y = np.where(np.abs(y.astype(F64)) > np.abs(x), np.nextafter(y, F32.type(0)), y)  # towards 0
            inexact = (y.astype(F64) != x) & ~np.isnan(x)
            x = (y.view(np.uint32) | inexact).view(F32)  # an odd last bit keeps ties from being made
        return x.astype(dtype)


# -- Sums --------------------------------------------------------------------------------------------------------------


def total(block: Array) -> Array:
    """Sum of each block: 16 lanes of T, element j in lane j % 16, the lanes by halving. float64."""
    *leading, n = block.shape
    lanes = np.zeros((*leading, LANES), block.dtype)
    for start in range(0, n, LANES):
        piece = block[..., start : start + LANES]
        lanes[..., : piece.shape[-1]] += piece
    width = LANES // 2
    while width:
        lanes = lanes[..., :width] + lanes[..., width:]
        width //= 2
    return lanes[..., 0].astype(F64)


def tree(parts: Sequence[Any], combine: Callable[[Any, Any], Any] = operator.add) -> Any:
    """Neighbours are combined, an odd last one moves up, until one is left."""
    parts = list(parts)
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [combine(a, b) for a, b in pairs] + parts[len(parts) & ~1 :]
    return parts[0]


def cut(x: Array, size: int = BLOCK) -> list[Array]:
    """The blocks of the last axis."""
    return [x[..., start : start + size] for start in range(0, x.shape[-1], size)]


def sum_of(x: Array, size: int = BLOCK) -> Array:
    """The tree over the totals of the blocks of the last axis."""
    return tree([total(block) for block in cut(x, size)])


class Moments(NamedTuple):
    """Of some elements: how many, their mean, and the sum of squared deviations from it."""

    n: int
    mean: Array
    m2: Array


def moments(block: Array) -> Moments:
    """Around a shift near the mean, which is then corrected. In float64 if float32 squares are too large or small."""
    n = block.shape[-1]
    shift = (total(block) / n).astype(block.dtype)
    d = block - shift[..., None]
    s1, s2 = total(d), total(d * d)
    mean = shift.astype(F64) + s1 / n
    m2 = s2 - (s1 * s1) / n
    m2 = np.where(m2 < 0.0, 0.0, m2)
    if block.dtype == F32:
        again = ~((s2 >= 1e-30) & (s2 <= 1e30))
        if again.any():
            wide = moments(block[again].astype(F64))
            mean[again], m2[again] = wide.mean, wide.m2
    return Moments(n, mean, m2)


def chan(a: Moments, b: Moments) -> Moments:
    """Two sets as one (Chan, Golub & LeVeque 1979)."""
    n = a.n + b.n
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.n / n)
    m2 = (a.m2 + b.m2) + (delta * delta) * ((a.n * b.n) / n)
    return Moments(n, mean, m2)


def squares(x: Array) -> Array:
    """Sum of squares along the last axis, each block again in float64 if float32 is too narrow for it."""
    parts = []
    for block in cut(x):
        q = total(block * block)
        again = ~((q >= 1e-30) & (q <= 1e30))
        if block.dtype == F32 and again.any():
            wide = block[again].astype(F64)
            q[again] = total(wide * wide)
        parts.append(q)
    return tree(parts)


def column_sums(terms: Array) -> Array:
    """Over the rows: groups of 16 in T, those of a task in order in float64, the tasks by the tree. Rounded to T."""
    rows, width = terms.shape
    per_task = max(1, 4096 // width)
    groups = []
    for start in range(0, rows, 16):
        group = np.zeros(width, terms.dtype)
        for row in terms[start : start + 16]:
            group = group + row
        groups.append(group.astype(F64))
    tasks = [sum(groups[start : start + per_task], np.zeros(width)) for start in range(0, len(groups), per_task)]
    return tree(tasks or [np.zeros(width)]).astype(terms.dtype)


# -- Pieces of the norms -----------------------------------------------------------------------------------------------


class Forward(NamedTuple):
    """The result and what the backward function needs."""

    y: Array
    mean: Array | None
    rstd: Array


class Backward(NamedTuple):
    """The gradients."""

    x: Array
    weight: Array | None
    bias: Array | None


def reciprocal_std(var: Array, eps: float) -> Array:
    return 1.0 / np.sqrt(var + eps)


def centred(x: Array, mean: Array) -> Array:
    """x - mean with the mean in two numbers of T, so that a large one costs no accuracy."""
    hi = mean.astype(x.dtype)
    lo = (mean - hi.astype(F64)).astype(x.dtype)
    return (x - hi) - lo


def ones_or(w: Array | None, n: int, dtype: np.dtype[Any]) -> Array:
    """The weight in T. A missing one multiplies by 1, which changes no bit."""
    return np.ones(n, dtype) if w is None else w.astype(dtype)


def plus(y: Array, b: Array | None) -> Array:
    """A missing bias is not added."""
    return y if b is None else y + b.astype(y.dtype)


# -- Norms over rows ---------------------------------------------------------------------------------------------------


def layer_norm(x: Array, w: Array | None, b: Array | None, eps: float) -> Forward:
    m = tree([moments(block) for block in cut(x)], chan)
    rstd = reciprocal_std(m.m2 / m.n, eps)
    y = centred(x, m.mean[:, None]) * rstd.astype(x.dtype)[:, None]
    return Forward(plus(y if w is None else y * w.astype(x.dtype), b), m.mean, rstd)


def layer_norm_input_gradient(g: Array, x: Array, f: Forward) -> tuple[Array, Array]:
    """From the gradient of the normalised rows; and these rows."""
    width = x.shape[1]
    r = f.rstd.astype(x.dtype)[:, None]
    xh = centred(x, f.mean[:, None]) * r
    c1 = (sum_of(g) / width).astype(x.dtype)[:, None]
    c2 = (sum_of(g * xh) / width).astype(x.dtype)[:, None]
    return r * ((g - c1) - xh * c2), xh


def layer_norm_backward(dy: Array, x: Array, w: Array | None, f: Forward) -> Backward:
    dx, xh = layer_norm_input_gradient(ones_or(w, x.shape[1], x.dtype) * dy, x, f)
    return Backward(dx, column_sums(dy * xh), column_sums(dy))


def shifted_weight(w: Array | None, offset: float, n: int, dtype: np.dtype[Any]) -> Array:
    w = ones_or(w, n, dtype)
    return w if offset == 0.0 else dtype.type(offset) + w


def rms_norm(x: Array, w: Array | None, eps: float, offset: float) -> Forward:
    width = x.shape[1]
    rstd = reciprocal_std(squares(x) / width, eps)
    y = x * rstd.astype(x.dtype)[:, None] * shifted_weight(w, offset, width, x.dtype)
    return Forward(y, None, rstd)


def rms_norm_backward(dy: Array, x: Array, w: Array | None, offset: float, f: Forward) -> Backward:
    width = x.shape[1]
    r = f.rstd.astype(x.dtype)[:, None]
    xh = x * r
    g = shifted_weight(w, offset, width, x.dtype) * dy
    c2 = (sum_of(g * xh) / width).astype(x.dtype)[:, None]
    return Backward(r * (g - xh * c2), column_sums(dy * xh), None)


# -- Norms over channels -----------------------------------------------------------------------------------------------


def channel_affine(x: Array, mean: Array, rstd: Array, w: Array | None, b: Array | None) -> Array:
    """y = (x - mean) a + b with one a per channel; mean and rstd broadcast over (N, C)."""
    w = ones_or(w, x.shape[1], x.dtype)
    a = (rstd * w.astype(F64)).astype(x.dtype)
    b = None if b is None else b[:, None]
    return plus(centred(x, mean[..., None]) * a[..., None], b)


def group_sets(values: Array, groups: int) -> Array:
    """(N, C) to (N, G, channels of a group)."""
    return values.reshape(values.shape[0], groups, -1)


def group_norm(x: Array, groups: int, w: Array | None, b: Array | None, eps: float) -> Forward:
    n, c, s = x.shape
    per_group = c // groups
    if s == 1:  # layer normalisation of parts of rows
        w, b = (None if v is None else np.tile(v.reshape(groups, per_group), (n, 1)) for v in (w, b))
        f = layer_norm(x.reshape(n * groups, per_group), w, b, eps)
        return Forward(f.y.reshape(x.shape), f.mean.reshape(n, groups), f.rstd.reshape(n, groups))
    blocks = [moments(block) for block in cut(x)]
    of_group = [
        Moments(p.n, group_sets(p.mean, groups)[..., d], group_sets(p.m2, groups)[..., d])
        for d in range(per_group)
        for p in blocks
    ]
    m = tree(of_group, chan)
    rstd = reciprocal_std(m.m2 / m.n, eps)
    mean_nc, rstd_nc = (np.repeat(v, per_group, axis=1) for v in (m.mean, rstd))
    return Forward(channel_affine(x, mean_nc, rstd_nc, w, b), m.mean, rstd)


def group_norm_backward(dy: Array, x: Array, groups: int, w: Array | None, f: Forward) -> Backward:
    n, c, s = x.shape
    per_group, dtype = c // groups, x.dtype
    w = ones_or(w, c, dtype)
    if s == 1:
        rows = n * groups, per_group
        g = (w * dy[..., 0]).reshape(rows)
        flat = Forward(f.y, f.mean.reshape(-1), f.rstd.reshape(-1))
        dx, xh = layer_norm_input_gradient(g, x.reshape(rows), flat)
        return Backward(dx.reshape(x.shape), column_sums(dy[..., 0] * xh.reshape(n, c)), column_sums(dy[..., 0]))
    m = per_group * s
    mean, rstd = (np.repeat(v, per_group, axis=1) for v in (f.mean, f.rstd))
    xh = centred(x, mean[..., None]) * rstd.astype(dtype)[..., None]
    a, b = sum_of(dy), sum_of(dy * xh)
    w64 = w.astype(F64)
    c1, c2 = (
        np.repeat(tree(list(np.moveaxis(group_sets(w64 * v, groups), -1, 0))) / m, per_group, axis=1) for v in (a, b)
    )
    p = (rstd * w64).astype(dtype)[..., None]
    q = (rstd * c1).astype(dtype)[..., None]
    t = (rstd * c2).astype(dtype)[..., None]
    return Backward((p * dy - q) - xh * t, tree(list(b)).astype(dtype), tree(list(a)).astype(dtype))


def channel_blocks(x: Array) -> list[Array]:
    """The blocks of every channel, (C, length) each: of a plane, or of several samples' planes if these are small."""
    n, c, s = x.shape
    if s >= BLOCK:
        return [block for sample in x for block in cut(sample)]
    planes = BLOCK // s
    return cut(x.transpose(1, 0, 2).reshape(c, n * s), planes * s)


def batch_stats(x: Array) -> Moments:
    return tree([moments(block) for block in channel_blocks(x)], chan)


def batch_norm(x: Array, w: Array | None, b: Array | None, eps: float, m: Moments | None = None) -> Forward:
    m = m or batch_stats(x)
    return batch_norm_inference(x, m.mean, m.m2 / m.n, w, b, eps)


def batch_norm_inference(x: Array, mean: Array, var: Array, w: Array | None, b: Array | None, eps: float) -> Forward:
    mean, rstd = mean.astype(F64), reciprocal_std(var.astype(F64), eps)
    return Forward(channel_affine(x, mean[None], rstd[None], w, b), mean, rstd)


def batch_norm_sums(dy: Array, x: Array, f: Forward) -> tuple[Array, Array]:
    xh = centred(x, f.mean[:, None]) * f.rstd.astype(x.dtype)[:, None]
    return tuple(tree([total(block) for block in channel_blocks(v)]) for v in (dy, dy * xh))


def batch_norm_backward(dy: Array, x: Array, w: Array | None, f: Forward, *, training: bool) -> Backward:
    n, c, s = x.shape
    dtype, m = x.dtype, n * s
    sum_a, sum_b = batch_norm_sums(dy, x, f)
    ra = f.rstd * ones_or(w, c, dtype).astype(F64)
    dx = ra.astype(dtype)[:, None] * dy
    if training:
        q = (ra * (sum_a / m)).astype(dtype)[:, None]
        t = (ra * (sum_b / m)).astype(dtype)[:, None]
        xh = centred(x, f.mean[:, None]) * f.rstd.astype(dtype)[:, None]
        dx = (dx - q) - xh * t
    return Backward(dx, sum_b.astype(dtype), sum_a.astype(dtype))


def running(old: Array, value: Array, momentum: float) -> Array:
    """The next running statistic: `momentum` is the weight of the new value."""
    t = np.float64 if old.dtype == np.float64 else np.float32
    return ((1.0 - momentum) * old.astype(t) + momentum * value.astype(t)).astype(old.dtype)


# -- Dropout -----------------------------------------------------------------------------------------------------------


def philox(counter: Sequence[Array], key: Sequence[int], rounds: int = 10) -> list[Array]:
    """Four words of Philox4x32 (Salmon et al. 2011) for each counter; words are uint64 below 2^32."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(rounds):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> shift) ^ c1 ^ np.uint64(k0), b & low, (a >> shift) ^ c3 ^ np.uint64(k1), a & low
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def words(n: int, seed: int, stream: int = 0, offset: int = 0) -> Array:
    """The random words number offset .. offset + n - 1 of (seed, stream)."""
    i = np.arange(n, dtype=np.uint64) + np.uint64(offset)
    block = ((i >> np.uint64(6)) << np.uint64(4)) + (i & np.uint64(15))
    low, high = block & np.uint64(0xFFFFFFFF), block >> np.uint64(32)
    four = philox((low, high, stream % 2**32, stream >> 32), (seed % 2**32, seed >> 32))
    which = (i >> np.uint64(4)) & np.uint64(3)
    return np.choose(which.astype(np.intp), four)


def kept(n: int, p: float, seed: int, stream: int = 0, offset: int = 0) -> Array:
    """True for what dropout with this p keeps."""
    return words(n, seed, stream, offset) >= np.uint64(round(p * 2**32))


def dropout(x: Array, keep: Array, p: float) -> Array:
    """Also its own backward, with the gradient for x. The dropped are 0 whatever they were."""
    return np.where(keep, x * x.dtype.type(1.0 / (1.0 - p)), x.dtype.type(0.0))
