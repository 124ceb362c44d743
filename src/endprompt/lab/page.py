"""The laboratory's tables, figures and page: `lab.html`, and the same as CSV, Markdown, JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from endprompt import distances
from endprompt.compare.results import Scores
from endprompt.io import files
from endprompt.io.provenance import Computation
from endprompt.lab.summary import (
    CONTROL,
    RECOVERED,
    RIVAL,
    Arms,
    Group,
    Json,
    between,
    groups,
    sentences,
    verdict,
)
from endprompt.report import figures, page
from endprompt.report.tables import ABSENT, Cell, Table, estimate_cell, number_cell
from endprompt.report.verdict import plural
from endprompt.stats import Estimate

MARKS = {"better": "better", "worse": "worse"}
SIGNAL = {"terminal_loss": "terminal's loss, nats", "gradient_on_prefix": "gradient on the prefix"}
"""What is watched of a terminal over training."""


def write(results: Sequence[Json], out: Path) -> list[Path]:
    """Write `lab.html`, `lab.json` and tables and figures beside it; returns every path."""
    grouped = groups(results)
    written_ = [out / "lab.html", out / "lab.json"]
    files.write_text(written_[0], render(results))
    files.write_json(written_[1], compact(results))
    for group in grouped:
        for table in tables(group):
            written_ += table.write(out / "tables")
        for drawing in drawings(group):
            written_ += drawing.write(out / "figures")
    return written_


def compact(results: Sequence[Json]) -> dict[str, Any]:
    """What the page says, as numbers: for `benchmarks/results`."""
    return {
        "provenance": results[0]["provenance"],
        "warm_start": results[0]["base"]["warm_start"],
        "bases": _bases(results),
        "groups": [
            {
                "scaling": group.scaling,
                "factor": group.factor,
                "sentences": sentences(group),
                "arms": [_arm_numbers(group, arm) for arm in group.arms],
            }
            for group in groups(results)
        ],
    }


def _bases(results: Sequence[Json]) -> list[dict[str, Any]]:
    known = {result["base"]["seed"]: result["base"] for result in results}
    return [
        {key: round(base[key], 2) for key in ("seed", "cpu_seconds", "tokens", "parameters")}
        for base in known.values()
    ]


def _arm_numbers(group: Group, arm: Arms) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "arm": arm.name,
        "accuracy": {str(length): _rounded(arm.scores(length).estimate) for length in arm.lengths},
        "by_seed": {
            str(seed): round(score, 4)
            for seed, score in zip(arm.seeds, arm.accuracy(group.target), strict=True)
        },
        "by_kind": {
            kind: round(float(np.mean(arm.accuracy(group.target, [kind]))), 4) for kind in arm.kinds
        },
        "by_distance": [_rounded(arm.quarter_scores(group.target, n).estimate) for n in range(4)],
        "recovered": len(group.recovered(arm)),
        "loss_quarters": {
            length: [round(float(value), 4) for value in arm.loss(int(length))]
            for length in arm.records[0]["loss"]
        },
        "tokens": arm.results[0].tokens,
        "flops": arm.results[0].flops,
        "train_seconds": round(_seconds(arm), 1),
    }
    for other in (group.control, group.rival):
        gap = between(arm, other, group.target) if other is not None else None
        if gap is not None and other is not None and other.name != arm.name:
            numbers[f"minus_{other.name}"] = _rounded(gap)
    return numbers


def _rounded(estimate: Estimate) -> list[float | None]:
    return [
        None if value is None else round(value, 4)
        for value in (estimate.mean, estimate.low, estimate.high)
    ]


def _seconds(arm: Arms) -> float:
    return float(np.mean([result.seconds for result in arm.results]))


def _accuracy(scores: Scores) -> Cell:
    return estimate_cell(scores.estimate, ".3f", ".2f")


def _name(group: Group, what: str) -> str:
    return f"{what}-{group.scaling}-s{group.factor}"


def tables(group: Group) -> list[Table]:
    """Every table of one scaling and factor."""
    return [
        accuracy(group),
        by_kind(group),
        by_distance(group),
        kept(group),
        by_seed(group),
        losses(group),
        signal(group),
        costs(group),
    ]


def accuracy(group: Group) -> Table:
    """Accuracy by length, recovery, and the paired differences at the target."""
    others = [arm for arm in (group.control, group.rival) if arm is not None]
    rows = []
    for arm in group.arms:
        kept = group.recovered(arm)
        of_kept = float(np.mean(arm.of(kept).accuracy(group.target))) if kept else None
        gaps = [between(arm, other, group.target) for other in others]
        rows.append(
            (
                Cell(arm.name),
                *(_accuracy(arm.scores(length)) for length in arm.lengths),
                Cell(f"{len(kept)} of {len(arm.results)}", value=len(kept)),
                Cell(ABSENT) if of_kept is None else number_cell(of_kept),
                *(
                    Cell("")
                    if gap is None or other.name == arm.name
                    else Cell(str(gap), verdict(gap), gap.mean)
                    for gap, other in zip(gaps, others, strict=True)
                ),
            )
        )
    lengths = group.arms[0].lengths
    return Table(
        _name(group, "accuracy"),
        f"Accuracy, mean over kinds of question, {_title(group)}; 95 % bootstrap intervals "
        f"over bases and questions. Recovered: at least {RECOVERED:.0%} of the base's own accuracy "
        f"at {group.window:,} tokens",
        (
            "arm",
            *(f"{length:,}" for length in lengths),
            "recovered",
            f"those at {group.target:,}",
            *(f"minus {other.name} at {group.target:,}" for other in others),
        ),
        tuple(rows),
    )


def _title(group: Group) -> str:
    return f"{group.scaling} by {group.factor}"


def by_kind(group: Group) -> Table:
    """Accuracy at the target for each kind of question."""
    kinds = group.arms[0].kinds
    return Table(
        _name(group, "kinds"),
        f"Accuracy at {group.target:,} tokens by kind of question, {_title(group)}",
        ("arm", *kinds),
        tuple(
            (
                Cell(arm.name),
                *(
                    number_cell(float(np.mean(arm.accuracy(group.target, [kind]))))
                    for kind in kinds
                ),
            )
            for arm in group.arms
        ),
    )


def by_distance(group: Group) -> Table:
    """Accuracy at the target by the needle's distance; counting has no place."""
    rows = []
    for arm in group.arms:
        rival = group.rival
        gap = None if rival is None else between(arm, rival, group.target, what="far_scores")
        rows.append(
            (
                Cell(arm.name),
                *(_accuracy(arm.quarter_scores(group.target, n)) for n in range(4)),
                Cell("") if gap is None or arm is rival else Cell(str(gap), verdict(gap)),
            )
        )
    return Table(
        _name(group, "distance"),
        f"Accuracy at {group.target:,} tokens by the needle's distance from its question, "
        f"{_title(group)}; 95 % intervals",
        ("arm", *distances.QUARTERS, f"farthest, minus {RIVAL}"),
        tuple(rows),
    )


