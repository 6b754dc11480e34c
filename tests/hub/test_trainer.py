from inspect import signature

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import Trainer, TrainingArguments

from hf_trady import TraDyModel, TraDyTrainer
from hf_trady.config import CONFIG_NAME
from hf_trady.saving import WEIGHTS_NAME

from ..tiny import Rows, bert, copy_of_state, different_keys, inputs_of, ranking_of, token_batch, wrap
from .server import TOKEN


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def trainer(output, **kwargs) -> TraDyTrainer:
    ids = torch.randint(0, 16, (8, 5), generator=torch.Generator().manual_seed(0))
    data = Rows({"input_ids": ids, "labels": torch.arange(8) % 2})
    model = wrap(bert(), inputs_of(token_batch()), strategy="trady")
    model.set_layer_ranking(ranking_of(model.costs))
    args = TrainingArguments(
        output, num_train_epochs=2, per_device_train_batch_size=4, eval_strategy="epoch", save_strategy="epoch",
        report_to="none", disable_tqdm=True, dataloader_pin_memory=False, push_to_hub=True, hub_model_id="me/run",
        hub_token=TOKEN, **kwargs,
    )  # fmt: skip
    return TraDyTrainer(model, args, train_dataset=data, eval_dataset=data, compute_metrics=accuracy)


def test_a_run_is_pushed_with_a_card_that_says_what_it_gave(hub, tmp_path):
    run = trainer(tmp_path, hub_strategy="end")
    run.train()
    run.push_to_hub(
        finetuned_from="me/tiny-bert", tasks=["text-classification"], dataset_tags="me/tiny-words", license="mit",
        dataset="Tiny Words", dataset_args=["split: test"], language="en", tags="tiny", model_name="tiny",
    )  # fmt: skip
    files = hub.files("me/run")
    assert {WEIGHTS_NAME, CONFIG_NAME, "README.md"} <= files.keys()
    assert not any(path.startswith("checkpoint-") or path == "model.safetensors" for path in files)
    loaded = TraDyModel.from_pretrained("me/run", bert(), token=TOKEN)
    assert not different_keys(copy_of_state(run.model), copy_of_state(loaded))
    card = ModelCard(files["README.md"].decode())
    data = card.data.to_dict()
    assert data["library_name"] == "hf_trady" and data["datasets"] == ["me/tiny-words"] and data["license"] == "mit"
    assert data["base_model"] == "me/tiny-bert" and data["tags"] == ["tiny", "trady"] and data["language"] == "en"
    (result,) = data["model-index"][0]["results"]
    assert result["task"]["type"] == data["pipeline_tag"] == "text-classification"
    assert result["dataset"] == {"name": "Tiny Words", "type": "me/tiny-words", "args": "split: test"}
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    logged = next(entry for entry in reversed(run.state.log_history) if "eval_accuracy" in entry)
    assert values["accuracy"] == pytest.approx(logged["eval_accuracy"], abs=1e-6)
    assert 'TraDyModel.from_pretrained("me/run"' in card.text and "measured peak" in card.text
    assert "[`me/tiny-bert`](https://huggingface.co/me/tiny-bert), fine-tuned on Tiny Words by TraDy" in card.text
    for line in ("train_samples: 8", "eval_samples: 8", "train_batch_size: 4", "learning_rate: 5e-05", "seed: 42",
                 "num_epochs: 2", "precision: float32", "timm "):  # fmt: skip
        assert f"\n- {line}" in card.text, line


def test_a_card_takes_whatever_the_trainer_of_transformers_takes():
    ours = signature(TraDyTrainer.create_model_card).parameters
    assert ours.keys() >= signature(Trainer.create_model_card).parameters.keys()


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_every_checkpoint_is_pushed_as_the_strategy_says(hub, tmp_path, strategy):
    run = trainer(tmp_path, hub_strategy=strategy, hub_always_push=True)
    run.train()
    for job in run.push_in_progress.jobs:
        job.result()
    files = hub.files("me/run")
    assert {WEIGHTS_NAME, CONFIG_NAME} <= files.keys()
    folders = {path.split("/")[0] for path in files if "/" in path}
    expected = {
        "every_save": set(),
        "checkpoint": {"last-checkpoint"},
        "all_checkpoints": {"checkpoint-2", "checkpoint-4"},
    }
    assert folders == expected[strategy]
    if strategy == "checkpoint":
        loaded = TraDyModel.from_pretrained("me/run", bert(), token=TOKEN, subfolder="last-checkpoint")
        assert not different_keys(copy_of_state(run.model), copy_of_state(loaded))
