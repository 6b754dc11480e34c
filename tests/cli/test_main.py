import json
import subprocess
import sys
from importlib import import_module

import pytest

from hf_trady.cli.main import COMPLETION, VERBS, main


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_help_fits_a_screen_and_gives_an_example(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert done.value.code == 0 and len(shown.splitlines()) <= 45 and f"Example: trady {verb}" in shown


def test_the_help_of_the_command_fits_a_screen_and_names_each_verb(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    shown = capsys.readouterr().out
    assert done.value.code == 0 and len(shown.splitlines()) <= 45 and "Example: trady train" in shown
    assert all(f"\n    {verb} " in shown for verb in VERBS)


def test_the_help_says_of_each_verb_what_its_own_help_begins_with():
    for verb, summary in VERBS.items():
        assert import_module(f"hf_trady.cli.{verb}").__doc__.splitlines()[0] == summary


@pytest.mark.parametrize(
    ("arguments", "frameworks"),
    [(["--help"], "torch transformers"), (["--version"], "torch transformers"), (["report", "--help"], "torch")],
)
def test_help_and_version_wait_for_no_framework(arguments, frameworks):
    program = """
import sys
from hf_trady.cli.main import main
try:
    main(sys.argv[2:])
except SystemExit as done:
    assert not done.code
assert not set(sys.argv[1].split()) & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, frameworks, *arguments], check=True, capture_output=True)


def test_json_is_all_that_goes_to_stdout(tmp_path, capsys):
    model = ("--model_name_or_path", "test_efficientnet", "--image_size", "32", "--batch_size", "2")
    code = main(["plan", *model, "--memory_budget", "0.2", "--output_dir", str(tmp_path), "--json"])
    printed = capsys.readouterr()
    assert code == 0 and "predicted peak" in printed.err
    assert json.loads(printed.out) == json.loads((tmp_path / "plan.json").read_text())


def test_json_has_null_for_what_is_no_number(capsys, monkeypatch):
    values = {"loss": float("nan"), "peaks": [1, float("inf"), (-float("inf"), 0.5)], "verdict": None}
    monkeypatch.setattr("hf_trady.cli.report.run", lambda *values_: (0, values))
    assert main(["report", "runs/photos", "--json"]) == 0
    expected = {"loss": None, "peaks": [1, None, [None, 0.5]], "verdict": None}
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == expected


@pytest.mark.parametrize(
    "typed, expected",
    [
        (["tr"], ["train"]),
        (["plan", "--memory_b"], ["--memory_budget"]),
        (["train", "--lr_scheduler_type", "cosine_wi"], ["cosine_with_restarts", "cosine_with_min_lr"]),
        (["report", "--j"], ["--json"]),
    ],
)
def test_a_shell_completes_verbs_arguments_and_their_values(completion, typed, expected):
    words = " ".join(["trady", *typed])
    program = f"source {completion}; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _shtab_trady"
    result = subprocess.run(
        ["bash", "-c", program + '; printf "%s\\n" "${COMPREPLY[@]}"'], check=True, capture_output=True, text=True
    )
    assert set(expected) <= set(result.stdout.split())


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    """The completion of bash, in a file."""
    file = tmp_path_factory.mktemp("shell") / "trady.bash"
    with file.open("w") as output, pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys, "stdout", output)
        main([COMPLETION, "bash"])
    return file
