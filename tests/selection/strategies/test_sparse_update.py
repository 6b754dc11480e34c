from pathlib import Path

import pytest
import timm
import torch

from hf_trady import CostTable, TraDyConfig, TraDyModel
from hf_trady.selection import ChannelScores, LayerCost, draw, make_strategy

from ..test_drawing import strategy_of


FLAT = CostTable((LayerCost("a", 5, 5, 5, 1), LayerCost("b", 5, 5, 5, 1)))
EXAMPLES = Path(__file__).parents[3] / "examples" / "sparse_update"


def test_a_scheme_takes_the_channels_with_the_largest_weights():
    weights = ChannelScores({"a": torch.tensor([1.0, 5.0, 3.0, 4.0, 2.0]), "b": torch.arange(5.0)})
    drawn = draw(strategy_of("sparse_update", scheme={"a": 0.5, "b": 0.2}), FLAT, 100, 0, 0, weights)
    assert {name: index.tolist() for name, index in drawn.items()} == {"a": [1, 3], "b": [4]}


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ({"a": 0.5, "z": 0.5}, "scheme names 'z', which is not one of the layers"),
        ({"key": 0.5}, "scheme names 'key', but 'key' trains the same channels as 'a'"),
        ({"a": 0.1}, "trains no channel"),
        ({"a": 1.0, "b": 1.0}, "costs 125 units, more than the 80 of memory_budget"),
    ],
)
def test_a_scheme_that_does_not_fit_is_refused_by_name(scheme, message):
    key = LayerCost("key", 5, 5, 5, 1, shares_input_with="a")
    with pytest.raises(ValueError, match=message):
        strategy_of("sparse_update", scheme=scheme).check(CostTable((*FLAT, key)), 80)


def test_a_scheme_is_needed():
    with pytest.raises(ValueError, match="needs a scheme"):
        make_strategy(TraDyConfig(strategy="sparse_update"))


@pytest.mark.parametrize(
    ("name", "units", "biases"),
    [("49kb", 28282, 16), ("73kb", 46208, 20), ("99kb", 66592, 25), ("123kb", 83840, 31), ("138kb", 93696, 34)],
)
def test_the_published_schemes_cost_what_the_paper_says(name, units, biases):
    """The three budgets of TraDy's tables are the costs of three of these, without their biases."""
    scheme = str(EXAMPLES / f"mobilenetv2_035_{name}.json")
    config = TraDyConfig(strategy="sparse_update", scheme=scheme, memory_budget=units)
    model = TraDyModel(timm.create_model("mobilenetv2_035", num_classes=10), config, torch.zeros(1, 3, 128, 128))
    assert model.report().units == units
    config = TraDyConfig(strategy="sparse_update", scheme=scheme, memory_budget=units + 10**4, train_bias=biases)
    model = TraDyModel(timm.create_model("mobilenetv2_035", num_classes=10), config, torch.zeros(1, 3, 128, 128))
    trained = [name for name, p in model.base_model.named_parameters() if p.requires_grad]
    assert len([name for name in trained if name.endswith("bias") and "classifier" not in name]) == biases


def test_a_scheme_names_layers_by_suffix_too():
    config = TraDyConfig(strategy="sparse_update", scheme={"1": 0.5}, memory_budget=0.9, modules_to_save=[])
    net = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)))
    model = TraDyModel(net, config, torch.zeros(1, 4))
    assert {name: len(index) for name, index in model.active_channels().items()} == {"0.1": 2}
