"""What training did to a run's model: attention before and after, and the terminal's signal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from endprompt.analysis.terminal_signal import Signal
    from endprompt.report.figures import Drawing
    from endprompt.report.tables import Table

SHOWN_HEADS = 10


def is_run(path: str) -> bool:
    """Whether a folder holds a finished run of `endprompt extend`."""
    return (Path(path) / "run.json").is_file() and (Path(path) / "arms").is_dir()


def look(
    console: Any, folder: Path, text: Path | None, tokens: int, sink: int
) -> tuple[list[Table], list[Drawing]]:
    """What training changed, as tables and figures. Raises what `analysis.run_changes` raises."""
    from endprompt.io.silence import silence_libraries

    silence_libraries()
    from endprompt.analysis import run_changes
    from endprompt.report.figures import terminal_over_training

    run = run_changes.read(folder, tokens)
    console.print(
        f"{folder}: {tokens:,} tokens, the second half at the far end of {run.target:,} positions",
        markup=False,
        highlight=False,
    )
    name = folder.resolve().name
    reaches = run_changes.reaches(run, text, tokens, sink)
    tables = [_by_layer(*reaches, name), _heads(*reaches, name)]
    signals = run_changes.signals(run)
    if signals is None:
        console.print("its rows have no terminal: no signal to follow", highlight=False)
        return tables, []
    tables.append(_signal_table(*map(_named, signals), name))
    gradients = [signal.prefix_gradient for signal in signals]
    drawing = terminal_over_training(run.curve, gradients, name)
    return tables, [drawing] if drawing is not None else []


def _named(signal: Signal) -> dict[str, float]:
    return {
        "loss of the terminal": signal.terminal_loss,
        "gradient on the prefix": signal.prefix_gradient,
        "gradient on the terminal": signal.terminal_gradient,
    }


def _bands(reach: Any) -> list[tuple[int, str]]:
    """Bands with any pair in them, in words; the jump leaves the third one empty."""
    edges = reach.edges
    return [
        (0, f"below {edges[1]}"),
        (1, f"{edges[1]} to {edges[2] - 1:,}"),
        (3, f"{edges[3]:,} and on"),
    ]


def _by_layer(before: Any, after: Any, name: str) -> Table:
    import numpy as np

    from endprompt.report.tables import Cell, Table

    bands = _bands(before)
    rows = []
    for layer in range(before.mass_LHE.shape[0]):
        cells = [Cell(str(layer), value=layer)]
        for band, _ in bands:
            for layers in (before, after):
                share = float(layers.mass_LHE[layer, :, band].mean())
                cells.append(Cell(f"{share:.3f}", value=share))
        for layers in (before, after):
            score = float(np.mean(layers.score_LHE[layer, :, bands[-1][0]]))
            cells.append(Cell(f"{score:.2f}", value=score))
        rows.append(tuple(cells))
    columns = ["layer"]
    for _, words in bands:
        columns += [f"share {words}: before", "after"]
    columns += [f"score {bands[-1][1]}: before", "after"]
    return Table(
        f"before_and_after_{name}",
        "Attention by distance before and after training, mean over heads: share of the attention "
        "of the last 64 tokens, and mean score in logits across the jump",
        tuple(columns),
        tuple(rows),
    )


def _heads(before: Any, after: Any, name: str) -> Table:
    from endprompt.report.tables import Cell, Table

    edge = before.edges[3]
    rows = []
    for layer, head, share in after.far_heads(edge, SHOWN_HEADS):
        was = float(before.mass_LHE[layer, head, 3])
        rows.append(
            (
                Cell(str(layer), value=layer),
                Cell(str(head), value=head),
                *(Cell(f"{value:.3f}", value=value) for value in (was, share)),
                Cell(f"{share - was:+.3f}", value=share - was),
            )
        )
    return Table(
        f"far_heads_{name}",
        f"Heads that reach farthest after training: share of attention from {edge:,} tokens on",
        ("layer", "head", "before", "after", "change"),
        tuple(rows),
    )


def _signal_table(before: dict[str, float], after: dict[str, float], name: str) -> Table:
    from endprompt.analysis.terminal_signal import ROWS
    from endprompt.report.tables import Cell, Table

    rows = [
        (
            Cell(key),
            *(Cell(f"{value:.4g}", value=value) for value in (before[key], after[key])),
            Cell(f"{after[key] / before[key]:.3f}", value=after[key] / before[key]),
        )
        for key in before
    ]
    return Table(
        f"signal_{name}",
        f"The terminals of {ROWS} rows that training did not see: loss in nats per token, norms of "
        "its gradient by the embeddings; near zero, nothing long-range is learnt any more",
        ("what", "before", "after", "after / before"),
        tuple(rows),
    )
