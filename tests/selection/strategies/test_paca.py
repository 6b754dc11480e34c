from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_trady.selection import draw

from ..test_drawing import cheapest, chosen, cost, seeds, strategy_of, tables


@given(tables(), st.integers(1, 3000), seeds(), st.none() | st.integers(1, 25))
@settings(max_examples=200, deadline=None)
def test_paca_trains_as_many_channels_in_every_layer(table, budget, seed, number):
    assume(budget >= cheapest(table))
    drawn = draw(strategy_of("paca", channels_per_layer=number), table, budget, seed, 0)
    counts = {row.name: len(drawn[row.name]) for row in table}
    most = max(counts.values())
    assert all(count == min(most, table[name].channels) for name, count in counts.items())
    if number is not None:
        assert most == min(number, max(row.channels for row in table))
    else:
        assert most == 1 or cost(table, drawn) <= budget
        larger = draw(strategy_of("paca", channels_per_layer=most + 1), table, budget, seed, 0)
        assert cost(table, larger) > budget or chosen(larger) == chosen(drawn)
    assert chosen(drawn) == chosen(draw(strategy_of("paca", channels_per_layer=number), table, budget, seed, 9))
