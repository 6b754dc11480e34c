from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_trady import TraDyCallback, TraDyConfig, TraDyModel, TraDyTrainer
from hf_trady.layers import read_channels
from hf_trady.training.trainer import _enable_checkpointing

from ..tiny import Rows, bert, conv_net, copy_of_state, different_keys, image_batch, token_batch
from .runs import TASKS, arguments, drawn_channels, image_rows, make_trainer, token_dataset


LOGGED = (
    "activation_sparsity",
    "weight_sparsity",
    "flops_saved",
    "units",
    "budget",
    "active_layers",
    "active_channels",
)


class Watch(TrainerCallback):
    """Notes the draw, the optimizer step and the channels at every micro-batch of training."""

    def __init__(self):
        self.seen = []

    def attach(self, trainer):
        def note(module, args):
            if module.training and trainer.optimizer is not None:  # not before the first step
                model = trainer.model
                channels = {name: index.tolist() for name, index in model.active_channels().items()}
                self.seen.append((trainer.state.global_step, model.epoch, channels))

        trainer.model.register_forward_pre_hook(note)
        return self


def sparsity_logs(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "trady/budget" in entry]


def accuracy(prediction) -> dict:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


@pytest.mark.parametrize("task", TASKS)
def test_it_trains_evaluates_and_touches_nothing_but_the_head_and_what_is_drawn(task, tmp_path):
    trainer = make_trainer(
        tmp_path,
        task,
        eval_dataset=TASKS[task][1](8),
        compute_metrics=accuracy,
        eval_strategy="epoch",
        weight_decay=0.1,
    )
    model = trainer.model
    start = copy_of_state(model)
    trainer.train()

    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 2 and all(0 <= entry["eval_accuracy"] <= 1 for entry in evaluations)
    assert all(np.isfinite(entry["eval_loss"]) for entry in evaluations)
    assert trainer.evaluate()["eval_loss"] == evaluations[-1]["eval_loss"]

    moved = set(different_keys(start, copy_of_state(model)))
    heads = {key for key in start if any(key.startswith(f"{head}.") for head in model._heads)}
    drawn = drawn_channels(model, range(2))
    assert heads < moved <= heads | {f"{name}.weight" for name in drawn}
    end = {name: read_channels(modules[0], torch.arange(len(drawn[name]))) for name, modules in model._layers.items()}
    model.load_state_dict(start)
    for name, modules in model._layers.items():
        before = read_channels(modules[0], torch.arange(len(drawn[name])))
        changed = (before != end[name]).flatten(1).any(1)
        assert not (changed & ~drawn[name]).any()


