"""Loss on held-out text: by length and by position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from endprompt.errors import EvaluationError

if TYPE_CHECKING:
    from endprompt.eval.engine import Engine

Document = Sequence[int] | np.ndarray | str
"""Token ids without special tokens, or a text."""

Progress = Callable[[float], None]
"""Called with the part of the work done so far, from 0 to 1."""


class LengthLoss(BaseModel):
    """Mean loss of one document over the last tokens before a length.

    nll       nats per token
    tokens    how many tokens it is the mean of
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    document: int
    length: int
    tokens: int
    nll: float


class BinLoss(BaseModel):
    """Mean loss of one document over positions start .. end-1, nats per token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    document: int
    start: int
    end: int
    tokens: int
    nll: float


class PositionLoss(BaseModel):
    """Loss by length and by position, each value with its document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lengths: list[int]
    last: int
    bins: int
    documents: int
    losses: list[LengthLoss]
    curve: list[BinLoss]

    def by_length(self) -> dict[int, float]:
        """Mean over documents, nats per token."""
        return {
            length: float(np.mean([loss.nll for loss in self.losses if loss.length == length]))
            for length in self.lengths
        }


def loss_by_position(
    engine: Engine,
    documents: Sequence[Document],
    *,
    lengths: Sequence[int],
    last: int = 256,
    bins: int = 1024,
    progress: Progress | None = None,
) -> PositionLoss:
    """Loss of held-out documents, from one prefill of the longest length for each.

    lengths   physical tokens, the tokenizer's start tokens included
    last      the loss at a length is the mean over this many tokens before it
    bins      width of the bins of the curve, tokens

    A model is causal: one pass over the longest length holds the losses at the shorter ones. (A
    model whose RoPE depends on the length, `dynamic` or `longrope`, is read once for each length;
    its curve is that of the longest.)
    Raises EvaluationError when a document is shorter than the longest length.
    """
    lengths = checked_lengths(lengths, last)
    texts = [with_start(engine, document, lengths[-1], n) for n, document in enumerate(documents)]
    losses: list[LengthLoss] = []
    curve: list[BinLoss] = []
    for number, ids_T in enumerate(texts):
        passes = lengths if engine.length_dependent else lengths[-1:]
        for length in passes:
            nll_T = engine.context().extend(ids_T[:length], scored=length).nll_T
            here = [length] if engine.length_dependent else lengths
            losses.extend(losses_at(nll_T, here, last, number))
            if length == lengths[-1]:
                curve.extend(losses_in_bins(nll_T, bins, number))
        if progress is not None:
            progress((number + 1) / len(texts))
    return PositionLoss(
        lengths=lengths, last=last, bins=bins, documents=len(texts), losses=losses, curve=curve
    )


def checked_lengths(lengths: Sequence[int], last: int) -> list[int]:
    """Distinct lengths, rising. Raises EvaluationError when one is not longer than `last`."""
    rising = sorted({int(length) for length in lengths})
    if not rising:
        raise EvaluationError("no lengths given: give at least one, in tokens")
    if last < 1 or rising[0] <= last:
        raise EvaluationError(
            f"length {rising[0]} tokens with the loss taken over the last {last}: "
            "lengths must be longer, and the last at least 1"
        )
    return rising


def with_start(engine: Engine, document: Document, length: int, number: int) -> np.ndarray:
    """The first `length` tokens of a document, int64[length], after the tokenizer's start tokens.

    Raises EvaluationError when the document is too short, with both numbers.
    """
    ids = engine.encode(document) if isinstance(document, str) else document
    ids_T = np.concatenate(
        [np.asarray(engine.start_ids, dtype=np.int64), np.asarray(ids, dtype=np.int64)]
    )
    if len(ids_T) < length:
        raise EvaluationError(
            f"document {number} has {len(ids_T)} tokens, {length} are needed: "
            "give a longer document or shorter lengths"
        )
    return ids_T[:length]


def losses_at(
    nll_T: np.ndarray, lengths: Sequence[int], last: int, document: int
) -> list[LengthLoss]:
    """Mean over the last tokens before each length; NaN marks tokens that do not count."""
    return [
        LengthLoss(document=document, length=length, tokens=count, nll=nll)
        for length in lengths
        for count, nll in [_mean(nll_T[length - last : length])]
        if count
    ]


def losses_in_bins(nll_T: np.ndarray, bins: int, document: int) -> list[BinLoss]:
    """Mean in bins of positions; NaN marks tokens that do not count."""
    return [
        BinLoss(
            document=document, start=start, end=min(start + bins, len(nll_T)), tokens=count, nll=nll
        )
        for start in range(0, len(nll_T), bins)
        for count, nll in [_mean(nll_T[start : start + bins])]
        if count
    ]


def _mean(nll_T: np.ndarray) -> tuple[int, float]:
    counted = nll_T[~np.isnan(nll_T)]
    return len(counted), float(counted.mean()) if len(counted) else 0.0
