"""What the results of strategies.py say, as docs/evidence.md and its pictures.

    python benchmarks/strategies_report.py

Reads what is finished in benchmarks/results/strategies and says what is missing.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import ttest_rel
from strategies import BUDGETS, NETWORKS, RESULTS, TRAINING

from hf_trady.comparison import Results, Run, summary
from hf_trady.comparison.charts import plot_accuracy_and_memory, plot_differences
from hf_trady.comparison.results import paired_tests
from hf_trady.memory import MIB


DOCS = Path(__file__).resolve().parent.parent / "docs"
ALPHA = 0.05
DEFAULT = "informed"
TITLES = {"mobilenetv2_100": "MobileNetV2-1.0", "tf_efficientnet_lite0": "EfficientNet-Lite0", "minilm": "MiniLM-L6"}
CLAIMS = (
    ("new channels each epoch beat those of the first draw", "trady", "static_topk_random"),
    ("the top layers beat all layers", "trady", "dynamic_full_random"),
    ("random channels beat the largest gradients, measured anew each epoch", "trady", "dynamic_rgn"),
    ("random channels beat the largest gradients, measured once", "trady", "static_rgn"),
)

Accuracies = dict[tuple, float]  # (network, task, seed) -> accuracy


def main() -> None:
    by_network = {name: Results(RESULTS / name / "results.jsonl") for name in NETWORKS if _has_results(name)}
    together = {
        replace(run, task=f"{name}: {run.task}"): results[run]
        for name, results in by_network.items()
        for run in results
    }
    parts = [_setting(), _table(together), _claims(together), _targets(together, by_network), _networks(by_network)]
    (DOCS / "evidence.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    plot_differences(together, DOCS / "evidence_differences.png")
    for name, results in by_network.items():
        plot_accuracy_and_memory(summary(results), DOCS / f"evidence_{name}.png")
    print(f"Written to {DOCS}: evidence.md and its pictures")


def _has_results(name: str) -> bool:
    path = RESULTS / name / "results.jsonl"
    return path.is_file() and any(run.phase == "test" for run in Results(path))


def accuracies(results: dict[Run, dict], method: str, budget=None) -> Accuracies:
    """Test accuracy by (task, seed); of a strategy without `budget` the mean over those that it was run with."""
    found: dict[tuple, list[float]] = {}
    for run, figures in results.items():
        if run.phase == "test" and run.method == method and budget in (None, run.budget):
            found.setdefault((run.task, run.seed), []).append(figures["accuracy"])
    return {key: float(np.mean(values)) for key, values in found.items()}


def difference(one: Accuracies, other: Accuracies) -> tuple[float, float, int]:
    """Mean paired difference in points, the p of a paired t-test, and the number of pairs."""
    pairs = sorted(one.keys() & other.keys())
    a, b = (np.array([known[pair] for pair in pairs]) for known in (one, other))
    if len(pairs) < 2:
        return (100 * float((a - b).mean()) if pairs else float("nan")), float("nan"), len(pairs)
    return 100 * float((a - b).mean()), float(ttest_rel(a, b).pvalue), len(pairs)


# ---- Parts of the document ------------------------------------------------------------------------------------------


def _setting() -> str:
    rows = "\n".join(
        f"| {TITLES[name]} | {', '.join(n.tasks)} | {n.data['max_train_samples']} / {n.data['max_eval_samples']} | "
        f"{n.data['per_device_train_batch_size']} | {n.data.get('image_size', n.data.get('max_seq_length'))} | "
        f"{', '.join(f'{rate:g}' for rate in n.learning_rates)} |"
        for name, n in NETWORKS.items()
    )
    return f"""# Where to update: the evidence

Written by `python benchmarks/strategies_report.py` from the runs of `benchmarks/strategies.py`.

## Setting

Pretrained networks, real tasks, the same batches and steps for every method: {TRAINING["num_train_epochs"]} epochs
of AdamW with a cosine schedule, no weight decay, norms frozen in TraDy's runs. The learning rate of each method and
budget is chosen on other training samples of the first task, with seed 0: from the third one up or down, as long as
accuracy rises. The runs that count are evaluated once, at their end, on test data that nothing was chosen by. Seeds
0, 1, 2 set the new head, the order of the data and the channels. Budgets are shares of the network's units.

