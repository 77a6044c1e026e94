"""`train` and `lr-find`, and the network, the optimiser and the step that the flags describe."""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import shlex
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._arguments import changed, literal, read_toml, write_config
from ._common import Array, CommandError, Interrupted, many, picture
from ._data import Problem, load, problem
from ._schedule import curve

if TYPE_CHECKING:
    from .. import nn
    from ..optim import Optimizer
    from ..train import Run

# -- Network, optimiser, step ------------------------------------------------------------------------------------------


def network(task: Problem, options: argparse.Namespace) -> nn.Sequential:
    """The network that the flags describe, with initial weights by He."""
    from .. import nn

    rng = np.random.default_rng(options.seed)
    he: dict[str, Any] = {"init": "kaiming_normal", "seed": rng}
    layers: list[nn.Layer] = []
    x = task.train[0]
    if options.model == "cnn":
        if x.ndim != 4:
            raise CommandError(
                f"--model cnn is for images, but {task.data.source} has rows of numbers; use --model mlp"
            )
        channels, side = x.shape[1], min(x.shape[2:])
        if side < 4:
            raise CommandError(f"--model cnn needs images of at least 4 x 4 pixels, got {x.shape[2]} x {x.shape[3]}")
        # A convolution at full size, and then one per halving, with twice the channels, down to about 4 x 4.
        width = 16
        layers += [nn.Conv2d(channels, width, 3, padding=1, **he), *_norm2d(options.norm, width), nn.ReLU()]
        while width < 128 and side >= 8:
            layers += [nn.Conv2d(width, 2 * width, 3, padding=1, **he), *_norm2d(options.norm, 2 * width), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            width, side = 2 * width, side // 2
    if x.ndim == 4:
        layers.append(nn.Flatten())
    flat = nn.Sequential(*layers).predict(x[:1]).shape[1]
    for k, width in enumerate(options.hidden):
        if options.dropout and (k or options.model == "cnn"):
            layers.append(nn.Dropout(options.dropout, seed=rng))
        layers += [nn.Linear(flat, width, **he), *_norm1d(options.norm, width), nn.ReLU()]
        flat = width
    if options.dropout and len(layers) > 1:
        layers.append(nn.Dropout(options.dropout, seed=rng))
    return nn.Sequential(*layers, nn.Linear(flat, task.outputs, init="xavier_normal", seed=rng))


def _norm1d(name: str, width: int) -> list[nn.Layer]:
    from .. import nn

    if name == "none":
        return []
    return [nn.BatchNorm1d(width) if name == "batch" else nn.LayerNorm(width)]


def _norm2d(name: str, width: int) -> list[nn.Layer]:
    from .. import nn

    if name == "none":
        return []
    # One group is layer norm of an image, with a scale per channel.
    return [nn.BatchNorm2d(width) if name == "batch" else nn.GroupNorm(1, width)]


def _optimizer_class(options: argparse.Namespace) -> type[Optimizer]:
    from ..optimize import METHODS

    cls = METHODS.get(options.optimizer.lower().replace("_", "").replace("-", ""))
    if cls is None:
        raise CommandError(f"--optimizer must be one of {', '.join(METHODS)}, got {options.optimizer!r}")
    return cls


def optimizer(params: Any, options: argparse.Namespace, lr: Any, names: Mapping[str, Any]) -> tuple[Optimizer, str]:
    """The optimiser that the flags describe, and what to call it. `names`: what schedules in `--set` may use."""
    from ..optim._base import arguments

    cls = _optimizer_class(options)
    given = {
        "lr": lr,
        "weight_decay": options.weight_decay,
        "momentum": options.momentum,
        "max_norm": options.max_norm,
        "clip_value": options.clip_value,
        "ema_decay": getattr(options, "ema_decay", None),
    }
    settings = {name: value for name, value in given.items() if value is not None}
    known = arguments(cls)
    for name, text in options.set:
        if getattr(options, name, None) is not None and name in given:
            raise CommandError(f"{name} is given twice: by --{name.replace('_', '-')} and by --set")
        settings[name] = _value(name, text, names)
    for name in settings:
        if name not in known:
            raise CommandError(f"{cls.__name__} has no hyperparameter {name!r}; it has {', '.join(known)}")
    try:
        opt = cls(params, **{"weight_decay_mask": lambda p: p.ndim > 1, **settings})
    except TypeError as error:
        raise CommandError(str(error)) from None
    shown = {"lr": opt.param_groups[0]["lr"], **settings}
    return opt, f"{cls.__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _value(name: str, text: str, names: Mapping[str, Any]) -> Any:
    """What stands behind `--set NAME=`: a literal, a schedule, or text."""
    try:
        return literal(text)
    except ValueError:
        if "(" in text:
            return curve(text, **names)
        if name != "nonfinite":
            raise CommandError(
                f"--set {name} must be a number, true, false, a pair or a schedule, got {text!r}"
            ) from None
        return text


def train_step(model: nn.Sequential, task: Problem, options: argparse.Namespace, take: Callable[..., Any]) -> Any:
    from .. import functional

    def step(x: Array, target: Array) -> dict[str, float]:
        output = model(x)
        if task.classify:
            loss, grad = functional.cross_entropy(
                output, target, label_smoothing=options.label_smoothing, return_grad=True
            )
            metrics = {"loss": loss, "accuracy": float(np.mean(output.argmax(1) == target))}
        else:
            loss, grad = functional.mse_loss(output, target, return_grad=True)
            metrics = {"loss": loss}
        model.backward(grad)
        take(model.grads, len(x))
        return metrics

    return step


def _predicted(model: nn.Sequential, x: Array, rows: int = 1024) -> Array:
    return np.concatenate([model.predict(x[i : i + rows]) for i in range(0, len(x), rows)])


def measured(model: nn.Sequential, task: Problem, part: tuple[Array, Array]) -> dict[str, float]:
    """Without dropout and smoothing; of regression in the units of y."""
    from .. import functional

    output, target = _predicted(model, part[0]), part[1]
    if task.classify:
        return {
            "loss": float(functional.cross_entropy(output, target)),
            "accuracy": float(np.mean(output.argmax(1) == target)),
        }
    error = (output.astype(np.float64) - target) * task.scaling["output_std"]
    spread = target.astype(np.float64) * task.scaling["output_std"]
    variance = float(np.mean((spread - spread.mean(0)) ** 2))
    squared = float(np.mean(error**2))
    return {
        "loss": float(functional.mse_loss(output, target)),
        "rmse": math.sqrt(squared),
        "r2": 1.0 - squared / variance if variance > 0 else math.nan,
    }


def _said(metrics: Mapping[str, float]) -> str:
    texts = {"accuracy": "accuracy {:.2%}", "loss": "loss {:.4g}", "rmse": "RMSE {:.4g}", "r2": "R^2 {:.3f}"}
    return ", ".join(texts[name].format(value) for name, value in metrics.items())


def _batches(task: Problem, options: argparse.Namespace) -> Any:
    from ..data import Batches

    size = None if options.batch_size == "full" else min(options.batch_size, len(task.train[0]))
    # Batch norm cannot take the mean and variance of one sample.
    alone = size is not None and options.norm == "batch" and len(task.train[0]) % size == 1
    return Batches(*task.train, batch_size=size, seed=options.seed, drop_last=alone and size != 1)


# -- train -------------------------------------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> None:
    """The command."""
    from .. import schedules
    from .. import train as loop

    _refuse(options)
    data = load(options.data, options.label, options.task)
    task = problem(data, options)
    model, batches = network(task, options), _batches(task, options)
    total = options.epochs * len(batches) // options.accumulate
    if total == 0:
        raise CommandError(f"--accumulate must be at most the {options.epochs * len(batches)} batches of the run")
    epoch = max(1, len(batches) // options.accumulate)
    names = {"lr": _base_lr(options), "total": total, "epoch": epoch}
    plateau, lr = None, options.lr
    if options.schedule == "plateau":
        plateau = lr = schedules.ReduceLROnPlateau(names["lr"])
    elif options.schedule is not None:
        lr = curve(options.schedule, **names)
    opt, described = optimizer(model.params, options, lr, names)
    state: dict[str, Any] = {"model": model, "opt": opt, "scaling": task.scaling}
    take: Callable[..., Any] = lambda grads, samples: opt.step(grads)  # noqa: E731
    if options.accumulate > 1:
        state["accumulator"] = accumulator = loop.Accumulator(opt, options.accumulate)
        take = accumulator.step

    stopping = loop.EarlyStopping(patience=options.patience, restore=model) if options.patience is not None else None
    out: Path = options.out
    if (out / "last.safetensors").exists() and not (options.resume or options.overwrite):
        raise CommandError(f"{out} has a run already: --resume goes on with it, --overwrite begins anew")
    out.mkdir(parents=True, exist_ok=True)
    config = out / "config.toml"
    last = out / "last.safetensors"
    before = read_toml(config) if options.resume and config.exists() else {}
    if options.resume and not last.exists():
        print(f"{out} has no checkpoint to go on from: the run begins", flush=True)
    take_flags = _flags(opt)

    def begin(run: Run) -> None:
        take_flags()
        if plateau is not None and run.step:
            # It has come down from what --lr was.
            old, now = before.get("lr", _default_lr(options)), names["lr"]
            saved = plateau.state_dict()
            if old != now:
                plateau.load_state_dict({**saved, "lr": saved["lr"] / old * now})
        if jumps := _jumps(options, before, names, len(batches), opt.steps) if run.step else []:
            print(
                f"with {many(options.epochs, 'epoch')} instead of {before['epochs']}, schedules are stretched: "
                f"at step {opt.steps:,} {', '.join(jumps)}",
                flush=True,
            )
        write_config(options, config)

    if options.overwrite:
        # Or what the new run does not write would be taken for its own.
        for name in ("last.safetensors", "best.safetensors", "model.safetensors", "curves.png"):
            (out / name).unlink(missing_ok=True)
    call = _Call(begin)
    callbacks = [
        loop.TerminateOnNaN(),
        loop.LearningRateMonitor(opt),
        plateau,
        stopping,
        loop.TimeLimit(options.time_limit) if options.time_limit else None,
        loop.SwapEMA(opt) if options.ema_decay is not None else None,
        loop.CSVLogger(out / "history.csv"),
        loop.Checkpoint(out, every=options.checkpoint_every, best="val_loss" if task.validation else None),
        call,
    ]
    parts = {"train": task.train, "validate": task.validation, "test": task.test}
    sizes = ", ".join(f"{len(part[0]):,} to {name}" for name, part in parts.items() if part)
    print(f"{data}; {sizes}\n{_described(model, options)}, {described}", flush=True)
    started = time.perf_counter()
    try:
        # What diverges is found by TerminateOnNaN, which says more than NumPy's warnings.
        with np.errstate(all="ignore"):
            history = loop.fit(
                train_step(model, task, options, take),
                batches,
                options.epochs,
                callbacks=[callback for callback in callbacks if callback is not None],
                validate=partial(measured, model, task, task.validation) if task.validation is not None else None,
                state=state,
                resume=last if options.resume else None,
                progress=False if options.no_progress else None,
            )
    except KeyboardInterrupt:
        if not last.exists():
            raise
        raise Interrupted(f"go on with: python -m ironstep train --resume --out {shlex.quote(str(out))}") from None
    except (TypeError, ValueError) as error:
        if call.begun or not (options.resume and last.exists()):
            raise
        loop.read_state(last)  # Raises what is to be said if it is the file that is broken.
        flags = ", ".join(changed(options, before))
        what = str(error.__cause__ or error).partition(": make the optimiser")[0]  # That is for scripts.
        raise CommandError(
            f"{last} does not fit these flags{flags and f' ({flags})'}: {what}; "
            "go on with those of its config.toml, or begin anew with --overwrite or another --out"
        ) from None
    seconds = time.perf_counter() - started
    if not call.worth_saving:
        raise CommandError(f"the run was stopped: {history.reason}; a lower --lr, or --max-norm 1, may help")
    saved: dict[str, Any] = {"model": model, "scaling": task.scaling}
    if task.classify:
        saved["classes"] = _Names(data.classes)
    loop.save_state(out / "model.safetensors", **saved)
    epochs = f"{many(len(history) - call.epochs_before, 'epoch')} in {seconds:.1f} s"
    in_all = f", {len(history)} in all" if call.epochs_before else ""
    if call.steps_before is not None and call.steps_before == call.steps:
        why = f"the run had stopped: {history.reason}" if history.reason else "a higher --epochs makes the run longer"
        print(f"nothing was left to do after {many(len(history), 'epoch')}; {why}")
    else:
        print(f"{epochs}{in_all}{f'; stopped: {history.reason}' if history.reason else ''}")
    if task.validation is not None and len(history):
        row = history.rows[stopping.best_epoch - 1 if stopping else -1]
        print(f"validation: {_said(_validation(row))} (epoch {row['epoch']})")
    if task.test is not None:
        print(f"test: {_said(measured(model, task, task.test))}")
    written = ["history.csv", "config.toml", "model.safetensors", "last.safetensors"]
    written += ["best.safetensors"] if (out / "best.safetensors").exists() else []
    hint = ""
    try:
        if len(history):
            history.plot(out / "curves.png")
            written.append("curves.png")
    except ModuleNotFoundError as error:
        hint = f"\nno curves.png: {error}"
    print(f"in {out}: {', '.join(written)}{hint}")


class _Call:
    """What this call adds to the run: where it began, and whether it went well."""

    def __init__(self, begin: Callable[[Run], None]) -> None:
        """`begin` is called when the run is known to be one that can go on with these flags."""
        self.begin = begin
        self.begun = False
        self.epochs_before = 0
        self.steps_before: int | None = None
        self.steps = 0
        self.worth_saving = True

    def on_start(self, run: Run) -> None:
        self.begun = True
        self.epochs_before, self.steps_before = run.epoch, run.step
        self.begin(run)

    def on_end(self, run: Run) -> None:
        self.steps = run.step
        self.worth_saving = run.worth_saving


class _Names:
    """Texts, as something that `save_state` takes."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def state_dict(self) -> list[str]:
        return self.names

    def load_state_dict(self, state_dict: list[str]) -> None:
        self.names = state_dict


def _flags(opt: Optimizer) -> Callable[[], None]:
    """A function that sets hyperparameters and options to what they are now: a checkpoint brings its own numbers."""
    groups = [copy.copy(group) for group in opt.param_groups]
    around = {name: getattr(opt, name) for name in ("max_norm", "clip_value", "nonfinite", "ema_decay")}

    def take() -> None:
        for group, flags in zip(opt.param_groups, groups, strict=True):
            group.take(flags)
        for name, value in around.items():
            setattr(opt, name, value)

    return take


def _jumps(
    options: argparse.Namespace, before: Mapping[str, Any], names: Mapping[str, Any], batches: int, step: int
) -> list[str]:
    """What another `--epochs` than `before` changes where the run goes on: the values of schedules that use `total`."""
    old_names = {**names, "total": before.get("epochs", options.epochs) * batches // options.accumulate}
    old_texts = {"lr": before.get("schedule"), **before.get("set", {})}
    jumps = []
    for name, text in {"lr": options.schedule, **dict(options.set)}.items():
        # Not if it is another one than before, or none that a text can make, as plateau.
        with contextlib.suppress(CommandError, ValueError):
            if text is not None and text == old_texts.get(name):
                old, new = (float(curve(text, **values)(step)) for values in (old_names, names))
                if old != new:
                    jumps.append(f"{name} from {old:.4g} to {new:.4g}")
    return jumps


def _refuse(options: argparse.Namespace) -> None:
    """Flags that do not go together."""
    if options.patience is not None and options.validation == 0:
        raise CommandError("--patience needs a validation part: --validation must be above 0")
    if options.schedule == "plateau" and options.validation == 0:
        raise CommandError("--schedule plateau needs a validation part: --validation must be above 0")
    if options.resume and options.overwrite:
        raise CommandError("--resume and --overwrite exclude each other")


def _base_lr(options: argparse.Namespace) -> float:
    return _default_lr(options) if options.lr is None else float(options.lr)


def _default_lr(options: argparse.Namespace) -> float:
    import inspect

    default = inspect.signature(_optimizer_class(options)).parameters["lr"].default
    return float(default) if isinstance(default, float) else 1e-3


def _described(model: nn.Sequential, options: argparse.Namespace) -> str:
    return f"{options.model} of {sum(p.size for p in model.params.values()):,} parameters"


def _validation(row: Mapping[str, Any]) -> dict[str, float]:
    return {name[4:]: value for name, value in row.items() if name.startswith("val_")}


# -- lr-find -----------------------------------------------------------------------------------------------------------


def lr_find(options: argparse.Namespace) -> None:
    """The command."""
    from .. import train as loop

    if options.min_lr >= options.max_lr:
        raise CommandError(f"--min-lr must be below --max-lr, got {options.min_lr:g} and {options.max_lr:g}")
    task = problem(load(options.data, options.label, options.task), options)
    model = network(task, options)
    opt, described = optimizer(model.params, options, options.lr, {})
    print(f"{task.data}; {len(task.train[0]):,} to train\n{_described(model, options)}, {described}", flush=True)
    with np.errstate(all="ignore"):  # It is to diverge in the end.
        found = loop.lr_find(
            train_step(model, task, options, lambda grads, samples: opt.step(grads)),
            _batches(task, options),
            opt,
            state={"model": model},
            min_lr=options.min_lr,
            max_lr=options.max_lr,
            num=options.num,
        )
    print(f"{many(len(found.lrs), 'learning rate')} from {found.lrs[0]:.3g} to {found.lrs[-1]:.3g}; {found.stopped}")
    meanings = {
        "valley": "in the longest fall of the loss; a good first choice",
        "steepest": "where the loss falls fastest",
        "minimum": "a tenth of where the loss is lowest",
    }
    for name, meaning in meanings.items():
        print(f"  {name:<9} {found.suggest(name):<9.3g} {meaning}")
    options.out.mkdir(parents=True, exist_ok=True)
    picture(found.plot, options.out / "lr-find.png")
