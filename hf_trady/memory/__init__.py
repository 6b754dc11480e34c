from .budget import Budget, parse_budget
from .fitting import FITTED_NAME, MIB, FittedBudget, fit_bytes, readable, reserved_share
from .prediction import KINDS, PHASES, StepMemory, StepSetup, predict_step, run_step
from .tracker import PeakTracker
from .verdict import verdict


__all__ = [
    "FITTED_NAME",
    "KINDS",
    "MIB",
    "PHASES",
    "Budget",
    "FittedBudget",
    "PeakTracker",
    "StepMemory",
    "StepSetup",
    "fit_bytes",
    "parse_budget",
    "predict_step",
    "readable",
    "reserved_share",
    "run_step",
    "verdict",
]
