"""`endprompt eval data ruler` and `endprompt eval score ruler`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from endprompt.cli.terminal import echo

if TYPE_CHECKING:
    from endprompt.eval.ruler.scoring import Summary, TaskScore
    from endprompt.eval.scores import Score


def register(data_app: typer.Typer, score_app: typer.Typer, eval_app: typer.Typer) -> None:
    """Add RULER's commands (none of them stands directly under `eval`)."""
    del eval_app
    data_app.command("ruler")(data)
    score_app.command("ruler")(score)


def data(
    ctx: typer.Context,
    task: str = typer.Option(
        ..., help="One of the 13 tasks (niah_single_1, vt, cwe, qa_1, ...), several, or 'all'."
    ),
    length: str = typer.Option(
        ...,
        help="Tokens of prompt and answer together (NVIDIA's max_seq_length); or several: 4k,8k.",
    ),
    out: Path = typer.Option(
        ..., help="The JSONL file; a folder for several tasks or lengths: OUT/LENGTH/TASK.jsonl."
    ),
    tokenizer: str = typer.Option(
        ..., help="Folder, hub name or GGUF file of the tokenizer that sizes the prompts."
    ),
    num_samples: int = typer.Option(500, min=1, help="Samples a task and length."),
    seed: int = typer.Option(42, help="The same seed, tokenizer and data give the same prompts."),
    template: str = typer.Option(
        "base", help="'base': no chat template; 'chat': the tokenizer's own."
    ),
    essays: Path | None = typer.Option(
        None, help="PaulGrahamEssays.json (or plain text). Default: the hub, else made-up text."
    ),
    squad: Path | None = typer.Option(
        None, help="SQuAD's dev-v2.0.json, for qa_1. Default: the hub, else made-up text."
    ),
    hotpotqa: Path | None = typer.Option(
        None, help="hotpot_dev_distractor_v1.json, for qa_2. Default: the hub, else made-up text."
    ),
    english_words: Path | None = typer.Option(
        None, help="RULER's english_words.json, for cwe beyond some 100K tokens."
    ),
    workers: int = typer.Option(1, min=1, help="Processes; each writes whole files."),
    force: bool = typer.Option(False, help="Overwrite files that are there."),
) -> None:
    """Write RULER's prompts, equal to those of NVIDIA's generator.

    One JSON object a line: index, input, outputs, length, answer_prefix (and, in needle tasks,
    token_position_answer). The model is given `input` + `answer_prefix`. Beside each file stands a
    record, FILE.meta.json: what the prompts are made of, and whether results can be compared with
    published ones.

    Example:

        endprompt eval data ruler --task niah_single_1 --length 4k --tokenizer DIR --out F.jsonl
    """
    from endprompt.eval.ruler import TASKS, Data, TokenCounter, wrap_of
    from endprompt.eval.ruler.files import Order, plan, write
    from endprompt.io import claims
    from endprompt.io.provenance import provenance
    from endprompt.models.tokenizer import load_tokenizer
    from endprompt.units import lengths

    tasks = list(TASKS) if task == "all" else _several(task)
    jobs = plan(tasks, lengths(length), out, force=force)
    held = None
    if len(jobs) > 1:
        reads = [tokenizer, essays, squad, hotpotqa, english_words]
        held = ctx.with_resource(claims.output(out, "eval data ruler", reads=reads))
    texts = Data(essays=essays, squad=squad, hotpotqa=hotpotqa, english_words=english_words)
    loaded = load_tokenizer(tokenizer)
    order = Order(
        num_samples=num_samples,
        seed=seed,
        counter=TokenCounter(loaded),
        data=texts,
        wrap=wrap_of(template, loaded),
        labels={
            "tokenizer": Path(tokenizer).name,
            "template": template,
            "generator": _versions_of("lm-eval", "wonderwords", "nltk", "tokenizers"),
            **provenance(),
        },
    )
    if held is not None:
        held.claim({})  # what each file is made of stands in its record
    with _progress(sum(job.length for job in jobs) * num_samples) as advance:
        records = write(jobs, order, workers=workers, advance=advance)
    echo(f"{len(jobs) * num_samples} prompts in {len(jobs)} file(s): {out}")
    _print_notes((record["task"], record["note"]) for record in records)


