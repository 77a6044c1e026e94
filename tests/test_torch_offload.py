"""Steps in the memory of the CPU: the bits of `master_weights`, and with `overlap` those of a loop that is one late."""

from __future__ import annotations

import copy
import io
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cases import CASES, Case
from ironstep import schedules
from ironstep.torch import Scheduler, optim

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
OPTIONS: dict[str, Any] = {"max_norm": 1.0, "clip_value": 2.0, "ema_decay": 0.9}
TIMEOUT = 60.0

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def parameters(device: str = "cpu", dtypes: tuple[torch.dtype, ...] = (BF16, F16, F32, F64)) -> list[Any]:
    """Of several types and layouts."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (3,), (), (40, 3), (0, 4), (6, 6)]
    out = []
    for i, shape in enumerate(shapes * 2):
        tensor = torch.randn(shape, generator=generator).to(device, dtypes[i % len(dtypes)])
        out.append(torch.nn.Parameter(tensor.t()[:: 1 + (i == 5)] if i in (3, 5) else tensor))
    return out


def give(params: list[Any], seed: int, without: int | None = None) -> None:
    """New gradients."""
    generator = torch.Generator().manual_seed(100 + seed)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
        p.grad = None if i == without else grad


def clear(params: list[Any]) -> None:
    """Writes over the gradients and lets them go, as `zero_grad` may."""
    for p in params:
        if p.grad is not None:
            p.grad.fill_(torch.nan)
        p.grad = None


def values(params: list[Any]) -> list[torch.Tensor]:
    return [p.detach().cpu().clone() for p in params]


def assert_bits(a: Any, b: Any) -> None:
    """Equal in type, shape and every bit, wherever they are."""
    a, b = list(a), list(b)
    assert len(a) == len(b)
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert (x.dtype, x.shape) == (y.dtype, y.shape), i
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.dtype.itemsize]
        assert torch.equal(x.detach().cpu().contiguous().view(bits), y.detach().cpu().contiguous().view(bits)), i


def states(opt: Any) -> list[torch.Tensor]:
    """All that both kinds of optimiser keep."""
    own = opt.state_dict()["state"].values()
    return [state[name] for state in own for name in sorted(state) if name != "master"]


def masters(opt: Any) -> list[torch.Tensor]:
    return [own["master"] for own in opt.state_dict()["state"].values() if "master" in own]


def bridge(case: Case) -> Callable[..., Any]:
    cls = getattr(optim, case.cls.__name__)
    return lambda params, **options: cls(params, **(case.kwargs | options))


def adamw(params: list[Any], **options: Any) -> Any:
    return optim.AdamW(params, lr=0.1, **options)


# -- The bits ----------------------------------------------------------------------------------------------------------


@every_case
def test_offloaded_steps_are_those_with_master_weights(case: Case) -> None:
    make = bridge(case)
    plain, there, late = parameters(), parameters(), parameters()
    a = make(plain, master_weights=True, **OPTIONS)
    b = make(there, offload=True, **OPTIONS)
    c = make(late, offload=True, overlap=True, **OPTIONS)
    for step in range(4):
        for params, opt in ((plain, a), (there, b), (late, c)):
            give(params, step, without=step if step > 1 else None)
            opt.step()
            opt.synchronize()
            clear(params)
        assert a.grad_norm == b.grad_norm == c.grad_norm
        assert a.grad_norm is not None
    assert_bits(values(there), values(plain))
    assert_bits(values(late), values(plain))
    assert_bits(states(b), states(a))
    assert_bits(states(c), states(a))
    assert_bits(masters(b), masters(a))
    for p, own in c.state.items():
        assert_bits([own["master"].to(p.dtype)], [p])


@every_case
def test_overlapped_steps_are_those_of_a_loop_that_writes_one_step_late(case: Case) -> None:
    """Gradients that depend on the weights: those of the batch after a step are taken before its result is there."""

    def gradients(params: list[Any], seed: int) -> None:
        give(params, seed)
        for p in params:
            p.grad += p.detach() / 2

    make = bridge(case)
    there = parameters()
    opt = make(there, offload=True, overlap=True)
    for step in range(5):
        gradients(there, step)
        opt.step()
        clear(there)
    opt.synchronize()
    # By hand: weights that are seen, and weights that are stepped.
    seen, hidden = parameters(), parameters()
    twin = make(hidden, master_weights=True)
    for step in range(5):
        gradients(seen, step)
        if step:
            with torch.no_grad():
                for p, q in zip(seen, hidden, strict=True):
                    p.copy_(q)
        for p, q in zip(seen, hidden, strict=True):
            q.grad = p.grad
        twin.step()
    assert_bits(values(there), values(hidden))
    assert_bits(states(opt), states(twin))


def test_the_new_weights_are_written_at_the_next_call_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the thread is fast or slow."""
    params = parameters()
    opt = adamw(params, offload=True, overlap=True)
    finished, begin = threading.Event(), threading.Event()
    run = optim._base.Optimizer._run

    def slow(self: Any, plan: Any) -> Any:
        assert begin.wait(TIMEOUT)
        out = run(self, plan)
        finished.set()
        return out

    monkeypatch.setattr(optim._base.Optimizer, "_run", slow)
    before = values(params)
    give(params, 0)
    opt.step()  # returns though the computation has not begun
    clear(params)
    begin.set()
    assert finished.wait(TIMEOUT)
    assert_bits(values(params), before)
    assert opt.grad_norm is None
    opt.synchronize()
    plain = parameters()
    give(plain, 0)
    adamw(plain, master_weights=True).step()
    assert_bits(values(params), values(plain))
    opt.synchronize()
    assert_bits(values(params), values(plain))


