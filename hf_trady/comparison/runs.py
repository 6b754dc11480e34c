"""One run of a comparison: a method on a task, with a budget and a seed."""

import copy
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from ..config import TraDyConfig
from ..memory import PeakTracker
from ..memory.glibc import keep_freed_memory, return_freed_memory
from ..model import TraDyModel
from ..training import TraDyTrainer
from .baselines import BASELINES, make_baseline
from .methods import parse_method


MEMORY_STEPS = 10


@dataclass(frozen=True)
class Run:
    """What makes a run of a comparison the one that it is.

    Attributes:
        phase: `"tune"`: trained on a part of the training data and evaluated on the rest, to choose the learning rate;
            `"test"`: trained on all of it and evaluated on the test data; `"memory"`: a few steps, to take the peak.
        task: Name of the task.
        method: What `parse_method` takes.
        budget: `memory_budget`; None for a baseline.
        seed: Of the head, the order of the data and the channels.
        learning_rate: The highest of its schedule.
    """

    phase: str
    task: str
    method: str
    budget: float | int | str | None
    seed: int
    learning_rate: float

    def to_dict(self) -> dict:
        """A JSON-serializable dict."""
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """What is trained on.

    Attributes:
        make_model: Makes the model, with a head for this task; called after the seed is set.
        train: Training data.
        test: Test data.
        fit: A part of the training data, to train on while a learning rate is chosen.
        validation: The rest of it, to choose by.
        trainer_kwargs: Further arguments of the Trainer: `data_collator`, `processing_class`.
    """

    make_model: Callable[[], PreTrainedModel]
    train: Dataset
    test: Dataset
    fit: Dataset
    validation: Dataset
    trainer_kwargs: dict


def run_one(run: Run, task: Task, args: TrainingArguments, config: TraDyConfig, ranking_steps: int = 10) -> dict:
    """Train and evaluate.

    Args:
        run: The method, budget, seed and learning rate.
        task: Model and data.
        args: The arguments of every run of the comparison.
        config: The other fields of the configuration of a TraDyModel.
        ranking_steps: Batches that a ranking, or the gradients of channels, are measured on.

    Returns:
        accuracy: Of the evaluation.
        loss: Of the evaluation.
        peak_bytes: Highest peak of the process in training, above what it held before it, in phase `"memory"`.
        seconds: Of training, whatever had to be measured before included.
        train_seconds: Of the epochs alone.
        units: The most that a draw cost; None for a baseline.
        budget_units: What it might; None for a baseline.
    """
    if run.phase == "memory":
        _run_once(run, task, args, config, ranking_steps)  # what libraries load and compile in it stays
    return _run_once(run, task, args, config, ranking_steps)


def _run_once(run: Run, task: Task, args: TrainingArguments, config: TraDyConfig, ranking_steps: int) -> dict:
    args = copy.deepcopy(args)
    args.learning_rate, args.seed, args.data_seed = run.learning_rate, run.seed, run.seed
    args.output_dir = tempfile.mkdtemp(prefix="trady-compare-")
    if run.phase == "memory":
        args.max_steps = MEMORY_STEPS
        return_freed_memory()  # for every method alike; it takes time, which the other phases are spared
    try:
        set_seed(run.seed)
        model = task.make_model()
        train, test = (task.fit, task.validation) if run.phase == "tune" else (task.train, task.test)
        # What a strategy wants to see of other data, `velocity` say, must not be test data.
        others = {"eval_dataset": task.validation, "compute_metrics": _accuracy, **task.trainer_kwargs}
        datasets = {"train_dataset": train, **others}
        if run.method in BASELINES:
            return _train(run, _baseline_trainer(run, model, args, datasets), test)
        strategy, given = parse_method(run.method)
        config = TraDyConfig.from_dict(
            config.to_dict() | {"strategy": strategy, "memory_budget": run.budget, "seed": run.seed} | given
        )
        trainer = TraDyTrainer(TraDyModel(model, config), args, ranking_steps=ranking_steps, **datasets)
        figures = _train(run, trainer, test)
        units = max(entry["trady/units"] for entry in trainer.state.log_history if "trady/units" in entry)
        return figures | {"units": units, "budget_units": trainer.model.budget}
    finally:
        if run.phase == "memory":
            keep_freed_memory()
        shutil.rmtree(args.output_dir, ignore_errors=True)


def _train(run: Run, trainer: Trainer, test: Dataset) -> dict:
    trainer.remove_callback(PrinterCallback)  # of each log a dict, across the progress bar
    start = time.perf_counter()
    result = trainer.train()
    seconds = time.perf_counter() - start
    peaks = next(callback.peaks for callback in trainer.callback_handler.callbacks if hasattr(callback, "peaks"))
    measures = run.phase == "memory"
    evaluated = {} if measures else trainer.evaluate(test)
    return {
        "accuracy": evaluated.get("eval_accuracy"),
        "loss": evaluated.get("eval_loss"),
        "peak_bytes": max(peaks.values(), default=None) if measures else None,
        "seconds": seconds,
        "train_seconds": result.metrics["train_runtime"],
        "units": None,
        "budget_units": None,
    }


def _baseline_trainer(run: Run, model: PreTrainedModel, args: TrainingArguments, datasets: dict) -> Trainer:
    before = set(model.parameters())
    ready = make_baseline(run.method, model)
    added = sum(parameter.nbytes for parameter in ready.parameters() if parameter not in before)
    return Trainer(ready, args, callbacks=[_PeakCallback(added)], **datasets)


class _PeakCallback(TrainerCallback):
    """Measures the peak of training as `TraDyCallback` does. `already`: bytes of Parameters that a method added."""

    def __init__(self, already: int):
        self.already = already
        self.peaks: dict[int, int] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.tracker = PeakTracker(args.device, self.already, returns_freed=False)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.tracker.sample()

    def on_train_end(self, args, state, control, **kwargs):
        if self.tracker.peak is not None:
            self.peaks[0] = self.tracker.peak


def _accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, -1) == prediction.label_ids))}