def score(
    predictions: Path = typer.Option(
        ..., help="JSONL with `pred` and `outputs`; or a folder: LENGTH/TASK.jsonl or TASK.jsonl."
    ),
    task: str = typer.Option("all", help="The task of the file; 'all' for a folder."),
    data: Path | None = typer.Option(
        None, help="The file or folder that `eval data ruler` wrote, whose record says what it is."
    ),
    length: str | None = typer.Option(
        None, help="Tokens, where the predictions' place and record do not say."
    ),
    target: str | None = typer.Option(
        None, help="The length that the model is for. Default: the longest scored."
    ),
    json_out: Path | None = typer.Option(None, "--json", help="Write the scores as JSON."),
) -> None:
    """Score RULER predictions as NVIDIA's scorer does.

    A folder gives every length, the plain average and those weighted to long (rising) and short
    lengths (falling), and the effective length: the longest whose average, and every shorter one,
    exceeds 85.6, the published threshold. Intervals are 95 %, bootstrapped over samples.

    Example:

        endprompt eval score ruler --task qa_1 --predictions P.jsonl --json S.json
    """
    from dataclasses import asdict

    from endprompt.eval.ruler import score as score_task
    from endprompt.eval.ruler import summarise
    from endprompt.eval.ruler.files import find_predictions, note, read_record
    from endprompt.eval.ruler.scoring import read_predictions
    from endprompt.eval.ruler.tasks import find_task
    from endprompt.eval.scores import Score, Scores
    from endprompt.io import result_files
    from endprompt.units import lengths

    result_files.require_replaceable(json_out, "eval score ruler", force=True)
    files = find_predictions(predictions, task, lengths(length)[0] if length else None)
    scores: dict[int, list[TaskScore]] = {}
    rows: list[Score] = []
    for item in files:
        result = score_task(item.task, read_predictions(item.path))
        record = read_record(item.data_in(data)) if data else read_record(item.path)
        at = item.length or (record or {}).get("length") or 0
        scores.setdefault(at, []).append(result)
        why = note(find_task(item.task), record["sources"] if record else None)
        rows.append(
            Score(
                task=result.task,
                length=at or None,
                score=result.score,
                samples=result.count,
                low=result.low,
                high=result.high,
                note=why or "",
                detail={"nulls": result.nulls},
            )
        )
    summary = summarise(scores, target=lengths(target)[0] if target else None)
    _print_scores(rows)
    if len(rows) > 1:
        _print_summary(summary)
    _print_notes((row.task, row.note) for row in rows)
    if json_out:
        averages = asdict(summary) if len(rows) > 1 else None
        found_scores = Scores(suite="ruler", scores=rows, averages=averages)
        result_files.write(json_out, "eval score ruler", found_scores.model_dump(mode="json"))


def _versions_of(*names: str) -> dict[str, str]:
    """Versions of installed packages; those that are missing are left out."""
    from importlib import metadata

    installed = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def _several(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    return list(dict.fromkeys(part for part in parts if part))


@contextmanager
def _progress(total: int) -> Generator[Callable[[int], None]]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    from endprompt.cli.console import Console

    columns = ("prompts", BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        number = bar.add_task("prompts", total=total)
        yield lambda tokens: bar.advance(number, tokens)


def _print_scores(rows: Sequence[Score]) -> None:
    from endprompt import stats
    from endprompt.cli.console import Console, Table

    table = Table("task", "length", "score", "95 %", "nulls")
    for row in rows:
        table.add_row(
            row.task,
            str(row.length or "?"),
            f"{row.score:.2f}",
            stats.span(row.low, row.high, ".1f"),
            f"{row.detail['nulls']}/{row.samples}",
        )
    Console().print(table)


def _print_summary(summary: Summary) -> None:
    from endprompt import stats
    from endprompt.cli.console import Console, Table

    table = Table("length", "average", "95 %", "tasks")
    for row in summary.lengths:
        mark = " (target)" if row.length == summary.target else ""
        table.add_row(
            f"{row.length or '?'}{mark}",
            f"{row.score:.1f}",
            stats.span(row.low, row.high, ".1f"),
            str(len(row.tasks)),
        )
    Console().print(table)
    effective = summary.effective or f"below {summary.lengths[0].length}"
    echo(
        f"average {summary.average:.1f}, rising weights {summary.rising:.1f}, "
        f"falling weights {summary.falling:.1f}; effective length {effective} "
        f"(above {summary.threshold})"
    )
    for warning in summary.warnings:
        echo(f"warning: {warning}", err=True)


def _print_notes(notes: Iterable[tuple[str, str | None]]) -> None:
    """Say once for each reason which tasks cannot be compared."""
    tasks_of: dict[str, list[str]] = {}
    for task, note in notes:
        if note and task not in tasks_of.setdefault(note, []):
            tasks_of[note].append(task)
    for note, tasks in tasks_of.items():
        echo(f"{', '.join(tasks)}: {note}")
