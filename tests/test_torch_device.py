"""The optimisers on other devices than the CPU: Triton kernels and plain torch operations, against the core's bits.

No GPU is needed. The kernels run in Triton's interpreter, on tensors of the CPU, in a process of its own that
`TRITON_INTERPRET=1` must not outlive; in another they are compiled to PTX, because the interpreter cannot see what a
compiler fuses or approximates. This file is also their program: `python test_torch_device.py interpret`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from cases import CASES, Case
from helpers import BF16, DTYPES, Array, assert_same_bits, awkward, compute
from ironstep import _core
from ironstep.torch.optim import _device, _kernels
from ironstep.torch.optim._device import DevicePart

HAS_TRITON = importlib.util.find_spec("triton") is not None
NEEDS_TRITON = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed: it comes with torch on Linux")
NEEDS_GPU = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.cuda is None, reason="needs a GPU of NVIDIA's and torch for CUDA"
)
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
CASE = {case.name: case for case in CASES}
STEPS = (1, 8)
"""The first is special for momentum, and the variance of RAdam is known well enough at the last."""
NORMED = ("lamb", "lars")


class Wanted(NamedTuple):
    """What is wanted besides the rule."""

    scale: float = 1.0
    clip: float = math.inf
    max_norm: float = math.inf
    master: bool = False
    ema: bool = False
    maximize: bool = False
    grad: np.dtype[Any] | None = None
    """If the gradient's dtype is not the parameter's."""


BARE = Wanted()
ALL = Wanted(scale=0.75, clip=1.25, max_norm=0.5, master=True, ema=True, maximize=True)
by_wanted = pytest.mark.parametrize("wanted", [BARE, ALL], ids=["bare", "all"])


# ----------------------------------------------------------------------------------------------------------------------
# Between NumPy and torch
# ----------------------------------------------------------------------------------------------------------------------


def tensor(x: Array, device: str = "cpu") -> torch.Tensor:
    """A copy."""
    if x.dtype == BF16:
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16).to(device)
    return torch.from_numpy(x.copy()).to(device)


def array(x: torch.Tensor) -> Array:
    """The other way."""
    x = x.detach().cpu().contiguous()
    return x.view(torch.int16).numpy().view(BF16) if x.dtype == torch.bfloat16 else x.numpy()


class Both:
    """The same leaves in the core and on a device: `step` steps both and compares all that is stored."""

    def __init__(
        self,
        case: Case,
        params: list[Array],
        wanted: Wanted = BARE,
        device: str = "cpu",
        place: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    ) -> None:
        """`place` says how the parameters lie in memory."""
        self.case, self.wanted, self.device = case, wanted, device
        group = case.cls(np.zeros(1), **case.kwargs).param_groups[0]
        # Two rule numbers if there are enough leaves: with and without weight decay.
        numbers = [int(i % 3 == 2) for i in range(len(params))]
        n = max(numbers) + 1
        self.values = [group.vector(0, True), group.vector(0, False)][:n]
        self.maximize = [case.hyper["maximize"] != wanted.maximize, case.hyper["maximize"]][:n]
        self.scalars = self.core_scalars = [list(case.new_scalars().values())] * n
        real = [p.astype(compute(p.dtype)) for p in params]
        states = [[np.array(case.new_state(np.zeros_like(x))[name]) for x in real] for name in case.states]
        master = [x.copy() if x.dtype != p.dtype else None for x, p in zip(real, params, strict=True)]
        masters = master if wanted.master else None
        ema = [x.copy() for x in real] if wanted.ema else None
        names = [f"p{i}" for i in range(len(params))]

        like = [place(tensor(p, device)) for p in params]
        self.params = like

        def all_like(arrays: list[Any]) -> list[Any]:
            return [
                None if x is None else torch.zeros_like(p, dtype=tensor(x).dtype).copy_(tensor(x))
                for p, x in zip(like, arrays, strict=True)
            ]

        self.states = [all_like(s) for s in states]
        self.masters = None if masters is None else all_like(masters)
        self.ema = None if ema is None else all_like(ema)
        self.part = DevicePart(case.rule, like, self.states, numbers, names, self.masters, self.ema)

        self.core_params = [p.copy() for p in params]
        self.core = [self.core_params, *states, masters or [], ema or []]
        self.plan = _core.Plan(case.rule, _core.Tree(self.core_params, "params"), states, numbers, masters, ema)

    def step(self, step: int, grads: list[Array], tensors: list[torch.Tensor] | None = None) -> None:
        """`tensors`: the gradients as the device has them."""
        wanted = self.wanted
        arguments = [
            (step, maximize, values, scalars)
            for maximize, values, scalars in zip(self.maximize, self.values, self.core_scalars, strict=True)
        ]
        new = self.plan.step(
            grads, arguments, wanted.scale, wanted.clip, wanted.max_norm, False, 0.9, False, False, None
        )[3]
        self.part.look(tensors or [tensor(g, self.device) for g in grads])
        norm = None
        if wanted.max_norm < math.inf:
            sums, nonfinite = self.part.inspect(wanted.scale, wanted.clip, 1.0)
            assert (sums, nonfinite) == self.plan.inspect(grads, wanted.scale, wanted.clip, 1.0, None)
            norm = math.sqrt(_core.tree_sum(np.array(sums)))
        arguments = [(*first, scalars) for (*first, _), scalars in zip(arguments, self.scalars, strict=True)]
        self.scalars = self.part.step(arguments, wanted.scale, wanted.clip, wanted.max_norm, norm, 0.9)
        self.core_scalars = new or self.core_scalars
        if new:
            assert self.scalars == new
        self.compare(f"step {step}")

    def compare(self, when: str) -> None:
        """Everything that is stored."""
        device = [self.params, *self.states, self.masters or [], self.ema or []]
        what = ["params", *self.case.states, "master", "ema"]
        for name, got, want in zip(what, device, self.core, strict=True):
            for i, (x, y) in enumerate(zip(got, want, strict=True)):
                if y is not None:
                    assert_same_bits(array(x), y, f"{name}[{i}] after {when}")


def numbers(rng: np.random.Generator, shape: Any, dtype: np.dtype[Any], finite: bool) -> Array:
    """Awkward ones; `finite` where one infinity would make NaN of all."""
    x = np.array(awkward(rng, shape, dtype))
    if finite:
        x[~(np.abs(x.astype(np.float64)) < 100)] = 1.5
    return x


def check_row(case: Case, dtype: np.dtype[Any], wanted: Wanted, device: str = "cpu") -> None:
    """A row of the table over leaves of many lengths. The second gradients are where the first were."""
    rng = np.random.default_rng(0)
    finite = case.rule in NORMED or wanted.max_norm < math.inf
    shapes = [(0,), (17,), (9, 16)]
    both = Both(case, [numbers(rng, shape, dtype, finite) for shape in shapes], wanted, device)
    tensors: list[torch.Tensor] = []
    for step in STEPS:
        grads = [numbers(rng, shape, wanted.grad or dtype, finite) for shape in shapes]
        tensors = tensors or [tensor(g, device) for g in grads]
        for old, new in zip(tensors, grads, strict=True):
            old.copy_(tensor(new))
        both.step(step, grads, tensors)


def check_large(case: Case, dtype: np.dtype[Any], device: str = "cpu") -> None:
    """More than one chunk, and chunks of several leaves in one program: the shape of the sums."""
    rng = np.random.default_rng(1)
    shapes = [(2 * _kernels.CHUNK + 37,), (1023,), (), (_kernels.CHUNK,)]
    both = Both(case, [numbers(rng, shape, dtype, True) for shape in shapes], Wanted(max_norm=2.0), device)
    both.step(1, [numbers(rng, shape, dtype, True) for shape in shapes])


def check_layouts(case: Case, device: str = "cpu") -> None:
    """Parameters and gradients that lie otherwise in memory."""
    rng = np.random.default_rng(2)
    places: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "as it is": lambda x: x,
        "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        "every other": lambda x: torch.stack([x, x], -1)[..., 0],
        "columns": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
        "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    }
    shape, dtype = (6, 5, 4, 3), np.dtype(np.float32)
    for name, place in places.items():
        for wanted in (BARE, Wanted(max_norm=0.5, ema=True)):
            both = Both(case, [numbers(rng, shape, dtype, True)], wanted, device, place)
            for step, other in enumerate(places.values(), 1):
                grad = numbers(rng, shape, dtype, True)
                try:
                    both.step(step, [grad], [other(tensor(grad, device))])
                except AssertionError as error:
                    raise AssertionError(f"parameter {name}, step {step}: {error}") from error
    # One gradient for all elements.
    both = Both(case, [numbers(rng, shape, dtype, True)], BARE, device)
    both.step(1, [np.full(shape, 0.5, dtype)], [torch.tensor(0.5, device=device).expand(shape)])


def check_inspect(dtype: np.dtype[Any], device: str = "cpu") -> None:
    """Sums of squares that overflow without a unit, gradients that are not finite."""
    rng = np.random.default_rng(3)
    params = [np.zeros(n, dtype) for n in (200, 7, 5, 0)]
    both = Both(CASE["sgd"], params, BARE, device)
    for bad in (None, np.inf, np.nan):
        grads = [numbers(rng, p.shape, dtype, True) for p in params]
        if bad is not None:
            grads[1][3] = grads[2][0] = bad
        both.part.look([tensor(g, device) for g in grads])
        for arguments in ((1.0, math.inf, 1.0), (0.5, 0.25, 2.0**-512), (-2.0, math.inf, 2.0**512), (1e30, 1.0, 1.0)):
            sums, nonfinite = both.part.inspect(*arguments)
            want, nonfinite_want = both.plan.inspect(grads, *arguments, None)
            assert nonfinite == nonfinite_want, arguments
            assert_same_bits(np.array(sums), np.array(want), str(arguments))


MIXED = [(np.dtype(np.float32), BF16), (np.dtype(np.float16), np.dtype(np.float64)), (BF16, np.dtype(np.float32)),
         (np.dtype(np.float64), np.dtype(np.float16)), (np.dtype(np.float64), BF16)]  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# The processes
# ----------------------------------------------------------------------------------------------------------------------


def interpreted() -> dict[str, Callable[[], None]]:
    """What runs in Triton's interpreter."""
    checks: dict[str, Callable[[], None]] = {}
    for case in CASES:
        for dtype in DTYPES:
            # Both for each type would take twice the time, and the plain operations have the same text.
            wanted = BARE if dtype in (np.float32, np.float16) else ALL
            checks[f"{case.name}-{dtype}"] = functools.partial(check_row, case, dtype, wanted)
    for name in ("adamw", "lamb"):
        checks[f"{name}-float32-all"] = functools.partial(check_row, CASE[name], np.dtype(np.float32), ALL)
    for name in ("adamw", "lamb", "lars"):
        checks[f"layouts-{name}"] = functools.partial(check_layouts, CASE[name])
    checks["large-adamw"] = functools.partial(check_large, CASE["adamw"], np.dtype(np.float64))
    checks["large-lamb"] = functools.partial(check_large, CASE["lamb"], np.dtype(np.float32))
    for dtype in DTYPES:
        checks[f"inspect-{dtype}"] = functools.partial(check_inspect, dtype)
    for param, grad in MIXED:
        checks[f"mixed-{param}-{grad}"] = functools.partial(check_row, CASE["adamw"], param, Wanted(grad=grad))
    checks["launches"] = check_launches
    checks["planted-cuts"] = functools.partial(
        check_planted, plant_cuts, functools.partial(check_row, CASE["sgd"], wanted=BARE), BF16
    )
    # In float64: the squares of shorter numbers leave so much room that their order hardly matters.
    checks["planted-order"] = functools.partial(check_planted, plant_order, check_inspect, np.dtype(np.float64))
    return checks


