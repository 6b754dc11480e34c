"""Sparse backward for 2-D convolutions: plain, strided, dilated, grouped and depthwise."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same_arg
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .base import SparseLayer
from .registry import register_sparse_layer


CHUNK_BYTES = 1 << 24
"""Where the backward must copy a gradient that is larger, it works through the batch in parts of about this size."""


class Gate(Protocol):
    """An activation of which one bit an element is kept (see `lean.gates`)."""

    def apply_(self, x: Tensor, keep: bool) -> Tensor | None: ...

    def grad(self, grad_output: Tensor, bits: Tensor) -> Tensor: ...


class Epilogue(Protocol):
    """What is done to a convolution's output within the same autograd function (see `lean.epilogue`).

    Attributes:
        gate: The activation, or None.
        shift: Bias of the frozen norm, `[C']`, which may train, or None.
    """

    gate: Gate | None
    shift: Tensor | None

    def is_ready(self) -> bool:
        """Whether the norm is a fixed affine map now."""
        ...

    def scale_and_mean(self) -> tuple[Tensor, Tensor]:
        """Scale and mean of the norm: it maps y to `(y - mean) * scale + shift`."""
        ...

    def hand_over(self, output: Tensor) -> None:
        """Tell the norm and the activation that `output` has been through them."""
        ...


@dataclass(frozen=True)
class _Call:
    """Stride, padding, dilation and groups of one convolution call, and the activation that follows.

    Padding is `(left, right, top, bottom)`. torch's convolution takes one number a dimension; where the two sides
    differ the input is padded beforehand.
    """

    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    gate: Gate | None = None

    @property
    def is_symmetric(self) -> bool:
        left, right, top, bottom = self.pads
        return left == right and top == bottom

    @property
    def padding(self) -> tuple[int, int]:
        return (self.pads[2], self.pads[0]) if self.is_symmetric else (0, 0)

    def pad(self, x: Tensor) -> Tensor:
        return x if self.is_symmetric else F.pad(x, self.pads)

    def crop(self, x: Tensor) -> Tensor:
        """Undo `pad`."""
        return x if self.is_symmetric else F.pad(x, [-amount for amount in self.pads])

    def padded_shape(self, shape: torch.Size) -> list[int]:
        left, right, top, bottom = (0, 0, 0, 0) if self.is_symmetric else self.pads
        return [*shape[:2], shape[2] + top + bottom, shape[3] + left + right]

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.conv2d(self.pad(x), weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def grad_x(self, grad_output: Tensor, x_shape: torch.Size, weight: Tensor) -> Tensor:
        shape_only = grad_output.new_empty(1).expand(self.padded_shape(x_shape))
        return self.crop(self._backward(grad_output, shape_only, weight, self.groups, "x"))

    def grad_weight(self, grad_output: Tensor, x: Tensor, weight_shape, groups: int) -> Tensor:
        shape_only = grad_output.new_empty(1).expand(weight_shape)
        return self._backward(grad_output, self.pad(x), shape_only, groups, "weight")

    def _backward(self, grad_output: Tensor, x: Tensor, weight: Tensor, groups: int, wanted: str) -> Tensor:
        mask = [wanted == "x", wanted == "weight", False]
        return torch.ops.aten.convolution_backward(
            grad_output, x, weight, None, self.stride, self.padding, self.dilation, False, [0, 0], groups, mask
        )[mask.index(True)]


class _ConvFunction(torch.autograd.Function):
    """2-D convolution, and what follows it, that saves, of x, only the active channels.

    Computes `gate(scale * (conv(x) + bias - mean) + shift)`: with a frozen batch-norm, whose scale goes into the
    weight and whose activation is done in place. Shapes: x `[B, C, H, W]`, weight `[C', C / groups, kH, kW]`; bias,
    scale, mean and shift `[C']`; active `[n, C' / groups, kH, kW]`, index `[n]`. All but x and weight may be None;
    without active channels nothing of x is saved at all.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, shift, active, index, scale, mean, call):
        keep = any(ctx.needs_input_grad)
        offset = bias
        if scale is not None:
            offset = (-mean if bias is None else bias - mean) * scale
            offset = offset if shift is None else offset + shift
        output = call.forward(x, _folded(weight, scale, x.dtype), None if offset is None else offset.to(x.dtype))
        bits = None if call.gate is None else call.gate.apply_(output, keep)
        if keep:
            ctx.call, ctx.x_shape, ctx.output_format = call, x.shape, _memory_format(output)
            ctx.save_for_backward(None if active is None else take_channels(x, index), weight, index, scale, bits)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        x_active, weight, index, scale, bits = ctx.saved_tensors
        call: _Call = ctx.call
        needs_x, _, needs_bias, needs_shift, needs_active = ctx.needs_input_grad[:5]
        grad_output = grad_output.contiguous(memory_format=ctx.output_format)
        parts = _parts(grad_output, ctx.x_shape, bits)
        folded = _folded(weight, scale, grad_output.dtype) if needs_x else None
        grad_x = grad_sum = grad_active = None
        if needs_x and len(parts) > 1:
            like = {"dtype": grad_output.dtype, "device": grad_output.device}
            grad_x = torch.empty(ctx.x_shape, **like, memory_format=ctx.output_format)
        for part in parts:
            grad = grad_output[part]
            if bits is not None:
                grad = call.gate.grad(grad, bits if len(parts) == 1 else bits[part])
            if needs_x:
                grad_part = call.grad_x(grad, (len(grad), *ctx.x_shape[1:]), folded)
                if grad_x is None:
                    grad_x = grad_part
                else:
                    grad_x[part] = grad_part
                del grad_part
            if needs_bias or needs_shift:
                grad_sum = _added(grad_sum, grad.sum((0, 2, 3)))
            if needs_active:
                grad_active = _added(grad_active, _grad_active(grad, x_active[part], weight.shape, index, call))
            del grad
        grad_bias = grad_sum if needs_bias else None
        if scale is not None:
            grad_bias = grad_sum * scale if needs_bias else None
            if needs_active:
                factor = scale if call.groups == 1 else scale[_outputs_of(index, weight.shape, call.groups)]
                grad_active = grad_active * factor[..., None, None].to(grad_active.dtype)
        return grad_x, None, grad_bias, grad_sum if needs_shift else None, grad_active, None, None, None, None


