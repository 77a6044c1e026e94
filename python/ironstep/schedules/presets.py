r"""The schedules of torch, optax, transformers and timm: their names for the arguments, their defaults, their curves.

Each function is `<library>_<schedule>`; the first argument is the learning rate that the peer takes from its optimiser
(optax: the peer's own arguments). The result is a `Schedule` like any other: a pure function of the step. Its values
are the peer's to the last digits, after the end too, but for two things: where a peer computes a value from the one
before (torch), it is the closed form, which the recursion follows to about 1e-13; and where the peer raises an error or
divides by zero, there is a value.

Steps are whatever the peer counts: torch's and timm's users often mean epochs, see `per_epoch`.

Example:
    >>> from ironstep.schedules import presets
    >>> presets.torch_cosine_annealing(0.1, T_max=10)([0, 5, 10, 20])
    array([0.1 , 0.05, 0.  , 0.1 ])
    >>> presets.transformers_linear(0.1, num_warmup_steps=2, num_training_steps=4)(range(6))
    array([0.  , 0.05, 0.1 , 0.05, 0.  , 0.  ])
    >>> presets.optax_cosine_decay(0.1, decay_steps=10, alpha=0.5)
    optax_cosine_decay(0.1, 10, 0.5)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

from .. import _core
from ..functional._arrays import FINITE, NOT_NEGATIVE, POSITIVE, PROBABILITY, flag, number
from ..optim._hyper import Limit
from ._schedule import (
    Schedule,
    Spec,
    ascending,
    choice,
    constant,
    cosine,
    cosine_restarts,
    count,
    covered,
    cyclic,
    exponential,
    growth,
    inverse_sqrt,
    join,
    linear,
    maker,
    multi_step,
    one_cycle,
    one_cycle_momentum,
    piecewise,
    polynomial,
    ramp,
    ratio,
    restarts,
    several,
    shift,
    step,
    warmed,
    warmup,
)

P = ParamSpec("P")

ABOVE_ZERO_TO_ONE = Limit(5e-324, 1.0, "above 0 and at most 1")
ABOVE_ZERO_BELOW_ONE = Limit(5e-324, 1.0, "above 0 and below 1", closed=False)

__all__: list[str] = []


def _preset(function: Callable[P, Schedule]) -> Callable[P, Schedule]:
    __all__.append(function.__name__)
    return maker(function)


# -- torch -------------------------------------------------------------------------------------------------------------


@_preset
def torch_constant(lr: float, factor: float = 1.0 / 3, total_iters: int = 5) -> Schedule:
    """`torch.optim.lr_scheduler.ConstantLR`: `lr * factor` for `total_iters` steps, then `lr`.

    Example:
        >>> torch_constant(1.0, 0.5, 2)(range(4))
        array([0.5, 0.5, 1. , 1. ])
    """
    lr, factor = number("lr", lr, FINITE), number("factor", factor, PROBABILITY)
    return piecewise([count("total_iters", total_iters)], [lr * factor, lr])


@_preset
def torch_linear(lr: float, start_factor: float = 1.0 / 3, end_factor: float = 1.0, total_iters: int = 5) -> Schedule:
    """`torch.optim.lr_scheduler.LinearLR`: from `lr * start_factor` to `lr * end_factor` in `total_iters` steps.

    Example:
        >>> torch_linear(1.0, 0.5, total_iters=2)(range(4))
        array([0.5 , 0.75, 1.  , 1.  ])
    """
    lr = number("lr", lr, FINITE)
    start = lr * number("start_factor", start_factor, ABOVE_ZERO_TO_ONE)
    return linear(start, lr * number("end_factor", end_factor, PROBABILITY), count("total_iters", total_iters))


@_preset
def torch_step(lr: float, step_size: int, gamma: float = 0.1) -> Schedule:
    """`torch.optim.lr_scheduler.StepLR`: see `ironstep.schedules.step`.

    Example:
        >>> torch_step(1.0, 2, 0.5)(range(5))
        array([1.  , 1.  , 0.5 , 0.5 , 0.25])
    """
    return step(number("lr", lr, FINITE), step_size, gamma)


@_preset
def torch_multi_step(lr: float, milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """`torch.optim.lr_scheduler.MultiStepLR`: see `ironstep.schedules.multi_step`. Milestones may be in any order.

    Example:
        >>> torch_multi_step(1.0, [3, 1], 0.5)(range(4))
        array([1.  , 0.5 , 0.5 , 0.25])
    """
    steps = [count(f"milestones[{i}]", value) for i, value in enumerate(several("milestones", milestones))]
    return multi_step(number("lr", lr, FINITE), sorted(steps), gamma)


@_preset
def torch_exponential(lr: float, gamma: float) -> Schedule:
    """`torch.optim.lr_scheduler.ExponentialLR`: `lr * gamma ** t`.

    Example:
        >>> torch_exponential(1.0, 0.5)(range(4))
        array([1.   , 0.5  , 0.25 , 0.125])
    """
    return exponential(number("lr", lr, FINITE), gamma)


@_preset
def torch_polynomial(lr: float, total_iters: int = 5, power: float = 1.0) -> Schedule:
    """`torch.optim.lr_scheduler.PolynomialLR`: `lr * (1 - t / total_iters) ** power`, then 0.

    Example:
        >>> torch_polynomial(1.0, 2, 2.0)(range(4))
        array([1.  , 0.25, 0.  , 0.  ])
    """
    return polynomial(number("lr", lr, FINITE), 0.0, count("total_iters", total_iters), power)


@_preset
def torch_cosine_annealing(lr: float, T_max: int, eta_min: float = 0.0) -> Schedule:  # noqa: N803
    """`torch.optim.lr_scheduler.CosineAnnealingLR`, which swings back up after `T_max`.

    Example:
        >>> torch_cosine_annealing(1.0, 2)(range(5))
        array([1. , 0.5, 0. , 0.5, 1. ])
    """
    lr, eta_min = number("lr", lr, FINITE), number("eta_min", eta_min, FINITE)
    return cosine(lr, eta_min, steps=count("T_max", T_max), after="extend")


@_preset
def torch_cosine_annealing_warm_restarts(
    lr: float,
    T_0: int,  # noqa: N803
    T_mult: int = 1,  # noqa: N803
    eta_min: float = 0.0,
) -> Schedule:
    """`torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`: see `ironstep.schedules.cosine_restarts`.

    Example:
        >>> torch_cosine_annealing_warm_restarts(1.0, 2)(range(5))
        array([1. , 0.5, 1. , 0.5, 1. ])
    """
    lr, eta_min = number("lr", lr, FINITE), number("eta_min", eta_min, FINITE)
    return cosine_restarts(lr, eta_min, T_0=T_0, T_mult=count("T_mult", T_mult))


def _total_steps(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    if total_steps is not None:
        return count("total_steps", total_steps)
    if epochs is None or steps_per_epoch is None:
        raise ValueError("total_steps must be an integer, or else epochs and steps_per_epoch, got None")
    return count("epochs", epochs) * count("steps_per_epoch", steps_per_epoch)


@_preset
def torch_one_cycle(
    max_lr: float,
    total_steps: int | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule:
    """`torch.optim.lr_scheduler.OneCycleLR`: see `ironstep.schedules.one_cycle`.

    The last step is `total_steps - 1`. After it the curve goes up again; torch's does at `total_steps`, and then it
    raises an error.

    Example:
        >>> torch_one_cycle(1.0, 10)([0, 2, 9])
        array([4.e-02, 1.e+00, 4.e-06])
    """
    return one_cycle(
        number("max_lr", max_lr, FINITE),
        _total_steps(total_steps, epochs, steps_per_epoch),
        pct_start=pct_start,
        anneal=choice("anneal_strategy", anneal_strategy, ("cos", "linear")),
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        three_phase=three_phase,
        after="extend",
    )


@_preset
def torch_one_cycle_momentum(
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    total_steps: int | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    three_phase: bool = False,
) -> Schedule:
    """The momentum (or first beta) that `torch.optim.lr_scheduler.OneCycleLR` sets with `cycle_momentum=True`.

    Example:
        >>> torch_one_cycle_momentum(total_steps=10)([0, 2, 9])
        array([0.95, 0.85, 0.95])
    """
    return one_cycle_momentum(
        number("base_momentum", base_momentum, FINITE),
        number("max_momentum", max_momentum, FINITE),
        steps=_total_steps(total_steps, epochs, steps_per_epoch),
        pct_start=pct_start,
        anneal=choice("anneal_strategy", anneal_strategy, ("cos", "linear")),
        three_phase=three_phase,
        after="extend",
    )


@_preset
def torch_cyclic(
    base_lr: float,
    max_lr: float,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: float = 1.0,
) -> Schedule:
    """`torch.optim.lr_scheduler.CyclicLR`: see `ironstep.schedules.cyclic`.

    The momentum that it sets is `torch_cyclic(max_momentum, base_momentum, ...)`, which begins at the larger value.

    Example:
        >>> torch_cyclic(0.0, 1.0, 2)(range(6))
        array([0. , 0.5, 1. , 0.5, 0. , 0.5])
    """
    base, high = number("base_lr", base_lr, FINITE), number("max_lr", max_lr, FINITE)
    return cyclic(base, high, step_size_up, step_size_down, mode=mode, gamma=gamma)


# -- optax -------------------------------------------------------------------------------------------------------------


def _begin_later(schedule: Schedule, transition_begin: int) -> Schedule:
    """With a negative begin taken as 0, as optax does."""
    steps = count("transition_begin", transition_begin, -(1 << 53))
    return shift(schedule, steps) if steps > 0 else schedule


@_preset
def optax_constant(value: float) -> Schedule:
    """`optax.constant_schedule`.

    Example:
        >>> optax_constant(0.1)(5)
        0.1
    """
    return constant(value)


@_preset
def optax_polynomial(
    init_value: float, end_value: float, power: float, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    """`optax.polynomial_schedule`. Without any `transition_steps` it stays at `init_value`.

    Example:
        >>> optax_polynomial(1.0, 0.0, 2.0, 2, transition_begin=1)(range(5))
        array([1.  , 1.  , 0.25, 0.  , 0.  ])
    """
    init, end = number("init_value", init_value, FINITE), number("end_value", end_value, FINITE)
    steps = count("transition_steps", transition_steps, -(1 << 53))
    number("power", power, POSITIVE)
    later = _begin_later(polynomial(init, end, max(steps, 1), power), transition_begin)
    return later if steps > 0 else constant(init)


@_preset
def optax_linear(init_value: float, end_value: float, transition_steps: int, transition_begin: int = 0) -> Schedule:
    """`optax.linear_schedule`. Without any `transition_steps` it stays at `init_value`.

    Example:
        >>> optax_linear(0.0, 1.0, 4)(range(6))
        array([0.  , 0.25, 0.5 , 0.75, 1.  , 1.  ])
    """
    return optax_polynomial(init_value, end_value, 1.0, transition_steps, transition_begin)


def _scaled_levels(
    init_value: float, boundaries_and_scales: Mapping[int, float] | None
) -> tuple[list[int], list[float]]:
    """Boundaries above 0, and the value before the first and from each on."""
    given = {} if boundaries_and_scales is None else boundaries_and_scales
    if not isinstance(given, Mapping):
        raise TypeError(f"boundaries_and_scales must be a dict of steps and factors, got {given!r}")
    levels = [number("init_value", init_value, FINITE)]
    boundaries: list[int] = []
    for boundary in sorted(count("a boundary", key, 0) for key in given):
        factor = number(f"boundaries_and_scales[{boundary}]", given[boundary], NOT_NEGATIVE)
        if boundary:
            boundaries.append(boundary)
            levels.append(levels[-1] * factor)
        else:
            levels = [levels[0] * factor]
    return boundaries, levels


@_preset
def optax_piecewise_constant(init_value: float, boundaries_and_scales: Mapping[int, float] | None = None) -> Schedule:
    """`optax.piecewise_constant_schedule`: a factor at each boundary.

    Example:
        >>> optax_piecewise_constant(1.0, {1: 0.5, 3: 0.5})(range(5))
        array([1.  , 0.5 , 0.5 , 0.25, 0.25])
    """
    return piecewise(*_scaled_levels(init_value, boundaries_and_scales))


@_preset
def optax_piecewise_interpolate(
    interpolate_type: str, init_value: float, boundaries_and_scales: Mapping[int, float] | None = None
) -> Schedule:
    """`optax.piecewise_interpolate_schedule`: a factor at each boundary, with lines or half waves between.

    Example:
        >>> optax_piecewise_interpolate("linear", 1.0, {2: 0.5, 4: 0.5})(range(6))
        array([1.   , 0.75 , 0.5  , 0.375, 0.25 , 0.25 ])
    """
    choice("interpolate_type", interpolate_type, ("linear", "cosine"))
    boundaries, levels = _scaled_levels(init_value, boundaries_and_scales)
    if not boundaries:
        return constant(levels[0])
    return piecewise(boundaries, levels, interpolation=interpolate_type)


@_preset
def optax_exponential_decay(
    init_value: float,
    transition_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: float | None = None,
) -> Schedule:
    """`optax.exponential_decay`. Without any `transition_steps` or `decay_rate` it stays at `init_value`.

    Example:
        >>> optax_exponential_decay(1.0, 2, 0.25, end_value=0.1)(range(5))
        array([1.   , 0.5  , 0.25 , 0.125, 0.1  ])
    """
    init, rate = number("init_value", init_value, FINITE), number("decay_rate", decay_rate, NOT_NEGATIVE)
    steps = count("transition_steps", transition_steps, -(1 << 53))
    decay = exponential(init, rate, max(steps, 1), staircase=staircase, limit=end_value)
    later = _begin_later(decay, transition_begin)
    return later if steps > 0 and rate > 0 else constant(init)


@_preset
def optax_cosine_decay(init_value: float, decay_steps: int, alpha: float = 0.0, exponent: float = 1.0) -> Schedule:
    """`optax.cosine_decay_schedule`: from `init_value` to `alpha * init_value`.

    Example:
        >>> optax_cosine_decay(1.0, 2, alpha=0.5)(range(4))
        array([1.  , 0.75, 0.5 , 0.5 ])
    """
    init = number("init_value", init_value, FINITE)
    end = number("alpha", alpha, FINITE) * init
    return cosine(init, end, steps=count("decay_steps", decay_steps), power=number("exponent", exponent, POSITIVE))


@_preset
def optax_cosine_onecycle(
    transition_steps: int,
    peak_value: float,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """`optax.cosine_onecycle_schedule`: its peak is at step `int(pct_start * transition_steps)`.

    Example:
        >>> optax_cosine_onecycle(10, 1.0)([0, 3, 10])
        array([4.e-02, 1.e+00, 4.e-06])
    """
    steps, peak = count("transition_steps", transition_steps), number("peak_value", peak_value, FINITE)
    up = int(number("pct_start", pct_start, PROBABILITY) * steps)
    div, final_div = number("div_factor", div_factor, POSITIVE), number("final_div_factor", final_div_factor, POSITIVE)
    return optax_piecewise_interpolate("cosine", peak / div, {up: div, steps: 1.0 / (div * final_div)})


@_preset
def optax_linear_onecycle(
    transition_steps: int,
    peak_value: float,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """`optax.linear_onecycle_schedule`: up, down, and further down from step `int(pct_final * transition_steps)` on.

    Example:
        >>> optax_linear_onecycle(20, 1.0)([0, 6, 17, 20])
        array([4.e-02, 1.e+00, 4.e-02, 4.e-06])
    """
    steps, peak = count("transition_steps", transition_steps), number("peak_value", peak_value, FINITE)
    up = int(number("pct_start", pct_start, PROBABILITY) * steps)
    down = int(number("pct_final", pct_final, PROBABILITY) * steps)
    div, final_div = number("div_factor", div_factor, POSITIVE), number("final_div_factor", final_div_factor, POSITIVE)
    return optax_piecewise_interpolate("linear", peak / div, {up: div, down: 1.0 / div, steps: 1.0 / final_div})


def _optax_warmup(schedule: Schedule, init_value: float, warmup_steps: int) -> Schedule:
    steps = count("warmup_steps", warmup_steps, 0)
    init = number("init_value", init_value, FINITE)
    return warmup(schedule, steps, start=init, skip_start=False) if steps else schedule


@_preset
def optax_warmup_constant(init_value: float, peak_value: float, warmup_steps: int) -> Schedule:
    """`optax.warmup_constant_schedule`. Without any `warmup_steps` it stays at `init_value`.

    Example:
        >>> optax_warmup_constant(0.0, 1.0, 2)(range(4))
        array([0. , 0.5, 1. , 1. ])
    """
    return optax_linear(init_value, number("peak_value", peak_value, FINITE), warmup_steps)


@_preset
def optax_warmup_cosine_decay(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    end_value: float = 0.0,
    exponent: float = 1.0,
) -> Schedule:
    """`optax.warmup_cosine_decay_schedule`: `decay_steps` includes the warmup.

    Example:
        >>> optax_warmup_cosine_decay(0.0, 1.0, 2, 4)(range(6))
        array([0. , 0.5, 1. , 0.5, 0. , 0. ])
    """
    peak, end = number("peak_value", peak_value, FINITE), number("end_value", end_value, FINITE)
    warm, total = count("warmup_steps", warmup_steps, 0), count("decay_steps", decay_steps)
    if total <= warm:
        raise ValueError(f"decay_steps must be more than warmup_steps, {warm}, which it includes, got {decay_steps!r}")
    # optax takes the end as a share of the peak.
    fall = cosine(peak, end if peak else 0.0, steps=total - warm, power=number("exponent", exponent, POSITIVE))
    return _optax_warmup(fall, init_value, warm)


@_preset
def optax_warmup_exponential_decay(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    transition_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: float | None = None,
) -> Schedule:
    """`optax.warmup_exponential_decay_schedule`.

    Example:
        >>> optax_warmup_exponential_decay(0.0, 1.0, 2, 1, 0.5)(range(5))
        array([0.  , 0.5 , 1.  , 0.5 , 0.25])
    """
    peak = number("peak_value", peak_value, FINITE)
    decay = optax_exponential_decay(peak, transition_steps, decay_rate, transition_begin, staircase, end_value)
    warm, init = count("warmup_steps", warmup_steps, 0), number("init_value", init_value, FINITE)
    # The limit `end_value` may make the decay begin elsewhere than at the peak.
    return join([linear(init, peak, warm), decay], [warm]) if warm else decay


@_preset
def optax_sgdr(cosine_kwargs: Sequence[Mapping[str, Any]]) -> Schedule:
    """`optax.sgdr_schedule`: one `warmup_cosine_decay_schedule` after the other, each from a dict of arguments.

    Example:
        >>> cycle = {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 1, "decay_steps": 3}
        >>> optax_sgdr([cycle, cycle])(range(7))
        array([0. , 1. , 0.5, 0. , 1. , 0.5, 0. ])
    """
    cycles = [optax_warmup_cosine_decay(**kwargs) for kwargs in several("cosine_kwargs", cosine_kwargs, "dicts")]
    if not cycles:
        raise ValueError("cosine_kwargs must have at least one dict, got none")
    ends: list[int] = []
    for kwargs in cosine_kwargs:
        ends.append((ends[-1] if ends else 0) + kwargs["decay_steps"])
    return join(cycles, ends[:-1])


@_preset
def optax_join(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """`optax.join_schedules`: see `ironstep.schedules.join`.

    Example:
        >>> optax_join([optax_constant(1.0), optax_linear(1.0, 0.0, 2)], [2])(range(5))
        array([1. , 1. , 1. , 0.5, 0. ])
    """
    return join(schedules, boundaries)


# -- transformers ------------------------------------------------------------------------------------------------------


def _hugging_face(schedule: Schedule, num_warmup_steps: int) -> Schedule:
    """Its warmup begins with a step of 0."""
    steps = count("num_warmup_steps", num_warmup_steps, 0)
    return warmup(schedule, steps, skip_start=False) if steps else schedule


def _trained(lr: float, end: float, warm: Any, total: Any, power: float = 1.0) -> Schedule:
    """A warmup and then down to `end`, where it is at once if the warmup leaves no steps."""
    lr = number("lr", lr, FINITE)
    w, n = count("num_warmup_steps", warm, 0), count("num_training_steps", total, 0)
    fall = polynomial(lr, end, max(1, n - w), power)
    if n > w:
        return _hugging_face(fall, w)
    return join([linear(0.0, lr, w), constant(end)], [w]) if w else constant(end)


@_preset
def transformers_constant(lr: float) -> Schedule:
    """`transformers.get_constant_schedule`.

    Example:
        >>> transformers_constant(0.1)(5)
        0.1
    """
    return constant(number("lr", lr, FINITE))


@_preset
def transformers_constant_with_warmup(lr: float, num_warmup_steps: int) -> Schedule:
    """`transformers.get_constant_schedule_with_warmup`.

    Example:
        >>> transformers_constant_with_warmup(1.0, 2)(range(4))
        array([0. , 0.5, 1. , 1. ])
    """
    return _hugging_face(constant(number("lr", lr, FINITE)), num_warmup_steps)


@_preset
def transformers_linear(lr: float, num_warmup_steps: int, num_training_steps: int) -> Schedule:
    """`transformers.get_linear_schedule_with_warmup`: to 0 at `num_training_steps`, which includes the warmup.

    Example:
        >>> transformers_linear(1.0, 2, 4)(range(6))
        array([0. , 0.5, 1. , 0.5, 0. , 0. ])
    """
    return _trained(lr, 0.0, num_warmup_steps, num_training_steps)


def _waves(lr: float, low: float, steps: int, num_cycles: float) -> Schedule:
    """Whole waves of the cosine, `num_cycles` of them in `steps` steps, for ever."""
    cycles = number("num_cycles", num_cycles, NOT_NEGATIVE)
    if cycles == 0:
        return constant(lr)
    return Schedule(ramp(lr, low, steps / (2 * cycles), "cosine", after="extend"), steps)


def _min_lr(lr: float, min_lr: float | None, min_lr_rate: float | None) -> float:
    if (min_lr is None) == (min_lr_rate is None):
        raise ValueError(f"one of min_lr and min_lr_rate must be given, got {min_lr!r} and {min_lr_rate!r}")
    if min_lr is not None:
        return number("min_lr", min_lr, NOT_NEGATIVE)
    return lr * number("min_lr_rate", min_lr_rate, NOT_NEGATIVE)


@_preset
def transformers_cosine(lr: float, num_warmup_steps: int, num_training_steps: int, num_cycles: float = 0.5) -> Schedule:
    """`transformers.get_cosine_schedule_with_warmup`, which swings back up after `num_training_steps`.

    Example:
        >>> transformers_cosine(1.0, 2, 4)(range(7))
        array([0. , 0.5, 1. , 0.5, 0. , 0.5, 1. ])
    """
    return transformers_cosine_with_min_lr(lr, num_warmup_steps, num_training_steps, num_cycles, min_lr_rate=0.0)


@_preset
def transformers_cosine_with_min_lr(
    lr: float,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> Schedule:
    """`transformers.get_cosine_with_min_lr_schedule_with_warmup`: down to `min_lr`, or to `lr * min_lr_rate`.

    Example:
        >>> transformers_cosine_with_min_lr(1.0, 2, 4, min_lr=0.5)(range(6))
        array([0.  , 0.5 , 1.  , 0.75, 0.5 , 0.75])
    """
    lr, low = number("lr", lr, FINITE), _min_lr(lr, min_lr, min_lr_rate)
    warm, total = count("num_warmup_steps", num_warmup_steps, 0), count("num_training_steps", num_training_steps, 0)
    return _hugging_face(_waves(lr, low, max(1, total - warm), num_cycles), warm)


@_preset
def transformers_cosine_warmup_with_min_lr(
    lr: float,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> Schedule:
    """`transformers.get_cosine_with_min_lr_schedule_with_warmup_lr_rate`: down to its end at the last step.

    The warmup goes from `lr * warmup_lr_rate`, or `lr / num_warmup_steps`, to `lr` at its last step, and the cosine
    begins one step after its peak.

    Example:
        >>> transformers_cosine_warmup_with_min_lr(1.0, 2, 4, min_lr=0.5)(range(6))
        array([0.5 , 1.  , 0.75, 0.5 , 0.75, 1.  ])
    """
    lr, low = number("lr", lr, FINITE), _min_lr(lr, min_lr, min_lr_rate)
    warm, total = count("num_warmup_steps", num_warmup_steps, 0), count("num_training_steps", num_training_steps, 0)
    rest = max(1, total - warm)
    rate = 1.0 / max(warm, 1) if warmup_lr_rate is None else number("warmup_lr_rate", warmup_lr_rate, NOT_NEGATIVE)
    first = lr * rate
    fall = ("shift", _waves(lr, low, rest, num_cycles)._spec, -1.0)
    if not warm:
        return Schedule(fall, rest)
    rise = ramp(first, lr, warm - 1) if warm > 1 else ("constant", first)
    return Schedule(_joined([rise, fall], [warm]), warm + rest)


@_preset
def transformers_cosine_with_hard_restarts(
    lr: float, num_warmup_steps: int, num_training_steps: int, num_cycles: int = 1
) -> Schedule:
    """`transformers.get_cosine_with_hard_restarts_schedule_with_warmup`.

    Where a cycle is no whole number of steps and a restart meets a step, the peer's rounding decides whether that step
    is the last of a cycle or the first of the next one; here it is the first.

    Example:
        >>> transformers_cosine_with_hard_restarts(1.0, 0, 4, num_cycles=2)(range(6))
        array([1. , 0.5, 1. , 0.5, 0. , 0. ])
    """
    lr, cycles = number("lr", lr, FINITE), count("num_cycles", num_cycles)
    warm, total = count("num_warmup_steps", num_warmup_steps, 0), count("num_training_steps", num_training_steps, 0)
    steps = max(1, total - warm)
    # Each begins at a fraction that is rounded once.
    begins = [i * steps / cycles for i in range(1, cycles)]
    waves = Schedule(_joined([ramp(lr, 0.0, steps / cycles, "cosine")] * cycles, begins), steps)
    return _hugging_face(waves, warm)


def _joined(parts: Sequence[Spec], boundaries: Sequence[float]) -> Spec:
    return ("join", tuple(parts), tuple(map(float, boundaries))) if boundaries else parts[0]


@_preset
def transformers_polynomial(
    lr: float, num_warmup_steps: int, num_training_steps: int, lr_end: float = 1e-7, power: float = 1.0
) -> Schedule:
    """`transformers.get_polynomial_decay_schedule_with_warmup`: to `lr_end`, which must be below `lr`.

    Example:
        >>> transformers_polynomial(1.0, 2, 4, lr_end=0.0, power=2.0)(range(6))
        array([0.  , 0.5 , 1.  , 0.25, 0.  , 0.  ])
    """
    end = number("lr_end", lr_end, FINITE)
    if not number("lr", lr, FINITE) > end:
        raise ValueError(f"lr_end must be below lr, {lr!r}, got {lr_end!r}")
    return _trained(lr, end, num_warmup_steps, num_training_steps, power)


@_preset
def transformers_inverse_sqrt(lr: float, num_warmup_steps: int, timescale: int | None = None) -> Schedule:
    """`transformers.get_inverse_sqrt_schedule`; `timescale` is `num_warmup_steps` by default, or 10000 if that is 0.

    Example:
        >>> transformers_inverse_sqrt(1.0, 4)([0, 2, 4, 16])
        array([0. , 0.5, 1. , 0.5])
    """
    steps = count("num_warmup_steps", num_warmup_steps, 0)
    scale = steps or 10_000 if timescale is None else timescale
    return _hugging_face(inverse_sqrt(number("lr", lr, FINITE), scale), steps)


@_preset
def transformers_wsd(
    lr: float,
    num_warmup_steps: int,
    num_decay_steps: int,
    num_training_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0,
    num_cycles: float = 0.5,
) -> Schedule:
    """`transformers.get_wsd_schedule`: a warmup, a plateau, a decay, each "linear", "cosine" or "1-sqrt".

    The plateau has `num_stable_steps`, or what `num_training_steps` leaves for it.

    Example:
        >>> transformers_wsd(1.0, 2, 2, num_training_steps=6)(range(8))
        array([0. , 0.5, 1. , 1. , 1. , 0.5, 0. , 0. ])
    """
    lr = number("lr", lr, FINITE)
    low = lr * number("min_lr_ratio", min_lr_ratio, NOT_NEGATIVE)
    warm, down = count("num_warmup_steps", num_warmup_steps, 0), count("num_decay_steps", num_decay_steps, 0)
    if num_stable_steps is not None:
        stable = count("num_stable_steps", num_stable_steps, 0)
    elif num_training_steps is not None:
        stable = count("num_training_steps", num_training_steps, warm + down) - warm - down
    else:
        raise ValueError("num_training_steps or num_stable_steps must be given, got neither")
    options = ("linear", "cosine", "1-sqrt")
    # 1 - sqrt(1 - u) upwards is (1 - u)^(1/2) downwards.
    rise = {"linear": ("linear", 1.0), "cosine": ("cosine", 1.0), "1-sqrt": ("linear", 0.5)}
    shape, power = rise[choice("warmup_type", warmup_type, options)]
    if choice("decay_type", decay_type, options) == "cosine":
        fall = _waves(lr, low, max(down, 1), num_cycles)._spec
    else:
        fall = ramp(lr, low, max(down, 1), "linear" if decay_type == "linear" else "sqrt")
    phases: list[tuple[int, Spec]] = [
        (warm, ramp(low, lr, max(warm, 1), shape, power=power)),
        (stable, ("constant", lr)),
        (down, fall),
    ]
    begin = 0
    begins, parts = [], []
    for length, part in phases:
        if length:
            begins.append(begin)
            parts.append(part)
            begin += length
    return Schedule(_joined([*parts, ("constant", low)], [*begins[1:], begin][: len(parts)]), begin)


# -- timm --------------------------------------------------------------------------------------------------------------


def _timm_warmup(spec: Spec, lr: float, warmup_t: int, warmup_lr_init: float, warmup_prefix: bool) -> Spec:
    """Up to `lr`, where the schedule must begin; without `warmup_prefix` the schedule's clock runs meanwhile."""
    steps = count("warmup_t", warmup_t, 0)
    return warmed(spec, steps, warmup_lr_init, skip_start=False, within=not flag("warmup_prefix", warmup_prefix))


