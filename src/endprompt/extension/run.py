"""The main job as a sequence of steps: resolve, check, prepare, train, evaluate, report.

Heavy work is done by other commands (`doctor`, `train`, `eval window`) in processes of their own,
which meet this one in files. A step whose file is there is not done again, so that a killed run
resumes when the same command is given again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from endprompt import recipe as recipes
from endprompt.extension import record
from endprompt.extension.plan import Plan, make_plan
from endprompt.extension.prepare import Request, Say, first_rows, link
from endprompt.extension.suites import parse as parse_suites
from endprompt.extension.suites import scores
from endprompt.io import claims, files, jobs, provenance, records
from endprompt.models import embedded, precision
from endprompt.record import Timings

CHECKPOINT_BYTES = 2 * 12
"""Bytes a parameter of the two checkpoints that are kept: weights and AdamW's two moments."""


def extend(
    model: str | None = None,
    *,
    to: int | str,
    out: str | Path,
    text: list[str] | str | None = None,
    method: str | Path = recipes.DEFAULT,
    scaling: str | None = None,
    settings: dict[str, Any] | None = None,
    controls: bool = False,
    lengths: Sequence[int | str] | None = None,
    needles: int = 16,
    key_tokens: bool = False,
    eval_dtype: str = "auto",
    chat: bool = False,
    processes: int | None = None,
    accelerate_config: str | Path | None = None,
    suites: str | None = None,
    suite_settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Extend a model's window and evaluate it, as `endprompt extend` does without a screen.

    model     checkpoint folder, GGUF file or hub name; None: the embedded model
    to        target window in tokens, as 65536 or "64k"
    out       folder of the run; one that was interrupted resumes
    text      files, folders, globs or a hub data set; None: the embedded text
    settings  dotted keys of the recipe, as {"training.tokens": 100_000}
    controls  train the two controls too, on as many tokens
    lengths   tokens at which models are compared; None: inside and past the old window
    needles   planted within the shortest length, and asked at each
    key_tokens  give the loss on tokens that gain from far context too, by the base
    eval_dtype  precision of the evaluation: auto (the model's own), fast (bfloat16 where this
              machine is fast in it), float32, bfloat16, float16
    chat      rows of the text are chats: they are written with the model's chat template
    processes  of each training; None: all GPUs, or one process on a CPU
    accelerate_config  of Accelerate, for the trainings; None: as the weights fit
    suites    that every arm is asked, as "ruler:vt+cwe@8k+64k,untaught", "none"; None: RULER's
              tasks at window and target where GPUs make them cheap
    suite_settings  options of `eval run` for them, as {"samples": 5}

    Returns what `out/run.json` holds; the checkpoint is at its "checkpoint". Raises an
    EndPromptError for everything that a user can cause.
    """
    from endprompt import units

    overrides = dict(settings or {}) | ({"rope.scaling": scaling} if scaling else {})
    request = Request(
        model=model,
        target=units.tokens(str(to)),
        text=[text] if isinstance(text, str) else list(text or []),
        recipe=recipes.load(method).replace(overrides),
        out=Path(out),
        controls=controls,
        lengths=[units.tokens(str(length)) for length in lengths] if lengths else None,
        needles=needles,
        key_tokens=key_tokens,
        eval_dtype=eval_dtype,
        chat=chat,
        command="endprompt.extend(...)",
        scaling_chosen=recipes.chooses_scaling(method, overrides),
        processes=processes,
        accelerate_config=Path(accelerate_config) if accelerate_config else None,
        suites=None if suites is None else parse_suites(suites, suite_settings),
    )
    return run(request, say=_unheard, watch=_unheard, show=_unheard)


def _unheard(*_: Any) -> None:
    """Nobody looks on."""


def run(
    request: Request, *, say: Say, watch: jobs.Watcher, show: Callable[[Plan], None]
) -> dict[str, Any]:
    """Do all of it and return what `run.json` holds.

    say    called with each line about what happens
    watch  called with the progress of each job (`jobs.run`)
    show   given the plan before any training starts

    Raises an EndPromptError for everything that a user can cause.
    """
    model = embedded.resolve(request.model)
    reads = [model, *request.text]
    with claims.output(request.out, "extend", reads=reads) as held:
        began, lock = time.time(), held.lock
        plan = make_plan(request, model, say, watch, held)
        show(plan)
        _require_disk(request.out, plan)
        for arm in plan.arms:
            if not arm.trained:
                link(model, arm, request)
        seconds = jobs.run(
            plan.jobs,
            request.out / "jobs",
            at_once=plan.devices.places,
            threads=plan.devices.threads,
            watch=watch,
            lock=lock,
            gpus=plan.devices.gpus,
        )
        record_of_run = gather(request, plan)
        record_of_run["timings"] = _timings(request.out, seconds, time.time() - began)
        from endprompt.report.page import write
        from endprompt.report.verdict import verdict

        record_of_run["verdict"] = verdict(record_of_run)
        files.write_json(request.out / "run.json", record_of_run)
        write({request.out.name: record_of_run}, request.out / "report.html")
    return record_of_run


def gather(request: Request, plan: Plan) -> dict[str, Any]:
    """Everything that the jobs left, in the shape of `run.json`."""
    record_of_run: dict[str, Any] = {
        **provenance.provenance(),
        "kind": "extend",
        "command": request.command,
        "recipe": plan.recipe.model_dump(mode="json"),
        "recipe_hash": plan.recipe.hash(),
        "model": plan.model,
        "text": plan.text,
        "target": request.target,
        "lengths": plan.lengths,
        "plan": plan.costs["total"],
        "position_check": plan.checks,
        "arms": [
            record.arm_record(request.out / "arms" / arm.name, arm.name, arm.label, arm.recipe)
            for arm in plan.arms
        ],
    }
    for arm in record_of_run["arms"]:
        if plan.suites:
            arm["evaluation"]["suites"] = scores(request.out, arm["name"], plan.suites)
    record_of_run |= _rows_shown(request, plan)
    record_of_run["checkpoint"] = str(request.out / "arms" / plan.arms[-1].name / "model")
    for arm in plan.arms:
        if arm.name == plan.recipe.name:
            record_of_run["checkpoint"] = str(request.out / "arms" / arm.name / "model")
    return record_of_run


def _rows_shown(request: Request, plan: Plan) -> dict[str, Any]:
    """One row of the method as text with positions, and the distances that each arm trains."""
    from endprompt.analysis import coverage
    from endprompt.models.checkpoint import load_tokenizer

    tokenizer = load_tokenizer(plan.model["path"])
    rows = first_rows(request, plan.arms, plan.model["path"])
    if not rows:
        return {}
    return {
        "example_row": record.in_words(rows[plan.recipe.name], tokenizer),
        "coverage": {
            "recipes": [
                coverage.summary(
                    arm.name, arm.label, arm.recipe, rows[arm.name], target=request.target
                )
                for arm in plan.arms
                if arm.trained
            ]
        },
    }


def _require_disk(out: Path, plan: Plan) -> None:
    """Refuse to start what the disk can't hold: a model an arm, and two checkpoints at a time."""
    parameters = plan.model["parameters"]
    waiting = sum(arm.trained and not (out / "arms" / arm.name / "model").exists()
                  for arm in plan.arms)  # fmt: skip
    side = max(1, plan.devices.places // plan.ranks.takes)
    models = precision.BYTES[plan.precision] * parameters * waiting
    needed = models + CHECKPOINT_BYTES * parameters * min(waiting, side)
    files.require_room(out, needed, "models and checkpoints")


def _timings(out: Path, seconds: dict[str, float], total: float) -> dict[str, float]:
    """Seconds of each job and of all, kept across runs that were interrupted."""
    path = out / "timings.json"
    before: dict[str, float] = records.read(path, Timings).plain() if path.is_file() else {}
    timings = before | {key: round(value, 1) for key, value in seconds.items()}
    timings["total"] = (
        round(before.get("total", 0.0) + total, 1) if seconds else before.get("total", 0.0)
    )
    files.write_json(path, timings)
    return timings
