"""The table of the norms: one row per operation and way to store it, with its NumPy specification and torch's function.

Also what the tests of layers share.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import pkgutil
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import ironstep
import layers_reference as reference
import peers
from helpers import ISAS
from ironstep import _core, functional
from layers_reference import narrowed, widened

Array = NDArray[Any]
Shape = tuple[int, ...]


# -- The table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Norm:
    """An operation. `forward` returns (result, saved), or the result."""

    name: str
    shapes: list[Shape]
    """The first is small."""
    big: Shape
    """More elements than one thread takes alone."""
    eps: float = 1e-5

    has_bias = True
    axis: int | None = None

    def param_shape(self, shape: Shape) -> Shape:
        raise NotImplementedError

    def forward(self, x: Array, w: Array | None, b: Array | None, *, save: bool = True, out: Any = None) -> Any:
        raise NotImplementedError

    def backward(self, dy: Array, saved: Any, out: Array | None = None) -> Any:
        raise NotImplementedError

    def spec(self, x: Array, w: Array | None, b: Array | None) -> reference.Forward:
        """In x's type T. Arrays keep the shape of x."""
        raise NotImplementedError

    def spec_backward(
        self, dy: Array, x: Array, w: Array | None, b: Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        raise NotImplementedError

    def torch(self, x: Any, w: Any, b: Any) -> Any:
        """Of torch's tensors."""
        raise NotImplementedError

    def torch_loss(self, y: Any, x: Any, dy: Any) -> Any:
        """What the gradients are of."""
        return (y * dy).sum()

    def sets(self, shape: Shape) -> Array:
        """The number of the set that each element is normalised with."""
        raise NotImplementedError

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any, params: Any = None) -> list[Any]:
        """x, weight, bias and dy."""
        param_shape = self.param_shape(shape)
        x, dy = (rng.normal(size=shape).astype(dtype) for _ in range(2))
        w, b = (rng.normal(size=param_shape).astype(params or dtype) for _ in range(2))
        return [x, w, b if self.has_bias else None, dy]


@dataclass(frozen=True)
class Rows(Norm):
    """Over the trailing axes."""

    trailing: int = 1

    def param_shape(self, shape: Shape) -> Shape:
        return shape[len(shape) - self.trailing :]

    def sets(self, shape: Shape) -> Array:
        rows = np.arange(np.prod(shape[: -self.trailing], dtype=int))
        return np.repeat(rows, np.prod(self.param_shape(shape), dtype=int)).reshape(shape)

    def rows(self, x: Array) -> Array:
        return x.reshape(-1, int(np.prod(self.param_shape(x.shape))))

    def flat(self, *params: Array | None) -> list[Array | None]:
        return [None if p is None else p.reshape(-1) for p in params]


@dataclass(frozen=True)
class Layer(Rows):
    def forward(self, x, w, b, *, save=True, out=None):
        return functional.layer_norm(x, self.param_shape(x.shape), w, b, self.eps, out=out, save=save)

    def backward(self, dy, saved, out=None):
        return functional.layer_norm_backward(dy, saved, out=out)

    def spec(self, x, w, b):
        f = reference.layer_norm(self.rows(x), *self.flat(w, b), self.eps)
        return f._replace(y=f.y.reshape(x.shape))

    def spec_backward(self, dy, x, w, b):
        f, shape = self.spec(x, w, b), self.param_shape(x.shape)
        dx, dw, db = reference.layer_norm_backward(self.rows(dy), self.rows(x), *self.flat(w), f)
        return dx.reshape(x.shape), dw.reshape(shape), db.reshape(shape)

    def torch(self, x, w, b):
        from torch.nn import functional as torch_functional

        return torch_functional.layer_norm(x, self.param_shape(tuple(x.shape)), w, b, self.eps)


