"""One prefill per document: loss, needles and verbatim recall by length.

The haystack is real text of the longest length with needles at an even density. The model reads
up to the first length and is asked there, the questions are cut off again, and it reads on. So
all lengths and all measures cost one prefill.

The loss is that of the same pass: tokens of needles and the few right after them do not count,
and no needle stands in the last tokens before a length. Its context holds needles further up,
which `loss_by_position` avoids for the price of a second prefill; the same haystack goes to every
model compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pydantic import Field

from endprompt.distances import by_quarter
from endprompt.errors import EvaluationError
from endprompt.eval.needle import (
    ADJECTIVES,
    NOUNS,
    SETTLE,
    SNAP,
    Haystack,
    Needle,
    NeedleScore,
    ask_needles,
    keys_and_answers,
    longest_question,
    plant,
    sentence,
)
from endprompt.eval.perplexity import (
    BinLoss,
    Document,
    LengthLoss,
    Progress,
    checked_lengths,
    losses_at,
    losses_in_bins,
    with_start,
)
from endprompt.eval.window_keys import (
    KeyFinder,
    KeySearch,
    KeyToken,
    RecordedKeys,
    haystack_hash,
    losses_on,
)
from endprompt.io.files import sha256_of
from endprompt.io.provenance import Computation
from endprompt.record import Exact

if TYPE_CHECKING:
    from endprompt.eval.engine import Coder, Context, Engine

GIVEN = 10
CONTINUED = 20
QUOTE = '\n\nA passage of the text above, word for word: "'

Item = TypeVar("Item")


class QuoteScore(Exact):
    """A span of the text given in part and continued: 10 tokens given, 20 scored.

    nll      nats per token
    right    part of the tokens that are the likeliest
    """

    document: int
    length: int
    position: int
    depth: float
    tokens: int
    nll: float
    right: float


class LengthSummary(Exact):
    """Means at one length: over documents for the loss, over questions for the rest.

    loss, quote             nats per token
    key_loss                nats per key token; None where none was found, or looked for
    needle                  nats per answer
    needle_per_token        nats per token of the answer
    digits_right, hits      from 0 to 1
    digits_by_quarter       by distance, the farthest quarter first; None where no needle stands
    """

    length: int
    loss: float
    needle: float
    needle_per_token: float
    digits_right: float
    digits_by_quarter: tuple[float | None, ...]
    hits: float
    quote: float
    documents: int
    needles: int
    quotes: int
    key_loss: float | None = None
    key_tokens: int = 0


class WindowCheck(Exact):
    """Every value of a window check, with what it was made of; JSON by `model_dump`."""

    model: str
    lengths: list[int]
    last: int
    bins: int
    seed: int
    texts: list[str]
    """SHA-256 of each document's tokens: checks are comparable when these and the seed agree."""
    losses: list[LengthLoss]
    curve: list[BinLoss]
    needles: list[NeedleScore]
    quotes: list[QuoteScore]
    key_tokens: list[KeyToken] = Field(default_factory=list)
    key_search: KeySearch | None = None
    """None: key tokens were not looked for."""
    computation: Computation

    def summary(self) -> list[LengthSummary]:
        """One row a length, in rising order."""
        return [self._at(length) for length in self.lengths]

    def _at(self, length: int) -> LengthSummary:
        losses = [loss for loss in self.losses if loss.length == length]
        needles = [needle for needle in self.needles if needle.length == length]
        quotes = [quote for quote in self.quotes if quote.length == length]
        keys = [key.nll for key in self.key_tokens if key.length == length]
        return LengthSummary(
            length=length,
            loss=_mean(loss.nll for loss in losses),
            needle=_mean(needle.nll for needle in needles),
            needle_per_token=_mean(needle.nll_per_token for needle in needles),
            digits_right=_mean(needle.digits_right for needle in needles),
            digits_by_quarter=tuple(
                _mean(some) if some else None
                for some in by_quarter((probe.depth, probe.digits_right) for probe in needles)
            ),
            hits=_mean(float(needle.hit) for needle in needles),
            quote=_mean(quote.nll for quote in quotes),
            documents=len(losses),
            needles=len(needles),
            quotes=len(quotes),
            key_loss=_mean(keys) if keys else None,
            key_tokens=len(keys),
        )


