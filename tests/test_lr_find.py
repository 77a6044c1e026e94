"""The learning-rate range test: the sweep, what it puts back, and what it suggests."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from helpers import BF16, assert_same, assert_same_bits
from ironstep import functional, nn, optim, schedules
from ironstep.data import Batches
from ironstep.optim import SGD, AdamW
from ironstep.train import LRFind, lr_find
from ironstep.train._lr_find import METHODS, _valley

F32 = np.float32


class Job:
    """A small network with all that has state."""

    def __init__(self, *, dtype: Any = F32, prefetch: int = 0, lr: Any = 0.01) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(96, 4)).astype(dtype)
        t = (x[:, 0] > x[:, 1]).astype(np.int64)
        self.model = nn.Sequential(
            nn.Linear(4, 16, seed=rng, dtype=dtype),
            nn.BatchNorm1d(16, dtype=dtype),
            nn.ReLU(),
            nn.Dropout(0.2, seed=3),
            nn.Linear(16, 2, seed=rng, dtype=dtype),
        )
        self.rng = np.random.default_rng(1)
        self.opt = AdamW(self.model.params, lr=lr, ema_decay=0.9)
        self.batches = Batches(x, t, batch_size=16, seed=0, prefetch=prefetch)
        self.losses: list[float] = []
        self.lrs: list[float] = []

    @property
    def state(self) -> dict[str, Any]:
        return {"model": self.model, "rng": self.rng}

    def step(self, x: np.ndarray, t: np.ndarray) -> float:
        x = x + 0.01 * self.rng.normal(size=x.shape).astype(x.dtype)
        loss, grad = functional.cross_entropy(self.model(x), t, return_grad=True)
        self.model.backward(grad)
        self.opt.step(self.model.grads)
        self.losses.append(loss)
        self.lrs.append(self.opt.param_groups[0]["lr"])
        return loss

    def all(self) -> Any:
        return copy.deepcopy(
            [self.model.state_dict(), self.opt.state_dict(), self.rng.bit_generator.state, self.batches.state_dict()]
        )

    def go(self, steps: int) -> None:
        while steps:
            for batch in self.batches:
                self.step(*batch)
                steps -= 1
                if not steps:
                    break


def find(job: Job, **kwargs: Any) -> LRFind:
    return lr_find(job.step, job.batches, job.opt, state=job.state, **kwargs)


# -- The sweep ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exp", "linear"])
@pytest.mark.parametrize("num", [2, 3, 50])
def test_the_learning_rates_are_those_of_the_equation(mode: str, num: int) -> None:
    job = Job()
    found = find(job, mode=mode, num=num, min_lr=1e-6, max_lr=1e-2, diverge=math.inf)
    assert found.stopped == "the sweep came to its end"
    a, b = 1e-6, 1e-2
    want = [a * (b / a) ** (i / (num - 1)) if mode == "exp" else a + (b - a) * i / (num - 1) for i in range(num)]
    np.testing.assert_allclose(found.lrs, want, rtol=1e-13)
    assert (found.lrs[0], found.lrs[-1]) == (a, b)
    assert job.lrs == found.lrs.tolist()
    assert job.losses == found.losses.tolist()


def test_the_losses_are_those_of_training_with_these_rates() -> None:
    job, other = Job(), Job()
    found = find(job, num=20, min_lr=1e-4, max_lr=0.1)
    it: Iterator[Any] = iter(())
    for i, lr in enumerate(found.lrs):
        if i % 6 == 0:  # An epoch.
            it = iter(other.batches)
        other.opt.param_groups[0]["lr"] = float(lr)
        other.step(*next(it))
        if i % 6 == 5:
            assert next(it, None) is None
    assert found.losses.tolist() == other.losses


@pytest.mark.parametrize("smooth", [0.0, 0.5, 0.98])
def test_smoothing(smooth: float) -> None:
    values = iter(np.random.default_rng(0).normal(5.0, 1.0, 30).tolist())
    found = lr_find(lambda b: next(values), [0], SGD(np.ones(1)), state={}, num=30, smooth=smooth)
    average, want = 0.0, []
    for i, loss in enumerate(found.losses.tolist()):
        average = smooth * average + (1 - smooth) * loss
        want.append(average / (1 - smooth ** (i + 1)))
    np.testing.assert_allclose(found.smoothed, want, rtol=1e-13)


def test_groups_keep_their_ratios() -> None:
    params = [{"a": np.ones(1)}, {"b": np.ones(1)}, {"c": np.ones(1)}]
    lrs = [0.1, lambda step: 0.4, 0.0]
    opt = SGD([{"params": own, "lr": lr} for own, lr in zip(params, lrs, strict=True)])
    seen = []

    def step(batch: int) -> float:
        seen.append([group["lr"] for group in opt.param_groups])
        return 1.0

    found = lr_find(step, [0], opt, state={}, num=5)
    np.testing.assert_allclose(seen, [[lr * 0.25, lr, 0.0] for lr in found.lrs], rtol=1e-13)
    assert [group["lr"] for group in opt.param_groups] == lrs


def test_groups_without_any_rate_all_get_it() -> None:
    opt = SGD([{"params": np.ones(1)}, {"params": np.ones(1)}], lr=0.0)
    seen = []
    lr_find(lambda b: seen.append([group["lr"] for group in opt.param_groups]) or 1.0, [0], opt, state={}, num=2)
    assert seen == [[1e-7, 1e-7], [10.0, 10.0]]


# -- Where it stops ----------------------------------------------------------------------------------------------------


def curve(values: list[float], **kwargs: Any) -> LRFind:
    """The sweep over losses that are given."""
    it = iter(values)
    return lr_find(
        lambda batch: next(it), [0], SGD(np.ones(1)), state={}, **{"num": len(values), "smooth": 0.0} | kwargs
    )


@pytest.mark.parametrize(
    ("values", "diverge", "points"),
    [
        ([1.0, 0.5, 1.9, 2.1, 0.1], 4.0, 4),
        ([1.0, 0.5, 2.0, 2.0, 2.0], 4.0, 5),
        ([1.0, 4.1, 2.0, 2.0, 2.0], 4.0, 2),
        ([1.0, 0.5, 0.9, 1.1, 0.1], 2.0, 4),
        ([1.0, 0.5, 1e300, 1e300, 0.1], math.inf, 5),
        ([-1.0, -2.0, 3.9, 4.1, 0.1], 4.0, 4),
        ([-1.0, -2.0, -1.9, -1.0, 0.1], 4.0, 5),
    ],
)
def test_it_stops_where_the_loss_has_risen(values: list[float], diverge: float, points: int) -> None:
    found = curve(values, diverge=diverge)
    assert found.losses.tolist() == values[:points]
    assert len(found.lrs) == len(found.smoothed) == points
    if points < 5:
        assert (
            found.stopped
            == f"the loss rose above {diverge:g} times its lowest value at a learning rate of {found.lrs[-1]:.3g}"
        )
    else:
        assert found.stopped == "the sweep came to its end"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 2])
def test_it_stops_where_the_loss_is_not_finite(value: float, at: int) -> None:
    found = curve([1.0] * at + [value] + [1.0] * 3, diverge=math.inf)
    np.testing.assert_array_equal(found.losses, [1.0] * at + [value])
    np.testing.assert_array_equal(found.smoothed, [1.0] * at + [np.nan])
    assert found.stopped == f"the loss was not finite at a learning rate of {found.lrs[-1]:.3g}"


def test_an_optimiser_that_raises_at_gradients_that_are_not_finite_stops_it_too() -> None:
    w = np.array([4.0], F32)
    opt = SGD(w, lr=0.1, nonfinite="raise")

    def step(batch: int) -> float:
        grad = w * F32(3e38)
        opt.step(grad)
        return 1.0

    found = lr_find(step, [0], opt, state={}, num=10)
    assert len(found.lrs) == 1
    assert "not finite" in found.stopped
    assert w[0] == 4.0


def test_divergence_gives_no_warnings() -> None:
    w = np.array([4.0], F32)
    opt = SGD(w, lr=0.1)

    def step(batch: int) -> float:
        loss = float((w * w).sum())
        opt.step(2 * w)
        return loss

    with np.errstate(all="raise"):
        found = lr_find(step, [0], opt, state={"w": w}, min_lr=1e3, max_lr=1e6, diverge=math.inf)
    assert "not finite" in found.stopped
    assert w[0] == 4.0


# -- What it puts back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 9])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_everything_is_put_back_to_the_bit(done: int, prefetch: int) -> None:
    job, other = Job(prefetch=prefetch), Job(prefetch=prefetch)
    for each in (job, other):
        each.go(done)
    before, arrays = job.all(), [id(array) for array in job.model.params.values()]
    threads = threading.active_count()
    find(job, num=40)
    assert_same(job.all(), before)
    assert [id(array) for array in job.model.params.values()] == arrays
    assert threading.active_count() == threads
    job.go(4)
    other.go(4)
    assert job.losses[-4:] == other.losses[-4:]
    assert_same(job.all(), other.all())


def test_batches_in_the_midst_of_an_epoch_go_on_there() -> None:
    job, other = Job(), Job()
    for each in (job, other):
        it = iter(each.batches)
        for _ in range(3):
            each.step(*next(it))
        position = each.batches.state_dict()
        it.close()
        each.batches.load_state_dict(position)
    find(job, num=7)
    for each in (job, other):
        each.go(3)
    assert_same(job.all(), other.all())


class OtherBatches:
    """Batches with a state, of another library."""

    def __init__(self) -> None:
        self.position = 5

    def __iter__(self) -> Iterator[int]:
        while True:
            self.position += 1
            yield self.position

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def test_batches_of_other_libraries_with_a_state_are_put_back_too() -> None:
    batches, seen = OtherBatches(), []
    lr_find(lambda x: seen.append(x) or 1.0, batches, SGD(np.ones(1)), state={}, num=3)
    assert seen == [6, 7, 8]
    assert batches.position == 5


def test_iterators_are_closed() -> None:
    class Closing:
        """An iterator of another library, with a thread to stop, say."""

        closed = 0

        def __init__(self, n: int) -> None:
            self.left = n

        def __iter__(self) -> Closing:
            return Closing(2)

        def __next__(self) -> int:
            self.left -= 1
            if self.left < 0:
                raise StopIteration
            return self.left

        def close(self) -> None:
            Closing.closed += 1

    class Many:
        def __iter__(self) -> Closing:
            return Closing(2)

    lr_find(lambda x: 1.0, Many(), SGD(np.ones(1)), state={}, num=5)
    assert Closing.closed == 3


def test_to_look_at_a_batch_before_loses_none() -> None:
    job = Job()
    first = next(iter(job.batches))
    find(job, num=3)
    assert_same(next(iter(job.batches)), first)
    assert len(list(job.batches)) == 6


def test_parameters_are_put_back_whatever_the_state_has() -> None:
    job = Job()
    before = copy.deepcopy(job.model.params)
    lr_find(job.step, job.batches, job.opt, state={}, num=5)
    assert_same(job.model.params, before)


def test_state_may_be_one_object() -> None:
    job = Job()
    before = job.model.state_dict()
    lr_find(job.step, job.batches, job.opt, state=job.model, num=5)
    assert_same(job.model.state_dict(), before)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("at", [0, 1, 8])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_everything_is_put_back_after_an_error_too(error: type[BaseException], at: int, prefetch: int) -> None:
    job = Job(prefetch=prefetch)
    job.go(6)
    before, threads, calls = job.all(), threading.active_count(), 0

    def step(x: np.ndarray, t: np.ndarray) -> float:
        nonlocal calls
        loss = job.step(x, t)
        calls += 1
        if calls > at:
            raise error
        return loss

    with pytest.raises(error):
        lr_find(step, job.batches, job.opt, state=job.state)
    assert calls == at + 1
    assert_same(job.all(), before)
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    "lr",
    [schedules.cosine(0.1, steps=50), lambda step: 0.1 / (1 + step), schedules.ReduceLROnPlateau(0.1)],
    ids=["s", "f", "p"],
)
def test_functions_of_the_step_are_put_back(lr: Any) -> None:
    job, other = Job(lr=lr), Job(lr=copy.deepcopy(lr))
    for each in (job, other):
        each.go(3)
    find(job, num=5)
    assert job.opt.param_groups[0]["lr"] is lr
    for each in (job, other):
        each.go(3)
    assert_same(job.all()[:3], other.all()[:3])


def test_masters_and_frozen_groups_are_put_back() -> None:
    params = [{"a": np.ones(8, BF16)}, {"b": np.ones(8, BF16)}]
    opt = AdamW([{"params": own} for own in params], lr=0.1, master_weights=True)
    opt.step([{"a": np.full(8, 0.1, F32)}, {"b": np.full(8, 0.1, F32)}])
    opt.freeze("a")
    before = copy.deepcopy([params, opt.master, opt.state_dict()])

    def step(batch: int) -> float:
        opt.step([None, {"b": np.ones(8, F32)}])
        return float(params[1]["b"].astype(float).sum())

    lr_find(step, [0], opt, state={})
    assert_same([params, opt.master, opt.state_dict()], before)


def test_batches_may_be_a_list_of_anything() -> None:
    seen = []
    lr_find(lambda x, y: seen.append((x, y)) or 1.0, [(1, 2), [3, 4]], SGD(np.ones(1)), state={}, num=5)
    assert seen == [(1, 2), (3, 4), (1, 2), (3, 4), (1, 2)]
    seen.clear()
    lr_find(
        lambda x: seen.append(x) or {"loss": np.float32(1.0), "more": 2}, np.arange(3), SGD(np.ones(1)), state={}, num=4
    )
    assert seen == [0, 1, 2, 0]


# -- Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"step": 3}, TypeError, "step must be a function of a batch, got 3"),
        ({"opt": None}, TypeError, "opt must be an optimiser of ironstep.optim, got NoneType"),
        (
            {"batches": iter([1])},
            TypeError,
            "batches must be something that can be iterated over again, .* list_iterator",
        ),
        ({"batches": 3}, TypeError, "batches must be something that can be iterated over again"),
        ({"batches": []}, ValueError, "batches must give at least one batch, got none"),
        ({"state": 3}, TypeError, "state must be an object with state_dict"),
        ({"min_lr": 0.0}, ValueError, "min_lr must be finite and above 0, got 0.0"),
        ({"max_lr": math.inf}, ValueError, "max_lr must be finite and above 0"),
        ({"min_lr": 1.0, "max_lr": 1.0}, ValueError, "max_lr must be above min_lr, 1.0, got 1.0"),
        ({"num": 1}, ValueError, "num must be an integer at least 2, got 1"),
        ({"num": 10.0}, TypeError, "num must be an integer"),
        ({"mode": "log"}, ValueError, "mode must be 'exp' or 'linear', got 'log'"),
        ({"smooth": 1.0}, ValueError, "smooth must be at least 0 and below 1, got 1.0"),
        ({"diverge": 1.0}, ValueError, "diverge must be above 1"),
        (
            {"step": lambda x: None},
            ValueError,
            "step must return the loss, or a dict with 'loss', for lr_find, got None",
        ),
        ({"step": lambda x: {"acc": 1.0}}, ValueError, "step must return the loss"),
        ({"step": lambda x: "a"}, TypeError, "step must return .*, got 'a'"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    w = np.ones(1)
    opt = SGD(w, lr=0.5)
    before = opt.state_dict()
    with pytest.raises(error, match=match):
        lr_find(**{"step": lambda x: 1.0, "batches": [0], "opt": opt, "state": {}} | kwargs)
    assert_same(opt.state_dict(), before)


def test_state_must_be_given() -> None:
    with pytest.raises(TypeError, match="state"):
        lr_find(lambda x: 1.0, [0], SGD(np.ones(1)))  # type: ignore[call-arg]


# -- Suggestions -------------------------------------------------------------------------------------------------------


def middle_of_the_longest_descent(losses: list[float]) -> int:
    """Of all decreasing subsequences the longest, the one that ends first.

    As published, the valley begins as many points before its end as the subsequence has, and the suggestion is half a
    third past the first third.
    """

    @functools.cache
    def longest(end: int) -> int:
        return 1 + max((longest(i) for i in range(end) if losses[i] > losses[end]), default=0)

    end = max(range(len(losses)), key=lambda i: (longest(i), -i))
    third = longest(end) / 3
    return max(0, end - longest(end) + math.floor(third) + math.floor(third / 2))


def test_the_longest_descent_is_that_of_all_subsequences() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        losses = rng.integers(8, size=9).tolist()
        found = (0, 0)
        for size in range(1, 10):
            for chosen in itertools.combinations(range(9), size):
                falls = all(losses[i] > losses[j] for i, j in itertools.pairwise(chosen))
                if falls and (size, -chosen[-1]) > found:
                    found = (size, -chosen[-1])
        length, end = found[0], -found[1]
        want = max(0, end - length + math.floor(length / 3) + math.floor(length / 6))
        assert middle_of_the_longest_descent(losses) == want


@pytest.mark.parametrize("seed", range(30))
def test_the_valley_is_the_longest_descent(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 90))
    x = np.linspace(-3, 3, n)
    losses = rng.choice([0.1, 1.0, 5.0]) * rng.normal(size=n) + rng.choice([0.0, 1.0, -1.0]) * x * rng.choice(
        [1.0, 3.0]
    )
    if seed % 3 == 0:
        losses = losses.round()  # Ties.
    assert _valley(losses) == middle_of_the_longest_descent(losses.tolist())


def bathtub(n: int = 100) -> tuple[np.ndarray, list[float]]:
    """Falls from 3 to 1 between 1e-4 and 1e-1, steepest near 3e-3, and explodes after 1."""
    lrs = 1e-7 * 1e8 ** (np.arange(n) / (n - 1))
    x = np.log10(lrs)
    return lrs, (2.0 - np.tanh(2.0 * (x + 2.5)) + 0.02 * np.exp(4.0 * np.maximum(x, -1.0))).tolist()


def test_suggestions() -> None:
    lrs, losses = bathtub()
    found = curve(losses, diverge=1e9)
    np.testing.assert_allclose(found.lrs, lrs, rtol=1e-12)
    lrs = found.lrs
    inner = slice(10, len(lrs) - 5)
    low = 10 + int(np.argmin(losses[inner]))
    assert found.suggest("minimum") == pytest.approx(lrs[low] / 10, rel=1e-12)
    slopes = [
        (b - a) / (math.log(q) - math.log(p)) for a, b, p, q in zip(losses, losses[1:], lrs, lrs[1:], strict=False)
    ]
    steepest = 10 + int(np.argmin(slopes[10 : len(lrs) - 6]))
    assert found.suggest("steepest") == lrs[steepest] == pytest.approx(10**-2.5, rel=0.3)
    assert found.suggest("valley") == found.suggest() == lrs[10 + middle_of_the_longest_descent(losses[inner])]
    assert 1e-5 < found.suggest() < 1e-1


def test_suggestions_of_a_linear_sweep_are_per_relative_change_too() -> None:
    losses = (1.0 / (1.0 + np.arange(60))).tolist()
    found = curve(losses, mode="linear", min_lr=0.1, max_lr=6.0)
    lrs = found.lrs
    slopes = np.diff(losses) / np.diff(np.log(lrs))
    assert found.suggest("steepest") == lrs[6 + int(np.argmin(slopes[6:-5]))]


@pytest.mark.parametrize("method", METHODS)
def test_the_point_that_is_not_finite_is_not_looked_at(method: str) -> None:
    _, losses = bathtub()
    broken = curve([*losses[:80], math.nan], num=100)
    whole = LRFind(broken.lrs[:80], broken.losses[:80], broken.smoothed[:80], "", 100)
    assert np.isnan(broken.losses[-1])
    assert broken.suggest(method) == whole.suggest(method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("points", [0, 1, 5, 17])
def test_too_few_points_are_an_error(method: str, points: int) -> None:
    found = curve([3.0 - 0.01 * i for i in range(points)] + [math.nan], num=100)
    match = (
        rf"needs at least 18 points with a finite loss, but there are {points} \(the loss was not finite at .*; use a"
    )
    with pytest.raises(ValueError, match=match):
        found.suggest(method)
    assert 0 < curve([3.0 - 0.01 * i for i in range(18)] + [math.nan], num=100).suggest(method) < 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("losses", [[1.0] * 50, [1.0 + 0.01 * i for i in range(50)]], ids=["flat", "rising"])
def test_a_loss_that_never_fell_is_an_error(method: str, losses: list[float]) -> None:
    with pytest.raises(ValueError, match="no learning rate can be suggested: the loss never fell between"):
        curve(losses).suggest(method)


def test_no_such_method() -> None:
    with pytest.raises(ValueError, match="method must be 'valley', 'steepest' or 'minimum', got 'slide'"):
        curve(bathtub()[1]).suggest("slide")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cls", [optim.SGD, optim.Adam], ids=lambda cls: cls.__name__)
def test_training_with_a_suggestion_works(method: str, cls: type[optim.Optimizer]) -> None:
    job = Job()
    job.opt = cls(job.model.params)  # type: ignore[assignment]
    lr = find(job).suggest(method)
    job.opt.param_groups[0]["lr"] = lr
    job.losses.clear()
    for _ in range(30):
        job.go(6)
    assert np.mean(job.losses[-6:]) < 0.75 * np.mean(job.losses[:6])


# -- Looks -------------------------------------------------------------------------------------------------------------


def test_plot(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    _, losses = bathtub()
    found = curve([*losses, math.nan], diverge=1e9)
    ax = found.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    loss, smoothed, *marks = ax.lines
    assert_same_bits(np.asarray(loss.get_ydata()), found.losses)
    assert_same_bits(np.asarray(smoothed.get_ydata()), found.smoothed)
    assert [float(mark.get_xdata()[0]) for mark in marks] == [found.suggest(method) for method in METHODS]
    assert all(1.0 <= mark.get_ydata()[0] <= 3.1 for mark in marks)
    assert ax.get_xscale() == "log"
    assert curve([1.0, math.nan]).plot(ax=ax) is ax
    assert len(curve([math.nan, 1.0]).plot().lines) == 2


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r'plot needs matplotlib: pip install "ironstep\[plot\]"'):
        curve([1.0, 2.0]).plot()


def test_repr() -> None:
    assert repr(curve([1.0, 0.5])) == "LRFind(2 learning rates from 1e-07 to 10; the sweep came to its end)"


def test_a_loss_that_is_constant_but_for_rounding_never_fell() -> None:
    rng = np.random.default_rng(0)
    lrs = np.geomspace(1e-6, 1.0, 100)
    for scale in (1.0, -1e6, 1e-20):
        losses = scale * (1 + 1e-7 * rng.uniform(-1, 1, 100))
        found = LRFind(lrs, losses, losses, "", 100)
        for method in METHODS:
            with pytest.raises(ValueError, match="the loss never fell between"):
                found.suggest(method)
        losses = losses - abs(scale) * np.geomspace(1e-8, 1e-4, 100)
        assert LRFind(lrs, losses, losses, "", 100).suggest() > 0


def test_frozen_groups_have_no_say() -> None:
    params = [np.ones(2), np.ones(3), np.ones(4)]
    opt = SGD([{"params": p, "lr": lr} for p, lr in zip(params, (100.0, 0.5, 0.1), strict=True)])
    opt.freeze(0)
    seen: list[list[float]] = []

    def step(x: Any) -> float:
        seen.append([group["lr"] for group in opt.param_groups])
        opt.step([None, np.ones(3), np.ones(4)])
        return 1.0

    found = lr_find(step, [0], opt, state={}, num=3, min_lr=1.0, max_lr=4.0)
    np.testing.assert_allclose(seen, [[100.0, lr, lr / 5] for lr in found.lrs], rtol=1e-12)
    np.testing.assert_allclose(found.lrs, [1.0, 2.0, 4.0], rtol=1e-12)
    assert [group["lr"] for group in opt.param_groups] == [100.0, 0.5, 0.1]
    opt.freeze("*")
    with pytest.raises(RuntimeError, match="all parameter groups are frozen"):
        lr_find(step, [0], opt, state={}, num=3)


@pytest.mark.parametrize("fails", [False, True])
def test_what_refuses_keeps_nothing_else_from_being_put_back(fails: bool) -> None:
    class Grows:
        """Refuses what it was."""

        def state_dict(self) -> dict[str, int]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            raise ValueError("this one refuses")

    class Batches:
        def __iter__(self) -> Any:
            return self.Loop()

        class Loop(Iterator[int]):
            def __next__(self) -> int:
                return 0

            def close(self) -> None:
                raise OSError("a thread is stuck")

    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    w = np.ones(2)
    opt = SGD(w, lr=0.25, momentum=0.5)

    def step(x: Any) -> float:
        opt.step(np.ones(2))
        if opt.steps == 3 and fails:
            raise ZeroDivisionError
        return float(rng.random())

    for batches, error in [([0], ValueError), (Batches(), OSError)]:
        with pytest.raises(error) as caught:
            lr_find(step, batches, opt, state={"a": Grows(), "rng": rng} if batches == [0] else {"rng": rng}, num=5)
        assert isinstance(caught.value.__context__, ZeroDivisionError) == fails
        assert (w.tolist(), opt.steps, opt.param_groups[0]["lr"]) == ([1, 1], 0, 0.25)
        assert opt.state_dict()["state"][""]["momentum_buffer"].tolist() == [0, 0]
    assert rng.bit_generator.state == before


def test_the_valley_of_many_points_is_found_quickly() -> None:
    losses = np.arange(100_000, 0, -1.0)
    start = time.monotonic()
    assert _valley(losses) == 49_998
    assert time.monotonic() - start < 5
