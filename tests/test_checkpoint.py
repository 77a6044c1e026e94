"""Checkpoints: a resumed run goes on to the bit, and whatever is wrong with one is an error that changes nothing."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import re
import stat
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cases import CASES, Case
from helpers import BF16, assert_same
from ironstep import functional, optim
from ironstep.optim import Optimizer

F32 = np.float32
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


# -- What is compared --------------------------------------------------------------------------------------------------


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), F32)


def nest(seed: int) -> dict[str, Any]:
    """Arrays of all types and layouts, under keys with dots."""
    return {
        "a.b": draw(seed, 3, 4),
        "a": {"b": draw(seed + 1, 5).astype(np.float64)},
        "layers": [{"w": np.asfortranarray(draw(seed + 2, 4, 3).astype(BF16))}, (draw(seed + 3, 2, 3, 4).T,)],
        "half": draw(seed + 4, 6, 6).astype(np.float16)[::2, ::-2],
        "swapped": draw(seed + 5, 7).astype(">f4"),
        "none": draw(seed + 6, 0, 3),
        "one": draw(seed + 7),
    }


KEYS = {
    "a": {"b": "a.b"},
    "a.b": r"a\.b",
    "half": "half",
    "layers": [{"w": "layers.0.w"}, ("layers.1.0",)],
    "none": "none",
    "one": "one",
    "swapped": "swapped",
}


def flat(tree: Any, keys: Any = KEYS) -> dict[str, Any]:
    """Key in a checkpoint -> leaf."""
    if isinstance(keys, str):
        return {keys: tree}
    pairs = [(tree[i], keys[i]) for i in (keys if isinstance(keys, dict) else range(len(keys)))]
    return {key: leaf for branch in pairs for key, leaf in flat(*branch).items()}


def zeros(tree: Any) -> Any:
    """A nest of the same form, types and layouts without the content."""
    if isinstance(tree, dict):
        return {key: zeros(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([zeros(value) for value in tree])
    other = copy.deepcopy(tree)
    other[...] = 0
    return other


def everything(opt: Optimizer) -> dict[str, Any]:
    """All that an error must leave as it is: parameters, state, steps, hyperparameters."""
    params = [copy.deepcopy(group["params"]) for group in opt.param_groups]
    return {"saved": opt.state_dict(), "params": params, "steps": opt.steps, "repr": repr(opt)}


def as_json(saved: dict[str, Any]) -> Any:
    """The settings of a state dict as a file has them: JSON, which has no infinity and no tuple."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return "inf" if value == math.inf else value

    return {name: plain(value) for name, value in saved.items() if name != "state"}


AROUND = {"max_norm": 2.0, "ema_decay": 0.9, "master_weights": True}


# -- Resuming ----------------------------------------------------------------------------------------------------------


def by_dict(opt: Optimizer, other: Optimizer, path: Path) -> None:
    ours, theirs = (flat(each.param_groups[0]["params"]) for each in (opt, other))
    for key in ours:
        theirs[key][...] = ours[key]
    other.load_state_dict(opt.state_dict())


def by_file(opt: Optimizer, other: Optimizer, path: Path) -> None:
    opt.save(path)
    other.load(path)


def by_file_of_state(opt: Optimizer, other: Optimizer, path: Path) -> None:
    by_dict(opt, other, path)
    opt.save(path, params=False)
    other.load(path, params=False)


@every_case
@pytest.mark.parametrize("around", [{}, AROUND], ids=["plain", "around"])
def test_a_resumed_run_goes_on_to_the_bit(case: Case, around: dict[str, Any], tmp_path: Path) -> None:
    for resume in (by_dict, by_file, by_file_of_state):
        params, grads = nest(0), nest(50)
        opt = case.cls(params, **(around | case.kwargs))
        for _ in range(2):
            opt.step(grads)
        # The other one has other settings, and a past of its own.
        theirs = nest(100)
        other = case.cls(theirs, **(around | case.kwargs | {"lr": 3.0}))
        other.step(nest(150))
        resume(opt, other, tmp_path / "checkpoint")
        assert_same(other.state_dict(), opt.state_dict(), resume.__name__)
        assert repr(other) == repr(opt)
        for _ in range(2):
            assert other.step(grads) == opt.step(grads)
        assert_same(flat(theirs), flat(params), resume.__name__)
        assert_same(everything(other), everything(opt), resume.__name__)


