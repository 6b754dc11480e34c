"""Eight booleans in a byte.

A boolean tensor is packed sample by sample, in the order of its memory. A sample of `8 n` elements takes `n` bytes:
bit j of byte i is element `j * n + i`. So neighbours stay neighbours, and packing and unpacking vectorize.
"""

import torch
from torch import Tensor


def planes(x: Tensor) -> Tensor:
    """`x`, dense in memory, as `[samples, 8, n]` in the order of its memory: a view, unless it must be padded.

    The leading dimension of `x` counts the samples where it is the outermost in memory and a sample divides by 8;
    otherwise all of `x` is one sample, padded with zeros.
    """
    samples = num_samples(x)
    flat = in_memory_order(x)
    if flat.numel() % (8 * samples):
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8))
    return flat.view(samples, 8, flat.numel() // samples // 8)


def in_memory_order(x: Tensor) -> Tensor:
    """`x`, dense in memory, as a one-dimensional view. Not by `as_strided`, on whose views torch.compile changes
    nothing in place."""
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True)).view(-1)


def num_samples(x: Tensor) -> int:
    """How many samples `planes` sees in `x`."""
    per_sample = x.stride(0) if x.dim() > 1 else 1
    divides = x.dim() > 1 and x.numel() > 0 and per_sample * x.shape[0] == x.numel() and per_sample % 8 == 0
    return x.shape[0] if divides else 1


def dense(x: Tensor) -> Tensor:
    """`x`, copied only where its elements do not lie one by one in memory."""
    return x if torch.ops.aten.is_non_overlapping_and_dense(x) else x.contiguous()


def pack(mask: Tensor) -> Tensor:
    """Pack booleans `[samples, 8, n]` into uint8 `[samples, n]`."""
    ones = mask.view(torch.uint8)
    fours = ones[:, :4].add(ones[:, 4:], alpha=16)
    twos = fours[:, :2].add(fours[:, 2:], alpha=4)
    return twos[:, 0].add(twos[:, 1], alpha=2)


def unpack(bits: Tensor) -> Tensor:
    """Unpack uint8 `[samples, n]` into booleans `[samples, 8, n]`."""
    places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device).view(8, 1)
    masked = bits.unsqueeze(1) & places
    if torch.compiler.is_compiling():  # inductor's C++ can't select by bytes that are seen as booleans
        return masked != 0
    return masked.ne_(0).view(torch.bool)
