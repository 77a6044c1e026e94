"""Modules of `torch.nn` that compute with the core: same names, arguments, parameters and checkpoints.

Each class is a subclass of torch's class of the same name in which only the computation is replaced, by a function of
`ironstep.torch.functional`; all else (`isinstance`, `repr`, initialisation, `device=`, hooks, saving and loading) is
torch's. On CUDA they compute what torch's do. `ironstep.torch.swap` puts them into a model that exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import functional

__all__ = [
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "CrossEntropyLoss",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "MSELoss",
    "RMSNorm",
]


class LayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` with `ironstep.torch.functional.layer_norm`.

    Example:
        >>> LayerNorm(2, eps=0.0)(torch.tensor([[1.0, 3.0]]))
        tensor([[-1.,  1.]], grad_fn=<layer_normBackward>)

    References:
        Ba, Kiros & Hinton, Layer normalization, arXiv 1607.06450.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The normalised input."""
        return functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` with `ironstep.torch.functional.rms_norm`.

    Example:
        >>> RMSNorm(2, eps=0.0)(torch.tensor([[-1.0, 1.0], [2.0, 2.0]]))
        tensor([[-1.,  1.],
                [ 1.,  1.]], grad_fn=<rms_normBackward>)

    References:
        Zhang & Sennrich, Root mean square layer normalization, arXiv 1910.07467.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The normalised input."""
        return functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class GroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` with `ironstep.torch.functional.group_norm`.

    Example:
        >>> GroupNorm(2, 4, eps=0.0, affine=False)(torch.tensor([[1.0, 3.0, -5.0, 5.0]]))
        tensor([[-1.,  1., -1.,  1.]])

    References:
        Wu & He, Group normalization, arXiv 1803.08494.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The normalised input."""
        return functional.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _batch_norm(self: Any, input: Tensor) -> Tensor:
    """The normalised input; in training the running statistics are updated."""
    self._check_input_dim(input)
    momentum = 0.0 if self.momentum is None else self.momentum
    if self.training and self.track_running_stats and self.num_batches_tracked is not None:
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            # The mean over all batches so far.
            momentum = 1.0 / float(self.num_batches_tracked)
    use_batch = self.training or (self.running_mean is None and self.running_var is None)
    tracked = not self.training or self.track_running_stats
    return functional.batch_norm(
        input,
        self.running_mean if tracked else None,
        self.running_var if tracked else None,
        self.weight,
        self.bias,
        use_batch,
        momentum,
        self.eps,
    )


class BatchNorm1d(torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` with `ironstep.torch.functional.batch_norm`.

    Example:
        >>> BatchNorm1d(1, eps=0.0, affine=False)(torch.tensor([[1.0], [3.0]]))
        tensor([[-1.],
                [ 1.]])

    References:
        Ioffe & Szegedy, Batch normalization, arXiv 1502.03167.
    """

    forward = _batch_norm