def kept(group: Group) -> Table:
    """What is left of the base inside its window: accuracy and loss, as differences to it."""
    rows = []
    base = group.base
    for arm in group.arms:
        if base is None or arm is base:
            continue
        right = between(arm, base, group.window)
        loss = between(arm, base, group.window, what="losses")
        rows.append(
            (
                Cell(arm.name),
                *(
                    Cell(ABSENT) if gap is None else Cell(str(gap), value=gap.mean)
                    for gap in (right, loss)
                ),
            )
        )
    return Table(
        _name(group, "kept"),
        f"Inside the window of {group.window:,} tokens, minus the untouched base, {_title(group)}; "
        "a loss above zero was given up",
        ("arm", "accuracy", "loss, nats per token"),
        tuple(rows),
    )


def by_seed(group: Group) -> Table:
    """Accuracy at the target on each base."""
    seeds = group.arms[0].seeds
    rows = []
    for arm in group.arms:
        known = dict(zip(arm.seeds, arm.accuracy(group.target), strict=True))
        rows.append(
            (
                Cell(arm.name),
                *(number_cell(known[seed]) if seed in known else Cell(ABSENT) for seed in seeds),
            )
        )
    return Table(
        _name(group, "seeds"),
        f"Accuracy at {group.target:,} tokens on each base, {_title(group)}",
        ("arm", *(f"base {seed}" for seed in seeds)),
        tuple(rows),
    )


