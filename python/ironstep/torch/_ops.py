"""The layers of the core on tensors: what runs on the CPU, and what autograd and torch's tracers need to know of it.

Each operation is written once, as a function of plain CPU tensors that calls the core, and offered in two forms. In
eager mode it runs inside a `torch.autograd.Function`, which costs a few microseconds. Whoever traces (`torch.compile`,
`torch.export`, `make_fx`, any dispatch mode) gets a custom operator `torch.ops.ironstep.*` with the same function
behind it, a fake implementation, and the same backward formula; an operator costs several times as much in each call.

Operators take what they are given: the arguments are checked in `functional`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as reference

from .. import _core
from ._types import HALVES, computed

_PLAIN = (Tensor, torch.nn.Parameter)


def tracing() -> bool:
    """Whether somebody records the operations, or wants to see each of them."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


def ours(*tensors: Tensor | None) -> bool:
    """Whether the core can take these tensors, as far as their kind and place go.

    The core sees memory. So other devices, subclasses of tensors, nested tensors, the wrapped tensors of `torch.func`,
    and forward-mode differentiation are left to torch.
    """
    traced = tracing()
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN and not (traced and isinstance(tensor, Tensor)):
            return False
        if not tensor.is_cpu or tensor.is_nested:
            return False
    if traced and torch.compiler.is_compiling():
        return True
    return forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active()


def _view(tensor: Tensor | None, name: str) -> Any:
    return None if tensor is None else _core.tensor_view(tensor, name, written=False)


def _written(tensor: Tensor | None, name: str) -> Any:
    return None if tensor is None else _core.tensor_view(tensor, name, written=True)


def _like(tensor: Tensor | None, wanted: bool) -> Tensor | None:
    """Memory for the gradient of a parameter."""
    if tensor is None or not wanted:
        return None
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _rstd(var: Any, eps: float) -> Tensor:
    # NumPy's root is rounded correctly; torch's comes from a library where there is one, and is not.
    with np.errstate(all="ignore"):
        return torch.from_numpy(1.0 / np.sqrt(var + eps))


# ----------------------------------------------------------------------------------------------------------------------
# The two forms
# ----------------------------------------------------------------------------------------------------------------------


class Kernel:
    """A function of CPU tensors that calls the core, and the operator of the same name."""

    def __init__(self, name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
        """`schema`: of the operator; `fake`: the results with their shapes and strides, but no values."""

        def complete(results: Any) -> Any:
            # An operator returns tensors only.
            if isinstance(results, Tensor):
                return results
            return tuple(torch.empty(0, device="cpu") if result is None else result for result in results)

        self.run = run
        self.definition = torch.library.custom_op(
            f"ironstep::{name}", lambda *args: complete(run(*args)), mutates_args=(), device_types="cpu", schema=schema
        )
        self.definition.register_fake(lambda *args: complete(fake(*args)))
        self.operator = getattr(torch.ops.ironstep, name).default

    def __call__(self, *args: Any) -> Any:
        return self.operator(*args) if tracing() else self.run(*args)


class Operation(Kernel):
    """A kernel with a gradient."""

    def __init__(
        self,
        name: str,
        schema: str,
        run: Callable[..., Any],
        fake: Callable[..., Any],
        save: Callable[[Any, Sequence[Any], Any], None],
        backward: Callable[..., Any],
        *,
        tensors: int,
        results: int = 1,
        smooth: int = 1,
        eager: Callable[..., Any] | None = None,
    ) -> None:
        """`save` and `backward`: as in `torch.library.register_autograd`; `backward` must take fewer gradients, too.

        `tensors`: how many of the arguments are tensors that may need a gradient, the first ones. The caller gets the
        first `results` results, of which the first `smooth` have a gradient; the others are what the backward pass
        needs. `eager`: in place of `run` in eager mode; takes `ctx` too, saves what it needs itself, and returns the
        results for the caller.
        """
        super().__init__(name, schema, run, fake)

        def first(output: Any) -> Any:
            if isinstance(output, Tensor):
                return output
            return output[0] if results == 1 else tuple(output[:results])

        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.set_materialize_grads(False)
            if not isinstance(output, Tensor):
                ctx.mark_non_differentiable(*output[smooth:])
            save(ctx, inputs, output)

        def forward(ctx: Any, *inputs: Any) -> Any:
            ctx.set_materialize_grads(False)
            if eager is not None:
                return eager(ctx, *inputs)
            output = run(*inputs)
            save(ctx, inputs, output)
            if results > smooth:
                ctx.mark_non_differentiable(*output[smooth:results])
            return first(output)

        self.first, self.tensors = first, tensors
        self.definition.register_autograd(backward, setup_context=setup_context)
        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward), "__module__": __name__}
        self.function: Any = type(name, (torch.autograd.Function,), methods)

    def __call__(self, *args: Any) -> Any:
        if tracing():
            return self.first(self.operator(*args))
        if torch.is_grad_enabled():
            for tensor in args[: self.tensors]:
                if tensor is not None and tensor.requires_grad:
                    return self.function.apply(*args)
        return self.first(self.run(*args))


