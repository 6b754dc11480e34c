"""Sparse backward for fully connected layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from .base import SparseLayer
from .registry import register_sparse_layer


class _LinearFunction(torch.autograd.Function):
    """`x @ weight.T + bias`, in x's dtype, that saves, of x, only the active channels.

    Shapes: x `[..., C]`, weight `[C', C]`, bias `[C']`, active `[n, C']`, x_active `[..., n]`.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, active, x_active):
        ctx.save_for_backward(x_active, weight)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        x_active, weight = ctx.saved_tensors
        grad_x = grad_bias = grad_active = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_output @ weight.to(grad_output.dtype)
        flat = grad_output.reshape(-1, grad_output.shape[-1])
        if ctx.needs_input_grad[2]:
            grad_bias = flat.sum(0)
        if ctx.needs_input_grad[3]:
            grad_active = x_active.reshape(-1, x_active.shape[-1]).t() @ flat
        return grad_x, None, grad_bias, grad_active, None


class _SparseFullyConnected(SparseLayer):
    leading_dims = 1
    shares_input = True

    def forward(self, x: Tensor) -> Tensor:
        # With a frozen weight and no active channel, autograd's own linear saves nothing of x. A weight that trains
        # whole (while layers are ranked) is left to autograd.
        if self.active_view is None or self.weight.requires_grad or not torch.is_grad_enabled():
            return super().forward(x)
        x_cast, active = self._cast(x, self.active_view)
        x_active = self._keep(x, -1, x_cast.dtype)
        return _LinearFunction.apply(x_cast, self._as_linear(self.weight), self.bias, active, x_active)

    def _as_linear(self, weight: Tensor) -> Tensor:
        """`weight` as a view of shape `[C', C]`."""
        return weight


@register_sparse_layer(nn.Linear)
class SparseLinear(_SparseFullyConnected, nn.Linear):
    """`nn.Linear` that trains some of its input features."""

    def num_channels(self) -> int:
        return self.in_features

    def num_outputs(self) -> int:
        return self.out_features

    def channel_view(self, tensor: Tensor) -> Tensor:
        return tensor.t()


@register_sparse_layer(Conv1D)
class SparseConv1D(_SparseFullyConnected, Conv1D):
    """transformers' `Conv1D` (GPT-2's linear layer, weight `[in, out]`) that trains some of its input features."""

    def num_channels(self) -> int:
        return self.nx

    def num_outputs(self) -> int:
        return self.nf

    def channel_view(self, tensor: Tensor) -> Tensor:
        return tensor

    def _as_linear(self, weight: Tensor) -> Tensor:
        return weight.t()