def test_groups_resume_each_at_its_own_step(tmp_path: Path) -> None:
    def make() -> tuple[dict[str, np.ndarray], Optimizer]:
        params = {"w": draw(0, 3, 2), "b": draw(1, 2)}
        opt = optim.NAdam({"w": params["w"]}, lr=0.1, weight_decay=0.1, weight_decay_mask={"w": False})
        opt.step({"w": draw(2, 3, 2)})
        opt.add_param_group({"params": {"b": params["b"]}, "lr": 0.3, "betas": (0.5, 0.75)})
        return params, opt

    (params, opt), (theirs, other) = make(), make()
    grads = [{"w": draw(3, 3, 2)}, {"b": draw(4, 2)}]
    opt.step(grads)
    assert list(opt.state_dict()["state"]) == ["0.w", "1.b"]
    opt.save(tmp_path / "checkpoint")
    other.load(tmp_path / "checkpoint")
    assert [int(own["step"]) for own in other.state_dict()["state"].values()] == [2, 1]
    for each in (opt, other):
        each.step(grads)
    assert_same(theirs, params)
    assert_same(other.state_dict(), opt.state_dict())


def test_what_is_saved_and_loaded_is_what_the_containers_hold_now(tmp_path: Path) -> None:
    params, theirs = ({"w": draw(seed, 4), "b": draw(seed + 1, 3)} for seed in (0, 10))
    grads = {"w": draw(2, 4), "b": draw(3, 3)}
    opt, other = optim.AdamW(params), optim.AdamW(theirs)
    old = params["w"], theirs["w"]
    params["w"], theirs["w"] = draw(20, 4), draw(21, 4)
    kept = [array.copy() for array in old]
    opt.step(grads)
    opt.save(tmp_path / "checkpoint")
    assert_same(load_file(tmp_path / "checkpoint")["params.w"], params["w"])
    other.load(tmp_path / "checkpoint")
    assert_same(theirs, params)
    assert_same(list(old), kept)


def test_state_dicts_and_optimisers_share_nothing() -> None:
    w, grad = draw(0, 4), draw(1, 4)
    opt = optim.NAdam(w, ema_decay=0.5)
    opt.step(grad)
    before = everything(opt)
    saved = opt.state_dict()
    for array in saved["state"][""].values():
        array[...] = 7
    saved["param_groups"][0]["lr"] = 7.0
    saved["options"]["ema_decay"] = 0.7
    assert_same(everything(opt), before)
    given = opt.state_dict()
    opt.load_state_dict(given)
    opt.step(grad)
    assert_same(given, before["saved"])


def test_loading_writes_to_the_arrays_that_the_caller_holds(tmp_path: Path) -> None:
    w, grad = draw(0, 4), draw(1, 4)
    opt = optim.AdamW(w, ema_decay=0.5)
    opt.step(grad)
    opt.save(tmp_path / "checkpoint")
    held, after = (opt.state["exp_avg"], opt.ema, w), [opt.state["exp_avg"].copy(), opt.ema.copy(), w.copy()]
    for array in held:
        array[...] = 7
    opt.load(tmp_path / "checkpoint")
    assert opt.state["exp_avg"] is held[0]
    assert opt.ema is held[1]
    assert_same(list(held), after)


# -- The file ----------------------------------------------------------------------------------------------------------


@every_case
def test_the_file_is_what_other_tools_read_with_every_dtype_kept(case: Case, tmp_path: Path) -> None:
    params = nest(0)
    opt = case.cls(params, **(AROUND | case.kwargs))
    opt.step(nest(50))
    opt.save(tmp_path / "checkpoint")
    saved, theirs = opt.state_dict(), load_file(tmp_path / "checkpoint")
    want = {f"state.{key}.{name}": array for key, own in saved["state"].items() for name, array in own.items()}
    want |= {f"params.{key}": leaf for key, leaf in flat(params).items()}
    assert_same(theirs, want)
    for key, own in saved["state"].items():
        assert (own["step"].dtype, own["step"].shape) == (np.int64, ())
        wide = flat(params)[key].dtype.newbyteorder("=") == np.float64
        arrays = {name: array for name, array in own.items() if name not in ("step", "mu_product")}
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float64 if wide else F32)}
    with safe_open(tmp_path / "checkpoint", framework="numpy") as file:
        settings = json.loads(file.metadata()["ironstep"])
    assert settings == as_json(saved)


def test_scalar_state_is_float64(tmp_path: Path) -> None:
    opt = optim.NAdam(draw(0, 3))
    opt.step(draw(1, 3))
    opt.save(tmp_path / "checkpoint")
    for saved in (opt.state_dict()["state"][""]["mu_product"], load_file(tmp_path / "checkpoint")["state.mu_product"]):
        assert (saved.dtype, saved.shape) == (np.float64, ())
        assert 0 < saved < 1


