"""The layers: equal to torch's in both passes, right derivatives, modes, state, errors, and a network that learns."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import re
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from helpers import BF16, DTYPES, assert_same, assert_same_bits
from ironstep import functional, nn
from ironstep.optim import SGD, AdamW

Array = np.ndarray[Any, Any]
F32, F64 = np.float32, np.float64
PRODUCTS = (nn.Linear, nn.Conv2d)


class TorchResidual(torch.nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class TorchPool(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Case(NamedTuple):
    """A layer, the same in torch (None if there is none), and the shape of an input."""

    name: str
    ours: Callable[[Any], nn.Layer]
    theirs: Callable[[], torch.nn.Module] | None
    shape: tuple[int, ...]
    channel_axis: int = 1


def alone(name: str, shape: tuple[int, ...], cls: str, *arguments: Any, **options: Any) -> Case:
    """A layer that torch lacks, or whose numbers are other ones there."""
    accepted = inspect.signature(getattr(nn, cls)).parameters
    fixed = {"seed": 5} if "seed" in accepted else {}

    def ours(dtype: Any) -> nn.Layer:
        return getattr(nn, cls)(*arguments, **options, **fixed, **({"dtype": dtype} if "dtype" in accepted else {}))

    return Case(name, ours, None, shape, options.get("channel_axis", 1))


def same(name: str, shape: tuple[int, ...], cls: str, *arguments: Any, channel_axis: int = 1, **options: Any) -> Case:
    """A layer that torch has under the same name, with the same arguments."""
    own = options if channel_axis == 1 else options | {"channel_axis": channel_axis}
    theirs = functools.partial(getattr(torch.nn, cls), *arguments, **options)
    return alone(name, shape, cls, *arguments, **own)._replace(theirs=theirs, channel_axis=channel_axis)


t = torch.nn
CASES = [
    same("linear", (6, 5), "Linear", 5, 7),
    same("linear_1d", (5,), "Linear", 5, 7),
    same("linear_3d", (2, 3, 5), "Linear", 5, 7, bias=False),
    same("conv", (2, 3, 7, 6), "Conv2d", 3, 4, 3),
    same("conv_1x1", (3, 3, 5, 4), "Conv2d", 3, 4, 1, bias=False),
    same("conv_all", (3, 2, 9, 8), "Conv2d", 2, 3, (3, 2), (2, 3), (1, 2), (2, 1)),
    same("max_pool", (2, 3, 7, 6), "MaxPool2d", 2),
    same("max_pool_all", (2, 3, 7, 6), "MaxPool2d", (3, 2), (1, 2), (1, 1)),
    alone("avg_pool", (2, 3, 7, 6), "GlobalAvgPool2d")._replace(theirs=TorchPool),
    same("flatten", (3, 2, 4), "Flatten"),
    same("relu", (4, 5), "ReLU"),
    same("gelu", (4, 5), "GELU"),
    same("gelu_tanh", (4, 5), "GELU", "tanh"),
    same("layer_norm", (3, 4, 6), "LayerNorm", 6),
    same("layer_norm_2", (3, 4, 6), "LayerNorm", (4, 6), 1e-3, bias=False),
    same("layer_norm_plain", (3, 6), "LayerNorm", 6, elementwise_affine=False),
    same("rms_norm", (3, 4, 6), "RMSNorm", 6),
    same("rms_norm_2", (3, 4, 6), "RMSNorm", [4, 6], 1e-3, False),
    alone("rms_norm_offset", (3, 4, 6), "RMSNorm", 6, offset=1.0),
    same("group_norm", (3, 6, 4, 3), "GroupNorm", 2, 6),
    same("group_norm_flat", (5, 6), "GroupNorm", 3, 6, 1e-3),
    same("group_norm_last", (3, 4, 5, 6), "GroupNorm", 2, 6, affine=False, channel_axis=-1),
    same("batch_norm_1d", (7, 4), "BatchNorm1d", 4),
    same("batch_norm_1d_mean", (3, 4, 5), "BatchNorm1d", 4, 1e-3, None),
    alone("batch_norm_1d_biased", (7, 4), "BatchNorm1d", 4, unbiased=False),
    same("batch_norm_2d", (3, 4, 5, 2), "BatchNorm2d", 4),
    same("batch_norm_2d_last", (3, 5, 2, 4), "BatchNorm2d", 4, channel_axis=-1),
    same("batch_norm_2d_plain", (3, 4, 5, 2), "BatchNorm2d", 4, affine=False),
    same("batch_norm_3d", (3, 4, 2, 3, 2), "BatchNorm3d", 4, momentum=0.3, track_running_stats=False),
    same(
        "batch_norm_3d_plain", (3, 4, 2, 3, 2), "BatchNorm3d", 4, momentum=None, affine=False, track_running_stats=False
    ),
    same("instance_norm_1d", (3, 4, 5), "InstanceNorm1d", 4),
    same("instance_norm_2d", (3, 4, 5, 2), "InstanceNorm2d", 4, 1e-3, 0.2, True, True),
    same("instance_norm_2d_last", (3, 5, 2, 4), "InstanceNorm2d", 4, affine=True, channel_axis=3),
    same("instance_norm_3d", (3, 4, 2, 3, 2), "InstanceNorm3d", 4, track_running_stats=True),
    alone("dropout", (6, 5), "Dropout", 0.3),
    alone("dropout_1d", (6, 5, 3), "Dropout1d", 0.3),
    alone("dropout_2d", (4, 2, 3, 5), "Dropout2d", 0.3, channel_axis=-1),
    alone("dropout_3d", (4, 5, 2, 3, 2), "Dropout3d", 0.3),
    alone("stochastic_depth", (9, 2, 3), "StochasticDepth", 0.3),
    alone("stochastic_depth_batch", (9, 2, 3), "StochasticDepth", 0.3, "batch"),
    same("identity", (2, 3), "Sequential"),
    Case(
        "residual",
        lambda d: nn.Residual(nn.Linear(5, 5, seed=0, dtype=d), nn.GELU()),
        lambda: TorchResidual(t.Linear(5, 5), t.GELU()),
        (6, 5),
    ),
    Case(
        "sequential",
        lambda d: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, seed=0, dtype=d),
            nn.BatchNorm2d(4, dtype=d),
            nn.ReLU(),
            nn.Residual(nn.Sequential(nn.GroupNorm(2, 4, dtype=d), nn.Conv2d(4, 4, 1, seed=1, dtype=d))),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3, seed=2, dtype=d),
        ),
        lambda: t.Sequential(
            t.Conv2d(2, 4, 3, padding=1),
            t.BatchNorm2d(4),
            t.ReLU(),
            TorchResidual(t.Sequential(t.GroupNorm(2, 4), t.Conv2d(4, 4, 1))),
            t.MaxPool2d(2),
            t.Flatten(),
            t.Linear(16, 3),
        ),
        (5, 2, 4, 5),
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
with_torch = pytest.mark.parametrize("case", [case for case in CASES if case.theirs], ids=lambda case: case.name)
both_modes = pytest.mark.parametrize("mode", ["train", "eval"])


def close(got: Array, want: Array, tolerance: float, what: str = "") -> None:
    """Element by element, to the scale of each or of 1."""
    assert got.shape == want.shape, what
    got, want = got.astype(F64), want.astype(F64)
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=what)


def is_count(name: str) -> bool:
    return name.endswith(("stream", "num_batches_tracked"))


def disturb(layer: nn.Layer, rng: np.random.Generator) -> nn.Layer:
    """Other values than the initial ones in all parameters and running statistics."""
    for name, array in (layer.params | layer.buffers).items():
        if not is_count(name):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
    return layer


def passes(layer: nn.Layer, x: Array, dy: Array | None = None) -> dict[str, Array]:
    """What a forward and a backward give and leave."""
    y = layer(x)
    dx = layer.backward(np.ones_like(y) if dy is None else dy)
    return {"y": y, "dx": dx} | {f"grad {name}": g.copy() for name, g in layer.grads.items()} | layer.state_dict()


def is_affine(layer: nn.Layer) -> bool:
    return bool(layer.params)


def test_the_table_has_every_layer():
    classes = {cls for name in nn.__all__ if isinstance(cls := getattr(nn, name), type)}
    assert {type(case.ours(F32)) for case in CASES} == classes - {nn.Layer}


# -- Both passes -------------------------------------------------------------------------------------------------------


@both_modes
@with_torch
def test_equals_torch(case: Case, mode: str):
    rng = np.random.default_rng(1)
    ours = disturb(case.ours(F64), rng).train(mode == "train")
    theirs = case.theirs().double().train(mode == "train")
    assert set(ours.state_dict()) == set(theirs.state_dict())
    assert set(ours.params) == {name for name, _ in theirs.named_parameters()}
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    axis = case.channel_axis

    def to_torch(a: Array) -> torch.Tensor:
        return torch.from_numpy(a.copy() if axis == 1 else np.moveaxis(a, axis, 1).copy())

    def to_numpy(a: torch.Tensor) -> Array:
        return a.detach().numpy() if axis == 1 else np.moveaxis(a.detach().numpy(), 1, axis)

    for step in range(2):
        x = rng.normal(size=case.shape)
        tx = to_torch(x).requires_grad_()
        theirs.zero_grad()
        ty = theirs(tx)
        y = ours(x)
        assert ours.training == (mode == "train")
        close(y, to_numpy(ty), 1e-10, f"step {step}, output")
        dy = rng.normal(size=y.shape)
        ty.backward(to_torch(dy))
        close(ours.backward(dy), to_numpy(tx.grad), 1e-10, f"step {step}, gradient of the input")
        for name, parameter in theirs.named_parameters():
            close(ours.grads[name], parameter.grad.numpy(), 1e-10, f"step {step}, gradient of {name}")
        for name, value in theirs.state_dict().items():
            close(ours.state_dict()[name], value.numpy(), 1e-12, f"step {step}, {name}")
    # And back: what torch has learnt.
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter *= 1.5
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    close(ours.eval()(x), to_numpy(theirs.eval()(tx)), 1e-10)


@both_modes
@every_case
def test_derivatives_are_finite_differences(case: Case, mode: str):
    rng = np.random.default_rng(2)
    layer = disturb(case.ours(F64), rng).train(mode == "train")
    x = rng.normal(size=case.shape)
    dy = rng.normal(size=layer(x).shape)
    state = layer.state_dict()

    def loss() -> float:
        layer.load_state_dict(state | {name: value.copy() for name, value in layer.params.items()})
        return float((layer(x) * dy).sum())

    loss()
    gradients = {"input": (x, layer.backward(dy))} | {n: (layer.params[n], layer.grads[n].copy()) for n in layer.params}
    for name, (array, gradient) in gradients.items():
        for _ in range(3):
            start, direction = array.copy(), rng.normal(size=array.shape)
            ends = []
            for sign in (1, -1):
                array[...] = start + sign * 1e-6 * direction
                ends.append(loss())
            array[...] = start
            want = (ends[0] - ends[1]) / 2e-6
            assert (gradient * direction).sum() == pytest.approx(want, rel=1e-6, abs=1e-6), name


def layouts(x: Array) -> dict[str, Array]:
    """The same numbers, elsewhere."""
    big = np.zeros(tuple(2 * n + 1 for n in x.shape), x.dtype)
    view = big[tuple(slice(1, None, 2) for _ in x.shape)]
    view[...] = x
    readonly = x.copy()
    readonly.setflags(write=False)
    return {
        "Fortran": np.asfortranarray(x),
        "channels last": np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1) if x.ndim > 1 else x,
        "every second": view,
        "backwards": np.flip(np.flip(x).copy()),
        "read-only": readonly,
        "byte order": x.astype(x.dtype.newbyteorder()),
        "unaligned": np.frombuffer(b"0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    }


@every_case
def test_any_layout(case: Case):
    rng = np.random.default_rng(3)
    start = disturb(case.ours(F32), rng)
    x = rng.normal(size=case.shape).astype(F32)
    want = passes(copy.deepcopy(start), x, dy := rng.normal(size=copy.deepcopy(start)(x).shape).astype(F32))
    for (name, odd), odd_dy in zip(layouts(x).items(), layouts(dy).values(), strict=True):
        before = odd.copy()
        got = passes(copy.deepcopy(start), odd, odd_dy)
        assert got.keys() == want.keys()
        for key in want:
            close(got[key], want[key], 1e-5, f"{name}, {key}")
        assert_same_bits(odd, before, f"{name}: the input")


@both_modes
@every_case
def test_types(case: Case, mode: str):
    """Every type that a layer takes gives itself, and nearly the numbers of float64; parameters may have another."""
    exact = disturb(case.ours(F64), np.random.default_rng(4)).train(mode == "train")
    start = exact.state_dict()
    # Numbers that even bfloat16 has, and apart from each other, so that the largest one is the same everywhere.
    x = np.random.default_rng(4).permutation(np.prod(case.shape)).reshape(case.shape) % 128 / 16.0 - 4.0 + 1 / 32
    want = passes(exact, x)
    has_product = any(part in case.name for part in ("linear", "conv", "residual", "sequential"))
    pairs = [(F32, F32)] if has_product else [(dtype, other) for dtype in DTYPES for other in (F32, dtype)]
    for data, weight in pairs:
        layer = case.ours(weight).train(mode == "train")
        layer.load_state_dict({name: value.astype(layer.state_dict()[name].dtype) for name, value in start.items()})
        got = passes(layer, x.astype(data))
        assert got["y"].dtype == got["dx"].dtype == data
        tolerance = max({"bfloat16": 0.1, "float16": 0.02}.get(np.dtype(dtype).name, 1e-4) for dtype in (data, weight))
        for key in want:
            scale = np.abs(want[key]).max(initial=1.0)
            close(got[key].astype(F64) / scale, want[key] / scale, tolerance, f"{data} {weight} {key}")
        assert all(grad.dtype == layer.params[name].dtype == weight for name, grad in layer.grads.items())
        least = F64 if weight == F64 else F32
        assert all(buffer.dtype == least for name, buffer in layer.buffers.items() if not is_count(name))


@pytest.mark.parametrize("arguments", [(2,), (3, 2, 1), ((2, 3), (1, 2), (1, 0)), (6, 1, 3)], ids=str)
def test_max_pool_of_equal_infinite_and_nan_elements(arguments: tuple[Any, ...]):
    rng = np.random.default_rng(5)
    values = np.array([-np.inf, 0.0, -0.0, 1.0, np.inf, np.nan])
    ours, theirs = nn.MaxPool2d(*arguments), torch.nn.MaxPool2d(*arguments)
    for kinds in (1, 2, 3, 4, 5, 6, 6, 6):
        x = rng.choice(values[:kinds], (3, 2, 6, 7))
        tx = torch.from_numpy(x).requires_grad_()
        ty = theirs(tx)
        dy = rng.integers(1, 9, ty.shape).astype(F64)
        ty.backward(torch.from_numpy(dy))
        for dtype in DTYPES:
            want = (ty.detach().numpy() + 0.0).astype(dtype)
            assert_same_bits(ours(x.astype(dtype)), want)
            assert_same_bits(ours.predict(x.astype(dtype)), want)
            assert_same_bits(ours.backward(dy.astype(dtype)), tx.grad.numpy().astype(dtype))


def test_max_pool_with_a_large_window():
    x = np.random.default_rng(0).normal(size=(1, 1, 20, 20))
    layer = nn.MaxPool2d(20)
    assert layer(x).item() == x.max()
    assert_same_bits(layer.backward(np.ones((1, 1, 1, 1))), (x == x.max()).astype(F64))


def test_max_pool_keeps_infinite_gradients_apart():
    layer = nn.MaxPool2d(2)
    layer(np.arange(16.0).reshape(1, 1, 4, 4))
    want = np.zeros((4, 4))
    want[1, 1], want[1, 3], want[3, 1], want[3, 3] = np.inf, np.nan, -np.inf, 1.0
    assert_same_bits(layer.backward(np.array([[[[np.inf, np.nan], [-np.inf, 1.0]]]])), want[None, None])


def test_rms_norm_with_an_offset_begins_as_without():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(F32)
    want = nn.RMSNorm(4)(x)
    layer = nn.RMSNorm(4, offset=1.0)
    assert not layer.params["weight"].any()
    assert_same_bits(layer(x), want)
    assert_same_bits(nn.RMSNorm(4, offset=1.0, elementwise_affine=False)(x), want)


def test_batch_norm_with_the_biased_variance():
    x = np.random.default_rng(0).normal(size=(5, 3))
    layer = nn.BatchNorm1d(3, momentum=1.0, unbiased=False, dtype=F64)
    y = layer(x)
    close(layer.buffers["running_var"], x.var(0), 1e-12)
    close(layer.predict(x), y, 1e-12)
    assert not layer(x[:1]).any()
    with pytest.raises(ValueError, match="more than one value per channel"):
        nn.BatchNorm1d(3)(x[:1])


def test_conv_in_parts(monkeypatch):
    """However many images are unfolded at a time."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(7, 3, 6, 5))
    layer = nn.Conv2d(3, 4, 3, padding=1, seed=0, dtype=F64)
    want = passes(layer, x)
    for columns in (1, 2 * 27 * 30, 10**9):
        monkeypatch.setattr(nn, "COLUMNS", columns)
        got = passes(layer, x)
        for key in want:
            close(got[key], want[key], 1e-12, key)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.name not in ("linear_1d", "batch_norm_3d", "batch_norm_3d_plain")],
    ids=lambda case: case.name,
)
def test_empty_batch(case: Case):
    """No samples are no error where no statistics of the batch are taken, and give gradients of 0."""
    layer = case.ours(F32).eval()
    x = np.zeros((0, *case.shape[1:]), F32)
    y = layer(x)
    assert y.shape == (0, *layer(np.zeros(case.shape, F32)).shape[1:])
    layer(x)
    assert layer.backward(y).shape == x.shape
    assert all(not grad.any() for grad in layer.grads.values())


