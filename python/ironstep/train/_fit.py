"""The loop, and what it tells callbacks."""

from __future__ import annotations

import numbers
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from ..data import Batches, Loop
from ..functional._arrays import count
from . import _state
from ._callbacks import Checkpoint
from ._history import RESERVED, History

EVENTS = ("on_start", "on_step", "on_validate", "on_epoch", "on_end")
POSITION = ("step", "epoch", "index", "seconds", "means", "history", "reason", "stopper", "batches", "callbacks")
"""What the state of a run holds."""
TAKEN = (*RESERVED, "event")
"""What no metric can be called: rows and lines of logs have it."""
FOLDER = os.path.dirname(__file__)


def fit(
    step: Callable[..., Any],
    batches: Iterable[Any],
    epochs: int,
    *,
    callbacks: Iterable[Any] = (),
    validate: Callable[[], Any] | None = None,
    state: Mapping[str, Any] | None = None,
    resume: str | os.PathLike[str] | bool | None = None,
    progress: bool | None = None,
) -> History:
    """Trains: `step(*batch)` for every batch of every epoch, with a row of the history for each epoch.

    Callbacks are objects with any of the methods `on_start(run)`, `on_step(run)` (after each step), `on_validate(run)`
    (before `validate()`), `on_epoch(run)` (after each epoch) and `on_end(run)` (always called, whatever happened: see
    `run.status`); `run` is a `Run`. A plain function is an `on_epoch`. They are called in the order given, sorted by
    their attribute `order` if they have one (0 if not): averaged weights and loggers have 1, `Checkpoint` has 2.

    The means of an epoch are weighted by the number of samples in each batch: the length of its first array, where the
    arrays in a dict are in its order, and 1 if there is none. So the same number in each step is the mean exactly.

    A checkpoint (`Checkpoint`, `Run.save`) holds `state`, the position in the epoch and in the data, the running means,
    the history, and every callback that has `state_dict` and `load_state_dict`. A run that is killed at any moment and
    resumed ends with the same bits as one that was not, if everything that `step` and `validate` change is in `state`
    (generators of random numbers too), and what they compute has the same bits each time. What ironstep computes has;
    matrix products are NumPy's BLAS, whose last bits depend on the processor.

    Args:
        step: Does forward, backward and the optimiser's step for one batch, and returns metrics: a number (the
            "loss"), a dict of names to numbers, or None.
        batches: `ironstep.data.Batches`, or anything that can be iterated over once per epoch. A batch that is a tuple
            or list is passed as several arguments. What has `state_dict` and `load_state_dict` goes on where it was;
            else a resumed run skips the batches that were done, which are the right ones if each pass over `batches` is
            the same.
        epochs: How many in all: a run of 10 that is resumed with 20 does 10 more.
        callbacks: See above.
        validate: Called after each epoch; a number (the "val_loss"), or a dict of names to numbers, which get the
            prefix `val_` unless they have it.
        state: What a checkpoint holds, by name, of the kinds that `save_state` takes: `{"model": model, "opt": opt}`.
        resume: The path of a checkpoint to go on from; if there is no such file the run begins. True: the
            `last.safetensors` of the `Checkpoint` among the callbacks.
        progress: None: a tqdm bar if stderr is a terminal and tqdm is there, and a line for each epoch. True insists on
            the bar. False: nothing.

    Returns:
        The history, also of the epochs before a resume.

    Raises:
        TypeError: An argument, or what `step` or `validate` returned, is of a wrong type.
        ValueError: The checkpoint does not fit (nothing was changed), or `batches` gave nothing.
        ModuleNotFoundError: `progress=True` and tqdm is not there.

    Example:
        Gradient descent, stopped when the loss no longer falls:

        >>> import numpy as np
        >>> from ironstep import train
        >>> from ironstep.optim import SGD
        >>> w = np.array([4.0])
        >>> opt = SGD(w, lr=0.25)
        >>> def step(target):
        ...     error = w - target
        ...     opt.step(2 * error)
        ...     return error @ error
        >>> stop = train.EarlyStopping("loss", patience=2, min_delta=0.01)
        >>> history = train.fit(step, [(np.array([1.0]),)], epochs=100, callbacks=[stop], progress=False)
        >>> history["loss"][:3], history.reason
        ([9.0, 2.25, 0.5625], 'loss did not improve on 0.008789 for 2 epochs')
    """
    if not callable(step):
        raise TypeError(f"step must be a function of a batch, got {step!r}")
    if validate is not None and not callable(validate):
        raise TypeError(f"validate must be a function without arguments, or None, got {validate!r}")
    callbacks = _callback_list(callbacks, progress)
    run = Run(batches, epochs, callbacks, state)
    path = _resume_path(resume, run.callbacks)
    if path is not None:
        run._check_state()
        if os.path.exists(path):
            run.load(path)
    iterator: Iterator[Any] = iter(())
    try:
        run._emit("on_start")
        while run.epoch < run.epochs and run.reason is None:
            iterator = run._remaining()
            for batch in iterator:
                run._busy = True
                result = step(*batch) if isinstance(batch, (tuple, list)) else step(batch)
                run._stepped(batch, result)
                run._emit("on_step")
                if run.reason is not None:
                    break
            else:
                run._passed()
                if validate is not None:
                    run._emit("on_validate")
                    run._validated(validate())
                run._next_epoch()
                run._emit("on_epoch")
        run.status = "finished" if run.reason is None else "stopped"
    except BaseException:
        run.status = "failed"
        raise
    finally:
        try:
            run._end()
        finally:
            # Not before, so that the state of the batches is that of a run in their midst.
            getattr(iterator, "close", lambda: None)()
    return run.history


