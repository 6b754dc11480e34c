"""The ways to fine-tune that TraDy is compared with. Each makes a plain model ready for a Trainer."""

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel

from ..targets import find_heads, outside


LORA_RANK = 8


def _full(model: PreTrainedModel, heads: list[str]) -> nn.Module:
    """Everything trains."""
    return model


def _head_only(model: PreTrainedModel, heads: list[str]) -> nn.Module:
    """The head trains."""
    model.requires_grad_(False)
    for head in heads:
        model.get_submodule(head).requires_grad_(True)
    return model


def _bias_only(model: PreTrainedModel, heads: list[str]) -> nn.Module:
    """The head and all biases and shifts train (BitFit)."""
    _head_only(model, heads)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.requires_grad_(True)
    return model


def _lora(model: PreTrainedModel, heads: list[str]) -> nn.Module:
    """The head and a LoRA of rank 8 on every linear and convolution train; PEFT has none for grouped convolutions."""
    from peft import LoraConfig, get_peft_model  # not at the top: it is optional

    targets = [
        name
        for name, module in outside(model, heads)
        if isinstance(module, nn.Linear | nn.Conv2d) and getattr(module, "groups", 1) == 1
    ]
    return get_peft_model(model, LoraConfig(r=LORA_RANK, target_modules=targets, modules_to_save=heads))


BASELINES: dict[str, Callable[[PreTrainedModel, list[str]], nn.Module]] = {
    "full": _full,
    "head_only": _head_only,
    "bias_only": _bias_only,
    "lora": _lora,
}
"""By name, what makes a plain model, whose heads are named, ready. None of them knows a budget."""


def make_baseline(name: str, model: PreTrainedModel, modules_to_save: list[str] | None = None) -> nn.Module:
    """`model`, changed so that a Trainer trains what baseline `name` trains.

    Raises:
        ImportError: If `lora` is asked for without the package `peft`.
    """
    return BASELINES[name](model, find_heads(model, modules_to_save))
