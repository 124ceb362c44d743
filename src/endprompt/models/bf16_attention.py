"""Attention in bfloat16 by matmuls, for CPUs with AVX512-BF16: long prefills and training.

Torch's flash kernel for CPUs multiplies in float32 there, at a fifth of the speed of bfloat16.
Here one matmul gives the scores of a block of queries, softmax turns them into weights in place (it
computes in float32), and a second matmul sums the values. The backward pass makes the weights again
(Dao et al. 2022, "FlashAttention", appendix B.2).

Scores are rounded to bfloat16, as in Transformers' eager attention, but with a number near each
query's largest score taken off first. Softmax is the same for any such number, and the scores that
matter are small then, so rounding costs little.

Shape letters: B rows, T queries, S keys that end with the queries' own, H query heads, K key heads,
D head size; G = H / K query heads that share keys, N tokens of a block, R = G x N, E keys that a
block sees, M of them sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, library
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "bf16_matmuls"
SCORE_BYTES = 6 * 2**20
"""Of a block: what stays in the CPU's last-level cache."""
MOST_TOKENS = 192
"""Of a block: of what it computes, less than half a block's width lies behind its queries."""
NEAR, FAR = 48, 16
"""Keys whose scores say where a query's largest may be: the last ones and the first ones."""


def suits(of: Any) -> bool:
    """Whether this is faster than torch's kernel for a tensor or model of this dtype and device."""
    return of.device.type == "cpu" and of.dtype == torch.bfloat16 and _fast_matmuls()


def prefer(model: Any) -> None:
    """Let a model with SDPA take this for whole rows in bfloat16 where the CPU is faster so.

    For a model that runs on the CPU, its rows not cut among ranks.
    """
    if model.config._attn_implementation == "sdpa" and _fast_matmuls():
        model.set_attn_implementation(NAME)


@cache
def _fast_matmuls() -> bool:
    has = torch.cpu.get_capabilities()
    # With AMX torch's own kernel multiplies in bfloat16.
    fast = has.get("avx512_bf16") and not has.get("amx_bf16")
    return bool(fast) and torch.backends.mkldnn.is_available()


