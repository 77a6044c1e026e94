"""The state of anything: one safetensors file for a whole run, and copies in memory to go back to."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from .. import _core
from ..functional._arrays import Array, unmasked

KIND = "ironstep run"
VERSION = 1
"""Of the files. A change that old readers cannot take raises it."""

DTYPES = frozenset(
    "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool".split()  # noqa: SIM905
)
"""The types that the file format has."""

OBJECTS = (
    "an object with state_dict() and load_state_dict(), a NumPy generator, an array, or a dict, list or tuple of these"
)


def path_of(name: str, value: Any) -> str:
    """The value as the text of a path, or the error that names the argument."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {value!r}")
    path = os.fspath(value)
    return path if isinstance(path, str) else os.fsdecode(path)


# -- Objects and their states ------------------------------------------------------------------------------------------


def is_stateful(obj: Any) -> bool:
    """Whether it has `state_dict` and `load_state_dict`."""
    return callable(getattr(obj, "state_dict", None)) and callable(getattr(obj, "load_state_dict", None))


class _Exact:
    """What an object's own `_snapshot()` gave, for its `_restore`: more than its state, which is what a file holds."""

    def __init__(self, value: Any) -> None:
        self.value = value


def state_of(obj: Any, name: str, exact: bool = False) -> Any:
    """Its state: a nest of dicts, lists, tuples, arrays and plain values. Arrays may be the object's own.

    `exact`: for `restore` only, and then by the object's `_snapshot` and `_restore`, if it has them.
    """
    if is_stateful(obj) and not isinstance(obj, type):
        if exact and hasattr(obj, "_snapshot"):
            return _Exact(obj._snapshot())
        return obj.state_dict()
    if isinstance(obj, np.random.Generator):
        return obj.bit_generator.state
    if isinstance(obj, np.ndarray):
        return unmasked(obj, name)
    if isinstance(obj, Mapping):
        return {key: state_of(item, f"{name}.{key}", exact) for key, item in obj.items()}
    if isinstance(obj, (list, tuple)):
        items = [state_of(item, f"{name}.{i}", exact) for i, item in enumerate(obj)]
        return items if isinstance(obj, list) else tuple(items)
    raise TypeError(f"{name} must be {OBJECTS}, got {type(obj).__name__}")


def check_kind(obj: Any, name: str) -> None:
    """Refuses what has no state that can be saved; asks nobody for one."""
    if isinstance(obj, Mapping) and not is_stateful(obj):
        for key, item in obj.items():
            check_kind(item, f"{name}.{key}")
    elif isinstance(obj, (list, tuple)) and not is_stateful(obj):
        for i, item in enumerate(obj):
            check_kind(item, f"{name}.{i}")
    elif isinstance(obj, type) or not (is_stateful(obj) or isinstance(obj, (np.random.Generator, np.ndarray))):
        raise TypeError(f"{name} must be {OBJECTS}, got {obj if isinstance(obj, type) else type(obj).__name__}")


def put(obj: Any, saved: Any, name: str) -> None:
    """Gives an object a state that `state_of` gave. Arrays are written in place."""
    if isinstance(saved, _Exact):
        obj._restore(saved.value)
    elif is_stateful(obj):
        obj.load_state_dict(saved)
    elif isinstance(obj, np.random.Generator):
        if not isinstance(saved, Mapping):
            raise TypeError(f"{name} is a NumPy generator, but its saved state is {_kind(saved)}")
        obj.bit_generator.state = dict(saved)
    elif isinstance(obj, np.ndarray):
        check_like(saved, obj, name)
        obj[...] = saved
    elif isinstance(obj, Mapping):
        if not isinstance(saved, Mapping):
            raise TypeError(f"{name} is a dict, but its saved state is {_kind(saved)}")
        same_names(obj, saved, name)
        for key, item in obj.items():
            put(item, saved[key], f"{name}.{key}")
    elif isinstance(obj, (list, tuple)):
        if not isinstance(saved, (list, tuple)) or len(saved) != len(obj):
            size = f"{len(saved)}" if isinstance(saved, (list, tuple)) else _kind(saved)
            raise ValueError(f"{name} has {len(obj)} items, but its saved state has {size}")
        for i, pair in enumerate(zip(obj, saved, strict=True)):
            put(*pair, f"{name}.{i}")
    else:
        raise TypeError(f"{name} must be {OBJECTS}, got {type(obj).__name__}")


