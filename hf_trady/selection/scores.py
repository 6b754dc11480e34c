"""What is known of each input channel."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..tensor_files import write_tensors
from .cost import CostTable


SCORES_NAME = "channel_scores.safetensors"
_NORMS, _LATEST = "norms.", "latest."


@dataclass(frozen=True)
class ChannelScores:
    """A number for every input channel: the norm of its gradient, say.

    Attributes:
        norms: Layer name -> float32 `[C]`, by which channels are drawn; NaN for one of which nothing is known.
        latest: The same, of layers in which training has changed it since; the next draw goes by it.
        draw: Number of the draw that `norms` are for.
    """

    norms: dict[str, Tensor]
    latest: dict[str, Tensor] = field(default_factory=dict)
    draw: int = 0

    def __deepcopy__(self, memo: dict) -> "ChannelScores":
        return self  # nothing here ever changes

    @classmethod
    def unknown(cls, costs: CostTable) -> "ChannelScores":
        """Nothing is known of any channel."""
        return cls({row.name: torch.full((row.channels,), torch.nan) for row in costs})

    def by_input(self, costs: CostTable) -> Tensor:
        """Norm of each channel over all the layers that share it, float64, in the order of `costs.by_input()`."""
        squares = [sum(self.norms[row.name].double() ** 2 for row in sharing) for sharing in costs.sharing()]
        return torch.cat(squares).sqrt()

    def observed(self, selection: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> "ChannelScores":
        """With `norms[name]`, `[n]`, for the channels `selection[name]`, `[n]`, from the next draw on."""
        latest = dict(self.latest)
        for name, values in norms.items():
            latest[name] = latest.get(name, self.norms[name]).index_copy(0, selection[name], values)
        return replace(self, latest=latest)

    def of_draw(self, draw: int) -> "ChannelScores":
        """What draw number `draw` goes by: the latest, unless these are of that draw already."""
        return self if draw == self.draw else ChannelScores(self.norms | self.latest, draw=draw)

    def check(self, costs: CostTable) -> None:
        """Refuse another network than the one that was measured.

        Raises:
            ValueError: Names the first layer that doesn't match.
        """
        for row in costs:
            known = self.norms.get(row.name)
            lengths = {len(v) for v in (known, self.latest.get(row.name)) if v is not None} - {row.channels}
            if known is None or lengths:
                there = "no such layer" if known is None else f"{lengths.pop()} channels"
                raise ValueError(
                    f"the channel scores are of another architecture: {there} there for '{row.name}', which has "
                    f"{row.channels} channels here; measure this one"
                )

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `channel_scores.safetensors` into `save_directory`."""
        tensors = {_NORMS + name: value.contiguous() for name, value in self.norms.items()}
        tensors |= {_LATEST + name: value.contiguous() for name, value in self.latest.items()}
        write_tensors(Path(save_directory) / SCORES_NAME, tensors, draw=str(self.draw))

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> "ChannelScores | None":
        """Read `channel_scores.safetensors` from the directory `path`; None if there is none.

        Raises:
            ValueError: If the file is not of this format.
        """
        file = Path(path) / SCORES_NAME
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
                draw = int(opened.metadata()["draw"])
            if any(value.dim() != 1 or value.dtype != torch.float32 for value in tensors.values()):
                raise ValueError("a tensor is not a row of floats")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"'{file}' does not hold channel scores ({type(error).__name__}: {error}); delete it to measure anew"
            ) from None
        return cls(_part(tensors, _NORMS), _part(tensors, _LATEST), draw)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
