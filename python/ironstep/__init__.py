"""The half of training that is not matrix multiplication, at memory speed, in place on NumPy arrays.

`ironstep.optim` has the optimisers; `ironstep.functional` has the same steps, normalisation, dropout and losses as
functions without state; `ironstep.nn` has layers. `ironstep.schedules` has learning-rate schedules, `ironstep.data`
mini-batches, `ironstep.augment` random changes of images, `ironstep.train` the loop around all of it, and
`ironstep.optimize` a minimiser for a function with a gradient. `ironstep.torch` has optimisers and layers for torch
tensors. `python -m ironstep` is the command line.

Example:
    >>> import numpy as np
    >>> import ironstep
    >>> params = {"w": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}
    >>> opt = ironstep.optim.AdamW(params, lr=0.1)
    >>> result = opt.step({"w": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)})
    >>> result.step
    1
    >>> params["b"]
    array([-0.1, -0.1], dtype=float32)
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import optim
from ._core import __version__, get_num_threads, set_num_threads

if _TYPE_CHECKING:
    from . import augment, data, functional, nn, optimize, schedules, train
    from . import torch as torch

__all__ = [
    "__version__",
    "augment",
    "data",
    "functional",
    "get_num_threads",
    "nn",
    "optim",
    "optimize",
    "schedules",
    "set_num_threads",
    "train",
]

# `torch` is not in `__all__`: a star import must work without PyTorch.
_LAZY = ("augment", "data", "functional", "nn", "optimize", "schedules", "torch", "train")


def __getattr__(name: str) -> _Any:
    # Loaded when they are first used: `functional` looks into the signatures of all classes, which takes longer than
    # all the rest, and others need it.
    if name in _LAZY:
        from importlib import import_module

        return import_module(f"ironstep.{name}")
    raise AttributeError(f"module 'ironstep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
