"""The training loop, its callbacks, its history, and the state of anything in a file."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from helpers import BF16, assert_same, assert_same_bits, awkward
from ironstep import _core, data, nn, train
from ironstep.optim import SGD, AdamW
from ironstep.train import _state

NAN, INF = math.nan, math.inf
F32 = np.float32


def fit(step: Any, batches: Any, epochs: int = 1, **options: Any) -> train.History:
    """Without a line for each epoch."""
    return train.fit(step, batches, epochs, **({"progress": False} | options))


# -- The state of anything ---------------------------------------------------------------------------------------------


class Thing:
    """Has any state."""

    def __init__(self, value: Any = None, refuses: Exception | None = None) -> None:
        self.value, self.refuses = value, refuses

    def state_dict(self) -> Any:
        return self.value

    def load_state_dict(self, value: Any) -> None:
        self.value = value
        if self.refuses is not None:
            raise self.refuses


ARRAYS = {
    **{dtype: np.arange(-3, 9).astype(dtype) for dtype in sorted(_state.DTYPES - {"bfloat16"})},
    "bfloat16": np.arange(6).astype(BF16),
    "awkward": awkward(np.random.default_rng(0), (40, 5), np.dtype(F32)),
    "awkward_bfloat16": awkward(np.random.default_rng(0), (40, 5), BF16),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(20.0)[::-3],
    "swapped": np.arange(4, dtype=">f4"),
    "zero_d": np.array(2.5),
    "empty": np.zeros((0, 3)),
    "read_only": np.frombuffer(b"abcd", np.uint8),
}

VALUES = {
    "none": None,
    "bools": [True, False],
    "strings": ["", "é\n\0", '"', "nan"],
    "ints": [0, -1, 2**53, -(2**53), 2**63, 2**64 + 1, -(2**200), 10**5000],
    "floats": [0.0, -0.0, 5e-324, 0.1, 1e308, INF, -INF],
    "scalars": [np.float64(0.1), F32(0.1), np.int64(3), np.bool_(True), np.float16(0.5), ml_dtypes.bfloat16(1.5)],
    "nests": {"a": [1, (2, [3.0, ()]), {}], "b.c": {"": None}, "array": {"array": "x"}},
    "integer_keys": {0: "a", "0": "b", -5: None},
    "likely_clashes": {"dict": {"tuple": ["float"]}, "items": [], "scalar": "x", "int": "0x1"},
}


@pytest.mark.parametrize("name", [*ARRAYS, *VALUES])
def test_a_state_comes_back(tmp_path: Path, name: str) -> None:
    value = ARRAYS[name] if name in ARRAYS else VALUES[name]
    thing = Thing()
    train.save_state(tmp_path / "file", thing=Thing({"x": value}))
    train.load_state(tmp_path / "file", thing=thing)
    assert_same(thing.value, {"x": value})
    if name != "ints" and name not in ARRAYS:
        assert repr(thing.value) == repr({"x": value})  # -0.0


def test_nan_comes_back(tmp_path: Path) -> None:
    thing = Thing()
    train.save_state(tmp_path / "file", thing=Thing([NAN]))
    train.load_state(tmp_path / "file", thing=thing)
    assert type(thing.value[0]) is float
    assert math.isnan(thing.value[0])


def generators() -> dict[str, np.random.Generator]:
    kinds = [np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.MT19937, np.random.SFC64]
    return {kind.__name__: np.random.Generator(kind(3)) for kind in kinds}


@pytest.mark.parametrize("name", generators())
def test_a_generator_goes_on(tmp_path: Path, name: str) -> None:
    rng = generators()[name]
    rng.random(3), rng.integers(9, dtype=np.uint32)  # half of a number is left over
    train.save_state(tmp_path / "file", rng=rng)
    snap = _state.snapshot(rng)
    want = rng.integers(1 << 30, size=9, dtype=np.uint32)
    other = generators()[name]
    train.load_state(tmp_path / "file", rng=other)
    np.testing.assert_array_equal(other.integers(1 << 30, size=9, dtype=np.uint32), want)
    _state.restore(rng, snap)
    np.testing.assert_array_equal(rng.integers(1 << 30, size=9, dtype=np.uint32), want)


def objects(seed: int) -> dict[str, Any]:
    """One of each kind, in a nest too."""
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.Linear(3, 4, seed=rng), nn.BatchNorm1d(4), nn.Dropout(0.5, seed=7))
    opt = AdamW(model.params, lr=0.1 * (seed + 1), ema_decay=0.5)
    x = rng.normal(size=(6, 3)).astype(F32)
    model.backward(np.ones_like(model(x)))
    opt.step(model.grads)
    return {
        "model": model,
        "opt": opt,
        "rng": rng,
        "array": rng.normal(size=3),
        "nest": {"w": rng.normal(size=(2, 2)).astype(F32), 0: [rng.normal(size=2), (rng.normal(size=1).astype(BF16),)]},
        "several": [nn.Linear(2, 2, seed=rng), {"rng": np.random.default_rng(seed + 5)}],
    }


def test_objects_of_all_kinds(tmp_path: Path) -> None:
    ones, others = objects(0), objects(1)
    arrays = [others["array"], others["nest"]["w"], others["model"].params["0.weight"]]
    train.save_state(tmp_path / "file", **ones)
    train.load_state(tmp_path / "file", **others)
    assert_same(*(_state.snapshot(objs) for objs in (others, ones)))
    assert arrays[0] is others["array"], "in place"
    assert_same_bits(arrays[1], ones["nest"]["w"])
    assert_same_bits(arrays[2], ones["model"].params["0.weight"])
    names = [name for name, _, _ in _core.load_safetensors(tmp_path / "file")[0]]
    assert {"model.0.weight", "model.1.running_mean", "opt.state.0.weight.exp_avg", "array", "nest.0.1.0"} <= set(names)


def test_snapshots_are_copies() -> None:
    things = objects(0)
    snap = _state.snapshot(things)
    keep = _state.copied(snap)
    for array in (
        things["array"],
        things["nest"]["w"],
        things["model"].params["0.weight"],
        things["opt"].ema["0.weight"],
    ):
        array[...] = 9
    things["rng"].random()
    assert_same(snap, keep)
    _state.restore(things, snap)
    assert_same(_state.snapshot(things), keep)


def test_names_that_clash(tmp_path: Path) -> None:
    thing = Thing()
    value = {"a.b": np.array(1), "a": {"b": np.array(2), "b#2": np.array(3)}, "\ud800": np.array(4)}
    _state.write(tmp_path / "file", {"x": Thing(value), "__metadata__": np.zeros(2)})
    _state.load(tmp_path / "file", {"x": thing, "__metadata__": np.zeros(2)})
    assert_same(thing.value, value)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": {1, 2}}, "x.a must be made of"),
        ({"a": [0, b""]}, "x.a.1 must be made of"),
        ({"a": np.zeros(2, complex)}, "x.a must be an array of floats"),
        ({"a": np.array(["s"])}, "x.a must be an array of floats"),
        ({1.5: 0}, "x must have keys"),
        ({True: 0}, "x must have keys"),
        ({"a": np.ma.masked_array([1.0])}, "x.a is a masked array"),
    ],
)
def test_what_cannot_be_saved(tmp_path: Path, value: Any, where: str) -> None:
    train.save_state(tmp_path / "file", x=np.ones(2))
    with pytest.raises(TypeError, match=f"^{where}"):
        train.save_state(tmp_path / "file", x=Thing(value))
    x = np.zeros(2)
    train.load_state(tmp_path / "file", x=x)
    assert x.tolist() == [1, 1], "the file is as it was"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("thing", [3.0, "text", None, object(), nn.Linear, {"a": 3}, [np.zeros(1), None]])
def test_what_has_no_state(tmp_path: Path, thing: Any) -> None:
    for call in (lambda: train.save_state(tmp_path / "file", thing=thing), lambda: _state.check_kind(thing, "thing")):
        with pytest.raises(TypeError, match=r"^thing(\.\w)? must be an object with state_dict\(\)"):
            call()


REFUSED = {
    "missing": (lambda o: o | {"more": np.zeros(1)}, ValueError, "it lacks 'more'$"),
    "unknown": (lambda o: {k: v for k, v in o.items() if k != "rng"}, ValueError, "it has besides 'rng'$"),
    "shape": (
        lambda o: o | {"array": np.zeros(4)},
        ValueError,
        r"array refused .*array must be float64 of shape \(3,\)",
    ),
    "dtype": (lambda o: o | {"array": np.zeros(3, F32)}, ValueError, "array refused .*got float32"),
    "kind": (lambda o: o | {"array": [np.zeros(3)]}, ValueError, "array refused"),
    "keys": (lambda o: o | {"nest": {"w": o["nest"]["w"]}}, ValueError, "nest refused .*has besides 0$"),
    "length": (lambda o: o | {"several": o["several"][:1]}, ValueError, "several refused .*1 items, but .* has 2$"),
    "model": (lambda o: o | {"model": nn.Linear(2, 2, seed=0)}, ValueError, "model refused"),
    "generator": (lambda o: o | {"rng": np.random.Generator(np.random.MT19937(0))}, ValueError, "rng refused"),
    "not_a_generator": (lambda o: o | {"array": np.random.default_rng()}, TypeError, "array refused"),
    "read_only": (lambda o: o | {"array": np.broadcast_to(0.0, 3)}, ValueError, "array refused .*read-only"),
    "key_error": (lambda o: o | {"array": Thing(refuses=KeyError("k"))}, ValueError, "array refused .*'k'"),
    "last": (lambda o: o | {"several": Thing(refuses=TypeError("no"))}, TypeError, "several refused .*: no$"),
    "no_state": (lambda o: o | {"several": 3}, TypeError, "^several must be an object with"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_loading_is_all_or_nothing(tmp_path: Path, case: str) -> None:
    change, error, match = REFUSED[case]
    train.save_state(tmp_path / "file", **objects(0))
    others = change(objects(1))
    seen = {name: other for name, other in others.items() if case != "no_state" or name != "several"}
    before = _state.snapshot(seen)
    with pytest.raises(error, match=match):
        train.load_state(tmp_path / "file", **others)
    after = _state.snapshot(seen)
    for name in seen:
        if not isinstance(seen[name], Thing):
            assert_same(after[name], before[name], name)


def test_a_run_that_is_refused_stays_as_it_was(tmp_path: Path) -> None:
    """What its first callbacks, and the batches, took before another one refused is put back."""
    x, w = np.arange(6), np.zeros(1)

    class Picky(Thing):
        on_step = print

        def load_state_dict(self, value: Any) -> None:
            if value == "saved":
                raise ValueError("no")

    save = SimpleNamespace(on_step=lambda run: run.step == 8 and run.save(tmp_path / "file"))
    stop = train.EarlyStopping("loss", patience=9)
    source = data.Batches(x, batch_size=1, seed=0)
    step = SimpleNamespace(on_step=lambda run: None, state_dict=lambda: "saved", load_state_dict=print)
    fit(lambda x: float(x[0]), source, 2, callbacks=[stop, step, save], state={"w": w})
    picky = train._fit.Run(
        data.Batches(x, batch_size=1, seed=9), 3, [train.EarlyStopping("loss", patience=9)], {"w": w}
    )
    picky.callbacks.append(Picky("here"))
    picky._keys.append("SimpleNamespace")
    before = picky.state_dict()
    with pytest.raises(ValueError, match="run refused its state, and nothing was changed: SimpleNamespace: no"):
        picky.load(tmp_path / "file")
    assert_same(picky.state_dict(), before)


def put_back_directly(batches: data.Batches, tmp_path: Path) -> None:
    snap = _state.snapshot({"batches": [batches]})
    list(batches), next(iter(batches))
    batches.epoch = 5
    _state.restore({"batches": [batches]}, snap)


def put_back_by_load_state(batches: data.Batches, tmp_path: Path) -> None:
    other = data.Batches(batches._arrays[0], batch_size=batches._batch_size, seed=3)
    other.epoch = 4
    train.save_state(tmp_path / "file", batches=other, w=np.zeros(2))
    with pytest.raises(ValueError, match="w refused"):
        train.load_state(tmp_path / "file", batches=batches, w=np.zeros(3))


def put_back_by_resume(batches: data.Batches, tmp_path: Path) -> None:
    other = data.Batches(batches._arrays[0], batch_size=2, seed=3)
    save = train.Checkpoint(tmp_path, every=1, keep=9)
    fit(lambda x: 0.0, other, 2, callbacks=[save], state={"w": np.zeros(2)})
    run = train._fit.Run(batches, 3, [Picky()], {"w": np.zeros(2)})
    run._keys = ["Checkpoint"]
    with pytest.raises(ValueError, match="run refused"):
        run.load(tmp_path / "step-00000004.safetensors")


class Picky:
    """Refuses everything but its own state, and that last of all."""

    on_step = print

    def state_dict(self) -> str:
        return "own"

    def load_state_dict(self, value: Any) -> None:
        if value != "own":
            raise ValueError("no")


def put_back_by_lr_find(batches: data.Batches, tmp_path: Path) -> None:
    w = np.zeros(1)
    opt = SGD(w, lr=0.1)

    def step(x: np.ndarray) -> float:
        opt.step(w.copy())
        list(batches)
        return 1.0

    train.lr_find(step, [np.ones(1)], opt, state={"w": w, "batches": batches}, num=9)


@pytest.mark.parametrize(
    "put_back", [put_back_directly, put_back_by_load_state, put_back_by_resume, put_back_by_lr_find]
)
@pytest.mark.parametrize("where", ["new", "left", "loaded", "within", "size"])
def test_batches_are_put_back_to_where_they_were(tmp_path: Path, put_back: Any, where: str) -> None:
    """Where the next loop begins, which their state does not say, and where the last one was left."""
    sizes = {0: 2}
    size: Any = (lambda epoch: sizes.get(epoch, 2)) if where == "size" else 2
    batches = data.Batches(np.arange(12), batch_size=size, seed=0)
    whole = list(batches)
    batches.epoch = 0
    loop = iter(batches)
    if where != "new":
        for _ in range(3):
            next(loop)
    if where == "loaded":
        batches.load_state_dict(batches.state_dict())
        next(iter(batches))
    if where == "size":
        sizes[0] = 3
    if where == "left":
        loop.close()  # type: ignore[attr-defined]
    state, length = batches.state_dict(), len(batches)
    put_back(batches, tmp_path)
    assert (batches.state_dict(), len(batches), batches.epoch) == (state, length, 0)
    if where in ("within", "size"):
        next(loop)
        assert batches.state_dict()["index"] == 4  # it still has its say
    begin = 3 if where == "loaded" else 0
    if where != "size":
        assert_same(list(batches), whole[begin:])
        assert batches.epoch == 1


def test_an_interrupt_while_loading_changes_nothing(tmp_path: Path) -> None:
    train.save_state(tmp_path / "file", x=np.ones(2), y=np.ones(2))
    x = np.zeros(2)

    class Interrupted(Thing):
        def load_state_dict(self, value: Any) -> None:
            if value is not None:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.load_state(tmp_path / "file", x=x, y=Interrupted())
    assert x.tolist() == [0, 0]


def test_a_part_of_a_file(tmp_path: Path) -> None:
    ones, model = objects(0), objects(1)["model"]
    train.save_state(tmp_path / "file", **ones)
    train.load_state(tmp_path / "file", partial=True, model=model)
    assert_same(model.state_dict(), ones["model"].state_dict())
    with pytest.raises(ValueError, match=r"it lacks 'net'$"):
        train.load_state(tmp_path / "file", partial=True, net=model)


def rewrite(path: Path, change: Any) -> None:
    """Changes the JSON of a file."""
    tensors, text = _core.load_safetensors(path)
    content = change(json.loads(text or "null"))
    _core.save_safetensors(path, [(name, array) for name, _, array in tensors], json.dumps(content))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c | {"version": 2}, "must be of version 1, got 2"),
        (lambda c: c | {"kind": "x"}, "must be a file that `save_state` or `fit` wrote"),
        (lambda c: [], "must be a file that `save_state` or `fit` wrote"),
        (lambda c: {k: v for k, v in c.items() if k != "objects"}, "it is broken at 'objects'"),
        (lambda c: c | {"objects": {"x": {"array": "y"}}}, "it is broken at 'y'"),
        (lambda c: c | {"objects": {"x": {"what": "y"}}}, "it is broken at 'what'"),
        (lambda c: c | {"objects": {"x": {}}}, "it is broken at"),
        (lambda c: c | {"objects": {"x": {"int": "zz"}}}, "it is broken at"),
        (lambda c: c | {"objects": 3}, "it is broken at"),
    ],
)
def test_broken_files(tmp_path: Path, change: Any, match: str) -> None:
    path = tmp_path / "file"
    train.save_state(path, x=np.ones(2))
    rewrite(path, change)
    x = np.zeros(2)
    with pytest.raises(ValueError, match=match):
        train.load_state(path, x=x)
    assert x.tolist() == [0, 0]


def test_other_files(tmp_path: Path) -> None:
    AdamW(np.ones(2)).save(tmp_path / "opt")
    _core.save_safetensors(tmp_path / "text", [], "{")
    (tmp_path / "half").write_bytes(b"abc")
    for name in ("opt", "text", "half"):
        with pytest.raises(ValueError, match=name):
            train.load_state(tmp_path / name, x=np.ones(2))
    with pytest.raises(FileNotFoundError):
        train.load_state(tmp_path / "none", x=np.ones(2))


# -- What a step returns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "metrics"),
    [
        (None, {}),
        (0.5, {"loss": 0.5}),
        (2, {"loss": 2.0}),
        (F32(0.5), {"loss": 0.5}),
        (np.float16(0.5), {"loss": 0.5}),
        (ml_dtypes.bfloat16(0.5), {"loss": 0.5}),
        (np.array(0.5), {"loss": 0.5}),
        (np.int64(3), {"loss": 3.0}),
        ({"loss": F32(0.5), "n": 3, "a/b": np.array(1.5)}, {"loss": 0.5, "n": 3.0, "a/b": 1.5}),
        ({}, {}),
    ],
)
def test_metrics(result: Any, metrics: dict[str, float]) -> None:
    seen = []
    recorder = SimpleNamespace(on_step=lambda run: seen.append(dict(run.metrics)))
    history = fit(lambda x: result, [0], callbacks=[recorder])
    assert seen == [metrics]
    assert all(type(value) is float for value in seen[0].values())
    row = {name: value for name, value in history.rows[0].items() if name != "seconds"}
    assert row == {"epoch": 1, "step": 1, **metrics}


@pytest.mark.parametrize(
    ("result", "error"),
    [
        *(
            (x, TypeError)
            for x in ("0.5", True, np.bool_(True), [0.5], np.ones(1), 1j, {"a": None}, {1: 0.5}, {"a": True})
        ),
        *(({name: 1.0}, ValueError) for name in ("epoch", "seconds", "step")),
    ],
)
def test_what_is_no_metric(result: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"the result of step must be a number|a metric cannot be called"):
        fit(lambda x: result, [0])


def test_means_are_weighted_by_samples() -> None:
    x = np.arange(7.0)
    batches = data.Batches(x, batch_size=3, shuffle=False)
    history = fit(lambda x: {"loss": float(x[0]), **({"rare": 1.0} if len(x) == 1 else {})}, batches)
    np.testing.assert_allclose(history["loss"], [15 / 7], rtol=1e-15)
    assert history["rare"] == [1.0]


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        ((np.ones(3), np.ones(5)), 3),
        ([np.ones((4, 2))], 4),
        (np.ones(6), 6),
        ((1, np.ones(5)), 5),
        (("a", "b"), 1),
        ((np.array(1.0), np.ones(2)), 2),
        (None, 1),
        ((), 1),
    ],
)
def test_samples_of_a_batch(batch: Any, samples: int) -> None:
    # The first batch of one sample counts as much as each sample of the second.
    results = iter([1.0, 0.0])
    history = fit(lambda *args: next(results), [np.ones(1), batch])
    np.testing.assert_allclose(history["loss"], [1 / (1 + samples)], rtol=1e-15)


@pytest.mark.parametrize(
    ("batch", "args"), [((1, 2), (1, 2)), ([1, 2], (1, 2)), (3, (3,)), ({"a": 1}, ({"a": 1},)), ("ab", ("ab",))]
)
def test_how_a_batch_is_passed(batch: Any, args: tuple[Any, ...]) -> None:
    got = []
    fit(lambda *args: got.append(args), [batch])
    assert got == [args]


@pytest.mark.parametrize(
    ("result", "row"),
    [
        (0.5, {"val_loss": 0.5}),
        ({"loss": 0.5, "val_accuracy": F32(1)}, {"val_loss": 0.5, "val_accuracy": 1.0}),
        (None, {}),
        ({}, {}),
    ],
)
def test_validation(result: Any, row: dict[str, float]) -> None:
    history = fit(lambda x: 1.0, [0], 2, validate=lambda: result)
    for got in history:
        assert {name: value for name, value in got.items() if name.startswith("val_")} == row


def test_validation_errors() -> None:
    with pytest.raises(TypeError, match="the result of validate must be a number"):
        fit(lambda x: 1.0, [0], validate=lambda: "x")
    with pytest.raises(ValueError, match="the row has 'val_loss' already; log it under another name"):
        fit(lambda x: {"val_loss": 1.0}, [0], validate=lambda: 2.0)


def test_log() -> None:
    class Logs:
        def on_step(self, run: train.Run) -> None:
            run.log({"twice": 2 * run.metrics["loss"]})
            with pytest.raises(ValueError, match="this step has 'loss' already"):
                run.log({"loss": 1.0})
            with pytest.raises(ValueError, match="this step cannot be called 'epoch'"):
                run.log({"epoch": 1.0})
            with pytest.raises(TypeError, match="metrics must be a number or a dict"):
                run.log({"x": "y"})  # a text

        def on_validate(self, run: train.Run) -> None:
            assert run.metrics["twice"] == 3.0
            run.log({"before": 1})

        def on_epoch(self, run: train.Run) -> None:
            run.log({"after": F32(2)})

    history = fit(float, [1, 2], 2, callbacks=[Logs()], validate=lambda: 0.0)
    assert history.names == ["epoch", "step", "seconds", "loss", "twice", "before", "val_loss", "after"]
    assert (history["twice"], history["before"], history["after"]) == ([3.0, 3.0], [1.0, 1.0], [2.0, 2.0])


# -- The loop ----------------------------------------------------------------------------------------------------------


class Recorder:
    """Writes down what happens, and where the run is then."""

    def __init__(self, name: str, log: list[Any], order: float | None = None) -> None:
        self.name, self.log = name, log
        if order is not None:
            self.order = order

    def __getattr__(self, event: str) -> Any:
        if event not in ("on_start", "on_step", "on_validate", "on_epoch", "on_end"):
            raise AttributeError(event)
        return lambda run: self.log.append((self.name, event, run.step, run.epoch, run.status))


def test_events() -> None:
    log: list[Any] = []
    fit(
        lambda x: log.append("step"), [1, 2], 2, callbacks=[Recorder("a", log)], validate=lambda: log.append("validate")
    )
    step, validate = "step", "validate"
    assert log == [
        ("a", "on_start", 0, 0, "running"),
        step,
        ("a", "on_step", 1, 0, "running"),
        step,
        ("a", "on_step", 2, 0, "running"),
        ("a", "on_validate", 2, 0, "running"),
        validate,
        ("a", "on_epoch", 2, 1, "running"),
        step,
        ("a", "on_step", 3, 1, "running"),
        step,
        ("a", "on_step", 4, 1, "running"),
        ("a", "on_validate", 4, 1, "running"),
        validate,
        ("a", "on_epoch", 4, 2, "running"),
        ("a", "on_end", 4, 2, "finished"),
    ]


def test_order_of_callbacks() -> None:
    log: list[Any] = []
    given = [Recorder("late", log, 2), Recorder("a", log), Recorder("early", log, -1), Recorder("b", log, 0)]
    fit(lambda x: None, [1], callbacks=[*given, lambda run: log.append(("f", "on_epoch"))])
    assert [entry[0] for entry in log if entry[1] == "on_epoch"] == ["early", "a", "b", "f", "late"]


def test_a_callable_with_events_is_no_function() -> None:
    class Both:
        called = 0

        def __call__(self, run: Any) -> None:
            raise AssertionError

        def on_epoch(self, run: Any) -> None:
            self.called += 1

    both = Both()
    fit(lambda x: None, [1], 2, callbacks=[both])
    assert both.called == 2


def test_stop_within_an_epoch() -> None:
    log: list[Any] = []
    stopper = SimpleNamespace(on_step=lambda run: run.stop("first") if run.step == 5 else None)
    second = SimpleNamespace(on_step=lambda run: run.stop("second") if run.step == 5 else None)
    recorder = Recorder("a", log)
    history = fit(float, [1, 2, 3], 9, callbacks=[stopper, second, recorder], validate=lambda: log.append("validate"))
    assert history.reason == "first"
    assert len(history) == 1, "no row"
    assert log.count("validate") == 1
    assert log[-2:] == [("a", "on_step", 5, 1, "running"), ("a", "on_end", 5, 1, "stopped")]


def test_stop_after_an_epoch() -> None:
    log: list[Any] = []
    history = fit(float, [1, 2], 9, callbacks=[lambda run: run.stop("enough"), Recorder("a", log)])
    assert (len(history), history.reason) == (1, "enough")
    assert log[-2:] == [("a", "on_epoch", 2, 1, "running"), ("a", "on_end", 2, 1, "stopped")]


def test_stop_before_the_first_step() -> None:
    stopper = SimpleNamespace(on_start=lambda run: run.stop("no"))
    assert fit(float, [1], callbacks=[stopper]).reason == "no"


@pytest.mark.parametrize("where", ["on_start", "step", "on_step", "on_validate", "validate", "on_epoch"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failures_end_all_callbacks(where: str, error: type[BaseException]) -> None:
    log: list[Any] = []

    def fail(*args: Any) -> None:
        raise error("this")

    bad = SimpleNamespace(**({where: fail} if where.startswith("on_") else {"on_end": lambda run: None}))
    with pytest.raises(error, match="this"):
        fit(
            fail if where == "step" else float,
            [1],
            callbacks=[bad, Recorder("a", log)],
            validate=fail if where == "validate" else lambda: 0.0,
        )
    assert log[-1][1::3] == ("on_end", "failed")


def test_a_failing_end_ends_the_others() -> None:
    log: list[Any] = []

    def fail(run: Any) -> None:
        raise ValueError("at the end")

    with pytest.raises(ValueError, match="at the end"):
        fit(float, [1], callbacks=[SimpleNamespace(on_end=fail), Recorder("a", log)])
    assert log[-1][1] == "on_end"


def test_the_loop_over_batches_is_closed() -> None:
    closed = []

    class Source:
        def __iter__(self) -> Iterator[int]:
            try:
                yield from range(5)
            finally:
                closed.append(True)

    with pytest.raises(ZeroDivisionError) as info:  # which keeps all frames alive
        fit(lambda x: 1 / (x - 2), Source())
    assert closed == [True], info


def test_empty_epochs() -> None:
    with pytest.raises(ValueError, match="batches must give at least one batch in each epoch, got none"):
        fit(float, [])


BAD_ARGUMENTS = [
    ({"step": 3}, TypeError, "step must be a function"),
    ({"batches": 3}, TypeError, "batches must be something to iterate over, got int"),
    ({"batches": iter([1])}, TypeError, "batches must be .* but a list_iterator can be only once"),
    ({"epochs": 0}, ValueError, "epochs must be an integer at least 1, got 0"),
    ({"epochs": 1.0}, TypeError, "epochs must be an integer at least 1, got 1.0"),
    ({"epochs": True}, TypeError, "epochs must be an integer at least 1, got True"),
    ({"validate": 3}, TypeError, "validate must be a function"),
    ({"state": [1]}, TypeError, "state must be a dict"),
    ({"state": {1: np.ones(1)}}, TypeError, "state must have names that are strings, got 1"),
    ({"state": {"run": np.ones(1)}}, ValueError, "state must not have the name 'run'"),
    ({"state": {"x": 3.0}}, TypeError, r"^state\['x'\] must be an object with"),
    ({"callbacks": train.TerminateOnNaN()}, TypeError, "callbacks must be a list"),
    ({"callbacks": [train.TerminateOnNaN]}, TypeError, "got the class TerminateOnNaN: call it"),
    ({"callbacks": [object()]}, TypeError, "a callback must be a function or have one of the methods on_start, "),
    ({"progress": "rich"}, TypeError, "progress must be True, False or None"),
    ({"resume": True, "state": {"x": np.ones(1)}}, ValueError, "resume=True needs a Checkpoint"),
    ({"resume": 3}, TypeError, "resume must be a path, got 3"),
    ({"resume": "nowhere"}, ValueError, "state must name what a checkpoint holds"),
    ({"callbacks": [train.Checkpoint("x")]}, ValueError, "state must name what a checkpoint holds"),
]


@pytest.mark.parametrize(("arguments", "error", "match"), BAD_ARGUMENTS)
def test_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    called = []
    good = {"step": called.append, "batches": [1], "epochs": 1, "progress": False}
    with pytest.raises(error, match=match):
        train.fit(**(good | arguments))
    assert not called


def test_stop_wants_a_text() -> None:
    with pytest.raises(TypeError, match="reason must be a text, got True"):
        fit(float, [1], callbacks=[lambda run: run.stop(True)])


# -- Saving a run ------------------------------------------------------------------------------------------------------


def test_a_run_is_not_saved_within_a_step_or_validation(tmp_path: Path) -> None:
    runs: list[train.Run] = []
    start = SimpleNamespace(on_start=runs.append)

    def save(*args: Any) -> float:
        with pytest.raises(RuntimeError, match="no state to go on from while a step or validation is under way"):
            runs[0].save(tmp_path / "file")
        return 0.0

    w = np.zeros(1)
    fit(save, [1], callbacks=[start, SimpleNamespace(on_validate=save)], validate=save, state={"w": w})
    runs.clear()
    with pytest.raises(ZeroDivisionError):
        fit(lambda x: 1 / 0, [1], callbacks=[start, SimpleNamespace(on_end=save)], state={"w": w})
    assert not os.listdir(tmp_path)


def test_a_failed_event_saves_nothing(tmp_path: Path) -> None:
    def fail(run: train.Run) -> None:
        run.save(tmp_path / "file")
        raise ValueError("this")

    with pytest.raises(ValueError, match="this"):
        fit(float, [1], callbacks=[fail], state={"w": np.zeros(1)})
    assert not os.listdir(tmp_path)


def test_a_checkpoint_can_be_taken_at_the_end(tmp_path: Path) -> None:
    w = np.zeros(1)
    end = SimpleNamespace(on_end=lambda run: run.save(tmp_path / "file"))
    stop = SimpleNamespace(on_step=lambda run: run.stop("enough") if run.step == 4 else None)

    def step(x: Any) -> None:
        w[...] = 10 * w + x[0]

    batches = data.Batches(np.arange(1.0, 4.0), batch_size=1, shuffle=False)
    fit(step, batches, 3, callbacks=[stop, end], state={"w": w})
    again = data.Batches(np.arange(1.0, 4.0), batch_size=1, shuffle=False)
    w[...] = 0
    with warnings.catch_warnings():
        fit(step, again, 3, state={"w": w}, resume=tmp_path / "file")
    assert w[0] == 123123123


def look(batches: Any) -> None:
    next(iter(batches), None)


def look_and_keep(batches: Any) -> Any:
    loop = iter(batches)
    next(loop, None), next(loop, None)
    return loop


def go_over_it_twice(batches: Any) -> None:
    list(batches), list(batches)


@pytest.mark.parametrize("where", ["step", "validate", "on_start", "on_step", "on_epoch"])
@pytest.mark.parametrize("peek", [look, look_and_keep, go_over_it_twice])
@pytest.mark.parametrize("batch_size", [3, lambda epoch: 2 + epoch])
def test_looking_at_batches_changes_no_run(tmp_path: Path, where: str, peek: Any, batch_size: Any) -> None:
    """Loops over the same Batches beside that of the run change neither it nor what it is resumed from."""
    x = np.arange(1.0, 11.0)

    def go(callbacks: list[Any], peeks: bool, resume: Any = None) -> tuple[float, list[Any]]:
        batches = data.Batches(x, batch_size=batch_size, seed=4)
        w, kept = np.zeros(1), []

        def here(event: str) -> None:
            if peeks and event == where:
                kept.append(peek(batches))

        def step(batch: np.ndarray) -> float:
            here("step")
            w[...] = np.cos(w) + batch.sum()
            return float(batch.sum())

        calls = {event: lambda run, event=event: here(event) for event in ("on_start", "on_step", "on_epoch")}
        history = fit(
            step,
            batches,
            3,
            callbacks=[SimpleNamespace(**calls), *callbacks],
            validate=lambda: here("validate") or 0.0,
            state={"w": w},
            resume=resume,
        )
        return w[0], [(row["epoch"], row["step"], row["loss"]) for row in history]

    if (where, peek) == ("on_start", go_over_it_twice):
        return  # then the run begins with the third epoch, as it should
    want = go([], False)
    events = ("on_start", "on_step", "on_epoch")
    save = {event: lambda run, event=event: run.save(tmp_path / f"{run.step:03d}-{event}") for event in events}
    assert go([SimpleNamespace(**save)], True) == want
    files = sorted(tmp_path.iterdir())
    assert len(files) == 1 + want[1][-1][1] + 3
    for file in files:
        assert go([], True, file) == want, file


def test_a_callback_may_set_the_epoch_of_the_batches(tmp_path: Path) -> None:
    batches = data.Batches(np.arange(4.0), batch_size=1, seed=0)
    seen: list[float] = []

    def again(run: Any) -> None:
        batches.epoch = 0

    def step(x: np.ndarray) -> None:
        seen.append(float(x[0]))

    fit(step, batches, 3, callbacks=[again, train.Checkpoint(tmp_path, keep=9)], state={"w": np.zeros(1)})
    assert seen[:4] == seen[4:8] == seen[8:]
    run = train._fit.Run(batches, 3, [], {"w": np.zeros(1)})
    with pytest.warns(UserWarning, match="dropped"):
        run.load(tmp_path / "step-00000004.safetensors")
    assert (run.epoch, run.step, batches.epoch) == (1, 4, 0)


def resumable(tmp_path: Path, **options: Any) -> Any:
    """A run of three epochs of three steps which is saved after each."""
    w = np.zeros(1)
    options = {"callbacks": [train.Checkpoint(tmp_path, every=1, keep=99)], "state": {"w": w}} | options
    return fit(lambda x: float(x), [1, 2, 3], 3, **options)


class Lost:
    """A callback with state."""

    def on_step(self, run: train.Run) -> None:
        pass

    def state_dict(self) -> Any:
        return {}

    def load_state_dict(self, state_dict: Any) -> None:
        raise ValueError("what is that?")


def test_resume_refuses(tmp_path: Path) -> None:
    resumable(tmp_path, callbacks=[Lost(), Lost(), train.Checkpoint(tmp_path, every=1, keep=99)])
    file = tmp_path / "step-00000002.safetensors"
    w = np.full(1, 7.0)
    good = {"state": {"w": w}, "resume": file, "callbacks": []}
    cases: list[tuple[dict[str, Any], Any, str]] = [
        ({"state": {"v": w}}, ValueError, "it lacks 'v' and has besides 'w'"),
        ({"state": {"w": np.zeros(2)}}, ValueError, "w refused"),
        ({"callbacks": [Lost()]}, ValueError, "run refused .*: Lost: what is that"),
    ]
    for change, error, match in cases:
        with pytest.raises(error, match=match):
            fit(float, [1, 2, 3], 3, **(good | change))
    with pytest.raises(ValueError, match="those were without a state_dict, these have one"):
        fit(float, data.Batches(np.zeros(3), batch_size=1, seed=0), 3, **good)
    assert w[0] == 7
    with (
        pytest.warns(UserWarning, match="the state of Lost, Lost#2, Checkpoint in the checkpoint is dropped"),
        pytest.raises(ValueError, match="batches must give at least the 2 batches that were done of this epoch, got 1"),
    ):
        fit(float, [1], 3, **good)


def test_a_file_of_save_state_is_no_run(tmp_path: Path) -> None:
    w = np.zeros(1)
    train.save_state(tmp_path / "file", w=w)
    with pytest.raises(ValueError, match="it lacks 'run'"):
        fit(float, [1], state={"w": w}, resume=tmp_path / "file")


def test_a_model_out_of_a_checkpoint(tmp_path: Path) -> None:
    w = np.zeros(2)
    fit(lambda x: w.__setitem__(slice(None), x), [5], callbacks=[train.Checkpoint(tmp_path)], state={"w": w})
    w[...] = 0
    train.load_state(tmp_path / "last.safetensors", partial=True, w=w)
    assert w.tolist() == [5, 5]


def test_new_callbacks_may_join_a_resumed_run(tmp_path: Path) -> None:
    resumable(tmp_path)
    file = tmp_path / "step-00000005.safetensors"
    stop = train.EarlyStopping("loss")
    callbacks = [train.Checkpoint(tmp_path), stop, train.CSVLogger(tmp_path / "log.csv")]
    history = resumable(tmp_path, callbacks=callbacks, resume=file)
    assert (len(history), stop.best_epoch) == (3, 2)
    assert (tmp_path / "log.csv").read_text().count("\n") == 4


def test_the_second_run_of_the_same_callbacks_is_a_new_one(tmp_path: Path) -> None:
    stop, checkpoint = train.EarlyStopping("loss", patience=2), train.Checkpoint(tmp_path, best="loss", keep=1)
    for i in range(2):
        history = fit(float, [1, 2], 9, callbacks=[stop, checkpoint], state={"w": np.full(1, i)})
        assert len(history) == 3
        assert (stop.best_epoch, checkpoint.best_value) == (1, 1.5)
        assert _state.read(checkpoint.best_path)["w"][0] == i


def test_defer() -> None:
    log: list[Any] = []
    first = SimpleNamespace(
        on_epoch=lambda run: run.defer(lambda: (log.append("a"), run.defer(lambda: log.append("c"))))
    )
    fit(float, [1], 2, callbacks=[first, lambda run: run.defer(lambda: log.append("b"))])
    assert log == ["a", "b", "c"] * 2


# -- History -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def history() -> train.History:
    history = train.History()
    losses, accuracies = [0.5, 0.1, NAN, 0.1], [0.1, NAN, 0.9, 0.9]
    for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
        row = {"epoch": i + 1, "step": 10 * (i + 1), "seconds": 0.25, "loss": loss, "val_accuracy": accuracy}
        history.rows.append(row if i < 3 else row | {"new": 1 / 3})
    return history


def test_history(history: train.History) -> None:
    assert len(history) == 4
    assert list(history) == history.rows
    assert history.names == ["epoch", "step", "seconds", "loss", "val_accuracy", "new"]
    assert history["step"] == [10, 20, 30, 40]
    assert repr(history["new"]) == "[nan, nan, nan, 0.3333333333333333]"
    assert list(history.to_dict()) == history.names
    assert history.to_dict()["epoch"] == [1, 2, 3, 4]
    assert history.best("loss")["epoch"] == 2
    assert history.best("val_accuracy", "max")["epoch"] == 3
    with pytest.raises(KeyError, match="history has no 'x'; it has epoch, step"):
        history["x"]
    with pytest.raises(ValueError, match="mode must be 'min' or 'max', got 'least'"):
        history.best("loss", "least")
    history.rows = history.rows[2:3]
    with pytest.raises(ValueError, match="loss must have a value that is not NaN"):
        history.best("loss")


def test_history_state(history: train.History) -> None:
    other = train.History()
    rows = other.rows
    history.reason = "x"
    other.load_state_dict(history.state_dict())
    assert repr(other.rows) == repr(history.rows)
    assert (other.reason, other.rows is rows, other.rows[0] is history.rows[0]) == ("x", True, False)
    with pytest.raises(ValueError, match="a History must be saved under the same names"):
        other.load_state_dict({"rows": 1, "reason": None})
    for wrong in ({"rows": 5}, {"missing": {"loss": np.zeros(3, bool)}}):
        with pytest.raises(ValueError, match=r"column 'epoch' .* must have 5 values.*|column 'loss' .* 4 and 3$"):
            other.load_state_dict(history.state_dict() | wrong)
    assert len(other) == 4


def test_history_repr(history: train.History) -> None:
    assert repr(train.History()) == "History()"
    history.reason = "enough"
    history.rows += history.rows
    assert repr(history).splitlines() == [
        "epoch  step  seconds  loss  val_accuracy     new",
        "(3 earlier)",
        "    4    40     0.25   0.1           0.9  0.3333",
        "    1    10     0.25   0.5           0.1        ",
        "    2    20     0.25   0.1           nan        ",
        "    3    30     0.25   nan           0.9        ",
        "    4    40     0.25   0.1           0.9  0.3333",
        "stopped: enough",
    ]


def test_history_csv(history: train.History, tmp_path: Path) -> None:
    history.rows[0]["val_accuracy"] = 0.1 + 0.2
    history.to_csv(tmp_path / "file.csv")
    assert (tmp_path / "file.csv").read_bytes().decode().split("\n") == [
        "epoch,step,seconds,loss,val_accuracy,new",
        "1,10,0.25,0.5,0.30000000000000004,",
        "2,20,0.25,0.1,nan,",
        "3,30,0.25,nan,0.9,",
        "4,40,0.25,0.1,0.9,0.3333333333333333",
        "",
    ]
    assert os.listdir(tmp_path) == ["file.csv"]


def test_history_plot(history: train.History, tmp_path: Path) -> None:
    for row in history:
        row["val_loss"] = row["loss"]
    figure = history.plot(tmp_path / "file.png")
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "accuracy", "new"]
    assert [line.get_label() for line in figure.axes[0].lines] == ["loss", "val_loss"]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata(), np.c_[[1, 2, 3, 4], history["loss"]])
    assert (tmp_path / "file.png").read_bytes()[1:4] == b"PNG"
    assert len(history.plot(names=["loss"]).axes) == 1
    with pytest.raises(KeyError, match="history has no 'x'"):
        history.plot(names=["x"])
    with pytest.raises(ValueError, match="there is nothing to plot"):
        train.History().plot()


def test_plot_needs_matplotlib(history: train.History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r'plot needs matplotlib: pip install "ironstep\[plot\]"'):
        history.plot()


# -- Early stopping ----------------------------------------------------------------------------------------------------


class KerasModel:
    """What Keras's callback asks of a model."""

    def __init__(self) -> None:
        self.stop_training = False
        self.weights: Any = None

    def get_weights(self) -> Any:
        return self.weights

    def set_weights(self, weights: Any) -> None:
        self.weights = weights


