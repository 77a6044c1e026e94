"""Nests of dicts, lists and tuples, parameter groups and masks: the same as many plain arrays, bit for bit."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import CASES, Case
from helpers import BF16, assert_all_same_bits, assert_same_bits, compute
from ironstep import functional, optim
from ironstep.optim import Optimizer

F32 = np.float32
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
random_nests = settings(max_examples=60, deadline=None, database=None, derandomize=True)


# -- A naive flattening, the oracle ------------------------------------------------------------------------------------

Path = tuple[Any, ...]


def paths(nest: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The way to each leaf and the leaf, the keys of dicts in sorted order."""
    if isinstance(nest, dict):
        for key in sorted(nest):
            yield from paths(nest[key], (*path, key))
    elif isinstance(nest, (list, tuple)):
        for i, item in enumerate(nest):
            yield from paths(item, (*path, i))
    else:
        yield path, nest


def leaves(nest: Any) -> list[Any]:
    return [leaf for _, leaf in paths(nest)]


def name(root: str, path: Path) -> str:
    """What an error calls the leaf."""
    return root + "".join(f"[{key!r}]" for key in path)


def flat_key(path: Path) -> str:
    """What a checkpoint calls the leaf."""
    return ".".join(str(key).replace("\\", "\\\\").replace(".", "\\.") for key in path)


def map_leaves(f: Any, nest: Any) -> Any:
    """A nest of the same containers."""
    if isinstance(nest, dict):
        return {key: map_leaves(f, value) for key, value in nest.items()}
    if isinstance(nest, (list, tuple)):
        return type(nest)([map_leaves(f, item) for item in nest])
    return f(nest)


def plain(array: np.ndarray, dtype: Any = None) -> np.ndarray:
    """A contiguous copy in the machine's byte order."""
    return np.array(array, dtype or array.dtype.newbyteorder("="), order="C")


def state_arrays(opt: Optimizer) -> list[np.ndarray]:
    """All state, with steps and scalars, in the order of the leaves."""
    return [array for own in opt.state_dict()["state"].values() for array in own.values()]


# -- Random nests of random arrays -------------------------------------------------------------------------------------


class Spread:
    """An array of a layout drawn at random, in memory of its own."""

    def __init__(self, draw: Any, shape: tuple[int, ...]) -> None:
        self.shape = shape
        dtype = draw(st.sampled_from([np.dtype("f4"), np.dtype("f8"), np.dtype("f2"), BF16]))
        self.dtype = dtype.newbyteorder("S") if draw(st.booleans()) else dtype
        self.steps = [draw(st.sampled_from([1, 1, 2, -1, -2])) for _ in shape]
        self.axes = draw(st.permutations(range(len(shape))))
        self.offset = draw(st.sampled_from([0, 0, 0, 1, 4]))
        self.room = [n * abs(step) for n, step in zip(shape, self.steps, strict=True)]
        values = np.random.default_rng(draw(st.integers(0, 999))).standard_normal(self.room)
        self.memory = np.zeros(values.size * dtype.itemsize + self.offset, np.uint8)
        self.memory[self.offset :].view(self.dtype)[...] = values.reshape(-1)
        self.array = self.take(self.memory)

    def take(self, memory: np.ndarray) -> np.ndarray:
        """The array in a memory like ours."""
        whole = memory[self.offset :].view(self.dtype).reshape([self.room[axis] for axis in self.axes])
        array = whole.transpose([self.axes.index(axis) for axis in range(len(self.axes))])
        return array[(..., *(slice(None, None, step) for step in self.steps))]

    def memory_with(self, content: np.ndarray) -> np.ndarray:
        """Our memory, but with this in the array."""
        memory = self.memory.copy()
        self.take(memory)[...] = content
        return memory


TEXT = st.text(st.sampled_from("ab.\\é0' "), max_size=4)
KEYS = st.sampled_from([TEXT, st.integers(-20, 20)])


def nests(leaf: Any) -> Any:
    """Nests of a few leaves, with some empty containers among them."""

    def containers(children: Any) -> Any:
        lists = st.lists(children, max_size=4)
        return KEYS.flatmap(lambda keys: st.dictionaries(keys, children, max_size=4)) | lists | lists.map(tuple)

    return st.recursive(leaf, containers, max_leaves=8).filter(lambda nest: bool(leaves(nest)))


# An empty array in the place of a shape, which is a tuple and would count as a nest.
NESTS = nests(st.lists(st.integers(0, 4), max_size=3).map(lambda shape: np.empty(shape, np.int8)))


