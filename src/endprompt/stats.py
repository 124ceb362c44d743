"""Means with intervals: one bootstrap, for values of one run and for values of several bases.

Values come in groups (tasks, kinds of question, quarters) of equal weight, and groups come in
bases (seeds, models). Samples are drawn again with replacement inside their group; with several
bases, bases are drawn again as well, so that the interval covers other bases too. Paired
differences go through the same functions: subtract first, sample by sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Significance = Literal["better", "worse", "not significant"]

DRAWS = 2000
LEVEL = 0.95
FEWEST = 5
"""Samples of one run that an interval takes at least."""
FEWEST_EQUAL = 6
"""Equal differences show no spread; a sign test needs this many of them to reach 95 %."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; None where there are too few values or bases for one."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Signed, with its interval where there is one: `+0.120 [+0.020, +0.210]`."""
        ends = "" if self.low is None else f" [{span(self.low, self.high, '+.3f')}]"
        return f"{self.mean:+.3f}{ends}"

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes zero, else 0."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return 0
        return 1 if self.low > 0 else -1

    @property
    def significance(self) -> Significance:
        """Of a difference: better or worse only where the interval excludes zero."""
        words: dict[int, Significance] = {1: "better", -1: "worse", 0: "not significant"}
        return words[self.sign]


def of_values(values: Sequence[float] | Floats) -> Estimate:
    """Mean of one run's values, float[N], N at least 1; no interval for fewer than `FEWEST`.

    The same values give the same interval.

    >>> of_values([1.0, 0.0])
    Estimate(mean=0.5, low=None, high=None)
    """
    return of_groups([np.asarray(values, np.float64)])


def of_groups(groups: Sequence[Floats]) -> Estimate:
    """Mean over groups of their means, for one run: samples are resampled inside each group."""
    mean = float(np.mean([group.mean() for group in groups]))
    if min(map(len, groups)) < FEWEST:
        return Estimate(mean, None, None)
    return _estimate(mean, _resampled(groups, np.random.default_rng(0)))


def of_bases(bases: Sequence[Sequence[Floats]]) -> Estimate:
    """Mean over bases of the mean over groups: bases and samples are resampled.

    No interval for fewer than two bases.
    """
    mean = float(np.mean([np.mean([group.mean() for group in base]) for base in bases]))
    if len(bases) < 2:
        return Estimate(mean, None, None)
    rng = np.random.default_rng(0)
    drawn = np.stack([_resampled(base, rng) for base in bases])
    picked = rng.integers(len(bases), size=(len(bases), DRAWS))
    return _estimate(mean, drawn[picked, rng.integers(DRAWS, size=picked.shape)].mean(axis=0))


def of_differences(values: Sequence[float] | Floats) -> Estimate:
    """Mean of paired differences of one run.

    Where all differences are equal the bootstrap shows no spread: then `FEWEST_EQUAL` are needed.
    """
    estimate = of_values(values)
    if len(set(values)) == 1 and values[0] != 0 and len(values) < FEWEST_EQUAL:
        return Estimate(estimate.mean, None, None)
    return estimate


def differences(
    first: Sequence[Sequence[Floats]], other: Sequence[Sequence[Floats]]
) -> list[list[Floats]]:
    """Paired differences, one minus other: base by base, group by group, sample by sample."""
    return [
        [a - b for a, b in zip(mine, yours, strict=True)]
        for mine, yours in zip(first, other, strict=True)
    ]


def span(low: float | None, high: float | None, form: str = ".3f") -> str:
    """An interval in print, or why there is none.

    >>> span(0.25, 0.5, ".2f"), span(None, None)
    ('0.25, 0.50', 'too few')
    """
    return "too few" if low is None or high is None else f"{low:{form}}, {high:{form}}"


def _resampled(groups: Sequence[Floats], rng: np.random.Generator) -> Floats:
    """float[DRAWS], the mean over groups of each draw."""
    return np.mean(
        [
            group[rng.integers(len(group), size=(DRAWS, len(group)))].mean(axis=1)
            for group in groups
        ],
        axis=0,
    )


def _estimate(mean: float, means: Floats) -> Estimate:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high))
