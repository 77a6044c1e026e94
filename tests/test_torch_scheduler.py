"""Schedules on torch optimisers, ironstep's and torch's own: the values, to the bit, at every step, resumed or not."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import Optimizer, lr_scheduler

import ironstep.torch.optim
from ironstep import schedules
from ironstep.torch import Scheduler

COSINE = schedules.warmup_cosine(0.1, steps=40, warmup_steps=4)
DECAY = schedules.linear(0.0, 0.3, 30)
BETA = schedules.one_cycle_momentum(0.85, 0.95, steps=40)
KINDS: dict[str, Callable[..., Any]] = {
    f"{module.__name__.partition('.')[0]} {name}": getattr(module, name)
    for module in (torch.optim, ironstep.torch.optim)
    for name in ("SGD", "AdamW", "Adam", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "Adadelta")
} | {f"ironstep {name}": getattr(ironstep.torch.optim, name) for name in ("Lion", "LAMB", "LARS")}

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def params(n: int = 1) -> list[Any]:
    """With gradients, so that a step does something."""
    out = [torch.nn.Parameter(torch.linspace(-1, 1, 5) * (i + 1)) for i in range(n)]
    for param in out:
        param.grad = torch.ones_like(param) / 2
    return out


def groups(n: int = 2) -> list[dict[str, Any]]:
    return [{"params": [param]} for param in params(n)]


def adamw(**kwargs: Any) -> Optimizer:
    return torch.optim.AdamW(params(), **kwargs)


def held(opt: Optimizer, name: str = "lr") -> list[Any]:
    return [group[name] for group in opt.param_groups]


def run(opt: Optimizer, scheduler: Any, n: int, name: str = "lr") -> list[Any]:
    """The values of the first group that n steps were taken with."""
    out = []
    for _ in range(n):
        out.append(copy.deepcopy(opt.param_groups[0][name]))
        opt.step()
        scheduler.step()
    return out


# -- The values --------------------------------------------------------------------------------------------------------


@every_kind
def test_every_optimiser_follows_schedules_of_all_its_numbers(kind: Callable[..., Any]) -> None:
    opt = kind(params(), lr=7.0)
    more = {"momentum": BETA, "eps": schedules.linear(1e-8, 1e-6, 9), "alpha": BETA}
    # A momentum of 0 has no buffer in ours, so it stays.
    wanted = {"lr": COSINE, "weight_decay": DECAY} | {k: s for k, s in more.items() if opt.param_groups[0].get(k)}
    scheduler = Scheduler(opt, **wanted)
    for step in range(45):
        assert {name: opt.param_groups[0][name] for name in wanted} == {name: s(step) for name, s in wanted.items()}
        opt.step()
        scheduler.step()
    assert scheduler.last_epoch == 45
    assert scheduler.get_last_lr() == scheduler.get_lr() == [COSINE(45)]


def test_the_steps_are_those_of_a_number_set_by_hand() -> None:
    for module in (torch.optim, ironstep.torch.optim):
        (a,), (b,) = params(), params()
        opt, twin = module.AdamW([a], lr=5.0), module.AdamW([b], lr=5.0)
        scheduler = Scheduler(opt, lr=COSINE, weight_decay=DECAY, betas=(BETA, 0.999))
        for step in range(10):
            twin.param_groups[0].update(lr=COSINE(step), weight_decay=DECAY(step), betas=(BETA(step), 0.999))
            opt.step()
            twin.step()
            scheduler.step()
        assert torch.equal(a, b)
        assert not torch.equal(a, params()[0])


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        (
            schedules.presets.torch_cosine_annealing(0.5, T_max=20),
            lambda opt: lr_scheduler.CosineAnnealingLR(opt, 20),
        ),
        (schedules.presets.torch_step(0.5, step_size=7), lambda opt: lr_scheduler.StepLR(opt, 7)),
        (
            schedules.presets.torch_one_cycle(0.5, total_steps=20),
            lambda opt: lr_scheduler.OneCycleLR(opt, 0.5, 20, cycle_momentum=False),
        ),
    ],
    ids=["cosine", "step", "one cycle"],
)
def test_presets_of_torch_are_torchs_schedulers(own: Any, theirs: Callable[[Any], Any]) -> None:
    a, b = adamw(lr=0.5), adamw(lr=0.5)
    np.testing.assert_allclose(run(a, Scheduler(a, lr=own), 20), run(b, theirs(b), 20), rtol=1e-12, atol=1e-15)


def test_any_callable_and_number_will_do_and_they_stay_python_floats() -> None:
    opt = adamw()
    scheduler = Scheduler(opt, lr=lambda step: np.float32(0.5) ** step, weight_decay=1, eps=lambda step: step)
    for step in range(3):
        got = [opt.param_groups[0][name] for name in ("lr", "weight_decay", "eps")]
        assert got == [0.5**step, 1.0, float(step)]
        assert [type(value) for value in got] == [float] * 3
        opt.step()
        scheduler.step()


def test_a_list_has_one_for_each_group_and_all_else_is_for_all() -> None:
    opt = torch.optim.AdamW(groups())
    scheduler = Scheduler(opt, lr=[COSINE, 0.25], weight_decay=DECAY, betas=[(BETA, 0.9), (0.5, BETA)])
    for step in range(5):
        assert held(opt) == [COSINE(step), 0.25]
        assert held(opt, "weight_decay") == [DECAY(step)] * 2
        assert held(opt, "betas") == [(BETA(step), 0.9), (0.5, BETA(step))]
        assert scheduler.get_last_lr() == held(opt)
        opt.step()
        scheduler.step()


def test_a_group_added_later_follows_what_is_for_all_and_a_list_says_that_it_is_too_short() -> None:
    opt, listed = torch.optim.SGD(groups()), torch.optim.SGD(groups())
    scheduler, short = Scheduler(opt, lr=COSINE), Scheduler(listed, lr=[COSINE, COSINE], weight_decay=DECAY)
    for each in (opt, listed):
        each.add_param_group({"params": params(), "lr": 3.0})
        each.step()
    scheduler.step()
    assert held(opt) == [COSINE(1)] * 3
    with pytest.raises(ValueError, match="lr must be a list with one schedule for each of the 3 parameter groups, got"):
        short.step()
    assert held(listed) == [COSINE(0), COSINE(0), 3.0]
    assert held(listed, "weight_decay") == [0.0] * 3
    assert short.last_epoch == 0


def test_a_tensor_is_filled_in_place() -> None:
    lr, beta = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    opt = torch.optim.AdamW(params(), lr=lr, betas=(beta, torch.tensor(0.75)), capturable=False, foreach=False)
    scheduler = Scheduler(opt, lr=COSINE, betas=(BETA, 0.5))
    for step in range(4):
        assert opt.param_groups[0]["lr"] is lr
        assert opt.param_groups[0]["betas"][0] is beta
        assert (lr.item(), beta.item()) == (COSINE(step), BETA(step))
        (last,) = scheduler.get_last_lr()
        assert last == lr
        assert last is not lr
        scheduler.step() if step else (opt.step(), scheduler.step())


def test_a_list_in_a_group_stays_a_list() -> None:
    opt = adamw()
    opt.param_groups[0]["betas"] = [0.9, 0.99]
    Scheduler(opt, betas=(BETA, 0.5))
    assert opt.param_groups[0]["betas"] == [BETA(0), 0.5]


def test_schedules_of_other_numbers_leave_the_learning_rate_alone() -> None:
    opt = adamw(lr=0.125)
    scheduler = Scheduler(opt, weight_decay=DECAY)
    opt.step()
    scheduler.step()
    assert held(opt) == scheduler.get_last_lr() == scheduler.get_lr() == [0.125]
    assert held(opt, "weight_decay") == [DECAY(1)]


def test_a_step_can_be_given() -> None:
    opt = adamw()
    scheduler = Scheduler(opt, lr=COSINE)
    opt.step()
    for step in (17, 3, 0):
        scheduler.step(step)
        assert held(opt) == [COSINE(step)]
    scheduler.step()
    assert held(opt) == [COSINE(1)]
    for bad, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="epoch must be an integer at least 0"):
            scheduler.step(bad)
    assert scheduler.last_epoch == 1


# -- Among torch's schedulers ------------------------------------------------------------------------------------------


def test_it_is_one_of_torchs_schedulers() -> None:
    opt = adamw(lr=0.5)
    scheduler = Scheduler(opt, lr=COSINE)
    assert isinstance(scheduler, lr_scheduler.LRScheduler)
    assert scheduler.optimizer is opt
    assert held(opt, "initial_lr") == [0.5]


def test_in_sequence_each_begins_at_its_own_step_0() -> None:
    opt = adamw(lr=0.5)
    first, second = schedules.linear(0.0, 1.0, 5), schedules.cosine(0.75, steps=9)
    both = lr_scheduler.SequentialLR(opt, [Scheduler(opt, lr=first), Scheduler(opt, lr=second)], milestones=[5])
    assert run(opt, both, 14) == [first(t) for t in range(5)] + [second(t) for t in range(9)]
    again = adamw(lr=0.5)
    fresh = lr_scheduler.SequentialLR(again, [Scheduler(again, lr=first), Scheduler(again, lr=second)], milestones=[5])
    twin = adamw(lr=0.5)
    other = lr_scheduler.SequentialLR(twin, [Scheduler(twin, lr=first), Scheduler(twin, lr=second)], milestones=[5])
    for n in (3, 5, 6, 8):
        other.load_state_dict(fresh.state_dict())
        twin.load_state_dict(again.state_dict())
        assert run(again, fresh, n) == run(twin, other, n)


def test_a_scheduler_of_torch_after_ours_resumes_where_it_was() -> None:
    """It computes each value from the one in the group, which must not be touched when ours is loaded after it."""

    def make() -> tuple[Any, Any]:
        opt = adamw(lr=0.5)
        warmup = Scheduler(opt, lr=schedules.linear(0.1, 0.5, 3))
        both = [warmup, lr_scheduler.CosineAnnealingLR(opt, 10)]
        return opt, lr_scheduler.SequentialLR(opt, both, milestones=[3])

    opt, sequence = make()
    run(opt, sequence, 6)
    again, fresh = make()
    again.load_state_dict(opt.state_dict())
    fresh.load_state_dict(sequence.state_dict())
    assert run(again, fresh, 4) == run(opt, sequence, 4)


def test_two_of_them_share_an_optimiser() -> None:
    opt = adamw()
    both = lr_scheduler.ChainedScheduler([Scheduler(opt, lr=COSINE), Scheduler(opt, weight_decay=DECAY)], opt)
    run(opt, both, 3)
    assert (held(opt), held(opt, "weight_decay")) == ([COSINE(3)], [DECAY(3)])


def test_the_order_of_calls_is_watched_as_by_torch() -> None:
    opt = adamw()
    scheduler = Scheduler(opt, lr=COSINE)
    with pytest.warns(UserWarning, match=r"scheduler\.step\(\) was called before optimizer\.step\(\)") as record:
        scheduler.step()
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()  # once is enough
        after = adamw()
        run(after, Scheduler(after, lr=COSINE), 3)


def test_a_compiled_or_replaced_step_gives_no_warning() -> None:
    opt = adamw()
    scheduler = Scheduler(opt, lr=COSINE)
    opt.step = lambda: None
    scheduler.step()


# -- Saving ------------------------------------------------------------------------------------------------------------


def resumable() -> tuple[Any, Any]:
    opt = ironstep.torch.optim.AdamW(params(), lr=0.5)
    return opt, Scheduler(opt, lr=COSINE, weight_decay=DECAY, betas=(BETA, 0.99))


@pytest.mark.parametrize("order", ["optimiser first", "scheduler first", "scheduler made last"])
def test_a_resumed_run_has_the_same_values_to_the_bit(order: str) -> None:
    opt, scheduler = resumable()
    run(opt, scheduler, 7)
    file = io.BytesIO()
    torch.save({"opt": opt.state_dict(), "scheduler": scheduler.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, fresh = resumable()
    if order == "scheduler first":
        fresh.load_state_dict(saved["scheduler"])
        again.load_state_dict(saved["opt"])
    else:
        again.load_state_dict(saved["opt"])
        if order == "scheduler made last":
            fresh = Scheduler(again, lr=COSINE, weight_decay=DECAY, betas=(BETA, 0.99))
        fresh.load_state_dict(saved["scheduler"])
    for _ in range(5):
        assert fresh.last_epoch == scheduler.last_epoch
        for name in ("lr", "weight_decay", "betas"):
            assert held(again, name) == held(opt, name)
        run(again, fresh, 1)
        run(opt, scheduler, 1)


def test_another_schedule_takes_effect_from_the_step_that_was_reached() -> None:
    opt, scheduler = resumable()
    run(opt, scheduler, 7)
    longer = schedules.cosine(0.1, steps=100)
    again = adamw()
    other = Scheduler(again, lr=longer, weight_decay=DECAY, betas=(BETA, 0.99))
    other.load_state_dict(scheduler.state_dict())
    assert run(again, other, 3) == [longer(7), longer(8), longer(9)]


def test_a_plateau_keeps_its_state() -> None:
    def make() -> tuple[Any, Any, Any]:
        plateau = schedules.ReduceLROnPlateau(0.5, factor=0.5, patience=0)
        opt = torch.optim.SGD(groups(), lr=1.0)
        return plateau, opt, Scheduler(opt, lr=[plateau, plateau], weight_decay=DECAY)

    plateau, opt, scheduler = make()
    opt.step()
    for metric in (1.0, 2.0, 3.0):
        plateau.update(metric)
    scheduler.step()
    assert held(opt) == [0.125] * 2
    saved = scheduler.state_dict()
    assert list(saved["states"]) == ["lr[0]"]
    other, again, fresh = make()
    fresh.load_state_dict(saved)
    assert held(again) == [0.125] * 2
    assert other.state_dict() == plateau.state_dict()
    before = other.state_dict()
    for wrong in (saved | {"states": {}}, saved | {"states": {"lr[0]": {}}}, saved | {"last_epoch": -2}):
        with pytest.raises(ValueError, match=r"(state_dict.* must|last_epoch must)"):
            fresh.load_state_dict(wrong)
        assert other.state_dict() == before
        assert fresh.last_epoch == 1


def test_of_several_states_all_are_loaded_or_none() -> None:
    first, second = (schedules.ReduceLROnPlateau(0.5, patience=0) for _ in range(2))
    scheduler = Scheduler(torch.optim.SGD(groups()), lr=[first, second])
    saved, before = copy.deepcopy(scheduler.state_dict()), first.state_dict()
    saved["states"]["lr[0]"]["lr"] = 0.25
    saved["states"]["lr[1]"]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be"):
        scheduler.load_state_dict(saved)
    assert first.state_dict() == before


def test_a_copy_goes_on_by_itself() -> None:
    opt, scheduler = resumable()
    run(opt, scheduler, 3)
    for clone in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        other = clone(scheduler)
        assert other.optimizer is not opt
        assert other.state_dict() == scheduler.state_dict()
        run(other.optimizer, other, 2)
        assert held(other.optimizer) == [COSINE(5)]
        assert held(opt) == [COSINE(3)]


def test_the_repr_shows_the_schedules() -> None:
    opt = adamw()
    assert repr(Scheduler(opt, lr=schedules.cosine(0.1, steps=9), betas=(0.5, 0.9))) == (
        "Scheduler(AdamW, lr=cosine(0.1, steps=9), betas=(0.5, 0.9))"
    )


# -- Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, ValueError, "schedules must be given by name"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, finite and at least 0, or a callable of the step, got '0.1'"),
        ({"lr": None}, TypeError, "lr must be a number"),
        ({"lr": True}, TypeError, "lr must be a number"),
        ({"lr": -0.1}, ValueError, "lr must be finite and at least 0, got -0.1"),
        ({"lr": float("nan")}, ValueError, "lr must be finite"),
        ({"lr": lambda step: -1.0}, ValueError, r"lr\(0\) must be finite and at least 0, got -1.0"),
        ({"lr": lambda step: "x"}, TypeError, r"lr\(0\) must be a number"),
        ({"lr": [COSINE]}, ValueError, "lr must be a list with one schedule for each of the 2 parameter groups, got 1"),
        ({"lr": [COSINE, -1.0]}, ValueError, r"lr\[1\] must be finite"),
        ({"lr": [COSINE, lambda step: -1.0]}, ValueError, r"lr\[1\]\(0\) must be finite"),
        ({"lr": (COSINE, COSINE)}, ValueError, r"lr must be one schedule like .* \(a list has one for each group\)"),
        ({"betas": COSINE}, ValueError, r"betas must be a tuple of 2 schedules or numbers like \(0.9, 0.999\)"),
        ({"betas": (COSINE,)}, ValueError, "betas must be a tuple of 2 schedules"),
        ({"betas": (COSINE, 1.5)}, ValueError, r"betas\[1\] must be at least 0 and below 1, got 1.5"),
        ({"betas": [(0.9, 0.9), (0.9, lambda t: 1.0)]}, ValueError, r"betas\[1\]\[1\]\(0\) must be at least 0 and"),
        ({"moment": COSINE}, ValueError, r"moment is no hyperparameter in param_groups\[0\] of .* lr, "),
        ({"params": COSINE}, ValueError, "params is no hyperparameter"),
        (
            {"amsgrad": COSINE},
            ValueError,
            r"amsgrad must be a number in param_groups\[0\] to follow",
        ),
        ({"weight_decay": COSINE, "lr": -1}, ValueError, "lr must be finite"),
    ],
)
def test_wrong_arguments_are_named_and_change_nothing(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    opt = torch.optim.AdamW(groups(), lr=0.5)
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(error, match=text):
        Scheduler(opt, **arguments)
    assert opt.state_dict() == before
    assert "step" not in vars(opt)


def test_an_optimiser_must_be_torchs() -> None:
    own = ironstep.optim.AdamW(np.ones(3))
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got AdamW"):
        Scheduler(own, lr=COSINE)


def test_a_tensor_in_several_groups_cannot_follow_several_schedules() -> None:
    shared = torch.tensor(0.5, dtype=torch.float64)
    opt = torch.optim.SGD(groups(), lr=shared, foreach=False)
    with pytest.raises(ValueError, match="lr is one and the same tensor in several parameter groups"):
        Scheduler(opt, lr=[COSINE, 0.25])
    Scheduler(opt, lr=COSINE)
    assert held(opt) == [COSINE(0)] * 2


def test_a_value_that_goes_wrong_later_changes_nothing() -> None:
    opt = adamw(lr=0.5)
    scheduler = Scheduler(opt, weight_decay=DECAY, lr=lambda step: 0.5 if step < 2 else -0.5)
    run(opt, scheduler, 1)
    opt.step()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"lr\(2\) must be finite and at least 0, got -0.5"):
            scheduler.step()
        assert (held(opt), held(opt, "weight_decay"), scheduler.last_epoch) == ([0.5], [DECAY(1)], 1)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda saved: [], TypeError, "state_dict must be a dict that `state_dict` gave, got list"),
        (lambda saved: saved | {"more": 1}, ValueError, "state_dict must have the keys last_epoch, _step_count"),
        (lambda saved: saved | {"last_epoch": 1.0}, TypeError, "last_epoch must be an integer"),
        (lambda saved: saved | {"_step_count": 0}, ValueError, "_step_count must be an integer at least 1"),
        (
            lambda saved: saved | {"schedules": ["lr"]},
            ValueError,
            r"\['schedules'\] must be of lr, weight_decay,",
        ),
        (lambda saved: saved | {"schedules": 3}, TypeError, r"\['schedules'\] must be what `state_dict` gave, got 3"),
        (lambda saved: saved | {"states": {"lr": {}}}, ValueError, r"\['states'\] must be of nothing, .* got lr"),
        (lambda saved: lr_scheduler.StepLR(adamw(), 3).state_dict(), ValueError, "must have the keys"),
    ],
)
def test_wrong_states_are_refused_and_change_nothing(
    change: Callable[[Any], Any], error: type[Exception], text: str
) -> None:
    opt, scheduler = resumable()
    run(opt, scheduler, 3)
    saved = scheduler.state_dict()
    with pytest.raises(error, match=text):
        scheduler.load_state_dict(change(saved))
    assert scheduler.state_dict() == saved
    assert held(opt) == [COSINE(3)]
