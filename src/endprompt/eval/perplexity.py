"""Loss on held-out text: by length and by position, and perplexity in three definitions.

One number is called perplexity in at least three ways. With windows of W tokens and stride S:

strided      windows start at 0, S, 2S, ... until the text ends; each token counts once: all of
             the first window, then the last S of each, with at least W-S tokens before them.
             (With S = W the first token of a window has none and is left out.)
window-mean  windows start at 0, S, 2S, ... below N-W, the last start left out, as LCEG and
             LongLoRA have it; the mean over windows of the mean over a window's tokens
rolling      lm-eval's rolling log-likelihood: W new tokens a window, one token of context;
             each token counts once, the first after a BOS (or end) token
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from endprompt.errors import DataError, EvaluationError
from endprompt.io.files import sha256_file
from endprompt.io.provenance import Computation, versions
from endprompt.record import Exact

if TYPE_CHECKING:
    from endprompt.eval.engine import Coder, Engine

Document = Sequence[int] | np.ndarray | str
"""Token ids without special tokens, or a text."""

Progress = Callable[[float], None]
"""Called with the part of the work done so far, from 0 to 1."""


class LengthLoss(Exact):
    """Mean loss of one document over the last tokens before a length.

    nll       nats per token
    tokens    how many tokens it is the mean of
    """

    document: int
    length: int
    tokens: int
    nll: float


class BinLoss(Exact):
    """Mean loss of one document over positions start .. end-1, nats per token."""

    document: int
    start: int
    end: int
    tokens: int
    nll: float


class PositionLoss(Exact):
    """Loss by length and by position, each value with its document."""

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


def with_start(coder: Coder, document: Document, length: int, number: int) -> np.ndarray:
    """The first `length` tokens of a document, int64[length], after the tokenizer's start tokens.

    Raises EvaluationError when the document is too short, with both numbers.
    """
    ids = coder.encode(document) if isinstance(document, str) else document
    ids_T = np.concatenate(
        [np.asarray(coder.start_ids, dtype=np.int64), np.asarray(ids, dtype=np.int64)]
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


Definition = Literal["strided", "window-mean", "rolling"]
DEFINITIONS: tuple[Definition, ...] = ("strided", "window-mean", "rolling")


class Window(NamedTuple):
    """Tokens start .. end-1 of a text, of which the last `scored` count.

    prefixed   the tokenizer's BOS (or end) token stands before them
    """

    start: int
    end: int
    scored: int
    prefixed: bool = False


class LengthPerplexity(Exact):
    """One window size: the mean loss, what it is the mean of, and what follows from it.

    nll_sum          nats, over all scored tokens
    nats_per_token   the definition's mean
    bits_per_byte    of the scored text, in UTF-8; absent where tokens cannot be turned to text
    """

    window: int
    windows: int
    scored: int
    nll_sum: float
    nats_per_token: float
    perplexity: float
    bytes: int | None
    bits_per_byte: float | None


class Perplexity(LengthPerplexity):
    """Perplexity of a token file; the fields of the head are those of the longest window."""

    model: str
    definition: Definition
    stride: int
    tokens: int
    tokens_sha256: str
    by_position: list[BinLoss]
    """Mean by position in the window; `document` is 0."""
    by_length: list[LengthPerplexity]
    computation: Computation
    versions: dict[str, str]


def read_tokens(path: Path, vocabulary: int) -> np.ndarray:
    """Token ids of a file, memory-mapped.

    `.npy` holds a one-dimensional integer array; anything else is raw: uint16 where the
    vocabulary fits it, else uint32. Raises DataError when it cannot hold such tokens.
    """
    try:
        if path.suffix == ".npy":
            ids_N = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            kind = np.dtype("<u2" if vocabulary <= 2**16 else "<u4")
            size = path.stat().st_size
            if not size or size % kind.itemsize:
                raise DataError(
                    f"{path} has {size} bytes: not a whole number of {kind.name} tokens"
                )
            ids_N = np.memmap(path, dtype=kind, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read tokens from {path}: {error}") from error
    if ids_N.ndim != 1 or not np.issubdtype(ids_N.dtype, np.integer):
        raise DataError(f"{path} holds {ids_N.dtype}{list(ids_N.shape)}: give int[tokens]")
    if len(ids_N) and (int(ids_N.max()) >= vocabulary or int(ids_N.min()) < 0):
        raise DataError(
            f"{path} holds token {int(ids_N.max())}, the model knows {vocabulary}: "
            "made with another tokenizer, or uint32 read as uint16 (save it as .npy)"
        )
    return ids_N


def scored_windows(count: int, window: int, stride: int, definition: Definition) -> list[Window]:
    """The windows over `count` tokens; see the table at the top of this module.

    Raises EvaluationError when the text is too short or the stride does not fit the window.
    """
    if window < 2 or not 1 <= stride <= window:
        raise EvaluationError(
            f"window {window}, stride {stride} tokens: need 1 <= stride <= window"
        )
    if definition == "rolling":
        return [
            Window(max(end - window - 1, 0), end, end - start, prefixed=start == 0)
            for start in range(0, count, window)
            for end in [min(start + window, count)]
        ]
    if count < 2 or (definition == "window-mean" and count <= window):
        raise EvaluationError(
            f"{count} tokens are too few for {definition} with a window of {window}: "
            "give a longer text or a shorter window"
        )
    if definition == "window-mean":
        starts = list(range(0, count - window, stride))
        return [Window(at, at + window, window - 1) for at in starts[:-1] or starts]
    windows: list[Window] = []
    done = 1  # the first token has nothing before it
    for start in range(0, count, stride):
        end = min(start + window, count)
        windows.append(Window(start, end, min(end - done, end - start - 1)))
        done = end
        if end == count:
            break
    return [window for window in windows if window.scored]


def perplexity(
    engine: Engine,
    tokens: Path,
    *,
    windows: Sequence[int],
    stride: int,
    definition: Definition = "strided",
    bins: int = 1024,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity of a token file at each window size.

    windows   W, tokens; one or several
    stride    S, tokens (`rolling` has none: it takes W new tokens a window)
    Sums are kept in float64. Raises DataError or EvaluationError.
    """
    sizes = checked_lengths(windows, 1)
    ids_N = read_tokens(tokens, engine.vocabulary)
    plans = {
        size: scored_windows(len(ids_N), size, min(stride, size), definition) for size in sizes
    }
    total = sum(engine.work(w.end - w.start) for plan in plans.values() for w in plan)
    done = 0.0
    rows: list[LengthPerplexity] = []
    curve: list[BinLoss] = []
    for size, plan in plans.items():
        sums = np.zeros(size + 1)
        counts = np.zeros(size + 1, dtype=np.int64)
        means: list[float] = []
        for window in plan:
            ids = [*_prefix(engine, window), *ids_N[window.start : window.end].tolist()]
            nll = engine.context().extend(ids, scored=window.scored).nll_T
            places = slice(len(ids) - window.scored, len(ids))
            sums[places] += nll
            counts[places] += 1
            means.append(float(nll.mean()))
            done += engine.work(window.end - window.start)
            if progress is not None:
                progress(done / total)
        rows.append(_row(engine, ids_N, size, plan, sums, counts, means, definition))
        curve = [
            BinLoss(
                document=0,
                start=start,
                end=min(start + bins, size),
                tokens=int(counts[start : start + bins].sum()),
                nll=float(sums[start : start + bins].sum() / counts[start : start + bins].sum()),
            )
            for start in range(0, size, bins)
            if counts[start : start + bins].sum()
        ]
    return Perplexity(
        **rows[-1].model_dump(),
        model=engine.name,
        definition=definition,
        stride=stride,
        tokens=len(ids_N),
        tokens_sha256=sha256_file(tokens),
        by_position=curve,
        by_length=rows,
        computation=engine.computation,
        versions=versions(),
    )


