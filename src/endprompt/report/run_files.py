"""Read what a run wrote. A part that is absent stays absent: nothing is filled in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np

from endprompt import record
from endprompt.compare.results import Scores
from endprompt.distances import FARTHEST
from endprompt.errors import DataError
from endprompt.io import records
from endprompt.stats import Estimate

Run = Mapping[str, Any]
Arm = Mapping[str, Any]
Role = Literal["base", "untrained", "method", "control"]


@dataclass(frozen=True)
class Metric:
    """One thing that an arm is measured by. `path` leads from `evaluation` to the lengths."""

    name: str
    label: str
    unit: str
    path: tuple[str, ...]
    higher_is_better: bool = False
    leaf: str | None = None


METRICS = (
    Metric("loss", "Loss on the last tokens", "nats per token", ("loss",)),
    Metric(
        "key_loss", "Loss on key tokens, which need far context", "nats per token", ("key_loss",)
    ),
    Metric("needle", "Needle: loss on the answer", "nats per token", ("needle",), leaf="nll"),
    Metric("digits", "Needle: digit accuracy", "share", ("needle",), True, "digits"),
    Metric(
        "far_digits",
        f"Needle: digit accuracy, {FARTHEST}",
        "share",
        ("needle",),
        True,
        "far_digits",
    ),
    Metric(
        "far_needle",
        f"Needle: loss on the answer, {FARTHEST}",
        "nats per token",
        ("needle",),
        leaf="far_nll",
    ),
    Metric("hits", "Needle: exact match", "share", ("needle",), True, "hits"),
    Metric("quote", "Verbatim recall: loss on words seen before", "nats per token", ("quote",)),
)


@dataclass(frozen=True)
class Measured:
    """A mean as the run's file has it, and the values behind it; no base where there are none."""

    estimate: Estimate
    scores: Scores


def metrics(run: Run) -> tuple[Metric, ...]:
    """What arms of a run are measured by: METRICS, and the average of each suite they were asked.

    A suite without lengths has no average.
    """
    labels: dict[str, str] = {}
    for arm in arms(run):
        for name, suite in suites(arm).items():
            if suite.get("by_length"):
                labels.setdefault(name, str(suite.get("label") or name))
    return METRICS + tuple(
        Metric(name, label, "share", ("suites", name, "by_length"), True)
        for name, label in labels.items()
    )


def suites(arm: Arm) -> dict[str, Mapping[str, Any]]:
    """What an arm scored in each suite that it was asked."""
    return (arm.get("evaluation") or {}).get("suites") or {}


def read(path: Path) -> dict[str, Any]:
    """The record in `path`: a run's folder, or its run.json itself.

    Raises DataError when there is none, and what `records.read` raises.
    """
    file = path / "run.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"no run.json at {path}: give the folder of a finished run")
    return records.read(file, record.Run).plain()


def arms(run: Run) -> list[Arm]:
    """The arms of a run, in its own order."""
    return list(run.get("arms") or [])


def label(arm: Arm) -> str:
    """What to call an arm."""
    return str(arm.get("label") or arm.get("name") or "unnamed arm")


def window(run: Run) -> int | None:
    """The base model's own window, in tokens."""
    return (run.get("model") or {}).get("window_tokens")


def roles(run: Run) -> list[tuple[Arm, Role]]:
    """Each arm with its part: the base, untrained scaling, the method of the run, a control.

    The method is the trained arm that bears the name of the run's recipe, or else the first
    trained arm; every other trained arm is a control. Runs put together carry their `role`.
    """
    everyone = arms(run)
    trained = [arm for arm in everyone if arm.get("trained")]
    wanted = (run.get("recipe") or {}).get("name")
    method = next((arm for arm in trained if arm.get("name") == wanted), None)
    method = method or (trained[0] if trained else None)

    def role(arm: Arm) -> Role:
        if "role" in arm:
            return arm["role"]
        if arm is method:
            return "method"
        if arm.get("trained"):
            return "control"
        return "base" if arm.get("name") == "base" else "untrained"

    return [(arm, role(arm)) for arm in everyone]


def measured(arm: Arm, metric: Metric, length: int) -> Measured | None:
    """What an arm scored at a length, or None where it was not measured."""
    node: Any = arm.get("evaluation")
    for key in (*metric.path, str(length), *([metric.leaf] if metric.leaf else [])):
        node = node.get(key) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping) or number(node.get("mean")) is None:
        return None
    values = [number(value) for value in node.get("values") or []]
    whole = values and None not in values
    return Measured(
        Estimate(float(node["mean"]), number(node.get("low")), number(node.get("high"))),
        Scores({0: [np.array(values, float)]} if whole else {}, one_model=True),
    )


def number(value: Any) -> float | None:
    """`value` as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


def lengths(run: Run, metric: Metric, *, among: Iterable[Arm] | None = None) -> list[int]:
    """Lengths at which any arm was measured by `metric`, ascending."""
    lengths: set[int] = set()
    for arm in arms(run) if among is None else among:
        at: Any = arm.get("evaluation") or {}
        for key in metric.path:
            at = at.get(key) or {}
        lengths |= {int(key) for key in at if measured(arm, metric, int(key)) is not None}
    return sorted(lengths)
