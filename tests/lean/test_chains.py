import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from hf_trady.fake import fake_copy, fake_inputs, fake_mode
from hf_trady.lean import Chain, find_chains, make_model_lean

from ..test_whole_models import llama
from ..tiny import wrap


def chains(model, size=16):
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.training = False
    mode = fake_mode()
    fake, inputs = fake_copy(model, mode), fake_inputs(torch.zeros(2, 3, size, size), mode)
    with mode:
        return find_chains(fake, *inputs)


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.drop, self.body = nn.Dropout(0.5), forward

    def forward(self, x):
        return self.body(self, x)


def after(net, x):
    return net.act(net.norm(net.conv(x)))


def test_a_norm_and_an_activation_that_follow_are_found():
    assert chains(Net(lambda net, x: after(net, x).mean())) == [Chain("conv", "norm", "act")]


@pytest.mark.parametrize(
    "forward, found",
    {
        "norm read twice": (
            lambda net, x: (y := net.norm(net.conv(x))).sum() + net.act(y).sum(),
            Chain("conv", "norm"),
        ),
        "norm returned": (lambda net, x: ((y := net.norm(net.conv(x))), net.act(y)), Chain("conv", "norm")),
        "conv read twice": (lambda net, x: (y := net.conv(x)).sum() + net.act(net.norm(y)).sum(), None),
        "conv returned": (lambda net, x: ((y := net.conv(x)), net.act(net.norm(y))), None),
        "a view of conv kept": (
            lambda net, x: (v := (y := net.conv(x))[:1]).sum() + net.norm(y).sum() + v.sum(),
            None,
        ),
        "dropout between": (lambda net, x: net.act(net.norm(net.drop(net.conv(x)))), None),
        "dropout behind the norm": (lambda net, x: net.act(net.drop(net.norm(net.conv(x)))), Chain("conv", "norm")),
        "conv called twice": (lambda net, x: after(net, x) + after(net, x), None),
    }.values(),
)
def test_whatever_else_reads_an_output_keeps_modules_apart(forward, found):
    assert chains(Net(forward)) == ([] if found is None else [found])


def test_an_activation_behind_a_layer_without_a_norm_is_found():
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 8), nn.GELU(), nn.Linear(8, 2))
    assert chains(conv) == [Chain("0", None, "1"), Chain("3", None, "4")]


def test_an_activation_that_the_model_does_without_in_training_is_not_found():
    net = llama()
    make_model_lean(net, net.modules(), "compressed")
    mode = fake_mode()
    fake, inputs = fake_copy(net, mode), fake_inputs({"input_ids": torch.zeros(1, 4, dtype=torch.long)}, mode)
    with mode:
        assert find_chains(fake.train(), *inputs) == []


def test_real_networks():
    assert len(chains(timm.create_model("mobilenetv2_035"), 32)) == 52
    resnet = chains(torchvision.models.resnet18(), 32)  # calls one ReLU twice a block
    assert len(resnet) == 20 and sum(chain.activation is not None for chain in resnet) == 9
    assert len(chains(timm.create_model("resnetv2_50"), 32)) < 54  # normalizes before it convolves


class Shared(nn.Module):
    """Two layers, whose outputs one activation takes in turn, as it does whatever a hook makes of them."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)

    def forward(self, x):
        first, second = self.first(x), self.second(x)
        return self.head(self.act(first) + self.act(second))


@pytest.mark.parametrize("hook", [None, lambda module, args, output: 2 * output, lambda *_: None])
def test_an_activation_of_two_layers_is_applied_once_to_each(hook):
    torch.manual_seed(0)
    plain, x = Shared(), torch.randn(4, 6, requires_grad=True)
    model = wrap(copy.deepcopy(plain), x.detach(), lean_backward="exact").train()
    for net in (plain, model.base_model):
        if hook is not None:
            net.first.register_forward_hook(hook)
    expected, actual = plain(x), model(x)
    torch.testing.assert_close(actual, expected)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (expected, actual)]
    torch.testing.assert_close(grads[1], grads[0])
