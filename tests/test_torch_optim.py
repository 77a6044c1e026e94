"""The optimisers of `ironstep.torch.optim`: the bits of the NumPy face, torch's numbers, torch's interface, errors."""

from __future__ import annotations

import copy
import doctest
import gc
import inspect
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import ironstep
import ironstep.torch.optim as bridge
import peers
from cases import CASES, Case
from helpers import BF16, DTYPES, assert_same_bits, awkward
from ironstep import optim, schedules

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
OF_TORCH = [case for case in CASES if "torch" in case.peers]
CLASSES = sorted({case.cls.__name__ for case in CASES})
PEERS = [name for name in CLASSES if hasattr(torch.optim, name)]


@pytest.fixture(autouse=True)
def _default_threads() -> Iterator[None]:
    yield
    ironstep.set_num_threads(0)


def to_torch(x: np.ndarray) -> torch.Tensor:
    """A copy as a tensor, of any layout's values, in C order."""
    x = np.array(x, order="C")
    if x.dtype == BF16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def to_numpy(x: torch.Tensor) -> np.ndarray:
    """A copy as an array."""
    x = x.detach().clone(memory_format=torch.contiguous_format)
    if x.dtype is torch.bfloat16:
        return x.view(torch.int16).numpy().view(BF16)
    return x.numpy().copy()


def param(x: np.ndarray | torch.Tensor) -> torch.Tensor:
    """A leaf that wants a gradient."""
    return (x if isinstance(x, torch.Tensor) else to_torch(x)).detach().clone().requires_grad_()


def laid(kind: str, x: torch.Tensor) -> torch.Tensor:
    """The same values in another layout."""
    if kind == "contiguous" or x.dim() == 0:
        return x.clone()
    if kind == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "every second":
        wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if kind == "inside":
        flat = torch.zeros(x.numel() + 3, dtype=x.dtype)
        own = flat[1 : 1 + x.numel()].view(x.shape)
        own.copy_(x)
        return own
    raise AssertionError(kind)


LAYOUTS = ["contiguous", "transposed", "every second", "inside"]
SHAPES = [(5, 7), (33,), (), (0,), (1,), (2, 3, 4)]


def ours(case: Case, params: Any, **more: Any) -> bridge.Optimizer:
    return getattr(bridge, case.cls.__name__)(params, **case.kwargs, **more)


# -- Same bits as the NumPy face ---------------------------------------------------------------------------------------


@each_dtype
@each_case
def test_has_the_bits_of_the_numpy_face(case: Case, dtype: np.dtype):
    rng = np.random.default_rng(1)
    draw = (
        (lambda shape: rng.normal(size=shape).astype(dtype))
        if case.rule.startswith("la")
        else (lambda shape: awkward(rng, shape, dtype))
    )
    arrays = [np.asarray(draw(shape)) for shape in SHAPES for _ in LAYOUTS]
    layouts = [kind for _ in SHAPES for kind in LAYOUTS]
    tensors = [laid(kind, to_torch(x)).requires_grad_() for kind, x in zip(layouts, arrays, strict=True)]
    theirs, mine = case.cls(arrays, **case.kwargs), ours(case, tensors)
    for t in range(4):
        grads = [np.asarray(draw(x.shape)) for x in arrays]
        theirs.step(grads)
        for k, (p, g) in enumerate(zip(tensors, grads, strict=True)):
            p.grad = laid(LAYOUTS[(k + t) % len(LAYOUTS)], to_torch(g))
        mine.step()
        for k, (p, x) in enumerate(zip(tensors, arrays, strict=True)):
            assert_same_bits(to_numpy(p), x, f"step {t + 1}, parameter {k}")
            for name in theirs.state:
                assert_same_bits(to_numpy(mine.state[p][name]), theirs.state[name][k], f"step {t + 1}, {name} {k}")


@each_case
def test_same_bits_on_every_thread_count(case: Case):
    rng = np.random.default_rng(2)
    start = rng.normal(size=(3, 50_000)).astype(np.float32)
    results = []
    for threads in (1, 3):
        ironstep.set_num_threads(threads)
        p = param(start)
        opt = ours(case, [p], max_norm=1.0)
        for seed in range(3):
            p.grad = to_torch(np.random.default_rng(seed).normal(size=start.shape).astype(np.float32))
            opt.step()
        results.append(to_numpy(p))
    assert_same_bits(*results)


@each_case
def test_options_have_the_bits_of_the_numpy_face(case: Case):
    """Clipping, averages, float32 copies, together, in groups with their own numbers."""
    rng = np.random.default_rng(3)
    options: dict[str, Any] = {"max_norm": 0.7, "clip_value": 1.5, "ema_decay": 0.75, "master_weights": True}
    arrays = [rng.normal(size=shape).astype(dtype) for dtype in DTYPES for shape in ((6, 3), (11,))]
    tensors = [param(x) for x in arrays]
    other = {"lr": 0.003, "weight_decay": 0.2}
    theirs = case.cls([{"params": arrays[:5]}, {"params": arrays[5:], **other}], **case.kwargs, **options)
    mine = ours(case, [{"params": tensors[:5]}, {"params": tensors[5:], **other}], **options)
    for t in range(4):
        grads = [rng.normal(size=x.shape).astype(x.dtype) for x in arrays]
        result = theirs.step([grads[:5], grads[5:]])
        for p, g in zip(tensors, grads, strict=True):
            p.grad = to_torch(g)
        mine.step()
        assert mine.grad_norm == result.grad_norm
        flat = {name: [x for group in nest for x in group] for name, nest in theirs.state.items()}
        flat["ema"] = [x for group in theirs.ema for x in group]
        flat["master"] = [x for group in theirs.master for x in group]
        for k, (p, x) in enumerate(zip(tensors, arrays, strict=True)):
            assert_same_bits(to_numpy(p), x, f"step {t + 1}, parameter {k}")
            for name, want in flat.items():
                if name == "master" and x.dtype in (np.float32, np.float64):
                    assert "master" not in mine.state[p]
                    continue
                assert_same_bits(to_numpy(mine.state[p][name]), want[k], f"step {t + 1}, {name} {k}")


