"""LongLoRA's shifted sparse attention, as a function of Transformers' attention interface.

A row of T tokens is cut in groups of G = T / groups tokens and attention stays inside a group.
Half of the heads see groups that are shifted by G/2, so that what one group learns reaches its
neighbours (Chen et al. 2023, "LongLoRA", section 3.2). In training only: in eval mode, and so
in generation and evaluation, attention is full.

The shifted heads have half a group at each end of the row, as in the released FlashAttention
code. The released code without FlashAttention rolls the row instead, and lets its first tokens
see its last ones: a leak of the future that is left out here.

Shape letters: B rows, T tokens, H query heads, K key heads, D head size, G group size.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from endprompt.errors import RecipeError


def register(groups: int = 4) -> str:
    """Make shifted attention known to Transformers; returns the name for `attn_implementation`.

    >>> register(4)
    'shifted_4'
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    name = f"shifted_{groups}"
    AttentionInterface.register(name, functools.partial(_forward, groups=groups))
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def check_length(tokens: int, groups: int) -> None:
    """Raise RecipeError unless a row of `tokens` is `groups` groups of an even size."""
    if tokens % (2 * groups):
        below = tokens - tokens % (2 * groups)
        raise RecipeError(
            f"shifted attention cuts rows in {groups} groups that halve: {tokens} tokens do not, "
            f"set rows.tokens to a multiple of {2 * groups}, as {below or 2 * groups}"
        )


def shifted(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    *,
    groups: int = 4,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention inside groups, the second half of the heads shifted by half a group.

    Returns float[B, H, T, D]. H a multiple of K; T a multiple of 2 * groups, or RecipeError.
    """
    B, H, T, D = query_BHTD.shape
    check_length(T, groups)
    repeats = H // key_BKTD.shape[1]
    parts_BHTD = (
        query_BHTD,
        key_BKTD.repeat_interleave(repeats, dim=1),
        value_BKTD.repeat_interleave(repeats, dim=1),
    )
    G = T // groups

    def inside(parts: tuple[Tensor, ...], size: int) -> Tensor:
        """Attention of float[B, h, t, D] inside runs of `size` tokens."""
        groups = [part.reshape(B, -1, size, D) for part in parts]
        out = F.scaled_dot_product_attention(
            *groups, dropout_p=dropout, is_causal=True, scale=scale
        )
        return out.view(parts[0].shape)

    still = inside(tuple(part[:, : H // 2] for part in parts_BHTD), G)
    moved = tuple(part[:, H // 2 :] for part in parts_BHTD)
    ends = inside(
        tuple(torch.cat([part[:, :, : G // 2], part[:, :, -G // 2 :]], dim=2) for part in moved),
        G // 2,
    )
    first, last = ends.split(G // 2, dim=2)
    middle = first[:, :, :0]
    if groups > 1:
        middle = inside(tuple(part[:, :, G // 2 : -G // 2] for part in moved), G)
    return torch.cat([still, torch.cat([first, middle, last], dim=2)], dim=1)


def _forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    groups: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """The signature of Transformers' attention interface; returns float[B, T, H, D]."""
    if not module.training:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
        )
        return out, None
    if attention_mask is not None:
        raise RecipeError("shifted attention takes rows of one length, without padding or cache")
    out_BHTD = shifted(query, key, value, groups=groups, scale=scaling, dropout=dropout)
    return out_BHTD.transpose(1, 2).contiguous(), None
