"""What is measured on the batches of a Trainer leaves nothing behind."""

import multiprocessing

import pytest
from transformers import TrainerCallback

from .runs import make_trainer


@pytest.mark.parametrize("strategy", ["dynamic_rgn", "velocity"])
def test_measuring_for_a_redraw_leaves_no_data_loader_behind(strategy, tmp_path):
    kwargs = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = make_trainer(tmp_path, config={"strategy": strategy, "resample_every": 2}, **kwargs)
    seen = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            accelerator = trainer.accelerator
            is_read = accelerator.gradient_state.active_dataloader in accelerator._dataloaders
            seen.append((len(accelerator._dataloaders), is_read, len(multiprocessing.active_children())))

    trainer.add_callback(Count())
    trainer.train()
    assert len(seen) == 6 and len({*seen}) == 1 and seen[0][1], seen
