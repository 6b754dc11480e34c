"""What a memory budget buys, before anything is trained."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from html import escape
from io import StringIO
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from .config import TraDyConfig
from .fake import fake_copy, fake_mode
from .files import write_text
from .markup import html_table
from .memory import KINDS, MIB, FittedBudget, StepMemory, StepSetup, fit_bytes, parse_budget, readable
from .model import TraDyModel
from .selection.costing import find_samples
from .trial import DrawTrials


LAYERS_SHOWN, OPS_SHOWN, POINTS_SHOWN = 8, 8, 400


@dataclass(frozen=True)
class TrainingPlan:
    """What a training step takes in memory, and what the budget buys.

    All bytes are above the weights and buffers of the plain model, the batch included.

    Attributes:
        memory_budget: The budget as the config has it.
        byte_budget: The budget in bytes; None if it is in units or a share.
        units: The budget in units; what a budget in bytes buys.
        total_units: Units of the whole network.
        batch_size: Samples of a batch.
        pool: Layers that channels are drawn from.
        left_out: Layers that a budget in bytes can't pay the gradient path down to, in the order of the forward.
        step: Memory of the heaviest step of the draws looked at.
        no_lean_form: Operation -> bytes that it keeps for backward though it trains nothing.
        notes: What the plan takes for granted, a sentence each.
    """

    memory_budget: int | float | str
    byte_budget: int | None
    units: int
    total_units: int
    batch_size: int
    pool: tuple[str, ...]
    left_out: tuple[str, ...]
    step: StepMemory
    no_lean_form: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def predicted_peak_bytes(self) -> int:
        """Predicted peak of a training step."""
        return self.step.peak

    @property
    def fits(self) -> bool:
        """Whether the predicted peak is inside a budget in bytes."""
        return self.byte_budget is None or self.step.peak <= self.byte_budget

    def to_dict(self) -> dict:
        """A JSON-serializable dict; the timeline thinned out, its highest points kept."""
        values = asdict(self)
        values["predicted_peak_bytes"] = self.step.peak
        timeline = {kind: values["step"]["timeline"][kind] for kind in KINDS}
        kept = thinned(timeline, POINTS_SHOWN)
        values["step"]["timeline"] = {kind: [curve[i] for i in kept] for kind, curve in timeline.items()}
        values["step"]["timeline"]["operation"] = kept
        del values["step"]["names"], values["step"]["order"]
        return values

    def save(self, path: str | os.PathLike) -> None:
        """Write the plan to the JSON file `path`."""
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def _parts(self) -> list[tuple[str, list[tuple[str, int]]]]:
        """The plan as titles and rows `(name, bytes)`: by kind, by layer, by operation."""
        kinds = [*self.step.at_peak.items(), ("predicted peak", self.step.peak)]
        if self.byte_budget is not None:
            kinds.append(("budget", self.byte_budget))
        kinds.append(("the model's own weights (not included)", self.step.weights))
        heaviest = sorted(self.step.layers.items(), key=lambda item: -item[1])
        layers = _top([(name or "(loss)", size) for name, size in heaviest], LAYERS_SHOWN)
        ops = _top(list(self.no_lean_form.items()), OPS_SHOWN)
        return [
            ("at the peak", kinds),
            ("kept for backward, by module", layers),
            ("kept by operations without a lean form", ops),
        ]

    def tables(self) -> list[Table]:
        """The plan as rich tables: by kind, by layer, by operation."""
        tables = []
        for title, rows in self._parts():
            table = Table(title, box=box.SIMPLE)
            table.add_column("MiB", justify="right")
            for name, size in rows:
                table.add_row(name, _mib(size), end_section=name == KINDS[-1])
            tables.append(table)
        return tables

    def _lines(self) -> tuple[str, list[str]]:
        """What stands above the tables, and the sentences below them."""
        notes = [*self.notes]
        if self.left_out:
            ends = self.left_out if len(self.left_out) < 5 else (*self.left_out[:2], "...", self.left_out[-1])
            notes.append(f"Left out, as the budget can't pay the path to them: {len(self.left_out)} layers, first in "
                         f"the forward ({', '.join(ends)}).")  # fmt: skip
        head = (
            f"memory_budget={self.memory_budget}, batch of {self.batch_size}: {self.units:,} of {self.total_units:,} "
            f"units, drawn from {len(self.pool)} layers"
        )
        return head, notes

    def _repr_html_(self) -> str:
        head, notes = self._lines()
        tables = [
            html_table([(name, _mib(size)) for name, size in rows], (title, "MiB"))
            for title, rows in self._parts()
            if rows
        ]
        return "".join([f"<p>{escape(head)}</p>", *tables, *(f"<p>{escape(note)}</p>" for note in notes)])

    def __str__(self) -> str:
        console = Console(file=StringIO(), width=100)
        for table in self.tables():
            if table.row_count:
                console.print(table)
        text = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
        head, notes = self._lines()
        return "\n".join([head, text.rstrip(), *notes])


def plan(
    model: nn.Module,
    config: TraDyConfig | None = None,
    example_inputs: Any = None,
    optimizer_cls: type[torch.optim.Optimizer] = torch.optim.AdamW,
    optimizer_kwargs: dict | None = None,
    setup: StepSetup | None = None,
) -> TrainingPlan:
    """Predict the memory of training `model` by `config`, and fit a budget in bytes. Nothing is run or changed.

    Args:
        model: A plain model, which may be on the meta device, or a TraDyModel.
        config: What the user chooses; by default that of a TraDyModel.
        example_inputs: A batch (tensor, tuple or dict of inputs) of the size to train with.
        optimizer_cls: Optimizer class.
        optimizer_kwargs: Its arguments besides the parameters.
        setup: Loss, precision and accumulation, too; then the two arguments before are ignored.

    Raises:
        ValueError: If the budget is too small for a single channel; states the smallest that works. Or if the model's
            control flow depends on values.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 2))
        >>> config = TraDyConfig(memory_budget="64KiB", modules_to_save=["2"])
        >>> plan(net, config, torch.zeros(4, 3, 8, 8)).fits
        True
    """
    if example_inputs is None:
        raise ValueError("plan needs example_inputs: a batch of the size to train with")
    setup = setup or StepSetup(optimizer_cls, optimizer_kwargs)
    trials, notes = _trials(model, config, example_inputs, setup)
    trady: TraDyModel = trials.model
    fitted = trady.fitted
    if trady.byte_budget is not None and fitted is None:
        fitted = fit_bytes(trials, trady.byte_budget, setup.reserve)
    if fitted is None:
        fitted = FittedBudget(trady.budget)
    step = trials.steps(fitted)[0]
    ours = __name__.partition(".")[0] + "."
    return TrainingPlan(
        memory_budget=trady.trady_config.memory_budget,
        byte_budget=trady.byte_budget,
        units=fitted.units,
        total_units=trady.costs.total_units,
        batch_size=find_samples(example_inputs),
        pool=tuple(row.name for row in trady.pool),
        left_out=fitted.left_out,
        step=step,
        no_lean_form={name: size for name, size in step.ops.items() if not name.startswith(ours)},
        notes=notes,
    )


def max_batch_size(
    model: nn.Module,
    config: TraDyConfig | None = None,
    example_inputs: Any = None,
    budget: str | None = None,
    setup: StepSetup | None = None,
    most: int = 65_536,
) -> int:
    """The largest batch whose training step is predicted to stay inside a budget in bytes.

    Args:
        model: A plain model, which may be on the meta device, or a TraDyModel.
        config: What the user chooses. With a `memory_budget` in units or as a share, that selection is kept; with one
            in bytes, the selection may be as small as it needs to be.
        example_inputs: A batch of any size. What has its first dimension grows with the batch.
        budget: Bytes such as `"256MiB"`; by default the `memory_budget` of the config, if that is in bytes.
        setup: Optimizer, loss, precision.
        most: Look no further.

    Raises:
        ValueError: If there is no budget in bytes, or not even one sample fits.
    """
    if example_inputs is None:
        raise ValueError("max_batch_size needs example_inputs: a batch of any size")
    trials, _ = _trials(model, config, example_inputs, setup)
    trady: TraDyModel = trials.model
    given = parse_budget(trady.trady_config.memory_budget if budget is None else budget)
    if given.kind != "bytes":
        what = f"memory_budget={given.value}" if budget is None else f"budget={budget!r}"
        raise ValueError(f"{what} is no size; to find the largest batch, give a budget in bytes such as '256MiB'")
    limit = int(given.value * (1 - trials.setup.reserve))
    fitted = trady.fitted or (FittedBudget(trady.budget) if trady.byte_budget is None else None)

    def peak(samples: int) -> int:
        trials.set_batch_size(samples)
        return trials.steps(fitted)[0].peak if fitted else trials.path_peak(len(trials.layers) - 1)

    one = peak(1)
    if one > limit:
        raise ValueError(f"not even one sample fits into {readable(limit)}: a step of one takes {readable(one)}")
    return largest(peak, limit, most)


def largest(size: Callable[[int], int], limit: int, most: int) -> int:
    """The largest number from 1 to `most` with `size(number) <= limit`, where `size(1)` is and size never falls."""
    low, high = 1, 2
    while high <= most and size(high) <= limit:
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    return low


def thinned(timeline: dict[str, list[int]], points: int) -> list[int]:
    """Positions, at most `points` of them, at which the sum of all curves is highest within its stretch."""
    totals = np.sum(list(timeline.values()), axis=0)
    stretches = np.array_split(np.arange(len(totals)), min(points, len(totals)))
    return [int(stretch[totals[stretch].argmax()]) for stretch in stretches]


def _trials(
    model: nn.Module, config: TraDyConfig | None, example_inputs: Any, setup: StepSetup | None
) -> tuple[DrawTrials, tuple[str, ...]]:
    """Trials of `model` wrapped as `config` says, all of it fake, and what had to be taken for granted."""
    mode = fake_mode()
    if isinstance(model, TraDyModel):
        if config is not None and config != model.trady_config:
            raise ValueError("a TraDyModel has its own config; leave config out, or pass the plain model")
        trady, plain = fake_copy(model, mode), model.base_model
    else:
        if config is None:
            raise ValueError("plan needs a config for a plain model")
        trady, plain = TraDyModel(fake_copy(model, mode), config), model
    sampler = trady._sampler
    sampler.costs = sampler.costs or trady._cost_table(plain, example_inputs)
    if not isinstance(model, TraDyModel):
        trady._conversion.join(example_inputs, mode)
    notes = tuple(sampler.draw_blindly())
    if trady.most_kept_bytes:
        draws, most = setup.num_draws if setup is not None else 1, _mib(trady.most_kept_bytes)
        notes += (
            "Channels that have trained stay beside the quantized weights in full precision: planned for those of "
            f"{draws:,} draws; {most} MiB once all have trained.",
        )
    sampler.check()
    return DrawTrials(trady, example_inputs, setup, mode=mode), notes


def _top(rows: list[tuple[str, int]], shown: int) -> list[tuple[str, int]]:
    """The first `shown` of `rows`, and the sum of the others."""
    rest = [(f"{len(rows) - shown} more", sum(size for _, size in rows[shown:]))] if len(rows) > shown else []
    return rows[:shown] + rest


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f}"
