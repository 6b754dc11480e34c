"""The report of a run: one HTML file that needs nothing else, and its pictures as files."""

import base64
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template
from markupsafe import Markup

from ..files import write_text
from ..history import HISTORY_NAME
from ..markup import html_table
from .charts import plot_costs, plot_coverage, plot_learning, plot_memory_by_draw, plot_sparsity, plot_updates
from .record import RunRecord
from .summary import rows, summarize


PAGE_NAME = "report.html"


@dataclass(frozen=True)
class Section:
    """A picture of the report.

    Attributes:
        title: Its heading.
        caption: What the picture shows, a sentence or two.
        name: Of the PNG, without suffix.
        missing: Why the run has no such picture, a line; None if it has.
        draw: Writes the PNG to a path.
        wide: Whether it grows with the number of draws.
    """

    title: str
    caption: str
    name: str
    missing: str | None
    draw: Callable[[Path], None]
    wide: bool = False


def write_report(run: RunRecord, directory: str | os.PathLike) -> Path:
    """Write `report.html` and its pictures into `directory`; returns the path of the page."""
    directory, shown = Path(directory), []
    directory.mkdir(parents=True, exist_ok=True)
    for section in sections(run):
        picture = directory / f"{section.name}.png"
        if section.missing is None:
            section.draw(picture)
        else:
            picture.unlink(missing_ok=True)  # of an earlier report, which had it
        shown.append((section, None if section.missing else base64.b64encode(picture.read_bytes()).decode()))
    page = directory / PAGE_NAME
    write_text(page, render(run, summarize(run), shown))
    return page


def render(run: RunRecord, summary: dict[str, Any], shown: list[tuple[Section, str | None]]) -> str:
    """The page. `shown`: the sections, each with its PNG in base64 where it has one."""
    text = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    template = Template(text, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    table = Markup(html_table(rows(summary)))
    return template.render(summary=summary, table=table, sections=shown, unreadable=run.unreadable)


def sections(run: RunRecord) -> list[Section]:
    """What a report shows, in order."""
    history, draws = run.history, run.draw_logs()
    nothing_logged = None if draws else "The run has logged no draw."
    unknown = None if history else f"The run has no {HISTORY_NAME}: it was not recorded what each draw trained."
    untrained = unknown or (None if history.draws else "No draw has ended yet.")
    return [
        Section(
            "Learning",
            "Loss and metrics over epochs.",
            "learning",
            None if run.losses() or run.metrics() else "The run has logged neither a loss nor an evaluation.",
            lambda path: plot_learning(run, path),
        ),
        Section(
            "Memory",
            _memory_caption(run),
            "memory",
            None if run.peaks() else "No peak of memory was measured.",
            lambda path: plot_memory_by_draw(run, path),
        ),
        Section(
            "Sparsity",
            "What each draw leaves out: of the elements of layer inputs, those that are not kept for a weight "
            "gradient; of the elements of weight gradients, those that are not formed; and their FLOPs.",
            "sparsity",
            nothing_logged,
            lambda path: plot_sparsity(run, path),
        ),
        Section(
            "What was updated",
            "The share of each layer's channels that each draw trained, layers in the order of the model." + _gap(run),
            "layer_updates",
            untrained,
            lambda path: plot_updates(history, path),
            wide=True,
        ),
        Section(
            "Coverage",
            "Of all channels of the pool (the layers that channels are drawn from), those that any draw has trained "
            "so far, and those of the draw itself.",
            "coverage",
            untrained,
            lambda path: plot_coverage(history, path),
        ),
        Section(
            "What layers cost",
            "The units (elements) of each layer's weight gradient and of its kept input, as a share of the whole "
            "network's. Bold: the pool; pale: layers that no channel is drawn from.",
            "costs",
            unknown,
            lambda path: plot_costs(history, path),
        ),
    ]


def _memory_caption(run: RunRecord) -> str:
    caption = "The highest memory of a training step in each draw, above what the model itself takes."
    if run.byte_budget is None:
        return f"{caption} The budget is not in bytes."
    return f"{caption} A draw that exceeds the budget is orange, and makes the later ones smaller."


def _gap(run: RunRecord) -> str:
    """A sentence about the draws that were not recorded, if any."""
    draws = run.history.draws if run.history else {}
    missing = max(draws, default=-1) + 1 - len(draws)
    return f" {missing} draws were not recorded; their columns are empty." if missing else ""
