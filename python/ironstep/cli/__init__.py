"""The command line: `python -m ironstep demo | train | lr-find | schedule | bench | info`.

`train` and `lr-find` make what a short script would make of the package's parts (`ironstep.nn`, `optim`, `schedules`,
`data`, `train`), so that data can be tried before a script is written. `--help` of each command has an example.

The exit code is 0 if all went well; 1 if the run failed, because data are wrong, a file is not there, an extra is not
installed or the demo missed its goal, with one line `error: ...` on stderr; 2 for wrong usage; and 130 if it was
interrupted.

Example:
    >>> from ironstep import cli
    >>> cli.main(["schedule", "linear(lr, 0, 4)", "--total", "4", "--out", "none"])
    linear(0.1, 0, 4): 4 steps, from 0.1 to 0.025
      0.1 |###...
    ...
           0                                                              4
    0
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ._arguments import UsageError, parse
from ._common import CommandError, Interrupted

__all__ = ["main"]

_MODULES = {
    "demo": "_recipe",
    "train": "_train",
    "lr-find": "_train",
    "schedule": "_schedule",
    "bench": "_bench",
    "info": "_info",
}
"""Where the function of each command is; loaded when it is to run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments after the name of the program; None: those of the process.

    Returns:
        The exit code: 0, 1 if the run failed, 2 for wrong usage, 130 if it was interrupted.

    Example:
        >>> from ironstep import cli
        >>> cli.main(["train", "there-is-no-such-file.npz"])  # prints `error: ...` on stderr
        1
    """
    try:
        options = parse(list(sys.argv[1:] if argv is None else argv))
        module = import_module(f".{_MODULES[options.command]}", __name__)
        getattr(module, options.command.replace("-", "_"))(options)
        sys.stdout.flush()
        return 0
    except UsageError as error:
        error.parser.print_usage(sys.stderr)
        return _complain(f"{error} ({error.parser.prog} --help says more)", 2)
    except SystemExit as end:  # --help and --version
        return int(end.code or 0)
    except KeyboardInterrupt as stop:
        code = _complain("interrupted", 130)
        if isinstance(stop, Interrupted):
            print(stop, file=sys.stderr)
        return code
    except BrokenPipeError:  # `| head`: nobody reads on, and nobody would read a complaint
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        named = error.filename is not None and error.strerror is not None
        return _complain(f"{error.filename}: {error.strerror}" if named else str(error), 1)
    except (CommandError, ModuleNotFoundError, ValueError, FloatingPointError) as error:
        return _complain(str(error), 1)


def _complain(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
