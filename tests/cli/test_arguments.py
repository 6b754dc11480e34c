import pytest

from hf_trady.cli.arguments import VerbParser
from hf_trady.cli.compare import CompareArguments
from hf_trady.cli.config import TraDyArguments
from hf_trady.cli.main import main


def parse(arguments: list[str]):
    parser = VerbParser((TraDyArguments, CompareArguments), "compare", "Compare.\n\nMore.", ["tau"], "trady compare")
    return parser.parse(arguments)[0]


def test_a_file_gives_arguments_and_the_command_line_goes_over_them(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("memory_budget: 64MiB\ntau: 2\nseeds: [4, 5]\ntrain_bias: true\nlayer_ranking: null\n")
    config, compare = parse(["--config", str(file), "--tau", "0.5"])
    assert (config.memory_budget, config.tau, config.train_bias, config.layer_ranking) == ("64MiB", 0.5, True, None)
    assert compare.seeds == [4, 5]


@pytest.mark.parametrize("content, reason", [("- a\n", "must hold a mapping"), ("a: [\n", "is not YAML"), ("", "map")])
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path, content, reason):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=reason) as refused:
        parse(["--config", str(file)])
    assert "\n" not in str(refused.value)


def test_a_wrong_argument_is_one_line_and_code_2(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("taw: 2\n")
    for arguments in (["--taw", "2"], ["--tau", "x"], ["--config", str(file)]):
        with pytest.raises((SystemExit, ValueError)) as refused:
            parse(arguments)
        printed = capsys.readouterr().err if isinstance(refused.value, SystemExit) else str(refused.value)
        assert printed.strip().count("\n") == 0 and ("ta" in printed)
    assert main(["train", "--config", str(tmp_path / "none.yaml")]) == 2
