"""Prepared data in numbers, and its rows piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from endprompt.cues import CueWriter
from endprompt.data.manifest import load
from endprompt.data.prepared import open_documents
from endprompt.data.remote import local
from endprompt.data.rows import TERMINAL, Row, RowSource
from endprompt.models.tokenizer import load_tokenizer
from endprompt.recipe import Recipe

USUAL_TOKENS = 1024
"""Of a row that is shown, where neither user nor recipe says."""


@dataclass(frozen=True)
class RowsHeld:
    """Rows of one length that documents hold.

    documents, share  those that are as long as a row, and their part of all tokens
    uncut, packed     rows that each lie in one document, and rows of all text joined
    """

    documents: int
    share: float
    uncut: int
    packed: int


def rows_held(lengths_N: np.ndarray, row_tokens: int) -> RowsHeld:
    """How many rows documents of these lengths, int[N] in tokens, hold.

    >>> rows_held(np.array([10, 25]), 10)
    RowsHeld(documents=2, share=1.0, uncut=3, packed=3)
    """
    long, tokens = lengths_N[lengths_N >= row_tokens], int(lengths_N.sum())
    return RowsHeld(
        len(long),
        int(long.sum()) / max(1, tokens),
        int((long // row_tokens).sum()),
        tokens // row_tokens,
    )


@dataclass(frozen=True)
class Section:
    """Tokens start .. stop-1 of a row, at positions first .. last without a gap.

    skipped  positions between the token before and this; weight: of its first token in the loss
    """

    start: int
    stop: int
    first: int
    last: int
    skipped: int
    kind: Literal["prefix", "terminal"]
    weight: float


def sections(row: Row, *, by_weight: bool = False) -> list[Section]:
    """A row cut where its positions jump and its kind changes; by_weight: or its loss weight."""
    border = (np.diff(row.positions_T) != 1) | (np.diff(row.segments_T) != 0)
    if by_weight:
        border |= np.diff(row.weights_T) != 0
    edges = [0, *(np.flatnonzero(border) + 1).tolist(), len(row.tokens_T)]
    listed: list[Section] = []
    for start, stop in pairwise(edges):
        first = int(row.positions_T[start])
        listed.append(
            Section(
                start,
                stop,
                first,
                int(row.positions_T[stop - 1]),
                first - listed[-1].last - 1 if listed else first,
                "terminal" if row.segments_T[start] == TERMINAL else "prefix",
                float(row.weights_T[start]),
            )
        )
    return listed


@dataclass(frozen=True)
class PreparedRow:
    """A training row, how often its text was shown before, and the tokenizer to read it with."""

    row: Row
    epoch: int
    tokenizer: Any


def prepared_row(
    data: str | Path,
    recipe: Recipe,
    number: int,
    *,
    target: int,
    tokens: int | None = None,
    split: str = "train",
    tokenizer: str | None = None,
) -> PreparedRow:
    """Row `number` of prepared data, as a recipe makes it for a target.

    data       folder or URL of `endprompt prepare`
    tokens     of a row; None: the recipe's, or `USUAL_TOKENS`
    tokenizer  a model; None: the one that the data was made with
    """
    folder = local(str(data))
    size = tokens or recipe.rows.tokens
    if not isinstance(size, int):
        size = target if size == "target" else USUAL_TOKENS
    loaded = load_tokenizer(tokenizer or load(folder)["tokenizer"]["name"])
    source = RowSource(
        open_documents(folder, split=split, tokenizer=loaded),
        recipe.rows.model_copy(update={"tokens": size}),
        CueWriter(loaded),
        target=target,
        seed=recipe.training.seed,
        count=number,  # rows before this one: `epochs` then says how often the text was shown
    )
    return PreparedRow(source.row(number), int(source.epochs), loaded)
