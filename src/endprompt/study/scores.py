"""What `eval run` left of a model, as a study's measures ask for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from endprompt.stats import Floats
from endprompt.study.definition import Measure
from endprompt.study.numbers import PERCENT, Place

SHORT_METRICS = ("acc_norm", "acc", "exact_match", "pass@1")
"""The first of these that a short task has is taken."""


def by_place(
    measure: Measure, folder: Path, length_of: Callable[[Place], int]
) -> dict[Place, list[Floats]]:
    """Values of a benchmark in groups of equal weight, by length; lengths without all are left out.

    folder     what `eval run --out` names
    length_of  tokens of a length that the measure names
    """
    folder = folder / measure.benchmark
    if measure.benchmark == "short":
        groups = [_short_values(folder / f"{task}.jsonl") for task in measure.tasks]
        return {"target": groups} if all(map(len, groups)) else {}
    if not (folder / "samples.jsonl").is_file():
        return {}
    cells = _samples(folder)
    if measure.benchmark == "longbench":
        groups = _categories(cells, measure.tasks)
        return {"target": groups} if groups else {}
    from endprompt.eval.ruler.tasks import TASKS

    placed: dict[Place, list[Floats]] = {}
    for place in measure.at:
        groups = [
            PERCENT * np.array(list(values.values()))
            for task in measure.tasks or tuple(TASKS)
            if (values := cells.get((f"ruler/{task}", length_of(place), "score")))
        ]
        if len(groups) == len(measure.tasks or TASKS):
            placed[place] = groups
    return placed


@cache
def _samples(folder: Path) -> Any:
    from endprompt.eval.compare import read_values

    return read_values(folder)


def _categories(cells: Any, wanted: tuple[str, ...]) -> list[Floats]:
    """A group a category: the mean of each of its data sets, so that no large one outweighs."""
    from endprompt.eval.longbench import find_dataset

    means: dict[str, list[float]] = {}
    for (task, _, _), values in cells.items():
        category = find_dataset(task.removeprefix("longbench/")).category
        means.setdefault(category, []).append(float(np.mean(list(values.values()))))
    return [
        PERCENT * np.array(means_of_arm)
        for category, means_of_arm in means.items()
        if not wanted or category in wanted
    ]


def _short_values(file: Path) -> Floats:
    """Values of one of lm-eval's tasks, subtasks together, by the metric that is usual for it."""
    if not file.is_file():
        return np.array([])
    cells = _samples(file)
    known = [metric.split(",")[0] for _, _, metric in cells]
    metric = next((metric_known for metric_known in SHORT_METRICS if metric_known in known), None)
    return PERCENT * np.array(
        [value for cell, cell_values in cells.items() if cell[2].split(",")[0] == metric
         for value in cell_values.values()]
    )  # fmt: skip
