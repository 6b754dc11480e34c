"""Output neurons that are not at rest yet (Velocity)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cost import CostTable
from .base import Strategy, register_strategy


@register_strategy("velocity", by_output=True, scores="velocity", refresh=True)
@dataclass(frozen=True)
class VelocityStrategy(Strategy):
    """Output neurons by the size of their velocity per weight (Velocity, WACV-W 2024).

    The budget pays for the weights alone: a layer of which one neuron trains keeps all of its input, which exceeds the
    budget many times over. The report says what is really stored. Before there is a velocity, neurons are random.
    """

    def choose(self, costs: CostTable, budget: int, scores: Tensor | None, generator: torch.Generator) -> Tensor:
        at_random = torch.rand(len(scores), generator=generator, dtype=scores.dtype)
        return torch.where(scores.isnan(), at_random, scores / costs.spaces()).argsort(descending=True, stable=True)
