"""Normalisation: the bits of the NumPy specification everywhere, the values of torch, ONNX and Keras, any array."""

from __future__ import annotations

import inspect
import itertools
import platform
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import ironstep
import layers_reference as reference
from helpers import BF16, DTYPES, assert_same, assert_same_bits, awkward, compute
from ironstep import _core, functional
from layers_cases import (
    NORMS,
    AddRMS,
    Batch,
    Channels,
    Expected,
    FlushToZero,
    Norm,
    Rows,
    channels_first_memory,
    channels_last_memory,
    close,
    expected,
    keras_in_float64,
    on_every_machine,
    onnx_node_cases,
)
from test_arrays import LAYOUTS, place

F32 = np.dtype(np.float32)
BY_NAME = {norm.name: norm for norm in NORMS}
each_norm = pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
one_of_each = pytest.mark.parametrize(
    "norm",
    [BY_NAME[name] for name in ("layer", "rms", "add_rms", "group", "group_pairs", "instance", "batch", "inference")],
    ids=lambda norm: norm.name,
)


def run(norm: Norm, x: Any, w: Any, b: Any, dy: Any) -> Expected:
    """Forward and backward."""
    y, saved = norm.forward(x, w, b)
    grads = norm.backward(dy, saved)
    mean = None if isinstance(norm, Rows) and not norm.has_bias else saved.mean
    return Expected(y, mean, saved.rstd, grads.input, grads.weight, grads.bias)


def assert_equal(got: Expected, want: Expected, what: str) -> None:
    """Bit for bit, whatever the byte order; the shape of the statistics is left open."""
    for name, a, b in zip(Expected._fields, got, want, strict=True):
        assert (a is None) == (b is None), f"{what}, {name}"
        if b is not None:
            if name in ("mean", "rstd"):
                a, b = a.reshape(-1), b.reshape(-1)
            assert_same(a, b, f"{what}, {name}")


# -- The specification -------------------------------------------------------------------------------------------------


@each_dtype
@each_norm
def test_equals_the_specification(norm: Norm, dtype: np.dtype):
    rng = np.random.default_rng(1)
    shapes = norm.shapes if dtype == F32 else [norm.shapes[0], *norm.shapes[1::3]]
    for shape in shapes:
        x, w, b, dy = norm.draw(rng, shape, dtype)
        assert_equal(run(norm, x, w, b, dy), expected(norm, x, w, b, dy), str(shape))


@each_dtype
@each_norm
def test_awkward_values_equal_the_specification(norm: Norm, dtype: np.dtype):
    """Most sets have NaN or infinity; some have only zeros, subnormal and large numbers among the normal ones."""
    rng = np.random.default_rng(2)
    for shape in norm.shapes[:2]:
        for finite in (False, True):
            x, w, b, dy = (
                awkward(rng, v.shape, v.dtype) if v is not None else None for v in norm.draw(rng, shape, dtype)
            )
            if finite:
                x = np.where(np.isfinite(x), x, dtype.type(3.0))
                dy = np.where(np.isfinite(dy), dy, dtype.type(-2.0))
            assert_equal(run(norm, x, w, b, dy), expected(norm, x, w, b, dy), f"{shape}, finite={finite}")


@one_of_each
def test_ranges_that_float32_squares_leave_equal_the_specification(norm: Norm):
    """Blocks are measured in float64 beside blocks that are not."""
    rng = np.random.default_rng(3)
    for shape in norm.shapes[:6]:
        x, w, b, dy = norm.draw(rng, shape, F32)
        for scale in (1e-38, 1e-22, 1e-15, 1e13, 1e16, 1e25, 1e30):
            mixed = np.where(rng.random(shape) < 0.01, x * F32.type(scale), x)
            for y in (x * F32.type(scale), mixed, mixed + F32.type(scale)):
                assert_equal(run(norm, y, w, b, dy), expected(norm, y, w, b, dy), f"{shape}, {scale}")


@each_norm
def test_parameters_of_other_types_and_absent_ones(norm: Norm):
    rng = np.random.default_rng(4)
    shape = norm.shapes[0]
    for dtype, param_dtype in itertools.product(DTYPES, DTYPES):
        x, w, b, dy = norm.draw(rng, shape, dtype, param_dtype)
        assert_equal(run(norm, x, w, b, dy), expected(norm, x, w, b, dy), f"{dtype} with {param_dtype}")
    for dtype in DTYPES:
        x, w, b, dy = norm.draw(rng, shape, dtype)
        x.reshape(-1)[:2] = [0.0, -0.0]
        if getattr(norm, "offset", 0.0) == 0.0:
            assert_equal(run(norm, x, None, None, dy), expected(norm, x, None, None, dy), "none")
            if norm.has_bias:
                assert_equal(run(norm, x, None, b, dy), expected(norm, x, None, b, dy), "bias alone")
        assert_equal(run(norm, x, w, None, dy), expected(norm, x, w, None, dy), "weight alone")


@each_norm
def test_weight_and_bias_of_two_types(norm: Norm):
    rng = np.random.default_rng(5)
    x, w, b, dy = norm.draw(rng, norm.shapes[0], BF16)
    w, b = w.astype(np.float32), b if b is None else b.astype(np.float64)
    assert_equal(run(norm, x, w, b, dy), expected(norm, x, w, b, dy), "float32 weight, float64 bias")


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@each_norm
def test_same_bits_on_every_instruction_set_and_thread_count(norm: Norm, dtype: np.dtype):
    rng = np.random.default_rng(6)
    assert np.prod(norm.big) > 262144
    x, w, b, dy = norm.draw(rng, norm.big, dtype)
    want = expected(norm, x, w, b, dy)
    for machine in on_every_machine():
        assert_equal(run(norm, x, w, b, dy), want, machine)


@each_norm
def test_small_arrays_have_the_same_bits_on_every_instruction_set(norm: Norm):
    rng = np.random.default_rng(7)
    for shape in norm.shapes[::3]:
        for dtype in (np.dtype(np.float64), np.dtype(np.float16)):
            x, w, b, dy = norm.draw(rng, shape, dtype)
            results = [(machine, run(norm, x, w, b, dy)) for machine in on_every_machine()]
            for machine, got in results:
                assert_equal(got, results[0][1], f"{shape}, {dtype}, {machine}")


def test_the_instruction_set_must_exist():
    with pytest.raises(ValueError, match="mmx"):
        _core.use_instruction_set("mmx")
    _core.use_instruction_set(None)


def test_rms_eps_is_that_of_the_computed_type():
    """As in torch, whatever its documentation says: float16 and bfloat16 have float32's."""
    import torch

    rng = np.random.default_rng(8)
    for dtype in DTYPES:
        x = (rng.normal(size=(5, 40)) * 0.01).astype(dtype)
        eps = float(np.finfo(compute(dtype)).eps)
        y = functional.rms_norm(x, 40)
        assert_same_bits(y, functional.rms_norm(x, (40,), eps=eps), str(dtype))
        assert not np.array_equal(y, functional.rms_norm(x, 40, eps=1e-4))
        tensor = torch.tensor(x.astype(np.float64)).to(getattr(torch, dtype.name))
        want = torch.nn.functional.rms_norm(tensor, (40,)).to(torch.float64).numpy()
        close(y, want, 1e-14 if dtype == np.float64 else 4 * float(ml_dtypes.finfo(dtype).eps))


