"""The report of a comparison, as Markdown."""

from ..memory import MIB
from .results import Results, paired_tests, summary


SIGNIFICANT = 0.05


def markdown(results: Results) -> str:
    """Tables of accuracy, memory and time, and of the paired tests."""
    rows = summary(results)
    tasks = sorted({task for row in rows for task in row["by_task"]})
    lines = [
        f"Accuracy on the test data in percent: mean and standard deviation over seeds, of {len(results)} runs.",
        "The peak is that of the process in short runs of training, above what it held before. Time includes what is",
        "measured before the first epoch.",
        "",
        "| method | budget | " + " | ".join(tasks) + " | mean | peak, MiB | time, s |",
        "| --- | --- | " + "--- | " * len(tasks) + "--- | --- | --- |",
    ]
    for row in rows:
        accuracies = [_percent(*row["by_task"][task]) if task in row["by_task"] else "" for task in tasks]
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / MIB:,.0f}"
        budget = f"{row['budget'] or '-'}{' (exceeded)' if row['over_budget'] else ''}"
        cells = [row["method"], budget, *accuracies, _percent(row["accuracy"], row["std"]), peak]
        lines.append("| " + " | ".join([*cells, f"{row['seconds']:,.0f}"]) + " |")
    tests = paired_tests(results)
    if tests:
        lines += [
            "",
            f"Paired t-tests over (task, seed) whose p, corrected for {len(tests)} tests (Benjamini-Hochberg), is",
            f"below {SIGNIFICANT}:",
            "",
            "| budget | method | against | difference, points | pairs | corrected p |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for test in sorted(tests, key=lambda test: test["corrected"]):
            if test["corrected"] < SIGNIFICANT:
                one, other, difference = test["method"], test["other"], test["difference"]
                if difference < 0:
                    one, other, difference = other, one, -difference
                lines.append(
                    f"| {test['budget'] or '-'} | {one} | {other} | {100 * difference:.2f} | {test['pairs']} | "
                    f"{test['corrected']:.2g} |"
                )
    return "\n".join(lines) + "\n"


def _percent(mean: float, std: float) -> str:
    return f"{100 * mean:.2f} ± {100 * std:.2f}"
