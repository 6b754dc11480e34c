"""The fields of TraDyConfig as arguments of a command."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.hf_argparser import string_to_bool

from ..config import TraDyConfig


def _field(name: str, how: Mapping | None = None, **default):
    """A field with the help of TraDyConfig's field `name`. `how`: what else argparse is told."""
    return field(metadata={**TraDyConfig.__dataclass_fields__[name].metadata, **(how or {})}, **default)


@dataclass
class TraDyArguments(TraDyConfig):
    """The fields of TraDyConfig, of the types that a command line can give them."""

    memory_budget: str = _field("memory_budget", default="0.05")
    target_modules: list[str] = _field("target_modules", default_factory=lambda: ["all"])
    num_layers: str | None = _field("num_layers", default=None)
    scheme: str | None = _field("scheme", default=None)
    train_bias: str = _field("train_bias", {"nargs": "?", "const": "True"}, default="False")
    exclude_modules: list[str] | None = _field("exclude_modules", default=None)
    resample_every: str = _field("resample_every", default="epoch")
    seed: int = field(default=0, init=False)  # set from --seed of TrainingArguments

    def __post_init__(self):
        self.target_modules = _unlisted(self.target_modules)
        self.exclude_modules = _unlisted(self.exclude_modules)
        self.train_bias = _bool_or_number(self.train_bias)
        super().__post_init__()


def _unlisted(value: Any) -> Any:
    """`value`, or, where it is a list of one thing that is no name, this: "all", or a regex."""
    if isinstance(value, list) and len(value) == 1 and (value == ["all"] or not re.fullmatch(r"[\w.]+", value[0])):
        return value[0]
    return value


def _bool_or_number(value: Any) -> bool | int:
    try:
        return int(value) if str(value).isdecimal() else string_to_bool(value)
    except argparse.ArgumentTypeError:
        raise ValueError(f"train_bias={value!r} is not allowed; it must be true, false or a number") from None
