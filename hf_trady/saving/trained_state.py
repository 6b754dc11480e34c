"""What training has changed in a base model: collecting it, checking that it fits another, putting it there."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from ..layers import (
    KEPT_INDEX,
    by_channel,
    channel_shape,
    keeps_beside,
    mark,
    num_channels,
    put,
    read_channels,
    sparse_type,
    trains_outputs,
    weight_dtype,
    whole,
    write_channels,
)
from .weights_file import TrainedState, checksum


def buffer_checksums(model: nn.Module) -> dict[str, int]:
    """Checksum of every buffer that a state dict of `model` holds; none of a fake one, which has no values."""
    saved = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._buffers.keys() - module._non_persistent_buffers_set
    }
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in saved)
    return {name: checksum(buffer) for name, buffer in buffers if not is_fake(buffer)}


def collect_state(
    model: nn.Module,
    layers: Mapping[str, Sequence[nn.Module]],
    touched: Mapping[str, Tensor],
    whole_keys: Iterable[str],
    buffer_sums: Mapping[str, int],
) -> TrainedState:
    """What training has changed in `model`, whose active channels have been written back. Collective where sharded.

    Args:
        model: The base model.
        layers: Name -> modules of every layer that can train by channel.
        touched: Layer name -> bool `[C]`, the channels that training may have changed.
        whole_keys: State-dict keys of the Parameters that train whole.
        buffer_sums: What `buffer_checksums` gave before training.
    """
    tensors = model.state_dict()
    changed = {name for name, value in buffer_checksums(model).items() if value != buffer_sums.get(name)}
    state = TrainedState(
        channels={}, tensors={key: whole(tensors[key]) for key in sorted({*whole_keys, *changed})}, witnesses={}
    )
    for name, (layer, *_) in layers.items():
        mask = touched.get(name, torch.zeros(num_channels(layer), dtype=torch.bool))
        index, frozen = mask.nonzero().flatten(), (~mask).nonzero().flatten()
        values = read_channels(layer, index)
        saves_whole = index.nbytes + values.nbytes >= layer.weight.nbytes or (trains_outputs(layer) and len(index))
        if saves_whole and not keeps_beside(layer):
            state.tensors[f"{name}.weight"] = whole(tensors[f"{name}.weight"])
        elif len(index):
            state.channels[name] = (index, values)
        if len(frozen) and not trains_outputs(layer):
            state.witnesses[name] = _witness(layer, int(frozen[0]))
    return state


def touch_changed(layers: Mapping[str, Sequence[nn.Module]], touched: dict[str, Tensor], state_dict: Mapping) -> None:
    """Mark the channels in which `state_dict` differs from the weights that it is about to replace."""
    for name, (layer, *_) in layers.items():
        new = state_dict.get(f"{name}.weight")
        if keeps_beside(layer):
            _touch_kept(touched, name, layer, state_dict)
        elif new is not None and new.shape == layer.weight.shape:
            differs, leading = by_channel(layer, new.to(layer.weight.device) != layer.weight)
            mark(touched, name, differs.flatten(leading).any(-1).flatten().cpu())


def mark_touched(touched: dict[str, Tensor], layers: Mapping[str, Sequence[nn.Module]], state: TrainedState) -> None:
    """Mark the channels that `state` holds."""
    for name, (layer, *_) in layers.items():
        if f"{name}.weight" in state.tensors:
            mark(touched, name, torch.ones(num_channels(layer), dtype=torch.bool))
        elif name in state.channels:
            mask = torch.zeros(num_channels(layer), dtype=torch.bool)
            mask[state.channels[name][0]] = True
            mark(touched, name, mask)


def left_alone_as_in(
    path: Path, layers: Mapping[str, Sequence[nn.Module]], touched: Mapping[str, Tensor], prefix: str
) -> bool:
    """Whether all channels that training has left alone are those in the safetensors file `path`.

    Args:
        path: Weights of the plain model, such as the base model was loaded from; read a layer at a time.
        layers: As for `collect_state`; none of them fake, sharded or quantized.
        touched: As for `collect_state`.
        prefix: What the names of layers have before those of the file: `"timm_model"`, or nothing.
    """
    found = False
    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
        for name, (layer, *_) in layers.items():
            key = f"{name.removeprefix(f'{prefix}.')}.weight"
            if key in keys:
                differing: dict[str, Tensor] = {}
                tensor = file.get_tensor(key).to(layer.weight.dtype)
                found |= tensor.shape == layer.weight.shape
                touch_changed({name: [layer]}, differing, {f"{name}.weight": tensor})
                left_alone = ~touched.get(name, torch.zeros(num_channels(layer), dtype=torch.bool))
                if name in differing and (differing[name] & left_alone).any():
                    return False
    return found


def is_covered(touched: Mapping[str, Tensor], state: TrainedState) -> bool:
    """Whether `state` holds every channel of `touched`."""
    for name, mask in touched.items():
        left = mask.clone()
        if name in state.channels:
            left[state.channels[name][0]] = False
        if left.any() and f"{name}.weight" not in state.tensors:
            return False
    return True


def refuse_misfit(model: nn.Module, state: TrainedState) -> None:
    """Refuse a base model, plain or wrapped, other than the one that `state` was trained from.

    Raises:
        ValueError: Names the first thing that doesn't fit.
    """
    tensors, modules = model.state_dict(), dict(model.named_modules())
    for key, value in state.tensors.items():
        if key not in tensors:
            raise _misfit(f"it has no '{key}'")
        if tensors[key].shape != value.shape:
            raise _misfit(f"'{key}' has shape {list(tensors[key].shape)} there and {list(value.shape)} here")
        _refuse_bad_kind(key, value, tensors[key].dtype)
    for name, (index, values) in state.channels.items():
        layer = modules.get(name)
        if layer is None or sparse_type(layer) is None:
            raise _misfit(f"it has no layer '{name}'")
        _refuse_bad_index(name, index, num_channels(layer))
        shape = [len(index), *channel_shape(layer)]
        if list(values.shape) != shape:
            raise _misfit(f"the channels of '{name}' have shape {shape} there and {list(values.shape)} here")
        _refuse_bad_kind(name, values, weight_dtype(layer))
    for name, (channel, dtype, expected) in state.witnesses.items():
        layer = modules.get(name)
        if layer is None or sparse_type(layer) is None or not 0 <= channel < num_channels(layer):
            raise _misfit(f"it has no channel {channel} in a layer '{name}'")
        # A base model that is loaded in another precision can't be told from a wrong one.
        _, own_dtype, own = _witness(layer, channel)
        if dtype == own_dtype and own != expected:
            raise _misfit(f"the frozen weights of '{name}' are not those that training started from")


@torch.no_grad()
def restore_state(model: nn.Module, state: TrainedState) -> None:
    """Put `state` into `model`. Call `refuse_misfit` first."""
    tensors, modules = model.state_dict(), dict(model.named_modules())
    for key, value in state.tensors.items():
        put(tensors[key], value.to(tensors[key].device))
    for name, (index, values) in state.channels.items():
        write_channels(modules[name], index, values.to(modules[name].weight.device))


def _witness(layer: nn.Module, channel: int) -> list:
    """Tells whether another layer has the same weight in `channel`: `[channel, dtype or format, checksum]`."""
    found = sparse_type(layer).witness(layer, channel)
    form, values = found or (str(layer.weight.dtype), read_channels(layer, torch.tensor([channel])))
    return [channel, form, checksum(values)]


def _touch_kept(touched: dict[str, Tensor], name: str, layer: nn.Module, state_dict: Mapping) -> None:
    """Mark the channels that `state_dict` keeps beside the quantized weight of `layer`."""
    index = state_dict.get(f"{name}.{KEPT_INDEX}")
    if index is not None:
        mask = torch.zeros(num_channels(layer), dtype=torch.bool)
        mask[index] = True
        mark(touched, name, mask)


def _misfit(what: str) -> ValueError:
    return ValueError(f"the base model is not the one that was fine-tuned: {what}")


def _refuse_bad_kind(name: str, value: Tensor, there: torch.dtype) -> None:
    """Refuse integers for floats and the like; another precision is none of that."""
    if value.is_complex() or value.is_floating_point() != there.is_floating_point:
        raise _misfit(f"'{name}' is of {there} there and of {value.dtype} here")


def _refuse_bad_index(name: str, index: Tensor, channels: int) -> None:
    ascending = index.dim() == 1 and index.dtype == torch.int64 and bool((index[1:] > index[:-1]).all())
    if not ascending or (len(index) and not 0 <= int(index[0]) <= int(index[-1]) < channels):
        raise ValueError(f"the saved channel indices of '{name}' are not distinct and within [0, {channels})")