@pytest.mark.parametrize(
    "call",
    [
        lambda opt: opt.state_dict(),
        lambda opt: opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]}),
        lambda opt: opt.sync_master(),
        lambda opt: copy.deepcopy(opt),
        lambda opt: pickle.dumps(opt),
        lambda opt: setattr(opt, "max_norm", 3.0),
        lambda opt: opt.step(lambda: None),
        lambda opt: opt.synchronize(),
    ],
    ids=["state_dict", "add_param_group", "sync_master", "deepcopy", "pickle", "max_norm", "step", "synchronize"],
)
def test_whatever_looks_at_the_optimiser_finishes_the_step_first(call: Callable[[Any], Any]) -> None:
    params, plain = parameters(), parameters()
    opt, twin = adamw(params, offload=True, overlap=True), adamw(plain, master_weights=True)
    for each, own in ((params, opt), (plain, twin)):
        give(each, 0)
        own.step()
        clear(each)
    call(opt)
    assert_bits(values(params), values(plain))


def test_a_closure_is_called_with_the_old_weights() -> None:
    params = [torch.nn.Parameter(torch.ones(3, dtype=BF16))]
    opt = adamw(params, offload=True, overlap=True)
    seen = []

    def closure() -> float:
        seen.append(params[0].detach().clone())
        give(params, len(seen))
        return 0.5

    assert [opt.step(closure) for _ in range(3)] == [0.5] * 3
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_scheduler_sets_the_numbers_of_the_next_step_not_of_the_one_under_way() -> None:
    params, plain = parameters(), parameters()
    lr = schedules.linear(0.1, 0.0, 5)
    for each, options in ((params, {"offload": True, "overlap": True}), (plain, {"master_weights": True})):
        opt = adamw(each, **options)
        scheduler = Scheduler(opt, lr=lr)
        for step in range(4):
            give(each, step)
            opt.step()
            scheduler.step()
        opt.synchronize()
    assert_bits(values(params), values(plain))


# -- Errors ------------------------------------------------------------------------------------------------------------


def test_an_error_of_the_step_under_way_comes_with_the_next_call_and_nothing_was_done() -> None:
    params, plain = parameters(), parameters()
    opt = adamw(params, offload=True, overlap=True, nonfinite="raise")
    twin = adamw(plain, master_weights=True, nonfinite="raise")
    for each, own in ((params, opt), (plain, twin)):
        give(each, 0)
        own.step()
    give(params, 1)
    params[1].grad[0] = torch.inf
    opt.step()
    kept = values(plain)
    with pytest.raises(FloatingPointError, match=r"the gradient of param_groups\[0\]\['params'\]\[1\] must be finite"):
        opt.step()
    assert_bits(values(params), kept)
    for each, own in ((params, opt), (plain, twin)):
        give(each, 2)
        own.step()
        own.synchronize()
    assert_bits(values(params), values(plain))
    assert_bits(states(opt), states(twin))


def test_the_first_step_may_fail_too() -> None:
    params = parameters()
    opt = adamw(params, offload=True, overlap=True, nonfinite="raise")
    give(params, 0)
    params[0].grad[0] = torch.nan
    opt.step()
    with pytest.raises(FloatingPointError):
        opt.synchronize()
    assert opt.state_dict()["state"] == {}
    assert_bits(values(params), values(parameters()))


