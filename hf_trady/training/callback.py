"""The redraws of a TraDyModel, as a callback for any Trainer."""

import math
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy
from transformers.utils import can_return_loss, find_labels, logging

from ..config import CONFIG_NAME
from ..guard import StepGuard
from ..history import HISTORY_NAME, DrawHistory
from ..memory import MIB, PeakTracker, verdict
from ..memory.glibc import keep_freed_memory
from ..model import TraDyModel
from .checkpoints import last_whole_checkpoint, refuse_other_draws
from .compiling import take_compilation
from .distributed import refuse_unsupported
from .measuring import agree, measure


logger = logging.get_logger(__name__)


class TraDyCallback(TrainerCallback):
    """Draws new channels at each epoch, or every N optimizer steps; logs their sparsity and the peak memory.

    Where a peak exceeds a budget in bytes, later draws are smaller. A step whose loss or gradient is not finite is
    skipped: it changes nothing, and is counted in the log (`trady/skipped_steps`). At the end of training, a line says
    how the peak compares to the budget. A run that saves keeps in its output directory what each draw trained, for
    `trady report`: `trady_history.json`.

    [`TraDyTrainer`] adds it by itself. For another Trainer: `trainer.add_callback(TraDyCallback(trainer))`, with a
    model that [`TraDyModel.is_ready`].

    Args:
        trainer: The Trainer; the sparsity goes through its `log`, and so to all its integrations.
        in_checkpoints: Write what [`TraDyModel.save_pretrained`] does into every checkpoint, beside what the Trainer
            writes, and draw by it when a run is resumed from there; at the end of a run that saves, into its output
            directory, too. A [`TraDyTrainer`] does so itself.
        max_skipped_steps: Of so many in a row the run dies. Those in which a GradScaler lowers its scale don't count.

    Raises:
        ValueError: If the Trainer spreads the model over processes in a way that doesn't work (see
            [`refuse_unsupported`]). At the start of training, if the model is not a [`TraDyModel`] or not ready, or if
            its budget in bytes buys other draws than in the run that is resumed, or its checkpoint is incomplete.
        FloatingPointError: If `max_skipped_steps` steps in a row were skipped; names the last checkpoint.
    """

    def __init__(self, trainer: Trainer, in_checkpoints: bool = True, max_skipped_steps: int = 10):
        self.trainer = trainer
        self.in_checkpoints = in_checkpoints
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0
        self.losses: list[torch.Tensor] = []  # of the current step's micro-batches, where the Trainer tells them
        self.peaks: dict[int, int] = {}  # number of a draw -> highest peak measured in bytes, of all processes
        self.history: DrawHistory | None = None  # in the main process, once training has begun
        self.checkpoint: str | None = None  # what training resumes from, where it is known
        self._tracker: PeakTracker | None = None
        self._stepped = False  # since the last measurement
        self._guard: StepGuard | None = None
        self._skipped_in_a_row = 0
        self._skipped_at: float | None = None  # scale of the GradScaler, if any, where the current step is skipped
        self._epoch: int | None = None  # the current epoch, from the first one on that this training begins
        self._compilation = take_compilation(trainer.accelerator, trainer.args)
        self._compiles = False  # in the current step
        if isinstance(self._model, TraDyModel):  # of which a Trainer knows no more than that it takes labels
            refuse_unsupported(trainer.accelerator, trainer.args, self._model)
            kind = type(self._model.base_model)
            trainer.can_return_loss = can_return_loss(kind)
            if trainer.args.label_names is None:
                trainer.label_names = find_labels(kind) or ["labels"]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if not isinstance(self._model, TraDyModel):
            raise ValueError(f"TraDyCallback needs a TraDyModel, not a {type(self._model).__name__}")
        if self.in_checkpoints and state.global_step > 0:
            self._load_known(self._checkpoint(state))
        self._refuse_other_costs()
        # On a resume, the optimizer has been restored by now, with the state of the channels that were active when it
        # was saved. Otherwise it may hold that of an earlier run.
        self._model.resample(self._last_draw(state), self.trainer.optimizer if state.global_step == 0 else None)
        self._model.refuse_early(self.trainer.optimizer)
        self.peaks, self._epoch = {}, None
        self.skipped_steps = max((entry.get("trady/skipped_steps", 0) for entry in state.log_history), default=0)
        self._guard, self._skipped_in_a_row = StepGuard(self._model), 0
        if self._compilation is not None and not self._model.is_compiled:
            self._model.compile(**self._compilation)
        self._stepped, self._compiles = False, self._model.is_compiled
        self._track()
        self._log(self._model.report().logs())
        if state.is_world_process_zero:
            self.history = self._begun_history(args, state) or DrawHistory.of(self._model)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._tracker.resume()
        self._tracker.reset()  # writing a checkpoint is no training step
        # Not by `state.epoch` alone: of a stream, whose length the Trainer doesn't know, it counts other epochs.
        self._epoch = int(state.epoch) if self._epoch is None else self._epoch + 1
        if self._every == "epoch":
            self._redraw(self._epoch)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._tracker.resume()
        if self._every != "epoch":
            self._redraw(state.global_step // self._every)
        self._guard.begin()
        self.losses.clear()

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._tracker.sample()
        self._stepped = True
        if self._guard.passes(*self.losses, alone=self.trainer.accelerator.num_processes == 1):
            self._skipped_in_a_row, self._skipped_at = 0, None
            self._model.observe()
        else:
            self.skipped_steps += 1
            self._log({"trady/skipped_steps": self.skipped_steps})
            self._skipped_at = self._scale

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._end_after_too_many(state)
        if self._compiles:  # what a compiler takes, and leaves in memory, is no part of a training step
            self._compiles = False
            self._track()
        if self._every != "epoch" and state.global_step % self._every == 0:
            self._end_draw(state)
        self._pause_before_evaluation(control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._end_draw(state)  # before a checkpoint is written, which holds what follows from it
        if args.save_strategy != SaveStrategy.NO:
            self.save_history(args.output_dir)
        self._pause_before_evaluation(control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.save_history(args.output_dir)  # so that it goes as far as any checkpoint to resume from
        checkpoint = self._checkpoint(state)
        if self.in_checkpoints:  # a sharded model is put together by all processes
            saves = args.should_save and checkpoint.is_dir()
            if saves:
                self._model.save_training_state(checkpoint)
            self._model.save_pretrained(checkpoint, is_main_process=saves)  # its config comes last of all

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._end_draw(state)
        line = self.verdict()
        if line is not None and state.is_world_process_zero:
            print(line)
        if self._model.byte_budget is not None:
            keep_freed_memory()
        if self.in_checkpoints and args.save_strategy != SaveStrategy.NO:
            run = self._checkpoint(state).parent
            self._model.save_pretrained(run, is_main_process=args.should_save)

    def save_history(self, directory: str) -> None:
        """Write what each draw has trained so far, the current one included; only in the main process. No resume needs
        it: where it can't be written, a warning says so."""
        if self.history is not None:
            if self._stepped:
                self.history.add(self._model, self.trainer.state.global_step)
            try:
                self.history.save_pretrained(directory)
            except OSError as error:
                logger.warning(f"Can't write '{Path(directory) / HISTORY_NAME}' ({error.strerror}); the run goes on.")

    def verdict(self) -> str | None:
        """How the highest peak compares to the budget in bytes; None if there is none or nothing was measured."""
        model = self._model
        if model.byte_budget is None or not self.peaks:
            return None
        return verdict(self.peaks, model.fitted.predicted_peak, model.byte_budget)

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

    def _checkpoint(self, state: TrainerState) -> Path:
        """Where the Trainer saves after the last finished step."""
        run = self.trainer._get_output_dir(getattr(self.trainer, "_trial", None))
        return Path(run) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"

    def _load_known(self, checkpoint: Path) -> None:
        """Draw as the run did that is resumed. Its weights and its optimizer are there by now."""
        model, active = self._model, self._model.active
        if checkpoint.is_dir() and not (checkpoint / CONFIG_NAME).is_file():
            raise ValueError(
                f"'{checkpoint}' has no {CONFIG_NAME}, which comes last: the run ended while it was written, or had "
                "no TraDyCallback; resume from the one before it, by its path"
            )
        refuse_other_draws(model.trady_config, checkpoint)
        model.load_known(checkpoint)
        if model.active is not active:
            raise ValueError(
                f"the budget of this model buys other draws than it did in '{checkpoint}'; call "
                "model.load_known(checkpoint) before you make the Trainer"
            )

    def _refuse_other_costs(self) -> None:
        """All processes must draw the same. A TraDyTrainer has seen to it; here the optimizer is made already."""
        same = agree(self._model.costs) == self._model.costs
        if not all(gather_object([same])):
            raise ValueError(
                "the costs of channels differ between processes: give the model the same example_inputs in all of them"
            )

    def _redraw(self, number: int) -> None:
        if number != self._model.epoch:
            if self._model.refreshes_scores:
                measure(self.trainer, self._model, getattr(self.trainer, "ranking_steps", 10))
            self._model.resample(number, self.trainer.optimizer)
            self._log(self._model.report().logs())

    def _begun_history(self, args: TrainingArguments, state: TrainerState) -> DrawHistory | None:
        """The history of the run that is resumed, as far as it goes with this one; None where there is none."""
        if state.global_step == 0:
            return None
        try:
            known = self.checkpoint is not None and DrawHistory.from_pretrained(self.checkpoint)
            history = known or DrawHistory.from_pretrained(args.output_dir)
        except ValueError as error:
            logger.warning(f"{error}; the draws before this resume will be missing in a report.")
            return None
        if history is None or history.costs != self._model.costs:
            return None
        history.forget_after(self._last_draw(state))
        return history

    @property
    def _scale(self) -> float:
        """By how much the GradScaler multiplies the loss; 1 without one."""
        scaler = self.trainer.accelerator.scaler
        return scaler.get_scale() if scaler is not None else 1.0

    def _end_after_too_many(self, state: TrainerState) -> None:
        """End the run if the step that ends was skipped, and is one too many."""
        if self._skipped_at is None or 1 <= self._scale < self._skipped_at:
            return  # the latter is how a GradScaler finds its scale
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row < self.max_skipped_steps:
            return
        checkpoint = last_whole_checkpoint(self._checkpoint(state).parent)
        raise FloatingPointError(
            f"the loss or its gradient was not finite in the last {self._skipped_in_a_row} steps, up to step "
            f"{state.global_step}, none of which changed the model; lower learning_rate "
            f"(now {self.trainer.args.learning_rate}) or check the data. "
            + (f"The last good checkpoint is '{checkpoint}'" if checkpoint else "There is no checkpoint yet")
        )

    def _log(self, logs: dict[str, float]) -> None:
        # The Trainer takes any log for the one that was due, and would leave out the loss.
        due = self.trainer.control.should_log
        self.trainer.log(logs)
        self.trainer.control.should_log = due

    def _track(self) -> None:
        """Start to measure. What training answers for, and what is there by now, is no part of the baseline."""
        optimizer = self.trainer.optimizer
        states = optimizer.state.values() if optimizer is not None else ()
        own = [*self._model.active.flat, *(value for state in states for value in state.values())]
        already = sum(tensor.nbytes for tensor in own if isinstance(tensor, torch.Tensor)) + self._model.kept_bytes
        self._tracker = PeakTracker(self.trainer.args.device, already, self._model.byte_budget is not None)

    def _pause_before_evaluation(self, control: TrainerControl) -> None:
        if control.should_evaluate:  # which is no training step
            self._tracker.pause()

    def _end_draw(self, state: TrainerState) -> None:
        """Record and measure the current draw, if it has trained since this was last done."""
        if not self._stepped:
            return
        self._stepped = False
        if self.history is not None:
            self.history.add(self._model, state.global_step)
        self._tracker.resume()
        self._measure()

    def _measure(self) -> None:
        """Log the peak of the current draw; if it exceeds the budget, make the later draws smaller."""
        model, peak = self._model, self._tracker.peak
        if peak is None:
            return
        # Every process must draw the same, so every process goes by the one that took the most.
        peak = int(self.trainer.accelerator.gather(torch.tensor([peak], device=self.trainer.args.device)).max())
        self._tracker.reset()
        self.peaks[model.epoch] = max(peak, self.peaks.get(model.epoch, 0))
        logs = {"trady/peak_bytes": peak}
        if model.fitted is not None:
            logs["trady/predicted_peak_bytes"] = model.fitted.predicted_peak
            if peak > model.byte_budget:
                units = model.shrink(model.epoch + 1, peak).units_of(model.epoch + 1)
                logs["trady/next_budget"] = units
                logger.warning(
                    f"Draw {model.epoch} took {peak / MIB:,.1f} MiB, more than the budget of "
                    f"{model.byte_budget / MIB:,.1f} MiB; from the next draw on the budget is {units:,} units."
                )
        self._log(logs)