def check_launches() -> None:
    """One launch for all parameters alike, tables kept while addresses stay, made anew when one changes."""
    launched = []
    launch = _kernels.Table.launch

    def counted(self: _kernels.Table, *arguments: Any) -> None:
        launched.append(self)
        assert len(self.parts) == 1, "all addresses and lengths are multiples of 16"
        launch(self, *arguments)

    _kernels.Table.launch = counted  # type: ignore[method-assign]
    try:
        both = Both(CASE["adam_l2"], [np.ones(32, np.float32) for _ in range(50)])
        # With and without weight decay are two programs.
        grads = [np.ones(32, np.float32) for _ in range(50)]
        tensors = [tensor(g) for g in grads]
        both.step(1, grads, tensors)
        both.step(2, grads, tensors)
        assert len(launched) == 4
        assert launched[:2] == launched[2:]
        both.step(3, grads, [tensor(g) for g in grads])
        assert len(launched) == 6
        assert launched[4] is not launched[2]
    finally:
        _kernels.Table.launch = launch  # type: ignore[method-assign]


def plant_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 is cut off."""
    narrowed = ["stored.to(tl.uint32, bitcast=True)", "(stored >> 16).to(tl.uint16)"]
    monkeypatch.setattr(
        _kernels, "narrowed", lambda value, dtype: [value, *narrowed] if dtype == torch.bfloat16 else [value]
    )


def plant_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lanes of a sum are added in another order."""
    apart = _kernels.apart
    monkeypatch.setattr(_kernels, "apart", lambda name, n: (apart(name, n)[0], apart(name, n)[1][::-1]))


