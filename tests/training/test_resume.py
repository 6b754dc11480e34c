"""A run that is interrupted after any step and resumed ends where the uninterrupted one does, bit for bit."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from hf_trady import CostTable, LayerRanking, TraDyConfig, TraDyModel
from hf_trady.saving import WEIGHTS_NAME
from hf_trady.selection import COSTS_NAME

from ..tiny import bert, conv_net, copy_of_state, different_keys
from .runs import TASKS, make_trainer
from .scripts.killed import RUNS as KILLED


ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "scripts" / "killed.py"
KILLS = 8  # of each run
ADAMW = {"optim": "adamw_torch_fused", "weight_decay": 0.1}
SGD = {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.05}


def build(task: str, config: dict) -> TraDyModel:
    """A model anew from the same base weights; BERT with dropout."""
    net = bert(dropout=0.3) if task == "bert" else TASKS[task][0]()
    return TraDyModel(net, TraDyConfig(**{"memory_budget": 0.3, "strategy": "dynamic_full_random"} | config))


def run(path: Path, task: str, config: dict, arguments: dict, resume: int | None = None, **kwargs):
    """Train to the end, from checkpoint `resume` of `path` if given; returns the Trainer."""
    kwargs = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1} | arguments | kwargs
    trainer = make_trainer(path, task, model=build(task, config), **kwargs)
    trainer.train(resume_from_checkpoint=None if resume is None else str(path / f"checkpoint-{resume}"))
    return trainer


RUNS = {
    "adamw": ("conv", {}, ADAMW),
    "adamw-carry": ("conv", {"optimizer_state": "carry"}, ADAMW),
    "sgd": ("conv", {}, SGD),
    "sgd-carry": ("conv", {"optimizer_state": "carry"}, SGD),
    "steps": ("conv", {"resample_every": 2}, ADAMW),
    "steps-carry": ("conv", {"resample_every": 2, "optimizer_state": "carry"}, SGD),
    "every-step": ("conv", {"resample_every": 1, "optimizer_state": "carry"}, ADAMW),
    "accumulation": ("conv", {}, ADAMW | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    "accumulation-uneven": (
        "conv",
        {"resample_every": 2, "optimizer_state": "carry"},
        SGD | {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
    ),
    "norms": ("conv", {"norm_mode": "train", "train_bias": True}, ADAMW),
    "norms-steps": ("conv", {"norm_mode": "train", "resample_every": 2, "optimizer_state": "carry"}, SGD),
    "dropout": ("bert", {}, ADAMW),
    "dropout-carry-bias": ("bert", {"optimizer_state": "carry", "train_bias": True, "resample_every": 2}, ADAMW),
    "ranked": ("conv", {"strategy": "trady", "ranking_coverage": 0.8}, ADAMW),
    "ranked-norms": ("conv", {"strategy": "trady", "norm_mode": "train"}, SGD),
    "ranked-dropout": ("bert", {"strategy": "trady", "ranking_coverage": 0.8, "optimizer_state": "carry"}, ADAMW),
    "static": ("conv", {"strategy": "static_full_random"}, ADAMW),
    "greedy": ("bert", {"strategy": "static_rgn"}, ADAMW),
    "greedy-refreshed": ("conv", {"strategy": "dynamic_rgn", "norm_mode": "train"}, SGD),
    "informed": ("conv", {"strategy": "informed", "resample_every": 2, "optimizer_state": "carry"}, ADAMW),
    "observed": ("conv", {"strategy": "medyate"}, ADAMW),
    "observed-steps": ("conv", {"strategy": "medyate", "resample_every": 2, "optimizer_state": "carry"}, SGD),
    "velocity-steps": ("conv", {"strategy": "velocity", "resample_every": 2, "optimizer_state": "carry"}, SGD),
    "timm": ("timm", {"norm_mode": "train"}, SGD),
    "wrapper": ("wrapper", {}, ADAMW),
    "best": ("conv", {}, ADAMW | {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}),
}


@pytest.mark.parametrize("task, config, arguments", RUNS.values(), ids=RUNS)
def test_a_run_resumed_after_any_step_ends_where_the_uninterrupted_one_does(task, config, arguments, tmp_path):
    if "eval_strategy" in arguments:
        arguments = arguments | {"eval_dataset": TASKS[task][1](5)}
    whole = run(tmp_path, task, config, arguments)
    last = whole.state.global_step
    assert last >= 6
    end, optimizer = copy_of_state(whole.model), whole.optimizer.state_dict()["state"]
    start = copy_of_state(build(task, config))
    assert len(different_keys(start, end)) > 2
    per_epoch = last // 3
    steps = range(1, last) if task == "conv" else (1, per_epoch, per_epoch + 1, 2 * per_epoch)
    for step in steps:
        saves = {} if "load_best_model_at_end" in arguments else {"save_strategy": "no"}  # saving takes half the time
        resumed = run(tmp_path, task, config, arguments, step, **saves)
        assert resumed.state.global_step == last
        assert different_keys(copy_of_state(resumed.model), end) == [], f"resumed after step {step}"
        state = resumed.optimizer.state_dict()["state"]
        assert state.keys() == optimizer.keys()
        for i, values in optimizer.items():
            assert all(torch.equal(state[i][key], value) for key, value in values.items())
        assert resumed.model.epoch == whole.model.epoch
        assert _logs(resumed) == _logs(whole)
    again = run(tmp_path, task, config, arguments)
    assert different_keys(copy_of_state(again.model), end) == []


def _logs(trainer) -> list[dict]:
    """What was logged of each draw. A resume logs the one that it goes on with once more."""
    logs = [entry for entry in trainer.state.log_history if "trady/budget" in entry]
    names = sorted(name for name in logs[0] if name.startswith("trady/"))
    values = [[entry[name] for name in names] for entry in logs]
    return [value for i, value in enumerate(values) if i == 0 or value != values[i - 1]]


def test_a_checkpoint_holds_all_that_its_own_step_trained(tmp_path):
    trainer = run(tmp_path, "conv", {"resample_every": 2, "norm_mode": "train"}, ADAMW)
    assert len(list(tmp_path.glob("checkpoint-*"))) == trainer.state.global_step
    states = []
    for step in range(1, trainer.state.global_step + 1):
        model = TraDyModel.from_pretrained(tmp_path / f"checkpoint-{step}", conv_net())
        states.append(copy_of_state(model))
    assert all(different_keys(a, b) for a, b in pairwise(states))
    assert different_keys(states[-1], copy_of_state(trainer.model)) == []


def test_the_resumed_run_takes_the_ranking_of_the_checkpoint_and_measures_none(tmp_path):
    config = {"strategy": "trady", "num_layers": 2}
    whole = run(tmp_path, "conv", config, ADAMW)
    measured = whole.model.layer_ranking
    # Another ranking in the checkpoint, so that one that is measured anew can't pass for it.
    reversed_scores = {layer: rank for rank, layer in enumerate(measured.layers(), 1)}
    other = LayerRanking({"rgn": reversed_scores, "lara": reversed_scores}, measured.shapes)
    assert set(other.top(num_layers=2)) != set(measured.top(num_layers=2))
    other.save_pretrained(tmp_path / "checkpoint-4")
    trainer = make_trainer(tmp_path, model=build("conv", config), save_strategy="no")
    trainer.prepare_model(tmp_path / "checkpoint-4")
    assert trainer.model.layer_ranking == other
    assert {row.name for row in trainer.model.pool} == set(other.top(num_layers=2))
    # The whole way: a ranking that is measured anew, in fewer steps, would not be this one.
    resumed = run(tmp_path, "conv", config, ADAMW, 5, ranking_steps=3)
    assert measured.info["num_steps"] == 10 and resumed.model.layer_ranking == measured


def test_the_resumed_run_goes_by_the_costs_of_the_checkpoint(tmp_path):
    whole = run(tmp_path, "conv", {}, ADAMW)
    file, own = tmp_path / "checkpoint-4" / COSTS_NAME, whole.model.costs
    other = CostTable(tuple(replace(row, activation_per_channel=2 * row.activation_per_channel) for row in own))
    other.save_pretrained(file.parent)
    for expected in (other, own):
        trainer = make_trainer(tmp_path, model=build("conv", {}), save_strategy="no")
        trainer.prepare_model(file.parent)
        assert trainer.model.costs == expected
        file.unlink(missing_ok=True)  # as of an earlier version: learned from a batch, then


def test_the_latest_checkpoint_is_found(tmp_path):
    whole = run(tmp_path, "conv", {}, ADAMW)
    trainer = make_trainer(tmp_path, model=build("conv", {}), num_train_epochs=4, **ADAMW)
    trainer.train(resume_from_checkpoint=True)
    assert (whole.state.global_step, trainer.state.global_step) == (9, 12)


@pytest.mark.parametrize("damage", ["truncated", "other base", "trained since"])
def test_what_does_not_fit_is_not_resumed(damage, tmp_path):
    run(tmp_path, "conv", {"memory_budget": 0.1}, ADAMW)
    model = build("conv", {"memory_budget": 0.1})
    if damage == "truncated":
        file = tmp_path / "checkpoint-4" / WEIGHTS_NAME
        file.write_bytes(file.read_bytes()[:-10])
        expected = f"'{WEIGHTS_NAME}' is not what was saved"
    elif damage == "other base":
        model = TraDyModel(conv_net(seed=1), model.trady_config)
        expected = "not the one that was fine-tuned"
    else:
        make_trainer(tmp_path / "other", model=model, num_train_epochs=9).train()
        expected = "trained channels that"
    with pytest.raises(ValueError, match=expected) as caught:
        make_trainer(tmp_path, model=model).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name, processes", [*((name, 1) for name in KILLED), ("trady", 2), ("medyate", 2)])
def test_a_run_killed_at_random_moments_ends_where_one_does_that_was_not(name, processes, tmp_path):
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, (tmp_path, name, 0, KILLS, processes))],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["same"] and outcome["while_saving"] > 0 and max(outcome["resumed_from"]) > 0
    assert outcome["resumed_from"] == sorted(outcome["resumed_from"])  # what was saved is never lost