# -- params, grads, modes ----------------------------------------------------------------------------------------------


@every_case
def test_dicts_and_arrays_stay_the_same(case: Case):
    rng = np.random.default_rng(7)
    layer = case.ours(F32)
    arrays = {kind: dict(getattr(layer, kind)) for kind in ("params", "grads", "buffers")}
    dicts = {kind: getattr(layer, kind) for kind in arrays}
    assert list(layer.params) == list(layer.grads)
    for name, grad in layer.grads.items():
        assert grad.shape == layer.params[name].shape
        assert grad.dtype == layer.params[name].dtype
        assert not grad.any()
    opt = SGD(layer.params, lr=1e-3) if is_affine(layer) else None
    for _ in range(3):
        y = layer(rng.normal(size=case.shape).astype(F32))
        layer.backward(np.ones_like(y))
        if opt:
            assert all(grad.any() for name, grad in layer.grads.items())
            opt.step(layer.grads)
    layer.load_state_dict(layer.state_dict())
    layer.eval().predict(np.ones(case.shape, F32))
    for kind, want in arrays.items():
        assert getattr(layer, kind) is dicts[kind]
        assert all(getattr(layer, kind)[name] is array for name, array in want.items())


@every_case
def test_gradients_are_overwritten(case: Case):
    layer = case.ours(F64).eval()
    x = np.random.default_rng(8).normal(size=case.shape)
    first = passes(layer, x)
    assert_same(passes(layer, x), first)


