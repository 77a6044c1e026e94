"""Safe on any array: the result of plain contiguous copies, bit for bit, or an error that names the argument."""

from __future__ import annotations

import inspect
import itertools
import math
import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from cases import CASES, Case
from helpers import assert_same, compute
from ironstep import functional, optim

F32 = np.float32
FLOATS = {name: np.dtype(name) for name in ("float32", "float64", "float16")}
FLOATS["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
SHAPE = (3, 4, 5)
BIG = (150, 2, 130)
"""More elements than one thread takes alone; a chunk ends in the middle of a row."""

BY_NAME = {case.name: case for case in CASES}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@cache
def values(shape: tuple[int, ...], seed: int, dtype: Any = F32) -> np.ndarray:
    """Normal numbers, and among them negative zeros, subnormal and large ones. Read-only."""
    out = np.random.default_rng(seed).standard_normal(shape)
    flat = out.reshape(-1)
    flat[1::7] = -0.0
    flat[3::11] *= 1e-41
    flat[5::13] *= 200.0
    out = out.astype(dtype)
    out.flags.writeable = False
    return out


def draw(shape: tuple[int, ...], seed: int, dtype: Any = F32) -> np.ndarray:
    """A copy of `values`."""
    return values(shape, seed, dtype).copy()


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
        memory = np.empty(room // 8 + 1, np.uint64)
        memory.fill(0xA5C3_5A3C_96E1_7887)
        memory = memory.view(np.uint8)
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
    Layout("big-endian backwards", steps=(-1, 1, -2), swapped=True),
    Layout("field of a struct", extra=3),
    Layout("all at once", order="rolled", steps=(2, -1), gap=1, extra=1, offset=3, swapped=True),
]


class Placed(NamedTuple):
    """An array, the memory that it lies in, and what that memory was at first."""

    array: np.ndarray
    memory: np.ndarray
    before: np.ndarray
    layout: Layout

    def assert_only(self, want: np.ndarray, where: str) -> None:
        """The array has become `want`, and not a byte beside it has changed."""
        assert_same(self.array, want, where)
        memory, _ = self.layout.place(want, want.dtype)
        assert np.array_equal(self.memory, memory), f"{where}: memory outside the array has changed"

    def assert_untouched(self, where: str) -> None:
        assert np.array_equal(self.memory, self.before), f"{where}: written"


def place(layout: Layout, content: np.ndarray, dtype: Any = None) -> Placed:
    memory, array = layout.place(content, content.dtype if dtype is None else dtype)
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
    param = draw(shape, 0, FLOATS[dtype])
    grad = values(shape, 1, FLOATS[grad_dtype]).astype(compute(FLOATS[dtype]))
    state = steps_of(BY_NAME[name], param, grad)
    return param, state


def check(
    case: Case,
    shape: tuple[int, ...],
    layouts: tuple[Layout, Layout],
    dtypes: tuple[str, str] = ("float32", "float32"),
) -> None:
    want, want_state = on_plain_copies(case.name, shape, *dtypes)
    param, grad = (place(own, values(shape, i, FLOATS[dtypes[i]])) for i, own in enumerate(layouts))
    got_state = steps_of(case, param.array, grad.array)
    where = f"{case.name}, {layouts[0].name} with {layouts[1].name}"
    param.assert_only(want, where)
    grad.assert_untouched(where)
    assert_same(got_state, want_state, where)


@every_case
def test_any_layout_of_parameter_and_gradient_gives_the_bits_of_plain_copies(case: Case) -> None:
    for layouts in itertools.product(LAYOUTS, repeat=2):
        check(case, SHAPE, layouts)


@every_case
def test_layouts_of_arrays_that_many_threads_share_give_the_bits_of_plain_copies(case: Case) -> None:
    for i, layout in enumerate(LAYOUTS):
        check(case, BIG, (layout, LAYOUTS[(5 * i + 1) % len(LAYOUTS)]))


@every_case
def test_a_gradient_of_any_float_type_counts_as_rounded_once_to_the_computed_type(case: Case) -> None:
    for i, dtypes in enumerate(itertools.product(FLOATS, repeat=2)):
        check(case, SHAPE, (PLAIN, PLAIN), dtypes)
        # Odd layouts of all types, another pair for each pair of types.
        check(case, SHAPE, (LAYOUTS[i % len(LAYOUTS)], LAYOUTS[-i % len(LAYOUTS)]), dtypes)


@every_case
def test_shapes_without_axes_or_elements_or_with_axes_of_length_1_give_the_bits_of_plain_copies(case: Case) -> None:
    shapes = [(), (0,), (3, 0), (0, 3, 2), (1,), (1, 1, 1), (1, 5, 1), (7, 1)]
    for i, (shape, dtype) in enumerate(itertools.product(shapes, FLOATS)):
        for k in range(4):
            check(
                case, shape, (LAYOUTS[(i + 4 * k) % len(LAYOUTS)], LAYOUTS[(5 * i + k) % len(LAYOUTS)]), (dtype, dtype)
            )


def odd_strides(content: np.ndarray) -> np.ndarray:
    """A contiguous copy whose axes of length 1 have strides that mean nothing."""
    copy = content.copy()
    strides = [s if n != 1 else odd for n, s, odd in zip(copy.shape, copy.strides, (10**9, -7, 3), strict=False)]
    return np.ndarray(copy.shape, copy.dtype, copy, strides=strides)


@every_case
def test_strides_of_axes_of_length_1_do_not_matter(case: Case) -> None:
    for shape in [(1,), (1, 5, 1), (1, 1, 1), (5, 1, 2)]:
        want, want_state = on_plain_copies(case.name, shape, "float32", "float32")
        for odd_param, odd_grad in itertools.product([odd_strides, np.copy], repeat=2):
            param = odd_param(values(shape, 0))
            assert_same(steps_of(case, param, odd_grad(values(shape, 1))), want_state)
            assert_same(param, want)


@every_case
def test_a_broadcast_gradient_is_as_good_as_its_copy(case: Case) -> None:
    for axes, layout in itertools.product([(0,), (2,), (0, 1), (0, 1, 2)], (PLAIN, LAYOUTS[-1])):
        narrow = tuple(1 if axis in axes else n for axis, n in enumerate(SHAPE))
        grad = np.broadcast_to(values(narrow, 1), SHAPE)
        assert 0 in grad.strides
        assert not grad.flags.writeable
        param, want = place(layout, values(SHAPE, 0)), draw(SHAPE, 0)
        assert_same(steps_of(case, param.array, grad), steps_of(case, want, grad.copy()))
        param.assert_only(want, f"{axes}, {layout.name}")


@every_case
def test_a_read_only_gradient_is_read(case: Case) -> None:
    want, want_state = on_plain_copies(case.name, SHAPE, "float32", "float32")
    for layout in LAYOUTS:
        param, grad = draw(SHAPE, 0), place(layout, values(SHAPE, 1))
        grad.array.flags.writeable = False
        assert_same(steps_of(case, param, grad.array), want_state)
        assert_same(param, want)
        grad.assert_untouched(layout.name)


@every_case
def test_the_layout_of_the_gradient_may_change_from_step_to_step(case: Case) -> None:
    """What a plan keeps of one gradient must not be used for the next."""
    order = [*LAYOUTS, PLAIN, *LAYOUTS[::-1]]
    for dtype, param_layout in [
        ("float32", PLAIN),
        ("bfloat16", PLAIN),
        ("float32", LAYOUTS[4]),
        ("float64", LAYOUTS[6]),
    ]:
        param, want = (place(layout, values(SHAPE, 0, FLOATS[dtype])).array for layout in (param_layout, PLAIN))
        opt, plain = case.cls(param, **case.kwargs), case.cls(want, **case.kwargs)
        for seed, layout in enumerate(order):
            # Mostly of the parameter's type, which is the fast way, and sometimes of another.
            grad = values(SHAPE, seed, FLOATS[list(FLOATS)[seed % 4] if seed % 3 == 0 else dtype])
            opt.step(place(layout, grad).array)
            plain.step(grad.astype(compute(param.dtype)))
            assert_same(param, want, f"step {seed + 1}, {layout.name}")
        assert_same(opt.state_dict(), plain.state_dict())


# -- Where arrays come from --------------------------------------------------------------------------------------------


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
def test_what_numpy_takes_as_an_array_is_a_gradient(case: Case) -> None:
    for name, source in GRADIENT_SOURCES.items():
        want, param, grad = draw((4, 6), 0), draw((4, 6), 0), draw((4, 6), 1)
        assert_same(steps_of(case, param, source(grad)), steps_of(case, want, grad), name)
        assert_same(param, want, name)


def test_jax_arrays_of_all_floats_and_scalars_are_gradients() -> None:
    import jax.numpy as jnp

    for dtype, shape in itertools.product(["float32", "float16", "bfloat16"], [(), (3,), (0,)]):
        grad = values(shape, 1, FLOATS[dtype])
        want, param = (np.ones(shape, F32) for _ in range(2))
        optim.SGD(param).step(jnp.asarray(grad))
        optim.SGD(want).step(grad.astype(F32))
        assert_same(param, want)
    param = np.array(1.0, F32)
    optim.SGD(param, lr=0.5).step(F32(1.0))
    assert param == 0.5


@every_case
def test_parameters_may_be_of_subclasses_of_arrays(case: Case) -> None:
    want, grad = draw((4, 6), 0), draw((4, 6), 1)
    want_state = steps_of(case, want, grad)
    for make in (as_matrix, lambda array: array.view(Subclass)):
        param = make(draw((4, 6), 0))
        assert_same(steps_of(case, param, grad), want_state)
        assert_same(np.asarray(param), want)


@every_case
def test_a_memory_map_is_updated_in_its_file(case: Case, tmp_path: Any) -> None:
    want, want_state = on_plain_copies(case.name, SHAPE, "float32", "float32")
    for i, name in enumerate(("param", "grad")):
        values(SHAPE, i).tofile(tmp_path / name)
    param = np.memmap(tmp_path / "param", F32, "r+", shape=SHAPE)
    grad = np.memmap(tmp_path / "grad", F32, "r", shape=SHAPE)
    assert_same(steps_of(case, param, grad), want_state)
    param.flush()
    assert_same(np.fromfile(tmp_path / "param", F32).reshape(SHAPE), want)


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
        flat, grad = draw((260,), 0), draw((260,), 1)
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
    flat, grad = draw((64, 600), 0), draw((64, 600), 1)
    want = flat.copy()
    optim.AdamW([flat[:, i] for i in range(600)]).step([grad[:, i] for i in range(600)])
    optim.AdamW(want).step(grad)
    assert_same(flat, want)


def test_gradients_may_share_memory_with_each_other_and_lie_between_the_parameters() -> None:
    grad = draw((8,), 1)
    params, want = ([np.ones(8, F32), np.ones(8, F32)] for _ in range(2))
    optim.AdamW(params).step([grad, grad])
    optim.AdamW(want).step([grad.copy(), grad.copy()])
    assert_same(params, want)

    both = draw((8, 2), 2)
    memory = both.copy()
    param = both[:, 0].copy()
    optim.AdamW(memory[:, 0]).step(memory[:, 1])
    optim.AdamW(param).step(both[:, 1].copy())
    assert_same(memory[:, 0], param)
    assert_same(memory[:, 1], both[:, 1])


# -- The functions, whose state is the caller's ------------------------------------------------------------------------


class Called(NamedTuple):
    """What a function takes for one array, made from an optimiser that has taken no step."""

    cls: type[optim.Optimizer]
    states: dict[str, np.ndarray]
    """State arrays, and the average and the full-precision copy where there are any."""
    scalars: dict[str, np.ndarray]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, kind: type[optim.Optimizer], param: np.ndarray, kwargs: dict[str, Any]) -> Called:
        opt = kind(param, **kwargs)
        every = opt.state_dict()["state"][""]
        names = [name for name in [*opt.state, "ema", "master"] if name in every]
        scalars = {name: every[name] for name in every if name not in (*names, "step")}
        kept = {name: value for name, value in kwargs.items() if name != "master_weights"}
        return cls(kind, {name: every[name] for name in names}, scalars, kept)

    def __call__(self, param: Any, grad: Any, **arguments: Any) -> Any:
        function = getattr(functional, self.cls._function)
        return function(param, grad, **(self.kwargs | self.states | self.scalars | {"step": 1} | arguments))


