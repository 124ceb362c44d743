"""`endprompt prepare`: documents to tokens on disk; `prepare verify` and `prepare show`."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from endprompt import units
from endprompt.cli.groups import DIRECT, DirectOrCommand
from endprompt.cli.terminal import echo

if TYPE_CHECKING:
    from endprompt.cli.console import Console
    from endprompt.data.tokens import TokenDocuments

SHOWN_CHARACTERS = 240


def register(app: typer.Typer) -> None:
    """Add the verb with its two commands."""
    verb = typer.Typer(cls=DirectOrCommand)
    verb.command(DIRECT, hidden=True)(prepare)
    verb.command("verify")(verify)
    verb.command("show")(show)
    app.add_typer(verb, name="prepare", help="Turn documents into tokens on disk, verified.")


def prepare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders or globs of txt, md, jsonl, json, csv, parquet, arrow (also .gz, "
            ".zst); "
            "URLs (s3://, gs://, https://, hf://); hub data sets (owner/name or "
            "owner/name:config, streamed); '-' for standard input."
        ),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", "-t", help="Model whose tokenizer is used.")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write.")] = None,
    length: Annotated[
        str, typer.Option(help="Row length that the statistics of long documents are about.")
    ] = "8192",
    holdout: Annotated[
        str, typer.Option(help="Share of documents kept from training, as 0.5% or 0.005.")
    ] = "0",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that tokenise.", show_default="all cores")
    ] = None,
    max_tokens: Annotated[
        str | None,
        typer.Option(
            help="Stop with the document that reaches it; k a thousand, m a million, b a billion."
        ),
    ] = None,
    min_document_tokens: Annotated[
        int, typer.Option(min=1, help="Drop shorter documents, and count them.")
    ] = 1,
    mixture: Annotated[
        Path | None,
        typer.Option(help="YAML file of sources with weights, in place of SOURCES."),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            help="Column with the text, or with token ids, which are taken as they are.",
            show_default="text, content, input_ids, or the only column of text",
        ),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat", help="Rows are chats (`messages`): write them with the chat template."
        ),
    ] = False,
    split: Annotated[str, typer.Option(help="Split of hub data sets.")] = "train",
    push: Annotated[
        str | None,
        typer.Option(
            help="Push the result to the hub under this name, as a private data set. "
            "The token comes from HF_TOKEN."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace prepared data in --out.")] = False,
) -> None:
    """Turn documents into tokens on disk, once; training then reads them through a memory map.

    One txt or md file is one document, and so is each row of the other formats. Documents begin
    with a BOS where the tokenizer puts one, and end with its end-of-sequence token. Faulty rows
    (empty, not UTF-8, ...) are left out and counted. Killed at any time, the same command
    resumes, with the same result byte for byte. The folder is what `datasets.load_from_disk` loads.

    \b
    Example:
        endprompt prepare corpus/ -t meta-llama/Llama-3.1-8B -o data/ --holdout 0.5%
    Then:
        endprompt prepare verify data/          checks every checksum
        endprompt prepare show data/ --row 0    prints a training row with its positions
    """
    if not tokenizer or out is None:
        raise typer.BadParameter("needs --tokenizer MODEL and --out DIR")
    if bool(sources) == bool(mixture):
        raise typer.BadParameter("give SOURCES, or --mixture with a file that names them")
    _use_threads(workers)
    if push:
        from endprompt.io import hub

        hub.check(push)
    from endprompt.cli.console import Console
    from endprompt.data.chats import renderer
    from endprompt.data.mixture import Weighted, load_mixture
    from endprompt.data.prepare import Options
    from endprompt.data.prepare import prepare as run
    from endprompt.data.prepared import open_documents, push_to_hub
    from endprompt.data.sources import open_source
    from endprompt.models.tokenizer import load_tokenizer

    row_tokens = units.tokens(length)
    options = Options(
        holdout=units.share(holdout),
        max_tokens=units.amount(max_tokens) if max_tokens else None,
        min_document_tokens=min_document_tokens,
    )
    console = Console()
    render = renderer(load_tokenizer(tokenizer)) if chat else None
    if mixture:
        weighted = load_mixture(mixture, render=render)
    else:
        weighted = [
            Weighted(open_source(spec, column=column, split=split, render=render))
            for spec in sources or ()
        ]
    for note in chain.from_iterable(entry.source.notes() for entry in weighted):
        console.print(note, markup=False)
    loaded = load_tokenizer(tokenizer)
    with _progress(console) as report:
        manifest = run(weighted, loaded, out, options=options, force=force, report=report)
    _summary(console, manifest, open_documents(out), loaded, row_tokens)
    console.print(f"written to {out}", markup=False)
    if push:
        push_to_hub(out, push)
        console.print(f"pushed to {push} as a private data set", markup=False)


def verify(folder: Annotated[Path, typer.Argument(help="What `prepare` wrote.")]) -> None:
    """Read every file of a prepared folder and check it against its checksum and counts."""
    from endprompt.data.manifest import load
    from endprompt.data.manifest import verify as check
    from endprompt.errors import DataError

    faults = check(folder)
    for fault in faults:
        echo(fault)
    if faults:
        raise DataError(f"{folder} has {len(faults)} faults: prepare it again with --force")
    manifest = load(folder)
    echo(
        f"{folder} is sound: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens, "
        "every checksum right"
    )


def show(
    data: Annotated[
        str, typer.Argument(metavar="FOLDER", help="What `prepare` wrote, or its URL.")
    ],
    row: Annotated[int, typer.Option(min=0, help="Number of the row.")] = 0,
    recipe: Annotated[str, typer.Option(help="A method's name, or a recipe file.")] = "endprompt",
    target: Annotated[str, typer.Option(help="Length of the window to reach.")] = "64k",
    length: Annotated[
        str | None,
        typer.Option(help="Tokens of a row.", show_default="the recipe's, or 1024"),
    ] = None,
    split: Annotated[str, typer.Option(help="train or holdout")] = "train",
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", "-t", help="Model.", show_default="the one it was made with"),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Print all of the text.")] = False,
) -> None:
    """Print a training row as text with its positions, segment by segment.

    \b
    Example:
        endprompt prepare show data/ --row 7 --recipe fact-anchors --target 128k
    """
    from endprompt.cli.console import Console
    from endprompt.data import describe
    from endprompt.recipe import load as load_recipe

    chosen, goal = load_recipe(recipe), units.tokens(target)
    shown = describe.prepared_row(
        data,
        chosen,
        row,
        target=goal,
        tokens=units.tokens(length) if length else None,
        split=split,
        tokenizer=tokenizer,
    )
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"row {row}, epoch {shown.epoch}: {len(shown.row.tokens_T):,} tokens, "
        f"recipe {chosen.name}, target {goal:,}, seed {chosen.training.seed}",
        markup=False,
    )
    for section in describe.sections(shown.row, by_weight=True):
        jump = f", {section.skipped:,} positions skipped before it" if section.skipped else ""
        console.print(
            f"positions {section.first:,} .. {section.last:,}: {section.kind}, "
            f"{section.stop - section.start:,} tokens, loss weight {section.weight:g}{jump}",
            markup=False,
        )
        tokens = shown.row.tokens_T[section.start : section.stop]
        for line in _printable(shown.tokenizer.decode(tokens.tolist()), full=full).splitlines():
            console.print(f"    {line}", markup=False)


def _printable(text: str, *, full: bool) -> str:
    text = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    if full or len(text) <= SHOWN_CHARACTERS:
        return text
    half = SHOWN_CHARACTERS // 2
    return f"{text[:half]} [...] {text[-half:]}"


def _use_threads(workers: int | None) -> None:
    """Set the tokenizer's threads; they are counted when the first of them starts."""
    import os

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    if workers is not None:
        os.environ["RAYON_NUM_THREADS"] = str(workers)


