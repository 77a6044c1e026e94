"""Optimiser steps beside every installed peer: interleaved, medians, one table, JSON and a picture.

    python benches/peers.py [--only TEXT] [--out FOLDER] [--seconds S]

All contestants of a work item take turns until each has had `--seconds` or 7 of them; the median counts. torch,
DeepSpeed and the C loop work on our arrays, JAX on its own. Nothing else should run meanwhile. What is not installed is
left out and named.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import ironstep
from ironstep import optim

Step = Callable[[], Any]
Contestants = dict[str, Step]
M = 1 << 20
HYPER = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}


class Work(NamedTuple):
    """Something to measure: contestants by name, and what ironstep must reach beside which of them."""

    name: str
    make: Callable[[], Contestants]
    targets: dict[str, float]
    """Contestant, or 'fastest peer' -> how many times faster than it ironstep must be."""
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


# -- Contestants -------------------------------------------------------------------------------------------------------


def arrays(sizes: list[int], dtype: Any = np.float32, flat: bool = False) -> tuple[list[Any], list[Any]]:
    """Parameters and gradients: separate arrays, or views of one flat buffer each."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(2):
        if flat:
            buffer = rng.standard_normal(sum(sizes), np.float32).astype(dtype)
            out.append(np.split(buffer, np.cumsum(sizes)[:-1]))
        else:
            out.append([rng.standard_normal(n, np.float32).astype(dtype, copy=False) for n in sizes])
    return out[0], out[1]


def ours(cls: type[optim.Optimizer], params: Any, grads: Any, **kwargs: Any) -> tuple[optim.Optimizer, Step]:
    opt = cls(params, **kwargs)
    return opt, lambda: opt.step(grads)


def torch_params(params: list[Any], grads: list[Any]) -> list[Any]:
    """Tensors over the same memory."""
    import torch

    tensors = [torch.from_numpy(p).requires_grad_() for p in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    return tensors


def torch_step(make: Callable[[list[Any]], Any], params: list[Any], grads: list[Any], state: Any = None) -> Step:
    """`make(params).step`, on our state arrays if they are given by torch's names."""
    import torch

    tensors = torch_params(params, grads)
    opt = make(tensors)
    if state is not None:
        for i, tensor in enumerate(tensors):
            step = torch.tensor(1.0)
            opt.state[tensor] = {"step": step} | {k: torch.from_numpy(a[i]) for k, a in state.items()}
    return lambda: opt.step()


def adamw_peers(params: list[Any], grads: list[Any], state: Any, wanted: set[str]) -> Iterator[tuple[str, Step]]:
    torch, deepspeed = optional("torch"), optional("deepspeed.ops.adam")
    if torch:
        for form in ({"fused": True}, {"foreach": True}, {"foreach": False}):
            name = "torch " + ("loop" if form == {"foreach": False} else next(iter(form)))
            if name in wanted:
                yield name, torch_step(lambda p, f=form: torch.optim.AdamW(p, **HYPER, **f), params, grads, state)
    if deepspeed and "DeepSpeed" in wanted:
        try:
            tensors = torch_params(params, grads)
            with quiet():
                opt = deepspeed.DeepSpeedCPUAdam(tensors, **HYPER, adamw_mode=True)
            for i, tensor in enumerate(tensors):
                shared = {k: torch.from_numpy(a[i]) for k, a in state.items()}
                opt.state[tensor] = {"step": 1} | shared
            yield "DeepSpeed", lambda: opt.step()
        except Exception as error:
            MISSING["DeepSpeed"] = f"{type(error).__name__}: {str(error)[:200]}"
    if "optax" in wanted and (jax := optional("jax")) and (optax := optional("optax")):
        yield "optax jit", optax_step(jax, optax, params, grads)
    if "8-bit" in wanted:
        yield from eight_bit(params, grads)
    if "NumPy" in wanted:
        yield "NumPy naive", numpy_naive(params[0], grads[0])
        yield "NumPy out=", numpy_out(params[0], grads[0], params[0].size)
        yield "NumPy out=, in pieces", numpy_out(params[0], grads[0], 1 << 15)
    if "C loop" in wanted and (step := c_loop(params[0], grads[0], state)):
        yield "C loop", step


def optax_step(jax: Any, optax: Any, params: list[Any], grads: list[Any]) -> Step:
    """jit with donated buffers: its own arrays, since JAX must own what it gives away."""
    tx = optax.adamw(HYPER["lr"], *HYPER["betas"], eps=HYPER["eps"], weight_decay=HYPER["weight_decay"])

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(update, donate_argnums=(0, 1))
    held = {"p": [jax.numpy.array(p) for p in params]}
    held["s"], g = tx.init(held["p"]), [jax.numpy.array(x) for x in grads]

    def run() -> None:
        held["p"], held["s"] = step(held["p"], held["s"], g)
        jax.block_until_ready(held["p"])

    return run


def eight_bit(params: list[Any], grads: list[Any]) -> Iterator[tuple[str, Step]]:
    if bnb := optional("bitsandbytes"):
        try:
            step = torch_step(lambda p: bnb.optim.AdamW8bit(p, **HYPER), params, grads)
            with quiet():
                step()
            yield "bitsandbytes 8-bit", step
        except Exception as error:
            MISSING["bitsandbytes"] = f"{type(error).__name__}: {str(error)[:200]}"
    if ao := optional("torchao.optim"):
        try:
            step = torch_step(lambda p: ao.AdamW8bit(p, **HYPER), params, grads)
            with quiet():
                step()
            yield "torchao 8-bit", step
        except Exception as error:
            MISSING["torchao"] = f"{type(error).__name__}: {str(error)[:200]}"


def numpy_naive(p: Any, g: Any) -> Step:
    """As one writes it from the paper."""
    m, v, t = np.zeros_like(p), np.zeros_like(p), [0]
    lr, (b1, b2), eps, wd = HYPER["lr"], HYPER["betas"], HYPER["eps"], HYPER["weight_decay"]

    def step() -> None:
        nonlocal p, m, v
        t[0] += 1
        p *= 1 - lr * wd
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1 ** t[0]), v / (1 - b2 ** t[0])
        p -= lr * m_hat / (np.sqrt(v_hat) + eps)

    return step


