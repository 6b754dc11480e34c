"""Holds a sparse layer against autograd on its plain twin."""

import copy
from contextlib import contextmanager

import torch
from hypothesis import strategies as st
from torch import nn

from hf_trady.layers import make_sparse, read_channels


def active_channels(channels):
    """Sorted, non-empty sets of channels; one and all of them are among the first drawn."""
    some = st.sets(st.integers(0, channels - 1), min_size=1).map(sorted)
    return st.one_of(some, st.just(list(range(channels))), st.integers(0, channels - 1).map(lambda c: [c]))


def random_like(x, seed):
    return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))


def fill(layer, seed):
    """Random weights and bias from `seed` alone."""
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(random_like(parameter, seed + number))
    return layer


def gradient_slice(layer, gradient, index):
    """The channels `index` of a full weight gradient, by the layout of torch's documentation."""
    if isinstance(layer, nn.Linear):
        return torch.stack([gradient[:, channel] for channel in index])
    if not isinstance(layer, nn.Conv2d):  # transformers' Conv1D
        return torch.stack([gradient[channel] for channel in index])
    per_group_in, per_group_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    parts = []
    for channel in index:
        first = channel // per_group_in * per_group_out
        parts.append(gradient[first : first + per_group_out, channel % per_group_in])
    return torch.stack(parts)


def sparse_copy(layer, index):
    """A copy of `layer` with a frozen weight that trains the channels `index`, as ActiveChannels would set it up."""
    sparse = make_sparse(copy.deepcopy(layer))
    sparse.weight.requires_grad_(False)
    if index:
        sparse.active_index = torch.tensor(index)
        sparse.active_view = read_channels(sparse, sparse.active_index).requires_grad_()
    return sparse


@contextmanager
def recorded_saves():
    """The list of tensors that autograd saves in the block."""
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def saved_apart_from_weights(saved, layer):
    """Those of `saved` that share no memory with the layer's parameters and index; each memory once."""
    known = [*layer.parameters(), *([] if layer.active_index is None else [layer.active_index])]
    known = {tensor.untyped_storage().data_ptr() for tensor in known}
    return list({p: t for t in saved if (p := t.untyped_storage().data_ptr()) not in known}.values())


def check_against_autograd(layer, x, index, tolerance=1e-9):
    """Outputs, gradients and what is saved of x, for the active channels `index` (may be empty)."""
    full, full_x = copy.deepcopy(layer), x.detach().clone().requires_grad_()
    expected = full(full_x)
    cotangent = random_like(expected, 5)
    expected.backward(cotangent)

    sparse, sparse_x = sparse_copy(layer, index), x.detach().clone().requires_grad_()
    with recorded_saves() as saved:
        output = sparse(sparse_x)
    output.backward(cotangent)

    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(output, expected, **close)
    torch.testing.assert_close(sparse_x.grad, full_x.grad, **close)
    assert sparse.weight.grad is None
    if layer.bias is not None:
        torch.testing.assert_close(sparse.bias.grad, full.bias.grad, **close)
    of_input = saved_apart_from_weights(saved, sparse)
    if not index:
        assert not of_input
        return
    torch.testing.assert_close(sparse.active_view.grad, gradient_slice(layer, full.weight.grad, index), **close)
    expected_bytes = read_by_the_gradient(layer, x).numel() * x.itemsize // sparse.num_channels() * len(index)
    assert sum(tensor.untyped_storage().nbytes() for tensor in of_input) == expected_bytes


def read_by_the_gradient(layer, x):
    """What of x the gradient of the weight depends on: all, but for strided convolutions of single pixels."""
    is_single = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
    if not is_single or (not isinstance(layer.padding, str) and any(layer.padding)):
        return x
    return x[..., :: layer.stride[0], :: layer.stride[1]]
