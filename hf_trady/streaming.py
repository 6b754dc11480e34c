"""Measures the gradient of every channel inside the memory of a training step."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .layers import ActiveChannels
from .passes import nothing_moves, same_randomness
from .selection import CostTable, GradientRecord
from .selection.measuring import batches_of, default_loss, refuse_not_finite


def stream_gradients(
    model: nn.Module,
    active: ActiveChannels,
    costs: CostTable,
    pool: CostTable,
    units: int,
    dataloader: Iterable,
    *,
    num_steps: int = 10,
    compute_loss: Callable[[nn.Module, Any], Tensor] | None = None,
    disable_tqdm: bool = False,
) -> GradientRecord:
    """The gradient norm of each input channel, measured a few channels at a time.

    The channels are split at random into parts of at most `units`. For each part, the same batch goes forward and
    backward with only these channels active: each takes the memory of a training step of a random draw. The weights,
    the buffers and the active channels are in the end what they were; all gradients are None.

    Args:
        model: The wrapped model, called by `compute_loss`.
        active: Its active channels, with room for any `units`.
        costs: All layers.
        pool: Those to look at; the norms of the others are 0, as are those of channels that cost more than `units`.
        units: Elements that a part may cost.
        dataloader: Yields batches, at least one; started again when it ends.
        num_steps: Batches to measure, each of which takes a pass a part.
        compute_loss: As in [`measure_gradients`].
        disable_tqdm: Show no progress bar.

    Raises:
        ValueError: If the dataloader is empty, or the loss or a gradient is not finite.
    """
    compute_loss = compute_loss or default_loss
    record, parts = GradientRecord(costs), split(pool, units)
    batches = batches_of(dataloader)
    progress = tqdm(total=num_steps * len(parts), desc="Measuring gradients", disable=disable_tqdm)
    with nothing_moves(model, active), progress:
        for step in range(num_steps):
            batch = next(batches)
            norms = {row.name: torch.zeros(row.channels) for row in costs}
            for part in parts:
                active.assign(part)
                # All are parts of one gradient: every dropout is the same in them.
                with same_randomness(model, last=part is parts[-1]):
                    loss = compute_loss(model, batch)
                    refuse_not_finite(loss, step, "check the data")
                    loss.backward()
                    del loss
                for name, part_norms in active.gradient_norms().items():
                    norms[name][part[name]] = part_norms
                model.zero_grad()
                progress.update()
            for name in norms:
                record.add(name, norms[name])
            record.num_steps += 1
    record.check()
    return record


def split(costs: CostTable, units: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """All channels of `costs` that cost at most `units`, in random parts of at most `units`.

    Returns:
        For each part, layer name -> sorted channel indices, int64 `[n]`. Layers that share an input are in it
        together.
    """
    inputs = costs.by_input()
    spaces = inputs.spaces()
    rows = torch.arange(len(inputs)).repeat_interleave(torch.tensor([row.channels for row in inputs]))
    channels = torch.arange(len(spaces)) - torch.tensor(inputs.starts())[rows]
    parts, spent = [[]], 0
    for number in torch.randperm(len(spaces), generator=torch.Generator().manual_seed(seed)).tolist():
        space = int(spaces[number])
        if space > units:
            continue
        if spent + space > units:
            parts.append([])
            spent = 0
        parts[-1].append(number)
        spent += space
    return [
        _selection(costs, inputs, rows[torch.tensor(part)], channels[torch.tensor(part)]) for part in parts if part
    ]


def _selection(costs: CostTable, inputs: CostTable, rows: Tensor, channels: Tensor) -> dict[str, Tensor]:
    by_input = {row.name: channels[rows == i].sort().values for i, row in enumerate(inputs) if (rows == i).any()}
    return {row.name: by_input[row.input_name] for row in costs if row.input_name in by_input}
