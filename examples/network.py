"""Trains a small convolutional network with and without batch norm, dropout and label smoothing.

The network is made of ironstep's layers, and trained by its AdamW on images of digits. Five times: with all three, with
each of them left out, and with none. All five begin with the same weights and see the same batches, with the same
learning rate, a high one. The task is made hard on purpose: there are 300 images to train on, a fifth of them with a
wrong label, as labels that people give sometimes are. So there is something to regularise.

All of this is done for several seeds, which choose the images, the wrong labels and the initial weights. At the end the
script prints a table, and draws the loss on the training images, the accuracy on the test images and the confidence
there, side by side, into `demo/network.png`.

    python examples/network.py
    python examples/network.py --wrong-labels 0 --seeds 3

What is seen with the defaults: dropout matters most, because without it the network learns the wrong labels by heart.
With batch norm half of the epochs are enough to get to 80%. Label smoothing changes the accuracy little; it makes the
network less sure of itself, here too little so: the test loss is lower without it.

The data are scikit-learn's `load_digits`: 1797 images of 8 x 8 pixels. Needs `pip install "ironstep[demo]"`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import ironstep
from ironstep import functional, nn
from ironstep.optim import AdamW

try:
    from matplotlib.figure import Figure
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from threadpoolctl import threadpool_limits  # comes with scikit-learn
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is missing. This example needs: pip install "ironstep[demo]"') from None

Array: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.int64]

TRAIN, TEST, BATCH = 300, 500, 30
LEARNING_RATE = 0.01
DROPOUT = 0.5
SMOOTHING = 0.1
GOAL = 0.8
"""The test accuracy whose first epoch is in the table."""


# -- What is on and off ------------------------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """Which of the three are on."""

    batch_norm: bool = True
    dropout: bool = True
    label_smoothing: bool = True


RECIPES = {
    "all three": Recipe(),
    "no batch norm": Recipe(batch_norm=False),
    "no dropout": Recipe(dropout=False),
    "no smoothing": Recipe(label_smoothing=False),
    "none": Recipe(False, False, False),
}


def network(recipe: Recipe, seed: int) -> nn.Sequential:
    """From images (N, 1, 8, 8) to logits (N, 10)."""
    rng = np.random.default_rng(seed)
    he: Any = {"init": "kaiming_normal", "seed": rng}
    layers = (
        nn.Conv2d(1, 8, 3, padding=1, **he),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, **he),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(DROPOUT, seed=2 * seed),
        nn.Linear(16 * 4 * 4, 64, **he),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Dropout(DROPOUT, seed=2 * seed + 1),
        nn.Linear(64, 10, **he),
    )
    left_out: tuple[type[nn.Layer], ...] = ()
    if not recipe.batch_norm:
        left_out += (nn.BatchNorm1d, nn.BatchNorm2d)
    if not recipe.dropout:
        left_out += (nn.Dropout,)
    return nn.Sequential(*(layer for layer in layers if not isinstance(layer, left_out)))


# -- Training ----------------------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Images of shape (images, 1, 8, 8) with values from 0 to 1, and the digits that they are said to show."""

    x_train: Array
    x_test: Array
    y_train: Labels
    y_test: Labels


class Run(NamedTuple):
    """What one training gave, after each epoch."""

    train_loss: list[float]
    """Mean cross-entropy with the labels as they were given, wrong ones included; never smoothed, no dropout."""
    test_loss: list[float]
    accuracy: list[float]
    """On the test images, whose labels are right."""
    confidence: list[float]
    """Mean probability of the digit that the network names, on the test images."""


def load(seed: int, wrong: float) -> Data:
    """A share `wrong` of the training labels is replaced by another digit."""
    x, digits = load_digits(return_X_y=True)
    images = (x / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits, train_size=TRAIN, test_size=TEST, random_state=seed, stratify=digits
    )
    rng = np.random.default_rng(seed)
    which = rng.choice(TRAIN, round(wrong * TRAIN), replace=False)
    y_train[which] = (y_train[which] + rng.integers(1, 10, len(which))) % 10
    return Data(x_train, x_test, y_train, y_test)


