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
        learning_rates: To choose from for each method, at the budget in the middle, on validation data.
        tuning_seeds: Of the runs that the learning rate is chosen by.
        tuning_tasks: Tasks whose mean accuracy it is chosen by; None for all.
    """

    tasks: Sequence[str]
    methods: Sequence[str]
    budgets: Sequence[float | int | str]
    seeds: Sequence[int]
    learning_rates: Sequence[float]
    tuning_seeds: Sequence[int] = (0,)
    tuning_tasks: Sequence[str] | None = None

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
        return [run for method in self.methods for rate in self.learning_rates for run in self.runs_with(method, rate)]

    def runs_with(self, method: str, learning_rate: float) -> list[Run]:
        """The runs that tell how good `learning_rate` is for `method`."""
        budget = None if method in BASELINES else self.budgets[len(self.budgets) // 2]
        return [
            Run("tune", task, method, budget, seed, learning_rate)
            for seed in self.tuning_seeds
            for task in self.tuning_tasks or self.tasks
        ]

    def test_runs(self, results: Results) -> list[Run]:
        """The runs on the test data. Seeds are the outer loop: what a stopped comparison has, it has of all cells."""
        chosen = chosen_learning_rates(self, results)
        return [
            Run("test", task, method, budget, seed, chosen[method])
            for seed in self.seeds
            for task, method, budget in self.cells()
        ]

    def memory_runs(self, results: Results) -> list[Run]:
        """The short runs that memory is measured in, of the first task and seed."""
        chosen = chosen_learning_rates(self, results)
        return [
            Run("memory", task, method, budget, self.seeds[0], chosen[method])
            for task, method, budget in self.cells()
            if task == self.tasks[0]
        ]


def chosen_learning_rates(grid: Grid, results: Results) -> dict[str, float]:
    """By method, the learning rate with the highest mean accuracy on the validation data."""
    if len(grid.learning_rates) == 1:
        return dict.fromkeys(grid.methods, grid.learning_rates[0])

    def accuracy(method: str, learning_rate: float) -> float:
        return statistics.mean(results[run]["accuracy"] for run in grid.runs_with(method, learning_rate))

    return {method: max(grid.learning_rates, key=lambda rate: accuracy(method, rate)) for method in grid.methods}


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
