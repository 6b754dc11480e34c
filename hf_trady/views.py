"""Outputs of autograd Functions."""

import torch
from torch import Tensor


def standalone(output: Tensor) -> Tensor:
    """`output`, made inside an autograd Function and not needed there any more, with no base that autograd knows of.

    Of a view it would forbid every later change in place, which models make of the outputs of plain modules.
    """
    return torch.ops.aten._unsafe_view(output, output.shape)
