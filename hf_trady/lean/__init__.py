"""Stand-ins for what is not updated, whose backward keeps almost nothing."""

from . import dropout, gated_mlp, pooling, row_norms, smooth_activations  # noqa: F401 (they register themselves)
from .activations import GatedActivation
from .apply import join_epilogues, make_model_lean, make_model_plain
from .base import LeanModule
from .batch_norm import FrozenBatchNorm
from .chains import Chain, find_chains
from .epilogue import LeanEpilogue
from .registry import LEAN_MODULES, MODES, lean_type, make_lean, register_lean


__all__ = [
    "LEAN_MODULES",
    "MODES",
    "Chain",
    "FrozenBatchNorm",
    "GatedActivation",
    "LeanEpilogue",
    "LeanModule",
    "find_chains",
    "join_epilogues",
    "lean_type",
    "make_lean",
    "make_model_lean",
    "make_model_plain",
    "register_lean",
]
