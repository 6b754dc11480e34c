"""Rows of numbers in 8 bits, with one scale a row."""

import torch
from torch import Tensor

from .kernels import fused


def _encode_eager(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = rows.abs().amax(-1, keepdim=True).float() / 127
    return (rows / scale.clamp_min(1e-30)).round_().to(torch.int8), scale


@fused(_encode_eager)
def encode_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 `[..., N]` and float32 scale `[..., 1]`, whose product is `rows`, `[..., N]`, rounded."""
    scale = rows.abs().amax(-1, keepdim=True).float() / 127
    return (rows / scale.clamp_min(1e-30)).round().to(torch.int8), scale


def decode_rows(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that `encode_rows` wrote, `[..., N]`, of `dtype`."""
    return (codes * scale).to(dtype)
