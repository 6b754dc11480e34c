"""What the results of strategies.py say, as docs/evidence.md and its pictures.

    python benchmarks/strategies_report.py

Reads what is finished in benchmarks/results/strategies and says what is missing.
"""

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

from strategies import BUDGETS, METHODS, NETWORKS, RESULTS
from strategies_claims import in_short, paper_claims, strategies_against_others
from strategies_pairs import TITLES, accuracies, mean_of

from hf_trady.comparison import BASELINES, Results, Run, summary
from hf_trady.comparison.charts import plot_accuracy_and_memory, plot_differences
from hf_trady.comparison.results import paired_tests
from hf_trady.memory import MIB


DOCS = Path(__file__).resolve().parent.parent / "docs"
ESTIMATES = RESULTS.parent / "channel_bounds.json"


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
        in_short(together),
        _table(together),
        paper_claims(together),
        strategies_against_others(together, by_network),
        _rates(by_network),
        _networks(by_network),
        _estimates(),
        _limits(),
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
{rows}"""


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
        overall = f"{100 * mean_of(accuracies(results, method)):.2f}" if everywhere else "-"
        lines.append(f"| {method} | {' | '.join(row)} | {overall} |")
    lines += [
        "",
        "![Paired differences between methods](evidence_differences.png)",
        "",
        f"Paired t-tests over (network, task, seed), corrected for all {len(paired_tests(results))} of them",
        "(Benjamini-Hochberg); a star marks p < 0.05.",
    ]
    return "\n".join(lines)


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


def _estimates() -> str:
    if not ESTIMATES.is_file():
        return "## How well cheap estimates rank channels\n\nNot run."
    found = json.loads(ESTIMATES.read_text())
    lines = [
        "## How well cheap estimates rank channels",
        "",
        "By `benchmarks/channel_bounds.py`: Spearman's rank correlation with the true norms of the channels'",
        "gradients, within layers / over all channels per unit of memory; mean over the seeds. *Bound* is the norm of",
        "a channel's input times that of the output's gradient, *moments* takes both for independent over positions,",
        "*projected* is what `measure` does by default, and *other batches* are the true norms of other batches.",
        "",
        "| network, task | " + " | ".join(next(iter(found.values()))[0]) + " |",
        "| --- | " + "---: | " * len(next(iter(found.values()))[0]),
    ]
    for name, runs in found.items():
        means = [
            " / ".join(f"{mean(run[kind][key] for run in runs):.2f}" for key in ("within_layers", "all_channels"))
            for kind in runs[0]
        ]
        lines.append(f"| {name} | {' | '.join(means)} |")
    return "\n".join(lines)


def _limits() -> str:
    return """## Limits

- Small: two cores did it all. Few samples, steps and draws, and small inputs; accuracies are far below what these
  networks can reach. What is compared is how methods order at equal steps.
- AdamW, where the paper trains by SGD, longer and on larger images; a TraDy's batch-norms keep their statistics, those
  of full fine-tuning, LoRA and the head alone move.
- A learning rate is the best of a grid whose steps are a factor of three, on the first task and one seed. Between two
  of its rates accuracy can fall from the best to chance, so part of a difference may be the grid's. The second task of
  a network is trained by the rate of the first, and where that is the last of the grid, one beyond may be better.
- Three seeds a task. The t-tests take the seeds of one task for independent pairs, which they are not quite."""


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


def _cell(row: dict | None) -> str:
    return "-" if row is None else f"{100 * row['accuracy']:.2f} ± {100 * row['std']:.2f}"


if __name__ == "__main__":
    main()
