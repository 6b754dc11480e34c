import pytest
import torch
from scipy.stats import levy_stable

from hf_trady.selection.tails import tail_index


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_it_finds_the_index_of_stable_samples(alpha):
    samples = levy_stable.rvs(alpha, 0, size=90_000, random_state=0)
    assert tail_index(torch.tensor(samples)) == pytest.approx(alpha, abs=0.08)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_scale_shape_and_zeros_do_not_matter(scale):
    values = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([values * scale, torch.zeros(50, 100)])
    assert tail_index(padded) == pytest.approx(tail_index(values.flatten()), rel=1e-6)


def test_too_few_values_are_refused():
    with pytest.raises(ValueError, match="at least four values that are not zero, got 3"):
        tail_index(torch.tensor([1.0, 0, 2, 3, 0]))
