"""Models and inputs as fake tensors: shapes, dtypes and devices, without memory or compute."""

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
    is_fake,
)
from torch.utils._pytree import tree_map_only
from transformers import masking_utils


LOGGER = logging.getLogger("torch._subclasses.fake_tensor")

# Of bitsandbytes' layers: that evaluation on a CPU with such instructions reorders the weight for good, at some sizes.
_REORDERS = "support_avx512bf16_for_cpu"


class NeedsValues(RuntimeError):
    """A forward can't run on fake tensors, though it may on real ones; the message says why."""


def fake_mode() -> FakeTensorMode:
    """A mode in which every operation computes shapes only."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextlib.contextmanager
def running(mode: FakeTensorMode) -> Iterator[None]:
    """The context in which a fake model runs.

    Raises:
        NeedsValues: If its control flow or its shapes depend on values; or it does what real tensors allow and fake
            ones don't: it converts Parameters on its way, or multiplies in groups (the experts of a mixture) in single
            precision. An error that it has on real tensors, too, can't be told from these: it is the cause.
    """
    disabled, LOGGER.disabled = LOGGER.disabled, True  # it would log the traceback of an error that is caught
    try:
        with mode:
            yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise NeedsValues(f"its control flow depends on values ({error})") from error
    except RuntimeError as error:
        line = str(error).partition("\n")[0]
        raise NeedsValues(f"it fails on fake tensors, and maybe on real ones ({line})") from error
    finally:
        LOGGER.disabled = disabled


def fake_copy(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy of `model` whose tensors are fake; those on the meta device become fake ones on the CPU."""
    with FakeCopyMode(mode):
        fake = copy.deepcopy(model, _own_copies(model, mode))
    moved: dict[int, Tensor] = {}  # by identity, so that tied weights stay tied
    for module in fake.modules():
        if _REORDERS in vars(module):
            vars(module)[_REORDERS] = False
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.device.type == "meta":
                    if id(tensor) not in moved:
                        moved[id(tensor)] = _on_cpu(tensor, mode)
                    tensors[name] = moved[id(tensor)]
    return fake


def _own_copies(model: nn.Module, mode: FakeTensorMode) -> dict[int, Any]:
    """Fake copies, by identity, of Parameters that copy themselves in a way of their own and would allocate memory:
    bitsandbytes' quantized weights. Plain Parameters with the same attributes, by which its layers go."""
    copies: dict[int, Any] = {}
    for parameter in model.parameters():
        if type(parameter).__deepcopy__ is not nn.Parameter.__deepcopy__ and not is_fake(parameter):
            data = parameter.detach().as_subclass(Tensor)
            copies[id(parameter)] = nn.Parameter(mode.from_tensor(data), requires_grad=parameter.requires_grad)
    for parameter in model.parameters():
        if id(parameter) in copies:
            vars(copies[id(parameter)]).update(copy.deepcopy(vars(parameter), copies))
    return copies


def fake_inputs(inputs: Any, mode: FakeTensorMode) -> tuple[tuple, dict]:
    """Example inputs as fake positional and keyword arguments; those on the meta device go to the CPU."""
    args, kwargs = as_call(inputs)

    def to_fake(tensor: Tensor) -> Tensor:
        return _on_cpu(tensor, mode) if tensor.device.type == "meta" else mode.from_tensor(tensor)

    return tree_map_only(Tensor, to_fake, args), tree_map_only(Tensor, to_fake, kwargs)


def as_call(example_inputs: Any) -> tuple[tuple, dict]:
    """Split example inputs (a tensor, a tuple or a dict) into positional and keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


@contextlib.contextmanager
def unpacked_sequences() -> Iterator[None]:
    """Inside this context transformers takes each row of a batch for one sequence.

    It looks at the position ids to find out, which fake tensors don't have, and would assume packed sequences: with
    a mask, and key and value heads repeated, where training has neither.
    """
    find = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = find


def _on_cpu(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake
