"""What a model's heads do with distance on a text, and Bernstein's bounds on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from endprompt import rope, theory
from endprompt.analysis import attention
from endprompt.analysis.run_changes import text_ids
from endprompt.analysis.tables import SINK
from endprompt.models import checkpoint as models

PAPER_TERMINAL = 20
"""Tokens of the terminal of the paper's rows."""


@dataclass(frozen=True)
class ModelAttention:
    """A model on a text.

    tokens  of the text; edges of the bands of `reach` are octaves of them
    gap     distances that the paper's rows leave out, first and last
    heads   smoothness of every head under every scaling; empty for a model that is scaled already
    """

    tokens: int
    reach: attention.Reach
    base: rope.Base
    gap: tuple[int, int]
    heads: list[attention.HeadSmoothness]


def of_model(
    path: str, *, target: int, text: Path | None = None, tokens: int = 1024, pairs: int = 8
) -> ModelAttention:
    """Read a text with a model and look at its attention.

    text    a text file; None: the embedded text
    pairs   query-key pairs drawn for each head
    Raises TextError for too little text.
    """
    config = models.load_config(path)
    ids = text_ids(path, text, tokens)
    layers = attention.record(models.load(path, config), ids)
    positions = np.arange(len(ids))
    edges = [0, *theory.octaves(len(ids), parts=1), len(ids)]
    far = attention.reach(layers, positions, edges, skip=SINK)
    family = models.family_of(path, config)
    base = family.base
    row = theory.anchored(base.window - PAPER_TERMINAL, PAPER_TERMINAL, target=target)
    gap = row.gap or (base.window, target - base.window)
    heads: list[attention.HeadSmoothness] = []
    if base.parameters is None:
        scaled = sorted(i for kind in family.layers if kind.scaled for i in kind.indices)
        contents = [attention.unrotate(layers[i], positions, base.own, base) for i in scaled]
        heads = attention.tightness(
            contents, base, target=target, gap=gap, pairs=pairs, indices=scaled
        )
    return ModelAttention(len(ids), far, base, gap, heads)
