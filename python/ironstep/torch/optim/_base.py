"""What all optimisers of the bridge share: torch's interface, torch's state, and one call of the core for a step."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain, repeat
from multiprocessing.context import get_spawning_popen
from numbers import Real
from operator import attrgetter, is_, itemgetter
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ... import _core
from ... import optim as numpy_optim
from ...optim._base import Around, Option, nonfinite_error
from ...optim._hyper import LIMITS, RULES, Limit, ParamGroup, flag, number
from .._types import FLOATS, computed, refuse
from ._cpu import CpuPart, Groups, named
from ._offload import Flight, OffloadPart, check_apart, pinned

Params: TypeAlias = "Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]"

_Outcome: TypeAlias = "tuple[int | None, float | None, list[list[list[float]]]]"
"""Of a step the first leaf whose gradient is not finite, the norm, and for each part the new scalar state."""

UNSUPPORTED = ("capturable", "differentiable")
"""Switches of torch that must be off."""

SWITCHES = ("master_weights", "offload", "overlap")
"""Where things are and when they happen; fixed when the optimiser is made."""

PLANS = 8
"""How many sets of parameters with a gradient are remembered."""

LAST = 1 << 24
"""Where a step count in float32 stays, as torch's does."""


class Part(Protocol):
    """The leaves of one step that lie on one device and follow one rule."""

    def __init__(
        self,
        rule: str,
        params: list[Tensor],
        states: list[list[Tensor]],
        groups: list[int],
        names: list[str],
        master: list[Tensor | None] | None,
        ema: list[Tensor] | None,
    ) -> None:
        """See `CpuPart`."""

    def look(self, grads: list[Tensor]) -> None:
        """Checks everything as it is now; raises, or is ready."""

    def inspect(self, grad_scale: float, clip_value: float, unit: float) -> tuple[list[float], int | None]:
        """Per leaf the sum of squares of its limited gradient times `unit`, and the first leaf that is not finite."""

    def step(
        self,
        groups: Groups,
        grad_scale: float,
        clip_value: float,
        max_norm: float,
        joint_norm: float | None,
        ema_decay: float,
    ) -> list[list[float]]:
        """Updates everything. Returns the new scalar state of each rule number."""


class _Around(Around):
    """Numbers only: a function of the step could not be saved with the optimiser, and torch has schedulers."""

    def set(self, name: str, value: Any) -> None:
        if name in self.LIMITS and value is not None:
            value = number(name, value, self.LIMITS[name], ", or None")
        super().set(name, value)


class _Option(Option):
    """One that also decides whether there is an average."""

    def __set__(self, optimizer: Any, value: Any) -> None:
        with optimizer._alone():
            super().__set__(optimizer, value)
            optimizer._plans.clear()


class _Hyper:
    """The hyperparameters of a group as they were when they were last looked at, and what the core takes for them."""

    __slots__ = ("group", "maximize", "raw", "rule", "values", "volatile")

    def __init__(self, kind: type[numpy_optim.Optimizer], names: tuple[str, ...], raw: tuple[Any, ...], where: str):
        self.raw = raw
        self.volatile = any(not isinstance(value, (bool, int, float, tuple)) for value in raw) or any(
            isinstance(part, Tensor) for value in raw if isinstance(value, tuple) for part in value
        )
        """Whether one of them may change and stay the same object: a tensor, a list."""
        numbers: dict[str, Any] = {}
        for name, value in zip(names, raw, strict=True):
            what = where.format(name)
            if name in UNSUPPORTED:
                if value:
                    raise ValueError(
                        f"{what} must be False: steps are not recorded, neither in graphs nor for autograd"
                    )
            elif name == "betas":
                numbers[name] = _betas(what, value)
            elif limit := (LIMITS | kind._limits).get(name):
                numbers[name] = _number(what, value, limit)
            else:
                numbers[name] = flag(what, value)
        self.group = ParamGroup(kind, numbers)
        self.rule = self.group.rule
        self.maximize = self.group.maximize
        self.values = self.group.vector(0, True)


def _number(what: str, value: Any, limit: Limit) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{what} must have one element if it is a tensor, got shape {tuple(value.shape)}")
        value = value.item()
    if callable(value):
        raise TypeError(f"{what} must be a number, got {value!r}; ironstep.torch.Scheduler makes it follow a schedule")
    return number(what, value, limit, "")