def keras_run(values: list[float], options: dict[str, Any]) -> tuple[int, int, float | None]:
    """The epochs that Keras runs, the epoch whose weights are there at the end, and the best value."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    options = {"restore_best_weights" if name == "restore" else name: value for name, value in options.items()}
    callback = keras.callbacks.EarlyStopping(monitor="m", **options)
    model = KerasModel()
    callback.set_model(model)
    callback.on_train_begin()
    epoch = -1
    for epoch, value in enumerate(values):
        model.weights = epoch
        callback.on_epoch_end(epoch, {"m": value})
        if model.stop_training:
            break
    callback.on_train_end()
    return epoch + 1, model.weights + 1, callback.best


def our_run(values: list[float], options: dict[str, Any]) -> tuple[int, int, float | None]:
    """The same with ours, in `fit`."""
    weights = np.zeros((), np.int64)
    results = iter(values)

    def step(x: Any) -> float:
        weights[...] += 1
        return next(results)

    options = options | {"restore": weights if options["restore"] else None}
    stop = train.EarlyStopping("loss", check_finite=False, **options)
    history = fit(step, [0], len(values), callbacks=[stop])
    assert stop.stopped_epoch == (len(history) if history.reason is not None else 0)
    return len(history), int(weights), stop.best


def test_early_stopping_counts_as_keras_does() -> None:
    """Values on a grid, because Keras compares in float32."""
    rng = np.random.default_rng(0)
    stopped = 0
    for i in range(300):
        values = (rng.integers(0, 12, size=rng.integers(1, 15)) / 4).tolist()
        if i % 3 == 0:
            values = [NAN if rng.random() < 0.3 else value for value in values]
        options = {
            "patience": int(rng.integers(0, 5)),
            "min_delta": float(rng.choice([0.0, 0.25, 0.5])),
            "mode": str(rng.choice(["min", "max"])),
            "baseline": [None, 0.75, 2.0][rng.integers(3)],
            "start_from_epoch": int(rng.choice([0, 0, 2])),
            "restore": bool(rng.integers(2)),
        }
        got, want = our_run(values, options), keras_run(values, options)
        assert repr(got) == repr(want), (values, options)
        stopped += got[0] < len(values)
    assert 100 < stopped < 250, "both kinds must be there"


@pytest.mark.parametrize(
    ("values", "options", "want"),
    [
        ([0.5, NAN], {"patience": 9}, "m is nan"),
        ([INF], {"patience": 9}, "m is inf"),
        ([NAN, NAN, 0.5, NAN], {"start_from_epoch": 2}, "m is nan"),
        ([0.5, 0.5, 0.5], {"patience": 2}, "m did not improve on 0.5 for 2 epochs"),
        ([0.5, 0.6], {"patience": 1}, "m did not improve on 0.5 for 1 epoch"),
        ([0.5, 0.4, 0.3], {"stopping_threshold": 0.3}, None),
        ([0.5, 0.4, 0.29], {"stopping_threshold": 0.3}, "m of 0.29 is better than 0.3"),
        ([0.25, 0.31], {"stopping_threshold": 0.3, "mode": "max"}, "m of 0.31 is better than 0.3"),
        ([0.5, 0.49, 0.48], {"min_delta": 0.1, "patience": 5, "stopping_threshold": 0.485}, "m of 0.48 is better"),
    ],
)
def test_decisions(values: list[float], options: dict[str, Any], want: str | None) -> None:
    stop = train.EarlyStopping("m", **options)
    decision = None
    for value in values:
        decision = stop.update(value)
        if decision.stop:
            break
    assert decision is not None
    assert decision.stop == (want is not None)
    assert (decision.reason or "").startswith(want or "")
    assert (stop.epoch, stop.stopped_epoch) == (len(values), len(values) if want else 0)


def test_update_says_what_improved() -> None:
    stop = train.EarlyStopping(patience=3)
    assert [stop.update(value).improved for value in (0.5, 0.5, 0.4, 0.6)] == [True, False, True, False]
    assert (stop.best, stop.best_epoch, stop.wait) == (0.4, 3, 1)


def test_restore_brings_back_everything() -> None:
    """Buffers too; into memory that is allocated once; and the arrays stay the same objects."""
    model = nn.Sequential(nn.Linear(2, 2, seed=0), nn.BatchNorm1d(2))
    stop = train.EarlyStopping("loss", patience=9, restore={"model": model, "rng": np.random.default_rng(0)})
    weight, mean = model.params["0.weight"], model.buffers["1.running_mean"]
    losses = iter([3.0, 1.0, 2.0, 4.0])
    kept = []

    def step(x: Any) -> float:
        weight[...] += 1
        mean[...] += 1
        stop.restore["rng"].random()
        return next(losses)

    first = weight.copy()
    fit(step, [0], 4, callbacks=[stop, lambda run: kept.append(id(stop._best_state["model"]["0.weight"]))])
    assert len(set(kept)) == 1
    assert_same_bits(weight, first + 1 + 1)
    assert mean.tolist() == [2, 2]
    again = np.random.default_rng(0)
    again.random(2)
    assert stop.restore["rng"].random() == again.random()


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_restoring_depends_on_how_it_ended(status: str) -> None:
    w = np.zeros(1)
    losses = iter([1.0, 2.0, 3.0])

    def step(x: Any) -> float:
        w[...] += 1
        if status == "failed" and w[0] == 3:
            raise ValueError("this")
        return next(losses)

    stop = train.EarlyStopping("loss", patience=2 if status == "stopped" else 9, restore=w)
    if status == "failed":
        with pytest.raises(ValueError, match="this"):
            fit(step, [0], 3, callbacks=[stop])
    else:
        fit(step, [0], 3, callbacks=[stop])
    assert (w[0], stop.restored) == ((3, False) if status == "failed" else (1, True))


def test_more_patience_lets_a_resumed_run_go_on(tmp_path: Path) -> None:
    def go(patience: int, **options: Any) -> tuple[int, str | None, int]:
        w = np.zeros(1)

        def step(x: Any) -> float:
            w[...] += 1
            return float(w[0])

        stop = train.EarlyStopping("loss", patience=patience, **options)
        callbacks = [stop, train.Checkpoint(tmp_path)]
        history = fit(step, [0], 9, callbacks=callbacks, state={"w": w}, resume=True)
        return len(history), history.reason, stop.stopped_epoch

    assert go(2) == (3, "loss did not improve on 1 for 2 epochs", 3)
    assert go(2) == (3, "loss did not improve on 1 for 2 epochs", 3)
    assert go(4) == (5, "loss did not improve on 1 for 4 epochs", 5)
    for options, name in (({"mode": "max"}, "mode"), ({}, "monitor")):
        stop = train.EarlyStopping("loss" if options else "x", **options)
        with pytest.raises(ValueError, match=f"EarlyStopping: {name} must be"):
            fit(float, [0], 9, callbacks=[stop, train.Checkpoint(tmp_path)], state={"w": np.zeros(1)}, resume=True)


def test_a_best_state_that_does_not_fit() -> None:
    stop = train.EarlyStopping("loss", restore={"w": np.zeros(2)})
    stop.update(1.0)
    for restore, match in (
        ({"w": np.zeros(3)}, r"restore.w must be float64 of shape \(2,\)"),
        ({"v": np.zeros(2)}, "lacks 'v' and has besides 'w'"),
        (np.zeros(2), "restore is an array"),
        ([np.zeros(2)], "restore has 1 items"),
    ):
        other = train.EarlyStopping("loss", restore=restore)
        error = TypeError if match.endswith("array") else ValueError
        with pytest.raises(error, match=match):
            other.load_state_dict(stop.state_dict())
        assert other.best is None
    without = train.EarlyStopping("loss")
    without.load_state_dict(stop.state_dict())
    assert without.best == 1.0
    with pytest.raises(ValueError, match="there is no best state to restore"):
        without.restore_best()
    state = stop.state_dict()
    state["best_state"]["w"][...] = 7
    stop.restore_best()
    assert stop.restore["w"].tolist() == [0, 0], "a state is a copy"


def test_a_metric_that_is_not_there(tmp_path: Path) -> None:
    for callback in (
        train.EarlyStopping("x"),
        train.Checkpoint(tmp_path, best="x"),
        train.TerminateOnNaN("x"),
    ):
        name = type(callback).__name__
        with pytest.raises(
            ValueError, match=f"{name} needs the metric 'x' in each epoch, which has epoch, step, seconds, loss"
        ):
            fit(float, [0], callbacks=[callback], state={"w": np.zeros(1)})


# -- Checkpoints -------------------------------------------------------------------------------------------------------


def test_checkpoint_files(tmp_path: Path) -> None:
    w, checkpoint = np.zeros(1), train.Checkpoint(tmp_path / "a" / "b", every=2, best="loss", keep=2)
    losses = iter([3.0, 3.0, 3.0, 1.0, 1.0, 1.0, NAN, NAN, NAN, 2.0, 2.0, 2.0])

    def step(x: Any) -> float:
        w[...] += 1
        return next(losses)

    fit(step, [0, 0, 0], 4, callbacks=[checkpoint], state={"w": w})
    folder = Path(checkpoint.folder)
    assert sorted(os.listdir(folder)) == [
        "best.safetensors",
        "last.safetensors",
        "step-00000010.safetensors",
        "step-00000012.safetensors",
    ]
    got = {path.name: _state.read(path)["w"][0] for path in folder.iterdir()}
    assert list(dict(sorted(got.items())).values()) == [6, 12, 10, 12]
    assert (checkpoint.last, checkpoint.best_path) == (
        str(folder / "last.safetensors"),
        str(folder / "best.safetensors"),
    )
    assert os.path.samefile(checkpoint.last, folder / "step-00000012.safetensors")


def test_checkpoint_where_links_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    w = np.ones(1)
    fit(float, [0], 2, callbacks=[train.Checkpoint(tmp_path, best="loss", keep=1)], state={"w": w})
    assert sorted(os.listdir(tmp_path)) == ["best.safetensors", "last.safetensors", "step-00000002.safetensors"]
    assert all(_state.read(tmp_path / name)["w"][0] == 1 for name in os.listdir(tmp_path))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_best_is_the_first_of_equal_ones(tmp_path: Path, mode: str) -> None:
    w = np.zeros(1)
    sign = 1 if mode == "min" else -1
    values = iter([NAN, 2.0, 1.0, 1.0, INF, -INF * 0])

    def step(x: Any) -> float:
        w[...] += 1
        return sign * next(values)

    fit(step, [0], 6, callbacks=[train.Checkpoint(tmp_path, best="loss", mode=mode)], state={"w": w})
    assert _state.read(tmp_path / "best.safetensors")["w"][0] == 3


def test_only_own_files_are_removed(tmp_path: Path) -> None:
    for name in ("step-00000001.safetensors", "step-99999999.safetensors", "notes.txt"):
        (tmp_path / name).write_text("mine")
    fit(float, [0], 3, callbacks=[train.Checkpoint(tmp_path, keep=1)], state={"w": np.zeros(1)})
    assert sorted(os.listdir(tmp_path)) == [
        "last.safetensors",
        "notes.txt",
        "step-00000003.safetensors",
        "step-99999999.safetensors",
    ]


@pytest.mark.skipif(os.name != "posix", reason="there is no harmless way to ask for a process")
def test_leftovers_are_removed(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    gone = [f".ironstep-{dead.stdout.decode().strip()}-0.tmp", f".ironstep-{os.getpid()}-7.tmp"]
    stay = [f".ironstep-{os.getppid()}-0.tmp", ".ironstep-x-0.tmp", "a.tmp"]
    for name in gone + stay:
        (tmp_path / name).write_text("half")
    fit(float, [0], callbacks=[train.Checkpoint(tmp_path)], state={"w": np.zeros(1)})
    assert sorted(os.listdir(tmp_path)) == sorted([*stay, "last.safetensors"])


def test_a_stop_within_an_epoch_is_saved(tmp_path: Path) -> None:
    w = np.zeros(1)

    def step(x: Any) -> float:
        w[...] += 1
        return NAN if w[0] == 8 else 0.0

    pause = SimpleNamespace(on_step=lambda run: run.stop("pause") if run.step == 5 else None)
    nan = train.TerminateOnNaN()
    checkpoint = train.Checkpoint(tmp_path, every=4)
    options = {"state": {"w": w}, "resume": True}
    assert fit(step, [0, 0, 0], 3, callbacks=[pause, checkpoint], **options).reason == "pause"
    assert _state.read(checkpoint.last)["w"][0] == 5
    w[...] = -1
    # Without the callback that stopped it; and what is not finite is not saved, even where it would have been.
    history = fit(step, [0, 0, 0], 3, callbacks=[nan, checkpoint], **options)
    assert (history.reason, w[0]) == ("loss is nan at step 8", 8)
    assert _state.read(checkpoint.last)["w"][0] == 6


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: train.Checkpoint("x", every=0), ValueError, "every must be an integer at least 1, got 0"),
        (lambda: train.Checkpoint("x", keep=-1), ValueError, "keep must be an integer at least 0, got -1"),
        (lambda: train.Checkpoint("x", keep=True), TypeError, "keep must be an integer at least 0, got True"),
        (lambda: train.Checkpoint("x", mode="least"), ValueError, "mode must be 'min' or 'max', got 'least'"),
        (lambda: train.Checkpoint("x", best=3), TypeError, "best must be the name of a metric, got 3"),
        (lambda: train.Checkpoint(3), TypeError, "folder must be a path, got 3"),
        (lambda: train.CSVLogger(3), TypeError, "path must be a path, got 3"),
        (lambda: train.JSONLLogger(None), TypeError, "path must be a path, got None"),
        (lambda: train.EarlyStopping(patience=-1), ValueError, "patience must be an integer at least 0, got -1"),
        (lambda: train.EarlyStopping(patience=1.0), TypeError, "patience must be an integer at least 0, got 1.0"),
        (lambda: train.EarlyStopping(min_delta=-1), ValueError, "min_delta must be finite and at least 0, got -1"),
        (lambda: train.EarlyStopping(baseline=NAN), ValueError, "baseline must be finite, got nan"),
        (lambda: train.EarlyStopping(stopping_threshold="x"), TypeError, "stopping_threshold must be a number"),
        (lambda: train.EarlyStopping(start_from_epoch=-1), ValueError, "start_from_epoch must be an integer"),
        (lambda: train.EarlyStopping(check_finite=1), TypeError, "check_finite must be True or False, got 1"),
        (lambda: train.EarlyStopping(3), TypeError, "monitor must be the name of a metric, got 3"),
        (lambda: train.EarlyStopping(restore=3), TypeError, "restore must be an object with state_dict"),
        (lambda: train.EarlyStopping(mode="auto"), ValueError, "mode must be 'min' or 'max', got 'auto'"),
        (lambda: train.TimeLimit(0), ValueError, "seconds must be finite and above 0, got 0"),
        (lambda: train.TimeLimit(1, clock=3), TypeError, "clock must be a function"),
        (lambda: train.TerminateOnNaN(None), TypeError, "monitor must be the name of a metric, got None"),
        (lambda: train.SwapEMA(SGD(np.zeros(1), lr=0.1)), ValueError, "there is no average of the parameters"),
        (lambda: train.SwapEMA(SGD(np.zeros(1), lr=0.1, ema_decay=0.5), final=1), TypeError, "final must be True or"),
        (lambda: train.LearningRateMonitor(SGD(np.zeros(1), lr=0.1), "lr"), TypeError, "names must be a list"),
        (
            lambda: train.LearningRateMonitor(SGD(np.zeros(1), lr=0.1), ["eps"]),
            ValueError,
            "hyperparameters of SGD, lr",
        ),
        (lambda: train.GradientNormMonitor([0.5]), TypeError, "array"),
        (lambda: train.GradientNormMonitor(np.zeros(1), per_parameter=1), TypeError, "per_parameter must be True or"),
        (lambda: train.GradientNormMonitor(np.zeros(1), every=0), ValueError, "every must be an integer at least 1"),
        (lambda: train.JSONLLogger("x", every=0), ValueError, "every must be an integer at least 1, got 0"),
        (lambda: train.LogTo(3), TypeError, "logger must have the methods .* got 3, which has no log_metrics"),
    ],
)
def test_arguments_of_callbacks(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


# -- Averaged weights --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["float32", "bfloat16", "masters"])
def averaging(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Any]:
    """Parameters with awkward bits, and an optimiser that averages them."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(F32) if request.param == "float32" else BF16
    params = {"w": rng.normal(size=(4, 3)).astype(dtype), "b": np.array([-0.0, 1e-30, 5.0]).astype(dtype)}
    opt = SGD(params, lr=0.5, ema_decay=0.5, master_weights=request.param == "masters")
    return params, opt


