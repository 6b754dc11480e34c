"""Which channels a run draws: budget, pool of layers, and draws, once the costs of channels are known."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from numbers import Integral

import torch
from torch import Tensor

from .config import TraDyConfig
from .memory import FittedBudget, parse_budget
from .selection import (
    ChannelScores,
    CostTable,
    LayerRanking,
    RandomStrategy,
    SparsityReport,
    check_budget,
    draw,
    make_strategy,
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
        scores: What is known of each channel; None until something is.
        fitted: What a budget in bytes buys; None until that is found out. Where there is one, it is the budget.
    """

    def __init__(
        self, config: TraDyConfig, targets: Iterable[str], bias_units: int, layer_ranking: LayerRanking | None = None
    ):
        self.config = config
        self.strategy = make_strategy(config)
        self.targets = set(targets)
        self.bias_units = bias_units
        self.layer_ranking = layer_ranking
        self.costs: CostTable | None = None
        self.scores: ChannelScores | None = None
        self.fitted: FittedBudget | None = None
        self.byte_budget = _bytes_of(config)

    @property
    def has_pool(self) -> bool:
        """Whether it is known which layers to draw from: the costs are, and the ranking where it is needed."""
        return self.costs is not None and (self.strategy.importance is None or self.layer_ranking is not None)

    @property
    def has_scores(self) -> bool:
        """Whether the strategy knows of the channels what it goes by."""
        return self.strategy.scores is None or self.scores is not None

    @property
    def is_ready(self) -> bool:
        """Whether channels can be drawn: pool and scores are known, and what a budget in bytes buys."""
        return self.has_pool and self.has_scores and (self.byte_budget is None or self.fitted is not None)

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
        self.refuse_unknown()
        names = self.targets - set(self.fitted.left_out if self.fitted is not None else ())
        if self.strategy.importance is not None:
            names = names & set(self._top_layers(self.strategy.importance))
        return self.costs.subset(names)

    def _top_layers(self, importance: str) -> list[str]:
        number, is_narrowed = self.config.num_layers, self.config.target_modules != "all"
        costs = self.costs.subset(self.targets) if is_narrowed else self.costs
        if number == "budget" or (number is None and self.strategy.layers_by_budget):
            return self.layer_ranking.top_by_budget(costs, self.budget, importance)
        return self.layer_ranking.top(self.config.ranking_coverage, number, importance, costs if is_narrowed else None)

    def draw(self, epoch: int) -> dict[str, Tensor]:
        """The channels of epoch `epoch`: layer name -> sorted indices, int64 `[n]`."""
        self.refuse_unready()
        self.refuse_number(epoch)
        units = self.budget_of(epoch) - self.bias_units
        return draw(self.strategy, self.pool, units, self.config.seed, epoch, self.scores)

    def observe(self, selection: Mapping[str, Tensor], norms: Callable[[], Mapping[str, Tensor]]) -> None:
        """Take in the gradient norms of the channels that train, if the strategy goes by what training sees."""
        if self.strategy.scores == "observed":
            self.scores = self.scores.observed(selection, norms())

    def settle(self, epoch: int) -> None:
        """Go by what training has seen so far in the draw of `epoch`."""
        if self.strategy.scores == "observed":
            self.scores = self.scores.of_draw(epoch)

    def budget_of(self, epoch: int) -> int:
        """The units that the draw of epoch `epoch` may cost: fewer than `budget` once that has proved too much."""
        return self.budget if self.fitted is None else self.fitted.units_of(epoch)

    def differs(self, epoch: int, other: int) -> bool:
        """Whether the draws of two epochs may differ."""
        return self.strategy.dynamic or self.budget_of(epoch) != self.budget_of(other)

    @property
    def least(self) -> int:
        """The fewest units that a draw can cost."""
        return min(row.space for row in self.pool.by_input()) + self.bias_units

    def capacity(self, names: Iterable[str], pool: CostTable, budget: int) -> int:
        """Most weight elements that any draw of `budget` units from `pool` can hold in the layers `names`."""
        names = set(names)
        if self.strategy.within_budget:
            return max_weight_units(pool, budget - self.bias_units, names)
        drawn = ((self.costs[name], index) for name, index in self.draw(0).items() if name in names)
        single = max((self.costs[name].weight_per_channel for name in names), default=0)  # is tried alone
        return max(single, sum(row.weight_per_channel * len(index) for row, index in drawn))

    def draw_blindly(self) -> list[str]:
        """Draw, from now on, as if what is not known yet made no difference; returns a sentence about each."""
        name, notes = self.config.strategy, []
        if self.strategy.importance is not None and self.layer_ranking is None:
            notes.append(f"No layer ranking is known yet: planned as if '{name}' drew from all layers.")
            self.strategy = replace(self.strategy, importance=None)
        if self.strategy.scores == "weight" and self.scores is None:
            self.scores = ChannelScores({row.name: torch.ones(row.channels) for row in self.costs})
        elif self.strategy.scores is not None and self.scores is None:
            if self.strategy.scores in ("gradient", "velocity"):
                notes.append(f"Nothing is known of single channels yet: planned as if '{name}' drew at random.")
            self.strategy = RandomStrategy(self.strategy.dynamic, self.strategy.importance)
        return notes

    def draw_uniformly(self) -> None:
        """Draw from all layers at random from now on, whatever the strategy."""
        self.strategy = RandomStrategy()

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
        for known in (self.layer_ranking, self.scores):
            if known is not None:
                known.check(self.costs)
        if self.byte_budget is not None and self.fitted is None:
            return
        if self.bias_units >= max(self.budget, 1):
            raise ValueError(
                f"memory_budget of {self.budget:,} units does not even hold the {self.bias_units:,} biases of "
                f"train_bias={self.config.train_bias}; raise it or leave the biases frozen"
            )
        if self.has_pool:
            check_budget(self.pool, self.budget - self.bias_units)
            self.strategy.check(self.pool, self.budget - self.bias_units)

    def refuse_uncalibrated(self) -> None:
        """Raise a ValueError if the costs are unknown."""
        if self.costs is None:
            raise ValueError("the costs of channels are unknown yet; pass example_inputs or call calibrate(batch)")

    def refuse_unknown(self) -> None:
        """Raise a ValueError if it is unknown which layers to draw from."""
        self.refuse_uncalibrated()
        if not self.has_pool:
            raise ValueError(
                f"strategy '{self.config.strategy}' needs a layer ranking; pass layer_ranking, call "
                "measure(dataloader), or train with TraDyTrainer, which measures one"
            )

    def refuse_number(self, epoch: int) -> None:
        """Raise a ValueError if no draw can have the number `epoch`."""
        if not isinstance(epoch, Integral) or epoch < 0:
            raise ValueError(f"epoch={epoch!r} is not allowed; it must be the number of a draw, an int of at least 0")

    def refuse_unready(self) -> None:
        """Raise a ValueError if no channels can be drawn yet."""
        self.refuse_unknown()
        if not self.has_scores:
            raise ValueError(
                f"strategy '{self.config.strategy}' needs the gradient norms of channels; call measure(dataloader), "
                "or train with TraDyTrainer, which measures them"
            )
        if not self.is_ready:
            raise ValueError(
                f"memory_budget={self.config.memory_budget!r} is not fitted to a batch yet; call calibrate(batch)"
            )


def _bytes_of(config: TraDyConfig) -> int | None:
    budget = parse_budget(config.memory_budget)
    return budget.value if budget.kind == "bytes" else None
