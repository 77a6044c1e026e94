"""Losses: softmax cross-entropy, squared error, binary cross-entropy, and the L2 penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core
from ._arrays import (
    NOT_NEGATIVE,
    PROBABILITY,
    Array,
    Out,
    array,
    c_order,
    compute,
    contiguous,
    integer,
    is_float,
    memory_order,
    number,
    overlap,
    refuse_overlaps,
    unmasked,
)

__all__ = [
    "LossSaved",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "l2_penalty",
    "l2_penalty_backward",
    "mse_loss",
    "mse_loss_backward",
]

_REDUCTIONS = ("none", "mean", "sum")


@dataclass(frozen=True)
class LossSaved:
    """What a loss keeps for the backward call: its arguments, not copies of them."""

    kind: str
    """Which function saved it."""
    input: Array
    """The predictions. They must not be changed before the backward call."""
    target: Array
    """The targets; likewise."""
    reduction: str
    """How the losses become one."""
    arguments: dict[str, Any]
    """The others."""


def _reduction(reduction: Any) -> str:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, _REDUCTIONS))}, got {reduction!r}")
    return str(reduction)


def _checked(saved: Any, kind: str, grad_output: Any) -> LossSaved:
    if grad_output is None:
        raise TypeError("grad_output must be a number or an array of numbers, got None")
    if not isinstance(saved, LossSaved) or saved.kind != kind:
        got = f"that of {saved.kind}" if isinstance(saved, LossSaved) else type(saved).__name__
        raise TypeError(f"saved must be what {kind}(..., save=True) returned, got {got}")
    return saved


def _upstream(grad_output: Any, shape: tuple[int, ...]) -> Array:
    """The gradient of the loss as an array of numbers."""
    values = unmasked(grad_output, "grad_output")
    if values.dtype.kind not in "iu" and not is_float(values.dtype):
        raise TypeError(f"grad_output must be a number or an array of numbers, got {grad_output!r}")
    if values.shape != shape:
        raise ValueError(f"grad_output must have shape {shape}, got {values.shape}")
    return values


def _wide(values: Array, x: Array) -> Array:
    """In the type that `x` is computed in: a target may be more precise than a float16 input."""
    with np.errstate(all="ignore"):
        return values.astype(compute(x.dtype), copy=False)


def _returned(loss: Any, grad: Array | None, saved: LossSaved, return_grad: bool, save: bool) -> Any:
    results = (loss, *((grad,) if return_grad else ()), *((saved,) if save else ()))
    return results if len(results) > 1 else loss


def cross_entropy(
    input: Any,
    target: Any,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    smoothing: str = "torch",
    return_grad: bool = False,
    save: bool = False,
    out: Array | None = None,
) -> Any:
    r"""Softmax cross-entropy of logits with classes or with class probabilities.

    With $x$ the logits of a sample, $t$ its target distribution (1 for its class and 0 for the other $K-1$, if classes
    are given), $w$ = `weight`, $a$ = `label_smoothing`:

    $$\ell = -\sum_k w_k\, t'_k \log \mathrm{softmax}(x)_k, \qquad
    \frac{\partial \ell}{\partial x_k} = \mathrm{softmax}(x)_k \sum_j w_j t'_j - w_k t'_k$$

    where `smoothing` says what $t'$ is: "torch" mixes with the uniform distribution, $t' = (1-a)\,t + a/K$; "textbook"
    leaves $1-a$ to the true class and gives $a/(K-1)$ to each of the others.

    The mean is over the samples that count, weighted by the weights of their classes; with probabilities, over all
    samples (torch's rules). Value and gradient take one pass; large logits are safe.

    Args:
        input: Logits, of shape (N, K), (K,), or (N, K, d1, ...).
        target: Classes, integers of shape (N,), () or (N, d1, ...); or probabilities of the input's shape.
        weight: For each class; ones if `None`.
        ignore_index: Samples with this class do not count. For classes only.
        reduction: "mean", "sum" or "none".
        label_smoothing: a, from 0 to 1.
        smoothing: "torch" or "textbook".
        return_grad: Return the gradient of the (reduced) loss with respect to the input, too.
        save: Return what `cross_entropy_backward` needs, too.
        out: Where the gradient goes, with `return_grad`; may be the input.

    Returns:
        The loss: a float, or with "none" an array of one number per sample, in the type that is computed in. With
        `return_grad` and `save`, `(loss, grad)`, `(loss, saved)` or `(loss, grad, saved)`.

    Raises:
        ValueError: A class, a shape or a number does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> logits = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> loss, grad = cross_entropy(logits, np.array([0, 2]), label_smoothing=0.1, return_grad=True)
        >>> round(loss, 4)
        0.9455
        >>> grad.round(3)
        array([[-0.073,  0.037,  0.037],
               [ 0.089,  0.271, -0.361]])

    References:
        Szegedy et al., Rethinking the Inception architecture for computer vision, arXiv 1512.00567.
    """
    call = _CrossEntropy(input, target, weight, ignore_index, reduction, label_smoothing, smoothing)
    loss, grad = call.run(None, return_grad, out, save)
    arguments = {
        "weight": weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "smoothing": smoothing,
    }
    saved = LossSaved("cross_entropy", call.input, call.target, call.reduction, arguments)
    return _returned(loss, grad, saved, return_grad, save)


def cross_entropy_backward(grad_output: Any, saved: LossSaved, *, out: Array | None = None) -> Array:
    r"""The gradient of `cross_entropy` with respect to the logits.

    Args:
        grad_output: The gradient with respect to the loss: a number, or for reduction="none" an array of its shape.
        saved: What `cross_entropy(..., save=True)` returned.
        out: Where the gradient goes; may be the input.

    Returns:
        The gradient, of the input's shape and type.

    Raises:
        ValueError: A shape does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> _, saved = cross_entropy(np.array([[0.0, 0.0]]), np.array([1]), save=True)
        >>> cross_entropy_backward(2.0, saved)
        array([[ 1., -1.]])

    References:
        Szegedy et al., Rethinking the Inception architecture for computer vision, arXiv 1512.00567.
    """
    saved = _checked(saved, "cross_entropy", grad_output)
    call = _CrossEntropy(saved.input, saved.target, reduction=saved.reduction, **saved.arguments)
    grad = call.run(grad_output, True, out, False)[1]
    assert grad is not None
    return grad


class _CrossEntropy:
    """One call: arguments checked, the classes on the last axis."""

    def __init__(
        self,
        input: Any,
        target: Any,
        weight: Any,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
        smoothing: str,
    ) -> None:
        x = self.input = array(input, "input")
        if x.ndim == 0 or x.shape[min(x.ndim - 1, 1)] == 0:
            raise ValueError(f"input must have classes, so shape (N, K), (K,) or (N, K, ...), got {x.shape}")
        axis = min(x.ndim - 1, 1)
        self.classes = k = x.shape[axis]
        self.sample_shape = x.shape[:axis] + x.shape[axis + 1 :]
        # The order in which the core reads: the classes last.
        self.layout = c_order(x.ndim)
        self.to_last = [i for i in range(x.ndim) if i != axis] + [axis]
        self.target = target = unmasked(target, "target")
        self.hard = target.dtype.kind in "iu"
        self.reduction = _reduction(reduction)
        self.ignore_index = integer("ignore_index", ignore_index, -(1 << 63), (1 << 63) - 1)
        a = number("label_smoothing", label_smoothing, PROBABILITY)
        if smoothing not in ("torch", "textbook"):
            raise ValueError(f'smoothing must be "torch" or "textbook", got {smoothing!r}')
        if a == 0.0:
            self.on, self.off = 1.0, 0.0
        elif smoothing == "torch":
            self.on, self.off = 1.0 - a, a / k
        else:
            if k == 1:
                raise ValueError("input must have at least two classes for the textbook's smoothing")
            self.off = a / (k - 1)
            self.on = 1.0 - a - self.off
        self.weight: Array | None = None
        if weight is not None:
            self.weight = array(weight, "weight")
            if self.weight.shape != (k,):
                raise ValueError(
                    f"weight must have a number for each of the {k} classes, got shape {self.weight.shape}"
                )
        if self.hard:
            if target.shape != self.sample_shape:
                raise ValueError(
                    f"target must have shape {self.sample_shape}, like input without its classes, got {target.shape}"
                )
            if target.dtype == np.uint64 and target.size and target.max() > (1 << 63) - 1:
                raise ValueError(f"target must be below the number of classes, {k}, got {target.max()}")
            self.core_target = contiguous(target, np.int64).reshape(-1)
        else:
            target = array(target, "target")
            if target.shape != x.shape:
                raise ValueError(
                    f"target must be classes of shape {self.sample_shape}, or probabilities of shape {x.shape}, got "
                    f"{target.dtype} of shape {target.shape}"
                )
            self.core_target = self._last(_wide(target, x))

    def _last(self, x: Array) -> Array:
        return self.layout.dense(x.transpose(self.to_last))

    def run(self, grad_output: Any, want_grad: bool, out: Any, save: bool) -> tuple[Any, Array | None]:
        x, rows = self.input, int(np.prod(self.sample_shape))
        if out is not None and not want_grad:
            raise ValueError("out must be given only with return_grad=True: it takes the gradient")
        if save and overlap(x, out) is not False:
            raise ValueError("out must not be the input if save=True, because the backward call needs the input")
        count = self._count(rows)
        with np.errstate(all="ignore"):
            given: Array | None = None
            if grad_output is None:
                scale = np.ones(1)
            else:
                wanted = self.sample_shape if self.reduction == "none" else ()
                given = _upstream(grad_output, wanted)
                scale = contiguous(given, np.float64).reshape(-1)
            if self.reduction == "mean":
                scale = scale / np.float64(count)
        target: Out | None = None
        buffer: Array | None = None
        if want_grad:
            apart = [("target", self.target), ("weight", self.weight), ("grad_output", given)]
            target = Out(out, "out", x, c_order(x.ndim), inputs=[("input", x)], apart=apart)
            last = target.buffer.transpose(self.to_last)
            buffer = last if self.layout.fits(last) else self.layout.empty(last.shape, last.dtype)
        losses = _core.cross_entropy(
            self._last(x),
            [rows, self.classes],
            self.core_target if self.hard else None,
            None if self.hard else self.core_target,
            self.weight,
            self.ignore_index,
            self.on,
            self.off,
            scale,
            buffer,
        )
        grad = None
        if target is not None:
            if buffer is not None and not np.may_share_memory(buffer, target.buffer):
                target.buffer.transpose(self.to_last)[...] = buffer
            grad = target.done()
        loss: Any
        if self.reduction == "none":
            with np.errstate(all="ignore"):
                loss = losses.astype(compute(x.dtype)).reshape(self.sample_shape)
        else:
            with np.errstate(all="ignore"):
                total = np.float64(_core.tree_sum(losses))
                loss = float(total / np.float64(count) if self.reduction == "mean" else total)
        return loss, grad

    def _count(self, rows: int) -> float:
        """What the mean divides by."""
        if not self.hard:
            return float(rows)
        counted = self.core_target[self.core_target != self.ignore_index]
        if self.weight is None:
            return float(len(counted))
        # The core says which class is out of range; here it only must not be used.
        valid = counted[(counted >= 0) & (counted < self.classes)]
        weight = self.weight.astype(compute(self.input.dtype)).astype(np.float64)
        return float(_core.tree_sum(np.ascontiguousarray(weight[valid])))


def _pointwise(
    kind: str,
    input: Any,
    target: Any,
    reduction: str,
    grad_output: Any,
    want_grad: bool,
    out: Any,
    save: bool,
    weight: Any = None,
    pos_weight: Any = None,
    smoothing: float = 0.0,
) -> tuple[Any, Array | None, Array, Array]:
    """A loss of each element with its target: loss, gradient, and the arrays as they were taken."""
    x = array(input, "input")
    target = array(target, "target")
    if target.shape != x.shape:
        raise ValueError(f"target must have the shape of input, {x.shape}, got {target.shape}")
    reduction = _reduction(reduction)
    wide, layout = compute(x.dtype), c_order(x.ndim)
    if out is not None and not want_grad:
        raise ValueError("out must be given only with return_grad=True: it takes the gradient")
    if save and not (overlap(x, out) is False and overlap(target, out) is False):
        raise ValueError("out must not be the input or target if save=True, because the backward call needs them")

    def factor(values: Any, name: str) -> Array | None:
        if values is None:
            return None
        values = array(values, name)
        try:
            values = np.broadcast_to(values, x.shape)
        except ValueError:
            raise ValueError(f"{name} must be broadcast to the shape of input, {x.shape}, got {values.shape}") from None
        return layout.dense(values.astype(wide))

    weights, pos_weights = factor(weight, "weight"), factor(pos_weight, "pos_weight")
    upstream, scale = None, 1.0
    if grad_output is not None and reduction == "none":
        upstream = layout.dense(_upstream(grad_output, x.shape).astype(wide))
    elif grad_output is not None:
        scale = float(_upstream(grad_output, ()))
    with np.errstate(all="ignore"):
        if reduction == "mean":
            scale = float(np.float64(scale) / np.float64(x.size))
        grad: Out | None = None
        if want_grad:
            inputs = [("input", x), ("target", target)]
            apart = [("weight", weight), ("pos_weight", pos_weight), ("grad_output", grad_output)]
            grad = Out(out, "out", x, layout, inputs=inputs, apart=apart)
        losses = layout.empty(x.shape, wide) if reduction == "none" else None
        total = _core.pointwise_loss(
            kind,
            layout.dense(x),
            layout.dense(_wide(target, x)),
            weights,
            pos_weights,
            upstream,
            scale,
            1.0 - smoothing,
            smoothing / 2,
            losses,
            None if grad is None else grad.buffer,
        )
        loss: Any = losses
        if reduction != "none":
            loss = float(np.float64(total) / np.float64(x.size)) if reduction == "mean" else total
    return loss, None if grad is None else grad.done(), x, target


def mse_loss(
    input: Any,
    target: Any,
    reduction: str = "mean",
    *,
    return_grad: bool = False,
    save: bool = False,
    out: Array | None = None,
) -> Any:
    r"""Squared error, $(x - t)^2$, its mean or its sum.

    With $x$ = `input`, $t$ = `target`: the gradient is $2 (x - t)$, divided by the number of elements for the mean.

    Args:
        input: x, float32, float64, float16 or bfloat16, of any layout.
        target: t, of the input's shape.
        reduction: "mean", "sum" or "none".
        return_grad: Return the gradient of the (reduced) loss with respect to the input, too.
        save: Return what `mse_loss_backward` needs, too.
        out: Where the gradient goes, with `return_grad`; may be the input or the target.

    Returns:
        The loss: a float, or with "none" an array in the type that is computed in. With `return_grad` and `save`,
        `(loss, grad)`, `(loss, saved)` or `(loss, grad, saved)`.

    Raises:
        ValueError: A shape does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> mse_loss(np.array([1.0, 4.0]), np.array([1.0, 2.0]), return_grad=True)
        (2.0, array([0., 2.]))

    References:
        Gauss, Theoria combinationis observationum erroribus minimis obnoxiae, 1823.
    """
    loss, grad, x, target = _pointwise("mse", input, target, reduction, None, return_grad, out, save)
    return _returned(loss, grad, LossSaved("mse_loss", x, target, reduction, {}), return_grad, save)


def mse_loss_backward(grad_output: Any, saved: LossSaved, *, out: Array | None = None) -> Array:
    """The gradient of `mse_loss` with respect to the input; that of the target is its negative.

    Args:
        grad_output: The gradient with respect to the loss: a number, or for reduction="none" an array of its shape.
        saved: What `mse_loss(..., save=True)` returned.
        out: Where the gradient goes; may be the input or the target.

    Returns:
        The gradient, of the input's shape and type.

    Raises:
        ValueError: A shape does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> _, saved = mse_loss(np.array([1.0, 4.0]), np.array([1.0, 2.0]), save=True)
        >>> mse_loss_backward(1.0, saved)
        array([0., 2.])

    References:
        Gauss, Theoria combinationis observationum erroribus minimis obnoxiae, 1823.
    """
    saved = _checked(saved, "mse_loss", grad_output)
    grad = _pointwise("mse", saved.input, saved.target, saved.reduction, grad_output, True, out, False)[1]
    assert grad is not None
    return grad


def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    reduction: str = "mean",
    pos_weight: Any = None,
    *,
    label_smoothing: float = 0.0,
    return_grad: bool = False,
    save: bool = False,
    out: Array | None = None,
) -> Any:
    r"""Binary cross-entropy of logits.

    With $x$ = `input`, $t$ = `target`, $a$ = `label_smoothing`, $t' = (1-a)\,t + a/2$, $w$ = `weight`, $p$ =
    `pos_weight` and $\sigma$ the logistic function:

    $$\ell = -w \left(p\, t' \log \sigma(x) + (1 - t') \log(1 - \sigma(x))\right), \qquad
    \frac{\partial \ell}{\partial x} = w \left((1 - t')\,\sigma(x) - p\, t' (1 - \sigma(x))\right)$$

    without overflow or cancellation for any logit.

    Args:
        input: x, float32, float64, float16 or bfloat16, of any layout.
        target: t, from 0 to 1, of the input's shape.
        weight: What each loss is multiplied by; broadcast to the input's shape. The mean divides by the number of
            elements, as in torch.
        reduction: "mean", "sum" or "none".
        pos_weight: p, broadcast to the input's shape (one number for each class, on the last axis).
        label_smoothing: a, from 0 to 1 (Keras's form).
        return_grad: Return the gradient of the (reduced) loss with respect to the input, too.
        save: Return what `binary_cross_entropy_with_logits_backward` needs, too.
        out: Where the gradient goes, with `return_grad`; may be the input or the target.

    Returns:
        The loss: a float, or with "none" an array in the type that is computed in. With `return_grad` and `save`,
        `(loss, grad)`, `(loss, saved)` or `(loss, grad, saved)`.

    Raises:
        ValueError: A shape or a number does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> loss, grad = binary_cross_entropy_with_logits(np.array([0.0, 3.0]), np.array([1.0, 0.0]), return_grad=True)
        >>> round(loss, 4), grad.round(4)
        (1.8709, array([-0.25  ,  0.4763]))

    References:
        Good, Rational decisions, JRSS B 14, 1952. Smoothing: Szegedy et al., arXiv 1512.00567.
    """
    a = number("label_smoothing", label_smoothing, PROBABILITY)
    loss, grad, x, target = _pointwise(
        "bce", input, target, reduction, None, return_grad, out, save, weight, pos_weight, a
    )
    arguments = {"weight": weight, "pos_weight": pos_weight, "smoothing": a}
    saved = LossSaved("binary_cross_entropy_with_logits", x, target, reduction, arguments)
    return _returned(loss, grad, saved, return_grad, save)


def binary_cross_entropy_with_logits_backward(grad_output: Any, saved: LossSaved, *, out: Array | None = None) -> Array:
    """The gradient of `binary_cross_entropy_with_logits` with respect to the logits.

    Args:
        grad_output: The gradient with respect to the loss: a number, or for reduction="none" an array of its shape.
        saved: What `binary_cross_entropy_with_logits(..., save=True)` returned.
        out: Where the gradient goes; may be the input or the target.

    Returns:
        The gradient, of the input's shape and type.

    Raises:
        ValueError: A shape does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> _, saved = binary_cross_entropy_with_logits(np.array([0.0]), np.array([1.0]), save=True)
        >>> binary_cross_entropy_with_logits_backward(1.0, saved)
        array([-0.5])

    References:
        Good, Rational decisions, JRSS B 14, 1952.
    """
    saved = _checked(saved, "binary_cross_entropy_with_logits", grad_output)
    grad = _pointwise(
        "bce", saved.input, saved.target, saved.reduction, grad_output, True, out, False, **saved.arguments
    )[1]
    assert grad is not None
    return grad


def l2_penalty(params: Any, weight_decay: float) -> float:
    r"""The L2 penalty $\frac{\lambda}{2} \sum p^2$ over all parameters, with $\lambda$ = `weight_decay`.

    Its gradient is $\lambda p$: what coupled weight decay adds to the gradient in an optimiser.

    Args:
        params: Arrays, or a nest of them, of the four float types.
        weight_decay: λ, at least 0.

    Returns:
        The penalty. The squares are taken and added in float64, array by array in the order of the sorted keys.

    Raises:
        ValueError: `weight_decay` is negative or not finite.
        TypeError: A leaf is no array of floats.

    Example:
        >>> import numpy as np
        >>> l2_penalty({"w": np.array([3.0, 4.0]), "b": np.zeros(2)}, 0.1)
        1.25

    References:
        Krogh & Hertz, A simple weight decay can improve generalization, NeurIPS 1991.
    """
    decay = number("weight_decay", weight_decay, NOT_NEGATIVE)
    tree = _core.Tree(params, "params")
    sums = []
    for name, leaf in zip(tree.names("params"), tree.leaves, strict=True):
        x = array(leaf, name)
        sums.append(_core.sum_of_squares(c_order(x.ndim).dense(x)))
    return decay / 2.0 * _core.tree_sum(np.array(sums, np.float64))


def l2_penalty_backward(params: Any, weight_decay: float, *, out: Any = None) -> Any:
    r"""The gradient of `l2_penalty`: $\lambda p$ for each parameter.

    Args:
        params: As for `l2_penalty`.
        weight_decay: λ.
        out: Where the gradients go, a nest like `params`.

    Returns:
        A nest like `params`.

    Raises:
        ValueError: A shape does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: A leaf is no array of floats.

    Example:
        >>> import numpy as np
        >>> l2_penalty_backward({"w": np.array([3.0, 4.0])}, 0.5)
        {'w': array([1.5, 2. ])}

    References:
        Krogh & Hertz, A simple weight decay can improve generalization, NeurIPS 1991.
    """
    decay = number("weight_decay", weight_decay, NOT_NEGATIVE)
    tree = _core.Tree(params, "params")
    names = tree.names("params")
    leaves = [array(leaf, name) for leaf, name in zip(tree.leaves, names, strict=True)]
    given = [None] * len(leaves) if out is None else tree.flatten(out, "out")
    outs = [f"out{name.removeprefix('params')}" for name in names]
    refuse_overlaps(list(zip(outs, given, strict=True)))
    named = list(zip(names, leaves, strict=True))
    targets = []
    for i, (out_name, target, x) in enumerate(zip(outs, given, leaves, strict=True)):
        others = named[:i] + named[i + 1 :]
        targets.append(Out(target, out_name, x, memory_order(x), inputs=[named[i]], apart=others))
    for target, x in zip(targets, leaves, strict=True):
        _core.scale(memory_order(x).dense(x), target.buffer, decay)
    return tree.build([target.done() for target in targets])
