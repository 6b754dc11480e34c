import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_trady.lean.bits import num_samples, pack, planes, unpack


shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32))
def test_unpacking_undoes_packing(samples, n, seed):
    mask = torch.rand(samples, 8, n, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pack(mask)
    assert bits.dtype == torch.uint8 and bits.shape == (samples, n)
    assert torch.equal(unpack(bits), mask)


@given(shapes, st.booleans())
def test_planes_hold_every_element_once_in_the_order_of_memory(shape, channels_last):
    x = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    flat = planes(x).flatten()
    in_memory = x.as_strided((x.numel(),), (1,))
    assert torch.equal(flat[: x.numel()], in_memory)
    assert not flat[x.numel() :].any() and len(flat) - x.numel() < 8


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_a_part_of_the_samples_has_a_part_of_the_bits(samples, height, width):
    x = torch.randn(samples, 8, height, width).contiguous(memory_format=torch.channels_last)
    assert num_samples(x) == samples
    whole, part = pack(planes(x) > 0), pack(planes(x[:1]) > 0)
    assert torch.equal(whole[:1], part)


def test_compiled_unpacked_bits_select_the_same():
    """inductor makes C++ of this that no compiler takes, if bytes are but seen as booleans."""

    def select(bits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.where(unpack(bits), 2 * x, 0)

    x, bits = torch.randn(1, 8, 64), torch.randint(256, (1, 64), dtype=torch.uint8)
    assert torch.equal(torch.compile(select)(bits, x), select(bits, x))
