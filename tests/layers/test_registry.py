import copy
import io

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from hf_trady.layers import (
    SPARSE_LAYERS,
    SparseConv2d,
    SparseConv2dSame,
    SparseLayer,
    SparseLinear,
    make_plain,
    make_sparse,
    register_sparse_layer,
    sparse_type,
    why_unsupported,
)


PLAIN = {
    nn.Linear: lambda: nn.Linear(4, 3),
    Conv1D: lambda: Conv1D(3, 4),
    nn.Conv2d: lambda: nn.Conv2d(4, 3, 3),
    Conv2dSame: lambda: Conv2dSame(4, 3, 3),
    FalconLinear: lambda: FalconLinear(4, 3, bias=False),
}


class Doubled(nn.Linear):
    """Keeps its name and weights but computes something else."""

    def forward(self, x):
        return super().forward(x) * 2


class Renamed(nn.Linear):
    """Keeps the forward of nn.Linear."""


def test_every_registered_type_is_tested():
    quantized = {kind for kind in SPARSE_LAYERS if kind.__module__.startswith("bitsandbytes")}  # see test_quantized.py
    assert set(PLAIN) == SPARSE_LAYERS.keys() - quantized


@pytest.mark.parametrize("kind", PLAIN)
def test_sparse_and_back(kind):
    layer = PLAIN[kind]()
    attributes, keys, parameters = dict(vars(layer)), list(layer.state_dict()), list(layer.parameters())
    sparse = make_sparse(layer)
    assert sparse is layer and isinstance(sparse, SparseLayer) and isinstance(sparse, kind)
    assert type(sparse) is SPARSE_LAYERS[kind]
    assert list(sparse.state_dict()) == keys
    assert all(a is b for a, b in zip(sparse.parameters(), parameters, strict=True))

    sparse.active_index, sparse.active_view = torch.tensor([1]), torch.zeros(1)
    assert make_sparse(sparse) is sparse  # once more changes nothing
    plain = make_plain(sparse)
    assert plain is layer and type(plain) is kind and vars(plain) == attributes


@pytest.mark.parametrize("kind", [Renamed, NonDynamicallyQuantizableLinear])
def test_a_subclass_that_keeps_the_forward_is_accepted(kind):
    layer = kind(4, 3)
    assert why_unsupported(layer) is None and sparse_type(layer) is SparseLinear
    assert type(make_plain(make_sparse(layer))) is kind


@pytest.mark.parametrize("make", [lambda: StdConv2d(4, 3, 3), lambda: ScaledStdConv2d(4, 3, 3), lambda: Doubled(4, 3)])
def test_a_subclass_with_its_own_forward_is_refused(make):
    layer = make()
    assert sparse_type(layer) is None
    assert type(layer).__name__ in why_unsupported(layer)


def test_the_closest_type_decides():
    assert sparse_type(Conv2dSame(4, 3, 3)) is SparseConv2dSame
    assert sparse_type(nn.Conv2d(4, 3, 3)) is SparseConv2d


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_other_padding_modes_are_refused_with_the_reason(mode):
    assert f"padding_mode='{mode}'" in why_unsupported(nn.Conv2d(4, 3, 3, padding=1, padding_mode=mode))


@pytest.mark.parametrize("module", [nn.ConvTranspose2d(4, 3, 3), nn.Conv1d(4, 3, 3), nn.Conv3d(4, 3, 3), nn.ReLU()])
def test_other_layers_are_refused_by_name(module):
    reason = why_unsupported(module)
    assert type(module).__name__ in reason and "Linear" in reason


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "compute",
    [parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.weight_norm, nn.utils.spectral_norm],
)
def test_a_weight_computed_from_others_is_refused_with_the_reason(compute):
    for layer in (nn.Linear(4, 3), nn.Conv2d(4, 3, 3)):
        assert "computed from others" in why_unsupported(compute(layer))


def test_a_new_type_needs_one_decorated_class():
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 3

    try:

        @register_sparse_layer(Scaled)
        class SparseScaled(SparseLinear, Scaled):
            pass

        assert why_unsupported(Scaled(4, 3)) is None
        assert type(make_sparse(Scaled(4, 3))) is SparseScaled
    finally:
        del SPARSE_LAYERS[Scaled]
    assert why_unsupported(Scaled(4, 3))


@pytest.mark.parametrize("kind", PLAIN)
def test_a_sparse_layer_in_training_can_be_copied_and_pickled(kind):
    layer = make_sparse(PLAIN[kind]())
    layer.active_index = torch.tensor([1])
    layer.active_view = torch.zeros(1, 3, requires_grad=True) * 2  # a view with a graph can be neither
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert type(twin) is type(layer) and twin.active_view is None
        assert torch.equal(twin.weight, layer.weight) and twin.weight is not layer.weight
        assert type(make_plain(twin)) is kind