@every_case
def test_state_of_any_layout_gives_the_bits_of_the_optimiser(case: Case) -> None:
    want, want_state = on_plain_copies(case.name, SHAPE, "float32", "float32")
    for i, layout in enumerate(LAYOUTS):
        param, grad = (place(layout, values(SHAPE, seed)) for seed in (0, 1))
        call = Called.of(case.cls, param.array, case.kwargs)
        placed = {
            name: place(LAYOUTS[(i + k) % len(LAYOUTS)], array)
            for k, (name, array) in enumerate(call.states.items(), 1)
        }
        arrays = {name: own.array for name, own in placed.items()}
        for step in (1, 2):
            call(param.array, grad.array, step=step, **arrays)
        param.assert_only(want, layout.name)
        grad.assert_untouched(layout.name)
        for name, own in placed.items():
            own.assert_only(want_state[""][name], f"{name}, {layout.name}")
        assert_same(call.scalars, {name: want_state[""][name] for name in call.scalars})


@every_case
def test_state_of_another_float_type_is_widened_and_rounded_once(case: Case) -> None:
    for dtype, state_dtype in itertools.product(FLOATS, repeat=2):
        if dtype == "float64" and state_dtype in ("float16", "bfloat16"):
            continue
        grad = values(SHAPE, 1, FLOATS[dtype])
        param, want = draw(SHAPE, 0, FLOATS[dtype]), draw(SHAPE, 0, FLOATS[dtype])
        call, plain = (Called.of(case.cls, param, case.kwargs) for _ in range(2))
        for name in set(call.states) - {"master"}:
            call.states[name] = np.abs(values(SHAPE, 2)).astype(FLOATS[state_dtype])
            plain.states[name] = call.states[name].astype(compute(FLOATS[dtype]))
        call(param, grad)
        plain(want, grad)
        with np.errstate(over="ignore"):
            rounded = {name: array.astype(call.states[name].dtype) for name, array in plain.states.items()}
        assert_same(call.states, rounded, f"{dtype} with state of {state_dtype}")
        assert_same(param, want, f"{dtype} with state of {state_dtype}")


