"""Results by distance: quarters of a length, the farthest named first.

A needle at depth 0 (the start of the text) is asked from the end, so it stands the whole length
away; one at depth 1 stands right before its question. A mean over depths hides that models fail
in the farthest quarter while they are right in the other three.
"""

from __future__ import annotations

from collections.abc import Iterable

QUARTERS = ("farthest quarter", "third quarter", "second quarter", "nearest quarter")
"""By distance from the question, in the order of depth."""
FARTHEST = QUARTERS[0]


def quarter(depth: float) -> int:
    """Index into `QUARTERS` of a depth from 0 (start of the text) to 1 (its end).

    >>> [quarter(depth) for depth in (0.0, 0.24, 0.25, 0.99, 1.0)]
    [0, 0, 1, 3, 3]
    """
    return min(int(4 * depth), 3)


def by_quarter(answers: Iterable[tuple[float, float]]) -> list[list[float]]:
    """Values of (depth, value) pairs in four lists, farthest quarter first; a list may be empty."""
    quarters: list[list[float]] = [[], [], [], []]
    for depth, value in answers:
        quarters[quarter(depth)].append(float(value))
    return quarters
