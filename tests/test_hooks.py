"""What is done to a wrapped model, or to its base model, by others than its own calls."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers.utils import logging

from hf_trady import TraDyConfig, TraDyModel

from .tiny import (
    MODELS,
    bert,
    conv_net,
    copy_of_state,
    different_keys,
    image_batch,
    inputs_of,
    loss_of,
    t5,
    timm_net,
    token_batch,
    train,
    wrap,
)


IMAGES, LABELS = image_batch(4, 32)
every_model = pytest.mark.parametrize("make, batch", MODELS.values(), ids=MODELS)


def step(model, optimizer, draw: int = 0):
    model.resample(draw, optimizer)
    F.cross_entropy(model.train()(IMAGES), LABELS).backward()
    optimizer.step()
    optimizer.zero_grad()


def sgd(model, lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=lr)


# ---- Its parts ------------------------------------------------------------------------------------------------------


def test_an_encoder_that_is_called_alone_has_the_weights_of_the_last_step():
    ids = torch.randint(2, 9, (3, 5), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids}
    model = wrap(t5(), batch, 0.5)
    train(model, batch, lr=1.0)
    model.eval()
    with torch.no_grad():
        encoded = model.get_encoder()(ids).last_hidden_state
        plain = copy.deepcopy(model).merge_and_unload().eval()
        assert torch.equal(encoded, plain.get_encoder()(ids).last_hidden_state)


def test_a_training_that_calls_the_parts_trains_what_calling_the_whole_does():
    ends = []
    for whole in (True, False):
        model = wrap(timm_net(), IMAGES, 0.3, lean_backward="off")
        optimizer = sgd(model, 0.1)
        for draw in range(3):
            model.resample(draw, optimizer)
            model.train()
            logits = model(IMAGES) if whole else model.forward_head(model.forward_features(IMAGES))
            F.cross_entropy(logits, LABELS).backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(copy_of_state(model))
    assert different_keys(*ends) == []
    assert different_keys(ends[0], copy_of_state(timm_net())) != []


# ---- Its weights ----------------------------------------------------------------------------------------------------


@every_model
def test_the_base_models_own_state_dict_has_the_last_step(make, batch):
    model = wrap(make(), inputs_of(batch))
    train(model, batch)
    state = model.base_model.state_dict()
    assert different_keys({key: value.clone() for key, value in state.items()}, copy_of_state(model)) == []


@every_model
def test_what_the_base_model_loads_stays_and_its_channels_are_saved(make, batch, tmp_path):
    model = wrap(make(), inputs_of(batch))
    train(model, batch)
    other = copy_of_state(make(seed=5))
    model.base_model.load_state_dict(other)
    loss_of(model, batch)
    assert different_keys(other, copy_of_state(model)) == []
    model.save_pretrained(tmp_path)
    loaded = copy_of_state(TraDyModel.from_pretrained(tmp_path, make()))
    assert all(torch.equal(other[f"{row.name}.weight"], loaded[f"{row.name}.weight"]) for row in model.costs)


def test_a_weight_that_is_changed_in_place_stays_so():
    model = wrap(conv_net(), image_batch()[0], 0.9)
    with torch.no_grad():
        model.base_model.pointwise.weight.mul_(2)
    expected = model.base_model.pointwise.weight.detach().clone()
    loss_of(model, image_batch()).backward()
    sgd(model, 0.0).step()
    assert torch.equal(model.state_dict()["pointwise.weight"], expected)


@pytest.mark.parametrize("average", [lambda model: ModelEmaV3(model, decay=0.5), AveragedModel], ids=["timm", "torch"])
def test_averages_over_several_draws_are_those_of_the_weights(average):
    model = wrap(timm_net(), IMAGES, 0.5)
    optimizer, averaged, states = sgd(model), average(model), []
    if isinstance(averaged, ModelEmaV3):
        states.append(copy_of_state(model))
    for draw in range(1 if states else 2):
        step(model, optimizer, draw)
        states.append(copy_of_state(model))
        averaged.update(model) if isinstance(averaged, ModelEmaV3) else averaged.update_parameters(model)
    averaged.module.eval()(IMAGES)
    for key, value in copy_of_state(averaged.module).items():
        if value.is_floating_point() and "running" not in key:
            torch.testing.assert_close(value, (states[0][key] + states[1][key]) / 2)


@pytest.mark.parametrize("part", [nn.Sequential, lambda model: torch.compile(model, backend="eager")])
def test_a_module_that_it_is_a_part_of_loads_its_own_state_dict(part):
    source, target = (wrap(conv_net(seed), image_batch()[0]) for seed in (0, 1))
    train(source, image_batch())
    part(target).load_state_dict(part(source).state_dict())
    loss_of(target, image_batch())
    assert different_keys(copy_of_state(source), copy_of_state(target)) == []


# ---- Its config, its optimizer, its end -----------------------------------------------------------------------------


def test_the_config_is_its_own():
    config = TraDyConfig(0.3, "dynamic_full_random")
    model = TraDyModel(conv_net(), config, image_batch()[0])
    before = model.draw(1)
    config.seed, config.memory_budget = 7, 0.01
    after = model.draw(1)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_an_optimizer_that_lacks_the_active_channels_is_refused():
    model = TraDyModel(conv_net(), TraDyConfig(0.3, "dynamic_full_random"))
    early = sgd(model)
    model.calibrate(image_batch()[0])
    with pytest.raises(ValueError, match="the optimizer lacks the Parameter of the active channels"):
        model.resample(1, early)
    assert model.epoch == 0
    model.resample(1, sgd(model))


def test_a_training_in_which_no_channel_can_be_active_is_warned_of(caplog):
    logging.warning_once.cache_clear()
    model = TraDyModel(conv_net(), TraDyConfig(0.3, "dynamic_full_random"))
    for mode, grad, warnings in [(False, True, 0), (True, False, 0), (True, True, 1)]:
        with torch.set_grad_enabled(grad):
            model.train(mode)(image_batch()[0])
        assert caplog.text.count("No channels are active, so only the head trains") == warnings


def test_a_merged_model_is_no_more_and_leaves_the_plain_one_alone(tmp_path):
    model = wrap(bert(), inputs_of(token_batch()))
    train(model, token_batch())
    plain = model.merge_and_unload()
    optimizer = sgd(plain, 0.1)
    plain(**token_batch()).loss.backward()
    optimizer.step()
    state = copy_of_state(plain)
    model.save_pretrained(tmp_path)
    assert different_keys(state, copy_of_state(plain)) == []
    for use in (lambda: model.resample(1), lambda: model.calibrate(token_batch()), lambda: model.measure([])):
        with pytest.raises(ValueError, match="this model was merged and unloaded; wrap its base_model"):
            use()


def test_no_steps_are_no_measurement():
    model = wrap(conv_net(), image_batch()[0])
    with pytest.raises(ValueError, match=r"num_steps=0 \(ranking_steps of a Trainer\) is not allowed"):
        model.measure([image_batch()], num_steps=0)