def gradients(params: dict[str, Any]) -> dict[str, Any]:
    return {name: np.full_like(param, 0.25) for name, param in params.items()}


def test_averaged(averaging: tuple[dict[str, Any], Any]) -> None:
    params, opt = averaging
    opt.step(gradients(params))
    before = _state.copied(params)
    ema = _state.copied(opt.ema)
    with train.averaged(opt):
        assert_same(params, {name: ema[name].astype(params[name].dtype) for name in params})
        assert not np.array_equal(params["w"], before["w"])
    assert_same(params, before)
    with pytest.raises(ValueError, match="this"), train.averaged(opt):
        raise ValueError("this")
    assert_same(params, before)
    assert_same(opt.ema, ema)


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("restore", [True, False])
def test_swap_ema(averaging: tuple[dict[str, Any], Any], tmp_path: Path, final: bool, restore: bool) -> None:
    params, opt = averaging
    want_params, want_opt = _state.copied(params), SGD(params, lr=0.5, ema_decay=0.5)
    want_opt = SGD(want_params, lr=0.5, ema_decay=0.5, master_weights=opt._master is not None)
    validated: list[Any] = []
    trained: list[Any] = []

    def step(x: Any) -> float:
        opt.step(gradients(params))
        trained.append(_state.copied(params))
        return 0.0

    def validate() -> float:
        validated.append(_state.copied(params))
        return [1.0, 0.5, 2.0][len(validated) - 1]

    stop = train.EarlyStopping(patience=9, restore=params)
    callbacks = [train.Checkpoint(tmp_path), train.SwapEMA(opt, final=final), *([stop] if restore else [])]
    fit(step, [0, 0], 3, callbacks=callbacks, validate=validate, state={"params": params})
    averages = []
    for i in range(6):
        want_opt.step(gradients(want_params))
        assert_same(trained[i], want_params)
        averages.append({name: ema.astype(params[name].dtype) for name, ema in want_opt.ema.items()})
    assert_same(validated, averages[1::2])
    assert_same(_state.read(tmp_path / "last.safetensors")["params"], want_params)
    assert_same(params, averages[3] if restore else averages[5] if final else want_params)
    if final and not restore and opt._master is not None:
        assert_same(opt.master, {name: param.astype(F32) for name, param in params.items()})


