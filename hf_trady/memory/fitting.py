"""Finds what a budget in bytes buys: how many units, and how far down the model."""

import json
import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from ..files import read_optional, write_text


FITTED_NAME = "trady_plan.json"
MIB = 2**20

# Of what a budget leaves above the cheapest selection, the gradient path down to the first layer may take this share.
# At 1 the deepest layer that fits would leave no bytes for channels: a pool of all layers and a draw of one channel.
PATH_SHARE = 0.5

# On the CPU, what libraries keep once they have computed (thread pools, compiled kernels) is measured, not predicted.
# It grows with the first draws, whose shapes are new, whatever the budget: of a small one it takes a larger share.
CPU_RESERVE, MOST_CPU_RESERVE, CPU_RESERVE_BYTES = 0.2, 0.45, 16 * MIB


def reserved_share(byte_budget: int | None, device: torch.device) -> float:
    """The share of a budget in bytes that a [`TraDyTrainer`] on `device` leaves to libraries (`StepSetup.reserve`)."""
    if device.type != "cpu":
        return 0.0
    return max(CPU_RESERVE, min(MOST_CPU_RESERVE, CPU_RESERVE_BYTES / (byte_budget or math.inf)))


@dataclass(frozen=True)
class FittedBudget:
    """What a budget in bytes buys: a run that has this draws the same channels, without measuring anything.

    Attributes:
        units: Units (elements) that the first draws may cost; the flat Parameters are as long as these need.
        left_out: Layers that leave the pool, as the budget can't pay for the gradient path down to them.
        predicted_peak: Highest predicted peak in bytes of the draws looked at.
        floor: Predicted peak in bytes with one channel of the pool's first layer.
        shrunk: `(number of a draw, units)`, ascending: from this draw on, draws may cost only so many units.
    """

    units: int
    left_out: tuple[str, ...] = ()
    predicted_peak: int = 0
    floor: int = 0
    shrunk: tuple[tuple[int, int], ...] = field(default=())

    def units_of(self, draw: int) -> int:
        """Units that draw number `draw` may cost."""
        return next((units for start, units in reversed(self.shrunk) if start <= draw), self.units)

    def is_as_large_as(self, other: "FittedBudget") -> bool:
        """Whether the first draws may cost as much, from the same layers: the flat Parameters are as long then."""
        return (self.units, self.left_out) == (other.units, other.left_out)

    def shrink(self, draw: int, measured: int, budget: int, least: int) -> "FittedBudget":
        """Smaller draws from number `draw` on, after `measured` bytes were more than `budget`; never below `least`."""
        units = self.units_of(draw)
        share = (budget - self.floor) / (measured - self.floor) if self.floor < budget < measured else 0.5
        smaller = max(least, int(0.98 * share * units))
        kept = tuple(entry for entry in self.shrunk if entry[0] < draw)
        return replace(self, shrunk=(*kept, (draw, min(smaller, units))))

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `trady_plan.json` into `save_directory`."""
        write_text(Path(save_directory) / FITTED_NAME, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> "FittedBudget | None":
        """Read `trady_plan.json` from the directory `path`; None if there is none.

        Raises:
            ValueError: If the file is not such a plan.
        """
        file = Path(path) / FITTED_NAME
        return read_optional(file, cls._from_dict, "a fitted budget", "delete it to fit anew")

    @classmethod
    def _from_dict(cls, values: dict) -> "FittedBudget":
        fitted = cls(
            units=int(values["units"]),
            left_out=tuple(str(name) for name in values["left_out"]),
            predicted_peak=int(values["predicted_peak"]),
            floor=int(values["floor"]),
            shrunk=tuple((int(start), int(units)) for start, units in values["shrunk"]),
        )
        if min([fitted.units, *(units for _, units in fitted.shrunk)]) < 1:
            raise ValueError("a draw of no units")
        return fitted


class Trials(Protocol):
    """What `fit_bytes` tries out. Layers are numbered in the order in which the forward runs them."""

    layers: list[str]

    def path_peak(self, first: int) -> int:
        """Peak bytes when one channel of layer `first` trains, and nothing else."""

    def draw_peak(self, units: int, first: int) -> int:
        """Highest peak bytes of the draws of `units` from the layers `first` on."""

    def unit_range(self, first: int) -> tuple[int, int]:
        """Units of the cheapest channel from layer `first` on, and of all channels."""


def fit_bytes(trials: Trials, budget: int, reserve: float = 0.0, tolerance: float = 0.01) -> FittedBudget:
    """The deepest pool whose gradient path `budget` bytes can pay, and the most units that they buy there.

    Args:
        trials: Gives the peak of what is tried out.
        budget: Peak bytes above the model's own weights.
        reserve: Share of it to leave for what no prediction sees.
        tolerance: Stop as soon as no more than this share of the budget is unused.

    Raises:
        ValueError: If not even one channel of the last layer fits; states the smallest budget that works.
    """
    last = len(trials.layers) - 1
    floor = trials.path_peak(last)
    if floor > budget * (1 - reserve):
        raise ValueError(
            f"memory_budget of {readable(budget)} is impossible: one channel of the last layer, "
            f"'{trials.layers[last]}', takes more; the smallest that works is '{_mib_up(floor / (1 - reserve))}MiB'"
        )
    budget = int(budget * (1 - reserve))
    first, path = _first_affordable(trials, floor, floor + int(PATH_SHARE * (budget - floor)))
    units, peak = _most_units(trials, path, budget, first, tolerance)
    return FittedBudget(units, tuple(trials.layers[:first]), peak, path)


def _first_affordable(trials: Trials, floor: int, limit: int) -> tuple[int, int]:
    """The first layer whose gradient path fits into `limit` bytes, and the peak with it: the deeper, the more.

    Ends as soon as no more than 2 % of `limit` is unused. `floor`: the peak with the last layer.
    """
    low, high = 0, len(trials.layers) - 1
    low_peak, high_peak = trials.path_peak(low), floor
    if low_peak <= limit:
        return low, low_peak
    while high - low > 1 and limit - high_peak > 0.02 * limit:
        guess = high - int((high - low) * (limit - high_peak) / (low_peak - high_peak))
        margin = (high - low) // 8  # whatever the curve, each guess cuts off an eighth
        guess = min(max(guess, low + 1 + margin), high - 1 - margin) if margin else (low + high) // 2
        peak = trials.path_peak(guess)
        if peak <= limit:
            high, high_peak = guess, peak
        else:
            low, low_peak = guess, peak
    return high, high_peak


def _most_units(trials: Trials, path: int, budget: int, first: int, tolerance: float) -> tuple[int, int]:
    """The most units that fit, and their peak, which is near affine in the units: a few secants find them.

    `path`: the peak with one channel.
    """
    low, high = trials.unit_range(first)
    low_peak, high_peak, tried = path, trials.draw_peak(high, first), False
    if high_peak <= budget:
        return high, high_peak
    for _ in range(12):
        if high - low <= 1 or (tried and budget - low_peak <= tolerance * budget):
            break
        # Aim a little below the line: a guess that fits is worth more than a close one.
        guess = low + int((high - low) * (budget * (1 - tolerance / 2) - low_peak) / max(high_peak - low_peak, 1))
        guess = min(max(guess, low + max(1, (high - low) // 64)), high - 1)
        peak = trials.draw_peak(guess, first)
        if peak <= budget:
            low, low_peak, tried = guess, peak, True
        else:
            high, high_peak = guess, peak
    return low, low_peak if tried else trials.draw_peak(low, first)


def readable(size: float) -> str:
    """`size` bytes in MiB, or in KiB where there is less than one."""
    return f"{size / MIB:,.2f} MiB" if size >= MIB else f"{size / 2**10:,.2f} KiB"


def _mib_up(size: float) -> str:
    """`size` bytes in MiB, rounded up to a hundredth."""
    return f"{math.ceil(size * 100 / MIB) / 100:.2f}"
