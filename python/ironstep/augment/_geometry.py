"""Transforms that move pixels: flips, turns, rotations and affine maps, crops and resizing.

Points of a picture have continuous coordinates (x, y): x to the right, y down, (0, 0) its upper left corner, so pixel
(column i, row j) covers [i, i + 1) x [j, j + 1) and has its centre at (i + 1/2, j + 1/2). Boxes are in these
coordinates; keypoints, and the coordinates of the core's `warp`, count from the centre of the first pixel: index
coordinates, smaller by 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..functional._arrays import FINITE, NOT_NEGATIVE, POSITIVE, Array, count, flag, number
from ..optim._hyper import Limit
from ._arguments import (
    ATTEMPTS,
    INTERPOLATIONS,
    PADDING_MODES,
    SHARE,
    Values,
    between,
    both_ways,
    boxes,
    extent,
    first_fit,
    inhabited,
    pair,
    per_channel,
    point,
    refuse,
    samples,
    sequence,
    single,
    values,
    whole,
)
from ._base import Draw, Shape, Stage, Transform, choice, libm, rows

__all__ = [
    "CenterCrop",
    "RandomAffine",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotate90",
    "RandomRotation",
    "RandomVerticalFlip",
    "Resize",
]

AREA = Limit(5e-324, 1.0, "above 0 and at most 1")

SHEAR = Limit(math.nextafter(-90.0, 0.0), 90.0, "above -90 and below 90 (degrees)", closed=False)

SHEAR_ALONE = Limit(0.0, 90.0, "at least 0 and below 90 (degrees)", closed=False)


def _columns(n: int, *numbers: Any) -> Array:
    """A row for each sample, of numbers or arrays of shape (n,)."""
    table = np.empty((n, len(numbers)))
    for i, column in enumerate(numbers):
        table[:, i] = column
    return table


def _map(n: int, *numbers: Any) -> Array:
    """The maps (x, y) -> (a x + b y + c, d x + e y + f), of shape (n, 2, 3)."""
    return _columns(n, *numbers).reshape(n, 2, 3)


# -- Flips and turns ---------------------------------------------------------------------------------------------------


class RandomHorizontalFlip(Transform):
    r"""Mirrors pictures left to right.

    $$y_{j, i} = x_{j, W - 1 - i}$$

    for a picture $x$ of $W$ columns. Boxes and keypoints are mirrored with it. As in torchvision, but each sample is
    decided on its own.

    Args:
        p: The probability of a picture to be flipped.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `p` is not from 0 to 1.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import Compose, RandomHorizontalFlip
        >>> images = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1)
        >>> RandomHorizontalFlip(p=1.0)(0, images)[0, :, :, 0]
        array([[2, 1, 0],
               [5, 4, 3]], dtype=uint8)

        A box (left, top, right, bottom) around the pixel that is 0, which is now at the right:

        >>> boxes = np.array([[[0.0, 0.0, 1.0, 1.0]]])
        >>> flip = Compose([RandomHorizontalFlip(p=1.0)], targets=("image", "boxes"))
        >>> flip(0, images, boxes)[1]
        array([[[2., 0., 3., 1.]]])

    References:
        Krizhevsky et al., ImageNet classification with deep convolutional neural networks, NeurIPS 2012, section 4.1.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p=p)

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        return Stage("flip", _columns(samples(params), 1, 0), [])

    def _map(self, params: dict[str, Array], shape: Shape) -> Array:
        return _map(samples(params), -1, 0, shape.w, 0, 1, 0)


