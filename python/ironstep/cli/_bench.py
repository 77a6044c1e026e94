"""`bench`: steps and layers beside NumPy, torch and JAX."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from .. import __version__, _core, get_num_threads
from ._common import Array, CommandError, many

Contestants: TypeAlias = dict[str, Callable[[], Any]]
PAUSE = 0.03
"""Seconds before a turn: the threads of OpenMP spin for a while after a call and would take a core from the next."""
M = 1 << 20


def bench(options: argparse.Namespace) -> None:
    """The command."""
    rows = {name: make for name, make in works().items() if options.only.lower() in name.lower()}
    if not rows:
        raise CommandError(f"--only must be part of one of these names: {'; '.join(works())}; got {options.only!r}")
    peers = {name: optional(name) for name in ("torch", "optax", "jax")}
    there = ", ".join(f"{name} {module.__version__}" for name, module in peers.items() if module is not None)
    print(
        f"ironstep {__version__} with {many(get_num_threads(), 'thread')} ({_core.instruction_sets()[-1]}) beside "
        f"NumPy {np.__version__}{', ' if there else ''}{there}; milliseconds, medians of contestants that take turns\n"
    )
    missing = [name for name, module in peers.items() if module is None]
    columns = ("ironstep", "NumPy", "torch", "JAX")
    width = max(map(len, rows))
    head = f"{'':<{width}}  {''.join(f'{name:>10}' for name in columns)}   beside the fastest"
    print(f"{head}\n{'-' * len(head)}")
    for name, make in rows.items():
        times = {who: t * 1e3 for who, t in _medians(make(peers), options.seconds).items()}
        best = min((t, who) for who, t in times.items() if who != "ironstep")
        cells = "".join(f"{times[who]:>10.3g}" if who in times else f"{'-':>10}" for who in columns)
        print(f"{name:<{width}}  {cells}   {best[0] / times['ironstep']:.2g} x {best[1]}", flush=True)
    print("\n'2 x torch': ironstep takes half the time of torch, the fastest of the others.")
    if missing:
        print(f"not installed: {', '.join(missing)}")


def optional(name: str) -> Any:
    import warnings
    from importlib import import_module

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    except Exception:  # a broken installation must not end the bench
        return None


def _medians(contestants: Contestants, seconds: float) -> dict[str, float]:
    """Seconds of a call of each: turns of some calls, short ones timed in groups, until each has had its time."""
    import statistics

    counts, times = {}, {}
    for name, call in contestants.items():
        call()
        counts[name] = max(1, round(1e-3 / _timed(call, 1)))
        times[name] = [_timed(call, counts[name])]
    end = time.perf_counter() + seconds * len(contestants)
    while time.perf_counter() < end or len(min(times.values(), key=len)) < 3:
        for name, call in contestants.items():
            time.sleep(PAUSE)
            call()
            times[name] += [_timed(call, counts[name]) for _ in range(5)]
    return {name: statistics.median(values) for name, values in times.items()}


def _timed(call: Callable[[], Any], n: int) -> float:
    start = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - start) / n


def works() -> dict[str, Callable[[Mapping[str, Any]], Contestants]]:
    return {
        "SGD with momentum, 1 M numbers": lambda peers: sgd([M], peers),
        "AdamW, 1 M numbers": lambda peers: adamw([M], peers),
        "AdamW, 16 M numbers": lambda peers: adamw([16 * M], peers),
        "AdamW, 100 arrays of 1024": lambda peers: adamw([1024] * 100, peers),
        "layer norm 4096 x 1024, both ways": _layer_norm,
        "dropout of 4 M numbers": _dropout,
    }


def _arrays(sizes: Sequence[int]) -> tuple[list[Array], list[Array]]:
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(n, np.float32) for n in sizes] for _ in range(2))
    return params, grads


def _torch_step(torch: Any, params: list[Array], grads: list[Array], make: Callable[[Any], Any]) -> Callable[[], Any]:
    tensors = [torch.from_numpy(p.copy()).requires_grad_() for p in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad.copy())
    opt = make(tensors)
    return lambda: opt.step()


def _optax_step(peers: Mapping[str, Any], params: list[Array], grads: list[Array], tx: Any) -> Callable[[], Any]:
    """Compiled, with its arrays given back to it."""
    jax, optax = peers["jax"], peers["optax"]

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(update, donate_argnums=(0, 1))
    held = [[jax.numpy.array(p) for p in params]]
    held.append(tx.init(held[0]))
    own = [jax.numpy.array(g) for g in grads]

    def step() -> None:
        held[:] = run(*held, own)
        jax.block_until_ready(held[0])

    return step


def sgd(sizes: list[int], peers: Mapping[str, Any]) -> Contestants:
    from ..optim import SGD

    params, grads = _arrays(sizes)
    opt = SGD([p.copy() for p in params], lr=1e-4, momentum=0.9)
    own, buffers = [p.copy() for p in params], [np.zeros_like(p) for p in params]

    def naive() -> None:
        for p, g, b in zip(own, grads, buffers, strict=True):
            b *= 0.9
            b += g
            p -= 1e-4 * b

    out: Contestants = {"ironstep": lambda: opt.step(grads), "NumPy": naive}
    if torch := peers["torch"]:
        make = lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9, fused=True)  # noqa: E731
        out["torch"] = _torch_step(torch, params, grads, make)
    if peers["jax"] and peers["optax"]:
        out["JAX"] = _optax_step(peers, params, grads, peers["optax"].sgd(1e-4, 0.9))
    return out


def adamw(sizes: list[int], peers: Mapping[str, Any]) -> Contestants:
    from ..optim import AdamW

    params, grads = _arrays(sizes)
    opt = AdamW([p.copy() for p in params], lr=1e-4, weight_decay=0.01)
    own, steps = [p.copy() for p in params], [0]
    first, second = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]

    def naive() -> None:
        steps[0] += 1
        c1, c2 = 1 - 0.9 ** steps[0], 1 - 0.999 ** steps[0]
        for p, g, m, v in zip(own, grads, first, second, strict=True):
            m *= 0.9
            m += 0.1 * g
            v *= 0.999
            v += 0.001 * (g * g)
            p *= 1 - 1e-4 * 0.01
            p -= (1e-4 / c1) * m / (np.sqrt(v / c2) + 1e-8)

    out: Contestants = {"ironstep": lambda: opt.step(grads), "NumPy": naive}
    if torch := peers["torch"]:
        make = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.01, fused=True)  # noqa: E731
        out["torch"] = _torch_step(torch, params, grads, make)
    if peers["jax"] and peers["optax"]:
        out["JAX"] = _optax_step(peers, params, grads, peers["optax"].adamw(1e-4, weight_decay=0.01))
    return out


def _layer_norm(peers: Mapping[str, Any]) -> Contestants:
    from .. import functional

    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 4096, 1024), np.float32)
    weight, bias = np.ones(1024, np.float32), np.zeros(1024, np.float32)

    def ours() -> None:
        _, saved = functional.layer_norm(x, (1024,), weight, bias, save=True)
        functional.layer_norm_backward(dy, saved)

    def naive() -> None:
        center = x - x.mean(1, keepdims=True)
        rstd = 1 / np.sqrt((center * center).mean(1, keepdims=True) + 1e-5)
        normal = center * rstd
        _ = normal * weight + bias
        g = dy * weight
        _ = rstd * (g - g.mean(1, keepdims=True) - normal * (g * normal).mean(1, keepdims=True))
        _ = (dy * normal).sum(0), dy.sum(0)

    out: Contestants = {"ironstep": ours, "NumPy": naive}
    if torch := peers["torch"]:
        t, w, b = (torch.from_numpy(array.copy()).requires_grad_() for array in (x, weight, bias))
        grad = torch.from_numpy(dy.copy())

        def with_torch() -> None:
            y = torch.nn.functional.layer_norm(t, (1024,), w, b)
            torch.autograd.grad(y, (t, w, b), grad)

        out["torch"] = with_torch
    if jax := peers["jax"]:
        jnp = jax.numpy

        def norm(x: Any, weight: Any, bias: Any) -> Any:
            center = x - x.mean(1, keepdims=True)
            return center * jax.lax.rsqrt((center * center).mean(1, keepdims=True) + 1e-5) * weight + bias

        def both(x: Any, weight: Any, bias: Any, dy: Any) -> Any:
            y, back = jax.vjp(norm, x, weight, bias)
            return y, back(dy)

        run, arguments = jax.jit(both), [jnp.array(a) for a in (x, weight, bias, dy)]
        out["JAX"] = lambda: jax.block_until_ready(run(*arguments))
    return out


def _dropout(peers: Mapping[str, Any]) -> Contestants:
    from .. import functional

    rng = np.random.default_rng(0)
    x, streams = rng.standard_normal(4 * M, np.float32), iter(range(1 << 62))

    def naive() -> None:
        _ = np.where(rng.random(x.shape, np.float32) < 0.5, np.float32(0), x * np.float32(2))

    out: Contestants = {"ironstep": lambda: functional.dropout(x, 0.5, seed=0, stream=next(streams)), "NumPy": naive}
    if torch := peers["torch"]:
        tensor = torch.from_numpy(x.copy())
        out["torch"] = lambda: torch.nn.functional.dropout(tensor, 0.5)
    if jax := peers["jax"]:
        jnp, random = jax.numpy, jax.random
        run = jax.jit(lambda x, key: jnp.where(random.bernoulli(key, 0.5, x.shape), x * 2, 0))
        array, keys = jnp.array(x), [random.key(0)]

        def with_jax() -> None:
            keys[0], key = random.split(keys[0])
            jax.block_until_ready(run(array, key))

        out["JAX"] = with_jax
    return out
