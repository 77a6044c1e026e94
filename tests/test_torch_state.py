"""State of `ironstep.torch.optim`: torch's checkpoints both ways, resuming, copies, and what works on top of them."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR, AveragedModel

import ironstep.torch.optim as bridge
from cases import CASES, Case

OF_TORCH = [case for case in CASES if "torch" in case.peers]
CLASSES = sorted({case.cls.__name__ for case in CASES})
PEERS = [name for name in CLASSES if hasattr(torch.optim, name)]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_of_torch = pytest.mark.parametrize("case", OF_TORCH, ids=lambda case: case.name)


def start(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in [(7,), (3, 4), ()]]


def run(opt: torch.optim.Optimizer, params: list[torch.Tensor], first: int, steps: int) -> None:
    for t in range(first, first + steps):
        generator = torch.Generator().manual_seed(t)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        opt.step()


def make(case: Case, params: Any, **more: Any) -> bridge.Optimizer:
    return getattr(bridge, case.cls.__name__)(params, **case.kwargs, **more)


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def assert_same_state(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> None:
    for x, y in zip(a.state_dict()["state"].values(), b.state_dict()["state"].values(), strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert x[name].dtype is y[name].dtype, name
            assert torch.equal(x[name], y[name]), name


# -- Beside torch ------------------------------------------------------------------------------------------------------


@each_of_torch
@pytest.mark.parametrize("begun", [0, 4])
@pytest.mark.parametrize("to_ours", [True, False])
def test_checkpoints_go_to_torch_and_come_from_it(case: Case, begun: int, to_ours: bool):
    name = case.cls.__name__
    mine, theirs = start(), start()
    kinds = [lambda p: make(case, p), lambda p: getattr(torch.optim, name)(p, foreach=False, **case.kwargs)]
    first, second = (kinds[::-1]) if to_ours else kinds
    reference = getattr(torch.optim, name)(theirs, foreach=False, **case.kwargs)
    opt = first(mine)
    run(opt, mine, 0, begun)
    again = second(mine)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    run(again, mine, begun, 5)
    run(reference, theirs, 0, begun + 5)
    for p, q in zip(mine, theirs, strict=True):
        assert (p - q).abs().max() <= case.tolerance * 10
    names = {key for own in reference.state.values() for key in own}
    assert {key for own in again.state.values() for key in own} == names


@each_of_torch
def test_state_has_torchs_names_shapes_and_steps(case: Case):
    mine, theirs = start(torch.float32), start(torch.float32)
    opt = make(case, mine)
    peer = getattr(torch.optim, case.cls.__name__)(theirs, foreach=False, **case.kwargs)
    assert len(opt.state) == len(peer.state)  # Adagrad's is made at once
    run(opt, mine, 0, 3)
    run(peer, theirs, 0, 3)
    for p, q in zip(mine, theirs, strict=True):
        assert opt.state[p].keys() == peer.state[q].keys()
        for name, value in peer.state[q].items():
            own = opt.state[p][name]
            assert (own.shape, own.device) == (value.shape, value.device), name
            if name == "step":
                assert own.dtype is torch.float32
                assert own == 3
            elif name == "mu_product":
                assert own.dtype is torch.float64
            else:
                assert own.dtype is value.dtype
    keys = peer.state_dict()["param_groups"][0].keys() - {"decoupled_weight_decay"}
    assert keys <= opt.state_dict()["param_groups"][0].keys()


@pytest.mark.parametrize("name", PEERS)
def test_checkpoints_of_torch_keep_bfloat16_and_of_ours_float32(name: str):
    params = start(torch.bfloat16)
    opt = getattr(bridge, name)(params, **({"momentum": 0.9} if name == "SGD" else {}))
    run(opt, params, 0, 3)
    saved = copy.deepcopy(opt.state_dict())
    again = getattr(bridge, name)(params, **({"momentum": 0.9} if name == "SGD" else {}))
    again.load_state_dict(saved)
    assert_same_state(opt, again)
    arrays = {key for key in again.state[params[0]] if key not in ("step", "mu_product")}
    assert arrays
    assert all(again.state[params[0]][key].dtype is torch.float32 for key in arrays)
    for own in saved["state"].values():
        own.update({key: own[key].bfloat16() for key in arrays})
    again.load_state_dict(saved)
    for k, p in enumerate(params):
        for key in arrays:
            assert again.state[p][key].dtype is torch.float32
            assert torch.equal(again.state[p][key], saved["state"][k][key].float())


# -- Resuming ----------------------------------------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_resumed_run_has_the_same_bits(case: Case, dtype: torch.dtype):
    options: dict[str, Any] = {"ema_decay": 0.9, "master_weights": True, "max_norm": 2.0}
    whole, parts = start(dtype), start(dtype)
    opt = make(case, whole, **options)
    run(opt, whole, 0, 8)
    before = make(case, parts, **options)
    run(before, parts, 0, 4)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after = make(case, parts, **options)
    after.load_state_dict(torch.load(file, weights_only=True))
    run(after, parts, 4, 4)
    assert same(whole, parts)
    assert_same_state(opt, after)


@each_case
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "save"])
def test_copies_go_on_with_the_same_bits(case: Case, how: str):
    params = start()
    opt = make(case, params, ema_decay=0.5, nonfinite="skip", max_norm=3.0)
    run(opt, params, 0, 3)
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(opt))
    elif how == "deepcopy":
        twin = copy.deepcopy(opt)
    else:
        file = io.BytesIO()
        torch.save(opt, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    others = twin.param_groups[0]["params"]
    assert type(twin) is type(opt)
    assert (twin.max_norm, twin.nonfinite, twin.ema_decay, twin.master_weights) == (3.0, "skip", 0.5, False)
    assert not {p.data_ptr() for p in params if p.numel()} & {p.data_ptr() for p in others if p.numel()}
    run(opt, params, 3, 3)
    run(twin, others, 3, 3)
    assert same(params, others)
    assert_same_state(opt, twin)


def test_saved_state_is_small_and_its_own():
    params = [torch.ones(1).requires_grad_() for _ in range(50)]
    opt = bridge.NAdam(params)
    run(opt, params, 0, 2)
    saved = opt.state_dict()["state"]
    for own in (*saved.values(), *opt.__getstate__()["state"].values()):
        assert own["step"].untyped_storage().nbytes() == 4
        assert own["mu_product"].untyped_storage().nbytes() == 8
    run(opt, params, 2, 1)
    assert saved[0]["step"] == 2
    assert opt.state[params[0]]["step"] == 3


def test_loading_aliases_nothing():
    params = start()
    opt = bridge.AdamW(params)
    run(opt, params, 0, 2)
    saved = copy.deepcopy(opt.state_dict())
    again = bridge.AdamW(params)
    again.load_state_dict(saved)
    kept = saved["state"][0]["exp_avg"].clone()
    run(again, params, 2, 2)
    assert torch.equal(saved["state"][0]["exp_avg"], kept)
    assert saved["state"][0]["step"] == 2


def test_users_may_change_state_between_steps():
    params = start()
    a, b = bridge.AdamW(params), None
    run(a, params, 0, 2)
    for change in (
        lambda own: own["step"].fill_(10),
        lambda own: own.update(step=torch.tensor(20.0)),
        lambda own: own["step"].add_(5),
        lambda own: own.update(exp_avg=torch.zeros_like(own["exp_avg"])),
    ):
        for own in a.state.values():
            change(own)
        others = [p.detach().clone().requires_grad_() for p in params]
        b = bridge.AdamW(others)
        b.load_state_dict(copy.deepcopy(a.state_dict()))
        run(a, params, 5, 1)
        run(b, others, 5, 1)
        assert same(params, others)
        assert_same_state(a, b)
    assert a.state[params[0]]["step"] == 28
    # Of one parameter only, and its whole state.
    a.state[params[0]] = {
        "step": torch.tensor(3.0),
        **{k: torch.ones_like(params[0]) for k in ("exp_avg", "exp_avg_sq")},
    }
    run(a, params, 6, 1)
    assert [a.state[p]["step"].item() for p in params] == [4.0, 29.0, 29.0]
    a.state.clear()
    run(a, params, 7, 1)
    assert [a.state[p]["step"].item() for p in params] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("value", [-1.0, 2.5, math.nan, math.inf])
def test_step_counts_are_whole_numbers(value: float):
    params = start()
    opt = bridge.AdamW([("a", params[0]), ("b", params[1]), ("c", params[2])])
    run(opt, params, 0, 2)
    opt.state[params[1]]["step"].fill_(value)
    before = [p.detach().clone() for p in params]
    for _ in range(2):
        with pytest.raises(ValueError, match="step of b must be"):
            run(opt, params, 2, 1)
    assert same(params, before)
    saved = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match="step of b must be"):
        bridge.AdamW([("a", params[0]), ("b", params[1]), ("c", params[2])]).load_state_dict(saved)
    opt.state[params[1]]["step"].fill_(2.0)
    run(opt, params, 2, 1)
    assert [opt.state[p]["step"].item() for p in params] == [3.0, 3.0, 3.0]


def test_step_counts_may_be_numbers_of_any_kind():
    params = start()
    opt = bridge.AdamW(params)
    run(opt, params, 0, 1)
    for value in (5, 5.0, np.float32(5), np.int64(5), torch.tensor(5), torch.tensor([5.0]).double()):
        saved = copy.deepcopy(opt.state_dict())
        saved["state"][0]["step"] = value
        opt.load_state_dict(saved)
        run(opt, params, 1, 1)
        assert opt.state[params[0]]["step"] == 6


def test_a_copy_of_a_parameter_that_became_wide_is_not_taken_up_again():
    p = torch.ones(4, dtype=torch.bfloat16).requires_grad_()
    opt = bridge.SGD([p], lr=0.25, master_weights=True)
    for dtype, want in ((torch.bfloat16, 0.75), (torch.float32, 0.5), (torch.float32, 0.25), (torch.bfloat16, 0.0)):
        p.grad = None
        p.data = p.data.to(dtype)
        p.grad = torch.ones_like(p)
        opt.step()
        assert ("master" in opt.state[p]) == (dtype is torch.bfloat16)
        assert p.tolist() == [want] * 4


def _step_in_another_process(opt: bridge.Optimizer) -> None:
    torch.set_num_threads(1)
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    opt.step()


def test_another_process_takes_a_step():
    """Descriptors of its memory must be open until that process has begun."""
    params, others = start(), start()
    opt, peer = bridge.AdamW(params), bridge.AdamW(others)
    run(opt, params, 0, 2)
    run(peer, others, 0, 2)
    for p in params:
        p.grad = None
        p.share_memory_()
    process = torch.multiprocessing.get_context("spawn").Process(target=_step_in_another_process, args=(opt,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    _step_in_another_process(peer)
    assert same(params, others)


def test_share_memory():
    params = start()
    others = start()
    opt, peer = bridge.Adagrad(params), bridge.Adagrad(others)
    run(opt, params, 0, 2)
    opt.share_memory()
    assert all(value.is_shared() for own in opt.state.values() for value in own.values())
    run(opt, params, 2, 2)
    run(peer, others, 0, 4)
    assert same(params, others)
    assert opt.state[params[0]]["step"] == 4


BAD: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("another shape", lambda d: d["state"][1].update(exp_avg=torch.zeros(2)), r"exp_avg of b in the checkpoint"),
    ("no tensor", lambda d: d["state"][1].update(exp_avg=3.0), "exp_avg of b"),
    ("missing", lambda d: d["state"][1].pop("exp_avg_sq"), "must have 'exp_avg_sq' of b"),
    ("no step", lambda d: d["state"][1].pop("step"), "must have 'step' of b"),
    ("unknown", lambda d: d["state"][1].update(exp_inf=torch.zeros(3, 4)), "'exp_inf' of b"),
    ("average", lambda d: d["state"][1].update(ema=torch.zeros(3, 4)), "ema_decay"),
    ("bad step", lambda d: d["state"][1].update(step=torch.tensor(-1.0)), "step of b"),
    ("bad lr", lambda d: d["param_groups"][0].update(lr=-1.0), "lr.*checkpoint"),
    ("groups", lambda d: d["param_groups"].append(d["param_groups"][0]), "different number"),
    ("size", lambda d: d["param_groups"][0]["params"].pop(), "size"),
]


@pytest.mark.parametrize(("_", "damage", "text"), BAD, ids=[name for name, _, _ in BAD])
def test_bad_checkpoints_change_nothing(_: str, damage: Callable[[dict[str, Any]], Any], text: str):
    params = start()
    opt = bridge.AdamW([("a", params[0]), ("b", params[1]), ("c", params[2])])
    run(opt, params, 0, 2)
    saved = copy.deepcopy(opt.state_dict())
    before = copy.deepcopy(opt.state_dict())
    damage(saved)
    with pytest.raises((ValueError, TypeError), match=text):
        opt.load_state_dict(saved)
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, own in before["state"].items():
        assert after["state"][key].keys() == own.keys()
        assert all(torch.equal(after["state"][key][name], own[name]) for name in own)
    run(opt, params, 2, 1)


def test_defaults_fill_what_a_checkpoint_lacks():
    params = start()
    peer = torch.optim.Adam(params, lr=0.5, capturable=False, fused=True)
    run(peer, params, 0, 1)
    opt = bridge.Adam(params, lr=0.1, eps_hat=True)
    saved = copy.deepcopy(peer.state_dict())
    saved["param_groups"][0]["capturable"] = True
    opt.load_state_dict(saved)
    group = opt.param_groups[0]
    assert (group["lr"], group["eps_hat"], group["capturable"], group["fused"]) == (0.5, True, False, True)


def test_hooks_of_state_dicts():
    params = start()
    opt = bridge.AdamW(params)
    run(opt, params, 0, 1)
    seen = []
    opt.register_state_dict_pre_hook(lambda o: seen.append("pre"))
    opt.register_state_dict_post_hook(lambda o, d: d["state"][0]["step"].fill_(7) and None)
    opt.register_load_state_dict_pre_hook(lambda o, d: seen.append(type(d["state"][0]["exp_avg"])))
    opt.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    saved = opt.state_dict()
    assert saved["state"][0]["step"] == 7
    assert opt.state[params[0]]["step"] == 1
    opt.load_state_dict(saved)
    assert seen == ["pre", torch.Tensor, "loaded"]
    assert opt.state[params[0]]["step"] == 7


def test_hooks_of_checkpoints_may_use_the_optimizer():
    params = start()
    opt = bridge.AdamW(params[:2], ema_decay=0.5)
    saved = bridge.AdamW([{"params": params[:2]}, {"params": params[2:]}]).state_dict()
    opt.register_state_dict_pre_hook(lambda o: o.synchronize())
    opt.register_load_state_dict_pre_hook(lambda o, d: o.add_param_group({"params": params[2:]}))
    opt.register_load_state_dict_post_hook(lambda o: o.sync_ema())
    opt.load_state_dict(saved)
    assert len(opt.state_dict()["param_groups"]) == 2


def test_syncing_copies_and_averages():
    p = torch.ones(4, dtype=torch.bfloat16).requires_grad_()
    opt = bridge.SGD([p], lr=1e-3, master_weights=True, ema_decay=0.9)
    run(opt, [p], 0, 1)
    master = opt.state[p]["master"].clone()
    opt.sync_master()
    assert torch.equal(opt.state[p]["master"], master)
    with torch.no_grad():
        p[0] = 5.0
    opt.sync_master()
    opt.sync_ema()
    assert opt.state[p]["master"].tolist() == [5.0, *master[1:].tolist()]
    assert torch.equal(opt.state[p]["ema"], p.detach().float())


# -- On top of it ------------------------------------------------------------------------------------------------------

SCHEDULERS: list[Callable[[Any], Any]] = [
    lambda o: schedulers.LambdaLR(o, lambda t: 0.9**t),
    lambda o: schedulers.MultiplicativeLR(o, lambda t: 0.9),
    lambda o: schedulers.StepLR(o, 2, 0.5),
    lambda o: schedulers.MultiStepLR(o, [2, 4], 0.5),
    lambda o: schedulers.ConstantLR(o, 0.5, 3),
    lambda o: schedulers.LinearLR(o, 0.5, total_iters=4),
    lambda o: schedulers.ExponentialLR(o, 0.9),
    lambda o: schedulers.PolynomialLR(o, 6),
    lambda o: schedulers.CosineAnnealingLR(o, 6),
    lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    lambda o: schedulers.CyclicLR(o, 0.01, 0.1, 2),
    lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=10),
    lambda o: schedulers.ChainedScheduler([schedulers.StepLR(o, 2), schedulers.ExponentialLR(o, 0.9)], o),
    lambda o: schedulers.SequentialLR(o, [schedulers.ConstantLR(o, 0.1), schedulers.ExponentialLR(o, 0.9)], [3]),
    lambda o: schedulers.ReduceLROnPlateau(o, patience=0),
    lambda o: SWALR(o, 0.05, 3),
]


@pytest.mark.parametrize("number", range(len(SCHEDULERS)))
@pytest.mark.parametrize("kwargs", [{}, {"tensor": True}, {"name": "SGD", "momentum": 0.9}])
def test_torchs_schedulers(number: int, kwargs: dict[str, Any]):
    kwargs = dict(kwargs)
    name = kwargs.pop("name", "AdamW")
    if kwargs.pop("tensor", False):
        kwargs["lr"] = torch.tensor(0.03, dtype=torch.float64)
    else:
        kwargs["lr"] = 0.03
    mine, theirs = start(), start()
    opt = getattr(bridge, name)(mine, **copy.deepcopy(kwargs))
    peer = getattr(torch.optim, name)(theirs, foreach=False, **copy.deepcopy(kwargs))
    pair = [SCHEDULERS[number](o) for o in (opt, peer)]
    for t in range(9):
        run(opt, mine, t, 1)
        run(peer, theirs, t, 1)
        for scheduler in pair:
            scheduler.step(*([1.0] if isinstance(scheduler, schedulers.ReduceLROnPlateau) else []))
        assert float(opt.param_groups[0]["lr"]) == float(peer.param_groups[0]["lr"])
    for p, q in zip(mine, theirs, strict=True):
        assert (p - q).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_grad_scaler(name: str):
    mine, theirs = start(torch.float32), start(torch.float32)
    opt, plain = getattr(bridge, name)(mine, lr=0.1), getattr(bridge, name)(theirs, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t in range(5):
        opt.zero_grad()
        scaler.scale(sum((p * p).sum() for p in mine)).backward()
        if t == 2:
            mine[0].grad[0] = math.inf
        scaler.step(opt)
        scaler.update()
        if t != 2:
            plain.zero_grad()
            sum((p * p).sum() for p in theirs).backward()
            plain.step()
    assert same(mine, theirs)


def test_weight_averaging_and_clipping():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    averaged = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    opt = bridge.AdamW(model.named_parameters(), lr=0.1, ema_decay=0.5)
    for _ in range(4):
        opt.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step()
        averaged.update_parameters(model)
    assert averaged.n_averaged == 4
    assert opt.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_groups_added_later():
    a, b = start(), start()
    rng = np.random.default_rng(0)
    opt, peer = bridge.Adagrad(a[:1]), torch.optim.Adagrad(b[:1], foreach=False)
    run(opt, a[:1], 0, 2)
    run(peer, b[:1], 0, 2)
    opt.add_param_group({"params": a[1:], "lr": 0.5})
    peer2 = torch.optim.Adagrad(b[1:], lr=0.5, foreach=False)
    for _ in range(3):
        for p, q in zip(a, b, strict=True):
            p.grad = torch.from_numpy(np.asarray(rng.normal(size=p.shape)))
            q.grad = p.grad.clone()
        opt.step()
        peer.step()
        peer2.step()
    assert [opt.state[p]["step"].item() for p in a] == [5.0, 3.0, 3.0]
    for p, q in zip(a, b, strict=True):
        assert (p - q).abs().max() < 1e-13
