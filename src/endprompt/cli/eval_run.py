"""`endprompt eval run`, `endprompt eval compare` and `endprompt eval tasks-path`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from endprompt.cli import eval_screen as screen
from endprompt.cli.terminal import echo

if TYPE_CHECKING:
    from endprompt.eval.results import Cell, Summary


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
    model: str | None = typer.Argument(
        None, help="Checkpoint folder, GGUF file or hub name; with --server, its name there."
    ),
    tasks: str | None = typer.Option(
        None,
        "--tasks",
        help="One or more of ruler, needle, passkey, key-value, json-kv, facts-1, "
        "facts-2, mrcr, graphwalks, longbench, short.",
    ),
    config: Path | None = typer.Option(
        None, "--config", help="YAML file of these options; those given here go before it."
    ),
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
    progress: Path | None = typer.Option(
        None, "--progress", help="File to keep the progress in, for another process to read."
    ),
) -> None:
    """Evaluate a checkpoint on this machine, or a model on a server.

    Each sample is written as it is answered: an interrupted run resumes when the same command is
    given again. A sample that a server did not answer counts as failed, never as wrong; the
    command then ends with code 1, and asks only for those when it is given again.

    Examples:

        endprompt eval run runs/demo/model --tasks ruler --lengths 4k,8k --out eval/mine

        endprompt eval run --config evaluation.yaml --samples 10 --out eval/quick

        endprompt eval run my-model --server http://127.0.0.1:8000/v1 --tokenizer runs/demo/model
        --tasks ruler,longbench --out eval/served
    """
    from endprompt.errors import EvaluationError
    from endprompt.eval.config import load
    from endprompt.io.silence import silence_libraries

    chosen = load(config, screen.given(ctx, "config", "out", "progress"))
    if chosen.server is None:
        silence_libraries()
    from endprompt.eval.run import evaluate

    def show(name: str, cells: Sequence[Cell], summary: Summary | None) -> None:
        _table(cells)
        if summary is not None:
            _show(name, summary, chosen.lengths)

    bar = screen.bar if progress is None else screen.parts_of_progress(progress, chosen.tasks)
    done = evaluate(chosen, out, bar=bar, show=show, say=echo)
    if done.troubles:
        echo(
            "the server's troubles, retried ones included: "
            + ", ".join(f"{kind} {count}" for kind, count in sorted(done.troubles.items()))
        )
    if done.failed:
        raise EvaluationError(
            f"{done.failed} samples got no answer and are not in the scores: "
            "give the same command again to ask for them"
        )


def _show(name: str, summary: Summary, sizes: Sequence[int]) -> None:
    """Notes, and the averages of RULER and of LongBench."""
    from endprompt.cli import eval_longbench
    from endprompt.eval import longbench

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
        for size, values in means.items():
            mark = " (target)" if size == sizes[-1] else ""
            if values:
                echo(
                    f"{size} tokens{mark}: average {100 * float(np.mean(values)):.1f} "
                    f"over {len(values)} tasks"
                )


def _table(cells: Sequence[Cell]) -> None:
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