def test_swap_ema_when_validation_fails(averaging: tuple[dict[str, Any], Any]) -> None:
    params, opt = averaging
    before: list[Any] = []

    def step(x: Any) -> None:
        opt.step(gradients(params))
        before.append(_state.copied(params))

    def validate() -> None:
        assert not np.array_equal(params["w"], before[0]["w"])
        raise ValueError("this")

    with pytest.raises(ValueError, match="this"):
        fit(step, [0], callbacks=[train.SwapEMA(opt)], validate=validate)
    assert_same(params, before[0])


@pytest.mark.parametrize("how", ["averaged", "final", "validate"])
def test_frozen_groups_are_not_averaged(how: str) -> None:
    """Weights that were loaded into a frozen group after its optimiser was made are not undone."""
    body, head = {"w": np.zeros(2, BF16)}, {"w": np.zeros(2, BF16)}
    opt = SGD([{"params": body}, {"params": head}], lr=0.5, ema_decay=0.5, master_weights=True)
    opt.freeze(0)
    opt.master[0]["w"][...] = 1 + 2**-20
    body["w"][...] = 1
    seen: list[Any] = []

    def step(x: Any) -> None:
        opt.step([None, {"w": np.full(2, -1.0)}])

    def look() -> None:
        seen.append((body["w"].tolist(), head["w"].tolist()))

    if how == "averaged":
        step(0)
        with train.averaged(opt):
            look()
        look()
        assert seen == [([1, 1], [0.25, 0.25]), ([1, 1], [0.5, 0.5])]
    else:
        fit(step, [0], callbacks=[train.SwapEMA(opt, final=how == "final")], validate=look)
        look()
        after = 0.25 if how == "final" else 0.5
        assert seen == [([1, 1], [0.25, 0.25]), ([1, 1], [after, after])]
    assert opt.master[0]["w"].tolist() == [1 + 2**-20] * 2


