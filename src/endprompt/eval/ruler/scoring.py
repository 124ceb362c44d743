"""RULER's scores, as NVIDIA's scorer gives them, and what is made of them.

A prediction is stripped, its control characters become line breaks; a reference counts when it
occurs in it, whatever the case. The two question-answering tasks count the best reference, the
others the share of all references. Scores are percentages rounded to two decimals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from endprompt import stats
from endprompt.errors import EvaluationError
from endprompt.eval.ruler.tasks import TASKS, find_task
from endprompt.io import records

THRESHOLD = 85.6
"""Score of Llama-2-7B-chat at 4K, above which a length counts as effective (RULER, table 3)."""

HIDES = 5.0
"""Points by which an average may exceed the score at the target before a warning."""

_CONTROL = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class TaskScore:
    """The score of one task at one length.

    score        percent, two decimals
    low, high    95 % interval over samples, percent (`endprompt.stats`), None for too few
    nulls        predictions with nothing in them
    per_sample   0..1 for each prediction, in order
    """

    task: str
    score: float
    low: float | None
    high: float | None
    nulls: int
    per_sample: tuple[float, ...]

    @property
    def count(self) -> int:
        """Number of predictions."""
        return len(self.per_sample)


@dataclass(frozen=True)
class LengthScore:
    """The average over the tasks at one length, with its 95 % interval."""

    length: int
    score: float
    low: float | None
    high: float | None
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """Scores over lengths.

    lengths       every length, rising
    average       over lengths; `rising` weighs them 1, 2, 3, ..., `falling` the other way round
    effective     the longest length up to which every length exceeds the threshold; None: not
                  even the shortest does
    warnings      what these numbers hide
    """

    lengths: tuple[LengthScore, ...]
    average: float
    rising: float
    falling: float
    effective: int | None
    threshold: float
    target: int
    warnings: tuple[str, ...]


def score(task: str, predictions: Iterable[Mapping[str, Any]]) -> TaskScore:
    """Score predictions of one task.

    predictions   mappings with `pred`, text, and `outputs`, the references

    Raises EvaluationError for an unknown task, or when there is no prediction.
    """
    best = find_task(task).best_reference
    per_sample = []
    nulls = 0
    for prediction in predictions:
        text = postprocess(prediction["pred"])
        nulls += not text
        hits = [float(ref.lower() in text.lower()) for ref in prediction["outputs"]]
        per_sample.append(max(hits) if best else sum(hits) / len(hits))
    if not per_sample:
        raise EvaluationError(f"no predictions for {task}: nothing to score")
    estimate = _percent(stats.of_values(per_sample))
    return TaskScore(task, estimate.mean, estimate.low, estimate.high, nulls, tuple(per_sample))


def postprocess(text: str) -> str:
    """Strip a prediction and turn its control characters into line breaks."""
    return _CONTROL.sub("\n", text.strip()).strip()


def summarise(
    scores: Mapping[int, Sequence[TaskScore]],
    *,
    target: int | None = None,
    threshold: float = THRESHOLD,
) -> Summary:
    """Averages over tasks and lengths, the effective length, and warnings.

    scores    length in tokens -> the scores of its tasks
    target    the length that the model is for; None: the longest

    Raises EvaluationError when there is nothing to summarise.
    """
    if not any(scores.values()):
        raise EvaluationError("no scores to summarise")
    rows = tuple(_over_tasks(length, scores[length]) for length in sorted(scores))
    values = np.array([row.score for row in rows])
    weights = np.arange(1, len(rows) + 1)
    target = target or rows[-1].length
    average = float(values.mean())
    return Summary(
        lengths=rows,
        average=average,
        rising=float(np.average(values, weights=weights)),
        falling=float(np.average(values, weights=weights[::-1])),
        effective=_effective(rows, threshold),
        threshold=threshold,
        target=target,
        warnings=tuple(_warnings(rows, average, target)),
    )


def _effective(rows: Sequence[LengthScore], threshold: float) -> int | None:
    effective = None
    for row in rows:
        if row.score <= threshold:
            break
        effective = row.length
    return effective


def _warnings(rows: Sequence[LengthScore], average: float, target: int) -> Iterable[str]:
    at_target = next((row for row in rows if row.length == target), None)
    if at_target is None:
        yield f"no score at the target {target}: the averages say nothing about it"
    elif average - at_target.score > HIDES:
        yield (
            f"the average {average:.1f} hides the target: {at_target.score:.1f} at {target} tokens"
        )
    for row in rows:
        if set(row.tasks) != set(rows[0].tasks):
            yield f"other tasks at length {row.length} than at {rows[0].length}: do not compare"
    missing = [task for task in TASKS if task not in rows[-1].tasks]
    if missing:
        yield f"average over {len(rows[-1].tasks)} of 13 tasks, without {', '.join(missing)}"


def _over_tasks(length: int, scores: Sequence[TaskScore]) -> LengthScore:
    estimate = _percent(stats.of_groups([np.asarray(score.per_sample) for score in scores]))
    mean = float(np.mean([score.score for score in scores]))
    return LengthScore(
        length, mean, estimate.low, estimate.high, tuple(score.task for score in scores)
    )


def _percent(estimate: stats.Estimate) -> stats.Estimate:
    """An estimate of 0..1 in percent, rounded as NVIDIA's scorer rounds."""
    ends = (None if end is None else round(100 * end, 2) for end in (estimate.low, estimate.high))
    return stats.Estimate(round(100 * estimate.mean, 2), *ends)


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Predictions from a JSONL file, with fields `pred` and `outputs` (or one `output`).

    Raises EvaluationError naming the broken lines.
    """
    rows, broken = [], {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row, problem = _prediction(line)
            if problem:
                broken[number] = problem
            else:
                rows.append(row)
    if broken:
        (number, problem), *others = broken.items()
        more = f"; also broken: {', '.join(str(n) for n, _ in others[:8])}" if others else ""
        more += f" and {len(others) - 8} more" if len(others) > 8 else ""
        raise EvaluationError(f"{path} line {number}: {problem}{more}")
    if not rows:
        raise EvaluationError(f"{path} holds no predictions")
    return rows


def _prediction(line: str) -> tuple[dict[str, Any], str]:
    try:
        row = records.parse(line)
    except ValueError as error:
        return {}, f"not JSON ({error})"
    if not isinstance(row, dict):
        return {}, "not a JSON object"
    if not isinstance(row.get("pred"), str):
        return {}, "no text in the field 'pred'"
    references = row.get("outputs", [row["output"]] if "output" in row else None)
    if not isinstance(references, list) or not references:
        return {}, "no list of references in the field 'outputs'"
    if not all(isinstance(reference, str) for reference in references):
        return {}, "a reference in 'outputs' is not text"
    return {"pred": row["pred"], "outputs": references}, ""
