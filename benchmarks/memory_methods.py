"""The fine-tuning methods that the memory benchmark compares: each makes a network ready for a training step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from memory_networks import Network
from torch import nn

from hf_trady import TraDyConfig, TraDyModel, cost_table


SHARE = 0.05
"""Share of the input channels of every layer outside the head that is active in ours."""

PACA_CHANNELS = 8
LORA_RANK = 8


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
        title: What the tables call it.
        prepare: Takes a fresh network and its description; returns the model to train, or None where the network has
            nothing to train by this method.
        trains: False for inference alone.
    """

    title: str
    prepare: Callable[[nn.Module, Network], nn.Module | None]
    trains: bool = True


def _inference(model: nn.Module, network: Network) -> nn.Module:
    return model.eval()


def _full(model: nn.Module, network: Network) -> nn.Module:
    return model.train()


def _full_checkpointed(model: nn.Module, network: Network) -> nn.Module:
    return _checkpoint(model).train()


def _head_only(model: nn.Module, network: Network) -> nn.Module:
    model.requires_grad_(False)
    model.get_submodule(network.output_layer).requires_grad_(True)
    return model.train()


def _bitfit(model: nn.Module, network: Network) -> nn.Module | None:
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    if not biases:
        return None
    model.requires_grad_(False)
    if network.head:
        model.get_submodule(network.head).requires_grad_(True)
    for bias in biases:
        bias.requires_grad_(True)
    return model.train()


def _lora(model: nn.Module, network: Network) -> nn.Module:
    """LoRA on every linear and convolution outside the output layer; PEFT has none for depthwise convolutions."""
    from peft import LoraConfig, get_peft_model  # not at the top: no other method's process should pay for it

    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and getattr(module, "groups", 1) == 1
        and name != network.output_layer
    ]
    config = LoraConfig(r=LORA_RANK, target_modules=targets, modules_to_save=[network.head] if network.head else None)
    return get_peft_model(model, config).train()


def _sparse(
    channels: Callable[[int], int], lean_backward: str, checkpointed: bool = False
) -> Callable[[nn.Module, Network], nn.Module]:
    """TraDyModel with `channels(C)` random input channels active in every layer of C input channels."""

    def prepare(model: nn.Module, network: Network) -> nn.Module:
        if checkpointed:
            _checkpoint(model)
        inputs = {name: value for name, value in network.make_batch(2).items() if name != "labels"}
        example = inputs.get("images", inputs)
        costs = cost_table(model, example, exclude_modules=[network.output_layer])
        inputs = costs.by_input()  # layers that share an input train the same channels of it
        generator = torch.Generator().manual_seed(0)
        drawn = {
            row.name: torch.randperm(row.channels, generator=generator)[: channels(row.channels)].sort().values
            for row in inputs
        }
        config = TraDyConfig(
            memory_budget=sum(inputs[name].space * len(index) for name, index in drawn.items()),
            strategy="dynamic_full_random",
            lean_backward=lean_backward,
        )
        wrapped = TraDyModel(model, config, example_inputs=example)
        wrapped.active.assign({row.name: drawn[row.input_name] for row in costs})
        return wrapped.train()

    return prepare


def _checkpoint(model: nn.Module) -> nn.Module:
    """Turn on the model's own activation checkpointing: transformers' or timm's, neither reentrant."""
    if hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.set_grad_checkpointing()
    return model


def _five_percent(channels: int) -> int:
    return max(1, int(SHARE * channels))


def _paca_channels(channels: int) -> int:
    return min(PACA_CHANNELS, channels)


METHODS = {
    "inference": Method("inference", _inference, trains=False),
    "full": Method("full fine-tuning", _full),
    "full_checkpointed": Method("full + checkpointing", _full_checkpointed),
    "lora": Method(f"LoRA, r = {LORA_RANK}", _lora),
    "bitfit": Method("BitFit (biases)", _bitfit),
    "head": Method("head only", _head_only),
    "paca": Method(f"PaCA-style, {PACA_CHANNELS} channels", _sparse(_paca_channels, "off")),
    "sparse": Method("TraDy, sparse layers only", _sparse(_five_percent, "off")),
    "exact": Method("TraDy, lean, exact", _sparse(_five_percent, "exact")),
    "compressed": Method("TraDy, lean", _sparse(_five_percent, "compressed")),
    "compressed_checkpointed": Method(
        "TraDy, lean + checkpointing", _sparse(_five_percent, "compressed", checkpointed=True)
    ),
}
