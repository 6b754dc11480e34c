"""The formulas by which docs/scale.md reckons, against what was measured over two real processes."""

import json

import pytest
from transformers import LlamaConfig

from benchmarks.scale_formulas import (
    ddp_memory,
    fsdp_gathered,
    fsdp_memory,
    gradient_bytes,
    llama_costs,
    llama_methods,
    llama_root,
)

from .launching import ROOT, launch_two


FLOAT = 4


def check(measured: dict) -> None:
    network = measured["network"]
    config = LlamaConfig(**network["sizes"])
    methods = llama_methods(config, llama_costs(config, network["length"]), network["budget"], network["rank"])
    for name, method in methods.items():
        ddp, fsdp = measured["ddp"][name], measured["fsdp"][name]
        for case in (ddp, fsdp):
            assert {key: case[key] for key in vars(method)} == vars(method)
        assert ddp["given"] == {"allreduce_": gradient_bytes(method, FLOAT)}
        assert ddp["held"] == ddp_memory(method, FLOAT)
        # FSDP pads what its rows don't divide by two.
        gathered = sum(size for kind, size in fsdp["given"].items() if "gather" in kind)
        assert fsdp["given"]["_reduce_scatter_base_"] == pytest.approx(gradient_bytes(method, FLOAT), rel=1e-3)
        assert gathered == pytest.approx(fsdp_gathered(method, FLOAT, 2, llama_root(config)), rel=1e-3)
        assert fsdp["held"] == pytest.approx(fsdp_memory(method, FLOAT, 2), rel=1e-3)
    ddp, fsdp = measured["ddp"]["trady"], measured["fsdp"]["trady"]
    assert ddp["redraw_given"] == {}
    assert sum(fsdp["redraw_given"].values()) <= FLOAT * ddp["flat"] * 1.5 + FLOAT


def test_the_formulas_give_what_is_in_the_results():
    check(json.loads((ROOT / "benchmarks" / "results" / "scale.json").read_text())["measured"]["2"])


@pytest.mark.slow
def test_the_formulas_give_what_two_processes_measure(tmp_path):
    launch_two(ROOT / "benchmarks" / "scale_case.py", tmp_path / "result.json", 1)
    check(json.loads((tmp_path / "result.json").read_text()))
