"""What a run has left in its output directory, read without the model."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..config import CONFIG_NAME, TraDyConfig
from ..files import read_json
from ..history import HISTORY_NAME, DrawHistory
from ..memory import FittedBudget, parse_budget
from ..saving import WEIGHTS_NAME


RESULTS_NAME = "all_results.json"
Points = list[tuple[float, float]]
Read = TypeVar("Read")

# What an evaluation logs besides metrics.
_SPEED = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "num_tokens")


@dataclass(frozen=True)
class RunRecord:
    """A run as it stands on disk.

    Attributes:
        path: Its output directory.
        state: The Trainer's state, as far as it was saved: `log_history`, `global_step`, `epoch`; empty if it wasn't.
        config: None if there is none.
        fitted: What a budget in bytes bought; None if that is not known.
        history: What each draw trained; None if that was not recorded.
        results: What `trady train` found at the end of the run; empty if it did not get there.
        weights: The file of what training has changed; None if there is none.
        unreadable: Files that were passed over because they are damaged.
    """

    path: Path
    state: dict
    config: TraDyConfig | None
    fitted: FittedBudget | None
    history: DrawHistory | None
    results: dict[str, float]
    weights: Path | None
    unreadable: tuple[str, ...] = ()

    @property
    def logs(self) -> list[dict[str, float]]:
        """What was logged, oldest first."""
        return self.state.get("log_history", [])

    @property
    def byte_budget(self) -> int | None:
        """The memory budget in bytes; None if it is in units or a share."""
        budget = parse_budget(self.config.memory_budget) if self.config is not None else None
        return budget.value if budget is not None and budget.kind == "bytes" else None

    def draw_logs(self) -> dict[int, dict[str, float]]:
        """Number of a draw -> what was logged of it under `trady/`, ascending. One that a resume redid counts once."""
        draws: dict[int, dict[str, float]] = {}
        for entry in self.logs:
            if "trady/units" in entry:
                known = draws.setdefault(self._draw(entry, ended=False), {})
            elif "trady/peak_bytes" in entry:
                known = draws.setdefault(self._draw(entry, ended=True), {})
                entry = entry | {"trady/peak_bytes": max(entry["trady/peak_bytes"], known.get("trady/peak_bytes", 0))}
            else:
                continue
            known.update({key: value for key, value in entry.items() if key.startswith("trady/")})
        return dict(sorted(draws.items()))

    def _draw(self, entry: dict[str, float], ended: bool) -> int:
        """The draw that began or `ended` when `entry` was logged."""
        every = self.config.resample_every if self.config is not None else "epoch"
        if every != "epoch":
            return (entry["step"] - 1) // every if ended else entry["step"] // every
        return math.ceil(entry["epoch"]) - 1 if ended else int(entry.get("epoch", 0))

    def peaks(self) -> dict[int, int]:
        """Number of a draw -> highest peak measured in bytes."""
        logs = self.draw_logs().items()
        return {draw: int(values["trady/peak_bytes"]) for draw, values in logs if "trady/peak_bytes" in values}

    def losses(self) -> dict[str, Points]:
        """Name of a loss -> `(epoch, value)`, by time."""
        return self._curves(lambda name: name == "loss" or (is_evaluated(name) and name.endswith("loss")))

    def metrics(self) -> dict[str, Points]:
        """Name of a metric of the evaluation -> `(epoch, value)`, by time."""
        return self._curves(lambda name: is_evaluated(name) and not name.endswith("loss"))

    def _curves(self, wanted: Callable[[str], bool]) -> dict[str, Points]:
        curves: dict[str, dict[float, float]] = {}
        for entry in self.logs:
            for name, value in entry.items():
                if wanted(name) and isinstance(value, int | float) and math.isfinite(value):
                    curves.setdefault(name, {})[entry.get("epoch", 0)] = value
        return {name: sorted(points.items()) for name, points in curves.items()}


def is_evaluated(name: str) -> bool:
    """Whether what is logged as `name` is a loss or metric of an evaluation."""
    return name.startswith("eval_") and not name.endswith(_SPEED)


def read_run(path: str | os.PathLike) -> RunRecord:
    """Read what the output directory `path` of a run holds; of a run that was killed, what its checkpoints hold.

    Raises:
        FileNotFoundError: If `path` is no directory, or not one that a run was written to.
        ValueError: If nothing but damaged files tells of the run.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no directory '{path}'; give the output directory of a run")
    places = [path, *_checkpoints(path)]
    damaged: list[str] = []
    states = [(place, _tried(_read_json, place / TRAINER_STATE_NAME, damaged)) for place in places]
    states = [(place, state) for place, state in states if state is not None]
    histories = [_tried(DrawHistory.from_pretrained, place, damaged) for place in places]
    histories = [history for history in histories if history is not None]
    if not states and not histories:
        if damaged:
            raise ValueError(damaged[0])
        raise FileNotFoundError(
            f"'{path}' is not the output directory of a run: it has neither a {TRAINER_STATE_NAME} or "
            f"{HISTORY_NAME} nor a {PREFIX_CHECKPOINT_DIR}-* with one"
        )
    # The directory itself is written to at the end of training: checkpoints of a run that went on are later than that.
    place, state = max(states, key=lambda entry: entry[1].get("global_step", 0), default=(path, {}))
    places.sort(key=lambda other: other != place)
    history = max(histories, key=_last_step, default=None)
    config = _first(places, CONFIG_NAME, TraDyConfig.from_pretrained, damaged)
    return RunRecord(
        path=path,
        state=state,
        config=config or (history.config if history is not None else None),
        fitted=_first(places, None, FittedBudget.from_pretrained, damaged),
        history=history,
        results=(_tried(_read_json, path / RESULTS_NAME, damaged) or {}) if place == path else {},
        weights=next((file for file in (place / WEIGHTS_NAME for place in places) if file.is_file()), None),
        unreadable=tuple(damaged),
    )


def _checkpoints(path: Path) -> list[Path]:
    """The checkpoints of a run, latest first."""
    numbers = {p: p.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for p in path.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    return sorted((p for p, number in numbers.items() if number.isdecimal()), key=lambda p: -int(numbers[p]))


def _tried(read: Callable[[Path], Read], path: Path, damaged: list[str]) -> Read | None:
    """What `read` finds at `path`; None, and a line in `damaged`, if it can't be read."""
    try:
        return read(path)
    except ValueError as error:
        damaged.append(str(error))
        return None


def _first(places: list[Path], name: str | None, read: Callable[[Path], Read], damaged: list[str]) -> Read | None:
    """What `read` finds in the first of `places` where there is something; where there is a file `name`, if given."""
    found = (_tried(read, place, damaged) for place in places if name is None or (place / name).is_file())
    return next((value for value in found if value is not None), None)


def _read_json(file: Path) -> dict | None:
    """The JSON object in `file`; None if there is no such file.

    Raises:
        ValueError: If it holds something else.
    """
    if not file.is_file():
        return None
    try:
        values = read_json(file)
    except ValueError as error:
        raise ValueError(f"'{file}' is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"'{file}' must hold a JSON object, not a {type(values).__name__}")
    return values


def _last_step(history: DrawHistory) -> int:
    return max((record.step for record in history.draws.values()), default=0)
