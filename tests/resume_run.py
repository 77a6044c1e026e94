"""A run that is killed, for `test_resume.py`: `python resume_run.py FOLDER SETTINGS`, with settings in JSON.

It has everything that has state: batch norm, dropout, averaged weights, a schedule and a plateau, shuffled batches with
a random transform and a thread that is ahead, a generator, early stopping with a copy of the weights, loggers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from ironstep import _core, functional, nn, schedules, train
from ironstep.data import Batches, BatchKey
from ironstep.optim import AdamW
from ironstep.train import _state

EPOCHS, STEPS = 7, 6
FILES = ("history.csv", "log.jsonl")


def die() -> None:
    """As the kernel kills: nothing is flushed, closed or caught."""
    os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    """Kills at an event that comes for the `at`-th time, at some place among the callbacks."""

    def __init__(self, event: str, at: int, order: float) -> None:
        self.order = order
        self._left = at
        setattr(self, event, self._count)

    def _count(self, run: train.Run) -> None:
        self._left -= 1
        if self._left == 0:
            die()


def kill_in(name: str, owner: Any, at: int, when: str, delay: float) -> None:
    """Kills before, during or after the `at`-th call of a function."""
    real, left = getattr(owner, name), [at]

    def counted(*args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            if when == "before":
                die()
            if when == "during":
                threading.Thread(target=lambda: (time.sleep(delay), die()), daemon=True).start()
                while True:  # Until it is dead: saves follow one another.
                    real(*args)
        result = real(*args)
        if left[0] == 0:
            die()
        return result

    setattr(owner, name, counted)


def noisy(key: BatchKey, x: Any, t: Any) -> Any:
    return x + key.generator().normal(scale=0.1, size=x.shape).astype(np.float32), t


def main(folder: Path, settings: dict[str, Any]) -> None:
    data = np.random.default_rng(0)
    x = data.normal(size=(80, 5)).astype(np.float32)
    t = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    seeds = np.random.default_rng(8)
    model = nn.Sequential(
        nn.Linear(5, 16, seed=seeds),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.2, seed=seeds),
        nn.Linear(16, 2, seed=seeds),
    )
    plateau = schedules.ReduceLROnPlateau(0.1, patience=0, monitor="val_loss")
    lr = schedules.warmup_cosine(0.1, steps=EPOCHS * STEPS, warmup_steps=5)
    opt = AdamW(model.params, lr=lr, weight_decay=plateau, ema_decay=0.5, max_norm=1.0)
    batches = Batches(x[:48], t[:48], batch_size=8, seed=2, transform=noisy, prefetch=settings["prefetch"])
    rng = np.random.default_rng(3)
    counts = {"validations": np.zeros((), np.int64)}

    def step(x: Any, t: Any) -> dict[str, float]:
        scores = model(x)
        loss, grad = functional.cross_entropy(scores, t, return_grad=True)
        model.backward(grad)
        opt.step(model.grads)
        return {"loss": loss, "accuracy": float(np.mean(scores.argmax(1) == t))}

    def validate() -> float:
        counts["validations"] += 1
        if settings["kind"] == "validate" and counts["validations"] == settings["at"]:
            die()
        some = rng.permutation(32)[:24] + 48  # Validation that draws: its generator must go on where it was.
        return float(functional.cross_entropy(model.predict(x[some]), t[some]))

    callbacks: list[Any] = [
        train.EarlyStopping(patience=settings["patience"], restore=model),
        plateau,
        train.LearningRateMonitor(opt, ["lr", "weight_decay"]),
        train.SwapEMA(opt),
        train.CSVLogger(folder / FILES[0]),
        train.JSONLLogger(folder / FILES[1], every=2),
        train.Checkpoint(folder, every=settings["every"], best="val_loss", keep=2),
        # A second one, whose state the first must not miss.
        train.Checkpoint(folder / "other", best="accuracy", mode="max"),
    ]
    kind, at = settings["kind"], settings["at"]
    if kind in ("on_start", "on_step", "on_validate", "on_epoch", "on_end"):
        callbacks.append(Killer(kind, at, settings["order"]))
    elif kind == "save":
        kill_in("save_safetensors", _core, at, settings["when"], settings["delay"])
    elif kind == "link":
        kill_in("replace", os, at, settings["when"], settings["delay"])
    objects = {"model": model, "opt": opt, "rng": rng, "counts": counts}
    history = train.fit(
        step, batches, EPOCHS, callbacks=callbacks, validate=validate, state=objects, resume=True, progress=False
    )
    end = {**objects, "batches": batches, "history": history, "stop": callbacks[0], "plateau": plateau}
    _state.write(folder / "end.safetensors", end)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
