"""Every recipe in one line: what it is, the distances its rows train, the cost of a step.

Distances are counted by `endprompt.analysis.coverage`, operations by `endprompt.cost.flops`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from endprompt import recipe as recipes
from endprompt import rope, theory
from endprompt.analysis import coverage
from endprompt.cost import flops
from endprompt.cost.flops import LLAMA_3_8B
from endprompt.cues import CUES
from endprompt.data.rows import gap_pairs
from endprompt.recipe import MOST_IN_BANK, Recipe

MOST_INTERVALS = 3


@dataclass(frozen=True)
class Line:
    """One recipe at a window, a target and a length of rows."""

    recipe: Recipe
    row_tokens: int
    intervals: list[tuple[int, int]]
    """Distances trained by the rows looked at; empty where nothing trains."""
    share: float
    """Part of 1 .. L-1 that they are."""
    far: float
    """Part of all query-key pairs whose distance is beyond the window."""
    cost: float
    """FLOPs of a step at equal physical tokens, as a multiple of `short`'s; 0: no training."""


def table(
    names: list[str],
    *,
    window: int,
    target: int,
    rows: int = 1000,
    row_tokens: int | None = None,
    decoder: flops.Decoder = LLAMA_3_8B,
) -> list[Line]:
    """Lines of the recipes named, `rows` rows of each looked at.

    row_tokens  physical tokens of a short row; None: the window
    """
    short = _cost(recipes.load("short"), row_tokens or window, decoder)
    entries = []
    for name in names:
        recipe = recipes.load(name)
        tokens = _row_tokens(recipe, row_tokens or window, window, target)
        counts = np.zeros(target, dtype=np.int64)
        pairs = 0.0
        if recipe.trained:
            drawn = list(coverage.drawn_rows(recipe, tokens, target=target, count=rows))
            pairs = gap_pairs(drawn)
            counts = coverage.pairs_by_distance(recipe, drawn, target=target)
        counts[0] = 0
        entries.append(
            Line(
                recipe=recipe,
                row_tokens=tokens,
                intervals=[(first, last) for first, last, _ in theory.intervals(counts)],
                share=float((counts[1:] > 0).mean()),
                far=float(counts[window:].sum() / max(counts.sum(), 1)),
                cost=_cost(recipe, tokens, decoder, pairs) / short,
            )
        )
    return entries


def markdown(lines: list[Line], *, window: int, target: int, rows: int, model: str) -> str:
    """The page docs/methods.md."""
    usual = ", ".join(
        f"{rule.headroom:g} under {rope.TITLES[name]}"
        for name, rule in rope.RULES.items()
        if rule.headroom != 1
    )
    weighed = recipes.load("short").replace({"training.label_weights": "gain"})
    gain = _cost(weighed, window, LLAMA_3_8B) / _cost(recipes.load("short"), window, LLAMA_3_8B)
    head = f"""# Methods

Each is a recipe: `endprompt extend --method NAME`, or `endprompt train NAME ...`. Those of this
project come first: `{recipes.FIRST[0]}` is the default.
`pose+cream` mixes the rows of two in equal parts, `0.8pose+0.2cream` in others.

Made by `endprompt methods --markdown` for a window of {window:,} tokens, a target of {target:,}
and {rows:,} rows of each recipe. *Distances* is the set of position
differences that attention sees in those rows, from the sampler that trains; *share* is its part
of 1 .. L-1, *far* the part of all query-key pairs whose distance is beyond the window. *Cost* is
what a step costs at equal physical tokens, as a multiple of `short`: FLOPs of forward and
backward for {model}.
Anchors are measured with a stand-in tokenizer (a token a word), so that ends of intervals differ
by some tokens from those of a real one.

`rope.headroom` sets the RoPE factor as a multiple of L / L0, at no cost. If L / L0 is above
{rope.NO_HEADROOM_UP_TO}, the default is {usual}; it is 1 in all other cases
([what it gave](results.md#a-rope-factor-above-l-l0)).

`rows.gaps: filled` works with every recipe that jumps: keys and values of other text of the run
stand between the segments of a row, and the tokens behind attend to them, so that an answer has to
be found among as many keys as in a long text. The base reads that text once before training,
`rows.gap_bank` tokens of it (at most {MOST_IN_BANK:,} unless set). Keys are kept without RoPE and
turned to their positions in the row: one for each free position, or `rows.gap_keys` of them spread
evenly. They have no gradient. The cost is that of attention to them, whose forward pass is made
twice so that no turned key is kept in memory; `endprompt plan` shows the bytes.

`rows.far_weight` puts more loss weight on tokens with a quarter of the target and more before them:
the given number in the mean, more in the rarer of the two octaves, at next to no cost (after the
abstract of Zhu et al. 2026, "EXACT"; where the tail begins and how rarity counts is ours).

`training.label_weights: gain` multiplies the weight of each token by how many times likelier it is
given all of the row than given a short context, a quarter to half of a row, at most 5 (Fang et al.
2025, "LongCE"). The model reads the short contexts without a gradient:
{gain:.2f} times the operations of `short`.

| recipe | what it is | when to choose it | tokens a row | distances | share | far | cost |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
    body = "".join(_row(line) for line in lines)
    sources = "".join(
        f"- **`{line.recipe.name}`** follows {line.recipe.source}."
        + (f" It departs: {line.recipe.departs}." if line.recipe.departs else "")
        + "\n"
        for line in lines
    )
    cues = "".join(f"| `{name}` | {cue.what} |\n" for name, cue in CUES.items())
    return (
        f"{head}{body}\n## Cues\n\nWhat `rows.kinds.terminal.cue` may name, beside cues of "
        f"installed packages:\n\n| cue | terminal |\n| --- | --- |\n{cues}"
        f"\n## Sources\n\n{sources}"
    )


def _row(line: Line) -> str:
    """A line of the page's table."""
    distances = written(line.intervals) if line.recipe.trained else "none trained"
    return (
        f"| `{line.recipe.name}` | {line.recipe.summary} | {line.recipe.choose} | "
        f"{line.row_tokens:,} | {distances} | {line.share:.1%} | {line.far:.1%} | "
        f"{line.cost:.2f} |\n"
    )


def written(intervals: list[tuple[int, int]]) -> str:
    """Intervals in words; many are counted.

    >>> written([(1, 9), (20, 31)])
    '1-9, 20-31'
    """
    if len(intervals) <= MOST_INTERVALS:
        return ", ".join(f"{a:,}-{b:,}" if a != b else f"{a:,}" for a, b in intervals)
    gaps = [after[0] - before[1] - 1 for before, after in pairwise(intervals)]
    return (
        f"{intervals[0][0]:,}-{intervals[-1][1]:,} with {len(gaps)} gaps, the widest {max(gaps):,}"
    )


def _row_tokens(recipe: Recipe, short: int, window: int, target: int) -> int:
    tokens = recipe.rows.tokens
    return (
        tokens
        if isinstance(tokens, int)
        else {"window": window, "target": target}.get(tokens, short)
    )


def _cost(recipe: Recipe, row_tokens: int, decoder: flops.Decoder, pairs: float = 0.0) -> float:
    """FLOPs per token of training; `pairs` a row with keys in gaps."""
    training = recipe.training
    row = flops.training(
        decoder,
        row_tokens,
        trainable=training.trainable,
        kind=training.attention,
        groups=training.attention_groups,
        lora_rank=training.lora_rank,
        distilled=training.prefix_loss != "text",
        gained=training.label_weights == "gain",
        gap_pairs=pairs,
    )
    return row.total / row_tokens
