import dataclasses
import json

import pytest
import torch

from hf_trady import LayerRanking, TraDyConfig, TraDyModel
from hf_trady.config import CONFIG_NAME
from hf_trady.saving import WEIGHTS_NAME
from hf_trady.selection import RANKING_NAME

from ..tiny import (
    bert,
    conv_net,
    copy_of_state,
    different_keys,
    image_batch,
    inputs_of,
    ranking_of,
    token_batch,
    train,
    wrap,
)
from .server import TOKEN


def trained() -> TraDyModel:
    batch = token_batch()
    model = wrap(bert(), inputs_of(batch), strategy="trady")
    model.set_layer_ranking(ranking_of(model.costs))
    train(model, batch, 2)
    return model


def test_a_model_comes_back_bit_for_bit(hub):
    model = trained()
    commit = model.push_to_hub("tiny", token=TOKEN)
    assert commit.oid == hub.repositories["me/tiny"].branches["main"][-1]
    assert hub.repositories["me/tiny"].messages[-1] == "Upload TraDyModel"
    assert {WEIGHTS_NAME, CONFIG_NAME, RANKING_NAME, "config.json"} <= hub.files("me/tiny").keys()
    assert any("/lfs/" in request for request in hub.requests)
    loaded = TraDyModel.from_pretrained("me/tiny", bert())
    assert not different_keys(copy_of_state(model), copy_of_state(loaded))
    assert loaded.layer_ranking == model.layer_ranking


@pytest.mark.parametrize("place", [{}, {"subfolder": "small"}, {"revision": "next"}])
def test_what_an_earlier_model_left_is_deleted_and_nothing_else(hub, place):
    trained().push_to_hub("me/tiny", token=TOKEN, **place)
    branch, start = place.get("revision", "main"), f"{place['subfolder']}/" if "subfolder" in place else ""
    names = {WEIGHTS_NAME, CONFIG_NAME, RANKING_NAME, "config.json", "README.md"}
    assert {path.removeprefix(start) for path in hub.files("me/tiny", branch)} == names | {".gitattributes"} or start
    repository, own = hub.repositories["me/tiny"], {"notes.txt": b"", f"other/{RANKING_NAME}": b"{}"}
    repository.commit(branch, hub.files("me/tiny", branch) | own, "by hand")
    before = hub.files("me/tiny", branch).keys()
    wrap(conv_net(), image_batch()[0]).push_to_hub("me/tiny", token=TOKEN, **place)
    assert before - hub.files("me/tiny", branch).keys() == {f"{start}{RANKING_NAME}", f"{start}config.json"}


def test_what_no_model_of_ours_left_in_a_repository_stays(hub):
    model = trained()
    model.layer_ranking.push_to_hub("me/mixed", token=TOKEN)
    net = wrap(conv_net(), image_batch()[0])
    net.push_to_hub("me/mixed", token=TOKEN)
    assert RANKING_NAME in hub.files("me/mixed")  # of someone who shares the ranking alone
    repository = hub.repositories["me/mixed"]
    whole = {"model.safetensors": b"", "config.json": b"{}"}
    repository.commit("main", hub.files("me/mixed") | whole, "the whole model")
    net.push_to_hub("me/mixed", token=TOKEN)
    assert whole.keys() <= hub.files("me/mixed").keys() and RANKING_NAME not in hub.files("me/mixed")


def test_a_config_and_a_ranking_come_back(hub):
    config = TraDyConfig(memory_budget="256MiB", strategy="informed", tau=2.0)
    config.push_to_hub("me/config", token=TOKEN, commit_message="Say what to train")
    assert TraDyConfig.from_pretrained("me/config") == config
    assert hub.repositories["me/config"].messages[-1] == "Say what to train"
    ranking = ranking_of(trained().costs)
    ranking.push_to_hub("me/ranking", token=TOKEN, subfolder="bert")
    assert LayerRanking.from_pretrained("me/ranking", subfolder="bert") == ranking
    config = TraDyConfig(layer_ranking="me/ranking")
    with pytest.raises(FileNotFoundError, match="no layer ranking at 'me/ranking'"):
        TraDyModel(bert(), config)


