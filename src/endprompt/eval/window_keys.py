"""Key tokens of a window check: found by an evaluator, or taken from an earlier check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from endprompt.errors import EvaluationError
from endprompt.eval.key_tokens import GAIN, KNOWN, STEPS, losses_from, needs
from endprompt.io.files import sha256_of
from endprompt.record import Exact, Window

if TYPE_CHECKING:
    from endprompt.eval.engine import Engine

SHORT = 8
"""What an evaluator reads at most, divided by its short context, in a window check."""


class KeyToken(Exact):
    """A key token before a length of a document, and the model's loss on it in nats."""

    document: int
    length: int
    position: int
    nll: float


class KeySearch(Exact):
    """What found the key tokens of a window check, and in which texts.

    haystacks  SHA-256 of each document's tokens, needles among them
    """

    evaluator: str
    haystacks: list[str]


class KeyFinder:
    """Finds the key tokens before a length with an evaluator, for a window check.

    Of r tokens, the length or the evaluator's window, it reads all, and a short context of r/8 to
    5r/32 before each of the last r/4; these are the tokens that can be key, with at least three
    quarters of what it reads before them.
    """

    def __init__(self, evaluator: Engine, *, gain: float = GAIN, known: float = KNOWN) -> None:
        self.name = evaluator.name
        self._evaluator, self._limits = evaluator, {"gain": gain, "known": known}

    def places(self, document: int, ids_T: np.ndarray, length: int) -> np.ndarray:  # noqa: ARG002
        """Positions of key tokens before `length`, rising. ids_T: the document's haystack."""
        reads = min(self._evaluator.window, length)
        scored, context = max(1, reads // STEPS), max(1, reads // SHORT)
        first = length - scored
        ids_R = ids_T[length - reads : length]
        whole_S = self._evaluator.context().extend(ids_R, scored=scored).nll_T
        near = ids_T[max(0, first - context) : length]
        short_N = losses_from(self._evaluator, near, context, max(1, context // STEPS))
        key_S = needs(short_N[None, -scored:], whole_S, **self._limits) > 0
        return first + np.flatnonzero(key_S)


class RecordedKeys:
    """The key tokens that an earlier window check found in the same texts.

    Raises EvaluationError when it looked for none, or read other texts or lengths.
    """

    def __init__(self, check: Window, source: Path) -> None:
        if check.key_search is None:
            raise EvaluationError(
                f"{source} holds no key tokens: make it again with --evaluator, or give one here"
            )
        self._check, self._source = check, source
        self._search = KeySearch.model_validate(check.key_search)
        self.name = self._search.evaluator

    def places(self, document: int, ids_T: np.ndarray, length: int) -> np.ndarray:
        """Positions of key tokens before `length`, rising. ids_T: the document's haystack."""
        known = self._search.haystacks[document : document + 1]
        if known != [haystack_hash(ids_T)] or length not in self._check.lengths:
            raise EvaluationError(
                f"{self._source} holds key tokens of other texts than document {document} up to "
                f"{length} tokens: give it the same data, lengths, needles and seed"
            )
        return np.array(
            [
                key.position
                for key in self._check.key_tokens
                if (key.document, key.length) == (document, length)
            ],
            dtype=np.int64,
        )


def losses_on(nll_T: np.ndarray, places: np.ndarray, length: int, document: int) -> list[KeyToken]:
    """Losses at the places of key tokens; NaN marks tokens that do not count."""
    return [
        KeyToken(document=document, length=length, position=place, nll=float(nll_T[place]))
        for place in places.tolist()
        if not np.isnan(nll_T[place])
    ]


def haystack_hash(ids_T: np.ndarray) -> str:
    """SHA-256 of a document's tokens."""
    return sha256_of(ids_T.tolist())
