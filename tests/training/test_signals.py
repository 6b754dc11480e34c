"""Several processes that are told to end: one of two that train; one that trains, and its data loader's workers."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_trady.training.checkpoints import last_whole_checkpoint

from ..launching import ROOT, environment, launch_two
from ..tiny import different_keys


SCRIPTS = Path(__file__).parent / "scripts"
SCRIPT = SCRIPTS / "told.py"
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


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", -signal.SIGINT)])
def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_step_that_they_load_for(name, code, tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "told_with_workers.py"), str(tmp_path), name],
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=120,  # which a worker that outlives its parent would exceed: it holds the output open
    )
    assert done.returncode == code and done.stdout.endswith("saved\n"), done.stdout + done.stderr
    assert "RuntimeError" not in done.stderr
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
