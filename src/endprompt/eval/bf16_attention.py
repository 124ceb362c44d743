"""Attention of a chunk in bfloat16 by matmuls, for CPUs with AVX512-BF16.

Torch's flash kernel for CPUs multiplies in float32 there, at a fifth of the speed of bfloat16.
Here one matmul gives the scores of a block of queries, softmax turns them into weights in place (it
computes in float32), and a second matmul sums the values.

Scores are rounded to bfloat16, as in Transformers' eager attention, but with a number near each
query's largest score taken off first. Softmax is the same for any such number, and the scores that
matter are small then, so rounding costs little.

Shape letters: as in `chunk_attention`; N tokens of a block of queries, G query heads that share
keys, R = G x N.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

SCORE_BYTES = 6 * 2**20
"""Of a block: what stays in the CPU's last-level cache."""
LEAST_ROWS = 64
NEAR, FAR = 192, 64
"""Keys whose scores say where a query's largest may be: the last ones and the first ones."""


def suits(query: Tensor) -> bool:
    """Whether this is faster than torch's kernel for queries of this dtype and device."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and _fast_matmuls()


@cache
def _fast_matmuls() -> bool:
    has = torch.cpu.get_capabilities()
    # With AMX torch's own kernel multiplies in bfloat16.
    fast = has.get("avx512_bf16") and not has.get("amx_bf16")
    return bool(fast) and torch.backends.mkldnn.is_available()


def attend(
    query_BHTD: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, *, scale: float, own_TT: Tensor | None
) -> Tensor:
    """Attention float[B, H, T, D] of the last T of S tokens; arguments as in `chunk_attention`."""
    B, H, T, D = query_BHTD.shape
    K, S = key_BKSD.shape[1:3]
    G = H // K
    most = max(SCORE_BYTES // (2 * S), LEAST_ROWS)
    block = max(min(most // G, T), 1)
    scores = query_BHTD.new_empty(G * block * S)
    out = torch.empty_like(query_BHTD).view(B, K, G, T, D)
    query = query_BHTD.reshape(B, K, G, T, D)
    unseen_TT = ~own_TT if own_TT is not None else torch.ones((T, T), dtype=torch.bool).triu(1)
    for b in range(B):
        for k in range(K):
            keys_SD, values_SD = key_BKSD[b, k], value_BKSD[b, k]
            for start in range(0, T, block):
                end = min(start + block, T)
                rows = G * (end - start)
                # Causal: nothing behind the block is looked at.
                first, seen = (start, S - T + end) if own_TT is None else (0, S)
                score_RS = scores[: rows * seen].view(rows, seen)
                own_GNT = score_RS.view(G, end - start, seen)[:, :, S - T + first :]
                asked_RD = query[b, k, :, start:end].reshape(rows, D)
                some_ED = torch.cat([keys_SD[:FAR], keys_SD[max(seen - NEAR, 0) : seen]])
                largest_R1 = (asked_RD @ some_ED.T).amax(-1, keepdim=True)
                shift_RS = (largest_R1 * -scale).expand_as(score_RS)
                torch.addmm(shift_RS, asked_RD, keys_SD[:seen].T, alpha=scale, out=score_RS)
                own_GNT.masked_fill_(unseen_TT[start:end, first : seen - S + T], -torch.inf)
                torch.softmax(score_RS, -1, out=score_RS)
                mixed_RD = score_RS @ values_SD[:seen]
                out[b, k, :, start:end] = mixed_RD.view(G, end - start, D)
    return out.view(B, H, T, D)
