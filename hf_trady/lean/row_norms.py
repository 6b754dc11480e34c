"""Layer-, RMS- and group-norm with a frozen scale: of the input, the normalized rows are kept in 8 bits."""

import torch
from timm import layers as timm_layers
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ..views import standalone
from .base import LeanModule
from .kernels import fused
from .registry import register_lean


def _normalized(rows: Tensor, mean: Tensor | None, rstd: Tensor) -> Tensor:
    return (rows.float() if mean is None else rows.float() - mean) * rstd


def _encode_eager(rows: Tensor, mean: Tensor | None, rstd: Tensor) -> tuple[Tensor, Tensor]:
    codes = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
    scale = torch.empty_like(rstd)
    step = max(1, len(rows) // 8)  # no more than a part of the normalized rows exists in full precision
    for part in (slice(start, start + step) for start in range(0, len(rows), step)):
        normalized = _normalized(rows[part], None if mean is None else mean[part], rstd[part])
        scale[part] = normalized.abs().amax(-1, keepdim=True).clamp_min_(1e-30) / 127
        codes[part] = normalized.div_(scale[part]).round_()
    return codes, scale


@fused(_encode_eager)
def _encode(rows: Tensor, mean: Tensor | None, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """int8 `[R, N]` and scale `[R, 1]`, whose product is the normalized rows; mean and rstd `[R, 1]`."""
    normalized = _normalized(rows, mean, rstd)
    scale = normalized.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return (normalized / scale).round().to(torch.int8), scale


def _grad_rows_eager(grad: Tensor, codes: Tensor, scale: Tensor, rstd: Tensor, centered: bool) -> Tensor:
    normalized = codes * scale
    shared = normalized.mul_((grad * normalized).mean(-1, keepdim=True))
    grad_rows = grad.float().sub(shared)
    if centered:
        grad_rows.sub_(grad.float().mean(-1, keepdim=True))
    return grad_rows.mul_(rstd).to(grad.dtype)


@fused(_grad_rows_eager)
def _grad_rows(grad: Tensor, codes: Tensor, scale: Tensor, rstd: Tensor, centered: bool) -> Tensor:
    """Gradient of rows from that of their normalized form, both `[R, N]`."""
    normalized, grad32 = codes.float() * scale, grad.float()
    grad_rows = grad32 - normalized * (grad32 * normalized).mean(-1, keepdim=True)
    if centered:
        grad_rows = grad_rows - grad32.mean(-1, keepdim=True)
    return (grad_rows * rstd).to(grad.dtype)


class _RowNormFunction(torch.autograd.Function):
    """A norm over rows; `normalize(x)` returns the output and the rows' mean (or None) and reciprocal deviation."""

    @staticmethod
    def forward(ctx, x, weight, bias, module):
        output, mean, rstd = module.normalize(x)
        rows = module.as_rows(x)
        rstd = rstd.reshape(-1, 1).float()
        codes, scale = _encode(rows, None if mean is None else mean.reshape(-1, 1).float(), rstd)
        ctx.module, ctx.centered = module, mean is not None
        ctx.save_for_backward(weight, codes, scale, rstd)
        return standalone(output)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        weight, codes, scale, rstd = ctx.saved_tensors
        module = ctx.module
        grad_bias = grad_x = None
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum(module.summed_dims(grad_output))
        if ctx.needs_input_grad[0]:
            grad = grad_output
            if weight is not None:
                grad = grad * module.for_output(weight, grad).to(grad.dtype)
            grad_x = module.from_rows(_grad_rows(module.as_rows(grad), codes, scale, rstd, ctx.centered), grad)
        return grad_x, None, grad_bias, None


class RowNorm(LeanModule):
    """A norm over rows of which the normalized input is kept in 8 bits, with a scale a row. Its bias may train.

    While its scale trains it is the plain module. By default the rows are the last dimension of x.
    """

    exact = False

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Output of x's shape, and per row the mean (None: not centered) and the reciprocal deviation."""
        raise NotImplementedError

    def as_rows(self, x: Tensor) -> Tensor:
        """x as `[R, N]`."""
        return x.reshape(-1, x.shape[-1])

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of `as_rows`, for a tensor of the shape of `like`."""
        return rows.view(like.shape)

    def for_output(self, weight: Tensor, output: Tensor) -> Tensor:
        """`weight`, `[C]`, as it broadcasts to the output."""
        return weight

    def summed_dims(self, output: Tensor) -> tuple[int, ...]:
        """The dimensions of the output but that of the bias."""
        return tuple(range(output.dim() - 1))

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, getattr(self, "bias", None)
        passes = input.requires_grad or (bias is not None and bias.requires_grad)
        trains = weight is not None and weight.requires_grad
        follows = self.training and torch.is_grad_enabled() and passes
        if not follows or trains or input.numel() == 0 or not self.is_supported():
            return super().forward(input)
        return _RowNormFunction.apply(input, weight, bias, self)

    def is_supported(self) -> bool:
        """Whether the rows are the last dimension of x."""
        return len(self.normalized_shape) == 1


class _LayerNorm(RowNorm):
    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        return torch.native_layer_norm(x, self.normalized_shape, _cast(self.weight, x), _cast(self.bias, x), self.eps)


class _RMSNorm(RowNorm):
    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x))
        rstd = torch.rsqrt(norms.square_().div_(x.shape[-1]).add_(self._eps(x)))
        output = (x * rstd).to(x.dtype)
        return output if self.weight is None else output * self.weight, None, rstd

    def _eps(self, x: Tensor) -> float:
        return torch.finfo(x.dtype).eps if self.eps is None else self.eps


def _wide(x: Tensor) -> torch.dtype:
    """The dtype in which the statistics of x are taken."""
    return torch.promote_types(x.dtype, torch.float32)


def _cast(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


@register_lean(nn.LayerNorm)
class LeanLayerNorm(_LayerNorm, nn.LayerNorm):
    """`nn.LayerNorm` over the last dimension."""


@register_lean(timm_layers.LayerNorm)
class LeanTimmLayerNorm(_LayerNorm, timm_layers.LayerNorm):
    """timm's `LayerNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@register_lean(timm_layers.LayerNorm2d)
class LeanLayerNorm2d(_LayerNorm, timm_layers.LayerNorm2d):
    """timm's `LayerNorm2d`: over the channels of x, `[B, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        output, mean, rstd = super().normalize(x.permute(0, 2, 3, 1))
        return output.permute(0, 3, 1, 2), mean, rstd

    def as_rows(self, x: Tensor) -> Tensor:
        return super().as_rows(x.permute(0, 2, 3, 1))

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        return super().from_rows(rows, like.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def for_output(self, weight: Tensor, output: Tensor) -> Tensor:
        return weight[:, None, None]

    def summed_dims(self, output: Tensor) -> tuple[int, ...]:
        return 0, 2, 3


@register_lean(nn.RMSNorm)
class LeanRMSNorm(_RMSNorm, nn.RMSNorm):
    """`nn.RMSNorm` over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@register_lean(timm_layers.RmsNorm)
class LeanRmsNorm(_RMSNorm, timm_layers.RmsNorm):
    """timm's `RmsNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@register_lean(LlamaRMSNorm, copied=True)
class LeanLlamaRMSNorm(_RMSNorm, LlamaRMSNorm):
    """The RMS-norm of Llama, and of every model in transformers that copies it."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states)

    def _eps(self, x: Tensor) -> float:
        return self.variance_epsilon

    def is_supported(self) -> bool:
        return True


@register_lean(nn.GroupNorm)
class LeanGroupNorm(RowNorm, nn.GroupNorm):
    """`nn.GroupNorm`: a row is one group of channels of one sample."""

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        x = x.contiguous()
        sizes = len(x), x.shape[1], x[0, 0].numel(), self.num_groups
        return torch.native_group_norm(x, _cast(self.weight, x), _cast(self.bias, x), *sizes, self.eps)

    def as_rows(self, x: Tensor) -> Tensor:
        return x.reshape(len(x) * self.num_groups, -1)

    def for_output(self, weight: Tensor, output: Tensor) -> Tensor:
        return weight.view(-1, *[1] * (output.dim() - 2))

    def summed_dims(self, output: Tensor) -> tuple[int, ...]:
        return 0, *range(2, output.dim())

    def is_supported(self) -> bool:
        return True
