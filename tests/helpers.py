"""What several test files use: arrays with awkward values, and comparison by bits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from cases import Case
from ironstep import _core

Array = NDArray[Any]

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BF16]
ISAS = _core.instruction_sets()


def compute(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that arrays of this type are computed in."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def bits(x: Array) -> Array:
    """The bits of each element, with one pattern for all NaN: payloads are not promised."""
    x = np.array(x, order="C")
    if x.dtype.kind not in "iu":
        x[np.isnan(x)] = np.nan
    return x.view(f"u{x.itemsize}")


def assert_same_bits(got: Array, want: Array, what: str = "") -> None:
    """Element by element; says where and what."""
    assert got.shape == want.shape, f"{what}: shape {got.shape}, not {want.shape}"
    assert got.dtype == want.dtype, f"{what}: {got.dtype}, not {want.dtype}"
    wrong = np.argwhere(bits(got) != bits(want))
    if len(wrong):
        at = tuple(wrong[0])
        raise AssertionError(f"{what}: {len(wrong)} of {got.size} differ, first at {at}: {got[at]!r}, not {want[at]!r}")


def assert_all_same_bits(got: Iterable[Array], want: Iterable[Array], what: str = "") -> None:
    """For lists of arrays."""
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_same_bits(a, b, f"{what}[{i}]")


def assert_same(got: Any, want: Any, where: str = "") -> None:
    """Two nests are the same: arrays bit for bit, whatever their byte order, the rest by == and type."""
    if isinstance(want, np.ndarray):
        assert_same_bits(*(np.asarray(array, array.dtype.newbyteorder("=")) for array in (got, want)), where)
    elif isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for key in want:
            assert_same(got[key], want[key], f"{where}[{key!r}]")
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want), where
        for i, pair in enumerate(zip(got, want, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert (type(got), got) == (type(want), want), where


def awkward(rng: np.random.Generator, shape: Any, dtype: np.dtype[Any]) -> Array:
    """Normal numbers with some zeros of both signs, subnormal, tiny, large and non-finite ones among them."""
    x = rng.normal(size=shape)
    flat = x.reshape(-1)
    info = ml_dtypes.finfo(dtype)
    special = [
        0.0,
        -0.0,
        float(info.smallest_subnormal),
        float(info.tiny),
        float(info.max) / 8,
        np.inf,
        -np.inf,
        np.nan,
    ]
    for k, value in enumerate(special):
        flat[3 + 11 * k :: 101] = value
    with np.errstate(over="ignore"):
        return x.astype(dtype)


class Spec:
    """The reference of a case over several arrays, with what happens around the rule."""

    def __init__(self, case: Case, params: list[Array]) -> None:
        self.case = case
        self.dtypes = [p.dtype for p in params]
        self.params = [p.astype(compute(p.dtype)) for p in params]
        self.states = [case.new_state(np.zeros(p.shape, p.dtype)) for p in self.params]
        self.scalars = case.new_scalars()
        self.t = 0

    def step(self, grads: list[Array], *, round_params: bool = True) -> None:
        """One step with gradients in any dtype."""
        self.t += 1
        sign = -1.0 if self.case.hyper["maximize"] else 1.0
        scalars = self.scalars
        with np.errstate(all="ignore"):
            for i, (p, g) in enumerate(zip(self.params, grads, strict=True)):
                scalars = dict(self.scalars)
                g = g.astype(p.dtype) * sign
                new, self.states[i] = self.case.reference(p, g, self.states[i], self.t, self.case.hyper, scalars)
                # Rounded once to the type that it is stored in.
                self.params[i] = new.astype(self.dtypes[i]).astype(p.dtype) if round_params else new
        self.scalars = scalars

    def stored(self) -> list[Array]:
        """The parameters as they are stored."""
        with np.errstate(all="ignore"):
            return [p.astype(dtype) for p, dtype in zip(self.params, self.dtypes, strict=True)]
