"""Quarters by distance: every value in one, the farthest first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from endprompt import distances

depths = st.floats(0, 1, allow_nan=False)


@given(st.lists(st.tuples(depths, st.floats(0, 1))))
def test_every_value_is_in_the_quarter_of_its_depth(answers: list[tuple[float, float]]) -> None:
    found = distances.by_quarter(answers)
    assert sorted(value for some in found for value in some) == sorted(
        value for _, value in answers
    )
    for n, values in enumerate(found):
        inside = [v for d, v in answers if n / 4 <= d < (n + 1) / 4 or (n == 3 and d == 1)]
        assert values == inside


def test_the_start_of_the_text_is_the_farthest() -> None:
    assert distances.QUARTERS[distances.quarter(0.0)] == distances.FARTHEST == "farthest quarter"
    assert distances.QUARTERS[distances.quarter(1.0)] == "nearest quarter"
