"""Fine-tune a BERT-class model to classify texts inside a number of bytes.

The budget is the peak memory of a training step above the model's own weights: activations, gradients, optimizer
state and all that comes and goes. The model is a Hub id or a directory; the data a Hub dataset or a CSV file with the
columns `text` and `label`.

    python examples/movie_reviews.py
    python examples/movie_reviews.py --dataset_name reviews.csv --model_name_or_path MiniLM/ --memory_budget 64MiB
"""

import argparse

from datasets import DatasetDict, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainingArguments,
    set_seed,
)

from hf_trady import TraDyConfig, TraDyModel, TraDyTrainer


def load_texts(name: str) -> DatasetDict:
    """Splits `train` and `test`, with the columns `text` and `label`, of a Hub dataset or a CSV file."""
    splits = load_dataset("csv", data_files=name) if name.endswith(".csv") else load_dataset(name)
    splits = splits.class_encode_column("label")  # classes may be named, as by "pos" and "neg"
    return splits if "test" in splits else splits["train"].train_test_split(test_size=0.15, seed=0)


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--dataset_name", default="cornell-movie-review-data/rotten_tomatoes")
    parser.add_argument("--memory_budget", default="64MiB", help="bytes, elements, or a share of the elements")
    parser.add_argument("--max_seq_length", type=int, default=48)
    parser.add_argument("--max_train_samples", type=int, default=2000)
    parser.add_argument("--max_eval_samples", type=int, default=500)
    parser.add_argument("--num_train_epochs", type=float, default=2)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--output_dir", default="runs/movie_reviews")
    options = parser.parse_args()
    set_seed(0)

    splits = load_texts(options.dataset_name)
    for split, most in (("train", options.max_train_samples), ("test", options.max_eval_samples)):
        splits[split] = splits[split].shuffle(seed=0).select(range(min(most, len(splits[split]))))
    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
    splits = splits.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=options.max_seq_length), batched=True
    )
    labels = len(set(splits["train"]["label"]))
    base_model = AutoModelForSequenceClassification.from_pretrained(options.model_name_or_path, num_labels=labels)

    model = TraDyModel(base_model, TraDyConfig(memory_budget=options.memory_budget))
    trainer = TraDyTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output_dir,
            num_train_epochs=options.num_train_epochs,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=splits["train"],
        eval_dataset=splits["test"],
        # All batches alike: the peak of one is the peak of each.
        data_collator=DataCollatorWithPadding(tokenizer, padding="max_length", max_length=options.max_seq_length),
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    trainer.train()  # ranks the layers, then redraws channels every epoch; ends with the peak against the budget
    print(model.report())
    print(f"accuracy: {trainer.evaluate()['eval_accuracy']:.2%}")
    trainer.save_model()  # only what training has changed


if __name__ == "__main__":
    main()
