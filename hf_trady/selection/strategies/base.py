"""What a strategy is, and the registry of all of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..cost import CostTable


@dataclass(frozen=True)
class Strategy(ABC):
    """Which channels are preferred. The caller takes them in that order until the budget is full.

    Attributes:
        dynamic: Draw again for every epoch, rather than once.
        importance: Draw from the top layers of a ranking by this importance (`"rgn"`, `"lara"`) only; None: from all.
        layers_by_budget: How many top layers there are follows from the budget (see `LayerRanking.top_by_budget`).
        scores: What `choose` needs to know of each channel. None: nothing; `"gradient"`: the norm of its gradient,
            measured by a pass that updates nothing; `"observed"`: that norm where training has seen it, NaN where
            not; `"weight"`: the norm of its weight; `"velocity"`: how fast its output changes, NaN if unknown.
        refresh: Measure the scores anew before every draw, rather than once.
        by_output: Channels are output channels; a layer keeps all of its input as soon as one of them trains.
        within_budget: The caller stops at the budget. If False, all that `choose` returns is taken, and reported.
    """

    dynamic: bool = True
    importance: str | None = None
    layers_by_budget: bool = False
    scores: str | None = None
    refresh: bool = False
    by_output: bool = False
    within_budget: bool = True

    @abstractmethod
    def choose(self, costs: CostTable, budget: int, scores: Tensor | None, generator: torch.Generator) -> Tensor:
        """Channels by preference, each at most once, int64 `[n]`.

        Channels are numbered row by row, in the order of `costs`, which holds one row an input: a channel that several
        layers share trains in all of them.

        Args:
            costs: The inputs to choose from.
            budget: Units (elements) that the channels may cost together.
            scores: Float64 `[sum of all channels]`; None unless `self.scores` asks for them.
            generator: The only source of randomness.
        """

    def check(self, costs: CostTable, budget: int) -> None:  # noqa: B027 (most have nothing to refuse)
        """Refuse options that don't fit the network.

        Args:
            costs: The layers to draw from.
            budget: Units that the channels may cost together.

        Raises:
            ValueError: If one doesn't.
        """


@dataclass(frozen=True)
class Registered:
    """A strategy by name: its class, the fields of a config that it is made with, and its settings."""

    cls: type[Strategy]
    options: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self, config: Any) -> Strategy:
        return self.cls(**self.settings, **{name: getattr(config, name) for name in self.options})


STRATEGIES: dict[str, Registered] = {}


def register_strategy(name: str, *options: str, **settings: Any):
    """Class decorator: `name` is this class with `settings`, and with a config's fields `options`, as attributes."""

    def register(cls: type[Strategy]) -> type[Strategy]:
        STRATEGIES[name] = Registered(cls, options, settings)
        return cls

    return register


def make_strategy(config: Any) -> Strategy:
    """The strategy that `config.strategy` names, with the options that `config` has for it."""
    return STRATEGIES[config.strategy].make(config)
