"""Draws tried out on a fake copy of a TraDyModel."""

from typing import Any

import torch
from torch import Tensor

from .memory import FittedBudget, StepMemory, StepSetup, fake_copy, fake_inputs, fake_mode, run_step


DRAWS_WEIGHED = 32  # draws that are drawn and weighed by their costs alone, which takes milliseconds


class DrawTrials:
    """Predicts the peak of training steps of a TraDyModel, at any budget and pool; the model is not touched.

    Args:
        model: The TraDyModel, with known costs.
        example_inputs: A batch of the size to train with.
        setup: Optimizer, loss, precision.
        draws: For how many draws, the heaviest of those weighed, a peak is predicted exactly.
    """

    def __init__(self, model, example_inputs: Any, setup: StepSetup | None = None, draws: int = 2):
        self.mode = fake_mode()
        self.model = fake_copy(model, self.mode)
        self.model.train()
        self.inputs = fake_inputs(example_inputs, self.mode)
        self.setup = setup or StepSetup()
        self.draws = draws
        self._layers: list[str] | None = None

    @property
    def layers(self) -> list[str]:
        """The layers of the pool in the order of their first call."""
        if self._layers is None:
            self._fit(FittedBudget(self._total_units()))
            pool = [row.name for row in self.model.pool]
            cheapest = min(self.model.pool, key=lambda row: row.space).name
            place = {name: i for i, name in enumerate(self._run({cheapest: torch.tensor([0])}).order)}
            self._layers = sorted(pool, key=lambda name: place.get(name, len(place)))
        return self._layers

    def path_peak(self, first: int) -> int:
        name = self.layers[first]
        self._fit(FittedBudget(self._units_of_channel(name), tuple(self.layers[:first])))
        return self._run({name: torch.tensor([0])}).peak

    def draw_peak(self, units: int, first: int) -> int:
        return max(step.peak for step in self.steps(FittedBudget(units, tuple(self.layers[:first]))))

    def unit_range(self, first: int) -> tuple[int, int]:
        costs = self.model.costs.subset(self.layers[first:])
        return min(self._units_of_channel(row.name) for row in costs), costs.total_units + self._bias_units

    def steps(self, fitted: FittedBudget | None = None) -> list[StepMemory]:
        """The steps of the heaviest draws at `fitted` (default: the model's own budget), the heaviest first."""
        if fitted is not None:
            self._fit(fitted)
        numbers = range(DRAWS_WEIGHED if self.model._sampler.strategy.dynamic else 1)
        selections = sorted((self.model.draw(number) for number in numbers), key=self._weight, reverse=True)
        return sorted((self._run(selection) for selection in selections[: self.draws]), key=lambda s: -s.peak)

    def _weight(self, selection: dict[str, Tensor]) -> int:
        """Elements that `selection` keeps. Its gradients don't count: they are as large whatever is drawn."""
        return sum(self.model.costs[name].activation_per_channel * len(index) for name, index in selection.items())

    @property
    def _bias_units(self) -> int:
        return self.model._sampler.bias_units

    def _total_units(self) -> int:
        return self.model.costs.total_units + self._bias_units

    def _units_of_channel(self, name: str) -> int:
        return self.model.costs[name].space + self._bias_units

    def _fit(self, fitted: FittedBudget) -> None:
        self.model.set_fitted(fitted)

    def _run(self, selection: dict[str, Tensor]) -> StepMemory:
        self.model.active.assign(selection)
        return run_step(self.model, self.inputs, self.mode, self.setup, self.model.base_model)
