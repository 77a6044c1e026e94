"""Dropout: the random numbers of Random123, the bits of the NumPy specification, masks that behave like coin flips."""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ironstep
import layers_reference as reference
from helpers import BF16, DTYPES, assert_same, assert_same_bits, awkward
from ironstep import _core, functional
from layers_cases import FlushToZero, channels_last_memory, on_every_machine, onnx_node_cases
from layers_reference import kept, narrowed, widened
from test_arrays import LAYOUTS, place

F32 = np.dtype(np.float32)
SIZES = [0, 1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1000, 1023, 1024, 1025]
SEEDS = [0, 1, 0xFFFFFFFF, 1 << 32, 0x0123456789ABCDEF, (1 << 64) - 1]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def want_of(x: np.ndarray, keep: np.ndarray, p: float) -> np.ndarray:
    """In the type that is stored."""
    with np.errstate(all="ignore"):
        return narrowed(reference.dropout(widened(x), keep, p), x.dtype)


def drawn(n: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Without zeros, so that a zero in the result was dropped."""
    x = np.random.default_rng(seed).normal(size=n)
    return (x + np.copysign(0.1, x)).astype(dtype)


# -- The generator -----------------------------------------------------------------------------------------------------

# Random123, tests/kat_vectors
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
ONES = (0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2
ZEROS = (0,) * 4, (0,) * 2
KNOWN = [
    (*ZEROS, 10, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (*ONES, 10, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (*PI, 10, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    (*ZEROS, 7, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
]


@pytest.mark.parametrize(("counter", "key", "rounds", "words"), KNOWN)
def test_known_answers_of_random123(counter: Any, key: Any, rounds: int, words: Any):
    assert tuple(_core.philox(counter, key, rounds)) == words
    if rounds == 10:
        assert tuple(_core.philox(counter, key)) == words
    assert tuple(int(word) for word in reference.philox(counter, key, rounds)) == words


# -- The specification -------------------------------------------------------------------------------------------------


@each_dtype
def test_equals_the_specification(dtype: np.dtype):
    rng = np.random.default_rng(1)
    for i, (n, p) in enumerate(itertools.product(SIZES, [0.1, 0.5, 1 / 3, 0.999, 1e-9])):
        seed, stream, offset = SEEDS[i % 6], SEEDS[(i // 6 + 1) % 6], [0, 1, 7, 16, 64, 1000, 12345][i % 7]
        x, dy = awkward(rng, n, dtype), awkward(rng, n, dtype)
        keep = kept(n, p, seed, stream, offset)
        where = {"seed": seed, "stream": stream, "offset": offset}
        y, saved = functional.dropout(x, p, save=True, **where)
        assert_same_bits(y, want_of(x, keep, p), f"{n}, {p}, {where}")
        assert_same_bits(functional.dropout(x, p, **where), y)
        assert_same_bits(functional.dropout_backward(dy, saved), want_of(dy, keep, p), f"backward, {n}, {p}, {where}")


def test_every_shape_counts_in_c_order():
    flat = drawn(2 * 3 * 5 * 7)
    want = functional.dropout(flat, 0.4, seed=3)
    for shape in [(210,), (2, 105), (6, 5, 7), (2, 3, 5, 7), (1, 210, 1)]:
        assert_same_bits(functional.dropout(flat.reshape(shape), 0.4, seed=3).reshape(-1), want, str(shape))
    one = functional.dropout(np.array(2.0), 0.5, seed=1)
    assert one.shape == ()
    assert one == (4.0 if kept(1, 0.5, 1)[0] else 0.0)


@each_dtype
def test_same_bits_on_every_instruction_set_and_thread_count(dtype: np.dtype):
    x, dy = drawn(300_007, 1, dtype), drawn(300_007, 2, dtype)
    keep = kept(x.size, 0.3, 5, 6, 77)
    want, want_dy = want_of(x, keep, 0.3), want_of(dy, keep, 0.3)
    for machine in on_every_machine():
        y, saved = functional.dropout(x, 0.3, seed=5, stream=6, offset=77, save=True)
        assert_same_bits(y, want, machine)
        assert_same_bits(functional.dropout_backward(dy, saved), want_dy, machine)


@pytest.mark.parametrize("offset", [0, 1, 15, 16, 63, 64, 12345, (1 << 34) - 1000])
def test_pieces_at_their_offsets_are_the_whole(offset: int):
    x = drawn(5000)
    whole = functional.dropout(x, 0.3, seed=9, offset=offset)
    cuts = [0, 1, 16, 17, 63, 65, 1000, 1024, 3333, 5000]
    pieces = [functional.dropout(x[a:b], 0.3, seed=9, offset=offset + a) for a, b in itertools.pairwise(cuts)]
    assert_same_bits(np.concatenate(pieces), whole)


@pytest.mark.parametrize(
    "offset", [(1 << 32) - 100, (1 << 34) - 100, (1 << 36) - 3, (1 << 63) - 100, (1 << 64) - 257, (1 << 64) - 256]
)
def test_large_offsets(offset: int):
    """Where the number of the block, or of the element, needs its second word."""
    x = drawn(256)
    y, saved = functional.dropout(x, 0.5, seed=4, stream=2, offset=offset, save=True)
    keep = kept(256, 0.5, 4, 2, offset)
    assert_same_bits(y, want_of(x, keep, 0.5))
    assert_same_bits(functional.dropout_backward(x, saved), y)
    if offset >= 1 << 32:
        assert not np.array_equal(keep, kept(256, 0.5, 4, 2, offset % (1 << 32))), "the high part counts"


# -- Masks are random --------------------------------------------------------------------------------------------------

N = 1 << 20


def mask_of(p: float, **where: Any) -> np.ndarray:
    return functional.dropout(np.ones(N, np.float32), p, **where) != 0.0


def sigmas(sample: np.ndarray, mean: float, variance: float) -> float:
    return float(abs(sample.mean() - mean) / math.sqrt(variance / sample.size))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_share_of_the_kept(p: float):
    """Mean and variance of the mask, of the output, and of counts in stretches, within 5 standard deviations."""
    keep = mask_of(p, seed=11)
    q = 1 - p
    assert sigmas(keep, q, p * q) < 5
    counts = keep.reshape(-1, 64).sum(axis=1)
    assert sigmas((counts - 64 * q) ** 2, 64 * p * q, 2 * (64 * p * q) ** 2 + 64 * p * q) < 5
    x = np.random.default_rng(1).normal(2.0, 1.0, size=N)
    y = functional.dropout(x, p, seed=12)
    # E[y] = x; Var[y - x] = x^2 p / q
    assert abs((y - x).mean()) < 5 * math.sqrt((x * x).mean() * p / q / N)


def test_neighbours_are_independent():
    for p in (0.2, 0.5):
        d = mask_of(p, seed=13).astype(float) - (1 - p)
        variance = (p * (1 - p)) ** 2
        for lag in [*range(1, 70), 128, 256, 1024, 16384, 65536]:
            assert sigmas(d[lag:] * d[:-lag], 0.0, variance) < 5, lag


def test_seeds_streams_and_offsets_are_independent():
    p = 0.5
    base = {"seed": 21, "stream": 3, "offset": 0}
    others = [
        {"seed": 22},
        {"seed": 21 + (1 << 32)},
        {"seed": 21 + (1 << 63)},
        {"stream": 4},
        {"stream": 3 + (1 << 32)},
        {"stream": 3 + (1 << 63)},
        {"offset": N},
        {"offset": 1 << 38},
        {"seed": 3, "stream": 21},
    ]
    d = mask_of(p, **base).astype(float) - (1 - p)
    for other in others:
        e = mask_of(p, **(base | other)).astype(float) - (1 - p)
        assert sigmas(d * e, 0.0, (p * (1 - p)) ** 2) < 5, other
    assert np.array_equal(mask_of(p, **base), mask_of(p, **base))


def test_p_is_exact_to_2_to_the_minus_32():
    """One word in 2^32 p is dropped: the threshold is neither a float32 nor 16 bits."""
    words = reference.words(N, 31)
    for rank in (0, 1, N // 3, N - 1):
        word = int(np.sort(words)[rank])
        for threshold in (word, word + 1):
            keep = mask_of(threshold / 2**32, seed=31)
            assert int((~keep).sum()) == int((words < threshold).sum())


# -- The ends of p -----------------------------------------------------------------------------------------------------


def strange(dtype: Any) -> np.ndarray:
    return np.array([1.5, np.nan, -0.0, 0.0, np.inf, -np.inf, 1e-40, -3.0], np.float64).astype(dtype)


@each_dtype
def test_nothing_is_dropped_with_p_0_or_without_training(dtype: np.dtype):
    x = strange(dtype)
    cases = [
        {"p": 0.0},
        {"p": 0.0, "seed": 1},
        {"training": False},
        {"p": 1.0, "training": False},
        {"training": False, "mask": np.zeros(8, bool)},
    ]
    for kwargs in cases:
        y, saved = functional.dropout(x, save=True, **kwargs)
        assert y is not x
        assert not np.shares_memory(x, y)
        assert x.tobytes() == y.tobytes(), kwargs
        assert functional.dropout_backward(x, saved).tobytes() == x.tobytes(), kwargs


@each_dtype
def test_everything_is_dropped_with_p_1(dtype: np.dtype):
    """Zeros, not NaN times 0."""
    x = strange(dtype)
    for kwargs in ({}, {"seed": 1}, {"mask": np.ones(8, bool)}):
        y, saved = functional.dropout(x, 1.0, save=True, **kwargs)
        assert_same_bits(y, np.zeros(8, dtype))
        assert_same_bits(functional.dropout_backward(x, saved), np.zeros(8, dtype))


@each_dtype
def test_what_is_dropped_is_0_whatever_it_was(dtype: np.dtype):
    x = np.repeat(strange(dtype), 50)
    keep = kept(x.size, 0.5, 2)
    y = functional.dropout(x, 0.5, seed=2)
    assert_same_bits(y[~keep], np.zeros((~keep).sum(), dtype))
    assert np.isnan(y[keep & np.isnan(x)]).all()


def test_the_scale_is_rounded_once():
    """1 / (1 - p) in float64, then the type of the data."""
    for dtype, scale in ((np.float32, np.float32(1 / (1 - 0.1))), (np.float64, 1 / (1 - 0.1))):
        x = drawn(1000, 3, dtype)
        y = functional.dropout(x, 0.1, seed=1)
        assert_same_bits(y[y != 0], (x * scale)[y != 0])


# -- Masks that are given ----------------------------------------------------------------------------------------------


@each_dtype
def test_a_given_mask(dtype: np.dtype):
    rng = np.random.default_rng(3)
    x, dy = awkward(rng, (4, 5, 6), dtype), awkward(rng, (4, 5, 6), dtype)
    for shape in [(4, 5, 6), (5, 6), (6,), (4, 1, 1), (1, 5, 1), (4, 1, 6), (), (1,)]:
        mask = rng.random(shape) < 0.6
        keep = np.broadcast_to(mask, x.shape)
        y, saved = functional.dropout(x, 0.25, mask=mask, save=True)
        assert_same_bits(y, want_of(x, keep, 0.25), str(shape))
        assert_same_bits(functional.dropout_backward(dy, saved), want_of(dy, keep, 0.25), str(shape))
    mask = rng.random((6, 5, 4)).T < 0.6
    for layout in (np.asfortranarray(mask), np.repeat(mask, 2, axis=-1)[..., ::2], np.array(mask)[::-1].copy()[::-1]):
        assert_same_bits(functional.dropout(x, 0.25, mask=layout), want_of(x, mask, 0.25))


def test_a_given_mask_of_a_large_array_with_threads():
    x = drawn(600 * 500).reshape(600, 500)
    for mask in (np.random.default_rng(4).random((600, 500)) < 0.5, np.arange(500) % 3 == 0):
        want = want_of(x, np.broadcast_to(mask, x.shape), 0.5)
        for machine in on_every_machine():
            assert_same_bits(functional.dropout(x, 0.5, mask=mask), want, machine)


def test_onnx_dropout():
    """In training its mask comes from NumPy's generator, so it is given; it is among the outputs, or drawn alike."""
    cases = onnx_node_cases("Dropout")
    assert len(cases) >= 12
    trained = 0
    for case in cases:
        x, *rest = case.inputs
        ratio = float(rest[0]) if rest else case.attributes.get("ratio", 0.5)
        training = bool(rest[1]) if len(rest) > 1 else False
        mask = None
        if training and ratio > 0.0:
            np.random.seed(case.attributes["seed"])
            mask = np.random.uniform(0, 1.0, x.shape) >= ratio
            trained += 1
        if len(case.outputs) > 1:
            assert np.array_equal(case.outputs[1], np.ones(x.shape, bool) if mask is None else mask)
        y = functional.dropout(x, ratio, training, mask=mask)
        assert (np.abs(y - case.outputs[0]) <= 1e-6 * np.abs(case.outputs[0])).all(), case.name
    assert trained >= 4


# -- Whole channels and samples ----------------------------------------------------------------------------------------

SPATIAL = [
    (name, (3, 5, *extent), axis)
    for name, extent in (("dropout1d", (7,)), ("dropout2d", (4, 6)), ("dropout3d", (2, 3, 4)))
    for axis in (1, -1)
]


@each_dtype
@pytest.mark.parametrize(("name", "shape", "axis"), SPATIAL)
def test_whole_channels_are_dropped(name: str, shape: tuple[int, ...], axis: int, dtype: np.dtype):
    function: Callable[..., Any] = getattr(functional, name)
    rng = np.random.default_rng(5)
    where = {"seed": 6, "stream": 1, "offset": 40}
    n, c = shape[:2]
    keep = kept(n * c, 0.4, **where).reshape(n, c, *[1] * (len(shape) - 2))
    assert 0 < keep.sum() < keep.size
    x, dy = awkward(rng, shape, dtype), awkward(rng, shape, dtype)
    want, want_dy = want_of(x, keep, 0.4), want_of(dy, keep, 0.4)
    x, dy, want, want_dy = (np.moveaxis(v, 1, axis).copy() for v in (x, dy, want, want_dy))
    y, saved = function(x, 0.4, channel_axis=axis, save=True, **where)
    assert_same_bits(y, want)
    assert_same_bits(functional.dropout_backward(dy, saved), want_dy)
    if axis == 1:
        assert_same_bits(function(x, 0.4, **where), want)
        assert_same_bits(function(channels_last_memory(x), 0.4, **where), want)
    assert function(x, training=False).tobytes() == x.tobytes()
    assert_same_bits(function(x, 1.0), np.zeros_like(x))
    into = x.copy()
    assert function(into, 0.4, inplace=True, channel_axis=axis, **where) is into
    assert_same_bits(into, want)


def test_samples_at_their_offsets_are_the_batch():
    x = drawn(9 * 5 * 4 * 6).reshape(9, 5, 4, 6)
    whole = functional.dropout2d(x, 0.5, seed=1, offset=100)
    parts = [functional.dropout2d(x[a:b], 0.5, seed=1, offset=100 + 5 * a) for a, b in ((0, 2), (2, 3), (3, 9))]
    assert_same_bits(np.concatenate(parts), whole)
    whole = functional.stochastic_depth(x, 0.5, seed=1, offset=100)
    parts = [functional.stochastic_depth(x[a:b], 0.5, seed=1, offset=100 + a) for a, b in ((0, 2), (2, 3), (3, 9))]
    assert_same_bits(np.concatenate(parts), whole)


@each_dtype
def test_stochastic_depth(dtype: np.dtype):
    rng = np.random.default_rng(7)
    where = {"seed": 8, "stream": 2, "offset": 5}
    for shape in [(20,), (20, 3), (20, 3, 4, 5)]:
        x, dy = awkward(rng, shape, dtype), awkward(rng, shape, dtype)
        keep = kept(20, 0.4, **where).reshape(20, *[1] * (len(shape) - 1))
        assert 0 < keep.sum() < 20
        y, saved = functional.stochastic_depth(x, 0.4, save=True, **where)
        assert_same_bits(y, want_of(x, keep, 0.4))
        assert_same_bits(functional.dropout_backward(dy, saved), want_of(dy, keep, 0.4))
        both = set()
        for offset in range(20):
            keep = kept(1, 0.4, 8, 2, offset)
            y, saved = functional.stochastic_depth(x, 0.4, "batch", seed=8, stream=2, offset=offset, save=True)
            assert_same_bits(y, want_of(x, np.broadcast_to(keep, shape), 0.4))
            assert_same_bits(functional.dropout_backward(dy, saved), want_of(dy, np.broadcast_to(keep, shape), 0.4))
            both.add(bool(keep[0]))
        assert both == {True, False}
        assert functional.stochastic_depth(x, 0.4, training=False).tobytes() == x.tobytes()


def test_large_arrays_of_channels_have_the_same_bits_everywhere():
    x = drawn(6 * 12 * 61 * 63).reshape(6, 12, 61, 63)
    keep = kept(72, 0.3, 4).reshape(6, 12, 1, 1)
    want = want_of(x, keep, 0.3)
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    for machine in on_every_machine():
        assert_same_bits(functional.dropout2d(x, 0.3, seed=4), want, machine)
        y = functional.dropout2d(last, 0.3, seed=4, channel_axis=-1)
        assert_same_bits(np.moveaxis(y, -1, 1), want, machine)


# -- Arrays ------------------------------------------------------------------------------------------------------------


@each_dtype
def test_any_layout_gives_the_bits_of_plain_copies(dtype: np.dtype):
    rng = np.random.default_rng(9)
    for shape in [(3, 4, 5), (7, 40)]:
        x = rng.normal(size=shape).astype(dtype)
        want = functional.dropout(x, 0.5, seed=1, offset=3)
        for layout in LAYOUTS:
            if layout.swapped and dtype == BF16:
                continue
            own, out, grad, dx = (place(layout, v) for v in (x, np.ones_like(x), x, np.ones_like(x)))
            own.array.flags.writeable = False
            y, saved = functional.dropout(own.array, 0.5, seed=1, offset=3, save=True)
            assert_same(y, want, layout.name)
            assert_same(functional.dropout_backward(own.array, saved), want, layout.name)
            own.assert_untouched(layout.name)
            assert functional.dropout(x, 0.5, seed=1, offset=3, out=out.array) is out.array
            assert functional.dropout_backward(x, saved, out=dx.array) is dx.array
            assert functional.dropout(grad.array, 0.5, inplace=True, seed=1, offset=3) is grad.array
            for placed in (out, dx, grad):
                assert_same(placed.array, want, layout.name)
                memory, _ = layout.place(want, dtype)
                assert np.array_equal(placed.memory, memory), f"{layout.name}: memory outside has changed"


def test_large_arrays_of_any_layout():
    x = drawn(600 * 513).reshape(600, 513)
    want = functional.dropout(x, 0.5, seed=1)
    ironstep.set_num_threads(3)
    try:
        for form in (np.asfortranarray, lambda v: v[::-1].copy()[::-1], lambda v: np.repeat(v, 2, axis=1)[:, ::2]):
            y = form(x)
            assert_same_bits(functional.dropout(y, 0.5, seed=1), want)
            assert functional.dropout(y, 0.5, seed=1, out=y) is y
            assert_same_bits(np.array(y), want)
    finally:
        ironstep.set_num_threads(0)


@pytest.mark.parametrize(
    "form", [np.copy, channels_last_memory, lambda v: np.array(v, order="F")], ids=["C", "last", "F"]
)
@pytest.mark.parametrize("name", ["dropout", "dropout2d", "stochastic_depth"])
def test_results_lie_in_memory_as_the_input_does(name: str, form: Callable[[np.ndarray], np.ndarray]):
    x = drawn(4 * 3 * 5 * 6).reshape(4, 3, 5, 6)
    want = np.empty_like(form(x)).strides
    function = getattr(functional, name)
    for p in (0.0, 0.5, 1.0):
        y, saved = function(form(x), p, seed=1, save=True)
        assert y.strides == want
        assert functional.dropout_backward(form(x), saved).strides == want
    assert function(form(x), 0.5, training=False).strides == want


def test_in_place_without_anything_to_drop():
    x = strange(np.float32)
    before = x.tobytes()
    for kwargs in ({"p": 0.0}, {"training": False}):
        assert functional.dropout(x, inplace=True, **kwargs) is x
        assert functional.dropout(x, out=x, **kwargs) is x
        assert x.tobytes() == before
        out = np.ones_like(x)
        assert functional.dropout(x, out=out, **kwargs) is out
        assert out.tobytes() == before


def test_the_input_may_change_before_backward():
    """Nothing but the seed is kept."""
    x, dy = drawn(1000), drawn(1000, 1)
    _, saved = functional.dropout(x, 0.5, seed=3, inplace=True, save=True)
    x[...] = np.nan
    assert_same_bits(functional.dropout_backward(dy, saved), want_of(dy, kept(1000, 0.5, 3), 0.5))


def test_overlapping_results_are_refused():
    room = drawn(100)
    before = room.copy()
    x, out = room[1:51], room[:50]
    square = room[:64].reshape(8, 8)
    mask = room.view(np.bool_)[:50]
    calls = [
        lambda: functional.dropout(x, 0.5, seed=1, out=out),
        lambda: functional.dropout(x, 0.0, out=out),
        lambda: functional.dropout(x, 1.0, out=out),
        lambda: functional.dropout(x, training=False, out=out),
        lambda: functional.dropout(square, 0.5, seed=1, out=square.T),
        lambda: functional.dropout(drawn(50), 0.5, mask=mask, out=out),
        lambda: functional.dropout(
            drawn(9).reshape(3, 3), 0.5, seed=1, out=np.lib.stride_tricks.as_strided(room, (3, 3), (4, 4))
        ),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"out\b.*(overlap|memory|same address)"):
            call()
        assert_same_bits(room, before)
    _, saved = functional.dropout(drawn(50), 0.5, seed=1, save=True)
    with pytest.raises(ValueError, match=r"out\b.*(overlap|memory|same address)"):
        functional.dropout_backward(x, saved, out=out)
    assert_same_bits(room, before)


X = drawn(24).reshape(2, 3, 4)
SAVED_INPUT = X.copy()
READ_ONLY = X.copy()
READ_ONLY.flags.writeable = False
EITHER = (TypeError, ValueError)
ERRORS: list[tuple[Any, str, Callable[[], Any]]] = [
    (TypeError, "input must", lambda: functional.dropout([1.0], 0.5, seed=1)),
    (TypeError, "input must .*int64", lambda: functional.dropout(np.arange(3), 0.5, seed=1)),
    (TypeError, "input must .*int64", lambda: functional.dropout(np.arange(3), training=False)),
    (ValueError, "p must .*1.5", lambda: functional.dropout(X, 1.5, seed=1)),
    (ValueError, "p must .*-0.1", lambda: functional.dropout(X, -0.1, seed=1)),
    (ValueError, "p must .*nan", lambda: functional.dropout(X, np.nan, seed=1)),
    (ValueError, "p must", lambda: functional.dropout(X, 2.0, training=False)),
    (TypeError, "p must", lambda: functional.dropout(X, "half", seed=1)),
    (ValueError, "seed", lambda: functional.dropout(X)),
    (ValueError, "seed", lambda: functional.dropout2d(X[None], 0.5)),
    (ValueError, "seed", lambda: functional.stochastic_depth(X, 0.5)),
    (ValueError, "seed must", lambda: functional.dropout(X, seed=-1)),
    (ValueError, "seed must", lambda: functional.dropout(X, seed=1 << 64)),
    (TypeError, "seed must", lambda: functional.dropout(X, seed=1.0)),
    (ValueError, "stream must", lambda: functional.dropout(X, seed=1, stream=-1)),
    (ValueError, "stream must", lambda: functional.dropout(X, seed=1, stream=1 << 64)),
    (TypeError, "stream must", lambda: functional.dropout(X, seed=1, stream="a")),
    (ValueError, "offset must", lambda: functional.dropout(X, seed=1, offset=-1)),
    (ValueError, "offset must", lambda: functional.dropout(X, seed=1, offset=1 << 64)),
    (ValueError, "offset", lambda: functional.dropout(X, seed=1, offset=(1 << 64) - 23)),
    (ValueError, "offset", lambda: functional.dropout1d(X, seed=1, offset=(1 << 64) - 5)),
    (ValueError, "offset", lambda: functional.stochastic_depth(X, 0.5, seed=1, offset=(1 << 64) - 1)),
    (TypeError, "offset must", lambda: functional.dropout(X, seed=1, offset=0.5)),
    (ValueError, r"mask must .*\(2, 3, 4\).*\(3,\)", lambda: functional.dropout(X, mask=np.ones(3, bool))),
    (ValueError, r"mask must", lambda: functional.dropout(X, mask=np.ones((2, 2, 3, 4), bool))),
    (TypeError, "mask must .*bool.*float64", lambda: functional.dropout(X, mask=np.ones((2, 3, 4)))),
    (TypeError, "mask must .*bool.*int64", lambda: functional.dropout(X, mask=np.ones(4, int))),
    (
        ValueError,
        r"out must .*\(2, 3, 4\).*\(2, 3, 2\)",
        lambda: functional.dropout(X, seed=1, out=np.ones((2, 3, 2), np.float32)),
    ),
    (EITHER, "out must .*float32.*float64", lambda: functional.dropout(X, seed=1, out=np.ones((2, 3, 4)))),
    (ValueError, "out must .*(writeable|read-only)", lambda: functional.dropout(X, seed=1, out=READ_ONLY)),
    (ValueError, "(writeable|read-only)", lambda: functional.dropout(READ_ONLY, seed=1, inplace=True)),
    (ValueError, "inplace", lambda: functional.dropout(X, seed=1, inplace=True, out=X.copy())),
    (ValueError, "input must", lambda: functional.dropout2d(X, seed=1)),
    (ValueError, "input must", lambda: functional.dropout1d(X[None], seed=1)),
    (ValueError, "input must", lambda: functional.dropout3d(X, seed=1)),
    (ValueError, "channel_axis", lambda: functional.dropout1d(X, seed=1, channel_axis=3)),
    (ValueError, "mode must .*'rows'", lambda: functional.stochastic_depth(X, 0.5, "rows", seed=1)),
    (ValueError, "input must", lambda: functional.stochastic_depth(np.float32(1.0).reshape(()), 0.5, seed=1)),
]


@pytest.mark.parametrize(("error", "message", "call"), ERRORS, ids=[f"{i}-{e[1]}" for i, e in enumerate(ERRORS)])
def test_errors_name_the_argument_and_change_nothing(error: Any, message: str, call: Callable[[], Any]):
    with pytest.raises(error, match=message):
        call()
    assert_same_bits(X, SAVED_INPUT)
    assert_same_bits(READ_ONLY, SAVED_INPUT)


def test_errors_of_backward():
    _, saved = functional.dropout(X, seed=1, save=True)
    with pytest.raises(ValueError, match=r"grad_output must .*\(2, 3, 4\).*\(2, 3, 2\)"):
        functional.dropout_backward(X[:, :, :2], saved)
    with pytest.raises(TypeError, match=r"grad_output must .*int64"):
        functional.dropout_backward(X.astype(np.int64), saved)
    out = np.ones_like(X, dtype=np.float64)
    with pytest.raises(EITHER, match=r"out must .*float32.*float64"):
        functional.dropout_backward(X, saved, out=out)
    assert (out == 1.0).all()
    with pytest.raises(TypeError, match="saved must"):
        functional.dropout_backward(X, None)
    _, other = functional.layer_norm(X, 4, save=True)
    with pytest.raises(TypeError, match="saved must"):
        functional.dropout_backward(X, other)


def test_numpy_numbers_are_numbers():
    want = functional.dropout(X, 0.5, seed=3, stream=2, offset=1)
    got = functional.dropout(X, np.float64(0.5), seed=np.uint64(3), stream=np.int8(2), offset=np.int64(1))
    assert_same_bits(got, want)


def test_signatures_are_torchs():
    import inspect

    from torch.nn import functional as theirs

    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d"):
        ours = inspect.signature(getattr(functional, name)).parameters.values()
        positional = [(p.name, p.default) for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
        want = [(p.name, p.default) for p in inspect.signature(getattr(theirs, name)).parameters.values()]
        assert positional == want, name


if platform.machine() == "x86_64":

    def test_flush_to_zero_of_the_caller_changes_nothing():
        for n in (100, 300_000):
            x = drawn(n) * np.float32(1e-39)
            mask = np.arange(n) % 2 == 0
            ironstep.set_num_threads(3)
            try:
                want = want_of(x, kept(n, 0.5, 1), 0.5)
                with FlushToZero():
                    y = functional.dropout(x, 0.5, seed=1)
                    z = functional.dropout(x, 0.5, mask=mask)
                    same = functional.dropout(x, 0.0)
            finally:
                ironstep.set_num_threads(0)
            assert_same_bits(y, want)
            assert_same_bits(z, want_of(x, mask, 0.5))
            assert_same_bits(same, x)


def test_no_floating_point_warnings_leak():
    with np.errstate(all="raise"):
        for p in (0.0, 0.5, 1.0):
            functional.dropout(np.full(50, 3e38, np.float32), p, seed=1)
            functional.dropout(np.full(50, 6e4, np.float16), p, seed=1)
