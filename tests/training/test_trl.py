"""The trainers of TRL, with a TraDyCallback."""

import datasets
import pytest
import torch

from hf_trady import TraDyCallback, TraDyConfig, TraDyModel

from ..tiny import copy_of_state, different_keys, llama, lm_batch, word_tokenizer
from .runs import drawn_channels


trl = pytest.importorskip("trl")

DATA = {
    "sft": {"text": ["w1 w2 w3 w4 w5", "w3 w4 w5", "w6 w7 w8 w9"]},
    "dpo": {
        "prompt": ["w1 w2 w3 w4", "w3 w4 w5", "w6 w7 w8 w9"],
        "chosen": [" w5 w6", " w6", " w1 w2"],
        "rejected": [" w7 w8", " w9 w9", " w3"],
    },
}


def wrapped(budget: float) -> TraDyModel:
    config = TraDyConfig(budget, "dynamic_full_random", lean_backward="exact", optimizer_state="carry")
    return TraDyModel(llama(), config, {"input_ids": lm_batch(1)["input_ids"]})


def train(method: str, model, path, resume=None, **kwargs):
    """Two epochs of three steps of TRL's trainer, with a callback where `model` is a TraDyModel."""
    kind, config = {"sft": (trl.SFTTrainer, trl.SFTConfig), "dpo": (trl.DPOTrainer, trl.DPOConfig)}[method]
    fixed = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "bf16": False}
    args = config(
        str(path),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        **(fixed | kwargs),
    )
    data = datasets.Dataset.from_dict({name: column * 4 for name, column in DATA[method].items()})
    own = {"ref_model": llama()} if method == "dpo" else {}
    trainer = kind(model=model, args=args, train_dataset=data, processing_class=word_tokenizer(), **own)
    if isinstance(model, TraDyModel):
        trainer.add_callback(TraDyCallback(trainer))
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == 6
    return trainer


@pytest.mark.parametrize("method", DATA)
@pytest.mark.parametrize("kwargs", [{}, {"gradient_checkpointing": False}, {"bf16": True}], ids=str)
def test_with_all_channels_it_trains_what_plain_training_of_these_layers_does(method, kwargs, tmp_path):
    model, plain = wrapped(1.0), llama()
    assert all(len(model.active_channels()[row.name]) == row.channels for row in model.costs)
    trained = {f"{name}.weight" for name in model.active_channels()}
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name in trained)
    start, tolerance = copy_of_state(model), 1e-2 if "bf16" in kwargs else 1e-4
    losses = []
    for each in (model, plain):
        trainer = train(method, each, tmp_path, logging_steps=1, **kwargs)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert set(different_keys(start, copy_of_state(model))) == trained
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", DATA)
def test_nothing_trains_but_what_is_drawn_and_an_ordinary_model_comes_back(method, tmp_path):
    model = wrapped(0.3)
    start = copy_of_state(model)
    train(method, model, tmp_path)
    drawn = drawn_channels(model, range(2))
    end = copy_of_state(model)
    assert set(different_keys(start, end)) == {f"{name}.weight" for name, mask in drawn.items() if mask.any()}
    for name, mask in drawn.items():
        changed = (start[f"{name}.weight"] != end[f"{name}.weight"]).any(0)
        assert not (changed & ~mask).any()

    ids = lm_batch(2)["input_ids"]
    tokens = model.eval().generate(ids, max_new_tokens=8, do_sample=False)
    plain, merged = llama(), model.merge_and_unload()
    plain.load_state_dict(end)
    assert torch.equal(plain.generate(ids, max_new_tokens=8, do_sample=False), tokens)
    assert torch.equal(merged.generate(ids, max_new_tokens=8, do_sample=False), tokens)
    assert "forward" not in vars(merged)


@pytest.mark.parametrize("method", DATA)
def test_a_run_that_saves_is_loaded_from_its_output_directory_and_goes_on_from_its_checkpoint(method, tmp_path):
    model = wrapped(0.3)
    train(method, model, tmp_path / "run", save_strategy="epoch")
    loaded = TraDyModel.from_pretrained(tmp_path / "run", base_model=llama())
    assert not different_keys(copy_of_state(model), copy_of_state(loaded))

    resumed = wrapped(0.3)
    train(method, resumed, tmp_path / "again", resume=tmp_path / "run" / "checkpoint-3")
    assert not different_keys(copy_of_state(model), copy_of_state(resumed))
