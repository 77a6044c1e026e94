"""What is typed: the flags of all commands, and the files that `--config` takes."""

from __future__ import annotations

import argparse
import ast
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ._common import CommandError
from ._schedule import BARE


class UsageError(Exception):
    """What argparse says of wrong arguments."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        """With the parser that knows the usage."""
        super().__init__(message)
        self.parser = parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(self, message)


# -- Flags -------------------------------------------------------------------------------------------------------------


def _whole(low: int, high: float = math.inf) -> Callable[[str], int]:
    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            upper = "" if high == math.inf else f" and at most {high}"
            raise argparse.ArgumentTypeError(f"must be an integer at least {low}{upper}, got {text!r}")
        return value

    return integer


def _real(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Callable[[str], float]:
    """Numbers from `low` to `high`, without these where `above` or `below` says so; always finite."""
    words = [f"{'above' if above else 'at least'} {low:g}"] if low > -math.inf else []
    words += [f"{'below' if below else 'at most'} {high:g}"] if high < math.inf else []

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        fits = (value > low if above else value >= low) and (value < high if below else value <= high)
        if not (fits and math.isfinite(value)):
            raise argparse.ArgumentTypeError(
                f"must be a number {' and '.join(words) or 'that is finite'}, got {text!r}"
            )
        return value

    return number


def _batch_size(text: str) -> int | str:
    return text if text == "full" else _whole(1)(text)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name.strip() and value.strip()):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    return name.strip().replace("-", "_"), value.strip()


NOT_IN_CONFIG = ("config", "resume", "overwrite", "help")
"""What belongs to one call and not to a run."""

SHARE = _real(0, 1, below=True)
POSITIVE = _real(0, above=True)


def _flag(
    group: Any, name: str, metavar: str, kind: Callable[[str], Any], default: Any, text: str, **more: Any
) -> None:
    """Adds a flag. Its help ends with the default, if it has one."""
    shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    end = f" (default: {shown})" if default is not None and shown else ""
    group.add_argument(name, metavar=metavar, type=kind, default=default, help=f"{text}{end}", **more)


def _choice(group: Any, name: str, values: Sequence[str], default: str | None, text: str) -> None:
    end = f" (default: {default})" if default is not None else ""
    group.add_argument(name, metavar="|".join(values), choices=values, default=default, help=f"{text}{end}")


def _switch(group: Any, name: str, text: str) -> None:
    group.add_argument(name, action="store_true", help=text)


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    files = "a .npz file with arrays x (or images) and y (or labels), or a .csv file"
    group = parser.add_argument_group("data")
    group.add_argument("data", metavar="DATA", nargs="?", help=f"digits, which come with the package; {files}")
    _flag(
        group,
        "--label",
        "COLUMN",
        str,
        None,
        "of a .csv: name or number, from 0, of the labels' column (default: last)",
    )
    _choice(group, "--task", ("classify", "regress"), None, "(default: regress if the labels have fractions)")
    _flag(group, "--validation", "SHARE", SHARE, 0.2, "share of the samples to validate with after each epoch")
    _flag(group, "--test", "SHARE", SHARE, 0.2, "share of the samples that is looked at once, at the end")
    _flag(group, "--seed", "N", _whole(0, 2**64 - 1), 0, "of the split, the first weights, the order and dropout")


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    _choice(group, "--model", ("mlp", "cnn"), "mlp", "fully connected, or convolutions (for images)")
    widths = "widths of the hidden layers, of a cnn of those after its convolutions"
    _flag(group, "--hidden", "N", _whole(1), [64, 64], widths, nargs="*")
    _choice(group, "--norm", ("batch", "layer", "none"), "batch", "after each hidden layer")
    _flag(group, "--dropout", "P", SHARE, 0.0, "share of a hidden layer's outputs that are dropped")
    _flag(group, "--label-smoothing", "E", _real(0, 1), 0.0, "share of a label that is spread over all classes")


def _optimizer_arguments(parser: argparse.ArgumentParser) -> None:
    own = " (default: the optimiser's own)"
    group = parser.add_argument_group("optimiser")
    _flag(group, "--optimizer", "NAME", str, "adamw", "a class of ironstep.optim, in any case")
    _flag(group, "--lr", "X", POSITIVE, None, f"learning rate; the command lr-find suggests one{own}")
    _flag(group, "--weight-decay", "X", _real(0), None, f"not of biases and the parameters of norms{own}")
    _flag(group, "--momentum", "X", SHARE, None, f"of optimisers that have it{own}")
    _flag(group, "--max-norm", "X", POSITIVE, None, "limit of the norm of all gradients together")
    _flag(group, "--clip-value", "X", POSITIVE, None, "limit of each element of a gradient")
    more = "any other hyperparameter, as in --set betas=0.9,0.95; as often as needed"
    group.add_argument("--set", metavar="NAME=VALUE", type=_setting, action="append", default=[], help=more)
    _flag(group, "--batch-size", "N", _batch_size, 32, "samples per step, or 'full': all of them")


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    curves = "of the learning rate: a name or a call, see 'ironstep schedule --help', or plateau (default: constant)"
    _flag(group, "--epochs", "N", _whole(1), 30, "passes over the training samples")
    _flag(group, "--schedule", "TEXT", str, None, curves)
    _flag(group, "--ema-decay", "X", SHARE, None, "average the weights over the steps, and validate and end with that")
    _flag(group, "--accumulate", "N", _whole(1), 1, "batches whose gradients make one step")
    _flag(
        group, "--patience", "N", _whole(0), None, "stop after N epochs without a better validation loss; keep the best"
    )
    _flag(group, "--time-limit", "SECONDS", POSITIVE, None, "stop after so long")
    _flag(group, "--out", "FOLDER", Path, Path("run"), "where all files go")
    _switch(group, "--resume", "go on with the run in --out, with the settings in its config.toml; flags given win")
    _switch(group, "--overwrite", "begin anew although --out has a run")
    _flag(group, "--checkpoint-every", "STEPS", _whole(1), None, "write last.safetensors so often, not only each epoch")
    _flag(group, "--config", "FILE", Path, None, "a .toml with the same names, such as config.toml of a run; flags win")
    _switch(group, "--no-progress", "no bar, no line per epoch")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(120, _columns()))


def _columns() -> int:
    return os.get_terminal_size().columns - 2 if sys.stdout.isatty() else 100


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    top = _Parser(
        prog="python -m ironstep",
        formatter_class=_Help,
        description="Training with ironstep from the command line.",
        epilog="example: python -m ironstep train digits --model cnn --schedule one_cycle --lr 0.01 --epochs 20\n\n"
        "Each command has its own --help.",
    )
    top.add_argument("--version", action="version", version=f"ironstep {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    parsers: dict[str, _Parser] = {}

    def add(name: str, arguments: str, short: str, more: str, example: str) -> _Parser:
        about = f"{short[0].upper()}{short[1:]}.{' ' if more else ''}{more}"
        parsers[name] = commands.add_parser(
            name,
            usage=f"%(prog)s {arguments}",
            help=short,
            formatter_class=_Help,
            description=_filled(about),
            epilog=f"example: python -m ironstep {example}",
        )
        parsers[name].set_defaults(command=name)
        return parsers[name]

    p = add(
        "demo",
        "[options]",
        "train a small network on handwritten digits with the whole recipe, and report",
        "The recipe: batch norm, dropout, label smoothing, AdamW with decoupled weight decay, warmup and a cosine, "
        "early stopping. Writes report.html, report.png, history.csv and model.safetensors.",
        "demo --out demo",
    )
    _flag(p, "--out", "FOLDER", Path, Path("demo"), "where the report goes")
    _flag(p, "--seeds", "N", _whole(1), None, "trainings, with the seeds 0 to N - 1 (default: 3)")
    _flag(p, "--epochs", "N", _whole(1), None, "at most so many (default: the recipe's)")
    _switch(p, "--no-progress", "no bar, no line per epoch")

    p = add(
        "train",
        "DATA [options]",
        "train a network on data of your own, or on the digits",
        "Inputs are standardised with the mean and standard deviation of the training samples. Writes to --out: "
        "history.csv, config.toml (what was used; --config takes it), last.safetensors and best.safetensors (to go on "
        "from), model.safetensors (the weights at the end, and mean and standard deviation), and curves.png if "
        "matplotlib is installed.",
        "train flowers.csv --label species --schedule cosine --lr 0.01 --patience 10",
    )
    _data_arguments(p)
    _model_arguments(p)
    _optimizer_arguments(p)
    _train_arguments(p)

    p = add(
        "lr-find",
        "DATA [options]",
        "find a learning rate: raise it step by step and watch the loss",
        "Prints three suggestions, and draws lr-find.png if matplotlib is installed.",
        "lr-find digits --model cnn --optimizer sgd --momentum 0.9",
    )
    _data_arguments(p)
    _model_arguments(p)
    _optimizer_arguments(p)
    group = p.add_argument_group("range")
    _flag(group, "--min-lr", "X", POSITIVE, 1e-7, "of the first step")
    _flag(group, "--max-lr", "X", POSITIVE, 10.0, "of the last step")
    _flag(group, "--num", "N", _whole(2), 100, "steps")
    _flag(group, "--out", "FOLDER", Path, Path(), "where lr-find.png goes")
    _switch(group, "--no-progress", "as in train; there is nothing to leave out")

    p = add(
        "schedule",
        "TEXT [options]",
        "draw a learning-rate schedule",
        "TEXT is a call of a function of ironstep.schedules, in which lr, total (steps) and epoch (steps per epoch) "
        f"are known, or a name alone: {', '.join(BARE)}.",
        'schedule "warmup_cosine(lr, steps=total, warmup_steps=2*epoch)" --lr 0.01',
    )
    p.add_argument("text", metavar="TEXT", help="the schedule")
    _flag(p, "--lr", "X", POSITIVE, 0.1, "learning rate")
    _flag(p, "--total", "STEPS", _whole(1), 1000, "steps of the run")
    _flag(p, "--epoch", "STEPS", _whole(1), None, "steps of an epoch (default: a tenth of --total)")
    _flag(p, "--out", "FILE", Path, Path("schedule.png"), "picture, or 'none' for the sketch on the terminal alone")

    p = add(
        "bench",
        "[options]",
        "time steps and layers beside NumPy, torch and JAX, as far as installed",
        "Contestants take turns; medians. Nothing else should run meanwhile.",
        "bench --seconds 2",
    )
    _flag(p, "--seconds", "S", POSITIVE, 1.0, "for each contestant in each row")
    _flag(p, "--only", "TEXT", str, "", "rows whose name contains this")

    add("info", "", "versions, instruction sets, threads and extras, for a bug report", "", "info")
    return top, parsers


def _filled(text: str) -> str:
    import textwrap

    return textwrap.fill(text, min(100, _columns()))


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, over those of the `--config` file, over the defaults."""
    top, parsers = _parsers()
    options = top.parse_args(argv)
    if options.command == "train":
        options = _configured(top, parsers["train"], options, argv)
    if options.command in ("train", "lr-find") and options.data is None:
        if getattr(options, "resume", False) and options.config is None:
            raise CommandError(f"{options.out} has no {_missing(options.out)}, so there is nothing to go on with")
        raise UsageError(parsers[options.command], "the following arguments are required: DATA")
    return options


