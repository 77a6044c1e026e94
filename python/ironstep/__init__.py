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

from importlib.metadata import version as _version

from . import functional, optim
from ._core import get_num_threads, set_num_threads

__version__ = _version("ironstep")
__all__ = ["__version__", "functional", "get_num_threads", "optim", "set_num_threads"]