def _prefix(engine: Engine, window: Window) -> list[int]:
    if not window.prefixed:
        return []
    tokenizer = engine.tokenizer
    token = tokenizer.bos_token_id
    return [int(tokenizer.eos_token_id if token is None else token)]


def _row(
    engine: Engine,
    ids_N: np.ndarray,
    size: int,
    plan: Sequence[Window],
    sums: np.ndarray,
    counts: np.ndarray,
    means: Sequence[float],
    definition: Definition,
) -> LengthPerplexity:
    scored = int(counts.sum())
    nll_sum = float(sums.sum())
    mean = float(np.mean(means)) if definition == "window-mean" else nll_sum / scored
    spans = [(window.end - window.scored, window.end) for window in plan]
    if all(before[1] == after[0] for before, after in pairwise(spans)):
        # One stretch of text, so that no character is cut at a window's border.
        spans = [(spans[0][0], spans[-1][1])]
    size_bytes = sum(engine.text_bytes(ids_N[start:end]) for start, end in spans)
    return LengthPerplexity(
        window=size,
        windows=len(plan),
        scored=scored,
        nll_sum=nll_sum,
        nats_per_token=mean,
        perplexity=float(np.exp(min(mean, 700.0))),
        bytes=size_bytes or None,
        bits_per_byte=nll_sum / float(np.log(2)) / size_bytes if size_bytes else None,
    )
