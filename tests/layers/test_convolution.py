import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from hf_trady.layers.convolution import Convolution
from hf_trady.memory.storages import StorageLog


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def cases(draw):
    """A convolution with any padding on any side, its input and its weight."""
    two = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    pads = tuple(draw(st.lists(st.integers(0, 4), min_size=4, max_size=4)))
    conv = Convolution(draw(two), pads, draw(two), groups)
    weight = random(groups * draw(st.integers(1, 3)), draw(st.integers(1, 3)), *draw(two), seed=1)
    x = random(draw(st.integers(1, 4)), groups * weight.shape[1], *(draw(st.integers(1, 8)) for _ in range(2)))
    if draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    spans = [d * (k - 1) + 1 for d, k in zip(conv.dilation, weight.shape[2:], strict=True)]
    assume(x.shape[2] + pads[2] + pads[3] >= spans[0] and x.shape[3] + pads[0] + pads[1] >= spans[1])
    return conv, x.requires_grad_(), weight.requires_grad_()


@given(cases(), st.data())
def test_output_and_gradients_are_those_of_a_padded_input(case, data):
    conv, x, weight = case
    expected = F.conv2d(F.pad(x, conv.pads), weight, None, conv.stride, 0, conv.dilation, conv.groups)
    cotangent = random(*expected.shape, seed=2)
    grad_x, grad_weight = torch.autograd.grad(expected, (x, weight), cotangent)
    index = torch.tensor(sorted(data.draw(st.sets(st.integers(0, x.shape[1] - 1), min_size=1))))
    close = {"rtol": 1e-9, "atol": 1e-9}
    with torch.no_grad():
        torch.testing.assert_close(conv.output(x, weight, None), expected, **close)
        torch.testing.assert_close(conv.grad_x(cotangent, x.shape, weight), grad_x, **close)
        out = torch.full_like(x, torch.nan)
        assert conv.grad_x(cotangent, x.shape, weight, out=out) is out
        torch.testing.assert_close(out, grad_x, **close)
        found = conv.grad_slice(cotangent, x[:, index], weight.shape, index)
    channels = grad_weight.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found, channels[index], **close)


@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (0, 1, 0, 1)], ids=["even", "uneven"])
def test_nothing_as_large_as_the_input_is_made_but_its_gradient(pads):
    conv = Convolution((2, 2), pads, (1, 1), 8)
    x, weight = random(4, 8, 32, 32), random(8, 1, 3, 3)
    log = StorageLog()
    with log:
        output = conv.output(x, weight, None)
        conv.grad_x(output, x.shape, weight)
    large = [storage.nbytes for storage in log.storages if storage.born and storage.nbytes >= x.nbytes]
    assert large == [x.nbytes]


def test_the_gradient_of_a_known_shape_takes_no_more_memory_than_itself():
    conv = Convolution((1, 1), (1, 1, 1, 1), (1, 1), 8)
    x, weight = random(4, 8, 64, 64).float(), random(8, 1, 3, 3).float()
    grad = conv.output(x, weight, None)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        conv.grad_x(grad, x.shape, weight)
    allocated = sum(event.self_cpu_memory_usage for event in measured.events() if event.self_cpu_memory_usage > 0)
    assert x.nbytes <= allocated < 1.1 * x.nbytes
