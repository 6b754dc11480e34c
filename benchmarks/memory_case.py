"""Measures one case of the memory benchmark in this process, which must be a fresh one, and prints it as JSON.

    python benchmarks/memory_case.py bytes mobilenetv2 full channels_last --steps 3
    python benchmarks/memory_case.py time mobilenetv2 full channels_last --steps 10

The peak is the process's own high-water mark on Linux, above what it held just before the first step: the model, the
inputs and the optimizer (without state) exist by then, freed memory has been given back to the system, and one step
has made what libraries make only once (thread pools, compiled kernels, code for each shape: 5 to 20 MiB). So it is
activations, gradients, optimizer state and transients.

Time is measured against full fine-tuning of the same network, step by step in turns, so that what slows the machine
down for a while slows both: the ratio of each pair of steps says more than two times that were taken apart.

Bytes and time take a process each. glibc, left alone, keeps freed tensors for reuse, which is fast, but lets the
process grow by what doesn't fit the gaps: by 2 to 80 %, for every method, differently in every run. The process that
measures bytes has it hand freed blocks straight back, as training with a budget in bytes does, so that the peak is
what is in use. The one that measures time leaves it alone, and reports its own peak too.
"""

import argparse
import ctypes
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from memory_methods import METHODS
from memory_networks import NETWORKS, Batch, loss_of
from torch import nn

from hf_trady.memory import StepSetup, predict_step
from hf_trady.memory.glibc import return_freed_memory


OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=("bytes", "time"))
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("layout", choices=("default", "channels_last"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    options = parser.parse_args()
    if options.measure == "bytes":
        return_freed_memory()
    case = Case(options.network, options.method, options.layout, options.optimizer)
    figures = None
    if case.model is not None:
        if options.measure == "bytes":
            figures = measure_bytes(case, options.steps)
        else:
            figures = measure_time(case, options.steps, options.network, options.optimizer)
    print(json.dumps(figures))


class Case:
    """A network made ready to train by one method. `model` is None where the method has nothing to train in it."""

    def __init__(self, network: str, method: str, layout: str, optimizer: str):
        torch.manual_seed(0)
        self.network, self.method, self.layout = NETWORKS[network], METHODS[method], layout
        model = self.network.build()
        if layout == "channels_last":
            model.to(memory_format=torch.channels_last)
        self.model = self.method.prepare(model, self.network)
        if self.model is None:
            return
        self.batch = self.make_batch(self.network.samples)
        self.trained = [p for p in self.model.parameters() if p.requires_grad] if self.method.trains else []
        self.optimizer = OPTIMIZERS[optimizer](self.trained, lr=1e-3) if self.trained else None
        self.step(self.batch)
        if self.optimizer:
            self.optimizer.state.clear()

    def make_batch(self, samples: int) -> Batch:
        batch = self.network.make_batch(samples)
        if self.layout == "channels_last":
            batch["images"] = batch["images"].contiguous(memory_format=torch.channels_last)
        return batch

    def step(self, batch: Batch) -> None:
        """One training step, or one forward where the method only infers."""
        with torch.set_grad_enabled(self.method.trains):
            loss = loss_of(self.model, batch)
        if self.optimizer:
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


def measure_bytes(case: Case, steps: int) -> dict:
    """What `steps` steps take.

    Returns:
        peak_bytes: Peak of the process above what it held before the first step.
        saved_bytes: Kept for backward at the end of the forward (see `bytes_saved`).
        predicted_bytes: The peak that `predict_step` predicts on fake tensors, without what exists before the step.
        activation_bytes: The same as MemTracker sees it, for the networks that ask for it.
        trained_parameters: Elements that train.
    """

    def run() -> None:
        for _ in range(steps):
            case.step(case.batch)

    figures = {"peak_bytes": peak_bytes(run), "saved_bytes": 0, "predicted_bytes": None, "activation_bytes": None}
    if case.method.trains:
        figures["predicted_bytes"] = predicted_bytes(case)
        figures["saved_bytes"] = bytes_saved(case.model, case.batch)
        if case.network.tracked:
            figures["activation_bytes"] = activation_bytes(case.model, case.batch)
    return figures | {"trained_parameters": sum(parameter.numel() for parameter in case.trained)}


def measure_time(case: Case, steps: int, network: str, optimizer: str) -> dict:
    """What `steps` steps take in time, in turns with as many of full fine-tuning in its faster memory layout.

    Returns:
        step_seconds: Median of the steps.
        time_ratio: Median over the pairs of steps of this method's time by full fine-tuning's.
        default_peak_bytes: Peak of three steps before that, with glibc's allocator as it comes.
    """
    peak = peak_bytes(lambda: [case.step(case.batch) for _ in range(3)])
    full = Case(network, "full", case.network.layouts[-1], optimizer)
    pairs = [(step_seconds(case), step_seconds(full)) for _ in range(steps)]
    return {
        "step_seconds": statistics.median(seconds for seconds, _ in pairs),
        "time_ratio": statistics.median(seconds / reference for seconds, reference in pairs),
        "default_peak_bytes": peak,
    }


def step_seconds(case: Case) -> float:
    """How long one step takes."""
    start = time.perf_counter()
    case.step(case.batch)
    return time.perf_counter() - start


def predicted_bytes(case: Case) -> int:
    """The peak of a step of `case` by the planner, above the model, with what trains in it, and the batch."""
    images = case.batch.get("images")
    setup = StepSetup(type(case.optimizer), {"lr": 1e-3})
    step = predict_step(case.model, case.batch if images is None else images, setup)
    return step.peak - step.at_peak["inputs"] - step.at_peak["channels"]


def peak_bytes(run: Callable[[], None]) -> int:
    """Peak resident bytes of this process while `run()` runs, above those that it holds before. Linux and glibc.

    Pages of files (the code of libraries, loaded as it is first needed) don't count.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status_bytes("VmRSS") - _status_bytes("RssFile")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    run()
    return _status_bytes("VmHWM") - _status_bytes("RssFile") - before


def bytes_saved(model: nn.Module, batch: Batch) -> int:
    """Bytes of all storages saved for backward in one forward, each once; parameters, buffers and inputs left out."""
    known = [*model.parameters(), *model.buffers(), *batch.values()]
    storages = {tensor.untyped_storage().data_ptr() for tensor in known}
    sizes = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model, batch)  # noqa: F841  holds the graph, so that no address is used twice
    return sum(sizes.values())


def activation_bytes(model: nn.Module, batch: Batch) -> int:
    """Bytes that torch's MemTracker counts as activations at the end of a forward."""
    from torch.distributed._tools.mem_tracker import MemTracker

    class ForwardTracker(MemTracker):
        """Without the hooks on gradients, which it would also put on frozen parameters, where torch refuses them."""

        def _track_module_params_and_buffers(self, module, install_grad_hooks=False):
            return super()._track_module_params_and_buffers(module, install_grad_hooks=False)

    tracker = ForwardTracker()
    tracker.track_external(model, *batch.values())
    with tracker:
        loss = loss_of(model, batch)  # noqa: F841  holds the graph
        snapshot = tracker.get_tracker_snapshot("current")
    return sum(
        size for device in snapshot.values() for kind, size in device.items() if getattr(kind, "name", "") == "ACT"
    )


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main()
