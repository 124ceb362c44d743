"""`endprompt eval needle`: the grid of depths and lengths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from endprompt.cli import eval_screen as screen
from endprompt.cli.terminal import echo

if TYPE_CHECKING:
    from endprompt.eval.needle import NeedleGrid


def register(_data: typer.Typer, _score: typer.Typer, eval_app: typer.Typer) -> None:
    """Add `eval needle`."""
    eval_app.command()(needle)


def needle(
    model: str = typer.Argument(..., help="Checkpoint folder, GGUF file or hub name."),
    lengths: str = typer.Option(..., "--lengths", help="Tokens, as 4k,8k,16k."),
    depths: str = typer.Option("10", "--depths", help="How many depths, or which: 0,0.5,1."),
    text: str | None = typer.Option(
        None, "--text", help="File, folder or data set to hide them in. Default: Python's manual."
    ),
    samples: int = typer.Option(1, "--samples", min=1, help="Texts."),
    seed: int = typer.Option(0, "--seed", help="Decides keys and answers."),
    out: Path | None = typer.Option(None, "--json", help="Write every value here."),
    figure: Path | None = typer.Option(
        None, "--figure", help="Heat map of hits and digits, .svg or .png."
    ),
    dtype: str = typer.Option("auto", "--dtype", help=screen.DTYPE),
    force: bool = typer.Option(False, "--force", help="Overwrite files."),
) -> None:
    """Hide numbers at every depth of long texts and ask for them.

    All needles of a text are asked from one prefill. Shown are hits (greedy decoding writes all
    seven digits), the share of digits that would be right, and nats for the whole number.

    Example:

        endprompt eval needle runs/demo/model --lengths 4k,8k,12k --figure needle.svg
    """
    from endprompt import units
    from endprompt.eval.needle import needle_grid
    from endprompt.eval.texts import long_texts
    from endprompt.io import result_files

    wanted, places = units.lengths(lengths), units.depths(depths)
    for path in (out, figure):
        result_files.require_replaceable(path, "eval needle", force=force)
    engine = screen.load(model, dtype)
    texts = long_texts(engine, text, tokens=wanted[-1], count=samples)
    with screen.bar("needles") as progress:
        grid = needle_grid(
            engine, texts, lengths=wanted, depths=places, seed=seed, progress=progress
        )
    hits, digits, nll = (grid.grid(value) for value in ("hit", "digits_right", "nll"))
    screen.table(
        ["depth", *(f"{length} tokens: hit, digits, nats" for length in wanted)],
        (
            [
                f"{depth:.2f}",
                *(
                    f"{hits[row, column]:.2f}  {digits[row, column]:.2f}  {nll[row, column]:.2f}"
                    for column in range(len(wanted))
                ),
            ]
            for row, depth in enumerate(places)
        ),
    )
    for length in wanted:
        quarters = ("-" if q is None else f"{q:.2f}" for q in grid.by_quarter(length))
        echo(f"{length:>7} tokens  digits by quarter, farthest first: {' '.join(quarters)}")
    if out is not None:
        result_files.write(out, "eval needle", {"model": model, **grid.model_dump(mode="json")})
    if figure is not None:
        draw(grid, model, figure)


def draw(grid: NeedleGrid, title: str, path: Path) -> None:
    """Two heat maps, depth down and length across; always the same file."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "endprompt"
    from matplotlib import pyplot

    from endprompt.errors import OutputError
    from endprompt.io.files import writing

    if path.suffix not in (".svg", ".png"):
        raise OutputError(f"{path}: a figure is an .svg or a .png")
    figure, axes = pyplot.subplots(
        1, 2, figsize=(9, 0.7 + 0.35 * max(len(grid.depths), 5)), layout="constrained", sharey=True
    )
    for axis, value, label in zip(
        axes, ("hit", "digits_right"), ("exact match", "digit accuracy"), strict=True
    ):
        cells = grid.grid(value)
        shown = axis.imshow(cells, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for (row, column), share in [
            ((r, c), cells[r, c]) for r in range(cells.shape[0]) for c in range(cells.shape[1])
        ]:
            ink = "black" if share > 0.5 else "white"
            axis.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=8, color=ink)
        axis.set_xticks(range(len(grid.lengths)), [str(length) for length in grid.lengths])
        axis.set_yticks(range(len(grid.depths)), [f"{depth:.2f}" for depth in grid.depths])
        axis.set_xlabel("length, tokens")
        axis.set_title(label)
    axes[0].set_ylabel("depth")
    figure.colorbar(shown, ax=axes)
    figure.suptitle(title)
    with writing(path) as partial:
        kind = path.suffix[1:]
        ours = "endprompt"  # by which result_files knows it
        metadata = {"Date": None, "Title": ours} if kind == "svg" else {"Software": ours}
        figure.savefig(partial, format=kind, metadata=metadata)
    pyplot.close(figure)
