"""What all optimisers share: groups, state, the step, checkpoints."""

from __future__ import annotations

import math
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from .. import _core
from . import _checkpoint
from ._hyper import NOT_NEGATIVE_OR_INF, RULES, UNIT, Limit, ParamGroup, Scalar, at, flag, number, scalar

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = "Array | Sequence[Arrays] | Mapping[Any, Arrays]"
"""An array, or a nest of dicts (with strings or integers as keys), lists and tuples of arrays."""

SMALL = 1 << 15
"""State arrays with fewer elements than this share one piece of memory."""

FINITE = Limit(-sys.float_info.max, sys.float_info.max, "finite")
"""Of `grad_scale`, which may have either sign."""

AVERAGED = "the parameters are their average; leave the `with averaged(opt)` block, or validation, first"
LOOKAHEAD = "the parameters are at the lookahead point; leave the `with opt.lookahead()` block first"

LINE = 64
"""Bytes in a cache line: where arrays that we place begin."""


class StepResult(NamedTuple):
    """What one step did."""

    step: int
    """The steps taken so far, this one included unless it was skipped; see `Optimizer.steps`."""
    grad_norm: float | None
    """The 2-norm of all gradients after `grad_scale` and `clip_value` and before `max_norm`; None if not computed."""
    update_norm: float | None
    """The 2-norm of the change of all parameters; None if not asked for."""
    skipped: bool
    """Whether a gradient was not finite and the step was left out (`nonfinite="skip"`)."""


class Options(TypedDict, total=False):
    """What every optimiser takes besides its hyperparameters; see `Optimizer`."""

    weight_decay_mask: Any
    max_norm: Scalar | None
    clip_value: Scalar | None
    nonfinite: str
    ema_decay: Scalar | None
    master_weights: bool


class Option:
    """An attribute of an optimiser that is checked when it is set."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else optimizer._around.values[self._name]

    def __set__(self, optimizer: Any, value: Any) -> None:
        optimizer._around.set(self._name, value)


class Around:
    """What happens around the rule in the same call: clipping, the check for infinities, the average of the weights."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "max_norm": NOT_NEGATIVE_OR_INF,
        "clip_value": NOT_NEGATIVE_OR_INF,
        "ema_decay": UNIT,
    }

    def __init__(self) -> None:
        """Nothing happens around the rule."""
        self.values: dict[str, Any] = {
            "max_norm": None,
            "clip_value": None,
            "nonfinite": "propagate",
            "ema_decay": None,
        }
        self.numbers: tuple[float, float, bool, float] | None = None

    def set(self, name: str, value: Any) -> None:
        """Checks a value and takes it."""
        if name == "nonfinite":
            if not isinstance(value, str) or value not in ("propagate", "skip", "raise"):
                raise ValueError(f"nonfinite must be 'propagate', 'skip' or 'raise', got {value!r}")
        elif value is not None:
            value = scalar(name, value, self.LIMITS[name])
        self.values[name] = value
        self.numbers = None

    def callables(self) -> list[str]:
        """The names of the options that are functions of the step."""
        return [name for name, value in self.values.items() if callable(value)]

    def at(self, step: int) -> tuple[float, float, bool, float]:
        """What the core takes at a step: clip_value, max_norm, check_finite, ema_decay."""
        if self.numbers is not None:
            return self.numbers

        def value(name: str, absent: float) -> float:
            given = self.values[name]
            return absent if given is None else at(name, given, step, self.LIMITS[name])

        check = self.values["nonfinite"] != "propagate"
        numbers = value("clip_value", math.inf), value("max_norm", math.inf), check, value("ema_decay", 0.0)
        if not self.callables():
            self.numbers = numbers
        return numbers


def decayed_leaves(mask: Any, tree: _core.Tree) -> list[bool]:
    """For each leaf of the tree whether it has weight decay: a nest of bools, or a function of the array."""
    if mask is None:
        return [True] * len(tree)
    wanted = [mask(leaf) for leaf in tree.leaves] if callable(mask) else tree.flatten(mask, "weight_decay_mask")
    for name, value in zip(tree.names("weight_decay_mask"), wanted, strict=True):
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} must be True (decay) or False, got {value!r}")
    return [bool(value) for value in wanted]


def compute_dtype(array: Array) -> type[np.float32 | np.float64]:
    """The type that an array of this type is computed in, and that its state has."""
    return np.float64 if array.dtype.char == "d" else np.float32


