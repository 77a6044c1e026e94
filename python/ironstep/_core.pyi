"""Types of the compiled core. Private: use the package."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, final

from numpy.typing import NDArray

__version__: str
__all__ = [
    "Plan",
    "Schedule",
    "TensorViews",
    "Trace",
    "Tree",
    "Values",
    "__version__",
    "activation",
    "augment",
    "augment_masks",
    "augment_mix",
    "check_output",
    "cross_entropy",
    "draw_beta",
    "draw_words",
    "dropout_draw",
    "dropout_mask",
    "elementwise",
    "get_num_threads",
    "instruction_sets",
    "load_safetensors",
    "norm_channels",
    "norm_channels_backward",
    "norm_rows",
    "norm_rows_backward",
    "outside_unit",
    "permutation",
    "philox",
    "pointwise_loss",
    "pow",
    "rules",
    "save_safetensors",
    "scale",
    "set_num_threads",
    "sum_of_squares",
    "tensor_view",
    "tree_sum",
    "uniforms",
    "use_instruction_set",
]

_Array = NDArray[Any]
_ChannelShape = tuple[Sequence[int], bool, int]

def get_num_threads() -> int: ...
def set_num_threads(n: int, /) -> None: ...
def instruction_sets() -> list[str]: ...
def rules() -> dict[str, tuple[list[str], list[str], list[tuple[str, float]]]]: ...
def pow(x: float, y: float, /) -> float: ...
def save_safetensors(
    path: str | PathLike[str], arrays: Sequence[tuple[str, NDArray[Any]]], metadata: str, /
) -> None: ...
def load_safetensors(path: str | PathLike[str], /) -> tuple[list[tuple[str, str, NDArray[Any]]], str | None]: ...
def check_output(array: Any, name: str, /) -> None: ...
def norm_rows(
    x: _Array,
    residual: _Array | None,
    hidden: _Array | None,
    y: _Array,
    shape: Sequence[int],
    weight: _Array | None,
    bias: _Array | None,
    offset: float,
    eps: float,
    center: bool,
    /,
) -> tuple[Any, _Array]: ...
def norm_rows_backward(
    x: _Array,
    dy: _Array,
    dh: _Array | None,
    dx: _Array,
    shape: Sequence[int],
    weight: _Array | None,
    offset: float,
    mean: _Array | None,
    rstd: _Array,
    dweight: _Array | None,
    dbias: _Array | None,
    /,
) -> None: ...
def norm_channels(
    x: _Array,
    y: _Array | None,
    shape: _ChannelShape,
    weight: _Array | None,
    bias: _Array | None,
    eps: float,
    given: tuple[_Array, _Array] | None,
    /,
) -> Any: ...
def norm_channels_backward(
    x: _Array,
    dy: _Array,
    dx: _Array | None,
    shape: _ChannelShape,
    weight: _Array | None,
    mean: _Array,
    rstd: _Array,
    constant: bool,
    shared: tuple[_Array, _Array, float] | None,
    dweight: _Array | None,
    dbias: _Array | None,
    /,
) -> tuple[_Array, _Array]: ...
def dropout_draw(
    x: _Array,
    y: _Array,
    p: float,
    seed: int,
    stream: int,
    offset: int,
    units: tuple[int, int, int] | None,
    /,
) -> None: ...
def dropout_mask(x: _Array, y: _Array, p: float, mask: _Array, /) -> None: ...
def cross_entropy(
    x: _Array,
    shape: Sequence[int],
    classes: _Array | None,
    probabilities: _Array | None,
    weight: _Array | None,
    ignore_index: int,
    on: float,
    off: float,
    scale: _Array,
    dx: _Array | None,
    /,
) -> _Array: ...
def pointwise_loss(
    kind: str,
    x: _Array,
    target: _Array,
    weight: _Array | None,
    pos_weight: _Array | None,
    upstream: _Array | None,
    scale: float,
    on: float,
    off: float,
    losses: _Array | None,
    dx: _Array | None,
    /,
) -> float: ...
def sum_of_squares(x: _Array, /) -> float: ...
def tree_sum(numbers: _Array, /) -> float: ...
def activation(name: str, x: _Array, dy: _Array | None, y: _Array, /) -> None: ...
def scale(x: _Array, y: _Array, factor: float, /) -> None: ...
def philox(counter: Sequence[int], key: Sequence[int], rounds: int = ...) -> list[int]: ...
def permutation(n: int, seed: int, stream: int, /) -> NDArray[Any]: ...
def use_instruction_set(name: str | None, /) -> None: ...

@final
class Tree:
    def __new__(cls, obj: Any, name: str) -> Tree: ...
    def __len__(self) -> int: ...
    @property
    def leaves(self) -> list[Any]: ...
    def flatten(self, obj: Any, name: str, /) -> list[Any]: ...
    def build(self, leaves: list[Any], /) -> Any: ...
    def names(self, name: str, /) -> list[str]: ...
    def keys(self) -> list[str]: ...

@final
class Schedule:
    def __new__(cls, spec: tuple[Any, ...]) -> Schedule: ...
    def at(self, step: float, /) -> float: ...
    def fill(self, steps: NDArray[Any], out: NDArray[Any], /) -> None: ...

@final
class Values:
    def __new__(cls, numbers: Sequence[float]) -> Values: ...

@final
class Plan:
    def __new__(
        cls,
        rule: str,
        tree: Tree,
        states: Sequence[Sequence[Any]],
        groups: Sequence[int],
        master: Sequence[Any | None] | None = None,
        ema: Sequence[Any] | None = None,
    ) -> Plan: ...
    def params(self) -> list[Any]: ...
    def watch_state(self) -> None: ...
    def step(
        self,
        grads: Any,
        groups: Sequence[tuple[int, bool, Values, Sequence[float]]],
        grad_scale: float,
        clip_value: float,
        max_norm: float,
        check_finite: bool,
        ema_decay: float,
        grad_norm: bool,
        update_norm: bool,
        isa: str | None,
        /,
        joint_norm: float | None = None,
    ) -> tuple[str | None, float | None, float | None, list[list[float]]]: ...
    def inspect(
        self, grads: Any, grad_scale: float, clip_value: float, unit: float, isa: str | None, /
    ) -> tuple[list[float], int | None]: ...

_Program = tuple[tuple[tuple[Any, ...], ...], tuple[int, ...], list[float]]

@final
class Trace:
    def __new__(cls, rule: str, values: Values, step: int, scalars: Sequence[float]) -> Trace: ...
    @property
    def passes(self) -> str: ...
    @property
    def scalars(self) -> list[float]: ...
    @property
    def update(self) -> _Program | None: ...
    @property
    def measure(self) -> _Program | None: ...
    def second(self, param_norm: float, measured_norm: float) -> _Program: ...

@final
class TensorViews:
    def __new__(cls, names: Sequence[str], *, written: bool, plain: bool = False) -> TensorViews: ...
    def look(self, tensors: list[Any]) -> tuple[list[Any], bool]: ...

def tensor_view(tensor: Any, name: str, *, written: bool, plain: bool = False) -> Any: ...

_Size = tuple[int, int, int, bool]
_Stages = Sequence[tuple[str, NDArray[Any], NDArray[Any], Sequence[float]]]

def augment(
    images: NDArray[Any],
    out: NDArray[Any],
    dtype: str,
    n: int,
    before: _Size,
    after: _Size,
    stages: _Stages,
    unit: bool,
    /,
) -> bool: ...
def augment_masks(
    masks: NDArray[Any],
    out: NDArray[Any],
    size: int,
    n: int,
    before: _Size,
    after: _Size,
    channels: int,
    planar: Sequence[bool],
    fill: int,
    stages: _Stages,
    /,
) -> None: ...
def augment_mix(
    x: NDArray[Any],
    out: NDArray[Any],
    dtype: str,
    n: int,
    size: _Size,
    partner: NDArray[Any],
    weight: NDArray[Any],
    boxes: NDArray[Any],
    /,
) -> None: ...
def outside_unit(images: NDArray[Any], dtype: str, /) -> int | None: ...
def uniforms(
    seed: int, epoch: int, indices: NDArray[Any], transform: int, first: int, count: int, /
) -> NDArray[Any]: ...
def draw_words(seed: int, epoch: int, indices: NDArray[Any], transform: int, /) -> NDArray[Any]: ...
def draw_beta(
    seed: int, epoch: int, indices: NDArray[Any], transform: int, first: int, a: float, b: float, /
) -> NDArray[Any]: ...
def elementwise(name: str, x: NDArray[Any], /) -> NDArray[Any]: ...
