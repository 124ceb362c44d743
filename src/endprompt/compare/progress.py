"""How far a comparison is: units that are done, and the time left from the mean of those so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class State:
    """Units that are done of all that were to do, the last of them, and the time left."""

    done: int
    total: int
    what: str
    seconds_left: float | None

    def __str__(self) -> str:
        """As a line of a log: `[3/40] pose, pi x8, seed 100, about 2.5 min left`."""
        left = ""
        if self.seconds_left is not None and self.done < self.total:
            left = f", about {self.seconds_left / 60:.1f} min left"
        return f"[{self.done}/{self.total}] {self.what}{left}"


Tell = Callable[[State], None]


class Tally:
    """Counts what is finished. Kinds of work that take different times are counted apart."""

    def __init__(self, kinds: Iterable[str], at_once: int, tell: Tell | None) -> None:
        self._left, self._at_once, self._tell = list(kinds), at_once, tell
        self._total = len(self._left)
        self._took: dict[str, list[float]] = {kind: [] for kind in self._left}

    def finished(self, kind: str, seconds: float, what: str) -> None:
        """One more of a kind is finished."""
        self._left.remove(kind)
        self._took[kind].append(seconds)
        if self._tell:
            done = self._total - len(self._left)
            self._tell(State(done, self._total, what, self._seconds_left()))

    def _seconds_left(self) -> float:
        everything = [second for took in self._took.values() for second in took]
        means = {
            kind: sum(took or everything) / len(took or everything)
            for kind, took in self._took.items()
        }
        return sum(means[kind] for kind in self._left) / self._at_once
