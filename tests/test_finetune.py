"""Fine-tuning: frozen groups, weights by name, groups by layer."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cases import CASES, Case
from helpers import BF16, assert_all_same_bits, assert_same, assert_same_bits
from ironstep import nn, optim, schedules, train
from ironstep.optim import SGD, Adam, AdamW, Optimizer

F32 = np.float32
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), F32)


def layers(seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Three groups."""
    return [{f"{i}.weight": draw(seed + i, 3, 4), f"{i}.bias": draw(seed + 10 + i, 3)} for i in range(3)]


def grads_of(params: list[dict[str, np.ndarray]], seed: int) -> list[dict[str, np.ndarray]]:
    return [{name: draw(seed + k, *array.shape) for k, (name, array) in enumerate(own.items())} for own in params]


def made(case: Case, params: list[dict[str, np.ndarray]], **options: Any) -> Optimizer:
    return case.cls([{"params": own} for own in params], **case.kwargs, **options)


def everything(opt: Optimizer) -> Any:
    return opt.state_dict(), copy.deepcopy([group["params"] for group in opt.param_groups]), repr(opt)


# -- Frozen groups -----------------------------------------------------------------------------------------------------


@every_case
def test_frozen_groups_stay_as_they_are_and_the_others_step_as_if_they_were_alone(case: Case) -> None:
    params = layers()
    opt = made(case, params, ema_decay=0.9, max_norm=1.5)
    alone_params = copy.deepcopy(params)
    alone = made(case, [alone_params[0]], ema_decay=0.9, max_norm=1.5)
    opt.freeze(["1.*", "2.*"])
    frozen = copy.deepcopy(params[1:])
    before = {key: own for key, own in opt.state_dict()["state"].items() if key[0] != "0"}
    for i in range(4):
        own = grads_of(params, 100 * i)[0]
        got = opt.step([own, None, "not looked at"], update_norm=True)
        want = alone.step([own], update_norm=True)
        assert got == want
    assert_same(params[0], alone_params[0])
    assert_same(params[1:], frozen)
    after = opt.state_dict()["state"]
    assert_same({key: own for key, own in after.items() if key[0] != "0"}, before)
    assert_same(
        {key: own for key, own in after.items() if key[0] == "0"},
        alone.state_dict()["state"],
    )
    assert opt.steps == 4


@every_case
def test_an_unfrozen_group_goes_on_with_the_state_and_the_count_that_it_had(case: Case) -> None:
    """Each group is as an optimiser of its own that was not called while the group was frozen."""
    params = layers()
    opt = made(case, params)
    single_params = copy.deepcopy(params)
    singles = [made(case, [own]) for own in single_params]
    patterns: list[Callable[[], None]] = [
        lambda: None,
        lambda: opt.freeze("0.*"),
        lambda: opt.freeze(1),
        lambda: opt.unfreeze("0.*"),
        lambda: opt.unfreeze(),
    ]
    active = [{0, 1, 2}, {1, 2}, {2}, {0, 2}, {0, 1, 2}]
    for i, (change, groups) in enumerate(zip(patterns, active, strict=True)):
        change()
        assert [not group.frozen for group in opt.param_groups] == [k in groups for k in range(3)]
        grads = grads_of(params, 50 * i)
        opt.step([grads[k] if k in groups else None for k in range(3)])
        for k in groups:
            singles[k].step([grads[k]])
        assert_same(params, single_params)
    assert opt._steps == [3, 3, 5]
    assert opt.steps == 5


def test_steps_are_those_of_the_group_that_has_taken_most() -> None:
    a, b = np.zeros(2), np.zeros(2)
    clips: list[int] = []

    def clip(step: int) -> float:
        clips.append(step)
        return 1.0

    opt = SGD([{"params": {"a": a}}, {"params": {"b": b}}], lr=1.0, clip_value=clip)
    g = {"a": np.ones(2)}, {"b": np.ones(2)}
    opt.freeze("a")
    assert [opt.step(g).step for _ in range(3)] == [1, 2, 3]
    assert (opt.steps, clips) == (3, [0, 1, 2])
    opt.unfreeze("a")
    assert opt.step(g).step == 4
    assert (opt.steps, clips) == (4, [0, 1, 2, 3])
    opt.freeze("b")
    assert [opt.step(g).step for _ in range(4)] == [4, 4, 4, 5]
    assert a[0] == -5.0
    assert b[0] == -4.0


def test_hyperparameters_of_a_group_follow_its_own_steps() -> None:
    params = layers()
    seen: dict[int, list[int]] = {0: [], 1: []}

    def lr(i: int) -> Callable[[int], float]:
        return lambda step: seen[i].append(step) or 0.1

    opt = SGD([{"params": params[i], "lr": lr(i)} for i in range(2)])
    grads = grads_of(params, 0)[:2]
    opt.step(grads)
    opt.freeze(0)
    opt.step(grads)
    opt.unfreeze(0)
    opt.step(grads)
    assert seen == {0: [0, 1], 1: [0, 1, 2]}


