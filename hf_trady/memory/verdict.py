"""How the memory that training took compares to a budget in bytes."""

from collections.abc import Mapping

from .fitting import MIB


def verdict(peaks: Mapping[int, int], predicted: int, budget: int) -> str:
    """One line about the highest of `peaks`.

    Args:
        peaks: Number of a draw -> highest peak measured in bytes; at least one.
        predicted: Predicted peak in bytes.
        budget: Bytes.

    Example:
        >>> verdict({0: 5 * MIB, 1: 7 * MIB}, 6 * MIB, 6 * MIB)
        'peak 7 MiB measured, 6 MiB predicted, budget 6 MiB: exceeded in 1 of 2 draws'
    """
    over = sum(peak > budget for peak in peaks.values())
    outcome = f"exceeded in {over} of {len(peaks)} draws" if over else "inside"
    return (
        f"peak {max(peaks.values()) / MIB:,.0f} MiB measured, {predicted / MIB:,.0f} MiB predicted, "
        f"budget {budget / MIB:,.0f} MiB: {outcome}"
    )
