import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, T5Config, T5Model
from transformers.pytorch_utils import Conv1D

from hf_trady import CostTable, cost_table
from hf_trady.selection import LayerCost


PAPER = json.loads((Path(__file__).parents[1] / "data" / "mbv2_w035.json").read_text())
EXCLUDED = ["classifier"]


@pytest.fixture(scope="module")
def mobilenet():
    """MobileNetV2-w0.35 as the paper has it: its last convolution is scaled too, which timm leaves at 1,280."""
    network = timm.create_model("mobilenetv2_035")
    network.conv_head, network.bn2 = nn.Conv2d(112, 448, 1, bias=False), nn.BatchNorm2d(448)
    network.classifier = nn.Linear(448, 1000)
    return network


@pytest.fixture(scope="module")
def table(mobilenet):
    return cost_table(mobilenet, torch.zeros(1, 3, 128, 128), EXCLUDED)


def test_every_row_is_the_papers(table):
    rows = [[row.name, row.channels, row.weight_per_channel, row.activation_per_channel] for row in table]
    assert rows == PAPER["layers"] and len(rows) == 52


def test_totals_are_the_papers(table):
    assert (table.weight_units, table.activation_units, table.total_units) == (288_864, 963_456, 1_252_320)


@pytest.mark.parametrize(
    ("scheme", "total"), [("49kb", 28_282), ("73kb", 46_208), ("99kb", 66_592), ("123kb", 83_840), ("138kb", 93_696)]
)
def test_sparse_update_schemes_cost_what_the_paper_says(table, scheme, total):
    chosen = [(table.rows[int(layer)], n) for layer, n in PAPER["schemes"][scheme]["channels"].items()]
    assert sum(n * row.space for row, n in chosen) == PAPER["schemes"][scheme]["total"] == total
    assert sum(n * row.weight_per_channel for row, n in chosen) == PAPER["schemes"][scheme]["weights"]
    assert sum(n * row.activation_per_channel for row, n in chosen) == PAPER["schemes"][scheme]["activations"]


def test_macs_are_those_of_the_weight_gradient(table):
    stem, depthwise = table["conv_stem"], table["blocks.1.0.conv_dw"]
    assert stem.macs_per_channel == 144 * 64 * 64 and depthwise.macs_per_channel == 9 * 32 * 32
    assert table.total_macs == sum(row.channels * row.macs_per_channel for row in table)


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_batch_size_does_not_matter(mobilenet, table, batch_size):
    assert cost_table(mobilenet, torch.zeros(batch_size, 3, 128, 128), EXCLUDED) == table


def test_bert_with_a_dict_of_inputs():
    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = BertModel(BertConfig(vocab_size=50, **config))
    inputs = {"input_ids": torch.ones(3, 16, dtype=torch.long), "attention_mask": torch.ones(3, 16, dtype=torch.long)}
    rows = cost_table(model, inputs)
    assert len(rows) == 2 * 6 + 1
    for row in rows:
        layer = model.get_submodule(row.name)
        tokens = 1 if row.name == "pooler.dense" else 16
        assert (row.channels, row.weight_per_channel) == (layer.in_features, layer.out_features)
        assert (row.activation_per_channel, row.macs_per_channel) == (tokens, tokens * layer.out_features)


def shared_inputs(table):
    """Sets of the layers that share an input."""
    groups = {}
    for row in table:
        groups.setdefault(row.shares_input_with or row.name, set()).add(row.name)
    return [group for group in groups.values() if len(group) > 1]


def small(kind, config, **kwargs):
    return kind(config(vocab_size=50, **kwargs))


def layers(pattern, *names):
    return {pattern.format(name) for name in names}


