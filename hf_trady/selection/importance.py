"""How important a layer is, from its weight gradient."""

import torch
from torch import Tensor, nn

from ..layers import by_channel
from .cost import LayerCost


def channel_norms(layer: nn.Module, gradient: Tensor) -> Tensor:
    """L2 norm of the weight gradient of each channel, shape `[C]`.

    Args:
        layer: A supported layer, wrapped or not.
        gradient: Its weight gradient, of the shape of `layer.weight`.
    """
    view, leading = by_channel(layer, gradient)
    return torch.linalg.vector_norm(view.flatten(leading).float(), dim=-1).flatten()


def rgn(norms: Tensor, cost: LayerCost) -> float:
    """Reweighted gradient norm of a layer: the sum of its channel norms `[C]`, each over the channel's units."""
    return norms.sum().item() / cost.space


def lara(norms: Tensor, cost: LayerCost) -> float:
    """Layer ranking of MeDyate: the norm of the whole layer's gradient over the units of the whole layer."""
    return torch.linalg.vector_norm(norms).item() / (cost.space * cost.channels)


IMPORTANCE = {"rgn": rgn, "lara": lara}
