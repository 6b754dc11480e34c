"""What can't train a TraDyModel over several processes is refused by name before anything is changed."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn

from hf_trady import CostTable, TraDyCallback
from hf_trady.training.faults import in_one_line
from hf_trady.training.measuring import prepare_inputs

from ..tiny import MODELS, anatomy, bert, inputs_of, token_batch, wrap
from .runs import make_trainer


def asked_for(fsdp: dict | None = None, zero_stage: int | None = None) -> SimpleNamespace:
    """The state of an Accelerator that has been told to use FSDP, with what works unless `fsdp` says otherwise, or
    DeepSpeed, which need not be installed."""
    deepspeed = None if zero_stage is None else SimpleNamespace(zero_stage=zero_stage)
    if fsdp is not None:
        fsdp = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, "cpu_ram_efficient_loading": False} | fsdp)
    return SimpleNamespace(fsdp_plugin=fsdp, deepspeed_plugin=deepspeed)


REFUSED = {
    "ZeRO stage 1": (asked_for(zero_stage=1), {}, {}),
    "ZeRO stage 2": (asked_for(zero_stage=2), {}, {}),
    "ZeRO stage 3": (asked_for(zero_stage=3), {}, {}),
    "fsdp_version=1": (asked_for({"fsdp_version": 1}), {}, {}),
    "cpu_ram_efficient_loading=True": (asked_for({"cpu_ram_efficient_loading": True}), {}, {}),
    "cpu_offload=True": (asked_for({"cpu_offload": True}), {}, {}),
    "memory_budget='64MiB'": (asked_for({}), {"memory_budget": "64MiB"}, {}),
    "strategy='dynamic_rgn'": (asked_for({}), {"strategy": "dynamic_rgn"}, {}),
    "load_best_model_at_end=True": (
        asked_for({}),
        {},
        {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
    ),
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_does_not_work_is_refused_in_a_line(given, tmp_path, monkeypatch):
    asked, config, arguments = REFUSED[given]
    more = {"eval_dataset": make_trainer(tmp_path).train_dataset} if arguments else {}
    trainer = make_trainer(tmp_path, config=config, **arguments, **more)
    before = anatomy(trainer.model)
    monkeypatch.setattr(trainer.accelerator, "state", asked)
    with pytest.raises(ValueError) as refusal:
        TraDyCallback(trainer)
    assert given in str(refusal.value) and "DDP" in str(refusal.value) and "\n" not in str(refusal.value)
    assert anatomy(trainer.model) == before


def test_weights_in_channels_last_are_refused_under_fsdp(tmp_path, monkeypatch):
    make, batch = MODELS["conv"]
    model = wrap(make().to(memory_format=torch.channels_last), inputs_of(batch))
    trainer = make_trainer(tmp_path, model=model)
    monkeypatch.setattr(trainer.accelerator, "state", asked_for({}))
    with pytest.raises(ValueError, match="FSDP takes contiguous ones"):
        TraDyCallback(trainer)
    monkeypatch.undo()
    TraDyCallback(trainer)


def test_quantized_weights_are_refused_under_fsdp(tmp_path, monkeypatch):
    bnb = pytest.importorskip("bitsandbytes")
    network = nn.Sequential(bnb.nn.Linear4bit(16, 8), nn.ReLU(), nn.Linear(8, 2)).to("cpu")
    trainer = make_trainer(tmp_path, model=wrap(network, torch.zeros(2, 16), modules_to_save=["2"]))
    monkeypatch.setattr(trainer.accelerator, "state", asked_for({}))
    with pytest.raises(ValueError, match=r"4 or 8 bits is not allowed.*or train with DDP"):
        TraDyCallback(trainer)


def test_one_process_and_fsdp_that_works_are_not_refused(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    TraDyCallback(trainer)
    monkeypatch.setattr(trainer.accelerator, "state", asked_for({}))
    TraDyCallback(trainer)


def test_what_is_measured_goes_where_the_weights_are(tmp_path):
    """FSDP moves weights to the device only when it splits them, which is after all measuring."""
    trainer = make_trainer(tmp_path)
    trainer.model.to("meta")
    batch = next(iter(trainer.get_train_dataloader()))
    devices = {value.device.type for value in prepare_inputs(trainer, trainer.model, batch).values()}
    assert devices == {"meta"} != {next(iter(batch.values())).device.type}


def test_a_gradient_that_ddp_waits_for_in_vain_is_told_with_what_to_set(tmp_path):
    error = RuntimeError("Expected to have finished reduction in the prior iteration before starting a new one. This")
    with (
        pytest.raises(ValueError, match="ddp_find_unused_parameters=True") as told,
        in_one_line(make_trainer(tmp_path)),
    ):
        raise error
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("plain", [False, True])
def test_processes_with_example_inputs_of_their_own_go_by_the_costs_of_the_first_or_are_refused(
    plain, tmp_path, monkeypatch
):
    first = wrap(bert(), inputs_of(token_batch(2, 9)), 0.3).costs
    model = wrap(bert(), inputs_of(token_batch(2, 6)), 0.3)
    trainer = make_trainer(tmp_path, "bert", model=model, plain=plain)
    agree = lambda value: first if isinstance(value, CostTable) else value  # noqa: E731
    monkeypatch.setattr("hf_trady.training.callback.agree", agree)
    monkeypatch.setattr("hf_trady.training.trainer.agree", agree)
    if plain:
        with pytest.raises(ValueError, match="costs of channels differ between processes"):
            trainer.train()
    else:
        trainer.train()
        assert model.costs == first
