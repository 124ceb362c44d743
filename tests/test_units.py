"""Numbers on the command line: lengths are binary, amounts decimal, everything else refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from endprompt import units
from endprompt.errors import RecipeError


def test_a_length_is_binary_and_an_amount_decimal() -> None:
    assert (units.tokens("1m"), units.amount("1m")) == (1_048_576, 1_000_000)
    assert (units.tokens("24k"), units.amount("24k")) == (24_576, 24_000)


@pytest.mark.parametrize(
    ("read", "texts"),
    [
        (units.tokens, ["", "k", "-1", "0", "1.5k", "1b", "64 k"]),
        (units.amount, ["", "k", "-1", "1.5", "0", "1g", "1.00001k"]),
        (units.share, ["x", "-1%", "100%", "nan", ""]),
        (units.seconds, ["", "30", "m", "-1s", "1d"]),
    ],
)
def test_what_is_no_number_is_refused(read: Callable[[str], object], texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(RecipeError, match="write"):
            read(text)


@pytest.mark.parametrize("verb", [["plan"], ["prepare"]])
def test_help_says_which_amounts_are_decimal(verb: list[str], capsys: object) -> None:
    from endprompt.cli.app import run

    run([*verb, "--help"])
    assert "m a million" in " ".join(capsys.readouterr().out.split())  # type: ignore[attr-defined]