def test_gradients_of_frozen_groups_do_not_count() -> None:
    params = layers()
    grads = grads_of(params, 0)
    opt = SGD([{"params": own} for own in params], lr=0.1, nonfinite="raise")
    opt.freeze("2.*")
    grads[2]["2.bias"][...] = np.nan
    norm = opt.step(grads, grad_norm=True).grad_norm
    assert norm == pytest.approx(
        math.sqrt(sum((g.astype(float) ** 2).sum() for own in grads[:2] for g in own.values()))
    )
    grads[1]["1.bias"][0] = np.inf
    before = everything(opt)
    with pytest.raises(FloatingPointError, match=r"grads\[1\]\['1.bias'\] must be finite"):
        opt.step(grads)
    assert_same(everything(opt), before)


@pytest.mark.parametrize(
    ("grads", "error", "match"),
    [
        (None, ValueError, r"grads must be a list or tuple of length 3 like the parameters, got NoneType"),
        ([None, None], ValueError, r"grads must be a list or tuple of length 3 .*, got list of length 2"),
        ({"0": 1}, ValueError, r"grads must be a list or tuple of length 3 .*, got dict of length 1"),
        ([None] * 3, ValueError, r"grads\[0\] must be a dict of length 2"),
        ([None, {}, {}], ValueError, r"grads\[0\] must be a dict"),
    ],
    ids=["none", "short", "dict", "nones", "none of one that is active"],
)
def test_gradients_of_active_groups_are_looked_at(grads: Any, error: type[Exception], match: str) -> None:
    params = layers()
    opt = Adam([{"params": own} for own in params])
    opt.freeze("2.*")
    before = everything(opt)
    with pytest.raises(error, match=match):
        opt.step(grads)
    assert_same(everything(opt), before)
    opt.step([*grads_of(params, 0)[:2], None])  # The lock is free.


def test_a_gradient_of_another_shape_is_named_as_in_the_whole_list() -> None:
    params = layers()
    opt = Adam([{"params": own} for own in params])
    opt.freeze("0.*")
    grads = grads_of(params, 0)
    grads[2]["2.bias"] = np.zeros(4, F32)
    with pytest.raises(ValueError, match=r"grads\[2\]\['2.bias'\] must have shape \(3,\) like params\[2\]\['2.bias'\]"):
        opt.step(grads)


@pytest.mark.parametrize("params", [np.ones(2), {"a": np.ones(2)}, [{"params": np.ones(2)}]])
def test_a_step_with_all_frozen_is_an_error(params: Any) -> None:
    opt = SGD(params)
    opt.freeze("*")
    with pytest.raises(RuntimeError, match="all parameter groups are frozen, so a step would do nothing"):
        opt.step(None)
    opt.unfreeze()
    assert opt.step([np.ones(2)] if isinstance(params, list) else copy.deepcopy(params)).step == 1


NAMED = [{"0.weight": np.ones(2), "0.bias": np.ones(2)}, {"head": {"w": np.ones(2)}}, [np.ones(2)], np.ones(2)]


@pytest.mark.parametrize(
    ("pattern", "frozen"),
    [
        ("0.*", {0}),
        ("0.[bw]*", {0}),
        (["0.weight", "0.bias"], {0}),
        (("0.*", "head.w"), {0, 1}),
        ("head.*", {1}),
        ("head*", {1}),
        ("0*", {0, 2}),
        ("0", {2}),
        ("", {3}),
        ("*", {0, 1, 2, 3}),
        (3, {3}),
        ([np.int64(1), "0.*"], {0, 1}),
        (["0.*", "0.*"], {0}),
        ("?ead.w", {1}),
    ],
    ids=repr,
)
def test_patterns(pattern: Any, frozen: set[int]) -> None:
    opt = SGD([{"params": own} for own in NAMED])
    opt.freeze(pattern)
    assert {i for i, group in enumerate(opt.param_groups) if group.frozen} == frozen
    opt.freeze(pattern)
    opt.unfreeze(pattern)
    assert not any(group.frozen for group in opt.param_groups)


@pytest.mark.parametrize("change", ["freeze", "unfreeze"])
@pytest.mark.parametrize(
    ("pattern", "error", "match"),
    [
        ("1.*", ValueError, r"like the name of a parameter, got '1\.\*'; there are '0\.bias', '0\.weight', 'head\.w'"),
        (["0.*", "nose"], ValueError, r"like the name of a parameter, got 'nose'"),
        ("0.weight", ValueError, r"whole parameter groups, but of group 0 '0.weight' takes \['0.weight'\] and leaves"),
        ("*.w*", ValueError, r"leaves \['0.bias'\]; make groups with ironstep.train.layer_groups"),
        ("HEAD.W", ValueError, "like the name"),
        (4, ValueError, "number of a group, 0 to 3, got 4"),
        (-1, ValueError, "number of a group, 0 to 3, got -1"),
        (True, TypeError, "must be a string such as"),
        (None, TypeError, "must be a string such as"),
        ([1.0], TypeError, "got 1.0"),
    ],
    ids=repr,
)
def test_patterns_that_fit_no_groups_are_refused(change: str, pattern: Any, error: type[Exception], match: str) -> None:
    opt = SGD([{"params": own} for own in NAMED])
    opt.freeze("head.*")
    before = everything(opt)
    with pytest.raises(error, match=match):
        getattr(opt, change)(pattern)
    assert_same(everything(opt), before)
    opt.step([copy.deepcopy(NAMED[0]), None, [np.ones(2)], np.ones(2)])


