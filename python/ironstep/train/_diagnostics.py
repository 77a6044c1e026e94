"""What the gradients say: their norms, the batch size that is worth having, how sharp a minimum is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ..functional._arrays import FINITE, POSITIVE, Array, array, compute, contiguous, count, is_float, number
from ..optim._hyper import BELOW_ONE, NOT_NEGATIVE_OR_INF, UNIT


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
            small_sq_norms: Squared norm of the gradient of a small batch, or those of several (a list, or an array of
                one axis), which are averaged.
            big_sq_norm: Squared norm of the gradient of the big batch, such as all small ones together.
            small_batch: Samples in a small batch, or in each of them.
            big_batch: Samples in the big batch.

        Returns:
            `value`. A measurement that is not finite is left out.

        Raises:
            ValueError: A squared norm is negative, a batch size is not above 0, there is not one size or as many as
                norms, or the big batch is not larger than the small ones.
        """
        norms = [_square("small_sq_norms", norm) for norm in _several("small_sq_norms", small_sq_norms)]
        big_norm = _square("big_sq_norm", big_sq_norm)
        sizes = [number("small_batch", size, POSITIVE) for size in _several("small_batch", small_batch)]
        big = number("big_batch", big_batch, POSITIVE)
        if not norms or len(sizes) not in (1, len(norms)):
            raise ValueError(
                f"small_batch must be one number or as many as small_sq_norms, {len(norms)}, got {len(sizes)}"
            )
        # E|G_i|^2 = |G|^2 + tr / B_i, so the mean over i belongs to the mean of 1 / B_i.
        inverse = sum(1.0 / size / len(sizes) for size in sizes)
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


def _several(name: str, values: Any) -> list[Any]:
    """The numbers that are given, one or more."""
    if isinstance(values, np.ndarray) and values.ndim:
        if values.ndim > 1:
            raise ValueError(f"{name} must be a number, a list, or an array of one axis, got shape {values.shape}")
        return values.tolist()  # type: ignore[no-any-return]
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _square(name: str, value: Any) -> float:
    is_nan = isinstance(value, (float, np.floating)) and math.isnan(value)
    return math.nan if is_nan else number(name, value, NOT_NEGATIVE_OR_INF)


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
    eigenvalue_error: float | None
    """An eigenvalue of the Hessian is at most this far from `top_eigenvalue`, but for the error of the differences."""


def sharpness(
    loss_and_grad: Callable[[], Any],
    params: Any,
    *,
    rho: float = 0.05,
    ascent_steps: int = 1,
    iterations: int = 20,
    seed: int = 0,
) -> Sharpness:
    r"""How sharp the minimum is that the parameters are in: how fast the loss rises around it.

    The sharpness of SAM: with $w$ = `params`, $g$ the gradient there and $\rho$ = `rho`,

    $$S = L(w + \rho\, g / |g|) - L(w),$$

    the first-order answer to Keskar's $\max_{|\epsilon| \le \rho} L(w + \epsilon) - L(w)$. With `ascent_steps` $n > 1$
    the ascent goes on: $n$ steps of length $\rho / n$, each along the gradient where it is, and the largest loss met
    counts.

    The top eigenvalue $\lambda$ of the Hessian $H$ is the largest one of its projection to $v, Hv, H^2 v, \ldots$ with
    a random $v$ (Lanczos's iteration in float64, with all directions kept orthogonal). The products are central
    differences of the gradient, $H v \approx (\nabla L(w + h v) - \nabla L(w - h v)) / 2h$ with $|v| = 1$, $h =
    \epsilon^{1/3} \max(1, |w|)$ and $\epsilon$ the precision of the parameters. It is the largest eigenvalue, not the
    largest in size; more `iterations` bring it up to the true one from below. Its error bound is the residual $|H y -
    \lambda y|$ of its vector $y$: if it is small, $\lambda$ is an eigenvalue, and almost certainly the top one.
    Gradient descent is stable for learning rates below $2 / \lambda$.

    The iteration keeps `iterations` float64 vectors of the size of the parameters: 160 bytes per parameter for 20.

    The parameters are changed in place for each evaluation and put back at the end, to the bit, also after an error.
    Evaluate the same samples each time, without dropout, and with normalisation in inference mode
    (`model.eval()`), or the loss changes for other reasons than the parameters.

    Args:
        loss_and_grad: A function without arguments that returns the loss and the gradients, in a nest like `params`,
            at the values that the parameters have when it is called.
        params: An array, or a nest of arrays, such as `model.params`.
        rho: Radius, above 0. SAM uses 0.05.
        ascent_steps: How many steps the ascent takes, each with one evaluation.
        iterations: How many products with the Hessian, of two evaluations each; fewer if there are fewer parameters or
            the answer is there sooner. 0 leaves the eigenvalue out.
        seed: Of the direction in which the iteration begins, and of the ascent where the gradient is 0.

    Returns:
        `Sharpness(loss, sharpness, worst_loss, top_eigenvalue, eigenvalue_error)`.

    Raises:
        TypeError: The parameters are float16 or bfloat16, which such small changes would be lost in (give float32
            copies), or `loss_and_grad` does not return a number and arrays.
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
        >>> round(found.top_eigenvalue, 6), round(found.sharpness, 3), found.eigenvalue_error < 1e-6
        (10.0, 1.05, True)

    References:
        Foret et al., Sharpness-aware minimization for efficiently improving generalization, arXiv 2010.01412. Keskar et
        al., On large-batch training for deep learning: generalization gap and sharp minima, arXiv 1609.04836. Lanczos's
        iteration: Ghorbani et al., An investigation into neural net optimization via Hessian eigenvalue density, arXiv
        1901.10159.
    """
    rho = number("rho", rho, POSITIVE)
    count("ascent_steps", ascent_steps, 1)
    count("iterations", iterations, 0)
    rng = np.random.default_rng(count("seed", seed, 0))
    tree = _core.Tree(params, "params")
    _core.Plan("sgd", tree, [], [0] * len(tree))  # Raises unless these are arrays that can be updated in place.
    leaves: list[Array] = tree.leaves
    for leaf, name in zip(leaves, tree.names("params"), strict=True):
        if leaf.dtype.itemsize < 4:
            raise TypeError(
                f"{name} must be float32 or float64, got {leaf.dtype}, whose rounding would swallow the small changes; "
                "give float32 copies"
            )
    if not any(leaf.size for leaf in leaves):
        raise ValueError("params must have at least one element")
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
        return _loss(result[0]), grads

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
            top, error = None, None
            if iterations:
                precision = max(float(np.finfo(leaf.dtype).eps) for leaf in leaves)
                h = _core.pow(precision, 1.0 / 3.0) * max(1.0, norm(start))

                def product(v: Array) -> Array:
                    offset = split(v, start)
                    above, below = at(offset, h)[1], at(offset, -h)[1]
                    return flat([(a - b) / (2.0 * h) for a, b in zip(above, below, strict=True)])

                # Differences are as exact as this at best.
                top, error = _top_eigenvalue(product, flat(direction()), iterations, _core.pow(precision, 2.0 / 3.0))
    finally:
        for leaf, old in zip(leaves, before, strict=True):
            leaf[...] = old
    return Sharpness(loss, worst - loss, worst, top, error)