def _betas(what: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{what} must be a pair of numbers, got {value!r}")
    return tuple(_number(f"{what}[{i}]", beta, LIMITS["betas"]) for i, beta in enumerate(value))


class _Kept:
    """A tensor in a checkpoint that torch's `load_state_dict` shall not cast to the type of the parameter."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Leaves:
    """Of a plan the leaves that one part steps, and where their numbers come from."""

    def __init__(self, rule: str, device: torch.device) -> None:
        self.rule = rule
        self.device = device
        self.positions: list[int] = []
        """Of each leaf its place among the active parameters."""
        self.slots: list[int] = []
        """Of each leaf its place among all parameters."""
        self.owners: list[int] = []
        """Of each leaf its parameter group."""
        self.params: list[Tensor] = []
        self.names: list[str] = []
        self.found: list[dict[str, Tensor]] = []
        """Of each leaf its state."""
        self.numbers: list[int] = []
        """Of each leaf its rule number in the part: leaves of one group that have taken equally many steps share it."""
        self.entries: list[tuple[int, int, list[float]]] = []
        """For each rule number the parameter group, the steps taken and the scalar state."""
        self.members: list[Tensor] = []
        """For each rule number the slots, where there is scalar state."""
        self.part: Any = None

    def count(self, slabs: Mapping[str, list[float]]) -> bool:
        """Takes steps and scalar state from the slabs. False: the leaves that share a rule number are others now."""
        counts, *scalars = slabs.values()
        keys = [(i, counts[k], *(own[k] for own in scalars)) for i, k in zip(self.owners, self.slots, strict=True)]
        distinct = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        numbers = [distinct[key] for key in keys]
        for key in distinct:
            count = key[1]
            if count < 0 or not count.is_integer():
                name = self.names[keys.index(key)]
                raise ValueError(f"step of {name} must be a whole number of at least 0, got {count}")
        same, self.numbers = numbers == self.numbers, numbers
        self.entries = [(int(i), int(count), list(rest)) for i, count, *rest in distinct]
        if scalars:
            slots = torch.tensor(self.slots, device="cpu")
            self.members = [slots[torch.tensor(numbers, device="cpu") == number] for number in range(len(distinct))]
        return same


class _Plan:
    """All for a step of one set of parameters that have a gradient."""

    def __init__(self) -> None:
        self.params: list[Tensor] = []
        self.leaves: list[_Leaves] = []
        self.index: Tensor | None = None
        """The slots, unless they are all."""
        self.watches: list[tuple[Callable[[Any], Any], list[dict[str, Any]], list[Tensor], bool]] = []
        """Getter, dicts, what they hold, whether the getter gives tuples."""
        self.fresh: list[tuple[Tensor, dict[str, Any], str, Tensor | None]] = []
        """State that is new, or replaces what a user put there, and is shown after the first step that succeeds; None
        where that step makes it out of date."""
        self.inference = False
        self.dtypes: list[torch.dtype] = []

    def add(
        self, rule: str, device: torch.device, owner: int, slot: int, p: Tensor, name: str, found: dict[str, Tensor]
    ) -> None:
        """One more active parameter: its rule, device, group, slot, name and state."""
        own = next((leaves for leaves in self.leaves if (leaves.rule, leaves.device) == (rule, device)), None)
        if own is None:
            own = _Leaves(rule, device)
            self.leaves.append(own)
        own.positions.append(len(self.params))
        own.slots.append(slot)
        own.owners.append(owner)
        own.params.append(p)
        own.names.append(name)
        own.found.append(found)
        self.params.append(p)
        self.dtypes.append(p.dtype)
        self.inference |= p.is_inference()

    def look(self, grads: list[Any]) -> None:
        """Lets all parts check everything."""
        if self.inference and not torch.is_inference_mode_enabled():
            raise ValueError("some parameters are inference tensors, which can change in torch.inference_mode() only")
        parts = [leaves.part for leaves in self.leaves]
        for part, leaves in zip(parts, self.leaves, strict=True):
            part.look(grads if len(parts) == 1 else [grads[k] for k in leaves.positions])
        _look_across([part for part in parts if isinstance(part, CpuPart)])
        check_apart([part for part in parts if isinstance(part, OffloadPart)])

    def is_current(self) -> bool:
        """Whether all state tensors are the objects that the parts have, for parameters of the same types."""
        if not all(map(is_, map(attrgetter("dtype"), self.params), self.dtypes)):
            return False
        try:
            for getter, dicts, tensors, many in self.watches:
                found = map(getter, dicts)
                if not all(map(is_, chain.from_iterable(found) if many else found, tensors)):
                    return False
        except KeyError:
            return False
        return True

    def watch(self, names: list[str], dicts: list[dict[str, Any]], found: list[dict[str, Tensor]]) -> None:
        """Looks at these entries of the dicts before each step."""
        if names and dicts:
            tensors = [own[name] for own in found for name in names]
            self.watches.append((itemgetter(*names), dicts, tensors, len(names) > 1))


class Optimizer(torch.optim.Optimizer):
    """The base of all optimisers of the bridge: `torch.optim.Optimizer` whose step is one call of the core.

    Each has the equation, the order of operations and the switches of the class of the same name in `ironstep.optim`,
    and the arguments, defaults, state names and checkpoints of that in `torch.optim`. Parameters are float32, float64,
    float16 or bfloat16 tensors of any strides, on the CPU or a GPU, also mixed; they are updated in place, without a
    copy, whatever their layout. State is kept in the type that is computed in: float64 for float64, float32 for the
    others. Parameters whose `grad` is None are left out of a step, and their step count stands still.

    `param_groups` are torch's dicts. What a scheduler or a user writes into one is taken, and checked, at the next
    step. Groups may choose different rules, for example momentum in one only.

    Arguments that all optimisers share:
        params: Tensors, pairs of a name and a tensor (`model.named_parameters()`), or dicts with such under `"params"`
            and any hyperparameters that differ. Names are used in errors.
        maximize, weight_decay: As there.
        foreach, fused: Taken for torch's sake, without effect: a step is always one call.
        capturable, differentiable: Likewise, but must be False.
        max_norm: Gradients are scaled by `min(1, max_norm / (norm + 1e-6))`, where `norm` is that of all of them
            together, as `torch.nn.utils.clip_grad_norm_` does before a step; `grad_norm` has the norm after it. The
            gradients themselves are not written.
        clip_value: Each element of a gradient is limited to `-clip_value .. clip_value`, before `max_norm`.
        nonfinite: What to do if a gradient has an infinite or NaN element: `"propagate"` it (torch), `"skip"` the step,
            after which `skipped` is True, or `"raise"` a FloatingPointError. In the last two cases nothing is changed.
        ema_decay: Keep an exponential moving average of each parameter in `state[p]["ema"]`, which begins as a copy at
            the parameter's first step. After loading parameters by hand call `sync_ema()`.
        master_weights: Keep a float32 copy of float16 and bfloat16 parameters in `state[p]["master"]`, which takes the
            steps; the parameters are its rounded image. After changing such parameters by hand call `sync_master()`.
        offload: Keep all state, and a float32 copy of parameters that are on a GPU or in float16 or bfloat16, in the
            memory of the CPU, and take the steps there: gradients are copied to it, through pinned memory and on a
            stream of their own, and the new parameters back.
        overlap: With `offload`: `step()` copies the gradients, so that `zero_grad()` is safe, has the rest computed by
            a thread, and returns; the next batch runs meanwhile **on the old weights**. The new ones are written by the
            next `step()`, after its closure, by `synchronize()`, or by whatever else looks at the optimiser
            (`state_dict()`, `add_param_group()`, pickling), never in between. So training is that with updates that
            come one step late, the same at each run. Call `synchronize()` before validation and before the model is
            saved. An error of a step, and its `grad_norm` and `skipped`, come when its result is written; until then
            leave `state` alone.

    The bits are those of `ironstep.optim` on the same numbers. An optimiser takes one step at a time: a second call
    while one runs raises a RuntimeError.
    """

    _kind: ClassVar[type[numpy_optim.Optimizer]] = numpy_optim.Optimizer
    """The class that has the hyperparameters, their limits and the rules."""

    grad_norm: float | None
    """The norm of all gradients at the last step after `clip_value` and before `max_norm`; None without `max_norm`."""
    skipped: bool
    """Whether the last step was left out because a gradient was not finite (`nonfinite="skip"`)."""
    master_weights: bool
    """Whether float32 copies are kept."""
    offload: bool
    """Whether state and copies are kept in the memory of the CPU, and steps are taken there."""
    overlap: bool
    """Whether a step goes on while `step` has returned."""

    max_norm = _Option("Limit of the norm of all gradients together, or None. Can be set.")
    clip_value = _Option("Limit of each element of a gradient, or None. Can be set.")
    nonfinite = _Option('"propagate", "skip" or "raise". Can be set.')
    ema_decay = _Option("Decay of the averages of the parameters, or None. Can be set.")

    def __init__(self, params: Params, **arguments: Any) -> None:
        """`arguments`: all that the class takes but `params`."""
        if type(self)._kind is numpy_optim.Optimizer:
            raise TypeError(f"{type(self).__name__} is abstract; use one of the optimisers")
        self._begin({name: arguments.pop(name) for name in [*_Around().values, *SWITCHES]})
        hyper = self._hyper(arguments, "{}")
        if "betas" in arguments:
            arguments["betas"] = hyper.group["betas"]
        super().__init__(params, arguments)

    def _begin(self, options: Mapping[str, Any]) -> None:
        """Everything that is not torch's."""
        self._around = _Around()
        self._plans: dict[tuple[bool, ...], _Plan] = {}
        for name in self._around.values:
            self._around.set(name, options[name])
        for name in SWITCHES:
            setattr(self, name, flag(name, options[name]))
        if self.overlap and not self.offload:
            raise ValueError("overlap=True needs offload=True: it is the offloaded step that overlaps")
        self._flight: tuple[Flight, _Plan, tuple[bool, ...]] | None = None
        self.grad_norm = None
        self.skipped = False
        self._lock = threading.RLock()  # Hooks of checkpoints may use the optimiser.
        kind = self._kind
        usual = kind._rule(defaults(kind))
        self._usual = RULES[usual][1]
        """The state that the plain rule of the class keeps; other state comes and goes with the hyperparameters."""
        self._scalars = dict(RULES[usual][2])
        """Scalar state and its first value."""
        # As torch's SGD: where the plain rule keeps no state, the step is not kept, and state begins when it is needed.
        self._counted = bool(self._usual or self._scalars)
        self._shown = ["step", *self._scalars] if self._counted else []
        names = (*defaults(kind), *UNSUPPORTED)
        self._hyper_names, self._hyper_values = names, itemgetter(*names)
        self._forget()

    def _forget(self) -> None:
        """Looks at everything anew at the next step."""
        self._params: list[Tensor] = []
        self._sizes: list[int] = []
        self._hypers: list[_Hyper] = []
        self._dicts: list[dict[str, Any]] = []
        self._last: _Plan | None = None
        self._plans.clear()

    def _hyper(self, group: Mapping[str, Any], where: str) -> _Hyper:
        """The hyperparameters of a group, checked. `where`: what a message calls them."""
        return _Hyper(self._kind, self._hyper_names, self._hyper_values(group), where)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this optimiser is in a step on another thread; one optimiser takes one step at a time")
        try:
            self._settle()
            yield
        finally:
            self._lock.release()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with hyperparameters of their own; their step count begins at 0.

        Args:
            param_group: `"params"`, and any hyperparameters that differ from the optimiser's.

        Raises:
            ValueError: A hyperparameter is out of range, or a parameter is in a group already. Nothing was changed.
            TypeError: A parameter is no tensor.
        """
        with self._alone():
            if isinstance(param_group, dict):
                self._hyper(self.defaults | param_group, f"param_groups[{len(self.param_groups)}]['{{}}']")
            super().add_param_group(param_group)
            if _makes_state_at_once(self._kind.__name__):
                group = self.param_groups[-1]
                hyper = self._hyper(group, "{}")
                for p in group["params"]:
                    if p.dtype in FLOATS and p.layout is torch.strided:
                        self.state[p] = {"step": torch.tensor(0.0, dtype=torch.float32, device="cpu")} | {
                            name: self._first(name, p, hyper) for name in RULES[hyper.rule][1]
                        }

    # -- The step ------------------------------------------------------------------------------------------------------

    @torch._disable_dynamo  # type: ignore[attr-defined]  # the public one imports the compiler at once
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters that have a gradient.

        Args:
            closure: Computes the loss and the gradients, and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: A parameter or gradient is not what it must be, two tensors overlap in memory, or a
                hyperparameter is out of range. The message names it; nothing was changed.
            TypeError: A tensor is sparse, complex, of integers, or has no memory.
            FloatingPointError: A gradient is not finite and `nonfinite="raise"`.
            RuntimeError: Another thread is in a step of this optimiser.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Every line from here on counts: a step of a hundred small tensors takes less than 0.1 ms. So no `_alone`.
        if not self._lock.acquire(False):
            raise RuntimeError("this optimiser is in a step on another thread; one optimiser takes one step at a time")
        try:
            self._step()
        finally:
            self._lock.release()
        return loss

    def _step(self) -> None:
        if self._flight is not None:
            self._settle()
        groups = self.param_groups
        params = groups[0]["params"] if len(groups) == 1 else [p for group in groups for p in group["params"]]
        sizes = [len(group["params"]) for group in groups]
        if sizes != self._sizes or not all(map(is_, params, self._params)):
            self._arrange(params, sizes)
        for i, group in enumerate(groups):
            old = self._hypers[i]
            if old.volatile or not all(map(is_, self._hyper_values(group), old.raw)):
                self._hypers[i] = new = self._hyper(group, f"param_groups[{i}]['{{}}']")
                if new.rule != old.rule:
                    self._plans.clear()
        grads = [p.grad for p in params]
        absent = tuple(map(is_, grads, repeat(None)))
        if True in absent:
            grads = [grad for grad in grads if grad is not None]
        else:
            absent = ()
        if not grads:
            self.grad_norm, self.skipped = None, False
            return
        plan = self._looked(absent, grads)
        if self.overlap:
            self._flight = Flight(partial(self._run, plan)), plan, absent
        else:
            self._finish(plan, absent, partial(self._run, plan))

    def _finish(self, plan: _Plan, absent: tuple[bool, ...], run: Callable[[], _Outcome]) -> None:
        done = False
        try:
            done = self._take(plan, *run())
        finally:
            if plan.fresh and not done:
                self._plans.pop(absent, None)  # What is new was made of the parameters as they are now.
        if done:
            self._commit(plan)

    def _settle(self) -> None:
        """Finishes the step that another thread computes, if there is one."""
        if self._flight is not None:
            flight, plan, absent = self._flight
            flight.wait()
            self._flight = None
            self._finish(plan, absent, flight.result)

    def synchronize(self) -> None:
        """Waits for the step that `overlap=True` left under way, and writes its result to the parameters.

        To be called before the parameters are read for anything but the next training batch: before validation, before
        `model.state_dict()`, at the end. Without `overlap`, or with nothing under way, it does nothing.

        Raises:
            FloatingPointError: As `step`, for the step that was under way.
            ValueError: Likewise. Nothing of that step was done.
        """
        with self._alone():
            pass

    def _looked(self, absent: tuple[bool, ...], grads: list[Any]) -> _Plan:
        """The plan for these gradients, when all its parts have found everything in order."""
        plan, new = self._plan(absent)
        try:
            plan.look(grads)
        except (TypeError, ValueError):
            self._plans.pop(absent)
            if new:
                raise
            # A parameter has come to another device or shape. A new plan takes the state there, or says what is wrong.
            plan, _ = self._plan(absent)
            try:
                plan.look(grads)
            except (TypeError, ValueError):
                self._plans.pop(absent)
                raise
        return plan

    def _run(self, plan: _Plan) -> _Outcome:
        """The step itself, when everything is in order: see `_take`."""
        clip, max_norm, check, ema_decay = self._around.at(0)
        hypers = self._hypers
        arguments: list[Groups] = [
            [
                (min(count + 1, LAST), hypers[i].maximize, hypers[i].values, scalars)
                for i, count, scalars in leaves.entries
            ]
            for leaves in plan.leaves
        ]
        norm = None
        first: int | None
        if len(plan.leaves) == 1 and type(part := plan.leaves[0].part) is CpuPart:
            first, norm, scalars = part.whole(arguments[0], 1.0, clip, max_norm, None, ema_decay, check)
            results = [scalars]
        else:
            first, results = None, []
            if check or max_norm < math.inf:
                norm, first = _inspect(plan, clip)
                norm = norm if max_norm < math.inf else None
            if first is None or not check:
                first = None
                results = [
                    leaves.part.step(own, 1.0, clip, max_norm, norm, ema_decay)
                    for leaves, own in zip(plan.leaves, arguments, strict=True)
                ]
        return first, norm, results

    def _take(self, plan: _Plan, first: int | None, norm: float | None, results: list[list[list[float]]]) -> bool:
        """What a step gave: whether a gradient was not finite, the norm, the scalar state. Whether it was taken."""
        if first is not None:
            if self._around.values["nonfinite"] == "raise":
                name = next(
                    name
                    for leaves in plan.leaves
                    for name, k in zip(leaves.names, leaves.positions, strict=True)
                    if k == first
                )
                raise nonfinite_error(f"the gradient of {name}")
            self.grad_norm, self.skipped = norm, True
            return False
        self.grad_norm, self.skipped = norm, False
        for leaves, scalars in zip(plan.leaves, results, strict=True):
            leaves.entries = [
                (i, min(count + 1, LAST), new) for (i, count, _), new in zip(leaves.entries, scalars, strict=True)
            ]
        return True

    def _commit(self, plan: _Plan) -> None:
        """What torch sees of a step."""
        for leaves in plan.leaves:
            if isinstance(leaves.part, OffloadPart):
                leaves.part.land()
        for p, own, name, tensor in plan.fresh:
            if p not in self.state or self.state[p] is not own:
                self.state[p] = own
            if tensor is None:
                del own[name]
            else:
                own[name] = tensor
        if plan.fresh:
            plan.fresh = []
            self._dicts = list(self.state.values())
        for slab in (self._slabs["step"], self._mirror["step"]):
            if plan.index is None:
                slab.add_(1)
            else:
                slab[plan.index] += 1
        for k, name in enumerate(self._scalars):
            for leaves in plan.leaves:
                for (_, _, scalars), members in zip(leaves.entries, leaves.members, strict=True):
                    for slab in (self._slabs[name], self._mirror[name]):
                        slab[members] = scalars[k]
        torch.autograd.graph.increment_version(plan.params)
        self._last = plan

    # -- Plans ---------------------------------------------------------------------------------------------------------

    def _arrange(self, params: list[Tensor], sizes: list[int]) -> None:
        """Gives each parameter a slot in the slabs of step counts and scalar state, which one operation advances."""
        groups = self.param_groups
        hypers = [self._hyper(group, f"param_groups[{i}]['{{}}']") for i, group in enumerate(groups)]
        if len(set(map(id, params))) != len(params):
            raise ValueError("a parameter is in the parameter groups twice; one step would update it twice")
        self._forget()
        self._params, self._sizes, self._hypers = list(params), sizes, hypers
        self._owners = [i for i, size in enumerate(sizes) for _ in range(size)]
        n = len(params)
        with torch.inference_mode(False):
            self._slabs = {"step": torch.zeros(n, dtype=torch.float32, device="cpu")}
            for name, value in self._scalars.items():
                self._slabs[name] = torch.full((n,), value, dtype=torch.float64, device="cpu")
            self._mirror = {name: slab.clone() for name, slab in self._slabs.items()}
            self._views = {name: list(slab.unbind()) for name, slab in self._slabs.items()}

    def _name(self, slot: int) -> str:
        """What messages call a parameter."""
        i = self._owners[slot]
        k = slot - sum(self._sizes[:i])
        names = self.param_groups[i].get("param_names")
        return names[k] if names else f"param_groups[{i}]['params'][{k}]"

    def _plan(self, absent: tuple[bool, ...]) -> tuple[_Plan, bool]:
        """The plan for these parameters with a gradient, as everything is now, and whether it is new."""
        state = self.state
        if len(state) != len(self._dicts) or not all(map(is_, state.values(), self._dicts)):
            self._plans.clear()
            self._dicts = list(state.values())
        # What a user wrote into a step count is in the slab, but not in its mirror.
        if not all(torch.equal(slab, self._mirror[name]) for name, slab in self._slabs.items()):
            self._last = None
            for name, slab in self._slabs.items():
                self._mirror[name].copy_(slab)
        plan = self._plans.get(absent)
        if plan is not None and plan.is_current():
            if plan is self._last:
                return plan, False
            slabs = {name: slab.tolist() for name, slab in self._slabs.items()}
            if all(leaves.count(slabs) for leaves in plan.leaves):
                return plan, False
        self._plans.pop(absent, None)
        plan = self._make_plan(absent)
        if len(self._plans) >= PLANS:
            del self._plans[next(iter(self._plans))]
        self._plans[absent] = plan
        self._last = None
        return plan, True

    def _make_plan(self, absent: tuple[bool, ...]) -> _Plan:
        plan = _Plan()
        slots = [slot for slot in range(len(self._params)) if not absent or not absent[slot]]
        slabs = {name: slab.tolist() for name, slab in self._slabs.items()}
        dicts: dict[int, dict[str, Any]] = {}
        with torch.inference_mode(False), torch.no_grad():
            for slot in slots:
                p, i = self._params[slot], self._owners[slot]
                name = self._name(slot)
                _refuse(p, name)
                hyper = self._hypers[i]
                own = self.state.get(p)
                dicts[slot] = own = {} if own is None else own
                found = self._find(plan, p, name, own, hyper)
                for what, value in self._counts(name, own, hyper, slot).items():
                    slabs[what][slot] = value
                    if what in self._shown:
                        found[what] = self._views[what][slot]
                        if own.get(what) is not found[what]:
                            plan.fresh.append((p, own, what, found[what]))
                plan.add(hyper.rule, p.device, i, slot, p, name, found)
            for what, values in slabs.items():
                self._slabs[what].copy_(torch.tensor(values, dtype=torch.float64, device="cpu"))
                self._mirror[what].copy_(self._slabs[what])
            plan.index = torch.tensor(slots, device="cpu") if absent else None
        ema = self._around.values["ema_decay"] is not None
        for leaves in plan.leaves:
            leaves.count(slabs)
            states = RULES[leaves.rule][1]
            leaves.part = self._part(leaves.device)(
                leaves.rule,
                leaves.params,
                [[own[name] for own in leaves.found] for name in states],
                leaves.numbers,
                leaves.names,
                [own.get("master") for own in leaves.found] if self.master_weights or self.offload else None,
                [own["ema"] for own in leaves.found] if ema else None,
            )
            own = [dicts[slot] for slot in leaves.slots]
            plan.watch(self._shown + states + (["ema"] if ema else []), own, leaves.found)
            copies = [k for k, found in enumerate(leaves.found) if "master" in found]
            plan.watch(["master"], [own[k] for k in copies], [leaves.found[k] for k in copies])
        return plan

    def _part(self, device: torch.device) -> Any:
        """What steps the leaves on a device: the class of a `Part`."""
        if self.overlap or (self.offload and device.type != "cpu"):
            return OffloadPart
        if device.type == "cpu":
            return CpuPart
        from ._device import DevicePart

        return DevicePart

    def _counts(self, name: str, own: dict[str, Any], hyper: _Hyper, slot: int) -> dict[str, float]:
        """Steps taken, and scalar state, of a parameter."""
        if not self._counted:
            # Only whether the state has begun is known, as in torch.
            begun = all(own.get(what) is not None for what in RULES[hyper.rule][1])
            return {"step": max(1.0, self._slabs["step"][slot].item()) if begun else 0.0}
        begun = self._begun(own)
        return {
            what: _scalar(own.get(what), f"{what} of {name}", None if begun else first)
            for what, first in {"step": 0.0, **self._scalars}.items()
        }

    def _begun(self, own: Mapping[str, Any]) -> bool:
        return any(own.get(what) is not None for what in self._kind._states)

    def _find(self, plan: _Plan, p: Tensor, name: str, own: dict[str, Any], hyper: _Hyper) -> dict[str, Tensor]:
        """The state arrays of a parameter in the computed type on its device, master and average included."""
        begun = self._begun(own)
        found: dict[str, Tensor] = {}

        def take(what: str, make: Callable[[], Tensor]) -> None:
            old = own.get(what)
            found[what] = make() if old is None else _fitting(old, p, f"{what} of {name}", self._home(p))
            if found[what] is not old:
                plan.fresh.append((p, own, what, found[what]))

        for what in RULES[hyper.rule][1]:
            if begun and what in self._usual and own.get(what) is None:
                raise ValueError(
                    f"the state of {name} must have {what!r} besides {', '.join(map(repr, own))}; was it loaded from "
                    "another optimiser?"
                )
            take(what, partial(self._first, what, p, hyper))
        if self._has_master(p):
            take("master", lambda: self._copy(p))
            if self.offload and (master := pinned(found["master"], p)) is not found["master"]:
                found["master"] = master
                plan.fresh.append((p, own, "master", master))
        elif "master" in own:
            plan.fresh.append((p, own, "master", None))  # Else it would be taken up when the parameter is narrow again.
        if self._around.values["ema_decay"] is not None:
            take("ema", lambda: self._copy(p))
        return found

    def _home(self, p: Tensor) -> torch.device:
        """Where the state of a parameter is."""
        return torch.device("cpu") if self.offload else p.device

    def _copy(self, p: Tensor) -> Tensor:
        """A copy of a parameter in the type that is computed in, where its state is."""
        return p.detach().to(device=self._home(p), dtype=computed(p.dtype), copy=True)

    def _has_master(self, p: Tensor) -> bool:
        """Whether there is a copy of a parameter that takes the steps."""
        low = p.dtype is not computed(p.dtype)
        return (self.master_weights and low) or (self.offload and (low or self.overlap or p.device.type != "cpu"))

    def _first(self, what: str, p: Tensor, hyper: _Hyper) -> Tensor:
        """A state array before the first step."""
        # The method needs no instance.
        value = self._kind._fill(self, what, hyper.group)  # type: ignore[arg-type]
        return torch.full_like(
            p.detach(), value, dtype=computed(p.dtype), device=self._home(p), memory_format=torch.preserve_format
        )

    # -- State ---------------------------------------------------------------------------------------------------------

    def sync_ema(self) -> None:
        """Sets the averages to the parameters, after weights were loaded by hand; else the old ones linger."""
        with self._alone(), torch.no_grad():
            for p, own in self.state.items():
                if own.get("ema") is not None:
                    own["ema"].copy_(p)

    def sync_master(self) -> None:
        """Sets the float32 copies to the parameters, after these were changed by hand.

        An element whose copy rounds to it has not changed, and keeps the bits that rounding takes.
        """
        with self._alone(), torch.no_grad():
            for p, own in self.state.items():
                if (master := own.get("master")) is not None:
                    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[p.dtype.itemsize]
                    here = p.detach().to(master.device)
                    same = master.to(p.dtype).view(bits) == here.view(bits)
                    master.copy_(torch.where(same, master, here.to(master.dtype)))

    def share_memory(self) -> None:
        """Moves all state into memory that other processes can share (`torch.Tensor.share_memory_`)."""
        with self._alone():
            for own in self.state.values():
                for value in own.values():
                    if isinstance(value, Tensor):
                        value.share_memory_()  # type: ignore[no-untyped-call]

    def _detached(self, own: dict[str, Any]) -> dict[str, Any]:
        """State with numbers of their own instead of views into the slabs."""
        return {
            name: value.clone() if name in self._shown and isinstance(value, Tensor) else value
            for name, value in own.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """`{"state", "param_groups"}` as `torch.optim.Optimizer.state_dict` gives it, which torch's class can load.

        State of float16 and bfloat16 parameters is float32. Tensors are the optimiser's own, not copies.
        """

        def detach(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
            state = {
                key: self._detached(own) if isinstance(own, dict) else own for key, own in state_dict["state"].items()
            }
            return state_dict | {"state": state}

        with self._alone():
            handle = self.register_state_dict_post_hook(detach, prepend=True)
            try:
                return super().state_dict()
            finally:
                handle.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict`, or that of torch's class of the same name, gave. Nothing is aliased.

        State is taken in the type that is computed in: float32 stays float32 for a bfloat16 parameter, to the bit.
        Hyperparameters that the checkpoint does not have are the optimiser's defaults.

        Raises:
            ValueError: The groups are others, a state tensor is missing, unknown or of another shape, or a
                hyperparameter is out of range. Nothing was changed.
        """

        def keep(_: Any, loaded: dict[str, Any]) -> dict[str, Any]:
            def kept(own: Any) -> Any:
                if not isinstance(own, dict):
                    return own
                return {k: _Kept(value) if isinstance(value, Tensor) else value for k, value in own.items()}

            return loaded | {"state": {key: kept(own) for key, own in loaded["state"].items()}}

        with self._alone():
            handle = self.register_load_state_dict_pre_hook(keep)  # After the user's.
            try:
                super().load_state_dict(state_dict)
            finally:
                handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        self.synchronize()
        state: defaultdict[Any, Any] = defaultdict(dict)
        state.update((p, self._detached(own)) for p, own in self.state.items())
        if get_spawning_popen() is not None:
            # Its memory goes to the new process by descriptors, which must be open when that starts.
            self._sent = state
        options = self._around.values | {name: getattr(self, name) for name in SWITCHES}
        return super().__getstate__() | {"state": state, "options": options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch calls this with what is to be loaded, pickle and copy with all that `__getstate__` gave.
        state = dict(state)
        options = state.pop("options", None)
        if options is not None:
            self._begin(options)
        else:
            self._check_loaded(state)
        super().__setstate__(state)
        self._forget()

    def _check_loaded(self, state: dict[str, Any]) -> None:
        """Makes groups and state out of a checkpoint, or raises."""
        for i, group in enumerate(state["param_groups"]):
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            group.update(dict.fromkeys(UNSUPPORTED, False))
            hyper = self._hyper(group, f"param_groups[{i}]['{{}}'] of the checkpoint")
            names = group.get("param_names")
            for k, p in enumerate(group["params"]):
                if p in state["state"]:
                    name = names[k] if names else f"param_groups[{i}]['params'][{k}]"
                    state["state"][p] = self._loaded(state["state"][p], p, name, hyper)

    def _loaded(self, own: Mapping[str, Any], p: Tensor, name: str, hyper: _Hyper) -> dict[str, Any]:
        """The state of a parameter out of a checkpoint, checked and copied."""
        numbers = {what: value for what, value in own.items() if what in self._shown}
        arrays = {what: value for what, value in own.items() if what not in self._shown and value is not None}
        kept = {"master": self.master_weights or self.offload, "ema": self.ema_decay is not None}
        known = [*self._kind._states, *(what for what, has in kept.items() if has)]
        for what in arrays:
            if what not in known:
                hint = {
                    "master": ", make this one with master_weights=True",
                    "ema": ", make this one with ema_decay=...",
                }
                raise ValueError(
                    f"the checkpoint has {what!r} of {name}, which this {type(self).__name__} does not keep "
                    f"({', '.join(self._shown + known) or 'nothing'}); load it into an optimiser of the same kind"
                    f"{hint.get(what, '')}"
                )
        if not self._has_master(p):
            arrays.pop("master", None)  # The parameter itself takes the steps here.
        begun = self._begun(arrays)
        for what in (*self._shown, *(s for s in self._usual if s in RULES[hyper.rule][1])):
            if begun and own.get(what) is None:
                raise ValueError(
                    f"the checkpoint must have {what!r} of {name} for {type(self).__name__}, got only "
                    f"{', '.join(map(repr, own))}"
                )
        out: dict[str, Any] = {}
        for what, value in numbers.items():
            x = _scalar(value.tensor if isinstance(value, _Kept) else value, f"{what} of {name}", None)
            out[what] = torch.tensor(x, dtype=torch.float32 if what == "step" else torch.float64, device="cpu")
        for what, value in arrays.items():
            tensor = value.tensor if isinstance(value, _Kept) else value
            fitting = _fitting(tensor, p, f"{what} of {name} in the checkpoint", self._home(p))
            out[what] = fitting.detach().clone() if fitting is tensor else fitting
        return out


def defaults(kind: type[Any]) -> dict[str, Any]:
    """The hyperparameters of a class with their defaults."""
    from inspect import signature

    return {p.name: p.default for p in signature(kind.__init__).parameters.values() if p.default is not p.empty}


@cache
def _makes_state_at_once(name: str) -> bool:
    """Whether torch's class of that name makes state with the optimiser, so that its `load_state_dict` asks for it."""
    peer = getattr(torch.optim, name, None)
    return peer is not None and bool(peer([torch.zeros(1, device="cpu")]).state)


def _refuse(p: Tensor, name: str) -> None:
    """Refuses parameters that no part can step."""
    refuse(p, name)
    if p.device.type == "meta":
        raise TypeError(f"{name} must have memory, but is on the meta device; use Module.to_empty and initialise it")


def _scalar(value: Any, what: str, first: float | None) -> float:
    """A step count or scalar state as a number; `first` if there is none yet."""
    if value is None and first is not None:
        return first
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{what} must be a number of at least 0, or a tensor with one, got {value!r}")
    x = float(value)
    if what.startswith("step ") and not x.is_integer():
        raise ValueError(f"{what} must be a whole number, got {value!r}")
    return x


def _fitting(value: Any, p: Tensor, what: str, device: torch.device) -> Tensor:
    """A state array as it must be for a parameter: itself if it is so."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} must be a tensor, got {type(value).__name__}")
    if value.shape != p.shape:
        raise ValueError(f"{what} must have shape {tuple(p.shape)} like the parameter, got {tuple(value.shape)}")
    if value.dtype not in FLOATS or value.layout is not torch.strided:
        raise TypeError(f"{what} must be a dense tensor of floats, got {value.dtype}, {value.layout}")
    dtype = computed(p.dtype)
    if value.dtype is dtype and value.device == device:
        return value
    return value.detach().to(device=device, dtype=dtype)


def _inspect(plan: _Plan, clip: float) -> tuple[float, int | None]:
    """The norm of the gradients of all parts together, and the first leaf whose gradient is not finite."""
    first: int | None = None

    def total(unit: float) -> float:
        nonlocal first
        sums = np.zeros(len(plan.params))
        for leaves in plan.leaves:
            own, bad = leaves.part.inspect(1.0, clip, unit)
            sums[leaves.positions] = own
            if bad is not None and (first is None or leaves.positions[bad] < first):
                first = leaves.positions[bad]
        return _core.tree_sum(sums)

    whole = total(1.0)
    # As in the core: only squares of float64 can leave its range, and a power of two brings them back exactly.
    if 2.0**-900 <= whole < math.inf or all(p.dtype is not torch.float64 for p in plan.params):
        return math.sqrt(whole), first
    unit = 2.0**512 if whole < 1.0 else 2.0**-512
    return math.sqrt(total(unit)) / unit, first


def _look_across(parts: list[CpuPart]) -> None:
    """What each part has checked for itself, between them: nothing that is written overlaps anything else."""
    if len(parts) < 2 or not any(part.moved for part in parts):
        return
    names = [name for part in parts for name in part.written_names]
    arrays = [array for part in parts for array in part.arrays]
    try:
        plan = _core.Plan("sgd", _core.Tree(arrays, "params"), [], [0] * len(arrays))
        # Where there is no gradient to compare with, one zero in the shape of all.
        grads = [
            np.broadcast_to(np.zeros((), np.float32), array.shape) if k >= len(part.grads) else part.grads[k]
            for part in parts
            for k, array in enumerate(part.arrays)
        ]
        plan.inspect(grads, 1.0, math.inf, 1.0, None)
    except (TypeError, ValueError) as error:
        raise named(error, names) from None
