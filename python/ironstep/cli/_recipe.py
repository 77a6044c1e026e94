"""The demo: a small convolutional network learns to read digits, with the whole recipe, and a report says how well.

`python -m ironstep demo`. The first half is what a user would write; the second half is the report.

The data are cut into three parts. The network learns from the first, early stopping goes by the second, and the third
is looked at once, when training is over. Everything that was chosen by hand (`RECIPE`) was chosen with seeds from 100
on, and none of it with the seeds of the demo, which begin at 0.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import html
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__, functional, nn
from ..data import Batches, load_digits, split
from ..optim import AdamW
from ..schedules import Schedule, warmup_cosine
from ..train import EarlyStopping, History, LearningRateMonitor, Run, fit, save_state
from ._common import Array, CommandError
from ._info import facts, versions


class Recipe(NamedTuple):
    """What was chosen."""

    parts: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of the images for training, validation and test."""
    batch_size: int = 32
    epochs: int = 20
    lr: float = 1e-2
    """The highest learning rate."""
    warmup_epochs: int = 3
    weight_decay: float = 0.2
    dropout: float = 0.3
    label_smoothing: float = 0.1
    patience: int = 8
    seeds: int = 3


RECIPE = Recipe()
GOAL = 0.985
"""Of the test images are to be read rightly."""


# -- Training ----------------------------------------------------------------------------------------------------------


def network(seed: int) -> nn.Sequential:
    """From images (N, 1, 8, 8) to logits (N, 10)."""
    rng = np.random.default_rng(seed)
    he: Any = {"init": "kaiming_normal", "seed": rng}
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, **he),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, **he),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(RECIPE.dropout, seed=rng),
        nn.Linear(32 * 4 * 4, 64, **he),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Dropout(RECIPE.dropout, seed=rng),
        nn.Linear(64, 10, **he),
    )


