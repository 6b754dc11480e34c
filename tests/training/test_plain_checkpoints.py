"""What a plain Trainer saves is the state of the base model, for a plain model or a wrapped one."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from ..tiny import (
    Rows,
    bert,
    conv_net,
    copy_of_state,
    different_keys,
    gpt2,
    image_batch,
    lm_batch,
    timm_wrapper,
    wrap,
)
from .runs import arguments, image_rows, make_trainer, token_dataset


KINDS = {
    "bert": (bert, {"input_ids": lm_batch(1)["input_ids"]}, token_dataset),
    "gpt2": (gpt2, {"input_ids": lm_batch(1)["input_ids"]}, lambda: Rows(lm_batch(12))),  # tied weights
    "wrapper": (timm_wrapper, {"pixel_values": torch.zeros(1, 3, 32, 32)}, lambda: image_rows(12, 32)),
    "channels_last": (
        lambda: timm_wrapper().to(memory_format=torch.channels_last),
        {"pixel_values": torch.zeros(1, 3, 32, 32)},
        lambda: image_rows(12, 32),
    ),
}


def run(path, kind: str, **kwargs) -> Trainer:
    """Two epochs with a checkpoint after each."""
    make, example, data = KINDS[kind]
    trainer = make_trainer(
        path, model=wrap(make(), example), plain=True, train_dataset=data(), save_strategy="epoch", **kwargs
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_model_loads_it(kind, tmp_path):
    trainer = run(tmp_path, kind)
    plain, end = KINDS[kind][0](), copy_of_state(trainer.model)
    assert different_keys(copy_of_state(plain), end)
    plain.load_state_dict(load_file(tmp_path / "checkpoint-6" / "model.safetensors"), strict=True)
    assert different_keys(copy_of_state(plain), end) == []


@pytest.mark.parametrize("kind", ["bert", "gpt2", "wrapper"])
def test_what_a_trainer_of_a_plain_model_saves_goes_into_a_wrapped_one(kind, tmp_path):
    make, example, data = KINDS[kind]
    plain = make().requires_grad_(True)
    Trainer(plain, arguments(tmp_path, save_strategy="epoch"), train_dataset=data()).train()
    model = wrap(make(), example)
    # transformers saves a tied weight under one of its names.
    loaded = model.load_state_dict(load_file(tmp_path / "checkpoint-6" / "model.safetensors"), strict=kind != "gpt2")
    assert not loaded.unexpected_keys and set(loaded.missing_keys) <= {"lm_head.weight"}
    assert different_keys(copy_of_state(model), copy_of_state(plain)) == []


def test_the_state_of_a_model_of_tied_weights_shares_nothing_and_knows_both_names():
    model = wrap(gpt2(), {"input_ids": lm_batch(1)["input_ids"]})
    state, parameters = model.state_dict(), model.state_dict(keep_vars=True)
    a, b = "lm_head.weight", "transformer.wte.weight"
    assert torch.equal(state[a], state[b]) and state[a].data_ptr() != state[b].data_ptr()
    assert parameters[a] is parameters[b] is model.base_model.lm_head.weight
    assert state.keys() == parameters.keys() == gpt2().state_dict().keys()
    state = wrap(conv_net().to(memory_format=torch.channels_last), image_batch(1)[0]).state_dict()
    assert all(value.is_contiguous() for value in state.values())
    assert state._metadata == conv_net().state_dict()._metadata