@st.composite
def other_containers(draw: Any, nest: Any) -> Any:
    """The same leaves, with lists and tuples for each other and the keys of dicts in another order."""
    if isinstance(nest, dict):
        return {key: draw(other_containers(nest[key])) for key in draw(st.permutations(list(nest)))}
    if isinstance(nest, (list, tuple)):
        return draw(st.sampled_from([list, tuple]))([draw(other_containers(item)) for item in nest])
    return nest


OPTIMISERS = [
    (optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (optim.AdamW, {"lr": 0.1, "max_norm": 0.5, "ema_decay": 0.9}),
    (optim.LAMB, {"lr": 0.1}),
    (optim.NAdam, {"lr": 0.1, "master_weights": True}),
]


@given(st.data())
@random_nests
def test_a_nest_is_stepped_like_the_list_of_its_leaves_in_sorted_order(data: Any) -> None:
    skeleton = data.draw(NESTS)
    cls, kwargs = data.draw(st.sampled_from(OPTIMISERS))
    params, grads = (map_leaves(lambda like: Spread(data.draw, like.shape), skeleton) for _ in range(2))
    want = [plain(leaf.array) for leaf in leaves(params)]
    want_grads = [plain(leaf.array, compute(p.dtype)) for leaf, p in zip(leaves(grads), want, strict=True)]
    opt = cls(map_leaves(lambda leaf: leaf.array, params), **kwargs)
    plain_opt = cls(want, **kwargs)
    given_grads = data.draw(other_containers(map_leaves(lambda leaf: leaf.array, grads)))
    untouched = [leaf.memory.copy() for leaf in leaves(grads)]
    for _ in range(2):
        # The norm of all gradients depends on the order of the leaves in its last bits.
        result = opt.step(given_grads, grad_norm=True, update_norm=True)
        assert result == plain_opt.step(want_grads, grad_norm=True, update_norm=True)
    for leaf, array in zip(leaves(params), want, strict=True):
        assert_same_bits(plain(leaf.array), array)
        assert np.array_equal(leaf.memory, leaf.memory_with(array)), "memory outside a parameter has changed"
    assert all(np.array_equal(leaf.memory, before) for leaf, before in zip(leaves(grads), untouched, strict=True))
    assert_all_same_bits(state_arrays(opt), state_arrays(plain_opt))


@given(NESTS, st.sampled_from(OPTIMISERS))
@random_nests
def test_state_has_the_form_of_the_parameters_and_a_key_for_each(skeleton: Any, kind: Any) -> None:
    cls, kwargs = kind
    params = map_leaves(lambda like: np.ones(like.shape, F32), skeleton)
    opt = cls(params, **kwargs)
    shape_of = lambda array: f"{array.dtype} {array.shape}"  # noqa: E731
    for nest in opt.state.values():
        assert map_leaves(shape_of, nest) == map_leaves(shape_of, params)
        assert [path for path, _ in paths(nest)] == [path for path, _ in paths(params)]
    saved = opt.state_dict()
    keys = [flat_key(path) for path, _ in paths(params)]
    assert list(saved["state"]) == keys
    assert len(set(keys)) == len(keys)
    assert saved["param_groups"][0]["params"] == keys
    other = cls(map_leaves(np.copy, params), **kwargs)
    other.load_state_dict(saved)


@given(st.data())
@random_nests
def test_an_error_calls_a_leaf_what_python_would(data: Any) -> None:
    skeleton = data.draw(NESTS)
    params = map_leaves(lambda like: np.ones(like.shape, F32), skeleton)
    path, leaf = data.draw(st.sampled_from(list(paths(params))))
    grads = map_leaves(lambda array: np.ones((7, *array.shape) if array is leaf else array.shape, F32), params)
    with pytest.raises(ValueError, match="^" + re.escape(name("grads", path) + " must have shape")):
        optim.SGD(params).step(grads)
    wrong = map_leaves(lambda array: array.astype(int) if array is leaf else array.copy(), params)
    with pytest.raises(TypeError, match="^" + re.escape(name("params", path) + " must be float32")):
        optim.SGD(wrong)
    assert all((array == 1).all() for array in leaves(params))


@st.composite
def broken(draw: Any, nest: Any) -> Any:
    """The nest with one container somewhere that has an entry too many or too few, or is of another kind."""
    if isinstance(nest, dict):
        children, new = list(nest), 99 if all(isinstance(key, int) for key in nest) else "new"
    elif isinstance(nest, (list, tuple)):
        children, new = list(range(len(nest))), None
    else:
        return draw(st.sampled_from([[nest], (nest,), {"w": nest}, {}, []]))
    deeper = [child for child in children if isinstance(nest[child], (dict, list, tuple))]
    if deeper and draw(st.booleans()):
        child = draw(st.sampled_from(deeper))
        changed = dict(nest) if isinstance(nest, dict) else list(nest)
        changed[child] = draw(broken(nest[child]))
        return changed
    kind = draw(st.sampled_from(["more", "other"] + ["fewer"] * bool(children)))
    if isinstance(nest, dict):
        fewer = {key: nest[key] for key in children[1:]}
        return {"more": nest | {new: np.ones(1, F32)}, "fewer": fewer, "other": list(nest.values())}[kind]
    fewer = list(nest)[1:]
    return {"more": [*nest, np.ones(1, F32)], "fewer": fewer, "other": dict(enumerate(nest))}[kind]


@given(st.data())
@random_nests
def test_gradients_of_another_structure_are_refused_and_nothing_is_changed(data: Any) -> None:
    skeleton = data.draw(NESTS)
    params, want = (map_leaves(lambda like: np.ones(like.shape, F32), skeleton) for _ in range(2))
    grads = map_leaves(np.copy, params)
    opt, twin = optim.AdamW(params), optim.AdamW(want)
    before = state_arrays(opt)
    with pytest.raises((ValueError, TypeError), match=r"^grads"):
        opt.step(data.draw(broken(grads)))
    assert all((array == 1).all() for array in leaves(params))
    assert_all_same_bits(state_arrays(opt), before)
    opt.step(grads)
    twin.step(grads)
    assert_all_same_bits(leaves(params), leaves(want))
    assert_all_same_bits(state_arrays(opt), state_arrays(twin))


@given(st.data())
@random_nests
def test_the_functions_take_the_same_nests(data: Any) -> None:
    skeleton = data.draw(NESTS)
    params, grads = (map_leaves(lambda like: Spread(data.draw, like.shape).array, skeleton) for _ in range(2))
    want = map_leaves(plain, params)
    opt = optim.AdamW(want)
    m, v = (map_leaves(lambda array: np.zeros(array.shape, compute(plain(array).dtype)), params) for _ in range(2))
    for step in (1, 2):
        others = [data.draw(other_containers(nest)) for nest in (grads, m, v)]
        functional.adamw_(params, *others, step=step)
        opt.step(grads)
    for got, nest in [(params, want), (m, opt.state["exp_avg"]), (v, opt.state["exp_avg_sq"])]:
        assert_all_same_bits(map(plain, leaves(got)), leaves(nest))


# -- Keys --------------------------------------------------------------------------------------------------------------


def keys_of(params: Any) -> list[str]:
    return list(optim.SGD(params).state_dict()["state"])


def ones(n: int = 1) -> np.ndarray:
    return np.ones(n, F32)


def test_keys_of_different_nests_are_different() -> None:
    assert keys_of({"a.b": ones()}) == [r"a\.b"]
    assert keys_of({"a": {"b": ones()}}) == ["a.b"]
    assert keys_of({"a\\": {"b": ones()}}) == [r"a\\.b"]
    assert keys_of({"a\\.b": ones()}) == [r"a\\\.b"]
    assert keys_of({"a.b": ones(), "a": {"b": ones()}}) == ["a.b", r"a\.b"]
    assert keys_of({"": ones(), "a": {"": ones()}, "b": ["c", ones()][1:]}) == ["", "a.", "b.0"]
    assert keys_of(ones()) == [""]
    assert keys_of([ones(), (ones(), {"x": ones()})]) == ["0", "1.0", "1.1.x"]


def test_keys_that_are_no_unicode_are_refused_by_name_or_kept_apart() -> None:
    """Both would be the same replacement character, and one state would be lost."""
    params = {chr(0xD800): ones(), chr(0xD801): ones()}
    try:
        keys = keys_of(params)
    except ValueError as error:
        assert str(error).startswith("params must have keys")  # noqa: PT017 (it need not be raised)
    else:
        assert len(keys) == 2


def test_state_under_escaped_keys_goes_back_to_its_parameter() -> None:
    def nest() -> dict[str, Any]:
        return {"a.b": ones(), "a": {"b": ones()}, "a\\": {"b": ones()}, "": ones()}

    params = nest()
    opt = optim.AdamW(params)
    grads = map_leaves(np.copy, params)
    for scale, grad in enumerate(leaves(grads), 1):
        grad *= scale
    opt.step(grads)
    other = optim.AdamW(nest())
    other.load_state_dict(opt.state_dict())
    assert_all_same_bits(leaves(other.state["exp_avg"]), leaves(opt.state["exp_avg"]))
    assert len({float(m[0]) for m in leaves(opt.state["exp_avg"])}) == 4


def test_integers_sort_as_numbers_and_strings_as_text() -> None:
    assert keys_of({10: ones(), 9: ones(), -1: ones()}) == ["-1", "9", "10"]
    assert keys_of({"10": ones(), "9": ones(), "-1": ones()}) == ["-1", "10", "9"]
    assert keys_of({True: ones(), 0: ones()}) == ["0", "True"]
    assert keys_of({1 << 70: ones(), 3: ones()}) == ["3", str(1 << 70)]


def test_the_order_in_which_a_dict_was_filled_does_not_matter() -> None:
    grads = {"a": np.full(9, 0.1, F32), "b": np.full(9, 1e4, F32), "c": np.full(9, 3.3, F32)}
    norms = set()
    for order in ("abc", "cba", "bca"):
        params = {key: ones(9) for key in order}
        norms.add(optim.SGD(params).step({key: grads[key] for key in reversed(order)}, grad_norm=True).grad_norm)
    assert len(norms) == 1


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({1: ones(), "a": ones()}, "params must have keys that can be sorted"),
        ({None: ones()}, r"params must have strings or integers as keys, got None \(NoneType\)"),
        ({1.5: ones()}, r"params must have strings or integers as keys, got 1.5 \(float\)"),
        ({("a", "b"): ones()}, "params must have strings or integers as keys"),
        ({"a": [{b"x": ones()}]}, r"params must have strings or integers as keys, got b'x' \(bytes\)"),
    ],
    ids=repr,
)
def test_keys_that_cannot_be_named_or_sorted_are_refused(params: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        optim.SGD(params)


# -- Containers of other kinds, and containers that change -------------------------------------------------------------

Pair = namedtuple("Pair", ["w", "b"])


class List(list):
    """A list of somebody's own."""


@pytest.mark.parametrize(
    "make",
    [
        lambda w, b: OrderedDict(w=w, b=b),
        lambda w, b: defaultdict(None, {"b": b, "w": w}),
        lambda w, b: Pair(w, b),
        lambda w, b: List([w, b]),
        lambda w, b: {"x": {}, "y": [], "z": ({"w": w}, (), [b])},
        lambda w, b: {np.str_("w"): w, "b": b},
    ],
)
def test_subclasses_of_containers_and_empty_ones_are_containers(make: Any) -> None:
    w, b = np.ones(3, F32), np.ones(2, F32)
    opt = optim.SGD(make(w, b), lr=0.5)
    opt.step(make(np.ones(3, F32), np.ones(2, F32)))
    opt.step(make(np.ones(3, F32), np.ones(2, F32)))
    assert_all_same_bits([w, b], [np.zeros(3, F32), np.zeros(2, F32)])


def test_a_dict_that_makes_missing_entries_is_not_asked_to() -> None:
    grads: Any = defaultdict(ones)
    opt = optim.SGD({"w": ones()})
    with pytest.raises(ValueError, match="grads must have the keys of the parameters; missing: 'w'"):
        opt.step(grads)
    assert not grads


def test_nests_may_be_100_deep_but_not_contain_themselves() -> None:
    def deep(n: int, leaf: Any) -> Any:
        for _ in range(n):
            leaf = [leaf]
        return leaf

    w = ones()
    optim.SGD(deep(100, w), lr=0.5).step(deep(100, ones()))
    assert w == 0.5
    with pytest.raises(ValueError, match="params must be nested at most 100 deep; does a container contain itself"):
        optim.SGD(deep(101, w))
    itself: list[Any] = [w]
    itself.append(itself)
    mutual: dict[str, Any] = {"w": w, "x": []}
    mutual["x"].append(mutual)
    for params in (itself, mutual):
        with pytest.raises(ValueError, match="params must be nested at most 100 deep"):
            optim.SGD(params)
        with pytest.raises(ValueError, match="grads"):
            optim.SGD([w]).step(params)
        with pytest.raises(ValueError, match=r"^weight_decay_mask"):
            optim.SGD([w], weight_decay_mask=params)
    assert w == 0.5


def test_a_container_that_comes_to_contain_itself_is_refused_until_it_does_not() -> None:
    params: list[Any] = [ones(), {"w": ones()}]
    opt = optim.SGD(params, lr=0.5)
    params[1]["x"] = params
    with pytest.raises(ValueError, match="params must be nested at most 100 deep"):
        opt.step([ones(), {"w": ones()}])
    assert_all_same_bits([params[0], params[1]["w"]], [ones(), ones()])
    del params[1]["x"]
    opt.step([ones(), {"w": ones()}])
    assert_all_same_bits(leaves(params), [ones() / 2] * 2)


CONTAINER_CHANGES = {
    "an inner dict for another": lambda params: params.update(a={"x": ones(2), "y": ones(3)}),
    "an inner list for a tuple": lambda params: params.update(b=(ones(4), ones(5))),
    "an inner tuple for a list": lambda params: params.update(c=[ones(6)]),
    "an array in a list": lambda params: params["b"].__setitem__(1, ones(5)),
    "the order of a dict": lambda params: params.update(a=params.pop("a")),
}


@pytest.mark.parametrize("change", CONTAINER_CHANGES)
def test_the_step_after_a_change_of_a_container_is_that_of_what_it_holds_now(change: str) -> None:
    def nest() -> dict[str, Any]:
        return {"a": {"x": ones(2), "y": ones(3)}, "b": [ones(4), ones(5)], "c": (ones(6),)}

    params, want, grads = nest(), nest(), nest()
    opt, twin = optim.AdamW(params), optim.AdamW(want)
    opt.step(grads)
    twin.step(grads)
    old = leaves(params)
    kept = [array.copy() for array in old]
    CONTAINER_CHANGES[change](params)
    now = {id(leaf) for leaf in leaves(params)}
    for array, new in zip(leaves(want), leaves(params), strict=True):
        array[...] = new
    opt.step(grads)
    twin.step(grads)
    assert_all_same_bits(leaves(params), leaves(want))
    assert_all_same_bits(state_arrays(opt), state_arrays(twin))
    for array, before in zip(old, kept, strict=True):
        assert id(array) in now or np.array_equal(array, before), "an array that was taken out is written"


def test_looking_ahead_is_done_with_what_the_containers_hold_now() -> None:
    params = {"w": np.ones(3, F32)}
    opt = optim.SGD(params, lr=0.5, momentum=0.5)
    opt.step({"w": np.ones(3, F32)})
    old = params["w"]
    params["w"] = np.full(3, 4, F32)
    with opt.lookahead():
        assert_same_bits(params["w"], np.full(3, 3.75, F32))
    assert_same_bits(params["w"], np.full(3, 4, F32))
    assert_same_bits(old, np.full(3, 0.5, F32))


def test_a_replaced_array_that_the_full_precision_copy_would_overwrite_is_refused_by_name() -> None:
    params = {"w": np.ones(3, BF16), "b": np.ones(2, F32)}
    grads = {"w": np.ones(3, F32), "b": np.ones(2, F32)}
    opt = optim.SGD(params, lr=0.5, master_weights=True)
    old, new = params["w"], np.full(3, 8, BF16)
    params["w"], params["b"] = new, np.full(2, 8, F32)
    for call in (lambda: opt.step(grads), opt.sync_master):
        with pytest.raises(ValueError, match=r"params\['w'\] was replaced by another array"):
            call()
    assert_all_same_bits([old, new, params["b"]], [np.ones(3, BF16), np.full(3, 8, BF16), np.full(2, 8, F32)])
    params["w"] = old
    old[...] = 4
    opt.sync_master()
    opt.step(grads)
    assert_all_same_bits([old, params["b"]], [np.full(3, 3.5, BF16), np.full(2, 7.5, F32)])
    assert_same_bits(opt.master["w"], np.full(3, 3.5, F32))


@pytest.mark.parametrize(
    ("change", "undo", "match"),
    [
        (lambda p: p["b"].append(ones()), lambda p: p["b"].pop(), r"params\['b'\]\[1\] was added or removed"),
        (lambda p: p["b"].clear(), lambda p: p["b"].append(p["kept"][0]), r"params\['b'\]\[0\] was added or removed"),
        (lambda p: p["a"].update(y=ones()), lambda p: p["a"].pop("y"), r"params\['a'\]\['y'\] was added or removed"),
        (lambda p: p.update(a=[p["a"]["x"]]), lambda p: p.update(a={"x": p["a"][0]}), r"params\['a'\]\['x'\] was"),
        (lambda p: p.update(b={"x": 1}), lambda p: p.update(b=list(p["kept"])), r"params\['b'\]\[0\] was"),
    ],
    ids=["append", "clear", "new key", "dict to list", "list to dict"],
)
def test_a_change_of_structure_is_refused_by_name_until_it_is_undone(change: Any, undo: Any, match: str) -> None:
    b = ones(3)
    params: dict[str, Any] = {"a": {"x": ones(2)}, "b": [b], "kept": (b,)}
    del params["kept"]
    opt = optim.SGD(params, lr=0.5)
    grads = {"a": {"x": ones(2)}, "b": [ones(3)]}
    opt.step(grads)
    change(params)
    with pytest.raises(ValueError, match=match):
        opt.step(grads)
    params["kept"] = (b,)
    undo(params)
    del params["kept"]
    opt.step(grads)
    assert opt.steps == 2
    assert_all_same_bits(leaves(params), [0 * ones(2), 0 * ones(3)])


# -- Parameter groups --------------------------------------------------------------------------------------------------


def two_arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((3, 4)).astype(F32), rng.standard_normal(5)


def two_gradients() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((3, 4)).astype(F32), rng.standard_normal(5)


@every_case
def test_groups_are_as_many_optimisers_with_their_hyperparameters(case: Case) -> None:
    (w, b), (want_w, want_b), (grad_w, grad_b) = two_arrays(), two_arrays(), two_gradients()
    other: dict[str, Any] = {"lr": 0.003, "weight_decay": 0.2, "maximize": not case.kwargs.get("maximize", False)}
    opt = case.cls([{"params": {"w": w}}, {"params": (b,), **other}], **case.kwargs)
    first, second = case.cls({"w": want_w}, **case.kwargs), case.cls([want_b], **(case.kwargs | other))
    for _ in range(3):
        assert opt.step([{"w": grad_w}, [grad_b]]).step == first.step({"w": grad_w}).step
        second.step([grad_b])
    assert_all_same_bits([w, b], [want_w, want_b])
    assert_all_same_bits(state_arrays(opt), state_arrays(first) + state_arrays(second))
    assert not np.array_equal(b, two_arrays()[1])


@every_case
def test_a_group_added_later_begins_at_its_own_first_step(case: Case) -> None:
    (w, b), (want_w, want_b), (grad_w, grad_b) = two_arrays(), two_arrays(), two_gradients()
    opt, first = case.cls({"w": w}, **case.kwargs), case.cls({"w": want_w}, **case.kwargs)
    second = case.cls(want_b, **(case.kwargs | {"lr": lambda step: 0.1 / (1 + step)}))
    for _ in range(3):
        opt.step({"w": grad_w})
        first.step({"w": grad_w})
    opt.add_param_group({"params": b, "lr": lambda step: 0.1 / (1 + step)})
    for _ in range(2):
        result = opt.step([{"w": grad_w}, grad_b])
        first.step({"w": grad_w})
        second.step(grad_b)
    assert result.step == opt.steps == 5
    assert_all_same_bits([w, b], [want_w, want_b])
    assert_all_same_bits(state_arrays(opt), state_arrays(first) + state_arrays(second))
    assert [int(own["step"]) for own in opt.state_dict()["state"].values()] == [5, 2]


def test_gradients_of_groups_are_a_list_with_one_nest_for_each() -> None:
    w, b = two_arrays()
    opt = optim.SGD([{"params": w}, {"params": {"b": b}}], lr=0.5)
    grad_w, grad_b = two_gradients()
    before = w.copy(), b.copy()
    for grads, match in [
        (grad_w, "grads must be a list or tuple of length 2 like the parameters, got ndarray"),
        ([grad_w], "grads must be a list or tuple of length 2 like the parameters, got list of length 1"),
        ([grad_w, grad_b], r"grads\[1\] must be a dict of length 1"),
        ([grad_w, {"c": grad_b}], r"grads\[1\] must have the keys of the parameters; missing: 'b'; unknown: 'c'"),
        ([grad_b, {"b": grad_b}], r"grads\[0\] must have shape \(3, 4\) like params\[0\], got \(5,\)"),
        ({"w": grad_w, "b": grad_b}, "grads must be a list or tuple of length 2"),
    ]:
        with pytest.raises(ValueError, match=match):
            opt.step(grads)
    assert_all_same_bits([w, b], before)
    opt.step((grad_w, {"b": grad_b}))
    assert_all_same_bits([w, b], [before[0] - F32(0.5) * grad_w, before[1] - 0.5 * grad_b])


def test_one_group_alone_is_a_group_too() -> None:
    w = ones(3)
    opt = optim.SGD([{"params": {"w": w}, "lr": 0.5}], lr=9.0)
    opt.step([{"w": ones(3)}])
    assert_same_bits(w, ones(3) / 2)
    assert len(opt.param_groups) == 1
    assert keys_of([{"params": {"w": ones()}}]) == ["0.w"]


@every_case
def test_a_hyperparameter_of_one_group_changes_the_next_step_of_that_group(case: Case) -> None:
    (w, b), (want_w, want_b), (grad_w, grad_b) = two_arrays(), two_arrays(), two_gradients()
    opt = case.cls([{"params": w}, {"params": b}], **case.kwargs)
    first, second = case.cls(want_w, **case.kwargs), case.cls(want_b, **case.kwargs)
    for step in range(4):
        if step == 1:
            opt.param_groups[1]["lr"] = second.param_groups[0]["lr"] = 0.01
        if step == 2:
            opt.param_groups[1]["lr"] = second.param_groups[0]["lr"] = lambda step: 0.02 * step
            opt.param_groups[0]["weight_decay"] = first.param_groups[0]["weight_decay"] = 0.3
        opt.step([grad_w, grad_b])
        first.step(grad_w)
        second.step(grad_b)
        assert_all_same_bits([w, b], [want_w, want_b], f"step {step + 1}")
    assert_all_same_bits(state_arrays(opt), state_arrays(first) + state_arrays(second))


def test_param_groups_are_mappings() -> None:
    w, b = two_arrays()
    opt = optim.AdamW([{"params": w}, {"params": b, "lr": 0.5}])
    first, second = opt.param_groups
    assert (first["lr"], second["lr"]) == (0.001, 0.5)
    assert first["params"] is w
    assert second["params"] is b
    assert dict(second)["betas"] == (0.9, 0.999)
    assert list(first) == list(second)
    assert len(first) == len(list(first)) == len(dict(first))
    assert "lr" in first
    assert "momentum" not in first
    first.update(lr=0.25, betas=[0.5, 0.5])
    assert (first["lr"], first["betas"]) == (0.25, (0.5, 0.5))
    opt.param_groups.clear()
    assert len(opt.param_groups) == 2, "the list is a copy"
    assert "lr=0.25" in repr(opt)


def test_groups_must_keep_the_same_state() -> None:
    w, b = two_arrays()
    with pytest.raises(ValueError, match=r"must keep the same state, but these choose \['momentum', 'sgd'\]"):
        optim.SGD([{"params": w}, {"params": b, "momentum": 0.9}])
    opt = optim.SGD(w, lr=0.5)
    with pytest.raises(ValueError, match="must keep the same state"):
        opt.add_param_group({"params": b, "momentum": 0.9})
    opt.step(ones(1).repeat(12).reshape(3, 4))
    assert opt.steps == 1


def test_what_the_caller_gave_as_groups_is_not_changed() -> None:
    w, b = two_arrays()
    groups = [{"params": w, "weight_decay_mask": False}, {"params": b, "lr": 0.5}]
    keys = [list(group) for group in groups]
    opt = optim.SGD(groups)
    added = {"params": ones(), "lr": 0.1, "weight_decay_mask": True}
    opt.add_param_group(added)
    assert [list(group) for group in groups] == keys
    assert list(added) == ["params", "lr", "weight_decay_mask"]


# -- Which parameters decay --------------------------------------------------------------------------------------------


def mask_nest() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(F32)

    return {"head": [draw(3, 2), draw(2)], "layers": ({"w": draw(4, 3), "b": draw(3)},), "scale": draw()}


MASK = {"head": (True, False), "layers": [{"w": np.True_, "b": False}], "scale": False}
GRADS = map_leaves(lambda array: array[..., ::-1] if array.ndim else -array, mask_nest())


@every_case
def test_a_mask_is_the_same_as_groups_with_and_without_weight_decay(case: Case) -> None:
    kwargs = case.kwargs | {"weight_decay": 0.1}
    want = mask_nest()
    head, layer = want["head"], want["layers"][0]
    decayed, rest = {"params": [head[0], layer["w"]]}, {"params": [head[1], layer["b"], want["scale"]]}
    by_hand = case.cls([decayed, rest | {"weight_decay": 0.0}], **kwargs)
    head, layer = GRADS["head"], GRADS["layers"][0]
    grads = [[head[0], layer["w"]], [head[1], layer["b"], GRADS["scale"]]]
    masks = {"nest": MASK, "function": lambda array: array.ndim > 1, "tuple for list": MASK | {"head": [True, False]}}
    optimisers = {name: (params := mask_nest(), case.cls(params, **kwargs, weight_decay_mask=mask))
                  for name, mask in masks.items()}  # fmt: skip
    for _ in range(3):
        by_hand.step(grads)
        for _, opt in optimisers.values():
            opt.step(GRADS)
    for name, (params, masked) in optimisers.items():
        assert_all_same_bits(leaves(params), leaves(want), name)
        state = by_hand.state_dict()["state"]
        order = ["0.0", "1.0", "1.1", "0.1", "1.2"]
        assert_all_same_bits(state_arrays(masked), [array for key in order for array in state[key].values()], name)
    everything = mask_nest()
    opt = case.cls(everything, **kwargs)
    for _ in range(3):
        opt.step(GRADS)
    unmasked = zip([*leaves(everything), *state_arrays(opt)], [*leaves(params), *state_arrays(masked)], strict=True)
    assert any(not np.array_equal(a, b) for a, b in unmasked), "the mask makes a difference"


def test_the_functions_take_the_same_masks() -> None:
    for mask in (MASK, lambda array: array.ndim > 1):
        params, want = mask_nest(), mask_nest()
        opt = optim.AdamW(want, weight_decay=0.5, weight_decay_mask=mask)
        m, v = (map_leaves(np.zeros_like, params) for _ in range(2))
        for step in (1, 2):
            opt.step(GRADS)
            functional.adamw_(params, GRADS, m, v, step=step, weight_decay=0.5, weight_decay_mask=mask)
        assert_all_same_bits(leaves(params), leaves(want))


def test_a_mask_function_is_asked_once_for_each_parameter_with_the_array_itself() -> None:
    params, asked = mask_nest(), []
    opt = optim.AdamW(params, weight_decay_mask=lambda array: asked.append(array) or True)
    opt.step(GRADS)
    opt.step(GRADS)
    assert [id(array) for array in asked] == [id(array) for array in leaves(params)]


def test_each_group_has_its_mask() -> None:
    def run(make: Any) -> list[np.ndarray]:
        w, b, c, grad = ones(3), ones(3), ones(3), np.zeros(3, F32)
        opt = make(w, b, c)
        for _ in range(2):
            opt.step([[grad, grad], grad] if len(opt.param_groups) == 2 else [grad, grad, grad])
        return [w, b, c]

    kwargs = {"lr": 0.5, "weight_decay": 0.5, "decoupled_weight_decay": True}
    want = [ones(3) * F32(0.5625), ones(3), ones(3) * F32(0.5625)]
    for make in [
        lambda w, b, c: optim.SGD([{"params": [w, b], "weight_decay_mask": [True, False]}, {"params": c}], **kwargs),
        lambda w, b, c: optim.SGD(
            [{"params": [w, b]}, {"params": c}], **kwargs, weight_decay_mask=[[True, False], True]
        ),
        lambda w, b, c: optim.SGD(
            [{"params": [w, b]}, {"params": c}], **kwargs, weight_decay_mask=lambda array: array is not b
        ),
        lambda w, b, c: optim.SGD([{"params": w}, {"params": b, "weight_decay": 0.0}, {"params": c}], **kwargs),
    ]:
        assert_all_same_bits(run(make), want)


@pytest.mark.parametrize(
    ("params", "mask", "error", "match"),
    [
        ({"w": ones()}, {"w": 1}, TypeError, r"weight_decay_mask\['w'\] must be True \(decay\) or False, got 1"),
        ({"w": ones()}, {"w": None}, TypeError, r"weight_decay_mask\['w'\] must be True"),
        ({"w": ones()}, {"w": "no"}, TypeError, r"weight_decay_mask\['w'\] must be True"),
        ({"w": ones()}, {"v": True}, ValueError, "weight_decay_mask must have the keys.*missing: 'w'; unknown: 'v'"),
        ({"w": ones()}, True, ValueError, "weight_decay_mask must be a dict of length 1"),
        ([ones()], [True, False], ValueError, "weight_decay_mask must be a list or tuple of length 1"),
        ({"w": ones()}, lambda array: 1, TypeError, r"weight_decay_mask\['w'\] must be True"),
        ([{"params": ones()}], [True, False], ValueError, "weight_decay_mask must be a function or a list with one"),
        ([{"params": ones()}], True, ValueError, "weight_decay_mask must be a function or a list with one"),
    ],
    ids=lambda value: "function" if callable(value) and not isinstance(value, type) else repr(value),
)
def test_a_mask_that_does_not_fit_is_refused_by_name(params: Any, mask: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        optim.SGD(params, weight_decay_mask=mask)


def test_replaced_parameters_are_noticed_by_all_that_plan_again() -> None:
    """Else a master would overwrite them, or state would come to the wrong parameter."""
    p = {"w": np.ones(2, BF16)}
    opt = optim.SGD(p, lr=0.1, master_weights=True)
    old, p["w"] = p["w"], np.full(2, 5.0, BF16)
    with pytest.raises(ValueError, match=r"params\['w'\] was replaced by another array"):
        opt.add_param_group({"params": np.ones(1)})
    with pytest.raises(ValueError, match=r"params\['w'\] was replaced by another array"):
        copy.deepcopy(opt)
    p["w"] = old
    opt.add_param_group({"params": np.ones(1)})

    q = {"a": np.ones(2), "b": np.ones(2)}
    opt = optim.SGD(q, lr=0.1, momentum=0.9)
    q["0"] = q.pop("b")
    with pytest.raises(ValueError, match="params must keep the structure"):
        opt.add_param_group({"params": np.ones(1)})
    assert len(opt.param_groups) == 1
