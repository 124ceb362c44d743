"""Numbers as people write them: a window of 64k tokens, an amount of 1b tokens, 0.5 %, 30m.

Lengths are binary, as windows are named: 64k is 65,536 tokens, 1m is 1,048,576. Amounts of text
are decimal: 24k is 24,000 tokens, 1m a million, 1b a billion.
"""

from __future__ import annotations

import re

from endprompt.errors import RecipeError

BINARY = {"": 1, "k": 1024, "m": 1024**2}
DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def tokens(text: str) -> int:
    """A length in tokens: `65536` or `64k` (64 * 1024). Raises RecipeError.

    >>> tokens("64k"), tokens("1m")
    (65536, 1048576)
    """
    match = re.fullmatch(r"(\d+)([km]?)", text.strip().lower())
    if not match or int(match[1]) == 0:
        raise RecipeError(f"{text!r} is no number of tokens: write 65536 or 64k")
    return int(match[1]) * BINARY[match[2]]


def lengths(text: str) -> list[int]:
    """Rising lengths: `4k,8k,16k`. Raises RecipeError."""
    return sorted({tokens(part) for part in text.split(",") if part.strip()})


def depths(text: str) -> list[float]:
    """Depths in a text, rising: `4` for four evenly spread ones, `0,0.5,1` for those.

    Raises RecipeError.

    >>> depths("4"), depths("1,0")
    ([0.125, 0.375, 0.625, 0.875], [0.0, 1.0])
    """
    try:
        if "," not in text and "." not in text:
            count = int(text)
            values = [(n + 0.5) / count for n in range(count)]
        else:
            values = sorted(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = []
    if not values or not all(0 <= depth <= 1 for depth in values):
        raise RecipeError(f"{text!r}: write a number of depths, or depths from 0 to 1: 0,0.5,1")
    return values


def amount(text: str) -> int:
    """An amount of text in tokens: `200m`, `1b`, `1.5m`. Raises RecipeError.

    >>> amount("24k"), amount("1.5m"), amount("1b"), amount("8_192")
    (24000, 1500000, 1000000000, 8192)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().lower().replace("_", ""))
    number = round(float(match[1]) * DECIMAL[match[2]], 6) if match else 0.0
    if number < 1 or number != int(number):
        raise RecipeError(f"{text!r} is no number of tokens: write 8192, 24k, 200m or 1b")
    return int(number)


def share(text: str) -> float:
    """A share in [0, 1): `0.5%` or `0.005`. Raises RecipeError.

    >>> share("0.5%"), share("0.25")
    (0.005, 0.25)
    """
    number, percent = (text[:-1], 100.0) if text.endswith("%") else (text, 1.0)
    try:
        value = float(number) / percent
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise RecipeError(f"{text!r} is no share below 1: write 0.5% or 0.005")
    return value


def seconds(text: str) -> float:
    """A duration: `90s`, `30m` or `2h`. Raises RecipeError.

    >>> seconds("30m"), seconds("1.5h"), seconds("90s")
    (1800.0, 5400.0, 90.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip().lower())
    if not match:
        raise RecipeError(f"{text!r} is no duration: write 90s, 30m or 2h")
    return float(match[1]) * SECONDS[match[2]]


def duration(value: float) -> str:
    """Seconds as people say them: `40 s`, `12 min`, `2.1 h`.

    >>> duration(39.6), duration(740), duration(7400)
    ('40 s', '12 min', '2.1 h')
    """
    if value < 99.5:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5970 else f"{value / 3600:.1f} h"


def short(value: float) -> str:
    """Three digits and a metric prefix, with a space before it: `12.3 T`."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "
