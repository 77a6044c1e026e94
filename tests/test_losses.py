"""Losses and activations: torch's values in float64, the same bits everywhere, clear errors."""

from __future__ import annotations

import inspect
import itertools
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ironstep
from helpers import BF16, DTYPES, assert_same, assert_same_bits, compute
from ironstep import functional
from layers_cases import FlushToZero, channels_last_memory, close, keras_in_float64, on_every_machine, onnx_node_cases
from test_arrays import LAYOUTS, place

F32 = np.dtype(np.float32)
REDUCTIONS = ["mean", "sum", "none"]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def torch_loss(name: str, x: np.ndarray, target: np.ndarray, **kwargs: Any) -> tuple[Any, np.ndarray]:
    """Value and gradient, of the sum if nothing is reduced, in float64."""
    import torch

    functions = torch.nn.functional
    tensor = torch.tensor(x, requires_grad=True)
    arrays = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()}
    if target.dtype.kind in "iu":
        target = target.astype(np.int64)
    loss = getattr(functions, name)(tensor, torch.tensor(target), **arrays)
    (grad,) = torch.autograd.grad(loss.sum(), tensor)
    return loss.detach().numpy(), grad.numpy()


def check(name: str, x: np.ndarray, target: np.ndarray, tolerance: float = 1e-13, **kwargs: Any) -> None:
    """Ours in three ways against torch's: the value, with the gradient at once, and with the gradient after."""
    want, want_grad = torch_loss(name, x, target, **kwargs)
    function, backward = getattr(functional, name), getattr(functional, f"{name}_backward")
    loss = function(x, target, **kwargs)
    assert isinstance(loss, float if kwargs.get("reduction", "mean") != "none" else np.ndarray)
    close(loss, want, tolerance, f"{name}, {kwargs}")
    again, grad = function(x, target, return_grad=True, **kwargs)
    assert_same(again, loss) if isinstance(loss, np.ndarray) else close(again, loss, 0.0)
    assert grad.dtype == x.dtype
    close(grad, want_grad, tolerance, f"{name}, {kwargs}, gradient")
    again, saved = function(x, target, save=True, **kwargs)
    close(again, loss, 0.0)
    weights = 1.0 if isinstance(loss, float) else np.ones_like(loss)
    assert_same_bits(backward(weights, saved), grad, f"{name}, {kwargs}, backward")
    scaled = 0.25 if isinstance(loss, float) else np.full_like(loss, 0.25)
    close(backward(scaled, saved), 0.25 * want_grad, tolerance, f"{name}, {kwargs}, scaled")


# -- Cross-entropy -----------------------------------------------------------------------------------------------------

SHAPES = [(3, 5), (1, 1), (7, 2), (40, 33), (5, 1000), (2, 3, 4), (2, 17, 3, 5), (3, 513, 2), (2, 4, 2, 3, 2), (6,)]


def classes(rng: np.random.Generator, shape: tuple[int, ...], c: int) -> np.ndarray:
    return rng.integers(0, c, size=shape)


@each_reduction
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cross_entropy_is_torchs(shape: tuple[int, ...], reduction: str):
    rng = np.random.default_rng(1)
    c = shape[1] if len(shape) > 1 else shape[0]
    x = 3.0 * rng.normal(size=shape)
    target = classes(rng, (shape[0], *shape[2:]) if len(shape) > 1 else (), c)
    target = np.asarray(target)
    soft = rng.dirichlet(np.ones(c), size=target.shape)
    soft = np.moveaxis(soft, -1, 1) if len(shape) > 1 else soft
    weight = rng.uniform(0.2, 2.0, size=c)
    for smoothing, w in ((0.0, None), (0.1, weight), (1.0, None)):
        kwargs = {"reduction": reduction, "label_smoothing": smoothing, "weight": w}
        check("cross_entropy", x, target, **kwargs)
        check("cross_entropy", x, soft, **kwargs)
        check("cross_entropy", x, soft * 3.0 - 0.1, **kwargs)  # torch does not ask that they sum to 1
        if target.size > 1:
            ignored = int(target.reshape(-1)[0])
            check("cross_entropy", x, target, ignore_index=ignored, **kwargs)
            some = np.where(rng.random(target.shape) < 0.5, -100, target)
            some.reshape(-1)[0] = target.reshape(-1)[0]
            check("cross_entropy", x, some, **kwargs)


def test_all_or_nothing_ignored_and_empty_are_torchs():
    x = np.random.default_rng(2).normal(size=(3, 4))
    target = np.full(3, -100)
    for reduction in REDUCTIONS:
        check("cross_entropy", x, target, reduction=reduction)
        check("cross_entropy", x[:0], target[:0], reduction=reduction)
        check("cross_entropy", np.zeros((2, 4, 0)), np.zeros((2, 0), int), reduction=reduction)
        check("mse_loss", x[:0], x[:0], reduction=reduction)
        check("binary_cross_entropy_with_logits", x[:0], x[:0], reduction=reduction)


def test_a_target_that_is_ignored_need_not_be_a_class():
    x = np.random.default_rng(3).normal(size=(4, 3))
    for index in (-100, -1, 255, 3, -(2**31)):
        target = np.array([0, index, 2, index])
        check("cross_entropy", x, target, ignore_index=index)


def test_targets_of_any_integer_type():
    x = np.random.default_rng(4).normal(size=(50, 7)).astype(np.float32)
    target = classes(np.random.default_rng(5), (50,), 7)
    want, want_grad = functional.cross_entropy(x, target, return_grad=True)
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        for form in (np.copy, lambda v: np.repeat(v, 2)[::2], lambda v: v[::-1].copy()[::-1]):
            loss, grad = functional.cross_entropy(x, form(target.astype(dtype)), return_grad=True)
            assert loss == want
            assert_same_bits(grad, want_grad, str(dtype))
    swapped = target.astype(">i4")
    assert functional.cross_entropy(x, swapped) == want
    # 255 in a uint8 is not -1.
    assert functional.cross_entropy(x[:2], np.array([1, 255], np.uint8), ignore_index=255) == functional.cross_entropy(
        x[:1], target[:1] * 0 + 1
    )


def log_softmax(x: np.ndarray) -> np.ndarray:
    d = x - x.max(axis=1, keepdims=True)
    return d - np.log(np.exp(d).sum(axis=1, keepdims=True))


