"""A study: arms, what is measured of them, and the paper's numbers, in one YAML file.

Arms are recipes with settings; lengths are multiples of the base's window, so that one file holds
for every scale. What has no meaning at a scale is named there with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from endprompt import recipe as recipes
from endprompt import yaml_text
from endprompt.errors import RecipeError, nearest
from endprompt.io import files
from endprompt.recipe import Recipe

SHIPPED = Path(__file__).parents[1] / "studies"
Scale = Literal["lab", "smollm2", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
Benchmark = Literal[
    "ruler", "longbench", "short", "loss", "text-loss", "key-loss", "other-loss", "needles",
    "needle-loss", "recall", "untaught", "untaught-loss", "seconds", "flops", "memory",
]  # fmt: skip
KEY_LOSS = "key-loss"
"""Nats per token that gains from far context by the study's model: evaluations take longer."""
WINDOW_CHECK = ("loss", "text-loss", KEY_LOSS, "needles", "needle-loss", "recall")
"""Nats per token: of a text's last 256 tokens, of all of it (its farthest quarter is its end), of
its key tokens. Digits of needles that are right, and their nats; nats of quotes."""
OTHER_LOSS = "other-loss"
"""Nats per token of the study's other texts up to the window: what is kept of the base."""
UNTAUGHT = ("untaught", "untaught-loss")
"""Answers right, and their nats, of tasks that no row teaches."""
QUARTERS = ("farthest", "third", "second", "nearest")
"""Of a length, by distance from the question."""
SAMPLES = {"ruler": 500, "longbench": 500, "short": 100_000}
"""Benchmarks that need a suite, and its samples: of RULER a task and length, of the others all."""
EVALUATIONS = tuple(SAMPLES)
SMALLER = {"lab": 1, "smollm2": 4, "paper": 1}
"""What the paper's L / L0 is divided by: 64K is 8 windows, of which a CPU reads two."""

Positive = Annotated[float, Field(gt=0)]


_recipe = cache(recipes.load)


class Settings(BaseModel):
    """Frozen, and strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(Settings):
    """A recipe in a study.

    set      dotted keys of the recipe, as `--set` has them
    target   L / L0 in the paper; tokens: part of the study's amount of training
    model    another base than the study's, at scale `paper`
    seeds    on a real model, of training; as many as the study's without it
    jump     false: the control with the same content, every token at contiguous positions
    absent   scale to the reason why the arm has no meaning there
    """

    recipe: str
    set: dict[str, Any] = {}
    target: Positive = 8
    tokens: Positive = 1
    model: str | None = None
    seeds: Annotated[int, Field(gt=0)] | None = None
    jump: bool = True
    note: str = ""
    absent: dict[Scale, str] = {}

    def built(self) -> Recipe:
        """The recipe with its settings, under a name that tells them: equal arms, equal names."""
        recipe = _recipe(self.recipe).replace(self.set)
        recipe = recipe if self.jump else recipe.without_jump()
        words = [recipe.name]
        if self.set:
            words.append(files.sha256_of(self.set)[:6])
        if self.tokens != 1:
            words.append(f"x{self.tokens:g}")
        return recipe.model_copy(update={"name": "-".join(words)})

    def factor(self, scale: Scale) -> float:
        """Target over window at a scale."""
        return self.target / SMALLER[scale]


class Measure(Settings):
    """One number of every arm, and the paper's.

    tasks   of the benchmark; all without it. kinds: the laboratory's questions that stand for them
    at      lengths as multiples of the window, or `target`: the mean over them is taken
    quarter  of the length that questions are about; all of it without one
    table   measures of one name are shown in one table
    """

    name: str
    table: str
    benchmark: Benchmark
    unit: str = "%"
    tasks: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    at: tuple[Positive | Literal["target"], ...] = ("target",)
    quarter: Literal["farthest", "third", "second", "nearest"] | None = None
    source: str = "not in the paper"
    paper: dict[str, float] = {}
    absent: dict[Scale, str] = {}


class RealModel(Settings):
    """How a study is run on a real model.

    set        dotted keys of all arms' recipes, but where an arm sets them itself
    texts      each is trained on and, apart from that, asked about: names that the scale knows, or
               paths
    seeds      of training, on each text
    documents  held-out texts that are read; needles: asked at each length of each
    dtype      of the evaluation, as `--dtype` of `eval window` has it
    """

    set: dict[str, Any] = {}
    texts: Annotated[tuple[str, ...], Field(min_length=1)] = ("king-james-bible",)
    seeds: Annotated[int, Field(gt=0)] = 1
    documents: Annotated[int, Field(gt=0)] = 1
    needles: Annotated[int, Field(gt=0)] = 16
    dtype: str = "fast"


class Study(Settings):
    """A table or figure of the paper. `main` is the arm that every other one is compared with."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: str
    source: str
    claim: str
    main: str
    arms: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")], Arm]
    measures: tuple[Measure, ...]
    notes: tuple[str, ...] = ()
    absent: dict[Scale, str] = {}
    real_model: RealModel = RealModel()
    fine_tune: str | None = None
    """A data set that arms are fine-tuned on before they are asked anything."""

    def arms_at(self, scale: Scale) -> dict[str, Arm]:
        """Arms that have a meaning at a scale; none where the study has none."""
        if scale in self.absent:
            return {}
        return {name: arm for name, arm in self.arms.items() if scale not in arm.absent}

    def measures_at(self, scale: Scale) -> Iterator[Measure]:
        """Measures that have a meaning at a scale."""
        if scale not in self.absent:
            yield from (measure for measure in self.measures if scale not in measure.absent)


def names() -> list[str]:
    """Names of the shipped studies, in the paper's order: tables, figures, then our own."""

    def place(name: str) -> tuple[int, int]:
        source = yaml_text.load((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))["source"]
        kind = next((n for n, word in enumerate(("table", "figure")) if source.startswith(word)), 2)
        return kind, int(re.findall(r"\d+|$", source)[0] or 0)

    return sorted((path.stem for path in SHIPPED.glob("*.yaml")), key=place)


def load(name: str | Path) -> Study:
    """A shipped study by name, or one of the user's own by the path of its YAML file.

    Raises RecipeError for an unknown name (with the nearest), a broken file, an unknown key, an
    arm whose recipe can't be built, a measure of an arm that is not there.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{name}.yaml"
        if not path.is_file():
            raise RecipeError(
                f"unknown study {str(name)!r}{nearest(str(name), names())}: "
                f"one of {', '.join(names())}, or the path of a .yaml file"
            )
    values = recipes.read_yaml(path, "study")
    default = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")
    study = recipes.validated(Study, {"name": default, **values}, f"study {path.name}")
    _check(study, path.name)
    return study


def _check(study: Study, what: str) -> None:
    if study.main not in study.arms:
        raise RecipeError(
            f"study {what}: main {study.main!r} is no arm{nearest(study.main, study.arms)}"
        )
    for name, arm in study.arms.items():
        try:
            trained = arm.built().trained
        except RecipeError as error:
            raise RecipeError(f"study {what}, arm {name!r}: {error}") from None
        if not trained and "lab" not in {**study.absent, **arm.absent}:
            raise RecipeError(
                f"study {what}, arm {name!r}: {arm.recipe!r} trains nothing; at scale lab the "
                f"untrained base is always there, so name lab under the arm's `absent`"
            )
    for measure in study.measures:
        for name in measure.paper:
            if name not in study.arms:
                raise RecipeError(
                    f"study {what}, measure {measure.name!r}: no arm {name!r}"
                    f"{nearest(name, study.arms)}"
                )