# -- torch's numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", OF_TORCH, ids=lambda case: case.name)
def test_agrees_with_torch_in_float64(case: Case):
    rng = np.random.default_rng(10)
    start = [np.asarray(rng.normal(size=shape)) for shape in [(7,), (3, 4), (), (1,)]]
    start[0][0] = 0.0  # else the parameter's own rounding hides the update's
    params = [param(x) for x in start]
    opt, peer = ours(case, params), case.peers["torch"](start)
    for t in range(50):
        grads = [rng.normal(size=x.shape) for x in start]
        grads[0][1] = 0.0  # an element that never has a gradient
        if t == 5:
            grads[0][2] = 30.0
        for p, g in zip(params, grads, strict=True):
            p.grad = to_torch(g)
        opt.step()
        for i, (p, want) in enumerate(zip(params, peer.step(grads), strict=True)):
            error = np.abs(to_numpy(p) - want)
            assert (error <= case.tolerance).all(), f"step {t + 1}, tensor {i}: {error.max()}"


def terms(
    name: str, group: dict[str, Any], p: np.ndarray, g: np.ndarray, state: dict[str, np.ndarray], t: int
) -> dict[str, np.ndarray]:
    """For each stored value the largest magnitude among the terms of its update, in float64.

    A term is what is added to another: with `|a| + |b|` in the place of every sum `a + b`, the magnitude is that which
    the rounding errors are relative to. A cancellation makes the sum small, but not its error.
    """
    g = np.abs(g)
    p = np.abs(p)
    lr, decay = abs(float(group["lr"])), group["weight_decay"]
    old = {key: np.abs(value) for key, value in state.items()}
    if name == "AdamW" or group.get("decoupled_weight_decay"):
        p = p + lr * decay * p
    else:
        g = g + decay * p
    out = {}
    if name == "SGD":
        if group["momentum"] == 0.0:
            return {"p": np.maximum(p, lr * g)}
        buf = (
            g
            if "momentum_buffer" not in old
            else group["momentum"] * old["momentum_buffer"] + (1 - group["dampening"]) * g
        )
        return {"momentum_buffer": buf, "p": p + lr * (g + group["momentum"] * buf if group["nesterov"] else buf)}
    if name == "Adagrad":
        out["sum"] = old["sum"] + g * g
        rate = lr / (1 + (t - 1) * group["lr_decay"])
        return out | {"p": p + rate * g / (np.sqrt(state["sum_new"]) + group["eps"])}
    if name == "RMSprop":
        a = group["alpha"]
        out["square_avg"] = a * old["square_avg"] + (1 - a) * g * g
        v = state["square_avg_new"]
        if group["centered"]:
            out["grad_avg"] = a * old["grad_avg"] + (1 - a) * g
            v = v - state["grad_avg_new"] ** 2
            # The difference under the root may cancel: its error is relative to its terms.
            grow = 1 + state["square_avg_new"] / np.maximum(v, 1e-300)
        else:
            grow = 1.0
        step = g / (np.sqrt(np.maximum(v, 0.0)) + group["eps"]) * grow
        if group["momentum"]:
            out["momentum_buffer"] = step = group["momentum"] * old["momentum_buffer"] + step
        return out | {"p": p + lr * step}
    if name == "Adadelta":
        rho, eps = group["rho"], group["eps"]
        out["square_avg"] = rho * old["square_avg"] + (1 - rho) * g * g
        # As with `centered`: what is under the root counts with the magnitude of its terms.
        grow = (out["square_avg"] + eps) / (state["square_avg_new"] + eps)
        step = np.sqrt(old["acc_delta"] + eps) / np.sqrt(state["square_avg_new"] + eps) * g * grow
        # The square of a number that is itself several roundings away: its error in ulp doubles.
        out["acc_delta"] = rho * old["acc_delta"] + 2 * (1 - rho) * step * step
        return out | {"p": p + lr * step}
    b1, b2 = group["betas"]
    c1, c2 = 1 - b1**t, 1 - b2**t
    m = out["exp_avg"] = b1 * old["exp_avg"] + (1 - b1) * g
    if name == "Adamax":
        out["exp_inf"] = np.maximum(b2 * old["exp_inf"], g + group["eps"])
        return out | {"p": p + lr / c1 * m / state["exp_inf_new"]}
    out["exp_avg_sq"] = b2 * old["exp_avg_sq"] + (1 - b2) * g * g
    v = state["exp_avg_sq_new"]
    if group.get("amsgrad"):
        out["max_exp_avg_sq"] = np.maximum(old["max_exp_avg_sq"], out["exp_avg_sq"])
        v = state["max_exp_avg_sq_new"]
    if name == "NAdam":
        mu, after = (b1 * (1 - 0.5 * 0.96 ** (k * group["momentum_decay"])) for k in (t, t + 1))
        product = float(state["mu_product"]) * mu
        m = (1 - mu) / (1 - product) * g + after / (1 - product * after) * m
        c1 = 1.0
    if name == "RAdam":
        top = 2 / (1 - b2) - 1
        rho = top - 2 * t * b2**t / c2
        if rho <= 5:
            return out | {"p": p + lr * m / c1}
        r = math.sqrt((rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho))
        return out | {"p": p + lr * r * math.sqrt(c2) / c1 * m / (np.sqrt(v) + group["eps"])}
    return out | {"p": p + lr / c1 * m / (np.sqrt(v) / math.sqrt(c2) + group["eps"])}


