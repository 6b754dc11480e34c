"""What the user chooses."""

import difflib
import json
import math
import os
import re
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .files import read_json, write_text
from .hub import PushToHubMixin, local_directory
from .lean import MODES
from .memory import parse_budget
from .selection.importance import IMPORTANCE
from .selection.strategies import STRATEGIES


logger = logging.get_logger(__name__)

CONFIG_NAME = "trady_config.json"


@dataclass
class TraDyConfig(PushToHubMixin):
    """Configuration of a [`TraDyModel`].

    Names and matching rules are those of PEFT where it has them. Every field is checked when the config is made.

    Raises:
        ValueError: If a field has a value that is not allowed; the message gives the field, the value and what is.

    Example:
        >>> config = TraDyConfig(memory_budget=0.025, modules_to_save=["classifier"])
        >>> config.strategy
        'trady'
    """

    memory_budget: int | float | str = field(
        default=0.05,
        metadata={
            "help": "An int is elements of weight gradient plus saved activation for one sample (the paper's B_mem); "
            "a float in (0, 1] is that share of the whole network's elements; a string such as '256MiB' is bytes."
        },
    )
    strategy: str = field(
        default="trady",
        metadata={"help": f"How channels are chosen: one of {', '.join(STRATEGIES)}."},
    )
    layer_ranking: str | None = field(
        default=None,
        metadata={
            "help": "A layer_ranking.json, or a directory or Hub repository that holds one, made for this "
            "architecture on any task; 'auto' takes the one that ships with hf_trady. Without it TraDyTrainer "
            "measures one at the start of training."
        },
    )
    ranking_coverage: float = field(
        default=0.97, metadata={"help": "Keep the top layers of the targets that cover this share of their total RGN."}
    )
    num_layers: int | str | None = field(
        default=None,
        metadata={
            "help": "Keep exactly this many top layers of the targets, whatever they cover; or 'budget': the fewest "
            "of which the budget is at most a fifth, as 'medyate' does by default."
        },
    )
    importance: str | None = field(
        default=None,
        metadata={"help": "For 'informed': draw from the top layers by 'rgn' or by 'lara'. None: from all layers."},
    )
    tau: float = field(
        default=1.0,
        metadata={
            "help": "For 'informed': channels are drawn in proportion to (gradient norm / units) ** tau. 0 is "
            "uniform; the larger, the closer to 'static_rgn'."
        },
    )
    channels_per_layer: int | None = field(
        default=None,
        metadata={"help": "For 'paca': channels of each layer, whatever they cost. None: what the budget allows."},
    )
    scheme: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "For 'sparse_update': layer name -> share of its input channels to train, or a JSON file of that."
        },
    )
    target_modules: list[str] | str = field(
        default="all",
        metadata={
            "help": "Layers that may be updated: 'all' supported layers but the head, a list of name suffixes, or a "
            "regex that matches whole names."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Layers that stay frozen and uncounted: a list of name suffixes or a regex."}
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules trained whole and outside the budget, by name suffix. None: the head that the model "
            "itself names, if it does; []: none."
        },
    )
    train_bias: bool | int = field(
        default=False,
        metadata={
            "help": "Also train the bias of every layer that may be updated and the shift of every normalization "
            "layer, or, given a number, of the last so many of these. They need no activation; their elements are "
            "charged to the budget."
        },
    )
    resample_every: int | str = field(
        default="epoch", metadata={"help": "When new channels are drawn: 'epoch', or a number of optimizer steps."}
    )
    optimizer_state: str = field(
        default="reset",
        metadata={
            "help": "What a new draw does to the optimizer's state: 'reset', or 'carry' for channels that stay active "
            "(not with Adam, whose steps of channels that join would be too large)."
        },
    )
    norm_mode: str = field(
        default="frozen",
        metadata={"help": "'frozen' keeps the running statistics of batch-norms; 'train' lets training move them."},
    )
    lean_backward: str = field(
        default="compressed",
        metadata={
            "help": "What layers that are not updated keep for backward: 'compressed', one bit or eight an element; "
            "'exact', as little as gives the same gradients; 'off', what autograd keeps."
        },
    )
    seed: int = field(default=0, metadata={"help": "Channels are a pure function of this seed and the epoch."})
    base_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The Hub id or path of the model that this one was fine-tuned from."}
    )
    revision: str | None = field(default=None, metadata={"help": "The revision of the base model."})
    task_type: str | None = field(
        default=None, metadata={"help": "The task, by PEFT's names (SEQ_CLS, CAUSAL_LM, ...) or IMAGE_CLS."}
    )

    def __post_init__(self):
        parse_budget(self.memory_budget)
        if isinstance(self.resample_every, str) and self.resample_every.isdecimal():
            self.resample_every = int(self.resample_every)
        if isinstance(self.num_layers, str) and self.num_layers.isdecimal():
            self.num_layers = int(self.num_layers)
        _check_choice("strategy", self.strategy, STRATEGIES)
        _check_choice("optimizer_state", self.optimizer_state, ("reset", "carry"))
        _check_choice("norm_mode", self.norm_mode, ("frozen", "train"))
        _check_choice("lean_backward", self.lean_backward, MODES)
        if self.resample_every != "epoch" and not (_is_int(self.resample_every) and self.resample_every >= 1):
            raise _refusal("resample_every", self.resample_every, "'epoch' or an int of at least 1 (optimizer steps)")
        if not (_is_number(self.ranking_coverage) and 0 < self.ranking_coverage <= 1):
            raise _refusal("ranking_coverage", self.ranking_coverage, "a float in (0, 1]")
        if not (self.num_layers in (None, "budget") or (_is_int(self.num_layers) and self.num_layers >= 1)):
            raise _refusal("num_layers", self.num_layers, "None, 'budget' or an int of at least 1")
        if self.importance is not None:
            _check_choice("importance", self.importance, IMPORTANCE)
        if not (_is_number(self.tau) and 0 <= self.tau < math.inf):
            raise _refusal("tau", self.tau, "a number of at least 0")
        if self.channels_per_layer is not None and not (
            _is_int(self.channels_per_layer) and self.channels_per_layer > 0
        ):
            raise _refusal("channels_per_layer", self.channels_per_layer, "None or an int of at least 1")
        if self.scheme is not None:
            self.scheme = _read_scheme(self.scheme)
        if not (_is_int(self.seed) and 0 <= self.seed < 2**63):
            raise _refusal("seed", self.seed, "an int in [0, 2**63)")
        if not (isinstance(self.train_bias, bool) or (_is_int(self.train_bias) and self.train_bias >= 1)):
            raise _refusal("train_bias", self.train_bias, "True, False or an int of at least 1")
        _check_pattern("target_modules", self.target_modules)
        if self.exclude_modules is not None:
            _check_pattern("exclude_modules", self.exclude_modules)
        if self.modules_to_save is not None and not _is_str_list(self.modules_to_save):
            raise _refusal("modules_to_save", self.modules_to_save, "None or a list of module names")
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            if isinstance(getattr(self, name), tuple):
                setattr(self, name, list(getattr(self, name)))  # as it comes back from JSON
        for name in ("layer_ranking", "base_model_name_or_path", "revision", "task_type"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str | os.PathLike):
                raise _refusal(name, value, "None or a string")
            # Such as PEFT's TaskType, a str whose text is another.
            setattr(self, name, value.value if isinstance(value, Enum) else value and os.fspath(value))

    def to_dict(self) -> dict:
        """The fields as a JSON-serializable dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TraDyConfig":
        """Build a config from `values`; keys that this version doesn't know are dropped with a warning."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            logger.warning(f"Ignoring keys of {CONFIG_NAME} that this version does not know: {', '.join(unknown)}.")
        return cls(**{key: value for key, value in values.items() if key in known})

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `trady_config.json` into `save_directory`."""
        write_text(Path(save_directory) / CONFIG_NAME, json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, **hub_kwargs: Any) -> "TraDyConfig":
        """Read `trady_config.json` from the directory `path`, or from the Hub repository of that id.

        Args:
            path: The directory or the repository.
            **hub_kwargs: As for [`TraDyModel.from_pretrained`].

        Raises:
            FileNotFoundError: If there is no such file or repository.
            OSError: If the Hub can't be reached.
            ValueError: If it is not a JSON object or holds a value that is not allowed.
        """
        file = local_directory(path, [CONFIG_NAME], **hub_kwargs) / CONFIG_NAME
        if not file.is_file():
            raise FileNotFoundError(f"no {CONFIG_NAME} in '{path}'; give a directory written by save_pretrained")
        try:
            values = read_json(file)
        except ValueError as error:
            raise ValueError(f"'{file}' is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"'{file}' must hold a JSON object, not a {type(values).__name__}")
        if isinstance(values.get("scheme"), str):  # a stranger's config names no file of this machine
            raise _refusal("scheme", values["scheme"], "a dict in a saved config: layer name -> share of its channels")
        return cls.from_dict(values)


def _read_scheme(scheme) -> dict[str, float]:
    """The scheme `scheme`, or the one in the JSON file `scheme`.

    Raises:
        ValueError: Names the first layer whose share is not allowed.
    """
    if isinstance(scheme, str | os.PathLike):
        try:
            values = read_json(scheme)
        except (OSError, ValueError) as error:
            raise _refusal(
                "scheme", str(scheme), f"a dict or a JSON file of one: layer name -> share of its channels ({error})"
            ) from None
    else:
        values = scheme
    if not isinstance(values, dict) or not values:
        raise _refusal("scheme", scheme, "a dict or a JSON file of one: layer name -> share of its channels")
    for name, share in values.items():
        if not isinstance(name, str) or not (_is_number(share) and 0 <= share <= 1):
            raise _refusal("scheme", {name: share}, "layer name -> share of its channels, in [0, 1]")
    return dict(values)


def _refusal(name: str, value, allowed: str) -> ValueError:
    return ValueError(f"{name}={value!r} is not allowed; it must be {allowed}")


def _check_choice(name: str, value, choices) -> None:
    if not isinstance(value, str) or value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise _refusal(name, value, f"one of {', '.join(map(repr, choices))}{hint}")


def _check_pattern(name: str, value) -> None:
    if isinstance(value, str) and value:
        try:
            re.compile(value)
            return
        except (re.error, OverflowError, RecursionError) as error:  # the last two: of numbers or a nesting too large
            raise _refusal(name, value, f"a valid regex ({error})") from None
    if not (_is_str_list(value) and value):
        raise _refusal(name, value, "a non-empty list of module names or a regex")


def _is_str_list(value) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) and item for item in value)


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return _is_int(value) or isinstance(value, float)
