"""Normalisation, dropout, losses and activations beside torch, JAX and NumPy: interleaved, medians, one table.

    python benches/layers.py [--only TEXT] [--out FOLDER] [--seconds S] [--threads N] [--keep-memory]

The contestants take turns as in `peers.py`. All work on the same arrays (JAX on copies) and allocate their results, as
their users get them; only `ironstep out=` and the C loop write to arrays that are there. A large part of the time of a
large result may be page faults: `--keep-memory` spares everybody those. Where torch has several ways, the fastest
counts. Gradients are those of the input and of all parameters. Before a work item is timed, everybody's results are
compared with ironstep's.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from timing import Contestants, M, Step, Work, compiled, machine, measure, optional, parser, report

import ironstep
from ironstep import functional

torch = optional("torch")
nn = torch and torch.nn.functional
aten = torch and torch.ops.aten

Array = Any
F32, BF16 = np.float32, ml_dtypes.bfloat16
EPS = 1e-5
DROPPED = 0.1
SMOOTHING = 0.1
IMAGES = 32, 64, 56, 56
"""Batch, channels, height, width."""


# -- What is done with a layer -----------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A layer on given arrays, as each contestant spells it."""

    x: Array
    dy: Array
    params: list[Array]
    own: Callable[..., Any]
    """`own(out=None, save=False)`"""
    own_backward: Callable[..., Any]
    """`own_backward(dy, saved, out=None)`"""
    torch: Callable[..., Any]
    """`torch(x, *params)`"""
    numpy: Callable[..., Any] | None = None
    """`numpy(x, *params)`, in float32: the result, and what the backward function needs."""
    numpy_backward: Callable[..., Any] | None = None
    """`numpy_backward(dy, *kept)`: the gradients."""
    aten: Callable[..., Step] | None = None
    """`aten(dy, x, *params)`: torch's backward operator without autograd, ready to be called."""
    jax: tuple[str, str, Callable[[Any], Any]] | None = None
    """Name of the contestant, the module that it needs, and from that module the function of `(x, *params)`."""
    channels_last: bool = False
    """torch gets views of shape NCHW."""
    c_loop: bool = False
    """Compare with `layers.c` as well."""


def forward(layer: Layer) -> Contestants:
    """The result alone."""
    out = np.empty_like(layer.x)
    contestants: Contestants = {"ironstep": layer.own, "ironstep out=": lambda: layer.own(out=out)}
    if torch:
        x, *params = tensors(layer, layer.x, *layer.params)

        def step() -> Any:
            with torch.no_grad():
                return layer.torch(x, *params)

        contestants["torch"] = step
    contestants |= jax_step(layer, "forward")
    if layer.numpy:
        contestants["NumPy"] = lambda: numpy_forward(layer)[0]
    agree(contestants)
    return contestants | c_loop(layer, "forward", layer.x, out)


def backward(layer: Layer) -> Contestants:
    """The gradients, from what the forward pass has kept."""
    out, (_, saved) = np.empty_like(layer.x), layer.own(save=True)
    contestants: Contestants = {
        "ironstep": lambda: layer.own_backward(layer.dy, saved),
        "ironstep out=": lambda: layer.own_backward(layer.dy, saved, out=out),
    }
    if torch:
        dy, *inputs = tensors(layer, layer.dy, layer.x, *layer.params)
        leaves = [t.detach().requires_grad_() for t in inputs]
        y = layer.torch(*leaves)
        contestants["torch"] = lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)
        if layer.aten:
            contestants["torch aten"] = layer.aten(dy, *inputs)
    contestants |= jax_step(layer, "backward")
    if layer.numpy:
        kept = numpy_forward(layer)[1]
        contestants["NumPy"] = lambda: numpy_backward(layer, kept)
    agree(contestants)
    return contestants | c_loop(layer, "backward", layer.x, layer.dy, out)


def both(layer: Layer) -> Contestants:
    """The result, then the gradients."""
    out, out_grad = np.empty_like(layer.x), np.empty_like(layer.x)

    def own(out: Array = None, out_grad: Array = None) -> Any:
        y, saved = layer.own(out=out, save=True)
        return y, layer.own_backward(layer.dy, saved, out=out_grad)

    contestants: Contestants = {"ironstep": own, "ironstep out=": lambda: own(out, out_grad)}
    if torch:
        dy, *inputs = tensors(layer, layer.dy, layer.x, *layer.params)
        leaves = [t.detach().requires_grad_() for t in inputs]

        def step() -> Any:
            y = layer.torch(*leaves)
            return y, torch.autograd.grad(y, leaves, dy)

        contestants["torch"] = step
    contestants |= jax_step(layer, "both")
    if layer.numpy:

        def numpy_both() -> Any:
            y, kept = numpy_forward(layer)
            return y, numpy_backward(layer, kept)

        contestants["NumPy"] = numpy_both
    agree(contestants)
    return contestants


