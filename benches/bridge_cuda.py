"""The optimisers of `ironstep.torch` on a GPU, beside torch's and beside the speed of a copy.

    python benches/bridge_cuda.py

Times are medians of rounds in which the contestants take turns, of whole `step()` calls, by the clock of the GPU. A
line ends in `ok` or `SLOW` where there is a target; with a target missed the program ends with status 1.
"""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch

from ironstep.torch import optim

M = 1 << 20
ROUNDS = 15

# Bytes per element of one AdamW step in float32: p, m and v are read and written, g is read.
ADAMW_BYTES = 28


def parameters(shapes: list[int]) -> list[torch.Tensor]:
    """Parameters with gradients."""
    out = []
    for n in shapes:
        p = torch.nn.Parameter(torch.randn(n, device="cuda"))
        p.grad = torch.randn(n, device="cuda")
        out.append(p)
    return out


def milliseconds(contestants: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The median time of each, after a warm-up in which kernels are compiled."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for step in contestants.values():
        for _ in range(3):
            step()
    for _ in range(ROUNDS):
        for name, step in contestants.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            step()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: statistics.median(own) for name, own in times.items()}


def foreach_lion(params: list[torch.Tensor]) -> Callable[[], None]:
    """Lion as `torch._foreach` operations: torch has none."""
    moments = [torch.zeros_like(p) for p in params]
    lr, beta1, beta2, decay = 1e-4, 0.9, 0.99, 0.01

    @torch.no_grad()
    def step() -> None:
        grads = [p.grad for p in params]
        update = torch._foreach_lerp(moments, grads, 1 - beta1)
        torch._foreach_sign_(update)
        torch._foreach_mul_(params, 1 - lr * decay)
        torch._foreach_add_(params, update, alpha=-lr)
        torch._foreach_lerp_(moments, grads, 1 - beta2)

    return step


def foreach_lamb(params: list[torch.Tensor]) -> Callable[[], None]:
    """LAMB likewise."""
    first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
    lr, beta1, beta2, eps, decay, t = 1e-3, 0.9, 0.999, 1e-6, 0.01, 0

    @torch.no_grad()
    def step() -> None:
        nonlocal t
        t += 1
        grads = [p.grad for p in params]
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        root = torch._foreach_sqrt(second)
        torch._foreach_div_(root, (1 - beta2**t) ** 0.5)
        torch._foreach_add_(root, eps)
        update = torch._foreach_div(first, 1 - beta1**t)
        torch._foreach_div_(update, root)
        torch._foreach_add_(update, params, alpha=decay)
        ratios = torch._foreach_div(torch._foreach_norm(params), torch._foreach_norm(update))
        torch._foreach_mul_(update, ratios)
        torch._foreach_add_(params, update, alpha=-lr)

    return step


def contest(name: str, shapes: list[int]) -> dict[str, float]:
    """Ours and theirs over parameters of these lengths."""
    foreign: dict[str, Callable[[list[torch.Tensor]], Callable[[], Any]]] = {
        "AdamW": lambda params: torch.optim.AdamW(params, fused=True).step,
        "RMSprop": lambda params: torch.optim.RMSprop(params, foreach=True).step,
        "NAdam": lambda params: torch.optim.NAdam(params, foreach=True).step,
        "Lion": foreach_lion,
        "LAMB": foreach_lamb,
    }
    ours = getattr(optim, name)(parameters(shapes))
    return milliseconds({"ours": ours.step, "theirs": foreign[name](parameters(shapes))})


def main() -> int:
    """Prints the table."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        sys.exit("benches/bridge_cuda.py needs an NVIDIA GPU and a torch built for CUDA; torch sees none here")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    missed = 0

    def line(what: str, ours: float, theirs: float, share: float, target: float) -> None:
        nonlocal missed
        verdict = "ok" if share >= target else "SLOW"
        missed += verdict == "SLOW"
        print(f"{what:44} {ours:9.3f} {theirs:9.3f} {share:6.2f} {target:6.2f}  {verdict}")

    print(f"{'':44} {'ours, ms':>9} {'theirs':>9} {'ratio':>6} {'target':>6}")
    models = {"64 M in one": [64 * M], "64 x 1 M": [M] * 64, "1000 x 16 K": [16384] * 1000}
    for name, peer, target in (
        ("AdamW", "torch fused", 0.95),
        ("Lion", "foreach", 2.0),
        ("LAMB", "foreach", 2.0),
        ("RMSprop", "foreach", 2.0),
        ("NAdam", "foreach", 2.0),
    ):
        for model, shapes in models.items():
            times = contest(name, shapes)
            ratio = times["theirs"] / times["ours"]
            line(f"{name}, {model}, beside {peer}", times["ours"], times["theirs"], ratio, target)
            gc.collect()
            torch.cuda.empty_cache()

    # 256 M parameters: 4 GiB with gradient and state, and as much again for the copy.
    n = 256 * M
    if torch.cuda.mem_get_info()[0] < 2 * 4 * 4 * n:
        print("AdamW, 256 M: left out, for it needs 8 GiB of free memory")
    else:
        source = torch.empty(n, device="cuda")
        target_array = torch.empty_like(source)
        ours = optim.AdamW(parameters([n]))
        times = milliseconds({"ours": ours.step, "copy": lambda: target_array.copy_(source)})
        # A copy moves 8 bytes per element.
        ideal = times["copy"] * ADAMW_BYTES / 8
        line("AdamW, 256 M, beside the bandwidth of a copy", times["ours"], ideal, ideal / times["ours"], 0.8)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
