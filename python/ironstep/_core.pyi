"""Types of the compiled core. Private: use the package."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, final

from numpy.typing import NDArray

__version__: str
__all__ = [
    "Plan",
    "Tree",
    "Values",
    "__version__",
    "get_num_threads",
    "instruction_sets",
    "load_safetensors",
    "pow",
    "rules",
    "save_safetensors",
    "set_num_threads",
]

def get_num_threads() -> int: ...
def set_num_threads(n: int, /) -> None: ...
def instruction_sets() -> list[str]: ...
def rules() -> dict[str, tuple[list[str], list[str], list[tuple[str, float]]]]: ...
def pow(x: float, y: float, /) -> float: ...
def save_safetensors(
    path: str | PathLike[str], arrays: Sequence[tuple[str, NDArray[Any]]], metadata: str, /
) -> None: ...
def load_safetensors(path: str | PathLike[str], /) -> tuple[list[tuple[str, str, NDArray[Any]]], str | None]: ...

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
    ) -> tuple[str | None, float | None, float | None, list[list[float]]]: ...