class RandomVerticalFlip(Transform):
    r"""Mirrors pictures top to bottom.

    $$y_{j, i} = x_{H - 1 - j, i}$$

    for a picture $x$ of $H$ rows. Boxes and keypoints are mirrored with it. As in torchvision, but each sample is
    decided on its own.

    Args:
        p: The probability of a picture to be flipped.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `p` is not from 0 to 1.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import RandomVerticalFlip
        >>> images = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1)
        >>> RandomVerticalFlip(p=1.0)(0, images)[0, :, :, 0]
        array([[3, 4, 5],
               [0, 1, 2]], dtype=uint8)

    References:
        Krizhevsky et al., ImageNet classification with deep convolutional neural networks, NeurIPS 2012, section 4.1
        (horizontal flips).
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p=p)

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        return Stage("flip", _columns(samples(params), 0, 1), [])

    def _map(self, params: dict[str, Array], shape: Shape) -> Array:
        return _map(samples(params), 1, 0, 0, 0, -1, shape.h)


class RandomRotate90(Transform):
    r"""Turns pictures by 90, 180 or 270 degrees, exactly.

    With $k$ quarter turns counter-clockwise, uniform on 1, 2, 3, the result is `numpy.rot90(x, k)`: pixels move, none
    is computed. Pictures that are not square are turned by 180 degrees only ($k = 2$), as all pictures of a batch keep
    their shape. torchvision has no such transform; albumentations has one that also draws $k = 0$, so that its `p` of
    1 is ours of 3/4.

    `sample` gives `k`, of shape (n,).

    Args:
        p: The probability of a picture to be turned.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `p` is not from 0 to 1, or an odd `k` was given to `apply` for pictures that are not square.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import RandomRotate90
        >>> images = np.arange(36).astype(np.uint8).reshape(4, 3, 3, 1)
        >>> turn = RandomRotate90(p=1.0)
        >>> params = turn.sample(0, images)
        >>> turned = turn.apply(params, images)
        >>> all((y == np.rot90(x, k)).all() for x, y, k in zip(images, turned, params["k"], strict=True))
        True

    References:
        Cohen and Welling, Group equivariant convolutional networks, ICML 2016 (the group p4, of which these are).
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p=p)

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        k = 1 + whole(draw.uniform(1)[:, 0], 3)
        return {"k": k if shape.h == shape.w else np.full_like(k, 2)}

    def _turns(self, params: dict[str, Array], shape: Shape) -> Array:
        k = rows(params, "k", samples(params), integer=True)
        refuse((k < 0) | (k > 3), "k", "quarter turns from 0 to 3", k)
        if shape.h != shape.w:
            text = f"0 or 2 for images that are not square, here {shape.h} x {shape.w}"
            refuse(k % 2 == 1, "k", text, k)
        return k

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        return Stage("turn", _columns(samples(params), self._turns(params, shape)), [])

    def _map(self, params: dict[str, Array], shape: Shape) -> Array:
        k = self._turns(params, shape)
        # One turn takes (x, y) to (y, w - x), the second (x, y) to (w - x, h - y), the third to (h - y, x).
        maps = _map(4, 0, 0, 0, 0, 0, 0)
        maps[0] = [[1, 0, 0], [0, 1, 0]]
        maps[1] = [[0, 1, 0], [-1, 0, shape.w]]
        maps[2] = [[-1, 0, shape.w], [0, -1, shape.h]]
        maps[3] = [[0, -1, shape.h], [1, 0, 0]]
        return maps[k]


# -- Affine maps -------------------------------------------------------------------------------------------------------


def _direction(degrees: Array) -> tuple[Array, Array]:
    """Cosine and sine; exactly 0, 1 or -1 at multiples of 90 degrees."""
    degrees = np.fmod(degrees, 360.0)
    quarters = np.rint(degrees / 90.0)
    rest = (degrees - 90.0 * quarters) * (math.pi / 180.0)
    c, s = libm("cos", rest), libm("sin", rest)
    k = quarters.astype(np.int64) % 4
    return np.choose(k, [c, -s, -c, s]), np.choose(k, [s, c, -s, -c])


class _Linear:
    """The maps q = A (p - o) + o + t of points in continuous coordinates, and their inverses.

    With A = scale R(angle) [[1, 0], [-tan(shear_y), 1]] [[1, -tan(shear_x)], [0, 1]], the factors of torchvision.
    """

    def __init__(self, angle: Array, translate: Array, scale: Array, shear: Array, center: tuple[float, float]) -> None:
        cos, sin = _direction(angle)
        tan_x, tan_y = (libm("tan", shear[:, i] * (math.pi / 180.0)) for i in (0, 1))
        # A / scale, of determinant 1.
        self._a, self._c = cos - sin * tan_y, -sin - cos * tan_y
        self._b, self._d = sin - self._a * tan_x, cos - self._c * tan_x
        self._scale, self._translate, self._center = scale, translate, center

    def forward(self) -> Array:
        """Of shape (n, 2, 3)."""
        (x, y), t = self._center, self._translate
        a, b, c, d = (self._scale * number for number in (self._a, self._b, self._c, self._d))
        right, down = x + t[:, 0] - (a * x + b * y), y + t[:, 1] - (c * x + d * y)
        return _map(len(a), a, b, right, c, d, down)

    def sources(self) -> Array:
        """The inverses in index coordinates, where the core finds what comes to a pixel; of shape (n, 6)."""
        (x, y), t = self._center, self._translate
        a, b, c, d = (number / self._scale for number in (self._d, -self._b, -self._c, self._a))
        right, down = 0.5 - x - t[:, 0], 0.5 - y - t[:, 1]
        return _columns(len(a), a, b, x - 0.5 + (a * right + b * down), c, d, y - 0.5 + (c * right + d * down))