def check_planted(
    plant: Callable[[pytest.MonkeyPatch], None], check: Callable[[np.dtype[Any]], None], dtype: np.dtype[Any]
) -> None:
    """The checks can fail."""
    _kernels.compiled.cache_clear()
    with pytest.MonkeyPatch.context() as monkeypatch:
        plant(monkeypatch)
        with pytest.raises(AssertionError):
            check(dtype)
    _kernels.compiled.cache_clear()


def kernels_of(case: Case) -> Iterator[_kernels.Kernel]:
    """Those of a row: bare in float32, with all that can be around the rule in bfloat16."""
    group = case.cls(np.zeros(1), **case.kwargs).param_groups[0]
    states = len(case.states)
    for step in STEPS:
        trace = _core.Trace(case.rule, group.vector(0, True), step, list(case.new_scalars().values()))
        first = trace.passes == "state_then_param"
        programs = [("update", trace.update)]
        if trace.passes != "one":
            programs = [("measure", trace.measure), ("update", trace.second(2.0, 3.0))]
        for task, program in programs:
            assert program is not None
            writes = trace.passes == "one" or first == (task == "measure")
            kernel = _kernels.Kernel(task, torch.float32, torch.float32, *program[:2], states, writes)
            yield kernel
            yield kernel._replace(param=torch.bfloat16, grad=torch.bfloat16, prepares=True, master=True, ema=True)


