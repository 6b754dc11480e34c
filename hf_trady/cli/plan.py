"""Show what a memory budget buys and what a training step takes, before anything is trained.

Takes a timm architecture, a transformers id or a local path, of which only config.json is read; the fields of
TraDyConfig; and the size of a batch. No weights are loaded: a model that this machine can't hold can be planned here.
"""

from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from timm.data import resolve_data_config
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    Trainer,
    TrainingArguments,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

from ..config import TraDyConfig
from ..memory import StepSetup, parse_budget, reserved_share
from ..planner import max_batch_size, plan
from ..plots import plot_memory
from .arguments import VerbParser
from .checks import check_counts
from .config import TraDyArguments
from .models import ModelArguments


TASKS = {
    "causal-lm": AutoModelForCausalLM,
    "image-classification": AutoModelForImageClassification,
    "text-classification": AutoModelForSequenceClassification,
}

MAIN = (
    "model_name_or_path", "memory_budget", "strategy", "layer_ranking", "batch_size", "image_size", "seq_length",
    "task", "optim", "dtype", "gradient_checkpointing", "find_batch_size", "output_dir",
)  # fmt: skip
EXAMPLE = "trady plan --model_name_or_path mobilenetv2_100 --memory_budget 64MiB --layer_ranking auto"


@dataclass
class PlanArguments:
    """What a training step is."""

    batch_size: int = field(default=8, metadata={"help": "Samples of a batch."})
    image_size: int | None = field(default=None, metadata={"help": "Pixels square; default: what the model expects."})
    seq_length: int = field(default=128, metadata={"help": "Tokens of a text."})
    num_labels: int = field(default=10, metadata={"help": "Classes of the head."})
    task: str | None = field(
        default=None,
        metadata={"help": f"One of {', '.join(TASKS)}; default: what the config's architecture says, or its kind."},
    )
    optim: str = field(default="adamw_torch", metadata={"help": "The optimizer, by its name in TrainingArguments."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights: float32, bfloat16 or float16."})
    bf16: bool = field(default=False, metadata={"help": "Run the forward under autocast to bfloat16."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations in backward."})
    find_batch_size: bool = field(
        default=False, metadata={"help": "Also find the largest batch size for a budget in bytes (takes longer)."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Write plan.json and memory.png there."})


def make_parser() -> VerbParser:
    """The parser of `trady plan`."""
    return VerbParser((ModelArguments, TraDyArguments, PlanArguments), "plan", __doc__, MAIN, EXAMPLE)


def run(model_args: ModelArguments, config: TraDyArguments, args: PlanArguments) -> tuple[int, dict]:
    """Print the plan, and write it if asked to.

    Returns:
        The exit code, 0, or 1 if no draw stays inside the budget; and the plan.
    """
    config = TraDyConfig.from_dict(config.to_dict())
    check_counts(args, "batch_size", "image_size", "seq_length", "num_labels")
    budget = parse_budget(config.memory_budget)
    if args.find_batch_size and budget.kind != "bytes":
        raise ValueError(
            f"find_batch_size needs a budget in bytes, such as --memory_budget 256MiB, not {config.memory_budget}"
        )
    model, inputs = _load(model_args, args, config.revision)
    model = model.to(_dtype(args.dtype))
    if args.gradient_checkpointing:
        if not hasattr(model, "gradient_checkpointing_enable"):
            raise ValueError("gradient_checkpointing is for transformers models only, and this is one of timm")
        model.gradient_checkpointing_enable({"use_reentrant": False})
    training = TrainingArguments(output_dir=args.output_dir or "unused", optim=args.optim, report_to="none")
    optimizer = Trainer.get_optimizer_cls_and_kwargs(training)
    setup = StepSetup(
        *optimizer,
        autocast_dtype=torch.bfloat16 if args.bf16 else None,
        reserve=reserved_share(budget.value if budget.kind == "bytes" else None, training.device),
    )
    try:
        found = plan(model, config, inputs, setup=setup)
    except AssertionError as error:  # by which networks of timm refuse a size
        name, reason = model_args.model_name_or_path, str(error).rstrip(".")
        raise ValueError(f"{name} doesn't take such a batch: {reason}; give another image_size") from error
    print(found)
    result = found.to_dict()
    if args.find_batch_size:
        result["max_batch_size"] = max_batch_size(model, config, inputs, setup=setup)
        print(f"Largest batch size for {config.memory_budget}: {result['max_batch_size']:,}")
    if args.output_dir is not None:
        output = Path(args.output_dir)
        found.save(output / "plan.json")
        plot_memory(found, output / "memory.png", title=f"{model_args.model_name_or_path}, {config.memory_budget}")
        print(f"Written to {output}: plan.json, memory.png")
    return 0 if found.fits else 1, result


def _dtype(name: str) -> torch.dtype:
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ValueError(f"dtype='{name}' is not allowed; it must be one of {', '.join(dtypes)}")
    return dtypes[name]


def _load(args: ModelArguments, batch: PlanArguments, revision: str | None) -> tuple[nn.Module, object]:
    """The model on the meta device, and a batch.

    Raises:
        ValueError: If the model or its task is unknown.
    """
    name = args.model_name_or_path
    if timm.is_model(name):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=batch.num_labels)
        size = batch.image_size or resolve_data_config({}, model=model)["input_size"][-1]
        return model, torch.empty(batch.batch_size, 3, size, size, device="meta", dtype=_input_dtype(batch))
    try:
        config = AutoConfig.from_pretrained(
            name, revision=revision or "main", token=args.token, trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"can't load model_name_or_path='{name}': {str(error).strip().splitlines()[0]}") from error
    task = batch.task or _task(config)
    if task not in TASKS:
        raise ValueError(f"task='{task}' is not allowed; it must be one of {', '.join(TASKS)}")
    config.num_labels = batch.num_labels
    with torch.device("meta"):
        model = TASKS[task].from_config(config, trust_remote_code=args.trust_remote_code)
    labels = torch.zeros(batch.batch_size, dtype=torch.long, device="meta")
    if task == "image-classification":
        size = batch.image_size or getattr(config, "image_size", 224)
        pixels = torch.empty(batch.batch_size, 3, size, size, device="meta", dtype=_input_dtype(batch))
        return model, {"pixel_values": pixels, "labels": labels}
    ids = torch.zeros(batch.batch_size, batch.seq_length, dtype=torch.long, device="meta")
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # by it a text classifier finds the last token of each text
    mask = {} if task == "causal-lm" else {"attention_mask": torch.ones_like(ids)}
    return model, {"input_ids": ids, **mask, "labels": ids if task == "causal-lm" else labels}


def _input_dtype(batch: PlanArguments) -> torch.dtype:
    return torch.float32 if batch.bf16 else _dtype(batch.dtype)


def _task(config: PreTrainedConfig) -> str:
    """What the config's architecture is for, or else what a model of its kind most often is."""
    architecture = (config.architectures or [""])[0]
    if architecture.endswith("ForSequenceClassification"):
        return "text-classification"
    if architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return "causal-lm"
    if config.model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "image-classification"
    is_bidirectional = config.model_type in ("bert", "roberta", "distilbert", "electra", "deberta-v2", "albert")
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_bidirectional
    return "causal-lm" if causal else "text-classification"
