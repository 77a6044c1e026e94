"""A grid of pictures before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._figure import new_figure
from ..data import BatchKey
from ..functional._arrays import Array, count, integer
from ._arrays import Images, nhwc
from ._base import Transform, leaves
from ._color import Normalize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ._compose import Compose

PANEL = 1.5
"""Inches."""


def preview(chain: Compose, images: Any, *others: Any, seed: int, samples: int, versions: int) -> Figure:
    """Draws the first pictures as they are, and beside each how it comes out in the first epochs."""
    count("samples", samples)
    count("versions", versions)
    integer("seed", seed, 0, 2**64 - 1)
    n, _ = Images.sizes(np.shape(images), chain.layout)
    if n == 0:
        raise ValueError("images must have at least 1 image to draw, got none")
    k = min(n, samples)
    given = [x[:k] if x is not None else None for x in (images, *others)]
    if shown_range(given[0]) > 1.0:
        raise ValueError(f"images of floats must be in 0..1 to be drawn, got {shown_range(given[0])}; divide by 255")
    _, (height, width, _) = Images.sizes(np.shape(images), chain.layout)
    figure = new_figure(PANEL * (versions + 1), PANEL * min(max(height / max(width, 1), 0.3), 3.0) * k + 0.3)
    axes = figure.subplots(k, versions + 1, squeeze=False)
    columns: list[tuple[str, tuple[Any, ...], str]] = [("original", tuple(given), chain.layout)]
    for epoch in range(versions):
        key = BatchKey(seed, epoch, 0, np.arange(k, dtype=np.int64))
        result = chain(key, *given)
        results = result if isinstance(result, tuple) else (result,)
        columns.append((f"epoch {epoch}", results, chain.out_layout or chain.layout))
    for column, (title, arrays, layout) in enumerate(columns):
        pictures = nhwc(np.asarray(arrays[0]), layout)
        for row in range(k):
            ax = axes[row, column]
            ax.set_axis_off()
            if row == 0:
                ax.set_title(title, fontsize=9)
            picture = shown(pictures[row], chain if column else None)
            ax.imshow(
                picture, cmap="gray", vmin=0, vmax=255 if picture.dtype == np.uint8 else 1, interpolation="nearest"
            )
            for kind, array in zip(chain.targets[1:], arrays[1:], strict=False):
                overlay(ax, kind, array[row], chain.box_format)
    return figure


def shown_range(images: Any) -> float:
    """The largest value of images of floats; 0 of bytes."""
    array = np.asarray(images)
    return 0.0 if array.dtype == np.uint8 or array.size == 0 else float(np.nanmax(array.astype(np.float32)))


def shown(picture: Array, chain: Transform | None) -> Array:
    """The picture as `imshow` takes it: normalisation undone, one channel without its axis, within 0..1."""
    if picture.dtype != np.uint8:
        picture = picture.astype(np.float32)
        for leaf in reversed(list(leaves(chain))) if chain is not None else []:
            if isinstance(leaf, Normalize):
                picture = picture * np.asarray(leaf.std, np.float32) + np.asarray(leaf.mean, np.float32)
        picture = np.clip(np.nan_to_num(picture), 0.0, 1.0)
    channels = picture.shape[-1]
    return picture if channels in (3, 4) else picture[..., 0]


def overlay(ax: Axes, kind: str | None, array: Any, box_format: str) -> None:
    """Draws a mask, boxes or keypoints over a picture."""
    if kind == "mask":
        mask = np.asarray(array, np.float64)
        mask = mask if mask.ndim == 2 else mask[..., 0]
        # The same colour for a value in every panel; 0 is background.
        colours = np.ma.masked_where(mask == 0, (mask - 1) % 20)
        ax.imshow(colours, cmap="tab20", vmin=0, vmax=19, alpha=0.5, interpolation="nearest")
    elif kind == "boxes":
        from matplotlib.patches import Rectangle

        for a, b, c, d in np.asarray(array, np.float64):
            w, h = (c - a, d - b) if box_format == "xyxy" else (c, d)
            x, y = (a - w / 2, b - h / 2) if box_format == "cxcywh" else (a, b)
            if np.isfinite([x, y, w, h]).all():
                # Pixel i covers i to i + 1 for boxes, and i - 1/2 to i + 1/2 for imshow.
                ax.add_patch(Rectangle((x - 0.5, y - 0.5), w, h, fill=False, edgecolor="tab:red"))
    elif kind == "keypoints":
        ax.plot(*np.asarray(array, np.float64).T, "o", markersize=3, color="tab:red")
