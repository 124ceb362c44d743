"""Rows show the text they should, whole, once an epoch, whoever asks and in whatever order."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endprompt.data.packing import best_fit, stretches
from endprompt.data.tokens import TokenDocuments
from endprompt.errors import TextError

BOS, EOS = 1, 2
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=30)
PACKS = ["none", "documents", "stream"]


def documents(lengths: list[int], bos: int | None = None) -> TokenDocuments:
    """Documents whose ids are all different, ending with EOS, beginning with `bos` if given."""
    start, arrays = 10, []
    for length in lengths:
        ids = np.arange(start, start + length)
        if bos is not None:
            ids[0] = bos
        if length > 1:
            ids[-1] = EOS
        arrays.append(ids)
        start += length
    return TokenDocuments.from_arrays(arrays, bos=bos, eos=EOS)


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("pack", PACKS)
@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, tokens=st.integers(2, 40), seed=st.integers(0, 3))
def test_an_epoch_shows_each_token_once(pack, bos, lengths, tokens: int, seed: int) -> None:
    docs = documents(lengths, bos)
    try:
        rows = stretches(docs, tokens, seed, pack)
    except TextError:
        assert pack == "documents" or max(lengths) < tokens
        return
    for epoch in range(2):
        shown = [rows[epoch * len(rows) + i] for i in range(len(rows))]
        assert all(len(row) <= tokens and row.dtype == np.int64 for row in shown)
        if pack != "documents":
            assert all(len(row) == tokens for row in shown)
        if bos is not None:
            assert all(row[0] == bos for row in shown)
        seen = Counter(np.concatenate(shown).tolist())
        own = {i: n for i, n in seen.items() if i >= 10}
        repeated = sum(n - 1 for n in own.values())
        # a stream's row that starts with a document's own BOS shows the next row's first token
        assert repeated == 0 if pack != "stream" or bos is None else repeated <= len(rows)
        everything = {i for n in range(len(docs)) for i in docs[n].tolist()}
        assert set(own) <= everything
        if bos is None:
            assert sum(seen.values()) + rows.left_out_tokens == docs.tokens


@pytest.mark.parametrize("pack", PACKS)
@given(lengths=LENGTHS, seed=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_row_depends_on_seed_and_index_alone(pack: str, lengths, seed: int) -> None:
    docs = documents([*lengths, 50])
    one, other = stretches(docs, 20, seed, pack), stretches(docs, 20, seed, pack)
    indices = list(range(3 * len(one)))
    forwards = {i: one[i].tolist() for i in indices}
    shuffled = np.random.default_rng(0).permutation(indices).tolist()
    assert {i: other[i].tolist() for i in shuffled} == forwards


@pytest.mark.parametrize("pack", PACKS)
def test_epochs_and_seeds_are_shuffled_differently(pack: str) -> None:
    docs = documents([33] * 40)
    rows = stretches(docs, 16, 0, pack)

    def order(rows, epoch: int) -> list[list[int]]:
        return [rows[epoch * len(rows) + i].tolist() for i in range(len(rows))]

    assert order(rows, 0) != order(rows, 1)
    assert order(rows, 0) != order(stretches(docs, 16, 1, pack), 0)
    if pack != "stream":  # which joins documents anew
        assert sorted(order(rows, 0)) == sorted(order(rows, 1))


def test_documents_stay_whole_where_they_fit() -> None:
    lengths = [7, 3, 10, 25, 4, 6, 1, 9]
    docs = documents(lengths)
    rows = stretches(docs, 10, 0, "documents")
    shown = [rows[i].tolist() for i in range(len(rows))]
    for n, length in enumerate(lengths):
        whole = docs[n].tolist()
        if length <= 10:
            assert any(row[i : i + length] == whole for row in shown for i in range(len(row))), (
                f"document of {length} was cut"
            )
    assert rows.left_out_tokens == 0


def test_a_row_that_starts_inside_a_document_is_lent_its_bos() -> None:
    docs = documents([26], BOS)
    for pack in ("none", "stream"):
        rows = stretches(docs, 9, 0, pack)
        shown = sorted((rows[i].tolist() for i in range(len(rows))), key=lambda row: row[1])
        assert shown == [[1, *range(11, 19)], [1, *range(19, 27)], [1, *range(27, 35)]]


def test_a_stream_does_not_put_two_bos_beside_each_other() -> None:
    docs = documents([9, 8, 12], BOS)
    for seed in range(10):
        rows = stretches(docs, 9, seed, "stream")
        for i in range(len(rows)):
            assert rows[i][:2].tolist() != [BOS, BOS]


def test_text_too_short_says_by_how_much_and_what_helps() -> None:
    docs = documents([5, 7])
    with pytest.raises(TextError, match=r"documents of 20 tokens and the longest of 2 has 7.*pack"):
        stretches(docs, 20, 0)
    for pack in ("documents", "stream"):
        with pytest.raises(TextError, match=r"too short.*lower rows.tokens$"):
            stretches(documents([3]), 20, 0, pack)  # type: ignore[arg-type]
    with pytest.raises(TextError, match="too short"):
        stretches(TokenDocuments.from_arrays([]), 20, 0)
    with pytest.raises(TextError, match="no room for text"):
        stretches(documents([5], BOS), 1, 0)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), max_size=60),
    capacity=st.integers(20, 30),
    seed=st.integers(0, 5),
)
def test_best_fit_puts_each_item_where_it_leaves_the_least_room(lengths, capacity, seed) -> None:
    """Beside the textbook's algorithm, one item at a time."""
    bins, filled = best_fit(np.array(lengths, np.int64), capacity, np.random.default_rng(seed))
    assert np.bincount(bins, weights=lengths, minlength=len(filled)).tolist() == filled.tolist()
    assert (filled <= capacity).all()
    assert (filled > 0).all()
    textbook: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [n for n, held in enumerate(textbook) if held + length <= capacity]
        if fitting:
            textbook[max(fitting, key=lambda n: textbook[n])] += length
        else:
            textbook.append(length)
    assert sorted(filled.tolist()) == sorted(textbook)


def test_a_billion_tokens_are_indexed_in_seconds() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(6.3, 1.2, 1_000_000).astype(np.int64), 1, 200_000)

    class Lengths:
        bos = None

        def __init__(self) -> None:
            self.lengths = lengths

        def __len__(self) -> int:
            return len(lengths)

        def __getitem__(self, index: int) -> np.ndarray:
            return np.zeros(lengths[index], np.uint16)

    began = time.process_time()
    rows = stretches(Lengths(), 8192, 0, "documents")
    assert time.process_time() - began < 20
    assert len(rows) * 8192 < lengths.sum() * 1.001  # nothing is wasted
    assert len(rows[12345]) <= 8192
