"""Optimiser steps as functions without state: the caller keeps the state arrays.

Each optimiser of `ironstep.optim` has its function, `adamw_` for `AdamW`, made from the class: it takes the parameters,
the gradients, the state arrays under torch's names (nests like `params`; scalar state as float64 arrays of shape ()),
and the hyperparameters of the class as keywords. `step` counts from 1. Parameters, state, `master` and `ema` are
updated in place. A call checks all arrays each time; an optimiser object checks once, and is faster for many arrays.

Example:
    >>> import numpy as np
    >>> from ironstep.functional import adamw_
    >>> w, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    >>> adamw_(w, w.copy(), m, v, step=1, lr=0.5, eps=0.0, weight_decay=0.5)
    StepResult(step=1, grad_norm=None, update_norm=None, skipped=False)
    >>> w
    array([ 0.25, -1.  ])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..optim import Optimizer, ParamGroup, StepResult, _optimizers
from ..optim._base import FINITE, Around, decayed_leaves, nonfinite_error
from ..optim._hyper import RULES, number

AROUND: dict[str, Any] = {
    "weight_decay_mask": None,
    "grad_scale": 1.0,
    "clip_value": None,
    "max_norm": None,
    "nonfinite": "propagate",
    "ema": None,
    "ema_decay": None,
    "master": None,
    "grad_norm": False,
    "update_norm": False,
    "_isa": None,
}
"""What each function takes besides the hyperparameters of its class, with the defaults."""

_DOC = """One step of `{name}`, without an object: see `ironstep.optim.{name}` for the equation and the hyperparameters.

Args:
    params: Arrays, or a nest of them, updated in place.
    grads: Gradients in a nest like `params`.
    {states}: State arrays in a nest like `params`, updated in place{optional}.
    step: The step, counted from 1.
    {hyper}: As for the class. Functions of the step are called with `step - 1`.
    weight_decay_mask, grad_scale, clip_value, max_norm, nonfinite, ema_decay, grad_norm, update_norm: See `Optimizer`
        and `Optimizer.step`.
    ema: Moving averages of the parameters, in a nest like `params`, updated in place; needs `ema_decay`.
    master: float32 copies of float16 and bfloat16 parameters, which take the step.

Returns:
    StepResult(step, grad_norm, update_norm, skipped).

Raises:
    ValueError: An argument does not fit, or two arrays overlap in memory. The message names it; nothing was changed.
    TypeError: An argument is of the wrong kind.
    FloatingPointError: A gradient is not finite and `nonfinite="raise"`.

Example:
    >>> import numpy as np
    >>> w, state = np.ones(3), [np.zeros(3) for _ in range({count})]{scalars}
    >>> {function}(w, np.ones(3), *state, step=1).step
    1
    >>> bool((w < 1).all())
    True
