"""The same operations on torch tensors: change one import in a training loop.

- `ironstep.torch.optim`: every optimiser as a `torch.optim.Optimizer`, with torch's arguments, groups and state. All
  parameters of a step go to the core in one call, without a copy.
- `ironstep.torch.functional` and `ironstep.torch.nn`: normalisation, dropout and losses, with torch's names, backward
  passes included; `swap(model)` puts them where they are faster.
- `Scheduler`: any schedule of `ironstep.schedules` drives any torch optimiser.
- `Augmented`: a data set whose samples come out augmented by a chain of `ironstep.augment`.

On the CPU the tensors' memory is used as it is, and results have the same bits on every machine and with any number of
threads. On CUDA the optimisers run as Triton kernels made from the same rules, with the same bits.

Example:
    >>> import torch
    >>> from ironstep.torch.optim import AdamW  # was: from torch.optim import AdamW
    >>> model = torch.nn.Linear(2, 1)
    >>> opt = AdamW(model.parameters(), lr=0.1)
    >>> model(torch.ones(3, 2)).square().mean().backward()
    >>> opt.step()
    >>> opt.zero_grad()
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError('ironstep.torch needs PyTorch: pip install "ironstep[torch]"', name="torch") from None

from . import functional, nn, optim
from ._augment import Augmented
from ._scheduler import Scheduler
from ._swap import Swapped, swap

__all__ = ["Augmented", "Scheduler", "Swapped", "functional", "nn", "optim", "swap"]
