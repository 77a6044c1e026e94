"""Figures: matplotlib where it is there, an error that says how to get it where not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """A figure of that size in inches, made without `pyplot`, so that no window opens."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('plot needs matplotlib: pip install "ironstep[plot]"') from error
    return Figure(figsize=(width, height), layout="constrained")
