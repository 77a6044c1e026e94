"""Optimisers for torch: those of `ironstep.optim` behind the interface of `torch.optim`.

Change the import, and a training loop stays as it is.

Example:
    >>> import torch
    >>> from ironstep.torch.optim import AdamW
    >>> model = torch.nn.Linear(2, 1)
    >>> opt = AdamW(model.parameters(), lr=1e-2, max_norm=1.0)
    >>> model(torch.ones(3, 2)).square().sum().backward()
    >>> opt.step()
    >>> opt.grad_norm > 0
    True
"""

from typing import TYPE_CHECKING

from . import _classes
from ._base import Optimizer
from ._classes import *  # noqa: F403 (made from the classes of `ironstep.optim`)

__all__ = ["Optimizer"]
__all__ += _classes.__all__

if TYPE_CHECKING:

    def __getattr__(name: str) -> type[Optimizer]: ...
