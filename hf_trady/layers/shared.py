"""The slice of an input that backward needs: taken once for all layers that are given this very input."""

import weakref

import torch
from torch import Tensor


class SharedSlice:
    """The active channels of an input, for several layers that are given the same one and train the same channels.

    The first layer that runs takes the slice, the others get the same tensor. It is held here until the last of them
    has it, and no longer than the input lives; from then on only autograd holds it. The input is never held. A layer
    that is given another input, or one that has been changed in place meanwhile, gets a slice of its own.

    Args:
        num_layers: How many layers share it.
    """

    def __init__(self, num_layers: int):
        self.num_layers = num_layers
        # The input, its version, the slice, and how many layers are still to run.
        self._held: tuple[weakref.ref, int, Tensor, int] | None = None

    def take(self, x: Tensor, index: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        """What `take_slice` gives for the same arguments."""
        if x.is_inference():  # it counts no versions
            return take_slice(x, index, dim, dtype)
        held = self._held  # read once: a replica in another thread may replace it
        if held is not None and held[0]() is x and held[1] == x._version and held[2].dtype == dtype:
            source, version, part, left = held
        else:
            source, version, left = weakref.ref(x, self._forget), x._version, self.num_layers
            part = take_slice(x, index, dim, dtype)
        self._held = (source, version, part, left - 1) if left > 1 else None
        return part

    def _forget(self, source: weakref.ref) -> None:
        if self._held is not None and self._held[0] is source:
            self._held = None

    def __getstate__(self):
        return {"num_layers": self.num_layers, "_held": None}  # a weak reference can be neither copied nor pickled


def take_slice(x: Tensor, index: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """A copy of `x` at `index` (int64 `[n]`) along `dim`, as `dtype`, without a graph."""
    with torch.no_grad():
        return x.index_select(dim, index).to(dtype)
