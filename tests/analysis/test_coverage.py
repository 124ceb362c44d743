"""Distances of a recipe are those of the rows that training makes."""

from __future__ import annotations

from typing import Any

import pytest

from endprompt import recipe as recipes
from endprompt import theory
from endprompt.analysis import coverage
from endprompt.cues import EP1
from endprompt.data.rows import gap_pairs

WINDOW, TARGET = 1024, 4096


def summary(name: str, count: int = 24) -> dict[str, Any]:
    recipe = recipes.load(name).replace({"rows.tokens": WINDOW})
    recipe = recipe.resolve(window=WINDOW, target=TARGET, gpu=False)
    rows = coverage.drawn_rows(recipe, recipe.amounts.row_tokens, target=TARGET, count=count)
    return coverage.summary(name, name, recipe, rows, target=TARGET)


def test_the_papers_rows_train_what_the_paper_says() -> None:
    found = summary("endprompt")
    terminal = len(coverage.StandInTokenizer()(EP1)["input_ids"])
    exact = theory.anchored(WINDOW - terminal, terminal, target=TARGET)
    assert found["distances"] == sum(last - first + 1 for first, last in exact.observed) - 1
    assert found["longest"] == TARGET - 1


def test_plain_rows_end_at_their_own_length() -> None:
    found = summary("short")
    assert (found["distances"], found["longest"]) == (WINDOW - 1, WINDOW - 1)
    assert sum(pairs for *_, pairs in found["intervals"]) == WINDOW * (WINDOW - 1) / 2


@pytest.mark.parametrize("name", recipes.names())
def test_every_shipped_recipe_can_be_drawn(name: str) -> None:
    recipe = recipes.load(name)
    if recipe.rows.tokens != "target":
        recipe = recipe.replace({"rows.tokens": WINDOW})
    recipe = recipe.resolve(window=WINDOW, target=TARGET, gpu=False)
    rows = list(coverage.drawn_rows(recipe, recipe.amounts.row_tokens, target=TARGET, count=4))
    assert bool(rows) == recipe.trained
    if rows:
        found = coverage.summary(name, name, recipe, rows, target=TARGET)
        parts = [part for row in rows for part in coverage.seen_together(row.positions_T, recipe)]
        pairs = sum(len(part) * (len(part) - 1) / 2 for part in parts)
        pairs += len(rows) * gap_pairs(rows)
        assert sum(n for *_, n in found["intervals"]) == pytest.approx(pairs / len(rows))
