"""Needles in a haystack of real text: planted as sentences, asked from one cached prefill.

A needle is a sentence `The code of the amber lantern is 4716302.` The question, put after the
haystack at its natural position, is the same sentence up to the number; the answer is scored by
its likelihood and digit by digit, so that a small model's progress shows before it hits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from endprompt import distances
from endprompt.errors import EvaluationError
from endprompt.eval.perplexity import Document, Progress, checked_lengths, with_start
from endprompt.io.provenance import Computation
from endprompt.record import Exact

if TYPE_CHECKING:
    from endprompt.eval.engine import Coder, Context, Engine

ADJECTIVES = (
    "amber azure bitter blue brass bright broken bronze calm clever cold copper crimson crooked "
    "dark deep distant dusty early eager empty faded fierce foggy gentle golden grand green hollow "
    "honest hungry icy idle iron ivory jolly late lonely loud marble narrow noble pale patient "
    "plain polished proud purple quiet rapid restless rough royal rusty scarlet secret shallow "
    "silent silver sleepy steep stormy sunny tall velvet wandering warm weary wild wooden yellow"
).split()
NOUNS = (
    "anchor arrow barrel basket beacon bell bottle bridge bucket cabin candle canyon carpet castle "
    "cellar chapel clock compass cottage curtain dagger desert engine falcon ferry fiddle fountain "
    "garden glove guitar hammer harbour helmet island jacket kettle kingdom ladder lantern library "
    "market meadow mirror mountain museum needle oar orchard palace parrot pebble pillow pocket "
    "puzzle rabbit ribbon saddle sailor shovel spoon statue station table teapot temple thunder "
    "tiger tower tunnel turtle valley violin wagon wallet whistle window"
).split()

DIGITS = 7
SNAP = 48
"""A sentence is planted at the end of one of the text's, if one ends within so many tokens."""
SETTLE = 16
"""Text tokens right after a needle whose loss is left out: they follow an interruption."""


@dataclass(frozen=True)
class Needle:
    """A planted sentence: tokens start .. end-1 of the haystack."""

    key: str
    answer: str
    start: int
    end: int


@dataclass(frozen=True)
class Haystack:
    """Text with needles in it.

    ids_T     int64[T]
    text_T    bool[T], true where a token is the text's own and not just after a needle
    """

    ids_T: np.ndarray
    text_T: np.ndarray
    needles: list[Needle]


class NeedleScore(Exact):
    """One needle asked at one length.

    position        token of the haystack at which the needle starts
    depth           position divided by length
    nll             nats, sum over the answer's tokens; nll_per_token: their mean
    digits_right    part of the digits that are the likeliest token, the ones before being given
    hit             all tokens are the likeliest: greedy decoding writes the answer
    """

    document: int
    length: int
    key: str
    answer: str
    position: int
    depth: float
    tokens: int
    nll: float
    nll_per_token: float
    digits_right: float
    hit: bool


class NeedleGrid(Exact):
    """Every needle of a grid of depths and lengths."""

    lengths: list[int]
    depths: list[float]
    seed: int
    documents: int
    scores: list[NeedleScore]
    computation: Computation

    def grid(self, value: str = "hit") -> np.ndarray:
        """Means over documents, float64[depths, lengths], of one field of `NeedleScore`."""
        cells = np.zeros((len(self.depths), len(self.lengths), 2))
        places = dict(zip(self.lengths, range(len(self.lengths)), strict=True))
        seen: dict[tuple[int, int], int] = {}
        for score in self.scores:
            key = (score.document, score.length)
            row = seen[key] = seen.get(key, -1) + 1
            cells[row, places[score.length]] += (float(getattr(score, value)), 1.0)
        return cells[..., 0] / cells[..., 1]

    def by_quarter(self, length: int, value: str = "digits_right") -> list[float | None]:
        """Means at one length by distance, farthest quarter first; None where no needle stands."""
        scores = ((s.depth, float(getattr(s, value))) for s in self.scores if s.length == length)
        return [float(np.mean(some)) if some else None for some in distances.by_quarter(scores)]