def same_names(here: Mapping[Any, Any], saved: Mapping[Any, Any], where: str) -> None:
    """Refuses a saved dict whose keys are not those of this one; the error lists both kinds of difference."""
    missing = [key for key in here if key not in saved]
    unknown = [key for key in saved if key not in here]
    if missing or unknown:
        parts = [
            f"{what} {', '.join(map(repr, keys[:10]))}"
            for what, keys in (("lacks", missing), ("has besides", unknown))
            if keys
        ]
        raise ValueError(
            f"{where} must be saved under the same names as it has here, but the saved state {' and '.join(parts)}"
        )


def copied(nest: Any) -> Any:
    """The nest with copies of all arrays."""
    if isinstance(nest, np.ndarray):
        return np.array(nest, order="K", subok=False)
    if isinstance(nest, Mapping):
        return {key: copied(item) for key, item in nest.items()}
    if isinstance(nest, (list, tuple)):
        items = [copied(item) for item in nest]
        return items if isinstance(nest, list) else tuple(items)
    return nest


def refreshed(old: Any, new: Any) -> Any:
    """As `copied(new)`, but into the arrays of `old`, an earlier copy, where they fit."""
    if isinstance(new, np.ndarray):
        if isinstance(old, np.ndarray) and old.shape == new.shape and old.dtype == new.dtype:
            old[...] = new
            return old
        return copied(new)
    if isinstance(new, Mapping):
        olds = old if isinstance(old, Mapping) else {}
        return {key: refreshed(olds.get(key), item) for key, item in new.items()}
    if isinstance(new, (list, tuple)):
        held = old if isinstance(old, (list, tuple)) and len(old) == len(new) else [None] * len(new)
        items = [refreshed(*pair) for pair in zip(held, new, strict=True)]
        return items if isinstance(new, list) else tuple(items)
    return new


def check_like(saved: Any, here: Any, name: str) -> None:
    """Refuses a saved state whose arrays have other names, shapes or types than one of the same object has here."""
    if isinstance(here, np.ndarray):
        if not isinstance(saved, np.ndarray):
            raise TypeError(f"{name} is an array, but its saved state is {_kind(saved)}")
        if saved.shape != here.shape or saved.dtype.newbyteorder("=") != here.dtype.newbyteorder("="):
            raise ValueError(
                f"{name} must be {saved.dtype.name} of shape {saved.shape} as it was saved, got {here.dtype.name} of "
                f"shape {here.shape}"
            )
    elif isinstance(here, Mapping):
        if not isinstance(saved, Mapping):
            raise TypeError(f"{name} is a dict, but its saved state is {_kind(saved)}")
        same_names(here, saved, name)
        for key, item in here.items():
            check_like(saved[key], item, f"{name}.{key}")
    elif isinstance(here, (list, tuple)):
        if not isinstance(saved, (list, tuple)) or len(saved) != len(here):
            size = f"{len(saved)}" if isinstance(saved, (list, tuple)) else _kind(saved)
            raise ValueError(f"{name} has {len(here)} items, but its saved state has {size}")
        for i, pair in enumerate(zip(saved, here, strict=True)):
            check_like(*pair, f"{name}.{i}")


def snapshot(obj: Any, name: str = "object") -> Any:
    """A copy of the state of anything that `save_state` takes, for `restore`."""
    return copied(state_of(obj, name, exact=True))


def restore(obj: Any, snap: Any, name: str = "object") -> None:
    """Puts an object back to a `snapshot` of it."""
    put(obj, snap, name)


def apply(objects: Mapping[str, Any], saved: Mapping[str, Any], where: str) -> None:
    """Gives all objects their saved states, or raises an error that names the one that refused, and changes nothing."""
    before = {name: snapshot(obj, name) for name, obj in objects.items()}
    touched: list[str] = []
    try:
        for name, obj in objects.items():
            touched.append(name)
            put(obj, saved[name], name)
    except BaseException as error:
        refused = touched.pop()
        with suppress(Exception):  # It may refuse what it had, too.
            restore(objects[refused], before[refused], refused)
        for name in reversed(touched):
            restore(objects[name], before[name], name)
        if not isinstance(error, Exception):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{where}: {refused} refused its state, and nothing was changed: {error}") from error


# -- Files -------------------------------------------------------------------------------------------------------------


