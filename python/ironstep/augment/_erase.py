"""Transforms that erase a part of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..functional._arrays import POSITIVE, Array
from ..functional._arrays import count as at_least
from ._arguments import (
    ATTEMPTS,
    SHARE,
    Values,
    boxes,
    extent,
    first_fit,
    pair,
    per_channel,
    refuse,
    samples,
    values,
    whole,
    words,
)
from ._base import Draw, Shape, Stage, Transform, rows

__all__ = ["Cutout", "RandomErasing"]


class _Erase(Transform):
    """What both share: boxes, and what comes in their place."""

    value: Values | str

    def _erase(self, params: dict[str, Array], shape: Shape, corners: Array) -> Stage:
        """With k boxes (top, left, bottom, right), of shape (n, 4 k)."""
        n = samples(params)
        random = self.value == "random"
        value = 0.0 if isinstance(self.value, str) else self.value
        table = np.zeros((n, 5 + corners.shape[1]))
        if random:
            table[:, :5] = words(params, n)
        table[:, 5:] = corners
        return Stage("erase", table, [float(random), *per_channel("value", value, shape.c)])

    def _words(self, draw: Draw) -> dict[str, Array]:
        return {"words": draw.words()} if self.value == "random" else {}


def _value(value: Any) -> Values | str:
    if isinstance(value, str):
        if value != "random":
            raise ValueError(f'value must be a number, one for each channel, or "random", got {value!r}')
        return value
    return values("value", value)


class RandomErasing(_Erase):
    r"""Erases a box of a random area and shape in each picture.

    With $u$ uniform on `scale` and $\log r$ uniform between the logarithms of `ratio`, a picture of $H$ rows and $W$
    columns loses a box of

    $$h = \mathrm{round} \sqrt{u H W r}, \qquad w = \mathrm{round} \sqrt{u H W / r}$$

    at a place that is uniform on all. A box that is not smaller than the picture in both directions is drawn again, up
    to ten times; then nothing is erased. Note that $r$ is height over width here, and the inverse in
    `RandomResizedCrop`; both are torchvision's, as are all names and defaults, but each sample has its own box. (timm's
    `RandomErasing` has the area up to 1/3, ratios from 0.3 to 1/0.3, and up to `max_count` boxes.) Only images change:
    masks, boxes and keypoints stay, which is the point of it.

    `sample` gives `top`, `left`, `height` and `width` of the boxes, in pixels, each of shape (n,); 0 where nothing is
    erased; and with `value="random"` also `words`, of shape (n, 5), what the random values are made from.

    Args:
        p: The probability of a picture to be erased.
        scale: (low, high), the box's share of the picture's area; from 0 to 1.
        ratio: (low, high), height over width of the box, above 0.
        value: What comes in: a number, or one for each channel, in units of the image (0 to 255 for uint8); or
            "random" for independent random values, which are standard normal for float images (normalise them before)
            and uniform for uint8.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, or `value` has another number of channels than the images.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import RandomErasing
        >>> images = np.zeros((100, 32, 32, 1), np.uint8)
        >>> erased = RandomErasing(p=0.5, value=255)(0, images)
        >>> share = (erased == 255).mean(axis=(1, 2, 3))
        >>> bool(30 < (share > 0).sum() < 70), bool(0.01 < share[share > 0].min() < share.max() < 0.35)
        (True, True)

    References:
        Zhong et al., Random erasing data augmentation, AAAI 2020, arXiv 1708.04896.
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        value: float | Sequence[float] | str = 0.0,
    ) -> None:
        super().__init__(p=p)
        self.scale = pair("scale", scale, SHARE)
        self.ratio = pair("ratio", ratio, POSITIVE)
        self.value = _value(value)

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        u = draw.uniform(2 * ATTEMPTS + 2)
        h, w = boxes(u[:, :-2].reshape(-1, ATTEMPTS, 2), shape, self.scale, self.ratio)
        fits, (height, width) = first_fit((h < shape.h) & (w < shape.w), h, w)
        height, width = np.where(fits, height, 0), np.where(fits, width, 0)
        return {
            "top": whole(u[:, -2], shape.h - height + 1),
            "left": whole(u[:, -1], shape.w - width + 1),
            "height": height,
            "width": width,
            **self._words(draw),
        }

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        n = samples(params)
        top, left, height, width = (rows(params, name, n, integer=True) for name in ("top", "left", "height", "width"))
        for name, length in (("height", height), ("width", width)):
            refuse(length < 0, name, "at least 0", length)
        return self._erase(params, shape, np.stack([top, left, 1.0 * top + height, 1.0 * left + width], axis=1))


class Cutout(_Erase):
    r"""Erases squares of a fixed size in each picture, at random places.

    The middle of each square is uniform on the pixels; what hangs over the edge is cut off, so squares at the edge are
    smaller. For a side of $s$ and a middle in row $y$, rows $y - \lfloor s / 2 \rfloor$ to
    $y - \lfloor s / 2 \rfloor + s - 1$ are erased (the authors' code erases one row less for odd $s$). Squares of one
    picture may overlap. Only images change: masks, boxes and keypoints stay.

    The authors erase with 0 after normalisation, which is the mean colour: place it after `Normalize`, or give the mean
    as `value`. torchvision has no Cutout; in albumentations it is `CoarseDropout`, whose boxes lie fully inside.

    `sample` gives `top` and `left` of the squares before they are cut off, each of shape (n, count), or (n,) for one;
    and with
    `value="random"` also `words`, of shape (n, 5), what the random values are made from.

    Args:
        size: The side in pixels, or (height, width).
        count: How many squares.
        value: What comes in: a number, or one for each channel, in units of the image (0 to 255 for uint8); or
            "random", as for `RandomErasing`.
        p: The probability of a picture to be erased.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, or `value` has another number of channels than the images.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import Cutout
        >>> images = np.ones((1, 3, 5, 1), np.uint8)
        >>> cutout = Cutout(2)
        >>> params = cutout.sample(0, images)
        >>> params["top"][:], params["left"][:] = 1, 4
        >>> cutout.apply(params, images)[0, :, :, 0]
        array([[1, 1, 1, 1, 1],
               [1, 1, 1, 1, 0],
               [1, 1, 1, 1, 0]], dtype=uint8)

    References:
        DeVries and Taylor, Improved regularization of convolutional neural networks with Cutout, arXiv 1708.04552.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        count: int = 1,
        value: float | Sequence[float] | str = 0.0,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.size = extent("size", size)
        self.count = at_least("count", count)
        self.value = _value(value)

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        u = draw.uniform(2 * self.count).reshape(-1, self.count, 2)
        height, width = self.size
        top, left = whole(u[..., 0], shape.h) - height // 2, whole(u[..., 1], shape.w) - width // 2
        if self.count == 1:
            top, left = top[:, 0], left[:, 0]
        return {"top": top, "left": left, **self._words(draw)}

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        n = samples(params)
        top, left = (rows(params, name, n, self.count, integer=True).reshape(n, self.count) for name in ("top", "left"))
        height, width = self.size
        squares = np.stack([top, left, 1.0 * top + height, 1.0 * left + width], axis=2)
        return self._erase(params, shape, squares.reshape(n, 4 * self.count))
