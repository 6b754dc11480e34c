"""Budgets in bytes, from the config to a resumed run."""

import json

import pytest
import torch

from hf_trady import TraDyConfig, TraDyModel, max_batch_size, plan
from hf_trady.memory import FITTED_NAME, FittedBudget, StepSetup, readable
from hf_trady.training.checkpoints import seal
from hf_trady.trial import DrawTrials

from .tiny import MODELS, anatomy, conv_net, image_batch, inputs_of, same_draw, train, wrap
from .training.runs import make_trainer


IMAGES, LABELS = image_batch(8, 16)
SGD = StepSetup(torch.optim.SGD, {"lr": 0.1})


def smallest(make, inputs) -> str:
    """The smallest budget that works, by the refusal of one that doesn't."""
    with pytest.raises(ValueError, match="impossible") as error:
        wrap(make(), inputs, "1KB")
    return str(error.value).split("'")[-2]


@pytest.mark.parametrize("kind", MODELS)
def test_no_draw_is_predicted_to_exceed_the_budget(kind):
    make, batch = MODELS[kind]
    least = float(smallest(make, inputs_of(batch)).removesuffix("MiB"))
    model = wrap(make(), inputs_of(batch), f"{1.2 * least:.2f}MiB")
    trials = DrawTrials(model, inputs_of(batch))
    peaks = [trials._run(model.draw(epoch)).peak for epoch in range(6) if not trials._fit(model.fitted)]
    assert max(peaks) <= model.byte_budget and max(peaks) <= 1.01 * model.fitted.predicted_peak
    assert model.report().units <= model.budget


@pytest.mark.parametrize("kind", ["conv", "bert"])
def test_the_smallest_budget_of_the_refusal_works_and_trains(kind):
    make, batch = MODELS[kind]
    model = wrap(make(), inputs_of(batch), smallest(make, inputs_of(batch)))
    assert model.report().active_channels >= 1
    assert all(loss == loss for loss in train(model, batch))


def test_a_refused_budget_leaves_the_model_as_it_was():
    net = conv_net()
    before = anatomy(net)
    with pytest.raises(ValueError, match="impossible"):
        wrap(net, IMAGES, "1KB")
    assert anatomy(net) == before


def test_what_is_planned_is_what_the_model_does():
    config = TraDyConfig(memory_budget="0.15MiB", strategy="dynamic_full_random")
    planned, model = plan(conv_net(), config, IMAGES), TraDyModel(conv_net(), config, IMAGES)
    assert (planned.units, planned.left_out) == (model.budget, model.fitted.left_out)
    assert planned.fits and planned.predicted_peak_bytes == model.fitted.predicted_peak
    assert plan(model, None, IMAGES).step.at_peak == planned.step.at_peak
    assert json.loads(json.dumps(planned.to_dict()))["units"] == planned.units


def test_a_plan_counts_norms_and_activations_as_training_does():
    make, (images, _) = MODELS["timm"]
    config = TraDyConfig(0.3, strategy="dynamic_full_random")
    planned = plan(make(), config, images)
    assert planned.step.at_peak == plan(TraDyModel(make(), config, images), None, images).step.at_peak


def test_without_a_ranking_the_plan_says_that_it_takes_all_layers():
    planned = plan(conv_net(), TraDyConfig(memory_budget="0.15MiB"), IMAGES)
    assert "No layer ranking is known yet" in str(planned)


def test_a_ranking_that_comes_later_is_when_the_budget_is_fitted():
    model = TraDyModel(conv_net(), TraDyConfig(memory_budget="0.15MiB"), IMAGES)
    assert not model.is_ready and model.fitted is None
    model.measure([(IMAGES, LABELS)], num_steps=1, disable_tqdm=True)
    assert model.is_ready and model.fitted.predicted_peak <= model.byte_budget


def test_an_optimizer_without_state_leaves_more_for_channels():
    model = wrap(conv_net(), None, "0.15MiB")
    model.calibrate(IMAGES)
    with_state = model.budget
    model.calibrate(IMAGES, SGD)
    assert model.budget >= with_state


def test_the_largest_batch_fits_and_the_next_does_not():
    config = TraDyConfig(memory_budget=0.2, strategy="dynamic_full_random")
    largest = max_batch_size(conv_net(), config, IMAGES, "0.2MiB")
    peaks = [plan(conv_net(), config, torch.zeros(n, 3, 16, 16)).predicted_peak_bytes for n in (largest, largest + 1)]
    assert peaks[0] <= 0.2 * 2**20 < peaks[1]


