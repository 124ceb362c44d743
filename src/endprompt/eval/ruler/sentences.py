"""Sentences of an essay's beginning, split as NLTK's `sent_tokenize` does.

RULER splits the beginning of the essays again for every size that it tries and for every sample.
A split depends only on the words around it, so here the sentences of the longest beginning so far
are kept, and of a shorter one only the end is split anew.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol

MARGIN = 3
"""Sentences at the end of a beginning that are split anew; the cut can move only the last."""


class Splitter(Protocol):
    """What NLTK's Punkt tokenizers do."""

    def tokenize(self, text: str) -> list[str]:
        """The sentences of a text, without the white space between them."""
        ...


def punkt() -> tuple[Splitter, bool]:
    """NLTK's Punkt, and whether it has the English data that `sent_tokenize` uses.

    The data are looked for, then downloaded as RULER does. Without them, Punkt knows no
    abbreviations.
    """
    import nltk
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTokenizer

    for attempt in (lambda: None, lambda: nltk.download("punkt_tab", quiet=True)):
        attempt()
        try:
            return PunktTokenizer("english"), True
        except LookupError:
            continue
    return PunktSentenceTokenizer(), False


class Beginnings:
    """The sentences of the first n words of an essay that is repeated without end.

    words   the essay, split at single spaces
    """

    def __init__(self, words: list[str], splitter: Splitter) -> None:
        self._words = words
        self._split = splitter.tokenize
        self._length = 0
        self._ends: list[int] = []
        self._sentences: list[str] = []
        self._last: tuple[int, list[str]] = (-1, [])

    def first(self, count: int) -> list[str]:
        """Sentences of the first `count` words; the list is shared, do not change it."""
        if self._last[0] != count:
            self._last = (count, self._beginning(self.text(count)))
        return self._last[1]

    def text(self, count: int) -> str:
        """The first `count` words, joined by spaces, stripped."""
        repeats = -(-count // len(self._words))
        words = self._words * repeats if repeats > 1 else self._words
        return " ".join(words[:count]).strip()

    def _beginning(self, text: str) -> list[str]:
        kept = max(bisect_left(self._ends, len(text)) - MARGIN, 0)
        start = self._ends[kept - 1] if kept else 0
        end = self._split(text[start:].strip())
        if len(text) > self._length:
            self._length = len(text)
            self._sentences[kept:] = end
            self._ends[kept:] = _ends(text, end, start)
            return list(self._sentences)
        return self._sentences[:kept] + end


def _ends(text: str, sentences: list[str], at: int) -> list[int]:
    ends = []
    for sentence in sentences:
        at = text.index(sentence, at) + len(sentence)
        ends.append(at)
    return ends
