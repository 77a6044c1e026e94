"""Schedules: against plain math, against the libraries that the presets name, and in optimisers."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import ironstep
import schedules_reference as reference
from cases import CASES as OPTIMIZERS
from helpers import assert_same_bits
from ironstep import schedules
from ironstep.optim._hyper import LIMITS
from ironstep.schedules import ReduceLROnPlateau, Schedule, parse, presets

# -- Against plain math ------------------------------------------------------------------------------------------------

CASES = """
constant(0.3)
constant(-2)
linear(1.0, 0.1, 10)
linear(0.1, 1.0, 10, endpoint=True)
linear(1.0, 0.1, 10, after='extend')
linear(1.0, 0.1, 10, after='raise')
linear(0.7, 0.7, 3)
linear(1.0, 0.0, 1)
polynomial(1.0, 0.1, 10, 2.0)
polynomial(1.0, 0.1, 10, 0.5, endpoint=True)
polynomial(0.1, 1.0, 7, 3, after='extend')
polynomial(0.1, 1.0, 7, 2.5, after='raise')
step(0.3, 7)
step(0.3, 1, 0.9)
step(0.3, 5, 1.5)
step(0.3, 5, 0)
multi_step(0.3, [3, 4, 9])
multi_step(0.3, [3, 3, 9], 0.5)
multi_step(0.3, [])
exponential(0.3, 0.9)
exponential(0.3, 0.9, 10)
exponential(0.3, 1.1, 2.5, limit=0.7)
exponential(0.3, 0.5, 10, staircase=True)
exponential(0.3, 0.5, 4, limit=0.01)
exponential(0.3, 0.5, 4, staircase=True, limit=0.4)
cosine(0.3, steps=10)
cosine(0.3, 0.01, steps=10, endpoint=True)
cosine(0.3, 0.01, steps=10, power=2.0)
cosine(0.3, 0.01, steps=10, power=0.5, warp=1.5)
cosine(0.3, 0.01, steps=10, after='extend')
cosine(0.3, 0.01, steps=10, power=1.5, after='extend')
cosine(0.3, 0.01, steps=10, after='raise', endpoint=True)
cosine(0.3, steps=1)
cosine_restarts(0.3, 0.01, T_0=5)
cosine_restarts(0.3, 0.01, T_0=5, T_mult=2, decay=0.5)
cosine_restarts(0.3, 0.01, T_0=5, T_mult=1.5, decay=0.9, warp=2.0)
cosine_restarts(0.3, 0.01, T_0=4, T_mult=1.3, cycles=3, endpoint=True)
cosine_restarts(0.3, 0.01, T_0=5, cycles=3, decay=0.5)
cosine_restarts(0.3, T_0=5, T_mult=3, cycles=2, after='raise')
cosine_restarts(0.3, T_0=5, cycles=2, endpoint=True, after='raise')
cosine_restarts(0.3, T_0=5, cycles=2, after='extend')
cosine_restarts(0.3, T_0=1)
warmup(cosine(0.3, 0.01, steps=10), 5)
warmup(cosine(0.3, 0.01, steps=10), 5, start=0.02)
warmup(cosine(0.3, 0.01, steps=10), 5, skip_start=False)
warmup(cosine(0.3, 0.01, steps=10), 5, start=0.4, skip_start=False, within=True)
warmup(linear(0.3, 0.01, 10, after='raise'), 20, within=True)
warmup(warmup(constant(1.0), 3), 2, start=0.9)
warmup(step(0.3, 3), 1)
warmup_cosine(0.3, steps=20, warmup_steps=6)
warmup_cosine(0.3, 0.01, steps=20, warmup_steps=6, start=0.05, skip_start=False)
warmup_cosine(0.3, 0.01, steps=20, warmup_steps=6, endpoint=True)
warmup_cosine(0.3, 0.01, steps=20, warmup_steps=0, after='extend')
warmup_cosine(0.3, 0.01, steps=20, warmup_steps=3, after='raise', endpoint=True)
one_cycle(0.3, 20)
one_cycle(0.3, 21, anneal='linear')
one_cycle(0.3, 20, pct_start=0.25, div_factor=10, final_div_factor=100.0)
one_cycle(0.3, 20, three_phase=True)
one_cycle(0.3, 21, pct_start=0.4, anneal='linear', three_phase=True, after='extend')
one_cycle(0.3, 10, pct_start=0.5, three_phase=True)
one_cycle(0.3, 20, after='extend')
one_cycle(0.3, 20, after='raise')
one_cycle(0.3, 20, pct_start=0.0)
one_cycle(0.3, 20, pct_start=1)
one_cycle(0.3, 10, pct_start=0.1)
one_cycle(0.3, 10, pct_start=0.1, three_phase=True)
one_cycle(0.3, 1)
one_cycle(0.3, 2)
one_cycle(0.3, 3)
one_cycle(0.3, 4, after='extend')
one_cycle(0.3, 1, three_phase=True)
one_cycle(0.3, 2, three_phase=True)
one_cycle(0.3, 3, three_phase=True, anneal='linear')
one_cycle_momentum(steps=20)
one_cycle_momentum(0.8, 0.9, steps=20, anneal='linear', pct_start=0.4)
one_cycle_momentum(steps=20, three_phase=True)
one_cycle_momentum(steps=3)
inverse_sqrt(0.3, 10)
inverse_sqrt(0.3, 2.5, warmup_steps=6)
warmup_stable_decay(0.3, warmup_steps=5, stable_steps=7, decay_steps=6)
warmup_stable_decay(0.3, 0.01, warmup_steps=5, stable_steps=7, decay_steps=6, decay='linear', start=0.1)
warmup_stable_decay(0.3, 0.01, warmup_steps=0, stable_steps=7, decay_steps=6, decay='sqrt', after='extend')
warmup_stable_decay(0.3, 0.01, warmup_steps=5, stable_steps=0, decay_steps=6, decay='exponential', after='extend')
warmup_stable_decay(0.3, 0.01, warmup_steps=0, stable_steps=0, decay_steps=6, decay='exponential', after='raise')
warmup_stable_decay(0.3, warmup_steps=5, stable_steps=7, decay_steps=6, skip_start=False)
cyclic(0.01, 0.3, 5)
cyclic(0.01, 0.3, 5, 3, mode='triangular2')
cyclic(0.01, 0.3, 2, 6, mode='exp_range', gamma=0.97)
cyclic(0.9, 0.8, 4)
piecewise([3, 9], [0.3, 0.2, 0.05])
piecewise([], [0.3])
piecewise([3, 9.5], [0.3, 0.2, 0.05], interpolation='linear')
piecewise([3, 9, 12], [0.3, 0.2, 0.2, 0.05], interpolation='cosine')
piecewise([3, 9], [0.3, 0.2, 0.05], interpolation='sqrt', after='extend')
piecewise([3, 9], [0.3, 0.2, 0.05], interpolation='exponential', after='raise')
join([linear(0.0, 0.3, 5), constant(0.3), cosine(0.3, steps=10)], [5, 8])
join([linear(0.0, 0.3, 5)], [])
join([constant(1), linear(1, 0, 3, after='raise')], [2.5])
scale(cosine(0.3, steps=10), 2)
scale(cosine(0.3, steps=10), -0.5)
shift(cosine(0.3, steps=10), 4)
shift(step(0.3, 3), 0)
chain(cosine(0.3, steps=10), step(1.0, 3), constant(2.0))
chain(step(1.0, 3))
shift(cosine(0.3, steps=10), -4)
shift(cosine_restarts(0.3, 0.01, T_0=5, T_mult=2), -7)
shift(linear(0.3, 0.1, 5), -9)
shift(linear(0.3, 0.1, 9, after='raise'), -3)
add(cosine(0.3, steps=10), step(1.0, 3), constant(-2.0))
add(step(1.0, 3))
add(linear(0.3, 0.1, 9, after='raise'), constant(1))
exponential(0.0, 2.0)
exponential(0, 2.0, 3, staircase=True, limit=0.5)
step(0.0, 3, 1e300)
multi_step(0.0, [2, 3, 5], 1e200)
cosine_restarts(0.0, 0.1, T_0=3, decay=10.0)
cyclic(0.3, 0.3, 4, mode='exp_range', gamma=2.0)
per_epoch(cosine(0.3, steps=10, endpoint=True), 4)
per_epoch(warmup(step(0.3, 2), 2), 3)
""".strip().splitlines()

each_case = pytest.mark.parametrize("text", CASES)

ENDLESS = 40
"""How many steps of a schedule without an end are looked at."""


def make(text: str) -> Schedule:
    made = eval(text, vars(schedules))
    assert isinstance(made, Schedule)
    return made


def times(covered: int | None) -> list[float]:
    """Every half step from 0 to 30 % past the end, boundaries among them, and some steps that are far away."""
    n = ENDLESS if covered is None else covered
    near = [i / 2 for i in range(2 * math.ceil(1.3 * n) + 6)]
    return [*near, 0.1, n - 0.01, n + 1 / 3, 12345.0, 1e15]


def close(got: float, want: float, size: float) -> bool:
    # A rounding of the largest value among those that are mixed is not small beside a result that is nearly 0.
    return abs(got - want) <= 2e-13 * abs(want) + 4e-16 * size


@each_case
def test_equals_plain_math(text: str):
    schedule, want = make(text), reference.made(text)
    size = max(1.0, *(abs(want(t / 2)) for t in range(4)))
    ends = 0
    for t in times(schedule.steps):
        try:
            expected = want(t)
        except reference.PastEndError:
            ends += 1
            with pytest.raises(ValueError, match=r"step must be at most .* the end of the schedule, got"):
                schedule(t)
            with pytest.raises(ValueError, match=r"step must be at most .* the end of the schedule, got"):
                schedule(np.array([0.0, t]))
            continue
        if not math.isfinite(expected):
            for step in (t, np.array([0.0, t])):
                with pytest.raises(ValueError, match=r"is not finite at step .*, but inf"):
                    schedule(step)
            continue
        grown = size * t if "extend" in text else size
        assert close(schedule(t), expected, grown), f"{text} at {t}: {schedule(t)!r}"
    assert (ends > 0) == ("raise" in text)


@each_case
def test_array_is_scalar_by_scalar(text: str):
    schedule = make(text)
    at = [t for t in times(schedule.steps) if "raise" not in text or t <= (schedule.steps or 0) - 1]
    if text == "step(0.3, 5, 1.5)":  # Grows without end.
        at = [t for t in at if t < 1000]
    one_by_one = np.array([schedule(t) for t in at])
    assert all(type(schedule(t)) is float for t in at)
    assert_same_bits(schedule(np.array(at)), one_by_one, text)
    whole = np.array([int(t) for t in at if t == int(t)])
    assert_same_bits(schedule(whole), np.array([schedule(float(t)) for t in whole]), text)
    assert_same_bits(schedule(whole), np.array([schedule(int(t)) for t in whole]), text)


def drawn(rng: np.random.Generator, depth: int) -> str:
    """A random schedule of schedules, as text."""

    def x() -> float:
        return round(float(rng.uniform(0.01, 1.0)), 3)

    def n(low: int = 1, high: int = 40) -> int:
        return int(rng.integers(low, high))

    def yes() -> bool:
        return bool(rng.integers(2))

    end = f"after={str(rng.choice(['hold', 'extend']))!r}"
    leaves = [
        f"polynomial({x()}, {x()}, {n(2)}, {n(1, 4)}, endpoint={yes()}, {end})",
        f"exponential({x()}, {1.5 * x()}, {9 * x()}, staircase={yes()}, limit={x() if yes() else None})",
        f"multi_step({x()}, {sorted(n() for _ in range(n(0, 4)))}, {x()})",
        f"cosine({x()}, {x()}, steps={n(2)}, power={x() + 0.5}, warp={x() + 0.5}, endpoint={yes()}, {end})",
        f"cosine_restarts({x()}, {x()}, T_0={n(2, 15)}, T_mult={n(2, 5) / 2}, decay={x()}, "
        f"cycles={n(1, 5) if yes() else None}, warp={x() + 0.5}, endpoint={yes()}, {end})",
        f"one_cycle({x()}, {n()}, pct_start={x() / 2}, three_phase={yes()}, {end})",
        f"inverse_sqrt({x()}, {20 * x()}, warmup_steps={n(0, 9)})",
        f"cyclic({x()}, {x()}, {n()}, {n()}, mode='triangular2')",
        f"warmup_stable_decay({x()}, {x()}, warmup_steps={n(0)}, stable_steps={n(0)}, decay_steps={n()}, decay='sqrt', "
        f"start={x()}, skip_start={yes()}, {end})",
    ]
    if depth == 0 or rng.random() < 0.2:
        return str(rng.choice(leaves))
    a, b = drawn(rng, depth - 1), drawn(rng, depth - 1)
    trees = [
        f"warmup({a}, {n()}, start={x()}, skip_start={yes()}, within={yes()})",
        f"join([{a}, {b}], [{n()}])",
        f"scale({a}, {x()})",
        f"shift({a}, {n(-20)})",
        f"chain({a}, {b})",
        f"add({a}, {b})",
        f"per_epoch({a}, {n(1, 6)})",
    ]
    return str(rng.choice(trees))


@pytest.mark.parametrize("seed", range(8))
def test_random_schedules_of_schedules(seed: int):
    rng = np.random.default_rng(seed)
    at = np.arange(130) / 2
    for _ in range(40):
        text = drawn(rng, 2)
        schedule, want = make(text), reference.made(text)
        assert parse(repr(schedule)) == schedule
        expected = np.array([want(t) for t in at])
        size = np.abs(expected).max()
        wrong = np.abs(schedule(at) - expected) > 1e-11 * np.abs(expected) + 1e-13 * max(1.0, size)
        assert not wrong.any(), f"{text} at {at[wrong]}"


def test_every_function_is_in_the_table():
    made = {name for name in schedules.__all__ if name[0].islower()} - {"presets", "parse", "scaled_lr"}
    assert made == {text.split("(")[0] for text in CASES}


@pytest.mark.parametrize("n", [0, 1, 5, 20_000])
def test_arrays_of_any_kind(n: int):
    schedule = schedules.cosine(0.3, 0.01, steps=15_000)
    want = np.array([schedule(i) for i in range(n)])
    for dtype in ("i1", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">f8", ">i4", "g"):
        steps = np.arange(n) % (100 if dtype == "i1" else 2048 if dtype == "f2" else n + 1)
        given = steps.astype(dtype)
        assert_same_bits(schedule(given), want[steps], dtype)
        assert np.array_equal(given, steps)
    steps = np.arange(n, dtype=np.float64)
    assert_same_bits(schedule(np.repeat(steps, 2)[::2]), want, "strided")
    assert_same_bits(schedule(steps[::-1]), want[::-1], "reversed")
    assert_same_bits(schedule(steps.reshape(1, -1, 1)), want.reshape(1, -1, 1), "3-d")
    steps.flags.writeable = False
    assert_same_bits(schedule(steps), want, "read-only")
    unaligned = np.zeros(8 * n + 1, np.uint8)[1:].view(np.float64)
    unaligned[...] = steps
    assert_same_bits(schedule(unaligned), want, "unaligned")
    assert_same_bits(schedule(range(n)), want, "range")
    assert_same_bits(schedule(list(range(n))), want, "list")


def test_shapes():
    schedule = schedules.linear(0.0, 1.0, 100)
    steps = np.arange(12.0).reshape(3, 4)
    assert_same_bits(schedule(np.asfortranarray(steps)), np.array([[schedule(t) for t in row] for row in steps]))
    assert_same_bits(schedule(np.array(7)), np.array(schedule(7)))
    assert schedule(np.empty((0, 3))).shape == (0, 3)


def test_numbers_of_any_kind():
    schedule = schedules.cosine(0.3, steps=10)
    for step in (3, 3.0, np.int8(3), np.uint64(3), np.float16(3), np.float64(3), np.longdouble(3), Fraction(3)):
        assert type(schedule(step)) is float
        assert schedule(step) == schedule(3)


def test_same_bits_for_any_thread_count():
    before = ironstep.get_num_threads()
    steps = np.arange(50_000) / 3
    schedule = schedules.cosine_restarts(0.3, T_0=50, T_mult=1.1, decay=0.9)
    got = []
    try:
        for n in (1, 2, 3):
            ironstep.set_num_threads(n)
            got.append(schedule(steps))
    finally:
        ironstep.set_num_threads(before)
    for other in got[1:]:
        assert_same_bits(other, got[0])


def test_bits():
    """Of every platform. The core takes its functions from the libm crate, and Python's own arithmetic is IEEE's."""
    bits = {
        "cosine(0.1, steps=7)": (3, "0x1.f4be9c700744dp-5"),
        "polynomial(0.1, 0.01, 7, 1.7)": (3, "0x1.6eac329cb0bbcp-5"),
        "exponential(0.1, 0.93)": (100, "0x1.27c53b39a9f07p-14"),
        "multi_step(0.1, [3, 5, 6], 0.3)": (6, "0x1.61e4f765fd8adp-9"),
        "inverse_sqrt(0.1, 7)": (3, "0x1.56b22992ef594p-4"),
        "warmup_stable_decay(0.1, 0.01, warmup_steps=1, stable_steps=1, decay_steps=7, decay='exponential')": (
            5,
            "0x1.315d4e66e38b5p-5",
        ),
        "one_cycle(0.1, 20)": (7, "0x1.8551898fc1ee6p-4"),
    }
    assert {text: make(text)(t).hex() for text, (t, _) in bits.items()} == {
        text: value for text, (_, value) in bits.items()
    }


def test_ends_are_exact():
    for shape in ("linear", "cosine", "sqrt", "exponential"):
        schedule = schedules.piecewise([7, 12], [0.3, 0.1, 0.7], interpolation=shape)
        assert [schedule(t) for t in (0, 7, 12, 13, 1e9)] == [0.3, 0.1, 0.7, 0.7, 0.7]
    assert schedules.linear(0.3, 0.1, 7, endpoint=True)(6) == 0.1
    assert schedules.polynomial(0.3, 0.1, 7, 1.7, endpoint=True)(6) == 0.1
    assert schedules.cosine(0.3, 0.1, steps=7, endpoint=True)(6) == 0.1
    assert schedules.warmup_cosine(0.3, 0.01, steps=20, warmup_steps=6, endpoint=True)(19) == 0.01
    assert schedules.warmup_cosine(0.3, steps=20, warmup_steps=6)(5) == 0.3
    assert schedules.one_cycle(0.3, 20)(5) == 0.3
    assert schedules.one_cycle(0.3, 20)(19) == 0.3 / 25 / 1e4
    assert schedules.one_cycle(0.3, 1, pct_start=1)(0) == 0.3 / 25 / 1e4
    restarts = schedules.cosine_restarts(0.3, 0.01, T_0=5, T_mult=2, endpoint=True)
    assert [restarts(t) for t in (0, 4, 5, 14, 15)] == [0.3, 0.01, 0.3, 0.01, 0.3]


def test_steps():
    covered = {
        "linear(1, 0, 10)": 10,
        "linear(1, 0, 10, endpoint=True)": 10,
        "constant(1)": None,
        "step(1, 3)": None,
        "one_cycle(1, 20)": 20,
        "one_cycle(1, 1)": 1,
        "warmup(linear(1, 0, 10), 5)": 15,
        "warmup(linear(1, 0, 10), 5, within=True)": 10,
        "warmup(linear(1, 0, 10), 50, within=True)": 50,
        "warmup(constant(1), 5)": None,
        "warmup_cosine(1, steps=20, warmup_steps=6, endpoint=True)": 20,
        "warmup_stable_decay(1, warmup_steps=5, stable_steps=7, decay_steps=6)": 18,
        "cosine_restarts(1, T_0=5)": None,
        "cosine_restarts(1, T_0=5, cycles=3)": 15,
        "cosine_restarts(1, T_0=5, T_mult=3, cycles=3, endpoint=True)": 65,
        "cosine_restarts(1, T_0=10, T_mult=1.1, cycles=3)": 34,
        "cosine_restarts(1, T_0=10, T_mult=2, cycles=2000)": None,
        "piecewise([3, 9.5], [1, 2, 3], interpolation='linear')": 10,
        "piecewise([3, 9.5], [1, 2, 3])": None,
        "join([constant(1), linear(1, 0, 10)], [5])": 15,
        "join([linear(1, 0, 10), constant(1)], [5])": None,
        "chain(linear(1, 0, 10), constant(1), linear(1, 0, 7))": 10,
        "chain(constant(1))": None,
        "scale(linear(1, 0, 10), 2)": 10,
        "shift(linear(1, 0, 10), 2)": 12,
        "shift(linear(1, 0, 10), -3)": 7,
        "shift(linear(1, 0, 10), -30)": 1,
        "shift(constant(1), -30)": None,
        "add(linear(1, 0, 10), constant(1), linear(1, 0, 7))": 10,
        "add(constant(1))": None,
        "per_epoch(linear(1, 0, 10), 3)": 30,
        "per_epoch(constant(1), 3)": None,
    }
    assert {text: make(text).steps for text in covered} == covered


def test_operators():
    a, b = schedules.cosine(0.3, steps=10), schedules.step(1.0, 3)
    assert 2 * a == a * 2 == schedules.scale(a, 2)
    assert np.float64(2) * a == schedules.scale(a, 2)
    assert a * np.float32(2) == schedules.scale(a, 2)
    assert a * b == schedules.chain(a, b)
    assert a + b == schedules.add(a, b)
    assert a + 2 == 2 + a == np.float64(2) + a == a + np.float32(2) == schedules.add(a, schedules.constant(2))
    assert repr(0.1 + a) == "add(cosine(0.3, steps=10), constant(0.1))"
    assert [(0.1 + a + b)(t) for t in range(12)] == [a(t) + 0.1 + b(t) for t in range(12)]
    assert sum([a, b]) == a + 0 + b
    with pytest.raises(ValueError, match="value must be finite, got nan"):
        a + math.nan
    for other in (True, "x", None, np.ones(2), 1j):
        with pytest.raises(TypeError, match=r"unsupported operand|can't multiply|does not support ufuncs"):
            other * a
        with pytest.raises(TypeError, match=r"unsupported operand|can't multiply|does not support ufuncs"):
            a * other
        with pytest.raises(TypeError, match=r"unsupported operand|oncatenat|does not support ufuncs"):
            other + a
        with pytest.raises(TypeError, match=r"unsupported operand|oncatenat|does not support ufuncs"):
            a + other


def test_scaled_lr():
    for rule in ("linear", "sqrt"):
        for batch_size in (1, 256, 300, 8192):
            got = schedules.scaled_lr(0.3, batch_size, 128, rule=rule)
            assert close(got, reference.scaled_lr(0.3, batch_size, 128, rule=rule), 0.0)
    assert schedules.scaled_lr(0.1, 512) == 0.2


# -- What they are as objects ------------------------------------------------------------------------------------------

PRESETS = """
torch_constant(0.3)
torch_constant(0.3, 0.5, 10)
torch_linear(0.3)
torch_linear(0.3, 0.1, 0.7, 10)
torch_linear(0.3, 1.0, 0.0, total_iters=9)
torch_step(0.3, 7)
torch_step(0.3, 3, 0.7)
torch_multi_step(0.3, [9, 3, 4, 3])
torch_multi_step(0.3, [2, 20], 0.7)
torch_exponential(0.3, 0.9)
torch_polynomial(0.3)
torch_polynomial(0.3, 20, 2.5)
torch_cosine_annealing(0.3, 10)
torch_cosine_annealing(0.3, 7, 0.02)
torch_cosine_annealing_warm_restarts(0.3, 5)
torch_cosine_annealing_warm_restarts(0.3, 3, 2, 0.02)
torch_one_cycle(0.3, 30)
torch_one_cycle(0.3, epochs=5, steps_per_epoch=6, pct_start=0.25, anneal_strategy='linear')
torch_one_cycle(0.3, 29, div_factor=10.0, final_div_factor=100.0, three_phase=True)
torch_one_cycle(0.3, 3)
torch_one_cycle(0.3, 2, three_phase=True)
torch_one_cycle(0.3, 10, pct_start=0.6, three_phase=True)
torch_one_cycle_momentum(total_steps=30)
torch_one_cycle_momentum(0.8, 0.9, 29, three_phase=True)
torch_one_cycle_momentum(0.8, 0.9, epochs=5, steps_per_epoch=6, pct_start=0.25, anneal_strategy='linear')
torch_cyclic(0.01, 0.3, 5)
torch_cyclic(0.01, 0.3, 5, 3, 'triangular2')
torch_cyclic(0.01, 0.3, 5, 9, 'exp_range', 0.97)
optax_constant(0.3)
optax_linear(0.3, 0.01, 10)
optax_linear(0.3, 0.01, 10, 5)
optax_linear(0.3, 0.01, 0)
optax_polynomial(0.3, 0.01, 2.5, 10)
optax_polynomial(0.3, 0.01, 3, 10, 4)
optax_polynomial(0.3, 0.01, 3, 10, -4)
optax_piecewise_constant(0.3)
optax_piecewise_constant(0.3, {10: 0.5, 3: 0.1})
optax_piecewise_constant(0.3, {0: 0.5, 3: 0.1})
optax_piecewise_interpolate('linear', 0.3, {10: 0.5, 3: 2.0})
optax_piecewise_interpolate('cosine', 0.3, {3: 0.5, 10: 0.1})
optax_piecewise_interpolate('cosine', 0.3, {0: 0.5, 10: 0.1})
optax_piecewise_interpolate('linear', 0.3)
optax_exponential_decay(0.3, 10, 0.5)
optax_exponential_decay(0.3, 3, 0.5, 4, True)
optax_exponential_decay(0.3, 3, 0.5, end_value=0.1)
optax_exponential_decay(0.3, 3, 1.5, 2, end_value=0.7)
optax_exponential_decay(0.3, 0, 0.5)
optax_exponential_decay(0.3, 3, 0)
optax_cosine_decay(0.3, 10)
optax_cosine_decay(0.3, 10, 0.1, 1.7)
optax_cosine_onecycle(20, 0.3)
optax_cosine_onecycle(17, 0.3, 0.25, 10.0, 100.0)
optax_cosine_onecycle(3, 0.3)
optax_cosine_onecycle(10, 0.3, 1.0)
optax_linear_onecycle(20, 0.3)
optax_linear_onecycle(17, 0.3, 0.25, 0.7, 10.0, 100.0)
optax_linear_onecycle(2, 0.3)
optax_warmup_constant(0.01, 0.3, 5)
optax_warmup_constant(0.01, 0.3, 0)
optax_warmup_cosine_decay(0.01, 0.3, 5, 20)
optax_warmup_cosine_decay(0.01, 0.3, 0, 20, 0.02, 1.7)
optax_warmup_cosine_decay(0.01, 0.0, 5, 20, 0.02)
optax_warmup_exponential_decay(0.01, 0.3, 5, 10, 0.5)
optax_warmup_exponential_decay(0.01, 0.3, 5, 3, 0.5, 4, True, 0.05)
optax_warmup_exponential_decay(0.01, 0.3, 5, 3, 1.5, 0, False, 0.2)
optax_sgdr([{'init_value': 0.0, 'peak_value': 0.3, 'warmup_steps': 2, 'decay_steps': 7}, \
{'init_value': 0.01, 'peak_value': 0.2, 'warmup_steps': 3, 'decay_steps': 9, 'end_value': 0.02}])
optax_join([optax_linear(0.0, 0.3, 5), optax_cosine_decay(0.3, 10), optax_constant(0.1)], [5, 18])
transformers_constant(0.3)
transformers_constant_with_warmup(0.3, 5)
transformers_constant_with_warmup(0.3, 0)
transformers_linear(0.3, 5, 20)
transformers_linear(0.3, 0, 20)
transformers_linear(0.3, 5, 5)
transformers_linear(0.3, 5, 3)
transformers_cosine(0.3, 5, 20)
transformers_cosine(0.3, 5, 20, 1.5)
transformers_cosine(0.3, 0, 20, 3)
transformers_cosine(0.3, 5, 20, 0)
transformers_cosine(0.3, 5, 5)
transformers_cosine_with_hard_restarts(0.3, 5, 20)
transformers_cosine_with_hard_restarts(0.3, 5, 20, 3)
transformers_cosine_with_hard_restarts(0.3, 5, 21, 3)
transformers_cosine_with_hard_restarts(0.3, 5, 20, 4)
transformers_cosine_with_hard_restarts(0.3, 5, 4)
transformers_cosine_with_min_lr(0.3, 5, 20, min_lr=0.02)
transformers_cosine_with_min_lr(0.3, 5, 20, 0.7, min_lr_rate=0.1)
transformers_cosine_warmup_with_min_lr(0.3, 5, 20, min_lr=0.02)
transformers_cosine_warmup_with_min_lr(0.3, 5, 20, 0.7, min_lr_rate=0.1, warmup_lr_rate=0.2)
transformers_cosine_warmup_with_min_lr(0.3, 5, 20, 1.5, min_lr_rate=0.1, warmup_lr_rate=0.0)
transformers_cosine_warmup_with_min_lr(0.3, 0, 20, min_lr=0.0)
transformers_cosine_warmup_with_min_lr(0.3, 1, 20, min_lr_rate=0.1)
transformers_cosine_warmup_with_min_lr(0.3, 1, 20, min_lr_rate=0.1, warmup_lr_rate=0.5)
transformers_cosine_warmup_with_min_lr(0.3, 5, 20, 0.0, min_lr_rate=0.1)
transformers_cosine_warmup_with_min_lr(0.3, 5, 6, min_lr=0.01)
transformers_cosine_warmup_with_min_lr(0.3, 5, 5, min_lr=0.4)
transformers_polynomial(0.3, 5, 20)
transformers_polynomial(0.3, 0, 20, 0.01, 2.5)
transformers_inverse_sqrt(0.3, 5)
transformers_inverse_sqrt(0.3, 0)
transformers_inverse_sqrt(0.3, 5, 9)
transformers_wsd(0.3, 5, 6, 20)
transformers_wsd(0.3, 5, 6, num_stable_steps=4, warmup_type='cosine', decay_type='1-sqrt', min_lr_ratio=0.1)
transformers_wsd(0.3, 5, 6, num_stable_steps=0, warmup_type='1-sqrt', decay_type='linear', min_lr_ratio=0.1)
transformers_wsd(0.3, 0, 6, 20, min_lr_ratio=0.1, num_cycles=1.5)
transformers_wsd(0.3, 5, 0, 20)
timm_cosine(0.3, 20)
timm_cosine(0.3, 20, 0.01, k_decay=1.5, warmup_t=5, warmup_lr_init=0.02)
timm_cosine(0.3, 5, 0.01, 2.0, 0.5, 3, 4, 0.02, True)
timm_cosine(0.3, 5, 0.01, 1.0, 0.5, 3, 4, 0.02)
timm_cosine(0.3, 5, 0.01, 1.5, 0.5, 3)
timm_step(0.3, 6)
timm_step(0.3, 6, 0.5, 4, 0.01)
timm_step(0.3, 2.5, 0.5, 4, 0.01, False)
timm_multi_step(0.3, [4, 9])
timm_multi_step(0.3, [4, 9], 0.5, 3, 0.01)
timm_multi_step(0.3, [2, 2, 9], 0.5, 3, 0.01, False)
timm_poly(0.3, 20)
timm_poly(0.3, 20, 2.0, 0.01, k_decay=0.7, warmup_t=5, warmup_lr_init=0.02)
timm_poly(0.3, 5, 0.5, 0.01, 2.0, 0.5, 3, 4, 0.02, True)
timm_poly(0.3, 5, 1.5, 0.01, 1.0, 0.5, 3)
timm_wsd(0.3, 20, 8)
timm_wsd(0.3, 20, 20, 0.01, decay_fn='linear')
timm_wsd(0.3, 20, 8, 0.01, decay_fn='cosine', warmup_t=5, warmup_lr_init=0.02)
timm_wsd(0.3, 20, 8, 0.01, decay_fn='power', decay_power=1.7, warmup_t=5)
timm_wsd(0.3, 20, 8, 0.01, decay_fn='exp', warmup_t=1)
timm_wsd(0.3, 20, 8, decay_fn='exp', decay_ratio=0.01)
timm_wsd(0.3, 20, 8, 0.01, 'rsqrt', decay_fn='linear', warmup_t=5)
timm_wsd(0.3, 20, 8, 0.01, 'rsqrt', 2.5)
timm_wsd(0.3, 20, 8, 0.01, 'power', 2.5, 0.8, 'exp', warmup_t=3, warmup_lr_init=0.5)
timm_wsd(0.3, 20, 8, 0.1, 'power', 2.5, 1.5, 'cosine', warmup_t=3)
timm_wsd(0.3, 30, 25, 0.1, 'power', 2.5, 0.8, 'power', 2.0, warmup_t=3)
timm_wsd(0.3, 20, 20, 0.1, 'rsqrt', 2.5)
timm_wsd(0.3, 20, 8, 0.4, 'rsqrt', 2.5, warmup_t=4)
timm_wsd(0.3, 20, 8, 0.3, 'rsqrt', 2.5, warmup_t=4)
timm_wsd(0.3, 20, 8, 0.4, warmup_t=4)
timm_wsd(0.3, 1, 1)
""".strip().splitlines()


def preset(text: str) -> Schedule:
    made = eval(text, vars(presets))
    assert isinstance(made, Schedule)
    return made


@pytest.mark.parametrize("text", CASES + PRESETS)
def test_repr_parse_pickle_copy(text: str):
    schedule = eval(text, vars(schedules) | vars(presets))
    again = parse(repr(schedule))
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert repr(again) == repr(schedule)
    for twin in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), copy.copy(schedule), parse(text)):
        assert twin == schedule
        assert twin.steps == schedule.steps
        assert repr(twin) == repr(schedule)
        assert twin(5) == schedule(5) if "raise" not in text else twin(0) == schedule(0)


def test_repr_is_the_shortest_call():
    short = {
        "cosine(start=0.1, end=0.0, steps=100, power=1.0)": "cosine(0.1, steps=100)",
        "cosine(np.float32(0.5), np.float64(0.25), steps=np.int64(100))": "cosine(0.5, 0.25, steps=100)",
        "polynomial(1, 0, 10, 1)": "polynomial(1, 0, 10)",
        "polynomial(1, 0, 10, power=2.0)": "polynomial(1, 0, 10, 2.0)",
        "cyclic(0.1, 1, step_size_up=2000, step_size_down=3)": "cyclic(0.1, 1, step_size_down=3)",
        "multi_step(0.1, np.array([3, 4]))": "multi_step(0.1, [3, 4])",
        "multi_step(0.1, (3, 4))": "multi_step(0.1, (3, 4))",
        "2 * constant(1e-05)": "scale(constant(1e-05), 2)",
        "2 + constant(1) + constant(2)": "add(add(constant(1), constant(2)), constant(2))",
        "constant(1) * constant(2)": "chain(constant(1), constant(2))",
        "linear(1, 0, steps=10, after='raise')": "linear(1, 0, 10, after='raise')",
    }
    assert {text: repr(eval(text, vars(schedules) | {"np": np})) for text in short} == short


def test_a_list_that_changes_later_changes_nothing():
    milestones = [3, 5]
    schedule = schedules.multi_step(1.0, milestones)
    milestones.append(7)
    assert repr(schedule) == "multi_step(1.0, [3, 5])"


def test_equality():
    a = schedules.cosine(0.1, steps=10)
    assert a == schedules.cosine(0.1, 0, steps=10, endpoint=False)
    assert a != schedules.cosine(0.1, steps=11)
    # The same curve, but of another number of steps.
    assert a != schedules.cosine(0.1, steps=11, endpoint=True)
    assert a != "cosine(0.1, steps=10)"
    assert len({a, schedules.cosine(0.1, steps=10), schedules.cosine(0.2, steps=10)}) == 2


def test_parse():
    lr = parse(" warmup_cosine(lr, steps=total, warmup_steps=total // 10 + 2 * epoch - 1)", lr=0.1, total=200, epoch=5)
    assert lr == schedules.warmup_cosine(0.1, steps=200, warmup_steps=29)
    assert parse("constant(2 ** 3 / 4 - -1)") == schedules.constant(3.0)
    assert parse("constant(2 ** -1)") == schedules.constant(0.5)
    assert parse("step(0.1, 2 ** 10)") == schedules.step(0.1, 1024)
    assert parse("0.5 * step(lr, 3) * step(1, 2)", lr=1) == 0.5 * schedules.step(1, 3) * schedules.step(1, 2)
    assert parse("0.1 + step(lr, 3) + 2 * step(1, 2)", lr=1) == 0.1 + schedules.step(1, 3) + 2 * schedules.step(1, 2)
    assert parse("shift(step(1, 3), -2)") == schedules.shift(schedules.step(1, 3), -2)
    assert parse("constant(scaled_lr(0.1, 512))") == schedules.constant(0.2)
    assert parse("transformers_linear(0.1, 2, 4)") == presets.transformers_linear(0.1, 2, 4)
    assert parse("piecewise((3, 9), [1, 2, 3], interpolation='linear')").steps == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be one expression"),
        ("cosine(0.1, steps=3", "must be one expression"),
        ("x = 3", "must be one expression"),
        ("a\0b", "must be one expression"),
        ("(" * 9999, "must be one expression"),
        ("-" * 100_000 + "1", "must be one expression"),
        ("0.1", "must say a schedule, such as constant"),
        ("[constant(1)]", "must say a schedule, such as constant"),
        ("scaled_lr(0.1, 256)", "must say a schedule, such as constant"),
        ("__import__('os').system('true')", "may call constant, linear, .*; got"),
        ("schedules.cosine(0.1, steps=2)", "may call constant, linear, .*; got 'schedules.cosine'"),
        ("nocosine(0.1)", "may call constant, linear, .* and the presets; got 'nocosine'"),
        ("parse('constant(1)')", "may call constant"),
        ("constant(lr)", "may use these names: total; got 'lr'"),
        ("constant((1).real)", "but no Attribute, got '\\(1\\).real'"),
        ("constant([1][0])", "but no Subscript"),
        ("constant(*[1])", "but no Starred"),
        ("constant(**{'value': 1})", "arguments by position or name"),
        ("constant(lambda: 1)", "but no Lambda"),
        ("constant(1 if 2 else 3)", "but no IfExp"),
        ("constant(1 < 2)", "but no Compare"),
        ("constant(x for x in [1])", "but no GeneratorExp"),
        ("constant(f'{1}')", "but no JoinedStr"),
        ("constant(3 % 2)", "operators \\+ - \\* / // \\*\\* and"),
        ("constant(1 << 2)", "operators"),
        ("constant(~3)", "operators"),
        ("constant(1j)", "numbers and strings only"),
        ("constant(b'1')", "numbers and strings only"),
        ("constant('1' * 3)", "must stand between numbers"),
        ("constant(True + 1)", "must stand between numbers"),
        ("constant([1] * 1000000000000)", "must stand between numbers"),
        ("constant(1) + 'x'", "must stand between numbers"),
        ("True + constant(1)", "must stand between numbers"),
        ("constant(1) - constant(1)", "must stand between numbers"),
        ("constant(1) / 2", "must stand between numbers"),
        ("-constant(1)", "must stand between numbers"),
        ("constant(1 / 0)", "has no value"),
        ("constant(9 ** 9 ** 9 ** 9)", "has no value"),
        ("constant((-8) ** 0.5)", "has no value"),
        ("constant(1e308 * 10)", "value must be finite"),
        ("cosine(0.1)", r"cosine\(0.1\): cosine\(\) missing 1 required keyword-only argument: 'steps'"),
        ("2 * cosine(0.1, steps=0)", r"cosine\(0.1, steps=0\): steps must be an integer at least 1, got 0"),
        ("cosine(0.1, steps=total / 2)", "steps must be an integer at least 1, got 1.5"),
        ("optax_piecewise_constant(1.0, {[1]: 2})", "dicts with numbers or strings as keys"),
        ("optax_piecewise_constant(1.0, {**{1: 2}})", "dicts with numbers or strings as keys"),
        ("constant(value=1, value=2)", r"must give value once, got 'constant\(value=1, value=2\)'"),
        ("linear(1, 0, steps=3, steps=3)", "must give steps once"),
        ("optax_piecewise_constant(1.0, {3: 0.5, 3: 0.1})", "must give 3 once"),
        ("constant(" + "+".join(["1"] * 3000) + ")", "must"),
        ("constant(" + "-" * 900 + "1)", "must not be nested so deeply"),
        ("scale(" * 400 + "constant(1)" + ", 1)" * 400, "must|deep"),
        ("constant(" + "[" * 150 + "1" + "]" * 150 + ")", "must"),
    ],
)
def test_parse_refuses(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse(text, total=3)


def test_parse_refuses_what_is_no_text():
    with pytest.raises(TypeError, match="text must be a string, got 3"):
        parse(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="lr must be a number, finite, got '1'"):
        parse("constant(lr)", lr="1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("constant('1')", TypeError, "value must be a number, finite, got '1'"),
        ("constant(True)", TypeError, "value must be a number"),
        ("constant(1j)", TypeError, "value must be a number"),
        ("constant(np.ones(1))", TypeError, "value must be a number"),
        ("constant(math.nan)", ValueError, "value must be finite, got nan"),
        ("constant(math.inf)", ValueError, "value must be finite, got inf"),
        ("constant(10**400)", ValueError, "value must be finite"),
        ("linear(1, 0, 0)", ValueError, "steps must be an integer at least 1, got 0"),
        ("linear(1, 0, 10.0)", TypeError, "steps must be an integer at least 1, got 10.0"),
        ("linear(1, 0, True)", TypeError, "steps must be an integer at least 1, got True"),
        ("linear(1, 0, 2**60)", ValueError, "steps must be from 1 to"),
        ("linear(1, 0, 1, endpoint=True)", ValueError, "steps must be an integer at least 2 with endpoint=True, got 1"),
        ("linear(1, 0, 10, endpoint=1)", TypeError, "endpoint must be True or False, got 1"),
        ("linear(1, 0, 10, after='stop')", ValueError, "after must be 'hold', 'raise' or 'extend', got 'stop'"),
        ("linear(1, 0, 10, after=None)", ValueError, "after must be 'hold', 'raise' or 'extend', got None"),
        ("linear(math.nan, 0, 10)", ValueError, "start must be finite"),
        ("linear(1, -math.inf, 10)", ValueError, "end must be finite"),
        ("polynomial(1, 0, 10, 0)", ValueError, "power must be finite and above 0, got 0"),
        ("polynomial(1, 0, 10, 0.5, after='extend')", ValueError, "power must be a whole number with after='extend'"),
        ("step(1, 0)", ValueError, "step_size must be an integer at least 1"),
        ("step(1, 2, -0.1)", ValueError, "gamma must be finite and at least 0, got -0.1"),
        ("multi_step(1, 3)", TypeError, "milestones must be a list of numbers, got 3"),
        (
            "multi_step(1, [5, 3])",
            ValueError,
            r"milestones must ascend, but milestones\[0\] is 5.0 and milest",
        ),
        ("multi_step(1, [0])", ValueError, r"milestones\[0\] must be finite and above 0, got 0"),
        ("exponential(1, 0.5, 0)", ValueError, "decay_steps must be finite and above 0"),
        ("exponential(1, 0.5, staircase=1)", TypeError, "staircase must be True or False"),
        ("exponential(1, 0.5, limit=math.nan)", ValueError, "limit must be finite"),
        ("cosine(1, steps=-3)", ValueError, "steps must be an integer at least 1, got -3"),
        ("cosine(1, steps=3, power=-1)", ValueError, "power must be finite and above 0"),
        ("cosine(1, steps=3, warp=math.inf)", ValueError, "warp must be finite and above 0"),
        ("cosine_restarts(1, T_0=0)", ValueError, "T_0 must be an integer at least 1"),
        (
            "cosine_restarts(1, T_0=1, endpoint=True)",
            ValueError,
            "T_0 must be an integer at least 2 with endpoint",
        ),
        ("cosine_restarts(1, T_0=3, T_mult=0.5)", ValueError, "T_mult must be 1, or finite and at least 1.1, got 0.5"),
        ("cosine_restarts(1, T_0=3, cycles=0)", ValueError, "cycles must be from 1"),
        ("cosine_restarts(1, T_0=3, decay=-1)", ValueError, "decay must be finite and at least 0"),
        ("cosine_restarts(1, T_0=3, after='no')", ValueError, "after must be"),
        ("warmup(0.1, 5)", TypeError, r"schedule must be a schedule, such as constant\(0.1\), got 0.1"),
        ("warmup(constant(1), 0)", ValueError, "steps must be an integer at least 1"),
        ("warmup(constant(1), 3, skip_start=0)", TypeError, "skip_start must be True or False"),
        ("warmup(constant(1), 3, within='no')", TypeError, "within must be True or False"),
        ("warmup(constant(1), 3, start=math.inf)", ValueError, "start must be finite"),
        (
            "warmup_cosine(1, steps=5, warmup_steps=5)",
            ValueError,
            "steps must be at least 1 more than warmup_steps, 5",
        ),
        (
            "warmup_cosine(1, steps=6, warmup_steps=5, endpoint=True)",
            ValueError,
            "steps must be at least 2 more than warmup_steps, 5, which it includes, got 6",
        ),
        ("warmup_cosine(1, steps=5, warmup_steps=-1)", ValueError, "warmup_steps must be an integer at least 0"),
        ("one_cycle(1, 0)", ValueError, "steps must be an integer at least 1"),
        ("one_cycle(1, 5, pct_start=1.5)", ValueError, "pct_start must be from 0 to 1, got 1.5"),
        ("one_cycle(1, 5, anneal='cosine')", ValueError, "anneal must be 'cos' or 'linear', got 'cosine'"),
        ("one_cycle(1, 5, div_factor=0)", ValueError, "div_factor must be finite and above 0"),
        ("one_cycle(1, 5, final_div_factor=-1)", ValueError, "final_div_factor must be finite and above 0"),
        ("one_cycle(1, 5, pct_start=0.6, three_phase=True)", ValueError, "pct_start must be at most 0.5 with three_ph"),
        ("one_cycle(1, 5, three_phase=1)", TypeError, "three_phase must be True or False"),
        ("one_cycle(1, 5, after='no')", ValueError, "after must be"),
        ("one_cycle_momentum(math.nan, steps=3)", ValueError, "base must be finite"),
        ("one_cycle_momentum()", TypeError, "missing 1 required keyword-only argument: 'steps'"),
        ("inverse_sqrt(1, 0)", ValueError, "timescale must be finite and above 0"),
        ("inverse_sqrt(1, 1, warmup_steps=-1)", ValueError, "warmup_steps must be an integer at least 0"),
        (
            "warmup_stable_decay(1, warmup_steps=1, stable_steps=1, decay_steps=0)",
            ValueError,
            "decay_steps must be an integer at least 1",
        ),
        (
            "warmup_stable_decay(1, warmup_steps=1, stable_steps=1, decay_steps=1, decay='exponential')",
            ValueError,
            "the values of an exponential must be above 0, got 1.0 and 0.0",
        ),
        (
            "warmup_stable_decay(1, warmup_steps=1, stable_steps=1, decay_steps=1, decay='1-sqrt')",
            ValueError,
            "decay must be 'linear', 'cosine', 'sqrt' or 'exponential', got '1-sqrt'",
        ),
        ("cyclic(0, 1, 0)", ValueError, "step_size_up must be an integer at least 1"),
        ("cyclic(0, 1, 1, 0)", ValueError, "step_size_down must be an integer at least 1"),
        ("cyclic(0, 1, mode='square')", ValueError, "mode must be 'triangular', 'triangular2' or 'exp_range'"),
        ("cyclic(0, 1, gamma=-1)", ValueError, "gamma must be finite and at least 0"),
        ("piecewise([3], [1])", ValueError, "values must be one more than boundaries, so 2, got 1"),
        ("piecewise([3, 3], [1, 2, 3])", ValueError, "boundaries must ascend"),
        ("piecewise([3], [1, 2], interpolation='cubic')", ValueError, "interpolation must be 'constant', 'linear', "),
        ("piecewise([3], [1, 2], after='raise')", ValueError, "after must be 'hold' with interpolation='constant'"),
        ("piecewise([], [1], interpolation='linear')", ValueError, "boundaries must have at least one step"),
        ("piecewise([3], [1, 0], interpolation='exponential')", ValueError, "exponential must be above 0"),
        ("piecewise([3], {1, 2})", TypeError, "values must be a list of numbers"),
        ("join(constant(1), [])", TypeError, "schedules must be a list of schedules"),
        ("join([constant(1), 2], [3])", TypeError, r"schedules\[1\] must be a schedule"),
        ("join([constant(1)], [3])", ValueError, "boundaries must be one fewer than schedules, so 0, got 1"),
        ("join([], [])", ValueError, "boundaries must be one fewer than schedules"),
        ("join([constant(1)] * 3, [3, 2])", ValueError, "boundaries must ascend"),
        ("scale(1, 2)", TypeError, "schedule must be a schedule"),
        ("scale(constant(1), math.inf)", ValueError, "factor must be finite"),
        ("shift(constant(1), 0.5)", TypeError, "steps must be an integer, got 0.5"),
        ("shift(constant(1), -2**60)", ValueError, "steps must be from -"),
        ("add()", ValueError, "schedules must be at least one, got none"),
        ("add(constant(1), 2)", TypeError, r"schedules\[1\] must be a schedule"),
        (
            "multi_step(1.0, [1, 2], 1e200)",
            ValueError,
            r"gamma must leave all values finite, but 1.0 \* 1e\+200 \*\* 2",
        ),
        ("chain()", ValueError, "schedules must be at least one, got none"),
        ("chain(constant(1), 2)", TypeError, r"schedules\[1\] must be a schedule"),
        ("per_epoch(constant(1), 0)", ValueError, "steps_per_epoch must be an integer at least 1"),
        ("scaled_lr(0.1, 0)", ValueError, "batch_size must be an integer at least 1"),
        ("scaled_lr(0.1, 1, 0)", ValueError, "base_batch_size must be an integer at least 1"),
        ("scaled_lr(0.1, 1, rule='log')", ValueError, "rule must be 'linear' or 'sqrt', got 'log'"),
        ("ReduceLROnPlateau('x')", TypeError, "lr must be a number"),
        ("ReduceLROnPlateau(-1)", ValueError, "lr must be finite and at least 0"),
        ("ReduceLROnPlateau(1, factor=1.0)", ValueError, "factor must be at least 0 and below 1"),
        ("ReduceLROnPlateau(1, patience=-1)", ValueError, "patience must be an integer at least 0, got -1"),
        ("ReduceLROnPlateau(1, threshold=math.nan)", ValueError, "threshold must be"),
        ("ReduceLROnPlateau(1, threshold_mode='x')", ValueError, "threshold_mode must be 'rel' or 'abs'"),
        ("ReduceLROnPlateau(1, cooldown=1.5)", TypeError, "cooldown must be an integer"),
        ("ReduceLROnPlateau(1, min_lr=-1)", ValueError, "min_lr must be"),
        ("ReduceLROnPlateau(1, eps=-1)", ValueError, "eps must be"),
        ("ReduceLROnPlateau(1, mode='best')", ValueError, "mode must be 'min' or 'max'"),
        ("ReduceLROnPlateau(1, monitor=3)", TypeError, "monitor must be the name of a metric, got 3"),
        ("torch_constant(0.1, 1.5)", ValueError, "factor must be"),
        ("torch_linear(0.1, 0.0)", ValueError, "start_factor must be above 0 and at most 1, got 0.0"),
        ("torch_one_cycle(0.1)", ValueError, "total_steps must be an integer, or else epochs and steps_per_epoch"),
        ("torch_one_cycle(0.1, epochs=3)", ValueError, "total_steps must be an integer, or else"),
        ("torch_cosine_annealing(0.1, 0)", ValueError, "T_max must be an integer at least 1"),
        ("optax_piecewise_constant(0.1, {3: -1})", ValueError, r"boundaries_and_scales\[3\] must be"),
        ("optax_piecewise_constant(0.1, [3])", TypeError, "boundaries_and_scales must be a dict"),
        ("optax_warmup_cosine_decay(0, 1, 5, 5)", ValueError, "decay_steps must be more than warmup_steps, 5"),
        ("optax_sgdr([])", ValueError, "cosine_kwargs must have at least one dict"),
        ("transformers_cosine_with_min_lr(1, 2, 5)", ValueError, "one of min_lr and min_lr_rate must be given"),
        ("transformers_polynomial(1, 2, 5, 1)", ValueError, "lr_end must be below lr, 1, got 1"),
        ("transformers_wsd(1, 2, 5)", ValueError, "num_training_steps or num_stable_steps must be given"),
        ("transformers_wsd(1, 2, 5, 6)", ValueError, "num_training_steps must be an integer at least 7"),
        ("timm_cosine(1, 5, cycle_mul=0.5)", ValueError, "cycle_mul must be 1, or finite and at least 1.1"),
        ("transformers_cosine_warmup_with_min_lr(1, 2, 5)", ValueError, "one of min_lr and min_lr_rate must be given"),
        ("transformers_cosine_warmup_with_min_lr(1, 2, 5, min_lr=1, warmup_lr_rate=-1)", ValueError, "warmup_lr_rate"),
        ("timm_wsd(1, 5, 6)", ValueError, "decay_t must be at most t_initial, 5, which it is a part of, got 6"),
        ("timm_wsd(1, 5, 0)", ValueError, "decay_t must be an integer at least 1"),
        ("timm_wsd(1, 5, 2, -1)", ValueError, "lr_min must be"),
        ("timm_wsd(1, 5, 2, stable_fn='no')", ValueError, "stable_fn must be 'constant', 'rsqrt' or 'power'"),
        ("timm_wsd(1, 5, 2, decay_fn='no')", ValueError, "decay_fn must be 'linear', '1-sqrt', 'cosine', 'power' or"),
        ("timm_wsd(1, 5, 2, decay_fn=math.sqrt)", ValueError, "decay_fn must be"),
        ("timm_wsd(1, 5, 2, decay_ratio=1)", ValueError, "decay_ratio must be above 0 and below 1, got 1"),
        ("timm_wsd(1, 5, 2, decay_power=0)", ValueError, "decay_power must be finite and above 0"),
        ("timm_wsd(1, 5, 2, stable_fn='rsqrt')", ValueError, "stable_timescale must be given where there is no warmup"),
        ("timm_wsd(1, 5, 2, 0, 'rsqrt', 0)", ValueError, "stable_timescale must be finite and above 0"),
        ("timm_multi_step(1, [1, 5])", ValueError, r"decay_t\[0\] must be an integer at least 2"),
    ],
)
def test_refuses(text: str, kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        eval(text, vars(schedules) | vars(presets) | {"np": np, "math": math})


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        (-1, ValueError, "step must be finite and at least 0, got -1"),
        (-1e-300, ValueError, "step must be finite and at least 0"),
        (math.nan, ValueError, "step must be finite and at least 0, got nan"),
        (math.inf, ValueError, "step must be finite and at least 0, got inf"),
        (10**400, ValueError, "step must be finite and at least 0"),
        (True, TypeError, "step must be a number, or an array of integers or floats, got True"),
        (None, TypeError, "step must be a number"),
        ("3", TypeError, "step must be a number"),
        (3j, TypeError, "step must be a number"),
        (np.array([True]), TypeError, "step must be a number"),
        (np.array([1j]), TypeError, "step must be a number"),
        (np.array(["1"]), TypeError, "step must be a number"),
        ([object()], TypeError, "step must be a number"),
        (np.array([1.0, -0.5]), ValueError, "step must be finite and at least 0 in every element, got -0.5"),
        (np.array([1.0, np.nan]), ValueError, "step must be finite and at least 0 in every element, got nan"),
        (np.array([[np.inf, 2]]), ValueError, "step must be finite and at least 0 in every element, got inf"),
        (np.array([1, -3]), ValueError, "step must be finite and at least 0 in every element, got -3.0"),
        (np.ma.masked_array([1.0], [True]), TypeError, "step is a masked array"),
    ],
)
def test_refuses_a_step(step: Any, kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        schedules.cosine(0.1, steps=10)(step)


@pytest.mark.parametrize(
    ("text", "last", "value"),
    [
        ("exponential(1.0, 2.0)", 1023, "inf"),
        ("exponential(-1.0, 2.0, limit=3.0)", 1023, "-inf"),
        ("step(1.0, 2, 2.0)", 2047, "inf"),
        ("cosine_restarts(1.0, T_0=2, decay=2.0)", 2047, "inf"),
        ("cyclic(0.0, 1.0, 1, mode='exp_range', gamma=2.0)", 1023, "nan"),
        ("linear(1e308, -1e308, 1, after='extend')", 1, "-inf"),
        ("scale(exponential(1.0, 2.0), 0.0)", 1023, "nan"),
        ("chain(exponential(1.0, 2.0), constant(2.0))", 1022, "inf"),
        ("add(exponential(1.0, 2.0), exponential(-1.0, 2.0))", 1023, "nan"),
        ("add(constant(1e308), piecewise([3], [0.0, 1e308]))", 2, "inf"),
        ("warmup(constant(1e308), 3, start=-1e308)", 3, None),
        ("torch_exponential(1.0, 2.0)", 1023, "inf"),
    ],
)
def test_values_that_are_not_finite_are_errors(text: str, last: int, value: str | None):
    schedule = eval(text, vars(schedules) | vars(presets))
    assert np.isfinite(schedule(np.arange(last + 1))).all()
    assert math.isfinite(schedule(last))
    if value is None:
        return
    name, step = text.partition("(")[0], last + 1
    with pytest.raises(ValueError, match=rf"^{name}\(\.\.\.\) is not finite at step {step}, but {value}$"):
        schedule(step)
    with pytest.raises(ValueError, match=rf"^{name}\(\.\.\.\) is not finite at step {step}\.0, but {value}$"):
        schedule(np.array([[0, last], [step, step + 9]]))


def test_a_zero_does_not_grow():
    assert presets.timm_poly(0.0, 5, 1.5, 0.0, 1.0, 1e200, 3)(range(20)).tolist() == [0.0] * 20


def test_extremes():
    assert schedules.exponential(1.0, 2.0, limit=3.0)(1e15) == 3.0
    assert schedules.linear(1.0, 0.0, 10)(sys.float_info.max) == 0.0
    assert schedules.cosine(0.3, steps=2**53)(2**52) == pytest.approx(0.15, rel=1e-15)
    assert schedules.cosine_restarts(0.3, T_0=1, T_mult=2, decay=0.5)(1e15) >= 0
    deep = schedules.constant(1.0)
    for _ in range(99):
        deep = 1 * deep
    assert deep(0) == 1.0
    with pytest.raises(ValueError, match="deep"):
        _ = 1 * deep


# -- Plots -------------------------------------------------------------------------------------------------------------


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "lr.png"
    schedule = schedules.warmup_cosine(0.3, steps=50, warmup_steps=10)
    ax = schedule.plot(label="a")
    line = ax.lines[0]
    assert_same_bits(np.asarray(line.get_ydata()), schedule(np.arange(50)))
    assert list(line.get_xdata()) == list(range(50))
    other = schedules.step(0.1, 10).plot(70, ax=ax, path=path, label="b")
    assert other is ax
    assert len(ax.lines[1].get_xdata()) == 70
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert path.read_bytes().startswith(b"\x89PNG")
    assert schedule.plot().get_legend() is None
    long = schedules.linear(1.0, 0.0, 10**9).plot().lines[0]
    assert len(long.get_xdata()) <= 10_000
    assert list(long.get_xdata())[-1] == 10**9 - 1
    with pytest.raises(ValueError, match=r"steps must say how many steps to draw: constant\(1\) has no end"):
        schedules.constant(1).plot()
    with pytest.raises(ValueError, match="steps must be an integer at least 1"):
        schedule.plot(0)


def test_plot_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r'plot needs matplotlib: pip install "ironstep\[plot\]"'):
        schedules.linear(1, 0, 5).plot()


def test_import_is_light():
    code = "import sys, ironstep.schedules as s; print([m for m in ('matplotlib', 'torch', 'ast') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # NumPy itself takes `ast`, by way of `inspect`, in some versions.
    assert run.stdout.strip() in ("[]", "['ast']")


# -- In optimisers -----------------------------------------------------------------------------------------------------

HYPER = [
    (case, name)
    for case in OPTIMIZERS
    for name in (LIMITS | case.cls._limits)
    if name in case.cls([np.zeros(1)], **case.kwargs).param_groups[0]
    # With nesterov it must be the number 0.
    and not (name == "dampening" and case.kwargs.get("nesterov"))
]


@pytest.mark.parametrize(("case", "name"), HYPER, ids=[f"{case.name}-{name}" for case, name in HYPER])
def test_any_hyperparameter_takes_a_schedule(case: Any, name: str):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=7), rng.normal(size=(3, 2))]
    value = case.cls(start, **case.kwargs).param_groups[0][name]
    first = value[0] if name == "betas" else value
    # Within the limits of all of them, and not 0 at first, which may say that some state is not kept.
    first = first if first and math.isfinite(first) else 0.5
    schedule = schedules.linear(first, first / 2, 4)

    def beside(new: Any) -> Any:
        return (new, value[1]) if name == "betas" else new

    by_schedule, by_hand = [p.copy() for p in start], [p.copy() for p in start]
    opt = case.cls(by_schedule, **case.kwargs | {name: beside(schedule)})
    plain = case.cls(by_hand, **case.kwargs | {name: beside(first)})
    for t in range(6):
        grads = [rng.normal(size=p.shape) for p in start]
        plain.param_groups[0][name] = beside(schedule(t))
        opt.step(grads)
        plain.step(grads)
        for i in range(2):
            assert_same_bits(by_schedule[i], by_hand[i], f"step {t}, array {i}")


def test_options_take_a_schedule():
    rng = np.random.default_rng(1)
    start = rng.normal(size=9)
    for name in ("max_norm", "clip_value", "ema_decay"):
        schedule = schedules.linear(0.9, 0.1, 4)
        a, b = start.copy(), start.copy()
        first = ironstep.optim.AdamW(a, lr=0.1, **{name: schedule})
        second = ironstep.optim.AdamW(b, lr=0.1, **{name: 0.9})
        for t in range(6):
            grad = rng.normal(size=9)
            setattr(second, name, schedule(t))
            first.step(grad)
            second.step(grad)
            assert_same_bits(a, b, name)
            if name == "ema_decay":
                assert_same_bits(first.ema, second.ema, name)


def test_a_resumed_run_goes_on(tmp_path):
    schedule = schedules.one_cycle(0.1, 20)
    rng = np.random.default_rng(2)
    grads = rng.normal(size=(20, 5))
    whole = np.ones(5)
    opt = ironstep.optim.AdamW(whole, lr=schedule)
    for grad in grads:
        opt.step(grad)
    first = np.ones(5)
    opt = ironstep.optim.AdamW(first, lr=schedule)
    for grad in grads[:8]:
        opt.step(grad)
    opt.save(tmp_path / "a.safetensors")
    second = np.zeros(5)
    opt = ironstep.optim.AdamW(second, lr=schedule)
    opt.load(tmp_path / "a.safetensors")
    for grad in grads[8:]:
        opt.step(grad)
    assert_same_bits(second, whole)


def test_past_the_end_raises_in_an_optimizer():
    w = np.ones(3)
    opt = ironstep.optim.SGD(w, lr=schedules.linear(0.1, 0.0, 2, endpoint=True, after="raise"))
    opt.step(np.ones(3))
    opt.step(np.ones(3))
    before = w.copy()
    with pytest.raises(ValueError, match="step must be at most 1, the end of the schedule, got 2"):
        opt.step(np.ones(3))
    assert_same_bits(w, before)
    assert opt.steps == 2


# -- Presets against their peers ---------------------------------------------------------------------------------------


def agree(schedule: Schedule, want: list[float], tolerance: float = 1e-12) -> None:
    size = max(map(abs, want))
    for t, value in enumerate(want):
        got = schedule(t)
        assert abs(got - value) <= tolerance * abs(value) + 1e-15 * size, f"step {t}: {got}, not {value}"


def past(schedule: Schedule) -> int:
    """How many steps to compare: all, and 30 % more."""
    return math.ceil(1.3 * (ENDLESS if schedule.steps is None else schedule.steps)) + 3


def test_every_preset_is_in_the_table():
    assert set(presets.__all__) == {text.split("(")[0] for text in PRESETS}


def arguments(text: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """The name of the preset, and its arguments; schedules in them as they are."""
    name, _, rest = text.partition("(")

    def collect(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    args, kwargs = eval(f"collect({rest}", vars(presets) | {"collect": collect})
    return name, args, kwargs


TORCH = {
    "torch_constant": "ConstantLR",
    "torch_linear": "LinearLR",
    "torch_step": "StepLR",
    "torch_multi_step": "MultiStepLR",
    "torch_exponential": "ExponentialLR",
    "torch_polynomial": "PolynomialLR",
    "torch_cosine_annealing": "CosineAnnealingLR",
    "torch_cosine_annealing_warm_restarts": "CosineAnnealingWarmRestarts",
    "torch_one_cycle": "OneCycleLR",
    "torch_one_cycle_momentum": "OneCycleLR",
    "torch_cyclic": "CyclicLR",
}


def torch_curve(text: str, n: int) -> list[float]:
    import torch

    name, args, kwargs = arguments(text)
    cls = getattr(torch.optim.lr_scheduler, TORCH[name])
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3, momentum=0.9)
    what = "momentum" if name == "torch_one_cycle_momentum" else "lr"
    if name == "torch_one_cycle_momentum":
        names = ("base_momentum", "max_momentum", "total_steps")
        scheduler = cls(opt, 0.3, **dict(zip(names, args, strict=False)), **kwargs)
    elif name in ("torch_one_cycle", "torch_cyclic"):
        scheduler = cls(opt, *args, **kwargs, cycle_momentum=False)
    else:
        scheduler = cls(opt, *args[1:], **kwargs)
    values = []
    for _ in range(n):
        values.append(float(opt.param_groups[0][what]))
        opt.step()
        if TORCH[name] == "OneCycleLR" and scheduler.last_epoch == scheduler.total_steps:
            with pytest.raises(ValueError, match="Tried to step"):
                scheduler.step()
            break
        scheduler.step()
    return values


@pytest.mark.parametrize("text", [text for text in PRESETS if text.startswith("torch_")])
def test_torch(text: str):
    schedule = preset(text)
    # Its recursion drifts by this much.
    agree(schedule, torch_curve(text, past(schedule)), 1e-12 if "cosine" not in text else 2e-12)


def test_torch_cyclic_momentum():
    import torch

    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CyclicLR(opt, 0.01, 0.3, 5, base_momentum=0.8, max_momentum=0.95)
    values = []
    for _ in range(25):
        values.append(opt.param_groups[0]["momentum"])
        opt.step()
        scheduler.step()
    agree(presets.torch_cyclic(0.95, 0.8, 5), values)


def optax_peer(schedule: Any, text: str) -> Any:
    import optax

    name, args, kwargs = arguments(text)
    name = name.removeprefix("optax_")
    if name == "join":
        # The peers of its parts, which are presets.
        args = ([optax_peer(part, repr(part)) for part in args[0]], args[1])
    names = {"exponential_decay": "exponential_decay", "join": "join_schedules"}
    return getattr(optax, names.get(name, f"{name}_schedule"))(*args, **kwargs)


@pytest.mark.parametrize("text", [text for text in PRESETS if text.startswith("optax_")])
def test_optax(text: str):
    import jax

    schedule = preset(text)
    # One length for all, which compiles less.
    n = 64
    assert n >= past(schedule)
    with jax.enable_x64(True):
        curve = np.asarray(jax.vmap(optax_peer(schedule, text))(jax.numpy.arange(n)))
    assert curve.dtype == np.float64
    agree(schedule, [float(value) for value in curve])


TRANSFORMERS = {
    "transformers_constant": "get_constant_schedule",
    "transformers_constant_with_warmup": "get_constant_schedule_with_warmup",
    "transformers_linear": "get_linear_schedule_with_warmup",
    "transformers_cosine": "get_cosine_schedule_with_warmup",
    "transformers_cosine_with_hard_restarts": "get_cosine_with_hard_restarts_schedule_with_warmup",
    "transformers_cosine_with_min_lr": "get_cosine_with_min_lr_schedule_with_warmup",
    "transformers_cosine_warmup_with_min_lr": "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
    "transformers_polynomial": "get_polynomial_decay_schedule_with_warmup",
    "transformers_inverse_sqrt": "get_inverse_sqrt_schedule",
    "transformers_wsd": "get_wsd_schedule",
}


@pytest.mark.parametrize("text", [text for text in PRESETS if text.startswith("transformers_")])
def test_transformers(text: str):
    import torch

    optimization = pytest.importorskip("transformers.optimization")
    name, (lr, *args), kwargs = arguments(text)
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    # It has `last_epoch` in the middle of its arguments.
    (factor,) = getattr(optimization, TRANSFORMERS[name])(opt, *args, **kwargs).lr_lambdas
    schedule = preset(text)
    agree(schedule, [lr * factor(t) for t in range(past(schedule))])


TIMM = {
    "timm_cosine": "CosineLRScheduler",
    "timm_step": "StepLRScheduler",
    "timm_multi_step": "MultiStepLRScheduler",
    "timm_poly": "PolyLRScheduler",
    "timm_wsd": "WSDLRScheduler",
}


@pytest.mark.parametrize("text", [text for text in PRESETS if text.startswith("timm_")])
def test_timm(text: str):
    import timm.scheduler as timm
    import timm.scheduler.multistep_lr as multistep
    import torch

    name, (lr, *args), kwargs = arguments(text)
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    # It has arguments about noise in the middle of its own; those of the presets before them are the same.
    by_name = dict(zip(list(inspect_names(name))[1:], args, strict=False)) | kwargs
    cls = multistep.MultiStepLRScheduler if name == "timm_multi_step" else getattr(timm, TIMM[name])
    peer = cls(opt, **by_name)
    schedule = preset(text)
    agree(schedule, [peer._get_lr(t)[0] for t in range(past(schedule))])


def inspect_names(name: str) -> list[str]:
    import inspect

    return list(inspect.signature(getattr(presets, name)).parameters)


def test_preset_arguments_are_the_peers():
    """The same names, order and defaults, as far as a preset has them."""
    import inspect

    import optax
    import timm.scheduler as timm
    import timm.scheduler.multistep_lr as multistep
    import torch

    optimization = pytest.importorskip("transformers.optimization")
    for name in presets.__all__:
        short = name.split("_", 1)[1]
        if name in TORCH:
            peer = getattr(torch.optim.lr_scheduler, TORCH[name]).__init__
        elif name in TRANSFORMERS:
            peer = getattr(optimization, TRANSFORMERS[name])
        elif name in TIMM:
            peer = (multistep.MultiStepLRScheduler if "multi" in name else getattr(timm, TIMM[name])).__init__
        else:
            names = {"exponential_decay": "exponential_decay", "join": "join_schedules"}
            peer = getattr(optax, names.get(short, f"{short}_schedule"))
        theirs = {n: p.default for n, p in inspect.signature(peer).parameters.items()}
        ours = {n: p.default for n, p in inspect.signature(getattr(presets, name)).parameters.items()}
        ours = {n: default for n, default in ours.items() if n != "lr"}
        assert {n: theirs[n] for n in ours} == ours, name
        assert [n for n in theirs if n in ours] == list(ours) or name == "torch_one_cycle_momentum", name


# -- The one with a state ----------------------------------------------------------------------------------------------


def metrics(rng: np.random.Generator, n: int) -> list[float]:
    values = list(np.round(rng.normal(size=n).cumsum() / 4 + rng.normal(), 2))
    for value in (math.nan, math.inf, -math.inf, 0.0):
        if rng.random() < 0.4:
            values[rng.integers(n)] = value
    return [float(value) for value in values]


@pytest.mark.parametrize("seed", range(60))
def test_plateau_counts_as_torch(seed: int):
    import torch

    rng = np.random.default_rng(seed)
    kwargs: dict[str, Any] = {
        "factor": float(rng.choice([0.1, 0.5, 0.0])),
        "patience": int(rng.integers(4)),
        "threshold": float(rng.choice([0.0, 1e-4, 0.1])),
        "threshold_mode": str(rng.choice(["rel", "abs"])),
        "cooldown": int(rng.integers(3)),
        "min_lr": float(rng.choice([0.0, 0.003, 0.5])),
        "eps": float(rng.choice([1e-8, 1e-3])),
        "mode": str(rng.choice(["min", "max"])),
    }
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, **kwargs)
    ours = ReduceLROnPlateau(0.3, **kwargs)
    for i, metric in enumerate(metrics(rng, 40)):
        before = opt.param_groups[0]["lr"]
        theirs.step(metric)
        reduced = ours.update(metric)
        assert ours(i) == opt.param_groups[0]["lr"]
        assert reduced == (opt.param_groups[0]["lr"] != before)
        assert (ours.best, ours.num_bad_epochs, ours.cooldown_counter) == (
            theirs.best,
            theirs.num_bad_epochs,
            theirs.cooldown_counter,
        )
        if i == 17:
            state = ours.state_dict()
            ours = ReduceLROnPlateau(0.3, **kwargs)
            ours.load_state_dict(state)
        if i == 23:
            ours = pickle.loads(pickle.dumps(ours))


def test_plateau_defaults_are_torchs():
    import inspect

    import torch

    theirs = inspect.signature(torch.optim.lr_scheduler.ReduceLROnPlateau.__init__).parameters
    ours = inspect.signature(ReduceLROnPlateau).parameters
    assert {n: p.default for n, p in ours.items() if n in theirs} == {
        n: p.default for n, p in theirs.items() if n in ours
    }
    assert set(ours) == set(theirs) - {"self", "optimizer"} | {"lr", "monitor"}


def test_plateau_with_a_schedule():
    schedule = schedules.warmup_cosine(0.4, steps=100, warmup_steps=10)
    plateau = ReduceLROnPlateau(schedule, factor=0.5, patience=0, min_lr=0.05)
    assert [plateau(t) for t in range(101)] == [schedule(t) for t in range(101)]
    assert not plateau.update(1.0)
    assert plateau.update(1.0)
    assert plateau.update(1.0)
    for t in range(101):
        value = schedule(t)
        # The floor does not lift what is below it anyway.
        assert plateau(t) == (value / 4 if value / 4 > 0.05 else min(value, 0.05))
    assert plateau.state_dict()["scale"] == 0.25


def test_plateau_in_an_optimizer():
    plateau = ReduceLROnPlateau(0.5, factor=0.5, patience=0)
    w = np.zeros(1)
    opt = ironstep.optim.SGD(w, lr=plateau)
    opt.step(np.ones(1))
    plateau.update(1.0)
    plateau.update(1.0)
    opt.step(np.ones(1))
    assert w[0] == -0.75


def test_plateau_as_a_callback():
    class Run:
        metrics = {"loss": 1.0, "val_loss": 0.5}

    plateau = ReduceLROnPlateau(0.5, patience=0)
    plateau.on_epoch(Run())
    assert plateau.best == 0.5
    plateau = ReduceLROnPlateau(0.5, monitor="val_acc", mode="max")
    with pytest.raises(ValueError, match="monitor must be one of the metrics, which are loss, val_loss, got 'val_acc'"):
        plateau.on_epoch(Run())


def test_plateau_metrics_of_any_kind():
    for metric in (1, 1.0, np.float32(1), np.array(1.0), Fraction(1)):
        plateau = ReduceLROnPlateau(0.5)
        plateau.update(metric)
        assert plateau.best == 1.0
        assert type(plateau.best) is float
    plateau = ReduceLROnPlateau(0.5)
    for wrong in (True, "1", None, [1.0], np.ones(2), 1j):
        with pytest.raises(TypeError, match="metric must be a number, got"):
            plateau.update(wrong)
    assert plateau.state_dict() == ReduceLROnPlateau(0.5).state_dict()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"best": math.nan}, ValueError, "best must be a number, not NaN"),
        ({"best": "1"}, TypeError, "best must be a number"),
        ({"num_bad_epochs": -1}, ValueError, "num_bad_epochs must be an integer at least 0"),
        ({"cooldown_counter": 1.0}, TypeError, "cooldown_counter must be an integer"),
        ({"lr": -1.0}, ValueError, "lr must be finite and at least 0"),
        (
            {"more": 1},
            ValueError,
            "state_dict must have the keys best, num_bad_epochs, cooldown_counter, lr, got",
        ),
    ],
)
def test_plateau_refuses_a_state(change: dict[str, Any], kind: type[Exception], message: str):
    plateau = ReduceLROnPlateau(0.5)
    plateau.update(3.0)
    before = plateau.state_dict()
    with pytest.raises(kind, match=message):
        plateau.load_state_dict(ReduceLROnPlateau(0.1).state_dict() | change)
    with pytest.raises(TypeError, match="state_dict must be a dict that `state_dict` gave, got list"):
        plateau.load_state_dict([])  # type: ignore[arg-type]
    scaled = ReduceLROnPlateau(schedules.constant(0.1)).state_dict()
    with pytest.raises(ValueError, match=r"state_dict must have the keys .*lr, got .*scale"):
        plateau.load_state_dict(scaled)
    assert plateau.state_dict() == before


def test_plateau_repr():
    assert repr(ReduceLROnPlateau(0.1)) == "ReduceLROnPlateau(0.1)"
    plateau = ReduceLROnPlateau(schedules.constant(1), patience=3, mode="max")
    assert repr(plateau) == "ReduceLROnPlateau(constant(1), patience=3, mode='max')"