@each_dtype
def test_add_rms_norm_rounds_the_sum_and_normalises_what_is_stored(dtype: np.dtype):
    rng = np.random.default_rng(9)
    x, r, w, dy, dh = (
        rng.normal(size=size).astype(dtype) for size in [(33, 100), (33, 100), (100,), (33, 100), (33, 100)]
    )
    wide = compute(dtype)
    hidden_want = (x.astype(wide) + r.astype(wide)).astype(dtype)
    y, hidden, saved = functional.add_rms_norm(x, r, 100, w, save=True)
    assert_same_bits(hidden, hidden_want)
    y_want, saved_want = functional.rms_norm(hidden_want, 100, w, save=True)
    assert_same_bits(y, y_want)
    assert_same_bits(functional.add_rms_norm(x, r, 100, w)[0], y_want)
    plain = functional.rms_norm_backward(dy, saved_want)
    without = functional.add_rms_norm_backward(dy, None, saved)
    assert_same_bits(without.input, plain.input)
    assert_same_bits(without.weight, plain.weight)
    # The gradient of the sum is added before it is rounded.
    f = reference.rms_norm(hidden.astype(wide), w.astype(wide), float(np.finfo(wide).eps), 0.0)
    dx = reference.rms_norm_backward(dy.astype(wide), hidden.astype(wide), w.astype(wide), 0.0, f).x
    got = functional.add_rms_norm_backward(dy, dh, saved)
    assert_same_bits(got.input, (dx + dh.astype(wide)).astype(dtype))
    assert got.bias is None
    # Into arrays that are given, which may be the two inputs.
    a, b = x.copy(), r.copy()
    y2, hidden2 = functional.add_rms_norm(a, b, 100, w, out=(a, b))
    assert y2 is a
    assert hidden2 is b
    assert_same_bits(a, y_want)
    assert_same_bits(b, hidden_want)


def test_other_arrays_of_another_float_type_are_converted():
    """Residual and gradients count as rounded once to the type of the input."""
    rng = np.random.default_rng(37)
    for norm in NORMS:
        for dtype, other in itertools.permutations((F32, np.dtype(np.float64), np.dtype(np.float16)), 2):
            x, w, b, dy = norm.draw(rng, norm.shapes[0], dtype)
            dy = dy.astype(other)
            _, saved = norm.forward(x, w, b)
            got, want = norm.backward(dy, saved), norm.backward(dy.astype(dtype), saved)
            for one, two in zip(got, want, strict=True):
                assert_same(one, two, f"{norm.name}, {dtype}, {other}")
    x, r = rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=(3, 5))
    assert_same(functional.add_rms_norm(x, r, 5), functional.add_rms_norm(x, r.astype(np.float32), 5))


# -- Other libraries ---------------------------------------------------------------------------------------------------


@each_norm
def test_agrees_with_torch_in_float64(norm: Norm):
    import torch

    rng = np.random.default_rng(10)
    for shape in norm.shapes:
        for affine in (True, False):
            if not affine and getattr(norm, "offset", 0.0):
                continue
            if isinstance(norm, Batch) and shape[0] * np.prod(shape[2:]) == 1:
                continue
            x, w, b, dy = norm.draw(rng, shape, np.float64)
            x = 2.0 * x + 0.5
            if not affine:
                w = b = None
            tensors = [None if v is None else torch.tensor(v, requires_grad=True) for v in (x, w, b)]
            y = norm.torch(*tensors)
            present = [t for t in tensors if t is not None]
            grads = iter(torch.autograd.grad(norm.torch_loss(y, tensors[0], torch.tensor(dy)), present))
            dx, dw, db = (None if t is None else next(grads).numpy() for t in tensors)
            got = run(norm, x, w, b, dy)
            close(got.y, y.detach().numpy(), 1e-12, f"{shape}, y")
            for name, ours, theirs in (("dx", got.dx, dx), ("dw", got.dw, dw), ("db", got.db, db)):
                assert (ours is None) == (theirs is None), name
                if ours is not None:
                    close(ours, theirs, 1e-11, f"{shape}, {name}")


@one_of_each
def test_gradients_are_finite_differences(norm: Norm):
    rng = np.random.default_rng(11)
    shape = (4, 6) if norm.name == "group_pairs" else norm.shapes[0]
    arrays = norm.draw(rng, shape, np.float64)
    x, w, b, dy = arrays
    got = run(norm, x, w, b, dy)

    def loss() -> float:
        y, _ = norm.forward(x, w, b)
        return float(np.sum(y * dy) + (np.sum(x * dy) if isinstance(norm, AddRMS) else 0.0))

    h = 1e-5
    for array, grad in ((x, got.dx), (w, got.dw), (b, got.db)):
        if array is None:
            continue
        for index in np.ndindex(array.shape):
            before = array[index]
            array[index] = before + h
            up = loss()
            array[index] = before - h
            down = loss()
            array[index] = before
            assert abs((up - down) / (2 * h) - grad[index]) < 1e-7, index


def test_signatures_are_torchs():
    """The same names, defaults and order, up to what comes as keyword."""
    from torch.nn import functional as theirs

    for name in ("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm"):
        ours = inspect.signature(getattr(functional, name)).parameters.values()
        positional = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
        want = list(inspect.signature(getattr(theirs, name)).parameters.values())
        assert [p.name for p in positional] == [p.name for p in want], name
        for own, other in zip(positional, want, strict=True):
            assert own.default == other.default or other.default is other.empty, (name, own)


def attribute_axis(case: Any) -> int:
    return case.attributes.get("axis", -1)


def test_onnx_batch_normalization():
    cases = onnx_node_cases("BatchNormalization")
    assert len(cases) >= 4
    for case in cases:
        x, w, b, mean, var = case.inputs
        training = bool(case.attributes.get("training_mode", 0))
        eps = case.attributes.get("epsilon", 1e-5)
        momentum = 1.0 - case.attributes.get("momentum", 0.9)
        mean, var = mean.copy(), var.copy()
        y = functional.batch_norm(x, mean, var, w, b, training, momentum, eps, unbiased=False)
        got = (y, mean, var) if training else (y,)
        for ours, theirs in zip(got, case.outputs, strict=True):
            close(ours, theirs, 2e-6, case.name)


def test_onnx_layer_normalization():
    cases = onnx_node_cases("LayerNormalization")
    assert len(cases) >= 19
    for case in cases:
        x, w, b = case.inputs
        shape = x.shape[attribute_axis(case) :]
        y, saved = functional.layer_norm(x, shape, w, b, case.attributes.get("epsilon", 1e-5), save=True)
        for ours, theirs in zip((y, saved.mean, saved.rstd), case.outputs, strict=True):
            close(ours.reshape(theirs.shape), theirs, 2e-6, case.name)


def test_onnx_rms_normalization():
    cases = onnx_node_cases("RMSNormalization")
    assert len(cases) >= 19
    for case in cases:
        x, w = case.inputs
        shape = x.shape[attribute_axis(case) :]
        y = functional.rms_norm(x, shape, w, case.attributes.get("epsilon", 1e-5))
        close(y, case.outputs[0], 2e-6, case.name)


def test_onnx_group_and_instance_normalization():
    groups, instances = onnx_node_cases("GroupNormalization"), onnx_node_cases("InstanceNormalization")
    assert len(groups) >= 2
    assert len(instances) >= 2
    for case in groups:
        x, w, b = case.inputs
        y = functional.group_norm(x, case.attributes["num_groups"], w, b, case.attributes.get("epsilon", 1e-5))
        close(y, case.outputs[0], 2e-6, case.name)
    for case in instances:
        x, w, b = case.inputs
        y = functional.instance_norm(x, weight=w, bias=b, eps=case.attributes.get("epsilon", 1e-5))
        close(y, case.outputs[0], 2e-6, case.name)


def test_onnx_mean_variance_normalization():
    """Batch normalisation with nothing learnt."""
    cases = onnx_node_cases("MeanVarianceNormalization")
    assert len(cases) >= 1
    for case in cases:
        y = functional.batch_norm(case.inputs[0], training=True, eps=0.0)
        close(y, case.outputs[0], 2e-6, case.name)


