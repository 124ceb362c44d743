"""The made-up language: texts and questions hold what they say of themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from endprompt.lab import language
from endprompt.lab.language import (
    ASSIGN,
    CHAIN,
    COUNTED,
    FIRST,
    KINDS,
    MOST,
    PLUS,
    SECOND,
    VALUE,
    VALUES,
    Corpus,
    document,
    examination,
)

seeds = st.integers(0, 2**32)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, tokens=st.integers(16, 600))
def test_a_document_is_its_seed_and_its_length(seed: int, tokens: int) -> None:
    text = document(tokens, (seed,))
    assert len(text) == tokens
    assert text[0] == language.BOS
    assert text.max() < language.VOCABULARY
    assert (text == document(tokens, (seed,))).all()


def pairs(text: np.ndarray, *, until: int | None = None) -> dict[tuple[int, int], list[int]]:
    """Values that follow each key where it is stated plainly, read from the tokens alone."""
    found: dict[tuple[int, int], list[int]] = {}
    for n in range(1, (until or len(text)) - 2):
        a, b, v = (int(token) for token in text[n : n + 3])
        marked = text[n - 1] in (PLUS, VALUES, CHAIN, ASSIGN)
        if a in FIRST and b in SECOND and v in VALUE and not marked:
            found.setdefault((a, b), []).append(v)
    return found


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_a_pair_that_comes_again_has_the_value_it_had(seed: int) -> None:
    for values in pairs(document(500, (seed,), ("single",))).values():
        assert len(set(values)) == 1


@settings(max_examples=40, deadline=None)
@given(seed=seeds, kind=st.sampled_from(KINDS), tokens=st.sampled_from([128, 200, 512]))
def test_an_examination_ends_in_its_questions(seed: int, kind: language.Kind, tokens: int) -> None:
    exam = examination(kind, tokens, (seed, seed % 7))
    assert len(exam.tokens_T) == tokens
    assert len(exam.questions) == (1 if kind == "count" else language.QUESTIONS)
    for question in exam.questions:
        end = question.start + len(question.answer)
        assert tuple(exam.tokens_T[question.start : end]) == question.answer
        assert 0 <= question.depth < 1


@settings(max_examples=30, deadline=None)
@given(seed=seeds, kind=st.sampled_from(["single", "multikey"]))
def test_a_needle_is_stated_once_before_it_is_asked(seed: int, kind: language.Kind) -> None:
    exam = examination(kind, 256, (seed, 0))
    first = min(question.start for question in exam.questions) - 2
    stated = pairs(exam.tokens_T, until=first)
    for question in exam.questions:
        a, b = (int(token) for token in exam.tokens_T[question.start - 2 : question.start])
        assert stated[a, b] == [question.answer[0]]
        sharing = [key for key in stated if key[1] == b and key != (a, b)]
        if kind == "single":
            assert not sharing
    if kind == "multikey":
        halves = [
            sum(key != asked and (key[0] == asked[0] or key[1] == asked[1]) for key in stated)
            for question in exam.questions
            for asked in [tuple(exam.tokens_T[question.start - 2 : question.start])]
        ]
        assert min(halves) >= 3


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
@example(seed=2563)  # its values are stated in the other order
def test_several_values_are_all_stated(seed: int) -> None:
    exam = examination("multivalue", 256, (seed, 1))
    text = [int(token) for token in exam.tokens_T]
    for question in exam.questions:
        key = text[question.start - 2 : question.start]
        stated = [
            text[n + 3]
            for n in range(len(text) - 3)
            if text[n] == PLUS and text[n + 1 : n + 3] == key
        ]
        assert question.any_order
        assert sorted(stated) == sorted(question.answer)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_a_chain_can_be_followed_in_the_text(seed: int) -> None:
    exam = examination("chain", 256, (seed, 1))
    text = [int(token) for token in exam.tokens_T]
    assigned = {
        tuple(text[n + 1 : n + 3]): tuple(text[n + 3 : n + 5])
        for n in range(len(text) - 4)
        if text[n] == ASSIGN
    }
    stated = pairs(exam.tokens_T)
    for question in exam.questions:
        key = tuple(text[question.start - 2 : question.start])
        followed: list[int] = []
        while key in assigned:
            key = assigned[key]
            followed += key
        assert question.answer == (*followed, stated[key][0])


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_the_word_asked_for_is_the_most_frequent(seed: int) -> None:
    exam = examination("count", 256, (seed, 1))
    *body, mark, word = (int(token) for token in exam.tokens_T)
    assert mark == MOST
    asked = [n + 1 for n, token in enumerate(body) if token == MOST]
    counted = [t for n, t in enumerate(body) if t in COUNTED and n not in asked]
    counts = {one: counted.count(one) for one in counted}
    assert all(counts[word] > count for one, count in counts.items() if one != word)


def test_documents_are_the_same_in_any_order_and_number() -> None:
    few, many = Corpus(2, 128, 5, KINDS), Corpus(4, 128, 5, KINDS)
    assert (few[1] == many[1]).all()
    assert list(few.lengths) == [128, 128]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_a_length_differ(kind: language.Kind) -> None:
    one, other = (examination(kind, 256, (0, n)).tokens_T for n in (0, 1))
    assert (one != other).any()
