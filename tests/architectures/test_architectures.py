"""Every family of architectures: wrapped, trained for a step, saved, loaded and merged."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hf_trady import TraDyModel

from ..test_whole_models import backward, check_gradients, elements_of, whole_parameters
from ..tiny import copy_of_state, inputs_of, wrap
from .families import FAMILIES


CASES = [
    pytest.param(family, id=f"{family.library}, {family.name}", marks=[pytest.mark.slow] if family.slow else [])
    for family in FAMILIES
]


def evaluate(model, batch) -> list[Tensor]:
    """All that the model puts out in eval mode, with nothing that requires a gradient.

    Also without gradients torch chooses how to multiply matrices by whether one requires them: of a plain LeViT, too,
    the last bits change when its weights are frozen.
    """
    required = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in required:
        parameter.requires_grad_(False)
    with torch.no_grad():
        output = model.eval()(**batch) if isinstance(batch, dict) else model.eval()(batch[0])
    for parameter in required:
        parameter.requires_grad_(True)
    output = dict(output) if isinstance(output, dict) else output
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def assert_same(actual: list[Tensor], expected: list[Tensor], when: str):
    assert len(actual) == len(expected) > 0
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True)), when


@pytest.mark.parametrize("family", CASES)
def test_wraps_trains_saves_loads_and_merges(family, tmp_path):
    if not family.is_known:
        pytest.skip("this timm lacks its small model")
    plain, batch = family.make(), family.batch()
    twin, kinds = copy.deepcopy(plain), [type(module) for module in plain.modules()]
    expected = evaluate(plain, batch)
    model = wrap(plain, inputs_of(batch), 0.3)
    assert_same(evaluate(model, batch), expected, "wrapped")

    tolerance = tolerance_of(twin, family.dtype)
    loss = backward(twin, batch)
    torch.testing.assert_close(backward(model, batch), loss, rtol=tolerance, atol=tolerance)
    assert len(model.active_channels()) >= min(4, len(model.pool))
    check_gradients(model, twin, tolerance)
    before = copy_of_state(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1).step()
    check_moved(model, before)

    expected = evaluate(model, batch)
    model.save_pretrained(tmp_path)
    assert_same(evaluate(TraDyModel.from_pretrained(tmp_path, twin), batch), expected, "loaded")
    merged = model.merge_and_unload()
    assert [type(module) for module in merged.modules()] == kinds
    assert_same(evaluate(merged, batch), expected, "merged")
    fresh = family.make()
    fresh.load_state_dict(merged.state_dict(), strict=True)
    assert_same(evaluate(fresh, batch), expected, "loaded from the state dict of the merged one")


def tolerance_of(model: nn.Module, dtype: torch.dtype) -> float:
    """How near gradients must be to autograd's, as a share of the largest."""
    if dtype == torch.float32:
        return 1e-4
    # torch's own Hardsigmoid multiplies by 1/6 in single precision.
    return 1e-6 if any(isinstance(module, nn.Hardsigmoid) for module in model.modules()) else 1e-9


def check_moved(model: TraDyModel, before: dict[str, Tensor]):
    """Of the base model, exactly the active channels have moved, all of their elements, and the head."""
    state = model.base_model.state_dict()
    active = {  # by address: a tied weight has several keys
        state[f"{name}.weight"].data_ptr(): elements_of(model.base_model.get_submodule(name), index)
        for name, index in model.active_channels().items()
    }
    whole = set(whole_parameters(model))
    for key, value in copy_of_state(model).items():
        moved, elements = before[key] != value, active.get(state[key].data_ptr())
        if elements is not None:
            assert torch.equal(moved, elements), key
        else:
            assert moved.any() == (key in whole), key
