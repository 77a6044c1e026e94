"""Pre-trains a network on five digits, and fine-tunes it on the other five, of which there are very few images.

A convolutional network learns to tell the digits 0 to 4 from 700 images. Some of its layers are then loaded, by name,
into a network for the digits 5 to 9; the others are new. That one has a few images of each digit to learn from. Five
ways to train it are compared:

- from scratch: nothing is loaded;
- last layer only: all but the last layer is loaded and frozen (a linear probe);
- all layers: the same, but nothing is frozen;
- frozen convolutions: only the convolutions are loaded, and frozen; the two dense layers are new;
- unfrozen later: they are frozen for a third of the steps, and then each layer learns less than the one above it
  (gradual unfreezing, and discriminative learning rates).

All of this is done for several seeds, which choose the images and the initial weights, and for several numbers of
images. At the end the script prints a table of the accuracy on test images, and draws it into `demo/finetune.png`.

    python examples/finetune.py
    python examples/finetune.py --images 3 20 --seeds 3

What is seen with the defaults: the upper layers have learnt about 0 to 4 what is of little use for other digits, so a
new last layer alone cannot make up for it. The convolutions can be kept: frozen they are about as good as trained ones,
and the last way is the best one on average, half a point to three points above from scratch, which is less than the
seeds differ. Five digits are little to learn from.

The data are the digits that come with ironstep. Needs `pip install "ironstep[plot]"`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import ironstep
from ironstep import functional, nn, schedules, train
from ironstep.data import Batches, load_digits, split
from ironstep.optim import AdamW

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is missing. This example needs: pip install "ironstep[plot]"') from None

Images: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.int64]

FIRST = 700
"""Images of 0 to 4 to pre-train on."""
TEST = 300
"""Images of 5 to 9 to test on."""
STEPS_BEFORE, BATCH_BEFORE = 300, 32
STEPS, BATCH = 150, 10
LR = 0.003
DECAY = 1.5
"""What the learning rate of a layer is divided by for the one below it."""

DENSE, LAST = 12, 14
"""The numbers of the first dense layer and of the last layer in the network below."""


def network(seed: int) -> nn.Sequential:
    """From images (N, 1, 8, 8) to logits (N, 5)."""
    rng = np.random.default_rng(seed)
    he: Any = {"init": "kaiming_normal", "seed": rng}
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, **he),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, **he),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1, **he),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, **he),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, **he),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 32, **he),
        nn.ReLU(),
        nn.Linear(32, 5, **he),
    )


# -- The ways to fine-tune ---------------------------------------------------------------------------------------------


class Way(NamedTuple):
    """What is loaded, and what learns how fast."""

    loaded: int = 0
    """Layers below this one are loaded."""
    frozen: float = 0.0
    """For what share of the steps they are frozen."""
    decay: float = 1.0
    """What the learning rate of a layer is divided by for the one below it."""


WAYS = {
    "from scratch": Way(),
    "last layer only": Way(LAST, frozen=1.0),
    "all layers": Way(LAST),
    "frozen convolutions": Way(DENSE, frozen=1.0),
    "unfrozen later": Way(DENSE, frozen=1 / 3, decay=DECAY),
}


# -- Training ----------------------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Images of shape (images, 1, 8, 8) with values from 0 to 1, and labels from 0 to 4."""

    x: Images
    labels: Labels


def load(seed: int) -> tuple[Data, Data, Data]:
    """Images of 0 to 4; images of 5 to 9 to choose from; others of 5 to 9 to test on."""
    images, digits = load_digits()
    images, low = images[:, None], digits < 5
    before, _ = split(images[low], digits[low], fractions=(FIRST / low.sum(), 1 - FIRST / low.sum()), seed=seed)
    share = TEST / (~low).sum()
    test, few = split(images[~low], digits[~low] - 5, fractions=(share, 1 - share), seed=seed, stratify=digits[~low])
    return Data(*before), Data(*few), Data(*test)


def choose(data: Data, each: int) -> Data:
    """The first images of each digit."""
    chosen = np.concatenate([np.flatnonzero(data.labels == digit)[:each] for digit in range(5)])
    return Data(data.x[chosen], data.labels[chosen])


def accuracy(model: nn.Layer, data: Data) -> float:
    return float(np.mean(model.predict(data.x).argmax(axis=1) == data.labels))


