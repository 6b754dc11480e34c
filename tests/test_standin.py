import pytest
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from torch import nn

from hf_trady.layers import make_plain, make_sparse
from hf_trady.lean import make_lean
from hf_trady.standin import swap_out

from .tiny import (
    anatomy,
    bert,
    conv_net,
    copy_of_state,
    different_keys,
    gpt2,
    image_batch,
    inputs_of,
    lm_batch,
    token_batch,
    train,
    wrap,
)


def hooked(net: nn.Module) -> nn.Module:
    """`net` as `from_pretrained(device_map=...)` leaves it where it lies on several devices."""
    for module in net.modules():
        if next(module.parameters(recurse=False), None) is not None:
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    return net


@pytest.mark.parametrize(
    "make, batch", [(conv_net, image_batch), (bert, token_batch), (gpt2, lm_batch)], ids=["conv", "bert", "gpt2"]
)
def test_a_model_with_accelerates_hooks_trains_as_one_without(make, batch):
    data, states = batch(), []
    for net in (make(), hooked(make())):
        before = anatomy(net)["modules"]
        model = wrap(net, inputs_of(data))
        train(model, data)
        states.append(copy_of_state(model))
        model.merge_and_unload()
        assert anatomy(net)["modules"] == before
    assert different_keys(*states) == []
    assert different_keys(states[0], copy_of_state(make()))


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4), lambda: nn.LayerNorm(4), lambda: nn.BatchNorm1d(4)])
def test_hooks_run_the_forward_of_the_stand_in_while_it_stands_in(make):
    module = hooked(make())
    swap_in, back = (make_sparse, make_plain) if isinstance(module, nn.Linear) else (lean, swap_out)
    plain, forward = type(module), module.forward
    assert module._old_forward.__func__ is plain.forward
    swap_in(module)
    assert type(module) is not plain and module.forward is forward
    assert module._old_forward.__func__ is type(module).forward
    remove_hook_from_module(module)
    assert module.forward.__func__ is type(module).forward
    back(module)
    assert module.forward.__func__ is type(module).forward is plain.forward


def lean(module: nn.Module) -> nn.Module:
    return make_lean(module, "compressed")
