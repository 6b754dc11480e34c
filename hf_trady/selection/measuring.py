"""Measures the gradient of every input channel, by a pass that changes nothing."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..layers import keeps_beside
from .cost import CostTable
from .costing import cost_table
from .importance import IMPORTANCE, channel_norms
from .ranking import LayerRanking
from .scores import ChannelScores
from .tails import tail_index


class GradientRecord:
    """Gradient norms of the input channels of some layers, summed over the steps of a pass.

    Args:
        costs: The layers.

    Attributes:
        num_steps: Steps that were measured.
        norms: Layer name -> the norm of each channel's gradient, float64 `[C]`.
        totals: By importance, layer name -> its score.
        tails: For each step, the mean tail index of the layers' gradients, weighted by their elements; empty unless
            the pass was asked for it.
    """

    def __init__(self, costs: CostTable):
        self.costs = costs
        self.num_steps = 0
        self.tails: list[float] = []
        self.totals = {kind: {row.name: 0.0 for row in costs} for kind in IMPORTANCE}
        self.norms = {row.name: torch.zeros(row.channels, dtype=torch.float64) for row in costs}

    def add(self, name: str, norms: Tensor) -> None:
        """Take in the norms `[C]` of layer `name` in one step."""
        for kind, score in IMPORTANCE.items():
            self.totals[kind][name] += score(norms, self.costs[name])
        self.norms[name] += norms.double().cpu()

    def check(self) -> None:
        """Refuse what is not finite.

        Raises:
            ValueError: Names the first layer.
        """
        for name, norms in self.norms.items():
            if not torch.isfinite(norms).all():
                raise ValueError(f"can't rank layers: the gradient of '{name}' is not finite; check the data")

    def ranking(self, **info: Any) -> LayerRanking:
        """The layers by each importance."""
        shapes = {row.name: [row.channels, row.weight_per_channel] for row in self.costs}
        return LayerRanking(scores=self.totals, shapes=shapes, info=info)

    def scores(self) -> ChannelScores:
        """The norm of each channel."""
        return ChannelScores({name: norms.float() for name, norms in self.norms.items()})


def rank_layers(model: nn.Module, dataloader: Iterable, **kwargs: Any) -> LayerRanking:
    """Rank the layers of `model` by their reweighted gradient norm over a few batches of any task.

    Args:
        model: Any module.
        dataloader: Yields batches, at least one; started again when it ends.
        **kwargs: Those of [`measure_gradients`].

    Returns:
        The ranking of all layers looked at.

    Raises:
        ValueError: If the dataloader is empty, or the loss or a gradient is not finite.
    """
    record = measure_gradients(model, dataloader, **kwargs)
    return record.ranking(
        num_steps=record.num_steps, learning_rate=kwargs.get("learning_rate", 0.0), model=type(model).__name__
    )


def refuse_no_steps(num_steps: int) -> None:
    """Raise a ValueError if there is nothing to measure."""
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} (ranking_steps of a Trainer) is not allowed; it must be at least 1")


def measure_gradients(
    model: nn.Module,
    dataloader: Iterable,
    *,
    num_steps: int = 10,
    learning_rate: float = 0.0,
    compute_loss: Callable[[nn.Module, Any], Tensor] | None = None,
    costs: CostTable | None = None,
    exclude_modules: str | Iterable[str] | None = None,
    tails: bool = False,
    disable_tqdm: bool = False,
) -> GradientRecord:
    """The gradient norm of each input channel of `model`, over a few batches of a task.

    Each weight gradient is measured, applied and freed as soon as backward has formed it, so that no two exist at
    once; the inputs of all layers do, which takes the memory of full fine-tuning all the same. At the end all
    parameters and buffers are what they were, without gradients.

    Args:
        model: Any module.
        dataloader: Yields batches, at least one; started again when it ends.
        num_steps: Steps to measure.
        learning_rate: 0 measures the gradients of the given weights. Otherwise plain SGD runs on the ranked layers and
            on whatever else of the model requires a gradient, which takes a copy of these, and rarely changes the
            order much: `trady rank --learning_rate` tells.
        compute_loss: `(model, batch) -> scalar loss`. By default the `loss` of a model called with the batch as
            keywords, or cross-entropy of `model(inputs)` for batches `(inputs, labels)`.
        costs: The layers to look at; by default all of `cost_table(model, first batch, exclude_modules)`.
        exclude_modules: Layers to leave out when `costs` is not given.
        tails: Also estimate the tail index of every gradient.
        disable_tqdm: Show no progress bar.

    Raises:
        ValueError: If the dataloader is empty, `num_steps` is below 1, a weight is quantized, or the loss or a
            gradient is not finite.
    """
    refuse_no_steps(num_steps)
    compute_loss = compute_loss or default_loss
    batches = batches_of(dataloader)
    first = next(batches)
    if costs is None:
        inputs = first[0] if isinstance(first, tuple | list) else first
        costs = cost_table(model, inputs, exclude_modules)
    layers = {row.name: model.get_submodule(row.name) for row in costs}
    frozen = [name for name, layer in layers.items() if keeps_beside(layer)]
    if frozen:
        raise ValueError(
            f"can't measure whole gradients: the weight of '{frozen[0]}' is quantized; TraDyModel.measure(dataloader) "
            "measures them by channel"
        )
    record = GradientRecord(costs)
    indices: list[tuple[float, int]] = []  # tail index and elements of each gradient of a step

    def measure(name: str, gradient: Tensor) -> None:
        record.add(name, channel_norms(layers[name], gradient))
        if tails and gradient.count_nonzero() >= 4:
            indices.append((tail_index(gradient), gradient.numel()))

    with _gradient_run(model, layers, learning_rate, measure):
        for step in tqdm(range(num_steps), desc="Measuring gradients", disable=disable_tqdm):
            loss = compute_loss(model, first if step == 0 else next(batches))
            refuse_not_finite(loss, step, f"lower learning_rate (now {learning_rate}) or check the data")
            loss.backward()
            record.num_steps += 1
            if indices:
                record.tails.append(sum(index * n for index, n in indices) / sum(n for _, n in indices))
                indices.clear()
    record.check()
    return record


def batches_of(dataloader: Iterable) -> Iterator:
    """Batches of `dataloader`, over and over.

    Raises:
        ValueError: If there are none, or if it is a batch itself.
    """
    if isinstance(dataloader, Mapping | Tensor):
        raise ValueError(f"a dataloader yields batches, and a {type(dataloader).__name__} is one; pass [batch]")
    while True:
        empty = True
        for batch in dataloader:
            empty = False
            yield batch
        if empty:
            raise ValueError("can't rank layers: the dataloader is empty")


def refuse_not_finite(loss: Tensor | None, step: int, advice: str) -> None:
    """Raise a ValueError if `loss` is not finite, or if there is none."""
    if loss is None:
        raise ValueError("can't rank layers: the model gives no loss; give batches with labels, or compute_loss")
    if not math.isfinite(loss.item()):
        raise ValueError(f"can't rank layers: the loss is {loss.item()} at step {step + 1}; {advice}")


def default_loss(model: nn.Module, batch: Any) -> Tensor | None:
    """The model's own loss for a batch of keywords, None if it gives none; cross-entropy for `(inputs, labels)`.

    Raises:
        ValueError: If `batch` is neither.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels)
    if not isinstance(batch, Mapping):
        what = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        raise ValueError(
            f"a batch must be (inputs, labels) or a dict of keywords, not a {what}; for a single batch pass [batch], "
            "for others compute_loss"
        )
    return getattr(model(**batch), "loss", None)


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