POSITIONS = ("first quarter of the text", "second", "third", "last quarter")


def losses(group: Group) -> Table:
    """Language-model loss at the window and, by quarter, at the target."""
    best = group.best_loss()
    rows = []
    for arm in group.arms:
        near, far = arm.loss(group.window).mean(), arm.loss(group.target)
        excess = far.mean() / best - 1
        control = group.control
        gap = between(arm, control, group.target, what="losses") if control else None
        against = Cell("") if gap is None or arm is control else Cell(str(gap), value=gap.mean)
        rows.append(
            (
                Cell(arm.name),
                *(number_cell(loss) for loss in (near, *far, far.mean())),
                Cell(f"{100 * excess:+.1f} %", value=excess),
                against,
            )
        )
    return Table(
        _name(group, "loss"),
        f"Loss in nats per token on plain text, {_title(group)}; lower is better",
        (
            "arm",
            f"at {group.window:,}",
            *(f"at {group.target:,}, {quarter}" for quarter in POSITIONS),
            f"at {group.target:,}, all",
            "above the best trained arm",
            f"minus {CONTROL}",
        ),
        tuple(rows),
    )


def signal(group: Group) -> Table:
    """What a terminal still teaches at the end of training."""
    rows = []
    for arm in group.arms:
        first, last = (
            {
                key: float(np.mean([record["gradient"][at][key] for record in arm.records]))
                for key in SIGNAL
            }
            if all(record["gradient"] for record in arm.records)
            else None
            for at in (0, -1)
        )
        if first is None or last is None:
            continue
        numbers = [at[key] for key in SIGNAL for at in (first, last)]
        rows.append((Cell(arm.name), *(number_cell(value, ".3g") for value in numbers)))
    return Table(
        _name(group, "signal"),
        f"The terminal on rows that training doesn't see, {_title(group)}: its loss, and the norm "
        "of that loss's gradient by the embeddings of the prefix",
        ("arm", "loss before", "loss after", "gradient before", "gradient after"),
        tuple(rows),
    )


def costs(group: Group) -> Table:
    """Seconds, tokens and operations of training one arm."""
    rows = []
    for arm in group.arms:
        if arm.trained:
            result = arm.results[0]
            rows.append(
                (
                    Cell(arm.name),
                    number_cell(result.tokens, ","),
                    number_cell(result.flops, ".2e"),
                    number_cell(_seconds(arm), ".1f"),
                )
            )
    return Table(
        _name(group, "cost"),
        f"Cost of training one arm, {_title(group)}; seconds by the clock, beside other jobs",
        ("arm", "tokens", "FLOPs", "seconds"),
        tuple(rows),
    )


def drawings(group: Group) -> list[figures.Drawing]:
    """Accuracy by length, loss by quarter, and the terminal's signal over training."""
    tried = (by_length(group), loss_by_quarter(group), signal_over_training(group))
    return [drawing for drawing in tried if drawing is not None]


def _looks(group: Group) -> dict[str, dict[str, Any]]:
    arms = [
        {"name": arm.name, "trained": arm.trained, "role": "method" if last else "control"}
        for arm in group.arms
        for last in [arm is group.arms[-1]]
    ]
    return figures.looks({"arms": arms})