def keras_layer(layer: str, x: np.ndarray, calls: int = 1, **kwargs: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """The result of a new layer in training, and its variables."""
    with keras_in_float64() as keras:
        made = getattr(keras.layers, layer)(dtype="float64", **kwargs)
        for _ in range(calls):
            y = made(keras.ops.convert_to_tensor(x), training=True)
        return np.array(keras.ops.convert_to_numpy(y)), [np.array(keras.ops.convert_to_numpy(v)) for v in made.weights]


def test_keras_channels_last():
    """Its momentum is the weight of the old value, its variance is biased, its epsilon another one. In float32."""
    rng = np.random.default_rng(12)
    x = rng.normal(2.0, 3.0, size=(4, 5, 6, 8))
    want, (_, _, running_mean, running_var) = keras_layer("BatchNormalization", x, calls=3, momentum=0.9)
    mean, var = np.zeros(8), np.ones(8)
    for _ in range(3):
        y = functional.batch_norm(
            x, mean, var, training=True, momentum=1 - 0.9, eps=1e-3, unbiased=False, channel_axis=-1
        )
    close(y, want, 2e-6)
    close(mean, running_mean, 2e-6)
    close(var, running_var, 2e-6)
    want, _ = keras_layer("GroupNormalization", x, groups=4)
    close(functional.group_norm(x, 4, eps=1e-3, channel_axis=-1), want, 2e-6)
    want, _ = keras_layer("LayerNormalization", x)
    close(functional.layer_norm(x, 8, eps=1e-3), want, 2e-6)
    want, _ = keras_layer("RMSNormalization", x)
    close(functional.rms_norm(x, 8, eps=1e-6), want, 2e-6)


# -- Accuracy ----------------------------------------------------------------------------------------------------------

LAYOUT_PAIRS = [
    (norm, last)
    for norm in (BY_NAME[name] for name in ("layer", "group", "instance", "batch", "batch_small_planes", "group_pairs"))
    for last in ((False, True) if isinstance(norm, Channels) else (False,))
]


def in_float64(norm: Norm, x: np.ndarray) -> np.ndarray:
    """The plain formula."""
    ids = norm.sets(x.shape)
    y = np.empty(x.shape)
    flat, where, out = x.astype(np.float64).reshape(-1), ids.reshape(-1), y.reshape(-1)
    order = np.argsort(where, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(where[order])) + 1):
        v = flat[part]
        d = v - v.mean()
        out[part] = d / np.sqrt((d * d).mean() + norm.eps)
    return y


@pytest.mark.parametrize(("norm", "last"), LAYOUT_PAIRS, ids=lambda v: getattr(v, "name", "last" if v else "first"))
def test_a_large_mean_costs_no_accuracy(norm: Norm, last: bool):
    rng = np.random.default_rng(13)
    for shape in [norm.shapes[0], norm.shapes[len(norm.shapes) // 2], norm.shapes[-1]]:
        for mean in (0.0, 1.0, 1e2, 1e4, -1e6):
            x = (rng.normal(size=shape) + mean).astype(np.float32)
            want = in_float64(norm, x)
            y, saved = norm.forward(channels_last_memory(x) if last else x, None, None)
            close(y, want, 1e-5, f"{shape}, mean {mean}")
            # In the statistics as well, and in what the backward function sees.
            dx = norm.backward(channels_last_memory(x) if last else x, saved).input
            assert np.isfinite(dx).all()


@each_norm
def test_constant_input_is_normalised_to_zero(norm: Norm):
    if isinstance(norm, Rows) and not norm.has_bias:
        norm = BY_NAME["layer"]
    for value in (1234.0, 0.1, -7e-30, 3e30, 40000.0):
        for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
            for shape in norm.shapes[:4]:
                x = np.full(shape, value, dtype)
                y, saved = norm.forward(x, None, None)
                if norm.name.startswith("inference"):
                    assert np.isfinite(y).all()
                    continue
                assert (y == 0.0).all(), f"{value}, {shape}, {dtype}: {y.reshape(-1)[0]}"
                close(saved.mean, np.full_like(saved.mean, x.reshape(-1)[0]), 1e-15)
                dx = norm.backward(np.ones(shape, dtype), saved).input
                assert (dx == 0.0).all()


def test_values_near_each_other_are_told_apart():
    """onnxruntime#28463: 40000 .. 40003 became NaN."""
    x = np.arange(40000, 40004, dtype=np.float32)
    want = (np.arange(4) - 1.5) / np.sqrt(1.25)
    close(functional.layer_norm(x, 4, eps=0.0), want, 1e-6)
    close(functional.batch_norm(x[:, None], training=True, eps=0.0)[:, 0], want, 1e-6)
    close(functional.batch_norm(x[None, None], training=True, eps=0.0)[0, 0], want, 1e-6)
    close(functional.group_norm(x[None], 1, eps=0.0)[0], want, 1e-6)
    close(functional.instance_norm(x[None, None], eps=0.0)[0, 0], want, 1e-6)


@one_of_each
@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e10, 1e25, 1e30, 1e36])
def test_tiny_and_huge_values_are_normalised_like_others(norm: Norm, scale: float):
    rng = np.random.default_rng(14)
    if norm.name == "inference":
        norm = BY_NAME["batch_pairs"]
    norm = type(norm)(**{**vars(norm), "eps": 0.0})
    for shape in [norm.shapes[0], norm.shapes[-1]]:
        x = rng.normal(size=shape)
        y, _ = norm.forward((x * scale).astype(np.float32), None, None)
        want, _ = norm.forward((x * scale).astype(np.float32).astype(np.float64), None, None)
        close(y, want, 2e-6, f"{shape}")
        assert 0.3 < np.std(y.astype(float)) < 1.5


# -- Sets do not touch each other --------------------------------------------------------------------------------------


@each_norm
def test_nan_and_infinity_stay_in_their_set(norm: Norm):
    rng = np.random.default_rng(15)
    for shape in [norm.shapes[0], norm.shapes[-1], *norm.shapes[1:2]]:
        ids = norm.sets(shape)
        if ids.max() == 0:
            continue
        x, w, b, dy = norm.draw(rng, shape, F32)
        clean = run(norm, x, w, b, dy)
        for bad in (np.nan, np.inf, -np.inf, 3e38):
            at = tuple(rng.integers(n) for n in shape)
            spoilt, spoilt_dy = x.copy(), dy.copy()
            spoilt[at] = bad
            spoilt_dy[at] = bad
            outside = ids != ids[at]
            got = run(norm, spoilt, w, b, spoilt_dy)
            assert_same_bits(got.y[outside], clean.y[outside], f"{bad}")
            assert_same_bits(got.dx[outside], clean.dx[outside], f"{bad}")
            if bad != 3e38 and not norm.name.startswith("inference"):
                inside = ids == ids[at]
                assert np.isnan(got.y[at])
                assert np.isnan(got.dx[inside]).any()


@pytest.mark.parametrize("norm", [n for n in NORMS if not isinstance(n, Batch)], ids=lambda norm: norm.name)
def test_a_sample_does_not_depend_on_the_others(norm: Norm):
    rng = np.random.default_rng(16)
    for shape in norm.shapes:
        if len(shape) <= getattr(norm, "trailing", 0) or shape[0] == 1:
            continue
        x, w, b, dy = norm.draw(rng, shape, F32)
        whole = run(norm, x, w, b, dy)
        k = shape[0] // 2
        part = run(norm, x[k:], w, b, dy[k:])
        assert_same_bits(part.y, whole.y[k:], f"{shape}")
        assert_same_bits(part.dx, whole.dx[k:], f"{shape}")


