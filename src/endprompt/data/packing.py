"""Which stretch of text each row shows: documents cut, packed or joined to rows of T tokens.

Built from lengths alone, so that a billion tokens are indexed in seconds. Row `i` of a run is a
function of seed and `i`: epochs are permuted one by one, and nothing depends on what was read
before. Where documents begin with a BOS, so does every row: one that starts inside a document
spends its first token on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from endprompt.errors import TextError

Ints = NDArray[np.int64]
Pack = Literal["none", "documents", "stream"]


class Documents(Protocol):
    """Tokenised documents: `documents[i]` is int[lengths[i]].

    They may say `bos`, the id that each of them begins with.
    """

    @property
    def lengths(self) -> NDArray[np.int64]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> NDArray[Any]: ...


class Stretches(ABC):
    """`stretches[i]` is the text int[T] of row `i`; `len` is the number of rows of an epoch."""

    left_out_tokens: int
    """Tokens that no row of an epoch shows."""

    def __init__(self, documents: Documents, tokens: int, seed: int) -> None:
        self.tokens, self.seed = tokens, seed
        self._documents = documents
        self._lengths = np.asarray(documents.lengths, dtype=np.int64)
        self._bos: int | None = getattr(documents, "bos", None)
        self._lead = 0 if self._bos is None else 1
        self._step = tokens - self._lead
        if self._step < 1:
            raise TextError(f"rows of {tokens} tokens have no room for text: raise rows.tokens")
        self._order: tuple[int, Ints] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _stretch(self, epoch: int, number: int) -> Ints:
        """Stretch `number` of an epoch, in no random order yet."""

    def __getitem__(self, index: int) -> Ints:
        """Text int[T] of row `index`; shorter only where whole documents leave room."""
        epoch, place = divmod(index, len(self))
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self))
            self._order = epoch, order
        return self._stretch(epoch, int(self._order[1][place]))

    def text(self, number: int) -> Ints:
        """Stretch `number` of the first epoch, in no random order."""
        return self._stretch(0, number)

    def _start(self, number: int) -> int:
        """Where stretch `number` of one text starts: the first has its own BOS, others lent."""
        return number * self._step + (self._lead if number else 0)

    def _stretch_of(self, document: int, number: int) -> Ints:
        """Stretch `number` of one document, the rest of it if less is left."""
        start = self._start(number)
        ids = self._documents[document]
        if number == 0:
            return np.asarray(ids[: self.tokens], dtype=np.int64)
        return self._with_bos(np.asarray(ids[start : start + self._step], dtype=np.int64))

    def _with_bos(self, ids: Ints) -> Ints:
        return ids if self._bos is None else np.concatenate([[self._bos], ids])


class OneDocument(Stretches):
    """Each row from one document, cut in whole stretches; the rest of each is left out."""

    def __init__(self, documents: Documents, tokens: int, seed: int) -> None:
        super().__init__(documents, tokens, seed)
        counts = np.maximum(self._lengths - self._lead, 0) // self._step
        self._ends = np.cumsum(counts)
        shown = counts * self._step + np.where(counts > 0, self._lead, 0)
        self.left_out_tokens = int((self._lengths - shown).sum())

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _stretch(self, epoch: int, number: int) -> Ints:
        del epoch
        document = int(np.searchsorted(self._ends, number, side="right"))
        before = int(self._ends[document - 1]) if document else 0
        return self._stretch_of(document, number - before)


class WholeDocuments(OneDocument):
    """Rows of several whole documents, best fit; only what is longer than a row is cut.

    What a long document leaves at its end is packed like a document. A row is not filled up:
    batches pad it. The one row that may end up less than half full is left out.
    """

    def __init__(self, documents: Documents, tokens: int, seed: int) -> None:
        super().__init__(documents, tokens, seed)
        counts = np.diff(self._ends, prepend=0)
        rest = self._lengths - counts * self._step - np.where(counts > 0, self._lead, 0)
        self._items = np.flatnonzero(rest > 0)
        sizes = (rest + np.where(counts > 0, self._lead, 0))[self._items]
        row_of, filled = best_fit(sizes, tokens, np.random.default_rng([seed, 2]))
        keep = filled * 2 >= tokens
        number = np.cumsum(keep) - 1
        kept = keep[row_of]
        self._items, row_of = self._items[kept], number[row_of[kept]]
        by_row = np.argsort(row_of, kind="stable")
        self._items = self._items[by_row]
        self._bounds = np.searchsorted(row_of[by_row], np.arange(int(keep.sum()) + 1))
        self._counts = counts
        self.left_out_tokens = int(filled[~keep].sum())

    def __len__(self) -> int:
        return super().__len__() + len(self._bounds) - 1

    def _stretch(self, epoch: int, number: int) -> Ints:
        whole_rows = super().__len__()
        if number < whole_rows:
            return super()._stretch(epoch, number)
        start, stop = self._bounds[number - whole_rows : number - whole_rows + 2]
        items = self._items[start:stop].tolist()
        return np.concatenate([self._stretch_of(item, int(self._counts[item])) for item in items])


class Stream(Stretches):
    """All documents, in an order of their own each epoch, as one stream that is cut to length."""

    def __init__(self, documents: Documents, tokens: int, seed: int) -> None:
        super().__init__(documents, tokens, seed)
        self._total = int(self._lengths.sum())
        shown = len(self) * self._step + (self._lead if len(self) else 0)
        self.left_out_tokens = self._total - shown
        self._joined: tuple[int, Ints, Ints] | None = None

    def __len__(self) -> int:
        # A row may start with a document's own BOS, and then needs a token more behind it.
        whole = max(0, self._total - 2 * self._lead) // self._step
        return max(whole, int(self._total >= self.tokens))

    def _stretch(self, epoch: int, number: int) -> Ints:
        if self._joined is None or self._joined[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch, 3])
            order = rng.permutation(len(self._lengths))
            self._joined = epoch, order, np.cumsum(self._lengths[order])
        start = self._start(number)
        ids = self._read(start, self.tokens)
        if number == 0 or ids[0] == self._bos:  # a document starts just here
            return ids
        return self._with_bos(ids[: self._step])

    def _read(self, start: int, count: int) -> Ints:
        """Up to `count` tokens of the stream from `start` on."""
        assert self._joined is not None
        _, order, ends = self._joined
        place = int(np.searchsorted(ends, start, side="right"))
        inside = start - (int(ends[place - 1]) if place else 0)
        parts: list[NDArray[Any]] = []
        while count > 0 and place < len(order):
            ids = self._documents[int(order[place])][inside : inside + count]
            parts.append(ids)
            count -= len(ids)
            place, inside = place + 1, 0
        return np.concatenate(parts).astype(np.int64)


def stretches(documents: Documents, tokens: int, seed: int, pack: Pack = "none") -> Stretches:
    """Rows of `tokens` tokens out of documents.

    pack  "none": each row from one document; "documents": whole documents, best fit;
          "stream": all documents joined and cut

    Raises TextError when there isn't text for a single row.
    """
    kinds = {"none": OneDocument, "documents": WholeDocuments, "stream": Stream}
    cut_text = kinds[pack](documents, tokens, seed)
    if len(cut_text) == 0:
        lengths = np.asarray(documents.lengths)
        longest = int(lengths.max(initial=0))
        raise TextError(
            f"text too short: rows need documents of {tokens} tokens and the longest of "
            f"{len(lengths)} has {longest}: give longer text or lower rows.tokens"
            + (", or join documents with rows.pack" if pack == "none" else "")
        )
    return cut_text


def best_fit(lengths_N: Ints, capacity: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Pack items into bins, longest first, each where it leaves the least room.

    lengths_N  int[N], 1 .. capacity each
    rng        decides which of equally long items goes where

    Returns the bin int[N] of each item, and how much each bin holds, int[bins]. Items of one
    length are placed together: the time goes with the number of different lengths.

    >>> bins, filled = best_fit(np.array([3, 6, 4, 7]), 10, np.random.default_rng(0))
    >>> filled.tolist()
    [10, 10]
    """
    order = rng.permutation(len(lengths_N))
    order = order[np.argsort(-lengths_N[order], kind="stable")]
    bin_of = np.empty(len(lengths_N), dtype=np.int64)
    room: list[list[Ints]] = [[] for _ in range(capacity + 1)]  # bins by the room they have
    has_bins = np.zeros(capacity + 1, dtype=bool)
    bins = 0
    sizes, counts = np.unique(lengths_N, return_counts=True)
    done = 0
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        items = order[done : done + count]
        done += count
        levels = (size + np.flatnonzero(has_bins[size:])).tolist()
        for level in [*levels, None]:
            if len(items) == 0:
                break
            free = capacity if level is None else level
            share = free // size
            wanted = -(-len(items) // share)
            if level is None:
                open_bins = np.arange(bins, bins + wanted)
                bins += wanted
            else:
                open_bins = np.concatenate(room[level])
                room[level] = [open_bins[wanted:]] if wanted < len(open_bins) else []
                has_bins[level] = bool(room[level])
                open_bins = open_bins[:wanted]
            taken = min(len(items), len(open_bins) * share)
            bin_of[items[:taken]] = np.repeat(open_bins, share)[:taken]
            items = items[taken:]
            last = taken - (len(open_bins) - 1) * share  # the last bin may take fewer
            for some, held in ((open_bins[:-1], share), (open_bins[-1:], last)):
                left = free - held * size
                if len(some):
                    room[left].append(some)
                    has_bins[left] = True
    filled = np.bincount(bin_of, weights=lengths_N, minlength=bins).astype(np.int64)
    return bin_of, filled
