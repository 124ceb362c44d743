"""Studies at scale `paper`: the exact commands, what each leaves, and its numbers.

A command whose result is there is not run again. Arms that are equal have one folder, named after
a digest of their settings, so that studies share them. `train`, `sft` and `eval run` resume by
themselves.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endprompt.compare import commands
from endprompt.compare.results import Result
from endprompt.errors import EvaluationError
from endprompt.io import files, records
from endprompt.io.jobs import Job
from endprompt.recipe import WORDS, Recipe
from endprompt.record import Training
from endprompt.study.definition import EVALUATIONS, SAMPLES, Arm, Measure, Scale, Study
from endprompt.study.numbers import Measured, Place, Results
from endprompt.study.scores import by_place
from endprompt.train import launch

GPUS = 8
BASE = "meta-llama/Meta-Llama-3-8B"
CORPUS = "cerebras/SlimPajama-627B"
PAPER_TOKENS = 10**9
WINDOWS = {"meta-llama/Llama-2-7b-hf": 4096}
"""Bases whose window is shorter than the paper's rows of 8K."""
FINE_TUNE = ("--set", "rows_per_step=64", "--set", "steps=156", "--set", "learning_rate=2e-5")
"""Ten thousand dialogues, once."""
WINDOW = 8192
"""Of Llama-3-8B; the paper's other bases have 4K and 32K, and the same targets."""
SCALE: Scale = "paper"


@dataclass(frozen=True)
class Command(Job):
    """A job of the whole machine. many: started on every GPU through Accelerate."""

    many: bool = False

    @property
    def line(self) -> str:
        """As typed in a shell."""
        return shlex.join([*(_launcher() if self.many else ("endprompt",)), *self.arguments])


def _command(label: str, words: list[str], result: Path, *, many: bool = False) -> Command:
    return Command(label, label, words, result, many=many)


def _launcher() -> tuple[str, ...]:
    config = launch.SHIPPED / "zero3.yaml"
    return ("accelerate", "launch", "--config_file", str(config), "--num_processes", str(GPUS),
            "-m", "endprompt")  # fmt: skip


