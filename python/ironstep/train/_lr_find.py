"""The learning-rate range test."""

from __future__ import annotations

import copy
import math
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..functional._arrays import POSITIVE, count, number
from ..optim import Optimizer
from ..optim._hyper import BELOW_ONE, Limit, at
from ._fit import metrics_of
from ._state import is_stateful, restore, snapshot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ABOVE_ONE = Limit(math.nextafter(1.0, 2.0), math.inf, "above 1 (inf is allowed)")

METHODS = ("valley", "steepest", "minimum")

ROUNDING = 1e-6
"""A loss that falls by less than this, relative to its size, has not fallen."""

SKIP_END = 5
"""The last points are those of the rise that ended the sweep (fastai)."""


class LRFind:
    """What `lr_find` found.

    Attributes:
        lrs: The learning rates, float64.
        losses: The loss at each. The last is not finite if that ended the sweep.
        smoothed: Their moving average, with the correction for its beginning; NaN where the loss is not finite.
        stopped: Why the sweep ended, in words.
    """

    def __init__(
        self,
        lrs: NDArray[np.float64],
        losses: NDArray[np.float64],
        smoothed: NDArray[np.float64],
        stopped: str,
        num: int,
    ) -> None:
        """`num` is how many points the sweep was to have."""
        self.lrs = lrs
        self.losses = losses
        self.smoothed = smoothed
        self.stopped = stopped
        self._skip = num // 10

    def suggest(self, method: str = "valley") -> float:
        """A learning rate to begin with, from the smoothed losses.

        The first tenth of the sweep, where the average begins, and the last five points, where the loss explodes, are
        not looked at, and no loss that is not finite.

        Args:
            method: `"valley"`: the middle of the longest descent (of the longest decreasing subsequence), as in fastai;
                a robust choice. `"steepest"`: where the loss falls fastest per relative change of the learning rate.
                `"minimum"`: a tenth of the learning rate at the lowest loss.

        Returns:
            The learning rate of the largest group; others keep their ratio to it.

        Raises:
            ValueError: The method is unknown, there are too few points, or the loss never fell, but for its rounding.
        """
        if method not in METHODS:
            raise ValueError(f"method must be 'valley', 'steepest' or 'minimum', got {method!r}")
        finite = np.isfinite(self.smoothed)
        lrs, losses = (values[finite][self._skip : -SKIP_END] for values in (self.lrs, self.smoothed))
        if len(lrs) < 3:
            raise ValueError(
                f"a suggestion needs at least {self._skip + SKIP_END + 3} points with a finite loss, but there are "
                f"{int(finite.sum())} ({self.stopped}); use a smaller min_lr or max_lr, or a larger num"
            )
        if not losses.min() < losses[0] - ROUNDING * np.abs(losses).max():
            raise ValueError(
                f"no learning rate can be suggested: the loss never fell between {lrs[0]:.3g} and {lrs[-1]:.3g}; use a "
                "larger max_lr or a smaller min_lr, and look at plot()"
            )
        if method == "minimum":
            return float(lrs[losses.argmin()]) / 10.0
        if method == "steepest":
            return float(lrs[:-1][(np.diff(losses) / np.diff(np.log(lrs))).argmin()])
        return float(lrs[_valley(losses)])

    def plot(self, path: str | os.PathLike[str] | None = None, *, ax: Axes | None = None) -> Axes:
        """Draws the losses over the learning rates, with the suggestions; needs matplotlib.

        Args:
            path: A file to save the figure in; its ending says the format.
            ax: Where to draw. By default a figure of its own, made without `pyplot`, so that no window opens.

        Returns:
            The axes. Their figure is `.figure`.

        Raises:
            ModuleNotFoundError: matplotlib is not there.
        """
        if ax is None:
            from .._figure import new_figure

            ax = new_figure(6.4, 4.0).subplots()
        ax.plot(self.lrs, self.losses, color="0.75", linewidth=1.0, label="loss")
        ax.plot(self.lrs, self.smoothed, color="tab:blue", label="smoothed")
        for method, marker in zip(METHODS, "o^s", strict=True):
            try:
                lr = self.suggest(method)
            except ValueError:
                break  # For one as for all: too few points, or no descent.
            loss = np.interp(math.log(lr), np.log(self.lrs), self.smoothed)
            ax.plot([lr], [loss], marker, label=f"{method}: {lr:.2g}")
        finite = self.smoothed[np.isfinite(self.smoothed)]
        if len(finite):
            low = float(min(finite.min(), self.losses[np.isfinite(self.losses)].min()))
            high = float(finite[: max(1, len(finite) - SKIP_END)].max())
            margin = 0.1 * (high - low) or 0.1
            ax.set_ylim(low - margin, high + margin)  # Else the explosion at the end hides the rest.
        ax.set_xscale("log")
        ax.set_xlabel("learning rate")
        ax.set_ylabel("loss")
        ax.legend()
        if path is not None:
            ax.figure.savefig(path)  # type: ignore[union-attr]
        return ax

    def __repr__(self) -> str:
        span = f" from {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}" if len(self.lrs) else ""
        return f"LRFind({len(self.lrs)} learning rates{span}; {self.stopped})"


