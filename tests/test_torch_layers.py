"""`ironstep.torch.functional`, `nn` and `swap`: against torch in float64, the NumPy face, and with torch's tools."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as R  # noqa: N812
from torch.utils.checkpoint import checkpoint

import ironstep
from ironstep import functional as NP  # noqa: N812
from ironstep.torch import Swapped, nn, swap
from ironstep.torch import functional as F  # noqa: N812

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DTYPES = [F32, F64, F16, BF16]


# -- The table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A call: `params(shape)` are the shapes of what comes after the input; all of them get a gradient."""

    name: str
    call: Callable[..., Any]
    torch: Callable[..., Any]
    numpy: Callable[..., Any]
    """Of arrays: the results and, given the gradient of the result, those of all inputs."""
    shapes: tuple[tuple[int, ...], ...]
    params: Callable[[tuple[int, ...]], list[tuple[int, ...]]]
    op: str
    arguments: tuple[Any, ...]
    """The operator, and its arguments after the tensors."""

    def __str__(self) -> str:
        return self.name


def numpy_norm(name: str, *middle: Any, **options: Any) -> Callable[..., Any]:
    def run(dy, x, *params):
        first = middle or (x.shape[-1],)
        if name in ("batch_norm", "instance_norm"):
            first = (None, None)
        y, saved = getattr(NP, name)(x, *first, *params, save=True, **options)
        grads = getattr(NP, f"{name}_backward")(dy, saved)
        return y, [grads.input, *(g for g in (grads.weight, grads.bias) if g is not None)]

    return run


def numpy_add(dy, x, residual, weight):
    y, _, saved = NP.add_rms_norm(x, residual, x.shape[-1], weight, 1e-5, save=True)
    grads = NP.add_rms_norm_backward(dy, None, saved)
    return y, [grads.input, grads.input, grads.weight]


ROWS = ((4, 3, 5), (1, 1), (0, 3), (33, 257))
IMAGES = ((3, 4, 5, 2), (2, 4, 7), (2, 4, 1, 2, 3), (5, 8, 17, 16))
PLANES = (*IMAGES, (0, 4, 3, 2), (6, 4))
last = lambda s: [s[-1:]]  # noqa: E731
last2 = lambda s: [s[-1:]] * 2  # noqa: E731
channels = lambda s: [s[1:2]] * 2  # noqa: E731

CASES = [
    Case(
        "layer_norm",
        lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        lambda x, w, b: R.layer_norm(x, x.shape[-1:], w, b),
        numpy_norm("layer_norm"),
        ROWS,
        last2,
        "layer_norm",
        (1, 1e-5),
    ),
    Case(
        "rms_norm",
        lambda x, w: F.rms_norm(x, x.shape[-1], w, 1e-5),
        lambda x, w: R.rms_norm(x, x.shape[-1:], w, 1e-5),
        numpy_norm("rms_norm", eps=1e-5),
        ROWS,
        last,
        "rms_norm",
        (1, 1e-5, 0.0),
    ),
    Case(
        "add_rms_norm",
        lambda x, r, w: F.add_rms_norm(x, r, x.shape[-1], w, 1e-5)[0],
        lambda x, r, w: R.rms_norm(x + r, x.shape[-1:], w, 1e-5),
        numpy_add,
        ROWS,
        lambda s: [s, s[-1:]],
        "add_rms_norm",
        (1, 1e-5, 0.0),
    ),
    Case(
        "batch_norm",
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        lambda x, w, b: R.batch_norm(x, None, None, w, b, True),
        numpy_norm("batch_norm", training=True),
        PLANES,
        channels,
        "batch_norm",
        (1e-5,),
    ),
    Case(
        "group_norm",
        lambda x, w, b: F.group_norm(x, 2, w, b),
        lambda x, w, b: R.group_norm(x, 2, w, b),
        numpy_norm("group_norm", 2),
        PLANES,
        channels,
        "group_norm",
        (2, 1e-5),
    ),
    Case(
        "instance_norm",
        lambda x, w, b: F.instance_norm(x, None, None, w, b),
        lambda x, w, b: R.instance_norm(x, None, None, w, b),
        numpy_norm("instance_norm"),
        IMAGES,
        channels,
        "group_norm",
        (4, 1e-5),
    ),
]
by_case = pytest.mark.parametrize("case", CASES, ids=str)


