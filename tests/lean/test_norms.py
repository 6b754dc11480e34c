import copy

import pytest
import timm.layers as timm_layers
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm

from .against_autograd import check_compressed, lean_copy, run


def filled(norm, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5, generator=generator)
    return norm


def normal(*shape, seed=3, dtype=torch.float64):
    return 1 + 2 * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


BATCH_NORMS = {
    "1d": (nn.BatchNorm1d(6), (5, 6)),
    "1d_sequence": (nn.BatchNorm1d(6), (5, 6, 3)),
    "2d": (nn.BatchNorm2d(6), (5, 6, 3, 2)),
    "2d_plain": (nn.BatchNorm2d(6, affine=False), (5, 6, 3, 2)),
    "3d": (nn.BatchNorm3d(6), (2, 6, 3, 2, 2)),
    "timm": (timm_layers.BatchNormAct2d(6), (5, 6, 4, 2)),
}


@pytest.mark.parametrize("norm, shape", BATCH_NORMS.values(), ids=BATCH_NORMS)
def test_a_frozen_batch_norm_is_exact_and_keeps_its_scale_alone(norm, shape):
    norm = filled(copy.deepcopy(norm)).double()
    lean = lean_copy(norm)
    lean.training = False
    plain = copy.deepcopy(norm)
    plain.train()
    plain.training = False
    expected, actual = run(plain, normal(*shape)), run(lean, normal(*shape))
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-9, atol=1e-9)
    if norm.affine:
        torch.testing.assert_close(actual[2][0], plain.bias.grad, rtol=1e-9, atol=1e-9)
    shared = {tensor.untyped_storage().data_ptr() for tensor in (*lean.parameters(), *lean.buffers())}
    kept = {t.untyped_storage().data_ptr(): t for t in actual[3] if t.untyped_storage().data_ptr() not in shared}
    assert sum(t.numel() for t in kept.values() if t.dtype.is_floating_point) <= 6


def test_a_batch_norm_whose_statistics_move_or_whose_scale_trains_is_the_plain_one():
    norm = filled(nn.BatchNorm2d(4)).double()
    for lean in (lean_copy(norm), lean_copy(norm)):
        plain = copy.deepcopy(norm).train()
        assert torch.equal(lean(normal(3, 4, 2, 2)), plain(normal(3, 4, 2, 2)))
        assert torch.equal(lean.running_mean, plain.running_mean)


ROW_NORMS = {
    "layer": (nn.LayerNorm(16), (3, 5, 16)),
    "layer_plain": (nn.LayerNorm(16, elementwise_affine=False), (3, 16)),
    "timm_layer": (timm_layers.LayerNorm(16), (3, 5, 16)),
    "timm_layer_2d": (timm_layers.LayerNorm2d(16), (3, 16, 4, 5)),
    "rms": (nn.RMSNorm(16), (3, 5, 16)),
    "timm_rms": (timm_layers.RmsNorm(16), (3, 5, 16)),
    "llama": (LlamaRMSNorm(16), (3, 5, 16)),
    "mistral": (MistralRMSNorm(16), (3, 5, 16)),
    "group": (nn.GroupNorm(4, 16), (3, 16, 4, 5)),
    "group_sequence": (nn.GroupNorm(4, 16), (3, 16, 6)),
}
row_norms = pytest.mark.parametrize("norm, shape", ROW_NORMS.values(), ids=ROW_NORMS)


@row_norms
def test_a_row_norm_keeps_one_byte_an_element_and_two_numbers_a_row(norm, shape):
    norm = filled(copy.deepcopy(norm))
    x = normal(*shape, dtype=torch.float32)
    rows = x.numel() // 16 if not isinstance(norm, nn.GroupNorm) else 4 * shape[0]
    assert check_compressed(norm, x) <= x.numel() + 2 * 4 * rows


@row_norms
def test_the_bias_of_a_row_norm_trains_exactly(norm, shape):
    norm = filled(copy.deepcopy(norm))
    if getattr(norm, "bias", None) is None:
        pytest.skip("no bias")
    plain, lean = copy.deepcopy(norm), lean_copy(norm)
    run(plain, normal(*shape, dtype=torch.float32))
    run(lean, normal(*shape, dtype=torch.float32))
    torch.testing.assert_close(lean.bias.grad, plain.bias.grad)
    assert lean.weight.grad is None


@row_norms
def test_a_norm_whose_scale_trains_is_the_plain_one(norm, shape):
    norm = filled(copy.deepcopy(norm)).double()
    if getattr(norm, "weight", None) is None:
        pytest.skip("no scale")
    lean = lean_copy(norm)
    lean.weight.requires_grad_(True)
    plain = copy.deepcopy(norm)
    expected, actual = run(plain, normal(*shape)), run(lean, normal(*shape))
    torch.testing.assert_close(lean.weight.grad, plain.weight.grad)
    assert torch.equal(actual[1], expected[1])


def test_large_rows_take_the_compiled_kernel():
    check_compressed(filled(nn.LayerNorm(384)), normal(8, 128, 384, dtype=torch.float32))


def test_rows_of_one_value_and_outliers_do_no_harm():
    x = torch.zeros(4, 16)
    x[1] = 3.0
    x[2, 0] = 1e6
    _, grad, _, _ = run(lean_copy(nn.LayerNorm(16)), x)
    assert grad.isfinite().all()


@row_norms
def test_a_model_may_change_the_output_in_place(norm, shape):
    x = normal(*shape, dtype=torch.float32).requires_grad_()
    output = lean_copy(filled(copy.deepcopy(norm)))(x * 1.0)
    output[0] = 0.0
    output.sum().backward()
    assert not x.grad[0].any() and torch.isfinite(x.grad).all()