def numpy_out(p: Any, g: Any, size: int) -> Step:
    """With `out=` everywhere and two scratch arrays; over the whole arrays, or in pieces that stay in the cache."""
    m, v, t = np.zeros_like(p), np.zeros_like(p), [0]
    lr, (b1, b2), eps, wd = HYPER["lr"], HYPER["betas"], HYPER["eps"], HYPER["weight_decay"]
    a, b = np.empty(size, p.dtype), np.empty(size, p.dtype)

    def step() -> None:
        t[0] += 1
        c1, root2 = 1 - b1 ** t[0], math.sqrt(1 - b2 ** t[0])
        for i in range(0, p.size, size):
            P, G, m_, v_ = p[i : i + size], g[i : i + size], m[i : i + size], v[i : i + size]  # noqa: N806
            x, y = a[: P.size], b[: P.size]
            np.multiply(P, 1 - lr * wd, out=P)
            np.multiply(m_, b1, out=m_)
            np.multiply(G, 1 - b1, out=x)
            np.add(m_, x, out=m_)
            np.multiply(v_, b2, out=v_)
            np.multiply(G, G, out=x)
            np.multiply(x, 1 - b2, out=x)
            np.add(v_, x, out=v_)
            np.sqrt(v_, out=x)
            np.multiply(x, 1 / root2, out=x)
            np.add(x, eps, out=x)
            np.divide(m_, x, out=y)
            np.multiply(y, lr / c1, out=y)
            np.subtract(P, y, out=P)

    return step


