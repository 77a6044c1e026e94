"""What the benches in Python share: contestants that take turns, targets, a table, JSON and a picture."""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ironstep

Step = Callable[[], Any]
Contestants = dict[str, Step]
M = 1 << 20


class Work(NamedTuple):
    """Something to measure: contestants by name, and what ironstep must reach beside which of them."""

    name: str
    make: Callable[[], Contestants]
    targets: dict[str, float]
    """Contestant, 'fastest peer' or 'fastest LIBRARY' -> how many times faster than it ironstep must be."""
    cold: bool = False
    """Empty the caches before each step, as a backward pass does."""


def optional(name: str) -> Any:
    """The module, or None; says so once."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return __import__(name, fromlist=["_"])
    except Exception as error:
        MISSING[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return None


MISSING: dict[str, str] = {}


@functools.cache
def compiled(source: str) -> ctypes.CDLL | None:
    """A C file of this folder as a library, or None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        MISSING["C loop"] = "no C compiler"
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "loop.so"
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, "-o", library, Path(__file__).with_name(source)], check=True)
        return ctypes.CDLL(str(library))


# -- Measuring ---------------------------------------------------------------------------------------------------------


TURN = 0.02
"""Seconds of timed steps in a turn, unless one step takes longer."""

PAUSE = 0.03
"""Seconds before a turn."""


def interleaved(contestants: Contestants, seconds: float, cold: bool) -> dict[str, float]:
    """Median seconds of a step of each. A turn is one step that is not timed, then some that are, each for itself.

    Before it there is a pause, since the threads of OpenMP spin for some 15 ms after a call and would take a core from
    the next contestant; the untimed step fills the caches again. With `cold` 128 MB are written before each timed step
    instead. Steps below 0.1 ms are timed in groups of that length.
    """
    sweep = np.zeros(128 * M, np.uint8)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    counts, groups = {}, {}
    for name, step in contestants.items():
        step()
        once = timed(step, 1)
        groups[name] = 1 if cold else max(1, round(1e-4 / once))
        counts[name] = 1 if cold else max(1, round(TURN / (groups[name] * once)))
    end = time.perf_counter() + seconds * len(contestants)
    turn = 0
    while turn < 7 or time.perf_counter() < end:
        for name, step in contestants.items():
            if turn >= 3 and times[name][0] > 0.3:
                continue  # 3 turns of a very slow one are enough
            time.sleep(PAUSE)
            if cold:
                np.add(sweep, 1, out=sweep)
            else:
                step()
            times[name] += [timed(step, groups[name]) for _ in range(counts[name])]
        turn += 1
    return {name: statistics.median(values) for name, values in times.items()}


def timed(step: Step, n: int) -> float:
    """Seconds of one of `n` steps."""
    start = time.perf_counter()
    for _ in range(n):
        step()
    return (time.perf_counter() - start) / n


def verdicts(work: Work, times: dict[str, float]) -> dict[str, tuple[float, float]]:
    """For each target: how many times faster ironstep was, and how many it must be.

    The C loop writes to arrays that are there: where ironstep was measured in that form as well, it counts.
    """
    out = {}
    for against, wanted in work.targets.items():
        own = times["ironstep"]
        if against == "fastest peer":
            others = [t for name, t in times.items() if not name.startswith(("ironstep", "NumPy", "C loop"))]
        elif against.startswith("fastest "):
            others = [t for name, t in times.items() if name.startswith(against.removeprefix("fastest "))]
        else:
            others = [times[against]] if against in times else []
            if against == "C loop":
                own = times.get("ironstep out=", own)
        if others:
            out[against] = (min(others) / own, wanted)
    return out


