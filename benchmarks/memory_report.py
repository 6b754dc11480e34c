"""What the memory benchmark's figures say: the tables of docs/memory.md, and the targets of the project."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from memory_methods import METHODS
from memory_networks import NETWORKS


MIB = 2**20


@dataclass(frozen=True)
class Figures:
    """The figures of one method on one network, in the memory layout that it is faster in; medians over repeats.

    Attributes:
        layout: That layout.
        peak: Peak bytes above the model's weights.
        default_peak: The same with glibc's allocator left alone; None where the time was not measured.
        seconds: Median time of a step; None likewise.
        time_ratio: That time by full fine-tuning's, measured in turns; None likewise.
        saved: Bytes kept for backward.
        predicted: Peak bytes that the planner predicts; None for inference.
        activations: Bytes of activations that MemTracker counts, where it was asked.
        trained: Elements that train.
        repeats: Number of processes that it was measured in.
        spread: Largest peak minus smallest, as a share of the median.
    """

    layout: str
    peak: float
    default_peak: float | None
    seconds: float | None
    time_ratio: float | None
    saved: float
    predicted: float | None
    activations: float | None
    trained: int
    repeats: int
    spread: float


AllFigures = dict[tuple[str, str], Figures]
"""(network, method) -> its figures; cases that are missing or don't apply are left out."""


def best_figures(results: dict) -> AllFigures:
    """The figures of every case of which the bytes are measured.

    `results`: "bytes" and "time" -> network -> method -> layout -> one dict a repeat.
    """
    best: AllFigures = {}
    for network in NETWORKS:
        for method in METHODS:
            layouts = results["bytes"].get(network, {}).get(method, {})
            times = results["time"].get(network, {}).get(method, {})
            candidates = [
                _figures(layout, runs, times.get(layout, []))
                for layout, runs in layouts.items()
                if runs and None not in runs
            ]
            if candidates:
                best[network, method] = min(candidates, key=lambda figures: figures.time_ratio or math.inf)
    return best


def _figures(layout: str, runs: list[dict], timed: list[dict]) -> Figures:
    def median(name: str, of: list[dict]) -> float | None:
        values = [run[name] for run in of if run[name] is not None]
        return statistics.median(values) if values else None

    peaks = [run["peak_bytes"] for run in runs]
    return Figures(
        layout=layout,
        peak=median("peak_bytes", runs),
        default_peak=median("default_peak_bytes", timed),
        seconds=median("step_seconds", timed),
        time_ratio=median("time_ratio", timed),
        saved=median("saved_bytes", runs),
        predicted=median("predicted_bytes", runs),
        activations=median("activation_bytes", runs),
        trained=runs[0]["trained_parameters"],
        repeats=len(runs),
        spread=(max(peaks) - min(peaks)) / median("peak_bytes", runs),
    )


# ---- Targets ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A figure that the project has promised: `measure` of the figures by method is at most `limit`."""

    networks: tuple[str, ...]
    title: str
    measure: Callable[[dict[str, Figures]], float]
    limit: float
    unit: str = ""


ALL = ("mobilenetv2", "efficientnet_lite0", "resnet50", "vit_tiny", "minilm", "llama")
MOBILE = ("mobilenetv2", "efficientnet_lite0")
MINILM = ("minilm", "minilm_no_dropout")

TARGETS = [
    Target(
        MOBILE,
        "peak / inference peak",
        lambda of: of["compressed"].peak / of["inference"].peak,
        1.10,
    ),
    Target(
        MOBILE,
        "kept for backward / full",
        lambda of: of["compressed"].saved / of["full"].saved,
        0.03,
    ),
    Target(
        MOBILE,
        "step time / full",
        lambda of: of["compressed"].time_ratio,
        0.50,
    ),
    Target(
        ALL,
        "predicted peak off the measured one",
        lambda of: abs(of["compressed"].predicted / of["compressed"].peak - 1),
        0.05,
    ),
    Target(("resnet50",), "activations kept (MemTracker)", lambda of: of["compressed"].activations / MIB, 65, " MiB"),
    Target(("resnet50",), "peak / inference peak", lambda of: of["compressed"].peak / of["inference"].peak, 1.25),
    Target(MINILM, "peak / LoRA's peak", lambda of: of["compressed"].peak / of["lora"].peak, 0.60),
    Target(MINILM, "step time / LoRA's", lambda of: of["compressed"].time_ratio / of["lora"].time_ratio, 0.70),
    Target(
        MINILM,
        "with checkpointing: peak / inference peak",
        lambda of: of["compressed_checkpointed"].peak / of["inference"].peak,
        2.0,
    ),
    Target(
        MINILM,
        "with checkpointing: step time / full",
        lambda of: of["compressed_checkpointed"].time_ratio,
        1.10,
    ),
]


