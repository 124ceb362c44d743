"""Coverage against brute force, the score against RoPE itself, the bounds against everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endprompt import positions, rope, theory
from endprompt.errors import PositionError

rows = st.lists(st.integers(0, 120), min_size=1, max_size=30, unique=True).map(
    lambda found: np.array(sorted(found))
)
floats = st.floats(-3, 3, allow_nan=False, width=32)


def brute_force(positions_RT: list[np.ndarray], target: int) -> np.ndarray:
    counts = np.zeros(target, dtype=np.int64)
    for row in positions_RT:
        for place, query in enumerate(row):
            for key in row[: place + 1]:
                counts[query - key] += 1
    return counts


@given(st.lists(rows, max_size=4))
def test_coverage_counts_every_causal_pair(found: list[np.ndarray]) -> None:
    counts = theory.coverage(found, target=121)
    np.testing.assert_array_equal(counts, brute_force(found, 121))
    assert counts.sum() == sum(len(row) * (len(row) + 1) // 2 for row in found)


@given(st.lists(rows, max_size=4))
def test_rows_of_many_stretches_are_counted_as_rows_of_few(found: list[np.ndarray]) -> None:
    counts = theory.coverage(found, target=121)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theory, "MANY_STRETCHES", 0)
        np.testing.assert_array_equal(theory.coverage(found, target=121), counts)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 60))
def test_exact_distances_are_those_that_the_papers_rows_have(
    prefix: int, terminal: int, room: int
) -> None:
    target = prefix + terminal + room
    row = positions.anchor(np.zeros(prefix), np.zeros(terminal), target=target).positions
    seen = theory.coverage([row], target=target) > 0
    exact = theory.anchored(prefix, terminal, target=target)
    expected = np.zeros(target, dtype=bool)
    for first, last in exact.observed:
        expected[first : last + 1] = True
    np.testing.assert_array_equal(seen, expected)
    if exact.gap is None:
        assert seen.all()
    else:
        assert exact.gap == (max(prefix, terminal), target - prefix - terminal)
        assert not seen[exact.gap[0] : exact.gap[1] + 1].any()


@pytest.mark.parametrize("row", [[3, 2], [1, 1], [-1, 2], [0, 8]])
def test_other_positions_are_refused(row: list[int]) -> None:
    with pytest.raises(PositionError, match=r"strictly increasing in \[0, 8\)"):
        theory.coverage([np.array(row)], target=8)


def test_impossible_segments_are_refused() -> None:
    for prefix, terminal in ((0, 4), (4, 0), (5, 4)):
        with pytest.raises(PositionError, match="at most the target 8"):
            theory.anchored(prefix, terminal, target=8)


def test_an_empty_row_trains_nothing() -> None:
    assert theory.coverage([np.array([], dtype=np.int64)], target=3).tolist() == [0, 0, 0]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.lists(st.integers(-1, 50)))
def test_intervals_hold_all_pairs_and_only_trained_distances(
    counts: list[int], edges: list[int]
) -> None:
    found = theory.intervals(np.array(counts), edges)
    rebuilt = np.zeros(len(counts), dtype=bool)
    for first, last, pairs in found:
        assert pairs == sum(counts[first : last + 1])
        assert not any(first < edge <= last for edge in edges)
        rebuilt[first : last + 1] = True
    assert rebuilt.tolist() == [count > 0 for count in counts]


def test_octaves_are_even_on_a_log_axis() -> None:
    assert theory.octaves(1) == []
    edges = theory.octaves(2**16)
    assert edges[0] == 1
    late = np.diff(np.log2([edge for edge in edges if edge > 64]))
    assert np.allclose(late, 0.25, atol=0.02)


def rotated(x_D: np.ndarray, position: float, frequency_J: np.ndarray) -> np.ndarray:
    """RoPE as Transformers does it: x cos + rotate_half(x) sin."""
    angle = np.tile(position * frequency_J, 2)
    half = len(x_D) // 2
    return x_D * np.cos(angle) + np.concatenate([-x_D[half:], x_D[:half]]) * np.sin(angle)


vectors = st.lists(floats, min_size=8, max_size=8).map(np.array)


@given(vectors, vectors, st.integers(0, 10**5), st.integers(0, 10**5))
def test_score_is_the_product_of_rotated_query_and_key(
    query: np.ndarray, key: np.ndarray, start: int, distance: int
) -> None:
    w = 10000.0 ** (-np.arange(0, 8, 2) / 8)
    amplitude, phase = theory.polynomial(query, key)
    expected = rotated(query, start + distance, w) @ rotated(key, start, w)
    found = theory.score(amplitude, phase, w, np.array([distance]))[0]
    assert found == pytest.approx(expected, abs=1e-7)


@given(vectors, vectors, st.floats(0, 1000))
def test_derivatives_are_derivatives(query: np.ndarray, key: np.ndarray, d: float) -> None:
    w = 100.0 ** (-np.arange(0, 8, 2) / 8)
    amplitude, phase = theory.polynomial(query, key)
    h = 1e-5
    for order in (0, 1):
        low, high = theory.score(amplitude, phase, w, np.array([d - h, d + h]), order)
        slope = theory.score(amplitude, phase, w, np.array([d]), order + 1)[0]
        assert (high - low) / (2 * h) == pytest.approx(slope, abs=1e-4)


@given(
    st.lists(st.tuples(st.integers(0, 6), floats, floats), min_size=1, max_size=6),
    st.floats(0.01, 1),
)
def test_no_trigonometric_polynomial_breaks_bernsteins_bounds(
    terms: list[tuple[int, float, float]], unit: float
) -> None:
    # Whole multiples of one frequency: the whole line is one period, and suprema can be had.
    n, a, phase = (np.array(column, dtype=np.float64) for column in zip(*terms, strict=True))
    w, W = n * unit, n.max() * unit
    points = np.linspace(0, 2 * np.pi / unit, 4001)
    value, slope, curvature = (
        np.abs(theory.score(np.abs(a), phase, w, points, order)).max() for order in range(3)
    )
    value /= np.cos(W * (points[1] - points[0]) / 2)  # what lies between the points
    assert slope <= W * value + 1e-9
    assert curvature <= W**2 * value + 1e-9


@given(vectors, vectors, st.sampled_from(["none", "pi", "ntk", "yarn"]))
def test_measured_smoothness_keeps_to_the_bounds(
    query: np.ndarray, key: np.ndarray, scaling: str
) -> None:
    base = rope.Base(1000.0, 8, 64)
    w, _ = rope.inverse_frequencies(rope.parameters(base, scaling, 4.0), 8)
    found = theory.smoothness(*theory.polynomial(query[None], key[None]), w, target=256)
    for measured, finer, bound in (
        (found.value, found.limit, found.limit),
        (found.slope, found.slope_sum, found.slope_bound),
        (found.curvature, found.curvature_sum, found.curvature_bound),
    ):
        assert measured[0] <= finer[0] + 1e-9
        assert finer[0] <= bound[0] + 1e-9


def test_only_pi_divides_the_bound() -> None:
    base, ones = rope.Base(1000.0, 8, 64), np.ones((1, 4))

    def bound(scaling: str) -> float:
        w, _ = rope.inverse_frequencies(rope.parameters(base, scaling, 4.0), 8)
        return theory.smoothness(ones, 0 * ones, w, target=64).slope_bound[0]

    assert bound("pi") == pytest.approx(bound("none") / 4)
    assert bound("ntk") == pytest.approx(bound("none"))
    assert bound("yarn") == pytest.approx(bound("none"))


def test_one_cosine_is_tight() -> None:
    one = np.ones((1, 1))
    found = theory.smoothness(one, 0 * one, np.array([0.5]), target=512, per_token=16)
    assert found.slope_tightness[0] == pytest.approx(1, abs=1e-3)
    assert found.curvature_tightness[0] == pytest.approx(1, abs=1e-3)


@given(vectors, vectors, st.integers(1, 300), st.integers(0, 200))
def test_gap_band_holds_the_score(
    query: np.ndarray, key: np.ndarray, first: int, size: int
) -> None:
    w = 1000.0 ** (-np.arange(0, 8, 2) / 8) / 4
    amplitude, phase = theory.polynomial(query, key)
    d = np.arange(first, first + size + 1)
    values = theory.score(amplitude, phase, w, d)
    band = theory.gap_band(
        first,
        first + size,
        values[0],
        values[-1],
        limit=float(amplitude.sum()),
        slope=float(amplitude @ w),
        curvature=float(amplitude @ w**2),
    )
    np.testing.assert_array_equal(band.distances, d)
    assert (band.low <= values + 1e-9).all()
    assert (values <= band.high + 1e-9).all()


def test_bernsteins_slope_carries_two_factors_from_each_end() -> None:
    s, limit = 8.0, 1.0
    band = theory.gap_band(
        1000, 60000, 0.0, 0.0, limit=limit, slope=limit / s, curvature=limit / s**2
    )
    # From a score of 0 the cone reaches the limit after s tokens, at both ends.
    assert band.carried == 2 * s
