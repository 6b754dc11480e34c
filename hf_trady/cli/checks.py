"""What is refused late, or by a traceback, if at all: tried before anything is loaded."""

from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks


def check_counts(args: Any, *names: str) -> None:
    """Refuse attributes of `args` that count something and are below 1; None is fine.

    Raises:
        ValueError: Names the first.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} is not allowed; it must be at least 1")


def check_lists(args: Any, *names: str) -> None:
    """Refuse attributes of `args` that are lists and have no entry.

    Raises:
        ValueError: Names the first.
    """
    for name in names:
        if not getattr(args, name):
            raise ValueError(f"{name} is an empty list; give one value at least, or leave {name} out for its default")


def check_training_arguments(args: TrainingArguments) -> None:
    """Look whether `args` let anything be trained, and on the labels that data is loaded with; try the integrations
    that it reports to, and its learning rate schedule.

    Raises:
        ValueError: If not, or if one can't be used; says why.
    """
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise ValueError(
            f"num_train_epochs={args.num_train_epochs} is not allowed, as nothing would be trained; it must be above "
            "0, or else max_steps"
        )
    if args.label_names not in (None, ["labels"]):
        raise ValueError(
            f"label_names={args.label_names} is not allowed, as any data is loaded with its labels as 'labels'; leave "
            "it out"
        )
    for callback in get_reporting_integration_callbacks(args.report_to):
        try:
            callback()
        except (RuntimeError, ImportError) as error:  # its package isn't installed
            raise ValueError(f"report_to={args.report_to} can't be used: {' '.join(str(error).split())}") from error
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    kwargs = args.lr_scheduler_kwargs
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 0, 1000, kwargs)
    except (TypeError, ValueError) as error:
        name = args.lr_scheduler_type.value
        raise ValueError(f"lr_scheduler_type='{name}' doesn't take lr_scheduler_kwargs={kwargs}: {error}") from error
