"""Distances that rows train, and what is known of the attention score between them.

Attention sees two tokens through their contents and the distance d of their positions. Between
one query q and one key k the score is a sum of cosines of d (paper, section 3.3):

    S(d) = sum_j a_j cos(d w_j + phi_j)
    a_j e^{i phi_j} = (q_j + i q_{j+D/2}) (k_j - i k_{j+D/2})

with w_j the inverse frequencies of RoPE as scaled, and q, k before rotation, halves paired as
Transformers pairs them. The scale of attention and the factor of YaRN and LongRoPE on cos and sin
(which enters twice) multiply S.

Bernstein: a sum of cosines with |w_j| <= W has, on the whole line,

    sup|S'| <= W sup|S|        sup|S''| <= W^2 sup|S|        W = max_j w_j

What W is depends on the scaling. `pi` divides every frequency: W = w_0 / s. `ntk` and `yarn`
leave w_0 = 1 as it is, so their W, and the bound, are those of the unscaled model; what they slow
down are low frequencies, which the bound does not see. The sum sum_j a_j w_j bounds |S'| as well
and does see them. Every supremum in Bernstein's inequality is over the whole line: with the
largest |S| met on [0, L) in its place it may fail, so `Smoothness` holds both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from endprompt.errors import PositionError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Interval = tuple[int, int]
"""First and last distance, both included."""
MANY_STRETCHES = 256
"""Stretches of a row above which pairs of them cost more than a transform of the target."""


# Distances


@dataclass(frozen=True)
class Distances:
    """Distances of the paper's scheme: those that training sees, and the gap, if there is one."""

    observed: tuple[Interval, ...]
    gap: Interval | None


def anchored(prefix: int, terminal: int, *, target: int) -> Distances:
    """What a row with its terminal at the far end trains, exactly (paper, section 3.2).

    prefix, terminal  tokens P and S; target  positions L

    D_obs = [0, P-1] u [0, S-1] u [L-P-S+1, L-1]; D_gap = [max(P, S), L-P-S] where that is not
    empty. Neighbouring intervals are joined. Raises PositionError when P + S > L.

    >>> anchored(1000, 24, target=16384)
    Distances(observed=((0, 999), (15361, 16383)), gap=(1000, 15360))
    """
    if min(prefix, terminal) < 1 or prefix + terminal > target:
        raise PositionError(
            f"prefix {prefix} + terminal {terminal} tokens: both at least 1, and at most the "
            f"target {target} together"
        )
    near, far = max(prefix, terminal) - 1, target - prefix - terminal + 1
    if far <= near + 1:
        return Distances(((0, target - 1),), None)
    return Distances(((0, near), (far, target - 1)), (near + 1, far - 1))


def coverage(rows: Iterable[Ints], *, target: int) -> Ints:
    """Causal query-key pairs at each distance, summed over rows: int64[target], exact.

    rows  positions int[T] of each row, strictly increasing, in [0, target)

    A row is a few stretches of consecutive positions. Two stretches of n and m tokens give a
    trapezium of counts over n + m - 1 distances, one stretch a falling line, so the work grows
    with the stretches and not with T^2. Rows of many stretches are correlated with themselves
    (a Fourier transform over the target). Raises PositionError for other positions.

    >>> coverage([np.array([0, 1, 6])], target=8)
    array([3, 1, 0, 0, 0, 1, 1, 0])
    """
    bends = np.zeros(target + 2, dtype=np.int64)  # second differences of the counts
    counts = np.zeros(target, dtype=np.int64)
    for positions in rows:
        p = np.asarray(positions, dtype=np.int64)
        if len(p) == 0:
            continue
        if p[0] < 0 or p[-1] >= target or np.any(np.diff(p) <= 0):
            raise PositionError(
                f"positions {p[0]} .. {p[-1]} are not strictly increasing in [0, {target})"
            )
        first = np.flatnonzero(np.diff(p, prepend=p[0] - 2) != 1)
        if len(first) > MANY_STRETCHES:
            counts += _autocorrelation(p, target)
            continue
        sizes, starts = np.diff(np.append(first, len(p))), p[first]
        bends[0] += sizes.sum()
        bends[1] -= (sizes + 1).sum()
        np.add.at(bends, sizes + 1, 1)
        earlier, later = np.triu_indices(len(starts), 1)
        n, m = sizes[earlier], sizes[later]
        least = starts[later] - starts[earlier] - n + 1
        for place, sign in ((0, 1), (n, -1), (m, -1), (n + m, 1)):
            np.add.at(bends, least + place, sign)
    return counts + np.cumsum(np.cumsum(bends))[:target]


