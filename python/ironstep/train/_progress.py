"""What a person at a terminal sees of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Sized
from typing import TYPE_CHECKING, Any

from ._history import RESERVED, text

if TYPE_CHECKING:
    from ._fit import Run

INTERVAL = 0.1
"""Seconds between two looks at the bar."""


def make_progress(bar: bool | None) -> Lines:
    """A bar if wanted, or if there is a terminal to show one (None); else lines only."""
    if bar or (bar is None and sys.stderr is not None and sys.stderr.isatty()):
        try:
            from tqdm.auto import tqdm  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            if bar:
                raise ModuleNotFoundError('progress=True needs tqdm: pip install "ironstep[progress]"') from error
        else:
            return Bar(tqdm)
    return Lines()


class Lines:
    """A line for each epoch."""

    order = 3

    def on_start(self, run: Run) -> None:
        """Says so if the run goes on from a checkpoint."""
        if run.step:
            self._print(f"resumed after epoch {run.epoch}/{run.epochs}, step {run.step}")

    def on_epoch(self, run: Run) -> None:
        """The line of the epoch."""
        seconds = run.metrics["seconds"]
        self._print(f"epoch {run.epoch}/{run.epochs}  step {run.step}  {seconds:.1f} s  {_words(run.metrics)}")

    def on_end(self, run: Run) -> None:
        """Says so if the run was stopped."""
        if run.status == "stopped":
            self._print(f"stopped after epoch {run.epoch}/{run.epochs}, step {run.step}: {run.reason}")

    def _print(self, line: str) -> None:
        if sys.stderr is not None:
            print(line.rstrip(), file=sys.stderr, flush=True)


class Bar(Lines):
    """The lines, and a bar within each epoch."""

    def __init__(self, tqdm: Any) -> None:
        self._tqdm = tqdm
        self._bar: Any = None
        self._next = 0.0

    def on_step(self, run: Run) -> None:
        """Moves the bar, but not more often than a person can see."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + INTERVAL
        if self._bar is None:
            self._bar = self._tqdm(
                total=len(run.batches) if isinstance(run.batches, Sized) else None,
                desc=f"epoch {run.epoch + 1}/{run.epochs}",
                leave=False,
                mininterval=0.0,
                file=sys.stderr,
            )
        self._bar.set_postfix_str(_words(run.metrics), refresh=False)
        self._bar.update(run._index - self._bar.n)

    def on_epoch(self, run: Run) -> None:
        """The bar makes room for the line of the epoch."""
        self._close()
        super().on_epoch(run)

    def on_end(self, run: Run) -> None:
        """No bar is left."""
        self._close()
        super().on_end(run)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _words(metrics: dict[str, Any]) -> str:
    return "  ".join(f"{name} {text(value)}" for name, value in metrics.items() if name not in RESERVED)
