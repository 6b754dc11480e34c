"""Copies of a model stand on their own: `copy.deepcopy` and `pickle`."""

import copy
import pickle

import pytest

from .tiny import MODELS, copy_of_state, different_keys, inputs_of, loss_of, ranking_of, train, wrap


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}
CONFIGS = {"random": {}, "observed": {"strategy": "medyate"}, "lean": {"lean_backward": "compressed"}}


def tensors(model) -> set[int]:
    return {value.data_ptr() for value in model.state_dict(keep_vars=True).values() if value.numel()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", MODELS)
def test_a_copy_shares_nothing_and_trains_as_the_original_would(kind, make_copy, config):
    make, batch = MODELS[kind]
    model = wrap(make(), inputs_of(batch), **config)
    if not model.is_ready:
        model.set_layer_ranking(ranking_of(model.costs))
    train(model, batch, epochs=2)
    twin, before = make_copy(model), copy_of_state(model)
    assert different_keys(before, copy_of_state(twin)) == [] and not tensors(model) & tensors(twin)

    optimized = {id(parameter) for parameter in twin.parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in twin.active.flat} <= optimized
    modules = set(twin.base_model.modules())
    assert all(layer in modules for layers in twin.active.layers.values() for layer in layers)

    losses = train(twin, batch)
    assert different_keys(before, copy_of_state(model)) == []
    assert train(model, batch) == losses
    assert different_keys(copy_of_state(model), copy_of_state(twin)) == []
    assert different_keys(before, copy_of_state(model))
    assert twin.merge_and_unload() is twin.base_model


@pytest.mark.parametrize("kind", ["conv", "bert"])
def test_a_copy_can_be_made_between_forward_and_backward(kind):
    make, batch = MODELS[kind]
    model = wrap(make(), inputs_of(batch)).train()
    loss = loss_of(model, batch)
    twin = copy.deepcopy(model)
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.active.flat)
    assert all(parameter.grad is None for parameter in twin.active.flat)
    loss_of(twin, batch).backward()
    for ours, theirs in zip(model.active.flat, twin.active.flat, strict=True):
        assert (ours.grad == theirs.grad).all()
