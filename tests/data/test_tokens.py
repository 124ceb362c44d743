"""Tokenised documents are what the tokenizer gives in one go, and are read back unchanged."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from endprompt.data import encoder as encoders
from endprompt.data import parts
from endprompt.data.encoder import Encoder
from endprompt.data.sources import Document
from endprompt.data.tokens import TokenDocuments, tokenise
from endprompt.errors import DataError, TextError

WORDS = st.sampled_from(
    ["the", " quick", " fox", "\n", "\n\n", ".", "7", "für", " ", "x\n", "\t", "é"]
)
TOKENIZERS = ["tokenizer", "bos_tokenizer", "prefix_tokenizer"]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(words=st.lists(WORDS, min_size=1, max_size=60))
def test_pieces_tokenise_as_the_whole_does(request, monkeypatch, name: str, words) -> None:
    """Cutting long documents must not change one token."""
    tokenizer = request.getfixturevalue(name)
    monkeypatch.setattr(encoders, "PIECE_CHARACTERS", 4)
    monkeypatch.setattr(encoders, "BATCH_CHARACTERS", 7)
    text = "".join(words)
    encoder = Encoder(tokenizer)
    assert "".join(encoder.pieces(text)) == text
    (ids,) = encoder([text])
    inside = ids[int(encoder.bos is not None) : -1]
    assert inside.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_long_documents_are_cut_where_that_is_exact(request, monkeypatch) -> None:
    monkeypatch.setattr(encoders, "PIECE_CHARACTERS", 8)
    text = "the quick brown fox\njumps over the lazy dog\n" * 5
    for name, cut in (("tokenizer", True), ("bos_tokenizer", True), ("prefix_tokenizer", False)):
        pieces = list(Encoder(request.getfixturevalue(name)).pieces(text))
        assert (len(pieces) > 5) == cut
    assert len(list(Encoder(request.getfixturevalue("tokenizer")).pieces("x" * 100))) == 1


def test_documents_begin_and_end_as_the_model_expects(tokenizer, bos_tokenizer) -> None:
    end = tokenizer.convert_tokens_to_ids("</s>")
    start = tokenizer.convert_tokens_to_ids("<s>")
    plain = tokenise(["the fox"], tokenizer)
    assert (plain.bos, plain.eos) == (None, end)
    assert plain[0][-1] == end
    assert plain[0][0] != start
    led = tokenise(["the fox"], bos_tokenizer)
    assert (led.bos, led.eos) == (start, end)
    assert led[0].tolist() == [start, *plain[0].tolist()]


def test_settings_that_others_left_in_a_tokenizer_do_not_reach_the_documents(tokenizer) -> None:
    text = "the quick brown fox " * 20
    before = tokenise([text], tokenizer)
    tokenizer(text, truncation=True, max_length=4)
    after = tokenise([text], tokenizer)
    assert np.array_equal(before[0], after[0])
    assert before.tokenizer_digest == after.tokenizer_digest


class SlowTokenizer:
    """A tokenizer without a fast backend: one id a character."""

    eos_token_id = None

    def __init__(self, size: int = 300) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(self.size)}

    def __call__(self, text, add_special_tokens: bool = True) -> dict[str, list]:
        if isinstance(text, str):
            return {
                "input_ids": [1] * add_special_tokens
                + [ord(c) for c in text]
                + [2] * add_special_tokens
            }
        return {"input_ids": [self(t, add_special_tokens)["input_ids"] for t in text]}


def test_a_tokenizer_without_a_fast_backend_works() -> None:
    docs = tokenise(["abc", "d"], SlowTokenizer())
    assert (docs.bos, docs.eos) == (1, 2)
    assert docs[0].tolist() == [1, 97, 98, 99, 2]
    assert Encoder(SlowTokenizer(300)).digest != Encoder(SlowTokenizer(301)).digest


def test_a_tokenizer_without_special_tokens_adds_none() -> None:
    class Bare(SlowTokenizer):
        def __call__(self, text, add_special_tokens: bool = False) -> dict[str, list]:
            del add_special_tokens
            return super().__call__(text, add_special_tokens=False)

    docs = tokenise(["abc"], Bare())
    assert (docs.bos, docs.eos, docs[0].tolist()) == (None, None, [97, 98, 99])


def test_an_id_above_the_vocabulary_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"tokenizer gives id 120 in document 0, above its own .* 110"
    ):
        tokenise(["axe"], SlowTokenizer(110))
    given_ids = Document(None, np.array([3, 500]), "a.jsonl:4", "a.jsonl")
    with pytest.raises(
        DataError, match=r"a.jsonl:4 holds token id 500, above the vocabulary of 300"
    ):
        tokenise([given_ids], SlowTokenizer())


def test_ids_of_a_source_are_taken_as_they_are(tokenizer) -> None:
    ids = np.array([5, 6, 7], dtype=np.int64)
    docs = tokenise([Document(None, ids, "a:1", "a"), Document("fox", None, "a:2", "a")], tokenizer)
    assert docs[0].tolist() == [5, 6, 7]
    assert docs.names == ["a:1", "a:2"]


def test_many_documents_come_out_in_order(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("endprompt.data.tokens.BATCH_CHARACTERS", 40)
    texts = [f"fox number {n} runs" for n in range(50)]
    docs = tokenise(texts, tokenizer)
    assert [tokenizer.decode(docs[n][:-1].tolist()) for n in range(50)] == texts
    assert len(docs) == 50
    assert docs.tokens == docs.lengths.sum() == sum(len(docs[n]) for n in range(50))


def test_nothing_to_tokenise_is_an_error(tokenizer) -> None:
    with pytest.raises(TextError, match="no document to tokenise"):
        tokenise([], tokenizer)


ARRAYS = st.lists(st.lists(st.integers(0, 70000), max_size=8), max_size=8)


@settings(max_examples=100, deadline=None)
@given(arrays=ARRAYS)
def test_arrays_are_read_back(arrays: list[list[int]]) -> None:
    docs = TokenDocuments.from_arrays(arrays)
    assert [docs[i].tolist() for i in range(len(docs))] == arrays
    assert [docs[i - len(docs)].tolist() for i in range(len(docs))] == arrays
    assert docs.lengths.tolist() == [len(ids) for ids in arrays]
    assert docs.lengths.dtype == np.int64
    assert [docs.name(i) for i in range(len(docs))] == docs.names
    again = pickle.loads(pickle.dumps(docs))
    assert again.fingerprint == docs.fingerprint
    with pytest.raises(IndexError):
        docs[len(docs)]


@settings(max_examples=100, deadline=None)
@given(one=ARRAYS, other=ARRAYS)
def test_fingerprints_differ_where_documents_do(one, other) -> None:
    prints = [TokenDocuments.from_arrays(arrays).fingerprint for arrays in (one, other)]
    assert (prints[0] == prints[1]) == (one == other)


def test_what_cannot_be_token_ids_is_refused() -> None:
    with pytest.raises(DataError, match="negative"):
        TokenDocuments.from_arrays([[1, -2]])
    with pytest.raises(DataError, match="float64"):
        TokenDocuments.from_arrays([np.array([1.5])])
    with pytest.raises(ValueError, match="1 names for 2 documents"):
        TokenDocuments.from_arrays([[1], [2]], ["a"])


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_ids_take_two_bytes_where_the_vocabulary_allows(vocabulary: int, dtype) -> None:
    assert parts.dtype_for(vocabulary) == dtype
    assert TokenDocuments.from_arrays([[vocabulary - 1]])[0].dtype == dtype


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(arrays=ARRAYS)
def test_a_part_is_read_back_as_a_view(tmp_path, arrays: list[list[int]]) -> None:
    path = tmp_path / "part.arrow"
    names = [f"ü {n}" for n in range(len(arrays))]
    parts.write(path, [np.array(ids, np.uint32) for ids in arrays], names, np.dtype(np.uint32))
    part = parts.read(path)
    assert list(part.names) == names
    assert part.lengths_N.tolist() == [len(ids) for ids in arrays]
    assert part.values_T.tolist() == [i for ids in arrays for i in ids]
    assert not part.values_T.flags.owndata


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_broken_part_is_an_error_or_is_read_safely(tmp_path, data) -> None:
    path = tmp_path / "part.arrow"
    parts.write(path, [np.arange(9, dtype=np.uint16)] * 5, list("abcde"), np.dtype(np.uint16))
    whole = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=3)) if whole else []:
        whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(whole))
    try:
        part = parts.read(path)
    except DataError as error:
        message = str(error)
    else:
        docs = TokenDocuments([part])
        assert docs.tokens == sum(len(docs[i]) for i in range(len(docs)))
        message = ""
    assert "\n" not in message
    assert not message or message.endswith("run prepare again")


def test_a_missing_part_is_an_error(tmp_path) -> None:
    with pytest.raises(DataError, match=r"part .*none\.arrow is broken"):
        parts.read(tmp_path / "none.arrow")


def test_a_part_of_other_ids_is_an_error(tmp_path) -> None:
    path = tmp_path / "part.arrow"
    parts.write(path, [np.array([1, 2])], ["a"], np.dtype(np.int64))
    with pytest.raises(DataError, match="is broken"):
        parts.read(path)