class Run:
    """A run of `fit`, as callbacks see it.

    Attributes:
        step: The steps done, over all epochs.
        epoch: The epochs done; in `on_epoch` thus the number, from 1, of the one that has just ended.
        epochs: How many there will be.
        metrics: In `on_step` those of this step, in `on_epoch` the row of the epoch.
        history: The rows so far.
        batches: As given to `fit`.
        state: As given to `fit`.
        callbacks: In the order in which they are called.
        worth_saving: False if what stops the run has made its state useless, such as a loss of NaN.
        status: "running", and at the end "finished", "stopped" or "failed".
        reason: Why the run stops, or None. A run that is resumed from a checkpoint that was taken when it was to stop
            has that reason again if the callback that gave it is there again; `on_start` may set it to None to go on.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        epochs: int,
        callbacks: Iterable[Any] = (),
        state: Mapping[str, Any] | None = None,
    ) -> None:
        if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
            raise TypeError(f"batches must be something to iterate over, got {type(batches).__name__}")
        if isinstance(batches, Iterator):
            raise TypeError(
                f"batches must be something that can be iterated over in each epoch, but a {type(batches).__name__} "
                "can be only once; use ironstep.data.Batches or a list"
            )
        self.step = 0
        self.epoch = 0
        self.epochs = count("epochs", epochs, 1)
        self.metrics: dict[str, Any] = {}
        self.history = History()
        self.batches = batches
        self.state = _checked_state(state)
        self.callbacks = sorted(callbacks, key=lambda callback: getattr(callback, "order", 0))
        self.status = "running"
        self.reason: str | None = None
        self.worth_saving = True
        self._keys = _keys(self.callbacks)
        self._handlers = {event: list(_handlers(event, self.callbacks, self._keys)) for event in EVENTS}
        self._index = 0
        """Steps done in this epoch."""
        self._means: dict[str, list[float]] = {}
        """For each metric its weighted mean over this epoch so far, and the sum of the weights."""
        self._weight = 1
        """Samples in the batch of this step."""
        self._in_row = False
        """Whether `metrics` is a row, not those of a step."""
        self._busy = False
        """Whether a step or validation is under way, so that there is no state that a run could go on from."""
        self._before = 0.0
        """Seconds in this epoch before the run was resumed."""
        self._began: float | None = None
        """When the epoch began or went on."""
        self._begun = False
        """Whether callbacks know of the run, so that it is too late to load it."""
        self._saved_reason: str | None = None
        """What had stopped the run when the checkpoint was taken."""
        self._event: str | None = None
        self._caller: str | None = None
        """The key of the callback that is being called."""
        self._stopper: str | None = None
        """The key of the callback that stopped the run."""
        self._deferred: list[tuple[str | None, Callable[[], Any]]] = []
        """With the key of the callback that deferred it."""
        self._position: Any = None
        """The state that the batches are to have when the next epoch begins, of a run that was resumed."""
        self._loop: Loop | None = None
        """The loop over `Batches` that goes on or was the last, whose state counts: others may be run beside it."""

    # -- For callbacks -------------------------------------------------------------------------------------------------

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Adds metrics to those of this step, which go into the means of the epoch, or to the row in `on_epoch`.

        Args:
            metrics: Numbers by name.

        Raises:
            ValueError: A name is there already.
            TypeError: A value is no number.
            RuntimeError: It is called in `on_start` or `on_end`, which belong to no step or epoch.
        """
        if self._event in ("on_start", "on_end"):
            raise RuntimeError(f"log in on_step, on_validate or on_epoch: {self._event} is part of no step or epoch")
        new = metrics_of(metrics, "metrics")
        for name in new:
            if name in self.metrics or name in TAKEN:
                taken = f"has {name!r} already" if name in self.metrics else f"cannot be called {name!r}"
                raise ValueError(f"{'the row' if self._in_row else 'this step'} {taken}; log it under another name")
        self.metrics.update(new)
        if not self._in_row:
            self._add(new)

    def stop(self, reason: str, *, save: bool = True) -> None:
        """Stops the run after this event; the first reason counts. An epoch that is stopped in its midst has no row.

        Args:
            reason: For people, as in "val_loss did not improve for 5 epochs".
            save: Whether the state is worth saving. If not, `Checkpoint` keeps the one before.
        """
        if not isinstance(reason, str):
            raise TypeError(f"reason must be a text, got {reason!r}")
        self.worth_saving = self.worth_saving and save
        if self.reason is None:
            self.reason, self._stopper = reason, self._caller

    def defer(self, action: Callable[[], Any]) -> None:
        """Calls a function when all callbacks have seen the event that is going on."""
        self._deferred.append((self._caller, action))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint that `fit(..., resume=path)` goes on from, as `save_state` writes.

        In a callback it is written when all callbacks have seen the event, so that none sees it twice, or never, when
        the run goes on.

        Raises:
            RuntimeError: A step or validation is under way, or has failed.
            ValueError: `fit` was not told the `state` to save.
            OSError: The file could not be written; what was there is still there.
        """
        self._check_whole()
        self._check_state()
        if self._event is None:
            _state.write(path, {**self.state, "run": self})
        else:
            self.defer(lambda: self.save(path))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a checkpoint: all of it is taken, or an error raised and nothing changed.

        Raises:
            RuntimeError: The run has begun.
            ValueError: The checkpoint does not fit.
        """
        self._check_not_begun()
        self._check_state()
        _state.load(path, {**self.state, "run": self})

    def state_dict(self) -> dict[str, Any]:
        """The position, running means, history, batches and callbacks; not `state`.

        Raises:
            RuntimeError: A step or validation is under way, or has failed: no run could go on from there.
        """
        self._check_whole()
        return {
            "step": self.step,
            "epoch": self.epoch,
            "index": self._index,
            "seconds": self._seconds(),
            "means": {name: list(pair) for name, pair in self._means.items()},
            "history": self.history.state_dict(),
            "reason": self.reason,
            "stopper": self._stopper,
            "batches": self._batches_state(),
            "callbacks": {
                key: callback.state_dict()
                for key, callback in zip(self._keys, self.callbacks, strict=True)
                if _state.is_stateful(callback)
            },
        }

    def _batches_state(self) -> Any:
        if not _state.is_stateful(self.batches):
            return None
        if self._loop is not None:
            return self._loop.state_dict()
        if self._position is not None:
            return self._position
        # Not where a loop of somebody else stands, or was left: the run does not go on from there.
        batches: Any = self.batches
        return batches._coming_state() if isinstance(batches, Batches) else batches.state_dict()

    def _snapshot(self) -> Any:
        """All that `load` may change, where the next loop over the batches begins included."""
        stateful = _state.is_stateful(self.batches)
        batches = _state.snapshot(self.batches, "batches") if stateful else None
        return _state.copied(self.state_dict()), batches, self._position, self._loop

    def _restore(self, snapshot: Any) -> None:
        state, batches, position, loop = snapshot
        try:
            self.load_state_dict(state)
        finally:
            if batches is not None:
                _state.restore(self.batches, batches, "batches")
            self._position, self._loop = position, loop

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave. Callbacks that it does not know are reset, if they have a method `reset`.

        Raises:
            RuntimeError: The run has begun.
            ValueError: It is of another kind of batches, or a part of it is missing. What was taken before stays taken:
                `load` puts it back.
        """
        self._check_not_begun()
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict that `state_dict` gave, got {type(state_dict).__name__}")
        _state.same_names(dict.fromkeys(POSITION), state_dict, "a run")
        saved, position = state_dict["callbacks"], state_dict["batches"]
        if (position is not None) != _state.is_stateful(self.batches):
            with_state, here = ("with", "have none") if position is not None else ("without", "have one")
            raise ValueError(
                f"batches must be of the kind that the checkpoint was taken with: those were {with_state} a "
                f"state_dict, these {here}"
            )
        for key, callback in zip(self._keys, self.callbacks, strict=True):
            if not _state.is_stateful(callback):
                continue
            if key not in saved:
                # It may have been in another run before.
                getattr(callback, "reset", lambda: None)()
            else:
                try:
                    callback.load_state_dict(saved[key])
                except Exception as error:
                    kind = TypeError if isinstance(error, TypeError) else ValueError
                    raise kind(f"{key}: {error}") from error
        if dropped := [key for key in saved if key not in self._keys]:
            warnings.warn(
                f"the state of {', '.join(dropped)} in the checkpoint is dropped: there is no such callback here",
                stacklevel=_stacklevel(),
            )
        if position is not None:
            self.batches.load_state_dict(position)  # type: ignore[attr-defined]
        self._position, self._loop = position, None
        self.history.load_state_dict(state_dict["history"])
        self.step, self.epoch, self._index = (state_dict[name] for name in ("step", "epoch", "index"))
        self._before, self._began = state_dict["seconds"], None
        self._means = {name: list(pair) for name, pair in state_dict["means"].items()}
        self._saved_reason = state_dict["reason"]
        # Without the callback that stopped it, the run is to go on.
        stays = state_dict["stopper"] is None or state_dict["stopper"] in self._keys
        self.reason, self._stopper = (state_dict["reason"], state_dict["stopper"]) if stays else (None, None)

    # -- For `fit` -----------------------------------------------------------------------------------------------------

    def _emit(self, event: str) -> None:
        self._event, self._begun = event, True
        for key, call in self._handlers[event]:
            self._caller = key
            call(self)
        self._event = self._caller = None
        if self._deferred:
            self._do_deferred()

    def _end(self) -> None:
        """`on_end` of all callbacks, also when one of them, or the run, has failed: what the run raised comes first."""
        self._event, self._deferred, self.history.reason = "on_end", [], self.reason
        errors: list[tuple[str, BaseException]] = []
        for key, call in self._handlers["on_end"]:
            self._caller = key
            try:
                call(self)
            except BaseException as error:
                errors.append((key, error))
        self._event = self._caller = None
        try:
            if not errors:
                self._do_deferred()
        except BaseException as error:
            errors.append(("what was deferred", error))
        if errors and self.status != "failed":
            raise errors[0][1]
        for key, other in errors:
            text = f"on_end of {key} has failed, too: {type(other).__name__}: {other}"
            with suppress(RuntimeWarning):  # Where warnings are errors it would be in the place of the run's own.
                warnings.warn(text, RuntimeWarning, stacklevel=_stacklevel())

    def _do_deferred(self) -> None:
        while self._deferred:
            actions, self._deferred = self._deferred, []
            for self._caller, action in actions:
                action()
        self._caller = None

    def _remaining(self) -> Iterator[Any]:
        """What is left of the epoch that begins or goes on."""
        self._began = time.perf_counter()
        # Again, because somebody may have looked at a batch, or gone over all of them, meanwhile.
        position = self._position if self._loop is None else self._loop.state_dict()
        if position is not None:
            self.batches.load_state_dict(position)  # type: ignore[attr-defined]
        self._position = None
        iterator = iter(self.batches)
        self._loop = iterator if isinstance(iterator, Loop) else None
        if position is not None:
            return iterator
        if not _state.is_stateful(self.batches):
            for done in range(self._index):
                if next(iterator, self) is self:
                    raise ValueError(
                        f"batches must give at least the {self._index} batches that were done of this epoch, got {done}"
                    )
        return iterator

    def _stepped(self, batch: Any, result: Any) -> None:
        """Counts a step."""
        self.step += 1
        self._index += 1
        self._in_row = False
        self._weight = _samples(batch)
        self.metrics = {} if result is None else metrics_of(result, "the result of step")
        self._add(self.metrics)
        self._busy = False

    def _add(self, metrics: Mapping[str, float]) -> None:
        means, weight = self._means, self._weight
        for name, value in metrics.items():
            if name in means:
                pair = means[name]
                mean, total = pair[0], pair[1] + weight
                part = weight / total if total else 0.0
                moved = mean + (value - mean) * part
                # The difference of infinite values is NaN, and that of large ones may be infinite.
                pair[0] = moved if moved - moved == 0.0 else mean * (1.0 - part) + value * part
                pair[1] = total
            elif name in TAKEN:
                raise ValueError(f"a metric cannot be called {name!r}: that is in each row of the history or of logs")
            else:
                means[name] = [value, weight]

    def _passed(self) -> None:
        """All batches of the epoch are done."""
        if self._index == 0:
            raise ValueError("batches must give at least one batch in each epoch, got none")
        means = {name: mean for name, (mean, _) in self._means.items()}
        self.metrics = {"epoch": self.epoch + 1, "step": self.step, "seconds": 0.0} | means
        self._in_row = self._busy = True

    def _validated(self, result: Any) -> None:
        if result is not None:
            values = metrics_of(result, "the result of validate")
            row: dict[str, float] = {}
            for name, value in values.items():
                full = name if name.startswith("val_") else f"val_{name}"
                if full in row:
                    raise ValueError(f"validate must give each name once, but {full[4:]!r} becomes {full!r}, too")
                row[full] = value
            self.log(row)

    def _next_epoch(self) -> None:
        self.metrics["seconds"] = self._seconds()
        self.history.rows.append(self.metrics)
        self.epoch += 1
        self._index, self._means, self._busy = 0, {}, False
        self._before, self._began = 0.0, None

    def _seconds(self) -> float:
        return self._before + (0.0 if self._began is None else time.perf_counter() - self._began)

    def _check_whole(self) -> None:
        if self._busy or self.status == "failed":
            raise RuntimeError(
                "a run has no state to go on from while a step or validation is under way, or has failed: save it in "
                "on_step or on_epoch"
            )

    def _check_not_begun(self) -> None:
        if self._begun:
            raise RuntimeError(
                "a run cannot be loaded when it has begun: callbacks and the loop over the batches are elsewhere; stop "
                "it, and call fit with resume=..."
            )

    def _check_state(self) -> None:
        if not self.state:
            raise ValueError(
                'state must name what a checkpoint holds, as in fit(..., state={"model": model, "opt": opt}), got none'
            )


# -- Arguments and results ---------------------------------------------------------------------------------------------


def _callback_list(callbacks: Any, progress: Any) -> list[Any]:
    if not isinstance(callbacks, Iterable) or isinstance(callbacks, Mapping):
        raise TypeError(f"callbacks must be a list of callbacks, got {callbacks!r}")
    given = list(callbacks)
    for callback in given:
        if isinstance(callback, type):
            raise TypeError(f"callbacks must be objects, got the class {callback.__name__}: call it")
        if not callable(callback) and not any(callable(getattr(callback, event, None)) for event in EVENTS):
            raise TypeError(
                f"a callback must be a function or have one of the methods {', '.join(EVENTS)}, got {callback!r}"
            )
        order: Any = getattr(callback, "order", 0)
        if isinstance(order, bool) or not isinstance(order, numbers.Real) or order != order:
            raise TypeError(f"order of a callback must be a number, got {order!r} of {callback!r}")
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"progress must be True, False or None, got {progress!r}")
    if progress is not False:
        from ._progress import make_progress

        given.append(make_progress(progress))
    return given


def _keys(callbacks: Iterable[Any]) -> list[str]:
    """Names for callbacks, the same in each run: that of the class or function, with #2 for a second one."""
    seen: dict[str, int] = {}
    keys = []
    for callback in callbacks:
        name = callback.__name__ if hasattr(callback, "__name__") else type(callback).__name__
        seen[name] = seen.get(name, 0) + 1
        keys.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return keys