def take_channels(x: Tensor, index: Tensor) -> Tensor:
    """Copy of the channels `index` of x, `[B, C, H, W]`, that lies in memory as x does."""
    if _memory_format(x) == torch.channels_last:
        return x.permute(0, 2, 3, 1).index_select(-1, index).permute(0, 3, 1, 2)
    return x.index_select(1, index)


def _grad_active(grad_output: Tensor, x_active: Tensor, weight_shape, index: Tensor, call: _Call) -> Tensor:
    """Weight gradient of the active channels, `[n, C' / groups, kH, kW]`."""
    outputs, _, *kernel = weight_shape
    if call.groups == 1:
        if kernel == [1, 1] and not any(call.pads):
            return _grad_pointwise(grad_output, x_active, call.stride)[..., None, None]
        return call.grad_weight(grad_output, x_active, (outputs, len(index), *kernel), 1).transpose(0, 1)
    # Each active channel becomes a group of its own, beside the output channels of the group that it belonged to.
    grad_output = take_channels(grad_output, _outputs_of(index, weight_shape, call.groups).flatten())
    per_group = outputs // call.groups
    grad = call.grad_weight(grad_output, x_active, (len(index) * per_group, 1, *kernel), len(index))
    return grad.view(len(index), per_group, *kernel)


def _grad_pointwise(grad_output: Tensor, x_active: Tensor, stride: tuple[int, int]) -> Tensor:
    """`[n, C']`, by one matrix product that reads the output's gradient once."""
    x_used = x_active[..., :: stride[0], :: stride[1]]
    if _memory_format(grad_output) == torch.channels_last:
        rows = x_used.permute(0, 2, 3, 1).flatten(0, 2)
        return rows.t() @ grad_output.permute(0, 2, 3, 1).flatten(0, 2)
    return (x_used.flatten(2) @ grad_output.flatten(2).transpose(1, 2)).sum(0)


