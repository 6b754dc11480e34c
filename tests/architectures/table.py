"""docs/architectures.md, written from the figures of all families."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from .families import FAMILIES
from .family import Family
from .figures import Figures


ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"
SHOWN = 3

INTRODUCTION = """\
# Architectures

Of each family below the tests take a small model, wrap it, train it for a step, save it, load it into a fresh model
and merge it. Outputs in evaluation are the plain model's, bit for bit, at every stage (of as many frozen weights:
torch chooses by that how to multiply some matrices); the step's gradients are the slices of autograd's own; and
exactly the active channels and the head move.

Written by `python -m tests.architectures` from the references named here, at the size that people fine-tune: an
architecture of timm, or a model of transformers whose config is left at its defaults. Nothing is typed in. Their
memory is predicted on fake tensors (see `plan`), for 8 images of 224 x 224 (or of the size that the architecture
wants) or 8 sequences of 128 tokens, in float32 and, in transformers, without dropout. A dash: not predicted, or not
yet.

- **Layers** that train by channel, of all weights with two dimensions or more outside the head.
- **Weights**: how much of the model's parameters these layers and the head hold. The rest stays as it is.
- **Kept**: what TraDy keeps for backward at a budget of 5 % of the units, drawn from all layers, as a share of what
  full fine-tuning keeps.
- **Frozen** lists what holds the weights that can't train, from 1 % of the parameters on. The experts of a mixture
  that are one 3-D Parameter are such a holder, and so is a layer whose forward is not that of `nn.Linear` or
  `nn.Conv2d`.
- **Held by** names operations that have no lean form and hold a tenth or more of what is still kept.
"""


def load_figures() -> dict[str, Figures]:
    """By key, the figures that are there."""
    values = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    return {key: Figures(**figures) for key, figures in values.items()}


def save_figures(figures: Mapping[str, Figures]) -> None:
    """Write the figures of all families, in their order."""
    values = {key: dataclasses.asdict(figures[key]) for key in map(key_of, FAMILIES) if key in figures}
    RESULTS.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def key_of(family: Family) -> str:
    """What the figures of `family` are filed under."""
    return f"{family.library}/{family.name}"


def page(figures: Mapping[str, Figures]) -> str:
    """The whole of docs/architectures.md."""
    parts = [INTRODUCTION]
    for library in ("timm", "transformers"):
        families = [family for family in FAMILIES if family.library == library]
        parts.append(f"## {library}: {len(families)} families\n\n" + _table(families, figures))
    return "\n".join(parts)


def _table(families: Iterable[Family], figures: Mapping[str, Figures]) -> str:
    lines = ["| family | reference | layers | weights | kept | notes |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for family in families:
        cells = _cells(figures[key_of(family)]) if key_of(family) in figures else ["-", "-", "-", "-"]
        lines.append(f"| {' | '.join([family.name, f'`{family.reference}`', *cells])} |")
    return "\n".join(lines) + "\n"


def _cells(row: Figures) -> list[str]:
    notes = []
    if row.refusal:
        notes.append(row.refusal)
    if frozen := _shares(row.untrained, row.elements, 0.01):
        notes.append(f"frozen: {frozen}")
    if held := _shares(row.held_by, row.kept_bytes, 0.1):
        notes.append(f"held by: {held}")
    return [
        f"{row.layers} of {row.weight_layers}",
        _percent(row.trainable_elements / row.elements),
        "-" if row.kept_bytes is None else _percent(row.kept_bytes / row.full_bytes),
        "; ".join(notes).replace("|", "\\|"),
    ]


def _shares(parts: Mapping[str, int], total: int | None, least: float) -> str:
    """The largest of `parts`, from `least` of the total on, with their shares of it."""
    largest = sorted(parts.items(), key=lambda item: -item[1])[:SHOWN]
    return ", ".join(f"{name} {_percent(size / total)}" for name, size in largest if size >= least * total)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"