def test_dots_and_backslashes_in_names_are_plain() -> None:
    opt = SGD([{"params": {"a.b\\c": np.ones(1)}}, {"params": {"a": {"x": np.ones(1)}}}])
    opt.freeze("a.b\\c")
    assert [group.frozen for group in opt.param_groups] == [True, False]


def test_it_shows() -> None:
    opt = SGD([{"params": own} for own in NAMED])
    plain, group = repr(opt), repr(opt.param_groups[0])
    assert "frozen" not in plain + group
    opt.freeze("0.*")
    assert repr(opt.param_groups[0]) == group[:-1] + ", frozen=True)"
    assert repr(opt).count("frozen=True") == 1
    with pytest.raises(AttributeError):
        opt.param_groups[0].frozen = False  # type: ignore[misc]
    with pytest.raises(KeyError, match="frozen"):
        opt.param_groups[0]["frozen"] = False


@pytest.mark.parametrize("way", ["dict", "file", "pickle", "deepcopy"])
@pytest.mark.parametrize("cls", [Adam, optim.NAdam])
def test_frozen_groups_are_saved(way: str, cls: type[Optimizer], tmp_path: Path) -> None:
    params = layers()
    opt = cls([{"params": own} for own in params], ema_decay=0.5)
    opt.step(grads_of(params, 0))
    opt.freeze(["0.*", "1.*"])
    opt.step(grads_of(params, 1))
    assert [group["frozen"] for group in opt.state_dict()["param_groups"]] == [True, True, False]
    if way in ("pickle", "deepcopy"):
        other = pickle.loads(pickle.dumps(opt)) if way == "pickle" else copy.deepcopy(opt)
    else:
        other = cls([{"params": own} for own in copy.deepcopy(params)], ema_decay=0.5)
        other.freeze("2.*")
        if way == "dict":
            other.load_state_dict(opt.state_dict())
        else:
            opt.save(tmp_path / "o.safetensors")
            other.load(tmp_path / "o.safetensors")
    assert [group.frozen for group in other.param_groups] == [True, True, False]
    assert other.steps == opt.steps == 2
    grads = grads_of(params, 2)
    for each in (opt, other):
        assert each.step([None, None, grads[2]]).step == 3
        each.unfreeze("1.*")
        each.step([None, *grads[1:]])
    assert_same(everything(other), everything(opt))


def test_older_files_have_no_frozen_groups() -> None:
    params = layers()
    opt = Adam([{"params": own} for own in params])
    old = opt.state_dict()
    for group in old["param_groups"]:
        del group["frozen"]
    opt.freeze("*")
    opt.load_state_dict(old)
    assert not any(group.frozen for group in opt.param_groups)
    opt.step(grads_of(params, 0))
    old["param_groups"][1]["frozen"] = 1
    before = everything(opt)
    with pytest.raises(TypeError, match=r"\['param_groups'\]\[1\]\['frozen'\] must be True or False, got 1"):
        opt.load_state_dict(old)
    assert_same(everything(opt), before)


def test_a_load_that_fails_leaves_frozen_groups() -> None:
    params = layers()
    opt, other = (Adam([{"params": own} for own in copy.deepcopy(params)]) for _ in range(2))
    opt.freeze("0.*")
    bad = other.state_dict()
    del bad["state"]["2.2\\.bias"]["exp_avg"]
    with pytest.raises(ValueError, match="exp_avg"):
        opt.load_state_dict(bad)
    assert [group.frozen for group in opt.param_groups] == [True, False, False]
    opt.step([None, *grads_of(params, 0)[1:]])


def test_groups_can_be_added_while_others_are_frozen() -> None:
    params = layers()
    opt = Adam([{"params": own} for own in params[:2]], lr=0.1)
    opt.freeze("0.*")
    opt.step([None, grads_of(params, 0)[1]])
    first = copy.deepcopy(params[0])
    opt.add_param_group({"params": params[2]})
    assert [group.frozen for group in opt.param_groups] == [True, False, False]
    opt.step([None, *grads_of(params, 1)[1:]])
    assert opt._steps == [0, 2, 1]
    assert_same(params[0], first)


def test_parameters_that_are_replaced_are_noticed() -> None:
    """In an active group at once; in a frozen one when it steps again."""
    params = layers()
    opt = SGD([{"params": own} for own in params], lr=1.0)
    opt.freeze("0.*")
    params[0]["0.bias"], params[1]["1.bias"] = np.ones(3, F32), np.ones(3, F32)
    ones = [{name: np.ones_like(array) for name, array in own.items()} for own in params]
    opt.step(ones)
    assert params[0]["0.bias"][0] == 1.0
    assert params[1]["1.bias"][0] == 0.0
    opt.unfreeze()
    opt.step(ones)
    assert params[0]["0.bias"][0] == 0.0
    assert params[1]["1.bias"][0] == -1.0


