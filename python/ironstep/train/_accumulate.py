"""Gradient accumulation: one step of the optimiser for several mini-batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _core
from ..functional._arrays import FINITE, POSITIVE, Array, array, count, number
from ..optim import Optimizer, StepResult
from ..optim._base import active_grads, compute_dtype
from ..optim._hyper import NOT_NEGATIVE_OR_INF
from ._diagnostics import GradientNoiseScale, squared_norm, total

OPTIONS = ("grad_scale", "grad_norm", "update_norm", "_isa")
"""What `Optimizer.step` takes besides the gradients."""


class Accumulator:
    r"""Gradient accumulation: the optimiser takes one step for every `every` mini-batches, on their mean gradient.

    $$g = \sum_i w_i g_i \Big/ \sum_i w_i$$

    with $g_i$ the gradients of a mini-batch and $w_i$ its `weight`. For losses that are means over samples give the
    number of samples, `weight=len(x)`, if that differs between mini-batches: then the step is that of one large batch,
    but for the rounding of the sums (and for batch normalisation, which sees the mini-batches).

    The sums are kept in arrays of its own, in float64 for float64 parameters and in float32 for all others. No gradient
    is written, so the arrays of a model, which each `backward` overwrites, can be given every time. Gradients of frozen
    groups are not looked at.

    Args:
        opt: The optimiser.
        every: How many mini-batches make a step.
        noise_scale: Measures the gradient noise scale on the way: the mini-batches are the small batches, all together
            the big one. Weights are taken as numbers of samples; without any its unit is one mini-batch.

    Raises:
        TypeError: `opt` is no optimiser.
        ValueError: `every` is below 1.

    Example:
        >>> import numpy as np
        >>> from ironstep import train
        >>> from ironstep.optim import SGD
        >>> w = np.zeros(2)
        >>> accumulator = train.Accumulator(SGD(w, lr=1.0), every=2)
        >>> accumulator.step(np.array([1.0, 0.0])), w
        (None, array([0., 0.]))
        >>> accumulator.step(np.array([0.0, 3.0])).step, w
        (1, array([-0.5, -1.5]))

    References:
        Goyal et al., Accurate, large minibatch SGD, arXiv 1706.02677. Ott et al., Scaling neural machine translation,
        arXiv 1806.00187, section 3.2.
    """

    def __init__(self, opt: Optimizer, every: int, *, noise_scale: GradientNoiseScale | None = None) -> None:
        if not isinstance(opt, Optimizer):
            raise TypeError(f"opt must be an optimiser of ironstep.optim, got {type(opt).__name__}")
        if noise_scale is not None and not isinstance(noise_scale, GradientNoiseScale):
            raise TypeError(f"noise_scale must be a GradientNoiseScale or None, got {type(noise_scale).__name__}")
        self.opt = opt
        self.every = count("every", every, 1)
        self.noise_scale = noise_scale
        self._sums: list[Array] = []
        self.reset()

    def reset(self) -> None:
        """Drops what was added since the last step."""
        self._pending = 0
        self._weight = 0.0
        self._small: list[tuple[float, float]] = []
        """Squared norm and weight of each mini-batch, for the noise scale."""

    @property
    def pending(self) -> int:
        """How many mini-batches were added since the last step."""
        return self._pending

    def step(self, grads: Any, weight: float = 1.0, **kwargs: Any) -> StepResult | None:
        """Adds the gradients of a mini-batch, and steps if they are enough.

        Args:
            grads: As for `opt.step`.
            weight: How much they count, above 0.
            **kwargs: For `opt.step`, if it is called now. A `grad_scale` scales the mean.

        Returns:
            What `opt.step` returned, or None if it was not called.

        Raises:
            ValueError: The nest or a shape is another one, or the weight is not above 0. Nothing was added.
            TypeError: A gradient is no array of floats, or `opt.step` has no such argument. Nothing was added.
            RuntimeError: A group was added, frozen or unfrozen since the last step. Nothing was added.

        What the optimiser itself raises comes after the gradients were added: they are kept, and `flush()` tries again,
        while `reset()` drops them.
        """
        weight = number("weight", weight, POSITIVE)
        if not math.isfinite(self._weight + weight):
            raise ValueError(f"weight must have a finite sum over the mini-batches, got {weight!r}")
        _check_options(kwargs)
        arrays = self._checked(grads)
        with np.errstate(all="ignore"):
            for sum_, values in zip(self._sums, arrays, strict=True):
                # Widened first, or the product of float16 numbers would be rounded to float16.
                wide = values.astype(sum_.dtype, copy=False)
                if self._pending:
                    sum_ += wide if weight == 1.0 else wide * weight
                else:
                    np.multiply(wide, weight, out=sum_)
        if self.noise_scale is not None:
            self._small.append((total([squared_norm(values) for values in arrays]), weight))
        self._weight += weight
        self._pending += 1
        return self.flush(**kwargs) if self._pending >= self.every else None

    def flush(self, **kwargs: Any) -> StepResult | None:
        """Steps with what there is, as after the last mini-batch of an epoch.

        Args:
            **kwargs: For `opt.step`.

        Returns:
            What `opt.step` returned, or None if nothing was pending.
        """
        if not self._pending:
            return None
        _check_options(kwargs)
        self._same_groups()
        scale = float(kwargs.pop("grad_scale", 1.0)) / self._weight
        built = self._tree.build(list(self._sums))
        grads = [built.get(i) for i in range(len(self._frozen))] if self._grouped else built
        # Before the step, and in a copy: nothing may fail after it, or it would be taken again.
        measured = self._measured(scale)
        before = self.opt._steps
        try:
            result = self.opt.step(grads, grad_scale=scale, **kwargs)
        except BaseException:
            if self.opt._steps is not before:
                self.reset()  # Interrupted, but it was taken.
            raise
        self.reset()
        if measured is not None:
            vars(self.noise_scale).update(vars(measured))
        return result

    def _measured(self, scale: float) -> GradientNoiseScale | None:
        """The noise scale with the measurement that the pending mini-batches are."""
        if self.noise_scale is None or len(self._small) < 2:
            return None
        measured = copy.copy(self.noise_scale)
        own = scale * self._weight
        # No powers: those of Python raise an error where a product is infinite, and then left out.
        measured.update(
            [square * own * own for square, _ in self._small],
            total([squared_norm(sum_) for sum_ in self._sums]) * scale * scale,
            [weight for _, weight in self._small],
            self._weight,
        )
        return measured

    def _same_groups(self) -> None:
        if len(self._frozen) != len(self.opt.param_groups):
            raise RuntimeError(
                f"parameter groups were added after {self._pending} mini-batches were added; call flush() before that, "
                "or reset() now"
            )
        if self._frozen != [group.frozen for group in self.opt.param_groups]:
            raise RuntimeError(
                f"groups were frozen or unfrozen after {self._pending} mini-batches were added; call flush() before "
                "that, or reset() now"
            )

    def _begin(self, frozen: list[bool]) -> None:
        """Makes room for the sums of the groups that are not frozen."""
        groups = self.opt.param_groups
        if all(frozen):
            raise RuntimeError("all parameter groups are frozen, so a step would do nothing; call opt.unfreeze first")
        self._frozen, self._grouped = frozen, self.opt._grouped
        active: Any = {i: group["params"] for i, group in enumerate(groups) if not frozen[i]}
        self._tree = _core.Tree(active if self._grouped else active[0], "params")
        self._names = self._tree.names("grads")
        leaves = self._tree.leaves
        wanted = [(leaf.shape, np.dtype(compute_dtype(leaf))) for leaf in leaves]
        if [(sum_.shape, sum_.dtype) for sum_ in self._sums] != wanted:
            self._sums = [np.zeros_like(leaf, dtype=compute_dtype(leaf), subok=False) for leaf in leaves]

    def _checked(self, grads: Any) -> list[Array]:
        """The gradients of the groups that are not frozen, as arrays of the right shapes."""
        if self._pending:
            self._same_groups()
        else:
            self._begin([group.frozen for group in self.opt.param_groups])
        if self._grouped:
            grads = active_grads(grads, self._frozen)
        arrays = []
        for name, sum_, grad in zip(self._names, self._sums, self._tree.flatten(grads, "grads"), strict=True):
            values = array(grad, name)
            if values.shape != sum_.shape:
                raise ValueError(f"{name} must have shape {sum_.shape} like its parameter, got {values.shape}")
            arrays.append(values)
        return arrays

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on in the middle, the sums included; not the optimiser's own state.

        Returns:
            `{"pending", "weight", "frozen", "sums", "small", "noise_scale"}`; `sums` has copies by the keys that
            `opt.state_dict()` uses.
        """
        sums = dict(zip(self._tree.keys(), self._sums, strict=True)) if self._pending else {}
        return {
            "pending": self._pending,
            "weight": self._weight,
            "frozen": list(self._frozen) if self._pending else [],
            "sums": {key: sum_.copy(order="K") for key, sum_ in sums.items()},
            "small": [[square, weight] for square, weight in self._small],
            "noise_scale": None if self.noise_scale is None else self.noise_scale.state_dict(),
        }

    def load_state_dict(self, state_dict: Any) -> None:
        """Takes what `state_dict` gave for an optimiser of the same parameters. `every` stays the own one.

        Raises:
            ValueError: Something is missing, unknown or of another shape. Nothing was changed.
            TypeError: Something is of a wrong type. Nothing was changed.
        """
        names = ["pending", "weight", "frozen", "sums", "small", "noise_scale"]
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict that `state_dict` gave, got {type(state_dict).__name__}")
        if set(state_dict) != set(names):
            raise ValueError(f"state_dict must have {', '.join(names)}, got {', '.join(map(str, state_dict))}")
        other = Accumulator(self.opt, self.every)
        other._pending = count("state_dict['pending']", state_dict["pending"], 0)
        other._weight = number("state_dict['weight']", state_dict["weight"], POSITIVE if other._pending else FINITE)
        if other._pending:
            frozen = state_dict["frozen"]
            if not isinstance(frozen, (list, tuple)):
                raise TypeError(f"state_dict['frozen'] must be a list of bools, got {frozen!r}")
            frozen = list(frozen)
            if len(frozen) != len(self.opt.param_groups) or not all(isinstance(flag, bool) for flag in frozen):
                raise ValueError(
                    f"state_dict['frozen'] must have a bool for each of the {len(self.opt.param_groups)} groups, got "
                    f"{frozen!r}"
                )
            other._begin(frozen)
            sums = state_dict["sums"]
            keys = other._tree.keys()
            if not isinstance(sums, Mapping):
                raise TypeError(f"state_dict['sums'] must be a dict of arrays, got {type(sums).__name__}")
            if set(sums) != set(keys):
                raise ValueError(f"state_dict['sums'] must have {', '.join(keys)}, got {', '.join(map(str, sums))}")
            for key, sum_ in zip(keys, other._sums, strict=True):
                values = array(sums[key], f"state_dict['sums'][{key!r}]")
                if values.shape != sum_.shape or values.dtype.newbyteorder("=") != sum_.dtype:
                    raise ValueError(
                        f"state_dict['sums'][{key!r}] must be {sum_.dtype} of shape {sum_.shape}, got {values.dtype} "
                        f"of shape {values.shape}"
                    )
                sum_[...] = values
        small = []
        if not isinstance(state_dict["small"], (list, tuple)):
            raise TypeError(f"state_dict['small'] must be a list of pairs, got {state_dict['small']!r}")
        for i, pair in enumerate(state_dict["small"]):
            where = f"state_dict['small'][{i}]"
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise TypeError(f"{where} must be a pair of numbers, got {pair!r}")
            square, weight = pair
            is_nan = isinstance(square, float) and math.isnan(square)
            square = math.nan if is_nan else number(f"{where}[0]", square, NOT_NEGATIVE_OR_INF)
            small.append((square, number(f"{where}[1]", weight, POSITIVE)))
        if (self.noise_scale is None) != (state_dict["noise_scale"] is None):
            raise ValueError(
                "state_dict must come from an accumulator with a noise_scale if this one has one, and only then"
            )
        if self.noise_scale is not None:
            self.noise_scale.load_state_dict(state_dict["noise_scale"])
        # From here on nothing can fail.
        other._small, other.noise_scale = small, self.noise_scale
        vars(self).update(vars(other))

    def __repr__(self) -> str:
        return f"Accumulator({type(self.opt).__name__}, every={self.every}): {self._pending} pending"


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuses what `Optimizer.step` would refuse, which is called later."""
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"step takes {', '.join(OPTIONS[:3])} for the optimiser's step, got {name!r}")
    number("grad_scale", options.get("grad_scale", 1.0), FINITE)
