"""Suites of `endprompt eval run` as part of a run, on every arm: before training and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from endprompt import units
from endprompt.cost import flops
from endprompt.cost.flops import Decoder
from endprompt.errors import DependencyError, EndPromptError, EvaluationError, nearest
from endprompt.eval import untaught
from endprompt.eval.config import SUITES, EvalConfig, load
from endprompt.eval.results import SAMPLES, SUMMARY, Sample, read_cells, read_samples
from endprompt.extension.record import summary
from endprompt.io import files, jobs, records
from endprompt.record import Answers

UNTAUGHT = "untaught"
NAMES = (*SUITES, UNTAUGHT)
PARTS = {"ruler": "ruler_tasks", "longbench": "datasets", "short": "short", UNTAUGHT: "tasks"}
"""Suites of which some tasks may be asked for, and the key of `EvalConfig` that names them."""
NOT_HERE = {"model", "tasks", "lengths", "server", "tokenizer", "workers", "timeout", "tries",
            "dtype"}  # fmt: skip
"""Keys of `EvalConfig` that a run decides itself."""
LABELS = {
    "ruler": "RULER, average over tasks",
    "longbench": "LongBench, average over data sets",
    UNTAUGHT: "Tasks that no row teaches, average",
    "needle": "Needles, answered by generation",
    "passkey": "Passkeys",
    "key-value": "Key-value pairs",
    "short": "lm-eval's tasks",
}
USUAL = ("score", "hit", "ratio", "f1", "acc_norm", "acc", "exact_match", "pass@1")
"""Metrics, the one that a task is known by first."""
CHEAP = 6e16
"""Operations of a suite on one arm that a GPU does in ten minutes or so."""
CHEAP_SHARE = 0.25
"""Part of a training's operations that a suite on one arm may take as well."""
SAMPLES_UNASKED = 20
"""Of a RULER task at a length where nobody asked for RULER."""


@dataclass(frozen=True)
class RunSuite:
    """A suite of a run.

    name    ruler, longbench, untaught, ...: what the report calls it by
    values  keys of `EvalConfig`; no model, and no lengths where those of the run are meant
    """

    name: str
    values: dict[str, Any]

    def at(self, lengths: Sequence[int]) -> RunSuite:
        """With lengths, where it has none."""
        return RunSuite(self.name, {"lengths": list(lengths)} | self.values)

    @property
    def config(self) -> EvalConfig:
        """As `eval run` reads it; the model is not named yet."""
        return load(None, {"model": "-"} | self.values)

    @property
    def key(self) -> str:
        """Name of its folder: another for other questions."""
        values = self.config.model_dump(mode="json")
        return f"{self.name}-{files.sha256_of(values)[:8]}"

    @property
    def results(self) -> list[Path]:
        """What `eval run` leaves in its folder, last what is written last."""
        config = self.config
        return [
            path
            for name in config.tasks
            for path in (
                [Path("short", f"{task}.summary.jsonl") for task in config.short]
                if name == "short"
                else [Path(name, SUMMARY)]
            )
        ]


def parse(text: str, settings: dict[str, Any] | None = None) -> tuple[RunSuite, ...]:
    """Suites as `--eval` writes them: `ruler:vt+cwe@8k+64k,longbench,untaught`; `none` is none.

    settings  more keys of `EvalConfig`, for all of them

    Raises an EndPromptError for everything that `eval run` would refuse.
    """
    settings = settings or {}
    for key in settings:
        if key in NOT_HERE or key in PARTS.values():
            raise EvaluationError(f"--eval-set {key}: the run decides it, or --eval does")
    load(None, {"model": "-", "tasks": "ruler", **settings})  # refuses what no suite knows
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if parts == ["none"]:
        return ()
    suites = tuple(_suite(part, settings) for part in parts)
    if not suites:
        raise EvaluationError("--eval names no suite: write ruler, or none")
    names = [suite.name for suite in suites]
    for name in names:
        if names.count(name) > 1:
            raise EvaluationError(
                f"--eval names {name} twice: write its tasks and lengths together, as "
                "ruler:vt+cwe@8k+64k"
            )
    for suite in suites:
        for _, value in suite.config:  # which refuses what `eval run` does
            if isinstance(value, Path) and not value.exists():
                raise EvaluationError(f"no such file or folder: {value}")
    return suites


