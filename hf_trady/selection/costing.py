"""Learns the costs of a model's layers from one forward on fake tensors."""

import itertools
import math
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import find_batch_size
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.weak import WeakIdKeyDictionary
from transformers.utils import logging

from ..calls import first_input
from ..fake import NeedsValues, as_call, fake_copy, fake_inputs, fake_mode, running
from ..layers import sparse_type, why_unsupported
from ..matching import matches
from .cost import CostTable, LayerCost


logger = logging.get_logger(__name__)


def cost_table(model: nn.Module, example_inputs: Any, exclude_modules: str | Iterable[str] | None = None) -> CostTable:
    """Costs of every Linear, Conv2d and Conv1D layer of `model`, by eq. 3 and 4 of the paper.

    Runs one forward on fake tensors: shapes only, no compute and no memory; `model` itself is not touched. Only a
    model that can't run on them (its control flow depends on values, say) is run for real, once, without gradients.

    Args:
        model: Any module.
        example_inputs: A tensor, a tuple of positional inputs or a dict of keyword inputs, of any batch size. The
            first tensor's first dimension is taken as the batch size.
        exclude_modules: Layers to leave out: name suffixes or a regex, as in PEFT.

    Returns:
        The table, without layers that the forward never called (named in a warning). A layer called several times
        counts its weight once and its input every time. Layers share an input if each of them is called once, with
        the same tensor, and their kind can keep it once (fully connected layers do, convolutions don't).

    Raises:
        ValueError: If the batch is empty, if the model would have to run but is on the meta device, or if its forward
            calls no layer.

    Example:
        >>> table = cost_table(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), torch.zeros(1, 3, 16, 16))
        >>> table.rows[0].weight_per_channel, table.rows[0].activation_per_channel
        (72, 256)
    """
    args, kwargs = as_call(example_inputs)
    batch_size = find_samples(example_inputs)
    try:
        mode = fake_mode()
        fake, (fake_args, fake_kwargs) = fake_copy(model, mode), fake_inputs(example_inputs, mode)
        with running(mode):
            calls = _record_calls(fake, fake_args, fake_kwargs, exclude_modules)
    except NeedsValues as error:
        if any(parameter.device.type == "meta" for parameter in model.parameters()):
            raise ValueError(
                f"can't learn the costs of {type(model).__name__} on the meta device: {error}; load its weights"
            ) from error
        logger.info(f"Running {type(model).__name__} once to learn the costs: {error}.")
        calls = _record_calls(model, args, kwargs, exclude_modules)
    shared = _shared_inputs(calls)
    rows = [_layer_cost(layer, batch_size, shared.get(layer.name)) for layer in calls if layer.inputs]
    idle = [layer.name for layer in calls if not layer.inputs]
    if idle and not rows:
        raise ValueError(
            f"the forward of {type(model).__name__} calls none of its {len(idle)} layers; if another Trainer has "
            "exchanged it, call calibrate before you make that Trainer"
        )
    if idle:
        logger.warning(f"Left out of the costs, as the forward never calls them: {', '.join(idle)}.")
    return CostTable(tuple(rows))


def find_samples(example_inputs: Any) -> int:
    """Number of samples in a batch: the first dimension of its first tensor.

    Raises:
        ValueError: If there is none.
    """
    args, kwargs = as_call(example_inputs)
    samples = find_batch_size(kwargs or args)
    if not samples:
        raise ValueError("example_inputs hold no sample; give a batch of at least one")
    return samples


@dataclass
class _Calls:
    """What one forward showed of the modules that share one weight.

    Attributes:
        inputs: Elements of the input, call by call.
        outputs: Elements of the output, call by call.
        tensors: A number for the input, call by call: the same wherever any layer is given the very same tensor.
        position: How many other weights were used before.
    """

    name: str
    module: nn.Module
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    tensors: list[int] = field(default_factory=list)
    position: int = -1


def _record_calls(model: nn.Module, args, kwargs, exclude_modules) -> list[_Calls]:
    by_weight: dict[int, _Calls] = {}
    numbers = WeakIdKeyDictionary()  # tensor -> its version (in-place changes make another input of it) -> number
    next_number, next_position = itertools.count(), itertools.count()
    handles = []
    for name, module in model.named_modules():
        if why_unsupported(module) or (exclude_modules is not None and matches(name, exclude_modules)):
            continue
        calls = by_weight.setdefault(id(module.weight), _Calls(name, module))

        def record(module, args, kwargs, output, calls=calls):
            x = first_input(args, kwargs)
            if not calls.inputs:
                calls.position = next(next_position)
            versions = numbers.setdefault(x, {})
            calls.tensors.append(versions.setdefault(None if x.is_inference() else x._version, next(next_number)))
            calls.inputs.append(x.numel())
            calls.outputs.append(output.numel())

        handles.append(module.register_forward_hook(record, with_kwargs=True))
    for module in model.modules():
        if isinstance(module, _DropoutNd) and module.p:
            handles.append(module.register_forward_hook(_as_in_training, with_kwargs=True))
    try:
        with _eval_mode(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return list(by_weight.values())


def _as_in_training(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
    """Another tensor than the input: in eval mode a dropout hands on what it is given."""
    return output.view_as(output) if output is first_input(args, kwargs) else output


def _shared_inputs(calls: list[_Calls]) -> dict[str, str]:
    """Layer name -> first layer that is given the very same input, for each that shares it with an earlier one."""
    first: dict[int, str] = {}
    shared = {}
    for layer in sorted(calls, key=lambda layer: layer.position):
        if len(layer.tensors) == 1 and sparse_type(layer.module).shares_input:
            name = first.setdefault(layer.tensors[0], layer.name)
            if name != layer.name:
                shared[layer.name] = name
    return shared


def _layer_cost(calls: _Calls, batch_size: int, shares_input_with: str | None) -> LayerCost:
    kind = sparse_type(calls.module)
    channels = kind.num_channels(calls.module)
    weight = kind.weight_shape(calls.module).numel() // channels
    positions_out = sum(calls.outputs) // kind.num_outputs(calls.module)
    return LayerCost(
        name=calls.name,
        channels=channels,
        weight_per_channel=weight,
        activation_per_channel=math.ceil(sum(calls.inputs) / channels / batch_size),
        macs_per_channel=math.ceil(weight * positions_out / batch_size),
        position=calls.position,
        shares_input_with=shares_input_with,
    )


@contextmanager
def _eval_mode(model: nn.Module):
    """Put every module in eval mode for the duration of the block."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
