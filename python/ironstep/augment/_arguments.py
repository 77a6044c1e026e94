"""Arguments that several transforms have, and how random numbers become what they draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..functional._arrays import FINITE, Array, count, number
from ..optim._hyper import Limit
from ._base import Shape, libm, rows

Values: TypeAlias = "float | tuple[float, ...]"
"""A number for all channels, or one for each."""

Spread: TypeAlias = "float | tuple[float, float]"
"""A number, or (low, high)."""

SINGLE = Limit(-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max), "finite in float32")

SHARE = Limit(0.0, 1.0, "from 0 to 1")

INTERPOLATIONS = ("nearest", "bilinear")
"""In the order of the core's numbers."""

PADDING_MODES = ("constant", "edge", "reflect", "symmetric", "wrap")
"""In the order of the core's numbers."""

WORD = 2**32 - 1

ATTEMPTS = 10
"""How often a random box is drawn until it fits into the picture, as in torchvision."""


def sequence(name: str, value: Any, lengths: Sequence[int], text: str) -> list[Any]:
    """The items of a sequence of one of these lengths, or the error that names the argument."""
    error = f"{name} must be {text}, got {value!r}"
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, (Sequence, np.ndarray)):
        raise TypeError(error)
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.ndim == 1 else [value]
    if lengths and len(value) not in lengths:
        raise ValueError(error)
    return list(value)


def single(value: Any) -> bool:
    """Whether it is meant as one number, and not as a sequence."""
    return not isinstance(value, (Sequence, Mapping)) and not (isinstance(value, np.ndarray) and value.ndim)


def extent(name: str, value: Any, low: int = 1) -> tuple[int, int]:
    """Two whole numbers, or one for both."""
    if single(value):
        n = count(name, value, low)
        return n, n
    items = sequence(name, value, (1, 2), f"an integer at least {low} or a pair of them")
    numbers = [count(f"{name}[{i}]", item, low) for i, item in enumerate(items)]
    return numbers[0], numbers[-1]


def pair(name: str, value: Any, limit: Limit) -> tuple[float, float]:
    """(low, high), where low is at most high."""
    items = sequence(name, value, (2,), f"a pair (low, high) of numbers, each {limit.text}")
    low, high = [number(f"{name}[{i}]", item, limit) for i, item in enumerate(items)]
    if low > high:
        raise ValueError(f"{name} must be a pair (low, high) with low at most high, got {value!r}")
    return low, high


def spread(name: str, value: Any, limit: Limit, alone: Limit | None = None) -> Spread:
    """(low, high) within the limit, or one number within it (within `alone`, if that is given)."""
    return number(name, value, alone or limit) if single(value) else pair(name, value, limit)


def both_ways(name: str, value: Any, limit: Limit, alone: Limit) -> tuple[float, float]:
    """(low, high) within the limit; one number x within `alone` stands for (-x, x)."""
    given = spread(name, value, limit, alone)
    return given if isinstance(given, tuple) else (0.0 - given, given)


def ends(value: Spread) -> tuple[float, float]:
    """The low and the high end, the same for one number."""
    return value if isinstance(value, tuple) else (value, value)


def point(name: str, value: Any) -> tuple[float, float] | None:
    """(x, y), or `None`."""
    if value is None:
        return None
    items = sequence(name, value, (2,), "a pair (x, y) of numbers, or None for the middle of the picture")
    x, y = [number(f"{name}[{i}]", item, FINITE) for i, item in enumerate(items)]
    return x, y


def values(name: str, value: Any, limit: Limit = SINGLE) -> Values:
    """A number for all channels, or one for each."""
    if single(value):
        return number(name, value, limit)
    items = sequence(name, value, (), "a number, or a sequence of one for each channel")
    if not items:
        raise ValueError(f"{name} must be a number, or a sequence of one for each channel, got {value!r}")
    return tuple(number(f"{name}[{i}]", item, limit) for i, item in enumerate(items))


def per_channel(name: str, value: Values, channels: int) -> list[float]:
    """One number for each channel of these pictures."""
    if not isinstance(value, tuple):
        return [value] * channels
    if len(value) == 1:
        return list(value) * channels
    if len(value) != channels:
        raise ValueError(
            f"{name} must be one number, or one for each of the {channels} channels of the images, got {value!r}"
        )
    return list(value)


def samples(params: dict[str, Array]) -> int:
    """How many samples these parameters are for."""
    return len(params["apply"])


def refuse(bad: Array, name: str, text: str, given: Array) -> None:
    """An error that names the parameter, for the first of these samples."""
    if bad.any():
        raise ValueError(f"params[{name!r}] must be {text}, got {given[bad][0]}")


def inhabited(name: str, shape: Shape) -> None:
    """An error for images without pixels, of which nothing can be made."""
    if shape.h < 1 or shape.w < 1:
        raise ValueError(f"{name} needs images of at least one pixel, got height {shape.h} and width {shape.w}")


def colored(name: str, shape: Shape) -> None:
    """An error for images that are neither gray nor RGB nor RGBA."""
    if shape.c not in (1, 3, 4):
        raise ValueError(
            f"{name} needs images of 1 channel (gray), 3 (RGB) or 4 (RGB and alpha), got {shape.c} channels; is the "
            "layout right?"
        )


def between(u: Array, low: float, high: float) -> Array:
    """Uniform on [low, high] from uniform on [0, 1)."""
    numbers: Array = np.minimum(low + u * (high - low), high)
    return numbers


def between_logs(u: Array, low: float, high: float) -> Array:
    """Of a logarithm that is uniform from log(low) to log(high)."""
    ends = libm("log", np.array([low, high], np.float64))
    return np.clip(libm("exp", between(u, float(ends[0]), float(ends[1]))), low, high)


def whole(u: Array, choices: Any) -> Array:
    """One of the whole numbers 0 to choices - 1, from uniform on [0, 1)."""
    # u is a multiple of 2^-53 below 1, so the product rounds to at most the float64 before `choices`.
    numbers: Array = np.floor(u * choices).astype(np.int64)
    return numbers


def boxes(u: Array, shape: Shape, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[Array, Array]:
    """Two sides of boxes of a random area and a random ratio of the first side to the second.

    Args:
        u: Uniform numbers of shape (n, attempts, 2), of the area and the ratio.
        shape: Of the pictures.
        scale: The area is uniform between these shares of the picture's.
        ratio: The logarithm of the ratio is uniform between those of these.

    Returns:
        The sides, float64 of whole numbers, each of shape (n, attempts).
    """
    area = float(shape.h * shape.w) * between(u[..., 0], *scale)
    aspect = between_logs(u[..., 1], *ratio)
    return np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))


def first_fit(fits: Array, *sides: Array) -> tuple[Array, list[Array]]:
    """Of each row the first of its attempts that fits: (whether there is one, its sides as integers)."""
    which = np.argmax(fits, axis=1)[:, None]
    return np.any(fits, axis=1, keepdims=True)[:, 0], [
        np.take_along_axis(side, which, 1)[:, 0].astype(np.int64) for side in sides
    ]


def words(params: dict[str, Array], n: int) -> Array:
    """What the random numbers of elements are made from, of shape (n, 5)."""
    numbers = rows(params, "words", n, 5)
    bad = (numbers < 0) | (numbers > WORD) | (numbers != np.floor(numbers))
    refuse(bad, "words", f"whole numbers from 0 to {WORD}", numbers)
    return numbers
