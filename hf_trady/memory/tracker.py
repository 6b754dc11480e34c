"""Measures what training really takes in memory."""

import re
from pathlib import Path

import torch

from .glibc import return_freed_memory


_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")


class PeakTracker:
    """The peak memory of this process, or of its accelerator, above what it was when the tracker was made.

    On CUDA these are the bytes of tensors by the allocator's own counter. On MPS there is no counter of peaks; what is
    allocated is read whenever `sample` is called. On Linux's CPU it is the resident memory without pages of files:
    code that libraries load as they are first needed, mapped data sets and weights, also where these have been written
    to since. Elsewhere nothing is measured.

    Args:
        device: Where the model is.
        already: Bytes that are there when the tracker is made and that training is to answer for all the same.
        returns_freed: See `return_freed_memory`; without it, peaks of a process on glibc are higher.

    Attributes:
        method: `"cuda"`, `"mps"`, `"rss"` or None where nothing can be measured.
    """

    def __init__(self, device: torch.device | str = "cpu", already: int = 0, returns_freed: bool = True):
        self.device = torch.device(device)
        self.method = _method(self.device)
        self._sampled, self._before, self._paused_at = 0, 0, None
        if self.method == "rss" and returns_freed:
            return_freed_memory()
        self._baseline = self._now() - already
        self.reset()

    def reset(self) -> None:
        """Forget the peak so far; the baseline stays."""
        self._before = 0
        self._restart()

    def pause(self) -> None:
        """Leave out what comes until `resume`: an evaluation, say."""
        self._before, self._paused_at = self.peak or 0, self.current

    def resume(self) -> None:
        """Go on after `pause`. What has come to stay meanwhile (kernels that libraries made for other shapes) joins
        the baseline."""
        if self._paused_at is not None:
            self._baseline += max(0, self.current - self._paused_at)
            self._paused_at = None
            self._restart()

    def _restart(self) -> None:
        self._sampled = 0
        if self.method == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.method == "rss":
            _CLEAR_REFS.write_text("5")

    def sample(self) -> None:
        """Take in what is allocated now, where there is no counter of peaks. Call it during the step."""
        if self.method == "mps":
            self._sampled = max(self._sampled, self._now())

    @property
    def peak(self) -> int | None:
        """Bytes of the highest peak since the last `reset`, above the baseline; None where nothing is measured."""
        if self.method is None:
            return None
        if self.method == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        elif self.method == "mps":
            self.sample()
            peak = self._sampled
        else:
            peak = _status("VmHWM") - _of_files()
        return max(self._before, peak - self._baseline)

    @property
    def current(self) -> int | None:
        """Bytes allocated now, above the baseline; None where nothing is measured."""
        return None if self.method is None else max(0, self._now() - self._baseline)

    def _now(self) -> int:
        if self.method == "cuda":
            return torch.cuda.memory_allocated(self.device)
        if self.method == "mps":
            return torch.mps.current_allocated_memory()
        return _status("VmRSS") - _of_files() if self.method == "rss" else 0


def _method(device: torch.device) -> str | None:
    if device.type in ("cuda", "mps"):
        return device.type
    if device.type == "cpu" and _can_reset():
        return "rss"
    return None


def _can_reset() -> bool:
    """Whether the high-water mark of this process can be read and reset: on Linux, unless a sandbox forbids it."""
    try:
        _CLEAR_REFS.write_text("5")
        return _status("VmHWM") > 0 and _of_files() > 0
    except OSError:
        return False


def _of_files() -> int:
    """Bytes of files that are mapped into this process, those that it has written to, and so copied, included: weights
    that `from_pretrained` has mapped are the model's own, also once they have trained."""
    copied, is_file = 0, False
    for line in _SMAPS.read_text().splitlines():
        if _MAPPING.match(line):
            is_file = line.split()[4] != "0"  # the inode
        elif is_file and line.startswith("Anonymous:"):
            copied += int(line.split()[1]) * 1024
    return _status("RssFile") + copied


def _status(name: str) -> int:
    """Bytes of an entry of /proc/self/status; 0 if there is none."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
