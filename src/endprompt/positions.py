"""The method: which position each token of a short row is given.

A row is a prefix of P tokens of real text and, behind it, a terminal of S tokens. RoPE sees
only positions, so a row of P+S tokens trains distances up to L-1 when its terminal stands at
L-S .. L-1 (paper, section 3.2). Everything here is NumPy on int64 positions; randomness comes
from the generator that is passed in, so that a row is a function of seed and index alone.

Two kinds of layout share one shape. A *prefix layout* places P tokens from 0 on; a *terminal
place* puts S tokens somewhere in [after, L), `after` being the first free position. All
positions of a row are strictly increasing and below L.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from endprompt.errors import PositionError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Anchored:
    """Tokens int[P+S] of a row and their positions int[P+S]."""

    tokens: Ints
    positions: Ints


def anchor(prefix_P: Ints, terminal_S: Ints, *, target: int) -> Anchored:
    """Put a terminal segment at the far end of a longer window (paper, section 3.2).

    prefix_P    int[P], text tokens, positions 0 .. P-1
    terminal_S  int[S], terminal tokens, positions target-S .. target-1
    target      number of positions to reach, at least P+S

    Returns token ids int[P+S] and positions int[P+S], strictly increasing.
    Raises PositionError when P+S > target, with the excess in tokens.

    >>> anchor(np.array([5, 6, 7]), np.array([9, 9]), target=16).positions
    array([ 0,  1,  2, 14, 15])
    """
    prefix = contiguous(len(prefix_P))
    terminal = at_end(len(terminal_S), after=len(prefix_P), target=target)
    return Anchored(np.concatenate([prefix_P, terminal_S]), np.concatenate([prefix, terminal]))


def contiguous(length: int, *, start: int = 0) -> Ints:
    """Positions start .. start+length-1: plain text, and the control without a jump."""
    return np.arange(start, start + length, dtype=np.int64)


def at_end(length: int, *, after: int, target: int) -> Ints:
    """The paper's terminal: target-length .. target-1."""
    _room(after, length, target)
    return contiguous(length, start=target - length)


def anywhere(length: int, *, after: int, target: int, rng: np.random.Generator) -> Ints:
    """A terminal whose start is uniform in [after, target-length], as in the released script."""
    room = _room(after, length, target)
    return contiguous(length, start=after + int(rng.integers(room + 1)))


def stratified(
    lengths: list[int], *, after: int, target: int, rng: np.random.Generator
) -> list[Ints]:
    """Several terminals in order, one uniform in each equal share of the free room.

    A single one is `anywhere`; with n of them every n-th of the room is visited in every row.
    """
    room = _room(after, sum(lengths), target)
    placed, before = [], 0
    for n, length in enumerate(lengths):
        low, high = room * n // len(lengths), room * (n + 1) // len(lengths)
        skip = int(rng.integers(low, high + 1))
        placed.append(contiguous(length, start=after + before + skip))
        before += length
    return placed


def far(lengths: list[int], *, after: int, target: int, rng: np.random.Generator) -> list[Ints]:
    """Several terminals in order, one uniform in each equal share of the farthest quarter."""
    room = _room(after, sum(lengths), target)
    nearest = room - room // 4
    return stratified(lengths, after=after + nearest, target=target, rng=rng)


def octaves(lengths: list[int], *, after: int, target: int, rng: np.random.Generator) -> list[Ints]:
    """Several terminals in order, spread evenly over the octaves of distance from the row's start.

    The logarithm of a terminal's start is uniform in one equal share of [log after, log target).
    """
    room = _room(after, sum(lengths), target)
    ratio = (after + room + 1) / (after + 1)
    placed, before = [], 0
    for n, length in enumerate(lengths):
        share = (n + rng.random()) / len(lengths)
        skip = min(int((after + 1) * ratio**share) - after - 1, room)
        placed.append(contiguous(length, start=after + before + skip))
        before += length
    return placed


def one_after_another(lengths: list[int], *, after: int) -> list[Ints]:
    """Several terminals right behind the prefix, without a jump: the control."""
    starts = after + np.cumsum([0, *lengths[:-1]])
    return [contiguous(n, start=int(start)) for n, start in zip(lengths, starts, strict=True)]


def split(length: int, *, after: int, target: int, pieces: int, rng: np.random.Generator) -> Ints:
    """The terminal itself cut in pieces at different far positions (paper, section 4.4).

    Cut points and skips are uniform; the last piece ends at target-1.
    """
    room = _room(after, length, target)
    if not 1 <= pieces <= length:
        raise PositionError(f"a terminal of {length} tokens cannot be cut in {pieces} pieces")
    cuts = np.sort(rng.choice(np.arange(1, length), size=pieces - 1, replace=False))
    skips = np.append(np.sort(rng.integers(room + 1, size=pieces - 1)), room)
    return contiguous(length, start=after) + _by_chunk(cuts, skips, length)


def pose(length: int, *, target: int, rng: np.random.Generator, chunks: int = 2) -> Ints:
    """PoSE: the row is cut in chunks, each skipping at least as far as the one before.

    Cut points are uniform; skip u_k is uniform in [u_{k-1}, target-length] and u_0 is 0, so the
    first chunk stays in place (Zhu et al. 2023, "PoSE", section 3.2).
    """
    room = _room(0, length, target)
    if not 1 <= chunks <= length:
        raise PositionError(f"a row of {length} tokens cannot be cut in {chunks} chunks")
    cuts = np.sort(rng.choice(np.arange(1, length), size=chunks - 1, replace=False))
    skips = [0]
    for _ in range(chunks - 1):
        skips.append(int(rng.integers(skips[-1], room + 1)))
    return contiguous(length) + _by_chunk(cuts, np.array(skips, dtype=np.int64), length)


