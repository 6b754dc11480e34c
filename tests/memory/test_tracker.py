import json
import subprocess
import sys

import pytest
import timm
import torch

from hf_trady.memory import MIB, PeakTracker, predict_step

from ..launching import ROOT


rss_only = pytest.mark.skipif(PeakTracker().method != "rss", reason="no resettable high-water mark here")


@rss_only
def test_a_tensor_that_came_and_went_is_measured_until_the_reset():
    tracker = PeakTracker()
    torch.ones(64 * MIB, dtype=torch.uint8)
    assert abs(tracker.peak - 64 * MIB) < 2 * MIB and tracker.current < 2 * MIB
    tracker.reset()
    assert tracker.peak < 2 * MIB


@rss_only
def test_what_comes_in_a_pause_is_left_out_and_what_stays_of_it_joins_the_baseline():
    tracker = PeakTracker()
    torch.ones(32 * MIB, dtype=torch.uint8)
    tracker.pause()
    stays, _ = torch.ones(16 * MIB, dtype=torch.uint8), torch.ones(96 * MIB, dtype=torch.uint8).sum()
    tracker.resume()
    assert abs(tracker.peak - 32 * MIB) < 2 * MIB and tracker.current < 2 * MIB
    torch.ones(48 * MIB, dtype=torch.uint8)
    assert abs(tracker.peak - 48 * MIB) < 2 * MIB and stays.all()
    tracker.resume()  # without a pause before it, nothing
    assert abs(tracker.peak - 48 * MIB) < 2 * MIB


@rss_only
def test_weights_that_are_mapped_from_their_file_do_not_count_once_they_are_written(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(64 * MIB))
    weights = torch.from_file(str(tmp_path / "weights"), shared=False, size=64 * MIB, dtype=torch.uint8)
    tracker = PeakTracker()
    weights.view(-1, 1024)[:, 0] += 1
    assert tracker.peak < 2 * MIB and tracker.current < 2 * MIB
    torch.ones(32 * MIB, dtype=torch.uint8)
    assert abs(tracker.peak - 32 * MIB) < 2 * MIB


@rss_only
def test_what_was_there_already_counts_when_training_answers_for_it():
    assert abs(PeakTracker(already=5 * MIB).peak - 5 * MIB) < 2 * MIB


def test_where_nothing_can_be_measured_there_is_no_number():
    tracker = PeakTracker("meta")
    tracker.reset()
    tracker.sample()
    tracker.pause()
    tracker.resume()
    assert tracker.method is None and tracker.peak is None and tracker.current is None


@rss_only
@pytest.mark.slow
def test_a_predicted_peak_is_within_5_per_cent_of_that_of_a_fresh_process():
    name, batch_size, size = "mobilenetv2_100", 32, 128
    arguments = [sys.executable, "-m", "tests.memory.measure_step", name, str(batch_size), str(size), "3"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    predicted = predict_step(
        timm.create_model(name, num_classes=10).train(), torch.zeros(batch_size, 3, size, size)
    ).peak
    assert predicted == pytest.approx(measured["peaks"][-1], rel=0.05), (predicted / MIB, measured)
