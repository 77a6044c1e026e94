"""Activations: ReLU and GELU."""

from __future__ import annotations

from typing import Any

from .. import _core
from ._arrays import Array, Out, array, like, memory_order

__all__ = ["gelu", "gelu_backward", "relu", "relu_backward"]


def relu(input: Any, *, out: Array | None = None) -> Array:
    """The positive part, `max(x, 0)`; NaN and -0 stay as they are.

    Args:
        input: x, float32, float64, float16 or bfloat16, of any layout.
        out: Where the result goes; may be the input.

    Returns:
        An array of the input's shape and type.

    Raises:
        ValueError: `out` does not fit, or overlaps the input. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> relu(np.array([-1.0, 0.0, 2.0]))
        array([0., 0., 2.])

    References:
        Nair & Hinton, Rectified linear units improve restricted Boltzmann machines, ICML 2010.
    """
    x = array(input, "input")
    layout = memory_order(x)
    y = Out(out, "out", x, layout, inputs=[("input", x)])
    _core.activation("relu", layout.dense(x), None, y.buffer)
    return y.done()


def relu_backward(grad_output: Any, input: Any, *, out: Array | None = None) -> Array:
    """The gradient of `relu`: that of the result where the input is above 0 or NaN, else 0, as in torch.

    Args:
        grad_output: The gradient with respect to the result.
        input: What `relu` was called with, or its result.
        out: Where the gradient goes; may be `grad_output` or `input`.

    Returns:
        The gradient with respect to the input, of its shape and type.

    Raises:
        ValueError: A shape does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> relu_backward(np.array([1.0, 2.0, 3.0]), np.array([-1.0, 0.0, 2.0]))
        array([0., 0., 3.])

    References:
        Nair & Hinton, Rectified linear units improve restricted Boltzmann machines, ICML 2010.
    """
    x = array(input, "input")
    dy = like(grad_output, "grad_output", x, "input")
    layout = memory_order(x)
    dx = Out(out, "out", x, layout, inputs=[("grad_output", dy), ("input", x)])
    _core.activation("relu", layout.dense(x), layout.dense(dy), dx.buffer)
    return dx.done()


def _gelu(approximate: str) -> str:
    if approximate not in ("none", "tanh"):
        raise ValueError(f'approximate must be "none" or "tanh", got {approximate!r}')
    return "gelu" if approximate == "none" else "gelu_tanh"


def gelu(input: Any, approximate: str = "none", *, out: Array | None = None) -> Array:
    r"""The Gaussian error linear unit, $x\, \Phi(x)$.

    With $\Phi$ the normal distribution function, or for `approximate="tanh"`
    $\frac{1}{2}(1 + \tanh(\sqrt{2/\pi}\,(x + 0.044715\, x^3)))$ in its place. Computed in float64 for every type, and
    rounded once.

    Args:
        input: x, float32, float64, float16 or bfloat16, of any layout.
        approximate: "none" or "tanh".
        out: Where the result goes; may be the input.

    Returns:
        An array of the input's shape and type.

    Raises:
        ValueError: An argument does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> gelu(np.array([-1.0, 0.0, 2.0])).round(4)
        array([-0.1587,  0.    ,  1.9545])

    References:
        Hendrycks & Gimpel, Gaussian error linear units, arXiv 1606.08415.
    """
    name = _gelu(approximate)
    x = array(input, "input")
    layout = memory_order(x)
    y = Out(out, "out", x, layout, inputs=[("input", x)])
    _core.activation(name, layout.dense(x), None, y.buffer)
    return y.done()


def gelu_backward(grad_output: Any, input: Any, approximate: str = "none", *, out: Array | None = None) -> Array:
    r"""The gradient of `gelu`: that of the result times $\Phi(x) + x\, \varphi(x)$, $\varphi$ being the normal density.

    Args:
        grad_output: The gradient with respect to the result.
        input: What `gelu` was called with.
        approximate: As for `gelu`.
        out: Where the gradient goes; may be `grad_output` or `input`.

    Returns:
        The gradient with respect to the input, of its shape and type.

    Raises:
        ValueError: An argument does not fit, or arrays overlap in memory. Nothing was changed.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> gelu_backward(np.ones(3), np.array([-1.0, 0.0, 2.0])).round(4)
        array([-0.0833,  0.5   ,  1.0852])

    References:
        Hendrycks & Gimpel, Gaussian error linear units, arXiv 1606.08415.
    """
    name = _gelu(approximate)
    x = array(input, "input")
    dy = like(grad_output, "grad_output", x, "input")
    layout = memory_order(x)
    dx = Out(out, "out", x, layout, inputs=[("grad_output", dy), ("input", x)])
    _core.activation(name, layout.dense(x), layout.dense(dy), dx.buffer)
    return dx.done()
