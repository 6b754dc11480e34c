"""What a run leaves behind: the model, its card, and what is pushed to the Hub."""

import shutil
from collections.abc import Sized
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from torch import nn
from transformers import Trainer
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import SAFE_WEIGHTS_NAME

from ..files import atomic_files
from ..saving import SAVED_NAMES, WEIGHTS_NAME
from .callback import TraDyCallback
from .checkpoints import CheckpointingTrainer
from .distributed import fsdp_plugin


class SavingTrainer(CheckpointingTrainer):
    """A Trainer that saves what training has changed in a TraDyModel, instead of the whole model."""

    _redraws: TraDyCallback

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card of the model, as [`TraDyModel.create_model_card`] makes it, into the output directory.

        The arguments are those of [`~transformers.Trainer.create_model_card`]: `dataset_tags` are ids on the Hub,
        `dataset` what they are called; of several tasks, and of several `dataset_args`, the first is taken.
        """
        if not self.is_world_process_zero():
            return
        task, args = ([*_listed(values), None][0] for values in (tasks, dataset_args))
        self.accelerator.unwrap_model(self.model).create_model_card(
            self.args.output_dir,
            model_name=self.hub_model_id or model_name,
            metrics=_last_metrics(self.state.log_history),
            datasets=_listed(dataset_tags),
            dataset_names=_listed(dataset),
            dataset_args=args,
            peak_bytes=max(self._redraws.peaks.values(), default=None),
            hyperparameters=_hyperparameters(self),
            language=language,
            license=license,
            tags=_listed(tags),
            base_model=finetuned_from,
            pipeline_tag=task,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push what training has changed, too: by itself the Trainer takes only the files whose names it knows."""
        ends = self.args.hub_strategy == HubStrategy.END  # then nothing is pushed before
        if self.is_world_process_zero() and self._staging is None and not ends:
            pushing = self.push_in_progress is not None and not self.push_in_progress.is_done()
            if pushing and self.args.hub_always_push:
                self._finish_current_push()  # it reads the files that are about to be replaced
                pushing = False
            with atomic_files(self.args.output_dir) as temporary:
                for name in SAVED_NAMES if not pushing else ():
                    if (Path(checkpoint_folder) / name).is_file():
                        shutil.copy(Path(checkpoint_folder) / name, temporary)
        super()._push_from_checkpoint(checkpoint_folder)

    def _add_to_checkpoint(self, directory: Path) -> None:
        self.accelerator.unwrap_model(self.model).save_training_state(directory)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # The Trainer's own way writes all weights beside it, frozen ones, too, which no resume reads.
        plugin = fsdp_plugin(self.accelerator)
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        self._save(output_dir)  # the Trainer's own way gathers the whole model first
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        output_dir = output_dir or self.args.output_dir
        if self.args.should_save:
            # A checkpoint that is not complete is nothing that could be damaged.
            with atomic_files(output_dir) if self._staging is None else nullcontext(Path(output_dir)) as temporary:
                whole = self.args.load_best_model_at_end
                super()._save(str(temporary), state_dict if whole else {})
                if not whole:  # the base model's weights may lie in `output_dir`
                    (temporary / SAFE_WEIGHTS_NAME).unlink()
        # A sharded model is put together by all processes.
        self.accelerator.unwrap_model(self.model).save_pretrained(output_dir, is_main_process=self.args.should_save)
        if self.args.should_save:
            self._redraws.save_history(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if (Path(resume_from_checkpoint) / WEIGHTS_NAME).is_file():
            self.accelerator.unwrap_model(model or self.model).load_trained(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _hyperparameters(trainer: Trainer) -> dict[str, Any]:
    """What the card of a Trainer tells, the numbers of samples, and the precision."""
    known = {"train_samples": _size(trainer.train_dataset), "eval_samples": _size(trainer.eval_dataset)}
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in trainer.model.parameters()}
    precision = "/".join(sorted(dtypes))
    if trainer.args.bf16 or trainer.args.fp16:
        precision += f", mixed with {'bfloat16' if trainer.args.bf16 else 'float16'}"
    known |= extract_hyperparameters_from_trainer(trainer) | {"precision": precision}
    return {name: value for name, value in known.items() if value is not None}


def _size(dataset: Any) -> int | None:
    """How many samples it has; None if it is a stream."""
    if isinstance(dataset, dict):
        sizes = [_size(part) for part in dataset.values()]
        return None if None in sizes else sum(sizes)
    return len(dataset) if isinstance(dataset, Sized) else None


def _last_metrics(log_history: list[dict]) -> dict[str, float]:
    """The results of the latest evaluation, by name without `eval_`; not how long it took."""
    latest = next((entry for entry in reversed(log_history) if "eval_loss" in entry), {})
    names = [name for name in latest if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))]
    return {name.removeprefix("eval_"): latest[name] for name in names}
