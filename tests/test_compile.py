"""`TraDyModel.compile`: no draw compiles anything anew, and a compiled step is that of eager code."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from .tiny import bert, conv_net, copy_of_state, gpt2, image_batch, inputs_of, lm_batch, loss_of, token_batch, wrap


IMAGES, LABELS = image_batch()


def channels_last_net() -> nn.Module:
    return conv_net().to(memory_format=torch.channels_last)


def grouped_net() -> nn.Module:
    """A grouped convolution, a strided pointwise one, and a linear layer on vectors."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=4),
        nn.SiLU(),
        nn.Conv2d(12, 6, 1, stride=2),
        nn.Flatten(),
        nn.Linear(150, 16),
        nn.Linear(16, 3),
    )


MODELS = {
    "conv": (conv_net, (IMAGES, LABELS), {}),
    "channels_last": (channels_last_net, (IMAGES.to(memory_format=torch.channels_last), LABELS), {}),
    "grouped": (grouped_net, (IMAGES, LABELS), {"modules_to_save": ["7"]}),
    "bert": (lambda: bert(dropout=0.1), token_batch(), {}),
    "gpt2": (gpt2, lm_batch(), {}),
}


def run(kind: str, backend: str | None, draws: int = 6, autocast: bool = False, **config):
    """Train; returns the draws' numbers of channels, the functions compiled by the end of each, and the state."""
    make, batch, fields = MODELS[kind]
    config = {"memory_budget": 0.06, "strategy": "dynamic_full_random", "optimizer_state": "carry"} | fields | config
    model = wrap(make(), inputs_of(batch), config.pop("memory_budget"), **config).train()
    loss_of(model, batch)  # transformers models settle there which loss they compute
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    if backend is not None:
        torch._dynamo.reset()
        counters.clear()
        model.compile(backend=backend)
    numbers, functions = [], []
    for draw in range(draws):
        torch.manual_seed(draw)
        model.resample(draw, optimizer)
        numbers.append({name: len(index) for name, index in model.active_channels().items()})
        with torch.autocast("cpu", enabled=autocast):
            loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        functions.append(counters["frames"]["total"])
    return numbers, functions, copy_of_state(model)


def check_equal(ends: list[dict[str, torch.Tensor]], **tolerance):
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, **tolerance)


@pytest.mark.parametrize("lean", ["exact", "compressed"])
@pytest.mark.parametrize("kind", MODELS)
def test_no_draw_compiles_anew(kind, lean):
    """By what inductor, too, makes of a graph before it writes code: nothing in it is changed in place any more."""
    numbers, functions, _ = run(kind, "aot_eager", lean_backward=lean)
    counts = {draw.get(name, 0) for draw in numbers for name in set().union(*numbers)}
    assert {0, 1} <= counts and max(counts) > 1
    assert functions == [functions[0]] * len(functions)
    if kind not in ("grouped", "gpt2"):  # a hook of Sequential and a warning of transformers end a graph
        assert functions[0] == 1 and not counters["graph_break"]


@pytest.mark.parametrize("fields", [{}, {"lean_backward": "compressed"}, {"train_bias": True}], ids=str)
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "bert"])
def test_it_trains_what_eager_code_does(kind, fields):
    check_equal([run(kind, backend, **fields)[2] for backend in (None, "aot_eager")], rtol=1e-4, atol=1e-5)


def test_so_it_does_under_autocast_and_with_output_channels():
    for fields in ({"autocast": True}, {"strategy": "paca", "memory_budget": 0.3, "channels_per_layer": 2}):
        check_equal([run("conv", backend, **fields)[2] for backend in (None, "aot_eager")], rtol=1e-2, atol=1e-3)


@torch._dynamo.config.patch(recompile_limit=1)
def test_so_it_does_once_dynamo_has_given_up():
    model = wrap(conv_net(), IMAGES, 0.06).train()
    torch._dynamo.reset()
    model.compile(backend="eager")
    for size in (12, 14, 16):  # sizes that it has compiled nothing for
        model(torch.randn(2, 3, size, size)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_with_inductor(kind):
    ends = [run(kind, backend, draws=4) for backend in (None, "inductor")]
    assert len(set(ends[1][1])) == 1
    if kind != "bert":  # whose dropout it draws otherwise
        check_equal([end[2] for end in ends], rtol=1e-3, atol=1e-4)