def test_freezing_within_the_block_and_another_set_of_groups() -> None:
    body, head = np.ones(2), np.ones(3)
    opt = SGD([{"params": body}, {"params": head}], lr=1.0, ema_decay=0.5)
    opt.step([np.ones(2), np.ones(3)])
    swap = train.SwapEMA(opt)
    for change in (lambda: opt.freeze(0), lambda: opt.unfreeze(0), lambda: opt.freeze(1), opt.unfreeze):
        swap._swap.swap()
        change()
        swap._swap.back()
        assert (body.tolist(), head.tolist()) == ([0, 0], [0, 0, 0])


def test_no_step_with_averaged_weights() -> None:
    w = np.ones(2)
    opt = SGD(w, lr=1.0, momentum=0.5, ema_decay=0.5)
    opt.step(w.copy())
    calls = [lambda: opt.step(np.ones(2)), opt.sync_master, opt.sync_ema, lambda: opt.lookahead().__enter__()]
    calls[1:2] = []  # needs masters

    def all_refuse() -> None:
        for call in calls:
            with pytest.raises(RuntimeError, match=r"the parameters are their average; leave .* first"):
                call()
        assert (w.tolist(), opt.steps) == ([0.5, 0.5], 1)

    with train.averaged(opt):
        all_refuse()
        assert opt.state_dict()["state"][""]["ema"].tolist() == [0.5, 0.5]  # that may be done
        with train.averaged(opt):
            all_refuse()
        all_refuse()
        other = copy.deepcopy(opt)
        other.step(np.zeros(2))
    assert w.tolist() == [0, 0]
    fit(lambda x: None, [0], callbacks=[train.SwapEMA(opt, final=False)], validate=lambda: all_refuse())
    assert w.tolist() == [0, 0]
    with (
        opt.lookahead(),
        pytest.raises(RuntimeError, match="the parameters are at the lookahead point"),
        train.averaged(opt),
    ):
        pass
    assert opt.step(np.zeros(2)).step == 2