def test_state_that_the_caller_sees_is_watched() -> None:
    params = layers()
    opt = SGD([{"params": own} for own in params], lr=1.0, momentum=0.5)
    opt.freeze("0.*")
    buffer = opt.state["momentum_buffer"][1]["1.bias"]
    opt.step([None, *grads_of(params, 0)[1:]])
    assert buffer.any()
    buffer.setflags(write=False)
    with pytest.raises(ValueError, match="momentum_buffer"):
        opt.step([None, *grads_of(params, 0)[1:]])


def test_the_lookahead_point_leaves_frozen_groups_where_they_are() -> None:
    params = layers()
    opt = SGD([{"params": own} for own in params], lr=0.5, momentum=0.5)
    opt.step(grads_of(params, 0))
    before = copy.deepcopy(params)
    velocity = copy.deepcopy(opt.state["momentum_buffer"])
    opt.freeze("1.*")
    with opt.lookahead():
        assert_same(params[1], before[1])
        for i in (0, 2):
            for name, array in params[i].items():
                assert_same_bits(array, before[i][name] - F32(0.25) * velocity[i][name])
    assert_same(params, before)
    opt.freeze("*")
    with opt.lookahead():
        assert_same(params, before)


def test_frozen_masters_and_averages_stay() -> None:
    params = [{"a": draw(0, 5).astype(BF16)}, {"b": draw(1, 5).astype(BF16)}]
    opt = AdamW([{"params": own} for own in params], lr=0.1, master_weights=True, ema_decay=0.5)
    opt.freeze("a")
    before = copy.deepcopy([opt.master[0], opt.ema[0], params[0]])
    opt.step([None, {"b": np.ones(5, F32)}])
    assert_same([opt.master[0], opt.ema[0], params[0]], before)
    assert (np.asarray(opt.master[1]["b"]) != draw(1, 5).astype(BF16).astype(F32)).all()


# -- Weights by name ---------------------------------------------------------------------------------------------------


def model(classes: int, seed: int) -> nn.Sequential:
    rng = np.random.default_rng(seed)
    return nn.Sequential(nn.Linear(4, 8, seed=rng), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes, seed=rng))


def test_what_fits_is_copied_and_the_rest_reported() -> None:
    old, new = model(5, 0), model(3, 1)
    old(draw(0, 16, 4))
    head = {name: new.params[name].copy() for name in ("3.weight", "3.bias")}
    report = train.load_matching(new, old.state_dict() | {"extra": np.ones(2)})
    same = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert report.loaded == tuple(same)
    assert report.missing == ()
    assert report.unexpected == ("extra",)
    assert report.mismatched == {
        "3.weight": "must have shape (3, 8), got (5, 8)",
        "3.bias": "must have shape (3,), got (5,)",
    }
    for name in same:
        assert_same_bits(new.state_dict()[name], old.state_dict()[name], name)
    for name, array in head.items():
        assert_same_bits(new.params[name], array, name)
    assert str(report).splitlines()[0] == "loaded: 7 of 9"


def test_names_that_the_state_dict_lacks_are_missing() -> None:
    target = {"a": np.zeros(2), "b": np.zeros(2)}
    report = train.load_matching(target, {"b": np.ones(2)})
    assert report == (("b",), ("a",), (), {})
    assert_same(target, {"a": np.zeros(2), "b": np.ones(2)})


@pytest.mark.parametrize(
    ("have", "given", "fits"),
    [
        (np.float32, np.float64, True),
        (np.float64, np.float32, True),
        (np.float16, np.float32, True),
        (BF16, np.float32, True),
        (np.float32, BF16, True),
        (np.float32, np.dtype(">f4"), True),
        (np.int64, np.int64, True),
        (np.int64, np.dtype(">i8"), True),
        (np.int64, np.int32, False),
        (np.float32, np.int64, False),
        (np.int64, np.float32, False),
        (np.float32, np.complex64, False),
        (np.float32, bool, False),
    ],
)
def test_float_types_are_converted_and_others_must_be_the_same(have: Any, given: Any, fits: bool) -> None:
    target, value = np.zeros(3, have), np.array([1, 0, 3]).astype(given)
    report = train.load_matching({"x": target, "other": np.zeros(1)}, {"x": value, "other": np.ones(1)})
    assert report.loaded == (("x", "other") if fits else ("other",))
    assert_same_bits(target, value.astype(have) if fits else np.zeros(3, have))
    if not fits:
        assert report.mismatched == {"x": f"must be {np.dtype(have)}, got {np.dtype(given)}"}


@pytest.mark.parametrize(
    ("have", "value", "shown"),
    [
        (F32, np.array([1.0, 1e300]), "float32, got 1e+300"),
        (F32, np.array([1.0, -1e39]), "float32, got -1e+39"),
        (np.float16, np.array([7e4, 1.0], F32), "float16, got 70000.0"),
        (np.float16, np.array([1e5, 1.0], BF16), "float16, got 99840.0"),
        (BF16, np.array([3.4e38, 3.4e38], F32), "bfloat16, got 3.3999999521443642e+38"),
    ],
    ids=repr,
)
def test_a_number_that_the_type_cannot_hold_does_not_fit(have: Any, value: np.ndarray, shown: str) -> None:
    target = {"x": np.zeros(2, have), "y": np.zeros(1)}
    report = train.load_matching(target, {"x": value, "y": np.ones(1)})
    assert report == (("y",), (), (), {"x": f"must fit into {shown}"})
    assert_same(target, {"x": np.zeros(2, have), "y": np.ones(1)})
    with pytest.raises(ValueError, match=r"at least one array that fits .*(.|\n)*x \(must fit into"):
        train.load_matching({"x": target["x"]}, {"x": value})


