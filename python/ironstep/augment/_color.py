"""Transforms that change values: colours, noise, blur, and the scale that a model takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..functional._arrays import NOT_NEGATIVE, POSITIVE, Array, flag, number
from ..optim._hyper import Limit
from ._arguments import (
    SINGLE,
    Values,
    between,
    colored,
    ends,
    extent,
    inhabited,
    per_channel,
    refuse,
    samples,
    spread,
    values,
    words,
)
from ._base import Draw, Shape, Stage, Transform, rows

__all__ = ["ColorJitter", "GaussianBlur", "GaussianNoise", "Normalize", "RandomGrayscale"]

HUE = Limit(-0.5, 0.5, "from -0.5 to 0.5")

STEPS = ("brightness", "contrast", "saturation", "hue")
"""Of `ColorJitter`, in the order of the core's numbers."""

HUE_ALONE = Limit(0.0, 0.5, "from 0 to 0.5")

LIMITS = (NOT_NEGATIVE, NOT_NEGATIVE, NOT_NEGATIVE, HUE)

UNCHANGED = (1.0, 1.0, 1.0, 0.0)
"""The factors that change nothing."""

NOT_NEGATIVE_SINGLE = Limit(0.0, SINGLE.high, "finite in float32 and at least 0")

POSITIVE_SINGLE = Limit(float(np.finfo(np.float32).tiny), SINGLE.high, "finite in float32 and above 1.2e-38")


