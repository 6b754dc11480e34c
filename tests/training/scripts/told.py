"""Trains over several processes, of which one is told to end; writes how each ended. Run by the launcher.

Usage: told.py DIRECTORY [RANK STEP]

The process RANK gets SIGTERM in the middle of the step STEP; the main one takes a while to complete a checkpoint. The
run goes on from its last checkpoint if it has any.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.training import checkpoints
from tests.tiny import conv_net, copy_of_state
from tests.training.runs import image_rows, make_trainer


SECONDS = 3  # in which a launcher notices the end of a process and stops the others


class Told(TrainerCallback):
    """Sends SIGTERM to this process in the middle of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    torch.set_num_threads(1)
    directory, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    is_told = sys.argv[2:3] == [str(rank)]
    if len(sys.argv) > 2:
        seal = checkpoints.seal
        checkpoints.seal = lambda staged: (time.sleep(SECONDS), seal(staged))
    config = TraDyConfig(memory_budget=0.3, strategy="dynamic_full_random", optimizer_state="carry")
    trainer = make_trainer(
        directory / "run",
        model=TraDyModel(conv_net(), config),
        train_dataset=image_rows(24),
        callbacks=[Told(int(sys.argv[3]))] if is_told else [],
        save_strategy="epoch",
    )
    end = {"told": is_told, "error": None, "code": 0}
    try:
        trainer.train(resume_from_checkpoint=any((directory / "run").glob("checkpoint-*")))
    except BaseException as error:
        end |= {"error": type(error).__name__, "code": getattr(error, "code", None)}
        raise
    finally:
        end |= {"step": trainer.state.global_step}
        (directory / f"{rank}.json").write_text(json.dumps(end))
    torch.save(copy_of_state(trainer.model), directory / f"{rank}.pt")


if __name__ == "__main__":
    main()