def window_check(
    engine: Engine,
    documents: Sequence[Document],
    *,
    lengths: Sequence[int],
    needles: int = 8,
    quotes: int = 8,
    last: int = 256,
    bins: int = 1024,
    seed: int = 0,
    keys: KeyFinder | RecordedKeys | None = None,
    progress: Progress | None = None,
) -> WindowCheck:
    """Loss by position, needles and verbatim recall at each length, from one prefill a document.

    lengths    tokens; at each, haystack + question + answer fit in it. The shortest sets the
               density: it holds `needles` needles, longer lengths hold more in proportion
    needles    asked at each length, evenly over depth, of those planted so far
    quotes     spans of the text asked at each length, likewise
    last       the loss at a length is the mean over this many tokens before it
    bins       width of the bins of the loss curve, tokens
    seed       with the document's number it decides everything drawn
    keys       says which tokens gain from far context: the loss on them is given too
    progress   called with the part done, 0 to 1, in proportion to the work

    A model whose RoPE depends on the length is read once for each length.
    Raises EvaluationError when a document is too short or the needles do not fit.
    """
    lengths = checked_lengths(lengths, last)
    if needles < 1 or quotes < 1:
        raise EvaluationError(f"{needles} needles and {quotes} quotes: ask at least one of each")
    texts = [with_start(engine, document, lengths[-1], n) for n, document in enumerate(documents)]
    losses: list[LengthLoss] = []
    curve: list[BinLoss] = []
    needle_scores: list[NeedleScore] = []
    quote_scores: list[QuoteScore] = []
    key_tokens: list[KeyToken] = []
    haystacks: list[str] = []
    once = engine.work(lengths[-1])
    for number, ids_T in enumerate(texts):
        plan = _Plan(engine, ids_T, lengths, needles, quotes, last, seed, number)
        reader = _Reader(engine, plan.haystack.ids_T)
        haystacks.append(haystack_hash(plan.haystack.ids_T))

        def report(read: int, number: int = number) -> None:
            if progress is not None:
                progress((number + engine.work(read) / once) / len(texts))

        for length in lengths:
            reader.read_to(length - plan.room, report)
            asked = plan.needles_at(length)
            needle_scores += ask_needles(engine, reader.context, asked, number, length)
            quote_scores += _ask_quotes(engine, reader, plan.quotes_at(length), number, length)
            reader.read_to(length, report)
            nll_T = np.where(plan.haystack.text_T[:length], reader.nll_T[:length], np.nan)
            losses.extend(losses_at(nll_T, [length], last, number))
            if keys is not None:
                places = keys.places(number, plan.haystack.ids_T, length)
                key_tokens.extend(losses_on(nll_T, places, length, number))
        curve.extend(losses_in_bins(nll_T, bins, number))
    return WindowCheck(
        model=engine.name,
        lengths=lengths,
        last=last,
        bins=bins,
        seed=seed,
        texts=[sha256_of(ids_T.tolist()) for ids_T in texts],
        losses=losses,
        curve=curve,
        needles=needle_scores,
        quotes=quote_scores,
        key_tokens=key_tokens,
        key_search=None if keys is None else KeySearch(evaluator=keys.name, haystacks=haystacks),
        computation=engine.computation,
    )


class _Room:
    """What of each length needles and questions take, known from the tokenizer alone.

    Raises EvaluationError when needles do not fit between two lengths.
    """

    def __init__(
        self, coder: Coder, lengths: list[int], needles: int, last: int, seed: int, number: int
    ) -> None:
        count = [round(needles * length / lengths[0]) for length in lengths]
        most = len(ADJECTIVES) * len(NOUNS)
        if count[-1] > most:
            raise EvaluationError(
                f"{needles} needles at {lengths[0]} tokens are {count[-1]} at {lengths[-1]}, and "
                f"there are {most}: ask for fewer or begin at a greater length"
            )
        self.pairs = keys_and_answers(count[-1], seed, number)
        question = len(coder.encode(QUOTE)) + GIVEN + CONTINUED
        self.asked = max(longest_question(coder, self.pairs), question)
        # The end of each length stays free, for the loss over the last tokens before it and for
        # the questions.
        self.planted = max(len(coder.encode(sentence(*pair))) for pair in self.pairs)
        self.clear = max(last + SETTLE, self.asked)
        margin = self.clear + self.planted + SNAP
        self.parts: list[tuple[int, float, int]] = []
        """(start, width of a needle's part, number of needles) between two lengths."""
        for (low, length), more in zip(pairwise([0, *lengths]), np.diff([0, *count]), strict=True):
            width = (length - margin - low) / max(int(more), 1)
            if more and width < self.planted + SNAP:
                raise EvaluationError(
                    f"{more} needles do not fit between {low} and {length} tokens, of which the "
                    f"last {margin} stay free: ask for fewer or space the lengths wider"
                )
            self.parts.append((low, width, int(more)))


