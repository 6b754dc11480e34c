"""What several processes are told of a TraDyModel before they share its training."""

from accelerate import Accelerator
from transformers import TrainingArguments

from ..model import TraDyModel


def spare_communication(accelerator: Accelerator, args: TrainingArguments, model: TraDyModel) -> None:
    """Let DistributedDataParallel send gradients and nothing else, unless `args` say otherwise.

    Buffers that no step changes need not be broadcast before each forward, and of Parameters that all get a gradient
    none need be searched for.
    """
    handler = accelerator.ddp_handler
    if handler is None:
        return
    if args.ddp_broadcast_buffers is None and not model.moves_buffers:
        handler.broadcast_buffers = False
    # With several flat Parameters, a draw may leave one of them empty.
    if args.ddp_find_unused_parameters is None and len(model.active.flat) == 1:
        handler.find_unused_parameters = False