def _missing(out: Path) -> str:
    return "config.toml, and DATA is not given" if (out / "last.safetensors").exists() else "run"


# -- Configuration files -----------------------------------------------------------------------------------------------


def _configured(top: _Parser, parser: _Parser, options: argparse.Namespace, argv: list[str]) -> argparse.Namespace:
    path: Path | None = options.config
    if path is None and options.resume and (options.out / "config.toml").exists():
        path = options.out / "config.toml"
    if path is None:
        return options
    given = read_toml(path)
    actions = {action.option_strings[-1][2:]: action for action in parser._actions if action.option_strings}
    known = ["data", *(name for name in actions if name not in NOT_IN_CONFIG)]
    for name, value in given.items():
        if name not in known:
            raise UsageError(parser, f"{path}: unknown key {name!r}; the keys are {', '.join(known)}")
        if name == "data":
            parser.set_defaults(data=str(value))
            continue
        # Through argparse, so that values are checked as those of flags are.
        tokens = _tokens(path, name, value, takes=actions[name].nargs)
        try:
            parsed = parser.parse_args(["data", *tokens])
        except UsageError as error:
            raise UsageError(parser, f"{path}: {error}") from None
        parser.set_defaults(**{actions[name].dest: getattr(parsed, actions[name].dest)})
    return top.parse_args(argv)


