"""The leaves of a step that lie on one device other than the CPU.

On CUDA the step is a few launches of Triton kernels, whatever the number of parameters: one for each combination of
dtypes and program (see `_kernels`). On other devices, and where Triton does not work, it is plain torch operations,
leaf by leaf. Everything runs on torch's current stream of the device. The host waits for the device only where the next
number depends on what is computed there: for the norms of LAMB and LARS, for `max_norm`, and for the check for
infinities.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import _core
from .._types import computed
from . import _kernels
from ._cpu import Groups
from ._kernels import CHUNK, LANES, STORED, Around, Kernel, Program, Table

_PLAIN = {Tensor, torch.nn.Parameter}
"""Types that are known to be no wrappers around other tensors."""


class _Seen(NamedTuple):
    """What is compared from step to step: one list per property, because lists are made and compared fast."""

    addresses: list[int]
    shapes: list[torch.Size]
    strides: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    devices: list[torch.device]
    layouts: list[torch.layout]
    negated: list[bool]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> _Seen:
        """Raises where a tensor has no such property."""
        return cls(
            [t.data_ptr() for t in tensors],
            [t.shape for t in tensors],
            [t.stride() for t in tensors],
            [t.dtype for t in tensors],
            [t.device for t in tensors],
            [t.layout for t in tensors],
            [t.is_neg() for t in tensors],
        )


class _Span(NamedTuple):
    """The bytes between which a tensor lies."""

    first: int
    end: int
    tensor: Tensor
    name: str
    written: bool


class _Job(NamedTuple):
    """The leaves that one kernel steps."""

    leaves: list[int]
    rows: list[int]
    """Of each leaf, the row of constants."""
    numbers: list[tuple[Around, Sequence[float]]]
    """The rows."""


class DevicePart:
    """Parameters on one device that one rule steps, and what belongs to them; the methods are those of every part.

    Any strides are right. Where parameter, gradient and state have the same dense layout, or are all in C order if
    norms are taken, their memory is used as it is; the others are copied to such a layout, and back. State, masters and
    averages are float64 for float64 parameters and float32 for all others. On CUDA with Triton all bits are those of
    the CPU.
    """

    def __init__(
        self,
        rule: str,
        params: list[Tensor],
        states: list[list[Tensor]],
        groups: list[int],
        names: list[str],
        master: list[Tensor | None] | None,
        ema: list[Tensor] | None,
    ) -> None:
        """`states` has one list per state name of the rule, `groups` the rule number of each leaf, `names` its name."""
        self._rule = rule
        self._groups = groups
        self._device = params[0].device
        self._triton = _has_triton(self._device)
        self._columns: dict[str, list[Any]] = {"p": params}
        """What a step reads and writes, by the names in `Kernel.operands`; a tensor per leaf."""
        self._names = {"p": names}
        for k, (what, tensors) in enumerate(zip(_core.rules()[rule][1], states, strict=True)):
            self._columns[f"s{k}"] = tensors
            self._names[f"s{k}"] = [f"{what} of {name}" for name in names]
        if master is not None:
            self._columns["master"] = master
            self._names["master"] = [f"master of {name}" for name in names]
        if ema is not None:
            self._columns["ema"] = ema
            self._names["ema"] = [f"ema of {name}" for name in names]
        self._written = [tensor for column in self._columns.values() for tensor in column if tensor is not None]
        self._names["g"] = [f"the gradient of {name}" for name in names]
        self._states = len(states)
        self._seen: tuple[_Seen, _Seen] | None = None
        self._tables: dict[Any, Table] = {}

    # -- Checks --------------------------------------------------------------------------------------------------------

    def look(self, grads: list[Tensor]) -> None:
        """Checks all tensors as they are now. Raises, or is ready for `inspect` and `step` with these gradients.

        Raises:
            TypeError: Something is no dense tensor of floats with memory of its own, or state has another dtype.
            ValueError: A tensor has another shape or device than its parameter, or shares memory with another that is
                written, or has the same memory for several elements.
            RuntimeError: A CUDA graph is being captured. The numbers of this step would be frozen in it.
        """
        if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a step cannot be captured in a CUDA graph: its numbers are computed on the host, anew for each step; "
                "capture forward and backward, and step outside"
            )
        self._columns["g"] = grads
        old, self._seen = self._seen, None
        if not {type(tensor) for tensor in (*self._written, *grads)} <= _PLAIN:
            self._check_all()  # Some may not even be asked for their address.
        try:
            seen = _Seen.of(self._written), _Seen.of(grads)
        except (RuntimeError, NotImplementedError):
            self._check_all()
            raise
        if old is None or seen[0] != old[0] or seen[1][1:] != old[1][1:]:
            self._check_all()
        elif seen[1][0] != old[1][0]:
            if not self._apart(seen[1][0]):
                self._check_all()
        else:
            self._seen = seen
            return
        self._prepare()
        self._seen = seen

    def _check_all(self) -> None:
        for key, column in self._columns.items():
            for i, tensor in enumerate(column):
                if tensor is not None or key != "master":
                    self._check(key, i, tensor)
        self._check_overlap()

    def _check(self, key: str, i: int, tensor: Any) -> None:
        name = self._names[key][i]
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be dense, got layout {tensor.layout}: use to_dense(), or sparse=False")
        if tensor.dtype not in STORED:
            raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}")
        subclass = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
        if subclass or tensor.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise TypeError(
                f"{name} must be a tensor with memory of its own, got {type(tensor).__name__} ({tensor.device})"
            )
        if tensor.is_neg():
            raise TypeError(f"{name} must not be lazily negated: use resolve_neg()")
        param = self._columns["p"][i]
        want = computed(param.dtype)
        if key not in ("p", "g") and tensor.dtype != want:
            raise TypeError(f"{name} must be {want}, the type that {param.dtype} is computed in, got {tensor.dtype}")
        if tensor.device != self._device:
            raise ValueError(f"{name} must be on {self._device}, got {tensor.device}")
        if tensor.shape != param.shape:
            raise ValueError(
                f"{name} must have the shape of its parameter, {list(param.shape)}, got {list(tensor.shape)}"
            )
        last = (tensor.storage_offset() + _extent(tensor)) * tensor.element_size() if tensor.numel() else 0
        if tensor.untyped_storage().nbytes() < last:
            raise ValueError(f"{name} must have memory, but its storage is empty: has it been freed or resized?")
        if key != "g" and _meets_itself(tensor):
            raise ValueError(
                f"{name} must have memory for each element, but some share theirs (as in expand): clone it"
            )

    def _check_overlap(self) -> None:
        spans = sorted(self._spans(), key=lambda span: span[:2])
        # Runs of spans that hang together by their addresses; nearly all have one member.
        start, end = 0, 0
        for i, span in enumerate(spans):
            if i > start and span.first >= end:
                _check_run(spans[start:i])
                start = i
            end = max(end, span.end)
        _check_run(spans[start:])

    def _spans(self) -> Iterator[_Span]:
        for key, column in self._columns.items():
            for name, tensor in zip(self._names[key], column, strict=True):
                if tensor is not None and tensor.numel() > 0:
                    first = _address(tensor)
                    yield _Span(first, first + _extent(tensor) * tensor.element_size(), tensor, name, key != "g")

    def _apart(self, addresses: list[int]) -> bool:
        """Whether gradients at these addresses, else as at the last look, have memory far from all that is written."""
        if self._device.type not in _ADDRESSED:
            return False
        first = np.array(addresses)
        if ((first == 0) & (self._grad_bytes > 0)).any():
            return False
        # How many begin before the end of a gradient; the one among them that ends last.
        n = np.searchsorted(self._starts, first + self._grad_bytes)
        return bool((self._ends[n] <= first).all())

    def _prepare(self) -> None:
        """What depends on addresses and layouts."""
        grads, params = self._columns["g"], self._columns["p"]
        self._tables.clear()
        self._odd_tensors: dict[bool, list[tuple[str, int, tuple[int, ...]]]] = {}
        self._addresses = {
            key: np.array([0 if t is None else t.data_ptr() for t in column]) for key, column in self._columns.items()
        }
        self._sizes = np.array([p.numel() for p in params])
        self._grad_bytes = np.array([_extent(g) * g.element_size() if g.numel() else 0 for g in grads])
        chunks = -(-self._sizes // CHUNK)
        self._chunks = int(chunks.sum())
        self._first = np.cumsum(chunks) - chunks
        masters = self._columns.get("master", [None] * len(params))
        self._kinds = [(p.dtype, g.dtype, m is not None) for p, g, m in zip(params, grads, masters, strict=True)]
        if self._device.type in _ADDRESSED:
            spans = sorted((span.first, span.end) for span in self._spans() if span.written)
            self._starts = np.array([first for first, _ in spans])
            self._ends = np.maximum.accumulate(np.array([0, *(end for _, end in spans)]))

    # -- The step ------------------------------------------------------------------------------------------------------

    def inspect(self, grad_scale: float, clip_value: float, unit: float) -> tuple[list[float], int | None]:
        """Per leaf the sum of squares of its limited gradient times `unit`, and the first leaf that is not finite.

        The host waits for the device.
        """
        around = Around(unit, grad_scale, clip_value)
        sums = self._run("inspect", [((), (), ())], [0] * len(self._groups), [around], ordered=True)
        return [squares for squares, _ in sums], next((i for i, (_, count) in enumerate(sums) if count), None)

    def step(
        self,
        groups: Groups,
        grad_scale: float,
        clip_value: float,
        max_norm: float,
        joint_norm: float | None,
        ema_decay: float,
    ) -> list[list[float]]:
        """Updates everything. Returns the new scalar state of each rule number.

        Args:
            groups: For each rule number the step (from 1), maximize, the hyperparameters and the scalar state.
            grad_scale: The gradients are multiplied by it first.
            clip_value: Then each element is limited to `-clip_value .. clip_value`.
            max_norm: Then all are multiplied by `min(1, max_norm / (joint_norm + 1e-6))`, if it is not infinity.
            joint_norm: The norm of all gradients of the step.
            ema_decay: `ema = ema_decay * ema + (1 - ema_decay) * p`, if there are averages.
        """
        coefficient = 1.0
        if max_norm < math.inf:
            if joint_norm is None:
                raise ValueError("joint_norm must be given with max_norm")
            ratio = max_norm / (joint_norm + 1e-6)
            coefficient = 1.0 if ratio > 1.0 else ratio  # NaN stays NaN.
        arounds = [
            Around(1.0, grad_scale, clip_value, -coefficient if maximize else coefficient, ema_decay, 1.0 - ema_decay)
            for _, maximize, _, _ in groups
        ]
        traces = [_core.Trace(self._rule, values, step, scalars) for step, _, values, scalars in groups]
        if traces[0].passes == "one":
            self._run("update", [trace.update for trace in traces], self._groups, arounds)
        else:
            first = traces[0].passes == "state_then_param"
            programs = [trace.measure for trace in traces]
            sums = self._run("measure", programs, self._groups, arounds, ordered=True, writes_state=first)
            # A program for each leaf: alike but for the constants, which depend on its norms.
            programs = [
                traces[k].second(math.sqrt(squares), math.sqrt(measured))
                for k, (squares, measured) in zip(self._groups, sums, strict=True)
            ]
            leaves = list(range(len(programs)))
            self._run("update", programs, leaves, arounds, ordered=True, writes_state=not first)
        self._columns["g"] = []  # Else their memory would be held until the next step, through forward and backward.
        return [trace.scalars for trace in traces]

    def _run(
        self,
        task: str,
        programs: Sequence[Program | None],
        which: list[int],
        arounds: list[Around],
        *,
        ordered: bool = False,
        writes_state: bool = True,
    ) -> list[tuple[float, float]]:
        """Runs `programs[which[i]]` over each leaf `i`; the two sums of each leaf, if they are wanted.

        `ordered`: in C order. `arounds` are by rule number, or one for all.
        """
        prepares = any(around.prepares for around in arounds)
        jobs: dict[Kernel, _Job] = {}
        places: dict[Any, tuple[_Job, int]] = {}
        for i, (k, kind) in enumerate(zip(which, self._kinds, strict=True)):
            place = places.get((k, kind))
            if place is None:
                param, grad, master = kind
                program = programs[k]
                assert program is not None, "the rule has as many passes as it says"
                ops, outputs, own = program
                ema = "ema" in self._columns
                kernel = Kernel(task, param, grad, ops, outputs, self._states, writes_state, prepares, master, ema)
                job = jobs.setdefault(kernel, _Job([], [], []))
                place = places[k, kind] = job, len(job.numbers)
                job.numbers.append((arounds[self._groups[i] if len(arounds) > 1 else 0], own))
            place[0].leaves.append(i)
            place[0].rows.append(place[1])
        with torch.no_grad():
            if not self._triton:
                return self._evaluate(jobs)
            with torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext():
                return self._launch(jobs, ordered)

    def _launch(self, jobs: dict[Kernel, _Job], ordered: bool) -> list[tuple[float, float]]:
        """As Triton kernels."""
        addresses, copies = self._placed(jobs, ordered)
        rows = [_kernels.constants(kernel, job.numbers) for kernel, job in jobs.items()]
        numbers = _kernels.upload(np.concatenate([table.reshape(-1) for table in rows]), self._device)
        sums = None
        if any(kernel.sums for kernel in jobs):
            sums = torch.empty((self._chunks + 1, 2, LANES), dtype=torch.float64, device=self._device)
        start = 0
        for (kernel, job), own in zip(jobs.items(), rows, strict=True):
            self._table(kernel, job, addresses).launch(kernel, numbers[start : start + own.size], sums)
            start += own.size
        for tensor, copy, written in copies:
            if written:
                tensor.copy_(copy)
        return [] if sums is None else self._per_leaf(sums)

    def _table(self, kernel: Kernel, job: _Job, addresses: dict[str, NDArray[np.int64]]) -> Table:
        # One that was sent on another stream may not have arrived for this one.
        stream = torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0
        key = stream, kernel.sums, *kernel.operands, tuple(job.leaves), tuple(job.rows)
        table = self._tables.get(key)
        if table is None:
            leaves = np.array(job.leaves)
            columns = np.stack([addresses[name][leaves] for name in kernel.operands], 1)
            first, rows = self._first[leaves], np.array(job.rows)
            table = Table(kernel, self._sizes[leaves], rows, first, self._chunks, columns, self._device)
            self._tables[key] = table
        return table

    def _placed(
        self, jobs: dict[Kernel, _Job], ordered: bool
    ) -> tuple[dict[str, NDArray[np.int64]], list[tuple[Tensor, Tensor, bool]]]:
        """The addresses of all tensors, or of copies where one cannot be walked as it lies.

        And these tensors, their copies, and whether they are written.
        """
        used = {name for kernel in jobs for name in kernel.operands}
        written = {name for kernel in jobs for name in kernel.written}
        odd = [(key, i, strides) for key, i, strides in self._odd(ordered) if key in used]
        if not odd:
            return self._addresses, []
        self._tables.clear()
        addresses = {key: column.copy() for key, column in self._addresses.items()}
        copies = []
        for key, i, strides in odd:
            tensor = self._columns[key][i]
            copy = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=self._device).copy_(tensor)
            addresses[key][i] = copy.data_ptr()
            copies.append((tensor, copy, key in written))
        return addresses, copies

    def _odd(self, ordered: bool) -> list[tuple[str, int, tuple[int, ...]]]:
        """The tensors that cannot be walked as they lie, and the strides that a copy must have."""
        odd = self._odd_tensors.get(ordered)
        if odd is None:
            odd = self._odd_tensors[ordered] = []
            for i, param in enumerate(self._columns["p"]):
                own = {key: column[i] for key, column in self._columns.items() if column[i] is not None}
                if all(tensor.is_contiguous() for tensor in own.values()):
                    continue
                # Any dense order will do where the order means nothing, so long as all have the same.
                like = torch.empty_like(param, device="meta")
                like = torch.empty(param.shape, device="meta") if ordered else like
                moves = _moves(like)
                odd += [(key, i, like.stride()) for key, tensor in own.items() if _moves(tensor) != moves]
        return odd

    def _per_leaf(self, sums: Tensor) -> list[tuple[float, float]]:
        """The sums of each leaf from the lanes of each chunk. Waits for the device."""
        width = LANES
        while width > 1:
            width //= 2
            sums = sums[..., :width] + sums[..., width:]
        partials = np.ascontiguousarray(sums[: self._chunks, :, 0].cpu().numpy().T)
        ends = [*self._first[1:], self._chunks]
        return [
            (_core.tree_sum(partials[0, a:b]), _core.tree_sum(partials[1, a:b]))
            for a, b in zip(self._first, ends, strict=True)
        ]

    def _evaluate(self, jobs: dict[Kernel, _Job]) -> list[tuple[float, float]]:
        """As plain torch operations. Sums are the core's, over copies in the memory of the CPU."""
        sums = [(0.0, 0.0)] * len(self._groups)
        for kernel, job in jobs.items():
            function = _kernels.plain(kernel)
            table = _kernels.constants(kernel, job.numbers)
            numbers = torch.from_numpy(table).to(kernel.real).to(self._device)
            for i, k in zip(job.leaves, job.rows, strict=True):
                operands = [self._columns[name][i].to(kernel.real) for name in kernel.read]
                results = list(function(operands, numbers[k, : len(kernel.numbers)].unbind()))
                if kernel.sums:
                    unit = float(table[k, 0])
                    sums[i] = _sum_of_squares(results.pop(0), unit), _sum_of_squares(results.pop(0), unit)
                # A result may be an operand itself, which must not be overwritten before it is written elsewhere.
                results = [x.clone() if any(x is y for y in operands) else x for x in results]
                for name, result in zip(kernel.written, results, strict=True):
                    self._columns[name][i].copy_(result)
        return sums


