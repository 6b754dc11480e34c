"""The base model of a saved run: what it is called, and how it is built anew."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    TimmWrapperForImageClassification,
)
from transformers.models.auto import modeling_auto as names_of
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME


# By task, PEFT's name where it has one: the auto class, and which class it makes of each type of model.
AUTO_CLASSES = {
    "SEQ_CLS": (AutoModelForSequenceClassification, names_of.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    "TOKEN_CLS": (AutoModelForTokenClassification, names_of.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    "QUESTION_ANS": (AutoModelForQuestionAnswering, names_of.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
    "CAUSAL_LM": (AutoModelForCausalLM, names_of.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "SEQ_2_SEQ_LM": (AutoModelForSeq2SeqLM, names_of.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    "IMAGE_CLS": (AutoModelForImageClassification, names_of.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
    "FEATURE_EXTRACTION": (AutoModel, names_of.MODEL_MAPPING_NAMES),
}


def base_model_name(model: nn.Module) -> str | None:
    """Hub id or path of the weights that `model` was loaded from, or what timm calls its own; None if it is unknown.

    timm leaves no trace of whether weights were loaded at all: of a plain timm model this is what they would be.
    """
    if isinstance(model, PreTrainedModel):
        return model.name_or_path or None
    given = getattr(model, "pretrained_cfg", None)
    if not isinstance(given, Mapping) or given.get("file") or given.get("state_dict"):  # weights of the user's
        return None
    name = ".".join(part for part in (given.get("architecture"), given.get("tag")) if part)
    known = _timm_weights(name)
    has_weights = known is not None and (known.hf_hub_id or known.url)
    return name if has_weights and known.hf_hub_id == given.get("hf_hub_id") else None


def architecture(model: nn.Module) -> str:
    """What the architecture of `model` is called: by timm, or the name of its class."""
    if isinstance(model, TimmWrapperForImageClassification):
        return model.config.architecture
    given = getattr(model, "pretrained_cfg", None)
    return (isinstance(given, Mapping) and given.get("architecture")) or type(model).__name__


def pinned_name(name: str) -> str:
    """`name`; that of a timm architecture with the tag of its default weights, which another timm may change."""
    known = _timm_weights(name)
    return f"{known.architecture}.{known.tag}" if known is not None and known.tag else name


def timm_repository(name: str) -> str | None:
    """The Hub repository that timm takes the weights `name` from; None if timm knows no such name or repository."""
    known = _timm_weights(name)
    return known.hf_hub_id if known is not None else None


def cached_timm_weights(name: str) -> Path | None:
    """The file of timm's weights `name` in the cache of downloads; None if it isn't there."""
    repository = timm_repository(name)
    found = try_to_load_from_cache(repository, SAFE_WEIGHTS_NAME) if repository is not None else None
    return Path(found) if isinstance(found, str) else None


def task_type(model: nn.Module) -> str | None:
    """The task that `model` is made for, a key of `AUTO_CLASSES`; None if it is no transformers model, or another."""
    if isinstance(model, PreTrainedModel):
        for task, (_, classes) in AUTO_CLASSES.items():
            made = classes.get(model.config.model_type, ())
            if type(model).__name__ in ((made,) if isinstance(made, str) else made):
                return task
    return None


def build_base_model(
    name: str | None, task: str | None, directory: Path, tensors: Mapping[str, Tensor], **kwargs: Any
) -> nn.Module:
    """The base model of a saved run, in evaluation mode, with the weights that it started from.

    Args:
        name: Hub id, path or timm architecture.
        task: A key of `AUTO_CLASSES`; None for a plain timm model.
        directory: Holds the base model's `config.json`, if it had one.
        tensors: What the run saved whole, by state-dict key: tells how many classes the head of a plain timm model
            has, and what the base model need not have.
        **kwargs: `revision`, `token`, `cache_dir`, `local_files_only` and `trust_remote_code` of transformers; timm's
            weights go by the first four where they come from the Hub.

    Raises:
        ValueError: If it can't be built; the message says why.
    """
    if name is None:
        raise ValueError("the saved run does not name its base model; pass base_model=")
    try:
        if (directory / "config.json").is_file():
            return _transformers_model(name, task, directory, tensors, kwargs).eval()
        return _timm_model(name, tensors, kwargs).eval()
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"can't build the base model '{name}' ({reason}); pass base_model=") from error


def _transformers_model(
    name: str, task: str | None, directory: Path, tensors: Mapping[str, Tensor], kwargs: dict
) -> nn.Module:
    trusted = kwargs.get("trust_remote_code", False)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=trusted)
    if timm.is_model(name):
        model = TimmWrapperForImageClassification(config)
        network = timm_network(name, kwargs, num_classes=config.num_labels)
        model.timm_model.load_state_dict(network.state_dict())
        return model
    if task not in AUTO_CLASSES:
        raise ValueError(f"its task_type is {task!r}; known are {', '.join(AUTO_CLASSES)}")
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None and not hasattr(AutoConfig.from_pretrained(name, **kwargs), "quantization_config"):
        del config.quantization_config  # says that the weights are quantized already, which these are not
        kwargs = kwargs | {"quantization_config": BitsAndBytesConfig.from_dict(quantization)}
    model, loaded = AUTO_CLASSES[task][0].from_pretrained(
        name, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
    )
    new = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])} - tensors.keys()
    if new:
        raise ValueError(
            f"neither it nor the run holds '{min(new)}', which was new or resized; name its module in modules_to_save "
            "when you fine-tune"
        )
    return model


def _timm_model(name: str, tensors: Mapping[str, Tensor], hub: Mapping[str, Any]) -> nn.Module:
    known = _timm_weights(name)
    if known is None:
        raise ValueError("timm knows no such weights, and there is no config.json of a transformers model")
    heads = (known.classifier,) if isinstance(known.classifier, str) else known.classifier or ()
    weight = next((tensors[f"{head}.weight"] for head in heads if f"{head}.weight" in tensors), None)
    return timm_network(name, hub, **({} if weight is None else {"num_classes": len(weight)}))


def timm_network(name: str, hub: Mapping[str, Any], **kwargs: Any) -> nn.Module:
    """timm's model with the weights `name`. They are downloaded here: timm takes no token and always asks the Hub.

    Args:
        name: An architecture, with a tag or without.
        hub: `revision`, `token`, `cache_dir` and `local_files_only`, as huggingface_hub takes them.
        **kwargs: For `timm.create_model`.

    Raises:
        OSError: If they can't be downloaded.
    """
    hub = {key: value for key, value in hub.items() if key != "trust_remote_code"}
    repository, overlay = timm_repository(name), None
    if repository is not None:
        try:
            file = hf_hub_download(repository, SAFE_WEIGHTS_NAME, **hub)
        except EntryNotFoundError:
            file = hf_hub_download(repository, WEIGHTS_NAME, **hub)  # which timm reads as weights alone
        overlay = {"file": file, "custom_load": False}  # as from the Hub: some architectures would read a `.npz`
    cache_dir = hub.get("cache_dir")
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache_dir, **kwargs)
    network.pretrained_cfg.pop("file", None)  # a path of this machine, beside the repository that it is a copy of
    return network


def _timm_weights(name: str) -> timm.models.PretrainedCfg | None:
    """What timm knows of its weights `name`, those of the default tag if it has none; None if it knows nothing."""
    try:
        return timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # another tag
        return None
