import json

import pytest
from transformers import BertConfig, LlamaConfig

from hf_trady.cli.main import main


TIMM = ["plan", "--model_name_or_path", "test_efficientnet", "--image_size", "32", "--batch_size", "4"]


def test_a_timm_architecture_is_planned_and_written(tmp_path, capsys):
    assert main([*TIMM, "--memory_budget", "4MiB", "--output_dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "predicted peak" in shown and "memory_budget=4MiB, batch of 4" in shown
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["predicted_peak_bytes"] <= written["byte_budget"] == 4 * 2**20
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (BertConfig, {"num_attention_heads": 2}),
        (LlamaConfig, {"num_attention_heads": 4, "num_key_value_heads": 2}),
    ],
)
def test_a_directory_with_nothing_but_a_config_is_enough(tmp_path, capsys, config, sizes):
    sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 50}
    config(**sizes).save_pretrained(tmp_path)
    arguments = ["--model_name_or_path", str(tmp_path), "--seq_length", "16", "--memory_budget", "0.1"]
    assert main(["plan", *arguments]) == 0
    assert "predicted peak" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory_budget", "1KiB"], "impossible"),
        (["--dtype", "int8"], "dtype='int8'"),
        (["--batch_size", "0"], "batch_size=0 is not allowed; it must be at least 1"),
        (["--batch_size", "-3"], "batch_size=-3 is not allowed"),
        (["--image_size", "0"], "image_size=0 is not allowed"),
        (["--seq_length", "0"], "seq_length=0 is not allowed"),
        (["--num_labels", "0"], "num_labels=0 is not allowed"),
        (["--memory_budget", "0.1", "--find_batch_size"], "in bytes, such as --memory_budget 256MiB, not 0.1"),
        (
            ["--model_name_or_path", "test_vit", "--image_size", "33"],
            "doesn't take such a batch: Input height (33) should be divisible by patch size (16); give another",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys, arguments, message):
    assert main([*TIMM, *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_an_unknown_model_is_refused(tmp_path, capsys):
    assert main(["plan", "--model_name_or_path", str(tmp_path / "none")]) == 2
    assert "can't load model_name_or_path" in capsys.readouterr().err


@pytest.mark.slow
def test_the_largest_batch_is_found_on_request(capsys):
    assert main([*TIMM, "--memory_budget", "4MiB", "--find_batch_size", "True"]) == 0
    assert "Largest batch size for 4MiB" in capsys.readouterr().out


def test_checkpointing_of_a_timm_network_is_refused(capsys):
    assert main(["plan", "--model_name_or_path", "mobilenetv2_100", "--gradient_checkpointing"]) == 2
    assert "for transformers models only" in capsys.readouterr().err
