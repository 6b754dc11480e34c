"""The evidence for the strategies: all of them on three pretrained networks and two real tasks each.

    python benchmarks/strategy_tasks.py data/        # once: the weights and the data
    python benchmarks/strategies.py data/ --search --networks mobilenetv2_100 minilm   # the fields of `informed`
    python benchmarks/strategies.py data/           # some hours on 2 cores; goes on where it was stopped
    python benchmarks/strategies.py data/ --networks minilm --methods full head_only trady --memory_budgets 0.01

Runs `trady compare` once a network, with the learning rate of each method and budget chosen on validation data of the
first task. Each finished run is a line of benchmarks/results/strategies/<network>/results.jsonl. The search sees
training data alone, and other seeds.
"""

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

from hf_trady.cli.main import main as trady
from hf_trady.cli.models import ModelArguments


RESULTS = Path(__file__).resolve().parent / "results" / "strategies"
METHODS = (
    "full", "head_only", "lora", "trady", "informed", "static_rgn", "dynamic_full_random", "static_topk_random",
    "dynamic_rgn", "paca", "medyate", "static_full_random", "velocity", "bias_only",
)  # fmt: skip
BUDGETS = (0.01, 0.05, 0.2)
SEARCHED = (
    "trady", "static_rgn", "informed:tau=0.5", "informed:tau=1", "informed:tau=2", "informed:tau=1,importance=rgn",
)  # fmt: skip


@dataclass(frozen=True)
class NetworkTasks:
    """A network with its two tasks.

    Attributes:
        name: The timm architecture, or the directory of a transformers model below the data.
        tasks: Directories below the data.
        data: Arguments of the data besides its name.
        learning_rates: To choose from; the search takes the one in the middle.
    """

    name: str
    tasks: tuple[str, ...]
    data: dict
    learning_rates: tuple[float, ...]

    def model(self, root: Path) -> ModelArguments:
        weights = root / f"{self.name}.pth"
        if weights.is_file():
            return ModelArguments(self.name, str(weights))
        return ModelArguments(str(root / self.name))


SAMPLES = {"max_eval_samples": 500}
IMAGES = SAMPLES | {
    "image_size": 48,
    "max_train_samples": 320,
    "per_device_train_batch_size": 16,
    "num_train_epochs": 4,
}
TEXTS = SAMPLES | {
    "max_seq_length": 32,
    "max_train_samples": 256,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3,
}
RATES = (2e-4, 6e-4, 2e-3, 6e-3, 2e-2)
NETWORKS = {
    "mobilenetv2_100": NetworkTasks("mobilenetv2_100", ("cifar10", "fashion_mnist"), IMAGES, RATES),
    "tf_efficientnet_lite0": NetworkTasks("tf_efficientnet_lite0", ("cifar10", "fashion_mnist"), IMAGES, RATES),
    "minilm": NetworkTasks("minilm", ("movie_reviews", "brown_genres"), TEXTS, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
}
TRAINING = {
    "per_device_eval_batch_size": 64,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "ranking_steps": 2,
    "dataloader_pin_memory": False,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--memory_budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--search", action="store_true", help="search the fields of informed")
    options = parser.parse_args()
    os.chdir(options.root)  # paths are settings of the results: they must not depend on where the data is
    for name in options.networks:
        network = NETWORKS[name]
        if options.search:
            grid = {"methods": SEARCHED, "memory_budgets": BUDGETS[:1], "seeds": (10, 11)}
            grid |= {"learning_rates": network.learning_rates[2:3]}
            data = network.data | {"train_val_split": 0.4}
            network = replace(network, tasks=tuple(f"search/{task}" for task in network.tasks), data=data)
            code = compare(network, grid, RESULTS / "search" / name)
        else:
            grid = {"methods": options.methods, "memory_budgets": options.memory_budgets, "seeds": options.seeds}
            grid |= {"tuning_tasks": network.tasks[:1]}
            code = compare(network, grid | {"learning_rates": network.learning_rates}, RESULTS / name)
        if code:
            return code
    return 0


def compare(network: NetworkTasks, grid: dict, output: Path) -> int:
    """Run `trady compare`; returns its exit code."""
    model = network.model(Path())
    settings = network.data | TRAINING | {"model_name_or_path": model.model_name_or_path, "output_dir": output}
    if model.checkpoint_path is not None:
        settings["checkpoint_path"] = model.checkpoint_path
    arguments = ["compare", "--dataset_name", *network.tasks]
    for key, value in settings.items():
        arguments += [f"--{key}", str(value)]
    for key, values in grid.items():
        arguments += [f"--{key}", *map(str, values)]
    return trady(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
