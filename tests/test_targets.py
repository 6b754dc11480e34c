import copy
import re

import pytest
import torch
import transformers
from accelerate import cpu_offload
from torch import nn
from transformers import GPT2ForSequenceClassification, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.targets import find_heads, find_layers, select_targets

from .tiny import (
    anatomy,
    bert,
    conv_net,
    copy_of_state,
    different_keys,
    gpt2,
    image_batch,
    ranking_of,
    timm_net,
    timm_wrapper,
    train,
    wrap,
)


CONV_LAYERS = ["stem", "depthwise", "pointwise", "hidden"]


def llama(kind: type) -> nn.Module:
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    return kind(LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=16, pad_token_id=0))


def layers_of(model: nn.Module, heads: list[str]) -> list[str]:
    return list(find_layers(model, heads, None))


@pytest.mark.parametrize(
    "make, heads",
    [
        (lambda: timm_net(name="test_efficientnet"), ["classifier"]),
        (lambda: timm_net(name="test_resnet"), ["fc"]),
        (lambda: timm_net(name="test_convnext"), ["head.fc"]),
        (lambda: timm_net(num_classes=0), []),
        (timm_wrapper, ["timm_model.classifier"]),
        (bert, ["classifier"]),
        (lambda: gpt2(kind=GPT2ForSequenceClassification, num_labels=3), ["score"]),
        (lambda: llama(LlamaForSequenceClassification), ["score"]),
        (gpt2, []),
        (lambda: llama(LlamaForCausalLM), []),
    ],
    ids=["effnet", "resnet", "convnext", "headless", "wrapper", "bert", "gpt2-cls", "llama-cls", "gpt2", "llama"],
)
def test_every_linear_and_convolution_is_a_layer_but_the_head_and_the_output_embedding(make, heads):
    model = make()
    assert find_heads(model, None) == heads
    kinds = ("Linear", "Conv2d", "Conv1D", "Conv2dSame")
    everything = [name for name, module in model.named_modules() if type(module).__name__ in kinds]
    head = [n for n in everything if any(n == h or n.startswith(h + ".") for h in heads) or n == "lm_head"]
    assert layers_of(model, heads) == [name for name in everything if name not in head]
    assert set(head) == set(heads) or head == ["lm_head"]


@pytest.mark.parametrize(
    "kind, sizes, heads",
    [
        ("DistilBert", {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2}, ["pre_classifier", "classifier"]),
        (
            "DebertaV2",
            {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
            ["pooler", "classifier"],
        ),
        (
            "Bart",
            {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
            ["classification_head"],
        ),
    ],
)
def test_all_that_is_new_in_a_classifier_trains_whole(kind, sizes, heads):
    config = getattr(transformers, f"{kind}Config")(vocab_size=40, **sizes)
    assert find_heads(getattr(transformers, f"{kind}ForSequenceClassification")(config), None) == heads
    assert find_heads(getattr(transformers, f"{kind}Model")(config), None) == []


def test_a_named_head_replaces_the_models_own_and_nested_names_collapse_to_the_outermost():
    model = bert()
    assert find_heads(model, ["pooler"]) == ["bert.pooler"]
    assert find_heads(model, ["pooler", "pooler.dense"]) == ["bert.pooler"]
    assert find_heads(model, []) == []
    layers = layers_of(model, ["bert.pooler"])
    assert "classifier" in layers and not any("pooler" in name for name in layers)


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("all", CONV_LAYERS),
        (["stem", "hidden"], ["stem", "hidden"]),
        (r"depth.*|point.*", ["depthwise", "pointwise"]),
        (r".*wise", ["depthwise", "pointwise"]),
        ("hidden", ["hidden"]),
    ],
)
def test_target_modules_by_list_regex_and_all(pattern, expected):
    net = conv_net()
    layers = find_layers(net, ["classifier"], None)
    assert select_targets(net, layers, ["classifier"], pattern) == expected


def test_a_list_matches_whole_suffixes_and_a_regex_whole_names():
    model = bert()
    layers = find_layers(model, ["classifier"], None)
    queries = select_targets(model, layers, ["classifier"], ["query"])
    assert len(queries) == 2 and all(name.endswith(".query") for name in queries)
    assert select_targets(model, layers, ["classifier"], r".*\.1\..*\.dense") == [
        name for name in layers if ".1." in name and name.endswith(".dense")
    ]
    with pytest.raises(ValueError, match="'uery' matches no module"):
        select_targets(model, layers, ["classifier"], ["uery"])
    with pytest.raises(ValueError, match="matches no module"):
        select_targets(model, layers, ["classifier"], "query")