def _handlers(event: str, callbacks: Iterable[Any], keys: Iterable[str]) -> Iterator[tuple[str, Callable[[Run], Any]]]:
    for callback, key in zip(callbacks, keys, strict=True):
        method = getattr(callback, event, None)
        if callable(method):
            yield key, method
        elif event == "on_epoch" and not any(callable(getattr(callback, other, None)) for other in EVENTS):
            yield key, callback


def _checked_state(state: Any) -> dict[str, Any]:
    if state is None:
        return {}
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a dict of names to objects, got {type(state).__name__}")
    for name in state:
        if not isinstance(name, str):
            raise TypeError(f"state must have names that are strings, got {name!r}")
        if name == "run":
            raise ValueError("state must not have the name 'run': checkpoints keep the run itself under it")
        _state.check_kind(state[name], f"state[{name!r}]")
    return dict(state)


def _resume_path(resume: Any, callbacks: Iterable[Any]) -> str | None:
    if resume is None or resume is False:
        return None
    if resume is True:
        last = next((callback.last for callback in callbacks if isinstance(callback, Checkpoint)), None)
        if last is None:
            raise ValueError("resume=True needs a Checkpoint among the callbacks; else give the path of a checkpoint")
        resume = last
    return _state.path_of("resume", resume)


def metrics_of(result: Any, what: str) -> dict[str, float]:
    """Metrics as floats by name; a lone number is the loss."""
    if type(result) is float:
        return {"loss": result}
    if isinstance(result, Mapping):
        return {
            name: value if type(value) is float and type(name) is str else _number(name, value, what)
            for name, value in result.items()
        }
    return {"loss": _number(None, result, what)}