def test_one_row_and_one_place():
    """A set of one element has variance 0."""
    x = np.array([[3.0], [5.0]], np.float32)
    y, saved = functional.layer_norm(x, 1, save=True)
    assert (y == 0.0).all()
    assert (functional.layer_norm_backward(x, saved).input == 0.0).all()
    assert (functional.group_norm(np.ones((2, 3), np.float32), 3) == 0.0).all()
    with pytest.raises(ValueError, match=r"more than (1|one) value per channel"):
        functional.batch_norm(np.ones((1, 3), np.float32), training=True)
    with pytest.raises(ValueError, match=r"more than (1|one) value per channel"):
        functional.batch_norm(np.ones((1, 3, 1, 1), np.float32), training=True)
    mean, var = np.zeros(3), np.ones(3)
    y = functional.batch_norm(np.full((1, 3), 2.0), mean, var, training=True, momentum=0.5, unbiased=False)
    assert (y == 0.0).all()
    assert mean.tolist() == [1.0] * 3
    assert var.tolist() == [0.5] * 3


@each_norm
def test_an_empty_batch_gives_an_empty_result(norm: Norm):
    for dtype in DTYPES:
        shape = (0, *norm.shapes[0][1:])
        x, w, b, dy = norm.draw(np.random.default_rng(17), shape, dtype)
        got = run(norm, x, w, b, dy)
        for array in (got.y, got.dx):
            assert array.shape == shape
            assert array.dtype == dtype
        assert_same_bits(got.dw, np.zeros_like(w))
        if b is not None:
            assert_same_bits(got.db, np.zeros_like(b))


# -- Running and merged statistics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("unbiased", [True, False])
def test_running_statistics_equal_the_specification(axis: int, unbiased: bool):
    rng = np.random.default_rng(18)
    shape = (4, 7, 6, 5)
    c = shape[axis]
    for dtype, running_dtype in itertools.product(DTYPES, (np.float32, np.float64, np.float16)):
        mean, var = rng.normal(size=c).astype(running_dtype), rng.uniform(0.5, 2.0, size=c).astype(running_dtype)
        count = np.array(0, np.int64)
        for momentum in (0.1, 0.3, 1.0, 0.0):
            x = rng.normal(3.0, 2.0, size=shape).astype(dtype)
            m = reference.batch_stats(BY_NAME["batch" if axis == 1 else "batch_last"].ncs(reference.widened(x)))
            want_mean = reference.running(mean, m.mean, momentum)
            want_var = reference.running(var, m.m2 / (m.n - 1 if unbiased else m.n), momentum)
            functional.batch_norm(
                x,
                mean,
                var,
                training=True,
                momentum=momentum,
                channel_axis=axis,
                unbiased=unbiased,
                num_batches_tracked=count,
            )
            assert_same_bits(mean, want_mean, f"mean, {dtype}, {running_dtype}")
            # Two ways to write n / (n - 1) differ by the last bit of a float64.
            tolerance = 1e-15 if running_dtype == np.float64 else 0.0
            close(var, want_var, tolerance, f"var, {dtype}, {running_dtype}")
        assert count == 4


def test_running_statistics_of_any_layout():
    rng = np.random.default_rng(38)
    x = rng.normal(size=(4, 6, 5))
    for dtype in (F32, np.dtype(np.float64)):
        start = [rng.normal(size=6).astype(dtype), rng.uniform(0.5, 2.0, size=6).astype(dtype)]
        want = [v.copy() for v in start]
        y = functional.batch_norm(x, *want, training=True)
        inference = functional.batch_norm(x, *start)
        per_instance = [v.copy() for v in start]
        functional.instance_norm(x, *per_instance)
        for i, layout in enumerate(LAYOUTS):
            layouts = layout, LAYOUTS[(7 * i + 3) % len(LAYOUTS)]
            mean, var = (place(own, v) for own, v in zip(layouts, start, strict=True))
            assert_same_bits(functional.batch_norm(x, mean.array, var.array), inference, layout.name)
            assert_same_bits(functional.instance_norm(x, mean.array, var.array, use_input_stats=False), inference)
            for p in (mean, var):
                p.assert_untouched(layout.name)
            assert_same_bits(functional.batch_norm(x, mean.array, var.array, training=True), y, layout.name)
            assert_same([mean.array, var.array], want, layout.name)
            for p, own, v in zip((mean, var), layouts, want, strict=True):
                assert np.array_equal(p.memory, own.place(v, dtype)[0]), layout.name
            mean, var = (place(own, v).array for own, v in zip(layouts, start, strict=True))
            functional.instance_norm(x, mean, var)
            assert_same([mean, var], per_instance, layout.name)


def test_an_empty_batch_leaves_the_running_statistics_alone():
    mean, var, count = np.full(3, 2.0), np.full(3, 5.0), np.array(4)
    functional.batch_norm(np.zeros((0, 3, 2)), mean, var, training=True, num_batches_tracked=count)
    functional.batch_norm(np.zeros((0, 3, 2)), mean, var, training=True, momentum=None, num_batches_tracked=count)
    functional.instance_norm(np.zeros((0, 3, 2)), mean, var)
    assert (mean == 2.0).all()
    assert (var == 5.0).all()
    assert count == 4, "it is the number of batches in the cumulative mean"


def test_running_statistics_are_torchs():
    import torch

    rng = np.random.default_rng(19)
    for momentum in (0.1, 0.7, None):
        layer = torch.nn.BatchNorm2d(4, momentum=momentum, dtype=torch.float64)
        mean, var, count = np.zeros(4), np.ones(4), np.array(0, np.int64)
        for _ in range(5):
            x = rng.normal(1.0, 3.0, size=(3, 4, 5, 2))
            want = layer(torch.tensor(x))
            y = functional.batch_norm(x, mean, var, training=True, momentum=momentum, num_batches_tracked=count)
            close(y, want.detach().numpy(), 1e-12)
            close(mean, layer.running_mean.numpy(), 1e-13)
            close(var, layer.running_var.numpy(), 1e-13)
            assert count == layer.num_batches_tracked.item()
        layer.eval()
        close(functional.batch_norm(x, mean, var), layer(torch.tensor(x)).detach().numpy(), 1e-12)
        assert count == 5, "inference does not count"


def test_running_statistics_of_instance_norm_are_torchs():
    import torch
    from torch.nn import functional as theirs

    rng = np.random.default_rng(20)
    mean, var = rng.normal(size=4), rng.uniform(0.5, 2.0, size=4)
    torch_mean, torch_var = torch.tensor(mean), torch.tensor(var)
    for _ in range(3):
        x = rng.normal(1.0, 3.0, size=(3, 4, 5, 6))
        want = theirs.instance_norm(torch.tensor(x), torch_mean, torch_var, momentum=0.3)
        close(functional.instance_norm(x, mean, var, momentum=0.3), want.numpy(), 1e-12)
        close(mean, torch_mean.numpy(), 1e-13)
        close(var, torch_var.numpy(), 1e-13)
    w, b, dy = rng.normal(size=4), rng.normal(size=4), rng.normal(size=x.shape)
    tensors = [torch.tensor(v, requires_grad=True) for v in (x, w, b)]
    want = theirs.instance_norm(tensors[0], torch_mean, torch_var, *tensors[1:], use_input_stats=False)
    before = mean.copy(), var.copy()
    y, saved = functional.instance_norm(x, mean, var, w, b, False, save=True)
    close(y, want.detach().numpy(), 1e-12)
    grads = functional.instance_norm_backward(dy, saved)
    for ours, theirs_ in zip(grads, torch.autograd.grad((want * torch.tensor(dy)).sum(), tensors), strict=True):
        close(ours, theirs_.numpy(), 1e-11)
    assert_same([mean, var], list(before))
    y = functional.instance_norm(np.moveaxis(x, 1, -1), mean, var, w, b, False, channel_axis=-1)
    close(np.moveaxis(y, -1, 1), want.detach().numpy(), 1e-12)


