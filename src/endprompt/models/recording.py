"""Queries, keys and values of every layer as attention gets them, after RoPE.

Through Transformers' attention interface, so that every model that uses it can be looked at,
whatever it does to queries and keys before RoPE. What follows is the family's own attention, with
its sinks and caps.

Shape letters: H heads, T tokens, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

NAME = "endprompt_recording"


@dataclass(frozen=True)
class Recorded:
    """Of a batch's first row: queries [H, T, D], keys and values [K, T, D], scores' factor."""

    query_HTD: Tensor
    key_KTD: Tensor
    value_KTD: Tensor
    scaling: float


@contextmanager
def recording(model: Any) -> Generator[dict[int, Recorded]]:
    """Inside, every forward pass leaves queries, keys and values here by the index of the layer.

    The model is in eval mode meanwhile, and as it was afterwards.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import eager_mask, sdpa_mask

    sdpa = getattr(model, "_supports_sdpa", False)
    recorded: dict[int, Recorded] = {}

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any
    ) -> Any:
        scaling = rest.get("scaling") or query.shape[-1] ** -0.5
        recorded[module.layer_idx] = Recorded(query[0], key[0], value[0], float(scaling))
        own = sdpa_attention_forward
        if not sdpa:  # the family's attention is more than scores and values
            own = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        return own(module, query, key, value, mask, **rest)

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask if sdpa else eager_mask)
    before, training = model.config._attn_implementation, model.training
    model.set_attn_implementation(NAME)
    model.eval()
    try:
        yield recorded
    finally:
        model.set_attn_implementation(before)
        model.train(training)
