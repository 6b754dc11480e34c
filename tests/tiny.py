"""Tiny models and data, and exact comparisons, shared by the tests."""

import timm
import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from hf_trady import CostTable, LayerRanking, TraDyConfig, TraDyModel


NAMES_OPERATIONS = hasattr(torch._C._autograd.SavedTensor, "data")
"""Whether a prediction can name the operations that keep memory; see `hf_trady.memory.graph`."""


class ConvNet(nn.Module):
    """Plain, depthwise and pointwise convolutions with batch-norms, a hidden linear layer and a head."""

    def __init__(self, num_classes: int = 3, width: int = 8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm2 = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, 2 * width, 1)
        self.hidden = nn.Linear(2 * width, 2 * width)
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.stem(x)))
        x = F.relu(self.norm2(self.depthwise(x)))
        x = F.relu(self.pointwise(x)).mean((2, 3))
        return self.classifier(F.relu(self.hidden(x)))


def conv_net(seed: int = 0, **kwargs) -> ConvNet:
    """A `ConvNet` whose weights and batch-norm statistics follow from `seed`."""
    torch.manual_seed(seed)
    net = ConvNet(**kwargs)
    for norm in (net.norm1, net.norm2):
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.1, 0.3)
    return net.eval()


def bert(seed: int = 0, num_labels: int = 3, dropout: float = 0.0) -> BertForSequenceClassification:
    """A BERT classifier of two layers."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=num_labels,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config).eval()


def gpt2(seed: int = 0, kind: type = GPT2LMHeadModel, **kwargs):
    """A GPT-2 of two layers without dropout."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return kind(GPT2Config(**sizes, **dropout, bos_token_id=0, eos_token_id=0, pad_token_id=0, **kwargs)).eval()


def llama(seed: int = 0) -> LlamaForCausalLM:
    """A Llama of two layers for `word_tokenizer`."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **layers, pad_token_id=0, bos_token_id=1, eos_token_id=1)).eval()


def t5(seed: int = 0) -> T5ForConditionalGeneration:
    """A T5 of two layers in encoder and decoder, without dropout."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    special = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1}
    return T5ForConditionalGeneration(T5Config(**sizes, **special, dropout_rate=0.0)).eval()


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 40 words: three special ones, and w0, w1, ..., separated by spaces."""
    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(37))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def timm_net(seed: int = 0, name: str = "test_efficientnet", num_classes: int = 3) -> nn.Module:
    """One of timm's tiny test models."""
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=num_classes).eval()


def timm_wrapper(seed: int = 0, name: str = "test_efficientnet") -> TimmWrapperForImageClassification:
    """The same in transformers' wrapper."""
    torch.manual_seed(seed)
    return TimmWrapperForImageClassification(TimmWrapperConfig(architecture=name, num_labels=3)).eval()


def hooked(net: nn.Module) -> nn.Module:
    """`net` as `from_pretrained(device_map=...)` leaves it where it lies on several devices."""
    for module in net.modules():
        if next(module.parameters(recurse=False), None) is not None:
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    return net


def image_batch(n: int = 4, size: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images whose class shows in their brightness, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    return torch.randn(n, 3, size, size, generator=generator) + labels.view(-1, 1, 1, 1), labels


def token_batch(n: int = 4, length: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """Token ids whose class is that of the first one, and the classes."""
    ids = torch.randint(1, 40, (n, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 3}


def lm_batch(n: int = 4, length: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """Token ids that are their own labels."""
    ids = token_batch(n, length, seed)["input_ids"]
    return {"input_ids": ids, "labels": ids.clone()}


class Rows(torch.utils.data.Dataset):
    """Samples as dicts, from a dict of tensors."""

    def __init__(self, columns: dict[str, Tensor]):
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: column[i] for name, column in self.columns.items()}


def ranking_of(costs: CostTable, **scores: float) -> LayerRanking:
    """A ranking of `costs` in which all layers but those in `scores` weigh the same."""
    values = {row.name: scores.get(row.name.replace(".", "_"), 1.0) for row in costs}
    shapes = {row.name: [row.channels, row.weight_per_channel] for row in costs}
    return LayerRanking({"rgn": values, "lara": dict(values)}, shapes)


def wrap(net: nn.Module, example_inputs, budget: int | float = 0.3, **kwargs) -> TraDyModel:
    """A model that draws from all layers, gradients exact, unless `kwargs`, fields of the config, say otherwise."""
    kwargs = {"strategy": "dynamic_full_random", "lean_backward": "exact"} | kwargs
    return TraDyModel(net, TraDyConfig(memory_budget=budget, **kwargs), example_inputs)


def inputs_of(batch):
    """What a model is called with: a batch without its labels, unless they are keywords."""
    return batch if isinstance(batch, dict) else batch[0]


def loss_of(model: nn.Module, batch) -> Tensor:
    """The loss of a batch `(inputs, labels)` or of a dict of keywords."""
    if isinstance(batch, dict):
        return model(**batch).loss
    return F.cross_entropy(model(batch[0]), batch[1])


def train(model: TraDyModel, batch, epochs: int = 3, steps: int = 2, optimizer=None, lr: float = 0.05) -> list[float]:
    """Train by a plain loop that redraws every epoch; returns the losses."""
    if optimizer is None:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    model.train()
    losses = []
    for epoch in range(epochs):
        model.resample(epoch, optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    return losses


def same_draw(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two draws hold the same channels."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def copy_of_state(model: nn.Module) -> dict[str, Tensor]:
    """A state dict that shares no memory with `model`."""
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def different_keys(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The keys of two state dicts under which they are not bit-identical."""
    return sorted(a.keys() ^ b.keys()) + [key for key in a if key in b and not torch.equal(a[key], b[key])]


def anatomy(model: nn.Module) -> dict:
    """Everything about `model` that wrapping changes: classes, flags, hooks, attributes; and the identities."""
    return {
        "modules": [
            (name, id(module), type(module), module.training, sorted(vars(module)), _hooks(module))
            for name, module in model.named_modules()
        ],
        "parameters": [(name, id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()],
        "buffers": [(name, id(b)) for name, b in model.named_buffers()],
    }


# Maker and batch, by kind.
MODELS = {
    "conv": (conv_net, image_batch()),
    "bert": (bert, token_batch()),
    "gpt2": (gpt2, lm_batch()),
    "timm": (timm_net, image_batch(size=32)),
}


def _hooks(module: nn.Module) -> list[str]:
    return [name for name, value in vars(module).items() if "hooks" in name and value]