class BatchNorm2d(torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with `ironstep.torch.functional.batch_norm`.

    Example:
        >>> BatchNorm2d(1, eps=0.0, affine=False)(torch.tensor([[[[1.0, 3.0]]]]))
        tensor([[[[-1.,  1.]]]])

    References:
        Ioffe & Szegedy, Batch normalization, arXiv 1502.03167.
    """

    forward = _batch_norm


class BatchNorm3d(torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` with `ironstep.torch.functional.batch_norm`.

    Example:
        >>> BatchNorm3d(1, eps=0.0, affine=False)(torch.tensor([[[[[1.0, 3.0]]]]]))
        tensor([[[[[-1.,  1.]]]]])

    References:
        Ioffe & Szegedy, Batch normalization, arXiv 1502.03167.
    """

    forward = _batch_norm


def _instance_norm(self: Any, input: Tensor) -> Tensor:
    """What `torch.nn.InstanceNorm*.forward` calls once it has looked at the shape."""
    return functional.instance_norm(
        input,
        self.running_mean,
        self.running_var,
        self.weight,
        self.bias,
        self.training or not self.track_running_stats,
        0.0 if self.momentum is None else self.momentum,
        self.eps,
    )


class InstanceNorm1d(torch.nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` with `ironstep.torch.functional.instance_norm`.

    Example:
        >>> InstanceNorm1d(1, eps=0.0)(torch.tensor([[[1.0, 3.0]]]))
        tensor([[[-1.,  1.]]])

    References:
        Ulyanov, Vedaldi & Lempitsky, Instance normalization, arXiv 1607.08022.
    """

    _apply_instance_norm = _instance_norm


class InstanceNorm2d(torch.nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` with `ironstep.torch.functional.instance_norm`.

    Example:
        >>> InstanceNorm2d(1, eps=0.0)(torch.tensor([[[[1.0, 3.0]]]]))
        tensor([[[[-1.,  1.]]]])

    References:
        Ulyanov, Vedaldi & Lempitsky, Instance normalization, arXiv 1607.08022.
    """

    _apply_instance_norm = _instance_norm


class InstanceNorm3d(torch.nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` with `ironstep.torch.functional.instance_norm`.

    Example:
        >>> InstanceNorm3d(1, eps=0.0)(torch.tensor([[[[[1.0, 3.0]]]]]))
        tensor([[[[[-1.,  1.]]]]])

    References:
        Ulyanov, Vedaldi & Lempitsky, Instance normalization, arXiv 1607.08022.
    """

    _apply_instance_norm = _instance_norm


class Dropout(torch.nn.Dropout):
    """`torch.nn.Dropout` with `ironstep.torch.functional.dropout`.

    Example:
        >>> Dropout(0.5).eval()(torch.ones(3))
        tensor([1., 1., 1.])

    References:
        Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, JMLR 15, 2014.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input with some elements set to zero, in training."""
        return functional.dropout(input, self.p, self.training, self.inplace)


class Dropout1d(torch.nn.Dropout1d):
    """`torch.nn.Dropout1d` with `ironstep.torch.functional.dropout1d`.

    Example:
        >>> Dropout1d(0.5).eval()(torch.ones(1, 1, 3))
        tensor([[[1., 1., 1.]]])

    References:
        Tompson et al., Efficient object localization using convolutional networks, arXiv 1411.4280.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input with some channels set to zero, in training."""
        return functional.dropout1d(input, self.p, self.training, self.inplace)


class Dropout2d(torch.nn.Dropout2d):
    """`torch.nn.Dropout2d` with `ironstep.torch.functional.dropout2d`.

    Example:
        >>> Dropout2d(0.5).eval()(torch.ones(1, 1, 1, 3))
        tensor([[[[1., 1., 1.]]]])

    References:
        Tompson et al., Efficient object localization using convolutional networks, arXiv 1411.4280.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input with some channels set to zero, in training."""
        return functional.dropout2d(input, self.p, self.training, self.inplace)


class Dropout3d(torch.nn.Dropout3d):
    """`torch.nn.Dropout3d` with `ironstep.torch.functional.dropout3d`.

    Example:
        >>> Dropout3d(0.5).eval()(torch.ones(1, 1, 1, 1, 3))
        tensor([[[[[1., 1., 1.]]]]])

    References:
        Tompson et al., Efficient object localization using convolutional networks, arXiv 1411.4280.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input with some channels set to zero, in training."""
        return functional.dropout3d(input, self.p, self.training, self.inplace)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` with `ironstep.torch.functional.cross_entropy`.

    Example:
        >>> CrossEntropyLoss(label_smoothing=0.1)(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))
        tensor(0.3729)

    References:
        Szegedy et al., Rethinking the Inception architecture for computer vision, arXiv 1512.00567.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """`torch.nn.BCEWithLogitsLoss` with `ironstep.torch.functional.binary_cross_entropy_with_logits`.

    Example:
        >>> BCEWithLogitsLoss()(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 0.0]))
        tensor(1.8709)

    References:
        Good, Rational decisions, JRSS B 14, 1952.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        return functional.binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class MSELoss(torch.nn.MSELoss):
    """`torch.nn.MSELoss` with `ironstep.torch.functional.mse_loss`.

    Example:
        >>> MSELoss()(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
        tensor(2.)

    References:
        Gauss, Theoria combinationis observationum erroribus minimis obnoxiae, 1823.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        return functional.mse_loss(input, target, reduction=self.reduction)
