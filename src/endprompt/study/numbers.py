"""What arms gave for a measure: values by length, whichever scale they come from."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from endprompt import stats
from endprompt.stats import Estimate, Floats
from endprompt.study.definition import Arm, Measure, Study

Place = float | Literal["target"]
"""A length as a measure names it: a multiple of the window, or the target."""
Values = dict[Place, dict[int, list[Floats]]]
"""Length, then base (or run), to values in groups: one group a task, each of equal weight."""

PERCENT = 100.0


class Results(Protocol):
    """The results of one scale."""

    @property
    def one_model(self) -> bool:
        """True where an arm is one model: intervals then are over samples, not over bases."""

    def values(self, study: Study, arm: Arm, measure: Measure) -> Values:
        """What is there; lengths that were not asked are left out."""

    def why_absent(self, measure: Measure) -> str | None:
        """Why this scale has no such number; None where it has."""

    def asked(self, measure: Measure, places: list[Place]) -> str:
        """In words, what our number is a mean of."""

    def origin(self, study: Study, arm: Arm) -> list[dict[str, Any]]:
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
    return stats.of_groups(bases[0]) if one_model else stats.of_bases(bases)


def minus(
    first: dict[int, list[Floats]], other: dict[int, list[Floats]]
) -> list[list[Floats]]:  # fmt: skip
    """Paired differences, base by base, group by group, sample by sample."""
    shared = sorted(first.keys() & other.keys())
    return stats.differences([first[base] for base in shared], [other[base] for base in shared])
