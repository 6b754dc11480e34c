"""Draws channels by a strategy until the budget is full."""

import numpy as np
import torch
from torch import Tensor

from .cost import CostTable
from .scores import ChannelScores
from .strategies import Strategy


def draw(
    strategy: Strategy, costs: CostTable, budget: int, seed: int, epoch: int, scores: ChannelScores | None = None
) -> dict[str, Tensor]:
    """The channels to train in `epoch`: a pure function of its arguments, the same in every process.

    Args:
        strategy: Gives the order in which channels are offered the budget.
        costs: The layers to draw from.
        budget: Units (elements) that the channels may cost together.
        seed: Seed of the run.
        epoch: Number of the draw, from 0; a static strategy ignores it.
        scores: What the strategy goes by; None if by nothing.

    Returns:
        Layer name -> sorted channel indices, int64 `[n]`, for every layer with at least one channel. Layers that share
        their input get the same channels.

    Raises:
        ValueError: If not even the cheapest channel fits; the message states the smallest budget that works.
    """
    check_budget(costs, budget)
    budget = min(budget, torch.iinfo(torch.int64).max)  # as far as costs are counted
    if strategy.within_budget:
        costs = affordable(costs, budget)
    inputs = costs.by_input()
    known = None if scores is None else scores.by_input(costs)
    order = strategy.choose(inputs, budget, known, _generator(seed, epoch if strategy.dynamic else 0))
    if strategy.within_budget:
        order = order[inputs.spaces()[order].cumsum(0) <= budget]
    chosen, starts = order.sort().values, inputs.starts()
    bounds = torch.searchsorted(chosen, torch.tensor([*starts, len(inputs.spaces())])).tolist()
    parts = zip(inputs, starts, bounds, bounds[1:], strict=False)
    drawn = {row.name: chosen[low:high] - start for row, start, low, high in parts if high > low}
    return {row.name: drawn[row.input_name] for row in costs if row.input_name in drawn}


def check_budget(costs: CostTable, budget: int) -> None:
    """Refuse a budget below the cheapest channel of `costs`.

    Raises:
        ValueError: The message states the smallest budget that works.
    """
    cheapest = min(costs.by_input(), key=lambda row: row.space, default=None)
    if cheapest is None:
        raise ValueError("there is no layer to draw channels from; check target_modules and exclude_modules")
    if cheapest.space > budget:
        layers = ", ".join(f"'{row.name}'" for row in costs if row.input_name == cheapest.name)
        raise ValueError(
            f"memory_budget of {budget:,} units is below the cheapest channel; the smallest that works is "
            f"{cheapest.space:,} units (a channel of {layers})"
        )


def affordable(costs: CostTable, budget: int) -> CostTable:
    """The layers one channel of which fits into `budget` units, with all those that share their input."""
    fitting = {row.name for row in costs.by_input() if row.space <= budget}
    return costs.subset(row.name for row in costs if row.input_name in fitting)


def max_weight_units(costs: CostTable, budget: int, names: set[str] | None = None) -> int:
    """Most weight elements that any draw within `budget` units can hold in the layers `names` (None: all).

    The bound of the fractional knapsack: fill the budget with the channels that have the largest share of weight.
    """
    units = 0
    costs = affordable(costs, budget)
    weights = dict.fromkeys((row.input_name for row in costs), 0)  # of one channel of each input, in `names`
    for row in costs:
        if names is None or row.name in names:
            weights[row.input_name] += row.weight_per_channel
    for row in sorted(costs.by_input(), key=lambda row: weights[row.name] / row.space, reverse=True):
        if row.channels * row.space > budget:
            return units + budget * weights[row.name] // row.space
        units += row.channels * weights[row.name]
        budget -= row.channels * row.space
    return units


def _generator(seed: int, epoch: int) -> torch.Generator:
    """A CPU generator of its own for each (seed, epoch), apart from the global one."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)