class _Warp(Transform):
    """What `RandomRotation` and `RandomAffine` share."""

    def __init__(self, interpolation: str, center: Any, fill: Any, padding_mode: str, p: float) -> None:
        super().__init__(p=p)
        self.interpolation = choice("interpolation", interpolation, INTERPOLATIONS)
        self.center = point("center", center)
        self.fill: Values = values("fill", fill)
        self.padding_mode = choice("padding_mode", padding_mode, PADDING_MODES)

    def _linear(self, params: dict[str, Array], shape: Shape) -> _Linear:
        raise NotImplementedError

    def _middle(self, shape: Shape) -> tuple[float, float]:
        return (shape.w / 2, shape.h / 2) if self.center is None else self.center

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        kind = [INTERPOLATIONS.index(self.interpolation), PADDING_MODES.index(self.padding_mode)]
        settings = [*map(float, kind), *per_channel("fill", self.fill, shape.c)]
        return Stage("warp", self._linear(params, shape).sources(), settings)

    def _map(self, params: dict[str, Array], shape: Shape) -> Array:
        return self._linear(params, shape).forward()


class RandomRotation(_Warp):
    r"""Rotates pictures about a point; they keep their size, and corners are cut off.

    With the angle $\theta$ uniform on `degrees`, counter-clockwise as the picture is seen, a point $p$ goes to

    $$q = R(\theta) (p - o) + o, \qquad
      R(\theta) = \begin{pmatrix} \cos\theta & \sin\theta \\ -\sin\theta & \cos\theta \end{pmatrix}$$

    about $o$ = `center` (the y axis points down). Each pixel of the result is read at the place where its centre comes
    from: the nearest pixel, or the four around it by distance. At multiples of 90 degrees sine and cosine are exact: a
    square picture is then turned exactly, as by `numpy.rot90`, with either interpolation. Masks take the nearest
    pixel; boxes become the smallest upright box around their four turned corners.

    Names, defaults and the sign of the angle are torchvision's, which also has `expand` and has no `padding_mode`:
    outside of the picture is its `fill`. Ours is computed in fixed point with 32 bits below the pixel, torchvision's in
    float32 of the image's size; where a point lies half-way between two pixels the nearest one may differ, and bilinear
    values differ by rounding. At the picture's edge bilinear values mix with `fill`, in torchvision too. OpenCV's angle
    has the same sign; its centre counts from the middle of the first pixel, so it is ours less 1/2.

    `sample` gives `angle` in degrees, of shape (n,).

    Args:
        degrees: (low, high), or a number d at least 0 for (-d, d). Counter-clockwise.
        interpolation: "nearest" or "bilinear".
        center: (x, y) in pixels from the upper left corner; `None` for the middle of the picture, (W / 2, H / 2).
        fill: What lies outside with the `padding_mode` "constant": a number, or one for each channel, in units of the
            image (0 to 255 for uint8).
        padding_mode: What lies outside: "constant", "edge", "reflect", "symmetric" or "wrap", as in `numpy.pad`.
        p: The probability of a picture to be rotated.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, or `fill` has another number of channels than the images.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import RandomRotation
        >>> images = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1)
        >>> RandomRotation((90, 90))(0, images)[0, :, :, 0]
        array([[2, 5, 8],
               [1, 4, 7],
               [0, 3, 6]], dtype=uint8)
        >>> RandomRotation((45, 45), interpolation="bilinear", fill=100)(0, images)[0, 1, :, 0]
        array([1, 4, 7], dtype=uint8)

        The same angles as those of another run with this seed, for the first four samples of the data set:

        >>> angles = RandomRotation(15).sample(7, (4, 32, 32, 3))["angle"]
        >>> bool((angles == RandomRotation(15).sample(7, (4, 32, 32, 3))["angle"]).all())
        True

    References:
        Simard et al., Best practices for convolutional neural networks applied to visual document analysis, ICDAR 2003
        (affine distortions of training pictures).
    """

    def __init__(
        self,
        degrees: float | Sequence[float],
        interpolation: str = "nearest",
        center: Sequence[float] | None = None,
        fill: float | Sequence[float] = 0.0,
        padding_mode: str = "constant",
        p: float = 1.0,
    ) -> None:
        super().__init__(interpolation, center, fill, padding_mode, p)
        self.degrees = both_ways("degrees", degrees, FINITE, NOT_NEGATIVE)

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        return {"angle": between(draw.uniform(1)[:, 0], *self.degrees)}

    def _linear(self, params: dict[str, Array], shape: Shape) -> _Linear:
        n = samples(params)
        zero = np.zeros((n, 2))
        return _Linear(rows(params, "angle", n), zero, np.ones(n), zero, self._middle(shape))