# -- Changes between steps that leave a good parameter -----------------------------------------------------------------


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
    set_attribute(params["w"], "dtype", params["w"].dtype.newbyteorder("S"))


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
    "params['w'] = other byte order": replace_by(lambda a: a.astype(a.dtype.newbyteorder("S"))),
    "params['w'] = a view": replace_by(lambda a: np.repeat(a, 2, axis=1)[:, ::2]),
    "params['w'] = a matrix": replace_by(lambda a: as_matrix(a.copy())),
    "read-only and back": lambda params: (params["w"].setflags(write=False), params["w"].setflags(write=True)),
}


@pytest.mark.parametrize("change", GOOD_CHANGES)
def test_the_step_after_a_change_of_the_array_is_that_of_the_changed_array(change: str) -> None:
    for case in CASES:
        params, want = ({"w": draw((4, 4), 0), "b": np.ones(3, F32)} for _ in range(2))
        grads = {"w": values((4, 4), 1), "b": np.ones(3, F32)}
        opt, plain = case.cls(params, **case.kwargs), case.cls(want, **case.kwargs)
        opt.step(grads)
        plain.step(grads)
        old = params["w"]
        GOOD_CHANGES[change](params)
        want["w"][...] = params["w"]
        old_copy = old.copy()
        for _ in range(2):
            opt.step(grads)
            plain.step(grads)
        assert_same({name: np.asarray(array) for name, array in params.items()}, want, case.name)
        assert_same(opt.state_dict(), plain.state_dict(), case.name)
        if params["w"] is not old:
            assert_same(old, old_copy, f"{case.name}: the array that was taken out")


def test_a_view_follows_its_base_to_other_memory_only_when_taken_again() -> None:
    base = np.ones(8, F32)
    params = {"w": base[2:6]}
    opt = optim.SGD(params, lr=0.5)
    opt.step({"w": np.ones(4, F32)})
    resize(base, 1 << 20)
    with pytest.raises(ValueError, match=r"params\['w'\] is a view that reaches outside its base"):
        opt.step({"w": np.ones(4, F32)})
    params["w"] = base[2:6]
    opt.step({"w": np.ones(4, F32)})
    assert_same(base[:8], np.array([1, 1, 0, 0, 0, 0, 1, 1], F32))


def test_a_dtype_that_comes_back_at_the_address_of_a_freed_one_is_another_dtype() -> None:
    """The plan must keep the dtype that it compares with, or integers are taken for floats."""
    param = np.ones(3, ">f4")
    opt = optim.SGD(param, lr=0.5)
    opt.step(np.ones(3, F32))
    address = id(param.dtype)
    for _ in range(100):
        set_attribute(param, "dtype", np.dtype("<f4"))
        set_attribute(param, "dtype", np.dtype(">i4"))
        if id(param.dtype) == address:
            break
    before = param.copy()
    with pytest.raises(ValueError, match=r"params must stay float32"):
        opt.step(np.ones(3, F32))
    assert_same(param, before)


@pytest.mark.parametrize("what", ["the parameter", "another gradient"])
def test_a_change_made_while_a_gradient_is_converted_is_noticed(what: str) -> None:
    """Converting runs the gradient's own code, so the arrays must be looked at after all of them are converted."""
    params = [np.ones(3, F32), np.ones(3, F32)]
    first = np.ones(3, F32)

    class Changing(Wrapped):
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            if what == "the parameter":
                params[0].flags.writeable = False
            else:
                set_attribute(first, "shape", (3, 1))
            return self.array

    opt = optim.SGD(params, lr=0.5)
    with pytest.raises(ValueError, match=r"params\[0\] must be writeable|grads\[0\] must have shape"):
        opt.step([first, Changing(np.ones(3, F32))])
    assert_same(params, [np.ones(3, F32), np.ones(3, F32)])


# -- Errors of a step --------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """An optimiser to go wrong with. What is wrong does not depend on the arithmetic, so a few will do."""

    name: str
    cls: type[optim.Optimizer]
    kwargs: dict[str, Any]


