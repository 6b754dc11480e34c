"""How much of a TraDyModel trains, and what that takes."""

from torch import Tensor, nn

from .layers import bytes_beside, keeps_beside, kept_bytes, num_channels, num_elements, weight_dtype
from .sampler import ChannelSampler
from .selection import CostTable, SparsityReport


class AccountedMixin:
    """Counts what trains in the current draw."""

    base_model: nn.Module
    costs: CostTable | None
    epoch: int
    _sampler: ChannelSampler
    _layers: dict[str, list[nn.Module]]
    _targets: list[str]

    def active_channels(self) -> dict[str, Tensor]:
        """The channels that train now: layer name -> sorted indices, int64 `[n]`."""
        raise NotImplementedError

    def _whole_parameters(self) -> dict[str, nn.Parameter]:
        raise NotImplementedError

    def report(self) -> SparsityReport:
        """Sparsity and budget use of the current draw."""
        sizes = {name: weight_dtype(modules[0]).itemsize for name, modules in self._layers.items()}
        return self._sampler.report(self.active_channels(), self.epoch, sizes)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Number of elements that train (head, biases, active channels) and of all elements of the base model."""
        whole = sum(parameter.numel() for parameter in self._whole_parameters().values())
        channels = sum(self.costs[n].weight_per_channel * len(i) for n, i in self.active_channels().items())
        return whole + channels, num_elements(self.base_model)

    @property
    def kept_bytes(self) -> int:
        """Bytes that channels which have trained take beside quantized weights by now."""
        return kept_bytes(self.base_model)

    @property
    def most_kept_bytes(self) -> int:
        """Bytes that they take once every channel of the targets has trained; 0 if no target is quantized."""
        layers = (self._layers[name][0] for name in self._targets)
        return sum(bytes_beside(layer, num_channels(layer)) for layer in layers if keeps_beside(layer))

    def print_trainable_parameters(self) -> None:
        """Print how much of the model trains, in PEFT's format."""
        trainable, total = self.get_nb_trainable_parameters()
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")
