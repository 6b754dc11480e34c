"""Backward-lean activations, and those of them of which one bit an element is kept."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .base import Absorbable
from .bits import dense
from .gates import Gate
from .registry import register_lean
from .smooth_gates import SmoothGate


class _GateFunction(torch.autograd.Function):
    """`gate(x)`, x of any shape, that saves the code of the derivative. In place if asked to."""

    @staticmethod
    def forward(ctx, x, gate, inplace):
        if inplace:
            ctx.mark_dirty(x)
        output = x if inplace else dense(x).clone()
        ctx.gate, ctx.strides = gate, output.stride()
        ctx.save_for_backward(gate.apply_(output))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (code,) = ctx.saved_tensors
        return ctx.gate.grad(_laid_out(grad_output, ctx.strides), code), None, None


def _laid_out(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """`x`, copied only if it lies in memory otherwise than `strides` say."""
    return x if x.stride() == strides else x.new_empty_strided(x.shape, strides).copy_(x)


class GatedActivation(Absorbable):
    """An activation of which a code of the derivative is kept: one bit an element (exact) or eight."""

    exact = True

    @property
    def gate(self) -> Gate | SmoothGate:
        """The activation and its derivative, for this very module."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        if self.is_done(input):
            return input
        if not self.keeps_for_backward(input) or input.numel() == 0:
            return super().forward(input)
        inplace = getattr(self, "inplace", False) and torch.ops.aten.is_non_overlapping_and_dense(input)
        return _GateFunction.apply(input, self.gate, inplace)


@register_lean(nn.ReLU)
class LeanReLU(GatedActivation, nn.ReLU):
    """`nn.ReLU`."""

    gate = Gate(0.0, float("inf"))


@register_lean(nn.Hardtanh)
class LeanHardtanh(GatedActivation, nn.Hardtanh):
    """`nn.Hardtanh`."""

    @property
    def gate(self) -> Gate:
        return Gate(self.min_val, self.max_val)


@register_lean(nn.ReLU6)
class LeanReLU6(LeanHardtanh, nn.ReLU6):
    """`nn.ReLU6`."""


@register_lean(nn.LeakyReLU)
class LeanLeakyReLU(GatedActivation, nn.LeakyReLU):
    """`nn.LeakyReLU`."""

    @property
    def gate(self) -> Gate:
        return Gate(0.0, float("inf"), outside=self.negative_slope)


@register_lean(nn.Hardsigmoid)
class LeanHardsigmoid(GatedActivation, nn.Hardsigmoid):
    """`nn.Hardsigmoid`."""

    gate = Gate(-3.0, 3.0, inside=1 / 6, offset=0.5)