@each_reduction
def test_textbook_smoothing(reduction: str):
    """1 - a for the class, a / (K - 1) for each other: by the formula, and as probabilities."""
    rng = np.random.default_rng(6)
    for k, a in itertools.product((2, 5, 100), (0.0, 0.1, 0.7)):
        x, target = 2.0 * rng.normal(size=(9, k)), classes(rng, (9,), k)
        q = np.full((9, k), a / (k - 1))
        q[np.arange(9), target] = 1.0 - a
        each = -(q * log_softmax(x)).sum(axis=1)
        want = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
        kwargs = {"label_smoothing": a, "smoothing": "textbook", "reduction": reduction}
        loss, grad = functional.cross_entropy(x, target, return_grad=True, **kwargs)
        close(loss, want, 1e-13)
        softmax = np.exp(log_softmax(x))
        close(grad, (softmax - q) / (9 if reduction == "mean" else 1), 1e-13)
        # The textbook's a is torch's a K / (K - 1).
        close(loss, functional.cross_entropy(x, q, reduction=reduction), 1e-13)
        if a * k / (k - 1) <= 1.0:
            other = functional.cross_entropy(x, target, label_smoothing=a * k / (k - 1), reduction=reduction)
            close(loss, other, 1e-13)
        if a:
            plain = functional.cross_entropy(x, target, label_smoothing=a, reduction=reduction)
            assert np.abs(np.asarray(plain) - loss).max() > 1e-4


def test_smoothing_is_kerass_and_optaxs():
    """Theirs is torch's: a / K for every class; for two classes a / 2."""
    import jax
    import optax

    rng = np.random.default_rng(7)
    x, target = rng.normal(size=(6, 5)), classes(rng, (6,), 5)
    onehot = np.eye(5)[target]
    ours = functional.cross_entropy(x, target, label_smoothing=0.2)
    with keras_in_float64() as keras:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2, dtype="float64")
        close(ours, float(loss(onehot, x)), 1e-6)  # Keras takes float32
        loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2, dtype="float64")
        binary = functional.binary_cross_entropy_with_logits(x, onehot, label_smoothing=0.2)
        close(binary, float(loss(onehot, x)), 1e-6)
    with jax.enable_x64(True):
        theirs = optax.softmax_cross_entropy(jax.numpy.asarray(x), optax.smooth_labels(jax.numpy.asarray(onehot), 0.2))
        close(ours, float(theirs.mean()), 1e-12)
        labels = onehot * (1 - 0.2) + 0.2 / 2
        theirs = optax.sigmoid_binary_cross_entropy(jax.numpy.asarray(x), jax.numpy.asarray(labels))
        close(binary, float(theirs.mean()), 1e-12)


def test_onnx_softmax_cross_entropy():
    cases = onnx_node_cases("SoftmaxCrossEntropyLoss")
    assert len(cases) >= 34
    for case in cases:
        x, target, *weight = case.inputs
        reduction = case.attributes.get("reduction", b"mean").decode()
        ignore = case.attributes.get("ignore_index", -100)
        loss = functional.cross_entropy(x, target, *weight, ignore_index=ignore, reduction=reduction)
        close(loss, case.outputs[0], 2e-6, case.name)


@each_dtype
def test_logits_far_apart(dtype: np.dtype):
    """exp(10000) is infinite; the loss is not."""
    big = 1e4
    x = np.array([[big, -big, 0.0], [-big, big, 0.0], [big, big, big], [-big, -big, -big]]).astype(dtype)
    big = float(x[0, 0])
    for target in range(3):
        loss, grad = functional.cross_entropy(x, np.full(4, target), reduction="none", return_grad=True)
        want = [[0.0, 2 * big, big][target], [2 * big, 0.0, big][target], math.log(3), math.log(3)]
        close(loss, want, 1e-6)
        onehot = np.eye(3)[target]
        softmax = np.array([[1.0, 0, 0], [0, 1.0, 0], [1 / 3] * 3, [1 / 3] * 3])
        close(grad, softmax - onehot, 4e-3 if dtype == BF16 else 5e-4 if dtype == np.float16 else 1e-6)
    z = np.array([big, -big, 1e2, -1e2, 0.0]).astype(dtype)
    for t in (0.0, 1.0):
        loss, grad = functional.binary_cross_entropy_with_logits(
            z, np.full_like(z, t), reduction="none", return_grad=True
        )
        wide = z.astype(float)
        close(loss, np.maximum(wide, 0) - wide * t + np.log1p(np.exp(-np.abs(wide))), 1e-6)
        close(grad, [1 - t, -t, 1 - t, -t, 0.5 - t], 1e-6)


def test_impossible_classes():
    """A logit of -inf is a masked class: no weight in the softmax, no gradient, and an infinite loss as the target."""
    x = np.array([[-np.inf, 0.5, 1.0], [0.2, -np.inf, -np.inf], [-np.inf, -np.inf, 3.0]])
    for target in ([1, 0, 2], [2, 0, 2]):
        for reduction in REDUCTIONS:
            check("cross_entropy", x, np.array(target), reduction=reduction)
    loss, grad = functional.cross_entropy(x, np.array([1, 0, 2]), reduction="none", return_grad=True)
    assert np.isfinite(loss).all()
    assert (grad[np.isinf(x)] == 0.0).all()
    assert functional.cross_entropy(x[:1], np.array([0])) == np.inf
    assert np.isnan(functional.cross_entropy(np.full((1, 3), -np.inf), np.array([0])))
    for i in range(3):
        x = np.zeros((2, 3))
        x[1, i] = np.nan
        loss, grad = functional.cross_entropy(x, np.array([0, 1]), reduction="none", return_grad=True)
        assert loss[0] == pytest.approx(math.log(3))
        assert np.isnan(loss[1])
        assert np.isfinite(grad[0]).all()
        assert np.isnan(grad[1]).all()


