"""What a method of a comparison is called: a baseline, or a strategy and fields of its configuration."""

import json

from ..config import TraDyConfig
from ..selection import STRATEGIES
from .baselines import BASELINES


METHODS = (*STRATEGIES, *BASELINES)


def parse_method(text: str) -> tuple[str, dict]:
    """The name in `text` and the fields of TraDyConfig that follow it: `"informed:tau=2,importance=rgn"`.

    Raises:
        ValueError: If there is no such method or field, or its value is not allowed.
    """
    name, _, rest = text.partition(":")
    if name not in METHODS:
        raise ValueError(f"methods={text!r} is not allowed; it must be any of {', '.join(METHODS)}")
    fields = dict(_field(part, text) for part in rest.split(",")) if rest else {}
    if fields and name in BASELINES:
        raise ValueError(f"methods={text!r} is not allowed; {name} has no fields to set")
    if fields:
        TraDyConfig(**fields | {"strategy": name})
    return name, fields


def _field(part: str, text: str) -> tuple[str, object]:
    key, equals, value = part.partition("=")
    if not equals or key not in TraDyConfig.__dataclass_fields__:
        raise ValueError(f"methods={text!r} is not allowed; after the colon come fields of TraDyConfig, such as tau=2")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
