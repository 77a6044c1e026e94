"""Batch, layer, group, instance and RMS normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ._arrays import (
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    Array,
    Layout,
    Out,
    array,
    c_order,
    compute,
    contiguous,
    integer,
    is_float,
    like,
    number,
    overlap,
    param,
    refuse_overlaps,
)

__all__ = [
    "BatchNormStats",
    "BatchNormSums",
    "NormGrads",
    "NormSaved",
    "add_rms_norm",
    "add_rms_norm_backward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_stats",
    "batch_norm_sums",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "rms_norm",
    "rms_norm_backward",
]


class NormGrads(NamedTuple):
    """Gradients of a normalisation; `None` for a parameter that there is not."""

    input: Array
    """Of the input, in its dtype and shape."""
    weight: Array | None
    """Of the weight, in its dtype and shape."""
    bias: Array | None
    """Of the bias, in its dtype and shape."""


@dataclass(frozen=True)
class NormSaved:
    """What a forward call keeps for the backward call: the input itself, not a copy, and two numbers for each set."""

    input: Array
    """What was normalised. It must not be changed before the backward call."""
    dense: Array
    """The same as the core reads it: the input itself, or a copy if it lies too oddly in memory."""
    weight: Array | None
    """The weight."""
    bias: Array | None
    """The bias."""
    mean: Any
    """The mean of each set, float64; `None` for RMS normalisation."""
    rstd: Array
    """1 / sqrt(variance + eps) of each set, float64."""
    kind: str
    """Which function saved it."""
    layout: Layout
    """How `dense` lies in memory."""
    shape: tuple[Any, ...]
    """How the core sees it."""
    offset: float = 0.0
    """What is added to the weight."""
    constant: bool = False
    """Whether the statistics do not depend on the input (inference)."""
    shared: bool = False
    """Whether they depend on other inputs as well."""


def _saved(saved: Any, kind: str) -> NormSaved:
    if not isinstance(saved, NormSaved) or saved.kind != kind:
        got = f"that of {saved.kind}" if isinstance(saved, NormSaved) else type(saved).__name__
        raise TypeError(f"saved must be what {kind}(..., save=True) returned, got {got}")
    return saved


def _keeps_input(save: bool, x: Array, out: Any) -> None:
    if save and overlap(x, out) is not False:
        raise ValueError("out must not be the input if save=True, because the backward call needs the input")


def _grads(
    out: Any, saved: NormSaved, inputs: Sequence[tuple[str, Any]], param_shape: tuple[int, ...]
) -> tuple[Out, Array | None, Array | None]:
    """Where the gradients go."""
    if out is None or isinstance(out, np.ndarray):
        given: tuple[Any, Any, Any] = (out, None, None)
    elif isinstance(out, (tuple, list)) and len(out) == 3:
        given = (out[0], out[1], out[2])
    else:
        raise TypeError(f"out must be an array for the gradient of the input, or NormGrads, got {type(out).__name__}")
    x = saved.input
    refuse_overlaps([("out.input", given[0]), ("out.weight", given[1]), ("out.bias", given[2])])
    params = [("weight", saved.weight), ("bias", saved.bias)]
    target = Out(given[0], "out.input", x, saved.layout, inputs=inputs, apart=params)
    results: list[Array | None] = []
    for (name, value), result in zip(params, given[1:], strict=True):
        if value is None:
            if result is not None:
                raise ValueError(f"out.{name} must be None, because the forward call had no {name}")
            results.append(None)
        elif result is None:
            results.append(np.empty(param_shape, value.dtype.newbyteorder("=")))
        else:
            Out(result, f"out.{name}", value, c_order(value.ndim), apart=[*inputs, *params])
            results.append(result)
    return target, results[0], results[1]


# ----------------------------------------------------------------------------------------------------------------------
# Rows: layer and RMS
# ----------------------------------------------------------------------------------------------------------------------


def _normalized_shape(x: Array, normalized_shape: Any) -> tuple[int, ...]:
    given = tuple(normalized_shape) if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
    shape = tuple(integer("normalized_shape", n, 0, 1 << 62) for n in given)
    if not shape or x.shape[max(x.ndim - len(shape), 0) :] != shape:
        raise ValueError(
            f"normalized_shape must be the last dimensions of input, of shape {x.shape}, got {normalized_shape!r}"
        )
    return shape


def _rows(x: Array, normalized: tuple[int, ...]) -> list[int]:
    size = int(np.prod(normalized))
    return [int(np.prod(x.shape[: x.ndim - len(normalized)])), 1, size]


def layer_norm(
    input: Any,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    out: Array | None = None,
    save: bool = False,
) -> Any:
    r"""Normalises over the last dimensions: each sample by itself.

    With $\mu$ and $\sigma^2$ the mean and the biased variance over `normalized_shape`, $\gamma$ = `weight`, $\beta$ =
    `bias`, $\epsilon$ = `eps`:

    $$y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\, \gamma + \beta$$

    The mean is subtracted in two parts, so a large one costs no accuracy.

    Args:
        input: x, float32, float64, float16 or bfloat16, of any layout.
        normalized_shape: The last dimensions of `input`, as torch takes them: a number or several.
        weight: Of shape `normalized_shape`, of any of the four types; ones if `None`.
        bias: Likewise; zeros if `None`.
        eps: Added to the variance.
        out: Where y goes: an array of the input's shape and type, which may be the input itself.
        save: Return `(y, saved)`, with what `layer_norm_backward` needs.

    Returns:
        y, of the input's shape and type; or `(y, saved)`. `saved.mean` and `saved.rstd` are float64.

    Raises:
        ValueError: A shape or a number does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> layer_norm(np.array([[1.0, 3.0], [-5.0, 5.0]]), 2, eps=0.0)
        array([[-1.,  1.],
               [-1.,  1.]])

    References:
        Ba, Kiros & Hinton, Layer normalization, arXiv 1607.06450.
    """
    x = array(input, "input")
    shape = _normalized_shape(x, normalized_shape)
    return _forward_rows("layer_norm", x, shape, weight, bias, eps, 0.0, out, save)


def _forward_rows(
    kind: str,
    x: Array,
    normalized: tuple[int, ...],
    weight: Any,
    bias: Any,
    eps: float,
    offset: float,
    out: Any,
    save: bool,
) -> Any:
    weight, bias = param(weight, "weight", normalized), param(bias, "bias", normalized)
    eps = number("eps", eps, NOT_NEGATIVE)
    offset = number("offset", offset, FINITE)
    layout = c_order(x.ndim)
    _keeps_input(save, x, out)
    params = [("weight", weight), ("bias", bias)]
    y = Out(out, "out", x, layout, inputs=[("input", x)], apart=params)
    dense, shape = layout.dense(x), _rows(x, normalized)
    center = kind == "layer_norm"
    mean, var = _core.norm_rows(dense, None, None, y.buffer, shape, weight, bias, offset, eps, center)
    result = y.done()
    if not save:
        return result
    return result, _saved_rows(kind, x, dense, weight, bias, mean, var, eps, offset, layout, shape)


def _saved_rows(
    kind: str,
    x: Array,
    dense: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    var: Array,
    eps: float,
    offset: float,
    layout: Layout,
    shape: list[int],
) -> NormSaved:
    return NormSaved(x, dense, weight, bias, mean, _rstd(var, eps), kind, layout, (*shape,), offset)


def _backward_rows(saved: NormSaved, grad_output: Any, grad_hidden: Any, out: Any) -> NormGrads:
    x = saved.input
    dy = like(grad_output, "grad_output", x, "input")
    dh = None if grad_hidden is None else like(grad_hidden, "grad_hidden", x, "input")
    param_shape = next((p.shape for p in (saved.weight, saved.bias) if p is not None), ())
    inputs = [("grad_output", dy), ("grad_hidden", dh), ("input", x)]
    dx, dweight, dbias = _grads(out, saved, inputs, param_shape)
    _core.norm_rows_backward(
        saved.dense,
        saved.layout.dense(dy),
        None if dh is None else saved.layout.dense(dh),
        dx.buffer,
        list(saved.shape),
        saved.weight,
        saved.offset,
        saved.mean,
        saved.rstd,
        dweight,
        dbias,
    )
    return NormGrads(dx.done(), dweight, dbias)


def layer_norm_backward(grad_output: Any, saved: NormSaved, *, out: Any = None) -> NormGrads:
    r"""The gradients of `layer_norm`.

    With $\hat x$ the normalised input, $g = \gamma\,\partial L/\partial y$ and means over `normalized_shape`:

    $$\frac{\partial L}{\partial x} = \frac{g - \overline{g} - \hat x\, \overline{g \hat x}}{\sqrt{\sigma^2+\epsilon}},
    \qquad \frac{\partial L}{\partial \gamma} = \sum \hat x\, \frac{\partial L}{\partial y},
    \qquad \frac{\partial L}{\partial \beta} = \sum \frac{\partial L}{\partial y}$$

    Args:
        grad_output: The gradient of the loss with respect to y, of the input's shape.
        saved: What `layer_norm(..., save=True)` returned.
        out: Where the gradients go: an array for that of the input (which may be `grad_output`), or `NormGrads`.

    Returns:
        NormGrads(input, weight, bias); `None` for what the forward call did not have.

    Raises:
        ValueError: A shape does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> _, saved = layer_norm(np.array([[1.0, 3.0, 8.0]]), 3, np.ones(3), np.zeros(3), save=True)
        >>> layer_norm_backward(np.array([[1.0, 1.0, 1.0]]), saved).bias
        array([1., 1., 1.])

    References:
        Ba, Kiros & Hinton, Layer normalization, arXiv 1607.06450.
    """
    return _backward_rows(_saved(saved, "layer_norm"), grad_output, None, out)


def _rms_eps(eps: float | None, dtype: np.dtype[Any]) -> float:
    if eps is not None:
        return eps
    # torch's default: the distance from 1 to the next number of the type that is computed in.
    return float(np.finfo(compute(dtype)).eps)


def rms_norm(
    input: Any,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    eps: float | None = None,
    *,
    offset: float = 0.0,
    out: Array | None = None,
    save: bool = False,
) -> Any:
    r"""Divides by the root mean square over the last dimensions.

    With $\gamma$ = `weight`, $o$ = `offset`, $\epsilon$ = `eps` and the mean over `normalized_shape`:

    $$y = \frac{x}{\sqrt{\overline{x^2} + \epsilon}}\, (o + \gamma)$$

    Args:
        input: x, as for `layer_norm`.
        normalized_shape: As for `layer_norm`.
        weight: Of shape `normalized_shape`; if `None`, nothing is multiplied.
        eps: Added to the mean square; `None` for the machine epsilon of the type that is computed in, as in torch.
        offset: Added to the weight: 1 for Gemma's form, whose weights start at zero.
        out: As for `layer_norm`.
        save: As for `layer_norm`.

    Returns:
        y, of the input's shape and type; or `(y, saved)`.

    Raises:
        ValueError: A shape or a number does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> rms_norm(np.array([[3.0, 4.0], [-1.0, 1.0]]), 2, eps=0.0).round(3)
        array([[ 0.849,  1.131],
               [-1.   ,  1.   ]])

    References:
        Zhang & Sennrich, Root mean square layer normalization, arXiv 1910.07467.
    """
    x = array(input, "input")
    shape = _normalized_shape(x, normalized_shape)
    return _forward_rows("rms_norm", x, shape, weight, None, _rms_eps(eps, x.dtype), offset, out, save)


def rms_norm_backward(grad_output: Any, saved: NormSaved, *, out: Any = None) -> NormGrads:
    r"""The gradients of `rms_norm`.

    With $r = 1/\sqrt{\overline{x^2}+\epsilon}$, $\hat x = r x$ and $g = (o + \gamma)\,\partial L/\partial y$:

    $$\frac{\partial L}{\partial x} = r\,(g - \hat x\, \overline{g \hat x}),
    \qquad \frac{\partial L}{\partial \gamma} = \sum \hat x\, \frac{\partial L}{\partial y}$$

    Args:
        grad_output: The gradient of the loss with respect to y.
        saved: What `rms_norm(..., save=True)` returned.
        out: As for `layer_norm_backward`.

    Returns:
        NormGrads(input, weight, None).

    Raises:
        ValueError: A shape does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> _, saved = rms_norm(np.array([[3.0, 4.0]]), 2, np.ones(2), eps=0.0, save=True)
        >>> rms_norm_backward(np.array([[1.0, 0.0]]), saved).weight.round(3)
        array([0.849, 0.   ])

    References:
        Zhang & Sennrich, Root mean square layer normalization, arXiv 1910.07467.
    """
    return _backward_rows(_saved(saved, "rms_norm"), grad_output, None, out)


def add_rms_norm(
    input: Any,
    residual: Any,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    eps: float | None = None,
    *,
    offset: float = 0.0,
    out: Any = None,
    save: bool = False,
) -> Any:
    """Adds a residual and normalises the sum, in one pass: `hidden = input + residual`, `y = rms_norm(hidden)`.

    The same bits as the two calls one after the other.

    Args:
        input: What is added to the residual.
        residual: The residual stream, of the input's shape; it is converted to the input's type.
        normalized_shape: As for `rms_norm`.
        weight: As for `rms_norm`.
        eps: As for `rms_norm`.
        offset: As for `rms_norm`.
        out: `(y, hidden)`, where the results go; either may be `None`. `hidden` may be `input` or `residual`.
        save: Return `(y, hidden, saved)`.

    Returns:
        (y, hidden), or (y, hidden, saved).

    Raises:
        ValueError: A shape or a number does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> y, hidden = add_rms_norm(np.array([[1.0, 4.0]]), np.array([[2.0, 0.0]]), 2, eps=0.0)
        >>> hidden
        array([[3., 4.]])
        >>> y.round(3)
        array([[0.849, 1.131]])

    References:
        Zhang & Sennrich, Root mean square layer normalization, arXiv 1910.07467.
    """
    x = array(input, "input")
    residual = like(residual, "residual", x, "input")
    normalized = _normalized_shape(x, normalized_shape)
    weight = param(weight, "weight", normalized)
    eps = number("eps", _rms_eps(eps, x.dtype), NOT_NEGATIVE)
    offset = number("offset", offset, FINITE)
    if out is None:
        out = (None, None)
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(f"out must be (y, hidden), got {type(out).__name__}")
    layout = c_order(x.ndim)
    refuse_overlaps([("out[0]", out[0]), ("out[1]", out[1])])
    inputs, apart = [("input", x), ("residual", residual)], [("weight", weight)]
    y = Out(out[0], "out[0]", x, layout, inputs=inputs, apart=apart)
    hidden = Out(out[1], "out[1]", x, layout, inputs=inputs, apart=apart)
    shape = _rows(x, normalized)
    _, var = _core.norm_rows(
        layout.dense(x), layout.dense(residual), hidden.buffer, y.buffer, shape, weight, None, offset, eps, False
    )
    results = (y.done(), hidden.done())
    if not save:
        return results
    saved = _saved_rows(
        "add_rms_norm", hidden.result, hidden.buffer, weight, None, None, var, eps, offset, layout, shape
    )
    return (*results, saved)


def add_rms_norm_backward(grad_output: Any, grad_hidden: Any, saved: NormSaved, *, out: Any = None) -> NormGrads:
    """The gradients of `add_rms_norm`: `rms_norm_backward(grad_output) + grad_hidden`, in one pass.

    Args:
        grad_output: The gradient of the loss with respect to y.
        grad_hidden: That with respect to `hidden` where it is used further on; `None` if it is not.
        saved: What `add_rms_norm(..., save=True)` returned. It holds `hidden`, which must not have been changed.
        out: As for `layer_norm_backward`.

    Returns:
        NormGrads(input, weight, None). `input` is the gradient of both the input and the residual.

    Raises:
        ValueError: A shape does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> x = np.array([[3.0, 4.0]])
        >>> _, _, saved = add_rms_norm(x, x, 2, eps=0.0, save=True)
        >>> add_rms_norm_backward(np.zeros((1, 2)), np.array([[1.0, 2.0]]), saved).input
        array([[1., 2.]])

    References:
        Zhang & Sennrich, Root mean square layer normalization, arXiv 1910.07467.
    """
    return _backward_rows(_saved(saved, "add_rms_norm"), grad_output, grad_hidden, out)


# ----------------------------------------------------------------------------------------------------------------------
# Channels: batch, group and instance
# ----------------------------------------------------------------------------------------------------------------------


class _Channels(NamedTuple):
    """How the core sees an array with channels."""

    layout: Layout
    shape: list[int]
    """Samples, channels, places."""
    last: bool
    """Whether the channels are the fastest in memory."""


def _channels(x: Array, channel_axis: int) -> _Channels:
    if x.ndim < 2:
        raise ValueError(f"input must have samples and channels, so at least 2 dimensions, got shape {x.shape}")
    axis = integer("channel_axis", channel_axis, -x.ndim, x.ndim - 1) % x.ndim
    if axis == 0:
        raise ValueError("channel_axis must not be 0, which is the axis of the samples; add one with input[None]")
    n, c = x.shape[0], x.shape[axis]
    places = [i for i in range(1, x.ndim) if i != axis]
    s = int(np.prod([x.shape[i] for i in places]))
    first, last = Layout((0, axis, *places)), Layout((0, *places, axis))
    # Channels last is also how a matrix lies, and the loop that goes over channels side by side.
    use_last = last.fits(x) and (s == 1 or not first.fits(x))
    return _Channels(last if use_last else first, [n, c, s], use_last)


def batch_norm(
    input: Any,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    unbiased: bool = True,
    num_batches_tracked: Array | None = None,
    stats: BatchNormStats | None = None,
    out: Array | None = None,
    save: bool = False,
) -> Any:
    r"""Normalises each channel over the samples and all other axes.

    With $\mu$ and $\sigma^2$ the mean and the biased variance of a channel in the batch (training) or the running ones
    (inference), $\gamma$ = `weight`, $\beta$ = `bias`, $\epsilon$ = `eps`:

    $$y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\, \gamma + \beta$$

    Training updates the running statistics in place, with $m$ = `momentum`:
    $\mu_\mathrm{run} \leftarrow (1-m)\,\mu_\mathrm{run} + m \mu$, and likewise the variance.

    Args:
        input: x, float32, float64, float16 or bfloat16, of any layout; NCHW and NHWC memory are both fast.
        running_mean: Mean of each channel, updated in place in training. Needed for inference.
        running_var: Variance of each channel, likewise.
        weight: One number for each channel; ones if `None`.
        bias: Likewise; zeros if `None`.
        training: Whether to use, and track, the statistics of this batch.
        momentum: Weight of the new value, as in torch (Keras and flax name the weight of the old one, 1 - m). `None`
            for the cumulative mean over all batches, which needs `num_batches_tracked`.
        eps: Added to the variance. torch, flax and ONNX have 1e-5, Keras 1e-3.
        channel_axis: The axis of the channels: 1 for NC, NCL, NCHW and NCDHW, -1 for NHWC.
        unbiased: Track the unbiased variance, n / (n - 1) times the biased one: True is torch, False is Keras, flax and
            ONNX.
        num_batches_tracked: An int64 array of shape (), increased by 1 in training.
        stats: Statistics to use in training in place of the batch's own, from `batch_norm_stats`, merged over several
            batches or machines. Each call tracks them, so give the running statistics to one call only.
        out: Where y goes: an array of the input's shape and type, which may be the input itself.
        save: Return `(y, saved)`, with what `batch_norm_backward` needs.

    Returns:
        y, of the input's shape and type; or `(y, saved)`. `saved.mean` and `saved.rstd` are float64.

    Raises:
        ValueError: A shape or a number does not fit, there is one value per channel in training (as in torch; allowed
            with `unbiased=False`), or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
        >>> mean, var = np.zeros(2), np.ones(2)
        >>> batch_norm(x, mean, var, training=True, eps=0.0)
        array([[-1., -1.],
               [ 1.,  1.]])
        >>> mean, var
        (array([0.2, 2. ]), array([ 1.1, 20.9]))

    References:
        Ioffe & Szegedy, Batch normalization, arXiv 1502.03167.
    """
    x = array(input, "input")
    view = _channels(x, channel_axis)
    n, c, s = view.shape
    weight, bias = param(weight, "weight", (c,)), param(bias, "bias", (c,))
    eps = number("eps", eps, NOT_NEGATIVE)
    running = _running(running_mean, running_var, c, training)
    _keeps_input(save, x, out)
    params = [("weight", weight), ("bias", bias), ("running_mean", running_mean), ("running_var", running_var)]
    y = Out(out, "out", x, view.layout, inputs=[("input", x)], apart=params)
    if not training:
        if running is None:
            raise ValueError("running_mean and running_var must be given for inference (training=False)")
        mean, rstd = _fixed(*running, eps)
        dense = view.layout.dense(x)
        _core.norm_channels(dense, y.buffer, (view.shape, view.last, 0), weight, bias, eps, (mean, rstd))
        return _saved_channels("batch_norm", y, x, dense, weight, bias, mean, rstd, view, 0, True, save)

    if stats is not None:
        stats = _checked_stats(stats, c)
    count = n * s if stats is None else stats.count
    if unbiased and count == 1:
        raise ValueError(
            f"input must have more than one value per channel in training, got shape {x.shape}; the unbiased "
            "variance of one value does not exist (unbiased=False allows it)"
        )
    factor = _factor(momentum, num_batches_tracked)
    _refuse_running_overlap(running_mean, running_var, [("input", x), ("weight", weight), ("bias", bias)])
    dense = view.layout.dense(x)
    shape = (view.shape, view.last, 0)
    if stats is None:
        mean, m2 = _core.norm_channels(dense, y.buffer, shape, weight, bias, eps, None)
        stats = BatchNormStats(count, mean, m2)
        rstd = _rstd(stats.var(), eps)
    else:
        mean, rstd = stats.mean, _rstd(stats.var(), eps)
        _core.norm_channels(dense, y.buffer, shape, weight, bias, eps, (mean, rstd))
    if count > 0 and num_batches_tracked is not None:
        num_batches_tracked += 1
    if count > 0 and running is not None:
        _track(running, stats.mean, stats.var(unbiased), factor)
    shared = count != n * s
    return _saved_channels("batch_norm", y, x, dense, weight, bias, mean, rstd, view, 0, False, save, shared)


def batch_norm_backward(
    grad_output: Any, saved: NormSaved, *, sums: BatchNormSums | None = None, out: Any = None
) -> NormGrads:
    r"""The gradients of `batch_norm`.

    With $\hat x$ the normalised input and means over a channel; after training

    $$\frac{\partial L}{\partial x} = \frac{\gamma}{\sqrt{\sigma^2+\epsilon}}
    \left(\frac{\partial L}{\partial y} - \overline{\frac{\partial L}{\partial y}}
    - \hat x\, \overline{\hat x \frac{\partial L}{\partial y}}\right),$$

    after inference, whose statistics are constants, without the two means. The gradients of weight and bias are the
    sums of $\hat x\,\partial L/\partial y$ and $\partial L/\partial y$.

    Args:
        grad_output: The gradient of the loss with respect to y, of the input's shape.
        saved: What `batch_norm(..., save=True)` returned.
        sums: If the forward call had `stats` of several batches or machines: the merged `batch_norm_sums` of the same.
        out: As for `layer_norm_backward`.

    Returns:
        NormGrads(input, weight, bias), the latter two of this input alone.

    Raises:
        ValueError: A shape does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> x = np.array([[1.0], [2.0], [6.0]])
        >>> _, saved = batch_norm(x, weight=np.ones(1), training=True, save=True)
        >>> grads = batch_norm_backward(np.array([[1.0], [0.0], [0.0]]), saved)
        >>> grads.input.round(3)
        array([[ 0.176],
               [-0.22 ],
               [ 0.044]])
        >>> grads.weight.round(3)
        array([-0.926])

    References:
        Ioffe & Szegedy, Batch normalization, arXiv 1502.03167.
    """
    saved = _saved(saved, "batch_norm")
    shared = None
    if sums is None and saved.shared:
        raise ValueError(
            "sums must be given, because the forward call had stats of other inputs too: the batch_norm_sums of the "
            "same inputs, merged"
        )
    if sums is not None:
        if not isinstance(sums, BatchNormSums):
            raise TypeError(f"sums must be BatchNormSums, got {type(sums).__name__}")
        c = saved.shape[0][1]
        pair = [contiguous(values, np.float64) for values in (sums.grad, sums.grad_xhat)]
        if pair[0].shape != (c,) or pair[1].shape != (c,):
            raise ValueError(f"sums must be of {c} channels, got {pair[0].shape} and {pair[1].shape}")
        shared = (pair[0], pair[1], number("sums.count", sums.count, POSITIVE))
    return _backward_channels(saved, grad_output, shared, out)


def batch_norm_stats(input: Any, *, channel_axis: int = 1) -> BatchNormStats:
    r"""The statistics of each channel, as a value that can be merged with those of other batches or machines.

    With $\mu$ the mean of a channel: `mean` = $\mu$, `m2` = $\sum (x - \mu)^2$, both float64.

    Args:
        input: As for `batch_norm`.
        channel_axis: As for `batch_norm`.

    Returns:
        BatchNormStats(count, mean, m2).

    Raises:
        ValueError: The input has no samples and channels.
        TypeError: The input is no array of floats.

    Example:
        >>> import numpy as np
        >>> x = np.arange(12.0).reshape(6, 2)
        >>> stats = batch_norm_stats(x[:2]).merge(batch_norm_stats(x[2:]))
        >>> stats
        BatchNormStats(count=6, mean=array([5., 6.]), m2=array([70., 70.]))
        >>> y = batch_norm(x[:2], training=True, stats=stats)

    References:
        Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """
    x = array(input, "input")
    view = _channels(x, channel_axis)
    shape = (view.shape, view.last, 0)
    mean, m2 = _core.norm_channels(view.layout.dense(x), None, shape, None, None, 0.0, None)
    return BatchNormStats(view.shape[0] * view.shape[2], mean, m2)


def batch_norm_sums(grad_output: Any, saved: NormSaved) -> BatchNormSums:
    r"""The sums over each channel that the gradient of `batch_norm` needs, to be merged over batches or machines.

    `grad` = $\sum \partial L/\partial y$ and `grad_xhat` = $\sum \hat x\,\partial L/\partial y$, both float64; of one
    input they are the gradients of bias and weight.

    Args:
        grad_output: The gradient of the loss with respect to y.
        saved: What `batch_norm(..., save=True)` returned.

    Returns:
        BatchNormSums(count, grad, grad_xhat).

    Raises:
        ValueError: A shape does not fit.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> x = np.array([[1.0], [2.0], [6.0]])
        >>> _, saved = batch_norm(x, training=True, save=True)
        >>> batch_norm_sums(np.array([[1.0], [1.0], [2.0]]), saved).grad
        array([4.])

    References:
        Ioffe & Szegedy, Batch normalization, arXiv 1502.03167.
    """
    saved = _saved(saved, "batch_norm")
    x = saved.input
    dy = like(grad_output, "grad_output", x, "input")
    (n, _, s), *_ = saved.shape
    sums = _core.norm_channels_backward(
        saved.dense, saved.layout.dense(dy), None, saved.shape, None, saved.mean, saved.rstd, False, None, None, None
    )
    return BatchNormSums(n * s, *sums)


@dataclass(frozen=True)
class BatchNormStats:
    """Statistics of each channel; see `batch_norm_stats`."""

    count: int
    """Values in a channel."""
    mean: Array
    """Their mean, float64."""
    m2: Array
    """The sum of their squared distances from it, float64."""

    def merge(self, *others: BatchNormStats) -> BatchNormStats:
        r"""The statistics of all together, merged in this order.

        With $n = n_a + n_b$ and $\delta = \mu_b - \mu_a$: $\mu = \mu_a + \delta\, n_b / n$ and
        $M = M_a + M_b + \delta^2\, n_a n_b / n$ (Chan et al. 1979).
        """
        count, mean, m2 = self.count, self.mean, self.m2
        for other in others:
            if np.shape(other.mean) != np.shape(mean):
                raise ValueError(f"others must be of {len(mean)} channels, got {np.shape(other.mean)}")
            if other.count == 0:
                continue
            total = count + other.count
            delta = other.mean - mean
            mean = mean + delta * (other.count / total)
            m2 = (m2 + other.m2) + delta * delta * (count * other.count / total)
            count = total
        return BatchNormStats(count, mean, m2)

    def var(self, unbiased: bool = False) -> Array:
        """The variance of each channel: `m2 / count`, or `m2 / (count - 1)` if `unbiased`."""
        with np.errstate(all="ignore"):
            return self.m2 / np.float64(self.count - unbiased)


@dataclass(frozen=True)
class BatchNormSums:
    """Sums for the gradient; see `batch_norm_sums`."""

    count: int
    """Values in a channel."""
    grad: Array
    """The sum of the gradient, float64."""
    grad_xhat: Array
    """The sum of the gradient times the normalised input, float64."""

    def merge(self, *others: BatchNormSums) -> BatchNormSums:
        """The sums of all together, added in this order."""
        count, grad, grad_xhat = self.count, self.grad, self.grad_xhat
        for other in others:
            if np.shape(other.grad) != np.shape(grad):
                raise ValueError(f"others must be of {len(grad)} channels, got {np.shape(other.grad)}")
            count, grad, grad_xhat = count + other.count, grad + other.grad, grad_xhat + other.grad_xhat
        return BatchNormSums(count, grad, grad_xhat)


def _checked_stats(stats: Any, c: int) -> BatchNormStats:
    if not isinstance(stats, BatchNormStats):
        raise TypeError(f"stats must be BatchNormStats, got {type(stats).__name__}")
    count = integer("stats.count", stats.count, 0, 1 << 62)
    mean, m2 = (np.array(values, np.float64) for values in (stats.mean, stats.m2))
    if mean.shape != (c,) or m2.shape != (c,):
        raise ValueError(f"stats must be of {c} channels, got {mean.shape} and {m2.shape}")
    return BatchNormStats(count, mean, m2)


def _rstd(var: Array, eps: float) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(1.0 / np.sqrt(var + eps))


def _running(mean: Any, var: Any, c: int, training: bool) -> tuple[Array, Array] | None:
    """The running statistics, checked."""
    if (mean is None) != (var is None):
        raise ValueError("running_mean and running_var must be given together, or neither")
    if mean is None:
        return None
    for name, value in (("running_mean", mean), ("running_var", var)):
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{name} must be a NumPy array, got {type(value).__name__}")
        if not is_float(value.dtype):
            raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {value.dtype}")
        if value.shape != (c,):
            raise ValueError(f"{name} must have shape {(c,)}, got {value.shape}")
        if training:
            _core.check_output(value, name)
    return mean, var


def _refuse_running_overlap(mean: Any, var: Any, others: Sequence[tuple[str, Any]]) -> None:
    for named in (("running_mean", mean), ("running_var", var)):
        for other in others:
            refuse_overlaps([other, named])
    refuse_overlaps([("running_mean", mean), ("running_var", var)])


def _fixed(mean: Array, var: Array, eps: float) -> tuple[Array, Array]:
    """Mean and 1 / sqrt(var + eps) from running statistics."""
    # Copies: what is saved stays when the running ones go on.
    return np.array(mean, np.float64), _rstd(np.array(var, np.float64), eps)


def _factor(momentum: float | None, tracked: Any) -> float:
    """The weight of the new value."""
    if tracked is not None:
        if not isinstance(tracked, np.ndarray) or tracked.dtype != np.int64:
            raise TypeError(f"num_batches_tracked must be an int64 array of shape (), got {tracked!r}")
        if tracked.shape != () or not tracked.flags.writeable or tracked < 0:
            raise ValueError(f"num_batches_tracked must be writeable, of shape () and at least 0, got {tracked!r}")
    if momentum is not None:
        return number("momentum", momentum, PROBABILITY)
    if tracked is None:
        raise ValueError("num_batches_tracked must be given for the cumulative mean (momentum=None)")
    return 1.0 / (int(tracked) + 1)


def _track(running: tuple[Array, Array], mean: Array, var: Array, factor: float) -> None:
    """`(1 - factor) * old + factor * new`, in the type that arrays of the old ones' type are computed in."""
    with np.errstate(all="ignore"):
        for old, new in zip(running, (mean, var), strict=True):
            wide = compute(old.dtype)
            old[...] = ((1.0 - factor) * old.astype(wide) + factor * new.astype(wide)).astype(old.dtype)


