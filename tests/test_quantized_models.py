"""Whole models with weights in 4 and 8 bits: what trains, what stays, saving, merging, budgets, refusals."""

import copy
import logging

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils.quantization_config import QuantizationMethod

from hf_trady import TraDyConfig, TraDyModel, TraDyTrainer, cost_table, plan, rank_layers
from hf_trady.memory import StepSetup

from .tiny import Rows, copy_of_state, different_keys, hooked, llama, lm_batch, same_draw, train, wrap
from .training.runs import arguments


pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.usefixtures("one_order_of_weights")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # 8 bits: a warning for every layer that its input is cast

BATCH = lm_batch(8)
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
CONFIGS = {"4bit": FOUR_BITS, "8bit": {"load_in_8bit": True}}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Directories with the weights of two base models."""
    directories = [tmp_path_factory.mktemp("bases") / name for name in ("base", "other")]
    for seed, directory in enumerate(directories):
        llama(seed).save_pretrained(directory)
    return directories


@pytest.fixture(params=CONFIGS)
def make(request, bases):
    """Makes the model that the test is about, or the other one: `make(1)`."""

    def load(number: int = 0, **kwargs):
        config = BitsAndBytesConfig(**CONFIGS[request.param], **kwargs)
        return AutoModelForCausalLM.from_pretrained(bases[number], quantization_config=config)

    return load


def logits(model: nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**BATCH).logits


def test_training_lowers_the_loss_and_moves_nothing_but_what_is_kept_beside(make):
    net = make()
    before, expected = copy_of_state(net), logits(net)
    model = wrap(net, BATCH, budget=0.2)
    assert torch.equal(logits(model), expected) and different_keys(copy_of_state(model), before) == []
    losses = train(model, BATCH, epochs=5, steps=3, lr=0.5)
    assert losses[-1] < losses[0] - 0.05
    after = copy_of_state(model)
    assert all("kept_channels" in key for key in different_keys(after, before))
    trained = {name: set(index.tolist()) for name, index in model.active_channels().items()}
    for name, mask in model.touched.items():
        kept = after.get(f"{name}.kept_channels.index", torch.tensor([])).tolist()
        assert set(kept) <= set(mask.nonzero().flatten().tolist())
        assert trained.get(name, set()) <= set(kept)
    most = sum(16 * 16 * 4 + 16 * 8 for _ in range(8)) + sum(4 * 16 * 24 + 8 * c for c in (16, 16, 24) * 2)
    assert 0 < model.kept_bytes <= model.most_kept_bytes == most
    with torch.no_grad():
        torch.testing.assert_close(model.train()(**BATCH).logits, logits(model), rtol=0, atol=3e-3)


def test_costs_draws_and_counts_are_those_of_the_model_that_is_not_quantized(make):
    quantized, plain = wrap(make(), BATCH), wrap(llama(), BATCH)
    assert cost_table(make(), BATCH) == cost_table(llama(), BATCH) and quantized.costs == plain.costs
    assert all(same_draw(quantized.draw(epoch), plain.draw(epoch)) for epoch in range(3))
    assert quantized.get_nb_trainable_parameters() == plain.get_nb_trainable_parameters()
    assert str(quantized.report()) == str(plain.report())


def test_a_run_is_saved_and_loaded_bit_for_bit_by_the_name_of_its_base_too(make, bases, tmp_path):
    model = wrap(make(), BATCH, modules_to_save=["norm"])
    train(model, BATCH)
    model.save_pretrained(tmp_path)
    for given in ({"base_model": make()}, {}):
        loaded = TraDyModel.from_pretrained(tmp_path, **given)
        assert different_keys(copy_of_state(loaded), copy_of_state(model)) == []
        assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(ValueError, match="not the one that was fine-tuned: the frozen weights"):
        TraDyModel.from_pretrained(tmp_path, base_model=make(1))
    # As an adapter's, its channels fit a base that is not quantized.
    full = TraDyModel.from_pretrained(tmp_path, base_model=llama())
    assert not full.kept_bytes and full.touched.keys() == model.touched.keys()


def test_a_state_dict_takes_the_model_back_to_where_it_was(make):
    model = wrap(make(), BATCH, budget=0.2)
    states = [copy_of_state(model)]
    for epochs in (1, 3):
        train(model, BATCH, epochs)
        states.append(copy_of_state(model))
    fresh = wrap(make(), BATCH, budget=0.2)
    for state in (states[1], states[2], states[0]):
        result = fresh.load_state_dict(state)
        assert not result.missing_keys and not result.unexpected_keys
        assert different_keys(copy_of_state(fresh), state) == []
    assert torch.equal(logits(fresh), logits(make()))
    with pytest.raises(RuntimeError, match="quantized weights can't be replaced"):
        fresh.load_state_dict(copy_of_state(make(1)))


def test_merging_keeps_everything_in_plain_layers_and_rounds_in_quantized_ones(make, tmp_path):
    model = wrap(make(), BATCH)
    start = logits(model)
    train(model, BATCH, epochs=4, steps=3, lr=0.5)
    other, expected = copy.deepcopy(model), logits(model)
    moved = (expected - start).abs().max()

    plain = model.merge_and_unload(dequantize=True)
    assert type(plain.model.layers[0].mlp.up_proj) is nn.Linear and not plain.is_quantized
    # In evaluation the 8-bit layer quantizes its input, too, which a plain one doesn't.
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-2 * float(moved))
    plain.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(plain))

    merged = other.merge_and_unload()
    assert [type(m) for m in merged.modules()] == [type(m) for m in make().modules()]
    assert not any("kept" in key for key in merged.state_dict())
    rounded = (logits(merged) - expected).abs().max()
    assert 0 < rounded < moved


def test_hooks_of_accelerate_stay_on_layers_that_become_plain(make):
    net = hooked(make())
    hooks = {name: vars(module)["_hf_hook"] for name, module in net.named_modules() if hasattr(module, "_hf_hook")}
    model = wrap(net, BATCH)
    train(model, BATCH, epochs=2)
    plain = model.merge_and_unload(dequantize=True)
    assert type(plain.model.layers[0].mlp.up_proj) is nn.Linear
    assert {name: vars(plain.get_submodule(name)).get("_hf_hook") for name in hooks} == hooks
    logits(plain)


@pytest.mark.parametrize("make", ["4bit"], indirect=True)
def test_a_run_with_a_budget_in_bytes_resumes_in_the_middle(make, tmp_path):
    def run(name, checkpoint=None):
        model = TraDyModel(make(), TraDyConfig(memory_budget="64MiB", strategy="trady"))
        args = arguments(tmp_path / name, num_train_epochs=3, save_strategy="epoch", use_cpu=True)
        trainer = TraDyTrainer(model=model, args=args, train_dataset=Rows(BATCH), ranking_steps=1)
        trainer.train(resume_from_checkpoint=checkpoint)
        return model

    whole = run("whole")
    assert whole.kept_bytes and whole.fitted.predicted_peak <= whole.byte_budget
    resumed = run("resumed", str(tmp_path / "whole" / "checkpoint-2"))
    assert different_keys(copy_of_state(resumed), copy_of_state(whole)) == []


@pytest.mark.parametrize("make", ["4bit"], indirect=True)
def test_a_plan_makes_room_for_what_all_draws_leave_beside_the_weights(make):
    config = TraDyConfig(memory_budget=0.2, strategy="dynamic_full_random")
    plans = [plan(make(), config, BATCH, setup=StepSetup(num_draws=draws)) for draws in (1, 2, 1000)]
    channels = [found.step.at_peak["channels"] for found in plans]
    most = wrap(make(), BATCH).most_kept_bytes
    flat = plan(llama(), config, BATCH).step.at_peak["channels"]
    first, second = channels[0] - flat, channels[1] - flat
    assert 0 < second == 2 * first and channels[2] - flat == most
    assert all("beside the quantized weights" in found.notes[-1] for found in plans)
    assert plans[0].step.weights < plan(llama(), config, BATCH).step.weights
    model = wrap(make(), BATCH, budget=0.2)
    before = plan(model, example_inputs=BATCH).step.at_peak["channels"]
    train(model, BATCH, epochs=1)
    assert plan(model, example_inputs=BATCH).step.at_peak["channels"] == before + model.kept_bytes


@pytest.mark.parametrize("make", ["8bit"], indirect=True)  # the plain one keeps all of it
def test_an_excluded_layer_keeps_nothing_of_its_input(make):
    excluded = ["mlp.up_proj", "mlp.down_proj"]
    config = TraDyConfig(memory_budget=0.2, strategy="dynamic_full_random", exclude_modules=excluded)
    kept = [plan(net, config, BATCH).step.kept for net in (make(), llama())]
    assert kept[0] <= kept[1]


def test_what_quantized_weights_do_not_allow_is_refused_by_name(make):
    with pytest.raises(ValueError, match="strategy='velocity' trains output channels"):
        wrap(make(), BATCH, strategy="velocity")
    with pytest.raises(
        ValueError, match=r"'model.layers.0.mlp' can't train whole: its 'gate_proj.weight' is quantized"
    ):
        wrap(make(), BATCH, modules_to_save=["layers.0.mlp"])
    with pytest.raises(ValueError, match=r"weight of 'model.layers.0.self_attn.q_proj' is quantized"):
        rank_layers(make(), [BATCH], num_steps=1)
    net = make()
    net.quantization_method = QuantizationMethod.GPTQ
    with pytest.raises(ValueError, match="quantized by 'gptq'"):
        wrap(net, BATCH)