def by_length(group: Group) -> figures.Drawing:
    """Accuracy against length, one line an arm."""
    with figures.settings():
        figure, grid = figures.new(3.6)
        axes, look, said = grid[0][0], _looks(group), []
        for arm in group.arms:
            scores = [float(np.mean(arm.accuracy(length))) for length in arm.lengths]
            axes.plot(arm.lengths, scores, label=arm.name, **look[arm.name])
            said.append(f"{arm.name} goes from {scores[0]:.2f} to {scores[-1]:.2f}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(group.arms[0].lengths, [f"{n:,}" for n in group.arms[0].lengths])
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("length, tokens")
        axes.set_ylabel("accuracy")
        figures.legend(figure, axes)
    return figures.Drawing(
        _name(group, "by-length"),
        f"Accuracy by length, {_title(group)}",
        "; ".join(said) + ".",
        figure,
    )


def loss_by_quarter(group: Group) -> figures.Drawing:
    """Loss at the target against the quarter of the text, one line an arm."""
    with figures.settings():
        figure, grid = figures.new(3.6)
        axes, look, said = grid[0][0], _looks(group), []
        for arm in group.arms:
            if not arm.trained:
                continue
            quarters = arm.loss(group.target)
            axes.plot(range(1, 5), quarters, label=arm.name, **look[arm.name])
            said.append(f"{arm.name} goes from {quarters[0]:.2f} to {quarters[-1]:.2f}")
        axes.set_xticks(range(1, 5))
        axes.set_xlabel(f"quarter of a text of {group.target:,} tokens")
        axes.set_ylabel("loss, nats per token")
        figures.legend(figure, axes)
    return figures.Drawing(
        _name(group, "loss-by-quarter"),
        f"Loss of trained arms by quarter of the text, {_title(group)}",
        "; ".join(said) + ".",
        figure,
    )


def signal_over_training(group: Group) -> figures.Drawing | None:
    """The terminal's loss and its gradient on the prefix, against the step."""
    shown = [arm for arm in group.arms if all(record["gradient"] for record in arm.records)]
    if not shown:
        return None
    with figures.settings():
        figure, grid = figures.new(4.6, 2, sharex=True)
        look, said = _looks(group), []
        for axes, (key, title) in zip(grid.flat, SIGNAL.items(), strict=True):
            for arm in shown:
                steps = [entry["step"] for entry in arm.records[0]["gradient"]]
                line = np.mean(
                    [[entry[key] for entry in record["gradient"]] for record in arm.records], axis=0
                )
                axes.plot(steps, line, label=arm.name, **look[arm.name])
                said.append(f"{title}, {arm.name}: from {line[0]:.2g} to {line[-1]:.2g}")
            axes.set_ylabel(title)
            axes.set_yscale("log")
        grid[-1][0].set_xlabel("step")
        figures.legend(figure, grid[0][0])
    return figures.Drawing(
        _name(group, "signal"),
        f"What the terminal teaches over training, {_title(group)}",
        "; ".join(said) + ".",
        figure,
    )


def render(results: Sequence[Json]) -> str:
    """The page, self-contained; everything from results is escaped."""
    grouped = groups(results)
    seeds = sorted({result["seed"] for result in results})
    base = results[0]["base"]
    return page.fill(
        "lab.html",
        facts=(
            f"{plural(len(seeds), 'base')} of {base['parameters']:,} parameters, window "
            f"{base['base']['window']} tokens; control {CONTROL}, rival {RIVAL}"
        ),
        warm_start=base["warm_start"],
        base_seconds=np.mean([base_record["cpu_seconds"] for base_record in _bases(results)]),
        groups=[
            {
                "id": _name(group, "group"),
                "title": f"{_title(group)}: {group.window:,} to {group.target:,} tokens",
                "sentences": sentences(group),
                "tables": [table for table in tables(group) if table.rows],
                "figures": [base_record.inline() for base_record in drawings(group)],
            }
            for group in grouped
        ],
        recipes=_recipes(results),
        origin=results[0]["provenance"],
        computed=_computed(results),
        marks=MARKS,
    )


def _recipes(results: Sequence[Json]) -> list[dict[str, str]]:
    """Each trained arm's rows and rates as YAML, once a scaling."""
    import yaml

    recipes = {}
    for result in results:
        if result["trained"]:
            recipe = {key: result["recipe"][key] for key in ("summary", "rope", "rows", "training")}
            key = f"{result['arm']}, {result['scaling']} by {result['factor']}"
            recipes.setdefault(key, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    return [{"name": name, "text": text} for name, text in recipes.items()]


def _computed(results: Sequence[Json]) -> str:
    """How results were computed, in words; "" for those of older versions, which don't say."""
    lines = [
        Computation.model_validate(result["computation"]).line()
        for result in results
        if "computation" in result
    ]
    return "; ".join(dict.fromkeys(lines))
