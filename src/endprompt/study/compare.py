"""Our numbers beside the paper's: the same differences, and whether their signs agree.

The paper prints no intervals, so its differences are taken as they are. Ours agree or disagree
only where their 95 % interval leaves zero out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from endprompt.compare.results import Scores, joined
from endprompt.io import provenance
from endprompt.stats import Estimate
from endprompt.study.definition import SMALLER, Arm, Measure, Scale, Study
from endprompt.study.numbers import Place, Results, Values

CONTROLS = {
    "none": Arm(recipe="none", note="the base, unscaled"),
    "pi": Arm(recipe="pi", note="the base, positions interpolated, untrained"),
}
"""Shown beside the arms wherever they were measured."""
AGREES, DISAGREES, OPEN = "agrees", "disagrees", "not significant"
UNDECIDED = "no interval: undecided"
NOT_PRINTED = "not in the paper"
WORDS = (AGREES, DISAGREES, OPEN, UNDECIDED, NOT_PRINTED)
RELATIVE = ("seconds", "flops")
"""Measures that are shown as multiples of the main arm's."""


@dataclass(frozen=True)
class _Column:
    """A measure's values of all arms that have them, at the lengths that all of them share."""

    measure: Measure
    places: list[Place]
    values: dict[str, Values]


def record_of(study: Study, scale: Scale, results: Results) -> dict[str, Any]:
    """Everything that the page says of one study, as plain values."""
    here = study.arms_at(scale)
    columns = [_column(study, scale, measure, results) for measure in study.measures]
    comparisons = [comparison for column in columns for comparison in _compared(study, column)]
    return {
        "name": study.name,
        "title": study.title,
        "source": study.source,
        "claim": study.claim,
        "notes": list(study.notes),
        "main": study.main,
        "absent": study.absent.get(scale),
        "arms": [
            {
                "name": name,
                "recipe": arm.recipe,
                "set": arm.set,
                "windows": arm.target / SMALLER[scale],
                "tokens": arm.tokens,
                "note": arm.note,
                "absent": None if name in here else study.absent.get(scale, arm.absent.get(scale)),
                "runs": results.origin(study, arm) if name in here else [],
            }
            for name, arm in study.arms.items()
        ],
        "measures": [_shown(study, scale, column, results) for column in columns],
        "comparisons": comparisons,
        "counts": {
            word: sum(comparison["word"] == word for comparison in comparisons) for word in WORDS
        },
    }


def _column(study: Study, scale: Scale, measure: Measure, results: Results) -> _Column:
    if _why(study, scale, measure, results) is not None:
        return _Column(measure, [], {})
    target = study.arms[study.main].target
    bare = {name: arm.model_copy(update={"target": target}) for name, arm in CONTROLS.items()}
    arms = bare | study.arms_at(scale)
    values = {name: results.values(study, arm, measure) for name, arm in arms.items()}
    there = {name: estimate for name, estimate in values.items() if estimate}
    own = {name: estimate for name, estimate in there.items() if name not in CONTROLS}
    places = [
        place for place in dict.fromkeys(place for of_arm in own.values() for place in of_arm)
        if all(place in of_arm for of_arm in own.values())
    ]  # fmt: skip
    shown = {
        name: of_arm for name, of_arm in there.items() if all(place in of_arm for place in places)
    }
    return _Column(measure, places, shown if places else {})


def _why(study: Study, scale: Scale, measure: Measure, results: Results) -> str | None:
    """Why a measure has no number of ours at this scale."""
    return (
        study.absent.get(scale) or measure.absent.get(scale) or results.why_absent(measure)
    )  # fmt: skip


def _scores(study: Study, column: _Column, name: str) -> Scores | None:
    """Values of an arm over all lengths; relative ones as multiples of the main arm's."""
    mine = joined([column.values[name][place] for place in column.places])
    if column.measure.benchmark in RELATIVE:
        if study.main not in column.values:
            return None
        main = joined([column.values[study.main][place] for place in column.places])
        return mine.over(main)
    return mine if mine.bases else None


def _shown(study: Study, scale: Scale, column: _Column, results: Results) -> dict[str, Any]:
    measure = column.measure
    ours = {}
    for name in column.values:
        scores = _scores(study, column, name)
        if scores is not None:
            ours[name] = _plain(scores.estimate) | {"bases": len(scores.bases)}
    return {
        "name": measure.name,
        "table": measure.table,
        "benchmark": measure.benchmark,
        "unit": measure.unit,
        "source": measure.source,
        "paper": dict(measure.paper),
        "ours": ours,
        "asked": results.asked(measure, column.places) if column.places else None,
        "absent": _why(study, scale, measure, results),
    }


def _plain(estimate: Estimate) -> dict[str, float | None]:
    return {
        key: None if value is None else round(value, 4)
        for key, value in (("mean", estimate.mean), ("low", estimate.low), ("high", estimate.high))
    }


