"""How heavy the tails of stochastic gradients are."""

import math

from torch import Tensor


def tail_index(values: Tensor) -> float:
    """Tail index of values that follow a symmetric stable law: 2 for Gaussian ones, less the heavier the tails.

    The estimator of Mohammadi, Mohammadpour and Ogata (2015), with about as many groups as values in a group.

    Args:
        values: Any shape; at least four of them, not all zero. Zeros are left out.

    Raises:
        ValueError: If there are fewer.
    """
    values = values.detach().flatten().double()
    values = values[values != 0]
    size = math.isqrt(len(values))
    if size < 2:
        raise ValueError(f"a tail index needs at least four values that are not zero, got {len(values)}")
    groups = values[: size * size].view(size, size)
    sums = groups.sum(0)
    inverse = (sums[sums != 0].abs().log().mean() - groups.abs().log().mean()) / math.log(size)
    return float(1 / inverse)
