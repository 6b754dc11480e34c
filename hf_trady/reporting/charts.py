"""Pictures of a report. What goes by draw has the number of the draw on its axis."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..files import atomic_path
from ..history import DrawHistory
from ..memory import MIB
from ..plots import plot_layer_updates
from .record import Points, RunRecord


BLUE, ORANGE, GREEN, RED = "#4c72b0", "#dd8452", "#55a868", "#c44e52"
MARKERS = "os^Dv"  # curves that lie on each other can still be told apart
SIZE = (6.4, 3.4)  # inches: letters of 9 points stay legible on a phone
DPI = 150


def plot_learning(run: RunRecord, path: str | os.PathLike) -> None:
    """Write a PNG of losses and, beside them, metrics of the evaluation over epochs."""
    panels = [(title, curves) for title, curves in (("loss", run.losses()), ("", run.metrics())) if curves]
    figure = Figure(figsize=(SIZE[0], SIZE[1] * len(panels) * 0.8), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        shown = {name.removeprefix("eval_") if not title else _loss_name(name): p for name, p in curves.items()}
        _lines(axes, shown)
        if not title and all(0 <= y <= 1 for points in curves.values() for _, y in points):
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.set(xlabel="epoch", ylabel=title or (next(iter(shown)) if len(shown) == 1 else ""))
        if title or len(shown) > 1:
            axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def plot_memory_by_draw(run: RunRecord, path: str | os.PathLike) -> None:
    """Write a PNG of the measured peak of each draw, beside its prediction and a budget in bytes, in MiB."""
    figure, axes = _figure()
    budget = run.byte_budget
    over = {draw: peak for draw, peak in run.peaks().items() if budget is not None and peak > budget}
    inside = {draw: peak for draw, peak in run.peaks().items() if draw not in over}
    for peaks, colour, label in ((inside, BLUE, "measured"), (over, ORANGE, "over the budget")):
        if peaks:
            axes.bar(list(peaks), np.array(list(peaks.values())) / MIB, color=colour, width=0.7, label=label)
    predicted = _of_draws(run, "trady/predicted_peak_bytes")
    if predicted:
        draws, sizes = zip(*predicted, strict=True)
        axes.plot(draws, np.array(sizes) / MIB, color="0.15", ls="none", marker="_", ms=9, mew=1.5, label="predicted")
    if budget is not None:
        axes.axhline(budget / MIB, color=RED, ls="--", lw=1.4, label="budget")
    axes.margins(y=0.1)
    axes.set(xlabel="draw", ylabel="peak above the weights, MiB")
    figure.legend(frameon=False, fontsize=9, ncols=4, loc="outside upper center", columnspacing=1.2)
    _save(figure, path)


def plot_sparsity(run: RunRecord, path: str | os.PathLike) -> None:
    """Write a PNG of the sparsity of each draw and of the share of weight-gradient FLOPs that it saves."""
    figure, axes = _figure()
    names = {
        "trady/activation_sparsity": "activation sparsity",
        "trady/weight_sparsity": "weight-gradient sparsity",
        "trady/flops_saved": "weight-gradient FLOPs saved",
    }
    _lines(axes, {label: _of_draws(run, name) for name, label in names.items()})
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set_xlabel("draw")
    axes.margins(y=0.15)
    figure.legend(frameon=False, fontsize=9, ncols=2, loc="outside upper center")
    _save(figure, path)


def plot_updates(history: DrawHistory, path: str | os.PathLike, title: str = "") -> None:
    """Write a PNG of the share of each layer's channels that each draw updated."""
    numbers = range(max(history.draws) + 1)
    active = [history.draws[number].active if number in history.draws else {} for number in numbers]
    selections = [{name: range(n) for name, n in one.items()} for one in active]
    plot_layer_updates(history.costs, selections, path, title=title)


def plot_coverage(history: DrawHistory, path: str | os.PathLike) -> None:
    """Write a PNG of the share of the pool's channels that have been trained by each draw, and of those in it."""
    figure, axes = _figure()
    draws = sorted(history.draws)
    axes.bar(draws, _shares(history, "active"), color=ORANGE, width=0.7, label="active in the draw")
    axes.plot(draws, _shares(history, "touched"), color=BLUE, marker="o", ms=4, label="touched so far")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set(xlabel="draw", ylabel="of the pool's channels", ylim=(0, None))
    axes.margins(y=0.15)
    figure.legend(frameon=False, fontsize=9, ncols=2, loc="outside upper center")
    _save(figure, path)


def plot_costs(history: DrawHistory, path: str | os.PathLike) -> None:
    """Write a PNG of the units of each layer, of its weight gradient and of its input; layers of the pool in bold.

    An input that several layers share counts with the first of them, which keeps it for all.
    """
    costs, pool = history.costs, set(history.pool)
    weights = np.array([row.channels * row.weight_per_channel for row in costs])
    inputs = np.array([row.channels * row.activation_per_channel * (row.shares_input_with is None) for row in costs])
    inputs += np.array([row.whole_activation for row in costs])
    names, places = [row.name for row in costs], np.arange(len(costs))
    figure = Figure(figsize=(SIZE[0], 1.3 + 0.16 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    faded = np.array([1.0 if name in pool else 0.3 for name in names])
    for sizes, left, colour, label in (
        (weights, 0 * weights, BLUE, "weight gradient"),
        (inputs, weights, ORANGE, "kept input, one sample"),
    ):
        bars = axes.barh(places, sizes / costs.total_units, left=left / costs.total_units, color=colour, label=label)
        for bar, alpha in zip(bars, faded, strict=True):
            bar.set_alpha(alpha)
    axes.set_yticks(places, names, fontsize=6.5)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set(fontweight="bold" if name in pool else "normal", color="black" if name in pool else "0.45")
    axes.set(xlabel="of the network's units", ylim=(len(names) - 0.4, -0.6))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, ncols=2, loc="outside upper center")
    for handle in figure.legends[0].legend_handles:
        handle.set_alpha(1)
    _save(figure, path)


def _figure() -> tuple[Figure, Axes]:
    """A figure with axes for whatever goes by draw."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


def _lines(axes: Axes, curves: Mapping[str, Points]) -> None:
    for (name, points), colour in zip(curves.items(), _colours(len(curves)), strict=True):
        marker = MARKERS[len(axes.lines) % len(MARKERS)] if len(points) <= 40 else None
        axes.plot(*zip(*points, strict=True), label=name, color=colour, marker=marker, ms=5, lw=1.5, alpha=0.85)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)


def _colours(number: int) -> list[str]:
    colours = [BLUE, ORANGE, GREEN, RED, "#8172b3", "#937860", "#da8bc3", "#8c8c8c"]
    return [colours[i % len(colours)] for i in range(number)]


def _loss_name(name: str) -> str:
    return "training" if name == "loss" else name.replace("eval_", "evaluation ", 1).removesuffix("loss").strip(" _")


def _of_draws(run: RunRecord, name: str) -> Points:
    return [(draw, values[name]) for draw, values in run.draw_logs().items() if name in values]


def _shares(history: DrawHistory, kind: str) -> list[float]:
    """Of the pool's channels, the share that is `kind` (active, touched) in each draw."""
    channels = sum(history.costs[name].channels for name in history.pool)
    counts = (getattr(record, kind) for _, record in sorted(history.draws.items()))
    return [sum(count.get(name, 0) for name in history.pool) / channels for count in counts]


def _save(figure: Figure, path: str | os.PathLike) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")
