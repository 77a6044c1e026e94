"""What happens around the rule in the same call: scale, clips, non-finite gradients, the average, the master copy."""

from __future__ import annotations

import ctypes
import math
import platform
import re
import subprocess
from typing import Any

import numpy as np
import pytest

import ironstep
from cases import CASES, Case
from helpers import BF16, DTYPES, ISAS, Spec, assert_all_same_bits, assert_same_bits, bits, compute
from ironstep import _core, functional, optim
from reference import CHUNK, prepared, tree_sum
from reference import sum_squares as spec_sum_squares

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SIZES = [0, 3, 40, CHUNK + 5]


def draw(rng: np.random.Generator, dtype: Any) -> list[np.ndarray]:
    return [rng.normal(size=n).astype(dtype) for n in SIZES]


@each_dtype
@each_case
def test_scale_and_clips_equal_the_numpy_expression(case: Case, dtype: np.dtype):
    rng = np.random.default_rng(1)
    for around in ({"clip_value": 0.7}, {"max_norm": 2.5}, {"clip_value": 0.5, "max_norm": 3.0}, {"max_norm": 1e9}):
        params = draw(rng, dtype)
        spec = Spec(case, params)
        opt = case.cls(params, **case.kwargs, **around)
        for _ in range(2):
            grads = draw(rng, dtype)
            wide = [g.astype(compute(dtype)) for g in grads]
            ready, norm = prepared(wide, around | {"grad_scale": 0.3})
            result = opt.step(grads, grad_scale=0.3, grad_norm=True)
            assert result.grad_norm == norm
            spec.step(ready)
            assert_all_same_bits(params, spec.stored(), f"{around}")


@each_dtype
@each_case
def test_average_and_update_norm_equal_the_numpy_expression(case: Case, dtype: np.dtype):
    rng = np.random.default_rng(2)
    params = draw(rng, dtype)
    spec = Spec(case, params)
    average = [p.astype(compute(dtype)) for p in params]
    opt = case.cls(params, **case.kwargs, ema_decay=0.7)
    for _ in range(3):
        grads = draw(rng, dtype)
        old = [p.astype(compute(dtype)) for p in params]
        result = opt.step(grads, update_norm=True)
        # The average and the norm are taken of the new value before it is rounded to the stored type.
        spec.step(grads, round_params=False)
        new = spec.params
        average = [0.7 * a + (1 - 0.7) * p for a, p in zip(average, new, strict=True)]
        change = math.sqrt(tree_sum([spec_sum_squares(n - o) for n, o in zip(new, old, strict=True)]))
        assert result.update_norm == change
        spec.params = [p.astype(dtype).astype(p.dtype) for p in new]
        assert_all_same_bits(params, spec.stored(), "params")
        assert_all_same_bits(opt.ema, average, "ema")


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=str)
@each_case
def test_master_copy_takes_the_steps(case: Case, dtype: np.dtype):
    rng = np.random.default_rng(3)
    params = draw(rng, dtype)
    full = [p.astype(np.float32) for p in params]
    spec = Spec(case, full)
    opt = case.cls(params, **case.kwargs, master_weights=True, ema_decay=0.5)
    for _ in range(3):
        grads = draw(rng, dtype)
        opt.step(grads)
        spec.step(grads)
        assert_all_same_bits(opt.master, spec.params, "master")
        assert_all_same_bits(params, [p.astype(dtype) for p in spec.params], "params")


@pytest.mark.parametrize("dtype", [np.float16, BF16, np.float64], ids=str)
@each_case
def test_gradients_of_another_dtype(case: Case, dtype: Any):
    """They are widened, or rounded once, to the type that the parameter is computed in."""
    rng = np.random.default_rng(4)
    a = draw(rng, np.float32)
    b = [p.copy() for p in a]
    one, two = case.cls(a, **case.kwargs), case.cls(b, **case.kwargs)
    for _ in range(2):
        grads = draw(rng, dtype)
        one.step(grads)
        two.step([g.astype(np.float32) for g in grads])
    assert_all_same_bits(a, b)


def test_no_norm_unless_wanted():
    opt = optim.SGD(np.ones(3))
    assert opt.step(np.ones(3)) == (1, None, None, False)
    assert opt.step(np.ones(3), grad_norm=True) == (2, math.sqrt(3), None, False)
    opt.max_norm = 5.0
    assert opt.step(np.ones(3)).grad_norm == math.sqrt(3)


@pytest.mark.parametrize(
    "grads", [([np.inf, 1.0], [1.0, 1.0]), ([np.nan, 1.0], [1.0, 1.0]), ([1.7e308] * 2, [1.0] * 2)]
)
def test_to_report_a_norm_changes_nothing(grads: tuple[list[float], list[float]]):
    """Not even where it is infinite or NaN, or where only the sum of squares overflows."""
    results = []
    for asked in (False, True):
        params = [np.ones(2), np.ones(2)]
        optim.SGD(params, lr=1e-308).step([np.array(g) for g in grads], grad_norm=asked)
        results.append(params)
    assert_all_same_bits(*results)
    assert np.isfinite(results[0][1]).all()