class RandomAffine(_Warp):
    r"""Rotates, shears, scales and shifts pictures, all at once; they keep their size.

    With the angle $\theta$, the shears $s_x$ and $s_y$, the scale $r$ and the shift $t$, each uniform on its range, a
    point $p$ goes to

    $$q = r\, R(\theta)
      \begin{pmatrix} 1 & 0 \\ -\tan s_y & 1 \end{pmatrix}
      \begin{pmatrix} 1 & -\tan s_x \\ 0 & 1 \end{pmatrix} (p - o) + o + t, \qquad
      R(\theta) = \begin{pmatrix} \cos\theta & \sin\theta \\ -\sin\theta & \cos\theta \end{pmatrix}$$

    about $o$ = `center`. Pixels are read as by `RandomRotation`, and masks, boxes and keypoints move likewise.

    Names, defaults and order are torchvision's, with one difference: **the angle is counter-clockwise**, as in
    `RandomRotation` here and there. torchvision's `RandomAffine` turns clockwise; with `degrees` that are not
    symmetric about 0, negate them. It has no `padding_mode`.

    `sample` gives `angle` (degrees, of shape (n,)), `translate` (whole pixels to the right and down, (n, 2)), `scale`
    ((n,)) and `shear` (degrees along x and y, (n, 2)). A sample takes the same six random numbers whatever the
    arguments, so a run with shear added has the same angles.

    Args:
        degrees: (low, high), or a number d at least 0 for (-d, d). Counter-clockwise; 0 for none.
        translate: (a, b), shares from 0 to 1: shifts are uniform on (-a W, a W) to the right and (-b H, b H) down,
            rounded to whole pixels. `None` for none.
        scale: (low, high), above 0; above 1 magnifies. `None` for 1.
        shear: Degrees, above -90 and below 90: a number s at least 0 for (-s, s) along x, (low, high) along x, or
            (low, high, low, high) along x and y. `None` for none.
        interpolation: "nearest" or "bilinear".
        fill: What lies outside with the `padding_mode` "constant": a number, or one for each channel, in units of the
            image (0 to 255 for uint8).
        center: (x, y) in pixels from the upper left corner; `None` for the middle of the picture, (W / 2, H / 2).
        padding_mode: What lies outside: "constant", "edge", "reflect", "symmetric" or "wrap", as in `numpy.pad`.
        p: The probability of a picture to be transformed.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, or `fill` has another number of channels than the images.

    Example:
        Parameters can be given, for a test or to repeat what was drawn. One pixel to the right, what comes in is 9:

        >>> import numpy as np
        >>> from ironstep.augment import RandomAffine
        >>> images = np.arange(8, dtype=np.uint8).reshape(1, 2, 4, 1)
        >>> affine = RandomAffine(10, translate=(0.5, 0), fill=9)
        >>> params = affine.sample(0, images)
        >>> params["angle"][:], params["translate"][:] = 0, (1, 0)
        >>> affine.apply(params, images)[0, :, :, 0]
        array([[9, 0, 1, 2],
               [9, 4, 5, 6]], dtype=uint8)

    References:
        Simard et al., Best practices for convolutional neural networks applied to visual document analysis, ICDAR 2003
        (affine distortions of training pictures).
    """

    def __init__(
        self,
        degrees: float | Sequence[float],
        translate: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        shear: float | Sequence[float] | None = None,
        interpolation: str = "nearest",
        fill: float | Sequence[float] = 0.0,
        center: Sequence[float] | None = None,
        padding_mode: str = "constant",
        p: float = 1.0,
    ) -> None:
        super().__init__(interpolation, center, fill, padding_mode, p)
        self.degrees = both_ways("degrees", degrees, FINITE, NOT_NEGATIVE)
        self.translate: tuple[float, float] | None = None
        if translate is not None:
            shares = sequence("translate", translate, (2,), "a pair (a, b) of shares from 0 to 1, or None")
            a, b = [number(f"translate[{i}]", share, SHARE) for i, share in enumerate(shares)]
            self.translate = (a, b)
        self.scale = None if scale is None else pair("scale", scale, POSITIVE)
        self.shear = self._shears(shear)

    @staticmethod
    def _shears(shear: Any) -> tuple[float, ...] | None:
        if shear is None:
            return None
        if single(shear):
            return both_ways("shear", shear, SHEAR, SHEAR_ALONE)
        ends = sequence("shear", shear, (2, 4), "a number, (low, high), (low, high, low, high), or None")
        return tuple(end for i in range(0, len(ends), 2) for end in pair("shear", ends[i : i + 2], SHEAR))

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        u = draw.uniform(6)
        right, down = self.translate or (0.0, 0.0)
        shear = ((self.shear or (0.0, 0.0)) + (0.0, 0.0))[:4]
        translate = [
            np.rint(between(u[:, 1 + i], -most, most)) + 0.0 for i, most in enumerate((right * shape.w, down * shape.h))
        ]
        return {
            "angle": between(u[:, 0], *self.degrees),
            "translate": np.stack(translate, axis=1),
            "scale": between(u[:, 3], *(self.scale or (1.0, 1.0))),
            "shear": np.stack([between(u[:, 4], *shear[:2]), between(u[:, 5], *shear[2:])], axis=1),
        }

    def _linear(self, params: dict[str, Array], shape: Shape) -> _Linear:
        n = samples(params)
        scale, shear = rows(params, "scale", n), rows(params, "shear", n, 2)
        refuse(scale <= 0, "scale", "above 0", scale)
        refuse(np.abs(shear) >= 90, "shear", SHEAR.text, shear)
        return _Linear(rows(params, "angle", n), rows(params, "translate", n, 2), scale, shear, self._middle(shape))


