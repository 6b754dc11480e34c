"""Pictures of a run."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from .files import atomic_path
from .selection import CostTable


def plot_layer_updates(
    costs: CostTable, selections: Sequence[Mapping[str, Tensor]], path: str | os.PathLike, *, title: str = ""
) -> None:
    """Write a PNG of which layers were updated in which draw: the share of each layer's input channels.

    Args:
        costs: All layers, in the order in which to show them.
        selections: For each draw, layer name -> active channel indices `[n]`.
        path: The PNG to write.
        title: Shown above the picture.
    """
    shares = np.array([[len(selection.get(row.name, ())) / row.channels for selection in selections] for row in costs])
    names = [row.name for row in costs]
    figure = Figure(figsize=(min(4.5 + 0.35 * len(selections), 16), 1.6 + 0.15 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    updated = shares[shares > 0]
    lowest, highest = (updated.min(), updated.max()) if updated.size else (0.01, 1)
    image = axes.imshow(
        np.where(shares > 0, shares, np.nan),
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        norm=LogNorm(vmin=min(lowest, highest / 10), vmax=highest),
    )
    axes.set_facecolor("0.92")
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_xlabel("draw")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(title, fontsize=9)
    figure.colorbar(
        image, ax=axes, format=PercentFormatter(1), label="share of the layer's input channels updated (grey: none)"
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