def tensors(layer: Layer, *arrays: Array) -> Iterator[Any]:
    """Tensors over the same memory."""
    for array in arrays:
        if array.dtype == BF16:
            tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(array)
        yield tensor.permute(0, 3, 1, 2) if layer.channels_last and array.ndim == 4 else tensor


def numpy_forward(layer: Layer) -> Any:
    """bfloat16 is computed in float32, as everybody does."""
    y, kept = layer.numpy(*(a.astype(F32, copy=False) for a in (layer.x, *layer.params)))
    return y.astype(layer.x.dtype, copy=False), kept


def numpy_backward(layer: Layer, kept: Any) -> Any:
    grads = layer.numpy_backward(layer.dy.astype(F32, copy=False), *kept)
    return [grad.astype(layer.x.dtype, copy=False) for grad in grads]


def jax_step(layer: Layer, part: str) -> Contestants:
    """The layer under jit; the backward pass begins with the residuals of a forward pass."""
    if not layer.jax:
        return {}
    name, needed, make = layer.jax
    if not (jax := optional("jax")) or not (module := optional(needed)):
        return {}
    function = make(module)
    dy, *inputs = [jax.numpy.array(a) for a in (layer.dy, layer.x, *layer.params)]

    def whole(dy: Any, *inputs: Any) -> Any:
        y, pull_back = jax.vjp(function, *inputs)
        return y, pull_back(dy)

    if part == "forward":
        run, args = jax.jit(function), inputs
    elif part == "backward":
        run, args = jax.jit(lambda pull_back, dy: pull_back(dy)), (jax.vjp(jax.jit(function), *inputs)[1], dy)
    else:
        run, args = jax.jit(whole), (dy, *inputs)
    return {name: lambda: jax.block_until_ready(run(*args))}


def c_loop(layer: Layer, part: str, *arrays: Array) -> Contestants:
    """`layers.c` over the same arrays."""
    if not layer.c_loop or not (library := compiled("layers.c")):
        return {}
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
    size, threads = ctypes.c_long(layer.x.size), ctypes.c_int(ironstep.get_num_threads())
    function = getattr(library, part)
    return {"C loop": lambda: function(*pointers, size, threads)}


# -- The same results --------------------------------------------------------------------------------------------------


def arrays_of(result: Any) -> Iterator[Array]:
    """The arrays of a result in order, without what is None."""
    if isinstance(result, (tuple, list)):
        for part in result:
            yield from arrays_of(part)
    elif torch and isinstance(result, torch.Tensor):
        result = result.detach()
        yield result.view(torch.int16).numpy().view(BF16) if result.dtype == torch.bfloat16 else result.numpy()
    elif result is not None:
        yield np.asarray(result)


def agree(contestants: Contestants) -> None:
    """Compares all results with ironstep's, in units of the largest element; of very large arrays some rows.

    torch sums the gradients of a layer norm's parameters in bfloat16 if the input is: off by 9 % over 4096 rows.
    """
    want = [array.copy() for array in arrays_of(contestants["ironstep"]())]
    for name, step in contestants.items():
        for i, (a, b) in enumerate(zip(arrays_of(step()), want, strict=True)):
            if a.ndim == 4 and a.shape != b.shape:
                a = np.moveaxis(a, 1, -1)  # torch's view of channels last
            rows = slice(None, None, 1 + b.size // (16 * M)) if b.ndim > 1 else ...
            got, wanted = a[rows].astype(F32), b[rows].astype(F32)
            tolerance = 2e-4 if b.dtype != BF16 else 2e-2 if b.ndim > 1 else 0.15
            atol = tolerance * float(np.max(np.abs(wanted)))
            np.testing.assert_allclose(got, wanted, rtol=0, atol=atol, err_msg=f"{name}, result {i}")


# -- Normalisation -----------------------------------------------------------------------------------------------------


def normal(*shape: int, dtype: Any = F32, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, F32).astype(dtype, copy=False)


def affine(n: int, dtype: Any = F32) -> list[Array]:
    """Weight and bias."""
    return [(1 + 0.1 * normal(n, seed=2)).astype(dtype, copy=False), normal(n, dtype=dtype, seed=3)]


def images(channels_last: bool, dtype: Any = F32) -> tuple[Array, Array]:
    n, c, h, w = IMAGES
    shape = (n, h, w, c) if channels_last else IMAGES
    return normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)


