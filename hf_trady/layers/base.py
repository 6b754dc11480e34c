"""What every sparse-backward layer is: an ordinary layer that can train a few of its channels."""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..standin import StandIn
from .epilogue import Epilogue
from .shared import SharedSlice, take_slice


if TYPE_CHECKING:
    from .probe import Probe, ProbedCall


KEPT_INDEX, KEPT_VALUES = "kept_channels.index", "kept_channels.values"
"""Where the state dict of a layer that is `beside` holds what trained, behind the layer's name."""


class SparseLayer(StandIn):
    """Mixin for a subclass of a torch layer whose backward keeps and computes only some input channels.

    A layer is turned sparse by assigning its `__class__` (see `registry.py`), so its Parameters, state-dict keys,
    hooks and identity stay what they were. The public methods but `forward` and `write` use only the attributes of the
    plain layer, so they may be called on one: `SparseLinear.num_channels(linear)`.

    Attributes:
        leading_dims: How many leading dimensions of `channel_view(weight)`, 1 or 2, enumerate input channels.
        beside: Whether the weight stays as it is (it is quantized), and what trains is kept beside it.
        shares_input: Whether layers of this kind that are given the same input keep one slice of it between them.
        active_index: Sorted indices of the active input channels, int64 `[n]`; None when there is none.
        active_view: Values of these channels, `[n, *channel_shape]`: a view of the Parameter that collects their
            gradient, equal to the slice of `weight`. None before the first training forward.
        shared_slice: Takes the slice of the input for this layer and others; None where this one takes its own.
        epilogue: What follows this layer and is done together with it; None: nothing.
        by_output: Train output channels instead: `active_index` counts those, and all of the input is kept.
        probe: Looks at the gradients of the outputs; None: nothing does.
    """

    own_attributes = ("active_index", "active_view", "shared_slice", "epilogue", "probe", "by_output")
    transient_attributes = ("active_view",)  # a view with a graph
    leading_dims: ClassVar[int]
    beside: ClassVar[bool] = False
    shares_input: ClassVar[bool] = False
    active_index: Tensor | None = None
    active_view: Tensor | None = None
    shared_slice: SharedSlice | None = None
    epilogue: Epilogue | None = None
    probe: "Probe | None" = None
    by_output: bool = False

    def num_channels(self) -> int:
        """Number of input channels (features)."""
        raise NotImplementedError

    def num_outputs(self) -> int:
        """Number of output channels (features)."""
        raise NotImplementedError

    def channel_view(self, tensor: Tensor) -> Tensor:
        """`tensor`, shaped like `weight`, as a view `[*leading, *channel_shape]` that shares its memory."""
        raise NotImplementedError

    def output_view(self, tensor: Tensor) -> Tensor:
        """`tensor`, shaped like `weight`, as a view whose first dimension enumerates output channels."""
        return tensor

    def unsupported(self) -> str | None:
        """Why this very layer can't be trained by channel, or None when it can."""
        return None

    def weight_shape(self) -> torch.Size:
        """Shape of the weight that the layer computes with."""
        return self.weight.shape

    def weight_dtype(self) -> torch.dtype:
        """Type of the values of a channel."""
        return self.weight.dtype

    def dense_weight(self) -> Tensor:
        """The weight that the layer computes with, without a graph: the layer's own memory unless it is `beside`."""
        # By `.data`: writing the values that are already there, between a forward and its backward, must not make
        # autograd believe that the weight has changed.
        return self.weight.data

    def write(self, index: Tensor, values: Tensor) -> None:
        """Set the channels `index` (int64 `[n]`) to `values`, `[n, *channel_shape]`; only of a layer that is `beside`,
        as all others are written to through `dense_weight`."""
        raise NotImplementedError

    def witness(self, channel: int) -> tuple[str, Tensor] | None:
        """What the frozen weight is told by, where that is not the values of `channel`: its format, and some of it."""
        return None

    def _ready_epilogue(self) -> Epilogue | None:
        # A hook sees, and may replace, what the layer itself gives.
        ready = self.epilogue is not None and not self._forward_hooks and self.epilogue.is_ready()
        return self.epilogue if ready else None

    def _probed_call(self) -> "ProbedCall | None":
        return None if self.probe is None else self.probe.begin()

    def _cast(self, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """`tensors` as autocast would hand them to the plain operation."""
        if not torch.is_autocast_enabled(tensors[0].device.type):
            return tensors
        dtype = torch.get_autocast_dtype(tensors[0].device.type)
        return tuple(tensor if _keeps_dtype(tensor) else tensor.to(dtype) for tensor in tensors)

    def _trained(self) -> Tensor | None:
        """`active_view`; a compiler is told that it is as long as `active_index`."""
        if self.active_view is not None and torch.compiler.is_compiling():
            torch._check(len(self.active_view) == len(self.active_index))
        return self.active_view

    def _keep(self, x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        """The active channels of `x`, which lie along `dim`, as `dtype`: all of it that backward needs.

        Give it the `x` that the layer was called with: what autocast makes of it is another tensor in every layer.
        """
        # Which layers share changes from draw to draw, and would be compiled anew.
        if torch.compiler.is_compiling() or self.shared_slice is None:
            return take_slice(x, self.active_index, dim, dtype)
        return self.shared_slice.take(x, self.active_index, dim, dtype)


def _keeps_dtype(tensor: Tensor | None) -> bool:
    """Whether autocast leaves `tensor` alone."""
    return tensor is None or tensor.dtype == torch.float64
