"""How well a bound that needs no weight gradient ranks the channels of a network.

    python benchmarks/channel_bounds.py data/

For a layer with input x and output y, the norm of the gradient of input channel c is at most the norm of x_c times the
norm of dL/dy (times the kernel's size for a convolution). The bound takes a number a channel in ordinary steps, where
the gradient itself takes x. Measured on the tasks that strategy_tasks.py prepares in the directory: Spearman's rank
correlation of the bound, and of the norm of x_c alone, with the true norm, within layers (mean) and over all channels,
there per unit of memory, which is what strategies compare. Writes benchmarks/results/channel_bounds.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from strategies import NETWORKS
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import set_seed

from hf_trady.cli.data import DataArguments, load_data
from hf_trady.cli.models import ModelArguments, load_datasets, make_model
from hf_trady.layers import sparse_type
from hf_trady.selection import cost_table, measure_gradients
from hf_trady.targets import find_heads, find_layers


RESULTS = Path(__file__).parent / "results" / "channel_bounds.json"


class Bounds:
    """Sums over steps, for each layer of `layers`, of the norms of its input's channels and of the bound."""

    def __init__(self, layers: dict[str, nn.Module]):
        self.inputs = dict.fromkeys(layers, 0.0)
        self.bounds = dict.fromkeys(layers, 0.0)
        self.handles = [layer.register_forward_hook(self._hook(name)) for name, layer in layers.items()]

    def _hook(self, name: str):
        def hook(layer: nn.Module, args, output: Tensor) -> None:
            x = args[0].detach()
            channels = x.dim() - 1 if not isinstance(layer, nn.Conv2d) else 1
            norms = torch.linalg.vector_norm(x.float(), dim=[d for d in range(x.dim()) if d != channels]).double()
            norms = norms * (np.prod(layer.kernel_size) ** 0.5 if isinstance(layer, nn.Conv2d) else 1.0)
            self.inputs[name] = self.inputs[name] + norms

            def backward(grad: Tensor) -> None:
                self.bounds[name] = self.bounds[name] + norms * float(torch.linalg.vector_norm(grad.float()))

            output.register_hook(backward)

        return hook

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def measure(model_args: ModelArguments, data_args: DataArguments, num_steps: int, seed: int) -> dict:
    set_seed(seed)
    data = load_data(data_args)
    model = make_model(model_args, None, data).train()
    train, _, collator, _ = load_datasets(model_args, None, model, data)
    loader = DataLoader(train, 32, shuffle=True, collate_fn=collator)
    layers = find_layers(model, find_heads(model, None), None)
    batch = next(iter(loader))
    costs = cost_table(model, {name: value for name, value in batch.items() if name != "labels"}).subset(layers)
    bounds = Bounds({row.name: model.get_submodule(row.name) for row in costs})
    record = measure_gradients(model, loader, num_steps=num_steps, costs=costs)
    bounds.remove()
    found = {}
    for kind, values in (("bound", bounds.bounds), ("input", bounds.inputs)):
        rows = [row for row in costs if sparse_type(model.get_submodule(row.name)).num_channels and row.channels > 2]
        within = [spearmanr(values[row.name], record.norms[row.name]).statistic for row in rows]
        true = torch.cat([record.norms[row.name] / row.space for row in costs])
        found[kind] = {
            "within_layers": float(np.nanmean(within)),
            "all_channels": float(spearmanr(torch.cat([values[r.name] / r.space for r in costs]), true).statistic),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--num_steps", type=int, default=10)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    found = {}
    for name, network in NETWORKS.items():
        for task in network.tasks:
            data_args = DataArguments(str(options.root / task), **network.data)
            runs = [measure(network.model(options.root), data_args, options.num_steps, seed) for seed in options.seeds]
            found[f"{name} {task}"] = runs
            for kind in ("bound", "input"):
                means = {key: np.mean([run[kind][key] for run in runs]) for key in runs[0][kind]}
                print(
                    f"{name:22} {task:14} {kind:6} " + "  ".join(f"{key} {value:.3f}" for key, value in means.items())
                )
            RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
