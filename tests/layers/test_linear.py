import copy

import pytest
import torch
from against_autograd import (
    active_channels,
    check_against_autograd,
    fill,
    gradient_slice,
    random_like,
    recorded_saves,
    saved_apart_from_weights,
    sparse_copy,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from hf_trady.layers import make_sparse, why_unsupported
from hf_trady.lean.gates import Gate


def linear(channels, outputs, bias):
    return nn.Linear(channels, outputs, bias=bias)


def conv1d(channels, outputs, bias):
    return Conv1D(outputs, channels)  # always has a bias


def falcon(channels, outputs, bias):
    return FalconLinear(channels, outputs, bias=False)  # with one it can't be trained by channel


@st.composite
def cases(draw, dtype=torch.float64):
    channels, outputs = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    layer = draw(st.sampled_from([linear, conv1d, falcon]))(channels, outputs, draw(st.booleans())).to(dtype)
    seed = draw(st.integers(0, 1000))
    leading = draw(st.lists(st.integers(0, 3), max_size=4))
    x = random_like(torch.empty(*leading, channels, dtype=dtype), seed + 7)
    return fill(layer, seed), x, draw(active_channels(channels))


@given(cases())
@settings(max_examples=150, deadline=None)
def test_gradient_is_the_slice_of_the_full_one_and_only_the_slice_of_x_is_saved(case):
    check_against_autograd(*case)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_without_active_channels_nothing_of_x_is_saved(case):
    layer, x, _ = case
    check_against_autograd(layer, x, [])


@given(cases(), st.data())
@settings(max_examples=40, deadline=None)
def test_non_contiguous_inputs(case, data):
    layer, x, index = case
    assume(isinstance(layer, nn.Linear))  # transformers' Conv1D wants its input contiguous
    order = data.draw(st.permutations(range(x.dim())))
    moved = x.permute(order).contiguous().permute([order.index(dim) for dim in range(x.dim())])
    check_against_autograd(layer, moved, index)


@pytest.mark.parametrize("make", [linear, conv1d, falcon])
@pytest.mark.parametrize("index", [[], [1, 2]])
def test_a_model_may_change_the_output_in_place(make, index):
    layer, x = fill(make(4, 3, True).double(), 0), random_like(torch.empty(2, 5, 4, dtype=torch.float64), 7)
    full, sparse = copy.deepcopy(layer), sparse_copy(layer, index)
    grads = []
    for part in (full, sparse):
        part_x = x.clone().requires_grad_()
        output = part(part_x * 1.0)
        output[:, 0] = 1.0
        output.transpose(0, 1).div_(2.0)  # of a view, too
        output.square().sum().backward()
        grads.append(part_x.grad)
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
    if index:
        expected = gradient_slice(layer, full.weight.grad, index)
        torch.testing.assert_close(sparse.active_view.grad, expected, rtol=1e-9, atol=1e-9)


@given(cases(torch.float32))
@settings(max_examples=30, deadline=None)
def test_autocast(case):
    layer, x, index = case
    sparse, full = sparse_copy(layer, index), copy.deepcopy(layer)
    with torch.autocast("cpu", torch.bfloat16), recorded_saves() as saved:
        output = sparse(x.requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        expected = full(x)
    assert output.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=5e-2)

    slices = [t for t in saved if t.shape == (*x.shape[:-1], len(index)) and torch.equal(t, x[..., index].bfloat16())]
    assert slices and all(t.dtype == torch.bfloat16 for t in slices)
    cotangent = random_like(expected, 5)
    output.backward(cotangent)
    expected.backward(cotangent)
    full_slice = gradient_slice(layer, full.weight.grad, index)
    assert sparse.active_view.grad.dtype == torch.float32
    torch.testing.assert_close(
        sparse.active_view.grad, full_slice, rtol=3e-2, atol=3e-2 * (1 + full_slice.abs().max())
    )


def test_autocast_leaves_double_precision_alone():
    layer, x = fill(nn.Linear(4, 3).double(), 0), torch.randn(2, 4, dtype=torch.float64)
    sparse = sparse_copy(layer, [1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(sparse(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("make", [linear, conv1d, falcon])
def test_without_gradients_the_plain_layer_runs(make, context):
    layer, x = fill(make(6, 3, True), 0), torch.randn(2, 6)
    sparse = sparse_copy(layer, [0, 5]).eval()
    with torch.no_grad():
        sparse.active_view.fill_(7)  # would show if it took part
    with context(), recorded_saves() as saved:
        output = sparse(x)
    assert torch.equal(output, layer(x)) and not output.requires_grad and not saved


def test_an_input_that_needs_no_gradient():
    layer, x = fill(nn.Linear(6, 3).double(), 0), torch.randn(4, 6, dtype=torch.float64)
    sparse = sparse_copy(layer, [2, 3])
    with recorded_saves() as saved:
        output = sparse(x)
    output.square().sum().backward()
    layer(x).square().sum().backward()
    torch.testing.assert_close(sparse.active_view.grad, layer.weight.grad[:, 2:4].t())
    assert [tuple(tensor.shape) for tensor in saved_apart_from_weights(saved, sparse)] == [(4, 2)]


@pytest.mark.parametrize("make", [linear, conv1d, falcon])
def test_a_weight_that_trains_whole_is_left_to_autograd(make):
    layer, x = fill(make(6, 3, True), 0), torch.randn(4, 6)
    sparse = sparse_copy(layer, [2, 3])
    sparse.weight.requires_grad_(True)
    sparse(x).square().sum().backward()
    layer(x).square().sum().backward()
    assert torch.equal(sparse.weight.grad, layer.weight.grad)


class Follower:
    """An epilogue that is always ready."""

    def __init__(self, gate):
        self.gate, self.outputs = gate, []

    def is_ready(self):
        return True

    def hand_over(self, output):
        self.outputs.append(output)


@pytest.mark.parametrize("index", [[], [0, 3]], ids=["frozen", "active"])
@pytest.mark.parametrize("outputs", [16, 5], ids=["rows of whole bytes", "bits across rows"])
def test_an_activation_behind_it_is_done_in_place_and_part_by_part(index, outputs, monkeypatch):
    monkeypatch.setattr("hf_trady.layers.linear.CHUNK_BYTES", 3 * outputs * 8)  # three rows
    layer, x = fill(nn.Linear(4, outputs).double(), 1), random_like(torch.empty(2, 5, 4, dtype=torch.float64), 2)
    full, full_x = copy.deepcopy(layer), x.clone().requires_grad_()
    expected = full(full_x).relu()
    cotangent = random_like(expected, 3)
    expected.backward(cotangent)

    sparse, sparse_x = sparse_copy(layer, index), x.clone().requires_grad_()
    sparse.epilogue = Follower(Gate(0.0, float("inf")))
    output = sparse(sparse_x)
    output.backward(cotangent)
    assert sparse.epilogue.outputs == [output]
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(sparse_x.grad, full_x.grad)
    torch.testing.assert_close(sparse.bias.grad, full.bias.grad)
    if index:
        torch.testing.assert_close(sparse.active_view.grad, gradient_slice(layer, full.weight.grad, index))


def test_falcons_layer_with_a_bias_is_refused_by_name():
    assert why_unsupported(FalconLinear(4, 3, bias=False)) is None
    assert "FalconLinear adds its bias by itself" in why_unsupported(FalconLinear(4, 3, bias=True))


def test_a_frozen_layer_keeps_no_copy_of_its_weight_under_autocast():
    layer = make_sparse(nn.Linear(16, 32))
    layer.weight.requires_grad_(False)
    plain, x = nn.Linear(16, 32), torch.randn(4, 16, requires_grad=True)
    plain.load_state_dict(layer.state_dict())
    plain.weight.requires_grad_(False)
    kept, grads = [], []
    for net in (plain, layer):
        with recorded_saves() as saved, torch.autocast("cpu", torch.bfloat16):
            y = net(x)
        kept.append([t for t in saved if t.numel() == layer.weight.numel() and t.dtype == torch.bfloat16])
        grads.append(torch.autograd.grad(y.float().square().sum(), x)[0])
    assert kept[0] and not kept[1]
    torch.testing.assert_close(*grads)
