import numpy as np
import pytest
import torch

from hf_trady import CostTable
from hf_trady.comparison.agreement import channel_agreement, common_ranking, layer_agreement
from hf_trady.selection import GradientRecord, LayerCost


TABLE = CostTable(tuple(LayerCost(f"layer{i}", 6, 5, 5, 1) for i in range(8)))


def record(sizes, channels):
    """Layer i has `sizes[i]` times the norms `channels`."""
    found = GradientRecord(TABLE)
    for row, size in zip(TABLE, sizes, strict=True):
        found.add(row.name, size * torch.tensor(channels))
    return found


def test_layers_and_channels_agree_each_by_their_own_order():
    up, down = [1.0, 2, 3, 4, 5, 6, 7, 8], [8.0, 7, 6, 5, 4, 3, 2, 1]
    records = {
        "a": record(up, [1.0, 2, 3, 4, 5, 6]),
        "b": record([10 * x**2 for x in up], [6.0, 5, 4, 3, 2, 1]),
        "c": record(down, [1.0, 2, 3, 4, 5, 60]),
    }
    layers, channels = layer_agreement(records), channel_agreement(records)
    assert np.allclose(layers, [[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    assert np.allclose(channels, [[1, -1, 1], [-1, 1, -1], [1, -1, 1]])
    assert layer_agreement({"a": records["a"]}).tolist() == [[1.0]]


def test_each_run_counts_as_much_in_the_common_ranking():
    up, down = [1.0, 2, 3, 4, 5, 6, 7, 8], [800.0, 700, 600, 500, 400, 300, 200, 100]
    ranking = common_ranking({"a": record(up, [1.0] * 6), "b": record(down, [1.0] * 6)})
    assert list(ranking.scores["rgn"].values()) == pytest.approx([1 / 8] * 8)
    assert ranking.info == {"runs": ["a", "b"]}
    ranking.check(TABLE)
