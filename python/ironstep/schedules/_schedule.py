"""Schedules: what one is, and the functions that make them. The arithmetic is in the core."""

from __future__ import annotations

import functools
import itertools
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..functional._arrays import FINITE, NOT_NEGATIVE, POSITIVE, contiguous, flag, integer, number, unmasked
from ..functional._arrays import count as at_least
from ..optim._hyper import Limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

P = ParamSpec("P")
Spec: TypeAlias = "tuple[Any, ...]"
"""What the core makes a schedule of: a kind and its numbers, nested."""

WHOLE = 1 << 53
"""Whole numbers up to this one are exact in float64."""

LONGER = Limit(1.1, math.inf, "1, or finite and at least 1.1", closed=False)
AFTER = ("hold", "raise", "extend")
ANNEAL = {"cos": "cosine", "linear": "linear"}
MODES = ("triangular", "triangular2", "exp_range")
SHAPES = ("linear", "cosine", "sqrt", "exponential")
POINTS = 10_000
"""Most points of a drawn curve."""

MAKERS: dict[str, Callable[..., Any]] = {}
"""The functions that `parse` and pickle know, by name."""


class Schedule:
    """A number as a pure function of the step, in float64, with the same bits on every platform.

    Made by the functions of `ironstep.schedules`. A schedule has no state and knows no optimiser: any hyperparameter of
    any optimiser takes one, because it takes a callable of the number of steps taken so far, and a resumed run needs
    nothing but that number.

    `schedule(step)` is a float for a number, and a float64 array for an array of steps of any shape. Steps count from 0
    and may have fractions. `2 * schedule`, `schedule * other`, `schedule + 0.1` and `schedule + other` are schedules
    too. The repr is the call that made it, and `parse` reads it back. Schedules are equal if their numbers are.

    Raises:
        ValueError: A step is negative or not finite, or past the end of a schedule with `after="raise"`; or the value
            there is not finite, because something grows without end.
        TypeError: A step is no number and no array of numbers.

    Example:
        >>> import numpy as np
        >>> from ironstep import schedules
        >>> from ironstep.optim import AdamW
        >>> lr = schedules.warmup_cosine(0.1, steps=1000, warmup_steps=100)
        >>> opt = AdamW(np.ones(3), lr=lr)
        >>> lr
        warmup_cosine(0.1, steps=1000, warmup_steps=100)
        >>> lr(99), lr(1000)
        (0.1, 0.0)
        >>> (0.5 * lr)(np.array([0, 49, 99]))
        array([0.0005, 0.025 , 0.05  ])
    """

    __slots__ = ("_args", "_core", "_kwargs", "_name", "_spec", "_steps")

    # NumPy leaves a product or sum with one of its numbers to `__rmul__` and `__radd__`.
    __array_ufunc__ = None

    def __init__(self, spec: Spec, steps: int | None) -> None:
        """From what the core takes, and the number of steps that it covers."""
        self._spec = spec
        self._steps = steps
        self._core = _core.Schedule(spec)
        self._name = ""
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}

    @property
    def steps(self) -> int | None:
        """The number of steps that it covers, or None if it has no end.

        Example:
            >>> from ironstep import schedules
            >>> schedules.warmup(schedules.linear(1.0, 0.0, 90), 10).steps
            100
        """
        return self._steps

    @overload
    def __call__(self, step: float) -> float: ...

    @overload
    def __call__(self, step: NDArray[Any] | Sequence[Any] | range) -> NDArray[np.float64]: ...

    def __call__(self, step: Any) -> Any:
        """The value at a step, or the values at an array of steps."""
        if _is_number(step):
            try:
                t = float(step)
            except OverflowError:
                t = math.inf
            if not 0 <= t < math.inf:
                raise ValueError(f"step must be finite and at least 0, got {step!r}")
            value = self._core.at(t)
            if not math.isfinite(value):
                raise ValueError(f"{self._name}(...) is not finite at step {step!r}, but {value!r}")
            return value
        steps = unmasked(step, "step")
        if steps.dtype.kind not in "iuf":
            raise TypeError(f"step must be a number, or an array of integers or floats, got {step!r}")
        with np.errstate(over="ignore"):
            steps = contiguous(steps, np.float64)
        if steps.size and not (steps.min() >= 0 and steps.max() < math.inf):
            wrong = steps[~((steps >= 0) & (steps < math.inf))]
            raise ValueError(f"step must be finite and at least 0 in every element, got {float(wrong[0])!r}")
        out = np.empty(steps.shape)
        self._core.fill(steps.reshape(-1), out.reshape(-1))
        finite = np.isfinite(out)
        if not finite.all():
            at, value = float(steps[~finite][0]), float(out[~finite][0])
            raise ValueError(f"{self._name}(...) is not finite at step {at!r}, but {value!r}")
        return out

    def plot(
        self,
        steps: int | None = None,
        ax: Axes | None = None,
        path: str | os.PathLike[str] | None = None,
        label: str | None = None,
    ) -> Axes:
        """Draws it; needs matplotlib (`pip install "ironstep[plot]"`).

        Args:
            steps: How many steps to draw; by default as many as the schedule covers.
            ax: Where to draw, such as what the `plot` of another schedule returned. By default a figure of its own,
                made without `pyplot`, so that no window opens.
            path: A file to save the figure in; its ending says the format.
            label: The name of the curve in a legend.

        Returns:
            The axes. Their figure is `.figure`.

        Raises:
            ValueError: The schedule has no end and `steps` is not given.
            ModuleNotFoundError: There is no matplotlib.

        Example:
            >>> from ironstep import schedules
            >>> ax = schedules.cosine(0.1, steps=100).plot(label="cosine")
            >>> ax = schedules.linear(0.1, 0, 100).plot(ax=ax, label="linear")
            >>> [line.get_label() for line in ax.lines]
            ['cosine', 'linear']
        """
        if steps is None:
            steps = self._steps
            if steps is None:
                raise ValueError(f"steps must say how many steps to draw: {self!r} has no end")
        steps = count("steps", steps)
        at = np.arange(steps) if steps <= POINTS else np.unique(np.linspace(0, steps - 1, POINTS).round())
        values = self(at)
        if ax is None:
            from .._figure import new_figure

            ax = new_figure(7.0, 3.5).subplots()
            ax.set(xlabel="step", ylabel="value")
            ax.grid(alpha=0.3)
        ax.plot(at, values, label=label)
        if label is not None:
            ax.legend()
        if path is not None:
            figure: Any = ax.figure
            figure.savefig(path)
        return ax

    def __mul__(self, other: Any) -> Schedule:
        if isinstance(other, Schedule):
            return chain(self, other)
        if _is_number(other):
            return scale(self, other)
        return NotImplemented

    __rmul__ = __mul__

    def __add__(self, other: Any) -> Schedule:
        if isinstance(other, Schedule):
            return add(self, other)
        if _is_number(other):
            return add(self, constant(other))
        return NotImplemented

    __radd__ = __add__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return (self._spec, self._steps) == (other._spec, other._steps)

    def __hash__(self) -> int:
        return hash((self._spec, self._steps))

    def __reduce__(self) -> tuple[Any, ...]:
        return again, (self._name, self._args, self._kwargs)

    def __repr__(self) -> str:
        import inspect

        signature = inspect.signature(MAKERS[self._name])
        given = signature.bind(*self._args, **self._kwargs).arguments
        parts: list[str] = []
        by_name = False
        for name, param in signature.parameters.items():
            if param.kind is param.VAR_POSITIONAL:
                parts += map(repr, given.get(name, ()))
            elif name not in given or (param.default is not param.empty and given[name] == param.default):
                by_name = True
            elif by_name or param.kind is param.KEYWORD_ONLY:
                parts.append(f"{name}={given[name]!r}")
            else:
                parts.append(repr(given[name]))
        return f"{self._name}({', '.join(parts)})"


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


