"""A rule's program, as `_core.Trace` gives it, as a Triton kernel and as plain torch operations.

The arithmetic of the optimisers is written in Rust and nowhere else. `_core.Trace` runs a rule on symbolic numbers, and
what it did, a list of additions, multiplications, divisions and roots, becomes source text here, once per program, in
either of two dialects. So a new optimiser runs on every device without another line.

The bits are those of the CPU. Triton's own float32 divisions and roots are approximate, so the correctly rounded ones
are named; multiplication and addition are never fused; float16 and bfloat16 are widened exactly and narrowed once, to
nearest even; and a sum of squares has the shape that `src/reduce.rs` gives it: chunks of 16384 elements in C order, 16
lanes in each, every lane added up in order, then the lanes by halving and the chunks by a tree. `tl.sum`, whose order
is the compiler's, is not used.

Triton is imported when a kernel is first needed.
"""

from __future__ import annotations

import functools
import linecache
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._types import computed

Ops: TypeAlias = tuple[tuple[Any, ...], ...]
Program: TypeAlias = tuple[Ops, tuple[int, ...], Sequence[float]]
"""What `_core.Trace` gives: operations, which of them are the results, and the constants."""

CHUNK = 16384
"""Elements in a chunk: what one program of a grid updates, and the block of a sum (`CHUNK` in `src/parallel.rs`)."""
LANES = 16
"""Lanes of a sum (`LANES` in `src/reduce.rs`)."""
TILE = 1024
"""Elements that a program updates at once."""
ROWS = 8
"""Chunks whose lanes one program adds up side by side: 8 x 16 lanes are the threads of four warps."""
AHEAD = 8
"""Elements of a lane that are loaded at once."""
ALIGNED = 16
"""Addresses in bytes and lengths in elements that are multiples of it can be read in the widest pieces."""

STORED = {torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "uint16"}
"""The dtypes of parameters and gradients, and what a kernel takes them for: bfloat16 for its bits."""


class Kernel(NamedTuple):
    """All that the source of a kernel depends on, and so the key of a compiled one."""

    task: str
    """`"update"`, `"measure"` (the first pass of a rule with norms), or `"inspect"` (the gradients alone)."""
    param: torch.dtype
    grad: torch.dtype
    ops: Ops = ()
    outputs: tuple[int, ...] = ()
    states: int = 0
    writes_state: bool = False
    prepares: bool = False
    """Whether the gradient is scaled, limited or multiplied before the rule sees it."""
    master: bool = False
    """Whether `p` is a master, and the parameter its rounded image."""
    ema: bool = False

    @property
    def real(self) -> torch.dtype:
        """The type that is computed in."""
        return computed(self.param)

    @property
    def sums(self) -> bool:
        """Whether it adds up squares."""
        return self.task != "update"

    @property
    def operands(self) -> dict[str, torch.dtype]:
        """The arrays that it goes over, with their dtypes."""
        if self.task == "inspect":
            return {"g": self.grad}
        arrays = {"p": self.param, "g": self.grad} | {f"s{k}": self.real for k in range(self.states)}
        arrays |= {"master": self.real} if self.master else {}
        if self.task == "measure":
            return {name: dtype for name, dtype in arrays.items() if name != "p" or not self.master}
        return arrays | ({"ema": self.real} if self.ema else {})

    @property
    def read(self) -> dict[str, str]:
        """The arrays that it reads, with the names of their values: with a master, that is the `p` of the rule."""
        names = {name: "p" if name == "master" else name for name in self.operands}
        return {name: value for name, value in names.items() if name != "p" or not self.master}

    @property
    def written(self) -> dict[str, str]:
        """The arrays that it writes, with the names of the new values."""
        states = {f"s{k}": f"new_s{k}" for k in range(self.states)} if self.writes_state else {}
        if self.task == "update":
            new = {"p": "new_p", "master": "new_p", "ema": "new_ema"}
            return states | {name: value for name, value in new.items() if name in self.operands}
        return states if self.task == "measure" else {}

    @property
    def numbers(self) -> list[str]:
        """The names of the numbers in a row of constants: those of `Around`, then the program's own."""
        last = max((op[1] for op in self.ops if op[0] == "constant"), default=-1)
        return [*Around._fields, *(f"c{k}" for k in range(last + 1))]

    @property
    def width(self) -> int:
        """Numbers in a row of constants: an even number, so that each row is aligned."""
        return (len(self.numbers) + 1) // 2 * 2


