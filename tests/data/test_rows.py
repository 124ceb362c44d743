"""Rows: a function of seed and index alone, every recipe's shape, the collator's contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from endprompt import recipe as recipes
from endprompt.cues import CueWriter
from endprompt.data.rows import PREFIX, TERMINAL, RowSource, collate
from endprompt.errors import PositionError, RecipeError, TextError
from endprompt.recipe import Kind, Prefix, Recall, Rows, Terminal

TOKENS, TARGET = 2048, 8192
TRAINED = [name for name in recipes.names() if recipes.load(name).trained]


class Letters:
    """A tokenizer of one token a character; one character in twenty ends a sentence below."""

    eos_token_id = 7

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        return {"input_ids": [ord(letter) for letter in text]}


class Text:
    """Documents of drawn tokens with full stops among them."""

    def __init__(self, *lengths: int) -> None:
        rng = np.random.default_rng(0)
        self.documents = [rng.integers(200, 900, length) for length in lengths]
        for document in self.documents:
            document[rng.random(len(document)) < 0.05] = ord(".")
        self.lengths = np.array(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.documents[index]


TEXT = Text(40_000, 25_000, 9_000)


def source(rows: Rows, *, seed: int = 0, count: int = 200, target: int = TARGET) -> RowSource:
    return RowSource(TEXT, rows, CueWriter(Letters()), target=target, seed=seed, count=count)


def rows_of(name: str, **options: Any) -> RowSource:
    rows = recipes.load(name).rows
    tokens = TARGET if rows.tokens == "target" else TOKENS
    return source(rows.model_copy(update={"tokens": tokens}), **options)


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=15, deadline=None)
@given(index=st.integers(0, 10_000), seed=st.integers(0, 2**31))
def test_every_recipe_makes_rows_of_the_same_length_inside_the_target(
    name: str, index: int, seed: int
) -> None:
    rows = rows_of(name, seed=seed)
    row = rows.row(index)
    kind = rows.kind(index)
    expected = TARGET if recipes.load(name).rows.tokens == "target" else TOKENS
    assert len(row.tokens_T) == len(row.positions_T) == len(row.weights_T) == expected
    assert row.positions_T[0] == 0
    assert (np.diff(row.positions_T) > 0).all()
    assert row.positions_T[-1] < TARGET
    assert (np.diff(row.segments_T.astype(int)) >= 0).all(), "the terminal is last"
    assert (row.segments_T == TERMINAL).any() == (kind.terminal is not None)
    assert row.weights_T.max() > 0
    if kind.terminal is not None and kind.terminal.place in ("end", "split"):
        assert row.positions_T[-1] == TARGET - 1
    if not kind.jumps:
        np.testing.assert_array_equal(row.positions_T, np.arange(expected))


def test_planted_statements_weigh_their_part_of_the_prefix_s_weight() -> None:
    recall = Recall(verbatim=1, facts=3, planted_weight=0)
    kind = Kind(
        prefix=Prefix(layout="pose", weight=0.5), terminal=Terminal(cue="recall", recall=recall)
    )
    row = source(Rows(tokens=TOKENS, kinds=(kind,))).row(3)
    text = (row.tokens_T >= 200) & (row.segments_T == PREFIX)
    planted = (row.tokens_T < 200) & (row.tokens_T != ord(".")) & (row.segments_T == PREFIX)
    assert planted.sum() > 100
    assert set(row.weights_T[text]) == {np.float32(0.5)}
    assert set(row.weights_T[planted]) == {np.float32(0)}


@given(st.lists(st.integers(0, 500), min_size=2, max_size=12), st.sampled_from(TRAINED))
@settings(max_examples=25, deadline=None)
def test_a_row_does_not_depend_on_what_was_asked_before(indices: list[int], name: str) -> None:
    used, fresh = rows_of(name), rows_of(name)
    for index in indices:
        used[index]
    assert same(used[indices[0]], fresh[indices[0]])


@pytest.mark.parametrize("name", ["recall-anchors", "longrecipe"])
def test_rows_are_the_same_whatever_the_batch_size_and_the_workers(name: str) -> None:
    def ids(batch_size: int, workers: int) -> torch.Tensor:
        loader = DataLoader(
            rows_of(name, count=24),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=collate,
            multiprocessing_context="spawn" if workers else None,
        )
        return torch.cat([torch.stack([b["input_ids"], b["position_ids"]]) for b in loader], dim=1)

    alone = ids(1, 0)
    assert torch.equal(alone, ids(8, 0))
    assert torch.equal(alone, ids(4, 2))


def test_other_seeds_and_other_indices_make_other_rows() -> None:
    one, two = rows_of("pose", seed=0), rows_of("pose", seed=1)
    assert not same(one[0], two[0])
    assert not same(one[0], one[1])


@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.25, 0.5, 0.9]))
def test_shares_hold_to_within_a_row_over_any_neighbours(start: int, share: float) -> None:
    kinds = (Kind(share=share), Kind(share=1 - share, prefix=Prefix(layout="pose")))
    rows = source(Rows(tokens=64, kinds=kinds))
    first = sum(rows.kind(start + n) == kinds[0] for n in range(100))
    assert abs(first - 100 * share) <= 2


def test_an_epoch_shows_every_stretch_once_in_an_order_of_its_own() -> None:
    rows = source(Rows(tokens=1000), count=148)
    epochs = [[rows.row(74 * e + n).tokens_T.tobytes() for n in range(74)] for e in range(2)]
    assert len(set(epochs[0])) == 74
    assert set(epochs[0]) == set(epochs[1])
    assert epochs[0] != epochs[1]
    assert rows.epochs == 2.0
    assert rows.left_out_tokens == 0


def test_text_shorter_than_a_row_is_refused() -> None:
    with pytest.raises(TextError, match="rows need documents of 50000 tokens and the longest"):
        source(Rows(tokens=50_000), target=10**6)


def test_a_row_that_does_not_fit_the_target_is_refused() -> None:
    with pytest.raises(PositionError, match="exceed target 60 by"):
        source(Rows(tokens=64, kinds=(Kind(terminal=Terminal(cue="ep3")),)), target=60).row(0)


def test_weights_and_segments_follow_the_recipe() -> None:
    kind = Kind(prefix=Prefix(weight=0.5), terminal=Terminal(cue="ep3", weight=0.25))
    row = source(Rows(tokens=64, kinds=(kind,))).row(0)
    np.testing.assert_array_equal(row.weights_T[row.segments_T == PREFIX], np.float32(0.5))
    np.testing.assert_array_equal(row.weights_T[row.segments_T == TERMINAL], np.float32(0.25))
    assert (row.segments_T == TERMINAL).sum() == len("End.")


def test_longrecipe_cuts_at_the_ends_of_the_rows_own_sentences() -> None:
    rows = rows_of("longrecipe")
    for index in range(20):
        row = rows.row(index)
        cuts = np.flatnonzero(np.diff(row.positions_T) != 1)
        assert len(cuts) > 5
        assert (row.tokens_T[cuts[1:]] == ord(".")).all()


def test_batches_are_padded_on_the_right_and_masked() -> None:
    short, long = rows_of("short")[0], rows_of("endprompt")[0]
    cut = {key: value[:100] for key, value in short.items()}
    batch = collate([cut, long])
    assert batch["input_ids"].shape == (2, TOKENS)
    assert batch["attention_mask"].sum(1).tolist() == [100, TOKENS]
    assert batch["attention_mask"][0, :100].all()
    assert batch["loss_weights"][0, 100:].eq(0).all()
    assert {key: value.dtype for key, value in batch.items()} == {
        "input_ids": torch.int64,
        "position_ids": torch.int64,
        "attention_mask": torch.int64,
        "loss_weights": torch.float32,
        "segments": torch.uint8,
    }


def test_a_mask_of_ones_is_always_there() -> None:
    """Without it Transformers takes the jump for the border between packed sequences."""
    batch = collate([rows_of("endprompt")[0]])
    assert batch["attention_mask"].eq(1).all()


def test_a_range_that_grows_ends_at_the_target_and_begins_at_the_row_s_length() -> None:
    source = rows_of("randomized-yarn")
    ends = np.array([source.row(index).positions_T[-1] for index in range(len(source))])
    tokens = len(source.row(0).tokens_T)
    room = tokens + (np.arange(len(source)) + 1) / len(source) * (TARGET - tokens)
    assert (ends < room).all()
    assert ends[: len(ends) // 8].max() < tokens + (TARGET - tokens) / 8
    assert ends[-4:].max() > 0.8 * TARGET


def octave_weights(made: list[Any], far: float, edges: tuple[int, int]) -> np.ndarray:
    """Weight of each octave by the formula of EXACT, token by token."""
    counts = [0, 0]
    for row in made:
        for position, weight in list(zip(row.positions_T, row.weights_T, strict=True))[1:]:
            if weight > 0 and position >= edges[0]:
                counts[int(position >= edges[1])] += 1
    shares = [count / sum(counts) for count in counts]
    rare = [share**-0.5 for share in shares]
    mean = sum(share * r for share, r in zip(shares, rare, strict=True))
    return np.array([1 + far * r / mean for r in rare])


@pytest.mark.parametrize("name", ["pose", "recall-anchors"])
def test_tokens_far_from_the_start_weigh_more_the_rarer_the_more(name: str) -> None:
    count, far = 40, 0.5
    plain = rows_of(name, count=count)
    rows = plain._rows.model_copy(update={"far_weight": far})
    weighted = source(rows, count=count)
    edges = (TARGET // 4, TARGET // 2)
    expected = octave_weights([plain.row(n) for n in range(count)], far, edges)
    extra, tail = 0.0, 0
    for index in range(count):
        before, after = plain.row(index), weighted.row(index)
        assert np.array_equal(before.positions_T, after.positions_T)
        factor = np.where(before.positions_T >= edges[1], expected[1], expected[0])
        factor = np.where(before.positions_T < edges[0], 1, factor)
        np.testing.assert_allclose(after.weights_T, before.weights_T * factor, rtol=1e-6)
        counted = (before.weights_T > 0) & (before.positions_T >= edges[0])
        extra += float((factor - 1)[counted].sum())
        tail += int(counted.sum())
    assert extra / tail == pytest.approx(far, rel=1e-5)  # the mean over the tail


def test_documents_that_are_kept_apart_count_their_own_context() -> None:
    rows = Rows(tokens=TARGET, kinds=(Kind(),), pack="stream", document_mask=True, far_weight=1.0)

    class Ended(Text):
        eos = 7

    documents = Ended(*[1500] * 20, *[5000] * 8)
    for text in documents.documents:
        text[-1] = 7
    made = RowSource(documents, rows, CueWriter(Letters()), target=TARGET, seed=0, count=20)
    seen = 0
    for index in range(20):
        row = made.row(index)
        start = 0
        for place, token in enumerate(row.tokens_T):
            far = place - start >= TARGET // 4
            assert (row.weights_T[place] > 1) == far
            seen += far
            if token == 7:
                start = place + 1
    assert seen


def test_far_weight_without_far_tokens_is_refused() -> None:
    rows = Rows(tokens=512, kinds=(Kind(),), far_weight=0.15)
    with pytest.raises(RecipeError, match="no token that is trained has 2048 positions before it"):
        source(rows).row(0)