class Result(NamedTuple):
    """What one seed gave."""

    seed: int
    model: nn.Sequential
    scaling: dict[str, Array]
    """Mean and standard deviation of all pixels of the training images."""
    lr: Schedule
    steps_per_epoch: int
    history: History
    best_epoch: int
    images: Array
    """The test images, from 0 to 1."""
    labels: Array
    """The digits that they show."""
    probabilities: Array
    """Of each digit for each test image."""
    loss: float
    """Mean cross-entropy on the test images."""
    sizes: tuple[int, ...]
    """Images for training, validation and test."""
    seconds: float

    @property
    def read(self) -> Array:
        """The digits that the network named."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.read == self.labels))


def train(seed: int, epochs: int, progress: bool | None) -> Result:
    """One training, from the split of the data to the test."""
    started = time.perf_counter()
    images, labels = load_digits()
    parts = split(images, labels, fractions=RECIPE.parts, seed=seed, stratify=labels)
    mean, std = parts[0][0].mean(), parts[0][0].std()
    (x, t), (x_validation, t_validation), (x_test, t_test) = ((((a - mean) / std)[:, None], b) for a, b in parts)

    model = network(seed)
    batches = Batches(x, t, batch_size=RECIPE.batch_size, seed=seed, drop_last=True)
    epoch = len(batches)
    warmup = min(RECIPE.warmup_epochs, epochs - 1) * epoch or epoch // 2
    lr = warmup_cosine(RECIPE.lr, steps=epochs * epoch, warmup_steps=warmup)
    opt = AdamW(
        model.params,
        lr=lr,
        weight_decay=RECIPE.weight_decay,
        weight_decay_mask=lambda p: p.ndim > 1,  # weights, but no biases and no scales of batch norm
    )

    def step(x: Array, t: Array) -> float:
        loss, grad = functional.cross_entropy(model(x), t, label_smoothing=RECIPE.label_smoothing, return_grad=True)
        model.backward(grad)
        opt.step(model.grads)
        return float(loss)

    def measure(x: Array, t: Array, prefix: str) -> dict[str, float]:
        """Without dropout and smoothing, so that both parts can be compared."""
        logits = model.predict(x)
        return {
            f"{prefix}_loss": float(functional.cross_entropy(logits, t)),
            f"{prefix}_accuracy": float(np.mean(logits.argmax(1) == t)),
        }

    def measure_train(run: Run) -> None:
        run.log(measure(x, t, "train"))

    stopping = EarlyStopping("val_loss", patience=RECIPE.patience, restore=model)
    history = fit(
        step,
        batches,
        epochs,
        callbacks=[LearningRateMonitor(opt), measure_train, stopping],
        validate=lambda: measure(x_validation, t_validation, "val"),
        progress=progress,
    )

    logits = model.predict(x_test)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Result(
        seed,
        model,
        {"mean": np.array(mean), "std": np.array(std)},
        lr,
        epoch,
        history,
        stopping.best_epoch,
        parts[2][0],
        t_test,
        weights / weights.sum(axis=1, keepdims=True),
        float(functional.cross_entropy(logits, t_test)),
        tuple(len(part[0]) for part in parts),
        time.perf_counter() - started,
    )


def demo(options: argparse.Namespace) -> None:
    """The command: trains with each seed, prints and writes the report.

    Raises:
        CommandError: The goal was missed, with all seeds and epochs of the recipe. The report is written.
    """
    started = time.perf_counter()
    seeds: int = options.seeds or RECIPE.seeds
    epochs: int = options.epochs or RECIPE.epochs
    progress = False if options.no_progress else None
    out: Path = options.out
    model = network(0)
    parameters = sum(p.size for p in model.params.values())
    print(f"ironstep {__version__}: a convolutional network of {parameters:,} parameters learns to read digits")
    results = []
    with one_blas_thread() as blas:
        for seed in range(seeds):
            print(f"training with seed {seed}", flush=True)
            results.append(train(seed, epochs, progress))
    seconds = time.perf_counter() - started
    report = Report(results, epochs, seconds, blas)
    print("", *map(line, results), "", report.verdict, f"{seconds:.1f} s in all", sep="\n")

    out.mkdir(parents=True, exist_ok=True)
    write_history(results, out / "history.csv")
    save_state(out / "model.safetensors", model=results[0].model, scaling=results[0].scaling)
    written = ["report.html", "history.csv", "model.safetensors"]
    try:
        from matplotlib.figure import Figure  # noqa: F401
    except ModuleNotFoundError:
        pictures: dict[str, bytes] = {}
        print('no pictures: they need matplotlib: pip install "ironstep[plot]"')
    else:
        pictures = {name: _png(draw) for name, draw in report.pictures().items()}
        (out / "report.png").write_bytes(_png(report.draw_all))
        written.insert(1, "report.png")
    (out / "report.html").write_text(page(report, pictures), encoding="utf-8")
    print(f"in {out}: {', '.join(written)}")
    if not report.met and (seeds, epochs) == (RECIPE.seeds, RECIPE.epochs):
        raise CommandError(report.verdict)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[str]:
    """On matrices this small a second thread of BLAS gains nothing. Gives a word for the report."""
    from importlib import import_module

    try:
        pools = import_module("threadpoolctl")
    except ModuleNotFoundError:
        yield "as many as NumPy's BLAS chose"
    else:
        with pools.threadpool_limits(1, user_api="blas"):
            yield "1"


# -- The report --------------------------------------------------------------------------------------------------------


def line(result: Result) -> str:
    """What the terminal says of a seed."""
    wrong = int((result.read != result.labels).sum())
    return (
        f"seed {result.seed}: test accuracy {result.accuracy:.2%} ({wrong} of {len(result.labels)} misread), test loss "
        f"{result.loss:.3f}, best epoch {result.best_epoch} of {len(result.history)}, {result.seconds:.1f} s"
    )


def write_history(results: list[Result], path: Path) -> None:
    """The rows of all seeds."""
    import csv

    names = ["seed", *results[0].history.names]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, names, lineterminator="\n")
        rows.writeheader()
        rows.writerows({"seed": result.seed, **row} for result in results for row in result.history)


def _png(draw: Any) -> bytes:
    figure = draw()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


# Okabe and Ito's colours, which all eyes can tell apart.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.45"


class Report:
    """All seeds together."""

    def __init__(self, results: list[Result], epochs: int, seconds: float, blas: str) -> None:
        """With the most epochs, the time of everything and the threads of BLAS."""
        self.results = results
        self.epochs = epochs
        self.seconds = seconds
        self.blas = blas
        self.accuracy = float(np.mean([result.accuracy for result in results]))
        self.lowest = min(result.accuracy for result in results)

    @property
    def met(self) -> bool:
        """Whether each seed has reached the goal."""
        return self.lowest >= GOAL

    @property
    def verdict(self) -> str:
        n = len(self.results)
        met = "met" if self.met else "NOT met"
        of = "" if n == 1 else f", mean of {n} seeds (lowest {self.lowest:.2%})"
        return f"test accuracy {self.accuracy:.2%}{of}; goal of {GOAL:.1%} with every seed: {met}"

    @property
    def confusion(self) -> Array:
        """How often each digit (rows) was read as each (columns), on the test images of all seeds."""
        table = np.zeros((10, 10), np.int64)
        for result in self.results:
            np.add.at(table, (result.labels, result.read), 1)
        return table

    def misread(self) -> list[tuple[Array, int, int, float]]:
        """Image, digit, what was read and how sure the network was, the surest first."""
        found = []
        for result in self.results:
            for i in np.flatnonzero(result.read != result.labels):
                read = int(result.read[i])
                found.append((result.images[i], int(result.labels[i]), read, float(result.probabilities[i, read])))
        return sorted(found, key=lambda one: -one[3])

    # -- Pictures ------------------------------------------------------------------------------------------------------

    def pictures(self) -> dict[str, Any]:
        """For each picture of the page a function that draws it."""
        return {"curves": self._curves_alone, "confusion": self._confusion_alone, "misread": self._misread_alone}

    def draw_all(self) -> Any:
        """Everything on one sheet."""
        figure = _sheet(15, 10.5)
        n = len(self.results)
        mean = "" if n == 1 else f", mean of {n} seeds"
        figure.suptitle(
            f"{self.accuracy:.2%} of unseen digits read rightly{mean} (goal {GOAL:.1%})", fontsize=19, fontweight="bold"
        )
        top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.25))
        left, right = bottom.subfigures(1, 2, width_ratios=(1.1, 1))
        self.draw_curves(top)
        self.draw_confusion(left)
        self.draw_misread(right)
        return figure

    def _curves_alone(self) -> Any:
        figure = _sheet(15, 4.8)
        self.draw_curves(figure)
        return figure

    def _confusion_alone(self) -> Any:
        figure = _sheet(7.6, 6.4)
        self.draw_confusion(figure)
        return figure

    def _misread_alone(self) -> Any:
        figure = _sheet(7.4, 6.4)
        self.draw_misread(figure)
        return figure

    def draw_curves(self, figure: Any) -> None:
        """Loss, accuracy and learning rate over the epochs."""
        losses, accuracies, rates = figure.subplots(1, 3)
        for panel, what in ((losses, "loss"), (accuracies, "accuracy")):
            for result in self.results:
                epochs = result.history["epoch"]
                for name, colour, dashes in (("train", BLUE, (0, (4, 1.5))), ("val", ORANGE, "-")):
                    panel.plot(epochs, result.history[f"{name}_{what}"], color=colour, linestyle=dashes, lw=1.6)
                best = result.history.rows[result.best_epoch - 1]
                panel.plot(best["epoch"], best[f"val_{what}"], "o", color="black", mfc="white", mew=1.6, ms=8, zorder=5)
            panel.plot([], [], color=BLUE, linestyle=(0, (4, 1.5)), lw=1.6, label="training images")
            panel.plot([], [], color=ORANGE, lw=1.6, label="validation images")
            panel.plot([], [], "o", color="black", mfc="white", mew=1.6, ms=8, label="best epoch of a seed")
            _tidy(panel, self.epochs)
        losses.set_title("Loss", fontsize=15, fontweight="bold")
        losses.set_ylabel("cross-entropy (nats)", fontsize=13)
        losses.set_yscale("log")
        losses.yaxis.set_major_formatter(_plain)
        losses.yaxis.set_minor_formatter(_sparse)
        losses.legend(fontsize=12, frameon=False)
        accuracies.set_title("Accuracy", fontsize=15, fontweight="bold")
        accuracies.set_ylabel("images read rightly", fontsize=13)
        accuracies.yaxis.set_major_formatter(lambda share, _: f"{share:.3g}%" if share > 1 else f"{100 * share:.4g}%")
        lowest = min(min(result.history[f"{name}_accuracy"][1:] or [0.9]) for result in self.results for name in PARTS)
        accuracies.set_ylim(max(0.0, min(0.95, lowest - 0.005)), 1.002)
        rates.set_title("Learning rate", fontsize=15, fontweight="bold")
        rates.set_ylabel("learning rate of AdamW", fontsize=13)
        rates.yaxis.set_major_formatter(_plain)
        result = self.results[0]
        steps = np.arange(self.epochs * result.steps_per_epoch + 1)
        rates.plot(steps / result.steps_per_epoch, result.lr(steps), color=GREY, lw=2)
        _tidy(rates, self.epochs)
        rates.set_ylim(bottom=0)
        ends = [len(result.history) for result in self.results]
        if min(ends) < self.epochs:
            rates.plot(
                ends,
                result.lr(np.array(ends) * result.steps_per_epoch),
                "s",
                color="black",
                ms=7,
                zorder=5,
                label="stopped early",
            )
            rates.legend(fontsize=12, frameon=False)

    def draw_confusion(self, figure: Any) -> None:
        """Right answers on a pale diagonal, mistakes in orange."""
        table = self.confusion
        panel = figure.subplots()
        wrong = table - np.diag(np.diag(table))
        colours = np.ones((10, 10, 3))
        orange = np.array([0.835, 0.369, 0.0])
        share = (wrong / max(1, wrong.max()))[:, :, None]
        colours = np.where(share > 0, 1 - (0.25 + 0.75 * share) * (1 - orange), colours)
        colours[np.diag_indices(10)] = (0.80, 0.89, 0.95)
        panel.imshow(colours)
        for true in range(10):
            for read in range(10):
                if table[true, read]:
                    dark = true != read and share[true, read, 0] > 0.7
                    panel.text(
                        read,
                        true,
                        f"{table[true, read]}",
                        ha="center",
                        va="center",
                        fontsize=13,
                        color="white" if dark else "black",
                        fontweight="normal" if true == read else "bold",
                    )
        panel.set_xticks(range(10))
        panel.set_yticks(range(10))
        panel.set_xticks(np.arange(11) - 0.5, minor=True)
        panel.set_yticks(np.arange(11) - 0.5, minor=True)
        panel.grid(which="minor", color="0.9", lw=1)
        panel.tick_params(which="both", length=0, labelsize=13)
        panel.spines[:].set_visible(False)
        panel.set_xlabel("read as", fontsize=14)
        panel.set_ylabel("digit", fontsize=14)
        n = len(self.results)
        of = "" if n == 1 else f", {n} seeds together"
        panel.set_title(
            f"Test images{of}: {int(wrong.sum())} of {int(table.sum()):,} misread", fontsize=15, fontweight="bold"
        )

    def draw_misread(self, figure: Any) -> None:
        """The mistakes of which the network was surest, at most 12."""
        found = self.misread()
        rows, columns = (2, 4) if len(found) <= 8 else (3, 4)
        shown = found[: rows * columns]
        more = "" if len(found) <= len(shown) else f", the {len(shown)} surest of {len(found)}"
        figure.suptitle(f"Misread digits{more}", fontsize=15, fontweight="bold")
        if not shown:
            figure.text(0.5, 0.5, "none", ha="center", fontsize=15)
            return
        panels = figure.subplots(rows, columns).ravel()
        for panel in panels[len(shown) :]:
            panel.set_axis_off()
        for panel, (image, digit, read, sure) in zip(panels, shown, strict=False):
            panel.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_color("0.8")
            panel.set_title(f"{digit} read as {read}\n{sure:.0%} sure", fontsize=13, linespacing=1.3)


PARTS = ("train", "val")


def _sheet(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure


def _tidy(panel: Any, epochs: int) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set_xlim(0, 1.02 * epochs)
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    panel.set_xlabel("epoch", fontsize=13)
    panel.tick_params(labelsize=12)
    panel.grid(axis="y", color="0.92")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _plain(value: float, _: Any) -> str:
    return f"{value:g}"


def _sparse(value: float, _: Any) -> str:
    """Between the powers of ten: 2 and 5 have labels."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


