"""Measures what fine-tuning over processes sends and holds, reckons it for more of them, and writes docs/scale.md.

Usage: python benchmarks/scale.py [--steps N] [--measure | --report]
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from scale_case import BUDGET, RANK
from scale_formulas import llama_costs, llama_methods, llama_root
from scale_report import TOKENS, page
from transformers import LlamaConfig

from hf_trady.selection import RandomStrategy, draw


HERE = Path(__file__).parent
RESULTS = HERE / "results" / "scale.json"
REPORT = HERE.parent / "docs" / "scale.md"
LLAMAS = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    | {"num_key_value_heads": 8},
}


def measure(processes: int, steps: int) -> dict:
    """What `scale_case.py` measures in so many processes."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "result.json"
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
            command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        subprocess.run([*command, HERE / "scale_case.py", result, str(steps)], check=True)
        return json.loads(result.read_text())


def reckon(sizes: dict) -> dict:
    """Methods of a large Llama, elements of its root and of a block, and how long a draw takes here."""
    config = LlamaConfig(vocab_size=32000, **sizes)
    costs = llama_costs(config, TOKENS)
    start = time.perf_counter()
    draw(RandomStrategy(), costs, int(BUDGET * costs.total_units), seed=0, epoch=1)
    seconds = time.perf_counter() - start
    methods = llama_methods(config, costs, BUDGET, RANK)
    root = llama_root(config)
    block = (methods["full"].model - root) // config.num_hidden_layers
    methods = {name: vars(method) for name, method in methods.items()}
    return {"methods": methods, "root": root, "block": block, "draw": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each case")
    parser.add_argument("--measure", action="store_true", help="measure anew, and keep what was reckoned")
    parser.add_argument("--report", action="store_true", help="write the page from the results that are there")
    args = parser.parse_args()
    if not args.report:
        results = json.loads(RESULTS.read_text()) if args.measure else {}
        results["machine"] = f"torch {torch.__version__}, {platform.machine()}, gloo, one thread a process"
        results["measured"] = {str(n): measure(n, args.steps) for n in (1, 2)}
        if not args.measure:
            results["reckoned"] = {name: reckon(sizes) for name, sizes in LLAMAS.items()}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    REPORT.write_text(page(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
