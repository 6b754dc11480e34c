"""Layers that a model calls by keyword."""

import inspect

import pytest
import torch
from torch import Tensor, nn

from hf_trady.layers import SPARSE_LAYERS
from hf_trady.lean import LEAN_MODULES

from .tiny import different_keys, image_batch, train, wrap


KINDS = {**SPARSE_LAYERS, **LEAN_MODULES}


class Net(nn.Module):
    """Calls every layer by position or by keyword."""

    def __init__(self, by_keyword: bool):
        super().__init__()
        self.by_keyword = by_keyword
        self.conv, self.norm, self.act, self.pool = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        self.fc, self.rows, self.gelu, self.drop = nn.Linear(8, 12), nn.LayerNorm(12), nn.GELU(), nn.Dropout(0.3)
        self.classifier = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.conv, self.norm, self.act, self.pool):
            x = self._call(layer, x)
        x = x.mean((2, 3))
        for layer in (self.fc, self.rows, self.gelu, self.drop, self.classifier):
            x = self._call(layer, x)
        return x

    def _call(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(input=x) if self.by_keyword else layer(x)


@pytest.mark.parametrize("plain", KINDS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_a_stand_in_names_its_input_as_the_plain_class_does(plain):
    names = [list(inspect.signature(kind.forward).parameters) for kind in (plain, KINDS[plain])]
    assert names[0] == names[1]


@pytest.mark.parametrize("lean_backward", ["compressed", "off"])
def test_by_keyword_all_is_as_by_position(lean_backward):
    batch, found = image_batch(), []
    for by_keyword in (False, True):
        torch.manual_seed(0)
        model = wrap(Net(by_keyword), batch[0], lean_backward=lean_backward)
        record = model.measure([batch], how="projected", num_steps=2, disable_tqdm=True)
        losses = train(model, batch)
        found.append((model.costs, list(model._conversion.epilogues), losses, model.state_dict(), record.norms))
    (costs, epilogues, losses, state, norms), others = found[0], found[1]
    assert (costs, epilogues, losses) == others[:3] and epilogues == (["conv"] if lean_backward != "off" else [])
    assert different_keys(state, others[3]) == different_keys(norms, others[4]) == []
