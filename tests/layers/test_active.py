import copy

import pytest
import torch
from against_autograd import gradient_slice
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_trady.layers import ActiveChannels, make_sparse, num_channels, read_channels


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 8, 3, groups=4)
        self.linear = nn.Linear(8, 6)
        self.conv1d = Conv1D(5, 6)

    def forward(self, x):
        x = self.depthwise(torch.tanh(self.conv(x))).mean((2, 3))
        return self.conv1d(torch.tanh(self.linear(x)))


CAPACITY = 3 * 36 + 4 * 18 + 8 * 6 + 6 * 5  # everything
X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
FIRST = {"conv": [0, 2], "depthwise": [1, 2], "linear": [0, 3, 7], "conv1d": [5]}
SECOND = {"conv": [2], "depthwise": [0, 1, 3], "linear": [3, 4, 7]}


def channels(selection):
    return {name: torch.tensor(index, dtype=torch.int64) for name, index in selection.items()}


@st.composite
def selections(draw):
    sizes = {"conv": 3, "depthwise": 4, "linear": 8, "conv1d": 6}
    return {name: sorted(draw(st.sets(st.integers(0, size - 1)))) for name, size in sizes.items()}


def build(selection=None):
    """A net whose forward trains the channels of `selection`, and its ActiveChannels."""
    torch.manual_seed(0)
    net = Net().requires_grad_(False)
    layers = {name: [make_sparse(module)] for name, module in net.named_children()}
    active = ActiveChannels(layers, [list(layers)], [CAPACITY], {})
    net.register_forward_pre_hook(lambda module, args: active.attach())
    active.assign(channels(selection or {}))
    return net, active


def parts(active, tensor, selection):
    """`tensor`, of the flat Parameter's length, layer by layer; and what no layer uses."""
    found, start = {}, 0
    for name in active.groups[0]:
        if len(selection.get(name, [])):
            values = read_channels(active.layers[name][0], torch.tensor(selection[name]))
            found[name] = tensor[start : start + values.numel()].view_as(values)
            start += values.numel()
    return found, tensor[start:]


def loss(net, x=X):
    return net(x).square().sum()


