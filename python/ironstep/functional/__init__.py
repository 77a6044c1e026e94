"""Everything as functions on arrays: optimiser steps, normalisation, dropout, losses, activations.

The names and the order of arguments are those of `torch.nn.functional`. Functions return new arrays, or write into
`out`; the optimiser steps, whose names end in `_`, update their arguments in place.

There is no automatic differentiation: a normalisation, dropout, loss or activation has a partner `..._backward`, which
takes the gradient of the result and what the forward call saved (`save=True`), and returns the gradients by name.

Example:
    >>> import numpy as np
    >>> from ironstep import functional as F
    >>> x = np.array([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]], np.float32)
    >>> y, saved = F.layer_norm(x, 3, save=True)
    >>> y
    array([[-1.2247357,  0.       ,  1.2247357],
           [ 0.       ,  0.       ,  0.       ]], dtype=float32)
    >>> F.layer_norm_backward(np.ones_like(x), saved).input
    array([[0., 0., 0.],
           [0., 0., 0.]], dtype=float32)
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import _activation, _dropout, _loss, _norm, _optim
from ._activation import *  # noqa: F403
from ._dropout import *  # noqa: F403
from ._loss import *  # noqa: F403
from ._norm import *  # noqa: F403
from ._optim import *  # noqa: F403

__all__ = [*_optim.__all__, *_norm.__all__, *_dropout.__all__, *_loss.__all__, *_activation.__all__]

if _TYPE_CHECKING:

    def __getattr__(name: str) -> _Any: ...