def coverage_between(queries_T: Ints, keys_G: Ints, *, target: int) -> Ints:
    """Pairs of a query and a key before it at each distance, int64[target], exact.

    queries_T, keys_G  positions in [0, target), each rising, none in both

    >>> coverage_between(np.array([0, 5]), np.array([1, 3]), target=6)
    array([0, 0, 1, 0, 1, 0])
    """
    if len(queries_T) * len(keys_G) == 0:
        return np.zeros(target, dtype=np.int64)
    size = 1 << (2 * target - 1).bit_length()
    asked, there = np.zeros(size), np.zeros(size)
    asked[queries_T], there[keys_G] = 1, 1
    pairs = np.fft.irfft(np.fft.rfft(asked) * np.conj(np.fft.rfft(there)), size)
    return np.rint(pairs[:target]).astype(np.int64)


def _autocorrelation(positions_T: Ints, target: int) -> Ints:
    """int64[target], pairs at each distance; below 2^40 pairs a float64 rounds to the count."""
    occupied = np.zeros(2 * target)
    occupied[positions_T] = 1
    spectrum = np.fft.rfft(occupied)
    return np.rint(np.fft.irfft(np.abs(spectrum) ** 2, 2 * target)[:target]).astype(np.int64)


def intervals(counts: Ints, edges: Iterable[int] = ()) -> list[tuple[int, int, int]]:
    """Stretches of trained distances as (first, last, pairs), cut at `edges` as well.

    counts  int[L], as `coverage` gives them

    >>> intervals(np.array([3, 1, 0, 0, 2]), edges=[1])
    [(0, 0, 3), (1, 1, 1), (4, 4, 2)]
    """
    seen = np.concatenate([[False], np.asarray(counts) > 0, [False]])
    change = set(np.flatnonzero(seen[1:] != seen[:-1]).tolist())
    cuts = sorted(change | {edge for edge in edges if 0 < edge < len(counts)})
    total = np.concatenate([[0], np.cumsum(counts)])
    return [
        (start, stop - 1, int(total[stop] - total[start]))
        for start, stop in pairwise(cuts)
        if seen[start + 1]
    ]


def octaves(limit: int, parts: int = 4) -> list[int]:
    """Edges for `intervals` that are even on a log axis: 1, 2, 4, ... with `parts` to each.

    >>> octaves(16, parts=1)
    [1, 2, 4, 8]
    """
    steps = np.arange(0, max(np.log2(limit), 0), 1 / parts)
    return sorted({int(edge) for edge in np.round(2.0**steps)})


# The score as a function of distance


def polynomial(query_ND: Floats, key_ND: Floats) -> tuple[Floats, Floats]:
    """Amplitudes a and phases phi, float64[..., D/2], of the score between q and k.

    query_ND, key_ND  [..., D], before rotation, the halves paired: (x_j, x_{j+D/2})
    """
    q, k = (np.asarray(x, dtype=np.float64) for x in (query_ND, key_ND))
    half = q.shape[-1] // 2
    product = (q[..., :half] + 1j * q[..., half:]) * (k[..., :half] - 1j * k[..., half:])
    return np.abs(product), np.angle(product)


def score(
    amplitude_NJ: Floats, phase_NJ: Floats, frequency_J: Floats, distance_D: Floats, order: int = 0
) -> Floats:
    """S(d), or its derivative of an order, float64[..., D] for distances float[D].

    S^(n)(d) = sum_j a_j w_j^n cos(d w_j + phi_j + n pi/2)
    """
    w = np.asarray(frequency_J, dtype=np.float64)
    phase = phase_NJ + order * np.pi / 2
    size = amplitude_NJ * w**order
    turns_JD = np.outer(w, np.asarray(distance_D, dtype=np.float64))
    return (size * np.cos(phase)) @ np.cos(turns_JD) - (size * np.sin(phase)) @ np.sin(turns_JD)


