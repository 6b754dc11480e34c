"""Which channels a run draws: budget, pool of layers, and draws, once the costs of channels are known."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from .config import TraDyConfig
from .memory import FittedBudget, parse_budget
from .selection import (
    STRATEGIES,
    CostTable,
    LayerRanking,
    SparsityReport,
    check_budget,
    draw,
    max_weight_units,
    sparsity,
)


class ChannelSampler:
    """Draws channels as a config says. Everything here is shapes and numbers: it holds no weight.

    Args:
        config: What the user chose.
        targets: Names of the layers that may be updated.
        bias_units: Elements of the biases that train along, which the budget pays for.
        layer_ranking: For strategies that draw from the top layers; may come later.

    Attributes:
        costs: Costs of all layers outside the head; None until they are measured.
        layer_ranking: The ranking; None until there is one.
        fitted: What a budget in bytes buys; None until that is found out. Where there is one, it is the budget.
    """

    def __init__(
        self, config: TraDyConfig, targets: Iterable[str], bias_units: int, layer_ranking: LayerRanking | None = None
    ):
        self.config = config
        self.strategy = STRATEGIES[config.strategy]
        self.targets = set(targets)
        self.bias_units = bias_units
        self.layer_ranking = layer_ranking
        self.costs: CostTable | None = None
        self.fitted: FittedBudget | None = None
        self.byte_budget = _bytes_of(config)

    @property
    def has_pool(self) -> bool:
        """Whether it is known which layers to draw from: the costs are, and the ranking where it is needed."""
        return self.costs is not None and (not self.strategy.uses_ranking or self.layer_ranking is not None)

    @property
    def is_ready(self) -> bool:
        """Whether channels can be drawn: the pool is known, and what a budget in bytes buys."""
        return self.has_pool and (self.byte_budget is None or self.fitted is not None)

    @property
    def budget(self) -> int:
        """The memory budget in units (elements of weight gradient and saved activation of one sample)."""
        if self.fitted is not None:
            return self.fitted.units
        self.refuse_uncalibrated()
        return parse_budget(self.config.memory_budget).units(self.costs.total_units)

    @property
    def pool(self) -> CostTable:
        """The layers that channels are drawn from."""
        self.refuse_unready()
        names = self.targets - set(self.fitted.left_out if self.fitted is not None else ())
        if self.strategy.uses_ranking:
            names = names & set(self.layer_ranking.top(self.config.ranking_coverage, self.config.num_layers))
        return self.costs.subset(names)

    def draw(self, epoch: int) -> dict[str, Tensor]:
        """The channels of epoch `epoch`: layer name -> sorted indices, int64 `[n]`."""
        return draw(self.strategy, self.pool, self.budget_of(epoch) - self.bias_units, self.config.seed, epoch)

    def budget_of(self, epoch: int) -> int:
        """The units that the draw of epoch `epoch` may cost: fewer than `budget` once that has proved too much."""
        return self.budget if self.fitted is None else self.fitted.units_of(epoch)

    def differs(self, epoch: int, other: int) -> bool:
        """Whether the draws of two epochs may differ."""
        return self.strategy.dynamic or self.budget_of(epoch) != self.budget_of(other)

    @property
    def least(self) -> int:
        """The fewest units that a draw can cost."""
        return min(row.space for row in self.pool) + self.bias_units

    def capacity(self, names: Iterable[str]) -> int:
        """Most weight elements that any draw can hold in the layers `names`."""
        return max_weight_units(self.pool, self.budget - self.bias_units, set(names))

    def report(self, selection: Mapping[str, Tensor], epoch: int, element_sizes: Mapping[str, int]) -> SparsityReport:
        """Sparsity and budget use of `selection`. `element_sizes`: layer name -> bytes of an element of its weight."""
        return sparsity(self.costs, selection, epoch, self.budget_of(epoch), element_sizes, self.bias_units)

    def check(self) -> None:
        """Refuse a budget or a ranking that doesn't fit, as far as the costs are known.

        Raises:
            ValueError: States the smallest budget that works, or the first layer of the ranking that doesn't match.
        """
        if self.costs is None:
            return
        if self.layer_ranking is not None:
            self.layer_ranking.check(self.costs)
        if self.byte_budget is not None and self.fitted is None:
            return
        if self.bias_units >= max(self.budget, 1):
            raise ValueError(
                f"memory_budget of {self.budget:,} units does not even hold the {self.bias_units:,} biases of "
                "train_bias=True; raise it or leave the biases frozen"
            )
        if self.is_ready:
            check_budget(self.pool, self.budget - self.bias_units)

    def refuse_uncalibrated(self) -> None:
        """Raise a ValueError if the costs are unknown."""
        if self.costs is None:
            raise ValueError("the costs of channels are unknown yet; pass example_inputs or call calibrate(batch)")

    def refuse_unready(self) -> None:
        """Raise a ValueError if no channels can be drawn yet."""
        self.refuse_uncalibrated()
        if not self.has_pool:
            raise ValueError(
                f"strategy '{self.config.strategy}' needs a layer ranking; pass layer_ranking, call "
                "rank_layers(dataloader), or train with TraDyTrainer, which measures one"
            )
        if not self.is_ready:
            raise ValueError(
                f"memory_budget={self.config.memory_budget!r} is not fitted to a batch yet; call calibrate(batch)"
            )


def _bytes_of(config: TraDyConfig) -> int | None:
    budget = parse_budget(config.memory_budget)
    return budget.value if budget.kind == "bytes" else None
