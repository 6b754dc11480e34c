"""What each strategy beside the uniform ones prefers."""

from collections import Counter

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_trady import CostTable
from hf_trady.selection import ChannelScores, LayerCost, draw

from ..test_drawing import cheapest, chosen, scores_of, seeds, strategy_of, tables


FLAT = CostTable((LayerCost("a", 5, 5, 5, 1), LayerCost("b", 5, 5, 5, 1)))


def frequencies(strategy, table, budget, scores, draws=4000):
    counts = Counter()
    for epoch in range(draws):
        counts.update(chosen(draw(strategy, table, budget, 3, epoch, scores)))
    return {key: count / draws for key, count in counts.items()}


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_the_first_informed_channel_is_drawn_in_proportion_to_its_weight(tau):
    scores = ChannelScores({"a": torch.arange(1.0, 6.0), "b": torch.arange(6.0, 11.0)})
    weights = torch.cat([*scores.norms.values()]) ** tau
    expected = weights / weights.sum()
    found = frequencies(strategy_of("informed", tau=tau), FLAT, 10, scores)
    for i, share in enumerate(expected.tolist()):
        name, channel = ("a", i) if i < 5 else ("b", i - 5)
        assert found.get((name, channel), 0) == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)


def test_cost_counts_where_it_should():
    """Half the cost is twice the weight for `informed`; MeDyate goes by the norm alone."""
    table = CostTable((LayerCost("cheap", 1, 5, 5, 1), LayerCost("dear", 1, 10, 10, 1)))
    scores = ChannelScores({"cheap": torch.ones(1), "dear": torch.ones(1)})
    firsts = {}
    for name in ("informed", "medyate"):
        first = Counter()
        strategy, inputs = strategy_of(name), table.by_input()
        for seed in range(2000):
            order = strategy.choose(inputs, 100, scores.by_input(table), torch.Generator().manual_seed(seed))
            first[int(order[0])] += 1
        firsts[name] = first[0] / 2000
    assert firsts["informed"] == pytest.approx(2 / 3, abs=0.05) and firsts["medyate"] == pytest.approx(0.5, abs=0.05)


@given(tables(), seeds(), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_a_large_tau_is_greedy(table, seed, epoch):
    scores, budget = scores_of(table, 5), cheapest(table) + table.total_units // 3
    ratios = scores.by_input(table) / table.by_input().spaces()
    gaps = ratios.log().sort().values.diff()
    assume(not len(gaps) or gaps.min() > 1e-6)
    greedy = draw(strategy_of("static_rgn"), table, budget, seed, epoch, scores)
    assert chosen(draw(strategy_of("informed", tau=1e9), table, budget, seed, epoch, scores)) == chosen(greedy)


def test_an_unseen_channel_counts_like_the_largest_seen():
    scores = ChannelScores({"a": torch.tensor([1.0, torch.nan, 3.0, 3.0, 3.0]), "b": torch.full((5,), torch.nan)})
    filled = ChannelScores({"a": torch.tensor([1.0, 3.0, 3.0, 3.0, 3.0]), "b": torch.full((5,), 3.0)})
    for epoch in range(20):
        pair = [draw(strategy_of("medyate"), FLAT, 40, 3, epoch, known) for known in (scores, filled)]
        assert chosen(pair[0]) == chosen(pair[1])


def test_where_nothing_is_seen_yet_medyate_is_uniform():
    found = frequencies(strategy_of("medyate"), FLAT, 30, ChannelScores.unknown(FLAT))
    assert all(share == pytest.approx(0.3, abs=0.04) for share in found.values()) and len(found) == 10
