"""Pictures of a comparison."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from ..files import atomic_path
from ..memory import MIB
from ..selection import LayerRanking
from .results import Results, paired_tests


def plot_accuracy_and_memory(rows: list[dict], path: str | os.PathLike) -> None:
    """Write a PNG of accuracy against measured peak memory: a line a strategy over its budgets, a point a baseline.

    Args:
        rows: What `summary` gives.
        path: The PNG to write.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.add_subplot()
    for method, colour in zip(methods, colormaps["tab20"](np.linspace(0, 1, 20)), strict=False):
        points = sorted(
            (row["peak_bytes"] / MIB, 100 * row["accuracy"], 100 * row["std"])
            for row in rows
            if row["method"] == method and row["peak_bytes"] is not None
        )
        if points:
            peaks, accuracies, stds = zip(*points, strict=True)
            axes.errorbar(
                peaks, accuracies, stds, label=method, color=colour, capsize=2, lw=1.2, ms=5,
                marker="s" if len(points) == 1 else "o",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set(xlabel="measured peak above the weights, MiB", ylabel="accuracy on the test data, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    _save(figure, path)


def plot_differences(results: Results, path: str | os.PathLike) -> None:
    """Write a PNG of the mean paired difference of accuracy between all methods, a panel a budget.

    A star marks a difference whose corrected p is below 0.05.
    """
    tests = paired_tests(results)
    budgets = list(dict.fromkeys(test["budget"] for test in tests))
    methods = list(dict.fromkeys(name for test in tests for name in (test["method"], test["other"])))
    size = 1.5 + 0.42 * len(methods)
    figure = Figure(figsize=(max(4, size * max(len(budgets), 1)), size + 0.5), layout="constrained")
    if tests:
        limit = max(abs(test["difference"]) for test in tests) * 100 or 1
        panels = figure.subplots(1, len(budgets), squeeze=False)[0]
        for axes, budget in zip(panels, budgets, strict=True):
            image = _panel(axes, [test for test in tests if test["budget"] == budget], methods, limit)
            axes.set_title(f"budget {budget}" if budget is not None else "", fontsize=9)
        figure.colorbar(image, ax=panels, label="row minus column, points", shrink=0.8)
    _save(figure, path)


def _panel(axes, tests: list[dict], methods: list[str], limit: float):
    values = np.full((len(methods), len(methods)), np.nan)
    for test in tests:
        i, j = methods.index(test["method"]), methods.index(test["other"])
        values[i, j], values[j, i] = 100 * test["difference"], -100 * test["difference"]
        if test["corrected"] < 0.05:
            axes.text(j, i, "*", ha="center", va="center")
            axes.text(i, j, "*", ha="center", va="center")
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_xticks(range(len(methods)), methods, rotation=90, fontsize=7)
    axes.set_yticks(range(len(methods)), methods, fontsize=7)
    return image


def plot_scores(ranking: LayerRanking, coverage: float, path: str | os.PathLike) -> None:
    """Write a PNG of the layers' shares of RGN and LaRa, in the order of the model; the top layers are marked."""
    top, names = set(ranking.top(coverage)), list(ranking.shapes)
    figure = Figure(figsize=(8, 1.2 + 0.14 * len(names)), layout="constrained")
    for axes, (kind, scores) in zip(figure.subplots(1, 2, sharey=True), ranking.scores.items(), strict=True):
        total = sum(scores.values()) or 1.0
        colours = ["#4c72b0" if name in top else "#c8c8c8" for name in names]
        axes.barh(range(len(names)), [100 * scores[name] / total for name in names], color=colours)
        axes.set(xlabel=f"{kind}, % of the total", ylim=(len(names) - 0.5, -0.5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks(range(len(names)), names, fontsize=5)
    figure.suptitle(f"blue: the {len(top)} layers with {coverage:.0%} of the RGN", fontsize=9)
    _save(figure, path)


def plot_agreement(matrices: Mapping[str, np.ndarray], runs: list[str], path: str | os.PathLike) -> None:
    """Write a PNG of Spearman correlations between runs, a panel a matrix `[runs, runs]`."""
    size = 2 + 0.3 * len(runs)
    figure = Figure(figsize=(size * len(matrices) + 1, size + 0.5), layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (title, matrix) in zip(panels, matrices.items(), strict=True):
        image = axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
        axes.set_title(f"{title}: at least {matrix.min():.2f}", fontsize=9)
        axes.set_xticks(range(len(runs)), runs, rotation=90, fontsize=7)
        axes.set_yticks(range(len(runs)), runs, fontsize=7)
    figure.colorbar(image, ax=panels, label="rank correlation", shrink=0.8)
    _save(figure, path)


def plot_tails(curves: Mapping[str, list[float]], path: str | os.PathLike) -> None:
    """Write a PNG of the tail index of the gradients over the steps of each run; 2 is Gaussian."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot(range(1, len(curve) + 1), curve, label=name, lw=1.2)
    axes.axhline(2, color="0.4", ls="--", lw=1)
    axes.set(xlabel="step", ylabel="tail index")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
