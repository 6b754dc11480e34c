"""Whole models against autograd on their plain twins: gradients, what a step moves, and what it takes."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from hf_trady.layers import channel_shape
from hf_trady.selection import max_weight_units

from .layers.against_autograd import gradient_slice, recorded_saves
from .tiny import copy_of_state, different_keys, image_batch, inputs_of, lm_batch, loss_of, token_batch, wrap


BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def randomized(net, seed=0):
    """`net` in float64 and eval mode, with no parameter or statistic left at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.2
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return net


def timm_model(name, **kwargs):
    return lambda: randomized(timm.create_model(name, num_classes=3, **kwargs))


def bert(**kwargs):
    config = BertConfig(vocab_size=40, num_labels=3, **BERT | NO_DROPOUT | kwargs)
    return randomized(BertForSequenceClassification(config))


def gpt2():
    sizes = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return randomized(GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=0, eos_token_id=0)))


def llama():
    sizes = {**BERT, "num_attention_heads": 4, "num_key_value_heads": 2}
    return randomized(LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=16, **sizes)))


def vit():
    """Unlike timm's, its query, key and value are layers of their own."""
    return randomized(ViTForImageClassification(ViTConfig(image_size=32, num_labels=3, **BERT, **NO_DROPOUT)))


def albert():
    """One block that is called three times."""
    config = AlbertConfig(
        vocab_size=40, embedding_size=16, num_labels=3, classifier_dropout_prob=0.0, **BERT | {"num_hidden_layers": 3}
    )
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return randomized(AlbertForSequenceClassification(config))


class Tied(nn.Module):
    """Two linear layers that share one weight, beside a third and a head."""

    def __init__(self):
        super().__init__()
        self.one, self.between, self.other = (nn.Linear(24, 24) for _ in range(3))
        self.other.weight = self.one.weight
        self.classifier = nn.Linear(24, 3)

    def forward(self, x):
        x = x.mean(2)[:, :, :8].flatten(1)
        return self.classifier(self.other(self.between(self.one(x).tanh()).tanh()).tanh())


def double_images(size):
    images, labels = image_batch(2, size)
    return images.double(), labels


MODELS = {
    "resnet": (timm_model("test_resnet"), double_images(48)),
    "mobilenetv2": (timm_model("mobilenetv2_035"), double_images(64)),
    "grouped": (timm_model("regnetx_002"), double_images(32)),
    "convnext": (timm_model("test_convnext"), double_images(48)),
    "vit": (timm_model("test_vit", img_size=48), double_images(48)),
    "same padding": (timm_model("tf_efficientnet_lite0"), double_images(64)),
    "bert": (bert, token_batch(3)),
    "gpt2": (gpt2, lm_batch(3)),
    "llama": (llama, lm_batch(3)),
    "albert": (albert, token_batch(3)),
    "vit, separate q k v": (vit, dict(zip(("pixel_values", "labels"), double_images(32), strict=True))),
    "tied": (lambda: randomized(Tied()), double_images(8)),
}
HEADS = ("fc.", "classifier.", "head.")
every_model = pytest.mark.parametrize(("make", "batch"), MODELS.values(), ids=MODELS)


