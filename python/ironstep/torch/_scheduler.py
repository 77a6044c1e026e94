"""Schedules on torch optimisers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ..functional._arrays import count
from ..optim._base import FINITE
from ..optim._hyper import LIMITS, Limit, Scalar, at, scalar

One: TypeAlias = "Scalar | tuple[Scalar, ...]"
"""What a hyperparameter of a group follows: a schedule or number, for a pair such as `betas` one of each."""
Target: TypeAlias = "tuple[dict[str, Any], str, Any]"
"""A group, a key of it, and the value that is to be there."""

ORDER = (
    "scheduler.step() was called before optimizer.step(), so the values for the first step were never used; call it "
    "after each optimizer.step()"
)


class Scheduler(LRScheduler):
    r"""Makes hyperparameters of a torch optimiser follow schedules: $h_g = s_{h,g}(t)$ after $t$ calls of `step`.

    For any optimiser, ironstep's and torch's own, and any hyperparameter in its `param_groups` that is a number or a
    tuple of numbers. The values are set, not multiplied: `lr=cosine(0.1, steps=1000)` begins with 0.1, whatever `lr`
    the optimiser was made with. They are what the schedule gives, to the bit. Those for the first step are set at once,
    those for the next one by each `step()`, to be called after `optimizer.step()`.

    It is a torch `LRScheduler`, so `SequentialLR`, Lightning, the `Trainer` of transformers and accelerate take it.

    Args:
        optimizer: The optimiser.
        schedules: By the name of the hyperparameter: a schedule of `ironstep.schedules`, any other callable of the
            step, which counts from 0, or a number, which stays. For a tuple such as `betas` a tuple of these. A list
            has one of these for each parameter group; anything else is for all groups, those added later too.

    A value that is a 0-d tensor is filled in place, as torch does, so that a compiled step sees it.

    A callable with a state, such as `ironstep.schedules.ReduceLROnPlateau`, keeps it: call its `update` after each
    epoch; the next `step` of the scheduler sets what it then gives.

    Raises:
        TypeError: `optimizer` is no torch optimiser, or a schedule is neither a number nor a callable.
        ValueError: A group has no such hyperparameter, or one that is no number; a list or tuple has another length
            than it must have; a value is out of the range of its hyperparameter, here or in a later step. Nothing was
            changed.

    Warns:
        UserWarning: `step` was called before the first `optimizer.step()`.

    Example:
        >>> import torch
        >>> from ironstep.schedules import linear
        >>> from ironstep.torch import Scheduler
        >>> opt = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
        >>> scheduler = Scheduler(opt, lr=linear(1.0, 0.0, 4), weight_decay=0.5, betas=(linear(0.5, 0.75, 2), 0.999))
        >>> for _ in range(3):
        ...     print([opt.param_groups[0][name] for name in ("lr", "weight_decay", "betas")])
        ...     opt.step()
        ...     scheduler.step()
        [1.0, 0.5, (0.5, 0.999)]
        [0.75, 0.5, (0.625, 0.999)]
        [0.5, 0.5, (0.75, 0.999)]
        >>> scheduler.get_last_lr()
        [0.25]
    """

    def __init__(self, optimizer: torch.optim.Optimizer, **schedules: One | list[One]) -> None:
        """Sets the values for the first step."""
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if not schedules:
            raise ValueError("schedules must be given by name, such as lr=cosine(0.1, steps=1000), got none")
        self.optimizer = optimizer
        self._schedules = {name: _checked(name, value) for name, value in schedules.items()}
        self._refuse_shared()
        self._targets(0)  # What is wrong raises here, before the base class writes anything.
        super().__init__(optimizer)

    # -- The step ------------------------------------------------------------------------------------------------------

    def step(self, epoch: int | None = None) -> None:
        """Sets the values for the next step of the optimiser.

        Args:
            epoch: The number of steps taken, if it is not one more than at the last call.

        Raises:
            ValueError: A value is out of range, or the groups are no longer such that the schedules fit. Nothing was
                changed.
            TypeError: A callable gave no number, or `epoch` is no integer. Nothing was changed.
        """
        # The base class's own warning asks for `_opt_called` too; `step` of the optimiser sets it.
        watched = hasattr(self.optimizer.step, "_wrapped_by_lr_sched")
        if self._step_count == 1 and watched and not getattr(self.optimizer, "_opt_called", False):
            warnings.warn(ORDER, UserWarning, stacklevel=2)
        self._update_lr(epoch)
        self._step_count += 1

    def _update_lr(self, epoch: int | None = None) -> None:
        # `SequentialLR` calls it by this name.
        step = self.last_epoch + 1 if epoch is None else count("epoch", epoch, 0)
        targets = self._targets(step)
        self.last_epoch = step
        self._set(targets)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of the groups at the step that was set last."""
        if "lr" not in self._schedules:
            return [_copy(group["lr"]) for group in self.optimizer.param_groups]
        return [value for _, name, value in self._targets(max(self.last_epoch, 0)) if name == "lr"]

    def _targets(self, step: int) -> list[Target]:
        """What the groups must hold at a step. Changes nothing."""
        groups = self.optimizer.param_groups
        targets = []
        for name, schedule in self._schedules.items():
            own = schedule if isinstance(schedule, list) else [schedule] * len(groups)
            if len(own) != len(groups):
                raise ValueError(
                    f"{name} must be a list with one schedule for each of the {len(groups)} parameter groups, got "
                    f"{len(own)}"
                )
            for i, (group, one) in enumerate(zip(groups, own, strict=True)):
                label = f"{name}[{i}]" if isinstance(schedule, list) else name
                targets.append((group, name, _value(label, one, step, _held(group, name, i), _limit(name))))
        return targets

    def _set(self, targets: list[Target]) -> None:
        for group, name, value in targets:
            group[name] = _filled(group[name], value)
        self._last_lr = [_copy(group["lr"]) for group in self.optimizer.param_groups]
        self._written = self._now()

    def _now(self) -> list[Any]:
        """What the groups hold."""
        return [_copy(group.get(name)) for name in self._schedules for group in self.optimizer.param_groups]

    def _refuse_shared(self) -> None:
        """One tensor in several groups cannot follow several schedules."""
        for name, schedule in self._schedules.items():
            held = [group.get(name) for group in self.optimizer.param_groups]
            tensors = [id(value) for value in held if isinstance(value, Tensor)]
            if isinstance(schedule, list) and len(set(tensors)) < len(tensors):
                raise ValueError(
                    f"{name} is one and the same tensor in several parameter groups, so it cannot have a schedule for "
                    f"each; give each group a tensor of its own"
                )

    # -- Saving --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the number of steps, and the state of callables that have one.

        The schedules themselves are not in it, only the names of the hyperparameters: a schedule is a function of the
        step, and the script that resumes makes it again, another one if it likes.

        Example:
            >>> import torch
            >>> from ironstep.torch import Scheduler
            >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))])
            >>> Scheduler(opt, lr=lambda step: 0.5**step).state_dict()
            {'last_epoch': 0, '_step_count': 1, 'schedules': ['lr'], 'states': {}}
        """
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "schedules": list(self._schedules),
            "states": {name: schedule.state_dict() for name, schedule in self._stateful().items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave.

        It may be called before or after `load_state_dict` of the optimiser. If the groups hold what this scheduler has
        set last, they get the values of the step that is loaded; if not, somebody has loaded or set them, and they stay
        as they are until the next `step`.

        Raises:
            ValueError: Something is missing, unknown or out of range, or the schedules are for other hyperparameters.
                Nothing was changed.
            TypeError: It is no dict, or something in it is of the wrong type. Nothing was changed.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict that `state_dict` gave, got {type(state_dict).__name__}")
        keys = ["last_epoch", "_step_count", "schedules", "states"]
        if set(state_dict) != set(keys):
            raise ValueError(f"state_dict must have the keys {', '.join(keys)}, got {', '.join(map(str, state_dict))}")
        stateful = self._stateful()
        for key, here in (("schedules", self._schedules), ("states", stateful)):
            there = state_dict[key]
            if not isinstance(there, dict if key == "states" else (list, tuple)):
                raise TypeError(f"state_dict[{key!r}] must be what `state_dict` gave, got {there!r}")
            if set(there) != set(here):
                raise ValueError(
                    f"state_dict[{key!r}] must be of {', '.join(here) or 'nothing'}, as this scheduler has them, got "
                    f"{', '.join(map(str, there)) or 'nothing'}"
                )
        # -1 is where `SequentialLR` keeps those whose turn has not come.
        last, steps = count("last_epoch", state_dict["last_epoch"], -1), count("_step_count", state_dict["_step_count"])
        before = {name: schedule.state_dict() for name, schedule in stateful.items()}
        try:
            for name, schedule in stateful.items():
                schedule.load_state_dict(state_dict["states"][name])
            targets = self._targets(last) if last >= 0 and self._now() == self._written else None
        except BaseException:
            for name, schedule in stateful.items():
                schedule.load_state_dict(before[name])
            raise
        self.last_epoch, self._step_count = last, steps
        if targets is not None:
            self._set(targets)

    def _stateful(self) -> dict[str, Any]:
        """The callables that have a state, each once, by the name that errors have for them."""
        found: dict[str, Any] = {}
        for name, schedule in self._schedules.items():
            for label, one in _named(name, schedule):
                is_new = not any(one is other for other in found.values())
                if is_new and hasattr(one, "state_dict") and hasattr(one, "load_state_dict"):
                    found[label] = one
        return found

    def __repr__(self) -> str:
        schedules = "".join(f", {name}={value!r}" for name, value in self._schedules.items())
        return f"{type(self).__name__}({type(self.optimizer).__name__}{schedules})"


# -- Hyperparameters ---------------------------------------------------------------------------------------------------


def _limit(name: str) -> Limit:
    return LIMITS.get(name, FINITE)


def _checked(name: str, value: Any) -> One | list[One]:
    if isinstance(value, list):
        return [_checked_one(f"{name}[{i}]", one, _limit(name)) for i, one in enumerate(value)]
    return _checked_one(name, value, _limit(name))


def _checked_one(name: str, value: Any, limit: Limit) -> One:
    if isinstance(value, tuple):
        return tuple(scalar(f"{name}[{k}]", part, limit) for k, part in enumerate(value))
    return scalar(name, value, limit)


def _named(name: str, value: Any) -> list[tuple[str, Scalar]]:
    """All schedules in it, with names for each."""
    if not isinstance(value, (list, tuple)):
        return [(name, value)]
    return [pair for i, one in enumerate(value) for pair in _named(f"{name}[{i}]", one)]


def _held(group: dict[str, Any], name: str, number: int) -> Any:
    """What a group has under a name, if that can follow a schedule."""
    where = f"param_groups[{number}]"
    if name == "params" or name not in group:
        known = ", ".join(key for key, value in group.items() if key != "params" and _is_numeric(value))
        raise ValueError(f"{name} is no hyperparameter in {where} of the optimiser, which has {known}")
    if not _is_numeric(group[name]):
        raise ValueError(f"{name} must be a number in {where} to follow a schedule, but is {group[name]!r} there")
    return group[name]


def _is_numeric(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return bool(value) and all(map(_is_number, value))
    return _is_number(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 and value.is_floating_point()
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _value(name: str, one: One, step: int, held: Any, limit: Limit) -> Any:
    """What a schedule, or a tuple of them, gives at a step, in the form that is held."""
    if isinstance(held, (tuple, list)) != isinstance(one, tuple) or (isinstance(one, tuple) and len(one) != len(held)):
        form = f"a tuple of {len(held)} schedules or numbers" if isinstance(held, (tuple, list)) else "one schedule"
        raise ValueError(f"{name} must be {form} like {held!r} in the optimiser (a list has one for each group)")
    if isinstance(one, tuple):
        return tuple(at(f"{name}[{k}]", part, step, limit) for k, part in enumerate(one))
    return at(name, one, step, limit)


def _filled(held: Any, value: Any) -> Any:
    """The value in the place of the old one: tensors are filled, all else replaced."""
    if isinstance(held, Tensor):
        return held.fill_(value)
    if isinstance(held, (tuple, list)):
        values = [_filled(old, new) for old, new in zip(held, value, strict=True)]
        return values if isinstance(held, list) else tuple(values)
    return value


def _copy(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_copy(part) for part in value]
    return value.clone() if isinstance(value, Tensor) else value
