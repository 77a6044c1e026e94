"""Trains a small convolutional network in torch, with torch's AdamW and with ironstep's: one import is another one.

The loop is the usual one of torch. What changes from row to row of the table that the script prints:

    from torch.optim import AdamW            ->  from ironstep.torch.optim import AdamW
    (nothing)                                ->  swap(model); swap(loss)
    (a learning rate that stays)             ->  scheduler = Scheduler(opt, lr=warmup_cosine(...))

All rows begin with the same weights and see the same batches; they take turns, seed by seed.

    python examples/bridge.py
    python examples/bridge.py --epochs 2 --seeds 1

What is seen with the defaults: the same accuracy, since it is the same optimiser, and a step that takes a small part of
the time of torch's. How much of an iteration that is depends on the model: the more parameters for its work, the more.

The data are the digits that come with ironstep. Needs `pip install "ironstep[torch]"`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, NamedTuple

import ironstep
from ironstep.data import load_digits
from ironstep.schedules import warmup_cosine

try:
    import torch
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is missing. This example needs: pip install "ironstep[torch]"') from None

from ironstep.torch import Scheduler, swap
from ironstep.torch.optim import AdamW

TRAIN, BATCH, LR = 1200, 64, 0.002


class Way(NamedTuple):
    """A row of the table."""

    optimizer: Any
    swapped: bool = False
    scheduled: bool = False


WAYS = {
    "torch.optim.AdamW": Way(torch.optim.AdamW),
    "ironstep.torch.optim.AdamW": Way(AdamW),
    "  and swap": Way(AdamW, swapped=True),
    "  and Scheduler": Way(AdamW, swapped=True, scheduled=True),
}


class Run(NamedTuple):
    """What one training gave."""

    accuracy: float
    loss: float
    """Of the last epoch, while training."""
    iteration: float
    """Milliseconds, median."""
    step: float
    """Of these, what the step of the optimiser took."""


def network() -> torch.nn.Sequential:
    """From images (N, 1, 8, 8) to logits (N, 10)."""
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(512, 10),
    )


def train(way: Way, data: Any, epochs: int, seed: int) -> Run:
    x, t, x_test, t_test = data
    torch.manual_seed(seed)
    model, loss_function = network(), torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    opt = way.optimizer(model.parameters(), lr=LR)
    if way.swapped:
        swap(model)
        swap(loss_function)
    scheduler = None
    if way.scheduled:
        steps = epochs * -(-len(x) // BATCH)
        scheduler = Scheduler(opt, lr=warmup_cosine(2 * LR, steps=steps, warmup_steps=steps // 10))
    order = torch.Generator().manual_seed(seed)
    iterations, steps_taken, losses = [], [], []
    for _ in range(epochs):
        losses.clear()
        for batch in torch.randperm(len(x), generator=order).split(BATCH):
            begin = time.perf_counter()
            opt.zero_grad()
            loss = loss_function(model(x[batch]), t[batch])
            loss.backward()
            ready = time.perf_counter()
            opt.step()
            steps_taken.append(time.perf_counter() - ready)
            if scheduler:
                scheduler.step()
            iterations.append(time.perf_counter() - begin)
            losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        accuracy = (model(x_test).argmax(1) == t_test).float().mean().item()
    return Run(
        accuracy,
        statistics.mean(losses),
        1e3 * statistics.median(iterations),
        1e3 * statistics.median(steps_taken),
    )


def load(seed: int) -> tuple[torch.Tensor, ...]:
    """Images and labels to train on, and to test on."""
    images, labels = map(torch.from_numpy, load_digits())
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order, None], labels[order]
    return images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:]


def table(results: dict[str, list[Run]]) -> str:
    head = f"{'':<28}{'accuracy':>9}{'loss':>8}{'iteration':>12}{'of it step':>12}{'step, beside torch':>20}"
    lines = [head, "-" * len(head)]
    torchs = statistics.median(run.step for run in next(iter(results.values())))
    for name, runs in results.items():
        step = statistics.median(run.step for run in runs)
        lines.append(
            f"{name:<28}{statistics.mean(run.accuracy for run in runs):>9.1%}"
            f"{statistics.mean(run.loss for run in runs):>8.3f}"
            f"{statistics.median(run.iteration for run in runs):>9.2f} ms{step:>9.3f} ms{torchs / step:>18.1f} x"
        )
    return "\n".join(lines)


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a network in torch, with torch's AdamW and with ironstep's.")
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="how many each time (default: 6)")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="how many seeds, from 0 on (default: 2)")
    options = parser.parse_args(args)
    for name in ("epochs", "seeds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def main(args: list[str] | None = None) -> None:
    options = parse(args)
    parameters = sum(p.numel() for p in network().parameters())
    print(
        f"ironstep {ironstep.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads; a network of "
        f"{parameters:,} parameters,\n{options.epochs} epochs of {TRAIN} images in batches of {BATCH}, "
        f"{options.seeds} seeds\n"
    )
    results: dict[str, list[Run]] = {name: [] for name in WAYS}
    for seed in range(options.seeds):
        data = load(seed)
        for name, way in WAYS.items():
            results[name].append(train(way, data, options.epochs, seed))
    print(table(results))


if __name__ == "__main__":
    main()
