"""Tokens counted by words are the tokens of the whole text, or the whole text is tokenised."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruler_tokenizer import write_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from endprompt.errors import ModelError
from endprompt.eval.ruler import TokenCounter, standin
from endprompt.eval.ruler import counting as module
from endprompt.models.tokenizer import load_tokenizer

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(splitter: Any = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on prose with numbers; GPT-2's splitting unless another is given."""
    inner = Tokenizer(models.BPE())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitter is None)
    inner.pre_tokenizer = pre_tokenizers.Sequence([splitter, plain]) if splitter else plain
    inner.decoder = decoders.ByteLevel()
    draw = random.Random(0)
    text = standin.essays(300)["text"].split(". ")
    text += [f"{draw.getrandbits(24)} e-{draw.getrandbits(32):x}..\n\n" for _ in range(300)]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "<|reserved_1|>"],
        show_progress=False,
    )
    inner.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def word_piece() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"])
    inner.train_from_iterator([standin.essays(200)["text"]], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")


@pytest.fixture(scope="module")
def counters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenCounter]:
    folder = tmp_path_factory.mktemp("tokenizers")
    groups = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    return {
        "llama 2": TokenCounter(load_tokenizer(write_tokenizer(folder / "plain"))),
        "joined": TokenCounter(load_tokenizer(write_tokenizer(folder / "joined", joined=True))),
        "gpt 2": TokenCounter(byte_level()),
        "llama 3": TokenCounter(byte_level(groups)),
        "word piece": TokenCounter(word_piece()),
    }


KINDS = ("llama 2", "joined", "gpt 2", "llama 3", "word piece")
WORDS = st.one_of(
    st.sampled_from(
        (
            "of",
            "the",
            "One",
            "VAR",
            "don't",
            "is:",
            "...",
            "12. word",
            "<s>",
            "x</s>",
            "<|reserved_1|>",
            "a\nb",
        )
    ),
    st.integers(0, 10**12).map(str),
    st.uuids().map(str),
    st.text(alphabet="abz09-.:'\"\n\t é日🙂", max_size=12),
    st.text(max_size=6).filter(lambda text: text.isprintable()),
)
TEXTS = st.lists(WORDS, max_size=12).map(" ".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS)
@example(text="of of  <|reserved_1|>  of").via("a special token of digits inside a piece")
def test_count_equals_tokenising_the_whole(
    kind: str, counters: dict[str, TokenCounter], text: str
) -> None:
    counter = counters[kind]
    assert counter.count(text) == counter.whole(text)
    assert counter.count(text) == counter.whole(text), "the second time, from memory"


def test_what_each_tokenizer_allows_is_found(counters: dict[str, TokenCounter]) -> None:
    found = {
        kind: (counter.words_apart, counter.digits_alike) for kind, counter in counters.items()
    }
    assert found["llama 2"] == (True, True)
    assert found["gpt 2"] == (True, False), "trained on numbers: some have tokens of their own"
    assert found["llama 3"][0]
    assert found["word piece"][0]
    assert not found["joined"][0], "one token spans a space"


def test_whole_equals_transformers(counters: dict[str, TokenCounter], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    for text in ("", " x", "Some special magic numbers\n\n12 <s> é"):
        assert counters["llama 2"].whole(text) == len(tokenizer.tokenize(text))


def test_a_tokenizer_in_python_is_asked_for_whole_texts() -> None:
    class Slow:
        def tokenize(self, text: str) -> list[str]:
            return text.split()

    counter = TokenCounter(Slow())
    assert not counter.words_apart
    assert counter.count("three short  words") == 3


def test_memory_of_words_is_bounded(
    counters: dict[str, TokenCounter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEMO_LIMIT", 50)
    counter = pickle.loads(pickle.dumps(counters["llama 2"]))
    text = " ".join(f"w{'abcdefghij'[n % 10] * (n // 10 + 1)}" for n in range(400))
    assert counter.count(text) == counter.whole(text)
    assert len(counter._words) <= 50


def test_a_counter_survives_the_way_to_another_process(counters: dict[str, TokenCounter]) -> None:
    text = "One of the special magic uuids for 12ab-34cd is: 7."
    for counter in counters.values():
        again = pickle.loads(pickle.dumps(counter))
        assert again.count(text) == counter.count(text)
        assert again.words_apart == counter.words_apart


def test_no_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load the tokenizer of") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