# -- Crops and resizing ------------------------------------------------------------------------------------------------


def _whole_rows(params: dict[str, Array], *names: str) -> list[Array]:
    n = samples(params)
    return [rows(params, name, n, integer=True) for name in names]


class _Crop(Transform):
    """What `RandomCrop` and `CenterCrop` share: a window at (`top`, `left`), which may lie outside."""

    size: tuple[int, int]

    def _size(self, shape: Shape) -> Shape:
        return Shape(*self.size, shape.c)

    def _outside(self, shape: Shape) -> list[float]:
        return [0.0] * (1 + shape.c)

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        settings = [*map(float, self.size), *self._outside(shape)]
        return Stage("crop", _columns(samples(params), *_whole_rows(params, "top", "left")), settings)

    def _map(self, params: dict[str, Array], shape: Shape) -> Array:
        top, left = _whole_rows(params, "top", "left")
        return _map(len(top), 1, 0, -left, 0, 1, -top)


class RandomCrop(_Crop):
    r"""Cuts a window out of each picture, at a random place; with padding, pictures are shifted at random.

    The upper left corner is uniform on all places where the window lies in the padded picture:

    $$\mathrm{top} \in \{-a, \dots, H + b - h\}, \qquad y_{j, i} = x_{\mathrm{top} + j,\ \mathrm{left} + i}$$

    for a picture of $H$ rows, padded by $a$ above and $b$ below, and a window of $h$ rows; columns likewise. The padded
    picture is never made. Padding of 4 with a window of the picture's size is the classic recipe for CIFAR.

    Names and defaults are torchvision's; there, "reflect" and "symmetric" padding must be narrower than the picture,
    here it may be of any width, as in `numpy.pad`, and there is "wrap".

    `sample` gives `top` and `left`, each of shape (n,): the window's corner in the picture without its padding, so that
    -1 is the first row of a padding of 1.

    Args:
        size: (h, w) of the window, or one number for both.
        padding: Pixels around the picture: a number for all sides, (left and right, top and bottom), or (left, top,
            right, bottom). `None` for none.
        pad_if_needed: Pad a picture that is smaller than the window further, by what is lacking, on both sides.
        fill: What lies outside with the `padding_mode` "constant": a number, or one for each channel, in units of the
            image (0 to 255 for uint8).
        padding_mode: What lies outside: "constant", "edge", "reflect", "symmetric" or "wrap", as in `numpy.pad`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, `fill` has another number of channels than the images, or the window
            is larger than the padded images.

    Example:
        What is drawn depends on the seed, the epoch and the number of the sample in the data set, and on nothing else:

        >>> import numpy as np
        >>> from ironstep.augment import RandomCrop
        >>> from ironstep.data import BatchKey
        >>> images = np.arange(4 * 8 * 8).astype(np.uint8).reshape(4, 8, 8, 1)
        >>> crop = RandomCrop(8, padding=2, padding_mode="reflect")
        >>> batch = crop(BatchKey(1, 0, 0, np.arange(4)), images)
        >>> alone = crop(BatchKey(1, 0, 5, np.array([2])), images[2:3])
        >>> bool((alone[0] == batch[2]).all())
        True
        >>> top = crop.sample(1, (1000, 8, 8, 1))["top"]
        >>> int(top.min()), int(top.max())
        (-2, 2)

    References:
        He et al., Deep residual learning for image recognition, CVPR 2016, section 4.2.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        padding: int | Sequence[int] | None = None,
        pad_if_needed: bool = False,
        fill: float | Sequence[float] = 0.0,
        padding_mode: str = "constant",
    ) -> None:
        super().__init__()
        self.size = extent("size", size)
        self.padding = self._sides(padding)
        self.pad_if_needed = flag("pad_if_needed", pad_if_needed)
        self.fill: Values = values("fill", fill)
        self.padding_mode = choice("padding_mode", padding_mode, PADDING_MODES)

    @staticmethod
    def _sides(padding: Any) -> tuple[int, int, int, int] | None:
        if padding is None:
            return None
        items = [padding]
        if not single(padding):
            text = "a number, (left and right, top and bottom), (left, top, right, bottom), or None"
            items = sequence("padding", padding, (1, 2, 4), text)
        sides = [count("padding" if single(padding) else f"padding[{i}]", item, 0) for i, item in enumerate(items)]
        left, top, right, bottom = (sides * 4)[:4]
        return left, top, right, bottom

    def _range(self, shape: Shape) -> list[tuple[int, int]]:
        """Of each axis, y first, the first place of the window and how many there are."""
        left, top, right, bottom = self.padding or (0, 0, 0, 0)
        places = []
        for length, window, before, after in zip(shape[:2], self.size, (top, left), (bottom, right), strict=True):
            lacking = max(0, window - (before + length + after)) if self.pad_if_needed else 0
            places.append((-before - lacking, before + length + after + 2 * lacking - window + 1))
        return places

    def _size(self, shape: Shape) -> Shape:
        if min(choices for _, choices in self._range(shape)) < 1:
            left, top, right, bottom = self.padding or (0, 0, 0, 0)
            raise ValueError(
                f"size must be at most that of the padded images, {top + shape.h + bottom} x "
                f"{left + shape.w + right}, got {self.size}; set pad_if_needed=True to pad them further"
            )
        if self.padding_mode != "constant":
            inhabited(f'padding_mode "{self.padding_mode}"', shape)
        return super()._size(shape)

    def _outside(self, shape: Shape) -> list[float]:
        return [float(PADDING_MODES.index(self.padding_mode)), *per_channel("fill", self.fill, shape.c)]

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        self._size(shape)
        u = draw.uniform(2)
        places = self._range(shape)
        return {name: places[i][0] + whole(u[:, i], places[i][1]) for i, name in enumerate(("top", "left"))}


class CenterCrop(_Crop):
    r"""Cuts a window out of the middle of each picture; of a smaller one, a frame of zeros is added.

    $$\mathrm{top} = \mathrm{round}\big((H - h) / 2\big)$$

    rounded to the even number at ties, for a picture of $H$ rows and a window of $h \le H$; a picture that has fewer
    gets $\lfloor (h - H) / 2 \rfloor$ rows above and the others below. Columns likewise. All as in torchvision. Nothing
    is random: this is for the pictures that a model is tested with.

    Args:
        size: (h, w) of the window, or one number for both.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import CenterCrop
        >>> images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
        >>> CenterCrop((2, 6))(0, images)[0, :, :, 0]
        array([[ 0,  4,  5,  6,  7,  0],
               [ 0,  8,  9, 10, 11,  0]], dtype=uint8)

    References:
        Krizhevsky et al., ImageNet classification with deep convolutional neural networks, NeurIPS 2012, section 4.1.
    """

    def __init__(self, size: int | Sequence[int]) -> None:
        super().__init__()
        self.size = extent("size", size)

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        top, left = (
            round((length - window) / 2) if window <= length else -((window - length) // 2)
            for length, window in zip(shape[:2], self.size, strict=True)
        )
        return {"top": np.full(draw.n, top), "left": np.full(draw.n, left)}


class _Resized(Transform):
    """What `RandomResizedCrop` and `Resize` share: a part of the picture, made larger or smaller."""

    interpolation: str
    antialias: bool

    def _part(self, params: dict[str, Array], shape: Shape) -> list[Any]:
        """(top, left, height, width), of a part that lies inside."""
        raise NotImplementedError

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        out = self._size(shape)
        settings = [out.h, out.w, INTERPOLATIONS.index(self.interpolation), self.antialias]
        return Stage("resize", _columns(samples(params), *self._part(params, shape)), [*map(float, settings)])

    def _map(self, params: dict[str, Array], shape: Shape) -> Array:
        out = self._size(shape)
        top, left, height, width = self._part(params, shape)
        x, y = out.w / width, out.h / height
        return _map(samples(params), x, 0, -left * x, 0, y, -top * y)


class RandomResizedCrop(_Resized):
    r"""Cuts a box of a random area and shape out of each picture, and resizes it.

    With $u$ uniform on `scale` and $\log r$ uniform between the logarithms of `ratio`, a picture of $H$ rows and $W$
    columns gives a box of

    $$w = \mathrm{round} \sqrt{u H W r}, \qquad h = \mathrm{round} \sqrt{u H W / r}$$

    at a place that is uniform on all. If the box is larger than the picture, $u$ and $r$ are drawn again, up to ten
    times; then the box is the largest one in the middle whose ratio is within `ratio`. The box is resized as by
    `Resize`; no pixel outside of it is seen. All as in torchvision (whose $\log r$ is float32, ours float64), but each
    sample has its own box.

    `sample` gives `top`, `left`, `height` and `width` of the boxes, in pixels, each of shape (n,).

    Args:
        size: (h, w) of the result, or one number for both.
        scale: (low, high), the box's share of the picture's area; above 0 and at most 1.
        ratio: (low, high), width over height of the box, above 0.
        interpolation: "bilinear" or "nearest"; see `Resize`.
        antialias: See `Resize`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, images have no pixels, or boxes given to `apply` leave the picture.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import RandomResizedCrop
        >>> crop = RandomResizedCrop(32, scale=(0.25, 1))
        >>> crop(0, np.zeros((2, 60, 80, 3), np.uint8)).shape
        (2, 32, 32, 3)
        >>> box = crop.sample(0, (1000, 60, 80, 3))
        >>> share = box["height"] * box["width"] / (60 * 80)
        >>> bool(0.24 < share.min() < 0.27), bool(0.95 < share.max() <= 1)
        (True, True)

    References:
        Szegedy et al., Going deeper with convolutions, CVPR 2015, section 6 (area 8 to 100 %, ratio 3/4 to 4/3).
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bilinear",
        antialias: bool = True,
    ) -> None:
        super().__init__()
        self.size = extent("size", size)
        self.scale = pair("scale", scale, AREA)
        self.ratio = pair("ratio", ratio, POSITIVE)
        self.interpolation = choice("interpolation", interpolation, INTERPOLATIONS)
        self.antialias = flag("antialias", antialias)

    def _size(self, shape: Shape) -> Shape:
        inhabited("RandomResizedCrop", shape)
        return Shape(*self.size, shape.c)

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        self._size(shape)
        u = draw.uniform(2 * ATTEMPTS + 2)
        w, h = boxes(u[:, :-2].reshape(-1, ATTEMPTS, 2), shape, self.scale, self.ratio)
        fits, (width, height) = first_fit((w > 0) & (w <= shape.w) & (h > 0) & (h <= shape.h), w, h)
        fallback_h, fallback_w = self._fallback(shape)
        height, width = np.where(fits, height, fallback_h), np.where(fits, width, fallback_w)
        top, left = shape.h - height, shape.w - width
        return {
            "top": np.where(fits, whole(u[:, -2], top + 1), top // 2),
            "left": np.where(fits, whole(u[:, -1], left + 1), left // 2),
            "height": height,
            "width": width,
        }

    def _fallback(self, shape: Shape) -> tuple[int, int]:
        low, high = self.ratio
        if shape.w / shape.h < low:
            return max(1, round(shape.w / low)), shape.w
        if shape.w / shape.h > high:
            return shape.h, max(1, round(shape.h * high))
        return shape.h, shape.w

    def _part(self, params: dict[str, Array], shape: Shape) -> list[Any]:
        top, left, height, width = box = _whole_rows(params, "top", "left", "height", "width")
        for first, start, length, pixels in (("top", top, height, shape.h), ("left", left, width, shape.w)):
            refuse((start < 0) | (start >= pixels), first, f"from 0 to {pixels - 1}, in the images", start)
            name = "height" if first == "top" else "width"
            refuse((length < 1) | (length > pixels - start), name, f"at least 1, ending within {pixels} pixels", length)
        return box


class Resize(_Resized):
    r"""Resizes pictures, all of them: nothing is random.

    Pixel $i$ of $h$ in the result has its centre at $s = (i + 1/2) H / h - 1/2$ of the $H$ in the picture ("half-pixel
    centres"). "bilinear" takes the two pixels around it by distance. With `antialias`, when the picture becomes
    smaller, it is a mean of all pixels nearer than $H / h$, weighted by distance:

    $$y_i = \frac{\sum_k w_{ik} x_k}{\sum_k w_{ik}}, \qquad
      w_{ik} = \max\Big(0,\ 1 - \frac{|k - s|}{\max(1, H / h)}\Big)$$

    Without it pixels are left out, and fine texture turns into coarse patterns. "nearest" takes pixel
    $\lfloor (i + 1/2) H / h \rfloor$. Columns likewise.

    Names and defaults are torchvision's, and so are the values up to rounding: "bilinear" is
    `interpolate(align_corners=False)`. "nearest" is its "nearest-exact"; its own "nearest", $\lfloor i H / h \rfloor$,
    shifts the picture, and is not here. There is no `max_size`.

    Args:
        size: (h, w) of the result; or one number for the shorter side, and the other one keeps the picture's ratio,
            rounded down.
        interpolation: "bilinear" or "nearest".
        antialias: For "bilinear" only.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, or images have no pixels.

    Example:
        A row of black and white pixels is gray from afar, unless pixels are left out:

        >>> import numpy as np
        >>> from ironstep.augment import Resize
        >>> images = np.tile(np.float32([0, 1, 0]), 4).reshape(1, 1, 12, 1)
        >>> Resize((1, 4))(0, images)[0, 0, 1:3, 0].round(2), Resize((1, 4), antialias=False)(0, images)[0, 0, 1:3, 0]
        (array([0.33, 0.33], dtype=float32), array([1., 1.], dtype=float32))
        >>> Resize(15)(0, np.zeros((1, 30, 40, 3), np.uint8)).shape
        (1, 15, 20, 3)

    References:
        Heckbert, Fundamentals of texture mapping and image warping, UC Berkeley, 1989, chapter 3.
    """

    def __init__(self, size: int | Sequence[int], interpolation: str = "bilinear", antialias: bool = True) -> None:
        super().__init__()
        self.size: int | tuple[int, int] = count("size", size) if single(size) else extent("size", size)
        self.interpolation = choice("interpolation", interpolation, INTERPOLATIONS)
        self.antialias = flag("antialias", antialias)

    def _size(self, shape: Shape) -> Shape:
        inhabited("Resize", shape)
        if isinstance(self.size, tuple):
            return Shape(*self.size, shape.c)
        shorter = min(shape.h, shape.w)
        return Shape(self.size * shape.h // shorter, self.size * shape.w // shorter, shape.c)

    def _part(self, params: dict[str, Array], shape: Shape) -> list[Any]:
        return [0, 0, shape.h, shape.w]