@each_dtype
def test_cross_entropy_of_every_type_is_near_float64(dtype: np.dtype):
    """Narrow types are widened exactly; gradients are rounded once."""
    rng = np.random.default_rng(8)
    for shape in [(50, 10), (4, 3000), (3, 7, 11)]:
        x = (4.0 * rng.normal(size=shape)).astype(dtype)
        target = classes(rng, (shape[0], *shape[2:]), shape[1])
        soft = np.moveaxis(rng.dirichlet(np.ones(shape[1]), size=target.shape), -1, 1).astype(dtype)
        for t, smoothing in ((target, 0.0), (target, 0.1), (soft, 0.0)):
            wide = t if t.dtype.kind in "iu" else t.astype(np.float64)
            want, want_grad = torch_loss(
                "cross_entropy", x.astype(np.float64), wide, label_smoothing=smoothing, reduction="none"
            )
            loss, grad = functional.cross_entropy(x, t, label_smoothing=smoothing, reduction="none", return_grad=True)
            assert loss.dtype == compute(dtype)
            assert grad.dtype == dtype
            close(loss, want, 1e-12 if dtype == np.float64 else 2e-6)
            # Half a unit in the last place of the stored type, and the error of float32.
            digits = {np.dtype(np.float64): 1e-12, F32: 0.0, np.dtype(np.float16): 2.0**-11, BF16: 2.0**-8}[dtype]
            floor = 1e-15 if dtype == np.float64 else 5e-7
            error = np.abs(grad.astype(np.float64) - want_grad)
            assert (error <= digits * np.abs(want_grad) + floor).all()


def test_cross_entropy_mean_of_many_is_accurate():
    x = np.random.default_rng(9).normal(size=(20000, 10)).astype(np.float32)
    target = classes(np.random.default_rng(10), (20000,), 10)
    want, _ = torch_loss("cross_entropy", x.astype(np.float64), target)
    close(functional.cross_entropy(x, target), want, 2e-7)


