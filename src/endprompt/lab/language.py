"""A made-up language whose questions need the whole text, in five kinds as RULER asks them.

Text is filler, a fixed bigram language over 32 tokens, with statements between. A key is two
tokens (a, b), so that keys share halves and both must be matched; a value is one token.

    a b v                single and multi-key: the pair comes again later, and then v is known
    + a b v              one more value of a key;          values? a b v1 v2      names them all
    := a' b' a b         an assignment;                    chain?  a' b' a b v    follows it
    w                    one of eight words to count;      most?   w              the most frequent

Every statement can come again, so plain text teaches retrieval at all distances that it holds.
Documents are functions of seed and index alone. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from endprompt.errors import RecipeError

Ints = NDArray[np.int64]
Kind = Literal["single", "multikey", "multivalue", "chain", "count"]
KINDS: tuple[Kind, ...] = get_args(Kind)

BOS, END, OPEN, CLOSE = range(4)
PLUS, ASSIGN, VALUES, CHAIN, MOST = range(4, 9)
WORDS = range(9, 21)
"""Tokens for the words of fixed cues, which mean nothing in the language."""
FILLER = range(21, 53)
FIRST = range(53, 79)
SECOND = range(79, 127)
VALUE = range(127, 159)
COUNTED = range(159, 167)
VOCABULARY = 167

SUCCESSORS = 6
SECTIONS = 8
"""A document's counted words come in sections, each with a favourite of its own, so that the
most frequent word of the whole is not that of its end."""
FAVOURITES = (3, 2, 2, 1)
"""Sections that the four most frequent words of a document have."""
QUESTIONS = 4
"""Questions at the end of an examination, but for counting: one."""
LONGEST = 8
"""Tokens of the longest statement."""
STRATA = 8
"""Depths that needles are drawn from: the first eighth of the text to the last."""

Pair = tuple[int, int]
Thing = TypeVar("Thing")


@lru_cache(maxsize=1)
def _bigrams() -> tuple[Ints, NDArray[np.float64]]:
    """Six successors of each filler token and their cumulative shares (Zipf)."""
    rng = np.random.default_rng(20_24)
    follow = np.stack([rng.permutation(len(FILLER))[:SUCCESSORS] for _ in FILLER])
    shares = 1.0 / np.arange(1, SUCCESSORS + 1)
    return follow, np.cumsum(shares / shares.sum())


@dataclass
class _Writer:
    """Writes one text, and knows what it has stated so far."""

    rng: np.random.Generator
    kinds: tuple[Kind, ...]
    taken: set[Pair] = field(default_factory=set)
    """Keys that the running text may not use."""
    unshared: set[int] = field(default_factory=set)
    """Second halves that the running text may not use."""
    tokens: list[int] = field(default_factory=list)
    values: dict[Pair, int] = field(default_factory=dict)
    several: dict[Pair, list[int]] = field(default_factory=dict)
    chains: dict[Pair, Pair] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._state = int(self.rng.integers(len(FILLER)))
        self._draws: list[float] = []
        words = [int(w) for w in self.rng.permutation(len(COUNTED))[: len(FAVOURITES)]]
        sections = [w for w, n in zip(words, FAVOURITES, strict=True) for _ in range(n)]
        self.favourites = [COUNTED[sections[i]] for i in self.rng.permutation(SECTIONS)]

    def uniform(self) -> float:
        """A draw in [0, 1); drawn in blocks, which is what makes the writer quick."""
        if not self._draws:
            self._draws = self.rng.random(256).tolist()
        return self._draws.pop()

    def one_of(self, some: Sequence[Thing]) -> Thing:
        return some[int(self.uniform() * len(some))]

    def filler(self, length: int) -> None:
        follow, shares = _bigrams()
        for _ in range(length):
            place = int(np.searchsorted(shares, self.uniform() * 0.999999, side="right"))
            self._state = int(follow[self._state, place])
            self.tokens.append(FILLER[self._state])

    def new_key(self) -> Pair:
        """A key that nothing in the text has; claims it."""
        for _ in range(1000):
            pair = self.one_of(FIRST), self.one_of(SECOND)
            if pair not in self.taken and pair[1] not in self.unshared:
                self.taken.add(pair)
                return pair
        raise RecipeError("the laboratory's language ran out of keys: use a shorter target")

    def event(self, section: int) -> list[int]:
        """The next statement of the running text, with what it makes known."""
        u = self.uniform()
        if u < 0.25 and "count" in self.kinds:
            favourite = self.uniform() < 0.8
            word = self.favourites[section] if favourite else self.one_of(COUNTED)
            self.counts[word] = self.counts.get(word, 0) + 1
            return [word]
        u = self.uniform()
        if u < 0.05 and "count" in self.kinds and self.lead() > 0:
            return [MOST, self.leader()]
        if 0.05 <= u < 0.17 and "multivalue" in self.kinds:
            open_keys = [key for key, values in self.several.items() if len(values) < 2]
            key = self.one_of(open_keys) if open_keys and self.uniform() < 0.6 else self.new_key()
            values = self.several.setdefault(key, [])
            values.append(self.one_of([v for v in VALUE if v not in values]))
            return [PLUS, *key, values[-1]]
        if 0.17 <= u < 0.25 and "multivalue" in self.kinds:
            full = [key for key, values in self.several.items() if len(values) == 2]
            if full:
                key = self.one_of(full)
                return [VALUES, *key, *self.several[key]]
        if 0.25 <= u < 0.36 and "chain" in self.kinds and self.values:
            key, onto = self.new_key(), self.one_of([*self.values, *self.chains])
            if self._steps(onto) < 2:
                self.chains[key] = onto
                return [ASSIGN, *key, *onto]
        if 0.36 <= u < 0.48 and "chain" in self.kinds and self.chains:
            return [CHAIN, *self.follow(self.one_of(list(self.chains)))]
        if self.values and self.uniform() < 0.5:
            key = self.one_of(list(self.values))
            return [*key, self.values[key]]
        key = self.new_key()
        self.values[key] = self.one_of(VALUE)
        return [*key, self.values[key]]

    def leader(self) -> int:
        """The counted word that came most often so far."""
        return max(self.counts, key=lambda word: (self.counts[word], -word))

    def lead(self) -> int:
        """By how many it leads."""
        most, next_ = sorted([0, 0, *self.counts.values()], reverse=True)[:2]
        return most - next_

    def _steps(self, key: Pair) -> int:
        steps = 0
        while key in self.chains:
            key, steps = self.chains[key], steps + 1
        return steps

    def follow(self, key: Pair) -> list[int]:
        """The keys from `key` on and the value at the end of its chain."""
        values = [*key]
        while key in self.chains:
            key = self.chains[key]
            values += key
        return [*values, self.values[key]]

    def run_to(self, length: int, planted: list[tuple[int, list[int]]] | None = None) -> None:
        """Write on to exactly `length` tokens; a planted statement comes once its place is reached.

        Statements that no longer fit are left out: the text ends in filler.
        """
        waiting = sorted(planted or [], key=lambda place: -place[0])
        owed = sum(len(statement) for _, statement in waiting)
        while len(self.tokens) < length:
            self.filler(min(1 + int(self.uniform() * 4), length - len(self.tokens) - owed))
            if waiting and (
                len(self.tokens) >= waiting[-1][0] or length - len(self.tokens) < owed + LONGEST
            ):
                statement = waiting.pop()[1]
                owed -= len(statement)
            elif length - len(self.tokens) < LONGEST:
                continue
            else:
                statement = self.event(min(SECTIONS * len(self.tokens) // length, SECTIONS - 1))
            self.tokens += statement


def document(tokens: int, seed: tuple[int, ...], kinds: tuple[Kind, ...] = KINDS) -> Ints:
    """A document int[tokens], BOS first; the same for the same seed."""
    writer = _Writer(np.random.default_rng([1, *seed]), kinds, tokens=[BOS])
    writer.run_to(tokens)
    return np.array(writer.tokens, dtype=np.int64)


class Corpus:
    """`count` documents of `tokens` each, in the form that rows are cut from."""

    def __init__(self, count: int, tokens: int, seed: int, kinds: tuple[Kind, ...]) -> None:
        self.lengths = np.full(count, tokens, dtype=np.int64)
        self._documents = np.stack([document(tokens, (seed, n), kinds) for n in range(count)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Ints:
        return self._documents[index]


@dataclass(frozen=True)
class Question:
    """Answer tokens and where they stand in an examination; `any_order` for several values."""

    start: int
    answer: tuple[int, ...]
    depth: float
    """0 at the start of the text, 1 at its end."""
    any_order: bool = False


@dataclass(frozen=True)
class Examination:
    """A document int[n] that ends in questions with their answers."""

    tokens_T: Ints
    questions: tuple[Question, ...]


def examination(
    kind: Kind, tokens: int, seed: tuple[int, ...], kinds: tuple[Kind, ...] = KINDS
) -> Examination:
    """A document that ends in questions of one kind about needles in their depth strata.

    A needle is stated once. A single needle shares neither half of its key's second token with
    anything; a multi-key needle stands among others that share either half.
    """
    rng = np.random.default_rng([2, KINDS.index(kind), tokens, *seed])
    if kind == "count":
        return _counting(rng, tokens, kinds)
    writer = _Writer(rng, kinds, tokens=[BOS])
    planted: list[tuple[float, list[int]]] = []
    asked: list[tuple[float, list[int], tuple[int, ...]]] = []
    first = seed[-1] % (STRATA // QUESTIONS)
    for n in range(QUESTIONS):
        depth = (first + n * (STRATA // QUESTIONS) + rng.random()) / STRATA
        key, value = writer.new_key(), writer.one_of(VALUE)
        if kind == "single":
            writer.unshared.add(key[1])
        if kind == "multikey":
            others = [
                pair
                for pair in [(a, key[1]) for a in FIRST] + [(key[0], b) for b in SECOND]
                if pair not in writer.taken
            ]
            for i in rng.permutation(len(others))[:3]:
                writer.taken.add(others[i])
                planted.append((rng.random(), [*others[i], writer.one_of(VALUE)]))
        if kind in ("single", "multikey"):
            planted.append((depth, [*key, value]))
            asked.append((depth, [*key], (value,)))
        elif kind == "multivalue":
            second = writer.one_of([v for v in VALUE if v != value])
            places = sorted([depth, rng.random()])
            planted += zip(places, [[PLUS, *key, value], [PLUS, *key, second]], strict=True)
            asked.append((places[0], [VALUES, *key], (value, second)))
        else:
            steps = 1 + n % 2
            keys = [key, *(writer.new_key() for _ in range(steps))]
            places = sorted([depth, *rng.random(steps)])
            planted.append((places[0], [*key, value]))
            planted += [
                (place, [ASSIGN, *new, *old])
                for place, new, old in zip(places[1:], keys[1:], keys, strict=False)
            ]
            trail = [half for pair in reversed(keys[:-1]) for half in pair]
            asked.append((places[0], [CHAIN, *keys[-1]], (*trail, value)))
    body = tokens - sum(len(question) + len(answer) for _, question, answer in asked)
    owed = sum(len(statement) for _, statement in planted)
    if owed + 1 > body:
        raise RecipeError(f"an examination of {tokens} tokens has no room for its needles")
    writer.run_to(body, [(int(depth * (body - owed)), statement) for depth, statement in planted])
    questions = []
    for i in rng.permutation(len(asked)):
        depth, question, answer = asked[i]
        writer.tokens += question
        start = len(writer.tokens)
        questions.append(Question(start, answer, depth, any_order=kind == "multivalue"))
        writer.tokens += answer
    return Examination(np.array(writer.tokens, dtype=np.int64), tuple(questions))


def _counting(rng: np.random.Generator, tokens: int, kinds: tuple[Kind, ...]) -> Examination:
    for _ in range(100):
        writer = _Writer(rng, kinds, tokens=[BOS])
        writer.run_to(tokens - 2)
        if writer.lead() > 1:
            text = np.array([*writer.tokens, MOST, writer.leader()], dtype=np.int64)
            return Examination(text, (Question(tokens - 1, (writer.leader(),), 0.5),))
    raise RecipeError(f"texts of {tokens} tokens are too short for the laboratory to count in")
