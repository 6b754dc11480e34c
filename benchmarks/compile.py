"""What `model.compile()` brings: a step compiled against the same step eager, and what a redraw compiles anew.

A wrapped network and full fine-tuning of it, each eager and compiled, take turns within one process, so that the
machine's noise falls on all alike; figures are medians of the ratios turn by turn. Every epoch starts with a redraw.

    python benchmarks/compile.py [--epochs 5] [--turns 3] [--seconds 180]

Writes benchmarks/results/compile.json and docs/compile.md, anew after each network.
"""

import argparse
import copy
import json
import platform
import statistics
import textwrap
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch._inductor.exc import InductorError
from transformers import BertConfig, BertForSequenceClassification

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.memory import MIB, PeakTracker


ROOT = Path(__file__).resolve().parent.parent
SHARE = 0.05


def networks() -> dict[str, tuple[nn.Module, tuple, dict]]:
    """Name -> (network, batch, fields of the config). Weights are random: they do not change the time of a step."""
    torch.manual_seed(0)
    mobilenet = timm.create_model("mobilenetv2_100", num_classes=10)
    images, labels = torch.randn(16, 3, 64, 64), torch.randint(10, (16,))
    ranked = {"layer_ranking": "auto"}
    bert = BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    tokens = torch.randint(1000, (16, 32))
    return {
        "BERT 4 x 256, batch 16, 32 tokens": (
            BertForSequenceClassification(bert),
            (tokens, labels % 2),
            {"strategy": "dynamic_full_random"},
        ),
        "MobileNetV2-1.0, batch 16, 64 px": (mobilenet, (images, labels), ranked),
        "MobileNetV2-1.0, batch 16, 64 px, channels_last": (
            copy.deepcopy(mobilenet).to(memory_format=torch.channels_last),
            (images.to(memory_format=torch.channels_last), labels),
            ranked,
        ),
    }


