"""What hooks are told of a call."""

from typing import Any


def first_input(args: tuple, kwargs: dict) -> Any:
    """The first input of a call, by position or by keyword."""
    return args[0] if args else next(iter(kwargs.values()))
