"""One RULER prompt of a given size, for each family of tasks.

The order in which random numbers are drawn is that of NVIDIA's generator: the same seed gives the
same prompt. A builder never counts tokens; what size fits is decided in `generate`.
"""

from __future__ import annotations

import math
import random
import string
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Protocol

import numpy as np

from endprompt.eval.ruler.data import Data, Question, Source
from endprompt.eval.ruler.tasks import (
    CommonWords,
    FrequentWords,
    Needles,
    Questions,
    Tracking,
)
from endprompt.eval.ruler.templates import Wording, templates
from endprompt.eval.ruler.words import all_words, compounds

DEPTHS = np.round(np.linspace(0, 100, num=40)).astype(int).tolist()
"""Places in an essay, in percent, at which needles can stand."""

ZETA_2 = math.pi**2 / 6
"""The zeta distribution's constant at exponent 2, the published one."""

ROOM_PER_WORD = 50
"""Tokens of a prompt of `fwe` for each coded word of its vocabulary."""

SHORT = 4096
"""Below this length the published generator takes smaller steps and other lists."""


@dataclass(frozen=True)
class Draft:
    """A prompt of some size, before it is known whether it fits."""

    body: str
    answer_prefix: str
    outputs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole prompt."""
        return self.body + self.answer_prefix


@dataclass(frozen=True)
class Wrap:
    """What a chat template puts around the question: nothing for base models."""

    head: str = ""
    tail: str = ""


class Unlucky(Exception):
    """A draw that the published generator breaks off: it draws again, a step smaller."""


class Builder(Protocol):
    """Draws prompts of one task.

    step      the published step between sizes, also the smallest size that it tries
    sources   the texts used
    """

    step: int
    sources: list[Source]

    def floor(self, index: int) -> int:
        """The smallest size of sample `index` that still holds all fixed parts."""
        ...

    def build(self, size: int, index: int) -> Draft:
        """A prompt with `size` units of distraction, for sample `index`."""
        ...


class NeedleBuilder:
    """Keys and values hidden in noise, in essays, or among other needles."""

    def __init__(self, settings: Needles, length: int, seed: int, wrap: Wrap, data: Data) -> None:
        self._settings = settings
        self._seed = seed
        self._draw = random.Random(seed)
        self._needle = templates().needle.replace("{type_needle_v}", settings.values)
        single = settings.num_queries * settings.num_values == 1
        wording = templates().niah
        question, prefix = wording.question, wording.answer_prefix
        kind = settings.values
        if single:
            kind = kind.removesuffix("s")
            question, prefix = _singular(question), _singular(prefix)
        self._wording = _named(wrap, Wording(question, prefix), type_needle_v=kind)
        self._new = {
            "words": partial(self._draw.choice, compounds()),
            "numbers": lambda: str(self._draw.randint(10**6, 10**7 - 1)),
            "uuids": lambda: str(uuid.UUID(int=self._draw.getrandbits(128), version=4)),
        }
        self.sources: list[Source] = []
        if settings.haystack == "essay":
            self._essays = data.essays()
            self.sources = [data.source("essays"), data.source("sentences")]
            self.step = 500
        else:
            self.step = 5 if length < SHORT else 25

    def floor(self, index: int) -> int:
        del index
        return 1

    def build(self, size: int, index: int) -> Draft:
        del index
        settings, draw = self._settings, self._draw
        new_key, new_value = self._new[settings.keys], self._new[settings.values]
        keys, values, needles = [], [], []
        for _ in range(settings.num_keys):
            keys.append(new_key())
            values.append([new_value() for _ in range(settings.num_values)])
            needles += [self._needle.format(key=keys[-1], value=value) for value in values[-1]]
        random.Random(self._seed).shuffle(needles)
        if settings.haystack == "essay":
            context = self._in_essay(size, needles)
        else:
            context = self._in_lines(size, needles, new_key, new_value)
        asked = draw.sample(range(settings.num_keys), settings.num_queries)
        *others, last = (keys[at] for at in asked)
        query = f"{', '.join(others)}, and {last}" if others else last
        return Draft(
            self._wording.question.format(context=context, query=query),
            self._wording.answer_prefix.format(query=query),
            tuple(value for at in asked for value in values[at]),
        )

    def _in_essay(self, size: int, needles: list[str]) -> str:
        sentences = self._essays.first(size)
        depths = self._draw.sample(DEPTHS, len(needles))
        cuts = sorted(int(len(sentences) * (depth / 100)) for depth in depths)
        parts = []
        for start, end, needle in zip([0, *cuts], cuts, needles, strict=False):
            parts += [" ".join(sentences[start:end]), needle]
        return " ".join([*parts, " ".join(sentences[cuts[-1] :])])

    def _in_lines(
        self,
        size: int,
        needles: list[str],
        new_key: Callable[[], str],
        new_value: Callable[[], str],
    ) -> str:
        if self._settings.haystack == "noise":
            lines = [templates().noise] * size
        else:
            lines = [self._needle.format(key=new_key(), value=new_value()) for _ in range(size)]
        places = sorted(self._draw.sample(range(size), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)


class TrackingBuilder:
    """A chain of assignments hidden in noise, after one small demonstration.

    `demonstration` must be set from a prompt of `demonstrating` before full prompts are built.
    """

    def __init__(self, settings: Tracking, length: int, seed: int, wrap: Wrap, data: Data) -> None:
        del data
        self._hops = settings.hops
        self._draw = random.Random(seed)
        self._numbers = np.random.RandomState(seed)
        self._plain = templates().vt
        self._wording = _named(wrap, self._plain)
        self._head = wrap.head
        self.demonstration: str | None = None
        self.step = 5 if length < SHORT else 10
        self.sources: list[Source] = []

    def floor(self, index: int) -> int:
        del index
        return self._hops + 1

    def demonstrating(self, size: int) -> Draft:
        """A prompt with names of three letters, never in a chat template."""
        return self._draft(size, self._plain, letters=3, value="12345")

    def measured(self, size: int) -> Draft:
        """A prompt without its demonstration, which is counted once."""
        return self._draft(size, self._wording, letters=5, value=None)

    def build(self, size: int, index: int) -> Draft:
        del index
        draft = self.measured(size)
        shown = self._fresh_demonstration() + "\n"
        body = self._head + shown + draft.body.removeprefix(self._head)
        return Draft(body, draft.answer_prefix, draft.outputs)

    def _draft(self, size: int, wording: Wording, *, letters: int, value: str | None) -> Draft:
        count = self._hops + 1
        # A name drawn twice gets a substitute behind the others; the published code takes that
        # for the beginning of a second chain, draws its value and fails.
        names = [self._name(letters) for _ in range(count)]
        while len(set(names)) < count:
            names.append(self._name(letters))
        if value is None:
            value = str(self._numbers.randint(10000, 99999))
            if len(names) > count:
                self._numbers.randint(10000, 99999)
        if len(names) > count:
            raise Unlucky("two variables of one name")
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {b} = VAR {a} " for a, b in pairwise(names)]
        lines = [templates().noise] * size
        places = sorted(self._draw.sample(range(size), count))
        for shift, (place, assignment) in enumerate(zip(places, chain, strict=True)):
            lines.insert(place + shift, assignment)
        context = "\n".join(lines).replace(". \n", ".\n")
        return Draft(
            wording.question.format(context=context, query=value),
            wording.answer_prefix.format(query=value, num_v=count),
            tuple(names),
        )

    def _name(self, letters: int) -> str:
        return "".join(self._draw.choices(string.ascii_uppercase, k=letters))

    def _fresh_demonstration(self) -> str:
        """The demonstration with new names and a new value."""
        assert self.demonstration is not None
        shown = self.demonstration
        for name in shown.strip().split()[-self._hops - 1 :]:
            shown = shown.replace(name, self._name(len(name)))
        return shown.replace("12345", str(self._numbers.randint(10000, 99999)))


class CommonWordsBuilder:
    """A numbered list in which ten words come more often, after one small demonstration."""

    step = 10

    def __init__(
        self, settings: CommonWords, length: int, seed: int, wrap: Wrap, data: Data
    ) -> None:
        self._settings = settings
        self._short = length < SHORT
        self._draw = random.Random(seed)
        self._data = data
        self._wording = _named(wrap, templates().cwe)
        words = list(all_words())
        random.Random(seed).shuffle(words)
        self._words = words
        self._orders = lru_cache(maxsize=4)(lambda count: _order(count, seed))
        self.sources: list[Source] = []

    def floor(self, index: int) -> int:
        del index
        return self._settings.common

    def build(self, size: int, index: int) -> Draft:
        del index
        settings, prefix = self._settings, self._wording.answer_prefix
        if self._short:
            shown, shown_common = self._list(20, 3, 1)
            asked, common = self._list(size, 6, 1)
        else:
            shown, shown_common = self._list(40, 10, 3)
            asked, common = self._list(size, settings.common_repeats, settings.other_repeats)
        question = self._wording.question
        return Draft(
            f"{question.format(context=shown)}{prefix} {_numbered(shown_common)}\n"
            f"{question.format(context=asked)}",
            prefix,
            common,
        )

    def _list(self, size: int, repeats: int, others: int) -> tuple[str, tuple[str, ...]]:
        words = self._draw.sample(self._known(size), size)
        common = min(self._settings.common, size)  # the published reduction goes below ten words
        ranks = list(range(common)) * repeats + list(range(common, size)) * others
        order = self._orders(len(ranks))
        return _numbered(words[ranks[at]] for at in order), tuple(words[:common])

    def _known(self, size: int) -> Sequence[str]:
        if size <= len(self._words):
            return self._words
        known = self._data.english_words()
        source = self._data.source("english_words")
        if source not in self.sources:
            self.sources.append(source)
        return known


class FrequentWordsBuilder:
    """Coded words whose counts fall as a zeta distribution; sized in words, not in steps."""

    def __init__(self, settings: FrequentWords, room: int, seed: int, wrap: Wrap) -> None:
        self._word_length = settings.word_length
        self._draw = random.Random(seed)
        self._wording = _named(wrap, templates().fwe)
        self.vocabulary_size = room // ROOM_PER_WORD
        self._orders = lru_cache(maxsize=8)(lambda count: _order(count, seed))
        self._seed = seed
        self.sources: list[Source] = []

    def vocabulary(self) -> list[str]:
        """New coded words in the order of their frequency; the first is a row of dots."""
        words = [self._word() for _ in range(self.vocabulary_size)]
        known = set(words)
        while len(known) < self.vocabulary_size:
            known.add(self._word())
        ranked = sorted(known)
        random.Random(self._seed).shuffle(ranked)
        ranked[0] = "..."
        return ranked

    def build(self, size: int, vocabulary: list[str]) -> Draft:
        """A text of about `size` words."""
        ranks = np.arange(1, len(vocabulary) + 1)
        counts = (size * (ranks**-2.0) / ZETA_2).astype(int).clip(0)
        words = [
            word for word, n in zip(vocabulary, counts.tolist(), strict=True) for _ in range(n)
        ]
        text = " ".join([words[at] for at in self._orders(len(words))])
        return Draft(
            self._wording.question.format(context=text),
            self._wording.answer_prefix,
            tuple(vocabulary[1:4]),
        )

    def _word(self) -> str:
        return "".join(self._draw.choices(string.ascii_lowercase, k=self._word_length))


class QuestionBuilder:
    """A question, its documents, and others drawn from the same collection."""

    step = 10

    def __init__(self, settings: Questions, length: int, seed: int, wrap: Wrap, data: Data) -> None:
        del length
        self._collection = data.collection(settings.source)
        self._draw = random.Random(seed)
        self._seed = seed
        self._wording = _named(wrap, templates().qa)
        self.sources = [data.source(settings.source)]

    @property
    def available(self) -> int:
        """Number of questions, thus of samples."""
        return len(self._collection.questions)

    def floor(self, index: int) -> int:
        return len(self._collection.questions[index].context)

    def build(self, size: int, index: int) -> Draft:
        question = self._collection.questions[index]
        documents = self._documents(size, question)
        random.Random(self._seed).shuffle(documents)
        template = templates().document
        context = "\n\n".join(
            template.format(i=number, document=text) for number, text in enumerate(documents, 1)
        )
        return Draft(
            self._wording.question.format(context=context, query=question.text),
            self._wording.answer_prefix,
            question.answers,
        )

    def _documents(self, size: int, question: Question) -> list[str]:
        documents, own, related = self._collection.documents, question.context, question.related
        if size >= len(documents):
            repeats = -(-size // len(documents))
            return list((documents * repeats)[:size])
        more = size - len(own)
        if more <= len(related):
            chosen = [*own, *self._draw.sample(related, more)]
        else:
            taken = sorted({*own, *related})
            places = self._draw.sample(
                range(len(documents) - len(taken)), max(0, more - len(related))
            )
            chosen = [*own, *related, *(_skipping(taken, place) for place in places)]
        return [documents[number] for number in chosen]


# -- small parts -----------------------------------------------------------------------------


def _named(wrap: Wrap, wording: Wording, **known: str) -> Wording:
    """A wording inside a chat template, with some of its names filled in."""
    question, prefix = wording.question, wording.answer_prefix
    for name, value in known.items():
        question = question.replace(f"{{{name}}}", value)
        prefix = prefix.replace(f"{{{name}}}", value)
    return Wording(_literal(wrap.head) + question + _literal(wrap.tail), prefix)


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _singular(text: str) -> str:
    """The published wording for one needle: what `are` becomes, the sentence around it keeps."""
    for plural, singular in (
        ("Some", "A"),
        ("are all", "is"),
        ("are", "is"),
        ("answers", "answer"),
    ):
        text = text.replace(plural, singular)
    return text


def _numbered(words: Iterable[str]) -> str:
    return " ".join([f"{number}. {word}" for number, word in enumerate(words, 1)])


def _order(count: int, seed: int) -> list[int]:
    """The order in which a shuffle of `count` things with this seed leaves them."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _skipping(taken: list[int], place: int) -> int:
    """The number of the `place`-th document that is not among those taken (sorted)."""
    for number in taken:
        if number > place:
            break
        place += 1
    return place
