"""Every arm on every base: what is to be done, done in parallel, and resumed after a kill.

One job is one base, or one arm on one base under one scaling. Its result is one JSON file under
a name that holds a digest of all its settings: there whole, or not at all. A job whose file is
there is done; changed settings make another name. Jobs run in processes of one thread each, so
that results do not depend on what runs beside them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from endprompt.compare.progress import Tally, Tell
from endprompt.io import digests, files, provenance, records, workers
from endprompt.io.jobs import schedule
from endprompt.io.workers import Call
from endprompt.lab import arms as lab_arms
from endprompt.lab import model as bases
from endprompt.lab.arms import Regime
from endprompt.lab.language import Corpus
from endprompt.recipe import WORDS, Recipe
from endprompt.record import Base, LabResult

FIRST_SEED = 100
"""Seeds below this were used to choose the regime and the recipes, and stand in no table."""


@dataclass(frozen=True)
class Arm:
    """One recipe on one base."""

    recipe: Recipe
    scaling: str
    factor: int
    seed: int


@dataclass(frozen=True)
class Study:
    """Recipes as they were named, times scalings, factors and seeds."""

    recipes: tuple[Recipe, ...]
    scalings: tuple[str, ...] = lab_arms.STANDARD_SCALINGS
    factors: tuple[int, ...] = (8,)
    headrooms: tuple[float, ...] = ()
    """Multiples of the factor to try with every recipe; empty: each recipe's own."""
    seeds: tuple[int, ...] = tuple(range(FIRST_SEED, FIRST_SEED + 5))
    regime: Regime = field(default_factory=Regime)

    def arms(self) -> Iterator[Arm]:
        """All arms, seed by seed, so that a study that is cut short has whole comparisons."""
        for seed in self.seeds:
            for factor in self.factors:
                yield Arm(lab_arms.untrained("none"), "none", factor, seed)
                for scaling in self.scalings:
                    for recipe in self._under(scaling, factor, seed):
                        yield Arm(recipe, scaling, factor, seed)

    def _under(self, scaling: str, factor: int, seed: int) -> Iterator[Recipe]:
        """Untrained and trained recipes under one scaling, at each headroom."""
        for headroom in self.headrooms or (None,):
            yield lab_arms.untrained(scaling, self.regime, factor=factor, headroom=headroom)
        for recipe in self.recipes:
            for headroom in self.headrooms or (None,):
                yield lab_arms.adapt(
                    recipe, self.regime, scaling, factor=factor, seed=seed, headroom=headroom
                )

    def result(self, arm: Arm, out: Path) -> Path:
        """File of an arm's result."""
        digest = files.sha256_of(
            {
                "base": asdict(self.regime.base),
                "questions": asdict(self.regime.questions(arm.factor)),
                "recipe": arm.recipe.digested(exclude_defaults=True, exclude=WORDS),
                "arm": [arm.scaling, arm.factor, arm.seed],
            }
        )
        name = f"seed{arm.seed}-{arm.scaling}-{arm.recipe.name}-{digest[:8]}.json"
        return out / "results" / f"s{arm.factor}" / name

    def is_done(self, arm: Arm, out: Path, cache: Path) -> bool:
        """Whether an arm's result is there, and is of the base that is kept now."""
        path, base = self.result(arm, out), bases.folder_of(self.regime.base, arm.seed, cache)
        if not path.is_file() or not base.is_dir():
            return path.is_file()
        made_of = records.read(path, LabResult).plain().get("base_digest")
        return made_of in (None, digests.of_model(str(base))["weights_digest"])

    def results(self, out: Path) -> list[dict[str, Any]]:
        """Results that are there, in the order of the arms."""
        paths = [self.result(arm, out) for arm in self.arms()]
        return [records.read(path, LabResult).plain() for path in paths if path.is_file()]


def run(
    study: Study,
    out: Path,
    cache: Path,
    *,
    at_once: int,
    budget_seconds: float | None = None,
    progress: Tell | None = None,
) -> list[dict[str, Any]]:
    """Do what is not done yet and return all results that are there.

    at_once         processes side by side
    budget_seconds  after this no further job is begun; what is missing is done the next time

    Raises what a job raises; finished jobs stay.
    """
    run_all([study], out, cache, at_once=at_once, budget_seconds=budget_seconds, progress=progress)
    return study.results(out)