def nonfinite_error(name: str) -> FloatingPointError:
    """The error of `nonfinite="raise"`."""
    return FloatingPointError(
        f"{name} must be finite, but has an infinite or NaN element; nothing was changed (nonfinite='skip' leaves such "
        "steps out)"
    )


class _Part:
    """Leaves that get the same numbers: those of one group with, or without, weight decay."""

    __slots__ = ("decayed", "group", "scalars")

    def __init__(self, group: int, decayed: bool, scalars: list[float]) -> None:
        self.group = group
        self.decayed = decayed
        self.scalars = scalars


class _Active:
    """The groups that are not frozen, where some are. They have a plan of their own: the others are not looked at."""

    def __init__(
        self,
        rule: str,
        groups: list[ParamGroup],
        parts: list[_Part],
        decayed: list[list[bool]],
        companions: list[list[Array | None] | None],
        frozen: Sequence[bool],
    ) -> None:
        """Of `companions` the last two are the masters and the averages, the others the states of the rule."""
        self.frozen = list(frozen)
        self.numbers = [i for i, flag in enumerate(frozen) if not flag]
        self.parts = [part for part in parts if not frozen[part.group]]
        self.plan: _core.Plan | None = None
        if not self.numbers:
            return
        # With the group's number as the key, a name in a message is the one that it has in the whole list.
        tree = _core.Tree({i: groups[i]["params"] for i in self.numbers}, "params")
        owners = [i for i, flags in enumerate(decayed) for _ in flags]
        *states, master, ema = [
            None if arrays is None else [array for array, i in zip(arrays, owners, strict=True) if not frozen[i]]
            for arrays in companions
        ]
        index = {(part.group, part.decayed): k for k, part in enumerate(self.parts)}
        members = [index[i, flag] for i in self.numbers for flag in decayed[i]]
        self.plan = _core.Plan(rule, tree, [arrays or [] for arrays in states], members, master, ema)

    def grads(self, grads: Any) -> dict[int, Any]:
        """Those of the active groups."""
        if self.plan is None:
            raise RuntimeError("all parameter groups are frozen, so a step would do nothing; call unfreeze first")
        return active_grads(grads, self.frozen)


def active_grads(grads: Any, frozen: Sequence[bool]) -> dict[int, Any]:
    """Of gradients by group those of the groups that are not frozen, by the number of the group."""
    n = len(frozen)
    if not isinstance(grads, (list, tuple)) or len(grads) != n:
        got = f" of length {len(grads)}" if isinstance(grads, (list, tuple, dict)) else ""
        raise ValueError(
            f"grads must be a list or tuple of length {n} like the parameters, got {type(grads).__name__}{got}"
        )
    return {i: own for i, own in enumerate(grads) if not frozen[i]}


def arguments(kind: type[Optimizer]) -> list[str]:
    """The names of all that a class takes besides the parameters: its hyperparameters, and the options of all."""
    from inspect import signature  # Not at the top: it would be a tenth of the time to import the package.

    parameters = signature(kind).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "params"] + list(
        Options.__annotations__
    )


def _leading(steps: list[int]) -> int:
    """The number of the group that has taken most steps."""
    return max(range(len(steps)), key=steps.__getitem__)


