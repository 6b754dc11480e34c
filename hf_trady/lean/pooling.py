"""Max-pooling that keeps, of each window, the place of its maximum in one byte."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.utils import _pair

from .base import LeanModule
from .registry import register_lean


class _MaxPool2dFunction(torch.autograd.Function):
    """2-D max-pooling of x, `[B, C, H, W]`, that saves, per output element, the place inside its window as uint8."""

    @staticmethod
    def forward(ctx, x, kernel_size, stride, padding, dilation, ceil_mode):
        output, indices = F.max_pool2d_with_indices(x, kernel_size, stride, padding, dilation, ceil_mode)
        ctx.x_shape, ctx.window = x.shape, (kernel_size, stride, padding, dilation)
        rows, columns = _origins(output, ctx.window)
        row = (indices // x.shape[3]).sub_(rows).div_(dilation[0], rounding_mode="floor")
        column = (indices % x.shape[3]).sub_(columns).div_(dilation[1], rounding_mode="floor")
        ctx.save_for_backward(row.mul_(kernel_size[1]).add_(column).to(torch.uint8))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (places,) = ctx.saved_tensors
        kernel_size, _, _, dilation = ctx.window
        rows, columns = _origins(places, ctx.window)
        places = places.long()
        indices = (places // kernel_size[1]).mul_(dilation[0]).add_(rows).mul_(ctx.x_shape[3])
        indices += (places % kernel_size[1]).mul_(dilation[1]).add_(columns)
        grad_x = grad_output.new_zeros(ctx.x_shape).flatten(2)
        grad_x.scatter_add_(2, indices.flatten(2), grad_output.flatten(2))
        return grad_x.view(ctx.x_shape), None, None, None, None, None


def _origins(output: Tensor, window) -> tuple[Tensor, Tensor]:
    """Row and column in x where each window begins, `[H', 1]` and `[W']`."""
    _, stride, padding, _ = window
    row, column = (torch.arange(n, device=output.device) for n in output.shape[2:])
    return (row * stride[0] - padding[0]).unsqueeze(1), column * stride[1] - padding[1]


@register_lean(nn.MaxPool2d)
class LeanMaxPool2d(LeanModule, nn.MaxPool2d):
    """`nn.MaxPool2d` with windows of up to 256 elements. Exact."""

    exact = True

    def forward(self, input: Tensor) -> Tensor:
        kernel_size, stride = _pair(self.kernel_size), _pair(self.stride)
        fits = input.dim() == 4 and kernel_size[0] * kernel_size[1] <= 256 and not self.return_indices
        if not self.keeps_for_backward(input) or not fits:
            return super().forward(input)
        padding, dilation = _pair(self.padding), _pair(self.dilation)
        return _MaxPool2dFunction.apply(input, kernel_size, stride, padding, dilation, self.ceil_mode)
