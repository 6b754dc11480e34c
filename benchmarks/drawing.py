"""What a draw costs: the channels of an epoch, in seconds and as a share of the epoch.

    python benchmarks/drawing.py

Draws from the channels of a 7-billion-parameter Llama, of which only costs and indices exist, from parts and
multiples of it for how the time grows, and resamples the demo's network between two epochs. Writes
benchmarks/results/drawing.json and docs/drawing.md.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from hf_trady import CostTable, TraDyConfig, TraDyModel, cost_table
from hf_trady.selection import ChannelScores, draw
from hf_trady.selection.strategies import make_strategy


ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = ("trady", "dynamic_full_random", "static_rgn", "informed", "medyate", "paca")
TOKENS, SHARE, REPEATS = 2048, 0.05, 7
LAYERS = (8, 16, 32, 64, 128)
# The demo: examples/solar_cells.py without --quick.
DEMO = {"batch": 32, "pixels": 128, "train_samples": 2099, "share": 0.025}


def llama_costs(num_layers: int) -> CostTable:
    """Costs of a Llama as wide as the one of 7 billion parameters, which has 32 layers, without its output layer."""
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=num_layers, vocab_size=32000)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        costs = cost_table(model, {"input_ids": torch.zeros(1, TOKENS, dtype=torch.int64)})
    return costs.subset(row.name for row in costs if row.name != "lm_head")


def seconds(call: Callable[[], object]) -> float:
    """The median of several calls, after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def time_of_draw(strategy: str, costs: CostTable) -> float:
    """Seconds of one draw of `SHARE` of the units, as the trainer does it at the start of an epoch."""
    made = make_strategy(TraDyConfig(strategy=strategy))
    generator = torch.Generator().manual_seed(0)
    norms = {row.name: torch.rand(row.channels, generator=generator) for row in costs}
    scores = ChannelScores(norms) if made.scores else None
    budget = int(SHARE * costs.total_units)
    return seconds(lambda: draw(made, costs, budget, seed=0, epoch=1, scores=scores))


def time_of_resample() -> dict[str, float]:
    """Seconds of `resample` with AdamW in the demo, of a training step, and the share of an epoch that it takes."""
    network = timm.create_model("tf_efficientnet_lite0", num_classes=2).to(memory_format=torch.channels_last)
    images, labels = torch.randn(DEMO["batch"], 3, DEMO["pixels"], DEMO["pixels"]), torch.randint(2, (DEMO["batch"],))
    config = TraDyConfig(memory_budget=DEMO["share"], strategy="dynamic_full_random")
    model = TraDyModel(network, config, example_inputs=images).train()
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    step_seconds = seconds(step)
    epochs = iter(range(1, 2 * REPEATS))
    resample_seconds = seconds(lambda: model.resample(next(epochs), optimizer))
    steps = -(-DEMO["train_samples"] // DEMO["batch"])
    share = resample_seconds / (steps * step_seconds)
    return {"step": step_seconds, "resample": resample_seconds, "steps": steps, "share": share}


def main() -> None:
    tables = {number: llama_costs(number) for number in LAYERS}
    channels = {number: sum(row.channels for row in costs.by_input()) for number, costs in tables.items()}
    times = {name: {number: time_of_draw(name, costs) for number, costs in tables.items()} for name in STRATEGIES}
    growth = {name: _exponent(list(channels.values()), list(times[name].values())) for name in STRATEGIES}
    results = {"torch": torch.__version__, "channels": channels, "seconds": times, "exponent": growth}
    results["demo"] = time_of_resample()
    (ROOT / "benchmarks" / "results" / "drawing.json").write_text(json.dumps(results, indent=2) + "\n")
    text = _page(results)
    (ROOT / "docs" / "drawing.md").write_text(text, encoding="utf-8")
    print(text)


def _exponent(sizes: list[int], times: list[float]) -> float:
    """The slope of log(time) over log(size)."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def _page(results: dict) -> str:
    demo, channels = results["demo"], results["channels"]
    rows = "\n".join(
        f"| `{name}` | {' | '.join(f'{1e3 * value:,.1f}' for value in by_layers.values())} | "
        f"{results['exponent'][name]:.2f} |"
        for name, by_layers in results["seconds"].items()
    )
    return f"""# What a draw costs

Written by `python benchmarks/drawing.py`, torch {results["torch"]}. Milliseconds of drawing {SHARE:.0%} of the units
from the channels of a Llama of the given number of layers, each 4,096 wide, at {TOKENS:,} tokens; 32 layers are those
of the 7-billion-parameter one. Query, key and value share their channels, and so do gate and up. The last column is
the power of the number of channels that the time grows by.

| strategy | {" | ".join(f"{number} layers" for number in channels)} | power |
| --- |{" ---: |" * (len(channels) + 1)}
| channels | {" | ".join(f"{value:,}" for value in channels.values())} | |
{rows}

With the network of the demo (EfficientNet-Lite0, {DEMO["share"]:.1%} of the units, AdamW, {demo["steps"]} steps an
epoch) a resample, weights and optimizer included, takes {1e3 * demo["resample"]:.1f} ms, and a step
{demo["step"]:.2f} s: {demo["share"]:.3%} of an epoch.
"""


if __name__ == "__main__":
    main()
