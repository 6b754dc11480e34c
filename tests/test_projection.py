"""Projected gradients on whole models, and what they may cost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from hf_trady.projection import NUM_DIRECTIONS, group_layers
from hf_trady.selection import affordable

from .selection.test_drawing import tables
from .tiny import MODELS, bert, inputs_of, token_batch, wrap


@given(tables(), st.integers(1, 2000), st.integers(0, 2000))
@settings(max_examples=200, deadline=None)
def test_no_group_costs_more_and_every_layer_that_can_be_paid_is_in_one(table, units, activation):
    groups = group_layers(table, units, activation)
    for group in groups:
        assert all(0 <= number <= NUM_DIRECTIONS for number in group.values())
        kept = sum(table[name].activation_per_channel + n * table[name].positions for name, n in group.items())
        assert kept <= activation
        assert kept + sum(table[name].weight_per_channel for name in group) <= units
    names = [name for group in groups for name in group]
    assert names == [row.name for row in table if row.space <= units and row.activation_per_channel <= activation]


@pytest.mark.parametrize("make, batch", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("budget", [0.15, 1.0])
def test_on_whole_models_the_norms_come_out_right(make, batch, budget):
    model = wrap(make(), inputs_of(batch), budget)
    true = model.measure([batch], how="at_once", num_steps=1, disable_tqdm=True)
    found = model.measure([batch], how="projected", num_steps=30, disable_tqdm=True)
    looked_at = [row for row in affordable(model.costs, model.budget) if found.norms[row.name].any()]
    assert looked_at
    for row in looked_at:
        module = model.base_model.get_submodule(row.name)
        if module.weight.shape[0] // getattr(module, "groups", 1) > NUM_DIRECTIONS:  # else by moments
            mean = found.norms[row.name] / 30
            assert torch.allclose(mean, true.norms[row.name], rtol=0.35, atol=1e-3 * float(true.norms[row.name].max()))
    ratios = [torch.cat([record.norms[row.name] / row.space for row in looked_at]) for record in (true, found)]
    assert spearmanr(*ratios).statistic > 0.9


def test_with_dropout_both_forwards_are_the_same():
    batch = token_batch()
    model = wrap(bert(dropout=0.4).train(), inputs_of(batch), 1.0)
    correlations = []
    for seed in range(3):
        records = []
        for how, steps in (("at_once", 1), ("projected", 1)):
            torch.manual_seed(seed)
            records.append(model.measure([batch], how=how, num_steps=steps, disable_tqdm=True))
        rows = [row.name for row in model.costs]
        true, found = (torch.cat([record.norms[name] for name in rows]) for record in records)
        correlations.append(spearmanr(true, found).statistic)
    assert min(correlations) > 0.9
