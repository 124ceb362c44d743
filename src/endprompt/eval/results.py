"""Results of a run: one JSONL line a sample, resumable, and a typed summary.

A run's folder holds `claim.json` (what was asked), `samples.jsonl` (as samples come in) and
`summary.json`. At the end samples are put in the order in which they were asked, so that the same
run gives the same file, interrupted or not.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from pydantic import Field, ValidationError

from endprompt import stats
from endprompt.errors import DataError, EvaluationError
from endprompt.io import claims
from endprompt.io.files import sha256_of, write_json, write_text, writing_errors
from endprompt.io.provenance import Computation, versions
from endprompt.record import Exact

SAMPLES, SUMMARY = "samples.jsonl", "summary.json"


class Question(Exact):
    """One prompt to be answered by greedy generation.

    id          unique in a run, the same in every run that asks it
    length      the length that it is asked at, tokens; 0 where there is none
    """

    id: str
    task: str
    length: int
    prompt: str
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    detail: dict[str, Any] = Field(default_factory=dict)


class Sample(Exact):
    """A question's outcome. A failed one has no scores: it counts as failed, not as wrong."""

    id: str
    task: str
    length: int
    prompt_sha256: str
    prediction: str | None
    references: tuple[str, ...]
    scores: dict[str, float]
    error: str | None = None


class Cell(Exact):
    """One task at one length: means of each metric over the samples that were answered.

    low, high    95 % interval of the mean (`endprompt.stats`), None for too few samples
    """

    task: str
    length: int
    metric: str
    mean: float
    low: float | None
    high: float | None
    samples: int
    failed: int


class Summary(Exact):
    """What a run found. `failed` above 0 means: incomplete, run again."""

    cells: list[Cell]
    asked: int
    answered: int
    failed: int
    settings_sha256: str
    computation: Computation | None = None
    """None: answered by a server, which does not say."""
    versions: dict[str, str]
    notes: list[str]


class Answerer(Protocol):
    """Whatever answers prompts: a model here or a server."""

    def answer(self, prompt: str, max_new_tokens: int, stop: Sequence[str] = ()) -> str:
        """The greedy continuation of a prompt."""


@runtime_checkable
class BatchAnswerer(Protocol):
    """A model that answers several prompts at once."""

    def batches(self, questions: Iterable[Question]) -> Iterator[list[Question]]:
        """The questions in their order, those together that it answers at once."""

    def answer_all(self, questions: Sequence[Question]) -> list[str]:
        """An answer to each question of a batch."""


def answer_all(
    folder: Path,
    settings: dict[str, Any],
    questions: Iterable[Question],
    answerer: Answerer | BatchAnswerer,
    score: Callable[[Question, str], dict[str, float]],
    *,
    computation: Computation | None = None,
    reads: Sequence[str | Path | None] = (),
    workers: int = 1,
    notes: Callable[[], Sequence[str]] = tuple,
    progress: Callable[[int], None] | None = None,
    survives: type[Exception] | tuple[type[Exception], ...] = (),
) -> Summary:
    """Ask what was not answered yet, write each sample as it comes, summarise.

    folder      the run's; made when absent. Samples in it are kept, failed ones asked again
    settings    what decides the results, JSON-able. Another run's folder is refused
    computation  of a model here; its precision, device and attention are among the settings
    questions   taken as they are needed, so that long prompts are not all held at once
    reads       what is read from disk: `folder` may be none of it, and hold none
    workers     questions asked at the same time
    notes       what a reader has to know; called when all questions have been taken
    survives    errors that make a sample failed; any other ends the run, which can be resumed
    progress    called with the number of samples done

    The folder is claimed once the first question could be made. Raises OutputError when it holds
    another run, or another process holds it.
    """
    if computation is not None:
        settings = settings | computation.deciding()
    with claims.output(folder, "eval run", reads=reads) as held, writing_errors(folder):
        held.require(settings)
        return _answer_all(
            held, settings, questions, answerer, score, computation=computation, workers=workers,
            notes=notes, progress=progress, survives=survives,
        )  # fmt: skip


