"""What fine-tuning over many processes sends and holds, reckoned from the sizes of a model.

Weights, gradients and AdamW's two states are of one dtype. Activations are left out: they follow from the batch of a
process and not from the number of processes.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_trady import CostTable, cost_table
from hf_trady.selection.drawing import max_weight_units


STATES = 2  # AdamW's, a trained element


@dataclass(frozen=True)
class Method:
    """What a method trains of a model, in elements.

    Attributes:
        model: All that the model holds, without what the method adds.
        added: What the method adds: LoRA's matrices, or the flat Parameter, a copy of the active channels.
        trained: What has a gradient: of TraDy the flat Parameter, the head and the biases, if they train.
        flat: Of that, the flat Parameter.
    """

    model: int
    added: int
    trained: int
    flat: int = 0


def llama_costs(config: LlamaConfig, length: int) -> CostTable:
    """Costs of the channels of a Llama at `length` tokens a sample; nothing of it is allocated."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    costs = cost_table(model, {"input_ids": torch.zeros(1, length, dtype=torch.int64)})
    return costs.subset(row.name for row in costs if row.name != "lm_head")


def llama_root(config: LlamaConfig) -> int:
    """Elements of what no block holds: embedding, last norm and output layer."""
    return (2 * config.vocab_size + 1) * config.hidden_size


def llama_methods(config: LlamaConfig, costs: CostTable, budget: float, rank: int) -> dict[str, Method]:
    """Full fine-tuning, LoRA of `rank` on all linear layers but the output's, and TraDy with `budget`, a share."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    elements = sum(parameter.numel() for parameter in model.parameters())
    layers = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"]
    lora = rank * sum(layer.in_features + layer.out_features for layer in layers)
    flat = max_weight_units(costs, int(budget * costs.total_units))
    return {
        "full": Method(elements, 0, elements),
        "lora": Method(elements, lora, lora),
        "trady": Method(elements, flat, flat, flat),
    }


def gradient_bytes(method: Method, element: int) -> int:
    """What a process hands to the all-reduce (DDP) or reduce-scatter (FSDP2) of a step; `element`: bytes of one."""
    return element * method.trained


def ddp_sent(method: Method, element: int, processes: int) -> float:
    """Bytes that a process sends in a step under DDP: a ring sends the gradients twice, but for its own part."""
    return 2 * (processes - 1) / processes * gradient_bytes(method, element)


def fsdp_gathered(method: Method, element: int, processes: int, root: int) -> float:
    """Bytes of its own parts that a process hands to the all-gathers of a step under FSDP2.

    Weights are gathered for the forward and again for the backward; those of the root, `root` elements of the model
    and the flat Parameter, once. The flat Parameter is gathered once more before, to be written back.
    """
    return element * (2 * (method.model + method.added) - root) / processes


def fsdp_sent(method: Method, element: int, processes: int, root: int) -> float:
    """Bytes that a process sends in a step under FSDP2."""
    reduced = (processes - 1) / processes * gradient_bytes(method, element)
    return (processes - 1) * fsdp_gathered(method, element, processes, root) + reduced


def ddp_memory(method: Method, element: int) -> int:
    """Bytes that a process holds under DDP at the end of a backward: weights, gradients, states of the optimizer; and
    the buckets of DDP, which are the gradients themselves (`gradient_as_bucket_view`)."""
    return element * (method.model + method.added + (1 + STATES) * method.trained)


def fsdp_memory(method: Method, element: int, processes: int) -> float:
    """The same under FSDP2, without what is gathered at a time."""
    return ddp_memory(method, element) / processes


def fsdp_gathered_at_once(method: Method, element: int, root: int, block: int) -> float:
    """Bytes of whole weights and gradients in a backward under FSDP2.

    The weights are those of the root, which stay gathered, of a block, and of the next one, which is gathered ahead;
    the gradients, before they are split, are those of what trains in the root and in a block.

    Args:
        root: Elements of the model that no block holds; the flat Parameter comes on top.
        block: Elements of a block.
    """
    gradients = method.flat or (root + block) * method.trained / (method.model + method.added)
    return element * (root + method.flat + 2 * block + gradients)


def redraw_sent(method: Method, element: int, processes: int) -> float:
    """Bytes that a process sends for a redraw under FSDP2, twice the flat Parameter's: it is gathered to be written
    back, and what it holds next is put together by an all-reduce. Under DDP nothing is sent."""
    return 3 * (processes - 1) / processes * element * method.flat
