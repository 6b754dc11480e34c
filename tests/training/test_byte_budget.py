"""A budget in bytes on real architectures: what is measured before and in every epoch is inside it."""

import json
import subprocess
import sys

import pytest

from hf_trady.memory import PeakTracker

from ..launching import ROOT


@pytest.mark.slow
@pytest.mark.skipif(PeakTracker().method != "rss", reason="no resettable high-water mark here")
@pytest.mark.parametrize(
    ("network", "layout", "budget"),
    [
        ("mobilenetv2", "default", "200MiB"),
        ("mobilenetv2", "channels_last", "120MiB"),
        ("minilm", "default", "300MiB"),
        ("minilm", "default", "110MiB"),  # little more than the least
    ],
)
def test_every_pass_stays_inside(network, layout, budget, tmp_path):
    script = [sys.executable, "-m", "tests.training.scripts.byte_budget", network, layout, budget, str(tmp_path)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["peaks"]) == 3 and found["units"] > 0
    assert max(found["measuring"], *found["peaks"]) <= found["budget"], found
    assert not found["shrunk"] and found["verdict"].endswith("inside")
    # A budget that is kept by using little of it would be no feat.
    assert max(found["peaks"]) > 0.6 * found["budget"], found