def as_moments(stats: Any) -> reference.Moments:
    return reference.Moments(stats.count, stats.mean, stats.m2)


def assert_same_stats(got: Any, want: Any) -> None:
    assert got.count == want.count
    assert_same_bits(got.mean, want.mean)
    assert_same_bits(got.m2, want.m2)


@pytest.mark.parametrize("name", ["batch", "batch_last", "batch_pairs", "batch_small_planes"])
def test_statistics_of_parts_merge_to_those_of_the_whole(name: str):
    norm = BY_NAME[name]
    rng = np.random.default_rng(21)
    for dtype, shape in itertools.product(DTYPES, [(7, *norm.shapes[1][1:]), (9, *norm.shapes[-1][1:])]):
        x = rng.normal(3.0, 2.0, size=shape).astype(dtype)
        whole = functional.batch_norm_stats(x, channel_axis=norm.axis)
        want = reference.batch_stats(norm.ncs(reference.widened(x)))
        assert whole.count == want.n
        assert_same_bits(whole.mean, want.mean, "mean")
        assert_same_bits(whole.m2, want.m2, "m2")
        assert_same_bits(whole.var(), want.m2 / want.n)
        close(whole.var(unbiased=True), want.m2 / (want.n - 1), 1e-15)
        parts = [functional.batch_norm_stats(part, channel_axis=norm.axis) for part in np.split(x, [1, 4])]
        merged = parts[0].merge(*parts[1:])
        in_order = reference.chan(reference.chan(as_moments(parts[0]), as_moments(parts[1])), as_moments(parts[2]))
        assert merged.count == whole.count
        assert_same_bits(merged.mean, in_order.mean, "merged mean")
        assert_same_bits(merged.m2, in_order.m2, "merged m2")
        close(merged.mean, whole.mean, 1e-6 if compute(dtype) == F32 else 1e-14, "merged mean")
        close(merged.m2 / whole.m2, np.ones_like(whole.m2), 1e-6 if compute(dtype) == F32 else 1e-13, "merged m2")
        assert_same_stats(whole.merge(), whole)


def test_merging_the_statistics_of_an_empty_part_changes_nothing():
    x = np.random.default_rng(22).normal(size=(6, 3, 5))
    some, none = functional.batch_norm_stats(x), functional.batch_norm_stats(x[:0])
    assert none.count == 0
    assert_same_stats(some.merge(none), some)
    assert_same_stats(none.merge(some), some)


@pytest.mark.parametrize("name", ["batch", "batch_last", "batch_pairs"])
def test_synchronised_parts_are_the_whole(name: str):
    """SyncBatchNorm: parts that exchange statistics forward and sums backward."""
    norm = BY_NAME[name]
    rng = np.random.default_rng(23)
    x, w, b, dy = norm.draw(rng, (7, *norm.shapes[1][1:]), np.float64)
    x = 3.0 * x + 10.0
    mean, var = np.zeros(w.size), np.ones(w.size)
    whole_mean, whole_var = mean.copy(), var.copy()
    y, saved = functional.batch_norm(x, whole_mean, whole_var, w, b, True, channel_axis=norm.axis, save=True)
    whole = functional.batch_norm_backward(dy, saved)
    parts, grads = np.split(x, [2, 3]), np.split(dy, [2, 3])
    first, *rest = (functional.batch_norm_stats(part, channel_axis=norm.axis) for part in parts)
    stats = first.merge(*rest)
    results = []
    for part in parts:
        own_mean, own_var = mean.copy(), var.copy()
        results.append(
            functional.batch_norm(part, own_mean, own_var, w, b, True, channel_axis=norm.axis, stats=stats, save=True)
        )
        close(own_mean, whole_mean, 1e-14)
        close(own_var, whole_var, 1e-14)
    close(np.concatenate([y for y, _ in results]), y, 1e-12)
    first, *rest = (functional.batch_norm_sums(g, saved) for g, (_, saved) in zip(grads, results, strict=True))
    sums = first.merge(*rest)
    assert sums.count == x.size // w.size
    close(sums.grad, whole.bias, 1e-11)
    close(sums.grad_xhat, whole.weight, 1e-11)
    backward = [
        functional.batch_norm_backward(g, saved, sums=sums) for g, (_, saved) in zip(grads, results, strict=True)
    ]
    close(np.concatenate([g.input for g in backward]), whole.input, 1e-12)
    # A part alone does not have this gradient.
    with pytest.raises(ValueError, match="sums must be given"):
        functional.batch_norm_backward(grads[0], results[0][1])


def test_sums_equal_the_specification():
    rng = np.random.default_rng(24)
    for name in ("batch", "batch_last", "batch_pairs"):
        norm = BY_NAME[name]
        for shape, dtype in itertools.product(norm.shapes[:4], DTYPES):
            x, w, b, dy = norm.draw(rng, shape, dtype)
            _, saved = norm.forward(x, w, b)
            sums = functional.batch_norm_sums(dy, saved)
            ncs = norm.ncs(reference.widened(x))
            f = reference.batch_norm(ncs, None, None, norm.eps)
            grad, grad_xhat = reference.batch_norm_sums(norm.ncs(reference.widened(dy)), ncs, f)
            assert sums.count == x.size // w.size
            assert_same_bits(sums.grad, grad)
            assert_same_bits(sums.grad_xhat, grad_xhat)


# -- Arrays ------------------------------------------------------------------------------------------------------------


PLAIN = LAYOUTS[0]
FORMS = [np.copy, lambda v: np.array(v, order="F"), lambda v: v[::-1].copy()[::-1]]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@each_norm
def test_any_layout_gives_the_bits_of_plain_copies(norm: Norm, dtype: np.dtype):
    rng = np.random.default_rng(25)
    for shape in [norm.shapes[0], norm.shapes[1]]:
        x, w, b, dy = norm.draw(rng, shape, dtype)
        want = run(norm, x, w, b, dy)
        for i, layout in enumerate(LAYOUTS):
            if layout.swapped and dtype == BF16:
                continue
            others = [LAYOUTS[(i * k + k) % len(LAYOUTS)] for k in (3, 5, 7)]
            placed = [
                None if v is None else place(PLAIN if own.swapped and dtype == BF16 else own, v)
                for own, v in zip((layout, others[0], others[1], others[2]), (x, w, b, dy), strict=True)
            ]
            for p in placed:
                if p is not None:
                    p.array.flags.writeable = False
            got = run(norm, *(None if p is None else p.array for p in placed))
            what = f"{shape}, {layout.name}"
            assert_equal(got, want, what)
            for p in placed:
                if p is not None:
                    p.assert_untouched(what)


@each_norm
def test_large_arrays_of_any_layout_give_the_bits_of_plain_copies(norm: Norm):
    rng = np.random.default_rng(26)
    x, w, b, dy = norm.draw(rng, norm.big, F32)
    want = run(norm, x, w, b, dy)
    ironstep.set_num_threads(3)
    try:
        forms = [*FORMS[1:], lambda v: np.repeat(v, 2, axis=-1)[..., ::2]]
        if x.ndim > 2:
            forms += [channels_last_memory, channels_first_memory]
        for i, form in enumerate(forms):
            got = run(norm, form(x), w, b, form(dy))
            assert_equal(got, want, f"form {i}")
            assert_equal(run(norm, form(x), w, b, dy), want, f"form {i} with plain")
    finally:
        ironstep.set_num_threads(0)


def assert_laid_out_like(norm: Norm, x: np.ndarray, w: Any, b: Any, dy: np.ndarray) -> None:
    """Results of the forward and the backward function lie in memory as the input does."""
    want = np.empty_like(x).strides
    if isinstance(norm, AddRMS):
        y, hidden, saved = functional.add_rms_norm(x, x, norm.param_shape(x.shape), w, save=True)
        assert hidden.strides == want
    else:
        y, saved = norm.forward(x, w, b)
    assert y.strides == want
    assert norm.backward(dy, saved).input.strides == want