def loss_cases(dtype: np.dtype, large: bool) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Name, arguments, keywords."""
    rng = np.random.default_rng(11)
    n, c = (4000, 77) if large else (5, 6)
    x = (3.0 * rng.normal(size=(n, c))).astype(dtype)
    target, weight = classes(rng, (n,), c), rng.uniform(0.5, 2.0, size=c).astype(dtype)
    soft = rng.dirichlet(np.ones(c), size=n).astype(dtype)
    d, s = (700, 43) if large else (2, 3)
    images = (3.0 * rng.normal(size=(d, 9, s))).astype(dtype)
    image_target = classes(rng, (d, s), 9)
    y = rng.normal(size=(n, c)).astype(dtype)
    t = rng.random((n, c)).astype(dtype)
    cases: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("cross_entropy", (x, target), {}),
        ("cross_entropy", (x, target, weight), {"ignore_index": 1, "label_smoothing": 0.1}),
        ("cross_entropy", (x, target), {"label_smoothing": 0.1, "smoothing": "textbook"}),
        ("cross_entropy", (x, soft), {"label_smoothing": 0.1}),
        ("cross_entropy", (images, image_target), {"label_smoothing": 0.1}),
        ("mse_loss", (x, y), {}),
        ("binary_cross_entropy_with_logits", (x, t), {}),
        ("binary_cross_entropy_with_logits", (x, t, weight), {"pos_weight": weight, "label_smoothing": 0.1}),
    ]
    return [(name, args, {**kw, "reduction": reduction}) for name, args, kw in cases for reduction in REDUCTIONS]


def assert_same_loss(got: tuple[Any, ...], want: tuple[Any, ...], what: str) -> None:
    for a, b in zip(got, want, strict=True):
        assert_same_bits(np.asarray(a), np.asarray(b), what)


@pytest.mark.parametrize("dtype", [F32, np.dtype(np.float64), BF16], ids=str)
def test_same_bits_on_every_instruction_set_and_thread_count(dtype: np.dtype):
    for large in (False, True):
        cases = loss_cases(dtype, large)
        want: list[Any] = []
        for machine in on_every_machine():
            got = [getattr(functional, name)(*args, **kwargs, return_grad=True) for name, args, kwargs in cases]
            want = want or got
            for (name, _, kwargs), a, b in zip(cases, got, want, strict=True):
                assert_same_loss(a, b, f"{machine}, {name}, {kwargs}")


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_any_layout_gives_the_bits_of_plain_copies(dtype: np.dtype):
    for name, args, kwargs in loss_cases(dtype, large=False):
        function = getattr(functional, name)
        want = function(*args, **kwargs, return_grad=True)
        for i, layout in enumerate(LAYOUTS):
            layouts = [LAYOUTS[(i * k + k - 1) % len(LAYOUTS)] for k in (1, 4, 7)]
            placed = [
                place(LAYOUTS[0] if own.swapped and v.dtype == BF16 else own, v)
                for own, v in zip(layouts, args, strict=False)
            ]
            for p in placed:
                p.array.flags.writeable = False
            got = function(*(p.array for p in placed), **kwargs, return_grad=True)
            what = f"{name}, {kwargs}, {layout.name}"
            assert_same(list(got), list(want), what)
            for p in placed:
                p.assert_untouched(what)
            if not (layout.swapped and dtype == BF16):
                out = place(layout, np.ones_like(args[0]))
                _, grad = function(*args, **kwargs, return_grad=True, out=out.array)
                assert grad is out.array
                assert_same(out.array, want[1], what)
                memory, _ = layout.place(want[1], dtype)
                assert np.array_equal(out.memory, memory), f"{what}: memory outside has changed"


def test_large_arrays_of_any_layout_with_threads():
    ironstep.set_num_threads(3)
    try:
        for name, args, kwargs in loss_cases(F32, large=True):
            function = getattr(functional, name)
            want = function(*args, **kwargs, return_grad=True)
            for form in (lambda v: np.array(v, order="F"), lambda v: np.repeat(v, 2, axis=-1)[..., ::2]):
                assert_same_loss(function(*map(form, args), **kwargs, return_grad=True), want, f"{name}, {kwargs}")
    finally:
        ironstep.set_num_threads(0)


@pytest.mark.parametrize(
    "form", [np.copy, channels_last_memory, lambda v: np.array(v, order="F")], ids=["C", "last", "F"]
)
def test_results_lie_in_memory_as_the_input_does(form: Callable[[np.ndarray], np.ndarray]):
    rng = np.random.default_rng(27)
    x, y = (form(rng.normal(size=(4, 3, 5, 6))) for _ in range(2))
    want = np.empty_like(x).strides
    target = classes(rng, (4, 5, 6), 3)
    results = {
        "relu": functional.relu(x),
        "relu_backward": functional.relu_backward(y, x),
        "gelu": functional.gelu(x),
        "gelu_backward": functional.gelu_backward(y, x),
        "cross_entropy": functional.cross_entropy(x, target, return_grad=True)[1],
        "mse_loss": functional.mse_loss(x, y, return_grad=True)[1],
        "l2_penalty": functional.l2_penalty_backward(x, 0.1),
    }
    assert {name: result.strides for name, result in results.items()} == dict.fromkeys(results, want)


def test_the_gradient_may_go_into_the_input():
    for name, args, kwargs in loss_cases(F32, large=True) + loss_cases(F32, large=False):
        function, backward = getattr(functional, name), getattr(functional, f"{name}_backward")
        loss, want = function(*args, **kwargs, return_grad=True)
        x = args[0].copy()
        again, grad = function(x, *args[1:], **kwargs, return_grad=True, out=x)
        assert grad is x
        assert_same_bits(x, want, f"{name}, {kwargs}")
        assert_same_bits(np.asarray(again), np.asarray(loss))
        _, saved = function(*args, **kwargs, save=True)
        out = np.ones_like(args[0])
        weights = 1.0 if isinstance(loss, float) else np.ones_like(loss)
        assert backward(weights, saved, out=out) is out
        assert_same_bits(out, want, f"{name}, {kwargs}")
        both = function(*args, **kwargs, return_grad=True, save=True)
        assert len(both) == 3
        assert_same_bits(both[1], want)


def test_grad_output_of_each_element():
    rng = np.random.default_rng(12)
    for name, args, kwargs in loss_cases(np.dtype(np.float64), large=False):
        if kwargs["reduction"] != "none":
            continue
        function, backward = getattr(functional, name), getattr(functional, f"{name}_backward")
        (loss, grad), (_, saved) = function(*args, **kwargs, return_grad=True), function(*args, **kwargs, save=True)
        weights = rng.normal(size=loss.shape)
        spread = np.expand_dims(weights, 1) if name == "cross_entropy" else weights
        close(backward(weights, saved), grad * spread, 1e-14)


def test_gradients_are_finite_differences():
    h = 1e-5
    for name, args, kwargs in loss_cases(np.dtype(np.float64), large=False):
        function = getattr(functional, name)
        x = args[0].copy()
        _, grad = function(x, *args[1:], **kwargs, return_grad=True)
        for index in itertools.islice(np.ndindex(x.shape), 12):
            before = x[index]
            values = []
            for step in (h, -h):
                x[index] = before + step
                values.append(np.sum(function(x, *args[1:], **kwargs)))
            x[index] = before
            assert abs((values[0] - values[1]) / (2 * h) - grad[index]) < 1e-8, (name, kwargs, index)


# -- Other losses ------------------------------------------------------------------------------------------------------


@each_reduction
def test_mse_is_torchs(reduction: str):
    rng = np.random.default_rng(13)
    for shape in [(), (1,), (7,), (3, 5), (2, 3, 4), (1000,), (40, 513)]:
        x, y = np.asarray(rng.normal(size=shape)), np.asarray(rng.normal(size=shape))
        check("mse_loss", x, y, reduction=reduction)


@each_dtype
def test_mse_of_every_type_is_the_numpy_expression(dtype: np.dtype):
    rng = np.random.default_rng(14)
    x, y = (rng.normal(size=(7, 50)).astype(dtype) for _ in range(2))
    wide = compute(dtype)
    d = x.astype(wide) - y.astype(wide)
    loss, grad = functional.mse_loss(x, y, "none", return_grad=True)
    assert_same_bits(loss, d * d)
    assert_same_bits(grad, (wide.type(2.0) * d).astype(dtype))
    close(functional.mse_loss(x, y), np.mean(d.astype(float) ** 2), 1e-6 if wide == F32 else 1e-14)


@each_reduction
def test_binary_cross_entropy_is_torchs(reduction: str):
    rng = np.random.default_rng(15)
    for shape in [(1,), (7,), (3, 5), (2, 3, 4), (40, 513)]:
        x, t = 4.0 * rng.normal(size=shape), rng.random(shape)
        full, last, one = rng.random(shape), rng.random(shape[-1:]), rng.random((1,) * len(shape))
        for weight, pos_weight in itertools.product((None, full, last, one), (None, full, last)):
            kwargs = {"weight": weight, "pos_weight": pos_weight, "reduction": reduction}
            check("binary_cross_entropy_with_logits", x, t, tolerance=1e-12, **kwargs)
        for hard in (np.zeros(shape), np.ones(shape)):
            check("binary_cross_entropy_with_logits", x, hard, reduction=reduction)


def test_binary_smoothing_is_a_target_nearer_to_a_half():
    rng = np.random.default_rng(16)
    x, t, w = rng.normal(size=(5, 6)), rng.integers(0, 2, size=(5, 6)).astype(float), rng.random(6)
    for a, pos_weight, reduction in itertools.product((0.1, 0.5, 1.0), (None, w), REDUCTIONS):
        kwargs = {"pos_weight": pos_weight, "reduction": reduction, "return_grad": True}
        got = functional.binary_cross_entropy_with_logits(x, t, label_smoothing=a, **kwargs)
        want = functional.binary_cross_entropy_with_logits(x, t * (1 - a) + a / 2, **kwargs)
        for ours, theirs in zip(got, want, strict=True):
            close(ours, theirs, 1e-14)


def test_l2_penalty_of_a_nest():
    rng = np.random.default_rng(17)
    params = {
        "w": rng.normal(size=(30, 40)).astype(np.float32),
        "b": [rng.normal(size=7), rng.normal(size=3).astype(np.float16)],
        "e": (np.zeros((0, 3)), rng.normal(size=(2, 2)).astype(BF16)),
        "s": np.array(2.0),
    }
    leaves = [params["w"], *params["b"], *params["e"], params["s"]]
    total = sum(float(np.sum(leaf.astype(np.float64) ** 2)) for leaf in leaves)
    value = functional.l2_penalty(params, 0.1)
    assert isinstance(value, float)
    assert abs(value - 0.05 * total) < 1e-14 * total
    grads = functional.l2_penalty_backward(params, 0.1)
    assert grads.keys() == params.keys()
    assert isinstance(grads["b"], list)
    assert isinstance(grads["e"], tuple)
    for leaf, grad in zip(leaves, [grads["w"], *grads["b"], *grads["e"], grads["s"]], strict=True):
        wide = leaf.astype(compute(leaf.dtype))
        assert_same_bits(grad, np.asarray((wide.dtype.type(0.1) * wide).astype(leaf.dtype)))
    assert functional.l2_penalty(np.array([3.0, 4.0]), 2.0) == 25.0
    assert functional.l2_penalty({}, 0.1) == 0.0
    # Squares that float32 does not hold.
    assert functional.l2_penalty(np.full(4, 1e30, np.float32), 1.0) == pytest.approx(2e60, rel=1e-6)
    assert functional.l2_penalty(np.full(4, 1e-30, np.float32), 1.0) == pytest.approx(2e-60, rel=1e-6)
    out = np.ones(2)
    assert functional.l2_penalty_backward(np.array([3.0, 4.0]), 0.5, out=out) is out
    assert out.tolist() == [1.5, 2.0]


def test_the_gradient_of_the_penalty_is_weight_decay():
    """Added to the gradient, it does what SGD's weight_decay does."""
    from ironstep import optim

    a, g = np.linspace(-1, 1, 9), np.linspace(2, 3, 9)
    b = a.copy()
    optim.SGD(a, lr=0.1, weight_decay=0.3).step(g)
    optim.SGD(b, lr=0.1).step(g + functional.l2_penalty_backward(b, 0.3))
    close(b, a, 1e-15)


