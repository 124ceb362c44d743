"""Terminals: the right words, the right weights, and answers that the prefix holds."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endprompt.cues import CUES, EP1, EP3, CueWriter, plant
from endprompt.errors import RecipeError
from endprompt.recipe import Recall, Terminal


class Letters:
    """A tokenizer of one token a character."""

    eos_token_id: int | None = 7

    def __init__(self, special: tuple[str, ...] = ()) -> None:
        self.vocabulary = {token: 1_000_000 + n for n, token in enumerate(special)}

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}


def read(tokens: np.ndarray) -> str:
    return "".join(chr(token) for token in tokens)


def text(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0x4E00, 0x9FFF, length)


def write(terminal: Terminal, length: int, seed: int = 0) -> Any:
    writer = CueWriter(Letters())
    return writer.write(terminal, text(length, seed), np.random.default_rng(seed))


@pytest.mark.parametrize("name", CUES)
def test_every_cue_fills_the_row_with_its_prefix_and_as_many_terminals_as_anchors(
    name: str,
) -> None:
    words = {key: {"text": "Over.", "pool": ("Over.",)}[key] for key in CUES[name].needs}
    terminal = Terminal(cue=name, anchors=2, place="stratified", **words)
    content = write(terminal, 700)
    assert len(content.terminals) == 2
    assert len(content.prefix_P) + sum(len(part.tokens) for part in content.terminals) == 700
    for part in content.terminals:
        assert len(part.weights) == len(part.tokens)
        assert part.weights.max() == 1.0


@pytest.mark.parametrize(("cue", "words"), [("ep1", EP1), ("ep3", EP3)])
def test_fixed_cues_are_the_papers_words_with_their_weight(cue: Any, words: str) -> None:
    content = write(Terminal(cue=cue, weight=0.3), 200)
    (segment,) = content.terminals
    assert read(segment.tokens) == words
    np.testing.assert_array_equal(segment.weights, np.float32(0.3))
    assert segment.weights.dtype == np.float32
    np.testing.assert_array_equal(content.prefix_P, text(200)[: 200 - len(words)])


def test_ep2_is_the_end_of_turn_token_or_the_end_of_sequence() -> None:
    assert CueWriter(Letters(("<|im_end|>",))).end_of_turn() == 1_000_000
    assert CueWriter(Letters(("<|im_end|>", "<|eot_id|>"))).end_of_turn() == 1_000_001
    assert CueWriter(Letters()).end_of_turn() == 7
    content = write(Terminal(cue="ep2"), 20)
    np.testing.assert_array_equal(content.terminals[0].tokens, [7])
    without = Letters()
    without.eos_token_id = None
    with pytest.raises(RecipeError, match="'ep2' needs an end-of-turn token"):
        CueWriter(without).end_of_turn()


def test_text_and_pool_write_what_they_hold() -> None:
    assert read(write(Terminal(cue="text", text="Stop."), 50).terminals[0].tokens) == "Stop."
    pool = ("One.", "Two!", "Three?")
    seen = {
        read(write(Terminal(cue="pool", pool=pool), 50, seed).terminals[0].tokens)
        for seed in range(40)
    }
    assert seen == set(pool)


def test_continuation_is_the_documents_own_text_cut_in_anchors() -> None:
    content = write(Terminal(cue="continuation", tokens=8, anchors=3, place="stratified"), 100)
    whole = np.concatenate([content.prefix_P, *(s.tokens for s in content.terminals)])
    np.testing.assert_array_equal(whole, text(100))
    assert [len(segment.tokens) for segment in content.terminals] == [8, 8, 8]


terminals = st.builds(
    Terminal,
    cue=st.sampled_from(["ep1", "ep3", "recall", "continuation"]),
    place=st.just("stratified"),
    anchors=st.integers(1, 3),
    recall=st.builds(Recall, verbatim=st.integers(1, 3), facts=st.integers(0, 2)),
)


@given(terminals, st.integers(0, 1000))
def test_prefix_and_terminals_fill_the_row(terminal: Terminal, seed: int) -> None:
    content = write(terminal, 2500, seed)
    assert len(content.terminals) == terminal.anchors
    lengths = [len(segment.tokens) for segment in content.terminals]
    assert len(content.prefix_P) + sum(lengths) == 2500
    assert all(len(s.weights) == len(s.tokens) for s in content.terminals)
    again = write(terminal, 2500, seed)
    np.testing.assert_array_equal(content.prefix_P, again.prefix_P)


@given(st.integers(0, 200))
def test_what_recall_trains_stands_in_the_prefix(seed: int) -> None:
    """Every stretch of trained tokens is an answer, and the prefix holds it word for word."""
    content = write(Terminal(cue="recall", recall=Recall(verbatim=2, facts=2)), 1500, seed)
    (segment,) = content.terminals
    prefix = read(content.prefix_P)
    trained = segment.weights > 0
    runs = np.split(np.arange(len(trained)), np.flatnonzero(np.diff(trained)) + 1)
    answers = [read(segment.tokens[run]) for run in runs if trained[run[0]]]
    assert len(answers) == 4
    assert all(answer in prefix for answer in answers)
    numbers = re.findall(r"Which number opens (.*?)\? (\d+)", read(segment.tokens))
    assert len(numbers) == 2
    for thing, number in numbers:
        assert f"The number that opens {thing} is {number}." in prefix


def test_recall_quotes_go_on_where_the_prefix_goes_on() -> None:
    content = write(Terminal(cue="recall", recall=Recall(verbatim=1)), 800)
    quote = re.fullmatch(r'\n"\.\.\.(.*)\.\.\."', read(content.terminals[0].tokens), re.DOTALL)
    assert quote is not None
    assert quote[1] in read(content.prefix_P)
    assert 8 + 16 <= len(quote[1]) <= 12 + 24


def test_questions_weigh_too_unless_answers_only() -> None:
    both = write(Terminal(cue="recall", recall=Recall(verbatim=1, answers_only=False)), 800)
    assert (both.terminals[0].weights > 0).all()
    answers = write(Terminal(cue="recall", recall=Recall(verbatim=1)), 800)
    assert 0 < (answers.terminals[0].weights > 0).mean() < 1


@pytest.mark.parametrize(
    ("terminal", "length", "message"),
    [
        (Terminal(cue="ep1"), 20, "rows of 20 tokens leave 0 for the prefix beside terminals of"),
        (Terminal(cue="ep3"), 4, "rows of 4 tokens leave 0 .* needs 1: raise rows.tokens"),
        (Terminal(cue="recall"), 20, "rows of 20 tokens leave .* raise rows.tokens to"),
    ],
)
def test_rows_too_short_for_their_terminal_are_refused(
    terminal: Terminal, length: int, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        write(terminal, length)


@pytest.mark.parametrize("length", [120, 160, 256, 400])
def test_a_recall_terminal_sizes_itself_to_a_short_row_and_says_so(
    length: int, caplog: pytest.LogCaptureFixture
) -> None:
    wide = Terminal(cue="recall", anchors=2, place="stratified", recall=Recall(facts=8, verbatim=8))
    content = write(wide, length)
    assert len(content.prefix_P) + sum(len(s.tokens) for s in content.terminals) == length
    assert all((segment.weights > 0).any() for segment in content.terminals)
    (said,) = [one.getMessage() for one in caplog.records]
    assert f"rows of {length} tokens hold" in said
    assert "questions of the recall terminal: rows.tokens" in said


def test_a_row_that_holds_all_questions_is_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    write(Terminal(cue="recall"), 2000)
    assert caplog.records == []


@given(st.integers(0, 50), st.lists(st.integers(1, 9), max_size=4), st.integers(0, 99))
def test_planting_keeps_the_text_and_every_statement_whole(
    length: int, sizes: list[int], seed: int
) -> None:
    body = np.arange(length)
    statements = [np.full(size, -1 - n) for n, size in enumerate(sizes)]
    planted, is_planted = plant(body, statements, np.random.default_rng(seed))
    np.testing.assert_array_equal(is_planted, planted < 0)
    np.testing.assert_array_equal(planted[planted >= 0], body)
    for n, size in enumerate(sizes):
        where = np.flatnonzero(planted == -1 - n)
        np.testing.assert_array_equal(where, np.arange(where[0], where[0] + size))


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_planted_statements_have_their_own_weight_and_the_text_keeps_its(weight: float) -> None:
    recall = Recall(verbatim=0, facts=4, planted_weight=weight)
    content = write(Terminal(cue="recall", recall=recall), 1200)
    own = content.prefix_P >= 0x4E00
    assert read(content.prefix_P[~own]).count("The number that opens") == 4
    np.testing.assert_array_equal(content.weights_P, np.where(own, 1, weight).astype(np.float32))


def test_sentence_ends_are_single_tokens_behind_a_word() -> None:
    ends = CueWriter(Letters()).sentence_ends()
    assert {chr(end) for end in ends} == {".", "!", "?", "\n"}
