"""What jobs left in files, in the shape of `run.json`: values, intervals, a row in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from endprompt import distances, stats
from endprompt import record as files_of
from endprompt.compare import answers
from endprompt.data import describe
from endprompt.io import records
from endprompt.recipe import Recipe

if TYPE_CHECKING:
    from endprompt.compare.results import Answers
    from endprompt.data.rows import Row

NEEDLE = {"nll": "needle-loss", "digits": "needles"}
"""Scores of needles that are shown by quarter, and their tasks."""


def arm_record(folder: Path, name: str, label: str, recipe: Recipe) -> dict[str, Any]:
    """What an arm of a run was and gave: its training, if any, and its evaluation."""
    record: dict[str, Any] = {
        "name": name,
        "label": label,
        "trained": recipe.trained,
        "recipe": recipe.model_dump(mode="json"),
        "tokens": 0,
        "flops": 0.0,
        "seconds": 0.0,
        "curve": [],
    }
    if recipe.trained:
        trained = records.read(folder / "train.json", files_of.Training)
        kept = (
            "tokens",
            "seconds",
            "curve",
            "resumed_at",
            "flops",
            "computation",
            "saved_precision",
        )
        record |= {key: getattr(trained, key) for key in kept}
        record["peak_memory_gib"] = round(trained.peak_memory_bytes / 2**30, 2)
    record["evaluation"] = evaluation(records.read(folder / "window.json", files_of.Window))
    return record


def evaluation(check: files_of.Window) -> dict[str, Any]:
    """A window check by metric and length, each with the values that intervals are made of."""
    lengths, asked = check.lengths, answers.of_window(check)

    def at(task: str, length: int) -> dict[str, Any]:
        return summary([value for _, value in asked[task, length]])

    keys = [n for n in lengths if asked.get(("key-loss", n))]
    return {
        "lengths": lengths,
        "last_tokens": check.last,
        "seed": check.seed,
        "texts": check.texts,
        "computation": check.computation,
        "seconds": check.seconds,
        "peak_memory_gib": round(check.peak_memory_bytes / 2**30, 2),
        "loss": {str(n): at("loss", n) for n in lengths},
        **({"key_loss": {str(n): at("key-loss", n) for n in keys}} if keys else {}),
        "loss_by_position": _mean_curve(check.curve),
        "needle": {
            str(n): {
                "nll": at("needle-loss", n),
                "digits": at("needles", n),
                "hits": at("hits", n),
                "by_depth": _by_depth([row for row in check.needles if row.length == n]),
                **_by_quarter({key: asked[task, n] for key, task in NEEDLE.items()}),
            }
            for n in lengths
        },
        "quote": {str(n): at("recall", n) for n in lengths},
    }


def summary(values: list[float]) -> dict[str, Any]:
    """Mean with its 95 % interval, where there are values enough for one."""
    estimate = stats.of_values(values)
    ends = {} if estimate.low is None else {"low": estimate.low, "high": estimate.high}
    return {"mean": estimate.mean, "values": values, **ends}


def _mean_curve(bins: list[files_of.Bin]) -> list[dict[str, Any]]:
    """Mean over documents of the loss in each bin of positions."""
    places = sorted({(row.start, row.end) for row in bins})
    return [
        {
            "start": start,
            "end": end,
            "mean": float(np.mean([row.nll for row in bins if row.start == start])),
        }
        for start, end in places
    ]


def _by_quarter(needles: dict[str, Answers]) -> dict[str, Any]:
    """Needles of one length in quarters by distance, the farthest with its values."""
    quarters = {name: distances.by_quarter(asked) for name, asked in needles.items()}
    means = {
        name: [float(np.mean(some)) if some else None for some in values]
        for name, values in quarters.items()
    }
    far = {f"far_{name}": summary(values[0]) for name, values in quarters.items() if values[0]}
    return {"by_quarter": means, **far}


def _by_depth(needles: list[files_of.Needle], bands: int = 8) -> list[dict[str, Any]]:
    """Needles of one length in equal bands of depth; an empty band is left out."""
    bands_shown = []
    for band in range(bands):
        low, high = band / bands, (band + 1) / bands
        inside = [row for row in needles if low <= row.depth < high]
        if inside:
            bands_shown.append(
                {
                    "depth": (low + high) / 2,
                    "nll": float(np.mean([row.nll_per_token for row in inside])),
                    "digits": float(np.mean([row.digits_right for row in inside])),
                    "hits": float(np.mean([row.hit for row in inside])),
                }
            )
    return bands_shown


def in_words(rows: list[Row], tokenizer: Any) -> dict[str, Any]:
    """The row that reaches farthest, those with a terminal first, piece by piece."""
    row = max(rows, key=lambda row: (row.segments_T.max(initial=0), row.positions_T.max()))
    sections = describe.sections(row)
    return {
        "segments": [
            {
                "kind": section.kind,
                "text": tokenizer.decode(row.tokens_T[section.start : section.stop]),
                "positions": [section.first, section.last],
            }
            for section in sections
        ],
        "positions": [[section.first, section.last + 1] for section in sections],
    }
