"""Attention masks of rows that jump, for models with local layers.

In a long text a local layer sees the W nearest positions. Transformers makes its mask from indices
of the array, by which the first tokens after a jump would see the end of the prefix, at a distance
that this layer never meets in use. Here the mask is made from positions.

Shape letters: B rows, T tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from endprompt.models import families


def of_row(
    model: Any, position_ids_BT: Tensor, attention_mask_BT: Tensor, visible: Tensor | None = None
) -> Any:
    """What `attention_mask` of a model's forward has to be for rows that may jump.

    attention_mask_BT  int64[B, T], 0 for padding on the right
    visible            bool[B, 1, T, T], which token (last axis) each token may attend to

    Without local layers, what was given: the mask of ones keeps Transformers from taking a jump for
    the border of a document. With them, one mask for each type of layer, as Transformers takes it.
    """
    config = model.config
    if not any(kind == families.LOCAL for kind in getattr(config, "layer_types", None) or ()):
        return attention_mask_BT if visible is None else visible
    from transformers.masking_utils import AttentionMaskInterface

    B, T = position_ids_BT.shape
    span = config.sliding_window

    def all_before(b: Any, h: Any, q: Any, k: Any) -> Any:  # noqa: ARG001
        return k <= q if visible is None else visible[b, 0, q, k]

    def nearest(b: Any, h: Any, q: Any, k: Any) -> Any:
        near = position_ids_BT[b, q] - position_ids_BT[b, k] < span
        return all_before(b, h, q, k) & near

    def mask(function: Any, *, skip: bool) -> Any:
        return AttentionMaskInterface()[config._attn_implementation](
            batch_size=B,
            q_length=T,
            kv_length=T,
            mask_function=function,
            attention_mask=attention_mask_BT.bool() if visible is None else None,
            allow_is_causal_skip=skip,
            dtype=model.dtype,
            device=position_ids_BT.device,
            config=config,
        )

    return {
        families.GLOBAL: mask(all_before, skip=visible is None),
        families.LOCAL: mask(nearest, skip=False),
    }
