"""Arms are the shipped recipes: what makes a method stays, amounts are the laboratory's."""

from __future__ import annotations

from pathlib import Path

import pytest

from endprompt.errors import RecipeError
from endprompt.lab import arms
from endprompt.lab.arms import Regime


@pytest.mark.parametrize("scaling", arms.SCALINGS)
@pytest.mark.parametrize("name", [*arms.STANDARD, "cream", "longrecipe", "longlora", "pose+cream"])
def test_every_recipe_becomes_an_arm(name: str, scaling: str) -> None:
    regime = Regime()
    found = arms.adapt(arms.load(name), regime, scaling, factor=8, seed=3)
    assert found.amounts.tokens == regime.steps[scaling] * regime.tokens_per_step
    assert found.training.learning_rate == regime.learning_rate[scaling]
    assert found.training.seed == 3
    assert found.rope.scaling == scaling
    shipped = arms.load(name)
    assert found.training.trainable == shipped.training.trainable
    assert found.training.attention == shipped.training.attention
    for mine, theirs in zip(found.rows.kinds, shipped.rows.kinds, strict=True):
        assert (mine.share, mine.prefix) == (theirs.share, theirs.prefix)
        assert (mine.terminal is None) == (theirs.terminal is None)
        if mine.terminal and theirs.terminal:
            kept = {"recall", "tokens"}
            reads_on = theirs.terminal.cue == "continuation"
            assert mine.terminal.tokens == theirs.terminal.tokens // (4 if reads_on else 1)
            assert mine.terminal.model_dump(exclude=kept) == theirs.terminal.model_dump(
                exclude=kept
            )
            assert mine.terminal.recall.facts == theirs.terminal.recall.facts
            assert mine.terminal.recall.answers_only == theirs.terminal.recall.answers_only


@pytest.mark.parametrize("factor", [4, 16])
def test_all_arms_of_a_factor_see_as_many_tokens(factor: int) -> None:
    regime = Regime()
    amounts = {
        arms.adapt(arms.load(name), regime, "pi", factor=factor, seed=0).amounts.tokens
        for name in ("short", "full")
    }
    assert amounts == {regime.steps["pi"] * regime.tokens_per_step}


def test_a_recipe_of_ones_own_is_an_arm(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("rows: {kinds: [{terminal: {cue: text, text: please, place: random}}]}\n")
    found = arms.adapt(arms.load(str(path)), Regime(), "pi", factor=8, seed=0)
    assert found.name == "mine"
    terminal = found.rows.kinds[0].terminal
    assert terminal is not None
    assert (terminal.cue, terminal.text, terminal.place) == ("text", "please", "random")


def test_an_untrained_recipe_is_no_arm() -> None:
    with pytest.raises(RecipeError, match="are always there"):
        arms.load("pi")


def test_lengths_double_up_to_the_target() -> None:
    assert Regime().questions(8).lengths == (128, 256, 512, 1024)
    assert Regime().questions(6).lengths == (128, 256, 512, 768)