FORBIDDEN = re.compile(r"\bfma|div\.full|approx|\.ftz|\b(?:add|sub|mul|div)\.f(?:32|64)")
"""Fused or approximate, subnormals flushed, or without `.rn`, which allows the assembler to fuse it."""


def compile_ptx(kernel: _kernels.Kernel, capability: int, *, aligned: bool = True, fusion: bool = False) -> str:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = _kernels.compiled(kernel, aligned)
    signature = {"table": "*i64", "constants": "*fp64"} | ({"sums": "*fp64"} if kernel.sums else {})
    divisible = {(i,): [["tt.divisibility", 16]] for i in range(len(signature))}
    built = triton.compile(
        ASTSource(function, signature, attrs=divisible),
        target=GPUTarget("cuda", capability, 32),
        options={"enable_fp_fusion": fusion, "num_warps": 4},
    )
    text: str = built.asm["ptx"]
    return text


def check_ptx(text: str, kernel: _kernels.Kernel) -> None:
    """Correctly rounded operations only, and those that the program has."""
    found = sorted({match.group() for match in FORBIDDEN.finditer(text)})
    assert not found, f"{kernel.task}: {found}"
    bits = "f64" if kernel.real == torch.float64 else "f32"
    names = {op[0] for op in kernel.ops}
    for name, instruction in {"div": "div.rn", "sqrt": "sqrt.rn", "add": "add.rn", "sub": "sub.rn"}.items():
        assert name not in names or f"{instruction}.{bits}" in text, f"{kernel.task}: no {instruction}.{bits}"