def test_the_penalty_has_the_same_bits_everywhere():
    rng = np.random.default_rng(18)
    params = [rng.normal(size=n).astype(np.float32) for n in (5, 300_001, 20_000)]
    want: list[Any] = []
    for machine in on_every_machine():
        got = [functional.l2_penalty(params, 0.1), *functional.l2_penalty_backward(params, 0.1)]
        want = want or got
        assert_same(got, want, machine)


# -- Activations -------------------------------------------------------------------------------------------------------

GRID = np.concatenate(
    [np.linspace(-12, 12, 4001), np.linspace(-1e-3, 1e-3, 101), [-40.0, 40.0, 1e4, 1e30, -1e4, -1e30]]
)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_torchs(approximate: str):
    import torch

    dy = np.random.default_rng(19).normal(size=GRID.size)
    tensor = torch.tensor(GRID, requires_grad=True)
    want = torch.nn.functional.gelu(tensor, approximate=approximate)
    (want_grad,) = torch.autograd.grad((want * torch.tensor(dy)).sum(), tensor)
    finite = np.isfinite(want_grad.numpy())
    assert finite.sum() >= 4100
    close(functional.gelu(GRID, approximate), want.detach().numpy(), 1e-14)
    got = functional.gelu_backward(dy, GRID, approximate)
    close(got[finite], want_grad.numpy()[finite], 1e-13)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@each_dtype
def test_gelu_of_every_type_is_near_float64(dtype: np.dtype, approximate: str):
    with np.errstate(over="ignore"):
        x = GRID.astype(dtype)
    x = x[np.isfinite(x.astype(float))]
    dy = np.ones_like(x)
    wide = x.astype(np.float64)
    want, want_grad = (
        functional.gelu(wide, approximate),
        functional.gelu_backward(np.ones_like(wide), wide, approximate),
    )
    digits = {np.dtype(np.float64): 1e-15, F32: 1e-6, np.dtype(np.float16): 6e-4, BF16: 5e-3}[dtype]
    close(functional.gelu(x, approximate), want, digits)
    close(functional.gelu_backward(dy, x, approximate), want_grad, digits)
    # Small results are not lost in 1 + erf(x / sqrt(2)).
    tail = np.linspace(-5, -2, 50).astype(dtype)
    ratio = functional.gelu(tail, approximate).astype(float) / functional.gelu(tail.astype(float), approximate)
    assert (np.abs(ratio - 1) < max(digits, 1e-12) * 100).all()


def test_gelu_of_nan_and_zero():
    for approximate in ("none", "tanh"):
        y = functional.gelu(np.array([np.nan, 0.0, -0.0, np.inf]), approximate)
        assert np.isnan(y[0])
        assert_same_bits(y[1:], np.array([0.0, -0.0, np.inf]))
        g = functional.gelu_backward(np.ones(3), np.array([np.nan, 0.0, -0.0]), approximate)
        assert np.isnan(g[0])
        assert g[1:].tolist() == [0.5, 0.5]


def test_relu_has_one_zero():
    """-0 gives the same bits in every type, at every place, and as one element of many."""
    import torch

    want = np.signbit(torch.relu(torch.tensor(-0.0)).numpy())
    for dtype in DTYPES:
        for n in (1, 2, 7, 16, 33, 1000):
            y = functional.relu(np.full(n, -0.0, dtype))
            assert (np.signbit(y.astype(np.float64)) == want).all(), f"{dtype}, {n}"
            mixed = functional.relu(np.where(np.arange(n) % 3 == 1, -0.0, 1.0).astype(dtype)).astype(np.float64)
            assert (np.signbit(mixed[mixed == 0.0]) == want).all(), f"{dtype}, {n}"


def test_onnx_activations():
    gelus, relus = onnx_node_cases("Gelu"), onnx_node_cases("Relu")
    assert len(gelus) >= 4
    assert len(relus) >= 1
    for case in gelus:
        y = functional.gelu(case.inputs[0], case.attributes.get("approximate", b"none").decode())
        close(y, case.outputs[0], 1e-6, case.name)
    for case in relus:
        assert_same_bits(functional.relu(case.inputs[0]), case.outputs[0])


@each_dtype
def test_relu_is_torchs(dtype: np.dtype):
    """NaN passes; the gradient at 0 is 0."""
    import torch

    x = np.array([1.5, -1.5, 0.0, -0.0, np.nan, np.inf, -np.inf, 1e-30, -1e-30]).astype(dtype)
    dy = np.arange(2, 11).astype(dtype)
    tensor = torch.tensor(x.astype(np.float64), requires_grad=True)
    want = torch.nn.functional.relu(tensor)
    (grad,) = torch.autograd.grad((want * torch.tensor(dy.astype(np.float64))).sum(), tensor)
    y, dx = functional.relu(x), functional.relu_backward(dy, x)
    assert y.dtype == dx.dtype == dtype
    close(y, want.detach().numpy(), 0.0)
    number = ~np.isnan(x.astype(float))
    close(dx[number], grad.numpy()[number], 0.0)


