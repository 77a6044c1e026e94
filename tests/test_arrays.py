"""Safe on any array: the result of plain contiguous copies, bit for bit, or an error that names the argument."""

from __future__ import annotations

import inspect
import itertools
import math
import re
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from cases import CASES, Case
from ironstep import functional, optim

SHAPE = (3, 4, 5)
BIG = (150, 2, 130)
"""More elements than one thread takes alone; a chunk ends in the middle of a row."""

FLOATS = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
BY_NAME = {case.name: case for case in CASES}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


# -- Bits --------------------------------------------------------------------------------------------------------------


def bits(array: Any) -> np.ndarray:
    """The elements in logical order as unsigned integers, so that -0.0 is not 0.0."""
    native = np.array(array, array.dtype.newbyteorder("="), order="C", subok=False)
    return native.reshape(-1).view(f"u{native.itemsize}")


def assert_same(got: Any, want: Any, where: str = "") -> None:
    """Two nests are the same: arrays bit for bit with dtype and shape, the rest by ==."""
    if isinstance(want, np.ndarray):
        assert (got.shape, got.dtype.newbyteorder("=")) == (want.shape, want.dtype.newbyteorder("=")), where
        assert np.array_equal(bits(got), bits(want)), f"{where}: {got!r} is not {want!r}"
    elif isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for key in want:
            assert_same(got[key], want[key], f"{where}[{key!r}]")
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want), where
        for i, pair in enumerate(zip(got, want, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert got == want, where


def values(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal numbers, and among them a negative zero, subnormal and large ones."""
    out = np.random.default_rng(seed).standard_normal(shape)
    flat = out.reshape(-1)
    flat[1::7] = -0.0
    flat[3::11] *= 1e-41
    flat[5::13] *= 200.0
    return out


def compute_dtype(dtype: Any) -> Any:
    return np.float64 if np.dtype(dtype) == np.float64 else np.float32


# -- Layouts -----------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """A way to lie in memory, for any shape and dtype."""

    name: str
    order: str = "C"
    """Axes from slowest to fastest: "C", "F", or "rolled", which is a transpose that is neither."""
    steps: tuple[int, ...] = (1,)
    """Along the axes, the fastest first, repeated as needed."""
    gap: int = 0
    """Elements left out after each run of the fastest axis, as in a slice of the columns."""
    extra: int = 0
    """Bytes between two elements, as in a field of a structured array."""
    offset: int = 0
    swapped: bool = False

    def place(self, content: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """The memory as bytes, filled with a pattern, and the array in it that has the content."""
        dtype = np.dtype(dtype).newbyteorder("S") if self.swapped else np.dtype(dtype)
        axes = list(range(content.ndim))
        axes = {"C": axes, "F": axes[::-1], "rolled": axes[-1:] + axes[:-1]}[self.order]
        strides, first, run = [0] * content.ndim, self.offset, dtype.itemsize + self.extra
        for k, axis in enumerate(reversed(axes)):
            step, n = self.steps[k % len(self.steps)], content.shape[axis]
            strides[axis] = run * step
            if step < 0:
                first += run * -step * max(n - 1, 0)
            run *= abs(step) * max(n, 1)
            if k == 0:
                run += self.gap * (dtype.itemsize + self.extra)
        room = run + self.offset + 8
        memory = np.empty(room + 64, np.uint8)
        memory = memory[-memory.ctypes.data % 64 :][:room]
        memory[:] = 0xA5 ^ np.arange(room, dtype=np.uint8)
        array = np.ndarray(content.shape, dtype, memory, first, strides)
        array[...] = content
        return memory, array


PLAIN = Layout("contiguous")
LAYOUTS = [
    PLAIN,
    Layout("every second", steps=(2,)),
    Layout("every second row", steps=(1, 2)),
    Layout("columns", gap=3),
    Layout("backwards", steps=(-1,)),
    Layout("rows backwards", steps=(1, -1)),
    Layout("Fortran", order="F"),
    Layout("Fortran columns backwards", order="F", steps=(1, -2), gap=1),
    Layout("permuted", order="rolled"),
    Layout("permuted steps", order="rolled", steps=(-2, 1, 3)),
    Layout("unaligned", offset=1),
    Layout("big-endian", swapped=True),
    Layout("field of a struct", extra=3),
    Layout("all at once", order="rolled", steps=(2, -1), gap=1, extra=1, offset=3, swapped=True),
]
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


class Placed(NamedTuple):
    """An array, the memory that it lies in, and what that memory was at first."""

    array: np.ndarray
    memory: np.ndarray
    before: np.ndarray
    layout: Layout

    def assert_only(self, want: np.ndarray) -> None:
        """The array has become `want`, and not a byte beside it has changed."""
        memory, array = self.layout.place(want, want.dtype)
        array[...] = want
        assert_same(self.array, want, self.layout.name)
        assert np.array_equal(self.memory, memory), f"{self.layout.name}: memory outside the array has changed"

    def assert_untouched(self) -> None:
        assert np.array_equal(self.memory, self.before), f"{self.layout.name}: written"


def place(layout: Layout, content: np.ndarray, dtype: Any) -> Placed:
    memory, array = layout.place(content.astype(dtype), dtype)
    return Placed(array, memory, memory.copy(), layout)


def steps_of(case: Case, param: Any, grad: Any, steps: int = 2) -> dict[str, Any]:
    """All state after some steps with one gradient."""
    opt = case.cls(param, **case.kwargs)
    for _ in range(steps):
        opt.step(grad)
    return opt.state_dict()["state"]


@cache
def on_plain_copies(name: str, shape: tuple[int, ...], dtype: str, grad_dtype: str) -> tuple[Any, Any]:
    """The parameter and the state after two steps: contiguous, the gradient first rounded to what is computed in."""
    param = values(shape, 0).astype(FLOATS[dtype])
    grad = values(shape, 1).astype(FLOATS[grad_dtype]).astype(compute_dtype(FLOATS[dtype]))
    state = steps_of(BY_NAME[name], param, grad)
    return param, state


def check(case: Case, shape: tuple[int, ...], layouts: tuple[Layout, Layout], dtypes: tuple[str, str]) -> None:
    want, want_state = on_plain_copies(case.name, shape, *dtypes)
    param = place(layouts[0], values(shape, 0), FLOATS[dtypes[0]])
    grad = place(layouts[1], values(shape, 1), FLOATS[dtypes[1]])
    got_state = steps_of(case, param.array, grad.array)
    param.assert_only(want)
    grad.assert_untouched()
    assert_same(got_state, want_state, f"{layouts[0].name}, {layouts[1].name}")


@every_case
@every_layout
def test_any_layout_of_parameter_and_gradient_gives_the_bits_of_plain_copies(case: Case, layout: Layout) -> None:
    for grad_layout in LAYOUTS:
        check(case, SHAPE, (layout, grad_layout), ("float32", "float32"))


@every_case
def test_layouts_of_arrays_that_many_threads_share_give_the_bits_of_plain_copies(case: Case) -> None:
    for i, layout in enumerate(LAYOUTS):
        check(case, BIG, (layout, LAYOUTS[(5 * i + 1) % len(LAYOUTS)]), ("float32", "float32"))


@every_case
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_gradient_of_any_float_type_counts_as_rounded_once_to_the_computed_type(case: Case, dtype: str) -> None:
    for i, grad_dtype in enumerate(FLOATS):
        check(case, SHAPE, (PLAIN, PLAIN), (dtype, grad_dtype))
        # Odd layouts of all types, another pair for each pair of types.
        k = 4 * list(FLOATS).index(dtype) + i
        check(case, SHAPE, (LAYOUTS[k % len(LAYOUTS)], LAYOUTS[-k % len(LAYOUTS)]), (dtype, grad_dtype))


@every_case
@pytest.mark.parametrize("dtype", FLOATS)
def test_shapes_without_axes_or_elements_or_with_axes_of_length_1_give_the_bits_of_plain_copies(
    case: Case, dtype: str
) -> None:
    for shape in [(), (0,), (3, 0), (0, 3, 2), (1,), (1, 1, 1), (1, 5, 1), (7, 1)]:
        for layout in LAYOUTS:
            check(case, shape, (layout, layout), (dtype, dtype))


def odd_strides(content: np.ndarray) -> np.ndarray:
    """A contiguous copy whose axes of length 1 have strides that mean nothing."""
    copy = content.copy()
    strides = [s if n != 1 else odd for n, s, odd in zip(copy.shape, copy.strides, (10**9, -7, 3), strict=False)]
    return np.ndarray(copy.shape, copy.dtype, copy, strides=strides)


@every_case
@pytest.mark.parametrize("shape", [(1,), (1, 5, 1), (1, 1, 1), (5, 1, 2)])
def test_strides_of_axes_of_length_1_do_not_matter(case: Case, shape: tuple[int, ...]) -> None:
    want, want_state = on_plain_copies(case.name, shape, "float32", "float32")
    for odd_param, odd_grad in itertools.product([odd_strides, np.copy], repeat=2):
        param = odd_param(values(shape, 0).astype(np.float32))
        assert_same(steps_of(case, param, odd_grad(values(shape, 1).astype(np.float32))), want_state)
        assert_same(param, want)


@every_case
@pytest.mark.parametrize("axes", [(0,), (2,), (0, 1), (0, 1, 2)])
def test_a_broadcast_gradient_is_as_good_as_its_copy(case: Case, axes: tuple[int, ...]) -> None:
    narrow = tuple(1 if axis in axes else n for axis, n in enumerate(SHAPE))
    grad = np.broadcast_to(values(narrow, 1).astype(np.float32), SHAPE)
    assert 0 in grad.strides
    assert not grad.flags.writeable
    for layout in (PLAIN, LAYOUTS[-1]):
        want = values(SHAPE, 0).astype(np.float32)
        param = place(layout, want, np.float32)
        assert_same(steps_of(case, param.array, grad), steps_of(case, want, grad.copy()))
        param.assert_only(want)


@every_case
def test_a_read_only_gradient_is_read(case: Case) -> None:
    want, want_state = on_plain_copies(case.name, SHAPE, "float32", "float32")
    for layout in LAYOUTS:
        param, grad = values(SHAPE, 0).astype(np.float32), place(layout, values(SHAPE, 1), np.float32)
        grad.array.flags.writeable = False
        assert_same(steps_of(case, param, grad.array), want_state)
        assert_same(param, want)
        grad.assert_untouched()


@every_case
def test_the_layout_of_the_gradient_may_change_from_step_to_step(case: Case) -> None:
    """What a plan keeps of one gradient must not be used for the next."""
    for dtype, param_layout in itertools.product(["float32", "bfloat16"], [PLAIN, LAYOUTS[4], LAYOUTS[6]]):
        param, want = (place(layout, values(SHAPE, 0), FLOATS[dtype]).array for layout in (param_layout, PLAIN))
        opt, plain = case.cls(param, **case.kwargs), case.cls(want, **case.kwargs)
        for seed, layout in enumerate(LAYOUTS + [PLAIN, *LAYOUTS[::-1]]):
            grad_dtype = list(FLOATS)[seed % 4] if seed % 3 == 0 else dtype
            grad = values(SHAPE, seed).astype(FLOATS[grad_dtype])
            opt.step(place(layout, grad, grad.dtype).array)
            plain.step(grad.astype(compute_dtype(param.dtype)))
            assert_same(param, want, layout.name)
        assert_same(opt.state_dict(), plain.state_dict())


# -- Where arrays come from ----------------------------------------------------------------------------------------------


def as_matrix(array: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.matrix(array, copy=False)


class Subclass(np.ndarray):
    """As libraries make them, for units or names of axes."""


class Wrapped:
    """An object that NumPy can take as an array."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array


def as_jax(array: np.ndarray) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(array)


def as_torch(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)


GRADIENT_SOURCES: dict[str, Callable[[np.ndarray], Any]] = {
    "jax": as_jax,
    "torch": as_torch,
    "matrix": as_matrix,
    "subclass": lambda array: array.view(Subclass),
    "object with __array__": Wrapped,
    "object with a strided __array__": lambda array: Wrapped(np.repeat(array, 2, axis=1)[:, ::2]),
}


@every_case
@pytest.mark.parametrize("source", GRADIENT_SOURCES)
def test_what_numpy_takes_as_an_array_is_a_gradient(case: Case, source: str) -> None:
    want, param, grad = (values((4, 6), seed).astype(np.float32) for seed in (0, 0, 1))
    assert_same(steps_of(case, param, GRADIENT_SOURCES[source](grad)), steps_of(case, want, grad))
    assert_same(param, want)


def test_jax_arrays_of_all_floats_and_scalars_are_gradients() -> None:
    import jax.numpy as jnp

    for dtype, shape in itertools.product([jnp.float32, jnp.float16, jnp.bfloat16], [(), (3,), (0,)]):
        grad = values(shape, 1).astype(dtype)
        want, param = (np.ones(shape, np.float32) for _ in range(2))
        optim.SGD(param).step(jnp.asarray(grad))
        optim.SGD(want).step(grad.astype(np.float32))
        assert_same(param, want)
    param = np.array(1.0, np.float32)
    optim.SGD(param, lr=0.5).step(np.float32(1.0))
    assert param == 0.5


@every_case
def test_parameters_may_be_of_subclasses_of_arrays(case: Case) -> None:
    want, want_state = (values((4, 6), 0).astype(np.float32)), None
    grad = values((4, 6), 1).astype(np.float32)
    want_state = steps_of(case, want, grad)
    for make in (as_matrix, lambda array: array.view(Subclass)):
        param = make(values((4, 6), 0).astype(np.float32))
        assert_same(steps_of(case, param, grad), want_state)
        assert_same(np.asarray(param), want)


@every_case
def test_a_memory_map_is_updated_in_its_file(case: Case, tmp_path: Any) -> None:
    want, want_state = on_plain_copies(case.name, SHAPE, "float32", "float32")
    path, grad_path = tmp_path / "param", tmp_path / "grad"
    values(SHAPE, 0).astype(np.float32).tofile(path)
    values(SHAPE, 1).astype(np.float32).tofile(grad_path)
    param = np.memmap(path, np.float32, "r+", shape=SHAPE)
    grad = np.memmap(grad_path, np.float32, "r", shape=SHAPE)
    assert_same(steps_of(case, param, grad), want_state)
    param.flush()
    assert_same(np.fromfile(path, np.float32).reshape(SHAPE), want)


@every_case
def test_disjoint_views_of_one_buffer_are_parameters_like_any_others(case: Case) -> None:
    def halves(flat: np.ndarray) -> dict[str, list[np.ndarray]]:
        matrix = flat[:240].reshape(10, 24)
        return {
            "interleaved": [flat[::2], flat[1::2]],
            "against each other": [flat[::2], flat[1::2][::-1]],
            "columns": [matrix[:, :7], matrix[:, 7:20], matrix[:, 20:]],
            "checks": [matrix[::2, ::2], matrix[::2, 1::2], matrix[1::2].T],
            "one after the other": [flat[:100].reshape(10, 10), flat[100:130], flat[130:]],
        }

    for name in halves(np.empty(260)):
        flat, grad = (values((260,), seed).astype(np.float32) for seed in (0, 1))
        want, params, grads = flat.copy(), halves(flat)[name], halves(grad)[name]
        opt = case.cls(params, **case.kwargs)
        copies = [view.copy() for view in params]
        plain = case.cls(copies, **case.kwargs)
        for _ in range(2):
            opt.step(grads)
            plain.step([view.copy() for view in grads])
        for view, copy in zip(halves(want)[name], copies, strict=True):
            view[...] = copy
        assert_same(flat, want, name)
        assert_same(opt.state_dict(), plain.state_dict(), name)


def test_many_views_of_one_buffer_are_parameters_like_any_others() -> None:
    flat, grad = (values((64, 600), seed).astype(np.float32) for seed in (0, 1))
    want = flat.copy()
    optim.AdamW([flat[:, i] for i in range(600)]).step([grad[:, i] for i in range(600)])
    optim.AdamW(want).step(grad)
    assert_same(flat, want)


def test_gradients_may_share_memory_with_each_other_and_lie_between_the_parameters() -> None:
    grad = values((8,), 1).astype(np.float32)
    params, want = ([np.ones(8, np.float32), np.ones(8, np.float32)] for _ in range(2))
    optim.AdamW(params).step([grad, grad])
    optim.AdamW(want).step([grad.copy(), grad.copy()])
    assert_same(params, want)

    both = values((8, 2), 2).astype(np.float32)
    memory = both.copy()
    param = both[:, 0].copy()
    optim.AdamW(memory[:, 0]).step(memory[:, 1])
    optim.AdamW(param).step(both[:, 1].copy())
    assert_same(memory[:, 0], param)
    assert_same(memory[:, 1], both[:, 1])


# -- The functions, whose state is the caller's --------------------------------------------------------------------------


class Called(NamedTuple):
    """What a function takes for one array, made from an optimiser that has taken no step."""

    states: dict[str, np.ndarray]
    """State arrays, and the average and the full-precision copy where there are any."""
    scalars: dict[str, np.ndarray]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, case: Case, param: np.ndarray) -> Called:
        kwargs = {name: value for name, value in case.kwargs.items() if name != "master_weights"}
        every = case.cls(param, **case.kwargs).state_dict()["state"][""]
        names = [*case.cls(param, **case.kwargs).state, "ema", "master"]
        states = {name: every[name] for name in names if name in every}
        return cls(states, {name: every[name] for name in every if name not in (*names, "step")}, kwargs)

    def __call__(self, case: Case, param: Any, grad: Any, **arguments: Any) -> Any:
        function = getattr(functional, case.cls._function)
        return function(param, grad, **(self.kwargs | self.states | self.scalars | {"step": 1} | arguments))


@every_case
def test_state_of_any_layout_gives_the_bits_of_the_optimiser(case: Case) -> None:
    want, want_state = on_plain_copies(case.name, SHAPE, "float32", "float32")
    for i, layout in enumerate(LAYOUTS):
        param, grad = (place(layout, values(SHAPE, seed), np.float32) for seed in (0, 1))
        call = Called.of(case, param.array)
        placed = {
            name: place(LAYOUTS[(i + k) % len(LAYOUTS)], array, array.dtype)
            for k, (name, array) in enumerate(call.states.items(), 1)
        }
        arrays = {name: own.array for name, own in placed.items()}
        for step in (1, 2):
            call(case, param.array, grad.array, step=step, **arrays)
        param.assert_only(want)
        grad.assert_untouched()
        for name, own in placed.items():
            own.assert_only(want_state[""][name])
        assert_same(call.scalars, {name: want_state[""][name] for name in call.scalars})


@every_case
@pytest.mark.parametrize("dtype", FLOATS)
def test_state_of_another_float_type_is_widened_and_rounded_once(case: Case, dtype: str) -> None:
    for state_dtype in FLOATS:
        if FLOATS[dtype] is np.float64 and FLOATS[state_dtype] in (np.float16, ml_dtypes.bfloat16):
            continue
        param, want, grad = (values(SHAPE, seed).astype(FLOATS[dtype]) for seed in (0, 0, 1))
        call, plain = Called.of(case, param), Called.of(case, param)
        for name, array in call.states.items():
            if name != "master":
                call.states[name] = (array + np.abs(values(SHAPE, 2))).astype(FLOATS[state_dtype])
                plain.states[name] = call.states[name].astype(compute_dtype(FLOATS[dtype]))
        call(case, param, grad)
        plain(case, want, grad)
        rounded = {name: array.astype(call.states[name].dtype) for name, array in plain.states.items()}
        assert_same(call.states, rounded, state_dtype)
        assert_same(param, want, state_dtype)


# -- Changes between steps that leave a good parameter -------------------------------------------------------------------


def set_attribute(array: np.ndarray, name: str, value: Any) -> None:
    """`array.dtype = ...` and the like; newer NumPy deprecates it, but the arrays that people have can still do it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        setattr(array, name, value)


def resize(array: np.ndarray, *shape: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        array.resize(shape, refcheck=False)


def swap_bytes(params: dict[str, np.ndarray]) -> None:
    params["w"].byteswap(inplace=True)
    set_attribute(params["w"], "dtype", params["w"].dtype.newbyteorder())


def transpose_in_place(params: dict[str, np.ndarray]) -> None:
    set_attribute(params["w"], "strides", params["w"].strides[::-1])


def move_memory(params: dict[str, np.ndarray]) -> None:
    """The array's own memory goes elsewhere and comes back to the old shape."""
    resize(params["w"], 1000, 1000)
    resize(params["w"], 4, 4)


def replace_by(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], None]:
    def change(params: dict[str, np.ndarray]) -> None:
        params["w"] = make(params["w"])

    return change


GOOD_CHANGES: dict[str, Callable[[dict[str, np.ndarray]], None]] = {
    "nothing": lambda params: None,
    "values": lambda params: params["w"].__imul__(0.5),
    "a.dtype = other byte order": swap_bytes,
    "a.strides = transposed": transpose_in_place,
    "a.resize away and back": move_memory,
    "params['w'] = a copy": replace_by(np.copy),
    "params['w'] = Fortran order": replace_by(np.asfortranarray),
    "params['w'] = other byte order": replace_by(lambda a: a.astype(a.dtype.newbyteorder())),
    "params['w'] = a view": replace_by(lambda a: np.repeat(a, 2, axis=1)[:, ::2]),
    "params['w'] = a matrix": replace_by(as_matrix),
    "read-only and back": lambda params: (params["w"].setflags(write=False), params["w"].setflags(write=True)),
}


@every_case
@pytest.mark.parametrize("change", GOOD_CHANGES)
def test_the_step_after_a_change_of_the_array_is_that_of_the_changed_array(case: Case, change: str) -> None:
    content, grad = (values((4, 4), seed).astype(np.float32) for seed in (0, 1))
    params = {"w": content.copy(), "b": np.ones(3, np.float32)}
    grads = {"w": grad, "b": np.ones(3, np.float32)}
    want = {"w": content.copy(), "b": np.ones(3, np.float32)}
    opt, plain = case.cls(params, **case.kwargs), case.cls(want, **case.kwargs)
    opt.step(grads)
    plain.step(grads)
    old, old_bits = params["w"], None
    GOOD_CHANGES[change](params)
    want["w"][...] = params["w"]
    if params["w"] is not old:
        old_bits = bits(old).copy()
    for _ in range(2):
        opt.step(grads)
        plain.step(grads)
    assert_same({name: np.asarray(array) for name, array in params.items()}, want)
    assert_same(opt.state_dict(), plain.state_dict())
    if old_bits is not None:
        assert np.array_equal(bits(old), old_bits), "the array that was taken out is written"


def test_a_view_follows_its_base_to_other_memory_only_when_taken_again() -> None:
    base = np.ones(8, np.float32)
    params = {"w": base[2:6]}
    opt = optim.SGD(params, lr=0.5)
    opt.step({"w": np.ones(4, np.float32)})
    resize(base, 1 << 20)
    with pytest.raises(ValueError, match=r"params\['w'\] is a view that reaches outside its base"):
        opt.step({"w": np.ones(4, np.float32)})
    params["w"] = base[2:6]
    opt.step({"w": np.ones(4, np.float32)})
    assert_same(base[:8], np.array([1, 1, 0, 0, 0, 0, 1, 1], np.float32))


def test_a_dtype_that_comes_back_at_the_address_of_a_freed_one_is_another_dtype() -> None:
    """The plan must keep the dtype that it compares with, or integers are taken for floats."""
    param = np.ones(3, ">f4")
    opt = optim.SGD(param, lr=0.5)
    opt.step(np.ones(3, np.float32))
    address = id(param.dtype)
    for _ in range(100):
        set_attribute(param, "dtype", np.dtype("<f4"))
        set_attribute(param, "dtype", np.dtype(">i4"))
        if id(param.dtype) == address:
            break
    before = param.copy()
    with pytest.raises(ValueError, match=r"params must stay float32"):
        opt.step(np.ones(3, np.float32))
    assert_same(param, before)


@pytest.mark.parametrize("what", ["the parameter", "another gradient"])
def test_a_change_made_while_a_gradient_is_converted_is_noticed(what: str) -> None:
    """Converting runs the gradient's own code, so the arrays must be looked at after all of them are converted."""
    params = [np.ones(3, np.float32), np.ones(3, np.float32)]
    first = np.ones(3, np.float32)

    class Changing(Wrapped):
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            if what == "the parameter":
                params[0].flags.writeable = False
            else:
                set_attribute(first, "shape", (3, 1))
            return self.array

    opt = optim.SGD(params, lr=0.5)
    with pytest.raises(ValueError, match=r"params\[0\] must be writeable|grads\[0\] must have shape"):
        opt.step([first, Changing(np.ones(3, np.float32))])
    assert_same(params, [np.ones(3, np.float32), np.ones(3, np.float32)])


# -- Errors of a step ----------------------------------------------------------------------------------------------------


class World:
    """Parameters, gradients and an optimiser that has taken a step."""

    def __init__(self, case: Case) -> None:
        def draw(shape: tuple[int, ...], seed: int) -> np.ndarray:
            return values(shape, seed).astype(np.float32)

        self.base = draw((12,), 3)
        self.grad_base = draw((12,), 13)
        self.params = {"b": draw((6,), 2).astype(np.float64), "v": self.base[2:8], "w": draw((4, 6), 1)}
        self.grads = {"b": draw((6,), 12).astype(np.float64), "v": self.grad_base[2:8], "w": draw((4, 6), 11)}
        self.opt = case.cls(self.params, **case.kwargs)
        self.good_step()
        # What an error case changes on purpose, and puts back.
        self.first_params, self.first_grads = dict(self.params), dict(self.grads)
        self.copies = {name: array.copy() for name, array in self.params.items()}
        self.grad_copies = {name: array.copy() for name, array in self.grads.items()}
        self.base_copy = self.base.copy()
        self.group, self.nonfinite = dict(self.opt.param_groups[0]), self.opt.nonfinite

    def good_step(self) -> None:
        self.opt.step(self.grads)

    def step_with(self, **changed: Any) -> None:
        """A step with some other gradients."""
        self.opt.step(self.grads | changed)

    def step_after(self, **params: Any) -> None:
        """A step with other arrays in the dict of the parameters."""
        self.params.update(params)
        self.good_step()

    def look(self) -> dict[str, Any]:
        def copies(arrays: dict[str, Any]) -> dict[str, Any]:
            return {name: np.array(array, order="C") for name, array in arrays.items()}

        return {
            "params": copies(self.params),
            "grads": copies(self.grads),
            "base": self.base.copy(),
            "steps": self.opt.steps,
            "state": self.opt.state_dict(),
            "group": repr(self.opt.param_groups),
        }


def put_back(world: World) -> None:
    """The very arrays of before, with the metadata of before."""
    world.params.clear()
    world.params.update(world.first_params)
    world.grads.clear()
    world.grads.update(world.first_grads)
    for name, array in world.params.items():
        copy = world.copies[name]
        array.flags.writeable = True
        if array.dtype != copy.dtype:
            set_attribute(array, "dtype", copy.dtype)
        if array.shape != copy.shape:
            set_attribute(array, "shape", copy.shape)


def put_copies(world: World) -> None:
    """Copies, where the memory of before is gone."""
    world.params.update({name: array.copy() for name, array in world.copies.items()})
    world.grads.update({name: array.copy() for name, array in world.grad_copies.items()})
    world.base = world.base_copy


def put_back_settings(world: World) -> None:
    for name, value in world.group.items():
        if name != "params":
            world.opt.param_groups[0][name] = value
    world.opt.nonfinite = world.nonfinite


def set_and_step(name: str, value: Any) -> Callable[[World], None]:
    """A step after a change of parameter 'w' itself."""

    def act(world: World) -> None:
        set_attribute(world.params["w"], name, value)
        world.good_step()

    return act


def resize_and_step(which: str, *shape: int) -> Callable[[World], None]:
    def act(world: World) -> None:
        resize({"w": world.params["w"], "base": world.base, "grad_base": world.grad_base}[which], *shape)
        world.good_step()

    return act


def remove_and_step(world: World) -> None:
    del world.params["v"]
    world.good_step()


def read_only_and_step(world: World) -> None:
    world.params["w"].flags.writeable = False
    world.good_step()


def masked(array: np.ndarray) -> np.ndarray:
    return np.ma.masked_array(array, np.zeros(array.shape, bool))


def repeated(shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """A writeable array with several elements at one address."""
    return np.lib.stride_tricks.as_strided(np.ones(64, np.float32), shape, strides)


def lr_gives(value: Any) -> Callable[[World], None]:
    def act(world: World) -> None:
        world.opt.param_groups[0]["lr"] = lambda step: value if step == 1 else 0.5
        world.good_step()

    return act


def lr_raises(world: World) -> None:
    world.opt.param_groups[0]["lr"] = lambda step: 1 / (1 - step)
    world.good_step()


def not_finite(value: float) -> Callable[[World], None]:
    def act(world: World) -> None:
        world.opt.nonfinite = "raise"
        grad = world.grads["w"].copy()
        grad[-1, -1] = value
        world.step_with(w=grad)

    return act


class Failing(Wrapped):
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise KeyError("a gradient that cannot be read")


class Bad(NamedTuple):
    """A step that must fail."""

    name: str
    error: type[Exception]
    match: str
    act: Callable[[World], Any]
    undo: Callable[[World], None] = put_back


def other_gradient(name: str, error: type[Exception], match: str, make: Callable[[np.ndarray], Any]) -> Bad:
    """A step whose gradient of 'w' is made from the good one."""
    return Bad(f"gradient {name}", error, match, lambda world: world.step_with(w=make(world.grads["w"])))


def other_param(name: str, error: type[Exception], match: str, make: Callable[[World], Any]) -> Bad:
    """A step after `params['w'] = ...`."""
    return Bad(f"parameter becomes {name}", error, match, lambda world: world.step_after(w=make(world)))


F32 = np.float32
GRAD_W, PARAM_W = r"grads\['w'\] ", r"params\['w'\] "
APART = r"params\['w'\] and {} must be apart"
NOT_FLOATS: dict[str, Any] = {
    "object": object,
    "int32": np.int32,
    "int64": np.int64,
    "uint16": np.uint16,
    "bool": bool,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "longdouble": np.longdouble,
    "str": "U3",
    "bytes": "S3",
    "datetime64": "M8[s]",
    "void": "V4",
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "int4": ml_dtypes.int4,
    "struct": [("a", np.float32)],
}
if np.dtype(np.longdouble) == np.dtype(np.float64):
    del NOT_FLOATS["longdouble"]

BAD_STEPS = [
    *(
        other_gradient(f"of {name}", TypeError, GRAD_W + "must be float32, float64, float16 or bfloat16, got", make)
        for name, dtype in NOT_FLOATS.items()
        for make in [lambda g, dtype=dtype: np.zeros(g.shape, dtype)]
    ),
    other_gradient("None", TypeError, GRAD_W + "must be a NumPy array.*NoneType", lambda g: None),
    other_gradient("a dict", TypeError, GRAD_W + "must be a NumPy array.*dict", lambda g: {"w": g}),
    other_gradient("a list of lists", TypeError, GRAD_W + "must be a NumPy array.*list", lambda g: g.tolist()),
    other_gradient("a float", TypeError, GRAD_W + "must be a NumPy array.*float", lambda g: 0.0),
    other_gradient("a string", TypeError, GRAD_W + "must be a NumPy array.*str", lambda g: "w"),
    other_gradient("a sparse pattern", TypeError, GRAD_W + "must be a NumPy array.*set", lambda g: {1, 2}),
    other_gradient("masked", TypeError, GRAD_W + "is a masked array", masked),
    other_gradient("that cannot be read", KeyError, "a gradient that cannot be read", Failing),
    other_gradient(
        "of objects by __array__", TypeError, GRAD_W + "must be float32", lambda g: Wrapped(g.astype(object))
    ),
    other_gradient(
        "transposed", ValueError, GRAD_W + r"must have shape \(4, 6\) like params\['w'\], got \(6, 4\)", np.transpose
    ),
    other_gradient("flat", ValueError, GRAD_W + r"must have shape \(4, 6\).*got \(24,\)", np.ravel),
    other_gradient("too short", ValueError, GRAD_W + r"must have shape \(4, 6\).*got \(3, 6\)", lambda g: g[1:]),
    other_gradient("without axes", ValueError, GRAD_W + r"must have shape \(4, 6\).*got \(\)", lambda g: F32(1.0)),
    other_gradient(
        "of one more axis", ValueError, GRAD_W + r"must have shape \(4, 6\).*got \(1, 4, 6\)", lambda g: g[None]
    ),
    other_gradient("that broadcasts", ValueError, GRAD_W + r"must have shape \(4, 6\).*got \(6,\)", lambda g: g[0]),
    other_gradient("empty", ValueError, GRAD_W + r"must have shape \(4, 6\).*got \(0, 6\)", lambda g: g[:0]),
    Bad(
        "gradient missing",
        ValueError,
        r"grads must have.*missing: 'w'",
        lambda world: world.opt.step({k: world.grads[k] for k in "bv"}),
    ),
    Bad(
        "gradient unknown",
        ValueError,
        r"grads must have.*unknown: 'x'",
        lambda world: world.step_with(x=np.ones(3, F32)),
    ),
    Bad(
        "gradient renamed",
        ValueError,
        r"grads must have.*missing: 'w'; unknown: 'W'",
        lambda world: world.opt.step({k if k != "w" else "W": g for k, g in world.grads.items()}),
    ),
    Bad("gradients None", ValueError, "grads must be a dict of length 3", lambda world: world.opt.step(None)),
    Bad(
        "gradients in a list",
        ValueError,
        "grads must be a dict of length 3",
        lambda world: world.opt.step(list(world.grads.values())),
    ),
    Bad(
        "gradients in an array",
        ValueError,
        "grads must be a dict of length 3",
        lambda world: world.opt.step(world.grads["w"]),
    ),
    Bad(
        "gradients in groups",
        ValueError,
        "grads must be a dict of length 3",
        lambda world: world.opt.step([world.grads]),
    ),
    Bad(
        "gradients nested deeper",
        TypeError,
        r"grads\['w'\] must be a NumPy array.*list",
        lambda world: world.step_with(w=[world.grads["w"]]),
    ),
    Bad(
        "gradient is the parameter",
        ValueError,
        APART.format(r"grads\['w'\]"),
        lambda world: world.step_with(w=world.params["w"]),
    ),
    Bad(
        "gradient is a view of the parameter",
        ValueError,
        APART.format(r"grads\['w'\]"),
        lambda world: world.step_with(w=world.params["w"][::-1, ::-1]),
    ),
    Bad(
        "gradient wraps the parameter",
        ValueError,
        APART.format(r"grads\['w'\]"),
        lambda world: world.step_with(w=Wrapped(world.params["w"])),
    ),
    Bad(
        "gradient is another parameter",
        ValueError,
        r"params\['w'\] and grads\['v'\] must be apart",
        lambda world: world.step_with(v=world.params["w"][0]),
    ),
    Bad(
        "gradient overlaps a parameter",
        ValueError,
        r"params\['v'\] and grads\['v'\] must be apart",
        lambda world: world.step_with(v=world.base[6:]),
    ),
    Bad(
        "gradient of bytes of a parameter",
        ValueError,
        r"params\['b'\] and grads\['v'\] must be apart",
        lambda world: world.step_with(v=world.params["b"].view(F32)[:6]),
    ),
    Bad(
        "base of the gradient shrinks",
        ValueError,
        r"grads\['v'\] is a view that reaches outside its base",
        resize_and_step("grad_base", 3),
        put_copies,
    ),
    Bad(
        "base of the gradient moves",
        ValueError,
        r"grads\['v'\] is a view that reaches outside its base",
        resize_and_step("grad_base", 1 << 20),
        put_copies,
    ),
    Bad("read-only", ValueError, PARAM_W + "must be writeable", read_only_and_step),
    Bad("a.dtype = int32", ValueError, PARAM_W + "must stay float32.*got int32", set_and_step("dtype", np.int32)),
    Bad(
        "a.dtype = float16",
        ValueError,
        PARAM_W + r"must stay float32.*got float16 of shape \(4, 12\)",
        set_and_step("dtype", np.float16),
    ),
    Bad(
        "a.dtype = complex64",
        ValueError,
        PARAM_W + "must stay float32.*got complex64",
        set_and_step("dtype", np.complex64),
    ),
    Bad(
        "a.shape = (24,)",
        ValueError,
        PARAM_W + r"must stay float32 of shape \(4, 6\).*got float32 of shape \(24,\)",
        set_and_step("shape", (24,)),
    ),
    Bad(
        "a.shape = (6, 4)",
        ValueError,
        PARAM_W + r"must stay float32 of shape \(4, 6\).*got float32 of shape \(6, 4\)",
        set_and_step("shape", (6, 4)),
    ),
    Bad(
        "a.resize",
        ValueError,
        PARAM_W + r"must stay float32 of shape \(4, 6\).*got float32 of shape \(2, 2\)",
        resize_and_step("w", 2, 2),
        put_copies,
    ),
    Bad(
        "base of a view shrinks",
        ValueError,
        r"params\['v'\] is a view that reaches outside its base",
        resize_and_step("base", 3),
        put_copies,
    ),
    Bad(
        "base of a view moves",
        ValueError,
        r"params\['v'\] is a view that reaches outside its base",
        resize_and_step("base", 1 << 20),
        put_copies,
    ),
    Bad("parameter removed", ValueError, r"params must keep the structure.*params\['v'\]", remove_and_step),
    Bad(
        "parameter added",
        ValueError,
        r"params must keep the structure.*params\['x'\]",
        lambda world: world.step_after(x=np.ones(3, F32)),
    ),
    Bad(
        "parameter with a key of another kind",
        TypeError,
        "params must have",
        lambda world: (world.params.update({1: np.ones(3)}), world.good_step()),
    ),
    other_param(
        "a list", ValueError, r"params must keep the structure.*params\['w'\]", lambda world: [world.params["w"]]
    ),
    other_param("None", ValueError, PARAM_W + "must stay float32.*not an array", lambda world: None),
    other_param(
        "of another dtype", ValueError, PARAM_W + "must stay float32.*got float64", lambda world: np.ones((4, 6))
    ),
    other_param(
        "of another shape",
        ValueError,
        PARAM_W + r"must stay.*got float32 of shape \(6, 4\)",
        lambda world: np.ones((6, 4), F32),
    ),
    other_param("masked", TypeError, PARAM_W + "is a masked array", lambda world: masked(np.ones((4, 6), F32))),
    other_param(
        "a broadcast",
        ValueError,
        PARAM_W + "has several elements at the same address",
        lambda world: repeated((4, 6), (0, 4)),
    ),
    other_param("its gradient", ValueError, APART.format(r"grads\['w'\]"), lambda world: world.grads["w"]),
    other_param(
        "part of another parameter",
        ValueError,
        r"params\['v'\] and params\['w'\] must be apart",
        lambda world: (world.params.update(v=(buffer := np.ones(29, F32))[23:]), buffer[:24].reshape(4, 6))[1],
    ),
    other_param(
        "a JAX array", ValueError, PARAM_W + "must stay float32.*not an array", lambda world: as_jax(world.params["w"])
    ),
    Bad(
        "grad_scale NaN",
        ValueError,
        "grad_scale must be finite",
        lambda world: world.opt.step(world.grads, grad_scale=math.nan),
    ),
    Bad(
        "grad_scale infinite",
        ValueError,
        "grad_scale must be finite",
        lambda world: world.opt.step(world.grads, grad_scale=-math.inf),
    ),
    Bad(
        "grad_scale a string",
        TypeError,
        "grad_scale must be",
        lambda world: world.opt.step(world.grads, grad_scale="1"),
    ),
    Bad(
        "grad_scale a bool", TypeError, "grad_scale must be", lambda world: world.opt.step(world.grads, grad_scale=True)
    ),
    Bad("grad_scale None", TypeError, "grad_scale must be", lambda world: world.opt.step(world.grads, grad_scale=None)),
    Bad("grad_norm an integer", TypeError, "grad_norm", lambda world: world.opt.step(world.grads, grad_norm=1)),
    Bad("update_norm a string", TypeError, "update_norm", lambda world: world.opt.step(world.grads, update_norm="yes")),
    Bad(
        "an unknown instruction set",
        ValueError,
        "_isa must be one of",
        lambda world: world.opt.step(world.grads, _isa="none"),
    ),
    Bad("an unknown argument", TypeError, "closure", lambda world: world.opt.step(world.grads, closure=None)),
    Bad("lr gives NaN", ValueError, r"lr\(1\) must be finite", lr_gives(math.nan), put_back_settings),
    Bad(
        "lr gives a negative number",
        ValueError,
        r"lr\(1\) must be finite and at least 0, got -1",
        lr_gives(-1.0),
        put_back_settings,
    ),
    Bad("lr gives a string", TypeError, r"lr\(1\) must be a number", lr_gives("0.1"), put_back_settings),
    Bad("lr gives None", TypeError, r"lr\(1\) must be a number", lr_gives(None), put_back_settings),
    Bad("lr raises", ZeroDivisionError, "division by zero", lr_raises, put_back_settings),
    Bad("NaN in a gradient", FloatingPointError, GRAD_W + "must be finite", not_finite(math.nan), put_back_settings),
    Bad(
        "infinity in a gradient",
        FloatingPointError,
        GRAD_W + "must be finite",
        not_finite(-math.inf),
        put_back_settings,
    ),
]


@pytest.mark.parametrize("bad", BAD_STEPS, ids=lambda bad: bad.name)
def test_a_step_that_fails_says_why_and_is_as_if_it_had_not_been(bad: Bad) -> None:
    for case in CASES:
        world, twin = World(case), World(case)
        before = world.look()
        with pytest.raises(bad.error, match=bad.match):
            bad.act(world)
        bad.undo(world)
        assert_same(world.look(), before, case.name)
        for _ in range(2):
            world.good_step()
            twin.good_step()
        assert_same(world.params, twin.params, case.name)
        assert_same(world.opt.state_dict(), twin.opt.state_dict(), case.name)


def kept_arrays(opt: optim.Optimizer) -> dict[str, dict[str, np.ndarray]]:
    """The optimiser's own arrays, by name: state, and the average and the full-precision copy where there are any."""
    kept = dict(opt.state)
    if opt.ema_decay is not None:
        kept["ema"] = opt.ema
    try:
        kept["master"] = opt.master
    except ValueError:
        pass
    return kept


@every_case
def test_a_gradient_that_is_state_is_refused_and_nothing_is_changed(case: Case) -> None:
    for name in kept_arrays(World(case).opt):
        world, twin = World(case), World(case)
        before = world.look()
        with pytest.raises(ValueError, match=rf"{name}\['w'\] and grads\['w'\] must be apart"):
            world.step_with(w=kept_arrays(world.opt)[name]["w"])
        with pytest.raises(ValueError, match=rf"{name}\['w'\] and grads\['v'\] must be apart"):
            world.step_with(v=kept_arrays(world.opt)[name]["w"][2][::-1])
        assert_same(world.look(), before)
        world.good_step()
        twin.good_step()
        assert_same(world.look(), twin.look())


STATE_CHANGES: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {
    "read-only": ("must be writeable", lambda array: array.setflags(write=False)),
    "dtype": ("must be float32, float64", lambda array: set_attribute(array, "dtype", np.int32)),
    "shape": (r"must be float32 of shape \(4, 6\)", lambda array: set_attribute(array, "shape", (24,))),
    "dtype and shape": (r"must be float32 of shape \(4, 6\)", lambda array: set_attribute(array, "dtype", np.float64)),
}


@every_case
@pytest.mark.parametrize("change", STATE_CHANGES)
def test_state_whose_metadata_somebody_changed_is_refused_by_name(case: Case, change: str) -> None:
    match, act = STATE_CHANGES[change]
    for name in kept_arrays(World(case).opt):
        world, twin = World(case), World(case)
        before = world.look()
        array = kept_arrays(world.opt)[name]["w"]
        dtype, shape = array.dtype, array.shape
        act(array)
        with pytest.raises((ValueError, TypeError), match=rf"{name}\['w'\] {match}"):
            world.good_step()
        array.flags.writeable = True
        set_attribute(array, "dtype", dtype)
        set_attribute(array, "shape", shape)
        assert_same(world.look(), before)
        world.good_step()
        twin.good_step()
        assert_same(world.look(), twin.look())


@every_case
def test_state_that_somebody_changed_in_place_counts(case: Case) -> None:
    world, twin = World(case), World(case)
    for name, arrays in kept_arrays(world.opt).items():
        for key in arrays:
            arrays[key] *= 0.5
            kept_arrays(twin.opt)[name][key][...] = arrays[key]
    assert_same(world.look(), twin.look())
    world.good_step()
    twin.good_step()
    assert_same(world.look(), twin.look())
    for name, arrays in kept_arrays(world.opt).items():
        before = arrays["w"].copy()
        world.good_step()
        assert kept_arrays(world.opt)[name]["w"] is arrays["w"], "the array that the caller holds is the one in use"
        assert name in ("max_exp_avg_sq",) or not np.array_equal(before, arrays["w"])


# -- Errors of parameters, at construction and in the functions ----------------------------------------------------------


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def dangling() -> np.ndarray:
    base = np.ones(64, np.float32)
    view = base[8:32].reshape(4, 6)
    resize(base, 10)
    return view


GOOD = np.ones((4, 6), np.float32)
SAME, BUFFER = np.ones(3, np.float32), np.ones(32, np.float32)
BAD_PARAMS: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    **{
        f"of {name}": (TypeError, PARAM_W + "must be float32, float64, float16 or bfloat16, got", make)
        for name, dtype in NOT_FLOATS.items()
        for make in [lambda dtype=dtype: {"w": np.zeros((4, 6), dtype)}]
    },
    "masked": (TypeError, PARAM_W + "is a masked array", lambda: {"w": masked(GOOD.copy())}),
    "a scalar": (TypeError, PARAM_W + "must be a NumPy array.*numpy.float32", lambda: {"w": np.float32(1.0)}),
    "a float": (TypeError, PARAM_W + "must be a NumPy array.*float", lambda: {"w": 1.0}),
    "None": (TypeError, "params must be a NumPy array.*NoneType", lambda: None),
    "a string": (TypeError, "params must be a NumPy array.*str", lambda: "w"),
    "a generator": (TypeError, "params must be a NumPy array.*generator", lambda: (w for w in [GOOD])),
    "a JAX array": (
        TypeError,
        PARAM_W + "must be a NumPy array, which is updated in place",
        lambda: {"w": as_jax(GOOD)},
    ),
    "of nothing": (ValueError, "params must hold at least one array", dict),
    "read-only": (ValueError, PARAM_W + "must be writeable", lambda: {"w": read_only(GOOD)}),
    "a broadcast": (ValueError, PARAM_W + "must be writeable", lambda: {"w": np.broadcast_to(SAME, (4, 3))}),
    "without strides": (
        ValueError,
        PARAM_W + "has several elements at the same",
        lambda: {"w": repeated((4, 6), (0, 4))},
    ),
    "a sliding window": (
        ValueError,
        PARAM_W + "has several elements at the same",
        lambda: {"w": repeated((4, 6), (4, 4))},
    ),
    "of elements that overlap": (
        ValueError,
        PARAM_W + "has several elements at the same",
        lambda: {"w": repeated((9,), (2,))},
    ),
    "a view of freed memory": (ValueError, PARAM_W + "is a view that reaches outside", lambda: {"w": dangling()}),
    "twice the same": (ValueError, r"params\[0\] and params\[1\] must be apart", lambda: [SAME, SAME]),
    "one in two places": (
        ValueError,
        r"params\['a'\] and params\['b'\]\[0\] must be apart",
        lambda: {"a": SAME, "b": [SAME]},
    ),
    "two overlapping views": (
        ValueError,
        r"params\[0\] and params\[1\] must be apart",
        lambda: [BUFFER[:9], BUFFER[8:]],
    ),
    "a view and its base": (ValueError, r"params\[0\] and params\[1\] must be apart", lambda: [BUFFER, BUFFER[::-5]]),
    "overlapping strided views": (
        ValueError,
        r"params\[0\] and params\[2\] must be apart",
        lambda: [BUFFER[::2], BUFFER[1::4], BUFFER[::3]],
    ),
    "the same bytes as another dtype": (
        ValueError,
        r"params\[0\] and params\[1\] must be apart",
        lambda: [BUFFER[:4], BUFFER.view(np.float16)[7:]],
    ),
    "of keys that are no names": (
        TypeError,
        "params must have strings or integers as keys",
        lambda: {(1, 2): GOOD.copy()},
    ),
    "of keys of two kinds": (
        TypeError,
        "params must have keys that can be sorted",
        lambda: {1: GOOD.copy(), "w": GOOD.copy()},
    ),
}


@pytest.mark.parametrize("face", ["class", "function"])
@pytest.mark.parametrize("bad", BAD_PARAMS)
def test_bad_parameters_are_refused_by_name_and_not_changed(face: str, bad: str) -> None:
    error, match, make = BAD_PARAMS[bad]
    for case in CASES:
        params = make()
        before = BUFFER.copy(), SAME.copy(), GOOD.copy()
        with pytest.raises(error, match=match):
            if face == "class":
                case.cls(params, **case.kwargs)
            else:
                functional.sgd_(params, params, step=1)
        assert_same((BUFFER, SAME, GOOD), before)


def test_a_group_that_is_refused_leaves_the_optimiser_as_it_was() -> None:
    for case in CASES:
        world, twin = World(case), World(case)
        before = world.look()
        for group, error, match in [
            ({"params": read_only(GOOD)}, ValueError, r"params\[1\] must be writeable"),
            ({"params": np.ones(3, int)}, TypeError, r"params\[1\] must be float32"),
            ({"params": world.params["w"]}, ValueError, r"params\[0\]\['w'\] and params\[1\] must be apart"),
            ({"params": world.base[7:]}, ValueError, r"params\[0\]\['v'\] and params\[1\] must be apart"),
            ({"params": []}, ValueError, r"params\[1\] must hold at least one array"),
            ({"params": np.ones(3), "lr": -1.0}, ValueError, "lr must be finite and at least 0, got -1"),
            ({"params": np.ones(3), "rate": 1.0}, ValueError, r"params\[1\] has 'rate'"),
            ({"params": np.ones(3), "weight_decay_mask": [True]}, TypeError, "weight_decay_mask"),
            ({"lr": 1.0}, TypeError, "group must be a dict with a key 'params'"),
            (np.ones(3), TypeError, "group must be a dict with a key 'params'"),
        ]:
            with pytest.raises(error, match=match):
                world.opt.add_param_group(group)
            assert_same(world.look(), before)
        world.good_step()
        twin.good_step()
        assert_same(world.look(), twin.look())


# -- Errors of the functions' state ----------------------------------------------------------------------------------------


class BadCall(NamedTuple):
    """A call of `adamw_` that must fail."""

    name: str
    error: type[Exception]
    match: str
    change: Callable[[dict[str, Any]], dict[str, Any]]
    """From the arguments of a good call to those that are different."""


def other(name: str, error: type[Exception], match: str, **changed: Any) -> BadCall:
    """A call with some other arguments."""
    return BadCall(name, error, match, lambda arguments: changed)


M, V = "exp_avg", "exp_avg_sq"
BAD_CALLS = [
    *(
        other(f"step={step!r}", ValueError, "step must be at least 1", step=step)
        for step in (0, -1, np.int64(0), 1 << 63)
    ),
    *(
        other(f"step={step!r}", TypeError, "step must be an integer", step=step)
        for step in (1.0, True, "1", None, np.float64(1.0), np.array(1))
    ),
    other("state is missing", ValueError, "exp_avg_sq must be given", exp_avg_sq=None),
    other(
        "state that the rule does not keep", ValueError, "max_exp_avg_sq must not be given", max_exp_avg_sq=GOOD.copy()
    ),
    other("state that the switch needs", ValueError, "max_exp_avg_sq must be given", amsgrad=True),
    other(
        "state of another shape",
        ValueError,
        r"exp_avg must be float32 of shape \(4, 6\) like params",
        exp_avg=np.zeros((6, 4), F32),
    ),
    other("state of integers", TypeError, "exp_avg must be float32, float64", exp_avg=np.zeros((4, 6), int)),
    other(
        "state of complex numbers",
        TypeError,
        "exp_avg_sq must be float32, float64",
        exp_avg_sq=np.zeros((4, 6), complex),
    ),
    other("state read-only", ValueError, "exp_avg must be writeable", exp_avg=read_only(GOOD)),
    other("state masked", TypeError, "exp_avg is a masked array", exp_avg=masked(GOOD.copy())),
    other("state a list", TypeError, "exp_avg must be a NumPy array", exp_avg=[[0.0] * 6] * 4),
    other("state in a list", TypeError, "exp_avg must be a NumPy array", exp_avg=[GOOD.copy()]),
    other("state without strides", ValueError, "exp_avg has several elements", exp_avg=repeated((4, 6), (0, 4))),
    BadCall("state is the parameter", ValueError, "params and exp_avg must be apart", lambda a: {M: a["params"]}),
    BadCall(
        "state is the parameter backwards",
        ValueError,
        "params and exp_avg must be apart",
        lambda a: {M: a["params"][::-1]},
    ),
    BadCall("state is the gradient", ValueError, "exp_avg and grads must be apart", lambda a: {M: a["grads"]}),
    BadCall(
        "gradient is part of state",
        ValueError,
        "exp_avg_sq and grads must be apart",
        lambda a: {V: (buffer := np.zeros(25, F32))[:24].reshape(4, 6), "grads": buffer[1:].reshape(4, 6)},
    ),
    BadCall("one array for two states", ValueError, "exp_avg and exp_avg_sq must be apart", lambda a: {V: a[M]}),
    BadCall(
        "gradient is the parameter", ValueError, "params and grads must be apart", lambda a: {"grads": a["params"]}
    ),
    other(
        "gradient of another shape", ValueError, r"grads must have shape \(4, 6\) like params", grads=np.ones(24, F32)
    ),
    other("no gradient", TypeError, "grads must be a NumPy array", grads=None),
    other("ema without ema_decay", ValueError, "ema and ema_decay must be given together", ema=GOOD.copy()),
    other("ema_decay without ema", ValueError, "ema and ema_decay must be given together", ema_decay=0.5),
    other("ema of another shape", ValueError, "ema must be float32 of shape", ema=np.ones(3, F32), ema_decay=0.5),
    BadCall(
        "ema is the parameter",
        ValueError,
        "params and ema must be apart",
        lambda a: {"ema": a["params"], "ema_decay": 0.5},
    ),
    BadCall(
        "ema is the gradient",
        ValueError,
        "ema and grads must be apart",
        lambda a: {"ema": a["grads"], "ema_decay": 0.5},
    ),
    BadCall(
        "master is the parameter", ValueError, "params and master must be apart", lambda a: {"master": a["params"]}
    ),
    other("master of another dtype", ValueError, "master must be float32 of shape", master=np.ones((4, 6))),
    other("unknown argument", TypeError, "adamw_ has no argument 'beta1'", beta1=0.5),
    other(
        "nonfinite", ValueError, "nonfinite must be 'propagate', 'skip' or 'raise', got 'ignore'", nonfinite="ignore"
    ),
    other("mask of another structure", ValueError, "weight_decay_mask must be", weight_decay_mask=3),
    other("grad_scale", ValueError, "grad_scale must be finite", grad_scale=math.nan),
    other("grad_norm", TypeError, "grad_norm", grad_norm="yes"),
    other("update_norm", TypeError, "update_norm", update_norm=1),
    other("lr of the step", ValueError, r"lr\(2\) must be finite and at least 0", lr=lambda step: -1.0),
    BadCall(
        "NaN in the gradient",
        FloatingPointError,
        "grads must be finite",
        lambda a: {"grads": np.full((4, 6), np.nan, F32), "nonfinite": "raise"},
    ),
]


@pytest.mark.parametrize("bad", BAD_CALLS, ids=lambda bad: bad.name)
def test_a_call_that_fails_says_why_and_changes_nothing(bad: BadCall) -> None:
    params, m, v, grads = (values((4, 6), seed).astype(F32) for seed in range(4))
    good = {"params": params, "grads": grads, M: m, V: np.abs(v), "step": 3}
    changed = bad.change(good)
    before = {name: array.copy() for name, array in (good | changed).items() if isinstance(array, np.ndarray)}
    plain = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in good.items()}
    with pytest.raises(bad.error, match=bad.match):
        functional.adamw_(**(good | changed))
    assert_same({name: (good | changed)[name] for name in before}, before)
    functional.adamw_(**good)
    functional.adamw_(**plain)
    assert_same(good, plain)


