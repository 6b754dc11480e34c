"""A plain Trainer with a TraDyCallback does what a TraDyTrainer does."""

from dataclasses import replace

import pytest
import torch
from transformers import BertForQuestionAnswering, Trainer

from hf_trady import TraDyCallback, TraDyConfig, TraDyModel
from hf_trady.memory import FittedBudget
from hf_trady.selection import ChannelScores

from ..tiny import (
    Rows,
    bert,
    conv_net,
    copy_of_state,
    different_keys,
    gpt2,
    lm_batch,
    ranking_of,
    timm_wrapper,
    token_batch,
)
from .runs import arguments, image_rows, make_trainer, token_dataset


INPUTS = {
    "bert": (lambda: bert(dropout=0.2), token_batch(1), token_dataset),
    "wrapper": (timm_wrapper, {"pixel_values": torch.zeros(1, 3, 32, 32)}, lambda: image_rows(12, 32)),
    "gpt2": (gpt2, {"input_ids": lm_batch(1)["input_ids"]}, lambda: Rows(lm_batch(12))),
}


def ready(kind: str, **config) -> TraDyModel:
    """A model with costs and, where the strategy needs it, a ranking."""
    make, example, _ = INPUTS[kind]
    config = {"memory_budget": 0.3, "strategy": "trady", "ranking_coverage": 0.8} | config
    model = TraDyModel(make(), TraDyConfig(**config), example)
    model.set_layer_ranking(ranking_of(model.costs))
    return model


def run(path, kind: str, plain: bool, config: dict, resume: int | None = None, **kwargs) -> Trainer:
    kwargs = {"train_dataset": INPUTS[kind][2](), "num_train_epochs": 3} | kwargs
    trainer = make_trainer(path, model=ready(kind, **config), plain=plain, **kwargs)
    trainer.train(resume_from_checkpoint=None if resume is None else str(path / f"checkpoint-{resume}"))
    return trainer


