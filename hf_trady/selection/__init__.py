from .cost import CostTable, LayerCost, cost_table
from .importance import channel_norms, lara, rgn
from .ranking import RANKING_NAME, LayerRanking, rank_layers
from .sparsity import SparsityReport, sparsity
from .strategies import STRATEGIES, RandomStrategy, affordable, check_budget, draw, max_weight_units


__all__ = [
    "RANKING_NAME",
    "STRATEGIES",
    "CostTable",
    "LayerCost",
    "LayerRanking",
    "RandomStrategy",
    "SparsityReport",
    "affordable",
    "channel_norms",
    "check_budget",
    "cost_table",
    "draw",
    "lara",
    "max_weight_units",
    "rank_layers",
    "rgn",
    "sparsity",
]
