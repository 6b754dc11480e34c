import pytest
import torch
from torch import nn

from .tiny import conv_net, copy_of_state, different_keys, image_batch, wrap


def batches(n=3):
    return [image_batch(4, seed=seed) for seed in range(n)]


def test_statistics_become_those_of_the_new_domain_and_nothing_else_moves():
    model = wrap(conv_net(), image_batch()[0])
    before = copy_of_state(model)
    model.train()
    model.recalibrate_norms(batches())
    moved = different_keys(before, model.state_dict())
    assert moved and all(key.startswith(("norm1.running", "norm2.running", "norm1.num", "norm2.num")) for key in moved)
    with torch.no_grad():
        means = torch.stack([model.base_model.stem(images).mean((0, 2, 3)) for images, _ in batches()])
    torch.testing.assert_close(model.base_model.norm1.running_mean, means.mean(0))
    assert model.training and not model.base_model.norm1.training and model.base_model.norm1.momentum == 0.1


def test_it_is_saved_with_the_model(tmp_path):
    model = wrap(conv_net(), image_batch()[0])
    model.recalibrate_norms(batches())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, base_model=conv_net())
    assert torch.equal(again.base_model.norm2.running_var, model.base_model.norm2.running_var)


def test_a_failure_or_no_batch_changes_nothing():
    model = wrap(conv_net(), image_batch()[0])
    before = copy_of_state(model)
    with pytest.raises(ValueError, match="got no batch"):
        model.recalibrate_norms([])
    with pytest.raises(RuntimeError):
        model.recalibrate_norms([*batches(1), (torch.zeros(2, 5, 8, 8), None)])
    assert not different_keys(before, model.state_dict())


def test_training_never_moves_a_frozen_norm_whoever_calls_train():
    model = wrap(conv_net(), image_batch()[0])
    before = copy_of_state(model)
    model.train()
    for _ in range(2):
        model(image_batch()[0]).sum().backward()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not different_keys(before, copy_of_state(model))