def draw(case: Case, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """The gradient of the result, the input, and the parameters."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [shape, shape, *case.params(shape)]
    return [torch.randn(s, generator=generator, dtype=F64).to(dtype) for s in shapes]


def differentiate(call: Callable[..., Any], dy: torch.Tensor, *inputs: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = call(*leaves)
    return y.detach(), list(torch.autograd.grad(y, leaves, dy))


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda t: torch.stack([t, t + 7], -1)[..., 0],
    "offset": lambda t: torch.cat([t.new_zeros(3), t.reshape(-1)])[3:].view(t.shape),
}


def ulps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def assert_near(got: torch.Tensor, want: torch.Tensor, bound: float, what: str) -> None:
    """Element by element, relative to the largest term that goes into any of them."""
    assert got.shape == want.shape, what
    if want.numel():
        error = (got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1.0)
        assert error <= bound, f"{what}: {error:g} is more than {bound:g}"


def same(got: torch.Tensor, want: Any, what: str = "") -> None:
    """The same bits."""
    want = want if isinstance(want, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(want))
    assert (got.shape, got.dtype) == (want.shape, want.dtype), what
    assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0)), what
    assert torch.equal(torch.signbit(got) & (got == 0), torch.signbit(want) & (want == 0)), what


# -- Values ------------------------------------------------------------------------------------------------------------


@by_case
@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_equal_torch_in_float64(case, layout):
    for shape in case.shapes:
        dy, x, *params = draw(case, shape, F64)
        y, grads = differentiate(case.call, LAYOUTS[layout](dy), LAYOUTS[layout](x), *params)
        want, want_grads = differentiate(case.torch, dy, x, *params)
        assert_near(y, want, 1e-12, f"{shape}")
        for i, pair in enumerate(zip(grads, want_grads, strict=True)):
            # Sums of up to 8500 terms of size 3.
            assert_near(*pair, 1e-12, f"{shape}, gradient {i}")


@by_case
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_norms_of_other_types(case, dtype):
    """Computed in float32 and rounded once: the exact result of the given numbers, to a few units in the last place."""
    for shape in case.shapes:
        dy, x, *params = draw(case, shape, dtype)
        y, grads = differentiate(case.call, dy, x, *params)
        want, want_grads = differentiate(case.torch, *(t.double() for t in (dy, x, *params)))
        # The sum of a residual is itself rounded to the type, before it is normalised.
        bound = (8 if case.name == "add_rms_norm" else 1) * ulps(dtype) + 32 * ulps(F32)
        for got, exact, what in zip([y, *grads], [want, *want_grads], ["result", "dx", "dw", "db"], strict=False):
            assert got.dtype == dtype
            assert_near(got, exact, bound, f"{shape} {what}")


@by_case
@pytest.mark.parametrize("dtype", [F32, F64, F16], ids=str)
def test_norms_have_the_bits_of_the_numpy_face(case, dtype):
    for shape in case.shapes:
        tensors = draw(case, shape, dtype)
        y, grads = differentiate(case.call, *tensors)
        want, want_grads = case.numpy(*(t.numpy() for t in tensors))
        same(y, want, f"{shape}")
        for i, pair in enumerate(zip(grads, want_grads, strict=True)):
            same(*pair, f"{shape}, gradient {i}")


@by_case
def test_layouts_and_threads_change_no_bit(case):
    shape = max(case.shapes, key=math.prod)
    dy, x, *params = draw(case, shape, F32)
    want, want_grads = differentiate(case.call, dy, x, *params)
    before = ironstep.get_num_threads()
    try:
        for threads, layout in [(1, "contiguous"), (3, "channels last"), (2, "every other")]:
            ironstep.set_num_threads(threads)
            change = LAYOUTS[layout]
            y, grads = differentiate(case.call, change(dy), change(x), *params)
            same(y, want, layout)
            for pair in zip(grads, want_grads, strict=True):
                same(*pair, layout)
    finally:
        ironstep.set_num_threads(before)


@by_case
def test_strides_are_as_in_torch(case):
    x, *params = draw(case, case.shapes[0], F32)[1:]
    for name in ("contiguous", "channels last"):
        given = LAYOUTS[name](x)
        rows = case.params is last or case.params is last2 or case.name == "add_rms_norm"
        want = given.contiguous().stride() if rows else given.stride()
        assert case.call(given, *params).stride() == want


@by_case
def test_gradcheck(case):
    shape = (2, 4) if case.op in ("layer_norm", "rms_norm", "add_rms_norm") else (2, 4, 2)
    inputs = [t.requires_grad_() for t in draw(case, shape, F64)[1:]]
    assert torch.autograd.gradcheck(case.call, inputs)
    assert torch.autograd.gradgradcheck(case.call, inputs, fast_mode=True)


@by_case
def test_a_gradient_for_each_subset(case):
    dy, *inputs = draw(case, case.shapes[0], F32)
    _, want = differentiate(case.call, dy, *inputs)
    for wanted in range(1, 1 << len(inputs)):
        leaves = [t.detach().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(inputs)]
        case.call(*leaves).backward(dy)
        for i, (leaf, grad) in enumerate(zip(leaves, want, strict=True)):
            if wanted >> i & 1:
                same(leaf.grad, grad)
            else:
                assert leaf.grad is None


@by_case
def test_without_parameters(case):
    _, x, *params = draw(case, case.shapes[0], F64)
    if case.name == "add_rms_norm":
        return
    y = case.call(x, *(None for _ in params))
    assert_near(y, case.torch(x, *(None for _ in params)), 1e-12, "result")


@by_case
def test_mixed_types(case):
    dy, x, *params = draw(case, case.shapes[0], BF16)
    params = [p if p.shape == x.shape else p.float() for p in params]
    y, grads = differentiate(case.call, dy, x, *params)
    _, want = differentiate(case.torch, *(t.double() for t in (dy, x, *params)))
    assert y.dtype == BF16
    for grad, leaf, exact in zip(grads, [x, *params], want, strict=True):
        assert grad.dtype == leaf.dtype
        # The residual's sum is rounded to bfloat16.
        assert_near(grad, exact, (0.05 if case.name == "add_rms_norm" else 1e-5) if leaf.dtype == F32 else 0.05, "")


@by_case
def test_kept_tensors_that_were_changed_raise(case):
    dy, *inputs = draw(case, case.shapes[0], F32)
    leaves = [t.requires_grad_() for t in inputs]
    x = leaves[0] * 1.0
    if case.name == "add_rms_norm":  # keeps the sum alone
        y, kept = F.add_rms_norm(x, *leaves[1:2], x.shape[-1:], leaves[2], 1e-5)
    else:
        y, kept = case.call(x, *leaves[1:]), x
    with torch.no_grad():
        kept.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)


def test_add_rms_norm_has_two_results():
    x, r, w = (torch.randn(s, dtype=F64, requires_grad=True) for s in [(3, 4), (3, 4), (4,)])

    def both(x, r, w):
        return F.add_rms_norm(x, r, 4, w, offset=1.0)

    assert torch.autograd.gradcheck(both, (x, r, w))
    assert torch.autograd.gradgradcheck(both, (x, r, w))
    y, hidden = both(x, r, w)
    same(hidden, (x + r).detach())
    assert_near(y, R.rms_norm(x + r, (4,), 1 + w), 1e-12, "result")
    (grad,) = torch.autograd.grad(hidden, r, torch.full((3, 4), 2.0, dtype=F64), retain_graph=True)
    same(grad, torch.full((3, 4), 2.0, dtype=F64))
    same(y, F.rms_norm(x + r, 4, w, offset=1.0))


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
def test_running_statistics(name, dtype):
    x = torch.randn(5, 3, 4, dtype=F64)
    ours, theirs = [[torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)] for _ in range(2)]
    arrays = [np.zeros(3, np.float32), np.ones(3, np.float32)]
    for step in range(4):
        getattr(F, name)(x.float() + step, *ours, None, None, True, 0.3)
        getattr(NP, name)((x.float() + step).numpy(), *arrays, None, None, True, 0.3)
        wide = [t.double() for t in theirs]
        getattr(R, name)(x.float().double() + step, *wide, None, None, True, 0.3)
        theirs = [t.to(dtype) for t in wide]
    for got, want, array in zip(ours, theirs, arrays, strict=True):
        assert_near(got, want, 8 * ulps(dtype) + 2 * ulps(F32), name)
        if dtype == F32:
            same(got, array)
    a = x.clone().requires_grad_()
    stats = [t.double() for t in ours]
    w = torch.randn(3, dtype=F64, requires_grad=True)
    assert_near(getattr(F, name)(a, *stats, w, w, False), getattr(R, name)(a, *stats, w, w, False), 1e-12, "inference")
    assert torch.autograd.gradcheck(lambda a, w: getattr(F, name)(a, *stats, w, w, False), (a, w))
    assert torch.autograd.gradgradcheck(lambda a, w: getattr(F, name)(a, *stats, w, w, False), (a, w))


def test_inference_keeps_its_statistics():
    x, mean, var = torch.randn(4, 3, dtype=F64, requires_grad=True), torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)
    w = torch.ones(3, dtype=F64, requires_grad=True)
    y = F.batch_norm(x, mean, var, w)
    (want,) = torch.autograd.grad(y.sum(), w, retain_graph=True)
    mean.add_(5)
    same(torch.autograd.grad(y.sum(), w)[0], want)


# -- Dropout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("dropout", (7, 33)),
        ("dropout", (3, 4, 5, 6)),
        ("dropout1d", (5, 9, 4)),
        ("dropout1d", (9, 4)),
        ("dropout2d", (5, 9, 4, 2)),
        ("dropout3d", (5, 9, 4, 2, 1)),
        ("dropout3d", (9, 4, 2, 1)),
    ],
)
def test_dropout_has_the_bits_of_the_numpy_face(name, shape, dtype):
    x = torch.randn(shape, dtype=F64).to(dtype)
    for layout in LAYOUTS.values():
        a = layout(x).detach().requires_grad_()
        torch.manual_seed(5)
        y = getattr(F, name)(a, 0.3)
        torch.manual_seed(5)
        seed = int(torch.randint((1 << 63) - 1, ()))
        batched = shape if name == "dropout" or len(shape) == int(name[7]) + 2 else (1, *shape)
        array = x.float().numpy().reshape(batched)
        keep = torch.from_numpy(getattr(NP, name)(np.ones_like(array), 0.3, seed=seed)).view(shape) != 0
        if dtype == F32:
            same(y.detach(), getattr(NP, name)(array, 0.3, seed=seed).reshape(shape))
        assert torch.equal(y != 0, keep)
        dy = torch.randn(shape, dtype=F64).to(dtype)
        y.backward(layout(dy))
        assert torch.equal(a.grad != 0, keep)
        assert_near(a.grad, torch.where(keep, dy.double() / 0.7, 0.0), 4 * ulps(dtype), "gradient")
        if torch.empty_like(a).stride() == a.stride():
            assert y.stride() == a.stride()


def test_dropout_seeds_threads_and_edges():
    x = torch.ones(300_000)
    torch.manual_seed(0)
    first, second = F.dropout(x, 0.25), F.dropout(x, 0.25)
    assert not torch.equal(first, second)
    assert abs((first == 0).float().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(x))
    before = ironstep.get_num_threads()
    try:
        for threads in (1, 3):
            ironstep.set_num_threads(threads)
            torch.manual_seed(0)
            same(F.dropout(x, 0.25), first)
    finally:
        ironstep.set_num_threads(before)
    assert F.dropout(x, 0.25, training=False) is x
    assert F.dropout(x, 0.0) is x
    nan = torch.full((4,), math.nan, requires_grad=True)
    y = F.dropout(nan, 1.0)
    same(y.detach(), torch.zeros(4))
    same(torch.autograd.grad(y.sum(), nan)[0], torch.zeros(4))
    for p in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            F.dropout(x, p)
    z = torch.randn(3, 4, requires_grad=True) * 1.0
    torch.manual_seed(1)
    want = F.dropout(z, 0.5)
    torch.manual_seed(1)
    got = F.dropout(z, 0.5, inplace=True)
    assert got is z
    same(got.detach(), want.detach())
    got.sum().backward()
    with pytest.raises(RuntimeError, match="leaf"):
        F.dropout(torch.randn(3, requires_grad=True), 0.5, inplace=True)


def test_gradcheck_of_dropout():
    def call(x):
        torch.manual_seed(3)
        return F.dropout(x, 0.4) + F.dropout1d(x, 0.4)

    x = torch.randn(3, 4, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x,))
    assert torch.autograd.gradgradcheck(call, (x,))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_draws_the_same_mask(reentrant):
    w = torch.randn(8, 8)

    def block(x):
        return F.rms_norm(F.dropout(x @ w, 0.5), 8)

    x = torch.randn(4, 8, requires_grad=True)
    torch.manual_seed(2)
    y = checkpoint(block, x, use_reentrant=reentrant)
    (got,) = torch.autograd.grad(y.sum(), x) if not reentrant else (y.sum().backward(), x.grad)[1:]
    torch.manual_seed(2)
    y = block(x)
    (want,) = torch.autograd.grad(y.sum(), x)
    same(got, want)


# -- Losses ------------------------------------------------------------------------------------------------------------

CLASSES = torch.tensor([1, 0, 4, 2, -100, 3])
ENTROPY: list[tuple[str, tuple[int, ...], Any, dict[str, Any]]] = [
    ("classes", (6, 5), CLASSES, {}),
    ("smoothing", (6, 5), CLASSES, {"label_smoothing": 0.2}),
    ("weight", (6, 5), CLASSES, {"weight": torch.rand(5, dtype=F64), "label_smoothing": 0.1}),
    ("ignore", (6, 5), CLASSES.clamp(min=0), {"ignore_index": 0}),
    ("none left", (6, 5), torch.full((6,), -100), {}),
    ("one sample", (5,), torch.tensor(3), {}),
    ("images", (2, 5, 3), CLASSES.view(2, 3), {"label_smoothing": 0.1}),
    ("probabilities", (6, 5), torch.rand(6, 5, dtype=F64).softmax(1), {"label_smoothing": 0.1}),
    ("probabilities of images", (2, 5, 3), torch.rand(2, 5, 3, dtype=F64).softmax(1), {}),
    ("empty", (0, 5), CLASSES[:0], {}),
    ("one class", (6, 1), CLASSES * 0, {}),
]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "shape", "target", "options"), ENTROPY, ids=[row[0] for row in ENTROPY])
def test_cross_entropy(name, shape, target, options, reduction):
    options = options | {"reduction": reduction}
    x = 3 * torch.randn(shape, dtype=F64)
    for factor in (1.0, 0.3):
        a, b = (x.clone().requires_grad_() for _ in range(2))
        got, want = F.cross_entropy(a, target, **options), R.cross_entropy(b, target, **options)
        assert got.dtype == want.dtype
        if not got.isnan().any():
            assert_near(got.detach(), want.detach(), 1e-12, name)
        else:
            assert want.isnan().all()
        assert_near(got.detach().nan_to_num(), want.detach().nan_to_num(), 1e-12, name)
        dy = torch.full_like(want, factor)
        for _ in range(2):  # the second time the gradient is computed anew
            (grad,) = torch.autograd.grad(got, a, dy, retain_graph=True)
            (exact,) = torch.autograd.grad(want, b, dy, retain_graph=True)
            assert_near(grad.nan_to_num(), exact.nan_to_num(), 1e-12, name)
    if name not in ("none left", "empty") and reduction != "sum":
        # The first derivatives are torch's, above.
        assert torch.autograd.gradgradcheck(lambda a: F.cross_entropy(a, target, **options), (a,), fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy_has_the_bits_of_the_numpy_face(dtype):
    x = 3 * torch.randn(40, 33, dtype=F64)
    classes = torch.randint(33, (40,))
    for target in (classes, torch.rand(40, 33).softmax(1)):
        a = x.to(dtype, copy=True).requires_grad_()
        loss = F.cross_entropy(a, target, label_smoothing=0.1)
        loss.backward()
        if dtype in (F32, F64):
            want, grad = NP.cross_entropy(a.detach().numpy(), target.numpy(), label_smoothing=0.1, return_grad=True)
            assert loss.item() == torch.tensor(want, dtype=loss.dtype).item()
            same(a.grad, grad)
        exact = a.detach().double().requires_grad_()
        R.cross_entropy(exact, target if target is classes else target.double(), label_smoothing=0.1).backward()
        assert_near(a.grad, exact.grad, ulps(dtype) / 16 + 1e-6, "gradient")


def test_float16_gradients_survive_loss_scaling():
    """A gradient of 2e-9 is 0 in float16, but not when it is scaled by 2**16 in the backward pass."""
    x = torch.zeros(1, 2, dtype=F16)
    x[0, 0] = 20.0
    x.requires_grad_()
    loss = F.cross_entropy(x, torch.tensor([0]))
    (grad,) = torch.autograd.grad(loss, x, torch.tensor(65504.0, dtype=F16))
    assert grad[0, 1] > 0


PAIRS = [
    ("mse_loss", {}),
    ("binary_cross_entropy_with_logits", {}),
    ("binary_cross_entropy_with_logits", {"weight": torch.rand(3, dtype=F64), "pos_weight": torch.rand(4, 3)}),
]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "options"), PAIRS)
def test_losses_of_pairs(name, options, reduction):
    options = {key: value.double() for key, value in options.items()} | {"reduction": reduction}
    target = torch.rand(4, 3, dtype=F64)
    for layout in ("contiguous", "transposed"):
        x = LAYOUTS[layout](torch.randn(4, 3, dtype=F64)).requires_grad_()
        got, want = getattr(F, name)(x, target, **options), getattr(R, name)(x, target, **options)
        assert_near(got.detach(), want.detach(), 1e-12, name)
        for factor in (1.0, 0.3):
            dy = torch.full_like(want, factor)
            pair = [torch.autograd.grad(y, x, dy, retain_graph=True)[0] for y in (got, want)]
            assert_near(*pair, 1e-12, name)
    assert torch.autograd.gradgradcheck(lambda x: getattr(F, name)(x, target, **options), (x,), fast_mode=True)
    if name == "mse_loss":
        assert torch.autograd.gradcheck(
            lambda x, t: F.mse_loss(x, t, **options), (x, target.requires_grad_()), fast_mode=True
        )


def test_losses_left_to_torch():
    x, t = torch.randn(4, 3, requires_grad=True), torch.rand(4, 3, requires_grad=True)
    for name in ("cross_entropy", "binary_cross_entropy_with_logits"):
        got = torch.autograd.grad(getattr(F, name)(x, t), [x, t])
        want = torch.autograd.grad(getattr(R, name)(x, t), [x, t])
        for pair in zip(got, want, strict=True):
            same(*pair)
    same(F.mse_loss(x, t.double()), R.mse_loss(x, t.double()))
    same(F.mse_loss(x, t, weight=t.detach()), R.mse_loss(x, t, weight=t.detach()))
    with pytest.warns(UserWarning, match="target size"):
        F.mse_loss(x, t[:1])


# -- torch's modes -----------------------------------------------------------------------------------------------------


def ones(x: torch.Tensor) -> torch.Tensor:
    """A parameter as torch wants it: float32 beside float16 and bfloat16."""
    return torch.ones(6, dtype=F64 if x.dtype == F64 else F32)


AUTOCAST: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "layer_norm": lambda m, x: m.layer_norm(x, (6,), ones(x)),
    "rms_norm": lambda m, x: m.rms_norm(x, (6,), torch.ones(6, dtype=x.dtype)),
    "batch_norm": lambda m, x: m.batch_norm(x, 0 * ones(x), ones(x), training=True),
    "group_norm": lambda m, x: m.group_norm(x, 2),
    "dropout": lambda m, x: m.dropout(x),
    "cross_entropy": lambda m, x: m.cross_entropy(x, torch.tensor([0, 1, 2, 3])),
    "cross_entropy none": lambda m, x: m.cross_entropy(x, torch.tensor([0, 1, 2, 3]), reduction="none"),
    "cross_entropy soft": lambda m, x: m.cross_entropy(x, torch.ones(4, 6, dtype=BF16) / 6),
    "binary": lambda m, x: m.binary_cross_entropy_with_logits(x, torch.ones(4, 6, dtype=x.dtype)),
    "mse": lambda m, x: m.mse_loss(x, torch.ones(4, 6, dtype=x.dtype)),
    "mse of two types": lambda m, x: m.mse_loss(x, torch.ones(4, 6, dtype=F32)),
}


@pytest.mark.parametrize("name", AUTOCAST)
@pytest.mark.parametrize("enabled", [False, True])
def test_types_of_results_are_as_in_torch(name, enabled):
    for dtype in DTYPES:
        x = torch.randn(4, 6).to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=BF16, enabled=enabled):
            got, want = AUTOCAST[name](F, x), AUTOCAST[name](R, x)
        if name != "cross_entropy soft" or dtype != F16:
            assert got.dtype == want.dtype, dtype
        (grad,) = torch.autograd.grad(got, x, torch.ones_like(got))
        assert grad.dtype == dtype


def test_no_grad_and_inference_mode():
    x = torch.randn(4, 6, requires_grad=True)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for call in AUTOCAST.values():
                assert not call(F, x).requires_grad
            model = nn.BatchNorm1d(6)
            model(x)
            assert model.running_mean.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:FutureWarning")
def test_transforms_and_forward_mode_go_to_torch():
    x, w = torch.randn(4, 6, dtype=F64), torch.ones(6, dtype=F64)
    for m in (F, R):
        loss = lambda x, m=m: m.rms_norm(x, (6,), w).square().mean() + m.cross_entropy(x, torch.arange(4))  # noqa: E731
        grad = torch.func.grad(loss)(x)
        rows = torch.func.vmap(lambda x, m=m: m.layer_norm(x, (6,), w))(x)
        _, tangent = torch.func.jvp(lambda x, m=m: m.layer_norm(x, (6,)), (x,), (x,))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, w.expand(4, 6))
            forward = torch.autograd.forward_ad.unpack_dual(m.group_norm(dual, 2)).tangent
        if m is F:
            got = [grad, rows, tangent, forward]
    for pair in zip(got, [grad, rows, tangent, forward], strict=True):
        same(*pair)


def test_other_devices_and_subclasses_go_to_torch():
    class Mine(torch.Tensor):
        pass

    x = torch.randn(4, 6).as_subclass(Mine)
    assert type(F.layer_norm(x, 6)) is Mine
    meta = torch.randn(4, 6, device="meta")
    assert F.layer_norm(meta, (6,)).device.type == "meta"
    assert F.add_rms_norm(meta, meta, 6)[1].device.type == "meta"
    assert F.dropout(meta).device.type == "meta"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_and_complex_numbers_go_to_torch():
    x = torch.nested.nested_tensor([torch.randn(2, 6), torch.randn(3, 6)])
    w = torch.rand(6)
    for got, want in zip(F.layer_norm(x, (6,), w, w).unbind(), R.layer_norm(x, (6,), w, w).unbind(), strict=True):
        same(got, want)
    assert nn.Dropout()(x).is_nested
    z = torch.ones(1000, dtype=torch.complex64)
    assert set(nn.Dropout()(z).real.tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("name", AUTOCAST)
@pytest.mark.parametrize("vmap", [torch.func.vmap, None], ids=["vmap", "is_grads_batched"])
def test_many_gradients_at_once(name, vmap):
    a = torch.randn(4, 6, dtype=F64, requires_grad=True)
    torch.manual_seed(0)
    y = AUTOCAST[name](F, a)
    dys = torch.randn(3, *y.shape, dtype=y.dtype)
    want = torch.stack([torch.autograd.grad(y, a, dy, retain_graph=True)[0] for dy in dys])
    if vmap:
        got = vmap(lambda dy: torch.autograd.grad(y, a, dy, retain_graph=True)[0])(dys)
    else:
        (got,) = torch.autograd.grad(y, a, dys, is_grads_batched=True)
    assert_near(got, want, 1e-12, name)


def test_many_gradients_of_add_rms_norm_at_once():
    a, r = (torch.randn(4, 6, dtype=F64, requires_grad=True) for _ in range(2))
    y, hidden = F.add_rms_norm(a, r, 6)
    total = (y.cos() + hidden.sin()).sum(0)
    want = torch.stack([torch.autograd.grad(total, r, row, retain_graph=True)[0] for row in torch.eye(6, dtype=F64)])
    assert_near(torch.autograd.grad(total, r, torch.eye(6, dtype=F64), is_grads_batched=True)[0], want, 1e-12, "dr")


def test_another_default_device():
    x, t = torch.randn(4, 6, requires_grad=True), torch.rand(4, 6)
    classes, w = torch.tensor([0, 1, 2, 3]), torch.rand(6)
    calls = [
        lambda: F.cross_entropy(x, classes, w),
        lambda: F.cross_entropy(x, t, reduction="none"),
        lambda: F.mse_loss(x, t),
        lambda: F.binary_cross_entropy_with_logits(x, t, reduction="sum"),
        lambda: F.batch_norm(F.layer_norm(x, 6), 0 * w, w, training=True),
        lambda: F.dropout1d(F.instance_norm(x[..., None].expand(4, 6, 3), 0 * w, w)),
    ]
    for call in calls:
        with torch.device("meta"):
            y = call()
        for mode in (None, "batched"):
            dy = torch.ones_like(y)
            with torch.device("meta"):
                (grad,) = torch.autograd.grad(
                    y, x, dy[None] if mode else dy, is_grads_batched=mode is not None, retain_graph=True
                )
            assert y.device.type == grad.device.type == "cpu"


# -- Tracing -----------------------------------------------------------------------------------------------------------

IGNORE = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
OPS: list[tuple[str, tuple[Any, ...]]] = [
    ("dropout", (torch.tensor(3), 0.3, False)),
    ("dropout", (torch.tensor(3), 0.3, True)),
    ("cross_entropy", (torch.zeros(4, 5, dtype=torch.int64), torch.ones(6), -100, "mean", 0.1, F32)),
    ("pointwise_loss", (torch.rand(4, 6, 5), None, None, "bce", "none")),
    ("batch_norm_inference", (torch.ones(6), None, torch.zeros(6), torch.ones(6), 1e-5)),
]


@IGNORE
@by_case
def test_operators_are_registered_well(case):
    shape = (3, 4, 5)
    inputs = [t.requires_grad_() for t in draw(case, shape, F32)[1:]]
    torch.library.opcheck(getattr(torch.ops.ironstep, case.op).default, (*inputs, *case.arguments))
    last = LAYOUTS["channels last"](inputs[0].detach()).requires_grad_()
    rest = [t if t.shape == shape else None for t in inputs[1:]]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        getattr(torch.ops.ironstep, case.op).default, (last, *rest, *case.arguments), test_utils=checks
    )


@IGNORE
@pytest.mark.parametrize(("name", "arguments"), OPS)
def test_other_operators_are_registered_well(name, arguments):
    x = LAYOUTS["channels last"](torch.randn(4, 6, 5)).requires_grad_()
    torch.library.opcheck(getattr(torch.ops.ironstep, name).default, (x, *arguments))


class Everything(torch.nn.Module):
    """A module with each of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.rms, self.layer, self.group = nn.RMSNorm(4), nn.LayerNorm(4), nn.GroupNorm(2, 6)
        self.batch, self.instance = nn.BatchNorm1d(6), nn.InstanceNorm1d(6, affine=True, track_running_stats=True)
        self.drop, self.drop1d = nn.Dropout(0.3), nn.Dropout1d(0.3)
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(self.rms(x)) + self.group(x)
        y = self.drop(self.batch(y)) + self.drop1d(self.instance(x))
        y, hidden = F.add_rms_norm(y, x, 4)
        loss = self.loss(y, torch.zeros(y.shape[0], 4, dtype=torch.int64))
        return loss + F.mse_loss(y, hidden) + F.binary_cross_entropy_with_logits(y, torch.ones_like(y))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_without_a_graph_break(backend):
    torch.compiler.reset()
    x = torch.randn(3, 6, 4)
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = Everything()
        call = torch.compile(model, backend=backend, fullgraph=True) if compiled else model
        a = x.clone().requires_grad_()
        loss = call(a)
        loss.backward()
        results.append([loss.detach(), a.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    for pair in zip(*results, strict=True):
        same(*pair)


def test_export_with_a_dynamic_batch():
    model = Everything().eval()
    x = torch.randn(3, 6, 4)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2, max=64)},))
    names = {str(node.target) for node in program.graph.nodes}
    assert {"ironstep.rms_norm.default", "ironstep.batch_norm_inference.default"} <= names
    y = torch.randn(7, 6, 4)
    same(program.module()(y).detach(), model(y).detach())


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode):
    x = torch.randn(4, 6)
    call = lambda x: F.group_norm(F.layer_norm(x, 6), 2)  # noqa: E731
    graph = torch.fx.experimental.proxy_tensor.make_fx(call, tracing_mode=mode)(x)
    names = [str(node.target) for node in graph.graph.nodes if "ironstep" in str(node.target)]
    assert names == ["ironstep.layer_norm.default", "ironstep.group_norm.default"]
    same(graph(x), call(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [False, True])
def test_jit_trace(grad):
    """What is recorded computes; it does not merely allocate."""
    model = torch.nn.Sequential(nn.RMSNorm(6), nn.BatchNorm1d(6), nn.GroupNorm(2, 6)).eval()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, torch.randn(4, 6))
        x = torch.randn(5, 6)
        same(traced(x).detach(), model(x).detach())
        assert "ironstep::rms_norm" in str(traced.inlined_graph)


