"""What arms gave, in one shape for `extend`, `lab` and `study`, and how two arms are compared.

A base is what an arm is run on: a seed, a text, a model; one number names it. Arms are paired where
they share bases and were asked the same there: their differences are taken value by value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from endprompt import distances, stats
from endprompt.stats import Estimate, Floats

Groups = list[Floats]
"""Values in groups of equal weight: one group a task, kind of question or quarter."""
Answers = Sequence[tuple[float, float]]
"""(depth, value) of each question, in order; depth from 0, the start of the text, to 1."""


@dataclass(frozen=True)
class Result:
    """One arm on one base.

    answers            by task and length in tokens
    seconds, flops     of training; peak_memory_bytes where it was measured
    """

    arm: str
    base: int
    trained: bool
    answers: Mapping[tuple[str, int], Answers]
    recipe: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    peak_memory_bytes: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def groups(
        self, tasks: Iterable[str], length: int, *, quarter: int | None = None, times: float = 1.0
    ) -> Groups:
        """Values of each task that was asked at the length, of one quarter by distance or of all.

        quarter  0 the farthest, as `distances.QUARTERS` has them
        """
        asked = [self.answers[task, length] for task in tasks if (task, length) in self.answers]
        values = (
            [value for _, value in answers] if quarter is None
            else distances.by_quarter(answers)[quarter]
            for answers in asked
        )  # fmt: skip
        return [times * np.array(group, float) for group in values]


@dataclass(frozen=True)
class Scores:
    """Values of one arm by one measure: a base, then its groups.

    one_model  the interval is over samples of one run; else over bases and samples
    paired     they are differences of two arms
    """

    bases: Mapping[int, Groups]
    one_model: bool = False
    paired: bool = False

    @property
    def estimate(self) -> Estimate:
        """The mean over bases of the mean over groups, with its 95 % interval."""
        if not self.one_model:
            return stats.of_bases(list(self.bases.values()))
        (groups,) = self.bases.values()
        alone = self.paired and len(groups) == 1
        return stats.of_differences(groups[0]) if alone else stats.of_groups(groups)

    def minus(self, other: Scores) -> Scores | None:
        """Paired differences on the bases that both have; None where there is none."""
        return self._with(other, np.subtract, paired=True)

    def over(self, other: Scores) -> Scores | None:
        """Multiples of the other's values on the bases that both have."""
        return self._with(other, np.divide, paired=False)

    def _with(self, other: Scores, of: Callable[..., Floats], *, paired: bool) -> Scores | None:
        bases = {
            base: [of(a, b) for a, b in zip(groups, other.bases[base], strict=True)]
            for base, groups in self.bases.items()
            if base in other.bases
        }
        return Scores(bases, self.one_model, paired) if bases else None


def joined(some: Sequence[Scores]) -> Scores:
    """Groups over several lengths or tasks; bases that lack one are left out."""
    shared = sorted(set.intersection(*(set(scores.bases) for scores in some)))
    bases = {base: [group for scores in some for group in scores.bases[base]] for base in shared}
    return Scores(bases, some[0].one_model)