def _valley(losses: NDArray[np.float64]) -> int:
    """The middle of the longest decreasing subsequence; as in fastai it begins as far from its end as it is long."""
    end = 0
    ends: list[float] = []
    """For each length the best loss, with the sign changed, that a decreasing subsequence of it has ended with."""
    for i, height in enumerate((-losses).tolist()):
        before = bisect_left(ends, height)
        if before == len(ends):
            end = i
            ends.append(height)
        else:
            ends[before] = height
    start = end - len(ends)
    section = (end - start) / 3
    return max(0, start + int(section) + int(section / 2))


def lr_find(
    step: Callable[..., Any],
    batches: Iterable[Any],
    opt: Optimizer,
    *,
    state: Any,
    min_lr: float = 1e-7,
    max_lr: float = 10.0,
    num: int = 100,
    mode: str = "exp",
    smooth: float = 0.98,
    diverge: float = 4.0,
) -> LRFind:
    r"""The learning-rate range test: trains for a moment with rising learning rates, looks at the loss, puts all back.

    In step $i = 0 \dots n-1$, with $a$ = `min_lr`, $b$ = `max_lr`, $n$ = `num`, the learning rate is

    $$\gamma_i = a\,(b/a)^{i/(n-1)} \quad\text{or, with mode="linear",}\quad \gamma_i = a + (b - a)\,i/(n-1)$$

    and the loss is smoothed, $s_i = \beta s_{i-1} + (1-\beta) L_i$ with $\beta$ = `smooth`, and $s_i / (1 -
    \beta^{i+1})$ is looked at. The sweep ends early where this rises above `diverge` times its lowest value (for a
    negative one, as far above it), or where the loss, or a gradient with `nonfinite="raise"`, is not finite.

    Afterwards the parameters, the optimiser (with its hyperparameters, also those that are functions of the step), what
    `state` holds and the position of the batches are what they were, to the bit; also when `step` raises an error or is
    interrupted, and of the rest also when one of these refuses what it was. The arrays stay the same objects.
    Floating-point warnings are off while it runs.

    Args:
        step: As for `fit`: forward, backward, `opt.step`; returns the loss, or a dict with `"loss"`.
        batches: As for `fit`. Begun anew as often as needed.
        opt: The optimiser that `step` steps. If its groups have different learning rates they keep their ratios, and
            the largest is $\gamma_i$. Frozen groups do not count.
        state: Everything else that `step` changes, of the kinds that `save_state` takes: the model, for its running
            statistics and dropout, generators of random numbers. One object, or a dict of them as for `fit`.
        min_lr: The first learning rate, above 0.
        max_lr: The last.
        num: How many, at least 2.
        mode: "exp" or "linear".
        smooth: $\beta$; 0 for none.
        diverge: See above; `inf` goes on whatever the loss does.

    Returns:
        The curve; see `LRFind.suggest` and `LRFind.plot`.

    Raises:
        ValueError: An argument is out of range, or `batches` gave nothing.
        TypeError: An argument is of a wrong type, or `step` returned no loss.

    Example:
        >>> import numpy as np
        >>> from ironstep import train
        >>> from ironstep.optim import SGD
        >>> w = np.array([4.0, -2.0])
        >>> opt = SGD(w, lr=0.1)
        >>> def step(target):
        ...     error = w - target
        ...     opt.step(error)
        ...     return 0.5 * error @ error
        >>> found = train.lr_find(step, [np.zeros(2)], opt, state=w, min_lr=1e-4)
        >>> 0.01 < found.suggest() < 1
        True
        >>> w, opt.steps, opt.param_groups[0]["lr"]
        (array([ 4., -2.]), 0, 0.1)

    References:
        Smith, Cyclical learning rates for training neural networks, arXiv 1506.01186, section 3.3. Howard and Gugger,
        fastai: a layered API for deep learning, arXiv 2002.04688 (the valley).
    """
    if not callable(step):
        raise TypeError(f"step must be a function of a batch, got {step!r}")
    if not isinstance(opt, Optimizer):
        raise TypeError(f"opt must be an optimiser of ironstep.optim, got {type(opt).__name__}")
    if isinstance(batches, Iterator) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be something that can be iterated over again, such as Batches or a list, got "
            f"{type(batches).__name__}"
        )
    min_lr, max_lr = number("min_lr", min_lr, POSITIVE), number("max_lr", max_lr, POSITIVE)
    if not min_lr < max_lr:
        raise ValueError(f"max_lr must be above min_lr, {min_lr!r}, got {max_lr!r}")
    num = count("num", num, 2)
    if mode not in ("exp", "linear"):
        raise ValueError(f"mode must be 'exp' or 'linear', got {mode!r}")
    smooth, diverge = number("smooth", smooth, BELOW_ONE), number("diverge", diverge, ABOVE_ONE)
    from ..schedules import piecewise

    shape = "exponential" if mode == "exp" else "linear"
    lrs = piecewise([num - 1], [min_lr, max_lr], interpolation=shape)(np.arange(num))

    groups = opt.param_groups
    given = [group["lr"] for group in groups]
    now = [at("lr", lr, steps, group.limits["lr"]) for lr, steps, group in zip(given, opt._steps, groups, strict=True)]
    active = [i for i, group in enumerate(groups) if not group.frozen]
    largest = max((now[i] for i in active), default=0.0)
    ratios = {i: now[i] / largest if largest > 0.0 else 1.0 for i in active}
    from ..data import Batches

    kept = [(part, snapshot(part, name), name) for part, name in _parts(state, "state")]
    if isinstance(batches, Batches):
        # Their state is where a loop was left; where the next begins may be elsewhere. So these are not touched at all.
        batches = copy.copy(batches)
    elif is_stateful(batches):
        kept.append((batches, snapshot(batches, "batches"), "batches"))
    params = [group["params"] for group in groups]
    kept += [(params, snapshot(params, "params"), "params"), (opt, snapshot(opt, "opt"), "opt")]
    losses: list[float] = []
    smoothed: list[float] = []
    stopped = "the sweep came to its end"
    best, average = math.inf, 0.0
    endless = _endless(batches)
    try:
        with np.errstate(all="ignore"):
            for i, lr in enumerate(lrs.tolist()):
                for i_group, ratio in ratios.items():
                    groups[i_group]["lr"] = lr * ratio
                batch = next(endless)
                try:
                    result = step(*batch) if isinstance(batch, (tuple, list)) else step(batch)
                    loss = _loss(result)
                except FloatingPointError:
                    loss = math.nan
                losses.append(loss)
                if not math.isfinite(loss):
                    smoothed.append(math.nan)
                    stopped = f"the loss was not finite at a learning rate of {lr:.3g}"
                    break
                average = smooth * average + (1.0 - smooth) * loss
                value = average / (1.0 - _core.pow(smooth, i + 1.0))
                smoothed.append(value)
                if i > 0 and value > best + (diverge - 1.0) * abs(best):
                    stopped = f"the loss rose above {diverge:g} times its lowest value at a learning rate of {lr:.3g}"
                    break
                best = min(best, value)
    finally:
        _put_back(endless.close, groups, given, kept)
    n = len(losses)
    return LRFind(lrs[:n], np.array(losses), np.array(smoothed), stopped, num)


