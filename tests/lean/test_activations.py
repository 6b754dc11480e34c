import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_trady.lean import GatedActivation, make_lean
from hf_trady.standin import swap_out

from .against_autograd import check_exact, run


GATED = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": lambda inplace: nn.Hardtanh(-0.4, 1.2, inplace=inplace),
    "leaky": lambda inplace: nn.LeakyReLU(0.2, inplace=inplace),
    "hardsigmoid": nn.Hardsigmoid,
}
gated = pytest.mark.parametrize("make", GATED.values(), ids=GATED)


@gated
@pytest.mark.parametrize("inplace", [False, True])
@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4), channels_last=st.booleans())
def test_gradients_are_exact_for_one_bit_an_element(make, inplace, shape, channels_last):
    x = 4 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    # torch's own Hardsigmoid multiplies by 1/6 in single precision.
    saved = check_exact(make(inplace=inplace), x, 1e-7)
    assert saved == -(-x.numel() // 8)


@gated
def test_gradients_are_exact_where_the_derivative_changes(make):
    module = make(inplace=False)
    gate = make_lean(make(inplace=False), "exact").gate
    edges = torch.tensor([edge for edge in (gate.low, gate.high) if abs(edge) != float("inf")], dtype=torch.float64)
    check_exact(module, torch.cat([edges, edges + 1e-9, edges - 1e-9]), 1e-7)


@gated
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_tensors_take_the_compiled_kernel_and_small_ones_the_same_numbers(make, dtype):
    x = 4 * torch.randn(8, 64, 40, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    lean = make_lean(make(inplace=False), "exact").train()
    output, grad, _, _ = run(lean, x)
    for sample in range(2):
        part = run(make_lean(make(inplace=False), "exact").train(), x[sample])
        assert torch.equal(part[0], output[sample])
    plain = run(make(inplace=False), x)
    assert torch.equal(plain[0], output)
    torch.testing.assert_close(grad, plain[1])


def test_a_view_or_an_expanded_tensor_works_too():
    x = torch.randn(4, 1, 6, dtype=torch.float64).expand(4, 3, 6)
    check_exact(nn.ReLU(), x)
    check_exact(nn.ReLU(inplace=True), torch.randn(6, 8, dtype=torch.float64)[:, ::2])


def test_evaluation_and_no_grad_keep_nothing_and_swapping_out_leaves_nothing():
    module = nn.ReLU()
    before = dict(vars(module))
    lean = make_lean(module, "exact")
    assert isinstance(lean, GatedActivation)
    x = torch.randn(3, requires_grad=True)
    assert torch.equal(lean.eval()(x), torch.relu(x))
    with torch.no_grad():
        assert not lean.train()(x).requires_grad
    assert type(swap_out(lean)) is nn.ReLU and dict(vars(module)) == before


def test_off_swaps_nothing_and_exact_leaves_what_would_be_rounded():
    assert type(make_lean(nn.ReLU(), "off")) is nn.ReLU
    assert type(make_lean(nn.GELU(), "exact")) is nn.GELU
    assert type(make_lean(nn.GELU(), "compressed")) is not nn.GELU


def test_a_subclass_with_another_forward_is_left_alone():
    class Shifted(nn.ReLU):
        def forward(self, x):
            return super().forward(x - 1)

    assert type(make_lean(Shifted(), "compressed")) is Shifted
