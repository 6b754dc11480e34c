import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_trady import TraDyModel
from hf_trady.config import CONFIG_NAME
from hf_trady.saving import WEIGHTS_NAME, checksum
from hf_trady.selection import RANKING_NAME

from .tiny import (
    anatomy,
    bert,
    conv_net,
    copy_of_state,
    different_keys,
    gpt2,
    image_batch,
    inputs_of,
    lm_batch,
    ranking_of,
    token_batch,
    train,
    wrap,
)


MAKERS = {"conv": (conv_net, image_batch()), "bert": (bert, token_batch()), "gpt2": (gpt2, lm_batch())}


def trained(kind: str, epochs: int = 3, **kwargs) -> TraDyModel:
    make, batch = MAKERS[kind]
    model = wrap(make(), inputs_of(batch), **kwargs)
    if model.needs_measuring:
        model.set_layer_ranking(ranking_of(model.costs))
    train(model, batch, epochs)
    return model


# ---- Bit-for-bit ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(MAKERS)),
    epochs=st.integers(0, 4),
    budget=st.floats(0.15, 1.0),
    strategy=st.sampled_from(["trady", "dynamic_full_random", "static_full_random", "static_topk_random"]),
    norm_mode=st.sampled_from(["frozen", "train"]),
    train_bias=st.booleans(),
    modules_to_save=st.sampled_from([None, []]),
)
def test_a_fresh_base_model_gets_exactly_what_was_trained(tmp_path_factory, kind, epochs, **config):
    model, path = trained(kind, epochs, **config), tmp_path_factory.mktemp("saved")
    model.save_pretrained(path)
    make, batch = MAKERS[kind]
    base = make()
    restored = TraDyModel.from_pretrained(path, base, inputs_of(batch))
    assert different_keys(copy_of_state(restored), copy_of_state(model)) == []
    named = dataclasses.replace(
        model.trady_config, task_type=restored.trady_config.task_type
    )  # the saved one says what it is for
    assert restored.trady_config == named and restored.layer_ranking == model.layer_ranking
    if epochs:
        assert different_keys(copy_of_state(make()), copy_of_state(model))
    # It trains on from there, and what it then saves is again all that differs from the base model.
    restored.resample(model.epoch)
    assert train(restored, batch, 2) == train(model, batch, 2)
    restored.save_pretrained(path)
    plain = TraDyModel.from_pretrained(path, make()).merge_and_unload()
    assert different_keys(copy_of_state(plain), copy_of_state(model)) == []


def test_a_directory_keeps_nothing_that_another_model_has_left(tmp_path):
    trained("bert", strategy="trady").save_pretrained(tmp_path)
    assert (tmp_path / RANKING_NAME).is_file() and (tmp_path / "config.json").is_file()
    (tmp_path / "notes.txt").touch()
    trained("conv").save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS_NAME, CONFIG_NAME, "notes.txt"}


def test_what_no_model_of_ours_has_left_in_a_directory_stays(tmp_path):
    trained("bert", strategy="trady").layer_ranking.save_pretrained(tmp_path)
    model = trained("conv")
    model.save_pretrained(tmp_path)
    assert (tmp_path / RANKING_NAME).is_file()  # there was no saved model that it could be a part of
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).touch()
    model.save_pretrained(tmp_path)
    assert {"model.safetensors", "config.json"} <= {path.name for path in tmp_path.iterdir()}


def test_a_model_saved_before_training_restores_the_base(tmp_path):
    model = wrap(conv_net(), image_batch()[0])
    model.save_pretrained(tmp_path)
    restored = TraDyModel.from_pretrained(tmp_path, conv_net())
    assert different_keys(copy_of_state(restored), copy_of_state(conv_net())) == []
    assert not any(key.startswith("channels.") for key in load_file(tmp_path / WEIGHTS_NAME))


@pytest.mark.parametrize("kind", MAKERS)
def test_the_file_holds_the_touched_channels_and_is_never_larger_than_the_model(kind, tmp_path):
    make, _ = MAKERS[kind]
    full = tmp_path / "full.safetensors"
    save_file({key: value.clone() for key, value in make().state_dict().items()}, full)
    sizes = []
    for epochs, budget in ((1, 0.05), (2, 0.3), (30, 0.8)):
        model = trained(kind, epochs, budget=budget)
        model.save_pretrained(tmp_path)
        sizes.append((tmp_path / WEIGHTS_NAME).stat().st_size)
        saved = load_file(tmp_path / WEIGHTS_NAME)
        drawn = {name: set() for name in model._layers}
        for epoch in range(epochs):
            for name, index in model.draw(epoch).items():
                drawn[name].update(index.tolist())
        for name, channels in drawn.items():
            if f"tensor.{name}.weight" not in saved:
                index = saved.get(f"channels.index.{name}", torch.tensor([], dtype=torch.int64))
                assert set(index.tolist()) == channels
    assert sizes == sorted(sizes) and sizes[-1] <= full.stat().st_size
    assert sizes[0] < 0.6 * full.stat().st_size


