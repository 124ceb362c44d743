"""Tiny random models of every family, for tests that need a real forward pass."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from endprompt.models import families, known

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


TINY_WINDOW, TINY_SPAN = 512, 32
"""Window of `tiny_known`, and W of its local layers where they don't see all of it."""
EXTENDED = [name for name, family in known.FAMILIES.items() if not family.refused]
"""Families that are extended."""


def tiny_known(name: str, **changes: Any) -> Any:
    """Config of a known family at sizes that run in milliseconds, scaled as the family is.

    Lengths shrink by one ratio, so that the window is 512 and an old factor is what it was.
    """
    family = known.FAMILIES[name]
    full = family.read()
    window = families.read(full).base.window
    ratio = window // TINY_WINDOW
    values = SIZES | {"num_hidden_layers": 6 if "gemma3" in family.model_type else 4}
    if full.model_type in ("gpt_neox", "phi3", "phi", "olmo2", "olmo3", "olmoe", "stablelm"):
        values.pop("head_dim")
    if full.model_type == "gpt_neox":
        values.pop("num_key_value_heads")
    for key in ("num_experts", "num_local_experts"):
        if key in family.config:
            values |= {key: 4, "num_experts_per_tok": 2}
    if "moe_intermediate_size" in family.config:
        values["moe_intermediate_size"] = 32
    if family.config.get("max_window_layers"):
        values["max_window_layers"] = 2
    for key in ("max_position_embeddings", "original_max_position_embeddings"):
        if key in family.config:
            values[key] = family.config[key] // ratio
    span = family.config.get("sliding_window")
    if span:
        values["sliding_window"] = span // ratio if span >= window else TINY_SPAN
    scaling = copy.deepcopy(family.config.get("rope_scaling"))
    if scaling:
        if "original_max_position_embeddings" in scaling:
            scaling["original_max_position_embeddings"] //= ratio
        pairs = int(16 * family.config.get("partial_rotary_factor", 1.0)) // 2
        for key in ("short_factor", "long_factor"):
            if key in scaling:
                scaling[key] = scaling[key][:pairs]
        values["rope_scaling"] = scaling
    return family.read(**(values | changes))


def tiny_known_model(name: str, *, attention: str | None = None, **changes: Any) -> Any:
    """A float32 model of `tiny_known` with seeded random weights, in eval mode."""
    torch.manual_seed(0)
    config = tiny_known(name, **changes)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
