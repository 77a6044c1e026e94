"""Trains a small convolutional network on few images, with and without augmentation.

By default on the digits that come with ironstep, 100 of them to train on. With `--data` on a folder of images: one
folder in it for each class, the images of any size (they are read with Pillow and brought to one size). Three times:
with the images as they are, augmented, and augmented with Mixup. All three begin with the same weights and see the
images in the same order.

All of this is done for several seeds, which choose the images, the weights and what is drawn. At the end the script
prints a table, and draws the curves into `demo/augment.png` and what the network gets to see into
`demo/augment-preview.png`.

    python examples/augment.py
    python examples/augment.py --data photos --size 64 --epochs 30

What is seen with the defaults: without augmentation the network soon knows its 100 images by heart, and the test loss
stays where it is; augmented, each epoch brings other images, and it goes on falling.

Needs `pip install "ironstep[plot]"`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import ironstep
from ironstep import functional, nn
from ironstep.augment import (
    ColorJitter,
    Compose,
    MixUp,
    Normalize,
    RandomAffine,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
)
from ironstep.data import Batches, load_digits, split
from ironstep.optim import AdamW

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from PIL import Image  # comes with matplotlib
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is missing. This example needs: pip install "ironstep[plot]"') from None

Array: TypeAlias = NDArray[Any]

TRAIN, BATCH = 100, 20
LEARNING_RATE = 0.002
WAYS = ("as they are", "augmented", "augmented, Mixup")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


# -- Data --------------------------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Images of shape (N, H, W, C), uint8, and the numbers of their classes."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    classes: list[str]


def load(options: argparse.Namespace, seed: int) -> Data:
    """The digits, or the images of a folder."""
    if options.data is None:
        images, labels = load_digits()
        images = np.rint(images * 255).astype(np.uint8)[..., None]
        classes, share = [str(digit) for digit in range(10)], TRAIN / len(images)
    else:
        images, labels, classes = read(options.data, options.size)
        share = 0.8
    train, test = split(images, labels, fractions=(share, 1 - share), seed=seed, stratify=labels)
    return Data(*train, *test, classes)


def read(folder: Path, size: int) -> tuple[Array, Array, list[str]]:
    """The images in a folder of folders, of `size` times `size` pixels, and the class of each."""
    if not folder.is_dir():
        raise SystemExit(f"--data must be a folder with a folder of images for each class; there is no folder {folder}")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [
        (path, number)
        for number, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if len(classes) < 2 or len(files) < 10:
        raise SystemExit(
            f"--data must be a folder with a folder of images for each class, at least 2 classes and 10 images, got "
            f"{len(classes)} folders with {len(files)} images in {folder}"
        )
    images = np.empty((len(files), size, size, 3), np.uint8)
    for out, (path, _) in zip(images, files, strict=True):
        with Image.open(path) as image:
            out[...] = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    return images, np.array([number for _, number in files]), classes


def statistics(images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in 0..1."""
    pixels = images.reshape(-1, images.shape[-1]) / 255
    return tuple(pixels.mean(0).tolist()), tuple((pixels.std(0) + 1e-3).tolist())


def chains(data: Data) -> dict[str, Compose]:
    """What happens to a batch, from uint8 (N, H, W, C) to float32 (N, C, H, W)."""
    size, channels = data.x_train.shape[1], data.x_train.shape[3]
    normalize = Normalize(*statistics(data.x_train))
    if channels == 1:
        # Digits must stay upright and whole.
        moves: list[Any] = [
            RandomAffine(10, translate=(0.07, 0.07), scale=(0.9, 1.1), shear=8, interpolation="bilinear")
        ]
        ends: list[Any] = [normalize]
    else:
        moves = [RandomResizedCrop(size, scale=(0.4, 1.0)), RandomHorizontalFlip(), ColorJitter(0.3, 0.3, 0.3, 0.05)]
        ends = [normalize, RandomErasing(p=0.25)]
    mixup = MixUp(alpha=0.2, num_classes=len(data.classes), mode="sample")
    return {
        "as they are": Compose([normalize], out_layout="NCHW"),
        "augmented": Compose([*moves, *ends], out_layout="NCHW"),
        "augmented, Mixup": Compose([*moves, *ends, mixup], out_layout="NCHW"),
    }


# -- Training ----------------------------------------------------------------------------------------------------------


def network(channels: int, size: int, classes: int, seed: int) -> nn.Sequential:
    """From images (N, C, size, size) to logits (N, classes)."""
    rng = np.random.default_rng(seed)
    he: Any = {"init": "kaiming_normal", "seed": rng}
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, **he),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, **he),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (size // 2) ** 2, classes, **he),
    )


class Run(NamedTuple):
    """What one training gave, after each epoch."""

    train_loss: list[float]
    """Mean cross-entropy on the training images as they are."""
    test_loss: list[float]
    accuracy: list[float]
    """On the test images."""
    seconds: float
    """Of making the batches, augmentation included, in all epochs."""


def train(way: str, data: Data, epochs: int, seed: int) -> Run:
    """Trains in one of the three ways."""
    chain, plain = chains(data)[way], chains(data)["as they are"]
    x_train, x_test = plain(0, data.x_train), plain(0, data.x_test)
    model = network(*x_train.shape[1:3], len(data.classes), seed)
    opt = AdamW(model.params, lr=LEARNING_RATE)
    batches = Batches(data.x_train, data.y_train, batch_size=BATCH, seed=seed, transform=chain)
    run, seconds = Run([], [], [], 0.0), 0.0
    for _ in range(epochs):
        begin = time.perf_counter()
        for x, y in batches:
            seconds += time.perf_counter() - begin
            _, grad = functional.cross_entropy(model(x), y, return_grad=True)
            model.backward(grad)
            opt.step(model.grads)
            begin = time.perf_counter()
        run.train_loss.append(functional.cross_entropy(model.predict(x_train), data.y_train))
        logits = model.predict(x_test)
        run.test_loss.append(functional.cross_entropy(logits, data.y_test))
        run.accuracy.append(float(np.mean(logits.argmax(axis=1) == data.y_test)))
    return run._replace(seconds=seconds)


