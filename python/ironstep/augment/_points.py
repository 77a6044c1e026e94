"""Boxes and keypoints: they go where the pixels go."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..functional._arrays import Array, unmasked


class Points:
    """Boxes or keypoints of a batch, on their way through a chain, as continuous coordinates in float64.

    A list of arrays, one for each sample, is padded with rows of NaN meanwhile.
    """

    def __init__(self, values: Any, name: str, n: int, boxes: bool, form: str, keep: bool, visibility: float) -> None:
        self._boxes, self._form, self._keep, self._visibility = boxes, form, keep, visibility
        self._lengths: list[int] | None = None
        self._width = 4 if boxes else 2
        if isinstance(values, np.ndarray) and values.dtype == object and values.ndim == 1:
            values = list(values)
        if isinstance(values, (list, tuple)):
            given = [self._checked(x, f"{name}[{i}]", 2) for i, x in enumerate(values)]
            if len(given) != n:
                raise ValueError(f"{name} must be a list of {n} arrays, one for each image, got {len(given)}")
            self._lengths = [len(x) for x in given]
            self._dtypes = [x.dtype for x in given]
            table = np.full((n, max(self._lengths, default=0), self._width), np.nan)
            for row, x in zip(table, given, strict=True):
                row[: len(x)] = x
        else:
            array = self._checked(values, name, 3)
            if len(array) != n:
                raise ValueError(f"{name} must have {n} rows, one for each image, got shape {array.shape}")
            self._dtypes = [array.dtype]
            table = array.astype(np.float64)
        if boxes:
            self._at = _corners(table, form)
            with np.errstate(invalid="ignore"):
                wrong = (self._at[..., 2:] < self._at[..., :2]).any(-1)
            if wrong.any():
                i, k = (int(index[0]) for index in np.nonzero(wrong))
                raise ValueError(
                    f'{name} must have sizes of at least 0 (box_format="{form}"), got {table[i, k]} in image {i}'
                )
        else:
            self._at = table + 0.5
        self._visible = np.ones(self._at.shape[:-1])
        """The share of a box's area that is left."""

    def _checked(self, x: Any, name: str, ndim: int) -> Array:
        array = unmasked(x, name)
        if array.size == 0 and ndim == 2:
            # An image without any, in whatever way that is said.
            return np.zeros((0, self._width), array.dtype if array.dtype.char in "fd" else np.float32)
        if array.dtype.kind in "iu":
            array = array.astype(np.float32)
        if array.dtype.char not in "fd":
            raise TypeError(f"{name} must be numbers of float32 or float64, got {array.dtype}; use .astype(np.float32)")
        if array.ndim != ndim or array.shape[-1] != self._width:
            shape = f"({'N, ' if ndim == 3 else ''}K, {self._width})"
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        if np.isinf(array).any():
            raise ValueError(f"{name} must be finite, or NaN in rows that are no point, got an infinite number")
        return array

    def move(self, maps: NDArray[np.float64], size: tuple[int, int], where: NDArray[np.bool_]) -> None:
        """Of the samples `where`, goes through affine maps (n, 2, 3) into pictures of that height and width."""
        before, visible = self._at, self._visible
        self._move(maps, size)
        self._at = np.where(where[:, None, None], self._at, before)
        self._visible = np.where(where[:, None], self._visible, visible)

    def _move(self, maps: NDArray[np.float64], size: tuple[int, int]) -> None:
        (a, b, c), (d, e, f) = (maps[:, k, :].T[:, :, None] for k in range(2))
        if not self._boxes:
            x, y = self._at[..., 0], self._at[..., 1]
            self._at = np.stack([a * x + b * y + c, d * x + e * y + f], -1)
            if not self._keep:
                self._forget(~self._inside(size))
            return
        left, top, right, bottom = (self._at[..., k] for k in range(4))
        xs = [a * x + b * y + c for x in (left, right) for y in (top, bottom)]
        ys = [d * x + e * y + f for x in (left, right) for y in (top, bottom)]
        self._at = np.stack([np.min(xs, 0), np.min(ys, 0), np.max(xs, 0), np.max(ys, 0)], -1)
        if not self._keep:
            self._clip(size)

    def _inside(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        x, y = self._at[..., 0], self._at[..., 1]
        with np.errstate(invalid="ignore"):
            return (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])

    def _clip(self, size: tuple[int, int]) -> None:
        h, w = size
        before = _area(self._at)
        clipped = np.clip(self._at, 0.0, np.array([w, h, w, h], np.float64))
        after = _area(clipped)
        with np.errstate(invalid="ignore", divide="ignore"):
            self._visible = self._visible * np.where(before > 0, after / before, 0.0)
        self._at = clipped
        with np.errstate(invalid="ignore"):
            self._forget(~((after > 0) & (self._visible >= self._visibility)))

    def _forget(self, which: NDArray[np.bool_]) -> None:
        self._at = np.where(which[..., None], np.nan, self._at)

    def finish(self, size: tuple[int, int]) -> Any:
        """The boxes or keypoints as they came: their format, type and list or array."""
        if not self._keep:
            # Also what was outside from the start, where nothing has moved it.
            if self._boxes:
                self._clip(size)
            else:
                self._forget(~self._inside(size))
        table = _from_corners(self._at, self._form) if self._boxes else self._at - 0.5
        if self._lengths is None:
            return table.astype(self._dtypes[0])
        return [row[:k].astype(t) for row, k, t in zip(table, self._lengths, self._dtypes, strict=True)]


def _area(boxes: Array) -> Array:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])  # type: ignore[no-any-return]


def _corners(boxes: Array, form: str) -> Array:
    """Left, top, right, bottom."""
    if form == "xyxy":
        return boxes
    first, size = boxes[..., :2], boxes[..., 2:]
    if form == "cxcywh":
        first = first - size / 2
    return np.concatenate([first, first + size], -1)


def _from_corners(boxes: Array, form: str) -> Array:
    if form == "xyxy":
        return boxes
    first, last = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([first if form == "xywh" else (first + last) / 2, last - first], -1)
