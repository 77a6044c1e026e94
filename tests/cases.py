"""THE table: one row per optimiser variant. Every test of the optimisers runs over every row.

A row has the class, its hyperparameters, the NumPy reference, and the real libraries that it must agree with (in
float64, over 50 steps), as functions that make them; see `peers.py`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import peers
import reference
from ironstep import _core, optim


class Case(NamedTuple):
    """An optimiser variant."""

    name: str
    cls: type[optim.Optimizer]
    kwargs: dict[str, Any]
    reference: reference.Reference
    peers: dict[str, Callable[..., peers.Peer]] = {}
    tolerance: float = 1e-12
    descent_lr: float | None = None
    """The learning rate that comes down both test functions, if the row's own does not."""

    @property
    def hyper(self) -> dict[str, Any]:
        """All hyperparameters, defaults included."""
        parameters = inspect.signature(self.cls.__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        return {"decoupled_weight_decay": False} | defaults | self.cls._fixed | self.kwargs

    @property
    def rule(self) -> str:
        """The name of the rule in the core."""
        return self.cls._rule(self.hyper)

    @property
    def states(self) -> list[str]:
        """The names of the state arrays."""
        return _core.rules()[self.rule][1]

    def new_state(self, p: Any) -> dict[str, Any]:
        """State arrays as they are before the first step."""
        first = self.hyper.get("initial_accumulator_value", 0.0)
        return {name: p * 0 + (first if name in ("sum", "square_avg") else 0.0) for name in self.states}

    def new_scalars(self) -> dict[str, float]:
        """Scalar state before the first step."""
        return dict(_core.rules()[self.rule][2])


torch, optax, keras, timm = peers.torch, peers.optax, peers.keras, peers.timm
MU = {"lr": 0.05, "momentum": 0.9}
WD = {"weight_decay": 0.1}
ADAM = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3}
NADAM = ADAM | {"lr": 0.002}
B = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
K = {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3}
RMS = {"lr": 0.01, "alpha": 0.9, "eps": 1e-3}
LAMB = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4}

