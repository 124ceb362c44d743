"""What stands in the gaps of a row: which keys of a bank of other text, and at which positions.

The bank is some stretches of the run's own text, drawn once by the seed. Each is read as a row by
itself; its first eighth is read for context and not kept, so that no beginning of a text, which
draws attention wherever it stands, gets into the middle of a row. A row never meets its own text:
pieces that share 16 tokens in a row with it are left out (if all do, those that share more).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from endprompt.data.packing import Stretches
from endprompt.errors import TextError
from endprompt.positions import Ints

LEAD = 8
"""One token in so many of a piece is read for context and not kept."""
SHARED = 16
"""Tokens in a row that make two texts the same."""
_FACTORS = np.cumprod(np.full(SHARED, 6364136223846793005, np.uint64))


class Filling(NamedTuple):
    """Positions int[G] in the gaps of a row, rising, and the place in the bank of each key."""

    positions_G: Ints
    slots_G: Ints


class GapFiller:
    """Draws what stands in the gaps of each row.

    keys  in a row at most, spread evenly over its free positions
    bank  tokens that are kept; fewer where the text has fewer

    Raises TextError where there is no other text than a row's own.
    """

    def __init__(self, stretches: Stretches, *, keys: int, bank: int, seed: int) -> None:
        if len(stretches) < 2:
            raise TextError(
                f"rows.gaps is filled with other text, and there is one stretch of "
                f"{stretches.tokens} tokens: give more text or set rows.gaps to empty"
            )
        self._keys = keys
        self.pieces: list[Ints] = []
        """Texts to read; of each, the tokens from `lead` on are kept, one behind another."""
        self._starts = [0]
        for number in np.random.default_rng([seed, 4]).permutation(len(stretches)).tolist():
            missing = bank - self._starts[-1]
            if missing <= 0:
                break
            text = stretches.text(number)
            kept = min(len(text) - lead(text), missing)
            if kept > 0:
                self.pieces.append(text[: lead(text) + kept])
                self._starts.append(self._starts[-1] + kept)
        self._shingles = [_shingles(piece) for piece in self.pieces]

    @property
    def tokens(self) -> int:
        """Tokens that are kept."""
        return self._starts[-1]

    def fill(self, positions_T: Ints, text: Ints, rng: np.random.Generator) -> Filling:
        """What stands between the tokens of a row; `text` is the stretch that it shows."""
        free = np.ones(int(positions_T[-1]) + 1, dtype=bool)
        free[positions_T] = False
        free_F = np.flatnonzero(free)
        count = min(len(free_F), self._keys)
        if not count:
            return Filling(free_F, free_F)
        spread = (2 * np.arange(count) + 1) * len(free_F) // (2 * count)
        return Filling(free_F[spread], np.resize(self._others(text, rng), count))

    def _others(self, text: Ints, rng: np.random.Generator) -> Ints:
        """Places in the bank of the pieces that are other text, in a drawn order."""
        own = _shingles(text)
        shared = np.array([np.isin(piece, own).sum() for piece in self._shingles])
        return np.concatenate(
            [
                np.arange(self._starts[n], self._starts[n + 1])
                for n in rng.permutation(np.flatnonzero(shared == shared.min()))
            ]
        )


def lead(piece: Ints) -> int:
    """Tokens of a piece that are read for context."""
    return max(1, len(piece) // LEAD)


def _shingles(text: Ints) -> NDArray[np.uint64]:
    """A number for each run of SHARED tokens; equal runs have equal numbers."""
    if len(text) < SHARED:
        return np.zeros(0, np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(text.astype(np.uint64), SHARED)
    return (runs * _FACTORS).sum(-1, dtype=np.uint64)
