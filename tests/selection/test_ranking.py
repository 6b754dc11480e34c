import copy
import math

import pytest
import torch
from torch import nn

from hf_trady import cost_table, rank_layers

from ..layers.against_autograd import gradient_slice
from ..tiny import (
    MODELS,
    bert,
    conv_net,
    copy_of_state,
    different_keys,
    image_batch,
    inputs_of,
    loss_of,
    token_batch,
    wrap,
)


every_model = pytest.mark.parametrize("make, batch", MODELS.values(), ids=MODELS)
BATCHES = [image_batch(seed=seed) for seed in range(3)]


def rank(model, batches, **kwargs):
    return rank_layers(model, batches, disable_tqdm=True, **kwargs)


def situation(model):
    """All that ranking must leave as it was, beside the state dict."""
    return [
        (name, id(p), p.requires_grad, p.grad, len(getattr(p, "_post_accumulate_grad_hooks", None) or ()))
        for name, p in model.named_parameters()
    ] + [(name, module.training, type(module), len(module._forward_hooks)) for name, module in model.named_modules()]


def scores_by_hand(model, batches, num_steps, learning_rate):
    """RGN and LaRa of every layer: full gradients of autograd, channel by channel, and the steps of torch's SGD."""
    costs, model = cost_table(model, inputs_of(batches[0])), copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    scores = {"rgn": dict.fromkeys((row.name for row in costs), 0.0), "lara": {}}
    scores["lara"] |= scores["rgn"]
    for step in range(num_steps):
        optimizer.zero_grad()
        loss_of(model, batches[step % len(batches)]).backward()
        for row in costs:
            layer = model.get_submodule(row.name)
            gradient = layer.weight.grad.double()
            norms = [part.norm().item() for part in gradient_slice(layer, gradient, range(row.channels))]
            scores["rgn"][row.name] += sum(norms) / row.space
            scores["lara"][row.name] += gradient.norm().item() / (row.channels * row.space)
        optimizer.step()
    return scores


# ---- What is measured -----------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("learning_rate", [0.0, 0.1])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_scores_are_those_of_full_gradients_by_hand(make, batch, learning_rate, num_steps):
    model = make()
    ranking = rank(model, [batch], num_steps=num_steps, learning_rate=learning_rate)
    expected = scores_by_hand(model, [batch], num_steps, learning_rate)
    for kind in ("rgn", "lara"):
        assert ranking.scores[kind] == pytest.approx(expected[kind], rel=1e-3, abs=1e-7)
        assert ranking.layers(kind)[0] == max(expected[kind], key=expected[kind].get)
    assert ranking.shapes == {
        row.name: [row.channels, row.weight_per_channel] for row in cost_table(model, inputs_of(batch))
    }
    assert ranking.info["num_steps"] == num_steps and ranking.info["learning_rate"] == learning_rate


def test_in_double_precision_to_the_precision_of_the_norms():
    batches = [(images.double(), labels) for images, labels in BATCHES]
    model = conv_net().double()
    expected = scores_by_hand(model, batches, 5, 0.05)["rgn"]
    assert rank(model, batches, num_steps=5, learning_rate=0.05).scores["rgn"] == pytest.approx(expected, rel=1e-5)


def test_a_dataloader_that_ends_is_started_again():
    once = {number: rank(conv_net(), [batch], num_steps=1).scores["rgn"] for number, batch in enumerate(BATCHES)}
    scores = rank(conv_net(), BATCHES, num_steps=5).scores["rgn"]
    for name, score in scores.items():
        assert score == pytest.approx(2 * once[0][name] + 2 * once[1][name] + once[2][name], rel=1e-5)


def test_what_was_frozen_is_ranked_too_and_stale_gradients_do_not_count():
    expected = rank(conv_net(), BATCHES[:1], num_steps=2).scores
    frozen, stale = conv_net().requires_grad_(False), conv_net()
    for parameter in stale.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    for model in (frozen, stale):
        scores = rank(model, BATCHES[:1], num_steps=2).scores
        assert all(scores[kind] == pytest.approx(expected[kind], rel=1e-5) for kind in expected)


@pytest.mark.parametrize("budget", [0.1, 1.0])
def test_a_wrapped_model_is_ranked_like_a_plain_one(budget):
    model = wrap(conv_net(), BATCHES[0][0], budget)
    state = copy_of_state(model)
    ranking = model.measure(BATCHES, num_steps=3, disable_tqdm=True).ranking()
    expected = rank(conv_net(), BATCHES, num_steps=3, exclude_modules=["classifier"])
    for kind in ("rgn", "lara"):
        assert ranking.scores[kind] == pytest.approx(expected.scores[kind], rel=1e-5)
    assert ranking.shapes == expected.shapes
    assert different_keys(copy_of_state(model), state) == []


def test_only_the_layers_asked_for_are_ranked():
    model = conv_net()
    costs = cost_table(model, BATCHES[0][0]).subset(["stem", "hidden"])
    some, everything = rank(model, BATCHES, num_steps=2, costs=costs), rank(model, BATCHES, num_steps=2)
    assert set(some.shapes) == {"stem", "hidden"} < set(everything.shapes)
    for name, score in some.scores["rgn"].items():
        assert score == pytest.approx(everything.scores["rgn"][name], rel=1e-5)
    others = rank(model, BATCHES, exclude_modules=["stem", "classifier"], num_steps=1)
    assert set(others.shapes) == {"depthwise", "pointwise", "hidden"}