CASES = [
    Case(
        "sgd",
        optim.SGD,
        {"lr": 0.1},
        reference.sgd,
        {"torch": torch("SGD", lr=0.1), "optax": optax("sgd", 0.1)},
        descent_lr=0.02,
    ),
    Case(
        "sgd_l2",
        optim.SGD,
        {"lr": 0.1, **WD},
        reference.sgd,
        {"torch": torch("SGD", lr=0.1, **WD)},
        descent_lr=0.02,
    ),
    Case(
        "sgd_decoupled",
        optim.SGD,
        {"lr": 0.1, **WD, "decoupled_weight_decay": True},
        reference.sgd,
        descent_lr=0.02,
    ),
    Case(
        "momentum",
        optim.SGD,
        {**MU, **WD},
        reference.momentum,
        {"torch": torch("SGD", **MU, **WD)},
    ),
    Case("momentum_decoupled", optim.SGD, {**MU, **WD, "decoupled_weight_decay": True}, reference.momentum),
    Case(
        "momentum_dampened",
        optim.SGD,
        {**MU, "dampening": 0.3},
        reference.momentum,
        {"torch": torch("SGD", **MU, dampening=0.3)},
        descent_lr=0.02,
    ),
    Case(
        "nesterov",
        optim.SGD,
        {**MU, "nesterov": True},
        reference.momentum,
        {"torch": torch("SGD", **MU, nesterov=True), "optax": optax("sgd", 0.05, momentum=0.9, nesterov=True)},
        descent_lr=0.02,
    ),
    Case(
        "textbook_momentum",
        optim.SGD,
        {**MU, "lr_in_momentum": True},
        reference.momentum,
        {"keras": keras("SGD", 0.05, momentum=0.9)},
    ),
    Case(
        "textbook_nesterov",
        optim.SGD,
        {**MU, "lr_in_momentum": True, "nesterov": True},
        reference.momentum,
        {"keras": keras("SGD", 0.05, momentum=0.9, nesterov=True)},
        descent_lr=0.02,
    ),
    Case(
        "adagrad",
        optim.Adagrad,
        {"lr": 0.1, "lr_decay": 0.05, **WD, "initial_accumulator_value": 0.2, "eps": 1e-3},
        reference.adagrad,
        {"torch": torch("Adagrad", lr=0.1, lr_decay=0.05, **WD, initial_accumulator_value=0.2, eps=1e-3)},
        descent_lr=0.5,
    ),
    Case(
        "adagrad_eps_in_sqrt",
        optim.Adagrad,
        {"lr": 0.1, "initial_accumulator_value": 0.1, "eps": 1e-3, "eps_in_sqrt": True},
        reference.adagrad,
        {
            "optax": optax("adagrad", 0.1, initial_accumulator_value=0.1, eps=1e-3),
            "keras": keras("Adagrad", 0.1, initial_accumulator_value=0.1, epsilon=1e-3),
        },
        descent_lr=0.5,
    ),
    Case(
        "rmsprop",
        optim.RMSprop,
        {**RMS, **WD},
        reference.rmsprop,
        {"torch": torch("RMSprop", **RMS, **WD)},
    ),
    Case(
        "rmsprop_momentum",
        optim.RMSprop,
        {**RMS, "momentum": 0.9},
        reference.rmsprop,
        {"torch": torch("RMSprop", **RMS, momentum=0.9)},
    ),
    Case(
        "rmsprop_centered",
        optim.RMSprop,
        {**RMS, "centered": True},
        reference.rmsprop,
        {
            "torch": torch("RMSprop", **RMS, centered=True),
            "optax": optax("rmsprop", 0.01, decay=0.9, eps=1e-3, centered=True, eps_in_sqrt=False),
        },
    ),
    Case(
        "rmsprop_centered_momentum",
        optim.RMSprop,
        {**RMS, "centered": True, "momentum": 0.9, **WD, "decoupled_weight_decay": True},
        reference.rmsprop,
    ),
    Case(
        "rmsprop_eps_in_sqrt",
        optim.RMSprop,
        {**RMS, "eps_in_sqrt": True},
        reference.rmsprop,
        {"optax": optax("rmsprop", 0.01, decay=0.9, eps=1e-3), "keras": keras("RMSprop", 0.01, rho=0.9, epsilon=1e-3)},
    ),
    Case(
        "rmsprop_keras_momentum",
        optim.RMSprop,
        {**RMS, "eps_in_sqrt": True, "momentum": 0.9, "lr_in_momentum": True},
        reference.rmsprop,
        {"keras": keras("RMSprop", 0.01, rho=0.9, epsilon=1e-3, momentum=0.9)},
    ),
    Case(
        "rmsprop_tensorflow",
        optim.RMSprop,
        {**RMS, "eps_in_sqrt": True, "momentum": 0.9, "lr_in_momentum": True, "initial_accumulator_value": 1.0},
        reference.rmsprop,
        {"timm": timm("RMSpropTF", lr=0.01, alpha=0.9, eps=1e-3, momentum=0.9)},
    ),
    Case(
        "adadelta",
        optim.Adadelta,
        {"lr": 0.5, "rho": 0.8, "eps": 1e-3, **WD},
        reference.adadelta,
        {"torch": torch("Adadelta", lr=0.5, rho=0.8, eps=1e-3, **WD)},
    ),
    Case(
        "adadelta_plain",
        optim.Adadelta,
        {"lr": 0.5, "rho": 0.8, "eps": 1e-3},
        reference.adadelta,
        {"optax": optax("adadelta", 0.5, rho=0.8, eps=1e-3)},
    ),
    Case(
        "adam",
        optim.Adam,
        ADAM,
        reference.adam,
        {"torch": torch("Adam", **ADAM), "optax": optax("adam", 0.01, **B)},
    ),
    Case("adam_l2", optim.Adam, {**ADAM, **WD}, reference.adam, {"torch": torch("Adam", **ADAM, **WD)}),
    Case("adam_beta_0", optim.Adam, {**ADAM, "betas": (0.0, 0.0)}, reference.adam),
    Case("adam_eps_hat", optim.Adam, {**ADAM, "eps_hat": True}, reference.adam, {"keras": keras("Adam", 0.01, **K)}),
    Case("adam_uncorrected", optim.Adam, {**ADAM, "bias_correction": False}, reference.adam),
    Case(
        "amsgrad",
        optim.Adam,
        {**ADAM, "amsgrad": True},
        reference.adam,
        {"torch": torch("Adam", **ADAM, amsgrad=True)},
        descent_lr=0.05,
    ),
    Case(
        "amsgrad_eps_hat",
        optim.Adam,
        {**ADAM, "amsgrad": True, "eps_hat": True},
        reference.adam,
        {"keras": keras("Adam", 0.01, **K, amsgrad=True)},
        descent_lr=0.05,
    ),
    Case(
        "amsgrad_corrected",
        optim.Adam,
        {**ADAM, "amsgrad": True, "amsgrad_corrected": True},
        reference.adam,
        {"optax": optax("amsgrad", 0.01, **B)},
        descent_lr=0.05,
    ),
    Case(
        "adamw",
        optim.AdamW,
        {**ADAM, **WD},
        reference.adam,
        {"torch": torch("AdamW", **ADAM, **WD), "optax": optax("adamw", 0.01, **B, **WD)},
    ),
    Case(
        "adamw_maximize",
        optim.AdamW,
        {**ADAM, **WD, "maximize": True},
        reference.adam,
        {"torch": torch("AdamW", **ADAM, **WD, maximize=True)},
    ),
    Case(
        "adamw_amsgrad",
        optim.AdamW,
        {**ADAM, **WD, "amsgrad": True},
        reference.adam,
        {"torch": torch("AdamW", **ADAM, **WD, amsgrad=True)},
        descent_lr=0.05,
    ),
    Case(
        "adamax",
        optim.Adamax,
        {**ADAM, **WD},
        reference.adamax,
        {"torch": torch("Adamax", **ADAM, **WD)},
    ),
    Case("adamax_plain", optim.Adamax, ADAM, reference.adamax, {"optax": optax("adamax", 0.01, **B)}),
    Case(
        "nadam",
        optim.NAdam,
        {**NADAM, **WD, "momentum_decay": 0.1},
        reference.nadam,
        {"torch": torch("NAdam", **NADAM, **WD, momentum_decay=0.1)},
        1e-10,  # torch keeps mu_product in float32
        descent_lr=0.05,
    ),
    Case(
        "nadam_decoupled",
        optim.NAdam,
        {**NADAM, **WD, "decoupled_weight_decay": True},
        reference.nadam,
        {"torch": torch("NAdam", **NADAM, **WD, decoupled_weight_decay=True)},
        1e-10,
        descent_lr=0.05,
    ),
    Case(
        "nadam_dozat",
        optim.NAdam,
        {**ADAM, "momentum_decay": math.inf},
        reference.nadam,
        {"optax": optax("nadam", 0.01, **B)},
    ),
    Case(
        "nadam_keras",
        optim.NAdam,
        {**ADAM, "momentum_decay": 1.0},
        reference.nadam,
        {"keras": keras("Nadam", 0.01, **K)},
    ),
    Case("radam", optim.RAdam, {**ADAM, **WD}, reference.radam, {"torch": torch("RAdam", **ADAM, **WD)}),
    Case(
        "radam_decoupled",
        optim.RAdam,
        {**ADAM, **WD, "decoupled_weight_decay": True},
        reference.radam,
        {"torch": torch("RAdam", **ADAM, **WD, decoupled_weight_decay=True)},
    ),
    Case(
        "lion",
        optim.Lion,
        {"lr": 0.01, "betas": (0.8, 0.95), **WD},
        reference.lion,
        {
            "optax": optax("lion", 0.01, b1=0.8, b2=0.95, **WD),
            "timm": timm("Lion", lr=0.01, betas=(0.8, 0.95), **WD),
        },
    ),
    Case("lion_l2", optim.Lion, {"lr": 0.01, **WD, "decoupled_weight_decay": False}, reference.lion),
    Case(
        "lamb",
        optim.LAMB,
        {**LAMB, **WD},
        reference.lamb,
        {"optax": optax("lamb", 0.01, b1=0.8, b2=0.95, eps=1e-4, **WD)},
    ),
    Case(
        "lamb_apex",
        optim.LAMB,
        {**LAMB, "weight_decay": 0.0, "always_adapt": False},
        reference.lamb,
        {"timm": timm("Lamb", **LAMB, weight_decay=0.0, max_grad_norm=None)},
    ),
    Case(
        "lamb_clipped",
        optim.LAMB,
        {**LAMB, **WD, "trust_clip": True},
        reference.lamb,
        {"timm": timm("Lamb", **LAMB, **WD, max_grad_norm=None, trust_clip=True)},
    ),
    Case(
        "lamb_cybertron",
        optim.LAMB,
        {**LAMB, **WD, "max_param_norm": 0.7, "eps_in_ratio": True, "bias_correction": False},
        reference.lamb,
        descent_lr=0.02,
    ),
    Case(
        "lamb_decoupled",
        optim.LAMB,
        {**LAMB, **WD, "weight_decay_in_ratio": False},
        reference.lamb,
        {"timm": timm("Lamb", **LAMB, **WD, max_grad_norm=None, decoupled_decay=True)},
    ),
    Case(
        "lars",
        optim.LARS,
        {"lr": 0.5, "momentum": 0.9, **WD, "trust_coefficient": 0.02, "eps": 1e-3},
        reference.lars,
        {"optax": optax("lars", 0.5, **WD, trust_coefficient=0.02, eps=1e-3, momentum=0.9)},
    ),
    Case(
        "lars_nesterov",
        optim.LARS,
        {"lr": 0.5, "momentum": 0.9, **WD, "trust_coefficient": 0.02, "nesterov": True},
        reference.lars,
        {"optax": optax("lars", 0.5, **WD, trust_coefficient=0.02, momentum=0.9, nesterov=True)},
    ),
    Case(
        "lars_paper",
        optim.LARS,
        {"lr": 0.5, **WD, "trust_coefficient": 0.02, "separate_norms": True},
        reference.lars,
    ),
    Case(
        "lars_outside",
        optim.LARS,
        {"lr": 0.5, "trust_coefficient": 0.02, "lr_in_momentum": False, "always_adapt": False},
        reference.lars,
        descent_lr=0.01,
    ),
]