@each_norm
def test_results_keep_the_place_of_the_channels(norm: Norm):
    rng = np.random.default_rng(35)
    for shape in [norm.shapes[0], norm.shapes[-1]]:
        x, w, b, dy = norm.draw(rng, shape, F32)
        assert_laid_out_like(norm, x, w, b, dy)
        if isinstance(norm, Channels):
            last = (channels_last_memory(v, norm.axis) for v in (x, dy))
            assert_laid_out_like(norm, next(last), w, b, next(last))
        if norm.axis == -1:
            assert_laid_out_like(norm, channels_first_memory(x), w, b, channels_first_memory(dy))


@each_norm
def test_results_lie_in_memory_as_the_input_does(norm: Norm):
    rng = np.random.default_rng(35)
    for shape in [norm.shapes[0], norm.shapes[-1]]:
        x, w, b, dy = norm.draw(rng, shape, F32)
        for form in [*FORMS, *((channels_last_memory, channels_first_memory) if len(shape) > 2 else ())]:
            assert_laid_out_like(norm, form(x), w, b, form(dy))


@each_norm
def test_results_go_into_out_of_any_layout(norm: Norm):
    rng = np.random.default_rng(27)
    shape = norm.shapes[0]
    for dtype in DTYPES:
        x, w, b, dy = norm.draw(rng, shape, dtype)
        want = run(norm, x, w, b, dy)
        for layout in LAYOUTS:
            if layout.swapped and dtype == BF16:
                continue
            y, dx = place(layout, np.ones(shape, dtype)), place(layout, np.ones(shape, dtype))
            got, saved = norm.forward(x, w, b, out=y.array)
            assert got is y.array
            grads = norm.backward(dy, saved, out=dx.array)
            assert grads.input is dx.array
            for p, value in ((y, want.y), (dx, want.dx)):
                # Not a byte beside it has changed.
                assert_same(p.array, value, layout.name)
                memory, _ = layout.place(value, dtype)
                assert np.array_equal(p.memory, memory), f"{layout.name}: memory outside has changed"


@each_norm
def test_all_gradients_go_into_out(norm: Norm):
    rng = np.random.default_rng(39)
    for param_dtype, form in itertools.product((np.float32, np.float64, np.float16), (np.copy, lambda v: v[::-1])):
        x, w, b, dy = norm.draw(rng, norm.shapes[0], F32, param_dtype)
        want = run(norm, x, w, b, dy)
        out = functional.NormGrads(*(None if v is None else form(np.ones_like(v)) for v in (x, w, b)))
        _, saved = norm.forward(x, w, b)
        got = norm.backward(dy, saved, out=out)
        for one, given, value in zip(got, out, (want.dx, want.dw, want.db), strict=True):
            assert one is given
            if one is not None:
                assert_same_bits(one, value)
    shared = np.ones(w.size + 1, np.float32).reshape(-1)
    w32 = w.astype(np.float32)
    _, saved = norm.forward(x, w32, b)
    overlapping = [
        functional.NormGrads(None, w32, None),
        functional.NormGrads(dy, dy.reshape(-1)[: w.size].reshape(w.shape), None),
    ]
    if norm.has_bias:
        b32 = b.astype(np.float32)
        _, saved = norm.forward(x, w32, b32)
        overlapping.append(functional.NormGrads(None, shared[:-1].reshape(w.shape), shared[1:].reshape(w.shape)))
    before = [v.copy() for v in (w32, dy, shared)]
    for out in overlapping:
        with pytest.raises(ValueError, match=r"out\b.*(overlap|memory)"):
            norm.backward(dy, saved, out=out)
        assert_same([w32, dy, shared], before)


@each_norm
def test_in_place(norm: Norm):
    """The result over the input without `save`, the gradient over that of the result."""
    rng = np.random.default_rng(28)
    for shape in (norm.shapes[0], norm.shapes[-1], norm.big):
        x, w, b, dy = norm.draw(rng, shape, F32)
        want = run(norm, x, w, b, dy)
        for form in FORMS:
            y, grad = form(x), form(dy)
            assert norm.forward(y, w, b, save=False, out=y) is y
            assert_same_bits(y, want.y, f"{shape}")
            _, saved = norm.forward(x, w, b)
            assert norm.backward(grad, saved, out=grad).input is grad
            assert_same_bits(grad, want.dx, f"{shape}, over the gradient")


@each_norm
def test_the_input_cannot_be_saved_and_overwritten(norm: Norm):
    if isinstance(norm, AddRMS):
        norm = BY_NAME["rms"]  # which saves the sum
    x, w, b, _ = norm.draw(np.random.default_rng(36), norm.shapes[0], F32)
    before = x.copy()
    with pytest.raises(ValueError, match="out must not be the input if save=True"):
        norm.forward(x, w, b, out=x)
    assert_same_bits(x, before)


def test_saved_can_be_used_again():
    rng = np.random.default_rng(29)
    for norm in NORMS:
        x, w, b, dy = norm.draw(rng, norm.shapes[0], F32)
        _, saved = norm.forward(x, w, b)
        first, second = norm.backward(dy, saved), norm.backward(dy, saved)
        for one, two in zip(first, second, strict=True):
            assert_same(one, two, norm.name)


@each_norm
def test_overlapping_results_are_refused(norm: Norm):
    if isinstance(norm, AddRMS):
        norm = BY_NAME["rms"]
    rng = np.random.default_rng(30)
    shape = norm.shapes[0]
    x, w, b, dy = norm.draw(rng, shape, F32)
    room = np.zeros(3 * x.size + 8, np.float32)

    def at(start: int, content: np.ndarray) -> np.ndarray:
        view = room[start : start + content.size].reshape(content.shape)
        view[...] = content
        return view

    def refused(call: Any, *args: Any, **kwargs: Any) -> None:
        before = room.copy()
        with pytest.raises(ValueError, match=r"out\b.*(overlap|memory|same address)"):
            call(*args, **kwargs)
        assert np.array_equal(room, before)

    shifted, weight = at(1, x), at(2 * x.size, w)
    out = room[: x.size].reshape(shape)
    refused(norm.forward, shifted, w, b, save=False, out=out)
    refused(norm.forward, x, weight, b, out=room[2 * x.size - 1 :][: x.size].reshape(shape))
    itself = np.lib.stride_tricks.as_strided(room, shape, (4,) * len(shape))
    refused(norm.forward, x, w, b, out=itself)
    _, saved = norm.forward(x, w, b)
    refused(norm.backward, at(1, dy), saved, out=out)
    _, saved = norm.forward(shifted, w, b)
    refused(norm.backward, dy, saved, out=out)
    # Beside each other in one buffer is fine, and so is one between the elements of the other.
    want = run(norm, x, w, b, dy)
    y, _ = norm.forward(at(x.size, x), w, b, out=out)
    assert_same_bits(y, want.y)
    pairs = np.empty((*shape, 2), np.float32)
    pairs[..., 0] = x
    y, saved = norm.forward(pairs[..., 0], w, b, out=pairs[..., 1])
    assert_same_bits(y, want.y)
    assert_same_bits(norm.backward(dy, saved).input, want.dx)
    # A result that has the elements of the input in another order is not the input.
    square = room[: 4 * 4].reshape(4, 4)
    with pytest.raises(ValueError, match=r"out\b.*(overlap|memory)"):
        functional.layer_norm(square, 4, out=square.T)