def read_toml(path: Path) -> dict[str, Any]:
    from importlib import import_module

    try:
        tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ModuleNotFoundError:
        raise ModuleNotFoundError('before Python 3.11 a .toml file needs tomli: pip install "ironstep[toml]"') from None
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise CommandError(f"{path} is no valid TOML: {error}") from None
    return content


def _tokens(path: Path, name: str, value: Any, takes: Any) -> list[str]:
    """What one would type for a value of the file."""
    flag = f"--{name}"
    if name == "set":
        if not isinstance(value, dict):
            raise CommandError(f'{path}: "set" must be a table, as in: [set] and a line: betas = [0.9, 0.95]')
        return [f"--set={key}={_text(item)}" for key, item in value.items()]
    if takes == 0:
        if not isinstance(value, bool):
            raise CommandError(f"{path}: {name!r} must be true or false, got {value!r}")
        return [flag] if value else []
    if takes == "*":
        return [flag, *(map(_text, value) if isinstance(value, list) else [_text(value)])]
    return [f"{flag}={_text(value)}"]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _toml(value: Any) -> str:
    import json

    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (str, Path)):
        return json.dumps(str(value), ensure_ascii=False)
    return _text(value)


def literal(text: str) -> Any:
    """The value of a Python literal, or of true, false and none in any case; a list becomes a tuple.

    Raises:
        ValueError: It is none of these.
    """
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except SyntaxError:
        raise ValueError(f"no literal: {text!r}") from None
    return tuple(value) if isinstance(value, list) else value