@pytest.mark.parametrize("case", OF_TORCH, ids=lambda case: case.name)
def test_each_step_from_torchs_state_is_within_4_ulp_of_its_largest_term(case: Case):
    rng = np.random.default_rng(12)
    name = case.cls.__name__
    start = rng.normal(size=4000).astype(np.float32)
    start[:1000] = 0.0
    theirs, mine = param(start), param(start)
    peer = getattr(torch.optim, name)([theirs], foreach=False, **case.kwargs)
    for t in range(1, 13):
        with torch.no_grad():
            mine.copy_(theirs)
        opt = ours(case, [mine])
        opt.load_state_dict(copy.deepcopy(peer.state_dict()))
        before = {key: to_numpy(value).astype(np.float64) for key, value in peer.state[theirs].items()}
        if name not in ("SGD", "Adagrad") and not before:
            before = {key: np.zeros(4000) for key in case.states} | {"mu_product": np.float64(1.0)}
        g = (rng.normal(size=4000) * np.exp(rng.normal(size=4000))).astype(np.float32)
        g[::50] = 0.0
        old = to_numpy(theirs)
        theirs.grad, mine.grad = to_torch(g), to_torch(g)
        peer.step()
        opt.step()
        after = {f"{key}_new": to_numpy(value).astype(np.float64) for key, value in peer.state[theirs].items()}
        sizes = terms(name, peer.param_groups[0], old.astype(np.float64), g.astype(np.float64), before | after, t)
        assert sizes.keys() == {"p", *case.states}
        for what, size in sizes.items():
            want = theirs.detach() if what == "p" else peer.state[theirs][what]
            got = mine.detach() if what == "p" else opt.state[mine][what]
            error = np.abs(to_numpy(got).astype(np.float64) - to_numpy(want).astype(np.float64))
            ulp = np.spacing(size.astype(np.float32)).astype(np.float64)
            assert (error <= 4 * ulp).all(), f"step {t}, {what}: {(error / ulp).max()} ulp"


# -- torch's interface -------------------------------------------------------------------------------------------------


def test_there_is_one_class_for_each_of_the_numpy_face():
    assert set(bridge.__all__) == set(optim.__all__) - {"ParamGroup", "StepResult"}
    assert set(CLASSES) == set(bridge.__all__) - {"Optimizer"}


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_looks_like_one(name: str):
    cls = getattr(bridge, name)
    assert issubclass(cls, torch.optim.Optimizer)
    assert issubclass(cls, bridge.Optimizer)
    assert (cls.__module__, cls.__qualname__, cls.__name__) == ("ironstep.torch.optim", name, name)
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert name in (cls.__doc__ or "")
    with pytest.raises(TypeError, match="nonsense"):
        cls([torch.zeros(2)], nonsense=1)
    with pytest.raises(TypeError, match="params"):
        cls()


@pytest.mark.parametrize("name", PEERS)
def test_signature_is_torchs(name: str):
    theirs = dict(inspect.signature(getattr(torch.optim, name)).parameters)
    mine = dict(inspect.signature(getattr(bridge, name)).parameters)
    assert theirs.keys() <= mine.keys()
    assert {k: v.default for k, v in theirs.items()} == {k: mine[k].default for k in theirs}
    positional = [k for k, v in theirs.items() if v.kind is v.POSITIONAL_OR_KEYWORD]
    assert positional == [k for k, v in mine.items() if v.kind is v.POSITIONAL_OR_KEYWORD]
    assert all(mine[k].kind is theirs[k].kind for k in theirs)


@pytest.mark.parametrize("name", CLASSES)
def test_hyperparameters_are_those_of_the_numpy_face(name: str):
    theirs = inspect.signature(getattr(optim, name).__init__).parameters
    mine = inspect.signature(getattr(bridge, name)).parameters
    hyper = {k: v.default for k, v in theirs.items() if v.default is not v.empty}
    assert {k: mine[k].default for k in hyper} == hyper


def test_examples_run():
    for name in CLASSES:
        cls = getattr(bridge, name)
        tests = doctest.DocTestFinder().find(cls, name, globs={name: cls})
        assert [test for test in tests if test.examples], name
        for test in tests:
            assert doctest.DocTestRunner().run(test).failed == 0


# What torch's optimisers refuse (`torch.testing._internal.common_optimizers`), with the type of the error.
REFUSED: list[tuple[str, dict[str, Any], type[Exception]]] = [
    *((name, {"lr": -1.0}, ValueError) for name in PEERS),
    *((name, {"lr": torch.tensor([0.001, 0.001])}, ValueError) for name in PEERS),
    *((name, {"weight_decay": -0.5}, ValueError) for name in PEERS),
    *((name, {"betas": (1.0, 0.0)}, ValueError) for name in ("Adam", "AdamW", "Adamax", "NAdam", "RAdam")),
    *((name, {"betas": (0.5, -0.1)}, ValueError) for name in ("Adam", "AdamW", "Adamax", "NAdam", "RAdam")),
    *((name, {"eps": -1e-8}, ValueError) for name in PEERS if name != "SGD"),
    ("SGD", {"momentum": -0.5}, ValueError),
    ("SGD", {"nesterov": True}, ValueError),
    ("SGD", {"nesterov": True, "momentum": 0.5, "dampening": 0.5}, ValueError),
    ("Adagrad", {"lr_decay": -0.5}, ValueError),
    ("Adagrad", {"initial_accumulator_value": -0.5}, ValueError),
    ("RMSprop", {"momentum": -1.0}, ValueError),
    ("RMSprop", {"alpha": -1.0}, ValueError),
    ("Adadelta", {"rho": 1.1}, ValueError),
    ("Adadelta", {"rho": -0.1}, ValueError),
    ("NAdam", {"momentum_decay": -0.2}, ValueError),
    ("Adam", {"betas": (torch.tensor([0.9, 0.9]), torch.tensor(0.99))}, ValueError),
]