def _timm_total(steps: float, warmup_t: int, warmup_prefix: bool) -> int | None:
    return covered(steps + warmup_t if warmup_prefix else max(steps, warmup_t))


@_preset
def timm_cosine(
    lr: float,
    t_initial: int,
    lr_min: float = 0.0,
    cycle_mul: float = 1.0,
    cycle_decay: float = 1.0,
    cycle_limit: int = 1,
    warmup_t: int = 0,
    warmup_lr_init: float = 0.0,
    warmup_prefix: bool = False,
    k_decay: float = 1.0,
) -> Schedule:
    """`timm.scheduler.CosineLRScheduler`.

    Where a restart with `cycle_mul` other than 1 or 2 meets a step, the peer's rounding of a logarithm decides whether
    that step is the last of a cycle or the first of the next one; here it is the first.

    Example:
        >>> timm_cosine(1.0, 2, cycle_limit=2, cycle_decay=0.5, warmup_t=2, warmup_prefix=True)(range(7))
        array([0.  , 0.5 , 1.  , 0.5 , 0.5 , 0.25, 0.  ])
    """
    lr, low = number("lr", lr, FINITE), number("lr_min", lr_min, NOT_NEGATIVE)
    cosines = restarts(
        lr,
        low,
        float(count("t_initial", t_initial)),
        ratio("cycle_mul", cycle_mul),
        number("cycle_decay", cycle_decay, NOT_NEGATIVE),
        count("cycle_limit", cycle_limit),
        number("k_decay", k_decay, POSITIVE),
    )
    spec = _timm_warmup(cosines._spec, lr, warmup_t, warmup_lr_init, warmup_prefix)
    return Schedule(spec, _timm_total(cosines.steps or math.inf, warmup_t, warmup_prefix))


