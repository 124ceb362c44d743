"""`endprompt eval run`, `endprompt eval compare` and `endprompt eval tasks-path`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from endprompt.cli import eval_screen as screen
from endprompt.cli.terminal import echo

if TYPE_CHECKING:
    from endprompt.eval.engine import Coder, Engine
    from endprompt.eval.results import Answerer, Cell, Summary
    from endprompt.eval.suites import Suite

SUITES = ("ruler", "needle", "passkey", "key-value", "longbench", "short")


def register(_data: typer.Typer, _score: typer.Typer, eval_app: typer.Typer) -> None:
    """Add the commands."""
    eval_app.command()(run)
    eval_app.command()(compare)
    eval_app.command("tasks-path")(tasks_path)


def tasks_path() -> None:
    """Print the folder of RULER's tasks for plain lm-eval.

    Example:

        lm_eval --model hf --model_args pretrained=MODEL --tasks endprompt_ruler
        --include_path "$(endprompt eval tasks-path)"
        --metadata '{"max_seq_lengths": [4096, 8192], "tokenizer": "MODEL"}'
    """
    import endprompt

    echo(str(Path(endprompt.__file__).parent / "eval" / "tasks"))


def compare(
    first: Path = typer.Argument(..., help="Folder of `eval run`, or JSON of `eval window`."),
    second: Path = typer.Argument(..., help="The same of another model."),
    out: Path | None = typer.Option(None, "--json", help="Write the differences here."),
    force: bool = typer.Option(False, "--force", help="Overwrite the file."),
) -> None:
    """Second run minus first, with paired 95 % bootstrap intervals.

    Only samples that both answered count; a difference whose interval holds 0 is not one.

    Example:

        endprompt eval compare runs/base-ruler runs/mine-ruler
    """
    from endprompt import stats
    from endprompt.eval import compare as pairs
    from endprompt.io import result_files

    result_files.require_replaceable(out, "eval compare", force=force)
    rows = pairs.compare(first, second)
    screen.table(
        ["task", "length", "metric", "first", "second", "difference", "95 %", "+ / -", "pairs"],
        (
            [
                row.task,
                row.length or "-",
                row.metric,
                row.first,
                row.second,
                f"{row.difference:+.3f}",
                stats.span(row.low, row.high, "+.3f"),
                f"{row.wins} / {row.losses}",
                f"{row.pairs}" + (f" ({row.unpaired} unpaired)" if row.unpaired else ""),
            ]
            for row in rows
        ),
    )
    if out is not None:
        result_files.write(
            out, "eval compare", {"differences": [row.model_dump(mode="json") for row in rows]}
        )


def run(
    ctx: typer.Context,
    model: str = typer.Argument(
        ..., help="Checkpoint folder, GGUF file or hub name; with --server, its name there."
    ),
    tasks: str = typer.Option(..., "--tasks", help=f"One or more of {', '.join(SUITES)}."),
    out: Path = typer.Option(..., "--out", help="Folder; a run in it is taken up again."),
    lengths: str = typer.Option("4k", "--lengths", help="Tokens, as 4k,8k,16k."),
    samples: int = typer.Option(
        50, "--samples", min=1, help="RULER: a task and length; LongBench, short: a data set."
    ),
    seed: int = typer.Option(42, "--seed", help="Decides every prompt."),
    template: str = typer.Option(
        "base", "--template", help="base, or chat: prompts in the tokenizer's chat template."
    ),
    ruler_tasks: str = typer.Option("all", "--ruler-tasks", help="Some of the 13, or all."),
    essays: Path | None = typer.Option(None, "--essays", help="RULER's essays. Default: the hub."),
    squad: Path | None = typer.Option(None, "--squad", help="SQuAD's dev-v2.0.json."),
    hotpotqa: Path | None = typer.Option(None, "--hotpotqa", help="HotpotQA's dev, distractor."),
    depths: str = typer.Option("10", "--depths", help="needle, passkey, key-value: how many."),
    text: str | None = typer.Option(
        None, "--text", help="Where needles are hidden. Default: Python's manual."
    ),
    texts: int = typer.Option(1, "--texts", min=1, help="needle: texts; others: samples a depth."),
    datasets: str = typer.Option(
        "english", "--datasets", help="LongBench: names, english, all, e."
    ),
    longbench: Path | None = typer.Option(
        None, "--longbench", help="Folder of LongBench's JSONL files. Default: the hub."
    ),
    short: str = typer.Option(
        "mmlu,gsm8k,hellaswag", "--short", help="lm-eval's tasks (humaneval needs --run-code)."
    ),
    include: Path | None = typer.Option(None, "--include", help="Folder of more lm-eval tasks."),
    run_code: bool = typer.Option(False, "--run-code", help="Let tasks run generated code."),
    server: str | None = typer.Option(
        None, "--server", help="An OpenAI-compatible server: http://host:port/v1."
    ),
    tokenizer: str | None = typer.Option(
        None, "--tokenizer", help="With --server: sizes the prompts. Default: MODEL."
    ),
    workers: int = typer.Option(4, "--workers", min=1, help="Requests at a time to a server."),
    timeout: float = typer.Option(600.0, "--timeout", help="Seconds for one answer of a server."),
    tries: int = typer.Option(5, "--tries", min=1, help="How often a request is sent at most."),
    dtype: str = typer.Option("auto", "--dtype", help=screen.DTYPE),
) -> None:
    """Evaluate a checkpoint on this machine, or a model on a server.

    Each sample is written as it is answered: an interrupted run resumes when the same command is
    given again. A sample that a server did not answer counts as failed, never as wrong; the
    command then ends with code 1, and asks only for those when it is given again.

    Examples:

        endprompt eval run runs/demo/model --tasks ruler --lengths 4k,8k --out eval/mine

        endprompt eval run my-model --server http://127.0.0.1:8000/v1 --tokenizer runs/demo/model
        --tasks ruler,longbench --out eval/served
    """
    from endprompt import units
    from endprompt.errors import EvaluationError, nearest
    from endprompt.eval import results
    from endprompt.eval.engine import Coder, Reader
    from endprompt.eval.server import Server, ServerError
    from endprompt.eval.texts import long_texts
    from endprompt.io import claims

    wanted = screen.several(tasks)
    for name in wanted:
        if name not in SUITES:
            raise EvaluationError(
                f"no task {name!r}{nearest(name, SUITES)}: one of {', '.join(SUITES)}"
            )
    if not wanted or template not in ("base", "chat"):
        raise EvaluationError("give --tasks, and --template base or chat")
    sizes, places = units.lengths(lengths), screen.depths(depths)
    reads = [model, tokenizer, text, essays, squad, hotpotqa, longbench, include]
    held = ctx.with_resource(claims.output(out, "eval run", reads=reads))
    client: Server | None = None
    engine: Engine | None = None
    coder: Coder
    answerer: Answerer
    if server is None:
        engine = coder = screen.load(model, dtype)
        answerer = Reader(engine)
    else:
        from endprompt.models.tokenizer import load_tokenizer

        coder = Coder(load_tokenizer(tokenizer or model))
        answerer = client = Server(server, model, timeout=timeout, tries=tries)
    asked = _asked(model, server, tokenizer)
    failed = 0
    for name in (name for name in wanted if name != "short"):
        suite = _suite(
            name,
            coder,
            sizes=sizes,
            places=places,
            samples=samples,
            texts=texts,
            seed=seed,
            template=template,
            ruler_tasks=ruler_tasks,
            files={"essays": essays, "squad": squad, "hotpotqa": hotpotqa},
            documents=lambda: long_texts(coder, text, tokens=sizes[-1], count=texts),
            datasets=datasets,
            longbench_folder=longbench,
        )
        held.claim({})
        settings = {**asked, "suite": suite.name, **suite.settings}
        with screen.bar(name, suite.total) as progress:
            summary = results.answer_all(
                out / name,
                settings,
                suite.questions(),
                answerer,
                suite.score,
                computation=None if engine is None else engine.computation,
                workers=1 if client is None else workers,
                notes=suite.notes,
                progress=progress,
                survives=ServerError,
            )
        _show(name, summary, sizes)
        failed += summary.failed
    if "short" in wanted:
        held.claim({})
        _short(
            ctx,
            engine,
            out / "short",
            {**asked, "samples": samples, "seed": seed},
            several=screen.several(short),
            include=include,
            run_code=run_code,
            chat=template == "chat",
            server=server,
            tokenizer=tokenizer or model,
        )
    if client is not None and client.troubles:
        echo(
            "the server's troubles, retried ones included: "
            + ", ".join(f"{kind} {count}" for kind, count in sorted(client.troubles.items()))
        )
    if failed:
        raise EvaluationError(
            f"{failed} samples got no answer and are not in the scores: "
            "give the same command again to ask for them"
        )


def _asked(model: str, server: str | None, tokenizer: str | None) -> dict[str, str | None]:
    """What decides about every answer: whose they are, by digests, not by a path alone."""
    from endprompt.io import digests
    from endprompt.io.secrets import redact
    from endprompt.models import embedded

    if server is None:
        return {"model": model, **digests.of_model(embedded.resolve(model))}
    sizing = digests.of_model(tokenizer or model)
    return {
        "model": model,
        "server": redact(server),
        "tokenizer_digest": sizing.get("tokenizer_digest"),
    }


def _suite(
    name: str,
    coder: Coder,
    *,
    sizes: list[int],
    places: list[float],
    samples: int,
    texts: int,
    seed: int,
    template: str,
    ruler_tasks: str,
    files: dict[str, Path | None],
    documents: Any,
    datasets: str,
    longbench_folder: Path | None,
) -> Suite:
    from endprompt.eval import longbench, ruler, suites

    if name == "ruler":
        return suites.ruler_suite(
            coder,
            tasks=list(ruler.TASKS) if ruler_tasks == "all" else screen.several(ruler_tasks),
            lengths=sizes,
            samples=samples,
            seed=seed,
            template=template,
            files=files,
        )
    if name == "longbench":
        groups = {
            "english": list(longbench.ENGLISH),
            "all": list(longbench.DATASETS),
            "e": [f"{known}_e" for known in longbench.EXTENDED],
        }
        return suites.longbench_suite(
            coder,
            datasets=groups.get(datasets) or screen.several(datasets),
            folder=longbench_folder,
            max_length=sizes[-1],
            samples=samples,
            chat=template == "chat",
        )
    return suites.retrieval_suite(
        name,
        coder,
        lengths=sizes,
        depths=places,
        samples=texts,
        seed=seed,
        documents=documents() if name == "needle" else (),
    )


def _show(name: str, summary: Summary, sizes: list[int]) -> None:
    """A table of the cells, notes, and for LongBench both averages."""
    from endprompt.cli import eval_longbench
    from endprompt.eval import longbench

    _table(summary.cells)
    for note in summary.notes:
        echo(f"note: {note}")
    if summary.failed:
        echo(f"{name}: {summary.failed} of {summary.asked} samples failed")
    if name == "longbench" and summary.cells:
        eval_longbench.show(
            [
                longbench.DatasetScore(
                    dataset=data,
                    category=longbench.find_dataset(data).category,
                    score=round(100 * cell.mean, 2),
                    samples=cell.samples,
                )
                for cell in summary.cells
                for data in [cell.task.removeprefix("longbench/")]
            ]
        )
    elif name == "ruler":
        import numpy as np

        means = {
            size: [cell.mean for cell in summary.cells if cell.length == size] for size in sizes
        }
        for size, found in means.items():
            mark = " (target)" if size == sizes[-1] else ""
            if found:
                echo(
                    f"{size} tokens{mark}: average {100 * float(np.mean(found)):.1f} "
                    f"over {len(found)} tasks"
                )


def _table(cells: list[Cell]) -> None:
    from endprompt import stats

    screen.table(
        ["task", "length", "metric", "mean", "95 %", "samples", "failed"],
        (
            [
                cell.task,
                cell.length or "-",
                cell.metric,
                cell.mean,
                stats.span(cell.low, cell.high),
                cell.samples,
                cell.failed,
            ]
            for cell in cells
        ),
    )


def _short(
    ctx: typer.Context,
    engine: Engine | None,
    folder: Path,
    settings: dict[str, Any],
    *,
    several: list[str],
    include: Path | None,
    run_code: bool,
    chat: bool,
    server: str | None,
    tokenizer: str,
) -> None:
    """lm-eval's tasks, one file a task; a task that is there is not run again."""
    from endprompt.eval import harness, results
    from endprompt.io import claims
    from endprompt.io.files import write_text

    settings = {**settings, "suite": "short", "chat": chat}
    if engine is not None:
        settings |= engine.computation.deciding()
    held = ctx.with_resource(claims.output(folder, "eval run"))
    held.require(settings)
    model: Any = harness.EngineLM(engine) if engine is not None else "local-completions"
    arguments: dict[str, Any] = {}
    if server is not None:
        arguments["model_args"] = {
            "base_url": f"{server.rstrip('/')}/completions",
            "model": settings["model"],
            "tokenizer": tokenizer,
        }
    for task in several:
        path, table = folder / f"{task}.jsonl", folder / f"{task}.summary.jsonl"
        if not (path.is_file() and table.is_file()):
            samples, cells = harness.run_tasks(
                model,
                [task],
                limit=settings["samples"],
                include=include,
                seed=settings["seed"],
                chat=chat,
                unsafe_code=run_code,
                **arguments,
            )
            held.claim(settings)
            write_text(path, "".join(sample.model_dump_json() + "\n" for sample in samples))
            write_text(table, "".join(cell.model_dump_json() + "\n" for cell in cells))
        lines = table.read_bytes().splitlines()
        _table([results.Cell.model_validate_json(line) for line in lines])
