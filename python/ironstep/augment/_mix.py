"""Transforms that mix each picture of a batch with another one, and their labels likewise."""

from __future__ import annotations

import numpy as np

from ..functional._arrays import Array, count, number
from ..optim._hyper import Limit
from ._arguments import refuse, samples, whole
from ._base import Draw, Mix, PairTransform, Shape, choice, rows

__all__ = ["CutMix", "MixUp"]

ALPHA = Limit(1e-3, 1e3, "from 0.001 to 1000")

MODES = ("batch", "pair", "sample")


class _Mix(PairTransform):
    """What both share."""

    def __init__(self, alpha: float = 1.0, num_classes: int | None = None, mode: str = "batch", p: float = 1.0) -> None:
        super().__init__(p=p)
        self.alpha = number("alpha", alpha, ALPHA)
        self.num_classes = None if num_classes is None else count("num_classes", num_classes)
        self.mode = choice("mode", mode, MODES)

    def _partners(self, params: dict[str, Array]) -> Array:
        n = samples(params)
        partner = rows(params, "partner", n, integer=True)
        refuse((partner < 0) | (partner >= n), "partner", f"a sample of the batch, from 0 to {n - 1}", partner)
        return partner


class MixUp(_Mix):
    r"""Mixes each picture of a batch with another one, and their labels in the same ratio.

    $$\tilde x_i = \lambda x_i + (1 - \lambda) x_{\pi(i)}, \qquad
      \tilde y_i = \lambda y_i + (1 - \lambda) y_{\pi(i)}, \qquad \lambda \sim \mathrm{Beta}(\alpha, \alpha)$$

    where $y$ are the labels as soft targets, of shape (n, classes): int labels become one-hot float32 first. A loss
    takes them as they are (`ironstep.functional.cross_entropy` has targets of probabilities). $\pi(i)$ is
    the sample before, the first one's is the last; in "pair" mode it is the mirrored one, $n - 1 - i$. So a batch must
    be shuffled. A sample that is its own partner stays as it is.

    With `mode="batch"` and $\alpha = 1$ this is torchvision's `MixUp`, whose names and defaults these are. timm's mixes
    mirrored samples in all of its modes "batch", "pair" and "elem" (our "sample"), and smooths labels as well; Keras
    has $\alpha = 0.2$ and one $\lambda$ for each sample. The paper recommends $\alpha$ from 0.1 to 0.4 for ImageNet
    and 1 for CIFAR.

    What a sample becomes depends on its partner, so unlike with other transforms, on how the batch is made up.

    `sample` gives `partner` and `lam`, each of shape (n,).

    Args:
        alpha: $\alpha$, from 0.001 (hardly any mixing) to 1000 (nearly always half and half).
        num_classes: Classes of int labels, which are from 0 to `num_classes` - 1. `None` for soft targets.
        mode: Who has a $\lambda$ of their own: the "batch", each "pair" of samples, or each "sample".
        p: The probability of mixing, for each of them.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, or labels do not fit `num_classes`.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import MixUp
        >>> images = np.float32([0, 1]).reshape(2, 1, 1, 1)
        >>> mixup = MixUp(num_classes=2)
        >>> params = mixup.sample(0, images)
        >>> params["lam"][:] = 0.75, 0.5
        >>> mixed, targets = mixup.apply(params, images, np.array([0, 1]))
        >>> mixed.ravel()
        array([0.25, 0.5 ], dtype=float32)
        >>> targets
        array([[0.75, 0.25],
               [0.5 , 0.5 ]], dtype=float32)

    References:
        Zhang et al., mixup: beyond empirical risk minimization, ICLR 2018, arXiv 1710.09412.
    """

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        lam = self._shared(draw.beta(self.alpha, self.alpha))
        return {"partner": self._partner(draw.n), "lam": lam}

    def _weights(self, params: dict[str, Array], shape: Shape) -> Mix:
        partner = self._partners(params)
        n = len(partner)
        lam = rows(params, "lam", n)
        refuse((lam < 0) | (lam > 1), "lam", "from 0 to 1", lam)
        # Of itself, lambda x + (1 - lambda) x is x but for rounding.
        lam = np.where(partner == np.arange(n), 1.0, lam)
        return Mix(partner, lam, np.tile(np.array([0, 0, shape.h, shape.w], np.int64), (n, 1)), lam)


