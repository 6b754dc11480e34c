"""Which layers matter most: measured once for an architecture, reused for any task."""

import json
import math
import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..files import write_text
from .cost import CostTable, cost_table
from .importance import IMPORTANCE, channel_norms


RANKING_NAME = "layer_ranking.json"


@dataclass(frozen=True)
class LayerRanking:
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

    def top(self, coverage: float = 0.97, num_layers: int | None = None, importance: str = "rgn") -> list[str]:
        """The first K layers.

        Args:
            coverage: K is the smallest number of layers that hold this share of the total score.
            num_layers: K itself; overrides `coverage`.
            importance: The score to rank by.

        Raises:
            ValueError: If `num_layers` exceeds the number of layers.
        """
        names = self.layers(importance)
        if num_layers is not None:
            if num_layers > len(names):
                raise ValueError(f"num_layers={num_layers} is more than the {len(names)} layers of the ranking")
            return names[:num_layers]
        scores = torch.tensor([self.scores[importance][name] for name in names], dtype=torch.float64)
        shares = scores.cumsum(0) / scores.sum().clamp_min(torch.finfo(scores.dtype).tiny)
        return names[: int((shares < coverage - 1e-12).sum()) + 1]

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

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `layer_ranking.json` into `save_directory`."""
        write_text(Path(save_directory) / RANKING_NAME, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> "LayerRanking":
        """Read a ranking from a JSON file or from the directory that holds `layer_ranking.json`.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If the file is not a layer ranking.
        """
        file = Path(path)
        file = file / RANKING_NAME if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"no layer ranking at '{path}'; give a {RANKING_NAME} or a directory with one")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
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


def rank_layers(
    model: nn.Module,
    dataloader: Iterable,
    *,
    num_steps: int = 10,
    learning_rate: float = 0.0,
    compute_loss: Callable[[nn.Module, Any], Tensor] | None = None,
    costs: CostTable | None = None,
    exclude_modules: str | Iterable[str] | None = None,
    disable_tqdm: bool = False,
) -> LayerRanking:
    """Rank the layers of `model` by their reweighted gradient norm over a few batches of any task.

    Each weight gradient is measured, applied and freed as soon as backward has formed it. At the end all parameters
    and buffers are what they were, without gradients.

    Args:
        model: Any module.
        dataloader: Yields batches, at least one; started again when it ends.
        num_steps: Steps to measure.
        learning_rate: 0 measures the gradients of the given weights. Otherwise plain SGD runs on the ranked layers and
            on whatever else of the model requires a gradient, which takes a copy of these, and rarely changes the
            order: on a MobileNetV2, 10 batches at 0 and 100 steps of training correlate by 0.93 (Spearman).
        compute_loss: `(model, batch) -> scalar loss`. By default the `loss` of a model called with the batch as
            keywords, or cross-entropy of `model(inputs)` for batches `(inputs, labels)`.
        costs: The layers to rank; by default all of `cost_table(model, first batch, exclude_modules)`.
        exclude_modules: Layers to leave out when `costs` is not given.
        disable_tqdm: Show no progress bar.

    Returns:
        The ranking of all layers in `costs`.

    Raises:
        ValueError: If the dataloader is empty, or the loss or a gradient is not finite.
    """
    compute_loss = compute_loss or default_loss
    batches = _endless(dataloader)
    first = next(batches, None)
    if first is None:
        raise ValueError("can't rank layers: the dataloader is empty")
    if costs is None:
        inputs = first[0] if isinstance(first, tuple | list) else first
        costs = cost_table(model, inputs, exclude_modules)
    layers = {row.name: model.get_submodule(row.name) for row in costs}
    totals = {kind: dict.fromkeys(layers, 0.0) for kind in IMPORTANCE}

    def measure(name: str, gradient: Tensor) -> None:
        norms = channel_norms(layers[name], gradient)
        for kind, score in IMPORTANCE.items():
            totals[kind][name] += score(norms, costs[name])

    with _gradient_run(model, layers, learning_rate, measure):
        for step in tqdm(range(num_steps), desc="Ranking layers", disable=disable_tqdm):
            loss = compute_loss(model, first if step == 0 else next(batches))
            if not torch.isfinite(loss):
                raise ValueError(
                    f"can't rank layers: the loss is {loss.item()} at step {step + 1}; lower learning_rate "
                    f"(now {learning_rate}) or check the data"
                )
            loss.backward()
    for name, score in totals["rgn"].items():
        if not math.isfinite(score):
            raise ValueError(f"can't rank layers: the gradient of '{name}' is not finite; check the data")
    return LayerRanking(
        scores=totals,
        shapes={row.name: [row.channels, row.weight_per_channel] for row in costs},
        info={"num_steps": num_steps, "learning_rate": learning_rate, "model": type(model).__name__},
    )


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """The model's own loss for a batch of keywords; cross-entropy for `(inputs, labels)`."""
    if isinstance(batch, tuple | list):
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels)
    return model(**batch).loss


@contextmanager
def _gradient_run(model: nn.Module, layers: dict[str, nn.Module], learning_rate: float, measure: Callable):
    """Let `layers` train; hand each gradient to `measure`, step and free it at once; restore everything at the end."""
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    name_of = {layer.weight: name for name, layer in layers.items()}
    trained = {parameter for parameter, requires in required.items() if requires} | set(name_of)
    moving = {*(trained if learning_rate else ()), *model.buffers()}  # batch-norms in train mode move their statistics
    kept = {tensor: tensor.detach().clone() for tensor in moving}

    @torch.no_grad()
    def step(parameter: Tensor) -> None:
        if parameter in name_of:
            measure(name_of[parameter], parameter.grad)
        if learning_rate:
            parameter.sub_(parameter.grad, alpha=learning_rate)
        parameter.grad = None

    for parameter in required:
        parameter.grad = None  # what an earlier backward left would be measured, too
    for parameter in name_of:
        parameter.requires_grad_(True)
    handles = [parameter.register_post_accumulate_grad_hook(step) for parameter in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for tensor, value in kept.items():
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
        for parameter, requires in required.items():
            parameter.requires_grad_(requires)
            parameter.grad = None


def _endless(dataloader: Iterable):
    """Batches of `dataloader`, over and over; ends at once if there are none."""
    while True:
        empty = True
        for batch in dataloader:
            empty = False
            yield batch
        if empty:
            return
