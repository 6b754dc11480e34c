"""Smooth activations of which the derivative is kept in 8 bits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from timm.layers import activations as timm_activations
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import activations as transformers_activations

from .base import LeanModule
from .kernels import fused
from .registry import register_lean


aten = torch.ops.aten


@dataclass(frozen=True)
class Code:
    """How a derivative is written in a byte: `round(derivative * one) + zero`. 0 and 1 are exact.

    Attributes:
        zero: The byte that stands for 0.
        one: How many steps make 1.
    """

    zero: int
    one: int


NARROW = Code(26, 200)  # -0.13 to 1.145: GELU, SiLU and Mish
WIDE = Code(64, 125)  # -0.512 to 1.528: Hardswish


def _decoded_eager(grad: Tensor, code: Tensor, zero: int, one: int) -> Tensor:
    return code.to(grad.dtype).sub_(zero).div_(one).mul_(grad)


@fused(_decoded_eager)
def _decoded(grad: Tensor, code: Tensor, zero: int, one: int) -> Tensor:
    """`grad` times the derivative that `code` tells."""
    return ((code.float() - zero) / one * grad).to(grad.dtype)


class _SmoothFunction(torch.autograd.Function):
    """`activate(x)`, x of any shape, that saves one byte an element."""

    @staticmethod
    def forward(ctx, x, activate, code):
        output, codes = activate(x)
        ctx.code = code
        ctx.save_for_backward(codes)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (codes,) = ctx.saved_tensors
        return _decoded(grad_output, codes, ctx.code.zero, ctx.code.one), None, None


class SmoothActivation(LeanModule):
    """An activation of which the derivative is kept, rounded to 8 bits."""

    exact = False
    code: ClassVar[Code] = NARROW
    activate: ClassVar[Callable[[Tensor], tuple[Tensor, Tensor]]]
    """x -> the activation of x and its encoded derivative, uint8, both of x's shape."""

    def forward(self, x: Tensor) -> Tensor:
        follows = self.keeps_for_backward(x) and x.dim() > 0
        return _SmoothFunction.apply(x, self.activate, self.code) if follows else super().forward(x)


def _pair(activation: Callable, backward: Callable, code: Code) -> Callable:
    """A function `x -> (activation of x, its encoded derivative)`, from torch's own forward and backward."""

    def encoded(x: Tensor) -> Tensor:
        return backward(torch.ones_like(x), x).float().mul(code.one).add(code.zero + 0.5).to(torch.uint8)

    def eager(x: Tensor) -> tuple[Tensor, Tensor]:
        output = activation(x)
        codes = torch.empty_like(output, dtype=torch.uint8)
        parts = max(1, len(x) // 8)  # of the derivative, no more than a part exists in full precision
        for part, place in zip(x.split(parts), codes.split(parts), strict=True):
            place.copy_(encoded(part))
        return output, codes

    return fused(eager)(lambda x: (activation(x), encoded(x)))


_gelu = _pair(aten.gelu, aten.gelu_backward, NARROW)
_gelu_tanh = _pair(
    lambda x: aten.gelu(x, approximate="tanh"), lambda grad, x: aten.gelu_backward(grad, x, approximate="tanh"), NARROW
)
_silu = _pair(aten.silu, aten.silu_backward, NARROW)
_mish = _pair(aten.mish, aten.mish_backward, NARROW)
_hardswish = _pair(aten.hardswish, aten.hardswish_backward, WIDE)
_quick_gelu = _pair(
    lambda x: x * torch.sigmoid(1.702 * x), lambda grad, x: aten.silu_backward(grad, 1.702 * x), NARROW
)


@register_lean(nn.GELU)
class LeanGELU(SmoothActivation, nn.GELU):
    """`nn.GELU`, both forms."""

    @property
    def activate(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return _gelu_tanh if self.approximate == "tanh" else _gelu


@register_lean(transformers_activations.GELUActivation)
class LeanGELUActivation(SmoothActivation, transformers_activations.GELUActivation):
    """transformers' "gelu"."""

    activate = staticmethod(_gelu)


@register_lean(transformers_activations.NewGELUActivation)
class LeanNewGELUActivation(SmoothActivation, transformers_activations.NewGELUActivation):
    """transformers' "gelu_new"."""

    activate = staticmethod(_gelu_tanh)


@register_lean(transformers_activations.GELUTanh)
class LeanGELUTanh(SmoothActivation, transformers_activations.GELUTanh):
    """transformers' "gelu_pytorch_tanh"."""

    activate = staticmethod(_gelu_tanh)


@register_lean(transformers_activations.QuickGELUActivation)
class LeanQuickGELUActivation(SmoothActivation, transformers_activations.QuickGELUActivation):
    """transformers' "quick_gelu"."""

    activate = staticmethod(_quick_gelu)


@register_lean(timm_activations.GELU)
class LeanTimmGELU(SmoothActivation, timm_activations.GELU):
    """timm's `GELU`."""

    activate = staticmethod(_gelu)


@register_lean(timm_activations.GELUTanh)
class LeanTimmGELUTanh(SmoothActivation, timm_activations.GELUTanh):
    """timm's `GELUTanh`."""

    activate = staticmethod(_gelu_tanh)


@register_lean(nn.SiLU)
class LeanSiLU(SmoothActivation, nn.SiLU):
    """`nn.SiLU`."""

    activate = staticmethod(_silu)


@register_lean(transformers_activations.SiLUActivation)
class LeanSiLUActivation(SmoothActivation, transformers_activations.SiLUActivation):
    """transformers' "silu"."""

    activate = staticmethod(_silu)


@register_lean(timm_activations.Swish)
class LeanSwish(SmoothActivation, timm_activations.Swish):
    """timm's `Swish`."""

    activate = staticmethod(_silu)


@register_lean(nn.Hardswish)
class LeanHardswish(SmoothActivation, nn.Hardswish):
    """`nn.Hardswish`."""

    code = WIDE
    activate = staticmethod(_hardswish)


@register_lean(timm_activations.HardSwish)
class LeanTimmHardSwish(SmoothActivation, timm_activations.HardSwish):
    """timm's `HardSwish`."""

    code = WIDE
    activate = staticmethod(_hardswish)


@register_lean(timm_activations.QuickGELU)
class LeanTimmQuickGELU(SmoothActivation, timm_activations.QuickGELU):
    """timm's `QuickGELU`."""

    activate = staticmethod(_quick_gelu)


@register_lean(nn.Mish)
class LeanMish(SmoothActivation, nn.Mish):
    """`nn.Mish`."""

    activate = staticmethod(_mish)
