"""Copies of held-out text in training text, exact or near, found by hashes of their stretches.

Text is compared as words (`endprompt.data.words`). Winnowing (Schleimer, Wilkerson, Aiken 2003): of
every WINDOW consecutive hashes of GRAM words the smallest is kept, in both texts, so that a
stretch of GRAM + WINDOW - 1 = 31 words which they share has a kept hash in common. A word is
copied where a third of those around it lie in shared stretches: edits here and there do not hide
a copy, and a set phrase is none. Documents of fewer than GRAM words are copies where they are
equal.

Memory: at most LARGEST hashes of eight bytes. Held-out text of more than about 140 million words
is sampled more thinly, and only longer copies of it are found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from endprompt.data.words import Words

GRAM = 16
WINDOW = 16
AROUND = 64
"""Words among which one in DENSE has to be shared."""
DENSE = 3
COPY = 64
"""Words of a copy at least, unless it is half of its document; a smaller rest goes with it."""
LARGEST = 2**24
SEGMENT_TOKENS = 2**20
"""Text that is compared at once; longer documents are read in such stretches."""
_CHUNK = 2**15
_ODD, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
REASON = "copy of held-out text"


@dataclass(frozen=True)
class Fingerprints:
    """Hashes of held-out text.

    words    how text is compared
    grams    uint64[N], kept hashes of GRAM words, sorted, each once
    thinned  every hash is a multiple of 2**thinned
    """

    words: Words
    grams: np.ndarray
    thinned: int = 0

    @classmethod
    def of(cls, documents: Iterable[np.ndarray], words: Words | None = None) -> Fingerprints:
        """Of documents, int[tokens] each; without `words`, each token is one."""
        words = words or Words()
        grams, waiting, count, thinned = np.empty(0, np.uint64), [], 0, 0
        for ids in documents:
            for start in range(0, len(ids), SEGMENT_TOKENS):
                _, hashes = _kept(words(ids[start : start + SEGMENT_TOKENS])[0])
                waiting.append(hashes[_multiple(hashes, thinned)])
                count += len(waiting[-1])
            if count > LARGEST // 4:
                grams, thinned = _merged([grams, *waiting], thinned)
                waiting, count = [], 0
        grams, thinned = _merged([grams, *waiting], thinned)
        return cls(words, grams, thinned)

    def copies(self, ids: np.ndarray) -> list[tuple[int, int]]:
        """Stretches of a document that stand in the held-out text too: [start, stop), in order.

        ids  int[tokens]
        """
        copied: list[tuple[int, int]] = []
        for begin in range(0, len(ids), SEGMENT_TOKENS):
            segment = ids[begin : begin + SEGMENT_TOKENS]
            numbers, places = self.words(segment)
            firsts = np.append(places, len(segment))
            firsts[0] = 0
            copied += [
                (begin + int(firsts[start]), begin + int(firsts[stop]))
                for start, stop in self._copied_words(numbers)
            ]
        return _without_small_rests(copied, len(ids))

    def _copied_words(self, numbers: np.ndarray) -> list[tuple[int, int]]:
        """Stretches of uint64[words] that are copied."""
        length = len(numbers)
        shared = np.zeros(length + 1, np.int32)  # +1 where a shared stretch begins, -1 at its end
        reach = GRAM << self.thinned
        places, hashes = _kept(numbers)
        copies = places[_multiple(hashes, self.thinned) & self._holds(hashes)]
        if not len(copies):
            return []
        starts = np.maximum(copies - (reach - GRAM) // 2, 0)
        np.add.at(shared, starts, 1)
        np.add.at(shared, np.minimum(starts + reach, length), -1)
        until = np.r_[0, np.cumsum(np.cumsum(shared[:-1]) > 0)]
        around = min(AROUND, length)
        words = np.arange(length)
        last, first = np.minimum(words + around // 2, length), np.maximum(words - around // 2, 0)
        dense = until[last] - until[first] >= around // DENSE
        edges = np.flatnonzero(np.diff(np.r_[False, dense, False])).tolist()
        return [
            (start, stop)
            for start, stop in zip(edges[::2], edges[1::2], strict=True)
            if stop - start >= COPY or 2 * (stop - start) >= length
        ]

    def _holds(self, hashes: np.ndarray) -> np.ndarray:
        """bool[N]: which of the hashes are the held-out text's."""
        if not len(self.grams):
            return np.zeros(len(hashes), bool)
        places = np.searchsorted(self.grams, hashes)
        return self.grams[np.minimum(places, len(self.grams) - 1)] == hashes


def rests(copied: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """What of a document is no copy: [start, stop), in order.

    >>> rests([(0, 10), (40, 50)], 100)
    [(10, 40), (50, 100)]
    """
    edges = [0, *(edge for pair in copied for edge in pair), length]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def _without_small_rests(copied: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """The same stretches, and with them rests of fewer than COPY tokens between and beside them."""
    if not copied:
        return []
    kept = [rest for rest in rests(copied, length) if rest[1] - rest[0] >= COPY]
    return rests(kept, length)


def _kept(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and hashes that winnowing keeps of uint64[words]: int64[N], uint64[N]."""
    kept = [(np.empty(0, np.int64), np.empty(0, np.uint64))]
    overlap = GRAM + WINDOW - 2
    for start in range(0, max(1, len(numbers) - overlap), _CHUNK):  # a chunk fits into the cache
        hashes = _hashes(numbers[start : start + _CHUNK + overlap])
        places = np.arange(len(hashes)) if len(hashes) < WINDOW else _minima(hashes)
        kept.append((places + start, hashes[places]))
    places, hashes = zip(*kept, strict=True)
    return np.concatenate(places), np.concatenate(hashes)


def _minima(hashes: np.ndarray) -> np.ndarray:
    """int64[N], where the smallest hash of each window lies."""
    least = hashes
    for step in (1, 2, 4, 8):
        least = np.minimum(least[:-step], least[step:])
    # Windows with a new minimum, and every WINDOW-th for text that repeats itself.
    fresh = np.r_[True, least[1:] != least[:-1]]
    fresh[::WINDOW] = True
    first = np.flatnonzero(fresh)
    windows = np.lib.stride_tricks.sliding_window_view(hashes, WINDOW)[first]
    return first + windows.argmin(axis=1)


def _hashes(numbers: np.ndarray) -> np.ndarray:
    """uint64[max(1, words - GRAM + 1)], a hash of the GRAM words that begin at each place."""
    hashes = _mixed(np.pad(numbers, (0, max(0, GRAM - len(numbers)))))
    for step in (1, 2, 4, 8):
        joined = hashes[:-step] * _ODD
        joined += hashes[step:]
        hashes = _mixed(joined)
    return hashes


def _mixed(values: np.ndarray) -> np.ndarray:
    """The same array, its values mixed so that every bit depends on all bits of a value."""
    values ^= values >> _HALF
    values *= _MIX
    values ^= values >> _HALF
    return values


def _multiple(hashes: np.ndarray, thinned: int) -> np.ndarray:
    return (hashes & np.uint64(2**thinned - 1)) == 0


def _merged(parts: list[np.ndarray], thinned: int) -> tuple[np.ndarray, int]:
    """Hashes of all parts, each once, thinned until they are no more than LARGEST."""
    merged = np.unique(np.concatenate(parts))
    while len(merged) > LARGEST:
        thinned += 1
        merged = merged[_multiple(merged, thinned)]
    return merged, thinned