def _loss(value: Any) -> float:
    loss = np.asarray(value)
    if loss.shape != () or (loss.dtype.kind not in "iuf" and not is_float(loss.dtype)):
        raise TypeError(f"loss_and_grad must return a number as the loss, got {value!r}")
    return float(loss)


def norm(arrays: list[Array]) -> float:
    """The 2-norm of all together."""
    return math.sqrt(total([squared_norm(values) for values in arrays]))


def unit(arrays: list[Array]) -> list[Array]:
    """Divided by their norm."""
    length = norm(arrays)
    return [values / length for values in arrays]


def flat(arrays: list[Array]) -> Array:
    """All elements in one vector."""
    return np.concatenate([values.ravel() for values in arrays])


def split(vector: Array, like: list[Array]) -> list[Array]:
    """The vector in arrays of these shapes."""
    ends = np.cumsum([values.size for values in like])
    return [part.reshape(values.shape) for part, values in zip(np.split(vector, ends[:-1]), like, strict=True)]


def dot(a: Array, b: Array) -> float:
    """The inner product of two vectors."""
    return _core.tree_sum(a * b)


def _top_eigenvalue(
    product: Callable[[Array], Array], v: Array, iterations: int, precision: float
) -> tuple[float, float]:
    """The largest Ritz value of a symmetric H = `product` from the unit vector `v`, and its residual.

    Each product loses what it has along all directions so far, not only the last two: in floating point the short
    recursion forgets that they are orthogonal, and finds eigenvalues twice. What it loses is kept in `matrix`, since
    differences are not quite symmetric.
    """
    m = min(iterations, v.size)
    basis: list[Array] = []
    size = 0.0
    matrix = np.zeros((m + 1, m))  # H V = V matrix[:-1] + (next direction) matrix[-1]
    for j in range(m):
        basis.append(v)
        v = product(v)
        size = max(size, norm([v]))
        for _ in range(2):  # Once leaves rounding errors along them.
            for i, old in enumerate(basis):
                along = dot(old, v)
                matrix[i, j] += along
                v = v - along * old
        rest = norm([v])
        # Not even a direction is left, or one of nothing but errors.
        if j + 1 == m or rest <= precision * size:
            break
        matrix[j + 1, j] = rest
        v = v / rest
    matrix[j + 1, j] = rest
    square = matrix[: j + 1, : j + 1]
    values, vectors = np.linalg.eigh((square + square.T) / 2.0)
    y = vectors[:, -1]
    residual = matrix[: j + 2, : j + 1] @ y
    residual[: j + 1] -= values[-1] * y
    return float(values[-1]), float(np.linalg.norm(residual))