KINDS = [
    Kind("no state", optim.SGD, {"lr": 0.1}),
    Kind("two states", optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
    Kind("scalar state", optim.NAdam, {}),
    Kind("two passes", optim.LAMB, {"lr": 0.1}),
    Kind(
        "everything around the rule",
        optim.AdamW,
        {"amsgrad": True, "max_norm": 1.0, "clip_value": 3.0, "ema_decay": 0.9, "master_weights": True},
    ),
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


class World:
    """Parameters, gradients and an optimiser that has taken a step."""

    def __init__(self, kind: Kind) -> None:
        self.base, self.grad_base = draw((12,), 3), draw((12,), 13)
        self.params = {"b": draw((6,), 2, np.float64), "v": self.base[2:8], "w": draw((4, 6), 1)}
        self.grads = {"b": draw((6,), 12, np.float64), "v": self.grad_base[2:8], "w": draw((4, 6), 11)}
        self.opt = kind.cls(self.params, **kind.kwargs)
        self.good_step()
        # To put back what an error case changes on purpose.
        self.first_params, self.first_grads = dict(self.params), dict(self.grads)
        self.param_copies = {name: array.copy() for name, array in self.params.items()}
        self.grad_copies = {name: array.copy() for name, array in self.grads.items()}
        self.base_copy = self.base.copy()
        self.settings = dict(self.opt.param_groups[0])

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
        """All that an error must leave as it is."""
        return {
            "params": {name: array.copy() for name, array in self.params.items()},
            "grads": {name: array.copy() for name, array in self.grads.items()},
            "base": self.base.copy(),
            "steps": self.opt.steps,
            "state": self.opt.state_dict(),
            "settings": repr(self.opt),
        }


def put_back(world: World) -> None:
    """The very arrays of before, with the metadata of before, and the settings."""
    world.params.clear()
    world.params.update(world.first_params)
    world.grads.update(world.first_grads)
    for name, array in world.params.items():
        copy = world.param_copies[name]
        array.flags.writeable = True
        if array.dtype != copy.dtype:
            set_attribute(array, "dtype", copy.dtype)
        if array.shape != copy.shape:
            set_attribute(array, "shape", copy.shape)
    world.opt.param_groups[0]["lr"] = world.settings["lr"]
    world.opt.nonfinite = "propagate"


def put_copies(world: World) -> None:
    """Copies, where the memory of before is gone."""
    world.params.update({name: array.copy() for name, array in world.param_copies.items()})
    world.grads.update({name: array.copy() for name, array in world.grad_copies.items()})
    world.base = world.base_copy


Act = Callable[[World], Any]


def set_and_step(name: str, value: Any) -> Act:
    """A step after a change of the metadata of parameter 'w'."""

    def act(world: World) -> None:
        set_attribute(world.params["w"], name, value)
        world.good_step()

    return act


def resize_and_step(which: str, *shape: int) -> Act:
    def act(world: World) -> None:
        resize({"w": world.params["w"], "base": world.base, "grad_base": world.grad_base}[which], *shape)
        world.good_step()

    return act


def freeze_and_step(world: World) -> None:
    world.params["w"].flags.writeable = False
    world.good_step()


def remove_and_step(world: World) -> None:
    del world.params["v"]
    world.good_step()


def rename_and_step(world: World) -> None:
    world.opt.step({name.upper(): grad for name, grad in world.grads.items()})


def add_other_key_and_step(world: World) -> None:
    world.params[1] = np.ones(3)  # type: ignore[index]
    world.good_step()


def overlap_and_step(world: World) -> None:
    buffer = np.ones(29, F32)
    world.step_after(v=buffer[23:], w=buffer[:24].reshape(4, 6))


def lr_and_step(lr: Callable[[int], Any]) -> Act:
    def act(world: World) -> None:
        world.opt.param_groups[0]["lr"] = lr
        world.good_step()

    return act


def put_in_gradient(value: float) -> Act:
    def act(world: World) -> None:
        world.opt.nonfinite = "raise"
        grad = world.grads["w"].copy()
        grad[-1, -1] = value
        world.step_with(w=grad)

    return act


def step_with_argument(**arguments: Any) -> Act:
    return lambda world: world.opt.step(world.grads, **arguments)


def masked(array: np.ndarray) -> np.ndarray:
    return np.ma.masked_array(array, np.zeros(array.shape, bool))


def repeated(shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """A writeable array with several elements at one address."""
    return np.lib.stride_tricks.as_strided(np.ones(64, F32), shape, strides)


class Failing(Wrapped):
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise KeyError("a gradient that cannot be read")


NOT_FLOATS: dict[str, Any] = {
    "objects": object,
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
    "structs": [("a", F32)],
}
if np.dtype(np.longdouble) == np.dtype(np.float64):
    del NOT_FLOATS["longdouble"]


class Bad(NamedTuple):
    """A step that must fail."""

    name: str
    error: type[Exception]
    match: str
    act: Act
    undo: Act = put_back


def grad(name: str, error: type[Exception], match: str, make: Callable[[np.ndarray], Any]) -> Bad:
    """A step with another gradient of 'w', made from the good one."""
    return Bad(f"gradient {name}", error, match, lambda world: world.step_with(w=make(world.grads["w"])))


def param(name: str, error: type[Exception], match: str, make: Callable[[World], Any]) -> Bad:
    """A step after `params['w'] = ...`."""
    return Bad(f"params['w'] = {name}", error, match, lambda world: world.step_after(w=make(world)))


G, P = r"grads\['w'\] ", r"params\['w'\] "
ARRAY = G + "must be a NumPy array, .* got "
SHAPED = G + r"must have shape \(4, 6\) like params\['w'\], got "
STAY = P + r"must stay float32 of shape \(4, 6\), .* got "
OUTSIDE = r"\['v'\] is a view that reaches outside its base array"
APART = r"params\['{}'\] and grads\['{}'\] must be apart"
NEST = "grads must be a dict of length 3 like the parameters, got "

BAD_STEPS = [
    *(
        grad(f"of {name}", TypeError, G + "must be float32, float64, float16 or bfloat16, got ", make)
        for name, dtype in NOT_FLOATS.items()
        for make in [lambda g, dtype=dtype: np.zeros(g.shape, dtype)]
    ),
    grad("None", TypeError, ARRAY + "NoneType; to leave a parameter alone", lambda g: None),
    grad("a dict", TypeError, ARRAY + "dict", lambda g: {"w": g}),
    grad("a list with the array", TypeError, ARRAY + "list", lambda g: [g]),
    grad("a list of lists", TypeError, ARRAY + "list", lambda g: g.tolist()),
    grad("a float", TypeError, ARRAY + "float", lambda g: 0.0),
    grad("a string", TypeError, ARRAY + "str", lambda g: "w"),
    grad("masked", TypeError, G + "is a masked array", masked),
    grad("that cannot be read", KeyError, "a gradient that cannot be read", Failing),
    grad("that wraps objects", TypeError, G + "must be float32", lambda g: Wrapped(g.astype(object))),
    grad("transposed", ValueError, SHAPED + r"\(6, 4\)", np.transpose),
    grad("flat", ValueError, SHAPED + r"\(24,\)", np.ravel),
    grad("too short", ValueError, SHAPED + r"\(3, 6\)", lambda g: g[1:]),
    grad("without axes", ValueError, SHAPED + r"\(\)", lambda g: F32(1.0)),
    grad("of one more axis", ValueError, SHAPED + r"\(1, 4, 6\)", lambda g: g[None]),
    grad("that would broadcast", ValueError, SHAPED + r"\(6,\)", lambda g: g[0]),
    grad("empty", ValueError, SHAPED + r"\(0, 6\)", lambda g: g[:0]),
    Bad("no gradient", ValueError, r"missing: 'w'", lambda world: world.opt.step(dict(list(world.grads.items())[:2]))),
    Bad("a gradient too many", ValueError, "unknown: 'x'", lambda world: world.step_with(x=np.ones(3, F32))),
    Bad("gradients renamed", ValueError, "missing: 'b', 'v', 'w'; unknown: 'B', 'V', 'W'", rename_and_step),
    Bad("gradients None", ValueError, NEST + "NoneType", lambda world: world.opt.step(None)),
    Bad("gradients in a list", ValueError, NEST + "list", lambda world: world.opt.step(list(world.grads.values()))),
    Bad("gradients in groups", ValueError, NEST + "list", lambda world: world.opt.step([world.grads])),
    Bad("one gradient for all", ValueError, NEST + "ndarray", lambda world: world.opt.step(world.grads["w"])),
    Bad(
        "gradient is the parameter",
        ValueError,
        APART.format("w", "w"),
        lambda world: world.step_with(w=world.params["w"]),
    ),
    Bad(
        "gradient is a view of the parameter",
        ValueError,
        APART.format("w", "w"),
        lambda world: world.step_with(w=world.params["w"][::-1, ::-1]),
    ),
    Bad(
        "gradient wraps the parameter",
        ValueError,
        APART.format("w", "w"),
        lambda world: world.step_with(w=Wrapped(world.params["w"])),
    ),
    Bad(
        "gradient is part of another parameter",
        ValueError,
        APART.format("w", "v"),
        lambda world: world.step_with(v=world.params["w"][0]),
    ),
    Bad(
        "gradient overlaps a parameter",
        ValueError,
        APART.format("v", "v"),
        lambda world: world.step_with(v=world.base[6:]),
    ),
    Bad(
        "gradient has bytes of a parameter",
        ValueError,
        APART.format("b", "v"),
        lambda world: world.step_with(v=world.params["b"].view(F32)[5:11]),
    ),
    Bad("base of the gradient shrinks", ValueError, "grads" + OUTSIDE, resize_and_step("grad_base", 3), put_copies),
    Bad("base of the gradient moves", ValueError, "grads" + OUTSIDE, resize_and_step("grad_base", 1 << 20), put_copies),
    Bad("base of a view shrinks", ValueError, "params" + OUTSIDE, resize_and_step("base", 3), put_copies),
    Bad("base of a view moves", ValueError, "params" + OUTSIDE, resize_and_step("base", 1 << 20), put_copies),
    Bad("a.flags.writeable = False", ValueError, P + "must be writeable", freeze_and_step),
    Bad("a.dtype = int32", ValueError, STAY + "int32", set_and_step("dtype", np.int32)),
    Bad("a.dtype = float16", ValueError, STAY + r"float16 of shape \(4, 12\)", set_and_step("dtype", np.float16)),
    Bad("a.dtype = complex64", ValueError, STAY + "complex64", set_and_step("dtype", np.complex64)),
    Bad("a.shape = (24,)", ValueError, STAY + r"float32 of shape \(24,\)", set_and_step("shape", (24,))),
    Bad("a.shape = (6, 4)", ValueError, STAY + r"float32 of shape \(6, 4\)", set_and_step("shape", (6, 4))),
    Bad("a.resize", ValueError, STAY + r"float32 of shape \(2, 2\)", resize_and_step("w", 2, 2), put_copies),
    Bad("a key removed", ValueError, r"params must keep the structure.* params\['v'\] was", remove_and_step),
    Bad("a key added", ValueError, r"params\['x'\] was", lambda world: world.step_after(x=np.ones(3, F32))),
    Bad("a key of another kind", TypeError, "params must have keys that can be sorted", add_other_key_and_step),
    param("a list", ValueError, r"params must keep the structure.* params\['w'\] was", lambda world: [np.ones(3)]),
    param("None", ValueError, STAY + "something that is not an array", lambda world: None),
    param("a JAX array", ValueError, STAY + "something that is not an array", lambda world: as_jax(world.params["w"])),
    param("of another dtype", ValueError, STAY + "float64", lambda world: np.ones((4, 6))),
    param("of another shape", ValueError, STAY + r"float32 of shape \(6, 4\)", lambda world: np.ones((6, 4), F32)),
    param("masked", TypeError, P + "is a masked array", lambda world: masked(np.ones((4, 6), F32))),
    param("without strides", ValueError, P + "has several elements", lambda world: repeated((4, 6), (0, 4))),
    param("its gradient", ValueError, APART.format("w", "w"), lambda world: world.grads["w"]),
    Bad("two that overlap", ValueError, r"params\['v'\] and params\['w'\] must be apart", overlap_and_step),
    Bad("grad_scale NaN", ValueError, "grad_scale must be finite, got nan", step_with_argument(grad_scale=math.nan)),
    Bad("grad_scale infinite", ValueError, "grad_scale must be finite", step_with_argument(grad_scale=-math.inf)),
    Bad("grad_scale a string", TypeError, "grad_scale must be", step_with_argument(grad_scale="1")),
    Bad("grad_scale a bool", TypeError, "grad_scale must be", step_with_argument(grad_scale=False)),
    Bad("grad_scale None", TypeError, "grad_scale must be", step_with_argument(grad_scale=None)),
    Bad("grad_norm an integer", TypeError, "grad_norm", step_with_argument(grad_norm=1)),
    Bad("update_norm a string", TypeError, "update_norm", step_with_argument(update_norm="yes")),
    Bad("an unknown instruction set", ValueError, "_isa must be one of", step_with_argument(_isa="none")),
    Bad("an unknown argument", TypeError, "closure", step_with_argument(closure=None)),
    Bad("lr gives NaN", ValueError, r"lr\(1\) must be finite and at least 0, got nan", lr_and_step(lambda t: math.nan)),
    Bad("lr gives less than 0", ValueError, r"lr\(1\) must be finite and at least 0", lr_and_step(lambda t: -1)),
    Bad("lr gives a string", TypeError, r"lr\(1\) must be a number", lr_and_step(lambda t: "0.1")),
    Bad("lr gives None", TypeError, r"lr\(1\) must be a number", lr_and_step(lambda t: None)),
    Bad("lr raises", ZeroDivisionError, "division", lr_and_step(lambda t: 1 / (1 - t))),
    Bad("NaN in a gradient", FloatingPointError, G + "must be finite", put_in_gradient(math.nan)),
    Bad("infinity in a gradient", FloatingPointError, G + "must be finite", put_in_gradient(-math.inf)),
]


@pytest.mark.parametrize("bad", BAD_STEPS, ids=lambda bad: bad.name)
def test_a_step_that_fails_says_why_and_is_as_if_it_had_not_been(bad: Bad) -> None:
    for kind in KINDS:
        world, twin = World(kind), World(kind)
        before = world.look()
        with pytest.raises(bad.error, match=bad.match):
            bad.act(world)
        bad.undo(world)
        assert_same(world.look(), before, kind.name)
        for _ in range(2):
            world.good_step()
            twin.good_step()
        assert_same(world.params, twin.params, kind.name)
        assert_same(world.opt.state_dict(), twin.opt.state_dict(), kind.name)


def test_a_gradient_that_is_a_parameter_is_refused_wherever_the_other_gradients_lie() -> None:
    """Each gradient is looked up beginning where the last look-up ended."""
    order = [0, 2, 4, 6, 8, 10]
    for others in itertools.product(order, repeat=2):
        for which, leaf in itertools.product(range(2), range(3)):
            base = np.ones(110, F32)
            opt = optim.SGD([base[30:40], base[70:80]], lr=0.5)
            # Gradients before, between and after the parameters, and one that is a parameter.
            grads = [base[10 * k : 10 * k + 10] for k in others]
            wrong = base[30:40] if which == 0 else base[75:85]
            if leaf < 2:
                grads[leaf] = wrong
            if leaf == 2 and not {3, 7} & set(others):
                opt.step(grads)
                continue
            before = base.copy()
            with pytest.raises(ValueError, match=rf"params\[{which}\] and grads\[{leaf}\] must be apart"):
                opt.step(grads)
            assert_same(base, before)


def kept_arrays(opt: optim.Optimizer) -> dict[str, dict[str, np.ndarray]]:
    """The optimiser's own arrays, by name: state, and the average and the full-precision copy where there are any."""
    kept = dict(opt.state)
    for name in ("ema", "master"):
        if name in opt.state_dict()["state"]["w"]:
            kept[name] = getattr(opt, name)
    return kept


@every_kind
def test_a_gradient_that_is_state_is_refused_and_nothing_is_changed(kind: Kind) -> None:
    for name in kept_arrays(World(kind).opt):
        world, twin = World(kind), World(kind)
        before = world.look()
        with pytest.raises(ValueError, match=rf"{name}\['w'\] and grads\['w'\] must be apart"):
            world.step_with(w=kept_arrays(world.opt)[name]["w"])
        with pytest.raises(ValueError, match=rf"{name}\['w'\] and grads\['v'\] must be apart"):
            world.step_with(v=kept_arrays(world.opt)[name]["w"][2][::-1])
        assert_same(world.look(), before, name)
        world.good_step()
        twin.good_step()
        assert_same(world.look(), twin.look(), name)


STATE_CHANGES: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {
    "read-only": ("must be writeable", lambda array: array.setflags(write=False)),
    "dtype": ("must be float32, float64", lambda array: set_attribute(array, "dtype", np.int32)),
    "shape": (r"must be float32 of shape \(4, 6\)", lambda array: set_attribute(array, "shape", (24,))),
    "dtype and shape": (r"must be float32 of shape \(4, 6\)", lambda array: set_attribute(array, "dtype", np.float64)),
}


@every_kind
@pytest.mark.parametrize("change", STATE_CHANGES)
def test_state_whose_metadata_somebody_changed_is_refused_by_name(kind: Kind, change: str) -> None:
    match, act = STATE_CHANGES[change]
    for name in kept_arrays(World(kind).opt):
        world, twin = World(kind), World(kind)
        before = world.look()
        array = kept_arrays(world.opt)[name]["w"]
        dtype, shape = array.dtype, array.shape
        act(array)
        with pytest.raises((ValueError, TypeError), match=rf"{name}\['w'\] {match}"):
            world.good_step()
        array.flags.writeable = True
        set_attribute(array, "dtype", dtype)
        set_attribute(array, "shape", shape)
        assert_same(world.look(), before, name)
        world.good_step()
        twin.good_step()
        assert_same(world.look(), twin.look(), name)


@every_kind
def test_state_that_somebody_changed_in_place_counts(kind: Kind) -> None:
    world, twin, other = World(kind), World(kind), World(kind)
    held = kept_arrays(world.opt)
    for name, arrays in held.items():
        for key, array in arrays.items():
            array *= 0.5
            kept_arrays(twin.opt)[name][key][...] = array
    for each in (world, twin, other):
        each.good_step()
    assert_same(world.look(), twin.look())
    for name, arrays in held.items():
        assert not np.array_equal(arrays["w"], kept_arrays(other.opt)[name]["w"]), name
        assert kept_arrays(world.opt)[name]["w"] is arrays["w"], "the array that the caller holds is the one in use"


# -- Errors of parameters, at construction and in the functions --------------------------------------------------------


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def dangling() -> np.ndarray:
    base = np.ones(64, F32)
    view = base[8:32].reshape(4, 6)
    resize(base, 10)
    return view


GOOD, ONCE, BUFFER = np.ones((4, 6), F32), np.ones(3, F32), np.ones(32, F32)
FIRST_TWO = r"params\[0\] and params\[1\] must be apart"
TWICE = P + "has several elements at the same address"

BAD_PARAMS: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    **{
        f"of {name}": (TypeError, P + "must be float32, float64, float16 or bfloat16, got ", make)
        for name, dtype in NOT_FLOATS.items()
        for make in [lambda dtype=dtype: {"w": np.zeros((4, 6), dtype)}]
    },
    "masked": (TypeError, P + "is a masked array", lambda: {"w": masked(GOOD.copy())}),
    "a scalar": (TypeError, P + "must be a NumPy array.* numpy.float32", lambda: {"w": F32(1.0)}),
    "a float": (TypeError, P + "must be a NumPy array.* float", lambda: {"w": 1.0}),
    "a JAX array": (TypeError, P + "must be a NumPy array, which is updated in place", lambda: {"w": as_jax(GOOD)}),
    "None": (TypeError, "params must be a NumPy array.* NoneType", lambda: None),
    "a string": (TypeError, "params must be a NumPy array.* str", lambda: "w"),
    "a generator": (TypeError, "params must be a NumPy array.* generator", lambda: (w for w in [GOOD])),
    "no array": (ValueError, "params must hold at least one array", dict),
    "read-only": (ValueError, P + "must be writeable", lambda: {"w": read_only(GOOD)}),
    "a broadcast": (ValueError, P + "must be writeable", lambda: {"w": np.broadcast_to(ONCE, (4, 3))}),
    "without strides": (ValueError, TWICE, lambda: {"w": repeated((4, 6), (0, 4))}),
    "a sliding window": (ValueError, TWICE, lambda: {"w": repeated((4, 6), (4, 4))}),
    "of elements that overlap": (ValueError, TWICE, lambda: {"w": repeated((9,), (2,))}),
    "of strides that meet": (ValueError, TWICE, lambda: {"w": repeated((4, 4), (12, 8))}),
    "a view of freed memory": (ValueError, P + "is a view that reaches outside", lambda: {"w": dangling()}),
    "twice the same": (ValueError, FIRST_TWO, lambda: [ONCE, ONCE]),
    "the same in two places": (
        ValueError,
        r"params\['a'\] and params\['b'\]\[0\] must be apart",
        lambda: {"a": ONCE, "b": [ONCE]},
    ),
    "two views that overlap": (ValueError, FIRST_TWO, lambda: [BUFFER[:9], BUFFER[8:]]),
    "a view and its base": (ValueError, FIRST_TWO, lambda: [BUFFER, BUFFER[::-5]]),
    "strided views that overlap": (
        ValueError,
        r"params\[0\] and params\[2\] must be apart",
        lambda: [BUFFER[::2], BUFFER[1::4], BUFFER[::3]],
    ),
    "columns that overlap": (
        ValueError,
        FIRST_TWO,
        lambda: [BUFFER.reshape(4, 8)[:, :5], BUFFER.reshape(4, 8)[:, 4:]],
    ),
    "the same bytes as another dtype": (ValueError, FIRST_TWO, lambda: [BUFFER[:4], BUFFER.view(np.float16)[7:]]),
    "of keys that are no names": (TypeError, "params must have strings or integers as keys", lambda: {(1, 2): GOOD}),
    "of keys of two kinds": (TypeError, "params must have keys that can be sorted", lambda: {1: GOOD, "w": ONCE}),
}


@pytest.mark.parametrize("face", ["class", "function"])
@pytest.mark.parametrize("bad", BAD_PARAMS)
def test_bad_parameters_are_refused_by_name_and_not_changed(face: str, bad: str) -> None:
    error, match, make = BAD_PARAMS[bad]
    before = BUFFER.copy(), ONCE.copy(), GOOD.copy()
    for kind in KINDS:
        params = make()
        call = partial(kind.cls, **kind.kwargs) if face == "class" else partial(functional.sgd_, grads=params, step=1)
        with pytest.raises(error, match=match):
            call(params)
        assert_same((BUFFER, ONCE, GOOD), before)
    # Nothing is left behind that would stand in the way of good ones.
    for kind in KINDS:
        params = {"w": GOOD.copy(), "buffer": BUFFER.copy()}
        kind.cls(params, **kind.kwargs).step({"w": GOOD, "buffer": BUFFER})
        assert (params["w"] < 1).all()


@every_kind
def test_a_group_that_is_refused_leaves_the_optimiser_as_it_was(kind: Kind) -> None:
    world, twin = World(kind), World(kind)
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


# -- Errors of the functions' state ------------------------------------------------------------------------------------


class BadCall(NamedTuple):
    """A call of `adamw_` that must fail."""

    name: str
    error: type[Exception]
    match: str
    change: Callable[[dict[str, Any]], dict[str, Any]]
    """From the arguments of a good call to those that are other ones."""


def other(name: str, error: type[Exception], match: str, **changed: Any) -> BadCall:
    """A call with some other arguments."""
    return BadCall(name, error, match, lambda arguments: changed)


def with_shared(what: str, array: str, **more: Any) -> BadCall:
    """A call with one array twice, or with a part of it."""
    match = rf"({what} and {array}|{array} and {what}) must be apart"
    return BadCall(f"{what} is {array}", ValueError, match, lambda a: {what: a[array][::-1]} | more)


def overlapping(arguments: dict[str, Any]) -> dict[str, Any]:
    buffer = np.zeros(25, F32)
    return {"exp_avg_sq": buffer[:24].reshape(4, 6), "grads": buffer[1:].reshape(4, 6)}


LIKE = r" must be float32 of shape \(4, 6\) like params, got "
NAN = np.full((4, 6), np.nan, F32)

BAD_CALLS = [
    *(
        other(f"step={step!r}", ValueError, "step must be at least 1", step=step)
        for step in (0, -1, np.int64(0), 1 << 63)
    ),
    *(
        other(f"step={step!r}", TypeError, "step must be an integer", step=step)
        for step in (1.0, True, "1", None, np.float64(1.0), np.array(1))
    ),
    other("state missing", ValueError, "exp_avg_sq must be given", exp_avg_sq=None),
    other("state not kept", ValueError, "max_exp_avg_sq must not be given", max_exp_avg_sq=GOOD.copy()),
    other("state of a switch missing", ValueError, "max_exp_avg_sq must be given", amsgrad=True),
    other("state of another shape", ValueError, "exp_avg" + LIKE, exp_avg=np.zeros((6, 4), F32)),
    other("state of integers", TypeError, "exp_avg must be float32, float64", exp_avg=np.zeros((4, 6), int)),
    other("state complex", TypeError, "exp_avg_sq must be float32, float64", exp_avg_sq=np.zeros((4, 6), "F")),
    other("state read-only", ValueError, "exp_avg must be writeable", exp_avg=read_only(GOOD)),
    other("state masked", TypeError, "exp_avg is a masked array", exp_avg=masked(GOOD.copy())),
    other("state a nest of lists", TypeError, "exp_avg must be a NumPy array", exp_avg=[[0.0] * 6] * 4),
    other("state in a list", TypeError, "exp_avg must be a NumPy array", exp_avg=[GOOD.copy()]),
    other("state without strides", ValueError, "exp_avg has several elements", exp_avg=repeated((4, 6), (0, 4))),
    with_shared("exp_avg", "params"),
    with_shared("exp_avg_sq", "params"),
    with_shared("exp_avg_sq", "exp_avg"),
    with_shared("exp_avg", "grads"),
    with_shared("grads", "params"),
    with_shared("ema", "params", ema_decay=0.5),
    with_shared("ema", "grads", ema_decay=0.5),
    with_shared("ema", "exp_avg", ema_decay=0.5),
    with_shared("master", "params"),
    with_shared("master", "grads"),
    BadCall("gradient overlaps state", ValueError, "exp_avg_sq and grads must be apart", overlapping),
    other("gradient of another shape", ValueError, r"grads must have shape \(4, 6\)", grads=np.ones(24, F32)),
    other("no gradient", TypeError, "grads must be a NumPy array", grads=None),
    other("ema without ema_decay", ValueError, "ema and ema_decay must be given together", ema=GOOD.copy()),
    other("ema_decay without ema", ValueError, "ema and ema_decay must be given together", ema_decay=0.5),
    other("ema of another shape", ValueError, "ema" + LIKE, ema=np.ones(3, F32), ema_decay=0.5),
    other("master of another dtype", ValueError, "master" + LIKE, master=np.ones((4, 6))),
    other("unknown argument", TypeError, "adamw_ has no argument 'beta1'", beta1=0.5),
    other("nonfinite", ValueError, "nonfinite must be 'propagate', 'skip' or 'raise'", nonfinite="ignore"),
    other("a mask that is no bool", TypeError, "weight_decay_mask must be True", weight_decay_mask=3),
    other("grad_scale", ValueError, "grad_scale must be finite", grad_scale=math.nan),
    other("grad_norm", TypeError, "grad_norm", grad_norm="yes"),
    other("update_norm", TypeError, "update_norm", update_norm=1),
    other("lr of the step", ValueError, r"lr\(2\) must be finite and at least 0", lr=lambda step: -1.0),
    other("NaN in the gradient", FloatingPointError, "grads must be finite", grads=NAN, nonfinite="raise"),
]


@pytest.mark.parametrize("bad", BAD_CALLS, ids=lambda bad: bad.name)
def test_a_call_that_fails_says_why_and_changes_nothing(bad: BadCall) -> None:
    good = {name: draw((4, 6), seed) for seed, name in enumerate(("params", "grads", "exp_avg"))}
    good |= {"exp_avg_sq": np.abs(draw((4, 6), 3)), "step": 3}
    plain = {name: np.copy(value) if isinstance(value, np.ndarray) else value for name, value in good.items()}
    arguments = good | bad.change(good)
    before = {name: array.copy() for name, array in arguments.items() if isinstance(array, np.ndarray)}
    with pytest.raises(bad.error, match=bad.match):
        functional.adamw_(**arguments)
    for name, array in before.items():
        assert arguments[name].tobytes() == array.tobytes(), name
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


BAD_SCALARS: dict[str, Any] = {
    "missing": None,
    "a float": 1.0,
    "a NumPy scalar": np.float64(1.0),
    "float32": np.array(1.0, F32),
    "of one axis": np.ones(1),
    "big-endian": np.array(1.0, ">f8"),
    "read-only": read_only(np.array(1.0)),
}


@pytest.mark.parametrize("bad", BAD_SCALARS)
def test_scalar_state_that_cannot_be_updated_is_refused_by_name(bad: str) -> None:
    w, m, v = (np.ones(3) for _ in range(3))
    with pytest.raises(TypeError, match="mu_product must be a writeable float64 array of shape"):
        functional.nadam_(w, np.ones(3), m, v, BAD_SCALARS[bad], step=1)
    assert_same([w, m, v], [np.ones(3)] * 3)


@pytest.mark.parametrize("other", ["params", "grads", "exp_avg"])
def test_scalar_state_that_shares_memory_with_an_array_is_refused(other: str) -> None:
    arrays = {name: np.ones(3) for name in ("params", "grads", "exp_avg", "exp_avg_sq")}
    with pytest.raises(ValueError, match=f"(mu_product and {other}|{other} and mu_product) must be apart"):
        functional.nadam_(**arrays, mu_product=arrays[other][1:2].reshape(()), step=1)
    assert_same(list(arrays.values()), [np.ones(3)] * 4)


# -- Hyperparameters ---------------------------------------------------------------------------------------------------

NUMBERS = [
    (ValueError, math.nan),
    (ValueError, -1.0),
    (ValueError, -math.inf),
    (ValueError, F32(-1.0)),
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
    """Names and defaults, from the signature."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


CLASSES = [
    cls
    for cls in vars(optim).values()
    if isinstance(cls, type) and issubclass(cls, optim.Optimizer) and cls is not optim.Optimizer
]


def test_the_classes_of_the_table_are_those_of_the_package() -> None:
    assert {case.cls for case in CASES} == set(CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_bad_hyperparameter_is_refused_by_name_wherever_it_is_given(cls: type[optim.Optimizer]) -> None:
    # Without momentum nobody would ask for its hyperparameters.
    kwargs = {"momentum": 0.5} if "momentum" in hyperparameters(cls) else {}
    (param, opt), (twin_param, twin) = ((w, cls(w, **kwargs)) for w in (np.ones(3, F32), np.ones(3, F32)))
    grad = np.ones(3, F32)
    opt.step(grad)
    twin.step(grad)
    before, settings, group = param.copy(), opt.state_dict(), opt.param_groups[0]
    call = Called.of(cls, param, kwargs)
    for name, default in hyperparameters(cls).items():
        for error, value in bad_values(name, default):
            named = re.escape(name)
            with pytest.raises(error, match=named):
                cls(param, **{name: value})
            with pytest.raises(error, match=named):
                cls([{"params": param, name: value}])
            with pytest.raises(error, match=named):
                group[name] = value
            with pytest.raises(error, match=named):
                opt.add_param_group({"params": np.ones(3), name: value})
            with pytest.raises(error, match=named):
                call(param, grad, **{name: value})
            # What a function of the step gives is seen at the step.
            if error is ValueError and name not in ("betas", "initial_accumulator_value"):
                good = group[name]
                group[name] = lambda step, value=value: value
                with pytest.raises(error, match=named + r"\(1\)"):
                    opt.step(grad)
                group[name] = good
        assert_same(param, before, name)
        assert_same(opt.state_dict(), settings, name)
    opt.step(grad)
    twin.step(grad)
    assert_same(param, twin_param)
    assert_same(opt.state_dict(), twin.state_dict())


@pytest.mark.parametrize("name", ["max_norm", "clip_value", "ema_decay"])
def test_a_bad_option_is_refused_by_name_wherever_it_is_given(name: str) -> None:
    param = np.ones(3, F32)
    opt = optim.SGD(param, max_norm=1.0, clip_value=1.0, ema_decay=0.5)
    before = opt.state_dict()
    for error, value in bad_values(name, 0.0):
        if value is None:
            continue  # Not to be done: a value of these.
        with pytest.raises(error, match=name):
            optim.SGD(param, **{name: value})
        with pytest.raises(error, match=name):
            setattr(opt, name, value)
        with pytest.raises(error, match=name):
            functional.sgd_(param, np.ones(3, F32), step=1, **{name: value})
        setattr(opt, name, lambda step, value=value: value)
        with pytest.raises(error, match=rf"{name}\(0\)"):
            opt.step(np.ones(3, F32))
        setattr(opt, name, before["options"][name])
    assert_same(param, np.ones(3, F32))
    assert_same(opt.state_dict(), before)


@pytest.mark.parametrize("value", [None, True, 1, "Skip", ["skip"], np.array(["skip", "skip"])], ids=repr)
def test_a_bad_nonfinite_is_refused_by_name(value: Any) -> None:
    param = np.ones(3)
    opt = optim.SGD(param, nonfinite="skip")
    with pytest.raises((ValueError, TypeError), match="nonfinite must be"):
        optim.SGD(param, nonfinite=value)
    with pytest.raises((ValueError, TypeError), match="nonfinite must be"):
        opt.nonfinite = value
    assert opt.nonfinite == "skip"


def test_hyperparameters_that_do_not_go_together_are_refused_and_nothing_is_changed() -> None:
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
    with pytest.raises(TypeError, match="master_weights must be True or False"):
        optim.SGD(param, master_weights=1)
    with pytest.raises(ValueError, match="ema_decay decides whether an average is kept"):
        optim.SGD(param).ema_decay = 0.5
    assert_same(param, np.ones(3))


def test_numbers_of_all_kinds_are_hyperparameters() -> None:
    want = np.ones(3)
    optim.AdamW(want, lr=0.5, betas=(0.5, 0.25)).step(np.ones(3))
    for kind in (F32, np.float64, np.float16, Fraction):
        param = np.ones(3)
        optim.AdamW(param, lr=kind(0.5), betas=[kind(0.5), kind(0.25)]).step(np.ones(3))
        assert_same(param, want)
    for one in (1, np.int8(1), Fraction(1)):
        param = np.ones(3)
        optim.SGD(param, lr=one).step(np.ones(3))
        assert_same(param, np.zeros(3))
