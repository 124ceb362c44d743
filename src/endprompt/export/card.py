"""The model card, in the hub's format, from the record of the run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from endprompt.export.engines import Served
from endprompt.recipe import Recipe

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
NO_LICENCE = "that of the base"


def write(
    run: Mapping[str, Any],
    recipe: Recipe,
    window: int,
    target: int,
    name: str,
    served: Sequence[Served],
) -> str:
    """Text of README.md: what the model is, what was measured, its limits, how to serve it.

    run   what run.json holds; what is absent in it is said to be absent
    name  of the exported folder
    """
    model = run.get("model") or {}
    parts = [
        _front_matter(model),
        f"# {name}",
        f"{_base_name(model)} with its window extended from {window:,} to {target:,} tokens"
        + (", then fine-tuned." if run.get("sft") else "."),
        _facts(run, recipe, model),
        _tuned(run),
        _results(run),
        _limits(run, window, target),
        _serving(served),
        _command(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(model: Mapping[str, Any]) -> str:
    licence = model.get("licence") or NO_LICENCE
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["long-context", "rope", "endprompt"],
    }
    if licence == NO_LICENCE:
        values |= {"license": "other", "license_name": "same-as-base"}
    else:
        values["license"] = licence.lower()
    source = str(model.get("source") or "")
    if HUB_NAME.fullmatch(source):
        values |= {"base_model": source, "base_model_relation": "finetune"}
    return f"---\n{yaml.safe_dump(values, sort_keys=True)}---"


def _base_name(model: Mapping[str, Any]) -> str:
    return f"`{model['name']}`" if model.get("name") else "A model"


def _facts(run: Mapping[str, Any], recipe: Recipe, model: Mapping[str, Any]) -> str:
    text = run.get("text") or {}
    amounts = recipe.amounts
    source = without_folders(str(model.get("source") or "not recorded"))
    rows = [
        ("base", f"{model.get('name', 'not recorded')} ({source})"),
        ("licence of the base", model.get("licence", "not recorded")),
        ("method", f"{recipe.name}: {recipe.summary}" if recipe.summary else recipe.name),
        ("scaling of RoPE", recipe.rope.scaling),
    ]
    if recipe.trained:
        rows += [
            ("trained on", f"{amounts.tokens:,} tokens in {amounts.rows:,} rows of "
             f"{amounts.row_tokens:,}, {amounts.steps:,} steps"),
            ("weights trained", recipe.training.trainable),
        ]  # fmt: skip
    rows += [
        ("text", f"{without_folders(text['name'])} ({text['licence']})" if text else "not recorded")
    ]
    rows += [("recipe", str(run.get("recipe_hash", recipe.hash()))[:12]),
             ("made", str(run.get("created", "not recorded"))),
             ("versions", ", ".join(f"{k} {v}" for k, v in sorted(run.get("versions", {}).items())))
    ]  # fmt: skip
    return _list(rows)


def _tuned(run: Mapping[str, Any]) -> str:
    """What `endprompt sft` did to the extended model."""
    tuned = run.get("sft")
    if not tuned:
        return ""
    settings = tuned["settings"]
    trainable = settings.get("trainable", settings.get("trains"))  # its name before 0.2
    passes = "" if settings["steps"] else f" (passes over the rows: {settings['epochs']:g})"
    rows = [
        ("started from", without_folders(str(run.get("started_from", "not recorded")))),
        ("conversations", ", ".join(without_folders(source) for source in tuned["data"])),
        ("rows", f"{tuned['rows']:,}, of {tuned['tokens']:,} tokens, {tuned['learnt']:,} of them "
         f"answers; {tuned['too_long']:,} longer rows left out"),
        ("trained", f"{tuned['steps']:,} steps{passes}, weights: "
         f"{trainable}, learning rate {settings['learning_rate']:g}"),
    ]  # fmt: skip
    return (
        "## Fine-tuned after extension\n\nBy `endprompt sft`, on the answers of conversations; the "
        f"window and RoPE stayed as extended.\n\n{_list(rows)}"
    )


def _list(rows: Sequence[tuple[str, Any]]) -> str:
    lines = ["| | |", "| --- | --- |"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in rows if value]
    return "\n".join(lines)


def _results(run: Mapping[str, Any]) -> str:
    from endprompt.report import tables

    tables_of_run = tables.results(run) if run.get("arms") else []
    if not tables_of_run:
        return "## Measured\n\nNothing was measured in the run that this model comes from."
    shown = [f"{table.caption}\n\n{table.markdown().strip()}" for table in tables_of_run]
    verdict = [_cell(line) for line in (run.get("verdict") or [])[:6]]
    return "## Measured, beside the base and the controls\n\n" + "\n\n".join(
        [*shown, "\n".join(f"- {line}" for line in verdict)]
    )


def _limits(run: Mapping[str, Any], window: int, target: int) -> str:
    lengths = run.get("lengths") or []
    trained = [arm for arm in run.get("arms") or [] if arm.get("trained")]
    lines = []
    if lengths and max(lengths) < target:
        lines.append(f"Nothing was measured past {max(lengths):,} of {target:,} tokens.")
    if not lengths:
        after = " after fine-tuning" if run.get("sft") else ""
        lines.append(f"Reading up to the target was not measured{after}.")
    if len(trained) < 2:
        lines.append(
            "No trained control stands beside it: what the method adds to plain training on short "
            "text is not known from this run."
        )
    lines += [
        f"One training seed. Quality inside the old window of {window:,} tokens may differ from "
        "the base's" + (": see the shorter lengths above." if lengths else "."),
        "Beyond the target the model is not meant to be used.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _serving(served: Sequence[Served]) -> str:
    lines = ["## Serving", ""]
    for engine in served:
        if engine.obstacle:
            lines.append(f"- **{engine.engine}**: not with this scaling: {engine.obstacle}")
        else:
            note = f" ({engine.note})" if engine.note else ""
            lines.append(f"- **{engine.engine}**: `{engine.command}`{note}")
    lines += ["", "Check it on your machine: `endprompt export verify FOLDER`, or with "
              "`--url http://127.0.0.1:8000/v1 --name NAME` through a server."]  # fmt: skip
    return "\n".join(lines)


def _command(run: Mapping[str, Any]) -> str:
    commands = [str(run[key]) for key in ("extended_by", "command") if run.get(key)]
    if not commands:
        return ""
    lines = "\n".join(without_folders(command).replace("```", "") for command in commands)
    return f"## Made by\n\n```\n{lines}\n```"


def without_folders(text: str) -> str:
    """Paths of the machine it was made on, by their last part: the card is for others.

    >>> without_folders("--text /data/me/books --out ./runs/a")
    '--text books --out a'
    """
    return re.sub(r"(?:(?<=[\s=,'\"])|^)(?:~|\.{0,2})/(?:[^\s/'\",]+/)*(?=[^\s/])", "", text)


def _cell(value: object) -> str:
    text = " ".join(str(value).split())
    for mark in "\\|<>[]`*_":
        text = text.replace(mark, "\\" + mark)
    return text
