"""Smooth activations and their derivatives in 8 bits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .bits import in_memory_order
from .kernels import fused


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


@dataclass(frozen=True)
class SmoothGate:
    """An activation of which the derivative is kept, rounded to 8 bits.

    Attributes:
        activate_: Activates a one-dimensional tensor in place and returns its encoded derivative, uint8.
        code: How the derivative is encoded.
    """

    activate_: Callable[[Tensor], Tensor]
    code: Code

    def apply_(self, x: Tensor, keep: bool = True) -> Tensor | None:
        """Activate `x`, dense in memory, in place. Returns the derivative, uint8 of x's shape and memory order, or
        None if not `keep`."""
        codes = self.activate_(in_memory_order(x))
        return codes.as_strided(x.shape, x.stride()) if keep else None

    def grad(self, grad_output: Tensor, codes: Tensor) -> Tensor:
        """The gradient of the input; `grad_output` must lie in memory as the activated tensor did."""
        return _decoded(grad_output, codes, self.code.zero, self.code.one)


def _decoded_eager(grad: Tensor, codes: Tensor, zero: int, one: int) -> Tensor:
    return codes.to(grad.dtype).sub_(zero).div_(one).mul_(grad)


@fused(_decoded_eager)
def _decoded(grad: Tensor, codes: Tensor, zero: int, one: int) -> Tensor:
    """`grad` times the derivative that `codes` tell."""
    return ((codes.float() - zero) / one * grad).to(grad.dtype)


def _gate(activation: Callable, backward: Callable, code: Code = NARROW) -> SmoothGate:
    """From torch's own forward, `x -> activation`, and backward, `(grad, x) -> grad`."""

    def encoded(x: Tensor) -> Tensor:
        return backward(torch.ones_like(x), x).float().mul(code.one).add(code.zero + 0.5).to(torch.uint8)

    def eager(x: Tensor) -> Tensor:
        codes = torch.empty_like(x, dtype=torch.uint8)
        size = -(-len(x) // 8)  # of the derivative, no more than a part exists in full precision
        for part, place in zip(x.split(size), codes.split(size), strict=True):
            place.copy_(encoded(part))
            part.copy_(activation(part))
        return codes

    @fused(eager)
    def activate_(x: Tensor) -> Tensor:
        codes = encoded(x)
        x.copy_(activation(x))
        return codes

    return SmoothGate(activate_, code)


GELU = _gate(aten.gelu, aten.gelu_backward)
GELU_TANH = _gate(
    lambda x: aten.gelu(x, approximate="tanh"), lambda grad, x: aten.gelu_backward(grad, x, approximate="tanh")
)
SILU = _gate(aten.silu, aten.silu_backward)
MISH = _gate(aten.mish, aten.mish_backward)
HARDSWISH = _gate(aten.hardswish, aten.hardswish_backward, WIDE)
QUICK_GELU = _gate(lambda x: x * torch.sigmoid(1.702 * x), lambda grad, x: aten.silu_backward(grad, 1.702 * x))