def _placed(leaves: list[Array], fills: list[float]) -> list[list[Array]]:
    """For each leaf one array per fill: the leaf's shape and order, its computed type. Small ones lie in one slab."""
    out: list[list[Array]] = []
    slabs: dict[type, list[tuple[list[Array], Array]]] = {np.float32: [], np.float64: []}
    for leaf in leaves:
        own: list[Array] = []
        dtype = compute_dtype(leaf)
        if leaf.size < SMALL and leaf.flags.c_contiguous:
            slabs[dtype].append((own, leaf))
        else:
            for fill in fills:
                array = np.zeros_like(leaf, dtype=dtype, order="K", subok=False)
                if fill:
                    array.fill(fill)
                own.append(array)
        out.append(own)
    for dtype, members in slabs.items():
        per_line = LINE // np.dtype(dtype).itemsize
        room = [-(-leaf.size // per_line) * per_line for _, leaf in members]
        slab = np.zeros(len(fills) * sum(room) + per_line, dtype)
        at = -slab.ctypes.data % LINE // slab.itemsize
        for (own, leaf), size in zip(members, room, strict=True):
            for fill in fills:
                array = slab[at : at + leaf.size].reshape(leaf.shape)
                if fill:
                    array.fill(fill)
                own.append(array)
                at += size
    return out


def _copies(leaves: list[Array]) -> list[Array]:
    """Copies in the computed type, in the leaf's order."""
    return [np.array(leaf, dtype=compute_dtype(leaf), order="K", subok=False) for leaf in leaves]


def _masters(leaves: list[Array]) -> list[Array | None]:
    """Copies of those that are not stored as they are computed."""
    return [_copies([leaf])[0] if leaf.dtype.char not in "fd" else None for leaf in leaves]


def _is_groups(params: Any) -> bool:
    return (
        isinstance(params, (list, tuple))
        and len(params) > 0
        and all(isinstance(group, dict) and "params" in group for group in params)
    )


class Optimizer:
    """The base of all optimisers.

    `params` is an array, or a nest of dicts, lists and tuples of arrays: float32, float64, float16 or bfloat16
    (`ml_dtypes`), of any layout. They are updated in place. State is kept in the type that is computed in: float64 for
    float64, float32 for the others. A list of dicts with a key `"params"` is a list of parameter groups, as in torch;
    the other keys are hyperparameters that differ from the optimiser's. The gradients of a step are then a list too,
    with one nest per group.

    Every hyperparameter that is a number may be a function of the number of steps taken so far (0 at the first step).

    Arguments that all optimisers share:
        maximize: Climb: the gradient changes sign, after clipping and before weight decay.
        weight_decay: Coupled (L2), `g + weight_decay * p` before everything else, or with `decoupled_weight_decay`
            decoupled, `p * (1 - lr * weight_decay)` before the step.
        weight_decay_mask: Which parameters decay: a nest of bools like `params`, or a function from an array to a bool,
            as in `lambda p: p.ndim > 1`. It is asked once.
        max_norm: Gradients are scaled by `min(1, max_norm / (norm + 1e-6))`, where `norm` is that of all of them
            together (`torch.nn.utils.clip_grad_norm_`). The gradients themselves are not written.
        clip_value: Each element of a gradient is limited to `-clip_value .. clip_value`, before `max_norm`.
        nonfinite: What to do if a gradient has an infinite or NaN element: `"propagate"` it (torch), `"skip"` the step,
            or `"raise"` a FloatingPointError. In the last two cases nothing is changed.
        ema_decay: Keep an exponential moving average of the parameters, `ema = ema_decay * ema + (1 - ema_decay) * p`
            after each step, beginning with a copy; see `ema`. After loading parameters by hand call `sync_ema()`. It is
            taken of the new value before that is rounded to
            float16 or bfloat16, and so is the `update_norm` of a step.
        master_weights: Keep a float32 copy of float16 and bfloat16 parameters, which takes the steps; the parameters
            are its rounded image. After changing such parameters by hand call `sync_master()`.

    An optimiser takes one step at a time: a second call while one runs raises a RuntimeError. To change an array's
    memory or metadata during a step is undefined, as it is in NumPy.
    """

    _states: ClassVar[tuple[str, ...]] = ()
    """All state that the rules of the class may keep, in the order in which the function takes it."""
    _limits: ClassVar[dict[str, Limit]] = {}
    """Of the hyperparameters that `LIMITS` does not have."""
    _fixed: ClassVar[dict[str, Any]] = {}
    """Hyperparameters of the rule that the class does not let choose."""
    _function: ClassVar[str] = ""
    """The name of the class's function in `ironstep.functional`."""

    @classmethod
    def _rule(cls, values: Mapping[str, Any]) -> str:
        """The rule in the core that the hyperparameters choose."""
        raise TypeError(f"{cls.__name__} is abstract; use one of the optimisers")

    @classmethod
    def _check(cls, values: Mapping[str, Any]) -> None:
        """Refuses hyperparameters that do not go together."""

    def _fill(self, state: str, group: ParamGroup) -> float:
        """The first value of a state array."""
        return 0.0

    def __init__(
        self,
        params: Arrays,
        defaults: dict[str, Any],
        *,
        weight_decay_mask: Any = None,
        max_norm: Scalar | None = None,
        clip_value: Scalar | None = None,
        nonfinite: str = "propagate",
        ema_decay: Scalar | None = None,
        master_weights: bool = False,
    ) -> None:
        """From all hyperparameters of the class, by name."""
        self._lock = threading.Lock()
        self._around = Around()
        for name, value in {
            "max_norm": max_norm,
            "clip_value": clip_value,
            "nonfinite": nonfinite,
            "ema_decay": ema_decay,
        }.items():
            self._around.set(name, value)
        self._defaults = defaults
        self._grouped = _is_groups(params)
        self._groups: list[ParamGroup] = []
        self._steps: list[int] = []
        self._leader = 0
        self._active: _Active | None = None
        self._decayed: list[list[bool]] = []
        self._parts: list[_Part] = []
        self._state: dict[str, list[Array]] = {}
        self._master: list[Array | None] | None = [] if flag("master_weights", master_weights) else None
        self._ema: list[Array] | None = [] if ema_decay is not None else None
        self._visible = False
        self._elsewhere: str | None = None
        """Where the parameters are for a while, and what to do about it, so that no step is taken there."""
        groups: Any = params if self._grouped else [{"params": params}]
        self._add([dict(group) for group in groups], weight_decay_mask)

    def _add(self, groups: list[dict[str, Any]], mask: Any) -> None:
        """Adds groups, or raises and changes nothing."""
        first = len(self._groups)
        if first:
            self._plan.params()  # Raises if the containers have changed so that state and parameters would not match.
        many = self._grouped or first + len(groups) > 1
        masks = [mask] * len(groups) if mask is None or callable(mask) or not self._grouped else mask
        if not isinstance(masks, (list, tuple)) or len(masks) != len(groups):
            raise ValueError(f"weight_decay_mask must be a function or a list with one mask per group, got {mask!r}")
        new, decayed = [], []
        for i, (own, own_mask) in enumerate(zip(groups, masks, strict=True), first):
            name = f"params[{i}]" if many else "params"
            params = own.pop("params")
            own_mask = own.pop("weight_decay_mask", own_mask)
            unknown = [key for key in own if key not in self._defaults]
            if unknown:
                raise ValueError(
                    f"{name} has {unknown[0]!r}, which is no hyperparameter of {type(self).__name__}: it takes "
                    f"{', '.join(self._defaults)}"
                )
            if isinstance(getattr(params, "params", None), Mapping) and not isinstance(params, Mapping):
                raise TypeError(
                    f"{name} must be an array, or a nest of dicts, lists and tuples of arrays, got a "
                    f"{type(params).__name__}: use model.params"
                )
            tree = _core.Tree(params, name)
            if len(tree) == 0:
                raise ValueError(f"{name} must hold at least one array, got {params!r}")
            new.append(ParamGroup(type(self), self._defaults | own, params))
            decayed.append(decayed_leaves(own_mask, tree))
        groups_now = self._groups + new
        rules = {group.rule for group in groups_now}
        if len(rules) > 1:
            raise ValueError(
                "all parameter groups of one optimiser must keep the same state, but these choose "
                f"{sorted(rules)}: make an optimiser for each"
            )
        everything = _core.Tree(
            [group["params"] for group in groups_now] if many else groups_now[0]["params"], "params"
        )
        # Before anything is allocated like the parameters: are they arrays that can be updated in place?
        _core.Plan("sgd", everything, [], [0] * len(everything))
        names = RULES[groups_now[0].rule][1]
        leaves: list[Array] = everything.leaves[sum(map(len, self._decayed)) :]
        state = {name: list(self._state.get(name, [])) for name in names}
        start = 0
        for flags, group in zip(decayed, new, strict=True):
            own_leaves = leaves[start : start + len(flags)]
            start += len(flags)
            placed = _placed(own_leaves, [self._fill(name, group) for name in names])
            for k, name in enumerate(names):
                state[name] += [arrays[k] for arrays in placed]
        master = None if self._master is None else self._master + _masters(leaves)
        ema = None if self._ema is None else self._ema + _copies(leaves)
        self._replan(groups_now, self._decayed + decayed, state, master, ema, many)
        self._steps += [0] * len(new)

    def _replan(
        self,
        groups: list[ParamGroup],
        decayed: list[list[bool]],
        state: dict[str, list[Array]],
        master: list[Array | None] | None,
        ema: list[Array] | None,
        grouped: bool,
        frozen: Sequence[bool] | None = None,
    ) -> None:
        """Takes all of this if it makes a good plan, or raises and changes nothing. `frozen`: of each group, if new."""
        rule = groups[0].rule
        frozen = [group.frozen for group in groups] if frozen is None else frozen
        tree = _core.Tree([group["params"] for group in groups] if grouped else groups[0]["params"], "params")
        scalars = {part.group: part.scalars for part in self._parts}
        first = [value for _, value in RULES[rule][2]]
        keys = [(i, flag) for i, flags in enumerate(decayed) for flag in flags]
        distinct = sorted(set(keys))
        numbers = [distinct.index(key) for key in keys]
        states = [state[name] for name in RULES[rule][1]]
        plan = _core.Plan(rule, tree, states, numbers, master, ema)
        parts = [_Part(i, flag, list(scalars.get(i, first))) for i, flag in distinct]
        active = self._find_active(groups, parts, decayed, [*states, master, ema], frozen)
        if self._visible:
            plan.watch_state()
        self._plan, self._tree, self._groups, self._grouped = plan, tree, groups, grouped
        self._decayed, self._state, self._master, self._ema = decayed, state, master, ema
        self._parts = parts
        self._set_frozen(frozen, active)

    def _set_steps(self, steps: list[int]) -> None:
        self._steps, self._leader = steps, _leading(steps)

    @staticmethod
    def _find_active(
        groups: list[ParamGroup],
        parts: list[_Part],
        decayed: list[list[bool]],
        companions: list[Any],
        frozen: Sequence[bool],
    ) -> _Active | None:
        return _Active(groups[0].rule, groups, parts, decayed, companions, frozen) if any(frozen) else None

    def _set_frozen(self, frozen: Sequence[bool], active: _Active | None) -> None:
        for group, is_frozen in zip(self._groups, frozen, strict=True):
            group._frozen = is_frozen
        self._active = active
        if self._visible:
            self._show_active()

    def _leaf_groups(self) -> list[int]:
        """For each parameter the number of its group."""
        return [i for i, flags in enumerate(self._decayed) for _ in flags]

    # -- The step ------------------------------------------------------------------------------------------------------

    def _enter(self, averaged: bool = True) -> None:
        """Takes the lock. `averaged`: whether the parameters may be their average at the moment."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this optimiser is in a step on another thread; one optimiser takes one step at a time")
        if self._elsewhere and not (averaged and self._elsewhere == AVERAGED):
            self._lock.release()
            raise RuntimeError(self._elsewhere)

    def step(
        self,
        grads: Any,
        *,
        grad_scale: float = 1.0,
        grad_norm: bool = False,
        update_norm: bool = False,
        _isa: str | None = None,
    ) -> StepResult:
        """Updates all parameters in place, in one native call.

        Args:
            grads: Gradients in a nest like `params` (a list of such nests if there are several parameter groups).
                Arrays of the parameter's shape and any float type and layout; they may be read-only and are never
                written. Other objects that NumPy can take as arrays, such as JAX's, will do. Those of a frozen group
                are not looked at and may be None.
            grad_scale: The gradients are multiplied by it first: `1 / n` for the mean of n summed gradients, `1 /
                scale` to undo a loss scale.
            grad_norm: Report the norm of the gradients. It is reported anyway where `max_norm` needs it.
            update_norm: Report the norm of the change of the parameters.
            _isa: The instruction set, for tests.

        Returns:
            What was done: `StepResult(step, grad_norm, update_norm, skipped)`.

        Raises:
            ValueError: A gradient has another shape than its parameter, shares memory with an array that is updated, or
                the nest is another one. The message names it, and nothing was changed.
            TypeError: A gradient is no array of floats.
            FloatingPointError: A gradient is not finite and `nonfinite="raise"`.
            RuntimeError: Another thread is in a step of this optimiser, all groups are frozen, or the parameters are
                elsewhere for a while (`SGD.lookahead`, `train.averaged`, `train.SwapEMA`).

        Example:
            >>> import numpy as np
            >>> from ironstep.optim import SGD
            >>> w = np.array([1.0, 2.0])
            >>> SGD(w, lr=0.5).step(np.array([2.0, 2.0]), grad_norm=True).grad_norm
            2.8284271247461903
            >>> w
            array([0., 1.])
        """
        # Every line counts here: a step over a small array takes a few microseconds. So `_enter` is written out.
        if not self._lock.acquire(False):
            self._enter()  # Raises, unless the other thread has just left.
        try:
            if self._elsewhere:
                raise RuntimeError(self._elsewhere)
            steps, groups, around = self._steps, self._groups, self._around
            plan, parts, active = self._plan, self._parts, self._active
            if active is not None:
                grads = active.grads(grads)
                plan, parts = active.plan or plan, active.parts
            if grad_scale != 1.0:
                grad_scale = number("grad_scale", grad_scale, FINITE)
            arguments = []
            for part in parts:
                i = part.group
                group = groups[i]
                values = group.vectors.get(part.decayed) or group.vector(steps[i], part.decayed)
                arguments.append((steps[i] + 1, group.maximize, values, part.scalars))
            clip, max_norm, check, ema_decay = around.numbers or around.at(steps[self._leader])
            result = plan.step(
                grads, arguments, grad_scale, clip, max_norm, check, ema_decay, grad_norm, update_norm, _isa
            )
            nonfinite, norm, change, scalars = result
            if nonfinite is not None:
                if around.values["nonfinite"] == "raise":
                    raise nonfinite_error(nonfinite)
                return StepResult(steps[self._leader], norm, None, True)
            if scalars:
                for part, new in zip(parts, scalars, strict=True):
                    part.scalars = new
            if active is None:
                self._steps = steps = [n + 1 for n in steps]
            else:
                self._set_steps([n + (not frozen) for n, frozen in zip(steps, active.frozen, strict=True)])
                steps = self._steps
            return StepResult(steps[self._leader], norm, change, False)
        finally:
            self._lock.release()

    # -- What it holds -------------------------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The parameter groups, whose hyperparameters can be set: `opt.param_groups[0]["lr"] = 0.01`."""
        return list(self._groups)

    @property
    def steps(self) -> int:
        """The number of steps taken, of the group that has taken most: others were added later or frozen for a time.

        `StepResult.step` and options that are functions of the step count alike; hyperparameters of a group count the
        group's own steps.
        """
        return self._steps[self._leader]

    @property
    def state(self) -> dict[str, Any]:
        """The state arrays by name, each in a nest like `params`: the optimiser's own, not copies."""
        self._show()
        return {name: self._tree.build(arrays) for name, arrays in self._state.items()}

    @property
    def ema(self) -> Any:
        """The moving average of the parameters, in a nest like `params`; needs `ema_decay`."""
        if self._ema is None:
            raise ValueError("there is no average of the parameters: make the optimiser with ema_decay=...")
        self._show()
        return self._tree.build(list(self._ema))

    @property
    def master(self) -> Any:
        """The float32 copies of float16 and bfloat16 parameters, and the others themselves, in a nest like `params`.

        Needs `master_weights=True`.
        """
        if self._master is None:
            raise ValueError("there is no copy of the parameters: make the optimiser with master_weights=True")
        self._show()
        params = self._plan.params()
        return self._tree.build(
            [param if copy is None else copy for copy, param in zip(self._master, params, strict=True)]
        )

    def sync_ema(self) -> None:
        """Sets the averages to the parameters, after weights were loaded into these by hand; else the old ones linger.

        Those of frozen groups too.

        Raises:
            ValueError: There is no average.
            RuntimeError: The parameters are their average at the moment.
        """
        if self._ema is None:
            raise ValueError("there is no average of the parameters: make the optimiser with ema_decay=...")
        self._enter(averaged=False)
        try:
            with np.errstate(all="ignore"):
                for ema, param in zip(self._ema, self._plan.params(), strict=True):
                    ema[...] = param
        finally:
            self._lock.release()

    def sync_master(self) -> None:
        """Sets the float32 copies to the parameters, after these were changed by hand.

        An element whose copy rounds to it has not changed, and keeps the bits that rounding takes.
        """
        self._enter(averaged=False)
        try:
            for master, param in zip(self._tree.flatten(self.master, "master"), self._plan.params(), strict=True):
                if master is not param:
                    with np.errstate(all="ignore"):
                        same = master.astype(param.dtype).view(np.uint16) == param.view(np.uint16)
                    np.copyto(master, param, where=~same, casting="unsafe")
        finally:
            self._lock.release()

    def _show(self) -> None:
        # From now on somebody else may change the metadata of the state, so the plan must look at it.
        if not self._visible:
            self._plan.watch_state()
            self._show_active()
            self._visible = True

    def _show_active(self) -> None:
        if self._active is not None and self._active.plan is not None:
            self._active.plan.watch_state()

    max_norm = Option("Limit of the norm of all gradients together, or None. Can be set.")
    clip_value = Option("Limit of each element of a gradient, or None. Can be set.")
    nonfinite = Option('"propagate", "skip" or "raise". Can be set.')

    @property
    def ema_decay(self) -> Scalar | None:
        """Decay of the average of the parameters. Can be set if the optimiser was made with one."""
        value: Scalar | None = self._around.values["ema_decay"]
        return value

    @ema_decay.setter
    def ema_decay(self, value: Scalar) -> None:
        if (self._ema is None) != (value is None):
            raise ValueError("ema_decay decides whether an average is kept: give it when the optimiser is made")
        self._around.set("ema_decay", value)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Adds parameters with hyperparameters of their own; their step count begins at 0.

        From then on `grads` is a list with one nest per group.

        Args:
            group: `"params"`, and any hyperparameters that differ from the optimiser's.

        Example:
            >>> import numpy as np
            >>> from ironstep.optim import SGD
            >>> w, b = np.ones(2), np.ones(1)
            >>> opt = SGD(w, lr=0.5)
            >>> opt.add_param_group({"params": b, "lr": 0.25})
            >>> _ = opt.step([np.ones(2), np.ones(1)])
            >>> w, b
            (array([0.5, 0.5]), array([0.75]))
        """
        if not _is_groups([group]):
            raise TypeError(f"group must be a dict with a key 'params', got {group!r}")
        self._enter()
        try:
            self._add([dict(group)], None)
        finally:
            self._lock.release()

    def freeze(self, pattern: str | int | Sequence[str | int]) -> None:
        """Leaves whole parameter groups out of all steps until `unfreeze`, as in fine-tuning.

        Parameters, state, average, full-precision copy and step count of a frozen group stay as they are, weight decay
        included. Its gradients are not looked at, may be None, and do not count in norms.

        Args:
            pattern: What the names of the parameters must be like, as in `fnmatch`: `"0.*"` is all of layer 0, `"*"`
                everything; a whole name means itself, whatever is in it. A name is the way to the parameter within its
                group, joined by dots. Or the number of a group, or a list of patterns and numbers. All parameters of a
                group must be meant, or none: see `ironstep.train.layer_groups`.

        Raises:
            ValueError: A pattern is like no name, or like some names of a group but not all. Nothing was changed.

        Example:
            >>> import numpy as np
            >>> from ironstep.optim import SGD
            >>> body, head = {"0.weight": np.ones(2)}, {"1.weight": np.ones(2)}
            >>> opt = SGD([{"params": body}, {"params": head}], lr=0.5)
            >>> opt.freeze("0.*")
            >>> _ = opt.step([None, {"1.weight": np.ones(2)}])
            >>> body, head
            ({'0.weight': array([1., 1.])}, {'1.weight': array([0.5, 0.5])})
        """
        self._freeze(pattern, True)

    def unfreeze(self, pattern: str | int | Sequence[str | int] = "*") -> None:
        """Takes parameter groups into the steps again, with the state and the step count that they had.

        Args:
            pattern: As for `freeze`; all groups if it is left out.

        Raises:
            ValueError: As for `freeze`.
        """
        self._freeze(pattern, False)

    def _freeze(self, pattern: Any, flag: bool) -> None:
        self._enter()
        try:
            wanted = self._groups_like(pattern)
            frozen = [flag if i in wanted else group.frozen for i, group in enumerate(self._groups)]
            self._plan.params()  # As in `_add`.
            companions = [*(self._state[name] for name in RULES[self._groups[0].rule][1]), self._master, self._ema]
            active = self._find_active(self._groups, self._parts, self._decayed, companions, frozen)
            self._set_frozen(frozen, active)
        finally:
            self._lock.release()

    def _groups_like(self, pattern: Any) -> set[int]:
        """The numbers of the groups that a pattern, or one of a list of them, means."""
        from fnmatch import fnmatchcase  # Not at the top: few need it.

        keys = [_core.Tree(group["params"], "params").keys() for group in self._groups]
        names = [[re.sub(r"\\(.)", r"\1", key) for key in own] for own in keys]
        meant: list[set[str]] = [set() for _ in names]
        for one in pattern if isinstance(pattern, (list, tuple)) else [pattern]:
            if isinstance(one, (int, np.integer)) and not isinstance(one, bool):
                if not 0 <= one < len(names):
                    raise ValueError(f"pattern must be the number of a group, 0 to {len(names) - 1}, got {one}")
                meant[one].update(names[one])
                continue
            if not isinstance(one, str):
                raise TypeError(
                    f"pattern must be a string such as '0.*', the number of a group, or a list of them, got {one!r}"
                )
            # A name may have brackets, which as a pattern would not be like itself.
            like = [{one}.intersection(own) for own in names]
            if not any(like):
                like = [{name for name in own if fnmatchcase(name, one)} for own in names]
            if not any(like):
                known = ", ".join(repr(name) for own in names for name in own)
                hint = "; in a pattern [ab] is an a or a b, and [[] a bracket" if "[" in one else ""
                raise ValueError(f"pattern must be like the name of a parameter, got {one!r}; there are {known}{hint}")
            for taken, more in zip(meant, like, strict=True):
                taken |= more
        for i, (taken, own) in enumerate(zip(meant, names, strict=True)):
            if taken and (rest := [name for name in own if name not in taken]):
                raise ValueError(
                    f"pattern must mean whole parameter groups, but of group {i} {pattern!r} takes {sorted(taken)} and "
                    f"leaves {rest}; make groups with ironstep.train.layer_groups"
                )
        return {i for i, taken in enumerate(meant) if taken}

    def __repr__(self) -> str:
        groups = [", ".join(f"{name}={value!r}" for name, value in group.shown().items()) for group in self._groups]
        around = "".join(
            f", {name}={value!r}"
            for name, value in self._around.values.items()
            if value is not None and value != "propagate"
        )
        text = groups[0] if len(groups) == 1 else "[" + ", ".join(f"({group})" for group in groups) + "]"
        return f"{type(self).__name__}({text}{around})"

    # -- Checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs besides the parameters, in torch's shape.

        `{"version", "optimizer", "state", "param_groups", "options"}`. `state` has for each parameter, by its key,
        `step` (int64), the state arrays under torch's names, scalar state (float64), `master` and `ema`; all are copies
        with their dtype. A key is the way to the parameter, joined by dots, with dots inside a name escaped by a
        backslash: `layers.0.w`. `param_groups` and `options` have the hyperparameters; those that are functions of the
        step are not kept but named in `callables`.

        Example:
            >>> import numpy as np
            >>> from ironstep.optim import Adam
            >>> sorted(Adam({"w": np.ones(2)}).state_dict()["state"]["w"])
            ['exp_avg', 'exp_avg_sq', 'step']
        """
        self._enter()
        try:
            return _checkpoint.settings(self) | {"state": _checkpoint.state(self, copy=True)}
        finally:
            self._lock.release()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` of the same kind of optimiser for the same parameters gave. Nothing is aliased.

        Raises:
            ValueError: Something is missing, unknown or of another shape, or a hyperparameter was a function of the
                step when it was saved and is none here, or the other way round. Nothing was changed.

        Example:
            >>> import numpy as np
            >>> from ironstep.optim import Adam
            >>> w = np.ones(2)
            >>> opt = Adam(w)
            >>> _ = opt.step(np.ones(2))
            >>> again = Adam(w)
            >>> again.load_state_dict(opt.state_dict())
            >>> again.steps
            1
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict that `state_dict` gave, got {type(state_dict).__name__}")
        self._enter()
        try:
            _checkpoint.load(self, state_dict, state_dict.get("state"), None)
        finally:
            self._lock.release()

    def save(self, path: str | os.PathLike[str], *, params: bool = True) -> None:
        """Writes one safetensors file: the state, the hyperparameters and the parameters.

        Tensors are named `state.<key>.<name>` and `params.<key>`, with keys as in `state_dict`; the hyperparameters are
        JSON in the metadata. The file is written beside `path`, brought to the disk and renamed, so that a crash at any
        moment leaves the old file or the new one. A run that loads it goes on with the same bits.

        Args:
            path: Where to write. Its folder must exist.
            params: Whether the parameters go into the file.

        Raises:
            OSError: The file could not be written; what was there is still there.

        Example:
            >>> import numpy as np, os, tempfile
            >>> from ironstep.optim import Adam
            >>> w = np.ones(2)
            >>> opt = Adam(w)
            >>> _ = opt.step(np.ones(2))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     opt.save(os.path.join(folder, "checkpoint.safetensors"))
            ...     resumed = Adam(np.zeros(2))
            ...     resumed.load(os.path.join(folder, "checkpoint.safetensors"))
            >>> resumed.steps, bool(resumed.param_groups[0]["params"][0] == w[0])
            (1, True)
        """
        self._enter()
        try:
            _checkpoint.write(self, os.fspath(path), params)
        finally:
            self._lock.release()

    def load(self, path: str | os.PathLike[str], *, params: bool = True) -> None:
        """Reads a file that `save` wrote: the state, the hyperparameters, and the parameters in place.

        Args:
            path: The file.
            params: Whether the parameters are read too; the file must then have them.

        Raises:
            ValueError: The file is broken, or is not of this kind of optimiser and these parameters, as in
                `load_state_dict`. Nothing was changed.
            OSError: It could not be read.
        """
        self._enter()
        try:
            _checkpoint.read(self, os.fspath(path), params)
        finally:
            self._lock.release()

    def __getstate__(self) -> dict[str, Any]:
        self._plan.params()  # As in `_add`.
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_plan", "_tree", "_active")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()
        if self._elsewhere == AVERAGED:
            self._elsewhere = None  # a copy's parameters stay what they are
        self._replan(self._groups, self._decayed, self._state, self._master, self._ema, self._grouped)
