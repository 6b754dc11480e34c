"""The channels with the largest reweighted gradient norm."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cost import CostTable
from .base import Strategy, register_strategy


@register_strategy("static_rgn", dynamic=False)
@register_strategy("dynamic_rgn", refresh=True)
@dataclass(frozen=True)
class GreedyStrategy(Strategy):
    """Gradient norm per unit of memory, largest first (S-Det RGN and D-Det RGN of the paper).

    Measuring every channel's gradient at once takes the memory of full fine-tuning, once or, for `dynamic_rgn`, before
    every epoch: in that form it breaks the budget. By default they are therefore estimated from projections, inside
    the budget (see `TraDyModel.measure`, whose `how="in_parts"` measures them exactly, in a pass a part).
    """

    scores: str = "gradient"

    def choose(self, costs: CostTable, budget: int, scores: Tensor | None, generator: torch.Generator) -> Tensor:
        return (scores / costs.spaces()).argsort(descending=True, stable=True)