def _progress(console: Console) -> Any:
    """A context manager that gives the callback of `prepare`."""
    from contextlib import contextmanager

    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    @contextmanager
    def running() -> Any:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("tokenising", total=None)

            def report(progress: Any) -> None:
                bar.update(
                    task,
                    description=f"{progress.documents:,} documents, {progress.tokens:,} tokens",
                    total=None if progress.share is None else 1.0,
                    completed=progress.share or 0.0,
                )

            yield report

    return running()


def _summary(
    console: Console,
    manifest: dict[str, Any],
    documents: TokenDocuments,
    tokenizer: Any,
    row_tokens: int,
) -> None:
    from endprompt.cli.console import Table
    from endprompt.data import describe

    table = Table(title="Documents by length")
    for heading in ("tokens", "documents", "tokens in all"):
        table.add_column(heading, justify="right")
    for entry in manifest["splits"]["train"]["lengths"]:
        table.add_row(
            f"{entry['from']:,} - {entry['below'] - 1:,}",
            f"{entry['documents']:,}",
            f"{entry['tokens']:,}",
        )
    console.print(table)
    held_rows = describe.rows_held(documents.lengths, row_tokens)
    console.print(
        f"{held_rows.documents:,} of {len(documents):,} documents have {row_tokens:,} tokens or "
        f"more ({held_rows.share:.1%} of the tokens): {held_rows.uncut:,} rows uncut, "
        f"or {held_rows.packed:,} with rows.pack"
    )
    ends = [
        f"{word} {tokenizer.convert_ids_to_tokens(id_)} ({id_})"
        if id_ is not None
        else f"no {word}"
        for word, id_ in (("BOS", documents.bos), ("EOS", documents.eos))
    ]
    console.print(f"each document has {ends[0]} and {ends[1]}", markup=False)
    if "holdout" in manifest["splits"]:
        held = manifest["splits"]["holdout"]
        console.print(f"held out: {held['documents']:,} documents, {held['tokens']:,} tokens")
        copied = manifest.get("copied", {"documents": 0, "tokens": 0})
        if copied["tokens"]:
            console.print(
                f"left out of training: {copied['tokens']:,} tokens that are copies of held-out "
                f"text, {copied['documents']:,} documents with them"
            )
    elif manifest["settings"]["holdout"]:
        console.print("held out: nothing, so few are the documents; raise --holdout")
    for reason, count in sorted(manifest["dropped"].items()):
        console.print(f"dropped: {count:,} ({reason})", markup=False)
    for entry in manifest["sources"]:
        share = entry["tokens"] / max(1, manifest["tokens"])
        if len(manifest["sources"]) > 1:
            ended = ", ran out first" if entry["ran_dry"] else ""
            console.print(f"{share:.1%} of the tokens from {entry['source']}{ended}", markup=False)
    console.print(f"{manifest['documents']:,} documents, {manifest['tokens']:,} tokens")