# -- The report --------------------------------------------------------------------------------------------------------


def table(results: dict[str, list[Run]]) -> str:
    head = (
        f"{'images':<17}  {'accuracy':>8}  {'of the seeds':>16}  {'test loss':>9}  {'training loss':>13}  "
        f"{'batches':>9}"
    )
    lines = [head, "-" * len(head)]
    for way, runs in results.items():
        last = [run.accuracy[-1] for run in runs]
        lines.append(
            f"{way:<17}  {np.mean(last):>8.1%}  {f'{min(last):.1%} to {max(last):.1%}':>16}  "
            f"{np.mean([run.test_loss[-1] for run in runs]):>9.3f}  "
            f"{np.mean([run.train_loss[-1] for run in runs]):>13.3f}  {np.mean([run.seconds for run in runs]):>7.2f} s"
        )
    return "\n".join(lines)


def explanation(seeds: int) -> str:
    return f"""\
accuracy, test loss  on the test images, after the last epoch: means of {seeds} seeds
training loss        on the training images as they are, never augmented
batches              seconds for making all batches, augmentation included

Augmentation pays in long runs: after few epochs the images as they are come first."""


COLOURS = {"as they are": "0.45", "augmented": "#0072B2", "augmented, Mixup": "#D55E00"}
DASHES: dict[str, Any] = {"as they are": "-", "augmented": "-", "augmented, Mixup": (0, (5, 1.5))}
PANELS = {
    "train_loss": "training loss (images as they are)",
    "test_loss": "test loss",
    "accuracy": "test accuracy",
}


def draw(results: dict[str, list[Run]], title: str, path: Path) -> None:
    """The curves: lines are means over the seeds, bands reach from the lowest to the highest."""
    figure = Figure(figsize=(16, 5.6), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=17, fontweight="bold")
    for panel, (what, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for way, runs in results.items():
            values = np.array([getattr(run, what) for run in runs])
            epochs = np.arange(1, values.shape[1] + 1)
            panel.fill_between(epochs, values.min(0), values.max(0), color=COLOURS[way], alpha=0.15, lw=0)
            marker = "o" if len(epochs) == 1 else None
            line = {"color": COLOURS[way], "linestyle": DASHES[way], "lw": 2.2, "marker": marker}
            panel.plot(epochs, values.mean(0), label=way if what == "accuracy" else None, **line)
        panel.set_title(label, fontsize=15)
        panel.set_xlabel("epoch", fontsize=13)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelsize=12)
        panel.grid(axis="y", color="0.93")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        if what == "accuracy":
            low = min(
                np.mean([run.accuracy[min(4, len(run.accuracy) - 1)] for run in runs]) for runs in results.values()
            )
            panel.set_ylim(max(0.0, low - 0.05), 1)
            panel.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        else:
            panel.set_yscale("log")
    figure.legend(fontsize=13, loc="outside lower center", ncols=len(results), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small convolutional network on few images, with and without augmentation."
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="a folder of images for each class (default: digits)"
    )
    parser.add_argument("--size", type=int, default=32, metavar="N", help="pixels of those, per side (default: 32)")
    parser.add_argument("--epochs", type=int, default=60, metavar="N", help="passes over the images (default: 60)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds, from 0 on (default: 3)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="FOLDER", help="where the pictures go (default: demo)"
    )
    options = parser.parse_args(args)
    for name, low in (("epochs", 1), ("seeds", 1), ("size", 8)):
        if getattr(options, name) < low:
            parser.error(f"--{name} must be at least {low}, got {getattr(options, name)}")
    return options


def main(args: list[str] | None = None) -> None:
    options = parse(args)
    data = load(options, 0)
    what = "digits" if options.data is None else f"images of {options.data.name}"
    print(
        f"ironstep {ironstep.__version__}, NumPy {np.__version__}; {len(data.x_train)} training images and "
        f"{len(data.x_test)} test images of {'x'.join(map(str, data.x_train.shape[1:]))}, {len(data.classes)} "
        f"classes;\nbatches of {BATCH}, {options.epochs} epochs of AdamW with lr={LEARNING_RATE:g}\n\n"
        f"{chains(data)['augmented, Mixup']}\n"
    )
    results: dict[str, list[Run]] = {way: [] for way in WAYS}
    for seed in range(options.seeds):
        data = load(options, seed)
        for way in WAYS:
            results[way].append(train(way, data, options.epochs, seed))
        ends = (f"{way} {runs[-1].accuracy[-1]:.1%}" for way, runs in results.items())
        print(f"seed {seed}, test accuracy: {'; '.join(ends)}", flush=True)
    print(f"\n{table(results)}\n\n{explanation(options.seeds)}\n")
    curves, grid = options.out / "augment.png", options.out / "augment-preview.png"
    draw(results, f"A small convolutional network on {len(data.x_train)} {what}, as they are and augmented", curves)
    chains(data)["augmented"].preview(data.x_train, samples=4, versions=6).savefig(grid, dpi=100)
    print(f"The curves: {curves}\nWhat the network sees: {grid}")


if __name__ == "__main__":
    main()
