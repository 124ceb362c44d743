"""The file of `endprompt eval score`, the same for every suite."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from endprompt.record import Record


class Score(Record):
    """One task at one length, from 0 to 100.

    length     tokens; None where the suite has no lengths
    low, high  95 % interval over samples, where the suite gives one
    detail     what only this suite has: null predictions, categories, scores by length
    """

    task: str
    length: int | None = None
    score: float
    samples: int
    low: float | None = None
    high: float | None = None
    note: str = ""
    detail: dict[str, Any] = Field(default_factory=dict)


class Scores(Record):
    """Scores of some tasks; `averages` as the suite's paper makes them, each named."""

    remedy: ClassVar[str] = "score again"

    suite: str
    scores: list[Score]
    averages: dict[str, Any] | None = None