@pytest.mark.parametrize("pattern", [["stem"], "stem", r"st.m"])
def test_excluded_layers_are_neither_counted_nor_drawn(pattern):
    full = wrap(conv_net(), image_batch(1)[0], budget=1.0)
    model = wrap(conv_net(), image_batch(1)[0], budget=1.0, exclude_modules=pattern)
    assert model._targets == CONV_LAYERS[1:]
    stem = full.costs["stem"]
    assert full.costs.total_units - model.costs.total_units == stem.channels * stem.space
    assert not any("stem" in model.draw(epoch) for epoch in range(5))


def test_layers_outside_the_targets_are_counted_but_not_drawn():
    full = wrap(conv_net(), image_batch(1)[0], budget=1.0)
    model = wrap(conv_net(), image_batch(1)[0], budget=1.0, target_modules=["hidden"])
    assert model.costs == full.costs
    assert all(list(model.draw(epoch)) == ["hidden"] for epoch in range(5))


def test_modules_that_share_one_weight_are_one_layer():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    net = Tied()
    layers = find_layers(net, [], None)
    assert layers == {"a": [net.a, net.b]}


class TiedToEmbedding(nn.Module):
    """A language model whose output layer shares the weight of its embedding, by hand."""

    def __init__(self):
        super().__init__()
        self.wte, self.fc, self.lm_head = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 40, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        return self.lm_head(torch.relu(self.fc(self.wte(ids)))).mean(1)


def test_a_layer_whose_weight_an_embedding_holds_is_left_out_and_refused_by_name(caplog):
    ids = torch.arange(12).view(2, 6)
    reason = r"its weight is also that of 'wte' \(Embedding\), which does not train by channel"
    with pytest.raises(ValueError, match=f"'lm_head' can't be trained by channel: {reason}"):
        wrap(TiedToEmbedding(), ids, target_modules=["lm_head", "fc"])
    net = TiedToEmbedding()
    weight = net.wte.weight.clone()
    model = wrap(net, ids, budget=0.9)
    train(model, (ids, ids[:, 0]), epochs=1)
    assert model._targets == ["fc"] and torch.equal(net.wte.weight, weight)
    assert re.search(rf"Not trained by channel: lm_head \({reason}\)", caplog.messages[-1])


def test_a_tied_embedding_that_trains_whole_gets_all_of_its_gradient_and_keeps_it():
    ids = torch.arange(12).view(2, 6)
    net = TiedToEmbedding()
    before, twin = net.wte.weight.clone(), copy.deepcopy(net)
    twin(ids).sum().backward()
    model = wrap(net, ids, budget=0.9, modules_to_save=["wte"])
    model.train()(ids).sum().backward()
    torch.testing.assert_close(net.wte.weight.grad, twin.wte.weight.grad)
    torch.optim.SGD([net.wte.weight], lr=1.0).step()
    model(ids)
    assert not (net.wte.weight == before).all(0).any()


def test_a_layer_that_shares_its_weight_with_an_excluded_one_is_left_out():
    net = TiedToEmbedding()
    net.twin = nn.Linear(16, 16)
    net.twin.weight = net.fc.weight
    assert list(find_layers(net, [], None)) == ["fc"]
    assert list(find_layers(net, [], ["twin"])) == []


def test_a_model_with_offloaded_weights_is_refused():
    net = cpu_offload(conv_net(), "cpu")
    with pytest.raises(ValueError, match="the weights of 'stem' are offloaded"):
        wrap(net, image_batch(1)[0])


