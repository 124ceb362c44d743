"""Paired differences between two runs, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from endprompt import stats
from endprompt.errors import DataError
from endprompt.eval.results import SAMPLES, read_samples
from endprompt.io import records
from endprompt.record import Exact, Window

Values = dict[tuple[str, int, str], dict[str, float]]
"""Values by (task, length, metric), each with the name of what was asked."""

WINDOW_METRICS: dict[str, tuple[str, ...]] = {
    "losses": ("nll",),
    "needles": ("nll", "nll_per_token", "digits_right", "hit"),
    "quotes": ("nll",),
    "key_tokens": ("nll",),
}


class Difference(Exact):
    """Second minus first over what both answered.

    low, high   95 % interval of the mean difference (`endprompt.stats`), None for too few pairs
    wins        samples where the second is higher; losses: where it is lower
    unpaired    samples that only one of them answered, left out
    """

    task: str
    length: int
    metric: str
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    wins: int
    losses: int
    pairs: int
    unpaired: int


def compare(first: Path, second: Path) -> list[Difference]:
    """Differences of two runs' folders, sample files, or window checks (JSON).

    Raises DataError when they share no sample.
    """
    first_values, other = read_values(first), read_values(second)
    rows = []
    for cell in first_values:
        if cell not in other:
            continue
        shared = sorted(first_values[cell].keys() & other[cell].keys())
        if not shared:
            continue
        a = np.array([first_values[cell][name] for name in shared])
        b = np.array([other[cell][name] for name in shared])
        gap = stats.of_differences(b - a)
        rows.append(
            Difference(
                task=cell[0],
                length=cell[1],
                metric=cell[2],
                first=float(a.mean()),
                second=float(b.mean()),
                difference=gap.mean,
                low=gap.low,
                high=gap.high,
                wins=int((b > a).sum()),
                losses=int((b < a).sum()),
                pairs=len(shared),
                unpaired=len(first_values[cell].keys() ^ other[cell].keys()),
            )
        )
    if not rows:
        raise DataError(
            f"{first} and {second} share no sample: "
            "compare runs of the same tasks, lengths and seed"
        )
    return rows


def read_values(path: Path) -> Values:
    """Every scored value of a run. Raises DataError when the file is no result."""
    file = path / SAMPLES if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"no results at {file}")
    if file.suffix == ".jsonl":
        values: Values = {}
        for sample in read_samples(file):
            name = f"{sample.id}:{sample.prompt_sha256}"
            for metric, value in sample.scores.items():
                values.setdefault((sample.task, sample.length, metric), {})[name] = value
        return values
    return _of_window(records.read(file, Window).plain())


def _of_window(content: Mapping[str, Any]) -> Values:
    values: Values = {}
    seed = content["seed"]
    for kind, metrics in WINDOW_METRICS.items():
        for entry in content.get(kind, []):
            text = content["texts"][entry["document"]]
            name = f"{text}:{seed}:{entry.get('key', '')}:{entry.get('position', '')}"
            for metric in metrics:
                cell = (kind, int(entry["length"]), metric)
                values.setdefault(cell, {})[name] = float(entry[metric])
    return values
