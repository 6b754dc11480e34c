"""The chart of the memory benchmark: training peak above the weights, network by network."""

from pathlib import Path

from matplotlib.figure import Figure
from memory_methods import METHODS
from memory_networks import NETWORKS
from memory_report import MIB, AllFigures


OURS = "#c2410c"
OTHERS = "#94a3b8"
INK = "#334155"
COLUMNS = 3


def draw_chart(figures: AllFigures, path: Path) -> None:
    """Write a PNG: one panel a network, one bar a method, a line at the peak of inference."""
    measured = {network for network, _ in figures}
    networks = [name for name, network in NETWORKS.items() if network.charted and name in measured]
    methods = [name for name in METHODS if METHODS[name].trains]
    if not networks:
        return
    rows = -(-len(networks) // COLUMNS)
    figure = Figure(figsize=(11, 0.9 + 3.1 * rows), layout="constrained")
    figure.get_layout_engine().set(hspace=0.06, h_pad=0.08)
    panels = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False).flat
    for network, panel in zip(networks, panels, strict=False):  # in this order it takes no panel too many
        _draw_panel(panel, network, methods, figures)
    for panel in panels:
        panel.set_visible(False)
    figure.suptitle(
        "Peak memory of a training step above the model's weights in MiB (and in multiples of inference)",
        fontsize=12,
        color=INK,
    )
    figure.savefig(path, dpi=150)


def _draw_panel(panel, network: str, methods: list[str], figures: AllFigures) -> None:
    inference = figures.get((network, "inference"))
    places = range(len(methods))
    peaks = [figures[network, method].peak / MIB if (network, method) in figures else 0 for method in methods]
    is_ours = [METHODS[method].title.startswith("TraDy, lean") for method in methods]
    panel.barh(places, peaks, color=[OURS if ours else OTHERS for ours in is_ours], height=0.72)
    panel.set_xlim(0, 1.42 * max([*peaks, 1]))
    for place, peak, ours in zip(places, peaks, is_ours, strict=True):
        label = f"{peak:,.0f}" if peak else "not run"
        if peak and inference:
            ratio = peak * MIB / inference.peak
            label += f"  ({ratio:.2f}x)" if ratio < 2 else f"  ({ratio:.1f}x)"
        style = {"color": OURS, "weight": "bold"} if ours and peak else {"color": INK}
        panel.annotate(
            label,
            (peak, place),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            **style,
        )
    if inference:
        panel.axvline(inference.peak / MIB, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0.5)
        panel.annotate(
            f"inference {inference.peak / MIB:,.0f}",
            (inference.peak / MIB, 1),
            (0, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="left",
            fontsize=8,
            color=INK,
        )
    description = NETWORKS[network]
    panel.set_title(description.title, fontsize=10.5, weight="bold", color=INK, loc="left", pad=28)
    panel.annotate(
        description.setting,
        (0, 1),
        (0, 15),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.5,
        color=INK,
    )
    panel.set_yticks(places, [METHODS[method].title for method in methods], fontsize=9, color=INK)
    panel.set_ylim(len(methods) - 0.4, -0.6)  # the first method on top
    panel.set_xticks([])
    for side in ("top", "right", "bottom"):
        panel.spines[side].set_visible(False)
    panel.spines["left"].set_color(OTHERS)
    panel.tick_params(axis="y", length=0)
