"""The tables of a report: once as data, then as HTML, CSV and Markdown alike."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endprompt import stats
from endprompt.distances import QUARTERS
from endprompt.io.files import write_text
from endprompt.io.provenance import Computation
from endprompt.report.run_files import (
    Metric,
    Run,
    arms,
    label,
    lengths,
    measured,
    metrics,
    number,
    suites,
    window,
)
from endprompt.report.verdict import comparisons
from endprompt.stats import Estimate

ABSENT = "not measured"


@dataclass(frozen=True)
class Cell:
    """A cell: its text, a second line in small type, and the number that sorting goes by."""

    text: str
    note: str = ""
    value: float | None = None


def number_cell(value: float, form: str = ".3f") -> Cell:
    """A number in its format."""
    return Cell(f"{value:{form}}", value=value)


def estimate_cell(estimate: Estimate, form: str = ".3f", ends: str | None = None) -> Cell:
    """A mean with its interval below, each in its format."""
    ends = form if ends is None else ends
    note = "" if estimate.low is None else f"[{stats.span(estimate.low, estimate.high, ends)}]"
    return Cell(f"{estimate.mean:{form}}", note, estimate.mean)


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its header."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """The table in GitHub's Markdown, with what would break it escaped."""
        lines = [
            "| " + " | ".join(_escaped(column) for column in self.columns) + " |",
            "|" + " --- |" * len(self.columns),
        ]
        for row in self.rows:
            cells = [_escaped(f"{cell.text} {cell.note}".strip()) for cell in row]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """The table as CSV; a cell that a spreadsheet would run as a formula stays text."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([_inert(column) for column in self.columns])
        for row in self.rows:
            writer.writerow([_inert(f"{cell.text} {cell.note}".strip()) for cell in row])
        return out.getvalue()

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.csv and NAME.md into a folder; returns both paths."""
        paths = [folder / f"{self.name}.csv", folder / f"{self.name}.md"]
        for path, text in zip(paths, (self.csv(), self.markdown()), strict=True):
            write_text(path, text)
        return paths


def _escaped(text: str) -> str:
    for mark in "\\|<>[]`*_":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())


def _inert(text: str) -> str:
    text = " ".join(text.split())
    risky = text[:1] in tuple("=+-@") and not _is_number(text.split(" ")[0])
    return f"'{text}" if risky else text


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True


def by_length(run: Run, metric: Metric) -> Table | None:
    """Arms by length for one metric, the target's column always there; None if none measured."""
    measured_at = lengths(run, metric)
    if not measured_at:
        return None
    target, old = run.get("target"), window(run)
    columns = sorted({*measured_at, *([int(target)] if target else [])})

    def heading(length: int) -> str:
        marks = []
        if old is not None and length > old:
            marks.append("past the window")
        if length == target:
            marks.append("target")
        return f"{length:,}" + (f" ({', '.join(marks)})" if marks else "")

    def cell(arm: Mapping[str, Any], length: int) -> Cell:
        value = measured(arm, metric, length)
        return Cell(ABSENT) if value is None else estimate_cell(value.estimate)

    direction = "higher is better" if metric.higher_is_better else "lower is better"
    return Table(
        name=f"{metric.name}_by_length",
        caption=f"{metric.label}, {metric.unit}, by length in tokens: {direction}",
        columns=("arm", *(heading(length) for length in columns)),
        rows=tuple(
            (Cell(label(arm)), *(cell(arm, length) for length in columns)) for arm in arms(run)
        ),
    )


def results(run: Run) -> list[Table]:
    """One table by length for each metric that was measured."""
    return [table for metric in metrics(run) if (table := by_length(run, metric)) is not None]


def suite_tasks(run: Run) -> list[Table]:
    """One table for each suite that arms were asked: its tasks at each length, an arm a column."""
    names = dict.fromkeys(name for arm in arms(run) for name in suites(arm))
    return [_suite_tasks(run, name) for name in names]


