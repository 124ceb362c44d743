"""Model families as people download them: the numbers of their configs that an extension reads.

Every one is extended on a tiny random model in the tests, and listed in docs/models.md. Sizes are
those of the named checkpoint, so that its layers can be shown and its cost planned without it.
Factors of LongRoPE are stand-ins of the right number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Known:
    """One family.

    example  a checkpoint that people download
    config   keys of its config.json that say how layers see and rotate, and its sizes
    refused  part of the message with which it is refused; "" where it is extended
    """

    example: str
    model_type: str
    config: dict[str, Any] = field(hash=False)
    refused: str = ""

    def read(self, **changes: Any) -> Any:
        """Transformers' config of it, with some keys changed."""
        import copy

        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        return CONFIG_MAPPING[self.model_type](**copy.deepcopy(self.config) | changes)


def _sizes(
    layers: int, hidden: int, heads: int, kv_heads: int, inner: int, vocabulary: int, window: int,
    theta: float, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": window,
        "rope_theta": theta,
        **more,
    }


def _llama3(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _yarn(factor: float, original: int, **more: Any) -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        **more,
    }


_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + 0.02 * pair for pair in range(48)],
    "long_factor": [1.0 + 1.3 * pair for pair in range(48)],
}
_QWEN_3 = _sizes(36, 4096, 32, 8, 12288, 151936, 40960, 1e6, head_dim=128)
_QWEN_25 = _sizes(28, 3584, 28, 4, 18944, 152064, 32768, 1e6)
_MISTRAL = _sizes(32, 4096, 32, 8, 14336, 32768, 32768, 1e6)

