"""What a family's row of docs/architectures.md says, learned from its reference without running or allocating it."""

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from hf_trady import TraDyConfig, plan
from hf_trady.memory import predict_step
from hf_trady.targets import find_heads, find_layers

from .family import Family


CONFIG = TraDyConfig(memory_budget=0.05, strategy="static_full_random")
"""What the memory is of: 5 % of the network's units, drawn from all layers, and what else is as it is by default."""


@dataclass(frozen=True)
class Figures:
    """The figures of one reference.

    Attributes:
        layers: Layers that train by channel.
        weight_layers: Weights (of two dimensions or more) outside the head; a shared one counts once.
        elements: Elements of all Parameters.
        trainable_elements: Those of the weights of `layers` and of the head.
        untrained: What holds a weight that can't train -> elements of such weights.
        full_bytes: What full fine-tuning keeps for backward; None where that can't be predicted.
        kept_bytes: What it is with `CONFIG`; likewise.
        held_by: Operation without a lean form -> bytes of `kept_bytes` that it holds.
        refusal: Why its memory can't be predicted; None if it can.
    """

    layers: int
    weight_layers: int
    elements: int
    trainable_elements: int
    untrained: dict[str, int]
    full_bytes: int | None = None
    kept_bytes: int | None = None
    held_by: dict[str, int] = field(default_factory=dict)
    refusal: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether its memory has been predicted, or can't be."""
        return self.kept_bytes is not None or self.refusal is not None


def figures_of(family: Family, memory: bool = True) -> Figures:
    """The figures of the family's reference, `memory` among them or not."""
    model, predicted = family.build_reference(), {}
    heads = find_heads(model, None)
    layers = {name: modules[0] for name, modules in find_layers(model, heads, None).items()}
    called = set(layers)
    if memory:
        try:
            inputs = family.make_reference_inputs()
            planned = plan(model, CONFIG, inputs)
            called = set(planned.pool)
            full = predict_step(model.train(), inputs)
            predicted = {"full_bytes": full.kept, "kept_bytes": planned.step.kept, "held_by": planned.no_lean_form}
        except ValueError as error:
            predicted = {"refusal": str(error)}
    whole = {id(p) for head in heads for p in model.get_submodule(head).parameters()}
    by_channel = {id(layers[name].weight) for name in called}
    weights = {id(p): p.numel() for p in model.parameters() if _is_weight(p) and id(p) not in whole}
    elements = {id(p): p.numel() for p in model.parameters()}
    holders = _holders(model, layers)
    untrained = Counter()
    for weight in weights.keys() - by_channel:
        untrained[holders[weight]] += weights[weight]
    return Figures(
        layers=len(called),
        weight_layers=len(weights),
        elements=sum(elements.values()),
        trainable_elements=sum(elements[weight] for weight in by_channel | whole),
        untrained=dict(untrained.most_common()),
        **predicted,
    )


def _is_weight(parameter: nn.Parameter) -> bool:
    """Whether it has rows: not a bias, a scale, or a token that is the same for every sample."""
    return parameter.dim() > 1 and len(parameter) > 1


def _holders(model: nn.Module, layers: dict[str, nn.Module]) -> dict[int, str]:
    """`id` of a Parameter -> in words, the kind of module that holds it; of several, the first."""
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    holders: dict[int, str] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if module is outputs:
            kind = "output embedding"
        elif name in layers:
            kind = f"{kind} that is never called, only its weight used"
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), kind)
    return holders