@pytest.mark.parametrize(("name", "kwargs", "error"), REFUSED, ids=[f"{n}-{k}" for n, k, _ in REFUSED])
def test_refuses_what_torch_refuses(name: str, kwargs: dict[str, Any], error: type[Exception]):
    with pytest.raises((error, RuntimeError)):  # torch forgets one check and stumbles over the tensor
        getattr(torch.optim, name)([torch.zeros(2)], **kwargs)
    argument = next(iter(kwargs))
    with pytest.raises(error, match=argument):
        getattr(bridge, name)([torch.zeros(2)], **kwargs)
    # In a group, too, at once, and with its name.
    with pytest.raises(error, match=rf"param_groups\[1\]\['{argument}'\]|nesterov"):
        getattr(bridge, name)([{"params": [torch.zeros(2)]}, {"params": [torch.zeros(2)], **kwargs}])
    # And what is written into a group at the next step.
    p = param(np.ones(2))
    opt = getattr(bridge, name)([p])
    p.grad = torch.ones_like(p)
    opt.step()
    before = everything(opt)
    opt.param_groups[0].update(kwargs)
    with pytest.raises(error, match=argument):
        opt.step()
    assert_unchanged(opt, before)


@pytest.mark.parametrize("name", CLASSES)
def test_refuses_wrong_parameters_as_torch_does(name: str):
    cls = getattr(bridge, name)
    p, q = param(np.ones(2)), param(np.ones(2))
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        cls(p)
    with pytest.raises(ValueError, match="empty parameter list"):
        cls([])
    with pytest.raises(TypeError, match="only optimize Tensors"):
        cls([np.ones(2)])
    with pytest.raises(ValueError, match="non-leaf"):
        cls([p * 2])
    with pytest.raises(ValueError, match="more than one parameter group"):
        cls([{"params": p}, {"params": p}])
    with pytest.raises(ValueError, match="with/without names"):
        cls([("weight", p), q])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        twice = cls([p, p])
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="twice"):
        twice.step()
    with pytest.warns(FutureWarning, match="ordered collections"):
        cls({p, q})
    opt = cls([("w", p)])
    with pytest.raises(ValueError, match="with/without names"):
        opt.add_param_group({"params": [q]})
    with pytest.raises(TypeError, match="must be a dict"):
        opt.add_param_group([q])
    with pytest.raises(ValueError, match=r"param_groups\[1\]\['lr'\]"):
        opt.add_param_group({"params": [("b", q)], "lr": -1.0})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("lr", "0.1", TypeError),
        ("lr", lambda t: 0.1, TypeError),
        ("lr", True, TypeError),
        ("lr", math.nan, ValueError),
        ("lr", math.inf, ValueError),
        ("betas", 0.9, TypeError),
        ("betas", (0.9,), TypeError),
        ("amsgrad", 1, TypeError),
        ("capturable", True, ValueError),
        ("differentiable", True, ValueError),
        ("max_norm", -1.0, ValueError),
        ("max_norm", lambda t: 1.0, TypeError),
        ("clip_value", "1", TypeError),
        ("ema_decay", 1.5, ValueError),
        ("nonfinite", "ignore", ValueError),
        ("master_weights", 1, TypeError),
    ],
)
def test_refuses_wrong_arguments(name: str, value: Any, error: type[Exception]):
    with pytest.raises(error, match=name) as caught:
        bridge.Adam([param(np.ones(2))], **{name: value})
    assert "callable" not in str(caught.value)
    if name in ("max_norm", "clip_value", "nonfinite", "ema_decay"):
        opt = bridge.Adam([param(np.ones(2))])
        before = getattr(opt, name)
        with pytest.raises(error, match=name):
            setattr(opt, name, value)
        assert getattr(opt, name) == before


def test_the_base_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        bridge.Optimizer([param(np.ones(2))])


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_flags_of_torch_have_no_effect(name: str, flag: str):
    results = []
    for value in (True, None):
        p = param(np.ones(3))
        opt = getattr(bridge, name)([p], lr=torch.tensor(0.01), **{flag: value})
        p.grad = torch.ones_like(p)
        opt.step()
        opt.zero_grad(set_to_none=False)
        assert p.grad is not None
        assert not p.grad.any()
        opt.zero_grad()
        assert p.grad is None
        assert opt.param_groups[0][flag] is value
        results.append(to_numpy(p))
    assert_same_bits(*results)


def test_hyperparameters_may_be_tensors():
    a, b = param(np.ones(3)), param(np.ones(3))
    lr = torch.tensor(0.125)
    mine = bridge.Adam([a], lr=lr, betas=(torch.tensor(0.5), torch.tensor([0.75])))
    plain = bridge.Adam([b], lr=0.125, betas=(0.5, 0.75))
    assert mine.param_groups[0]["lr"] is lr
    for t in range(4):
        if t == 2:
            lr.fill_(0.25)  # the same object, as torch's schedulers do it
            plain.param_groups[0]["lr"] = 0.25
        for p, opt in ((a, mine), (b, plain)):
            p.grad = torch.full_like(p, 1.0 + t)
            opt.step()
        assert_same_bits(to_numpy(a), to_numpy(b))


def test_changed_hyperparameters_count_at_the_next_step():
    p, want = param(np.ones(3)), np.ones(3)
    opt, theirs = bridge.SGD([p], lr=0.1), optim.SGD(want, lr=0.1)
    for lr in (0.5, 0.25, 0.25, 1.0):
        opt.param_groups[0]["lr"] = lr
        theirs.param_groups[0]["lr"] = lr
        p.grad = torch.ones_like(p)
        opt.step()
        theirs.step(np.ones(3))
        assert_same_bits(to_numpy(p), want)


