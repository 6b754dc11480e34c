"""Fine-tune a causal language model on a text file inside a number of bytes.

The budget is the peak memory of a training step above the model's own weights: activations, gradients, optimizer
state and all that comes and goes. The model is a Hub id or a directory.

    python examples/causal_lm.py --train_file book.txt
    python examples/causal_lm.py --train_file book.txt --model_name_or_path gpt2 --memory_budget 1GiB
    python examples/causal_lm.py --train_file book.txt --gradient_checkpointing
"""

import argparse
import math

from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from hf_trady import TraDyConfig, TraDyModel, TraDyTrainer


def load_blocks(path: str, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """The text of a file, cut into blocks of `length` tokens; labels are the tokens themselves."""
    lines = load_dataset("text", data_files=path, split="train").filter(lambda row: row["text"].strip())
    tokens = [token for row in lines for token in tokenizer(row["text"] + "\n")["input_ids"]]
    blocks = [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]
    return Dataset.from_dict({"input_ids": blocks, "labels": blocks})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", required=True, help="plain text; a tenth of it is held out")
    parser.add_argument("--model_name_or_path", default="HuggingFaceTB/SmolLM2-135M")
    parser.add_argument("--memory_budget", default="512MiB", help="bytes, elements, or a share of the elements")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--block_size", type=int, default=128, help="tokens")
    parser.add_argument("--per_device_train_batch_size", type=int, default=2)
    parser.add_argument("--max_steps", type=int, default=24)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--output_dir", default="runs/causal_lm")
    options = parser.parse_args()
    set_seed(0)

    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
    splits = load_blocks(options.train_file, tokenizer, options.block_size).train_test_split(test_size=0.1, seed=0)
    base_model = AutoModelForCausalLM.from_pretrained(options.model_name_or_path, dtype="float32")
    if options.gradient_checkpointing:
        base_model.gradient_checkpointing_enable({"use_reentrant": False})

    config = TraDyConfig(memory_budget=options.memory_budget, resample_every=max(1, options.max_steps // 4))
    model = TraDyModel(base_model, config)
    trainer = TraDyTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output_dir,
            max_steps=options.max_steps,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.per_device_train_batch_size,
            per_device_eval_batch_size=options.per_device_train_batch_size,
            logging_steps=max(1, options.max_steps // 4),
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=splits["train"],
        eval_dataset=splits["test"].select(range(min(32, len(splits["test"])))),
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()  # ranks the layers, then redraws channels four times; ends with the peak against the budget
    after = trainer.evaluate()["eval_loss"]
    print(model.report())
    print(f"loss on the held-out text: {before:.3f} -> {after:.3f} (perplexity {math.exp(after):.1f})")
    trainer.save_model()  # only what training has changed


if __name__ == "__main__":
    main()
