"""`endprompt inspect`: distances that recipes train, and what a model's heads do with distance."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from endprompt.report.tables import Table

SHADES = " ░▒▓█"
SINK = 4
"""First tokens that the tables of attention leave out: idle heads rest theirs there."""


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
        """Distances that a recipe trains; a model's attention by distance.

        RECIPES are drawn side by side on a log axis: how many pairs of tokens a row has at each
        distance, and which distances no row has. Counted on rows made as training makes them.

        MODELS run on real text: for every head, how fast the attention score changes with
        distance beside Bernstein's bound on it, with no scaling, PI, NTK and YaRN; how far the
        two ends of the untrained gap determine what lies between; and the attention by distance.

        RUNS show what training did: attention across the jump before and after, layer by layer;
        the heads that reach farthest; and the terminal's loss over training with the gradient
        that it sends to the prefix, which dies when a fixed cue has been learnt by heart.

        Examples:

            endprompt inspect endprompt pose recall-pose --to 64k

            endprompt inspect my-llama --to 64k --out theory

            endprompt inspect runs/demo --out what-training-did
        """
        from endprompt import units
        from endprompt.cli import inspect_run
        from endprompt.cli.console import Console
        from endprompt.io import claims

        console = Console()
        target, old = units.tokens(to), units.tokens(window)
        named = what or ["endprompt", "pose", "short"]
        models = [name for name in named if (Path(name) / "config.json").is_file()]
        runs = [name for name in named if inspect_run.is_run(name)]
        recipes = [name for name in named if name not in (*models, *runs)]
        files: list[Table] = []
        with (
            nullcontext()
            if out is None
            else claims.product(out, "inspect", reads=[*named, text], force=force)
        ) as folder:
            if recipes:
                size = units.tokens(row_tokens) if row_tokens else None
                files += _recipes(console, recipes, old, target, size, rows, folder)
            for model in models:
                files += _model(console, model, target, text, tokens, pairs)
            for run in runs:
                tables, drawings = inspect_run.look(console, Path(run), text, tokens, SINK)
                for table in tables:
                    _show(console, table)
                if folder is not None:
                    for drawing in drawings:
                        drawing.write(folder)
                files += tables
            if folder is not None:
                for table in files:
                    table.write(folder)
        if out is not None:
            console.print(f"{out}: {len(files)} tables as CSV and Markdown", markup=False)


def _recipes(
    console: Any,
    names: list[str],
    window: int,
    target: int,
    row_tokens: int | None,
    count: int,
    out: Path | None,
) -> list[Table]:
    from endprompt import recipe as recipes
    from endprompt import theory
    from endprompt.analysis import coverage
    from endprompt.report.figures import coverage as draw
    from endprompt.report.tables import Cell, Table

    summaries = []
    for name in names:
        recipe = recipes.load(name)
        if row_tokens is not None and recipe.rows.tokens != "target":
            recipe = recipe.replace({"rows.tokens": row_tokens})
        recipe = recipe.resolve(window=window, target=target, gpu=True)
        sampled = coverage.drawn_rows(recipe, recipe.amounts.row_tokens, target=target, count=count)
        summaries.append(coverage.summary(name, recipe.name, recipe, sampled, target=target))
    console.print(
        f"Distances in 1 .. {target - 1:,}, counted on {count} rows; old window {window:,}.",
        highlight=False,
    )
    console.print(
        "Darker: more pairs at each distance; blank: no row has that distance.",
        highlight=False,
    )
    columns = ("recipe", "distances trained", "longest", "pairs beyond the window", "first gap")
    rows = []
    for summary in summaries:
        beyond = sum(pairs for first, _, pairs in summary["intervals"] if first >= window)
        whole = sum(pairs for *_, pairs in summary["intervals"])
        rows.append(
            (
                Cell(summary["name"]),
                Cell(f"{summary['distances'] / (target - 1):.1%}", value=summary["distances"]),
                Cell(f"{summary['longest']:,}", value=summary["longest"]),
                Cell(f"{beyond / whole:.2%}" if whole else "0%", value=beyond),
                Cell(_first_gap(summary["intervals"], target)),
            )
        )
    table = Table("coverage", "Distances that rows train", columns, tuple(rows))
    width = max(len(summary["name"]) for summary in summaries)
    edges = [0, *theory.octaves(target, parts=4), target]
    console.print(f"{'':{width}}  {_axis(edges)}", highlight=False)
    for summary in summaries:
        bar = _shaded(summary["intervals"], edges)
        console.print(f"{summary['name']:{width}}  {bar}", markup=False, highlight=False)
    _show(console, table)
    if out is not None:
        drawing = draw(
            {
                "target": target,
                "model": {"window_tokens": window},
                "coverage": {"recipes": [summary for summary in summaries if summary["intervals"]]},
            }
        )
        if drawing is not None:
            drawing.write(out)
    return [table]


def _first_gap(intervals: list[list[float]], target: int) -> str:
    """The first stretch of distances that no row has."""
    expected = 1
    for first, last, _ in intervals:
        if first > expected:
            return f"{expected:,} to {int(first) - 1:,}"
        expected = int(last) + 1
    return "none" if expected >= target else f"{expected:,} to {target - 1:,}"


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


def _model(
    console: Any, path: str, target: int, text: Path | None, tokens: int, pairs: int
) -> list[Table]:
    import numpy as np

    from endprompt import theory
    from endprompt.analysis import attention
    from endprompt.analysis.run_changes import text_ids
    from endprompt.io.silence import silence_libraries
    from endprompt.models import checkpoint as models

    silence_libraries()
    config = models.load_config(path)
    ids = text_ids(path, text, tokens)
    console.print(f"{path}: reading {len(ids):,} tokens", markup=False, highlight=False)
    layers = attention.record(models.load(path, config), ids)
    name = Path(path).name
    edges = [0, *theory.octaves(len(ids), parts=1), len(ids)]
    far = attention.reach(layers, np.arange(len(ids)), edges, skip=SINK)
    tables = [_reach_table(far, name), _far_heads(far, len(ids) // 2, name)]
    _show(console, tables[1])
    family = models.family_of(path, config)
    base = family.base
    if base.parameters is None:
        # Rows as long as the window, with a short terminal: the paper's gap.
        row = theory.anchored(base.window - 20, 20, target=target)
        gap = row.gap or (base.window, target - base.window)
        scaled = sorted(i for kind in family.layers if kind.scaled for i in kind.indices)
        contents = [
            attention.unrotate(layers[i], np.arange(len(ids)), base.own, base) for i in scaled
        ]
        heads = attention.tightness(
            contents, base, target=target, gap=gap, pairs=pairs, indices=scaled
        )
        console.print(
            f"gap of the paper's rows: distances {gap[0]:,} to {gap[1]:,}", highlight=False
        )
        tables += [_by_scaling(heads, base, target, name), _by_head(heads, name)]
        _show(console, tables[2])
        _show(console, tables[3], rows=12)
    else:
        console.print("the model is scaled already: give its base for the table of bounds")
    return tables


def _reach_table(far: Any, name: str) -> Table:
    from endprompt.report.tables import Cell, Table

    heads = far.mass_LHE.mean(axis=1)
    columns = ["layer", *(f"from {edge:,}" for edge in far.edges[:-1])]
    rows = [
        (
            Cell(str(layer), value=layer),
            *(Cell(f"{share:.4f}", value=float(share)) for share in shares),
        )
        for layer, shares in enumerate(heads)
    ]
    caption = f"Share of attention by distance, mean over heads, without the first {SINK} tokens"
    return Table(f"attention_{name}", caption, tuple(columns), tuple(rows))


def _far_heads(far: Any, beyond: int, name: str) -> Table:
    from endprompt.report.tables import Cell, Table

    edge = next(edge for edge in far.edges if edge >= beyond)
    rows = [
        (Cell(f"{layer}"), Cell(f"{head}"), Cell(f"{share:.3f}", value=share))
        for layer, head, share in far.far_heads(edge)
    ]
    caption = f"Heads that look farthest: share from {edge:,} tokens on, first {SINK} left out"
    return Table(f"far_heads_{name}", caption, ("layer", "head", "share"), tuple(rows))


def _by_scaling(bounds: list[Any], base: Any, target: int, name: str) -> Table:
    from statistics import fmean, median

    from endprompt import rope
    from endprompt.report.tables import Cell, Table

    rows = []
    for scaling in dict.fromkeys(bound.scaling for bound in bounds):
        mine = [bound for bound in bounds if bound.scaling == scaling]
        factor = rope.factor(base.window, target, rope.usual_headroom(scaling, base))
        parameters = rope.parameters(base, scaling, factor)
        w, _ = rope.inverse_frequencies(
            parameters, base.rotary_size, length=target, window=base.window
        )
        tight = [bound.tightness for bound in mine]
        rows.append(
            (
                Cell(scaling),
                Cell(f"{w.max():.4g}", value=float(w.max())),
                _number(fmean(bound.value for bound in mine)),
                _number(fmean(bound.slope for bound in mine)),
                _number(fmean(bound.bound for bound in mine)),
                _number(median(tight)),
                Cell(f"{min(tight):.3f} to {max(tight):.3f}"),
                _number(median(bound.curvature_tightness for bound in mine)),
                _number(median(bound.finer for bound in mine)),
                Cell(f"{fmean(bound.carried for bound in mine):,.0f}"),
            )
        )
    columns = (
        "scaling", "W", "|S|", "|S'|", "bound", "tight", "range", "tight''", "finer", "carried",
    )  # fmt: skip
    caption = (
        "Largest |S|, |S'| in logits and Bernstein's bound on |S'|; tight: |S'| over bound, "
        "tight'': the same for S''; finer: sum a w over bound; carried: distances of the gap "
        "that its two ends say anything of"
    )
    return Table(f"smoothness_{name}", caption, columns, tuple(rows))


def _by_head(bounds: list[Any], name: str) -> Table:
    from endprompt.report.tables import Cell, Table

    scalings = list(dict.fromkeys(bound.scaling for bound in bounds))
    heads = list(dict.fromkeys((bound.layer, bound.head) for bound in bounds))
    by_place = {(bound.layer, bound.head, bound.scaling): bound for bound in bounds}
    plain = scalings[0]
    heads.sort(key=lambda at: -by_place[(*at, plain)].tightness)
    columns = ("layer", "head", "sup|S|", *scalings)
    rows = []
    for layer, head in heads:
        mine = [by_place[(layer, head, scaling)] for scaling in scalings]
        rows.append(
            (
                Cell(str(layer), value=layer),
                Cell(str(head), value=head),
                _number(mine[0].value),
                *(_number(bound.tightness) for bound in mine),
            )
        )
    caption = "Tightness by head, sup|S'| over Bernstein's bound, tightest first"
    return Table(f"tightness_{name}", caption, columns, tuple(rows))


def _number(value: float) -> Any:
    from endprompt.report.tables import Cell

    return Cell(f"{value:.3f}", value=value)


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
