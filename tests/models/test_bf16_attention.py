"""Attention by bfloat16 matmuls is attention, about as exact as torch's kernel."""

from __future__ import annotations

from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from endprompt.eval import chunk_attention
from endprompt.models import bf16_attention
from endprompt.train import activations
from tiny_families import tiny_model


def drawn(
    B: int, H: int, K: int, T: int, S: int, D: int, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and keys and values that are parts of larger buffers, as in a cache with room."""
    query = (spread * torch.randn(B, H, T, D)).bfloat16()
    key, value = (torch.randn(B, K, S + 9, D).bfloat16()[:, :, :S] for _ in range(2))
    return query, key, value


def exact(query: Tensor, key: Tensor, value: Tensor, sees_TT: Tensor, scale: float) -> Tensor:
    """float64, with a mask of everything."""
    mask = F.pad(sees_TT, (key.shape[2] - query.shape[2], 0), value=True)
    parts = (query.double(), key.double(), value.double())
    return F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale, enable_gqa=True)


def error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 2),
    key_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    tokens=st.integers(1, 40),
    past=st.integers(0, 600),
    size=st.sampled_from([8, 24, 64]),
    block_bytes=st.sampled_from([1, 2000, 10**6]),
    seed=st.integers(0, 99),
)
def test_it_is_causal_attention_whatever_the_blocks(
    rows: int, key_heads: int, group: int, tokens: int, past: int, size: int, block_bytes: int,
    seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    H, S = key_heads * group, past + tokens
    given = drawn(rows, H, key_heads, tokens, S, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bf16_attention, "SCORE_BYTES", block_bytes)
        out = bf16_attention.attend(*given, scale=0.3)
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    assert out.dtype == torch.bfloat16
    assert error(out, exact(*given, causal, 0.3)) < 0.01


@pytest.mark.parametrize("block_bytes", [3000, 10**6])
@pytest.mark.parametrize(("H", "K"), [(3, 3), (6, 2), (4, 1)])
def test_gradients_are_those_of_causal_attention(H: int, K: int, block_bytes: int) -> None:
    torch.manual_seed(0)
    given = drawn(2, H, K, 70, 70, 16)
    causal = torch.ones(70, 70, dtype=torch.bool).tril()
    above = torch.randn(2, H, 70, 16).bfloat16()
    doubles = [part.double().requires_grad_() for part in given]
    exact(*doubles, causal, 0.3).backward(above.double())
    ours = [part.clone().requires_grad_() for part in given]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bf16_attention, "SCORE_BYTES", block_bytes)
        bf16_attention.OPERATOR(*ours, 0.3).backward(above)
    for mine, expected in zip(ours, doubles, strict=True):
        assert mine.grad is not None
        assert expected.grad is not None
        assert mine.grad.dtype == torch.bfloat16
        assert error(mine.grad, expected.grad) < 0.01


def test_questions_apart_see_the_context_and_themselves() -> None:
    torch.manual_seed(0)
    given = drawn(1, 6, 2, 9, 50, 16)
    own = torch.block_diag(torch.ones(4, 4), torch.ones(5, 5)).bool().tril()
    out = bf16_attention.attend(*given, scale=0.25, own_TT=own)
    assert error(out, exact(*given, own, 0.25)) < 0.01


def test_large_scores_cost_no_precision() -> None:
    """Rounded as they are, scores about 60 would be off by .25; torch's kernel is the measure."""
    torch.manual_seed(0)
    query, key, value = drawn(1, 3, 1, 32, 2048, 64)
    toward = torch.randn(64)
    query, key = ((part + 2.75 * toward).bfloat16() for part in (query, key))
    causal = torch.ones(32, 32, dtype=torch.bool).tril()
    expected = exact(query, key, value, causal, 0.125)
    ours = error(bf16_attention.attend(query, key, value, scale=0.125), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bf16_attention, "suits", lambda query: False)
        theirs = error(chunk_attention.attend(query, key, value, scale=0.125), expected)
    assert ours < 2 * theirs + 0.002


@pytest.mark.parametrize(
    ("has", "suits"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": True, "amx_bf16": True}, False),
        ({"avx2": True}, False),
    ],
)
def test_only_cpus_that_gain_use_it(monkeypatch, has: dict, suits: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    bf16_attention._fast_matmuls.cache_clear()
    try:
        assert bf16_attention.suits(torch.ones(1, dtype=torch.bfloat16)) == suits
        assert not bf16_attention.suits(torch.ones(1))
    finally:
        bf16_attention._fast_matmuls.cache_clear()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_trains_with_it_as_with_sdpa(monkeypatch, padded: bool, recompute: bool) -> None:
    """Under autocast, rows with padding included, and where a layer keeps its matmuls alone."""
    monkeypatch.setattr(bf16_attention, "_fast_matmuls", lambda: True)
    attend = mock.Mock(wraps=bf16_attention.attend)
    monkeypatch.setattr(bf16_attention, "attend", attend)
    mask = torch.ones((2, 40), dtype=torch.long)
    mask[1, 30:] = 1 - padded
    ids = torch.arange(80).reshape(2, 40) % 50
    grads: dict[str, Tensor] = {}
    for backend in ("sdpa", bf16_attention.NAME):
        torch.manual_seed(0)
        model = tiny_model().train()
        if backend != "sdpa":
            bf16_attention.prefer(model)
        assert model.config._attn_implementation == backend
        if recompute:
            contexts = partial(
                create_selective_checkpoint_contexts, partial(activations._policy, None)
            )
            model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            loss = F.cross_entropy(logits[mask.bool()].float(), ids[mask.bool()])
        loss.backward()
        grads[backend] = torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        )
    layers = model.config.num_hidden_layers
    assert attend.call_count == (0 if padded else layers)  # kept, not made again
    assert error(grads[bf16_attention.NAME], grads["sdpa"].double()) < 0.02


@pytest.mark.parametrize("said", ["by the module", "in the call"])
def test_attention_that_is_not_causal_is_left_to_sdpa(monkeypatch, said: str) -> None:
    """As in the tower of a model that sees pictures, which has no mask either."""
    monkeypatch.setattr(bf16_attention, "_fast_matmuls", lambda: True)
    torch.manual_seed(0)
    given = drawn(1, 4, 2, 9, 9, 16)
    module, others = torch.nn.Module(), {}
    module.num_key_value_groups = 2
    if said == "by the module":
        module.is_causal = False
    else:
        others["is_causal"] = False
    out, _ = bf16_attention._forward(module, *given, None, scaling=0.3, **others)
    whole = torch.ones(9, 9, dtype=torch.bool)
    assert error(out.transpose(1, 2), exact(*given, whole, 0.3)) < 0.01
