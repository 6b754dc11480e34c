import copy
import io
import pickle

import pytest
import torch

from hf_trady.layers import read_channels

from .tiny import (
    MODELS,
    bert,
    conv_net,
    copy_of_state,
    different_keys,
    image_batch,
    inputs_of,
    loss_of,
    same_draw,
    token_batch,
    train,
    wrap,
)


every_model = pytest.mark.parametrize("make, batch", MODELS.values(), ids=MODELS)


def test_a_plain_loop_lowers_the_loss():
    batch = image_batch(12)
    model = wrap(conv_net(), batch[0], budget=0.2, strategy="trady")
    model.measure([batch], num_steps=2, disable_tqdm=True)
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
    heads = {key for key in start if any(key.startswith(f"{head}.") for head in model._heads)}
    assert heads <= moved <= heads | set(drawn)
    for key in moved - heads:
        name = key.removesuffix(".weight")
        layer = model._layers[name][0]
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
    assert biases == set(model._biases) and biases <= moved
    assert all(key.endswith("query.weight") for key in moved - biases)
    assert model.report().units >= sum(model.base_model.get_parameter(key).numel() for key in biases)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("clone", [copy.deepcopy, pickled, saved_whole])
@pytest.mark.parametrize("when", ["new", "after a training forward", "trained"])
@pytest.mark.parametrize("kind", ["conv", "bert", "gpt2"])
def test_a_copy_equals_and_trains_apart_from_its_original(clone, when, kind):
    make, batch = MODELS[kind]
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