CONFIGS = {
    "epochs": {},
    "steps-carry": {"resample_every": 2, "optimizer_state": "carry"},
    "static": {"strategy": "static_full_random"},
    "bias-norms": {"train_bias": True, "norm_mode": "train", "strategy": "dynamic_full_random"},
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_both_trainers_end_with_the_same_weights_and_log_the_same(kind, config, tmp_path):
    ours, plain = (run(tmp_path, kind, plain, config) for plain in (False, True))
    assert type(plain) is Trainer and different_keys(copy_of_state(ours.model), copy_of_state(plain.model)) == []
    start = copy_of_state(INPUTS[kind][0]())
    assert len(different_keys(start, copy_of_state(plain.model))) > 2
    logs = [[entry for entry in trainer.state.log_history if "trady/units" in entry] for trainer in (ours, plain)]
    assert logs[0] == logs[1] and len(logs[0]) == (5 if "resample_every" in config else 3)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", ["bert", "wrapper"])
def test_a_plain_trainer_resumes_bit_for_bit_too(kind, config, tmp_path):
    whole = run(tmp_path, kind, True, config, save_strategy="steps", save_steps=1)
    for step in (1, 3, 5):
        resumed = run(tmp_path, kind, True, config, resume=step)
        assert different_keys(copy_of_state(resumed.model), copy_of_state(whole.model)) == [], f"after step {step}"


def test_what_a_resumed_plain_trainer_trained_is_saved_whole(tmp_path):
    whole = run(tmp_path, "bert", True, {}, save_strategy="steps", save_steps=3)
    resumed = run(tmp_path, "bert", True, {}, resume=6)
    resumed.model.save_pretrained(tmp_path / "saved")
    restored = TraDyModel.from_pretrained(tmp_path / "saved", INPUTS["bert"][0]())
    assert different_keys(copy_of_state(restored), copy_of_state(whole.model)) == []


def test_a_plain_trainer_evaluates_a_data_set_with_columns_that_the_model_does_not_take(tmp_path):
    data = token_dataset(5)
    assert "number" in data.column_names
    expected = Trainer(INPUTS["bert"][0](), arguments(tmp_path), eval_dataset=data).evaluate()
    trainer = make_trainer(tmp_path, "bert", model=ready("bert"), plain=True, eval_dataset=data)
    assert trainer.evaluate()["eval_loss"] == expected["eval_loss"]


def test_a_model_that_is_no_tradymodel_is_refused(tmp_path):
    trainer = Trainer(conv_net(), arguments(tmp_path), train_dataset=image_rows())
    trainer.add_callback(TraDyCallback(trainer))
    with pytest.raises(ValueError, match="TraDyCallback needs a TraDyModel, not a ConvNet"):
        trainer.train()


@pytest.mark.parametrize("missing, expected", [("costs", "calibrate"), ("ranking", "needs a layer ranking")])
def test_a_model_that_is_not_ready_is_refused_before_the_first_step(missing, expected, tmp_path):
    model = TraDyModel(bert(), TraDyConfig(0.3, "trady"), token_batch(1) if missing == "ranking" else None)
    start = copy_of_state(model)
    trainer = make_trainer(tmp_path, "bert", model=model, plain=True)
    with pytest.raises(ValueError, match=expected) as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    assert different_keys(copy_of_state(model), start) == []


@pytest.mark.parametrize("plain", [False, True])
def test_the_labels_are_those_that_the_base_model_takes(plain, tmp_path):
    batch = token_batch(8)
    spans = {"start_positions": torch.zeros(8, dtype=torch.int64), "end_positions": torch.ones(8, dtype=torch.int64)}
    data = Rows({"input_ids": batch["input_ids"], **spans})
    net = BertForQuestionAnswering(bert(num_labels=2).config).eval()
    expected = Trainer(net, arguments(tmp_path), eval_dataset=data).predict(data)
    model = TraDyModel(net, TraDyConfig(0.3, "dynamic_full_random"), {"input_ids": batch["input_ids"]})
    actual = make_trainer(tmp_path, model=model, plain=plain, eval_dataset=data).predict(data)
    assert actual.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"])
    assert len(actual.label_ids) == len(actual.predictions) == 2


@pytest.mark.parametrize("config", [{"strategy": "medyate"}, {"strategy": "informed", "resample_every": 2}], ids=str)
def test_what_is_known_of_channels_comes_back_from_the_checkpoint(config, tmp_path):
    def start(plain: bool):
        model = ready("bert", **config)
        if model.needs_measuring:
            model.measure([token_batch(4)], num_steps=1, disable_tqdm=True)
        kwargs = {"num_train_epochs": 4, "save_strategy": "epoch", "train_dataset": token_dataset()}
        return make_trainer(tmp_path, model=model, plain=plain, **kwargs)

    whole, resumed = start(True), start(True)
    whole.train()
    kept = ChannelScores.from_pretrained(tmp_path / "checkpoint-6")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert kept is not None and different_keys(copy_of_state(resumed.model), copy_of_state(whole.model)) == []
    # The checkpoints are those of a TraDyTrainer, too.
    ours = start(False)
    ours.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert different_keys(copy_of_state(ours.model), copy_of_state(whole.model)) == []


def test_a_budget_in_bytes_that_has_shrunk_stays_so_and_another_one_is_refused(tmp_path):
    def start():
        trainer = make_trainer(
            tmp_path,
            model=ready("bert", memory_budget="64MiB", strategy="dynamic_full_random"),
            plain=True,
            train_dataset=token_dataset(),
            num_train_epochs=3,
            save_strategy="epoch",
        )
        return trainer, trainer.model

    trainer, model = start()
    model.shrink(1, 2 * model.byte_budget)
    shrunk = model.fitted
    assert shrunk.units_of(1) < shrunk.units
    trainer.train()
    assert FittedBudget.from_pretrained(tmp_path / "checkpoint-3").shrunk[0] == shrunk.shrunk[0]
    resumed, other = start()
    assert other.fitted.shrunk == ()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert other.fitted == model.fitted
    assert different_keys(copy_of_state(other), copy_of_state(model)) == []

    resumed, other = start()
    other.set_fitted(replace(shrunk, units=shrunk.units // 2))
    with pytest.raises(ValueError, match="buys other draws"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