def test_layers_of_transformers_that_share_an_input():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    tokens = {"input_ids": torch.ones(3, 16, dtype=torch.long)}
    attention = layers("attention.self.{}", "query", "key", "value")
    of_bert = [layers(f"encoder.layer.{i}.{{}}", *attention) for i in range(2)]
    bert = cost_table(small(BertModel, BertConfig, **sizes), tokens)
    assert shared_inputs(bert) == of_bert
    assert bert.activation_units == 16 * sum([32, 32, 32, 48] * 2) + 32
    assert bert.total_units == bert.weight_units + bert.activation_units

    groups = [layers("self_attn.{}_proj", "q", "k", "v"), layers("mlp.{}_proj", "gate", "up")]
    of_llama = [layers(f"layers.{i}.{{}}", *group) for i in range(2) for group in groups]
    llama = cost_table(small(LlamaModel, LlamaConfig, **sizes, num_key_value_heads=1), tokens)
    assert shared_inputs(llama) == of_llama
    assert llama.activation_units == 16 * 2 * (32 + 32 + 32 + 48)


def test_every_layer_of_a_decoder_shares_the_output_of_the_encoder():
    config = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
    ids = torch.ones(2, 6, dtype=torch.long)
    table = cost_table(small(T5Model, T5Config, **config), {"input_ids": ids, "decoder_input_ids": ids[:, :4]})
    crossing = {f"decoder.block.{i}.layer.1.EncDecAttention.{name}" for i in range(2) for name in "kv"}
    assert crossing in shared_inputs(table) and len(shared_inputs(table)) == 2 * (2 + 2) + 1


class Sharing(nn.Module):
    """Linear layers of which only `a` and `b` are given the same input, and both only once."""

    def __init__(self):
        super().__init__()
        for name in ("b", "a", "a_view", "changed", "dropped", "twice", "tied", "tied_too"):
            self.add_module(name, nn.Linear(4, 4))
        self.tied_too.weight = self.tied.weight
        self.conv, self.downsample = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)
        self.dropout, self.identity = nn.Dropout(0.1), nn.Identity()

    def forward(self, x):
        image = x.view(1, 4, -1, 1)
        y = self.twice(x) + self.twice(x) + self.tied(x) + self.tied_too(x)
        y = y + self.a(x) + self.b(self.identity(x)) + self.a_view(x.view_as(x)) + self.dropped(self.dropout(x))
        y = y + (self.conv(image) + self.downsample(image)).mean()
        return y + self.changed(x.mul_(2))


def test_what_shares_an_input_and_what_does_not():
    table = cost_table(Sharing(), torch.zeros(1, 6, 4))
    assert shared_inputs(table) == [{"a", "b"}] and table["b"].shares_input_with == "a"
    assert table.activation_units == sum(row.channels * row.activation_per_channel for row in table) - 4 * 6
    merged = table.by_input()
    assert len(merged) == len(table) - 1 and "b" not in merged and merged.total_units == table.total_units
    assert merged["a"].weight_per_channel == 8 and merged["a"].macs_per_channel == 2 * table["a"].macs_per_channel
    assert merged["a"].activation_per_channel == 6 and merged.total_macs == table.total_macs
    alone = table.subset(set(table._by_name) - {"a"})
    assert alone["b"].input_name == "a" and alone.by_input()["a"].space == table["b"].space
    assert alone.activation_units == table.activation_units


def test_rows_know_the_order_of_execution():
    table = cost_table(Sharing(), torch.zeros(1, 6, 4))
    order = sorted(table, key=lambda row: row.position)
    expected = ["twice", "tied", "a", "b", "a_view", "dropped", "conv", "downsample", "changed"]
    assert [row.name for row in order] == expected and [row.position for row in order] == list(range(9))


@pytest.mark.parametrize("sizes", [(5, 7), (4, 6)])
def test_layers_that_share_an_input_have_as_many_channels_and_positions(sizes):
    channels, activation = sizes
    rows = LayerCost("q", 4, 3, 7, 1), LayerCost("k", channels, 3, activation, 1, shares_input_with="q")
    with pytest.raises(ValueError, match="'q' and 'k' can't share an input"):
        CostTable(rows)


def test_sharing_is_seen_under_inference_mode_and_in_a_real_run():
    class Branching(Sharing):
        def forward(self, x):
            return super().forward(x) if x.sum().item() > -1 else x

    with torch.inference_mode():
        inside = cost_table(Sharing(), torch.zeros(1, 6, 4))
    real = cost_table(Branching(), torch.zeros(1, 6, 4))
    assert real == cost_table(Sharing(), torch.zeros(1, 6, 4)) and inside["b"].shares_input_with == "a"


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Conv2d(3, 4, 3), Conv1D(4, 6)

    def forward(self, image, text):
        return self.image(image).mean((2, 3)) + self.text(text).mean(1)