def _batched(dy: Tensor) -> bool:
    """Whether it stands for many gradients at once (`is_grads_batched=True`, `vmap`), and has no memory of its own."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(dy) or functorch.is_legacy_batchedtensor(dy)


def _by_torch(dy: Tensor) -> bool:
    """Whether the backward pass must be made of torch's own operations."""
    return torch.is_grad_enabled() or _batched(dy)


def _again(function: Callable[..., Any], inputs: Sequence[Tensor | None], wanted: Sequence[bool], grads: Any) -> Any:
    """Gradients of torch's own operations, which can be differentiated again (`create_graph=True`)."""
    with torch.enable_grad():
        results = function(*inputs)
    pairs = [
        (result, grad)
        for result, grad in zip(results if isinstance(results, tuple) else (results,), grads, strict=False)
        if grad is not None
    ]
    chosen = [tensor for tensor, want in zip(inputs, wanted, strict=False) if tensor is not None and want]
    found = iter(
        torch.autograd.grad(
            [result for result, _ in pairs],
            chosen,
            [grad for _, grad in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return [next(found) if tensor is not None and want else None for tensor, want in zip(inputs, wanted, strict=False)]


# ----------------------------------------------------------------------------------------------------------------------
# Rows: layer and RMS normalisation
# ----------------------------------------------------------------------------------------------------------------------


def _rows_shape(x: Tensor, dims: int) -> list[int]:
    """Rows, sets in a row, elements of a set."""
    shape = x.shape
    size = shape[-1] if dims == 1 else math.prod(shape[-dims:])
    return [x.numel() // size if size else math.prod(shape[:-dims]), 1, size]


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: int, eps: float) -> Any:
    x = x.contiguous()
    y = torch.empty_like(x)
    mean, var = _core.norm_rows(
        _view(x, "input"),
        None,
        None,
        _written(y, "the result"),
        _rows_shape(x, dims),
        _view(weight, "weight"),
        _view(bias, "bias"),
        0.0,
        eps,
        True,
    )
    return y, torch.from_numpy(mean), _rstd(var, eps)


def _row_stats(x: Tensor, dims: int) -> Tensor:
    return x.new_empty(_rows_shape(x, dims)[0], dtype=torch.float64)


def _layer_norm_fake(x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: int, eps: float) -> Any:
    return torch.empty_like(x.contiguous()), _row_stats(x, dims), _row_stats(x, dims)


def _rms_norm(x: Tensor, weight: Tensor | None, dims: int, eps: float, offset: float) -> Any:
    x = x.contiguous()
    y = torch.empty_like(x)
    _, var = _core.norm_rows(
        _view(x, "input"),
        None,
        None,
        _written(y, "the result"),
        _rows_shape(x, dims),
        _view(weight, "weight"),
        None,
        offset,
        eps,
        False,
    )
    return y, _rstd(var, eps)


def _rms_norm_fake(x: Tensor, weight: Tensor | None, dims: int, eps: float, offset: float) -> Any:
    return torch.empty_like(x.contiguous()), _row_stats(x, dims)


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor | None, dims: int, eps: float, offset: float) -> Any:
    x, residual = x.contiguous(), residual.contiguous()
    y, hidden = torch.empty_like(x), torch.empty_like(x)
    _, var = _core.norm_rows(
        _view(x, "input"),
        _view(residual, "residual"),
        _written(hidden, "the sum"),
        _written(y, "the result"),
        _rows_shape(x, dims),
        _view(weight, "weight"),
        None,
        offset,
        eps,
        False,
    )
    return y, hidden, _rstd(var, eps)


def _add_rms_norm_fake(x: Tensor, residual: Tensor, weight: Tensor | None, dims: int, eps: float, offset: float) -> Any:
    return torch.empty_like(x.contiguous()), torch.empty_like(x.contiguous()), _row_stats(x, dims)


def _rows_backward(
    dy: Tensor,
    dhidden: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    dims: int,
    offset: float,
    want_weight: bool,
    want_bias: bool,
) -> Any:
    x, dy = x.contiguous(), dy.contiguous()
    dx, dweight, dbias = torch.empty_like(x), _like(weight, want_weight), _like(bias, want_bias)
    _core.norm_rows_backward(
        _view(x, "input"),
        _view(dy, "grad_output"),
        None if dhidden is None else _view(dhidden.contiguous(), "grad_hidden"),
        _written(dx, "the gradient"),
        _rows_shape(x, dims),
        _view(weight, "weight"),
        offset,
        _view(mean, "mean"),
        _view(rstd, "rstd"),
        _written(dweight, "the gradient of weight"),
        _written(dbias, "the gradient of bias"),
    )
    return dx, dweight, dbias


def _rows_backward_fake(
    dy: Tensor,
    dhidden: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    dims: int,
    offset: float,
    want_weight: bool,
    want_bias: bool,
) -> Any:
    return torch.empty_like(x.contiguous()), _like(weight, want_weight), _like(bias, want_bias)


_norm_rows_backward = Kernel(
    "norm_rows_backward",
    "(Tensor grad_output, Tensor? grad_hidden, Tensor input, Tensor? weight, Tensor? bias, Tensor? mean, Tensor rstd, "
    "int dims, float offset, bool want_weight, bool want_bias) -> (Tensor, Tensor, Tensor)",
    _rows_backward,
    _rows_backward_fake,
)


def _if(wanted: bool, grad: Any) -> Any:
    return grad if wanted else None


def _save_layer_norm(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, ctx.dims, ctx.eps = inputs
    ctx.save_for_backward(x, weight, bias, output[1], output[2])


def _layer_norm_backward(ctx: Any, dy: Tensor | None, *_: Any) -> Any:
    x, weight, bias, mean, rstd = ctx.saved_tensors
    want = ctx.needs_input_grad
    if dy is None:
        return (None,) * 5
    if _by_torch(dy):
        shape = x.shape[x.dim() - ctx.dims :]
        grads = _again(lambda x, w, b: reference.layer_norm(x, shape, w, b, ctx.eps), (x, weight, bias), want, [dy])
        return (*grads, None, None)
    dx, dweight, dbias = _norm_rows_backward(
        dy,
        None,
        x,
        weight,
        bias,
        mean,
        rstd,
        ctx.dims,
        0.0,
        weight is not None and want[1],
        bias is not None and want[2],
    )
    return _if(want[0], dx), _if(want[1], dweight), _if(want[2], dbias), None, None


layer_norm = Operation(
    "layer_norm",
    "(Tensor input, Tensor? weight, Tensor? bias, int dims, float eps) -> (Tensor, Tensor, Tensor)",
    _layer_norm,
    _layer_norm_fake,
    _save_layer_norm,
    _layer_norm_backward,
    tensors=3,
)


def _scaled(x: Tensor, weight: Tensor | None, dims: int, eps: float, offset: float) -> Tensor:
    """RMS normalisation in torch's operations."""
    weight = weight if weight is None or offset == 0.0 else offset + weight
    return reference.rms_norm(x, list(x.shape[x.dim() - dims :]), weight, eps)


def _save_rms_norm(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, ctx.dims, ctx.eps, ctx.offset = inputs
    ctx.save_for_backward(x, weight, output[1])


def _rms_norm_backward(ctx: Any, dy: Tensor | None, *_: Any) -> Any:
    x, weight, rstd = ctx.saved_tensors
    want = ctx.needs_input_grad
    if dy is None:
        return (None,) * 5
    if _by_torch(dy):
        grads = _again(lambda x, w: _scaled(x, w, ctx.dims, ctx.eps, ctx.offset), (x, weight), want, [dy])
        return (*grads, None, None, None)
    want_weight = weight is not None and want[1]
    dx, dweight, _dbias = _norm_rows_backward(
        dy, None, x, weight, None, None, rstd, ctx.dims, ctx.offset, want_weight, False
    )
    return _if(want[0], dx), _if(want_weight, dweight), None, None, None


rms_norm = Operation(
    "rms_norm",
    "(Tensor input, Tensor? weight, int dims, float eps, float offset) -> (Tensor, Tensor)",
    _rms_norm,
    _rms_norm_fake,
    _save_rms_norm,
    _rms_norm_backward,
    tensors=2,
)


def _save_add_rms_norm(ctx: Any, inputs: Any, output: Any) -> None:
    _, _, weight, ctx.dims, ctx.eps, ctx.offset = inputs
    # The sum is a result that the caller has too; second derivatives go through it to the summands.
    ctx.save_for_backward(output[1], weight, output[2])


def _add_rms_norm_backward(ctx: Any, dy: Tensor | None, dhidden: Tensor | None, *_: Any) -> Any:
    hidden, weight, rstd = ctx.saved_tensors
    want = ctx.needs_input_grad
    if dy is None:
        return _if(want[0], dhidden), _if(want[1], dhidden), None, None, None, None
    if _by_torch(dy) or (dhidden is not None and _batched(dhidden)):
        wanted = (want[0] or want[1], want[2])
        dx, dweight = _again(lambda h, w: _scaled(h, w, ctx.dims, ctx.eps, ctx.offset), (hidden, weight), wanted, [dy])
        dx = dx if dx is None or dhidden is None else dx + dhidden
        return _if(want[0], dx), _if(want[1], dx), dweight, None, None, None
    want_weight = weight is not None and want[2]
    dx, dweight, _dbias = _norm_rows_backward(
        dy, dhidden, hidden, weight, None, None, rstd, ctx.dims, ctx.offset, want_weight, False
    )
    return _if(want[0], dx), _if(want[1], dx), _if(want_weight, dweight), None, None, None


add_rms_norm = Operation(
    "add_rms_norm",
    "(Tensor input, Tensor residual, Tensor? weight, int dims, float eps, float offset) -> (Tensor, Tensor, Tensor)",
    _add_rms_norm,
    _add_rms_norm_fake,
    _save_add_rms_norm,
    _add_rms_norm_backward,
    tensors=3,
    results=2,
    smooth=2,
)


# ----------------------------------------------------------------------------------------------------------------------
# Channels: batch, group and instance normalisation
# ----------------------------------------------------------------------------------------------------------------------


def _places(x: Tensor) -> list[int]:
    """Samples, channels, places."""
    return [x.shape[0], x.shape[1], math.prod(x.shape[2:])]


def _channels(x: Tensor) -> tuple[Tensor, bool]:
    """The tensor as the core reads it, and whether the channels are the fastest in memory."""
    one_place = math.prod(x.shape[2:]) == 1
    if x.is_contiguous() and not one_place:
        return x, False
    if x.movedim(1, -1).is_contiguous():
        return x, True
    return x.contiguous(), one_place


def _in_order(x: Tensor, last: bool) -> Tensor:
    """The values in the memory order that `_channels` has found for another tensor."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x.contiguous()


def _batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    x, last = _channels(x)
    y, shape = torch.empty_like(x), _places(x)
    mean, m2 = _core.norm_channels(
        _view(x, "input"),
        _written(y, "the result"),
        (shape, last, 0),
        _view(weight, "weight"),
        _view(bias, "bias"),
        eps,
        None,
    )
    with np.errstate(all="ignore"):
        var = m2 / np.float64(shape[0] * shape[2])
    return y, torch.from_numpy(mean), _rstd(var, eps), torch.from_numpy(m2)


def _batch_norm_fake(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    return torch.empty_like(_channels(x)[0]), *(x.new_empty(x.shape[1], dtype=torch.float64) for _ in range(3))


def _batch_norm_inference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Any:
    x, last = _channels(x)
    y = torch.empty_like(x)
    # Copies: what is saved stays when the running ones go on.
    mean, rstd = mean.to(torch.float64, copy=True), _rstd(_view(var.to(torch.float64), "running_var"), eps)
    given = (_view(mean, "running_mean"), _view(rstd, "running_var"))
    _core.norm_channels(
        _view(x, "input"),
        _written(y, "the result"),
        (_places(x), last, 0),
        _view(weight, "weight"),
        _view(bias, "bias"),
        eps,
        given,
    )
    return y, mean, rstd


def _batch_norm_inference_fake(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Any:
    return torch.empty_like(_channels(x)[0]), *(x.new_empty(x.shape[1], dtype=torch.float64) for _ in range(2))


def _group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Any:
    x, last = _channels(x)
    y = torch.empty_like(x)
    n, c, s = shape = _places(x)
    arrays = _view(x, "input"), _written(y, "the result"), _view(weight, "weight"), _view(bias, "bias")
    if s == 1:
        # The channels of a group lie side by side: a row of several sets.
        rows = [n, groups, c // groups]
        mean, var = _core.norm_rows(arrays[0], None, None, arrays[1], rows, arrays[2], arrays[3], 0.0, eps, True)
    else:
        mean, m2 = _core.norm_channels(arrays[0], arrays[1], (shape, last, groups), arrays[2], arrays[3], eps, None)
        with np.errstate(all="ignore"):
            var = m2 / np.float64(c // groups * s)
    return y, torch.from_numpy(mean), _rstd(var, eps), torch.from_numpy(var)


def _group_norm_fake(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Any:
    count = x.shape[0] * groups
    return torch.empty_like(_channels(x)[0]), *(x.new_empty(count, dtype=torch.float64) for _ in range(3))


def _channels_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    constant: bool,
    want_weight: bool,
    want_bias: bool,
) -> Any:
    x, last = _channels(x)
    dy = _in_order(dy, last)
    dx, dweight, dbias = torch.empty_like(x), _like(weight, want_weight), _like(bias, want_bias)
    n, c, s = shape = _places(x)
    inputs = (_view(x, "input"), _view(dy, "grad_output"))
    outputs = (_written(dweight, "the gradient of weight"), _written(dbias, "the gradient of bias"))
    weight_, mean_, rstd_ = _view(weight, "weight"), _view(mean, "mean"), _view(rstd, "rstd")
    dx_ = _written(dx, "the gradient")
    if groups and s == 1:
        rows = [n, groups, c // groups]
        _core.norm_rows_backward(*inputs, None, dx_, rows, weight_, 0.0, mean_, rstd_, *outputs)
    else:
        _core.norm_channels_backward(
            *inputs, dx_, (shape, last, groups), weight_, mean_, rstd_, constant, None, *outputs
        )
    return dx, dweight, dbias


def _channels_backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    constant: bool,
    want_weight: bool,
    want_bias: bool,
) -> Any:
    return torch.empty_like(_channels(x)[0]), _like(weight, want_weight), _like(bias, want_bias)


_norm_channels_backward = Kernel(
    "norm_channels_backward",
    "(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, int groups, "
    "bool constant, bool want_weight, bool want_bias) -> (Tensor, Tensor, Tensor)",
    _channels_backward,
    _channels_backward_fake,
)


def _channel_grads(ctx: Any, dy: Tensor, groups: int, constant: bool) -> tuple[Any, Any, Any]:
    x, weight, bias, mean, rstd = ctx.saved_tensors
    want = ctx.needs_input_grad
    want_weight, want_bias = weight is not None and want[1], bias is not None and want[2]
    dx, dweight, dbias = _norm_channels_backward(
        dy, x, weight, bias, mean, rstd, groups, constant, want_weight, want_bias
    )
    return _if(want[0], dx), _if(want_weight, dweight), _if(want_bias, dbias)


def _save_batch_norm(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(x, weight, bias, output[1], output[2])


def _batch_norm_backward(ctx: Any, dy: Tensor | None, *_: Any) -> Any:
    if dy is None:
        return (None,) * 4
    if _by_torch(dy):

        def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            return reference.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)

        return (*_again(forward, ctx.saved_tensors[:3], ctx.needs_input_grad, [dy]), None)
    return (*_channel_grads(ctx, dy, 0, False), None)


batch_norm = Operation(
    "batch_norm",
    "(Tensor input, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    _batch_norm,
    _batch_norm_fake,
    _save_batch_norm,
    _batch_norm_backward,
    tensors=3,
    results=4,
)


def _save_batch_norm_inference(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias = inputs[:3]
    ctx.save_for_backward(x, weight, bias, output[1], output[2])


def _batch_norm_inference_backward(ctx: Any, dy: Tensor | None, *_: Any) -> Any:
    if dy is None:
        return (None,) * 6
    if _by_torch(dy):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        shape = (1, -1, *(1,) * (x.dim() - 2))

        def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            y: Tensor = (x - mean.view(shape)) * rstd.view(shape)
            y = y if weight is None else y * weight.view(shape)
            y = y if bias is None else y + bias.view(shape)
            return y.to(x.dtype)

        return (*_again(forward, (x, weight, bias), ctx.needs_input_grad, [dy]), None, None, None)
    return (*_channel_grads(ctx, dy, 0, True), None, None, None)


batch_norm_inference = Operation(
    "batch_norm_inference",
    "(Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, float eps) -> (Tensor, Tensor, Tensor)",
    _batch_norm_inference,
    _batch_norm_inference_fake,
    _save_batch_norm_inference,
    _batch_norm_inference_backward,
    tensors=3,
)


def _save_group_norm(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, ctx.groups, ctx.eps = inputs
    ctx.save_for_backward(x, weight, bias, output[1], output[2])


def _group_norm_backward(ctx: Any, dy: Tensor | None, *_: Any) -> Any:
    if dy is None:
        return (None,) * 5
    if _by_torch(dy):

        def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            return reference.group_norm(x, ctx.groups, weight, bias, ctx.eps)

        return (*_again(forward, ctx.saved_tensors[:3], ctx.needs_input_grad, [dy]), None, None)
    return (*_channel_grads(ctx, dy, ctx.groups, False), None, None)


group_norm = Operation(
    "group_norm",
    "(Tensor input, Tensor? weight, Tensor? bias, int groups, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    _group_norm,
    _group_norm_fake,
    _save_group_norm,
    _group_norm_backward,
    tensors=3,
    results=4,
)


# ----------------------------------------------------------------------------------------------------------------------
# Dropout
# ----------------------------------------------------------------------------------------------------------------------


def _dropout(x: Tensor, seed: Tensor, p: float, channels: bool) -> Tensor:
    units = None
    if channels:
        dense, last = _channels(x)
        n, c, s = _places(x)
        units = (n * c, s, max(c, 1) if last else 1)
    else:
        dense = x.contiguous()
    y = torch.empty_like(dense)
    _core.dropout_draw(_view(dense, "input"), _written(y, "the result"), p, int(seed), 0, 0, units)
    # As torch: the strides of the input.
    return y if dense is x else torch.empty_like(x).copy_(y)


def _dropout_fake(x: Tensor, seed: Tensor, p: float, channels: bool) -> Tensor:
    return torch.empty_like(x)


def _save_dropout(ctx: Any, inputs: Any, output: Any) -> None:
    _, seed, ctx.p, ctx.channels = inputs
    ctx.save_for_backward(seed)


def _dropout_backward(ctx: Any, dy: Tensor | None) -> Any:
    (seed,) = ctx.saved_tensors
    if dy is None:
        return (None,) * 4
    if _batched(dy):
        factors = dropout(torch.ones(dy.shape, dtype=dy.dtype, device="cpu"), seed, ctx.p, ctx.channels)
        dx = torch.where(factors == 0.0, 0.0, dy * factors)
    else:
        dx = dropout(dy, seed, ctx.p, ctx.channels)
    return dx, None, None, None


dropout = Operation(
    "dropout",
    "(Tensor input, Tensor seed, float p, bool channels) -> Tensor",
    _dropout,
    _dropout_fake,
    _save_dropout,
    _dropout_backward,
    tensors=1,
)


# ----------------------------------------------------------------------------------------------------------------------
# Losses
# ----------------------------------------------------------------------------------------------------------------------


def _kept_gradient(ctx: Any, dy: Tensor) -> Tensor | None:
    """That gradient times the factor that has come, once; a second backward pass computes it anew."""
    grad, ctx.grad = getattr(ctx, "grad", None), None
    if grad is None:
        return None
    factor = float(dy)
    if factor == 1.0:
        return grad  # type: ignore[no-any-return]
    # A float16 gradient may have lost what a large factor is meant to save.
    return None if grad.dtype in HALVES else grad.mul_(factor)


def _classes_last(x: Tensor) -> Tensor:
    return x.contiguous() if x.dim() <= 2 else x.movedim(1, -1).contiguous()


def _entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    dy: Tensor | None,
    want_grad: bool,
) -> tuple[Any, float, Tensor | None]:
    """The loss of each sample, what the mean divides by, and the gradient."""
    last = _classes_last(x)
    k = last.shape[-1]
    rows = last.numel() // k
    classes = probabilities = None
    if target.dtype.is_floating_point:
        probabilities = _view(_classes_last(target).to(computed(x.dtype)), "target")
    else:
        # The bits of the classes: the core's views are of floats.
        bits = target.to(torch.int64).reshape(-1).view(torch.float64)
        classes = _view(bits, "target").view(np.int64)
    count = _count(classes, weight, rows, k, ignore_index, x.dtype) if reduction == "mean" else 1.0
    if dy is not None and reduction == "none":
        scale = _view(dy.to(torch.float64).reshape(-1).contiguous(), "grad_output")
    else:
        scale = np.array([_divided(1.0 if dy is None else float(dy), count)])
    grad = torch.empty_like(last) if want_grad else None
    on, off = (1.0 - smoothing, smoothing / k) if smoothing else (1.0, 0.0)
    losses = _core.cross_entropy(
        _view(last, "input"),
        [rows, k],
        classes,
        probabilities,
        _view(weight, "weight"),
        ignore_index,
        on,
        off,
        scale,
        _written(grad, "the gradient"),
    )
    return losses, count, grad if grad is None or x.dim() <= 2 else grad.movedim(-1, 1)


def _count(classes: Any, weight: Tensor | None, rows: int, k: int, ignore_index: int, dtype: torch.dtype) -> float:
    """What the mean divides by."""
    if classes is None:
        return float(rows)
    if weight is None:
        return float(np.count_nonzero(classes != ignore_index))
    # The core says which class is out of range; here it only must not be used.
    valid = classes[(classes != ignore_index) & (classes >= 0) & (classes < k)]
    wide = _view(weight.detach().to(computed(dtype)).to(torch.float64).contiguous(), "weight")
    return float(_core.tree_sum(np.ascontiguousarray(wide[valid])))


def _divided(total: float, count: float) -> float:
    """As IEEE has it."""
    if count != 0.0:
        return total / count
    return math.nan if total == 0.0 or math.isnan(total) else math.copysign(math.inf, total)


def _reduced(losses: Any, count: float, reduction: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    if reduction == "none":
        return torch.from_numpy(losses).to(dtype).view(shape)
    return torch.scalar_tensor(_divided(_core.tree_sum(losses), count), dtype=dtype, device="cpu")


def _samples(x: Tensor) -> list[int]:
    axis = min(x.dim() - 1, 1)
    return [*x.shape[:axis], *x.shape[axis + 1 :]]


def _cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    dtype: torch.dtype,
) -> Tensor:
    losses, count, _ = _entropy(x, target, weight, ignore_index, reduction, smoothing, None, False)
    return _reduced(losses, count, reduction, _samples(x), dtype)


def _cross_entropy_fake(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty(_samples(x) if reduction == "none" else [], dtype=dtype)


def _cross_entropy_grad(
    dy: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
) -> Any:
    return _entropy(x, target, weight, ignore_index, reduction, smoothing, dy, True)[2]


def _cross_entropy_grad_fake(dy: Tensor, x: Tensor, *_: Any) -> Tensor:
    grad = torch.empty_like(_classes_last(x))
    return grad if x.dim() <= 2 else grad.movedim(-1, 1)


_cross_entropy_backward_kernel = Kernel(
    "cross_entropy_backward",
    "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, int ignore_index, str reduction, "
    "float label_smoothing) -> Tensor",
    _cross_entropy_grad,
    _cross_entropy_grad_fake,
)


def _save_cross_entropy(ctx: Any, inputs: Any, output: Any) -> None:
    x, target, weight, *ctx.rest = inputs
    ctx.save_for_backward(x, target, weight)


def _cross_entropy_eager(ctx: Any, *inputs: Any) -> Tensor:
    x, target, weight, ignore_index, reduction, smoothing, dtype = inputs
    _save_cross_entropy(ctx, inputs, None)
    fused = reduction != "none"
    losses, count, grad = _entropy(x, target, weight, ignore_index, reduction, smoothing, None, fused)
    ctx.grad = grad
    return _reduced(losses, count, reduction, _samples(x), dtype)


def _cross_entropy_backward(ctx: Any, dy: Tensor | None) -> Any:
    if dy is None:
        return (None,) * 7
    ignore_index, reduction, smoothing, dtype = ctx.rest
    if _by_torch(dy):
        x, target, weight = ctx.saved_tensors

        def forward(x: Tensor) -> Tensor:
            return reference.cross_entropy(x.to(dtype), target, weight, None, ignore_index, None, reduction, smoothing)

        return (*_again(forward, (x,), ctx.needs_input_grad, [dy]), *(None,) * 6)
    grad = _kept_gradient(ctx, dy)
    if grad is None:
        x, target, weight = ctx.saved_tensors
        grad = _cross_entropy_backward_kernel(dy, x, target, weight, ignore_index, reduction, smoothing)
    return (grad, *(None,) * 6)


cross_entropy = Operation(
    "cross_entropy",
    "(Tensor input, Tensor target, Tensor? weight, int ignore_index, str reduction, float label_smoothing, "
    "ScalarType dtype) -> Tensor",
    _cross_entropy,
    _cross_entropy_fake,
    _save_cross_entropy,
    _cross_entropy_backward,
    tensors=1,
    eager=_cross_entropy_eager,
)


def _pairs(
    kind: str,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
    dy: Tensor | None,
    want_loss: bool,
    want_grad: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """A loss of each element with its target, and its gradient."""
    wide = computed(x.dtype)

    def dense(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.expand(x.shape).to(wide).contiguous()

    x = x.contiguous()
    targets, weights, pos_weights = dense(target), dense(weight), dense(pos_weight)
    upstream, scale = None, 1.0
    if dy is not None and reduction == "none":
        upstream = dense(dy)
    elif dy is not None:
        scale = float(dy)
    if reduction == "mean":
        scale = _divided(scale, x.numel())
    each = torch.empty_like(x, dtype=wide) if want_loss and reduction == "none" else None
    grad = torch.empty_like(x) if want_grad else None
    total = _core.pointwise_loss(
        kind,
        _view(x, "input"),
        _view(targets, "target"),
        _view(weights, "weight"),
        _view(pos_weights, "pos_weight"),
        _view(upstream, "grad_output"),
        scale,
        1.0,
        0.0,
        _written(each, "the losses"),
        _written(grad, "the gradient"),
    )
    if not want_loss:
        return None, grad
    if each is not None:
        return each.to(x.dtype), grad
    total = _divided(total, x.numel()) if reduction == "mean" else total
    return torch.scalar_tensor(total, dtype=x.dtype, device="cpu"), grad


def _pointwise(
    x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, kind: str, reduction: str
) -> Any:
    return _pairs(kind, x, target, weight, pos_weight, reduction, None, True, False)[0]


def _pointwise_fake(
    x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, kind: str, reduction: str
) -> Any:
    return torch.empty_like(x.contiguous()) if reduction == "none" else x.new_empty([])


def _pointwise_grad(
    dy: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    kind: str,
    reduction: str,
) -> Any:
    return _pairs(kind, x, target, weight, pos_weight, reduction, dy, False, True)[1]


def _pointwise_grad_fake(dy: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x.contiguous())


_pointwise_backward_kernel = Kernel(
    "pointwise_loss_backward",
    "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, str kind, str reduction) "
    "-> Tensor",
    _pointwise_grad,
    _pointwise_grad_fake,
)


def _save_pointwise(ctx: Any, inputs: Any, output: Any) -> None:
    x, target, weight, pos_weight, ctx.kind, ctx.reduction = inputs
    ctx.save_for_backward(x, target, weight, pos_weight)


def _pointwise_eager(ctx: Any, *inputs: Any) -> Any:
    x, target, weight, pos_weight, kind, reduction = inputs
    _save_pointwise(ctx, inputs, None)
    # The target of a squared error may need a gradient too.
    fused = reduction != "none" and ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
    loss, ctx.grad = _pairs(kind, x, target, weight, pos_weight, reduction, None, True, fused)
    return loss


def _pointwise_backward(ctx: Any, dy: Tensor | None) -> Any:
    if dy is None:
        return (None,) * 6
    if _by_torch(dy):
        x, target, weight, pos_weight = ctx.saved_tensors

        def forward(x: Tensor, target: Tensor) -> Tensor:
            if ctx.kind == "mse":
                return reference.mse_loss(x, target, reduction=ctx.reduction)
            return reference.binary_cross_entropy_with_logits(
                x, target, weight, reduction=ctx.reduction, pos_weight=pos_weight
            )

        return (*_again(forward, (x, target), ctx.needs_input_grad, [dy]), None, None, None, None)
    grad = _kept_gradient(ctx, dy)
    if grad is None:
        x, target, weight, pos_weight = ctx.saved_tensors
        grad = _pointwise_backward_kernel(dy, x, target, weight, pos_weight, ctx.kind, ctx.reduction)
    want = ctx.needs_input_grad
    return _if(want[0], grad), -grad if want[1] else None, None, None, None, None


pointwise_loss = Operation(
    "pointwise_loss",
    "(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, str kind, str reduction) -> Tensor",
    _pointwise,
    _pointwise_fake,
    _save_pointwise,
    _pointwise_backward,
    tensors=2,
    eager=_pointwise_eager,
)
