"""Several processes of which one is told to end."""

import json
from pathlib import Path

import pytest
import torch

from hf_trady.training.checkpoints import last_whole_checkpoint

from ..launching import launch_two
from ..tiny import different_keys


SCRIPT = Path(__file__).parent / "scripts" / "told.py"
STEP = 5
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, torch.Tensor]:
    """The end of a run of two processes that get no signal."""
    directory = tmp_path_factory.mktemp("undisturbed")
    launch_two(SCRIPT, directory)
    return torch.load(directory / "0.pt")


@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_to_one_of_two_processes_saves_and_ends_both(undisturbed, told, tmp_path):
    launch_two(SCRIPT, tmp_path, told, STEP, fails=True)
    for rank in range(2):
        end = json.loads((tmp_path / f"{rank}.json").read_text())
        assert end == {"told": rank == told, "error": "SystemExit", "code": 143, "step": STEP}
        assert not (tmp_path / f"{rank}.pt").exists()
    assert last_whole_checkpoint(tmp_path / "run") == str(tmp_path / "run" / f"checkpoint-{STEP}")
    launch_two(SCRIPT, tmp_path)
    for rank in range(2):
        assert different_keys(torch.load(tmp_path / f"{rank}.pt"), undisturbed) == []