@_preset
def timm_poly(
    lr: float,
    t_initial: int,
    power: float = 0.5,
    lr_min: float = 0.0,
    cycle_mul: float = 1.0,
    cycle_decay: float = 1.0,
    cycle_limit: int = 1,
    warmup_t: int = 0,
    warmup_lr_init: float = 0.0,
    warmup_prefix: bool = False,
    k_decay: float = 1.0,
) -> Schedule:
    """`timm.scheduler.PolyLRScheduler`. Restarts: see `timm_cosine`.

    Example:
        >>> timm_poly(1.0, 4, power=2.0)(range(6))
        array([1.    , 0.5625, 0.25  , 0.0625, 0.    , 0.    ])
    """
    lr, low = number("lr", lr, FINITE), number("lr_min", lr_min, NOT_NEGATIVE)
    length, factor = float(count("t_initial", t_initial)), ratio("cycle_mul", cycle_mul)
    decay = number("cycle_decay", cycle_decay, NOT_NEGATIVE)
    parts, boundaries = [], [0.0]
    for i in range(count("cycle_limit", cycle_limit)):
        peak = lr * _core.pow(growth(lr, decay), float(i))
        parts.append(ramp(peak, low, length, power=power, warp=k_decay))
        boundaries.append(boundaries[-1] + length)
        length *= factor
    spec = _timm_warmup(_joined(parts, boundaries[1:-1]), lr, warmup_t, warmup_lr_init, warmup_prefix)
    return Schedule(spec, _timm_total(boundaries[-1], warmup_t, warmup_prefix))


