"""Exact resume: a run that is killed anywhere and resumed ends with the bits of one that was not.

Twenty real kills of a run that has everything; and, in this process, a small run that is resumed from each checkpoint
that can be taken, and broken off before and after each thing that it does to a file.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resume_run
from helpers import assert_same
from ironstep import _core, data, train
from ironstep.train import _state
from resume_run import EPOCHS, FILES, STEPS

if os.name != "posix":
    pytest.skip("there is no SIGKILL", allow_module_level=True)

QUIET = {"kind": "never", "at": 0, "prefetch": 2, "every": None, "patience": 9}
SETTINGS: dict[str, dict[str, Any]] = {"finished": {"patience": 9}, "stopped": {"patience": 3}}
"""A run that goes over all epochs, and one that is stopped early."""


def killed(folder: Path, settings: dict[str, Any]) -> None:
    """The script in a process of its own, which must die."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(resume_run.__file__), str(folder), json.dumps(settings)],
        # Other threads than here: they must not matter.
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "IRONSTEP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr or "it was not killed"


def without_seconds(nest: Any) -> Any:
    """What is the same in every run."""
    if isinstance(nest, dict):
        # Which numbered files there are depends on how often was saved.
        return {key: without_seconds(item) for key, item in nest.items() if key not in ("seconds", "kept", "due")}
    if isinstance(nest, (list, tuple)):
        return [without_seconds(item) for item in nest]
    return nest


def result(folder: Path) -> dict[str, Any]:
    """All that a run has left."""
    csv, jsonl = (folder / name for name in FILES)
    rows = [line.split(",") for line in csv.read_text().splitlines()]
    column = rows[0].index("seconds")
    checkpoints = ("end", "last", "best", "other/last", "other/best")
    return {
        "csv": [row[:column] + row[column + 1 :] for row in rows],
        "jsonl": [without_seconds(json.loads(line)) for line in jsonl.read_text().splitlines()],
        **{name: without_seconds(stripped(_state.read(folder / f"{name}.safetensors"))) for name in checkpoints},
        "litter": [path.name for path in folder.rglob("*.tmp")],
    }


def stripped(saved: dict[str, Any]) -> dict[str, Any]:
    """Without the length of a log, which has seconds in it."""
    for key in ("run",) if "run" in saved else ():
        saved[key]["callbacks"].pop("JSONLLogger")
        saved[key]["callbacks"].pop("Killer", None)
    return saved


def cases() -> list[dict[str, Any]]:
    """Twenty ways to die: two each of ten kinds, at random moments."""
    rng = np.random.default_rng(5)
    kinds: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("on_step", lambda: {"at": int(rng.integers(1, 4 * STEPS)), "order": -1}),
        ("on_step", lambda: {"at": int(rng.integers(1, 4 * STEPS)), "order": 9}),
        ("on_step", lambda: {"at": STEPS * int(rng.integers(1, 4)), "order": 9}),  # the last step of an epoch
        ("on_validate", lambda: {"at": int(rng.integers(1, 4)), "order": 9}),
        ("validate", lambda: {"at": int(rng.integers(1, 4))}),
        ("on_epoch", lambda: {"at": int(rng.integers(1, 4)), "order": 1.5}),
        ("save", lambda: {"at": int(rng.integers(1, 12)), "when": "before"}),
        ("save", lambda: {"at": int(rng.integers(1, 12)), "when": "during", "delay": float(rng.uniform(0, 0.02))}),
        ("link", lambda: {"at": int(rng.integers(2, 12)), "when": str(rng.choice(["before", "after"]))}),
        ("on_end", lambda: {"at": 1, "order": int(rng.choice([-1, 9]))}),
    ]
    return [
        {"kind": kind, "delay": 0.0, "every": int(rng.integers(1, 4)), "prefetch": int(rng.integers(0, 3)), **draw()}
        for _ in range(2)
        for kind, draw in kinds
    ]


CASES = cases()
WHOLE = list(SETTINGS)


