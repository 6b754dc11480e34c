"""Ctrl-C and SIGTERM: save, then exit."""

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy


class InterruptionCallback(TrainerCallback):
    """Ends a run at the first signal with a checkpoint after the step that it is in; at the second at once.

    A context manager: the signals are taken inside the block, in the main thread, where the run saves checkpoints.
    The workers of its data loaders, which have a part in the step that is to end well, go on meanwhile.

    Args:
        trainer: The Trainer.

    Raises:
        KeyboardInterrupt: Once the checkpoint is there, after SIGINT (Ctrl-C).
        SystemExit: The same after SIGTERM, with code 143.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._received: int | None = None
        self._agreed: int | None = None  # the signal, once every process knows of it
        self._before: dict[int, object] = {}
        self._process: int | None = None
        self._takes = torch.zeros((), dtype=torch.bool)  # SIGTERM; shared with workers

    def shield(self, loader: DataLoader) -> DataLoader:
        """Let the workers of `loader`, which is returned, pass over the signals that this process takes: a launcher or
        a terminal sends them to the whole group."""
        if loader.num_workers > 0:
            base = getattr(loader, "base_dataloader", loader)  # of what accelerate has wrapped
            base.worker_init_fn = partial(_pass_over_signals, self._takes.share_memory_(), base.worker_init_fn)
        return loader

    def __enter__(self) -> None:
        self._received = self._agreed = None
        self._process = os.getpid()
        args = self.trainer.args
        if args.save_strategy == SaveStrategy.NO or threading.current_thread() is not threading.main_thread():
            return
        # A Trainer may take SIGTERM itself.
        for number in (signal.SIGINT,) if args.enable_jit_checkpoint else (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if before is not None and before != signal.SIG_IGN:  # None: it was not Python that set it
                self._before[number] = before
                signal.signal(number, self._receive)
        self._takes.fill_(signal.SIGTERM in self._before)

    def __exit__(self, kind: type | None = None, *_) -> None:
        self._put_back()
        self._takes.fill_(False)
        if kind is None and self._received is not None:  # it came after the last step
            signal.raise_signal(self._received)

    def _put_back(self) -> None:
        while self._before:
            number, before = self._before.popitem()
            signal.signal(number, before)

    def _receive(self, number: int, frame) -> None:
        if os.getpid() != self._process:
            return  # a child, such as a worker that has just begun
        self._put_back()  # a second signal does what it did before
        self._received = number
        name = signal.Signals(number).name
        # Not by print, which may be what was interrupted.
        os.write(2, f"\n{name}: saving after this step, then exiting; once more to exit now.\n".encode())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._agreed = self._agree()
        if self._agreed is not None:
            control.should_save = True
            control.should_evaluate = False  # which may take longer than whoever sent it waits

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._agreed is None:
            return
        # Whoever is first to go would have the launcher stop the others, of which one is still writing.
        self.trainer.accelerator.wait_for_everyone()
        line = f"interrupted after step {state.global_step}, which is saved in '{Path(args.output_dir)}'"
        if self._agreed == signal.SIGTERM:
            os.write(2, f"{line}\n".encode())
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt(line)

    def _agree(self) -> int | None:
        """The signal, if any process has received one: all must save after the same step, and exit alike."""
        accelerator = self.trainer.accelerator
        if self.trainer.args.save_strategy == SaveStrategy.NO or accelerator.num_processes == 1:
            return self._received
        if self._received is not None:
            accelerator.set_trigger()
        if not accelerator.check_trigger():
            return None
        return int(accelerator.gather(torch.tensor([self._received or 0], device=accelerator.device)).max())


def _pass_over_signals(takes: Tensor, init: Callable[[int], None] | None, worker: int) -> None:
    """Prepare a worker: it passes over SIGINT, and over SIGTERM while `takes`; otherwise that ends it, which may come
    from its parent."""

    def receive(number: int, frame) -> None:
        if not takes:
            os._exit(0)  # as torch's own handler, which this replaces: the parent takes another end for a failure

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, receive)
    if init is not None:
        init(worker)
