"""Results of arms in one shape: grouped, joined and paired, whatever ran them."""

from __future__ import annotations

import numpy as np
import pytest

from endprompt.compare import answers
from endprompt.compare.progress import State, Tally
from endprompt.compare.results import Result, Scores, joined
from endprompt.distances import by_quarter
from endprompt.record import Key, Window
from endprompt.stats import Estimate

RESULT = Result(
    "pose",
    0,
    trained=True,
    answers={("chain", 8): [(0.1, 1.0), (0.9, 0.0)], ("count", 8): [(1, 1)]},
)


def scores(*bases: list[float], **options: bool) -> Scores:
    return Scores({n: [np.array(values)] for n, values in enumerate(bases)}, **options)


def test_a_group_is_a_task_that_was_asked_at_the_length() -> None:
    groups = RESULT.groups(["chain", "count", "single"], 8, times=100.0)
    assert [group.tolist() for group in groups] == [[100.0, 0.0], [100.0]]
    assert RESULT.groups(["chain"], 16) == []
    assert [group.tolist() for group in RESULT.groups(["chain"], 8, quarter=0)] == [[1.0]]


def test_two_arms_are_compared_on_the_bases_that_both_have_value_by_value() -> None:
    first, other = scores([1.0, 2.0], [5.0, 7.0]), Scores({1: [np.array([1.0, 2.0])]})
    gaps = first.minus(other)
    assert gaps is not None
    assert {base: group.tolist() for base, (group,) in gaps.bases.items()} == {1: [4.0, 5.0]}
    assert gaps.estimate == Estimate(4.5, None, None)  # one base says nothing of others
    assert other.minus(Scores({0: []})) is None
    with pytest.raises(ValueError, match="broadcast"):
        scores([1.0, 2.0]).minus(scores([1.0, 2.0, 3.0]))


def test_equal_differences_of_one_run_need_six_pairs() -> None:
    for pairs, low in ((5, None), (6, 1.0)):
        gaps = scores([2.0] * pairs, one_model=True).minus(scores([1.0] * pairs, one_model=True))
        assert gaps is not None
        assert (gaps.estimate.mean, gaps.estimate.low) == (1.0, low)


def test_several_lengths_are_joined_on_the_bases_that_have_all() -> None:
    both = joined([scores([1.0], [2.0]), Scores({1: [np.array([4.0])]})])
    assert [group.tolist() for group in both.bases[1]] == [[2.0], [4.0]]
    assert list(both.bases) == [1]


def test_a_window_check_gives_every_score_by_length_in_the_order_of_its_questions() -> None:
    needle = {"nll_per_token": 2.0, "digits_right": 0.5, "hit": False}
    check = Window.model_validate(
        {
            "lengths": [8, 16], "last": 4, "seed": 0, "texts": ["x"],
            "curve": [{"start": n, "end": n + 4, "nll": n} for n in (0, 4, 8, 12)],
            "losses": [{"length": 8, "nll": 3.0}, {"length": 16, "nll": 4.0}],
            "needles": [{"length": 16, "depth": depth, **needle} for depth in (0.75, 0.25)],
            "quotes": [{"length": 16, "nll": 1.0}],
        }
    )  # fmt: skip
    asked = answers.of_window(check)
    assert [value for _, value in asked["loss", 16]] == [4.0]
    assert asked["needles", 16] == [(0.75, 0.5), (0.25, 0.5)]
    assert asked["needle-loss", 16] == [(0.75, 2.0), (0.25, 2.0)]
    assert asked["hits", 16] == [(0.75, 0.0), (0.25, 0.0)]
    assert [value for _, value in asked["recall", 16]] == [1.0]
    assert asked["needles", 8] == []
    assert asked["text-loss", 8] == [(0.75, 0.0), (0.25, 4.0)]
    assert by_quarter(asked["text-loss", 16])[0] == [12.0]  # the end of the text
    assert ("key-loss", 16) not in asked
    keys = [{"document": 0, "length": 16, "position": n, "nll": n / 4} for n in (13, 14)]
    searched = check.model_copy(
        update={"key_tokens": [Key.model_validate(key) for key in keys], "key_search": {}}
    )
    asked = answers.of_window(searched)
    assert [value for _, value in asked["key-loss", 16]] == [3.25, 3.5]
    assert asked["key-loss", 8] == []


def test_the_time_left_comes_from_what_took_how_long_so_far() -> None:
    states: list[State] = []
    tally = Tally(["base", "arm", "arm", "arm"], 2, states.append)
    tally.finished("base", 60.0, "base of seed 1")
    tally.finished("arm", 120.0, "pose")
    assert [state.seconds_left for state in states] == [90.0, 120.0]
    assert str(states[1]) == "[2/4] pose, about 2.0 min left"
    for name in ("short", "recall"):
        tally.finished("arm", 120.0, name)
    assert str(states[-1]) == "[4/4] recall"
