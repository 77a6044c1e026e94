"""The training loop, and parts that work in any loop of your own.

`fit` is the loop: one function that runs epochs over mini-batches, measures, tells callbacks, and resumes exactly.
Every part is of use without it: `EarlyStopping.update(loss)`, `save_state(path, model=model, opt=opt)`, `Accumulator`,
`lr_find`, the fine-tuning helpers.

Example:
    >>> import numpy as np
    >>> from ironstep import data, functional, nn, train
    >>> from ironstep.optim import AdamW
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(256, 2)).astype(np.float32)
    >>> t = (x[:, 0] > x[:, 1]).astype(np.int64)
    >>> model = nn.Sequential(nn.Linear(2, 16, seed=rng), nn.ReLU(), nn.Linear(16, 2, seed=rng))
    >>> opt = AdamW(model.params, lr=0.05)
    >>> def step(x, t):
    ...     loss, grad = functional.cross_entropy(model(x), t, return_grad=True)
    ...     model.backward(grad)
    ...     opt.step(model.grads)
    ...     return loss
    >>> batches = data.Batches(x, t, batch_size=32, seed=0)
    >>> history = train.fit(step, batches, epochs=3, progress=False)
    >>> len(history), history.names, history["loss"][2] < history["loss"][0]
    (3, ['epoch', 'step', 'seconds', 'loss'], True)
"""

from ._accumulate import Accumulator
from ._callbacks import (
    Checkpoint,
    Decision,
    EarlyStopping,
    GradientNormMonitor,
    LearningRateMonitor,
    SwapEMA,
    TerminateOnNaN,
    TimeLimit,
    averaged,
)
from ._diagnostics import GradientNoiseScale, Sharpness, gradient_norms, sharpness
from ._finetune import MatchReport, group_grads, layer_groups, load_matching
from ._fit import Run, fit
from ._history import History
from ._loggers import CSVLogger, JSONLLogger, LogTo
from ._lr_find import LRFind, lr_find
from ._state import load_state, read_state, save_state

__all__ = [
    "Accumulator",
    "CSVLogger",
    "Checkpoint",
    "Decision",
    "EarlyStopping",
    "GradientNoiseScale",
    "GradientNormMonitor",
    "History",
    "JSONLLogger",
    "LRFind",
    "LearningRateMonitor",
    "LogTo",
    "MatchReport",
    "Run",
    "Sharpness",
    "SwapEMA",
    "TerminateOnNaN",
    "TimeLimit",
    "averaged",
    "fit",
    "gradient_norms",
    "group_grads",
    "layer_groups",
    "load_matching",
    "load_state",
    "lr_find",
    "read_state",
    "save_state",
    "sharpness",
]
