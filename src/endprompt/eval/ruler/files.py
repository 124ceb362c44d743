"""RULER's prompts as files: one JSONL a task and length, with a record of what they are made of."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from endprompt.errors import EvaluationError, OutputError
from endprompt.eval.ruler.build import Wrap
from endprompt.eval.ruler.counting import TokenCounter
from endprompt.eval.ruler.data import NOT_COMPARABLE, Data, Source
from endprompt.eval.ruler.generate import Cell
from endprompt.eval.ruler.tasks import TASKS, Task, find_task, texts_of
from endprompt.io import records
from endprompt.io.files import sha256_file, write_json, writing

Advance = Callable[[int], None]
"""Told the tokens of prompts (their target length) that have been written since the last call."""


@dataclass(frozen=True)
class Order:
    """What all files of one run share; `labels` goes into every record."""

    num_samples: int
    seed: int
    counter: TokenCounter
    data: Data
    wrap: Wrap
    labels: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One file to write."""

    task: str
    length: int
    path: Path


def record_of(path: Path) -> Path:
    """The record beside a file of prompts or predictions."""
    return path.with_name(f"{path.name}.meta.json")


def plan(tasks: Sequence[str], lengths: Sequence[int], out: Path, *, force: bool) -> list[Job]:
    """The files of a run: `out` itself for one task and length, else `out/<length>/<task>.jsonl`.

    Raises EvaluationError for an unknown task, OutputError when a file is there already.
    """
    for task in tasks:
        find_task(task)
    if not tasks or not lengths:
        raise EvaluationError("nothing to write: name a task and a length")
    if len(tasks) == len(lengths) == 1:
        jobs = [Job(tasks[0], lengths[0], out)]
    else:
        jobs = [
            Job(task, length, out / str(length) / f"{task}.jsonl")
            for length in lengths
            for task in tasks
        ]
        if out.is_file():
            raise OutputError(f"{out} is a file; several tasks or lengths need a folder")
    there = [job.path for job in jobs if job.path.exists()]
    if there and not force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise OutputError(f"{there[0]} exists{more}: choose another --out or add --force")
    if jobs[0].path.is_dir():
        raise OutputError(f"{out} is a folder; one task and length is written to a file")
    return jobs


def write(jobs: Sequence[Job], order: Order, *, workers: int, advance: Advance) -> list[Any]:
    """Write all files, on `workers` processes; returns their records in the order of `jobs`.

    A file whose length is too short for its task is left out, and the others are written; then
    EvaluationError names the first of those left out.
    """
    done: dict[Job, Any] = {}
    failed: dict[Job, EvaluationError] = {}
    for job, result in _results(jobs, order, workers, advance):
        if isinstance(result, EvaluationError):
            failed[job] = result
        else:
            done[job] = result
    if failed:
        first = next(failed[job] for job in jobs if job in failed)
        rest = f" ({len(failed)} of {len(jobs)} files not written)" if len(jobs) > 1 else ""
        raise EvaluationError(f"{first}{rest}")
    return [done[job] for job in jobs]


def _results(
    jobs: Sequence[Job], order: Order, workers: int, advance: Advance
) -> Iterator[tuple[Job, Any]]:
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            yield job, _attempt(job, order, advance)
        return
    for what in {text for job in jobs for text in texts_of(find_task(job.task))}:
        _preload(order.data, what)
    longest_first = sorted(jobs, key=lambda job: -job.length)
    with ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), _receive, (order,)
    ) as pool:
        running = {pool.submit(_remote, job): job for job in longest_first}
        for done in as_completed(running):
            job = running[done]
            yield job, done.result()
            advance(job.length * order.num_samples)


def _preload(data: Data, what: str) -> None:
    """Read a text before the processes start, so that each is given it and none asks the hub."""
    if what in {"essays", "sentences"}:
        data.essays()
    else:
        data.collection(what)


_received: list[Order] = []


def _receive(order: Order) -> None:
    _received[:] = [order]


def _remote(job: Job) -> Any:
    return _attempt(job, _received[0], _untold)


def _untold(tokens: int) -> None:
    del tokens


def _attempt(job: Job, order: Order, advance: Advance) -> Any:
    try:
        return _write_one(job, order, advance)
    except EvaluationError as error:
        return error


def _write_one(job: Job, order: Order, advance: Advance) -> dict[str, Any]:
    task = find_task(job.task)
    cell = Cell(
        task, job.length, order.num_samples, order.seed, order.counter, order.data, order.wrap
    )
    with writing(job.path) as partial, partial.open("w", encoding="utf-8") as file:
        for sample in cell:
            file.write(json.dumps(sample.row()) + "\n")
            advance(job.length)
    sources = [asdict(source) for source in cell.sources]
    record = {
        "kind": "ruler",
        **order.labels,
        "task": job.task,
        "length": job.length,
        "num_samples": order.num_samples,
        "seed": order.seed,
        "counted": "by words" if order.counter.words_apart else "whole prompts",
        "sources": sources,
        "note": note(task, sources),
        "sha256": sha256_file(job.path),
    }
    write_json(record_of(job.path), record)
    return record


def note(task: Task, sources: Sequence[dict[str, Any] | Source] | None) -> str | None:
    """Why results on a file are not comparable with published ones, or None when they are.

    sources   as recorded; None when no record was found, which is taken as not comparable for
              the tasks that are made of outside texts
    """
    if sources is None:
        if not texts_of(task):
            return None
        return f"{NOT_COMPARABLE}: no record says which {' and '.join(texts_of(task))} it used"
    records = [asdict(source) if isinstance(source, Source) else source for source in sources]
    made_up = [
        f"{source['what']} are {source['origin']}" for source in records if not source["published"]
    ]
    return f"{NOT_COMPARABLE}: {'; '.join(made_up)}" if made_up else None


def read_record(path: Path) -> dict[str, Any] | None:
    """The record beside a file, or None when there is none that can be read."""
    try:
        record = records.parse(record_of(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("kind") == "ruler" else None


@dataclass(frozen=True)
class PredictionFile:
    """A file of predictions; length None where its place does not say."""

    task: str
    length: int | None
    path: Path

    def data_in(self, data: Path) -> Path:
        """The file of prompts that it answers: `data` itself, or its like in that folder."""
        if not data.is_dir():
            return data
        name = f"{self.task}.jsonl"
        return data / str(self.length) / name if (data / str(self.length)).is_dir() else data / name


def find_predictions(place: Path, task: str, length: int | None) -> list[PredictionFile]:
    """Files of predictions: one file, or a folder `<length>/<task>.jsonl` or `<task>.jsonl`.

    Raises EvaluationError when there are none, or a file's task is not said.
    """
    if place.is_file():
        if task == "all":
            raise EvaluationError(f"{place} is one file: name its --task")
        return [PredictionFile(find_task(task).name, length, place)]
    tasks = list(TASKS) if task == "all" else [find_task(task).name]
    folders: dict[int | None, Path] = {
        int(folder.name): folder for folder in place.glob("*") if folder.name.isdigit()
    }
    if length is not None and folders:
        folders = {length: place / str(length)}
    files = [
        PredictionFile(name, at, folder / f"{name}.jsonl")
        for at, folder in (sorted(folders.items()) if folders else [(length, place)])
        for name in tasks
        if (folder / f"{name}.jsonl").is_file()
    ]
    if not files:
        raise EvaluationError(
            f"no predictions in {place}: expected LENGTH/TASK.jsonl or TASK.jsonl"
        )
    return files
