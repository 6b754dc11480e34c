"""A model that `fully_shard` has split trains as it does unsplit: here in one process, in `two_processes` in two."""

import gc
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from hf_trady import TraDyModel
from hf_trady.layers import is_sharded, num_channels, read_channels, whole, write_channels

from .tiny import MODELS, copy_of_state, different_keys, inputs_of, train, wrap


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(model: TraDyModel) -> TraDyModel:
    """`model`, each block of which, or each layer where it has no blocks, is split on its own."""
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    for block in max(lists, key=len) if lists else model.base_model.children():
        if next(block.parameters(), None) is not None:
            fully_shard(block)
    return fully_shard(model)


def whole_state(model: TraDyModel) -> dict[str, torch.Tensor]:
    return {key: whole(value).clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", MODELS)
def test_a_split_model_trains_as_one_that_is_not_and_saves_the_same_file(kind, tmp_path):
    make, batch = MODELS[kind]
    config = {"optimizer_state": "carry", "train_bias": True}
    one, two = (wrap(make(), inputs_of(batch), **config) for _ in range(2))
    sharded(two)
    losses, start = [], copy_of_state(one)
    for model in (one, two):
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=0.01, eps=1e-3)  # its own would enlarge rounding errors
        losses.append(train(model, batch, optimizer=optimizer))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    assert all(is_sharded(parameter) for parameter in two.parameters())
    end, expected = whole_state(two), copy_of_state(one)
    torch.testing.assert_close(end, expected, rtol=1e-5, atol=1e-6)
    assert set(different_keys(start, end)) == set(different_keys(start, expected)) and different_keys(start, end)

    two.save_pretrained(tmp_path)
    restored = TraDyModel.from_pretrained(tmp_path, make())
    assert different_keys(copy_of_state(restored), end) == []
    again = sharded(wrap(make(), inputs_of(batch), **config))
    again.load_trained(tmp_path)
    assert different_keys(whole_state(again), end) == []


@pytest.mark.parametrize("kind", MODELS)
def test_channels_of_a_split_model_are_those_of_the_whole_one(kind):
    make, batch = MODELS[kind]
    one = wrap(make(), inputs_of(batch))
    two = sharded(wrap(make(), inputs_of(batch)))
    for name, modules in one._layers.items():
        index = torch.arange(0, num_channels(modules[0]), 2)
        values = read_channels(modules[0], index)
        layer = two._layers[name][0]
        assert torch.equal(read_channels(layer, index), values)
        write_channels(layer, index, values + 1)
        write_channels(modules[0], index, values + 1)
        assert torch.equal(whole(layer.weight), modules[0].weight)


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_holds_the_whole_weights_of_a_split_model(kind):
    make, batch = MODELS[kind]
    network = make()
    weights = [weakref.ref(parameter) for parameter in network.parameters()]
    model = sharded(wrap(network, inputs_of(batch), train_bias=True))
    gc.collect()
    assert all(is_sharded(parameter) for parameter in model.parameters())
    assert not any(weight() is not None for weight in weights)


def test_a_split_model_refuses_what_needs_whole_weights():
    make, batch = MODELS["conv"]
    model = sharded(wrap(make(), inputs_of(batch)))
    before = whole_state(model)
    with pytest.raises(ValueError, match="before you shard"):
        model.load_state_dict(before)
    with pytest.raises(ValueError, match="from_pretrained"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="on every process, with is_main_process="):
        model.push_to_hub("me/split")
    assert model.push_to_hub("me/split", is_main_process=False) is None  # has its part in what another one uploads
    assert different_keys(whole_state(model), before) == []