def test_a_step_that_is_skipped_says_so_when_it_is_finished() -> None:
    params = parameters()
    opt = adamw(params, offload=True, overlap=True, nonfinite="skip")
    give(params, 0)
    params[0].grad[0] = torch.nan
    opt.step()
    assert not opt.skipped
    opt.synchronize()
    assert opt.skipped
    assert_bits(values(params), values(parameters()))


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (lambda p: setattr(p, "grad", p.detach().to_sparse()), TypeError, "gradient of .* must be a dense tensor"),
        (lambda p: setattr(p, "data", torch.ones(2, dtype=BF16)), ValueError, "must have shape"),
    ],
)
def test_what_cannot_be_stepped_is_refused_before_the_step_begins(
    spoil: Callable[[Any], Any], error: type[Exception], text: str
) -> None:
    params = [torch.nn.Parameter(torch.ones(3, dtype=BF16)), torch.nn.Parameter(torch.ones(2, dtype=BF16))]
    opt = adamw(params, offload=True, overlap=True)
    give(params, 0)
    opt.step()
    opt.synchronize()
    give(params, 1)
    spoil(params[0])
    kept = values(params)
    with pytest.raises(error, match=text):
        opt.step()
    opt.synchronize()
    assert_bits(values(params), kept)


def test_parameters_that_overlap_are_refused() -> None:
    base = torch.ones(6, dtype=BF16)
    opt = adamw([torch.nn.Parameter(base[:4]), torch.nn.Parameter(base[2:])], offload=True, overlap=True)
    give(opt.param_groups[0]["params"], 0)
    with pytest.raises(ValueError, match="overlap"):
        opt.step()


