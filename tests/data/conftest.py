"""Tiny tokenizers of the three families, made here: nothing is downloaded."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the quick brown fox jumps over the lazy dog and runs on to the river",
    "In the beginning was the word, and the word was with the fox.\nAnd the dog?\n",
    "def f(x):\n    return x + 1\n\n\nprint(f(2024), 'eins zwei drei für zwölf')\n",
]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama-3, SmolLM2."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def with_prefix() -> Tokenizer:
    """As Llama-2: a space is put before every text, so that pieces never tokenise alone."""
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with an end-of-sequence token that it does not add by itself."""
    return wrap(byte_level(), eos_token="</s>")


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, putting a BOS before every text, as Llama-3's does."""
    inner = byte_level()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    return wrap(inner, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def prefix_tokenizer() -> PreTrainedTokenizerFast:
    return wrap(with_prefix(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory) -> str:
    """The same on disk, to be named on a command line."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)
