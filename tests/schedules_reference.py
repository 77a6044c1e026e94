"""The specification of schedules: plain Python math. Functions have the names and arguments of `ironstep.schedules`.

Each returns a function of the step. Nothing is checked.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

Curve: TypeAlias = Callable[[float], float]


class PastEndError(Exception):
    """The step is past the end of a schedule with after="raise"."""


def within(t: float, last: float, after: str) -> float:
    """The step to take the equation at."""
    if t > last and after == "raise":
        raise PastEndError
    return min(t, last) if after == "hold" else t


def mixed(start: float, end: float, w: float) -> float:
    return end + (start - end) * w


def weight(shape: str, u: float) -> float:
    if shape in ("cosine", "cos"):
        return (1 + math.cos(math.pi * u)) / 2
    return {"linear": 1 - u, "sqrt": 1 - math.sqrt(u)}[shape]


def between(shape: str, start: float, end: float, u: float) -> float:
    if shape == "exponential":
        return math.exp((1 - u) * math.log(start) + u * math.log(end))
    return mixed(start, end, weight(shape, u))


def grown(value: float, gamma: float, exponent: float) -> float:
    """`value * gamma ** exponent`, infinite if that is too large; 0 does not grow."""
    try:
        return value * gamma**exponent if value else 0.0
    except OverflowError:
        return math.copysign(math.inf, value)


def constant(value: float) -> Curve:
    return lambda t: value


def linear(start: float, end: float, steps: int, *, endpoint: bool = False, after: str = "hold") -> Curve:
    return polynomial(start, end, steps, 1.0, endpoint=endpoint, after=after)


def polynomial(
    start: float, end: float, steps: int, power: float = 1.0, *, endpoint: bool = False, after: str = "hold"
) -> Curve:
    last = steps - endpoint
    return lambda t: mixed(start, end, (1 - within(t, last, after) / last) ** power)


def step(value: float, step_size: int, gamma: float = 0.1) -> Curve:
    return lambda t: grown(value, gamma, t // step_size)


def multi_step(value: float, milestones: Sequence[int], gamma: float = 0.1) -> Curve:
    return lambda t: grown(value, gamma, bisect.bisect_right(milestones, t))


def exponential(
    value: float, gamma: float, decay_steps: float = 1, *, staircase: bool = False, limit: float | None = None
) -> Curve:
    def at(t: float) -> float:
        exponent = math.floor(t / decay_steps) if staircase else t / decay_steps
        x = grown(value, gamma, exponent)
        if limit is None:
            return x
        return max(x, limit) if gamma < 1 else min(x, limit)

    return at


def cosine(
    start: float,
    end: float = 0.0,
    *,
    steps: int,
    power: float = 1.0,
    warp: float = 1.0,
    endpoint: bool = False,
    after: str = "hold",
) -> Curve:
    last = steps - endpoint
    return lambda t: mixed(start, end, weight("cosine", (within(t, last, after) / last) ** warp) ** power)


def cosine_restarts(
    start: float,
    end: float = 0.0,
    *,
    T_0: int,  # noqa: N803
    T_mult: float = 1,  # noqa: N803
    decay: float = 1.0,
    cycles: int | None = None,
    warp: float = 1.0,
    endpoint: bool = False,
    after: str = "hold",
) -> Curve:
    def at(t: float) -> float:
        i, begin, length = 0, 0.0, float(T_0)
        if T_mult == 1:
            i = math.floor(t / T_0) if cycles is None else min(math.floor(t / T_0), cycles - 1)
            begin = i * length
        else:
            while t >= begin + length and (cycles is None or i < cycles - 1):
                i, begin, length = i + 1, begin + length, length * T_mult
        last = length - endpoint
        if i + 1 == cycles:
            t = within(t - begin, last, after)
        else:
            t = t - begin if after == "extend" else min(t - begin, last)
        return mixed(grown(start, decay, i), end, weight("cosine", (t / last) ** warp))

    return at


def phases(values: Sequence[float], ends: Sequence[float], anneal: str, after: str) -> Curve:
    """In the words of torch's loop."""

    def at(t: float) -> float:
        t = within(t, ends[-1], after)
        begin = 0.0
        i = 0
        for i, end in enumerate(ends):  # noqa: B007
            if (end > 0 and t <= end) or end >= ends[-1]:
                break
            begin = end
        return mixed(values[i], values[i + 1], weight(anneal, (t - begin) / (end - begin)))

    return at


