import json
import subprocess
import sys

import pytest

from hf_trady.memory import MIB, PeakTracker

from ..launching import ROOT


HOLES = f"""
import json
import torch
from hf_trady.memory import PeakTracker

del (large := [torch.ones(30 * {MIB}, dtype=torch.uint8)])[:]  # from now on glibc takes smaller ones from its heap
kept = [torch.ones(2 * {MIB}, dtype=torch.uint8) for _ in range(60)]
del kept[::2]  # 30 holes
tracker = PeakTracker()
step = [torch.ones({MIB}, dtype=torch.uint8) for _ in range(40)]
peak = tracker.peak
del step
print(json.dumps([peak, tracker.current]))
"""


@pytest.mark.skipif(PeakTracker().method != "rss", reason="no resettable high-water mark here")
def test_tensors_do_not_land_in_holes_of_the_heap_from_which_they_are_not_given_back():
    done = subprocess.run([sys.executable, "-c", HOLES], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    peak, left = json.loads(done.stdout)
    assert abs(peak - 40 * MIB) < 2 * MIB and left < 2 * MIB
