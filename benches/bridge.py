"""The torch bridge beside torch on the CPU: steps, layers, and a whole iteration of a transformer.

    python benches/bridge.py [--only TEXT] [--out FOLDER] [--seconds S]

What is measured: `step()` of an optimiser as a loop calls it, with gradients that are there, each contestant on tensors
of its own; layers forward and backward through autograd, as modules; an iteration with everything, from `zero_grad` to
the step. The contestants take turns as in `peers.py`; medians. torch's default is what one gets without an argument:
on the CPU a loop in Python.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
import torch
from timing import Contestants, M, Step, Work, machine, measure, optional, parser, report
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ironstep import optim as numpy_optim
from ironstep.torch import functional as ours
from ironstep.torch import optim, swap

HYPER: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
FORMS = {"torch": {}, "torch foreach": {"foreach": True}, "torch fused": {"fused": True}}

RESNET = [9408, *[64] * 20, *[36864] * 4, *[128] * 16, *[147456] * 4, *[256] * 24, *[589824] * 2, *[512] * 27]
RESNET += [512000, 1000]
TRANSFORMER = [524288, *[256, 196608, 65536, 256, 262144, 262144] * 16, 256, 524288, 256]
"""100 tensors in the proportions of a small residual network and of a small transformer."""


# -- Optimisers --------------------------------------------------------------------------------------------------------


def params(sizes: list[int], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """With gradients."""
    generator = torch.Generator().manual_seed(0)
    out = [nn.Parameter(torch.randn(n, generator=generator).to(dtype)) for n in sizes]
    for p in out:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return out


def step_of(opt: torch.optim.Optimizer) -> Step:
    return lambda: opt.step()


def adamw(sizes: list[int], *forms: str) -> Callable[[], Contestants]:
    """AdamW over float32 tensors of these sizes."""

    def make() -> Contestants:
        contestants = {"ironstep": step_of(optim.AdamW(params(sizes), **HYPER))}
        for form in forms:
            contestants[form] = step_of(torch.optim.AdamW(params(sizes), **HYPER, **FORMS[form]))
        return contestants

    return make


def beside_numpy(size: int) -> Callable[[], Contestants]:
    """The bridge beside `ironstep.optim`, on arrays of its own."""

    def make() -> Contestants:
        contestants = adamw([size], "torch fused")()
        p, g = (np.random.default_rng(i).standard_normal(size).astype(np.float32) for i in range(2))
        opt = numpy_optim.AdamW(p, **HYPER)
        return contestants | {"ironstep NumPy": lambda: opt.step(g)}

    return make


def other(name: str, size: int = M, **kwargs: Any) -> Callable[[], Contestants]:
    """Any optimiser beside every form that torch, or timm, has of it."""

    def make() -> Contestants:
        own = {"lr": 1e-3} | kwargs
        contestants = {"ironstep": step_of(getattr(optim, name)(params([size]), **own))}
        if peer := getattr(torch.optim, name, None):
            has = signature(peer).parameters
            for form, arguments in FORMS.items():
                if set(arguments) <= set(has):
                    contestants[form] = step_of(peer(params([size]), **own, **arguments))
        elif timm := optional("timm.optim"):
            peer = getattr(timm, {"LAMB": "Lamb", "LARS": "Lars"}.get(name, name))
            contestants["timm"] = step_of(peer(params([size]), **own))
        return contestants

    return make


OTHERS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "Adagrad": {},
    "RMSprop": {},
    "Adadelta": {},
    "Adam": {},
    "AdamW": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "Lion": {},
    "LAMB": {},
    "LARS": {"momentum": 0.9},
}


# -- Layers ------------------------------------------------------------------------------------------------------------


def both(own: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Contestants]:
    """Forward and backward through autograd."""

    def run(function: Callable[..., Tensor]) -> Step:
        leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
        wanted = [x for x in leaves if x.requires_grad]
        dy = torch.randn(function(*leaves).shape)
        return lambda: torch.autograd.grad(function(*leaves), wanted, dy)

    return lambda: {"ironstep": run(own), "torch": run(theirs)}


def layers() -> list[Work]:
    x, w, b = torch.randn(2048, 1024), torch.rand(1024) + 0.5, torch.randn(1024)
    images, c, d = torch.randn(32, 64, 56, 56), torch.rand(64) + 0.5, torch.randn(64)
    logits, labels = torch.randn(2048, 8192), torch.randint(8192, (2048,))
    cases = {
        "layer_norm, 2048 x 1024": both(
            lambda x, w, b: ours.layer_norm(x, 1024, w, b), lambda x, w, b: F.layer_norm(x, (1024,), w, b), x, w, b
        ),
        "rms_norm, 2048 x 1024": both(
            lambda x, w: ours.rms_norm(x, 1024, w), lambda x, w: F.rms_norm(x, (1024,), w), x, w
        ),
        "batch_norm, 32 x 64 x 56 x 56": both(
            lambda x, c, d: ours.batch_norm(x, None, None, c, d, True),
            lambda x, c, d: F.batch_norm(x, None, None, c, d, True),
            images,
            c,
            d,
        ),
        "group_norm, 32 x 64 x 56 x 56": both(
            lambda x, c, d: ours.group_norm(x, 8, c, d), lambda x, c, d: F.group_norm(x, 8, c, d), images, c, d
        ),
        "dropout, 2048 x 1024": both(lambda x: ours.dropout(x, 0.1), lambda x: F.dropout(x, 0.1), x),
        "cross_entropy, 2048 x 8192, smoothed": both(
            lambda x, t: ours.cross_entropy(x, t, label_smoothing=0.1),
            lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1),
            logits,
            labels,
        ),
    }
    return [Work(f"{name}, both ways", make, {}) for name, make in cases.items()]


# -- A transformer -----------------------------------------------------------------------------------------------------

LAYERS, WIDTH, HEADS, VOCABULARY = 4, 256, 4, 8192
BATCH, LENGTH = 16, 128


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and before dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.drop1, self.drop2 = nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, WIDTH)
        x = x + self.drop1(self.out(y))
        return x + self.drop2(self.down(F.gelu(self.up(self.norm2(x)))))


class Transformer(nn.Module):
    """A language model with its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.drop = nn.Dropout(0.1)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.drop(self.tokens(tokens) + self.places.weight)
        logits = self.head(self.norm(self.blocks(x)))
        return self.loss(logits[:, :-1].reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))


