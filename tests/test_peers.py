"""Agreement with the real libraries, in float64, element by element, over 50 steps."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import peers
from cases import CASES, Case
from ironstep import optim

PAIRS = [(case, name) for case in CASES for name in case.peers]
SHAPES = [(7,), (3, 4), (), (1,)]


def agree(opt: optim.Optimizer, mine: list[np.ndarray], peer: peers.Peer, tolerance: float, steps: int = 50) -> None:
    rng = np.random.default_rng(11)
    for t in range(steps):
        grads = [rng.normal(size=p.shape) for p in mine]
        grads[0][1] = 0.0  # an element that never has a gradient
        if t == 5:
            grads[0][2] = 30.0
        opt.step(grads)
        for i, (ours, theirs) in enumerate(zip(mine, peer.step(grads), strict=True)):
            error = np.abs(ours - theirs)
            assert (error <= tolerance).all(), f"step {t + 1}, array {i}: {ours}, not {theirs}: {error.max()}"


def start() -> list[np.ndarray]:
    rng = np.random.default_rng(10)
    params = [np.asarray(rng.normal(size=shape)) for shape in SHAPES]
    params[0][0] = 0.0  # else the parameter's own rounding hides the update's
    return params


@pytest.mark.parametrize(("case", "name"), PAIRS, ids=[f"{case.name}-{name}" for case, name in PAIRS])
def test_agrees_with(case: Case, name: str):
    params = start()
    peer = case.peers[name]([p.copy() for p in params])
    agree(case.cls(params, **case.kwargs), params, peer, case.tolerance)


def test_defaults_are_torchs():
    """Where torch has the optimiser: the same arguments have the same default, in the same order."""
    import torch

    for cls in {case.cls for case in CASES}:
        theirs = getattr(torch.optim, cls.__name__, None)
        if theirs is None:
            assert cls in (optim.Lion, optim.LAMB, optim.LARS)
            continue
        ours = inspect.signature(cls.__init__).parameters
        common = {n: p.default for n, p in inspect.signature(theirs.__init__).parameters.items() if n in ours}
        assert {n: ours[n].default for n in common} == common, cls
        positional = [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == list(inspect.signature(theirs.__init__).parameters)[: len(positional)], cls


def test_lamb_of_pytorch_optimizer():
    """It divides lr by 1 - beta1^t, clamps the parameter's norm at 10, and adds eps to the direction's."""
    params = [np.asarray(10.0 * p) for p in start()]
    peer = peers.pytorch_optimizer("Lamb", lr=0.01, betas=(0.8, 0.95), eps=1e-4)([p.copy() for p in params])
    opt = optim.LAMB(
        params,
        lr=lambda t: 0.01 / (1 - 0.8 ** (t + 1)),
        betas=(0.8, 0.95),
        eps=1e-4,
        weight_decay=0.0,
        bias_correction=False,
        max_param_norm=10.0,
        eps_in_ratio=True,
    )
    agree(opt, params, peer, 1e-12)


def test_clipping_by_norm_is_torchs():
    import torch

    params = start()
    theirs = [torch.tensor(p, requires_grad=True) for p in params]
    opt, torch_opt = optim.AdamW(params, lr=0.1, max_norm=0.5), torch.optim.AdamW(theirs, lr=0.1, foreach=False)
    rng = np.random.default_rng(12)
    for t in range(50):
        grads = [rng.normal(size=p.shape) * 10.0 ** (t % 4 - 2) for p in params]
        for tensor, grad in zip(theirs, grads, strict=True):
            tensor.grad = torch.tensor(grad)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        torch_opt.step()
        result = opt.step(grads)
        assert abs(result.grad_norm - norm.item()) <= 1e-14 * norm.item()
        for ours, tensor in zip(params, theirs, strict=True):
            assert (np.abs(ours - tensor.detach().numpy()) <= 1e-12).all()


def test_average_of_the_weights_is_torchs():
    import torch

    w = np.linspace(-1, 1, 9)
    model = torch.nn.ParameterList([torch.tensor(w)])
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=False
    )
    average.update_parameters(model)  # its first call copies
    opt, torch_opt = optim.SGD(w, lr=0.1, ema_decay=0.9), torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    rng = np.random.default_rng(13)
    for _ in range(50):
        g = rng.normal(size=9)
        opt.step(g)
        model[0].grad = torch.tensor(g)
        torch_opt.step()
        average.update_parameters(model)
        assert (np.abs(opt.ema - average.module[0].detach().numpy()) <= 1e-12).all()


@pytest.mark.parametrize("op", ["Adam", "Adagrad", "Momentum"])
def test_onnx_node_cases(op: str):
    """The node tests that ONNX ships for its training operators."""
    from onnx import numpy_helper  # noqa: F401 (the cases need it loaded)
    from onnx.backend.test.case.node import adagrad, adam, momentum

    rng = np.random.default_rng(14)
    for t in range(3):
        r, (x, g, h, v) = 0.1, np.abs(rng.normal(size=(4, 5))).astype(np.float32)
        ours = x.copy()
        if op == "Adam":
            want = adam.apply_adam(r, t, x, g, v, h, 1e-3, 0.0, 0.95, 0.1, 1e-7)
            # Its count begins at 0, with a step that is not corrected.
            opt = optim.Adam(ours, lr=0.1, betas=(0.95, 0.1), eps=1e-7, eps_hat=True, weight_decay=1e-3)
            opt.state["exp_avg"][...], opt.state["exp_avg_sq"][...] = v, h
            opt._steps = [t - 1 if t > 0 else 0]
            if t == 0:
                opt = optim.Adam(ours, lr=0.1, betas=(0.95, 0.1), eps=1e-7, bias_correction=False, weight_decay=1e-3)
                opt.state["exp_avg"][...], opt.state["exp_avg_sq"][...] = v, h
            opt.step(g)
            got = (ours, opt.state["exp_avg"], opt.state["exp_avg_sq"])
        elif op == "Adagrad":
            want = adagrad.apply_adagrad(r, t, x, g, h, 1e-3, 1e-5, 0.1)
            opt = optim.Adagrad(ours, lr=0.1, lr_decay=0.1, weight_decay=1e-3, eps=1e-5)
            opt.state["sum"][...] = h
            opt._steps = [t]
            opt.step(g)
            got = (ours, opt.state["sum"])
        else:
            nesterov = bool(t % 2)
            apply = momentum.apply_nesterov if nesterov else momentum.apply_momentum
            want = apply(r, 1, x, g, v, 1e-3, 0.95, 1.0)
            opt = optim.SGD(ours, lr=0.1, momentum=0.95, weight_decay=1e-3, nesterov=nesterov)
            opt.state["momentum_buffer"][...] = v
            opt._steps = [1]
            opt.step(g)
            got = (ours, opt.state["momentum_buffer"])
        for a, b in zip(got, want, strict=True):
            assert (np.abs(a - b) <= 4 * np.spacing(np.abs(b).astype(np.float32))).all()


def test_lookahead_is_nesterovs_own_form():
    """With a constant mu, y = w + mu v of Nesterov 1983 follows torch's and Keras's rewritten form (Sutskever 2013)."""
    import torch

    a = np.array([1.0, 5.0])
    w = np.array([2.0, -1.0])
    opt = optim.SGD(w, lr=0.05, momentum=0.8, lr_in_momentum=True)
    y = torch.tensor(w, requires_grad=True)
    theirs = torch.optim.SGD([y], lr=0.05, momentum=0.8, nesterov=True, foreach=False)
    for _ in range(50):
        with opt.lookahead():
            ahead = w.copy()
            gradient = a * w
        assert (np.abs(ahead - y.detach().numpy()) <= 1e-12).all()
        opt.step(gradient)
        y.grad = torch.tensor(a) * y.detach()
        theirs.step()