| network | tasks | train / test samples | batch | pixels or tokens | learning rates |
| --- | --- | --- | --- | --- | --- |
{rows}

Few samples and small inputs, as two cores must do it all: accuracies are below what these networks can reach. What is
compared is how methods order."""


def _table(results: dict[Run, dict]) -> str:
    cells = {(row["method"], row["budget"]): row for row in summary(results)}
    tasks = sorted({run.task for run in results})
    lines = [
        "## Accuracy over all networks and tasks",
        "",
        f"Mean over {len(tasks)} pairs of network and task and over seeds, in percent. ± is the standard deviation of",
        "the seeds' means.",
        "",
        "| method | " + " | ".join(f"budget {budget:g}" for budget in BUDGETS) + " | mean |",
        "| --- | " + "---: | " * (len(BUDGETS) + 1),
    ]
    methods = sorted({method for method, _ in cells}, key=lambda name: -_mean(accuracies(results, name)))
    for method in methods:
        row = [_cell(cells.get((method, budget)) or cells.get((method, None))) for budget in BUDGETS]
        lines.append(f"| {method} | {' | '.join(row)} | {100 * _mean(accuracies(results, method)):.2f} |")
    lines += ["", "![Paired differences between methods](evidence_differences.png)"]
    return "\n".join(lines)


def _claims(results: dict[Run, dict]) -> str:
    lines = [
        "## The paper's claims",
        "",
        "Paired over (network, task, seed), accuracies averaged over the budgets; in points. *Reproduced*: in the",
        f"paper's direction with p < {ALPHA}; *not reproduced*: the other way with p < {ALPHA}; else undecided.",
        "",
        "| claim | comparison | all | images | texts | verdict |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for claim, one, other in CLAIMS:
        found = [
            difference(accuracies(part, one), accuracies(part, other))
            for part in (results, _only(results, _is_image), _only(results, lambda run: not _is_image(run)))
        ]
        texts = [_difference(*figures) for figures in found]
        lines.append(f"| {claim} | {one} - {other} | {' | '.join(texts)} | {_verdict(*found[0][:2])} |")
    return "\n".join([*lines, "", *_propositions()])


def _propositions() -> list[str]:
    lines = [
        "Gradients of 20 SGD steps, two tasks and two seeds each: rank correlation between these runs, and tail index",
        "(below 2: heavier tails than Gaussian); least / mean, and least / greatest.",
        "",
        "| network | layers by RGN | channels within layers | tail index |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in NETWORKS:
        path = RESULTS / "rank" / name / "agreement.json"
        if path.is_file():
            found = json.loads(path.read_text())
            layers, channels = (_off_diagonal(found[key]) for key in ("layers", "channels"))
            tails = list(itertools.chain(*found["tail_index"].values()))
            lines.append(
                f"| {TITLES[name]} | {min(layers):.2f} / {np.mean(layers):.2f} | {min(channels):.2f} / "
                f"{np.mean(channels):.2f} | {min(tails):.2f} / {max(tails):.2f} |"
            )
    return lines


def _targets(results: dict[Run, dict], by_network: dict[str, Results]) -> str:
    default = accuracies(results, DEFAULT)
    methods = sorted({run.method for run in results if run.budget is not None} - {DEFAULT})
    lines = [
        f"## `{DEFAULT}` against the others",
        "",
        "| against | all budgets | " + " | ".join(f"{budget:g}" for budget in BUDGETS) + " |",
        "| --- | " + "---: | " * (len(BUDGETS) + 1),
    ]
    for method in methods:
        cells = [_difference(*difference(default, accuracies(results, method)))]
        for budget in BUDGETS:
            pair = (accuracies(results, name, budget) for name in (DEFAULT, method))
            cells.append(_difference(*difference(*pair)))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    texts = _only(results, lambda run: not _is_image(run))
    smallest = difference(*(accuracies(texts, name, BUDGETS[0]) for name in (DEFAULT, "static_rgn")))
    largest = difference(accuracies(results, DEFAULT, BUDGETS[-1]), accuracies(results, "full"))
    lines += [
        "",
        f"- On texts at the smallest budget, against `static_rgn`: {_difference(*smallest)}.",
        f"- At the largest budget, against full fine-tuning: {_difference(*largest)}.",
        "",
        "At no more measured peak memory than the other method takes, the best budget of it:",
        "",
        f"| network | task | against | its peak, MiB | peak of {DEFAULT}, MiB | difference, points |",
        "| --- | --- | --- | ---: | ---: | ---: |",
        *(line for name, known in by_network.items() for line in _at_equal_memory(name, known)),
    ]
    return "\n".join(lines)


def _at_equal_memory(name: str, results: Results) -> list[str]:
    rows = [row for row in summary(results) if row["peak_bytes"] is not None]
    lines = []
    for task in NETWORKS[name].tasks:
        for other in [row for row in rows if row["method"] in ("lora", "paca")]:
            fitting = [r for r in rows if r["method"] == DEFAULT and r["peak_bytes"] <= other["peak_bytes"]]
            called = other["method"] + (f" {other['budget']:g}" if other["budget"] else "")
            start = f"| {TITLES[name]} | {task} | {called} | {other['peak_bytes'] / MIB:,.0f} | "
            if not fitting:
                lines.append(f"{start}more at every budget | - |")
                continue
            best = max(fitting, key=lambda row: row["peak_bytes"])
            points = 100 * (best["by_task"][task][0] - other["by_task"][task][0])
            lines.append(f"{start}{best['peak_bytes'] / MIB:,.0f} | {points:+.2f} |")
    return lines


def _networks(by_network: dict[str, Results]) -> str:
    lines = ["## Accuracy and memory by network"]
    for name, results in by_network.items():
        tasks = NETWORKS[name].tasks
        lines += [
            "",
            f"### {TITLES[name]}",
            "",
            f"![Accuracy against measured peak memory](evidence_{name}.png)",
            "",
            f"| method | budget | {' | '.join(tasks)} | peak, MiB | runs |",
            "| --- | ---: | " + "---: | " * (len(tasks) + 2),
        ]
        for row in summary(results):
            known = [row["by_task"].get(task) for task in tasks]
            cells = ["-" if pair is None else f"{100 * pair[0]:.2f} ± {100 * pair[1]:.2f}" for pair in known]
            peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / MIB:,.0f}"
            budget = f"{row['budget']:g}" if row["budget"] is not None else "-"
            marked = " (exceeded)" if row["over_budget"] else ""
            lines.append(f"| {row['method']} | {budget}{marked} | {' | '.join(cells)} | {peak} | {row['runs']} |")
    tests = paired_tests({replace(run): by_network[name][run] for name in by_network for run in by_network[name]})
    lines += ["", f"Tests in the picture of differences are corrected for {len(tests)} of them (Benjamini-Hochberg)."]
    return "\n".join(lines)


# ---- Small things ---------------------------------------------------------------------------------------------------


def _only(results: dict[Run, dict], wanted: Callable[[Run], bool]) -> dict[Run, dict]:
    return {run: figures for run, figures in results.items() if wanted(run)}


def _is_image(run: Run) -> bool:
    return "image_size" in NETWORKS[run.task.split(":")[0]].data


def _mean(values: Accuracies) -> float:
    return float(np.mean(list(values.values()))) if values else float("nan")


def _off_diagonal(matrix: list[list[float]]) -> list[float]:
    return [value for i, row in enumerate(matrix) for j, value in enumerate(row) if i < j]


def _cell(row: dict | None) -> str:
    return "-" if row is None else f"{100 * row['accuracy']:.2f} ± {100 * row['std']:.2f}"


def _difference(points: float, p: float, pairs: int) -> str:
    return "-" if pairs == 0 else f"{points:+.2f} (p = {p:.2g}, {pairs} pairs)"


def _verdict(points: float, p: float) -> str:
    if not p < ALPHA:
        return "undecided"
    return "reproduced" if points > 0 else "not reproduced"


if __name__ == "__main__":
    main()
