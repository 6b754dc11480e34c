"""What goes wrong in training, in one line that says what to do."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import Trainer

from ..memory import MIB
from ..model import TraDyModel


class TrainingOutOfMemoryError(torch.OutOfMemoryError, MemoryError):
    """Memory ran out in training; the message says what the planner had predicted and what to lower."""


@contextmanager
def in_one_line(trainer: Trainer) -> Iterator[None]:
    """Say in one line what went wrong in the block, where the error of torch or of a data loader is known.

    Args:
        trainer: Trains a [`TraDyModel`] in the block.

    Raises:
        TrainingOutOfMemoryError: If memory ran out.
        ChildProcessError: If a worker of the data loader died.
        ValueError: If labels, inputs or shapes don't fit the model or each other, or if DistributedDataParallel waits
            for a gradient that doesn't come.
        The error of a worker of the data loader, without the worker's traceback.
    """
    try:
        yield
    except (RuntimeError, ValueError, LookupError, MemoryError, OSError) as error:
        raised = _as_known(error, trainer)
        if raised is None:
            raise
        raise raised from error


def _as_known(error: Exception, trainer: Trainer) -> Exception | None:
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in text:
        return TrainingOutOfMemoryError(_out_of_memory(trainer))
    for pattern, explain in _KNOWN.items():
        found = re.search(pattern, text)
        if found is not None:
            return explain(found, trainer)
    if re.match(r"Caught \w+ in DataLoader worker process", text):  # the worker's traceback, and then its error
        line = text.strip().splitlines()[-1]
        return type(error)(re.sub(rf"^([\w.]+\.)?{type(error).__name__}: ", "", line))
    return None


def _out_of_memory(trainer: Trainer) -> str:
    model: TraDyModel = trainer.accelerator.unwrap_model(trainer.model)
    fitted, args = model.fitted, trainer.args
    if fitted is not None:
        known = f"the planner predicted {fitted.predicted_peak / MIB:,.1f} MiB above the weights"
    else:
        known = "with a budget in bytes, such as '256MiB', a planner would have fitted the step"
    return (
        f"out of memory at step {trainer.state.global_step + 1} ({known}); lower per_device_train_batch_size "
        f"(now {args.per_device_train_batch_size}; max_batch_size() tells the largest) with as much more "
        f"gradient_accumulation_steps, memory_budget (now {model.trady_config.memory_budget!r}) or the size of the "
        "inputs, or set gradient_checkpointing"
    )


def _dead_worker(found: re.Match, trainer: Trainer) -> Exception:
    return ChildProcessError(
        f"a worker of the data loader (pid {found[1]}) died; lower dataloader_num_workers "
        f"(now {trainer.args.dataloader_num_workers}; each takes memory), or set it to 0 to see the error. What was "
        "saved is whole: train(resume_from_checkpoint=True) goes on from it"
    )


def _wrong_label(found: re.Match, trainer: Trainer) -> Exception:
    return ValueError(
        f"label {found[1]} is none of the classes that the head of this model has; make the model with as many "
        "classes as the data (num_classes, num_labels), or check the labels, which count from 0"
    )


def _unequal_samples(found: re.Match, trainer: Trainer) -> Exception:
    return ValueError(
        f"the samples of a batch differ in shape ({found[1]} and {found[2]}); resize or pad them in the dataset or by "
        "a data_collator, or use per_device_train_batch_size=1"
    )


def _one_value(found: re.Match, trainer: Trainer) -> Exception:
    return ValueError(
        "a batch-norm got one value a channel, which has no variance; use norm_mode='frozen', or batches of more than "
        "one sample (dataloader_drop_last=True leaves out a last one)"
    )


def _wrong_id(found: re.Match, trainer: Trainer) -> Exception:
    return ValueError(
        "an input id or a position is beyond the model's embedding; use the tokenizer of this model, and texts of at "
        "most its length"
    )


def _unused(found: re.Match, trainer: Trainer) -> Exception:
    return ValueError(
        "a Parameter that trains got no gradient in a step, which DistributedDataParallel waits for: a layer that is "
        "not called each time (layerdrop), its bias or a part of the head; set ddp_find_unused_parameters=True"
    )


def _missing_metric(found: re.Match, trainer: Trainer) -> Exception:
    return ValueError(
        f"metric_for_best_model='{found[1]}' is none of the metrics of the evaluation; let compute_metrics "
        "(--metrics) give it, or take loss"
    )


_KNOWN: dict[str, Callable[[re.Match, Trainer], Exception]] = {
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)": _dead_worker,
    r"Target (-?\d+) is out of bounds": _wrong_label,
    r"stack expects each tensor to be equal size, but got (\[.*?\]) at entry \d+ and (\[.*?\]) at entry": (
        _unequal_samples
    ),
    r"Expected more than 1 value per channel when training": _one_value,
    r"index out of range in self": _wrong_id,
    r"Expected to have finished reduction in the prior iteration": _unused,
    r"`metric_for_best_model` training argument is set to '(?:eval_)?([^']+)'": _missing_metric,
}
