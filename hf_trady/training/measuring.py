"""Measures, on the batches of a Trainer, what the strategy of its model goes by."""

import random
from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, send_to_device
from torch import Tensor, nn
from transformers import Trainer, set_seed

from ..model import TraDyModel


def measure(trainer: Trainer, model: TraDyModel, num_steps: int = 10) -> None:
    """Measure the gradients of the channels of `model`, the same whenever it is done: batches and dropout follow from
    the Trainer's seed and the number of the last draw. The random states are left as they were.

    Args:
        trainer: Gives the batches and the loss.
        model: What it trains, unwrapped.
        num_steps: Batches.
    """
    training, held_out = model.training, model.measures_held_out
    with aside(trainer):
        set_seed(trainer.args.seed + (0 if held_out else model.epoch))
        model.train()
        loader = trainer.get_train_dataloader
        if held_out and trainer.eval_dataset is not None:
            several = isinstance(trainer.eval_dataset, dict)
            loader = partial(trainer.get_eval_dataloader, next(iter(trainer.eval_dataset)) if several else None)
        model.measure(
            loader(),
            num_steps=1 if held_out else num_steps,
            compute_loss=partial(_compute_loss, trainer),
            disable_tqdm=trainer.args.disable_tqdm or not trainer.is_local_process_zero(),
        )
    model.train(training)
    ranking, scores, fitted = agree((model.layer_ranking, model.channel_scores, model.fitted))
    if ranking is not None and ranking != model.layer_ranking:
        model.set_layer_ranking(ranking)
    if scores is not None and scores is not model.channel_scores:
        model.set_channel_scores(scores)
    if fitted != model.fitted:
        model.set_fitted(fitted)


def warm_up(trainer: Trainer, model: TraDyModel, batch: Mapping | None = None) -> bool:
    """Do a step that changes nothing, so that what libraries load and compile for one is there before memory is
    measured: tens of MiB that stay, and as many while a kernel is compiled.

    Args:
        trainer: Gives the loss.
        model: What it trains, unwrapped.
        batch: Of the training data, if one has been read.

    Returns:
        Whether every Parameter that trains got a gradient.
    """
    training = model.training
    with aside(trainer):
        model.train()
        if batch is None:
            batch = next(iter(trainer.get_train_dataloader()))
        with model.one_channel_active():
            _compute_loss(trainer, model, batch).backward()
            all_used = all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.train(training)
    return all_used


def prepare_inputs(trainer: Trainer, model: nn.Module, batch) -> Mapping:
    """`batch` as the Trainer prepares it, but where the weights are: FSDP moves these only when it splits them."""
    return send_to_device(trainer._prepare_inputs(batch), _device(model))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _compute_loss(trainer: Trainer, model: nn.Module, batch) -> Tensor:
    with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
        inputs, items = prepare_inputs(trainer, model, batch), None
        if trainer.compute_loss_func is not None:  # it may count on the number, as in training
            items = trainer._get_num_items_in_batch([inputs], _device(model))
        return trainer.compute_loss(trainer.model, inputs, num_items_in_batch=items)


def agree(value):
    """What `value` is in the main process: every process measured on its own batches, but all must draw the same."""
    return broadcast_object_list([value])[0]


@contextmanager
def aside(trainer: Trainer):
    """Undo what the block, which is no part of the training, does to the random states of Python, numpy and torch, and
    forget the data loaders that it makes or begins to read. Accelerate would keep each, with its workers, and take the
    last one for that of the training."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    accelerator, gradient = trainer.accelerator, trainer.accelerator.gradient_state
    loaders, read = list(accelerator._dataloaders), gradient.dataloader_references
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        accelerator._dataloaders, gradient.dataloader_references = loaders, read
        random.setstate(states[0])
        np.random.set_state(states[1])
