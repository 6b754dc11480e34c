"""Sparse backward for 2-D convolutions: plain, strided, dilated, grouped and depthwise."""

import torch
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same_arg
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .base import SparseLayer
from .convolution import Convolution, memory_format, take_channels
from .epilogue import parts_of
from .registry import register_sparse_layer


CHUNK_BYTES = 1 << 24
"""Where the backward must copy a larger gradient, it works through the batch in parts of about this size."""


class _ConvFunction(torch.autograd.Function):
    """2-D convolution, and what follows it, that saves, of x, only the active channels.

    Computes `gate(scale * (conv(x) + bias - mean) + shift)`: with a frozen batch-norm, whose scale goes into the
    weight and whose activation is done in place. Shapes: x `[B, C, H, W]`, weight `[C', C / groups, kH, kW]`; bias,
    scale, mean and shift `[C']`; active `[n, C' / groups, kH, kW]`, index `[n]`. All but x and weight may be None;
    without active channels nothing of x is saved at all. Where `by_output`, the active channels are those of the
    output: active is `[n, C / groups, kH, kW]`, and all of x is saved.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, shift, active, index, scale, mean, conv, gate, by_output, probed):
        keep = any(ctx.needs_input_grad)
        offset = bias
        if scale is not None:
            offset = (-mean if bias is None else bias - mean) * scale
            offset = offset if shift is None else offset + shift
        output = conv.output(x, _folded(weight, scale, x.dtype), None if offset is None else offset.to(x.dtype))
        bits = None if gate is None else gate.apply_(output, keep)
        if keep:
            ctx.conv, ctx.gate, ctx.probed, ctx.x_shape = conv, gate, probed, x.shape
            ctx.output_format = memory_format(output)
            x_active = None
            if active is not None:
                x_active = conv.used(x if by_output else take_channels(x, index), weight.shape, memory_format(x))
            ctx.by_output = by_output
            ctx.save_for_backward(x_active, weight, index, scale, bits)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        x_active, weight, index, scale, bits = ctx.saved_tensors
        conv: Convolution = ctx.conv
        needs_x, _, needs_bias, needs_shift, needs_active = ctx.needs_input_grad[:5]
        grad_output = grad_output.contiguous(memory_format=ctx.output_format)
        parts = parts_of(grad_output, bits, CHUNK_BYTES)
        folded = _folded(weight, scale, grad_output.dtype) if needs_x else None
        grad_x = grad_sum = grad_active = None
        if needs_x and len(parts) > 1:
            like = {"dtype": grad_output.dtype, "device": grad_output.device}
            grad_x = torch.empty(ctx.x_shape, **like, memory_format=ctx.output_format)
        for part in parts:
            grad = grad_output[part]
            if bits is not None:
                grad = ctx.gate.grad(grad, bits if len(parts) == 1 else bits[part])
            if ctx.probed is not None:
                ctx.probed.take(grad, part, len(grad_output), scale)
            if needs_x and len(parts) > 1:
                conv.grad_x(grad, ctx.x_shape, folded, out=grad_x[part])
            elif needs_x:
                grad_x = conv.grad_x(grad, ctx.x_shape, folded)
            if needs_bias or needs_shift:
                grad_sum = _added(grad_sum, grad.sum((0, 2, 3)))
            if needs_active:
                grad_part = conv.grad_active(grad, x_active[part], weight.shape, index, ctx.by_output)
                grad_active = _added(grad_active, grad_part)
            del grad
        grad_bias = grad_sum if needs_bias else None
        if scale is not None:
            grad_bias = grad_sum * scale if needs_bias else None
            if needs_active:
                if ctx.by_output:
                    factor = scale[index].unsqueeze(1)
                else:
                    factor = scale if conv.groups == 1 else scale[conv.outputs_of(index, weight.shape)]
                grad_active = grad_active * factor[..., None, None].to(grad_active.dtype)
        return grad_x, None, grad_bias, grad_sum if needs_shift else None, grad_active, *[None] * 7


def _folded(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight with the norm's scale in it, as the convolution takes it."""
    return (weight if scale is None else weight * scale.view(-1, 1, 1, 1)).to(dtype)


def _added(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)


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

    def forward(self, input: Tensor) -> Tensor:
        # A weight that trains whole (while layers are ranked) is left to autograd.
        if not torch.is_grad_enabled() or self.weight.requires_grad:
            return super().forward(input)
        epilogue = self._ready_epilogue()
        trains_bias = self.bias is not None and self.bias.requires_grad
        # autograd's own convolution saves all of x even when the weight is frozen: take ours if a gradient passes.
        if epilogue is None and self.active_view is None and not input.requires_grad and not trains_bias:
            return super().forward(input)
        is_batched = input.dim() == 4
        x = input if is_batched else input.unsqueeze(0)
        x, active = self._cast(x, self._trained())
        gate = shift = scale = mean = None
        if epilogue is not None:
            gate, shift, (scale, mean) = epilogue.gate, epilogue.shift, epilogue.scale_and_mean()
        conv = Convolution(self.stride, tuple(self._pads(x)), self.dilation, self.groups)
        output = _ConvFunction.apply(
            x,
            self.weight,
            self.bias,
            shift,
            active,
            self.active_index,
            scale,
            mean,
            conv,
            gate,
            self.by_output,
            self._probed_call(),
        )
        output = output if is_batched else output.squeeze(0)
        if epilogue is not None:
            epilogue.hand_over(output)
        return output

    def _pads(self, x: Tensor) -> list[int]:
        """Padding `(left, right, top, bottom)`; torch has already resolved 'same' and 'valid' here."""
        return self._reversed_padding_repeated_twice


@register_sparse_layer(Conv2dSame)
class SparseConv2dSame(SparseConv2d, Conv2dSame):
    """timm's `Conv2dSame` (TensorFlow's SAME padding) that trains some of its input channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def _pads(self, x: Tensor) -> list[int]:
        return pad_same_arg(x.shape[-2:], self.kernel_size, self.stride, self.dilation)