def test_a_branch_and_a_pull_request_leave_main_alone(hub):
    config = TraDyConfig()
    config.push_to_hub("me/config", token=TOKEN)
    before = hub.files("me/config")
    other = dataclasses.replace(config, seed=5)
    other.push_to_hub("me/config", token=TOKEN, revision="seeded")
    commit = dataclasses.replace(config, seed=6).push_to_hub("me/config", token=TOKEN, create_pr=True)
    assert hub.files("me/config") == before and commit.pr_url.endswith("/discussions/1")
    assert TraDyConfig.from_pretrained("me/config", revision="seeded").seed == 5
    assert TraDyConfig.from_pretrained("me/config", revision="refs/pr/1").seed == 6
    assert TraDyConfig.from_pretrained("me/config").seed == 0


def test_what_was_downloaded_is_there_without_the_hub(hub, tmp_path):
    TraDyConfig(seed=3).push_to_hub("me/config", token=TOKEN)
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        TraDyConfig.from_pretrained("me/config", local_files_only=True)
    TraDyConfig.from_pretrained("me/config", cache_dir=tmp_path / "mine")
    before = len(hub.requests)
    assert TraDyConfig.from_pretrained("me/config", cache_dir=tmp_path / "mine", local_files_only=True).seed == 3
    assert len(hub.requests) == before


@pytest.mark.parametrize(
    "repo_id, kwargs, reason",
    [
        ("me/nothing", {"token": TOKEN}, "does not exist or is private; check the name, or pass token="),
        ("me/nothing", {"token": False}, "does not exist or is private"),
        ("me/secret", {"token": False}, "does not exist or is private"),
        ("me/config", {"revision": "v9"}, "has no revision 'v9'; give a branch, a tag or a commit"),
        ("me/empty", {}, f"no {CONFIG_NAME} in"),
        ("a/b/c", {}, "neither a directory nor the id of a Hub repository"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(hub, repo_id, kwargs, reason):
    TraDyConfig().push_to_hub("me/config", token=TOKEN)
    TraDyConfig().push_to_hub("me/secret", token=TOKEN, private=True)
    TraDyConfig().push_to_hub("me/empty", token=TOKEN, subfolder="elsewhere")
    with pytest.raises(FileNotFoundError, match=reason) as refused:
        TraDyConfig.from_pretrained(repo_id, **kwargs)
    assert "\n" not in str(refused.value)


def test_nothing_is_uploaded_without_a_token(hub):
    with pytest.raises(OSError, match="401"):
        TraDyConfig().push_to_hub("me/config", token=False)
    assert not hub.repositories


def test_a_download_that_breaks_off_is_taken_up_again(hub, monkeypatch):
    model = trained()
    model.push_to_hub("me/tiny", token=TOKEN)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.drops = [1000, 500]
    loaded = TraDyModel.from_pretrained("me/tiny", bert())
    assert not hub.drops and not different_keys(copy_of_state(model), copy_of_state(loaded))


def test_a_file_with_a_wrong_hash_is_refused_and_the_base_model_is_left_alone(hub):
    trained().push_to_hub("me/tiny", token=TOKEN)

    def flip(path, content):
        return content[:-1] + bytes([content[-1] ^ 1]) if path == WEIGHTS_NAME else content

    hub.damage = flip
    base_model = bert()
    before = {key: value.clone() for key, value in base_model.state_dict().items()}
    with pytest.raises(ValueError, match=r"corrupt .*; download it again with force_download=True"):
        TraDyModel.from_pretrained("me/tiny", base_model)
    assert all(torch.equal(value, before[key]) for key, value in base_model.state_dict().items())
    hub.damage = lambda path, content: content
    TraDyModel.from_pretrained("me/tiny", base_model, force_download=True)


def test_a_config_of_a_newer_version_drops_what_it_does_not_know(hub, caplog):
    TraDyConfig(seed=4).push_to_hub("me/config", token=TOKEN)
    repository = hub.repositories["me/config"]
    values = json.loads(hub.files("me/config")[CONFIG_NAME]) | {"from_the_future": 1}
    repository.commit("main", {CONFIG_NAME: json.dumps(values).encode()}, "later")
    assert TraDyConfig.from_pretrained("me/config").seed == 4


def test_of_several_processes_only_the_main_one_pushes(hub):
    model = trained()
    assert model.push_to_hub("me/tiny", token=TOKEN, is_main_process=False) is None and not hub.repositories
    assert model.push_to_hub("me/tiny", token=TOKEN, is_main_process=True).oid
    assert WEIGHTS_NAME in hub.files("me/tiny")
