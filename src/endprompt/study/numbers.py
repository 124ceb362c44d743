"""What arms gave for a measure, whichever scale they come from, and what they were run with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np

from endprompt.compare.results import Groups, Result, Scores
from endprompt.study.definition import Arm, Measure, Study

Place = float | Literal["target"]
"""A length as a measure names it: a multiple of the window, or the target."""
Measured = dict[Place, Groups]
"""Of one arm on one base, by length."""
Values = dict[Place, Scores]
"""Of one arm on all its bases, by length; lengths that were not asked are left out."""

PERCENT = 100.0
COSTS = ("seconds", "flops", "memory")
"""Measures of training itself."""


class Results(Protocol):
    """The results of one scale."""

    @property
    def one_model(self) -> bool:
        """True where an arm is one model: intervals then are over samples, not over bases."""

    def results(self, study: Study, arm: Arm) -> list[Result]:
        """What is there of an arm, base by base."""

    def measured(self, study: Study, arm: Arm, measure: Measure) -> Iterator[tuple[int, Measured]]:
        """Base by base, values of a measure that is asked of models."""

    def window(self) -> int:
        """Of the base, in tokens."""

    def why_absent(self, measure: Measure) -> str | None:  # noqa: ARG002
        """Why this scale has no such number; None where it has."""
        return None

    def values(self, study: Study, arm: Arm, measure: Measure) -> Values:
        """What is there; lengths that were not asked are left out."""
        if measure.benchmark in COSTS:
            costs = {
                result.base: [np.array([cost(result, measure.benchmark)])]
                for result in self.results(study, arm)
                if result.trained
            }
            return {"target": Scores(costs, self.one_model)} if costs else {}
        by_place: dict[Place, dict[int, Groups]] = {}
        for base, placed in self.measured(study, arm, measure):
            for place, groups in placed.items():
                by_place.setdefault(place, {})[base] = groups
        return {place: Scores(bases, self.one_model) for place, bases in by_place.items()}

    def asked(self, measure: Measure, places: list[Place]) -> str:
        """In words, what our number is a mean of."""
        if measure.benchmark in COSTS:
            return "the training runs themselves"
        if measure.benchmark in ("longbench", "short"):
            return ", ".join(measure.tasks) or "all English data sets"
        everything = "all 13 tasks" if measure.benchmark == "ruler" else measure.benchmark
        quarter = f", {measure.quarter} quarter" if measure.quarter else ""
        what = ", ".join(measure.tasks) or everything
        return f"{what} at {self.lengths(places)} tokens{quarter}"

    def lengths(self, places: list[Place]) -> str:
        """Lengths in words."""
        return ", ".join(
            "the target" if place == "target" else f"{round(place * self.window()):,}"
            for place in places
        )

    def origin(self, study: Study, arm: Arm) -> list[dict[str, Any]]:
        """Recipes and records of an arm's finished runs."""
        return [
            {"recipe": result.recipe, "tokens": result.tokens, "provenance": result.provenance}
            for result in self.results(study, arm)
        ]


def cost(result: Result, what: str) -> float:
    """Seconds or operations per token of training, or the peak of memory in GB."""
    if what == "memory":
        return (result.peak_memory_bytes or 0) / 1e9
    return getattr(result, what) / result.tokens