def train(recipe: Recipe, data: Data, epochs: int, seed: int) -> Run:
    model = network(recipe, seed)
    opt = AdamW(model.params, lr=LEARNING_RATE)
    smoothing = SMOOTHING if recipe.label_smoothing else 0.0
    rng = np.random.default_rng(seed)
    run = Run([], [], [], [])
    for _ in range(epochs):
        order = rng.permutation(TRAIN)
        for start in range(0, TRAIN, BATCH):
            batch = order[start : start + BATCH]
            logits = model(data.x_train[batch])
            _, grad = functional.cross_entropy(logits, data.y_train[batch], label_smoothing=smoothing, return_grad=True)
            model.backward(grad)
            opt.step(model.grads)
        run.train_loss.append(functional.cross_entropy(model.predict(data.x_train), data.y_train))
        logits = model.predict(data.x_test)
        run.test_loss.append(functional.cross_entropy(logits, data.y_test))
        run.accuracy.append(float(np.mean(logits.argmax(axis=1) == data.y_test)))
        # -log of the probability of the digit that is named, without softmax being written out once more
        surprise = functional.cross_entropy(logits, logits.argmax(axis=1), reduction="none")
        run.confidence.append(float(np.exp(-surprise).mean()))
    return run


# -- The report --------------------------------------------------------------------------------------------------------


def mean(runs: list[Run], what: str) -> NDArray[np.float64]:
    """Over the seeds, for each epoch."""
    return np.mean([getattr(run, what) for run in runs], axis=0)


def table(results: dict[str, list[Run]]) -> str:
    head = (
        f"{'':<13}  {'accuracy':>8}  {'of the seeds':>14}  {'below all three':>15}  {f'epochs to {GOAL:.0%}':>13}  "
        f"{'confidence':>10}  {'test loss':>9}  {'training loss':>13}"
    )
    lines = [head, "-" * len(head)]
    best = [run.accuracy[-1] for run in results["all three"]]
    for name, runs in results.items():
        last = [run.accuracy[-1] for run in runs]
        below = sum(a < b for a, b in zip(last, best, strict=True))
        reached = np.flatnonzero(mean(runs, "accuracy") >= GOAL)
        lines.append(
            f"{name:<13}  {np.mean(last):>8.1%}  {f'{min(last):.1%} to {max(last):.1%}':>14}  "
            f"{'' if name == 'all three' else f'{below} of {len(runs)} seeds':>15}  "
            f"{reached[0] + 1 if len(reached) else 'never':>13}  {mean(runs, 'confidence')[-1]:>10.1%}  "
            f"{mean(runs, 'test_loss')[-1]:>9.3f}  {mean(runs, 'train_loss')[-1]:>13.3f}"
        )
    return "\n".join(lines)


def explanation(seeds: int, wrong: float) -> str:
    return f"""\
accuracy         on {TEST} test images after the last epoch: mean over {seeds} seeds, and the lowest to the highest
below all three  with how many of the seeds the accuracy is below that with all three
epochs to {GOAL:.0%}    the first epoch whose accuracy, mean over the seeds, is at least that
confidence       the probability that the network gives to the digit that it names, mean over the test images. It is
                 too sure of itself where this is above the accuracy, and not sure enough where it is below.
test loss        cross-entropy on the test images
training loss    the same on the training images, with the labels as given, {wrong:.0%} of them wrong: a network that
                 knows all digits, but not which labels are wrong, has {floor(wrong):.2f}. Less is learnt by heart.

Both losses are without smoothing and dropout, so that all rows can be compared. All rows have the same learning rate;
it was chosen by hand, high, for the first."""


def floor(wrong: float) -> float:
    """The cross-entropy of one who knows the right digit and how many labels are wrong, not which."""
    right = 1.0 - wrong
    return sum(p * math.log(n / p) for p, n in ((right, 1), (wrong, 9)) if p > 0)


BLUE, RED, GREY = "#0072B2", "#D55E00", "0.55"
COLUMNS = {"Batch norm": "no batch norm", "Dropout": "no dropout", "Label smoothing": "no smoothing"}
ROWS = {"train_loss": "training loss", "accuracy": "test accuracy", "confidence": "test confidence"}