def _suite(part: str, settings: dict[str, Any]) -> RunSuite:
    head, at, lengths = part.partition("@")
    name, colon, tasks = head.partition(":")
    if name not in NAMES:
        raise EvaluationError(
            f"--eval {part}: no suite {name!r}{nearest(name, NAMES)}: one of {', '.join(NAMES)}"
        )
    values = dict(settings)
    values["tasks"] = list(untaught.TASKS) if name == UNTAUGHT else [name]
    if colon:
        if name not in PARTS:
            raise EvaluationError(f"--eval {part}: {name} has no tasks to choose among")
        values[PARTS[name]] = _list(part, tasks)
        if name == UNTAUGHT:
            _require_untaught(values["tasks"])
    if at:
        values["lengths"] = [units.tokens(length) for length in _list(part, lengths)]
    return RunSuite(name, values)


def _list(part: str, text: str) -> list[str]:
    words = [word for word in text.split("+") if word]
    if not words:
        raise EvaluationError(f"--eval {part}: nothing after the sign; write ruler:vt+cwe@8k+64k")
    return words


def _require_untaught(tasks: Sequence[str]) -> None:
    for task in tasks:
        if task not in untaught.TASKS:
            raise EvaluationError(
                f"no task {task!r}{nearest(task, untaught.TASKS)} of untaught: one of "
                f"{', '.join(untaught.TASKS)}"
            )


def chosen(
    asked: Sequence[RunSuite] | None,
    *,
    window: int,
    target: int,
    decoder: Decoder,
    for_gpus: bool,
    training: float,
) -> list[RunSuite]:
    """The suites of a run, each with its lengths.

    asked     None: RULER's tasks at window and target, where GPUs make them cheap
    training  operations of one training

    Raises EvaluationError for lengths past the target.
    """
    if asked is None:
        usual = RunSuite("ruler", {"tasks": ["ruler"], "samples": SAMPLES_UNASKED})
        usual = usual.at([window, target])
        cheap = operations(usual, decoder) <= max(CHEAP, CHEAP_SHARE * training)
        return [usual] if for_gpus and cheap and find_spec("lm_eval") else []
    suites = [
        suite.at([target] if suite.name == "longbench" else [window, target]) for suite in asked
    ]
    for suite in suites:
        longest = max(suite.config.lengths)
        if longest > target:
            raise EvaluationError(
                f"--eval {suite.name}: {longest} tokens are past the target of {target} tokens"
            )
    return suites


def questions(suite: RunSuite) -> int:
    """How many prompts are asked at each length, as far as they are known beforehand."""
    config = suite.config
    by_name = {
        "ruler": len(config.ruler_tasks) * config.samples,
        "longbench": len(config.datasets) * config.samples,
        "short": len(config.short) * config.samples,
        UNTAUGHT: len(config.tasks) * len(config.depths),
    }
    return by_name.get(suite.name, config.texts * len(config.depths))


def operations(suite: RunSuite, decoder: Decoder) -> float:
    """Operations of reading its prompts; lm-eval's short texts count nothing."""
    if suite.name == "short":
        return 0.0
    lengths = suite.config.lengths
    return questions(suite) * sum(flops.forward(decoder, length) for length in lengths)


def require_askable(suites: Sequence[RunSuite], tokenizer: Any) -> None:
    """Make the first question of every suite, so that data that can't be had is known early.

    Raises an EndPromptError for it.
    """
    from endprompt.eval.engine import Coder
    from endprompt.eval.run import suite_of

    coder = Coder(tokenizer)
    for suite in suites:
        if not find_spec("lm_eval") and suite.name in ("ruler", "longbench", "short"):
            raise DependencyError(
                f"--eval {suite.name} needs lm-eval: pip install 'endprompt[eval]'"
            )
        config = suite.config
        if suite.name == "short":
            from endprompt.eval import harness

            harness.task_manager(config.short, config.include)
            continue
        for name in config.tasks:
            try:
                next(iter(suite_of(name, config, coder).questions()), None)
            except EndPromptError as error:
                raise EvaluationError(f"--eval {suite.name}: {error}") from error


