import pytest
import torch
from torch import nn

from hf_trady import TraDyConfig, TraDyModel, plan
from hf_trady.velocity import NeuronVelocities

from .tiny import conv_net, copy_of_state, different_keys, image_batch, train, wrap
from .training.runs import image_rows, make_trainer


def loss_of(model, batch):
    return model(batch).sum()


def test_velocities_follow_their_definition():
    layer = nn.Linear(3, 2)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    velocities = NeuronVelocities({"layer": layer})
    outputs, found = [], []
    for epoch in range(4):
        with torch.no_grad():
            layer.weight[1] += 0.5 * epoch  # neuron 1 moves, neuron 0 does not
            outputs.append(layer(x))
        found.append(velocities.update(layer, [x], 1, loss_of).norms["layer"])
    assert found[0].isnan().all()
    similarity, velocity = torch.ones(2), torch.zeros(2)
    for before, now, seen in zip(outputs, outputs[1:], found[1:], strict=False):
        current = torch.cosine_similarity(now, before, dim=0)
        velocity = current - similarity - 0.5 * velocity
        similarity = current
        assert torch.allclose(seen, velocity.abs(), atol=1e-6)
    assert all(seen[0] < 1e-6 < seen[1] for seen in found[1:])


def test_a_run_trains_neurons_only_and_reports_what_it_really_stores(tmp_path):
    config = TraDyConfig(0.1, "velocity", modules_to_save=["classifier"])
    model = TraDyModel(conv_net(), config)
    start = copy_of_state(model)
    trainer = make_trainer(tmp_path, model=model, num_train_epochs=3, eval_dataset=image_rows(5))
    trainer.train()
    end = copy_of_state(model)
    assert len(different_keys(start, end)) > 2
    for name, mask in model.touched.items():
        moved = (start[f"{name}.weight"] != end[f"{name}.weight"]).flatten(1).any(1)
        assert not (moved & ~mask).any()
    report = model.report()
    weights = sum(model.costs[name].weight_per_channel * len(i) for name, i in model.active_channels().items())
    inputs = sum(model.costs[name].whole_activation for name in model.active_channels())
    assert weights <= report.budget and report.units == weights + inputs
    assert report.units > report.budget  # as the method does not count them


def test_it_is_saved_and_comes_back(tmp_path):
    images, labels = image_batch()
    model = wrap(conv_net(), images, 0.1, strategy="velocity")
    model.measure([(images, labels)])
    train(model, (images, labels), epochs=2)
    model.save_pretrained(tmp_path)
    again = TraDyModel.from_pretrained(tmp_path, conv_net())
    assert different_keys(copy_of_state(again), copy_of_state(model)) == []
    plain = again.merge_and_unload()
    assert torch.equal(plain.hidden.weight, model.base_model.hidden.weight)


@pytest.mark.parametrize("budget", [0.1, "0.5MiB"])
def test_a_plan_says_that_nothing_is_known_yet(budget):
    planned = plan(conv_net(), TraDyConfig(budget, "velocity"), image_batch()[0])
    assert "Nothing is known of single channels yet" in str(planned) and planned.step.peak > 0