@dataclass(frozen=True)
class RMS(Rows):
    offset: float = 0.0
    has_bias = False

    def forward(self, x, w, b, *, save=True, out=None):
        shape = self.param_shape(x.shape)
        return functional.rms_norm(x, shape, w, self.eps, offset=self.offset, out=out, save=save)

    def backward(self, dy, saved, out=None):
        return functional.rms_norm_backward(dy, saved, out=out)

    def spec(self, x, w, b):
        f = reference.rms_norm(self.rows(x), *self.flat(w), self.eps, self.offset)
        return f._replace(y=f.y.reshape(x.shape))

    def spec_backward(self, dy, x, w, b):
        f, shape = self.spec(x, w, b), self.param_shape(x.shape)
        dx, dw, _ = reference.rms_norm_backward(self.rows(dy), self.rows(x), *self.flat(w), self.offset, f)
        return dx.reshape(x.shape), dw.reshape(shape), None

    def torch(self, x, w, b):
        from torch.nn import functional as torch_functional

        w = w if w is None or self.offset == 0.0 else w + self.offset
        return torch_functional.rms_norm(x, self.param_shape(tuple(x.shape)), w, self.eps)


@dataclass(frozen=True)
class AddRMS(RMS):
    """x is the sum of input and residual; dy is the gradient of both results."""

    def forward(self, x, w, b, *, save=True, out=None):
        with np.errstate(over="ignore"):
            big = np.abs(x.astype(np.float64)) > 1e-2  # its half is exact
        half = x * x.dtype.type(0.5)
        terms = (np.where(big, half, value).astype(x.dtype, copy=False) for value in (x, x.dtype.type(-0.0)))
        out = None if out is None else (out, np.empty_like(x))
        y, _, *saved = functional.add_rms_norm(
            *terms, self.param_shape(x.shape), w, self.eps, offset=self.offset, out=out, save=save
        )
        return (y, *saved) if save else y

    def backward(self, dy, saved, out=None):
        return functional.add_rms_norm_backward(dy, dy, saved, out=out)

    def spec_backward(self, dy, x, w, b):
        dx, dw, _ = super().spec_backward(dy, x, w, b)
        return dx + dy, dw, None

    def torch_loss(self, y, x, dy):
        return (y * dy).sum() + (x * dy).sum()


