import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_trady.lean import attention
from hf_trady.lean.attention import LEAN_SDPA, lean_attention_forward, make_attention_lean, make_attention_plain
from hf_trady.lean.bits import unpack
from hf_trady.lean.dropout import drawn_bits, keep_probability

from ..layers.against_autograd import recorded_saves
from ..tiny import bert, lm_batch, token_batch


def inputs(batch=3, heads=2, length=5, dim=4):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, heads, length, dim, dtype=torch.float64, generator=generator).requires_grad_()
        for _ in range(3)
    ]


@pytest.mark.parametrize("masked", ["none", "bool", "float"])
def test_outputs_and_gradients_are_those_of_the_formula_with_the_bits_that_were_drawn(masked, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK_BYTES", 2 * 2 * 5 * 5 * 8)  # two samples at once
    query, key, value = inputs()
    lengths = torch.tensor([5, 3, 4])
    allowed = (torch.arange(5) < lengths[:, None])[:, None, None].expand(3, 1, 5, 5)
    mask = {"none": None, "bool": allowed, "float": torch.where(allowed, 0.0, -1e9).double()}[masked]
    torch.manual_seed(7)
    output = attention._DropoutAttention.apply(query, key, value, mask, False, 0.3, 0.25)
    torch.manual_seed(7)
    drawn = [drawn_bits(n * 2 * 5 * 5, 0.25, query.device) for n in (2, 1)]
    kept = torch.cat([unpack(bits).flatten()[: n * 50] for bits, n in zip(drawn, (2, 1), strict=True)])
    weights = query @ key.transpose(-1, -2) * 0.3
    if mask is not None:
        weights = weights.masked_fill(~allowed, float("-inf"))
    weights = torch.softmax(weights, -1) * kept.view(3, 2, 5, 5).double() / keep_probability(0.25)
    expected = weights @ value
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    cotangent = torch.randn_like(output)
    gradients = [torch.autograd.grad(o, (query, key, value), cotangent) for o in (output, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_a_model_keeps_no_attention_weights_and_gets_its_own_attention_back():
    model, batch = bert(dropout=0.1).train(), token_batch(8, 12)
    make_attention_lean(model)
    assert model.config._attn_implementation == LEAN_SDPA
    with recorded_saves() as saved:
        model(**batch).loss.backward()
    assert not any(tensor.dim() == 4 and tensor.shape[-1] == tensor.shape[-2] == 12 for tensor in saved)
    make_attention_plain(model)
    assert model.config._attn_implementation == "sdpa"


def test_without_dropout_it_is_torchs_own():
    plain, lean, batch = bert().train(), bert().train(), token_batch()
    make_attention_lean(lean)
    losses = [model(**batch).loss for model in (plain, lean)]
    assert torch.equal(*losses)


def test_a_row_that_is_masked_as_a_whole_is_zero_and_harms_no_other():
    query, key, value = inputs()
    mask = torch.ones(3, 1, 5, 5, dtype=torch.bool).tril()
    mask[0, 0, :2] = False  # as left padding leaves it
    for form in (mask, torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, float("-inf"))):
        output = attention._DropoutAttention.apply(query, key, value, form, False, 0.3, 0.25)
        assert not output[0, :, :2].any() and output.isfinite().all()
        gradients = torch.autograd.grad(output.sum(), (query, key, value))
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_left_padded_batch_of_a_causal_model_trains_finitely():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).train()
    make_attention_lean(model)
    batch = lm_batch()
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][0, :3] = 0
    loss = model(**batch).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_causal_mask_is_not_kept():
    query, key, value = (torch.randn(2, 2, 8, 4, requires_grad=True) for _ in range(3))
    with recorded_saves() as saved:
        lean_attention_forward(nn.Module(), query, key, value, None, dropout=0.1, is_causal=True)
    assert not [t for t in saved if t.dtype == torch.bool]
