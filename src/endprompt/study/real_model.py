"""Studies at scale `smollm2`: arms x texts x training seeds on one real model, on this machine.

An arm on one text with one seed is trained by `endprompt train` and evaluated by `endprompt eval`.
What it gave is one JSON file of a few kilobytes, under a name that holds a digest of all its
settings. Its weights then go: a study of many arms needs the disk of two. An arm whose file is
there is not run again, so that a study resumes day after day, and on another machine with the files
of the first.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from endprompt.compare import answers, commands
from endprompt.compare.progress import Tally, Tell
from endprompt.compare.results import Groups, Result
from endprompt.errors import RecipeError, nearest
from endprompt.io import digests, files, jobs, provenance, records
from endprompt.recipe import WORDS, Recipe
from endprompt.record import StudyArm, Training, Untaught, Window
from endprompt.study.definition import (
    EVALUATIONS,
    KEY_LOSS,
    OTHER_LOSS,
    QUARTERS,
    SAMPLES,
    UNTAUGHT,
    WINDOW_CHECK,
    Arm,
    Measure,
    Scale,
    Study,
)
from endprompt.study.numbers import PERCENT, Measured, Place, Results
from endprompt.study.scores import by_place

SCALE: Scale = "smollm2"
AMOUNTS: dict[str, Any] = {
    "training.tokens": 98304,
    "training.learning_rate": 1e-4,
    "training.schedule": "linear",
    "training.warmup_steps": 3,
}
"""The same for every arm unless the study says otherwise: six rows of 16K, or 96 of 1K."""
TEXTS = ("king-james-bible", "python-library")
RULER_SAMPLES = 5
"""A task and length."""
MEASURED = {
    "loss": ("loss", 1.0),
    "text-loss": ("text-loss", 1.0),
    KEY_LOSS: ("key-loss", 1.0),
    OTHER_LOSS: (OTHER_LOSS, 1.0),
    "recall": ("recall", 1.0),
    "needles": ("needles", PERCENT),
    "needle-loss": ("needle-loss", 1.0),
    "untaught": ("untaught/", PERCENT),
    "untaught-loss": ("untaught-loss/", 1.0),
}
"""Benchmark -> the task of an arm's result, or what its tasks begin with, and what it is times."""
OTHER_NEEDLES = 4
"""Of another text only the loss is kept, and a window check asks for needles."""
AT_ONCE = 2
"""Jobs side by side, each with its share of the cores."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Unit:
    """One arm on one text; seed None: untrained, the same for all seeds."""

    study: Study
    name: str
    arm: Arm
    text: str
    seed: int | None


class Model(Results):
    """The runs of some studies on one model.

    model    checkpoint folder, at `SCALE` the embedded one
    out      folder of data, recipes and weights; results: of finished arms' files
    """

    def __init__(self, studies: Sequence[Study], model: str, out: Path, results: Path) -> None:
        self._studies, self._model = studies, model
        self._out, self._results = out, results

    @property
    def one_model(self) -> bool:
        """True where every arm was run once: intervals are over questions then."""
        runs = {(unit.text, unit.seed or 0) for unit in self.units()}
        return len(runs) == 1

    @cached_property
    def _window(self) -> int:
        from endprompt.models import checkpoint as models

        return models.family_of(self._model).base.window

    @cached_property
    def _digest(self) -> dict[str, Any]:
        return digests.of_model(self._model)

    def units(self) -> list[Unit]:
        """Everything that the studies need, equal arms once.

        Seed by seed and text by text, so that the first text's table is whole early.
        """
        texts = dict.fromkeys(text for study in self._studies for text in study.real_model.texts)
        units: dict[Path, Unit] = {}
        for seed in range(max((study.real_model.seeds for study in self._studies), default=0)):
            for text in texts:
                for study in self._studies:
                    for name, arm in study.arms_at(SCALE).items():
                        if text in study.real_model.texts and seed < _seeds(study, arm):
                            trained = arm.built().trained
                            unit = Unit(study, name, arm, text, seed if trained else None)
                            units.setdefault(self.result(unit), unit)
        return list(units.values())

    def recipe(self, study: Study, arm: Arm, seed: int | None = None) -> Recipe:
        """The arm's recipe with the amount of training of this scale."""
        own = study.real_model
        shared = {key: value for key, value in {**AMOUNTS, **own.set}.items() if key not in arm.set}
        shared["training.tokens"] = round(shared["training.tokens"] * arm.tokens)
        recipe = arm.built().replace({**shared, "training.seed": seed or 0})
        step = recipe.training.tokens_per_step
        if recipe.rows.tokens == "target" and step != "auto" and step < self._target(arm):
            recipe = recipe.replace({"training.tokens_per_step": self._target(arm)})
        return recipe

    def result(self, unit: Unit) -> Path:
        """File of what a unit gave."""
        return self._results / f"{self._name(unit)}.json"

    def _name(self, unit: Unit) -> str:
        recipe = self.recipe(unit.study, unit.arm, unit.seed)
        own = unit.study.real_model
        settings = [
            recipe.digested(exclude={"name", *WORDS}),
            self._target(unit.arm),
            [unit.text, own.documents, own.needles, own.dtype, list(self._lengths(unit.arm))],
            self._digest["weights_digest"],
            sorted(self._evaluations(unit.study)),
            self._tasks(unit.study),
            *([KEY_LOSS] if self._asks_key_loss(unit.study) else []),
        ]
        seed = "untrained" if unit.seed is None else f"seed{unit.seed}"
        digest = files.sha256_of(settings)[:8]
        return f"{Path(unit.text).stem}-{seed}-{unit.arm.built().name}-{digest}"

    def _target(self, arm: Arm) -> int:
        return round(arm.factor(SCALE) * self._window)

    def _lengths(self, arm: Arm) -> tuple[int, ...]:
        """Tokens that a window check asks at: the window, its doubles, and the target."""
        target, lengths = self._target(arm), [self._window]
        while 2 * lengths[-1] < target:
            lengths.append(2 * lengths[-1])
        return (*lengths, target)

    def _evaluations(self, study: Study) -> set[str]:
        """Kinds of evaluation that a study's measures need."""
        asked = {measure.benchmark for measure in study.measures_at(SCALE)}
        kinds: set[str] = {kind for kind in EVALUATIONS if kind in asked}
        kinds |= {"window"} if asked & set(WINDOW_CHECK) else set()
        return kinds | ({"untaught"} if asked & set(UNTAUGHT) else set())

    @staticmethod
    def _asks_key_loss(study: Study) -> bool:
        return any(measure.benchmark == KEY_LOSS for measure in study.measures_at(SCALE))

    @staticmethod
    def _other_texts(study: Study, text: str) -> tuple[str, ...]:
        """Texts that a model trained on one is asked the loss of.

        They are not in a result's digest: one without them stays as it is.
        """
        asked = any(measure.benchmark == OTHER_LOSS for measure in study.measures_at(SCALE))
        return tuple(other for other in study.real_model.texts if asked and other != text)

    def _tasks(self, study: Study) -> str:
        """Tasks that no row teaches which a study's measures need."""
        asked = [
            measure.tasks for measure in study.measures_at(SCALE) if measure.benchmark in UNTAUGHT
        ]
        return (
            ",".join(sorted({task for tasks in asked for task in tasks})) if all(asked) else "all"
        )

    # Running

    def todo(self) -> list[Unit]:
        """Units whose file is not there."""
        return [unit for unit in self.units() if not self.result(unit).is_file()]

    def run(
        self,
        *,
        say: Say,
        watch: jobs.Watcher,
        lock: int,
        tell: Tell | None = None,
        budget_seconds: float | None = None,
    ) -> None:
        """Do what is not done, `AT_ONCE` jobs side by side.

        budget_seconds  after this no further unit is begun
        Raises JobError of the first job that fails; what is finished stays.
        """
        todo = self.todo()
        read: dict[str, list[Unit]] = {}
        for unit in todo:
            for text in (unit.text, *self._other_texts(unit.study, unit.text)):
                read.setdefault(text, []).append(unit)
        for text, its in read.items():
            self._prepare(its, text, say)
        cores = os.cpu_count() or 1
        at_once = min(AT_ONCE, cores)
        work = {self._name(unit): (unit, self.commands(unit)) for unit in todo}
        name_of = {job.name: name for name, (_, its) in work.items() for job in its}
        missing = {
            name: {job.name for job in its if not job.done} for name, (_, its) in work.items()
        }
        seconds = dict.fromkeys(work, 0.0)
        tally = Tally(["unit"] * len(todo), at_once, tell)

        def keep_whole(name: str) -> None:
            if not missing[name]:
                self._keep(work[name][0])
                tally.finished("unit", seconds[name], name)

        todo_jobs = [job for name, (_, its) in work.items() if missing[name] for job in its]
        for name in work:  # one may have been killed before it was kept
            keep_whole(name)
        started = jobs.schedule(
            todo_jobs,
            jobs.starter(
                self._out / "jobs", threads=max(1, cores // at_once), watch=watch, lock=lock
            ),
            at_once=at_once,
            budget_seconds=budget_seconds,
        )
        with closing(started):
            for job, took in started:
                watch(job, None)
                name = name_of[job.name]
                seconds[name] += took
                missing[name].remove(job.name)
                keep_whole(name)

    def commands(self, unit: Unit) -> list[jobs.Job]:
        """Training of a unit and its evaluations; the recipe's file is written."""
        name, own = self._name(unit), unit.study.real_model
        recipe, run = self._out / "recipes" / f"{name}.yaml", self._out / "runs" / name
        model, data = run / "model", self._data(unit.text, self._target(unit.arm))
        target, lengths = self._target(unit.arm), self._lengths(unit.arm)
        samples = {**SAMPLES, "ruler": RULER_SAMPLES}
        commands.write_recipe(recipe, self.recipe(unit.study, unit.arm, unit.seed))
        words = commands.train(recipe, model=self._model, data=data, target=target, out=run)
        listed = [jobs.Job(f"train-{name}", f"train {name}", words, run / "train.json")]
        for kind in sorted(self._evaluations(unit.study)):
            result = run / f"{kind}.json"
            if kind == "window":
                words = commands.window(
                    model, data=data, lengths=lengths, documents=own.documents,
                    needles=own.needles, dtype=own.dtype, result=result,
                    keys=["--evaluator", self._model] if self._asks_key_loss(unit.study) else [],
                )  # fmt: skip
            elif kind == "untaught":
                words = ["eval", "untaught", str(model), "--data", str(data), "--dtype", own.dtype,
                         "--tasks", self._tasks(unit.study),
                         "--lengths", commands.listed((self._window, target)),
                         "--json", str(result)]  # fmt: skip
            else:
                at = {"ruler": (self._window // 2, *lengths)}.get(kind, (target,))
                scores = self._scores(kind, unit)
                words = commands.suite(kind, model, scores, at, samples[kind])
                result = commands.suite_result(kind, scores)
            listed.append(
                jobs.Job(f"{kind}-{name}", f"{kind} {name}", words, result,
                         needs=(f"train-{name}",), tells=kind not in EVALUATIONS, begins=False)
            )  # fmt: skip
        for place, text in enumerate(self._other_texts(unit.study, unit.text)):
            result = run / f"other-{place}.json"
            words = commands.window(
                model, data=self._data(text, target), lengths=(self._window,),
                documents=own.documents, needles=OTHER_NEEDLES, dtype=own.dtype, result=result,
            )  # fmt: skip
            listed.append(
                jobs.Job(f"other-{place}-{name}", f"{Path(text).stem} {name}", words, result,
                         needs=(f"train-{name}",), begins=False)
            )  # fmt: skip
        return listed

    def _scores(self, kind: str, unit: Unit) -> Path:
        return self._results.parent / "scores" / self._name(unit) / kind

    def _data(self, text: str, target: int) -> Path:
        return self._out / "data" / f"{Path(text).stem}-{files.sha256_of(text)[:8]}-{target}"

    def _prepare(self, units: Sequence[Unit], text: str, say: Say) -> None:
        """Tokens of a text, some documents of it held out, for every target."""
        from endprompt.data import holdout
        from endprompt.data.mixture import Weighted
        from endprompt.data.prepare import prepare
        from endprompt.data.sources import open_source
        from endprompt.models.checkpoint import load_tokenizer

        for target in {self._target(unit.arm) for unit in units}:
            folder = self._data(text, target)
            if (folder / holdout.FILE).is_file():
                continue
            say(f"prepare {text}")
            tokenizer = load_tokenizer(self._model)
            prepare([Weighted(open_source(self._source(text)))], tokenizer, folder)
            holdout.set_aside(
                folder,
                tokenizer,
                tokens=target,
                count=max(
                    unit.study.real_model.documents
                    for unit in units
                    if self._target(unit.arm) == target
                ),
                row_tokens=target,
            )

    def _source(self, text: str) -> str:
        """Path of a text by its name, or the user's own."""
        if text == "king-james-bible":
            from endprompt.models import embedded

            return str(embedded.text())
        if text == "python-library":
            folder = self._out / "python-library"
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
                if path.stat().st_size > 20_000:
                    shutil.copyfile(path, folder / f"{path.stem}.txt")
            return str(folder)
        if not Path(text).exists():
            raise RecipeError(
                f"no text {text!r}{nearest(text, TEXTS)}: {', '.join(TEXTS)}, or a path"
            )
        return text

    def _keep(self, unit: Unit) -> None:
        """Put what a unit gave into its one file; its weights go."""
        run, recipe = self._out / "runs" / self._name(unit), self.recipe(
            unit.study, unit.arm, unit.seed
        )  # fmt: skip
        record: dict[str, Any] = {
            "arm": unit.arm.built().name,
            "text": unit.text,
            "seed": unit.seed,
            "target": self._target(unit.arm),
            "recipe": recipe.model_dump(mode="json"),
            "training": records.read(run / "train.json", Training).plain(),
            "provenance": provenance.provenance(),
        }
        for kind, shape in (("window", Window), ("untaught", Untaught)):
            if (run / f"{kind}.json").is_file():
                evaluation = records.read(run / f"{kind}.json", shape).plain()
                record[kind] = evaluation | {"model": self._name(unit)}  # the folder goes
        record["other_texts"] = {
            text: answers.text_losses(
                records.read(run / f"other-{place}.json", Window), self._window
            )
            for place, text in enumerate(self._other_texts(unit.study, unit.text))
        }
        files.write_json(self.result(unit), record)
        shutil.rmtree(run)

    # What `compare` asks

    def window(self) -> int:
        return self._window

    def results(self, study: Study, arm: Arm) -> list[Result]:
        return [result for _, result in self._finished(study, arm)]

    def _finished(self, study: Study, arm: Arm) -> Iterator[tuple[Unit, Result]]:
        """What is there of an arm: a base is a text with a training seed.

        An untrained arm stands for every seed.
        """
        trained, own = arm.built().trained, study.real_model
        for place, text in enumerate(own.texts):
            for seed in range(_seeds(study, arm)):
                unit = Unit(study, "", arm, text, seed if trained else None)
                path = self.result(unit)
                if path.is_file():
                    yield unit, self._read(path, place * own.seeds + seed, trained=trained)

    def _read(self, path: Path, base: int, *, trained: bool) -> Result:
        record = records.read(path, StudyArm)
        others = [
            (answers.NO_DEPTH, nll) for losses in record.other_texts.values() for nll in losses
        ]
        return Result(
            record.arm,
            base,
            trained,
            {**(answers.of_window(record.window) if record.window else {}),
             **(answers.of_untaught(record.untaught) if record.untaught else {}),
             **({(OTHER_LOSS, self._window): others} if others else {})},
            recipe=record.recipe,
            tokens=record.training.tokens,
            seconds=record.training.seconds,
            flops=record.training.flops,
            peak_memory_bytes=record.training.peak_memory_bytes,
            provenance=record.provenance,
        )  # fmt: skip

    def measured(self, study: Study, arm: Arm, measure: Measure) -> Iterator[tuple[int, Measured]]:
        for unit, result in self._finished(study, arm):
            if measure.benchmark in EVALUATIONS:
                folder = self._scores(measure.benchmark, unit)
                yield result.base, by_place(measure, folder, lambda place: self._length(arm, place))
            else:
                yield (
                    result.base,
                    {
                        place: groups
                        for place in measure.at
                        if (groups := _answers(result, measure, self._length(arm, place)))
                    },
                )

    def _length(self, arm: Arm, place: Place) -> int:
        return self._target(arm) if place == "target" else round(place * self._window)


def _seeds(study: Study, arm: Arm) -> int:
    return min(arm.seeds or study.real_model.seeds, study.real_model.seeds)


def _answers(result: Result, measure: Measure, length: int) -> Groups:
    """Values of one measure at one length, in the order of the questions, as one group."""
    kind, times = MEASURED[measure.benchmark]
    tasks = [kind]
    if measure.benchmark in UNTAUGHT:
        tasks = [
            task for task, at in result.answers
            if at == length and task.startswith(kind)
            and (not measure.tasks or task.removeprefix(kind) in measure.tasks)
        ]  # fmt: skip
    quarter = QUARTERS.index(measure.quarter) if measure.quarter else None
    groups = result.groups(tasks, length, quarter=quarter, times=times)
    values = np.concatenate(groups) if groups else np.array([])
    return [values] if len(values) else []