@pytest.mark.parametrize(
    ("name", "kwargs", "switch"),
    [
        ("SGD", {"lr": 0.1}, {"momentum": 0.9}),
        ("SGD", {"lr": 0.1, "momentum": 0.9}, {"momentum": 0.0}),
        ("Adam", {}, {"amsgrad": True}),
        ("RMSprop", {}, {"centered": True, "momentum": 0.5}),
    ],
)
def test_groups_may_have_different_rules(name: str, kwargs: dict[str, Any], switch: dict[str, Any]):
    """Beside torch, with a norm over all; and the rule of a group may change on the way."""
    rng = np.random.default_rng(4)
    start = [rng.normal(size=n) for n in (3, 5, 7, 2)]
    mine, theirs = [param(x) for x in start], [param(x) for x in start]
    groups = lambda p: [{"params": p[:1]}, {"params": p[1:3], **switch}, {"params": p[3:]}]  # noqa: E731
    opt = getattr(bridge, name)(groups(mine), max_norm=0.5, **kwargs)
    peer = getattr(torch.optim, name)(groups(theirs), foreach=False, **kwargs)
    for t in range(8):
        if t == 4 and name == "SGD":
            for either in (opt, peer):
                either.param_groups[0].update(switch)
        for p, q in zip(mine, theirs, strict=True):
            q.grad = to_torch(rng.normal(size=p.shape))
            p.grad = q.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        opt.step()
        peer.step()
        assert opt.grad_norm == pytest.approx(norm.item(), rel=1e-14)
        for p, q in zip(mine, theirs, strict=True):
            assert np.abs(to_numpy(p) - to_numpy(q)).max() < 1e-13, t


def test_parts_of_different_rules_are_kept_apart():
    """Between the calls of a step with two rules: outputs that overlap, gradients that are state."""
    flat = torch.zeros(6)
    p, q = flat[:4].requires_grad_(), flat[3:6].requires_grad_()
    p.grad, q.grad = torch.ones(4), torch.ones(3)
    opt = bridge.SGD([{"params": [p]}, {"params": [q], "momentum": 0.9}], lr=0.1)
    with pytest.raises(ValueError, match="overlap"):
        opt.step()
    assert not flat.any()
    assert not opt.state
    p, q = param(np.zeros(4)), param(np.zeros(4))
    opt = bridge.SGD([{"params": [("a", p)]}, {"params": [("b", q)], "momentum": 0.9}], lr=0.1)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    opt.step()
    p.grad = opt.state[q]["momentum_buffer"]
    before = everything(opt)
    with pytest.raises(
        ValueError, match=r"the gradient of a.*momentum_buffer of b|momentum_buffer of b.*gradient of a"
    ):
        opt.step()
    assert_unchanged(opt, before)


def test_a_norm_over_parts_survives_what_squares_do_not():
    for size in (1e200, 1e-200, 1.0):
        p, q = param(np.zeros(3)), param(np.zeros(2))
        opt = bridge.SGD([{"params": [p]}, {"params": [q], "momentum": 0.9}], lr=1.0, max_norm=1.0)
        p.grad, q.grad = torch.full_like(p, size), torch.full_like(q, size)
        opt.step()
        assert opt.grad_norm == pytest.approx(size * math.sqrt(5), rel=1e-14)


@pytest.mark.parametrize("rules", [1, 2])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_nonfinite(bad: float, rules: int):
    def make(**kwargs: Any) -> tuple[list[torch.Tensor], bridge.Optimizer]:
        params = [param(np.ones(3)), param(np.ones(2))]
        named = [("first", params[0]), ("second", params[1])]
        other = {"momentum": 0.5} if rules == 2 else {}
        opt = bridge.SGD([{"params": named[:1]}, {"params": named[1:], **other}], lr=0.5, **kwargs)
        params[0].grad, params[1].grad = torch.ones(3, dtype=torch.float64), torch.tensor([1.0, bad]).double()
        return params, opt

    params, opt = make(nonfinite="skip")
    opt.step()
    assert opt.skipped
    assert not opt.state
    assert all((p == 1).all() for p in params)
    params[1].grad.fill_(1.0)
    opt.step()
    assert not opt.skipped
    assert all((p == 0.5).all() for p in params)

    params, opt = make(nonfinite="raise")
    with pytest.raises(FloatingPointError, match="the gradient of second"):
        opt.step()
    assert not opt.state
    assert all((p == 1).all() for p in params)

    params, opt = make()
    opt.step()
    assert not opt.skipped
    assert not params[1].isfinite().all()
    assert (params[0] == 0.5).all()

    params, opt = make(max_norm=1.0)
    opt.step()
    assert not math.isfinite(opt.grad_norm)


def test_parameters_without_gradients_are_left_out():
    """As in torch: their step does not advance. Sets of parameters come and go, plans are found again."""
    rng = np.random.default_rng(5)
    start = [rng.normal(size=n) for n in (3, 5, 7)]
    for name, kwargs in (("AdamW", {}), ("SGD", {"momentum": 0.9, "dampening": 0.5}), ("NAdam", {}), ("Adagrad", {})):
        mine, theirs = [param(x) for x in start], [param(x) for x in start]
        opt, peer = getattr(bridge, name)(mine, **kwargs), getattr(torch.optim, name)(theirs, foreach=False, **kwargs)
        opt.step()
        for t in range(40):
            active = [k for k in range(3) if t % (k + 1) == 0 or t % 7 == 3]
            for k, (p, q) in enumerate(zip(mine, theirs, strict=True)):
                q.grad = to_torch(rng.normal(size=p.shape)) if k in active else None
                p.grad = None if q.grad is None else q.grad.clone()
            opt.step()
            peer.step()
            for p, q in zip(mine, theirs, strict=True):
                assert opt.state[p].keys() == peer.state[q].keys()
                assert np.abs(to_numpy(p) - to_numpy(q)).max() < 1e-10, (name, t)
                if "step" in peer.state[q]:
                    assert opt.state[p]["step"] == peer.state[q]["step"]
        assert len(opt._plans) <= 8


