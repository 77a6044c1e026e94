"""What callbacks, metrics and the history do in the corners: resumes, failures, odd numbers, late logs."""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers import BF16, assert_same, assert_same_bits
from ironstep import data, nn, train
from ironstep.optim import SGD, AdamW
from ironstep.train import _state

NAN, INF = math.nan, math.inf


def fit(step: Any, batches: Any, epochs: int = 1, **options: Any) -> train.History:
    """Without a line for each epoch."""
    return train.fit(step, batches, epochs, **({"progress": False} | options))


def go_on(folder: Path, epochs: int, callbacks: list[Any], step: Any = float, **options: Any) -> train.History:
    """A run over one batch an epoch with a checkpoint after each, which goes on from the one that there is."""
    callbacks = [*callbacks, train.Checkpoint(folder)]
    options = {"state": {"w": np.zeros(1)}, "resume": True} | options
    return fit(step, [1.0], epochs, callbacks=callbacks, **options)


# -- Early stopping ----------------------------------------------------------------------------------------------------


class Growing:
    """Its state gets longer with every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.named: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen), "named": dict(self.named)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen, self.named = list(state_dict["seen"]), dict(state_dict["named"])


def test_a_best_state_may_be_of_another_length_than_the_state_is_now(tmp_path: Path) -> None:
    def go(epochs: int) -> tuple[Any, Any]:
        growing, w = Growing(), np.zeros(1)

        def step(x: float) -> float:
            w[0] += 1
            growing.seen.append(w[0])
            growing.named[f"{w[0]}"] = 1.0
            return abs(w[0] - 2)

        stop = train.EarlyStopping("loss", patience=9, restore={"w": w, "deep": [growing]})
        history = go_on(tmp_path, epochs, [stop], step, state={"w": w, "growing": growing})
        return history, growing

    go(3)
    history, growing = go(5)
    assert (history["loss"], growing.seen) == ([1, 0, 1, 2, 3], [1, 2])


def test_an_accumulator_may_be_in_a_best_state(tmp_path: Path) -> None:
    def go(epochs: int) -> int:
        w = np.zeros(2)
        opt = SGD(w, lr=0.1)
        accumulator = train.Accumulator(opt, 2)
        stop = train.EarlyStopping("loss", patience=9, restore={"w": w, "accumulator": accumulator})
        state = {"w": w, "opt": opt, "accumulator": accumulator}

        def step(x: float) -> float:
            accumulator.step(np.ones(2))
            return 1.0

        return len(go_on(tmp_path, epochs, [stop], step, state=state))

    assert [go(1), go(2), go(3)] == [1, 2, 3]


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=str)
def test_the_best_weights_stay_when_there_is_a_master(dtype: Any) -> None:
    w = np.ones(3, dtype)
    opt = SGD(w, lr=1.0, master_weights=True)
    losses = iter([1.0, 2.0, 3.0])
    stop = train.EarlyStopping(patience=2, restore={"w": w})
    state = {"nest": [{"opt": opt, "w": w}]}
    fit(lambda g: opt.step(g) and None, [w * 0 + 1], 3, callbacks=[stop], validate=lambda: next(losses), state=state)
    assert stop.restored
    assert_same_bits(w, np.zeros(3, dtype))
    opt.step(np.zeros(3, dtype))
    assert_same_bits(w, np.zeros(3, dtype), "the copy was that of the last step")


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=str)
def test_sync_master_keeps_the_bits_of_what_has_not_changed(dtype: Any) -> None:
    w = np.array([[1.0, 2.0, 3.0], [0.0, -0.0, np.inf]]).astype(dtype)[:, ::-1]
    opt = SGD(w, lr=1e-4, master_weights=True)
    opt.step(np.array([[1, 1, 1], [1e4, 0, 0]], np.float32))
    before = opt.master.copy()
    opt.sync_master()
    assert_same_bits(opt.master, before)
    assert (before != w).any(), "the copies are finer"
    w[0, 0], w[1, 1] = np.nan, 0.0  # -0.0 before: another value, with the same number
    opt.sync_master()
    want = before.copy()
    want[0, 0], want[1, 1] = np.nan, 0.0
    assert_same_bits(opt.master, want)


@pytest.mark.parametrize("first", ["limit", "stopping"])
def test_what_another_callback_hid_stops_a_resumed_run(tmp_path: Path, first: str) -> None:
    """Both stop it at the same epoch; the limit is lifted, the other is not."""

    def go(limit: float, patience: int = 2) -> tuple[int, str | None]:
        now = [0.0]

        def later(run: train.Run) -> None:
            now[0] = 9.0 if run.epoch == 3 else now[0]

        callbacks: list[Any] = [
            train.TimeLimit(limit, clock=lambda: now[0]),
            train.EarlyStopping("loss", patience=patience),
        ]
        history = go_on(tmp_path, 9, [later, *(callbacks if first == "limit" else callbacks[::-1])])
        return len(history), history.reason

    reason = "loss did not improve on 1 for 2 epochs"
    limited = "9 s of 5 s are over"
    assert go(5) == (3, limited if first == "limit" else reason)
    assert go(5) == (3, limited if first == "limit" else reason), "what came first is first again"
    assert go(99) == (3, reason)
    assert go(99) == (3, reason)
    # With the key of the callback, so that the run goes on without it; and with more patience.
    saved = _state.read(tmp_path / "last.safetensors")["run"]
    assert saved["stopper"] == "EarlyStopping"
    assert go(99, patience=3) == (4, "loss did not improve on 1 for 3 epochs")


def test_a_stop_that_was_lifted_on_purpose_stays_lifted(tmp_path: Path) -> None:
    def lift(run: train.Run) -> None:
        run.reason = None

    assert len(go_on(tmp_path, 9, [train.EarlyStopping("loss", patience=2)])) == 3
    for order in (-1, 1):
        lifts = SimpleNamespace(on_start=lift, order=order)
        history = go_on(tmp_path, 9, [train.EarlyStopping("loss", patience=2), lifts])
        assert len(history) == 4 + (order > 0)


def test_a_deferred_stop_is_its_callbacks(tmp_path: Path) -> None:
    class Late:
        def on_epoch(self, run: train.Run) -> None:
            run.defer(lambda: run.stop("late"))

    assert len(go_on(tmp_path, 9, [Late()])) == 1
    # It was not saved with the reason, as the checkpoint was written after that: without Late the run goes on.
    assert len(go_on(tmp_path, 3, [])) == 3


def test_restore_given_too_late(tmp_path: Path) -> None:
    w = np.zeros(1)
    go_on(tmp_path, 2, [train.EarlyStopping("loss", patience=9)], state={"w": w})
    stop = train.EarlyStopping("loss", patience=9, restore=w)
    with pytest.raises(ValueError, match=r"restore must be None as .* the state of epoch 1, .* leave restore out, or"):
        go_on(tmp_path, 3, [stop], state={"w": w})
    assert (stop.best, stop.best_epoch) == (None, 0)
    go_on(tmp_path, 3, [train.EarlyStopping("loss", patience=9)], state={"w": w})

    # Without a best value yet there is nothing that is missing.
    go_on(tmp_path / "b", 1, [train.EarlyStopping("loss", start_from_epoch=1)], state={"w": w})
    stop = train.EarlyStopping("loss", restore=w, start_from_epoch=1)
    go_on(tmp_path / "b", 2, [stop], state={"w": w})
    assert stop.best_epoch == 2


def test_a_threshold_that_no_longer_holds(tmp_path: Path) -> None:
    def go(threshold: float | None) -> tuple[int, str | None, int]:
        stop = train.EarlyStopping("loss", patience=9, stopping_threshold=threshold)
        history = go_on(tmp_path, 4, [stop])
        return len(history), history.reason, stop.stopped_epoch

    reason = "loss of 1 is better than 2"
    assert go(2.0) == (1, reason, 1)
    assert go(3.0) == (1, reason, 1)
    assert go(0.5) == (4, None, 0)


# -- Callbacks in a resumed run ----------------------------------------------------------------------------------------


def test_callbacks_that_the_checkpoint_does_not_know_are_reset(tmp_path: Path) -> None:
    """They may have been in another run before."""
    w = np.array([7.0])
    now = [0.0]

    def step(x: float) -> float:
        now[0] += 100
        return 0.001

    stop = train.EarlyStopping("loss", patience=9, restore=w)
    limit, log = train.TimeLimit(1e6, clock=lambda: now[0]), train.JSONLLogger(tmp_path / "log.jsonl")
    best = train.Checkpoint(tmp_path / "best", best="loss", keep=1)
    used: list[Any] = [stop, limit, log, best]
    fit(step, [0], 3, callbacks=used, state={"w": w})
    w[...] = 0
    # A Checkpoint there is not known under its own name, but as the second.
    first = fit(float, [1.0], 2, callbacks=[train.Checkpoint(tmp_path / "a")], state={"w": w})
    assert limit.elapsed == 300
    callbacks = [train.Checkpoint(tmp_path / "a"), *used]
    history = fit(lambda x: 0.5, [1.0], 4, callbacks=callbacks, state={"w": w}, resume=True)
    assert (len(first), history["loss"]) == (2, [1.0, 1.0, 0.5, 0.5])
    assert (stop.best, stop.best_epoch, w[0], best.best_value) == (0.5, 3, 0, 0.5)
    assert limit.elapsed == 0
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [3, 4]


def test_a_failed_load_takes_resets_back(tmp_path: Path) -> None:
    go_on(tmp_path, 2, [])
    stop = train.EarlyStopping("loss", patience=9)
    stop.update(0.25)
    with pytest.raises(ValueError, match="w refused its state"):
        fit(float, [1.0], 3, callbacks=[stop], state={"w": np.zeros(5)}, resume=tmp_path / "last.safetensors")
    assert stop.best == 0.25


@pytest.mark.parametrize("event", ["on_start", "on_step", "on_validate", "on_epoch", "on_end", "deferred", "step"])
def test_a_run_is_not_loaded_when_it_has_begun(tmp_path: Path, event: str) -> None:
    w = np.zeros(1)
    go_on(tmp_path, 1, [], state={"w": w})
    path, runs = tmp_path / "last.safetensors", []
    raised: list[str] = []

    def load(run: train.Run) -> None:
        w[...] = 5
        for call in (lambda: run.load(path), lambda: run.load_state_dict(_state.read(path)["run"])):
            with pytest.raises(RuntimeError, match=r"cannot be loaded when it has begun: .* call fit with resume="):
                call()
            raised.append(event)
        assert w[0] == 5

    def step(x: float) -> float:
        if event == "step":
            load(runs[0])
        return x

    handler = "on_step" if event == "deferred" else event if event != "step" else "on_epoch"
    call = (lambda run: run.defer(lambda: load(run))) if event == "deferred" else load
    callbacks = [SimpleNamespace(on_start=runs.append), SimpleNamespace(**{handler: call})]
    history = fit(step, [1.0, 2.0], 2, callbacks=callbacks, validate=lambda: 0.0, state={"w": w})
    assert raised
    assert history["loss"] == [1.5, 1.5]


def test_the_warning_points_to_the_call_of_fit(tmp_path: Path) -> None:
    go_on(tmp_path, 1, [train.EarlyStopping("loss")])
    with pytest.warns(UserWarning, match="the state of EarlyStopping in the checkpoint is dropped") as caught:
        go_on(tmp_path, 2, [])
    assert caught[0].filename == __file__
    run = train.Run([1.0], 3, [], {"w": np.zeros(1)})
    with pytest.warns(UserWarning, match="Checkpoint in the checkpoint is dropped") as caught:
        run.load(tmp_path / "last.safetensors")
    assert (caught[0].filename, caught[0].lineno) == (__file__, sys._getframe().f_lineno - 1)


def test_a_clock_that_is_set_back(tmp_path: Path) -> None:
    for epochs in (1, 2):
        times = iter([10.0, *[5.0] * 99])
        limit = train.TimeLimit(99, clock=lambda times=times: next(times))  # type: ignore[misc]
        assert len(go_on(tmp_path, epochs, [limit])) == epochs
        assert limit.elapsed == 0.0


# -- Logs --------------------------------------------------------------------------------------------------------------


def without_seconds(text: str) -> list[list[str]]:
    rows = [line.split(",") for line in text.splitlines()]
    return [row[:2] + row[3:] for row in rows]


@pytest.mark.parametrize("broken_off", [False, True])
def test_csv_logger_has_what_later_callbacks_log(tmp_path: Path, broken_off: bool) -> None:
    class Late:
        order = 1

        def on_epoch(self, run: train.Run) -> None:
            run.log({"late": run.epoch})

    def callbacks() -> list[Any]:
        return [train.CSVLogger(tmp_path / "log.csv"), Late()]

    if broken_off:
        go_on(tmp_path, 2, callbacks())
    go_on(tmp_path, 4, callbacks()).to_csv(tmp_path / "want.csv")
    got, want = ((tmp_path / name).read_text() for name in ("log.csv", "want.csv"))
    assert got == want
    assert without_seconds(got) == [
        ["epoch", "step", "loss", "late"],
        *([f"{n}", f"{n}", "1.0", f"{n}.0"] for n in "1234"),
    ]


@pytest.mark.parametrize("event", ["on_start", "on_end"])
def test_no_metrics_outside_of_steps_and_epochs(event: str) -> None:
    logs = SimpleNamespace(**{event: lambda run: run.log({"n": 5.0})})
    with pytest.raises(RuntimeError, match=f"log in on_step, on_validate or on_epoch: {event} is part of no step"):
        fit(float, [1], callbacks=[logs])


def test_the_event_of_a_line_is_no_metric(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a metric cannot be called 'event'"):
        fit(lambda x: {"event": 3.0}, [1], callbacks=[train.JSONLLogger(tmp_path / "log", every=1)])
    with pytest.raises(ValueError, match="the row cannot be called 'event'"):
        fit(float, [1], callbacks=[lambda run: run.log({"event": 3.0})])


# -- Failures ----------------------------------------------------------------------------------------------------------


def fails(error: BaseException) -> Callable[[Any], None]:
    def fail(run: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("own", [KeyboardInterrupt("mine"), ValueError("mine")], ids=["interrupt", "error"])
def test_an_error_at_the_end_does_not_hide_the_runs_own(own: BaseException) -> None:
    ends = [SimpleNamespace(on_end=fails(error)) for error in (OSError("a full disk"), KeyboardInterrupt("again"))]
    with pytest.warns(RuntimeWarning) as caught, pytest.raises(type(own), match="mine"):
        fit(fails(own), [1], callbacks=ends)
    assert [str(one.message) for one in caught] == [
        "on_end of SimpleNamespace has failed, too: OSError: a full disk",
        "on_end of SimpleNamespace#2 has failed, too: KeyboardInterrupt: again",
    ]
    assert {one.filename for one in caught} == {__file__}
    # Where warnings are errors as well.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(type(own), match="mine"):
            fit(fails(own), [1], callbacks=ends)


def test_a_deferred_error_at_the_end_does_not_hide_the_runs_own() -> None:
    end = SimpleNamespace(on_end=lambda run: run.defer(lambda: 1 / 0))
    with pytest.warns(RuntimeWarning, match="division by zero"), pytest.raises(ValueError, match="mine"):
        fit(fails(ValueError("mine")), [1], callbacks=[end])
    with pytest.raises(ZeroDivisionError):
        fit(float, [1], callbacks=[end])


# -- Metrics -----------------------------------------------------------------------------------------------------------

NO_NUMBERS = [
    np.complex64(1 + 2j),
    np.array(1 + 2j),
    np.array(True),
    np.array("3"),
    np.array("3", object),
    np.array(b"3"),
    np.datetime64("2020"),
    np.timedelta64(3, "s"),
    np.ma.masked,
    np.ma.masked_array(2.0, mask=True),
    np.ma.masked_array(2.0, mask=False),
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_float_takes_but_is_no_number(value: Any) -> None:
    with pytest.raises(TypeError, match="the result of step must be a number or a dict of names to numbers, got"):
        fit(lambda x: value, [0])
    with pytest.raises(TypeError, match="got 'accuracy': "):
        fit(lambda x: {"loss": 1.0, "accuracy": value}, [0])


def test_numbers_that_are_too_large() -> None:
    for result, which in ((10**5000, "got a larger one$"), ({"n": -(10**400)}, "got a larger one in 'n'$")):
        with pytest.raises(ValueError, match=f"the result of step must be numbers that a float can hold, {which}"):
            fit(lambda x, result=result: result, [0])


def test_validation_that_gives_a_name_twice() -> None:
    for result in ({"loss": 1.0, "val_loss": 2.0}, {"val_loss": 1.0, "loss": 2.0}):
        with pytest.raises(ValueError, match="each name once, but 'loss' becomes 'val_loss', too"):
            fit(float, [0], validate=lambda result=result: result)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        ({"x": np.ones(3)}, 3),
        ({"name": "a", "scale": np.array(2.0), "x": np.ones((4, 2)), "y": np.ones(9)}, 4),
        (({"x": np.ones(5)}, np.ones(9)), 5),
        ([{"a": {"b": [None, np.ones(2)]}}], 2),
        ({}, 1),
        ({"x": 1.0}, 1),
        ({"x": np.ones((0, 3))}, 0),
    ],
)
def test_samples_of_a_dict(batch: Any, samples: int) -> None:
    results = iter([1.0, 0.0])
    history = fit(lambda *args: next(results), [np.ones(1), batch])
    np.testing.assert_allclose(history["loss"], [1 / (1 + samples)], rtol=1e-15)


def mean(values: list[float], sizes: list[int] | None = None) -> float:
    """Of an epoch with a batch for each value."""
    left = iter(values)
    return float(fit(lambda x: next(left), [np.ones(n) for n in sizes or [32] * len(values)])["loss"][0])


def test_the_mean_of_a_constant_is_the_constant() -> None:
    rng = np.random.default_rng(0)
    for value in [0.1, 1e-3, 1 / 3, 5e-324, *rng.normal(size=20)]:
        assert mean([float(value)] * 41, [int(n) for n in rng.integers(1, 100, 41)]) == value


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([1e308] * 9, 1e308),
        ([1.7e308, -1.7e308], 0.0),
        ([-1.7e308, 1.7e308, 1.7e308], 1.7e308 / 3),
        ([0.5, INF, 0.5], INF),
        ([-INF, 0.5, -INF], -INF),
        ([INF, -INF], NAN),
        ([0.5, NAN, 0.5], NAN),
    ],
)
def test_means_of_large_and_infinite_values(values: list[float], want: float) -> None:
    np.testing.assert_allclose(mean(values), want, rtol=1e-14)


def test_means_are_those_of_all_samples() -> None:
    rng = np.random.default_rng(1)
    values, sizes = rng.normal(size=200) + 3, rng.integers(0, 50, 200)
    sizes[:2] = 0
    got = mean([float(value) for value in values], [int(n) for n in sizes])
    np.testing.assert_allclose(got, np.average(values, weights=sizes), rtol=1e-13)


# -- History -----------------------------------------------------------------------------------------------------------


def rows_of_any_kind() -> list[dict[str, Any]]:
    return [
        {"epoch": 1, "step": 2**40, "loss": 0.1, "mixed": 1, "huge": 2**70, "text": "a"},
        {"epoch": 2, "step": 2**41, "loss": NAN, "mixed": 1.5, "rare": INF, "text": None},
        {"epoch": 3, "loss": -0.0, "huge": -1, "count": True},
        {},
        {"epoch": 4, "step": 1, "loss": 5e-324, "rare": -INF, "small": np.float32(0.1)},
    ]


def test_any_history_comes_back(tmp_path: Path) -> None:
    history, other = train.History(), train.History()
    history.rows += rows_of_any_kind()
    train.save_state(tmp_path / "file", history=history, empty=train.History())
    train.load_state(tmp_path / "file", history=other, empty=train.History())
    assert other.names == history.names
    for got, want in zip(other.rows, history.rows, strict=True):
        in_order = {name: want[name] for name in history.names if name in want}
        assert repr(got) == repr(in_order)
        assert [type(value) for value in got.values()] == [type(value) for value in in_order.values()]
    columns = history.state_dict()["columns"]
    arrays = {name: column.dtype.name for name, column in columns.items() if isinstance(column, np.ndarray)}
    assert arrays == {"epoch": "int64", "step": "int64", "loss": "float64", "rare": "float64"}


def test_a_history_costs_little_in_a_checkpoint(tmp_path: Path) -> None:
    history = train.History()
    rng = np.random.default_rng(0)
    for i in range(2000):
        history.rows.append({"epoch": i + 1, "step": i, "seconds": 0.5, **{f"m{k}": rng.random() for k in range(30)}})
    train.save_state(tmp_path / "file", history=history)
    assert (tmp_path / "file").stat().st_size < 1.05 * 8 * 33 * 2000
    times = []
    for _ in range(5):
        start = time.perf_counter()
        train.save_state(tmp_path / "file", history=history)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1


def test_a_name_alone_can_be_plotted() -> None:
    pytest.importorskip("matplotlib")
    history = train.History()
    history.rows += [{"epoch": 1, "loss": 0.5, "accuracy": 0.25}]
    (axes,) = history.plot(names="loss").axes
    assert axes.get_ylabel() == "loss"


# -- Arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["a", None, True, NAN, 1j])
def test_order_must_be_a_number(order: Any) -> None:
    callback = SimpleNamespace(on_step=lambda run: None, order=order)
    with pytest.raises(TypeError, match="order of a callback must be a number, got"):
        fit(float, [1], callbacks=[callback, lambda run: None])


def test_a_name_that_load_state_could_not_take(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not have the name 'partial'"):
        train.save_state(tmp_path / "file", partial=np.ones(1))
    assert not list(tmp_path.iterdir())


# -- Layers that thaw --------------------------------------------------------------------------------------------------


def test_the_mode_of_layers_is_set_when_a_run_starts(tmp_path: Path) -> None:
    """As docs/finetuning.md has it: a run that is resumed after the thaw is in the mode of one that was not."""
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)

    class Unfreeze:
        def __init__(self, body: Any, opt: Any) -> None:
            self.body, self.opt = body, opt

        def on_start(self, run: train.Run) -> None:
            self.set_mode()

        def on_epoch(self, run: train.Run) -> None:
            if run.epoch == 1:
                self.opt.unfreeze()
            self.set_mode()

        def set_mode(self) -> None:
            self.body.train(not self.opt.param_groups[0].frozen)

    def go(folder: Path, killed_at: int | None = None) -> Any:
        model = nn.Sequential(nn.Linear(4, 8, seed=0), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2, seed=1))
        opt = AdamW(train.layer_groups(model.params, 0.01), lr=0.01)
        opt.freeze(["0.*", "1.*"])

        def step(x: Any) -> float:
            if opt.steps == killed_at:
                raise KeyboardInterrupt
            y = model(x)
            model.backward(2 * y)
            opt.step(train.group_grads(opt.param_groups, model.grads))
            return float((y**2).mean())

        fit(
            step,
            data.Batches(x, batch_size=8, seed=0),
            3,
            callbacks=[Unfreeze(model[:3], opt), train.Checkpoint(folder)],
            state={"model": model, "opt": opt},
            resume=True,
        )
        return _state.snapshot(model)

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "a", killed_at=9)
    assert_same(go(tmp_path / "a"), go(tmp_path / "b"))