def test_state_of_another_float_type_is_taken_and_kept_as_it_is(tmp_path: Path) -> None:
    w, want, grad = draw(0, 5), draw(0, 5), draw(1, 5)
    opt = optim.AdamW(w)
    opt.step(grad)
    small = opt.state_dict()
    for name, dtype in [("exp_avg", BF16), ("exp_avg_sq", np.float64)]:
        small["state"][""][name] = small["state"][""][name].astype(dtype)
    m, v = (small["state"][""][name].copy() for name in ("exp_avg", "exp_avg_sq"))
    want[...] = w
    opt.load_state_dict(small)
    opt.save(tmp_path / "checkpoint")
    other = optim.AdamW(theirs := np.zeros(5, F32))
    other.load(tmp_path / "checkpoint")
    functional.adamw_(want, grad, m, v, step=2)
    for each, param in ((opt, w), (other, theirs)):
        each.step(grad)
        assert_same([each.state["exp_avg"], each.state["exp_avg_sq"], param], [m, v, want])


def test_the_same_state_makes_the_same_file(tmp_path: Path) -> None:
    opt = optim.AdamW(nest(0))
    opt.step(nest(50))
    before = everything(opt)
    for name in ("first", "second"):
        opt.save(tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert_same(everything(opt), before)


def test_paths_of_all_kinds_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opt = optim.SGD(draw(0, 3))
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "path", str(tmp_path / "text"), "relative", "./dot", "name with blanks é 火"):
        opt.save(path)
        opt.load(path)
    assert sorted(os.listdir()) == ["dot", "name with blanks é 火", "path", "relative", "text"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_the_umask_gives_the_permissions(tmp_path: Path) -> None:
    opt = optim.SGD(draw(0, 3))
    for umask, mode in [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o000, 0o666)]:
        before = os.umask(umask)
        try:
            opt.save(tmp_path / "checkpoint")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "checkpoint").stat().st_mode) == mode


# -- Hyperparameters ---------------------------------------------------------------------------------------------------


def test_hyperparameters_are_exact_after_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    odd = [5e-324, 2.2250738585072014e-308, 0.1, 1 / 3, 1.7976931348623157e308, 0.0, *rng.random(50)]
    for lr, beta in zip(odd, [*rng.random(55), 0.9999999999999999], strict=True):
        opt, other = optim.NAdam(draw(0, 2), lr=lr, betas=(beta, beta / 3), momentum_decay=lr), optim.NAdam(draw(0, 2))
        opt.save(tmp_path / "checkpoint")
        other.load(tmp_path / "checkpoint")
        ours, theirs = dict(opt.param_groups[0]), dict(other.param_groups[0])
        del ours["params"], theirs["params"]
        assert_same(theirs, ours)


def test_infinities_integers_and_switches_are_kept(tmp_path: Path) -> None:
    w = draw(0, 2)
    kwargs = {"max_param_norm": math.inf, "max_norm": math.inf, "lr": 1, "trust_clip": True, "maximize": True}
    opt = optim.LAMB(w, **kwargs, clip_value=math.inf, nonfinite="skip", ema_decay=1)
    other = optim.LAMB(w, max_param_norm=3.0, ema_decay=0.5)
    opt.save(tmp_path / "checkpoint")
    other.load(tmp_path / "checkpoint")
    assert repr(other) == repr(opt)
    assert other.param_groups[0]["max_param_norm"] == other.max_norm == other.clip_value == math.inf
    assert other.nonfinite == "skip"


def halving(step: int) -> float:
    return 0.5 ** (step + 1)


