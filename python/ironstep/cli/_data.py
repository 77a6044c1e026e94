"""Data: the digits, .npz and .csv files; checked, cut into parts and standardised."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ._common import Array, CommandError, many


class Data(NamedTuple):
    """Samples as they were read."""

    source: str
    x: Array
    """Numbers of shape (samples, features), or images of shape (samples, channels, height, width)."""
    y: Array
    """Classes from 0, int64 of shape (samples,), or float64 numbers of shape (samples, outputs)."""
    classes: list[str]
    """Their names; none for regression."""

    def __str__(self) -> str:
        images = "images" if self.x.ndim == 4 else "samples"
        shape = " x ".join(map(str, self.x.shape[1:]))
        what = f"{len(self.classes)} classes" if self.classes else f"{many(self.y.shape[1], 'output')}"
        features = f"of {shape}" if self.x.ndim == 4 else f"of {many(self.x.shape[1], 'feature')}"
        return f"{self.source}: {len(self.x):,} {images} {features}, {what}"


def load(source: str, label: str | None, task: str | None) -> Data:
    """The samples of a file, or the digits, checked."""
    path = Path(source)
    if source == "digits":
        from ..data import load_digits

        x, y = load_digits()
    elif path.suffix.lower() == ".npz":
        x, y = _read_npz(path)
    elif path.suffix.lower() == ".csv":
        x, y = _read_csv(path, label)
    else:
        raise CommandError(f"DATA must be 'digits', a .npz or a .csv file, got {source!r}")
    if label is not None and path.suffix.lower() != ".csv":
        raise CommandError("--label is for .csv files; a .npz has its labels in y")
    if len(x) != len(y):
        raise CommandError(f"{source}: x and y must have as many samples, got {len(x)} and {len(y)}")
    if len(x) < 2:
        raise CommandError(f"{source}: at least 2 samples are needed, got {len(x)}")
    x = _inputs(source, x)
    return Data(source, x, *_targets(source, y, task))


def _read_npz(path: Path) -> tuple[Array, Array]:
    import zipfile

    try:
        file = np.load(path, allow_pickle=False)
    except (ValueError, zipfile.BadZipFile):
        raise CommandError(f"{path} is no .npz file that NumPy can read") from None
    with file:

        def take(*names: str) -> Array:
            for name in names:
                if name in file.files:
                    try:
                        return np.asarray(file[name])
                    except ValueError:
                        raise CommandError(f"{path}: {name} holds Python objects, which are not read") from None
            raise CommandError(
                f"{path} must have an array {' or '.join(names)}, but has {', '.join(file.files) or 'nothing'}"
            )

        return take("x", "images"), take("y", "labels")


def _read_csv(path: Path, label: str | None) -> tuple[Array, Array]:
    import csv

    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            rows = [(line, row) for line, row in enumerate(csv.reader(file), 1) if any(map(str.strip, row))]
        except (csv.Error, UnicodeDecodeError) as error:
            raise CommandError(f"{path} is no .csv file: {error}") from None
    if not rows:
        raise CommandError(f"{path} is empty")
    first = [cell.strip() for cell in rows[0][1]]
    width = len(first)
    if width < 2:
        raise CommandError(f"{path} must have at least 2 columns, separated by commas, got {width}")
    for line, row in rows:
        if len(row) != width:
            raise CommandError(
                f"{path}, line {line}: {many(width, 'cell')} expected as in the first line, got {len(row)}"
            )
    column = _column(path, label, first)
    # Of the label's column nothing can be told, classes may have names.
    header = any(not _is_number(cell) for i, cell in enumerate(first) if i != column) or label in first
    names = first if header else [f"column {i}" for i in range(width)]
    rows = rows[header:]
    x = np.empty((len(rows), width - 1))
    inputs = [i for i in range(width) if i != column]
    for k, (line, row) in enumerate(rows):
        if wrong := [i for i in inputs if not _is_number(row[i])]:
            i = wrong[0]
            raise CommandError(f"{path}, line {line}: {names[i]!r} must be a number, got {row[i]!r}")
        if not row[column].strip():
            raise CommandError(f"{path}, line {line}: {names[column]!r} must be a label, got {row[column]!r}")
        x[k] = [float(row[i]) for i in inputs]
    return x, _cells([row[column].strip() for _, row in rows])


def _column(path: Path, label: str | None, first: list[str]) -> int:
    if label is None:
        return len(first) - 1
    if label in first:
        return first.index(label)
    try:
        return range(len(first))[int(label)]
    except (ValueError, IndexError):
        raise CommandError(
            f"{path} has no column {label!r}; it has {', '.join(first)}, or the numbers 0 to {len(first) - 1}"
        ) from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _cells(cells: list[str]) -> Array:
    """Integers if all are, else floats if all are, else text."""
    with contextlib.suppress(ValueError, OverflowError):
        return np.array([int(cell) for cell in cells], np.int64)
    with contextlib.suppress(ValueError):
        return np.array([float(cell) for cell in cells])
    return np.array(cells)


def _inputs(source: str, x: Array) -> Array:
    if x.dtype.kind not in "fiub" or x.size == 0:
        raise CommandError(f"{source}: x must be numbers, got {x.dtype} of shape {x.shape}")
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise CommandError(f"{source}: x must be finite, but {int((~np.isfinite(x)).sum()):,} of its values are not")
    if x.ndim == 1:
        return x[:, None]
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))  # channels last, as pictures are stored
    if x.ndim not in (2, 4):
        raise CommandError(
            f"{source}: x must have shape (samples, features), (samples, height, width) or with an axis of channels, "
            f"got {x.shape}"
        )
    return x


def _targets(source: str, y: Array, task: str | None) -> tuple[Array, list[str]]:
    if y.dtype.kind not in "fiubUS":
        raise CommandError(f"{source}: y must be numbers or text, got {y.dtype}")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise CommandError(f"{source}: y must be finite, but {int((~np.isfinite(y)).sum()):,} of its values are not")
    guessed = task is None
    if task is None:
        task = "regress" if y.dtype.kind == "f" and not (y.ndim == 1 and (y == np.rint(y)).all()) else "classify"
    if task == "regress":
        if y.dtype.kind in "US" or y.ndim not in (1, 2):
            raise CommandError(f"{source}: to regress, y must be numbers of shape (samples,) or (samples, outputs)")
        return y.astype(np.float64).reshape(len(y), -1), []
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise CommandError(f"{source}: to classify, y must have shape (samples,), got {y.shape}")
    names, classes = np.unique(y, return_inverse=True)
    if len(names) < 2:
        raise CommandError(f"{source}: to classify, y must have at least 2 classes, got {len(names)}")
    if guessed and len(names) > 10 and 2 * len(names) > len(y):
        raise CommandError(
            f"{source}: y has {len(names):,} different values in {len(y):,} samples: say --task regress, or "
            "--task classify if these are classes"
        )
    text = [name.decode(errors="replace") if isinstance(name, bytes) else f"{name}" for name in names.tolist()]
    return classes.astype(np.int64), text


class Problem(NamedTuple):
    """Data cut into parts and standardised."""

    data: Data
    train: tuple[Array, Array]
    validation: tuple[Array, Array] | None
    test: tuple[Array, Array] | None
    scaling: dict[str, Array]
    """Mean and standard deviation of the training samples: of each feature, or of each channel of images; and of each
    output to regress."""

    @property
    def classify(self) -> bool:
        return bool(self.data.classes)

    @property
    def outputs(self) -> int:
        return len(self.data.classes) if self.classify else self.data.y.shape[1]


def problem(data: Data, options: argparse.Namespace) -> Problem:
    """Cuts and standardises."""
    from ..data import split

    shares = {"validation": options.validation, "test": options.test}
    used = {name: share for name, share in shares.items() if share > 0}
    rest = 1.0 - sum(used.values())
    if rest <= 1e-9:
        raise CommandError(
            f"--validation and --test must leave samples to train with, got {sum(used.values()):g} in all"
        )
    parts: list[tuple[Array, Array]] = [(data.x, data.y)]
    if used:
        fractions = (rest, *used.values())
        stratify = data.y if data.classes else None
        parts = [(x, y) for x, y in split(data.x, data.y, fractions=fractions, seed=options.seed, stratify=stratify)]
    named = dict(zip(("train", *used), parts, strict=True))
    x, y = named["train"]
    axes = (0, 2, 3) if x.ndim == 4 else 0
    mean, std = x.mean(axes, np.float64, keepdims=True)[0], x.std(axes, np.float64, keepdims=True)[0]
    scaling = {"mean": mean.astype(np.float32), "std": np.where(std > 0, std, 1.0).astype(np.float32)}
    if not data.classes:
        mean, std = y.mean(0), y.std(0)
        scaling |= {"output_mean": mean, "output_std": np.where(std > 0, std, 1.0)}

    def scaled(name: str) -> tuple[Array, Array] | None:
        if name not in named:
            return None
        x, y = named[name]
        if not data.classes:
            y = ((y - scaling["output_mean"]) / scaling["output_std"]).astype(np.float32)
        return (x - scaling["mean"]) / scaling["std"], y

    train_part = scaled("train")
    assert train_part is not None
    return Problem(data, train_part, scaled("validation"), scaled("test"), scaling)
