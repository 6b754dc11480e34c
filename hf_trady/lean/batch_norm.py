"""Batch-norm with frozen statistics and scale, as the affine map that it is."""

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from .base import Absorbable
from .registry import register_lean


class FrozenBatchNorm(Absorbable):
    """A batch-norm of which nothing but the scale, `[C]`, is kept. Its shift may train. Exact.

    While its statistics move or its scale trains it is the plain module.

    Attributes:
        in_training: Whether the model was last put into training mode.
    """

    exact = True
    own_attributes = (*Absorbable.own_attributes, "in_training")
    in_training = False

    def train(self, mode: bool = True):
        self.in_training = mode  # of the model: `training` tells whether the statistics move
        return super().train(mode)

    def is_affine_map(self) -> bool:
        """Whether the model trains and this is a fixed affine map of its input but for the shift."""
        moves = self.training or self.running_var is None or self.running_mean is None
        return self.in_training and not moves and not (self.weight is not None and self.weight.requires_grad)

    @torch.no_grad()
    def scale_and_mean(self) -> tuple[Tensor, Tensor]:
        """Scale and mean, `[C]`: the norm maps x to `(x - mean) * scale + bias`."""
        scale = torch.rsqrt(self.running_var + self.eps)
        return scale if self.weight is None else scale * self.weight, self.running_mean

    def forward(self, input: Tensor) -> Tensor:
        if self.is_done(input):
            return input
        passes = input.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if not torch.is_grad_enabled() or not passes or not self.is_affine_map():
            return super().forward(input)
        self._check_input_dim(input)
        return self._affine(input)

    def _affine(self, x: Tensor) -> Tensor:
        scale, mean = self.scale_and_mean()
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        shape = (1, -1, *[1] * (x.dim() - 2))
        # Of this, autograd saves the scale alone: the shift's gradient is a sum over the output's.
        return torch.addcmul(shift.to(x.dtype).view(shape), x, scale.to(x.dtype).view(shape))


@register_lean(nn.BatchNorm1d)
class LeanBatchNorm1d(FrozenBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d`."""


@register_lean(nn.BatchNorm2d)
class LeanBatchNorm2d(FrozenBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d`."""


@register_lean(nn.BatchNorm3d)
class LeanBatchNorm3d(FrozenBatchNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d`."""


@register_lean(nn.SyncBatchNorm)
class LeanSyncBatchNorm(FrozenBatchNorm, nn.SyncBatchNorm):
    """`nn.SyncBatchNorm`."""


@register_lean(BatchNormAct2d)
class LeanBatchNormAct2d(FrozenBatchNorm, BatchNormAct2d):
    """timm's `BatchNormAct2d`: a batch-norm, a dropout and an activation."""

    def forward(self, x: Tensor) -> Tensor:
        if self.is_done(x):
            return self.act(self.drop(x))
        if not torch.is_grad_enabled() or not self.is_affine_map():
            return super().forward(x)
        return self.act(self.drop(self._affine(x)))