def machine(peers: Iterable[str]) -> dict[str, Any]:
    """What was measured on, with the versions of these packages."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    installed = {dist.name: dist.version for dist in metadata.distributions()}
    versions = {name: installed.get(name) for name in peers}
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "threads": ironstep.get_num_threads(),
        "instruction_set": ironstep._core.instruction_sets()[-1],
        "python": platform.python_version(),
        "ironstep": ironstep.__version__,
        "versions": versions,
    }


def draw(rows: list[dict[str, Any]], style: dict[str, tuple[str, str]], title: str, path: Path) -> None:
    """Each work item a row, each contestant a dot: how many times ironstep's time it takes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if any(name in style for name in row["ms"])]
    if not rows:
        return
    fig, ax = plt.subplots(figsize=(11, 1.6 + 0.38 * len(rows)), dpi=130)
    seen = set()
    for y, row in enumerate(rows):
        own = row["ms"]["ironstep"]
        ax.axhline(y, color="#eeeeee", zorder=0)
        for name, ms in row["ms"].items():
            if name in style:
                color, marker = style[name]
                label = None if name in seen else name
                seen.add(name)
                ax.scatter(ms / own, y, color=color, marker=marker, s=45, label=label, zorder=3)
    ax.axvline(1, color="black", lw=1.2)
    ax.set_xscale("log")
    ratios = [ms / row["ms"]["ironstep"] for row in rows for name, ms in row["ms"].items() if name in style]
    low, high = min(0.7, *ratios), max(ratios)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high * 1.3]
    ax.set_xticks(ticks, [f"{t} x" for t in ticks])
    ax.minorticks_off()
    ax.set_xlim(low if low == 0.7 else low * 0.9, high * 1.5)
    ax.set_yticks(range(len(rows)), [f"{row['work']}   {row['ms']['ironstep']:.3g} ms" for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("time of a step, as a multiple of ironstep's (log scale; left of the line is faster than ironstep)")
    ax.set_title(title, loc="left", fontsize=12)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)
    fig.savefig(path, bbox_inches="tight")


def parser(description: str) -> argparse.ArgumentParser:
    """The options of every bench."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", default="", help="work whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for the JSON and the picture")
    parser.add_argument("--seconds", type=float, default=1.5, help="time for each contestant")
    return parser


def measure(works: list[Work], about: dict[str, Any], args: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """Measures and prints the work that is asked for: rows of the table, and how many targets were missed."""
    print(
        f"ironstep {about['ironstep']} on {about['cpu']}, {about['threads']} threads, {about['instruction_set']}; "
        "medians of interleaved steps, in ms\n"
    )
    works = [work for work in works if args.only in work.name]
    width = max([30, *(len(work.name) for work in works)])
    rows, missed = [], 0
    for work in works:
        contestants = work.make()
        times = interleaved(contestants, args.seconds, work.cold)
        del contestants
        row = {"work": work.name, "ms": {name: t * 1e3 for name, t in times.items()}, "targets": {}}
        print(f"{work.name:<{width}} " + "   ".join(f"{name} {t * 1e3:.4g}" for name, t in times.items()), flush=True)
        for against, (got, wanted) in verdicts(work, times).items():
            met = got >= wanted
            missed += not met
            row["targets"][against] = {"got": got, "wanted": wanted}
            print(f"{'':<{width}} {got:6.2f} x {against} (target {wanted:g}: {'met' if met else 'MISSED'})")
        rows.append(row)
    return rows, missed


def report(
    path: Path,
    about: dict[str, Any],
    rows: list[dict[str, Any]],
    missed: int,
    style: dict[str, tuple[str, str]],
    title: str,
) -> None:
    """What was left out, and the JSON and the picture at `path` without its ending."""
    for name, why in MISSING.items():
        print(f"left out: {name} ({why})")
    path.parent.mkdir(parents=True, exist_ok=True)
    table, picture = path.with_suffix(".json"), path.with_suffix(".png")
    table.write_text(json.dumps({"machine": about, "rows": rows, "missing": MISSING}, indent=1))
    draw(rows, style, f"{title} on {about['cpu']}, {about['threads']} threads", picture)
    print(f"\n{missed} targets missed; table in {table}, picture in {picture}")