@every_case
def test_predict_is_inference_and_keeps_nothing(case: Case):
    rng = np.random.default_rng(9)
    layer = disturb(case.ours(F64), rng)
    x, other = rng.normal(size=(2, *case.shape))
    want = copy.deepcopy(layer).eval()(x)
    before = layer.state_dict()
    assert_same_bits(layer.predict(x), want)
    assert_same(layer.state_dict(), before)
    assert layer.training
    with pytest.raises(RuntimeError, match="predict keeps nothing"):
        layer.backward(np.ones_like(want))
    # Between the two passes it disturbs nothing.
    want_passes = passes(copy.deepcopy(layer), x)
    layer(x)
    layer.predict(other)
    assert_same_bits(layer.backward(np.ones_like(want)), want_passes["dx"])


def test_predict_frees_what_it_has_passed():
    alive: list[int] = []
    outputs: list[weakref.ref[Array]] = []

    class Spy(nn.Layer):
        def compute(self, input, save):
            output = input + 1
            outputs.append(weakref.ref(output))
            alive.append(sum(ref() is not None for ref in outputs))
            return output, input

        def differentiate(self, grad_output, saved):
            return grad_output

    model = nn.Sequential(*(Spy() for _ in range(5)))
    model.predict(np.ones(3))
    assert max(alive) == 2
    y = model(np.ones(3))
    assert alive[-1] == 5
    model.backward(y)
    del y
    assert not any(ref() is not None for ref in outputs)