class ColorJitter(Transform):
    r"""Changes brightness, contrast, saturation and hue, each by a random factor, in a random order.

    With a factor $f$ for each step, the gray of a pixel $g(x) = 0.2989 R + 0.587 G + 0.114 B$, and its mean $\bar g$
    over the picture at that moment:

    $$\text{brightness: } f x \qquad \text{contrast: } f x + (1 - f)\, \bar g \qquad
      \text{saturation: } f x + (1 - f)\, g(x)$$

    clamped to 0 .. 1 (float) or 0 .. 255 (uint8); hue is turned by $f$ of a full circle in the HSV colour space. A
    factor of 1 (hue: 0) changes nothing. All of it is torchvision's: after each step a uint8 picture is
    uint8 again, rounded towards 0, and so is its mean gray. (torch fuses a multiplication with an addition here and
    there, so now and then a value is a level off.) But each sample has its own factors and order.

    On pictures of one channel (gray), saturation and hue do nothing; of four, the last one (alpha) stays.

    `sample` gives `brightness`, `contrast`, `saturation` and `hue`, the factors, each of shape (n,), and `order`, of
    shape (n, 4): the steps by number (0 brightness, 1 contrast, 2 saturation, 3 hue) as they are done. A step that the
    arguments leave out has no factor; it is done if `apply` is given one. A sample takes the same random numbers
    whatever the arguments.

    Args:
        brightness: The factor: (low, high), at least 0; or a number d at least 0 for (max(0, 1 - d), 1 + d).
        contrast: Likewise.
        saturation: Likewise.
        hue: (low, high), from -0.5 to 0.5; or a number d from 0 to 0.5 for (-d, d).
        p: The probability of a picture to be changed.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, images have neither 1, 3 nor 4 channels, or float images have values
            outside of 0 .. 1.

    Example:
        Half the brightness brings all values closer to 0, half the contrast closer to their mean:

        >>> import numpy as np
        >>> from ironstep.augment import ColorJitter
        >>> images = np.uint8([0, 100, 200]).reshape(1, 1, 3, 1)
        >>> ColorJitter(brightness=(0.5, 0.5))(0, images).ravel()
        array([  0,  50, 100], dtype=uint8)
        >>> ColorJitter(contrast=(0.5, 0.5))(0, images).ravel()
        array([ 50, 100, 150], dtype=uint8)

        Red, a third of a circle on:

        >>> ColorJitter(hue=(1 / 3, 1 / 3))(0, np.uint8([255, 0, 0]).reshape(1, 1, 1, 3)).ravel()
        array([  0, 255,   0], dtype=uint8)

    References:
        Howard, Some improvements on deep convolutional neural network based image classification, arXiv 1312.5402
        (brightness, contrast and saturation in random order).
    """

    _unit = True

    def __init__(
        self,
        brightness: float | Sequence[float] = 0.0,
        contrast: float | Sequence[float] = 0.0,
        saturation: float | Sequence[float] = 0.0,
        hue: float | Sequence[float] = 0.0,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.brightness = spread("brightness", brightness, NOT_NEGATIVE)
        self.contrast = spread("contrast", contrast, NOT_NEGATIVE)
        self.saturation = spread("saturation", saturation, NOT_NEGATIVE)
        self.hue = spread("hue", hue, HUE, HUE_ALONE)

    def _ranges(self) -> dict[str, tuple[float, float]]:
        """Of the steps that do something."""
        given = (self.brightness, self.contrast, self.saturation, self.hue)
        ranges = {}
        for name, value, center, limit in zip(STEPS, given, UNCHANGED, LIMITS, strict=True):
            low, high = value if isinstance(value, tuple) else (max(limit.low, center - value), center + value)
            if not low == high == center:
                ranges[name] = (low, high)
        return ranges

    def _size(self, shape: Shape) -> Shape:
        colored("ColorJitter", shape)
        return shape

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        u = draw.uniform(8)
        ranges = self._ranges()
        params = {name: between(u[:, i], *ranges[name]) for i, name in enumerate(STEPS) if name in ranges}
        # The order of four random numbers is a random one.
        return params | {"order": np.argsort(u[:, 4:], axis=1, kind="stable").astype(np.int64)}

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        n, ranges = samples(params), self._ranges()
        table = np.full((n, 8), np.nan)
        for i, (name, limit) in enumerate(zip(STEPS, LIMITS, strict=True)):
            if name in ranges or name in params:
                table[:, i] = factors = rows(params, name, n)
                refuse((factors < limit.low) | (factors > limit.high), name, limit.text, factors)
        order = rows(params, "order", n, 4, integer=True)
        bad = (np.sort(order, axis=1) != np.arange(4)).any(axis=1)
        refuse(bad, "order", "0, 1, 2 and 3 in each row, in any order", order)
        table[:, 4:] = order
        return Stage("jitter", table, [])


class RandomGrayscale(Transform):
    r"""Takes the colour out of pictures.

    $$R' = G' = B' = 0.2989 R + 0.587 G + 0.114 B$$

    rounded towards 0 for uint8. The number of channels stays. Weights, rounding and default are torchvision's. Pictures
    of one channel stay as they are; of four, the last one (alpha) stays.

    Args:
        p: The probability of a picture to become gray.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `p` is not from 0 to 1, or images have neither 1, 3 nor 4 channels.

    Example:
        Red, green and blue are not equally bright:

        >>> import numpy as np
        >>> from ironstep.augment import RandomGrayscale
        >>> images = np.uint8([[255, 0, 0], [0, 255, 0], [0, 0, 255]]).reshape(1, 1, 3, 3)
        >>> RandomGrayscale(p=1.0)(0, images)[0, 0]
        array([[ 76,  76,  76],
               [149, 149, 149],
               [ 29,  29,  29]], dtype=uint8)

    References:
        ITU-R Recommendation BT.601-7, 2011 (the weights of red, green and blue).
        Chen et al., A simple framework for contrastive learning of visual representations, ICML 2020.
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__(p=p)

    def _size(self, shape: Shape) -> Shape:
        colored("RandomGrayscale", shape)
        return shape

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        return Stage("gray", np.empty((samples(params), 0)), [])


class GaussianNoise(Transform):
    r"""Adds independent Gaussian noise to each value.

    $$y = x + \mu + \sigma z, \qquad z \sim \mathcal N(0, 1)$$

    where $\mu$ and $\sigma$ are in units of the full range: 0.1 is 25.5 of 255 for uint8, where y is clamped to
    0 .. 255 and rounded to the nearest (torchvision cuts the noise itself to whole levels, so less than one level
    is lost). Element i of a picture, counted in (h, w, c) order whatever its layout, has noise that depends on the
    seed, the epoch, the sample's number in the data set and i. Names and defaults are torchvision's, where $\sigma$ is
    one number; albumentations draws it from a range, too.

    `sample` gives `sigma`, of shape (n,), and `words`, of shape (n, 5): what the noise itself is made from.

    Args:
        mean: $\mu$.
        sigma: $\sigma$, at least 0; or (low, high), from which it is drawn for each picture.
        clip: Clamp float pictures to 0 .. 1. Set it to False for pictures that have been normalised.
        p: The probability of a picture to get noise.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, or float images have values outside of 0 .. 1 though they are to be
            clipped.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import GaussianNoise
        >>> images = np.full((1, 100, 100, 3), 0.5, np.float32)
        >>> noise = GaussianNoise(sigma=0.05)(0, images) - images
        >>> bool(abs(noise.mean()) < 0.002), bool(abs(noise.std() - 0.05) < 0.001)
        (True, True)

    References:
        Bishop, Training with noise is equivalent to Tikhonov regularization, Neural Computation 7, 1995.
        Box and Muller, A note on the generation of random normal deviates, Annals of Mathematical Statistics 29, 1958.
    """

    def __init__(
        self, mean: float = 0.0, sigma: float | Sequence[float] = 0.1, clip: bool = True, p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        self.mean = number("mean", mean, SINGLE)
        self.sigma = spread("sigma", sigma, NOT_NEGATIVE_SINGLE)
        self.clip = flag("clip", clip)
        # Clipping would destroy others.
        self._unit, self._leaves_unit = self.clip, not self.clip

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        return {"sigma": between(draw.uniform(1)[:, 0], *ends(self.sigma)), "words": draw.words()}

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        n = samples(params)
        sigma = rows(params, "sigma", n)
        refuse(sigma < 0, "sigma", "at least 0", sigma)
        return Stage("noise", np.column_stack([np.full(n, self.mean), sigma, words(params, n)]), [float(self.clip)])


class GaussianBlur(Transform):
    r"""Blurs pictures by a random amount.

    Each pixel becomes a mean of those around it, along the rows and then along the columns, with the weights

    $$w_k = \frac{e^{-k^2 / 2 \sigma^2}}{\sum_j e^{-j^2 / 2 \sigma^2}}, \qquad k, j = -K, \dots, K$$

    for a kernel of $2 K + 1$ pixels and $\sigma$ uniform on `sigma`. Outside the picture is mirrored about the middle
    of its last pixel ("reflect"), so it must have more than $K$ pixels. Names and defaults are torchvision's. A kernel
    of about $6 \sigma$ misses 0.3 % of the bell; the kernel's size is fixed, so a large $\sigma$ in a small kernel
    comes close to a plain mean.

    `sample` gives `sigma` in pixels, of shape (n,).

    Args:
        kernel_size: Odd number of pixels: one number, or (width, height), which is torchvision's order.
        sigma: (low, high), above 0, in pixels; or one number.
        p: The probability of a picture to be blurred.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, or the images are too small for the kernel.

    Example:
        What becomes of a single white pixel:

        >>> import numpy as np
        >>> from ironstep.augment import GaussianBlur
        >>> images = np.float32([0, 0, 1, 0, 0]).reshape(1, 1, 5, 1)
        >>> GaussianBlur((3, 1), sigma=1.0)(0, images).ravel().round(3)
        array([0.   , 0.274, 0.452, 0.274, 0.   ], dtype=float32)

    References:
        Chen et al., A simple framework for contrastive learning of visual representations, ICML 2020, appendix A
        (sigma from 0.1 to 2, a kernel of a tenth of the picture, p = 0.5).
    """

    def __init__(
        self, kernel_size: int | Sequence[int], sigma: float | Sequence[float] = (0.1, 2.0), p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        self.kernel_size = extent("kernel_size", kernel_size)
        if not all(length % 2 for length in self.kernel_size):
            raise ValueError(f"kernel_size must be odd, got {kernel_size!r}")
        self.sigma = spread("sigma", sigma, POSITIVE)

    def _size(self, shape: Shape) -> Shape:
        inhabited("GaussianBlur", shape)
        width, height = self.kernel_size
        if width // 2 >= shape.w or height // 2 >= shape.h:
            raise ValueError(
                f"kernel_size must be at most {2 * shape.w - 1} wide and {2 * shape.h - 1} high for images of "
                f"{shape.h} x {shape.w}, got (width, height) = {self.kernel_size}"
            )
        return shape

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        return {"sigma": between(draw.uniform(1)[:, 0], *ends(self.sigma))}

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        sigma = rows(params, "sigma", samples(params))
        refuse(sigma <= 0, "sigma", "above 0", sigma)
        width, height = self.kernel_size
        return Stage("blur", np.stack([sigma, sigma], axis=1), [float(height), float(width)])


class Normalize(Transform):
    r"""Brings pictures to the scale that a model takes; uint8 becomes float32.

    $$y_c = \frac{x_c - \mu_c}{\sigma_c}$$

    for channel $c$, with $x / 255$ for x if it is uint8. Computed in float32, in this order; pictures of floats keep
    their type. The values of ImageNet are `mean=(0.485, 0.456, 0.406)` and `std=(0.229, 0.224, 0.225)`. Names are
    torchvision's, where uint8 must be converted before (`ToDtype(torch.float32, scale=True)`). In a chain it comes
    after the transforms that need values in 0 .. 1.

    Args:
        mean: $\mu$, in units of the full range (0 .. 1, also for uint8): a number, or one for each channel.
        std: $\sigma$, likewise, above 0.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, or there is not one number for each channel of the images.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import Normalize
        >>> Normalize(mean=0.5, std=0.25)(0, np.uint8([0, 51, 255]).reshape(1, 1, 3, 1)).ravel()
        array([-2. , -1.2,  2. ], dtype=float32)

    References:
        LeCun et al., Efficient backprop, in Neural networks: tricks of the trade, 1998, section 4.3.
    """

    _leaves_unit = _makes_floats = True

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        self.mean: Values = values("mean", mean)
        self.std: Values = values("std", std, POSITIVE_SINGLE)

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        settings = per_channel("mean", self.mean, shape.c) + per_channel("std", self.std, shape.c)
        return Stage("normalize", np.empty((samples(params), 0)), settings)
