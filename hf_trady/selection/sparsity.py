"""How sparse one epoch of training was."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from ..markup import html_table
from .cost import CostTable


@dataclass(frozen=True)
class SparsityReport:
    """Sparsity of one draw, over every Linear and convolution of the network but the head.

    Attributes:
        epoch: Number of the draw.
        activation_sparsity: Share of the layers' input elements that are not kept for a weight gradient.
        weight_sparsity: Share of the weight-gradient elements that are not formed.
        flops_saved: Share of the multiply-accumulates of full weight gradients that are not done.
        units: Elements (weight gradient and kept input of one sample) that the draw costs, trained biases included.
        budget: Elements that it may cost.
        weight_bytes: Bytes of the active channels' weight gradients.
        activation_bytes: Bytes of the active channels' inputs, for one sample.
        active_layers: Layers with at least one active channel.
        total_layers: Layers in the network.
        active_channels: Active input channels.
        total_channels: Input channels in the network.
    """

    epoch: int
    activation_sparsity: float
    weight_sparsity: float
    flops_saved: float
    units: int
    budget: int
    weight_bytes: int
    activation_bytes: int
    active_layers: int
    total_layers: int
    active_channels: int
    total_channels: int

    def to_dict(self) -> dict:
        """A JSON-serializable dict."""
        return asdict(self)

    def logs(self) -> dict[str, float]:
        """What a Trainer logs of it, by the names it logs them under."""
        return {
            "trady/activation_sparsity": self.activation_sparsity,
            "trady/weight_sparsity": self.weight_sparsity,
            "trady/flops_saved": self.flops_saved,
            "trady/units": self.units,
            "trady/budget": self.budget,
            "trady/active_layers": self.active_layers,
            "trady/active_channels": self.active_channels,
        }

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}: activation sparsity {self.activation_sparsity:.2%}, weight-gradient sparsity "
            f"{self.weight_sparsity:.2%}, weight-gradient FLOPs saved {self.flops_saved:.2%}, "
            f"{self.units:,} of {self.budget:,} units, {self.active_channels:,} of {self.total_channels:,} channels "
            f"in {self.active_layers} of {self.total_layers} layers"
        )

    def _repr_html_(self) -> str:
        rows = [
            ("activation sparsity", f"{self.activation_sparsity:.2%}"),
            ("weight-gradient sparsity", f"{self.weight_sparsity:.2%}"),
            ("weight-gradient FLOPs saved", f"{self.flops_saved:.2%}"),
            ("units", f"{self.units:,} of {self.budget:,}"),
            ("channels", f"{self.active_channels:,} of {self.total_channels:,}"),
            ("layers", f"{self.active_layers:,} of {self.total_layers:,}"),
        ]
        return html_table(rows, caption=f"Draw {self.epoch}")


def sparsity(
    costs: CostTable,
    selection: Mapping[str, Tensor],
    epoch: int,
    budget: int,
    element_sizes: Mapping[str, int],
    bias_units: int = 0,
) -> SparsityReport:
    """The report of `selection`.

    Args:
        costs: All layers of the network, without the head.
        selection: Layer name -> active channel indices `[n]`.
        epoch: Number of the draw.
        budget: Units that the draw may cost, trained biases included.
        element_sizes: Layer name -> bytes of one element of its weight.
        bias_units: Units that the trained biases cost.
    """
    active = [(costs[name], len(index)) for name, index in selection.items()]
    kept = costs.kept(selection)
    weight = sum(row.weight_per_channel * n for row, n in active)
    activation = sum(row.activation_per_channel * n for row, n in kept)
    activation += sum(row.whole_activation for row, _ in active)
    return SparsityReport(
        epoch=epoch,
        activation_sparsity=1 - activation / costs.activation_units,
        weight_sparsity=1 - weight / costs.weight_units,
        flops_saved=1 - sum(row.macs_per_channel * n for row, n in active) / costs.total_macs,
        units=weight + activation + bias_units,
        budget=budget,
        weight_bytes=sum(row.weight_per_channel * n * element_sizes[row.name] for row, n in active),
        activation_bytes=sum(row.activation_per_channel * n * element_sizes[row.name] for row, n in kept)
        + sum(row.whole_activation * element_sizes[row.name] for row, _ in active),
        active_layers=len(active),
        total_layers=len(costs),
        active_channels=sum(n for _, n in active),
        total_channels=sum(row.channels for row in costs),
    )
