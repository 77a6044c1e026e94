r"""Schedules: hyperparameters as functions of the step, for any hyperparameter of any optimiser.

A schedule is a pure function of the number of steps taken so far, computed in float64 with the same bits on every
platform. It has no state and is tied to no optimiser: `opt = AdamW(params, lr=cosine(0.1, steps=1000))` is all there is
to it, nothing is stepped or forgotten, and a resumed run goes on where it was.

What to know about them:

- **Steps count from 0.** The first step of a run takes the value at 0, the last one of $T$ steps that at $T - 1$. A
  curve of `steps` steps has its end value at step `steps`, one past the last; with `endpoint=True` at the last.
- **After the end** a schedule holds its last value. `after="raise"` makes that an error, `after="extend"` goes on with
  the equation.
- **A warmup does not waste a step** on a learning rate of 0 (`skip_start=False` does, as other libraries do).
- `warmup`, `join`, `add`, `chain`, `scale`, `shift` and `per_epoch` make schedules of schedules. `parse` reads one from
  text, such as the repr of another.
- `presets` has the schedules of torch, optax, transformers and timm under their names for the arguments, with exactly
  their curves. `ReduceLROnPlateau` is the one with a state.

Example:
    >>> import numpy as np
    >>> from ironstep import schedules
    >>> from ironstep.optim import AdamW
    >>> lr = schedules.warmup_stable_decay(0.1, warmup_steps=10, stable_steps=80, decay_steps=10)
    >>> opt = AdamW(np.ones(3), lr=lr, weight_decay=schedules.linear(0.0, 0.1, 100))
    >>> lr(np.array([0, 9, 50, 95, 100]))
    array([0.01, 0.1 , 0.1 , 0.05, 0.  ])
"""

from . import presets
from ._plateau import ReduceLROnPlateau
from ._schedule import (
    Schedule,
    add,
    chain,
    constant,
    cosine,
    cosine_restarts,
    cyclic,
    exponential,
    inverse_sqrt,
    join,
    linear,
    multi_step,
    one_cycle,
    one_cycle_momentum,
    parse,
    per_epoch,
    piecewise,
    polynomial,
    scale,
    scaled_lr,
    shift,
    step,
    warmup,
    warmup_cosine,
    warmup_stable_decay,
)

__all__ = [
    "ReduceLROnPlateau",
    "Schedule",
    "add",
    "chain",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "exponential",
    "inverse_sqrt",
    "join",
    "linear",
    "multi_step",
    "one_cycle",
    "one_cycle_momentum",
    "parse",
    "per_epoch",
    "piecewise",
    "polynomial",
    "presets",
    "scale",
    "scaled_lr",
    "shift",
    "step",
    "warmup",
    "warmup_cosine",
    "warmup_stable_decay",
]
