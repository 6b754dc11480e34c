import json

import pytest
import timm
import torch
from safetensors.torch import save as safetensors_of
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from hf_trady import TraDyModel
from hf_trady.config import CONFIG_NAME
from hf_trady.hub.base_models import architecture, base_model_name, pinned_name, task_type

from ..tiny import bert, copy_of_state, different_keys, gpt2, inputs_of, timm_net, token_batch, train, wrap
from .server import TOKEN, Hub, Repository


NET = "test_efficientnet.r160_in1k"


def put(hub: Hub, repo_id: str, files: dict[str, bytes], private: bool = False) -> None:
    hub.repositories[repo_id] = Repository(private)
    hub.repositories[repo_id].commit("main", files, "upload")


def put_timm(hub: Hub, name: str = NET, seed: int = 0, private: bool = False) -> None:
    """Weights under the name of timm's own."""
    net = timm_net(seed, name.partition(".")[0], num_classes=1000)
    put(hub, f"timm/{name}", {"model.safetensors": safetensors_of(net.state_dict())}, private)


def trained(base: nn.Module, images: Tensor, **config) -> TraDyModel:
    model = wrap(base, images, **config)
    model.train()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.1)
    output = model(images)
    output = getattr(output, "logits", output)
    output = output[0] if isinstance(output, tuple) else output  # of a distilled model, in training
    torch.nn.functional.cross_entropy(output, torch.arange(len(images)) % 3).backward()
    optimizer.step()
    return model.eval()


def test_what_a_model_is_called_and_made_for():
    net = timm.create_model("mobilenetv2_100")
    assert base_model_name(net) == "mobilenetv2_100.ra_in1k" and task_type(net) is None
    wrapped = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="mobilenetv2_100"))
    assert base_model_name(wrapped) is None and task_type(wrapped) == "IMAGE_CLS"
    assert architecture(net) == architecture(wrapped) == "mobilenetv2_100"
    assert base_model_name(bert()) is None and task_type(bert()) == "SEQ_CLS"
    assert task_type(gpt2()) == "CAUSAL_LM" and base_model_name(torch.nn.Linear(1, 1)) is None
    assert pinned_name("mobilenetv2_100") == "mobilenetv2_100.ra_in1k" and pinned_name("me/x") == "me/x"


@pytest.mark.parametrize(
    "own",
    [{"file": "mine.pth"}, {"hf_hub_id": "me/mine", "source": "hf-hub"}, {"tag": "mine"}, {"tag": None}],
    ids=["a file", "another repository", "another tag", "no tag"],
)
def test_a_timm_model_of_other_weights_is_not_called_by_those_of_timm(own):
    overlay = timm.get_pretrained_cfg(NET).to_dict() | own
    name = base_model_name(timm.create_model("test_efficientnet", pretrained_cfg=overlay))
    assert name == ("test_efficientnet" if own == {"tag": None} else None)
    assert base_model_name(timm.create_model("mobilenetv2_035")) is None  # of which timm has no weights


def test_a_transformers_model_is_built_from_what_the_run_names(tmp_path):
    bert().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    batch = token_batch()
    model = wrap(base, inputs_of(batch))
    train(model, batch, 2)
    model.save_pretrained(tmp_path / "run")
    config = json.loads((tmp_path / "run" / CONFIG_NAME).read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base") and config["task_type"] == "SEQ_CLS"
    loaded = TraDyModel.from_pretrained(tmp_path / "run")
    assert type(loaded.base_model).__mro__[1] is type(base).__mro__[1]
    assert not different_keys(copy_of_state(model), copy_of_state(loaded))


def test_what_neither_the_base_nor_the_run_holds_is_named(tmp_path):
    bert().save_pretrained(tmp_path / "base")
    batch = token_batch()
    for heads, name in ((None, "frozen"), (["classifier", "word_embeddings"], "saved")):
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        base.resize_token_embeddings(base.config.vocab_size + 2)
        model = wrap(base, inputs_of(batch), modules_to_save=heads)
        train(model, batch, 2)
        model.save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match=r"holds 'bert.embeddings.word_embeddings.weight', .* in modules_to_save"):
        TraDyModel.from_pretrained(tmp_path / "frozen")
    loaded = TraDyModel.from_pretrained(tmp_path / "saved")
    assert not different_keys(copy_of_state(model), copy_of_state(loaded))


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
def test_a_timm_model_is_built_from_its_architecture(hub, tmp_path, wrapped):
    put_timm(hub)
    base = net = timm.create_model("test_efficientnet", pretrained=True, num_classes=3)
    if wrapped:
        labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
        base = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_efficientnet", **labels))
        base.timm_model.load_state_dict(net.state_dict())
    # The wrapper of transformers can't tell where weights that it was given are from.
    model = trained(base, torch.randn(2, 3, 32, 32), **({"base_model_name_or_path": NET} if wrapped else {}))
    model.save_pretrained(tmp_path / "run")
    loaded = TraDyModel.from_pretrained(tmp_path / "run")
    assert loaded.trady_config.base_model_name_or_path == NET
    assert not different_keys(copy_of_state(model), copy_of_state(loaded))
    plain = loaded.merge_and_unload()
    assert "file" not in getattr(plain, "timm_model", plain).pretrained_cfg


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_128s"])
def test_a_timm_model_of_two_heads_has_as_many_classes_as_the_run(hub, tmp_path, name):
    put_timm(hub, pinned_name(name))
    net = timm.create_model(name, pretrained=True, num_classes=3)
    model = trained(net, torch.randn(2, 3, 224, 224), budget=0.01)
    model.save_pretrained(tmp_path)
    loaded = TraDyModel.from_pretrained(tmp_path)
    assert loaded(torch.zeros(1, 3, 224, 224)).shape == (1, 3)
    assert not different_keys(copy_of_state(model), copy_of_state(loaded))