def iteration() -> Contestants:
    """From `zero_grad` to the step."""
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))

    def loop(cls: Any, swapped: bool = False, **kwargs: Any) -> Step:
        torch.manual_seed(0)
        model = Transformer()
        opt = cls(model.parameters(), **HYPER, **kwargs)
        if swapped:
            swap(model)

        def step() -> None:
            opt.zero_grad()
            model(tokens).backward()
            opt.step()

        return step

    return {
        "ironstep": loop(optim.AdamW, swapped=True),
        "ironstep, no swap": loop(optim.AdamW),
        "torch fused": loop(torch.optim.AdamW, fused=True),
        "torch": loop(torch.optim.AdamW),
    }


# -- The run -----------------------------------------------------------------------------------------------------------


def work() -> list[Work]:
    small, every = {"torch fused": 2.0, "torch": 10.0}, tuple(FORMS)
    return [
        Work("AdamW, 100 of 64", adamw([64] * 100, *every), small),
        Work("AdamW, 100 like a ResNet", adamw(RESNET, *every), {}),
        Work("AdamW, 100 like a transformer", adamw(TRANSFORMER, *every), {}),
        Work("AdamW, 1000 of 1 K", adamw([1024] * 1000, *every), {"torch fused": 3.0}),
        Work("AdamW, 16 M", beside_numpy(16 * M), {"ironstep NumPy": 0.97}),
        *(Work(f"{name}, 1 M", other(name, **kwargs), {}) for name, kwargs in OTHERS.items()),
        *layers(),
        Work(f"transformer, {BATCH} x {LENGTH}, one iteration", iteration, {"torch fused": 1.15}),
    ]


STYLE = {
    "torch fused": ("#d55e00", "o"),
    "torch foreach": ("#e69f00", "s"),
    "torch": ("#b8860b", "^"),
    "timm": ("#cc79a7", "^"),
    "ironstep NumPy": ("#0072b2", "o"),
    "ironstep, no swap": ("#56b4e9", "v"),
}
"""Colour and marker of each contestant that the picture shows."""


def main() -> int:
    args = parser(__doc__.splitlines()[0]).parse_args()
    warnings.simplefilter("ignore")
    about = machine(("numpy", "torch", "timm")) | {"torch_threads": torch.get_num_threads()}
    rows, missed = measure(work(), about, args)
    report(args.out / "bridge", about, rows, missed, STYLE, "The torch bridge")
    return 0


if __name__ == "__main__":
    sys.exit(main())
