"""torch's tensors as the core sees them: by DLPack's exchange functions, and by Python's attributes for older torch."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from ironstep import _core

PLAIN = pytest.mark.parametrize("plain", [False, True], ids=["exchange", "attributes"])
DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}


def integers(x: torch.Tensor) -> np.ndarray[Any, Any]:
    """The bits of a tensor, as a copy."""
    return x.detach().clone().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]).numpy()


LAYOUTS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.t(),
    "strided": lambda x: x[1:, ::2],
    "repeated": lambda x: x[:1].expand(5, -1),
    "row": lambda x: x[2],
    "one": lambda x: x[1, 1],
    "empty": lambda x: x[:0],
}


@PLAIN
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
def test_an_array_over_a_tensor(dtype: torch.dtype, layout: str, plain: bool) -> None:
    x = LAYOUTS[layout](torch.randn(6, 7).to(dtype))
    array = _core.tensor_view(x, "x", written=True, plain=plain)
    assert array.shape == tuple(x.shape)
    if x.numel():
        assert array.__array_interface__["data"][0] == x.data_ptr()
        assert array.strides == tuple(stride * x.element_size() for stride in x.stride())
    assert array.dtype == DTYPES.get(dtype, np.uint16)
    stored = np.array(array).reshape(-1).view(f"i{array.itemsize}")
    np.testing.assert_array_equal(stored, integers(x.reshape(-1)))
    assert array.flags.writeable
    assert not _core.tensor_view(torch.ones(3), "x", written=False, plain=plain).flags.writeable


@PLAIN
def test_an_array_keeps_its_tensor_alive_and_the_storage_stays_resizable(plain: bool) -> None:
    x = torch.ones(1000)
    gone = weakref.ref(x)
    array = _core.tensor_view(x, "x", written=True, plain=plain)
    array[0] = 2.0
    assert x[0] == 2.0
    x.untyped_storage().resize_(8000)  # refused for ever after x.numpy()
    del x
    gc.collect()
    assert gone() is not None
    del array
    assert gone() is None


NOT_TAKEN = {
    "sparse": (lambda: torch.eye(3).to_sparse(), TypeError, "x must be a dense tensor, got layout torch.sparse_coo"),
    "compressed": (lambda: torch.eye(3).to_sparse_csr(), TypeError, "dense tensor, got layout torch.sparse_csr"),
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), TypeError, "bfloat16, got torch.complex64"),
    "integer": (lambda: torch.ones(3, dtype=torch.int64), TypeError, "bfloat16, got torch.int64"),
    "float8": (lambda: torch.ones(3).to(torch.float8_e4m3fn), TypeError, "bfloat16, got torch.float8_e4m3fn"),
    "meta": (lambda: torch.ones(3, device="meta"), ValueError, "memory of the CPU, got device meta"),
    "fake": (lambda: fake(), TypeError, "must have memory of its own"),
    "negated": (lambda: torch.ones(3, dtype=torch.complex64).conj().imag, ValueError, r"resolve_neg\(\)"),
    "negated single": (lambda: torch.ones(1, dtype=torch.complex64).conj().imag, ValueError, r"resolve_neg\(\)"),
    "array": (lambda: np.ones(3), TypeError, r"x must be a torch.Tensor, got numpy.ndarray"),
    "none": (lambda: None, TypeError, "x must be a torch.Tensor, got NoneType"),
}


def fake() -> torch.Tensor:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(3)


@PLAIN
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor is deprecated")
@pytest.mark.parametrize("what", NOT_TAKEN)
def test_what_is_no_plain_tensor_is_refused(what: str, plain: bool) -> None:
    make, error, message = NOT_TAKEN[what]
    tensor = make()
    with pytest.raises(error, match=message):
        _core.tensor_view(tensor, "x", written=False, plain=plain)
    views = _core.TensorViews(["y", "x"], written=True, plain=plain)
    with pytest.raises(error, match=message):
        views.look([torch.ones(2), tensor])


def test_functorch_tensors_are_refused() -> None:
    def look(x: torch.Tensor) -> torch.Tensor:
        with pytest.raises((RuntimeError, TypeError)):
            _core.tensor_view(x, "x", written=False)
        return x

    torch.vmap(look)(torch.ones(2, 3))


@PLAIN
def test_a_look_says_what_has_changed(plain: bool) -> None:
    x, y = torch.ones(3, 4), torch.zeros(2)
    views = _core.TensorViews(["x", "y"], written=True, plain=plain)
    arrays, changed = views.look([x, y])
    assert changed
    first = arrays[0]
    for _ in range(2):
        again, changed = views.look([x, y])
        assert again is arrays
        assert not changed
        assert arrays[0] is first
    # Another address: the same array.
    other = torch.full((3, 4), 5.0)
    _, changed = views.look([other, y])
    assert changed
    assert arrays[0] is first
    assert first[2, 3] == 5.0
    # The same address and shape, other strides; another shape; another dtype; another number of axes.
    square = torch.arange(4.0).reshape(2, 2)
    views.look([square, y])
    for change in (
        square.t(),
        torch.ones(2, 2)[:, :1],
        square.view(torch.int32).view(torch.float32).double(),
        square.reshape(-1),
        square.bfloat16(),
    ):
        before = arrays[0]
        _, changed = views.look([change, y])
        assert changed
        assert arrays[0] is not before
        assert arrays[0].shape == tuple(change.shape)
        assert not views.look([change, y])[1]


@PLAIN
def test_a_change_before_an_error_is_told_at_the_next_look(plain: bool) -> None:
    x, y = torch.ones(3), torch.ones(3)
    views = _core.TensorViews(["x", "y"], written=True, plain=plain)
    views.look([x, y])
    with pytest.raises(TypeError, match=r"y must be a torch\.Tensor"):
        views.look([torch.ones(3), None])
    assert views.look([x, y])[1]


def test_the_number_of_tensors_is_that_of_the_names() -> None:
    views = _core.TensorViews(["x"], written=False)
    with pytest.raises(ValueError, match="there must be 1 tensors, got 2"):
        views.look([torch.ones(1), torch.ones(1)])


def test_bfloat16_is_understood_by_a_plan() -> None:
    p, g = torch.tensor([1.0, -2.0]).bfloat16(), torch.tensor([0.5, 0.5]).bfloat16()
    views = _core.TensorViews(["p"], written=True)
    grads = _core.TensorViews(["g"], written=False)
    plan = _core.Plan("sgd", _core.Tree(views.look([p])[0], "params"), [], [0])
    step = [(1, False, _core.Values([1.0, 0.0, 0.0]), [])]
    plan.step(grads.look([g])[0], step, 1.0, math.inf, math.inf, False, 0.0, False, False, None)
    assert p.tolist() == [0.5, -2.5]
    with pytest.raises(TypeError, match="must be float32, float64, float16 or bfloat16, got uint16"):
        plan.step([np.zeros(2, np.uint16)], step, 1.0, math.inf, math.inf, False, 0.0, False, False, None)


def test_inspect_gives_the_sums_and_the_first_that_is_not_finite() -> None:
    rng = np.random.default_rng(0)
    params = [np.zeros(n, np.float32) for n in (5, 0, 40_000)]
    grads = [rng.normal(size=p.shape).astype(np.float32) for p in params]
    plan = _core.Plan("sgd", _core.Tree(params, "params"), [], [0, 0, 0])
    sums, bad = plan.inspect(grads, 1.0, math.inf, 1.0, None)
    assert bad is None
    step = [(1, False, _core.Values([0.0, 0.0, 0.0]), [])]
    norm = plan.step(grads, step, 1.0, math.inf, math.inf, False, 0.0, True, False, None)[1]
    assert math.sqrt(_core.tree_sum(np.array(sums))) == norm
    assert plan.inspect(grads, 2.0, math.inf, 0.5, None)[0] == sums
    grads[2][39_999] = np.nan
    assert plan.inspect(grads, 1.0, math.inf, 1.0, None)[1] == 2
    grads[0][0] = np.inf
    assert plan.inspect(grads, 1.0, math.inf, 1.0, None)[1] == 0


def test_a_joint_norm_takes_the_place_of_the_own() -> None:
    p, q, g = np.zeros(3), np.zeros(3), np.array([3.0, 0.0, 4.0])
    step = [(1, False, _core.Values([1.0, 0.0, 0.0]), [])]
    for array, norm in ((p, None), (q, 10.0)):
        plan = _core.Plan("sgd", _core.Tree([array], "params"), [], [0])
        plan.step([g], step, 1.0, math.inf, 1.0, False, 0.0, False, False, None, joint_norm=norm)
    np.testing.assert_array_equal(p, -(g * (1.0 / (5.0 + 1e-6))))
    np.testing.assert_array_equal(q, -(g * (1.0 / (10.0 + 1e-6))))


def test_without_torch_the_package_works_and_the_bridge_says_what_it_needs() -> None:
    program = """
import sys
sys.modules["torch"] = None
import ironstep
from ironstep import *
try:
    ironstep.torch
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == 'ironstep.torch needs PyTorch: pip install "ironstep[torch]"\n'


def test_the_package_does_not_import_torch_by_itself() -> None:
    program = "import sys, ironstep; from ironstep import *; ironstep.functional.relu; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "False\n"
