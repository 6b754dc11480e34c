import pytest
import timm.layers.activations as timm_activations
import torch
import transformers.activations as transformers_activations
from torch import nn

from .against_autograd import check_compressed, lean_copy, run


SMOOTH = {
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "mish": nn.Mish(),
    "bert": transformers_activations.GELUActivation(),
    "gpt2": transformers_activations.NewGELUActivation(),
    "gemma": transformers_activations.GELUTanh(),
    "llama": transformers_activations.SiLUActivation(),
    "clip": transformers_activations.QuickGELUActivation(),
    "timm_gelu": timm_activations.GELU(),
    "timm_swish": timm_activations.Swish(),
    "timm_hardswish": timm_activations.HardSwish(),
}
smooth = pytest.mark.parametrize("module", SMOOTH.values(), ids=SMOOTH)


@smooth
@pytest.mark.parametrize("shape", [(7,), (3, 5, 16), (2, 3, 4, 5)])
def test_one_byte_an_element_tells_the_derivative(module, shape):
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert check_compressed(module, x) == x.numel()


@smooth
def test_the_derivative_is_off_by_half_a_step_at_most_and_exact_far_out(module):
    x = torch.linspace(-40, 40, 4001)
    lean = lean_copy(module)
    step = 1 / lean.gate.code.one
    inner, outer = x.clone().requires_grad_(), x.clone().requires_grad_()
    module(inner).sum().backward()
    lean(outer).sum().backward()
    assert (inner.grad - outer.grad).abs().max() <= 0.5 * step + 1e-6
    assert (outer.grad[x < -30] == 0).all() and (outer.grad[x > 30] == 1).all()


@pytest.mark.parametrize("module", [SMOOTH[name] for name in ("gelu", "silu", "hardswish")])
def test_large_tensors_take_the_compiled_kernel_with_the_same_numbers(module):
    x = 3 * torch.randn(4, 300, 256, generator=torch.Generator().manual_seed(2))
    output, grad, _, _ = run(lean_copy(module), x)
    part, grad_part, _, _ = run(lean_copy(module), x[:1], 5)
    torch.testing.assert_close(output[:1], part, rtol=1e-5, atol=2e-6)
    assert output.shape == grad.shape and grad_part.shape == part.shape
    check_compressed(module, x)
