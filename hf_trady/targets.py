"""Which modules of a model train whole, which may train by channel, and which are refused."""

import re
from collections.abc import Iterable, Iterator

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .layers import SPARSE_LAYERS, keeps_beside, sparse_type, why_unsupported
from .matching import matches


logger = logging.get_logger(__name__)

# Of transformers: the models in which everything but the backbone is new, and what the head is called where a model
# has no backbone by that name.
CLASSIFIERS = re.compile(r"For(\w+Classification|QuestionAnswering|MultipleChoice)")
HEAD_NAMES = ("classifier", "score", "qa_outputs")


def refuse_quantization(model: nn.Module) -> None:
    """Refuse a transformers model that is quantized in a way in which no channel of it could train.

    Raises:
        ValueError: Names the way.
    """
    method = getattr(model, "quantization_method", None)
    method = getattr(method, "value", method)
    if method is not None and not str(method).startswith("bitsandbytes"):
        raise ValueError(
            f"the base model is quantized by '{method}', of which no channel can train; load it by "
            "BitsAndBytesConfig (in 4 or 8 bits), or not quantized"
        )


def refuse_output_channels(strategy: str, targets: list[nn.Module]) -> None:
    """Refuse `strategy`, which trains output channels, if the weight of a target is quantized.

    Raises:
        ValueError: Names the strategy.
    """
    if any(keeps_beside(layer) for layer in targets):
        raise ValueError(
            f"strategy='{strategy}' trains output channels, which quantized weights don't allow; choose another"
        )


def find_heads(model: nn.Module, modules_to_save: list[str] | None) -> list[str]:
    """Names of the modules that train whole, outside the budget.

    Args:
        model: The base model.
        modules_to_save: Name suffixes; None takes the classifier that a timm model names, or else what a transformers
            model for classification, question answering or multiple choice has outside its backbone, or else direct
            children that are called as heads are. A causal language model then has none.

    Raises:
        ValueError: If a suffix matches nothing, or a head is quantized.
    """
    names = [name for name, _ in model.named_modules() if name]
    if modules_to_save is None:
        heads = _timm_classifiers(model) or _outside_backbone(model)
        heads = [name for name in heads if next(model.get_submodule(name).parameters(), None) is not None]
    else:
        _refuse_idle("modules_to_save", modules_to_save, names, model)
        heads = [name for name in names if matches(name, modules_to_save)]
    for head in heads:
        for name, parameter in model.get_submodule(head).named_parameters():
            if not parameter.is_floating_point():
                raise ValueError(
                    f"'{head}' can't train whole: its '{name}' is quantized; load the model with it in "
                    "llm_int8_skip_modules, or leave it out of modules_to_save"
                )
    return [name for name in heads if not _is_inside(name, set(heads) - {name})]


def find_layers(model: nn.Module, heads: list[str], exclude_modules: list[str] | str | None) -> dict[str, list]:
    """All layers that can train by channel, outside `heads`: name -> the modules that share its weight.

    The output embedding of a language model is left out, like anything that `exclude_modules` names. So are layers
    whose weight something else holds, too: the gradient that comes by that would be missing.

    Raises:
        ValueError: If `exclude_modules` matches nothing, or accelerate holds the weights elsewhere between calls.
    """
    _refuse_offloaded(model)
    if exclude_modules is not None:
        _refuse_idle("exclude_modules", exclude_modules, [name for name, _ in model.named_modules()], model)
    layers = _candidates(model, heads, exclude_modules)
    reasons = _why_not(model, heads, layers)
    for reason in dict.fromkeys(reasons.values()):
        names = [name for module, name in layers.items() if reasons.get(module) == reason]
        logger.warning(f"Not trained by channel: {', '.join(names)} ({reason}).")
    by_weight: dict[int, tuple[str, list]] = {}
    for module, name in layers.items():
        if module not in reasons:
            by_weight.setdefault(id(module.weight), (name, []))[1].append(module)
    return dict(by_weight.values())


def select_targets(
    model: nn.Module, layers: dict[str, list], heads: list[str], target_modules: list[str] | str
) -> list[str]:
    """Names of the layers that `target_modules` names ('all': every one in `layers`).

    Raises:
        ValueError: If it names nothing, or a layer that can't train by channel.
    """
    names = set(layers)
    if target_modules != "all":
        _refuse_idle("target_modules", target_modules, [name for name, _ in model.named_modules()], model)
        reasons = _why_not(model, heads, _candidates(model, heads))
        for name, module in model.named_modules():
            holds_weights = next(module.parameters(recurse=False), None) is not None
            reason = reasons.get(module) or (why_unsupported(module) if holds_weights else None)
            if reason and matches(name, target_modules) and not _is_inside(name, heads):
                raise ValueError(f"target_modules={target_modules!r}: '{name}' can't be trained by channel: {reason}")
        names = {name for name in layers if matches(name, target_modules)}
    if not names:
        raise ValueError(
            f"target_modules={target_modules!r} leaves no layer of {type(model).__name__} to train by channel; "
            f"supported are {', '.join(sorted(cls.__name__ for cls in SPARSE_LAYERS))} outside the head"
        )
    return [name for name in layers if name in names]


