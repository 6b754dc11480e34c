"""Dropout that keeps one bit an element."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..views import standalone
from .base import LeanModule
from .bits import pack, unpack
from .kernels import fused
from .registry import register_lean


STEPS = 1 << 16


def drawn_bits(numel: int, p: float, device: torch.device) -> Tensor:
    """Bits, uint8 `[1, n]` for `8 n >= numel` elements (see `bits.py`), each set with the chance `1 - p`.

    Drawn from torch's generator of the device, four elements a draw, so `torch.manual_seed` and checkpointing
    govern them as they do torch's own dropout. The chance is rounded to a multiple of 2 ** -16.
    """
    n = -(-numel // 8)
    if torch.compiler.is_compiling():  # dynamo knows no `random_`; of 2 ** 64 words this leaves out one
        words = torch.randint(-(2**63), 2**63 - 1, (2 * n,), device=device)
    else:
        words = torch.empty(2 * n, dtype=torch.int64, device=device).random_(-(2**63), None)
    return pack(words.view(torch.int16).view(1, 8, n) >= round(p * STEPS) - STEPS // 2)


def keep_probability(p: float) -> float:
    """The chance with which `drawn_bits` sets a bit."""
    return 1 - round(p * STEPS) / STEPS


def _dropped_eager(x: Tensor, bits: Tensor, factor: float) -> Tensor:
    flat = torch.nn.functional.pad(x.flatten(), (0, 8 * bits.shape[1] - x.numel())) if x.numel() % 8 else x
    return torch.where(unpack(bits), flat.reshape(1, 8, -1) * factor, 0).flatten()[: x.numel()].view(x.shape)


@fused(_dropped_eager)
def dropped(x: Tensor, bits: Tensor, factor: float) -> Tensor:
    """x, of any shape, times `factor` where its bit is set, else 0; contiguous."""
    if x.numel() % 8:
        return _dropped_eager(x, bits, factor)
    planes, bits = x.reshape(8, -1), bits[0].int()
    parts = [torch.where((bits & (1 << bit)) != 0, planes[bit] * factor, 0.0) for bit in range(8)]
    return torch.stack(parts).view(x.shape)


class _DropoutFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        bits = drawn_bits(x.numel(), p, x.device)
        ctx.factor = 1 / keep_probability(p)
        ctx.save_for_backward(bits)
        return standalone(dropped(x, bits, ctx.factor))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (bits,) = ctx.saved_tensors
        return dropped(grad_output, bits, ctx.factor), None


@register_lean(nn.Dropout)
class LeanDropout(LeanModule, nn.Dropout):
    """`nn.Dropout`. Exact for the elements that it draws, which are not those that torch would."""

    exact = True

    def forward(self, input: Tensor) -> Tensor:
        # Whether gradients are on or not: reentrant checkpointing runs the forward without, and then again with them.
        lean = self.training and input.is_floating_point() and 0 < self.p < 1
        if not lean or input.numel() == 0 or keep_probability(self.p) == 0:
            return super().forward(input)
        return _DropoutFunction.apply(input, self.p)
