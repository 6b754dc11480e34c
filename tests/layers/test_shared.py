import copy
import gc
import pickle
import weakref

import pytest
import torch
from against_autograd import (
    active_channels,
    fill,
    gradient_slice,
    random_like,
    recorded_saves,
    sparse_copy,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from hf_trady.layers import SharedSlice, make_plain, make_sparse, shared


INDEX = [0, 2, 3]


def sharing(layers, index):
    """Sparse copies of `layers` that train the channels `index` and keep one slice of their input."""
    slices = SharedSlice(len(layers))
    sparse = nn.ModuleList(sparse_copy(layer, index) for layer in layers)
    for layer in sparse:
        layer.shared_slice = slices
    return sparse


def three(dtype=torch.float64):
    return nn.ModuleList(fill(nn.Linear(5, n).to(dtype), n) for n in (4, 2, 3))


def inputs(dtype=torch.float64):
    return random_like(torch.empty(6, 5, dtype=dtype), 3).requires_grad_()


def total(layers, x):
    return sum(layer(x).sin().sum() for layer in layers)


def check_gradients(sparse, layers, x, index=INDEX):
    """The gradients in `sparse` are the slices of those that `layers` get from x."""
    total(layers, x).backward()
    for one, plain in zip(sparse, layers, strict=True):
        expected = gradient_slice(plain, plain.weight.grad, index)
        torch.testing.assert_close(one.active_view.grad, expected, rtol=1e-9, atol=1e-9)


def slices_in(saved, *layers):
    """The memories in `saved` that are no weights."""
    weights = {p.untyped_storage().data_ptr() for p in nn.ModuleList(layers).parameters()}
    return list({p: t for t in saved if (p := t.untyped_storage().data_ptr()) not in weights}.values())


@pytest.fixture
def taken(monkeypatch):
    """What slices were taken."""
    slices = []

    def take(*args):
        slices.append(shared_take(*args))
        return slices[-1]

    shared_take = shared.take_slice
    monkeypatch.setattr(shared, "take_slice", take)
    return slices


@st.composite
def cases(draw):
    channels, seed = draw(st.integers(1, 7)), draw(st.integers(0, 1000))
    kinds = {"linear": lambda n: nn.Linear(channels, n, bias=False), "conv1d": lambda n: Conv1D(n, channels)}
    made = draw(st.lists(st.tuples(st.sampled_from(sorted(kinds)), st.integers(1, 5)), min_size=1, max_size=5))
    layers = nn.ModuleList(fill(kinds[kind](n).double(), seed + i) for i, (kind, n) in enumerate(made))
    x = random_like(torch.empty(*draw(st.lists(st.integers(1, 3), max_size=3)), channels, dtype=torch.float64), seed)
    return layers, x, draw(active_channels(channels))


@given(cases())
@settings(max_examples=100, deadline=None)
def test_gradients_are_slices_of_the_full_ones_and_one_slice_of_x_is_saved(case):
    layers, x, index = case
    sparse, x_sparse, x_full = sharing(layers, index), x.clone().requires_grad_(), x.clone().requires_grad_()
    with recorded_saves() as saved:
        outputs = [layer(x_sparse) for layer in sparse]
    (kept,) = slices_in(saved, *sparse)
    assert torch.equal(kept, x[..., index])
    sum(output.sin().sum() for output in outputs).backward()
    check_gradients(sparse, layers, x_full, index)
    torch.testing.assert_close(x_sparse.grad, x_full.grad, rtol=1e-9, atol=1e-9)


def test_an_input_that_changes_between_two_layers_is_not_mixed_up():
    layers = three()
    for change in (lambda x: x.mul_(2), lambda x: x.clone(), lambda x: x.view_as(x)):
        x, twin, sparse = inputs().detach(), inputs().detach(), sharing(layers, INDEX)
        layers.zero_grad()
        first, expected = sparse[0](x).sin().sum(), layers[0](twin).sin().sum()
        x, twin = change(x), twin.clone() * (2 if x._version else 1)
        rest, expected_rest = total(sparse[1:], x), total(layers[1:], twin)
        (first + rest).backward()
        (expected + expected_rest).backward()
        for one, plain in zip(sparse, layers, strict=True):
            expected_slice = gradient_slice(plain, plain.weight.grad, INDEX)
            torch.testing.assert_close(one.active_view.grad, expected_slice, rtol=1e-9, atol=1e-9)


def test_the_slice_lives_as_long_as_autograd_needs_it_and_the_input_no_longer_than_without_us(taken):
    x, sparse = inputs().detach(), sharing(three(), INDEX)
    gc.disable()  # nothing may need a collection to go away
    try:
        loss = total(sparse, x)
        (slice_of_x,) = (weakref.ref(one) for one in taken)
        taken.clear()
        source = weakref.ref(x)
        del x
        assert source() is None and slice_of_x() is not None
        loss.backward()
        assert slice_of_x() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("left", ["input", "graph"])
def test_where_a_layer_does_not_run_the_slice_goes_with_the_input(left, taken):
    x, sparse = inputs().detach(), sharing(three(), INDEX)
    loss = total(sparse[:2], x)
    (slice_of_x,) = (weakref.ref(one) for one in taken)
    taken.clear()
    if left == "input":
        del loss
        assert slice_of_x() is not None
        del x
    else:
        del x
        assert slice_of_x() is not None
        loss.backward()
    assert slice_of_x() is None


def test_a_second_forward_with_the_same_input_takes_a_new_slice(taken):
    x, sparse, layers = inputs(), sharing(three(), INDEX), three()
    (total(sparse, x) + total(sparse, x)).backward()
    assert len(taken) == 2
    layers.zero_grad()
    total(layers, inputs()).backward()
    check_gradients(sparse, layers, inputs())  # twice in sum


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_takes_one_slice_for_the_backward(reentrant, taken):
    x, sparse, layers = inputs(), sharing(three(), INDEX), three()

    def block(x):
        return total(sparse, x.tanh())

    checkpoint(block, x, use_reentrant=reentrant).backward()
    assert len(taken) == (1 if reentrant else 2)  # the first forward of a reentrant one has no gradients
    check_gradients(sparse, layers, inputs().tanh())


def test_autocast_keeps_one_slice_in_its_dtype():
    layers, x = three(torch.float32), inputs(torch.float32)
    sparse = sharing(layers, INDEX)
    with torch.autocast("cpu", torch.bfloat16), recorded_saves() as saved:
        loss = total(sparse, x)
    slices = [one for one in slices_in(saved, *sparse) if torch.equal(one, x[:, INDEX].bfloat16())]
    assert len(slices) == 1 and slices[0].dtype == torch.bfloat16
    loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        total(layers, x).backward()
    for one, plain in zip(sparse, layers, strict=True):
        expected = gradient_slice(plain, plain.weight.grad, INDEX)
        torch.testing.assert_close(one.active_view.grad, expected, rtol=3e-2, atol=3e-2)


def test_layers_of_other_dtypes_get_their_own(taken):
    x = inputs(torch.float32)
    sparse = sharing(three(torch.float32), INDEX)
    first = sparse[0](x)
    with torch.autocast("cpu", torch.bfloat16):
        second = sparse[1](x)
    assert [one.dtype for one in taken] == [torch.float32, torch.bfloat16]
    (first.sum() + second.sum()).backward()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_share_among_themselves(clone, taken):
    x, sparse = inputs(), sharing(three(), INDEX)
    sparse[0](x.detach())  # a slice is held
    for layer in sparse:
        layer.active_view = None
    twin = clone(sparse)
    assert len({id(layer.shared_slice) for layer in twin}) == 1 and twin[0].shared_slice is not sparse[0].shared_slice
    for layer in twin:
        layer.active_view = layer.weight.t()[INDEX].clone().requires_grad_()
    taken.clear()
    total(twin, x).backward()
    assert len(taken) == 1
    check_gradients(twin, three(), inputs())


def test_fake_tensors(taken):
    with FakeTensorMode():
        sparse, slices = [make_sparse(nn.Linear(5, n)).requires_grad_(False) for n in (4, 2, 3)], SharedSlice(3)
        for layer in sparse:
            layer.active_index, layer.shared_slice = torch.arange(3), slices
            layer.active_view = layer.weight.t()[:3].clone().requires_grad_()
        total(sparse, torch.empty(6, 5)).backward()
    assert len(taken) == 1 and taken[0].shape == (6, 3) and all(layer.active_view.grad is not None for layer in sparse)


def test_an_input_made_in_inference_mode():
    with torch.inference_mode():
        x = inputs().detach().clone()
    sparse, layers = sharing(three(), INDEX), three()
    total(sparse, x).backward()
    check_gradients(sparse, layers, inputs())


def test_compiled():
    sparse, layers = sharing(three(), INDEX), three()
    torch.compile(total, backend="aot_eager", fullgraph=True)(sparse, inputs()).backward()
    check_gradients(sparse, layers, inputs())


def test_without_gradients_nothing_is_taken(taken):
    x, sparse = inputs(), sharing(three(), INDEX)
    with torch.no_grad():
        total(sparse, x)
    assert not taken


def test_a_plain_layer_has_no_trace_of_it():
    plain, (layer, *_) = nn.Linear(5, 4), sharing(three(), INDEX)
    del layer.active_view
    assert vars(make_plain(layer)).keys() == vars(plain).keys()
