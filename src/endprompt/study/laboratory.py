"""Studies at scale `lab`: their arms on the laboratory's bases, each run once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from endprompt.compare.progress import Tell
from endprompt.compare.results import Result
from endprompt.errors import RecipeError
from endprompt.io import records
from endprompt.lab import study as lab
from endprompt.lab import summary
from endprompt.lab.arms import Regime
from endprompt.recipe import Recipe
from endprompt.record import LabResult
from endprompt.study.definition import Arm, Measure, Study
from endprompt.study.numbers import PERCENT, Measured, Place, Results

SCALING = "pi"
"""The paper's."""
STEPS = 0.5
"""Part of the laboratory's steps: studies have many arms."""
ASKED = {"seconds": "seconds of training by the clock", "flops": "counted operations"}
"""Costs that the laboratory has, in words."""


class Laboratory(Results):
    """The runs of some studies: what is to be done, and what is there.

    runs   folder that the results of all studies lie in; cache: where bases are kept
    """

    one_model = False

    def __init__(
        self,
        studies: Sequence[Study],
        runs: Path,
        cache: Path,
        *,
        seeds: Sequence[int],
        regime: Regime | None = None,
    ) -> None:
        self._studies, self._runs, self._cache = studies, runs, cache
        self._seeds, self._regime = tuple(seeds), regime or Regime()
        self._read = cache_of_results()

    def groups(self) -> list[lab.Study]:
        """One laboratory study for each target and amount of training, equal arms once."""
        wanted: dict[tuple[int, float], dict[str, Recipe]] = {}
        for study in self._studies:
            for arm in study.arms_at("lab").values():
                recipe = arm.built()
                wanted.setdefault((_factor(arm), arm.tokens), {})[recipe.name] = recipe
        return [
            self._group(factor, tokens, tuple(recipes.values()))
            for (factor, tokens), recipes in wanted.items()
        ]

    def _group(self, factor: int, tokens: float, recipes: tuple[Recipe, ...]) -> lab.Study:
        steps = {SCALING: max(1, round(tokens * STEPS * self._regime.steps[SCALING]))}
        return lab.Study(
            recipes, (SCALING,), (factor,), (), self._seeds, replace(self._regime, steps=steps)
        )

    def todo(self) -> list[str]:
        """Arms whose result is not there."""
        missing = {
            group.result(arm, self._runs): f"{arm.recipe.name} x{arm.factor}, seed {arm.seed}"
            for group in self.groups()
            for arm in group.arms()
            if not group.is_done(arm, self._runs, self._cache)
        }
        return list(missing.values())

    def run(
        self,
        *,
        at_once: int,
        budget_seconds: float | None = None,
        progress: Tell | None = None,
    ) -> None:
        """Do what is not done, so many processes side by side."""
        lab.run_all(
            self.groups(),
            self._runs,
            self._cache,
            at_once=at_once,
            budget_seconds=budget_seconds,
            progress=progress,
        )

    def _paths(self, arm: Arm) -> list[Path]:
        """Files of an arm that are there, in the order of the bases."""
        recipe, factor = arm.built(), _factor(arm)
        group = self._group(factor, arm.tokens, (recipe,) if recipe.trained else ())
        paths = [
            group.result(job, self._runs) for job in group.arms() if job.recipe.name == recipe.name
        ]
        return [path for path in paths if path.is_file()]

    def everything(self) -> list[dict[str, Any]]:
        """All results that are there, for the laboratory's own page."""
        paths = dict.fromkeys(
            group.result(arm, self._runs) for group in self.groups() for arm in group.arms()
        )
        return [self._read(path) for path in paths if path.is_file()]

    # What `compare` asks

    def window(self) -> int:
        return self._regime.base.window

    def results(self, study: Study, arm: Arm) -> list[Result]:  # noqa: ARG002
        return [summary.read(self._read(path)) for path in self._paths(arm)]

    def measured(self, study: Study, arm: Arm, measure: Measure) -> Iterator[tuple[int, Measured]]:
        kinds = measure.kinds or self._regime.base.kinds
        for result in self.results(study, arm):
            yield (
                result.base,
                {
                    place: groups
                    for place in measure.at
                    if (groups := result.groups(kinds, self._length(arm, place), times=PERCENT))
                },
            )

    def _length(self, arm: Arm, place: Place) -> int:
        return round((_factor(arm) if place == "target" else place) * self.window())

    def why_absent(self, measure: Measure) -> str | None:
        """Why the laboratory has no such number."""
        if measure.benchmark not in ("ruler", *ASKED):
            return f"the laboratory has no {measure.benchmark}"
        unknown = [kind for kind in measure.kinds if kind not in self._regime.base.kinds]
        if unknown:
            known = " and ".join(self._regime.base.kinds)
            return f"the laboratory's bases know {known} questions only"
        if measure.benchmark == "ruler" and all(
            place != "target" and place < 1 for place in measure.at
        ):
            return "the laboratory asks at its window and beyond, not inside it"
        return None

    def asked(self, measure: Measure, places: list[Place]) -> str:
        """In words, what our number is a mean of."""
        if measure.benchmark in ASKED:
            return f"{ASKED[measure.benchmark]}, window by 8"
        kinds = " and ".join(measure.kinds or self._regime.base.kinds)
        return f"{kinds} questions at {self.lengths(places)} tokens"


def _factor(arm: Arm) -> int:
    factor = arm.factor("lab")
    if factor != round(factor) or factor < 2:
        raise RecipeError(f"target {factor:g} windows: the laboratory extends by whole numbers")
    return int(factor)


def cache_of_results() -> Callable[[Path], dict[str, Any]]:
    """Reads result files, each once."""

    @cache
    def read(path: Path) -> dict[str, Any]:
        return records.read(path, LabResult).plain()

    return read
