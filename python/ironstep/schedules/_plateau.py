"""The one schedule that has a state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..functional._arrays import NOT_NEGATIVE, number
from ..optim._hyper import Limit
from ._schedule import Schedule, choice, count

FACTOR = Limit(0.0, 1.0, "at least 0 and below 1", closed=False)


class ReduceLROnPlateau:
    """A learning rate that becomes smaller when a metric stops improving, with torch's counting.

    An optimiser takes it as a hyperparameter, and `update(metric)`, once per epoch, tells it how training goes. In
    `fit` it is a callback: it looks at the metric `monitor` after each epoch. Its state goes on from one `fit` to the
    next, as that of the optimiser does: make a new one for a new run.

    A metric is better than the best one so far if it is below `best * (1 - threshold)` ("rel") or `best - threshold`
    ("abs"), in mode "max" above `best * (1 + threshold)` or `best + threshold`. NaN is never better. After more than
    `patience` metrics in a row that are not better, the learning rate is multiplied by `factor`; the `cooldown` metrics
    after that are not counted.

    Args:
        lr: The learning rate to begin with, or a schedule, which is then multiplied by a factor that begins at 1.
        factor: What it is multiplied by, below 1.
        patience: How many metrics in a row may be no better without anything happening.
        threshold: By how much a metric must be better to count.
        threshold_mode: "rel" or "abs".
        cooldown: How many metrics are not counted after a reduction.
        min_lr: The learning rate is not reduced below this.
        eps: A reduction by less than this is not made. With a schedule, a reduction of its factor.
        mode: "min" if a small metric is good, "max" if a large one is.
        monitor: The name of the metric in `fit`.

    Raises:
        ValueError: A number is out of range.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import numpy as np
        >>> from ironstep.optim import SGD
        >>> plateau = ReduceLROnPlateau(1.0, factor=0.5, patience=1)
        >>> opt = SGD(np.ones(2), lr=plateau)
        >>> [plateau.update(loss) for loss in (0.9, 0.8, 0.8, 0.8)]
        [False, False, False, True]
        >>> plateau(opt.steps)
        0.5
    """

    def __init__(
        self,
        lr: float | Schedule,
        *,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
        mode: str = "min",
        monitor: str = "val_loss",
    ) -> None:
        self.schedule = lr if isinstance(lr, Schedule) else None
        """The schedule that is multiplied, if there is one."""
        self._value = 1.0 if isinstance(lr, Schedule) else number("lr", lr, NOT_NEGATIVE)
        self._lr = lr if isinstance(lr, Schedule) else self._value
        self.factor = number("factor", factor, FACTOR)
        self.patience = count("patience", patience, 0)
        self.threshold = number("threshold", threshold, NOT_NEGATIVE)
        self.threshold_mode = choice("threshold_mode", threshold_mode, ("rel", "abs"))
        self.cooldown = count("cooldown", cooldown, 0)
        self.min_lr = number("min_lr", min_lr, NOT_NEGATIVE)
        self.eps = number("eps", eps, NOT_NEGATIVE)
        self.mode = choice("mode", mode, ("min", "max"))
        if not isinstance(monitor, str):
            raise TypeError(f"monitor must be the name of a metric, got {monitor!r}")
        self.monitor = monitor
        self.best = math.inf if mode == "min" else -math.inf
        """The best metric so far."""
        self.num_bad_epochs = 0
        """How many metrics in a row were not better."""
        self.cooldown_counter = 0
        """How many more metrics are not counted."""

    def __call__(self, step: float = 0) -> float:
        """The learning rate at a step; the step counts only for a schedule."""
        if self.schedule is None:
            return self._value
        value = self.schedule(step)
        # The floor does not lift what the schedule itself has below it, as in a warmup.
        return max(value * self._value, min(value, self.min_lr))

    def update(self, metric: float) -> bool:
        """Takes the metric of an epoch.

        Args:
            metric: A number; NaN is one that is no better.

        Returns:
            Whether the learning rate was reduced.

        Raises:
            TypeError: It is no number. Nothing was changed.
        """
        try:
            if isinstance(metric, (bool, str)):
                raise TypeError
            current = float(metric)
        except TypeError:
            raise TypeError(f"metric must be a number, got {metric!r}") from None
        if self._is_better(current):
            self.best = current
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs <= self.patience:
            return False
        self.cooldown_counter = self.cooldown
        self.num_bad_epochs = 0
        new = self._value * self.factor
        if self.schedule is None:
            new = max(new, self.min_lr)
        if self._value - new <= self.eps:
            return False
        self._value = new
        return True

    def _is_better(self, current: float) -> bool:
        relative = self.threshold_mode == "rel"
        if self.mode == "min":
            return current < (self.best * (1.0 - self.threshold) if relative else self.best - self.threshold)
        return current > (self.best * (1.0 + self.threshold) if relative else self.best + self.threshold)

    def on_epoch(self, run: Any) -> None:
        """Updates with `run.metrics[monitor]`: what `fit` calls after each epoch."""
        if self.monitor not in run.metrics:
            known = ", ".join(map(str, run.metrics)) or "none"
            raise ValueError(f"monitor must be one of the metrics, which are {known}, got {self.monitor!r}")
        self.update(run.metrics[self.monitor])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, besides the arguments.

        Example:
            >>> ReduceLROnPlateau(0.1).state_dict()
            {'best': inf, 'num_bad_epochs': 0, 'cooldown_counter': 0, 'lr': 0.1}
        """
        return {
            "best": self.best,
            "num_bad_epochs": self.num_bad_epochs,
            "cooldown_counter": self.cooldown_counter,
            self._value_name: self._value,
        }

    @property
    def _value_name(self) -> str:
        return "lr" if self.schedule is None else "scale"

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Raises:
            ValueError: Something is missing, unknown or out of range. Nothing was changed.
            TypeError: It is no dict, or something in it is of the wrong kind. Nothing was changed.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict that `state_dict` gave, got {type(state_dict).__name__}")
        names = list(self.state_dict())
        if set(state_dict) != set(names):
            raise ValueError(f"state_dict must have the keys {', '.join(names)}, got {', '.join(map(str, state_dict))}")
        best = number("best", state_dict["best"], Limit(-math.inf, math.inf, "a number, not NaN"))
        bad = count("num_bad_epochs", state_dict["num_bad_epochs"], 0)
        cooldown = count("cooldown_counter", state_dict["cooldown_counter"], 0)
        value = number(self._value_name, state_dict[self._value_name], NOT_NEGATIVE)
        self.best, self.num_bad_epochs, self.cooldown_counter, self._value = best, bad, cooldown, value

    def __repr__(self) -> str:
        import inspect

        parts = [repr(self._lr)]
        for name, param in inspect.signature(type(self)).parameters.items():
            if name != "lr" and getattr(self, name) != param.default:
                parts.append(f"{name}={getattr(self, name)!r}")
        return f"{type(self).__name__}({', '.join(parts)})"