def backward(model, batch):
    """The loss of a training step whose batch-norms keep their statistics; the gradients are left in the model."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    loss = loss_of(model, batch)
    loss.backward()
    return loss.detach()


def active_gradients(model):
    """Layer name -> gradient `[n, *channel_shape]` of its active channels, read from the flat Parameter."""
    gradients, (names,), (flat,) = {}, model.active.groups, model.active.flat
    start = 0
    for name in names:
        if name in model.active_channels():
            shape = (len(model.active_channels()[name]), *channel_shape(model.base_model.get_submodule(name)))
            size = torch.Size(shape).numel()
            gradients[name] = flat.grad[start : start + size].view(shape)
            start += size
    assert not flat.grad[start:].any()
    return gradients


def whole_parameters(model):
    """What trains whole, head and biases, by its key in the base model."""
    return {name: p for name, p in model.base_model.named_parameters() if p.requires_grad}


def elements_of(layer, index):
    """Bool, of the shape of the weight: the elements of the channels `index`, by the layout of the documentation."""
    mask = torch.zeros(layer.weight.shape, dtype=torch.bool)
    if isinstance(layer, nn.Linear):
        mask[:, index] = True
    elif isinstance(layer, nn.Conv2d):
        inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        for channel in index.tolist():
            first = channel // inputs * outputs
            mask[first : first + outputs, channel % inputs] = True
    else:  # transformers' Conv1D
        mask[index] = True
    return mask


def assert_near(actual, expected, scale, what, tolerance):
    """Equal to `tolerance` of `scale`, the largest element of a whole gradient."""
    assert scale > 0, f"no gradient at all in {what}"
    error = (actual - expected).abs().max().item()
    assert actual.shape == expected.shape and error <= tolerance * scale, f"{what}: {error / scale:.1e} of the largest"


def check_gradients(model, twin, tolerance=1e-9):
    """The gradients of `model` are the slices and parts of those of `twin`."""
    for name, gradient in active_gradients(model).items():
        layer = twin.get_submodule(name)
        expected = gradient_slice(layer, layer.weight.grad, model.active_channels()[name].tolist())
        assert_near(gradient, expected, layer.weight.grad.abs().max().item(), name, tolerance)
    for name, parameter in whole_parameters(model).items():
        expected = twin.get_parameter(name).grad
        largest = max(p.grad.abs().max().item() for p in twin.parameters() if p.grad is not None)
        assert_near(parameter.grad, expected, largest, name, tolerance)


@every_model
@pytest.mark.parametrize("budget", [0.1, 1.0])
@pytest.mark.parametrize("train_bias", [False, True], ids=["", "biases"])
def test_gradients_are_slices_of_autograds_own(make, batch, budget, train_bias):
    plain = make()
    model = wrap(copy.deepcopy(plain), inputs_of(batch), budget, train_bias=train_bias)
    expected = backward(plain, batch)
    seen = set()
    for epoch in range(3 if budget < 1 else 1):
        model.resample(epoch)
        model.zero_grad()
        torch.testing.assert_close(backward(model, batch), expected, rtol=1e-12, atol=1e-12)
        check_gradients(model, plain)
        seen |= model.active_channels().keys()
    assert len(seen) >= len(model.pool) / 2
    if budget == 1 and not train_bias:
        assert all(len(model.active_channels()[row.name]) == row.channels for row in model.costs)


@every_model
def test_steps_move_the_head_and_what_was_drawn_and_nothing_else(make, batch):
    model = wrap(make(), inputs_of(batch), 0.1)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    start, heads = copy_of_state(model), set(whole_parameters(model))
    drawn = {}
    for epoch in range(3):
        model.resample(epoch, optimizer)
        before = copy_of_state(model)
        for _ in range(2):
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
        now = {}
        for name, index in model.active_channels().items():
            now[f"{name}.weight"] = elements_of(model.base_model.get_submodule(name), index)
            drawn[f"{name}.weight"] = drawn.get(f"{name}.weight", False) | now[f"{name}.weight"]
        after = copy_of_state(model)
        check_moved(before, after, now, heads)
        check_moved(start, after, drawn, heads)


def check_moved(before, after, elements, whole):
    """Between two state dicts, bit for bit, exactly `elements` (by key) and the tensors `whole` have moved."""
    aliases = {}  # tied weights have several keys
    for key in elements:
        aliases |= {other: elements[key] for other in after if other == key or is_tied(key, other)}
    assert set(different_keys(before, after)) == aliases.keys() | whole
    for key, mask in aliases.items():
        assert torch.equal(before[key] != after[key], mask), key


def is_tied(key, other):
    return {key, other} == {"one.weight", "other.weight"}


@every_model
@pytest.mark.parametrize("train_bias", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("budget", [0.1, 0.5])
def test_gradients_and_optimizer_state_are_as_small_as_the_budget_says(make, batch, train_bias, budget):
    model = wrap(make(), inputs_of(batch), budget, train_bias=train_bias)
    whole = whole_parameters(model)
    head = sum(p.numel() for name, p in whole.items() if name.startswith(HEADS))
    biases = sum(p.numel() for p in whole.values()) - head
    assert (biases > 0) == (train_bias and "Llama" not in repr(model))
    bound = max_weight_units(model.pool, model.budget - biases)
    assert bound + biases <= model.budget and bound <= max_weight_units(model.pool, model.budget)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    for epoch in range(3):
        model.resample(epoch, optimizer)
        optimizer.zero_grad(set_to_none=epoch == 0)
        backward(model, batch)
        optimizer.step()
        gradients = [parameter.grad.numel() for parameter in model.parameters() if parameter.grad is not None]
        assert sum(gradients) <= bound + head + biases
        for kind in ("exp_avg", "exp_avg_sq"):
            assert sum(state[kind].numel() for state in optimizer.state.values()) <= bound + head + biases
        assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} for state in optimizer.state.values())
        drawn = [(model.costs[name], index.tolist()) for name, index in model.active_channels().items()]
        kept = {(row.input_name, c): row.activation_per_channel for row, index in drawn for c in index}
        units = sum(row.weight_per_channel * len(index) for row, index in drawn) + sum(kept.values())
        assert biases + units <= model.report().units <= model.budget  # a norm of a head may be shifted, too
        assert train_bias or units == model.report().units


SHARING = {  # the layers of a block that share an input
    "bert": [{"query", "key", "value"}],
    "vit, separate q k v": [{"q_proj", "k_proj", "v_proj"}],
    "llama": [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}],
    "gpt2": [],
}


@pytest.mark.parametrize(("kind", "expected"), SHARING.items(), ids=SHARING)
def test_layers_that_share_an_input_keep_one_slice_of_it(kind, expected):
    make, batch = MODELS[kind]
    model = wrap(make(), inputs_of(batch), 0.4)
    groups = [[row.name for row in rows] for rows in model.pool.sharing() if len(rows) > 1]
    assert [{name.rsplit(".", 1)[1] for name in names} for names in groups] == 2 * expected
    inputs = {}
    for name in model.active_channels():
        hook = lambda module, args, name=name: inputs.update({name: args[0].detach()})  # noqa: E731
        model.base_model.get_submodule(name).register_forward_pre_hook(hook)
    with recorded_saves() as saved:
        loss_of(model.train(), batch)
    kept = 0
    for row, *others in model.pool.sharing():
        if row.name in inputs:
            index, x = model.active_channels()[row.name], inputs[row.name]
            assert all(torch.equal(inputs[other.name], x) for other in others)
            is_conv = isinstance(model.base_model.get_submodule(row.name), nn.Conv2d)
            expected_slice = x.index_select(1 if is_conv else -1, index)
            slices = [t for t in saved if t.shape == expected_slice.shape and torch.equal(t, expected_slice)]
            assert len({t.untyped_storage().data_ptr() for t in slices}) == 1
            kept += slices[0].nbytes
    assert kept == len(next(iter(batch.values()))) * model.report().activation_bytes


@pytest.mark.parametrize("targets", [["query", "value"], ["key", "output.dense"]])
def test_of_the_layers_that_share_an_input_only_targets_train(targets):
    plain, batch = bert(), token_batch(3)
    model = wrap(copy.deepcopy(plain), inputs_of(batch), 0.1, target_modules=targets)
    backward(plain, batch)
    backward(model, batch)
    check_gradients(model, plain)
    suffixes = {name.rsplit(".", 1)[1] for name in active_gradients(model)}
    assert suffixes == {target.rsplit(".")[-1] for target in targets}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "vit", "vit, separate q k v", "mobilenetv2"])
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    make, batch = MODELS[kind]
    plain = make()
    model = wrap(copy.deepcopy(plain), inputs_of(batch), 0.3)
    calls = []
    name = next(name for name in model.active_channels() if name.count(".") > 2)  # inside a block
    model.base_model.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    if kind in ("vit", "mobilenetv2"):
        model.set_grad_checkpointing(True)
    else:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    backward(plain, batch)
    backward(model, batch)
    assert len(calls) == 2  # the forward was run again
    check_gradients(model, plain)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_an_evaluation_before_the_backward_of_a_checkpointed_forward_does_not_disturb_it(reentrant):
    make, batch = MODELS["bert"]
    plain = make()
    model = wrap(copy.deepcopy(plain), inputs_of(batch), 1.0)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()  # without it a reentrant checkpoint drops the gradients of its first block
    backward(plain, batch)
    loss = loss_of(model.train(), batch)
    with torch.no_grad():
        loss_of(model, batch)
    loss.backward()
    check_gradients(model, plain)
