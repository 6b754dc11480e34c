"""What users ask of a Trainer, of a TraDyTrainer and of a plain one with a TraDyCallback."""

import datasets
import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_trady import TraDyCallback, TraDyConfig, TraDyModel

from ..tiny import Rows, bert, copy_of_state, different_keys, lm_batch, t5, token_batch, word_tokenizer, wrap
from .runs import make_trainer, token_dataset


both = pytest.mark.parametrize("plain", [False, True], ids=["ours", "plain"])


def model() -> TraDyModel:
    return TraDyModel(bert(), TraDyConfig(0.3, "dynamic_full_random"), token_batch(1))


class Accuracy(evaluate.Metric):
    """A metric that needs no download."""

    def _info(self):
        features = datasets.Features({name: datasets.Value("int64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": accuracy_score(references, predictions)}


@both
def test_it_stops_early_and_returns_to_the_best_weights(plain, tmp_path):
    scores, states = iter([1.0, 3.0, 2.0, 2.5, 9.0]), []

    def metrics(prediction):
        states.append(copy_of_state(trainer.model))
        return {"score": next(scores)}

    trainer = make_trainer(
        tmp_path,
        model=model(),
        plain=plain,
        train_dataset=token_dataset(),
        eval_dataset=token_dataset(6),
        compute_metrics=metrics,
        callbacks=[EarlyStoppingCallback(2)],
        num_train_epochs=5,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    trainer.train()
    assert trainer.state.epoch == 4 and trainer.state.best_global_step == 6
    assert different_keys(states[1], states[3]) and different_keys(copy_of_state(trainer.model), states[1]) == []
    best = TraDyModel.from_pretrained(tmp_path / "checkpoint-6", bert())
    assert different_keys(copy_of_state(best), states[1]) == []


@both
def test_a_metric_of_evaluate_is_computed(plain, tmp_path):
    metric = Accuracy(cache_dir=str(tmp_path))

    def compute(prediction):
        return metric.compute(predictions=prediction.predictions.argmax(-1), references=prediction.label_ids)

    kwargs = {"train_dataset": token_dataset(), "eval_dataset": token_dataset(6), "eval_strategy": "epoch"}
    trainer = make_trainer(tmp_path, model=model(), plain=plain, compute_metrics=compute, **kwargs)
    trainer.train()
    logged = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    data = token_batch(6)
    with torch.no_grad():
        right = trainer.model.eval()(**data).logits.argmax(-1) == data["labels"]
    assert len(logged) == 2 and logged[-1] == pytest.approx(right.float().mean().item())


@both
def test_texts_are_grouped_by_length(plain, tmp_path):
    rows = [
        {"input_ids": token_batch(1, 2 + i % 7, i)["input_ids"][0].tolist(), "labels": i % 3, "number": i}
        for i in range(24)
    ]
    trainer = make_trainer(
        tmp_path,
        model=model(),
        plain=plain,
        train_dataset=datasets.Dataset.from_list(rows),
        train_sampling_strategy="group_by_length",
    )
    trainer.data_collator = DataCollatorWithPadding(word_tokenizer())
    start = copy_of_state(trainer.model)
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, LengthGroupedSampler) and max(sampler.lengths) == 8
    trainer.train()
    assert trainer.state.global_step == 12 and different_keys(start, copy_of_state(trainer.model))


def test_a_sequence_to_sequence_trainer_trains_generates_and_saves(tmp_path):
    ids = lm_batch(12)["input_ids"]
    data = Rows({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.flip(1)})
    net = wrap(t5(), {"input_ids": ids[:1], "labels": ids[:1]})
    predicted = []
    args = Seq2SeqTrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        predict_with_generate=True,
        generation_max_length=9,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Seq2SeqTrainer(
        model=net,
        args=args,
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=lambda prediction: predicted.append(prediction.predictions) or {"score": 1.0},
    )
    trainer.add_callback(TraDyCallback(trainer))
    start = copy_of_state(net)
    trainer.train()
    moved = different_keys(start, copy_of_state(net))
    assert moved and {key.removesuffix(".weight") for key in moved} <= net._layers.keys()
    assert len([entry for entry in trainer.state.log_history if "trady/units" in entry]) == 2

    plain = t5()
    plain.load_state_dict(net.state_dict())
    tokens = plain.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_length=9)
    latest = trainer.predict(data).predictions
    np.testing.assert_array_equal(latest[:, : tokens.shape[1]], tokens.numpy())
    assert (latest[:, tokens.shape[1] :] <= 0).all() and len(predicted) == 3
