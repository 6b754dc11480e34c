"""Trains tiny models over three redraws and saves the state of each rank; run by the launcher or imported.

Usage: two_processes.py DIRECTORY BATCH_SIZE [fsdp|whole|resume [NAME ...]]

`resume` goes on from the first checkpoint that is in DIRECTORY, of however many processes.
"""

import os
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from benchmarks.collectives import CollectiveBytes
from hf_trady import TraDyConfig, TraDyModel
from hf_trady.layers import is_sharded, whole
from tests.tiny import ConvNet, Rows, bert, conv_net, gpt2, lm_batch, same_draw, token_batch
from tests.training.runs import image_rows, make_trainer


def idle_net() -> ConvNet:
    """A network with a layer that its forward never calls."""
    net = conv_net()
    net.idle = torch.nn.Linear(4, 4)
    return net


def one_bad_image(n: int) -> Rows:
    """Images, of which one has a pixel of NaN."""
    rows = image_rows(n)
    rows.columns["pixel_values"][5, 0, 0, 0] = float("nan")
    return rows


def texts(n: int) -> list[dict[str, torch.Tensor]]:
    """Texts, of which every other four are short."""
    batch = token_batch(n, 12)
    lengths = [4 if i // 4 % 2 == 0 else 12 - i % 3 for i in range(n)]
    rows = [{key: column[i] for key, column in batch.items()} for i in range(n)]
    return [{k: v[:n] if v.dim() else v for k, v in row.items()} for row, n in zip(rows, lengths, strict=True)]


def padded(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch, as long as its longest text."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    pad = torch.nn.utils.rnn.pad_sequence
    return {k: pad(v, batch_first=True) if v[0].dim() else torch.stack(v) for k, v in columns.items()}


# Name -> (model, data, fields of the config, training arguments).
RUNS = {
    "conv-sgd": (conv_net, image_rows, {}, {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.05}),
    "gpt2-adamw": (
        gpt2,
        lambda n: Rows(lm_batch(n)),
        {"optimizer_state": "carry", "resample_every": 2},
        {"weight_decay": 0.1, "adam_epsilon": 1e-3},  # Adam itself would enlarge rounding errors of tiny gradients
    ),
    "conv-adamw": (
        conv_net,
        image_rows,
        {"train_bias": True, "resample_every": 1},
        {"weight_decay": 0.1, "adam_epsilon": 1e-3},
    ),
    "conv-nan": (conv_net, one_bad_image, {}, {}),
    "conv-idle": (idle_net, image_rows, {"train_bias": True}, {}),
    "bert-accumulated": (
        bert,
        lambda n: Rows(token_batch(n)),
        {"optimizer_state": "carry", "memory_budget": 0.2, "train_bias": True},
        {"weight_decay": 0.1, "adam_epsilon": 1e-3, "gradient_accumulation_steps": 2, "num_train_epochs": 4}
        # By default the Trainer multiplies the loss by the number of processes, for a model that divides it by the
        # number of items of all; BERT takes that number and leaves it.
        | {"average_tokens_across_devices": False},
    ),
    "bert-padded": (
        bert,
        texts,
        {"optimizer_state": "carry"},
        {"adam_epsilon": 1e-3, "data_collator": padded, "average_tokens_across_devices": False},
    ),
    "conv-ranked": (
        conv_net,
        image_rows,
        {"strategy": "trady", "num_layers": 2, "train_bias": True},
        {"train_sampling_strategy": "random", "gradient_accumulation_steps": 2},
    ),
}


class StepBytes(TrainerCallback):
    """Records what each step hands to collectives, from its first forward to that of the next step of its epoch; of
    the last one of an epoch, which may save, until its end."""

    def __init__(self):
        self.steps: list[dict[str, int]] = []
        self.counter: CollectiveBytes | None = None

    def on_step_begin(self, *args, **kwargs):
        self._end()
        self.counter = CollectiveBytes()
        self.counter.__enter__()

    def on_epoch_end(self, *args, **kwargs):
        self._end()

    def _end(self):
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
            self.steps.append(dict(self.counter.given))
        self.counter = None


class ActiveChannels(TrainerCallback):
    """Records the channels that train in each step, by the number of their draw."""

    def __init__(self):
        self.draws: dict[int, dict[str, torch.Tensor]] = {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        trained = {name: index.clone() for name, index in model.active_channels().items()}
        assert same_draw(trained, self.draws.setdefault(model.epoch, trained))


# What each run has `fully_shard` wrap on its own, beside the whole model.
SHARDED = {
    "gpt2-adamw": {"transformer_layer_cls_to_wrap": "GPT2Block"},
    "bert-accumulated": {"transformer_layer_cls_to_wrap": "BertLayer"},
    "conv-adamw": {"auto_wrap_policy": "NO_WRAP"},
}


def train(
    directory: Path, name: str, batch_size: int, sharded: bool = False, checkpoint: str | None = None, **more
) -> dict:
    """Run `name` with `batch_size` a process, in the order of the data; returns the end, the draws and the ranking.

    `sharded`: under FSDP2. `checkpoint`: what to resume from. `more` are further training arguments.
    """
    make, data, config, arguments = RUNS[name]
    if sharded:
        arguments = arguments | {"fsdp": True, "fsdp_config": dict(SHARDED[name])}
    arguments = arguments | more
    model = TraDyModel(make(), TraDyConfig(**{"memory_budget": 0.3, "strategy": "dynamic_full_random"} | config))
    arguments = {"train_sampling_strategy": "sequential", "num_train_epochs": 3} | arguments
    bytes_given, active = StepBytes(), ActiveChannels()
    trainer = make_trainer(
        directory / name,
        model=model,
        train_dataset=data(24),
        per_device_train_batch_size=batch_size,
        callbacks=[bytes_given, active],
        **arguments,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    local = [p.to_local() if is_sharded(p) else p for p in model.parameters()]
    return {
        "state": {key: whole(value).clone() for key, value in model.state_dict().items()},
        "bytes": sum(part.nbytes for part in local),
        "draws": [model.draw(number) for number in range(model.epoch + 1)],
        "active": active.draws,
        "network": os.readlink("/proc/self/ns/net") if sys.platform == "linux" else None,
        "processes": trainer.accelerator.num_processes,
        "rank": trainer.accelerator.process_index,
        "wrapped": type(trainer.model_wrapped).__name__,
        "collectives": bytes_given.steps,
        "trained": {name: p.numel() for name, p in model.named_parameters() if p.requires_grad},
        "row_elements": sum(p.shape[1:].numel() for p in model.parameters() if p.requires_grad),
        "skipped": trainer._redraws.skipped_steps,
        "budget": model.budget,
        "costs": model.costs.to_dict(),
        "ranking": model.layer_ranking and model.layer_ranking.scores,
    }


def first_checkpoint(run: Path) -> str:
    return str(min(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])))


def main() -> None:
    torch.set_num_threads(1)
    directory, batch_size = Path(sys.argv[1]), int(sys.argv[2])
    sharded, resumes = sys.argv[3:4] == ["fsdp"], sys.argv[3:4] == ["resume"]
    chosen = sys.argv[4:] or (SHARDED if sharded else RUNS)
    for name in chosen:
        first = first_checkpoint(directory / name) if resumes else None
        run = directory / "resumed" if resumes else directory
        result = train(run, name, batch_size, sharded, first, save_strategy="epoch")
        if sharded:
            first = first_checkpoint(directory / name)
            result["resumed"] = train(directory / "resumed", name, batch_size, True, first)["state"]
        torch.save(result, directory / f"{name}-{result['rank']}.pt")


if __name__ == "__main__":
    main()