def check_kernels(kernels: list[_kernels.Kernel], *, aligned: bool = True) -> None:
    for kernel in dict.fromkeys(kernels):
        for capability in (80, 90):
            check_ptx(compile_ptx(kernel, capability, aligned=aligned), kernel)


def check_bad_ptx(change: dict[str, Any], expected: str, *, fusion: bool = False) -> None:
    """A kernel that is as one would write it at first is found out."""
    kernel = next(kernels_of(CASE["adamw"]))
    dialect = _kernels.TRITON32
    _kernels.compiled.cache_clear()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_kernels, "TRITON32", dialect._replace(**change))
        with pytest.raises(AssertionError, match=expected):
            check_ptx(compile_ptx(kernel, 80, fusion=fusion), kernel)
    _kernels.compiled.cache_clear()


def in_ptx() -> dict[str, Callable[[], None]]:
    """What is compiled."""
    checks: dict[str, Callable[[], None]] = {
        case.name: functools.partial(check_kernels, list(kernels_of(case))) for case in CASES
    }
    usual = next(kernels_of(CASE["adamw"]))
    measure = next(kernels_of(CASE["lamb"]))
    types = [(torch.float64, torch.float64), (torch.float16, torch.float16), (torch.float64, torch.bfloat16),
             (torch.float16, torch.float64)]  # fmt: skip
    every = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
    for param, grad in types:
        kernels = [kernel._replace(param=param, grad=grad, prepares=True) for kernel in (usual, measure)]
        checks[f"adamw and lamb in {param}, {grad}"] = functools.partial(check_kernels, kernels)
    inspects = [_kernels.Kernel("inspect", dtype, dtype) for dtype in every]
    checks["inspect"] = functools.partial(check_kernels, inspects)
    checks["unaligned"] = functools.partial(check_kernels, [usual], aligned=False)
    checks["wide"] = check_wide
    bad = {
        "fusion": functools.partial(check_bad_ptx, {}, "fma", fusion=True),
        "division": functools.partial(check_bad_ptx, {"div": "{0} / {1}"}, "div.full"),
        "root": functools.partial(check_bad_ptx, {"sqrt": "tl.sqrt({0})"}, "approx"),
    }
    return checks | {f"planted {name}": check for name, check in bad.items()}


def check_wide() -> None:
    """What is aligned is read in pieces of 16 bytes."""
    usual = next(kernels_of(CASE["adamw"]))
    for dtype in (torch.float32, torch.bfloat16):
        text = compile_ptx(usual._replace(param=dtype, grad=dtype), 80)
        assert "ld.global.v4.b32" in text
        assert "st.global.v4.b32" in text


def main(which: str) -> None:
    """Runs the checks, and prints what went wrong by name."""
    checks = interpreted() if which == "interpret" else in_ptx()
    warnings.simplefilter("ignore", RuntimeWarning)  # The interpreter computes in NumPy, which tells of every overflow.
    torch.set_num_threads(1)
    results = {}
    for name, check in checks.items():
        results[name] = ""
        try:
            check()
        except BaseException:  # pytest's own failures are no Exceptions.
            results[name] = traceback.format_exc(limit=-6)
    print(json.dumps(results))