# -- Modules -----------------------------------------------------------------------------------------------------------

MODULES: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("LayerNorm", (5,), {}, (4, 6, 5)),
    ("LayerNorm", ((6, 5),), {"elementwise_affine": False}, (4, 6, 5)),
    ("LayerNorm", (5,), {"bias": False}, (4, 5)),
    ("RMSNorm", (5,), {}, (4, 5)),
    ("RMSNorm", (5,), {"eps": 1e-3, "elementwise_affine": False}, (4, 5)),
    ("GroupNorm", (2, 6), {}, (4, 6, 5)),
    ("BatchNorm1d", (6,), {}, (4, 6)),
    ("BatchNorm1d", (6,), {"momentum": None}, (4, 6, 5)),
    ("BatchNorm2d", (6,), {"track_running_stats": False}, (4, 6, 5, 2)),
    ("BatchNorm2d", (6,), {"affine": False, "momentum": 0.3}, (4, 6, 5, 2)),
    ("BatchNorm3d", (6,), {}, (4, 6, 5, 2, 3)),
    ("InstanceNorm1d", (6,), {}, (4, 6, 5)),
    ("InstanceNorm1d", (6,), {"affine": True}, (6, 5)),
    ("InstanceNorm2d", (6,), {"affine": True, "track_running_stats": True}, (4, 6, 5, 2)),
    ("InstanceNorm3d", (6,), {"track_running_stats": True, "momentum": None}, (4, 6, 5, 2, 3)),
]


