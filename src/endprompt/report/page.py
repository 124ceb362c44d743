"""One self-contained HTML page for a run, or for several side by side.

Nothing is fetched: style and script are inline and named by their hashes in the page's own
Content-Security-Policy, which forbids everything else. Everything from data is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from endprompt import __version__
from endprompt.io.files import write_text
from endprompt.report import figures, tables
from endprompt.report.run_files import Run, arms, label, roles
from endprompt.report.verdict import plural, verdict

MARKS = {"better": "better", "worse": "worse", "FAILED": "worse"}
"""A row whose last cell says this is marked by colour as well, never by colour alone."""


def render(run_json: Run) -> str:
    """The page of one run."""
    return render_all({"run": run_json})


def render_all(runs: Mapping[str, Run]) -> str:
    """The page of one run or of several, by name; the first is compared with all others.

    Raises ValueError when there is none.
    """
    if not runs:
        raise ValueError("no run to report on")
    whole = combined(runs)
    return fill(
        "page.html",
        figures={name: drawing.inline() for name, drawing in _drawings(whole, runs).items()},
        title=_title(runs),
        kind=_kind(runs),
        facts=_facts(whole),
        warnings=differences(runs),
        parts=[_part(name, run, place) for place, (name, run) in enumerate(runs.items())],
        results=tables.results(whole),
        suites=tables.suite_tasks(whole),
        compared=tables.compared(whole),
        by_distance=tables.needle_by_distance(whole),
        needles=tables.needle_by_depth(whole),
        marks=MARKS,
    )


def fill(template: str, **values: Any) -> str:
    """A page from a shipped template: values are escaped, this package's own files are not."""
    import jinja2
    from markupsafe import Markup

    style, script = shipped("page.css"), shipped("page.js")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(shipped),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    return environment.get_template(template).render(
        policy=policy(style, script),
        style=Markup(style),
        script=Markup(script),
        absent=tables.ABSENT,
        version=__version__,
        **values,
    )


def write(runs: Mapping[str, Run], path: Path, *, assets: Path | None = None) -> list[Path]:
    """Write the page; with `assets`, figures as SVG and PNG, tables as CSV and Markdown too.

    Returns every path written.
    """
    written = [path]
    write_text(path, render_all(runs))
    if assets is None:
        return written
    whole = combined(runs)
    for drawing in _drawings(whole, runs).values():
        written += drawing.write(assets)
    for table in tables.everything(whole):
        written += table.write(assets)
    return written


def combined(runs: Mapping[str, Run]) -> Run:
    """Several runs as one: all arms, each named with its run; equal untrained arms once.

    Where the runs were not measured on the same texts, values are left out, so that nothing
    is paired that is no pair.
    """
    if len(runs) == 1:
        return next(iter(runs.values()))
    same = not differences(runs)
    arms: list[dict[str, Any]] = []
    for place, (name, run) in enumerate(runs.items()):
        for arm, role in roles(run):
            if role == "method" and place:
                role = "control"
            arm_ = {**arm, "name": f"{name}/{arm.get('name')}", "role": role}
            arm_["label"] = f"{label(arm)} ({name})"
            if not arm.get("trained"):
                twin = (known for known in arms if known["evaluation"] == arm.get("evaluation"))
                if same and next(twin, None) is not None:
                    continue
            arm_["evaluation"] = arm.get("evaluation") if same else _without_values(arm)
            arms.append(arm_)
    first = next(iter(runs.values()))
    targets = [run["target"] for run in runs.values() if run.get("target")]
    kept = {key: first.get(key) for key in ("schema_version", "kind", "model", "text", "created")}
    return {**kept, "target": max(targets, default=None), "arms": arms}


def _without_values(arm: Mapping[str, Any]) -> Any:
    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: strip(inner) for key, inner in value.items() if key != "values"}
        return value

    return strip(arm.get("evaluation"))


def differences(runs: Mapping[str, Run]) -> list[str]:
    """What stands in the way of comparing the runs, one sentence each."""
    said = []
    for what, key in (("model", "model"), ("text", "text")):
        known = {(run.get(key) or {}).get("sha256") for run in runs.values()}
        if len(known) > 1:
            said.append(
                f"These runs do not share one {what}: differences between them are not paired, "
                "and may come from that."
            )
    if len({run.get("target") for run in runs.values()}) > 1:
        said.append("These runs have different targets: compare at equal lengths only.")
    return said


def _drawings(whole: Run, runs: Mapping[str, Run]) -> dict[str, figures.Drawing]:
    makers = (figures.loss_by_position, figures.needle_map, figures.training)
    drawn = {drawing.name: drawing for make in makers if (drawing := make(whole)) is not None}
    for place, run in enumerate(runs.values()):
        for make in (figures.training_row, figures.coverage):
            drawing = make(run)
            if drawing is not None:
                drawing = replace(drawing, name=_numbered(drawing.name, place))
                drawn[drawing.name] = drawing
    return drawn


def _numbered(name: str, place: int) -> str:
    return name if place == 0 else f"{name}-{place + 1}"


def _part(name: str, run: Run, place: int) -> dict[str, Any]:
    recipe = run.get("recipe")
    return {
        "name": name,
        "verdict": verdict(run),
        "row": (run.get("example_row") or {}).get("segments") or [],
        "row_figure": _numbered("training-row", place),
        "coverage_figure": _numbered("coverage", place),
        "costs": [table for table in (tables.costs(run), tables.timings(run)) if table],
        "command": run.get("command"),
        "origins": [table for table in (tables.position_check(run), tables.origins(run)) if table],
        "recipe": json.dumps(recipe, indent=2, ensure_ascii=False) if recipe else None,
    }


def _title(runs: Mapping[str, Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs compared: " + ", ".join(runs)
    run = next(iter(runs.values()))
    name = (run.get("model") or {}).get("name") or "A model"
    target = run.get("target")
    return f"{name}, extended to {target:,} tokens" if target else f"{name}, extended"


def _kind(runs: Mapping[str, Run]) -> str:
    return "endprompt report: " + ("a comparison" if len(runs) > 1 else "one run")


def _facts(run: Run) -> str:
    model, text = run.get("model") or {}, run.get("text") or {}
    said = []
    if model.get("window_tokens"):
        said.append(f"old window {model['window_tokens']:,} tokens")
    if model.get("parameters"):
        millions = model["parameters"] / 1e6
        said.append(f"{millions:,.{0 if millions >= 10 else 2}f}M parameters")
    if text.get("name"):
        said.append(f"text: {text['name']}")
    said.append(plural(len(arms(run)), "arm"))
    if run.get("created"):
        said.append(f"made {str(run['created'])[:10]}")
    return " · ".join(said)


def policy(style: str, script: str) -> str:
    def named(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'sha256-{digest}'"

    return (
        f"default-src 'none'; style-src {named(style)}; script-src {named(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def shipped(name: str) -> str:
    text = resources.files("endprompt.report").joinpath("template", name).read_text("utf-8")
    return re.sub(r"\r\n?", "\n", text)
