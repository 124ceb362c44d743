"""The page of studies: our numbers beside the paper's, and which signs agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from endprompt.io import files
from endprompt.report import figures, page
from endprompt.report.tables import ABSENT, Cell, Table, number_cell
from endprompt.report.verdict import plural

MARKS = {"agrees": "better", "disagrees": "worse"}
SCALES = {
    "lab": "the laboratory: small models trained from scratch on a made-up language",
    "smollm2": "a real model of 135 million weights, to 16K",
    "paper": "the paper's own protocol",
}
SHOWN = ("agrees", "disagrees", "not significant", "no interval: undecided")
LABELS = {"none": "base, unscaled", "pi": "base, PI, untrained"}


def write(record: Mapping[str, Any], out: Path) -> list[Path]:
    """Write `study.html`, `study.json`, and tables and figures beside them; returns every path."""
    written = [out / "study.html", out / "study.json"]
    files.write_text(written[0], render(record))
    files.write_json(written[1], record)
    for study in record["studies"]:
        for table in tables(study):
            written += table.write(out / "tables")
        drawing = signs(study)
        if drawing is not None:
            written += drawing.write(out / "figures")
    return written


def render(record: Mapping[str, Any]) -> str:
    """The page, self-contained; everything from results is escaped."""
    studies = record["studies"]
    return page.fill(
        "study.html",
        title=studies[0]["title"] if len(studies) == 1 else "The paper's tables and figures, run",
        facts=_facts(record),
        scale=SCALES[record["scale"]],
        missing=record["missing"],
        command=record["command"],
        summary=summary(studies) if len(studies) > 1 else None,
        studies=[
            {
                "id": f"study-{study['name']}",
                "title": study["title"],
                "source": study["source"],
                "claim": study["claim"],
                "absent": study["absent"],
                "sentences": study["sentences"],
                "notes": study["notes"],
                "tables": tables(study),
                "figures": [drawn.inline()] if (drawn := signs(study)) else [],
                "details": [measures(study), arms(study)],
            }
            for study in studies
        ],
        recipes=_recipes(studies),
        origin=_origin(record),
        marks=MARKS,
    )


def _facts(record: Mapping[str, Any]) -> str:
    count = len(record["studies"])
    said = [f"scale {record['scale']}", "1 study" if count == 1 else f"{count} studies"]
    if record["seeds"]:
        said.append(plural(record["seeds"], "base"))
    said.append(f"made {record['provenance']['created'][:10]}")
    return " · ".join(said)


def summary(studies: Sequence[Mapping[str, Any]]) -> Table:
    """One line a study: how many of the paper's differences have our sign."""
    rows = []
    words = [word for word in SHOWN if word == SHOWN[0] or any(s["counts"][word] for s in studies)]
    for study in studies:
        counts = study["counts"]
        cells = [Cell(str(counts[word]), value=counts[word]) for word in words]
        if study["absent"]:
            cells = [Cell("no meaning here"), *(Cell("") for _ in words[1:])]
        rows.append((Cell(study["title"]), Cell(study["source"]), *cells))
    return Table(
        "summary",
        "Differences that the paper prints, by whether ours have their sign",
        ("study", "in the paper", *words),
        tuple(rows),
    )


def tables(study: Mapping[str, Any]) -> list[Table]:
    """Every table of one study: values by measure, then the differences."""
    measured = [measure for measure in study["measures"] if measure["ours"]]
    listed = []
    for place, name in enumerate(dict.fromkeys(measure["table"] for measure in measured)):
        listed.append(_values(study, name, [m for m in measured if m["table"] == name], place))
    if study["comparisons"]:
        listed.append(_differences(study))
    return listed


def _values(
    study: Mapping[str, Any], name: str, measures: Sequence[Mapping[str, Any]], place: int
) -> Table:
    units = dict.fromkeys(measure["unit"] for measure in measures)
    present = dict.fromkeys(arm for measure in measures for arm in measure["ours"])
    rows = []
    for arm in present:
        cells = []
        for measure in measures:
            ours, paper = measure["ours"].get(arm), measure["paper"].get(arm)
            note = "" if ours is None or ours["low"] is None else (
                f"[{_number(ours['low'], measure)}, {_number(ours['high'], measure)}]"
            )  # fmt: skip
            if paper is not None:
                note = f"{note} paper {paper:.2f}".strip()
            cells.append(
                Cell(ABSENT, note) if ours is None
                else Cell(_number(ours["mean"], measure), note, ours["mean"])
            )  # fmt: skip
        rows.append((Cell(LABELS.get(arm, arm)), *cells))
    return Table(
        f"{study['name']}-{place + 1}",
        f"{study['title']}: {name}, {' and '.join(units)}, with 95 % intervals, the paper's below",
        ("arm", *(measure["name"] for measure in measures)),
        tuple(rows),
    )


def _number(value: float, measure: Mapping[str, Any]) -> str:
    return f"{value:.1f}" if measure["unit"] == "%" else f"{value:.2f}"


