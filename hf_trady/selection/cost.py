"""What it costs, in memory and compute, to update one channel of each layer."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import read_optional, write_text
from ..layers import sparse_type
from ..markup import html_table


COSTS_NAME = "trady_costs.json"

_MOST = 2**40  # of anything that is counted: more would overflow int64 in a sum over channels


@dataclass(frozen=True)
class LayerCost:
    """Costs of updating one input channel of a layer, for one sample.

    Attributes:
        name: Name of the layer; of the first one, where several share one weight.
        channels: Number of input channels, C.
        weight_per_channel: Elements of the channel's weight, `C' * D * D / groups` (eq. 3).
        activation_per_channel: Elements of the channel's input, `H * W` or the number of tokens (eq. 4), summed over
            the calls of the layer in one forward.
        macs_per_channel: Multiply-accumulates to form the channel's weight gradient, `D * D * C' * H' * W' / groups`.
        position: Place in the order in which a forward first calls the layers, from 0. No part of equality: it counts
            only the layers that were looked at.
        shares_input_with: Name of the first layer that is given the very same input, where an earlier one is: like it,
            the query, key and value layers of an attention keep that input once.
        whole_activation: Elements of the layer's input that are kept as soon as any channel trains: where channels are
            those of the output.
    """

    name: str
    channels: int
    weight_per_channel: int
    activation_per_channel: int
    macs_per_channel: int
    position: int = field(default=0, compare=False)
    shares_input_with: str | None = None
    whole_activation: int = 0

    def check(self) -> None:
        """Refuse what no model costs.

        Raises:
            ValueError: Names the field.
        """
        for name, value in asdict(self).items():
            is_name = name in ("name", "shares_input_with")
            least = 1 if name in ("channels", "weight_per_channel") else 0
            if is_name and not (isinstance(value, str) or (value is None and name != "name")):
                raise ValueError(f"{name}={value!r} is no name of a layer")
            if not is_name and (type(value) is not int or not least <= value <= _MOST):
                raise ValueError(f"{name}={value!r} is not in [{least}, 2**40]")

    @property
    def space(self) -> int:
        """Units (elements of weight gradient and saved activation) of one channel."""
        return self.weight_per_channel + self.activation_per_channel

    @property
    def positions(self) -> int:
        """Positions (pixels, tokens) of the output for one sample, summed over the calls of the layer."""
        return -(-self.macs_per_channel // self.weight_per_channel) if self.weight_per_channel else 0

    @property
    def input_name(self) -> str:
        """The same for layers that share their input: the name of the first of them."""
        return self.shares_input_with or self.name


@dataclass(frozen=True)
class CostTable:
    """One `LayerCost` a layer, in the order in which the model holds them.

    All totals are for one sample; an input that several layers share counts once in them.

    Raises:
        ValueError: If layers that are to share their input differ in its size.
    """

    rows: tuple[LayerCost, ...]

    def __post_init__(self):
        object.__setattr__(self, "_by_name", {row.name: row for row in self.rows})
        for first, *others in self.sharing():
            for row in others:
                if (row.channels, row.activation_per_channel) != (first.channels, first.activation_per_channel):
                    raise ValueError(f"'{first.name}' and '{row.name}' can't share an input: its sizes differ")

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[LayerCost]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> LayerCost:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @property
    def weight_units(self) -> int:
        """Elements of all weights."""
        return sum(row.channels * row.weight_per_channel for row in self.rows)

    @property
    def activation_units(self) -> int:
        """Elements of all layer inputs."""
        by_channel = sum(row.channels * row.activation_per_channel for row, *_ in self.sharing())
        return by_channel + sum(row.whole_activation for row in self.rows)

    @property
    def total_units(self) -> int:
        """Elements of all weights and all layer inputs: the budget of full fine-tuning."""
        return self.weight_units + self.activation_units

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates of all weight gradients."""
        return sum(row.channels * row.macs_per_channel for row in self.rows)

    def spaces(self) -> Tensor:
        """Units of every single channel, row by row, int64 `[sum of all channels]`."""
        units, channels = torch.tensor([[row.space, row.channels] for row in self.rows], dtype=torch.int64).T
        return units.repeat_interleave(channels)

    def starts(self) -> list[int]:
        """The number of each row's first channel, where channels are numbered row by row."""
        return [0, *itertools.accumulate(row.channels for row in self.rows)][:-1]

    def subset(self, names: Iterable[str]) -> "CostTable":
        """The rows of the layers `names`, in this table's order."""
        names = set(names)
        return CostTable(tuple(row for row in self.rows if row.name in names))

    def sharing(self) -> list[list[LayerCost]]:
        """The rows, those that share their input together; in this table's order."""
        groups: dict[str, list[LayerCost]] = {}
        for row in self.rows:
            groups.setdefault(row.input_name, []).append(row)
        return list(groups.values())

    def by_input(self) -> "CostTable":
        """One row an input, under its `input_name`: layers that share it count as one that holds all their weights."""
        return CostTable(
            tuple(
                replace(
                    first,
                    name=first.input_name,
                    weight_per_channel=sum(row.weight_per_channel for row in (first, *others)),
                    macs_per_channel=sum(row.macs_per_channel for row in (first, *others)),
                    shares_input_with=None,
                )
                for first, *others in self.sharing()
            )
        )

    def kept(self, selection: Mapping[str, Tensor]) -> list[tuple[LayerCost, int]]:
        """The slices of inputs that `selection` keeps, each as a layer and its number of channels.

        Layers that share their input and train the same channels of it keep one.

        Args:
            selection: Layer name -> active channel indices `[n]`.
        """
        slices = {}
        for name, index in selection.items():
            slices[self[name].input_name, tuple(index.tolist())] = self[name], len(index)
        return list(slices.values())

    def by_output(self, layers: Mapping[str, nn.Module]) -> "CostTable":
        """The same layers, with output channels for channels: these have weights of their own, and share the input.

        Args:
            layers: By name, the layers.
        """
        rows = []
        for row in self.rows:
            layer = layers[row.name]
            outputs = sparse_type(layer).num_outputs(layer)
            weight = row.channels * row.weight_per_channel // outputs
            rows.append(
                replace(
                    row,
                    channels=outputs,
                    weight_per_channel=weight,
                    activation_per_channel=0,
                    macs_per_channel=weight * row.positions,
                    shares_input_with=None,
                    whole_activation=row.channels * row.activation_per_channel,
                )
            )
        return CostTable(tuple(rows))

    def to_dict(self) -> dict:
        """A JSON-serializable dict."""
        return {"rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_dict(cls, values: Mapping[str, list[dict]]) -> "CostTable":
        """The table that `to_dict` gave."""
        return cls(tuple(LayerCost(**row) for row in values["rows"]))

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `trady_costs.json` into `save_directory`."""
        write_text(Path(save_directory) / COSTS_NAME, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> "CostTable | None":
        """Read `trady_costs.json` from the directory `path`; None if there is none.

        Raises:
            ValueError: If the file is not such a table.
        """
        return read_optional(Path(path) / COSTS_NAME, cls._checked, "a table of costs")

    @classmethod
    def _checked(cls, values: dict) -> "CostTable":
        """The table of a file, which may be a stranger's."""
        table = cls.from_dict(values)
        for row in table:
            row.check()
        if len({row.name for row in table}) != len(table) or not len(table):
            raise ValueError("it has no layer, or one twice")
        return table

    def check(self, layers: Mapping[str, nn.Module], by_output: bool = False) -> None:
        """Refuse costs of another architecture.

        Args:
            layers: By name, those that may be in the table.
            by_output: Whether channels are those of the output.

        Raises:
            ValueError: Names the first layer that doesn't match.
        """
        for row in self.rows:
            layer = layers.get(row.name)
            if layer is None:
                raise ValueError(f"the costs are of another architecture: this one has no layer '{row.name}'")
            kind = sparse_type(layer)
            channels = kind.num_outputs(layer) if by_output else kind.num_channels(layer)
            given, own = (row.channels, row.weight_per_channel), (channels, _weights(layer) // channels)
            if given != own:
                raise ValueError(
                    f"the costs are of another architecture: '{row.name}' has {given[0]} channels of {given[1]} "
                    f"weights there and {own[0]} of {own[1]} here"
                )
            if row.activation_per_channel if by_output else row.whole_activation:
                here, there = ("output", "input") if by_output else ("input", "output")
                raise ValueError(f"the costs are of {there} channels; here, {here} channels of '{row.name}' train")

    def _repr_html_(self) -> str:
        rows = [
            (
                row.name,
                f"{row.channels:,}",
                f"{row.weight_per_channel:,}",
                f"{row.activation_per_channel:,}",
                f"{row.macs_per_channel:,}",
                row.shares_input_with or "",
            )
            for row in self.rows
        ]
        header = (
            "layer",
            "channels",
            "weight a channel",
            "activation a channel",
            "MACs a channel",
            "input shared with",
        )
        total = f"{len(self):,} layers, {self.total_units:,} units"
        return html_table(
            rows, header, f"{total}: {self.weight_units:,} of weights, {self.activation_units:,} of inputs"
        )


def _weights(layer: nn.Module) -> int:
    """Elements of the weight of `layer`."""
    return sparse_type(layer).weight_shape(layer).numel()