# -- Other callbacks ---------------------------------------------------------------------------------------------------


def test_terminate_on_nan() -> None:
    values = iter([1.0, INF, 1.0])
    assert fit(lambda x: next(values), [0] * 3, callbacks=[train.TerminateOnNaN()]).reason == "loss is inf at step 2"
    history = fit(float, [0], 3, callbacks=[train.TerminateOnNaN("val_loss")], validate=lambda: NAN)
    assert (history.reason, len(history)) == ("val_loss is nan in epoch 1", 1)
    # A metric that only some steps have.
    results = iter([{}, {"loss": 1.0}, {}])
    assert fit(lambda x: next(results), [0] * 3, callbacks=[train.TerminateOnNaN()]).reason is None


def test_time_limit(tmp_path: Path) -> None:
    now = [100.0]

    def go(seconds: float, epochs: int = 9) -> train.History:
        now[0] += 1000  # between the runs
        limit = train.TimeLimit(seconds, clock=lambda: now[0])
        return fit(
            lambda x: now.__setitem__(0, now[0] + 2),
            [0, 0, 0],
            epochs,
            callbacks=[limit, train.Checkpoint(tmp_path)],
            state={"w": np.zeros(1)},
            resume=True,
        )

    def step() -> int:
        return _state.read(tmp_path / "last.safetensors")["run"]["step"]

    history = go(10)
    assert (history.reason, len(history), step()) == ("10 s of 10 s are over", 1, 5)
    assert (go(10).reason, step()) == ("10 s of 10 s are over", 5)
    assert (go(15).reason, step()) == ("16 s of 15 s are over", 8)
    assert (go(30, epochs=4).reason, step()) == (None, 12)
    assert (go(30).reason, step()) == ("30 s of 30 s are over", 15)