def test_norm_over_the_whole_range():
    for dtype, size in ((np.float32, 1e30), (np.float32, 1e-30), (np.float64, 1e200), (np.float64, 1e-200)):
        g = np.full(2, size, dtype)
        norm = optim.SGD(np.zeros(2, dtype)).step(g, grad_norm=True).grad_norm
        assert abs(norm / (float(g[0]) * math.sqrt(2)) - 1) < 1e-15
    assert optim.SGD(np.zeros(2)).step(np.zeros(2), grad_norm=True).grad_norm == 0.0
    assert optim.SGD(np.zeros(2)).step(np.array([np.inf, 1]), grad_norm=True).grad_norm == math.inf
    assert math.isnan(optim.SGD(np.zeros(2)).step(np.array([np.nan, 1]), grad_norm=True).grad_norm)


def test_norm_does_not_depend_on_layout():
    rng = np.random.default_rng(5)
    g = rng.normal(size=(130, 257)).astype(np.float32)
    wide = np.zeros((130, 2 * 257), np.float32)
    wide[:, ::2] = g
    norms = {
        optim.SGD(np.zeros_like(p)).step(x, grad_norm=True).grad_norm
        for p in (g, np.asfortranarray(g))
        for x in (g, np.asfortranarray(g), wide[:, ::2], g[::-1][::-1], g.astype(">f4"))
    }
    assert norms == {math.sqrt(spec_sum_squares(g))}


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("size", [1, CHUNK, 3 * CHUNK])
@each_case
def test_nonfinite_gradients(case: Case, size: int, value: float):
    rng = np.random.default_rng(6)
    params = {"a": rng.normal(size=5).astype(np.float32), "b": rng.normal(size=size).astype(np.float32)}
    good = {name: rng.normal(size=p.shape).astype(np.float32) for name, p in params.items()}
    bad = {name: g.copy() for name, g in good.items()}
    bad["b"][size // 2] = value
    kwargs = case.kwargs | {"ema_decay": 0.9}
    opt = case.cls(params, **kwargs, nonfinite="skip")
    opt.step(good)
    before = {**{k: p.copy() for k, p in params.items()}, "state": opt.state_dict()}
    for options in ({}, {"max_norm": 1.0}, {"clip_value": 1.0}):
        opt.max_norm, opt.clip_value = options.get("max_norm"), options.get("clip_value")
        assert opt.step(bad) == (
            1,
            None if opt.max_norm is None else pytest.approx(np.abs(value), nan_ok=True),
            None,
            True,
        )
        opt.nonfinite = "raise"
        with pytest.raises(FloatingPointError, match=re.escape("grads['b'] must be finite")):
            opt.step(bad)
        opt.nonfinite = "skip"
    for name in params:
        assert_same_bits(params[name], before[name], name)
    for key, own in opt.state_dict()["state"].items():
        for name, array in own.items():
            assert_same_bits(array, before["state"]["state"][key][name], f"{key}.{name}")
    # A good step after it is as if nothing had been.
    opt.max_norm = opt.clip_value = None
    other = {name: p.copy() for name, p in params.items()}
    twin = case.cls(other, **kwargs, nonfinite="skip")
    twin.load_state_dict(before["state"])
    assert opt.step(good).step == twin.step(good).step == 2
    for name in params:
        assert_same_bits(params[name], other[name], name)


def test_nonfinite_after_scaling_counts():
    w = np.ones(2, np.float32)
    opt = optim.SGD(w, nonfinite="skip")
    assert opt.step(np.full(2, 1e38, np.float32), grad_scale=100.0).skipped
    assert not opt.step(np.full(2, 1e38, np.float32)).skipped


def test_propagate_is_the_default():
    w = np.ones(3)
    optim.SGD(w, lr=1.0).step(np.array([np.nan, np.inf, 1.0]))
    assert np.isnan(w[0])
    assert w[1] == -np.inf
    assert w[2] == 0.0


@each_case
def test_hyperparameters_may_be_functions_of_the_step(case: Case):
    """They get the number of steps taken so far."""
    rng = np.random.default_rng(7)
    a = rng.normal(size=40).astype(np.float32)
    b = a.copy()
    seen: list[int] = []

    def lr(t: int) -> float:
        seen.append(t)
        return 0.1 / (t + 1)

    one = case.cls(a, **(case.kwargs | {"lr": lr, "weight_decay": lambda t: 0.1 * t}))
    two = case.cls(b, **case.kwargs)
    for t in range(3):
        two.param_groups[0]["lr"] = 0.1 / (t + 1)
        two.param_groups[0]["weight_decay"] = 0.1 * t
        g = rng.normal(size=40).astype(np.float32)
        one.step(g)
        two.step(g)
        assert_same_bits(a, b, f"step {t + 1}")
    assert seen == [0, 1, 2]


def test_options_may_be_functions_of_the_step_too():
    w = np.ones(2)
    opt = optim.AdamW(
        w,
        betas=(lambda t: 0.5, lambda t: 0.9),
        max_norm=lambda t: 1.0 + t,
        clip_value=lambda t: 9.0,
        ema_decay=lambda t: t / (t + 1),
    )
    other = np.ones(2)
    twin = optim.AdamW(other, betas=(0.5, 0.9), max_norm=1.0, clip_value=9.0, ema_decay=0.0)
    for t in range(4):
        twin.max_norm, twin.ema_decay = 1.0 + t, t / (t + 1)
        assert opt.step(np.full(2, 3.0)) == twin.step(np.full(2, 3.0))
    assert_same_bits(w, other)
    assert_same_bits(opt.ema, twin.ema)


def test_a_bad_value_of_a_function_stops_the_step():
    w = np.ones(2)
    opt = optim.SGD(w, lr=lambda t: 0.1 if t < 1 else -1.0)
    opt.step(np.ones(2))
    before = w.copy()
    with pytest.raises(ValueError, match=re.escape("lr(1) must be finite and at least 0, got -1.0")):
        opt.step(np.ones(2))
    assert_same_bits(w, before)
    assert opt.steps == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"grad_scale": math.nan}, ValueError, "grad_scale must be finite, got nan"),
        ({"grad_scale": "1"}, TypeError, "grad_scale must be a number, finite"),
        ({"max_norm": -1.0}, ValueError, "max_norm must be at least 0"),
        ({"clip_value": math.nan}, ValueError, "clip_value must be at least 0"),
        ({"nonfinite": "ignore"}, ValueError, "nonfinite must be 'propagate', 'skip' or 'raise', got 'ignore'"),
        ({"ema_decay": 1.5}, ValueError, "ema_decay must be from 0 to 1"),
        ({"ema_decay": 0.5}, ValueError, "ema and ema_decay must be given together"),
        ({"ema": np.ones(2)}, ValueError, "ema and ema_decay must be given together"),
        ({"step": 0}, ValueError, "step must be at least 1"),
        ({"step": 1.0}, TypeError, "step must be an integer"),
        ({"step": True}, TypeError, "step must be an integer"),
        ({"momentum_buffer": np.ones(2)}, ValueError, "momentum_buffer must not be given"),
        ({"momentum": 0.9}, ValueError, "momentum_buffer must be given"),
        ({"bogus": 1}, TypeError, "sgd_ has no argument 'bogus'"),
    ],
)
def test_bad_arguments_of_a_function(arguments: dict[str, Any], error: type[Exception], message: str):
    w = np.ones(2)
    with pytest.raises(error, match=re.escape(message)):
        functional.sgd_(w, np.ones(2), **({"step": 1} | arguments))
    assert (w == 1).all()