def draw(results: dict[str, list[Run]], wrong: float, path: Path) -> None:
    """A column for each of the three: with it, without it, and without any."""
    seeds, last = len(results["none"]), len(results["none"][0].accuracy)
    epochs = np.arange(1, last + 1)
    figure = Figure(figsize=(16, 12), dpi=100)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    figure.suptitle(
        f"A small convolutional network on {TRAIN} of scikit-learn's digits, {wrong:.0%} of the labels wrong",
        fontsize=19,
        fontweight="bold",
    )
    top = max(mean(runs, "train_loss").max() for runs in results.values())
    panels = figure.subplots(len(ROWS), len(COLUMNS), sharex=True, sharey="row")
    for column, (part, without) in enumerate(COLUMNS.items()):
        curves = (
            ("all three", BLUE, "-", "with all three"),
            (without, RED, (0, (5, 1.5)), f"without {part.lower()}"),
            ("none", GREY, (0, (1.5, 1)), "with none of the three"),
        )
        for row, (what, title) in enumerate(ROWS.items()):
            panel = panels[row, column]
            for z, (name, colour, dashes, label) in enumerate(reversed(curves)):
                values = np.array([getattr(run, what) for run in results[name]])
                panel.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0, zorder=1)
                panel.plot(epochs, mean(results[name], what), color=colour, linestyle=dashes, lw=2.2, zorder=2 + z)
                panel.plot([], [], color=colour, linestyle=dashes, lw=2.2, label=label)
            panel.set_xlim(0, 1.02 * last)
            panel.set_xticks(range(0, last + 1, -(-last // 6)))
            panel.tick_params(labelsize=13, labelbottom=True, labelleft=True)
            panel.grid(axis="y", color="0.93")
            panel.set_axisbelow(True)
            panel.spines[["top", "right"]].set_visible(False)
            if what == "train_loss":
                panel.set_title(part, fontsize=17, fontweight="bold")
                panel.set_ylim(0, 1.1 * top)
            else:
                panel.set_ylim(0, 1)
                panel.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
            if what == "accuracy":
                handles, labels = panel.get_legend_handles_labels()
                panel.legend(handles[::-1], labels[::-1], fontsize=14, loc="lower right")
            if column == 0:
                panel.set_ylabel(title, fontsize=15)
    if wrong:
        for panel in panels[0]:
            panel.axhline(floor(wrong), color="0.3", lw=1, zorder=1)
        panels[0, -1].text(
            last, floor(wrong) + 0.03, "below: labels learnt by heart", color="0.3", fontsize=13, ha="right"
        )
    of_seeds = "" if seeds == 1 else f"   (lines: mean of {seeds} seeds; bands: from the lowest to the highest)"
    figure.supxlabel(f"epoch{of_seeds}", fontsize=15)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small convolutional network on images of digits, with and without batch norm, dropout and "
        "label smoothing."
    )
    parser.add_argument("--epochs", type=int, default=30, metavar="N", help="passes over the images (default: 30)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many seeds, from 0 on (default: 5)")
    parser.add_argument(
        "--wrong-labels",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="share of the training labels that are wrong (default: 0.2)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="FOLDER", help="where network.png goes (default: demo)"
    )
    options = parser.parse_args(args)
    for name in ("epochs", "seeds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if not 0 <= options.wrong_labels <= 1:
        parser.error(f"--wrong-labels must be from 0 to 1, got {options.wrong_labels}")
    return options


def main(args: list[str] | None = None) -> None:
    options = parse(args)
    model = network(RECIPES["all three"], 0)
    print(
        f"ironstep {ironstep.__version__}, NumPy {np.__version__}; {sum(p.size for p in model.params.values()):,} "
        f"float32 parameters; {TRAIN} training images, {options.wrong_labels:.0%} of them with a wrong label, "
        f"and {TEST} test images;\nbatches of {BATCH}, {options.epochs} epochs of AdamW with lr={LEARNING_RATE:g}; "
        f"dropout {DROPOUT:g}, label smoothing {SMOOTHING:g}\n\n{model}\n"
    )
    results: dict[str, list[Run]] = {name: [] for name in RECIPES}
    # On matrices this small a second BLAS thread gains nothing.
    with threadpool_limits(1, user_api="blas"):
        for seed in range(options.seeds):
            data = load(seed, options.wrong_labels)
            for name, recipe in RECIPES.items():
                results[name].append(train(recipe, data, options.epochs, seed))
            ends = (f"{name} {runs[-1].accuracy[-1]:.1%}" for name, runs in results.items())
            print(f"seed {seed}, test accuracy: {', '.join(ends)}", flush=True)
    print(f"\n{table(results)}\n\n{explanation(options.seeds, options.wrong_labels)}\n")
    path = options.out / "network.png"
    draw(results, options.wrong_labels, path)
    print(f"The curves: {path}")


if __name__ == "__main__":
    main()