def test_what_is_not_finite_already_is_loaded() -> None:
    target = np.zeros(3, np.float16)
    train.load_matching({"x": target}, {"x": np.array([np.inf, -np.inf, np.nan])})
    assert_same_bits(target, np.array([np.inf, -np.inf, np.nan], np.float16))


@pytest.mark.parametrize("have", [BF16, F32, np.float64, np.float16], ids=str)
def test_bfloat16_comes_back_from_np_load(tmp_path: Path, have: Any) -> None:
    values = draw(0, 3, 4).astype(BF16)[:, ::2]
    np.savez(tmp_path / "w.npz", x=values)
    target = {"x": np.zeros((3, 2), have)}
    with np.load(tmp_path / "w.npz") as file:
        assert file["x"].dtype.str == "|V2"
        train.load_matching(target, file)
    assert_same_bits(target["x"], values.astype(have))
    with pytest.raises(ValueError, match=r"x \(must be int64, got \|V2\)"):
        train.load_matching({"x": np.zeros((3, 2), int)}, {"x": values.view("V2")})


def shared() -> dict[str, np.ndarray]:
    """Arrays that overlap in memory in different ways."""
    flat = np.zeros(6)
    return {
        "all": flat,
        "same": flat,
        "back": flat[::-1],
        "even": flat[::2],
        "odd": flat[1::2],
        "rest": flat[4:],
        "bits": flat[:2].view(np.int64),
    }


@pytest.mark.parametrize(
    ("values", "pair"),
    [
        ({"all": np.arange(6.0), "same": np.arange(6.0)}, None),
        ({"all": np.full(6, np.nan), "same": np.full(6, np.nan), "back": np.full(6, np.nan)}, None),
        ({"all": np.arange(6.0), "back": np.arange(6.0)[::-1], "even": [0.0, 2.0, 4.0], "rest": [4.0, 5.0]}, None),
        ({"even": [1.0, 2.0, 3.0], "odd": [4.0, 5.0, 6.0]}, None),
        ({"all": np.full(6, 2.0, F32), "same": np.full(6, 2.0)}, None),
        ({"all": np.ones(6), "bits": np.array([0x3FF0000000000000] * 2)}, None),
        ({"all": np.arange(6.0), "same": np.zeros(6)}, ("all", "same")),
        ({"all": np.arange(6.0), "back": np.arange(6.0)}, ("all", "back")),
        ({"even": [1.0, 2.0, 3.0], "odd": [4.0, 5.0, 6.0], "rest": [3.0, 5.0]}, ("odd", "rest")),
        ({"even": [1.0, 2.0, 3.0], "rest": [4.0, 5.0]}, ("even", "rest")),
        ({"all": np.zeros(6), "same": np.full(6, -0.0)}, ("all", "same")),
        ({"all": np.ones(6), "bits": np.array([1, 1])}, ("all", "bits")),
    ],
)
def test_targets_that_share_memory_must_get_the_same_values(values: dict[str, Any], pair: Any) -> None:
    target = shared() | {"x": np.zeros(2)}
    state_dict = {name: np.asarray(value) for name, value in values.items()} | {"x": np.ones(2)}
    if pair is None:
        report = train.load_matching(target, state_dict)
        assert set(report.loaded) == set(state_dict)
        for name, value in state_dict.items():
            np.testing.assert_array_equal(target[name], value)
        return
    with pytest.raises(
        ValueError, match="target\\['{}'\\] and target\\['{}'\\] overlap in memory".format(*sorted(pair))
    ):
        train.load_matching(target, state_dict)
    assert not target["all"].any()
    assert not target["x"].any()


@pytest.mark.parametrize("dtype", [F32, np.int64, np.int8, bool])
@pytest.mark.parametrize(("shape", "strides"), [((3,), (0,)), ((2, 2), (1, 1)), ((2, 3), (0, 1))])
def test_targets_whose_elements_share_memory_are_refused(dtype: Any, shape: Any, strides: Any) -> None:
    memory = np.zeros(8, dtype)
    wide = [stride * memory.itemsize for stride in strides]
    target = np.lib.stride_tricks.as_strided(memory, shape, wide, writeable=True)
    with pytest.raises(ValueError, match=r"target\['n'\] has several elements at the same address \(strides"):
        train.load_matching({"n": target, "x": np.zeros(1)}, {"n": np.ones(shape, dtype), "x": np.ones(1)})
    assert not memory.any()
    for good in (memory[::-2], memory.reshape(2, 4).T, memory.reshape(2, 4)[:, :1], memory[:0]):
        train.load_matching({"n": good, "x": np.zeros(1)}, {"n": np.ones_like(good), "x": np.ones(1)})
        assert good.all()