def save_state(path: str | os.PathLike[str], /, **objects: Any) -> None:
    """Writes the state of any number of objects to one safetensors file, for any loop.

    An object is something with `state_dict()` and `load_state_dict(state)` (layers, optimisers, `Batches`, callbacks,
    ...), a `numpy.random.Generator`, an array, or a nest of dicts, lists and tuples of these. A state is a nest of
    dicts, lists, tuples, arrays, NumPy scalars, strings, integers of any size, floats (NaN, infinities and -0.0
    included), bools and None. Arrays are tensors of the file under readable names (`model.0.weight`,
    `opt.state.0.weight.exp_avg`), everything else is JSON in its metadata.

    The file is written beside `path`, brought to the disk and renamed, so that a crash at any moment leaves the old
    file or the new one.

    Args:
        path: Where to write. Its folder must exist.
        **objects: What to save, by the names that `load_state` is to find it under.

    Raises:
        TypeError: Something is none of these; the message says where.
        ValueError: An object has the name "partial", which is that of an option of `load_state`.
        OSError: The file could not be written; what was there is still there.

    Example:
        >>> import numpy as np, os, tempfile
        >>> from ironstep import train
        >>> weights, rng = {"w": np.ones(2)}, np.random.default_rng(0)
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = os.path.join(folder.name, "run.safetensors")
        >>> train.save_state(path, weights=weights, rng=rng)
        >>> first = rng.random()
        >>> weights["w"][...] = 0
        >>> train.load_state(path, weights=weights, rng=rng)
        >>> weights["w"], rng.random() == first
        (array([1., 1.]), True)
        >>> folder.cleanup()
    """
    if "partial" in objects:
        raise ValueError("objects must not have the name 'partial': load_state has an option that is called so")
    write(path, objects)


def load_state(path: str | os.PathLike[str], /, *, partial: bool = False, **objects: Any) -> None:
    """Reads a file that `save_state`, or a checkpoint of `fit`, wrote into objects of the same kinds.

    All or nothing: everything is read and checked first, and if one object refuses its state, those that have taken
    theirs get back what they had.

    Args:
        path: The file.
        partial: Whether the file may hold more than is asked for: `load_state(path, model=model, partial=True)` takes
            the model out of a checkpoint of `fit`.
        **objects: What to load into, by the names that it was saved under.

    Raises:
        ValueError: The file is broken, a name is missing or unknown, or an object refused its state; the message names
            it. Nothing was changed.
        TypeError: An object, or what was saved for it, is of a wrong type. Nothing was changed.
        OSError: The file could not be read.

    Example:
        >>> import numpy as np, os, tempfile
        >>> from ironstep import nn, train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "run.safetensors")
        ...     train.save_state(path, model=nn.Linear(2, 1, seed=0))
        ...     train.load_state(path, net=nn.Linear(2, 1, seed=1))
        Traceback (most recent call last):
            ...
        ValueError: .../run.safetensors must hold the names that are asked for; it lacks 'net' and has besides 'model'
    """
    load(path, objects, partial)


def read_state(path: str | os.PathLike[str], /) -> dict[str, Any]:
    """Reads a file that `save_state`, or a checkpoint of `fit`, wrote, without objects to load it into.

    Args:
        path: The file.

    Returns:
        The states by name, each as its object's `state_dict` gave it: `load_matching` and `load_state_dict` take them.
        All arrays are new.

    Raises:
        ValueError: It is no such file, or broken.
        OSError: It could not be read.

    Example:
        >>> import numpy as np, os, tempfile
        >>> from ironstep import train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "run.safetensors")
        ...     train.save_state(path, scaling={"mean": np.ones(2)})
        ...     train.read_state(path)
        {'scaling': {'mean': array([1., 1.])}}
    """
    return read(path_of("path", path))


def write(path: str | os.PathLike[str], objects: Mapping[str, Any]) -> None:
    """`save_state` for names that are no identifiers."""
    encoder = _Encoder()
    nodes = {name: encoder.encode(state_of(obj, name), name) for name, obj in objects.items()}
    import json  # Not at the top: it would be a tenth of the time to import the package.

    text = json.dumps({"kind": KIND, "version": VERSION, "objects": nodes}, allow_nan=False)
    _core.save_safetensors(os.fspath(path), encoder.tensors, text)


