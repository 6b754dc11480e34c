import json

import pytest
import timm
import torch
from transformers import AutoModelForSequenceClassification, TimmWrapperConfig, TimmWrapperForImageClassification

from hf_trady import TraDyModel
from hf_trady.config import CONFIG_NAME
from hf_trady.hub.base_models import base_model_name, task_type

from ..tiny import bert, copy_of_state, different_keys, gpt2, inputs_of, token_batch, train, wrap


def test_what_a_model_is_called_and_made_for():
    net = timm.create_model("mobilenetv2_100")
    assert base_model_name(net).split(".")[0] == "mobilenetv2_100" and task_type(net) is None
    wrapped = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="mobilenetv2_100"))
    assert base_model_name(wrapped).split(".")[0] == "mobilenetv2_100" and task_type(wrapped) == "IMAGE_CLS"
    assert base_model_name(bert()) is None and task_type(bert()) == "SEQ_CLS"
    assert task_type(gpt2()) == "CAUSAL_LM" and base_model_name(torch.nn.Linear(1, 1)) is None


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
def test_a_timm_model_is_built_from_its_architecture(tmp_path, monkeypatch, wrapped):
    """timm's own weights come from the Hub: a file on disk stands in for them."""
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("mobilenetv2_035").state_dict(), weights)
    monkeypatch.setattr("timm.models._builder._resolve_pretrained_source", lambda cfg: ("file", str(weights)))
    net = timm.create_model("mobilenetv2_035", pretrained=True, num_classes=3)
    if wrapped:
        labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
        base = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="mobilenetv2_035", **labels))
        base.timm_model.load_state_dict(net.state_dict())
    else:
        base = net
    images = torch.randn(2, 3, 32, 32)
    model = wrap(base, images)
    labels = torch.tensor([0, 1])
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.1)
    output = model(images)
    torch.nn.functional.cross_entropy(getattr(output, "logits", output), labels).backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "run")
    loaded = TraDyModel.from_pretrained(tmp_path / "run")
    assert not different_keys(copy_of_state(model), copy_of_state(loaded))


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


def test_a_loaded_model_is_in_evaluation_mode_until_it_is_trained(tmp_path, monkeypatch):
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("mobilenetv2_035").state_dict(), weights)
    monkeypatch.setattr("timm.models._builder._resolve_pretrained_source", lambda cfg: ("file", str(weights)))
    wrap(timm.create_model("mobilenetv2_035", pretrained=True), torch.zeros(1, 3, 32, 32)).save_pretrained(tmp_path)
    loaded = TraDyModel.from_pretrained(tmp_path)
    assert not loaded.training and not any(module.training for module in loaded.merge_and_unload().modules())
