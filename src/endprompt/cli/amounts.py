"""Amounts as people write them on a command line: 200m or 1b tokens, 0.5%, 30m of time."""

from __future__ import annotations

import re

import typer

_UNITS = {"": 1, "k": 2**10, "m": 10**6, "b": 10**9}


def budget(text: str) -> int:
    """An amount of tokens; k is 1024 as in the names of windows, m a million, b a billion.

    >>> budget("64k"), budget("1.5m"), budget("1b"), budget("8_192")
    (65536, 1500000, 1000000000, 8192)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().lower().replace("_", ""))
    number = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if number < 1 or number != int(number):
        raise typer.BadParameter(f"{text!r} is no number of tokens: write 8192, 64k, 200m or 1b")
    return int(number)


def share(text: str) -> float:
    """A share in [0, 1): "0.5%" or "0.005".

    >>> share("0.5%"), share("0.25")
    (0.005, 0.25)
    """
    number, percent = (text[:-1], 100.0) if text.endswith("%") else (text, 1.0)
    try:
        found = float(number) / percent
    except ValueError:
        found = -1.0
    if not 0 <= found < 1:
        raise typer.BadParameter(f"{text!r} is no share below 1: write 0.5% or 0.005")
    return found


def seconds(text: str) -> float:
    """A time as people write it, in seconds.

    >>> seconds("30m"), seconds("1.5h"), seconds("90s")
    (1800.0, 5400.0, 90.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip().lower())
    if not match:
        raise typer.BadParameter(f"{text!r} is no time: write 90s, 30m or 2h")
    return float(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]
