"""What the results of strategies.py say, as docs/evidence.md and its pictures.

    python benchmarks/strategies_report.py

Reads what is finished in benchmarks/results/strategies and says what is missing.
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from strategies import BUDGETS, METHODS, NETWORKS, RESULTS
from strategies_pairs import accuracies, as_text, compare, is_image, mean_of, only

from hf_trady.comparison import BASELINES, Results, Run, summary
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


def main() -> None:
    by_network = {name: Results(RESULTS / name / "results.jsonl") for name in NETWORKS if _has_results(name)}
    whole = _complete_settings(by_network)
    together = {
        replace(run, task=f"{name}: {run.task}"): results[run]
        for name, results in by_network.items()
        for run in results
        if (run.method, run.budget) in whole
    }
    parts = [
        _setting(),
        _table(together),
        _claims(together),
        _targets(together, by_network),
        _rates(by_network),
        _networks(by_network),
        _missing(whole),
    ]
    (DOCS / "evidence.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    plot_differences(together, DOCS / "evidence_differences.png")
    for name, results in by_network.items():
        plot_accuracy_and_memory(summary(results), DOCS / f"evidence_{name}.png")
    print(f"Written to {DOCS}: evidence.md and its pictures")


def _has_results(name: str) -> bool:
    path = RESULTS / name / "results.jsonl"
    return path.is_file() and any(run.phase == "test" for run in Results(path))


def _complete_settings(by_network: dict[str, Results]) -> set[tuple]:
    """The methods and budgets that were run on every network and task, with as many seeds as any other."""
    runs = {
        (name, run.task, run.method, run.budget, run.seed)
        for name, results in by_network.items()
        for run in results
        if run.phase == "test"
    }
    seeds = {run[-1] for run in runs}
    tasks = [(name, task) for name, network in NETWORKS.items() for task in network.tasks]
    return {
        (method, budget)
        for _, _, method, budget, _ in runs
        if all((*task, method, budget, seed) in runs for task in tasks for seed in seeds)
    }


def _budgets_of(method: str) -> tuple:
    return (None,) if method in BASELINES else BUDGETS


# ---- Parts of the document ------------------------------------------------------------------------------------------


def _setting() -> str:
    rows = "\n".join(
        f"| {TITLES[name]} | {', '.join(n.tasks)} | {n.data['max_train_samples']} / {n.data['max_eval_samples']} | "
        f"{n.data['num_train_epochs']} | {n.data['per_device_train_batch_size']} | "
        f"{n.data.get('image_size', n.data.get('max_seq_length'))} | "
        f"{', '.join(f'{rate:g}' for rate in n.learning_rates)} |"
        for name, n in NETWORKS.items()
    )
    return f"""# Where to update: the evidence

Written by `python benchmarks/strategies_report.py` from the runs of `benchmarks/strategies.py`.

## Setting

Pretrained networks, real tasks, the same batches and steps for every method: AdamW with a cosine schedule, no weight
decay, norms frozen in TraDy's runs. The learning rate of each method and budget is chosen on other training samples
of the first task, with seed 0: from the third one up or down, as long as accuracy rises. The runs that count are
evaluated once, at their end, on test data that nothing was chosen by. Seeds 0, 1, 2 set the new head, the
order of the data and the channels, which are drawn anew each epoch. Budgets are shares of the network's units. The
fields of `informed` were searched before, on training data alone and with other seeds.

| network | tasks | train / test samples | epochs | batch | pixels or tokens | learning rates |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