def find_biases(
    model: nn.Module, targets: list[nn.Module], heads: list[str], number: bool | int = True
) -> dict[str, nn.Parameter]:
    """State-dict key -> bias, of each layer in `targets` and of each normalization layer outside `heads`.

    Args:
        model: The base model.
        targets: The layers that may be updated.
        heads: Names of the modules that train whole.
        number: Only the last so many; True: all of them, False: none.

    Raises:
        ValueError: If there are fewer.
    """
    biases = {
        f"{name}.bias": module.bias
        for name, module in outside(model, heads)
        # Every library calls its normalization layers so; there is no base class.
        if getattr(module, "bias", None) is not None and (module in targets or "Norm" in type(module).__name__)
    }
    if isinstance(number, bool):
        return biases if number else {}
    if number > len(biases):
        raise ValueError(f"train_bias={number} is more than the {len(biases)} biases of {type(model).__name__}")
    return dict(list(biases.items())[-number:])


def outside(model: nn.Module, heads: list[str]) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of everything in `model` that is not inside `heads`."""
    return ((name, module) for name, module in model.named_modules() if not _is_inside(name, heads))


def _refuse_offloaded(model: nn.Module) -> None:
    for name, module in model.named_modules():
        hook = vars(module).get("_hf_hook")
        if any(getattr(part, "offload", False) for part in getattr(hook, "hooks", [hook])):
            raise ValueError(
                f"the weights of '{name}' are offloaded and can't train there; load the model with a device_map "
                "without 'disk', and without 'cpu' beside a GPU"
            )


def _candidates(
    model: nn.Module, heads: list[str], exclude_modules: list[str] | str | None = None
) -> dict[nn.Module, str]:
    """The layers of a kind that trains by channel, with their names, outside `heads` and what is to be left out."""
    output_layer = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        module: name
        for name, module in outside(model, heads)
        if sparse_type(module) is not None
        and module is not output_layer
        and not (exclude_modules is not None and matches(name, exclude_modules))
    }


def _why_not(model: nn.Module, heads: list[str], candidates: Iterable[nn.Module]) -> dict[nn.Module, str]:
    """Those of `candidates` that can't train by channel, each with the reason."""
    reasons = {module: reason for module in candidates if (reason := why_unsupported(module)) is not None}
    layers = {module for module in candidates if module not in reasons}
    holders: dict[int, str] = {}  # of each Parameter that something else holds, by its id
    for name, module in model.named_modules():
        if module not in layers:
            how = "trains whole" if _is_inside(name, heads) else "does not train by channel"
            for parameter in module.parameters(recurse=False):
                holders.setdefault(id(parameter), f"'{name}' ({type(module).__name__}), which {how}")
    tied = {module for module in layers if id(module.weight) in holders}
    return reasons | {module: f"its weight is also that of {holders[id(module.weight)]}" for module in tied}


def _timm_classifiers(model: nn.Module) -> list[str]:
    names = []
    for prefix, module in model.named_modules():
        config = getattr(module, "pretrained_cfg", None)
        if isinstance(config, dict) and hasattr(module, "get_classifier"):
            classifier = config.get("classifier") or []
            classifier = [classifier] if isinstance(classifier, str) else list(classifier)
            names += [f"{prefix}.{name}" if prefix else name for name in classifier]
    return names


def _outside_backbone(model: nn.Module) -> list[str]:
    children = [name for name, _ in model.named_children()]
    backbone = getattr(model, "base_model_prefix", None)
    if isinstance(model, PreTrainedModel) and backbone in children and CLASSIFIERS.search(type(model).__name__):
        return [name for name in children if name != backbone]
    return [name for name in children if name in HEAD_NAMES]


def _is_inside(name: str, modules) -> bool:
    """Whether module `name` is one of `modules` or lies inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _refuse_idle(field: str, pattern: list[str] | str, names: list[str], model: nn.Module) -> None:
    for part in [pattern] if isinstance(pattern, str) else pattern:
        if not any(matches(name, part if isinstance(pattern, str) else [part]) for name in names):
            raise ValueError(f"{field}={pattern!r}: {part!r} matches no module of {type(model).__name__}")