@_preset
def timm_step(
    lr: float,
    decay_t: float,
    decay_rate: float = 1.0,
    warmup_t: int = 0,
    warmup_lr_init: float = 0.0,
    warmup_prefix: bool = True,
) -> Schedule:
    """`timm.scheduler.StepLRScheduler`.

    Example:
        >>> timm_step(1.0, 2, 0.5)(range(5))
        array([1.  , 1.  , 0.5 , 0.5 , 0.25])
    """
    lr, every = number("lr", lr, FINITE), number("decay_t", decay_t, POSITIVE)
    spec = exponential(lr, number("decay_rate", decay_rate, NOT_NEGATIVE), every, staircase=True)._spec
    return Schedule(_timm_warmup(spec, lr, warmup_t, warmup_lr_init, warmup_prefix), None)


@_preset
def timm_multi_step(
    lr: float,
    decay_t: Sequence[int],
    decay_rate: float = 1.0,
    warmup_t: int = 0,
    warmup_lr_init: float = 0.0,
    warmup_prefix: bool = True,
) -> Schedule:
    """`timm.scheduler.MultiStepLRScheduler`: a milestone of `m` comes into effect at step `m - 1`, so from 2 on.

    Example:
        >>> timm_multi_step(1.0, [2, 4], 0.5)(range(5))
        array([1.  , 0.5 , 0.5 , 0.25, 0.25])
    """
    lr = number("lr", lr, FINITE)
    milestones = [count(f"decay_t[{i}]", value, 2) for i, value in enumerate(several("decay_t", decay_t))]
    ascending("decay_t", milestones, strictly=False)
    spec = multi_step(lr, [value - 1 for value in milestones], number("decay_rate", decay_rate, NOT_NEGATIVE))._spec
    return Schedule(_timm_warmup(spec, lr, warmup_t, warmup_lr_init, warmup_prefix), None)