def load(path: str | os.PathLike[str], objects: Mapping[str, Any], partial: bool = False) -> None:
    """`load_state` for names that are no identifiers."""
    saved = read(path)
    missing = [name for name in objects if name not in saved]
    unknown = [] if partial else [name for name in saved if name not in objects]
    if missing or unknown:
        lacks = f"lacks {', '.join(map(repr, missing))}" if missing else ""
        more = f"has besides {', '.join(map(repr, unknown))}" if unknown else ""
        raise ValueError(
            f"{os.fspath(path)} must hold the names that are asked for; it {' and '.join(filter(None, [lacks, more]))}"
        )
    apply(objects, saved, os.fspath(path))


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The states in a file by name. All arrays are new."""
    where = os.fspath(path)
    tensors, text = _core.load_safetensors(where)
    import json

    try:
        content = json.loads(text) if text is not None else None
    except ValueError as error:
        raise ValueError(f"{where} must be a file that `save_state` or `fit` wrote: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ValueError(f"{where} must be a file that `save_state` or `fit` wrote; its metadata says otherwise")
    if content.get("version") != VERSION:
        raise ValueError(f"{where} must be of version {VERSION}, got {content.get('version')!r}; use a newer ironstep")
    arrays: dict[str, Array] = {}
    for name, dtype, array in tensors:
        if dtype == "bfloat16":
            import ml_dtypes  # Whoever has such arrays has it.

            array = array.view(ml_dtypes.bfloat16)
        arrays[name] = array
    try:
        return {name: _decode(node, arrays) for name, node in content["objects"].items()}
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{where} must be a file that `save_state` or `fit` wrote; it is broken at {error}") from error


class _Encoder:
    """Makes JSON of nests. What JSON has no word for is a dict with one key, which says what it is."""

    def __init__(self) -> None:
        self.tensors: list[tuple[str, Array]] = []
        self._names = {"__metadata__"}

    def encode(self, value: Any, where: str) -> Any:
        """The node of a value; its arrays go into `tensors`."""
        if value is None or isinstance(value, (bool, str)):
            return value if value is None or isinstance(value, bool) else str(value)
        if isinstance(value, np.ndarray):
            return {"array": self._add(unmasked(value, where), where)}
        if isinstance(value, np.generic):  # float64 is a float as well
            return {"scalar": self._add(np.asarray(value), where)}
        if isinstance(value, int):
            # Longer ones are no numbers for other readers of JSON, and Python reads only so many digits.
            return int(value) if abs(value) < 1 << 53 else {"int": hex(value)}
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        if isinstance(value, Mapping):
            items = [(key, self.encode(item, f"{where}.{key}")) for key, item in value.items()]
            if all(isinstance(key, str) for key, _ in items):
                return {"dict": dict(items)}
            if all(isinstance(key, (str, int)) and not isinstance(key, bool) for key, _ in items):
                return {"items": [[key, item] for key, item in items]}
            raise TypeError(f"{where} must have keys that are strings or integers, got {list(value)!r}")
        if isinstance(value, (list, tuple)):
            nodes = [self.encode(item, f"{where}.{i}") for i, item in enumerate(value)]
            return nodes if isinstance(value, list) else {"tuple": nodes}
        raise TypeError(
            f"{where} must be made of dicts, lists, tuples, arrays, strings, numbers, bools and None to be saved, got "
            f"{type(value).__name__}"
        )

    def _add(self, array: Array, where: str) -> str:
        if array.dtype.name not in DTYPES:
            raise TypeError(f"{where} must be an array of floats, integers or bools to be saved, got {array.dtype}")
        # For people: `apply` goes by the structure, so dots that optimisers escape need no mark here.
        name = stem = where.replace("\\.", ".").encode("utf-8", "replace").decode()
        n = 1
        while name in self._names:
            n += 1
            name = f"{stem}#{n}"
        self._names.add(name)
        # C-contiguous and in the byte order of the file. Not `ascontiguousarray`, which makes one axis of none.
        self.tensors.append((name, np.asarray(array, array.dtype.newbyteorder("="), order="C")))
        return name


def _decode(node: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(node, list):
        return [_decode(item, arrays) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    return _DECODERS[kind](value, arrays)


_DECODERS: dict[str, Callable[[Any, Mapping[str, Array]], Any]] = {
    "array": lambda value, arrays: arrays[value],
    "scalar": lambda value, arrays: arrays[value][()],
    "int": lambda value, arrays: int(value, 16),
    "float": lambda value, arrays: float(value),
    "dict": lambda value, arrays: {key: _decode(item, arrays) for key, item in value.items()},
    "items": lambda value, arrays: {key: _decode(item, arrays) for key, item in value},
    "tuple": lambda value, arrays: tuple(_decode(item, arrays) for item in value),
}


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"
