"""The word lists of RULER: those of the package wonderwords."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import accumulate

from endprompt.errors import DependencyError


@cache
def word_list(kind: str) -> tuple[str, ...]:
    """wonderwords' list `noun`, `adjective` or `verb`, in its order, duplicates kept."""
    try:
        text = (resources.files("wonderwords") / "assets" / f"{kind}list.txt").read_text("utf-8")
    except ModuleNotFoundError as error:
        raise DependencyError(
            "RULER's words come from wonderwords: pip install 'endprompt[eval]'"
        ) from error
    return tuple(line.rstrip() for line in text.splitlines())


@cache
def all_words() -> tuple[str, ...]:
    """Every noun, adjective and verb once, sorted."""
    return tuple(sorted({*word_list("noun"), *word_list("adjective"), *word_list("verb")}))


class Compounds(Sequence[str]):
    """All different `adjective-noun`, sorted, without holding the six million of them.

    Compounds of one adjective stand together, in the order of the nouns, unless another
    adjective begins with `adjective-`: such adjectives are merged in one block.
    """

    def __init__(self, adjectives: Sequence[str], nouns: Sequence[str]) -> None:
        self._nouns = sorted(set(nouns))
        self._blocks: list[str | list[str]] = []
        for head in sorted({f"{adjective}-" for adjective in adjectives}):
            previous = self._blocks[-1] if self._blocks else None
            if isinstance(previous, list) and head.startswith(self._root):
                self._blocks[-1] = sorted({*previous, *self._compounds(head)})
            elif isinstance(previous, str) and head.startswith(previous):
                self._root = previous
                self._blocks[-1] = sorted({*self._compounds(previous), *self._compounds(head)})
            else:
                self._blocks.append(head)
        sizes = (len(self._nouns) if isinstance(b, str) else len(b) for b in self._blocks)
        self._ends = list(accumulate(sizes))
        self._size = self._ends[-1] if self._ends else 0

    def _compounds(self, head: str) -> list[str]:
        return [head + noun for noun in self._nouns]

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index):  # type: ignore[override]
        if not 0 <= index < self._size:
            raise IndexError(index)
        at = bisect_right(self._ends, index)
        within = index - (self._ends[at - 1] if at else 0)
        block = self._blocks[at]
        return block + self._nouns[within] if isinstance(block, str) else block[within]


@cache
def compounds() -> Compounds:
    """wonderwords' adjectives and nouns as RULER's keys."""
    return Compounds(word_list("adjective"), word_list("noun"))