# ---- What is left as it was -----------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("learning_rate", [0.0, 0.5])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_everything_is_what_it_was(make, batch, learning_rate, training):
    model = make().train(training)
    for parameter in list(model.parameters())[::3]:
        parameter.requires_grad_(False)
    state, before = copy_of_state(model), situation(model)
    ranking = rank(model, [batch], num_steps=3, learning_rate=learning_rate)
    assert different_keys(copy_of_state(model), state) == [] and situation(model) == before
    assert all(score >= 0 for score in ranking.scores["rgn"].values()) and any(ranking.scores["rgn"].values())


@pytest.mark.parametrize("learning_rate", [0.0, 0.5])
@pytest.mark.parametrize("fails_at", [0, 2])
@pytest.mark.parametrize("where", ["loss", "backward"])
def test_an_error_midway_leaves_everything_as_it_was(learning_rate, fails_at, where):
    model = conv_net().train()
    model.norm1.requires_grad_(False)
    state, before = copy_of_state(model), situation(model)
    steps = []

    def fail(gradient):
        raise RuntimeError("midway")

    def failing_loss(model, batch):
        loss = loss_of(model, batch)
        steps.append(different_keys(copy_of_state(model), state))
        if len(steps) > fails_at:
            if where == "loss":
                raise RuntimeError("midway")
            hidden = model.hidden(torch.randn(1, 16, requires_grad=True))
            hidden.register_hook(fail)
            return loss + hidden.sum()
        return loss

    with pytest.raises(RuntimeError, match="midway"):
        rank(model, BATCHES, num_steps=5, learning_rate=learning_rate, compute_loss=failing_loss)
    assert different_keys(copy_of_state(model), state) == [] and situation(model) == before
    assert len(steps) == fails_at + 1 and ("stem.weight" in steps[-1]) == bool(learning_rate and fails_at)


def test_no_gradient_outlives_its_step():
    left = []

    def watching_loss(model, batch):
        left.extend(name for name, parameter in model.named_parameters() if parameter.grad is not None)
        return loss_of(model, batch)

    rank(conv_net(), BATCHES, num_steps=3, compute_loss=watching_loss)
    assert left == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("learning_rate", [0.0, 0.5])
def test_a_loss_that_is_not_finite_is_refused_with_step_and_rate(bad, learning_rate):
    model = conv_net().train()
    state, before = copy_of_state(model), situation(model)
    losses = iter([1.0, bad])
    with pytest.raises(ValueError, match=f"loss is {bad} at step 2; lower learning_rate \\(now {learning_rate}\\)"):
        rank(
            model,
            BATCHES,
            learning_rate=learning_rate,
            compute_loss=lambda model, batch: loss_of(model, batch) * next(losses),
        )
    assert different_keys(copy_of_state(model), state) == [] and situation(model) == before


def test_an_empty_dataloader_is_refused():
    model = conv_net()
    before = situation(model)
    with pytest.raises(ValueError, match="dataloader is empty"):
        rank(model, [])
    assert situation(model) == before


@pytest.mark.parametrize(
    "make, batches, message",
    [
        (bert, [{"input_ids": torch.ones(2, 3).long()}], "the model gives no loss; give batches with labels"),
        (bert, token_batch(), r"a dataloader yields batches, and a dict is one; pass \[batch\]"),
        (conv_net, BATCHES[0][0], r"a dataloader yields batches, and a Tensor is one; pass \[batch\]"),
        (conv_net, BATCHES[0], r"a batch must be .*, not a Tensor; for a single batch pass \[batch\]"),
        (conv_net, [(*BATCHES[0], None)], r"a batch must be \(inputs, labels\) .*, not a tuple of 3"),
        (conv_net, [BATCHES[0][:1]], r"a batch must be \(inputs, labels\) .*, not a tuple of 1"),
    ],
)
def test_batches_that_give_no_loss_are_refused_in_one_line(make, batches, message):
    model = make()
    before, state = situation(model), copy_of_state(model)
    with pytest.raises(ValueError, match=message) as error:
        rank(model, batches)
    assert "\n" not in str(error.value)
    assert situation(model) == before and different_keys(copy_of_state(model), state) == []
    wrapped = wrap(model, next(iter(BATCHES))[0] if make is conv_net else token_batch())
    for how in ("at_once", "in_parts", "projected"):
        with pytest.raises(ValueError, match=message):
            wrapped.measure(batches, how=how, disable_tqdm=True)


def test_a_shared_weight_is_ranked_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    net[2].weight = net[0].weight
    batch = torch.randn(5, 4), torch.arange(5) % 3
    ranking = rank(net, [batch], num_steps=1)
    assert set(ranking.shapes) == {"0", "3"}
    assert ranking.scores["rgn"] == pytest.approx(scores_by_hand(net, [batch], 1, 0.0)["rgn"], rel=1e-4)


def test_a_gradient_that_is_not_finite_is_refused_and_names_the_layer():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def loss(model, batch):  # finite, with an infinite derivative at zero
        return (model(batch).sum() * 0).abs().sqrt()

    with pytest.raises(ValueError, match=r"gradient of '\d' is not finite"):
        rank_layers(net, [torch.ones(2, 3)], compute_loss=loss, disable_tqdm=True)
    assert all(parameter.grad is None for parameter in net.parameters())
