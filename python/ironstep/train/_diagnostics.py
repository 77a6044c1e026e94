"""What the gradients say: their norms, the batch size that is worth having, how sharp a minimum is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ..functional._arrays import FINITE, POSITIVE, Array, array, compute, contiguous, number
from ..optim._hyper import BELOW_ONE, NOT_NEGATIVE_OR_INF, UNIT
from ._state import count


def squared_norm(values: Array) -> float:
    """The sum of squares of one array, in the core: the same bits on every machine."""
    return _core.sum_of_squares(contiguous(values, compute(values.dtype)))


def total(numbers: Sequence[float]) -> float:
    """Their sum by the tree of the core."""
    return _core.tree_sum(np.array(numbers, np.float64)) if numbers else 0.0


def gradient_norms(grads: Any) -> dict[str, float]:
    r"""The 2-norm of each gradient, by name, and of all together under `"total"`.

    $$\|g\|_2 = \sqrt{\textstyle\sum_i g_i^2}$$

    Args:
        grads: An array, or a nest of dicts, lists and tuples of arrays, such as `model.grads`. None (a frozen group) is
            left out.

    Returns:
        Names are the way to an array, joined by dots (`"0.weight"`); an array alone has no name and gives the total
        only. The total is what `step(..., grad_norm=True)` reports. Not finite if a gradient is not.

    Raises:
        TypeError: Something is no array of floats.
        ValueError: A gradient is called `total`, or two have the same name.

    Example:
        >>> import numpy as np
        >>> from ironstep import train
        >>> train.gradient_norms({"w": np.array([3.0, 4.0]), "b": np.array([12.0])})
        {'b': 12.0, 'w': 5.0, 'total': 13.0}

    References:
        Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, arXiv 1211.5063.
    """
    tree = _core.Tree(grads, "grads")
    squares: dict[str, float] = {}
    for key, name, leaf in zip(tree.keys(), tree.names("grads"), tree.leaves, strict=True):
        if leaf is None:
            continue
        key = re.sub(r"\\(.)", r"\1", key)
        if key in squares or key == "total":
            raise ValueError(
                f"each gradient must have a name of its own, and none may be 'total', but {name} is called {key!r} too"
            )
        squares[key] = squared_norm(array(leaf, name))
    norms = {key: math.sqrt(square) for key, square in squares.items() if key}
    return norms | {"total": math.sqrt(total(list(squares.values())))}


class GradientNoiseScale:
    r"""The simple gradient noise scale: about the critical batch size, above which a larger one no longer pays.

    With $G$ the true gradient and $\Sigma$ the covariance of the gradients of single samples,

    $$B_\mathrm{simple} = \operatorname{tr}\Sigma \,/\, |G|^2.$$

    Both are estimated without bias from the squared norms of gradients at two batch sizes, $B_\mathrm{small}$ and
    $B_\mathrm{big}$, since $E|G_B|^2 = |G|^2 + \operatorname{tr}\Sigma / B$:

    $$|G|^2 \approx \frac{B_\mathrm{big} |G_\mathrm{big}|^2 - B_\mathrm{small} |G_\mathrm{small}|^2}
    {B_\mathrm{big} - B_\mathrm{small}}, \qquad
    \operatorname{tr}\Sigma \approx \frac{|G_\mathrm{small}|^2 - |G_\mathrm{big}|^2}
    {1/B_\mathrm{small} - 1/B_\mathrm{big}}$$

    The ratio of two noisy numbers is biased, so each has a moving average of its own, with Adam's correction for its
    beginning, and `value` is the ratio of these. Well below `value` twice the batch size gives nearly the same progress
    in half the steps; well above it the additional samples are wasted. It grows in the course of a training.

    Args:
        decay: Share of the averages that is kept at each update.

    Raises:
        ValueError: The decay is out of range.

    Example:
        >>> from ironstep import train
        >>> noise = train.GradientNoiseScale()
        >>> noise.update([9.0, 11.0], 6.0, small_batch=8, big_batch=16)  # squared norms
        32.0
        >>> noise.squared_norm, noise.trace
        (2.0, 64.0)

    References:
        McCandlish et al., An empirical model of large-batch training, arXiv 1812.06162, appendix A.1.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = number("decay", decay, BELOW_ONE)
        self.updates = 0
        """How many measurements are in the averages."""
        self._weight = 0.0
        self._squared_norm = 0.0
        self._trace = 0.0

    def update(
        self,
        small_sq_norms: float | Sequence[float],
        big_sq_norm: float,
        small_batch: float | Sequence[float],
        big_batch: float,
    ) -> float:
        """Takes one measurement into the averages.

        Args:
            small_sq_norms: Squared norm of the gradient of a small batch, or those of several, which are averaged.
            big_sq_norm: Squared norm of the gradient of the big batch, such as all small ones together.
            small_batch: Samples in a small batch, or in each of them.
            big_batch: Samples in the big batch.

        Returns:
            `value`. A measurement that is not finite is left out.

        Raises:
            ValueError: A squared norm is negative, a batch size is not above 0, there is not one size or as many as
                norms, or the big batch is not larger than the small ones.
        """
        norms = [
            number("small_sq_norms", norm, NOT_NEGATIVE_OR_INF) if norm == norm else math.nan
            for norm in (small_sq_norms if isinstance(small_sq_norms, (list, tuple)) else [small_sq_norms])
        ]
        big_norm = number("big_sq_norm", big_sq_norm, NOT_NEGATIVE_OR_INF) if big_sq_norm == big_sq_norm else math.nan
        sizes = [
            number("small_batch", size, POSITIVE)
            for size in (small_batch if isinstance(small_batch, (list, tuple)) else [small_batch])
        ]
        big = number("big_batch", big_batch, POSITIVE)
        if not norms or len(sizes) not in (1, len(norms)):
            raise ValueError(
                f"small_batch must be one number or as many as small_sq_norms, {len(norms)}, got {len(sizes)}"
            )
        # E|G_i|^2 = |G|^2 + tr / B_i, so the mean over i belongs to the mean of 1 / B_i.
        inverse = math.fsum(1.0 / size for size in sizes) / len(sizes)
        if not big * inverse > 1.0:
            raise ValueError(f"big_batch must be larger than small_batch, {small_batch!r}, got {big_batch!r}")
        small_norm = total(norms) / len(norms)
        trace = (small_norm - big_norm) / (inverse - 1.0 / big)
        squared = big_norm - trace / big
        if math.isfinite(trace) and math.isfinite(squared):
            keep, take = self.decay, 1.0 - self.decay
            self.updates += 1
            self._weight = keep * self._weight + take
            self._trace = keep * self._trace + take * trace
            self._squared_norm = keep * self._squared_norm + take * squared
        return self.value

    @property
    def squared_norm(self) -> float:
        """The average of the estimates of $|G|^2$; NaN before the first. It may be negative while there are few."""
        return self._squared_norm / self._weight if self.updates else math.nan

    @property
    def trace(self) -> float:
        r"""The average of the estimates of $\operatorname{tr}\Sigma$; NaN before the first."""
        return self._trace / self._weight if self.updates else math.nan

    @property
    def value(self) -> float:
        """The noise scale, in samples: `trace / squared_norm`.

        Infinite if the gradient is lost in the noise (`squared_norm` is not above 0), NaN before the first update.
        """
        if not self.updates:
            return math.nan
        return self._trace / self._squared_norm if self._squared_norm > 0.0 else math.inf

    def state_dict(self) -> dict[str, Any]:
        """The averages, for `load_state_dict`."""
        return {
            "updates": self.updates,
            "weight": self._weight,
            "squared_norm": self._squared_norm,
            "trace": self._trace,
        }

    def load_state_dict(self, state_dict: Any) -> None:
        """Takes what `state_dict` gave. The decay stays the own one.

        Raises:
            ValueError: Something is missing or wrong. Nothing was changed.
        """
        names = list(GradientNoiseScale().state_dict())
        if not isinstance(state_dict, Mapping) or sorted(state_dict) != sorted(names):
            raise ValueError(f"state_dict must have {', '.join(names)}, got {state_dict!r}")
        updates = count("state_dict['updates']", state_dict["updates"], 0)
        weight = number("state_dict['weight']", state_dict["weight"], UNIT)
        squared_norm, trace = (number(f"state_dict[{name!r}]", state_dict[name], FINITE) for name in names[2:])
        self.updates, self._weight, self._squared_norm, self._trace = updates, weight, squared_norm, trace

    def __repr__(self) -> str:
        return f"GradientNoiseScale(decay={self.decay!r}): {self.value:.4g} after {self.updates} updates"


