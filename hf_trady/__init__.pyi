"""Fine-tune any model that the device can run, inside a memory budget."""

from .config import TraDyConfig
from .model import TraDyModel
from .planner import TrainingPlan, max_batch_size, plan
from .selection import CostTable, LayerRanking, SparsityReport, cost_table, rank_layers
from .training import TraDyCallback, TraDyTrainer
from .version import __version__

__all__ = [
    "CostTable",
    "LayerRanking",
    "SparsityReport",
    "TraDyCallback",
    "TraDyConfig",
    "TraDyModel",
    "TraDyTrainer",
    "TrainingPlan",
    "__version__",
    "cost_table",
    "max_batch_size",
    "plan",
    "rank_layers",
]
