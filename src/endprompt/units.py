"""Numbers as people write them: 64k tokens, 1b tokens."""

from __future__ import annotations

import re

from endprompt.errors import RecipeError

BINARY = {"": 1, "k": 1024, "m": 1024**2}


def tokens(text: str) -> int:
    """A length in tokens: `65536` or `64k` (64 * 1024). Raises RecipeError.

    >>> tokens("64k")
    65536
    """
    match = re.fullmatch(r"(\d+)([km]?)", text.strip().lower())
    if not match or int(match[1]) == 0:
        raise RecipeError(f"{text!r} is no number of tokens: write 65536 or 64k")
    return int(match[1]) * BINARY[match[2]]


def lengths(text: str) -> list[int]:
    """Rising lengths: `4k,8k,16k`. Raises RecipeError."""
    return sorted({tokens(part) for part in text.split(",") if part.strip()})


def short(value: float) -> str:
    """Three digits and a metric prefix, with a space before it: `12.3 T`."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "
