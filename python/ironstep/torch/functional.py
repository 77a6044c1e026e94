"""Normalisation, dropout and losses on torch tensors, with the names, arguments and results of `torch.nn.functional`.

Tensors in the memory of the CPU, float32, float64, float16 or bfloat16 and of any strides, are read and written by the
core where they are (what is not dense is copied first). The results have the same bits as those of
`ironstep.functional` on NumPy arrays, with any number of threads; the differences to torch's own results are in the
last bits. Gradients come from the core too. Second derivatives (`create_graph=True`) are made of torch's operations.

Everything else goes to the function of the same name in `torch.nn.functional`: tensors on other devices, subclasses of
`Tensor`, nested tensors, dropout of complex numbers, the transforms of `torch.func` (`vmap`, `grad`, ...), forward-mode
differentiation, and whatever else a function here says. Under `torch.compile`, `torch.export`, `make_fx` and
`torch.jit.trace` the calls are operators `torch.ops.ironstep.*`, without a graph break. `torch.jit.script` cannot read
them, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as reference

from . import _ops
from ._ops import ours
from ._types import HALVES, computed, refuse

__all__ = [
    "add_rms_norm",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "mse_loss",
    "rms_norm",
]

_REDUCTIONS = ("none", "mean", "sum")


def _floats(tensor: Tensor | None, name: str) -> None:
    if tensor is not None:
        refuse(tensor, name)


def _shaped(tensor: Tensor | None, name: str, shape: tuple[int, ...]) -> None:
    if tensor is None:
        return
    _floats(tensor, name)
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")


def _not_negative(eps: float) -> float:
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and at least 0, got {eps!r}")
    return float(eps)


# ----------------------------------------------------------------------------------------------------------------------
# Rows
# ----------------------------------------------------------------------------------------------------------------------


def _trailing(input: Tensor, normalized_shape: int | Sequence[int], weight: Tensor | None, bias: Tensor | None) -> int:
    """The number of dimensions that are normalised over."""
    _floats(input, "input")
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    dims = len(shape)
    if dims == 0 or input.shape[-dims:] != shape:
        raise ValueError(
            f"normalized_shape must be the last dimensions of input, of shape {tuple(input.shape)}, got "
            f"{normalized_shape!r}"
        )
    _shaped(weight, "weight", shape)
    _shaped(bias, "bias", shape)
    return dims


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises over the last dimensions; the equation is that of `ironstep.functional.layer_norm`.

    Args:
        input: Float32, float64, float16 or bfloat16, of any strides.
        normalized_shape: The last dimensions of `input`: a number or several.
        weight: Of shape `normalized_shape`, of any of the four types; ones if `None`.
        bias: Likewise; zeros if `None`.
        eps: Added to the variance.

    Returns:
        A contiguous tensor of the input's shape and type.

    Raises:
        ValueError: A shape or a number does not fit.
        TypeError: A tensor is sparse or of another type.

    Example:
        >>> layer_norm(torch.tensor([[1.0, 3.0], [-5.0, 5.0]]), 2, eps=0.0)
        tensor([[-1.,  1.],
                [-1.,  1.]])

    References:
        Ba, Kiros & Hinton, Layer normalization, arXiv 1607.06450.
    """
    if not ours(input, weight, bias):
        return reference.layer_norm(input, _listed(normalized_shape), weight, bias, eps)
    dims = _trailing(input, normalized_shape, weight, bias)
    return _ops.layer_norm(input, weight, bias, dims, _not_negative(eps))  # type: ignore[no-any-return]


def _listed(normalized_shape: int | Sequence[int]) -> list[int]:
    return [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)


