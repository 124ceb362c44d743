"""A chunk attends to what came before it and to itself as with a mask, and no mask is made."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from tiny_lm import tiny_engine
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from endprompt.eval import chunk_attention
from endprompt.models import bf16_attention
from tiny_families import EXTENDED, tiny_known


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize("past", [1, 40, 700])
def test_a_chunk_attends_as_with_a_mask(key_heads: int, past: int) -> None:
    torch.manual_seed(0)
    T, scale = 33, 0.3
    query = torch.randn(2, 6, T, 16)
    # As in a cache with room: the keys are a part of a larger buffer.
    key, value = (torch.randn(2, key_heads, past + T + 9, 16)[:, :, : past + T] for _ in range(2))
    mask = torch.ones(T, past + T, dtype=torch.bool).tril(past)
    expected = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
    )
    torch.testing.assert_close(chunk_attention.attend(query, key, value, scale=scale), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_questions_apart_attend_as_with_a_mask_of_everything(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 6, 9, 16).to(dtype), *torch.randn(2, 1, 2, 50, 16).to(dtype)
    own = torch.block_diag(torch.ones(4, 4), torch.ones(5, 5)).bool().tril()
    mask = F.pad(own, (41, 0), value=True)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    out = chunk_attention.attend(query, key, value, own_TT=own)
    bound = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(out, expected, atol=bound, rtol=bound)


@pytest.mark.parametrize("fast", [False, True])
def test_a_prefill_in_bf16_is_made_by_matmuls_where_the_cpu_is_fast_at_them(
    monkeypatch, fast: bool
) -> None:
    monkeypatch.setattr(bf16_attention, "_fast_matmuls", lambda: fast)
    attend = mock.Mock(wraps=bf16_attention.attend)
    monkeypatch.setattr(bf16_attention, "attend", attend)
    engine = tiny_engine(chunk=16)
    engine.model.to(torch.bfloat16)
    scores = engine.context().extend(range(5, 69), scored=63)
    layers = engine.model.config.num_hidden_layers
    assert attend.call_count == (3 * layers if fast else 0)  # all chunks but the first
    engine.model.float()
    exact = engine.context().extend(range(5, 69), scored=63)
    assert attend.call_count == (3 * layers if fast else 0)
    assert scores.mean == pytest.approx(exact.mean, abs=0.01)


def test_prefill_makes_no_mask_and_leaves_the_model_its_backend(monkeypatch) -> None:
    engine = tiny_engine(chunk=16)
    seen: list[tuple[int, ...]] = []
    attend = F.scaled_dot_product_attention

    def watched(*given, attn_mask=None, **others):
        assert attn_mask is None
        seen.append(given[0].shape)
        return attend(*given, **others)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    context = engine.context()
    context.extend(range(5, 69))
    assert len(seen) == engine.model.config.num_hidden_layers  # of the first chunk alone
    assert engine.model.config._attn_implementation == "sdpa"


def test_values_of_another_size_than_keys_take_a_mask() -> None:
    query, key, value = (torch.randn(1, 2, 4, size) for size in (8, 8, 6))
    assert not chunk_attention.fits(query, key, value)
    nothing = torch.empty((1, 1, 4, 0), dtype=torch.bool)
    before = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 6)
    key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
    module = torch.nn.Module()
    out, _ = chunk_attention._forward(module, query, key, value, nothing)
    mask = torch.ones(4, 7, dtype=torch.bool).tril(3)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(out, expected.transpose(1, 2))


@pytest.mark.parametrize("name", EXTENDED)
def test_every_family_scores_in_chunks_as_in_one_pass(name: str) -> None:
    torch.manual_seed(0)
    config = tiny_known(name, vocab_size=260, eos_token_id=256)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids_T = torch.arange(5, 105) % 97
    scores = tiny_engine(model=model, chunk=16).context().extend(ids_T.numpy(), scored=99)
    with torch.inference_mode():
        logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1]
    expected = F.cross_entropy(logits_TV, ids_T[1:], reduction="none")
    torch.testing.assert_close(torch.from_numpy(scores.nll_T).float(), expected, atol=1e-4, rtol=0)
