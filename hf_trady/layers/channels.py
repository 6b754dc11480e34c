"""A supported layer's weight, channel by channel, whether the layer is sparse or still plain.

Channels are the input channels (features), or those of the output where the layer trains by these.
"""

import torch
from torch import Tensor, nn

from .registry import sparse_type, why_unsupported
from .sharded import is_sharded, read_elements, write_elements


INDEX_BYTES = torch.int64.itemsize


def num_channels(layer: nn.Module) -> int:
    """Number of channels (features) of `layer`."""
    kind = sparse_type(layer)
    return kind.num_outputs(layer) if trains_outputs(layer) else kind.num_channels(layer)


def by_channel(layer: nn.Module, tensor: Tensor) -> tuple[Tensor, int]:
    """`tensor`, shaped like the weight, as a view that shares its memory, and how many leading dimensions of it, 1 or
    2, enumerate channels; the others are those of `channel_shape`."""
    kind = sparse_type(layer)
    if trains_outputs(layer):
        return kind.output_view(layer, tensor), 1
    return kind.channel_view(layer, tensor), kind.leading_dims


def channel_shape(layer: nn.Module) -> torch.Size:
    """Shape of one channel's slice of the weight."""
    view, leading = by_channel(layer, torch.empty(()).expand(weight_shape(layer)))
    return view.shape[leading:]


def weight_shape(layer: nn.Module) -> torch.Size:
    """Shape of the weight that `layer` computes with."""
    return sparse_type(layer).weight_shape(layer)


def weight_dtype(layer: nn.Module) -> torch.dtype:
    """Type of the values of a channel of `layer`."""
    return sparse_type(layer).weight_dtype(layer)


def keeps_beside(layer: nn.Module) -> bool:
    """Whether the weight of `layer` stays as it is, and channels that train are kept beside it."""
    return sparse_type(layer).beside


def read_channels(layer: nn.Module, index: Tensor) -> Tensor:
    """Copy of the weight of the channels `index` (int64 `[n]`), shape `[n, *channel_shape]`.

    Collective where the weight is sharded over processes: each must call it, and gets the same.
    """
    if is_sharded(layer.weight):
        return read_elements(layer.weight, _addresses(layer, index))
    view, place = _locate(layer, index)
    return view[place]


def write_channels(layer: nn.Module, index: Tensor, values: Tensor) -> None:
    """Set the weight of the channels `index` (int64 `[n]`) to `values`, shape `[n, *channel_shape]`."""
    if is_sharded(layer.weight):
        write_elements(layer.weight, _addresses(layer, index), values)
        return
    if keeps_beside(layer):
        layer.write(index, values)
        return
    view, place = _locate(layer, index)
    view[place] = values.to(view.dtype)


def bytes_beside(layer: nn.Module, number: int) -> int:
    """Bytes that `number` channels take beside the weight of `layer` once they have trained."""
    return number * (channel_shape(layer).numel() * weight_dtype(layer).itemsize + INDEX_BYTES)


def kept_bytes(model: nn.Module) -> int:
    """Bytes that channels which have trained take beside the weights in `model`."""
    kept = (getattr(module, "kept", None) for module in model.modules())
    return sum(channels.nbytes for channels in kept if channels is not None)


def num_elements(model: nn.Module) -> int:
    """Elements of all Parameters of `model`; of a quantized weight, those that it stands for."""
    count = sum(parameter.numel() for parameter in model.parameters())
    quantized = {id(m.weight): m for m in model.modules() if why_unsupported(m) is None and keeps_beside(m)}
    return count + sum(weight_shape(layer).numel() - layer.weight.numel() for layer in quantized.values())


def trains_outputs(layer: nn.Module) -> bool:
    """Whether the channels that train are those of the output."""
    return getattr(layer, "by_output", False)


def _outline(layer: nn.Module) -> Tensor:
    """A tensor shaped like the weight, and contiguous, without memory."""
    return torch.empty(layer.weight.shape, device="meta")


def _addresses(layer: nn.Module, index: Tensor) -> Tensor:
    """Where the elements of the channels `index` lie in the weight, counted through it in order: int64
    `[n, *channel_shape]`."""
    view, leading = by_channel(layer, _outline(layer))
    places = (index,) if leading == 1 else (index // view.shape[1], index % view.shape[1])
    address = sum(place * stride for place, stride in zip(places, view.stride()[:leading], strict=True))
    for size, stride in zip(view.shape[leading:], view.stride()[leading:], strict=True):
        address = address.unsqueeze(-1) + stride * torch.arange(size, device=index.device)
    return address


def _locate(layer: nn.Module, index: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    view, leading = by_channel(layer, sparse_type(layer).dense_weight(layer))
    index = index.to(view.device)
    if leading == 1:
        return view, (index,)
    return view, (index // view.shape[1], index % view.shape[1])