def _suite_tasks(run: Run, name: str) -> Table:
    asked = [(label(arm), suites(arm)[name]) for arm in arms(run) if name in suites(arm)]
    places = dict.fromkeys(
        (task, length) for _, suite in asked for task, at in suite["tasks"].items() for length in at
    )

    def cell(suite: Mapping[str, Any], task: str, length: str) -> Cell:
        score = suite["tasks"].get(task, {}).get(length) or {}
        mean, low, high = (number(score.get(key)) for key in ("mean", "low", "high"))
        return Cell(ABSENT) if mean is None else estimate_cell(Estimate(mean, low, high))

    notes = dict.fromkeys(note for _, suite in asked for note in suite.get("notes") or [])
    said = f" ({'; '.join(notes)})" if notes else ""
    title = asked[0][1].get("label") or name
    return Table(
        name=f"suite_{name}",
        caption=f"{str(title).partition(',')[0]}, task by task: higher is better{said}",
        columns=("task", "length", *(title for title, _ in asked)),
        rows=tuple(
            (
                Cell(task),
                Cell("-" if length == "0" else f"{int(length):,}", value=int(length)),
                *(cell(suite, task, length) for _, suite in asked),
            )
            for task, length in sorted(places, key=lambda at: (int(at[1]), at[0]))
        ),
    )


def compared(run: Run) -> Table | None:
    """The method against every other arm, with the interval of each difference."""
    compared_arms = comparisons(run)
    if not compared_arms:
        return None
    return Table(
        name="comparisons",
        caption=f"{compared_arms[0].arm} against every other arm: a gain above zero is better",
        columns=("measure", "length", "against", "method", "other", "gain [95 %]", "verdict"),
        rows=tuple(
            (
                Cell(comparison.metric.label),
                number_cell(comparison.length, ","),
                Cell(comparison.other),
                number_cell(comparison.mean),
                number_cell(comparison.other_mean),
                Cell(comparison.interval, value=comparison.gain.mean),
                Cell(comparison.significance),
            )
            for comparison in compared_arms
        ),
    )


def needle_by_distance(run: Run) -> Table | None:
    """Digits right at each length by the needle's distance, for every arm."""
    rows = []
    for arm in arms(run):
        grid = (arm.get("evaluation") or {}).get("needle") or {}
        for length in sorted(grid, key=int):
            quarters = (grid[length].get("by_quarter") or {}).get("digits")
            if quarters:
                rows.append(
                    (
                        Cell(label(arm)),
                        number_cell(int(length), ","),
                        *(Cell(ABSENT if q is None else f"{q:.2f}", value=q) for q in quarters),
                    )
                )
    if not rows:
        return None
    return Table(
        name="needle_by_distance",
        caption="Needles: digit accuracy by length and distance from the question",
        columns=("arm", "length", *QUARTERS),
        rows=tuple(rows),
    )


def needle_by_depth(run: Run) -> Table | None:
    """Needles by length and depth for every arm: the numbers behind the heat map."""
    rows = []
    for arm in arms(run):
        grid = (arm.get("evaluation") or {}).get("needle") or {}
        for length in sorted(grid, key=int):
            for at in grid[length].get("by_depth") or []:
                scores = [number(at.get(key)) for key in ("nll", "digits", "hits")]
                depth = number(at.get("depth"))
                rows.append(
                    (
                        Cell(label(arm)),
                        number_cell(int(length), ","),
                        Cell(ABSENT if depth is None else f"{depth:.0%}", value=depth),
                        *(Cell(ABSENT if s is None else f"{s:.3f}", value=s) for s in scores),
                    )
                )
    if not rows:
        return None
    return Table(
        name="needle_by_depth",
        caption="Needles by length and depth (0 % is the start of the text)",
        columns=("arm", "length", "depth", "loss on the answer", "digit accuracy", "exact match"),
        rows=tuple(rows),
    )


