"""Fine-tune any model that the device can run, inside a memory budget."""

from .config import TraDyConfig
from .model import TraDyModel
from .selection import CostTable, LayerRanking, SparsityReport, cost_table, rank_layers
from .training import TraDyCallback, TraDyTrainer


__version__ = "0.1.0.dev0"

__all__ = [
    "CostTable",
    "LayerRanking",
    "SparsityReport",
    "TraDyCallback",
    "TraDyConfig",
    "TraDyModel",
    "TraDyTrainer",
    "cost_table",
    "rank_layers",
]
