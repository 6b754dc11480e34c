import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from torch import nn

from hf_trady.layers import make_plain, make_sparse, why_unsupported
from hf_trady.lean import LeanModule, make_lean
from hf_trady.standin import has_own_forward, swap_out

from .tiny import (
    anatomy,
    bert,
    conv_net,
    copy_of_state,
    different_keys,
    gpt2,
    hooked,
    image_batch,
    inputs_of,
    lm_batch,
    token_batch,
    train,
    wrap,
)


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
        assert not any(has_own_forward(module) for module in net.modules())
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


def test_a_layer_whose_forward_was_exchanged_is_refused_with_the_reason():
    layer, norm = nn.Linear(4, 4), nn.LayerNorm(4)
    layer.forward, norm.forward = nn.Linear(4, 4).forward, lambda x: 2 * x
    assert "its forward has been exchanged" in why_unsupported(layer)
    assert not isinstance(lean(norm), LeanModule)
    hooked(layer)  # hooks around it change nothing
    assert "its forward has been exchanged" in why_unsupported(layer)

    net = conv_net()
    net.hidden.forward = lambda x: 2 * x
    with pytest.raises(ValueError, match="'hidden' can't be trained by channel: its forward has been exchanged"):
        wrap(net, image_batch(1)[0], budget=1.0, target_modules=["stem", "hidden"])
    assert "hidden" not in wrap(net, image_batch(1)[0], budget=1.0)._targets


def test_what_is_put_around_a_stand_in_later_runs_it():
    layer = make_sparse(nn.Linear(4, 4))
    layer.forward = torch.no_grad()(layer.forward)
    assert why_unsupported(layer) is None and not has_own_forward(layer)