def c_loop(p: Any, g: Any, state: Any) -> Step | None:
    """`update.c` over the same arrays."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        MISSING["C loop"] = "no C compiler"
        return None
    folder = tempfile.mkdtemp()
    library = Path(folder) / "update.so"
    flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, Path(__file__).with_name("update.c")], check=True)
    update = ctypes.CDLL(str(library)).update
    shutil.rmtree(folder)
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (p, g, state["exp_avg"][0], state["exp_avg_sq"][0])]
    return lambda: update(*pointers, ctypes.c_long(p.size))


class quiet:  # noqa: N801 (used as a function)
    """No output of libraries that print while they compile."""

    def __enter__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = [os.dup(1), os.dup(2)]
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.close(null)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, target)
            os.close(saved)


# -- Work --------------------------------------------------------------------------------------------------------------


def adamw(sizes: list[int], *wanted: str, flat: bool = False) -> Callable[[], Contestants]:
    """AdamW over float32 arrays of these sizes."""

    def make() -> Contestants:
        params, grads = arrays(sizes, flat=flat)
        opt, step = ours(optim.AdamW, params, grads, **HYPER)
        step()
        state = opt.state
        return {"ironstep": step, **dict(adamw_peers(params, grads, state, set(wanted)))}

    return make


def separate_and_flat(n: int, size: int) -> Contestants:
    both = {name: adamw([size] * n, flat=flat)()["ironstep"] for name, flat in (("flat", True), ("separate", False))}
    return {"ironstep": both["flat"], "ironstep separate": both["separate"]}


def tiny() -> Contestants:
    p, g = {"layer": {"w": np.ones(64, np.float32)}}, {"layer": {"w": np.ones(64, np.float32)}}
    return {"ironstep": ours(optim.AdamW, p, g, **HYPER)[1]}


def other(cls: type[optim.Optimizer], *peers: tuple[str, str, dict[str, Any]]) -> Callable[[], Contestants]:
    """Another optimiser over 16 M elements beside every form that a peer has of it."""

    def make() -> Contestants:
        params, grads = arrays([16 * M])
        contestants = {"ironstep": ours(cls, params, grads, lr=1e-3)[1]}
        for package, name, kwargs in peers:
            module = optional(package)
            if module is None:
                continue
            label = f"{package.split('.')[0]} {'foreach' if kwargs.get('foreach') else 'loop'}"

            def build(p: list[Any], module: Any = module, name: str = name, kwargs: Any = kwargs) -> Any:
                return getattr(module, name)(p, lr=1e-3, **kwargs)

            contestants[label] = torch_step(build, params, grads)
        return contestants

    return make


def both_forms(name: str) -> list[tuple[str, str, dict[str, Any]]]:
    return [("torch.optim", name, {"foreach": False}), ("torch.optim", name, {"foreach": True})]


def clip_and_average() -> Contestants:
    params, grads = arrays([16 * M])
    contestants = {"ironstep": ours(optim.AdamW, params, grads, **HYPER, max_norm=1.0, ema_decay=0.999)[1]}
    if torch := optional("torch"):
        tensors = torch_params(params, grads)
        opt = torch.optim.AdamW(tensors, **HYPER, fused=True)
        average = [torch.clone(t).detach() for t in tensors]

        def three_calls() -> None:
            torch.nn.utils.clip_grad_norm_(tensors, 1.0)
            opt.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, tensors, 0.001)

        contestants["torch, three calls"] = three_calls
    return contestants


def low_precision() -> Contestants:
    contestants = {}
    for name, dtype in (("ironstep", ml_dtypes.bfloat16), ("ironstep float32", np.float32)):
        params, grads = arrays([16 * M], dtype)
        contestants[name] = ours(optim.AdamW, params, grads, **HYPER)[1]
    return contestants


ALL = ("torch fused", "DeepSpeed", "optax", "C loop")
WORK = [
    Work("AdamW, 64 M", adamw([64 * M], *ALL), {"fastest peer": 0.97, "C loop": 0.9}),
    Work(
        "AdamW, 16 M",
        adamw([16 * M], *ALL, "torch foreach", "torch loop", "8-bit", "NumPy"),
        {"fastest peer": 1.05, "C loop": 0.9, "NumPy naive": 5.0, "NumPy out=": 2.5},
    ),
    Work("AdamW, 1 M", adamw([M], *ALL), {"fastest peer": 1.3}),
    Work("AdamW, 64 K", adamw([64 << 10], *ALL), {"fastest peer": 1.3}),
    Work(
        "AdamW, 1000 of 1 K, warm",
        adamw([1024] * 1000, "torch fused", "DeepSpeed", "optax", "torch foreach"),
        {"torch fused": 10.0, "DeepSpeed": 8.0},
    ),
    Work(
        "AdamW, 1000 of 1 K, cold",
        adamw([1024] * 1000, "torch fused", "DeepSpeed", "torch foreach"),
        {"torch fused": 6.0, "DeepSpeed": 4.5},
        cold=True,
    ),
    Work(
        "AdamW, 8000 of 256",
        adamw([256] * 8000, "torch fused", "DeepSpeed", "torch foreach"),
        {"torch fused": 15.0, "DeepSpeed": 10.0},
    ),
    Work(
        "AdamW, 8000 of 256, views",
        adamw([256] * 8000, "torch fused", "DeepSpeed", flat=True),
        {"torch fused": 15.0, "DeepSpeed": 10.0},
    ),
    Work("views beside separate", lambda: separate_and_flat(8000, 256), {"ironstep separate": 1.0}),
    Work("AdamW, 100 of 64", adamw([64] * 100, "torch fused", "DeepSpeed", "torch foreach"), {"torch fused": 10.0}),
    Work("AdamW, one of 64 in a dict", tiny, {}),
    Work("RMSprop, 16 M", other(optim.RMSprop, *both_forms("RMSprop")), {"fastest peer": 5.0}),
    Work("NAdam, 16 M", other(optim.NAdam, *both_forms("NAdam")), {"fastest peer": 5.0}),
    Work("RAdam, 16 M", other(optim.RAdam, *both_forms("RAdam")), {"fastest peer": 5.0}),
    Work("Adadelta, 16 M", other(optim.Adadelta, *both_forms("Adadelta")), {"fastest peer": 5.0}),
    Work("Adamax, 16 M", other(optim.Adamax, *both_forms("Adamax")), {"fastest peer": 5.0}),
    Work(
        "Lion, 16 M",
        other(optim.Lion, ("timm.optim", "Lion", {"foreach": False}), ("timm.optim", "Lion", {"foreach": True})),
        {"fastest peer": 5.0},
    ),
    Work("LAMB, 16 M", other(optim.LAMB, ("timm.optim", "Lamb", {})), {"fastest peer": 5.0}),
    Work("SGD momentum, 16 M", lambda: momentum(), {}),
    Work("clip + AdamW + average, 16 M", clip_and_average, {"torch, three calls": 1.5}),
    Work("AdamW, bfloat16, 16 M", low_precision, {"ironstep float32": 1.15}),
]


def momentum() -> Contestants:
    """Where the fastest peer is as fast: nothing but memory counts."""
    params, grads = arrays([16 * M])
    contestants = {"ironstep": ours(optim.SGD, params, grads, lr=1e-3, momentum=0.9)[1]}
    if torch := optional("torch"):

        def make(p: list[Any]) -> Any:
            return torch.optim.SGD(p, lr=1e-3, momentum=0.9, fused=True)

        contestants["torch fused"] = torch_step(make, params, grads)
    return contestants


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
    """For each target: how many times faster ironstep was, and how many it must be."""
    out = {}
    for against, wanted in work.targets.items():
        if against == "fastest peer":
            peers = [t for name, t in times.items() if not name.startswith(("ironstep", "NumPy", "C loop"))]
            if not peers:
                continue
            other = min(peers)
        elif against in times:
            other = times[against]
        else:
            continue
        out[against] = (other / times["ironstep"], wanted)
    return out


def import_time() -> tuple[float, float]:
    """Seconds to start Python with NumPy, and with ironstep: medians of interleaved runs."""
    times: dict[str, list[float]] = {"numpy": [], "ironstep": []}
    for _ in range(15):
        for name, all_times in times.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
            all_times.append(time.perf_counter() - start)
    return statistics.median(times["numpy"]), statistics.median(times["ironstep"])


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    installed = {dist.name: dist.version for dist in metadata.distributions()}
    peers = ("numpy", "torch", "jax", "optax", "deepspeed", "bitsandbytes", "torchao", "timm")
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


def draw(rows: list[dict[str, Any]], about: dict[str, Any], path: Path) -> None:
    """Each work item a row, each contestant a dot: how many times ironstep's time it takes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {
        "torch fused": ("#d55e00", "o"),
        "torch foreach": ("#e69f00", "s"),
        "torch loop": ("#b8860b", "^"),
        "torch, three calls": ("#d55e00", "D"),
        "DeepSpeed": ("#0072b2", "o"),
        "optax jit": ("#009e73", "o"),
        "timm loop": ("#cc79a7", "^"),
        "timm foreach": ("#cc79a7", "s"),
        "NumPy naive": ("#555555", "x"),
        "NumPy out=": ("#555555", "+"),
        "NumPy out=, in pieces": ("#555555", "1"),
        "bitsandbytes 8-bit": ("#56b4e9", "v"),
        "torchao 8-bit": ("#56b4e9", "P"),
    }
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
    ticks = [1, 2, 5, 10, 20, 50, 100]
    high = max(ms / row["ms"]["ironstep"] for row in rows for name, ms in row["ms"].items() if name in style)
    ticks = [t for t in ticks if t <= high * 1.3]
    ax.set_xticks(ticks, [f"{t} x" for t in ticks])
    ax.minorticks_off()
    ax.set_xlim(0.7, high * 1.5)
    ax.set_yticks(range(len(rows)), [f"{row['work']}   {row['ms']['ironstep']:.3g} ms" for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("time of a step, as a multiple of ironstep's (log scale; left of the line is faster than ironstep)")
    ax.set_title(f"Optimiser steps on {about['cpu']}, {about['threads']} threads", loc="left", fontsize=12)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)
    fig.savefig(path, bbox_inches="tight")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="work whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for the JSON and the picture")
    parser.add_argument("--seconds", type=float, default=1.5, help="time for each contestant")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    # DeepSpeed compiles its kernel when it is first used, with the ninja of this environment.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    logging.disable(logging.WARNING)
    about = machine()
    print(
        f"ironstep {about['ironstep']} on {about['cpu']}, {about['threads']} threads, {about['instruction_set']}; "
        "medians of interleaved steps, in ms\n"
    )
    rows, missed = [], 0
    for work in WORK:
        if args.only not in work.name:
            continue
        contestants = work.make()
        times = interleaved(contestants, args.seconds, work.cold)
        del contestants
        row = {"work": work.name, "ms": {name: t * 1e3 for name, t in times.items()}, "targets": {}}
        print(f"{work.name:<30} " + "   ".join(f"{name} {t * 1e3:.4g}" for name, t in times.items()))
        for against, (got, wanted) in verdicts(work, times).items():
            met = got >= wanted
            missed += not met
            row["targets"][against] = {"got": got, "wanted": wanted}
            print(f"{'':<30} {got:6.2f} x {against} (target {wanted:g}: {'met' if met else 'MISSED'})")
        rows.append(row)
    if not args.only:
        numpy_time, own = import_time()
        added = (own - numpy_time) * 1e3
        about["import_ms_over_numpy"] = added
        print(f"{'import':<30} {added:.1f} ms more than NumPy's {numpy_time * 1e3:.0f} (target below 50)")
    for name, why in MISSING.items():
        print(f"left out: {name} ({why})")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "peers.json").write_text(json.dumps({"machine": about, "rows": rows, "missing": MISSING}, indent=1))
    draw(rows, about, args.out / "peers.png")
    print(f"\n{missed} targets missed; table in {args.out / 'peers.json'}, picture in {args.out / 'peers.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