class Sharpness(NamedTuple):
    """What `sharpness` found."""

    loss: float
    """At the parameters."""
    sharpness: float
    """`worst_loss - loss`."""
    worst_loss: float
    """The largest that was met within `rho` of the parameters."""
    top_eigenvalue: float | None
    """The largest eigenvalue of the Hessian; None if it was not asked for."""


def sharpness(
    loss_and_grad: Callable[[], Any],
    params: Any,
    *,
    rho: float = 0.05,
    ascent_steps: int = 1,
    power_iterations: int = 20,
    seed: int = 0,
) -> Sharpness:
    r"""How sharp the minimum is that the parameters are in: how fast the loss rises around it.

    The sharpness of SAM: with $w$ = `params`, $g$ the gradient there and $\rho$ = `rho`,

    $$S = L(w + \rho\, g / |g|) - L(w),$$

    the first-order answer to Keskar's $\max_{|\epsilon| \le \rho} L(w + \epsilon) - L(w)$. With `ascent_steps` $n > 1$
    the ascent goes on: $n$ steps of length $\rho / n$, each along the gradient where it is, and the largest loss met
    counts.

    The top eigenvalue $\lambda$ of the Hessian $H$ by power iteration, with products from central differences of the
    gradient, $H v \approx (\nabla L(w + h v) - \nabla L(w - h v)) / 2h$ with $|v| = 1$, $h = \epsilon^{1/3} \max(1,
    |w|)$ and $\epsilon$ the precision of the parameters. It is the largest one, not the largest in size: if that is
    negative, a second run on $H - \lambda I$ follows. Gradient descent is stable for learning rates below $2 /
    \lambda$.

    The parameters are changed in place for each evaluation and put back at the end, to the bit, also after an error.
    Evaluate the same samples each time, without dropout, and with normalisation in inference mode
    (`model.eval()`), or the loss changes for other reasons than the parameters.

    Args:
        loss_and_grad: A function without arguments that returns the loss and the gradients, in a nest like `params`,
            at the values that the parameters have when it is called.
        params: An array, or a nest of arrays, such as `model.params`.
        rho: Radius, above 0. SAM uses 0.05.
        ascent_steps: How many steps the ascent takes, each with one evaluation.
        power_iterations: How many products with the Hessian, of two evaluations each (twice as many if a second run
            is needed); 0 leaves the eigenvalue out.
        seed: Of the direction in which the power iteration begins, and of the ascent where the gradient is 0.

    Returns:
        `Sharpness(loss, sharpness, worst_loss, top_eigenvalue)`.

    Raises:
        FloatingPointError: The gradient is not finite at a point that was visited.
        ValueError: An argument is out of range, or the gradients are not like the parameters.

    Example:
        The loss $\tfrac12 (x^2 + 10 y^2)$, which is steepest along $y$:

        >>> import numpy as np
        >>> from ironstep import train
        >>> w, curvature = np.array([0.0, 1.0]), np.array([1.0, 10.0])
        >>> def loss_and_grad():
        ...     return 0.5 * (curvature * w * w).sum(), curvature * w
        >>> found = train.sharpness(loss_and_grad, w, rho=0.1)
        >>> round(found.top_eigenvalue, 6), round(found.sharpness, 3)
        (10.0, 1.05)

    References:
        Foret et al., Sharpness-aware minimization for efficiently improving generalization, arXiv 2010.01412. Keskar et
        al., On large-batch training for deep learning: generalization gap and sharp minima, arXiv 1609.04836.
    """
    rho = number("rho", rho, POSITIVE)
    count("ascent_steps", ascent_steps, 1)
    count("power_iterations", power_iterations, 0)
    rng = np.random.default_rng(count("seed", seed, 0))
    tree = _core.Tree(params, "params")
    _core.Plan("sgd", tree, [], [0] * len(tree))  # Raises unless these are arrays that can be updated in place.
    leaves: list[Array] = tree.leaves
    names = tree.names("grads")
    before = [leaf.copy(order="K") for leaf in leaves]
    start = [leaf.astype(np.float64) for leaf in before]

    def at(offset: list[Array], scale: float) -> tuple[float, list[Array]]:
        """The loss and the gradient at `start + scale * offset`."""
        for leaf, first, direction in zip(leaves, start, offset, strict=True):
            leaf[...] = first + scale * direction
        return evaluate()

    def evaluate() -> tuple[float, list[Array]]:
        result = loss_and_grad()
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"loss_and_grad must return (loss, gradients), got {type(result).__name__}")
        grads = []
        for name, leaf, grad in zip(names, leaves, tree.flatten(result[1], "grads"), strict=True):
            values = array(grad, name)
            if values.shape != leaf.shape:
                raise ValueError(f"{name} must have shape {leaf.shape} like the parameter, got {values.shape}")
            grads.append(values.astype(np.float64))
        if not math.isfinite(norm(grads)):
            raise FloatingPointError(
                "the gradients of loss_and_grad must be finite, but near the parameters one is not"
            )
        return float(result[0]), grads

    def direction() -> list[Array]:
        return unit([rng.standard_normal(leaf.shape) for leaf in leaves])

    try:
        with np.errstate(all="ignore"):
            loss, grads = evaluate()
            offset = [np.zeros_like(first) for first in start]
            worst = -math.inf
            for _ in range(ascent_steps):
                ascent = unit(grads) if norm(grads) > 0.0 else direction()
                offset = [sum_ + up / ascent_steps for sum_, up in zip(offset, ascent, strict=True)]
                value, grads = at(offset, rho)
                worst = worst if value <= worst or math.isnan(worst) else value
            top = None
            if power_iterations:
                precision = max(float(_eps(leaf)) for leaf in leaves)
                h = precision ** (1.0 / 3.0) * max(1.0, norm(start))

                def product(v: list[Array]) -> list[Array]:
                    above, below = at(v, h)[1], at(v, -h)[1]
                    return [(a - b) / (2.0 * h) for a, b in zip(above, below, strict=True)]

                top = _power_iteration(product, direction(), power_iterations, 0.0)
                if top < 0.0:
                    top = _power_iteration(product, direction(), power_iterations, top)
    finally:
        for leaf, old in zip(leaves, before, strict=True):
            leaf[...] = old
    return Sharpness(loss, worst - loss, worst, top)


def _eps(leaf: Array) -> float:
    if leaf.dtype.name == "bfloat16":
        return 2.0**-7
    return float(np.finfo(leaf.dtype).eps)


def norm(arrays: list[Array]) -> float:
    """The 2-norm of all together."""
    return math.sqrt(total([squared_norm(values) for values in arrays]))


def unit(arrays: list[Array]) -> list[Array]:
    """Divided by their norm."""
    length = norm(arrays)
    return [values / length for values in arrays]


def _power_iteration(
    product: Callable[[list[Array]], list[Array]], v: list[Array], iterations: int, shift: float
) -> float:
    """The eigenvalue of H that is farthest from `shift`."""
    value = 0.0
    for _ in range(iterations):
        image = [h - shift * old for h, old in zip(product(v), v, strict=True)]
        value = total([_core.tree_sum((a * b).ravel()) for a, b in zip(v, image, strict=True)])
        if norm(image) == 0.0:
            break
        v = unit(image)
    return value + shift
