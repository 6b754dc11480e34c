"""Trains with two workers of its data loader and tells its whole process group to end, as a launcher does; once it has
saved, with the workers still there, says so.

Usage: told_with_workers.py DIRECTORY SIGNAL (in a session of its own)
"""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch

from tests.training.runs import image_rows, make_trainer
from tests.training.test_faults import At


STEP = 2


def main() -> None:
    torch.set_num_threads(1)
    number = getattr(signal, sys.argv[2])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background ignores
    workers = []

    def tell() -> None:
        workers.extend(multiprocessing.active_children())
        os.killpg(0, number)
        time.sleep(0.5)

    trainer = make_trainer(
        Path(sys.argv[1]),
        train_dataset=image_rows(24),
        callbacks=[At(STEP, tell, within=True)],
        save_strategy="epoch",
        gradient_accumulation_steps=2,
        dataloader_num_workers=2,
        dataloader_persistent_workers=True,
    )
    try:
        trainer.train()
    except (SystemExit, KeyboardInterrupt):
        assert len(workers) == 2 and all(worker.is_alive() for worker in workers)
        print("saved", flush=True)
        raise


if __name__ == "__main__":
    main()
