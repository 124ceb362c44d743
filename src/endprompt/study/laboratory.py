"""Studies at scale `lab`: their arms on the laboratory's bases, each run once for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from endprompt.errors import RecipeError
from endprompt.io import records
from endprompt.lab import study as lab
from endprompt.lab.arms import Regime
from endprompt.recipe import Recipe
from endprompt.record import LabResult
from endprompt.study.definition import Arm, Measure, Study
from endprompt.study.numbers import PERCENT, Place, Values

SCALING = "pi"
"""The paper's."""
STEPS = 0.5
"""Part of the laboratory's steps: studies have many arms."""
COSTS = {"seconds": "train_seconds", "flops": "flops"}


class Laboratory:
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
        workers: int,
        budget_seconds: float | None = None,
        progress: Callable[[lab.State], None] | None = None,
    ) -> None:
        """Do what is not done, as many at once as there are workers."""
        total, began = len(self.todo()), time.perf_counter()

        def tell(state: lab.State) -> None:
            if progress:
                done = total - len(self.todo())
                seconds_each = (time.perf_counter() - began) / max(done, 1)
                left = seconds_each * (total - done) if done else None
                progress(lab.State(done, total, state.what, left))

        for group in self.groups():
            spent = time.perf_counter() - began
            if budget_seconds is not None and spent >= budget_seconds:
                return
            lab.run(
                group,
                self._runs,
                self._cache,
                workers=workers,
                budget_seconds=None if budget_seconds is None else budget_seconds - spent,
                progress=tell,
            )

    def results(self, arm: Arm) -> list[dict[str, Any]]:
        """Results of an arm that are there, in the order of the bases."""
        recipe, factor = arm.built(), _factor(arm)
        group = self._group(factor, arm.tokens, (recipe,) if recipe.trained else ())
        paths = [
            group.result(job, self._runs) for job in group.arms() if job.recipe.name == recipe.name
        ]
        return [self._read(path) for path in paths if path.is_file()]

    def everything(self) -> list[dict[str, Any]]:
        """All results that are there, for the laboratory's own page."""
        paths = dict.fromkeys(
            group.result(arm, self._runs) for group in self.groups() for arm in group.arms()
        )
        return [self._read(path) for path in paths if path.is_file()]

    # What `compare` asks

    def values(self, study: Study, arm: Arm, measure: Measure) -> Values:  # noqa: ARG002
        results = self.results(arm)
        if measure.benchmark in COSTS:
            key, trained = (
                COSTS[measure.benchmark],
                [result for result in results if result["trained"]],
            )
            by_seed = {
                result["seed"]: [np.array([result[key] / result["tokens"]])] for result in trained
            }
            return {"target": by_seed} if by_seed else {}
        by_place: Values = {}
        for place in measure.at:
            length = str(self._length(arm, place))
            for result in results:
                if length in result["answers"]:
                    kinds = measure.kinds or tuple(result["answers"][length])
                    by_place.setdefault(place, {})[result["seed"]] = [
                        PERCENT * np.array([right for _, right in result["answers"][length][kind]])
                        for kind in kinds
                    ]
        return by_place

    def _length(self, arm: Arm, place: Place) -> int:
        times = _factor(arm) if place == "target" else place
        return round(times * self._regime.base.window)

    def why_absent(self, measure: Measure) -> str | None:
        """Why the laboratory has no such number."""
        if measure.benchmark not in ("ruler", *COSTS):
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
        if measure.benchmark in COSTS:
            what = {"seconds": "seconds of training by the clock", "flops": "counted operations"}
            return f"{what[measure.benchmark]}, window by 8"
        window = self._regime.base.window
        lengths = ", ".join(
            "the target" if place == "target" else f"{round(place * window):,}" for place in places
        )
        kinds = " and ".join(measure.kinds or self._regime.base.kinds)
        return f"{kinds} questions at {lengths} tokens"

    def origin(self, study: Study, arm: Arm) -> list[dict[str, Any]]:  # noqa: ARG002
        """Recipes and records of an arm's finished runs."""
        return [
            {
                "recipe": result["recipe"],
                "tokens": result["tokens"],
                "provenance": result["provenance"],
            }
            for result in self.results(arm)
        ]


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