def jobs_of(
    suites: Sequence[RunSuite],
    out: Path,
    arm: str,
    label: str,
    *,
    dtype: str,
    needs: tuple[str, ...],
    seconds: Sequence[float],
) -> list[jobs.Job]:
    """`eval run` of each suite on an arm; the configurations are written for them to read.

    seconds  estimate for each suite
    """
    listed = []
    for suite, estimate in zip(suites, seconds, strict=True):
        path = out / "suites" / f"{suite.key}.yaml"
        values = suite.config.model_dump(mode="json", exclude={"model", "dtype"})
        files.write_text(path, yaml.safe_dump(values, sort_keys=False))
        folder = folder_of(out, arm, suite)
        listed.append(
            jobs.Job(
                f"{suite.name}-{arm}",
                f"{suite.name} of {label}",
                ["eval", "run", str(out / "arms" / arm / "model"), "--config", str(path),
                 "--dtype", dtype, "--out", str(folder)],
                folder / suite.results[-1],
                needs=needs,
                seconds=estimate,
            )
        )  # fmt: skip
    return listed


def folder_of(out: Path, arm: str, suite: RunSuite) -> Path:
    """Where the answers of an arm lie."""
    return out / "arms" / arm / "suites" / suite.key


def scores(out: Path, arm: str, suites: Sequence[RunSuite]) -> dict[str, Any]:
    """What an arm scored, by suite: averages by length, tasks by length, and notes on the data.

    Raises DataError for results that can't be read.
    """
    return {suite.name: _scores(folder_of(out, arm, suite), suite) for suite in suites}


def _scores(folder: Path, suite: RunSuite) -> dict[str, Any]:
    tasks: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for path in suite.results:
        if path.name != SUMMARY:
            _add_short(folder / path, tasks)
            continue
        notes += records.read(folder / path, Answers).notes
        _add(read_samples(folder / path.parent / SAMPLES), tasks)
    by_length: dict[str, Any] = {}
    if suite.name != "short":
        for length in suite.config.lengths:
            here = [at[str(length)] for at in tasks.values() if str(length) in at]
            if here:
                by_length[str(length)] = _average(here)
    return {
        "label": LABELS.get(suite.name, suite.name),
        "by_length": by_length,
        "tasks": tasks,
        "notes": notes,
    }


def _add(samples: Sequence[Sample], tasks: dict[str, dict[str, Any]]) -> None:
    for task, length in dict.fromkeys((sample.task, sample.length) for sample in samples):
        here = [s.scores for s in samples if (s.task, s.length) == (task, length) and s.scores]
        metric = next((name for name in USUAL if here and name in here[0]), None)
        if metric is not None:
            name = task.partition("/")[2] or task
            values = [scores[metric] for scores in here]
            tasks.setdefault(name, {})[str(length)] = summary(values) | {"metric": metric}


def _add_short(path: Path, tasks: dict[str, dict[str, Any]]) -> None:
    cells = read_cells(path)
    for task in dict.fromkeys(cell.task for cell in cells):
        here = [cell for cell in cells if cell.task == task]
        for name in USUAL:
            cell = next((cell for cell in here if cell.metric.split(" ")[0] == name), None)
            if cell is not None:
                ends = {} if cell.low is None else {"low": cell.low, "high": cell.high}
                tasks[task] = {"0": {"mean": cell.mean, "metric": cell.metric, **ends}}
                break


def _average(tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean over tasks; its interval is over questions where all tasks have as many."""
    if len({len(task["values"]) for task in tasks}) == 1:
        return summary([value for task in tasks for value in task["values"]])
    return summary([task["mean"] for task in tasks])


def in_words(suites: Sequence[RunSuite]) -> str:
    """For the plan: which suites, how many prompts, at which lengths."""
    said = []
    for suite in suites:
        at = ", ".join(f"{length:,}" for length in suite.config.lengths)
        where = "" if suite.name == "short" else f" at {at} tokens"
        said.append(f"{suite.name} ({questions(suite)} prompts{where})")
    return "; ".join(said)
