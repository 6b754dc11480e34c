import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_trady.layers import make_sparse
from hf_trady.selection import LayerCost, channel_norms, lara, rgn


def sizes():
    return st.integers(1, 5)


@st.composite
def layers(draw):
    """A supported layer, and the slices of a gradient by input channel, by the layout of torch's documentation."""
    kind = draw(st.sampled_from(["linear", "Conv1D", "conv", "grouped", "depthwise"]))
    inputs, outputs = draw(sizes()), draw(sizes())
    if kind == "linear":
        return nn.Linear(inputs, outputs), lambda g: [g[:, c] for c in range(inputs)]
    if kind == "Conv1D":
        return Conv1D(outputs, inputs), lambda g: [g[c] for c in range(inputs)]
    groups = {"conv": 1, "grouped": draw(st.integers(2, 3)), "depthwise": draw(sizes())}[kind]
    if kind == "depthwise":
        inputs = 1
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    layer = nn.Conv2d(inputs * groups, outputs * groups, kernel, groups=groups)

    def slices(g):
        """Group by group: the output channels of a group see its input channels only."""
        return [g[group * outputs : (group + 1) * outputs, c] for group in range(groups) for c in range(inputs)]

    return layer, slices


def gradient_of(layer, seed, dtype=torch.float32):
    return torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(layers(), st.integers(0, 1000), st.booleans())
@settings(max_examples=200, deadline=None)
def test_channel_norms_are_those_of_the_slices_of_each_input_channel(made, seed, sparse):
    layer, slices = made
    gradient = gradient_of(layer, seed)
    expected = torch.stack([part.square().sum().sqrt() for part in slices(gradient)])
    norms = channel_norms(make_sparse(layer) if sparse else layer, gradient)
    torch.testing.assert_close(norms, expected)


@given(layers(), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_a_channel_without_gradient_has_norm_zero_and_the_others_keep_theirs(made, seed):
    layer, slices = made
    gradient = gradient_of(layer, seed)
    before = channel_norms(layer, gradient)
    parts = slices(gradient)
    parts[seed % len(parts)].zero_()  # a view of the gradient
    after = channel_norms(layer, gradient)
    expected = before.clone()
    expected[seed % len(parts)] = 0
    assert torch.equal(after, expected) and (before > 0).all()


@given(layers(), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_half_precision_neither_overflows_nor_vanishes(made, seed):
    layer, slices = made
    for scale in (1e-6, 3e4):  # their squares are beyond the range of float16
        gradient = (gradient_of(layer, seed).clamp(-2, 2) * scale).to(torch.float16)
        expected = torch.stack([part.double().square().sum().sqrt() for part in slices(gradient)])
        norms = channel_norms(layer, gradient)
        torch.testing.assert_close(norms.double(), expected, rtol=1e-5, atol=0)


@given(layers(), st.integers(0, 1000), st.integers(1, 50), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_rgn_and_lara_by_their_definitions(made, seed, weight, activation):
    layer, slices = made
    gradient = gradient_of(layer, seed)
    parts, norms = slices(gradient), channel_norms(layer, gradient)
    cost = LayerCost("layer", len(parts), weight, activation, 1)
    expected = sum(part.double().square().sum().sqrt().item() / (weight + activation) for part in parts)
    assert rgn(norms, cost) == pytest.approx(expected, rel=1e-5)
    whole = gradient.double().square().sum().sqrt().item()
    assert lara(norms, cost) == pytest.approx(whole / (len(parts) * (weight + activation)), rel=1e-5)