@pytest.mark.parametrize("wrap", [tuple, list, lambda pair: dict(zip(("image", "text"), pair, strict=True))])
def test_several_inputs(wrap):
    table = cost_table(TwoInputs(), wrap((torch.zeros(2, 3, 8, 7), torch.zeros(2, 5, 6))))
    assert table.rows == (LayerCost("image", 3, 36, 56, 36 * 30), LayerCost("text", 6, 4, 5, 20))


class Shared(nn.Module):
    """One layer called three times; a second one shares the weight of a third; a fourth is never called."""

    def __init__(self):
        super().__init__()
        self.often, self.tied, self.tied_too, self.idle = (nn.Linear(4, 4) for _ in range(4))
        self.tied_too.weight = self.tied.weight

    def forward(self, x):
        for _ in range(3):
            x = self.often(x)
        return self.tied_too(self.tied(x)[:, :5])


def test_a_weight_counts_once_and_its_input_at_every_call(caplog):
    table = cost_table(Shared(), torch.zeros(2, 7, 4))
    assert table.rows == (LayerCost("often", 4, 4, 21, 84), LayerCost("tied", 4, 4, 12, 48))
    (message,) = caplog.messages
    assert "idle" in message and "tied" not in message


def test_a_forward_that_calls_no_layer_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    model.forward = lambda x: x
    with pytest.raises(ValueError, match="calls none of its 1 layers"):
        cost_table(model, torch.zeros(2, 4))


@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2)
)
@settings(max_examples=40, deadline=None)
def test_conv_costs_by_the_formulas(batch, height, width, groups, kernel, padding):
    conv = nn.Conv2d(2 * groups, 3 * groups, kernel, padding=padding, groups=groups, stride=2)
    x = torch.zeros(batch, 2 * groups, height + 2, width + 2)
    _, _, out_height, out_width = conv(x).shape
    weight = 3 * kernel**2
    row = LayerCost("0", 2 * groups, weight, (height + 2) * (width + 2), weight * out_height * out_width)
    assert cost_table(nn.Sequential(conv), x).rows == (row,)


@pytest.mark.parametrize(
    "pattern", [["conv_pw", "blocks.0.0.conv_dw", "classifier"], r".*conv_pw|.*0\.0.*dw|classifier"]
)
def test_exclude_modules(mobilenet, table, pattern):
    left = cost_table(mobilenet, torch.zeros(1, 3, 128, 128), pattern)
    excluded = {row.name for row in table if row.name.endswith(".conv_pw")} | {"blocks.0.0.conv_dw"}
    assert left == table.subset({row.name for row in table} - excluded) and len(left) == 52 - 17 - 1


def test_the_model_and_the_random_states_are_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(16, 2))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state, hooks = copy.deepcopy(model.state_dict()), copy.deepcopy(model[0]._forward_hooks)
    randoms = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    cost_table(model, torch.zeros(2, 3, 4, 4))
    assert [module.training for module in model.modules()] == modes and model[0]._forward_hooks == hooks
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), randoms[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == randoms[1:]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_is_computed_or_allocated():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(100_000, 100_000), nn.ReLU(), nn.Linear(100_000, 10))  # 40 GB
        table = cost_table(model, torch.empty(2, 7, 100_000))
    assert table.weight_units == 100_000 * 100_010 and table.activation_units == 2 * 7 * 100_000


def test_a_real_model_is_not_run():
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3))
    table = cost_table(model, torch.empty(1, 64, 30_000, 1).expand(256, 64, 30_000, 30_000))  # 59 TB
    assert table["0"].activation_per_channel == 30_000**2 and table["1"].activation_per_channel == 29_998**2


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.positive, self.negative = nn.Linear(4, 2), nn.Linear(4, 2)
        self.dropout = nn.Dropout()
        self.runs = []

    def forward(self, x):
        self.runs.append((torch.is_grad_enabled(), self.dropout.training))
        layer = self.positive if self.dropout(x).sum().item() > 0 else self.negative
        return layer(x[x[:, 0] > 0])


