"""Smooth activations of which the derivative is kept in 8 bits."""

from timm.layers import activations as timm_activations
from torch import Tensor, nn
from transformers import activations as transformers_activations

from .activations import GatedActivation
from .registry import register_lean
from .smooth_gates import GELU, GELU_TANH, HARDSWISH, MISH, QUICK_GELU, SILU, SmoothGate


class SmoothActivation(GatedActivation):
    """An activation of which the derivative is kept, rounded to 8 bits."""

    exact = False


@register_lean(nn.GELU)
class LeanGELU(SmoothActivation, nn.GELU):
    """`nn.GELU`, both forms."""

    @property
    def gate(self) -> SmoothGate:
        return GELU_TANH if self.approximate == "tanh" else GELU


@register_lean(transformers_activations.GELUActivation)
class LeanGELUActivation(SmoothActivation, transformers_activations.GELUActivation):
    """transformers' "gelu"."""

    gate = GELU


@register_lean(transformers_activations.NewGELUActivation)
class LeanNewGELUActivation(SmoothActivation, transformers_activations.NewGELUActivation):
    """transformers' "gelu_new"."""

    gate = GELU_TANH


@register_lean(transformers_activations.GELUTanh)
class LeanGELUTanh(SmoothActivation, transformers_activations.GELUTanh):
    """transformers' "gelu_pytorch_tanh"."""

    gate = GELU_TANH


@register_lean(transformers_activations.QuickGELUActivation)
class LeanQuickGELUActivation(SmoothActivation, transformers_activations.QuickGELUActivation):
    """transformers' "quick_gelu"."""

    gate = QUICK_GELU


@register_lean(timm_activations.GELU)
class LeanTimmGELU(SmoothActivation, timm_activations.GELU):
    """timm's `GELU`."""

    gate = GELU


@register_lean(timm_activations.GELUTanh)
class LeanTimmGELUTanh(SmoothActivation, timm_activations.GELUTanh):
    """timm's `GELUTanh`."""

    gate = GELU_TANH


@register_lean(nn.SiLU)
class LeanSiLU(SmoothActivation, nn.SiLU):
    """`nn.SiLU`."""

    gate = SILU


@register_lean(transformers_activations.SiLUActivation)
class LeanSiLUActivation(SmoothActivation, transformers_activations.SiLUActivation):
    """transformers' "silu"."""

    gate = SILU


@register_lean(timm_activations.Swish)
class LeanSwish(SmoothActivation, timm_activations.Swish):
    """timm's `Swish`."""

    gate = SILU

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@register_lean(nn.Hardswish)
class LeanHardswish(SmoothActivation, nn.Hardswish):
    """`nn.Hardswish`."""

    gate = HARDSWISH


@register_lean(timm_activations.HardSwish)
class LeanTimmHardSwish(SmoothActivation, timm_activations.HardSwish):
    """timm's `HardSwish`."""

    gate = HARDSWISH

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@register_lean(timm_activations.QuickGELU)
class LeanTimmQuickGELU(SmoothActivation, timm_activations.QuickGELU):
    """timm's `QuickGELU`."""

    gate = QUICK_GELU


@register_lean(nn.Mish)
class LeanMish(SmoothActivation, nn.Mish):
    """`nn.Mish`."""

    gate = MISH
