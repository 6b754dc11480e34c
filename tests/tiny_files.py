"""Tiny models and data on disk, shared by the tests."""

import csv
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, PreTrainedTokenizerFast

from .tiny import llama


WORDS = ["good", "fine", "great", "bad", "poor", "awful", "film", "plot", "cast"]
CHARACTERS = " etaoinshrdlucmfwypvbgkjqxz.,_()=:-"


def write_digits(folder: Path, classes: int = 3, samples: int = 16) -> Path:
    """Handwritten digits of the first `classes` as PNG files, one folder a class."""
    images, labels = load_digits(return_X_y=True)
    for digit in range(classes):
        (folder / str(digit)).mkdir(parents=True)
        for i, pixels in enumerate(images[labels == digit][:samples]):
            image = Image.fromarray((15 * pixels.reshape(8, 8)).astype(np.uint8))
            image.resize((64, 64)).save(folder / str(digit) / f"{i}.png")
    return folder


def write_reviews(path: Path) -> Path:
    """A CSV file of good and bad reviews."""
    generator = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(160):
            judgement = WORDS[:3] if i % 2 else WORDS[3:6]
            words = [*generator.choice(judgement, 2), *generator.choice(WORDS[6:], 2)]
            writer.writerow([" ".join(words), "positive" if i % 2 else "negative"])
    return path


def write_book(path: Path, topic: str = "with") -> Path:
    """A text: what Python's `help` says of `topic`."""
    path.write_text(topics[topic])
    return path


def save_bert(folder: Path, **sizes: int) -> Path:
    """A tiny BERT classifier and its tokenizer, for `write_reviews`; `sizes` are fields of its config."""
    folder.mkdir()
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64} | sizes
    BertForSequenceClassification(BertConfig(vocab_size=14, **sizes)).save_pretrained(folder)
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder


def save_llama(folder: Path) -> Path:
    """A tiny Llama and a tokenizer of single characters."""
    llama().save_pretrained(folder)
    words = ["<pad>", "<eos>", "<unk>", *CHARACTERS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder
