"""Two real processes, started by the real launcher."""

from pathlib import Path

import pytest
import torch

from hf_trady import TraDyModel
from hf_trady.layers import read_channels
from hf_trady.training.checkpoints import flaw

from ..launching import launch_two
from ..tiny import copy_of_state, different_keys, same_draw
from .scripts.two_processes import RUNS, SHARDED, first_checkpoint, train


SCRIPT = Path(__file__).parent / "scripts" / "two_processes.py"
pytestmark = pytest.mark.slow
# Run -> number of the draw that it goes on with: one for two steps, one a step, one an epoch by a measured ranking,
# one by costs that the first batch told, which another number of processes pads to another length.
RESUMED = {"gpt2-adamw": 1, "conv-adamw": 3, "conv-ranked": 1, "bert-padded": 1}
SCALAR = 8  # bytes of a number
every_run = pytest.mark.parametrize("name", RUNS)


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """Directory with the results of both ranks, four samples a process and step."""
    directory = tmp_path_factory.mktemp("launched")
    launch_two(SCRIPT, directory, 4)
    return directory


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """The same under FSDP2."""
    directory = tmp_path_factory.mktemp("sharded")
    launch_two(SCRIPT, directory, 4, "fsdp")
    return directory


@pytest.fixture(scope="module")
def taken_over(tmp_path_factory) -> tuple[dict[str, dict], Path]:
    """By name what one process ends with, and the directory with the results of two that went on from its first
    checkpoint."""
    directory = tmp_path_factory.mktemp("taken_over")
    undisturbed = {name: train(directory, name, 8, save_strategy="epoch") for name in RESUMED}
    launch_two(SCRIPT, directory, 4, "resume", *RESUMED)
    return undisturbed, directory


def results(launched: Path, name: str) -> list[dict]:
    return [torch.load(launched / f"{name}-{rank}.pt") for rank in range(2)]


@every_run
def test_both_ranks_end_with_the_same_bits_draws_and_ranking(launched, name):
    first, second = results(launched, name)
    assert [(r["processes"], r["rank"]) for r in (first, second)] == [(2, 0), (2, 1)]
    assert first["wrapped"] == second["wrapped"] == "DistributedDataParallel"
    assert different_keys(first["state"], second["state"]) == []
    assert first["costs"] == second["costs"]
    assert first["ranking"] == second["ranking"] and (first["ranking"] is not None) == ("ranked" in name)
    assert len(first["draws"]) >= 3
    for a, b in zip(first["draws"], second["draws"], strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[layer], b[layer]) for layer in a)


@every_run
def test_channels_that_are_never_drawn_stay_what_they_were(launched, name):
    for result in results(launched, name):
        _check_frozen(result, name)


