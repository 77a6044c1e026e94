"""What all commands use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


class CommandError(Exception):
    """A run that cannot go on, for a reason that its user can mend."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, where there is something to say about it: its argument."""


def many(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def picture(plot: Callable[[Path], Any], path: Path) -> None:
    """Draws to a file, or says why there is no picture."""
    try:
        plot(path)
    except ModuleNotFoundError as error:
        print(f"no picture: {error}")
    else:
        print(f"picture: {path}")
