"""Draws tried out on a fake copy of a TraDyModel."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from .fake import fake_copy, fake_inputs, fake_mode
from .layers import bytes_beside, keeps_beside
from .memory import FittedBudget, StepMemory, StepSetup, run_step
from .selection import CostTable
from .selection.costing import find_samples


# How many draws are weighed by their costs alone, and how many channels these may have together: a draw of a million
# channels takes a tenth of a second, and the more channels there are, the less two draws differ.
DRAWS_WEIGHED, CHANNELS_WEIGHED = 32, 1_000_000


class DrawTrials:
    """Predicts the peak of training steps of a TraDyModel, at any budget and pool; the model is not touched.

    Args:
        model: The TraDyModel, with known costs.
        example_inputs: A batch of the size to train with.
        setup: Optimizer, loss, precision.
        draws: For how many draws, the heaviest of those weighed, a peak is predicted exactly.
        mode: Given if `model` is made of fake tensors of this mode already; it is then used and changed itself.
    """

    def __init__(
        self,
        model,
        example_inputs: Any,
        setup: StepSetup | None = None,
        draws: int = 1,
        mode: FakeTensorMode | None = None,
    ):
        self.mode = mode or fake_mode()
        self.model = model if mode is not None else fake_copy(model, self.mode)
        self.model.train()
        self.inputs = fake_inputs(example_inputs, self.mode)
        self.setup = setup or StepSetup()
        self.draws = draws
        self._layers: list[str] | None = None
        self._paths: dict[tuple, StepMemory] = {}

    @property
    def layers(self) -> list[str]:
        """The layers of the pool in the order of their first call."""
        if self._layers is None:
            name = next(iter(self._all())).name  # most often the first one: then path_peak(0) is known, too
            order = self._path(name, ()).order
            place = {name: i for i, name in enumerate(order)}
            self._layers = sorted((row.name for row in self._all()), key=lambda name: place.get(name, len(place)))
        return self._layers

    def path_peak(self, first: int) -> int:
        return self._path(self.layers[first], tuple(self.layers[:first])).peak

    def draw_peak(self, units: int, first: int) -> int:
        return max(step.peak for step in self.steps(FittedBudget(units, tuple(self.layers[:first]))))

    def unit_range(self, first: int) -> tuple[int, int]:
        costs = self.model.costs.subset(self.layers[first:])
        return min(row.space for row in costs.by_input()) + self._bias_units, costs.total_units + self._bias_units

    def steps(self, fitted: FittedBudget | None = None) -> list[StepMemory]:
        """The steps of the heaviest draws at `fitted` (default: the model's own budget), the heaviest first."""
        if fitted is not None:
            self._fit(fitted)
        channels = sum(row.channels for row in self.model.pool)
        weighed = min(DRAWS_WEIGHED, CHANNELS_WEIGHED // channels) if self.model._sampler.strategy.dynamic else 1
        numbers = range(max(weighed, self.draws))
        selections = sorted((self.model.draw(number) for number in numbers), key=self._weight, reverse=True)
        return sorted((self._run(selection) for selection in selections[: self.draws]), key=lambda s: -s.peak)

    def set_batch_size(self, samples: int) -> None:
        """Go on with batches of `samples` instead of as many as there were."""
        leading = find_samples(self.inputs[1] or self.inputs[0])

        def resize(tensor: Tensor) -> Tensor:
            if tensor.dim() == 0 or len(tensor) != leading:
                return tensor
            return tensor.new_empty((samples, *tensor.shape[1:]))

        self.inputs = tree_map_only(Tensor, resize, self.inputs)
        self._paths.clear()

    def _weight(self, selection: dict[str, Tensor]) -> int:
        """Elements that `selection` keeps. Its gradients don't count: they are as large whatever is drawn."""
        costs = self.model.costs
        slices = sum(row.activation_per_channel * channels for row, channels in costs.kept(selection))
        return slices + sum(costs[name].whole_activation for name in selection)

    @property
    def _bias_units(self) -> int:
        return self.model._sampler.bias_units

    def _all(self) -> CostTable:
        """The pool with nothing left out."""
        self._fit(FittedBudget(self.model.costs.total_units + self._bias_units))
        return self.model.pool

    def _path(self, name: str, left_out: tuple[str, ...]) -> StepMemory:
        """The step in which one channel of layer `name` trains."""
        if (name, left_out) not in self._paths:
            inputs = self.model.costs.subset(self.model._targets).by_input()  # layers that share one train together
            units = inputs[self.model.costs[name].input_name].space + self._bias_units
            self._fit(FittedBudget(units, left_out))
            self._paths[name, left_out] = self._run({name: torch.tensor([0])})
        return self._paths[name, left_out]

    def _fit(self, fitted: FittedBudget) -> None:
        self.model._sampler.fitted = fitted
        self.model._replace_active(self.model.pool, fitted.units)

    def _run(self, selection: dict[str, Tensor]) -> StepMemory:
        self.model.active.assign(selection)
        beside = self._beside(selection)
        return run_step(self.model, self.inputs, self.mode, self.setup, self.model.base_model, beside)

    def _beside(self, selection: dict[str, Tensor]) -> int:
        """Most bytes that channels take beside quantized weights once all draws, as heavy as `selection`, are over."""
        layers = {name: self.model.active.layers[name][0] for name in selection}
        layers = {name: layer for name, layer in layers.items() if keeps_beside(layer)}
        number = self.setup.num_draws if self.model._sampler.strategy.dynamic else 1
        drawn = sum(bytes_beside(layer, len(selection[name])) for name, layer in layers.items())
        most = self.model.most_kept_bytes
        return min(self.model.kept_bytes + number * drawn, most)
