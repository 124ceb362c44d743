"""Causal attention of a chunk to what a cache holds and to itself, without a mask.

SDPA needs a mask for queries that do not begin at the first key: a fifth more time on a CPU, no
FlashAttention on a GPU, and memory that grows with the prompt. Torch's `causal_lower_right` avoids
it on a GPU only. Here the chunk attends to what came before and to itself separately; the two are
merged by their log-sum-exps (Dao et al. 2022, "FlashAttention", section 3.1).

Shape letters: B rows, T tokens of the chunk, S tokens of the cache, the chunk among them, H query
heads, K key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from endprompt.models import bf16_attention

NAME = "sdpa_in_chunks"
HALF = (torch.bfloat16, torch.float16)


@contextmanager
def in_chunks(config: Any) -> Generator[None]:
    """Inside, SDPA of a model takes chunks without masks; another backend stays as it is."""
    before = config._attn_implementation
    if before != "sdpa":
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    query_BHTD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    *,
    scale: float | None = None,
    own_TT: Tensor | None = None,
) -> Tensor:
    """Attention float[B, H, T, D] of the last T of S tokens, T < S; H a multiple of K.

    own_TT  bool, which tokens of the chunk see which; on a CPU only. None: causal

    For tensors that `fits`: it calls the kernels that give log-sum-exps.
    """
    B, H, T, D = query_BHTD.shape
    if bf16_attention.suits(query_BHTD):
        scale = D**-0.5 if scale is None else scale
        return bf16_attention.attend(query_BHTD, key_BKSD, value_BKSD, scale=scale, own_TT=own_TT)
    K, past = key_BKSD.shape[1], key_BKSD.shape[2] - T
    # Heads that share keys are queries of one head for what all of them see.
    packed = query_BHTD.reshape(B, K, H // K * T, D)
    before, before_lse = _flash(
        packed, key_BKSD[:, :, :past], value_BKSD[:, :, :past], causal=False, scale=scale
    )
    own = [part[:, :, past:].repeat_interleave(H // K, dim=1) for part in (key_BKSD, value_BKSD)]
    inside, inside_lse = _flash(
        query_BHTD, *own, causal=own_TT is None, scale=scale, sees_TT=own_TT
    )
    share = torch.sigmoid(inside_lse - before_lse.reshape(B, H, T))
    return torch.lerp(before.reshape(B, H, T, D), inside, share.unsqueeze(-1).to(inside.dtype))


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether a kernel that gives log-sum-exps takes these tensors."""
    if query.requires_grad or not query.shape[-1] == key.shape[-1] == value.shape[-1] <= 256:
        return False
    return query.device.type == "cpu" or (query.is_cuda and query.dtype in HALF)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    scale: float | None,
    sees_TT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exps, float[B, H, T]."""
    operators = torch.ops.aten
    mask = None
    if sees_TT is not None:
        mask = query.new_zeros(sees_TT.shape).masked_fill_(~sees_TT, -torch.inf)[None, None]
    if query.is_cuda:
        result = operators._scaled_dot_product_flash_attention(
            query, key, value, 0.0, causal, False, scale=scale
        )
    else:
        result = operators._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )
    return result[0], result[1]


def _forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The signature of Transformers' attention interface; returns float[B, T, H, D]."""
    B, H, T, D = query.shape
    K, S = key.shape[1:3]
    plain = fits(query, key, value) and others.get("position_bias") is None
    if attention_mask is not None and attention_mask.shape[-1] == 0:
        if plain:
            return attend(query, key, value, scale=scaling).transpose(1, 2).contiguous(), None
        attention_mask = torch.ones((T, S), dtype=torch.bool, device=query.device).tril(S - T)
        attention_mask = attention_mask.expand(B, 1, T, S)
    elif attention_mask is not None and attention_mask.shape[-1] == T < S:
        own_TT = attention_mask[0, 0]
        if plain and query.device.type == "cpu":
            out = attend(query, key, value, scale=scaling, own_TT=own_TT)
            return out.transpose(1, 2).contiguous(), None
        attention_mask = torch.nn.functional.pad(own_TT, (S - T, 0), value=True)[None, None]
    elif attention_mask is None and T == 1 and plain and query.device.type == "cpu":
        # A CPU would copy the cache for every head that shares it.
        packed = query.reshape(B, K, H // K, D)
        out = torch.nn.functional.scaled_dot_product_attention(packed, key, value, scale=scaling)
        return out.reshape(B, 1, H, D), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
    )


def _mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0,
    attention_mask: Tensor | None = None, local_size: int | None = None,
    allow_is_causal_skip: bool = True, **others: Any,
) -> Tensor | None:  # fmt: skip
    """SDPA's mask; bool[1, 1, T, 0] where all of the cache is seen, which other backends refuse."""
    sees_all = attention_mask is None or bool(attention_mask.all())
    ends_it = q_offset - kv_offset + q_length == kv_length and 1 < q_length < kv_length
    near = local_size is None or kv_length < local_size
    if allow_is_causal_skip and sees_all and ends_it and near:
        return torch.empty((1, 1, q_length, 0), dtype=torch.bool, device=others.get("device"))
    return sdpa_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, attention_mask=attention_mask,
        local_size=local_size, allow_is_causal_skip=allow_is_causal_skip, **others,
    )  # fmt: skip


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, _mask)
