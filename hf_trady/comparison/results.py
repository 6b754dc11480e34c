"""The finished runs of a comparison, a line of JSON each, and what they say."""

import json
import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import false_discovery_control, ttest_rel

from .runs import Run


class Results:
    """The file of finished runs. A run is added whole or, if the process is killed meanwhile, not at all.

    Args:
        path: The JSON-lines file; its first line holds the settings that all runs share.
        settings: These settings.

    Raises:
        ValueError: If the file was made with other settings, or is no such file.
    """

    def __init__(self, path: str | os.PathLike, settings: dict | None = None):
        self.path = Path(path)
        self._figures: dict[Run, dict] = {}
        self.settings = settings
        lines = self._complete_lines()
        if not lines:
            if settings is None:
                raise FileNotFoundError(f"no results at '{path}'")
            self._append({"settings": settings})
            return
        try:
            first, *rest = (json.loads(line) for line in lines)
            self.settings = first["settings"]
            self._figures = {Run(**entry["run"]): entry["figures"] for entry in rest}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"'{path}' is not a file of results ({type(error).__name__}: {error})") from None
        if settings is not None and settings != self.settings:
            changed = sorted(key for key in {*settings, *self.settings} if settings.get(key) != self.settings.get(key))
            raise ValueError(
                f"'{path}' was made with other settings ({', '.join(changed)}); use them, or another output_dir"
            )

    def __contains__(self, run: Run) -> bool:
        return run in self._figures

    def __getitem__(self, run: Run) -> dict:
        return self._figures[run]

    def __iter__(self) -> Iterator[Run]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def add(self, run: Run, figures: dict) -> None:
        """Write a finished run down."""
        self._append({"run": run.to_dict(), "figures": figures})
        self._figures[run] = figures

    def _append(self, entry: dict) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _complete_lines(self) -> list[str]:
        """The lines of the file; what a killed process left unfinished at its end is cut off."""
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        return content[:whole].decode("utf-8", errors="replace").splitlines()


def summary(results: Results) -> list[dict]:
    """A row for each method and budget, over all tasks and seeds of the test runs.

    Returns:
        method, budget, runs, accuracy (mean over tasks and seeds), std (of the seeds' means over tasks), by_task (task
        -> mean and standard deviation over seeds), peak_bytes (of the runs that measure it), seconds (mean),
        over_budget (whether a draw cost more units than the budget).
    """
    rows = []
    for method, budget in _columns(results):
        runs = _of(results, "test", method, budget)
        figures = [results[run] for run in runs]
        accuracy = {(run.task, run.seed): results[run]["accuracy"] for run in runs}
        tasks, seeds = sorted({task for task, _ in accuracy}), sorted({seed for _, seed in accuracy})
        by_task = {task: [accuracy[task, seed] for seed in seeds if (task, seed) in accuracy] for task in tasks}
        complete = [seed for seed in seeds if all((task, seed) in accuracy for task in tasks)]
        rows.append(
            {
                "method": method,
                "budget": budget,
                "runs": len(runs),
                "accuracy": float(np.mean([np.mean(values) for values in by_task.values()])),
                "std": _std([np.mean([accuracy[task, seed] for task in tasks]) for seed in complete]),
                "by_task": {task: (float(np.mean(values)), _std(values)) for task, values in by_task.items()},
                "peak_bytes": _mean(results[run]["peak_bytes"] for run in _of(results, "memory", method, budget)),
                "seconds": _mean(entry["seconds"] for entry in figures),
                "over_budget": any((entry["units"] or 0) > (entry["budget_units"] or np.inf) for entry in figures),
            }
        )
    return rows


def paired_tests(results: Results) -> list[dict]:
    """Paired t-tests between all methods of each budget, baselines included, over (task, seed).

    Returns:
        budget, method, other, difference (mean of method's accuracy minus other's), pairs, p, and corrected: the p
        that controls the rate of false discoveries (Benjamini-Hochberg) over all tests.
    """
    columns = _columns(results)
    tests = []
    for budget in dict.fromkeys(budget for _, budget in columns if budget is not None) or [None]:
        methods = [column for column in columns if column[1] in (budget, None)]
        for one, other in combinations(methods, 2):
            accuracies = [_accuracies(results, *column) for column in (one, other)]
            pairs = sorted(accuracies[0].keys() & accuracies[1].keys())
            if len(pairs) < 2:
                continue
            a, b = (np.array([known[pair] for pair in pairs]) for known in accuracies)
            p = float(ttest_rel(a, b).pvalue) if np.ptp(a - b) else float(bool(a[0] == b[0]))
            tests.append(
                {
                    "budget": budget,
                    "method": one[0],
                    "other": other[0],
                    "difference": float((a - b).mean()),
                    "pairs": len(pairs),
                    "p": p,
                }
            )
    if tests:
        for test, corrected in zip(tests, false_discovery_control([test["p"] for test in tests]), strict=True):
            test["corrected"] = float(corrected)
    return tests


def _columns(results: Results) -> list[tuple]:
    return list(dict.fromkeys((run.method, run.budget) for run in results if run.phase == "test"))


def _accuracies(results: Results, method: str, budget) -> dict[tuple[str, int], float]:
    return {(run.task, run.seed): results[run]["accuracy"] for run in _of(results, "test", method, budget)}


def _of(results: Results, phase: str, method: str, budget) -> list[Run]:
    return [run for run in results if (run.phase, run.method, run.budget) == (phase, method, budget)]


def _mean(values) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _std(values) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