@pytest.mark.parametrize("kind", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_a_step_moves_the_active_channels_and_nothing_else(kind):
    net, active = build()
    optimizer = torch.optim.AdamW(active.parameters(), lr=0.1, weight_decay=0.5, **kind)
    for selection in (FIRST, SECOND):
        active.assign(channels(selection), optimizer)
        before = copy.deepcopy(net.state_dict())
        for _ in range(2):
            loss(net).backward()
            optimizer.step()
            optimizer.zero_grad()
        active.write_back()
        for name, module in net.named_children():
            old = make_sparse(copy.deepcopy(module))
            old.load_state_dict({"weight": before[f"{name}.weight"], "bias": before[f"{name}.bias"]})
            for channel in range(num_channels(module)):
                place = torch.tensor([channel])
                same = read_channels(module, place) == read_channels(old, place)
                assert not same.any() if channel in selection.get(name, []) else same.all()
            assert torch.equal(module.bias, before[f"{name}.bias"])


@given(selections(), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_gradient_is_the_slice_of_the_full_one(selection, seed):
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    net, active = build(selection)
    full = copy.deepcopy(net)
    full._forward_pre_hooks.clear()
    active.flat[0].grad = None
    for module in full.children():
        module.active_index = module.active_view = None
        module.weight.requires_grad_(True)
    loss(full, x).backward()
    if not any(selection.values()):
        assert not loss(net, x).requires_grad
        return
    loss(net, x).backward()
    found, rest = parts(active, active.flat[0].grad, selection)
    assert found.keys() == {name for name, index in selection.items() if index} and not rest.any()
    for name, gradient in found.items():
        module = full.get_submodule(name)
        torch.testing.assert_close(gradient, gradient_slice(module, module.weight.grad, selection[name]))


@given(selections(), selections())
@settings(max_examples=40, deadline=None)
def test_values_outlive_their_channels(first, second):
    net, active = build(first)
    with torch.no_grad():
        active.flat[0].normal_()
    values = {name: part.clone() for name, part in parts(active, active.flat[0], first)[0].items()}
    before = copy.deepcopy(net.state_dict())
    active.assign(channels(second))
    assert sum(flat.numel() for flat in active.flat) == CAPACITY
    for name, module in net.named_children():
        old = make_sparse(copy.deepcopy(module))
        old.load_state_dict({"weight": before[f"{name}.weight"], "bias": before[f"{name}.bias"]})
        for channel in range(num_channels(module)):
            place = torch.tensor([channel])
            kept = values[name][[first[name].index(channel)]] if channel in first[name] else read_channels(old, place)
            assert torch.equal(read_channels(module, place), kept)
    loaded, rest = parts(active, active.flat[0], second)
    assert not rest.any()
    for name, part in loaded.items():
        assert torch.equal(part, read_channels(net.get_submodule(name), torch.tensor(second[name])))


def test_write_back_and_load_are_inverses():
    net, active = build(FIRST)
    with torch.no_grad():
        active.flat[0].normal_()
    kept = parts(active, active.flat[0].detach().clone(), FIRST)[0]
    active.write_back()
    active.load()
    for name, part in parts(active, active.flat[0], FIRST)[0].items():
        assert torch.equal(part, kept[name])
        assert torch.equal(read_channels(net.get_submodule(name), torch.tensor(FIRST[name])), kept[name])


@given(selections(), selections())
@settings(max_examples=30, deadline=None)
def test_carry_keeps_the_state_of_exactly_the_channels_that_stay(first, second):
    _, active = build(first)
    parameter = active.flat[0]
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.randn(CAPACITY)
    optimizer.step()
    old = {key: value.clone() for key, value in optimizer.state[parameter].items()}
    active.assign(channels(second), optimizer, carry=True)
    state = optimizer.state[parameter]
    assert parameter.grad is None and state["step"] == old["step"] == 1
    for key in ("exp_avg", "exp_avg_sq"):
        before, _ = parts(active, old[key], first)
        after, rest = parts(active, state[key], second)
        assert not rest.any() and state[key].shape == (CAPACITY,)
        for name, rows in after.items():
            for channel, row in zip(second[name], rows, strict=True):
                stays = channel in first[name]
                assert torch.equal(row, before[name][first[name].index(channel)] if stays else torch.zeros_like(row))


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_the_forward_after_a_step_uses_the_new_values(context):
    net, active = build(FIRST)
    optimizer = torch.optim.SGD(active.parameters(), lr=0.1)
    before = net(X).detach()
    loss(net).backward()
    optimizer.step()
    with context():
        after = net(X)
    twin = Net()
    twin.load_state_dict(net.state_dict())  # what the layers hold now
    for name, index in FIRST.items():
        stepped = parts(active, active.flat[0], FIRST)[0][name]
        assert torch.equal(read_channels(twin.get_submodule(name), torch.tensor(index)), stepped)
    torch.testing.assert_close(after, twin(X))
    assert not torch.allclose(after, before)


def test_reset_drops_the_state():
    net, active = build(FIRST)
    head = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([*active.parameters(), head])
    (loss(net) + head.sum()).backward()
    optimizer.step()
    active.assign(channels(SECOND), optimizer)
    assert active.flat[0] not in optimizer.state and head in optimizer.state


def test_two_backwards_accumulate():
    y = torch.randn(3, 3, 5, 5)
    net, active = build(FIRST)
    gradients = []
    for x in (X, y):
        active.flat[0].grad = None
        loss(net, x).backward()
        gradients.append(active.flat[0].grad)
    active.flat[0].grad = None
    loss(net, X).backward()
    loss(net, y).backward()
    torch.testing.assert_close(active.flat[0].grad, gradients[0] + gradients[1])

    active.flat[0].grad = None
    total = loss(net, X) + loss(net, y)  # two forwards before one backward
    with torch.no_grad():
        net(X)  # and an evaluation in between
    total.backward()
    torch.testing.assert_close(active.flat[0].grad, gradients[0] + gradients[1])


def test_touched_marks_what_a_training_forward_used():
    net, active = build(FIRST)
    with torch.no_grad():
        net(X)
    assert active.touched == {}
    net(X)
    active.assign(channels(SECOND))
    assert {name: mask.nonzero().flatten().tolist() for name, mask in active.touched.items()} == FIRST
    net(X)
    expected = {name: sorted({*FIRST[name], *SECOND.get(name, [])}) for name in FIRST}
    assert {name: mask.nonzero().flatten().tolist() for name, mask in active.touched.items()} == expected


def test_layers_of_one_input_share_a_slice_where_they_train_the_same_channels():
    net = nn.ModuleDict({name: nn.Linear(6, 2) for name in "abcde"}).requires_grad_(False)
    layers = {name: [make_sparse(module)] for name, module in net.items()}
    active = ActiveChannels(layers, [list(layers)], [100], {}, [["a", "b", "c", "d"], ["e"]])

    def sharing(selection):
        active.assign(channels(selection))
        slices = {name: module.shared_slice for name, module in net.items() if module.shared_slice is not None}
        groups = [{name for name in slices if slices[name] is one} for one in {*slices.values()}]
        assert all(slices[name].num_layers == len(group) for group in groups for name in group)
        return sorted(sorted(group) for group in groups)

    assert sharing({"a": [1, 2], "b": [1, 2], "d": [1, 2], "e": [1, 2]}) == [["a", "b", "d"]]
    assert sharing({"a": [1, 2], "b": [0], "c": [0], "d": [1, 2]}) == [["a", "d"], ["b", "c"]]
    assert sharing({"a": [1, 2], "b": [1], "c": [1, 2, 3]}) == sharing({}) == []


def test_one_flat_parameter_for_each_dtype():
    net = Net().requires_grad_(False)
    net.linear.bfloat16()
    layers = {name: [make_sparse(module)] for name, module in net.named_children()}
    active = ActiveChannels(layers, [["conv", "depthwise", "conv1d"], ["linear"]], [200, 30], {})
    active.assign(channels(FIRST))
    assert [parameter.dtype for parameter in active.flat] == [torch.float32, torch.bfloat16]
    assert torch.equal(active.flat[1][:18].view(3, 6), read_channels(net.linear, torch.tensor(FIRST["linear"])))