def settings_of(i: int) -> dict[str, Any]:
    return QUIET | SETTINGS[WHOLE[i % 2]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What runs have left that were not killed."""
    left = {}
    for name in SETTINGS:
        folder = tmp_path_factory.mktemp(name)
        resume_run.main(folder, QUIET | SETTINGS[name])
        left[name] = result(folder)
    return left


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Path, Future[None]]]]:
    """Folders of the runs that are killed, two at a time."""
    folders = [tmp_path_factory.mktemp("killed") for _ in CASES]
    with ThreadPoolExecutor(2) as pool:
        yield [
            (folder, pool.submit(killed, folder, settings_of(i) | case))
            for i, (folder, case) in enumerate(zip(folders, CASES, strict=True))
        ]


@pytest.mark.parametrize("name", WHOLE)
def test_runs_to_compare_with(whole: dict[str, Any], name: str) -> None:
    """They are as the test below needs them, or it would test little."""
    left = whole[name]
    rows = left["end"]["history"]["rows"]
    assert (left["end"]["history"]["reason"] is None, rows == EPOCHS) == (name == "finished",) * 2
    assert left["end"]["stop"]["best_epoch"] < rows
    assert not np.array_equal(left["end"]["model"]["0.weight"], left["last"]["model"]["0.weight"])


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: f"{i}-{CASES[i]['kind']}")
def test_killed_and_resumed(whole: dict[str, Any], victims: list[tuple[Path, Future[None]]], i: int) -> None:
    folder, future = victims[i]
    future.result()
    # An `every` that may differ from the killed run's: how often is saved must not matter.
    resume_run.main(folder, settings_of(i) | {"every": i % 3 + 1, "prefetch": i % 2})
    assert_same(result(folder), whole[WHOLE[i % 2]])


# -- In this process ---------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What breaks a run off here."""


class Save:
    """Saves wherever a run can be saved, each time in another file."""

    order = -5  # Others have not seen the event when it asks; all must have when the file is written.

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step(self, run: train.Run) -> None:
        run.save(self.folder / f"{run.step:03d}-step")

    def on_epoch(self, run: train.Run) -> None:
        run.save(self.folder / f"{run.step:03d}-epoch")


class Steps:
    """A callback with state that depends on every event, and stops the run in the midst of an epoch."""

    def __init__(self, stop_at: int) -> None:
        self.stop_at = stop_at
        self.seen: list[str] = []

    def on_step(self, run: train.Run) -> None:
        self.seen.append(f"step {run.step}")
        if run.step == self.stop_at:
            run.stop("enough")

    def on_validate(self, run: train.Run) -> None:
        self.seen.append(f"validate {run.epoch}")

    def on_epoch(self, run: train.Run) -> None:
        self.seen.append(f"epoch {run.epoch}")

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = list(state_dict["seen"])


class Small:
    """A run over ten numbers, three at a time, four steps an epoch; its losses depend on all that has happened."""

    def __init__(self, kind: str, stop_at: int = 0) -> None:
        x = np.arange(10.0)
        self.batches: Any = (
            data.Batches(x, batch_size=3, seed=4) if kind == "batches" else [x[i : i + 3] for i in (0, 3, 6, 9)]
        )
        self.rng = np.random.default_rng(0)
        self.w = np.zeros(3)
        self.stopping = train.EarlyStopping(patience=50, restore=self.w)
        self.steps = Steps(stop_at)

    def step(self, x: Any) -> dict[str, float]:
        self.w += 0.1 * self.rng.normal(size=3) + 0.01 * x.sum()
        metrics = {"loss": float(np.sin(self.w.sum()))}
        # A metric that not every step has.
        return metrics | {"rare": float(self.w[0])} if self.w[0] > 0.5 else metrics

    def validate(self) -> float:
        return float(np.cos(self.w @ self.rng.normal(size=3)))

    def run(self, callbacks: list[Any], epochs: int = 3, **options: Any) -> dict[str, Any]:
        history = train.fit(
            self.step,
            self.batches,
            epochs,
            callbacks=[self.stopping, *callbacks, self.steps],
            validate=self.validate,
            state={"w": self.w, "rng": self.rng},
            progress=False,
            **options,
        )
        objects = {"w": self.w, "rng": self.rng, "stopping": self.stopping, "steps": self.steps, "history": history}
        return without_seconds({name: _state.snapshot(obj) for name, obj in objects.items()})


@pytest.mark.parametrize("stop_at", [0, 6, 8], ids=["whole", "stopped_within", "stopped_at_the_last_step"])
@pytest.mark.parametrize("kind", ["batches", "list"])
def test_resume_from_every_checkpoint(tmp_path: Path, kind: str, stop_at: int) -> None:
    want = Small(kind, stop_at).run([Save(tmp_path)])
    files = sorted(tmp_path.iterdir())
    assert len(files) == (12 + 3 if stop_at == 0 else stop_at + 1)
    for file in files:
        (tmp_path / file.name).rename(tmp_path / "resumed")
        assert_same(Small(kind, stop_at).run([Save(tmp_path)], resume=tmp_path / "resumed"), want, file.name)


def test_more_epochs_are_as_if_they_had_been_from_the_start(tmp_path: Path) -> None:
    def go(epochs: int) -> Any:
        return Small("batches").run([train.Checkpoint(tmp_path)], epochs, resume=True)

    go(1), go(2)
    got = go(4)
    assert_same(got, Small("batches").run([], 4))
    assert_same(go(4), got)  # nothing is left to do
    assert_same(go(3), got)


def test_without_the_callback_that_stopped_it_a_run_goes_on(tmp_path: Path) -> None:
    Small("list", stop_at=6).run([train.Checkpoint(tmp_path)])
    small = Small("list")
    with pytest.warns(UserWarning, match="the state of Steps in the checkpoint is dropped"):
        history = train.fit(
            small.step,
            small.batches,
            3,
            callbacks=[small.stopping, train.Checkpoint(tmp_path)],
            validate=small.validate,
            state={"w": small.w, "rng": small.rng},
            resume=tmp_path / "last.safetensors",
            progress=False,
        )
    assert (len(history), history.reason) == (3, None)
    assert_same(small.rng.bit_generator.state, Small("list").run([])["rng"])


FILE_WORK = [(_core, "save_safetensors"), (os, "link"), (os, "replace"), (os, "remove"), (os, "makedirs")]


def fast_save(path: str, arrays: Any, metadata: str) -> None:
    """As the real one, which waits for the disk."""
    Path(path).with_suffix(".half").write_bytes(pickle.dumps(([(n, a.dtype.name, a) for n, a in arrays], metadata)))
    Path(path).with_suffix(".half").rename(path)


def fast_load(path: str) -> Any:
    return pickle.loads(Path(path).read_bytes())


def test_broken_off_at_everything_that_is_done_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkpoints, either of which the run is resumed from, and loggers: all of them must leave the same."""
    monkeypatch.setattr(_core, "load_safetensors", fast_load)
    monkeypatch.setattr(_core, "save_safetensors", fast_save)
    left = -1

    def breaking(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            result = real(*args, **kwargs)
            left -= 1
            if left == 0:
                raise Killed
            return result

        return call

    for owner, name in FILE_WORK:
        monkeypatch.setattr(owner, name, breaking(getattr(owner, name)))

    def go(folder: Path, resume: str) -> Any:
        folder.mkdir(exist_ok=True)
        callbacks = [
            train.Checkpoint(folder / "a", best="val_loss", keep=1, every=3),
            train.Checkpoint(folder / "b", best="loss", mode="max", keep=1),
            train.CSVLogger(folder / "log.csv"),
            train.JSONLLogger(folder / "log.jsonl", every=3),
        ]
        return Small("batches").run(callbacks, 2, resume=folder / resume / "last.safetensors")

    def files(folder: Path) -> Any:
        out: dict[str, Any] = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.suffix == ".safetensors":
                saved = _state.read(path)
                del saved["run"]["callbacks"]["JSONLLogger"]
                out[str(path.relative_to(folder))] = without_seconds(saved)
            elif path.suffix == ".jsonl":
                out[path.name] = [without_seconds(json.loads(line)) for line in path.read_text().splitlines()]
            elif path.suffix == ".csv":
                out[path.name] = [line.split(",")[:2] + line.split(",")[3:] for line in path.read_text().splitlines()]
        return out

    want = go(tmp_path / "whole", "a")
    total, want_files = -1 - left, files(tmp_path / "whole")
    assert total > 50
    for at, resume in itertools.product(range(1, total + 1), "ab"):
        folder = tmp_path / f"{at}{resume}"
        left = at
        with pytest.raises(Killed):
            go(folder, resume)
        assert_same(go(folder, resume), want, f"at {at}")
        assert_same(files(folder), want_files, f"at {at}")
