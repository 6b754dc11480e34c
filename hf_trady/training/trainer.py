"""The Trainer that fine-tunes a TraDyModel."""

import itertools
import math
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from ..memory import MIB, PeakTracker, StepSetup, reserved_share
from ..model import TraDyModel
from .callback import TraDyCallback
from .checkpoints import flaw, last_whole_checkpoint, refuse_other_draws, refuse_unwritable
from .distributed import fsdp_plugin, shard_on_cpu, spare_communication
from .faults import in_one_line
from .interruption import InterruptionCallback
from .measuring import agree, aside, measure, prepare_inputs, warm_up
from .saving import SavingTrainer


logger = logging.get_logger(__name__)

BATCHES_COMPARED = 8


class TraDyTrainer(SavingTrainer):
    """[`~transformers.Trainer`] for a [`TraDyModel`]: prepares it, redraws channels, logs sparsity, saves and resumes.

    Before the first step it learns the costs of channels from the first batch, fits a budget in bytes to its own
    optimizer, precision and batch size and, where the strategy needs a ranking and has none, measures one.
    Ctrl-C and SIGTERM end a run that saves with a checkpoint after the current step; a second one ends it at once.
    Checkpoints hold what [`TraDyModel.save_pretrained`] writes, and what each draw has trained so far
    (`trady_history.json`); with `load_best_model_at_end` also the whole `model.safetensors`, to return to.

    A base model that is not a transformers model is called with its inputs in the order of the batch, without the
    labels; its output is taken as logits and the loss is the cross-entropy, unless `compute_loss_func` says otherwise.

    Args:
        model: The [`TraDyModel`]; or give a `model_init` that makes one, anew for every call of `train` and for every
            trial of `hyperparameter_search`.
        ranking_steps: Batches to measure the ranking, or the gradient norms of channels, on.
        max_skipped_steps: Of so many steps in a row whose loss or gradient is not finite the run dies.
        **kwargs: Those of [`~transformers.Trainer`].

    Raises:
        ValueError: If `model` is not a [`TraDyModel`].
        FloatingPointError, TrainingOutOfMemoryError, ChildProcessError, OSError: In training; see
            [`TraDyCallback`], `training/faults.py` and `training/checkpoints.py`.
    """

    def __init__(
        self,
        model: TraDyModel | None = None,
        args: TrainingArguments | None = None,
        *rest,
        ranking_steps: int = 10,
        max_skipped_steps: int = 10,
        **kwargs: Any,
    ):
        self.ranking_steps = ranking_steps
        self._checkpoint: str | None = None  # to resume from
        self._smoothing: float | None = None  # of a raw model, while Trainer is not to see it
        if model is not None:
            self._admit(model, args)
        super().__init__(model, args, *rest, **kwargs)
        if self._smoothing is not None:
            self.args.label_smoothing_factor = self._smoothing
        if _is_raw(self.model):
            self.args.remove_unused_columns = False  # the names of its inputs say nothing: they are passed by position
            self.model_accepts_loss_kwargs = False  # it isn't asked for the loss, whatever keywords it takes
        self._redraws = TraDyCallback(self, in_checkpoints=False, max_skipped_steps=max_skipped_steps)
        self._interruption = InterruptionCallback(self)
        self.add_callback(self._redraws)
        self.add_callback(self._interruption)  # the last one: it may end the run

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self.accelerator, self.args)
        self.is_fsdp_enabled = fsdp_plugin(self.accelerator) is not None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        main = self.is_world_process_zero()  # all go by what it finds
        if resume_from_checkpoint is True:
            resume_from_checkpoint = agree(last_whole_checkpoint(self.args.output_dir) if main else None)
            if resume_from_checkpoint is None:
                raise ValueError(f"no whole checkpoint to resume from in '{self.args.output_dir}'")
        elif resume_from_checkpoint:
            what = agree(flaw(resume_from_checkpoint) if main else None)
            if what is not None:
                raise ValueError(
                    f"can't resume from '{resume_from_checkpoint}': {what}; give another checkpoint, or "
                    "resume_from_checkpoint=True for the last one that is whole"
                )
        self._checkpoint = self._redraws.checkpoint = resume_from_checkpoint or None
        refuse_unwritable(self.args)
        with self._interruption, in_one_line(self):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_dataloader(self, *args, **kwargs):
        return self._interruption.shield(super()._get_dataloader(*args, **kwargs))

    def call_model_init(self, trial=None) -> TraDyModel:
        model = super().call_model_init(trial)
        self._admit(model, self.args)
        return model

    def _admit(self, model: nn.Module, args: TrainingArguments | None) -> None:
        """Refuse what is no TraDyModel. From a raw one, keep away Trainer's own label smoother, which wants a
        transformers config: see `compute_loss`."""
        if not isinstance(model, TraDyModel):
            raise ValueError(
                f"model must be a TraDyModel, not a {type(model).__name__}; wrap it: TraDyModel(model, config)"
            )
        is_made = hasattr(self, "label_smoother")
        if not is_made and _is_raw(model) and args is not None and args.label_smoothing_factor:
            self._smoothing, args.label_smoothing_factor = args.label_smoothing_factor, 0.0

    def _hp_search_setup(self, trial) -> None:
        # What `train` calls once the model and the arguments are those of the trial, if this is one, and before it
        # loads the weights of a checkpoint.
        super()._hp_search_setup(trial)
        if self.is_in_train:
            self.prepare_model(self._checkpoint)

    def prepare_model(self, checkpoint: str | os.PathLike | None = None) -> None:
        """Give the model what it lacks to draw channels: costs, and a ranking (from `checkpoint` where there is one).

        Leaves the random states as they were, so a run that needs no preparation trains on the same batches.
        """
        model: TraDyModel = self.model
        is_calibrated = model.costs is not None
        if checkpoint is not None:
            refuse_other_draws(model.trady_config, checkpoint)
        fitted = model.load_known(checkpoint) if checkpoint is not None else None
        fits = model.byte_budget is not None and fitted is None and self.optimizer is None
        batch = None
        if not is_calibrated or fits:
            batch = self._calibrate(model, fits)
        elif (costs := agree(model.costs)) != model.costs:  # of example inputs, of which each process had its own
            model.set_costs(costs)
        # On the CPU for the memory that is measured, of several processes for what DDP must look for.
        searches = self.accelerator.num_processes > 1 and self.args.ddp_find_unused_parameters is None
        wanted = (self.args.device.type == "cpu" or searches) and not self.is_fsdp_enabled
        all_used = warm_up(self, model, batch) if wanted or model.byte_budget is not None else False
        if model.needs_measuring:
            self._measure_first(model)
        spare_communication(self.accelerator, self.args, model, all_used)

    def _calibrate(self, model: TraDyModel, fits: bool) -> Mapping:
        """Learn the costs from a batch, unless a checkpoint told them; `fits`: also what a budget in bytes buys.

        Returns:
            The batch.
        """
        with aside(self):
            if not self.is_in_train:  # in training, the Trainer has done so
                _enable_checkpointing(model, self.args)
            dataloader = self.get_train_dataloader()
            batch = prepare_inputs(self, model, _longest(dataloader) if fits else _first(dataloader))
            inputs = self._call_inputs(batch)[0]
            # Of texts each process pads its own batch, but all must draw by the same costs.
            costs = model.costs if model.costs is not None and not fits else agree(model.learn_costs(inputs))
            model.calibrate(inputs, self.step_setup(), fits, costs)
        fitted = agree(model.fitted)
        if fitted != model.fitted:
            model.set_fitted(fitted)
        return batch

    def _measure_first(self, model: TraDyModel) -> None:
        """Measure what the strategy goes by; tell what that takes where the budget is in bytes."""
        if self.is_fsdp_enabled:
            logger.warning(
                "Measuring gradients before FSDP splits the weights: every process holds all of them for it, and "
                "computes where they were loaded; a layer ranking made elsewhere spares it (trady rank)."
            )
        tracker = PeakTracker(self.args.device) if model.byte_budget is not None else None
        measure(self, model, self.ranking_steps)
        peak = tracker.peak if tracker is not None else None
        if peak is not None:
            self.log({"trady/measuring_peak_bytes": peak})
            if peak > model.byte_budget:
                logger.warning(
                    f"Measuring gradients took {peak / MIB:,.1f} MiB, more than the budget of "
                    f"{model.byte_budget / MIB:,.1f} MiB; a layer ranking made elsewhere spares it (trady rank)."
                )

    def step_setup(self) -> StepSetup:
        """What a step of this Trainer does besides the model, as its arguments say."""
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        own = self.optimizer_cls_and_kwargs
        cls, kwargs = own if own is not None else self.get_optimizer_cls_and_kwargs(self.args, self.model)
        accumulates = self.args.gradient_accumulation_steps > 1
        reserve = reserved_share(self.model.byte_budget, self.args.device)
        draws = self._num_draws() if self.model.most_kept_bytes else 1
        return StepSetup(cls, kwargs, None, dtype, accumulates, reserve, draws)

    def _num_draws(self) -> int:
        """How many draws the run has; 1 for a stream of unknown length, which is one epoch."""
        every = self.model.trady_config.resample_every
        epochs, *_, steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        if every == "epoch":
            return epochs if epochs < sys.maxsize else 1
        return math.ceil(steps / every)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a transformers model as [`~transformers.Trainer`] computes it; of any other see the class."""
        base_model = self.accelerator.unwrap_model(model).base_model
        if isinstance(base_model, PreTrainedModel):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        args, labels = self._call_inputs(inputs)
        logits = model(*args)
        if self.compute_loss_func is not None:
            loss = self.compute_loss_func(logits, labels, num_items_in_batch=num_items_in_batch)
            if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                loss = loss * self.accelerator.num_processes  # DDP averages; the number is that of all processes
        else:
            loss = F.cross_entropy(logits, labels, label_smoothing=self.args.label_smoothing_factor)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._redraws.losses.append(loss)
        return loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, logits and labels of a batch; of a raw model's without labels, the logits."""
        if not _is_raw(self.model) or self._call_inputs(inputs)[1] is not None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(*self._call_inputs(self._prepare_inputs(inputs))[0])
        return None, None if prediction_loss_only else logits, None

    def _call_inputs(self, batch: Mapping):
        """What the model is called with, and the labels."""
        if not _is_raw(self.model):
            return batch, None
        labels = [batch[name] for name in self.label_names if name in batch]
        return tuple(v for name, v in batch.items() if name not in self.label_names), labels[0] if labels else None


def _is_raw(model: TraDyModel) -> bool:
    """Whether the base model is no transformers model."""
    return not isinstance(model.base_model, PreTrainedModel)


def _enable_checkpointing(model: nn.Module, args: TrainingArguments) -> None:
    """Let `model` recompute activations where `args` say so, as [`~transformers.Trainer`] does before it trains."""
    kind = "activation" if hasattr(args, "activation_checkpointing") else "gradient"  # older transformers call it so
    if getattr(args, f"{kind}_checkpointing"):
        kwargs = dict(getattr(args, f"{kind}_checkpointing_kwargs") or {})
        not_torchs = {name: kwargs.pop(name) for name in ("every_n_layers", "offload") if name in kwargs}
        enable = getattr(model, f"{kind}_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable(kwargs or None, **not_torchs)


def _first(dataloader: Iterable) -> Mapping:
    return next(iter(dataloader))


def _longest(dataloader: Iterable) -> Mapping:
    """The longest of the first batches of texts, which differ in length; otherwise the first batch."""
    first, *rest = itertools.islice(dataloader, BATCHES_COMPARED if "input_ids" in _first(dataloader) else 1)
    return max([first, *rest], key=lambda batch: batch["input_ids"].numel() if "input_ids" in batch else 0)