def needle_grid(
    engine: Engine,
    documents: Sequence[Document],
    *,
    lengths: Sequence[int],
    depths: Sequence[float] | None = None,
    needles: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> NeedleGrid:
    """Plant needles at each depth of each document, and ask for all of them, at each length.

    lengths    tokens of haystack, question and answer together
    depths     where the needles stand, 0 (beginning) to 1 (end); all in one haystack
    needles    how many evenly spread depths, when none are given
    seed       with the document's number it decides keys and answers

    One prefill for each document and length. Raises EvaluationError when a document is too short
    or the needles do not fit.
    """
    lengths = checked_lengths(lengths, 1)
    depths = list(depths) if depths is not None else [(n + 0.5) / needles for n in range(needles)]
    if not depths or min(depths) < 0 or max(depths) > 1 or depths != sorted(depths):
        raise EvaluationError(f"depths {depths}: give rising numbers from 0 to 1")
    texts = [with_start(engine, document, lengths[-1], n) for n, document in enumerate(documents)]
    total = len(texts) * sum(engine.work(length) for length in lengths)
    done = 0.0
    scores: list[NeedleScore] = []
    for number, ids_T in enumerate(texts):
        pairs = keys_and_answers(len(depths), seed, number)
        room = longest_question(engine, pairs)
        for length in lengths:
            places = [round(depth * (length - room)) for depth in depths]
            stack = plant(engine, ids_T, length - room, places, pairs)
            context = engine.context()
            context.extend(stack.ids_T)
            scores.extend(ask_needles(engine, context, stack.needles, number, length))
            done += engine.work(length)
            if progress is not None:
                progress(done / total)
    return NeedleGrid(
        lengths=lengths,
        depths=depths,
        seed=seed,
        documents=len(texts),
        scores=scores,
        computation=engine.computation,
    )


def keys_and_answers(count: int, seed: int, document: int) -> list[tuple[str, str]]:
    """Distinct keys of two words, each with its answer of seven digits."""
    rng = np.random.default_rng([seed, document])
    picked = rng.choice(len(ADJECTIVES) * len(NOUNS), size=count, replace=False)
    answers = rng.integers(10 ** (DIGITS - 1), 10**DIGITS, size=count)
    return [
        (f"{ADJECTIVES[n // len(NOUNS)]} {NOUNS[n % len(NOUNS)]}", str(answer))
        for n, answer in zip(picked.tolist(), answers.tolist(), strict=True)
    ]


def sentence(key: str, answer: str) -> str:
    """What is planted."""
    return f" The code of the {key} is {answer}."


def question_and_answer(coder: Coder, key: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of the question and of the number, as the tokenizer writes them in one text.

    A token that holds only the space before the number belongs to the question.
    """
    return split_answer(coder, f"\n\nAs written above, the code of the {key} is", f" {answer}")


def split_answer(coder: Coder, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of a question and of what follows it, as the tokenizer writes them in one text.

    A token that holds only space before the answer belongs to the question.
    """
    asked = coder.encode(question)
    whole = coder.encode(question + answer)
    same = 0
    while same < len(asked) and asked[same] == whole[same]:
        same += 1
    while not coder.decode(whole[same : same + 1]).strip():
        same += 1
    return whole[:same], whole[same:]


def longest_question(coder: Coder, pairs: Sequence[tuple[str, str]]) -> int:
    """Tokens of the longest question with its answer."""
    return max(sum(map(len, question_and_answer(coder, *pair))) for pair in pairs)


def plant(
    coder: Coder,
    text_ids: np.ndarray,
    length: int,
    places: Sequence[int],
    pairs: Sequence[tuple[str, str]],
) -> Haystack:
    """Put needles into a text, cut at token level.

    text_ids   int64[>= length]
    length     tokens of the haystack, needles included
    places     rising; each needle starts there, or up to SNAP tokens later at a sentence's end

    Raises EvaluationError when the needles do not fit one after the other.
    """
    sentences = [coder.encode(sentence(*pair)) for pair in pairs]
    ends = _sentence_ends(coder, text_ids)
    parts: list[np.ndarray] = []
    own: list[np.ndarray] = []
    needles: list[Needle] = []
    first = len(coder.start_ids)
    size = used = 0
    for (key, answer), ids, place in zip(pairs, sentences, places, strict=True):
        # Never before the tokenizer's start tokens.
        latest = max(min(place, length - len(ids)), first)
        take = latest - size
        if take < 0:
            raise EvaluationError(
                f"{len(pairs)} needles of some {len(ids)} tokens do not fit in {length} tokens: "
                "plant fewer or give a longer length"
            )
        room = min(SNAP, length - len(ids) - latest)
        near = np.flatnonzero(ends[used + take : used + take + room + 1])
        take += int(near[0]) if len(near) else 0
        parts += [text_ids[used : used + take], np.asarray(ids, dtype=np.int64)]
        own += [np.ones(take, dtype=bool), np.zeros(len(ids), dtype=bool)]
        used += take
        size += take
        needles.append(Needle(key, answer, size, size + len(ids)))
        size += len(ids)
    parts.append(text_ids[used : used + length - size])
    own.append(np.ones(length - size, dtype=bool))
    text_T = np.concatenate(own)
    for needle in needles:
        text_T[needle.end : needle.end + SETTLE] = False
    return Haystack(np.concatenate(parts), text_T, needles)


def ask_needles(
    engine: Engine, context: Context, needles: Sequence[Needle], document: int, length: int
) -> list[NeedleScore]:
    """Score the needles' answers from a context that holds them."""
    pairs = [question_and_answer(engine, needle.key, needle.answer) for needle in needles]
    scored = []
    for needle, (_, answer), scores in zip(needles, pairs, context.ask_all(pairs), strict=True):
        digits = [len(engine.decode([token]).strip()) for token in answer]
        scored.append(
            NeedleScore(
                document=document,
                length=length,
                key=needle.key,
                answer=needle.answer,
                position=needle.start,
                depth=needle.start / length,
                tokens=len(answer),
                nll=scores.total,
                nll_per_token=scores.mean,
                digits_right=float(np.average(scores.right_T, weights=digits)),
                hit=scores.exact,
            )
        )
    return scored


def _sentence_ends(coder: Coder, ids_T: np.ndarray) -> np.ndarray:
    """bool[T]: a sentence or a line ends right before this token."""
    unique, where_T = np.unique(ids_T, return_inverse=True)
    closes = np.array(
        [
            coder.decode([int(token)]).rstrip(" \"'”").endswith((".", "!", "?", "\n"))
            for token in unique
        ]
    )
    ends = np.zeros(len(ids_T), dtype=bool)
    ends[1:] = closes[where_T][:-1]
    return ends
