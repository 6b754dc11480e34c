"""The model cards that ship: three networks, each fine-tuned on a real task inside a budget.

    python benchmarks/strategy_tasks.py data/   # once: the weights and the data
    python benchmarks/model_cards.py data/      # minutes on 2 cores

Each card in model_cards/ is the README.md that `trady train` writes for such a run, with the name of its data.
"""

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import ModelCard
from strategies import NETWORKS

from hf_trady.cli.main import main as trady


CARDS = Path(__file__).resolve().parent.parent / "model_cards"
RUNS = {
    "mobilenetv2_100": {"dataset_name": "cifar10", "image_size": 64, "learning_rate": 6e-3},
    "tf_efficientnet_lite0": {"dataset_name": "fashion_mnist", "image_size": 64, "learning_rate": 6e-3},
    "minilm": {
        "dataset_name": "movie_reviews",
        "max_seq_length": 48,
        "learning_rate": 1e-2,
        "base_model_name_or_path": "sentence-transformers/all-MiniLM-L6-v2",
    },
}
TRAINING = {
    "memory_budget": 0.01,
    "layer_ranking": "auto",
    "num_train_epochs": 3,
    "max_train_samples": 640,
    "max_eval_samples": 500,
    "per_device_train_batch_size": 32,
    "optim": "adamw_torch",
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "dataloader_pin_memory": False,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--networks", nargs="+", choices=RUNS, default=list(RUNS))
    options = parser.parse_args()
    os.chdir(options.root)
    for name in options.networks:
        model = NETWORKS[name].model(Path())
        settings = RUNS[name] | TRAINING | {"model_name_or_path": model.model_name_or_path}
        if model.checkpoint_path is not None:
            settings["checkpoint_path"] = model.checkpoint_path
        with TemporaryDirectory() as folder:
            output = Path(folder) / name
            arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
            code = trady(["train", *arguments, "--output_dir", str(output)])
            if code:
                return code
            (CARDS / name).mkdir(parents=True, exist_ok=True)
            card = ModelCard.load(output / "README.md")  # in which a folder has no name that the Hub would know
            card.data.datasets = [RUNS[name]["dataset_name"]]
            for result in card.data.eval_results:
                result.dataset_name = result.dataset_type = RUNS[name]["dataset_name"]
            card.save(CARDS / name / "README.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
