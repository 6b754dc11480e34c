import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_trady import CostTable, SparsityReport
from hf_trady.selection import LayerCost, sparsity


# Units: 4 * (10 + 6) + 2 * (3 + 5) = 80. MACs: 4 * 100 + 2 * 7 = 414.
TABLE = CostTable((LayerCost("conv", 4, 10, 6, 100), LayerCost("fc", 2, 3, 5, 7)))
SIZES = {"conv": 4, "fc": 2}


@st.composite
def tables(draw):
    """The second and third layer may share the input of the first."""
    rows = draw(st.lists(st.tuples(*[st.integers(1, 20)] * 4), min_size=1, max_size=5))
    rows = [LayerCost(f"layer{i}", *row) for i, row in enumerate(rows)]
    for i in range(1, draw(st.integers(1, min(len(rows), 3)))):
        rows[i] = replace(rows[0], name=rows[i].name, weight_per_channel=i, shares_input_with="layer0")
    return CostTable(tuple(rows))


@st.composite
def selections(draw, table):
    channels = {row.name: draw(st.sets(st.integers(0, row.channels - 1))) for row in table}
    for row in table:
        if row.shares_input_with is not None and draw(st.booleans()):
            channels[row.name] = channels[row.shares_input_with]
    return {name: torch.tensor(sorted(some)) for name, some in channels.items() if some}


def test_by_hand():
    selection = {"conv": torch.tensor([0, 2, 3]), "fc": torch.tensor([1])}
    report = sparsity(TABLE, selection, epoch=7, budget=70, element_sizes=SIZES, bias_units=9)
    assert report == SparsityReport(
        epoch=7,
        activation_sparsity=1 - 23 / 34,
        weight_sparsity=1 - 33 / 46,
        flops_saved=1 - 307 / 414,
        units=3 * 16 + 8 + 9,
        budget=70,
        weight_bytes=30 * 4 + 3 * 2,
        activation_bytes=18 * 4 + 5 * 2,
        active_layers=2,
        total_layers=2,
        active_channels=4,
        total_channels=6,
    )


def test_of_one_layer_of_two():
    report = sparsity(TABLE, {"fc": torch.tensor([0, 1])}, 0, 16, SIZES)
    assert (report.active_layers, report.total_layers, report.active_channels) == (1, 2, 2)
    assert (report.units, report.weight_bytes, report.activation_bytes) == (16, 12, 20)
    assert report.weight_sparsity == 1 - 6 / 46 and report.activation_sparsity == 1 - 10 / 34


@given(tables(), st.data())
@settings(max_examples=100, deadline=None)
def test_channels_counted_one_by_one(table, data):
    selection = data.draw(selections(table))
    sizes = {row.name: data.draw(st.sampled_from([2, 4, 8])) for row in table}
    sizes |= {row.name: sizes[row.shares_input_with] for row in table if row.shares_input_with}
    report = sparsity(table, selection, 1, 10**6, sizes, bias_units=3)
    every = [row for row in table for _ in range(row.channels)]
    active = [table[name] for name, index in selection.items() for _ in index]
    # The layers that keep a slice of their input; the others find that an earlier one keeps the same.
    slices = [(table[name].shares_input_with or name, index.tolist()) for name, index in selection.items()]
    keepers = [name for i, name in enumerate(selection) if slices[i] not in slices[:i]]
    kept = [table[name] for name in keepers for _ in selection[name]]
    inputs = [row for row in every if row.shares_input_with is None]
    share = lambda cost, some=active, all=every: 1 - sum(map(cost, some)) / sum(map(cost, all))  # noqa: E731
    assert report.weight_sparsity == pytest.approx(share(lambda row: row.weight_per_channel))
    assert report.activation_sparsity == pytest.approx(share(lambda row: row.activation_per_channel, kept, inputs))
    assert report.flops_saved == pytest.approx(share(lambda row: row.macs_per_channel))
    activations = sum(row.activation_per_channel for row in kept)
    assert report.units == sum(row.weight_per_channel for row in active) + activations + 3
    assert report.weight_bytes == sum(row.weight_per_channel * sizes[row.name] for row in active)
    assert report.activation_bytes == sum(row.activation_per_channel * sizes[row.name] for row in kept)
    assert (report.active_channels, report.total_channels) == (len(active), len(every))
    assert (report.active_layers, report.total_layers) == (len({row.name for row in active}), len(table))


@given(tables())
@settings(max_examples=30, deadline=None)
def test_nothing_is_all_sparse_and_everything_not_at_all(table):
    sizes = {row.name: 4 for row in table}
    nothing = sparsity(table, {}, 0, 100, sizes)
    assert (nothing.activation_sparsity, nothing.weight_sparsity, nothing.flops_saved) == (1, 1, 1)
    assert (nothing.units, nothing.weight_bytes, nothing.active_layers, nothing.active_channels) == (0, 0, 0, 0)
    everything = sparsity(table, {row.name: torch.arange(row.channels) for row in table}, 0, 100, sizes)
    assert (everything.activation_sparsity, everything.weight_sparsity, everything.flops_saved) == (0, 0, 0)
    assert everything.units == table.total_units and everything.active_channels == everything.total_channels


def test_as_dict_as_logs_and_as_text():
    report = sparsity(TABLE, {"conv": torch.tensor([0, 2, 3])}, 7, 7000, SIZES, bias_units=1000)
    assert SparsityReport(**json.loads(json.dumps(report.to_dict()))) == report
    values = report.to_dict()
    logs = report.logs()
    assert len(logs) == 7 and all(logs[key] == values[key.removeprefix("trady/")] for key in logs)
    assert all(type(value) in (int, float) for value in logs.values())
    text = str(report)
    assert text.splitlines() == [text]
    for part in ("epoch 7", "47.06%", "34.78%", "27.54%", "1,048 of 7,000 units", "3 of 6 channels in 1 of 2 layers"):
        assert part in text
