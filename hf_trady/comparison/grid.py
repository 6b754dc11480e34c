"""All runs of a comparison, each of which is done once, whenever it is stopped."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .baselines import BASELINES
from .results import Results
from .runs import Run


@dataclass(frozen=True)
class Grid:
    """What is compared: every method on every task with every budget and seed.

    Attributes:
        tasks: Names of the tasks.
        methods: What `parse_method` takes.
        budgets: Of the strategies.
        seeds: Of the runs on the test data.
        learning_rates: To choose from, on validation data, for each method and task, at the budget in the middle.
        tuning_seeds: Of the runs that the learning rate is chosen by.
    """

    tasks: Sequence[str]
    methods: Sequence[str]
    budgets: Sequence[float | int | str]
    seeds: Sequence[int]
    learning_rates: Sequence[float]
    tuning_seeds: Sequence[int] = (0,)

    def cells(self) -> list[tuple[str, str, float | int | str | None]]:
        """Task, method, budget. A baseline has no budget."""
        return [
            (task, method, budget)
            for task in self.tasks
            for method in self.methods
            for budget in ([None] if method in BASELINES else self.budgets)
        ]

    def tuning_runs(self) -> list[Run]:
        """The runs that learning rates are chosen by; none if there is nothing to choose."""
        if len(self.learning_rates) == 1:
            return []
        return [
            Run("tune", task, method, self.tuning_budget(method), seed, learning_rate)
            for seed in self.tuning_seeds
            for task in self.tasks
            for method in self.methods
            for learning_rate in self.learning_rates
        ]

    def test_runs(self, results: Results) -> list[Run]:
        """The runs on the test data. Seeds are the outer loop: what a stopped comparison has, it has of all cells."""
        chosen = chosen_learning_rates(self, results)
        return [Run("test", *cell, seed, chosen[cell[:2]]) for seed in self.seeds for cell in self.cells()]

    def memory_runs(self, results: Results) -> list[Run]:
        """The short runs that memory is measured in, of the first task and seed."""
        chosen = chosen_learning_rates(self, results)
        cells = [cell for cell in self.cells() if cell[0] == self.tasks[0]]
        return [Run("memory", *cell, self.seeds[0], chosen[cell[:2]]) for cell in cells]

    def tuning_budget(self, method: str) -> float | int | str | None:
        """The budget in the middle; None for a baseline."""
        return None if method in BASELINES else self.budgets[len(self.budgets) // 2]


def chosen_learning_rates(grid: Grid, results: Results) -> dict[tuple[str, str], float]:
    """By task and method, the learning rate with the highest mean accuracy on the validation data."""
    if len(grid.learning_rates) == 1:
        return {cell[:2]: grid.learning_rates[0] for cell in grid.cells()}

    def accuracy(task: str, method: str, learning_rate: float) -> float:
        budget = grid.tuning_budget(method)
        runs = [Run("tune", task, method, budget, seed, learning_rate) for seed in grid.tuning_seeds]
        return statistics.mean(results[run]["accuracy"] for run in runs)

    pairs = [(task, method) for task in grid.tasks for method in grid.methods]
    return {pair: max(grid.learning_rates, key=lambda rate: accuracy(*pair, rate)) for pair in pairs}


def do_all(runs: Iterable[Run], results: Results, run_one: Callable[[Run], dict], progress: Callable) -> None:
    """Do the runs that are missing in `results`, and write each one down as it ends.

    Args:
        runs: What is to be done.
        results: What has been done.
        run_one: Gives the figures of a run.
        progress: Wraps the list of runs in a progress bar, such as tqdm.
    """
    bar = progress([run for run in runs if run not in results])
    for run in bar:
        bar.set_description(f"{run.phase} {run.task} {run.method} {run.budget or ''} seed {run.seed}")
        results.add(run, run_one(run))
