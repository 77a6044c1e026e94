"""What a run measured, a row for each epoch."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..functional._arrays import count
from . import _state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESERVED = ("epoch", "step", "seconds")
"""What a row has besides metrics."""

SHOWN = 5
"""The last rows, that a repr has."""


class History:
    """The rows of a run: `{"epoch": from 1, "step": steps so far, "seconds": of this epoch, metrics...}`.

    Metrics are means over the epoch, weighted by the number of samples, and what validation and callbacks gave.

    Attributes:
        rows: The rows, each a dict.
        reason: Why the run was stopped, or None.

    Example:
        >>> from ironstep.train import History
        >>> history = History()
        >>> history.rows += [{"epoch": i + 1, "val_loss": loss} for i, loss in enumerate([0.5, 0.25, 0.3])]
        >>> history["val_loss"]
        [0.5, 0.25, 0.3]
        >>> history.best("val_loss")
        {'epoch': 2, 'val_loss': 0.25}
        >>> history
        epoch  val_loss
            1       0.5
            2      0.25
            3       0.3
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.reason: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    @property
    def names(self) -> list[str]:
        """All names that rows have, in the order in which they first came."""
        return list(dict.fromkeys(itertools.chain.from_iterable(self.rows)))

    def __getitem__(self, name: str) -> list[Any]:
        """The column of a name; NaN where a row has none."""
        if name not in self.names:
            raise KeyError(f"history has no {name!r}; it has {', '.join(self.names) or 'no rows yet'}")
        return [row.get(name, math.nan) for row in self.rows]

    def best(self, name: str, mode: str = "min") -> dict[str, Any]:
        """The row with the lowest (`mode="min"`) or highest (`"max"`) value of a metric; the first of equal ones.

        Args:
            name: The metric.
            mode: "min" or "max".

        Raises:
            KeyError: No row has that name.
            ValueError: The mode is unknown, or no value is a number (all are NaN).
        """
        sign = SIGNS[check_mode(mode)]
        values = self[name]
        known = [(sign * value, i) for i, value in enumerate(values) if not math.isnan(value)]
        if not known:
            raise ValueError(f"{name} must have a value that is not NaN to have a best one, got {values}")
        return self.rows[min(known)[1]]

    def to_dict(self) -> dict[str, list[Any]]:
        """The columns by name, as `pandas.DataFrame` takes them."""
        return {name: self[name] for name in self.names}

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes a table with a header: numbers in full precision, nothing where a row lacks a name.

        The file is written beside `path` and renamed, so that a reader sees the old one or the new one.

        Args:
            path: Where to write.

        Raises:
            OSError: The file could not be written.
        """
        names, temporary = self.names, f"{os.fspath(path)}.tmp"
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            file.write(csv_text([names, *([row.get(name, "") for name in names] for row in self.rows)]))
        os.replace(temporary, path)

    def plot(self, path: str | os.PathLike[str] | None = None, names: str | Sequence[str] | None = None) -> Figure:
        """Draws the metrics over the epochs: all losses in one panel, every other with its `val_` fellow in its own.

        Args:
            path: Where to save the picture, if anywhere.
            names: The metrics to draw, or one; all by default.

        Returns:
            A matplotlib figure.

        Raises:
            ModuleNotFoundError: matplotlib is not there.
            KeyError: A name is unknown.
            ValueError: There is nothing to draw.
        """
        from .._figure import new_figure

        if names is None:
            names = [name for name in self.names if name not in RESERVED]
        elif isinstance(names, str):
            names = [names]
        if not names:
            raise ValueError("there is nothing to plot: the history has no metrics yet")
        panels: dict[str, list[str]] = {}
        for name in names:
            base = name.removeprefix("val_")
            panels.setdefault("loss" if base == "loss" or base.endswith("_loss") else base, []).append(name)
        figure = new_figure(6.4, 0.6 + 2.6 * len(panels))
        axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        epochs = self["epoch"]
        for ax, (title, members) in zip(axes, panels.items(), strict=True):
            for name in members:
                ax.plot(epochs, self[name], marker="." if len(epochs) < 50 else None, label=name)
            ax.set_ylabel(title)
            ax.grid(alpha=0.3)
            if len(members) > 1:
                ax.legend()
        axes[-1].set_xlabel("epoch")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        if path is not None:
            figure.savefig(path)
        return figure

    def state_dict(self) -> dict[str, Any]:
        """`{"rows": how many, "columns", "missing", "reason"}`.

        A column is an array (float64 or int64) if all its values are floats, or all integers, and else a list.
        `missing` says of columns that not every row has where there is none.
        """
        columns: dict[str, Any] = {}
        missing: dict[str, Any] = {}
        names = self.names
        # Row by row, which is several times as fast: a long history is in every checkpoint.
        lines = [
            list(row.values()) if list(row) == names else [row.get(name, MISSING) for name in names]
            for row in self.rows
        ]
        for name, column in zip(names, zip(*lines, strict=True), strict=True):
            values, kinds = list(column), set(map(type, column))
            if Missing in kinds:
                absent = [value is MISSING for value in values]
                missing[name] = np.array(absent)
                there = values[absent.index(False)]  # Any that does not change the type of the column.
                values = [there if gone else value for value, gone in zip(values, absent, strict=True)]
            columns[name] = _column(values, kinds - {Missing})
        return {"rows": len(self.rows), "columns": columns, "missing": missing, "reason": self.reason}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Raises:
            ValueError: A column is not as long as there are rows, or something is missing. Nothing was changed.
        """
        _state.same_names(dict.fromkeys(("rows", "columns", "missing", "reason")), state_dict, "a History")
        columns, missing = state_dict["columns"], state_dict["missing"]
        rows: list[dict[str, Any]] = [{} for _ in range(count("rows", state_dict["rows"], 0))]
        for name, column in columns.items():
            absent = missing.get(name, [False] * len(rows))
            if not len(column) == len(absent) == len(rows):
                raise ValueError(
                    f"column {name!r} of a history must have {len(rows)} values, and `missing` as many, got "
                    f"{len(column)} and {len(absent)}"
                )
            values = column.tolist() if isinstance(column, np.ndarray) else column
            for row, value, gone in zip(rows, values, absent, strict=True):
                if not gone:
                    row[name] = value
        self.rows[:], self.reason = rows, state_dict["reason"]

    def __repr__(self) -> str:
        if not self.rows:
            return "History()"
        names = self.names
        shown = [[text(row[name]) if name in row else "" for name in names] for row in self.rows[-SHOWN:]]
        widths = [max(len(cell) for cell in column) for column in zip(names, *shown, strict=True)]
        lines = ["  ".join(cell.rjust(n) for cell, n in zip(row, widths, strict=True)) for row in [names, *shown]]
        if len(self.rows) > SHOWN:
            lines.insert(1, f"({len(self.rows) - SHOWN} earlier)")
        if self.reason is not None:
            lines.append(f"stopped: {self.reason}")
        return "\n".join(lines)


class Missing:
    """In a column, where a row has no such name."""


MISSING = Missing()


def _column(values: list[Any], kinds: set[type]) -> Any:
    """An array if it gives back the same values of the same types, else the list."""
    if kinds == {float}:
        return np.array(values)
    if kinds == {int} and -(1 << 63) <= min(values) <= max(values) < 1 << 63:
        return np.array(values, np.int64)
    return values


SIGNS = {"min": 1.0, "max": -1.0}


def check_mode(mode: Any) -> str:
    """The mode, or an error."""
    if mode not in ("min", "max"):
        raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
    return str(mode)


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """Lines of a CSV file. Python writes a float with as many digits as give it back."""
    import csv
    import io

    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def text(value: Any) -> str:
    """A number for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