class Around(NamedTuple):
    """What happens around the rule, as `Options` and `Limited` in `src/optim/mod.rs` have it."""

    unit: float = 1.0
    """What is squared is multiplied by it, in float64."""
    scale: float = 1.0
    limit: float = float("inf")
    coefficient: float = 1.0
    """Of clipping, with the sign of the direction."""
    decay: float = 0.0
    """Of the average."""
    rest: float = 1.0
    """1 - decay."""

    @property
    def prepares(self) -> bool:
        """Whether there is anything to do to a gradient before the rule."""
        return not (self.scale == 1.0 and self.limit == float("inf") and self.coefficient == 1.0)


def constants(kernel: Kernel, rows: Sequence[tuple[Around, Sequence[float]]]) -> NDArray[np.float64]:
    """Rows of constants, rounded once to the type that is computed in."""
    table = np.zeros((len(rows), kernel.width))
    for out, (around, own) in zip(table, rows, strict=True):
        out[: len(around) + len(own)] = (*around, *own)
    if kernel.real == torch.float32:
        with np.errstate(over="ignore", under="ignore"):
            table[:, 1:] = table[:, 1:].astype(np.float32)
    return table


# ----------------------------------------------------------------------------------------------------------------------
# The program as text
# ----------------------------------------------------------------------------------------------------------------------


class Dialect(NamedTuple):
    """How the operations are written that are not written alike everywhere."""

    where: str
    absolute: str
    sqrt: str
    div: str

    def write(self, name: str, *operands: Any) -> str:
        """An operation of a program as an expression."""
        where = self.where
        template = {
            "p": "p",
            "g": "g",
            "state": "s{0}",
            "constant": "c{0}",
            "zero": "zero",
            "one": "one",
            "add": "{0} + {1}",
            "sub": "{0} - {1}",
            "mul": "{0} * {1}",
            "div": self.div,
            "sqrt": self.sqrt,
            "abs": self.absolute,
            # Not `-x`, which older releases of Triton take for `0 - x`.
            "neg": "{0} * -1.0",
            # As in `src/float.rs`: NaN in either wins, of two zeros the second is taken; 0 for both zeros, NaN for NaN.
            "maximum": f"{where}(({{0}} > {{1}}) | ({{0}} != {{0}}), {{0}}, {{1}})",
            "sign": f"{where}(({{0}} == 0.0) | ({{0}} != {{0}}), {{0}} + 0.0, {where}({{0}} > 0.0, one, one * -1.0))",
        }[name]
        return template.format(*operands)


PLAIN = Dialect("torch.where", "torch.abs({0})", "torch.sqrt({0})", "torch.div({0}, {1})")
# For float32 `/` would be `div.full` and `tl.sqrt` would be `sqrt.approx.ftz`; for float64 they are IEEE's.
TRITON32 = Dialect("tl.where", "tl.abs({0})", "tl.sqrt_rn({0})", "tl.div_rn({0}, {1})")
TRITON64 = Dialect("tl.where", "tl.abs({0})", "tl.sqrt({0})", "{0} / {1}")


def body(kernel: Kernel, dialect: Dialect) -> list[str]:
    """Statements that make the new values (`Kernel.written`), or `x0` and `x1` whose squares are added up.

    They read the operands and numbers of the kernel and `zero` and `one`, all in the type that is computed in.
    """
    where = dialect.where
    limited = [
        "g = g * scale",
        f"g = {where}(g > limit, limit, g)",
        f"g = {where}(g < limit * -1.0, limit * -1.0, g)",
    ]
    if kernel.task == "inspect":
        # x - x is NaN for infinities and NaN. What is looked at is the gradient before it is limited, as in the core.
        return ["x1 = g * scale", f"x1 = {where}(x1 - x1 == 0.0, zero, one)", *limited, "x0 = g"]
    lines = [*limited, "g = g * coefficient"] if kernel.prepares else []
    for k, (name, *operands) in enumerate(kernel.ops):
        given = operands if name in ("state", "constant") else [f"t{i}" for i in operands]
        lines.append(f"t{k} = {dialect.write(name, *given)}")
    states = [f"new_s{k}" for k in range(kernel.states)] if kernel.writes_state else []
    names = (["x0", "x1"] if kernel.task == "measure" else ["new_p"]) + states
    lines += [f"{name} = t{i}" for name, i in zip(names, kernel.outputs)]  # noqa: B905 - the state may not be wanted
    if "new_ema" in kernel.written.values():
        lines.append("new_ema = decay * ema + rest * new_p")
    return lines


def define(text: str, names: dict[str, Any]) -> Any:
    """The function `kernel` of that text. The text is kept where `inspect` looks for it: Triton reads it there."""
    path = f"<ironstep kernel {len(linecache.cache)}-{hash(text):x}>"
    linecache.cache[path] = len(text), None, text.splitlines(keepends=True), path
    exec(compile(text, path, "exec"), names)
    return names["kernel"]


