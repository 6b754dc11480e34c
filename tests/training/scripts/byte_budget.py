"""In a process of its own: fine-tunes a real architecture inside a budget in bytes, and prints what each draw took.

Usage: byte_budget.py NETWORK LAYOUT BUDGET DIRECTORY
"""

import json
import sys
from pathlib import Path

import timm
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from hf_trady import TraDyConfig, TraDyModel, TraDyTrainer
from tests.tiny import Rows


def mobilenetv2():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 3, 128, 128, generator=generator), torch.arange(64) % 10
    return timm.create_model("mobilenetv2_100", num_classes=10), Rows({"x": images, "labels": labels})


def minilm():
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    ids = torch.randint(0, config.vocab_size, (64, 128), generator=torch.Generator().manual_seed(0))
    return BertForSequenceClassification(config), Rows({"input_ids": ids, "labels": torch.arange(64) % 2})


def main(network: str, layout: str, budget: str, directory: Path) -> None:
    torch.manual_seed(0)
    base_model, data = {"mobilenetv2": mobilenetv2, "minilm": minilm}[network]()
    if layout == "channels_last":
        base_model.to(memory_format=torch.channels_last)
    trainer = TraDyTrainer(
        TraDyModel(base_model, TraDyConfig(memory_budget=budget)),
        TrainingArguments(
            directory,
            num_train_epochs=3,
            per_device_train_batch_size=32,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=data,
        ranking_steps=1,
    )
    trainer.prepare_model()
    measuring = trainer.state.log_history[-1]["trady/measuring_peak_bytes"]
    trainer.train()
    callback = next(callback for callback in trainer.callback_handler.callbacks if hasattr(callback, "verdict"))
    model = trainer.model
    print(
        json.dumps(
            {
                "measuring": measuring,
                "peaks": list(callback.peaks.values()),
                "budget": model.byte_budget,
                "predicted": model.fitted.predicted_peak,
                "units": model.fitted.units,
                "shrunk": model.fitted.shrunk,
                "verdict": callback.verdict(),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:4], Path(sys.argv[4]))