def _differences(study: Mapping[str, Any]) -> Table:
    rows = []
    for comparison in study["comparisons"]:
        ours, paper = comparison["ours"], comparison["paper"]
        between = (
            "" if ours["low"] is None
            else f" [{_signed(ours['low'], comparison)}, {_signed(ours['high'], comparison)}]"
        )  # fmt: skip
        rows.append(
            (
                Cell(f"{comparison['measure']}, less {comparison['other']}"),
                Cell(_signed(ours["mean"], comparison) + between, value=ours["mean"]),
                Cell("–") if paper is None else number_cell(paper, "+.2f"),
                Cell(comparison["word"]),
            )
        )
    return Table(
        f"{study['name']}-differences",
        f"{study['main']} less every other arm: paired on the same bases and questions, and as the "
        "paper prints it, without intervals",
        ("measure", "here [95 %]", "paper", "sign"),
        tuple(rows),
    )


def _signed(value: float, comparison: Mapping[str, Any]) -> str:
    return f"{value:+.1f}" if comparison["unit"] == "%" else f"{value:+.2f}"


def arms(study: Mapping[str, Any]) -> Table:
    """What each arm is, and how many runs of it are there."""
    rows = []
    for arm in study["arms"]:
        settings = ", ".join(f"{key}={value}" for key, value in arm["set"].items())
        rows.append(
            (
                Cell(arm["name"]),
                Cell(arm["recipe"], settings),
                number_cell(arm["windows"], "g"),
                number_cell(arm["tokens"], "g"),
                Cell("left out" if arm["absent"] else str(len(arm["runs"]))),
                Cell(arm["absent"] or arm["note"]),
            )
        )
    return Table(
        f"{study['name']}-arms",
        f"Arms of “{study['title']}”: target in windows, tokens as a part of the study's",
        ("arm", "recipe", "target", "tokens", "runs", "note"),
        tuple(rows),
    )


def measures(study: Mapping[str, Any]) -> Table:
    """What every column is here and in the paper."""
    rows = [
        (
            Cell(measure["name"]),
            Cell(measure["source"]),
            Cell(measure["asked"] or "not measured"),
            Cell(measure["absent"] or ""),
        )
        for measure in study["measures"]
    ]
    return Table(
        f"{study['name']}-measures",
        f"Measures of “{study['title']}”",
        ("measure", "in the paper", "here", "why not"),
        tuple(rows),
    )


def signs(study: Mapping[str, Any]) -> figures.Drawing | None:
    """Differences of the paper and ours, one under the other, each on its own axis."""
    shown = [comparison for comparison in study["comparisons"] if comparison["paper"] is not None]
    if not shown:
        return None
    names = [f"{comparison['measure']}: less {comparison['other']}" for comparison in shown]
    with figures.settings():
        figure, grid = figures.new(0.9 + 0.23 * len(shown), 1, 2, sharey=True)
        theirs, here = grid[0]
        for place, comparison in enumerate(shown):
            theirs.plot(comparison["paper"], place, "s", color=figures.MUTED, markersize=5)
            ours = comparison["ours"]
            if ours["low"] is not None:
                here.plot([ours["low"], ours["high"]], [place, place], color=figures.ACCENT, lw=2)
            here.plot(ours["mean"], place, "o", color=figures.ACCENT, markersize=5)
        for axes, title in ((theirs, "the paper"), (here, "here, 95 %")):
            axes.axvline(0, color=figures.MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
            axes.set_title(title)
            axes.grid(axis="y")
            low, high = axes.get_xlim()
            far = max(abs(low), abs(high))
            axes.set_xlim(-far, far)

        figure.supxlabel(f"{study['main']} less the other", fontsize=8.5)
        theirs.set_yticks(range(len(names)), names, fontsize=8)
        theirs.set_ylim(len(names) - 0.5, -0.5)
    signs = "; ".join(
        f"{name}: {comparison['word']}" for name, comparison in zip(names, shown, strict=True)
    )
    return figures.Drawing(
        f"{study['name']}-signs",
        f"{study['title']}: differences there and here",
        signs + ".",
        figure,
    )


def _recipes(studies: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The recipe of each arm that was run, in full, once."""
    import yaml

    recipes = {}
    for study in studies:
        for arm in study["arms"]:
            for run in arm["runs"][:1]:
                recipe = run["recipe"]
                kept = {key: recipe[key] for key in ("rope", "rows", "training") if key in recipe}
                name = f"{recipe['name']}, {arm['windows']:g} windows"
                recipes[name] = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    return [{"name": name, "text": text} for name, text in recipes.items()]


def _origin(record: Mapping[str, Any]) -> list[str]:
    """Commits and machines that the runs come from."""
    said = {}
    for study in record["studies"]:
        for arm in study["arms"]:
            for run in arm["runs"]:
                origin = run["provenance"]
                device = origin.get("device") or {}
                key = (origin.get("commit"), device.get("gpu") or device.get("processor"))
                said[key] = said.get(key, 0) + 1
    return [
        f"{count} run(s) of arms: commit {commit or 'not recorded'}, {device or 'device unknown'}"
        for (commit, device), count in said.items()
    ]