def costs(run: Run) -> Table | None:
    """What was planned and what each arm took."""
    plan = run.get("plan") or {}
    rows = []
    if plan:
        minutes = number(plan.get("minutes"))
        rows.append(
            _cost_row(
                "planned, the method",
                plan,
                seconds=None if minutes is None else 60 * minutes,
                memory=plan.get("memory_gib"),
            )
        )
    for arm in arms(run):
        if arm.get("trained"):
            steps = (arm.get("curve") or [{}])[-1].get("step")
            rows.append(
                _cost_row(
                    f"measured, {label(arm)}",
                    {**arm, "steps": steps},
                    seconds=arm.get("seconds"),
                    memory=arm.get("peak_memory_gib"),
                )
            )
    if not rows:
        return None
    return Table(
        name="cost",
        caption="Cost of training: planned beforehand, and measured",
        columns=("what", "steps", "tokens", "FLOPs", "minutes", "peak memory, GiB"),
        rows=tuple(rows),
    )


def _cost_row(what: str, of: Mapping[str, Any], *, seconds: Any, memory: Any) -> tuple[Cell, ...]:
    took = number(seconds)
    minutes = None if took is None else took / 60
    cells = [
        (number(of.get("steps")), ",.0f"),
        (number(of.get("tokens")), ",.0f"),
        (number(of.get("flops")), ".2e"),
        (minutes, ".1f"),
        (number(memory), ".1f"),
    ]
    return (
        Cell(what),
        *(Cell(ABSENT) if value is None else number_cell(value, form) for value, form in cells),
    )


def timings(run: Run) -> Table | None:
    """Wall-clock seconds of each stage."""
    entries = [(name, number(value)) for name, value in (run.get("timings") or {}).items()]
    rows = [(Cell(name), number_cell(s, ",.1f")) for name, s in entries if s is not None]
    if not rows:
        return None
    return Table("timings", "Time by stage", ("stage", "seconds"), tuple(rows))


def position_check(run: Run) -> Table | None:
    """What the position check found before training."""
    rows: Sequence[Mapping[str, Any]] = run.get("position_check") or []
    if not rows:
        return None
    return Table(
        name="position_check",
        caption="The position check, made before training",
        columns=("check", "attention", "result", "detail"),
        rows=tuple(
            (
                Cell(str(row.get("name", ""))),
                Cell(str(row.get("backend") or "any")),
                Cell("passed" if row.get("passed") else "FAILED"),
                Cell(str(row.get("detail") or "")),
            )
            for row in rows
        ),
    )


def origins(run: Run) -> Table:
    """Where everything came from, one line each."""
    rows: list[tuple[Cell, Cell]] = []

    def add(what: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key in value:
                add(f"{what}: {str(key).replace('_', ' ')}", value[key])
        elif value not in (None, "", [], ()):
            rows.append((Cell(what), Cell(_plain(value))))

    for key in ("created", "commit", "seed", "model", "text", "device", "versions"):
        add(key, run.get(key))
    for what, key in (("training", "computation"), ("evaluation", "evaluation")):
        for how, names in _computations(run, key).items():
            rows.append((Cell(f"{what} computed in"), Cell(f"{how}{names}")))
    return Table("provenance", "Where everything came from", ("what", "value"), tuple(rows))


def _computations(run: Run, key: str) -> dict[str, str]:
    """How arms were computed, in words; to each what follows: its arms, where they differ."""
    arms_by_computation: dict[str, list[str]] = {}
    for arm in arms(run):
        place = arm.get(key) or {}
        how = place.get("computation") if key == "evaluation" else place
        if how:
            arms_by_computation.setdefault(Computation.model_validate(how).line(), []).append(
                label(arm)
            )
    alone = len(arms_by_computation) == 1
    return {
        how: "" if alone else f": {', '.join(names)}" for how, names in arms_by_computation.items()
    }


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def everything(run: Run) -> list[Table]:
    """Every table of a report, in its order."""
    tables = [
        *results(run),
        *suite_tasks(run),
        compared(run),
        needle_by_distance(run),
        needle_by_depth(run),
        costs(run),
        timings(run),
        position_check(run),
        origins(run),
    ]
    return [table for table in tables if table is not None]