def test_read_only_results_are_refused():
    x = np.ones((2, 3, 4), np.float32)
    out = x.copy()
    out.flags.writeable = False
    for norm in (BY_NAME["layer"], BY_NAME["group_of_all"], BY_NAME["batch"]):
        with pytest.raises(ValueError, match=r"out must be.*(writeable|read-only)"):
            norm.forward(x, None, None, out=out)
    with pytest.raises(ValueError, match=r"running_mean.*(writeable|read-only)"):
        functional.batch_norm(x, out[0, :, 0], np.ones(3, np.float32), training=True)
    assert (out == 1.0).all()


def f32(*shape: int) -> np.ndarray:
    return np.random.default_rng(31).normal(size=shape).astype(np.float32)


X, W6, V6, MEAN, VAR, COUNT = f32(2, 6, 5), f32(6), np.ones(6), f32(6), np.ones(6, np.float32), np.array(7, np.int64)
READ_ONLY = COUNT.copy()
READ_ONLY.flags.writeable = False
OTHERS = {"double": X.astype(np.float64), "short": f32(2, 6, 4), "W5": f32(5)}
STATE = [X, W6, V6, MEAN, VAR, COUNT, READ_ONLY, *OTHERS.values()]


def train(*args: Any, **kwargs: Any) -> Any:
    return functional.batch_norm(X, *args, training=True, **kwargs)


EITHER = (TypeError, ValueError)
ERRORS: list[tuple[Any, str, Callable[[], Any]]] = [
    (TypeError, "input must", lambda: functional.layer_norm([1.0, 2.0], 2)),
    (TypeError, "input must .*int64", lambda: functional.layer_norm(np.arange(4), 4)),
    (TypeError, "input must .*complex128", lambda: functional.group_norm(X.astype(complex), 2)),
    (TypeError, "input must .*object", lambda: functional.rms_norm(np.array([1.0, 2.0], object), 2)),
    (TypeError, "input must", lambda: functional.batch_norm_stats([[1.0]])),
    (ValueError, r"normalized_shape must .*\(2, 6, 5\).*\(6, 4\)", lambda: functional.layer_norm(X, (6, 4))),
    (ValueError, r"normalized_shape .*\(1, 2, 6, 5\)", lambda: functional.rms_norm(X, (1, 2, 6, 5))),
    (ValueError, "normalized_shape", lambda: functional.layer_norm(X, ())),
    (TypeError, "normalized_shape", lambda: functional.layer_norm(X, 5.0)),
    (TypeError, "normalized_shape", lambda: functional.layer_norm(X, (5.7,))),
    (TypeError, "normalized_shape", lambda: functional.rms_norm(X, "5")),
    (ValueError, r"weight must .*\(5,\).*\(6,\)", lambda: functional.layer_norm(X, 5, W6)),
    (ValueError, r"bias must .*\(5,\).*\(6,\)", lambda: functional.layer_norm(X, 5, None, W6)),
    (ValueError, r"weight must .*\(5,\).*\(6,\)", lambda: functional.rms_norm(X, 5, W6)),
    (ValueError, r"weight must .*\(6,\).*\(5,\)", lambda: functional.group_norm(X, 2, OTHERS["W5"])),
    (ValueError, r"weight must .*\(6,\).*\(5,\)", lambda: functional.instance_norm(X, weight=OTHERS["W5"])),
    (ValueError, r"bias must .*\(6,\).*\(5,\)", lambda: train(bias=OTHERS["W5"])),
    (TypeError, "weight must .*int64", lambda: functional.layer_norm(X, 5, np.arange(5))),
    (TypeError, "bias must", lambda: train(bias=[0.0] * 6)),
    (TypeError, "eps", lambda: functional.layer_norm(X, 5, None, None, "1e-5")),
    (ValueError, "eps", lambda: functional.layer_norm(X, 5, None, None, -1e-5)),
    (ValueError, "eps", lambda: functional.rms_norm(X, 5, None, -1e-5)),
    (ValueError, "eps", lambda: functional.group_norm(X, 2, None, None, np.nan)),
    (ValueError, "eps", lambda: train(MEAN, VAR, eps=np.inf)),
    (TypeError, "offset", lambda: functional.rms_norm(X, 5, offset="1")),
    (ValueError, r"residual must .*\(2, 6, 5\).*\(2, 6, 4\)", lambda: functional.add_rms_norm(X, OTHERS["short"], 5)),
    (TypeError, "residual must .*int64", lambda: functional.add_rms_norm(X, np.ones((2, 6, 5), int), 5)),
    (EITHER, "out", lambda: functional.add_rms_norm(X, X, 5, out=np.zeros_like(X))),
    (ValueError, "num_groups .*4", lambda: functional.group_norm(X, 4)),
    (ValueError, "num_groups .*0", lambda: functional.group_norm(X, 0)),
    (TypeError, "num_groups", lambda: functional.group_norm(X, 2.0)),
    (ValueError, "channel_axis .*3", lambda: functional.group_norm(X, 2, channel_axis=3)),
    (ValueError, "channel_axis .*0", lambda: train(channel_axis=0)),
    (TypeError, "channel_axis", lambda: functional.instance_norm(X, channel_axis=1.0)),
    (ValueError, "input must", lambda: functional.group_norm(W6, 2)),
    (ValueError, "input must", lambda: functional.batch_norm(W6, training=True)),
    (ValueError, "running_mean", lambda: functional.batch_norm(X)),
    (ValueError, "running_var", lambda: functional.batch_norm(X, MEAN)),
    (ValueError, "running_", lambda: functional.instance_norm(X, use_input_stats=False)),
    (ValueError, r"running_mean must .*\(6,\).*\(5,\)", lambda: train(OTHERS["W5"], VAR)),
    (ValueError, r"running_var must .*\(6,\).*\(5,\)", lambda: functional.batch_norm(X, MEAN, OTHERS["W5"])),
    (TypeError, "running_var must .*int64", lambda: train(MEAN, np.arange(6))),
    (ValueError, "running_.*(overlap|memory)", lambda: train(MEAN, MEAN)),
    (ValueError, "running_.*(overlap|memory)", lambda: train(X[0, :, 0], VAR)),
    (ValueError, "momentum .*1.5", lambda: train(MEAN, VAR, momentum=1.5)),
    (TypeError, "momentum", lambda: train(MEAN, VAR, momentum="a")),
    (ValueError, "num_batches_tracked", lambda: train(MEAN, VAR, momentum=None)),
    (TypeError, "num_batches_tracked must .*int64", lambda: train(MEAN, VAR, num_batches_tracked=np.array(0.0))),
    (TypeError, "num_batches_tracked must .*int64", lambda: train(MEAN, VAR, num_batches_tracked=3)),
    (ValueError, r"num_batches_tracked must", lambda: train(MEAN, VAR, num_batches_tracked=np.zeros(1, np.int64))),
    (ValueError, "num_batches_tracked must .*writeable", lambda: train(MEAN, VAR, num_batches_tracked=READ_ONLY)),
    (ValueError, r"stats must .*6 .*\(5,\)", lambda: train(stats=functional.batch_norm_stats(f32(3, 5)))),
    (TypeError, "stats", lambda: train(stats=(1, 2))),
    (ValueError, "more than (1|one) ", lambda: functional.instance_norm(X[:, :, :1])),
    (ValueError, r"out must .*\(2, 6, 5\).*\(2, 6, 4\)", lambda: functional.layer_norm(X, 5, out=OTHERS["short"])),
    (EITHER, "out must .*float32.*float64", lambda: functional.layer_norm(X, 5, out=OTHERS["double"])),
    (TypeError, "out must", lambda: functional.group_norm(X, 2, out=[0.0])),
    (TypeError, "outt", lambda: functional.layer_norm(X, 5, outt=X)),
]


@pytest.mark.parametrize(("error", "message", "call"), ERRORS, ids=[f"{i}-{e[1]}" for i, e in enumerate(ERRORS)])
def test_errors_name_the_argument_and_change_nothing(error: Any, message: str, call: Callable[[], Any]):
    before = [v.copy() for v in STATE]
    with pytest.raises(error, match=message):
        call()
    assert_same(STATE, before)


