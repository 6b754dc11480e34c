"""What the code of the documentation finds: files of the reader's, models on the Hub, and the README's own names."""

from pathlib import Path

import timm
import torch
from datasets import load_dataset
from safetensors.torch import save as safetensors_of
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, TrainingArguments

from ..hub.server import Hub, Repository
from ..tiny_files import save_bert, save_llama, write_book, write_digits, write_reviews


def write_files() -> None:
    """Photographs, reviews and a book in the current directory."""
    write_digits(Path("photos"), classes=2, samples=8)
    write_reviews(Path("reviews.csv"))
    write_book(Path("book.txt"))


def fill_hub(hub: Hub, folder: Path) -> None:
    """Put a model on the Hub under each name that the documentation uses: tiny ones, and a real MobileNetV2."""
    bert = _content(save_bert(folder / "bert", num_hidden_layers=1))
    wide = _content(save_bert(folder / "wide", hidden_size=8, num_hidden_layers=1, intermediate_size=8192))
    mobilenet = {"model.safetensors": safetensors_of(timm.create_model("mobilenetv2_100").state_dict())}
    models = {
        "sentence-transformers/all-MiniLM-L6-v2": bert,
        "google-bert/bert-base-uncased": bert,
        "HuggingFaceTB/SmolLM2-135M": _content(save_llama(folder / "llama")),
        "me/wide": wide,
        "timm/mobilenetv2_100.ra_in1k": mobilenet,
    }
    for name, files in models.items():
        hub.repositories[name] = Repository()
        hub.repositories[name].commit("main", files, "upload")


def readme_names() -> dict:
    """What each block of the README takes for granted, made anew: it wraps the same model more than once.

    A sample is large, so that few fit into the README's budget, and the search for how many is short.
    """
    name = "me/wide"
    tokenizer = AutoTokenizer.from_pretrained(name)
    rows = load_dataset("csv", data_files="reviews.csv", split="train[:4]").class_encode_column("label")
    dataset = rows.map(lambda row: tokenizer(row["text"], padding="max_length", max_length=512))
    dataset = dataset.remove_columns("text")
    dataloader = DataLoader(dataset, batch_size=2, collate_fn=DataCollatorWithPadding(tokenizer))
    return {
        "torch": torch,
        "base_model": AutoModelForSequenceClassification.from_pretrained(name, num_labels=2),
        "training_args": TrainingArguments("runs/readme", per_device_train_batch_size=2, report_to="none"),
        "dataset": dataset,
        "dataloader": dataloader,
        "batch": dict(next(iter(dataloader))),
        "epochs": 2,
    }


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