def test_control_flow_that_depends_on_values_falls_back_to_a_real_run(caplog):
    model = Branches()
    table = cost_table(model, torch.ones(2, 4))
    assert table.rows == (LayerCost("positive", 4, 2, 1, 2),)
    assert model.runs == [(False, False)] and model.training and model.dropout.training
    assert "negative" in caplog.messages[-1]
    assert not model.positive._forward_hooks
    with pytest.raises(RuntimeError):  # and the real run, too, cleans up when it fails
        cost_table(model, torch.ones(2, 3))
    assert not model.positive._forward_hooks and model.dropout.training


def test_table_access_and_json(table):
    assert table["conv_head"].name == "conv_head" and "conv_head" in table and "classifier" not in table
    with pytest.raises(KeyError):
        table["classifier"]
    assert list(table.subset(["conv_head", "conv_stem"])) == [table.rows[0], table.rows[-1]]
    rows = json.loads(json.dumps(table.to_dict()))["rows"]
    assert CostTable(tuple(LayerCost(**row) for row in rows)) == table


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch fails on neither, or lacks it")
@pytest.mark.parametrize("kind", ["converts", "grouped"])
def test_what_fails_on_fake_tensors_alone_falls_back_to_a_real_run(kind, capfd):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.experts = nn.Linear(8, 8), nn.Parameter(torch.randn(2, 8, 8))

        def forward(self, x):
            if kind == "converts":  # as the router of Switch Transformers does
                self.first = self.first.to(torch.float32)
                return self.first(x)
            ends = torch.tensor([1, len(x)], dtype=torch.int32)
            return F.grouped_mm(self.first(x), self.experts, offs=ends)

    if kind == "grouped":  # the other one fails only while something holds a weak reference to the weight
        with pytest.raises(ValueError, match="costs of Net on the meta device") as error:
            cost_table(Net().to("meta"), torch.randn(4, 8))
        assert "\n" not in str(error.value)
    row = cost_table(Net(), torch.randn(4, 8))["first"]
    assert (row.channels, row.weight_per_channel, row.activation_per_channel) == (8, 8, 1)
    assert "Traceback" not in capfd.readouterr().err


def test_costs_come_back_from_disk_and_fit_no_other_architecture(table, mobilenet, tmp_path):
    assert CostTable.from_pretrained(tmp_path) is None
    table.save_pretrained(tmp_path)
    read, layers = CostTable.from_pretrained(tmp_path), dict(mobilenet.named_modules())
    assert read == table and [row.position for row in read] == [row.position for row in table]
    read.check(layers)
    read.by_output(layers).check(layers, by_output=True)
    with pytest.raises(ValueError, match="'conv_stem' has 3 channels of 144 weights there and 4 of 144 here"):
        read.check(layers | {"conv_stem": nn.Conv2d(4, 16, 3)})
    with pytest.raises(ValueError, match="this one has no layer 'conv_head'"):
        read.check({name: layer for name, layer in layers.items() if name != "conv_head"})


def test_costs_of_output_channels_fit_no_input_channels_nor_the_other_way():
    layers = {"square": nn.Linear(6, 6)}
    table = CostTable((LayerCost("square", 6, 6, 1, 6),))
    with pytest.raises(ValueError, match="costs are of output channels; here, input channels of 'square' train"):
        table.by_output(layers).check(layers)
    with pytest.raises(ValueError, match="costs are of input channels; here, output channels of 'square' train"):
        table.check(layers, by_output=True)


@pytest.mark.parametrize("inputs", [torch.zeros(0, 3, 12, 12), {"x": torch.zeros(0, 3, 12, 12)}], ids=str)
def test_a_batch_without_a_sample_is_refused(inputs):
    with pytest.raises(ValueError, match=r"^example_inputs hold no sample; give a batch of at least one$"):
        cost_table(nn.Conv2d(3, 4, 3), inputs)