"""


def _function(cls: type[Optimizer]) -> Callable[..., StepResult]:
    """The function of a class."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if parameter.default is not parameter.empty
    }
    usual = cls._rule(defaults)
    scalar_names = tuple(name for name, _ in RULES[usual][2])
    state_names = cls._states + scalar_names
    accepted = {*defaults, *AROUND, *state_names, "step"}

    def function(params: Any, grads: Any, *state: Any, **arguments: Any) -> StepResult:
        name = cls._function
        if len(state) > len(state_names):
            raise TypeError(f"{name} takes the state arrays {', '.join(state_names)}, got {len(state)} arguments")
        for key, value in zip(state_names, state, strict=False):
            if key in arguments:
                raise TypeError(f"{name} got {key} twice")
            arguments[key] = value
        for key in arguments:
            if key not in accepted:
                raise TypeError(f"{name} has no argument {key!r}")
        step = arguments.get("step")
        if not isinstance(step, (int, np.integer)) or isinstance(step, bool):
            raise TypeError(f"step must be an integer that counts from 1, got {step!r}")
        if not 1 <= step < 1 << 63:
            raise ValueError(f"step must be at least 1, got {step!r}")
        step = int(step)
        group = ParamGroup(cls, {key: arguments.get(key, default) for key, default in defaults.items()})
        around = Around()
        for key in around.values:
            around.set(key, arguments.get(key, AROUND[key]))
        if (arguments.get("ema") is None) != (arguments.get("ema_decay") is None):
            raise ValueError("ema and ema_decay must be given together")

        tree = _core.Tree(params, "params")
        _, rule_states, rule_scalars = RULES[group.rule]
        for key in cls._states:
            if (arguments.get(key) is None) == (key in rule_states):
                need = "must be given" if key in rule_states else "must not be given"
                raise ValueError(
                    f"{key} {need} with these hyperparameters, which keep {', '.join(rule_states) or 'no state'}"
                )
        arrays = [tree.flatten(arguments[key], key) for key in rule_states]
        ema, master = (
            None if arguments.get(key) is None else tree.flatten(arguments[key], key) for key in ("ema", "master")
        )
        scalars = [_scalar(arguments.get(key), key) for key, _ in rule_scalars]
        if scalars:
            given = {"params": tree.leaves, "grads": tree.flatten(grads, "grads"), "ema": ema, "master": master}
            _refuse_shared(scalar_names, scalars, tree, given | dict(zip(rule_states, arrays, strict=True)))
        decayed = decayed_leaves(arguments.get("weight_decay_mask"), tree)
        if not decayed:
            raise ValueError(f"params must hold at least one array, got {params!r}")
        flags = sorted(set(decayed))
        plan = _core.Plan(group.rule, tree, arrays, [flags.index(flag) for flag in decayed], master, ema)
        numbers = [float(scalar[()]) for scalar in scalars]
        groups = [(step, group.maximize, group.vector(step - 1, flag), numbers) for flag in flags]
        nonfinite, norm, change, new = plan.step(
            grads,
            groups,
            number("grad_scale", arguments.get("grad_scale", 1.0), FINITE),
            *around.at(step - 1),
            arguments.get("grad_norm", False),
            arguments.get("update_norm", False),
            arguments.get("_isa"),
        )
        if nonfinite is not None:
            if around.values["nonfinite"] == "raise":
                raise nonfinite_error(nonfinite)
            return StepResult(step, norm, None, True)
        for scalar, value in zip(scalars, new[0] if new else [], strict=True):
            scalar[...] = value
        return StepResult(step, norm, change, False)

    optional = [name for name in cls._states if name not in RULES[usual][1]]
    function.__name__ = function.__qualname__ = cls._function
    function.__doc__ = _DOC.format(
        name=cls.__name__,
        function=cls._function,
        states=", ".join(state_names) or "(no state)",
        optional=f" ({', '.join(optional)} only with the hyperparameters that keep them)" if optional else "",
        hyper=", ".join(defaults),
        count=len(RULES[usual][1]),
        scalars=f" + [np.array(1.0) for _ in range({len(scalar_names)})]" if scalar_names else "",
    )
    function.__signature__ = _signature(state_names, optional, defaults)  # type: ignore[attr-defined]
    return function


def _signature(states: tuple[str, ...], optional: list[str], defaults: dict[str, Any]) -> inspect.Signature:
    either, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    first = [inspect.Parameter(name, either) for name in ("params", "grads")]
    # A state array after an optional one is optional too, or the signature is none.
    seen = False
    for name in states:
        seen = seen or name in optional
        first.append(inspect.Parameter(name, either, default=None if seen else inspect.Parameter.empty))
    rest = [inspect.Parameter("step", keyword)]
    rest += [inspect.Parameter(name, keyword, default=value) for name, value in (defaults | AROUND).items()]
    return inspect.Signature(first + rest, return_annotation=StepResult)


def _refuse_shared(names: tuple[str, ...], scalars: list[Any], tree: _core.Tree, given: dict[str, Any]) -> None:
    """The core checks all arrays but the scalar state."""
    for name, scalar in zip(names, scalars, strict=True):
        for kind, leaves in given.items():
            for where, leaf in zip(tree.names(kind), leaves or [], strict=False):
                if isinstance(leaf, np.ndarray) and np.shares_memory(scalar, leaf):
                    raise ValueError(
                        f"{name} and {where} must be apart, but they overlap in memory; make a copy of one"
                    )


def _scalar(value: Any, name: str) -> np.ndarray[Any, Any]:
    if (
        not isinstance(value, np.ndarray)
        or value.shape != ()
        or value.dtype != np.float64
        or not value.dtype.isnative
        or not value.flags.writeable
    ):
        raise TypeError(f"{name} must be a writeable float64 array of shape (), as in np.array(1.0), got {value!r}")
    return value


__all__ = []
for _name in _optimizers.__all__:
    _cls = getattr(_optimizers, _name)
    globals()[_cls._function] = _function(_cls)
    __all__ += [_cls._function]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., StepResult]: ...
