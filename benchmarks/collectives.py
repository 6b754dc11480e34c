"""The bytes that a process hands to collectives, measured."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


# Of these the first argument is what they fill; what a process gives is the second.
WITH_OUTPUT = ("_allgather_base_", "_reduce_scatter_base_", "allgather_", "reduce_scatter_")

FUNCTIONAL = ("all_gather_into_tensor", "all_reduce", "reduce_scatter_tensor")  # as DTensor calls them


class CollectiveBytes(TorchDispatchMode):
    """Counts what collectives are given while it is on, in bytes, on one process.

    Of an all-reduce and a reduce-scatter that is the whole tensor, of an all-gather the part of this process. How
    often the bytes cross a wire follows from the algorithm: in a ring of P processes, each sends 2 (P - 1) / P times
    the bytes of an all-reduce, (P - 1) / P times those of a reduce-scatter, P - 1 times its part of an all-gather.

    Attributes:
        given: Name of the operation -> bytes.
    """

    def __init__(self):
        super().__init__()
        self.given: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func._opname
            source = args[1] if name in WITH_OUTPUT else args[0]
            self.given[name] += sum(leaf.nbytes for leaf in tree_leaves(source) if isinstance(leaf, torch.Tensor))
        elif func.namespace == "_c10d_functional" and func._opname in FUNCTIONAL:
            self.given[func._opname] += args[0].nbytes
        return func(*args, **(kwargs or {}))
