"""Sparse backward for 2-D convolutions: plain, strided, dilated, grouped and depthwise."""

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same_arg
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .base import SparseLayer
from .registry import register_sparse_layer


class _Geometry:
    """Stride, padding, dilation and groups of one convolution call.

    Padding is `(left, right, top, bottom)`. torch's convolution takes one number a dimension; where the two sides
    differ the input is padded beforehand.
    """

    __slots__ = ("dilation", "groups", "padding", "pads", "stride")

    def __init__(self, stride, pads, dilation, groups):
        left, right, top, bottom = pads
        symmetric = left == right and top == bottom
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.padding = (top, left) if symmetric else (0, 0)
        self.pads = None if symmetric else tuple(pads)

    def pad(self, x: Tensor) -> Tensor:
        return x if self.pads is None else F.pad(x, self.pads)

    def crop(self, x: Tensor) -> Tensor:
        """Undo `pad`."""
        return x if self.pads is None else F.pad(x, [-amount for amount in self.pads])

    def padded_shape(self, shape: torch.Size) -> list[int]:
        left, right, top, bottom = self.pads or (0, 0, 0, 0)
        return [*shape[:2], shape[2] + top + bottom, shape[3] + left + right]

    def backward(self, grad_output: Tensor, x: Tensor, weight: Tensor, groups: int, wanted: str) -> Tensor:
        """The library's gradient for the input (`wanted="x"`) or the weight (`wanted="weight"`) alone."""
        mask = [wanted == "x", wanted == "weight", False]
        return torch.ops.aten.convolution_backward(
            grad_output, x, weight, None, self.stride, self.padding, self.dilation, False, [0, 0], groups, mask
        )[mask.index(True)]


class _ConvFunction(torch.autograd.Function):
    """2-D convolution that saves, of x, only the active channels.

    Shapes: x `[B, C, H, W]`, weight `[C', C / groups, kH, kW]`, bias `[C']`, active `[n, C' / groups, kH, kW]`,
    index `[n]`. active and index may be None: then nothing of x is saved at all.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, active, index, geometry):
        ctx.geometry, ctx.x_shape = geometry, x.shape
        ctx.save_for_backward(None if active is None else x.index_select(1, index), weight, index)
        padded = geometry.pad(x)
        return torch.conv2d(
            padded, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        x_active, weight, index = ctx.saved_tensors
        geometry = ctx.geometry
        grad_x = grad_bias = grad_active = None
        if ctx.needs_input_grad[0]:
            shape_only = grad_output.new_empty(1).expand(geometry.padded_shape(ctx.x_shape))
            grad_x = geometry.crop(geometry.backward(grad_output, shape_only, weight, geometry.groups, "x"))
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum((0, 2, 3))
        if ctx.needs_input_grad[3]:
            grad_active = _grad_active(grad_output, x_active, weight.shape, index, geometry)
        return grad_x, None, grad_bias, grad_active, None, None


def _grad_active(grad_output: Tensor, x_active: Tensor, weight_shape, index: Tensor, geometry: _Geometry) -> Tensor:
    """Weight gradient of the active channels, `[n, C' / groups, kH, kW]`."""
    outputs, inputs, *kernel = weight_shape
    x_active = geometry.pad(x_active)
    if geometry.groups == 1:
        if kernel == [1, 1] and geometry.padding == (0, 0):
            x_used = x_active[..., :: geometry.stride[0], :: geometry.stride[1]]
            grad = (x_used.flatten(2) @ grad_output.flatten(2).transpose(1, 2)).sum(0)
            return grad[..., None, None]
        shape_only = grad_output.new_empty(1).expand(outputs, len(index), *kernel)
        return geometry.backward(grad_output, x_active, shape_only, 1, "weight").transpose(0, 1)
    # Each active channel becomes a group of its own, beside the output channels of the group that it belonged to.
    per_group = outputs // geometry.groups
    grad_groups = grad_output.unflatten(1, (geometry.groups, per_group))
    grad_output = grad_groups.index_select(1, index // inputs).flatten(1, 2)
    shape_only = grad_output.new_empty(1).expand(len(index) * per_group, 1, *kernel)
    grad = geometry.backward(grad_output, x_active, shape_only, len(index), "weight")
    return grad.view(len(index), per_group, *kernel)


@register_sparse_layer(nn.Conv2d)
class SparseConv2d(SparseLayer, nn.Conv2d):
    """`nn.Conv2d` that trains some of its input channels."""

    leading_dims = 2  # group, channel within the group

    def num_channels(self) -> int:
        return self.in_channels

    def num_outputs(self) -> int:
        return self.out_channels

    def channel_view(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (self.groups, -1)).transpose(1, 2)

    def unsupported(self) -> str | None:
        return None if self.padding_mode == "zeros" else f"padding_mode='{self.padding_mode}' is not supported"

    def forward(self, x: Tensor) -> Tensor:
        trains_bias = self.bias is not None and self.bias.requires_grad
        # autograd's own convolution saves all of x even when the weight is frozen: take ours whenever a gradient
        # passes, but leave a weight that trains whole (while layers are ranked) to autograd.
        passes = self.active_view is not None or x.requires_grad or trains_bias
        if not torch.is_grad_enabled() or self.weight.requires_grad or not passes:
            return super().forward(x)
        if x.dim() == 3:  # one sample without a batch dimension
            return self.forward(x.unsqueeze(0)).squeeze(0)
        geometry = _Geometry(self.stride, self._pads(x), self.dilation, self.groups)
        return _ConvFunction.apply(*self._cast(x), self.active_index, geometry)

    def _pads(self, x: Tensor) -> list[int]:
        """Padding `(left, right, top, bottom)`; torch has already resolved 'same' and 'valid' here."""
        return self._reversed_padding_repeated_twice


@register_sparse_layer(Conv2dSame)
class SparseConv2dSame(SparseConv2d, Conv2dSame):
    """timm's `Conv2dSame` (TensorFlow's SAME padding) that trains some of its input channels."""

    def _pads(self, x: Tensor) -> list[int]:
        return pad_same_arg(x.shape[-2:], self.kernel_size, self.stride, self.dilation)