def scattered(length: int, *, target: int, rng: np.random.Generator) -> Ints:
    """Randomized positions: a sorted draw without replacement, the first token at 0.

    Ruoss et al. 2023, "Randomized Positional Encodings"; with YaRN and a growing target Mehta et
    al. 2026, "Randomized YaRN".
    """
    _room(0, length, target)
    drawn = rng.choice(np.arange(1, target), size=length - 1, replace=False)
    return np.append(0, np.sort(drawn)).astype(np.int64)


def cream(length: int, *, target: int, rng: np.random.Generator) -> Ints:
    """CREAM: a head at 0, a tail at the far end, and a middle between them (Wu et al. 2024).

    Head and tail have a third of the row each, or, in every other row on average, 4 tokens per
    unit of s = target/length, which leaves nearly all of it to the middle. The middle ends
    uniformly in the window of a length a*length, where 2a is a Gaussian (mean s+1, deviation 3)
    cut at [2, 2s] and rounded down: mostly half-way up the target.
    """
    _room(0, length, target)
    s = target // length
    end = min(length // 3, 4 * s) if rng.integers(2) else length // 3
    middle = length - 2 * end
    if end < 1:
        raise PositionError(f"a row of {length} tokens has no head, middle and tail: it needs 3")
    a = math.floor(np.clip(rng.normal(s + 1, 3.0), 2, 2 * s)) / 2
    first, last = int(end + (middle - 1) * a), int(a * length) - end - 1
    stop = int(rng.integers(first, last + 1)) + 1
    return np.concatenate(
        [
            contiguous(end),
            contiguous(middle, start=stop - middle),
            contiguous(end, start=target - end),
        ]
    )


def sentences(
    length: int, *, stops: Ints, target: int, rng: np.random.Generator, intact: int | None = None
) -> Ints:
    """LongRecipe: sentences keep together, with skips of random size between them.

    stops   int[k], indices of the last token of each sentence, increasing
    intact  tokens at the beginning that stay where they are; None: uniform in [1, (length+1)/2]

    Every sentence but the first may skip: sentences and free positions are put in one random
    order (Hu et al. 2024, "LongRecipe", position index transformation).
    """
    room = _room(0, length, target)
    if intact is None:
        intact = int(rng.integers(1, (length + 1) // 2 + 1))
    starts = np.asarray(stops)[np.asarray(stops) < length - 1] + 1
    slots = np.sort(rng.choice(room + len(starts) + 1, size=len(starts) + 1, replace=False))
    skips = np.append(0, slots[1:] - np.arange(1, len(slots)))
    positions = contiguous(length) + _by_chunk(starts, skips, length)
    positions[:intact] = contiguous(intact)
    return positions


LAYOUTS: dict[str, Callable[..., Ints]] = {
    "contiguous": lambda length, **_: contiguous(length),
    "pose": lambda length, *, target, rng, chunks, **_: pose(
        length, target=target, rng=rng, chunks=chunks
    ),
    "scattered": lambda length, *, target, rng, **_: scattered(length, target=target, rng=rng),
    "cream": lambda length, *, target, rng, **_: cream(length, target=target, rng=rng),
    "longrecipe": lambda length, *, target, rng, stops, **_: sentences(
        length, stops=stops, target=target, rng=rng
    ),
}
"""What `rows.kinds.prefix.layout` may name: positions int[length] below the target.

Each is called with the length, and by name with target, rng, chunks, and stops for `longrecipe`.
"""

PLACES: dict[str, Callable[..., list[Ints]]] = {
    "end": lambda lengths, *, after, target, **_: [at_end(*lengths, after=after, target=target)],
    "random": lambda lengths, *, after, target, rng, **_: [
        anywhere(*lengths, after=after, target=target, rng=rng)
    ],
    "stratified": lambda lengths, *, after, target, rng, **_: stratified(
        lengths, after=after, target=target, rng=rng
    ),
    "far": lambda lengths, *, after, target, rng, **_: far(
        lengths, after=after, target=target, rng=rng
    ),
    "octaves": lambda lengths, *, after, target, rng, **_: octaves(
        lengths, after=after, target=target, rng=rng
    ),
    "split": lambda lengths, *, after, target, rng, pieces, **_: [
        split(*lengths, after=after, target=target, pieces=min(pieces, *lengths), rng=rng)
    ],
    "contiguous": lambda lengths, *, after, **_: one_after_another(lengths, after=after),
}
"""What `rows.kinds.terminal.place` may name: positions of each terminal in [after, target).

Each is called with the terminals' lengths, and by name with after, target, rng and pieces.
"""


SEVERAL = ("stratified", "far", "octaves", "contiguous")
"""Places that take more than one terminal."""


def _by_chunk(cuts: Ints, skips: Ints, length: int) -> Ints:
    """The skip of each index: skips[k] for indices from cuts[k-1] to cuts[k]."""
    return skips[np.searchsorted(cuts, np.arange(length), side="right")]


def _room(after: int, length: int, target: int) -> int:
    """Free positions left when `length` tokens go into [after, target)."""
    room = target - after - length
    if room < 0:
        raise PositionError(
            f"prefix {after} + terminal {length} tokens exceed target {target} by {-room}: "
            f"shorten rows.tokens or raise the target"
        )
    return room
