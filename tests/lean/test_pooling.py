import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from .against_autograd import check_exact, lean_copy


@st.composite
def pools(draw):
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    return nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=draw(st.booleans()))


@given(pools(), st.integers(8, 12), st.integers(8, 12), st.booleans(), st.booleans())
def test_gradients_are_exact_for_one_byte_an_output(pool, height, width, channels_last, ties):
    x = torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(height))
    x = x.round() if ties else x
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    saved = check_exact(pool, x)
    assert saved == pool(x).numel()


def test_what_it_can_not_keep_in_a_byte_or_is_asked_for_more_is_the_plain_one():
    x = torch.randn(1, 2, 20, 20, requires_grad=True)
    output, indices = lean_copy(nn.MaxPool2d(2, return_indices=True))(x)
    assert torch.equal(output, nn.functional.max_pool2d(x, 2)) and indices.dtype == torch.int64
    assert lean_copy(nn.MaxPool2d(17))(x).shape == (1, 2, 1, 1)
    assert lean_copy(nn.MaxPool2d(2))(x[0]).shape == (2, 10, 10)
