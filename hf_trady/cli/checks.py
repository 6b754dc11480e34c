"""What a Trainer refuses late, or by a traceback: tried before anything is loaded."""

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks


def check_training_arguments(args: TrainingArguments) -> None:
    """Try the integrations that `args` reports to, and its learning rate schedule.

    Raises:
        ValueError: If one can't be used; says why.
    """
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
