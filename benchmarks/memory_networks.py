"""The networks of the memory benchmark and what one training step of each is.

Weights are random: they change neither the bytes nor the time of a step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM


Batch = dict[str, Tensor]
"""The inputs of a step, `labels` among them."""

CLASSES = 10


@dataclass(frozen=True)
class Network:
    """One network at one batch size.

    Attributes:
        title: What the tables call it.
        setting: Batch size and input size, in words.
        build: Makes the network.
        make_batch: Makes a batch of the given number of samples.
        samples: Batch size of the benchmark.
        head: Name of the module that every method trains whole; None where the output layer stays frozen unless
            "head only" trains it, as libraries leave it for causal language models.
        output_layer: Name of the module that makes the logits.
        layouts: Memory layouts to try.
        tracked: Whether to also ask MemTracker for the activations that are kept.
        charted: Whether the chart has a panel for it.
    """

    title: str
    setting: str
    build: Callable[[], nn.Module]
    make_batch: Callable[[int], Batch]
    samples: int
    head: str | None
    output_layer: str
    layouts: tuple[str, ...] = ("default",)
    tracked: bool = False
    charted: bool = True


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of one step; image models are called with the images, transformers models with the whole batch."""
    if "images" in batch:
        return F.cross_entropy(model(batch["images"]), batch["labels"])
    return model(**batch).loss


def _timm(name: str, samples: int, pixels: int, head: str, title: str, **options) -> Network:
    def make_batch(samples: int) -> Batch:
        return {"images": torch.randn(samples, 3, pixels, pixels), "labels": torch.randint(CLASSES, (samples,))}

    return Network(
        title=title,
        setting=f"batch {samples}, {pixels} px",
        build=lambda: timm.create_model(name, num_classes=CLASSES),
        make_batch=make_batch,
        samples=samples,
        head=head,
        output_layer=head,
        **options,
    )


def _minilm_batch(samples: int, tokens: int = 128) -> Batch:
    return {"input_ids": torch.randint(30522, (samples, tokens)), "labels": torch.randint(2, (samples,))}


def _minilm(**options) -> nn.Module:
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, **options
    )
    return BertForSequenceClassification(config)


def _llama_batch(samples: int, tokens: int = 512) -> Batch:
    ids = torch.randint(8192, (samples, tokens))
    return {"input_ids": ids, "labels": ids}


def _llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


LAYOUTS = ("default", "channels_last")
MINILM = Network(
    title="MiniLM-L6",
    setting="batch 32, 128 tokens, dropout 0.1",
    build=_minilm,
    make_batch=_minilm_batch,
    samples=32,
    head="classifier",
    output_layer="classifier",
)

NETWORKS = {
    "mobilenetv2": _timm("mobilenetv2_100", 32, 128, "classifier", title="MobileNetV2-1.0", layouts=LAYOUTS),
    "efficientnet_lite0": _timm(
        "tf_efficientnet_lite0", 32, 128, "classifier", title="EfficientNet-Lite0", layouts=LAYOUTS
    ),
    "resnet50": _timm("resnet50", 16, 224, "fc", title="ResNet-50", layouts=LAYOUTS, tracked=True),
    "vit_tiny": _timm("vit_tiny_patch16_224", 32, 224, "head", title="ViT-Tiny"),
    "minilm": MINILM,
    # On the CPU, attention with dropout takes torch's slow path, which keeps its probabilities.
    "minilm_no_dropout": replace(
        MINILM,
        title="MiniLM-L6 without dropout",
        setting="batch 32, 128 tokens",
        build=lambda: _minilm(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        charted=False,
    ),
    "llama": Network(
        title="Llama, 8 x 512",
        setting="batch 4, 512 tokens",
        build=_llama,
        make_batch=_llama_batch,
        samples=4,
        head=None,
        output_layer="lm_head",
    ),
}
