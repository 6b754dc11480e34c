import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from datasets import Dataset, load_dataset
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save
from transformers import (
    BertForSequenceClassification,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.cli.data import DataArguments, load_data
from hf_trady.cli.main import main
from hf_trady.cli.models import ModelArguments, _text_datasets, load_model

from ..hub.conftest import hub  # noqa: F401
from ..hub.server import TOKEN, Repository
from ..launching import launch_two
from ..tiny import word_tokenizer
from ..tiny_files import save_bert


def results(output_dir) -> dict:
    return json.loads((output_dir / "all_results.json").read_text())


@pytest.mark.parametrize(
    "strategy, named", [("trady", []), ("static_full_random", ["--base_model_name_or_path", "me/colours"])]
)
def test_images_end_to_end(image_run, tmp_path, capsys, strategy, named):
    output = tmp_path / "run"
    assert main(["train", *image_run, "--output_dir", str(output), "--strategy", strategy, *named]) == 0
    values = results(output)
    assert values["eval_accuracy"] > 0.8  # red against blue
    assert values["units"] <= values["budget"]
    assert 0.7 < values["activation_sparsity"] < 1
    with Image.open(output / "layer_updates.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 10
    assert "activation sparsity" in capsys.readouterr().out

    config = TraDyConfig.from_pretrained(output)
    # Local weights are not those of timm: the run names what the user does, or nothing.
    assert [config.base_model_name_or_path] == (named[1:] or [None]) and config.task_type == "IMAGE_CLS"
    card = ModelCard.load(output / "README.md")
    assert [card.data.base_model] == (named[1:] or [None]) and "- train_samples: " in card.text
    weights = image_run[image_run.index("--checkpoint_path") + 1]
    network = timm.create_model("test_efficientnet", checkpoint_path=weights)
    network.reset_classifier(2)
    base = TimmWrapperForImageClassification(TimmWrapperForImageClassification.config_class.from_pretrained(output))
    base.timm_model.load_state_dict(network.state_dict())
    tuned = TraDyModel.from_pretrained(output, base_model=base).eval()
    red, blue = torch.full((1, 3, 32, 32), -1.0), torch.full((1, 3, 32, 32), -1.0)
    red[:, 0], blue[:, 2] = 1, 1
    logits = tuned(torch.cat([blue, red])).logits
    assert [tuned.config.id2label[int(i)] for i in logits.argmax(-1)] == ["blue", "red"]


@pytest.mark.parametrize("named, expected", [(None, "mobilenetv2_100.ra_in1k"), ("me/mine", "me/mine")])
def test_a_run_names_the_weights_of_timm_by_their_tag(image_run, monkeypatch, named, expected):
    monkeypatch.setattr("hf_trady.cli.models.make_model", lambda *args: None)
    monkeypatch.setattr("hf_trady.cli.models.load_datasets", lambda *args: (None,) * 4)
    config = TraDyConfig(base_model_name_or_path=named, task_type=named and "SEQ_CLS")
    data = load_data(DataArguments(image_run[image_run.index("--dataset_name") + 1]))
    load_model(ModelArguments("mobilenetv2_100"), config, data)
    assert config.base_model_name_or_path == expected and config.task_type == ("SEQ_CLS" if named else "IMAGE_CLS")


def test_texts_end_to_end(text_run, tmp_path, capsys):
    output = tmp_path / "run"
    assert main(["train", *text_run, "--output_dir", str(output), "--resample_every", "3", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.items() >= results(output).items() and printed["output_dir"] == str(output)
    assert results(output)["eval_accuracy"] > 0.8
    base = BertForSequenceClassification.from_pretrained(text_run[1])
    tuned = TraDyModel.from_pretrained(output, base_model=base)
    assert set(tuned.touched) <= set(tuned._targets)
    assert tuned.touched


def test_resume_gives_the_same_model(text_run, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert main(["train", *text_run, "--output_dir", str(straight)]) == 0
    checkpoint = sorted(straight.glob("checkpoint-*"))[0]
    assert main(["train", *text_run, "--output_dir", str(broken), "--resume_from_checkpoint", str(checkpoint)]) == 0
    first, second = (load_file(path / "trady_model.safetensors") for path in (straight, broken))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory_budget", "1.5"], ["memory_budget", "1.5", "(0, 1]"]),
        (["--memory_budget", "1"], ["memory_budget", "smallest"]),
        (["--strategy", "lora"], ["strategy", "lora", "trady"]),
        (["--target_modules", "nowhere"], ["target_modules", "nowhere"]),
        (["--dataset_name", "/no/such/place.csv"], ["/no/such/place.csv"]),
        (["--text_column_name", "body"], ["body", "text"]),
        (["--layer_ranking", "/no/ranking.json"], ["/no/ranking.json"]),
        (["--resume_from_checkpoint", "/no/checkpoint"], ["/no/checkpoint"]),
        (["--output_dir", __file__], [__file__, "File exists"]),
        (["--report_to", "tensorboard", "clearml"], ["report_to=['tensorboard', 'clearml']", "pip install clearml"]),
        (["--lr_scheduler_kwargs", '{"foo": 1}'], ["lr_scheduler_kwargs={'foo': 1}", "linear", "argument 'foo'"]),
        (["--lr_scheduler_type", "warmup_stable_decay"], ["lr_scheduler_kwargs", "num_decay_steps"]),
        (["--num_train_epochs", "0"], ["num_train_epochs=0.0", "nothing would be trained", "max_steps"]),
        (["--label_names", "foo"], ["label_names=['foo']", "'labels'", "leave it out"]),
        (["--do_train", "False"], ["do_train=False", "leave it out"]),
    ],
)
def test_mistakes_are_one_line_and_exit_with_2(text_run, tmp_path, capsys, arguments, words):
    assert main(["train", *text_run, "--output_dir", str(tmp_path / "run"), *arguments]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("trady train: ")
    assert all(word in line for word in words), line


@pytest.mark.parametrize("damage", [b"", b"half", b"text"])
def test_a_corrupt_image_in_the_middle_is_named(image_run, tmp_path, capsys, damage):
    photos = tmp_path / "photos"
    shutil.copytree(image_run[image_run.index("--dataset_name") + 1], photos)
    bad = photos / "red" / "12.png"
    bad.write_bytes(bad.read_bytes()[:200] if damage == b"half" else damage)
    arguments = ["--dataset_name", str(photos), "--output_dir", str(tmp_path / "run"), "--num_train_epochs", "1"]
    assert main(["train", *image_run, *arguments, "--strategy", "static_full_random"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"trady train: can't read the image '{bad}' (") and "take it out of the data" in line


def test_an_empty_text_in_the_middle_is_a_text_without_words(text_run, tmp_path):
    lines = Path(text_run[3]).read_text().splitlines()
    (tmp_path / "reviews.csv").write_text("\n".join([*lines[:40], ",positive", '"",negative', *lines[40:80]]))
    arguments = ["--dataset_name", str(tmp_path / "reviews.csv"), "--output_dir", str(tmp_path / "run")]
    assert main(["train", *text_run, *arguments, "--num_train_epochs", "1"]) == 0


def test_a_text_that_a_tokenizer_makes_nothing_of_is_named():
    data = Dataset.from_dict({"text": ["w1 w2", "", "w3"], "label": [0, 1, 0]})
    task = SimpleNamespace(train=data, eval=data, input_column="text", label_column="label")
    with pytest.raises(ValueError, match="the text in row 1 of column 'text' is empty"):
        _text_datasets(word_tokenizer(), task, 8)


def test_texts_are_cut_to_what_the_model_takes(text_run, tmp_path, caplog, monkeypatch):
    for library in ("hf_trady", "transformers"):
        monkeypatch.setattr(logging.getLogger(library), "propagate", True)
    bert = save_bert(tmp_path / "bert", max_position_embeddings=16)
    (tmp_path / "long.csv").write_text("text,label\n" + "".join(f"{'film ' * 40},{i % 2}\n" for i in range(20)))
    arguments = ["--model_name_or_path", str(bert), "--dataset_name", str(tmp_path / "long.csv"), "--max_steps", "1"]
    assert main(["train", *text_run, *arguments, "--max_seq_length", "99", "--output_dir", str(tmp_path / "run")]) == 0
    assert "max_seq_length=99 is more than this model takes; texts are cut to 16 tokens" in caplog.text


def test_revision_and_token_reach_the_image_processor_and_the_data(image_run, tmp_path, hub, monkeypatch):  # noqa: F811
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    files = {file.name: file.read_bytes() for file in (tmp_path / "vit").iterdir()}
    hub.repositories["me/vit"] = Repository(private=True)
    hub.repositories["me/vit"].commit("old", files, "upload")
    hub.repositories["me/vit"].commit("main", {}, "delete")
    photos = image_run[image_run.index("--dataset_name") + 1]
    asked = {}

    def load(name: str, config: str | None, **kwargs):
        asked.update(kwargs)
        return load_dataset("imagefolder", data_dir=photos)

    monkeypatch.setattr("hf_trady.cli.data.load_dataset", load)
    arguments = ["--model_name_or_path", "me/vit", "--revision", "old", "--dataset_name", "me/photos"]
    arguments += ["--token", TOKEN, "--max_steps", "1", "--output_dir", str(tmp_path / "run")]
    assert main(["train", *image_run, *arguments]) == 0
    assert asked == {"token": TOKEN}


def test_revision_and_token_reach_the_weights_of_timm_and_those_that_a_run_is_loaded_with(
    image_run,
    tmp_path,
    hub,  # noqa: F811
    monkeypatch,
):
    at = image_run.index("--checkpoint_path")
    arguments = [*image_run[:at], *image_run[at + 2 :], "--revision", "old", "--token", TOKEN, "--max_steps", "1"]
    weights = torch.load(image_run[at + 1])
    hub.repositories["timm/test_efficientnet.r160_in1k"] = Repository(private=True)
    hub.repositories["timm/test_efficientnet.r160_in1k"].commit("old", {SAFE_WEIGHTS_NAME: save(weights)}, "upload")
    assert main(["train", *arguments, "--output_dir", str(tmp_path / "run")]) == 0
    loaded = TraDyModel.from_pretrained(tmp_path / "run", token=TOKEN)
    assert torch.equal(loaded.state_dict()["timm_model.bn1.running_mean"], weights["bn1.running_mean"])


def test_help_and_version():
    for arguments, word in [(["--help"], "train"), (["--version"], "trady")]:
        output = subprocess.run(
            [sys.executable, "-m", "hf_trady", *arguments], capture_output=True, text=True, check=True
        )
        assert word in output.stdout


def test_unknown_verb_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["tune"])
    assert exit_.value.code == 2
    assert "tune" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_by_the_launcher(text_run, tmp_path):
    output = tmp_path / "run"
    launch_two("-m", "hf_trady", "train", *text_run, "--output_dir", output, "--use_cpu", "True")
    assert results(output)["eval_accuracy"] > 0.8


def test_classes_have_the_same_numbers_in_every_split(tmp_path):
    rows = {"train": [("a", "x"), ("b", "y"), ("c", "z")] * 4, "test": [("b", "y"), ("c", "z")]}
    for split, pairs in rows.items():
        lines = ["text,label", *(f"{text},{label}" for text, label in pairs)]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
    data = load_data(DataArguments(str(tmp_path)))
    assert data.labels == ["x", "y", "z"] and data.eval["label"][:] == [1, 2]
    (tmp_path / "test.csv").write_text("text\nb")
    with pytest.raises(ValueError, match=r"can't read dataset_name=.* same columns"):
        load_data(DataArguments(str(tmp_path)))


def test_a_metric_that_is_not_there_is_one_line(text_run, tmp_path, capsys):
    best = ["--load_best_model_at_end", "True", "--metric_for_best_model", "f1"]
    assert main(["train", *text_run, "--output_dir", str(tmp_path), *best, "--num_train_epochs", "1"]) == 1
    assert "metric_for_best_model='f1' is none of the metrics" in capsys.readouterr().err.splitlines()[-1]