@dataclass(frozen=True)
class Channels(Norm):
    """Along a channel axis."""

    axis: int = 1

    def param_shape(self, shape: Shape) -> Shape:
        return (shape[self.axis],)

    def ncs(self, x: Array) -> Array:
        """As (N, C, S)."""
        x = np.moveaxis(x, self.axis, 1)
        return np.ascontiguousarray(x).reshape(*x.shape[:2], int(np.prod(x.shape[2:])))

    def back(self, x: Array, shape: Shape) -> Array:
        moved = np.moveaxis(np.empty(shape, np.int8), self.axis, 1).shape
        return np.moveaxis(x.reshape(moved), 1, self.axis)

    def first(self, x: Any) -> Any:
        """A tensor with its channels at 1."""
        return x.movedim(self.axis, 1)

    def sets(self, shape: Shape) -> Array:
        n, c = shape[0], shape[self.axis]
        ids = self.set_ids(n, c)
        return self.back(np.repeat(ids.reshape(-1), np.prod(shape, dtype=int) // (n * c)), shape)

    def set_ids(self, n: int, c: int) -> Array:
        """(N, C)"""
        raise NotImplementedError


@dataclass(frozen=True)
class Group(Channels):
    groups: int = 1

    def set_ids(self, n, c):
        return np.repeat(np.arange(n * self.groups), c // self.groups)

    def forward(self, x, w, b, *, save=True, out=None):
        return functional.group_norm(x, self.groups, w, b, self.eps, channel_axis=self.axis, out=out, save=save)

    def backward(self, dy, saved, out=None):
        return functional.group_norm_backward(dy, saved, out=out)

    def spec(self, x, w, b):
        f = reference.group_norm(self.ncs(x), self.groups, w, b, self.eps)
        return f._replace(y=self.back(f.y, x.shape))

    def spec_backward(self, dy, x, w, b):
        ncs = self.ncs(x)
        f = reference.group_norm(ncs, self.groups, w, b, self.eps)
        dx, dw, db = reference.group_norm_backward(self.ncs(dy), ncs, self.groups, w, f)
        return self.back(dx, x.shape), dw, db

    def torch(self, x, w, b):
        from torch.nn import functional as torch_functional

        return torch_functional.group_norm(self.first(x), self.groups, w, b, self.eps).movedim(1, self.axis)


@dataclass(frozen=True)
class Instance(Group):
    """Group normalisation with a group for each channel."""

    def set_ids(self, n, c):
        return np.arange(n * c)

    def forward(self, x, w, b, *, save=True, out=None):
        return functional.instance_norm(x, weight=w, bias=b, eps=self.eps, channel_axis=self.axis, out=out, save=save)

    def backward(self, dy, saved, out=None):
        return functional.instance_norm_backward(dy, saved, out=out)

    def spec(self, x, w, b):
        f = reference.group_norm(self.ncs(x), x.shape[self.axis], w, b, self.eps)
        return f._replace(y=self.back(f.y, x.shape))

    def spec_backward(self, dy, x, w, b):
        ncs, c = self.ncs(x), x.shape[self.axis]
        f = reference.group_norm(ncs, c, w, b, self.eps)
        dx, dw, db = reference.group_norm_backward(self.ncs(dy), ncs, c, w, f)
        return self.back(dx, x.shape), dw, db

    def torch(self, x, w, b):
        from torch.nn import functional as torch_functional

        return torch_functional.instance_norm(self.first(x), weight=w, bias=b, eps=self.eps).movedim(1, self.axis)


@dataclass(frozen=True)
class Batch(Channels):
    def set_ids(self, n, c):
        return np.tile(np.arange(c), n)

    def forward(self, x, w, b, *, save=True, out=None):
        return functional.batch_norm(
            x, weight=w, bias=b, training=True, eps=self.eps, channel_axis=self.axis, out=out, save=save
        )

    def backward(self, dy, saved, out=None):
        return functional.batch_norm_backward(dy, saved, out=out)

    def spec(self, x, w, b):
        f = reference.batch_norm(self.ncs(x), w, b, self.eps)
        return f._replace(y=self.back(f.y, x.shape))

    def spec_backward(self, dy, x, w, b):
        ncs = self.ncs(x)
        f = reference.batch_norm(ncs, w, b, self.eps)
        dx, dw, db = reference.batch_norm_backward(self.ncs(dy), ncs, w, f, training=True)
        return self.back(dx, x.shape), dw, db

    def torch(self, x, w, b):
        from torch.nn import functional as torch_functional

        y = torch_functional.batch_norm(self.first(x), None, None, w, b, True, 0.1, self.eps)
        return y.movedim(1, self.axis)


@dataclass(frozen=True)
class Inference(Channels):
    """Batch normalisation with running statistics."""

    def set_ids(self, n, c):
        return np.arange(n * c)  # an element is by itself; a channel of a sample will do

    @staticmethod
    def running(c: int) -> tuple[Array, Array]:
        rng = np.random.default_rng(c)
        return rng.normal(size=c).astype(np.float32), rng.uniform(0.5, 2.0, size=c)

    def forward(self, x, w, b, *, save=True, out=None):
        mean, var = self.running(x.shape[self.axis])
        return functional.batch_norm(
            x, mean, var, w, b, False, eps=self.eps, channel_axis=self.axis, out=out, save=save
        )

    def backward(self, dy, saved, out=None):
        return functional.batch_norm_backward(dy, saved, out=out)

    def spec(self, x, w, b):
        f = reference.batch_norm_inference(self.ncs(x), *self.running(x.shape[self.axis]), w, b, self.eps)
        return f._replace(y=self.back(f.y, x.shape))

    def spec_backward(self, dy, x, w, b):
        ncs = self.ncs(x)
        f = reference.batch_norm_inference(ncs, *self.running(x.shape[self.axis]), w, b, self.eps)
        dx, dw, db = reference.batch_norm_backward(self.ncs(dy), ncs, w, f, training=False)
        return self.back(dx, x.shape), dw, db

    def torch(self, x, w, b):
        import torch
        from torch.nn import functional as torch_functional

        mean, var = (torch.tensor(v, dtype=x.dtype) for v in self.running(x.shape[self.axis]))
        y = torch_functional.batch_norm(self.first(x), mean, var, w, b, False, 0.1, self.eps)
        return y.movedim(1, self.axis)


WIDTHS = [1, 2, 15, 16, 17, 31, 32, 33, 511, 512, 513, 1023, 1024, 1025, 2047, 2049, 5000]
ROW_SHAPES = [(3, 5), (7,), (1, 1), (2, 3, 40), (300, 7)]
ROW_SHAPES += [(rows, n) for rows, n in zip([5, 17, 33] * 6, WIDTHS, strict=False)]
PLANES = [1, 2, 15, 16, 17, 100, 255, 256, 257, 300, 511, 512, 513, 1023, 1024, 1025]
"""Places in a plane, around where planes are joined to blocks or cut into them."""
LISTS = [(3, c, s) for c, s in zip([4, 6, 2, 34] * 4, PLANES, strict=True)] + [
    (9, 4, 341),
    (2, 4, 2047),
    (3, 2, 2049),
    (40, 6, 30),
    (130, 4, 9),
]


def channels_last(shape: Shape) -> Shape:
    return shape[0], *shape[2:], shape[1]


FIRST = [(3, 4, 5, 2), (2, 6, 17, 30), (2, 4, 3, 2, 5), *LISTS]
LAST = [channels_last(shape) for shape in FIRST]
PAIRS = [(5, 4), (2, 6), (600, 18), (513, 34), (40, 1024), (4, 1030)]
"""(N, C)"""
BIG = (6, 12, 61, 63)

NORMS: list[Norm] = [
    Layer("layer", ROW_SHAPES, (600, 513)),
    Layer("layer_two_axes", [(3, 2, 5), (4, 9, 57), (2, 3, 31, 33)], (90, 57, 60), trailing=2, eps=1e-2),
    RMS("rms", ROW_SHAPES, (600, 513)),
    RMS("rms_offset", [(3, 5), (33, 513), (20, 64)], (600, 513), offset=1.0, eps=1e-2),
    AddRMS("add_rms", [(3, 5), (33, 513), (20, 64)], (600, 513)),
    Group("group", FIRST, BIG, groups=2),
    Group("group_last", LAST, channels_last(BIG), groups=2, axis=-1),
    Group("group_of_all", [(3, 4, 5, 2), (2, 6, 300)], BIG, groups=1),
    Group("group_pairs", PAIRS, (9000, 34), groups=2),
    Instance("instance", [shape for shape in FIRST if shape[-1] > 1], BIG),
    Instance("instance_last", [shape for shape in LAST if shape[1] > 1], channels_last(BIG), axis=-1, eps=1e-2),
    Batch("batch", FIRST, BIG),
    Batch("batch_last", LAST, channels_last(BIG), axis=-1),
    Batch("batch_pairs", PAIRS, (9000, 34), eps=1e-2),
    Batch("batch_small_planes", [(3, 4, 5, 2), (130, 3, 9)], (1300, 5, 7, 7)),
    Batch("batch_small_planes_last", [(3, 5, 2, 4), (130, 9, 3)], (1300, 7, 7, 5), axis=-1),
    Batch("batch_middle", [(3, 5, 4, 2), (3, 20, 6, 31)], (6, 61, 12, 63), axis=2),
    Inference("inference", FIRST, BIG),
    Inference("inference_last", LAST, channels_last(BIG), axis=-1),
    Inference("inference_pairs", PAIRS, (9000, 34)),
]


# -- What several files use --------------------------------------------------------------------------------------------


class Expected(NamedTuple):
    """What the specification says, in the types that are stored."""

    y: Array
    mean: Array | None
    rstd: Array
    dx: Array
    dw: Array | None
    db: Array | None


def expected(norm: Norm, x: Array, w: Array | None, b: Array | None, dy: Array) -> Expected:
    with np.errstate(all="ignore"):
        wide, wide_dy = widened(x), widened(dy)
        f = norm.spec(wide, w, b)
        dx, dw, db = norm.spec_backward(wide_dy, wide, w, b)
        dw, db = (None if p is None else narrowed(g, p.dtype) for p, g in ((w, dw), (b, db)))
        return Expected(narrowed(f.y, x.dtype), f.mean, f.rstd, narrowed(dx, x.dtype), dw, db)


def channels_last_memory(x: Array, axis: int = 1) -> Array:
    """A copy that has the channels closest together in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, axis, -1)), -1, axis)


def channels_first_memory(x: Array) -> Array:
    """A copy of what has its channels last, with the channels far apart in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 1)), 1, -1)