def test_the_mode_and_the_arguments_are_in_the_repr():
    seed = {"seed": 0}
    for layer, want in [
        (nn.BatchNorm2d(64), "BatchNorm2d(64, eps=1e-05, momentum=0.1) [train]"),
        (nn.BatchNorm2d(64).eval(), "BatchNorm2d(64, eps=1e-05, momentum=0.1) [eval]"),
        (
            nn.BatchNorm1d(3, 1e-3, None, False, False, channel_axis=-1, unbiased=False, dtype=F64),
            "BatchNorm1d(3, eps=0.001, momentum=None, affine=False, track_running_stats=False, channel_axis=-1, "
            "unbiased=False, dtype=float64) [train]",
        ),
        (nn.BatchNorm3d(2), "BatchNorm3d(2, eps=1e-05, momentum=0.1) [train]"),
        (nn.InstanceNorm1d(3, affine=True), "InstanceNorm1d(3, eps=1e-05, momentum=0.1, affine=True) [train]"),
        (nn.LayerNorm(8, dtype=BF16), "LayerNorm((8,), eps=1e-05, dtype=bfloat16) [train]"),
        (nn.LayerNorm((2, 8), bias=False), "LayerNorm((2, 8), eps=1e-05, bias=False) [train]"),
        (nn.RMSNorm(8, offset=1.0), "RMSNorm((8,), eps=None, offset=1.0) [train]"),
        (nn.GroupNorm(2, 4), "GroupNorm(2, 4, eps=1e-05) [train]"),
        (nn.Dropout(seed=3), "Dropout(p=0.5, seed=3) [train]"),
        (nn.Dropout2d(0.1, channel_axis=-1, seed=3).eval(), "Dropout2d(p=0.1, channel_axis=-1, seed=3) [eval]"),
        (nn.StochasticDepth(0.1, "batch", seed=3), "StochasticDepth(p=0.1, mode='batch', seed=3) [train]"),
        (nn.Linear(2, 3, **seed), "Linear(2, 3) [train]"),
        (nn.Linear(2, 3, False, **seed, dtype=F64), "Linear(2, 3, bias=False, dtype=float64) [train]"),
        (nn.Conv2d(2, 3, 3, **seed), "Conv2d(2, 3, (3, 3)) [train]"),
        (nn.Conv2d(2, 3, (3, 1), 2, **seed), "Conv2d(2, 3, (3, 1), stride=(2, 2)) [train]"),
        (nn.MaxPool2d(2), "MaxPool2d((2, 2), stride=(2, 2)) [train]"),
        (nn.GELU(), "GELU() [train]"),
        (nn.GELU("tanh"), "GELU(approximate='tanh') [train]"),
        (nn.Flatten().eval(), "Flatten() [eval]"),
        (nn.Sequential(), "Sequential() [train]"),
        (
            nn.Sequential(nn.ReLU(), nn.Residual(nn.ReLU(), nn.ReLU())),
            "Sequential(\n  (0): ReLU() [train]\n  (1): Residual(\n    (0): ReLU() [train]\n    (1): ReLU() [train]\n"
            "  ) [train]\n) [train]",
        ),
    ]:
        assert repr(layer) == want


def test_modes():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Residual(nn.Dropout(seed=0)))
    assert model.training
    assert model[1][0].training
    assert model.eval() is model
    assert not any(layer.training for layer in (model, model[0], model[1], model[1][0]))
    assert repr(model).count("[eval]") == 4
    assert model.train() is model
    assert repr(model).count("[train]") == 4
    assert not model.train(False).training
    # A part may be frozen while the rest trains.
    model.train()[0].eval()
    before = model.state_dict()
    model(np.ones((4, 2), F32))
    after = model.state_dict()
    assert_same_bits(after["0.running_mean"], before["0.running_mean"])
    assert after["1.0.stream"] == before["1.0.stream"] + 1


