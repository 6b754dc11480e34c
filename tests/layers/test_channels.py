import copy

import pytest
import torch
from against_autograd import active_channels, gradient_slice
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_trady.layers import channel_shape, make_sparse, num_channels, read_channels, write_channels


LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), 5, (3,)),
    "conv1d": (lambda: Conv1D(3, 5), 5, (3,)),
    "conv": (lambda: nn.Conv2d(5, 4, (3, 2)), 5, (4, 3, 2)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), 6, (2, 3, 3)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), 4, (2, 3, 3)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_numbers_and_shapes(kind):
    make, channels, shape = LAYERS[kind]
    for layer in (make(), make_sparse(make())):
        assert num_channels(layer) == channels
        assert channel_shape(layer) == shape
        assert num_channels(layer) * torch.Size(shape).numel() == layer.weight.numel()


@pytest.mark.parametrize("kind", LAYERS)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_write_then_read(kind, data):
    make, channels, shape = LAYERS[kind]
    layer = make() if data.draw(st.booleans()) else make_sparse(make())
    index = data.draw(active_channels(channels))
    others = torch.tensor([channel for channel in range(channels) if channel not in index], dtype=torch.int64)
    before = copy.deepcopy(layer)

    values = torch.randn(len(index), *shape)
    write_channels(layer, torch.tensor(index), values)
    assert torch.equal(read_channels(layer, torch.tensor(index)), values)
    assert torch.equal(gradient_slice(layer, layer.weight.detach(), index), values)
    assert torch.equal(read_channels(layer, others), read_channels(before, others))

    write_channels(layer, torch.tensor(index), read_channels(before, torch.tensor(index)))
    assert torch.equal(layer.weight, before.weight)


@pytest.mark.parametrize("kind", LAYERS)
def test_reading_copies(kind):
    layer = LAYERS[kind][0]()
    before = layer.weight.detach().clone()
    read_channels(layer, torch.tensor([0, 1])).zero_()
    assert torch.equal(layer.weight, before)


def test_writing_converts_to_the_dtype_of_the_weight():
    layer = nn.Linear(3, 2).bfloat16()
    write_channels(layer, torch.tensor([1]), torch.tensor([[1.0, 2.0]]))
    assert layer.weight.dtype == torch.bfloat16 and layer.weight[:, 1].tolist() == [1.0, 2.0]


def test_writing_between_forward_and_backward_is_allowed():
    layer, x = nn.Linear(3, 2), torch.randn(4, 3, requires_grad=True)
    output = layer(x).sum()
    write_channels(layer, torch.tensor([1]), read_channels(layer, torch.tensor([1])))
    output.backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(4, 3))