class Unsupported(nn.Module):
    """A net with layers that can't train by channel beside one that can."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.transposed = nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.norm = nn.LayerNorm(12)
        self.embed = nn.Embedding(5, 12)
        self.classifier = nn.Linear(12, 2)

    def forward(self, x):
        x = self.norm(self.transposed(self.reflect(self.conv(x)))).mean((1, 2))
        return self.classifier(x)


def test_all_passes_over_layers_that_cannot_train_by_channel():
    assert wrap(Unsupported(), torch.zeros(1, 3, 12, 12), budget=1.0)._targets == ["conv"]


@pytest.mark.parametrize("named", ["reflect", "transposed", "norm", "embed"])
@pytest.mark.parametrize("form", [list, "{}".format], ids=["list", "regex"])
def test_an_unsupported_layer_that_is_named_is_refused(named, form):
    targets = [named, "conv"] if form is list else f"{named}|conv"
    message = _refusal_leaves_untouched(Unsupported(), torch.zeros(1, 3, 12, 12), target_modules=targets)
    assert f"'{named}'" in message


@pytest.mark.parametrize(
    "kwargs, expected",
    [
        ({"target_modules": ["nowhere"]}, "'nowhere' matches no module of ConvNet"),
        ({"target_modules": ["stem", "nowhere"]}, "'nowhere' matches no module"),
        ({"target_modules": "xx.*"}, "'xx.*' matches no module"),
        ({"target_modules": ["classifier"]}, "leaves no layer of ConvNet"),
        ({"target_modules": ["stem"], "exclude_modules": ["stem"]}, "leaves no layer of ConvNet"),
        ({"exclude_modules": ["nowhere"]}, "exclude_modules=.*'nowhere' matches no module"),
        ({"modules_to_save": ["nowhere"]}, "modules_to_save=.*'nowhere' matches no module"),
        ({"modules_to_save": ["classifier", "nowhere"]}, "'nowhere' matches no module"),
        ({"budget": 1}, "the smallest that works is"),
        ({"budget": 1e-6}, "of 0 units is below the cheapest channel"),
        ({"budget": "1KB"}, "the smallest that works is '.*MiB'"),
        ({"budget": 20, "train_bias": True}, "biases"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_config_that_does_not_fit_is_refused_in_one_line_with_nothing_changed(kwargs, expected):
    message = _refusal_leaves_untouched(conv_net(), image_batch(1)[0], **kwargs)
    assert re.search(expected, message), message


def test_the_smallest_budget_that_a_refusal_states_works_and_one_less_does_not():
    message = _refusal_leaves_untouched(conv_net(), image_batch(1)[0], budget=1)
    smallest = int(message.split("the smallest that works is ")[1].split(" units")[0].replace(",", ""))
    model = wrap(conv_net(), image_batch(1)[0], budget=smallest)
    assert model.report().active_channels == 1 and model.report().units == smallest
    _refusal_leaves_untouched(conv_net(), image_batch(1)[0], budget=smallest - 1)


def test_an_unknown_strategy_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"strategy='tradi' is not allowed.*did you mean 'trady'") as caught:
        TraDyConfig(strategy="tradi")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "choice, pool",
    [
        ({}, ["depthwise"]),
        ({"ranking_coverage": 1}, ["stem", "depthwise"]),
        ({"num_layers": 1}, ["depthwise"]),
        ({"num_layers": "budget"}, ["stem", "depthwise"]),
        ({"strategy": "medyate"}, ["stem", "depthwise"]),
    ],
    ids=str,
)
def test_the_top_layers_are_those_of_the_targets(choice, pool):
    inputs = image_batch(1)[0]
    # Of the whole network, the hidden layer holds more than any share that is asked for.
    ranking = ranking_of(wrap(conv_net(), inputs).costs, hidden=1e9, pointwise=1e6, depthwise=1e3)
    config = TraDyConfig(0.3, target_modules=["stem", "depthwise"], **choice)
    model = TraDyModel(conv_net(), config, inputs, ranking)
    assert [row.name for row in model.pool] == pool and set(model.active_channels()) <= set(pool)


@pytest.mark.parametrize("change", ["width", "missing", "too few layers", "no file"])
def test_a_ranking_that_does_not_fit_is_refused_with_nothing_changed(change, tmp_path):
    net, inputs = conv_net(), image_batch(1)[0]
    costs = wrap(conv_net(width=6 if change == "width" else 8), inputs).costs
    if change == "missing":
        costs = costs.subset(["stem", "hidden"])
    if change != "no file":
        ranking_of(costs).save_pretrained(tmp_path)
    kwargs = {"strategy": "trady", "layer_ranking": str(tmp_path)}
    expected = {"width": "another architecture: 'stem' has 3 channels of 54", "missing": "no layer 'depthwise'"}
    if change == "too few layers":
        kwargs["num_layers"] = 9
        expected[change] = "num_layers=9 is more than the 4 layers"
    error = FileNotFoundError if change == "no file" else ValueError
    message = _refusal_leaves_untouched(net, inputs, error, **kwargs)
    assert expected.get(change, "no layer ranking at") in message


def test_a_ranking_of_another_architecture_is_refused_when_set_later():
    model = wrap(conv_net(), image_batch(1)[0], strategy="trady")
    with pytest.raises(ValueError, match="another architecture"):
        model.set_layer_ranking(ranking_of(wrap(conv_net(width=6), image_batch(1)[0]).costs))
    assert model.layer_ranking is None and not model.is_ready


def _refusal_leaves_untouched(net, inputs, error=ValueError, budget=0.5, **kwargs) -> str:
    """Wrap `net`, which must raise `error`; checks that `net` is what it was and returns the message."""
    net.train()
    before, state = anatomy(net), copy_of_state(net)
    kwargs = {"strategy": "dynamic_full_random"} | kwargs
    with pytest.raises(error) as caught:
        TraDyModel(net, TraDyConfig(memory_budget=budget, **kwargs), inputs)
    assert anatomy(net) == before
    assert different_keys(copy_of_state(net), state) == []
    message = str(caught.value)
    assert message and "\n" not in message
    return message
