"""Activations whose derivative takes two values: kept as one bit an element."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .bits import pack, planes, unpack
from .kernels import fused


@dataclass(frozen=True)
class Gate:
    """An activation with derivative `inside` where `low < x < high` and `outside` elsewhere. Exact.

    Attributes:
        low, high: Where the derivative changes; infinite where it does not.
        inside, outside: The derivative's two values.
        offset: Value of the activation at 0 by its middle branch: there it is `offset + inside * x`.
    """

    low: float
    high: float
    inside: float = 1.0
    outside: float = 0.0
    offset: float = 0.0

    def apply_(self, x: Tensor, keep: bool = True) -> Tensor | None:
        """Activate `x`, dense in memory, in place. Returns the bits, uint8 `[samples, n]`, or None if not `keep`."""
        bits = _inside_bits(planes(x), self.low, self.high) if keep else None
        if self.outside:
            torch.nn.functional.leaky_relu_(x, self.outside)
        elif (self.inside, self.offset) != (1.0, 0.0):
            torch.nn.functional.hardsigmoid(x, inplace=True)
        elif self.high == float("inf"):
            torch.relu_(x)
        else:
            torch.nn.functional.hardtanh_(x, self.low, self.high)
        return bits

    def grad(self, grad_output: Tensor, bits: Tensor) -> Tensor:
        """The gradient of the input; `grad_output` must lie in memory as the activated tensor did."""
        numel = grad_output.numel()
        grad = _gated(planes(grad_output), bits, self.inside, self.outside)
        return grad.flatten()[:numel].as_strided(grad_output.shape, grad_output.stride())


def _inside_bits_eager(x: Tensor, low: float, high: float) -> Tensor:
    return pack((x > low) & (x < high))


@fused(_inside_bits_eager)
def _inside_bits(x: Tensor, low: float, high: float) -> Tensor:
    """Bits, uint8 `[samples, n]`, of `low < x < high`, x `[samples, 8, n]`."""
    # In floats, where the compiler vectorizes: the sums of powers of two are exact.
    bits = [torch.where((x[:, bit] > low) & (x[:, bit] < high), float(1 << bit), 0.0) for bit in range(8)]
    return sum(bits[1:], bits[0]).to(torch.uint8)


def _gated_eager(grad: Tensor, bits: Tensor, inside: float, outside: float) -> Tensor:
    if outside == 0 and inside == 1:
        return torch.where(unpack(bits), grad, 0)
    return torch.where(unpack(bits), grad * inside, grad * outside)


@fused(_gated_eager)
def _gated(grad: Tensor, bits: Tensor, inside: float, outside: float) -> Tensor:
    """`grad`, `[samples, 8, n]`, times the derivative that `bits`, uint8 `[samples, n]`, tell."""
    bits = bits.int()
    parts = [torch.where((bits & (1 << bit)) != 0, grad[:, bit] * inside, grad[:, bit] * outside) for bit in range(8)]
    return torch.stack(parts, 1)
