"""Gradient accumulation: several mini-batches, one step, as if they were one batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cases import CASES, Case
from helpers import BF16, DTYPES, assert_same, assert_same_bits, compute
from ironstep import functional, nn
from ironstep.optim import SGD, AdamW
from ironstep.train import Accumulator, GradientNoiseScale, load_state, save_state

F32 = np.float32
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def draw(seed: int, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=(5, 7)).astype(dtype), "b": rng.normal(size=3).astype(dtype)}


def made(case: Case, dtype: Any = np.float64, **options: Any) -> tuple[dict[str, np.ndarray], Any]:
    params = draw(99, dtype)
    return params, case.cls(params, **case.kwargs, **options)


# -- Equal to one large batch ------------------------------------------------------------------------------------------


@every_case
def test_a_step_is_that_on_the_mean(case: Case) -> None:
    params, opt = made(case, max_norm=2.0)
    mean_params, mean_opt = made(case, max_norm=2.0)
    accumulator = Accumulator(opt, 4)
    for step in range(3):
        grads = [draw(10 * step + i) for i in range(4)]
        results = [accumulator.step(own, update_norm=True) for own in grads]
        assert results[:3] == [None] * 3
        want = mean_opt.step({name: sum(own[name] for own in grads) / 4 for name in params}, update_norm=True)
        got = results[3]
        assert got is not None
        assert got.step == want.step == step + 1
        assert got.grad_norm == pytest.approx(want.grad_norm, rel=1e-12)
        assert got.update_norm == pytest.approx(want.update_norm, rel=1e-9)
        for name in params:
            np.testing.assert_allclose(params[name], mean_params[name], rtol=1e-11, atol=1e-13)


@every_dtype
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, 2.5, 1.0], [3.0, 1.0, 2.0]], ids=str)
def test_sums_are_those_of_numpy(dtype: np.dtype, weights: list[float]) -> None:
    """To the bit, in float32 for types that are narrower."""
    params, sum_params = draw(0, dtype), draw(0, dtype)
    accumulator = Accumulator(SGD(params, lr=0.5), 3)
    grads = [draw(i + 1, dtype) for i in range(3)]
    before = copy.deepcopy(grads)
    wide = compute(dtype)
    sums = {name: grads[0][name].astype(wide) * weights[0] for name in params}
    for own, weight in zip(grads, weights, strict=True):
        accumulator.step(own, weight)
        if own is not grads[0]:
            sums = {name: sums[name] + own[name].astype(wide) * weight for name in params}
    SGD(sum_params, lr=0.5).step(sums, grad_scale=1.0 / sum(weights))
    assert_same(params, sum_params)
    assert_same(grads, before)


def test_mini_batches_of_different_sizes_are_one_batch_with_their_sizes_as_weights() -> None:
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(29, 4)), rng.integers(0, 3, 29)

    def network() -> nn.Sequential:
        rng = np.random.default_rng(1)
        return nn.Sequential(
            nn.Linear(4, 8, seed=rng, dtype=np.float64), nn.GELU(), nn.Linear(8, 3, seed=rng, dtype=np.float64)
        )

    def backward(model: nn.Sequential, x: np.ndarray, t: np.ndarray) -> None:
        _, grad = functional.cross_entropy(model(x), t, return_grad=True)
        model.backward(grad)

    model, whole = network(), network()
    accumulator, opt = Accumulator(AdamW(model.params, lr=0.1), 3), AdamW(whole.params, lr=0.1)
    for _ in range(3):
        for part in (slice(0, 16), slice(16, 17), slice(17, 29)):
            backward(model, x[part], t[part])
            accumulator.step(model.grads, weight=len(x[part]))
        backward(whole, x, t)
        opt.step(whole.grads)
    for name, array in whole.params.items():
        np.testing.assert_allclose(model.params[name], array, rtol=1e-9, atol=1e-12, err_msg=name)


def test_every_1_is_the_optimiser_itself() -> None:
    params, other = draw(0, F32), draw(0, F32)
    accumulator, opt = Accumulator(AdamW(params, lr=0.1), 1), AdamW(other, lr=0.1)
    for i in range(3):
        assert accumulator.step(draw(i, F32)) == opt.step(draw(i, F32))
    assert_same(params, other)


@pytest.mark.parametrize("scale", [0.5, -2.0, 0.0])
def test_a_grad_scale_scales_the_mean(scale: float) -> None:
    w = np.zeros(1)
    accumulator = Accumulator(SGD(w, lr=1.0), 2)
    accumulator.step(np.array([1.0]), grad_scale=100.0)
    accumulator.step(np.array([5.0]), grad_scale=scale)
    assert w[0] == -3.0 * scale


def test_arguments_of_step_reach_the_optimiser() -> None:
    w = np.zeros(2)
    accumulator = Accumulator(SGD(w, lr=1.0), 1)
    result = accumulator.step(np.array([3.0, 4.0]), grad_norm=True, update_norm=True)
    assert result == (1, 5.0, 5.0, False)
    accumulator.every = 2
    accumulator.step(np.array([3.0, 4.0]))
    result = accumulator.flush(grad_norm=True)
    assert result is not None
    assert result.grad_norm == 5.0


# -- flush, pending, reset ---------------------------------------------------------------------------------------------


def test_flush_takes_the_mean_of_what_there_is() -> None:
    w = np.zeros(1)
    opt = SGD(w, lr=1.0)
    accumulator = Accumulator(opt, 4)
    assert accumulator.flush() is None
    assert opt.steps == 0
    accumulator.step(np.array([1.0]))
    accumulator.step(np.array([2.0]), weight=3.0)
    assert accumulator.pending == 2
    result = accumulator.flush()
    assert result is not None
    assert result.step == 1
    assert w[0] == -7.0 / 4.0
    assert accumulator.pending == 0
    assert accumulator.flush() is None


def test_reset_drops_what_there_is() -> None:
    w = np.zeros(1)
    accumulator = Accumulator(SGD(w, lr=1.0), 2)
    accumulator.step(np.array([np.nan]))
    accumulator.reset()
    assert accumulator.pending == 0
    accumulator.step(np.array([1.0]))
    accumulator.step(np.array([3.0]))
    assert w[0] == -2.0


def test_a_step_that_is_skipped_uses_the_sum_up() -> None:
    w = np.zeros(1)
    accumulator = Accumulator(SGD(w, lr=1.0, nonfinite="skip"), 2)
    accumulator.step(np.array([np.inf]))
    result = accumulator.step(np.array([1.0]))
    assert result is not None
    assert result.skipped
    accumulator.step(np.array([1.0]))
    accumulator.step(np.array([1.0]))
    assert w[0] == -1.0


def test_what_the_optimiser_raises_leaves_the_sum() -> None:
    w = np.zeros(1)
    opt = SGD(w, lr=1.0, nonfinite="raise")
    accumulator = Accumulator(opt, 2)
    accumulator.step(np.array([np.inf]))
    with pytest.raises(FloatingPointError):
        accumulator.step(np.array([1.0]))
    assert (accumulator.pending, opt.steps) == (2, 0)
    opt.nonfinite = "skip"
    result = accumulator.flush()
    assert result is not None
    assert result.skipped
    assert accumulator.pending == 0


# -- Groups and frozen groups ------------------------------------------------------------------------------------------


def groups() -> tuple[list[dict[str, np.ndarray]], SGD]:
    params = [{"a": np.zeros(2)}, {"b": np.zeros(3)}]
    return params, SGD([{"params": own} for own in params], lr=1.0)


def test_gradients_of_groups_are_a_list() -> None:
    params, opt = groups()
    accumulator = Accumulator(opt, 2)
    accumulator.step([{"a": np.ones(2)}, {"b": np.ones(3)}])
    accumulator.step(({"a": np.ones(2)}, {"b": np.full(3, 3.0)}))
    assert_same(params, [{"a": np.full(2, -1.0)}, {"b": np.full(3, -2.0)}])


def test_frozen_groups_are_not_looked_at() -> None:
    params, opt = groups()
    opt.freeze("a")
    accumulator = Accumulator(opt, 2, noise_scale=GradientNoiseScale())
    accumulator.step([None, {"b": np.ones(3)}])
    state = accumulator.state_dict()
    assert list(state["sums"]) == ["1.b"]
    accumulator.step([None, {"b": np.full(3, 3.0)}])
    opt.unfreeze()
    accumulator.step([{"a": np.ones(2)}, {"b": np.ones(3)}])
    accumulator.step([{"a": np.ones(2)}, {"b": np.ones(3)}])
    assert_same(params, [{"a": np.full(2, -1.0)}, {"b": np.full(3, -3.0)}])


def test_freezing_in_the_middle_is_refused() -> None:
    params, opt = groups()
    accumulator = Accumulator(opt, 2)
    grads = [{"a": np.ones(2)}, {"b": np.ones(3)}]
    accumulator.step(grads)
    opt.freeze("a")
    for call in (lambda: accumulator.step(grads), accumulator.flush):
        with pytest.raises(RuntimeError, match="frozen or unfrozen after 1 mini-batches were added"):
            call()
    assert accumulator.pending == 1
    opt.unfreeze("a")
    accumulator.step(grads)
    assert params[0]["a"][0] == -1.0
    opt.freeze("*")
    with pytest.raises(RuntimeError, match="all parameter groups are frozen"):
        accumulator.step(grads)


# -- Errors ------------------------------------------------------------------------------------------------------------

W, B = np.ones((5, 7)), np.ones(3)


@pytest.mark.parametrize(
    ("grads", "weight", "error", "match"),
    [
        (
            {"w": W, "b": np.ones(4)},
            1.0,
            ValueError,
            r"grads\['b'\] must have shape \(3,\) like its parameter, got \(4,\)",
        ),
        ({"w": W}, 1.0, ValueError, "grads must have the keys of the parameters; missing: 'b'"),
        ([W, B], 1.0, ValueError, "grads must be a dict of length 2 like the parameters, got list"),
        ({"w": W, "b": np.ones(3, int)}, 1.0, TypeError, r"grads\['b'\] must be float32, float64, float16 or bfloat16"),
        ({"w": W, "b": [1.0] * 3}, 1.0, TypeError, r"grads\['b'\] must be a NumPy array"),
        ({"w": W, "b": np.ma.masked_array(B)}, 1.0, TypeError, r"grads\['b'\] is a masked array"),
        ({"w": W, "b": B}, 0.0, ValueError, "weight must be finite and above 0, got 0.0"),
        ({"w": W, "b": B}, -1.0, ValueError, "weight must be finite and above 0"),
        ({"w": W, "b": B}, math.inf, ValueError, "weight must be finite and above 0"),
        ({"w": W, "b": B}, math.nan, ValueError, "weight must be finite and above 0"),
        ({"w": W, "b": B}, "1", TypeError, "weight must be a number"),
        ({"w": W, "b": B}, True, TypeError, "weight must be a number"),
    ],
)
@pytest.mark.parametrize("pending", [0, 1])
def test_bad_gradients_are_refused_and_nothing_is_added(
    grads: Any, weight: Any, error: type[Exception], match: str, pending: int
) -> None:
    params = draw(0)
    accumulator = Accumulator(AdamW(params), 2)
    for i in range(pending):
        accumulator.step(draw(i))
    before, first = accumulator.state_dict(), copy.deepcopy(params)
    with pytest.raises(error, match=match):
        accumulator.step(grads, weight)
    assert_same(accumulator.state_dict(), before)
    assert_same(params, first)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda opt: Accumulator(opt, 0), ValueError, "every must be an integer at least 1, got 0"),
        (lambda opt: Accumulator(opt, 2.0), TypeError, "every must be an integer at least 1, got 2.0"),
        (lambda opt: Accumulator(opt, True), TypeError, "every must be an integer"),
        (lambda opt: Accumulator(None, 2), TypeError, "opt must be an optimiser of ironstep.optim, got NoneType"),
        (
            lambda opt: Accumulator(opt, 2, noise_scale=0.9),
            TypeError,
            "noise_scale must be a GradientNoiseScale or None",
        ),
    ],
)
def test_bad_arguments_are_refused(make: Callable[..., Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make(SGD(np.ones(1)))


def test_gradients_of_other_libraries_and_layouts_are_taken() -> None:
    class Other:
        """Has no more than NumPy needs."""

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.full((2, 3), 2.0, F32)

    w = np.zeros((2, 3), F32)
    accumulator = Accumulator(SGD(w, lr=1.0), 3)
    accumulator.step(Other())
    accumulator.step(np.arange(6.0).reshape(3, 2).T)
    read_only = np.ones((2, 3), ">f4")
    read_only.setflags(write=False)
    accumulator.step(read_only)
    assert_same_bits(w, -((np.arange(6, dtype=F32).reshape(3, 2).T + F32(3.0)) * F32(1 / 3)))


def test_no_floating_point_warnings_leak() -> None:
    accumulator = Accumulator(SGD(np.zeros(2, F32), lr=1.0), 2)
    with np.errstate(all="raise"):
        accumulator.step(np.array([1e300, np.inf]), weight=10.0)
        accumulator.step(np.array([3e38, -np.inf]), weight=10.0)


# -- State -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["dict", "file"])
@pytest.mark.parametrize("stop", range(1, 7))
@every_dtype
def test_a_run_that_is_resumed_in_the_middle_goes_on_to_the_bit(stop: int, way: str, dtype: Any, tmp_path: Any) -> None:
    def run() -> tuple[dict[str, np.ndarray], AdamW, Accumulator]:
        params = draw(0, dtype)
        opt = AdamW(params, lr=0.1)
        return params, opt, Accumulator(opt, 3, noise_scale=GradientNoiseScale(0.5))

    def steps(accumulator: Accumulator, which: range) -> None:
        for i in which:
            accumulator.step(draw(i, dtype), weight=1.0 + i % 2)

    whole, first, second = run(), run(), run()
    steps(whole[2], range(8))
    steps(first[2], range(stop))
    names = ("params", "opt", "accumulator")
    if way == "file":
        save_state(tmp_path / "run", **dict(zip(names, first, strict=True)))
        load_state(tmp_path / "run", **dict(zip(reversed(names), reversed(second), strict=True)))
    else:
        for name, array in first[0].items():
            second[0][name][...] = array
        second[2].load_state_dict(first[2].state_dict())
        second[1].load_state_dict(first[1].state_dict())
    steps(second[2], range(stop, 8))
    assert_same(
        [second[0], second[1].state_dict(), second[2].state_dict()],
        [whole[0], whole[1].state_dict(), whole[2].state_dict()],
    )
    assert second[2].pending == 2


def test_a_state_dict_shares_nothing() -> None:
    accumulator = Accumulator(SGD(np.zeros(2)), 3)
    accumulator.step(np.ones(2))
    state = accumulator.state_dict()
    kept = copy.deepcopy(state)
    accumulator.step(np.ones(2))
    assert_same(state, kept)
    accumulator.load_state_dict(state)
    accumulator.step(np.ones(2))
    assert_same(state, kept)


def test_frozen_groups_of_the_optimiser_may_be_restored_after_the_accumulator() -> None:
    _, opt = groups()
    opt.freeze("a")
    accumulator = Accumulator(opt, 2)
    accumulator.step([None, {"b": np.ones(3)}])
    others, other_opt = groups()
    other = Accumulator(other_opt, 2)
    other.load_state_dict(accumulator.state_dict())
    other_opt.load_state_dict(opt.state_dict())
    other.step([None, {"b": np.full(3, 2.0)}])
    assert others[1]["b"][0] == -1.5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("pending"), "state_dict must have pending, weight, .*, got"),
        (lambda s: s.update(extra=1), "state_dict must have pending, weight"),
        (lambda s: s.update(pending=-1), r"state_dict\['pending'\] must be an integer at least 0, got -1"),
        (lambda s: s.update(weight=0.0), r"state_dict\['weight'\] must be finite and above 0"),
        (lambda s: s.update(frozen=[]), r"state_dict\['frozen'\] must have a bool for each of the 1 groups"),
        (lambda s: s["sums"].pop("b"), r"state_dict\['sums'\] must have b, w, got w"),
        (lambda s: s["sums"].update(b=np.ones(4)), r"\['sums'\]\['b'\] must be float64 of shape \(3,\), got float64"),
        (
            lambda s: s["sums"].update(b=np.ones(3, F32)),
            r"\['sums'\]\['b'\] must be float64 of shape \(3,\), got float32",
        ),
        (lambda s: s.update(small=[[-1.0, 1.0]]), r"state_dict\['small'\]\[0\]\[0\] must be at least 0"),
        (lambda s: s.update(small=[[1.0, 0.0]]), r"state_dict\['small'\]\[0\]\[1\] must be finite and above 0"),
        (lambda s: s.update(noise_scale=None), "with a noise_scale if this one has one"),
        (lambda s: s["noise_scale"].pop("updates"), "state_dict must have updates"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_changed(change: Callable[..., Any], match: str) -> None:
    accumulator = Accumulator(SGD(draw(0)), 4, noise_scale=GradientNoiseScale())
    for i in range(6):
        accumulator.step(draw(i))
    state, before = accumulator.state_dict(), accumulator.state_dict()
    change(state)
    with pytest.raises(ValueError, match=match):
        accumulator.load_state_dict(state)
    assert_same(accumulator.state_dict(), before)
    other = Accumulator(SGD(draw(0)), 4)
    with pytest.raises(ValueError, match="noise_scale"):
        other.load_state_dict(before)
    with pytest.raises(TypeError, match="state_dict must be a dict that `state_dict` gave, got list"):
        other.load_state_dict([])


# -- The noise scale on the way ----------------------------------------------------------------------------------------


def test_the_noise_scale_is_that_of_the_mini_batches_against_their_mean() -> None:
    noise, want = GradientNoiseScale(0.5), GradientNoiseScale(0.5)
    accumulator = Accumulator(SGD(draw(0, BF16)), 3, noise_scale=noise)
    sizes = [2.0, 5.0, 1.0]
    for step in range(4):
        grads = [draw(10 * step + i, BF16) for i in range(3)]
        for own, size in zip(grads, sizes, strict=True):
            accumulator.step(own, weight=size, grad_scale=2.0)
        wide = [{name: 2.0 * array.astype(float) for name, array in own.items()} for own in grads]
        mean = {name: sum(own[name] * size for own, size in zip(wide, sizes, strict=True)) / 8.0 for name in wide[0]}
        small, big = (
            [sum((array**2).sum() for array in own.values()) for own in wide],
            sum((array**2).sum() for array in mean.values()),
        )
        want.update([float(square) for square in small], float(big), sizes, 8.0)
    assert noise.updates == want.updates == 4
    assert noise.value == pytest.approx(want.value, rel=1e-4)
    assert noise.trace == pytest.approx(want.trace, rel=1e-4)


def test_one_mini_batch_alone_measures_nothing() -> None:
    noise = GradientNoiseScale()
    accumulator = Accumulator(SGD(np.zeros(2)), 3, noise_scale=noise)
    accumulator.step(np.ones(2))
    accumulator.flush()
    assert noise.updates == 0
    for value in (1.0, np.nan, 1.0):
        accumulator.step(np.full(2, value))
    assert noise.updates == 0


# -- A step is taken once ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1e-200, 1e-308, 1.0])
def test_no_measurement_fails_after_the_step(weight: float) -> None:
    """The square of 1 / weight is infinite, and so is the sum of inverses."""
    w, noise = np.zeros(2), GradientNoiseScale()
    accumulator = Accumulator(SGD(w, lr=1.0), 2, noise_scale=noise)
    for _ in range(2):
        accumulator.step(np.array([1.0, 0.0]), weight)
        assert accumulator.step(np.array([0.0, 3.0]), weight) is not None
        assert accumulator.pending == 0
    np.testing.assert_allclose(w, [-1.0, -3.0], rtol=1e-14)


def test_a_measurement_that_fails_does_so_before_the_step() -> None:
    class Failing(GradientNoiseScale):
        fails = True

        def update(self, *args: Any) -> float:
            super().update(*args)
            if self.fails:
                raise ValueError("this")
            return self.value

    w, noise = np.zeros(2), Failing()
    accumulator = Accumulator(SGD(w, lr=1.0), 2, noise_scale=noise)
    accumulator.step(np.array([1.0, 0.0]))
    for call in (lambda: accumulator.step(np.array([0.0, 3.0])), accumulator.flush):
        with pytest.raises(ValueError, match="this"):
            call()
        assert (w.tolist(), noise.updates, accumulator.pending) == ([0, 0], 0, 2)
    Failing.fails = False
    accumulator.flush()
    assert (w.tolist(), noise.updates, accumulator.pending) == ([-0.5, -1.5], 1, 0)


def test_a_step_that_fails_is_not_measured() -> None:
    w, noise = np.zeros(2), GradientNoiseScale()
    accumulator = Accumulator(SGD(w, lr=lambda step: [-1.0, 1.0][ready]), 2, noise_scale=noise)
    ready = 0
    accumulator.step(np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="lr"):
        accumulator.step(np.array([0.0, 3.0]))
    assert (noise.updates, accumulator.pending) == (0, 2)
    ready = 1
    accumulator.flush()
    assert (w.tolist(), noise.updates) == ([-0.5, -1.5], 1)


def test_a_step_that_is_interrupted_after_it_was_taken_is_not_taken_again() -> None:
    class Interrupt(BaseException):
        pass

    class Interrupted(SGD):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            super().step(*args, **kwargs)
            raise Interrupt

    w = np.zeros(2)
    accumulator = Accumulator(Interrupted(w, lr=1.0), 1)
    with pytest.raises(Interrupt):
        accumulator.step(np.ones(2))
    assert accumulator.flush() is None
    assert w.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"gradnorm": True}, TypeError, "step takes grad_scale, grad_norm, update_norm for .*, got 'gradnorm'"),
        ({"grad_scale": "x"}, TypeError, "grad_scale must be"),
        ({"grad_scale": math.inf}, ValueError, "grad_scale must be"),
        ({"weight": 1.7e308}, ValueError, "weight must have a finite sum over the mini-batches"),
    ],
)
def test_bad_options_are_refused_at_once(kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    w = np.zeros(2)
    accumulator = Accumulator(SGD(w, lr=1.0), 3)
    accumulator.step(np.ones(2), 1e308)
    with pytest.raises(error, match=match):
        accumulator.step(np.ones(2), **kwargs)
    assert accumulator.pending == 1
    if "weight" not in kwargs:
        with pytest.raises(error, match=match):
            accumulator.flush(**kwargs)
        assert accumulator.pending == 1


def test_a_group_that_is_added_in_the_middle() -> None:
    opt = SGD(np.zeros(2), lr=1.0)
    accumulator = Accumulator(opt, 2)
    accumulator.step(np.ones(2))
    opt.add_param_group({"params": np.zeros(3)})
    for call in (lambda: accumulator.step([np.ones(2), np.ones(3)]), accumulator.flush):
        with pytest.raises(
            RuntimeError, match="parameter groups were added after 1 mini-batches were added; call flus"
        ):
            call()
    accumulator.reset()
    accumulator.step([np.ones(2), np.ones(3)])
    assert accumulator.step([np.ones(2), np.ones(3)]) is not None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"frozen": 5}, r"state_dict\['frozen'\] must be a list of bools, got 5"),
        ({"sums": None}, r"state_dict\['sums'\] must be a dict of arrays, got NoneType"),
        ({"sums": {"b": 1, 2: 3}}, r"state_dict\['sums'\] must have b, w, got b, 2"),
        ({"sums": {"b": "x", "w": "y"}}, r"state_dict\['sums'\]\['b'\]"),
        ({"small": 3}, r"state_dict\['small'\] must be a list of pairs, got 3"),
        ({"small": [3]}, r"state_dict\['small'\]\[0\] must be a pair of numbers, got 3"),
        ({"small": [["x", 1.0]]}, r"state_dict\['small'\]\[0\]\[0\] must be"),
        ({"small": [[np.zeros(2), 1.0]]}, r"state_dict\['small'\]\[0\]\[0\] must be"),
        ({"weight": None}, r"state_dict\['weight'\] must be"),
        ({"pending": None}, r"state_dict\['pending'\] must be"),
        ({3: None}, "state_dict must have pending, .*, got pending, .*, 3"),
    ],
)
def test_states_of_wrong_types_are_refused_by_name(change: dict[Any, Any], match: str) -> None:
    accumulator = Accumulator(SGD(draw(0), lr=1.0), 3)
    accumulator.step(draw(1))
    before = accumulator.state_dict()
    with pytest.raises((TypeError, ValueError), match=match):
        accumulator.load_state_dict(before | change)
    assert_same(accumulator.state_dict(), before)