def test_functions_may_keep_the_average_and_the_master_too():
    rng = np.random.default_rng(8)
    a = rng.normal(size=30).astype(BF16)
    b, master, ema = a.copy(), a.astype(np.float32), a.astype(np.float32)
    buffer = np.zeros(30, np.float32)
    opt = optim.SGD(a, lr=0.1, momentum=0.9, ema_decay=0.9, master_weights=True)
    for step in (1, 2, 3):
        g = rng.normal(size=30).astype(BF16)
        opt.step(g)
        functional.sgd_(b, g, buffer, step=step, lr=0.1, momentum=0.9, ema_decay=0.9, ema=ema, master=master)
    for got, want in ((b, a), (master, opt.master), (ema, opt.ema), (buffer, opt.state["momentum_buffer"])):
        assert_same_bits(got, want)


def test_lookahead_moves_the_parameters_and_puts_them_back_exactly():
    rng = np.random.default_rng(9)
    for lr_in_momentum in (False, True):
        params = {
            "w": np.asfortranarray(rng.normal(size=(6, 4))).astype(np.float32),
            "b": rng.normal(size=4).astype(BF16),
        }
        opt = optim.SGD(params, lr=0.1, momentum=0.9, lr_in_momentum=lr_in_momentum)
        for _ in range(3):
            before = {name: p.copy() for name, p in params.items()}
            velocity = {name: v.copy() for name, v in opt.state["momentum_buffer"].items()}
            with opt.lookahead():
                for name, p in params.items():
                    factor = 0.9 if lr_in_momentum else -(0.1 * 0.9)
                    want = before[name].astype(np.float32) + factor * velocity[name]
                    assert_same_bits(p, want.astype(p.dtype), name)
                with pytest.raises(RuntimeError, match="lookahead"):
                    opt.step(before)
            for name, p in params.items():
                assert_same_bits(p, before[name], name)
            opt.step({name: rng.normal(size=p.shape).astype(p.dtype) for name, p in params.items()})


