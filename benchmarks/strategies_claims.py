"""What the runs of strategies.py say of the paper's claims, and of the default strategy."""

import itertools
import json
from dataclasses import dataclass

import numpy as np
from strategies import BUDGETS, METHODS, NETWORKS, RESULTS
from strategies_pairs import TITLES, accuracies, as_text, compare, is_image, only

from hf_trady.comparison import Results, Run, summary
from hf_trady.memory import MIB


ALPHA = 0.05
SHOWN = ("informed", "trady")  # set against all others
TOLERANCE = 1.02  # peaks of runs with the same budget differ by a percent or two
CLAIMS = (
    ("new channels each epoch beat those of the first draw", "trady", "static_topk_random"),
    ("the top layers beat all layers", "trady", "dynamic_full_random"),
    ("random channels beat the largest gradients, measured anew each epoch", "trady", "dynamic_rgn"),
    ("random channels beat the largest gradients, measured once", "trady", "static_rgn"),
)


def in_short(results: dict[Run, dict]) -> str:
    """A table of the paper's strategy against what it is most often compared with, on images and on texts."""
    lines = [
        "## In short",
        "",
        "Differences in test accuracy, in points, averaged over the budgets; p of paired t-tests over (network, task,",
        "seed).",
        "",
        "| | all | images | texts |",
        "| --- | ---: | ---: | ---: |",
    ]
    for other in ("informed", "static_rgn", "lora", "full", "head_only"):
        found = (as_text(*compare(part, "trady", other, BUDGETS)) for part in _parts(results))
        lines.append(f"| `trady` - {other} | {' | '.join(found)} |")
    lines += [
        "",
        f"At the smallest budget, {BUDGETS[0]:g}, alone:",
        "",
        "| | all | images | texts |",
        "| --- | ---: | ---: | ---: |",
    ]
    run = {one.method for one in results if one.budget in (None, BUDGETS[0])}
    for other in (method for method in METHODS if method in run - {"trady"}):
        found = (as_text(*compare(part, "trady", other, BUDGETS[:1])) for part in _parts(results))
        lines.append(f"| `trady` - {other} | {' | '.join(found)} |")
    return "\n".join(lines)


