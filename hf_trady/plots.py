"""Pictures of a run."""

import os
from collections.abc import Mapping, Sequence, Sized

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .files import atomic_path
from .memory import KINDS, MIB, PHASES
from .planner import TrainingPlan
from .selection import CostTable


# A colour for each kind of bytes, in the order of KINDS: what stays all the time in greys and blues, what the forward
# leaves for backward in warm colours, what comes and goes in light green.
KIND_COLOURS = ("#b8b8b8", "#7f7f7f", "#4c72b0", "#8fb3e0", "#dd8452", "#f2c14e", "#b7dfae")


def plot_layer_updates(
    costs: CostTable, selections: Sequence[Mapping[str, Sized]], path: str | os.PathLike, *, title: str = ""
) -> None:
    """Write a PNG of which layers were updated in which draw: the share of each layer's input channels.

    Args:
        costs: All layers, in the order in which to show them.
        selections: For each draw, layer name -> active channel indices `[n]`, or anything of that length.
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


def plot_memory(plan: TrainingPlan, path: str | os.PathLike, *, title: str = "") -> None:
    """Write a PNG of the memory of a training step from its first operation to its last, stacked by kind.

    Args:
        plan: What `plan` found.
        path: The PNG to write.
        title: Shown above the picture.
    """
    step = plan.step
    curves = {kind: np.array(step.timeline[kind]) / MIB for kind in KINDS}
    # Most operations are views and copies in place, which change nothing: only the others take room.
    changes = np.diff(sum(curves.values()), prepend=-1) != 0
    curves = {kind: curve[changes] for kind, curve in curves.items()}
    ends = {phase: int(changes[:end].sum()) for phase, end in step.ends.items()}
    shown = {kind: curve for kind, curve in curves.items() if curve.max() >= 0.002 * step.peak / MIB}
    total = sum(curves.values())
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.stackplot(
        range(len(total)),
        *shown.values(),
        labels=[f"{kind} ({step.at_peak[kind] / MIB:,.1f})" for kind in shown],
        colors=[KIND_COLOURS[KINDS.index(kind)] for kind in shown],
        step="post",
        linewidth=0,
        antialiased=False,  # a thin peak must not fade
    )
    top = 1.18 * max(total.max(), (plan.byte_budget or 0) / MIB)
    peak = int(total.argmax())
    axes.plot(peak, total[peak], "k.", ms=5)
    side = "right" if peak > len(total) / 2 else "left"
    axes.annotate(
        f"peak {total[peak]:,.1f} MiB", (peak, total[peak]), (6 if side == "left" else -6, 5), ha=side,
        textcoords="offset points", fontsize=9,
    )  # fmt: skip
    if plan.byte_budget is not None:
        axes.axhline(plan.byte_budget / MIB, color="#c44e52", ls="--", lw=1.2)
        axes.annotate(
            f"budget {plan.byte_budget / MIB:,.1f} MiB", (0.005, plan.byte_budget / MIB), (0, 3), color="#c44e52",
            xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=9,
        )  # fmt: skip
    start = 0
    for phase in PHASES:
        end = ends[phase]
        if start:
            axes.axvline(start, color="0.35", lw=0.8, ls=":")
        narrow = end - start < 0.12 * len(total)  # an optimizer step of a few operations: named from its right end
        place = (min(end, len(total) - 1), "right") if narrow else ((start + end) / 2, "center")
        axes.text(place[0], 0.985 * top, phase, ha=place[1], va="top", fontsize=9, color="0.25")
        start = end
    axes.set(
        xlim=(0, len(total) - 1),
        ylim=(0, top),
        xlabel="operations that allocate or free memory",
        ylabel="MiB above the weights",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title or f"memory_budget={plan.memory_budget}, batch of {plan.batch_size}", fontsize=10, loc="left")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside right center", fontsize=8, frameon=False, title="MiB at the peak",
        title_fontsize=8,
    )  # fmt: skip
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