def test_the_master_cannot_be_set_to_the_lookahead_point():
    p = np.ones(2, BF16)
    opt = optim.SGD(p, lr=0.1, momentum=0.9, master_weights=True)
    opt.step(np.ones(2, BF16))
    before = opt.master.copy()
    with opt.lookahead(), pytest.raises(RuntimeError, match="lookahead"):
        opt.sync_master()
    assert_same_bits(opt.master, before)


def test_lookahead_puts_back_after_an_error_too():
    w = np.ones(3)
    opt = optim.SGD(w, lr=0.1, momentum=0.9)
    opt.step(np.ones(3))
    before = w.copy()
    with pytest.raises(KeyError), opt.lookahead():  # noqa: PT012
        assert not np.array_equal(w, before)
        raise KeyError
    assert_same_bits(w, before)
    assert opt.step(np.ones(3)).step == 2


@pytest.mark.parametrize("kwargs", [{}, {"momentum": 0.9, "nesterov": True}])
def test_lookahead_needs_plain_momentum(kwargs: dict[str, Any]):
    opt = optim.SGD(np.ones(3), **kwargs)
    with pytest.raises(ValueError, match="lookahead needs momentum above 0 and nesterov=False"), opt.lookahead():
        pass


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sets the flags of x86 through libc's fenv")
def test_flush_to_zero_of_the_caller_changes_nothing():
    """Other libraries leave FTZ and DAZ on; threads made before or after inherit what they inherit."""
    libm = ctypes.CDLL("libm.so.6")
    environment = (ctypes.c_uint32 * 8)()
    libm.fegetenv(environment)
    saved = bytes(environment)
    tiny = np.full(4 * CHUNK, 3e-39, np.float32)
    want = tiny - np.float32(0.5) * tiny
    ironstep.set_num_threads(3)
    try:
        for isa in ISAS:
            w = tiny.copy()
            opt = optim.SGD(w, lr=0.5)
            environment[7] |= 0x8040  # MXCSR
            libm.fesetenv(environment)
            flushed = np.float32(3e-39) * np.float32(0.5)
            opt.step(tiny, _isa=isa)
            still = np.float32(3e-39) * np.float32(0.5)
            ctypes.memmove(environment, saved, len(saved))
            libm.fesetenv(environment)
            assert flushed == still == 0.0, "the caller's own flags are kept"
            assert np.array_equal(bits(w), bits(want)), isa
    finally:
        ironstep.set_num_threads(0)


def test_no_floating_point_warnings_leak():
    """Our arithmetic sets no status flags that NumPy would report."""
    with np.errstate(all="raise"):
        optim.Adam(np.array([1e308, 0.0, np.inf]), eps=0.0).step(np.array([1e308, 0.0, np.nan]))
        assert np.float64(1.0) + 1.0 == 2.0


def test_the_core_has_vector_code_and_no_fused_multiply_add():
    """Read in the disassembly: `a * b + c` in one rounding would change bits with the CPU."""
    text = subprocess.run(["objdump", "-d", _core.__file__], capture_output=True, text=True, check=True).stdout
    if platform.machine() == "x86_64":
        assert not re.search(r"\bvfn?m(add|sub)", text)
        for pattern in (r"vdivps .*%zmm", r"vdivps .*%ymm", r"\bdivps ", r"vsqrtpd .*%zmm", r"vsqrtpd .*%ymm"):
            assert re.search(pattern, text), pattern
    else:
        assert not re.search(r"\bf(n?m(add|sub)|mla|mls)\b", text)
        assert re.search(r"\bfdiv\s+v", text)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, BF16])
def test_sync_ema(dtype: Any) -> None:
    params = [{"params": {"w": np.ones(4, dtype)}}, {"params": {"w": np.ones(3, dtype)}}]
    opt = optim.SGD(params, lr=0.5, ema_decay=0.99)
    opt.freeze(1)
    opt.step([{"w": np.ones(4, dtype)}, None])
    averages = opt.ema
    for group, value in zip(params, (0.3, 7.0), strict=True):
        group["params"]["w"][...] = value
    opt.sync_ema()
    for ema, group in zip(averages, params, strict=True):
        np.testing.assert_array_equal(ema["w"], group["params"]["w"].astype(ema["w"].dtype))
    with pytest.raises(ValueError, match="there is no average of the parameters"):
        optim.SGD(np.ones(2), lr=1.0).sync_ema()
