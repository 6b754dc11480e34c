"""A TraDyModel is called, hooked and patched like its base model."""

import inspect
from types import MethodType

import pytest
import torch
from transformers import LlamaForCausalLM

from hf_trady import TraDyModel

from .tiny import conv_net, image_batch, llama, lm_batch, wrap


def test_a_call_runs_the_hooks_of_both_once():
    net, images = conv_net(), image_batch(2)[0]
    model, seen = wrap(net, images), []
    net.register_forward_pre_hook(lambda module, args: seen.append("base"))
    model.register_forward_pre_hook(lambda module, args: seen.append(type(module)))
    model(images)
    assert seen == [TraDyModel, "base"]
    net(images)
    assert seen == [TraDyModel, "base", "base"]


def test_its_forward_is_that_of_the_base_model():
    model = wrap(llama(), {"input_ids": lm_batch(1)["input_ids"]})
    assert model.forward == model.base_model.forward
    assert "labels" in inspect.signature(TraDyModel.forward).parameters


def test_a_forward_in_its_place_is_bound_to_the_base_model_and_can_call_the_one_before():
    net, batch = llama(), lm_batch(2)
    model = wrap(net, {"input_ids": batch["input_ids"]})
    expected = model(**batch).logits
    before = model.forward

    def doubled(self, *args, **kwargs):
        assert type(self) is LlamaForCausalLM
        return 2 * before(*args, **kwargs).logits

    model.forward = MethodType(doubled, model)
    torch.testing.assert_close(model(**batch), 2 * expected)
    torch.testing.assert_close(net(**batch), 2 * expected)
    model(**batch).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.active.flat)
    assert model.merge_and_unload() is net and "forward" not in vars(net)
    torch.testing.assert_close(net(**batch).logits, expected)


def test_a_forward_that_the_base_model_had_of_its_own_comes_back():
    net, images = conv_net(), image_batch(2)[0]
    net.forward = own = MethodType(lambda self, x: type(self).forward(self, x) + 1, net)
    expected = net(images)
    model = wrap(net, images)
    torch.testing.assert_close(model.eval()(images), expected)
    model.forward = MethodType(lambda self, x: x, model)
    assert model(images) is images
    assert model.merge_and_unload().forward is own


def test_a_model_without_a_base_model_yet_has_no_forward():
    with pytest.raises(AttributeError):
        TraDyModel.__new__(TraDyModel).forward  # noqa: B018


def test_data_parallel_is_refused():
    with pytest.raises(RuntimeError, match="start a process for each GPU"):
        wrap(conv_net(), image_batch(1)[0])._replicate_for_data_parallel()
