"""What the loop itself costs: `fit` over the bare calls, batches over the bare indexing, schedules.

    python benches/loop.py [--out FOLDER] [--rounds N]

Contestants take turns; medians. The step does nothing, so all that is measured is what comes on top of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from timing import MISSING, machine, optional

from ironstep import schedules
from ironstep.data import Batches
from ironstep.optim import AdamW
from ironstep.train import Checkpoint, CSVLogger, EarlyStopping, JSONLLogger, fit

torch = optional("torch")

STEPS, EPOCHS = 2000, 2
MILLION = 1_000_000

LIMITS = {"fit": 20.0, "fit with EarlyStopping, Checkpoint, CSVLogger": 20.0}
"""Microseconds per step over the bare calls."""
LIMIT_MS = 20.0
"""For a million values of a schedule."""

ONE_MILLION = {
    "constant": schedules.constant(0.1),
    "linear": schedules.linear(0.1, 0.0, MILLION),
    "polynomial, power 2": schedules.polynomial(0.1, 0.0, MILLION, 2.0),
    "step": schedules.step(0.1, MILLION // 10),
    "multi_step": schedules.multi_step(0.1, [MILLION // 4, MILLION // 2]),
    "exponential": schedules.exponential(0.1, 0.99, MILLION // 100),
    "cosine": schedules.cosine(0.1, steps=MILLION),
    "cosine_restarts": schedules.cosine_restarts(0.1, T_0=MILLION // 100, T_mult=2),
    "warmup_cosine": schedules.warmup_cosine(0.1, steps=MILLION, warmup_steps=MILLION // 20),
    "one_cycle": schedules.one_cycle(0.1, MILLION),
    "inverse_sqrt": schedules.inverse_sqrt(0.1, MILLION // 100, warmup_steps=MILLION // 100),
    "warmup_stable_decay": schedules.warmup_stable_decay(
        0.1, warmup_steps=MILLION // 20, stable_steps=MILLION // 2, decay_steps=MILLION // 4
    ),
    "cyclic": schedules.cyclic(0.01, 0.1, MILLION // 100, mode="exp_range", gamma=0.99999),
}


def medians(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def loop(rounds: int, folder: Path) -> dict[str, float]:
    """Microseconds per step over the bare calls."""
    x = np.zeros((32, 4), np.float32)
    batches = [(x, x)] * STEPS
    params = {"w": np.zeros(4, np.float32)}
    opt = AdamW(params)

    def step(x: Any, t: Any) -> float:
        return 0.5

    def bare() -> None:
        for _ in range(EPOCHS):
            for batch in batches:
                step(*batch)

    def usual() -> None:
        fit(
            step,
            batches,
            EPOCHS,
            callbacks=[EarlyStopping("loss", patience=9), Checkpoint(folder), CSVLogger(folder / "history.csv")],
            state={"params": params, "opt": opt},
            progress=False,
        )

    def every_step() -> None:
        fit(step, batches, EPOCHS, callbacks=[JSONLLogger(folder / "log.jsonl", every=1)], progress=False)

    times = medians(
        {
            "bare": bare,
            "fit": lambda: fit(step, batches, EPOCHS, progress=False),
            "fit with EarlyStopping, Checkpoint, CSVLogger": usual,
            "fit with JSONLLogger, a line per step": every_step,
        },
        rounds,
    )
    bare_time = times.pop("bare")
    return {name: 1e6 * (seconds - bare_time) / (STEPS * EPOCHS) for name, seconds in times.items()}


def batching(rounds: int) -> dict[str, float]:
    """Microseconds per batch of 32 samples of 64 numbers: all of it, and NumPy's part."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(50_000, 64)).astype(np.float32), rng.integers(10, size=50_000)
    own, views = Batches(x, t, batch_size=32, seed=0), Batches(x, t, batch_size=32, shuffle=False)

    def numpy() -> None:
        order = rng.permutation(len(x))
        for first in range(0, len(x), 32):
            chosen = order[first : first + 32]
            _ = x[chosen], t[chosen]

    def every(batches: Batches) -> None:
        for _ in batches:
            pass

    times = medians(
        {"NumPy": numpy, "Batches": lambda: every(own), "Batches, no shuffle": lambda: every(views)}, rounds
    )
    return {name: 1e6 * seconds / len(own) for name, seconds in times.items()}


def values(rounds: int) -> dict[str, float]:
    """Milliseconds for a million values."""
    steps = np.arange(MILLION)
    return {
        name: 1e3 * seconds
        for name, seconds in medians(
            {name: (lambda schedule=schedule: schedule(steps)) for name, schedule in ONE_MILLION.items()}, rounds
        ).items()
    }


def one_value(rounds: int) -> dict[str, float]:
    """Microseconds for the learning rate of one step."""
    n = 20_000
    schedule = ONE_MILLION["warmup_cosine"]
    contestants: dict[str, Callable[[], Any]] = {
        "schedule(step)": lambda: [schedule(step) for step in range(n)],
    }
    w, g = np.zeros(64, np.float32), np.zeros(64, np.float32)
    for name, lr in {"AdamW.step, lr a number": 0.1, "AdamW.step, lr a schedule": schedule}.items():
        opt = AdamW(w.copy(), lr=lr)
        contestants[name] = lambda opt=opt: [opt.step(g) for _ in range(n)]
    if torch:
        opt = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        opt.step()
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, MILLION)
        contestants["torch's CosineAnnealingLR.step"] = lambda: [scheduler.step() for _ in range(n)]
    return {name: 1e6 * seconds / n for name, seconds in medians(contestants, rounds).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for the JSON")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contestant")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    about = machine(("numpy", "torch"))
    print(f"ironstep {about['ironstep']} on {about['cpu']}, {about['threads']} threads; medians of {args.rounds}\n")
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "us per step over the bare calls": loop(args.rounds, Path(folder)),
            "us per batch of 32": batching(args.rounds),
            "us for one step's value": one_value(args.rounds),
            "ms for a million values": values(args.rounds),
        }
    missed = 0
    for what, table in results.items():
        print(what)
        for name, value in table.items():
            limit = LIMIT_MS if what.startswith("ms") else LIMITS.get(name)
            verdict = "" if limit is None else f"  (limit {limit:g}: {'met' if value <= limit else 'MISSED'})"
            missed += limit is not None and value > limit
            print(f"  {name:<48} {value:8.2f}{verdict}")
    for name, why in MISSING.items():
        print(f"left out: {name} ({why})")
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "loop.json"
    table.write_text(json.dumps({"machine": about, "results": results}, indent=1))
    print(f"\n{missed} targets missed; table in {table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
