"""Tensors of which every process holds a part, as FSDP2 (`fully_shard`) leaves them between forwards.

A sharded tensor is a DTensor, split along its first dimension over all processes, in rank order; the part of this
process lies contiguous in memory.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of `tensor` only."""
    return isinstance(tensor, DTensor)


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` has been applied to `model` itself."""
    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Free what forwards have gathered of the sharded Parameters of `model`, so that all of them are parts again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`, on every process; itself where it isn't sharded. Collective where it is."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor


@torch.no_grad()
def put(tensor: Tensor, values: Tensor) -> None:
    """Set `tensor` to `values`, which are all of it; sharded or not."""
    if not is_sharded(tensor):
        tensor.copy_(values)
        return
    part, start = own_part(tensor)
    part.copy_(values.flatten()[start : start + len(part)])


def own_part(tensor: DTensor) -> tuple[Tensor, int]:
    """The part of this process, one-dimensional, sharing its memory, and at which element of all it starts.

    Raises:
        NotImplementedError: If the tensor is split another way than along its first dimension over one mesh dimension.
    """
    if tuple(tensor.placements) != (Shard(0),):
        raise NotImplementedError(
            f"a weight is split as {tensor.placements}, but must be along its first dimension alone; shard it over "
            "all processes, without tensor parallelism or replicas of shards"
        )
    mesh = tensor.device_mesh
    rows = -(-tensor.shape[0] // mesh.size())  # as torch.chunk, and so FSDP, splits them
    first = min(rows * mesh.get_local_rank(), tensor.shape[0])
    return tensor.detach().to_local().view(-1), first * tensor.shape[1:].numel()


def read_elements(tensor: DTensor, address: Tensor) -> Tensor:
    """The elements of `tensor` at `address`, int64 of any shape, counted through all of it in order. Collective."""
    part, start = own_part(tensor)
    address = address.to(part.device) - start
    values = part.new_zeros(address.shape)
    mine = (address >= 0) & (address < len(part))
    values[mine] = part[address[mine]]
    # Every element is zero but on one process: a sum of bytes, unlike one of numbers, keeps each bit.
    if len(values):
        dist.all_reduce(values.view(torch.uint8), group=tensor.device_mesh.get_group())
    return values


def write_elements(tensor: DTensor, address: Tensor, values: Tensor) -> None:
    """Set the elements at `address` to `values`, of its shape; each process does so for its part."""
    part, start = own_part(tensor)
    address = address.to(part.device) - start
    mine = (address >= 0) & (address < len(part))
    part[address[mine]] = values[mine].to(part.dtype)
