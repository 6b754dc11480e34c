"""A family of architectures: the smallest model that still is of that family, and one that people fine-tune."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import transformers
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..test_whole_models import randomized
from ..tiny import image_batch


LABELS = 3


@dataclass(frozen=True)
class Family:
    """One row of docs/architectures.md.

    Attributes:
        name: What people call it.
        library: "timm" or "transformers".
        reference: What the figures of its row are of: an architecture of timm, or a class of transformers whose config
            is left at its defaults.
        build: Makes the small model, with random weights and nothing that drops.
        make_batch: Makes what the small model is trained on: `(images, labels)` or a dict of keywords.
        build_reference: Makes the reference, on the meta device.
        make_reference_inputs: Makes its inputs, there too: 8 images of the usual size, or 8 sequences of 128 tokens.
        slow: Its test takes several seconds.
        dtype: Of the small model; float32 where it can't be float64.
    """

    name: str
    library: str
    reference: str
    build: Callable[[], nn.Module]
    make_batch: Callable[[], Any]
    build_reference: Callable[[], nn.Module]
    make_reference_inputs: Callable[[], Any]
    slow: bool = False
    dtype: torch.dtype = torch.float64

    @property
    def is_known(self) -> bool:
        """Whether this version of the library has the small model."""
        return self.library != "timm" or timm.is_model(self.build.args[0])

    def make(self) -> nn.Module:
        """The small model, in `dtype` and eval mode, with the same weights each time."""
        torch.manual_seed(0)
        model = randomized(self.build()).to(self.dtype)
        for module in model.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
        return model

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def batch(self) -> Any:
        """What it is trained on, in `dtype`."""
        return tree_map_only(Tensor, self._cast, self.make_batch())


def timm_family(
    name: str,
    reference: str,
    small: str | None = None,
    size: int = 32,
    pixels: int = 224,
    slow: bool = False,
    **kwargs: Any,
) -> Family:
    """A family of image classifiers in timm.

    Args:
        reference: Name of its reference.
        small: Name of the architecture that is made small, if it is another.
        size: Height and width of the small model's images.
        pixels: Those of the reference.
        **kwargs: What makes `small` still smaller.
    """
    return Family(
        name,
        "timm",
        reference,
        build=functools.partial(timm.create_model, small or reference, num_classes=LABELS, **kwargs),
        make_batch=functools.partial(image_batch, 2, size),
        build_reference=functools.partial(_on_meta, timm.create_model, reference),
        make_reference_inputs=lambda: torch.empty(8, 3, pixels, pixels, device="meta"),
        slow=slow,
    )


def transformers_family(
    name: str,
    model_name: str,
    make_batch: Callable[..., dict[str, Any]],
    slow: bool = False,
    dtype: torch.dtype = torch.float64,
    **small: Any,
) -> Family:
    """A family of models in transformers.

    Args:
        model_name: Name of the model's class.
        make_batch: `(config, samples, tokens) -> keywords`.
        **small: What makes the config small.
    """
    kind = getattr(transformers, model_name)
    # The one value without which some can't be trained and that their configs leave open.
    start = {key: value for key, value in small.items() if key == "decoder_start_token_id"}

    def build(**values: Any) -> nn.Module:
        return kind(_without_dropping(kind.config_class(**values)))

    def reference_inputs() -> dict[str, Any]:
        batch = make_batch(kind.config_class(**start), 8, 128)
        return {key: value.to("meta") if isinstance(value, Tensor) else value for key, value in batch.items()}

    return Family(
        name,
        "transformers",
        model_name,
        build=functools.partial(build, **small),
        make_batch=lambda: make_batch(kind.config_class(**small), 3, 8),
        build_reference=functools.partial(_on_meta, build, **start),
        make_reference_inputs=reference_inputs,
        slow=slow,
        dtype=dtype,
    )


def _without_dropping(config: transformers.PreTrainedConfig) -> transformers.PreTrainedConfig:
    """`config` with every chance to drop something at zero, also in the configs inside it."""
    for key, value in vars(config).items():
        if isinstance(value, transformers.PreTrainedConfig):
            _without_dropping(value)
        elif isinstance(value, float) and "drop" in key:
            setattr(config, key, 0.0)
    return config


def _on_meta(build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return build(*args, **kwargs)
