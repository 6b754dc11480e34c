"""Peak memory and step time of fine-tuning, method by method and network by network.

    python benchmarks/memory.py                                  # everything; some hours on 2 cores
    python benchmarks/memory.py --networks minilm --methods full lora compressed --steps 5
    python benchmarks/memory.py --repeats 3                      # each case three times: what is the spread?
    python benchmarks/memory.py --measures bytes                 # the times later, when nothing else runs
    python benchmarks/memory.py --report                         # only write the report again

Every measurement has a fresh process (memory_case.py says what is measured and how). Each finished case is written
to benchmarks/results/memory.json at once, so a run that was stopped goes on where it was; `--fresh` starts over.
Image networks run in the memory layout that --layouts names; with both, each method counts by its faster one. Then
docs/memory.md (tables, and the targets with their figures) and docs/memory.png (the chart) are written.

torch asks for huge pages (THP_MEM_ALLOC_ENABLE), without which the time that the system takes to hand out memory
hides that of the computation: every method takes about half as long again. Plain SGD by default, so that the bytes are
those of the method and not of an optimizer's state. In TraDy's rows 5 % of the input channels of every layer outside
the head train, at least one, drawn at random, and norms keep their statistics; in the others norms behave as
`model.train()` has them. Needs Linux with glibc, and `pip install peft`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
from memory_case import OPTIMIZERS
from memory_chart import draw_chart
from memory_methods import METHODS, SHARE
from memory_networks import LAYOUTS, NETWORKS
from memory_report import best_figures, markdown, target_rows
from rich.console import Console
from rich.table import Table
from tqdm import tqdm


HERE = Path(__file__).parent
RESULTS = HERE / "results" / "memory.json"
DOCS = HERE.parent / "docs"
MEASURES = ("bytes", "time")
BYTES_STEPS = 3
Case = tuple[str, str, str, str]
"""Measure, network, method, layout."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS, help="of image networks")
    parser.add_argument("--steps", type=int, default=9, help="timed steps a case, of which the median is taken")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    parser.add_argument("--repeats", type=int, default=1, help="fresh processes a case")
    parser.add_argument("--fresh", action="store_true", help="measure these networks and methods anew")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args()
    results = load_results(options)
    failures = [] if options.report else measure_all(results, options)
    figures = best_figures(results)
    DOCS.mkdir(exist_ok=True)
    (DOCS / "memory.md").write_text(markdown(figures, results["settings"]), encoding="utf-8")
    draw_chart(figures, DOCS / "memory.png")
    show_targets(figures)
    print(f"Written: {RESULTS}, {DOCS / 'memory.md'}, {DOCS / 'memory.png'}")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def load_results(options: argparse.Namespace) -> dict:
    """The results file, for this run to add to.

    Settings, and for bytes and time: network -> method -> layout -> one dict a repeat.
    """
    settings = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "share": SHARE,
        "optimizer": options.optimizer,
        "steps": options.steps,
    }
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if options.report and results:
        return results
    measured = {measure: results.get(measure, {}) for measure in MEASURES}
    if options.fresh:
        for measure in options.measures:
            for network in options.networks:
                for method in options.methods:
                    measured[measure].get(network, {}).pop(method, None)
    if any(any(networks.values()) for networks in measured.values()) and results["settings"] != settings:
        changed = ", ".join(key for key in settings if results["settings"].get(key) != settings[key])
        raise SystemExit(f"{RESULTS} was measured with other settings ({changed}); --fresh starts over")
    return {"settings": settings} | measured


def measure_all(results: dict, options: argparse.Namespace) -> list[str]:
    """Measure the cases that are missing and write each one down; returns what went wrong."""
    wanted = [
        (measure, network, method, layout)
        for measure in options.measures
        for network in options.networks
        for method in options.methods
        for layout in NETWORKS[network].layouts
        if len(NETWORKS[network].layouts) == 1 or layout in options.layouts
    ]
    # Repeats are the outer loop: a case's runs are then far apart, and the spread is that of the whole session.
    runs = [case for repeat in range(options.repeats) for case in wanted if len(_runs(results, case)) <= repeat]
    failures = []
    progress = tqdm(runs)
    for case in progress:
        progress.set_description(" ".join(case))
        try:
            figures = run_case(case, BYTES_STEPS if case[0] == "bytes" else options.steps, options.optimizer)
        except subprocess.CalledProcessError as error:
            failures.append(f"{' '.join(case)} failed:\n{error.stderr[-2000:]}")
            continue
        _runs(results, case).append(figures)
        RESULTS.parent.mkdir(exist_ok=True)
        temporary = RESULTS.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, RESULTS)
    return failures


def run_case(case: Case, steps: int, optimizer: str) -> dict | None:
    """The figures of one case from a fresh process; None where the method does not apply to the network.

    Raises:
        subprocess.CalledProcessError: If the process fails.
    """
    command = [sys.executable, str(HERE / "memory_case.py"), *case]
    command += ["--steps", str(steps), "--optimizer", optimizer]
    environment = os.environ | {"THP_MEM_ALLOC_ENABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def show_targets(figures: dict) -> None:
    table = Table("network", "measure", "target", "measured", "met")
    for row in target_rows(figures):
        table.add_row(*row)
    Console(soft_wrap=True).print(table)


def _runs(results: dict, case: Case) -> list:
    measure, network, method, layout = case
    return results[measure].setdefault(network, {}).setdefault(method, {}).setdefault(layout, [])


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    sys.exit(main())
