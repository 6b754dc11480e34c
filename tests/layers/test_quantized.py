"""bitsandbytes' layers: a quantized weight, beside which channels train in full precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from against_autograd import (
    active_channels,
    fill,
    gradient_slice,
    random_like,
    recorded_saves,
    saved_apart_from_weights,
    sparse_copy,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

from hf_trady.layers import kept_bytes, make_plain, make_sparse, read_channels, why_unsupported, write_channels


bnb = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.usefixtures("one_order_of_weights")

FORMATS = ["nf4", "nf4 nested", "fp4", "int8"]


def quantized(form: str, channels: int = 12, outputs: int = 8, bias: bool = True, seed: int = 0, dtype=torch.float32):
    """A quantized layer whose weight follows from `seed`; computes in `dtype`."""
    linear = fill(nn.Linear(channels, outputs, bias=bias), seed).to(dtype)
    if form == "int8":
        layer = bnb.nn.Linear8bitLt(channels, outputs, bias=bias, has_fp16_weights=False)
    else:
        kind, _, nested = form.partition(" ")
        options = {"compute_dtype": dtype, "quant_type": kind, "compress_statistics": bool(nested)}
        layer = bnb.nn.Linear4bit(channels, outputs, bias=bias, **options)
    layer.to(dtype).load_state_dict(linear.state_dict())
    return layer.to("cpu").requires_grad_(False)


def twin(layer: nn.Module) -> nn.Linear:
    """The plain layer with the weight that a quantized one stands for, as bitsandbytes tells it."""
    if isinstance(layer, bnb.nn.Linear4bit):
        weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    else:
        scale = layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
        weight = bnb.functional.int8_vectorwise_dequant(layer.weight.data, scale)
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone())
    return plain


@st.composite
def cases(draw):
    # Even numbers of channels: for odd ones bitsandbytes compiles a kernel, which takes longer than all else here.
    channels, outputs, seed = 2 * draw(st.integers(1, 5)), draw(st.integers(2, 6)), draw(st.integers(0, 1000))
    layer = quantized(draw(st.sampled_from(FORMATS)), channels, outputs, draw(st.booleans()), seed)
    leading = draw(st.lists(st.integers(1, 3), max_size=3))
    x = random_like(torch.empty(*leading, channels), seed + 7)
    kept = draw(st.one_of(st.just([]), active_channels(channels)))
    return layer, x, draw(st.one_of(st.just([]), active_channels(channels))), kept


@given(cases())
@settings(max_examples=80, deadline=None)
def test_gradient_is_the_slice_of_the_dequantized_layers_and_only_the_slice_of_x_is_saved(case):
    layer, x, index, kept = case
    full, packed = twin(layer), layer.weight.data.clone()
    make_sparse(layer)
    if kept:
        values = random_like(torch.empty(len(kept), layer.out_features), 3)
        write_channels(layer, torch.tensor(kept), values)
        full.weight.data[:, kept] = values.t()
    sparse = sparse_copy(layer, index)
    if sparse.bias is not None:
        sparse.bias.requires_grad_()
    full_x, sparse_x = (x.clone().requires_grad_() for _ in range(2))
    expected = full(full_x)
    with recorded_saves() as saved:
        output = sparse(sparse_x)
    cotangent = random_like(expected, 5)
    expected.backward(cotangent)
    output.backward(cotangent)

    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(output, expected, **close)
    torch.testing.assert_close(sparse_x.grad, full_x.grad, **close)
    if sparse.bias is not None:
        torch.testing.assert_close(sparse.bias.grad, full.bias.grad, **close)
    of_input = saved_apart_from_weights(saved, sparse)
    assert sum(tensor.untyped_storage().nbytes() for tensor in of_input) == x[..., index].nbytes
    if index:
        torch.testing.assert_close(sparse.active_view.grad, gradient_slice(full, full.weight.grad, index), **close)
    assert torch.equal(sparse.weight.data, packed) and torch.equal(layer.weight.data, packed)


@given(st.sampled_from(FORMATS), st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_bit_for_bit_and_the_rest_stays_as_it_was(form, data):
    layer = make_sparse(quantized(form, channels=10, outputs=5))
    expected, packed = layer.dense_weight(), layer.weight.data.clone()
    everything = torch.arange(10)
    write_channels(layer, everything, read_channels(layer, everything))
    assert layer.kept is None  # nothing differs from the quantized weight
    changed = set()
    for seed in range(data.draw(st.integers(1, 4))):
        index = torch.tensor(data.draw(active_channels(10)))
        values = read_channels(layer, index)
        moves = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(index), max_size=len(index))))
        values[moves] += 1e-3 * random_like(values, seed)[moves]
        write_channels(layer, index, values)
        expected[:, index] = values.t()
        changed |= set(index[moves].tolist())
    assert torch.equal(read_channels(layer, everything), expected.t())
    assert torch.equal(layer.dense_weight(), expected) and torch.equal(layer.weight.data, packed)
    assert (layer.kept.index.tolist() if changed else []) == sorted(changed)
    assert kept_bytes(layer) == len(changed) * (5 * expected.itemsize + 8)


@pytest.mark.parametrize("form", FORMATS)
def test_evaluation_is_the_plain_layer_and_the_kept_channels_in_full_precision(form):
    layer, x = quantized(form, 64, 48), torch.randn(5, 64)
    with torch.no_grad():
        plain = layer.eval()(x)
        make_sparse(layer)
        assert torch.equal(layer(x), plain)
        values = random_like(torch.empty(3, 48), 1)
        index = torch.tensor([0, 7, 63])
        write_channels(layer, index, values)
        rest = x.clone()
        rest[:, index] = 0
        output = layer(x)
        make_plain(layer)
        torch.testing.assert_close(output, layer(rest) + x[:, index] @ values)
        assert torch.equal(layer(x), plain) and not hasattr(layer, "kept")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mode", ["autocast", "half"])
def test_reduced_precision(form, mode):
    dtype = torch.bfloat16 if mode == "half" else torch.float32
    layer, x = quantized(form, dtype=dtype), torch.randn(6, 12).to(dtype)
    full = twin(layer).to(dtype)
    sparse = sparse_copy(make_sparse(layer), [1, 5])
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        output, expected, plain = sparse(x.requires_grad_()), full(x), make_plain(copy.deepcopy(layer))(x)
    assert output.dtype == plain.dtype
    torch.testing.assert_close(output, expected.to(output.dtype), rtol=2e-2, atol=5e-2)
    output.float().sum().backward()
    expected.float().sum().backward()
    assert sparse.active_view.dtype == (torch.bfloat16 if mode == "half" and form != "int8" else torch.float32)
    found, slice_ = sparse.active_view.grad.float(), gradient_slice(full, full.weight.grad.float(), [1, 5])
    torch.testing.assert_close(found, slice_, rtol=3e-2, atol=3e-2 * (1 + slice_.abs().max()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    sparse, x = sparse_copy(make_sparse(quantized("nf4")), [2, 3]).train(), torch.randn(4, 12, requires_grad=True)
    F.relu(sparse(x)).square().sum().backward()
    expected, sparse.active_view.grad = sparse.active_view.grad, None
    checkpoint(lambda x: F.relu(sparse(x)), x, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(sparse.active_view.grad, expected)


def test_evaluation_does_not_reorder_the_weight_and_what_it_reordered_before_is_put_in_order():
    layer = quantized("nf4 nested", 64, 32).eval()
    expected, packed = twin(layer).weight.data, layer.weight.data.clone()
    layer.support_avx512bf16_for_cpu = True  # the plain layer would reorder the weight, and round its scales
    make_sparse(layer)
    with torch.no_grad():
        layer(torch.randn(2, 64))
    assert torch.equal(layer.weight.data, packed) and torch.equal(layer.dense_weight(), expected)
    assert make_plain(layer).support_avx512bf16_for_cpu

    layer.weight.data, layer.weight.quant_state = bnb.functional._convert_weight_packed_for_cpu(
        layer.weight.data, layer.weight.quant_state
    )
    assert not torch.equal(layer.weight.data.flatten(), packed.flatten())
    torch.testing.assert_close(make_sparse(layer).dense_weight(), expected, rtol=1e-2, atol=0)
    assert torch.equal(layer.weight.data, packed)


def test_layers_that_are_not_quantized_yet_or_otherwise_are_refused():
    with_float_weight = bnb.nn.Linear8bitLt(4, 3, has_fp16_weights=True)
    assert "has_fp16_weights" in why_unsupported(with_float_weight)
    for layer in (bnb.nn.Linear4bit(4, 3), bnb.nn.Linear8bitLt(4, 3, has_fp16_weights=False)):
        assert "not quantized yet" in why_unsupported(layer)
    wrapped = nn.Linear(4, 3)
    wrapped.weight = nn.Parameter(
        TwoTensor(torch.zeros(3, 4), torch.zeros(3, 4))
    )  # of a class of its own, as torchao's
    assert "TwoTensor" in why_unsupported(wrapped)
    assert all(why_unsupported(quantized(form)) is None for form in FORMATS)
