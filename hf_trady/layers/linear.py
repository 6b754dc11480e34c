"""Sparse backward for fully connected layers."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from ..views import standalone
from .base import SparseLayer
from .epilogue import Epilogue, parts_of
from .registry import register_sparse_layer


CHUNK_BYTES = 1 << 22
"""Of the gradient of an activation's input, about this much exists at once."""


class _LinearFunction(torch.autograd.Function):
    """`gate(x @ weight.T + bias)`, in x's dtype, that saves, of x, only the active channels.

    Shapes: x `[..., C]`, weight `[C', C]`, bias `[C']`, active `[n, C']`, x_active `[..., n]`. Where `outputs`, `[n]`,
    tells output channels, these are the active ones: active is `[n, C]` and x_active all of x. All but x and weight
    may be None. Instead of a tensor, weight may be what makes it, as a dtype, whenever it is needed.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, active, x_active, outputs, gate, probed):
        ctx.make_weight = None if isinstance(weight, Tensor) else weight
        dense = weight.to(x.dtype) if ctx.make_weight is None else weight(x.dtype)
        output = standalone(F.linear(x, dense, None if bias is None else bias.to(x.dtype)))
        del dense
        codes = None if gate is None else gate.apply_(output.view(-1, output.shape[-1]), True)
        ctx.gate, ctx.x_shape, ctx.probed = gate, x.shape, probed
        ctx.save_for_backward(x_active, weight if ctx.make_weight is None else None, outputs, codes)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        x_active, weight, outputs, codes = ctx.saved_tensors
        needs_x, _, needs_bias, needs_active = ctx.needs_input_grad[:4]
        flat = grad_output.reshape(-1, grad_output.shape[-1])
        x_active = x_active.reshape(len(flat), x_active.shape[-1]) if needs_active else None
        grad_x = flat.new_empty(len(flat), ctx.x_shape[-1]) if needs_x else None
        grad_bias = flat.new_zeros(flat.shape[-1]) if needs_bias else None
        grad_active = None
        if needs_active:
            shape = (x_active.shape[-1], flat.shape[-1]) if outputs is None else (len(outputs), x_active.shape[-1])
            grad_active = flat.new_zeros(shape)
        if needs_x:
            weight = weight.to(flat.dtype) if ctx.make_weight is None else ctx.make_weight(flat.dtype)
        for part in parts_of(flat, codes, CHUNK_BYTES):
            grad = flat[part]
            if codes is not None:
                grad = ctx.gate.grad(grad.contiguous(), codes[part] if len(codes) == len(flat) else codes)
            if ctx.probed is not None:
                ctx.probed.take(grad, part, len(flat))
            if needs_x:
                torch.mm(grad, weight, out=grad_x[part])
            if needs_bias:
                grad_bias += grad.sum(0)
            if needs_active and outputs is None:
                grad_active.addmm_(x_active[part].t(), grad)
            elif needs_active:
                grad_active.addmm_(grad[:, outputs].t(), x_active[part])
            del grad  # before the next one exists
        return grad_x if grad_x is None else grad_x.view(ctx.x_shape), None, grad_bias, grad_active, *[None] * 4


class SparseFullyConnected(SparseLayer):
    """What fully connected layers have in common, however they hold their weight."""

    leading_dims = 1
    shares_input = True

    def forward(self, input: Tensor) -> Tensor:
        # With a frozen weight and no active channel, autograd's own linear saves nothing of the input. A weight that
        # trains whole (while layers are ranked) is left to autograd.
        if self.weight.requires_grad or not torch.is_grad_enabled():
            return super().forward(input)
        epilogue = self._ready_epilogue() if input.requires_grad or self.active_view is not None else None
        # The weight's, a copy a call.
        keeps_cast = input.requires_grad and torch.is_autocast_enabled(input.device.type)
        if self.active_view is None and epilogue is None and not keeps_cast:
            return super().forward(input)
        return self._sparse_forward(input, epilogue)

    def _sparse_forward(self, x: Tensor, epilogue: Epilogue | None) -> Tensor:
        """A forward of which backward keeps only the active channels of `x`."""
        x_cast, active = self._cast(x, self._trained())
        x_active = outputs = None
        if active is not None and self.by_output:
            x_active, outputs = x_cast.detach(), self.active_index
        elif active is not None:
            x_active = self._keep(x, -1, x_cast.dtype)
        gate = None if epilogue is None else epilogue.gate
        output = _LinearFunction.apply(
            x_cast, self._linear_weight(), self.bias, active, x_active, outputs, gate, self._probed_call()
        )
        if epilogue is not None:
            epilogue.hand_over(output)
        return output

    def _linear_weight(self) -> Tensor | Callable[[torch.dtype], Tensor]:
        """The weight as a view of shape `[C', C]`, or what makes it of a dtype."""
        return self.weight


@register_sparse_layer(nn.Linear)
class SparseLinear(SparseFullyConnected, nn.Linear):
    """`nn.Linear` that trains some of its input features."""

    def num_channels(self) -> int:
        return self.in_features

    def num_outputs(self) -> int:
        return self.out_features

    def channel_view(self, tensor: Tensor) -> Tensor:
        return tensor.t()

    def unsupported(self) -> str | None:
        if is_traceable_wrapper_subclass(self.weight.data):
            return f"its weight is a {type(self.weight.data).__name__} (quantized or distributed), not a plain tensor"
        return None


@register_sparse_layer(FalconLinear)
class SparseFalconLinear(SparseLinear, FalconLinear):
    """Falcon's linear layer, without a bias, that trains some of its input features."""

    def unsupported(self) -> str | None:
        if self.bias is not None:
            return "FalconLinear adds its bias by itself, under autocast in another precision than its product"
        return None


@register_sparse_layer(Conv1D)
class SparseConv1D(SparseFullyConnected, Conv1D):
    """transformers' `Conv1D` (GPT-2's linear layer, weight `[in, out]`) that trains some of its input features."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def num_channels(self) -> int:
        return self.nx

    def num_outputs(self) -> int:
        return self.nf

    def channel_view(self, tensor: Tensor) -> Tensor:
        return tensor

    def _linear_weight(self) -> Tensor:
        return self.weight.t()

    def output_view(self, tensor: Tensor) -> Tensor:
        return tensor.t()