def run_all(
    studies: Sequence[Study],
    out: Path,
    cache: Path,
    *,
    at_once: int,
    budget_seconds: float | None = None,
    progress: Tell | None = None,
) -> None:
    """The same of several studies, equal arms once; one study after the other."""
    work = list(_work(studies, out, cache))
    if not work:
        return
    tally = Tally((call.kind for call in work), at_once, progress)
    with (
        workers.pool(at_once) as start,
        closing(schedule(work, start, at_once=at_once, budget_seconds=budget_seconds)) as finished,
    ):
        for call, seconds in finished:
            tally.finished(call.kind, seconds, call.label)


def _work(studies: Sequence[Study], out: Path, cache: Path) -> Iterator[Call]:
    """What is to do: bases that are missing, each before its first arm, and arms."""
    named: set[str] = set()
    for study in studies:
        todo = [arm for arm in study.arms() if not study.is_done(arm, out, cache)]
        for arm in sorted(todo, key=lambda arm: arm.seed):
            folder, path = (
                bases.folder_of(study.regime.base, arm.seed, cache),
                study.result(arm, out),
            )
            missing = not (folder / "base.json").is_file()
            if missing and folder.name not in named:
                named.add(folder.name)
                yield Call("base", folder.name, f"base of seed {arm.seed}", bases.get,
                           (study.regime.base, arm.seed, cache))  # fmt: skip
            if path.name not in named:
                named.add(path.name)
                label = f"{arm.recipe.name}, {arm.scaling} x{arm.factor}, seed {arm.seed}"
                yield Call("arm", path.name, label, _do_arm, (study.regime, arm, cache, path),
                           needs=(folder.name,) * missing)  # fmt: skip


def _do_arm(regime: Regime, arm: Arm, cache: Path, path: Path) -> None:
    files.write_json(path, measure(regime, arm, bases.get(regime.base, arm.seed, cache)))


@lru_cache(maxsize=2)
def _corpus(rows: int, tokens: int, seed: int, base: bases.Base) -> Corpus:
    return Corpus(rows, tokens, seed, base.kinds)


def measure(regime: Regime, arm: Arm, base: Path) -> dict[str, Any]:
    """Train one arm with the Trainer of the real job, examine it, and return its result."""
    from endprompt.analysis import terminal_signal
    from endprompt.cues import CueWriter
    from endprompt.lab.examine import examine
    from endprompt.models import checkpoint as models
    from endprompt.train import run as training

    began, worked = time.perf_counter(), time.process_time()
    target = regime.base.window * arm.factor
    result: dict[str, Any] = {
        "arm": arm.recipe.name,
        "summary": arm.recipe.summary,
        "scaling": arm.scaling,
        "factor": arm.factor,
        "seed": arm.seed,
        "trained": arm.recipe.trained,
        "recipe": arm.recipe.model_dump(mode="json"),
        "tokens": 0,
        "flops": 0.0,
        "train_seconds": 0.0,
        "curve": [],
        "gradient": [],
    }
    if arm.recipe.trained:
        amounts = arm.recipe.amounts
        corpus = _corpus(amounts.rows, amounts.row_tokens, arm.seed, regime.base)
        watch = terminal_signal.Watch(
            terminal_signal.rows_with_terminals(
                arm.recipe, corpus, CueWriter(models.load_tokenizer(str(base))), target
            ),
            amounts.steps,
        )
        with tempfile.TemporaryDirectory() as folder:
            done = training.train(
                arm.recipe,
                model=str(base),
                documents=corpus,
                target=target,
                out=Path(folder),
                callbacks=[watch],
            )
            network = models.load(
                str(Path(folder) / "model"), models.load_config(str(Path(folder) / "model"))
            )
        result |= {
            "tokens": done.tokens,
            "flops": done.flops,
            "train_seconds": round(done.seconds, 2),
            "curve": _thinned(done.curve),
            "gradient": watch.found,
        }
    else:
        network = models.load(str(base), models.scaled_config(str(base), arm.recipe, target))
    return result | {
        "computation": provenance.Computation.of(network).model_dump(),
        **examine(network, regime.questions(arm.factor), arm.seed),
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - worked, 2),
        "base": records.read(base / "base.json", Base).plain(),
        "base_digest": digests.of_model(str(base))["weights_digest"],
        "provenance": provenance.provenance(),
    }


def _thinned(curve: list[dict[str, float]]) -> list[dict[str, float]]:
    """Every tenth step of a loss curve and the last one."""
    kept = [entry for n, entry in enumerate(curve) if n % 10 == 0 or n == len(curve) - 1]
    return [
        {key: entry[key] for key in ("step", "prefix_loss", "terminal_loss") if key in entry}
        for entry in kept
    ]