def _compared(study: Study, column: _Column) -> list[dict[str, Any]]:
    """The main arm less every other one, ours and the paper's."""
    if study.main not in column.values:
        return []
    listed = []
    main = _scores(study, column, study.main)
    for name in column.values:
        if name == study.main or name in CONTROLS:
            continue
        other = _scores(study, column, name)
        gaps = None if main is None or other is None else main.minus(other)
        if gaps is None:
            continue
        ours = gaps.estimate
        printed = column.measure.paper
        paper = (
            round(printed[study.main] - printed[name], 4)
            if {study.main, name} <= printed.keys()
            else None
        )
        listed.append(
            {
                "measure": column.measure.name,
                "unit": column.measure.unit,
                "main": study.main,
                "other": name,
                "paper": paper,
                "ours": _plain(ours),
                "word": word(paper, ours),
            }
        )
    return listed


def word(paper: float | None, ours: Estimate) -> str:
    """Whether two differences have one sign, as far as that can be said.

    >>> word(3.1, Estimate(2.0, 1.0, 3.0)), word(3.1, Estimate(-2.0, -3.0, -1.0))
    ('agrees', 'disagrees')
    >>> word(3.1, Estimate(2.0, -1.0, 3.0)), word(None, Estimate(2.0, 1.0, 3.0))
    ('not significant', 'not in the paper')
    """
    if paper is None:
        return NOT_PRINTED
    if ours.low is None:
        return UNDECIDED
    if ours.sign == 0 or paper == 0:
        return OPEN
    return AGREES if (paper > 0) == (ours.sign > 0) else DISAGREES


def sentences(record: dict[str, Any]) -> list[str]:
    """In words, what agrees with the paper in sign and what does not; wants a `record_of`."""
    if record["absent"]:
        return []
    said = []
    judged = [
        comparison for comparison in record["comparisons"] if comparison["word"] != NOT_PRINTED
    ]
    if not judged:
        said.append("Nothing that the paper compares was measured here.")
    for one_word, lead in (
        (AGREES, "Agrees with the paper in sign"),
        (DISAGREES, "Disagrees with the paper in sign"),
        (UNDECIDED, "Undecided, for want of an interval"),
    ):
        mine = [comparison for comparison in judged if comparison["word"] == one_word]
        if mine:
            said.append(f"{lead}, {len(mine)} of {len(judged)}: {_listed(record['main'], mine)}.")
    unclear = sum(comparison["word"] == OPEN for comparison in judged)
    if unclear:
        said.append(
            f"Not significant here, {unclear} of {len(judged)}: the intervals hold zero, so the "
            f"paper's signs are neither confirmed nor denied."
        )
    extra = [
        comparison for comparison in record["comparisons"] if comparison["word"] == NOT_PRINTED
    ]
    clear = [
        comparison
        for comparison in extra
        if (comparison["ours"]["low"] or 0) * (comparison["ours"]["high"] or 0) > 0
    ]
    if clear:
        said.append(f"Beyond the paper: {_listed(record['main'], clear)}.")
    closed = dict.fromkeys(
        comparison["absent"] for comparison in record["measures"] if comparison["absent"]
    )
    for reason in closed:
        names = [
            comparison["name"]
            for comparison in record["measures"]
            if comparison["absent"] == reason
        ]
        said.append(f"Not measured at this scale: {', '.join(names)}; {reason}.")
    for reason in dict.fromkeys(arm["absent"] for arm in record["arms"] if arm["absent"]):
        names = [arm["name"] for arm in record["arms"] if arm["absent"] == reason]
        said.append(f"Left out at this scale: {', '.join(names)}; {reason}.")
    waiting = [arm["name"] for arm in record["arms"] if not arm["absent"] and not arm["runs"]]
    if waiting:
        said.append(f"Not run yet: {', '.join(waiting)}.")
    return said


def _listed(main: str, some: Sequence[dict[str, Any]]) -> str:
    parts = []
    for comparison in some:
        ours = comparison["ours"]
        values = f"{ours['mean']:+.1f}" if comparison["unit"] == "%" else f"{ours['mean']:+.2f}"
        if comparison["paper"] is not None:
            values += f" here, {comparison['paper']:+.2f} there"
        parts.append(f"{comparison['measure']}, {main} less {comparison['other']} ({values})")
    return "; ".join(parts)


def everything(
    studies: Sequence[Study],
    scale: Scale,
    results: Results,
    *,
    missing: int,
    seeds: int,
    command: str,
) -> dict[str, Any]:
    """What `study.json` holds; missing: runs that are not done."""
    records_of_studies = [record_of(study, scale, results) for study in studies]
    return {
        "provenance": provenance.provenance(),
        "kind": "study",
        "scale": scale,
        "command": command,
        "missing": missing,
        "seeds": seeds,
        "studies": [
            study_record | {"sentences": sentences(study_record)}
            for study_record in records_of_studies
        ],
    }
