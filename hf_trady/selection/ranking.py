"""Which layers matter most: measured once for an architecture, reused for any task."""

import json
import math
import os
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..files import read_json, write_text
from ..hub import PushToHubMixin, local_directory
from ..markup import html_table
from .cost import CostTable
from .importance import IMPORTANCE


RANKING_NAME = "layer_ranking.json"
BUDGET_SHARE = 0.2  # of the memory of the layers that MeDyate draws from


@dataclass(frozen=True)
class LayerRanking(PushToHubMixin):
    """Scores of an architecture's layers.

    Attributes:
        scores: By importance (`"rgn"`, `"lara"`), the score of each layer by name, summed over the steps measured.
        shapes: By layer name, `[channels, weight elements a channel]`: what an architecture must match to use this.
        info: Where the ranking comes from: steps, learning rate, model.
    """

    scores: dict[str, dict[str, float]]
    shapes: dict[str, list[int]]
    info: dict[str, Any] = field(default_factory=dict)

    def layers(self, importance: str = "rgn") -> list[str]:
        """Layer names, most important first."""
        return sorted(self.scores[importance], key=self.scores[importance].get, reverse=True)

    def top(
        self,
        coverage: float = 0.97,
        num_layers: int | None = None,
        importance: str = "rgn",
        among: Container[str] | None = None,
    ) -> list[str]:
        """The first K layers.

        Args:
            coverage: K is the smallest number of layers that hold this share of the total score.
            num_layers: K itself; overrides `coverage`.
            importance: The score to rank by.
            among: Names of the layers to choose from, of whose total the share is; by default all of the ranking.

        Raises:
            ValueError: If `num_layers` exceeds the number of layers.
        """
        names = [name for name in self.layers(importance) if among is None or name in among]
        if num_layers is not None:
            if num_layers > len(names):
                raise ValueError(f"num_layers={num_layers} is more than the {len(names)} layers to choose from")
            return names[:num_layers]
        scores = torch.tensor([self.scores[importance][name] for name in names], dtype=torch.float64)
        shares = scores.cumsum(0) / scores.sum().clamp_min(torch.finfo(scores.dtype).tiny)
        return names[: int((shares < coverage - 1e-12).sum()) + 1]

    def top_by_budget(self, costs: CostTable, budget: int, importance: str = "lara") -> list[str]:
        """The first K layers, K as MeDyate picks it: the fewest of which `budget` is no more than a fifth; or all.

        Args:
            costs: Costs of the layers; others that are ranked are passed over.
            budget: Units (elements).
            importance: The score to rank by.
        """
        known = {row.name for row in costs}
        names, memory = [name for name in self.layers(importance) if name in known], 0
        for number, name in enumerate(names, 1):
            memory += costs[name].channels * costs[name].space
            if budget <= BUDGET_SHARE * memory:
                return names[:number]
        return names

    def renamed(self, names: Mapping[str, str]) -> "LayerRanking":
        """The layers that `names` has, called what it calls them."""
        scores = {kind: {new: known[old] for old, new in names.items()} for kind, known in self.scores.items()}
        return LayerRanking(scores, {new: self.shapes[old] for old, new in names.items()}, self.info)

    def check(self, costs: CostTable) -> None:
        """Refuse an architecture other than the one that was ranked.

        Raises:
            ValueError: Names the first layer that doesn't match.
        """
        for row in costs:
            ranked, given = self.shapes.get(row.name), [row.channels, row.weight_per_channel]
            if ranked is None:
                raise ValueError(
                    f"the layer ranking is of another architecture: it has no layer '{row.name}'; "
                    "rank this architecture, or leave layer_ranking out"
                )
            if list(ranked) != given:
                raise ValueError(
                    f"the layer ranking is of another architecture: '{row.name}' has {ranked[0]} channels of "
                    f"{ranked[1]} weights there and {given[0]} of {given[1]} here; rank this architecture, or leave "
                    "layer_ranking out"
                )

    def _repr_html_(self) -> str:
        sums = {kind: sum(scores.values()) or 1.0 for kind, scores in self.scores.items()}
        rows, so_far = [], 0.0
        for name in self.layers():
            share = {kind: scores[name] / sums[kind] for kind, scores in self.scores.items()}
            so_far += share["rgn"]
            rows.append((name, f"{share['rgn']:.2%}", f"{so_far:.2%}", f"{share['lara']:.2%}"))
        info = "".join(f", {key}: {value}" for key, value in self.info.items())
        return html_table(
            rows, ("layer", "RGN", "sum of RGN", "LaRa"), f"{len(rows):,} layers, most important first{info}"
        )

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `layer_ranking.json` into `save_directory`."""
        write_text(Path(save_directory) / RANKING_NAME, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, **hub_kwargs: Any) -> "LayerRanking":
        """Read a ranking from a JSON file, or `layer_ranking.json` from a directory or a Hub repository.

        Args:
            path: The file, the directory or the id of the repository.
            **hub_kwargs: As for [`TraDyModel.from_pretrained`].

        Raises:
            FileNotFoundError: If there is none.
            OSError: If the Hub can't be reached.
            ValueError: If the file is not a layer ranking.
        """
        file = Path(path)
        if not file.is_file() and file.suffix != ".json":
            file = local_directory(path, [RANKING_NAME], **hub_kwargs) / RANKING_NAME
        if not file.is_file():
            raise FileNotFoundError(f"no layer ranking at '{path}'; give a {RANKING_NAME}, or where one is")
        try:
            values = read_json(file)
            ranking = cls(
                scores={kind: {k: float(v) for k, v in values["scores"][kind].items()} for kind in IMPORTANCE},
                shapes={name: [int(channels), int(weight)] for name, (channels, weight) in values["shapes"].items()},
                info=dict(values.get("info", {})),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"'{file}' is not a layer ranking ({type(error).__name__}: {error})") from None
        if any(set(scores) != set(ranking.shapes) for scores in ranking.scores.values()):
            raise ValueError(f"'{file}' is not a layer ranking (scores and shapes name different layers)")
        if not all(math.isfinite(value) for scores in ranking.scores.values() for value in scores.values()):
            raise ValueError(f"'{file}' is not a layer ranking (a score is not finite)")
        return ranking
