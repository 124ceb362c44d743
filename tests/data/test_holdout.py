"""Held-out text: never trained on, long enough, the same for the same text."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endprompt.data import holdout
from endprompt.data.tokens import TokenDocuments
from endprompt.errors import TextError


def documents(*lengths: int) -> TokenDocuments:
    """Documents whose tokens are all different."""
    ends = np.cumsum([0, *lengths])
    return TokenDocuments.from_arrays([np.arange(start, stop) for start, stop in pairwise(ends)])


def seen(found: TokenDocuments, pieces: list[holdout.Piece]) -> set[int]:
    view = holdout.View(found, pieces)
    return {int(token) for index in range(len(view)) for token in view[index]}


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=30),
    st.integers(1, 300),
    st.integers(1, 4),
    st.integers(1, 100),
)
def test_no_token_is_both_trained_on_and_held_out(
    lengths: list[int], tokens: int, count: int, row_tokens: int
) -> None:
    found = documents(*lengths)
    try:
        split = holdout.split(found, tokens=tokens, count=count, row_tokens=row_tokens)
    except TextError:
        assert sum(lengths) < tokens + row_tokens or max(lengths) < tokens + row_tokens
        return
    trained = seen(found, split.train)
    assert 1 <= len(split.held_out) <= count
    for pieces in split.held_out:
        held = seen(found, pieces)
        assert len(held) >= tokens
        assert not held & trained
    assert trained


def test_whole_long_documents_come_before_joined_short_ones() -> None:
    split = holdout.split(documents(50, 500, 60, 520, 900, 900), tokens=400, count=2, row_tokens=64)
    assert [len(pieces) for pieces in split.held_out] == [1, 1]


def test_short_documents_are_joined_where_none_is_long() -> None:
    split = holdout.split(documents(*[100] * 20), tokens=350, count=3, row_tokens=64)
    assert [len(pieces) for pieces in split.held_out] == [4]


def test_a_single_document_gives_up_its_end() -> None:
    split = holdout.split(documents(1000), tokens=300, count=2, row_tokens=100)
    assert split.train == [holdout.Piece(document=0, start=0, stop=700)]
    assert split.held_out == [[holdout.Piece(document=0, start=700, stop=1000)]]


def test_text_too_short_names_the_numbers_and_the_remedy() -> None:
    with pytest.raises(TextError, match=r"350 tokens, and the evaluation needs 300 beside"):
        holdout.split(documents(350), tokens=300, count=1, row_tokens=100)


def test_choice_does_not_depend_on_the_order_of_documents() -> None:
    arrays = {f"name {n}": np.full(200 + n, n) for n in range(9)}

    def held(names: list[str]) -> list[str]:
        found = TokenDocuments.from_arrays([arrays[name] for name in names], names=names)
        split = holdout.split(found, tokens=150, count=2, row_tokens=50)
        return [found.name(pieces[0].document) for pieces in split.held_out]

    assert held(sorted(arrays)) == held(sorted(arrays, reverse=True))


def test_view_reads_the_pieces_of_prepared_documents(tmp_path: Path) -> None:
    found = documents(10, 20)
    pieces = [
        holdout.Piece(document=1, start=5, stop=8),
        holdout.Piece(document=0, start=0, stop=2),
    ]
    view = holdout.View(found, pieces)
    assert view.lengths.tolist() == [3, 2]
    assert [view[i].tolist() for i in range(len(view))] == [[15, 16, 17], [0, 1]]
    holdout.save(tmp_path, holdout.Split(train=pieces, held_out=[pieces]))
    assert holdout._load(tmp_path).held_out == [pieces]
