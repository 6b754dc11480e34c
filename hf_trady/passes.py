"""What every pass that only looks at gradients has in common: it moves nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .layers import ActiveChannels


@contextmanager
def nothing_moves(model: nn.Module, active: ActiveChannels) -> Iterator[None]:
    """Undo what the block does to the buffers of `model` and to the active channels, and drop all gradients.

    Channels that are active in the block don't count as touched.
    """
    selection = active.selection
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers()}  # batch-norms may move their statistics
    model.zero_grad()
    try:
        with active.unmarked():
            yield
    finally:
        model.zero_grad()
        active.assign(selection)
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)


def same_randomness(model: nn.Module, last: bool):
    """A context after which the random state is what it was before, unless it is the last that is to be the same."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    return torch.random.fork_rng(devices, enabled=not last)