class Training:
    """A network in training.

    Attributes:
        frames: Functions that dynamo has compiled in its steps.
        breaks: Where it has ended a graph before the end of a function.
    """

    def __init__(self, model: nn.Module, batch: tuple[Tensor, Tensor], compiled: bool):
        self.model, self.batch = model.train(), batch
        self.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        self.frames = self.breaks = 0
        if compiled:
            model.compile()

    def redraw(self, epoch: int) -> None:
        if isinstance(self.model, TraDyModel):
            self.model.resample(epoch, self.optimizer)

    def peak(self) -> int:
        """Bytes that a step of training takes above what is there before it."""
        tracker = PeakTracker()
        self.step()
        return tracker.peak

    def step(self) -> float:
        """A step of training; returns its seconds."""
        frames, breaks, start = counters["frames"]["ok"], _breaks(), time.perf_counter()
        output = self.model(self.batch[0])
        F.cross_entropy(getattr(output, "logits", output), self.batch[1]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - start
        self.frames += counters["frames"]["ok"] - frames
        self.breaks += _breaks() - breaks
        return seconds


def _breaks() -> int:
    return sum(counters["graph_break"].values())


def measure(network: nn.Module, batch: tuple, config: dict, epochs: int, turns: int, limit: float) -> dict:
    """Times of a network; ends after the epoch in which `limit` seconds are over, but not before the third."""
    start = time.perf_counter()
    subjects = {}
    for compiled in (False, True):
        kind = "compiled" if compiled else "eager"
        wrapped = TraDyModel(copy.deepcopy(network), TraDyConfig(SHARE, **config), example_inputs=batch[0])
        subjects[f"trady, {kind}"] = Training(wrapped, batch, compiled)
        subjects[f"full, {kind}"] = Training(copy.deepcopy(network), batch, compiled)
    firsts, frames, rows = [], [], []
    while len(firsts) < epochs and (len(firsts) < 3 or time.perf_counter() - start < limit):
        before = {name: subject.frames for name, subject in subjects.items()}
        for subject in subjects.values():
            subject.redraw(len(firsts))
        firsts.append({name: subject.step() for name, subject in subjects.items()})
        for turn in range(turns):
            order = list(subjects) if turn % 2 else list(subjects)[::-1]
            times = {name: subjects[name].step() for name in order}
            if len(firsts) > 1:
                rows.append(times)
        frames.append({name: subject.frames - before[name] for name, subject in subjects.items()})
    peaks = {name: [subject.peak() for _ in range(3)] for name, subject in subjects.items()}
    pairs = {
        "trady": ("trady, compiled", "trady, eager"),
        "full": ("full, compiled", "full, eager"),
        "eager": ("trady, eager", "full, eager"),
        "compiled": ("trady, compiled", "full, compiled"),
    }
    return {
        "milliseconds": {name: 1e3 * statistics.median(times[name] for times in rows) for name in subjects},
        "ratios": {name: statistics.median(times[a] / times[b] for times in rows) for name, (a, b) in pairs.items()},
        "turns": len(rows),
        "peaks": {name: statistics.median(several) for name, several in peaks.items()},
        "first_steps": firsts,
        "frames": frames,
        "breaks": {name: subject.breaks for name, subject in subjects.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--turns", type=int, default=3, help="in each epoch, after its first step")
    parser.add_argument("--seconds", type=float, default=180, help="for each network")
    options = parser.parse_args()
    results = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    results["networks"] = {}
    for name, (network, batch, config) in networks().items():
        torch._dynamo.reset()
        try:
            measured = measure(network, batch, config, options.epochs, options.turns, options.seconds)
        except (TorchDynamoException, InductorError) as error:
            measured = {"error": str(error).strip().splitlines()[0]}
        results["networks"][name] = measured
        (ROOT / "benchmarks" / "results" / "compile.json").write_text(json.dumps(results, indent=2) + "\n")
        (ROOT / "docs" / "compile.md").write_text(page(results), encoding="utf-8")
    print(page(results))


def page(results: dict) -> str:
    """The page, in Markdown."""
    intro = f"""Written by `python benchmarks/compile.py`, torch {results["torch"]} with inductor,
        {results["threads"]} thread(s) of a shared CPU. TraDy ({SHARE:.0%} of the units) and full fine-tuning of the
        same network, each eager and after `model.compile()`, take turns in one process; *compiled / eager* is the
        median of the ratios turn by turn, from the second epoch on. Every epoch starts with a redraw. Few turns on a
        busy machine: the times are rough, the ratios less so. *First step* is that of the first epoch, compiling
        included, most of it by the C++ compiler, whose work stays on the disk for later processes. *Functions* are
        those that dynamo compiled in the first epoch, in the second, and in the later ones together; a redraw that
        compiles nothing is a 0. *Breaks* are the places where it ends a graph within a function. *Peak* is what a
        later step takes above what is there before it; a budget in bytes is predicted for one that is not compiled."""
    parts = ["# What compiling brings", _text(intro)]
    for name, measured in results["networks"].items():
        parts.append(f"## {name}")
        if "error" in measured:
            parts.append(_text(f"Not measured: it can't be compiled. inductor ends in `{measured['error']}`."))
        else:
            parts += ["\n".join(_rows(measured)), _text(_reading(measured))]
    return "\n\n".join(parts) + "\n"


def _rows(measured: dict) -> list[str]:
    columns = ["method", "eager, ms", "compiled, ms", "compiled / eager", "first step, s", "functions", "breaks"]
    columns += ["peak eager, MiB", "peak compiled, MiB"]
    rows = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    for method, label in {"trady": "TraDy", "full": "full fine-tuning"}.items():
        times = (f"{measured['milliseconds'][f'{method}, {kind}']:,.0f}" for kind in ("eager", "compiled"))
        compiled = f"{method}, compiled"
        frames = [epoch[compiled] for epoch in measured["frames"]]
        counts = f"{frames[0]}, {frames[1]}, {sum(frames[2:])}"
        first = f"{measured['first_steps'][0][compiled]:,.0f}"
        breaks = str(measured["breaks"][compiled])
        peaks = (f"{measured['peaks'][f'{method}, {kind}'] / MIB:,.0f}" for kind in ("eager", "compiled"))
        rows.append([label, *times, f"{measured['ratios'][method]:.2f}", first, counts, breaks, *peaks])
    return [f"| {' | '.join(row)} |" for row in rows]


def _reading(measured: dict) -> str:
    ratio, again = measured["ratios"], sum(epoch["trady, compiled"] for epoch in measured["frames"][2:])
    redraws = len(measured["frames"]) - 2
    return f"""Compiling makes a step of TraDy {_change(ratio["trady"])}, one of full fine-tuning
        {_change(ratio["full"])}. TraDy takes {ratio["eager"]:.2f} of full fine-tuning's time eager,
        {ratio["compiled"]:.2f} where both are compiled. The {redraws} redraws after the second epoch compiled
        {again or "no"} functions anew. Medians of {measured["turns"]} turns over {len(measured["frames"]) - 1}
        epochs."""


def _change(ratio: float) -> str:
    return f"{1 - ratio:.0%} shorter" if ratio < 1 else f"{ratio - 1:.0%} longer"


def _text(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), width=119, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    main()
