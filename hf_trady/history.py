"""What each draw of a run trained, on disk, so that a report of the run needs no model."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers

from .config import TraDyConfig
from .files import read_optional, write_text
from .model import TraDyModel
from .selection import CostTable
from .version import __version__


HISTORY_NAME = "trady_history.json"


@dataclass(frozen=True)
class DrawRecord:
    """One draw, as of its last step so far.

    Attributes:
        step: Optimizer steps that the run had done by then.
        trained_parameters: Elements that train in it: head, biases and active channels.
        active: Layer name -> number of active channels, where there are any.
        touched: Layer name -> number of channels that this draw or an earlier one trained, where there are any.
    """

    step: int
    trained_parameters: int
    active: Mapping[str, int]
    touched: Mapping[str, int]


@dataclass
class DrawHistory:
    """The draws of one run.

    Attributes:
        config: What the user chose.
        costs: Costs of all layers outside the head.
        pool: Names of the layers that channels are drawn from.
        units: Units (elements) that the budget buys.
        total_parameters: Elements of the base model.
        info: The base model's class, when the run started and was last recorded, and versions.
        draws: Number of a draw -> what it trained.
    """

    config: TraDyConfig
    costs: CostTable
    pool: tuple[str, ...]
    units: int
    total_parameters: int
    info: dict[str, Any] = field(default_factory=dict)
    draws: dict[int, DrawRecord] = field(default_factory=dict)

    @classmethod
    def of(cls, model: TraDyModel) -> "DrawHistory":
        """An empty history of `model`, which must be ready."""
        versions = {"hf_trady": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
        return cls(
            config=model.trady_config,
            costs=model.costs,
            pool=tuple(row.name for row in model.pool),
            units=model.budget,
            total_parameters=model.get_nb_trainable_parameters()[1],
            info={"model": type(model.base_model).__name__, "started": _now(), "versions": versions},
        )

    def add(self, model: TraDyModel, step: int) -> None:
        """Record the current draw of `model` as of optimizer step `step`, in place of what was known of it."""
        active = {name: len(index) for name, index in model.active_channels().items()}
        touched = {name: n for name, mask in model.touched.items() if (n := int(mask.sum()))}
        before = next(reversed(self.draws.values()), None)
        if before is not None and before.touched == touched:
            touched = before.touched  # the same one: of thousands of draws it would take the most memory
        self.draws[model.epoch] = DrawRecord(
            step=step,
            trained_parameters=model.get_nb_trainable_parameters()[0],
            active={name: number for name, number in active.items() if number},
            touched=touched,
        )
        self.info["updated"] = _now()

    def forget_after(self, draw: int) -> None:
        """Drop the draws after number `draw`: a run that is resumed does them anew."""
        self.draws = {number: record for number, record in self.draws.items() if number <= draw}

    def to_dict(self) -> dict:
        """A small JSON-serializable dict: a layer is the number of its row, `touched` only what a draw changed."""
        rows = {row.name: i for i, row in enumerate(self.costs)}
        draws, before = [], {}
        for number, record in sorted(self.draws.items()):
            changed = {name: n for name, n in record.touched.items() if n != before.get(name)}
            draws.append(
                {
                    "draw": number,
                    "step": record.step,
                    "trained_parameters": record.trained_parameters,
                    "active": [[rows[name], n] for name, n in record.active.items()],
                    "touched": [[rows[name], n] for name, n in changed.items()],
                }
            )
            before = record.touched
        return {
            "info": self.info,
            "config": self.config.to_dict(),
            "units": self.units,
            "total_parameters": self.total_parameters,
            "pool": [rows[name] for name in self.pool],
            "costs": self.costs.to_dict(),
            "draws": draws,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DrawHistory":
        """What `to_dict` gave."""
        costs = CostTable.from_dict(values["costs"])
        names = [row.name for row in costs]
        draws, touched = {}, {}
        for draw in values["draws"]:
            if draw["touched"]:
                touched = touched | {names[i]: int(n) for i, n in draw["touched"]}
            draws[int(draw["draw"])] = DrawRecord(
                step=int(draw["step"]),
                trained_parameters=int(draw["trained_parameters"]),
                active={names[i]: int(n) for i, n in draw["active"]},
                touched=touched,
            )
        return cls(
            config=TraDyConfig.from_dict(values["config"]),
            costs=costs,
            pool=tuple(names[i] for i in values["pool"]),
            units=int(values["units"]),
            total_parameters=int(values["total_parameters"]),
            info=dict(values["info"]),
            draws=draws,
        )

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `trady_history.json` into `save_directory`, all of it or nothing."""
        write_text(Path(save_directory) / HISTORY_NAME, json.dumps(self.to_dict(), separators=(",", ":")) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> "DrawHistory | None":
        """Read `trady_history.json` from the directory `path`; None if there is none.

        Raises:
            ValueError: If the file is not such a history.
        """
        return read_optional(Path(path) / HISTORY_NAME, cls.from_dict, "a history of draws")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
