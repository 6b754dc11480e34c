import copy

import pytest
import torch
from against_autograd import (
    active_channels,
    check_against_autograd,
    fill,
    gradient_slice,
    random_like,
    read_by_the_gradient,
    recorded_saves,
    sparse_copy,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import nn


pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convs(draw):
    groups = draw(st.integers(1, 4))
    inputs = groups * draw(st.integers(1, 1 if draw(st.booleans()) and groups > 1 else 3))  # often depthwise
    outputs = groups * draw(st.integers(1, 3))
    kind = draw(st.sampled_from([nn.Conv2d, nn.Conv2d, Conv2dSame]))
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), st.integers(0, 3), pairs(0, 3)))
    return kind(
        inputs,
        outputs,
        draw(st.one_of(st.integers(1, 4), pairs(1, 4))),
        stride=1 if padding == "same" and kind is nn.Conv2d else draw(st.one_of(st.integers(1, 3), pairs(1, 3))),
        padding=0 if kind is Conv2dSame else padding,
        dilation=draw(st.one_of(st.integers(1, 3), pairs(1, 3))),
        groups=groups,
        bias=draw(st.booleans()),
    )


@st.composite
def cases(draw, dtype=torch.float64):
    conv, seed = draw(convs()).to(dtype), draw(st.integers(0, 1000))
    height, width = (
        dilation * (kernel - 1) + draw(st.integers(1, 5))
        for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)
    )
    batch = [draw(st.integers(1, 3))] if isinstance(conv, Conv2dSame) or draw(st.booleans()) else []
    x = random_like(torch.empty(*batch, conv.in_channels, height, width, dtype=dtype), seed + 7)
    if batch and draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    return fill(conv, seed), x, draw(active_channels(conv.in_channels))


@given(cases())
@settings(max_examples=400, deadline=None)
def test_gradient_is_the_slice_of_the_full_one_and_only_the_slice_of_x_is_saved(case):
    check_against_autograd(*case)


def test_the_one_pixel_that_a_strided_convolution_reads_is_kept_without_the_others():
    conv = fill(nn.Conv2d(1, 1, 1, stride=2, bias=False).double(), 1)
    check_against_autograd(conv, torch.randn(1, 1, 1, 2, dtype=torch.float64), [0])


@given(cases())
@settings(max_examples=100, deadline=None)
def test_without_active_channels_nothing_of_x_is_saved(case):
    layer, x, _ = case
    check_against_autograd(layer, x, [])


@pytest.mark.parametrize("multiplier", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, (1, 3), 5])
def test_depthwise_with_a_multiplier(multiplier, kernel):
    conv = fill(nn.Conv2d(8, 8 * multiplier, kernel, stride=2, groups=8).double(), 1)
    x = torch.randn(2, 8, 9, 10, dtype=torch.float64)
    for index in ([3], [0, 7], list(range(8))):
        check_against_autograd(conv, x, index)
        check_against_autograd(conv.to(memory_format=torch.channels_last), x, index)


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_more_groups_than_are_taken_at_once(multiplier, layout, monkeypatch):
    monkeypatch.setattr("hf_trady.layers.convolution.GROUPS_AT_ONCE", 3)
    conv = fill(nn.Conv2d(8, 8 * multiplier, 3, padding=1, groups=8).double(), 1).to(memory_format=layout)
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64).to(memory_format=layout)
    for index in ([3], [0, 2, 7], [0, 1, 4, 6], list(range(8))):
        check_against_autograd(conv, x, index)


@pytest.mark.parametrize("stride", [2, (1, 3), (3, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_pointwise_with_a_stride(stride, bias):
    conv = fill(nn.Conv2d(5, 4, 1, stride=stride, bias=bias).double(), 1)
    for size in [(7, 8), (4, 9), (2, 1)]:
        x = torch.randn(2, 5, *size, dtype=torch.float64)
        for index in ([3], [0, 4], list(range(5))):
            check_against_autograd(conv, x, index)
            check_against_autograd(conv, x.to(memory_format=torch.channels_last), index)


@given(cases())
@settings(max_examples=30, deadline=None)
def test_channels_last_is_kept(case):
    layer, x, index = case
    if x.dim() == 3:
        x = x[None]
    x = x.to(memory_format=torch.channels_last)
    layer = layer.to(memory_format=torch.channels_last)
    output, expected = sparse_copy(layer, index)(x), layer(x)
    assert output.stride() == expected.stride()


@given(cases(torch.float32))
@settings(max_examples=40, deadline=None)
def test_autocast(case):
    layer, x, index = case
    # There torch's own convolution in bf16 may end the process, on CPUs with AVX512-BF16.
    assume(layer.kernel_size[1] > 1 or layer.dilation[1] == 1)
    sparse, full = sparse_copy(layer, index), copy.deepcopy(layer)
    with torch.autocast("cpu", torch.bfloat16), recorded_saves() as saved:
        output = sparse(x.requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        expected = full(x)
    assert output.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=0.1)

    kept = read_by_the_gradient(layer, x if x.dim() == 4 else x[None])[:, index].bfloat16()
    slices = [tensor for tensor in saved if tensor.shape == kept.shape and torch.equal(tensor, kept)]
    assert slices and all(tensor.dtype == torch.bfloat16 for tensor in slices)
    cotangent = random_like(expected, 5)
    output.backward(cotangent)
    expected.backward(cotangent)
    full_slice = gradient_slice(layer, full.weight.grad, index)
    assert sparse.active_view.grad.dtype == torch.float32
    torch.testing.assert_close(
        sparse.active_view.grad, full_slice, rtol=3e-2, atol=3e-2 * (1 + full_slice.abs().max())
    )


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
def test_without_gradients_the_plain_layer_runs(kind, context):
    layer, x = fill(kind(4, 6, 3, stride=2), 0), torch.randn(2, 4, 7, 7)
    sparse = sparse_copy(layer, [0, 3]).eval()
    with torch.no_grad():
        sparse.active_view.fill_(7)  # would show if it took part
    with context(), recorded_saves() as saved:
        output = sparse(x)
    assert torch.equal(output, layer(x)) and not output.requires_grad and not saved


def test_a_weight_that_trains_whole_is_left_to_autograd():
    layer, x = fill(nn.Conv2d(4, 6, 3), 0), torch.randn(2, 4, 7, 7)
    sparse = sparse_copy(layer, [2, 3])
    sparse.weight.requires_grad_(True)
    sparse(x).square().sum().backward()
    layer(x).square().sum().backward()
    assert torch.equal(sparse.weight.grad, layer.weight.grad)


def test_the_second_derivative_is_refused():
    sparse, x = sparse_copy(nn.Conv2d(4, 6, 3), [1]), torch.randn(2, 4, 7, 7, requires_grad=True)
    (gradient,) = torch.autograd.grad(sparse(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
