import math
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import save as safetensors_of

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.hub.cards import hub_id, model_card

from ..tiny import bert, conv_net, image_batch, inputs_of, ranking_of, timm_net, token_batch, wrap
from .server import TOKEN, Repository


ROOT = Path(__file__).parents[2]


NET = "test_efficientnet.r160_in1k"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("me/x", "me/x"),
        ("gpt2", "gpt2"),
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ("timm/mobilenetv2_100.ra_in1k", "timm/mobilenetv2_100.ra_in1k"),
        ("mobilenetv2_100", "timm/mobilenetv2_100.ra_in1k"),
        ("mobilenetv2_100.ra_in1k", "timm/mobilenetv2_100.ra_in1k"),
        ("mobilenetv2_100.mine", None),
        ("mobilenetv2_035", None),
        (None, None),
        ("", None),
        (".", None),
        ("./me/x", None),
        ("../x", None),
        ("/home/me/x", None),
        ("~/x", None),
        ("runs/me/x", None),
        ("runs/", None),
        ("C:\\models\\x", None),
        ("my model", None),
        ("me/x.safetensors", None),
        ("weights.pth", None),
        ("me/x--y", None),
        ("here/there", None),
    ],
)
def test_only_what_can_be_a_repository_is_taken_for_one(name, expected, tmp_path, monkeypatch):
    (tmp_path / "here" / "there").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id(name) == expected


@pytest.mark.parametrize(
    "fields, words",
    [
        ({}, "inside a memory budget: some input channels of its layers, drawn anew for each epoch, trained;"),
        (
            {"strategy": "static_rgn"},
            "inside a memory budget: some input channels of its layers, chosen once, trained;",
        ),
        ({"strategy": "paca"}, "by TraDy: some input channels of its layers, chosen once, trained;"),
        (
            {"strategy": "velocity"},
            "by TraDy: some output channels of its layers, drawn anew for each epoch, trained;",
        ),
        ({"resample_every": 50}, "some input channels of its layers, drawn anew every 50 optimizer steps, trained;"),
        ({"train_bias": True, "norm_mode": "train"}, "trained, and biases, the statistics of batch-norms;"),
        ({"train_bias": 3}, "trained, and the last 3 biases;"),
    ],
)
def test_a_card_says_what_the_strategy_trains_and_when(fields, words):
    card = model_card(TraDyConfig(**fields), model_name="x", facts={})
    assert words in " ".join(card.text.split())


def test_a_card_without_a_trainer_says_what_the_model_knows(tmp_path):
    model = wrap(bert(), inputs_of(token_batch()), strategy="trady", modules_to_save=["classifier"])
    model.set_layer_ranking(ranking_of(model.costs))
    metrics = {"accuracy": np.float32(0.75), "perplexity": math.inf, "loss": math.nan, "note": "good"}
    card = model.create_model_card(
        tmp_path / "mine", metrics=metrics, datasets=["me/words"], peak_bytes=3 * 2**20, license="mit", language="en"
    )
    assert card.content == ModelCard.load(tmp_path / "mine" / "README.md").content
    data = card.data.to_dict()
    assert data["metrics"] == ["accuracy"] and data["license"] == "mit" and data["language"] == "en"
    assert data["pipeline_tag"] == "text-classification" and "base_model" not in data
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"]["type"] == "me/words" and [m["value"] for m in result["metrics"]] == [0.75]
    expected = (
        "# mine\n", "`classifier` as a whole", "3 MiB above the weights", "| loss | nan |", "| perplexity | inf |",
        "base_model = ...", 'from_pretrained("mine", base_model=base_model)', "- PyTorch ",
    )  # fmt: skip
    for words in expected:
        assert words in card.text, words
    assert "hyperparameters" not in card.text and "note" not in card.text