def test_the_witness_is_not_asked_of_a_base_model_in_another_precision(tmp_path):
    model = trained("conv")
    model.save_pretrained(tmp_path)
    base = conv_net().bfloat16()
    expected = {key: value.to(base.state_dict()[key].dtype) for key, value in copy_of_state(model).items()}
    restored = TraDyModel.from_pretrained(tmp_path, base)
    assert different_keys(copy_of_state(restored), expected) == []


# ---- Refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path) -> Path:
    model = trained("conv", epochs=1, budget=0.35, strategy="trady", norm_mode="train")
    model.save_pretrained(tmp_path)
    assert 3 <= len(load_file(tmp_path / WEIGHTS_NAME)["channels.index.hidden"]) < 16
    return tmp_path


def refusal(path: Path, base=None, error=ValueError) -> str:
    """Load `path` into `base`, which must raise `error` and leave `base` alone; returns the message."""
    base = conv_net() if base is None else base
    before, state = anatomy(base), copy_of_state(base)
    with pytest.raises(error) as caught:
        TraDyModel.from_pretrained(path, base, image_batch()[0])
    assert anatomy(base) == before and different_keys(copy_of_state(base), state) == []
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def rewrite(path: Path, change) -> None:
    """Forge the file of weights: its tensors and metadata as `change(tensors, metadata)` leaves them, sums and all."""
    file = path / WEIGHTS_NAME
    data = file.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tensors = load_file(file)
    change(tensors, metadata)
    metadata["checksums"] = json.dumps({key: checksum(value) for key, value in tensors.items()})
    save_file(tensors, file, metadata=metadata)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_a_tensor_is_refused(saved, place):
    data = bytearray((saved / WEIGHTS_NAME).read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    data[header + int(place * (len(data) - header))] ^= 16
    (saved / WEIGHTS_NAME).write_bytes(data)
    assert "is not what was saved" in refusal(saved)


@pytest.mark.parametrize("name", [WEIGHTS_NAME, CONFIG_NAME])
def test_a_missing_file_is_refused_by_name(saved, name):
    (saved / name).unlink()
    assert name in refusal(saved, error=FileNotFoundError)
    assert CONFIG_NAME in refusal(saved / "nowhere", error=FileNotFoundError)


@pytest.mark.parametrize("name", [WEIGHTS_NAME, CONFIG_NAME, RANKING_NAME])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(saved, name, keep):
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[: int(keep * len(data))])
    assert name in refusal(saved)


@pytest.mark.parametrize("name", [WEIGHTS_NAME, CONFIG_NAME, RANKING_NAME])
@pytest.mark.parametrize("text", [b"[]", b"not a file", b"\xff\xfe\x00", b'"text"', b"{}", b"\x80\x04K\x01."])
def test_a_file_of_another_kind_is_refused_by_name(saved, name, text):
    if (name, text) == (CONFIG_NAME, b"{}"):
        return  # a config of defaults
    (saved / name).write_bytes(text)
    assert name in refusal(saved)


@pytest.mark.parametrize("value", [{"memory_budget": -1}, {"strategy": 3}, {"target_modules": [3]}, {"seed": "x"}])
def test_a_config_with_a_value_that_is_not_allowed_is_refused(saved, value):
    (saved / CONFIG_NAME).write_text(json.dumps(value))
    assert f"{next(iter(value))}=" in refusal(saved)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_header_is_refused_or_harmless(saved, place, bit):
    file = saved / WEIGHTS_NAME
    original = file.read_bytes()
    base = conv_net()
    before = copy_of_state(base)
    expected = copy_of_state(TraDyModel.from_pretrained(saved, conv_net()))
    length = 8 + int.from_bytes(original[:8], "little")
    damaged = bytearray(original)
    damaged[int(place * length)] ^= 1 << bit
    try:
        file.write_bytes(damaged)
        TraDyModel.from_pretrained(saved, base)
    except ValueError as error:
        assert "\n" not in str(error)
        assert different_keys(copy_of_state(base), before) == []
    else:
        assert different_keys(copy_of_state(base), expected) == []
    finally:
        file.write_bytes(original)


def set_index(values):
    def change(tensors, metadata):
        n = len(tensors["channels.index.hidden"])
        tensors["channels.index.hidden"] = torch.tensor([*range(n - len(values)), *values])

    return change


def drop(key):
    return lambda tensors, metadata: tensors.pop(key)


def replace(key, value):
    return lambda tensors, metadata: tensors.update({key: value})


