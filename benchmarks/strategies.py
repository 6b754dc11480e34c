"""The evidence for the strategies: all of them on three pretrained networks and two real tasks each.

    python benchmarks/strategy_tasks.py data/        # once: the weights and the data
    THP_MEM_ALLOC_ENABLE=1 python benchmarks/strategies.py data/   # a day on 2 cores; goes on where it was stopped
    python benchmarks/strategies.py data/ --networks minilm

Runs `trady compare` once a network, with the learning rate chosen on validation data for each method, task and budget.
Each finished run is a line of benchmarks/results/strategies/<network>/results.jsonl.
"""

import argparse
import os
from dataclasses import dataclass, field
from pathlib import Path

from hf_trady.cli.main import main as trady
from hf_trady.cli.models import ModelArguments


RESULTS = Path(__file__).resolve().parent / "results" / "strategies"
METHODS = (
    "full", "head_only", "bias_only", "lora", "trady", "informed", "static_rgn", "dynamic_full_random",
    "static_full_random", "static_topk_random", "dynamic_rgn", "medyate", "paca", "velocity",
)  # fmt: skip
BUDGETS = (0.01, 0.05, 0.2)


@dataclass(frozen=True)
class NetworkTasks:
    """A network with its two tasks.

    Attributes:
        name: The timm architecture, or the directory of a transformers model below the data.
        tasks: Directories below the data.
        data: Arguments of the data besides its name.
        learning_rates: To choose from.
        arguments: Further arguments of `trady compare`.
    """

    name: str
    tasks: tuple[str, ...]
    data: dict
    learning_rates: tuple[float, ...]
    arguments: dict = field(default_factory=dict)

    def model(self, root: Path) -> ModelArguments:
        weights = root / f"{self.name}.pth"
        if weights.is_file():
            return ModelArguments(self.name, str(weights))
        return ModelArguments(str(root / self.name))


IMAGES = {"image_size": 96, "max_train_samples": 1500, "max_eval_samples": 1000}
TEXTS = {"max_seq_length": 48, "max_train_samples": 1500, "max_eval_samples": 1000}
RATES = (3e-4, 1e-3, 3e-3)
NETWORKS = {
    "mobilenetv2_100": NetworkTasks("mobilenetv2_100", ("cifar10", "fashion_mnist"), IMAGES, RATES),
    "tf_efficientnet_lite0": NetworkTasks("tf_efficientnet_lite0", ("cifar10", "fashion_mnist"), IMAGES, RATES),
    "minilm": NetworkTasks("minilm", ("movie_reviews", "brown_genres"), TEXTS, (1e-4, 5e-4, 2e-3)),
}
TRAINING = {
    "num_train_epochs": 4,
    "per_device_train_batch_size": 32,
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
    parser.add_argument("--budgets", nargs="+", default=[str(budget) for budget in BUDGETS])
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    options = parser.parse_args()
    os.chdir(options.root)  # paths are settings of the results: they must not depend on where the data is
    for name in options.networks:
        network = NETWORKS[name]
        model = network.model(Path())
        arguments = ["--model_name_or_path", model.model_name_or_path, "--dataset_name", *network.tasks]
        if model.checkpoint_path is not None:
            arguments += ["--checkpoint_path", model.checkpoint_path]
        for key, value in (network.data | TRAINING | network.arguments).items():
            arguments += [f"--{key}", str(value)]
        arguments += ["--methods", *options.methods, "--memory_budgets", *options.budgets, "--seeds", *options.seeds]
        arguments += ["--learning_rates", *map(str, network.learning_rates), "--output_dir", str(RESULTS / name)]
        code = trady(["compare", *arguments])
        if code:
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
