"""Trainers for tiny models and data, shared by the tests of training."""

from pathlib import Path

import datasets
import torch
from transformers import Trainer, TrainingArguments

from hf_trady import TraDyCallback, TraDyConfig, TraDyModel, TraDyTrainer

from ..tiny import Rows, bert, conv_net, image_batch, timm_net, timm_wrapper, token_batch


def token_dataset(n: int = 12) -> datasets.Dataset:
    """Token sequences with a column that no model takes, though it could be made a tensor."""
    columns = {name: column.tolist() for name, column in token_batch(n).items()}
    return datasets.Dataset.from_dict(columns | {"number": list(range(n))})


def image_rows(n: int = 12, size: int = 16, names: tuple[str, str] = ("pixel_values", "labels")) -> Rows:
    """Images with their classes."""
    return Rows(dict(zip(names, image_batch(n, size), strict=True)))


# Kind of model -> (maker, maker of a data set).
TASKS = {
    "bert": (bert, token_dataset),
    "wrapper": (timm_wrapper, lambda n=12: image_rows(n, 32)),
    "timm": (timm_net, lambda n=12: image_rows(n, 32, ("image", "label"))),
    "conv": (conv_net, image_rows),
}


def arguments(output_dir: Path, **kwargs) -> TrainingArguments:
    """Two epochs of three steps, with nothing logged, shown or saved unless `kwargs` say so."""
    kwargs = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    } | kwargs
    return TrainingArguments(str(output_dir), **kwargs)


def make_trainer(
    output_dir: Path, task: str = "conv", model=None, config=(), plain: bool = False, **kwargs
) -> Trainer:
    """A `TraDyTrainer`, or if `plain` a Trainer with a `TraDyCallback`; `config` are fields of the model's config.

    Keywords that are not those of `TraDyTrainer` are those of the training arguments.
    """
    make, dataset = TASKS[task]
    if model is None:
        config = {"memory_budget": 0.3, "strategy": "dynamic_full_random"} | dict(config)
        model = TraDyModel(make(), TraDyConfig(**config))
    own = ("train_dataset", "eval_dataset", "compute_metrics", "callbacks", "ranking_steps", "compute_loss_func")
    own += ("data_collator", "max_skipped_steps")
    own = {name: kwargs.pop(name) for name in own if name in kwargs}
    own = {"train_dataset": dataset()} | own
    trainer = (Trainer if plain else TraDyTrainer)(model=model, args=arguments(output_dir, **kwargs), **own)
    if plain:
        trainer.add_callback(TraDyCallback(trainer))
    return trainer


def drawn_channels(model: TraDyModel, numbers) -> dict[str, torch.Tensor]:
    """Layer name -> bool `[C]`: the channels in any of the draws `numbers`."""
    masks = {row.name: torch.zeros(row.channels, dtype=torch.bool) for row in model.costs}
    for number in numbers:
        for name, index in model.draw(number).items():
            masks[name][index] = True
    return masks
