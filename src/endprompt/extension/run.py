"""The main job as a sequence of steps: resolve, check, prepare, train, evaluate, report.

Heavy work is done by other commands (`doctor`, `train`, `eval window`) in processes of their own,
which meet this one in files. A step whose file is there is not done again, so that a killed run
resumes when the same command is given again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endprompt import rope
from endprompt.compare import commands as words
from endprompt.cost import flops
from endprompt.errors import DataError, RecipeError
from endprompt.extension import devices as on
from endprompt.extension import record
from endprompt.extension import suites as more
from endprompt.extension.devices import Devices, Ranks
from endprompt.extension.suites import RunSuite
from endprompt.io import claims, digests, files, jobs, provenance, records
from endprompt.io.secrets import redact
from endprompt.models import embedded, precision
from endprompt.recipe import Recipe
from endprompt.record import Checks, Timings

if TYPE_CHECKING:
    from endprompt.data.rows import Row

SHOWN_ROWS = 64
"""Rows of each arm that the report's example and distances are taken from."""
CHECKPOINT_BYTES = 2 * 12
"""Bytes a parameter of the two checkpoints that are kept: weights and AdamW's two moments."""


@dataclass(frozen=True)
class Arm:
    """One model of the comparison."""

    name: str
    label: str
    recipe: Recipe

    @property
    def trained(self) -> bool:
        """False for the base and for untrained scaling."""
        return self.recipe.trained


@dataclass(frozen=True)
class Request:
    """What the user asked for, every amount a number or left to `plan`."""

    model: str | None
    target: int
    text: list[str]
    recipe: Recipe
    out: Path
    controls: bool = False
    lengths: list[int] | None = None
    documents: int | None = None
    needles: int = 16
    eval_dtype: str = "auto"
    chat: bool = False
    command: str = "endprompt extend"
    scaling_chosen: bool = False
    """False: a base with a rule of its own keeps that rule, whatever the recipe's."""
    processes: int | None = None
    """Of each training; None: as many as the devices and the weights ask for."""
    accelerate_config: Path | None = None
    suites: tuple[RunSuite, ...] | None = None
    """Suites that every arm is asked; None: RULER where GPUs make it cheap."""


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


Say = Callable[[str], None]


def arms_of(recipe: Recipe, controls: bool, own_rule: str = "") -> list[Arm]:
    """Base and untrained scaling, then the method, then its two controls at equal tokens.

    own_rule  of a base that is scaled already
    """
    plain = recipe.untrained()
    base = plain.model_copy(
        update={"name": "base", "rope": plain.rope.model_copy(update={"scaling": "none"})}
    )
    scaled = rope.TITLES.get(plain.rope.scaling, plain.rope.scaling)
    own = rope.TITLES.get(own_rule, own_rule)
    arms = [
        Arm("base", f"base, its own {own}" if own else "base, unscaled", base),
        Arm("untrained", f"{scaled}, untrained", plain),
    ]
    if recipe.trained:
        arms.append(Arm(recipe.name, f"{scaled} + {recipe.name}", recipe))
        if controls:
            arms.append(Arm("short", f"{scaled} + plain short text (control)", recipe.plain()))
            if recipe.jumps:
                bare = recipe.without_jump()
                arms.append(Arm(bare.name, f"{scaled} + {recipe.name} without the jump", bare))
    return arms


