"""What a release writes must stay loadable: tests/data holds a file of each format that version 0.1 wrote, run_0.1 by
`save_pretrained`, checkpoint_0.1 with what it adds to the files of a Trainer in a checkpoint.

`python -m tests.test_formats DIRECTORY` writes both; make them for a release that changes a format, and keep the old
ones.
"""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_trady import LayerRanking, TraDyConfig, TraDyModel
from hf_trady.history import DrawHistory
from hf_trady.memory import FittedBudget
from hf_trady.saving import SAVED_NAMES
from hf_trady.selection import COSTS_NAME, ChannelScores
from hf_trady.training.checkpoints import SEAL_NAME, flaw, seal
from hf_trady.velocity import VELOCITIES_NAME

from .tiny import ConvNet, same_draw


RUN, CHECKPOINT = (Path(__file__).parent / "data" / f"{kind}_0.1" for kind in ("run", "checkpoint"))
TRAINED_NAME = "trained.safetensors"  # the whole state dict, to compare with


def base_model() -> ConvNet:
    """A network whose weights no random generator and no library decides."""
    net = ConvNet().eval()
    with torch.no_grad():
        for i, (name, tensor) in enumerate(net.state_dict().items()):
            if tensor.is_floating_point():
                steps = (torch.arange(tensor.numel()) * 37 + i * 11) % 101
                tensor.copy_(((steps + 1 if "var" in name else steps - 50) / 256).view_as(tensor))
    return net


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images and their labels."""
    return ((torch.arange(2 * 3 * 64) % 13 - 6) / 8).view(2, 3, 8, 8), torch.tensor([0, 2])


def write_run(directory: Path) -> None:
    """Train over two draws, and save."""
    config = TraDyConfig(
        memory_budget="11KiB", strategy="informed", importance="rgn", base_model_name_or_path="me/base", seed=3
    )
    model = TraDyModel(base_model(), config)
    model.calibrate(batch()[0])
    model.measure([batch()], num_steps=1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    history = DrawHistory.of(model)
    for epoch in range(2):
        model.resample(epoch, optimizer)
        model.train()
        torch.nn.functional.cross_entropy(model(batch()[0]), batch()[1]).backward()
        optimizer.step()
        history.add(model, epoch + 1)
    model.save_pretrained(directory)
    history.save_pretrained(directory)
    save_file(model.state_dict(), directory / TRAINED_NAME)


def neurons() -> TraDyModel:
    """A model whose draws follow from all that a checkpoint can hold."""
    return TraDyModel(base_model(), TraDyConfig(0.2, "velocity", modules_to_save=["classifier"]), batch()[0])


def write_checkpoint(directory: Path) -> None:
    """Measure two times, train between, and write what goes into a checkpoint."""
    model = neurons()
    model.measure([batch()])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    torch.nn.functional.cross_entropy(model(batch()[0]), batch()[1]).backward()
    optimizer.step()
    model.measure([batch()])
    model.save_training_state(directory)
    model.save_pretrained(directory)
    seal(directory)


def test_the_weights_of_a_saved_run_load_bit_for_bit():
    model = TraDyModel.from_pretrained(RUN, base_model())
    expected = load_file(RUN / TRAINED_NAME)
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    before = base_model().state_dict()
    assert any(not torch.equal(before[key], expected[key]) for key in expected if not key.startswith("classifier"))


def test_the_other_files_of_a_saved_run_load():
    config = TraDyConfig.from_pretrained(RUN)
    assert (config.memory_budget, config.strategy, config.importance, config.seed) == ("11KiB", "informed", "rgn", 3)
    ranking, scores = LayerRanking.from_pretrained(RUN), ChannelScores.from_pretrained(RUN)
    assert ranking.shapes.keys() == scores.norms.keys() == {"stem", "depthwise", "pointwise", "hidden"}
    fitted, history = FittedBudget.from_pretrained(RUN), DrawHistory.from_pretrained(RUN)
    assert fitted.units > 0 and fitted.predicted_peak <= 11 * 1024
    assert list(history.draws) == [0, 1] and history.draws[1].step == 2 and history.units == fitted.units


def test_a_saved_run_trains_on():
    model = TraDyModel.from_pretrained(RUN, base_model(), example_inputs=batch()[0])
    assert model.load_known(RUN) == model.fitted == FittedBudget.from_pretrained(RUN)
    for draw, record in DrawHistory.from_pretrained(RUN).draws.items():
        model.resample(draw)
        assert {name: len(index) for name, index in model.active_channels().items()} == record.active


def test_a_checkpoint_is_whole_and_draws_on():
    assert flaw(CHECKPOINT) is None
    model, again = neurons(), neurons()
    model.load_known(CHECKPOINT)
    again.load_known(CHECKPOINT)
    assert same_draw(model.draw(1), again.draw(1))
    for each in (model, again):
        each.measure([batch()])
    assert same_draw(model.draw(2), again.draw(2))
    assert {COSTS_NAME, VELOCITIES_NAME, SEAL_NAME} <= {path.name for path in CHECKPOINT.iterdir()}


@pytest.mark.parametrize("name", sorted({*SAVED_NAMES} - {"config.json"}))  # that is the base model's, not ours
def test_every_format_is_there(name):
    assert (RUN / name).is_file()


def test_this_release_writes_the_same_files(tmp_path):
    for write, kept in ((write_run, RUN), (write_checkpoint, CHECKPOINT)):
        write(tmp_path / kept.name)
        assert {path.name for path in (tmp_path / kept.name).iterdir()} == {path.name for path in kept.iterdir()}
        assert TraDyConfig.from_pretrained(tmp_path / kept.name) == TraDyConfig.from_pretrained(kept)


if __name__ == "__main__":
    write_run(Path(sys.argv[1]) / "run")
    write_checkpoint(Path(sys.argv[1]) / "checkpoint")
