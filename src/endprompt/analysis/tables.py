"""Tables of what this room sees: distances, attention, bounds, the terminal's signal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from endprompt import rope
from endprompt.analysis.attention import HeadSmoothness, Reach
from endprompt.analysis.coverage import first_gap
from endprompt.analysis.terminal_signal import ROWS, Signal
from endprompt.report.tables import Cell, Table, number_cell

SINK = 4
"""First tokens that the tables of attention leave out: idle heads rest theirs there."""
SHOWN_HEADS = 10


def coverage(summaries: Sequence[dict[str, Any]], *, window: int, target: int) -> Table:
    """Distances that recipes train, of `coverage.summary`."""
    columns = ("recipe", "distances trained", "longest", "pairs beyond the window", "first gap")
    rows = []
    for summary in summaries:
        beyond = sum(pairs for first, _, pairs in summary["intervals"] if first >= window)
        whole = sum(pairs for *_, pairs in summary["intervals"])
        gap = first_gap(summary["intervals"], target)
        rows.append(
            (
                Cell(summary["name"]),
                Cell(f"{summary['distances'] / (target - 1):.1%}", value=summary["distances"]),
                number_cell(summary["longest"], ","),
                Cell(f"{beyond / whole:.2%}" if whole else "0%", value=beyond),
                Cell("none" if gap is None else f"{gap[0]:,} to {gap[1]:,}"),
            )
        )
    return Table("coverage", "Distances that rows train", columns, tuple(rows))


def reach(far: Reach, name: str) -> Table:
    """Share of attention by layer and distance."""
    heads = far.mass_LHE.mean(axis=1)
    columns = ["layer", *(f"from {edge:,}" for edge in far.edges[:-1])]
    rows = [
        (
            Cell(str(layer), value=layer),
            *(number_cell(float(share), ".4f") for share in shares),
        )
        for layer, shares in enumerate(heads)
    ]
    caption = f"Share of attention by distance, mean over heads, without the first {SINK} tokens"
    return Table(f"attention_{name}", caption, tuple(columns), tuple(rows))


def far_heads(far: Reach, beyond: int, name: str) -> Table:
    """Heads whose attention reaches farthest, `beyond` tokens and more."""
    edge = next(edge for edge in far.edges if edge >= beyond)
    rows = [
        (Cell(f"{layer}"), Cell(f"{head}"), number_cell(share))
        for layer, head, share in far.far_heads(edge)
    ]
    caption = f"Heads that look farthest: share from {edge:,} tokens on, first {SINK} left out"
    return Table(f"far_heads_{name}", caption, ("layer", "head", "share"), tuple(rows))


def by_scaling(bounds: Sequence[HeadSmoothness], base: rope.Base, target: int, name: str) -> Table:
    """Bernstein's bounds beside what heads do, a line for each scaling."""
    rows = []
    for scaling in dict.fromkeys(bound.scaling for bound in bounds):
        mine = [bound for bound in bounds if bound.scaling == scaling]
        headroom = rope.usual_headroom(scaling, target / base.window, base)
        factor = rope.factor(base.window, target, headroom)
        parameters = rope.parameters(base, scaling, factor)
        w, _ = rope.inverse_frequencies(
            parameters, base.rotary_size, length=target, window=base.window
        )
        tight = [bound.tightness for bound in mine]
        rows.append(
            (
                Cell(scaling),
                number_cell(float(w.max()), ".4g"),
                number_cell(fmean(bound.value for bound in mine)),
                number_cell(fmean(bound.slope for bound in mine)),
                number_cell(fmean(bound.bound for bound in mine)),
                number_cell(median(tight)),
                Cell(f"{min(tight):.3f} to {max(tight):.3f}"),
                number_cell(median(bound.curvature_tightness for bound in mine)),
                number_cell(median(bound.finer for bound in mine)),
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


def by_head(bounds: Sequence[HeadSmoothness], name: str) -> Table:
    """How near each head comes to its bound, the nearest first."""
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
                number_cell(mine[0].value),
                *(number_cell(bound.tightness) for bound in mine),
            )
        )
    caption = "Tightness by head, sup|S'| over Bernstein's bound, tightest first"
    return Table(f"tightness_{name}", caption, columns, tuple(rows))


def before_and_after(before: Reach, after: Reach, name: str) -> Table:
    """Attention by layer and distance, and its scores across the jump."""
    bands = _bands(before)
    rows = []
    for layer in range(before.mass_LHE.shape[0]):
        cells = [Cell(str(layer), value=layer)]
        for band, _ in bands:
            for layers in (before, after):
                share = float(layers.mass_LHE[layer, :, band].mean())
                cells.append(number_cell(share))
        for layers in (before, after):
            score = float(np.mean(layers.score_LHE[layer, :, bands[-1][0]]))
            cells.append(number_cell(score, ".2f"))
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


def farthest_after(before: Reach, after: Reach, name: str) -> Table:
    """Heads that reach farthest after training, and what they did before."""
    edge = before.edges[3]
    rows = []
    for layer, head, share in after.far_heads(edge, SHOWN_HEADS):
        was = float(before.mass_LHE[layer, head, 3])
        rows.append(
            (
                Cell(str(layer), value=layer),
                Cell(str(head), value=head),
                *(number_cell(value) for value in (was, share)),
                number_cell(share - was, "+.3f"),
            )
        )
    return Table(
        f"far_heads_{name}",
        f"Heads that reach farthest after training: share of attention from {edge:,} tokens on",
        ("layer", "head", "before", "after", "change"),
        tuple(rows),
    )


def signal(before: Signal, after: Signal, name: str) -> Table:
    """The terminal's loss and gradients."""
    parts = {
        "loss of the terminal": (before.terminal_loss, after.terminal_loss),
        "gradient on the prefix": (before.prefix_gradient, after.prefix_gradient),
        "gradient on the terminal": (before.terminal_gradient, after.terminal_gradient),
    }
    rows = [
        (
            Cell(key),
            *(number_cell(value, ".4g") for value in values),
            number_cell(values[1] / values[0]),
        )
        for key, values in parts.items()
    ]
    return Table(
        f"signal_{name}",
        f"The terminals of {ROWS} rows that training did not see: loss in nats per token, norms of "
        "its gradient by the embeddings; near zero, nothing long-range is learnt any more",
        ("what", "before", "after", "after / before"),
        tuple(rows),
    )


def _bands(reach: Reach) -> list[tuple[int, str]]:
    """Bands with any pair in them, in words; the jump leaves the third one empty."""
    edges = reach.edges
    return [
        (0, f"below {edges[1]}"),
        (1, f"{edges[1]} to {edges[2] - 1:,}"),
        (3, f"{edges[3]:,} and on"),
    ]
