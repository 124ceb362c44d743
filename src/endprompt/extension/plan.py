"""The plan of a run: positions checked, speed measured, jobs listed and their cost counted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from endprompt import rope
from endprompt.compare import commands as arm_commands
from endprompt.cost import flops
from endprompt.extension import devices, suites
from endprompt.extension.devices import Devices, Ranks
from endprompt.extension.prepare import Arm, Prepared, Request, Say, link, prepare_run
from endprompt.extension.suites import RunSuite
from endprompt.io import claims, files, jobs, records
from endprompt.models import embedded
from endprompt.recipe import Recipe
from endprompt.record import Checks


@dataclass(frozen=True)
class Plan:
    """What will be done and what it costs on this machine; precision: of the base's weights."""

    model: dict[str, Any]
    precision: str
    text: dict[str, Any]
    recipe: Recipe
    arms: list[Arm]
    jobs: list[jobs.Job]
    lengths: list[int]
    documents: int
    devices: Devices
    ranks: Ranks
    suites: list[RunSuite]
    costs: dict[str, Any]
    checks: list[dict[str, Any]]


def make_plan(
    request: Request, model: str, say: Say, watch: jobs.Watcher, held: claims.Output
) -> Plan:
    """Prepare the data, check positions, count the cost; the folder is claimed at the end."""
    ready = prepare_run(request, model, say, held)
    waiting = [
        arm for arm in ready.arms if arm.trained and not _trained_file(request, arm).exists()
    ]
    devices.require_startable(ready.devices, len(waiting))
    checked = _check(request, model, ready, watch, held.lock)
    held.claim(ready.settings)
    calibration = checked["calibration"]
    dtype = request.eval_dtype
    if dtype == "fast":  # measured once, so that a run that is resumed has the same
        dtype = "bfloat16" if calibration["fast_in_bf16"] else "auto"
    say(f"evaluation in {ready.precision if dtype == 'auto' else dtype}; "
        f"the model is stored in {ready.precision}")  # fmt: skip
    ranks = _ranks(request, ready, calibration["gpu_bytes"])
    costs = _costs(ready, calibration, ranks)
    return Plan(
        model=_about_model(request.model, model, ready.config, ready.base, calibration),
        precision=ready.precision,
        text=ready.text,
        recipe=ready.recipe,
        arms=ready.arms,
        jobs=_jobs(request, model, ready, ranks, costs, dtype),
        lengths=ready.lengths,
        documents=ready.documents,
        devices=ready.devices,
        ranks=ranks,
        suites=ready.suites,
        costs=costs,
        checks=checked["checks"],
    )


def commands(request: Request, say: Say) -> list[tuple[jobs.Job, str]]:
    """The jobs of a run and their shell commands, in an order in which they can be run by hand.

    Text is prepared, recipes are written and untrained arms linked, for the commands to read. The
    folder is claimed: `run`, given the same request, continues from what the commands left. Raises
    an EndPromptError for everything that a user can cause.
    """
    model = embedded.resolve(request.model)
    with claims.output(request.out, "extend", reads=[model, *request.text]) as held:
        ready = prepare_run(request, model, say, held)
        held.claim(ready.settings)
        ranks = _ranks(request, ready, devices.gpu_memory())
        listed = _jobs(request, model, ready, ranks, None, request.eval_dtype)
        for arm in ready.arms:
            if not arm.trained:
                link(model, arm, request)
        check = _check_job(request, model, ready.recipe)
        listed = [check, *(replace(job, needs=(check.name, *job.needs)) for job in listed)]
    return [(job, devices.shell(job, ready.devices, ranks.machines)) for job in listed]


def _ranks(request: Request, ready: Prepared, gpu_bytes: float) -> Ranks:
    return devices.ranks_of(
        ready.devices,
        ready.recipe,
        flops.read(ready.config),
        trainings=ready.trainings,
        gpu_bytes=gpu_bytes,
        out=request.out,
        cuttable=ready.rows_cuttable,
    )


def _check(
    request: Request, model: str, ready: Prepared, watch: jobs.Watcher, lock: int
) -> dict[str, Any]:
    """The position check and a short calibration, as a job; stops the run when it fails."""
    job = _check_job(request, model, ready.recipe)
    jobs.run(
        [job],
        request.out / "jobs",
        at_once=1,
        threads=ready.devices.threads,
        watch=watch,
        lock=lock,
        gpus=ready.devices.gpus[:1],
    )
    return records.read(job.result, Checks).plain()


def _check_job(request: Request, model: str, recipe: Recipe) -> jobs.Job:
    result, path = request.out / "doctor.json", request.out / "recipe.yaml"
    arm_commands.write_recipe(path, recipe)
    arguments = ["doctor", model, "--to", str(request.target), "--method", str(path)]
    return jobs.Job(
        "check",
        "position check and calibration",
        [*arguments, "--calibrate", "--json", str(result)],
        result,
        seconds=30,
    )


