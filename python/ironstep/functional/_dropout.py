"""Dropout of elements, channels and samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core
from ._arrays import PROBABILITY, Array, Out, array, c_order, integer, number, unmasked
from ._norm import _channels

__all__ = [
    "DropoutSaved",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_backward",
    "stochastic_depth",
]

_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class DropoutSaved:
    """What a forward call keeps for the backward call: some numbers, from which the mask is made again."""

    p: float
    """The probability to drop; 0 in inference."""
    seed: int | None
    """The key of the random numbers; `None` where none are needed."""
    stream: int
    """Which of the sequences of this seed."""
    offset: int
    """Where in it the first number is."""
    shape: tuple[int, ...]
    """Of the input."""
    units: str = "element"
    """What is dropped as a whole: "element", "channel", "row" or "batch"."""
    channel_axis: int = 1
    """The axis of the channels."""
    mask: Array | None = None
    """The caller's mask, if there was one."""


def dropout(
    input: Any,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    seed: int | None = None,
    stream: int = 0,
    offset: int = 0,
    mask: Any = None,
    out: Array | None = None,
    save: bool = False,
) -> Any:
    r"""Sets each element to zero with probability `p`, and scales the others so that the mean stays.

    With $u_i$ uniform on $[0, 1)$ (a multiple of $2^{-32}$):

    $$y_i = \begin{cases} x_i / (1 - p) & u_i \ge p \\ 0 & u_i < p \end{cases}$$

    Element `i` in C order is decided by number `offset + i` of the sequence `(seed, stream)` of Philox4x32-10 and by
    nothing else: not by the number of threads, the memory layout, or how the array is cut. No mask is stored; the
    backward call makes it again. What is dropped is zero even if it was infinite or NaN; p = 0 and p = 1 are exact.

    Args:
        input: x, float32, float64, float16 or bfloat16, of any layout.
        p: The probability to drop.
        training: If `False`, the result is the input.
        inplace: Write into the input.
        seed: The key, from 0 to 2^64 - 1. Needed in training unless `p` is 0 or 1 or a mask is given.
        stream: Which sequence of this seed, from 0 to 2^64 - 1: take another one for each layer and step.
        offset: Where in the sequence to begin: the part of an array that begins at element `k` has offset `k`.
        mask: Keep where this is true, whatever the seed; of the input's shape or broadcast to it.
        out: Where y goes: an array of the input's shape and type, which may be the input itself.
        save: Return `(y, saved)`, with what `dropout_backward` needs.

    Returns:
        y, of the input's shape and type; or `(y, saved)`.

    Raises:
        ValueError: A number or a shape does not fit, no seed was given, or arrays overlap in memory. Nothing was
            changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> x = np.ones(8)
        >>> y, saved = dropout(x, 0.5, seed=1, save=True)
        >>> y
        array([2., 2., 0., 2., 0., 0., 0., 0.])
        >>> bool((dropout_backward(x, saved) == y).all())
        True
        >>> dropout(x[3:], 0.5, seed=1, offset=3)
        array([2., 0., 0., 0., 0.])

    References:
        Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, JMLR 15, 2014.
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
    """
    return _forward("element", input, p, training, inplace, seed, stream, offset, mask, out, save)


def _forward(
    units: str,
    input: Any,
    p: float,
    training: bool,
    inplace: bool,
    seed: Any,
    stream: Any,
    offset: Any,
    mask: Any,
    out: Any,
    save: bool,
    channel_axis: int = 1,
) -> Any:
    x = array(input, "input")
    p = number("p", p, PROBABILITY)
    stream, offset = integer("stream", stream, 0, _WORD), integer("offset", offset, 0, _WORD)
    if seed is not None:
        seed = integer("seed", seed, 0, _WORD)
    if mask is not None:
        mask = _checked_mask(mask, x.shape)
    elif training and 0.0 < p < 1.0 and seed is None:
        raise ValueError("seed must be given in training: the same seed and stream give the same mask")
    if inplace:
        if out is not None and out is not x:
            raise ValueError("out must not be given with inplace=True")
        if not isinstance(input, np.ndarray):
            raise TypeError(f"input must be a NumPy array if inplace=True, got {type(input).__name__}")
        out = x
    if training:
        saved = DropoutSaved(p, seed, stream, offset, x.shape, units, channel_axis, mask)
    else:
        saved = DropoutSaved(0.0, None, 0, 0, x.shape, units, channel_axis)
    y = _apply(x, "input", saved, out)
    return (y, saved) if save else y


def _checked_mask(mask: Any, shape: tuple[int, ...]) -> Array:
    mask = unmasked(mask, "mask")
    if mask.dtype != np.bool_:
        raise TypeError(f"mask must be an array of bool, got {mask.dtype}")
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(f"mask must be broadcast to the shape of input, {shape}, got shape {mask.shape}") from None


def _apply(x: Array, name: str, saved: DropoutSaved, out: Any) -> Array:
    layout, units = c_order(x.ndim), None
    exact = saved.p == 1.0 or (saved.p == 0.0 and saved.mask is None)
    if not exact and saved.mask is None:
        layout, units = _units(x, saved)
    y = Out(out, "out", x, layout, inputs=[(name, x)], apart=[("mask", saved.mask)])
    if exact:
        # No number is needed.
        y.result[...] = x if saved.p == 0.0 else 0
        return y.result
    dense = layout.dense(x)
    if saved.mask is not None:
        _core.dropout_mask(dense, y.buffer, saved.p, np.ascontiguousarray(saved.mask).reshape(-1).view(np.uint8))
    else:
        assert saved.seed is not None
        _core.dropout_draw(dense, y.buffer, saved.p, saved.seed, saved.stream, saved.offset, units)
    return y.done()


