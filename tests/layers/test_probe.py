"""What a probe estimates is, in expectation, the norm of autograd's own gradient."""

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_trady.layers import channel_shape, make_sparse
from hf_trady.layers.probe import Probe
from hf_trady.selection import channel_norms


LAYERS = {
    "linear": (lambda: nn.Linear(6, 24), (5, 7, 6)),
    "conv1d": (lambda: Conv1D(24, 6), (5, 7, 6)),
    "pointwise": (lambda: nn.Conv2d(6, 24, 1), (3, 6, 5, 5)),
    "conv": (lambda: nn.Conv2d(6, 24, 3, stride=2, padding=1, bias=False), (3, 6, 8, 8)),
    "same": (lambda: Conv2dSame(6, 24, 3, stride=2), (3, 6, 9, 8)),
    "grouped": (lambda: nn.Conv2d(6, 24, 3, groups=2, dilation=2), (3, 6, 9, 9)),
}


def gradients(make, shape, probe_of, calls=1):
    """The probe after its two passes, and the norms of autograd's gradient, `[C]`, of a loss of `calls` calls."""
    torch.manual_seed(0)
    layer, plain = make_sparse(make()), make()
    plain.load_state_dict(layer.state_dict())
    inputs = [torch.randn(shape) for _ in range(calls)]
    weights = [torch.randn_like(plain(x)) for x in inputs]
    sum((plain(x) * w).sum() for x, w in zip(inputs, weights, strict=True)).backward()
    layer.weight.requires_grad_(False)
    layer.active_index = torch.tensor([0])
    layer.active_view = torch.zeros(1, *channel_shape(layer), requires_grad=True)
    probe = layer.probe = probe_of(layer)
    sum((layer(x) * w).sum() for x, w in zip(inputs, weights, strict=True)).backward()
    layer.probe = None
    handle = layer.register_forward_pre_hook(probe.see_input, with_kwargs=True)
    for x in inputs:
        layer(x)
    handle.remove()
    return probe, channel_norms(plain, plain.weight.grad)


def exact(layer):
    """Directions that are all the outputs, one by one, lose nothing."""
    probe = Probe(layer, 1, torch.Generator())
    outputs = probe.num_outputs
    probe.directions = (torch.eye(outputs) * outputs**0.5).repeat(probe.groups, 1)
    probe.projects = True
    return probe


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_with_a_direction_for_every_output_the_norm_is_exact(kind, calls):
    probe, expected = gradients(*LAYERS[kind], exact, calls)
    assert torch.allclose(probe.norms(), expected, rtol=1e-4)


def test_of_a_depthwise_convolution_too():
    probe, expected = gradients(lambda: nn.Conv2d(6, 12, 3, groups=6, padding=1), (3, 6, 8, 8), exact)
    assert torch.allclose(probe.norms(), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_random_directions_are_right_in_expectation(kind):
    squares, draws, number = 0.0, 150, 8
    generator = torch.Generator().manual_seed(1)
    for _ in range(draws):
        probe, expected = gradients(*LAYERS[kind], lambda layer: Probe(layer, number, generator))
        assert probe.projects and all(call.kept is None for call in probe.calls)
        squares = squares + probe.norms() ** 2
    error = (squares / draws / expected**2 - 1).abs()
    assert error.max() < 4 * (2 / (number * draws)) ** 0.5


def test_moments_are_exact_where_the_input_is_the_same_everywhere():
    torch.manual_seed(0)
    make = lambda: nn.Conv2d(4, 8, 1, groups=4)  # noqa: E731
    layer, plain = make_sparse(make()), make()
    x = torch.randn(1, 4, 1, 1).expand(3, 4, 5, 5).contiguous()
    weight = torch.randn(3, 8, 5, 5)
    (plain(x) * weight).sum().backward()
    layer.weight.requires_grad_(False)
    layer.active_index, layer.active_view = torch.tensor([0]), torch.zeros(1, 2, 1, 1, requires_grad=True)
    probe = layer.probe = Probe(layer, 4, torch.Generator())
    assert not probe.projects
    (layer(x) * weight).sum().backward()
    layer.probe = None
    probe.see_input(layer, (x,), {})
    assert torch.allclose(probe.norms(), channel_norms(plain, plain.weight.grad), rtol=1e-3)


def test_a_layer_that_no_gradient_came_to_has_none():
    layer = make_sparse(nn.Linear(3, 4))
    probe = Probe(layer, 2, torch.Generator())
    probe.begin()
    probe.see_input(layer, (torch.ones(2, 3),), {})
    assert probe.norms().tolist() == [0, 0, 0]


def test_calls_without_gradients_are_looked_at_neither_time():
    def loss(layer, x):
        with torch.no_grad():
            layer(3 * x)
        return (layer(x) ** 2).sum()

    torch.manual_seed(0)
    layer, plain, x = make_sparse(nn.Linear(3, 9)), nn.Linear(3, 9), torch.randn(4, 3)
    plain.load_state_dict(layer.state_dict())
    loss(plain, x).backward()
    layer.weight.requires_grad_(False)
    layer.active_index, layer.active_view = torch.tensor([0]), torch.zeros(1, 9, requires_grad=True)
    probe = layer.probe = exact(layer)
    loss(layer, x).backward()
    layer.probe = None
    handle = layer.register_forward_pre_hook(probe.see_input, with_kwargs=True)
    loss(layer, x)
    handle.remove()
    assert torch.allclose(probe.norms(), channel_norms(plain, plain.weight.grad), rtol=1e-4)


def test_a_second_forward_that_does_not_come_by_is_told():
    layer = make_sparse(nn.Linear(6, 24))
    layer.weight.requires_grad_(False)
    layer.active_index, layer.active_view = torch.tensor([0]), torch.zeros(1, 24, requires_grad=True)
    layer.probe = Probe(layer, 8, torch.Generator())
    layer(torch.randn(5, 6)).sum().backward()
    with pytest.raises(ValueError, match="reentrant"):
        layer.probe.norms()
