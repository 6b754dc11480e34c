"""Precisions, clipping and determinism, with channels that change."""

import pytest
import torch
from transformers import TrainerCallback

from hf_trady import TraDyModel
from hf_trady.layers import read_channels

from ..tiny import (
    conv_net,
    copy_of_state,
    different_keys,
    gpt2,
    image_batch,
    inputs_of,
    lm_batch,
    loss_of,
    wrap,
)
from .runs import make_trainer


BATCHES = {"conv": (conv_net, image_batch()), "gpt2": (gpt2, lm_batch())}
every_model = pytest.mark.parametrize("kind", BATCHES)


def trained_parameters(model: TraDyModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@every_model
def test_a_grad_scaler_skips_what_overflows_and_otherwise_changes_nothing(kind):
    make, batch = BATCHES[kind]
    ends = []
    for scaled in (False, True):
        model = wrap(make(), inputs_of(batch), optimizer_state="carry").train()
        optimizer = torch.optim.AdamW(trained_parameters(model), lr=0.01, eps=1e-3)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**8, growth_interval=1000)
        for step in range(6):
            model.resample(step // 2, optimizer)
            overflows = scaled and step == 3
            loss = loss_of(model, batch)
            scaler.scale(loss * float("inf") if overflows else loss).backward()
            before = copy_of_state(model)
            if scaled or step != 3:
                scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert (different_keys(before, copy_of_state(model)) == []) == (step == 3)
        assert scaler.get_scale() == (2.0**7 if scaled else 1.0)
        ends.append(copy_of_state(model))
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value)


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_to_where_float32_does(kind, dtype):
    make, batch = BATCHES[kind]
    ends = []
    for enabled in (False, True):
        model = wrap(make(), inputs_of(batch), optimizer_state="carry").train()
        optimizer = torch.optim.SGD(trained_parameters(model), lr=0.05, momentum=0.9)
        for step in range(6):
            model.resample(step // 2, optimizer)
            with torch.autocast("cpu", dtype, enabled=enabled):
                loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(parameter.dtype == torch.float32 for parameter in trained_parameters(model))
        ends.append(copy_of_state(model))
    start = make().state_dict()
    moved = [key for key in ends[0] if not torch.equal(ends[0][key], start[key])]
    assert set(moved) == {key for key in ends[1] if not torch.equal(ends[1][key], start[key])}
    step = {key: (ends[0][key] - start[key]).norm() for key in moved}
    assert all((ends[1][key] - ends[0][key]).norm() < 0.2 * step[key] for key in moved)


class Norms(TrainerCallback):
    """Compares the norm that was clipped to the one of autograd's full gradient at what trains."""

    def __init__(self, batch):
        self.batch, self.expected, self.clipped = batch, [], []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        plain = conv_net()
        plain.load_state_dict(model.state_dict())
        loss_of(plain, self.batch).backward()
        parts = [parameter.grad.flatten() for parameter in plain.classifier.parameters()]
        for name, index in model.active_channels().items():
            layer = plain.get_submodule(name)
            layer.weight.data = layer.weight.grad  # read by channel as the weight is
            parts.append(read_channels(layer, index).flatten())
        self.expected.append(torch.cat(parts).norm().item())

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [parameter.grad.flatten() for parameter in trained_parameters(model)]
        self.clipped.append(torch.cat(gradients).norm().item())


def test_gradients_are_clipped_by_the_norm_of_what_trains(tmp_path):
    images, labels = image_batch(4, 16)
    watch = Norms((images, labels))
    trainer = make_trainer(
        tmp_path,
        config={"lean_backward": "exact"},
        train_dataset=[{"x": x, "labels": y} for x, y in zip(images, labels, strict=True)],
        callbacks=[watch],
        max_grad_norm=0.01,
        num_train_epochs=4,
        logging_strategy="steps",
        logging_steps=1,
    )
    trainer.train()
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(logged) == 4 and min(logged) > 0.02
    assert logged == pytest.approx(watch.expected, rel=1e-3)
    assert watch.clipped == pytest.approx([0.01] * 4, rel=1e-3)


def test_deterministic_algorithms_are_enough(tmp_path):
    ends = []
    try:
        for _ in range(2):
            config = {"norm_mode": "train", "strategy": "trady"}
            trainer = make_trainer(tmp_path, config=config, full_determinism=True)
            trainer.train()
            assert torch.are_deterministic_algorithms_enabled()
            ends.append(copy_of_state(trainer.model))
    finally:
        torch.use_deterministic_algorithms(False)
    assert different_keys(*ends) == []