# ----------------------------------------------------------------------------------------------------------------------
# Triton or not
# ----------------------------------------------------------------------------------------------------------------------


def _has_triton(device: torch.device) -> bool:
    """Whether kernels run there. On the CPU, where only tests make a part, they do in Triton's interpreter."""
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    why = _why_not(device)
    if why:
        _warn_once(why)
    return not why


@functools.cache
def _why_not(device: torch.device) -> str:
    """Why Triton is not used on that device; empty if it is."""
    if device.type != "cuda" or torch.version.cuda is None:
        return (
            f"ironstep's kernels are for CUDA; on {device.type} its optimisers are plain torch operations, and slower"
        )
    if importlib.util.find_spec("triton") is None:
        return (
            "ironstep's CUDA kernels need Triton, without which its optimisers are plain torch operations, and slower: "
            "pip install triton (on Windows: triton-windows)"
        )
    # Triton needs a driver, a C compiler and a GPU that is not too old: so it is tried once.
    kernel = Kernel("update", torch.float32, torch.float32, (("p",),), (0,))
    try:
        with torch.cuda.device(device):
            x = torch.zeros(1, device=device)
            one, zero = np.ones(1, np.int64), np.zeros(1, np.int64)
            table = Table(kernel, one, zero, zero, 1, np.array([[x.data_ptr(), x.data_ptr()]]), device)
            table.launch(kernel, torch.zeros(kernel.width, dtype=torch.float64, device=device))
    except Exception as error:
        return f"Triton does not work here, so ironstep's optimisers are plain torch operations, and slower: {error}"
    return ""


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