def numpy_normalised(x: Array, axes: Any) -> tuple[Array, Array]:
    """As one writes it in NumPy with some care: no square of a difference that is computed twice."""
    x = x - x.mean(axes, keepdims=True)
    rstd = 1 / np.sqrt((x * x).mean(axes, keepdims=True) + EPS)
    return x * rstd, rstd


def numpy_gradient(g: Array, xhat: Array, rstd: Array, axes: Any) -> Array:
    return rstd * (g - g.mean(axes, keepdims=True) - xhat * (g * xhat).mean(axes, keepdims=True))


def flax(make: Callable[[Any], Any], *names: str, **variables: Any) -> tuple[str, str, Callable[[Any], Any]]:
    """A module of flax as a function of `(x, *params)`; `variables` is what it has besides parameters."""

    def build(linen: Any) -> Callable[..., Any]:
        def function(x: Any, *params: Any) -> Any:
            given = {"params": dict(zip(names, params, strict=True)), **variables}
            return make(linen).apply(given, x, mutable=list(variables))[0]

        return function

    return "flax jit", "flax.linen", build


def layer_norm(rows: int, columns: int, dtype: Any = F32) -> Layer:
    x, dy = normal(rows, columns, dtype=dtype), normal(rows, columns, dtype=dtype, seed=1)
    w, b = affine(columns, dtype)
    shape = (columns,)

    def numpy(x: Array, w: Array, b: Array) -> Any:
        xhat, rstd = numpy_normalised(x, -1)
        return xhat * w + b, (xhat, rstd, w)

    def numpy_backward(dy: Array, xhat: Array, rstd: Array, w: Array) -> Any:
        return numpy_gradient(dy * w, xhat, rstd, -1), (dy * xhat).sum(0), dy.sum(0)

    def direct(dy: Any, x: Any, w: Any, b: Any) -> Step:
        _, mean, rstd = torch.native_layer_norm(x, shape, w, b, EPS)
        return lambda: aten.native_layer_norm_backward(dy, x, shape, mean, rstd, w, b, [True] * 3)

    return Layer(
        x,
        dy,
        [w, b],
        own=lambda **options: functional.layer_norm(x, shape, w, b, EPS, **options),
        own_backward=functional.layer_norm_backward,
        torch=lambda x, w, b: nn.layer_norm(x, shape, w, b, EPS),
        numpy=numpy,
        numpy_backward=numpy_backward,
        aten=direct,
        jax=flax(lambda linen: linen.LayerNorm(epsilon=EPS), "scale", "bias"),
        c_loop=dtype == F32,
    )


def rms_norm(rows: int, columns: int) -> Layer:
    x, dy = normal(rows, columns), normal(rows, columns, seed=1)
    w = affine(columns)[0]
    shape = (columns,)

    def numpy(x: Array, w: Array) -> Any:
        rstd = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
        xhat = x * rstd
        return xhat * w, (xhat, rstd, w)

    def numpy_backward(dy: Array, xhat: Array, rstd: Array, w: Array) -> Any:
        g = dy * w
        return rstd * (g - xhat * (g * xhat).mean(-1, keepdims=True)), (dy * xhat).sum(0)

    return Layer(
        x,
        dy,
        [w],
        own=lambda **options: functional.rms_norm(x, shape, w, EPS, **options),
        own_backward=functional.rms_norm_backward,
        torch=lambda x, w: nn.rms_norm(x, shape, w, EPS),
        numpy=numpy,
        numpy_backward=numpy_backward,
        jax=flax(lambda linen: linen.RMSNorm(epsilon=EPS), "scale"),
    )


