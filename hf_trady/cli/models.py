"""The model of a run, and the transforms that turn its data into what it expects."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import timm
import torch
from datasets import Dataset, Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform, resolve_data_config
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    default_data_collator,
)
from transformers.utils import logging

from ..config import TraDyConfig
from ..hub.base_models import pinned_name, timm_network
from ..targets import find_heads
from .data import Data


logger = logging.get_logger(__name__)


@dataclass
class ModelArguments:
    """What to fine-tune."""

    model_name_or_path: str = field(
        metadata={"help": "A timm architecture, or a transformers model by Hub id or local path."}
    )
    checkpoint_path: str | None = field(
        default=None, metadata={"help": "Local weights for a timm architecture, instead of those on the Hub."}
    )
    token: str | None = field(default=None, metadata={"help": "Access token for the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})


@dataclass
class Loaded:
    """A model and its data, ready for a Trainer."""

    model: PreTrainedModel
    train_dataset: Dataset
    eval_dataset: Dataset
    data_collator: Callable
    processing_class: Any


def load_model(args: ModelArguments, config: TraDyConfig, data: Data) -> Loaded:
    """The model that `args` names, with a head for the classes of `data`, and the transformed data.

    Sets what `config` doesn't say of the base model: its name, unless its weights are local ones, and its task.

    Raises:
        ValueError: If the model can't be loaded.
    """
    if args.checkpoint_path is None:
        config.base_model_name_or_path = config.base_model_name_or_path or pinned_name(args.model_name_or_path)
    config.task_type = config.task_type or ("IMAGE_CLS" if data.is_image else "SEQ_CLS")
    model = make_model(args, config.revision, data)
    return Loaded(model, *load_datasets(args, config.revision, model, data))


def make_model(args: ModelArguments, revision: str | None, data: Data) -> PreTrainedModel:
    """The model that `args` names, with a head for the classes of `data`.

    Raises:
        ValueError: If it can't be loaded.
    """
    names = {"id2label": dict(enumerate(data.labels)), "label2id": {name: i for i, name in enumerate(data.labels)}}
    try:
        if data.is_image:
            return _image_model(args, revision, names)
        return AutoModelForSequenceClassification.from_pretrained(
            args.model_name_or_path, **_hub(args, revision), num_labels=len(data.labels), **names
        )
    except (OSError, RuntimeError) as error:
        raise _cannot_load(args, error) from error


def load_datasets(
    args: ModelArguments, revision: str | None, model: PreTrainedModel, data: Data
) -> tuple[Dataset, Dataset, Callable, Any]:
    """The data for training and evaluation as `model` takes it, the collator, and the tokenizer if there is one."""
    if data.is_image:
        return *_image_datasets(args, revision, model, data), default_data_collator, None
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path, **_hub(args, revision))
    except (OSError, RuntimeError) as error:
        raise _cannot_load(args, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    max_length = _max_length(data.args.max_seq_length, tokenizer, model)
    return *_text_datasets(tokenizer, data, max_length), DataCollatorWithPadding(tokenizer), tokenizer


def _cannot_load(args: ModelArguments, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0]
    return ValueError(f"can't load model_name_or_path='{args.model_name_or_path}': {reason}")


def _hub(args: ModelArguments, revision: str | None) -> dict:
    return {"revision": revision or "main", "token": args.token, "trust_remote_code": args.trust_remote_code}


def _image_model(args: ModelArguments, revision: str | None, names: dict) -> PreTrainedModel:
    if not timm.is_model(args.model_name_or_path):
        hub = _hub(args, revision)
        base_config = AutoConfig.from_pretrained(args.model_name_or_path, **hub, **names)
        model = AutoModelForImageClassification.from_pretrained(
            args.model_name_or_path, config=base_config, ignore_mismatched_sizes=True, **hub
        )
        return model.to(memory_format=torch.channels_last)
    num_classes = len(names["id2label"])
    if args.checkpoint_path is None:
        network = timm_network(args.model_name_or_path, _hub(args, revision), num_classes=num_classes)
    else:
        own = {"file": args.checkpoint_path, "custom_load": False}
        network = timm.create_model(
            args.model_name_or_path, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=own
        )
    wrapper_config = TimmWrapperConfig(
        architecture=args.model_name_or_path, pretrained_cfg=resolve_data_config({}, model=network), **names
    )
    model = TimmWrapperForImageClassification(wrapper_config)
    model.timm_model.load_state_dict(network.state_dict())
    for head in find_heads(model, None):  # new, as from_pretrained makes it: timm's start with logits in the tens
        model.get_submodule(head).apply(model._init_weights)
    return model.to(memory_format=torch.channels_last)  # convolutions take less memory and time so


def _image_datasets(
    args: ModelArguments, revision: str | None, model: PreTrainedModel, data: Data
) -> tuple[Dataset, Dataset]:
    """The images, augmented lightly for training, resized and normalized as the model expects."""
    if isinstance(model, TimmWrapperForImageClassification):
        expected = model.config.pretrained_cfg
        size = expected["input_size"][-1]
        mean, std = expected["mean"], expected["std"]
    else:
        processor = AutoImageProcessor.from_pretrained(args.model_name_or_path, **_hub(args, revision))
        size = processor.size.get("height") or processor.size["shortest_edge"]
        mean = getattr(processor, "image_mean", None) or IMAGENET_DEFAULT_MEAN
        std = getattr(processor, "image_std", None) or IMAGENET_DEFAULT_STD
    common = {"input_size": data.args.image_size or size, "mean": mean, "std": std, "interpolation": "bicubic"}
    train = create_transform(**common, is_training=True, scale=(0.35, 1.0), color_jitter=0.0)
    evaluation = create_transform(**common, crop_pct=1.0)

    def transformed(dataset: Dataset, transform) -> Dataset:
        def apply(batch: dict) -> dict:
            images = [transform(_read_image(image)) for image in batch[data.input_column]]
            return {"pixel_values": images, "labels": batch[data.label_column]}

        encoded = dataset.cast_column(data.input_column, Image(decode=False))
        return encoded.select_columns([data.input_column, data.label_column]).with_transform(apply)

    return transformed(data.train, train), transformed(data.eval, evaluation)


def _read_image(encoded: dict) -> PIL.Image.Image:
    """The image that `datasets` holds as `encoded`: its bytes or its path.

    Raises:
        ValueError: If it is damaged; names the file.
    """
    try:
        return Image().decode_example(encoded).convert("RGB")
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        name = encoded["path"] or f"of {len(encoded['bytes'] or b''):,} bytes"
        raise ValueError(f"can't read the image '{name}' ({error}); repair it or take it out of the data") from None


def _max_length(asked: int, tokenizer, model: PreTrainedModel) -> int:
    """How many tokens of a text the model takes, at most as many as `asked`."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions = module.num_embeddings - module.padding_idx - 1  # as RoBERTa counts: behind that of padding
    most = min(asked, tokenizer.model_max_length, positions or asked)
    if most < asked:
        logger.warning(f"max_seq_length={asked} is more than this model takes; texts are cut to {most} tokens.")
    return most


def _text_datasets(tokenizer, data: Data, max_length: int) -> tuple[Dataset, Dataset]:
    """The texts as tokens."""

    def tokenize(batch: dict, rows: list[int]) -> dict:
        texts = [text or "" for text in batch[data.input_column]]  # an empty cell of a CSV file is None
        tokens = tokenizer(texts, truncation=True, max_length=max_length)
        empty = [row for row, ids in zip(rows, tokens["input_ids"], strict=True) if not ids]
        if empty:
            raise ValueError(f"the text in row {empty[0]} of column '{data.input_column}' is empty; take it out")
        return {**tokens, "labels": batch[data.label_column]}

    return tuple(
        dataset.map(tokenize, batched=True, with_indices=True, remove_columns=dataset.column_names, desc="Tokenizing")
        for dataset in (data.train, data.eval)
    )
