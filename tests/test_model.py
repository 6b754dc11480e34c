import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.layers import SparseLayer, read_channels

from .tiny import (
    anatomy,
    bert,
    conv_net,
    copy_of_state,
    different_keys,
    gpt2,
    image_batch,
    lm_batch,
    loss_of,
    ranking_of,
    timm_net,
    token_batch,
    train,
    wrap,
)


MAKERS = {
    "conv": (conv_net, image_batch()),
    "bert": (bert, token_batch()),
    "gpt2": (gpt2, lm_batch()),
    "timm": (timm_net, image_batch(size=32)),
}
every_model = pytest.mark.parametrize("make, batch", MAKERS.values(), ids=MAKERS)


def inputs_of(batch):
    return batch if isinstance(batch, dict) else batch[0]


def outputs_of(model, batch):
    if isinstance(batch, dict):
        output = model(**batch)
        return torch.stack([output.logits.sum() * 0 + output.loss]), output.logits
    return (model(batch[0]),)


# ---- Wrapping and unwrapping -----------------------------------------------------------------------------------------


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


# ---- State dicts and attributes --------------------------------------------------------------------------------------


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
        assert torch.equal(part, read_channels(model.layers[name][0], model.active_channels()[name]))


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


# ---- Drawing ---------------------------------------------------------------------------------------------------------


def same_draw(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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
        with pytest.raises(ValueError, match="smallest|biases"):
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
    assert weight <= model.active.numel() <= allowed
    head = 3 * 16 + 3
    assert model.get_nb_trainable_parameters() == (head + biases + weight, sum(p.numel() for p in net.parameters()))


def test_what_is_printed_has_pefts_format(capsys):
    model = wrap(conv_net(), image_batch()[0])
    model.print_trainable_parameters()
    trainable, total = model.get_nb_trainable_parameters()
    share = 100 * trainable / total
    expected = f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}\n"
    assert capsys.readouterr().out == expected


# ---- Training --------------------------------------------------------------------------------------------------------


def test_a_plain_loop_lowers_the_loss():
    batch = image_batch(12)
    model = wrap(conv_net(), batch[0], budget=0.2, strategy="trady")
    model.rank_layers([batch], num_steps=2, disable_tqdm=True)
    losses = train(model, batch, epochs=12, steps=5, lr=0.3)
    assert losses[-1] < 0.5 * losses[0]


@every_model
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_is_neither_head_nor_ever_drawn_is_bit_identical_after_training(make, batch, optimizer):
    model = wrap(make(), inputs_of(batch), budget=0.1)
    start = copy_of_state(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    kinds = {
        "sgd": lambda: torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.1),
        "adamw": lambda: torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1, fused=True),
    }
    train(model, batch, epochs=3, optimizer=kinds[optimizer]())
    end = model.state_dict()
    drawn = {}
    for epoch in range(3):
        for name, index in model.draw(epoch).items():
            drawn.setdefault(f"{name}.weight", set()).update(index.tolist())
    moved = set(different_keys(start, end))
    heads = {key for key in start if any(key.startswith(f"{head}.") for head in model.heads)}
    assert heads <= moved <= heads | set(drawn)
    for key in moved - heads:
        name = key.removesuffix(".weight")
        layer = model.layers[name][0]
        everything = torch.arange(model.costs[name].channels)
        now = read_channels(layer, everything)
        layer.weight.data.copy_(start[key])
        differs = (now != read_channels(layer, everything)).flatten(1).any(1)
        assert set(differs.nonzero().flatten().tolist()) <= drawn[key]
    assert moved - heads


@pytest.mark.parametrize("mode", ["frozen", "train"])
def test_batch_norm_statistics_move_only_in_norm_mode_train(mode):
    batch = image_batch()
    model = wrap(conv_net(), batch[0], norm_mode=mode)
    start = copy_of_state(model)
    train(model, batch)
    statistics = {key for key in start if "running" in key or "num_batches" in key}
    moved = set(different_keys(start, copy_of_state(model))) & statistics
    assert moved == (statistics if mode == "train" else set())


def test_train_bias_moves_the_biases_of_targets_and_norms_and_no_other():
    batch = token_batch()
    model = wrap(bert(), batch, train_bias=True, target_modules=["query"], modules_to_save=[])
    start = copy_of_state(model)
    train(model, batch)
    moved = set(different_keys(start, copy_of_state(model)))
    biases = {key for key in start if key.endswith(("query.bias", "LayerNorm.bias"))}
    assert biases == set(model.biases) and biases <= moved
    assert all(key.endswith("query.weight") for key in moved - biases)
    assert model.report().units >= sum(bias.numel() for bias in model.biases.values())


# ---- Copies and casts ------------------------------------------------------------------------------------------------


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("clone", [copy.deepcopy, pickled, saved_whole])
@pytest.mark.parametrize("when", ["new", "after a training forward", "trained"])
@pytest.mark.parametrize("kind", ["conv", "gpt2"])
def test_a_copy_equals_and_trains_apart_from_its_original(clone, when, kind):
    make, batch = MAKERS[kind]
    model = wrap(make(), inputs_of(batch))
    if when == "after a training forward":
        model.train()
        loss_of(model, batch)
        model.eval()
    elif when == "trained":
        train(model, batch)
    start = copy_of_state(model)
    twin = clone(model)
    assert different_keys(copy_of_state(twin), start) == []
    assert same_draw(twin.active_channels(), model.active_channels())
    losses = train(twin, batch)
    assert different_keys(copy_of_state(model), start) == [] and different_keys(copy_of_state(twin), start)
    assert train(model, batch) == losses
    assert different_keys(copy_of_state(model), copy_of_state(twin)) == []
    assert type(twin.merge_and_unload()) is type(make())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_casting_after_wrapping_trains_like_casting_before(dtype):
    images, labels = image_batch()
    batch = images.to(dtype), labels
    after, before = wrap(conv_net(), images).to(dtype), wrap(conv_net().to(dtype), batch[0])
    assert train(after, batch) == train(before, batch)
    assert different_keys(copy_of_state(after), copy_of_state(before)) == []
    assert after.report() == before.report()


def test_calibrating_again_after_training_keeps_what_was_trained():
    batch = image_batch()
    model = wrap(conv_net(), batch[0])
    train(model, batch)
    state, costs = copy_of_state(model), model.costs
    model.calibrate(batch[0])
    assert model.costs == costs and different_keys(copy_of_state(model), state) == []
    assert train(model, batch)[-1] < 5
