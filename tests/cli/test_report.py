import json
import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from hf_trady import TraDyConfig
from hf_trady.cli.main import main
from hf_trady.history import HISTORY_NAME


PICTURES = ["learning", "memory", "sparsity", "layer_updates", "coverage", "costs"]
VOID = ("meta", "img", "br", "link", "input", "hr")


class Page(HTMLParser):
    """A page of which all tags are closed in order; its resources, headings, notes and the cells of its table."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.resources, self.text = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.resources += [values[name] for name in ("src", "href", "srcset", "data") if name in values]
        kind = "note" if values.get("class") == "note" else tag
        if tag not in VOID:
            self.open.append(kind)
            self.text.setdefault(kind, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() in (tag, "note")

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]][-1] += data


def train(run: list[str], output: Path, *more: str) -> None:
    assert main(["train", *run, "--output_dir", str(output), *more]) == 0


def report(directory: Path, capsys, *more: str) -> tuple[Page, dict]:
    """The page of the run `directory`, all of whose pictures decode, and its summary."""
    assert main(["report", str(directory), *more]) == 0
    output = Path(more[-1]) if more else directory / "report"
    text = (output / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|<script", text)
    page = Page(text)
    assert all(resource.startswith("data:image/png;base64,") for resource in page.resources)
    inline = [b64decode(resource.partition(",")[2], validate=True) for resource in page.resources]
    for content in inline:
        with Image.open(BytesIO(content)) as picture:
            assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(2**24)) > 10
    assert sorted(inline) == sorted(file.read_bytes() for file in output.glob("*.png"))
    capsys.readouterr()
    assert main(["report", str(directory), *more, "--json"]) == 0
    return page, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def text_report_run(text_run, tmp_path_factory) -> Path:
    """A run of three epochs with a budget in bytes; every checkpoint is kept."""
    output = tmp_path_factory.mktemp("report") / "reviews"
    train(text_run, output, "--memory_budget", "64MiB", "--num_train_epochs", "3", "--save_total_limit", "9")
    return output


@pytest.fixture
def finished(text_report_run, tmp_path) -> Path:
    """A copy of that run, to be damaged."""
    return shutil.copytree(text_report_run, tmp_path / "reviews")


def test_a_run_with_a_budget_in_bytes_has_all_pictures_and_numbers(finished, capsys):
    page, summary = report(finished, capsys)
    assert sorted(file.stem for file in (finished / "report").glob("*.png")) == sorted(PICTURES)
    assert page.text["h1"] == ["reviews"] and len(page.text["h2"]) == 6 and "note" not in page.text
    table = dict(zip(page.text["th"], page.text["td"], strict=True))
    results = json.loads((finished / "all_results.json").read_text())
    assert summary["metrics"]["accuracy"] == results["eval_accuracy"]
    assert table["accuracy"] == f"{results['eval_accuracy']:.2%}" and table["strategy"] == "trady"
    assert summary["activation_sparsity"] == results["activation_sparsity"]
    assert summary["flops_saved"] == results["flops_saved"]
    assert (summary["draws"], summary["epochs"], summary["budget_bytes"]) == (3, 3.0, 64 * 2**20)
    assert 0 < summary["predicted_peak_bytes"] <= summary["budget_bytes"]
    assert table["memory"] == summary["verdict"]
    assert f"{summary['peak_bytes'] / 2**20:,.0f} MiB measured" in table["memory"]
    assert 0 < summary["touched_channels"] <= summary["pool_channels"]
    assert str(finished.parent) not in (finished / "report" / "report.html").read_text()  # it may be passed on


def test_images_draws_by_steps_and_another_place(image_run, tmp_path, capsys):
    train(image_run, tmp_path / "run", "--resample_every", "2", "--num_train_epochs", "2")
    page, summary = report(tmp_path / "run", capsys, "--output_dir", str(tmp_path / "page"))
    assert summary["draws"] == -(-summary["steps"] // 2) and not (tmp_path / "run" / "report").exists()
    assert summary["budget_bytes"] is None and summary["verdict"] is None
    assert 0 < summary["trained_parameters"] < summary["changed_elements"] < summary["total_parameters"]
    assert "the budget is not in bytes" in " ".join(page.text["td"]) and "note" not in page.text


def test_a_resumed_run_reports_what_the_uninterrupted_one_does(text_run, text_report_run, tmp_path, capsys):
    _, expected = report(text_report_run, capsys, "--output_dir", str(tmp_path / "page"))
    first = min(text_report_run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    resumed = tmp_path / "reviews"
    arguments = ("--memory_budget", "64MiB", "--num_train_epochs", "3", "--resume_from_checkpoint", str(first))
    train(text_run, resumed, *arguments)
    page, summary = report(resumed, capsys)
    measured = ("peak_bytes", "verdict", "train_seconds", "train_loss", "draws_over_budget", "updated")
    assert {k: v for k, v in summary.items() if k not in measured} == {
        k: v for k, v in expected.items() if k not in measured
    }
    assert len(page.resources) == 6


def test_a_killed_run_is_told_from_its_last_checkpoint(finished, capsys):
    for file in finished.iterdir():
        if file.is_file() and file.name != HISTORY_NAME:
            file.unlink()
    page, summary = report(finished, capsys)
    assert summary["strategy"] == "trady" and summary["metrics"]["accuracy"] >= 0 and len(page.resources) == 6
    last = max(finished.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    (last / "trainer_state.json").write_text('{"global_step": ')  # the power went while it was written
    page, later = report(finished, capsys)
    assert 0 < later["steps"] < summary["steps"]
    assert [note for note in page.text["note"] if "Passed over" in note and "is not valid JSON" in note]


@pytest.mark.parametrize("place", ["", "checkpoint"])
def test_what_a_run_lacks_is_said_and_the_rest_is_shown(finished, capsys, place):
    for file in finished.rglob("*"):
        if file.name in (HISTORY_NAME, "trady_plan.json", "trady_config.json", "trady_model.safetensors"):
            file.unlink()
    directory = max(finished.glob("checkpoint-*")) if place else finished
    page, summary = report(directory, capsys)
    assert len(page.resources) == 3 and len(page.text["note"]) == 3
    assert all(HISTORY_NAME in note for note in page.text["note"])
    assert summary["strategy"] is None and summary["trained_parameters"] is None
    assert summary["peak_bytes"] > 0 and summary["activation_sparsity"] > 0


def test_a_history_alone_is_a_run_and_what_an_older_report_had_goes(finished, capsys):
    report(finished, capsys)
    for file in [*finished.glob("*.json"), *finished.glob("checkpoint-*")]:
        if file.is_dir():
            shutil.rmtree(file)
        elif file.name != HISTORY_NAME:
            file.unlink()
    page, summary = report(finished, capsys)
    assert (summary["strategy"], summary["steps"], summary["draws"]) == ("trady", None, 3)
    assert len(page.text["note"]) == 3 and not (finished / "report" / "learning.png").exists()


def test_names_are_escaped_and_values_that_are_no_numbers_left_out(finished, capsys):
    evil = '<script>alert("&")</script>'
    config = TraDyConfig.from_pretrained(finished)
    config.base_model_name_or_path = evil
    config.save_pretrained(finished)
    state = json.loads((finished / "trainer_state.json").read_text())
    state["log_history"] += [{"loss": float("nan"), "eval_note": "none", "epoch": 3.0, "step": 60}]
    (finished / "trainer_state.json").write_text(json.dumps(state))
    page, summary = report(finished, capsys)
    assert summary["model"] == evil and evil in page.text["td"]
    assert "note" not in summary["metrics"]


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "damaged"])
def test_what_is_no_run_is_refused_in_one_line(kind, tmp_path, capsys):
    path = tmp_path / "run"
    if kind == "file":
        path.write_text("")
    elif kind != "missing":
        path.mkdir()
    if kind == "damaged":
        (path / "trainer_state.json").write_text("[1, 2]")
    assert main(["report", str(path)]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("trady report: ") and str(path) in line and "\n" not in line
    assert not (path / "report").exists()


def test_its_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    assert "Example: trady report runs/photos" in capsys.readouterr().out
