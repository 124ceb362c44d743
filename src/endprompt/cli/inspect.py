"""`endprompt inspect`: distances that recipes train, and what a model's heads do with distance."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from endprompt.report.figures import Drawing
    from endprompt.report.tables import Table

SHADES = " ░▒▓█"


def register(app: typer.Typer) -> None:
    """Add the verb `inspect`."""

    @app.command()
    def inspect(
        what: list[str] = typer.Argument(
            None,
            metavar="[RECIPE|MODEL|RUN]...",
            help="Recipes by name or YAML file; models and finished runs by folder. Default: "
            "endprompt, pose, short.",
        ),
        to: str = typer.Option("64k", "--to", metavar="TOKENS", help="Target window."),
        window: str = typer.Option(
            "8k", "--window", metavar="TOKENS", help="Old window; a model knows its own."
        ),
        row_tokens: str | None = typer.Option(
            None, "--row-tokens", metavar="TOKENS", help="Tokens of a row. Default: the window."
        ),
        rows: int = typer.Option(64, "--rows", min=1, help="Rows to count distances on."),
        text: Path | None = typer.Option(
            None, "--text", help="A text file for the model to read. Default: the embedded text."
        ),
        tokens: int = typer.Option(
            1024, "--tokens", min=64, help="Tokens of that text that a model reads."
        ),
        pairs: int = typer.Option(
            8, "--pairs", min=1, help="Query-key pairs drawn for each head of a model."
        ),
        out: Path | None = typer.Option(
            None, "--out", "-o", help="Folder for figures (SVG, PNG) and tables (CSV, Markdown)."
        ),
        force: bool = typer.Option(False, "--force", help="Replace what `inspect` wrote there."),
    ) -> None:
        """Distances a recipe trains; a model's attention by distance.

        RECIPES are drawn side by side on a log axis: how many pairs of tokens a row has at each
        distance, and which distances no row has. Counted on rows made as training makes them.

        MODELS run on real text: for every head, how fast the attention score changes with
        distance beside Bernstein's bound on it, with no scaling, PI, NTK and YaRN; how far the
        two ends of the untrained gap determine what lies between; and the attention by distance.

        RUNS show what training did: attention across the jump before and after, layer by layer;
        the heads that reach farthest; and the terminal's loss over training with the gradient
        that it sends to the prefix, which dies when a fixed cue has been learnt by heart.

        Examples:

            endprompt inspect endprompt pose fact-anchors --to 64k

            endprompt inspect my-llama --to 64k --out theory

            endprompt inspect runs/demo --out what-training-did
        """
        from endprompt import units
        from endprompt.analysis.run_changes import is_run
        from endprompt.cli.console import Console
        from endprompt.io import claims
        from endprompt.report.tables import Table

        console = Console()
        target, old = units.tokens(to), units.tokens(window)
        named = what or ["endprompt", "pose", "short"]
        models = [name for name in named if (Path(name) / "config.json").is_file()]
        runs = [name for name in named if is_run(Path(name))]
        recipes = [name for name in named if name not in (*models, *runs)]
        seen: list[Table | Drawing] = []
        with (
            nullcontext()
            if out is None
            else claims.product(out, "inspect", reads=[*named, text], force=force)
        ) as folder:
            if recipes:
                size = units.tokens(row_tokens) if row_tokens else None
                seen += _recipes(console, recipes, old, target, size, rows)
            for model in models:
                seen += _model(console, model, target, text, tokens, pairs)
            for run in runs:
                seen += _run(console, Path(run), text, tokens)
            if folder is not None:
                for shown in seen:
                    shown.write(folder)
        if out is not None:
            tables = sum(isinstance(shown, Table) for shown in seen)
            console.print(f"{out}: {tables} tables as CSV and Markdown", markup=False)


def _recipes(
    console: Any, names: list[str], window: int, target: int, row_tokens: int | None, count: int
) -> list[Table | Drawing]:
    from endprompt import theory
    from endprompt.analysis import coverage, tables
    from endprompt.report.figures import coverage as draw

    summaries = [
        coverage.of_recipe(name, window=window, target=target, row_tokens=row_tokens, rows=count)
        for name in names
    ]
    console.print(
        f"Distances in 1 .. {target - 1:,}, counted on {count} rows; old window {window:,}.",
        highlight=False,
    )
    console.print(
        "Darker: more pairs at each distance; blank: no row has that distance.",
        highlight=False,
    )
    width = max(len(summary["name"]) for summary in summaries)
    edges = [0, *theory.octaves(target, parts=4), target]
    console.print(f"{'':{width}}  {_axis(edges)}", highlight=False)
    for summary in summaries:
        bar = _shaded(summary["intervals"], edges)
        console.print(f"{summary['name']:{width}}  {bar}", markup=False, highlight=False)
    table = tables.coverage(summaries, window=window, target=target)
    _show(console, table)
    drawing = draw(
        {
            "target": target,
            "model": {"window_tokens": window},
            "coverage": {"recipes": [summary for summary in summaries if summary["intervals"]]},
        }
    )
    return [table] if drawing is None else [table, drawing]


def _model(
    console: Any, path: str, target: int, text: Path | None, tokens: int, pairs: int
) -> list[Table]:
    from endprompt.analysis import model_attention, tables
    from endprompt.io.silence import silence_libraries

    silence_libraries()
    console.print(f"{path}: reading {tokens:,} tokens", markup=False, highlight=False)
    seen = model_attention.of_model(path, target=target, text=text, tokens=tokens, pairs=pairs)
    name = Path(path).name
    listed = [tables.reach(seen.reach, name), tables.far_heads(seen.reach, seen.tokens // 2, name)]
    _show(console, listed[1])
    if seen.heads:
        console.print(
            f"gap of the paper's rows: distances {seen.gap[0]:,} to {seen.gap[1]:,}",
            highlight=False,
        )
        listed += [
            tables.by_scaling(seen.heads, seen.base, target, name),
            tables.by_head(seen.heads, name),
        ]
        _show(console, listed[2])
        _show(console, listed[3], rows=12)
    else:
        console.print("the model is scaled already: give its base for the table of bounds")
    return listed


def _run(console: Any, folder: Path, text: Path | None, tokens: int) -> list[Table | Drawing]:
    from endprompt.analysis import run_changes, tables
    from endprompt.io.silence import silence_libraries
    from endprompt.report.figures import terminal_over_training

    silence_libraries()
    run = run_changes.read(folder, tokens)
    console.print(
        f"{folder}: {tokens:,} tokens, the second half at the far end of {run.target:,} positions",
        markup=False,
        highlight=False,
    )
    name = folder.resolve().name
    reaches = run_changes.reaches(run, text, tokens, tables.SINK)
    shown = [tables.before_and_after(*reaches, name), tables.farthest_after(*reaches, name)]
    drawings: list[Drawing] = []
    signals = run_changes.signals(run)
    if signals is None:
        console.print("its rows have no terminal: no signal to follow", highlight=False)
    else:
        shown.append(tables.signal(*signals, name))
        gradients = [signal.prefix_gradient for signal in signals]
        drawing = terminal_over_training(run.curve, gradients, name)
        drawings += [drawing] if drawing is not None else []
    for table in shown:
        _show(console, table)
    return [*shown, *drawings]


def _axis(edges: list[int]) -> str:
    from endprompt.report.figures import thousands

    marks = [" "] * (len(edges) - 1)
    place = 0
    for at, edge in enumerate(edges[:-1]):
        label = thousands(edge)
        if at >= place and edge & (edge - 1) == 0 and at + len(label) <= len(marks):
            marks[at : at + len(label)] = label
            place = at + len(label) + 3
    return "".join(marks)


def _shaded(intervals: list[list[float]], edges: list[int]) -> str:
    from itertools import pairwise
    from math import log10

    cells = []
    for low, high in pairwise(edges):
        pairs = sum(
            n * (min(last, high - 1) - max(first, low) + 1) / (last - first + 1)
            for first, last, n in intervals
            if first < high and last >= low
        )
        density = pairs / (high - low)
        shade = 0 if density == 0 else int(min(4, max(1, 2 + log10(density))))
        cells.append(SHADES[shade])
    return "".join(cells)


def _show(console: Any, table: Table, rows: int | None = None) -> None:
    from rich import box
    from rich.markup import escape

    from endprompt.cli.console import Table as RichTable

    shown = table.rows[:rows]
    left = len(table.rows) - len(shown)
    rich_table = RichTable(box=box.SIMPLE)
    for column in table.columns:
        rich_table.add_column(escape(column), overflow="fold")
    for row in shown:
        rich_table.add_row(*(escape(f"{cell.text} {cell.note}".strip()) for cell in row))
    console.print()
    console.print(f"{table.caption}", markup=False, highlight=False)
    console.print(rich_table)
    if left:
        console.print(f"{left} more with --out", highlight=False)
