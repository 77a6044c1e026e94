"""A rule's program (`_core.Trace`), from which kernels for other machines are made, does what the rule does.

Evaluated in NumPy it gives the bits of the core, for every row of the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import reference
from cases import CASES, Case
from helpers import Array, assert_same_bits, awkward
from ironstep import _core

TWO = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
}
ONE = {"neg": np.negative, "sqrt": np.sqrt, "abs": np.abs, "sign": np.sign}


def evaluate(program: Any, p: Array, g: Array, states: Sequence[Array]) -> list[Array]:
    """The outputs of a program, operation by operation."""
    ops, outputs, constants = program
    kind = p.dtype.type
    values: list[Any] = []
    for name, *operands in ops:
        match name:
            case "p":
                values.append(p)
            case "g":
                values.append(g)
            case "state":
                values.append(states[operands[0]])
            case "constant":
                values.append(kind(constants[operands[0]]))
            case "zero":
                values.append(kind(0))
            case "one":
                values.append(kind(1))
            case _:
                values.append((TWO | ONE)[name](*(values[i] for i in operands)))
    return [values[i] for i in outputs]


def numbers(case: Case) -> _core.Values:
    """What the rule takes."""
    return case.cls(np.zeros(1), **case.kwargs).param_groups[0].vector(0, True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_program_gives_the_bits_of_the_core(case: Case, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    values = numbers(case)
    p = awkward(rng, (3, 41), np.dtype(dtype)) if "la" not in case.rule else rng.normal(size=(3, 41)).astype(dtype)
    core = p.copy()
    core_states = [case.new_state(np.zeros_like(p))[name] for name in case.states]
    states = [state.copy() for state in core_states]
    scalars = list(case.new_scalars().values())
    core_scalars = list(scalars)
    plan = _core.Plan(case.rule, _core.Tree([core], "params"), [[state] for state in core_states], [0])
    for step in (1, 2, 3):
        g = rng.normal(size=p.shape).astype(dtype)
        group_arguments = [(step, False, values, core_scalars)]
        new = plan.step([g], group_arguments, 1.0, math.inf, math.inf, False, 0.0, False, False, None)[3]
        core_scalars = new[0] if new else core_scalars
        trace = _core.Trace(case.rule, values, step, scalars)
        scalars = trace.scalars
        with np.errstate(all="ignore"):
            if trace.passes == "one":
                program = trace.update
            else:
                first, measured, *new_states = evaluate(trace.measure, p, g, states)
                norms = [math.sqrt(reference.sum_squares(x)) for x in (first, measured)]
                if trace.passes == "state_then_param":
                    states = new_states
                program = trace.second(*norms)
            p, *new_states = evaluate(program, p, g, states)
        states = states if trace.passes == "state_then_param" else new_states
        assert scalars == core_scalars
        assert_same_bits(p, core, f"params, step {step}")
        for name, got, want in zip(case.states, states, core_states, strict=True):
            assert_same_bits(np.broadcast_to(got, want.shape), want, f"{name}, step {step}")


def test_the_structure_depends_on_the_switches_alone() -> None:
    names = _core.rules()["adam"][0]
    usual = dict.fromkeys(names, 0.0) | {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "bias_correction": 1.0}

    def key(step: int, **other: float) -> Any:
        values = _core.Values([(usual | other)[name] for name in names])
        return _core.Trace("adam", values, step, []).update[:2]  # type: ignore[index]

    assert key(1) == key(2, lr=0.5, eps=0.0)
    assert hash(key(1)) == hash(key(2))
    assert key(1) != key(1, weight_decay=0.1)
    assert key(1, weight_decay=0.1) != key(1, weight_decay=0.1, decoupled_weight_decay=1.0)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no rule named .adaam"):
        _core.Trace("adaam", _core.Values([]), 1, [])
    with pytest.raises(ValueError, match="the hyperparameters must be"):
        _core.Trace("adam", _core.Values([1.0]), 1, [])
    with pytest.raises(ValueError, match="the hyperparameters must be"):
        _core.Trace("nadam", _core.Values([0.0] * len(_core.rules()["nadam"][0])), 1, [])