def test_arguments_of_a_function_are_given_once() -> None:
    w, m, v = (np.zeros(3) for _ in range(3))
    with pytest.raises(TypeError, match="adamw_ got exp_avg twice"):
        functional.adamw_(w, np.ones(3), m, v, exp_avg=m, step=1)
    with pytest.raises(TypeError, match="adamw_ takes the state arrays exp_avg, exp_avg_sq, max_exp_avg_sq, got 4"):
        functional.adamw_(w, np.ones(3), m, v, None, v, step=1)
    assert_same([w, m, v], [np.zeros(3)] * 3)


BAD_SCALARS: dict[str, tuple[type[Exception], Any]] = {
    "missing": (TypeError, None),
    "a float": (TypeError, 1.0),
    "a NumPy scalar": (TypeError, np.float64(1.0)),
    "float32": (TypeError, np.array(1.0, np.float32)),
    "of one axis": (TypeError, np.ones(1)),
    "big-endian": (TypeError, np.array(1.0, ">f8")),
    "read-only": (TypeError, read_only(np.array(1.0))),
}


@pytest.mark.parametrize("bad", BAD_SCALARS)
def test_scalar_state_that_cannot_be_updated_is_refused_by_name(bad: str) -> None:
    error, scalar = BAD_SCALARS[bad]
    w, m, v = (np.ones(3) for _ in range(3))
    with pytest.raises(error, match="mu_product must be a writeable float64 array of shape"):
        functional.nadam_(w, np.ones(3), m, v, scalar, step=1)
    assert_same([w, m, v], [np.ones(3)] * 3)


