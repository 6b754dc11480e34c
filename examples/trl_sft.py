"""Supervised fine-tuning of a language model with TRL's SFTTrainer inside a number of bytes.

TraDyCallback brings the redraws to any Trainer; all else is TRL as it comes. The model is a Hub id or a directory;
the data a Hub dataset or a JSON file with the columns `prompt` and `completion`, or `text`; by default the help texts
of Python itself, as questions and answers.

    pip install trl
    python examples/trl_sft.py
    python examples/trl_sft.py --dataset_name answers.jsonl --model_name_or_path SmolLM2/ --memory_budget 1GiB
"""

import argparse
from collections.abc import Iterator
from pydoc_data.topics import topics

from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig, SFTTrainer

from hf_trady import TraDyCallback, TraDyConfig, TraDyModel


def load_data(name: str | None) -> Dataset:
    """The training split of a Hub dataset or a JSON file; without a name, what Python's `help` knows."""
    if name is None:
        rows = [{"prompt": f"Python: {topic}?\n", "completion": text} for topic, text in topics.items()]
        return Dataset.from_list(rows)
    is_file = name.endswith((".json", ".jsonl"))
    return load_dataset("json", data_files=name, split="train") if is_file else load_dataset(name, split="train")


def batches(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[dict]:
    """Batches of two rows, `[2, length]` tokens, by which to rank the layers."""
    for start in range(0, min(len(data), 8) - 1, 2):
        rows = data.select(range(start, start + 2))
        texts = ["".join(row[name] for name in ("prompt", "completion", "text") if name in row) for row in rows]
        tokens = tokenizer(texts, truncation=True, padding="max_length", max_length=length, return_tensors="pt")
        labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)
        yield {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"], "labels": labels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default="HuggingFaceTB/SmolLM2-135M")
    parser.add_argument("--dataset_name", help="a Hub dataset or a JSON file; default: Python's help texts")
    parser.add_argument("--memory_budget", default="768MiB", help="bytes, elements, or a share of the elements")
    parser.add_argument("--max_length", type=int, default=128, help="tokens")
    parser.add_argument("--max_steps", type=int, default=24)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--output_dir", default="runs/trl_sft")
    options = parser.parse_args()
    set_seed(0)

    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
    base_model = AutoModelForCausalLM.from_pretrained(options.model_name_or_path, dtype="float32")
    # A run of so few steps is a single epoch: draw by steps.
    config = TraDyConfig(memory_budget=options.memory_budget, resample_every=max(1, options.max_steps // 4))
    model = TraDyModel(base_model, config)
    # What TraDyTrainer does by itself: learn what channels cost, which layers matter, and what the budget buys. Before
    # the trainer is made, as TRL exchanges the model's forward.
    data = load_data(options.dataset_name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    ranked_on = list(batches(data, tokenizer, options.max_length))
    model.calibrate(ranked_on[0])
    model.measure(ranked_on, num_steps=len(ranked_on))
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            options.output_dir,
            max_length=options.max_length,
            max_steps=options.max_steps,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=2,
            logging_steps=max(1, options.max_steps // 4),
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            bf16=False,
        ),
        train_dataset=data,
        processing_class=tokenizer,
    )
    trainer.add_callback(TraDyCallback(trainer))
    trainer.train()  # redraws channels four times; ends with the peak against the budget
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(model.report())
    print(f"training loss: {losses[0]:.3f} -> {losses[-1]:.3f}")
    model.save_pretrained(options.output_dir)  # only what training has changed


if __name__ == "__main__":
    main()