def target_rows(figures: AllFigures) -> list[tuple[str, str, str, str, str]]:
    """Network, measure, target, figure and whether it is met, of every target; a dash where a figure is missing."""
    rows = []
    for target in TARGETS:
        for network in target.networks:
            of = {method: value for (name, method), value in figures.items() if name == network}
            try:
                value = target.measure(of)
            except (KeyError, TypeError):  # no such case, or a figure of it that is None
                value = None
            if value is None:
                measured, met = "-", "-"
            else:
                measured, met = _number(value, target.unit), "yes" if value <= target.limit else "no"
            limit = f"<= {_number(target.limit, target.unit)}"
            rows.append((NETWORKS[network].title, target.title, limit, measured, met))
    return rows


def _number(value: float, unit: str) -> str:
    return f"{value:.0f}{unit}" if unit else f"{value:.3g}" if value < 0.1 else f"{value:.2f}"


# ---- Markdown -----------------------------------------------------------------------------------------------------

INTRODUCTION = """\
# Memory and time of fine-tuning, measured

![Peak memory of a training step by network and method](memory.png)

Written by `python benchmarks/memory.py`: torch {torch}, {threads} threads, {cpu}; optimizer: {optimizer}. A dash, or a
row that is not there, was not measured yet.

- **Peak** is the most that the process ever held above what it held with the model, the inputs and the optimizer in
  place and one step done, in which libraries make what they keep (5 to 20 MiB): activations, gradients and transients
  of a step. Freed blocks go straight back to the system, so it is memory in use. *As it comes* is the same with
  glibc's allocator left alone, which keeps gaps between blocks: what grows there is fragmentation.
- **Predicted** is what the planner says of the same step, from a run on fake tensors.
- **Kept** is what autograd saves for backward, each storage once, without parameters and inputs.
- **Step** is the median of {steps} steps in a process that leaves glibc's allocator alone, with huge pages: handing
  freed blocks back at once, as the other process does, makes every method slower, by a factor of 1.5 to 2 here.
  Each step is followed by one of full fine-tuning in the same process; *step / full* is the median of these ratios,
  as the machine's own speed varies, at times several-fold.
- Where an image network ran in both memory layouts, a row shows the one in which its method is faster.
- Weights are random, which changes neither bytes nor time. In TraDy's rows {share:.0%} of the input channels of every
  layer outside the head train, and norms keep their statistics; "lean" without "exact" keeps 8 bits of what GELU,
  SiLU and layer norms need. "PaCA-style" trains 8 fixed random input channels of every layer. LoRA is PEFT's, on
  every linear layer and convolution that PEFT supports (no depthwise ones).
"""


def markdown(figures: AllFigures, settings: dict) -> str:
    """The whole of docs/memory.md."""
    parts = [INTRODUCTION.format(**settings)]
    spreads = [value.spread for value in figures.values() if value.repeats > 1]
    if spreads:
        parts.append(
            f"Over {max(value.repeats for value in figures.values())} fresh processes a case, the peaks of a case "
            f"differ by {statistics.median(spreads):.1%} (median of the cases) and at most {max(spreads):.1%}.\n"
        )
    for network, description in NETWORKS.items():
        rows = {method: figures[network, method] for method in METHODS if (network, method) in figures}
        if rows:
            parts.append(f"## {description.title} ({description.setting})\n\n{_network_table(rows)}")
    header = ("network", "measure", "target", "measured", "met")
    parts.append(f"## Targets\n\n{_table(header, target_rows(figures))}")
    return "\n".join(parts)


def _network_table(rows: dict[str, Figures]) -> str:
    inference, full = rows.get("inference"), rows.get("full")
    header = [
        "method",
        "peak, MiB",
        "predicted",
        "/ inference",
        "/ full",
        "step, ms",
        "step / full",
        "kept, MiB",
        "trained",
    ]
    header += ["as it comes, MiB", "layout"]
    if tracked := any(row.activations is not None for row in rows.values()):
        header.append("MemTracker, MiB")
    lines = []
    for method, row in rows.items():
        line = [
            METHODS[method].title,
            f"{row.peak / MIB:,.0f}",
            "-" if row.predicted is None else f"{row.predicted / MIB:,.0f}",
            _ratio(row.peak, inference and inference.peak),
            _ratio(row.peak, full and full.peak),
            "-" if row.seconds is None else f"{1e3 * row.seconds:,.0f}",
            "-" if row.time_ratio is None else f"{row.time_ratio:.2f}",
            f"{row.saved / MIB:,.1f}",
            f"{row.trained:,}",
            "-" if row.default_peak is None else f"{row.default_peak / MIB:,.0f}",
            row.layout,
        ]
        if tracked:
            line.append("-" if row.activations is None else f"{row.activations / MIB:,.0f}")
        lines.append(line)
    return _table(header, lines)


def _ratio(value: float, reference: float | None) -> str:
    return f"{value / reference:.2f}" if reference else "-"


def _table(header, rows) -> str:
    align = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, align, *rows]) + "\n"