# -- The page ----------------------------------------------------------------------------------------------------------

STYLE = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff;
       font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }
th { white-space: nowrap; }
.numbers td, .numbers th { text-align: right; }
img { max-width: 100%; height: auto; }
.two { display: flex; flex-wrap: wrap; }
.two img { flex: 1 1 22rem; min-width: 0; max-width: 30rem; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px; }
"""


def page(report: Report, pictures: dict[str, bytes]) -> str:
    """The report as a page that needs no other file."""
    sizes = report.results[0].sizes
    seeds = [
        (
            result.seed,
            f"{result.accuracy:.2%}",
            f"{int((result.read != result.labels).sum())} of {len(result.labels)}",
            f"{result.loss:.3f}",
            f"{result.history.rows[result.best_epoch - 1]['val_accuracy']:.2%}",
            f"{result.best_epoch} of {len(result.history)}",
            f"{result.seconds:.1f}",
        )
        for result in report.results
    ]
    heads = ("seed", "test accuracy", "misread", "test loss", "validation accuracy", "best epoch", "seconds")
    schedule = report.results[0].lr
    settings = {
        "Images": f"{sum(sizes):,} of 8 x 8 pixels; {sizes[0]:,} to train, {sizes[1]:,} to validate, {sizes[2]:,} "
        "to test, each with the same share of each digit; the seed decides which",
        "Input": "minus the mean and divided by the standard deviation of all training pixels",
        "Batch norm": "after both convolutions and the hidden layer; running statistics with momentum 0.1",
        "Dropout": f"{RECIPE.dropout:g} before both fully connected layers",
        "Label smoothing": f"{RECIPE.label_smoothing:g}: the right digit is to get "
        f"{1 - 0.9 * RECIPE.label_smoothing:.2f}, each other {RECIPE.label_smoothing / 10:.2f}",
        "Optimiser": f"AdamW, betas 0.9 and 0.999, decoupled weight decay {RECIPE.weight_decay:g} of weights only",
        "Learning rate": f"{schedule!r}, in steps; {report.results[0].steps_per_epoch} steps are an epoch",
        "Batches": f"of {RECIPE.batch_size}, in a new order in each epoch",
        "Early stopping": f"after {RECIPE.patience} epochs without a lower validation loss, or after {report.epochs} "
        "epochs; the weights of the best epoch are put back",
        "Seeds": ", ".join(str(result.seed) for result in report.results)
        + ": of the split, the first weights, the order and dropout",
    }
    peers = versions(["matplotlib"])
    machine = {
        **facts(),
        "threads of BLAS": report.blas,
        **{name: version for name, version in peers.items() if version},
        "time": f"{report.seconds:.1f} s for {len(report.results)} trainings",
    }
    curves = (
        "Each line is a seed. Both losses are measured after the epoch, without dropout and smoothing. The circle is "
        "the epoch with the lowest validation loss, whose weights were tested."
    )
    names = {
        "curves": "Loss, accuracy and learning rate over the epochs",
        "confusion": "How often each digit was read as which",
        "misread": "Misread digits",
    }
    images = {
        name: f'<img alt="{names[name]}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for name, png in pictures.items()
    }
    shown = (
        f"<h2>How it learned</h2><p>{curves}</p>{images['curves']}"
        f"<h2>What it reads, and what it misreads</h2><p>The test images, seen once, after training.</p>"
        f'<div class="two">{images["confusion"]}{images["misread"]}</div>'
        if images
        else '<p>For the pictures: <code>pip install "ironstep[plot]"</code>, and once more.</p>'
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>ironstep demo: handwritten digits</title><style>{STYLE}</style></head>
<body>
<h1>A small network reads {report.accuracy:.2%} of handwritten digits that it has not seen</h1>
<p>It was trained by ironstep {html.escape(__version__)} on {sizes[0]:,} small images, {_times(len(report.results))}
from scratch, in {report.seconds:.0f} seconds. {html.escape(report.verdict[0].upper() + report.verdict[1:])}.</p>
{_table(heads, seeds)}
{shown}
<h2>The recipe</h2>
{_pairs(settings)}
<p>The recipe was chosen by accuracy on held-out images with other seeds, from 100 on.</p>
<h2>The network</h2>
<pre>{html.escape(repr(report.results[0].model))}</pre>
<h2>Where it ran</h2>
{_pairs(machine)}
<p>With the same seeds everything but the matrix products has the same bits on every machine. Those are NumPy's BLAS,
whose last bits depend on the processor, so the numbers above may differ a little elsewhere.</p>
<p>Again: <code>python -m ironstep demo</code>. Data: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
Digits, UCI Machine Learning Repository, 1998, <a href="https://doi.org/10.24432/C50P49">doi 10.24432/C50P49</a>,
CC BY 4.0.</p>
</body>
</html>
"""


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


def _table(heads: Any, rows: Any) -> str:
    cells = "".join(f"<th>{head}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="numbers"><tr>{cells}</tr>{body}</table>'


def _pairs(pairs: dict[str, str]) -> str:
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in pairs.items())
    return f"<table>{rows}</table>"
