import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_trady.lean import make_lean

from .against_autograd import lean_copy, run


@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.floats(0.05, 0.95))
def test_the_gradient_passes_where_the_output_does_for_one_bit_an_element(shape, p):
    x = torch.ones(shape, dtype=torch.float64)
    output, grad, _, saved = run(lean_copy(nn.Dropout(p)), x)
    kept = output != 0
    torch.testing.assert_close(output[kept], torch.full_like(output[kept], 1 / (1 - p)), rtol=1e-3, atol=0)
    assert ((grad != 0) == kept).all()
    assert [t.numel() for t in saved if t.dtype == torch.uint8] == [-(-x.numel() // 8)]


def test_it_drops_the_share_that_it_should_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(400_000)
    output = lean_copy(nn.Dropout(0.1))(x.requires_grad_()).detach()
    assert abs((output == 0).float().mean() - 0.1) < 5 * (0.09 / 400_000) ** 0.5
    assert abs(output.mean() - 1) < 0.005


def test_the_seed_decides_and_checkpointing_draws_the_same_again():
    dropout, x = make_lean(nn.Dropout(0.5), "exact").train(), torch.ones(1000, requires_grad=True)
    torch.manual_seed(1)
    first = dropout(x)
    torch.manual_seed(1)
    again = checkpoint(lambda x: dropout(x) * dropout(x), x, use_reentrant=False)
    assert torch.equal((again != 0) & (first != 0), again != 0)
    again.sum().backward()
    assert ((x.grad != 0) == (again != 0)).all()
    assert not torch.equal(first, dropout(x))


def test_it_draws_the_same_without_gradients():
    dropout, outputs = make_lean(nn.Dropout(0.5), "exact").train(), []
    for x in (torch.ones(100), torch.ones(100, requires_grad=True)):
        for grad in (False, True):
            torch.manual_seed(2)
            with torch.set_grad_enabled(grad):
                outputs.append(dropout(x).detach())
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_evaluation_drops_nothing():
    x = torch.ones(10, requires_grad=True)
    assert torch.equal(make_lean(nn.Dropout(0.5), "exact").eval()(x), x)


def test_a_model_may_change_the_output_in_place():
    x = torch.ones(4, 16, requires_grad=True)
    output = lean_copy(nn.Dropout(0.5))(x * 1.0)
    output[0] = 0.0
    output.sum().backward()
    assert not x.grad[0].any() and x.grad[1:].any()
