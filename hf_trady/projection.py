"""Estimates the gradient of every channel inside the memory of a training step, in two forwards and a backward."""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .layers import ActiveChannels
from .layers.probe import Probe
from .passes import nothing_moves, same_randomness
from .selection import CostTable, GradientRecord
from .selection.measuring import batches_of, default_loss, refuse_not_finite


NUM_DIRECTIONS = 8


def project_gradients(
    model: nn.Module,
    active: ActiveChannels,
    costs: CostTable,
    pool: CostTable,
    units: int,
    dataloader: Iterable,
    *,
    most_activation: int | None = None,
    num_steps: int = 10,
    compute_loss: Callable[[nn.Module, Any], Tensor] | None = None,
    disable_tqdm: bool = False,
) -> GradientRecord:
    """An estimate of the gradient norm of each input channel (see [`Probe`]).

    Layers are looked at in groups that cost at most `units`: a channel of each, and `NUM_DIRECTIONS` elements for each
    position of its output. Every group takes a forward, a backward and another forward of the same batch. The weights,
    the buffers and the active channels are in the end what they were; all gradients are None.

    Args:
        model: The wrapped model, called by `compute_loss`.
        active: Its active channels, with room for any `units`.
        costs: All layers.
        pool: Those to look at; the norms of the others are 0, as are those of layers whose channels cost too much.
        units: Elements that a group may cost.
        dataloader: Yields batches, at least one; started again when it ends.
        most_activation: Elements that a group may keep of inputs and projections.
        num_steps: Batches to look at.
        compute_loss: As in [`measure_gradients`].
        disable_tqdm: Show no progress bar.

    Raises:
        ValueError: If the dataloader is empty, or the loss or a gradient is not finite.
    """
    compute_loss = compute_loss or default_loss
    record = GradientRecord(costs)
    groups = group_layers(pool, units, units if most_activation is None else most_activation)
    batches, generator = batches_of(dataloader), torch.Generator().manual_seed(0)
    progress = tqdm(total=num_steps * len(groups), desc="Measuring gradients", disable=disable_tqdm)
    with nothing_moves(model, active), progress:
        for step in range(num_steps):
            batch = next(batches)
            for group in groups:
                layers = {name: active.layers[name] for name in group}
                probes = {name: Probe(layers[name][0], number, generator) for name, number in group.items()}
                active.assign({name: torch.tensor([0]) for name in group})
                with same_randomness(model, last=False), _looking_at_outputs(layers, probes):
                    loss = compute_loss(model, batch)
                    refuse_not_finite(loss, step, "check the data")
                    loss.backward()
                    del loss
                model.zero_grad()
                with same_randomness(model, last=group is groups[-1]), _looking_at_inputs(layers, probes):
                    compute_loss(model, batch)
                for name, probe in probes.items():
                    record.add(name, probe.norms())
                progress.update()
            record.num_steps += 1
    record.check()
    return record


def group_layers(pool: CostTable, units: int, most_activation: int) -> list[dict[str, int]]:
    """The layers in groups that cost no more, each with the number of its directions.

    A layer for which there is no room for a direction gets none: its norms are estimated from moments. One of which a
    channel costs too much is in no group.
    """
    groups, spent, kept = [], 0, 0
    for row in pool:
        if row.space > units or row.activation_per_channel > most_activation:
            continue
        room = min(units - row.space, most_activation - row.activation_per_channel)
        number = min(NUM_DIRECTIONS, room // max(row.positions, 1))
        activation = row.activation_per_channel + number * row.positions
        if not groups or spent + row.weight_per_channel + activation > units or kept + activation > most_activation:
            groups.append({})
            spent = kept = 0
        groups[-1][row.name] = number
        spent += row.weight_per_channel + activation
        kept += activation
    return groups


@contextmanager
def _looking_at_outputs(layers: dict[str, list], probes: dict[str, Probe]):
    modules = [(module, probes[name]) for name in layers for module in layers[name]]
    try:
        for module, probe in modules:
            module.probe = probe
        yield
    finally:
        for module, _ in modules:
            module.probe = None


@contextmanager
def _looking_at_inputs(layers: dict[str, list], probes: dict[str, Probe]):
    handles = [
        module.register_forward_pre_hook(probes[name].see_input, with_kwargs=True)
        for name in layers
        for module in layers[name]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