def _rms_eps(eps: float | None, dtype: torch.dtype) -> float:
    # As in torch: the distance from 1 to the next number of the type that is computed in.
    return torch.finfo(computed(dtype)).eps if eps is None else _not_negative(eps)


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    offset: float = 0.0,
) -> Tensor:
    """Divides by the root mean square over the last dimensions; see `ironstep.functional.rms_norm` for the equation.

    Args:
        input: As for `layer_norm`.
        normalized_shape: As for `layer_norm`.
        weight: Of shape `normalized_shape`; if `None`, nothing is multiplied.
        eps: Added to the mean square; `None` for the machine epsilon of the type that is computed in.
        offset: Added to the weight: 1 for Gemma's form, whose weights start at zero. torch has no such argument.

    Returns:
        A contiguous tensor of the input's shape and type.

    Raises:
        ValueError: A shape or a number does not fit.
        TypeError: A tensor is sparse or of another type.

    Example:
        >>> rms_norm(torch.tensor([[-1.0, 1.0], [2.0, 2.0]]), 2, eps=0.0)
        tensor([[-1.,  1.],
                [ 1.,  1.]])

    References:
        Zhang & Sennrich, Root mean square layer normalization, arXiv 1910.07467.
    """
    if not ours(input, weight):
        if weight is not None and offset != 0.0:
            weight = offset + weight
        return reference.rms_norm(input, _listed(normalized_shape), weight, eps)
    dims = _trailing(input, normalized_shape, weight, None)
    eps = _rms_eps(eps, input.dtype)
    return _ops.rms_norm(input, weight, dims, eps, float(offset))  # type: ignore[no-any-return]


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Adds a residual and normalises the sum, in one pass: `hidden = input + residual`, `y = rms_norm(hidden)`.

    The same bits as the two calls one after the other. torch has no such function.

    Args:
        input: What is added to the residual, as for `layer_norm`.
        residual: The residual stream, of the input's shape; it is converted to the input's type.
        normalized_shape: As for `rms_norm`.
        weight: As for `rms_norm`.
        eps: As for `rms_norm`.
        offset: As for `rms_norm`.

    Returns:
        (y, hidden), of the input's shape and type.

    Raises:
        ValueError: A shape or a number does not fit.
        TypeError: A tensor is sparse or of another type.

    Example:
        >>> y, hidden = add_rms_norm(torch.tensor([[1.0, 4.0]]), torch.tensor([[1.0, -2.0]]), 2, eps=0.0)
        >>> hidden, y
        (tensor([[2., 2.]]), tensor([[1., 1.]]))

    References:
        Zhang & Sennrich, Root mean square layer normalization, arXiv 1910.07467.
    """
    if not ours(input, residual, weight):
        hidden = input + residual.to(input.dtype)
        return rms_norm(hidden, normalized_shape, weight, eps, offset=offset), hidden
    dims = _trailing(input, normalized_shape, weight, None)
    _shaped(residual, "residual", input.shape)
    eps = _rms_eps(eps, input.dtype)
    return _ops.add_rms_norm(  # type: ignore[no-any-return]
        input, residual.to(input.dtype), weight, dims, eps, float(offset)
    )


# ----------------------------------------------------------------------------------------------------------------------
# Channels
# ----------------------------------------------------------------------------------------------------------------------


def _with_channels(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> int:
    """The number of channels."""
    _floats(input, "input")
    if input.dim() < 2:
        raise ValueError(
            f"input must have samples and channels, so at least 2 dimensions, got shape {tuple(input.shape)}"
        )
    c = input.shape[1]
    _shaped(weight, "weight", (c,))
    _shaped(bias, "bias", (c,))
    return c


def _running(mean: Tensor | None, var: Tensor | None, c: int) -> None:
    if (mean is None) != (var is None):
        raise ValueError("running_mean and running_var must be given together, or neither")
    _shaped(mean, "running_mean", (c,))
    _shaped(var, "running_var", (c,))


def _more_than_one(count: int, input: Tensor) -> None:
    if count == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {input.shape}"  # torch's words
        )


def _track(mean: Tensor | None, var: Tensor | None, new: Sequence[Tensor], factor: float) -> None:
    """`(1 - factor) * old + factor * new`, in the type that tensors of the old ones' type are computed in."""
    if mean is None or var is None:
        return
    with torch.no_grad():
        for old, value in zip((mean, var), new, strict=True):
            wide = computed(old.dtype)
            term = value.to(wide, copy=True).mul_(factor)
            if old.dtype == wide:
                old.mul_(1.0 - factor).add_(term)
            else:
                old.copy_((1.0 - factor) * old.to(wide) + term)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises each channel over the samples and all places; see `ironstep.functional.batch_norm` for the equation.

    Args:
        input: Of shape (N, C, ...), float32, float64, float16 or bfloat16; contiguous and channels-last memory are both
            fast, other strides are copied.
        running_mean: Mean of each channel, updated in place in training. Needed if `training` is `False`.
        running_var: Variance of each channel, likewise; the unbiased one is tracked.
        weight: One number for each channel, of any of the four types; ones if `None`.
        bias: Likewise; zeros if `None`.
        training: Whether to use, and track, the statistics of this batch.
        momentum: Weight of the new value in the running statistics.
        eps: Added to the variance.

    Returns:
        A tensor of the input's shape, type and memory format.

    Raises:
        ValueError: A shape or a number does not fit, or there is one value per channel in training.
        TypeError: A tensor is sparse or of another type.

    Example:
        >>> mean, var = torch.zeros(1), torch.ones(1)
        >>> batch_norm(torch.tensor([[1.0], [3.0]]), mean, var, training=True, eps=0.0)
        tensor([[-1.],
                [ 1.]])
        >>> mean, var
        (tensor([0.2000]), tensor([1.1000]))

    References:
        Ioffe & Szegedy, Batch normalization, arXiv 1502.03167.
    """
    if not ours(input, running_mean, running_var, weight, bias):
        return reference.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    c = _with_channels(input, weight, bias)
    _running(running_mean, running_var, c)
    eps = _not_negative(eps)
    if not training:
        if running_mean is None:
            raise ValueError("running_mean and running_var must be given if training is False")
        return _ops.batch_norm_inference(  # type: ignore[no-any-return]
            input, weight, bias, running_mean, running_var, eps
        )
    count = input.shape[0] * math.prod(input.shape[2:])
    _more_than_one(count, input)
    y, mean, _, m2 = _ops.batch_norm(input, weight, bias, eps)
    if count > 1:
        _track(running_mean, running_var, (mean, m2 / (count - 1)), momentum)
    return y  # type: ignore[no-any-return]


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalises groups of neighbouring channels of each sample; see `ironstep.functional.group_norm` for the equation.

    Args:
        input: As for `batch_norm`.
        num_groups: The number of groups; it divides that of the channels.
        weight: As for `batch_norm`.
        bias: As for `batch_norm`.
        eps: Added to the variance.

    Returns:
        A tensor of the input's shape, type and memory format.

    Raises:
        ValueError: A shape or a number does not fit, or there is one value per group in all.
        TypeError: A tensor is sparse or of another type.

    Example:
        >>> group_norm(torch.tensor([[1.0, 3.0, -5.0, 5.0]]), 2, eps=0.0)
        tensor([[-1.,  1., -1.,  1.]])

    References:
        Wu & He, Group normalization, arXiv 1803.08494.
    """
    if not ours(input, weight, bias):
        return reference.group_norm(input, num_groups, weight, bias, eps)
    c = _with_channels(input, weight, bias)
    if num_groups < 1 or c % num_groups:
        raise ValueError(f"num_groups must divide the number of channels, {c}, got {num_groups}")
    _more_than_one(input.shape[0] * (c // num_groups) * math.prod(input.shape[2:]), input)
    return _ops.group_norm(input, weight, bias, num_groups, _not_negative(eps))[0]  # type: ignore[no-any-return]


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises each channel of each sample; see `ironstep.functional.instance_norm` for the equation.

    Args:
        input: As for `batch_norm`, with at least one dimension of places.
        running_mean: Updated in place with the mean over the samples if `use_input_stats`; else used.
        running_var: Likewise, with the mean of the unbiased variances.
        weight: As for `batch_norm`.
        bias: As for `batch_norm`.
        use_input_stats: Whether to use the statistics of the input, or the running ones.
        momentum: Weight of the new value in the running statistics.
        eps: Added to the variance.

    Returns:
        A tensor of the input's shape, type and memory format.

    Raises:
        ValueError: A shape or a number does not fit, or there is one value per channel of a sample.
        TypeError: A tensor is sparse or of another type.

    Example:
        >>> instance_norm(torch.tensor([[[1.0, 3.0], [-5.0, 5.0]]]), eps=0.0)
        tensor([[[-1.,  1.],
                 [-1.,  1.]]])

    References:
        Ulyanov, Vedaldi & Lempitsky, Instance normalization, arXiv 1607.08022.
    """
    if not ours(input, running_mean, running_var, weight, bias):
        return reference.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    c = _with_channels(input, weight, bias)
    _running(running_mean, running_var, c)
    eps = _not_negative(eps)
    if not use_input_stats:
        if running_mean is None:
            raise ValueError("running_mean and running_var must be given if use_input_stats is False")
        return _ops.batch_norm_inference(  # type: ignore[no-any-return]
            input, weight, bias, running_mean, running_var, eps
        )
    n, s = input.shape[0], math.prod(input.shape[2:])
    if s == 1:
        raise ValueError(
            f"Expected more than 1 spatial element when training, got input size {input.shape}"  # torch's words
        )
    y, mean, _, var = _ops.group_norm(input, weight, bias, max(c, 1), eps)
    if running_mean is not None and n * s > 0:
        # A sum in a fixed order, sample by sample.
        new = [values.view(n, c).cumsum(0)[-1] / n for values in (mean, var * (s / (s - 1)))]
        _track(running_mean, running_var, new, momentum)
    return y  # type: ignore[no-any-return]


# ----------------------------------------------------------------------------------------------------------------------
# Dropout
# ----------------------------------------------------------------------------------------------------------------------


def _probability(p: float) -> float:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")  # torch's words
    return float(p)


def _taken(input: Tensor) -> bool:
    return ours(input) and not input.is_complex()


def _drop(input: Tensor, p: float, training: bool, inplace: bool, channels: bool) -> Tensor:
    if not training or p == 0.0 or input.numel() == 0:
        return input
    _floats(input, "input")
    # One number of torch's generator is the key of all others.
    seed = torch.randint((1 << 63) - 1, (), device="cpu")
    y: Tensor = _ops.dropout(input, seed, p, channels)
    return input.copy_(y) if inplace else y


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Sets each element to zero with probability `p`, and divides the others by `1 - p`.

    Element `i` in C order is decided by number `i` of the sequence of `ironstep.functional.dropout` whose seed is
    `torch.randint(2**63 - 1, ())`, drawn in each call from torch's generator of the CPU. So `torch.manual_seed` makes a
    run reproducible, with any number of threads; the elements that are dropped are not those that torch's own dropout
    would drop. No mask is stored: the backward pass makes it again from the seed. What is dropped is zero even if it
    was infinite or NaN.

    Args:
        input: Float32, float64, float16 or bfloat16, of any strides.
        p: The probability to drop.
        training: If `False`, the result is the input itself, as in torch.
        inplace: Write the result into the input.

    Returns:
        A tensor of the input's shape, type and strides.

    Raises:
        ValueError: `p` is not from 0 to 1.
        TypeError: The input is sparse or of another type.

    Example:
        >>> _ = torch.manual_seed(1)
        >>> y = dropout(torch.ones(1000), 0.25)
        >>> y.unique(), bool(0.2 < (y == 0).float().mean() < 0.3)
        (tensor([0.0000, 1.3333]), True)

    References:
        Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, JMLR 15, 2014.
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
    """
    if not _taken(input):
        return reference.dropout(input, p, training, inplace)
    return _drop(input, _probability(p), training, inplace, False)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Sets whole channels of a batch of sequences to zero with probability `p`, and divides the others by `1 - p`.

    As `dropout`, but number `n * C + c` decides about channel `c` of sample `n`.

    Args:
        input: Of shape (N, C, L) or (C, L).
        p: The probability to drop.
        training: If `False`, the result is the input itself.
        inplace: Write the result into the input.

    Returns:
        A tensor of the input's shape, type and strides.

    Raises:
        ValueError: `p` is not from 0 to 1.
        RuntimeError: The input has another number of dimensions.
        TypeError: The input is sparse or of another type.

    Example:
        >>> dropout1d(torch.ones(2, 3, 4), 0.5).std(2).max()
        tensor(0.)

    References:
        Tompson et al., Efficient object localization using convolutional networks, arXiv 1411.4280.
    """
    if not _taken(input) or input.dim() not in (2, 3):
        return reference.dropout1d(input, p, training, inplace)
    if input.dim() == 2:
        y = _drop(input.unsqueeze(0), _probability(p), training, False, True).squeeze(0)
        return _unbatched(input, y, training, inplace)
    return _drop(input, _probability(p), training, inplace, True)


def _unbatched(input: Tensor, y: Tensor, training: bool, inplace: bool) -> Tensor:
    return input.copy_(y) if inplace and training else y


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Sets whole channels of a batch of images to zero with probability `p`, and divides the others by `1 - p`.

    As `dropout1d`. Shapes other than (N, C, H, W) go to torch, which warns that it will change what it does with them.

    Args:
        input: Of shape (N, C, H, W).
        p: The probability to drop.
        training: If `False`, the result is the input itself.
        inplace: Write the result into the input.

    Returns:
        A tensor of the input's shape, type and strides.

    Raises:
        ValueError: `p` is not from 0 to 1.
        TypeError: The input is sparse or of another type.

    Example:
        >>> dropout2d(torch.ones(2, 3, 4, 4), 0.5).std((2, 3)).max()
        tensor(0.)

    References:
        Tompson et al., Efficient object localization using convolutional networks, arXiv 1411.4280.
    """
    if not _taken(input) or input.dim() != 4:
        return reference.dropout2d(input, p, training, inplace)
    return _drop(input, _probability(p), training, inplace, True)


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Sets whole channels of a batch of volumes to zero with probability `p`, and divides the others by `1 - p`.

    As `dropout1d`. Other shapes go to torch, which warns.

    Args:
        input: Of shape (N, C, D, H, W) or (C, D, H, W).
        p: The probability to drop.
        training: If `False`, the result is the input itself.
        inplace: Write the result into the input.

    Returns:
        A tensor of the input's shape, type and strides.

    Raises:
        ValueError: `p` is not from 0 to 1.
        TypeError: The input is sparse or of another type.

    Example:
        >>> dropout3d(torch.ones(2, 3, 4, 4, 4), 0.5).std((2, 3, 4)).max()
        tensor(0.)

    References:
        Tompson et al., Efficient object localization using convolutional networks, arXiv 1411.4280.
    """
    if not _taken(input) or input.dim() not in (4, 5):
        return reference.dropout3d(input, p, training, inplace)
    if input.dim() == 4:
        y = _drop(input.unsqueeze(0), _probability(p), training, False, True).squeeze(0)
        return _unbatched(input, y, training, inplace)
    return _drop(input, _probability(p), training, inplace, True)


# ----------------------------------------------------------------------------------------------------------------------
# Losses
# ----------------------------------------------------------------------------------------------------------------------


def _reduction(reduction: str) -> str:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, _REDUCTIONS))}, got {reduction!r}")
    return reduction


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy of logits; see `ironstep.functional.cross_entropy` for the equation.

    Value and gradient come from one pass over the logits, in eager mode. If the gradient of the loss is not 1 and the
    logits are float16 or bfloat16, or `reduction` is "none", the backward pass makes another one.

    torch's own function is called if the target or the weight needs a gradient, and for `size_average` and `reduce`.

    Args:
        input: Logits, of shape (N, C), (C,), or (N, C, d1, ...).
        target: Classes, integers of shape (N,), () or (N, d1, ...); or probabilities of the input's shape.
        weight: For each class, of any of the four types; ones if `None`.
        size_average: Deprecated in torch.
        ignore_index: Samples with this class do not count. For classes only.
        reduce: Deprecated in torch.
        reduction: "mean", "sum" or "none".
        label_smoothing: From 0 to 1; the target becomes `(1 - label_smoothing) * target + label_smoothing / C`.

    Returns:
        The loss, in the type that torch gives it: the input's, with probabilities the common one of input and target,
        under CPU autocast float32 in place of float16 and bfloat16.

    Raises:
        ValueError: A class, a shape or a number does not fit.
        TypeError: A tensor is sparse or of another type.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
        >>> loss = cross_entropy(logits, torch.tensor([0, 2]), label_smoothing=0.1)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.9455
        >>> logits.grad
        tensor([[-0.0732,  0.0366,  0.0366],
                [ 0.0893,  0.2714, -0.3607]])

    References:
        Szegedy et al., Rethinking the Inception architecture for computer vision, arXiv 1512.00567.
    """
    if (
        not ours(input, target, weight)
        or size_average is not None
        or reduce is not None
        or _needs_gradient(target, weight)
    ):
        return reference.cross_entropy(
            input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
        )
    _floats(input, "input")
    shape = tuple(input.shape)
    axis = min(input.dim() - 1, 1)
    if not shape or shape[axis] == 0:
        raise ValueError(f"input must have classes, so shape (N, C), (C,) or (N, C, ...), got {shape}")
    _shaped(weight, "weight", (shape[axis],))
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0.0 and 1.0, got {label_smoothing!r}")
    dtype = input.dtype
    if target.dtype.is_floating_point:
        if tuple(target.shape) != shape:
            raise ValueError(
                f"target must be classes of shape {shape[:axis] + shape[axis + 1 :]}, or probabilities of shape "
                f"{shape}, got {target.dtype} of shape {tuple(target.shape)}"
            )
        _floats(target, "target")
        dtype = torch.promote_types(dtype, target.dtype)
    else:
        if target.dtype.is_complex or target.dtype is torch.bool or target.layout is not torch.strided:
            raise TypeError(f"target must be integers or floats, got {target.dtype}, {target.layout}")
        if tuple(target.shape) != shape[:axis] + shape[axis + 1 :]:
            raise ValueError(
                f"target must have shape {shape[:axis] + shape[axis + 1 :]}, like input without its classes, got "
                f"{tuple(target.shape)}"
            )
    if dtype in HALVES and torch.is_autocast_enabled("cpu"):
        dtype = torch.float32
    return _ops.cross_entropy(  # type: ignore[no-any-return]
        input, target, weight, ignore_index, _reduction(reduction), float(label_smoothing), dtype
    )


def _autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """What torch's autocast makes of the arguments of an operation that wants float32."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    return tuple(t.float() if t is not None and t.dtype in HALVES else t for t in tensors)


def _alike(input: Tensor, *tensors: Tensor | None) -> bool:
    return all(tensor is None or tensor.dtype == input.dtype for tensor in tensors)


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Squared error, its mean or its sum; see `ironstep.functional.mse_loss`.

    torch's own function is called if shapes or types of input and target differ, with a weight, and for `size_average`
    and `reduce`.

    Args:
        input: Float32, float64, float16 or bfloat16, of any strides.
        target: Of the input's shape and type.
        size_average: Deprecated in torch.
        reduce: Deprecated in torch.
        reduction: "mean", "sum" or "none".
        weight: For each element.

    Returns:
        The loss, in the input's type; under CPU autocast float32 in place of float16 and bfloat16.

    Raises:
        ValueError: `reduction` is none of these.
        TypeError: A tensor is sparse or of another type.

    Example:
        >>> mse_loss(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
        tensor(2.)

    References:
        Gauss, Theoria combinationis observationum erroribus minimis obnoxiae, 1823.
    """
    if ours(input, target) and weight is None and size_average is None and reduce is None:
        x, t = _autocast(input, target)
        if x.shape == t.shape and x.dtype == t.dtype:
            _floats(x, "input")
            _floats(t, "target")
            return _ops.pointwise_loss(x, t, None, None, "mse", _reduction(reduction))  # type: ignore[no-any-return]
    arguments = (input, target, size_average, reduce, reduction)
    return reference.mse_loss(*arguments) if weight is None else reference.mse_loss(*arguments, weight)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of logits; see `ironstep.functional.binary_cross_entropy_with_logits` for the equation.

    torch's own function is called if the types of the tensors differ, if any but the input needs a gradient, and for
    `size_average` and `reduce`.

    Args:
        input: Logits, float32, float64, float16 or bfloat16, of any strides.
        target: From 0 to 1, of the input's shape and type.
        weight: What each loss is multiplied by; broadcast to the input's shape.
        size_average: Deprecated in torch.
        reduce: Deprecated in torch.
        reduction: "mean", "sum" or "none".
        pos_weight: What the part of the positive class is multiplied by; broadcast to the input's shape.

    Returns:
        The loss, in the input's type; under CPU autocast float32 in place of float16 and bfloat16.

    Raises:
        ValueError: A shape does not fit, or `reduction` is none of these.
        TypeError: A tensor is sparse or of another type.

    Example:
        >>> binary_cross_entropy_with_logits(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 0.0]))
        tensor(1.8709)

    References:
        Good, Rational decisions, JRSS B 14, 1952.
    """
    if (
        ours(input, target, weight, pos_weight)
        and size_average is None
        and reduce is None
        and not _needs_gradient(target, weight, pos_weight)
    ):
        x, t, w, p = _autocast(input, target, weight, pos_weight)
        if _alike(x, t, w, p):
            _floats(x, "input")
            for name, values in (("target", t), ("weight", w), ("pos_weight", p)):
                _floats(values, name)
                if values is not None and not _broadcasts(values, x):
                    raise ValueError(
                        f"{name} must be broadcast to the shape of input, {tuple(x.shape)}, got {tuple(values.shape)}"
                    )
            if t.shape != x.shape:
                raise ValueError(f"target must have the shape of input, {tuple(x.shape)}, got {tuple(t.shape)}")
            return _ops.pointwise_loss(x, t, w, p, "bce", _reduction(reduction))  # type: ignore[no-any-return]
    return reference.binary_cross_entropy_with_logits(
        input, target, weight, size_average, reduce, reduction, pos_weight
    )


def _broadcasts(values: Tensor, x: Tensor) -> bool:
    sizes = zip(reversed(values.shape), reversed(x.shape), strict=False)
    return values.dim() <= x.dim() and all(a in (1, b) for a, b in sizes)