# -- How the functions below make them ---------------------------------------------------------------------------------


def again(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Schedule:
    """The schedule of a call, for pickle."""
    schedule: Schedule = MAKERS[name](*args, **kwargs)
    return schedule


def named(function: Callable[..., Schedule], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Schedule:
    """What the function makes, with this call as its repr."""
    made = function(*args, **kwargs)
    schedule = Schedule.__new__(Schedule)
    schedule._spec, schedule._steps, schedule._core = made._spec, made._steps, made._core
    schedule._name = function.__name__
    schedule._args = tuple(map(_plain, args))
    schedule._kwargs = {name: _plain(value) for name, value in kwargs.items()}
    return schedule


def _plain(value: Any) -> Any:
    """An argument as Python's own number, list or dict: a copy that nobody changes, and that has a short repr."""
    if isinstance(value, (bool, str, Schedule)) or value is None:
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    items = [_plain(item) for item in value]
    return tuple(items) if isinstance(value, tuple) else items


def maker(function: Callable[P, Schedule]) -> Callable[P, Schedule]:
    """Makes a function's schedules know the call that made them, and `parse` and pickle know the function."""

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        return named(function, args, kwargs)

    MAKERS[function.__name__] = make
    return make


def count(name: str, value: Any, low: int = 1) -> int:
    """The value as an int, at least `low`, that float64 has exactly."""
    return integer(name, at_least(name, value, low), low, WHOLE)


def ratio(name: str, value: Any) -> float:
    """The factor from one length to the next. The core counts one by one, which takes long if they hardly grow."""
    return 1.0 if isinstance(value, numbers.Real) and value == 1 and value is not True else number(name, value, LONGER)


def growth(value: float, gamma: float) -> float:
    """The factor for a value: 1 if a 0 would grow, which stays 0, where infinity times 0 is NaN in the end."""
    return 1.0 if value == 0 and gamma > 1 else gamma


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    """The value, if it is one of the options."""
    if not isinstance(value, str) or value not in options:
        texts = [repr(option) for option in options]
        raise ValueError(f"{name} must be {', '.join(texts[:-1])} or {texts[-1]}, got {value!r}")
    return value


def several(name: str, values: Any, what: str = "numbers") -> list[Any]:
    """The items of a list, tuple or array."""
    if not isinstance(values, (list, tuple, np.ndarray)):
        raise TypeError(f"{name} must be a list of {what}, got {values!r}")
    return list(values)


def ascending(name: str, values: Any, *, strictly: bool = True) -> list[float]:
    """Steps above 0, each after the one before it."""
    steps = [number(f"{name}[{i}]", value, POSITIVE) for i, value in enumerate(several(name, values))]
    for i, (a, b) in enumerate(itertools.pairwise(steps)):
        if a > b or (strictly and a == b):
            raise ValueError(f"{name} must ascend, but {name}[{i}] is {a!r} and {name}[{i + 1}] is {b!r}")
    return steps


def spec_of(name: str, value: Any) -> Spec:
    """What the core makes the schedule of."""
    if not isinstance(value, Schedule):
        raise TypeError(f"{name} must be a schedule, such as constant(0.1), got {value!r}")
    return value._spec


def covered(steps: float) -> int | None:
    """The number of steps up to a real number of them."""
    return math.ceil(steps) if math.isfinite(steps) else None


def ramp(
    start: float,
    end: float,
    span: float,
    shape: str = "linear",
    *,
    power: float = 1.0,
    warp: float = 1.0,
    after: str = "hold",
) -> Spec:
    """From one value to the other, checked."""
    start, end = number("start", start, FINITE), number("end", end, FINITE)
    power, warp = number("power", power, POSITIVE), number("warp", warp, POSITIVE)
    if shape == "exponential" and not (start > 0 and end > 0):
        raise ValueError(f"the values of an exponential must be above 0, got {start!r} and {end!r}")
    if choice("after", after, AFTER) == "extend" and shape == "linear" and not power.is_integer():
        raise ValueError(f"power must be a whole number with after='extend', where its base is negative, got {power!r}")
    return ("ramp", start, end, float(span), shape, power, warp, after)


def _span(steps: Any, endpoint: Any) -> tuple[int, int]:
    """How many steps there are, and how many from the first to the one with the end value."""
    n = count("steps", steps)
    if flag("endpoint", endpoint) and n < 2:
        raise ValueError(f"steps must be an integer at least 2 with endpoint=True, got {steps!r}")
    return n, n - endpoint


# -- Those with a value of their own -----------------------------------------------------------------------------------


@maker
def constant(value: float) -> Schedule:
    r"""The same at every step: $\eta_t$ = `value`.

    Args:
        value: Any finite number.

    Raises:
        ValueError: It is not finite.

    Example:
        >>> constant(0.1)(1000)
        0.1
    """
    return Schedule(("constant", number("value", value, FINITE)), None)


@maker
def linear(start: float, end: float, steps: int, *, endpoint: bool = False, after: str = "hold") -> Schedule:
    r"""A straight line: $\eta_t = s (1-u) + e u$ with $u = t / T$, $s$ = `start`, $e$ = `end`, $T$ = `steps`.

    Args:
        start: The value at step 0.
        end: The value at the end.
        steps: How long it takes.
        endpoint: The end value is reached at step `steps - 1`, the last one of a run of `steps` steps, instead of at
            `steps`: $u = t / (T - 1)$.
        after: What comes after the end: "hold" the value, "raise" a ValueError, or "extend" the equation.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> linear(1.0, 0.0, 5)([0, 1, 4, 5, 6])
        array([1. , 0.8, 0.2, 0. , 0. ])
        >>> linear(1.0, 0.0, 5, endpoint=True)(range(5))
        array([1.  , 0.75, 0.5 , 0.25, 0.  ])
    """
    steps, span = _span(steps, endpoint)
    return Schedule(ramp(start, end, span, after=after), steps)


@maker
def polynomial(
    start: float, end: float, steps: int, power: float = 1.0, *, endpoint: bool = False, after: str = "hold"
) -> Schedule:
    r"""A power of the time that is left.

    With $s$ = `start`, $e$ = `end`, $p$ = `power`, $T$ = `steps`:

    $$\eta_t = e + (s - e) (1 - t / T)^p$$

    Args:
        start: The value at step 0.
        end: The value at the end.
        steps: How long it takes.
        power: The exponent, above 0. 1 is `linear`.
        endpoint: Reach the end at `steps - 1`: see `linear`.
        after: "hold", "raise" or "extend" (with a whole power): see `linear`.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> polynomial(1.0, 0.0, 4, 2.0)(range(5))
        array([1.    , 0.5625, 0.25  , 0.0625, 0.    ])
    """
    steps, span = _span(steps, endpoint)
    return Schedule(ramp(start, end, span, power=power, after=after), steps)


@maker
def step(value: float, step_size: int, gamma: float = 0.1) -> Schedule:
    r"""A staircase: $\eta_t = \eta_0 \gamma^{\lfloor t / S \rfloor}$, with $\eta_0$ = `value`, $S$ = `step_size`.

    Args:
        value: The value at step 0.
        step_size: How many steps a stair is long.
        gamma: The factor from stair to stair.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> step(1.0, 30, 0.5)([0, 29, 30, 60])
        array([1.  , 1.  , 0.5 , 0.25])
    """
    value, gamma = number("value", value, FINITE), number("gamma", gamma, NOT_NEGATIVE)
    return Schedule(("decay", value, growth(value, gamma), float(count("step_size", step_size)), True, None), None)


@maker
def multi_step(value: float, milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    r"""A factor at each milestone: $\eta_t = \eta_0 \gamma^{k}$, with $k$ the number of milestones at or before $t$.

    Args:
        value: $\eta_0$, the value at step 0.
        milestones: Steps in ascending order, above 0. One that is there twice counts twice.
        gamma: The factor.

    Raises:
        ValueError: A number is out of range, or the milestones do not ascend.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> multi_step(1.0, [30, 80], 0.5)([29, 30, 79, 80])
        array([1.  , 0.5 , 0.5 , 0.25])
    """
    value, gamma = number("value", value, FINITE), number("gamma", gamma, NOT_NEGATIVE)
    steps = ascending("milestones", milestones, strictly=False)
    values = [value * _core.pow(growth(value, gamma), float(i)) for i in range(len(steps) + 1)]
    if not all(map(math.isfinite, values)):
        raise ValueError(f"gamma must leave all values finite, but {value!r} * {gamma!r} ** {len(steps)} is not")
    return Schedule(("steps", tuple(steps), tuple(values)), None)


@maker
def exponential(
    value: float,
    gamma: float,
    decay_steps: float = 1,
    *,
    staircase: bool = False,
    limit: float | None = None,
) -> Schedule:
    r"""A factor for every so many steps.

    With $\eta_0$ = `value`, $\gamma$ = `gamma`, $T$ = `decay_steps`:

    $$\eta_t = \eta_0 \gamma^{t / T}$$

    Args:
        value: The value at step 0.
        gamma: The factor for `decay_steps` steps.
        decay_steps: See `gamma`; any number above 0.
        staircase: Round the exponent down, so that the value moves in jumps.
        limit: Where it stops: a lower limit if `gamma < 1`, else an upper one.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> exponential(1.0, 0.25, 10, limit=0.2)([0, 5, 10, 20])
        array([1.  , 0.5 , 0.25, 0.2 ])
    """
    value, gamma = number("value", value, FINITE), number("gamma", gamma, NOT_NEGATIVE)
    decay_steps = number("decay_steps", decay_steps, POSITIVE)
    limit = None if limit is None else number("limit", limit, FINITE)
    spec = ("decay", value, growth(value, gamma), decay_steps, flag("staircase", staircase), limit)
    return Schedule(spec, None)


@maker
def cosine(
    start: float,
    end: float = 0.0,
    *,
    steps: int,
    power: float = 1.0,
    warp: float = 1.0,
    endpoint: bool = False,
    after: str = "hold",
) -> Schedule:
    r"""Half a wave of the cosine.

    With $s$ = `start`, $e$ = `end`, $T$ = `steps`, $p$ = `power`, $k$ = `warp`:

    $$\eta_t = e + (s - e) \left(\tfrac12 (1 + \cos \pi u)\right)^p, \qquad u = (t / T)^k$$

    Args:
        start: The value at step 0.
        end: The value at the end.
        steps: How long it takes.
        power: The exponent of the wave (optax's `exponent`).
        warp: The exponent of the time (timm's `k_decay`): above 1 it falls later.
        endpoint: Reach the end at `steps - 1`: see `linear`.
        after: "hold", "raise", or "extend": then it swings back up, as torch's CosineAnnealingLR does.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> cosine(1.0, steps=4)([0, 1, 2, 4, 5]).round(3)
        array([1.   , 0.854, 0.5  , 0.   , 0.   ])

    References:
        Loshchilov & Hutter, SGDR, arXiv 1608.03983. Zhang & Li, k-decay, arXiv 2004.05909.
    """
    steps, span = _span(steps, endpoint)
    return Schedule(ramp(start, end, span, "cosine", power=power, warp=warp, after=after), steps)


@maker
def cosine_restarts(
    start: float,
    end: float = 0.0,
    *,
    T_0: int,  # noqa: N803 (the paper's name, and torch's)
    T_mult: float = 1,  # noqa: N803
    decay: float = 1.0,
    cycles: int | None = None,
    warp: float = 1.0,
    endpoint: bool = False,
    after: str = "hold",
) -> Schedule:
    r"""Cosines one after the other, each from its peak to the floor (SGDR).

    Cycle $i = 0, 1, \ldots$ is $T_i = T_0 T_{mult}^i$ steps long and begins at $b_i = T_0 + \cdots + T_{i-1}$. With
    $s$ = `start`, $e$ = `end`, $d$ = `decay`, $k$ = `warp`:

    $$\eta_t = e + (s d^i - e) \tfrac12 (1 + \cos \pi u), \qquad u = ((t - b_i) / T_i)^k$$

    Args:
        start: The first peak.
        end: The floor. A cycle's last step is one step short of it, as in torch and timm, unless `endpoint`.
        T_0: The length of the first cycle.
        T_mult: The factor from length to length: 1, or at least 1.1; need not be whole.
        decay: The factor from peak to peak.
        cycles: How many there are; None: for ever.
        warp: The exponent of the time within a cycle.
        endpoint: The last step of a cycle has the value `end`: $u = ((t - b_i) / (T_i - 1))^k$.
        after: What comes after the last cycle: "hold" the floor, "raise" a ValueError, or "extend" the last cosine.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> cosine_restarts(1.0, T_0=2, T_mult=2, decay=0.5)(range(7)).round(3)
        array([1.   , 0.5  , 0.5  , 0.427, 0.25 , 0.073, 0.25 ])

    References:
        Loshchilov & Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, arXiv 1608.03983.
    """
    start, end = number("start", start, FINITE), number("end", end, FINITE)
    if flag("endpoint", endpoint) and T_0 == 1:
        raise ValueError(f"T_0 must be an integer at least 2 with endpoint=True, got {T_0!r}")
    T_mult = ratio("T_mult", T_mult)  # noqa: N806
    decay, warp = number("decay", decay, NOT_NEGATIVE), number("warp", warp, POSITIVE)
    n = 0 if cycles is None else integer("cycles", cycles, 1, 1 << 31)
    choice("after", after, AFTER)
    return restarts(start, end, float(count("T_0", T_0)), T_mult, decay, n, warp, endpoint, after)


def restarts(
    start: float,
    end: float,
    t_0: float,
    t_mult: float = 1.0,
    decay: float = 1.0,
    cycles: int = 0,
    warp: float = 1.0,
    endpoint: bool = False,
    after: str = "hold",
) -> Schedule:
    """`cosine_restarts` of checked numbers; the first length may be any number."""
    if not cycles:
        total = math.inf
    elif t_mult == 1:
        total = t_0 * cycles
    else:
        # A little less, so that rounding adds no step.
        total = t_0 * (_core.pow(t_mult, float(cycles)) - 1) / (t_mult - 1) * (1 - 1e-12)
    spec = ("restarts", start, end, t_0, t_mult, growth(start, decay), cycles, warp, endpoint, after)
    return Schedule(spec, covered(total))


def _phases(values: Sequence[float], ends: Sequence[float], anneal: str, after: str) -> Spec:
    """From value to value; phase `i` ends at the real number `ends[i]`, which may lie before 0.

    Phases that no step of 0 ... ends[-1] falls into are left out, as they are in torch's loop.
    """
    last = ends[-1]
    begin = 0.0
    parts: list[Spec] = []
    begins: list[float] = []
    for i, end in enumerate(ends):
        if begin < last and (end > 0 or i == len(ends) - 1):
            parts.append(ramp(values[i], values[i + 1], end - begin, ANNEAL[anneal]))
            begins.append(begin)
        begin = end
    if not parts:
        return ("constant", values[-1])
    parts[-1] = (*parts[-1][:-1], after)
    if begins[0] < 0:
        # The clock of the first phase is ahead of ours: a part that is over before step 0 lets it begin there.
        return ("join", (("constant", values[0]), *parts), tuple(begins))
    return parts[0] if len(parts) == 1 else ("join", tuple(parts), tuple(begins[1:]))


def _one_cycle(
    low: float,
    high: float,
    final: float,
    steps: int,
    pct_start: float,
    anneal: str,
    three_phase: bool,
    after: str,
) -> Schedule:
    steps = count("steps", steps)
    pct_start = number("pct_start", pct_start, Limit(0.0, 1.0, "from 0 to 1"))
    choice("anneal", anneal, tuple(ANNEAL))
    choice("after", after, AFTER)
    last = float(steps - 1)
    if flag("three_phase", three_phase):
        if pct_start > 0.5 and after != "extend":
            raise ValueError(
                f"pct_start must be at most 0.5 with three_phase=True, where the first two phases have its length, got "
                f"{pct_start!r}"
            )
        values, ends = [low, high, low, final], [pct_start * steps - 1, 2 * pct_start * steps - 2, last]
    else:
        values, ends = [low, high, final], [pct_start * steps - 1, last]
    return Schedule(_phases(values, ends, anneal, after), steps)


@maker
def one_cycle(
    max: float,
    steps: int,
    *,
    pct_start: float = 0.3,
    anneal: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
    after: str = "hold",
) -> Schedule:
    r"""Up to a large value and down again, in torch's form.

    With $T$ = `steps`, $p$ = `pct_start`: from $\eta_{max}$ / `div_factor` at step 0 up to $\eta_{max}$ = `max` at
    $pT - 1$ and down to $\eta_{max}$ / (`div_factor` * `final_div_factor`) at the last step, $T - 1$. With
    `three_phase` down to the first value until $2pT - 2$, and then on to the last one.

    Args:
        max: The peak.
        steps: The number of steps in all.
        pct_start: The share of the steps that go up, from 0 to 1, with `three_phase` to 0.5.
        anneal: "cos", half waves of the cosine, or "linear".
        div_factor: The peak by the first value.
        final_div_factor: The first value by the last one.
        three_phase: Come down as fast as it went up, and then fall to the last value.
        after: "hold", "raise", or "extend": then it goes up again after the end, as torch's does at step `steps`.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> one_cycle(1.0, 11, pct_start=6 / 11, anneal="linear", div_factor=10, final_div_factor=100)(range(11))
        array([0.1   , 0.28  , 0.46  , 0.64  , 0.82  , 1.    , 0.8002, 0.6004, 0.4006, 0.2008, 0.001 ])

    References:
        Smith & Topin, Super-Convergence, arXiv 1708.07120.
    """
    max = number("max", max, FINITE)
    low = max / number("div_factor", div_factor, POSITIVE)
    final = low / number("final_div_factor", final_div_factor, POSITIVE)
    return _one_cycle(low, max, final, steps, pct_start, anneal, three_phase, after)


@maker
def one_cycle_momentum(
    base: float = 0.85,
    max: float = 0.95,
    *,
    steps: int,
    pct_start: float = 0.3,
    anneal: str = "cos",
    three_phase: bool = False,
    after: str = "hold",
) -> Schedule:
    """The momentum beside `one_cycle`, which goes the other way: from `max` down to `base` and back.

    With `three_phase` it stays at `max` in the third phase, as torch's does.

    Args:
        base: The momentum where the learning rate has its peak.
        max: The momentum at both ends.
        steps: See `one_cycle`, as for all others.
        pct_start: See `one_cycle`.
        anneal: See `one_cycle`.
        three_phase: See `one_cycle`.
        after: See `one_cycle`.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> from ironstep.optim import SGD
        >>> opt = SGD(np.ones(2), lr=one_cycle(0.1, 1000), momentum=one_cycle_momentum(steps=1000))

    References:
        Smith & Topin, Super-Convergence, arXiv 1708.07120.
    """
    base, max = number("base", base, FINITE), number("max", max, FINITE)
    return _one_cycle(max, base, max, steps, pct_start, anneal, three_phase, after)


@maker
def inverse_sqrt(value: float, timescale: float, *, warmup_steps: int = 0) -> Schedule:
    r"""The inverse square root of the time: $\eta_t = \eta_0 / \sqrt{1 + (t - W) / \tau}$ for $t \ge W$.

    With $\eta_0$ = `value`, $\tau$ = `timescale`, $W$ = `warmup_steps`; before that `warmup`'s straight line up to
    $\eta_0$. With $\tau = W$ this is the form that Transformers were first trained with.

    Args:
        value: The value when the warmup is over, the largest one.
        timescale: The number of steps after which it is divided by the root of 2, any number above 0.
        warmup_steps: The length of the warmup, which begins one step up from 0; 0: none.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> inverse_sqrt(1.0, 4, warmup_steps=4)([0, 3, 4, 16])
        array([0.25, 1.  , 1.  , 0.5 ])

    References:
        Vaswani et al., Attention Is All You Need, arXiv 1706.03762. Zhai et al., Scaling Vision Transformers, arXiv
        2106.04560.
    """
    spec = ("inverse_power", number("value", value, FINITE), number("timescale", timescale, POSITIVE), 0.5)
    return Schedule(warmed(spec, count("warmup_steps", warmup_steps, 0)), None)


@maker
def cyclic(
    base: float,
    max: float,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    *,
    mode: str = "triangular",
    gamma: float = 1.0,
) -> Schedule:
    r"""Triangles between two values, for ever.

    With $h_t$ the height of the triangle, which goes from 0 to 1 in `step_size_up` steps and back in `step_size_down`:

    $$\eta_t = \eta_{base} + (\eta_{max} - \eta_{base}) h_t f_t$$

    where $f_t$ is 1 for the mode "triangular", $2^{-c}$ for "triangular2", with $c = 0, 1, \ldots$ the number of the
    cycle, and $\gamma^t$ for "exp_range".

    Args:
        base: $\eta_{base}$, the lower value.
        max: $\eta_{max}$, the upper value of the first cycle.
        step_size_up: Steps up.
        step_size_down: Steps down; by default as many.
        mode: How the peaks become smaller.
        gamma: See "exp_range".

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> cyclic(0.0, 1.0, 2, mode="triangular2")(range(9))
        array([0.  , 0.5 , 1.  , 0.5 , 0.  , 0.25, 0.5 , 0.25, 0.  ])

    References:
        Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186.
    """
    base, max = number("base", base, FINITE), number("max", max, FINITE)
    up = count("step_size_up", step_size_up)
    down = up if step_size_down is None else count("step_size_down", step_size_down)
    choice("mode", mode, MODES)
    gamma = number("gamma", gamma, NOT_NEGATIVE)
    return Schedule(("cyclic", base, max, float(up), float(down), mode, growth(max - base, gamma)), None)


@maker
def piecewise(
    boundaries: Sequence[float], values: Sequence[float], *, interpolation: str = "constant", after: str = "hold"
) -> Schedule:
    r"""Values between boundaries, constant or joined by curves.

    With "constant" it is `values[i]` from `boundaries[i - 1]` on, `values[0]` from 0 on. Else it goes from `values[0]`
    at step 0 to `values[i + 1]` at `boundaries[i]`, with $u$ the share of the piece that is over: "linear" by $u$,
    "cosine" by $(1 - \cos \pi u) / 2$, "sqrt" by $\sqrt u$, "exponential" in equal ratios.

    Args:
        boundaries: Steps above 0 in ascending order; need not be whole.
        values: One more than boundaries.
        interpolation: How it goes from one value to the next.
        after: What comes after the last boundary: "hold", "raise" or "extend" (of the last piece). A constant one has
            no end.

    Raises:
        ValueError: A number is out of range, or there are not as many values as there must be.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> piecewise([10, 20], [1.0, 0.5, 0.1])([0, 9, 10, 20])
        array([1. , 1. , 0.5, 0.1])
        >>> piecewise([10, 20], [0.0, 1.0, 0.5], interpolation="linear")([0, 5, 10, 15, 20])
        array([0.  , 0.5 , 1.  , 0.75, 0.5 ])
    """
    choice("interpolation", interpolation, ("constant", *SHAPES))
    choice("after", after, AFTER)
    steps = ascending("boundaries", boundaries)
    levels = [number(f"values[{i}]", value, FINITE) for i, value in enumerate(several("values", values))]
    if len(levels) != len(steps) + 1:
        raise ValueError(f"values must be one more than boundaries, so {len(steps) + 1}, got {len(levels)}")
    if interpolation == "constant":
        if after != "hold":
            raise ValueError(f"after must be 'hold' with interpolation='constant', which has no end, got {after!r}")
        return Schedule(("steps", tuple(steps), tuple(levels)), None)
    if not steps:
        raise ValueError(f"boundaries must have at least one step with interpolation={interpolation!r}, got none")
    begins = [0.0, *steps[:-1]]
    parts = [
        ramp(levels[i], levels[i + 1], steps[i] - begins[i], interpolation, after=after) for i in range(len(steps))
    ]
    return Schedule(("join", tuple(parts), tuple(begins[1:])), covered(steps[-1]))


# -- Warmup ------------------------------------------------------------------------------------------------------------


def warmed(spec: Spec, steps: int, start: float = 0.0, skip_start: bool = True, within: bool = False) -> Spec:
    """With a warmup, unless that has no steps."""
    start = number("start", start, FINITE)
    skip_start, within = flag("skip_start", skip_start), flag("within", within)
    return ("warmup", spec, float(steps), start, skip_start, within) if steps else spec


@maker
def warmup(
    schedule: Schedule, steps: int, *, start: float = 0.0, skip_start: bool = True, within: bool = False
) -> Schedule:
    r"""A straight line up to the first value of a schedule, and then the schedule.

    With $s$ = `start`, $W$ = `steps`, and $f$ the schedule:

    $$\eta_t = s + (f(0) - s) \min((t + 1) / W, 1) \quad (t < W), \qquad \eta_t = f(t - W) \quad (t \ge W)$$

    Args:
        schedule: What is warmed up to.
        steps: The length of the line.
        start: Where it begins.
        skip_start: Begin one step up from `start`, so that the first step is not one with a learning rate of 0, and
            step `steps - 1` has the first value of the schedule. False: $t / W$ instead of $(t + 1) / W$, as optax,
            timm and transformers have it.
        within: The schedule's clock runs during the warmup, so that it goes on with $f(t)$, not $f(t - W)$.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> warmup(linear(1.0, 0.0, 10), 4)(range(7))
        array([0.25, 0.5 , 0.75, 1.  , 1.  , 0.9 , 0.8 ])
        >>> warmup(linear(1.0, 0.0, 10), 4, skip_start=False, within=True)(range(7))
        array([0.  , 0.25, 0.5 , 0.75, 0.6 , 0.5 , 0.4 ])

    References:
        Goyal et al., Accurate, Large Minibatch SGD, arXiv 1706.02677.
    """
    spec = warmed(spec_of("schedule", schedule), count("steps", steps), start, skip_start, within)
    if schedule.steps is None:
        return Schedule(spec, None)
    return Schedule(spec, max(schedule.steps, steps) if within else schedule.steps + steps)


@maker
def warmup_cosine(
    peak: float,
    end: float = 0.0,
    *,
    steps: int,
    warmup_steps: int,
    start: float = 0.0,
    skip_start: bool = True,
    endpoint: bool = False,
    after: str = "hold",
) -> Schedule:
    r"""A warmup to the peak, then half a wave of the cosine: `warmup(cosine(...), ...)`.

    With $W$ = `warmup_steps` and $T$ = `steps`, which includes the warmup (as in optax and transformers), for $t \ge W$

    $$\eta_t = e + (p - e) \tfrac12 \left(1 + \cos \pi \frac{t - W}{T - W}\right), \qquad p = peak, \; e = end$$

    Args:
        peak: The value when the warmup is over.
        end: The value at the end.
        steps: The number of steps in all.
        warmup_steps: How many of them are the warmup; 0: none.
        start: Where the warmup begins.
        skip_start: See `warmup`.
        endpoint: Reach the end at `steps - 1`: see `linear`.
        after: "hold", "raise" or "extend": see `cosine`.

    Raises:
        ValueError: A number is out of range, or the warmup leaves no step to the cosine.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> warmup_cosine(1.0, steps=6, warmup_steps=2)(range(7)).round(3)
        array([0.5  , 1.   , 1.   , 0.854, 0.5  , 0.146, 0.   ])

    References:
        Goyal et al., Accurate, Large Minibatch SGD, arXiv 1706.02677. Loshchilov & Hutter, SGDR, arXiv 1608.03983.
    """
    warm, total = count("warmup_steps", warmup_steps, 0), count("steps", steps)
    rest = total - warm - flag("endpoint", endpoint)
    if rest < 1:
        raise ValueError(
            f"steps must be at least {1 + endpoint} more than warmup_steps, {warm}, which it includes, got {steps!r}"
        )
    return Schedule(warmed(ramp(peak, end, rest, "cosine", after=after), warm, start, skip_start), total)


@maker
def warmup_stable_decay(
    peak: float,
    end: float = 0.0,
    *,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    decay: str = "cosine",
    start: float = 0.0,
    skip_start: bool = True,
    after: str = "hold",
) -> Schedule:
    r"""A warmup, a plateau, a decay (WSD): a run can be prolonged at its plateau, and decayed from any point of it.

    With $u$ the share of the decay that is over, $p$ = `peak`, $e$ = `end`: $\eta = e + (p - e) w(u)$, where $w$ is
    $1 - u$ ("linear"), $(1 + \cos \pi u) / 2$ ("cosine") or $1 - \sqrt u$ ("sqrt"), or $\eta = p^{1-u} e^u$
    ("exponential").

    Args:
        peak: The value of the plateau.
        end: The value at the end, `warmup_steps + stable_steps + decay_steps`.
        warmup_steps: How long it goes up; 0: not at all.
        stable_steps: How long it stays.
        decay_steps: How long it goes down.
        decay: How it goes down.
        start: Where the warmup begins.
        skip_start: See `warmup`.
        after: "hold", "raise" or "extend" the decay.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> schedule = warmup_stable_decay(1.0, warmup_steps=2, stable_steps=2, decay_steps=4, decay="sqrt")
        >>> schedule(range(9)).round(3)
        array([0.5  , 1.   , 1.   , 1.   , 1.   , 0.5  , 0.293, 0.134, 0.   ])

    References:
        Hu et al., MiniCPM, arXiv 2404.06395. Hägele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed
        Training Durations, arXiv 2405.18392 ("sqrt").
    """
    peak = number("peak", peak, FINITE)
    warm, stable = count("warmup_steps", warmup_steps, 0), count("stable_steps", stable_steps, 0)
    down = count("decay_steps", decay_steps)
    fall = ramp(peak, end, down, choice("decay", decay, SHAPES), after=after)
    rise = warmed(("constant", peak), warm, start, skip_start)
    spec = ("join", (rise, fall), (float(warm + stable),)) if warm + stable else fall
    return Schedule(spec, warm + stable + down)


# -- Those made of others ----------------------------------------------------------------------------------------------


@maker
def join(schedules: Sequence[Schedule], boundaries: Sequence[float]) -> Schedule:
    """One schedule after the other, each with a clock of its own that begins at 0 (optax's `join_schedules`).

    Args:
        schedules: At least one.
        boundaries: Where the second, third, ... begin: steps above 0 in ascending order, one fewer than schedules.

    Raises:
        ValueError: The boundaries do not ascend, or are too few or too many.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> join([linear(0.0, 1.0, 4), constant(1.0), linear(1.0, 0.0, 2)], [4, 6])(range(9))
        array([0.  , 0.25, 0.5 , 0.75, 1.  , 1.  , 1.  , 0.5 , 0.  ])
    """
    parts = several("schedules", schedules, "schedules")
    specs = tuple(spec_of(f"schedules[{i}]", part) for i, part in enumerate(parts))
    steps = ascending("boundaries", boundaries)
    if len(specs) != len(steps) + 1:
        raise ValueError(f"boundaries must be one fewer than schedules, so {len(specs) - 1}, got {len(steps)}")
    last = math.inf if parts[-1].steps is None else parts[-1].steps
    return Schedule(("join", specs, tuple(steps)), covered((steps[-1] if steps else 0.0) + last))


@maker
def scale(schedule: Schedule, factor: float) -> Schedule:
    """A schedule times a number; `factor * schedule` is the same.

    Args:
        schedule: What is scaled.
        factor: Any finite number.

    Raises:
        ValueError: The factor is not finite.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> 0.5 * linear(1.0, 0.0, 10)
        scale(linear(1.0, 0.0, 10), 0.5)
    """
    factor = number("factor", factor, FINITE)
    return Schedule(("product", (("constant", factor), spec_of("schedule", schedule))), schedule.steps)


@maker
def shift(schedule: Schedule, steps: int) -> Schedule:
    """A schedule that begins later, with its first value until then; or earlier, without its first steps.

    Args:
        schedule: What is shifted.
        steps: By how many steps it is later; a negative number: earlier.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> shift(linear(1.0, 0.0, 4), 2)(range(7))
        array([1.  , 1.  , 1.  , 0.75, 0.5 , 0.25, 0.  ])
        >>> shift(linear(1.0, 0.0, 4), -1)(range(4))
        array([0.75, 0.5 , 0.25, 0.  ])
    """
    spec = ("shift", spec_of("schedule", schedule), float(integer("steps", steps, -WHOLE, WHOLE)))
    return Schedule(spec, None if schedule.steps is None else max(schedule.steps + steps, 1))


@maker
def chain(*schedules: Schedule) -> Schedule:
    """The product of schedules (torch's `ChainedScheduler`); `one * other` is the same.

    Args:
        schedules: At least one. The product covers as many steps as the longest one that has an end.

    Raises:
        ValueError: There is none.
        TypeError: An argument is no schedule.

    Example:
        >>> chain(step(1.0, 2, 0.5), linear(1.0, 0.0, 4))(range(5))
        array([1.   , 0.75 , 0.25 , 0.125, 0.   ])
    """
    return Schedule(("product", _specs(schedules)), _longest(schedules))


@maker
def add(*schedules: Schedule) -> Schedule:
    """The sum of schedules; `one + other` is the same, and `schedule + 0.1` is `add(schedule, constant(0.1))`.

    Args:
        schedules: At least one. The sum covers as many steps as the longest one that has an end.

    Raises:
        ValueError: There is none.
        TypeError: An argument is no schedule.

    Example:
        >>> add(linear(1.0, 0.0, 4), step(0.5, 2, 0.5))(range(5))
        array([1.5  , 1.25 , 0.75 , 0.5  , 0.125])
        >>> 0.1 + linear(1.0, 0.0, 4)
        add(linear(1.0, 0.0, 4), constant(0.1))
    """
    return Schedule(("sum", _specs(schedules)), _longest(schedules))


def _specs(schedules: Sequence[Schedule]) -> tuple[Spec, ...]:
    if not schedules:
        raise ValueError("schedules must be at least one, got none")
    return tuple(spec_of(f"schedules[{i}]", schedule) for i, schedule in enumerate(schedules))


def _longest(schedules: Sequence[Schedule]) -> int | None:
    return max((schedule.steps for schedule in schedules if schedule.steps is not None), default=None)


@maker
def per_epoch(schedule: Schedule, steps_per_epoch: int) -> Schedule:
    r"""A schedule of epochs as one of steps: $f(\lfloor t / n \rfloor)$, with $n$ = `steps_per_epoch`.

    Args:
        schedule: A function of the number of epochs that are over.
        steps_per_epoch: How many steps an epoch has.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> per_epoch(step(1.0, 1, 0.5), 3)(range(7))
        array([1.  , 1.  , 1.  , 0.5 , 0.5 , 0.5 , 0.25])
    """
    n = count("steps_per_epoch", steps_per_epoch)
    spec = ("per_epoch", spec_of("schedule", schedule), float(n))
    return Schedule(spec, None if schedule.steps is None else schedule.steps * n)


# -- Numbers and text --------------------------------------------------------------------------------------------------


def scaled_lr(lr: float, batch_size: int, base_batch_size: int = 256, *, rule: str = "linear") -> float:
    r"""The learning rate for another batch size: $\eta B / B_0$, or $\eta \sqrt{B / B_0}$.

    With $\eta$ = `lr`, $B$ = `batch_size`, $B_0$ = `base_batch_size`. Large batches also want a `warmup`.

    Args:
        lr: The learning rate that is good for `base_batch_size`.
        batch_size: The batch size to train with.
        base_batch_size: See `lr`.
        rule: "linear" for SGD, "sqrt" for adaptive methods.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> scaled_lr(0.1, 8192), scaled_lr(0.1, 1024, rule="sqrt")
        (3.2, 0.2)

    References:
        Goyal et al., Accurate, Large Minibatch SGD, arXiv 1706.02677. Krizhevsky, One weird trick for parallelizing
        convolutional neural networks, arXiv 1404.5997.
    """
    lr = number("lr", lr, FINITE)
    ratio = count("batch_size", batch_size) / count("base_batch_size", base_batch_size)
    return lr * (ratio if choice("rule", rule, ("linear", "sqrt")) == "linear" else math.sqrt(ratio))


MAKERS["scaled_lr"] = scaled_lr


def parse(text: str, **names: float) -> Schedule:
    """The schedule that a text says: the repr of one, or what a user writes into a config file or a command line.

    Only calls of the functions of this module and of `presets` are understood, with numbers, `True`, `False`, `None`,
    strings, lists, tuples, dicts, names that are given here, and the operators `+ - * / // **` between numbers, `+` and
    `*` also between schedules. Nothing is run.

    Args:
        text: Such as `"warmup_cosine(lr, steps=total, warmup_steps=5 * epoch)"`.
        names: Numbers that the text may name.

    Raises:
        ValueError: The text is no such expression, or an argument in it is wrong.
        TypeError: `text` is no string, or a name is no number.

    Example:
        >>> parse("warmup_cosine(lr, steps=total, warmup_steps=total // 10)", lr=0.1, total=200)
        warmup_cosine(0.1, steps=200, warmup_steps=20)
        >>> parse("0.5 * step(lr, 30)", lr=0.1)
        scale(step(0.1, 30), 0.5)
    """
    import ast

    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {text!r}")
    for name, value in names.items():
        number(name, value, FINITE)
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"text must be one expression, such as cosine(0.1, steps=1000), got {text!r}") from error
    try:
        value = _Reader(text, names).read(tree.body)
    except RecursionError:
        raise ValueError(f"text must not be nested so deeply, got {text[:60]!r}...") from None
    if not isinstance(value, Schedule):
        raise ValueError(f"text must say a schedule, such as constant(0.1), got {text!r}, which is {value!r}")
    return value


class _Reader:
    """The value of a syntax tree of the few kinds that `parse` allows."""

    def __init__(self, text: str, names: Mapping[str, float]) -> None:
        self.text = text
        self.names = names

    def read(self, node: Any) -> Any:
        kind = type(node).__name__
        method = getattr(self, f"read_{kind}", None)
        if method is None:
            raise ValueError(
                f"text may have calls of schedules, numbers, strings, lists, names and + - * / // **, but no {kind}, "
                f"got {self.source(node)!r} in {self.text!r}"
            )
        return method(node)

    def source(self, node: Any) -> str:
        import ast

        return ast.get_source_segment(self.text.strip(), node) or ast.unparse(node)

    def read_Constant(self, node: Any) -> Any:  # noqa: N802 (the names of syntax trees)
        if not isinstance(node.value, (bool, int, float, str)) and node.value is not None:
            raise ValueError(f"text must have numbers and strings only, got {self.source(node)!r} in {self.text!r}")
        return node.value

    def read_Name(self, node: Any) -> float:  # noqa: N802
        if node.id not in self.names:
            known = ", ".join(self.names) or "none"
            raise ValueError(f"text may use these names: {known}; got {node.id!r} in {self.text!r}")
        return self.names[node.id]

    def read_List(self, node: Any) -> list[Any]:  # noqa: N802
        return [self.read(item) for item in node.elts]

    def read_Tuple(self, node: Any) -> tuple[Any, ...]:  # noqa: N802
        return tuple(self.read_List(node))

    def read_Dict(self, node: Any) -> dict[Any, Any]:  # noqa: N802
        items = [(self.key(key), self.read(item)) for key, item in zip(node.keys, node.values, strict=True)]
        self.once(node, [repr(key) for key, _ in items])
        return dict(items)

    def key(self, node: Any) -> Any:
        value = None if node is None else self.read(node)
        if not isinstance(value, (int, float, str)):
            raise ValueError(f"text may have dicts with numbers or strings as keys only, got {self.text!r}")
        return value

    def once(self, node: Any, names: list[str]) -> None:
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"text must give {name} once, got {self.source(node)!r} in {self.text!r}")

    def read_UnaryOp(self, node: Any) -> Any:  # noqa: N802
        return self.number("-", lambda x: -x, node, node.operand) if self.is_a(node.op, "USub") else self.unknown(node)

    def read_BinOp(self, node: Any) -> Any:  # noqa: N802
        symbol, function = OPERATORS.get(type(node.op).__name__, ("", None))
        if function is None:
            return self.unknown(node)
        return self.number(symbol, function, node, node.left, node.right)

    def read_Call(self, node: Any) -> Any:  # noqa: N802
        name = node.func.id if self.is_a(node.func, "Name") else self.source(node.func)
        if name not in MAKERS:
            known = ", ".join(name for name in MAKERS if "_" not in name or not name.startswith(PEERS))
            raise ValueError(f"text may call {known} and the presets; got {name!r} in {self.text!r}")
        self.once(node, [str(keyword.arg) for keyword in node.keywords if keyword.arg is not None])
        args = [self.read(argument) for argument in node.args]
        kwargs = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                return self.unknown(node)
            kwargs[keyword.arg] = self.read(keyword.value)
        try:
            return MAKERS[name](*args, **kwargs)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.source(node)}: {error}") from error

    def number(self, symbol: str, function: Callable[..., Any], node: Any, *operands: Any) -> Any:
        values = [self.read(operand) for operand in operands]
        if not all(_is_number(x) or (symbol in ("+", "*") and isinstance(x, Schedule)) for x in values):
            raise ValueError(f"{symbol} must stand between numbers, got {self.source(node)!r} in {self.text!r}")
        try:
            return function(*values)
        except (ArithmeticError, ValueError, TypeError) as error:
            raise ValueError(f"{self.source(node)} in {self.text!r} has no value: {error}") from error

    def unknown(self, node: Any) -> Any:
        raise ValueError(
            "text may have the operators + - * / // ** and arguments by position or name, got "
            f"{self.source(node)!r} in {self.text!r}"
        )

    @staticmethod
    def is_a(node: Any, kind: str) -> bool:
        return type(node).__name__ == kind


def _power(x: float, y: float) -> float:
    """`x ** y` without the hours that a tower of whole numbers would take, and without complex numbers."""
    value = _core.pow(float(x), float(y))
    if not math.isfinite(value):
        raise ValueError("it is not a finite number")
    whole = isinstance(x, int) and isinstance(y, int) and y >= 0 and abs(value) <= WHOLE
    return x**y if whole else value


OPERATORS: dict[str, tuple[str, Callable[..., Any]]] = {
    "Add": ("+", lambda x, y: x + y),
    "Sub": ("-", lambda x, y: x - y),
    "Mult": ("*", lambda x, y: x * y),
    "Div": ("/", lambda x, y: x / y),
    "FloorDiv": ("//", lambda x, y: x // y),
    "Pow": ("**", _power),
}

PEERS = ("torch_", "optax_", "transformers_", "timm_")
"""How the names of presets begin."""
