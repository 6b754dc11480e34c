import numpy as np
import torch
from PIL import Image

from hf_trady import CostTable
from hf_trady.plots import plot_layer_updates
from hf_trady.selection import LayerCost


def picture(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_what_is_updated_shows(tmp_path):
    costs = CostTable(tuple(LayerCost(f"layer{i}", 8, 4, 4, 16) for i in range(4)))
    some = {"layer1": torch.arange(3)}
    plot_layer_updates(costs, [some, {}], tmp_path / "some.png")
    plot_layer_updates(costs, [{}, some], tmp_path / "other.png")
    plot_layer_updates(costs, [{}, {}], tmp_path / "none.png")
    some, other, none = (picture(tmp_path / f"{name}.png") for name in ("some", "other", "none"))
    assert some.shape == other.shape == none.shape
    changed = (some != other).any(-1)
    assert changed.any()
    rows = np.flatnonzero(changed.any(1))
    assert rows[-1] - rows[0] < some.shape[0] / 3  # one layer's row, nothing else
    assert (some != none).any()