def require_room(
    coder: Coder, lengths: Sequence[int], *, needles: int, last: int = 256, seed: int = 0
) -> None:
    """Refuse lengths and needles that `window_check` could not use, before a model is loaded.

    Raises EvaluationError with the numbers and the remedy.
    """
    if needles < 1:
        raise EvaluationError(f"{needles} needles: ask for at least one")
    _Room(coder, checked_lengths(lengths, last), needles, last, seed, 0)


class _Plan:
    """Where needles and verbatim recall of one document stand."""

    def __init__(
        self,
        engine: Engine,
        ids_T: np.ndarray,
        lengths: list[int],
        needles: int,
        quotes: int,
        last: int,
        seed: int,
        number: int,
    ) -> None:
        rng = np.random.default_rng([seed, number, 1])
        room = _Room(engine, lengths, needles, last, seed, number)
        self.room, self._clear = room.asked, room.clear
        self._needed = needles
        self._quotes = quotes
        places: list[int] = []
        for low, width, count in room.parts:
            # One in each equal part, at random within it.
            slack = width - room.planted - SNAP
            places += [int(low + width * n + slack * rng.random()) for n in range(count)]
        self.haystack: Haystack = plant(engine, ids_T, lengths[-1], places, room.pairs)
        self._spans = self._find_spans(rng, lengths, quotes)

    def needles_at(self, length: int) -> list[Needle]:
        """The needles to ask for at a length, evenly over those before it."""
        before = [needle for needle in self.haystack.needles if needle.end <= length - self.room]
        return _evenly(before, self._needed)

    def quotes_at(self, length: int) -> list[int]:
        """Starts of the spans to recall at a length."""
        limit = length - self._clear - GIVEN - CONTINUED
        return _evenly([start for start in self._spans if start <= limit], self._quotes)

    def _find_spans(self, rng: np.random.Generator, lengths: list[int], quotes: int) -> list[int]:
        """Starts of spans of untouched text, one in each equal part before each length."""
        span = GIVEN + CONTINUED
        whole = np.convolve(self.haystack.text_T, np.ones(span), "valid") == span
        starts = np.flatnonzero(whole)
        spans: list[int] = []
        for low, length in pairwise([0, *lengths]):
            count = round(quotes * (length - low) / lengths[0])
            edges = np.linspace(max(low, 1), max(length - self._clear - span, low + 1), count + 1)
            for start, end in pairwise(edges):
                inside = starts[(starts >= start) & (starts < end)]
                spans += [int(rng.choice(inside))] if len(inside) else []
        return spans


class _Reader:
    """Reads a haystack on and keeps the loss of every token, float64[T], NaN where unread."""

    def __init__(self, engine: Engine, ids_T: np.ndarray) -> None:
        self.engine = engine
        self.ids_T = ids_T
        self.context: Context = engine.context()
        self.nll_T = np.full(len(ids_T), np.nan)

    def read_to(self, end: int, report: Callable[[int], None]) -> None:
        start = self.context.length
        if self.engine.length_dependent and start:
            self.context, start = self.engine.context(), 0
        step = end if self.engine.length_dependent else self.engine.chunk
        for low in range(start, end, step):
            high = min(low + step, end)
            scores = self.context.extend(self.ids_T[low:high], scored=high - low)
            self.nll_T[low:high] = scores.nll_T
            report(high)


def _ask_quotes(
    engine: Engine, reader: _Reader, starts: Sequence[int], document: int, length: int
) -> list[QuoteScore]:
    introduction = engine.encode(QUOTE)
    spans = [reader.ids_T[start : start + GIVEN + CONTINUED].tolist() for start in starts]
    pairs = [([*introduction, *span[:GIVEN]], span[GIVEN:]) for span in spans]
    return [
        QuoteScore(
            document=document,
            length=length,
            position=start,
            depth=start / length,
            tokens=CONTINUED,
            nll=scores.mean,
            right=float(scores.right_T.mean()),
        )
        for start, scores in zip(starts, reader.context.ask_all(pairs), strict=True)
    ]


def _evenly(items: list[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spread, in order."""
    if len(items) <= count:
        return items
    return [items[int((n + 0.5) * len(items) / count)] for n in range(count)]


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else 0.0