def test_an_error_after_the_statistics_would_be_known_leaves_them_alone():
    mean, var, count = np.zeros(6, np.float32), np.ones(6, np.float32), np.array(3, np.int64)
    for bad in ({"weight": f32(5)}, {"bias": f32(5)}, {"out": f32(2)}, {"eps": -1.0}, {"num_batches_tracked": 3}):
        kwargs = {"num_batches_tracked": count} | bad
        with pytest.raises((TypeError, ValueError)):
            functional.batch_norm(X, mean, var, training=True, **kwargs)
        with pytest.raises((TypeError, ValueError)):
            functional.batch_norm(np.ones((1, 6), np.float32), mean, var, training=True, num_batches_tracked=count)
    assert (mean == 0.0).all()
    assert (var == 1.0).all()
    assert count == 3


@each_norm
def test_errors_of_backward(norm: Norm):
    x, w, b, dy = norm.draw(np.random.default_rng(32), norm.shapes[0], F32)
    _, saved = norm.forward(x, w, b)
    wrong = dy[..., :-1] if dy.shape[-1] > 1 else dy[:-1]
    with pytest.raises(ValueError, match=r"grad_output must .*shape"):
        norm.backward(wrong, saved)
    with pytest.raises(TypeError, match=r"grad_output must .*int64"):
        norm.backward(dy.astype(np.int64), saved)
    with pytest.raises(TypeError, match=r"grad_output must"):
        norm.backward(list(dy), saved)
    with pytest.raises(TypeError, match=r"saved must"):
        norm.backward(dy, (x, w))
    out = np.ones(dy.shape, np.float64)
    with pytest.raises((TypeError, ValueError), match=r"out\b.* must .*float32"):
        norm.backward(dy, saved, out=out)
    assert (out == 1.0).all()


def test_saved_of_another_function_is_refused():
    _, layer = functional.layer_norm(X, 5, save=True)
    _, group = functional.group_norm(X, 2, save=True)
    for function, saved in (("group_norm", layer), ("batch_norm", group), ("rms_norm", layer), ("layer_norm", group)):
        with pytest.raises(TypeError, match="saved must"):
            getattr(functional, f"{function}_backward")(X, saved)


# -- The caller's floating-point environment ---------------------------------------------------------------------------


if platform.machine() == "x86_64":

    @each_norm
    def test_flush_to_zero_of_the_caller_changes_nothing(norm: Norm):
        rng = np.random.default_rng(33)
        norm = type(norm)(**{**vars(norm), "eps": 0.0})
        for shape in (norm.shapes[0], norm.big):
            x, w, b, dy = norm.draw(rng, shape, F32)
            x, dy = x * F32.type(1e-39), dy * F32.type(1e-40)
            b = None if b is None else b * F32.type(1e-39)
            ironstep.set_num_threads(3)
            try:
                want = run(norm, x, w, b, dy)
                with FlushToZero():
                    got = run(norm, x, w, b, dy)
            finally:
                ironstep.set_num_threads(0)
            assert_equal(got, want, str(shape))
            if shape != norm.big:
                assert_equal(want, expected(norm, x, w, b, dy), str(shape))


@each_norm
def test_no_floating_point_warnings_leak(norm: Norm):
    x, w, b, dy = norm.draw(np.random.default_rng(34), norm.shapes[0], F32)
    flat = x.reshape(-1)
    flat[:5] = [np.inf, np.nan, 3e38, 1e-40, -np.inf]
    with np.errstate(all="raise"):
        _, saved = norm.forward(x, w, b)
        norm.backward(dy, saved)
        if isinstance(norm, Batch):
            c = w.size
            functional.batch_norm(x, np.full(c, np.inf), np.zeros(c), training=True, channel_axis=norm.axis)
            stats = functional.batch_norm_stats(x, channel_axis=norm.axis)
            stats.merge(stats).var()


# -- Found by fresh eyes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "grad_scale", "eps"), [(1e25, 1.0, 1e-5), (1e6, 1e-30, 1e-5), (1e-15, 1e10, 1e-30)])
def test_gradients_of_channels_keep_their_accuracy_at_any_scale(scale: float, grad_scale: float, eps: float):
    import torch

    rng = np.random.default_rng(60)
    x = (rng.normal(size=(64, 4, 5, 5)) * scale).astype(np.float32)
    dy = (rng.normal(size=x.shape) * grad_scale).astype(np.float32)
    t = torch.from_numpy(x).double().requires_grad_()
    up = torch.from_numpy(dy).double()
    for channels in (2, 4):
        _, saved = functional.group_norm(x, channels, eps=eps, save=True)
        want = torch.autograd.grad(torch.nn.functional.group_norm(t, channels, eps=eps), t, up)[0].numpy()
        got = functional.group_norm_backward(dy, saved).input
        assert (np.abs(got - want) <= 2e-6 * np.abs(want).max()).all()
    _, saved = functional.batch_norm(x, training=True, eps=eps, save=True)
    want = torch.autograd.grad(torch.nn.functional.batch_norm(t, None, None, training=True, eps=eps), t, up)[0].numpy()
    assert (np.abs(functional.batch_norm_backward(dy, saved).input - want) <= 2e-6 * np.abs(want).max()).all()


def test_saved_statistics_do_not_follow_the_running_ones():
    x = np.random.default_rng(61).normal(size=(8, 3))
    mean, var, ones = np.zeros(3), np.ones(3), np.ones(3)
    dy = np.ones_like(x)
    for call, back in (
        (lambda **k: functional.batch_norm(x, mean, var, ones, **k), functional.batch_norm_backward),
        (
            lambda **k: functional.instance_norm(x[..., None], mean, var, ones, use_input_stats=False, **k),
            lambda dy, s: functional.instance_norm_backward(dy[..., None], s),
        ),
    ):
        _, saved = call(save=True)
        want = back(dy, saved).weight
        functional.batch_norm(x + 5, mean, var, training=True)
        assert_same_bits(back(dy, saved).weight, want)


def test_statistics_of_several_inputs_need_the_sums_of_them():
    x = np.random.default_rng(62).normal(size=(8, 3))
    stats = functional.batch_norm_stats(x).merge(functional.batch_norm_stats(x + 1))
    _, saved = functional.batch_norm(x, training=True, stats=stats, save=True)
    with pytest.raises(ValueError, match="sums must be given"):
        functional.batch_norm_backward(x, saved)
    _, saved = functional.batch_norm(x, training=True, stats=functional.batch_norm_stats(x), save=True)
    functional.batch_norm_backward(x, saved)


def test_empty_arrays_with_endless_axes_are_refused():
    for call in (
        lambda: functional.layer_norm(np.empty((1 << 30, 1 << 30, 0), np.float32), 0),
        lambda: functional.layer_norm(np.empty((0, 1 << 36), np.float32), 1 << 36),
        lambda: functional.batch_norm(np.empty((0, 1 << 36), np.float32), training=True),
        lambda: functional.group_norm(np.empty((1 << 40, 1, 0), np.float32), 1),
    ):
        with pytest.raises(ValueError, match="input has axes that are too long"):
            call()


def test_gradients_of_parameters_may_interleave():
    rng = np.random.default_rng(63)
    x, w, b = rng.normal(size=(6, 3)), np.ones(3), np.zeros(3)
    _, saved = functional.layer_norm(x, 3, w, b, save=True)
    want = functional.layer_norm_backward(x, saved)
    both = np.zeros((3, 2))
    functional.layer_norm_backward(x, saved, out=(None, both[:, 0], both[:, 1]))
    assert_same_bits(both[:, 0], want.weight)
    assert_same_bits(both[:, 1], want.bias)