@pytest.mark.parametrize("other", ["params", "grads", "exp_avg"])
def test_scalar_state_that_shares_memory_with_an_array_is_refused(other: str) -> None:
    arrays = {"params": np.ones(3), "grads": np.ones(3), "exp_avg": np.ones(3), "exp_avg_sq": np.ones(3)}
    with pytest.raises(ValueError, match=f"(mu_product and {other}|{other} and mu_product) must be apart"):
        functional.nadam_(**arrays, mu_product=arrays[other][1:2].reshape(()), step=1)
    assert_same(list(arrays.values()), [np.ones(3)] * 4)


# -- Hyperparameters -------------------------------------------------------------------------------------------------------

NUMBERS = [
    (ValueError, math.nan),
    (ValueError, -1.0),
    (ValueError, -math.inf),
    (ValueError, np.float32(-1.0)),
    (ValueError, 10**400),
    (TypeError, "0.1"),
    (TypeError, True),
    (TypeError, None),
    (TypeError, 1j),
    (TypeError, [0.1]),
    (TypeError, np.array([0.1])),
]
INF_IS_A_VALUE = {"momentum_decay", "max_param_norm", "max_norm", "clip_value"}
UP_TO_ONE = {"dampening", "alpha", "rho", "ema_decay"}
NOT_PAIRS = [0.9, (0.9,), (0.9, 0.9, 0.9), "09", None, {0.9, 0.8}, {0: 0.9, 1: 0.8}]
NOT_SWITCHES = [0, 1, 1.0, "yes", None, [True]]


