"""`endprompt eval data longbench` and `endprompt eval score longbench`."""

from __future__ import annotations

from pathlib import Path

import typer

from endprompt.cli.terminal import echo


def register(data_app: typer.Typer, score_app: typer.Typer, _eval: typer.Typer) -> None:
    """Add LongBench's commands."""
    data_app.command("longbench")(data)
    score_app.command("longbench")(score)


def data(
    dataset: str = typer.Option(
        ..., "--dataset", help="narrativeqa, qasper, ...; with _e for LongBench-E's."
    ),
    tokenizer: str = typer.Option(..., "--tokenizer", help="Folder or name; sizes the prompts."),
    max_length: str = typer.Option(
        ..., "--max-length", help="Longest prompt, tokens; longer ones lose their middle."
    ),
    out: Path = typer.Option(..., "--out", help="The JSONL file to write."),
    file: Path | None = typer.Option(
        None, "--file", help="The data set's JSONL in the original format. Default: the hub."
    ),
    force: bool = typer.Option(False, "--force", help="Overwrite the file."),
) -> None:
    """Write LongBench's prompts, one JSON object per line.

    The model is given `prompt`. Each line has max_new_tokens too, and for `eval score longbench`
    answers, all_classes and length.

    Example:

        endprompt eval data longbench --dataset qasper --file data/qasper.jsonl
        --tokenizer runs/demo/model --max-length 31500 --out prompts/qasper.jsonl
    """
    from endprompt import units
    from endprompt.cli import eval_screen as screen
    from endprompt.eval import longbench, results
    from endprompt.io import files, result_files
    from endprompt.models.tokenizer import load_tokenizer

    longbench.find_dataset(dataset)
    result_files.require_replaceable(out, "eval data longbench", force=force)
    limit = units.tokens(max_length)
    sizer = load_tokenizer(tokenizer)
    rows = (
        longbench.load_rows(dataset, None)
        if file is None
        else list(longbench.read_rows(file, ("context", "answers")))
    )
    lines = []
    with screen.bar("prompts", len(rows)) as progress:
        for number, row in enumerate(rows):
            text = longbench.cut_middle(longbench.prompt(dataset, row), sizer, limit)
            lines.append(
                {
                    **result_files.mark("eval data longbench"),
                    "index": number,
                    "dataset": dataset,
                    "prompt": text,
                    "answers": row["answers"],
                    "all_classes": row.get("all_classes"),
                    "length": row.get("length"),
                    "max_new_tokens": longbench.tokens_to_generate(dataset),
                }
            )
            progress(number + 1)
    files.write_text(out, results.jsonl(lines))


def score(
    dataset: list[str] = typer.Option(
        ..., "--dataset", help="The predictions' data set; repeat both options for several."
    ),
    predictions: list[Path] = typer.Option(
        ..., "--predictions", help="JSONL with pred, answers, all_classes (and length for _e)."
    ),
    out: Path | None = typer.Option(None, "--json", help="Write the scores here."),
    force: bool = typer.Option(False, "--force", help="Overwrite the file."),
) -> None:
    """Score LongBench predictions as its own scorer does, 0 to 100.

    Two averages are printed, because published tables use one or the other: over data sets, and
    over the six categories. Both are over the English data sets alone.

    Example:

        endprompt eval score longbench --dataset qasper --predictions pred/qasper.jsonl
    """
    from endprompt.errors import EvaluationError
    from endprompt.eval import longbench
    from endprompt.eval.scores import Score, Scores
    from endprompt.io import result_files

    if len(dataset) != len(predictions):
        raise EvaluationError(
            f"{len(dataset)} --dataset and {len(predictions)} --predictions: give pairs"
        )
    result_files.require_replaceable(out, "eval score longbench", force=force)
    scores = [
        longbench.score_rows(name, longbench.read_rows(path, ("pred", "answers")))
        for name, path in zip(dataset, predictions, strict=True)
    ]
    show(scores)
    if out is not None:
        rows = [
            Score(
                task=row.dataset,
                score=row.score,
                samples=row.samples,
                detail={"category": row.category, "by_length": row.by_length},
            )
            for row in scores
        ]
        english = any(row.dataset.removesuffix("_e") in longbench.ENGLISH for row in scores)
        averages = longbench.averages(scores).model_dump(mode="json") if english else None
        record = Scores(suite="longbench", scores=rows, averages=averages)
        result_files.write(out, "eval score longbench", record.model_dump(mode="json"))


def show(scores: list) -> None:
    """Print the scores and both averages."""
    from endprompt.cli import eval_screen as screen
    from endprompt.eval import longbench

    screen.table(
        ["data set", "category", "score", "samples", "by length"],
        (
            [
                row.dataset,
                row.category,
                f"{row.score:.2f}",
                row.samples,
                "  ".join(f"{k}: {v}" for k, v in (row.by_length or {}).items()),
            ]
            for row in scores
        ),
    )
    if any(row.dataset.removesuffix("_e") in longbench.ENGLISH for row in scores):
        means = longbench.averages(scores)
        echo(f"average over data sets {means.over_datasets:.2f}")
        echo(f"average over categories {means.over_categories:.2f}")
        if means.missing:
            echo(f"not scored, so not in the averages: {', '.join(means.missing)}")
