"""The three forms of a memory budget: elements, a share of the network, bytes."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from accelerate.utils.modeling import convert_file_size_to_int


ALLOWED = "an int of at least 1 (elements), a float in (0, 1] (share of the network), or bytes such as '256MiB'"


@dataclass(frozen=True)
class Budget:
    """A parsed `memory_budget`.

    Attributes:
        kind: `"units"` (elements of weight gradient plus saved activation, the paper's B_mem), `"share"` (of all the
            units of the network) or `"bytes"` (peak memory of a training step above the model's own weights).
        value: The number of units, the share, or the number of bytes.
    """

    kind: Literal["units", "share", "bytes"]
    value: int | float

    def units(self, total_units: int) -> int:
        """The budget in units (elements) for a network of `total_units`.

        Raises:
            ValueError: If the budget is in bytes, which say nothing of units before they are fitted to a batch.
        """
        if self.kind == "bytes":
            raise ValueError(
                f"memory_budget={self.value:,} bytes: what they buy is known only after calibrate(batch); "
                "or give elements (an int) or a share of the network (a float in (0, 1])"
            )
        return int(self.value) if self.kind == "units" else int(self.value * total_units)


def parse_budget(value: int | float | str) -> Budget:
    """Parse `memory_budget`.

    A string may also hold one of the two numbers, as it arrives from a command line: `"28282"` is elements and
    `"0.025"` a share.

    Raises:
        ValueError: If `value` has none of the three forms; the message gives the value and what is allowed.

    Example:
        >>> parse_budget(0.025).units(1_000_000)
        25000
        >>> parse_budget("256MiB")
        Budget(kind='bytes', value=268435456)
    """
    budget = _parse(value.strip() if isinstance(value, str) else value)
    if budget is None:
        raise ValueError(f"memory_budget={value!r} is not allowed; it must be {ALLOWED}")
    return budget


def _parse(value) -> Budget | None:
    if isinstance(value, str):
        try:
            if re.fullmatch(r"\d+(\.\d+)?\s*[KMG]I?B", value.upper()):
                size = convert_file_size_to_int(value.upper().replace(" ", ""))  # a lower-case b would mean bits there
                return Budget("bytes", size) if size else None
            value = int(value) if value.isdecimal() else float(value)
        except (ValueError, OverflowError):  # no number, or one beyond all floats
            return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return Budget("units", value)
    if isinstance(value, float) and math.isfinite(value) and 0 < value <= 1:
        return Budget("share", value)
    return None