Few samples, steps and draws and small inputs, as two cores must do it all: accuracies are far below what these
networks can reach, and an epoch is short. What is compared is how methods order at equal steps."""


def _table(results: dict[Run, dict]) -> str:
    cells = {(row["method"], row["budget"]): row for row in summary(results)}
    tasks = sorted({run.task for run in results})
    lines = [
        "## Accuracy over all networks and tasks",
        "",
        f"Mean over {len(tasks)} pairs of network and task and over seeds, in percent. ± is the standard deviation of",
        "the seeds' means. Ordered by the smallest budget; a dash was not run.",
        "",
        "| method | " + " | ".join(f"budget {budget:g}" for budget in BUDGETS) + " | mean |",
        "| --- | " + "---: | " * (len(BUDGETS) + 1),
    ]
    smallest = {method: mean_of(accuracies(results, method, BUDGETS[:1])) for method, _ in cells}
    for method in sorted(smallest, key=lambda name: -smallest[name]):
        row = [_cell(cells.get((method, budget)) or cells.get((method, None))) for budget in BUDGETS]
        everywhere = all((method, budget) in cells for budget in _budgets_of(method))
        mean = f"{100 * mean_of(accuracies(results, method)):.2f}" if everywhere else "-"
        lines.append(f"| {method} | {' | '.join(row)} | {mean} |")
    lines += [
        "",
        "![Paired differences between methods](evidence_differences.png)",
        "",
        f"Paired t-tests over (network, task, seed), corrected for all {len(paired_tests(results))} of them",
        "(Benjamini-Hochberg); a star marks p < 0.05.",
    ]
    return "\n".join(lines)


def _claims(results: dict[Run, dict]) -> str:
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
        found = [
            compare(part, one, other, BUDGETS)
            for part in (results, only(results, is_image), only(results, lambda run: not is_image(run)))
        ]
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


def _targets(results: dict[Run, dict], by_network: dict[str, Results]) -> str:
    methods = sorted({run.method for run in results} - {DEFAULT})
    lines = [
        f"## `{DEFAULT}` against the others",
        "",
        "Differences in points. The second column averages the budgets that the other method was run with.",
        "",
        "| against | mean | " + " | ".join(f"{budget:g}" for budget in BUDGETS) + " |",
        "| --- | " + "---: | " * (len(BUDGETS) + 1),
    ]
    for method in methods:
        cells = [compare(results, DEFAULT, method, budgets) for budgets in (BUDGETS, *([b] for b in BUDGETS))]
        lines.append(f"| {method} | {' | '.join(as_text(*cell) for cell in cells)} |")
    texts = only(results, lambda run: not is_image(run))
    smallest = compare(texts, DEFAULT, "static_rgn", BUDGETS[:1])
    largest = compare(results, DEFAULT, "full", BUDGETS[-1:])
    lines += [
        "",
        f"- On texts at the smallest budget, against `static_rgn`: {as_text(*smallest)}.",
        f"- At the largest budget, against full fine-tuning: {as_text(*largest)}.",
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
    return "\n".join(lines)


def _rates(by_network: dict[str, Results]) -> str:
    lines = [
        "## The learning rates that were chosen",
        "",
        f"By budget: {', '.join(f'{budget:g}' for budget in BUDGETS)}.",
        "",
        f"| method | {' | '.join(TITLES[name] for name in by_network)} |",
        "| --- | " + "--- | " * len(by_network),
    ]
    for method in METHODS:
        cells = [_rates_of(method, results) for results in by_network.values()]
        if any(cells):
            lines.append(f"| {method} | {' | '.join(cell or '-' for cell in cells)} |")
    return "\n".join(lines)


def _rates_of(method: str, results: Results) -> str:
    found = {run.budget: run.learning_rate for run in results if run.phase == "test" and run.method == method}
    return ", ".join(f"{found[budget]:g}" for budget in (None, *BUDGETS) if budget in found)


def _missing(whole: set[tuple]) -> str:
    missing = {
        method: [budget for budget in _budgets_of(method) if (method, budget) not in whole] for method in METHODS
    }
    if not any(missing.values()):
        return "All methods were run with every budget and seed on every task."
    names = ", ".join(
        method + (f" ({', '.join(f'{budget:g}' for budget in budgets)})" if budgets != [None] else "")
        for method, budgets in missing.items()
        if budgets
    )
    return (
        "## What was not run\n\nNot with every seed on every task, so neither in the tables over all networks nor in "
        f"a test: {names}."
    )


# ---- Small things ---------------------------------------------------------------------------------------------------


def _off_diagonal(matrix: list[list[float]]) -> list[float]:
    return [value for i, row in enumerate(matrix) for j, value in enumerate(row) if i < j]


def _cell(row: dict | None) -> str:
    return "-" if row is None else f"{100 * row['accuracy']:.2f} ± {100 * row['std']:.2f}"


def _holds(found: bool) -> str:
    return "reproduced" if found else "not reproduced"


def _verdict(points: float, p: float) -> str:
    if not p < ALPHA:
        return "undecided"
    return "reproduced" if points > 0 else "not reproduced"


if __name__ == "__main__":
    main()
