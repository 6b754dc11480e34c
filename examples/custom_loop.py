"""A network of your own in a loop of your own: a reader of digits learns new ones on the device.

A small convolutional network is trained on the digits 0 to 4, all of it, as it might be before it is shipped. Then it
gets a new head and learns 5 to 9, now inside a budget: a share of the memory that training all of it would take. The
digits come with scikit-learn; the whole takes seconds.

    python examples/custom_loop.py
    python examples/custom_loop.py --memory_budget 0.02
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hf_trady import TraDyConfig, TraDyModel


class Reader(nn.Module):
    """Digits `[N, 1, 8, 8]` to logits `[N, 5]`."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 128), nn.ReLU()),
        )
        self.head = nn.Linear(128, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def load_data(digits: range) -> tuple[DataLoader, DataLoader]:
    """Batches to train on and to test on: images `[n, 1, 8, 8]` and classes `[n]`, counted from 0."""
    pixels, labels = load_digits(return_X_y=True)
    chosen = (labels >= digits.start) & (labels < digits.stop)
    images = torch.tensor(pixels[chosen], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    classes = torch.tensor(labels[chosen] - digits.start)
    parts = train_test_split(images, classes, test_size=0.3, stratify=classes, random_state=0)
    train, test = TensorDataset(parts[0], parts[2]), TensorDataset(parts[1], parts[3])
    return DataLoader(train, batch_size=32, shuffle=True, drop_last=True), DataLoader(test, batch_size=128)


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader) -> None:
    model.train()
    for images, classes in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images), classes).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, batches: DataLoader) -> float:
    model.eval()
    right = [(model(images).argmax(1) == classes).float() for images, classes in batches]
    return torch.cat(right).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory_budget", default="0.05", help="a share of the elements, or a number of them")
    parser.add_argument("--num_train_epochs", type=int, default=10)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    options = parser.parse_args()
    torch.manual_seed(0)

    network = Reader()
    train_batches, test_batches = load_data(range(5))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(5):
        train_epoch(network, optimizer, train_batches)
    print(f"digits 0 to 4, all of the network trained: accuracy {accuracy(network, test_batches):.2%}")

    network.head = nn.Linear(128, 5)
    train_batches, test_batches = load_data(range(5, 10))
    print(f"digits 5 to 9, new head: accuracy {accuracy(network, test_batches):.2%}")

    config = TraDyConfig(memory_budget=options.memory_budget, modules_to_save=["head"])
    images, _ = next(iter(train_batches))
    model = TraDyModel(network, config, example_inputs=images)  # changes the network in place
    model.measure(train_batches)  # ranks the layers; updates nothing
    model.print_trainable_parameters()
    # All that trains, made once: its shape stays the same, whichever channels it holds.
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=options.learning_rate)
    for epoch in range(options.num_train_epochs):
        print(model.resample(epoch, optimizer))  # other channels; returns how sparse they are
        train_epoch(model, optimizer, train_batches)
    print(f"digits 5 to 9, fine-tuned: accuracy {accuracy(model, test_batches):.2%}")

    plain = model.merge_and_unload()
    print(f"and as an ordinary {type(plain).__name__} again: accuracy {accuracy(plain, test_batches):.2%}")


if __name__ == "__main__":
    main()