def test_tensors_of_torch_are_taken() -> None:
    torch = pytest.importorskip("torch")
    other = torch.nn.Linear(4, 3)
    layer = nn.Linear(4, 3, seed=0)
    train.load_matching(layer, other.state_dict())
    assert_same_bits(layer.params["weight"], other.weight.detach().numpy())
    with pytest.raises(TypeError, match=r"state_dict\['weight'\] must be an array, got Parameter"):
        train.load_matching(layer, {"weight": other.weight})
    half = other.to(torch.bfloat16).state_dict()
    with pytest.raises(TypeError, match=r"state_dict\['weight'\] is a tensor of bfloat16, .* give it as .float\(\)"):
        train.load_matching(layer, half)
    train.load_matching(layer, {name: tensor.float() for name, tensor in half.items()})
    assert_same_bits(layer.params["weight"], other.weight.detach().float().numpy())


def test_nested_dicts_have_dotted_names() -> None:
    target = {"body": {"w": np.zeros(2), "b": np.zeros(1)}, "head.w": np.zeros(2)}
    report = train.load_matching(target, {"body.w": np.ones(2), "head": {"w": np.full(2, 2.0)}})
    assert report == (("body.w", "head.w"), ("body.b",), (), {})
    assert target["body"]["w"][0] == 1.0
    assert target["head.w"][0] == 2.0


@pytest.mark.parametrize(
    ("rename", "loaded", "unexpected"),
    [
        ({"features.0.w": "body.w"}, ("body.w",), ("old",)),
        ({"features.0.w": "body.w", "old": "head"}, ("body.w", "head"), ()),
        (lambda name: name.replace("features.0", "body"), ("body.w",), ("old",)),
        (lambda name: {"features.0.w": "body.w"}.get(name), ("body.w",), ("old",)),
    ],
)
def test_names_can_be_changed(rename: Any, loaded: tuple[str, ...], unexpected: tuple[str, ...]) -> None:
    target = {"body.w": np.zeros(2), "head": np.zeros(1)}
    report = train.load_matching(target, {"features.0.w": np.ones(2), "old": np.ones(1)}, rename=rename)
    assert (report.loaded, report.unexpected) == (loaded, unexpected)
    assert target["body.w"][0] == 1.0


def test_a_state_dict_may_hold_the_targets_own_arrays() -> None:
    a, b = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    train.load_matching({"a": a, "b": b}, {"a": b, "b": a})
    assert_all_same_bits([a, b], [np.array([3.0, 4.0]), np.array([1.0, 2.0])])
    train.load_matching({"a": a}, {"a": a[::-1]})
    assert_same_bits(a, np.array([4.0, 3.0]))


READ_ONLY = np.zeros(2)
READ_ONLY.setflags(write=False)
READ_ONLY_COUNT = np.zeros((), np.int64)
READ_ONLY_COUNT.setflags(write=False)
GOOD = {"a": np.ones(2)}


@pytest.mark.parametrize(
    ("target", "state_dict", "rename", "error", "match"),
    [
        ({"a": 0}, {"b": np.ones(2)}, None, ValueError, "at least one array that fits target .* rename"),
        ({"a": 0}, {}, None, ValueError, "at least one array that fits"),
        ({"a": 0}, {"a": np.ones(3)}, None, ValueError, r"mismatched: a \(must have shape \(2,\), got \(3,\)\)"),
        ({"a": 0}, [1], None, TypeError, "state_dict must be a dict of arrays, got list"),
        ([1], GOOD, None, TypeError, "target must be a dict of arrays, got list"),
        ({"a": [1.0]}, GOOD, None, TypeError, r"target\['a'\] must be a NumPy array, got list"),
        ({0: 0}, GOOD, None, TypeError, "target must have strings as keys, got 0"),
        ({"a": 0}, {"x": {"y": GOOD["a"]}, "x.y": GOOD["a"]}, None, ValueError, "two arrays are called 'x.y'"),
        ({"a": 0, "r": READ_ONLY}, GOOD | {"r": np.ones(2)}, None, ValueError, r"target\['r'\]"),
        (
            {"a": 0, "r": READ_ONLY_COUNT},
            GOOD | {"r": np.array(1)},
            None,
            ValueError,
            r"target\['r'\] must be writable",
        ),
        ({"a": 0}, {"a": np.ma.masked_array([1.0, 2.0])}, None, TypeError, r"state_dict\['a'\] is a masked array"),
        ({"a": 0}, {"a": [[1.0], [1.0, 2.0]]}, None, TypeError, r"state_dict\['a'\] must be an array, got list"),
        (
            {"a": 0},
            GOOD,
            {"b": "a"},
            ValueError,
            "rename must have names of state_dict as keys, got 'b'; there are 'a'",
        ),
        ({"a": 0}, GOOD | {"b": 1}, {"b": "a"}, ValueError, "'a' and 'b' both become 'a'"),
        ({"a": 0}, GOOD, lambda name: 3, TypeError, "rename must give strings or None, got 3 for 'a'"),
        ({"a": 0}, GOOD, "a", TypeError, "rename must be a dict or a function of a name, got str"),
    ],
)
def test_what_cannot_be_loaded_is_refused_and_nothing_is_changed(
    target: Any, state_dict: Any, rename: Any, error: type[Exception], match: str
) -> None:
    own = np.zeros(2)
    if isinstance(target, dict):
        target = {key: own if isinstance(value, int) else value for key, value in target.items()}
    with pytest.raises(error, match=match):
        train.load_matching(target, state_dict, rename=rename)
    assert not own.any()