class Process:
    """A process that checks many things while the other tests run."""

    def __init__(self, which: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON")}
        if which == "interpret":
            environment["TRITON_INTERPRET"] = "1"
        here = Path(__file__).parent
        environment["PYTHONPATH"] = os.pathsep.join([str(here), environment.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, __file__, which],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._results: dict[str, str] | None = None

    def check(self, name: str) -> None:
        if self._results is None:
            out, err = self._process.communicate(timeout=600)
            assert self._process.returncode == 0, err
            self._results = json.loads(out.splitlines()[-1])
        if self._results[name]:
            raise AssertionError(self._results[name])

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="session")
def processes(request: pytest.FixtureRequest) -> Iterator[dict[str, Process]]:
    """Those that the chosen tests need, all begun with the first test."""
    chosen = {getattr(item, "originalname", "") for item in request.session.items}
    needed = {"interpret": test_kernels_give_the_bits_of_the_core, "ptx": test_compiled_kernels_round_every_operation}
    begun = {which: Process(which) for which, test in needed.items() if test.__name__ in chosen and HAS_TRITON}
    yield begun
    for process in begun.values():
        process.end()


# ----------------------------------------------------------------------------------------------------------------------
# Tests
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ieee_sqrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """On x86 torch's root on the CPU is MKL's, which is off by a bit in every sixth float32; that of CUDA is IEEE's."""

    def sqrt(x: torch.Tensor) -> torch.Tensor:
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.sqrt(np.atleast_1d(x.numpy()))).view(x.shape)

    monkeypatch.setattr(torch, "sqrt", sqrt)


@by_wanted
@by_dtype
@by_name
def test_plain_operations_give_the_bits_of_the_core(
    case: Case, dtype: np.dtype[Any], wanted: Wanted, processes: dict[str, Process], ieee_sqrt: None
) -> None:
    check_row(case, dtype, wanted)  # The processes have been started and run meanwhile.


@NEEDS_TRITON
@pytest.mark.parametrize("name", interpreted())
def test_kernels_give_the_bits_of_the_core(name: str, processes: dict[str, Process]) -> None:
    processes["interpret"].check(name)


@NEEDS_TRITON
@pytest.mark.parametrize("name", in_ptx())
def test_compiled_kernels_round_every_operation(name: str, processes: dict[str, Process]) -> None:
    processes["ptx"].check(name)


@pytest.mark.parametrize("name", ["adamw", "lamb", "lars"])
def test_plain_operations_on_any_layout(name: str, ieee_sqrt: None) -> None:
    check_layouts(CASE[name])


@by_dtype
def test_plain_operations_inspect(dtype: np.dtype[Any]) -> None:
    check_inspect(dtype)


@pytest.mark.parametrize(("param", "grad"), MIXED, ids=str)
def test_plain_operations_with_gradients_of_another_type(
    param: np.dtype[Any], grad: np.dtype[Any], ieee_sqrt: None
) -> None:
    check_row(CASE["adamw"], param, Wanted(grad=grad))


def test_plain_operations_over_several_chunks(ieee_sqrt: None) -> None:
    check_large(CASE["lamb"], np.dtype(np.float32))


@NEEDS_GPU
@by_wanted
@by_dtype
def test_a_gpu_gives_the_bits_of_the_core(dtype: np.dtype[Any], wanted: Wanted) -> None:
    for case in CASES:
        check_row(case, dtype, wanted, "cuda")


@NEEDS_GPU
@pytest.mark.parametrize("name", ["adamw", "lamb", "lars"])
def test_a_gpu_on_any_layout_and_length(name: str) -> None:
    check_layouts(CASE[name], "cuda")
    for dtype in DTYPES:
        check_large(CASE[name], dtype, "cuda")
        check_inspect(dtype, "cuda")


@NEEDS_GPU
@pytest.mark.parametrize("name", ["adamw", "lamb", "lion"])
def test_a_gpu_on_another_stream(name: str) -> None:
    rng = np.random.default_rng(4)
    both = Both(CASE[name], [numbers(rng, (5000,), np.dtype(np.float32), True)], device="cuda")
    grads = [numbers(rng, (5000,), np.dtype(np.float32), True)]
    tensors = [tensor(g, "cuda") for g in grads]
    for step in range(1, 6):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            both.step(step, grads, tensors)