def bad_values(name: str, default: Any) -> list[tuple[type[Exception], Any]]:
    """Values that the hyperparameter must refuse, with the error."""
    if isinstance(default, bool):
        return [(TypeError, value) for value in NOT_SWITCHES]
    if name == "betas":
        elements = [*NUMBERS, (ValueError, 1.0), (ValueError, 1.5), (ValueError, math.inf)]
        pairs = [(error, pair) for error, x in elements for pair in ((x, 0.9), (0.9, x), [0.9, x])]
        return pairs + [(TypeError, value) for value in NOT_PAIRS]
    more = [] if name in INF_IS_A_VALUE else [(ValueError, math.inf)]
    return NUMBERS + more + ([(ValueError, 1.5)] if name in UP_TO_ONE else [])


def hyperparameters(cls: type[optim.Optimizer]) -> dict[str, Any]:
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


CLASSES = [cls for cls in vars(optim).values() if isinstance(cls, type) and issubclass(cls, optim.Optimizer)]
CLASSES.remove(optim.Optimizer)
HYPERPARAMETERS = [(cls, name) for cls in CLASSES for name in hyperparameters(cls)]


def test_all_classes_have_a_row_in_the_table_or_are_tested_by_their_signature() -> None:
    assert {case.cls for case in CASES} <= set(CLASSES)
    assert len(CLASSES) == len({cls._function for cls in CLASSES})