def _units(x: Array, saved: DropoutSaved) -> tuple[Any, tuple[int, int, int] | None]:
    """The layout to work in, and (units, elements of each, columns), or `None` for single elements."""
    if saved.units == "element":
        return c_order(x.ndim), None
    if saved.units == "channel":
        layout, (n, c, s), last = _channels(x, saved.channel_axis)
        return layout, (n * c, s, max(c, 1) if last else 1)
    count = x.shape[0] if saved.units == "row" and x.size else 1
    return c_order(x.ndim), (count, x.size // count, 1)


def dropout_backward(grad_output: Any, saved: DropoutSaved, *, out: Array | None = None) -> Array:
    r"""The gradient of any dropout here: that of the result, divided by $1 - p$ where kept, 0 elsewhere.

    Args:
        grad_output: The gradient of the loss with respect to y, of the input's shape.
        saved: What the forward call returned with `save=True`.
        out: Where the gradient goes; may be `grad_output`.

    Returns:
        The gradient with respect to the input, of the type of `grad_output`.

    Raises:
        ValueError: A shape does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> y, saved = dropout(np.ones(4), 0.5, seed=1, save=True)
        >>> dropout_backward(np.array([1.0, 2.0, 3.0, 4.0]), saved)
        array([2., 4., 0., 8.])

    References:
        Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, JMLR 15, 2014.
    """
    if not isinstance(saved, DropoutSaved):
        raise TypeError(f"saved must be what dropout(..., save=True) returned, got {type(saved).__name__}")
    dy = array(grad_output, "grad_output")
    if dy.shape != saved.shape:
        raise ValueError(f"grad_output must have the shape of input, {saved.shape}, got {dy.shape}")
    return _apply(dy, "grad_output", saved, out)


_CHANNELS_DOC = """Sets whole channels of a batch of {what} to zero with probability `p`, and scales the others.

    As `dropout`, but one random number decides about a channel of a sample: number `offset + n * C + c` about channel
    `c` of sample `n`, whatever the memory layout.

    Args:
        input: x, of shape {shape}; with another `channel_axis`, the channels are there.
        p: The probability to drop.
        training: If `False`, the result is the input.
        inplace: Write into the input.
        channel_axis: The axis of the channels.
        seed: As for `dropout`.
        stream: As for `dropout`.
        offset: As for `dropout`, counted in channels.
        out: As for `dropout`.
        save: As for `dropout`.

    Returns:
        y, of the input's shape and type; or `(y, saved)`.

    Raises:
        ValueError: A number or a shape does not fit, no seed was given, or arrays overlap in memory. Nothing was
            changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> {name}(np.ones({example}), 0.5, seed=1).reshape(3, 2)
        array([[2., 2.],
               [2., 2.],
               [0., 0.]])

    References:
        Tompson et al., Efficient object localization using convolutional networks, arXiv 1411.4280.
    """


def _channel_dropout(name: str, ndim: int, what: str, shape: str, example: str) -> Any:
    def function(
        input: Any,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
        *,
        channel_axis: int = 1,
        seed: int | None = None,
        stream: int = 0,
        offset: int = 0,
        out: Array | None = None,
        save: bool = False,
    ) -> Any:
        if np.ndim(input) != ndim:
            raise ValueError(f"input must have {ndim} dimensions, {shape}, got shape {np.shape(input)}")
        _channels(array(input, "input"), channel_axis)
        return _forward("channel", input, p, training, inplace, seed, stream, offset, None, out, save, channel_axis)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = _CHANNELS_DOC.format(name=name, what=what, shape=shape, example=example)
    return function


dropout1d = _channel_dropout("dropout1d", 3, "sequences", "(N, C, L)", "(1, 3, 2)")
dropout2d = _channel_dropout("dropout2d", 4, "images", "(N, C, H, W)", "(1, 3, 1, 2)")
dropout3d = _channel_dropout("dropout3d", 5, "volumes", "(N, C, D, H, W)", "(1, 3, 1, 1, 2)")


def stochastic_depth(
    input: Any,
    p: float,
    mode: str = "row",
    training: bool = True,
    *,
    seed: int | None = None,
    stream: int = 0,
    offset: int = 0,
    out: Array | None = None,
    save: bool = False,
) -> Any:
    r"""Sets whole samples of the branch of a residual block to zero with probability `p`, and scales the others.

    As `dropout`, but number `offset + n` decides about sample `n`, or number `offset` about all.

    Args:
        input: x; its first axis is that of the samples.
        p: The probability to drop.
        mode: "row" to decide about each sample, "batch" to decide about all together.
        training: If `False`, the result is the input.
        seed: As for `dropout`.
        stream: As for `dropout`.
        offset: As for `dropout`, counted in samples.
        out: As for `dropout`.
        save: As for `dropout`.

    Returns:
        y, of the input's shape and type; or `(y, saved)`.

    Raises:
        ValueError: A number or a shape does not fit, no seed was given, or arrays overlap in memory. Nothing was
            changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> stochastic_depth(np.ones((3, 2)), 0.5, seed=1)
        array([[2., 2.],
               [2., 2.],
               [0., 0.]])

    References:
        Huang et al., Deep networks with stochastic depth, arXiv 1603.09382.
    """
    if mode not in ("row", "batch"):
        raise ValueError(f'mode must be "row" or "batch", got {mode!r}')
    if np.ndim(input) == 0:
        raise ValueError("input must have an axis of samples, got shape ()")
    return _forward(mode, input, p, training, False, seed, stream, offset, None, out, save)