def _answer_all(
    held: claims.Output,
    settings: dict[str, Any],
    questions: Iterable[Question],
    answerer: Answerer | BatchAnswerer,
    score: Callable[[Question, str], dict[str, float]],
    *,
    computation: Computation | None,
    workers: int,
    notes: Callable[[], Sequence[str]],
    progress: Callable[[int], None] | None,
    survives: type[Exception] | tuple[type[Exception], ...],
) -> Summary:
    folder = held.folder
    path = folder / SAMPLES
    before = {s.id: s for s in read_samples(path, repair=True) if s.error is None}
    done: dict[str, Sample | None] = {}

    def ask(batch: list[Question]) -> list[Sample]:
        predictions: list[str | None] = [None] * len(batch)
        error = None
        try:
            if isinstance(answerer, BatchAnswerer):
                predictions = list(answerer.answer_all(batch))
            else:
                predictions = [answerer.answer(q.prompt, q.max_new_tokens, q.stop) for q in batch]
        except survives as caught:
            error = str(caught)
        return [_sample(*pair, score, error) for pair in zip(batch, predictions, strict=True)]

    def wanted() -> Iterator[Question]:
        """Questions that no sample of an earlier run answers."""
        for question in itertools.chain(first, questions):
            if question.id in done:
                raise EvaluationError(f"two questions are called {question.id!r}")
            known = before.get(question.id)
            same = known is not None and known.prompt_sha256 == sha256_of(question.prompt)
            done[question.id] = known if same else None
            if not same:
                yield question

    questions = iter(questions)
    first = list(itertools.islice(questions, 1))
    held.claim(settings)
    with path.open("a", encoding="utf-8") as file, ThreadPoolExecutor(workers) as pool:
        waiting: set[Future[list[Sample]]] = set()

        def collect(down_to: int) -> None:
            while len(waiting) > down_to:
                ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    waiting.discard(future)
                    for sample in future.result():
                        file.write(sample.model_dump_json() + "\n")
                        done[sample.id] = sample
                    file.flush()
                _tell(progress, sum(sample is not None for sample in done.values()))

        try:
            singly = ([question] for question in wanted())
            together = isinstance(answerer, BatchAnswerer)
            for batch in answerer.batches(wanted()) if together else singly:
                waiting.add(pool.submit(ask, batch))
                collect(2 * workers - 1)
            collect(0)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    samples = [sample for sample in done.values() if sample is not None]
    write_text(path, "".join(sample.model_dump_json() + "\n" for sample in samples))
    summary = summarise(samples, settings, notes(), computation)
    write_json(folder / SUMMARY, summary.model_dump(mode="json"))
    return summary


def _sample(
    question: Question,
    prediction: str | None,
    score: Callable[[Question, str], dict[str, float]],
    error: str | None,
) -> Sample:
    return Sample(
        id=question.id,
        task=question.task,
        length=question.length,
        prompt_sha256=sha256_of(question.prompt),
        prediction=prediction,
        references=question.references,
        scores={} if prediction is None else score(question, prediction),
        error=error,
    )


def read_samples(path: Path, *, repair: bool = False) -> list[Sample]:
    """Samples of a file; none when it is absent.

    repair   cut off a last line that a killed run left unfinished
    Raises DataError on any other line that is no sample.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    if repair and data and not data.endswith(b"\n"):
        data = data[: data.rfind(b"\n") + 1]
        with path.open("r+b") as file:
            file.truncate(len(data))
    samples = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            samples.append(Sample.model_validate_json(line))
        except ValidationError as error:
            raise DataError(f"{path}:{number} is no sample: delete that line") from error
    return samples


def read_cells(path: Path) -> list[Cell]:
    """Cells of one of lm-eval's tasks, as `eval run` writes them. Raises DataError."""
    try:
        return [Cell.model_validate_json(line) for line in path.read_bytes().splitlines()]
    except ValidationError as error:
        raise DataError(f"{path} holds no results: remove it, and run again") from error


def summarise(
    samples: Sequence[Sample],
    settings: dict[str, Any],
    notes: Sequence[str] = (),
    computation: Computation | None = None,
) -> Summary:
    """Means and intervals of each task, length and metric; failures counted beside them."""
    cells: list[Cell] = []
    for task, length in dict.fromkeys((sample.task, sample.length) for sample in samples):
        here = [s for s in samples if (s.task, s.length) == (task, length)]
        answered = [sample for sample in here if sample.error is None]
        for metric in dict.fromkeys(name for sample in answered for name in sample.scores):
            values = np.array([s.scores[metric] for s in answered if metric in s.scores])
            estimate = stats.of_values(values)
            cells.append(
                Cell(
                    task=task,
                    length=length,
                    metric=metric,
                    mean=estimate.mean,
                    low=estimate.low,
                    high=estimate.high,
                    samples=len(values),
                    failed=len(here) - len(answered),
                )
            )
    failed = sum(sample.error is not None for sample in samples)
    return Summary(
        cells=cells,
        asked=len(samples),
        answered=len(samples) - failed,
        failed=failed,
        settings_sha256=sha256_of(settings),
        computation=computation,
        versions=versions(),
        notes=list(notes),
    )


def jsonl(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as JSONL text, in UTF-8 without escapes."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _tell(progress: Callable[[int], None] | None, done: int) -> None:
    if progress is not None:
        progress(done)
