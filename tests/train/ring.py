"""A stand-in for torch's ring attention, which has kernels for GPUs only."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch.distributed._functional_collectives import all_gather_single_autograd
from torch.distributed.tensor.experimental._context_parallel._load_balancer import (
    _HeadTailLoadBalancer,
)
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

WHOLE = F.scaled_dot_product_attention


def ring(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **others: Any
) -> tuple[Any, None]:
    """Causal attention by the places in the row of the columns that torch gave each rank.

    Keys and values are gathered from all ranks. Where rows are whole (torch has not put its ring
    in the place of SDPA), what Transformers does.
    """
    if F.scaled_dot_product_attention is WHOLE:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **others)
    assert mask is None, "a ring takes no mask"
    mesh = AcceleratorState().device_mesh["cp"]
    ranks, rank, T = mesh.size(), mesh.get_local_rank(), query.shape[2]
    order = _HeadTailLoadBalancer(T * ranks, ranks, "cpu")._generate_indices()[0]
    repeats = query.shape[1] // key.shape[1]

    def gathered(part: Any) -> Any:
        every = all_gather_single_autograd(part.contiguous(), 2, mesh.get_group())
        return every.repeat_interleave(repeats, 1)

    keys, values = gathered(key), gathered(value)
    logits = query @ keys.transpose(2, 3) * scaling
    past = order[None] <= order[rank * T : (rank + 1) * T, None]
    weights = logits.masked_fill(~past, -torch.inf).softmax(-1)
    return (weights @ values).transpose(1, 2).contiguous(), None
