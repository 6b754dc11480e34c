import pytest

from hf_trady.cli.arguments import VerbParser
from hf_trady.cli.compare import CompareArguments
from hf_trady.cli.config import TraDyArguments
from hf_trady.cli.data import DataArguments
from hf_trady.cli.main import main
from hf_trady.cli.train import TrainArguments


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


def test_fields_of_the_config_take_all_their_forms(tmp_path):
    def config(*arguments):
        parser = VerbParser((TraDyArguments,), "train", "Train.", (), "trady train")
        return parser.parse([*arguments])[0][0]

    assert config().train_bias is False and config("--train_bias").train_bias is True
    assert config("--train_bias", "1").train_bias == 1 and config("--train_bias", "false").train_bias is False
    assert config("--target_modules", ".*attention.*").target_modules == ".*attention.*"
    assert config("--target_modules", "query").target_modules == ["query"]
    assert config("--modules_to_save").modules_to_save == []
    with pytest.raises(ValueError, match="train_bias='some' is not allowed"):
        config("--train_bias", "some")


def test_a_file_may_hold_mappings_and_empty_lists(tmp_path):
    (tmp_path / "run.yaml").write_text("lr_scheduler_kwargs: {num_cycles: 2}\noutput_dir: out\nmetrics: []")
    parser = VerbParser((DataArguments, TrainArguments), "train", "Train.", (), "trady train")
    data, training = parser.parse(["--dataset_name", "photos", "--config", str(tmp_path / "run.yaml")])[0]
    assert training.lr_scheduler_kwargs == {"num_cycles": 2} and data.metrics == []
