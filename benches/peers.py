"""Optimiser steps beside every installed peer: interleaved, medians, one table, JSON and a picture.

    python benches/peers.py [--only TEXT] [--out FOLDER] [--seconds S]

All contestants of a work item take turns until each has had `--seconds` or 7 of them; the median counts. torch,
DeepSpeed and the C loop work on our arrays, JAX on its own. Nothing else should run meanwhile. What is not installed is
left out and named.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from timing import MISSING, Contestants, M, Step, Work, compiled, machine, measure, optional, parser, report

from ironstep import optim

HYPER = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}


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
    library = compiled("update.c")
    if not library:
        return None
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (p, g, state["exp_avg"][0], state["exp_avg_sq"][0])]
    return lambda: library.update(*pointers, ctypes.c_long(p.size))


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


# -- The run -----------------------------------------------------------------------------------------------------------


def import_time() -> tuple[float, float]:
    """Seconds to start Python with NumPy, and with ironstep: medians of interleaved runs."""
    times: dict[str, list[float]] = {"numpy": [], "ironstep": []}
    for _ in range(15):
        for name, all_times in times.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
            all_times.append(time.perf_counter() - start)
    return statistics.median(times["numpy"]), statistics.median(times["ironstep"])


STYLE = {
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
"""Colour and marker of each contestant that the picture shows."""


def main() -> int:
    args = parser(__doc__.splitlines()[0]).parse_args()
    warnings.simplefilter("ignore")
    # DeepSpeed compiles its kernel when it is first used, with the ninja of this environment.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    logging.disable(logging.WARNING)
    about = machine(("numpy", "torch", "jax", "optax", "deepspeed", "bitsandbytes", "torchao", "timm"))
    rows, missed = measure(WORK, about, args)
    if not args.only:
        numpy_time, own = import_time()
        added = (own - numpy_time) * 1e3
        about["import_ms_over_numpy"] = added
        print(f"{'import':<30} {added:.1f} ms more than NumPy's {numpy_time * 1e3:.0f} (target below 50)")
    report(args.out / "peers", about, rows, missed, STYLE, "Optimiser steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
