"""`schedule`: a schedule from text, and its sketch."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._common import Array, CommandError, many, picture

if TYPE_CHECKING:
    from ..schedules import Schedule


def _stable(s: Any, lr: float, total: int, epoch: int) -> Schedule:
    warm, decay = max(1, total // 20), max(1, total // 5)
    stable: Schedule = s.warmup_stable_decay(
        lr, warmup_steps=warm, stable_steps=max(1, total - warm - decay), decay_steps=decay
    )
    return stable


BARE: dict[str, Callable[[Any, float, int, int], Schedule]] = {
    "constant": lambda s, lr, total, epoch: s.constant(lr),
    "linear": lambda s, lr, total, epoch: s.linear(lr, 0.0, total),
    "polynomial": lambda s, lr, total, epoch: s.polynomial(lr, 0.0, total, 2.0),
    "step": lambda s, lr, total, epoch: s.step(lr, max(1, math.ceil(total / 3))),
    "multi_step": lambda s, lr, total, epoch: s.multi_step(lr, [max(1, total // 2), max(2, 3 * total // 4)]),
    "exponential": lambda s, lr, total, epoch: s.exponential(lr, 0.01, total),
    "cosine": lambda s, lr, total, epoch: s.cosine(lr, steps=total),
    "cosine_restarts": lambda s, lr, total, epoch: s.cosine_restarts(lr, T_0=max(1, math.ceil(total / 7)), T_mult=2),
    "warmup": lambda s, lr, total, epoch: s.warmup(s.constant(lr), max(1, total // 20)),
    "warmup_cosine": lambda s, lr, total, epoch: s.warmup_cosine(
        lr, steps=max(2, total), warmup_steps=max(1, total // 20)
    ),
    "one_cycle": lambda s, lr, total, epoch: s.one_cycle(lr, total),
    "inverse_sqrt": lambda s, lr, total, epoch: s.inverse_sqrt(
        lr, max(1, total // 20), warmup_steps=max(1, total // 20)
    ),
    "warmup_stable_decay": _stable,
    "cyclic": lambda s, lr, total, epoch: s.cyclic(lr / 10, lr, max(1, 2 * epoch)),
    "piecewise": lambda s, lr, total, epoch: s.piecewise(
        [max(1, total // 2), max(2, 3 * total // 4)], [lr, lr / 4, lr / 16]
    ),
}
"""What the names stand for that are a schedule alone. `s` is the module `schedules`, which is loaded only when one is
wanted."""


def curve(text: str, *, lr: float, total: int, epoch: int) -> Schedule:
    """The schedule of a name or a call."""
    from .. import schedules

    if "(" in text:
        try:
            return schedules.parse(text, lr=lr, total=total, epoch=epoch)
        except TypeError as error:
            raise CommandError(f"{text}: {error}") from None
    name = text.strip().lower().replace("-", "_")
    if name not in BARE:
        raise CommandError(
            f"a schedule must be a call such as cosine(lr, steps=total), or {', '.join(BARE)}; got {text!r}"
        )
    return BARE[name](schedules, lr, total, epoch)


def schedule(options: argparse.Namespace) -> None:
    """The command."""
    epoch = options.epoch or max(1, options.total // 10)
    shown = curve(options.text, lr=options.lr, total=options.total, epoch=epoch)
    values = np.asarray(shown(np.arange(options.total)))
    print(f"{shown!r}: {many(options.total, 'step')}, from {values[0]:.4g} to {values[-1]:.4g}")
    print("\n".join(sketch(values)))
    if options.out != Path("none"):
        picture(lambda path: shown.plot(options.total, path=path), options.out)


def sketch(values: Array, width: int = 64, height: int = 10) -> list[str]:
    """A curve of columns for the terminal, from 0 or from its lowest value if that is below."""
    columns = np.interp(np.linspace(0, len(values) - 1, width), np.arange(len(values)), values)
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if high == low:
        high = low + 1.0
    # As full blocks and eighths where the terminal has them.
    blocks = " ▁▂▃▄▅▆▇█"
    try:
        blocks.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        blocks = " #"
    steps = len(blocks) - 1
    filled = np.rint((columns - low) / (high - low) * height * steps).astype(int)
    labels = {height - 1: f"{high:.3g}", 0: f"{low:.3g}"}
    margin = max(map(len, labels.values()))
    lines = []
    for row in reversed(range(height)):
        cells = "".join(blocks[min(steps, max(0, n - row * steps))] for n in filled.tolist())
        lines.append(f"  {labels.get(row, ''):>{margin}} |{cells}".rstrip())
    end = f"{len(values):,}"
    lines.append(f"  {'':>{margin}}  0{end:>{width - 1}}")
    return lines