def close(got: Any, want: Any, tolerance: float, what: str = "") -> None:
    """Element by element: within `tolerance` of the wanted value, or of 1 if that is smaller. NaN and inf are equal."""
    got, want = (np.asarray(v, np.float64) for v in (got, want))
    assert got.shape == want.shape, f"{what}: shape {got.shape}, not {want.shape}"
    with np.errstate(invalid="ignore"):
        near = np.abs(got - want) <= tolerance * np.maximum(1.0, np.abs(want))
    wrong = np.argwhere(~(near | (got == want) | (np.isnan(got) & np.isnan(want))))
    if len(wrong):
        at = tuple(wrong[0])
        raise AssertionError(f"{what}: {len(wrong)} of {got.size} differ, first at {at}: {got[at]!r}, not {want[at]!r}")


@contextmanager
def keras_in_float64() -> Iterator[Any]:
    """The module, on torch."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    with peers._keras_in_float64():
        yield keras


def on_every_machine() -> Iterator[str]:
    """Sets every thread count, with the best instruction set, and every instruction set, with two threads, in turn."""
    try:
        for isa in ISAS:
            _core.use_instruction_set(isa)
            for threads in (1, 2, 3, 7) if isa == ISAS[-1] else (2,):
                ironstep.set_num_threads(threads)
                yield f"{isa}, {threads} threads"
    finally:
        _core.use_instruction_set(None)
        ironstep.set_num_threads(0)


class FlushToZero:
    """FTZ and DAZ of this thread are on inside, as other libraries leave them."""

    def __enter__(self) -> None:
        self.libm = ctypes.CDLL("libm.so.6")
        self.environment = (ctypes.c_uint32 * 8)()
        self.libm.fegetenv(self.environment)
        self.saved = bytes(self.environment)
        self.environment[7] |= 0x8040  # MXCSR
        self.libm.fesetenv(self.environment)
        assert np.float32(3e-39) * np.float32(0.5) == 0.0

    def __exit__(self, *_: object) -> None:
        still = np.float32(3e-39) * np.float32(0.5)
        ctypes.memmove(self.environment, self.saved, len(self.saved))
        self.libm.fesetenv(self.environment)
        assert still == 0.0, "the caller's own flags are kept"


class NodeCase(NamedTuple):
    """A node test of ONNX."""

    name: str
    attributes: dict[str, Any]
    inputs: list[Any]
    outputs: list[Any]


@functools.cache
def onnx_node_cases(op: str) -> list[NodeCase]:
    """Those of an operator, without those of its expansion. Loads only the modules that make ours: all take 12 s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx import helper
        from onnx.backend.test.case import node

        for module in pkgutil.iter_modules(node.__path__):
            if re.search("norm|dropout|softmax_?cross|gelu|relu", module.name):
                importlib.import_module(f"{node.__name__}.{module.name}")
    cases = []
    for case in node._NodeTestCases:
        nodes = case.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type == op:
            attributes = {a.name: helper.get_attribute_value(a) for a in nodes[0].attribute}
            cases += [NodeCase(case.name, attributes, *data) for data in case.data_sets]
    return cases
