"""Two machines, as far as the network goes: namespaces with their own addresses, a launcher in each."""

from pathlib import Path

import pytest
import torch

from ..launching import launch_on_two_machines, two_machines
from ..tiny import different_keys
from .scripts.two_processes import train


SCRIPT = Path(__file__).parent / "scripts" / "two_processes.py"
NAME = "conv-adamw"


@pytest.mark.slow
def test_two_machines_agree_with_one_process_that_takes_both_batches(tmp_path):
    with two_machines() as namespaces:
        if namespaces is None:
            pytest.skip("network namespaces can't be made here (no root, or no ip)")
        launch_on_two_machines(namespaces, SCRIPT, tmp_path, 4, "whole", NAME)
    first, second = (torch.load(tmp_path / f"{NAME}-{rank}.pt") for rank in range(2))
    assert first["network"] != second["network"]
    assert (first["processes"], second["processes"]) == (2, 2)
    assert different_keys(first["state"], second["state"]) == []
    for key, value in train(tmp_path, NAME, 8)["state"].items():
        torch.testing.assert_close(first["state"][key], value, rtol=1e-5, atol=1e-6)