def batch_norm(channels_last: bool = False, training: bool = True) -> Layer:
    x, dy = images(channels_last)
    w, b = affine(IMAGES[1])
    mean, var = normal(IMAGES[1], seed=4), 1 + normal(IMAGES[1], seed=5) ** 2
    torch_mean, torch_var = torch and torch.tensor(mean), torch and torch.tensor(var)
    axis = 3 if channels_last else 1
    axes = tuple({0, 1, 2, 3} - {axis})
    m = x.size // IMAGES[1]

    def per_channel(a: Array) -> Array:
        return a if channels_last else a[:, None, None]

    def numpy(x: Array, w: Array, b: Array) -> Any:
        if not training:
            scale = w / np.sqrt(var + F32(EPS))
            return x * per_channel(scale) + per_channel(b - mean * scale), ()
        xhat, rstd = numpy_normalised(x, axes)
        return xhat * per_channel(w) + per_channel(b), (xhat, rstd, w)

    def numpy_backward(dy: Array, xhat: Array, rstd: Array, w: Array) -> Any:
        dw, db = (dy * xhat).sum(axes), dy.sum(axes)
        return per_channel(w) * rstd * (dy - per_channel(db / m) - xhat * per_channel(dw / m)), dw, db

    def direct(dy: Any, x: Any, w: Any, b: Any) -> Step:
        running = torch_mean, torch_var
        _, *saved = torch.native_batch_norm(x, w, b, *running, True, 0.1, EPS)
        return lambda: aten.native_batch_norm_backward(dy, x, w, *running, *saved, True, EPS, [True] * 3)

    def own(**options: Any) -> Any:
        return functional.batch_norm(x, mean, var, w, b, training, eps=EPS, channel_axis=axis, **options)

    return Layer(
        x,
        dy,
        [w, b],
        own=own,
        own_backward=functional.batch_norm_backward,
        torch=lambda x, w, b: nn.batch_norm(x, torch_mean, torch_var, w, b, training, eps=EPS),
        numpy=numpy,
        numpy_backward=numpy_backward,
        aten=direct,
        jax=flax(
            lambda linen: linen.BatchNorm(use_running_average=not training, momentum=0.9, epsilon=EPS, axis=axis),
            "scale",
            "bias",
            batch_stats={"mean": mean.copy(), "var": var.copy()},
        ),
        channels_last=channels_last,
    )