def test_backward_needs_a_forward_of_its_own():
    layer = nn.Linear(2, 3, seed=0)
    x, dy = np.ones((4, 2), F32), np.ones((4, 3), F32)
    with pytest.raises(RuntimeError, match="backward of Linear must follow a forward of its own"):
        layer.backward(dy)
    layer(x)
    for wrong, error, message in [
        (dy[:2], ValueError, r"grad_output must have shape (4, 3) like the output, got (2, 3)"),
        (dy.astype(F64), TypeError, "grad_output must be float32 like the output, got float64; use astype"),
        (
            dy.tolist(),
            TypeError,
            "grad_output must be a NumPy array, or an object",
        ),
        (dy.astype(int), TypeError, "grad_output must be float32, float64, float16 or bfloat16, got int64"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            layer.backward(wrong)
        assert not layer.grads["weight"].any()
    layer.backward(dy)
    with pytest.raises(RuntimeError, match="uses up what forward kept"):
        layer.backward(dy)
    model = nn.Sequential(layer)
    layer(x)
    with pytest.raises(RuntimeError, match="Sequential"):
        model.backward(dy)


def test_a_call_of_a_part_between_the_passes_disturbs_nothing():
    rng = np.random.default_rng(10)
    model = nn.Sequential(nn.Linear(2, 2, seed=0), nn.GELU(), nn.LayerNorm(2))
    x, other = rng.normal(size=(2, 4, 2)).astype(F32)
    want = passes(model, x)
    y = model(x)
    model[0](other)
    model[0].backward(other)
    model.backward(np.ones_like(y))
    assert_same({name: want[f"grad {name}"] for name in model.grads}, dict(model.grads))


def test_a_failed_forward_leaves_the_layer_as_it_was():
    layer = nn.BatchNorm1d(2)
    x = np.arange(8.0, dtype=F32).reshape(4, 2)
    layer(x)
    before = layer.state_dict()
    for wrong in (np.ones((4, 3), F32), np.ones((1, 2), F32), np.ones((4, 2), int)):
        with pytest.raises((ValueError, TypeError)):
            layer(wrong)
    assert_same(layer.state_dict(), before)
    assert layer.backward(x).shape == (4, 2)
    drop = nn.Dropout2d(seed=0)
    with pytest.raises(ValueError, match="input"):
        drop(x)
    assert drop.buffers["stream"] == 0


# -- State -------------------------------------------------------------------------------------------------------------


@every_case
def test_state_dict_round_trip(case: Case):
    rng = np.random.default_rng(11)
    layer = case.ours(F32)
    x = rng.normal(size=case.shape).astype(F32)
    passes(layer, x)
    disturb(layer, rng)
    state = layer.state_dict()
    assert all(state[name] is not array for name, array in (layer.params | layer.buffers).items())
    again = case.ours(F32)
    again.load_state_dict(state)
    want = passes(layer, x)
    assert_same(passes(again, x), want)
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert_same(other.state_dict(), layer.state_dict())
        assert_same(passes(other, x), passes(copy.deepcopy(layer), x))


def test_copies_are_whole_and_their_own():
    model = nn.Sequential(nn.Linear(2, 2, seed=0), nn.BatchNorm1d(2))
    x = np.random.default_rng(0).normal(size=(8, 2)).astype(F32)
    model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(RuntimeError):
            other.backward(x)
        # The dicts of the whole still have the arrays of the parts.
        assert other.params["0.weight"] is other[0].params["weight"]
        assert other.grads["1.bias"] is other[1].grads["bias"]
        assert other.buffers["1.running_var"] is other[1].buffers["running_var"]
        assert not np.shares_memory(other.params["0.weight"], model.params["0.weight"])


def test_load_state_dict_refuses_what_does_not_fit_and_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 3, seed=0), nn.BatchNorm1d(3), nn.Dropout(seed=0))
    before = model.state_dict()
    good = {name: np.ones_like(value) for name, value in before.items()}
    less = {name: value for name, value in good.items() if name not in ("0.bias", "2.stream")}
    for wrong, error, message in [
        (less, ValueError, "lacks '0.bias', '2.stream'; model.state_dict() | state_dict keeps the layer's own"),
        (good | {"3.weight": np.ones(2)}, ValueError, "state_dict has names that this layer lacks: '3.weight'"),
        (
            good | {"1.running_var": np.ones(2, F32)},
            ValueError,
            "state_dict['1.running_var'] must have shape (3,), got (2,)",
        ),
        (
            good | {"1.running_var": np.ones(3)},
            TypeError,
            "state_dict['1.running_var'] must be float32, got float64; use astype",
        ),
        (list(good), TypeError, "state_dict must be a dict of arrays, got list"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            model.load_state_dict(wrong)
        assert_same(model.state_dict(), before)
    model.load_state_dict(good)
    assert_same(model.state_dict(), good)
    good["0.weight"][...] = 5
    assert_same_bits(model.state_dict()["0.weight"], np.ones((3, 2), F32))
    model.load_state_dict(before | {"2.stream": 7, "0.weight": before["0.weight"].astype(">f4")})
    assert model[2].buffers["stream"] == 7
    assert_same_bits(model.params["0.weight"], before["0.weight"])


def test_state_dict_in_a_file(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3, seed=0), nn.BatchNorm1d(3))
    np.savez(tmp_path / "model.npz", **model.state_dict())
    again = nn.Sequential(nn.Linear(2, 3, seed=1), nn.BatchNorm1d(3))
    with np.load(tmp_path / "model.npz") as file:
        again.load_state_dict(file)
    assert_same(again.state_dict(), model.state_dict())


# -- Random layers -----------------------------------------------------------------------------------------------------

RANDOM = [case for case in CASES if case.name.startswith(("dropout", "stochastic"))]


@pytest.mark.parametrize("case", RANDOM, ids=lambda case: case.name)
def test_dropout_is_the_functional_one_with_the_next_stream(case: Case):
    layer: Any = case.ours(F32)
    function = {
        nn.Dropout: functional.dropout,
        nn.Dropout1d: functional.dropout1d,
        nn.Dropout2d: functional.dropout2d,
        nn.Dropout3d: functional.dropout3d,
        nn.StochasticDepth: functional.stochastic_depth,
    }[type(layer)]
    options = {name: getattr(layer, name) for name in ("channel_axis", "mode") if hasattr(layer, name)}
    x = np.random.default_rng(12).normal(size=case.shape).astype(F32)
    dy = np.random.default_rng(13).normal(size=case.shape).astype(F32)
    seen = []
    for stream in range(4):
        y, saved = function(x, 0.3, training=True, seed=5, stream=stream, save=True, **options)
        assert_same_bits(layer(x), y)
        assert_same_bits(layer.backward(dy), functional.dropout_backward(dy, saved))
        seen.append(y)
    assert any((seen[0] != y).any() for y in seen[1:])
    assert layer.predict(x) is x
    assert layer.eval()(x) is x
    assert layer.backward(dy) is dy
    assert layer.buffers["stream"] == 4


def test_a_resumed_run_drops_the_same():
    def make() -> nn.Sequential:
        rng = np.random.default_rng(14)
        return nn.Sequential(
            nn.Linear(4, 8, seed=rng),
            nn.Dropout(0.5, seed=rng),
            nn.Linear(8, 2, seed=rng),
            nn.StochasticDepth(0.2, seed=rng),
        )

    def run(model: nn.Sequential, opt: AdamW, steps: range) -> list[float]:
        losses = []
        for step in steps:
            x = np.random.default_rng(step).normal(size=(16, 4)).astype(F32)
            loss, grad = functional.mse_loss(model(x), np.ascontiguousarray(x[:, :2]), return_grad=True)
            model.backward(grad)
            opt.step(model.grads)
            losses.append(loss)
        return losses

    model = make()
    opt = AdamW(model.params, lr=0.01)
    run(model, opt, range(3))
    state, opt_state = model.state_dict(), opt.state_dict()
    want = run(model, opt, range(3, 6))
    again = make()
    again.load_state_dict(state)
    other = AdamW(again.params, lr=0.01)
    other.load_state_dict(opt_state)
    assert run(again, other, range(3, 6)) == want
    assert_same(again.state_dict(), model.state_dict())
    # The count is what does it.
    again.load_state_dict(state | {"1.stream": 0})
    assert run(again, other, range(3, 6)) != want


def test_seeds():
    x = np.ones((10, 10), F32)
    assert_same_bits(nn.Dropout(seed=1)(x), nn.Dropout(seed=np.int64(1))(x))
    assert (nn.Dropout(seed=1)(x) != nn.Dropout(seed=2)(x)).any()
    assert nn.Dropout(seed=2**64 - 1)(x).shape == x.shape
    a, b = np.random.default_rng(0), np.random.default_rng(0)
    first, second = nn.Dropout(seed=a), nn.Dropout(seed=a)
    assert first.seed != second.seed
    assert first.seed == nn.Dropout(seed=b).seed
    with pytest.raises(ValueError, match="dropout layers must have different seeds"):
        nn.Sequential(nn.Dropout(seed=1), nn.Residual(nn.StochasticDepth(0.1, seed=1)))
    nn.Sequential(first, nn.Residual(second))


# -- Sequential and Residual -------------------------------------------------------------------------------------------


def test_sequential_is_a_sequence():
    layers = [nn.Linear(2, 3, seed=0), nn.ReLU(), nn.Linear(3, 2, seed=1)]
    model = nn.Sequential(*layers)
    assert len(model) == 3
    assert list(model) == layers
    assert model[0] is layers[0]
    assert model[-1] is layers[-1]
    with pytest.raises(IndexError):
        model[3]
    part = model[1:]
    assert isinstance(part, nn.Sequential)
    assert list(part) == layers[1:]
    assert part.params["1.weight"] is model.params["2.weight"]
    assert list(nn.Sequential(nn.Residual(model)).params) == [f"0.0.{name}" for name in model.params]
    with pytest.raises(TypeError, match=r"layer 1 must be a Layer, got \[\]"):
        nn.Sequential(nn.ReLU(), [])
    with pytest.raises(ValueError, match="one place only"):
        nn.Sequential(layers[0], nn.Sequential(layers[0]))
    relu = nn.ReLU()
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(F32)
    assert_same(passes(nn.Sequential(relu, relu), x), passes(nn.ReLU(), x))


def test_residual_keeps_the_shape():
    block = nn.Residual(nn.Linear(2, 1, seed=0))
    with pytest.raises(ValueError, match=re.escape("Residual must keep the shape of their input, (4, 2), got (4, 1)")):
        block(np.ones((4, 2), F32))


def test_sequential_is_its_layers_by_hand():
    rng = np.random.default_rng(15)
    model = nn.Sequential(nn.Linear(3, 4, seed=0), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(seed=1))
    parts = list(copy.deepcopy(model))
    x, dy = rng.normal(size=(5, 3)).astype(F32), rng.normal(size=(5, 4)).astype(F32)
    y = x
    for part in parts:
        y = part(y)
    assert_same_bits(model(x), y)
    g = dy
    for part in reversed(parts):
        g = part.backward(g)
    assert_same_bits(model.backward(dy), g)
    for i, part in enumerate(parts):
        for name, grad in part.grads.items():
            assert_same_bits(model.grads[f"{i}.{name}"], grad)


# -- Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.Linear(3, 2, seed=0), (4, 2), "input must have shape (..., 3), got (4, 2)"),
        (nn.Linear(3, 2, seed=0), (), "input must have shape (..., 3), got ()"),
        (nn.Conv2d(3, 2, 3, seed=0), (4, 2, 5, 5), "input must have shape (N, 3, H, W), got (4, 2, 5, 5)"),
        (nn.Conv2d(3, 2, 3, seed=0), (3, 5, 5), "input must have shape (N, 3, H, W), got (3, 5, 5)"),
        (nn.Conv2d(3, 2, 3, seed=0), (1, 3, 5, 2), "as large as the window of Conv2d(3, 2, (3, 3)) [train] with its"),
        (nn.MaxPool2d(2), (4, 4), "input must have shape (N, C, H, W), got (4, 4)"),
        (nn.MaxPool2d(2), (1, 1, 1, 4), "got shape (1, 1, 1, 4)"),
        (nn.GlobalAvgPool2d(), (4, 4), "input must have shape (N, C, H, W), got (4, 4)"),
        (nn.GlobalAvgPool2d(), (4, 4, 0, 3), "got (4, 4, 0, 3)"),
        (nn.Flatten(), (), "input must have shape (N, ...), got ()"),
        (nn.LayerNorm((2, 3)), (4, 3), "input must have shape (..., 2, 3), got (4, 3)"),
        (nn.RMSNorm(3), (4, 2), "input must have shape (..., 3), got (4, 2)"),
        (nn.GroupNorm(2, 4), (4, 3), "input must have shape (N, 4) or (N, 4, L) or (N, 4, H, W) or (N, 4, D, H, W)"),
        (nn.BatchNorm1d(4), (3, 4, 2, 2), "input must have shape (N, 4) or (N, 4, L), got (3, 4, 2, 2)"),
        (nn.BatchNorm1d(4, channel_axis=-1), (3, 3), "input must have shape (N, 4) or (N, L, 4), got (3, 3)"),
        (nn.BatchNorm2d(4), (3, 4), "input must have shape (N, 4, H, W), got (3, 4)"),
        (nn.BatchNorm2d(4, channel_axis=-1), (2, 4, 3, 3), "input must have shape (N, H, W, 4), got (2, 4, 3, 3)"),
        (nn.BatchNorm2d(4, channel_axis=2), (2, 4, 3, 3), "input must have shape (N, H, 4, W), got (2, 4, 3, 3)"),
        (nn.BatchNorm3d(4), (3, 4), "input must have shape (N, 4, D, H, W), got (3, 4)"),
        (nn.InstanceNorm1d(4), (3, 4), "input must have shape (N, 4, L), got (3, 4)"),
        (nn.InstanceNorm2d(4), (4, 3, 3), "input must have shape (N, 4, H, W), got (4, 3, 3)"),
        (nn.InstanceNorm3d(4), (4, 3, 3), "input must have shape (N, 4, D, H, W), got (4, 3, 3)"),
        (nn.Dropout1d(seed=0), (4, 3), "input must have shape (N, C, L), got (4, 3)"),
        (nn.Dropout2d(channel_axis=-1, seed=0), (4, 3), "input must have shape (N, H, W, C), got (4, 3)"),
        (nn.Dropout3d(seed=0), (4, 3), "input must have shape (N, C, D, H, W), got (4, 3)"),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else type(value).__name__,
)
def test_wrong_shapes(layer: nn.Layer, shape: tuple[int, ...], message: str):
    for call in (layer, layer.predict, layer.eval(), layer.train()):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(np.ones(shape, F32))


