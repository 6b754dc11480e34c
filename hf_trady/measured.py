"""Measuring the gradients that a TraDyModel's strategy goes by."""

import os
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .layers import ActiveChannels, keeps_beside
from .memory import FittedBudget
from .passes import nothing_moves
from .projection import project_gradients
from .proxy import uncompiled
from .sampler import ChannelSampler
from .selection import CostTable, GradientRecord, RandomStrategy, draw, measure_gradients
from .selection.measuring import refuse_no_steps
from .streaming import stream_gradients
from .trial import DrawTrials
from .velocity import NeuronVelocities


MEASURES = ("projected", "in_parts", "at_once")


class MeasuredMixin:
    """Measures them, inside the budget, without updating anything."""

    base_model: nn.Module
    active: ActiveChannels | None
    costs: CostTable | None
    budget: int
    byte_budget: int | None
    fitted: FittedBudget | None
    pool: CostTable
    _sampler: ChannelSampler
    _layers: dict[str, list[nn.Module]]
    _targets: list[str]
    _batch: tuple | None
    _parts: FittedBudget | None
    _velocities: NeuronVelocities | None = None

    def _refuse_merged(self) -> None:
        raise NotImplementedError

    def _update(self, **known) -> None:
        raise NotImplementedError

    def _fit_when_possible(self) -> None:
        raise NotImplementedError

    def _fit(self, trials: DrawTrials) -> FittedBudget:
        raise NotImplementedError

    def _make_active(self, pool: CostTable, budget: int) -> ActiveChannels:
        raise NotImplementedError

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
            ValueError: If the dataloader is empty, `num_steps` is below 1, or the loss or a gradient is not finite;
                nothing is changed then.
        """
        sampler = self._sampler
        self._refuse_merged()
        sampler.refuse_uncalibrated()
        refuse_no_steps(kwargs.get("num_steps", 1))
        if sampler.strategy.scores == "velocity":
            return self._measure_velocities(dataloader, kwargs)
        if how is None:
            inside = self.byte_budget is not None or sampler.strategy.scores == "gradient"
            quantized = any(keeps_beside(layer) for layer, *_ in self._layers.values())  # has no gradient of a whole
            how = "projected" if inside or quantized else "at_once"
        if how not in MEASURES:
            raise ValueError(f"how={how!r} is not allowed; it must be one of {', '.join(map(repr, MEASURES))}")
        with uncompiled(self):
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
        with uncompiled(self), self._instead(active), nothing_moves(self, active):
            active.assign({first.name: torch.tensor([0])})
            yield

    def save_training_state(self, save_directory: str | os.PathLike) -> None:
        """Write into a checkpoint what the next draws follow from and `save_pretrained` leaves out: the costs, which a
        batch of another length would change, and of `velocity` the outputs of the last epoch."""
        if self.costs is not None:
            self.costs.save_pretrained(save_directory)
        if self._velocities is not None:
            self._velocities.save_pretrained(save_directory)

    def load_training_state(self, path: str | os.PathLike) -> None:
        """Go on from what `save_training_state` wrote into `path`, if anything.

        Raises:
            ValueError: If it is corrupt or of another architecture.
        """
        layers = {name: modules[0] for name, modules in self._layers.items()}
        self._velocities = NeuronVelocities.from_pretrained(path, layers) or self._velocities

    # ---- Parts of the above -------------------------------------------------------------------------------------

    def _measure_velocities(self, dataloader: Iterable, kwargs: dict) -> None:
        """Go on with the velocities by an epoch; `dataloader` must give the same batches every time."""
        if self._velocities is None:
            self._velocities = NeuronVelocities({row.name: self._layers[row.name][0] for row in self.costs})
        num_steps, compute_loss = kwargs.get("num_steps", 1), kwargs.get("compute_loss")
        with uncompiled(self):
            scores = self._velocities.update(self, dataloader, num_steps, compute_loss)
        self._update(scores=scores)
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
        selection = {} if before is None else before.selection
        if before is not None:
            before.assign({})  # its views, of which an optimizer may have changed the base since
        self.active = active
        try:
            yield
        finally:
            active.assign({})
            self.active = before
            if before is not None:
                before.assign(selection)