def _parts(obj: Any, name: str) -> Iterator[tuple[Any, str]]:
    """The objects in a nest, each of which may refuse for itself."""
    if isinstance(obj, Mapping) and not is_stateful(obj):
        for key, item in obj.items():
            yield from _parts(item, f"{name}.{key}")
    elif isinstance(obj, (list, tuple)) and not is_stateful(obj):
        for i, item in enumerate(obj):
            yield from _parts(item, f"{name}.{i}")
    else:
        yield obj, name


def _put_back(close: Callable[[], Any], groups: Sequence[Any], lrs: Sequence[Any], kept: Sequence[Any]) -> None:
    """All of it, also if something refuses; the first error is raised then."""

    def put_lrs() -> None:
        for group, lr in zip(groups, lrs, strict=True):
            group["lr"] = lr

    # The functions first: the optimiser's state names them and would not fit.
    actions: list[Callable[[], Any]] = [close, put_lrs, *(partial(restore, *each) for each in kept)]
    first: BaseException | None = None
    for action in actions:
        try:
            action()
        except BaseException as error:  # noqa: PERF203
            first = first or error
    if first is not None:
        raise first


def _endless(batches: Iterable[Any]) -> Any:
    """Batch after batch, for ever."""
    while True:
        iterator = iter(batches)
        none = True
        try:
            for batch in iterator:
                none = False
                yield batch
        finally:
            getattr(iterator, "close", lambda: None)()  # So that no thread goes on making batches.
        if none:
            raise ValueError("batches must give at least one batch, got none")


def _loss(result: Any) -> float:
    numbers: Mapping[str, float] = {} if result is None else metrics_of(result, "step must return metrics, which")
    if "loss" not in numbers:
        raise ValueError(f"step must return the loss, or a dict with 'loss', for lr_find, got {result!r}")
    return numbers["loss"]