@pytest.mark.parametrize(("cls", "name"), HYPERPARAMETERS, ids=lambda value: getattr(value, "__name__", value))
def test_a_bad_hyperparameter_is_refused_by_name_wherever_it_is_given(cls: type[optim.Optimizer], name: str) -> None:
    def fresh() -> tuple[np.ndarray, optim.Optimizer]:
        param = np.ones(3, np.float32)
        opt = cls(param)
        opt.step(np.ones(3, np.float32))
        return param, opt

    (param, opt), (twin_param, twin) = fresh(), fresh()
    before, settings = param.copy(), opt.state_dict()
    call = Called.of(Case("", cls, {}), param)
    for error, value in bad_values(name, hyperparameters(cls)[name]):
        with pytest.raises(error, match=re.escape(name)):
            cls(param, **{name: value})
        with pytest.raises(error, match=re.escape(name)):
            cls([{"params": param, name: value}])
        with pytest.raises(error, match=re.escape(name)):
            opt.param_groups[0][name] = value
        with pytest.raises(error, match=re.escape(name)):
            opt.add_param_group({"params": np.ones(3), name: value})
        with pytest.raises(error, match=re.escape(name)):
            call(Case("", cls, {}), param, np.ones(3, np.float32), **{name: value})
        if (
            not isinstance(value, (bool, type(None)))
            and name != "betas"
            and not isinstance(hyperparameters(cls)[name], bool)
        ):
            opt.param_groups[0][name] = lambda step, value=value: value
            with pytest.raises(error, match=re.escape(f"{name}(1)")):
                opt.step(np.ones(3, np.float32))
            opt.param_groups[0][name] = hyperparameters(cls)[name]
    assert_same(param, before)
    assert_same(opt.state_dict(), settings)
    opt.step(np.ones(3, np.float32))
    twin.step(np.ones(3, np.float32))
    assert_same(param, twin_param)
    assert_same(opt.state_dict(), twin.state_dict())