def test_learning_rate_monitor() -> None:
    w, v = np.ones(1), np.ones(1)
    opt = AdamW(
        [{"params": w}, {"params": v, "lr": 0.5}],
        lr=lambda step: 10.0 - step,
        betas=(0.5, lambda step: 0.25 + step / 100),
        weight_decay=0.0,
    )
    seen = []
    monitor = train.LearningRateMonitor(opt, ["lr", "betas"])
    callbacks = [monitor, SimpleNamespace(on_step=lambda run: seen.append(dict(run.metrics)))]
    history = fit(lambda x: opt.step([np.ones(1), np.ones(1)]) and None, [0] * 3, callbacks=callbacks)
    for i, metrics in enumerate(seen):
        beta2 = 0.25 + i / 100
        want = {"lr": 10.0 - i, "beta1": 0.5, "beta2": beta2, "lr[1]": 0.5, "beta1[1]": 0.5, "beta2[1]": beta2}
        assert metrics == want
    assert history["lr"] == [9.0]


@pytest.mark.parametrize("every", [1, 2])
def test_gradient_norm_monitor(every: int) -> None:
    grads = {"w": np.zeros((2, 2), F32), "b": np.zeros(1)}

    def step(x: Any) -> None:
        grads["w"][...], grads["b"][...] = x, 2 * x

    seen = []
    monitor = train.GradientNormMonitor(grads, per_parameter=True, every=every)
    fit(step, [1, 2], callbacks=[monitor, SimpleNamespace(on_step=lambda run: seen.append(dict(run.metrics)))])
    want = [{"grad_norm": x * math.sqrt(8), "grad_norm/w": 2 * x, "grad_norm/b": 2 * x} for x in (1, 2)]
    for i, (got, norms) in enumerate(zip(seen, want, strict=True)):
        assert got == (pytest.approx(norms, rel=1e-15) if (i + 1) % every == 0 else {})


