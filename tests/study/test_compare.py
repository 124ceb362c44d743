"""What is said of signs: right where they are planted, silent where the interval holds zero."""

from __future__ import annotations

import numpy as np
import pytest
from planted import Planted, study

from endprompt.compare.results import Scores
from endprompt.stats import Estimate
from endprompt.study import compare
from endprompt.study.definition import Arm, Measure, Study
from endprompt.study.numbers import Values


@pytest.mark.parametrize("one_model", [False, True])
@pytest.mark.parametrize(
    ("ours", "paper", "word"),
    [
        ((0.9, 0.2), (60, 40), "agrees"),
        ((0.9, 0.2), (40, 60), "disagrees"),
        ((0.5, 0.5), (40, 60), "not significant"),
    ],
)
def test_signs_are_told_as_planted(
    ours: tuple[float, float], paper: tuple[float, float], word: str, one_model: bool
) -> None:
    results = Planted(
        {"pose": {1: ours[0], 2: ours[0]}, "short": {1: ours[1], 2: ours[1]}}, one_model=one_model
    )
    found = compare.record_of(study({"a": paper[0], "b": paper[1]}), "lab", results)
    (only,) = found["comparisons"]
    assert only["word"] == word
    assert only["paper"] == paper[0] - paper[1]
    assert any(word.split()[-1] in sentence.lower() for sentence in compare.sentences(found))


def test_arms_are_compared_at_lengths_that_all_of_them_have() -> None:
    results = Planted({"pose": {1: 0.9, 2: 0.1}, "short": {1: 0.1}})
    found = compare.record_of(study({"a": 2, "b": 1}), "lab", results)
    assert found["measures"][0]["asked"] in ("[1]", "[1.0]")
    assert found["measures"][0]["ours"]["a"]["mean"] > 80


def test_what_is_absent_is_said_and_never_filled_in() -> None:
    more = [{"name": "n", "table": "x", "benchmark": "longbench", "source": "table 2",
             "paper": {"a": 2, "b": 1}}]  # fmt: skip
    found = compare.record_of(study({"a": 2, "b": 1}, more=more), "lab", Planted({}))
    assert found["comparisons"] == []
    assert all(not measure["ours"] for measure in found["measures"])
    said = " ".join(compare.sentences(found))
    assert "Not measured at this scale: n; not here." in said
    assert "Not run yet: a, b." in said
    whole = compare.record_of(study({"a": 2, "b": 1}, absent={"lab": "why"}), "lab", Planted({}))
    assert whole["absent"] == "why"


def test_costs_are_multiples_of_the_main_arm_base_by_base() -> None:
    class Costs(Planted):
        def values(self, study: Study, arm: Arm, measure: Measure) -> Values:
            times = {"pose": 1.0, "short": 3.0}.get(arm.recipe)
            return {} if times is None else {
                "target": Scores({base: [np.array([times * (base + 1)])] for base in range(3)})
            }  # fmt: skip

    cost = {"name": "m", "table": "x", "benchmark": "seconds", "source": "figure 4",
            "paper": {"a": 1.0, "b": 1.4}}  # fmt: skip
    found = compare.record_of(study({}, measures=[cost]), "lab", Costs({}))
    assert found["measures"][0]["ours"]["b"]["mean"] == 3.0
    assert found["comparisons"][0]["ours"]["mean"] == -2.0
    assert found["comparisons"][0]["word"] == "agrees"


def test_a_handful_of_samples_of_one_model_has_no_interval() -> None:
    scores = Scores({0: [np.array([1.0, 0.0])]}, one_model=True)
    assert scores.estimate == Estimate(0.5, None, None)
    assert compare.word(1.0, Estimate(0.5, None, None)) == compare.UNDECIDED
