"""Scores equal NVIDIA's scorer; averages, intervals and warnings say what they must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from endprompt.errors import EvaluationError
from endprompt.eval.ruler import TASKS, TaskScore, score, summarise
from endprompt.eval.ruler.scoring import postprocess, read_predictions

REFERENCE = json.loads(
    (Path(__file__).parents[1] / "reference" / "ruler_scores.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("task", TASKS)
def test_scores_equal_nvidia(task: str) -> None:
    made = REFERENCE["tasks"][task]
    found = score(task, made["predictions"])
    assert found.score == made["score"]
    assert f"{found.nulls}/{found.count}" == made["nulls"]


def test_questions_count_the_best_reference_others_all() -> None:
    prediction = {"pred": "It was ADA.", "outputs": ["Ada", "Ada Gorst", "Gorst", "Miss Ada"]}
    assert score("qa_1", [prediction]).score == 100
    assert score("niah_multivalue", [prediction]).score == 25


def test_control_characters_become_line_breaks_and_empty_is_counted() -> None:
    assert postprocess(" \x00a\x1fb\t\n") == "a\nb"
    found = score("vt", [{"pred": "\x00\x01 ", "outputs": ["x"]}, {"pred": "x", "outputs": ["x"]}])
    assert (found.score, found.nulls, found.count) == (50, 1, 2)


def test_interval_covers_the_score_and_narrows_with_samples() -> None:
    def made(count: int) -> TaskScore:
        return score("vt", [{"pred": "x" * (n % 2), "outputs": ["x"]} for n in range(count)])

    few, many = made(20), made(500)
    assert few.low <= few.score <= few.high
    assert many.high - many.low < few.high - few.low
    assert (few.low, few.high) == (made(20).low, made(20).high)
    certain = score("vt", [{"pred": "x", "outputs": ["x"]}] * 9)
    assert (certain.low, certain.high) == (100, 100)


def table(**at: float) -> dict[int, list[TaskScore]]:
    """All tasks with one score at each length ('k4096=96.5')."""
    return {
        int(name[1:]): [TaskScore(task, value, value, value, 0, (value / 100,)) for task in TASKS]
        for name, value in at.items()
    }


def test_weighted_averages_are_those_of_the_published_table() -> None:
    """Llama 3.1 70B in NVIDIA's README: 89.6, 85.5 rising, 93.7 falling, effective 64K."""
    found = summarise(
        table(k4096=96.5, k8192=95.8, k16384=95.4, k32768=94.8, k65536=88.4, k131072=66.6)
    )
    assert round(found.average, 1) == 89.6
    assert round(found.rising, 1) == 85.5
    assert round(found.falling, 1) == 93.7
    assert found.effective == 65536


@pytest.mark.parametrize(
    ("scores", "effective"),
    [
        ({"k4096": 85.6}, None),
        ({"k4096": 85.7, "k8192": 85.5, "k16384": 90.0}, 4096),
        ({"k4096": 90.0, "k8192": 86.0}, 8192),
    ],
)
def test_effective_length_ends_at_the_first_length_not_above(
    scores: dict[str, float], effective: int | None
) -> None:
    assert summarise(table(**scores)).effective == effective


def test_an_average_that_hides_the_target_is_warned_of() -> None:
    found = summarise(table(k4096=95, k8192=94, k16384=60))
    assert any("hides the target: 60.0 at 16384" in warning for warning in found.warnings)
    assert found.target == 16384
    assert not summarise(table(k4096=95, k8192=94)).warnings
    missing = summarise(table(k4096=95), target=8192)
    assert any("no score at the target 8192" in warning for warning in missing.warnings)


def test_tasks_left_out_are_warned_of() -> None:
    scores = table(k4096=95, k8192=95)
    scores[8192] = scores[8192][:12]
    warnings = " ".join(summarise(scores).warnings)
    assert "12 of 13 tasks, without qa_2" in warnings
    assert "other tasks at length 8192" in warnings


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="no predictions for vt"):
        score("vt", [])
    with pytest.raises(EvaluationError, match="no scores"):
        summarise({})
    with pytest.raises(EvaluationError, match="did you mean 'qa_1'"):
        score("qa1", [])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"outputs": ["a"]}', "no text in the field 'pred'"),
        ('{"pred": null, "outputs": ["a"]}', "no text in the field 'pred'"),
        ('{"pred": "a"}', "no list of references"),
        ('{"pred": "a", "outputs": []}', "no list of references"),
        ('{"pred": "a", "outputs": [1]}', "is not text"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str, problem: str) -> None:
    good = '{"pred": "a", "outputs": ["a"]}'
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join([good, "", line, good, line]))
    with pytest.raises(EvaluationError, match=rf"line 3: .*{problem}.*also broken: 5"):
        read_predictions(path)


def test_one_output_is_a_list_of_one(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"pred": "a", "output": "b"}\n')
    rows: list[dict[str, Any]] = read_predictions(path)
    assert rows == [{"pred": "a", "outputs": ["b"]}]
    path.write_text("\n")
    with pytest.raises(EvaluationError, match="holds no predictions"):
        read_predictions(path)