def up_and_down(values: Sequence[float], steps: int, pct_start: float, anneal: str, three: bool, after: str) -> Curve:
    low, high, final = values
    first, last = pct_start * steps - 1, steps - 1
    if three:
        return phases([low, high, low, final], [first, 2 * first, last], anneal, after)
    return phases([low, high, final], [first, last], anneal, after)


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
) -> Curve:
    low = max / div_factor
    return up_and_down([low, max, low / final_div_factor], steps, pct_start, anneal, three_phase, after)


def one_cycle_momentum(
    base: float = 0.85,
    max: float = 0.95,
    *,
    steps: int,
    pct_start: float = 0.3,
    anneal: str = "cos",
    three_phase: bool = False,
    after: str = "hold",
) -> Curve:
    return up_and_down([max, base, max], steps, pct_start, anneal, three_phase, after)


def inverse_sqrt(value: float, timescale: float, *, warmup_steps: int = 0) -> Curve:
    return warmup(lambda t: value / math.sqrt(1 + t / timescale), warmup_steps)


def cyclic(
    base: float,
    max: float,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    *,
    mode: str = "triangular",
    gamma: float = 1.0,
) -> Curve:
    down = step_size_up if step_size_down is None else step_size_down

    def at(t: float) -> float:
        cycle, x = divmod(t, step_size_up + down)
        height = x / step_size_up if x <= step_size_up else 1 - (x - step_size_up) / down
        if mode == "exp_range":
            return base + grown((max - base) * height, gamma, t)
        return base + (max - base) * height * {"triangular": 1.0, "triangular2": 0.5**cycle}[mode]

    return at


def piecewise(
    boundaries: Sequence[float], values: Sequence[float], *, interpolation: str = "constant", after: str = "hold"
) -> Curve:
    def at(t: float) -> float:
        i = bisect.bisect_right(boundaries, t)
        if interpolation == "constant":
            return values[i]
        i = min(i, len(boundaries) - 1)
        begin = boundaries[i - 1] if i else 0.0
        u = within((t - begin) / (boundaries[i] - begin), 1.0, after)
        return between(interpolation, values[i], values[i + 1], u)

    return at


def warmup(schedule: Curve, steps: int, *, start: float = 0.0, skip_start: bool = True, within: bool = False) -> Curve:
    def at(t: float) -> float:
        if t < steps:
            return mixed(schedule(0.0), start, min(1.0, (t + skip_start) / steps))
        return schedule(t if within else t - steps)

    return at


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
) -> Curve:
    fall = cosine(peak, end, steps=steps - warmup_steps, endpoint=endpoint, after=after)
    return warmup(fall, warmup_steps, start=start, skip_start=skip_start)


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
) -> Curve:
    def at(t: float) -> float:
        if t < warmup_steps:
            return mixed(peak, start, min(1.0, (t + skip_start) / warmup_steps))
        t -= warmup_steps + stable_steps
        return peak if t < 0 else between(decay, peak, end, within(t, decay_steps, after) / decay_steps)

    return at


def join(schedules: Sequence[Curve], boundaries: Sequence[float]) -> Curve:
    def at(t: float) -> float:
        i = bisect.bisect_right(boundaries, t)
        return schedules[i](t - (boundaries[i - 1] if i else 0.0))

    return at


def scale(schedule: Curve, factor: float) -> Curve:
    return lambda t: factor * schedule(t)


def shift(schedule: Curve, steps: int) -> Curve:
    return lambda t: schedule(max(0.0, t - steps))


def chain(*schedules: Curve) -> Curve:
    return lambda t: math.prod(schedule(t) for schedule in schedules)


def add(*schedules: Curve) -> Curve:
    return lambda t: math.fsum(schedule(t) for schedule in schedules)


def per_epoch(schedule: Curve, steps_per_epoch: int) -> Curve:
    return lambda t: schedule(t // steps_per_epoch)


def scaled_lr(lr: float, batch_size: int, base_batch_size: int = 256, *, rule: str = "linear") -> float:
    return lr * (batch_size / base_batch_size) ** {"linear": 1.0, "sqrt": 0.5}[rule]


def made(text: str) -> Any:
    """What the text says, with these functions."""
    return eval(text, globals())