def _outputs_of(index: Tensor, weight_shape, groups: int) -> Tensor:
    """For each input channel, the output channels that it feeds: int64 `[n, C' / groups]`."""
    outputs, inputs, *_ = weight_shape
    per_group = outputs // groups
    first = index // inputs * per_group
    return first.unsqueeze(1) + torch.arange(per_group, device=index.device)


def _folded(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight with the norm's scale in it, as the convolution takes it."""
    return (weight if scale is None else weight * scale.view(-1, 1, 1, 1)).to(dtype)


def _parts(grad_output: Tensor, x_shape: torch.Size, bits: Tensor | None) -> list[slice]:
    """Parts of the batch to work through, one by one.

    Gating copies the output's gradient, and the library may copy the input's to reorder it; both are divided by as
    many parts. But the parts of the input's gradient must be put together, so it takes twice the size to divide it.
    """
    batch = len(grad_output)
    if bits is not None and len(bits) != batch:  # packed across samples
        return [slice(0, batch)]
    copied = 0 if bits is None else grad_output.nbytes
    formed = x_shape.numel() * grad_output.element_size() // 2
    step = max(1, CHUNK_BYTES * batch // max(copied, formed, 1))
    return [slice(start, min(start + step, batch)) for start in range(0, batch, step)]


def _memory_format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _added(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)


@register_sparse_layer(nn.Conv2d)
class SparseConv2d(SparseLayer, nn.Conv2d):
    """`nn.Conv2d` that trains some of its input channels.

    Attributes:
        epilogue: What follows this layer and is done together with it; None: nothing.
    """

    own_attributes = (*SparseLayer.own_attributes, "epilogue")
    leading_dims = 2  # group, channel within the group
    epilogue: Epilogue | None = None

    def num_channels(self) -> int:
        return self.in_channels

    def num_outputs(self) -> int:
        return self.out_channels

    def channel_view(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (self.groups, -1)).transpose(1, 2)

    def unsupported(self) -> str | None:
        return None if self.padding_mode == "zeros" else f"padding_mode='{self.padding_mode}' is not supported"

    def forward(self, x: Tensor) -> Tensor:
        # A weight that trains whole (while layers are ranked) is left to autograd.
        if not torch.is_grad_enabled() or self.weight.requires_grad:
            return super().forward(x)
        epilogue = self.epilogue if self.epilogue is not None and self.epilogue.is_ready() else None
        trains_bias = self.bias is not None and self.bias.requires_grad
        # autograd's own convolution saves all of x even when the weight is frozen: take ours if a gradient passes.
        if epilogue is None and self.active_view is None and not x.requires_grad and not trains_bias:
            return super().forward(x)
        if x.dim() == 3:  # one sample without a batch dimension
            return self.forward(x.unsqueeze(0)).squeeze(0)
        x, active = self._cast(x, self.active_view)
        gate = shift = scale = mean = None
        if epilogue is not None:
            gate, shift, (scale, mean) = epilogue.gate, epilogue.shift, epilogue.scale_and_mean()
        call = _Call(self.stride, tuple(self._pads(x)), self.dilation, self.groups, gate)
        output = _ConvFunction.apply(x, self.weight, self.bias, shift, active, self.active_index, scale, mean, call)
        if epilogue is not None:
            epilogue.hand_over(output)
        return output

    def _pads(self, x: Tensor) -> list[int]:
        """Padding `(left, right, top, bottom)`; torch has already resolved 'same' and 'valid' here."""
        return self._reversed_padding_repeated_twice


@register_sparse_layer(Conv2dSame)
class SparseConv2dSame(SparseConv2d, Conv2dSame):
    """timm's `Conv2dSame` (TensorFlow's SAME padding) that trains some of its input channels."""

    def _pads(self, x: Tensor) -> list[int]:
        return pad_same_arg(x.shape[-2:], self.kernel_size, self.stride, self.dilation)