def paper_claims(results: dict[Run, dict]) -> str:
    """A table of the paper's claims and whether they were reproduced."""
    lines = [
        "## The paper's claims",
        "",
        "Paired over (network, task, seed), accuracies averaged over the budgets that both methods were run with; in",
        f"points. *Reproduced*: in the paper's direction with p < {ALPHA}; *not reproduced*: the other way with",
        f"p < {ALPHA}; else undecided. Seeds of one task are not independent of each other, so the number of tasks",
        "whose mean difference is positive stands beside.",
        "",
        "| claim | comparison | all | images | texts | tasks | verdict |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for claim, one, other in CLAIMS:
        if not (accuracies(results, one) and accuracies(results, other)):
            lines.append(f"| {claim} | {one} - {other} | - | - | - | - | not run |")
            continue
        found = [compare(part, one, other, BUDGETS) for part in _parts(results)]
        tasks = sorted({run.task for run in results})
        by_task = [compare(only(results, lambda run, t=task: run.task == t), one, other, BUDGETS)[0] for task in tasks]
        cells = [as_text(*figures) for figures in found]
        cells += [f"{sum(points > 0 for points in by_task)} of {len(tasks)}", _verdict(*found[0][:2])]
        lines.append(f"| {claim} | {one} - {other} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_propositions()])


def _propositions() -> list[str]:
    lines = [
        "Two more claims: layers rank alike for all tasks (correlation of 0.8 or more), and stochastic gradients have",
        "tails heavier than Gaussian (tail index below 2). Gradients of 20 SGD steps, two tasks and two seeds each:",
        "rank correlation between these runs, least / mean, and tail index, least / greatest.",
        "",
        "| network | layers by RGN | channels within layers | tail index | verdicts |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name in NETWORKS:
        path = RESULTS / "rank" / name / "agreement.json"
        if path.is_file():
            found = json.loads(path.read_text())
            layers, channels = (_off_diagonal(found[key]) for key in ("layers", "channels"))
            tails = list(itertools.chain(*found["tail_index"].values()))
            lines.append(
                f"| {TITLES[name]} | {min(layers):.2f} / {np.mean(layers):.2f} | {min(channels):.2f} / "
                f"{np.mean(channels):.2f} | {min(tails):.2f} / {max(tails):.2f} | "
                f"{_holds(min(layers) >= 0.8)}, {_holds(max(tails) < 2)} |"
            )
    return lines


def strategies_against_others(results: dict[Run, dict], by_network: dict[str, Results]) -> str:
    """Tables of the strategies that are proposed, against each other method and at equal measured memory."""
    lines = ["## `informed` and `trady` against the others", ""]
    lines += ["Differences in points. The second column averages the budgets that the other method was run with."]
    for shown in SHOWN:
        lines += ["", *_against_others(shown, results)]
    texts = only(results, lambda run: not is_image(run))
    lines += [""]
    for shown in SHOWN:
        smallest = compare(texts, shown, "static_rgn", BUDGETS[:1])
        largest = compare(results, shown, "full", BUDGETS[-1:])
        lines += [
            f"- `{shown}` on texts at the smallest budget, against `static_rgn`: {as_text(*smallest)}.",
            f"- `{shown}` at the largest budget, against full fine-tuning: {as_text(*largest)}.",
        ]
    lines += [
        "",
        f"At no more measured peak memory than the other method takes (within {TOLERANCE - 1:.0%}), of the budgets",
        "that fit the one that did best on validation data; in points, with the peak of that budget in MiB:",
        "",
        f"| network | task | against | its peak, MiB | {' | '.join(SHOWN)} |",
        "| --- | --- | --- | ---: |" + " ---: |" * len(SHOWN),
        *_equal_memory_rows([found for name, known in by_network.items() for found in _at_equal_memory(name, known)]),
    ]
    return "\n".join(lines)


def _against_others(shown: str, results: dict[Run, dict]) -> list[str]:
    lines = [
        f"| {shown} against | mean | " + " | ".join(f"{budget:g}" for budget in BUDGETS) + " |",
        "| --- | " + "---: | " * (len(BUDGETS) + 1),
    ]
    for method in sorted({run.method for run in results} - {shown}):
        cells = [compare(results, shown, method, budgets) for budgets in (BUDGETS, *([b] for b in BUDGETS))]
        lines.append(f"| {method} | {' | '.join(as_text(*cell) for cell in cells)} |")
    return lines


@dataclass(frozen=True)
class EqualMemory:
    """A task on which each method of `SHOWN` is set against another that takes as much memory or more.

    Attributes:
        other: What it is set against, with its budget.
        peak: Bytes that this took.
        points: By method, how many points of accuracy it is ahead, and the bytes that it took; without those of which
            every budget takes more.
    """

    network: str
    task: str
    other: str
    peak: float
    points: dict[str, tuple[float, float]]


def _at_equal_memory(name: str, results: Results) -> list[EqualMemory]:
    rows = [row for row in summary(results) if row["peak_bytes"] is not None]
    found = []
    for task in NETWORKS[name].tasks:
        for other in [row for row in rows if row["method"] in ("lora", "paca") and task in row["by_task"]]:
            points = {}
            for shown in SHOWN:
                known = [row for row in rows if row["method"] == shown and task in row["by_task"]]
                fitting = [row for row in known if row["peak_bytes"] <= TOLERANCE * other["peak_bytes"]]
                if fitting:
                    best = max(fitting, key=lambda row, shown=shown: _validated(results, shown, row["budget"]))
                    ahead = 100 * (best["by_task"][task][0] - other["by_task"][task][0])
                    points[shown] = ahead, best["peak_bytes"]
            called = other["method"] + (f" {other['budget']:g}" if other["budget"] else "")
            found.append(EqualMemory(TITLES[name], task, called, other["peak_bytes"], points))
    return found


def _equal_memory_rows(found: list[EqualMemory]) -> list[str]:
    rows = []
    for one in found:
        cells = [one.network, one.task, one.other, f"{one.peak / MIB:,.0f}"]
        for shown in SHOWN:
            points, peak = one.points.get(shown, (None, None))
            cells.append("takes more at every budget" if points is None else f"{points:+.2f} ({peak / MIB:,.0f})")
        rows.append(cells)
    for other in sorted({one.other for one in found}):
        cells = ["mean", "", other, ""]
        for shown in SHOWN:
            points = [one.points[shown][0] for one in found if one.other == other and shown in one.points]
            cells.append(f"{np.mean(points):+.2f} (of {len(points)})" if points else "-")
        rows.append(cells)
    return [f"| {' | '.join(cells)} |" for cells in rows]


def _validated(results: Results, method: str, budget: float) -> float:
    """The highest accuracy of a method and budget on validation data."""
    runs = [run for run in results if (run.phase, run.method, run.budget) == ("tune", method, budget)]
    return max(results[run]["accuracy"] for run in runs)


def _parts(results: dict[Run, dict]) -> tuple[dict[Run, dict], ...]:
    """All results, those on images, those on texts."""
    return results, only(results, is_image), only(results, lambda run: not is_image(run))


def _off_diagonal(matrix: list[list[float]]) -> list[float]:
    return [value for i, row in enumerate(matrix) for j, value in enumerate(row) if i < j]


def _holds(found: bool) -> str:
    return "reproduced" if found else "not reproduced"


def _verdict(points: float, p: float) -> str:
    if not p < ALPHA:
        return "undecided"
    return "reproduced" if points > 0 else "not reproduced"