def learn(model: nn.Sequential, data: Data, batch_size: int, steps: int, seed: int, way: Way) -> None:
    lr = schedules.warmup_cosine(LR, steps=steps, warmup_steps=steps // 10)
    groups = train.layer_groups(model.params, lr, decay=way.decay)
    opt = AdamW(groups)
    grads = train.group_grads(groups, model.grads)
    loaded = [f"{name.split('.')[0]}.*" for name in model[: way.loaded].params]
    unfreeze_at = round(way.frozen * steps)
    if unfreeze_at:
        opt.freeze(loaded)

    def step(x: Images, labels: Labels) -> float:
        if opt.steps == unfreeze_at and way.frozen < 1:
            opt.unfreeze()
        loss, grad = functional.cross_entropy(model(x), labels, return_grad=True)
        model.backward(grad)
        opt.step(grads)
        return loss

    batches = Batches(data.x, data.labels, batch_size=batch_size, seed=seed, drop_last=True)
    train.fit(step, batches, -(-steps // len(batches)), progress=False)


def finetune(way: Way, before: nn.Sequential, data: Data, seed: int) -> nn.Sequential:
    model = network(1000 + seed)
    if way.loaded:
        report = train.load_matching(model, before[: way.loaded].state_dict())
        new = {name for name in model.params if int(name.split(".")[0]) >= way.loaded}
        if set(report.missing) != new or report.unexpected or report.mismatched:
            raise SystemExit(f"all layers below {way.loaded} should have been loaded: {report}")
    learn(model, data, BATCH, STEPS, seed, way)
    return model


# -- The report --------------------------------------------------------------------------------------------------------

Results: TypeAlias = dict[str, dict[int, list[float]]]
"""Test accuracy of each way and number of images, for each seed."""


def table(results: Results, images: list[int]) -> str:
    head = f"{'images of each digit':<20}" + "".join(f"{n:>25}" for n in images)
    lines = [head, "-" * len(head)]
    for name, runs in results.items():
        cells = (f"{np.mean(runs[n]):.1%} ({min(runs[n]):.1%} to {max(runs[n]):.1%})" for n in images)
        lines.append(f"{name:<20}" + "".join(f"{cell:>25}" for cell in cells))
    return "\n".join(lines)


STYLES = {
    "from scratch": ("0.45", (0, (1.5, 1)), "o"),
    "last layer only": ("#009E73", (0, (5, 1.5)), "s"),
    "all layers": ("#D55E00", "-", "^"),
    "frozen convolutions": ("#0072B2", "-", "D"),
    "unfrozen later": ("#CC79A7", (0, (5, 1.5, 1, 1.5)), "v"),
}


def draw(results: Results, images: list[int], seeds: int, path: Path) -> None:
    """A line for each way."""
    figure = Figure(figsize=(11, 7), dpi=100)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    panel = figure.subplots()
    for i, (name, runs) in enumerate(results.items()):
        colour, dashes, marker = STYLES[name]
        # Side by side, so that the bars can be told apart.
        x = np.array(images) * 1.03 ** (i - 2)
        values = np.array([runs[n] for n in images])
        mean = values.mean(axis=1)
        spread = np.abs(np.stack([values.min(axis=1), values.max(axis=1)]) - mean)
        panel.errorbar(
            x, mean, spread, color=colour, linestyle=dashes, marker=marker, ms=8, lw=2, elinewidth=1, label=name
        )
    panel.set_xscale("log")
    panel.set_xticks(images, [str(n) for n in images])
    panel.minorticks_off()
    panel.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    panel.set_xlabel("images of each of the digits 5 to 9 to learn from", fontsize=14)
    panel.set_ylabel("test accuracy", fontsize=14)
    panel.tick_params(labelsize=12)
    panel.grid(axis="y", color="0.93")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=13, loc="outside lower center", ncols=len(results), frameon=False)
    panel.set_title(
        f"Digits 5 to 9, learnt after {FIRST} images of 0 to 4 (mean of {seeds} seeds; bars: lowest to highest)",
        fontsize=14,
        loc="left",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pre-train a network on five digits and fine-tune it on the others.")
    parser.add_argument(
        "--images",
        type=int,
        nargs="+",
        default=[2, 4, 10],
        metavar="N",
        help="how many images of each new digit to learn from (default: 2 4 10)",
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many seeds, from 0 on (default: 5)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="FOLDER", help="where finetune.png goes (default: demo)"
    )
    options = parser.parse_args(args)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    for n in options.images:
        if not 2 <= n <= 100:
            parser.error(f"--images must be from 2 to 100, got {n}")
    return options


def main(args: list[str] | None = None) -> None:
    options = parse(args)
    print(
        f"ironstep {ironstep.__version__}, NumPy {np.__version__}; {network(0)}\n"
        f"before: {FIRST} images of 0 to 4, {STEPS_BEFORE} steps of AdamW, batches of {BATCH_BEFORE}; after: {STEPS} "
        f"steps, batches of {BATCH};\nboth with lr={LR:g}, warmup and cosine; {TEST} test images of 5 to 9\n"
    )
    results: Results = {name: {n: [] for n in options.images} for name in WAYS}
    for seed in range(options.seeds):
        first, few, test = load(seed)
        before = network(seed)
        learn(before, first, BATCH_BEFORE, STEPS_BEFORE, seed, Way())
        for name, way in WAYS.items():
            for n in options.images:
                results[name][n].append(accuracy(finetune(way, before, choose(few, n), seed), test))
        ends = (f"{name} {runs[options.images[0]][-1]:.1%}" for name, runs in results.items())
        print(f"seed {seed}, {options.images[0]} images of each: {', '.join(ends)}", flush=True)
    print(
        f"\nTest accuracy, mean over {options.seeds} seeds (lowest to highest):\n\n{table(results, options.images)}\n"
    )
    path = options.out / "finetune.png"
    draw(results, options.images, options.seeds, path)
    print(f"The picture: {path}")


if __name__ == "__main__":
    main()