@pytest.mark.parametrize(("name", "arguments", "options", "shape"), MODULES)
def test_modules_do_what_torch_does(name, arguments, options, shape):
    ours = getattr(nn, name)(*arguments, **options, dtype=F64) if name else None
    theirs = getattr(torch.nn, name)(*arguments, **options, dtype=F64)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_()
    ours.load_state_dict(theirs.state_dict())
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = torch.randn(shape, dtype=F64)
        a, b = (x.clone().requires_grad_() for _ in range(2))
        y, want = ours(a), theirs(b)
        assert_near(y.detach(), want.detach(), 1e-12, name)
        dy = torch.randn_like(want)
        y.backward(dy)
        want.backward(dy)
        assert_near(a.grad, b.grad, 1e-12, name)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert_near(p.grad, q.grad, 1e-12, name)
    states = ours.state_dict(), theirs.state_dict()
    assert list(states[0]) == list(states[1])
    for key, value in states[0].items():
        assert_near(value, states[1][key], 1e-12, key)
    theirs.load_state_dict(states[0])


@pytest.mark.parametrize("name", ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"])
def test_dropout_modules(name):
    shape = (2, 50, 2, 2, 2)[: {"Dropout": 2}.get(name, int(name[7:8] or 0) + 2)]
    model = getattr(nn, name)(0.5)
    assert repr(model) == repr(getattr(torch.nn, name)(0.5))
    torch.manual_seed(0)
    y = model(torch.ones(shape))
    torch.manual_seed(0)
    same(y, getattr(F, name.lower())(torch.ones(shape), 0.5))
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(model.eval()(torch.ones(shape)), torch.ones(shape))
    inplace = getattr(nn, name)(0.5, inplace=True)
    x = torch.ones(shape)
    assert inplace(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("name", "options", "target"),
    [
        ("CrossEntropyLoss", {"label_smoothing": 0.1, "weight": torch.rand(5)}, CLASSES),
        ("CrossEntropyLoss", {"ignore_index": 2, "reduction": "sum"}, CLASSES.clamp(min=0)),
        ("BCEWithLogitsLoss", {"pos_weight": torch.rand(5), "reduction": "none"}, torch.rand(6, 5)),
        ("MSELoss", {}, torch.rand(6, 5)),
    ],
)
def test_loss_modules(name, options, target):
    x = torch.randn(6, 5)
    ours, theirs = getattr(nn, name)(**options), getattr(torch.nn, name)(**options)
    assert_near(ours(x, target), theirs(x, target), 8 * ulps(F32), name)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_batch_norm_with_one_value_per_channel():
    for module in (nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            module(torch.randn(1, 3))
        # torch too has counted the batch by then.
        assert module.running_mean.abs().sum() == 0
    with pytest.raises(ValueError, match="Expected more than 1 spatial element"):
        nn.InstanceNorm1d(3)(torch.randn(2, 3, 1))
    with pytest.raises(ValueError, match="expected 4D input"):
        nn.BatchNorm2d(3)(torch.randn(2, 3))


# -- swap --------------------------------------------------------------------------------------------------------------


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = torch.nn.RMSNorm(8), torch.nn.Dropout(0.5)
        self.again = self.drop
        self.layer = torch.nn.LayerNorm(8)
        self.linear = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.linear(self.layer(self.norm(x))))


class Own(torch.nn.RMSNorm):
    pass


def test_swap_and_undo():
    model = torch.nn.Sequential(Block(), torch.nn.ModuleList([Block(), Own(8), torch.nn.BatchNorm1d(8)]))
    calls = []
    model[0].norm.register_forward_hook(lambda *_: calls.append(1))
    model[0].drop.eval()
    state, params = list(model.state_dict()), list(model.parameters())
    kinds = [type(m) for m in model.modules()]
    x = torch.randn(3, 8)
    before = model[0](x).detach()
    swapped = swap(model)
    assert isinstance(swapped, Swapped)
    assert swapped.replaced == {"0.norm": "RMSNorm", "0.drop": "Dropout", "1.0.norm": "RMSNorm", "1.0.drop": "Dropout"}
    assert swapped.left == {"0.layer": "LayerNorm", "1.0.layer": "LayerNorm", "1.2": "BatchNorm1d"}
    assert "0.norm: RMSNorm" in repr(swapped)
    assert type(model[0].norm) is nn.RMSNorm
    assert type(model[1][1]) is Own
    assert model[0].again is model[0].drop
    assert not model[0].drop.training
    assert model[1][0].drop.training
    assert list(model.state_dict()) == state
    assert all(a is b for a, b in zip(model.parameters(), params, strict=True))
    assert_near(model[0](x).detach(), before, 16 * ulps(F32), "result")
    assert len(calls) == 2
    assert swap(model).replaced == {}
    twin = copy.deepcopy(model)
    assert type(twin[0].norm) is nn.RMSNorm
    assert type(pickle.loads(pickle.dumps(model[1][0].drop))) is nn.Dropout
    swapped.undo()
    swapped.undo()
    assert [type(m) for m in model.modules()] == kinds
    same(model[0](x).detach(), before)


def test_swap_of_chosen_classes():
    root = torch.nn.LayerNorm(4)
    with swap(root, only=torch.nn.LayerNorm) as swapped:
        assert type(root) is nn.LayerNorm
        assert "(the model): LayerNorm" in repr(swapped)
    assert type(root) is torch.nn.LayerNorm
    model = torch.nn.Sequential(
        *(getattr(torch.nn, name)(4) for name in nn.__all__ if name[:5] in ("Batch", "Insta", "Layer", "RMSNo"))
    )
    assert len(swap(model, all=True).replaced) == len(model)
    assert all(type(m).__module__ == "ironstep.torch.nn" for m in model)
    assert swap(torch.nn.Dropout(), only=[torch.nn.RMSNorm]).replaced == {}
    for arguments, error, message in [
        ((3,), TypeError, "model must be a torch.nn.Module, got int"),
        ((model, torch.nn.Linear), ValueError, "got torch.nn.modules.linear.Linear"),
        ((model, ["RMSNorm"]), TypeError, "only must be classes of torch.nn, got 'RMSNorm'"),
    ]:
        with pytest.raises(error, match=message):
            swap(arguments[0], only=arguments[1] if len(arguments) > 1 else None)
    with pytest.raises(ValueError, match="only one of only and all"):
        swap(model, only=torch.nn.RMSNorm, all=True)


def test_undo_after_another_change_of_class():
    model = torch.nn.Sequential(torch.nn.RMSNorm(4), torch.nn.Dropout())
    swapped = swap(model)
    torch.nn.utils.parametrize.register_parametrization(model[0], "weight", torch.nn.Identity())
    assert model(torch.randn(2, 4)).shape == (2, 4)
    with pytest.raises(RuntimeError, match="0 must still be"):
        swapped.undo()
    assert type(model[1]) is nn.Dropout
    torch.nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    swapped.undo()
    assert type(model[0]) is torch.nn.RMSNorm


def test_a_swapped_model_saves_and_trains_as_before():
    torch.manual_seed(0)
    model = torch.nn.Sequential(Block(), torch.nn.Linear(8, 5))
    loss = torch.nn.CrossEntropyLoss()
    twin = copy.deepcopy(model)
    swap(model)
    for m in (model, twin):
        m.eval()
    x, t = torch.randn(6, 8), CLASSES
    losses = []
    for m in (model, twin):
        opt = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(5):
            opt.zero_grad()
            value = loss(m(x), t)
            value.backward()
            opt.step()
        losses.append(value.detach())
    assert_near(losses[0], losses[1], 1e-5, "loss")
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer))


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = torch.nn.Sequential(Block(), torch.nn.BatchNorm1d(8)).eval()
        x = torch.randn(4, 8)
        model(x).sum().backward()
        want = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        swap(model, all=True)
        torch.nn.parallel.DistributedDataParallel(model)(x).sum().backward()
        for p, grad in zip(model.parameters(), want, strict=True):
            assert_near(p.grad, grad, 1e-5, "gradient")
    finally:
        torch.distributed.destroy_process_group()


