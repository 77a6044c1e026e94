"""Draws docs/schedules.png: every function of `ironstep.schedules` that makes a schedule.

    python docs/pictures.py

Needs `pip install "ironstep[plot]"`. A panel is titled with the call that made its curve.
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image  # matplotlib needs it too

from ironstep import schedules

STEPS = 100
COLUMNS = 4
CALLS = [
    "constant(0.6)",
    "linear(1, 0, 100)",
    "polynomial(1, 0, 100, power=3)",
    "cosine(1, 0.1, steps=100)",
    "step(1, 25, gamma=0.5)",
    "multi_step(1, [50, 75], gamma=0.3)",
    "exponential(1, 0.5, 25)",
    "inverse_sqrt(1, 5, warmup_steps=10)",
    "warmup(constant(1), 30)",
    "warmup_cosine(1, steps=100, warmup_steps=20)",
    "warmup_stable_decay(1, warmup_steps=10, stable_steps=60, decay_steps=30)",
    "one_cycle(1, 100)",
    "one_cycle_momentum(steps=100)",
    "cosine_restarts(1, T_0=25, decay=0.7)",
    "cosine_restarts(1, T_0=15, T_mult=2)",
    "cyclic(0.1, 1, 10)",
    'cyclic(0.1, 1, 10, mode="triangular2")',
    "piecewise([30, 70], [0.4, 1, 0.2])",
    'piecewise([30, 60, 100], [0, 1, 0.5, 0], interpolation="cosine")',
    "join([linear(0.2, 1, 40), exponential(1, 0.5, 15)], [40])",
    "chain(cosine(1, steps=100), cyclic(0.7, 1, 5))",
    "scale(cosine(1, steps=100), 0.5)",
    "shift(cosine(1, steps=60), 40)",
    "per_epoch(cosine(1, steps=10), 10)",
]

COLOUR = "#0072B2"  # of Okabe and Ito's, which can be told apart by all eyes
WIDTH, PANEL, GAP = 10.0, 0.85, 0.5
"""Of the picture, the height of a panel, and below it, in inches."""
NAME, LINE = 0.2, 0.16
"""Heights in a title."""
INK, FAINT = "#1a1a1a", "#595959"


def split(call: str) -> tuple[str, list[str]]:
    """The name, and its arguments in lines that fit over a panel."""
    name, arguments = call.split("(", 1)
    return name, textwrap.wrap(f"({arguments}", 31)


def panel(ax: Axes, call: str, room: float) -> None:
    """One curve, under its call. `room`: for the title, in heights of the panel."""
    schedule = schedules.parse(call)
    at = np.linspace(0, STEPS - 1e-6, 4001)  # a schedule is a function of real numbers too
    values = schedule(at)
    name, lines = split(call)
    ax.text(0, 1 + room, name, transform=ax.transAxes, fontsize=11, fontweight="bold", color=INK, va="top")
    # Below the name by its height.
    ax.text(0, 1 + room - NAME / PANEL, "\n".join(lines), transform=ax.transAxes, fontsize=9, color=FAINT, va="top")

    low, high = (0.85, 0.95) if name == "one_cycle_momentum" else (0.0, 1.0)
    ax.fill_between(at, values, low, color=COLOUR, alpha=0.1, linewidth=0)
    ax.plot(at, values, color=COLOUR, linewidth=1.8, solid_joinstyle="round", clip_on=False)
    ax.set_xlim(0, STEPS)
    ax.set_ylim(low, high)
    ax.set_xticks([0, 50, 100])
    ax.set_yticks([low, high], [f"{low:g}", f"{high:g}"])
    ax.tick_params(length=3, width=0.7, color="0.6", labelsize=8, labelcolor=FAINT, pad=2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color="0.6", linewidth=0.7)


def draw(path: Path) -> None:
    """All panels, in rows; the titles of a row begin at the same height."""
    rows = [CALLS[i : i + COLUMNS] for i in range(0, len(CALLS), COLUMNS)]
    titles = [NAME + LINE * max(len(split(call)[1]) for call in row) + 0.09 for row in rows]
    height = sum(titles) + (PANEL + GAP) * len(rows) + 0.2
    pitch = (WIDTH - 0.37 + 0.22) / COLUMNS
    with rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(WIDTH, height), dpi=144)
        top = height - 0.1
        for row, title in zip(rows, titles, strict=True):
            bottom = top - title - PANEL
            for k, call in enumerate(row):
                ax = figure.add_axes(
                    ((0.37 + k * pitch) / WIDTH, bottom / height, (pitch - 0.42) / WIDTH, PANEL / height)
                )
                panel(ax, call, title / PANEL)
                if row is rows[-1]:
                    ax.set_xlabel("step", fontsize=9, color=FAINT, labelpad=1)
            top = bottom - GAP
        buffer = io.BytesIO()
        figure.savefig(buffer)
    # One hue needs few colours, and the file is a third as large.
    Image.open(buffer).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).with_name("schedules.png"))
