"""The product of a gated MLP, `silu(gate) * up`: both factors are kept in 8 bits."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP

from .base import LeanModule
from .kernels import fused
from .registry import register_lean
from .rows import decode_rows, encode_rows


class _GatedProduct(torch.autograd.Function):
    """`silu(gate) * up`, both `[..., N]`, that saves one byte an element of each."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(*encode_rows(gate), *encode_rows(up))
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        return _grads(grad_output, *ctx.saved_tensors)


def _grads_eager(grad: Tensor, gate: Tensor, gate_scale: Tensor, up: Tensor, up_scale: Tensor):
    gate = decode_rows(gate, gate_scale, grad.dtype)
    grad_up = nn.functional.silu(gate).mul_(grad)
    grad_gate = torch.ops.aten.silu_backward(decode_rows(up, up_scale, grad.dtype).mul_(grad), gate)
    return grad_gate, grad_up


@fused(_grads_eager)
def _grads(grad: Tensor, gate: Tensor, gate_scale: Tensor, up: Tensor, up_scale: Tensor):
    """Gradients of gate and up, of grad's shape."""
    gate, up = gate * gate_scale, up * up_scale
    sigmoid = torch.sigmoid(gate)
    grad_gate = grad * up * sigmoid * (1 + gate * (1 - sigmoid))
    return grad_gate.to(grad.dtype), (grad * gate * sigmoid).to(grad.dtype)


@register_lean(LlamaMLP, copied=True)
class LeanLlamaMLP(LeanModule, LlamaMLP):
    """The MLP of Llama, and of every model in transformers that copies it, with SiLU."""

    exact = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not isinstance(self.act_fn, nn.SiLU | SiLUActivation):
            return super().forward(x)
        gate, up = self.gate_proj(x), self.up_proj(x)
        if torch.is_grad_enabled() and gate.requires_grad and up.requires_grad:
            return self.down_proj(_GatedProduct.apply(gate, up))
        # Not by `act_fn`: a look at a forward without gradients must not find it behind `gate_proj` (see `chains`).
        return self.down_proj(nn.functional.silu(gate) * up)
