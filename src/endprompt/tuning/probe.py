"""The probe: short rows with filled gaps that ask for what stands far away, by distance.

A row begins as a text does, with a few tokens at position 0. The rest of its text, with facts
planted in it, stands somewhere in the target; at the target's end they are asked for. Between
stand keys of other text, read once by the unscaled base and turned by the RoPE of whatever
candidate is loaded, so that an answer has to be found among as many keys as in a long text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from endprompt.cues import CueWriter
from endprompt.data.gaps import GapFiller
from endprompt.data.packing import Documents, stretches
from endprompt.data.rows import PREFIX, TERMINAL, collate
from endprompt.errors import EvaluationError
from endprompt.positions import contiguous
from endprompt.recipe import MOST_IN_BANK, Recall, Terminal
from endprompt.train.gaps import FilledGaps
from endprompt.train.loss import weighted_loss

ROW_TOKENS = 512
PIECE_TOKENS = 1024
"""Of a row, and of each text that the base reads for the gaps; at most the window."""
HEAD = 32
"""One token in so many of a row stands at the beginning of the target."""
FACTS = Terminal(cue="recall", recall=Recall(verbatim=0, facts=8))
"""Questions of a row; fewer where it has no room for them."""


@dataclass(frozen=True)
class Row:
    """One row of the probe.

    depth    where in the target the text stands that is asked for, 0 to 1
    example  columns as `RowSource` gives them; answers weigh 1, the rest 0
    """

    depth: float
    example: dict[str, Any]


def text_tokens(window: int) -> int:
    """Tokens of text that rows and gaps need at least."""
    return 4 * min(window, PIECE_TOKENS)


def make_rows(
    documents: Documents, cues: CueWriter, *, window: int, target: int, count: int, seed: int
) -> tuple[list[Row], GapFiller]:
    """Rows whose texts stand evenly over the target, and what fills their gaps.

    Raises RecipeError where the window is too short for a question, TextError for too little text.
    """
    tokens = min(window, ROW_TOKENS)
    texts = stretches(documents, tokens, seed, "stream")
    free = target - tokens
    filler = GapFiller(
        stretches(documents, min(window, PIECE_TOKENS), seed, "stream"),
        keys=free, bank=min(free, MOST_IN_BANK), seed=seed,
    )  # fmt: skip
    head = max(1, tokens // HEAD)
    rows = []
    for n in range(count):
        rng = np.random.default_rng([seed, n, 6])
        text_T = texts[n % len(texts)]
        content = cues.write(FACTS, text_T[head:], rng)
        (asked,) = content.terminals
        P, S = len(content.prefix_P), len(asked.tokens)
        start = head + round((n + 0.5) / count * (target - head - P - S))
        positions_T = np.concatenate(
            [contiguous(head), contiguous(P, start=start), contiguous(S, start=target - S)]
        )
        filling = filler.fill(positions_T, text_T, rng)
        example = {
            "input_ids": np.concatenate([text_T[:head], content.prefix_P, asked.tokens]),
            "position_ids": positions_T,
            "loss_weights": np.concatenate([np.zeros(head + P, np.float32), asked.weights]),
            "segments": np.repeat(np.array([PREFIX, TERMINAL], np.uint8), [head + P, S]),
            "gap_positions": filling.positions_G,
            "gap_slots": filling.slots_G,
        }
        rows.append(Row((start + P / 2) / target, example))
    return rows, filler


@torch.no_grad()
def answer_losses(
    model: Any,
    filled: FilledGaps,
    rows: Sequence[Row],
    progress: Callable[[int], None] = lambda _: None,
) -> list[tuple[float, float]]:
    """Depth of each row and the loss of its answers, nats per token.

    filled    what the model finds in gaps
    progress  called with the number of rows read

    Raises EvaluationError for a loss that is not finite.
    """
    losses = []
    for number, row in enumerate(rows, 1):
        batch = {name: column.to(model.device) for name, column in collate([row.example]).items()}
        sums = weighted_loss(model, batch, filled)
        nats = float(sums.weighted / sums.weight)
        if not np.isfinite(nats):
            raise EvaluationError(
                f"the answer loss is {nats} in {model.dtype}: give --dtype float32"
            )
        losses.append((row.depth, nats))
        progress(number)
    return losses