FUNCTIONS: dict[str, dict[str, Any]] = {
    "lr": {"lr": halving},
    "weight_decay": {"weight_decay": halving},
    "betas": {"betas": (0.9, halving)},
    "max_norm": {"max_norm": halving},
    "clip_value": {"clip_value": halving},
    "ema_decay": {"ema_decay": halving},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_the_step_are_not_saved_and_must_be_there_again(name: str, tmp_path: Path) -> None:
    def make(functions: bool) -> Optimizer:
        opt = optim.AdamW(draw(0, 4), ema_decay=0.5)
        for _ in range(2):
            opt.step(draw(1, 4))
        if functions and name in ("max_norm", "clip_value", "ema_decay"):
            setattr(opt, name, FUNCTIONS[name][name])
        elif functions:
            opt.param_groups[0][name] = FUNCTIONS[name][name]
        return opt

    with_function, number = make(True), make(False)
    for opt, other, match in [
        (with_function, number, f"{name} was a function of the step, and functions are not saved: make the optimiser"),
        (number, with_function, f"{name} was a number, but is a function of the step here: make the optimiser"),
    ]:
        opt.save(tmp_path / "checkpoint")
        before = everything(other)
        with pytest.raises(ValueError, match=match):
            other.load_state_dict(opt.state_dict())
        with pytest.raises(ValueError, match=match):
            other.load(tmp_path / "checkpoint")
        assert_same(everything(other), before)
    again = make(True)
    again.step(draw(2, 4))
    with_function.save(tmp_path / "checkpoint")
    again.load(tmp_path / "checkpoint")
    for opt in (with_function, again):
        opt.step(draw(3, 4))
    assert_same(again.state_dict(), with_function.state_dict())
    assert_same(again.param_groups[0]["params"], with_function.param_groups[0]["params"])


# -- What does not fit is refused --------------------------------------------------------------------------------------


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    """A state dict with another value somewhere."""

    def act(saved: dict[str, Any]) -> None:
        for key in path[:-1]:
            saved = saved[key]
        saved[path[-1]] = to

    return act


def remove(*path: Any) -> Callable[[dict[str, Any]], None]:
    def act(saved: dict[str, Any]) -> None:
        for key in path[:-1]:
            saved = saved[key]
        del saved[path[-1]]

    return act


W, GROUP = ("state", "w"), ("param_groups", 0)
FIT = "must be as this optimiser has it; "
ARRAY = r"state_dict\['state'\]\['w'\]\['exp_avg'\] must be an array of floats of shape \(4,\)"
STEP = r"state_dict\['state'\]\['w'\]\['step'\] must be int64 of shape"
MU = r"state_dict\['state'\]\['w'\]\['mu_product'\] must be float64 of shape"

REFUSED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another version": (change("version", to=2), r"state_dict\['version'\] must be 1, got 2"),
    "no version": (remove("version"), r"state_dict\['version'\] must be 1, got None"),
    "another optimiser": (change("optimizer", to="AdamW"), "state_dict must be of NAdam, got one of AdamW"),
    "no optimiser": (remove("optimizer"), "state_dict must be of NAdam"),
    "no state of a parameter": (remove(*W), FIT + r"missing: \['w'\]"),
    "state of an unknown parameter": (change("state", "x", to={"step": np.array(2)}), FIT + r"unknown: \['x'\]"),
    "a state array missing": (remove(*W, "exp_avg"), FIT + r"missing: \['exp_avg'\]"),
    "a scalar missing": (remove(*W, "mu_product"), FIT + r"missing: \['mu_product'\]"),
    "the average missing": (remove(*W, "ema"), FIT + r"missing: \['ema'\]"),
    "the step missing": (remove(*W, "step"), FIT + r"missing: \['step'\]"),
    "an unknown state array": (change(*W, "sum", to=np.zeros(4, F32)), FIT + r"unknown: \['sum'\]"),
    "another shape": (change(*W, "exp_avg", to=np.zeros(5, F32)), ARRAY + r".*got float32 of shape \(5,\)"),
    "another number of axes": (change(*W, "exp_avg", to=np.zeros((4, 1), F32)), ARRAY),
    "integers": (change(*W, "exp_avg", to=np.zeros(4, int)), ARRAY + ".*got int64"),
    "bools": (change(*W, "exp_avg", to=np.zeros(4, bool)), ARRAY + ".*got bool"),
    "narrow state of float64": (
        change("state", "b", "exp_avg", to=np.zeros(2, np.float16)),
        r"exp_avg\['b'\] must be float64 of shape \(2,\)",
    ),
    "a master of another type": (
        change("state", "half", "master", to=np.zeros(3, np.float16)),
        r"master\['half'\] must be float32 of shape \(3,\)",
    ),
    "the step a float": (change(*W, "step", to=np.array(2.0)), STEP),
    "the step of 32 bits": (change(*W, "step", to=np.array(2, np.int32)), STEP),
    "the step negative": (change(*W, "step", to=np.array(-1)), STEP),
    "the step an array": (change(*W, "step", to=np.array([2])), STEP),
    "two steps in one group": (
        change(*W, "step", to=np.array(3)),
        r"state_dict\['state'\]\['w'\]\['step'\] must be 2 as in all its group, got 3",
    ),
    "a scalar NaN": (change(*W, "mu_product", to=np.array(math.nan)), MU),
    "a scalar of 32 bits": (change(*W, "mu_product", to=np.array(0.5, F32)), MU),
    "two scalars in one group": (change(*W, "mu_product", to=np.array(0.5)), "as in all its group, got 0.5"),
    "no groups": (remove("param_groups"), r"state_dict\['param_groups'\] must be a list of 1 groups, got NoneType"),
    "too few groups": (
        change("param_groups", to=[]),
        r"state_dict\['param_groups'\] must be a list of 1 groups, got 0",
    ),
    "other parameters": (
        change(*GROUP, "params", to=["b", "half", "v"]),
        r"must have the parameters \['b', 'half', 'w'\], got",
    ),
    "other decay": (
        change(*GROUP, "decayed", to=["b"]),
        r"must have the parameters with weight decay.*got \['b'\]",
    ),
    "a hyperparameter missing": (remove(*GROUP, "lr"), FIT + r"missing: \['lr'\]"),
    "an unknown hyperparameter": (change(*GROUP, "rate", to=1.0), FIT + r"unknown: \['rate'\]"),
    "lr negative": (change(*GROUP, "lr", to=-1.0), "lr must be finite and at least 0, got -1.0"),
    "lr NaN": (change(*GROUP, "lr", to=math.nan), "lr must be finite and at least 0, got nan"),
    "lr a string": (change(*GROUP, "lr", to="0.1"), "lr must be a number"),
    "betas out of range": (change(*GROUP, "betas", to=[0.5, 1.0]), r"betas\[1\] must be at least 0 and below 1"),
    "one beta": (change(*GROUP, "betas", to=0.5), "betas must be a pair of numbers"),
    "a switch that is a number": (change(*GROUP, "maximize", to=1), "maximize must be True or False"),
    "no options": (remove("options"), r"state_dict\['options'\] must be a dict, got NoneType"),
    "options a list": (change("options", to=[]), r"state_dict\['options'\] must be a dict, got list"),
    "max_norm negative": (change("options", "max_norm", to=-1.0), "max_norm must be at least 0"),
    "an unknown nonfinite": (change("options", "nonfinite", to="ignore"), "nonfinite must be 'propagate'"),
    "an option missing": (remove("options", "clip_value"), "clip_value"),
    "an unknown option": (change("options", "max_nor", to=1.0), "max_nor"),
    "no average": (change("options", "ema_decay", to=None), "ema_decay"),
    # Not even of the form that a dict of ours has.
    "a group that is no dict": (change("param_groups", to=[3]), r"state_dict\['param_groups'\]\[0\]"),
    "groups a dict": (change("param_groups", to={"0": 1}), r"state_dict\['param_groups'\]"),
    "parameters a number": (change(*GROUP, "params", to=3), "must have the parameters"),
    "names of functions a number": (change(*GROUP, "callables", to=3), r"state_dict\['param_groups'\]\[0\]"),
}
ONLY_AS_DICT: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no state": (remove("state"), r"state_dict\['state'\] must be a dict"),
    "state a list": (change("state", to=[]), r"state_dict\['state'\] must be a dict"),
    "state of a parameter a number": (change(*W, to=3), r"state_dict\['state'\]\['w'\]"),
    "an array of strings": (change(*W, "exp_avg", to="abcd"), ARRAY),
    "an array None": (change(*W, "exp_avg", to=None), ARRAY),
    "an array of lists that is none": (
        change(*W, "exp_avg", to=[[1.0], 2.0]),
        "exp_avg|inhomogeneous",
    ),
    "the step a string": (change(*W, "step", to="2"), STEP),
}


