"""How well estimates that form no weight gradient rank the channels of a network.

    python benchmarks/channel_bounds.py data/

The gradient of input channel c of a layer is the sum over positions (tokens, pixels) of x_c times dL/dy. Two estimates
of its norm take a number or two a channel in ordinary steps, where the gradient itself takes x, and one takes a few
numbers a position and a second forward:

- bound: the norm of x_c times the norm of dL/dy, which the norm of the gradient can't exceed;
- moments: x_c and dL/dy as if independent over positions. The square of the gradient's norm is then that of the mean
  of x_c times the sum of dL/dy, and the variance of x_c times the sum of squares of what dL/dy has around its mean;
- projected: what `TraDyModel.measure(how="projected")` gives, with a budget of 5 % of the units.

Measured on the tasks that strategy_tasks.py prepares in the directory: Spearman's rank correlation with the true norm,
within layers (mean) and over all channels, there per unit of memory, which is what strategies compare; and, for what
can be expected at most, that of the true norms of other batches. Writes benchmarks/results/channel_bounds.json.
"""

import argparse
import itertools
import json
import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from strategies import NETWORKS
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import set_seed

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.cli.data import DataArguments, load_data
from hf_trady.cli.models import ModelArguments, load_datasets, make_model
from hf_trady.selection import CostTable, cost_table, measure_gradients
from hf_trady.targets import find_heads, find_layers


RESULTS = Path(__file__).parent / "results" / "channel_bounds.json"
BATCH_SIZE = 32
DATA_FIELDS = {field.name for field in fields(DataArguments)}
ESTIMATES = ("bound", "moments", "projected", "other batches")


class Estimates:
    """Sums over steps, for each layer of `layers`, of the estimates of its channels' gradient norms."""

    def __init__(self, layers: dict[str, nn.Module]):
        self.sums = {kind: dict.fromkeys(layers, 0.0) for kind in ("bound", "moments")}
        self.handles = [layer.register_forward_hook(self._hook(name)) for name, layer in layers.items()]

    def _hook(self, name: str):
        def forward(layer: nn.Module, args, output: Tensor) -> None:
            is_conv = isinstance(layer, nn.Conv2d)
            taps = math.prod(layer.kernel_size) if is_conv else 1
            var, mean = torch.var_mean(_by_position(args[0].detach(), is_conv), dim=0, correction=0)

            def backward(grad: Tensor) -> None:
                grad = _by_position(grad, is_conv)
                total, squares = grad.sum(0) ** 2, (grad**2).sum(0)
                if not is_conv or layer.groups == 1:  # every output sees every channel
                    total, squares = total.sum(), squares.sum()
                around = squares - total / len(grad)
                bound = taps * len(grad) * (var + mean**2) * squares
                moments = taps * (mean**2 * total + var * around)
                for kind, square in (("bound", bound), ("moments", moments)):
                    self.sums[kind][name] = self.sums[kind][name] + square.clamp_min(0).sqrt().double()

            output.register_hook(backward)

        return forward

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def _by_position(tensor: Tensor, is_conv: bool) -> Tensor:
    """`[positions, channels]`."""
    return (tensor.movedim(1, -1) if is_conv else tensor).flatten(0, -2).float()


def measure(model_args: ModelArguments, data_args: DataArguments, num_steps: int, seed: int) -> dict:
    """Kind of estimate -> rank correlations with the true norms."""
    set_seed(seed)
    data = load_data(data_args)
    model = make_model(model_args, None, data).train()
    train, _, collator, _ = load_datasets(model_args, None, model, data)
    loader = DataLoader(train, BATCH_SIZE, shuffle=True, collate_fn=collator, drop_last=True)
    layers = find_layers(model, find_heads(model, None), None)
    batch = next(iter(loader))
    costs = cost_table(model, {name: value for name, value in batch.items() if name != "labels"}).subset(layers)
    batches = list(itertools.islice(loader, 2 * num_steps))
    estimates = Estimates({row.name: model.get_submodule(row.name) for row in costs})
    true = measure_gradients(model, batches[:num_steps], num_steps=num_steps, costs=costs, disable_tqdm=True).norms
    estimates.remove()
    other = measure_gradients(model, batches[num_steps:], num_steps=num_steps, costs=costs, disable_tqdm=True).norms
    found = {kind: _agreement(costs, norms, true) for kind, norms in estimates.sums.items()}
    found["other batches"] = _agreement(costs, other, true)
    config = TraDyConfig(memory_budget=0.05, strategy="dynamic_full_random")
    wrapped = TraDyModel(model, config, {name: value for name, value in batch.items() if name != "labels"})
    projected, true = (
        wrapped.measure(batches[:num_steps], how=how, num_steps=num_steps, disable_tqdm=True).norms
        for how in ("projected", "at_once")
    )
    return found | {"projected": _agreement(wrapped.costs, projected, true)}


def _agreement(costs: CostTable, norms: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, float]:
    rows = [row for row in costs if row.channels > 2]
    within = [spearmanr(norms[row.name], true[row.name]).statistic for row in rows]
    one, other = (torch.cat([values[row.name] / row.space for row in costs]) for values in (norms, true))
    return {"within_layers": float(np.nanmean(within)), "all_channels": float(spearmanr(one, other).statistic)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--num_steps", type=int, default=10)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    found = {}
    for name, network in NETWORKS.items():
        for task in network.tasks:
            settings = {key: value for key, value in network.data.items() if key in DATA_FIELDS}
            settings["max_train_samples"] = 2 * BATCH_SIZE * options.num_steps
            data_args = DataArguments(str(options.root / task), **settings)
            runs = [measure(network.model(options.root), data_args, options.num_steps, seed) for seed in options.seeds]
            found[f"{name} {task}"] = runs
            for kind in ESTIMATES:
                means = {key: np.mean([run[kind][key] for run in runs]) for key in runs[0][kind]}
                print(
                    f"{name:22} {task:14} {kind:14} " + "  ".join(f"{key} {value:.3f}" for key, value in means.items())
                )
            RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
