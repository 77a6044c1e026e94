"""The optimisers: each class of `ironstep.optim` for torch tensors, made from it."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ... import optim as numpy_optim
from ...optim import _optimizers
from ._base import Optimizer, defaults

FLAGS: dict[str, Any] = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}
"""What torch's optimisers take besides hyperparameters, with the defaults."""

OPTIONS: dict[str, Any] = {
    "max_norm": None,
    "clip_value": None,
    "nonfinite": "propagate",
    "ema_decay": None,
    "master_weights": False,
    "offload": False,
    "overlap": False,
}
"""What all optimisers here take besides what torch's do, with the defaults."""

_DOC = """`ironstep.optim.{name}` for torch tensors: see there for the equation, the order of operations and the source.

{place}

Args:
    params: Tensors, named tensors, or dicts of them: see `Optimizer`.
    {hyper}: As for `ironstep.optim.{name}`; a number may be a tensor with one element.
    foreach, fused, capturable, differentiable, max_norm, clip_value, nonfinite, ema_decay, master_weights, offload,
        overlap: See `Optimizer`.

Raises:
    ValueError: A hyperparameter is out of range, or a parameter appears twice.
    TypeError: A parameter is no tensor, or an argument of the wrong kind.

Example:
    >>> import torch
    >>> w = torch.tensor([1.0, -2.0], requires_grad=True)
    >>> opt = {name}([w], lr=0.125)
    >>> (w * w).sum().backward()
    >>> opt.step()
    >>> bool((w.detach().abs() < torch.tensor([1.0, 2.0])).all())
    True
"""


def _class(kind: type[numpy_optim.Optimizer]) -> type[Optimizer]:
    """The class for torch tensors."""
    name = kind.__name__
    peer = getattr(torch.optim, name, None)
    signature = _signature(kind, peer)

    def initialize(self: Optimizer, /, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}; its arguments are {', '.join(list(signature.parameters)[1:])}") from None
        bound.apply_defaults()
        arguments = bound.arguments
        del arguments["self"]
        Optimizer.__init__(self, **arguments)

    initialize.__signature__ = signature  # type: ignore[attr-defined]
    initialize.__name__, initialize.__qualname__ = "__init__", f"{name}.__init__"
    initialize.__doc__ = "See the class."
    place = (
        f"Takes the place of `torch.optim.{name}`: same arguments, defaults and checkpoints."
        if peer
        else "torch has no optimiser of this name."
    )
    hyper = ", ".join(defaults(kind))
    return type(
        name,
        (Optimizer,),
        {
            "__doc__": _DOC.format(name=name, place=place, hyper=hyper),
            "__module__": "ironstep.torch.optim",
            "__init__": initialize,
            "_kind": kind,
        },
    )


def _signature(kind: type[numpy_optim.Optimizer], peer: Any) -> inspect.Signature:
    """Positions are torch's where torch has the class; what it has not is given by keyword."""
    own = list(inspect.signature(kind.__init__).parameters.values())
    known = defaults(kind) | FLAGS | OPTIONS
    either, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    like = own[1:] if peer is None else list(inspect.signature(peer).parameters.values())
    positions = []
    for parameter in like[1:]:
        if parameter.kind is not either or parameter.name not in known:
            break
        positions.append(parameter.name)
    return inspect.Signature(
        [own[0].replace(annotation=inspect.Parameter.empty), inspect.Parameter("params", either)]
        + [inspect.Parameter(name, either, default=known[name]) for name in positions]
        + [inspect.Parameter(name, keyword, default=known[name]) for name in known if name not in positions],
        return_annotation=None,
    )


__all__ = list(_optimizers.__all__)
for _name in __all__:
    globals()[_name] = _class(getattr(_optimizers, _name))