@pytest.mark.parametrize("name", ["Muon", "Mine"])
def test_subclasses_may_have_any_name(name: str):
    """Also that of another of torch's, whose parameters must be matrices."""
    p = param(np.ones(3))
    for base in (bridge.Adagrad, bridge.AdamW):
        opt = type(name, (base,), {})([p])
        p.grad = torch.ones_like(p)
        getattr(torch.optim, base.__name__)([p]).load_state_dict(opt.state_dict())
        opt.step()
        assert opt.state[p]["step"] == 1


def test_without_parameters_a_step_does_nothing():
    p = param(np.ones(3))
    p.grad = torch.ones_like(p)
    for begun in (False, True):
        opt = bridge.SGD([p], lr=0.5, max_norm=1.0)
        if begun:
            opt.step()
        opt.param_groups[0]["params"].clear()
        opt.step()
        groups, opt.param_groups[:] = list(opt.param_groups), []
        opt.step()
        assert opt.grad_norm is None
        opt.param_groups.extend(groups)
        opt.param_groups[0]["params"].append(p)
        opt.step()
    assert opt.grad_norm == pytest.approx(math.sqrt(3))


def test_plans_are_found_again():
    p, q = param(np.ones(3)), param(np.ones(3))
    opt = bridge.Adam([p, q])
    grad = torch.ones(3, dtype=torch.float64)
    made = []
    original = opt._make_plan
    opt._make_plan = lambda absent: made.append(absent) or original(absent)  # type: ignore[method-assign]
    for _ in range(3):
        for grads in ((grad, None), (None, grad), (grad.clone(), grad)):
            p.grad, q.grad = grads
            opt.step()
    # In the first round, each; in the second nothing is new, but both steps have come to be equal or not.
    assert len(made) == 3


def test_closures():
    p = param(np.ones(2))
    opt = bridge.SGD([p], lr=0.25)

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert opt.step(closure) == 2.0
    assert (p == 0.5).all()


def test_hooks_and_profiling():
    p = param(np.ones(2))
    opt = bridge.SGD([p], lr=0.5)
    p.grad = torch.ones_like(p)
    calls = []
    opt.register_step_pre_hook(lambda o, args, kwargs: calls.append(("before", p[0].item())))
    opt.register_step_post_hook(lambda o, args, kwargs: calls.append(("after", p[0].item())))
    with torch.profiler.profile() as profile:
        opt.step()
    assert calls == [("before", 1.0), ("after", 0.5)]
    assert "Optimizer.step#SGD.step" in {event.key for event in profile.key_averages()}


def test_a_stale_backward_raises():
    w = param(np.ones(3))
    opt = bridge.AdamW([w])
    loss = (w * w).sum()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_storage_stays_resizable():
    p = param(np.ones(3))
    opt = bridge.AdamW([p], ema_decay=0.5)
    p.grad = torch.ones_like(p)
    opt.step()
    for tensor in (p.detach(), p.grad, opt.state[p]["exp_avg"], opt.state[p]["ema"]):
        tensor.untyped_storage().resize_(0)
        tensor.untyped_storage().resize_(24)