def extend(
    model: str | None = None,
    *,
    to: int | str,
    out: str | Path,
    text: list[str] | str | None = None,
    method: str | Path = "recall-anchors",
    scaling: str | None = None,
    settings: dict[str, Any] | None = None,
    controls: bool = False,
    lengths: Sequence[int | str] | None = None,
    needles: int = 16,
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
    from endprompt import recipe as recipes
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
        eval_dtype=eval_dtype,
        chat=chat,
        command="endprompt.extend(...)",
        scaling_chosen=recipes.chooses_scaling(method, overrides),
        processes=processes,
        accelerate_config=Path(accelerate_config) if accelerate_config else None,
        suites=None if suites is None else more.parse(suites, suite_settings),
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
                _link(model, arm, request)
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


@dataclass(frozen=True)
class _Prepared:
    """What is known of a run before anything computes.

    settings   what the folder is claimed with
    precision  of the base's stored weights
    """

    config: Any
    base: rope.Base
    precision: str
    devices: Devices
    recipe: Recipe
    lengths: list[int]
    documents: int
    text: dict[str, Any]
    arms: list[Arm]
    suites: list[RunSuite]
    settings: dict[str, Any]
    rows_cuttable: bool

    @property
    def trainings(self) -> int:
        return sum(arm.trained for arm in self.arms)


def make_plan(
    request: Request, model: str, say: Say, watch: jobs.Watcher, held: claims.Output
) -> Plan:
    """Prepare the data, check positions, count the cost; the folder is claimed at the end."""
    ready = _prepare_run(request, model, say, held)
    waiting = [arm for arm in ready.arms if arm.trained and not _result(request, arm).exists()]
    on.require_startable(ready.devices, len(waiting))
    checked = _check(request, model, ready.recipe, ready.devices, watch, held.lock)
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
    folder is claimed: `run`, given the same request, takes up what the commands left. Raises an
    EndPromptError for everything that a user can cause.
    """
    model = embedded.resolve(request.model)
    with claims.output(request.out, "extend", reads=[model, *request.text]) as held:
        ready = _prepare_run(request, model, say, held)
        held.claim(ready.settings)
        ranks = _ranks(request, ready, on.gpu_memory())
        listed = _jobs(request, model, ready, ranks, None, request.eval_dtype)
        for arm in ready.arms:
            if not arm.trained:
                _link(model, arm, request)
        check = _check_job(request, model, ready.recipe)
        listed = [check, *(replace(job, needs=(check.name, *job.needs)) for job in listed)]
    return [(job, on.shell(job, ready.devices, ranks.machines)) for job in listed]


def _prepare_run(request: Request, model: str, say: Say, held: claims.Output) -> _Prepared:
    """Refuse what can't be, prepare the text, and take the folder."""
    from endprompt.eval.engine import Coder
    from endprompt.eval.window import require_room
    from endprompt.models import checkpoint as models

    devices = on.here(request.processes, request.accelerate_config)
    config = models.load_config(model)
    family = models.family_of(model, config)
    base = family.base
    rope.factor(base.window, request.target)  # refuses a target that is not above the window
    asked = request.recipe if request.scaling_chosen else _suited(request.recipe, family, say)
    models.scaled_parameters(family, asked, request.target)  # refuses what has no form
    stored = models.check(model, config)
    precision.require_known(request.eval_dtype)
    recipe = asked.resolve(
        window=base.window,
        target=request.target,
        gpu=devices.for_gpus,
        base=base,
        fast_in_bf16=_fast_in_bf16(asked, devices, held),
    )
    if not recipe.trained and recipe.rope.scaling == "none":
        raise RecipeError(f"method {recipe.name!r} neither scales nor trains: nothing to extend")
    on.require_divisible(devices, recipe)
    lengths = request.lengths or default_lengths(base.window, request.target)
    if max(lengths) > request.target:
        raise RecipeError(
            f"--lengths go to {max(lengths)}, past the target of {request.target} tokens"
        )
    tokenizer = models.load_tokenizer(model)
    documents = request.documents or (4 if devices.for_gpus else 1)
    settings = _claimed(request, model, recipe, lengths, documents)
    held.require(settings)
    _reserve(held)
    data = request.out / "data"
    text = _prepare(request, recipe, tokenizer, lengths, documents, data, say,
                    fresh=held.claimed is None)  # fmt: skip
    own = rope.name_of(base.parameters) if base.parameters else ""
    arms = arms_of(recipe, request.controls, own)
    _rows(request, arms, model)  # what can't be made is said before anything runs
    require_room(Coder(tokenizer), lengths, needles=request.needles)
    suites = _suites(request, recipe, config, base.window, devices)
    more.require_askable(suites, tokenizer)
    return _Prepared(
        config=config,
        base=base,
        precision=stored.precision,
        devices=devices,
        recipe=recipe,
        lengths=lengths,
        documents=min(documents, text["holdout_documents"]),
        text=text,
        arms=arms,
        suites=suites,
        settings=settings,
        rows_cuttable=on.cut_allowed(recipe, family.local_span(request.target)),
    )


def _fast_in_bf16(recipe: Recipe, devices: Devices, held: claims.Output) -> bool:
    """Whether `training.dtype: fast` is bf16 on this CPU; a run that is resumed has what it had."""
    if recipe.training.dtype != "fast" or devices.for_gpus:
        return False
    if held.claimed is not None:
        return held.claimed.get("recipe", {}).get("training", {}).get("dtype") == "bfloat16"
    return precision.fast_in_bf16("cpu")


def _suites(
    request: Request, recipe: Recipe, config: Any, window: int, devices: Devices
) -> list[RunSuite]:
    decoder = flops.read(config)
    return more.chosen(
        request.suites,
        window=window,
        target=request.target,
        decoder=decoder,
        for_gpus=devices.for_gpus,
        training=flops.row(recipe, decoder).total * recipe.amounts.rows,
    )


def _ranks(request: Request, ready: _Prepared, gpu_bytes: float) -> Ranks:
    return on.ranks_of(
        ready.devices,
        ready.recipe,
        flops.read(ready.config),
        trainings=ready.trainings,
        gpu_bytes=gpu_bytes,
        out=request.out,
        cuttable=ready.rows_cuttable,
    )


def _result(request: Request, arm: Arm) -> Path:
    """What a training leaves at its end."""
    return request.out / "arms" / arm.name / "train.json"


def _suited(recipe: Recipe, family: Any, say: Say) -> Recipe:
    """The recipe with the scaling that suits the base; another than the recipe's is said."""
    suited = recipe.replace({"rope.scaling": family.suited(recipe.rope.scaling)})
    if suited.rope.scaling != recipe.rope.scaling:
        say(
            f"RoPE scaling: {suited.rope.scaling}, which the base has or its family asks for, "
            f"not the recipe's {recipe.rope.scaling} (--scaling sets another)"
        )
    return suited


def _claimed(
    request: Request, model: str, recipe: Recipe, lengths: list[int], documents: int
) -> dict[str, Any]:
    """What decides about every result of a run: a folder with others is another run's."""
    return {
        "model": model,
        **digests.of_model(model),
        "target": request.target,
        "text": [redact(spec) for spec in request.text],
        "recipe": recipe.digested(),
        "lengths": lengths,
        "documents": documents,
        "needles": request.needles,
        "eval_dtype": request.eval_dtype,
        **({"chat": True} if request.chat else {}),
    }


def default_lengths(window: int, target: int) -> list[int]:
    """Half of the window, the window, and up to the target, which is always there."""
    past = [round(window + (target - window) * part / 2) for part in (1, 2)]
    return sorted({window // 2, window, *past, target})


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
            arm["evaluation"]["suites"] = more.scores(request.out, arm["name"], plan.suites)
    record_of_run |= _rows_shown(request, plan)
    record_of_run["checkpoint"] = str(request.out / "arms" / plan.arms[-1].name / "model")
    for arm in plan.arms:
        if arm.name == plan.recipe.name:
            record_of_run["checkpoint"] = str(request.out / "arms" / arm.name / "model")
    return record_of_run


def _rows(request: Request, arms: Sequence[Arm], model: str) -> dict[str, list[Row]]:
    """The first rows of every arm that trains. Raises RecipeError where they can't be made."""
    from endprompt.cues import CueWriter
    from endprompt.data import holdout
    from endprompt.data.rows import RowSource
    from endprompt.models.checkpoint import load_tokenizer

    tokenizer = load_tokenizer(model)
    documents, _ = holdout.training_documents(request.out / "data")

    def rows_of(recipe: Recipe) -> list[Row]:
        source = RowSource(
            documents,
            recipe.rows,
            CueWriter(tokenizer),
            target=request.target,
            seed=recipe.training.seed,
            count=SHOWN_ROWS,
        )
        return [source.row(index) for index in range(SHOWN_ROWS)]

    return {arm.name: rows_of(arm.recipe) for arm in arms if arm.trained}


def _rows_shown(request: Request, plan: Plan) -> dict[str, Any]:
    """One row of the method as text with positions, and the distances that each arm trains."""
    from endprompt.analysis import coverage
    from endprompt.models.checkpoint import load_tokenizer

    tokenizer = load_tokenizer(plan.model["path"])
    rows = _rows(request, plan.arms, plan.model["path"])
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


def _prepare(
    request: Request,
    recipe: Recipe,
    tokenizer: Any,
    lengths: list[int],
    documents: int,
    data: Path,
    say: Say,
    *,
    fresh: bool,
) -> dict[str, Any]:
    """Tokenise the text into the run's folder and set held-out text aside.

    fresh  what lies there is of a run that was refused, and may be of other text
    """
    from endprompt.data import holdout
    from endprompt.data.chats import renderer
    from endprompt.data.mixture import Weighted
    from endprompt.data.prepare import prepare
    from endprompt.data.sources import open_source, shown

    specs = request.text or [str(embedded.text())]
    name, licence = (
        (", ".join(map(shown, request.text)), "the user's own")
        if request.text
        else (embedded.TEXT_NAME, embedded.TEXT_LICENCE)
    )
    say(f"text: {name}")
    render = renderer(tokenizer) if request.chat else None
    sources = [Weighted(open_source(spec, render=render)) for spec in specs]
    for source in sources:
        for note in source.source.notes():
            say(note)
    try:
        prepare(sources, tokenizer, data)
    except DataError:
        if not fresh:
            raise
        prepare(sources, tokenizer, data, force=True)  # of a refused run, of other text
    holdout.set_aside(
        data,
        tokenizer,
        tokens=max(lengths),
        count=documents,
        row_tokens=recipe.amounts.row_tokens,
    )
    training, fingerprint = holdout.training_documents(data)
    held = holdout.held_out_texts(data)
    return {
        "name": name,
        "licence": licence,
        "documents": len(training),
        "tokens": int(training.lengths.sum()),
        "sha256": fingerprint,
        "holdout_documents": len(held),
        "holdout_tokens": int(sum(map(len, held))),
        "copied_tokens": holdout.copied_tokens(data),
    }


def _check(
    request: Request,
    model: str,
    recipe: Recipe,
    devices: Devices,
    watch: jobs.Watcher,
    lock: int,
) -> dict[str, Any]:
    """The position check and a short calibration, as a job; stops the run when it fails."""
    job = _check_job(request, model, recipe)
    jobs.run(
        [job],
        request.out / "jobs",
        at_once=1,
        threads=devices.threads,
        watch=watch,
        lock=lock,
        gpus=devices.gpus[:1],
    )
    return records.read(job.result, Checks).plain()


def _check_job(request: Request, model: str, recipe: Recipe) -> jobs.Job:
    result, path = request.out / "doctor.json", request.out / "recipe.yaml"
    words.write_recipe(path, recipe)
    arguments = ["doctor", model, "--to", str(request.target), "--method", str(path)]
    return jobs.Job(
        "check",
        "position check and calibration",
        [*arguments, "--calibrate", "--json", str(result)],
        result,
        seconds=30,
    )


def _costs(ready: _Prepared, calibration: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
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
    needed = on.needed_bytes(recipe, decoder, ranks, calibration["gpu_bytes"])
    side = max(1, places // ranks.takes)
    suite_seconds = [1.5 * more.operations(suite, decoder) / reading_rate for suite in ready.suites]
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


def _require_disk(out: Path, plan: Plan) -> None:
    """Refuse to start what the disk can't hold: a model an arm, and two checkpoints at a time."""
    parameters = plan.model["parameters"]
    waiting = sum(arm.trained and not (out / "arms" / arm.name / "model").exists()
                  for arm in plan.arms)  # fmt: skip
    side = max(1, plan.devices.places // plan.ranks.takes)
    models = precision.BYTES[plan.precision] * parameters * waiting
    needed = models + CHECKPOINT_BYTES * parameters * min(waiting, side)
    files.require_room(out, needed, "models and checkpoints")


def _jobs(
    request: Request,
    model: str,
    ready: _Prepared,
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
            words.write_recipe(path, arm.recipe)
            listed.append(
                jobs.Job(
                    f"train-{arm.name}",
                    f"train {arm.label}",
                    words.train(path, model=model, data=data, target=request.target, out=folder)
                    + ranks.options(),
                    _result(request, arm),
                    seconds=seconds["train_seconds"],
                    takes=ranks.takes,
                )
            )  # fmt: skip
    for arm in arms:
        folder = request.out / "arms" / arm.name
        listed.append(
            jobs.Job(
                f"eval-{arm.name}",
                f"evaluate {arm.label}",
                words.window(
                    folder / "model", data=data, lengths=ready.lengths,
                    documents=ready.documents, needles=request.needles, dtype=dtype,
                    result=folder / "window.json",
                ),
                folder / "window.json",
                needs=(f"train-{arm.name}",) if arm.trained else (),
                seconds=seconds["eval_seconds"],
            )
        )  # fmt: skip
    for arm in arms:
        needs = (f"train-{arm.name}",) if arm.trained else ()
        listed += more.jobs_of(
            ready.suites, request.out, arm.name, arm.label,
            dtype=dtype, needs=needs, seconds=seconds["suite_seconds"],
        )  # fmt: skip
    if ranks.takes == ready.devices.places and ranks.takes > 1:
        return listed  # trainings have every device, then evaluations
    # the base is read beside the first training: what is wrong with the text shows early
    return sorted(listed, key=lambda job: job.name != "eval-base")


def _link(model: str, arm: Arm, request: Request) -> None:
    from endprompt.models import checkpoint as models

    folder = request.out / "arms" / arm.name / "model"
    if not folder.is_dir():
        config = models.scaled_config(model, arm.recipe, request.target)
        models.link(model, config, models.load_tokenizer(model), folder, request.target)


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


def _reserve(held: claims.Output) -> None:
    """Take a folder that is not claimed; what a refused run left for its settings goes."""
    if held.claimed is None:
        held.reserve()
        for name in ("doctor.json", "data/split.json"):
            (held.folder / name).unlink(missing_ok=True)


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