# -- Groups by layer ---------------------------------------------------------------------------------------------------


def test_a_group_for_each_layer_with_falling_rates() -> None:
    net = model(3, 0)
    groups = train.layer_groups(net.params, 0.8, decay=2.0)
    assert [list(group["params"]) for group in groups] == [
        ["0.weight", "0.bias"],
        ["1.weight", "1.bias"],
        ["3.weight", "3.bias"],
    ]
    assert [group["lr"] for group in groups] == [0.2, 0.4, 0.8]
    for group in groups:
        for name, array in group["params"].items():
            assert array is net.params[name]


def test_layers_come_in_the_order_of_their_appearance() -> None:
    params = {f"{name}.w": np.ones(1) for name in ["10", "2", "b", "a", "2x"]} | {
        "10.b": np.ones(1),
        "lone": np.ones(1),
    }
    groups = train.layer_groups(params, 1.0, decay=2.6)
    assert [list(group["params"]) for group in groups] == [
        ["10.w", "10.b"],
        ["2.w"],
        ["b.w"],
        ["a.w"],
        ["2x.w"],
        ["lone"],
    ]
    assert [group["lr"] for group in groups] == pytest.approx([2.6**-k for k in range(5, -1, -1)], rel=1e-15)
    assert groups[-1]["lr"] == 1.0


@pytest.mark.parametrize(
    ("names", "want"),
    [
        (["0", "1", "3"], [["0.weight", "0.bias"], ["1.weight", "1.bias"], ["3.weight", "3.bias"]]),
        ([["0", "1"], "3"], [["0.weight", "0.bias", "1.weight", "1.bias"], ["3.weight", "3.bias"]]),
        (["3", ("1", "0")], [["3.weight", "3.bias"], ["0.weight", "0.bias", "1.weight", "1.bias"]]),
        (["0.weight", "0", "1", "3"], [["0.weight"], ["0.bias"], ["1.weight", "1.bias"], ["3.weight", "3.bias"]]),
        (["0", "0.weight", "1", "3"], [["0.bias"], ["0.weight"], ["1.weight", "1.bias"], ["3.weight", "3.bias"]]),
    ],
    ids=repr,
)
def test_layers_can_be_named(names: Any, want: list[list[str]]) -> None:
    groups = train.layer_groups(model(3, 0).params, 1.0, decay=2.0, names=names)
    assert [list(group["params"]) for group in groups] == want
    assert [group["lr"] for group in groups] == [2.0**-k for k in range(len(want) - 1, -1, -1)]


def plain_lr(step: int) -> float:
    return 1.0 / (1 + step)


