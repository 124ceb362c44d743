"""What a suite will take is counted in reads and steps of decoding, and said before it starts."""

from __future__ import annotations

import pytest
from tiny_lm import tiny_engine

from endprompt.eval import estimate, suites


def test_the_estimate_counts_reads_and_steps_of_full_batches(monkeypatch) -> None:
    engine = tiny_engine()
    monkeypatch.setattr(estimate, "_speed", lambda _: (engine.work(1000), 0.5))
    rows = engine.rows_at_once(1000)
    assert rows > 1
    # A read of 1,000 tokens takes a second, a step half a second.
    one = estimate.seconds(engine, [(1000, 8)])
    assert one == pytest.approx(1 + 8 * 0.5)
    assert estimate.seconds(engine, [(1000, 8)] * rows) == pytest.approx(rows + 8 * 0.5)
    assert estimate.seconds(engine, [(1000, 8)] * (rows + 1)) == pytest.approx(rows + 1 + 8)
    mixed = [(1000, 8), (1000, 20), (500, 2)]
    half = engine.work(500) / engine.work(1000)
    assert estimate.seconds(engine, mixed) == pytest.approx(2 + 20 * 0.5 + half + 2 * 0.5)


def test_the_speed_is_measured_on_this_machine() -> None:
    read, step = estimate._speed(tiny_engine())
    assert 1e6 < read < 1e15
    assert 0 <= step < 10


def test_ruler_knows_its_sizes_before_a_prompt_is_made() -> None:
    suite = suites.ruler_suite(
        tiny_engine(), tasks=["vt", "niah_single_1"], lengths=[4096, 8192], samples=3, seed=0
    )
    assert len(suite.sizes) == suite.total == 12
    assert {length for length, _ in suite.sizes} == {4096, 8192}
    assert {tokens for _, tokens in suite.sizes} == {30, 128}
