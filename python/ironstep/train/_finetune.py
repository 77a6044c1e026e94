"""Fine-tuning: weights from elsewhere by name, and parameter groups by layer."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _core
from ..functional._arrays import Array, is_float, number, overlap, unmasked
from ..optim._hyper import Limit, ParamGroup, Scalar
from ._state import read_state

if TYPE_CHECKING:
    from ..nn import Layer

AT_LEAST_ONE = Limit(1.0, float("inf"), "finite and at least 1", closed=False)


def named(nest: Any, where: str) -> dict[str, Any]:
    """The leaves of nested dicts by name: keys joined by dots, in the order of the dicts."""
    if not isinstance(nest, Mapping):
        raise TypeError(f"{where} must be a dict of arrays, got {type(nest).__name__}")
    flat: dict[str, Any] = {}
    for key, value in nest.items():
        if not isinstance(key, str):
            raise TypeError(f"{where} must have strings as keys, got {key!r}")
        inner = (
            {f"{key}.{rest}": leaf for rest, leaf in named(value, f"{where}[{key!r}]").items()}
            if isinstance(value, Mapping)
            else {key: value}
        )
        if twice := [name for name in inner if name in flat]:
            raise ValueError(f"{where} must have each name once, but two arrays are called {twice[0]!r}")
        flat.update(inner)
    return flat


class MatchReport(NamedTuple):
    """What `load_matching` did. Its `str` is a readable summary."""

    loaded: tuple[str, ...]
    """Names in the target that were written."""
    missing: tuple[str, ...]
    """Names in the target that the state dict lacks; they keep their values."""
    unexpected: tuple[str, ...]
    """Names in the state dict, as it has them, that the target lacks."""
    mismatched: dict[str, str]
    """Names that both have, but whose arrays do not fit; and why."""

    def __str__(self) -> str:
        lines = [f"loaded: {len(self.loaded)} of {len(self.loaded) + len(self.missing) + len(self.mismatched)}"]
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("mismatched", [f"{name} ({why})" for name, why in self.mismatched.items()]),
        ):
            if names:
                lines.append(f"{title}: {', '.join(names)}")
        return "\n".join(lines)


def load_matching(
    target: Layer | Mapping[str, Any],
    state_dict: Mapping[str, Any] | str | os.PathLike[str],
    *,
    name: str | None = None,
    rename: Callable[[str], str | None] | Mapping[str, str] | None = None,
) -> MatchReport:
    """Copies into a model what fits by name and shape, and reports the rest: a pre-trained body under a new head.

    Float types are converted to those of the target, unless a value would become infinite; other types (a counter) must
    be the same. Nothing is aliased: the state dict may hold arrays of the target itself. Two names in the target may be
    one array (tied weights) if they get the same values. An optimiser with `master_weights` or `ema_decay` that exists
    already must be told by `opt.sync_master()` and `opt.sync_ema()`.

    Args:
        target: A layer, or a dict of arrays (nested ones: names are joined by dots). Written in place.
        state_dict: Arrays by name, also nested: from `state_dict()` of a layer, `np.load` (which gives bfloat16 as
            `"|V2"`), safetensors, or torch (tensors on the CPU are taken as arrays, those of bfloat16 need `.float()`).
            Or the path of a file that `save_state`, a `Checkpoint` or the command line wrote.
        name: Of a file: the name that the weights were saved under, as in `save_state(path, model=model)`; it may be
            left out if there is only one.
        rename: The name in the target for a name in `state_dict`: a dict, whose keys must all be there (other names
            stay as they are), or a function; for one that is to be left out it returns None.

    Returns:
        The report. Look at it, or at `assert not report.missing`.

    Raises:
        ValueError: Not one array fits, which is a wrong file or needs `rename`; two arrays get the same name; an array
            of the target is read-only or has elements that share memory; or two of them overlap in memory and would get
            different values. Nothing was changed.
        TypeError: An argument or an array is of a wrong type. Nothing was changed.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn, train
        >>> old = nn.Sequential(nn.Linear(4, 8, seed=0), nn.ReLU(), nn.Linear(8, 5, seed=1))
        >>> new = nn.Sequential(nn.Linear(4, 8, seed=2), nn.ReLU(), nn.Linear(8, 3, seed=3))
        >>> print(train.load_matching(new, old.state_dict()))
        loaded: 2 of 4
        mismatched: 2.weight (must have shape (3, 8), got (5, 8)), 2.bias (must have shape (3,), got (5,))
        >>> bool((new.params["0.weight"] == old.params["0.weight"]).all())
        True

    References:
        Yosinski et al., How transferable are features in deep neural networks?, arXiv 1411.1792.
    """
    from ..nn import Layer  # Not at the top: loops without our layers need not load them.

    given = named(_content(state_dict, name), "state_dict")
    own = target.params | target.buffers if isinstance(target, Layer) else named(target, "target")
    for name, array in own.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"target[{name!r}] must be a NumPy array, got {type(array).__name__}")
    names = _renamed(given, rename)
    unexpected = tuple(old for old in given if names[old] not in own)
    source = {new: old for old, new in names.items() if new in own}
    mismatched: dict[str, str] = {}
    values: dict[str, Array] = {}
    for name, array in own.items():
        if name not in source:
            continue
        old = source[name]
        value = _value(given[old], f"state_dict[{old!r}]", array)
        same = value.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
        if value.shape != array.shape:
            mismatched[name] = f"must have shape {array.shape}, got {value.shape}"
        elif not same and not (is_float(value.dtype) and is_float(array.dtype)):
            mismatched[name] = f"must be {array.dtype}, got {value.dtype}"
        else:
            _check_writable(array, f"target[{name!r}]")
            with np.errstate(all="ignore"):
                fitting = value.astype(array.dtype)
            if lost := _overflow(value, fitting):
                mismatched[name] = lost
            else:
                values[name] = fitting
    missing = tuple(name for name in own if name not in source)
    report = MatchReport(tuple(values), missing, unexpected, mismatched)
    if not values:
        raise ValueError(
            f"state_dict must have at least one array that fits target by name and shape; rename=... may help; {report}"
        )
    _refuse_conflicts({name: own[name] for name in values}, values)
    for name, value in values.items():
        own[name][...] = value
    return report


def _content(state_dict: Any, name: str | None) -> Any:
    """The dict of arrays, which may be in a file."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a string or None, got {name!r}")
    if not isinstance(state_dict, (str, os.PathLike)):
        if name is not None:
            raise ValueError(f"name is for a file that state_dict is the path of, got {name!r}")
        return state_dict
    saved = read_state(state_dict)
    if name is None and len(saved) == 1:
        return next(iter(saved.values()))
    if name not in saved:
        raise ValueError(
            f"name must say what to take from {os.fspath(state_dict)}, which has {', '.join(map(repr, saved))}; got "
            f"{name!r}"
        )
    return saved[name]