@pytest.mark.parametrize(
    "lr", [schedules.cosine(0.1, steps=10), schedules.constant(0.5), plain_lr], ids=["cosine", "constant", "function"]
)
def test_schedules_are_scaled(lr: Any) -> None:
    net = model(3, 0)
    groups = train.layer_groups(net.params, lr, decay=4.0)
    assert groups[-1]["lr"] is lr
    if isinstance(lr, schedules.Schedule):
        assert all(isinstance(group["lr"], schedules.Schedule) for group in groups)
    for k, group in enumerate(reversed(groups)):
        again = pickle.loads(pickle.dumps(group["lr"]))
        for step in range(12):
            assert group["lr"](step) == again(step) == lr(step) / 4.0**k
    opt = SGD(groups)
    assert opt.step(train.group_grads(groups, net.grads)).step == 1


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"decay": 0.75}, ValueError, "decay must be finite and at least 1, got 0.75"),
        ({"decay": math.inf}, ValueError, "decay must be finite and at least 1, got inf"),
        ({"decay": "2"}, TypeError, "decay must be a number"),
        ({"lr": -1}, ValueError, "lr must be finite and at least 0, got -1"),
        ({"lr": "x"}, TypeError, "lr must be a number"),
        ({"params": {}}, ValueError, "params must have at least one array"),
        ({"params": [1]}, TypeError, "params must be a dict of arrays, got list"),
        ({"names": "0"}, TypeError, "names must be a list of names or of lists of names, got '0'"),
        ({"names": [0]}, TypeError, "names must be a list"),
        ({"names": [[0]]}, TypeError, "names must have strings, got 0"),
        ({"names": ["0", "1"]}, ValueError, "'3.weight' begins with none of"),
        ({"names": ["0", "1", "3", "4"]}, ValueError, "names must be beginnings of parameter names, got '4'"),
        ({"names": ["0", "1", ["3", "0"]]}, ValueError, "names must have each name once, got '0' twice"),
    ],
    ids=repr,
)
def test_groups_that_cannot_be_made_are_refused(kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        train.layer_groups(**{"params": model(3, 0).params, "lr": 0.1} | kwargs)


def test_gradients_come_in_the_same_groups() -> None:
    net = model(3, 0)
    groups = train.layer_groups(net.params, 0.1)
    grads = train.group_grads(groups, net.grads)
    assert [list(own) for own in grads if own is not None] == [list(group["params"]) for group in groups]
    for own in grads:
        assert own is not None
        for name, array in own.items():
            assert array is net.grads[name]


def test_fine_tuning_with_groups_is_one_optimiser_with_equal_rates() -> None:
    nets = [model(3, 0), model(3, 0)]
    groups = train.layer_groups(nets[1].params, 0.1)
    opts = [AdamW(nets[0].params, lr=0.1), AdamW(groups)]
    grads = [nets[0].grads, train.group_grads(opts[1].param_groups, nets[1].grads)]
    for i in range(3):
        for net, opt, own in zip(nets, opts, grads, strict=True):
            out = net(draw(i, 6, 4))
            net.backward(np.ones_like(out))
            opt.step(own)
    assert_same(nets[1].params, nets[0].params)


def test_gradients_of_a_frozen_group_may_be_left_out() -> None:
    net = model(3, 0)
    opt = SGD(train.layer_groups(net.params, 0.1))
    head = {name: array for name, array in net.grads.items() if name[0] == "3"}
    with pytest.raises(ValueError, match=r"lacks '0.weight', '0.bias'"):
        train.group_grads(opt.param_groups, head)
    opt.freeze(["0.*", "1.*"])
    grads = train.group_grads(opt.param_groups, head)
    assert grads[:2] == [None, None]
    opt.step(grads)


@pytest.mark.parametrize(
    ("groups", "grads", "error", "match"),
    [
        ([{"params": {"a": 1}}], {"a": 1, "b": 2}, ValueError, "'b' are in none"),
        ([{"params": {"a": 1}}], {}, ValueError, "lacks 'a'"),
        ([{"a": 1}], {}, TypeError, r"groups\[0\] must be a parameter group with a dict as 'params'"),
        ([{"params": [1]}], {}, TypeError, r"groups\[0\] must be a parameter group"),
        ([{"params": {"a": 1}}], [1], TypeError, "grads must be a dict of arrays, got list"),
    ],
)
def test_gradients_that_fit_no_groups_are_refused(groups: Any, grads: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        train.group_grads(groups, grads)


# -- Names and sizes out of the ordinary -------------------------------------------------------------------------------


def test_a_whole_name_means_itself() -> None:
    params = [{"params": {name: np.ones(1)}} for name in ("x[0]", "x0", "*", "a.b\\c", "?")]
    opt = SGD(params, lr=1.0)

    def frozen() -> list[int]:
        return [i for i, group in enumerate(opt.param_groups) if group.frozen]

    for pattern, want in [("x[0]", [0]), ("x0", [1]), ("x[[]0]", [0]), ("x[01]", [1]), ("?", [4]), ("a.b\\c", [3])]:
        opt.freeze(pattern)
        assert frozen() == want
        opt.unfreeze()
        opt.freeze(list(range(5)))
        opt.unfreeze(pattern)
        assert frozen() == [i for i in range(5) if i not in want]
        opt.unfreeze([*range(5)])
    with pytest.raises(
        ValueError, match=r"got 'y\[0\]'; there are .*; in a pattern \[ab\] is an a or a b, and \[\[\] a"
    ):
        opt.freeze("y[0]")
    with pytest.raises(ValueError, match=r"got 'y'; there are 'x\[0\]', 'x0', .*'\?'$"):
        opt.freeze("y")


def test_a_decay_that_is_too_large_for_the_layers() -> None:
    params = {f"{i}.w": np.ones(1) for i in range(800)}
    with pytest.raises(ValueError, match=r"decay must be small enough for 800 layers, but 2.6 \*\* 799 is too large"):
        train.layer_groups(params, 0.1, decay=2.6)
    assert len(train.layer_groups(params, 0.1, decay=2.0 ** (1 / 2))) == 800
    assert len(train.layer_groups(params, 0.1)) == 800


def test_matching_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    old, new = (nn.Sequential(nn.Linear(4, 8, seed=s), nn.Linear(8, 5 - s, seed=s)) for s in (0, 1))
    train.save_state(path, model=old, other=nn.Linear(2, 2, seed=0))
    report = train.load_matching(new, path, name="model")
    assert report.loaded == ("0.weight", "0.bias")
    np.testing.assert_array_equal(new.params["0.weight"], old.params["0.weight"])
    for name in (None, "net"):
        with pytest.raises(ValueError, match=f"name must say what .*, which has 'model', 'other'; got {name!r}"):
            train.load_matching(new, path, name=name)
    with pytest.raises(ValueError, match="name is for a file"):
        train.load_matching(new, old.state_dict(), name="model")
    train.save_state(path, net=old)
    assert train.load_matching(old, str(path)).missing == ()


@pytest.mark.parametrize("params", [nn.Linear(2, 2, seed=0), [{"params": nn.Linear(2, 2, seed=0)}]])
def test_a_model_is_not_its_params(params: Any) -> None:
    with pytest.raises(TypeError, match=r"must be an array, or a nest of .* arrays, got a Linear: use model.params"):
        AdamW(params)
