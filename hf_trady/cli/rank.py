"""Rank the layers of a model, and show how far the ranking depends on task and seed.

Takes the model and data of `trady train`; --dataset_name may be several data sets. Writes layer_ranking.json, for
`TraDyConfig(layer_ranking=...)` and any task, and the paper's three propositions as numbers and pictures: that the
ranking of layers is much the same for every task and seed, that the ranking of channels within a layer is not, and
that stochastic gradients are heavy-tailed (a tail index below 2) throughout training.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from transformers import set_seed
from transformers.utils import logging

from ..comparison.agreement import channel_agreement, common_ranking, layer_agreement
from ..comparison.charts import plot_agreement, plot_scores, plot_tails
from ..files import write_text
from ..selection import GradientRecord, LayerRanking, cost_table, measure_gradients
from ..targets import find_heads, find_layers
from .arguments import VerbParser
from .checks import check_lists
from .data import DataArguments, ManyDataArguments, load_data
from .models import ModelArguments, load_datasets, make_model
from .stage import Stage


MAIN = (
    "model_name_or_path", "checkpoint_path", "dataset_name", "seeds", "num_steps", "per_device_train_batch_size",
    "ranking_coverage", "max_train_samples", "image_size", "max_seq_length", "output_dir",
)  # fmt: skip
EXAMPLE = "trady rank --model_name_or_path mobilenetv2_100 --dataset_name photos/ scans/ --seeds 0 1"


@dataclass
class RankArguments:
    """How it is measured."""

    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Of the head and the order of the data."})
    num_steps: int = field(default=20, metadata={"help": "Steps of each run."})
    learning_rate: float = field(
        default=0.0, metadata={"help": "Of plain SGD between the steps; 0 measures the given weights."}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Samples of a step."})
    ranking_coverage: float = field(default=0.97, metadata={"help": "Share of the RGN that the top layers hold."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "The head, which is not ranked, by name suffix. None: what the model names."}
    )
    output_dir: str = field(default="runs/rank", metadata={"help": "Where it is written."})


def make_parser() -> VerbParser:
    """The parser of `trady rank`."""
    return VerbParser((ModelArguments, ManyDataArguments, RankArguments), "rank", __doc__, MAIN, EXAMPLE)


def run(model_args: ModelArguments, data_args: ManyDataArguments, args: RankArguments) -> tuple[int, dict]:
    """Measure each task with each seed, write the common ranking and the pictures.

    Returns:
        The exit code and what agreement.json holds, with the scores of the common ranking.
    """
    check_lists(args, "seeds")
    logging.set_verbosity_error()
    records = {}
    with Stage() as stage:
        for one in data_args.each():
            for seed in args.seeds:
                print(f"{Path(one.dataset_name).stem}, seed {seed}")
                records[f"{Path(one.dataset_name).stem} {seed}"] = _measure(model_args, one, args, seed, stage)
    output = Path(args.output_dir)
    ranking = common_ranking(records)
    ranking.save_pretrained(output)
    layers, channels = layer_agreement(records), channel_agreement(records)
    tails = {name: record.tails for name, record in records.items()}
    values = {"runs": list(records), "layers": layers.tolist(), "channels": channels.tolist(), "tail_index": tails}
    write_text(output / "agreement.json", json.dumps(values, indent=2) + "\n")
    plot_scores(ranking, args.ranking_coverage, output / "layer_ranking.png")
    plot_agreement({"layers": layers, "channels within layers": channels}, list(records), output / "agreement.png")
    plot_tails(tails, output / "tail_index.png")
    Console(soft_wrap=True).print(_table(ranking, args.ranking_coverage))
    if len(records) > 1:
        print(f"Rank correlation between runs, at least: layers {layers.min():.3f}, channels {channels.min():.3f}.")
    lowest, highest = (pick(pick(curve) for curve in tails.values()) for pick in (min, max))
    print(f"Tail index of the gradients: {lowest:.2f} to {highest:.2f} (2: Gaussian).")
    print(f"Written to {output}: layer_ranking.json, agreement.json and three pictures")
    return 0, values | {"scores": ranking.scores}


def _measure(
    model_args: ModelArguments, data_args: DataArguments, args: RankArguments, seed: int, stage: Stage
) -> GradientRecord:
    set_seed(seed)
    data = load_data(data_args, model_args.token)
    model = make_model(model_args, None, data).train()
    train, _, collator, _ = load_datasets(model_args, None, model, data)
    loader = DataLoader(
        train,
        args.per_device_train_batch_size,
        shuffle=True,
        collate_fn=collator,
        drop_last=len(train) > args.per_device_train_batch_size,
        generator=torch.Generator().manual_seed(seed),
    )
    inputs = {name: value for name, value in next(iter(loader)).items() if name != "labels"}
    layers = find_layers(model, find_heads(model, args.modules_to_save), None)
    costs = cost_table(model, inputs).subset(layers)
    stage.begun = True
    return measure_gradients(
        model, loader, num_steps=args.num_steps, learning_rate=args.learning_rate, costs=costs, tails=True
    )


def _table(ranking: LayerRanking, coverage: float) -> Table:
    top = ranking.top(coverage)
    title = f"{len(top)} of {len(ranking.shapes)} layers hold {coverage:.0%} of the RGN"
    table = Table("", "layer", title=title)
    for kind in ("RGN", "sum of RGN", "LaRa"):
        table.add_column(kind, justify="right")
    total = 0.0
    for number, name in enumerate(ranking.layers(), 1):
        share, lara = ranking.scores["rgn"][name], ranking.scores["lara"][name]
        total += share
        table.add_row(str(number), name, f"{share:.2%}", f"{total:.2%}", f"{lara:.2%}", end_section=number == len(top))
    return table