@dataclass(frozen=True)
class _Block:
    """Some queries of the heads that share keys, with their weights on every key they see."""

    row: int
    head: int
    tokens: slice
    asked_RD: Tensor
    keys_ED: Tensor
    values_ED: Tensor
    weights_RE: Tensor
    """bfloat16; overwritten by the next block."""

    def of(self, x_BHTD: Tensor) -> Tensor:
        """Its part of a tensor shaped like the queries, a view [G, N, D]."""
        heads = x_BHTD.unflatten(1, (-1, len(self.asked_RD) // self._size))
        return heads[self.row, self.head, :, self.tokens]

    def put(self, x_BHTD: Tensor, part_RD: Tensor) -> None:
        """Write its part of a tensor shaped like the queries."""
        self.of(x_BHTD).copy_(part_RD.view(-1, self._size, part_RD.shape[1]))

    @property
    def _size(self) -> int:
        return self.tokens.stop - self.tokens.start


def _blocks(
    query_BHTD: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, scale: float, own_TT: Tensor | None
) -> Iterator[_Block]:
    B, H, T, D = query_BHTD.shape
    K, S = key_BKSD.shape[1:3]
    G = H // K
    block = max(min(SCORE_BYTES // (2 * S * G), MOST_TOKENS, T), 1)
    scores = query_BHTD.new_empty(G * block * S)
    query = query_BHTD.reshape(B, K, G, T, D)
    unseen_TT = ~own_TT if own_TT is not None else torch.ones((T, T), dtype=torch.bool).triu(1)
    for b in range(B):
        for k in range(K):
            for start in range(0, T, block):
                end = min(start + block, T)
                rows = G * (end - start)
                # Causal: nothing behind the block is looked at.
                first, seen = (start, S - T + end) if own_TT is None else (0, S)
                asked_RD = query[b, k, :, start:end].reshape(rows, D)
                keys_ED, values_ED = key_BKSD[b, k, :seen], value_BKSD[b, k, :seen]
                score_RE = scores[: rows * seen].view(rows, seen)
                some_MD = torch.cat([keys_ED[:FAR], keys_ED[max(seen - NEAR, 0) :]])
                largest_R1 = (asked_RD @ some_MD.T).amax(-1, keepdim=True)
                shift_RE = (largest_R1 * -scale).expand_as(score_RE)
                torch.addmm(shift_RE, asked_RD, keys_ED.T, alpha=scale, out=score_RE)
                own_GNT = score_RE.view(G, end - start, seen)[:, :, S - T + first :]
                own_GNT.masked_fill_(unseen_TT[start:end, first : seen - S + T], -torch.inf)
                torch.softmax(score_RE, -1, out=score_RE)
                yield _Block(b, k, slice(start, end), asked_RD, keys_ED, values_ED, score_RE)


def attend(
    query_BHTD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    *,
    scale: float,
    own_TT: Tensor | None = None,
) -> Tensor:
    """Attention bfloat16[B, H, T, D] of the last T of S tokens; H a multiple of K.

    own_TT  bool, which of the T tokens see which; they all see the others. None: causal
    """
    out = torch.empty(query_BHTD.shape, dtype=query_BHTD.dtype)
    for block in _blocks(query_BHTD, key_BKSD, value_BKSD, scale, own_TT):
        block.put(out, block.weights_RE @ block.values_ED)
    return out


def gradients(
    grad_BHTD: Tensor,
    query_BHTD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    out_BHTD: Tensor,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries, keys and values, bfloat16 of their shapes, from that of causal `attend`."""
    of_query = torch.empty(query_BHTD.shape, dtype=query_BHTD.dtype)
    # Sums over blocks of queries, and over the heads that share keys.
    of_key, of_value = (torch.zeros(key_BKSD.shape) for _ in range(2))
    for block in _blocks(query_BHTD, key_BKSD, value_BKSD, scale, None):
        weights_RE, seen = block.weights_RE, len(block.keys_ED)
        grad_RD, out_RD = (block.of(part).flatten(0, 1) for part in (grad_BHTD, out_BHTD))
        of_value[block.row, block.head, :seen] += weights_RE.T @ grad_RD
        summed_R1 = (grad_RD.float() * out_RD).sum(-1, keepdim=True).bfloat16()
        score_RE = torch.addmm(-summed_R1, grad_RD, block.values_ED.T)
        score_RE.mul_(weights_RE)
        block.put(of_query, (score_RE @ block.keys_ED).mul_(scale))
        of_key[block.row, block.head, :seen] += (score_RE.T @ block.asked_RD).mul_(scale)
    return of_query, of_key.to(key_BKSD.dtype), of_value.to(value_BKSD.dtype)


def _attend_causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return attend(query, key, value, scale=scale)


def _empty_like_query(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:  # noqa: ARG001
    return torch.empty(query.shape, dtype=query.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    query, key, value, out = ctx.saved_tensors
    return (*gradients(grad, query, key, value, out, scale=ctx.scale), None)


_LIBRARY = library.Library("endprompt", "FRAGMENT")
_LIBRARY.define("matmul_attention(Tensor query, Tensor key, Tensor value, float scale) -> Tensor")
_LIBRARY.impl("matmul_attention", _attend_causal, "CPU")
OPERATOR = torch.ops.endprompt.matmul_attention
"""Causal `attend` of the last T of S tokens, with gradients: one that checkpointing can keep."""
library.register_fake(OPERATOR.default, _empty_like_query, lib=_LIBRARY)
library.register_autograd(OPERATOR.default, _backward, setup_context=_keep, lib=_LIBRARY)


def of_last(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor | None:
    """Causal attention bfloat16[B, T, H, D] of the last T of S tokens; None where SDPA is as fast.

    Under autocast in its dtype, as SDPA.
    """
    if torch.is_autocast_enabled("cpu") and query.device.type == "cpu":
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (part.to(dtype) for part in (query, key, value))
    if not (suits(query) and query.shape[-1] == value.shape[-1]):
        return None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return OPERATOR(query, key, value, scale).transpose(1, 2).contiguous()


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
    """The signature of Transformers' attention interface; returns bfloat16[B, T, H, D]."""
    causal = others.get("is_causal", getattr(module, "is_causal", True)) is not False
    plain = attention_mask is None and not dropout and others.get("position_bias") is None
    if plain and causal and query.shape[2] == key.shape[2] > 1:
        out = of_last(query, key, value, scaling)
        if out is not None:
            return out, None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
    )


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
