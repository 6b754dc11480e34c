"""The layer rankings that ship: one for each architecture that the project has measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import nn

from ..layers import channel_shape, num_channels
from ..selection import LayerRanking


def shipped_rankings() -> list[str]:
    """Names of the architectures that a ranking ships for."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.json"))


def find_ranking(path: str, layers: Mapping[str, Sequence[nn.Module]], prefix: str = "") -> LayerRanking:
    """The ranking that `path` names: where it is, or `"auto"` for the one that ships for the architecture.

    Args:
        path: What `TraDyConfig.layer_ranking` takes.
        layers: By name, the modules that share this name's weight.
        prefix: As of `shipped_ranking`. A ranking of the same architecture under another prefix, or under none, fits.

    Raises:
        ValueError: If none ships, or the one at `path` is corrupt.
        FileNotFoundError: If there is none at `path`.
    """
    if path != "auto":
        return _under(LayerRanking.from_pretrained(path), layers, prefix)
    firsts = {name: modules[0] for name, modules in layers.items()}
    shapes = {name: (num_channels(layer), math.prod(channel_shape(layer))) for name, layer in firsts.items()}
    return shipped_ranking(shapes, prefix)


def shipped_ranking(shapes: Mapping[str, tuple[int, int]], prefix: str = "") -> LayerRanking:
    """The ranking of the architecture whose layers have the names and `shapes` given.

    Args:
        shapes: Layer name -> channels, weight elements a channel.
        prefix: What a model that wraps the architecture puts before names: `"bert"`, `"timm_model"`.

    Raises:
        ValueError: If there is none.
    """
    plain = {_without(prefix, name): (name, list(shape)) for name, shape in shapes.items()}
    for architecture in shipped_rankings():
        ranking = LayerRanking.from_pretrained(Path(__file__).parent / f"{architecture}.json")
        if all(ranking.shapes.get(name) == shape for name, (_, shape) in plain.items()):
            return ranking.renamed({name: full for name, (full, _) in plain.items()})
    raise ValueError(
        "layer_ranking='auto' finds no ranking of this architecture; they ship for "
        f"{', '.join(shipped_rankings())}; leave layer_ranking out to have one measured"
    )


def _under(ranking: LayerRanking, layers: Iterable[str], prefix: str) -> LayerRanking:
    """`ranking` with the names of `layers`, if these differ from its own by what stands before the architecture's."""
    firsts = {name.partition(".")[0] for name in ranking.shapes}
    there = firsts.pop() if len(firsts) == 1 else ""
    ranked = {_without(there, name): name for name in ranking.shapes}
    names = {ranked.get(_without(prefix, name)): name for name in layers}
    return ranking if None in names or ranking.shapes.keys() >= set(layers) else ranking.renamed(names)


def _without(prefix: str, name: str) -> str:
    return name.removeprefix(f"{prefix}.") if prefix else name