# ----------------------------------------------------------------------------------------------------------------------
# Plain torch operations
# ----------------------------------------------------------------------------------------------------------------------


@functools.cache
def plain(kernel: Kernel) -> Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]]:
    """A function from what is read and a row of constants, all of the type that is computed in, to the results.

    They are the two arrays whose squares are to be added up, if it sums, and the new values in the order of
    `Kernel.written`.
    """
    results = [*(["x0", "x1"] if kernel.sums else []), *kernel.written.values()]
    lines = [
        f"{', '.join(kernel.read.values())}, = operands",
        f"{', '.join(kernel.numbers)}, = numbers",
        "zero, one = torch.zeros_like(unit), torch.ones_like(unit)",
        *body(kernel, PLAIN),
        f"return {', '.join(results)},",
    ]
    text = "def kernel(operands, numbers):\n" + "".join(f"    {line}\n" for line in lines)
    function: Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]] = define(text, {"torch": torch})
    return function


# ----------------------------------------------------------------------------------------------------------------------
# Triton
# ----------------------------------------------------------------------------------------------------------------------

LEADING = 3
"""Columns of a table before the addresses: length, row of constants, number of the chunk among all."""


def source(kernel: Kernel, aligned: bool) -> str:
    """The text of a Triton kernel.

    Its arguments are a table with a row per chunk (`LEADING` columns, then the address of each operand's first
    element), the constants, and for sums the array that they go to, of 2 x 16 float64 numbers per chunk. An update
    takes one chunk per program, a sum `ROWS` of them: there all that is read from the table is a vector, and a tile has
    the axes chunk, lane, and elements of a lane. `aligned`: the table has multiples of `ALIGNED` alone.
    """
    real = STORED[kernel.real]
    columns = LEADING + len(kernel.operands)
    aligned = aligned and not kernel.sums

    def hinted(text: str) -> str:
        return f"tl.multiple_of({text}, {ALIGNED})" if aligned else text

    expand = "[:, None, None]" if kernel.sums else ""
    chunk = f"tl.program_id(0) * {ROWS} + tl.arange(0, {ROWS})" if kernel.sums else "tl.program_id(0)"
    lines = [
        f"entry = table + ({chunk}).to(tl.int64) * {columns}",
        f"length = {hinted('tl.load(entry).to(tl.int32)')}",
        f"row = constants + tl.load(entry + 1) * {kernel.width}",
    ]
    for i, (name, dtype) in enumerate(kernel.operands.items(), LEADING):
        pointer = hinted(f"tl.load(entry + {i}).to(tl.pointer_type(tl.{STORED[dtype]}))")
        lines.append(f"{name}_at = {pointer}{expand}")
    for k, name in enumerate(kernel.numbers):
        cast = "" if name == "unit" else f".to(tl.{real})"
        lines.append(f"{name} = tl.load(row + {k}){cast}{expand}")
    lines += [f"{name} = tl.full([], {value}, tl.{real})" for name, value in (("zero", 0.0), ("one", 1.0))]
    if kernel.sums:
        lines += [
            *(f"sum{k} = tl.zeros([{ROWS}, {LANES}], tl.float64)" for k in (0, 1)),
            f"offset = tl.arange(0, {AHEAD})[None, None, :] * {LANES} + tl.arange(0, {LANES})[None, :, None]",
            f"for first in range(0, tl.max(length, 0), {LANES * AHEAD}):",
        ]
    else:
        lines += [f"offset = tl.arange(0, {TILE})", f"for first in range(0, length, {TILE}):"]

    loop = ["at = first + offset", f"inside = at < length{expand}"]
    for name, value in kernel.read.items():
        loop.append(f"{value} = tl.load({name}_at + at, inside, other=0)")
        loop += [f"{value} = {text}" for text in widened(value, kernel.operands[name], real)]
    loop += body(kernel, TRITON64 if real == "float64" else TRITON32)
    for name, value in kernel.written.items():
        loop += [f"stored = {text}" for text in narrowed(value, kernel.operands[name])]
        loop.append(f"tl.store({name}_at + at, stored, inside)")
    for k in (0, 1) if kernel.sums else ():
        loop.append(f"x{k} = x{k}.to(tl.float64) * unit")
        # After the end of a chunk its lanes get 0, which changes nothing: a sum of squares is never -0.
        loop.append(f"x{k} = tl.where(inside, x{k} * x{k}, 0.0)")
        statements, parts = apart(f"x{k}", AHEAD)
        loop += [*statements, *(f"sum{k} = sum{k} + {part}" for part in parts)]
    lines += [f"    {line}" for line in loop]
    if kernel.sums:
        lines.append(f"out = sums + tl.load(entry + 2)[:, None] * {2 * LANES} + tl.arange(0, {LANES})[None, :]")
        lines += [f"tl.store(out + {k * LANES}, sum{k})" for k in (0, 1)]
    arguments = "table, constants, sums" if kernel.sums else "table, constants"
    return f"def kernel({arguments}):\n" + "".join(f"    {line}\n" for line in lines)