def _timm_stable(lr: float, low: float, timescale: float, power: float) -> Spec:
    """`lr (1 + t / timescale)^-power`, but not below `low`."""
    met = timescale * (_core.pow(low / lr, -1.0 / power) - 1.0) if lr > low > 0 else math.inf
    if lr <= low or met <= 0:
        return ("constant", low)
    fall = ("inverse_power", lr, timescale, power)
    return _joined([fall, ("constant", low)], [met]) if math.isfinite(met) else fall


@_preset
def timm_wsd(
    lr: float,
    t_initial: int,
    decay_t: int,
    lr_min: float = 0.0,
    stable_fn: str = "constant",
    stable_timescale: float | None = None,
    stable_power: float = 0.5,
    decay_fn: str = "1-sqrt",
    decay_power: float = 0.5,
    decay_ratio: float = 0.1,
    warmup_t: int = 0,
    warmup_lr_init: float = 0.0,
) -> Schedule:
    """`timm.scheduler.WSDLRScheduler`: a warmup, a stable phase, a decay in the last `decay_t` of `t_initial` steps.

    `stable_fn` is "constant", "rsqrt" or "power", `decay_fn` "linear", "1-sqrt", "cosine", "power" or "exp"; the peer's
    functions for `decay_fn` are not taken.

    Example:
        >>> timm_wsd(1.0, 6, 4, decay_fn="linear", warmup_t=2)(range(9))
        array([0.  , 0.5 , 1.  , 1.  , 1.  , 0.75, 0.5 , 0.25, 0.  ])
        >>> timm_wsd(1.0, 9, 1, stable_fn="rsqrt", stable_timescale=1)([0, 3, 8, 9]).round(3)
        array([1.   , 0.5  , 0.333, 0.   ])
    """
    lr, low = number("lr", lr, FINITE), number("lr_min", lr_min, NOT_NEGATIVE)
    total, down = count("t_initial", t_initial), count("decay_t", decay_t)
    if down > total:
        raise ValueError(f"decay_t must be at most t_initial, {total}, which it is a part of, got {decay_t!r}")
    warm = count("warmup_t", warmup_t, 0)
    power = number("stable_power", stable_power, POSITIVE)
    warp, last = number("decay_power", decay_power, POSITIVE), number("decay_ratio", decay_ratio, ABOVE_ZERO_BELOW_ONE)
    choice("stable_fn", stable_fn, ("constant", "rsqrt", "power"))
    shapes: dict[str, Spec] = {
        "linear": ramp(1.0, 0.0, down),
        "1-sqrt": ramp(1.0, 0.0, down, "sqrt"),
        "cosine": ramp(1.0, 0.0, down, "cosine"),
        "power": ramp(1.0, 0.0, down, warp=warp),
        "exp": (
            "sum",
            (
                ramp(1.0 / (1.0 - last), last / (1.0 - last), down, "exponential"),
                ("constant", -last / (1.0 - last)),
            ),
        ),
    }
    decay = shapes[choice("decay_fn", decay_fn, tuple(shapes))]
    if stable_fn == "constant":
        stable: Spec = ("constant", max(lr, low))
    else:
        if stable_timescale is None and not warm:
            raise ValueError("stable_timescale must be given where there is no warmup, whose length it is by default")
        timescale = float(warm) if stable_timescale is None else number("stable_timescale", stable_timescale, POSITIVE)
        stable = _timm_stable(lr, low, timescale, 0.5 if stable_fn == "rsqrt" else power)
    # The stable phase goes on under the decay: low + (stable - low) decay.
    begin = total - down
    above: Spec = ("sum", (("shift", stable, -float(begin)), ("constant", -low)))
    fall: Spec = ("sum", (("constant", low), ("product", (above, decay))))
    spec = _joined([stable, fall], [begin]) if begin else fall
    rise = ramp(number("warmup_lr_init", warmup_lr_init, FINITE), lr, max(warm, 1))
    return Schedule(_joined([rise, spec], [warm]) if warm else spec, warm + total)