def write(path: Path, saved: dict[str, Any], params: dict[str, np.ndarray]) -> None:
    """A file as `save` writes it, of anything."""
    tensors = {f"state.{key}.{name}": array for key, own in saved["state"].items() for name, array in own.items()}
    metadata = {"ironstep": json.dumps(as_json(saved))}
    save_file(tensors | {f"params.{key}": array for key, array in params.items()}, path, metadata)


GRADS = {"w": draw(3, 4), "b": draw(4, 2), "half": draw(5, 3)}
OTHER_GRADS = {"w": draw(6, 4), "b": draw(7, 2), "half": draw(8, 3)}


def two_steps() -> tuple[dict[str, np.ndarray], Optimizer]:
    """An optimiser with all kinds of state."""
    params = {"w": draw(0, 4), "b": draw(1, 2).astype(np.float64), "half": draw(2, 3).astype(BF16)}
    opt = optim.NAdam(params, weight_decay=0.1, ema_decay=0.5, master_weights=True)
    for _ in range(2):
        opt.step(GRADS)
    return params, opt


@pytest.mark.parametrize("bad", [*REFUSED, *ONLY_AS_DICT])
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_changed(bad: str, tmp_path: Path) -> None:
    act, match = (REFUSED | ONLY_AS_DICT)[bad]
    params, opt = two_steps()
    # As good as it can be otherwise, so that there is something to change.
    (_, other), (_, twin) = two_steps(), two_steps()
    other.step(OTHER_GRADS)
    saved, good = opt.state_dict(), opt.state_dict()
    act(saved)
    before = everything(other)
    with pytest.raises((ValueError, TypeError), match=match):
        other.load_state_dict(saved)
    assert_same(everything(other), before)
    if bad in REFUSED:
        write(tmp_path / "checkpoint", saved, params)
        with pytest.raises((ValueError, TypeError), match=match):
            other.load(tmp_path / "checkpoint")
        assert_same(everything(other), before)
    write(tmp_path / "checkpoint", good, params)
    other.load(tmp_path / "checkpoint")
    for each in (other, twin):
        each.step(GRADS)
    assert_same(everything(other), everything(twin))


def test_a_state_dict_must_be_one() -> None:
    _, opt = two_steps()
    before = everything(opt)
    for wrong in (None, [], 3, "state"):
        with pytest.raises(TypeError, match="state_dict must be a dict that `state_dict` gave, got"):
            opt.load_state_dict(wrong)
    assert_same(everything(opt), before)


