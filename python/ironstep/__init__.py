"""The half of training that is not matrix multiplication, at memory speed, in place on NumPy arrays.

`ironstep.optim` has the optimisers, `ironstep.functional` the same steps as functions without state.

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
    from . import functional

__all__ = ["__version__", "functional", "get_num_threads", "optim", "set_num_threads"]


def __getattr__(name: str) -> _Any:
    # Loaded when it is first used: it looks into the signatures of all classes, which takes longer than all the rest.
    if name == "functional":
        from importlib import import_module

        return import_module("ironstep.functional")
    raise AttributeError(f"module 'ironstep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