FAMILIES = {
    "Llama 2, SmolLM2": Known(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llama",
        _sizes(30, 576, 9, 3, 1536, 49152, 8192, 1e5, tie_word_embeddings=True),
    ),
    "Llama 3.1, 3.3": Known(
        "meta-llama/Llama-3.1-8B",
        "llama",
        _sizes(32, 4096, 32, 8, 14336, 128256, 131072, 5e5, rope_scaling=_llama3(8.0)),
    ),
    "Llama 3.2": Known(
        "meta-llama/Llama-3.2-1B",
        "llama",
        _sizes(
            16, 2048, 32, 8, 8192, 128256, 131072, 5e5,
            head_dim=64, tie_word_embeddings=True, rope_scaling=_llama3(32.0),
        ),
    ),
    "Vicuna 16K (linear)": Known(
        "lmsys/vicuna-7b-v1.5-16k",
        "llama",
        _sizes(
            32, 4096, 32, 32, 11008, 32000, 16384, 1e4,
            rope_scaling={"type": "linear", "factor": 4.0},
        ),
    ),
    "Qwen 2.5": Known("Qwen/Qwen2.5-7B", "qwen2", _QWEN_25),
    "Qwen 2.5 with YaRN": Known(
        "Qwen/Qwen2.5-7B-Instruct", "qwen2", _QWEN_25 | {"rope_scaling": _yarn(4.0, 32768)}
    ),
    "Qwen 2 with sliding layers": Known(
        "Qwen/Qwen2-7B",
        "qwen2",
        _QWEN_25
        | {
            "max_position_embeddings": 131072,
            "use_sliding_window": True,
            "sliding_window": 32768,
            "max_window_layers": 14,
        },
    ),
    "Qwen 3": Known("Qwen/Qwen3-8B", "qwen3", _QWEN_3),
    "Qwen 3 with YaRN": Known(
        "Qwen/Qwen3-8B", "qwen3", _QWEN_3 | {"rope_scaling": _yarn(4.0, 32768)} | {
            "max_position_embeddings": 131072}
    ),
    "Qwen 3 MoE": Known(
        "Qwen/Qwen3-30B-A3B",
        "qwen3_moe",
        _sizes(
            48, 2048, 32, 4, 6144, 151936, 40960, 1e6,
            head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
        ),
    ),
    "Gemma 2": Known(
        "google/gemma-2-9b",
        "gemma2",
        _sizes(42, 3584, 16, 8, 14336, 256000, 8192, 1e4, head_dim=256, sliding_window=4096),
    ),
    "Gemma 3 1B": Known(
        "google/gemma-3-1b-it",
        "gemma3_text",
        _sizes(
            26, 1152, 4, 1, 6912, 262144, 32768, 1e6,
            head_dim=256, sliding_window=512, rope_local_base_freq=1e4,
        ),
    ),
    "Gemma 3, larger (text)": Known(
        "google/gemma-3-27b-it",
        "gemma3_text",
        _sizes(
            62, 5376, 32, 16, 21504, 262208, 131072, 1e6,
            head_dim=128, sliding_window=1024, rope_local_base_freq=1e4,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
        ),
    ),
    "Mistral": Known(
        "mistralai/Mistral-7B-Instruct-v0.3", "mistral", _MISTRAL | {"sliding_window": None}
    ),
    "Mixtral": Known(
        "mistralai/Mixtral-8x7B-v0.1",
        "mixtral",
        _MISTRAL
        | {
            "vocab_size": 32000,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "sliding_window": None,
        },
    ),
    "Phi-2": Known(
        "microsoft/phi-2",
        "phi",
        _sizes(32, 2560, 32, 32, 10240, 51200, 2048, 1e4, partial_rotary_factor=0.4),
    ),
    "Phi-3": Known(
        "microsoft/Phi-3-mini-128k-instruct",
        "phi3",
        _sizes(
            32, 3072, 32, 32, 8192, 32064, 131072, 1e4,
            sliding_window=262144, original_max_position_embeddings=4096, rope_scaling=_LONGROPE,
        ),
    ),
    "Phi-4": Known(
        "microsoft/phi-4",
        "phi3",
        _sizes(
            40, 5120, 40, 10, 17920, 100352, 16384, 250000.0,
            original_max_position_embeddings=16384,
        ),
    ),
    "Phi-4-mini": Known(
        "microsoft/Phi-4-mini-instruct",
        "phi3",
        _sizes(
            32, 3072, 24, 8, 8192, 200064, 131072, 1e4,
            partial_rotary_factor=0.75, sliding_window=262144, tie_word_embeddings=True,
            original_max_position_embeddings=4096, rope_scaling=_LONGROPE,
        ),
    ),
    "Olmo 2": Known(
        "allenai/OLMo-2-1124-7B",
        "olmo2",
        _sizes(32, 4096, 32, 32, 11008, 100352, 4096, 5e5),
    ),
    "Olmo 3": Known(
        "allenai/Olmo-3-7B-Instruct",
        "olmo3",
        _sizes(
            32, 4096, 32, 32, 11008, 100278, 65536, 5e5,
            sliding_window=4096,
            rope_scaling=_yarn(8.0, 8192, attention_factor=1.2079441541679836,
                               beta_fast=32.0, beta_slow=1.0),
        ),
    ),
    "OLMoE": Known(
        "allenai/OLMoE-1B-7B-0924",
        "olmoe",
        _sizes(
            16, 2048, 16, 16, 1024, 50304, 4096, 1e4, num_experts=64, num_experts_per_tok=8
        ),
    ),
    "gpt-oss": Known(
        "openai/gpt-oss-20b",
        "gpt_oss",
        _sizes(
            24, 2880, 64, 8, 2880, 201088, 131072, 150000.0,
            head_dim=64, sliding_window=128, num_local_experts=32, num_experts_per_tok=4,
            rope_scaling=_yarn(32.0, 4096, beta_fast=32.0, beta_slow=1.0, truncate=False),
        ),
    ),
    "SmolLM3": Known(
        "HuggingFaceTB/SmolLM3-3B",
        "smollm3",
        _sizes(36, 2048, 16, 4, 11008, 128256, 65536, 5e6, tie_word_embeddings=True),
    ),
    "GLM-4": Known(
        "zai-org/GLM-4-9B-0414",
        "glm4",
        _sizes(
            40, 4096, 32, 2, 13696, 151552, 32768, 1e4, head_dim=128, partial_rotary_factor=0.5
        ),
    ),
    "StableLM": Known(
        "stabilityai/stablelm-2-1_6b",
        "stablelm",
        _sizes(24, 2048, 32, 32, 5632, 100352, 4096, 1e4, partial_rotary_factor=0.25),
    ),
    "GPT-NeoX, Pythia": Known(
        "EleutherAI/pythia-1.4b",
        "gpt_neox",
        {
            "num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 16,
            "intermediate_size": 8192, "vocab_size": 50304, "max_position_embeddings": 2048,
            "rotary_pct": 0.25, "rotary_emb_base": 10000.0,
        },
    ),
    "Granite": Known(
        "ibm-granite/granite-3.3-8b-instruct",
        "granite",
        _sizes(
            40, 4096, 32, 8, 12800, 49159, 131072, 1e7,
            embedding_multiplier=12.0, residual_multiplier=0.22,
            attention_multiplier=0.0078125, logits_scaling=16.0,
        ),
    ),
    "Command R": Known(
        "CohereLabs/c4ai-command-r-v01",
        "cohere",
        _sizes(40, 8192, 64, 64, 22528, 256000, 131072, 8e6),
    ),
    "Apertus": Known(
        "swiss-ai/Apertus-8B-2509",
        "apertus",
        _sizes(32, 4096, 32, 8, 21504, 131072, 65536, 12e6, rope_scaling=_llama3(8.0)),
    ),
    "Seed-OSS": Known(
        "ByteDance-Seed/Seed-OSS-36B-Instruct",
        "seed_oss",
        _sizes(64, 5120, 80, 8, 27648, 155136, 524288, 1e7, head_dim=128),
    ),
    "Mistral 7B v0.1": Known(
        "mistralai/Mistral-7B-v0.1",
        "mistral",
        _MISTRAL | {"vocab_size": 32000, "rope_theta": 1e4, "sliding_window": 4096},
        refused="nothing reaches across a jump",
    ),
    "Command R7B (Cohere 2)": Known(
        "CohereLabs/c4ai-command-r7b-12-2024",
        "cohere2",
        _sizes(32, 4096, 32, 8, 14336, 256000, 132096, 5e4, sliding_window=4096),
        refused="have no RoPE: positions mean nothing there",
    ),
    "Qwen3-Next": Known(
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
        "qwen3_next",
        _sizes(48, 2048, 16, 2, 5120, 151936, 262144, 1e7, head_dim=256),
        refused="linear attention and state-space layers see the order of tokens",
    ),
    "Llama 4 (text)": Known(
        "meta-llama/Llama-4-Scout-17B-16E",
        "llama4_text",
        _sizes(48, 5120, 40, 8, 8192, 202048, 10485760, 5e5, num_local_experts=16),
        refused="chunked_attention",
    ),
    "GPT-2": Known(
        "openai-community/gpt2",
        "gpt2",
        {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
        refused="has no RoPE",
    ),
}  # fmt: skip