def test_a_card_tells_the_ranking_that_ships_from_one_of_your_own():
    net = timm.create_model("mobilenetv2_100")
    shipped = TraDyModel(net, TraDyConfig(layer_ranking="auto"), torch.zeros(1, 3, 32, 32))
    assert "the one that hf_trady ships for this architecture" in shipped.create_model_card().text
    own = wrap(conv_net(), image_batch()[0], strategy="trady")
    own.set_layer_ranking(ranking_of(own.costs))
    text = own.create_model_card().text
    assert "| layer ranking | `layer_ranking.json` |" in text and "ConvNet`, from weights that the run" in text


def test_a_card_names_the_weights_of_timm_only_if_the_network_started_from_them(hub):
    hub.repositories[f"timm/{NET}"] = Repository()
    weights = {"model.safetensors": safetensors_of(timm_net(num_classes=1000).state_dict())}
    hub.repositories[f"timm/{NET}"].commit("main", weights, "upload")
    images = torch.randn(2, 3, 32, 32)
    not_cached = wrap(timm_net(seed=1), images).create_model_card()
    loaded = wrap(timm.create_model("test_efficientnet", pretrained=True, num_classes=3), images)
    loaded.train()(images)
    with torch.no_grad():  # training moves the channels that were drawn
        for parameter in loaded.parameters():
            parameter.add_(0.1) if parameter.requires_grad else None
    loaded.resample(1)
    from_timm = loaded.create_model_card()
    assert from_timm.data.base_model == f"timm/{NET}" and "base_model=base_model" not in from_timm.text
    for card in (not_cached, wrap(timm_net(seed=1), images).create_model_card()):
        assert card.data.base_model is None and "base_model=base_model" in card.text
        assert "`test_efficientnet`, from weights that the run does not name, fine-tuned" in card.text
    assert wrap(timm_net(seed=1), images).create_model_card(base_model="me/mine").data.base_model == "me/mine"


@pytest.mark.parametrize("place", [{}, {"subfolder": "small"}, {"revision": "next"}])
def test_a_card_that_is_there_stays(hub, place):
    model = wrap(bert(), inputs_of(token_batch()))
    model.push_to_hub("me/tuned", token=TOKEN, **place)
    branch, path = place.get("revision", "main"), "/".join([*filter(None, [place.get("subfolder")]), "README.md"])
    repository = hub.repositories["me/tuned"]
    written = hub.files("me/tuned", branch)
    assert b"# me/tuned" in written[path] and path in {"README.md", "small/README.md"}
    assert (b'subfolder="small"' in written[path]) == ("subfolder" in place)
    repository.commit(branch, written | {path: b"by hand"}, "by hand")
    model.push_to_hub("me/tuned", token=TOKEN, **place)
    assert hub.files("me/tuned", branch)[path] == b"by hand"
    if "revision" in place:
        assert "README.md" not in hub.files("me/tuned")


@pytest.mark.parametrize("path", sorted(ROOT.glob("model_cards/*/README.md")), ids=lambda path: path.parent.name)
def test_a_card_that_ships_is_whole_and_says_the_same_twice(path):
    card = ModelCard.load(path)
    data = card.data.to_dict()
    assert data["library_name"] == "hf_trady" and data["pipeline_tag"] and "trady" in data["tags"]
    for repo_id in (data["base_model"], *data.get("datasets", ())):
        validate_repo_id(repo_id)
        assert "/" in repo_id
    assert f"https://huggingface.co/{data['base_model']}" in card.text
    (index,) = data["model-index"]
    (result,) = index["results"]
    assert f"# {index['name']}\n" in card.text and result["task"]["type"] == data["pipeline_tag"]
    assert result["dataset"]["type"] == data.get("datasets", ["unknown"])[0]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert list(values) == data["metrics"] and {"accuracy", "loss"} <= values.keys()
    for name, value in values.items():
        assert f"| {name} | {value:.4g} |" in card.text
    for words in ("memory budget", "measured peak in training", "inputs of layers not kept", "train_samples", "seed"):
        assert words in " ".join(card.text.split())
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    compile(code, str(path), "exec")
    assert "base_model=base_model" not in code or "base_model = Timm" in code