class Commands(Results):
    """The runs of some studies on real models.

    out  folder of all runs; what they leave is read from there
    """

    one_model = True

    def __init__(self, studies: Sequence[Study], out: Path) -> None:
        self._studies, self._out = studies, out

    def recipe(self, arm: Arm) -> Recipe:
        """The arm's recipe with the amount of training of this scale."""
        recipe = arm.built()
        row = min(WINDOW, WINDOWS.get(arm.model or BASE, WINDOW))
        amounts: dict[str, Any] = {"training.tokens_per_step": 64 * row}
        if recipe.rows.tokens == "auto":
            amounts["rows.tokens"] = row
        return recipe.replace({**amounts, "training.tokens": round(PAPER_TOKENS * arm.tokens)})

    def folder(self, arm: Arm) -> str:
        """Name of the arm's folders: equal arms, equal names."""
        settings = self.recipe(arm).digested(exclude={"name", *WORDS})
        digest = files.sha256_of([SCALE, settings, self._target(arm), arm.model])
        return f"{arm.built().name}-{digest[:8]}"

    def _target(self, arm: Arm) -> int:
        return round(arm.factor(SCALE) * WINDOW)

    def _model(self, arm: Arm) -> Path:
        """Where the arm's extended model will lie."""
        return self._out / "runs" / self.folder(arm) / "model"

    def commands(self) -> list[Command]:
        """Everything that the studies need, in an order in which it can be run."""
        by_result: dict[Path, Command] = {}
        for study in self._studies:
            for arm in study.arms_at(SCALE).values():
                for command in self._of(study, arm):
                    by_result.setdefault(command.result, command)
        order = ("prepare", "train", "fine-tune", "evaluate")
        return sorted(by_result.values(), key=lambda command: order.index(command.label.split()[0]))

    def _of(self, study: Study, arm: Arm) -> Iterable[Command]:
        name, target = self.folder(arm), self._target(arm)
        run, recipe = self._out / "runs" / name, self._out / "recipes" / f"{name}.yaml"
        base = arm.model or BASE
        data = self._out / "data" / base.rpartition("/")[2]
        most = max(
            arm_.tokens for study_of_all in self._studies for arm_ in study_of_all.arms.values()
        )
        yield _command(
            f"prepare {CORPUS} for {base}",
            ["prepare", CORPUS, "--tokenizer", base, "--out", str(data),
             "--max-tokens", f"{most + 1:g}b", "--min-document-tokens", str(WINDOW)],
            data / "manifest.json",
        )  # fmt: skip
        words = commands.train(recipe, model=base, data=data, target=target, out=run)
        yield _command(f"train {name}", words, run / "train.json", many=True)
        model = self._model(arm)
        if study.fine_tune:
            tuned = self._out / "fine-tuned" / name
            yield _command(
                f"fine-tune {name}",
                ["sft", str(model), "--data", study.fine_tune, "--split", "train_sft",
                 *FINE_TUNE, "--out", str(tuned)],
                tuned / "run.json",
                many=True,
            )  # fmt: skip
            model = tuned / "model"
        kinds = dict.fromkeys(study_of_all.benchmark for study_of_all in study.measures_at(SCALE))
        for kind in (kind for kind in kinds if kind in EVALUATIONS):
            yield self._evaluation(kind, arm, model, tuned=study.fine_tune is not None)

    def _evaluation(self, kind: str, arm: Arm, model: Path, *, tuned: bool) -> Command:
        out, target = self._scores(kind, arm), self._target(arm)
        lengths = [target]
        if kind == "ruler":
            lengths = [*(1024 * n for n in (4, 8, 16, 32, 64) if 1024 * n < target), target]
        words = commands.suite(kind, model, out, lengths, SAMPLES[kind])
        if kind == "short" and tuned:
            words += ["--template", "chat"]
        result = commands.suite_result(kind, out)
        return _command(f"evaluate {kind}, {self.folder(arm)}", words, result)

    def _scores(self, kind: str, arm: Arm) -> Path:
        return self._out / "scores" / self.folder(arm) / kind

    def write_recipes(self) -> None:
        """Write the recipe file of every arm, which the commands name."""
        for study in self._studies:
            for arm in study.arms_at(SCALE).values():
                path = self._out / "recipes" / f"{self.folder(arm)}.yaml"
                commands.write_recipe(path, self.recipe(arm))

    def run(self, progress: Callable[[int, int, Command], None]) -> None:
        """Run what is not done, one command at a time: each uses the whole machine.

        Raises EvaluationError when one fails, with the command.
        """
        self.write_recipes()
        everything = self.commands()
        for place, command in enumerate(everything):
            if command.done:
                continue
            progress(place, len(everything), command)
            words = [*(_launcher() if command.many else (sys.executable, "-m", "endprompt"))]
            done = subprocess.run([*words, *command.arguments], env=dict(os.environ))
            if done.returncode or not command.done:
                raise EvaluationError(
                    f"{command.label} failed with code {done.returncode}: mend what it says and "
                    f"give the same command again; by itself it is {command.line}"
                )

    # What `compare` asks

    def window(self) -> int:
        return WINDOW

    def results(self, study: Study, arm: Arm) -> list[Result]:  # noqa: ARG002
        path = self._out / "runs" / self.folder(arm) / "train.json"
        recipe = self.recipe(arm)
        if not recipe.trained or not path.is_file():
            return []
        done = records.read(path, Training)
        return [
            Result(
                recipe.name,
                0,
                trained=True,
                answers={},
                recipe=done.recipe,
                tokens=done.tokens,
                seconds=done.seconds,
                flops=done.flops,
                peak_memory_bytes=done.peak_memory_bytes,
                provenance=done.plain().get("provenance", {}),
            )
        ]

    def measured(
        self,
        study: Study,  # noqa: ARG002
        arm: Arm,
        measure: Measure,
    ) -> Iterator[tuple[int, Measured]]:
        if measure.benchmark in EVALUATIONS and self.recipe(arm).trained:
            scores = self._scores(measure.benchmark, arm)
            yield 0, by_place(measure, scores, lambda place: self._length(arm, place))

    def _length(self, arm: Arm, place: Place) -> int:
        return self._target(arm) if place == "target" else round(place * WINDOW)