def group_norm(channels_last: bool, dtype: Any = F32, groups: int = 32) -> Layer:
    x, dy = images(channels_last, dtype)
    n, c, h, w = IMAGES
    weight, bias = affine(c, dtype)
    # Shape of the input with the groups apart, what is summed over in it, shape of the parameters, and what they share.
    if channels_last:
        split, axes, per_channel, shared = (n, h * w, groups, c // groups), (1, 3), (groups, c // groups), (0, 1)
    else:
        split, axes, per_channel, shared = (n, groups, c // groups, h * w), (2, 3), (groups, c // groups, 1), (0, 3)

    def numpy(x: Array, weight: Array, bias: Array) -> Any:
        xhat, rstd = numpy_normalised(x.reshape(split), axes)
        y = xhat * weight.reshape(per_channel) + bias.reshape(per_channel)
        return y.reshape(x.shape), (xhat, rstd, weight.reshape(per_channel))

    def numpy_backward(dy: Array, xhat: Array, rstd: Array, weight: Array) -> Any:
        g = dy.reshape(split)
        dx = numpy_gradient(g * weight, xhat, rstd, axes)
        return dx.reshape(dy.shape), (g * xhat).sum(shared).reshape(c), g.sum(shared).reshape(c)

    def direct(dy: Any, x: Any, weight: Any, bias: Any) -> Step:
        sizes = n, c, h * w, groups
        _, mean, rstd = torch.native_group_norm(x, weight, bias, *sizes, EPS)
        return lambda: aten.native_group_norm_backward(dy, x, mean, rstd, weight, *sizes, [True] * 3)

    def own(**options: Any) -> Any:
        axis = 3 if channels_last else 1
        return functional.group_norm(x, groups, weight, bias, EPS, channel_axis=axis, **options)

    return Layer(
        x,
        dy,
        [weight, bias],
        own=own,
        own_backward=functional.group_norm_backward,
        torch=lambda x, weight, bias: nn.group_norm(x, groups, weight, bias, EPS),
        numpy=numpy,
        numpy_backward=numpy_backward,
        aten=direct,
        jax=flax(lambda linen: linen.GroupNorm(groups, epsilon=EPS), "scale", "bias") if channels_last else None,
        channels_last=channels_last,
    )


def instance_norm(channels_last: bool) -> Layer:
    x, dy = images(channels_last)
    axis = 3 if channels_last else 1
    axes = (1, 2) if channels_last else (2, 3)

    def numpy(x: Array) -> Any:
        xhat, rstd = numpy_normalised(x, axes)
        return xhat, (xhat, rstd)

    def build(linen: Any) -> Any:
        return linen.InstanceNorm(epsilon=EPS, use_bias=False, use_scale=False, feature_axes=axis)

    return Layer(
        x,
        dy,
        [],
        own=lambda **options: functional.instance_norm(x, eps=EPS, channel_axis=axis, **options),
        own_backward=functional.instance_norm_backward,
        torch=lambda x: nn.instance_norm(x, eps=EPS),
        numpy=numpy,
        numpy_backward=lambda dy, xhat, rstd: [numpy_gradient(dy, xhat, rstd, axes)],
        jax=flax(build),
        channels_last=channels_last,
    )


# -- Dropout, activations, losses --------------------------------------------------------------------------------------


def dropout(n: int, backward: bool) -> Contestants:
    """A new mask each time, as in training."""
    x, dy = normal(n), normal(n, seed=1)
    scale = 1 / (1 - DROPPED)
    out, out_grad = np.empty_like(x), np.empty_like(x)
    rng, steps = np.random.default_rng(0), itertools.count()

    def own(out: Array = None, out_grad: Array = None) -> Any:
        if not backward:
            return functional.dropout(x, DROPPED, seed=0, stream=next(steps), out=out)
        y, saved = functional.dropout(x, DROPPED, seed=0, stream=next(steps), out=out, save=True)
        return y, functional.dropout_backward(dy, saved, out=out_grad)

    contestants: Contestants = {"ironstep": own, "ironstep out=": lambda: own(out, out_grad)}
    if torch:
        leaf, gradient = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)

        def autograd() -> Any:
            if not backward:
                with torch.no_grad():
                    return nn.dropout(leaf, DROPPED)
            y = nn.dropout(leaf, DROPPED)
            return y, *torch.autograd.grad(y, leaf, gradient)

        def direct() -> Any:
            with torch.no_grad():
                y, mask = torch.native_dropout(leaf, DROPPED, True)
                return (y, aten.native_dropout_backward(gradient, mask, scale)) if backward else y

        contestants |= {"torch": autograd, "torch aten": direct}
    if jax := optional("jax"):
        x_, dy_, key = jax.numpy.array(x), jax.numpy.array(dy), jax.random.key(0)

        def function(step: Any, x: Any, dy: Any) -> Any:  # as flax has it
            keep = jax.random.bernoulli(jax.random.fold_in(key, step), 1 - DROPPED, x.shape)
            y = jax.lax.select(keep, x * scale, jax.numpy.zeros_like(x))
            return (y, jax.lax.select(keep, dy * scale, jax.numpy.zeros_like(x))) if backward else y

        run = jax.jit(function)
        contestants["JAX jit"] = lambda: jax.block_until_ready(run(next(steps), x_, dy_))

    def numpy() -> Any:
        mask = (rng.random(n, F32) >= DROPPED) * F32(scale)
        return (x * mask, dy * mask) if backward else x * mask

    contestants["NumPy"] = numpy
    for name, step in contestants.items():
        results = list(arrays_of(step()))
        kept = results[0] != 0
        assert abs(kept.mean() - (1 - DROPPED)) < 0.01, name
        for got, given in zip(results, (x, dy), strict=False):
            np.testing.assert_allclose(got, np.where(kept, given * scale, 0), rtol=1e-6, err_msg=name)
    return contestants


def gelu(n: int, approximate: str) -> Layer:
    x, dy = normal(n), normal(n, seed=1)
    root = F32(np.sqrt(2 / np.pi))

    def numpy(x: Array) -> Any:
        tanh = np.tanh(root * x * (1 + F32(0.044715) * x * x))
        return 0.5 * x * (1 + tanh), (x, tanh)

    def numpy_backward(dy: Array, x: Array, tanh: Array) -> Any:
        inner = root * (1 + F32(3 * 0.044715) * x * x)
        return [dy * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * inner)]

    def own(out: Array = None, save: bool = False) -> Any:
        y = functional.gelu(x, approximate, out=out)
        return (y, x) if save else y

    return Layer(
        x,
        dy,
        [],
        own=own,
        own_backward=lambda dy, x, out=None: functional.gelu_backward(dy, x, approximate, out=out),
        torch=lambda x: nn.gelu(x, approximate=approximate),
        numpy=numpy if approximate == "tanh" else None,  # NumPy has no erf
        numpy_backward=numpy_backward,
        aten=lambda dy, x: lambda: aten.gelu_backward(dy, x, approximate=approximate),
        jax=("JAX jit", "jax.nn", lambda module: lambda x: module.gelu(x, approximate=approximate == "tanh")),
    )