def _plain(text: str) -> Any:
    """A number, a truth value or a tuple of these, as TOML has them; else the text."""
    try:
        value = literal(text)
    except ValueError:
        return text
    # A literal of infinity is 1e999, but its TOML, inf, would be none.
    items = value if isinstance(value, tuple) else (value,)
    return value if all(isinstance(x, (bool, int, float)) and abs(x) != math.inf for x in items) else text


def changed(options: argparse.Namespace, before: Mapping[str, Any]) -> list[str]:
    """The flags that are not as in a `config.toml` that was read."""
    if not before:
        return []
    sets = {name: _toml(_plain(text)) for name, text in dict(options.set).items()}
    old_sets = {name: _toml(value) for name, value in before.get("set", {}).items()}
    now = {name.replace("_", "-"): value for name, value in vars(options).items() if name not in ("command", "set")}
    flags = []
    for name, value in now.items():
        old = before.get(name)
        same = value is old or (None not in (value, old) and _toml(value) == _toml(old))
        if not same and name not in (*NOT_IN_CONFIG, "out", "no-progress", "epochs", "time-limit"):
            flags.append("DATA" if name == "data" else f"--{name}")
    return flags + (["--set"] if sets != old_sets else [])


def write_config(options: argparse.Namespace, path: Path) -> None:
    """Every setting of the run, with the names of the flags."""
    lines = [f"# ironstep {__version__}: python -m ironstep train --config {path.as_posix()}"]
    for name, value in vars(options).items():
        if name not in (*NOT_IN_CONFIG, "command", "set") and value is not None:
            lines.append(f"{name.replace('_', '-')} = {_toml(value)}")
    if options.set:
        lines += ["", "[set]", *(f"{name} = {_toml(_plain(text))}" for name, text in dict(options.set).items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
