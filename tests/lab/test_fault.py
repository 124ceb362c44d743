"""A fault that no loss shows, the mask left out of the call, is seen in the laboratory's table.

`base/` is a base as `endprompt lab` trains them (seed 0, 1,000 steps), kept in half precision: it
retrieves inside its window, so that sixty steps are enough to tell arms apart.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from endprompt.lab import arms, page, study
from endprompt.lab.arms import Regime
from endprompt.lab.summary import groups, sentences
from endprompt.models import checkpoint as models
from endprompt.train import position_check
from tiny_checkpoint import RECALL_POSE

BASE = Path(__file__).parent / "base"
REGIME = Regime(steps={"yarn": 60}, learning_rate={"yarn": 2e-3}, examinations=12)


def result(name: str, seed: int) -> dict[str, Any]:
    recipe = arms.adapt(arms.load(name), REGIME, "yarn", factor=8, seed=seed)
    return study.measure(REGIME, study.Arm(recipe, "yarn", 8, seed), BASE)


def without_mask(load: Any) -> Any:
    """A loader whose models are called without an attention mask, as a careless loop would."""

    def loaded(*words: Any, **named: Any) -> Any:
        network = load(*words, **named)
        forward = network.forward
        network.forward = lambda attention_mask=None, **given: forward(attention_mask=None, **given)
        return network

    return loaded


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    found = [result(name, seed) for seed in (0, 1) for name in ("short", str(RECALL_POSE))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", without_mask(models.load))
        patch.setattr(position_check, "require", lambda checks: None)
        found += [result(str(RECALL_POSE), seed) | {"arm": "unmasked"} for seed in (0, 1)]
    return found


@pytest.mark.slow
def test_a_mask_left_out_is_no_better_than_the_control(results: list[dict[str, Any]]) -> None:
    (group,) = groups(results)
    said = sentences(group)
    better = [line for line in said if line.startswith("Better than the control")]
    no_better = [line for line in said if line.startswith(("No better than the control", "Worse"))]
    assert any("recall-pose (" in line for line in better)
    assert any("unmasked (" in line for line in no_better)
    assert not any("unmasked (" in line for line in better)
    verdicts = {row[0].text: row[-1].note for row in page.accuracy(group).rows}
    assert verdicts["recall-pose"] == "better"
    assert verdicts["unmasked"] in ("no better", "worse")


@pytest.mark.slow
def test_a_mask_left_out_sends_no_gradient_to_the_prefix(results: list[dict[str, Any]]) -> None:
    (group,) = groups(results)
    after = {row[0].text: row[-1].value for row in page.signal(group).rows}
    assert after["unmasked"] == 0.0
    assert (after["recall-pose"] or 0.0) > 0.1


def test_the_position_check_would_have_refused_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from endprompt.errors import ProbeError

    monkeypatch.setattr(models, "load", without_mask(models.load))
    monkeypatch.setattr(f"{__name__}.REGIME", dataclasses.replace(REGIME, steps={"yarn": 1}))
    with pytest.raises(ProbeError):
        result("pose", 0)