def test_compiled_functions_may_step():
    p = param(np.ones(3))
    opt = bridge.SGD([p], lr=0.5)
    p.grad = torch.ones_like(p)

    def function(x: torch.Tensor) -> torch.Tensor:
        opt.step()
        return x + 1

    assert (torch.compile(function, backend="eager")(torch.zeros(2)) == 1).all()
    assert (p == 0.5).all()


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_memory_may_move_between_steps(name: str):
    """Address, shape, strides and type of parameters and state are those of the moment."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(4, 6)).astype(np.float32)
    p, q = param(x), param(x)
    kwargs = {"momentum": 0.9, "lr": 0.1} if name == "SGD" else {}
    opt, peer = getattr(bridge, name)([p], **kwargs), getattr(bridge, name)([q], **kwargs)

    def step() -> None:
        g = rng.normal(size=q.shape).astype(np.float32)
        q.grad = to_torch(g)
        p.grad = to_torch(g)
        opt.step()
        peer.step()
        assert_same_bits(to_numpy(p), to_numpy(q))

    step()
    p.data = p.data.clone()  # another address
    step()
    p.data = p.data.t().contiguous().t()  # other strides
    step()
    big = torch.zeros(10, 12)
    big[::2, ::2][:4] = p.data[:4]
    p.data = big[::2, ::2][:4]  # a view
    step()
    for key in ("exp_avg", "momentum_buffer"):
        if key in opt.state[p]:
            opt.state[p][key] = opt.state[p][key].clone()  # a user's tensor
            step()
            opt.state[p][key].data = opt.state[p][key].t().contiguous().t()
            step()
            opt.state[p][key].mul_(0.5)
            peer.state[q][key].mul_(0.5)
            step()
    gc.collect()
    step()


def test_a_transposed_parameter_needs_its_state_transposed():
    p = param(np.arange(6.0).reshape(2, 3))
    opt = bridge.Adam([("w", p)])
    p.grad = torch.ones_like(p)
    opt.step()
    p.grad = None
    p.data = p.data.t()  # same address and number of elements
    p.grad = torch.ones_like(p)
    before = everything(opt)
    with pytest.raises(ValueError, match=r"exp_avg of w must have shape \(3, 2\)"):
        opt.step()
    assert_unchanged(opt, before)
    for name in ("exp_avg", "exp_avg_sq"):
        opt.state[p][name] = opt.state[p][name].t()
    opt.step()
    assert opt.state[p]["step"] == 2


def test_modules_may_change_their_type():
    """The parameters change in place; state follows, in the type that is computed in."""
    model = torch.nn.Linear(3, 2)
    opt = bridge.AdamW(model.parameters(), lr=0.1)
    x = torch.randn(5, 3)
    for dtype, state in ((torch.float32,) * 2, (torch.bfloat16, torch.float32), (torch.float64,) * 2):
        model.to(dtype)
        opt.zero_grad()
        model(x.to(dtype)).square().sum().backward()
        before = {p: {k: v.clone() for k, v in own.items()} for p, own in opt.state.items()}
        opt.step()
        for p in model.parameters():
            assert opt.state[p]["exp_avg"].dtype is state
            if p in before:
                want = 0.9 * before[p]["exp_avg"].double() + 0.1 * p.grad.double()
                assert torch.allclose(opt.state[p]["exp_avg"].double(), want, rtol=1e-6, atol=1e-7)


def test_channels_last_and_flat_buffers_and_ties():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    flat = torch.randn(20)
    views = [flat[k * 5 : k * 5 + 5].requires_grad_() for k in range(4)]
    tied = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
    tied[1].weight = tied[0].weight
    params = [*conv.parameters(), *views, *tied.parameters()]
    others = [p.detach().clone().requires_grad_() for p in params]
    opt, peer = bridge.AdamW(params), torch.optim.AdamW(others, foreach=False)
    for _ in range(3):
        for p, q in zip(params, others, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        opt.step()
        peer.step()
        for p, q in zip(params, others, strict=True):
            assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)
    assert opt.state[conv.weight]["exp_avg"].is_contiguous(memory_format=torch.channels_last)


def test_two_threads_in_one_optimiser():
    p = param(np.ones(3))
    opt = bridge.SGD([p], lr=0.5)
    p.grad = torch.ones_like(p)
    inside, leave = threading.Event(), threading.Event()
    original = opt._run

    def slow(*args: Any) -> bool:
        inside.set()
        assert leave.wait(10)
        return original(*args)

    opt._run = slow  # type: ignore[method-assign]
    thread = threading.Thread(target=opt.step)
    thread.start()
    assert inside.wait(10)
    try:
        for call in (opt.step, opt.state_dict, lambda: opt.load_state_dict({}), lambda: opt.add_param_group({})):
            with pytest.raises(RuntimeError, match="another thread"):
                call()
    finally:
        leave.set()
        thread.join()
    assert (p == 0.5).all()


# -- Errors, after which nothing has changed ---------------------------------------------------------------------------


def everything(opt: bridge.Optimizer) -> list[Any]:
    """What an error must not change."""
    params = [p for group in opt.param_groups for p in group["params"]]
    state = {p: {k: v.clone() for k, v in own.items()} for p, own in opt.state.items()}
    return [[p.detach().clone() for p in params], state, [p._version for p in params]]


def assert_unchanged(opt: bridge.Optimizer, before: list[Any]) -> None:
    after = everything(opt)
    assert after[2] == before[2]
    for a, b in zip(after[0], before[0], strict=True):
        assert torch.equal(a, b) or a.shape != b.shape
    assert after[1].keys() == before[1].keys()
    for p, own in before[1].items():
        assert after[1][p].keys() == own.keys()
        assert all(torch.equal(after[1][p][k], v) for k, v in own.items())


def _sparse_gradient(p: torch.Tensor, q: torch.Tensor) -> None:
    p.grad = torch.eye(3).double().to_sparse()


def _gradient_is_parameter(p: torch.Tensor, q: torch.Tensor) -> None:
    p.grad = q.detach()


def _gradient_overlaps_parameter(p: torch.Tensor, q: torch.Tensor) -> None:
    flat = torch.zeros(15, dtype=torch.float64)
    q.data = flat[:9].view(3, 3)
    p.grad = flat[3:12].view(3, 3)


def _parameters_overlap(p: torch.Tensor, q: torch.Tensor) -> None:
    flat = torch.zeros(15, dtype=torch.float64)
    p.data, q.data = flat[:9].view(3, 3), flat[6:15].view(3, 3)


def _parameter_overlaps_itself(p: torch.Tensor, q: torch.Tensor) -> None:
    q.data = torch.ones(3, dtype=torch.float64).expand(3, 3)


def _other_shape(p: torch.Tensor, q: torch.Tensor) -> None:
    p.data = torch.ones(2, dtype=torch.float64)


ERRORS: list[tuple[Callable[[torch.Tensor, torch.Tensor], None], type[Exception], str]] = [
    (_sparse_gradient, TypeError, "the gradient of p must be a dense tensor"),
    (_gradient_is_parameter, ValueError, "the gradient of p.*overlap|overlap.*the gradient of p"),
    (_gradient_overlaps_parameter, ValueError, "the gradient of p.*overlap"),
    (_parameters_overlap, ValueError, "p and q.*overlap"),
    (_parameter_overlaps_itself, ValueError, "q"),
    (_other_shape, ValueError, "p"),
]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(("change", "error", "text"), ERRORS, ids=[change.__name__ for change, _, _ in ERRORS])
def test_errors_name_the_parameter_and_change_nothing(
    change: Callable[[torch.Tensor, torch.Tensor], None], error: type[Exception], text: str, begun: bool
):
    r, p, q = (param(np.full((3, 3), x)) for x in (1.0, 2.0, 3.0))
    opt = bridge.AdamW([("r", r), ("p", p), ("q", q)], ema_decay=0.5)
    for x in (r, p, q):
        x.grad = torch.ones_like(x)
    if begun:
        opt.step()
    change(p, q)
    before = {k: v.clone() for k, v in opt.state.get(r, {}).items()}
    keys, old, version = list(opt.state), r.detach().clone(), r._version
    for _ in range(2):
        with pytest.raises(error, match=text):
            opt.step()
    assert list(opt.state) == keys
    assert torch.equal(r, old)
    assert r._version == version
    assert opt.state.get(r, {}).keys() == before.keys()
    assert all(torch.equal(opt.state[r][k], v) for k, v in before.items())
    # And when that is mended, on it goes.
    for x, value in ((p, 2.0), (q, 3.0)):
        x.grad = None
        x.data = torch.full((3, 3), value, dtype=torch.float64)
        x.grad = torch.ones(3, 3, dtype=torch.float64)
    opt.step()
    assert opt.state[r]["step"] == 1 + begun


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: torch.ones(3, device="meta"), "q must have memory"),
        (lambda: torch.eye(3).to_sparse(), "q must be a dense tensor"),
        (lambda: torch.ones(3, dtype=torch.complex64), "q must be float32.*complex64"),
        (lambda: torch.ones(3, dtype=torch.int64), "q must be float32.*int64"),
        (lambda: torch.ones(3, dtype=torch.float8_e4m3fn), "q must be float32.*float8"),
    ],
)
def test_parameters_that_cannot_be_stepped(make: Callable[[], torch.Tensor], text: str):
    p, q = param(np.ones(3)), make()
    opt = bridge.Adagrad([("p", p), ("q", q)])  # as torch does: they may become good ones before the first step
    p.grad, q.grad = torch.ones_like(p), make()
    before = everything(bridge.SGD([p]))
    for _ in range(2):
        with pytest.raises(TypeError, match=text):
            opt.step()
    assert_unchanged(bridge.SGD([p]), before)
    assert opt.state[p]["step"] == 0
    q.grad = None
    opt.step()
    assert opt.state[p]["step"] == 1


def test_modules_without_memory_get_it_before_the_first_step():
    model = torch.nn.Linear(3, 2, device="meta")
    opt = bridge.Adam(model.parameters())
    model.to_empty(device="cpu")
    model.reset_parameters()
    opt = bridge.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    opt.step()
    assert opt.state[model.weight]["step"] == 1


@each_case
def test_parts_on_devices_and_the_cpu_step_together(case: Case, monkeypatch: pytest.MonkeyPatch):
    """Every second parameter group on a part as other devices have it; here it holds CPU tensors."""
    from ironstep.torch.optim import _base, _device

    rng = np.random.default_rng(7)
    start = [rng.normal(size=n).astype(np.float32) for n in (3, 5, 4)]
    mine, theirs = [param(x) for x in start], [param(x) for x in start]
    groups = lambda p: [{"params": p[:1]}, {"params": p[1:2]}, {"params": p[2:]}]  # noqa: E731
    opt = ours(case, groups(mine), max_norm=0.5, nonfinite="skip", ema_decay=0.5)
    peer = ours(case, groups(theirs), max_norm=0.5, nonfinite="skip", ema_decay=0.5)

    class Elsewhere:
        """A device of the same kind by another name."""

        type = "elsewhere"

    original = _base._Plan.add

    def add(self: Any, rule: str, device: Any, owner: int, *rest: Any) -> None:
        original(self, rule, Elsewhere if owner == 1 else device, owner, *rest)

    monkeypatch.setattr(_base._Plan, "add", add)
    monkeypatch.setattr(opt, "_part", lambda d: _device.DevicePart if d is Elsewhere else _base.CpuPart)
    monkeypatch.setattr(peer, "_part", lambda d: _base.CpuPart)
    for t in range(4):
        for p, q in zip(mine, theirs, strict=True):
            p.grad = to_torch(rng.normal(size=p.shape).astype(np.float32))
            q.grad = p.grad.clone()
        if t == 2:
            mine[1].grad[1] = theirs[1].grad[1] = math.inf
        opt.step()
        peer.step()
        assert [len(plan.leaves) for plan in opt._plans.values()] in ([2], [])
        assert (opt.grad_norm, opt.skipped) == (peer.grad_norm, t == 2)
        for k, (p, q) in enumerate(zip(mine, theirs, strict=True)):
            for a, b in [(p, q), *((opt.state[p][name], peer.state[q][name]) for name in peer.state[q])]:
                if k == 1:  # by torch's own operations, whose square root is MKL's, which is not always rounded right
                    np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=2e-6, atol=1e-7)
                else:
                    assert_same_bits(to_numpy(a), to_numpy(b))


def test_inference_tensors():
    with torch.inference_mode():
        p = torch.ones(3)
        p.grad = torch.ones(3)
    opt = bridge.AdamW([p], lr=0.1)
    with pytest.raises(ValueError, match="inference"):
        opt.step()
    assert not opt.state
    # Ordinary parameters get ordinary state inside inference mode, too.
    q = param(np.ones(3))
    q.grad = torch.ones_like(q)
    other = bridge.AdamW([q], lr=0.1)
    with torch.inference_mode():
        other.step()
    other.step()
    assert other.state[q]["step"] == 2
    assert not other.state[q]["exp_avg"].is_inference()


def test_the_names_of_parameters_without_names():
    p = param(np.ones(3))
    opt = bridge.SGD([{"params": [param(np.ones(1))]}, {"params": [param(np.ones(1)), p]}])
    p.grad = torch.ones_like(p)
    p.data = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"the gradient of param_groups\[1\]\['params'\]\[1\] must have shape \(2,\)"):
        opt.step()


def test_gradients_are_not_written():
    g = torch.randn(50)
    p = param(torch.randn(50))
    opt = bridge.AdamW([p], max_norm=0.1, clip_value=0.5, weight_decay=0.1, maximize=True)
    p.grad = g.clone()
    opt.step()
    assert torch.equal(p.grad, g)


def test_every_peer_of_the_table_is_torchs():
    """Or rows would be left out of the comparison above unseen."""
    assert {case.cls.__name__ for case in OF_TORCH} == set(PEERS)
    assert callable(peers.torch)
    assert ml_dtypes.bfloat16


def test_schedules_and_wrong_names_are_refused_with_what_to_do() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(
        TypeError, match=r"lr must be a number, got cosine.*; ironstep\.torch\.Scheduler makes it follow"
    ):
        bridge.AdamW([p], lr=schedules.cosine(0.1, steps=10))
    with pytest.raises(
        TypeError, match=r"AdamW: got an unexpected keyword argument 'learning_rate'; its .* params, lr,"
    ):
        bridge.AdamW([p], learning_rate=0.1)
