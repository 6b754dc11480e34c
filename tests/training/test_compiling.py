"""`torch_compile=True` of a Trainer."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from hf_trady import TraDyConfig, TraDyModel

from ..tiny import copy_of_state, inputs_of, token_batch
from .runs import TASKS, image_rows, make_trainer, token_dataset


class Counts(TrainerCallback):
    """How many functions dynamo has compiled by the end of each epoch."""

    def __init__(self):
        self.seen = []

    def on_epoch_end(self, args, state, control, **kwargs):
        self.seen.append(counters["frames"]["total"])


def ready(task: str) -> TraDyModel:
    """A model that knows what it draws from, as a plain Trainer needs it."""
    make, _ = TASKS[task]
    return TraDyModel(make(), TraDyConfig(0.3, "dynamic_full_random"), inputs_of(token_batch()))


@pytest.fixture
def compiles(monkeypatch) -> dict:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # TrainingArguments leave these behind
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "default")
    torch._dynamo.reset()
    counters.clear()
    return {"torch_compile": True, "torch_compile_backend": "aot_eager"}


@pytest.mark.parametrize(
    "task, fields",
    [
        ("conv", {}),
        ("conv", {"config": {"memory_budget": "64MiB", "strategy": "informed"}}),
        ("bert", {"gradient_checkpointing": True}),
        ("bert", {"plain": True}),
    ],
    ids=str,
)
def test_it_trains_what_eager_code_does_and_compiles_nothing_anew(task, fields, compiles, tmp_path):
    ends = []
    for name, how in {"eager": {}, "compiled": compiles}.items():
        counts = Counts()
        common = {"num_train_epochs": 4, "eval_strategy": "epoch", "callbacks": [counts]}
        common["eval_dataset"] = image_rows(6) if task == "conv" else token_dataset(6)
        trainer = make_trainer(
            tmp_path / name, task, ready(task) if "plain" in fields else None, **common | how | fields
        )
        trainer.train()
        ends.append(copy_of_state(trainer.model))
        assert trainer.model.is_compiled == bool(how) and trainer.model_wrapped is trainer.model
    assert counts.seen[0] > 0 and counts.seen[1:] == [counts.seen[1]] * 3
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-3, atol=1e-4)
