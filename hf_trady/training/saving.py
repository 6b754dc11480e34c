"""What a run leaves behind: the model, its card, and what is pushed to the Hub."""

import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import SAFE_WEIGHTS_NAME

from ..files import atomic_files
from ..saving import SAVED_NAMES, WEIGHTS_NAME
from .callback import TraDyCallback
from .checkpoints import CheckpointingTrainer


class SavingTrainer(CheckpointingTrainer):
    """A Trainer that saves what training has changed in a TraDyModel, instead of the whole model."""

    _redraws: TraDyCallback

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        dataset: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the card of the model, as [`TraDyModel.create_model_card`] makes it, into the output directory."""
        if not self.is_world_process_zero():
            return
        self.accelerator.unwrap_model(self.model).create_model_card(
            self.args.output_dir,
            model_name=self.hub_model_id or model_name,
            metrics=_last_metrics(self.state.log_history),
            datasets=[dataset] if isinstance(dataset, str) else dataset or (),
            peak_bytes=max(self._redraws.peaks.values(), default=None),
            language=language,
            license=license,
            tags=[tags] if isinstance(tags, str) else tags,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push what training has changed, too: by itself the Trainer takes only the files whose names it knows."""
        if self.is_world_process_zero() and self._staging is None:
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
            with atomic_files(output_dir) as temporary:
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


def _last_metrics(log_history: list[dict]) -> dict[str, float]:
    """The results of the latest evaluation, by name without `eval_`; not how long it took."""
    latest = next((entry for entry in reversed(log_history) if "eval_loss" in entry), {})
    names = [name for name in latest if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))]
    return {name.removeprefix("eval_"): latest[name] for name in names}
