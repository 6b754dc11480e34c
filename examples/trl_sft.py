"""Supervised fine-tuning of a language model with TRL's SFTTrainer inside a number of bytes.

TraDyCallback brings the redraws to any Trainer; all else is TRL as it comes. The model is a Hub id or a directory;
the data a Hub dataset or a JSON file as SFTTrainer takes them (`messages`, `prompt` and `completion`, or `text`), by
default the help texts of Python itself, as questions and answers.

    pip install trl
    python examples/trl_sft.py
    python examples/trl_sft.py --dataset_name chats.jsonl --model_name_or_path SmolLM2/ --memory_budget 1GiB
"""

import argparse
from pydoc_data.topics import topics

from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from hf_trady import TraDyCallback, TraDyConfig, TraDyModel


def load_data(name: str | None) -> Dataset:
    """The training split of a Hub dataset or a JSON file; without a name, what Python's `help` knows."""
    if name is None:
        rows = [{"prompt": f"Python: {topic}?\n", "completion": text} for topic, text in topics.items()]
        return Dataset.from_list(rows)
    is_file = name.endswith((".json", ".jsonl"))
    return load_dataset("json", data_files=name, split="train") if is_file else load_dataset(name, split="train")


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
        train_dataset=load_data(options.dataset_name),
        processing_class=tokenizer,
    )
    # What TraDyTrainer does by itself: learn what channels cost, what the budget buys, and which layers matter.
    batch = next(iter(trainer.get_train_dataloader()))
    model.calibrate(batch)
    model.measure(trainer.get_train_dataloader(), num_steps=2)
    trainer.add_callback(TraDyCallback(trainer))
    trainer.train()  # redraws channels four times; ends with the peak against the budget
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(model.report())
    print(f"training loss: {losses[0]:.3f} -> {losses[-1]:.3f}")
    model.save_pretrained(options.output_dir)  # only what training has changed


if __name__ == "__main__":
    main()