@pytest.mark.parametrize("name", ["max_norm", "clip_value", "ema_decay"])
def test_a_bad_option_is_refused_by_name_wherever_it_is_given(name: str) -> None:
    param = np.ones(3, np.float32)
    opt = optim.SGD(param, max_norm=1.0, clip_value=1.0, ema_decay=0.5)
    before = opt.state_dict()
    # None is a value of these: not to be done.
    for error, value in ((error, value) for error, value in bad_values(name, 0.0) if value is not None):
        with pytest.raises(error, match=name):
            optim.SGD(param, **{name: value})
        with pytest.raises(error, match=name):
            setattr(opt, name, value)
        with pytest.raises(error, match=name):
            functional.sgd_(param, np.ones(3, np.float32), step=1, **{name: value})
        if not isinstance(value, bool):
            setattr(opt, name, lambda step, value=value: value)
            with pytest.raises(error, match=rf"{name}\(0\)"):
                opt.step(np.ones(3, np.float32))
            setattr(opt, name, before["options"][name])
    assert_same(param, np.ones(3, np.float32))
    assert_same(opt.state_dict(), before)


@pytest.mark.parametrize("value", [None, True, 1, "Skip", ["skip"], np.array(["skip", "skip"])])
def test_a_bad_nonfinite_is_refused_by_name(value: Any) -> None:
    param = np.ones(3)
    opt = optim.SGD(param, nonfinite="skip")
    with pytest.raises((ValueError, TypeError), match="nonfinite must be"):
        optim.SGD(param, nonfinite=value)
    with pytest.raises((ValueError, TypeError), match="nonfinite must be"):
        opt.nonfinite = value
    assert opt.nonfinite == "skip"


