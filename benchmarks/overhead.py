"""What wrapping costs: a training step of a wrapped network against the same network, frozen by hand.

With no active channel both do the same work: a forward, and a backward through the head. The two take turns within
one process, so that the machine's noise falls on both alike; the figure is the median of the ratios pair by pair.

    python benchmarks/overhead.py [--pairs 40]

Writes benchmarks/results/overhead.json and prints the table.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm import tqdm
from transformers import BertConfig, BertForSequenceClassification

from hf_trady import TraDyConfig, TraDyModel


RESULTS = Path(__file__).parent / "results" / "overhead.json"


def networks() -> dict[str, tuple[nn.Module, tuple]]:
    """Name -> (network, batch). Weights are random: they do not change the time of a step."""
    images, labels = torch.randn(32, 3, 128, 128), torch.randint(10, (32,))
    bert = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    tokens = torch.randint(1000, (32, 64))
    return {
        "mobilenetv2_100, batch 32, 128 px": (timm.create_model("mobilenetv2_100", num_classes=10), (images, labels)),
        "resnet18, batch 32, 128 px": (timm.create_model("resnet18", num_classes=10), (images, labels)),
        "BERT 6 x 384, batch 32, 64 tokens": (BertForSequenceClassification(bert), (tokens, labels % 2)),
    }


def frozen_by_hand(network: nn.Module, heads: list[str]) -> nn.Module:
    """`network` with everything but `heads` frozen and its norms in eval mode."""
    network.requires_grad_(False)
    for head in heads:
        network.get_submodule(head).requires_grad_(True)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


def make_step(network: nn.Module, batch: tuple) -> Callable[[], None]:
    """One training step of `network` on `batch`."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    inputs, labels = batch

    def step() -> None:
        output = network(inputs)
        F.cross_entropy(getattr(output, "logits", output), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    pairs = parser.parse_args().pairs
    results = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    results |= {"pairs": pairs, "networks": {}}
    table = Table("network", "frozen by hand (ms)", "wrapped (ms)", "ratio", title="A step without active channels")
    for name, (network, batch) in networks().items():
        config = TraDyConfig(memory_budget=0.05, strategy="dynamic_full_random")
        wrapped = TraDyModel(copy.deepcopy(network), config, example_inputs=batch[0])
        wrapped.active.assign({})
        wrapped.train()
        plain_step = make_step(frozen_by_hand(network, wrapped._heads), batch)
        wrapped_step = make_step(wrapped, batch)
        for step in (plain_step, wrapped_step) * 3:
            step()
        times = []
        for turn in tqdm(range(pairs), desc=name):  # who goes first alternates
            if turn % 2:
                times.append((seconds(plain_step), seconds(wrapped_step)))
            else:
                wrapped_time = seconds(wrapped_step)
                times.append((seconds(plain_step), wrapped_time))
        plain_ms, wrapped_ms = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(wrapped / plain for plain, wrapped in times)
        results["networks"][name] = {"plain_ms": plain_ms, "wrapped_ms": wrapped_ms, "ratio": ratio}
        table.add_row(name, f"{plain_ms:.1f}", f"{wrapped_ms:.1f}", f"{ratio:.3f}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    Console().print(table)


if __name__ == "__main__":
    main()