@pytest.mark.parametrize("name", ["gelu", "relu"])
def test_activations_of_any_array_have_the_same_bits(name: str):
    function, backward = getattr(functional, name), getattr(functional, f"{name}_backward")
    rng = np.random.default_rng(20)
    for dtype in DTYPES:
        for shape in [(3, 4, 5), (600, 513)]:
            x, dy = (rng.normal(size=shape).astype(dtype) for _ in range(2))
            want, want_dx = function(x), backward(dy, x)
            for machine in on_every_machine():
                assert_same_bits(function(x), want, machine)
                assert_same_bits(backward(dy, x), want_dx, machine)
            if shape == (3, 4, 5):
                for i, layout in enumerate(LAYOUTS):
                    other = LAYOUTS[(7 * i + 3) % len(LAYOUTS)]
                    if dtype == BF16 and (layout.swapped or other.swapped):
                        continue
                    a, b, out, dx = place(layout, x), place(other, dy), place(other, x), place(layout, dy)
                    assert_same(function(a.array), want, layout.name)
                    assert_same(backward(b.array, a.array), want_dx, layout.name)
                    assert function(a.array, out=out.array) is out.array
                    assert backward(b.array, a.array, out=dx.array) is dx.array
                    for placed, own, value in ((out, other, want), (dx, layout, want_dx)):
                        assert_same(placed.array, value, layout.name)
                        assert np.array_equal(placed.memory, own.place(value, dtype)[0]), layout.name
                    a.assert_untouched(layout.name)
            y = x.copy()
            assert function(y, out=y) is y
            assert_same_bits(y, want)
            for k in (0, 1):
                g, y = dy.copy(), x.copy()
                out = (g, y)[k]
                assert backward(g, y, out=out) is out
                assert_same_bits(out, want_dx)


# -- Errors ------------------------------------------------------------------------------------------------------------

X = np.random.default_rng(21).normal(size=(4, 3)).astype(np.float32)
T = np.array([0, 2, 1, 0])
IMAGES = np.random.default_rng(22).normal(size=(2, 3, 4)).astype(np.float32)
OUT = np.ones((4, 3), np.float32)
STATE = [X, T, IMAGES, OUT]
EITHER = (TypeError, ValueError)
ce, bce, mse = "cross_entropy", "binary_cross_entropy_with_logits", "mse_loss"


def call(name: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: getattr(functional, name)(*args, **kwargs)


def with_out(target: list[int], **kwargs: Any) -> Callable[[], Any]:
    return call(ce, X, np.array(target), return_grad=True, out=OUT, **kwargs)


ERRORS: list[tuple[Any, str, Callable[[], Any]]] = [
    (ValueError, r"target.*\b3\b", with_out([0, 1, 3, 2])),
    (ValueError, r"target.*-1\b", with_out([0, 1, 2, -1])),
    (ValueError, r"target.*-100\b", with_out([0, -100, 2, 1], ignore_index=-1)),
    (
        ValueError,
        r"target must .*\b3 at",
        call(ce, IMAGES, np.array([[0, 1, 2, 0], [3, 0, 0, 1]]), reduction="none"),
    ),
    (ValueError, r"target.*255", call(ce, X, np.array([0, 1, 255, 2], np.uint8))),
    (ValueError, r"target.*18446744073709551615", call(ce, X, np.array([0, 1, 2**64 - 1, 2], np.uint64))),
    (ValueError, r"target must .*\(4,\).*\(3,\)", call(ce, X, T[:3])),
    (ValueError, r"target must .*\(2, 4\).*\(2,\)", call(ce, IMAGES, T[:2])),
    (ValueError, r"target must .*\(4, 2\)", call(ce, X, X[:, :2].copy())),
    (TypeError, r"target must", call(ce, X, [[0.5, 0.25, "a"]] * 4)),
    (TypeError, r"target must .*bool", call(ce, X, T > 0)),
    (TypeError, r"input must", call(ce, [[1.0]], T)),
    (TypeError, r"input must .*int64", call(ce, np.ones((4, 3), int), T)),
    (ValueError, r"input must", call(ce, np.float32(1.0).reshape(()), np.array(0))),
    (ValueError, r"weight must .*3.*\(4,\)", call(ce, X, T, np.ones(4, np.float32))),
    (TypeError, r"weight must .*int64", call(ce, X, T, np.ones(3, int))),
    (ValueError, r"reduction must .*'avg'", call(ce, X, T, reduction="avg")),
    (ValueError, r"reduction must", call(mse, X, X, "batchmean")),
    (ValueError, r"label_smoothing must .*1.5", call(ce, X, T, label_smoothing=1.5)),
    (ValueError, r"label_smoothing must .*-0.1", call(ce, X, T, label_smoothing=-0.1)),
    (ValueError, r"label_smoothing must", call(bce, X, X, label_smoothing=np.nan)),
    (TypeError, r"label_smoothing must", call(ce, X, T, label_smoothing="a")),
    (TypeError, r"ignore_index must", call(ce, X, T, ignore_index=0.5)),
    (ValueError, r"smoothing must .*'keras'", call(ce, X, T, smoothing="keras")),
    (ValueError, r"out must .*\(4, 3\).*\(3,\)", call(ce, X, T, return_grad=True, out=np.ones(3, np.float32))),
    (EITHER, r"out must .*float32.*float64", call(ce, X, T, return_grad=True, out=np.ones((4, 3)))),
    (ValueError, r"out.*return_grad", call(ce, X, T, out=OUT)),
    (ValueError, r"target must .*\(4, 3\).*\(2, 3\)", call(mse, X, X[:2])),
    (TypeError, r"target must", call(mse, X, T)),
    (ValueError, r"target must .*\(4, 3\).*\(4,\)", call(bce, X, X[:, 0])),
    (ValueError, r"weight must .*\(4, 3\).*\(4,\)", call(bce, X, X, np.ones(4, np.float32))),
    (ValueError, r"pos_weight must .*\(4, 3\).*\(2,\)", call(bce, X, X, pos_weight=np.ones(2, np.float32))),
    (TypeError, r"weight_decay must", call("l2_penalty", X, "a")),
    (TypeError, r"params", call("l2_penalty", {"a": 1.0}, 0.1)),
    (EITHER, r"params", call("l2_penalty", {"a": np.arange(3)}, 0.1)),
    (TypeError, r"input must", call("gelu", [1.0])),
    (ValueError, r"approximate must .*'sigmoid'", call("gelu", X, "sigmoid")),
    (ValueError, r"approximate must", call("gelu_backward", X, X, "erf")),
    (ValueError, r"grad_output must .*\(4, 3\).*\(2, 3\)", call("gelu_backward", X[:2], X)),
    (TypeError, r"grad_output must .*int64", call("relu_backward", X.astype(np.int64), X)),
    (ValueError, r"out must .*\(4, 3\)", call("relu", X, out=np.ones(3, np.float32))),
]


@pytest.mark.parametrize(("error", "message", "call"), ERRORS, ids=[f"{i}-{e[1]}" for i, e in enumerate(ERRORS)])
def test_errors_name_the_argument_and_change_nothing(error: Any, message: str, call: Callable[[], Any]):
    before = [v.copy() for v in STATE]
    with pytest.raises(error, match=message):
        call()
    assert_same(STATE, before)


def test_a_target_out_of_range_in_a_large_array_writes_nothing():
    """It is found before a thread has written."""
    x = np.ones((40_000, 10), np.float32)
    target = np.zeros(40_000, np.int32)
    out = np.full_like(x, 7.0)
    for index in (0, 20_000, 39_999):
        bad = target.copy()
        bad[index] = 10
        for threads in (1, 3):
            ironstep.set_num_threads(threads)
            try:
                with pytest.raises(ValueError, match=rf"target.*\b{index}\b.*10|target.*10.*\b{index}\b"):
                    functional.cross_entropy(x, bad, return_grad=True, out=out)
            finally:
                ironstep.set_num_threads(0)
    assert (out == 7.0).all()


def test_errors_of_backward():
    _, mean = functional.cross_entropy(X, T, save=True)
    _, none = functional.cross_entropy(X, T, reduction="none", save=True)
    _, squares = functional.mse_loss(X, X, save=True)
    for wrong in ("a", None, 1j):
        with pytest.raises((TypeError, ValueError), match=r"grad_output must"):
            functional.cross_entropy_backward(wrong, mean)
        with pytest.raises((TypeError, ValueError), match=r"grad_output must"):
            functional.mse_loss_backward(wrong, squares)
    with pytest.raises(ValueError, match=r"grad_output must .*\(4,\).*\(3,\)"):
        functional.cross_entropy_backward(np.ones(3, np.float32), none)
    with pytest.raises(TypeError, match=r"saved must"):
        functional.cross_entropy_backward(1.0, None)
    with pytest.raises(TypeError, match=r"saved must"):
        functional.mse_loss_backward(1.0, mean)
    out = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"out must .*\(4, 3\)"):
        functional.cross_entropy_backward(1.0, mean, out=out)
    assert (out == 1.0).all()


