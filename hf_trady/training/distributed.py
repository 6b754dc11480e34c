"""What several processes must know of a TraDyModel before they share its training."""

from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, gather_object, parse_flag_from_env
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import TrainingArguments

from ..layers import SparseLayer
from ..model import TraDyModel


def fsdp_plugin(accelerator: Accelerator) -> FullyShardedDataParallelPlugin | None:
    """How FSDP is to split models; None where it isn't."""
    return getattr(accelerator.state, "fsdp_plugin", None)


def shard_on_cpu(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Turn on the FSDP2 that was asked for where accelerate itself leaves it off: between processes on the CPU."""
    state = accelerator.state
    asked = args.fsdp_plugin_args is not None or parse_flag_from_env("ACCELERATE_USE_FSDP")
    if asked and state.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args or {})
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


def refuse_unsupported(accelerator: Accelerator, args: TrainingArguments, model: TraDyModel) -> None:
    """Refuse what can't train `model` over several processes as one process would. Changes nothing.

    Raises:
        ValueError: Names what was asked for, what works and what to do.
    """
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if deepspeed is not None:
        _refuse_zero(deepspeed.zero_stage)
    fsdp = fsdp_plugin(accelerator)
    if fsdp is not None:
        _refuse_fsdp(fsdp, args, model)


def _refuse_zero(stage: int) -> None:
    raise ValueError(
        f"DeepSpeed ZeRO stage {stage} can't train a TraDyModel: DeepSpeed keeps its own copies of the weights, which "
        "hide a redraw; use DDP, or FSDP2 to split the weights (accelerate launch --use_fsdp --fsdp_version 2)"
    )


def _refuse_fsdp(plugin, args: TrainingArguments, model: TraDyModel) -> None:
    refused = {
        f"fsdp_version={plugin.fsdp_version}": (plugin.fsdp_version != 2, "fsdp_version must be 2"),
        "cpu_ram_efficient_loading=True": (
            plugin.cpu_ram_efficient_loading,
            "set it to False (--fsdp_cpu_ram_efficient_loading false): each process reads weights before the split",
        ),
        "cpu_offload=True": (isinstance(plugin.cpu_offload, CPUOffloadPolicy), "set it to False"),
        f"memory_budget={model.trady_config.memory_budget!r}": (
            model.byte_budget is not None,
            "with FSDP it must be a share (a float) or units (an int): what FSDP gathers and frees is not in a plan",
        ),
        f"strategy={model.trady_config.strategy!r}": (
            model.refreshes_scores,
            "with FSDP, a strategy that measures anew before every draw needs the whole weights; choose another",
        ),
        "load_best_model_at_end=True": (args.load_best_model_at_end, "with FSDP, load the best checkpoint afterwards"),
        "weights in channels_last": (
            not all(parameter.is_contiguous() for parameter in model.parameters()),
            "FSDP takes contiguous ones: model.to(memory_format=torch.contiguous_format)",
        ),
        "a base model in 4 or 8 bits": (
            any(isinstance(module, SparseLayer) and module.beside for module in model.modules()),
            "FSDP can't split what trains beside a quantized weight; load it not quantized",
        ),
    }
    for given, (is_refused, remedy) in refused.items():
        if is_refused:
            raise ValueError(f"{given} is not allowed: {remedy}, or train with DDP")


def spare_communication(
    accelerator: Accelerator, args: TrainingArguments, model: TraDyModel, all_used: bool = False
) -> None:
    """Let DistributedDataParallel send gradients and nothing else, unless `args` say otherwise.

    Buffers that no step changes need not be broadcast before each forward, and of Parameters that all get a gradient
    none need be searched for.

    Args:
        accelerator: Is to prepare the model.
        args: Those of the Trainer.
        model: The model.
        all_used: Whether a step has been seen here in which every Parameter that trains got a gradient. The bias of an
            idle layer gets none, nor does an idle part of the head.
    """
    handler = accelerator.ddp_handler
    if handler is None:
        return
    if args.ddp_broadcast_buffers is None and not model.moves_buffers:
        handler.broadcast_buffers = False
    # With several flat Parameters, a draw may leave one of them empty.
    all_used = all(gather_object([all_used])) and len(model.active.flat) == 1
    if args.ddp_find_unused_parameters is None and all_used:
        handler.find_unused_parameters = False
