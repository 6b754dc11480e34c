"""A loss or a gradient that is not finite changes nothing but a count."""

import contextlib
import math

import pytest
import torch

from hf_trady import TraDyCallback, TraDyConfig, TraDyModel
from hf_trady.guard import StepGuard

from ..tiny import Rows, conv_net, copy_of_state, different_keys, image_batch, loss_of, wrap
from .runs import make_trainer


ORDER = {"train_sampling_strategy": "sequential", "lr_scheduler_type": "constant"}
OVERFLOWS = 1e30  # its own square is infinite, and with it the variance of a batch-norm


def rows_with(bad: dict[int, float], n: int = 12) -> Rows:
    """Images, of which those with the numbers in `bad` have this pixel."""
    images, labels = image_batch(n, 16)
    for row, value in bad.items():
        images[row, 0, 0, 0] = value
    return Rows({"x": images, "labels": labels})


@pytest.mark.parametrize("value, accumulation", [(math.nan, 1), (math.inf, 2), (-math.inf, 1), (OVERFLOWS, 1)])
def test_a_bad_step_is_skipped_counted_and_logged_and_leaves_no_trace(value, accumulation, tmp_path):
    size = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    config = {"strategy": "medyate", "norm_mode": "train", "optimizer_state": "carry", "resample_every": 2}
    ranked = make_trainer(tmp_path, config=config)
    ranked.prepare_model()
    example = image_batch(4, 16)[0]
    model = TraDyModel(conv_net(), TraDyConfig(0.3, **config), example, ranked.model.layer_ranking)
    kwargs = {"optim": "adamw_torch", "weight_decay": 0.1, "num_train_epochs": 1} | ORDER | size
    bad = make_trainer(tmp_path, model=model, train_dataset=rows_with({5: value}), **kwargs)
    bad.train()
    assert bad.state.global_step == 3 and bad._redraws.skipped_steps == 1
    assert [e["trady/skipped_steps"] for e in bad.state.log_history if "trady/skipped_steps" in e] == [1]
    assert all(torch.isfinite(value).all() for value in copy_of_state(bad.model).values())
    state = [value for values in bad.optimizer.state.values() for value in values.values()]
    assert state and all(torch.isfinite(value).all() for value in state)
    assert all(
        torch.isfinite(norms).logical_or(norms.isnan()).all() for norms in bad.model.channel_scores.norms.values()
    )
    assert all(values["step"] == 2 for values in bad.optimizer.state.values() if "step" in values)


def test_the_count_goes_on_after_a_resume(tmp_path):
    data, kwargs = rows_with({1: math.nan, 9: math.nan}), ORDER | {"save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path, train_dataset=data, **kwargs)
    whole.train()
    assert whole._redraws.skipped_steps == 4
    resumed = make_trainer(tmp_path, train_dataset=data, **kwargs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed._redraws.skipped_steps == 4
    assert different_keys(copy_of_state(whole.model), copy_of_state(resumed.model)) == []


def test_too_many_in_a_row_end_the_run_and_name_the_last_good_checkpoint(tmp_path):
    data = rows_with(dict.fromkeys(range(8, 24), math.nan), 24)
    model = TraDyModel(conv_net(), TraDyConfig(0.3, "dynamic_full_random"), image_batch(4, 16)[0])
    kwargs = ORDER | {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 4}
    trainer = make_trainer(tmp_path, model=model, train_dataset=data, max_skipped_steps=3, **kwargs)
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "in the last 3 steps, up to step 5" in message and "\n" not in message
    assert f"checkpoint is '{tmp_path / 'checkpoint-4'}'" in message and "learning_rate (now 0.01)" in message
    kept = TraDyModel.from_pretrained(tmp_path / "checkpoint-4", conv_net())
    assert different_keys(copy_of_state(kept), copy_of_state(trainer.model)) == []


@pytest.mark.parametrize("scales, ends", [([8.0] * 20, True), ([2.0**-n for n in range(20)], True), ([], False)])
def test_steps_in_which_a_grad_scaler_finds_its_scale_do_not_end_a_run(scales, ends, tmp_path, monkeypatch):
    """A norm that overflows without an infinite element leaves the scale as it is, and so ends it."""
    falling = iter(scales or [2.0**n for n in range(40, 0, -1)])
    monkeypatch.setattr(TraDyCallback, "_scale", property(lambda self: next(falling)))
    data = rows_with(dict.fromkeys(range(12), math.nan))
    trainer = make_trainer(tmp_path, train_dataset=data, max_skipped_steps=3, **ORDER)
    with pytest.raises(FloatingPointError) if ends else contextlib.nullcontext():
        trainer.train()
    assert trainer._redraws.skipped_steps == (3 if ends else 6)


def test_the_guard_puts_statistics_back_and_drops_gradients_of_its_own_loop():
    images, labels = image_batch()
    model = wrap(conv_net(), images, norm_mode="train")
    guard = StepGuard(model)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.1)
    for bad in (False, True, False):
        before = copy_of_state(model)
        guard.begin()
        loss = loss_of(model, (images, labels))
        (loss * math.nan if bad else loss).backward()
        assert guard.passes() is not bad
        optimizer.step()
        optimizer.zero_grad()
        changed = different_keys(before, copy_of_state(model))
        assert changed == [] if bad else {"norm1.running_mean", "classifier.weight"} < {*changed}
