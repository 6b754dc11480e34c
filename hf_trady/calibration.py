"""What a TraDyModel must know of its network before it can draw: costs, ranking, scores, what bytes buy."""

import copy
import os
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .config import TraDyConfig
from .conversion import Conversion
from .layers import ActiveChannels, keeps_beside, read_channels, weight_dtype
from .memory import FittedBudget, StepSetup, fit_bytes
from .passes import nothing_moves
from .projection import project_gradients
from .sampler import ChannelSampler
from .selection import (
    ChannelScores,
    CostTable,
    GradientRecord,
    LayerRanking,
    RandomStrategy,
    cost_table,
    draw,
    measure_gradients,
)
from .streaming import stream_gradients
from .trial import DrawTrials
from .velocity import NeuronVelocities


MEASURES = ("projected", "in_parts", "at_once")


class CalibratedMixin:
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
    _velocities: NeuronVelocities | None = None
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

    @property
    def needs_measuring(self) -> bool:
        """Whether the strategy waits for `measure`."""
        return not (self._sampler.has_pool and self._sampler.has_scores)

    @property
    def refreshes_scores(self) -> bool:
        """Whether the strategy wants `measure` called anew before every draw."""
        return self._sampler.strategy.refresh

    @property
    def measures_held_out(self) -> bool:
        """Whether `measure` is to be given the same held-out batches every time."""
        return self._sampler.strategy.scores == "velocity"

    def calibrate(self, example_inputs: Any, setup: StepSetup | None = None, fit: bool = True) -> None:
        """Learn the costs of channels from a batch, and what a budget in bytes buys at this batch size.

        Args:
            example_inputs: A tensor, tuple or dict of inputs.
            setup: The optimizer, loss and precision of training, for a budget in bytes; by default AdamW. Where the
                strategy waits for `measure`, the budget is fitted after that.
            fit: Leave what has been fitted as it is, if False.

        Raises:
            ValueError: If the budget is below the cheapest channel, or is in bytes and too small for a step; states
                the smallest that works.
        """
        costs = self._cost_table(self.base_model, example_inputs)
        self._update(costs=costs, scores=self.channel_scores or self._first_scores(costs))
        self._conversion.join(example_inputs)
        self._batch = (example_inputs, setup) if self.byte_budget is not None else None
        self._parts = None
        if fit:
            self._fit_when_possible()

    def measure(self, dataloader: Iterable, *, how: str | None = None, **kwargs: Any) -> GradientRecord | None:
        """Measure the gradient of every channel, and draw by the ranking and the scores that follow from then on.

        A ranking that is there already is kept. Make the optimizer afterwards, unless it is the scores of
        `dynamic_rgn` that are measured anew. For `velocity`, `num_steps` (1) batches go forward, which must be the
        same every time; nothing is returned.

        Args:
            dataloader: Yields batches, at least one; started again when it ends.
            how: `"projected"` estimates the norms from random projections of the gradients of the layers' outputs,
                inside the memory of a training step, in two forwards and a backward for a group of layers that fits.
                `"in_parts"` measures them exactly, a few channels at a time, also inside that memory, in a forward and
                a backward for every part. `"at_once"` does so in one forward and backward, which takes the memory of
                full fine-tuning. Default: projected with a budget in bytes, where the strategy goes by single
                channels or where weights are quantized, and else at once. Only the last looks at layers that are no
                targets.
            **kwargs: `num_steps` (10), `compute_loss` and `disable_tqdm` of [`measure_gradients`].

        Raises:
            ValueError: If the dataloader is empty, or the loss or a gradient is not finite; nothing is changed then.
        """
        sampler = self._sampler
        sampler.refuse_uncalibrated()
        if sampler.strategy.scores == "velocity":
            return self._measure_velocities(dataloader, kwargs)
        if how is None:
            inside = self.byte_budget is not None or sampler.strategy.scores == "gradient"
            quantized = any(keeps_beside(layer) for layer, *_ in self._layers.values())  # has no gradient of a whole
            how = "projected" if inside or quantized else "at_once"
        if how not in MEASURES:
            raise ValueError(f"how={how!r} is not allowed; it must be one of {', '.join(map(repr, MEASURES))}")
        if how == "at_once":
            record = measure_gradients(self.base_model, dataloader, costs=self.costs, **kwargs)
        else:
            record = self._measure_inside(dataloader, how, kwargs)
        known = {}
        if sampler.strategy.importance is not None and sampler.layer_ranking is None:
            known["layer_ranking"] = record.ranking(num_steps=record.num_steps, model=type(self.base_model).__name__)
        if sampler.strategy.scores == "gradient":
            known["scores"] = record.scores()
        if known:
            self._update(**known)
        if self.fitted is None:
            self._fit_when_possible()
        return record

    @contextmanager
    def one_channel_active(self):
        """Let a channel of the first layer that the budget reaches be the only active one for the duration of the
        block, after which weights, buffers and gradients are what they were."""
        pool = (self._part_size()[1] if self.needs_measuring else self.pool).subset(self._targets)
        first = next(iter(pool))
        active = self._make_active(pool.subset([first.name]), first.space + self._sampler.bias_units)
        with self._instead(active), nothing_moves(self, active):
            active.assign({first.name: torch.tensor([0])})
            yield

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

    def save_training_state(self, save_directory: str | os.PathLike) -> None:
        """Write into a checkpoint what the next draws follow from and `save_pretrained` leaves out: of `velocity`, the
        outputs of the last epoch."""
        if self._velocities is not None:
            self._velocities.save_pretrained(save_directory)

    def load_training_state(self, path: str | os.PathLike) -> None:
        """Go on from what `save_training_state` wrote into `path`, if anything.

        Raises:
            ValueError: If it is corrupt or of another architecture.
        """
        layers = {name: modules[0] for name, modules in self._layers.items()}
        self._velocities = NeuronVelocities.from_pretrained(path, layers) or self._velocities

    def shrink(self, draw: int, measured: int) -> FittedBudget:
        """Make draw number `draw` and all later ones smaller, after `measured` bytes exceeded the byte budget."""
        self._sampler.fitted = self.fitted.shrink(draw, measured, self.byte_budget, self._sampler.least)
        return self.fitted

    # ---- Parts of the above -------------------------------------------------------------------------------------

    def _update(self, **known) -> None:
        """Take in what has become known; if it doesn't fit, nothing changes."""
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

    def _measure_velocities(self, dataloader: Iterable, kwargs: dict) -> None:
        """Go on with the velocities by an epoch; `dataloader` must give the same batches every time."""
        if self._velocities is None:
            self._velocities = NeuronVelocities({row.name: self._layers[row.name][0] for row in self.costs})
        num_steps, compute_loss = kwargs.get("num_steps", 1), kwargs.get("compute_loss")
        self._update(scores=self._velocities.update(self, dataloader, num_steps, compute_loss))
        if self.fitted is None:
            self._fit_when_possible()

    def _measure_inside(self, dataloader: Iterable, how: str, kwargs: dict) -> GradientRecord:
        """Measure in the memory of a random draw."""
        units, pool = self._part_size()
        active = self._make_active(pool, units)
        units -= self._sampler.bias_units
        if how == "projected":
            if self.byte_budget is not None:  # bytes are mostly those of activations: no more of them than in a draw
                drawn = pool.kept(draw(RandomStrategy(), pool, units, seed=0, epoch=0))
                kwargs = kwargs | {"most_activation": sum(row.activation_per_channel * n for row, n in drawn)}
            measure = project_gradients
        else:
            measure = stream_gradients
        with self._instead(active):
            return measure(self, active, self.costs, pool, units, dataloader, **kwargs)

    def _part_size(self) -> tuple[int, CostTable]:
        """Units of a part, biases included, and the layers that can be measured in it."""
        pool = self.costs.subset(self._targets)
        if self.byte_budget is None:
            return self.budget, pool
        if self._parts is None:
            if self._batch is None:
                raise ValueError("the budget in bytes is not fitted to a batch yet; call calibrate(batch)")
            trials = DrawTrials(self, *self._batch)
            trials.model._sampler.draw_uniformly()
            self._parts = self._fit(trials)
        return self._parts.units, pool.subset(row.name for row in pool if row.name not in self._parts.left_out)

    @contextmanager
    def _instead(self, active: ActiveChannels):
        """Let `active` hold the active channels for the duration of the block."""
        before = self.active
        if before is not None:
            before.write_back()
        self.active = active
        try:
            yield
        finally:
            active.assign({})
            self.active = before
            if before is not None:
                before.assign(before.selection)

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
