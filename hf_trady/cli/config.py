"""The fields of TraDyConfig as arguments of a command."""

from dataclasses import dataclass, field

from ..config import TraDyConfig


def _field(name: str, **default):
    """A field with the help of TraDyConfig's field `name`."""
    return field(metadata=TraDyConfig.__dataclass_fields__[name].metadata, **default)


@dataclass
class TraDyArguments(TraDyConfig):
    """The fields of TraDyConfig, of the types that a command line can give them."""

    memory_budget: str = _field("memory_budget", default="0.05")
    target_modules: list[str] = _field("target_modules", default_factory=lambda: ["all"])
    num_layers: str | None = _field("num_layers", default=None)
    scheme: str | None = _field("scheme", default=None)
    train_bias: bool = _field("train_bias", default=False)
    exclude_modules: list[str] | None = _field("exclude_modules", default=None)
    resample_every: str = _field("resample_every", default="epoch")
    seed: int = field(default=0, init=False)  # set from --seed of TrainingArguments

    def __post_init__(self):
        if self.target_modules == ["all"]:
            self.target_modules = "all"
        super().__post_init__()
