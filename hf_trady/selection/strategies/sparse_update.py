"""Given layers, each with a given share of its channels (Sparse Update)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...matching import matches
from ..cost import CostTable, LayerCost
from .base import Strategy, register_strategy


@register_strategy("sparse_update", "scheme", dynamic=False, scores="weight")
@dataclass(frozen=True)
class SparseUpdateStrategy(Strategy):
    """The channels with the largest weight norm, as many of each layer as a scheme says (SU, NeurIPS 2022).

    Attributes:
        scheme: Layer name or suffix of names -> share of its input channels, in [0, 1]; other layers train none.
    """

    scheme: Mapping[str, float] | None = None

    def __post_init__(self):
        if not any((self.scheme or {}).values()):
            raise ValueError("strategy='sparse_update' needs a scheme: layer name -> share of its channels to train")

    def choose(self, costs: CostTable, budget: int, scores: Tensor | None, generator: torch.Generator) -> Tensor:
        parts = []
        for row, start in zip(costs, costs.starts(), strict=True):
            by_norm = scores[start : start + row.channels].argsort(descending=True, stable=True)
            parts.append(start + by_norm[: self._number(row)])
        return torch.cat(parts)

    def check(self, costs: CostTable, budget: int) -> None:
        for key in self.scheme:
            names = [row.name for row in costs if matches(row.name, [key])]
            if not names:
                raise ValueError(f"scheme names '{key}', which is not one of the layers that may be updated")
            for name in names:
                if costs[name].input_name != name:
                    raise ValueError(
                        f"scheme names '{key}', but '{name}' trains the same channels as '{costs[name].input_name}', "
                        "as both have one input; name that one"
                    )
        spent = sum(row.space * self._number(row) for row in costs.by_input())
        if not spent:
            raise ValueError("scheme trains no channel at all; give a larger share to a layer")
        if spent > budget:
            raise ValueError(f"the scheme costs {spent:,} units, more than the {budget:,} of memory_budget; raise it")

    def _number(self, row: LayerCost) -> int:
        return int(row.channels * max((s for key, s in self.scheme.items() if matches(row.name, [key])), default=0.0))
