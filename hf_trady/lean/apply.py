"""Making a whole model backward-lean."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.utils import logging

from ..fake import NeedsValues, fake_copy, fake_inputs, fake_mode, running
from ..standin import swap_out
from .activations import GatedActivation
from .attention import make_attention_lean, make_attention_plain
from .base import LeanModule
from .batch_norm import FrozenBatchNorm
from .chains import find_chains
from .epilogue import LeanEpilogue
from .registry import make_lean


logger = logging.get_logger(__name__)


def make_model_lean(model: nn.Module, modules: Iterable[nn.Module], mode: str) -> None:
    """Turn every one of `modules`, parts of `model`, that has a stand-in in `mode` into it, in place.

    The attention of transformers models is chosen for the whole model.
    """
    if mode == "off":
        return
    for module in modules:
        make_lean(module, mode)
    make_attention_lean(model)


def make_model_plain(model: nn.Module) -> None:
    """Undo `make_model_lean`."""
    for module in model.modules():
        if isinstance(module, LeanModule):
            swap_out(module)
    make_attention_plain(model)


def join_epilogues(
    model: nn.Module, layers: Mapping[str, nn.Module], example_inputs: Any, mode: FakeTensorMode | None = None
) -> dict[str, LeanEpilogue]:
    """Let layers do the work of the norm and the activation that follow them.

    Looks at one forward on fake tensors; a model that can't run on them keeps them apart.

    Args:
        model: The model, its norms and activations lean.
        layers: By name, its sparse layers that may take an epilogue.
        example_inputs: A batch (tensor, tuple or dict of inputs).
        mode: Given if `model` is made of fake tensors of this mode already; it then goes forward itself.

    Returns:
        The epilogues, by the name of their layer.
    """
    for layer in layers.values():
        layer.epilogue = None
    try:
        if mode is None:
            mode = fake_mode()
            fake = fake_copy(model, mode)
        else:
            fake = model
        inputs = fake_inputs(example_inputs, mode)
        fake.train()
        for module in fake.modules():
            if isinstance(module, FrozenBatchNorm):
                module.training = False
        with running(mode):
            chains = find_chains(fake, *inputs)
    except NeedsValues as error:
        logger.info(f"Norms and activations stay apart from their layers; of {type(model).__name__}: {error}.")
        return {}
    for chain in chains:
        norm, activation = (name and model.get_submodule(name) for name in (chain.norm, chain.activation))
        if not isinstance(activation, GatedActivation):  # it stays as it is in this mode
            activation = None
        is_lean = norm is None or isinstance(norm, FrozenBatchNorm)
        if chain.layer in layers and is_lean and (norm is not None or activation is not None):
            layers[chain.layer].epilogue = LeanEpilogue(norm, activation)
    return {name: layer.epilogue for name, layer in layers.items() if layer.epilogue is not None}
