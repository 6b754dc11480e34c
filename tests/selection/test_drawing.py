import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_trady import CostTable, TraDyConfig
from hf_trady.selection import (
    STRATEGIES,
    ChannelScores,
    LayerCost,
    affordable,
    draw,
    make_strategy,
    max_weight_units,
)


# Those that stop at the budget, and need no option; by name, and what chance decides in them.
WITHIN_BUDGET = sorted(set(STRATEGIES) - {"paca", "sparse_update"})
RANDOM = sorted(set(WITHIN_BUDGET) - {"static_rgn", "dynamic_rgn", "velocity"})


@st.composite
def tables(draw, max_cost=60):
    """Up to six layers, some of which share an input with an earlier one; that one may be missing."""
    sizes = st.tuples(st.integers(1, 20), st.integers(1, max_cost), st.integers(0, max_cost))
    rows = []
    for i, (channels, weight, activation) in enumerate(draw(st.lists(sizes, min_size=1, max_size=6))):
        first = draw(st.sampled_from([None, *(row for row in rows if row.shares_input_with is None)]))
        if first is None:
            rows.append(LayerCost(f"layer{i}", channels, weight, activation, 1))
        else:
            rows.append(replace(first, name=f"layer{i}", weight_per_channel=weight, shares_input_with=first.name))
    return CostTable(tuple(rows[draw(st.integers(0, len(rows) - 1)) :]))


def strategy_of(name, **options):
    return make_strategy(TraDyConfig(strategy=name, **options))


def strategies(names=WITHIN_BUDGET):
    return st.sampled_from(names).map(strategy_of)


