"""Layers that train output channels: our gradient is that of these rows of autograd's full gradient."""

import copy

import pytest
import torch
from against_autograd import active_channels, fill, random_like
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_trady.layers import channel_shape, make_plain, make_sparse, num_channels, read_channels, write_channels


LAYERS = {
    "linear": (lambda: nn.Linear(5, 6), (4, 3, 5)),
    "conv1d": (lambda: Conv1D(6, 5), (4, 3, 5)),
    "pointwise": (lambda: nn.Conv2d(4, 6, 1, stride=2), (2, 4, 6, 5)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, bias=False), (2, 4, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3, padding=1), (2, 3, 5, 5)),
}


def rows(layer, gradient):
    return gradient.t() if isinstance(layer, Conv1D) else gradient


@pytest.mark.parametrize("kind", LAYERS)
@given(index=active_channels(6), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_the_gradient_is_that_of_the_rows(kind, index, seed):
    check(kind, index, seed)


@pytest.mark.parametrize("kind", ["grouped", "depthwise"])
def test_more_rows_than_are_taken_at_once(kind, monkeypatch):
    monkeypatch.setattr("hf_trady.layers.convolution.GROUPS_AT_ONCE", 2)
    check(kind, [0, 1, 3, 4, 5], 1)


def check(kind, index, seed):
    make, shape = LAYERS[kind]
    full = fill(make().double(), seed)
    x = random_like(torch.empty(shape, dtype=torch.float64), seed)
    sparse = make_sparse(copy.deepcopy(full))
    sparse.by_output = True
    assert num_channels(sparse) == 6
    sparse.weight.requires_grad_(False)
    sparse.active_index = torch.tensor(index)
    sparse.active_view = read_channels(sparse, sparse.active_index).requires_grad_()
    assert sparse.active_view.shape == (len(index), *channel_shape(sparse))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(one) for layer, one in zip((full, sparse), inputs, strict=True)]
    cotangent = random_like(outputs[0], 5)
    for output in outputs:
        output.backward(cotangent)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(outputs[1], outputs[0], **close)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, **close)
    torch.testing.assert_close(sparse.active_view.grad, rows(full, full.weight.grad)[index], **close)
    # Written back, they are these rows and nothing else.
    before = sparse.weight.clone()
    write_channels(sparse, sparse.active_index, torch.zeros_like(sparse.active_view))
    changed = (rows(sparse, before) != rows(sparse, sparse.weight)).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == index
    assert num_channels(make_plain(sparse)) == shape[-1 if len(shape) == 3 else 1]
