"""Hyperparameters: what values they may have, and how a group of them becomes the numbers that a rule takes."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from .. import _core

if TYPE_CHECKING:
    from ._base import Optimizer

Scalar: TypeAlias = "float | Callable[[int], float]"
"""A number, or a function from the number of steps taken so far (0 at the first step) to one."""

RULES = _core.rules()


class Limit(NamedTuple):
    """An interval that a hyperparameter must lie in."""

    low: float
    high: float
    text: str
    closed: bool = True
    """Whether `high` itself is allowed."""

    def holds(self, x: float) -> bool:
        """Whether `x` lies in it; NaN lies nowhere."""
        return self.low <= x <= self.high and (self.closed or x != self.high)


NOT_NEGATIVE = Limit(0.0, math.inf, "finite and at least 0", closed=False)
NOT_NEGATIVE_OR_INF = Limit(0.0, math.inf, "at least 0 (inf is allowed)")
UNIT = Limit(0.0, 1.0, "from 0 to 1")
BELOW_ONE = Limit(0.0, 1.0, "at least 0 and below 1", closed=False)

LIMITS: dict[str, Limit] = {
    "lr": NOT_NEGATIVE,
    "eps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "momentum": NOT_NEGATIVE,
    "betas": BELOW_ONE,
}
"""Of the hyperparameters that most optimisers have; a class adds its own in `_limits`."""


def number(name: str, value: Any, limit: Limit, otherwise: str = ", or a callable of the step") -> float:
    """The value as a float, or the error that names the argument; `otherwise`: what else it might be."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, {limit.text}{otherwise}, got {value!r}")
    try:
        x = float(value)
    except OverflowError:
        x = math.nan
    if not limit.holds(x):
        raise ValueError(f"{name} must be {limit.text}, got {value!r}")
    return x


def flag(name: str, value: Any) -> bool:
    """The value as a bool, or the error that names the argument."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def scalar(name: str, value: Any, limit: Limit) -> Scalar:
    """A callable as it is, anything else by `number`."""
    return value if callable(value) else number(name, value, limit)


def at(name: str, value: Scalar, step: int, limit: Limit) -> float:
    """The value at a step."""
    return number(f"{name}({step})", value(step), limit) if callable(value) else value


class ParamGroup(MutableMapping[str, Any]):
    """Hyperparameters that some parameters share, as in torch's `param_groups`.

    A mapping: `group["lr"] = 0.01` changes the next step. Values are checked when they are set, so a bad one raises at
    once and changes nothing. `group["params"]` is the nest of arrays that the group was made with, and cannot be set.

    Example:
        >>> import numpy as np
        >>> from ironstep.optim import SGD
        >>> opt = SGD(np.zeros(3), lr=0.1)
        >>> opt.param_groups[0]["lr"] = 0.01
        >>> opt.param_groups[0]["lr"] = -1
        Traceback (most recent call last):
            ...
        ValueError: lr must be finite and at least 0, got -1
    """

    def __init__(self, kind: type[Optimizer], values: Mapping[str, Any], params: Any = None) -> None:
        """From all hyperparameters of the class `kind`, by name."""
        self._kind = kind
        self._params = params
        self.limits = LIMITS | kind._limits
        self.values_by_name: dict[str, Any] = {name: self._checked(name, value) for name, value in values.items()}
        kind._check(self.values_by_name)
        self.rule: str = kind._rule(self.values_by_name)
        """The name of the rule in the core that these hyperparameters choose."""
        self.maximize: bool = self.values_by_name["maximize"]
        self._callables = self._find_callables()
        self.vectors: dict[bool, _core.Values] = {}
        self._inputs: dict[bool, tuple[list[float], list[tuple[int, str, Scalar, Limit]]]] = {}
        self._frozen = False

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"vectors": {}, "_inputs": {}}

    def take(self, other: ParamGroup) -> None:
        """Takes over the values of a group of the same class and rule."""
        self.values_by_name, self.maximize = other.values_by_name, other.maximize
        self._callables, self.vectors, self._inputs = other._callables, {}, {}

    def _checked(self, name: str, value: Any) -> Any:
        if name == "betas":
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise TypeError(f"betas must be a pair of numbers, got {value!r}")
            return tuple(scalar(f"betas[{i}]", beta, self.limits[name]) for i, beta in enumerate(value))
        if name in self.limits:
            return scalar(name, value, self.limits[name])
        return flag(name, value)

    def _find_callables(self) -> list[str]:
        return [
            name
            for name, value in self.values_by_name.items()
            if any(map(callable, value if name == "betas" else [value]))
        ]

    @property
    def frozen(self) -> bool:
        """Whether steps leave the group out; see `Optimizer.freeze`."""
        return self._frozen

    @property
    def callables(self) -> list[str]:
        """The names of the hyperparameters that are functions of the step."""
        return list(self._callables)

    def vector(self, step: int, decayed: bool) -> _core.Values:
        """The numbers that the rule takes at a step (0 is the first), with or without weight decay."""
        if decayed in self.vectors:
            return self.vectors[decayed]
        if decayed not in self._inputs:
            self._inputs[decayed] = self._find_inputs(decayed)
        fixed, functions = self._inputs[decayed]
        numbers = fixed.copy()
        for i, name, function, limit in functions:
            numbers[i] = at(name, function, step, limit)
        vector = _core.Values(numbers)
        if not functions:
            self.vectors[decayed] = vector
        return vector

    def _find_inputs(self, decayed: bool) -> tuple[list[float], list[tuple[int, str, Scalar, Limit]]]:
        """What the rule takes: the numbers, and which of them are functions of the step, with their limits."""
        values = self.values_by_name | self._kind._fixed
        betas = values.pop("betas", ())
        values.update((f"beta{i + 1}", beta) for i, beta in enumerate(betas))
        if not decayed:
            values["weight_decay"] = 0.0
        limits = self.limits | {"beta1": self.limits["betas"], "beta2": self.limits["betas"]}
        names = RULES[self.rule][0]
        functions = [(i, name, values[name], limits[name]) for i, name in enumerate(names) if callable(values[name])]
        return [0.0 if callable(values[name]) else float(values[name]) for name in names], functions

    def __getitem__(self, name: str) -> Any:
        return self._params if name == "params" else self.values_by_name[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self.values_by_name:
            known = ", ".join(self.values_by_name)
            raise KeyError(f"{self._kind.__name__} has no hyperparameter {name!r} that can be set; it has {known}")
        values = self.values_by_name | {name: self._checked(name, value)}
        self._kind._check(values)
        if self._kind._rule(values) != self.rule:
            raise ValueError(
                f"{name} cannot become {value!r}: it decides which state the optimiser keeps; make a new optimiser"
            )
        self.values_by_name = values
        self.maximize = values["maximize"]
        self._callables = self._find_callables()
        self.vectors, self._inputs = {}, {}

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"a hyperparameter can be set but not removed: {name!r}")

    def __iter__(self) -> Iterator[str]:
        yield "params"
        yield from self.values_by_name

    def __len__(self) -> int:
        return 1 + len(self.values_by_name)

    def shown(self) -> dict[str, Any]:
        """What a repr has: the hyperparameters, and whether it is frozen."""
        return self.values_by_name | ({"frozen": True} if self._frozen else {})

    def __repr__(self) -> str:
        return "ParamGroup(" + ", ".join(f"{name}={value!r}" for name, value in self.shown().items()) + ")"
