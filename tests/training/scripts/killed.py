"""Trains a tiny BERT from a fixed start; goes on from the last checkpoint, if there is one.

Usage: killed.py OUTPUT_DIR RESULT [--pause]
"""

import sys
import time
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_trady import TraDyConfig, TraDyModel
from tests.tiny import bert, copy_of_state
from tests.training.runs import make_trainer


class Pause(TrainerCallback):
    """Gives the parent time to kill this process in the middle of a run."""

    def on_step_end(self, *args, **kwargs):
        time.sleep(0.2)


def main() -> None:
    torch.set_num_threads(1)
    output, result = Path(sys.argv[1]), Path(sys.argv[2])
    output.mkdir(exist_ok=True)
    model = TraDyModel(bert(dropout=0.3), TraDyConfig(memory_budget=0.3, strategy="trady", optimizer_state="carry"))
    callbacks = [Pause()] if "--pause" in sys.argv else []
    trainer = make_trainer(
        output, "bert", model=model, num_train_epochs=4, save_strategy="steps", save_steps=1, callbacks=callbacks
    )
    checkpoint = get_last_checkpoint(str(output))
    trainer.train(resume_from_checkpoint=checkpoint)
    state = {"model": copy_of_state(model), "resumed_from": int(checkpoint.rpartition("-")[2]) if checkpoint else 0}
    torch.save(state, result)


if __name__ == "__main__":
    main()
