"""What a TraDyModel must know of its network before it can draw: costs, ranking, scores, what bytes buy."""

import copy
from typing import Any

import torch
from torch import nn

from .config import TraDyConfig
from .conversion import Conversion
from .layers import ActiveChannels, read_channels, weight_dtype
from .measured import MeasuredMixin
from .memory import FittedBudget, StepSetup, fit_bytes
from .proxy import uncompiled
from .sampler import ChannelSampler
from .selection import ChannelScores, CostTable, LayerRanking, cost_table
from .trial import DrawTrials


class CalibratedMixin(MeasuredMixin):
    """Learns it, or is told it, and keeps the active channels in step."""

    trady_config: TraDyConfig
    base_model: nn.Module
    active: ActiveChannels | None
    epoch: int
    _sampler: ChannelSampler
    _conversion: Conversion
    _layers: dict[str, list[nn.Module]]
    _targets: list[str]
    _batch: tuple | None = None  # example inputs and setup, while a budget in bytes is still to be fitted
    _parts: FittedBudget | None = None  # what a budget in bytes buys for random draws from all layers

    @property
    def costs(self) -> CostTable | None:
        """Costs of all layers outside the head; None until they are measured."""
        return self._sampler.costs

    @property
    def layer_ranking(self) -> LayerRanking | None:
        """The ranking that the strategy draws by; None where there is none (yet)."""
        return self._sampler.layer_ranking

    @property
    def channel_scores(self) -> ChannelScores | None:
        """What the strategy knows of every channel; None where it knows nothing (yet)."""
        return self._sampler.scores

    @property
    def budget(self) -> int:
        """The memory budget in units (elements of weight gradient and saved activation of one sample)."""
        return self._sampler.budget

    @property
    def pool(self) -> CostTable:
        """The layers that channels are drawn from."""
        return self._sampler.pool

    @property
    def is_ready(self) -> bool:
        """Whether channels can be drawn: the costs are known, the ranking and the scores where the strategy needs
        them, and what a budget in bytes buys."""
        return self._sampler.is_ready

    @property
    def fitted(self) -> FittedBudget | None:
        """What a budget in bytes buys; None until it is fitted, or if the budget is not in bytes."""
        return self._sampler.fitted

    @property
    def byte_budget(self) -> int | None:
        """The memory budget in bytes; None if it is in units or a share."""
        return self._sampler.byte_budget

    def learn_costs(self, example_inputs: Any) -> CostTable:
        """The costs of all layers outside the head, as a batch shows them. Changes nothing.

        Args:
            example_inputs: A tensor, tuple or dict of inputs.
        """
        with uncompiled(self):
            return self._cost_table(self.base_model, example_inputs)

    def calibrate(
        self,
        example_inputs: Any,
        setup: StepSetup | None = None,
        fit: bool = True,
        costs: CostTable | None = None,
    ) -> None:
        """Learn the costs of channels from a batch, and what a budget in bytes buys at this batch size.

        Args:
            example_inputs: A tensor, tuple or dict of inputs.
            setup: The optimizer, loss and precision of training, for a budget in bytes; by default AdamW. Where the
                strategy waits for `measure`, the budget is fitted after that.
            fit: Leave what has been fitted as it is, if False.
            costs: Go by these instead of those of the batch: several processes must go by the same.

        Raises:
            ValueError: If the budget is below the cheapest channel, or is in bytes and too small for a step; states
                the smallest that works.
        """
        self._set_costs(costs or self.learn_costs(example_inputs))
        with uncompiled(self):
            self._conversion.join(example_inputs)
        self._batch = (example_inputs, setup) if self.byte_budget is not None else None
        self._parts = None
        if fit:
            self._fit_when_possible()

    def set_costs(self, costs: CostTable) -> None:
        """Draw by `costs` from now on. Make the optimizer afterwards.

        Raises:
            ValueError: If they are of another architecture, which names the first layer that doesn't match, or if the
                budget is below the cheapest channel.
        """
        layers = {name: modules[0] for name, modules in self._layers.items()}
        costs.check(layers, self._sampler.strategy.by_output)
        self._set_costs(costs)

    def set_layer_ranking(self, layer_ranking: LayerRanking) -> None:
        """Draw from the top layers of `layer_ranking` from now on. Make the optimizer afterwards.

        Raises:
            ValueError: If it is of another architecture, which names the first layer that doesn't match, or if the
                budget is below the cheapest channel of its top layers.
        """
        self._update(layer_ranking=layer_ranking)
        self._fit_when_possible()

    def set_channel_scores(self, scores: ChannelScores) -> None:
        """Draw by `scores` from now on.

        Raises:
            ValueError: If they are of another architecture; names the first layer that doesn't match.
        """
        self._update(scores=scores)
        if self.fitted is None:
            self._fit_when_possible()

    def set_fitted(self, fitted: FittedBudget | None) -> None:
        """Draw by `fitted` from now on, whatever the budget would buy here. Make the optimizer afterwards, unless only
        what later draws may cost is new."""
        if self.fitted is not None and fitted is not None and fitted.is_as_large_as(self.fitted):
            self._sampler.fitted = fitted
            self._build(resizes=False)
        else:
            self._update(fitted=fitted)

    def shrink(self, draw: int, measured: int) -> FittedBudget:
        """Make draw number `draw` and all later ones smaller, after `measured` bytes exceeded the byte budget."""
        self._sampler.fitted = self.fitted.shrink(draw, measured, self.byte_budget, self._sampler.least)
        return self.fitted

    # ---- Parts of the above -------------------------------------------------------------------------------------

    def _set_costs(self, costs: CostTable) -> None:
        self._update(costs=costs, scores=self.channel_scores or self._first_scores(costs))

    def _update(self, **known) -> None:
        """Take in what has become known; if it doesn't fit, nothing changes."""
        self._refuse_merged()
        sampler = copy.copy(self._sampler)
        vars(sampler).update(known)
        sampler.check()
        self._sampler = sampler
        self._build(resizes=set(known) != {"scores"})  # new scores change no shape: the optimizer may live on

    def _build(self, resizes: bool = True) -> None:
        """Draw, as soon as everything that a draw depends on is known."""
        if not self.is_ready:
            return
        if self.active is None or resizes:
            self._replace_active(self._sampler.pool, self._sampler.budget)
        self.active.assign(self._sampler.draw(self.epoch))

    def _cost_table(self, model: nn.Module, example_inputs: Any) -> CostTable:
        costs = cost_table(model, example_inputs).subset(self._layers)
        if not self._sampler.strategy.by_output:
            return costs
        return costs.by_output({name: modules[0] for name, modules in self._layers.items()})

    def _first_scores(self, costs: CostTable) -> ChannelScores | None:
        """What the strategy can know of channels without a gradient."""
        kind = self._sampler.strategy.scores
        if kind == "weight":
            return ChannelScores({row.name: self._weight_norms(row.name, row.channels) for row in costs})
        return ChannelScores.unknown(costs) if kind == "observed" else None

    def _weight_norms(self, name: str, channels: int) -> torch.Tensor:
        weight = read_channels(self._layers[name][0], torch.arange(channels))
        return torch.linalg.vector_norm(weight.flatten(1).float(), dim=1).cpu()

    def _fit_when_possible(self) -> None:
        """Fit a budget in bytes, unless the strategy waits for something."""
        if self._batch is None or self.needs_measuring:
            return
        self.set_fitted(self._fit(DrawTrials(self, *self._batch)))
        if self._parts is not None or self._sampler.strategy.scores != "gradient":
            self._batch = None

    def _fit(self, trials: DrawTrials) -> FittedBudget:
        setup = self._batch[1]
        return fit_bytes(trials, self.byte_budget, setup.reserve if setup is not None else 0.0)

    def _replace_active(self, pool: CostTable, budget: int) -> None:
        if self.active is not None:
            self.active.assign({})
        self.active = self._make_active(pool, budget)

    def _make_active(self, pool: CostTable, budget: int) -> ActiveChannels:
        """Parameters with room for every draw of `budget` units from `pool`, with no channel active."""
        groups: dict[tuple, list[str]] = {}
        for row in pool:
            layer = self._layers[row.name][0]
            groups.setdefault((weight_dtype(layer), layer.weight.device), []).append(row.name)
        return ActiveChannels(
            {row.name: self._layers[row.name] for row in pool},
            list(groups.values()),
            [self._sampler.capacity(names, pool, budget) for names in groups.values()],
            self.touched,
            [[row.name for row in rows] for rows in pool.sharing()],
        )
