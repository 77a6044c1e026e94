"""Optimisers: one object keeps the state of many arrays and steps them all in one native call."""

from . import _optimizers
from ._base import Optimizer, StepResult
from ._hyper import ParamGroup
from ._optimizers import *  # noqa: F403 (a new optimiser is listed in one place)

__all__ = ["Optimizer", "ParamGroup", "StepResult"]
__all__ += _optimizers.__all__
