"""Tiny random models of every family, for tests that need a real forward pass."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tiny_config(family: str = "llama", **changes: Any) -> Any:
    """Transformers config of a family at sizes that run in milliseconds; window 128."""
    values = SIZES | changes
    if family in ("gpt_neox", "phi3", "phi", "olmo", "olmo2"):
        values.pop("head_dim")
    if family == "gpt_neox":
        values.pop("num_key_value_heads")
    return CONFIG_MAPPING[family](**values)


def tiny_model(family: str = "llama", *, attention: str = "sdpa", **changes: Any) -> Any:
    """A float32 model of `tiny_config` with seeded random weights, in training mode."""
    torch.manual_seed(0)
    config = tiny_config(family, **changes)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