def test_a_state_dict_may_hold_the_optimisers_own_arrays() -> None:
    """Reversed, or of one another: they are read before anything is written."""
    a, b = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    opt = optim.SGD({"a": np.zeros(2), "b": np.zeros(2)}, momentum=0.9)
    opt.step({"a": a, "b": b})
    live = opt.state["momentum_buffer"]
    saved = opt.state_dict()
    saved["state"]["a"]["momentum_buffer"] = live["b"]
    saved["state"]["b"]["momentum_buffer"] = live["a"][::-1]
    opt.load_state_dict(saved)
    assert opt.state["momentum_buffer"]["a"].tolist() == [3.0, 4.0]
    assert opt.state["momentum_buffer"]["b"].tolist() == [2.0, 1.0]


def test_groups_that_somebody_holds_stay_those_of_the_optimiser() -> None:
    p = np.ones(1)
    opt = optim.SGD(p, lr=0.5)
    group = opt.param_groups[0]
    saved = opt.state_dict()
    group["lr"] = 0.25
    opt.load_state_dict(saved)
    assert opt.param_groups[0] is group
    assert group["lr"] == 0.5
    group["lr"] = 1.0
    opt.step(np.ones(1))
    assert p[0] == 0.0


def test_state_that_other_hyperparameters_keep_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    for opt, other in [
        (optim.SGD(draw(0, 3), momentum=0.9), optim.SGD(draw(0, 3))),
        (optim.AdamW(draw(0, 3), amsgrad=True), optim.AdamW(draw(0, 3))),
        (optim.RMSprop(draw(0, 3)), optim.RMSprop(draw(0, 3), centered=True)),
    ]:
        opt.step(draw(1, 3))
        opt.save(tmp_path / "checkpoint")
        before = everything(other)
        with pytest.raises(ValueError, match="has hyperparameters that keep other state"):
            other.load(tmp_path / "checkpoint")
        assert_same(everything(other), before)


def test_an_average_or_a_master_on_one_side_only_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    bare, full = optim.SGD(half := draw(0, 3).astype(BF16)), optim.SGD(draw(0, 3).astype(BF16), ema_decay=0.5)
    master = optim.SGD(half.copy(), master_weights=True)
    for opt, other, match in [
        (bare, full, "keeps an average"),
        (full, bare, "keeps an average"),
        (bare, master, r"missing: \['master'\]"),
        (master, bare, r"unknown: \['master'\]"),
    ]:
        opt.save(tmp_path / "checkpoint")
        before = everything(other)
        with pytest.raises(ValueError, match=match):
            other.load(tmp_path / "checkpoint")
        assert_same(everything(other), before)


def test_parameters_of_the_file_that_do_not_fit_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    params, opt = two_steps()
    saved, path = opt.state_dict(), tmp_path / "checkpoint"
    _, other = two_steps()
    other.step(OTHER_GRADS)
    before = everything(other)
    for wrong, match in [
        ({"w": draw(0, 5)}, r"the file's parameter 'w' must be float32 of shape \(4,\), got float32 of shape \(5,\)"),
        ({"w": draw(0, 4).astype(np.float64)}, "the file's parameter 'w' must be float32 .*got float64"),
        ({"w": draw(0, 4).astype(int)}, "the file's parameter 'w' must be float32 .*got int64"),
        ({"x": draw(0, 4)}, r"the file's parameters must be as this optimiser has it; unknown: \['x'\]"),
    ]:
        write(path, saved, params | wrong)
        with pytest.raises(ValueError, match=match):
            other.load(path)
        assert_same(everything(other), before)
    write(path, saved, {"b": params["b"], "half": params["half"]})
    with pytest.raises(ValueError, match=r"the file's parameters must be .* missing: \['w'\]"):
        other.load(path)
    opt.save(path, params=False)
    with pytest.raises(ValueError, match=r"was saved without parameters: use load\(path, params=False\)"):
        other.load(path)
    assert_same(everything(other), before)
    other.load(path, params=False)
    assert_same(other.state_dict(), saved)


def test_a_parameter_that_cannot_be_written_stops_a_load_before_anything_is_changed(tmp_path: Path) -> None:
    _, opt = two_steps()
    opt.save(tmp_path / "checkpoint")
    params, other = two_steps()
    other.step(OTHER_GRADS)
    before = everything(other)
    params["w"].flags.writeable = False
    with pytest.raises(ValueError, match=r"params\['w'\] must be writeable"):
        other.load(tmp_path / "checkpoint")
    params["w"].flags.writeable = True
    state = other.state["exp_avg_sq"]["b"]
    state.flags.writeable = False
    with pytest.raises(ValueError, match=r"exp_avg_sq\['b'\] must be writeable"):
        other.load(tmp_path / "checkpoint")
    state.flags.writeable = True
    assert_same(everything(other), before)
    other.load(tmp_path / "checkpoint")
    assert_same(everything(other), everything(opt))