def scores_of(table, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ChannelScores({row.name: torch.rand(row.channels, generator=generator) for row in table})


def drawn(strategy, table, budget, seed, epoch, scores=None):
    """A draw, by made-up scores that depend on the layers' names and sizes alone."""
    if strategy.scores is not None and scores is None:
        scores = ChannelScores({row.name: scores_of([row], row.channels).norms[row.name] for row in table})
    return draw(strategy, table, budget, seed, epoch, scores)


def seeds():
    return st.integers(0, 2**63 - 1)


def chosen(selection):
    return {(name, channel) for name, index in selection.items() for channel in index.tolist()}


def kept_by(row):
    return row.shares_input_with or row.name


def cost(table, selection):
    """Every weight, and every channel of an input once."""
    kept = {(kept_by(table[name]), channel): table[name] for name, channel in chosen(selection)}
    return weight(table, selection) + sum(row.activation_per_channel for row in kept.values())


def weight(table, selection):
    return sum(table[name].weight_per_channel * len(index) for name, index in selection.items())


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def cheapest(table):
    """Units of the cheapest channel, in all layers that share it."""
    inputs = {kept_by(row): row.activation_per_channel for row in table}
    return min(
        activation + sum(row.weight_per_channel for row in table if kept_by(row) == name)
        for name, activation in inputs.items()
    )


@given(strategies(), tables(), st.integers(1, 3000), seeds(), st.integers(0, 500))
@settings(max_examples=300, deadline=None)
def test_a_draw_fits_the_budget_and_is_well_formed(strategy, table, budget, seed, epoch):
    assume(budget >= cheapest(table))
    selection = drawn(strategy, table, budget, seed, epoch)
    assert 0 < cost(table, selection) <= budget
    for name, index in selection.items():
        assert index.dtype == torch.int64 and len(index) > 0
        assert (index[1:] > index[:-1]).all() and index[0] >= 0 and index[-1] < table[name].channels
        sharing = [row.name for row in table if kept_by(row) == kept_by(table[name])]
        assert all(torch.equal(selection[other], index) for other in sharing)


@given(strategies(), tables(), st.integers(1, 2000), seeds(), st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_a_draw_stops_at_the_first_channel_that_does_not_fit(strategy, table, budget, seed, epoch):
    """The order shows by growing the budget: a draw is a prefix of the order of the layers that are affordable."""
    assume(budget >= cheapest(table))
    pool = affordable(table, budget)
    taken, everything = drawn(strategy, table, budget, seed, epoch), pool.total_units
    assert same(taken, drawn(strategy, pool, budget, seed, epoch))
    spent = cost(table, taken)
    if len(chosen(taken)) == sum(row.channels for row in pool):
        assert spent == everything
        return
    larger = budget + 1
    while len(chosen(drawn(strategy, pool, larger, seed, epoch))) == len(chosen(taken)):
        larger += 1
    following = chosen(drawn(strategy, pool, larger, seed, epoch)) - chosen(taken)
    # The next in the order, in all the layers that share it; with one unit less it would not have fitted.
    assert len({(kept_by(table[name]), channel) for name, channel in following}) == 1
    assert larger == spent + cost(table, {name: torch.tensor([channel]) for name, channel in following}) > budget


@given(strategies(), tables(), seeds(), st.integers(0, 100), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_a_draw_is_a_pure_function_of_seed_and_epoch(strategy, table, seed, epoch, other):
    budget = cheapest(table) + table.total_units // 3
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = drawn(strategy, table, budget, seed, epoch)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    drawn(strategy, table, budget, seed, other)
    drawn(strategy, table, budget, other, epoch)
    assert same(first, drawn(strategy, table, budget, seed, epoch))


LARGE = CostTable(tuple(LayerCost(f"layer{i}", 64, 10, 10, 1) for i in range(10)))


@pytest.mark.parametrize("name", RANDOM)
@given(seed=seeds(), epochs=st.lists(st.integers(0, 10_000), min_size=2, max_size=5, unique=True))
@settings(max_examples=30, deadline=None)
def test_dynamic_strategies_draw_anew_each_epoch_and_static_ones_do_not(name, seed, epochs):
    strategy = strategy_of(name)
    draws = {frozenset(chosen(drawn(strategy, LARGE, 2000, seed, epoch))) for epoch in epochs}
    assert len(draws) == (1 if name.startswith("static") else len(epochs))


@given(strategies(RANDOM), seeds(), seeds())
@settings(max_examples=50, deadline=None)
def test_another_seed_draws_other_channels(strategy, seed, other):
    assume(seed != other)
    assert not same(drawn(strategy, LARGE, 2000, seed, 0), drawn(strategy, LARGE, 2000, other, 0))


def test_seed_and_epoch_do_not_mix():
    """Draws of neighbouring seeds and epochs are all different, unlike those of a generator seeded by their sum."""
    strategy = strategy_of("trady")
    draws = {frozenset(chosen(drawn(strategy, LARGE, 2000, seed, epoch))) for seed in range(20) for epoch in range(20)}
    assert len(draws) == 400


def test_every_channel_is_drawn_equally_often():
    epochs, table = (
        2000,
        CostTable((LayerCost("a", 10, 5, 5, 1), LayerCost("b", 30, 2, 8, 1), LayerCost("c", 1, 9, 1, 1))),
    )
    counts = Counter()
    for epoch in range(epochs):
        selection = chosen(drawn(strategy_of("trady"), table, 105, 7, epoch))
        assert len(selection) == 10
        counts.update(selection)
    expected = epochs * 10 / 41
    variance = expected * (1 - 10 / 41)  # of one count; the 41 counts sum to a constant
    statistic = sum(
        (counts[name, c] - expected) ** 2 for name, n in [("a", 10), ("b", 30), ("c", 1)] for c in range(n)
    )
    assert len(counts) == 41 and statistic / variance * 40 / 41 < 73.4  # chi-square, 40 degrees of freedom: p = 0.001


@given(strategies(), tables(), seeds(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_budget_below_the_cheapest_channel_is_refused_and_the_one_named_works(strategy, table, seed, data):
    budget = data.draw(st.integers(0, cheapest(table) - 1))
    with pytest.raises(ValueError, match=r"smallest that works is [\d,]+ units") as refusal:
        drawn(strategy, table, budget, seed, 0)
    smallest = int(re.search(r"works is ([\d,]+) units", str(refusal.value))[1].replace(",", ""))
    assert f"{budget:,} units" in str(refusal.value) and smallest == cheapest(table)
    named = set(re.findall(r"'(\w+)'", str(refusal.value)))
    assert cost(table, {name: torch.tensor([0]) for name in named}) == smallest
    assert cost(table, drawn(strategy, table, smallest, seed, 0)) == smallest


def test_a_shared_channel_is_drawn_as_often_as_any_other():
    query = LayerCost("query", 10, 5, 5, 1)
    key, other = replace(query, name="key", shares_input_with="query"), LayerCost("other", 10, 5, 5, 1)
    table, epochs, counts = CostTable((query, other, key)), 2000, Counter()
    for epoch in range(epochs):
        selection = drawn(strategy_of("trady"), table, 60, 7, epoch)
        assert 4 <= len(chosen(selection) - {("key", c) for c in range(10)}) <= 6
        counts.update(name for name, _ in chosen(selection))
    assert counts["query"] == counts["key"] and counts["query"] / counts["other"] == pytest.approx(1, abs=0.1)


def test_no_layers_at_all_is_refused():
    with pytest.raises(ValueError, match="no layer to draw"):
        drawn(strategy_of("trady"), CostTable(()), 100, 0, 0)


@given(strategies(), tables(), st.integers(1, 3000), st.lists(seeds(), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_no_draw_has_more_weights_than_the_bound(strategy, table, budget, some_seeds):
    assume(budget >= cheapest(table))
    bound = max_weight_units(table, budget)
    assert isinstance(bound, int) and bound <= budget
    for seed in some_seeds:
        selection = drawn(strategy, table, budget, seed, 0)
        assert weight(table, selection) <= bound
        for part in ({row.name for row in table.rows[::2]}, {row.name for row in table.rows[1::2]}):
            of_part = {name: index for name, index in selection.items() if name in part}
            assert weight(table, of_part) <= max_weight_units(table, budget, part)


def test_the_bound_is_exact_where_layers_have_equal_shares_of_weight():
    for share in range(2, 60):  # in floating point some of these would come out one too small
        for n in range(1, 60):
            table = CostTable((LayerCost("big", n, share, share, 1), LayerCost("small", 200, 1, 1, 1)))
            budget = 2 * share + 2 * n
            assert max_weight_units(table, budget) == budget // 2


@given(tables())
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("more", [0, 2**70], ids=["just", "beyond int64"])
def test_a_budget_for_everything_takes_everything(more, table):
    for strategy in map(strategy_of, WITHIN_BUDGET):
        selection = drawn(strategy, table, table.total_units + more, 0, 0)
        assert cost(table, selection) == table.total_units
        assert weight(table, selection) == table.weight_units == max_weight_units(table, table.total_units)