def _check_writable(array: Array, where: str) -> None:
    if is_float(array.dtype):
        _core.check_output(array, where)
        return
    if not array.flags.writeable:
        raise ValueError(f"{where} must be writable, but it is read-only")
    reach = array.itemsize
    for stride, n in sorted((abs(stride), n) for stride, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach and array.size:
            raise ValueError(
                f"{where} has several elements at the same address (strides {array.strides}), so it cannot be updated "
                "in place; make a copy"
            )
        reach += stride * (n - 1)


def _overflow(value: Array, fitting: Array) -> str | None:
    """What is wrong if a finite value has become infinite in another type."""
    if value.dtype == fitting.dtype or not is_float(value.dtype):
        return None
    lost = np.isfinite(value) & ~np.isfinite(fitting)
    return f"must fit into {fitting.dtype}, got {float(value[lost].flat[0])!r}" if lost.any() else None


def _refuse_conflicts(own: Mapping[str, Array], values: Mapping[str, Array]) -> None:
    """Refuses arrays that share memory unless each would have its value when all are written."""
    names = list(own)
    spans = sorted((*np.lib.array_utils.byte_bounds(own[name]), i) for i, name in enumerate(names) if own[name].size)
    clusters: list[list[int]] = []
    end = 0
    for low, high, i in spans:
        if low >= end:
            clusters.append([])
        clusters[-1].append(i)
        end = max(end, high)
    for cluster in clusters:
        if len(cluster) > 1:
            _try([names[i] for i in sorted(cluster)], own, values)


def _try(names: list[str], own: Mapping[str, Array], values: Mapping[str, Array]) -> None:
    """Writes arrays whose memory may meet, in a place like it."""
    bounds = [np.lib.array_utils.byte_bounds(own[name]) for name in names]
    first = min(low for low, _ in bounds)
    memory = np.zeros(max(high for _, high in bounds) - first, np.uint8)
    views = {
        name: np.ndarray(
            own[name].shape,
            own[name].dtype,
            memory,
            own[name].__array_interface__["data"][0] - first,
            own[name].strides,
        )
        for name in names
    }
    for name, view in views.items():
        view[...] = values[name]
    for i, name in enumerate(names):
        if views[name].tobytes() != values[name].tobytes():  # Bytes, so that a NaN is itself.
            other = next(later for later in names[i + 1 :] if overlap(views[name], views[later]) is not False)
            raise ValueError(
                f"target[{name!r}] and target[{other!r}] overlap in memory, so state_dict must have the same "
                "values for both, but has different ones; leave one out, or make a copy of one"
            )


def _renamed(given: Mapping[str, Any], rename: Any) -> dict[str, str | None]:
    """The new name of each old one."""
    if rename is None:
        return {name: name for name in given}
    names: dict[str, Any]
    if isinstance(rename, Mapping):
        if unknown := [name for name in rename if name not in given]:
            raise ValueError(
                f"rename must have names of state_dict as keys, got {unknown[0]!r}; there are "
                f"{', '.join(map(repr, given))}"
            )
        names = {name: rename.get(name, name) for name in given}
    elif callable(rename):
        names = {name: rename(name) for name in given}
    else:
        raise TypeError(f"rename must be a dict or a function of a name, got {type(rename).__name__}")
    owners: dict[str, str] = {}
    for old, new in names.items():
        if new is None:
            continue
        if not isinstance(new, str):
            raise TypeError(f"rename must give strings or None, got {new!r} for {old!r}")
        if owners.setdefault(new, old) != old:
            raise ValueError(f"rename must give each name once, but {owners[new]!r} and {old!r} both become {new!r}")
    return names


def _value(value: Any, where: str, like: Array) -> Array:
    """A copy, because it may be memory of the target."""
    try:
        array = np.array(unmasked(value, where))
    except (RuntimeError, ValueError) as error:  # A tensor with a gradient, or a ragged list.
        raise TypeError(f"{where} must be an array, got {type(value).__name__}: {error}") from error
    except TypeError as error:
        if "BFloat16" not in str(error):
            raise
        raise TypeError(
            f"{where} is a tensor of bfloat16, which torch does not give to NumPy; give it as .float()"
        ) from error
    if array.dtype.str == "|V2" and is_float(like.dtype):
        # np.load knows no bfloat16, which is the upper half of a float32.
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array


class _Scaled:
    """A function of the step times a number. A class, so that it can be pickled."""

    def __init__(self, function: Callable[[int], float], factor: float) -> None:
        self._function, self._factor = function, factor

    def __call__(self, step: int) -> float:
        return self._function(step) * self._factor

    def __repr__(self) -> str:
        return f"{self._factor!r} * {self._function!r}"


def layer_groups(
    params: Mapping[str, Any],
    lr: Scalar,
    *,
    decay: float = 1.0,
    names: Sequence[str | Sequence[str]] | None = None,
) -> list[dict[str, Any]]:
    r"""Parameter groups for an optimiser, one per layer, with learning rates that fall towards the input.

    With $l = 1 \dots L$ the layers in their order, $\gamma$ = `lr`, $d$ = `decay`:

    $$\gamma_l = \gamma / d^{\,L - l}$$

    so the last layer (the new head) gets `lr`, and each earlier one $d$ times less: early layers are the most general
    and need the least change. `opt.freeze` takes such groups.

    The groups hold the arrays of `params`, in dicts of their own. Give the optimiser `group_grads(groups, grads)`.

    Args:
        params: A dict of arrays in the order of the layers, such as `model.params`. Nested dicts become flat, with
            names joined by dots.
        lr: Learning rate of the last layer: a number, or a schedule or other function of the step, which is scaled.
        decay: $d$, at least 1. Howard and Ruder use 2.6; 1 gives all the same. (timm's `layer_decay` is $1/d$.)
        names: Which layers there are, from the first to the last: beginnings of names, as in `["0", "3"]` or
            `["body", "head"]`, or lists of these for layers that share a group, such as a convolution and its
            normalisation: `[["0", "1"], ["3"]]`. If it is left out, a layer is what stands before the first dot, in the
            order of appearance.

    Returns:
        A list of `{"params": {name: array, ...}, "lr": lr}`. More hyperparameters may be added to each.

    Raises:
        ValueError: `decay` is below 1 or too large for so many layers, a name in `names` is that of no parameter or
            stands twice, or a parameter is in no layer.
        TypeError: An argument is of a wrong type.

    Example:
        >>> from ironstep import nn, train
        >>> from ironstep.optim import AdamW
        >>> model = nn.Sequential(nn.Linear(4, 8, seed=0), nn.ReLU(), nn.Linear(8, 3, seed=1))
        >>> groups = train.layer_groups(model.params, lr=0.01, decay=2.0)
        >>> [(list(group["params"]), group["lr"]) for group in groups]
        [(['0.weight', '0.bias'], 0.005), (['2.weight', '2.bias'], 0.01)]
        >>> opt = AdamW(groups)
        >>> opt.freeze("0.*")  # and later opt.unfreeze("0.*")
        >>> grads = train.group_grads(groups, model.grads)
        >>> opt.step(grads).step
        1

    References:
        Howard and Ruder, Universal language model fine-tuning for text classification, arXiv 1801.06146, section 3.2.
    """
    decay = number("decay", decay, AT_LEAST_ONE)
    if not callable(lr):
        lr = number("lr", lr, Limit(0.0, float("inf"), "finite and at least 0", closed=False))
    flat = named(params, "params")
    if not flat:
        raise ValueError("params must have at least one array, got an empty dict")
    if names is None:
        owner = {name: name.split(".")[0] for name in flat}
        layers = [[layer] for layer in dict.fromkeys(owner.values())]
    else:
        given: Any = names
        if not isinstance(given, (list, tuple)) or not all(isinstance(layer, (str, list, tuple)) for layer in given):
            raise TypeError(f"names must be a list of names or of lists of names, got {names!r}")
        layers = [[layer] if isinstance(layer, str) else list(layer) for layer in given]
        owner = _owners(flat, [prefix for layer in layers for prefix in layer])
    groups = []
    for i, layer in enumerate(layers):
        power = _core.pow(decay, float(len(layers) - 1 - i))  # The same bits everywhere, which `**` does not have.
        if power == math.inf:
            raise ValueError(
                f"decay must be small enough for {len(layers)} layers, but {decay!r} ** {len(layers) - 1} is too large "
                "for a number; use a smaller one, or names=... for fewer groups"
            )
        own = {name: array for name, array in flat.items() if owner[name] in layer}
        groups.append({"params": own, "lr": _scaled(lr, 1.0 / power)})
    return groups


def _owners(flat: Mapping[str, Any], prefixes: list[Any]) -> dict[str, str]:
    """For each parameter the longest prefix that it begins with; all prefixes must be of use."""
    for prefix in prefixes:
        if not isinstance(prefix, str):
            raise TypeError(f"names must have strings, got {prefix!r}")
        if prefixes.count(prefix) > 1:
            raise ValueError(f"names must have each name once, got {prefix!r} twice")
    owner: dict[str, str] = {}
    for name in flat:
        fitting = [prefix for prefix in prefixes if name == prefix or name.startswith(prefix + ".")]
        if not fitting:
            raise ValueError(f"names must cover all parameters, but {name!r} begins with none of {prefixes}")
        owner[name] = max(fitting, key=len)
    if useless := [prefix for prefix in prefixes if prefix not in owner.values()]:
        raise ValueError(f"names must be beginnings of parameter names, got {useless[0]!r}; there are {list(flat)}")
    return owner


def _scaled(lr: Scalar, factor: float) -> Scalar:
    if not callable(lr):
        return lr * factor
    if factor == 1.0:
        return lr
    from ..schedules import Schedule

    function: Any = lr
    return function * factor if isinstance(function, Schedule) else _Scaled(lr, factor)


def group_grads(groups: Sequence[Any], grads: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """The gradients in the groups that `layer_groups` made, for `opt.step`: the same arrays, not copies.

    A model's gradients are the same arrays for ever, so once is enough: `grads = group_grads(groups, model.grads)`.

    Args:
        groups: What `layer_groups` gave, or `opt.param_groups`.
        grads: Gradients by name, like the `params` of `layer_groups`.

    Returns:
        A list with a dict for each group; None for a frozen group of `opt.param_groups` whose gradients are not there.

    Raises:
        ValueError: A gradient is missing or belongs to no group.

    Example:
        >>> import numpy as np
        >>> from ironstep import train
        >>> groups = train.layer_groups({"0.w": np.ones(1), "1.w": np.ones(1)}, lr=0.1)
        >>> train.group_grads(groups, {"0.w": np.zeros(1), "1.w": np.ones(1)})
        [{'0.w': array([0.])}, {'1.w': array([1.])}]
    """
    flat = named(grads, "grads")
    out: list[dict[str, Any] | None] = []
    known: set[str] = set()
    for i, group in enumerate(groups):
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), Mapping):
            raise TypeError(f"groups[{i}] must be a parameter group with a dict as 'params', got {group!r}")
        own = list(named(group["params"], f"groups[{i}]['params']"))
        known.update(own)
        missing = [name for name in own if name not in flat]
        if missing and isinstance(group, ParamGroup) and group.frozen:
            out.append(None)
        elif missing:
            raise ValueError(
                f"grads must have a gradient for each parameter, but lacks {', '.join(map(repr, missing))}"
            )
        else:
            out.append({name: flat[name] for name in own})
    if unknown := [name for name in flat if name not in known]:
        raise ValueError(f"grads must belong to the groups, but {', '.join(map(repr, unknown))} are in none")
    return out
