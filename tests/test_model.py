import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.layers import SparseLayer, read_channels

from .tiny import (
    MODELS,
    anatomy,
    conv_net,
    copy_of_state,
    different_keys,
    gpt2,
    image_batch,
    inputs_of,
    lm_batch,
    loss_of,
    ranking_of,
    same_draw,
    train,
    wrap,
)


every_model = pytest.mark.parametrize("make, batch", MODELS.values(), ids=MODELS)


def outputs_of(model, batch):
    if isinstance(batch, dict):
        output = model(**batch)
        return torch.stack([output.logits.sum() * 0 + output.loss]), output.logits
    return (model(batch[0]),)


# ---- Wrapping and unwrapping ----------------------------------------------------------------------------------------


@every_model
def test_wrapping_changes_no_output_of_eval_mode_by_a_bit(make, batch):
    plain, model = make(), wrap(make(), inputs_of(batch))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            for expected, actual in zip(outputs_of(plain, batch), outputs_of(model, batch), strict=True):
                assert torch.equal(expected, actual)


@every_model
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_merging_leaves_no_trace(make, batch, mode):
    net = make().train(mode)
    for parameter in list(net.parameters())[:2]:
        parameter.requires_grad_(False)
    before, state = anatomy(net), copy_of_state(net)
    model = wrap(net, inputs_of(batch))
    assert anatomy(net) != before
    assert model.merge_and_unload() is net
    assert anatomy(net) == before
    assert different_keys(copy_of_state(net), state) == []


@every_model
def test_a_merged_model_holds_what_was_trained(make, batch):
    model = wrap(make(), inputs_of(batch))
    start = copy_of_state(model)
    train(model, batch)
    trained, outputs = copy_of_state(model), outputs_of(model, batch)
    plain = model.merge_and_unload()
    assert not any(isinstance(module, SparseLayer) for module in plain.modules())
    assert different_keys(copy_of_state(plain), trained) == [] and different_keys(trained, start)
    assert all(torch.equal(a, b) for a, b in zip(outputs, outputs_of(plain, batch), strict=True))


def test_a_model_is_not_wrapped_twice():
    model = wrap(conv_net(), image_batch()[0])
    before = anatomy(model)
    for again in (model, nn.Sequential(model), model.base_model, nn.Sequential(model.base_model)):
        with pytest.raises(ValueError, match="already a TraDyModel"):
            TraDyModel(again, TraDyConfig())
    assert anatomy(model) == before
    TraDyModel(model.merge_and_unload(), TraDyConfig(strategy="dynamic_full_random"), image_batch()[0])


@pytest.mark.parametrize("strategy, missing", [("trady", "ranking"), ("dynamic_full_random", "costs")])
def test_what_needs_costs_or_a_ranking_says_so(strategy, missing):
    model = TraDyModel(conv_net(), TraDyConfig(strategy=strategy), image_batch()[0] if missing == "ranking" else None)
    assert not model.is_ready
    expected = "needs a layer ranking" if missing == "ranking" else "pass example_inputs or call calibrate"
    for use in (lambda: model.draw(0), lambda: model.resample(0), model.report, model.print_trainable_parameters):
        with pytest.raises(ValueError, match=expected):
            use()
    if missing == "costs":
        model.calibrate(image_batch()[0])
    else:
        model.set_layer_ranking(ranking_of(model.costs))
    assert model.is_ready and model.report().units <= model.budget


# ---- State dicts and attributes -------------------------------------------------------------------------------------


@every_model
def test_the_state_dict_is_the_base_models_and_loads_both_ways(make, batch):
    plain, model = make(seed=1), wrap(make(), inputs_of(batch))
    train(model, batch)
    state = copy_of_state(model)
    plain.load_state_dict(state, strict=True)
    assert different_keys(copy_of_state(plain), state) == []

    other = copy_of_state(make(seed=2))
    model.load_state_dict(other, strict=True)
    assert different_keys(copy_of_state(model), other) == []
    ((names, flat),) = _flats(model)
    for name, part in model.active._split(names, flat, model.active.selection):  # what trains from now on is that too
        assert torch.equal(part, read_channels(model._layers[name][0], model.active_channels()[name]))


def _flats(model):
    return zip(model.active.groups, model.active.flat, strict=True)


def test_generating_with_the_wrapped_and_the_merged_model_gives_the_same_tokens():
    batch = lm_batch()
    model = wrap(gpt2(), batch)
    assert model.config is model.base_model.config and model.config.n_layer == 2
    untrained = model.generate(batch["input_ids"], do_sample=False, max_new_tokens=8)
    train(model, batch, epochs=4, lr=0.5)
    tokens = model.generate(batch["input_ids"], do_sample=False, max_new_tokens=8)
    assert torch.equal(
        tokens, model.merge_and_unload().generate(batch["input_ids"], do_sample=False, max_new_tokens=8)
    )
    assert not torch.equal(tokens, untrained)


