"""THE table: one row per optimiser variant. Every test of the optimisers runs over every row."""

from __future__ import annotations

from typing import Any, NamedTuple

from ironstep import optim


class Case(NamedTuple):
    """An optimiser variant."""

    name: str
    cls: type[optim.Optimizer]
    kwargs: dict[str, Any]


CASES = [
    Case("sgd", optim.SGD, {"lr": 0.1}),
    Case("momentum", optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    Case("adamw", optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
    Case("lamb", optim.LAMB, {"lr": 0.1}),
]