# -- Errors ------------------------------------------------------------------------------------------------------------

X = torch.randn(4, 6)
ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: F.layer_norm(X.int(), 6),
        TypeError,
        "input must be float32, float64, float16 or bfloat16, got torch.int32",
    ),
    (lambda: F.rms_norm(X.to(torch.complex64), 6), TypeError, "input must be .* got torch.complex64"),
    (lambda: F.layer_norm(X.to_sparse(), 6), TypeError, "input must be a dense tensor, got layout torch.sparse_coo"),
    (lambda: F.dropout(X.to_sparse()), TypeError, "input must be a dense tensor"),
    (lambda: F.dropout(X.int()), TypeError, "input must be float32"),
    (lambda: F.layer_norm(X, 5), ValueError, "normalized_shape must be the last dimensions of input"),
    (lambda: F.layer_norm(X, ()), ValueError, "normalized_shape must be"),
    (lambda: F.layer_norm(X, 6, torch.ones(5)), ValueError, r"weight must have shape \(6,\), got \(5,\)"),
    (lambda: F.layer_norm(X, 6, torch.ones(6).int()), TypeError, "weight must be float32"),
    (lambda: F.layer_norm(X, 6, eps=-1.0), ValueError, "eps must be finite and at least 0, got -1.0"),
    (lambda: F.add_rms_norm(X, X[:2], 6), ValueError, r"residual must have shape \(4, 6\), got \(2, 6\)"),
    (lambda: F.batch_norm(X[0], None, None, training=True), ValueError, "at least 2 dimensions"),
    (lambda: F.batch_norm(X, None, None), ValueError, "running_mean and running_var must be given if training"),
    (lambda: F.batch_norm(X, torch.ones(6), None), ValueError, "must be given together"),
    (lambda: F.batch_norm(X, torch.ones(5), torch.ones(6)), ValueError, "running_mean must have shape"),
    (lambda: F.group_norm(X, 4), ValueError, "num_groups must divide the number of channels, 6, got 4"),
    (lambda: F.cross_entropy(X, torch.tensor([0, 1, 2, 6])), ValueError, "target must be from 0 to 5"),
    (lambda: F.cross_entropy(X, torch.zeros(3, dtype=torch.int64)), ValueError, r"target must have shape \(4,\)"),
    (lambda: F.cross_entropy(X, torch.zeros(4, 5)), ValueError, "target must be classes of shape"),
    (lambda: F.cross_entropy(X, torch.zeros(4, dtype=torch.bool)), TypeError, "target must be integers or floats"),
    (lambda: F.cross_entropy(X, torch.zeros(4).long(), torch.ones(5)), ValueError, "weight must have shape"),
    (lambda: F.cross_entropy(X, torch.zeros(4).long(), reduction="max"), ValueError, "reduction must be one of"),
    (lambda: F.cross_entropy(X, torch.zeros(4).long(), label_smoothing=2.0), ValueError, "label_smoothing must be"),
    (lambda: F.binary_cross_entropy_with_logits(X, X[:, :2]), ValueError, "target must be"),
    (lambda: F.binary_cross_entropy_with_logits(X, X, X[:, :2]), ValueError, "weight must be broadcast"),
    (lambda: F.layer_norm(np.ones((4, 6)), 6), TypeError, "must be Tensor"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