def _costs(ready: Prepared, calibration: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """FLOPs, seconds and memory of a training and an evaluation, from the calibration's rates."""
    recipe, arms, places = ready.recipe, ready.arms, ready.devices.places
    decoder = flops.read(ready.config)
    training_rate = (
        flops.training(decoder, calibration["step_tokens"]).total / calibration["step_seconds"]
    )
    reading_rate = (
        flops.forward(decoder, calibration["prefill_tokens"]) / calibration["prefill_seconds"]
    )
    amounts = recipe.amounts
    train_seconds = flops.row(recipe, decoder).total * amounts.rows / training_rate
    train_seconds /= ranks.processes
    # long contexts are read at a lower rate than the calibration's short one
    eval_seconds = 1.5 * ready.documents * flops.forward(decoder, max(ready.lengths)) / reading_rate
    needed = devices.needed_bytes(recipe, decoder, ranks, calibration["gpu_bytes"])
    side = max(1, places // ranks.takes)
    suite_seconds = [
        1.5 * suites.operations(suite, decoder) / reading_rate for suite in ready.suites
    ]
    seconds = ready.trainings * train_seconds / side
    seconds += len(arms) * (eval_seconds + sum(suite_seconds)) / places
    return {
        "train_seconds": train_seconds,
        "eval_seconds": eval_seconds,
        "suite_seconds": suite_seconds,
        "total": {
            "steps": amounts.steps,
            "rows": amounts.rows,
            "row_tokens": amounts.row_tokens,
            "tokens": amounts.tokens,
            "flops": flops.row(recipe, decoder).total * amounts.rows,
            "minutes": seconds / 60,
            "memory_gib": needed / 2**30,
            "trainings": ready.trainings,
            "evaluations": len(arms),
        },
    }


def _jobs(
    request: Request,
    model: str,
    ready: Prepared,
    ranks: Ranks,
    costs: dict[str, Any] | None,
    dtype: str,
) -> list[jobs.Job]:
    """Trainings and evaluations, in the order in which they are best started.

    costs  None: not known yet
    """
    seconds: dict[str, Any] = costs or {
        "train_seconds": 60.0,
        "eval_seconds": 60.0,
        "suite_seconds": [60.0] * len(ready.suites),
    }
    arms = ready.arms
    data = request.out / "data"
    listed = []
    for arm in arms:
        folder = request.out / "arms" / arm.name
        if arm.trained:
            path = request.out / "recipes" / f"{arm.name}.yaml"
            arm_commands.write_recipe(path, arm.recipe)
            listed.append(
                jobs.Job(
                    f"train-{arm.name}",
                    f"train {arm.label}",
                    arm_commands.train(
                        path, model=model, data=data, target=request.target, out=folder
                    ) + ranks.options(),
                    _trained_file(request, arm),
                    seconds=seconds["train_seconds"],
                    takes=ranks.takes,
                )
            )  # fmt: skip
    for arm in arms:
        folder = request.out / "arms" / arm.name
        keys, needs = _keys(request, arm.name)
        listed.append(
            jobs.Job(
                f"eval-{arm.name}",
                f"evaluate {arm.label}",
                arm_commands.window(
                    folder / "model", data=data, lengths=ready.lengths,
                    documents=ready.documents, needles=request.needles, dtype=dtype,
                    result=folder / "window.json", keys=keys,
                ),
                folder / "window.json",
                needs=((f"train-{arm.name}",) if arm.trained else ()) + needs,
                seconds=seconds["eval_seconds"],
            )
        )  # fmt: skip
    for arm in arms:
        needs = (f"train-{arm.name}",) if arm.trained else ()
        listed += suites.jobs_of(
            ready.suites, request.out, arm.name, arm.label,
            dtype=dtype, needs=needs, seconds=seconds["suite_seconds"],
        )  # fmt: skip
    if ranks.takes == ready.devices.places and ranks.takes > 1:
        return listed  # trainings have every device, then evaluations
    # the base is read beside the first training: what is wrong with the text shows early
    return sorted(listed, key=lambda job: job.name != "eval-base")


def _keys(request: Request, arm: str) -> tuple[list[str], tuple[str, ...]]:
    """Options of an evaluation for key tokens, and the job that finds them: the base's."""
    if not request.key_tokens:
        return [], ()
    base = request.out / "arms" / "base"
    if arm == "base":
        return ["--evaluator", str(base / "model")], ()
    return ["--keys", str(base / "window.json")], ("eval-base",)


def _trained_file(request: Request, arm: Arm) -> Path:
    """What a training leaves at its end."""
    return request.out / "arms" / arm.name / "train.json"


def _about_model(
    asked: str | None, path: str, config: Any, base: rope.Base, calibration: dict[str, Any]
) -> dict[str, Any]:
    weights = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    return {
        "name": embedded.MODEL_NAME if asked is None else Path(path).name or path,
        "source": f"package {embedded.MODEL_WHEEL.package} {embedded.MODEL_WHEEL.version}"
        if asked is None
        else asked,
        "path": path,
        "type": config.model_type,
        "window_tokens": base.window,
        "rope_theta": base.theta,
        "parameters": calibration["parameters"],
        "sha256": files.sha256_of([files.sha256_file(file) for file in weights]),
        "licence": embedded.MODEL_LICENCE if asked is None else "that of the base",
    }
