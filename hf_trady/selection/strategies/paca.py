"""The same number of random channels in every layer (PaCA)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cost import CostTable
from .base import Strategy, register_strategy


@register_strategy("paca", "channels_per_layer", dynamic=False, within_budget=False)
@dataclass(frozen=True)
class PacaStrategy(Strategy):
    """As many random input channels in each layer, chosen once (PaCA, ICLR 2025).

    A layer with fewer channels trains all of its own. The published method knows no budget: with a number of channels
    that is given, and with the one that every layer trains at least, it may exceed it; the report says what it costs.

    Attributes:
        channels_per_layer: How many; None: the most with which the budget is kept, at least one.
    """

    channels_per_layer: int | None = None

    def choose(self, costs: CostTable, budget: int, scores: Tensor | None, generator: torch.Generator) -> Tensor:
        number = self.channels_per_layer or self._affordable_number(costs, budget)
        parts = [
            start + torch.randperm(row.channels, generator=generator)[:number]
            for row, start in zip(costs, costs.starts(), strict=True)
        ]
        return torch.cat(parts)

    @staticmethod
    def _affordable_number(costs: CostTable, budget: int) -> int:
        low, high = 1, max(row.channels for row in costs)
        while low < high:
            middle = (low + high + 1) // 2
            spent = sum(row.space * min(middle, row.channels) for row in costs)
            low, high = (middle, high) if spent <= budget else (low, middle - 1)
        return low