def test_a_wrapped_timm_model_is_built_from_the_repository_that_it_came_from(hub, tmp_path):
    name = "mobilenetv4_conv_small.e1200_r224_in1k"
    assert pinned_name("mobilenetv4_conv_small") != name  # so the tag counts
    config = TimmWrapperConfig(architecture="mobilenetv4_conv_small", num_labels=3)
    TimmWrapperForImageClassification(config).save_pretrained(tmp_path / "base")
    put(hub, f"timm/{name}", {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()})
    base = AutoModelForImageClassification.from_pretrained(f"timm/{name}")
    model = trained(base, torch.randn(2, 3, 32, 32))
    model.save_pretrained(tmp_path / "run")
    loaded = TraDyModel.from_pretrained(tmp_path / "run")
    assert loaded.trady_config.base_model_name_or_path == f"timm/{name}"
    assert not different_keys(copy_of_state(model), copy_of_state(loaded))
    assert model.create_model_card().data.base_model == f"timm/{name}"


def test_timm_weights_are_kept_and_looked_for_where_the_user_says(hub, tmp_path):
    put_timm(hub)
    net = timm.create_model("test_efficientnet", pretrained=True, num_classes=3)
    trained(net, torch.randn(2, 3, 32, 32)).push_to_hub("me/tuned", token=TOKEN)
    mine = {"cache_dir": tmp_path / "mine"}
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        TraDyModel.from_pretrained("me/tuned", local_files_only=True, **mine)
    TraDyModel.from_pretrained("me/tuned", **mine)
    assert {path.name for path in mine["cache_dir"].glob("models--*")} == {"models--me--tuned", f"models--timm--{NET}"}
    before = len(hub.requests)
    TraDyModel.from_pretrained("me/tuned", local_files_only=True, **mine)
    assert len(hub.requests) == before
    for path in (mine["cache_dir"] / f"models--timm--{NET}").rglob("model.safetensors"):
        path.unlink()
    with pytest.raises(ValueError, match=f"can't build the base model '{NET}'"):
        TraDyModel.from_pretrained("me/tuned", local_files_only=True, **mine)
    assert len(hub.requests) == before


def test_timm_weights_are_downloaded_with_the_token(hub, tmp_path):
    put_timm(hub, private=True)
    net = timm_net(num_classes=1000)
    net.reset_classifier(3)
    model = trained(net, torch.randn(2, 3, 32, 32))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"can't build the base model '{NET}'"):
        TraDyModel.from_pretrained(tmp_path, token=False)
    loaded = TraDyModel.from_pretrained(tmp_path, token=TOKEN)
    assert not different_keys(copy_of_state(model), copy_of_state(loaded))


def test_weights_that_timm_does_not_have_are_asked_for(hub, tmp_path):
    put_timm(hub, seed=1)
    trained(timm_net(), torch.randn(2, 3, 32, 32)).save_pretrained(tmp_path)  # pretrained=False
    with pytest.raises(ValueError, match=f"frozen weights .* names '{NET}': pass base_model=") as refused:
        TraDyModel.from_pretrained(tmp_path)
    assert "\n" not in str(refused.value)
    TraDyModel.from_pretrained(tmp_path, timm_net())


def test_a_base_model_that_can_not_be_built_is_asked_for(tmp_path):
    model = wrap(bert(), inputs_of(token_batch()))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not name its base model; pass base_model="):
        TraDyModel.from_pretrained(tmp_path)
    model.trady_config.base_model_name_or_path = str(tmp_path / "gone")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"can't build the base model '.*gone' \(.*\); pass base_model=") as refused:
        TraDyModel.from_pretrained(tmp_path)
    assert "\n" not in str(refused.value)


def test_code_of_a_repository_is_not_run_unless_asked_for(tmp_path):
    model = wrap(bert(), inputs_of(token_batch()))
    model.trady_config.base_model_name_or_path = str(tmp_path)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        TraDyModel.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_loaded_model_is_in_evaluation_mode_until_it_is_trained(hub, tmp_path):
    put_timm(hub)
    wrap(timm.create_model("test_efficientnet", pretrained=True), torch.zeros(1, 3, 32, 32)).save_pretrained(tmp_path)
    loaded = TraDyModel.from_pretrained(tmp_path)
    assert not loaded.training and not any(module.training for module in loaded.merge_and_unload().modules())