# -- Loggers -----------------------------------------------------------------------------------------------------------


def test_csv_logger(tmp_path: Path) -> None:
    """A row as it comes; a new name makes a new column; always what `to_csv` writes."""
    path = tmp_path / "log.csv"
    path.write_text("of another run")
    results = iter([{"loss": 0.5}, {"loss": NAN, "new": 1.0}, {"new": 2.0}])
    texts = []

    def check(run: train.Run) -> None:
        run.history.to_csv(tmp_path / "want.csv")
        texts.append((path.read_text(), (tmp_path / "want.csv").read_text()))

    after = SimpleNamespace(on_epoch=lambda run: run.defer(lambda: check(run)), order=2)
    history = fit(lambda x: next(results), [0], 3, callbacks=[after, train.CSVLogger(path)])
    assert all(got == want for got, want in texts)
    assert texts[0][0].startswith("epoch,step,seconds,loss\n1,1,")
    rows = [line.split(",") for line in path.read_text().splitlines()]
    assert [row[:2] + row[3:] for row in rows] == [
        ["epoch", "step", "loss", "new"],
        ["1", "1", "0.5", ""],
        ["2", "2", "nan", "1.0"],
        ["3", "3", "", "2.0"],
    ]
    assert [float(row[2]) for row in rows[1:]] == history["seconds"]


def test_jsonl_logger(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("of another run")
    values = iter([0.5, INF, -INF, NAN])
    flushed = []
    logger = train.JSONLLogger(path, every=1)
    flush = SimpleNamespace(on_step=lambda run: flushed.append(path.read_text().count("\n")), order=2)
    fit(lambda x: next(values), [0, 0], 2, callbacks=[logger, flush])
    assert flushed == [1, 2, 4, 5]

    def refuse(text: str) -> Any:
        raise AssertionError(f"{text} is no JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    assert lines == [
        {"event": "step", "epoch": 1, "step": 1, "loss": 0.5},
        {"event": "step", "epoch": 1, "step": 2, "loss": "inf"},
        {"event": "epoch", "epoch": 1, "step": 2, "loss": "inf"},
        {"event": "step", "epoch": 2, "step": 3, "loss": "-inf"},
        {"event": "step", "epoch": 2, "step": 4, "loss": "nan"},
        {"event": "epoch", "epoch": 2, "step": 4, "loss": "nan"},
    ]


def test_a_log_that_is_not_there_any_more(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    def go(epochs: int) -> None:
        callbacks = [train.JSONLLogger(path), train.Checkpoint(tmp_path)]
        fit(float, [0], epochs, callbacks=callbacks, state={"w": np.zeros(1)}, resume=True)

    go(2)
    path.write_text("short")
    with pytest.raises(ValueError, match=r"log.jsonl must have the \d+ bytes that it had .* got 5; put it back"):
        go(3)
    assert path.read_text() == "short"
    path.unlink()
    go(3)
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [3]


@pytest.mark.parametrize("fails", [False, True])
def test_log_to(fails: bool) -> None:
    calls: list[Any] = []
    logger = SimpleNamespace(
        log_metrics=lambda metrics, step: calls.append((metrics, step)),
        log_hyperparams=lambda params: calls.append(params),
        finalize=lambda status: calls.append(status),
    )

    def step(x: Any) -> float:
        if fails and x == 4:
            raise ValueError("this")
        return x

    log = train.LogTo(logger, hyperparams={"lr": 0.1}, every=2)
    if fails:
        with pytest.raises(ValueError, match="this"):
            fit(step, [1.0, 2.0, 4.0], callbacks=[log])
        assert calls == [{"lr": 0.1}, ({"loss_step": 2.0}, 2), "failed"]
    else:
        history = fit(step, [1.0, 2.0], callbacks=[log], validate=lambda: 3.0)
        row = {"epoch": 1, "seconds": history.rows[0]["seconds"], "loss": 1.5, "val_loss": 3.0}
        assert calls == [{"lr": 0.1}, ({"loss_step": 2.0}, 2), (row, 2), "success"]


# -- Progress ----------------------------------------------------------------------------------------------------------


def test_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    stop = SimpleNamespace(on_epoch=lambda run: run.stop("enough") if run.epoch == 2 else None)
    options = {"state": {"w": np.zeros(1)}, "validate": lambda: {"a": 1 / 3}, "progress": None}
    fit(float, [0, 1], 3, callbacks=[stop, train.Checkpoint(tmp_path)], **options)
    fit(float, [0, 1], 3, resume=tmp_path / "last.safetensors", callbacks=[train.Checkpoint(tmp_path)], **options)
    fit(float, [0], 1, progress=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "epoch 1/3  step 2  0.0 s  loss 0.5  val_a 0.3333",
        "epoch 2/3  step 4  0.0 s  loss 0.5  val_a 0.3333",
        "stopped after epoch 2/3, step 4: enough",
        "resumed after epoch 2/3, step 4",
        "epoch 3/3  step 6  0.0 s  loss 0.5  val_a 0.3333",
    ]


class Terminal(io.StringIO):
    """Where a bar can be seen."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("progress", [None, True])
def test_bar(monkeypatch: pytest.MonkeyPatch, progress: bool | None) -> None:
    """Not more than ten updates a second, however many steps there are; then it makes room for a line."""
    now = [0.0]
    terminal = Terminal() if progress is None else io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    from ironstep.train import _progress

    monkeypatch.setattr(_progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    counts = []

    def step(x: Any) -> float:
        now[0] += 0.01
        counts.append(terminal.getvalue().count("\r"))
        return 0.5

    fit(step, [0] * 100, 2, progress=progress)
    text = terminal.getvalue()
    assert "epoch 1/2" in text
    assert "loss 0.5" in text
    assert 8 <= len(set(counts[:100])) <= 13
    assert sum(part.startswith("epoch 1/2  step 100  ") for part in text.replace("\r", "\n").splitlines()) == 1


def test_bar_needs_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ModuleNotFoundError, match=r'progress=True needs tqdm: pip install "ironstep\[progress\]"'):
        fit(float, [0], progress=True)
    monkeypatch.setattr(sys, "stderr", Terminal())
    fit(float, [0], progress=None)
    assert "epoch 1/1" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stderr", None)
    fit(float, [0], progress=None)


# -- The package -------------------------------------------------------------------------------------------------------


def test_importing_loads_no_extras() -> None:
    script = """
        import sys
        import numpy
        had = set(sys.modules)
        import ironstep.train
        heavy = {"json", "csv", "matplotlib", "tqdm", "scipy", "tomllib", "concurrent.futures", "torch"}
        print(sorted(heavy & (set(sys.modules) - had)))
    """
    lines = "\n".join(line.strip() for line in script.splitlines())
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_exports() -> None:
    assert sorted(train.__all__) == train.__all__ or sorted(train.__all__, key=str.lower)
    for name in train.__all__:
        assert getattr(train, name).__doc__, name