# ----------------------------------------------------------------------------------------------------------------------
# Memory
# ----------------------------------------------------------------------------------------------------------------------

_ADDRESSED = ("cpu", "cuda", "xpu")
"""Devices on which tensors that share memory have addresses that say so."""


def _address(tensor: Tensor) -> int:
    """An address such that tensors in different memory are far apart."""
    if tensor.device.type in _ADDRESSED:
        return tensor.data_ptr()
    # Elsewhere (mps) a storage has a handle, and tensors share memory if they share that.
    handle: int = tensor.untyped_storage()._cdata
    return (handle << 64) + int(tensor.storage_offset()) * tensor.element_size()


def _extent(tensor: Tensor) -> int:
    """Elements from the first to the last in memory."""
    extent = 1
    for n, stride in zip(tensor.shape, tensor.stride(), strict=True):
        extent += (n - 1) * stride
    return extent


def _moves(tensor: Tensor) -> list[int]:
    """The strides that matter."""
    return [stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]


def _meets_itself(tensor: Tensor) -> bool:
    """Whether two elements have the same memory."""
    axes = sorted((stride, n) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)
    extent, clear = 1, True
    for stride, n in axes:
        clear = clear and stride >= extent
        extent += (n - 1) * stride
    if clear or tensor.numel() == 0:
        return False
    seen = np.zeros(extent, np.uint8)
    np.add.at(seen, sum(np.ix_(*(np.arange(n) * stride for stride, n in axes))), 1)
    return bool((seen > 1).any())