def describe(key, value):
    return lambda tensors, metadata: metadata.update({key: value})


DAMAGE = {
    "negative index": (set_index([-1]), "'hidden' are not distinct and within [0, 16)"),
    "index out of range": (set_index([16]), "'hidden' are not distinct and within [0, 16)"),
    "huge index": (set_index([2**62]), "'hidden' are not distinct and within [0, 16)"),
    "duplicate index": (set_index([9, 9]), "'hidden' are not distinct and within [0, 16)"),
    "unsorted index": (set_index([9, 8]), "'hidden' are not distinct and within [0, 16)"),
    "float index": (replace("channels.index.hidden", torch.tensor([1.0])), "'hidden' are not distinct"),
    "scalar index": (replace("channels.index.hidden", torch.tensor(1)), "'hidden' are not distinct"),
    "fewer values": (replace("channels.values.hidden", torch.zeros(99, 16)), "the channels of 'hidden' have shape"),
    "wrong values": (replace("channels.values.hidden", torch.zeros(3)), "the channels of 'hidden' have shape"),
    "no values": (drop("channels.values.hidden"), "corrupt"),
    "no index": (drop("channels.index.hidden"), "corrupt"),
    "unknown key": (replace("other", torch.zeros(1)), "corrupt"),
    "unknown layer": (replace("tensor.other.weight", torch.zeros(1)), "it has no 'other.weight'"),
    "wrong tensor": (replace("tensor.classifier.bias", torch.zeros(4)), "'classifier.bias' has shape [3] there"),
    "no version": (describe("trady_format", ""), "trady_format"),
    "new version": (describe("trady_format", "2"), "trady_format is '2', not '1'); a newer hf_trady wrote it"),
    "no witnesses": (describe("witnesses", "[]"), "corrupt"),
    "witness text": (describe("witnesses", '{"stem": "abc"}'), "malformed"),
    "witness layer": (describe("witnesses", '{"norm1": [0, "torch.float32", 0]}'), "a layer 'norm1'"),
    "witness channel": (describe("witnesses", '{"stem": [3, "torch.float32", 0]}'), "no channel 3 in a layer 'stem'"),
    "witness sum": (describe("witnesses", '{"stem": [0, "torch.float32", 0]}'), "the frozen weights of 'stem'"),
}


@pytest.mark.parametrize("change, expected", DAMAGE.values(), ids=DAMAGE)
def test_content_that_cannot_be_right_is_refused(saved, change, expected):
    rewrite(saved, change)
    assert expected in refusal(saved)


@pytest.mark.parametrize(
    "base, expected",
    [
        (lambda: conv_net(num_classes=4), "'classifier.bias' has shape [4] there and [3] here"),
        (lambda: conv_net(width=6), "shape"),
        (lambda: conv_net(seed=1), "frozen weights of '(stem|depthwise|pointwise|hidden)' are not those"),
        (bert, "it has no "),
        (gpt2, "it has no "),
        (lambda: torch.nn.Linear(3, 3), "it has no "),
    ],
    ids=["classes", "width", "weights", "bert", "gpt2", "linear"],
)
def test_a_base_model_other_than_the_one_that_was_fine_tuned_is_refused(saved, base, expected):
    message = refusal(saved, base())
    assert message.startswith("the base model is not the one that was fine-tuned: ")
    assert expected in message or re.search(expected, message)


# ---- Failing to save ------------------------------------------------------------------------------------------------


def files_in(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_disk_that_fills_up_leaves_the_files_that_were_there(saved, monkeypatch):
    before = files_in(saved)

    def half(tensors, filename, metadata=None):
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    model = trained("conv", epochs=3)
    monkeypatch.setattr("hf_trady.tensor_files.save_file", half)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(saved)
    assert files_in(saved) == before
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(saved / "new")
    assert files_in(saved / "new") == {}


def test_text_that_cannot_be_written_leaves_the_files_that_were_there(saved, monkeypatch):
    before = files_in(saved)
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    for save in (wrap(conv_net(), image_batch()[0]).trady_config.save_pretrained, trained("conv").save_pretrained):
        with pytest.raises(OSError, match="Input/output"):
            save(saved)
        assert files_in(saved) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_is_left_alone(saved):
    before = files_in(saved)
    saved.chmod(0o500)
    try:
        with pytest.raises(OSError, match="denied"):
            trained("conv").save_pretrained(saved)
        assert files_in(saved) == before
    finally:
        saved.chmod(0o700)


def test_a_base_model_in_the_place_of_the_path_is_told(saved):
    with pytest.raises(ValueError, match=r"^path is a ConvNet; it comes first: from_pretrained\(path, base_model\)$"):
        TraDyModel.from_pretrained(conv_net(), saved)


def test_a_path_that_is_a_file_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(OSError):
        trained("conv").save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "text"