# -- Files that are broken ---------------------------------------------------------------------------------------------


def with_header(header: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


def tensor(dtype: str, shape: list[int], start: int, end: int) -> str:
    return f'{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}}}'


BROKEN_FILES = {
    "empty": b"",
    "shorter than a length": b"\x10\0\0",
    "a length without a header": struct.pack("<Q", 100),
    "a huge length": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "a text": b"epoch,loss\n1,0.5\n" * 20,
    "a zip": b"PK\x03\x04" + bytes(100),
    "a NumPy file": b"\x93NUMPY\x01\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }" + bytes(80),
    "a pickle": b"\x80\x04\x95" + bytes(60),
    "no JSON": with_header("not JSON"),
    "no UTF-8": struct.pack("<Q", 2) + b"\xff\xfe",
    "a list": with_header("[]"),
    "much nesting": with_header("[" * 100_000),
    "an unknown dtype": with_header(tensor("Q9", [1], 0, 4), bytes(4)),
    "complex numbers": with_header(tensor("C64", [1], 0, 8), bytes(8)),
    "half bytes": with_header(tensor("F4", [1], 0, 0)),
    "offsets that leave a gap": with_header(tensor("F32", [1], 4, 8), bytes(8)),
    "offsets backwards": with_header(tensor("F32", [1], 8, 4), bytes(8)),
    "offsets outside": with_header(tensor("F32", [1 << 40], 0, 1 << 42), bytes(8)),
    "offsets that wrap around": with_header(tensor("F32", [1], 0, (1 << 64) - 1), bytes(8)),
    "a shape that wraps around": with_header(tensor("F32", [1 << 62, 4], 0, 0)),
    "a shape beyond NumPy": with_header(tensor("F32", [0, (1 << 64) - 1], 0, 0)),
    "axes beyond NumPy": with_header(tensor("F32", [0] * 80, 0, 0)),
    "a negative shape": with_header(tensor("F32", [-1], 0, 4), bytes(4)),
    "another size than the shape": with_header(tensor("F32", [2], 0, 4), bytes(4)),
    "bytes after the end": with_header(tensor("F32", [1], 0, 4), bytes(5)),
}


@pytest.mark.parametrize("broken", BROKEN_FILES)
def test_a_file_that_is_no_whole_safetensors_file_is_refused(broken: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(BROKEN_FILES[broken])
    _, opt = two_steps()
    before = everything(opt)
    with pytest.raises(ValueError):  # noqa: PT011 (the message may be NumPy's)
        opt.load(tmp_path / "checkpoint")
    assert_same(everything(opt), before)


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"format": "pt"}, *({"ironstep": text} for text in ("", "no", "[]", "3", "null", '"x"', "{}"))],
)
def test_a_file_of_another_tool_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    params, opt = two_steps()
    save_file({f"params.{name}": array + 1 for name, array in params.items()}, tmp_path / "checkpoint", metadata)
    before = everything(opt)
    with pytest.raises(ValueError):  # noqa: PT011 (the message may be that of the JSON reader)
        opt.load(tmp_path / "checkpoint")
    assert_same(everything(opt), before)


def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    _, opt = two_steps()
    opt.save(path)
    whole, before = path.read_bytes(), everything(opt)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    rng = np.random.default_rng(0)
    for length in {0, 7, 8, 9, header - 1, header, header + 1, len(whole) - 1, *rng.integers(len(whole), size=100)}:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="must be a whole safetensors file"):
            opt.load(path)
    assert_same(everything(opt), before)


def test_bytes_that_were_changed_at_random_are_refused_or_loaded_as_every_reader_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    _, source = two_steps()
    source.save(path)
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    rng = np.random.default_rng(0)
    refused, loaded, data_only = 0, 0, 0
    for _ in range(2000):
        changed = bytearray(whole)
        first = header if rng.random() < 0.3 else 0
        where = rng.integers(first, len(whole), size=rng.integers(1, 3))
        for at in where:
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        params, opt = two_steps()
        before = everything(opt)
        try:
            opt.load(path)
        except (ValueError, OSError):
            refused += 1
            assert_same(everything(opt), before)
            continue
        loaded += 1
        data_only += min(where) >= header
        theirs = load_file(path)
        saved = opt.state_dict()
        ours = {f"state.{key}.{name}": array for key, own in saved["state"].items() for name, array in own.items()}
        assert_same(ours | {f"params.{key}": array for key, array in params.items()}, theirs)
        with safe_open(path, framework="numpy") as file:
            settings = json.loads(file.metadata()["ironstep"])
        assert settings == as_json(saved)
        opt.nonfinite = "skip"
        opt.step(GRADS)
    assert refused > 1000
    assert loaded > data_only > 200


