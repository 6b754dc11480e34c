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


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "latin.yaml").write_bytes("output_dir: ergebnis_für_a".encode("latin-1"))
    for file, reason in (("", "Is a directory"), ("none.yaml", "No such file"), ("latin.yaml", "is not YAML")):
        assert main(["train", "--config", str(tmp_path / file)]) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith("trady train: ") and str(tmp_path / file) in line and reason in line


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


def in_file(tmp_path, text: str, *arguments: str) -> TrainArguments:
    """`text`, lines of a file of arguments, as TrainArguments; `arguments` are those of the command line."""
    (tmp_path / "run.yaml").write_text(text)
    parser = VerbParser((TraDyArguments, TrainArguments), "train", "Train.", (), "trady train")
    return parser.parse(["--config", str(tmp_path / "run.yaml"), *arguments])[0]


def test_the_words_that_yaml_takes_for_booleans_are_words_where_a_word_is_due(tmp_path):
    text = "lean_backward: off\neval_strategy: no\nsave_strategy: no\ntrain_bias: yes\nbf16: off\nuse_cpu: on\n"
    text += "lr_scheduler_kwargs: {cycle: no}\n"
    config, training = in_file(tmp_path, text)
    assert (config.lean_backward, training.eval_strategy, training.save_strategy) == ("off", "no", "no")
    assert config.train_bias is True and training.bf16 is False and training.use_cpu is True
    assert training.lr_scheduler_kwargs == {"cycle": False}
    with pytest.raises(ValueError, match="lean_backward='false' is not allowed; it must be one of 'compressed'"):
        in_file(tmp_path, "lean_backward: false")


def test_null_in_a_file_is_none_or_refused(tmp_path):
    config, training = in_file(tmp_path, "save_total_limit: null\nnum_layers:\n")
    assert training.save_total_limit is None and config.num_layers is None
    assert in_file(tmp_path, "save-total-limit: null")[1].save_total_limit is None
    assert in_file(tmp_path, "save_total_limit: null", "--save_total_limit", "3")[1].save_total_limit == 3
    with pytest.raises(ValueError, match="learning_rate: null is not allowed; leave learning_rate out"):
        in_file(tmp_path, "learning_rate: null")
    with pytest.raises(ValueError, match="taw"):
        in_file(tmp_path, "taw: null")


def test_several_integrations_are_reported_to(tmp_path):
    assert in_file(tmp_path, "report_to: [tensorboard, trackio]")[1].report_to == ["tensorboard", "trackio"]
    assert in_file(tmp_path, "seed: 1", "--report_to", "tensorboard", "wandb")[1].report_to == ["tensorboard", "wandb"]
    assert in_file(tmp_path, "seed: 1")[1].report_to == []
    assert in_file(tmp_path, "report_to: none")[1].report_to == []
