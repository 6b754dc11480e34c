from .cost import COSTS_NAME, CostTable, LayerCost
from .costing import cost_table
from .drawing import affordable, check_budget, draw, max_weight_units
from .importance import channel_norms, lara, rgn
from .measuring import GradientRecord, measure_gradients, rank_layers
from .ranking import RANKING_NAME, LayerRanking
from .scores import SCORES_NAME, ChannelScores
from .sparsity import SparsityReport, sparsity
from .strategies import STRATEGIES, RandomStrategy, Strategy, make_strategy
from .tails import tail_index


__all__ = [
    "COSTS_NAME",
    "RANKING_NAME",
    "SCORES_NAME",
    "STRATEGIES",
    "ChannelScores",
    "CostTable",
    "GradientRecord",
    "LayerCost",
    "LayerRanking",
    "RandomStrategy",
    "SparsityReport",
    "Strategy",
    "affordable",
    "channel_norms",
    "check_budget",
    "cost_table",
    "draw",
    "lara",
    "make_strategy",
    "max_weight_units",
    "measure_gradients",
    "rank_layers",
    "rgn",
    "sparsity",
    "tail_index",
]
