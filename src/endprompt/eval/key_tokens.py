"""Loss on the tokens that gain from far context, by how far that context is.

A mean over all tokens of a text hides what a long window is for: nearly all of them are predicted
well from the last few hundred. *Key tokens* are those that an evaluator predicts much better from
all of the text than from a short context (Fang et al. 2025, "What is Wrong with Perplexity for
Long-context Language Modeling?", LongPPL): with contexts of c tokens and the whole,

    loss(c) - loss(whole) > 2 nats    and    loss(whole) < 2 nats

Contexts move in steps of K tokens: a token has c to c+K-1 tokens before it. Of several contexts, a
token needs the shortest whose loss is within 2 nats of that of the whole.

The evaluator may be the base. It then reads at most its own window, at least three quarters of it
before each token, so that it finds tokens whose context lies within that window.

Shape letters: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from endprompt.errors import EvaluationError
from endprompt.eval.perplexity import Progress, read_tokens, scored_windows
from endprompt.record import Exact

if TYPE_CHECKING:
    from endprompt.eval.engine import Engine

GAIN, KNOWN = 2.0, 2.0
"""Nats: what far context has to give, and what the loss with it has to be below."""
STEPS = 4
"""Steps to the shortest context: 4,096 tokens in steps of 1,024 in the paper."""


class KeyLoss(Exact):
    """Loss on the key tokens that need more than `above` tokens of context and at most `upto`.

    nats_per_token  of the model; None where there are no such tokens
    evaluator       nats per token of the evaluator, given all that it reads
    """

    window: int
    above: int
    upto: int
    tokens: int
    nats_per_token: float | None
    perplexity: float | None
    evaluator: float | None


class KeyTokens(Exact):
    """How key tokens were found, and the losses on them: for each window all of them first."""

    evaluator: str
    reads: int
    """Tokens that the evaluator reads at most."""
    contexts: list[int]
    step: int
    scored: int
    """Tokens that could have been key, of all windows."""
    losses: list[KeyLoss]


def require_same_tokenizer(engine: Engine, evaluator: Engine) -> None:
    """Raise EvaluationError where token ids mean other words to the evaluator."""
    if evaluator.vocabulary != engine.vocabulary or (
        evaluator.tokenizer.get_vocab() != engine.tokenizer.get_vocab()
    ):
        raise EvaluationError(
            f"{evaluator.name} has another vocabulary than {engine.name}: token ids of one file "
            "mean other words to it; give an evaluator with the same tokenizer"
        )


def losses_from(engine: Engine, ids_T: np.ndarray, context: int, step: int) -> np.ndarray:
    """Loss float64[T] of each token from `context` to `context`+`step`-1 tokens before it.

    Tokens with fewer before them have all of those; the first has none and is NaN.
    """
    nll_T = np.full(len(ids_T), np.nan)
    for window in scored_windows(len(ids_T), context + step, step, "strided"):
        read = engine.context().extend(ids_T[window.start : window.end], scored=window.scored)
        nll_T[window.end - window.scored : window.end] = read.nll_T
    return nll_T


def needs(
    shorts_CT: np.ndarray, whole_T: np.ndarray, *, gain: float = GAIN, known: float = KNOWN
) -> np.ndarray:
    """Which context each token needs, int[T]: -1 for tokens that aren't key.

    shorts_CT  losses float[C, T] from contexts, shortest first
    whole_T    losses from the whole; C for tokens for which none of them is enough
    """
    gains_CT = shorts_CT - whole_T > gain
    key_T = gains_CT[0] & (whole_T < known)
    enough_CT = np.concatenate([~gains_CT, np.ones((1, len(whole_T)), bool)])
    return np.where(key_T, enough_CT.argmax(0), -1)


def loss_on_key_tokens(
    engine: Engine,
    evaluator: Engine,
    tokens: Path,
    *,
    windows: Sequence[int],
    contexts: Sequence[int],
    gain: float = GAIN,
    known: float = KNOWN,
    progress: Progress | None = None,
) -> KeyTokens:
    """Loss of a model on the tokens of a file that the evaluator finds to need far context.

    windows   W, tokens: the file is read in pieces of W, an incomplete last one left out
    contexts  c, tokens, rising: 4,096 in the paper
    gain      nats that a key token gains from far context (alpha in the paper)
    known     nats that its loss with it is below (minus beta)

    Raises EvaluationError for another vocabulary, contexts that leave nothing beyond them, and a
    file that is too short.
    """
    shorts = sorted(set(contexts))
    step = max(1, shorts[0] // STEPS)
    require_same_tokenizer(engine, evaluator)
    ids_N = read_tokens(tokens, engine.vocabulary)
    reads = min(evaluator.window, max(windows))
    if shorts[-1] + step > min(*windows, reads):
        raise EvaluationError(
            f"contexts up to {shorts[-1]} tokens in steps of {step}: windows of {min(windows)} and "
            f"the {reads} tokens that {evaluator.name} reads have to be longer"
        )
    if len(ids_N) < max(windows):
        raise EvaluationError(
            f"{tokens} has {len(ids_N)} tokens, a window of {max(windows)} is asked for"
        )
    pieces = [
        (window, ids_N[start : start + window])
        for window in sorted(set(windows))
        for start in range(0, len(ids_N) - window + 1, window)
    ]
    measured: dict[int, list[np.ndarray]] = {window: [] for window in sorted(set(windows))}
    for number, (window, ids_T) in enumerate(pieces):
        far = step if window <= reads else max(step, reads // STEPS)
        whole_T = losses_from(evaluator, ids_T, min(reads, window) - far, far)
        shorts_CT = np.stack([losses_from(evaluator, ids_T, context, step) for context in shorts])
        own_T = np.full(window, np.nan)
        own_T[1:] = engine.context().extend(ids_T, scored=window - 1).nll_T
        measured[window].append(
            np.stack([needs(shorts_CT, whole_T, gain=gain, known=known), own_T, whole_T])
        )
        if progress is not None:
            progress((number + 1) / len(pieces))
    return KeyTokens(
        evaluator=evaluator.name,
        reads=reads,
        contexts=shorts,
        step=step,
        scored=sum(max(window - shorts[0], 0) for window, _ in pieces),
        losses=[
            loss
            for window, parts in measured.items()
            for loss in _by_distance(np.concatenate(parts, 1), window, shorts, reads)
        ],
    )


def _by_distance(
    measured_3T: np.ndarray, window: int, contexts: list[int], reads: int
) -> list[KeyLoss]:
    """All key tokens of one window, then those that need each of its contexts."""
    need_T, own_T, whole_T = measured_3T
    edges = [*contexts, min(window, reads)]
    bands = [(edges[0], edges[-1], need_T > 0)]
    if len(contexts) > 1:
        bands += [(*band, need_T == n) for n, band in enumerate(pairwise(edges), 1)]
    return [
        KeyLoss(
            window=window,
            above=above,
            upto=upto,
            tokens=int(key_T.sum()),
            nats_per_token=float(own_T[key_T].mean()) if key_T.any() else None,
            perplexity=float(np.exp(min(own_T[key_T].mean(), 700.0))) if key_T.any() else None,
            evaluator=float(whole_T[key_T].mean()) if key_T.any() else None,
        )
        for above, upto, key_T in bands
    ]
