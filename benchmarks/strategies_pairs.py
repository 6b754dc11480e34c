"""What several networks' results say of a pair of methods."""

from collections.abc import Callable, Collection

import numpy as np
from scipy.stats import ttest_rel
from strategies import NETWORKS

from hf_trady.comparison import Run


TITLES = {"mobilenetv2_100": "MobileNetV2-1.0", "tf_efficientnet_lite0": "EfficientNet-Lite0", "minilm": "MiniLM-L6"}
Accuracies = dict[tuple, float]  # (network and task, seed) -> accuracy


def accuracies(results: dict[Run, dict], method: str, budgets: Collection | None = None) -> Accuracies:
    """Test accuracy by (task, seed): of a strategy the mean over `budgets` (all that it was run with); a baseline has
    none."""
    found: dict[tuple, list[float]] = {}
    for run, figures in results.items():
        of_budget = budgets is None or run.budget is None or run.budget in budgets
        if run.phase == "test" and run.method == method and of_budget:
            found.setdefault((run.task, run.seed), []).append(figures["accuracy"])
    return {key: float(np.mean(values)) for key, values in found.items()}


def compare(results: dict[Run, dict], one: str, other: str, budgets: Collection) -> tuple[float, float, int]:
    """`difference` of two methods, averaged over those of `budgets` that both were run with."""
    known = [{run.budget for run in results if run.phase == "test" and run.method == name} for name in (one, other)]
    shared = [budget for budget in budgets if all(budget in found or None in found for found in known)]
    return difference(*(accuracies(results, name, shared) for name in (one, other)))


def difference(one: Accuracies, other: Accuracies) -> tuple[float, float, int]:
    """Mean paired difference in points, the p of a paired t-test, and the number of pairs."""
    pairs = sorted(one.keys() & other.keys())
    a, b = (np.array([known[pair] for pair in pairs]) for known in (one, other))
    if len(pairs) < 2:
        return (100 * float((a - b).mean()) if pairs else float("nan")), float("nan"), len(pairs)
    return 100 * float((a - b).mean()), float(ttest_rel(a, b).pvalue), len(pairs)


def only(results: dict[Run, dict], wanted: Callable[[Run], bool]) -> dict[Run, dict]:
    """The results of the runs that are `wanted`."""
    return {run: figures for run, figures in results.items() if wanted(run)}


def is_image(run: Run) -> bool:
    """Whether the task of `run`, named after network and task, is one of images."""
    return "image_size" in NETWORKS[run.task.split(":")[0]].data


def mean_of(values: Accuracies) -> float:
    """The mean accuracy."""
    return float(np.mean(list(values.values()))) if values else float("nan")


def as_text(points: float, p: float, pairs: int) -> str:
    """What `difference` gives, in words."""
    return "-" if pairs == 0 else f"{points:+.2f} (p = {p:.2g}, {pairs} pairs)"