def test_a_file_that_cannot_be_read_is_an_os_error_that_names_it(tmp_path: Path) -> None:
    _, opt = two_steps()
    before = everything(opt)
    for path in (tmp_path, tmp_path / "missing", tmp_path / "missing" / "folder"):
        with pytest.raises(OSError, match=re.escape(str(path))):
            opt.load(path)
    assert_same(everything(opt), before)


# -- Writing -----------------------------------------------------------------------------------------------------------


def test_a_save_that_fails_says_where_and_leaves_what_was_there(tmp_path: Path) -> None:
    _, opt = two_steps()
    path = tmp_path / "checkpoint"
    opt.save(path)
    old, before = path.read_bytes(), everything(opt)
    (tmp_path / "folder").mkdir()
    for wrong in [
        tmp_path / "folder",
        tmp_path / "missing" / "checkpoint",
        path / "checkpoint",
        tmp_path / ("long" * 100),
        "",
    ]:
        with pytest.raises(OSError, match="was not written, and is as it was before") as caught:
            opt.save(wrong)
        assert str(wrong) in str(caught.value)
    assert path.read_bytes() == old
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "folder"], "nothing is left behind"
    assert os.listdir(tmp_path / "folder") == []
    assert_same(everything(opt), before)
    for wrong in (None, 3.0, b"bytes", ["list"]):
        with pytest.raises(TypeError):
            opt.save(wrong)


def run(script: str, *arguments: str) -> str:
    """What the script prints, run by a fresh interpreter, which must end well and in time."""
    # Newer Pythons warn of a fork with threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(os.name != "posix", reason="the limit is POSIX's")
def test_a_save_that_the_disk_has_no_room_for_leaves_what_was_there(tmp_path: Path) -> None:
    script = """
    import os, resource, sys
    import numpy as np
    from ironstep import optim

    path = os.path.join(sys.argv[1], "checkpoint")
    optim.SGD(np.ones(10)).save(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        optim.SGD(np.ones(100_000)).save(path)
    except OSError as error:
        print(error.errno, error)
    """
    message = run(script, str(tmp_path))
    assert "was not written, and is as it was before" in message
    assert str(tmp_path / "checkpoint") in message
    assert message.startswith(f"{errno.EFBIG} ")
    assert os.listdir(tmp_path) == ["checkpoint"]
    assert load_file(tmp_path / "checkpoint")["params"].shape == (10,)


@pytest.mark.skipif(os.name != "posix", reason="kill is POSIX's")
def test_a_save_that_is_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    """Each file has one number everywhere, so a mixture of two would show."""
    script = """
    import os, random, signal, sys, time
    import numpy as np
    from ironstep import optim
    from safetensors.numpy import load_file

    path = os.path.join(sys.argv[1], "checkpoint")
    opt = optim.AdamW({"w": np.zeros(100_000, np.float32)})
    param = opt.param_groups[0]["params"]["w"]
    random.seed(0)

    def write_for_ever(number):
        while True:
            number += 1
            param[...] = number
            opt.save(path)

    def read():
        theirs = load_file(path)["params.w"]
        opt.load(path)
        for array in (theirs, param):
            assert len(array) == 100_000 and (array == array[0]).all(), "two files mixed"
        return int(param[0])

    opt.save(path)
    seen = set()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            write_for_ever(read())
        try:
            until = time.monotonic() + random.uniform(0.01, 0.05)
            while time.monotonic() < until:
                seen.add(read())
        finally:
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL, "the writer ended by itself"
        seen.add(read())
    print(len(seen))
    """
    assert int(run(script, str(tmp_path))) > 5
    opt = optim.SGD(np.ones(3))
    opt.save(tmp_path / "checkpoint")
    opt.load(tmp_path / "checkpoint")


def test_two_threads_that_save_to_one_path_leave_a_whole_file_at_all_times(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    optimisers = [optim.SGD(np.full(20_000 * (k + 1), k, F32)) for k in range(2)]
    optimisers[0].save(path)
    errors: list[BaseException] = []
    left = [len(optimisers)]

    def write_often(opt: Optimizer) -> None:
        try:
            for _ in range(40):
                opt.save(path)
        except BaseException as error:
            errors.append(error)
        finally:
            left[0] -= 1

    threads = [threading.Thread(target=write_often, args=(opt,)) for opt in optimisers]
    for thread in threads:
        thread.start()
    try:
        while left[0] > 0 and not errors:
            array = load_file(path)["params"]
            assert (array == array[0]).all()
            assert len(array) == 20_000 * (int(array[0]) + 1)
    finally:
        for thread in threads:
            thread.join(60)
    assert not errors
    assert os.listdir(tmp_path) == ["checkpoint"]