def test_an_attribute_that_nobody_has_is_an_attribute_error():
    model = wrap(conv_net(), image_batch()[0])
    assert not hasattr(model, "nobody_has_this") and not hasattr(model, "generate")
    assert model.stem is model.base_model.stem


# ---- Drawing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["dynamic_full_random", "static_full_random", "trady", "static_topk_random"])
def test_only_dynamic_strategies_draw_again(strategy):
    model = wrap(conv_net(), image_batch()[0], budget=0.3, strategy=strategy)
    model.set_layer_ranking(ranking_of(model.costs))
    draws = []
    for epoch in range(4):
        model.resample(epoch)
        assert model.epoch == epoch and same_draw(model.active_channels(), model.draw(epoch))
        draws.append(model.active_channels())
    dynamic = strategy in ("dynamic_full_random", "trady")
    assert all(same_draw(draws[0], draw) != dynamic for draw in draws[1:])


def test_resampling_the_same_epoch_changes_nothing_not_even_gradients_and_optimizer_state():
    batch = image_batch()
    model = wrap(conv_net(), batch[0])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    loss_of(model, batch).backward()
    optimizer.step()
    (flat,) = model.active.flat
    before, value, gradient = copy.deepcopy(optimizer.state_dict()), flat.detach().clone(), flat.grad.clone()
    model.resample(0, optimizer)
    assert torch.equal(flat, value) and torch.equal(flat.grad, gradient)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i][key], before["state"][i][key]) for i in after for key in after[i])


@pytest.mark.parametrize("mode", ["reset", "carry"])
def test_the_optimizer_state_of_a_new_draw(mode):
    batch = image_batch()
    model = wrap(conv_net(), batch[0], budget=0.6, optimizer_state=mode)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for _ in range(2):
        loss_of(model, batch).backward()
        optimizer.step()
    (flat,) = model.active.flat
    old = _by_channel(model, optimizer.state[flat]["exp_avg"])
    head = optimizer.state[model.classifier.weight]["exp_avg"].clone()
    model.resample(1, optimizer)
    assert flat.grad is None
    assert torch.equal(optimizer.state[model.classifier.weight]["exp_avg"], head)
    if mode == "reset":
        assert flat not in optimizer.state
        return
    new = _by_channel(model, optimizer.state[flat]["exp_avg"])
    stayed = old.keys() & new.keys()
    assert stayed and new.keys() - stayed and any(old[channel].any() for channel in stayed)
    assert all(torch.equal(new[channel], old[channel]) for channel in stayed)
    assert not any(new[channel].any() for channel in new.keys() - stayed)


