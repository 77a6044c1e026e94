"""Callbacks of `fit`. What they decide and measure can be had without it too."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..functional._arrays import FINITE, NOT_NEGATIVE, POSITIVE, Array, count, flag, number
from ..optim._base import AVERAGED
from . import _state
from ._history import SIGNS, check_mode

if TYPE_CHECKING:
    from ..optim import Optimizer
    from ._fit import Run

SUFFIX = ".safetensors"
LAST, BEST = f"last{SUFFIX}", f"best{SUFFIX}"


def _name(argument: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be the name of a metric, got {value!r}")
    return value


def _metric(run: Run, monitor: str, who: str) -> float:
    """A metric of the epoch that has just ended."""
    if monitor not in run.metrics:
        raise ValueError(f"{who} needs the metric {monitor!r} in each epoch, which has {', '.join(run.metrics)}")
    return float(run.metrics[monitor])


# -- When to stop ------------------------------------------------------------------------------------------------------


class Decision(NamedTuple):
    """What `EarlyStopping.update` says."""

    stop: bool
    """Whether to stop."""
    improved: bool
    """Whether the metric is the best one so far."""
    reason: str | None
    """Why to stop, or None."""


class EarlyStopping:
    r"""Stops when a metric has not improved for some epochs, and can bring back the best weights. Counts as Keras does.

    With `mode="min"` a value $m$ is an improvement on the best one $b$ if $m + \delta < b$ ($m - \delta > b$ with
    `"max"`), with $\delta$ = `min_delta`. An epoch without improvement counts, and the run stops at the `patience`-th
    in a row (at the first one with a patience of 0 or 1), but not in the first epoch. NaN is no improvement; a NaN that
    is the first value stays the best one, as in Keras, which only `check_finite=False` lets happen.

    Args:
        monitor: The name of the metric in the row of the epoch.
        patience: How many epochs without improvement stop the run.
        min_delta: By how much a value must be better than the best one.
        mode: "min" or "max": which values are better.
        baseline: As long as no value is better than it (by `min_delta`), improvements do not reset the count.
        start_from_epoch: So many epochs at the beginning are not looked at.
        restore: Of what the best state is kept, in memory that is allocated once, and put back at the end of a run that
            was not broken off: a model, or anything that `save_state` takes. Averaged weights (`SwapEMA`) are kept as
            averaged. Optimisers in the `state` of the run then `sync_master`.
        check_finite: Stop at a value that is infinite or NaN.
        stopping_threshold: Stop as soon as a value is better than this.

    Attributes:
        best: The best value, or None.
        best_epoch: Its epoch, from 1; 0 if there is none.
        stopped_epoch: The epoch that was the last, from 1; 0 if it has not stopped the run.
        wait: Epochs since the last improvement.

    Raises:
        TypeError: An argument is of a wrong type.
        ValueError: An argument is out of range.

    Example:
        In a loop of your own:

        >>> from ironstep.train import EarlyStopping
        >>> stop = EarlyStopping(patience=2)
        >>> for loss in [0.5, 0.3, 0.4, 0.35, 0.2]:
        ...     decision = stop.update(loss)
        ...     if decision.stop:
        ...         break
        >>> decision
        Decision(stop=True, improved=False, reason='val_loss did not improve on 0.3 for 2 epochs')
        >>> stop.best, stop.best_epoch
        (0.3, 2)

    References:
        Prechelt, Early stopping - but when?, Neural Networks: Tricks of the Trade, 1998.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 0,
        min_delta: float = 0.0,
        mode: str = "min",
        baseline: float | None = None,
        start_from_epoch: int = 0,
        restore: Any = None,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
    ) -> None:
        self.monitor = _name("monitor", monitor)
        self.patience = count("patience", patience, 0)
        self.min_delta = number("min_delta", min_delta, NOT_NEGATIVE)
        self.mode = check_mode(mode)
        self.baseline = None if baseline is None else number("baseline", baseline, FINITE)
        self.start_from_epoch = count("start_from_epoch", start_from_epoch, 0)
        self.check_finite = flag("check_finite", check_finite)
        self.stopping_threshold = (
            None if stopping_threshold is None else number("stopping_threshold", stopping_threshold, FINITE)
        )
        if restore is not None:
            _state.check_kind(restore, "restore")
        self.restore = restore
        self.restored = False
        """Whether the best state was put back at the end of the run."""
        self._best_state: Any = None
        self.reset()

    def reset(self) -> None:
        """Forgets all values, for another run."""
        self.epoch = self.wait = self.best_epoch = self.stopped_epoch = 0
        self.best: float | None = None
        self.restored = False
        self._why: str | None = None
        self._reason: str | None = None
        self._has_best_state = False

    def _better(self, value: float, reference: float | None, delta: float) -> bool:
        if reference is None:
            return True
        return value + delta < reference if self.mode == "min" else value - delta > reference

    def update(self, metric: float) -> Decision:
        """Takes the value of the next epoch; keeps the state of `restore` if it is the best one.

        Args:
            metric: The value.

        Returns:
            `Decision(stop, improved, reason)`.
        """
        value = float(metric)
        self.epoch += 1
        if self.epoch <= self.start_from_epoch:
            return Decision(False, False, None)
        if self.check_finite and not math.isfinite(value):
            return self._stop("not finite", f"{self.monitor} is {value}", False)
        if self.restore is not None and not self._has_best_state:
            self._keep()
            self.best_epoch = self.epoch
        self.wait += 1
        improved = self._better(value, self.best, self.min_delta)
        if improved:
            self.best, self.best_epoch = value, self.epoch
            if self.restore is not None:
                self._keep()
            if self._better(value, self.baseline, self.min_delta):
                self.wait = 0
        threshold = self.stopping_threshold
        if threshold is not None and self._better(value, threshold, 0.0):
            return self._stop("threshold", f"{self.monitor} of {value:.4g} is better than {threshold:.4g}", improved)
        if not improved and self.wait >= self.patience and self.epoch > 1:
            epochs = "1 epoch" if self.wait == 1 else f"{self.wait} epochs"
            best = "a first value" if self.best is None else f"{self.best:.4g}"
            return self._stop("patience", f"{self.monitor} did not improve on {best} for {epochs}", False)
        return Decision(False, improved, None)

    def _stop(self, why: str, reason: str, improved: bool) -> Decision:
        self.stopped_epoch, self._why, self._reason = self.epoch, why, reason
        return Decision(True, improved, reason)

    def _keep(self) -> None:
        self._best_state = _state.refreshed(self._best_state, _state.state_of(self.restore, "restore"))
        self._has_best_state = True

    def restore_best(self) -> None:
        """Puts the best state back into `restore`.

        In a loop of your own call `opt.sync_master()` afterwards if the optimiser has `master_weights`.

        Raises:
            ValueError: There is none.
        """
        if not self._has_best_state:
            raise ValueError("there is no best state to restore: give `restore` an object, and call `update` first")
        _state.restore(self.restore, self._best_state, "restore")

    def on_start(self, run: Run) -> None:
        """Begins anew with a new run; lets a resumed one go on if it would not be stopped now, else stops it again."""
        self.restored = False
        if run.step == 0:
            self.reset()
        elif self._why is not None and not self._stands(run):
            if run.reason == self._reason:
                run.reason = None
            self.stopped_epoch, self._why, self._reason = 0, None, None
        elif self._why is not None and run._saved_reason != self._reason:
            # Another callback stopped the run at the same epoch, and came first. It may let the run go on now.
            reason, save = str(self._reason), self._why != "not finite"
            run.defer(lambda: run.stop(reason, save=save))

    def _stands(self, run: Run) -> bool:
        """Whether what stopped the run would stop it now."""
        if self._why == "patience":
            return self.wait >= self.patience
        if self._why == "threshold":
            value = run.history.rows[-1].get(self.monitor, math.nan) if run.history.rows else math.nan
            return self.stopping_threshold is not None and self._better(value, self.stopping_threshold, 0.0)
        return True

    def on_epoch(self, run: Run) -> None:
        """Updates, and stops the run."""
        value = _metric(run, self.monitor, type(self).__name__)
        self.epoch = run.epoch - 1
        decision = self.update(value)
        if decision.stop:
            run.stop(str(decision.reason), save=self._why != "not finite")

    def on_end(self, run: Run) -> None:
        """Restores, unless the run has failed."""
        if run.status != "failed" and self._has_best_state and self.restore is not None:
            self.restore_best()
            self.restored = True
            for opt in _optimizers(run.state):
                if opt._master is not None:
                    opt.sync_master()

    def state_dict(self) -> dict[str, Any]:
        """The count, and the best state."""
        return {
            "monitor": self.monitor,
            "mode": self.mode,
            "epoch": self.epoch,
            "wait": self.wait,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "stopped_epoch": self.stopped_epoch,
            "why": self._why,
            "reason": self._reason,
            "best_state": _state.copied(self._best_state) if self._has_best_state else None,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave; patience and the like are those of this object.

        Raises:
            ValueError: It is of another metric, or its best state does not fit `restore` or is missing. Nothing was
                changed.
        """
        _state.same_names(self.state_dict(), state_dict, "an EarlyStopping")
        for name in ("monitor", "mode"):
            if state_dict[name] != getattr(self, name):
                raise ValueError(f"{name} must be {state_dict[name]!r} as it was saved, got {getattr(self, name)!r}")
        best_state = state_dict["best_state"] if self.restore is not None else None
        if best_state is not None:
            _state.check_like(best_state, _arrays(self.restore), "restore")
        elif self.restore is not None and state_dict["best_epoch"]:
            raise ValueError(
                f"restore must be None as it was when this was saved: the state of epoch {state_dict['best_epoch']}, "
                "which was the best, was not kept; leave restore out, or begin the run anew"
            )
        self.epoch, self.wait, self.best = state_dict["epoch"], state_dict["wait"], state_dict["best"]
        self.best_epoch, self.stopped_epoch = state_dict["best_epoch"], state_dict["stopped_epoch"]
        self._why, self._reason = state_dict["why"], state_dict["reason"]
        self._has_best_state = best_state is not None
        if best_state is not None:
            self._best_state = _state.refreshed(self._best_state, best_state)


def _arrays(obj: Any) -> Any:
    """The nest with its arrays only. Objects with a state judge it when they take it: it may have grown meanwhile."""
    if isinstance(obj, np.ndarray):
        return obj
    if isinstance(obj, Mapping) and not _state.is_stateful(obj):
        return {key: _arrays(item) for key, item in obj.items()}
    if isinstance(obj, (list, tuple)) and not _state.is_stateful(obj):
        return [_arrays(item) for item in obj]
    return None


def _optimizers(obj: Any) -> Iterator[Optimizer]:
    """Those in a nest of objects."""
    from ..optim import Optimizer

    if isinstance(obj, Optimizer):
        yield obj
    elif isinstance(obj, (Mapping, list, tuple)):
        for item in obj.values() if isinstance(obj, Mapping) else obj:
            yield from _optimizers(item)


class TerminateOnNaN:
    """Stops a run at a value that is infinite or NaN: of a step's metric at once, else of the epoch's.

    The state of such a step is not worth a checkpoint: `Checkpoint` keeps the one before. That may already be on the
    way there, with weights that are finite but far too large: keep several with `Checkpoint(keep=...)`.

    Args:
        monitor: The name of the metric.

    Example:
        >>> from ironstep import train
        >>> stop = train.TerminateOnNaN()
        >>> step = iter([1.0, 2.0, float("nan"), 3.0]).__next__
        >>> train.fit(lambda x: step(), [0, 1, 2, 3], epochs=1, callbacks=[stop], progress=False).reason
        'loss is nan at step 3'
    """

    def __init__(self, monitor: str = "loss") -> None:
        self.monitor = _name("monitor", monitor)

    def on_step(self, run: Run) -> None:
        """Looks at the step."""
        value = run.metrics.get(self.monitor)
        if value is not None and not math.isfinite(value):
            run.stop(f"{self.monitor} is {value} at step {run.step}", save=False)

    def on_epoch(self, run: Run) -> None:
        """Looks at the epoch."""
        value = _metric(run, self.monitor, type(self).__name__)
        if not math.isfinite(value):
            run.stop(f"{self.monitor} is {value} in epoch {run.epoch}", save=False)


class TimeLimit:
    """Stops a run after some time, between two steps or epochs. The time before a resume counts.

    A run that it stopped goes on if it is resumed with more time.

    Args:
        seconds: The limit.
        clock: A function that gives seconds.

    Example:
        >>> from ironstep import train
        >>> stop = train.TimeLimit(60)
        >>> len(train.fit(lambda x: None, [0], epochs=3, callbacks=[stop], progress=False))
        3
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = number("seconds", seconds, POSITIVE)
        if not callable(clock):
            raise TypeError(f"clock must be a function that gives seconds, got {clock!r}")
        self._clock = clock
        self._began: float | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets the time so far, for another run."""
        self._before = 0.0
        self._reason: str | None = None

    @property
    def elapsed(self) -> float:
        """Seconds so far, those before a resume included. A clock that was set back counts as one that stood."""
        return self._before + (0.0 if self._began is None else max(0.0, self._clock() - self._began))

    def on_start(self, run: Run) -> None:
        """The clock begins to run; a run that the limit stopped goes on if there is more time now."""
        if run.step == 0:
            self.reset()
        self._began = self._clock()
        if self._reason is not None and self._before < self.seconds:
            if run.reason == self._reason:
                run.reason = None
            self._reason = None

    def on_step(self, run: Run) -> None:
        """Looks at the clock."""
        elapsed = self.elapsed
        if elapsed >= self.seconds and run.reason is None:
            self._reason = f"{elapsed:.3g} s of {self.seconds:.3g} s are over"
            run.stop(self._reason)

    on_epoch = on_step

    def on_end(self, run: Run) -> None:
        """The clock stops."""
        self._before, self._began = self.elapsed, None

    def state_dict(self) -> dict[str, Any]:
        """The time so far."""
        return {"elapsed": self.elapsed, "reason": self._reason}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        _state.same_names(dict.fromkeys(("elapsed", "reason")), state_dict, "a TimeLimit")
        elapsed = number("elapsed", state_dict["elapsed"], NOT_NEGATIVE)
        self._before, self._reason = elapsed, state_dict["reason"]
        if self._began is not None:
            self._began = self._clock()


# -- Checkpoints -------------------------------------------------------------------------------------------------------


class Checkpoint:
    """Saves the run: `last.safetensors` after each epoch, and the best one.

    It is saved when all callbacks have seen the epoch or step, each file written beside its place and renamed. A run
    that is stopped in the midst of an epoch is saved too, unless what stopped it was a value that is not finite. Files
    of the same save are one file with several names (hard links) where the file system can do that.

    Args:
        folder: Where to; it is made if it is not there. It should belong to one run at a time: what a killed run has
            left half written in it is removed.
        every: Save after so many steps too.
        best: A metric of the epoch; `best.safetensors` is the run after the epoch where it was best. NaN never is. With
            `SwapEMA` it has the weights of the steps in the parameters, and the average, which the metric is of, in the
            state of the optimiser.
        mode: "min" or "max": which values of `best` are better.
        keep: If above 0, each save is also kept as `step-00001200.safetensors`, and the newest `keep` of these stay.
            Only files of this run are removed.

    Attributes:
        last: The path of `last.safetensors`, for `fit(..., resume=...)`.
        best_path: The path of `best.safetensors`.
        best_value: The best value of `best`, or None.

    Raises:
        TypeError: An argument is of a wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> import numpy as np, os, tempfile
        >>> from ironstep import train
        >>> w = np.zeros(2)
        >>> def step(x):
        ...     w[...] += x
        ...     return float(w.sum())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoint = train.Checkpoint(folder, keep=2)
        ...     for epochs in (3, 5):  # the second goes on where the first ended
        ...         history = train.fit(
        ...             step, [1, 2], epochs, callbacks=[checkpoint], state={"w": w}, resume=True, progress=False
        ...         )
        ...     sorted(os.listdir(folder))
        ['last.safetensors', 'step-00000008.safetensors', 'step-00000010.safetensors']
        >>> w, len(history)
        (array([15., 15.]), 5)
    """

    order = 2

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int | None = None,
        best: str | None = None,
        mode: str = "min",
        keep: int = 0,
    ) -> None:
        self.folder = _state.path_of("folder", folder)
        self.every = None if every is None else count("every", every, 1)
        self.best = None if best is None else _name("best", best)
        self.mode = check_mode(mode)
        self.keep = count("keep", keep, 0)
        self.last = os.path.join(self.folder, LAST)
        self.best_path = os.path.join(self.folder, BEST)
        self.reset()

    def reset(self) -> None:
        """Forgets the best value and which files there are, for another run. The files stay."""
        self.best_value: float | None = None
        self._kept: list[str] = []
        """Numbered files of this run, the oldest first."""
        self._due: list[str] | None = None
        """Files that are to be written, besides `last`; None if there is nothing to save."""

    def on_start(self, run: Run) -> None:
        """Makes the folder, and removes what a killed run has left half written."""
        run._check_state()
        os.makedirs(self.folder, exist_ok=True)
        _remove_leftovers(self.folder)
        if run.step == 0:
            self.reset()
        if self._due is not None:
            # What it was resumed from says that these files were to be written next. Perhaps they were not, or those of
            # another Checkpoint were and these were not: the state is that of then, so they are written now.
            names = self._due
            run.defer(lambda: self._write(run, names))

    def on_step(self, run: Run) -> None:
        """Saves every so many steps, and if the run stops here."""
        if run.reason is not None or (self.every is not None and run.step % self.every == 0):
            self._later(run, False)

    def on_epoch(self, run: Run) -> None:
        """Saves, also as the best one if it is."""
        improved = False
        if self.best is not None:
            value = _metric(run, self.best, type(self).__name__)
            sign = SIGNS[self.mode]
            improved = value == value and (self.best_value is None or sign * value < sign * self.best_value)
            if improved:
                self.best_value = value
        self._later(run, improved)

    def _later(self, run: Run, improved: bool) -> None:
        names = [BEST] if improved else []
        if self.keep:
            name = f"step-{run.step:08d}{SUFFIX}"
            if name not in self._kept:
                self._kept.append(name)
            names.append(name)
        self._due = names
        run.defer(lambda: self._write(run, names))

    def _write(self, run: Run, names: list[str]) -> None:
        if not run.worth_saving:
            return
        names = [*names, LAST]
        for name in names:
            self._save(run, name, names[0])
        self._due = None
        while self.keep and len(self._kept) > self.keep:
            with suppress(FileNotFoundError):
                os.remove(os.path.join(self.folder, self._kept[0]))
            del self._kept[0]

    def _save(self, run: Run, name: str, first: str) -> None:
        """Writes a file, or gives the first one of this save another name."""
        path = os.path.join(self.folder, name)
        if name == first or not _link(os.path.join(self.folder, first), path):
            run.save(path)

    def state_dict(self) -> dict[str, Any]:
        """The best value, and which numbered files there are."""
        return {
            "best": self.best,
            "mode": self.mode,
            "best_value": self.best_value,
            "kept": list(self._kept),
            "due": self._due,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave. If `best` is another metric than it was, its best value is still to come."""
        _state.same_names(self.state_dict(), state_dict, "a Checkpoint")
        same = (state_dict["best"], state_dict["mode"]) == (self.best, self.mode)
        self.best_value = state_dict["best_value"] if same else None
        self._kept = [os.path.basename(name) for name in state_dict["kept"]]
        due = state_dict["due"]
        self._due = None if due is None else [os.path.basename(name) for name in due]


def _link(source: str, target: str) -> bool:
    """Gives a file a second name, in the place of what has it; False if the file system cannot."""
    temporary = os.path.join(os.path.dirname(target), f".ironstep-{os.getpid()}-link.tmp")
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except (OSError, NotImplementedError):
        with suppress(OSError):
            os.remove(temporary)
        return False
    return True


def _remove_leftovers(folder: str) -> None:
    """Removes temporary files whose process is gone, or is this one, which is not writing any."""
    if os.name != "posix":
        return  # Elsewhere there is no harmless way to ask for a process.
    for name in os.listdir(folder):
        if not (name.startswith(".ironstep-") and name.endswith(".tmp")):
            continue
        process = name.split("-")[1]
        if process.isdecimal() and not (process != str(os.getpid()) and _is_alive(int(process))):
            with suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


# -- Averaged weights --------------------------------------------------------------------------------------------------


class _Swap:
    """The parameters of an optimiser, and room for a copy of them. Those of frozen groups are left alone."""

    def __init__(self, opt: Optimizer) -> None:
        _ = opt.ema  # Raises if there is no average.
        self._opt = opt
        self._params: list[Array] = []
        """Those that are swapped now, or were the last time."""
        self._copies: list[Array] = []
        self._before: str | None = None
        self.swapped = False

    def _active(self) -> list[tuple[Array, Array, Array | None]]:
        """Each parameter that takes steps, its average, and its full-precision copy, if it has one."""
        opt = self._opt
        params = opt._plan.params()
        every = zip(params, opt._ema or (), opt._master or [None] * len(params), opt._leaf_groups(), strict=True)
        return [(param, ema, master) for param, ema, master, i in every if not opt._groups[i].frozen]

    def average(self) -> None:
        """Writes the average into the parameters, for good."""
        self._opt._enter()
        try:
            with np.errstate(all="ignore"):
                for param, ema, master in self._active():
                    param[...] = ema
                    if master is not None:
                        master[...] = param
        finally:
            self._opt._lock.release()

    def swap(self) -> None:
        """Writes the average into the parameters, and keeps what they were."""
        if self.swapped:
            return
        opt = self._opt
        opt._enter()
        try:
            active = self._active()
            self._params = [param for param, _, _ in active]
            kept = [(copy.shape, copy.dtype, copy.strides) for copy in self._copies]
            if kept == [(param.shape, param.dtype, param.strides) for param in self._params]:
                for copy, param in zip(self._copies, self._params, strict=True):
                    copy[...] = param
            else:
                self._copies = [np.array(param, order="K") for param in self._params]
            self._before, opt._elsewhere = opt._elsewhere, AVERAGED
            self.swapped = True
            with np.errstate(all="ignore"):
                for param, ema, _ in active:
                    param[...] = ema
        finally:
            opt._lock.release()

    def back(self) -> None:
        """Makes the parameters what they were."""
        if self.swapped:
            for param, copy in zip(self._params, self._copies, strict=True):
                param[...] = copy
            self._opt._elsewhere = self._before
            self.swapped = False


@contextmanager
def averaged(opt: Optimizer) -> Iterator[None]:
    """Within the `with` block the parameters are their moving average `opt.ema`; afterwards the same bits as before.

    Args:
        opt: An optimiser with `ema_decay`. To step it within the block is a RuntimeError. Parameters of frozen groups
            stay as they are.

    Raises:
        ValueError: It keeps no average.

    Example:
        >>> import numpy as np
        >>> from ironstep import train
        >>> from ironstep.optim import SGD
        >>> w = np.array([1.0])
        >>> opt = SGD(w, lr=1.0, ema_decay=0.5)
        >>> _ = opt.step(np.array([1.0]))
        >>> with train.averaged(opt):
        ...     print(w)
        [0.5]
        >>> w
        array([0.])
    """
    swap = _Swap(opt)
    swap.swap()
    try:
        yield
    finally:
        swap.back()


class SwapEMA:
    """Validates with the moving average of the weights, and leaves it in the parameters at the end.

    The parameters are `opt.ema` from just before `validate()` until the callbacks with `order` 0 have had their
    `on_epoch`: so the state that `EarlyStopping(restore=...)` keeps is the averaged one. Then they have their own bits
    again, before a `Checkpoint` saves, and also if `validate()` raises. Without a `validate` nothing is swapped.

    Args:
        opt: An optimiser with `ema_decay`. Parameters of frozen groups stay as they are.
        final: Leave the average in the parameters at the end, unless the run has failed or an `EarlyStopping` has
            restored the best state.

    Raises:
        ValueError: The optimiser keeps no average.

    Example:
        >>> import numpy as np
        >>> from ironstep import train
        >>> from ironstep.optim import SGD
        >>> w = np.array([1.0])
        >>> opt = SGD(w, lr=1.0, ema_decay=0.5)
        >>> history = train.fit(
        ...     lambda g: opt.step(g) and None,
        ...     [np.array([1.0])],
        ...     epochs=1,
        ...     validate=lambda: w[0],
        ...     callbacks=[train.SwapEMA(opt)],
        ...     progress=False,
        ... )
        >>> history["val_loss"], w
        ([0.5], array([0.5]))
    """

    order = 1

    def __init__(self, opt: Optimizer, *, final: bool = True) -> None:
        self.opt = opt
        self.final = flag("final", final)
        self._swap = _Swap(opt)

    def on_validate(self, run: Run) -> None:
        """The average goes in."""
        self._swap.swap()

    def on_epoch(self, run: Run) -> None:
        """The weights come back."""
        self._swap.back()

    def on_end(self, run: Run) -> None:
        """The weights come back if they have not; at a good end the average goes in."""
        self._swap.back()
        restored = any(getattr(callback, "restored", False) for callback in run.callbacks)
        if self.final and run.status != "failed" and not restored:
            self._swap.average()


# -- Monitors ----------------------------------------------------------------------------------------------------------


class LearningRateMonitor:
    """Logs hyperparameters with the values that the step used, whatever schedule they follow.

    They are in `run.metrics` under their names ("lr"; of further parameter groups "lr[1]", ...; of betas "beta1" and
    "beta2"), and their means over the epoch in the history. If the optimiser has not taken a step (accumulation), the
    value is that of the step before.

    Args:
        opt: The optimiser.
        names: The hyperparameters.

    Raises:
        ValueError: A name is none of the optimiser's.

    Example:
        >>> import numpy as np
        >>> from ironstep import train
        >>> from ironstep.optim import SGD
        >>> opt = SGD(np.zeros(1), lr=lambda step: 0.5**step)
        >>> def step(g):
        ...     opt.step(g)
        >>> train.fit(
        ...     step, [np.zeros(1)] * 2, epochs=2, callbacks=[train.LearningRateMonitor(opt)], progress=False
        ... )["lr"]
        [0.75, 0.1875]
    """

    def __init__(self, opt: Optimizer, names: Iterable[str] = ("lr",)) -> None:
        if isinstance(names, str):
            raise TypeError(f"names must be a list of names of hyperparameters, got {names!r}")
        self.opt = opt
        self.names = tuple(names)
        known = [name for name in opt.param_groups[0] if name != "params"]
        for name in self.names:
            if name not in known:
                raise ValueError(
                    f"names must be hyperparameters of {type(opt).__name__}, {', '.join(known)}, got {name!r}"
                )

    def on_step(self, run: Run) -> None:
        """Logs."""
        values: dict[str, float] = {}
        for i, group in enumerate(self.opt._groups):
            step = max(self.opt._steps[i] - 1, 0)
            suffix = f"[{i}]" if i else ""
            for name in self.names:
                value = group[name]
                parts = {"beta1": value[0], "beta2": value[1]} if name == "betas" else {name: value}
                for part, of in parts.items():
                    values[part + suffix] = float(of(step) if callable(of) else of)
        run.log(values)


class GradientNormMonitor:
    """Logs the 2-norm of all gradients after each step, "grad_norm", as they are in memory: before any clipping.

    Args:
        grads: A nest of arrays that stays the same, such as `model.grads`.
        per_parameter: Log that of each array too, as "grad_norm/<name>".
        every: At every so many steps only.

    Raises:
        TypeError: `grads` is no nest of arrays.

    Example:
        >>> import numpy as np
        >>> from ironstep import train
        >>> grads = {"w": np.zeros(2)}
        >>> def step(g):
        ...     grads["w"][...] = g
        >>> monitor = train.GradientNormMonitor(grads)
        >>> train.fit(step, [np.array([3.0, 4.0])], epochs=1, callbacks=[monitor], progress=False)["grad_norm"]
        [5.0]
    """

    def __init__(self, grads: Any, per_parameter: bool = False, every: int = 1) -> None:
        from ._diagnostics import gradient_norms

        self.grads = grads
        self.per_parameter = flag("per_parameter", per_parameter)
        self.every = count("every", every, 1)
        self._norms = gradient_norms
        gradient_norms(grads)  # Raises if it cannot.

    def on_step(self, run: Run) -> None:
        """Logs."""
        if run.step % self.every == 0:
            norms = self._norms(self.grads)
            metrics = {"grad_norm": norms["total"]}
            if self.per_parameter:
                metrics |= {f"grad_norm/{name}": norm for name, norm in norms.items() if name != "total"}
            run.log(metrics)
