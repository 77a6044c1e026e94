"""The types that the core takes, and what is refused everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, torch.float64, *HALVES)


def computed(dtype: torch.dtype) -> torch.dtype:
    """The type that tensors of this type are computed in, and that their state, masters and averages have."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def refuse(tensor: Tensor, name: str) -> None:
    """Raises a TypeError for what is not dense or of another type."""
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}; make it dense with .to_dense()")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}")
