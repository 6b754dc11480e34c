"""The redraws of a TraDyModel, as a callback for any Trainer."""

import inspect
import math

from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..model import TraDyModel


class TraDyCallback(TrainerCallback):
    """Draws new channels at each epoch, or every N optimizer steps, and logs their sparsity.

    [`TraDyTrainer`] adds it by itself. For another Trainer: `trainer.add_callback(TraDyCallback(trainer))`, with a
    model that [`TraDyModel.is_ready`].

    Args:
        trainer: The Trainer; the sparsity goes through its `log`, and so to all its integrations.

    Raises:
        ValueError: At the start of training, if the model is not a [`TraDyModel`] or not ready.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        if isinstance(self._model, TraDyModel) and isinstance(self._model.base_model, PreTrainedModel):
            # The columns of a data set to keep: by itself the Trainer would look at TraDyModel's forward.
            parameters = inspect.signature(self._model.base_model.forward).parameters
            trainer._signature_columns = [*parameters, *trainer.label_names, "label", "label_ids"]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if not isinstance(self._model, TraDyModel):
            raise ValueError(f"TraDyCallback needs a TraDyModel, not a {type(self._model).__name__}")
        # On a resume, the optimizer has been restored by now, with the state of the channels that were active when it
        # was saved. Otherwise it may hold that of an earlier run.
        self._model.resample(self._last_draw(state), self.trainer.optimizer if state.global_step == 0 else None)
        self._log()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._every == "epoch":
            self._redraw(int(state.epoch))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._every != "epoch":
            self._redraw(state.global_step // self._every)

    @property
    def _model(self) -> TraDyModel:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    @property
    def _every(self) -> int | str:
        return self._model.trady_config.resample_every

    def _last_draw(self, state: TrainerState) -> int:
        """The draw that the last finished step trained; 0 before the first step."""
        if state.global_step == 0:
            return 0
        if self._every == "epoch":
            return math.ceil(state.epoch) - 1
        return (state.global_step - 1) // self._every

    def _redraw(self, number: int) -> None:
        if number != self._model.epoch:
            self._model.resample(number, self.trainer.optimizer)
            self._log()

    def _log(self) -> None:
        self.trainer.log(self._model.report().logs())
