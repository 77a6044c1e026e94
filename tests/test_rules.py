"""Every rule equals its NumPy expression bit for bit, on every instruction set and thread count, at every odd size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import ironstep
from cases import CASES, Case
from helpers import BF16, DTYPES, ISAS, assert_all_same_bits, assert_same_bits, awkward, compute
from helpers import Spec as Reference
from ironstep import _core, functional, optim
from reference import CHUNK

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SIZES = [0, 1, 2, 15, 16, 17, 100, 1023, 1024, 1025, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7]


@pytest.fixture(autouse=True)
def _default_threads():
    yield
    ironstep.set_num_threads(0)


def states_of(opt: optim.Optimizer) -> list[np.ndarray]:
    return [array for name in sorted(opt.state) for array in opt.state[name]]


def test_the_table_has_every_rule_and_class():
    assert {case.rule for case in CASES} == set(_core.rules()) - {"lookahead"}
    classes = {getattr(optim, name) for name in optim.__all__} - {optim.Optimizer, optim.ParamGroup, optim.StepResult}
    assert {case.cls for case in CASES} == classes


@each_dtype
@each_case
def test_equals_the_numpy_expression(case: Case, dtype: np.dtype):
    rng = np.random.default_rng(1)
    # Norms take the non-finite into every element, so rules with norms get finite ones as well.
    draws = [awkward] if not case.rule.startswith("la") else [awkward, lambda rng, n, t: rng.normal(size=n).astype(t)]
    for draw in draws:
        params = [draw(rng, n, dtype) for n in SIZES]
        spec = Reference(case, params)
        opt = case.cls(params, **case.kwargs)
        for t in range(1, 4):
            grads = [draw(rng, n, dtype) for n in SIZES]
            assert opt.step(grads).step == t
            spec.step(grads)
            assert_all_same_bits(params, spec.stored(), f"step {t}, params")
            for name, arrays in opt.state.items():
                assert_all_same_bits(arrays, [state[name] for state in spec.states], f"step {t}, {name}")


@each_dtype
@each_case
def test_same_bits_on_every_instruction_set_and_thread_count(case: Case, dtype: np.dtype):
    rng = np.random.default_rng(2)
    # More in all than what is worth waking a thread for.
    sizes = [5, 1000, 17 * CHUNK + 3, 64, 3 * CHUNK]
    start = [rng.normal(size=n).astype(dtype) for n in sizes]
    grads = [[rng.normal(size=n).astype(dtype) for n in sizes] for _ in range(2)]
    want = None
    for isa in ISAS:
        for threads in (1, 2, 3, 7) if isa == ISAS[-1] else (2,):
            ironstep.set_num_threads(threads)
            params = [p.copy() for p in start]
            opt = case.cls(params, **case.kwargs, max_norm=1.0)
            results = [opt.step(g, update_norm=(t == 1), _isa=isa) for t, g in enumerate(grads)]
            got = (params, states_of(opt), results)
            want = want or got
            assert_all_same_bits(got[0], want[0], f"{isa}, {threads} threads, params")
            assert_all_same_bits(got[1], want[1], f"{isa}, {threads} threads, state")
            assert got[2] == want[2]


@each_case
def test_whole_or_in_chunks(case: Case):
    """One array or its pieces as a list: the same, except where a norm over the array counts."""
    rng = np.random.default_rng(3)
    whole = rng.normal(size=2 * CHUNK + 100).astype(np.float32)
    pieces = np.split(whole.copy(), [1, 17, 5000, CHUNK + 1])
    a, b = case.cls(whole, **case.kwargs), case.cls(pieces, **case.kwargs)
    for _ in range(2):
        g = rng.normal(size=whole.size).astype(np.float32)
        a.step(g)
        b.step(np.split(g, [1, 17, 5000, CHUNK + 1]))
    got = np.concatenate(pieces)
    if case.cls in (optim.LAMB, optim.LARS) and (case.hyper["always_adapt"] or case.hyper["weight_decay"]):
        assert not np.array_equal(got, whole)
    else:
        assert_same_bits(got, whole)


@each_case
def test_late_steps(case: Case):
    """Beyond 2^24, where a float32 counter would stand still, and beyond 2^53."""
    for step in (1 << 24, (1 << 24) + 1, 1 << 53):
        p, g = np.array([0.3, -0.7]), np.array([0.2, 0.4])
        state = {name: np.abs(array) + 0.1 for name, array in case.new_state(p).items()}
        scalars = {name: np.array(0.25) for name in case.new_scalars()}
        values = {name: float(value) for name, value in scalars.items()}
        want, new = case.reference(
            p.copy(), g * (-1.0 if case.hyper["maximize"] else 1.0), state, step, case.hyper, values
        )
        state = {name: array.copy() for name, array in state.items()}
        function = getattr(functional, case.cls._function)
        assert function(p, g, **state, **scalars, step=step, **case.kwargs).step == step
        assert_same_bits(p, want)
        for name in new:
            assert_same_bits(state[name], new[name], name)
        assert {name: float(value) for name, value in scalars.items()} == values


@each_dtype
@each_case
def test_the_function_equals_the_object(case: Case, dtype: np.dtype):
    rng = np.random.default_rng(4)
    a = [awkward(rng, n, dtype) for n in (33, 1, 1500)]
    b = [p.copy() for p in a]
    opt = case.cls(a, **case.kwargs)
    per_leaf = [case.new_state(np.zeros(p.shape, compute(dtype))) for p in a]
    states = {name: [state[name] for state in per_leaf] for name in case.states}
    scalars = {name: np.array(value) for name, value in case.new_scalars().items()}
    function = getattr(functional, case.cls._function)
    for step in (1, 2, 3):
        grads = [awkward(rng, p.size, dtype) for p in a]
        first = opt.step(grads, grad_norm=True)
        second = function(b, grads, **states, **scalars, step=step, grad_norm=True, **case.kwargs)
        assert np.array_equal(np.array(first[:2], float), np.array(second[:2], float), equal_nan=True)
        assert_all_same_bits(b, a, "params")
        for name in case.states:
            assert_all_same_bits(states[name], opt.state[name], name)


@each_case
def test_maximize_is_the_negated_gradient(case: Case):
    rng = np.random.default_rng(5)
    a = rng.normal(size=50).astype(np.float32)
    b = a.copy()
    kwargs = {name: value for name, value in case.kwargs.items() if name != "maximize"}
    up, down = case.cls(a, **kwargs, maximize=True), case.cls(b, **kwargs)
    for _ in range(3):
        g = rng.normal(size=50).astype(np.float32)
        up.step(g)
        down.step(-g)
    assert_same_bits(a, b)


def test_forced_instruction_set_must_exist():
    with pytest.raises(ValueError, match="_isa must be one of"):
        optim.SGD(np.zeros(3)).step(np.zeros(3), _isa="mmx")


def descend(case: Case, x: np.ndarray, gradient: Callable[[np.ndarray], np.ndarray], steps: int, decay: float) -> None:
    """Steps in place with a falling learning rate and without what pulls elsewhere."""
    lr = case.descent_lr or case.hyper["lr"]
    kwargs = case.kwargs | {"lr": lambda t: lr / (1 + t / decay), "weight_decay": 0.0}
    if case.cls is optim.Adagrad:
        kwargs["lr_decay"] = 0.0
    sign = -1.0 if case.hyper["maximize"] else 1.0
    opt = case.cls(x, **kwargs, max_norm=10.0)
    for _ in range(steps):
        opt.step(sign * gradient(x))


@each_case
def test_converges_on_a_quadratic(case: Case):
    """f(x) = sum(a x^2) / 2 around a minimum away from 0."""
    a, minimum = np.array([1.0, 4.0, 0.5]), np.array([1.0, -2.0, 0.5])
    x = np.array([3.0, 1.0, -1.0])
    before = np.sum(a * (x - minimum) ** 2)
    descend(case, x, lambda x: a * (x - minimum), 2000, decay=100)
    assert np.sum(a * (x - minimum) ** 2) < 1e-3 * before


@each_case
def test_goes_down_the_rosenbrock_valley(case: Case):
    def f(x: np.ndarray) -> float:
        return float((1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2)

    def gradient(x: np.ndarray) -> np.ndarray:
        inner = 200 * (x[1] - x[0] ** 2)
        return np.array([-2 * (1 - x[0]) - 2 * x[0] * inner, inner])

    x = np.array([-1.2, 1.0])
    before = f(x)
    descend(case, x, gradient, 5000, decay=1000)
    assert f(x) < 0.05 * before


def test_low_precision_parameters_with_float32_state_keep_small_updates():
    """1000 steps that are each below half an ulp of a bfloat16 get lost without a master copy, and add up with one."""
    lost, kept = np.ones(4, BF16), np.ones(4, BF16)
    g = np.full(4, 1e-3, BF16)
    plain, with_master = optim.SGD(lost, lr=1.0), optim.SGD(kept, lr=1.0, master_weights=True)
    for _ in range(500):
        plain.step(g)
        with_master.step(g)
    assert (lost.astype(float) == 1.0).all()
    assert abs(kept.astype(float) - 0.5).max() < 0.01
