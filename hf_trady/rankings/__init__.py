"""The layer rankings that ship: one for each architecture that the project has measured."""

from collections.abc import Mapping
from pathlib import Path

from ..selection import LayerRanking


def shipped_rankings() -> list[str]:
    """Names of the architectures that a ranking ships for."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.json"))


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


def _without(prefix: str, name: str) -> str:
    return name.removeprefix(f"{prefix}.") if prefix else name
