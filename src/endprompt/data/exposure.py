"""More loss weight on tokens with much context before them, the rarer the more.

After the abstract of Zhu et al. 2026, "Where Does Long-Context Supervision Actually Go?" (EXACT,
arXiv 2605.10544): a fixed extra weight for targets with a long context, given out by inverse
frequency within that tail. The rest is ours: a token's context is counted in positions, so that a
jump counts as the text it stands for; the tail begins at a quarter of the target; of its octaves b,
with shares q_b of its tokens,

    w_b = 1 + far_weight * r_b / sum(q * r),    r_b = q_b ** -0.5

so that a token of the tail weighs 1 + far_weight in the mean, and one below it 1.

Shape letters: T tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from endprompt.positions import Ints

TAIL = 4
"""The tail begins at the target divided by this."""
POWER = 0.5
EDGES = 2
"""Octaves of the tail: from a quarter of the target, from half of it."""


def contexts(
    positions_T: Ints, documents_T: Ints | None = None, whole_T: NDArray[np.bool_] | None = None
) -> Ints:
    """Positions from the first token that each can attend to.

    documents_T  number of each token's document, which alone it sees; None: it sees all
    whole_T      tokens that see all documents
    """
    starts_T = np.full_like(positions_T, positions_T[0])
    if documents_T is not None:
        _, first, document_T = np.unique(documents_T, return_index=True, return_inverse=True)
        starts_T = positions_T[first][document_T]
        if whole_T is not None:
            starts_T = np.where(whole_T, positions_T[0], starts_T)
    return positions_T - starts_T


def octaves(contexts_T: Ints, target: int) -> Ints:
    """0 below the tail, then the octave of the tail.

    >>> octaves(np.array([0, 255, 256, 511, 512, 1023]), 1024)
    array([0, 0, 1, 1, 2, 2])
    """
    return np.digitize(contexts_T, [target / TAIL * 2**n for n in range(EDGES)])


def weights(counts: Ints, far_weight: float) -> NDArray[np.float32]:
    """Weight float32[1 + EDGES] of each octave, from the trained tokens of each.

    An octave without tokens weighs as much as the heaviest one with some, or 1.
    """
    tail = counts[1:] / max(counts[1:].sum(), 1)
    rarity = np.zeros(len(tail))
    rarity[tail > 0] = tail[tail > 0] ** -POWER
    rarity[tail == 0] = rarity.max(initial=0)
    extra = rarity / max(float((tail * rarity).sum()), 1e-9)
    return np.concatenate([[1.0], 1 + far_weight * extra]).astype(np.float32)
