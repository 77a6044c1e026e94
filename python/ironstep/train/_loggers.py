"""Where the numbers of a run go while it runs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from ..functional._arrays import count
from . import _state
from ._history import csv_text

if TYPE_CHECKING:
    from ._fit import Run


class CSVLogger:
    """Writes the history to a CSV file, a row after each epoch, and keeps it as `History.to_csv` would write it.

    A row is appended when all callbacks have seen the epoch. If it has a name that there was no column for, the file is
    written anew with one more column. When a run is resumed the file is written anew from the history of the
    checkpoint, so that each epoch is in it once, whatever a killed run has left.

    Args:
        path: The file. Its folder must exist; a file of another run is overwritten.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from ironstep import train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "history.csv")
        ...     _ = train.fit(float, [0.5, 1.5], epochs=2, callbacks=[train.CSVLogger(path)], progress=False)
        ...     lines = path.read_text().split()
        >>> lines[0], lines[2].startswith("2,4,"), lines[2].endswith(",1.0")
        ('epoch,step,seconds,loss', True, True)
    """

    order = 1

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _state.path_of("path", path)
        self._names: list[str] = []

    def on_start(self, run: Run) -> None:
        """Begins the file with what there is."""
        self._write(run)

    def on_epoch(self, run: Run) -> None:
        """Appends the row when it has what later callbacks log."""
        run.defer(lambda: self._append(run))

    def _append(self, run: Run) -> None:
        row = run.metrics
        if any(name not in self._names for name in row):
            self._write(run)
        else:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                file.write(csv_text([[row.get(name, "") for name in self._names]]))

    def _write(self, run: Run) -> None:
        run.history.to_csv(self.path)
        self._names = run.history.names


class JSONLLogger:
    """Writes a line of JSON for each epoch, and for every so many steps: `{"event": "epoch", "epoch": 1, ...}`.

    Lines are flushed as they come, with the metrics that are there by then: a callback whose numbers are to be in them
    must have an `order` below 1 or come before. Numbers that are not finite are the strings "nan", "inf" and "-inf", so
    that every reader of JSON can read the file, and Python's `float` the strings. When a run is resumed the file is cut
    back to where it was at the checkpoint, so that each line is in it once.

    Args:
        path: The file. Its folder must exist; a file of another run is overwritten.
        every: Write a line after every so many steps too.

    Raises:
        OSError: The file cannot be written.
        ValueError: A run is resumed, and the file is shorter than it was at the checkpoint.

    Example:
        >>> import pathlib, tempfile
        >>> from ironstep import train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "log.jsonl")
        ...     _ = train.fit(float, [0.5, 1.5], epochs=1, callbacks=[train.JSONLLogger(path, every=2)], progress=False)
        ...     lines = path.read_text().splitlines()
        >>> lines[0]
        '{"event": "step", "epoch": 1, "step": 2, "loss": 1.5}'
    """

    order = 1

    def __init__(self, path: str | os.PathLike[str], every: int | None = None) -> None:
        self.path = _state.path_of("path", path)
        self.every = None if every is None else count("every", every, 1)
        self._file: BinaryIO | None = None
        self.reset()

    def reset(self) -> None:
        """Begins the file anew at the next start."""
        self._length = 0

    def on_start(self, run: Run) -> None:
        """Begins the file, or goes on where it was at the checkpoint."""
        self._close()
        if run.step == 0 or not os.path.exists(self.path):
            self._length = 0
        elif (size := os.path.getsize(self.path)) < self._length:
            raise ValueError(
                f"{self.path} must have the {self._length} bytes that it had when the checkpoint was taken, got "
                f"{size}; put it back, or remove it to begin another"
            )
        file = open(self.path, "r+b" if self._length else "wb")  # noqa: SIM115 (closed in on_end)
        file.truncate(self._length)
        file.seek(self._length)
        self._file = file

    def on_step(self, run: Run) -> None:
        """A line every so many steps."""
        if self.every is not None and run.step % self.every == 0:
            self._line({"event": "step", "epoch": run.epoch + 1, "step": run.step, **run.metrics})

    def on_epoch(self, run: Run) -> None:
        """A line for the epoch."""
        self._line({"event": "epoch", **run.metrics})

    def on_end(self, run: Run) -> None:
        """Closes the file."""
        self._close()

    def _line(self, entry: Mapping[str, Any]) -> None:
        import json

        finite = {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in entry.items()
        }
        line = (json.dumps(finite) + "\n").encode()
        if self._file is None:
            raise ValueError(f"{self.path} is not open: a JSONLLogger writes between on_start and on_end")
        self._file.write(line)
        self._file.flush()
        self._length += len(line)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        """The length of the file in bytes, which are brought to the disk, where the checkpoint will be too."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        return {"bytes": self._length}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave; the file is cut when the run starts."""
        _state.same_names({"bytes": 0}, state_dict, "a JSONLLogger")
        self._length = count("bytes", state_dict["bytes"], 0)


class LogTo:
    """Passes the numbers on to a logger with the three methods of Lightning Fabric's.

    These are `log_metrics(metrics, step)`, `log_hyperparams(params)` and `finalize(status)`: so the loggers of Fabric
    and Lightning for TensorBoard, MLflow, Weights & Biases and others can be used, and anything that has them. A
    resumed run may pass on a step a second time, with the same numbers.

    Args:
        logger: The logger.
        hyperparams: A dict that it gets at the start.
        every: Pass on the metrics of every so many steps too, under their names with "_step" after them.

    Raises:
        TypeError: The logger lacks a method.

    Example:
        >>> from ironstep import train
        >>> class Printer:
        ...     def log_hyperparams(self, params):
        ...         print(params)
        ...
        ...     def log_metrics(self, metrics, step):
        ...         print(step, metrics["loss"])
        ...
        ...     def finalize(self, status):
        ...         print(status)
        >>> log = train.LogTo(Printer(), hyperparams={"lr": 0.1})
        >>> _ = train.fit(float, [0.5, 1.5], epochs=1, callbacks=[log], progress=False)
        {'lr': 0.1}
        2 1.0
        success
    """

    order = 1

    def __init__(self, logger: Any, *, hyperparams: Mapping[str, Any] | None = None, every: int | None = None) -> None:
        for method in ("log_metrics", "log_hyperparams", "finalize"):
            if not callable(getattr(logger, method, None)):
                raise TypeError(
                    "logger must have the methods log_metrics(metrics, step), log_hyperparams(params) and "
                    f"finalize(status), got {logger!r}, which has no {method}"
                )
        self.logger = logger
        self.hyperparams = None if hyperparams is None else dict(hyperparams)
        self.every = None if every is None else count("every", every, 1)

    def on_start(self, run: Run) -> None:
        """Passes on the hyperparameters."""
        if self.hyperparams is not None:
            self.logger.log_hyperparams(self.hyperparams)

    def on_step(self, run: Run) -> None:
        """Passes on the metrics of a step."""
        if self.every is not None and run.step % self.every == 0:
            self.logger.log_metrics({f"{name}_step": value for name, value in run.metrics.items()}, run.step)

    def on_epoch(self, run: Run) -> None:
        """Passes on the row of an epoch."""
        metrics = {name: value for name, value in run.metrics.items() if name != "step"}
        self.logger.log_metrics(metrics, run.step)

    def on_end(self, run: Run) -> None:
        """Passes on how it ended, in Fabric's words."""
        self.logger.finalize("failed" if run.status == "failed" else "success")