def test_hyperparameters_that_choose_other_state_are_refused_by_name_and_nothing_is_changed() -> None:
    param = np.ones(3)
    for opt, name, value in [
        (optim.SGD(param), "momentum", 0.9),
        (optim.SGD(param, momentum=0.9), "momentum", 0.0),
        (optim.AdamW(param), "amsgrad", True),
        (optim.RMSprop(param), "centered", True),
    ]:
        before = opt.state_dict()
        with pytest.raises(ValueError, match=f"{name} cannot become {value}"):
            opt.param_groups[0][name] = value
        assert_same(opt.state_dict(), before)
    with pytest.raises(ValueError, match="nesterov=True needs momentum above 0"):
        optim.SGD(param, nesterov=True)
    with pytest.raises(ValueError, match="amsgrad_corrected=True needs amsgrad=True"):
        optim.AdamW(param).param_groups[0]["amsgrad_corrected"] = True
    with pytest.raises(KeyError, match="rate"):
        optim.SGD(param).param_groups[0]["rate"] = 1.0
    with pytest.raises(KeyError, match="params"):
        optim.SGD(param).param_groups[0]["params"] = param
    with pytest.raises(TypeError, match="lr"):
        del optim.SGD(param).param_groups[0]["lr"]
    with pytest.raises(TypeError, match="abstract"):
        optim.Optimizer(param, {})
    assert_same(param, np.ones(3))


def test_numbers_of_all_kinds_are_hyperparameters() -> None:
    from fractions import Fraction

    want = np.ones(3)
    optim.AdamW(want, lr=0.5, betas=(0.5, 0.25)).step(np.ones(3))
    for kind in (np.float32, np.float64, np.float16, Fraction):
        param = np.ones(3)
        optim.AdamW(param, lr=kind(0.5), betas=[kind(0.5), kind(0.25)]).step(np.ones(3))
        assert_same(param, want)
    one, whole = np.ones(3), np.ones(3)
    optim.SGD(one, lr=1).step(np.ones(3))
    optim.SGD(whole, lr=np.int8(1)).step(np.ones(3))
    assert_same([one, whole], [np.zeros(3)] * 2)