def test_overlapping_results_are_refused():
    room = np.random.default_rng(23).random(100).astype(np.float32)
    before = room.copy()
    x, out = room[1:13].reshape(4, 3), room[:12].reshape(4, 3)
    calls = [
        call(ce, x, T, return_grad=True, out=out),
        call(ce, X, x, return_grad=True, out=out),
        call(ce, X, T, out[0, :], return_grad=True, out=out),
        call(mse, x, X, return_grad=True, out=out),
        call(mse, X, x, return_grad=True, out=out),
        call(bce, x, X, return_grad=True, out=out),
        call(bce, X, X, out[1, :], return_grad=True, out=out),
        call(bce, X, X, pos_weight=out[2, :], return_grad=True, out=out),
        call("gelu", x, out=out),
        call("gelu_backward", x, X, out=out),
        call("relu", x, out=out),
        call("relu_backward", X, x, out=out),
        call("l2_penalty_backward", x, 0.1, out=out),
    ]
    for attempt in calls:
        with pytest.raises(ValueError, match=r"out\b.*(overlap|memory|same address)"):
            attempt()
        assert_same_bits(room, before)


def test_gradients_over_the_gradient_of_the_losses_are_refused():
    """A loss for each element: what it is multiplied by must not be overwritten before it is read."""
    x, target = np.random.default_rng(24).normal(size=(6, 4)), np.array([0, 1, 2, 3, 0, 1])
    room = np.arange(24.0)
    for name, args, grad_output in ((ce, (x, target), room[:6]), (mse, (x, x + 1.0), room.reshape(4, 6).T)):
        _, saved = getattr(functional, name)(*args, reduction="none", save=True)
        backward = getattr(functional, f"{name}_backward")
        with pytest.raises(ValueError, match=r"out\b.*(overlap|memory)"):
            backward(grad_output, saved, out=room.reshape(6, 4))
        assert_same_bits(room, np.arange(24.0))


def test_results_of_the_penalty_are_apart_from_other_parameters_and_results():
    params = {"a": np.ones(2), "b": np.full(2, 2.0)}
    shared = np.zeros(3)
    for out in (
        {"a": params["b"], "b": np.zeros(2)},
        {"a": np.zeros(2), "b": params["a"]},
        {"a": shared[:2], "b": shared[1:]},
    ):
        with pytest.raises(ValueError, match=r"out\b.*(overlap|memory)"):
            functional.l2_penalty_backward(params, 0.5, out=out)
        assert_same([params, shared], [{"a": np.ones(2), "b": np.full(2, 2.0)}, np.zeros(3)])
    got = functional.l2_penalty_backward(params, 0.5, out=params)
    assert got["a"] is params["a"]
    assert_same(params, {"a": np.full(2, 0.5), "b": np.ones(2)})


def test_gradients_beside_the_input_in_one_buffer():
    """Interleaved is not overlapping."""
    x = np.random.default_rng(25).normal(size=(4, 3)).astype(np.float32)
    for name, args in ((ce, (T,)), (mse, (X,)), (bce, (X,))):
        pairs = np.empty((4, 3, 2), np.float32)
        pairs[..., 0] = x
        loss, grad, saved = getattr(functional, name)(
            pairs[..., 0], *args, return_grad=True, save=True, out=pairs[..., 1]
        )
        want = getattr(functional, name)(x, *args, return_grad=True)
        assert_same_loss((loss, grad), want, name)
        assert_same_bits(getattr(functional, f"{name}_backward")(1.0, saved), want[1])


