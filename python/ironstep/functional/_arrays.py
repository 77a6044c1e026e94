"""Arrays in, arrays out: what every function here does before and after it calls the core.

The core takes dense arrays. Whatever is not (strides, byte order, odd addresses) is copied first, and results go back
through a copy, so the same functions take every array.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..optim._hyper import NOT_NEGATIVE as NOT_NEGATIVE
from ..optim._hyper import Limit
from ..optim._hyper import flag as flag
from ..optim._hyper import number as _number

Array: TypeAlias = NDArray[Any]

PROBABILITY = Limit(0.0, 1.0, "from 0 to 1")
FINITE = Limit(-math.inf, math.inf, "finite")
POSITIVE = Limit(5e-324, math.inf, "finite and above 0", closed=False)


def number(name: str, value: Any, limit: Limit) -> float:
    """The value as a float within the limit, or the error that names the argument."""
    x = _number(name, value, limit, "")
    if limit is FINITE and not math.isfinite(x):
        raise ValueError(f"{name} must be {limit.text}, got {value!r}")
    return x


def integer(name: str, value: Any, low: int, high: int) -> int:
    """The value as an int from `low` to `high`, or the error that names the argument."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value!r}")
    return int(value)


def count(name: str, value: Any, low: int = 1) -> int:
    """The value as an int that is at least `low`, or the error that names the argument."""
    text = f"{name} must be an integer at least {low}, got {value!r}"
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(text)
    if value < low:
        raise ValueError(text)
    return int(value)


def compute(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that arrays of this type are computed in."""
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether it is one of the four types."""
    return dtype.char in "efd" or dtype.name == "bfloat16"


def unmasked(x: Any, name: str) -> Array:
    """What NumPy makes of an argument, but not a masked array."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored; pass its .data, or fill it first")
    return np.asarray(x)


def array(x: Any, name: str) -> Array:
    """An input as an array of one of the four types; what is no array is asked for one (JAX)."""
    if not hasattr(x, "__array__"):
        raise TypeError(f"{name} must be a NumPy array, or an object that NumPy can take as one, got {_kind(x)}")
    values = unmasked(x, name)
    if not is_float(values.dtype):
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {values.dtype}")
    return values


def like(x: Any, name: str, other: Array, other_name: str) -> Array:
    """An input of the shape and type of another; another float type is converted."""
    values = array(x, name)
    if values.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {other_name}, {other.shape}, got {values.shape}")
    with np.errstate(all="ignore"):
        return values if values.dtype == other.dtype else values.astype(other.dtype)


def param(x: Any, name: str, shape: tuple[int, ...]) -> Array | None:
    """A parameter of that shape, or `None`."""
    if x is None:
        return None
    values = array(x, name)
    if values.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {values.shape}")
    return values


def _kind(x: Any) -> str:
    return type(x).__name__


class Layout(NamedTuple):
    """An order of the axes in memory, from the slowest to the fastest."""

    perm: tuple[int, ...]

    def fits(self, x: Array) -> bool:
        """Whether the array is dense in this order, aligned and in native byte order."""
        if self.perm != tuple(range(x.ndim)):
            x = x.transpose(self.perm)
        return x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """A new array in this order."""
        memory = np.empty([shape[axis] for axis in self.perm], dtype.newbyteorder("="))
        return memory.transpose(np.argsort(self.perm)) if self.perm else memory

    def dense(self, x: Array) -> Array:
        """The array itself if it fits, else a copy."""
        if self.fits(x):
            return x
        copy = self.empty(x.shape, x.dtype)
        copy[...] = x
        return copy


def c_order(ndim: int) -> Layout:
    """The order of C."""
    return Layout(tuple(range(ndim)))


def memory_order(x: Array) -> Layout:
    """The order that the array has in memory, for functions that do not mind which."""
    if x.flags.c_contiguous:
        return c_order(x.ndim)
    # Sorting is stable: equal strides (axes of length 1) stay in order.
    return Layout(tuple(sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))))


def contiguous(x: Any, dtype: Any) -> Array:
    """The values as an array of that type that is contiguous and aligned."""
    return np.require(x, dtype, ["C", "A"])


class Out:
    """Where a result goes: a new array, or the caller's `out`, through a copy if the core cannot write it as it is."""

    def __init__(
        self,
        out: Any,
        name: str,
        like: Array,
        layout: Layout,
        *,
        inputs: Iterable[Any] = (),
        apart: Iterable[Any] = (),
    ) -> None:
        """A result of the shape, type and memory order of `like`, which the core writes in a certain layout.

        `inputs`: (name, array) that `out` may be, but not overlap otherwise; `apart`: those it must not meet.
        """
        self.result: Array
        self.buffer: Array
        """What the core writes."""
        if out is None:
            self.result = np.empty_like(like, like.dtype.newbyteorder("="), subok=False)
        else:
            if not isinstance(out, np.ndarray):
                raise TypeError(f"{name} must be a NumPy array, got {_kind(out)}")
            shape, dtype = like.shape, like.dtype.newbyteorder("=")
            if out.shape != shape or out.dtype.newbyteorder("=") != dtype:
                raise ValueError(
                    f"{name} must be {dtype.name} of shape {shape}, got {out.dtype.name} of shape {out.shape}"
                )
            _core.check_output(out, name)
            for group, may_be in ((inputs, True), (apart, False)):
                for other_name, other in group:
                    refuse_overlap(out, name, other, other_name, may_be)
            self.result = out
        self.buffer = self.result if layout.fits(self.result) else layout.empty(like.shape, like.dtype)

    def done(self) -> Array:
        """The result, when the core has written it."""
        if self.buffer is not self.result:
            self.result[...] = self.buffer
        return self.result


def overlap(a: Array, b: Any) -> bool | None:
    """Whether two arrays share an element; `None` if it cannot be told in reasonable time."""
    if not isinstance(b, np.ndarray) or not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, 1_000_000)  # type: ignore[arg-type]
    except RuntimeError:  # numpy.exceptions.TooHardError
        return None


def _steps(x: Array) -> list[int]:
    """The strides that count."""
    return [stride for stride, n in zip(x.strides, x.shape, strict=True) if n > 1]


def refuse_overlap(out: Array, name: str, other: Any, other_name: str, may_be: bool) -> None:
    """Refuses a result that overlaps another array, unless it may be that array and is."""
    shared = overlap(out, other)
    if shared is False:
        return
    same = (
        may_be
        and out.dtype == other.dtype
        and out.shape == other.shape
        and _steps(out) == _steps(other)
        and out.__array_interface__["data"][0] == other.__array_interface__["data"][0]
    )
    if same:
        return
    verdict = (
        "they overlap in memory" if shared else "it cannot be told in reasonable time whether they overlap in memory"
    )
    or_same = " or the same array" if may_be else ""
    raise ValueError(f"{name} and {other_name} must be apart{or_same}, but {verdict}; make a copy of one")


def refuse_overlaps(named: Sequence[tuple[str, Any]]) -> None:
    """Refuses results that overlap each other."""
    given = [(name, out) for name, out in named if isinstance(out, np.ndarray)]
    for i, (name, out) in enumerate(given):
        for other_name, other in given[:i]:
            refuse_overlap(out, name, other, other_name, False)