def loss(
    x: Array,
    own: Callable[..., Any],
    torch_loss: Callable[[Any], Any],
    optax_loss: Callable[..., Any],
    numpy: Callable[[], Any],
) -> Contestants:
    """Value and gradient of a loss whose target is bound already."""
    out = np.empty_like(x)
    contestants: Contestants = {"ironstep": own, "ironstep out=": lambda: own(out=out)}
    if torch:
        leaf = torch.from_numpy(x).requires_grad_()

        def step() -> Any:
            value = torch_loss(leaf)
            return value, *torch.autograd.grad(value, leaf)

        contestants["torch"] = step
    if (jax := optional("jax")) and (optax := optional("optax")):
        run, x_ = jax.jit(jax.value_and_grad(optax_loss(jax, optax))), jax.numpy.array(x)
        contestants["optax jit"] = lambda: jax.block_until_ready(run(x_))
    contestants["NumPy"] = numpy
    agree(contestants)
    return contestants


def cross_entropy(rows: int, classes: int) -> Contestants:
    x, target = normal(rows, classes), np.random.default_rng(1).integers(classes, size=rows)
    torch_target = torch and torch.from_numpy(target)
    every = np.arange(rows)

    def optax_loss(jax: Any, optax: Any) -> Any:
        labels = jax.numpy.array(target)

        def value(x: Any) -> Any:
            return optax.softmax_cross_entropy(
                x, optax.smooth_labels(jax.nn.one_hot(labels, classes), SMOOTHING)
            ).mean()

        return value

    def numpy() -> Any:
        z = x - x.max(1, keepdims=True)
        grad = np.exp(z)
        total = grad.sum(1, keepdims=True)
        smoothed = (1 - SMOOTHING) * z[every, target] + SMOOTHING * z.mean(1)
        value = (np.log(total[:, 0]) - smoothed).mean()
        grad *= 1 / (rows * total)
        grad -= SMOOTHING / (rows * classes)
        grad[every, target] -= (1 - SMOOTHING) / rows
        return value, grad

    return loss(
        x,
        lambda **out: functional.cross_entropy(x, target, label_smoothing=SMOOTHING, return_grad=True, **out),
        lambda x: nn.cross_entropy(x, torch_target, label_smoothing=SMOOTHING),
        optax_loss,
        numpy,
    )


def binary_cross_entropy(n: int) -> Contestants:
    x, target = normal(n), np.random.default_rng(1).integers(2, size=n).astype(F32)
    torch_target = torch and torch.from_numpy(target)

    def optax_loss(jax: Any, optax: Any) -> Any:
        labels = jax.numpy.array(target)
        return lambda x: optax.sigmoid_binary_cross_entropy(x, labels).mean()

    def numpy() -> Any:
        e = np.exp(-np.abs(x))
        value = (np.maximum(x, 0) - x * target + np.log1p(e)).mean()
        return value, (np.where(x >= 0, 1, e) / (1 + e) - target) / n

    return loss(
        x,
        lambda **out: functional.binary_cross_entropy_with_logits(x, target, return_grad=True, **out),
        lambda x: nn.binary_cross_entropy_with_logits(x, torch_target),
        optax_loss,
        numpy,
    )


# -- Work --------------------------------------------------------------------------------------------------------------


def than(torch: float, **more: float) -> dict[str, float]:
    """How many times faster than torch, and than others; 5 times faster than NumPy."""
    return {"fastest torch": torch, **{name.replace("_", " "): wanted for name, wanted in more.items()}, "NumPy": 5.0}


