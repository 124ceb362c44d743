"""What is kept of the forward pass for the backward pass, and what is made again there.

Whole: each layer keeps its input alone. Otherwise, on a CPU and where it saves much, each layer
keeps its matmuls and its attention, and norms, activations and RoPE are made again: cheap
beside the matmuls, and half of what activations take (docs/log.md). On a GPU, whose memory is
slow beside its matmuls, all are kept.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from endprompt.cost import flops, memory
from endprompt.models import bf16_attention
from endprompt.train import allocator

PRODUCTS = frozenset(
    operator.default
    for operator in (
        bf16_attention.OPERATOR,
        torch.ops.aten.mm,
        torch.ops.aten.addmm,
        torch.ops.aten.bmm,
        torch.ops.aten._grouped_mm,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    )
)

NARROW = 32
"""Matmuls over so few numbers, those of LoRA, are made again."""


def choose(model: Any, *, whole: bool, tokens: int) -> None:
    """Set what the layers of a model keep; models without such a setting keep everything.

    tokens  of a forward pass, rows times their length
    """
    on_cpu = not torch.cuda.is_available()  # where the model will be: the Trainer moves it later
    large = on_cpu and memory.worth_recomputing(flops.read(model.config), tokens)
    if large:
        allocator.map_large_blocks()
    if whole:
        model.activation_checkpointing_enable({"use_reentrant": False})
    elif large and model.supports_gradient_checkpointing:
        inner = getattr(model.config, "intermediate_size", None)
        contexts = partial(create_selective_checkpoint_contexts, partial(_policy, inner))
        model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})


def _policy(inner: int | None, _: Any, operator: Any, *given: Any, **__: Any) -> CheckpointPolicy:
    """Keep matmuls, but the last of a layer, whose result no gradient needs, and narrow ones."""
    summed = given[0].shape[-1] if operator is torch.ops.aten.mm.default else None
    cheap = summed is not None and (summed == inner or summed <= NARROW)
    if cheap or operator not in PRODUCTS:
        return CheckpointPolicy.PREFER_RECOMPUTE
    return CheckpointPolicy.MUST_SAVE