class CutMix(_Mix):
    r"""Puts a box of another picture of the batch into each, and mixes their labels by the box's share.

    With $\lambda \sim \mathrm{Beta}(\alpha, \alpha)$, the middle $(c_x, c_y)$ uniform on the pixels of a picture of
    $H$ rows and $W$ columns, and $\lfloor \cdot \rfloor$ rounding down, the box has the columns

    $$c_x - \lfloor \tfrac W 2 \sqrt{1 - \lambda} \rfloor \ \le\ i\ <\
      c_x + \lfloor \tfrac W 2 \sqrt{1 - \lambda} \rfloor$$

    as far as the picture has them, and rows likewise. Then $\lambda$ is computed again from what is left of the box:

    $$\lambda' = 1 - \frac{\text{pixels in the box}}{H W}, \qquad
      \tilde y_i = \lambda' y_i + (1 - \lambda') y_{\pi(i)}$$

    where $y$ are the labels as soft targets; these, $\pi$, and the modes are as for `MixUp`. Both pictures of a "pair"
    exchange the same box. All of it is torchvision's with `mode="batch"`; timm has the mirrored partner, and boxes of
    $\lfloor W \sqrt{1 - \lambda} \rfloor$ columns, so also odd ones.

    What a sample becomes depends on its partner, so unlike with other transforms, on how the batch is made up.

    `sample` gives `partner`, of shape (n,), `lam`, $\lambda'$, of shape (n,), and `box`: top, left, bottom, right,
    of shape (n, 4), in pixels. `apply` needs `partner` and `box`; `lam` follows from them.

    Args:
        alpha: $\alpha$, from 0.001 (no box, or all of the picture) to 1000 (nearly always half of it).
        num_classes: Classes of int labels, which are from 0 to `num_classes` - 1. `None` for soft targets.
        mode: Who has a box of their own: the "batch", each "pair" of samples, or each "sample".
        p: The probability of mixing, for each of them.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, or labels do not fit `num_classes`.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import CutMix
        >>> images = np.repeat(np.uint8([0, 1]), 64).reshape(2, 8, 8, 1)
        >>> mixed, targets = CutMix(num_classes=2, mode="sample")(0, images, np.array([0, 1]))
        >>> bool((targets[:, 1] == mixed.mean(axis=(1, 2, 3))).all())
        True

    References:
        Yun et al., CutMix: regularization strategy to train strong classifiers with localizable features, ICCV 2019,
        arXiv 1905.04899.
    """

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        # The same numbers of each that shares them, so that boxes are equal.
        u = self._shared(draw.uniform(2))
        half = 0.5 * np.sqrt(1.0 - self._shared(draw.beta(self.alpha, self.alpha)))
        box = np.empty((draw.n, 4), np.int64)
        for i, length in enumerate(shape[:2]):
            middle, reach = whole(u[:, i], length), np.floor(half * length).astype(np.int64)
            box[:, i], box[:, i + 2] = np.maximum(middle - reach, 0), np.minimum(middle + reach, length)
        return {"partner": self._partner(draw.n), "lam": _kept(box, shape), "box": box}

    def _weights(self, params: dict[str, Array], shape: Shape) -> Mix:
        partner = self._partners(params)
        n = len(partner)
        box = rows(params, "box", n, 4, integer=True)
        top, left, bottom, right = box.T
        bad = (top < 0) | (bottom < top) | (bottom > shape.h) | (left < 0) | (right < left) | (right > shape.w)
        refuse(bad, "box", f"(top, left, bottom, right) in the images of {shape.h} x {shape.w} pixels", box)
        lam = np.where(partner == np.arange(n), 1.0, _kept(box, shape))
        return Mix(partner, np.zeros(n), box, lam)


def _kept(box: Array, shape: Shape) -> Array:
    """The share of each picture that is outside of its box."""
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    kept: Array = 1.0 - area / max(1, shape.h * shape.w)
    return kept
