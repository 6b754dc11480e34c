"""Attention with dropout that keeps its inputs and one bit a weight.

torch's fused attention does without the attention weights, but not with dropout on the CPU: there it keeps them, their
dropout noise and the product. This one forms the weights again in backward, as fused attention does.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .dropout import drawn_bits, dropped, keep_probability


LEAN_SDPA = "trady_sdpa"
"""Name of this attention among transformers' implementations."""

CHUNK_BYTES = 1 << 22
"""How much of the attention weights exists at once."""


class _DropoutAttention(torch.autograd.Function):
    """`dropout(softmax(q k^T * scale + mask)) v`, `causal` or with a mask.

    q is `[B, H, T, D]`, k and v are `[B, H, S, D]`, the mask is like the product.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask, causal, scale, p):
        ctx.scale, ctx.factor, ctx.causal = scale, 1 / keep_probability(p), causal
        output = torch.empty_like(query[..., :1].expand(*query.shape[:-1], value.shape[-1]))
        bits = []
        for part in _parts(query, key):
            weights = _weights(query[part], key[part], _of(mask, part), causal, scale)
            bits.append(drawn_bits(weights.numel(), p, query.device))
            output[part] = dropped(weights, bits[-1], ctx.factor) @ value[part]
        ctx.save_for_backward(query, key, value, mask, torch.cat(bits, 1))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        query, key, value, mask, bits = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        parts = _parts(query, key)
        sizes = [-(-len(query[part]) * query.shape[1] * query.shape[2] * key.shape[2] // 8) for part in parts]
        for part, part_bits in zip(parts, bits.split(sizes, 1), strict=True):
            part_bits = part_bits.contiguous()
            weights = _weights(query[part], key[part], _of(mask, part), ctx.causal, ctx.scale)
            grad = grad_output[part]
            grads[2][part] = dropped(weights, part_bits, ctx.factor).transpose(-1, -2) @ grad
            grad = dropped(grad @ value[part].transpose(-1, -2), part_bits, ctx.factor)
            grad = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype).mul_(ctx.scale)
            grads[0][part] = grad @ key[part]
            grads[1][part] = grad.transpose(-1, -2) @ query[part]
            del weights, grad  # before the next part's exist
        return *grads, None, None, None, None


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    scores = (query * scale) @ key.transpose(-1, -2)
    if causal:  # made anew rather than kept by every layer
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores.masked_fill_(~mask, float("-inf"))
    elif mask is not None:
        scores += mask
    # As in torch's own: a row that is masked as a whole weighs nothing. Of `torch._safe_softmax` dynamo knows nothing.
    return torch.ops.aten._safe_softmax(scores, -1)


def _parts(query: Tensor, key: Tensor) -> list[slice]:
    """Parts of the batch whose attention weights are about `CHUNK_BYTES` large."""
    per_sample = query.shape[1] * query.shape[2] * key.shape[2] * query.element_size()
    step = max(1, CHUNK_BYTES // per_sample)
    return [slice(start, start + step) for start in range(0, len(query), step)]


def _of(mask: Tensor | None, part: slice) -> Tensor | None:
    return mask if mask is None or len(mask) == 1 else mask[part]


def lean_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention by the signature of transformers' implementations; without dropout it is its "sdpa"."""
    special = any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    trains_mask = attention_mask is not None and attention_mask.requires_grad
    if special or trains_mask or not 0 < dropout < 1 or keep_probability(dropout) == 0 or not query.numel():
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    is_causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    length = query.shape[2]
    causal = is_causal and attention_mask is None and length > 1
    if causal:
        key, value = key[:, :, :length], value[:, :, :length]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = _DropoutAttention.apply(query, key, value, attention_mask, causal, scaling, dropout)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(LEAN_SDPA, lean_attention_forward)
AttentionMaskInterface.register(LEAN_SDPA, sdpa_mask)


def make_attention_lean(model: nn.Module) -> None:
    """Let every transformers model inside `model` that uses "sdpa" use this attention."""
    _switch(model, "sdpa", LEAN_SDPA)


def make_attention_plain(model: nn.Module) -> None:
    """Undo `make_attention_lean`."""
    _switch(model, LEAN_SDPA, "sdpa")


def _switch(model: nn.Module, before: str, after: str) -> None:
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.config._attn_implementation == before:
            module.set_attn_implementation(after)