def test_objects_that_numpy_can_take():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(F32)
    layer = nn.Sequential(nn.Linear(4, 4, seed=0), nn.LayerNorm(4))
    want = passes(layer, x, x)
    assert_same(passes(layer, torch.from_numpy(x), torch.from_numpy(x)), want)
    assert_same_bits(layer.predict(torch.from_numpy(x)), want["y"])


@every_case
def test_wrong_types(case: Case):
    layer = case.ours(F32)
    for call in (layer, layer.predict):
        with pytest.raises(TypeError, match="input must be a NumPy array, or an object"):
            call([1.0])
        with pytest.raises(TypeError, match="input must be float32, float64, float16 or bfloat16, got int64"):
            call(np.ones(case.shape, np.int64))
    if isinstance(layer, PRODUCTS):
        with pytest.raises(TypeError, match="input must be float32 like the layer's weight, got float64; use"):
            layer(np.ones(case.shape))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Linear(0, 1, seed=0), ValueError, "in_features must be an integer at least 1, got 0"),
        (lambda: nn.Linear(1, 1.0, seed=0), TypeError, "out_features must be an integer at least 1, got 1.0"),
        (lambda: nn.Linear(1, 1), TypeError, "seed"),
        (lambda: nn.Linear(1, 1, seed=None), TypeError, "seed must be an integer at least 0, got None"),
        (lambda: nn.Linear(1, 1, seed=-1), ValueError, "seed must be an integer at least 0, got -1"),
        (lambda: nn.Linear(1, 1, seed=True), TypeError, "seed must be an integer at least 0, got True"),
        (lambda: nn.Linear(1, 1, seed=0, dtype=np.float16), TypeError, "dtype must be float32 or float64, got float16"),
        (lambda: nn.Linear(1, 1, seed=0, init="he"), ValueError, "init must be 'torch', 'kaiming_uniform'"),
        (lambda: nn.Conv2d(1, 1, 0, seed=0), ValueError, "kernel_size must be an integer at least 1, got 0"),
        (lambda: nn.Conv2d(1, 1, (1, 2, 3), seed=0), ValueError, "kernel_size must be an integer or a pair of them"),
        (lambda: nn.Conv2d(1, 1, 1, padding=-1, seed=0), ValueError, "padding must be an integer at least 0, got -1"),
        (lambda: nn.Conv2d(1, 1, 1, stride="1", seed=0), TypeError, "stride must be an integer at least 1, got '1'"),
        (lambda: nn.MaxPool2d(2, padding=2), ValueError, "padding must be at most half of kernel_size=2, got 2"),
        (lambda: nn.GELU("sigmoid"), ValueError, "approximate must be 'none' or 'tanh', got 'sigmoid'"),
        (lambda: nn.LayerNorm(()), ValueError, "normalized_shape must have at least one axis, got ()"),
        (lambda: nn.LayerNorm(2, eps=-1.0), ValueError, "eps must be finite and at least 0, got -1.0"),
        (lambda: nn.RMSNorm(2, eps=float("nan")), ValueError, "eps must be finite and at least 0, got nan"),
        (lambda: nn.RMSNorm(2, dtype=int), TypeError, "dtype must be float32 or float64 or float16 or bfloat16"),
        (lambda: nn.RMSNorm(2, dtype=">f4"), TypeError, "dtype must be float32 or float64 or float16 or bfloat16"),
        (lambda: nn.RMSNorm(2, offset=float("inf")), ValueError, "offset must be finite, got inf"),
        (lambda: nn.GroupNorm(3, 4), ValueError, "num_channels must be a multiple of num_groups=3, got 4"),
        (lambda: nn.GroupNorm(2, 4, channel_axis=0), ValueError, "channel_axis must be"),
        (lambda: nn.BatchNorm2d(4, channel_axis=0), ValueError, "channel_axis must be 1 to 3, or -1 to -3, got 0"),
        (lambda: nn.BatchNorm1d(4, channel_axis=2), ValueError, "channel_axis must be 1 to 1, or -1 to -1, got 2"),
        (lambda: nn.BatchNorm2d(4, momentum=1.5), ValueError, "momentum must be from 0 to 1, got 1.5"),
        (lambda: nn.InstanceNorm2d(4, momentum=None), TypeError, "momentum must be a number"),
        (lambda: nn.Dropout(1.5, seed=0), ValueError, "p must be from 0 to 1, got 1.5"),
        (lambda: nn.Dropout("0.5", seed=0), TypeError, "p must be a number, from 0 to 1"),
        (lambda: nn.Dropout(0.5), TypeError, "seed"),
        (lambda: nn.Dropout(seed=1 << 64), ValueError, "seed must be below 2**64"),
        (lambda: nn.StochasticDepth(0.5, "col", seed=0), ValueError, "mode must be 'row' or 'batch', got 'col'"),
        (lambda: nn.kaiming_uniform((3,), seed=0), ValueError, "shape must be (outputs, inputs, *kernel), got (3,)"),
        (lambda: nn.kaiming_normal((3, 2), mode="fan", seed=0), ValueError, "mode must be 'fan_in' or 'fan_out'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments(make: Callable[[], Any], error: type[Exception], message: str):
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_a_layer_must_have_its_methods():
    with pytest.raises(NotImplementedError, match=r"Layer must have a method compute\(input, save\)"):
        nn.Layer()(np.ones(2))

    class Half(nn.Layer):
        def compute(self, input, save):
            return input, None

    half = Half()
    half(np.ones(2))
    with pytest.raises(NotImplementedError, match="Half must have a method differentiate"):
        half.backward(np.ones(2))


# -- Initial values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 200), (40, 30, 5, 3)], ids=str)
def test_initial_values_have_the_right_spread(shape: tuple[int, ...]):
    fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    gain = torch.nn.init.calculate_gain("relu")
    for function, options, std in [
        (nn.kaiming_uniform, {}, gain / fan_in**0.5),
        (nn.kaiming_uniform, {"mode": "fan_out", "gain": 1.0}, 1 / fan_out**0.5),
        (nn.kaiming_normal, {}, gain / fan_in**0.5),
        (nn.kaiming_normal, {"mode": "fan_out"}, gain / fan_out**0.5),
        (nn.xavier_uniform, {}, (2 / (fan_in + fan_out)) ** 0.5),
        (nn.xavier_uniform, {"gain": 5 / 3}, 5 / 3 * (2 / (fan_in + fan_out)) ** 0.5),
        (nn.xavier_normal, {}, (2 / (fan_in + fan_out)) ** 0.5),
    ]:
        w = function(shape, seed=0, dtype=F64, **options)
        assert w.shape == shape
        assert w.std() == pytest.approx(std, rel=0.02)
        assert abs(w.mean()) < 0.02 * std
        largest = abs(w).max() / std
        assert 1.7 < largest < 3**0.5 if "uniform" in function.__name__ else largest > 3.5
        assert_same_bits(function(shape, seed=0, **options), w.astype(F32))
        assert (function(shape, seed=1, dtype=F64, **options) != w).all()


@pytest.mark.parametrize("init", ["torch", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"])
def test_seeds_give_the_same_layers(init: str):
    for make in (
        lambda **o: nn.Linear(50, 40, init=init, **o),
        lambda **o: nn.Conv2d(5, 40, (2, 5), init=init, **o),
    ):
        layer = make(seed=3)
        assert_same(make(seed=3).state_dict(), layer.state_dict())
        assert_same(make(seed=np.random.default_rng(3)).state_dict(), layer.state_dict())
        double = make(seed=3, dtype=F64).state_dict()
        assert_same({name: value.astype(F32) for name, value in double.items()}, layer.state_dict())
        assert (make(seed=4).params["weight"] != layer.params["weight"]).all()
        rng = np.random.default_rng(3)
        assert (make(seed=rng).params["weight"] != make(seed=rng).params["weight"]).all()
        if init == "torch":
            theirs = torch.nn.Linear(50, 40)
            for name, value in theirs.named_parameters():
                ours, bound = layer.params[name], 50**-0.5
                assert 0.85 * bound < abs(ours).max() <= bound * (1 + 1e-6)
                assert abs(value).max() <= bound * (1 + 1e-6)
        else:
            assert not layer.params["bias"].any()
            assert_same_bits(
                layer.params["weight"], getattr(nn, init)(layer.params["weight"].shape, seed=np.random.default_rng(3))
            )


# -- Training ----------------------------------------------------------------------------------------------------------


def test_a_small_network_learns():
    """Which of four quarters of an image is bright."""
    data = np.random.default_rng(16)
    target = data.integers(0, 4, 256)
    x = data.normal(size=(256, 1, 8, 8)).astype(F32)
    for i, k in enumerate(target):
        x[i, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 1.0

    def train() -> tuple[list[float], nn.Sequential]:
        rng = np.random.default_rng(17)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, init="kaiming_normal", seed=rng),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Residual(
                nn.Conv2d(8, 8, 3, padding=1, seed=rng),
                nn.GroupNorm(2, 8),
                nn.GELU(),
                nn.StochasticDepth(0.1, seed=rng),
            ),
            nn.Flatten(),
            nn.LayerNorm(128),
            nn.Dropout(0.1, seed=rng),
            nn.Linear(128, 4, seed=rng),
        )
        opt = AdamW(model.params, lr=0.01)
        losses = []
        for step in range(40):
            part = np.arange(64 * step, 64 * step + 64) % 256
            loss, grad = functional.cross_entropy(model(x[part]), target[part], return_grad=True)
            model.backward(grad)
            opt.step(model.grads)
            losses.append(loss)
        return losses, model

    losses, model = train()
    assert losses[0] > 1.0
    assert losses[-1] < 0.2 * losses[0]
    assert (model.predict(x).argmax(1) == target).mean() > 0.95
    again, other = train()
    assert again == losses
    assert_same(other.state_dict(), model.state_dict())


def test_gradients_from_elsewhere():
    """The optimiser takes torch's gradients of the same parameters, and gets where the layers' own lead."""
    rng = np.random.default_rng(18)
    x, target = rng.normal(size=(32, 3)).astype(F32), rng.integers(0, 2, 32)
    ours, other = (nn.Sequential(nn.Linear(3, 8, seed=0), nn.GELU(), nn.Linear(8, 2, seed=1)) for _ in range(2))
    opt, opt_other = SGD(ours.params, lr=0.5), SGD(other.params, lr=0.5)
    for _ in range(5):
        _, grad = functional.cross_entropy(ours(x), target, return_grad=True)
        ours.backward(grad)
        opt.step(ours.grads)
        w = {name: torch.from_numpy(value).requires_grad_() for name, value in other.params.items()}
        hidden = torch.nn.functional.gelu(torch.from_numpy(x) @ w["0.weight"].T + w["0.bias"])
        logits = hidden @ w["2.weight"].T + w["2.bias"]
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(target)).backward()
        opt_other.step({name: value.grad.numpy() for name, value in w.items()})
    for name, value in ours.params.items():
        close(other.params[name], value, 1e-5, name)


def test_accumulated_gradients_by_hand():
    """What the documentation says of micro-batches: the sum is the caller's."""
    rng = np.random.default_rng(19)
    model = nn.Sequential(nn.Linear(3, 4, seed=0, dtype=F64), nn.LayerNorm(4, dtype=F64))
    x, dy = rng.normal(size=(8, 3)), rng.normal(size=(8, 4))
    model(x)
    model.backward(dy)
    want = {name: grad.copy() for name, grad in model.grads.items()}
    total = {name: np.zeros_like(grad) for name, grad in model.grads.items()}
    for part in (slice(0, 3), slice(3, 8)):
        model(x[part])
        model.backward(dy[part])
        for name, grad in model.grads.items():
            total[name] += grad
    for name, grad in want.items():
        close(total[name], grad, 1e-12, name)


def test_loading_a_layers_own_arrays_under_other_names():
    model = nn.Sequential(nn.LayerNorm(2), nn.LayerNorm(2))
    model.params["0.weight"][...] = 3.0
    swapped = {f"{1 - int(name[0])}{name[1:]}": array for name, array in model.params.items()}
    model.load_state_dict(swapped)
    assert (model.params["1.weight"] == 3.0).all()
    assert (model.params["0.weight"] == 1.0).all()


def test_bfloat16_through_a_file_of_numpy(tmp_path):
    layer = nn.LayerNorm(3, dtype=BF16)
    layer.params["weight"][...] = 1.5
    np.savez(tmp_path / "state.npz", **layer.state_dict())
    other = nn.LayerNorm(3, dtype=BF16)
    with np.load(tmp_path / "state.npz") as state:
        other.load_state_dict(dict(state))
    assert (other.params["weight"] == layer.params["weight"]).all()


def test_the_gradient_of_a_bias_over_many_rows_is_accurate():
    layer = nn.Linear(1, 1, seed=0)
    layer(np.ones((2_000_000, 1), np.float32))
    layer.backward(np.full((2_000_000, 1), 0.1, np.float32))
    assert layer.grads["bias"][0] == pytest.approx(200_000, rel=1e-6)
