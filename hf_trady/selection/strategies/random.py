"""Uniformly random channels: the paper's own strategy and its ablations."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cost import CostTable
from .base import Strategy, register_strategy


@register_strategy("trady", importance="rgn")
@register_strategy("static_topk_random", importance="rgn", dynamic=False)
@register_strategy("dynamic_full_random")
@register_strategy("static_full_random", dynamic=False)
@dataclass(frozen=True)
class RandomStrategy(Strategy):
    """Every order of the channels is as likely (Alg. 1 of the paper)."""

    def choose(self, costs: CostTable, budget: int, scores: Tensor | None, generator: torch.Generator) -> Tensor:
        return torch.randperm(sum(row.channels for row in costs), generator=generator)
