"""Results that were made up, and a study of two arms to hold them."""

from __future__ import annotations

from typing import Any

import numpy as np

from endprompt.compare.results import Scores
from endprompt.study.definition import Arm, Measure, Study
from endprompt.study.numbers import Place, Results, Values


class Planted(Results):
    """Results that were made up: arm to share of right answers, by place."""

    def __init__(self, shares: dict[str, dict[Place, float]], *, one_model: bool = False) -> None:
        self.shares, self._one_model = shares, one_model

    @property
    def one_model(self) -> bool:
        return self._one_model

    def values(self, study: Study, arm: Arm, measure: Measure) -> Values:
        rng = np.random.default_rng(1)
        bases = [0] if self.one_model else [0, 1, 2]
        found: Values = {}
        for place, share in self.shares.get(arm.recipe, {}).items():
            drawn = {base: [100.0 * (rng.random(200) < share)] for base in bases}
            found[place] = Scores(drawn, self.one_model)
        return found

    def why_absent(self, measure: Measure) -> str | None:
        return "not here" if measure.benchmark == "longbench" else None

    def asked(self, measure: Measure, places: list[Place]) -> str:
        return f"{places}"

    def origin(self, study: Study, arm: Arm) -> list[dict[str, Any]]:
        return [{"recipe": {"name": arm.recipe}, "provenance": {}}] * (arm.recipe in self.shares)


def study(paper: dict[str, float], **rest: Any) -> Study:
    return Study.model_validate(
        {
            "name": "s", "title": "T", "source": "table 1", "claim": "c", "main": "a",
            "arms": {"a": {"recipe": "pose"}, "b": {"recipe": "short"}},
            "measures": [
                {"name": "m", "table": "x", "benchmark": "ruler", "source": "table 1",
                 "at": [1, 2], "paper": paper}, *rest.pop("more", []),
            ],
        } | rest
    )  # fmt: skip