def _saved_channels(
    kind: str,
    y: Out,
    x: Array,
    dense: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array,
    rstd: Array,
    view: _Channels,
    groups: int,
    constant: bool,
    save: bool,
    shared: bool = False,
) -> Any:
    result = y.done()
    if not save:
        return result
    shape = (view.shape, view.last, groups)
    return result, NormSaved(x, dense, weight, bias, mean, rstd, kind, view.layout, shape, 0.0, constant, shared)


def _backward_channels(saved: NormSaved, grad_output: Any, shared: Any, out: Any) -> NormGrads:
    x = saved.input
    (n, c, s), last, groups = saved.shape
    dy = like(grad_output, "grad_output", x, "input")
    dx, dweight, dbias = _grads(out, saved, [("grad_output", dy), ("input", x)], (c,))
    dy = saved.layout.dense(dy)
    mean, rstd = np.ravel(saved.mean), np.ravel(saved.rstd)
    if groups and s == 1:
        shape = [n, groups, c // groups]
        _core.norm_rows_backward(saved.dense, dy, None, dx.buffer, shape, saved.weight, 0.0, mean, rstd, dweight, dbias)
    else:
        shape_ = ([n, c, s], last, groups)
        _core.norm_channels_backward(
            saved.dense, dy, dx.buffer, shape_, saved.weight, mean, rstd, saved.constant, shared, dweight, dbias
        )
    return NormGrads(dx.done(), dweight, dbias)


def group_norm(
    input: Any,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    out: Array | None = None,
    save: bool = False,
) -> Any:
    r"""Normalises groups of neighbouring channels of each sample.

    With $\mu$ and $\sigma^2$ the mean and the biased variance over the channels of a group and all places, $\gamma$ =
    `weight`, $\beta$ = `bias`, $\epsilon$ = `eps`:

    $$y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\, \gamma + \beta$$

    Args:
        input: x, as for `batch_norm`.
        num_groups: The number of groups; it divides that of the channels.
        weight: One number for each channel; ones if `None`.
        bias: Likewise; zeros if `None`.
        eps: Added to the variance.
        channel_axis: As for `batch_norm`.
        out: As for `batch_norm`.
        save: Return `(y, saved)`, with what `group_norm_backward` needs.

    Returns:
        y, of the input's shape and type; or `(y, saved)`. `saved.mean` and `saved.rstd` have shape (samples, groups).

    Raises:
        ValueError: A shape or a number does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> group_norm(np.array([[1.0, 3.0, -5.0, 5.0]]), 2, eps=0.0)
        array([[-1.,  1., -1.,  1.]])

    References:
        Wu & He, Group normalization, arXiv 1803.08494.
    """
    x = array(input, "input")
    view = _channels(x, channel_axis)
    c = view.shape[1]
    groups = integer("num_groups", num_groups, 1, max(c, 1))
    if c % groups:
        raise ValueError(f"num_groups must divide the number of channels, {c}, got {num_groups}")
    return _forward_groups("group_norm", x, view, groups, weight, bias, eps, out, save)[0]


def _forward_groups(
    kind: str,
    x: Array,
    view: _Channels,
    groups: int,
    weight: Any,
    bias: Any,
    eps: float,
    out: Any,
    save: bool,
    apart: Sequence[tuple[str, Any]] = (),
) -> tuple[Any, Array, Array]:
    """What the caller gets, and the mean and the biased variance of each group."""
    n, c, s = view.shape
    weight, bias = param(weight, "weight", (c,)), param(bias, "bias", (c,))
    eps = number("eps", eps, NOT_NEGATIVE)
    _keeps_input(save, x, out)
    params = [("weight", weight), ("bias", bias), *apart]
    y = Out(out, "out", x, view.layout, inputs=[("input", x)], apart=params)
    dense = view.layout.dense(x)
    if s == 1:
        # The channels of a group lie side by side: a row of several sets.
        shape = [n, groups, c // groups]
        mean, var = _core.norm_rows(dense, None, None, y.buffer, shape, weight, bias, 0.0, eps, True)
    else:
        mean, m2 = _core.norm_channels(dense, y.buffer, (view.shape, view.last, groups), weight, bias, eps, None)
        with np.errstate(all="ignore"):
            var = m2 / np.float64(c // groups * s)
    mean, var = mean.reshape(n, groups), var.reshape(n, groups)
    result = _saved_channels(kind, y, x, dense, weight, bias, mean, _rstd(var, eps), view, groups, False, save)
    return result, mean, var


def group_norm_backward(grad_output: Any, saved: NormSaved, *, out: Any = None) -> NormGrads:
    r"""The gradients of `group_norm`.

    With $\hat x$ the normalised input, $g = \gamma\,\partial L/\partial y$ and means over a group of a sample:

    $$\frac{\partial L}{\partial x} = \frac{g - \overline{g} - \hat x\, \overline{g \hat x}}{\sqrt{\sigma^2+\epsilon}}$$

    The gradients of weight and bias are the sums over samples and places of $\hat x\,\partial L/\partial y$ and
    $\partial L/\partial y$.

    Args:
        grad_output: The gradient of the loss with respect to y, of the input's shape.
        saved: What `group_norm(..., save=True)` returned.
        out: As for `layer_norm_backward`.

    Returns:
        NormGrads(input, weight, bias).

    Raises:
        ValueError: A shape does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> x = np.array([[1.0, 3.0, 4.0, 8.0]])
        >>> _, saved = group_norm(x, 2, bias=np.zeros(4), save=True)
        >>> group_norm_backward(np.array([[1.0, 2.0, 3.0, 4.0]]), saved).bias
        array([1., 2., 3., 4.])

    References:
        Wu & He, Group normalization, arXiv 1803.08494.
    """
    return _backward_channels(_saved(saved, "group_norm"), grad_output, None, out)


def instance_norm(
    input: Any,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    out: Array | None = None,
    save: bool = False,
) -> Any:
    r"""Normalises each channel of each sample.

    With $\mu$ and $\sigma^2$ the mean and the biased variance over all places, $\gamma$ = `weight`, $\beta$ = `bias`,
    $\epsilon$ = `eps`:

    $$y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\, \gamma + \beta$$

    Args:
        input: x, as for `batch_norm`, with at least one axis of places.
        running_mean: Updated in place as in `batch_norm`, with the mean over the samples, if `use_input_stats`; else
            used.
        running_var: Likewise, with the mean of the unbiased variances, as in torch.
        weight: One number for each channel; ones if `None`.
        bias: Likewise; zeros if `None`.
        use_input_stats: Whether to use the statistics of the input, or the running ones.
        momentum: Weight of the new value.
        eps: Added to the variance.
        channel_axis: As for `batch_norm`.
        out: As for `batch_norm`.
        save: Return `(y, saved)`, with what `instance_norm_backward` needs.

    Returns:
        y, of the input's shape and type; or `(y, saved)`. `saved.mean` and `saved.rstd` have shape (samples, channels).

    Raises:
        ValueError: A shape or a number does not fit, there is one value per channel, or arrays overlap in memory.
            Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> instance_norm(np.array([[[1.0, 3.0], [-5.0, 5.0]]]), eps=0.0)
        array([[[-1.,  1.],
                [-1.,  1.]]])

    References:
        Ulyanov, Vedaldi & Lempitsky, Instance normalization, arXiv 1607.08022.
    """
    x = array(input, "input")
    view = _channels(x, channel_axis)
    n, c, s = view.shape
    running = _running(running_mean, running_var, c, use_input_stats)
    named = [("running_mean", running_mean), ("running_var", running_var)]
    if not use_input_stats:
        if running is None:
            raise ValueError("running_mean and running_var must be given if use_input_stats is False")
        weight, bias = param(weight, "weight", (c,)), param(bias, "bias", (c,))
        eps = number("eps", eps, NOT_NEGATIVE)
        _keeps_input(save, x, out)
        params = [("weight", weight), ("bias", bias), *named]
        y = Out(out, "out", x, view.layout, inputs=[("input", x)], apart=params)
        mean, rstd = _fixed(*running, eps)
        dense = view.layout.dense(x)
        _core.norm_channels(dense, y.buffer, (view.shape, view.last, 0), weight, bias, eps, (mean, rstd))
        return _saved_channels("instance_norm", y, x, dense, weight, bias, mean, rstd, view, 0, True, save)
    if s == 1:
        raise ValueError(f"input must have more than one value per channel of a sample, got shape {x.shape}")
    factor = _factor(momentum, None)
    _refuse_running_overlap(running_mean, running_var, [("input", x), ("weight", weight), ("bias", bias)])
    result, mean, var = _forward_groups("instance_norm", x, view, c, weight, bias, eps, out, save, named)
    if running is not None and n * s > 0:
        # A sum in a fixed order, sample by sample.
        means, variances = (np.add.accumulate(values, axis=0)[-1] / n for values in (mean, var * (s / (s - 1))))
        _track(running, means, variances, factor)
    return result


def instance_norm_backward(grad_output: Any, saved: NormSaved, *, out: Any = None) -> NormGrads:
    r"""The gradients of `instance_norm`; the equations are those of `group_norm_backward` with one channel in a group.

    Args:
        grad_output: The gradient of the loss with respect to y, of the input's shape.
        saved: What `instance_norm(..., save=True)` returned.
        out: As for `layer_norm_backward`.

    Returns:
        NormGrads(input, weight, bias).

    Raises:
        ValueError: A shape does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> _, saved = instance_norm(np.array([[[1.0, 3.0, 8.0]]]), bias=np.zeros(1), save=True)
        >>> instance_norm_backward(np.array([[[1.0, 2.0, 3.0]]]), saved).bias
        array([6.])

    References:
        Ulyanov, Vedaldi & Lempitsky, Instance normalization, arXiv 1607.08022.
    """
    return _backward_channels(_saved(saved, "instance_norm"), grad_output, None, out)