def test_the_quantized_state_of_an_8_bit_optimizer_is_reset_rather_than_mixed_up():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    net = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 3))
    x = torch.randn(8, 128)
    model = wrap(net, x, modules_to_save=["2"], optimizer_state="carry")
    optimizer = bitsandbytes.optim.Lion8bit([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model(x).square().sum().backward()
    optimizer.step()
    (flat,) = model.active.flat
    assert optimizer.state[flat]["state1"].dtype == torch.uint8
    model.resample(1, optimizer)
    assert flat not in optimizer.state
    flat.grad, before = torch.zeros_like(flat), flat.detach().clone()
    optimizer.step()
    assert torch.equal(flat, before)


def _by_channel(model, tensor) -> dict:
    """(layer, channel) -> its part of `tensor`, shaped like the only flat Parameter."""
    ((names, _),) = _flats(model)
    parts = dict(model.active._split(names, tensor, model.active.selection))
    return {
        (name, channel): parts[name][i].clone()
        for name, index in model.active_channels().items()
        for i, channel in enumerate(index.tolist())
    }


@settings(max_examples=30, deadline=None)
@given(budget=st.floats(0.02, 1.0), seed=st.integers(0, 2**62), epoch=st.integers(0, 999), bias=st.booleans())
def test_the_report_agrees_with_a_count_by_hand_and_never_exceeds_the_budget(budget, seed, epoch, bias):
    net = conv_net()
    outputs = {"stem": 6 * 6, "depthwise": 6 * 6, "pointwise": 6 * 6, "hidden": 1}
    inputs = {"stem": 12 * 12, "depthwise": 6 * 6, "pointwise": 6 * 6, "hidden": 1}
    channels = {"stem": 3, "depthwise": 8, "pointwise": 8, "hidden": 16}
    weights = {name: net.get_submodule(name).weight.numel() // channels[name] for name in channels}
    total_weight = sum(channels[name] * weights[name] for name in channels)
    total_input = sum(channels[name] * inputs[name] for name in channels)
    total_macs = sum(channels[name] * weights[name] * outputs[name] for name in channels)
    # Biases of the layers (the stem has none) and shifts of the two batch-norms; not the head's.
    biases = (8 + 16 + 16) + (8 + 8) if bias else 0

    allowed = int(budget * (total_weight + total_input))
    config = TraDyConfig(budget, "dynamic_full_random", seed=seed, train_bias=bias)
    if allowed - biases < min(weights[name] + inputs[name] for name in channels):
        with pytest.raises(ValueError, match=r"smallest|biases"):
            TraDyModel(net, config, image_batch(2)[0])
        return
    model = TraDyModel(net, config, image_batch(2)[0])
    report = model.resample(epoch)
    active = {name: len(index) for name, index in model.active_channels().items()}
    weight = sum(n * weights[name] for name, n in active.items())
    activation = sum(n * inputs[name] for name, n in active.items())
    assert (report.epoch, report.budget, report.units) == (epoch, allowed, weight + activation + biases)
    assert report.units <= report.budget
    assert report.weight_sparsity == pytest.approx(1 - weight / total_weight)
    assert report.activation_sparsity == pytest.approx(1 - activation / total_input)
    macs = sum(n * weights[name] * outputs[name] for name, n in active.items())
    assert report.flops_saved == pytest.approx(1 - macs / total_macs)
    assert (report.weight_bytes, report.activation_bytes) == (4 * weight, 4 * activation)
    assert (report.active_layers, report.active_channels) == (len(active), sum(active.values()))
    assert (report.total_layers, report.total_channels) == (4, 35)
    assert weight <= sum(flat.numel() for flat in model.active.flat) <= allowed
    head = 3 * 16 + 3
    assert model.get_nb_trainable_parameters() == (head + biases + weight, sum(p.numel() for p in net.parameters()))


def test_what_is_printed_has_pefts_format(capsys):
    model = wrap(conv_net(), image_batch()[0])
    model.print_trainable_parameters()
    trainable, total = model.get_nb_trainable_parameters()
    share = 100 * trainable / total
    expected = f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}\n"
    assert capsys.readouterr().out == expected


def test_a_ranking_that_leaves_only_dear_layers_is_refused_and_changes_nothing():
    costs = wrap(conv_net(), image_batch(1)[0]).costs
    cheapest = min(row.space for row in costs)
    dearest = max(costs, key=lambda row: row.space)
    model = wrap(conv_net(), image_batch(1)[0], budget=cheapest, strategy="trady", num_layers=1)
    with pytest.raises(ValueError, match="smallest"):
        model.set_layer_ranking(ranking_of(costs, **{dearest.name: 9.0}))
    assert model.layer_ranking is None and not model.is_ready
    cheap = min(costs, key=lambda row: row.space)
    model.set_layer_ranking(ranking_of(costs, **{cheap.name: 9.0}))
    assert set(model.active_channels()) == {cheap.name}


def test_what_is_no_config_is_refused_with_nothing_changed():
    net = conv_net()
    before = anatomy(net)
    with pytest.raises(ValueError, match=r"^config must be a TraDyConfig, not a dict; pass TraDyConfig\(...\)$"):
        TraDyModel(net, {"memory_budget": 0.1})
    assert anatomy(net) == before


@pytest.mark.parametrize("strategy", ["dynamic_full_random", "static_full_random", "medyate"])
@pytest.mark.parametrize("epoch", [-1, 1.5, None])
def test_a_draw_of_no_number_is_refused_with_nothing_changed(strategy, epoch):
    model = wrap(conv_net(), image_batch(1)[0], strategy=strategy)
    model.set_layer_ranking(ranking_of(model.costs))
    channels, scores = model.active_channels(), model.channel_scores
    for call in (model.resample, model.draw):
        with pytest.raises(ValueError, match=rf"^epoch={epoch} is not allowed; it must be the number of a draw"):
            call(epoch)
    assert model.epoch == 0 and same_draw(model.active_channels(), channels) and model.channel_scores is scores


def test_gradients_of_channels_that_are_not_drawn_yet_are_not_observed():
    with pytest.raises(ValueError, match="costs of channels are unknown yet; pass example_inputs or call calibrate"):
        TraDyModel(conv_net(), TraDyConfig(strategy="medyate")).observe()
