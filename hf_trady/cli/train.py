"""Fine-tune a model on images or texts inside a memory budget.

Takes a timm architecture, a transformers id or a local path; a Hub dataset, a local folder of images (one folder a
class) or local CSV / JSON files of texts; the fields of TraDyConfig; and every TrainingArguments by its own name.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainerCallback, TrainingArguments, set_seed

from ..config import TraDyConfig
from ..history import DrawHistory
from ..model import TraDyModel
from ..reporting.charts import plot_updates
from ..training import TraDyTrainer
from ..training.progress import use_epoch_table
from .arguments import VerbParser
from .checks import check_training_arguments
from .config import TraDyArguments
from .data import DataArguments, load_data
from .metrics import make_metrics
from .models import ModelArguments, load_model
from .stage import Stage


MAIN = (
    "model_name_or_path", "dataset_name", "memory_budget", "strategy", "layer_ranking", "num_train_epochs",
    "per_device_train_batch_size", "learning_rate", "max_train_samples", "seed", "output_dir",
)  # fmt: skip
EXAMPLE = "trady train --model_name_or_path mobilenetv2_100 --dataset_name photos/ --memory_budget 64MiB"


@dataclass
class TrainArguments(TrainingArguments):
    """TrainingArguments with the defaults of an interactive run: an evaluation and a log each epoch."""

    output_dir: str = field(default="runs/trady", metadata={"help": "Where the run is written."})
    do_train: bool = field(default=True, metadata={"help": "Only true is allowed."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint."})
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints to keep."})
    report_to: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": "Any of tensorboard, trackio, wandb, ..., or none."}
    )


def make_parser() -> VerbParser:
    """The parser of `trady train`."""
    classes = (ModelArguments, DataArguments, TraDyArguments, TrainArguments)
    return VerbParser(classes, "train", __doc__, MAIN, EXAMPLE)


def make_trainer(
    model_args: ModelArguments, data_args: DataArguments, config: TraDyArguments, training_args: TrainArguments
) -> TraDyTrainer:
    """The Trainer of a run, with its model and its data."""
    check_training_arguments(training_args)
    if not training_args.do_train:
        raise ValueError("do_train=False is not allowed, as this command trains; leave it out")
    config.seed = training_args.seed
    set_seed(training_args.seed)

    data = load_data(data_args, model_args.token)
    compute_metrics = make_metrics(data_args.metrics, len(data.labels))
    if data.is_image:
        training_args.remove_unused_columns = False  # the image column is transformed as it is read
    loaded = load_model(model_args, config, data)
    return TraDyTrainer(
        model=TraDyModel(loaded.model, TraDyConfig.from_dict(config.to_dict())),
        args=training_args,
        train_dataset=loaded.train_dataset,
        eval_dataset=loaded.eval_dataset,
        data_collator=loaded.data_collator,
        processing_class=loaded.processing_class,
        compute_metrics=compute_metrics,
    )


def run(
    model_args: ModelArguments, data_args: DataArguments, config: TraDyArguments, training_args: TrainArguments
) -> tuple[int, dict | None]:
    """Train, evaluate, save the model, its metrics and a picture of what was updated.

    Returns:
        The exit code and, in the main process, the metrics.
    """
    trainer = make_trainer(model_args, data_args, config, training_args)
    use_epoch_table(trainer)
    with Stage() as stage:
        trainer.add_callback(_BeginCallback(stage))
        return _train(trainer, model_args, data_args)


class _BeginCallback(TrainerCallback):
    """Notes, as the last callback, that all others let training begin."""

    def __init__(self, stage: Stage):
        self.stage = stage

    def on_train_begin(self, args, state, control, **kwargs):
        self.stage.begun = True


def _train(trainer: TraDyTrainer, model_args: ModelArguments, data_args: DataArguments) -> tuple[int, dict | None]:
    """Train, evaluate, and write everything that `run` says."""
    model, args = trainer.model, trainer.args
    checkpoint = args.resume_from_checkpoint
    result = trainer.train(resume_from_checkpoint=True if checkpoint in ("True", "true") else checkpoint)
    trainer.save_model()
    trainer.save_state()
    trained = result.metrics | model.report().to_dict()
    trainer.save_metrics("train", trained)
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    card = {} if Path(data_args.dataset_name).exists() else {"dataset_tags": data_args.dataset_name}
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)
    code = 0 if math.isfinite(metrics["eval_loss"]) else 1
    if not trainer.is_world_process_zero():
        return code, None
    output = Path(args.output_dir)
    history = DrawHistory.from_pretrained(output)
    plot_updates(history, output / "layer_updates.png", title=model_args.model_name_or_path)
    print(model.report())
    model.print_trainable_parameters()
    print(f"Written to {output}: the model and its card, all_results.json, layer_updates.png")
    print(f"A page about the run: trady report {output}")
    return code, {"output_dir": str(output)} | trained | metrics
