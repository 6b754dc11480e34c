"""Compare strategies, budgets and other ways to fine-tune on one model, over tasks and seeds.

Takes what `trady train` takes; --dataset_name may be several data sets, one a task. Every run that has finished is a
line of results.jsonl: stopped at any moment and started again, the command goes on where it was. With several learning
rates, that of each method and budget is chosen on training data that is held out, from the middle one on in the
direction that does better; what counts then trains on all of it, and is evaluated on the test data. Memory is measured
in short runs after these.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from ..comparison import Grid, Results, Run, Task, run_one, summary
from ..comparison.charts import plot_accuracy_and_memory, plot_differences
from ..comparison.grid import do_all
from ..comparison.methods import METHODS, parse_method
from ..comparison.report import markdown
from ..config import TraDyConfig
from ..memory import MIB
from .arguments import VerbParser
from .checks import check_lists, check_training_arguments
from .config import TraDyArguments
from .data import Data, ManyDataArguments, load_data
from .models import ModelArguments, load_datasets, make_model
from .stage import Stage


MAIN = (
    "model_name_or_path", "dataset_name", "methods", "memory_budgets", "seeds", "learning_rates", "tuning_tasks",
    "num_train_epochs", "per_device_train_batch_size", "max_train_samples", "output_dir",
)  # fmt: skip
EXAMPLE = (
    "trady compare --model_name_or_path mobilenetv2_100 --dataset_name photos/ --methods trady informed lora full "
    "--memory_budgets 0.01 0.05 --learning_rates 1e-3 3e-3"
)


@dataclass
class CompareArguments:
    """What is compared."""

    methods: list[str] = field(
        default_factory=lambda: ["trady", "informed", "static_rgn", "full", "head_only"],
        metadata={"help": f"Any of {', '.join(METHODS)}; a strategy with fields is informed:tau=2,importance=rgn."},
    )
    memory_budgets: list[str] = field(
        default_factory=lambda: ["0.01", "0.05"], metadata={"help": "Of the methods that know a budget."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Of the runs on the test data."})
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-3], metadata={"help": "To choose from, a few times apart; one is taken as it is."}
    )
    tuning_tasks: list[str] | None = field(
        default=None,
        metadata={"help": "The tasks that a method's learning rate is chosen on; default: all."},
    )
    validation_share: float = field(
        default=0.2,
        metadata={
            "help": "Share of the training data on which the learning rate is chosen, unless max_train_samples leaves "
            "as many samples over."
        },
    )
    ranking_steps: int = field(default=10, metadata={"help": "Batches on which gradients are measured."})


@dataclass
class CompareTrainingArguments(TrainingArguments):
    """TrainingArguments of runs that write nothing."""

    output_dir: str = field(default="runs/compare", metadata={"help": "Where results and report are written."})
    eval_strategy: str = field(default="no", metadata={"help": "Each run is evaluated once, at its end."})
    logging_strategy: str = field(default="no", metadata={"help": "When to log."})
    save_strategy: str = field(default="no", metadata={"help": "When to write a checkpoint."})
    report_to: list[str] = field(default_factory=lambda: ["none"], metadata={"help": "Where runs are reported to."})
    disable_tqdm: bool | None = field(default=True, metadata={"help": "The comparison has a progress bar of its own."})


def make_parser() -> VerbParser:
    """The parser of `trady compare`."""
    classes = (ModelArguments, ManyDataArguments, TraDyArguments, CompareArguments, CompareTrainingArguments)
    return VerbParser(classes, "compare", __doc__, MAIN, EXAMPLE)


def run(
    model_args: ModelArguments,
    data_args: ManyDataArguments,
    config: TraDyArguments,
    args: CompareArguments,
    training_args: CompareTrainingArguments,
) -> tuple[int, dict]:
    """Do the runs that are missing, then write and print the report; returns the exit code and the rows of it."""
    check_training_arguments(training_args)
    check_lists(args, "methods", "seeds", "learning_rates")
    for method in args.methods:
        parse_method(method)
    budgets = [TraDyConfig(memory_budget=_number(text)).memory_budget for text in args.memory_budgets]
    data_of = {Path(one.dataset_name).stem: one for one in data_args.each()}
    for task in args.tuning_tasks or ():
        if task not in data_of:
            raise ValueError(f"tuning_tasks={task!r} is not allowed; it must be any of {', '.join(data_of)}")
    grid = Grid(list(data_of), args.methods, budgets, args.seeds, args.learning_rates, tuning_tasks=args.tuning_tasks)
    output = Path(training_args.output_dir)
    results = Results(output / "results.jsonl", _settings(model_args, data_args, config, args, training_args))
    logging.set_verbosity_error()
    training_args.remove_unused_columns, training_args.label_names = False, ["labels"]
    tasks: dict[str, Task] = {}

    def do(one: Run) -> dict:
        if one.task not in tasks:
            data = load_data(data_of[one.task], model_args.token)
            tasks[one.task] = _task(model_args, config.revision, data, args.validation_share)
        stage.begun = True
        return run_one(one, tasks[one.task], training_args, config, args.ranking_steps)

    with Stage() as stage:
        while runs := grid.tuning_runs(results):
            do_all(runs, results, do, tqdm)
        do_all(grid.test_runs(results), results, do, tqdm)
        do_all(grid.memory_runs(results), results, do, tqdm)
    return 0, {"output_dir": str(output), "rows": _report(results, output)}


def _number(text: str) -> float | int | str:
    """The budget `text` as it would stand in a config."""
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def _task(args: ModelArguments, revision: str | None, data: Data, share: float) -> Task:
    model = make_model(args, revision, data)
    train, test, collator, processing_class = load_datasets(args, revision, model, data)
    fit, validation, *_ = load_datasets(args, revision, model, _for_tuning(data, share))
    pad_token_id = getattr(model.config, "pad_token_id", None)

    def make() -> PreTrainedModel:
        made = make_model(args, revision, data)
        if not data.is_image:
            made.config.pad_token_id = pad_token_id
        return made

    others = {"data_collator": collator, "processing_class": processing_class}
    return Task(make, train, test, fit, validation, others)


def _for_tuning(data: Data, share: float) -> Data:
    """All of the training data, to be evaluated on samples that `max_train_samples` has left; or, where these are
    fewer than `share` of it, on a part of it."""
    if len(data.rest) >= share * len(data.train):
        return replace(data, eval=data.rest)
    parts = data.train.train_test_split(test_size=share, seed=0, stratify_by_column=data.label_column)
    return replace(data, train=parts["train"], eval=parts["test"])


def _settings(*arguments) -> dict:
    """What must be the same for all runs of a file of results: every argument but those that span the grid."""
    spans = {"output_dir", "methods", "memory_budgets", "seeds", "learning_rates", "tuning_tasks", "dataset_name",
             "strategy", "memory_budget", "logging_dir", "token"}  # fmt: skip
    settings = {}
    for part in arguments:
        values = part.to_dict() if hasattr(part, "to_dict") else vars(part)
        settings |= {key: value for key, value in values.items() if key not in spans}
    return json.loads(json.dumps(settings, default=str))


def _report(results: Results, output: Path) -> list[dict]:
    rows = summary(results)
    (output / "report.md").write_text(markdown(results), encoding="utf-8")
    plot_accuracy_and_memory(rows, output / "accuracy_and_memory.png")
    plot_differences(results, output / "differences.png")
    table = Table("method", "budget", "accuracy", "peak", "time", "runs")
    for row in rows:
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / MIB:,.0f} MiB"
        accuracy = f"{row['accuracy']:.2%} ± {row['std']:.2%}"
        time = f"{row['seconds']:,.0f} s"
        table.add_row(row["method"], str(row["budget"] or ""), accuracy, peak, time, str(row["runs"]))
    Console(soft_wrap=True).print(table)
    print(f"Written to {output}: results.jsonl, report.md, accuracy_and_memory.png, differences.png")
    return rows
