"""Draws the figures of "How it works" and "Choosing a budget" from real draws and plans: python docs/figures.py"""

import itertools
from pathlib import Path

import timm
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import nn

from hf_trady import TraDyConfig, TraDyModel, plan
from hf_trady.plots import plot_layer_updates, plot_memory


FIGURES = Path(__file__).parent / "figures"
NETWORK, BATCH, PIXELS = "mobilenetv2_100", 32, 128
BUDGETS = ("96MiB", "128MiB", "192MiB")
INK, OURS, FROZEN = "#334155", "#c2410c", "#e2e8f0"


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    draw_layer(FIGURES / "layer.png")
    draw_flat_parameter(FIGURES / "flat_parameter.png")
    draw_redraws(FIGURES / "redraws.png")
    draw_budgets(FIGURES / "budgets.png", FIGURES / "step.png")


def small_model(budget: float) -> TraDyModel:
    """Four linear layers that may train by channel, and a head."""
    torch.manual_seed(0)
    sizes = (24, 16, 20, 16, 12)
    body = [layer for size in itertools.pairwise(sizes) for layer in (nn.Linear(*size), nn.ReLU())]
    net = nn.Sequential(*body, nn.Linear(12, 3))
    config = TraDyConfig(budget, "dynamic_full_random", modules_to_save=["8"])
    return TraDyModel(net, config, example_inputs=torch.randn(8, 24))


def draw_layer(path: Path) -> None:
    """A layer's input, weight and weight gradient, with what is kept, active and formed in colour."""
    model = small_model(0.2)
    index = model.active_channels()["0"].tolist()
    x = torch.randn(8, 24)
    weight = model.base_model[0].weight.detach()
    plain = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
    plain(x).square().sum().backward()
    panels = [
        (x, "input  x  [8, 24]", f"read whole; kept for backward: x[:, index], {len(index)} of 24 channels"),
        (weight, "weight  W  [16, 24]", "read whole; active: W[:, index]; the others are frozen"),
        (plain[0].weight.grad, "gradient of W  [16, 24]", "formed: grad.T @ x[:, index]; no others exist"),
    ]
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    for axes, (values, title, note) in zip(figure.subplots(1, 3), panels, strict=True):
        shade = values.abs() / values.abs().max()
        axes.imshow(shade, cmap="Greys", vmin=0, vmax=3, aspect="auto")
        for channel in index:
            column = shade[:, channel : channel + 1]
            axes.imshow(column, cmap="Oranges", vmin=-0.5, vmax=1.2, aspect="auto",
                        extent=(channel - 0.5, channel + 0.5, len(shade) - 0.5, -0.5))  # fmt: skip
        axes.set(xlim=(-0.5, 23.5), xticks=index, yticks=[])
        axes.tick_params(axis="x", labelsize=7)
        axes.set_xlabel("input channels (marked: index)", color=INK, fontsize=8)
        axes.set_title(title, color=INK, fontsize=11, loc="left", pad=20)
        axes.text(0, 1.03, note, transform=axes.transAxes, fontsize=8, color=OURS)
    figure.savefig(path, dpi=120)


def draw_flat_parameter(path: Path) -> None:
    """Which layers' active channels the flat Parameter holds in four draws."""
    model = small_model(0.3)
    length = model.active.flat[0].numel()
    names = [row.name for row in model.costs]
    colours = dict(zip(names, ("#4c72b0", "#dd8452", "#55a868", "#8172b3"), strict=True))
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.add_subplot()
    for epoch in range(4):
        start = 0
        for name, index in model.draw(epoch).items():
            for _ in range(len(index)):
                size = model.costs[name].weight_per_channel
                axes.barh(epoch, size, left=start, color=colours[name], edgecolor="white", linewidth=0.8, height=0.7)
                start += size
        axes.barh(epoch, length - start, left=start, color=FROZEN, hatch="///", edgecolor="white", height=0.7)
    for name in names:
        axes.barh(0, 0, color=colours[name], label=f"layer '{name}'")
    axes.barh(0, 0, color=FROZEN, hatch="///", edgecolor="white", label="unused")
    axes.set(yticks=range(4), yticklabels=[f"draw {epoch}" for epoch in range(4)], xlim=(0, length), ylim=(3.5, -0.5))
    axes.set_xlabel(f"elements of the flat Parameter ({length:,}); each segment is an active channel", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)


def draw_redraws(path: Path) -> None:
    """Which layers ten draws update in a MobileNetV2, by the ranking that ships."""
    config = TraDyConfig(0.025, layer_ranking="auto")
    model = TraDyModel(timm.create_model(NETWORK, num_classes=10), config, torch.zeros(1, 3, PIXELS, PIXELS))
    draws = [model.draw(epoch) for epoch in range(10)]
    plot_layer_updates(model.costs, draws, path, title=f"{NETWORK}, {PIXELS} px, 2.5 % of the elements")


def draw_budgets(path: Path, step_path: Path) -> None:
    """What budgets in bytes buy for a MobileNetV2, and the memory of a step with the smallest."""
    images = torch.zeros(BATCH, 3, PIXELS, PIXELS).contiguous(memory_format=torch.channels_last)
    plans = []
    for budget in BUDGETS:
        net = timm.create_model(NETWORK, num_classes=10).to(memory_format=torch.channels_last)
        plans.append(plan(TraDyModel(net, TraDyConfig(budget, layer_ranking="auto"), images), None, images))
    setting = f"{NETWORK}, batch of {BATCH}, {PIXELS} px"
    plot_memory(plans[0], step_path, title=f"{setting}, memory_budget={BUDGETS[0]}")
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    sizes = [found.byte_budget / 2**20 for found in plans]
    shares = [found.units / found.total_units for found in plans]
    axes.plot(sizes, shares, "o-", color=OURS)
    for size, share, found in zip(sizes, shares, plans, strict=True):
        axes.annotate(f"{share:.1%} from {len(found.pool)} layers", (size, share), (6, -10), fontsize=8, color=INK,
                      textcoords="offset points")  # fmt: skip
    axes.set(xlim=(sizes[0] - 8, 1.2 * sizes[-1]), ylim=(0, 1.15 * max(shares)))
    axes.set_xlabel("memory_budget, MiB above the weights", color=INK)
    axes.set_ylabel("share of the elements\n(of gradients and inputs)", color=INK)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title(setting, fontsize=10, loc="left", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
