from .base import STRATEGIES, Strategy, make_strategy, register_strategy
from .greedy import GreedyStrategy
from .informed import InformedStrategy
from .paca import PacaStrategy
from .random import RandomStrategy
from .sparse_update import SparseUpdateStrategy
from .velocity import VelocityStrategy


__all__ = [
    "STRATEGIES",
    "GreedyStrategy",
    "InformedStrategy",
    "PacaStrategy",
    "RandomStrategy",
    "SparseUpdateStrategy",
    "Strategy",
    "VelocityStrategy",
    "make_strategy",
    "register_strategy",
]