def test_a_shrunk_static_draw_is_a_smaller_one():
    model = wrap(conv_net(), IMAGES, "0.15MiB", strategy="static_full_random")
    first = model.active_channels()
    model.shrink(1, 2 * model.byte_budget)
    assert model.resample(1).units < model.resample(0).units
    assert same_draw(model.active_channels(), first)


def test_a_resumed_run_keeps_its_plan(tmp_path):
    config = {"memory_budget": "64MiB"}
    whole = make_trainer(tmp_path / "a", config=config, save_strategy="epoch", num_train_epochs=3)
    whole.train()
    checkpoint = tmp_path / "a" / "checkpoint-3"
    written = FittedBudget.from_pretrained(checkpoint)
    assert written.units == whole.model.budget
    # A plan that no measurement would give here shows that none is made.
    other = FittedBudget(written.units, written.left_out, written.predicted_peak, written.floor, ((2, 40),))
    (checkpoint / FITTED_NAME).unlink()
    other.save_pretrained(checkpoint)
    seal(checkpoint)
    resumed = make_trainer(tmp_path / "b", config=config, save_strategy="no", num_train_epochs=3)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.model.fitted.units == other.units and resumed.model.report().units <= 40


def test_a_peak_above_the_budget_makes_the_next_draw_smaller_and_is_logged(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_trady.training.callback.PeakTracker.peak", 5 * 2**20)
    trainer = make_trainer(tmp_path, config={"memory_budget": "4MiB"}, num_train_epochs=3)
    trainer.train()
    budgets = [entry["trady/budget"] for entry in trainer.state.log_history if "trady/budget" in entry]
    assert budgets[0] > budgets[1] > budgets[2]
    logged = [entry for entry in trainer.state.log_history if "trady/peak_bytes" in entry]
    assert [entry["trady/peak_bytes"] for entry in logged] == [5 * 2**20] * 3
    assert all(entry["trady/predicted_peak_bytes"] <= 4 * 2**20 for entry in logged)
    callback = next(c for c in trainer.callback_handler.callbacks if hasattr(c, "verdict"))
    assert callback.verdict().endswith("budget 4 MiB: exceeded in 3 of 3 draws")


@pytest.mark.parametrize(
    "kind, fields",
    [
        ("bert", {"target_modules": ["query", "value"]}),
        ("conv", {"strategy": "sparse_update", "scheme": {"pointwise": 0.5}}),
    ],
)
def test_layers_that_train_together_or_never_alone_are_fitted_too(kind, fields):
    make, batch = MODELS[kind]
    with pytest.raises(ValueError, match="impossible") as error:
        wrap(make(), inputs_of(batch), "1KB", **fields)
    model = wrap(make(), inputs_of(batch), str(error.value).split("'")[-2], **fields)
    assert model.report().active_channels >= 1
    assert all(loss == loss for loss in train(model, batch))


def test_what_is_less_than_a_mib_is_told_in_kib():
    with pytest.raises(ValueError, match=r"fits into 1\.00 KiB: a step of one takes [1-9]\d*\.\d\d KiB$"):
        max_batch_size(conv_net(), TraDyConfig(0.2, "dynamic_full_random"), IMAGES, "1KiB")
    with pytest.raises(ValueError, match=r"^memory_budget of 1\.00 KiB is impossible"):
        wrap(conv_net(), IMAGES, "1KiB")
    assert [readable(size) for size in (0, 2**20 - 1, 2**20, 3 * 2**29)] == [
        "0.00 KiB", "1,024.00 KiB", "1.00 MiB", "1,536.00 MiB",
    ]  # fmt: skip


@pytest.mark.parametrize("budget, shown", [(None, "memory_budget=0.2"), (0.5, "budget=0.5"), (100, "budget=100")])
def test_the_largest_batch_is_that_of_a_budget_in_bytes(budget, shown):
    config = TraDyConfig(memory_budget=0.2, strategy="dynamic_full_random")
    with pytest.raises(ValueError, match=f"^{shown} is no size; .* give a budget in bytes such as '256MiB'$"):
        max_batch_size(conv_net(), config, IMAGES, budget)


def test_no_batch_is_planned_for():
    config = TraDyConfig(memory_budget=0.2, strategy="dynamic_full_random")
    for model, given in ((conv_net(), config), (wrap(conv_net(), IMAGES), None)):
        for ask in (plan, max_batch_size):
            with pytest.raises(ValueError, match="example_inputs hold no sample"):
                ask(model, given, IMAGES[:0], **({"budget": "1MiB"} if ask is max_batch_size else {}))
