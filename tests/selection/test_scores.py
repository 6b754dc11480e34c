import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_trady.selection import SCORES_NAME, ChannelScores, CostTable, LayerCost

from .test_drawing import scores_of, tables


@given(tables(), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_a_shared_channel_has_the_norm_over_all_layers_that_share_it(table, seed):
    scores = scores_of(table, seed)
    found = scores.by_input(table).split([row.channels for row in table.by_input()])
    for norms, sharing in zip(found, table.sharing(), strict=True):
        stacked = torch.stack([scores.norms[row.name].double() for row in sharing])
        assert torch.allclose(norms, stacked.norm(dim=0))


@given(tables(), st.integers(0, 100), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_they_come_back_from_disk_bit_for_bit(tmp_path_factory, table, seed, draw):
    path = tmp_path_factory.mktemp("scores")
    row = table.rows[0]
    scores = ChannelScores(scores_of(table, seed).norms, draw=draw)
    scores = scores.observed({row.name: torch.tensor([0])}, {row.name: torch.tensor([7.0])})
    scores.save_pretrained(path)
    loaded = ChannelScores.from_pretrained(path)
    assert loaded.draw == draw and loaded.norms.keys() == scores.norms.keys()
    for part in ("norms", "latest"):
        assert all(torch.equal(getattr(loaded, part)[name], value) for name, value in getattr(scores, part).items())


def test_what_training_sees_counts_from_the_next_draw_on():
    scores = ChannelScores({"a": torch.tensor([1.0, 2.0, 3.0])})
    seen = scores.observed({"a": torch.tensor([0, 2])}, {"a": torch.tensor([9.0, 8.0])})
    assert seen.norms["a"].tolist() == [1, 2, 3] == scores.norms["a"].tolist()
    assert seen.of_draw(0) is seen
    assert seen.of_draw(1).norms["a"].tolist() == [9, 2, 8] and seen.of_draw(1).draw == 1


@pytest.mark.parametrize("content", [b"", b"{}", struct.pack("<Q", 8) + b"{}      "], ids=["empty", "json", "no draw"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path, content):
    (tmp_path / SCORES_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=r"does not hold channel scores .*; delete it to measure anew"):
        ChannelScores.from_pretrained(tmp_path)


def test_a_tensor_that_is_no_row_of_floats_is_refused(tmp_path):
    header = json.dumps(
        {"__metadata__": {"draw": "0"}, "norms.a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}
    )
    (tmp_path / SCORES_NAME).write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    with pytest.raises(ValueError, match="not a row of floats"):
        ChannelScores.from_pretrained(tmp_path)


def test_without_a_file_there_are_none(tmp_path):
    assert ChannelScores.from_pretrained(tmp_path) is None


def test_scores_of_another_network_are_refused_by_the_first_layer():
    table = CostTable((LayerCost("a", 3, 1, 1, 1), LayerCost("b", 4, 1, 1, 1)))
    with pytest.raises(ValueError, match="no such layer there for 'b', which has 4 channels here"):
        ChannelScores({"a": torch.zeros(3)}).check(table)
    with pytest.raises(ValueError, match="2 channels there for 'a', which has 3"):
        ChannelScores({"a": torch.zeros(2), "b": torch.zeros(4)}).check(table)
