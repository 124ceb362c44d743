"""Intervals against closed forms, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from endprompt import stats
from endprompt.stats import Estimate

RNG = np.random.default_rng(3)


def test_the_interval_of_values_is_that_of_a_normal_mean() -> None:
    values = RNG.normal(2.0, 1.0, 400)
    found = stats.of_values(values)
    assert found.low == pytest.approx(values.mean() - 1.96 / 20, abs=0.02)
    assert found.high == pytest.approx(values.mean() + 1.96 / 20, abs=0.02)
    assert stats.of_values(values) == found


def test_groups_weigh_the_same_whatever_their_size() -> None:
    found = stats.of_groups([np.zeros(1000), np.ones(10)])
    assert found == Estimate(0.5, 0.5, 0.5)


def test_the_interval_over_bases_covers_the_spread_between_them() -> None:
    offsets = RNG.normal(0.0, 1.0, 12)
    bases = [[offset + RNG.normal(0.0, 0.01, 500)] for offset in offsets]
    found = stats.of_bases(bases)
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * offsets.std() / np.sqrt(len(offsets))
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_pairing_removes_what_both_share() -> None:
    shared = RNG.normal(0.0, 10.0, 50)
    one, other = [[shared + 0.5]], [[shared]]
    assert stats.of_bases(stats.differences(one * 2, other * 2)).sign == 1


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
def test_too_few_values_have_no_interval(values: list[float]) -> None:
    assert stats.of_values(values) == Estimate(float(np.mean(values)), None, None)
    assert stats.of_differences(values).sign == 0


def test_one_base_has_no_interval() -> None:
    assert stats.of_bases([[np.arange(100.0)]]).low is None


def test_equal_differences_need_six_values() -> None:
    assert stats.of_differences([1.0] * 5) == Estimate(1.0, None, None)
    assert stats.of_differences([1.0] * 6) == Estimate(1.0, 1.0, 1.0)


def test_an_estimate_is_printed_with_its_interval() -> None:
    assert str(Estimate(0.12, 0.02, 0.21)) == "+0.120 [+0.020, +0.210]"
    assert str(Estimate(-0.5, None, None)) == "-0.500"