def _number(name: Any, value: Any, what: str) -> float:
    is_number = isinstance(value, numbers.Real) or getattr(value, "ndim", None) == 0
    # What `float` takes without being one: bools, complex numbers, texts, and what is masked.
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    is_other = isinstance(value, (bool, np.ma.MaskedArray)) or kind in "bcSUO"
    if is_number and not is_other and (name is None or isinstance(name, str)):
        try:
            return float(value)
        except OverflowError:
            which = "" if name is None else f" in {name!r}"
            raise ValueError(f"{what} must be numbers that a float can hold, got a larger one{which}") from None
        except (TypeError, ValueError):
            pass
    got = repr(value) if name is None else f"{name!r}: {value!r}"
    raise TypeError(f"{what} must be a number or a dict of names to numbers, got {got}")


def _samples(batch: Any) -> int:
    """The length of the first array of a batch; 1 if it has none."""
    n = _length(batch)
    return 1 if n is None else n


def _length(item: Any) -> int | None:
    shape = getattr(item, "shape", None)
    if shape:
        return int(shape[0])
    if isinstance(item, Mapping):
        item = item.values()
    elif not isinstance(item, (tuple, list)):
        return None
    return next((n for n in map(_length, item) if n is not None), None)


def _stacklevel() -> int:
    """For a warning: how many calls up the code is that is none of this folder's."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and os.path.dirname(frame.f_code.co_filename) == FOLDER:
        level, frame = level + 1, frame.f_back
    return level