WORK = [
    Work("dropout forward, 4 M", lambda: dropout(4 * M, False), than(10.0)),
    Work("dropout both, 4 M", lambda: dropout(4 * M, True), than(7.0)),
    Work("RMS norm both, 4 K x 1 K", lambda: both(rms_norm(4096, 1024)), than(5.0)),
    Work("batch norm forward", lambda: forward(batch_norm()), than(3.0)),
    Work("batch norm backward", lambda: backward(batch_norm()), than(1.3)),
    Work("batch norm forward, NHWC", lambda: forward(batch_norm(True)), {}),
    Work("batch norm backward, NHWC", lambda: backward(batch_norm(True)), {}),
    Work("batch norm inference", lambda: forward(batch_norm(training=False)), {}),
    Work("batch norm inference, NHWC", lambda: forward(batch_norm(True, training=False)), {}),
    Work("instance norm forward", lambda: forward(instance_norm(False)), than(4.0)),
    Work("instance norm forward, NHWC", lambda: forward(instance_norm(True)), than(6.0)),
    Work("instance norm backward", lambda: backward(instance_norm(False)), {}),
    Work("instance norm backward, NHWC", lambda: backward(instance_norm(True)), {}),
    Work("group norm forward", lambda: forward(group_norm(False)), {}),
    Work("group norm forward, NHWC", lambda: forward(group_norm(True)), {}),
    Work("group norm backward", lambda: backward(group_norm(False)), {}),
    Work("group norm backward, NHWC", lambda: backward(group_norm(True)), than(5.0)),
    Work("group norm backward, NHWC bf16", lambda: backward(group_norm(True, BF16)), than(20.0)),
    Work("layer norm forward, 4 K x 1 K", lambda: forward(layer_norm(4096, 1024)), than(1.0, C_loop=0.85)),
    Work("layer norm backward, 4 K x 1 K", lambda: backward(layer_norm(4096, 1024)), than(1.3, C_loop=0.85)),
    Work("layer norm forward, 16 K x 1 K", lambda: forward(layer_norm(16384, 1024)), than(1.0, C_loop=0.85)),
    Work("layer norm backward, 16 K x 1 K", lambda: backward(layer_norm(16384, 1024)), than(1.3, C_loop=0.85)),
    Work("layer norm forward, bf16", lambda: forward(layer_norm(4096, 1024, BF16)), {}),
    Work("layer norm backward, bf16", lambda: backward(layer_norm(4096, 1024, BF16)), {}),
    Work("cross entropy, 4 K x 32000", lambda: cross_entropy(4096, 32000), than(2.0)),
    Work("binary cross entropy, 4 M", lambda: binary_cross_entropy(4 * M), {}),
    Work("GELU forward, 4 M", lambda: forward(gelu(4 * M, "none")), {}),
    Work("GELU backward, 4 M", lambda: backward(gelu(4 * M, "none")), {}),
    Work("GELU tanh forward, 4 M", lambda: forward(gelu(4 * M, "tanh")), {}),
    Work("GELU tanh backward, 4 M", lambda: backward(gelu(4 * M, "tanh")), {}),
]
"""Images have the shape IMAGES, NCHW unless said; 'both' is forward and backward; losses are value and gradient."""

STYLE = {
    "torch": ("#d55e00", "o"),
    "torch aten": ("#e69f00", "s"),
    "flax jit": ("#009e73", "D"),
    "JAX jit": ("#009e73", "o"),
    "optax jit": ("#009e73", "^"),
    "NumPy": ("#555555", "x"),
    "C loop": ("#0072b2", "|"),
    "ironstep out=": ("#000000", "|"),
}


def keep_memory() -> None:
    """Freed memory stays in the process from now on, so that nobody's results cost page faults (glibc)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if not mallopt or not mallopt(-4, 0) or not mallopt(-1, -1):  # M_MMAP_MAX, M_TRIM_THRESHOLD
        sys.exit("--keep-memory needs glibc")


def main() -> int:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--threads", type=int, help="for everybody but NumPy, which has one; default: all cores")
    arguments.add_argument("--keep-memory", action="store_true", help="results come from memory that was used before")
    args = arguments.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if args.keep_memory:
        keep_memory()
    if args.threads:
        ironstep.set_num_threads(args.threads)
    threads = ironstep.get_num_threads()
    if torch:
        torch.set_num_threads(threads)
    os.environ |= {"JAX_PLATFORMS": "cpu", "NPROC": str(threads)}  # JAX reads them when it is imported
    about = machine(("numpy", "ml_dtypes", "torch", "jax", "optax", "flax"))
    rows, missed = measure(WORK, about, args)
    name = "layers" + (f"-{threads}" if args.threads else "") + ("-kept" if args.keep_memory else "")
    report(args.out / name, about, rows, missed, STYLE, "Layers and losses")
    return 0


if __name__ == "__main__":
    sys.exit(main())
