"""A supported layer's weight, input channel by input channel, whether the layer is sparse or still plain."""

import torch
from torch import Tensor, nn

from .registry import sparse_type


def num_channels(layer: nn.Module) -> int:
    """Number of input channels (features) of `layer`."""
    return sparse_type(layer).num_channels(layer)


def channel_shape(layer: nn.Module) -> torch.Size:
    """Shape of one input channel's slice of the weight."""
    kind = sparse_type(layer)
    return kind.channel_view(layer, layer.weight.data).shape[kind.leading_dims :]


def read_channels(layer: nn.Module, index: Tensor) -> Tensor:
    """Copy of the weight of the channels `index` (int64 `[n]`), shape `[n, *channel_shape]`."""
    view, place = _locate(layer, index)
    return view[place]


def write_channels(layer: nn.Module, index: Tensor, values: Tensor) -> None:
    """Set the weight of the channels `index` (int64 `[n]`) to `values`, shape `[n, *channel_shape]`."""
    view, place = _locate(layer, index)
    view[place] = values.to(view.dtype)


def _locate(layer: nn.Module, index: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    # By `.data`: writing the values that are already there, between a forward and its backward, must not make autograd
    # believe that the weight has changed.
    kind = sparse_type(layer)
    view = kind.channel_view(layer, layer.weight.data)
    index = index.to(view.device)
    if kind.leading_dims == 1:
        return view, (index,)
    return view, (index // view.shape[1], index % view.shape[1])
