"""The leaves of a step that lie in the memory of the CPU: one call of the core, no copy."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ... import _core

Groups = list[tuple[int, bool, _core.Values, list[float]]]
"""For each rule number of a part the step (from 1), maximize, the hyperparameters and the scalar state."""


class CpuPart:
    """Parameters on the CPU that one rule steps, and what belongs to them; the methods are those of every part."""

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
        """`states` has one list per state name of the rule, `groups` the rule number of each leaf, `names` its name."""
        self._rule = rule
        self._groups = groups
        self._names = names
        self._master = None if master is None else [tensor is not None for tensor in master]
        self._ema = ema is not None
        # One list of all that is written: the core compares it with what it was, tensor by tensor, before each step.
        copies = [] if master is None else [(i, tensor) for i, tensor in enumerate(master) if tensor is not None]
        self.written = [*params]
        """All that a step writes, the parameters first."""
        self.written_names = [*names]
        for what, tensors in zip(_core.rules()[rule][1], states, strict=True):
            self.written += tensors
            self.written_names += [f"{what} of {name}" for name in names]
        self.written += [tensor for _, tensor in copies]
        self.written_names += [f"master of {names[i]}" for i, _ in copies]
        if ema is not None:
            self.written += ema
            self.written_names += [f"ema of {name}" for name in names]
        self._views = _core.TensorViews(self.written_names, written=True)
        self._grad_views = _core.TensorViews([f"the gradient of {name}" for name in names], written=False)
        self._plan: _core.Plan | None = None
        self.grads: list[Any] = []
        """Arrays over the gradients of the last look."""
        self.moved = True
        """Whether the last look found anything at another place, or of another shape, than the one before."""

    def look(self, grads: list[Tensor]) -> None:
        """Checks all tensors as they are now. Raises, or is ready for `inspect` and `step` with these gradients."""
        arrays, changed = self._views.look(self.written)
        if changed:
            self._plan = None
        if self._plan is None:
            self._plan = self._planned(arrays)
        self.grads, moved = self._grad_views.look(grads)
        self.moved = changed or moved

    def _planned(self, arrays: list[Any]) -> _core.Plan:
        n = len(self._names)
        rest = iter(arrays[n:])
        states = [[next(rest) for _ in range(n)] for _ in _core.rules()[self._rule][1]]
        master = None if self._master is None else [next(rest) if has else None for has in self._master]
        ema = list(rest) if self._ema else None
        try:
            return _core.Plan(self._rule, _core.Tree(arrays[:n], "params"), states, self._groups, master, ema)
        except (TypeError, ValueError) as error:
            raise self._named(error) from None

    @property
    def plan(self) -> _core.Plan:
        """The plan of the last look."""
        if self._plan is None:
            raise RuntimeError("look first")
        return self._plan

    @property
    def arrays(self) -> list[Any]:
        """Arrays over all that a step writes."""
        return self._views.look(self.written)[0]

    def inspect(self, grad_scale: float, clip_value: float, unit: float) -> tuple[list[float], int | None]:
        """Per leaf the sum of squares of its limited gradient times `unit`, and the first leaf that is not finite."""
        try:
            return self.plan.inspect(self.grads, grad_scale, clip_value, unit, None)
        except (TypeError, ValueError) as error:
            raise self._named(error) from None

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
        return self.whole(groups, grad_scale, clip_value, max_norm, joint_norm, ema_decay, False)[2]

    def whole(
        self,
        groups: Groups,
        grad_scale: float,
        clip_value: float,
        max_norm: float,
        joint_norm: float | None,
        ema_decay: float,
        check: bool,
    ) -> tuple[int | None, float | None, list[list[float]]]:
        """As `step`, unless `check` and a gradient is not finite: then nothing is changed.

        Returns the first leaf whose gradient is not finite, the norm if `max_norm` needed it, and the scalar state.
        """
        try:
            nonfinite, norm, _, scalars = self.plan.step(
                self.grads, groups, grad_scale, clip_value, max_norm, check, ema_decay, False, False, None, joint_norm
            )
        except (TypeError, ValueError) as error:
            raise self._named(error) from None
        if nonfinite is not None:
            return int(nonfinite[nonfinite.index("[") + 1 : -1]), norm, scalars
        return None, norm, scalars or [[] for _ in groups]

    def _named(self, error: Exception) -> Exception:
        return named(error, self._names)


def named(error: Exception, names: list[str]) -> Exception:
    """An error of the core, which counts the leaves, with their names."""

    def name(match: re.Match[str]) -> str:
        what, own = match[1], names[int(match[2])]
        return own if what == "params" else f"the gradient of {own}" if what == "grads" else f"{what} of {own}"

    return type(error)(re.sub(r"\b(\w+)\[(\d+)\]", name, str(error)))
