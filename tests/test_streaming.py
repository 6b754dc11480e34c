"""Gradients measured in parts are those measured at once, each part is inside the budget, and nothing moves."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.selection import affordable
from hf_trady.streaming import split

from .selection.test_drawing import cheapest, cost, tables
from .tiny import MODELS, bert, conv_net, copy_of_state, different_keys, image_batch, inputs_of, token_batch, wrap


every_model = pytest.mark.parametrize("make, batch", MODELS.values(), ids=MODELS)


def measured(model, batches, how, **kwargs):
    torch.manual_seed(3)  # dropout
    return model.measure(batches, how=how, disable_tqdm=True, **kwargs)


@given(tables(), st.integers(1, 3000))
@settings(max_examples=200, deadline=None)
def test_every_channel_is_in_one_part_and_no_part_exceeds_the_units(table, units):
    assume(units >= cheapest(table))
    parts = split(table, units)
    assert all(0 < cost(table, part) <= units for part in parts)
    for row, whole in zip(table.by_input(), table.sharing(), strict=True):
        for layer in whole:
            found = torch.cat([part[layer.name] for part in parts if layer.name in part] or [torch.tensor([])])
            assert sorted(found.tolist()) == (list(range(row.channels)) if row.space <= units else [])


@every_model
@pytest.mark.parametrize("budget", [0.1, 0.5])
def test_in_parts_or_at_once_the_norms_are_the_same(make, batch, budget):
    model = wrap(make(), inputs_of(batch), budget)
    parts, whole = (measured(model, [batch], how, num_steps=2) for how in ("in_parts", "at_once"))
    for name, norms in whole.norms.items():
        if name in affordable(model.costs, model.budget):
            assert torch.allclose(parts.norms[name], norms, rtol=1e-4, atol=1e-6 * float(norms.max()))
            for kind, scores in whole.totals.items():
                assert parts.totals[kind][name] == pytest.approx(scores[name], rel=1e-4, abs=1e-9)
        else:
            assert not parts.norms[name].any()


def test_with_dropout_all_parts_are_parts_of_one_gradient():
    batch = token_batch()
    model = wrap(bert(dropout=0.3).train(), inputs_of(batch), 0.2)
    parts, whole = (measured(model, [batch], how, num_steps=1) for how in ("in_parts", "at_once"))
    for name, norms in whole.norms.items():
        assert torch.allclose(parts.norms[name], norms, rtol=1e-4, atol=1e-6 * float(norms.max()))


@every_model
@pytest.mark.parametrize("norm_mode", ["frozen", "train"])
@pytest.mark.parametrize("how", ["in_parts", "projected"])
def test_measuring_moves_nothing(make, batch, norm_mode, how):
    model = wrap(make().train(), inputs_of(batch), 0.2, norm_mode=norm_mode)
    model.resample(3)
    state, selection, touched = copy_of_state(model), model.active_channels(), dict(model.touched)
    values = [parameter.detach().clone() for parameter in model.active.flat]
    measured(model, [batch], how, num_steps=2)
    assert different_keys(state, model.state_dict()) == []
    assert model.touched.keys() == touched.keys()
    assert all(torch.equal(model.active_channels()[name], index) for name, index in selection.items())
    assert all(torch.equal(a, b) for a, b in zip(values, model.active.flat, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("strategy", ["static_rgn", "dynamic_rgn", "informed"])
def test_strategies_that_go_by_gradients_wait_for_them(strategy):
    model = wrap(conv_net(), image_batch()[0], 0.2, strategy=strategy)
    assert not model.is_ready
    with pytest.raises(ValueError, match="needs the gradient norms of channels; call measure"):
        model.resample(0)
    model.measure([image_batch()], num_steps=1, disable_tqdm=True)
    assert model.is_ready and 0 < model.report().units <= model.budget


def test_greedy_channels_are_those_with_the_largest_gradient_per_unit():
    model = wrap(conv_net(), image_batch()[0], 0.3, strategy="static_rgn")
    record = model.measure([image_batch()], how="in_parts", num_steps=1, disable_tqdm=True)
    drawn = model.active_channels()
    ratio = {row.name: record.norms[row.name] / row.space for row in model.pool}
    inside = [ratio[name][index] for name, index in drawn.items()]
    outside = [r[~torch.isin(torch.arange(len(r)), drawn.get(name, torch.tensor([])))] for name, r in ratio.items()]
    assert torch.cat(inside).min() >= torch.cat(outside).max()


@pytest.mark.parametrize("kind", ["informed", "trady"])
def test_a_budget_in_bytes_is_measured_in_parts_and_fitted_after_that(kind):
    batch = image_batch()
    config = TraDyConfig("0.3MiB", kind, modules_to_save=["classifier"])
    model = TraDyModel(conv_net(), config, batch[0])
    assert not model.is_ready
    record = model.measure([batch], how="in_parts", num_steps=1, disable_tqdm=True)
    assert model.is_ready and model.fitted.predicted_peak <= model.byte_budget
    whole = measured(TraDyModel(conv_net(), TraDyConfig(1.0, "dynamic_full_random", modules_to_save=["classifier"]),
                                batch[0]), [batch], "at_once", num_steps=1)  # fmt: skip
    for name, norms in record.norms.items():
        looked_at = norms > 0
        assert torch.allclose(norms[looked_at], whole.norms[name][looked_at], rtol=1e-3)


def test_an_empty_dataloader_and_a_loss_that_is_not_finite_are_refused_and_change_nothing():
    images, labels = image_batch()
    model = wrap(conv_net(), images, 0.2, strategy="static_rgn")
    state = copy_of_state(model)
    with pytest.raises(ValueError, match="the dataloader is empty"):
        model.measure([], disable_tqdm=True)
    with pytest.raises(ValueError, match="the loss is nan at step 1; check the data"):
        model.measure([(images * float("nan"), labels)], disable_tqdm=True)
    assert not model.is_ready and different_keys(state, model.state_dict()) == []


def test_an_unknown_way_to_measure_is_refused():
    model = wrap(conv_net(), image_batch()[0], 0.2)
    with pytest.raises(ValueError, match="how='streaming' is not allowed; it must be one of 'projected', 'in_parts'"):
        model.measure([image_batch()], how="streaming")