def widened(name: str, dtype: torch.dtype, real: str) -> list[str]:
    """What a loaded element becomes, one step after the other."""
    if dtype == torch.bfloat16:
        return [f"({name}.to(tl.uint32) << 16).to(tl.float32, bitcast=True)", f"{name}.to(tl.{real})"]
    return [f"{name}.to(tl.{real})"]


def narrowed(value: str, dtype: torch.dtype) -> list[str]:
    """What is stored of a value, one step after the other."""
    if dtype == torch.float16:
        return [f"{value}.to(tl.float16)"]
    if dtype == torch.bfloat16:
        # In integers, as in `src/float.rs`: the interpreter's own conversion cuts off.
        return [
            f"{value}.to(tl.uint32, bitcast=True)",
            "tl.where((stored & 0x7FFFFFFF) > 0x7F800000, stored | 0x400000, stored + 0x7FFF + ((stored >> 16) & 1))",
            "(stored >> 16).to(tl.uint16)",
        ]
    return [value]


def apart(name: str, n: int) -> tuple[list[str], list[str]]:
    """Statements that take an array whose last axis has `n` elements, a power of two, apart; and the parts in order."""
    if n == 1:
        return [], [name]
    shape = [ROWS, LANES, *([n // 2] if n > 2 else []), 2]
    even, odd = apart(f"{name}e", n // 2), apart(f"{name}o", n // 2)
    first = f"{name}e, {name}o = tl.split(tl.reshape({name}, {shape}))"
    return [first, *even[0], *odd[0]], [part for pair in zip(even[1], odd[1], strict=True) for part in pair]


@functools.cache
def compiled(kernel: Kernel, aligned: bool) -> Any:
    """The Triton kernel."""
    import triton  # type: ignore[import-untyped]
    import triton.language as tl  # type: ignore[import-untyped]

    return triton.jit(define(source(kernel, aligned), {"tl": tl}))


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device. On CUDA nothing is waited for, on either side.

    The array is copied to pinned memory of torch's, which is not used again before the copy to the device is done.
    """
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


class Table:
    """The chunks of some leaves, on the device: what the launches of a kernel need besides the constants."""

    def __init__(
        self,
        kernel: Kernel,
        sizes: NDArray[np.int64],
        rows: NDArray[np.int64],
        first: NDArray[np.int64],
        total: int,
        addresses: NDArray[np.int64],
        device: torch.device,
    ) -> None:
        """From the elements, row of constants, number of the first chunk, and addresses of the operands of each leaf.

        `total`: chunks in all tables together, which is also the number of one that is added up in vain.
        """
        chunks = -(-sizes // CHUNK)
        leaf = np.repeat(np.arange(len(sizes)), chunks)
        within = np.arange(len(leaf)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
        table = np.empty((len(leaf), LEADING + addresses.shape[1]), np.int64)
        table[:, 0] = np.minimum(CHUNK, sizes[leaf] - within * CHUNK)
        table[:, 1] = rows[leaf]
        table[:, 2] = first[leaf] + within
        itemsizes = np.array([dtype.itemsize for dtype in kernel.operands.values()])
        table[:, LEADING:] = addresses[leaf] + within[:, None] * CHUNK * itemsizes
        if kernel.sums:
            # The last program has no fewer rows than the others.
            rest = np.zeros((-len(table) % ROWS, table.shape[1]), np.int64)
            rest[:, 2] = total
            parts = [(False, np.concatenate([table, rest]))]
        else:
            aligned = (table[:, [0, *range(LEADING, table.shape[1])]] % ALIGNED == 0).all(1)
            parts = [(True, table[aligned]), (False, table[~aligned])]
        self.parts = [(aligned, len(part), upload(part, device)) for aligned, part in parts if len(part)]

    def launch(self, kernel: Kernel, numbers: Tensor, sums: Tensor | None = None) -> None:
        """Runs a kernel over all chunks, on the current stream: the one of `__init__`, or another program alike."""
        arguments = [numbers] if sums is None else [numbers, sums]
        for aligned, n, table in self.parts:
            grid = (n // ROWS if kernel.sums else n,)
            compiled(kernel, aligned)[grid](table, *arguments, num_warps=4, enable_fp_fusion=False)
