"""What arms gave for a measure: values by length, whichever scale they come from."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from endprompt.lab.summary import DRAWS, Estimate, estimate
from endprompt.study.definition import Arm, Measure, Study

Floats = NDArray[np.float64]
Place = float | Literal["target"]
"""A length as a measure names it: a multiple of the window, or the target."""
Values = dict[Place, dict[int, list[Floats]]]
"""Length, then base (or run), to values in groups: one group a task, each of equal weight."""

PERCENT = 100.0
FEWEST = 5
"""Samples that an interval over samples takes at least."""


class Results(Protocol):
    """The results of one scale."""

    one_model: bool
    """True where an arm is one model: intervals then are over samples, not over bases."""

    def values(self, study: Study, arm: Arm, measure: Measure) -> Values:
        """What is there; lengths that were not asked are left out."""

    def why_absent(self, measure: Measure) -> str | None:
        """Why this scale has no such number; None where it has."""

    def asked(self, measure: Measure, places: list[Place]) -> str:
        """In words, what our number is a mean of."""

    def origin(self, arm: Arm) -> list[dict[str, Any]]:
        """Recipes and records of an arm's finished runs."""


def at_all(values: Values, places: list[Place]) -> dict[int, list[Floats]]:
    """Groups of each base over several lengths; bases that lack one are left out."""
    bases = set.intersection(*(set(values[place]) for place in places)) if places else set()
    return {
        base: [group for place in places for group in values[place][base]] for base in sorted(bases)
    }


def mean_of(bases: list[list[Floats]], *, one_model: bool) -> Estimate:
    """The mean over bases of the mean over groups, with its 95 % interval.

    one_model  the interval is a bootstrap over the samples of each group, else over bases and
               samples; None where there are too few of them
    """
    if not one_model:
        return estimate(bases)
    (groups,) = bases
    mean = float(np.mean([group.mean() for group in groups]))
    if min(map(len, groups)) < FEWEST:
        return Estimate(mean, None, None)
    rng = np.random.default_rng(0)
    drawn = [
        group[rng.integers(len(group), size=(DRAWS, len(group)))].mean(axis=1) for group in groups
    ]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return Estimate(mean, float(low), float(high))


def minus(
    one: dict[int, list[Floats]], other: dict[int, list[Floats]]
) -> list[list[Floats]]:  # fmt: skip
    """Paired differences, base by base, group by group, sample by sample."""
    shared = sorted(one.keys() & other.keys())
    return [
        [a - b for a, b in zip(one[base], other[base], strict=True)] for base in shared
    ]  # fmt: skip
