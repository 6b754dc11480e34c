"""Which modules a pattern of the config names, by PEFT's rules."""

import re
from collections.abc import Iterable


def matches(name: str, pattern: str | Iterable[str]) -> bool:
    """Whether module `name` is named by `pattern`.

    Args:
        name: Full dotted name of a module.
        pattern: A regex that must match the whole name, or a list of names and name suffixes.

    Example:
        >>> matches("encoder.layer.0.query", ["query", "value"]), matches("encoder.layer.0.query", r".*\\.key")
        (True, False)
    """
    if isinstance(pattern, str):
        return re.fullmatch(pattern, name) is not None
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in pattern)
