import json

import pytest

from hf_trady.cli.main import main
from hf_trady.comparison import Results


METHODS = ["trady", "informed", "paca", "medyate", "full", "head_only", "bias_only"]


def compare(run, output, *more):
    kept = run[: run.index("--num_train_epochs")] + run[run.index("--disable_tqdm") + 2 :]
    kept = [a for i, a in enumerate(kept) if a != "--memory_budget" and kept[i - 1] != "--memory_budget"]
    return main(["compare", *kept, "--output_dir", str(output), "--num_train_epochs", "1", *more])


@pytest.mark.slow
def test_images_end_to_end_and_a_second_call_trains_nothing(image_run, tmp_path, capsys, monkeypatch):
    grid = ["--methods", *METHODS, "--memory_budgets", "0.2", "--seeds", "0", "1"]
    grid += ["--learning_rates", "1e-2", "1e-3", "--ranking_steps", "1"]
    assert compare(image_run, tmp_path, *grid) == 0
    results = Results(tmp_path / "results.jsonl")
    assert len(results) == len(METHODS) * (2 + 2 + 1)  # each tuned with two rates, tested with two seeds, and measured
    for run in results:
        figures = results[run]
        assert (figures["peak_bytes"] > 0) if run.phase == "memory" else (0 <= figures["accuracy"] <= 1)
        if run.method in ("trady", "informed", "medyate"):
            assert 0 < figures["units"] <= figures["budget_units"]
    report = (tmp_path / "report.md").read_text()
    assert all(f"| {method} |" in report for method in METHODS)
    assert (tmp_path / "accuracy_and_memory.png").stat().st_size > 10_000
    assert (tmp_path / "differences.png").stat().st_size > 5_000
    before = (tmp_path / "results.jsonl").read_bytes()
    monkeypatch.setattr("hf_trady.cli.compare.run_one", None)
    capsys.readouterr()
    assert compare(image_run, tmp_path, *grid, "--json") == 0
    assert (tmp_path / "results.jsonl").read_bytes() == before and (tmp_path / "report.md").read_text() == report
    printed = capsys.readouterr()
    assert "Written to" in printed.err
    assert {row["method"] for row in json.loads(printed.out)["rows"]} == set(METHODS)


def test_texts_with_lora(text_run, tmp_path):
    assert compare(text_run, tmp_path, "--methods", "lora", "trady", "--memory_budgets", "0.2", "--seeds", "0") == 0
    results = Results(tmp_path / "results.jsonl")
    assert {run.method for run in results} == {"lora", "trady"}


def test_other_settings_and_unknown_methods_are_refused_before_anything_is_trained(image_run, tmp_path, capsys):
    assert compare(image_run, tmp_path, "--methods", "tradi") == 2
    assert "methods='tradi' is not allowed; it must be any of " in capsys.readouterr().err
    assert not (tmp_path / "results.jsonl").exists()
    (tmp_path / "results.jsonl").write_text(json.dumps({"settings": {"num_train_epochs": 7}}) + "\n")
    assert compare(image_run, tmp_path, "--methods", "head_only") == 2
    assert "was made with other settings" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["methods", "seeds", "learning_rates"])
def test_a_grid_of_no_runs_is_refused(text_run, tmp_path, capsys, name):
    assert compare(text_run, tmp_path, f"--{name}") == 2
    assert f"trady compare: {name} is an empty list; give one value at least" in capsys.readouterr().err


def test_a_run_that_fails_is_no_bad_argument(image_run, tmp_path, capsys):
    arguments = ["--methods", "trady", "--memory_budgets", "1", "--seeds", "0"]
    assert compare(image_run, tmp_path, *arguments) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("trady compare: memory_budget of 1 units ")
    assert compare(image_run, tmp_path, *arguments, "--lr_scheduler_kwargs", '{"foo": 1}') == 2
