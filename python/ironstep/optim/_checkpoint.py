"""The state of an optimiser as a dict and as a file, and back: all of it, or an error and nothing changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ._hyper import RULES, ParamGroup

if TYPE_CHECKING:
    from ._base import Around, Optimizer

Array: TypeAlias = NDArray[Any]

VERSION = 1
"""Of what `settings` gives. A change that old readers cannot take raises it."""


def settings(opt: Optimizer) -> dict[str, Any]:
    """What is no array: hyperparameters by group, and the options. Functions of the step are named, not kept."""
    keys, owners = opt._tree.keys(), opt._leaf_groups()
    groups = []
    for i, group in enumerate(opt._groups):
        values = {name: value for name, value in group.values_by_name.items() if name not in group.callables}
        members = [key for key, owner in zip(keys, owners, strict=True) if owner == i]
        decayed = [key for key, flag in zip(members, opt._decayed[i], strict=True) if flag]
        groups.append(
            values | {"callables": group.callables, "frozen": group.frozen, "params": members, "decayed": decayed}
        )
    around = {name: value for name, value in opt._around.values.items() if not callable(value)}
    return {
        "version": VERSION,
        "optimizer": type(opt).__name__,
        "param_groups": groups,
        "options": around | {"callables": opt._around.callables()},
    }


def state(opt: Optimizer, copy: bool) -> dict[str, dict[str, Array]]:
    """For each parameter, by its key: `step`, the state arrays, scalar state, the master and the average."""
    per_leaf = _per_leaf(opt)
    out: dict[str, dict[str, Array]] = {}
    for i, (key, group) in enumerate(zip(opt._tree.keys(), opt._leaf_groups(), strict=True)):
        out[key] = {"step": np.array(opt._steps[group], np.int64)}
        for name, array in _arrays(per_leaf, i).items():
            out[key][name] = np.array(array, order="K") if copy else array
        scalars = next(part.scalars for part in opt._parts if part.group == group)
        for name, value in zip(_scalar_names(opt), scalars, strict=True):
            out[key][name] = np.array(value, np.float64)
    return out


def load(opt: Optimizer, saved: Mapping[str, Any], state: Any, params: Mapping[str, Array] | None) -> None:
    """Takes settings, state and parameters if all of them fit."""
    groups = _groups(opt, saved)
    around = _around(opt, saved.get("options"))
    keys, owners = opt._tree.keys(), opt._leaf_groups()
    _same_keys("state_dict['state']", keys, state)
    if params is not None:
        _same_keys("the file's parameters", keys, params)
    per_leaf, numbers_of_leaf = _per_leaf(opt), ["step", *_scalar_names(opt)]
    # An array of the same dtype is copied to, so that whoever holds it sees the new values; another one is replaced.
    copies: list[tuple[Array, Array]] = []
    replaced: dict[str, list[Any]] = {name: list(arrays) for name, arrays in per_leaf.items()}
    numbers: list[dict[str, Any]] = [{} for _ in opt._groups]
    for i, (key, owner, param) in enumerate(zip(keys, owners, opt._plan.params(), strict=True)):
        own, where = state[key], f"state_dict['state'][{key!r}]"
        here = _arrays(per_leaf, i)
        _same_keys(where, [*numbers_of_leaf, *here], own)
        for name in numbers_of_leaf:
            value = _number(own[name], np.int64 if name == "step" else np.float64, f"{where}[{name!r}]")
            if numbers[owner].setdefault(name, value) != value:
                raise ValueError(
                    f"{where}[{name!r}] must be {numbers[owner][name]!r} as in all its group, got {value!r}"
                )
        for name, old in here.items():
            # A file's arrays are new; others may be those of this optimiser, under any name.
            value = np.array(own[name]) if params is None else np.asarray(own[name])
            if value.shape != old.shape or not _is_float(value.dtype):
                raise ValueError(
                    f"{where}[{name!r}] must be an array of floats of shape {old.shape}, got {value.dtype} of shape "
                    f"{value.shape}"
                )
            if value.dtype != old.dtype:
                old = replaced[name][i] = np.empty_like(param, dtype=value.dtype, order="K", subok=False)
            copies.append((old, value))
        if params is not None:
            value = params[key]
            if value.shape != param.shape or value.dtype != _native(param.dtype):
                raise ValueError(
                    f"the file's parameter {key!r} must be {param.dtype} of shape {param.shape}, got {value.dtype} of "
                    f"shape {value.shape}"
                )
            copies.append((param, value))
    master, ema = replaced.pop("master", None), replaced.pop("ema", None)
    frozen = [group.frozen for group in groups]
    opt._replan(opt._groups, opt._decayed, replaced, master, ema, opt._grouped, frozen)
    # From here on nothing can fail.
    for target, value in copies:
        target[...] = value
    # Into the groups that there are: somebody may hold them.
    for group, new in zip(opt._groups, groups, strict=True):
        group.take(new)
    opt._around = around
    opt._set_steps([own["step"] for own in numbers])
    for part in opt._parts:
        part.scalars = [numbers[part.group][name] for name in _scalar_names(opt)]


def write(opt: Optimizer, path: str, with_params: bool) -> None:
    """Writes a safetensors file: tensors `state.<key>.<name>` and `params.<key>`, the settings as JSON metadata."""
    arrays = {
        _file_key("state", key, name): array
        for key, own in state(opt, copy=False).items()
        for name, array in own.items()
    }
    if with_params:
        for key, leaf in zip(opt._tree.keys(), opt._plan.params(), strict=True):
            arrays[_file_key("params", key)] = leaf
    # C-contiguous and in the byte order of the file. Not `ascontiguousarray`, which makes one axis of none.
    ready = [(name, np.asarray(array, _native(array.dtype), order="C")) for name, array in arrays.items()]
    import json  # Not at the top: it would be a tenth of the time to import the package.

    _core.save_safetensors(path, ready, json.dumps(_without_inf(settings(opt)), allow_nan=False))


def read(opt: Optimizer, path: str, with_params: bool) -> None:
    """Loads a file that `write` wrote."""
    tensors, metadata = _core.load_safetensors(path)
    if metadata is None:
        raise ValueError(f"{path} must be a file that `save` wrote; it has no metadata of ironstep")
    state: dict[str, dict[str, Array]] = {}
    params: dict[str, Array] = {}
    for tensor, dtype, array in tensors:
        if dtype == "bfloat16":
            import ml_dtypes  # Whoever has such parameters has it.

            array = array.view(ml_dtypes.bfloat16)
        kind, _, key = tensor.partition(".")
        if kind == "params":
            params[key] = array
        elif kind == "state":
            key, _, name = key.rpartition(".")
            state.setdefault(key, {})[name] = array
    if with_params and not params:
        raise ValueError(f"{path} was saved without parameters: use load(path, params=False)")
    import json

    settings = json.loads(metadata)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must be a file that `save` wrote; its metadata of ironstep is no dict")
    load(opt, _with_inf(settings), state, params if with_params else None)


def _without_inf(value: Any) -> Any:
    """JSON has no infinity: it becomes a string."""
    if isinstance(value, dict):
        return {key: _without_inf(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_inf(item) for item in value]
    return "inf" if value == math.inf else value


def _with_inf(value: Any) -> Any:
    """The inverse. Lists of keys are left alone: a parameter may be called inf."""
    if isinstance(value, dict):
        return {key: item if key in ("params", "decayed") else _with_inf(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_inf(item) for item in value]
    return math.inf if value == "inf" else value


def _groups(opt: Optimizer, saved: Mapping[str, Any]) -> list[ParamGroup]:
    version, optimizer, theirs = (saved.get(name) for name in ("version", "optimizer", "param_groups"))
    if version != VERSION:
        raise ValueError(f"state_dict['version'] must be {VERSION}, got {version!r}; is it a state_dict of ironstep?")
    if optimizer != type(opt).__name__:
        raise ValueError(f"state_dict must be of {type(opt).__name__}, got one of {optimizer}")
    ours = settings(opt)["param_groups"]
    if not isinstance(theirs, Sequence) or len(theirs) != len(ours):
        got = len(theirs) if isinstance(theirs, Sequence) else type(theirs).__name__
        raise ValueError(f"state_dict['param_groups'] must be a list of {len(ours)} groups, got {got}")
    groups = []
    for i, (group, here, there) in enumerate(zip(opt._groups, ours, theirs, strict=True)):
        where = f"state_dict['param_groups'][{i}]"
        if not isinstance(there, Mapping):
            raise TypeError(f"{where} must be a dict, got {type(there).__name__}")
        for what, meaning in (("params", "parameters"), ("decayed", "parameters with weight decay")):
            if there.get(what) != here[what]:
                raise ValueError(f"{where} must have the {meaning} {here[what]}, got {there.get(what)}")
        _same_callables(here["callables"], there.get("callables", []), where)
        _same_keys(where, list(here), {"frozen": False} | dict(there))
        frozen = there.get("frozen", False)  # Files from before groups could be frozen have none.
        if not isinstance(frozen, bool):
            raise TypeError(f"{where}['frozen'] must be True or False, got {frozen!r}")
        # In the order of the class, with our functions of the step where there are any.
        values = {name: there.get(name, own) for name, own in group.values_by_name.items()}
        new = ParamGroup(type(opt), values, group["params"])
        if new.rule != group.rule:
            raise ValueError(
                f"{where} has hyperparameters that keep other state ({new.rule}) than this optimiser does "
                f"({group.rule}): make the optimiser with {new!r}"
            )
        new._frozen = frozen
        groups.append(new)
    return groups


def _around(opt: Optimizer, saved: Any) -> Around:
    if not isinstance(saved, Mapping):
        raise ValueError(f"state_dict['options'] must be a dict, got {type(saved).__name__}")
    _same_callables(opt._around.callables(), saved.get("callables", []), "state_dict['options']")
    here = [name for name, value in opt._around.values.items() if not callable(value)]
    _same_keys("state_dict['options']", [*here, "callables"], saved)
    around = type(opt._around)()
    for name, own in opt._around.values.items():
        around.set(name, saved.get(name, own))
    if (around.values["ema_decay"] is None) != (opt._ema is None):
        raise ValueError(
            "state_dict must come from an optimiser that keeps an average of the parameters if this one does, and only "
            "then: give both an ema_decay, or neither"
        )
    return around


def _per_leaf(opt: Optimizer) -> dict[str, list[Array | None]]:
    """The state arrays, the master and the average, under the names that checkpoints use."""
    arrays: dict[str, list[Array | None]] = {name: list(arrays) for name, arrays in opt._state.items()}
    if opt._master is not None:
        arrays["master"] = opt._master
    if opt._ema is not None:
        arrays["ema"] = list(opt._ema)
    return arrays


def _arrays(per_leaf: dict[str, list[Array | None]], i: int) -> dict[str, Array]:
    """Those that parameter `i` has."""
    return {name: array for name, arrays in per_leaf.items() if (array := arrays[i]) is not None}


def _scalar_names(opt: Optimizer) -> list[str]:
    return [name for name, _ in RULES[opt._groups[0].rule][2]]


def _number(value: Any, kind: type[np.int64 | np.float64], where: str) -> Any:
    array = np.asarray(value)
    if array.shape != () or array.dtype != kind or not array >= 0:
        raise ValueError(f"{where} must be {kind.__name__} of shape () and at least 0, got {value!r}")
    return array.item()


def _file_key(*parts: str) -> str:
    """Joined by dots. A lone parameter has an empty key, which is left out."""
    return ".".join(part for part in parts if part)


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.char in "efd" or dtype.name == "bfloat16"


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def _same_keys(where: str, wanted: Sequence[str], got: Any) -> None:
    if not isinstance(got, Mapping):
        raise TypeError(f"{where} must be a dict, got {type(got).__name__}")
    known = set(wanted)
    missing = [key for key in wanted if key not in got]
    unknown = [key for key in got if key not in known]
    if missing or unknown:
        differing = [f"{what}: {keys[:10]}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys]
        raise ValueError(f"{where} must be as this optimiser has it; {'; '.join(differing)}")


def _same_callables(here: list[str], there: Any, where: str) -> None:
    if not isinstance(there, Sequence) or isinstance(there, str):
        raise TypeError(f"{where}['callables'] must be a list of names, got {there!r}")
    for name in there:
        if name not in here:
            raise ValueError(
                f"{where}: {name} was a function of the step, and functions are not saved: make the optimiser with "
                f"{name}=<the same function> before loading"
            )
    for name in here:
        if name not in there:
            raise ValueError(
                f"{where}: {name} was a number, but is a function of the step here: make the optimiser with a number, "
                "load, and set the function afterwards"
            )