@NEEDS_GPU
@pytest.mark.parametrize("cls", ["AdamW", "LAMB", "Lion"])
def test_a_model_on_cpu_and_gpu(cls: str) -> None:
    from ironstep.torch import optim

    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(50, generator=generator) for _ in range(4)]
    params = [[v.clone() for v in values], [v.to("cuda" if i % 2 else "cpu") for i, v in enumerate(values)]]
    optimisers = [getattr(optim, cls)(own, lr=0.1, max_norm=0.5) for own in params]
    for _ in range(3):
        for i in range(4):
            grad = torch.randn(50, generator=generator)
            for own in params:
                own[i].grad = grad.to(own[i].device)
        for optimiser in optimisers:
            optimiser.step()
    for x, y in zip(*params, strict=True):
        assert_same_bits(array(y), array(x))


@NEEDS_GPU
def test_a_step_is_not_captured() -> None:
    part = one_leaf(device="cuda")
    grads = [torch.ones(8, device="cuda")]
    with pytest.raises(RuntimeError, match="cannot be captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        part.look(grads)


# -- Checks ------------------------------------------------------------------------------------------------------------


def one_leaf(p: Any = None, m: Any = None, g: Any = None, device: str = "cpu", **other: Any) -> DevicePart:
    """Lion over one parameter, looked at with a gradient if there is one."""
    p = torch.ones(8, device=device) if p is None else p
    m = torch.zeros(8, device=device) if m is None else m
    part = DevicePart("lion", [p], [[m]], [0], ["w"], other.get("master"), other.get("ema"))
    if g is not None:
        part.look([g])
    return part


def test_gradients_are_not_held_after_a_step() -> None:
    """Or there would be a second set of them through the next forward and backward."""
    p, g = torch.ones(8), torch.ones(8)
    part = one_leaf(p, g=g)
    values = CASE["lion"].cls(np.zeros(1)).param_groups[0].vector(0, True)
    part.step([(1, False, values, [])], 1.0, math.inf, math.inf, None, 0.0)
    assert not (p == 1).any()
    gone = weakref.ref(g)
    del g
    assert gone() is None


BASE = torch.zeros(64)
NEGATED = torch.complex(torch.zeros(8), torch.ones(8)).conj().imag

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "sparse": ({"g": torch.ones(8).to_sparse()}, TypeError, "the gradient of w must be dense, got layout torch.sparse"),
    "complex": ({"g": torch.ones(8, dtype=torch.complex64)}, TypeError, "must be float32, .*got torch.complex64"),
    "integers": ({"g": torch.ones(8, dtype=torch.int32)}, TypeError, "got torch.int32"),
    "meta": ({"g": torch.ones(8, device="meta")}, TypeError, "memory of its own"),
    "none": ({"g": "nothing"}, TypeError, "the gradient of w must be a tensor, got str"),
    "negated": ({"g": NEGATED}, TypeError, "lazily negated"),
    "shape": ({"g": torch.ones(7)}, ValueError, r"the shape of its parameter, \[8\], got \[7\]"),
    "state dtype": ({"m": torch.zeros(8, dtype=torch.float16)}, TypeError, "exp_avg of w must be torch.float32"),
    "state shape": ({"m": torch.zeros(2, 4)}, ValueError, "exp_avg of w must have the shape"),
    "expanded": ({"p": torch.ones(1).expand(8)}, ValueError, "w must have memory for each element"),
    "crossing": ({"p": BASE.as_strided((4, 2), (1, 2)), "m": torch.zeros(4, 2), "g": torch.ones(4, 2)}, ValueError,
                 "w must have memory for each element"),
    "state is gradient": ({"m": BASE[:8], "g": BASE[4:12]}, ValueError,
                          "the gradient of w must not share memory with exp_avg of w"),
    "state is parameter": ({"p": BASE[:8], "m": BASE[:8]}, ValueError, "must not share memory with"),
    "ema is state": ({"m": BASE[:8], "ema": [BASE[7:15]]}, ValueError, "ema of w must not share .* exp_avg of w"),
    "crossing columns": ({"p": BASE.view(8, 8)[:, 3], "g": BASE.view(8, 8)[3]}, ValueError,
                         "the gradient of w must not share memory with w"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused(what: str) -> None:
    arguments, error, match = WRONG[what]
    with pytest.raises(error, match=match):
        one_leaf(**({"g": torch.ones(8)} | arguments))


def test_freed_memory_is_refused() -> None:
    part = one_leaf(g=torch.ones(8))
    g = torch.ones(8)
    g.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="the gradient of w must have memory, but its storage is empty"):
        part.look([g])


def test_tensors_without_memory_are_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(8)
    with pytest.raises(TypeError, match="memory of its own, got FakeTensor"):
        one_leaf(g=fake)
    with pytest.raises(TypeError, match="memory of its own"):
        torch.func.vmap(lambda g: one_leaf(g=g) and g)(torch.ones(2, 8))


def test_each_look_sees_what_has_changed() -> None:
    base = torch.zeros(32)
    p, m = base[:8], base[8:16]
    part = one_leaf(p, m, torch.ones(8))
    part.look([torch.ones(8)])
    part.look([base[16:24]])
    with pytest.raises(ValueError, match="share memory with exp_avg of w"):
        part.look([base[15:23]])
    part.look([base[16:24]])
    with pytest.raises(TypeError, match=r"got torch\.int32"):
        part.look([torch.ones(8, dtype=torch.int32)])
    part.look([base[16:24]])
    m.data = m.data.double()
    with pytest.raises(TypeError, match=r"exp_avg of w must be torch\.float32"):
        part.look([base[16:24]])
    q = torch.nn.Parameter(torch.ones(2, 4))
    part = DevicePart("lion", [q], [[torch.zeros(2, 4)]], [0], ["q"], None, None)
    part.look([torch.ones(2, 4)])
    q.data = q.data.t()
    with pytest.raises(ValueError, match="must have the shape of its parameter"):
        part.look([torch.ones(2, 4)])


def test_views_of_one_array_are_good_parameters() -> None:
    base, moments, grads = torch.ones(16, 600), torch.zeros(16, 600), torch.ones(16, 600)
    columns = [[x[:, i] for i in range(600)] for x in (base, moments, grads)]
    names = [f"w{i}" for i in range(600)]
    part = DevicePart("lion", columns[0], [columns[1]], [0] * 600, names, None, None)
    part.look(columns[2])
    part.look(list(torch.ones(16, 600).unbind(1)))
    with pytest.raises(ValueError, match="the gradient of w599 must not share memory with w3"):
        part.look([*columns[2][:599], base[:, 3]])


def test_a_step_that_needs_the_norm_must_have_it() -> None:
    part = one_leaf(g=torch.ones(8))
    values = CASE["lion"].cls(np.zeros(1)).param_groups[0].vector(0, True)
    with pytest.raises(ValueError, match="joint_norm"):
        part.step([(1, False, values, [])], 1.0, math.inf, 1.0, None, 0.0)


# -- Triton or not -----------------------------------------------------------------------------------------------------


def test_triton_is_not_imported() -> None:
    program = (
        "import sys, torch; before = 'triton' in sys.modules; import ironstep.torch.optim._device; "
        "assert before or 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_triton_one_warning_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setitem(sys.modules, "triton", None)
    for function in (_device._why_not, _device._warn_once, _kernels.compiled):
        function.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="pip install triton"):
            assert not _device._has_triton(torch.device("cuda"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not _device._has_triton(torch.device("cuda"))
        with pytest.warns(RuntimeWarning, match="on mps its optimisers are plain torch operations"):
            assert not _device._has_triton(torch.device("mps"))
    finally:
        for function in (_device._why_not, _device._warn_once, _kernels.compiled):
            function.cache_clear()


if __name__ == "__main__":
    main(sys.argv[1])