@pytest.mark.parametrize("task", TASKS)
def test_it_learns(task, tmp_path):
    data = TASKS[task][1](12)
    trainer = make_trainer(
        tmp_path,
        task,
        config={"norm_mode": "train"},
        train_dataset=data,
        eval_dataset=data,
        num_train_epochs=12,
        learning_rate=0.03,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("remove", [True, False])
def test_columns_that_the_model_does_not_take_are_removed_where_that_is_wanted(remove, plain, tmp_path):
    model = TraDyModel(bert(), TraDyConfig(0.3, "dynamic_full_random"), token_batch(1))
    data = token_dataset(8)
    trainer = make_trainer(
        tmp_path, "bert", model=model, plain=plain, train_dataset=data, remove_unused_columns=remove
    )
    taken = {"input_ids", "attention_mask", "labels"}
    for dataloader in (trainer.get_train_dataloader(), trainer.get_eval_dataloader(data)):
        assert set(next(iter(dataloader))) == (taken if remove else taken | {"number"})
    if remove:
        trainer.train()
        assert trainer.state.global_step == 4


@pytest.mark.parametrize("config", [{}, {"resample_every": 2}, {"strategy": "static_full_random"}], ids=str)
def test_each_redraw_logs_its_sparsity_once(config, tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=3, config=config)
    trainer.train()
    logs = sparsity_logs(trainer)
    draws = range(5) if "resample_every" in config else range(3)
    expected = []
    for draw in draws:
        trainer.model.resample(draw)
        expected.append(trainer.model.report().logs())
    assert [{key: entry[key] for key in expected[0]} for entry in logs] == expected
    assert set(expected[0]) == {f"trady/{name}" for name in LOGGED}
    assert [entry["step"] for entry in logs] == [2 * i if "resample_every" in config else 3 * i for i in draws]


def test_tensorboard_gets_the_sparsity_of_every_draw(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer = make_trainer(tmp_path, "bert", report_to="tensorboard")
    trainer.train()
    (run,) = {file.parent for file in (tmp_path / "logs").rglob("events.*")}
    events = EventAccumulator(str(run)).Reload()
    for name in LOGGED:
        values = [(event.step, event.value) for event in events.Scalars(f"train/trady/{name}")]
        expected = [(entry["step"], pytest.approx(entry[f"trady/{name}"])) for entry in sparsity_logs(trainer)]
        assert values == expected and len(values) == 2


@pytest.mark.parametrize("task", ["conv", "bert"])
def test_without_a_ranking_it_measures_one_that_leaves_weights_statistics_and_batches_alone(task, tmp_path):
    def make(example=None, **more):
        net = bert(dropout=0.3) if task == "bert" else conv_net()
        config = TraDyConfig(0.3, "trady", norm_mode="train", ranking_coverage=0.8, **more)
        return make_trainer(tmp_path, task, model=TraDyModel(net, config, example), ranking_steps=3)

    measured = make()
    start = copy_of_state(measured.model)
    assert not measured.model.is_ready
    measured.prepare_model()
    ranking = measured.model.layer_ranking
    assert set(ranking.shapes) == set(measured.model._layers) and any(ranking.scores["rgn"].values())
    assert different_keys(copy_of_state(measured.model), start) == []
    top = set(ranking.top(0.8))
    assert top < set(measured.model._layers) and {row.name for row in measured.model.pool} == top

    # Runs that are given this ranking, or the costs too, go the same way as one that measures them.
    ranking.save_pretrained(tmp_path)
    example = token_batch(1) if task == "bert" else image_batch(1, 16)[0]
    ends = []
    for kwargs in ({}, {"layer_ranking": str(tmp_path)}, {"layer_ranking": str(tmp_path), "example": example}):
        trainer = make(**kwargs)
        assert trainer.model.is_ready == ("example" in kwargs)
        trainer.train()
        assert trainer.model.layer_ranking == ranking
        ends.append(copy_of_state(trainer.model))
    assert different_keys(start, ends[0])
    assert different_keys(ends[0], ends[1]) == [] and different_keys(ends[0], ends[2]) == []


@pytest.mark.parametrize("every", ["epoch", 1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_channels_change_when_they_should_and_never_between_micro_batches(every, accumulation, tmp_path):
    trainer = make_trainer(
        tmp_path,
        num_train_epochs=3,
        config={"resample_every": every},
        per_device_train_batch_size=2,  # six micro-batches an epoch, or with 14 samples seven: the last one is alone
        gradient_accumulation_steps=accumulation,
        train_dataset=image_rows(14),
    )
    watch = Watch().attach(trainer)
    trainer.train()
    steps = -(-7 // accumulation)
    assert len(watch.seen) == 21 and trainer.state.global_step == 3 * steps
    for step, number, channels in watch.seen:
        assert number == (step // steps if every == "epoch" else step // every)
        assert channels == {name: index.tolist() for name, index in trainer.model.draw(number).items()}


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "sgd"])
def test_what_the_optimizer_steps_reaches_the_weights(optim, tmp_path):
    trainer = make_trainer(tmp_path, optim=optim, num_train_epochs=1, max_steps=1, lr_scheduler_type="constant")
    start = copy_of_state(trainer.model)
    trainer.train()
    moved = different_keys(start, copy_of_state(trainer.model))
    assert {f"{name}.weight" for name in trainer.model.active_channels()} <= set(moved)
    assert trainer.args.optim == optim


def test_max_steps_ends_a_run_and_a_stream_draws_every_few_steps(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            rows = image_rows(12)
            return (rows[i % 12] for i in range(100))

    trainer = make_trainer(tmp_path, train_dataset=Stream(), max_steps=5, config={"resample_every": 2})
    watch = Watch().attach(trainer)
    trainer.train()
    assert [number for _, number, _ in watch.seen] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("plain", [False, True])
def test_a_stream_that_ends_before_max_steps_draws_anew_whenever_it_starts_again(plain, accumulation, tmp_path):
    stream = token_dataset(12).remove_columns("number").to_iterable_dataset()
    model = TraDyModel(bert(), TraDyConfig(0.3, "dynamic_full_random"), token_batch(1))
    kwargs = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 2}
    trainer = make_trainer(tmp_path, model=model, plain=plain, train_dataset=stream, max_steps=7, **kwargs)
    watch = Watch().attach(trainer)
    trainer.train()
    assert trainer.state.global_step == 7
    assert [number for _, number, _ in watch.seen] == [micro // 6 for micro in range(7 * accumulation)]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_raw_model_predicts_with_labels_and_without(labelled, tmp_path):
    images, labels = image_batch(5, 16)
    data = Rows({"pixel_values": images} | ({"labels": labels} if labelled else {}))
    trainer = make_trainer(tmp_path, "conv", per_device_eval_batch_size=2)
    prediction = trainer.predict(data)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(prediction.predictions), conv_net()(images))
    assert ("test_loss" in prediction.metrics) == labelled and (prediction.label_ids is not None) == labelled


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])  # only the latter tells autograd what it changes
def test_training_a_second_time_starts_the_channels_without_old_optimizer_state(optim, tmp_path):
    class NoteState(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_step_begin(self, args, state, control, optimizer=None, model=None, **kwargs):
            self.seen.append((state.global_step, model.epoch, bool(optimizer.state.get(model.active.flat[0]))))

    note = NoteState()
    own = {"optim": optim, "optim_args": "momentum=0.9" if optim == "sgd" else None}
    trainer = make_trainer(tmp_path, callbacks=[note], config={"optimizer_state": "reset"}, **own)
    trainer.train()
    trainer.train()
    once = [(0, 0, False), (1, 0, True), (2, 0, True), (3, 1, False), (4, 1, True), (5, 1, True)]
    assert note.seen == once + once


def test_a_model_that_is_no_tradymodel_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model must be a TraDyModel, not a ConvNet"):
        TraDyTrainer(model=conv_net(), args=arguments(tmp_path))
    with pytest.raises(ValueError, match="no whole checkpoint to resume from"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("plain", [False, True])
def test_an_optimizer_that_was_made_too_early_is_refused(plain, tmp_path):
    example = image_batch(4, 16)[0] if plain else None
    model = TraDyModel(conv_net(), TraDyConfig(0.3, "dynamic_full_random"), example)
    optimizer = torch.optim.SGD(model.base_model.parameters(), lr=0.1)
    kind = Trainer if plain else TraDyTrainer
    trainer = kind(model, arguments(tmp_path), train_dataset=image_rows(), optimizers=(optimizer, None))
    if plain:
        trainer.add_callback(TraDyCallback(trainer))
    with pytest.raises(ValueError, match=r"optimizer lacks .* optimizer_cls_and_kwargs"):
        trainer.train()


def test_a_loss_that_counts_on_the_number_of_items_is_given_it_wherever_it_is_asked(tmp_path):
    def loss(outputs, labels, num_items_in_batch):
        return torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    trainer = make_trainer(tmp_path, "bert", config={"strategy": "trady"}, compute_loss_func=loss)
    trainer.train()
    assert trainer.state.global_step == 6


@pytest.mark.parametrize("strategy", ["dynamic_full_random", "velocity"])
def test_none_of_several_evaluations_counts_as_training(strategy, tmp_path, monkeypatch):
    sets = {"one": image_rows(), "other": image_rows(8)}
    trainer = make_trainer(
        tmp_path, config={"strategy": strategy}, eval_dataset=sets, eval_strategy="steps", eval_steps=1
    )
    paused = []
    step = trainer.prediction_step

    def prediction_step(*args, **kwargs):
        tracker = trainer._redraws._tracker
        paused.append(tracker is None or tracker._paused_at is not None)
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer, "prediction_step", prediction_step)
    trainer.train()
    assert len(paused) > 6 and all(paused)


def test_memory_is_measured_from_a_step_on_that_changes_nothing(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    start, called = copy_of_state(trainer.model), []
    trainer.model.register_forward_pre_hook(lambda module, args: called.append(module.training))

    class Begin(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            assert called == [True] and not different_keys(start, copy_of_state(trainer.model))

    trainer.add_callback(Begin())
    trainer.train()
    assert len(called) > 1


@pytest.mark.skipif(not hasattr(TrainingArguments, "activation_checkpointing"), reason="older transformers")
def test_a_model_is_prepared_with_the_checkpointing_of_training(tmp_path):
    kwargs = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 2}}
    trainer = make_trainer(tmp_path, "bert", **kwargs)
    trainer.prepare_model()
    assert [layer.gradient_checkpointing for layer in trainer.model.bert.encoder.layer] == [True, False]
    trainer.train()
    assert [layer.gradient_checkpointing for layer in trainer.model.bert.encoder.layer] == [True, False]


@pytest.mark.parametrize("kind", ["activation", "gradient"])
@pytest.mark.parametrize(
    "given, torchs, others",
    [
        (None, None, {}),
        ({"use_reentrant": False}, {"use_reentrant": False}, {}),
        ({"every_n_layers": 2, "offload": True}, None, {"every_n_layers": 2, "offload": True}),
    ],
)
def test_checkpointing_goes_by_both_of_its_names(kind, given, torchs, others):
    args = SimpleNamespace(**{f"{kind}_checkpointing": True, f"{kind}_checkpointing_kwargs": given})
    for name in {kind, "gradient"}:  # a model of someone's own may know the older name alone
        model = Mock(spec=[f"{name}_checkpointing_enable"])
        _enable_checkpointing(model, args)
        getattr(model, f"{name}_checkpointing_enable").assert_called_once_with(torchs, **others)
    _enable_checkpointing(Mock(spec=[]), SimpleNamespace(**{f"{kind}_checkpointing": False}))