def _check_frozen(result: dict, name: str) -> None:
    start, end = RUNS[name][0](), RUNS[name][0]()
    end.load_state_dict(result["state"])
    drawn = {}
    for draw in result["draws"]:
        for layer, index in draw.items():
            drawn.setdefault(layer, set()).update(index.tolist())
    moved = set(different_keys(start.state_dict(), end.state_dict()))
    biases = RUNS[name][2].get("train_bias", False)
    whole = {key for key in moved if key.startswith("classifier.") or (biases and key.endswith(".bias"))}
    assert moved - whole and moved - whole <= {f"{layer}.weight" for layer in drawn}
    for layer, channels in drawn.items():
        a, b = start.get_submodule(layer), end.get_submodule(layer)
        everything = torch.arange(a.weight.numel() // read_channels(a, torch.tensor([0])).numel())
        changed = (read_channels(a, everything) != read_channels(b, everything)).flatten(1).any(1)
        assert set(changed.nonzero().flatten().tolist()) <= channels


def test_a_nan_in_one_of_two_processes_has_both_skip_the_step(launched):
    for result in results(launched, "conv-nan"):
        assert result["skipped"] == 3  # one an epoch
        assert all(torch.isfinite(value).all() for value in result["state"].values())
    assert all(result["skipped"] == 0 for result in results(launched, "conv-sgd"))


@pytest.mark.parametrize("name", ["conv-sgd", "conv-adamw", "gpt2-adamw"])
def test_two_processes_agree_with_one_that_takes_both_batches(launched, name, tmp_path):
    one, (two, _) = train(tmp_path, name, 8), results(launched, name)
    assert one["processes"] == 1 and len(one["draws"]) == len(two["draws"])
    start = RUNS[name][0]().state_dict()
    assert len(different_keys(start, one["state"])) > 2
    for key, value in one["state"].items():
        torch.testing.assert_close(two["state"][key], value, rtol=1e-5, atol=1e-6)


@every_run
def test_a_step_sends_the_gradients_of_what_trains_and_nothing_else(launched, name):
    for result in results(launched, name):
        trained = result["trained"]
        flat = [key for key in trained if key.startswith("active.")]
        assert len(flat) == 1 and ("gpt2" in name or any("classifier" in key for key in trained))
        assert len(result["collectives"]) >= 6
        head_and_biases = {key: n for key, n in trained.items() if key not in flat}
        biases = sum(n for key, n in head_and_biases.items() if "classifier" not in key)
        assert trained[flat[0]] + biases <= result["budget"]
        # DDP looks for what gets no gradient only where something doesn't, by a number for each Parameter.
        found = 4 * len(trained) if name == "conv-idle" else 0
        for given in result["collectives"][2:]:  # after the first, DDP settles the order of its buckets
            # Beside gradients: whether a process was told to end; the number of items, and the peak of a draw.
            assert given.pop("allgather_", 0) in (0, SCALAR, 2 * SCALAR)
            assert given == {"allreduce_": 4 * sum(trained.values()) + found + SCALAR}


@every_run
def test_what_the_main_process_saves_is_the_end_of_the_run(launched, name):
    restored = TraDyModel.from_pretrained(launched / name, RUNS[name][0]())
    assert different_keys(copy_of_state(restored), results(launched, name)[0]["state"]) == []


@pytest.mark.parametrize("name", RESUMED)
def test_one_process_goes_on_where_two_were_with_the_same_channels(launched, name, tmp_path):
    two = results(launched, name)[0]
    one = train(tmp_path, name, 8, checkpoint=first_checkpoint(launched / name))
    assert (two["processes"], one["processes"]) == (2, 1)
    _check_resumed(one, two, RESUMED[name])


@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_go_on_where_one_was_with_the_same_channels(taken_over, name):
    undisturbed, directory = taken_over
    for two in results(directory, name):
        assert (two["processes"], undisturbed[name]["processes"]) == (2, 1)
        _check_resumed(two, undisturbed[name], RESUMED[name])


def _check_resumed(resumed: dict, undisturbed: dict, first: int) -> None:
    """The same channels train in each draw from number `first` on, and the weights end the same but for rounding."""
    left = [number for number in undisturbed["active"] if number >= first]
    assert first > 0 and list(resumed["active"]) == left and len(left) > 1
    for number in left:
        assert same_draw(resumed["active"][number], undisturbed["active"][number]), number
    assert resumed["ranking"] == undisturbed["ranking"] and resumed["costs"] == undisturbed["costs"]
    for key, value in undisturbed["state"].items():
        torch.testing.assert_close(resumed["state"][key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SHARDED)
def test_split_weights_train_as_whole_ones(sharded, name, tmp_path):
    first, second = results(sharded, name)
    assert first["wrapped"] == second["wrapped"] == "FSDPTraDyModel"
    assert different_keys(first["state"], second["state"]) == []
    one = train(tmp_path, name, 8)
    assert len(one["draws"]) >= 3
    for a, b, c in zip(one["draws"], first["draws"], second["draws"], strict=True):
        assert same_draw(a, b) and same_draw(a, c)
    for key, value in one["state"].items():
        torch.testing.assert_close(first["state"][key], value, rtol=1e-5, atol=1e-6)
    for result in (first, second):
        _check_frozen(result, name)
        assert 0.4 < result["bytes"] / one["bytes"] < 0.6


def test_the_flags_of_the_launcher_split_weights_as_the_arguments_do(sharded, tmp_path):
    name = "gpt2-adamw"
    flags = ["--use_fsdp", "--fsdp_version", 2, "--fsdp_cpu_ram_efficient_loading", "false"]
    flags += ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--fsdp_transformer_layer_cls_to_wrap", "GPT2Block"]
    launch_two(*flags, SCRIPT, tmp_path, 4, "whole", name)
    for by_flags, by_arguments in zip(results(tmp_path, name), results(sharded, name), strict=True):
        assert by_flags["wrapped"] == "FSDPTraDyModel" and by_flags["bytes"] == by_arguments["bytes"]
        assert different_keys(by_flags["state"], by_arguments["state"]) == []


@pytest.mark.parametrize("name", SHARDED)
def test_what_split_weights_save_is_the_end_of_the_run(sharded, name):
    restored = TraDyModel.from_pretrained(sharded / name, RUNS[name][0]())
    assert different_keys(copy_of_state(restored), results(sharded, name)[0]["state"]) == []


@pytest.mark.parametrize("name", SHARDED)
def test_a_checkpoint_of_split_weights_holds_no_frozen_one(sharded, name):
    checkpoint = Path(first_checkpoint(sharded / name))
    names = {path.name for path in checkpoint.iterdir()}
    assert {"optimizer.bin", "scheduler.pt"} < names and not any("pytorch_model_fsdp" in name for name in names)
    assert flaw(checkpoint) is None


@pytest.mark.parametrize("name", SHARDED)
def test_a_run_of_split_weights_resumes_bit_for_bit(sharded, name):
    for result in results(sharded, name):
        assert different_keys(result["resumed"], result["state"]) == []


@pytest.mark.parametrize("name", SHARDED)
def test_of_gradients_split_weights_send_those_of_what_trains(sharded, name):
    for result in results(sharded, name):
        for given in result["collectives"]:
            elements = sum(result["trained"].values()) + result["row_elements"]  # padded to rows that divide by two
            assert 0 < given["_reduce_scatter_base_"] <= 4 * elements