def _check_run(run: list[_Span]) -> None:
    """Raises if one of these tensors, whose addresses mix, has an element in common with another that is written."""
    if len(run) == 1 or not any(span.written for span in run):
        return
    # A mark for each byte, in memory of our own: exact, and as fast for thousands of columns of one array as for two.
    first = run[0].first
    bytes_in_use = np.zeros(max(span.end for span in run) - first, bool)

    def elements(span: _Span) -> NDArray[np.bool_]:
        t, size = span.tensor, span.tensor.element_size()
        strides = [stride * size for stride in t.stride()]
        part = bytes_in_use[span.first - first : span.end - first]
        return np.lib.stride_tricks.as_strided(part, (*t.shape, size), (*strides, 1))

    # Those that are written first: gradients may have elements in common with each other.
    for k, span in enumerate(ordered := sorted(run, key=lambda span: not span.written)):
        own = elements(span)
        if own.any():
            bytes_in_use[:] = False
            elements(span)[...] = True
            other = next(other for other in ordered[:k] if other.written and elements(other).any())
            raise ValueError(
                f"{span.name} must not share memory with {other.name}, which the step writes: clone one of them"
            )
        if span.written:
            own[...] = True


def _sum_of_squares(x: Tensor, unit: float) -> float:
    """In the core's order."""
    array = x.cpu().contiguous().view(-1).numpy()
    return _core.sum_of_squares(array if unit == 1.0 else array.astype(np.float64) * unit)