def test_the_gradient_of_the_losses_is_not_rounded_to_the_type_of_the_input():
    """It is of the type of the losses."""
    x = np.full(3, 1.5, BF16)
    for name, target in ((mse, np.zeros(3, BF16)), (bce, np.full(3, -2.0, BF16))):
        loss, saved = getattr(functional, name)(x, target, reduction="none", save=True)
        assert loss.dtype == np.float32
        grad_output = np.full(3, 1.0035, np.float32)
        assert grad_output.astype(BF16)[0] == 1.0
        wide = x.astype(np.float32), target.astype(np.float32)
        _, unit = getattr(functional, name)(*wide, reduction="none", return_grad=True)
        assert_same_bits(getattr(functional, f"{name}_backward")(grad_output, saved), (grad_output * unit).astype(BF16))


def test_targets_of_another_float_type_are_converted_to_what_is_computed_in():
    x, t = X.astype(np.float16), np.random.default_rng(26).random((4, 3))
    for name in (ce, mse, bce):
        function = getattr(functional, name)
        assert_same_loss(function(x, t, return_grad=True), function(x, t.astype(np.float32), return_grad=True), name)


def test_signatures_are_torchs():
    """The same names, defaults and order, but for what torch has deprecated, and for the weight of mse_loss."""
    from torch.nn import functional as theirs

    for name in (ce, bce, mse):
        ours = inspect.signature(getattr(functional, name)).parameters.values()
        positional = [(p.name, p.default) for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
        want = [
            (p.name, p.default)
            for p in inspect.signature(getattr(theirs, name)).parameters.values()
            if p.name not in ("size_average", "reduce") and (name, p.name) != (mse, "weight")
        ]
        assert positional == want, name


if platform.machine() == "x86_64":

    @pytest.mark.parametrize(
        "name",
        ["mse_loss", "bce", "relu", "relu_backward", "gelu", "gelu_backward", "l2_penalty", "l2_penalty_backward"],
    )
    def test_flush_to_zero_of_the_caller_changes_nothing(name: str):
        for large in (False, True):
            x = loss_cases(F32, large)[0][1][0] * np.float32(1e-39)
            y = loss_cases(F32, large)[-1][1][1] * np.float32(1e-39)
            attempt = {
                "mse_loss": lambda x, y: functional.mse_loss(x, y, "none", return_grad=True),
                "bce": lambda x, y: functional.binary_cross_entropy_with_logits(
                    x, y, reduction="none", return_grad=True
                ),
                "relu": lambda x, y: functional.relu(x),
                "relu_backward": functional.relu_backward,
                "gelu": lambda x, y: functional.gelu(x),
                "gelu_backward": functional.gelu_backward,
                "l2_penalty": lambda x, y: functional.l2_penalty(x, 1e3),
                "l2_penalty_backward": lambda x, y: functional.l2_penalty_backward(x, 1.0),
            }[name]
            ironstep.set_num_threads(3)
            try:
                want = attempt(x, y)
                with FlushToZero():
                    got = attempt(x, y)
            finally:
                ironstep.set_num_threads(0)
            assert_same(got, want, name)
            if name == "relu":
                assert_same_bits(want, np.where(x > 0, x, np.float32(0)))


def test_no_floating_point_warnings_leak():
    x = np.array([[np.inf, -np.inf, 0.0], [np.nan, 3e38, -3e38], [1e-40, 0.0, 1.0], [3e38, 3e38, 1.0]], np.float32)
    with np.errstate(all="raise"):
        for reduction in REDUCTIONS:
            functional.cross_entropy(x, T, reduction=reduction, return_grad=True)
            functional.cross_entropy(x[:0], T[:0], reduction=reduction)
            functional.mse_loss(x, X, reduction, return_grad=True)
            functional.binary_cross_entropy_with_logits(x, X, reduction=reduction, return_grad=True)
        functional.gelu(x)
        functional.relu(x)
        functional.l2_penalty(x, 1.0)
        functional.l2_penalty_backward(np.full(3, 6e4, np.float16), 10.0)


# -- Found by fresh eyes -----------------------------------------------------------------------------------------------


def test_a_target_that_another_thread_writes_is_read_once():
    """Whatever comes out, it is no access outside of the arrays."""
    code = """
import sys, threading, time
import numpy as np
from ironstep import functional as F
sys.setswitchinterval(1e-5)
x, t, w = np.ones((4096, 512), np.float32), np.zeros(4096, np.int64), np.ones(512, np.float32)
stop = time.monotonic() + 2
def flip():
    while time.monotonic() < stop:
        t[:] = 10**9
        t[:] = 0
threading.Thread(target=flip).start()
while time.monotonic() < stop:
    try:
        F.cross_entropy(x, t, w, return_grad=True)
    except ValueError:
        pass
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0


def test_a_target_keeps_its_own_precision():
    x, t = np.ones(2, BF16), np.array([1.003, 1.003], np.float32)
    loss, grad = functional.mse_loss(x, t, return_grad=True)
    assert loss == pytest.approx(9.0e-6, rel=1e-3)
    assert (grad.astype(np.float32) < 0).all()
    logits = np.array([[1.0, 2.0]], np.float16)
    q = np.array([[0.30001, 0.69999]], np.float32)
    assert functional.cross_entropy(logits, q) == pytest.approx(
        functional.cross_entropy(logits.astype(np.float64), q.astype(np.float64)), abs=1e-7
    )


def test_masked_arrays_are_refused_everywhere():
    x = np.ones((2, 3))
    mask = np.ma.array([0, 0], mask=[0, 1])
    _, saved = functional.cross_entropy(x, np.zeros(2, int), reduction="none", save=True)
    for call in (
        lambda: functional.cross_entropy(x, mask),
        lambda: functional.cross_entropy_backward(np.ma.array([1.0, 1.0], mask=[0, 1]), saved),
        lambda: functional.dropout(x, mask=np.ma.array(np.ones((2, 3), bool), mask=np.zeros((2, 3)))),
    ):
        with pytest.raises(TypeError, match="masked array"):
            call()


def test_squares_overflow_no_gradient():
    x = np.zeros(10, np.float32)
    x[0] = 2e38
    _, grad = functional.mse_loss(x, np.zeros_like(x), return_grad=True)
    assert grad[0] == np.float32(4e37)
