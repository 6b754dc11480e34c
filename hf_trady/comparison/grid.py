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
        learning_rates: To choose from for each method and budget, on validation data.
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

    def settings(self) -> list[tuple[str, float | int | str | None]]:
        """Method, budget: what a learning rate is chosen for. A baseline has no budget."""
        return [
            (method, budget) for method in self.methods for budget in ([None] if method in BASELINES else self.budgets)
        ]

    def tuning_runs(self, results: Results) -> list[Run]:
        """The next runs that learning rates are chosen by; none once all are chosen.

        Each setting climbs from the rate in the middle to a neighbour that did better, the lower one first, until
        neither did.
        """
        if len(self.learning_rates) == 1:
            return []
        return [
            run
            for method, budget in self.settings()
            for rate in self._next_rates(method, budget, results)
            for run in self._runs_with(method, budget, rate)
        ]

    def test_runs(self, results: Results) -> list[Run]:
        """The runs on the test data. Seeds are the outer loop: what a stopped comparison has, it has of all cells."""
        chosen = chosen_learning_rates(self, results)
        return [
            Run("test", task, method, budget, seed, chosen[method, budget])
            for seed in self.seeds
            for task in self.tasks
            for method, budget in self.settings()
        ]

    def memory_runs(self, results: Results) -> list[Run]:
        """The short runs that memory is measured in, of the first task and seed."""
        chosen = chosen_learning_rates(self, results)
        return [
            Run("memory", self.tasks[0], method, budget, self.seeds[0], chosen[method, budget])
            for method, budget in self.settings()
        ]

    def validation_accuracy(
        self, method: str, budget: float | int | str | None, results: Results
    ) -> dict[float, float]:
        """By learning rate, in order, the mean accuracy on the validation data; of those that have been tried."""
        runs = {rate: self._runs_with(method, budget, rate) for rate in sorted(self.learning_rates)}
        return {
            rate: statistics.mean(results[run]["accuracy"] for run in runs[rate])
            for rate in runs
            if all(run in results for run in runs[rate])
        }

    def _runs_with(self, method: str, budget: float | int | str | None, learning_rate: float) -> list[Run]:
        return [
            Run("tune", task, method, budget, seed, learning_rate)
            for seed in self.tuning_seeds
            for task in self.tuning_tasks or self.tasks
        ]

    def _next_rates(self, method: str, budget: float | int | str | None, results: Results) -> list[float]:
        rates, tried = sorted(self.learning_rates), self.validation_accuracy(method, budget, results)
        if not tried:
            return [rates[len(rates) // 2]]
        best = rates.index(max(tried, key=tried.get))
        return [rate for rate in rates[max(best - 1, 0) : best + 2] if rate not in tried][:1]


def chosen_learning_rates(grid: Grid, results: Results) -> dict[tuple[str, float | int | str | None], float]:
    """By method and budget, the learning rate with the highest mean accuracy on the validation data."""
    if len(grid.learning_rates) == 1:
        return dict.fromkeys(grid.settings(), grid.learning_rates[0])
    tried = {setting: grid.validation_accuracy(*setting, results) for setting in grid.settings()}
    return {setting: max(rates, key=rates.get) for setting, rates in tried.items()}


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
