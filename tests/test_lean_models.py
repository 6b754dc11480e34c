"""Whole models with lean stand-ins against the same models without: gradients, bytes kept, and the way back."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from hf_trady.lean import LeanModule

from .layers.against_autograd import recorded_saves
from .lean.against_autograd import saved_bytes
from .test_whole_models import BERT, bert, gpt2, randomized
from .tiny import anatomy, image_batch, inputs_of, lm_batch, loss_of, token_batch, wrap


def images(name, size=64, **kwargs):
    def make():
        return randomized(timm.create_model(name, num_classes=3, **kwargs)), image_batch(3, size)

    return make


def causal(config, model):
    def make():
        return randomized(model(config(vocab_size=40, num_key_value_heads=1, **BERT))), lm_batch(3, 8)

    return make


SWIN = {"img_size": 56, "depths": (2, 2), "embed_dim": 32, "num_heads": (2, 4)}

# Name -> maker of model and batch, and the most that exact and compressed mode may keep of what "off" keeps.
MODELS = {
    "resnet": (images("resnet18"), 0.12, 0.12),
    "mobilenetv2": (images("mobilenetv2_035"), 0.12, 0.12),
    "mobilenetv3": (images("mobilenetv3_small_050"), 0.5, 0.3),
    "efficientnet": (images("test_efficientnet"), 1.0, 0.5),
    "efficientnet_lite": (images("tf_efficientnet_lite0"), 0.12, 0.12),
    "regnet": (images("regnetx_002"), 0.2, 0.2),
    "convnext": (images("convnext_atto"), 1.0, 0.4),
    "densenet": (images("densenet121", block_config=(3, 3), growth_rate=16), 0.3, 0.3),
    "vit": (images("vit_tiny_patch16_224", img_size=64, depth=2), 1.0, 0.7),
    "swin": (images("swin_tiny_patch4_window7_224", 56, **SWIN), 1.0, 0.7),
    "bert": (lambda: (bert(), token_batch(3, 8)), 1.0, 0.8),
    "gpt2": (lambda: (gpt2(), lm_batch(3, 8)), 1.0, 0.8),
    "llama": (causal(LlamaConfig, LlamaForCausalLM), 1.0, 0.97),
    "mistral": (causal(MistralConfig, MistralForCausalLM), 1.0, 0.97),
}
every_model = pytest.mark.parametrize("make, exact_share, compressed_share", MODELS.values(), ids=MODELS)


def in_double(batch):
    return batch if isinstance(batch, dict) else (batch[0].double(), batch[1])


def without_dropping(model):
    """`model` in training mode without stochastic depth, which draws differently each time."""
    model.train()
    for module in model.modules():
        if "Drop" in type(module).__name__:
            module.eval()
    return model


def gradients(net, batch, mode, **kwargs):
    """Flat gradients of everything that trains, and the bytes that are saved for backward."""
    model = wrap(copy.deepcopy(net), inputs_of(batch), 0.1, lean_backward=mode, train_bias=True, **kwargs)
    without_dropping(model)
    with recorded_saves() as saved:
        loss = loss_of(model, batch)
    loss.backward()
    grads = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    batch = batch.values() if isinstance(batch, dict) else batch
    return torch.cat(grads), saved_bytes(saved, model, *batch)


@every_model
def test_exact_mode_has_the_same_gradients_and_keeps_less(make, exact_share, compressed_share):
    net, batch = make()
    batch = in_double(batch)
    expected, kept_before = gradients(net, batch, "off")
    actual, kept = gradients(net, batch, "exact")
    # torch's own Hardsigmoid multiplies by 1/6 in single precision.
    tolerance = 1e-6 if any(isinstance(module, nn.Hardsigmoid) for module in net.modules()) else 1e-9
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
    assert kept <= exact_share * kept_before


@every_model
def test_compressed_mode_points_the_same_way_and_keeps_less(make, exact_share, compressed_share):
    net, batch = make()
    batch = in_double(batch)
    expected, kept_before = gradients(net, batch, "off")
    actual, kept = gradients(net, batch, "compressed")
    assert F.cosine_similarity(actual, expected, 0) > 0.999
    assert kept <= compressed_share * kept_before


@every_model
@pytest.mark.parametrize("mode", ["exact", "compressed"])
def test_swapping_is_complete_and_reversible(make, exact_share, compressed_share, mode):
    net, batch = make()
    batch = in_double(batch)
    before, names = anatomy(net), {type(module) for module in net.modules()}
    evaluate = lambda model: loss_of(model.eval(), batch).detach()  # noqa: E731
    expected = evaluate(net)
    model = wrap(net, inputs_of(batch), lean_backward=mode)
    assert torch.equal(evaluate(model), expected)
    loss_of(without_dropping(model), batch).backward()
    assert torch.equal(evaluate(model), expected)
    plain = model.merge_and_unload().eval()
    assert torch.equal(evaluate(plain), expected)
    assert {type(module) for module in plain.modules()} == names
    for module in plain.modules():
        for parameter in module.parameters(recurse=False):
            parameter.grad = None
    assert anatomy(plain) == before


def test_off_swaps_nothing():
    net, batch = bert(), token_batch(3, 8)
    model = wrap(net, inputs_of(batch), lean_backward="off")
    assert not any(isinstance(module, LeanModule) for module in model.modules())
    assert net.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2", "llama"])
def test_under_autocast_and_in_bfloat16_gradients_point_where_those_in_float32_do(name):
    net, batch = MODELS[name][0]()
    net = net.float()
    expected, _ = gradients(net, batch, "off")
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast, _ = gradients(net, batch, "compressed")
    batch = batch if isinstance(batch, dict) else (batch[0].bfloat16(), batch[1])
    in_bfloat16, _ = gradients(net.bfloat16(), batch, "compressed")
    assert under_autocast.dtype == torch.float32 and in_bfloat16.dtype == torch.bfloat16
    for actual in (under_autocast, in_bfloat16.float()):
        assert F.cosine_similarity(actual, expected, 0) > 0.97


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit", "mobilenetv2"])
def test_activation_checkpointing_changes_no_gradient(name):
    net, batch = MODELS[name][0]()
    batch = in_double(batch)
    expected, kept_before = gradients(net, batch, "compressed")
    if isinstance(batch, dict):
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        net.set_grad_checkpointing()
    actual, kept = gradients(net, batch, "compressed")
    # Where the two forwards differ in the last bit, a byte may be rounded the other way.
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
    assert kept < kept_before or not isinstance(batch, dict)  # of an image network, hardly more than inputs is kept


def test_dropout_trains_and_draws_anew_each_step_and_the_same_again_when_recomputed():
    net, batch = bert(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2), token_batch(3, 8)
    flats = []
    for checkpointing in (False, True):
        model = wrap(copy.deepcopy(net), inputs_of(batch), lean_backward="compressed")
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        torch.manual_seed(3)
        loss = loss_of(model, batch)
        loss.backward()
        assert not torch.equal(loss, loss_of(model, batch))
        flats.append(model.active.flat[0].grad)
    torch.testing.assert_close(*flats, rtol=1e-9, atol=1e-12)


def test_nothing_below_the_first_active_layer_is_kept():
    net, batch = images("mobilenetv2_035")()
    batch = in_double(batch)
    model = wrap(net, inputs_of(batch), train_bias=False).train()
    last = max(model.costs, key=lambda row: row.position).name
    model.active.assign({last: torch.tensor([0])})
    with recorded_saves() as saved:
        loss_of(model, batch)
    widths = {tensor.shape[1] for tensor in saved if tensor.dim() == 4 and tensor.dtype.is_floating_point}
    masks = [tensor for tensor in saved if tensor.dtype == torch.uint8]
    assert len(masks) <= 1 and 1 in widths


def test_a_fused_forward_that_the_model_bypasses_is_not_silently_wrong():
    net, batch = images("resnet18")()
    batch = in_double(batch)
    model = wrap(net, inputs_of(batch)).train()
    hooked = []
    net.bn1.register_forward_hook(lambda module, args, output: hooked.append(output))
    loss_of(model, batch).backward()
    expected = (net.conv1(batch[0]) - net.bn1.running_mean.view(-1, 1, 1)) * torch.rsqrt(
        net.bn1.running_var + net.bn1.eps
    ).view(-1, 1, 1) * net.bn1.weight.view(-1, 1, 1) + net.bn1.bias.view(-1, 1, 1)
    torch.testing.assert_close(hooked[0].relu(), expected.relu(), rtol=1e-9, atol=1e-9)


def test_a_forward_that_goes_another_way_than_the_one_looked_at_is_refused():
    class Net(nn.Module):
        skips = False

        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.conv(x)
            return self.head((x if self.skips else self.norm(x)).mean((2, 3)))

    net = Net()
    model = wrap(net, torch.zeros(2, 3, 8, 8), 1.0, modules_to_save=["head"]).train()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    net.skips = True
    with pytest.raises(RuntimeError, match="'conv' did not go on to the norm"):
        model(torch.randn(2, 3, 8, 8))
    assert torch.equal(model.eval()(torch.ones(2, 3, 8, 8)), net.head(net.conv(torch.ones(2, 3, 8, 8)).mean((2, 3))))


def test_an_activation_works_in_place_on_one_sample_without_a_batch_dimension():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(0), nn.Linear(144, 3)).train()
    x = torch.randn(3, 8, 8)
    expected = net(x)
    model = wrap(net, x, 0.5, modules_to_save=["3"], strategy="dynamic_full_random", lean_backward="compressed")
    torch.testing.assert_close(model(x), expected)
