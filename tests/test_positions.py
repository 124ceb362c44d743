"""Every sampler: strictly rising, inside [0, L), ends where it should, as its paper says."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endprompt import positions
from endprompt.errors import PositionError
from endprompt.positions import Ints

Rng = np.random.Generator
seeds = st.integers(0, 2**32)


def rng(seed: int) -> Rng:
    return np.random.default_rng(seed)


@st.composite
def rooms(draw: st.DrawFn, least: int = 1) -> tuple[int, int, int]:
    """(after, length, target) with length tokens that fit into [after, target)."""
    after = draw(st.integers(0, 300))
    length = draw(st.integers(least, 200))
    return after, length, after + length + draw(st.integers(0, 5000))


def well_formed(p: Ints, length: int, after: int, target: int) -> bool:
    rising = bool((np.diff(p) > 0).all())
    inside = after <= p[0] and p[-1] < target
    return p.dtype == np.int64 and len(p) == length and rising and inside


def jumps(p: Ints) -> int:
    return int((np.diff(p) != 1).sum())


def stops_of(length: int, seed: int) -> Ints:
    return np.flatnonzero(rng(seed).random(length) < 0.2)


def lay_out(name: str, length: int, target: int, seed: int, chunks: int = 2) -> Ints:
    return positions.LAYOUTS[name](
        length, target=target, rng=rng(seed), chunks=chunks, stops=stops_of(length, seed)
    )


JUMPING = sorted(set(positions.LAYOUTS) - {"contiguous"})


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(positions).failed == 0


@given(rooms(), seeds)
def test_end_and_random_terminals_stand_in_one_piece(room: tuple, seed: int) -> None:
    after, length, target = room
    end = positions.at_end(length, after=after, target=target)
    somewhere = positions.anywhere(length, after=after, target=target, rng=rng(seed))
    for p in (end, somewhere):
        assert well_formed(p, length, after, target)
        assert jumps(p) == 0
    assert end[-1] == target - 1


@given(rooms(), st.lists(st.integers(1, 40), min_size=1, max_size=6), seeds)
def test_stratified_terminals_keep_their_order_and_their_shares(
    room: tuple, lengths: list[int], seed: int
) -> None:
    after, free, _ = room
    target = after + sum(lengths) + free
    placed = positions.stratified(lengths, after=after, target=target, rng=rng(seed))
    assert [len(p) for p in placed] == lengths
    assert all(jumps(p) == 0 for p in placed)
    assert well_formed(np.concatenate(placed), sum(lengths), after, target)
    for n, p in enumerate(placed):
        skip = p[0] - after - sum(lengths[:n])
        assert free * n // len(lengths) <= skip <= free * (n + 1) // len(lengths)


@given(rooms(), st.integers(1, 8), seeds)
def test_split_terminal_has_its_pieces_and_ends_at_the_target(
    room: tuple, pieces: int, seed: int
) -> None:
    after, length, target = room
    pieces = min(pieces, length)
    p = positions.split(length, after=after, target=target, pieces=pieces, rng=rng(seed))
    assert well_formed(p, length, after, target)
    assert p[-1] == target - 1
    assert jumps(p) <= pieces - 1


@pytest.mark.parametrize("name", positions.LAYOUTS)
@given(room=rooms(least=8), chunks=st.integers(1, 5), seed=seeds)
def test_layouts_rise_inside_the_target_from_zero(
    name: str, room: tuple, chunks: int, seed: int
) -> None:
    _, length, target = room
    p = lay_out(name, length, target, seed, chunks)
    assert well_formed(p, length, 0, target)
    assert p[0] == 0
    np.testing.assert_array_equal(p, lay_out(name, length, target, seed, chunks))


@pytest.mark.parametrize("name", positions.PLACES)
@given(room=rooms(least=8), pieces=st.integers(1, 4), seed=seeds)
def test_places_rise_behind_the_prefix_and_below_the_target(
    name: str, room: tuple, pieces: int, seed: int
) -> None:
    after, length, target = room
    (p,) = positions.PLACES[name](
        [length], after=after, target=target, rng=rng(seed), pieces=pieces
    )
    assert well_formed(p, length, after, target)


@pytest.mark.parametrize("name", positions.LAYOUTS)
def test_without_room_every_layout_is_contiguous(name: str) -> None:
    np.testing.assert_array_equal(lay_out(name, 40, 40, 0), np.arange(40))


@given(st.integers(2, 60), st.integers(0, 500), st.integers(1, 6), seeds)
def test_pose_has_at_most_its_chunks_and_first_chunk_in_place(
    length: int, free: int, chunks: int, seed: int
) -> None:
    chunks = min(chunks, length)
    p = positions.pose(length, target=length + free, rng=rng(seed), chunks=chunks)
    assert jumps(p) <= chunks - 1
    skips = p - np.arange(length)
    assert skips[0] == 0
    assert (np.diff(skips) >= 0).all()


@given(rooms(least=8), seeds)
def test_far_terminals_stand_in_the_farthest_quarter(room: tuple, seed: int) -> None:
    after, length, target = room
    parts = positions.far([length // 2, length - length // 2], after=after, target=target,
                          rng=rng(seed))  # fmt: skip
    whole = np.concatenate(parts)
    assert well_formed(whole, length, after, target)
    free = target - after - length
    assert whole[0] >= after + free - free // 4


def test_octaves_have_equal_shares_of_terminals() -> None:
    """Starts between 2^k and 2^(k+1) are as frequent for every k: log2 of them is uniform."""
    after, target = 255, 4095
    starts = [
        positions.octaves([1, 1], after=after, target=target, rng=rng(seed))[seed % 2][0]
        for seed in range(4000)
    ]
    shares, _ = np.histogram(np.log2(np.array(starts) + 1), bins=[8, 9, 10, 11, 12.001])
    np.testing.assert_allclose(shares / 4000, 0.25, atol=0.03)


def test_scattered_positions_are_a_uniform_draw() -> None:
    drawn = np.concatenate(
        [positions.scattered(20, target=200, rng=rng(seed))[1:] for seed in range(2000)]
    )
    shares, _ = np.histogram(drawn, bins=[1, 50, 100, 150, 200])
    np.testing.assert_allclose(shares / len(drawn), np.array([49, 50, 50, 50]) / 199, atol=0.01)


def test_pose_draws_each_skip_uniformly_above_the_one_before() -> None:
    """Section 3.2: u_1 is uniform in [0, L-T], and u_2 in [u_1, L-T], not a sorted pair."""
    free = 100
    rows = [positions.pose(30, target=130, rng=rng(k), chunks=3) for k in range(4000)]
    last = np.array([p[-1] - 29 for p in rows])
    assert np.mean(last) == pytest.approx(0.75 * free, abs=1.5)  # a sorted pair: 0.667
    two = np.array([positions.pose(30, target=130, rng=rng(k))[-1] - 29 for k in range(4000)])
    counts = np.bincount(two, minlength=free + 1)
    assert len(counts) == free + 1
    assert (counts > 0).mean() > 0.99
    assert np.mean(two) == pytest.approx(free / 2, abs=2)


@given(st.integers(9, 300), st.integers(1, 40), seeds)
def test_cream_has_head_middle_and_tail(length: int, s: int, seed: int) -> None:
    target = length * s
    p = positions.cream(length, target=target, rng=rng(seed))
    assert jumps(p) <= 2
    assert p[-1] == target - 1
    end = int(np.argmax(np.diff(p) != 1)) + 1 if jumps(p) == 2 else None
    if end is not None:
        assert end in (length // 3, min(length // 3, 4 * s))
        np.testing.assert_array_equal(p[:end], np.arange(end))
        np.testing.assert_array_equal(p[-end:], np.arange(target - end, target))


def test_cream_puts_the_middle_around_half_of_the_target_and_everywhere() -> None:
    length, s = 384, 8
    rows = np.array([positions.cream(length, target=length * s, rng=rng(k)) for k in range(3000)])
    middle = rows[:, length // 2]
    share = np.histogram(middle, bins=4, range=(0, length * s))[0] / len(rows)
    assert share[1] + share[2] > 1.5 * (share[0] + share[3])
    assert share.min() > 0.01
    heads = np.array([int(np.argmax(np.diff(p) != 1)) + 1 for p in rows])
    assert (heads == length // 3).mean() == pytest.approx(0.5, abs=0.05)


@given(st.integers(2, 120), st.integers(0, 400), seeds)
def test_longrecipe_breaks_between_sentences_only(length: int, free: int, seed: int) -> None:
    stops = stops_of(length, seed)
    p = positions.sentences(length, stops=stops, target=length + free, rng=rng(seed))
    allowed = {*stops.tolist()}
    intact = np.flatnonzero(np.diff(p) != 1)
    first = 0 if len(intact) == 0 else int(intact[0])
    # the first break may also be where the intact beginning ends
    assert set(intact[1:].tolist()) <= allowed
    assert first in allowed or first < (length + 1) // 2
    given_intact = positions.sentences(
        length, stops=stops, target=length + free, rng=rng(seed), intact=length
    )
    np.testing.assert_array_equal(given_intact, np.arange(length))


def test_longrecipe_skips_are_what_a_random_order_leaves() -> None:
    """Two sentences: the skip k between them has probability proportional to (places left)."""
    free, n = 9, 20000
    draws = rng(5)
    skips = np.array(
        [
            positions.sentences(
                4, stops=np.array([1, 3]), target=4 + free, rng=draws, intact=1
            )[2] - 2
            for _ in range(n)
        ]
    )  # fmt: skip
    # sorted pair of 11 slots, the second at k+1: C(k+1, 1) of C(11, 2)
    expected = np.array([(k + 1) / 55 for k in range(free + 1)])
    np.testing.assert_allclose(np.bincount(skips, minlength=free + 1) / n, expected, atol=0.012)


@pytest.mark.parametrize("place", ["at_end", "anywhere", "split"])
def test_too_little_room_is_refused_with_the_excess(place: str) -> None:
    more = {"at_end": {}, "anywhere": {"rng": rng(0)}, "split": {"rng": rng(0), "pieces": 1}}
    message = r"prefix 8190 \+ terminal 20 tokens exceed target 8192 by 18: shorten"
    with pytest.raises(PositionError, match=message):
        getattr(positions, place)(20, after=8190, target=8192, **more[place])


@pytest.mark.parametrize("name", JUMPING)
def test_a_row_longer_than_the_target_is_refused(name: str) -> None:
    with pytest.raises(PositionError, match="exceed target 40 by 1"):
        lay_out(name, 41, 40, 0)


def test_more_pieces_than_tokens_are_refused() -> None:
    with pytest.raises(PositionError, match="a terminal of 3 tokens cannot be cut in 4 pieces"):
        positions.split(3, after=0, target=90, pieces=4, rng=rng(0))
    with pytest.raises(PositionError, match="a row of 3 tokens cannot be cut in 4 chunks"):
        positions.pose(3, target=90, chunks=4, rng=rng(0))
    with pytest.raises(PositionError, match="no head, middle and tail: it needs 3"):
        positions.cream(2, target=90, rng=rng(0))