def test_the_switches_are_checked() -> None:
    with pytest.raises(ValueError, match="overlap=True needs offload=True"):
        adamw(parameters(), overlap=True)
    for name in ("offload", "overlap"):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got 1"):
            adamw(parameters(), **{name: 1})


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs pthread_kill")
def test_an_interrupted_wait_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the step is still computed: its result is neither lost nor taken half done."""
    params, plain = parameters(), parameters()
    opt, twin = adamw(params, offload=True, overlap=True), adamw(plain, master_weights=True)
    begin = threading.Event()
    run = optim._base.Optimizer._run

    def slow(self: Any, plan: Any) -> Any:
        assert begin.wait(TIMEOUT)
        return run(self, plan)

    give(plain, 0)
    twin.step()
    monkeypatch.setattr(optim._base.Optimizer, "_run", slow)
    give(params, 0)
    opt.step()
    interrupt = threading.Timer(0.2, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        opt.synchronize()
    interrupt.join()
    release = threading.Timer(0.2, begin.set)
    release.start()
    opt.synchronize()
    release.join()
    assert_bits(values(params), values(plain))
    assert_bits(states(opt), states(twin))


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_gradients_with_a_graph_are_copied_without_it() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    opt = adamw([p], offload=True, overlap=True)
    p.pow(3).sum().backward(create_graph=True)
    opt.step()
    p.grad = None
    opt.synchronize()
    assert not any(buffer.requires_grad for buffer in opt._last.leaves[0].part._buffers)


def test_a_first_step_in_inference_mode_is_like_any_other() -> None:
    params, plain = parameters(), parameters()
    opt, twin = adamw(params, offload=True, overlap=True), adamw(plain, master_weights=True)
    for step in range(3):
        for each, own in ((params, opt), (plain, twin)):
            give(each, step)
            with torch.inference_mode(step != 1):
                own.step()
    opt.synchronize()
    assert_bits(values(params), values(plain))


def test_a_parameter_that_is_another_when_the_step_is_over_is_not_written() -> None:
    p = torch.nn.Parameter(torch.ones((), dtype=BF16))
    opt = adamw([p], offload=True, overlap=True)
    give([p], 0)
    opt.step()
    p.data = torch.ones(3, dtype=BF16)
    with pytest.raises(ValueError, match=r"must keep shape \(\) while a step is under way, got \(3,\)"):
        opt.synchronize()
    assert torch.equal(p, torch.ones(3, dtype=BF16))


# -- Saving ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [False, True])
def test_a_resumed_run_goes_on_to_the_bit(overlap: bool) -> None:
    params = parameters()
    opt = adamw(params, offload=True, overlap=overlap, **OPTIONS)
    for step in range(3):
        give(params, step)
        opt.step()
    file = io.BytesIO()
    saved = opt.state_dict()  # first: it finishes the step
    torch.save({"opt": saved, "params": params}, file)
    assert {own["master"].dtype for own in saved["state"].values() if "master" in own} <= {F32, F64}
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    again = [torch.nn.Parameter(p.detach()) for p in loaded["params"]]
    other = adamw(again, offload=True, overlap=overlap, **OPTIONS)
    other.load_state_dict(loaded["opt"])
    for step in range(3, 6):
        for each, own in ((params, opt), (again, other)):
            give(each, step)
            own.step()
            own.synchronize()
    assert_bits(values(again), values(params))
    assert_bits(states(other), states(opt))
    assert_bits(masters(other), masters(opt))


def test_checkpoints_go_from_and_to_optimisers_that_are_not_offloaded() -> None:
    kinds: list[dict[str, Any]] = [
        {"master_weights": True},
        {"offload": True},
        {"offload": True, "overlap": True},
    ]
    want = parameters()
    straight = adamw(want, master_weights=True)
    for step in range(4):
        give(want, step)
        straight.step()
    for first in kinds:
        for second in kinds:
            params = parameters()
            opt = adamw(params, **first)
            for step in range(2):
                give(params, step)
                opt.step()
            saved = opt.state_dict()
            opt = adamw(params, **second)
            opt.load_state_dict(saved)
            for step in range(2, 4):
                give(params, step)
                opt.step()
            opt.synchronize()
            assert_bits(values(params), values(want))


def test_weights_that_were_loaded_by_hand_are_taken_by_sync_master() -> None:
    params, plain = parameters(), parameters()
    opt, twin = adamw(params, offload=True, overlap=True), adamw(plain, master_weights=True)
    for each, own in ((params, opt), (plain, twin)):
        give(each, 0)
        own.step()
        own.synchronize()
        with torch.no_grad():
            for p in each[::2]:
                p.mul_(0.5)
        own.sync_master()
        give(each, 1)
        own.step()
        own.synchronize()
    assert_bits(values(params), values(plain))
    assert_bits(states(opt), states(twin))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_is_forked_during_a_step_can_finish_it() -> None:
    params, plain = parameters(), parameters()
    opt, twin = adamw(params, offload=True, overlap=True), adamw(plain, master_weights=True)
    give(params, 0)
    give(plain, 0)
    twin.step()
    opt.step()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads, which are torch's own; JAX warns of its own if another test has loaded it.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            opt.synchronize()
            code = 0 if all(torch.equal(p, q) for p, q in zip(params, plain, strict=True)) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    opt.synchronize()
    assert_bits(values(params), values(plain))


def test_an_optimiser_that_is_dropped_during_a_step_leaves_no_thread() -> None:
    params = parameters()
    opt = adamw(params, offload=True, overlap=True)
    give(params, 0)
    opt.step()
    del opt
    for thread in threading.enumerate():
        if thread.name == "ironstep offload":
            thread.join(TIMEOUT)
    assert not any(thread.name == "ironstep offload" for thread in threading.enumerate())


# -- On a GPU ----------------------------------------------------------------------------------------------------------


def check_on_a_gpu(case: Case, overlap: bool) -> None:
    make = bridge(case)
    plain, there = parameters(), parameters("cuda")
    a = make(plain, master_weights=True, **OPTIONS)
    b = make(there, offload=True, overlap=overlap, **OPTIONS)
    for step in range(4):
        for params, opt in ((plain, a), (there, b)):
            give(params, step)
            opt.step()
            clear(params)
            opt.synchronize()
    assert_bits(values(there), values(plain))
    assert_bits(states(b), states(a))
    for p, own in b.state.items():
        assert p.is_cuda
        assert own["master"].is_pinned()
        assert all(value.device.type == "cpu" for value in own.values())


@on_gpu
@pytest.mark.parametrize("overlap", [False, True])
def test_parameters_on_a_gpu_have_the_bits_of_the_cpu(overlap: bool) -> None:
    for case in CASES:
        check_on_a_gpu(case, overlap)


@on_gpu
def test_a_mixed_model_on_a_gpu_overlaps() -> None:
    plain, mixed = parameters() + parameters(), parameters("cuda") + parameters()
    a, b = adamw(plain, master_weights=True), adamw(mixed, offload=True, overlap=True)
    for step in range(6):
        for params, opt in ((plain, a), (mixed, b)):
            give(params, step)
            opt.step()
            clear(params)
    b.synchronize()
    assert_bits(values(mixed), values(plain))


@pytest.mark.parametrize("overlap", [False, True])
def test_parameters_of_different_rules_that_overlap_are_refused(overlap: bool) -> None:
    base = torch.ones(8)
    a, b = torch.nn.Parameter(base[:5]), torch.nn.Parameter(base[4:])
    opt = optim.SGD([{"params": [a], "momentum": 0.9}, {"params": [b]}], lr=0.5, offload=True, overlap=overlap)
    a.grad, b.grad = torch.ones(5), torch.ones(4)
    with pytest.raises(ValueError, match="overlap in memory"):
        opt.step()
    assert base.eq(1).all()
