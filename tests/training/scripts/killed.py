"""Trains from a fixed start, is killed at random moments until it gets to its end, and goes on each time from the last
whole checkpoint; prints as JSON what came of it, beside the run that is left in peace.

Usage: killed.py DIRECTORY RUN SEED KILLS PROCESSES
"""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch
from transformers.utils import logging

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.training.checkpoints import STAGING
from tests.tiny import bert, copy_of_state
from tests.training.runs import make_trainer


LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT
CARRY = {"optimizer_state": "carry", "resample_every": 2}

# Name -> (task, fields of the config, training arguments).
RUNS = {
    "trady": ("bert", {"strategy": "trady", **CARRY}, {"bf16": True, "warmup_steps": 3}),
    "velocity": ("conv", {"strategy": "velocity", "norm_mode": "train"}, {"warmup_steps": 3}),
    "medyate": (
        "conv",
        {"strategy": "medyate", **CARRY},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ),
    "informed": ("bert", {"strategy": "informed", **CARRY}, {"gradient_accumulation_steps": 2, "bf16": True}),
    "dynamic_rgn": ("conv", {"strategy": "dynamic_rgn"}, {"save_total_limit": 1}),
}


def main(directory: Path, name: str, seed: int, kills: int, processes: int) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    chance = random.Random(seed)
    whole = run_in_children(directory / "whole", name, processes)
    resumed_from, while_saving, run = [], 0, directory / "killed"
    for i in range(kills):
        moment = (chance.randrange(60), None) if i % 2 else (None, chance.uniform(0.0, 0.4))
        if run_in_children(run, name, processes, *moment) is not None:
            break  # it got to the end before its time
        while_saving += (run / STAGING).is_dir()
        resumed_from.append(max((int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")), default=0))
    end = run_in_children(run, name, processes)
    same = whole.keys() == end.keys() and all(torch.equal(whole[key], end[key]) for key in whole)
    print(json.dumps({"resumed_from": resumed_from, "while_saving": while_saving, "same": same}))


def run_in_children(
    directory: Path, name: str, processes: int, writes: int | None = None, seconds: float | None = None
) -> dict | None:
    """Train in processes of their own, of which the first is killed before its write number `writes` into a
    checkpoint, or so many seconds after it has begun one, and the others with it; returns what it ended with, None if
    it was killed."""
    result = directory.with_suffix(".pt")
    result.unlink(missing_ok=True)
    directory.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    while len(children) < processes and 0 not in children:
        children.append(os.fork())
    if 0 in children:
        torch.set_num_threads(
            1
        )  # renews torch's pool of threads, before two of autograd's do so at once, and one fails
        try:
            if processes > 1:
                rank = {"RANK": len(children) - 1, "LOCAL_RANK": len(children) - 1, "WORLD_SIZE": processes}
                address = {"LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({key: str(value) for key, value in (rank | address).items()})
            if writes is not None and len(children) == 1:
                kill_at_write(writes)
            train(directory, name, result if len(children) == 1 else None)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    if seconds is not None:
        before = set(directory.glob("checkpoint-*"))
        while set(directory.glob("checkpoint-*")) <= before and os.waitid(os.P_PID, children[0], LOOK) is None:
            time.sleep(0.01)
        time.sleep(seconds)
        os.kill(children[0], signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])
    for other in children[1:]:
        if code != 0:
            os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert code in (0, -signal.SIGKILL), f"the run failed: {code}"
    return torch.load(result) if code == 0 else None


def kill_at_write(number: int) -> None:
    """Kill this process at its event number `number` of opening, renaming or deleting what belongs to a checkpoint."""
    seen = 0

    def look(event: str, args: tuple) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and "checkpoint-" in str(args[0]):
            seen += 1
            if seen > number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def train(directory: Path, name: str, result: Path | None) -> None:
    task, config, arguments = RUNS[name]
    model = {"config": config} if task == "conv" else {"model": _bert(config)}
    kwargs = {"num_train_epochs": 6, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 3} | arguments
    trainer = make_trainer(directory, task, **model, **kwargs)
    has_any = any(directory.glob("checkpoint-*")) or (directory / STAGING).is_dir()
    try:
        trainer.train(resume_from_checkpoint=has_any)
    except ValueError as error:
        if "no whole checkpoint" not in str(error):
            raise
        trainer.train()
    state = {f"model.{key}": value for key, value in copy_of_state(trainer.model).items()}
    for i, values in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{key}": value for key, value in values.items()}
    if result is not None:
        torch.save(state, result)


def _bert(config: dict) -> TraDyModel:
    return TraDyModel(bert(dropout=0.3), TraDyConfig(**{"memory_budget": 0.3} | config))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
