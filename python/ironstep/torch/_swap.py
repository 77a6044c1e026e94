"""Putting our modules into a model that exists, and taking them out again."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch

from . import nn

_OURS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    getattr(torch.nn, name): getattr(nn, name) for name in nn.__all__
}
"""By torch's class."""

FASTER: tuple[type[torch.nn.Module], ...] = (
    torch.nn.RMSNorm,
    torch.nn.Dropout,
    torch.nn.CrossEntropyLoss,
    torch.nn.BCEWithLogitsLoss,
)
"""What `swap` replaces by itself: forward and backward on the CPU are faster than torch's for inputs of half a million
elements and more, in float32 and in bfloat16."""


class Swapped:
    """What `swap` has done: which modules it replaced, and the way back.

    `replaced` and `left` map names of modules to the names of their torch classes; `left` are those that there is one
    of ours for, but that were not chosen. Printing it lists both. Used in a `with` statement, it undoes at the end.
    """

    def __init__(
        self, model: torch.nn.Module, modules: list[tuple[str, torch.nn.Module, type]], left: dict[str, str]
    ) -> None:
        """`modules`: name, module, and the class that it had."""
        self.model = model
        self.replaced: dict[str, str] = {name: kind.__name__ for name, _, kind in modules}
        self.left = left
        self._modules = modules

    def undo(self) -> None:
        """Gives every replaced module the class that it had. A second call does nothing.

        Raises:
            RuntimeError: Something else has changed the class of a module since (`torch.nn.utils.parametrize`,
                `fully_shard`); that must be undone first. Nothing was changed.
        """
        for name, module, kind in self._modules:
            if type(module) not in (_OURS[kind], kind):
                raise RuntimeError(
                    f"{name or 'the model'} must still be a {_OURS[kind].__module__}.{kind.__name__}, but its class is "
                    f"now {type(module).__module__}.{type(module).__qualname__}; undo what changed it first"
                )
        for _, module, kind in self._modules:
            module.__class__ = kind
        self._modules = []

    def __enter__(self) -> Swapped:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        def lines(names: dict[str, str]) -> str:
            return "".join(f"\n  {name or '(the model)'}: {kind}" for name, kind in names.items())

        text = f"replaced {len(self.replaced)} modules{lines(self.replaced)}"
        if self.left:
            text += f"\nleft {len(self.left)}{lines(self.left)}"
        return text


def swap(
    model: torch.nn.Module,
    *,
    only: type[torch.nn.Module] | Iterable[type[torch.nn.Module]] | None = None,
    all: bool = False,
) -> Swapped:
    """Replaces modules of `torch.nn` in a model by ours, in place, where ours are faster on the CPU.

    A module keeps its identity, parameters, buffers, hooks, mode, name and `state_dict`: only its class changes, to the
    subclass of the same name in `ironstep.torch.nn`. So optimisers, DDP and schedulers that hold its parameters do not
    notice; copies and pickles have the new class. On CUDA the module computes what it computed before. A module that is
    ours already stays as it is.

    Replaced are `RMSNorm`, `Dropout`, `CrossEntropyLoss` and `BCEWithLogitsLoss`: forward and backward together are
    faster for inputs of half a million elements and more, in float32 and bfloat16. For small inputs a call of ours can
    cost up to 20 microseconds more than torch's, `CrossEntropyLoss` up to 100 (once in a step); without a backward pass
    `CrossEntropyLoss` may be slower than torch's by a third.

    Left alone, because torch's are as fast or faster for some sizes, layouts or types, are `LayerNorm`, `GroupNorm`,
    `BatchNorm1d`, `2d`, `3d`, `InstanceNorm1d`, `2d`, `3d`, `Dropout1d`, `2d`, `3d` and `MSELoss`. Choose them with
    `only` or `all`, which pays for `InstanceNorm` in float32 or channels last (slower in bfloat16 channels first), for
    large float32 batches in training, or for the same bits with any number of threads.

    Only modules whose class is exactly one of torch's are replaced: not subclasses, whose `forward` may be another, not
    parametrized ones, and not classes of other libraries, as `LlamaRMSNorm` of transformers. Calls of
    `torch.nn.functional` within a module (the dropout in `torch.nn.MultiheadAttention`) stay torch's.

    Args:
        model: Any module, which may itself be one to replace.
        only: torch's classes to replace, one or several, whether ours are faster or not.
        all: Replace all that there are.

    Returns:
        What was replaced, with `undo()`; also for a `with` statement.

    Raises:
        TypeError: `model` is no module, or `only` has something else than classes.
        ValueError: There is none of ours for a class in `only`, or both `only` and `all` are given. Nothing was
            changed.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 8), torch.nn.Dropout(0.1))
        >>> swapped = swap(model)
        >>> swapped
        replaced 1 modules
          2: Dropout
        left 1
          0: LayerNorm
        >>> type(model[2]).__module__
        'ironstep.torch.nn'
        >>> swapped.undo()
        >>> type(model[2]).__module__
        'torch.nn.modules.dropout'

    References:
        `ironstep.torch.nn`.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    chosen: Any = _OURS if all else FASTER
    if only is not None:
        if all:
            raise ValueError("only one of only and all may be given")
        chosen = (only,) if isinstance(only, type) else tuple(only)
        for kind in chosen:
            if not isinstance(kind, type):
                raise TypeError(f"only must be classes of torch.nn, got {kind!r}")
            if kind not in _OURS:
                raise ValueError(
                    f"only must be of {', '.join(kind.__name__ for kind in _OURS)} of torch.nn, got "
                    f"{kind.__module__}.{kind.__qualname__}"
                )
    modules, left = [], {}
    for name, module in model.named_modules():
        kind = type(module)
        if kind in chosen:
            modules.append((name, module, kind))
        elif kind in _OURS:
            left[name] = kind.__name__
    for _, module, kind in modules:
        module.__class__ = _OURS[kind]
    return Swapped(model, modules, left)
