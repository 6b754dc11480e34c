"""Making a whole model backward-lean."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers.utils import logging

from ..fake import VALUE_DEPENDENT, fake_copy, fake_inputs, fake_mode
from ..standin import swap_out
from .attention import make_attention_lean, make_attention_plain
from .base import LeanModule
from .batch_norm import FrozenBatchNorm
from .chains import find_chains
from .epilogue import ConvEpilogue
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


def join_epilogues(model: nn.Module, convs: Mapping[str, nn.Module], example_inputs: Any) -> dict[str, ConvEpilogue]:
    """Let convolutions do the work of the norm and the activation that follow them.

    Looks at one forward on fake tensors; a model whose shapes or control flow depend on values keeps them apart.

    Args:
        model: The model, its norms and activations lean.
        convs: By name, its sparse convolutions that may take an epilogue.
        example_inputs: A batch (tensor, tuple or dict of inputs).

    Returns:
        The epilogues, by the name of their convolution.
    """
    for conv in convs.values():
        conv.epilogue = None
    try:
        mode = fake_mode()
        fake, inputs = fake_copy(model, mode), fake_inputs(example_inputs, mode)
        fake.train()
        for module in fake.modules():
            if isinstance(module, FrozenBatchNorm):
                module.training = False
        with mode:
            chains = find_chains(fake, *inputs)
    except VALUE_DEPENDENT as error:
        logger.info(f"Norms stay apart from their convolutions, as the model's shapes depend on values ({error}).")
        return {}
    for chain in chains:
        norm = model.get_submodule(chain.norm)
        if chain.conv in convs and isinstance(norm, FrozenBatchNorm):
            activation = None if chain.activation is None else model.get_submodule(chain.activation)
            convs[chain.conv].epilogue = ConvEpilogue(norm, activation)
    return {name: conv.epilogue for name, conv in convs.items() if conv.epilogue is not None}