@dataclass(frozen=True)
class Smoothness:
    """Measured and bounded smoothness of N scores on [0, L); float64[N] each.

    value, slope, curvature  largest |S|, |S'|, |S''| met
    limit                    sum of a_j: |S| is at most that anywhere, and comes as near to it as
                             one likes somewhere when no frequency is a combination of others
    slope_bound              Bernstein's W * limit
    curvature_bound          Bernstein's W^2 * limit
    slope_sum, curvature_sum the finer sum of a_j w_j and of a_j w_j^2
    """

    value: Floats
    slope: Floats
    curvature: Floats
    limit: Floats
    slope_bound: Floats
    curvature_bound: Floats
    slope_sum: Floats
    curvature_sum: Floats

    @property
    def slope_tightness(self) -> Floats:
        """Measured slope over Bernstein's bound: 1 is tight, 0.01 leaves a hundredfold."""
        return self.slope / self.slope_bound

    @property
    def curvature_tightness(self) -> Floats:
        """Measured curvature over Bernstein's bound."""
        return self.curvature / self.curvature_bound


def smoothness(
    amplitude_NJ: Floats, phase_NJ: Floats, frequency_J: Floats, *, target: int, per_token: int = 2
) -> Smoothness:
    """Measure |S|, |S'|, |S''| over distances 0 .. target-1 and set Bernstein's bounds beside.

    amplitude_NJ, phase_NJ  [N, D/2], of N pairs of query and key
    per_token               points per token; the fastest pair turns by 1 radian per token at most
    """
    w = np.asarray(frequency_J, dtype=np.float64)
    largest = np.zeros((3, len(amplitude_NJ)))
    points = np.arange((target - 1) * per_token + 1) / per_token
    for chunk in np.array_split(points, -(-len(points) // 8192)):
        for order in range(3):
            met = np.abs(score(amplitude_NJ, phase_NJ, w, chunk, order)).max(axis=-1)
            largest[order] = np.maximum(largest[order], met)
    limit, fastest = amplitude_NJ.sum(axis=-1), w.max()
    return Smoothness(
        *largest, limit, fastest * limit, fastest**2 * limit, amplitude_NJ @ w, amplitude_NJ @ w**2
    )


@dataclass(frozen=True)
class Band:
    """Where S must lie across a gap: float64[D] each, at distances int[D]."""

    distances: Ints
    low: Floats
    high: Floats
    limit: float

    @property
    def carried(self) -> int:
        """Distances at which the band says more than |S| <= limit."""
        slack = 1e-9 * self.limit
        return int(np.sum((self.high < self.limit - slack) | (self.low > slack - self.limit)))


def gap_band(
    first: int,
    last: int,
    value_first: float,
    value_last: float,
    *,
    limit: float,
    slope: float,
    curvature: float,
) -> Band:
    """What the two ends of a gap say of S between them.

    first, last              distances just outside the gap, where S is trained
    value_first, value_last  S there
    limit, slope, curvature  bounds on |S|, |S'| and |S''|

    Three bands are intersected: |S| <= limit; the cones S(end) +- slope |d - end| of both ends;
    and the chord between them +- curvature (d - first)(last - d) / 2. The cones leave `limit`
    after at most 2 limit / slope tokens, which is 2 / W = 2 s tokens for Bernstein's slope under
    `pi`: the bounds carry a few tokens into a gap of thousands, and no farther.
    """
    d = np.arange(first, last + 1, dtype=np.int64)
    into, left = (d - first).astype(np.float64), (last - d).astype(np.float64)
    chord = value_first + (value_last - value_first) * into / max(last - first, 1)
    sag = curvature * into * left / 2
    highs = (value_first + slope * into, value_last + slope * left, chord + sag)
    lows = (value_first - slope * into, value_last - slope * left, chord - sag)
    return Band(
        d, np.maximum(-limit, np.max(lows, axis=0)), np.minimum(limit, np.min(highs, axis=0)), limit
    )
