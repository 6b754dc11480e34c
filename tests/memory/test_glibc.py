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


KEPT = f"""
import json
import torch
from hf_trady.memory import PeakTracker
from hf_trady.memory.glibc import keep_freed_memory

tracker, left = PeakTracker(), []
for _ in range(2):
    step = [torch.ones({MIB}, dtype=torch.uint8) for _ in range(40)]
    del step
    left.append(tracker.current)
    keep_freed_memory()
print(json.dumps(left))
"""

measured = pytest.mark.skipif(PeakTracker().method != "rss", reason="no resettable high-water mark here")


def run(script: str):
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@measured
def test_tensors_do_not_land_in_holes_of_the_heap_from_which_they_are_not_given_back():
    peak, left = run(HOLES)
    assert abs(peak - 40 * MIB) < 2 * MIB and left < 2 * MIB


@measured
def test_freed_memory_is_kept_again_when_it_is_asked_for():
    returned, kept = run(KEPT)
    assert returned < 2 * MIB and kept > 30 * MIB
