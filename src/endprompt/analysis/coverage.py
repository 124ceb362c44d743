"""Distances that a recipe trains, counted on rows as training makes them.

Without a model, rows come from the same `RowSource` that trains, over a stand-in text: positions
follow from lengths alone. A stand-in token is a word, a digit or a mark, and one in twenty ends a
sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from endprompt import recipe as recipes
from endprompt import theory
from endprompt.cues import SENTENCE_ENDS, CueWriter
from endprompt.data.rows import Row, RowSource
from endprompt.positions import Ints
from endprompt.recipe import Recipe


def drawn_rows(
    recipe: Recipe, tokens: int, *, target: int, count: int, seed: int = 0
) -> Iterator[Row]:
    """`count` rows of a recipe over a stand-in text, `tokens` physical tokens each.

    None where nothing is trained.
    """
    if not recipe.trained:
        return
    rows = recipe.rows.model_copy(update={"tokens": tokens})
    cues = CueWriter(StandInTokenizer())
    text = StandInText(4 * tokens, cues.sentence_ends())
    source = RowSource(text, rows, cues, target=target, seed=seed, count=count)
    for index in range(count):
        yield source.row(index)


def pairs_by_distance(recipe: Recipe, rows: Iterable[Row], *, target: int) -> Ints:
    """int64[target], query-key pairs of all rows at each distance that attention computes.

    Keys in filled gaps count, as far as a row's tokens ask them.
    """
    rows = list(rows)
    inside = theory.coverage(
        (part for row in rows for part in seen_together(row.positions_T, recipe)), target=target
    )
    between = (
        theory.coverage_between(row.positions_T, row.filling.positions_G, target=target)
        for row in rows
        if row.filling is not None
    )
    return sum(between, start=inside)


def summary(
    name: str, label: str, recipe: Recipe, rows: Iterable[Row], *, target: int
) -> dict[str, Any]:
    """What a report draws of some rows: pairs at each stretch of distances, for a mean row.

    `intervals` holds [first, last, pairs], cut into an eighth of an octave; `distances` is the
    number of distances of 1 .. target-1 that are trained at all, `longest` the longest of them.
    """
    rows = list(rows)
    counts = pairs_by_distance(recipe, rows, target=target)
    counts[0] = 0
    intervals = theory.intervals(counts, theory.octaves(target, parts=8))
    seen = np.flatnonzero(counts)
    return {
        "name": name,
        "label": label,
        "rows": len(rows),
        "distances": len(seen),
        "longest": int(seen.max(initial=0)),
        "intervals": [[first, last, pairs / len(rows)] for first, last, pairs in intervals],
    }


def of_recipe(
    name: str, *, window: int, target: int, row_tokens: int | None = None, rows: int = 64
) -> dict[str, Any]:
    """The `summary` of a recipe by its name or file, on rows over a stand-in text.

    row_tokens  tokens of a row, but of one as long as the target; None: the recipe's
    """
    recipe = recipes.load(name)
    if row_tokens is not None and recipe.rows.tokens != "target":
        recipe = recipe.replace({"rows.tokens": row_tokens})
    recipe = recipe.resolve(window=window, target=target, gpu=True)
    drawn = drawn_rows(recipe, recipe.amounts.row_tokens, target=target, count=rows)
    return summary(name, recipe.name, recipe, drawn, target=target)


def first_gap(intervals: Iterable[Sequence[float]], target: int) -> tuple[int, int] | None:
    """The first stretch of distances 1 .. target-1 that no row has; `intervals` of a `summary`.

    >>> first_gap([[1, 9, 2.0], [20, 31, 1.0]], 32)
    (10, 19)
    """
    expected = 1
    for first, last, _ in intervals:
        if first > expected:
            return expected, int(first) - 1
        expected = int(last) + 1
    return None if expected >= target else (expected, target - 1)


def seen_together(positions_T: Ints, recipe: Recipe) -> list[Ints]:
    """Positions whose tokens attend to one another: the row, or LongLoRA's groups of it."""
    if recipe.training.attention == "full":
        return [positions_T]
    groups = recipe.training.attention_groups
    size = len(positions_T) // groups
    shifts = np.arange(groups) * size + size // 2
    return np.split(positions_T, groups) + np.split(positions_T, shifts)


class StandInTokenizer:
    """Words, digits and marks as tokens; ids are given out as they come."""

    eos_token_id = 0

    def __init__(self) -> None:
        self._ids: dict[str, int] = {"<|end|>": 0, **{mark: n for n, mark in
                                     enumerate(SENTENCE_ENDS, 1)}}  # fmt: skip

    def get_vocab(self) -> dict[str, int]:
        """Ids given out so far."""
        return self._ids

    def __call__(self, text: str, *, add_special_tokens: bool = False) -> Any:  # noqa: ARG002
        words = re.findall(r"\d|[^\W\d]+|\n|[^\w\s]", text)
        ids = [self._ids.setdefault(word, len(self._ids)) for word in words]
        return {"input_ids": ids}


class StandInText:
    """One document of tokens that mean nothing, with the ends of its sentences."""

    eos = 0

    def __init__(self, tokens: int, sentence_ends: NDArray[np.int64]) -> None:
        rng = np.random.default_rng(0)
        self._text = rng.integers(1000, 2000, tokens)
        self._text[rng.random(tokens) < 1 / 20] = sentence_ends[0]
        self.lengths = np.array([tokens], dtype=np.int64)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self._text
