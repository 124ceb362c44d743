"""What training did to a run's model: attention before and after, and the terminal's signal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from endprompt.report.figures import Drawing
    from endprompt.report.tables import Table

NEAR = 64
"""Distances below this are a band of their own."""
SHOWN_HEADS = 10


def is_run(path: str) -> bool:
    """Whether a folder holds a finished run of `endprompt extend`."""
    return (Path(path) / "run.json").is_file() and (Path(path) / "arms").is_dir()


def look(
    console: Any, folder: Path, text: Path | None, tokens: int, sink: int
) -> tuple[list[Table], list[Drawing]]:
    """Read one row with both models and give what changed, as tables and figures.

    The second half of the row stands at the far end of the target, as in training, so that its
    tokens see the first half across the jump. sink: first tokens that are in no band.
    Raises DataError when the run trained nothing or its models are gone.
    """
    from endprompt.errors import DataError
    from endprompt.io.library_output import silence_libraries
    from endprompt.recipe import build_recorded
    from endprompt.report.run_files import read

    silence_libraries()
    run = read(folder)
    recipe = build_recorded(run["recipe"], f"recipe of {folder}")
    before, after = (folder / "arms" / name / "model" for name in ("untrained", recipe.name))
    if not recipe.trained:
        raise DataError(f"{folder} trained nothing: there is no before and after")
    for model in (before, after):
        if not (model / "config.json").is_file():
            raise DataError(f"{model} is not there: the run's folder has to be whole")
    name, target = folder.resolve().name, int(run["target"])
    if 3 * tokens > 2 * target:
        raise DataError(
            f"--tokens {tokens} leaves no jump inside {target} positions: at most {2 * target // 3}"
        )
    console.print(
        f"{folder}: {tokens:,} tokens, the second half at the far end of {target:,} positions",
        markup=False,
        highlight=False,
    )
    reaches = [_reach(str(model), text, tokens, target, sink) for model in (before, after)]
    tables = [_by_layer(*reaches, name), _heads(*reaches, name)]
    signals = _signals(folder, recipe, (before, after), target)
    drawings = []
    curve = next(arm["curve"] for arm in run["arms"] if arm["name"] == recipe.name)
    if signals:
        from endprompt.report.figures import terminal_over_training

        tables.append(_signal_table(signals, name))
        gradients = [signal["gradient on the prefix"] for signal in signals]
        drawing = terminal_over_training(curve, gradients, name)
        drawings = [drawing] if drawing is not None else []
    else:
        console.print("its rows have no terminal: no signal to follow", highlight=False)
    return tables, drawings


def text_ids(path: str, text: Path | None, tokens: int) -> list[int]:
    """Ids of the first tokens of a text file, or of the default text. Raises TextError."""
    from endprompt.errors import TextError
    from endprompt.models import checkpoint as models
    from endprompt.models import embedded

    file = text or min(embedded.text().glob("*.txt"))
    try:
        written = file.read_text(encoding="utf-8")[: 16 * tokens]
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"cannot read {file} as text: {error}") from None
    ids = models.load_tokenizer(path)(written, add_special_tokens=False)["input_ids"][:tokens]
    if len(ids) < tokens:
        raise TextError(f"{file} has {len(ids)} tokens and --tokens asks for {tokens}")
    return ids


def _reach(model: str, text: Path | None, tokens: int, target: int, sink: int) -> Any:
    import numpy as np

    from endprompt.analysis import attention
    from endprompt.models import checkpoint as models

    half = tokens // 2
    positions = np.concatenate([np.arange(half), np.arange(target - tokens + half, target)])
    ids = text_ids(model, text, tokens)
    layers = attention.record(models.load(model, models.load_config(model)), ids, positions)
    edges = [0, NEAR, tokens - half, target - tokens + 1, target]
    return attention.reach(layers, positions, edges, skip=sink)


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


def _signals(
    folder: Path, recipe: Any, models_: tuple[Path, Path], target: int
) -> list[dict[str, float]]:
    """The terminal's loss and gradient on held-out rows, before and after; [] without one."""
    from endprompt.analysis.terminal_signal import rows_with_terminals, terminal_signal
    from endprompt.cues import CueWriter
    from endprompt.data import holdout
    from endprompt.data.rows import collate
    from endprompt.models import checkpoint as models

    documents, _ = holdout.training_documents(folder / "data")
    writer = CueWriter(models.load_tokenizer(str(models_[0])))
    rows = rows_with_terminals(recipe, documents, writer, target)
    if not rows:
        return []
    signals = []
    for path in models_:
        model = models.load(str(path), models.load_config(str(path)))
        signal = terminal_signal(model, collate(rows))
        signals.append(
            {
                "loss of the terminal": signal.terminal_loss,
                "gradient on the prefix": signal.prefix_gradient,
                "gradient on the terminal": signal.terminal_gradient,
            }
        )
    return signals


def _signal_table(signals: list[dict[str, float]], name: str) -> Table:
    from endprompt.analysis.terminal_signal import ROWS
    from endprompt.report.tables import Cell, Table

    before, after = signals
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
