"""Distances that a recipe trains, counted on rows as training would make them."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from endprompt import theory
from endprompt.cues import CueWriter
from endprompt.data.rows import Row, RowSource
from endprompt.recipe import Recipe

STOP = 46
"""Id of the full stop in the stand-in text: every twentieth token or so."""


class StandInTokenizer:
    """A tokenizer for when no model is at hand: up to five letters of a word are a token.

    Positions depend on a tokenizer only through the lengths of the cues.
    """

    eos_token_id = 0

    def __call__(self, text: str, *, add_special_tokens: bool = False) -> dict[str, list[int]]:
        """Ids of a text; a mark of punctuation is a token of its own."""
        del add_special_tokens
        pieces = re.findall(r"\s*\w{1,5}|[^\w\s]|\s", text)
        return {"input_ids": [STOP if p == "." else zlib.crc32(p.encode()) for p in pieces]}

    def get_vocab(self) -> dict[str, int]:
        """No token has a name."""
        return {}


class StandInText:
    """Documents of drawn tokens, each as long as a row."""

    eos = 0

    def __init__(self, tokens: int, count: int) -> None:
        self.lengths = np.full(count, tokens, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> NDArray[Any]:
        rng = np.random.default_rng([index, 1])
        tokens = rng.integers(1000, 50000, self.lengths[index])
        tokens[rng.random(len(tokens)) < 0.05] = STOP
        return tokens


def sample_rows(
    recipe: Recipe, *, target: int, count: int, tokenizer: Any = None, seed: int = 0
) -> list[Row]:
    """The first rows of a resolved recipe, on stand-in text; none where nothing is trained."""
    if not recipe.trained:
        return []
    assert isinstance(recipe.rows.tokens, int), "the recipe is resolved first"
    source = RowSource(
        StandInText(recipe.rows.tokens, count),
        recipe.rows,
        CueWriter(tokenizer or StandInTokenizer()),
        target=target,
        seed=seed,
        count=count,
    )
    return [source.row(index) for index in range(count)]


def summary(name: str, label: str, rows: Iterable[Row], *, target: int) -> dict[str, Any]:
    """What a report draws of some rows: pairs at each stretch of distances, for a mean row.

    `intervals` holds [first, last, pairs], cut into an eighth of an octave; `distances` is the
    number of distances of 0 .. target-1 that are trained at all, `longest` the longest of them.
    """
    positions = [row.positions_T for row in rows]
    counts = theory.coverage(positions, target=target)
    found = theory.intervals(counts, theory.octaves(target, parts=8))
    seen = np.flatnonzero(counts)
    return {
        "name": name,
        "label": label,
        "rows": len(positions),
        "distances": len(seen),
        "longest": int(seen.max(initial=0)),
        "intervals": [[first, last, pairs / len(positions)] for first, last, pairs in found],
    }
