"""Random channels, those with a large gradient more often."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cost import CostTable
from .base import Strategy, register_strategy


@register_strategy("informed", "tau", "importance", scores="gradient")
@register_strategy("medyate", importance="lara", layers_by_budget=True, scores="observed", weighs_cost=False)
@dataclass(frozen=True)
class InformedStrategy(Strategy):
    """Draws without replacement, the next channel with a probability in proportion to `(score / cost) ** tau`.

    Done by adding Gumbel noise to the logarithm of these weights and taking the largest (Gumbel top-k). `tau=0` is
    uniform, as `trady` draws; the larger it is, the closer to `static_rgn`. A channel that has no score yet counts as
    if it had the largest one.

    MeDyate draws so by the norms that training has seen, from the top layers by LaRa.

    Attributes:
        tau: The exponent, at least 0.
        weighs_cost: Divide the score by the channel's units.
    """

    tau: float = 1.0
    weighs_cost: bool = True

    def choose(self, costs: CostTable, budget: int, scores: Tensor | None, generator: torch.Generator) -> Tensor:
        known = scores[~scores.isnan()]
        weights = torch.where(scores.isnan(), known.max() if len(known) else 1.0, scores)
        if self.weighs_cost:
            weights = weights / costs.spaces()
        tiny = torch.finfo(weights.dtype).tiny
        uniform = torch.rand(len(weights), generator=generator, dtype=weights.dtype).clamp_min(tiny)
        gumbel = -(-uniform.log()).log()
        return (self.tau * weights.clamp_min(tiny).log() + gumbel).argsort(descending=True, stable=True)
