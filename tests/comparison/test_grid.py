import dataclasses
import json
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_trady.comparison import Grid, Results, Run, chosen_learning_rates, summary
from hf_trady.comparison.grid import do_all
from hf_trady.comparison.report import markdown
from hf_trady.comparison.results import paired_tests


GRID = Grid(["a", "b"], ["trady", "static_rgn", "full"], [0.01, 0.1], [0, 1, 2], [0.1, 0.01, 0.001])


class Bar(list):
    def set_description(self, text):
        assert text


def best_rate(method: str, budget: float | None) -> float:
    """The lower the larger the budget, as with real networks."""
    return 0.001 if method == "full" else 0.1 if budget == 0.01 else 0.01


def figures(run: Run) -> dict:
    """Made up, but a function of the run, with one best rate for each setting."""
    accuracy = (
        0.5
        - 0.01 * abs(math.log10(run.learning_rate / best_rate(run.method, run.budget)))
        + 0.05 * (run.method == "trady")
        + 0.01 * run.seed
    )
    accuracy += 0.001 * (hash((run.task, run.seed)) % 7)
    return {"accuracy": accuracy, "loss": 1.0, "peak_bytes": 2**20, "seconds": 1.0, "train_seconds": 1.0,
            "units": 5, "budget_units": 4 if run.budget == 0.01 else 10}  # fmt: skip


def finished(path, grid=GRID, run_one=figures) -> Results:
    results = Results(path, {"epochs": 1})
    while runs := grid.tuning_runs(results):
        do_all(runs, results, run_one, Bar)
    do_all(grid.test_runs(results), results, run_one, Bar)
    do_all(grid.memory_runs(results), results, run_one, Bar)
    return results


def test_every_cell_is_tuned_and_tested_once(tmp_path):
    results = finished(tmp_path / "r.jsonl")
    cells = 2 * (2 * 2 + 1)
    tuned = [run for run in results if run.phase == "tune"]
    assert len(tuned) == len(set(tuned)) == 2 * (2 * 2 * 3 + 2)  # `full` does better at the lower rate: two of three
    assert {run.budget for run in tuned} == {0.01, 0.1, None}
    assert len([run for run in results if run.phase == "memory"]) == cells // 2
    tests = [run for run in results if run.phase == "test"]
    assert len(tests) == len({(r.task, r.method, r.budget, r.seed) for r in tests}) == cells * 3
    assert all(run.learning_rate == best_rate(run.method, run.budget) for run in tests)
    assert all(run.budget is None for run in tests if run.method == "full")


def test_one_learning_rate_is_taken_as_it_is(tmp_path):
    grid = Grid(["a"], ["trady"], [0.1], [0], [0.3])
    results = finished(tmp_path / "r.jsonl", grid)
    assert [run.phase for run in results] == ["test", "memory"]
    assert chosen_learning_rates(grid, results) == {("trady", 0.1): 0.3}


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9, unique=True), st.integers(0, 9), st.data())
@settings(max_examples=50, deadline=None)
def test_the_best_learning_rate_is_found_in_few_runs(tmp_path_factory, accuracies, peak, data):
    """Where accuracy rises up to a rate and falls from it on, that one is chosen; no rate far beyond it is tried."""
    peak = min(peak, len(accuracies) - 1)
    ordered = sorted(accuracies)
    rising = sorted(data.draw(st.permutations(ordered[:-1]))[:peak])
    curve = [*rising, ordered[-1], *sorted(set(ordered[:-1]) - set(rising), reverse=True)]
    rates = [10.0**i for i in range(len(curve))]
    grid = Grid(["a"], ["full"], [], [0], data.draw(st.permutations(rates)))
    by_rate = dict(zip(rates, curve, strict=True))
    path = tmp_path_factory.mktemp("climb") / "r.jsonl"
    results = finished(path, grid, lambda run: figures(run) | {"accuracy": by_rate[run.learning_rate]})
    assert chosen_learning_rates(grid, results) == {("full", None): rates[peak]}
    tried = {rates.index(run.learning_rate) for run in results if run.phase == "tune"}
    middle = len(rates) // 2
    assert tried <= set(range(min(peak, middle) - 1, max(peak, middle) + 2))


def test_a_learning_rate_may_be_chosen_on_some_of_the_tasks(tmp_path):
    grid = dataclasses.replace(GRID, tuning_tasks=["b"])
    results = finished(tmp_path / "r.jsonl", grid)
    assert {run.task for run in results if run.phase == "tune"} == {"b"}
    assert {run.task for run in results if run.phase == "test"} == {"a", "b"}


@given(st.integers(0, 60), st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(tmp_path_factory, runs, cut):
    """Killed after some runs, in the middle of writing the next one down."""
    folder = tmp_path_factory.mktemp("grid")
    whole = finished(folder / "whole.jsonl")

    class Killed(Exception):
        pass

    done = []

    def run_one(run):
        if len(done) == runs:
            raise Killed
        done.append(run)
        return figures(run)

    path = folder / "killed.jsonl"
    try:
        finished(path, run_one=run_one)
    except Killed:
        half = json.dumps({"run": {"phase": "tune"}})[:cut]
        with path.open("a") as file:
            file.write(half)
    again = []
    results = finished(path, run_one=lambda run: again.append(run) or figures(run))
    assert not set(done) & set(again) and len(done) + len(again) == len(whole)
    assert summary(results) == summary(whole) and markdown(results) == markdown(whole)
    assert summary(Results(path)) == summary(whole)


def test_a_budget_that_was_exceeded_is_marked(tmp_path):
    results = finished(tmp_path / "r.jsonl")
    assert {(row["method"], row["budget"]): row["over_budget"] for row in summary(results)} == {
        ("trady", 0.01): True,
        ("trady", 0.1): False,
        ("static_rgn", 0.01): True,
        ("static_rgn", 0.1): False,
        ("full", None): False,
    }
    assert "0.01 (exceeded)" in markdown(results)


def test_pairs_are_of_the_same_task_and_seed(tmp_path):
    tests = paired_tests(finished(tmp_path / "r.jsonl"))
    assert len(tests) == 2 * 3  # of three methods, with each budget
    for test in tests:
        assert test["pairs"] == 6 and test["p"] <= test["corrected"] <= 1
        expected = 0.05 * ((test["method"] == "trady") - (test["other"] == "trady"))
        assert test["difference"] == pytest.approx(expected)


@pytest.mark.parametrize("content", ["{}", "[1]", '{"settings": {}}\n{"run": {"a": 1}, "figures": {}}', "nonsense"])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "r.jsonl"
    path.write_text(content + "\n")
    with pytest.raises(ValueError, match="is not a file of results"):
        Results(path, {})
    assert path.read_text() == content + "\n" and os.listdir(tmp_path) == ["r.jsonl"]


def test_other_settings_are_named(tmp_path):
    finished(tmp_path / "r.jsonl")
    with pytest.raises(ValueError, match=r"made with other settings \(batch, epochs\); use them, or another"):
        Results(tmp_path / "r.jsonl", {"epochs": 2, "batch": 1})
