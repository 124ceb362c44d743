"""A tiny random model and a tiny tokenizer, made in memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from endprompt.eval.engine import Engine

WORDS = "the code of a house and its river is found near old stones where people walk at night"


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 320 tokens; each digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def tiny_model(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """Random weights, large enough that logits differ clearly; no end token."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.4,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **changes,
    }
    if family == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**settings))
    else:
        model = MistralForCausalLM(MistralConfig(**settings, sliding_window=24))
    return model.eval()


def tiny_engine(
    *, family: str = "llama", model: Any = None, chunk: int = 64, name: str = "tiny"
) -> Engine:
    """An engine around a tiny model and the tiny tokenizer."""
    return Engine(
        tiny_model(family) if model is None else model, tiny_tokenizer(), chunk=chunk, name=name
    )
