"""The verdict says what the numbers say: gains, losses, and what was not measured."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from endprompt.report import verdict as v
from endprompt.report.run_files import METRICS

LOSS, NEEDLE = METRICS[0], METRICS[1]


def arm(name: str, values: dict[int, list[float]], *, trained: bool) -> dict[str, Any]:
    loss = {
        str(length): {"mean": sum(x) / len(x), "low": None, "high": None, "values": x}
        for length, x in values.items()
    }
    return {"name": name, "trained": trained, "evaluation": {"loss": loss}}


def made(*arms: dict[str, Any], target: int = 200) -> dict[str, Any]:
    return {
        "model": {"window_tokens": 100},
        "target": target,
        "recipe": {"name": "ours"},
        "arms": list(arms),
    }


def test_no_difference_at_all_is_not_significant() -> None:
    same = {200: [1.0, 2.0, 3.0]}
    run = made(arm("base", same, trained=False), arm("ours", same, trained=True))
    assert [one.significance for one in v.comparisons(run)] == ["not significant"]


def test_a_lower_loss_is_a_gain_and_a_higher_one_is_called_worse() -> None:
    base = arm("base", {200: [4.0, 4.1, 4.2, 4.3, 4.4]}, trained=False)
    control = arm("short", {200: [2.0, 2.1, 2.2, 2.31, 2.4]}, trained=True)
    ours = arm("ours", {200: [3.0, 3.1, 3.21, 3.3, 3.4]}, trained=True)
    said = v.verdict(made(base, control, ours))
    assert said[0] == (
        "Past the old window of 100 tokens, “ours” is better on every measure than “base”; "
        "worse on every measure than “short”."
    )
    line = next(one for one in said if one.startswith("Loss on the last tokens at 200"))
    assert "better than “base” (+0.998 [" in line
    assert "worse than “short” (-1.000 [" in line


def test_one_gain_among_many_open_measures_is_not_called_a_lead() -> None:
    base = arm(
        "base", {200: [4.0, 4.1, 4.2, 4.3, 4.4], 300: [1.0, 2.0, 3.0, 4.0, 5.0]}, trained=False
    )
    ours = arm(
        "ours", {200: [3.0, 3.1, 3.21, 3.3, 3.4], 300: [5.0, 4.0, 3.0, 2.0, 1.0]}, trained=True
    )
    assert (
        "better on some measures and worse on none than “base”" in (v.verdict(made(base, ours))[0])
    )


def test_a_share_counts_upwards(run: dict[str, Any]) -> None:
    digits = [one for one in v.comparisons(run) if one.metric.name == "digits"]
    past = next(one for one in digits if one.length == 12288 and one.other == "base, unscaled")
    assert past.mean > past.other_mean
    assert past.gain.mean > 0


def test_target_that_was_not_measured_is_said(run: dict[str, Any]) -> None:
    said = " ".join(v.verdict(run))
    assert "At the target itself, 16,384 tokens" in said
    assert "nothing is claimed there" in said


def test_target_that_was_measured_has_a_line_of_its_own() -> None:
    values = {200: [1.0, 1.1, 1.3]}
    run = made(arm("base", values, trained=False), arm("ours", values, trained=True))
    assert (
        "At the target itself, 200 tokens, against “base”: not significant on 1 of 1 measure."
        in (v.verdict(run))
    )


def test_every_measure_past_the_window_has_a_line_and_every_arm_is_named(
    run: dict[str, Any],
) -> None:
    said = v.verdict(run)
    asked = [metric for metric in METRICS if metric.name != "key_loss"]  # of `--key-tokens`
    for metric in asked:
        line = next(one for one in said if one.startswith(f"{metric.label} at 12,288"))
        for other in run["arms"]:
            if other["name"] != "recall":
                assert f"“{other['label']}”" in line


def test_harm_inside_the_window_is_said() -> None:
    base = arm(
        "base", {50: [1.0, 1.1, 1.2, 1.3, 1.4], 200: [4.0, 4.1, 4.2, 4.3, 4.4]}, trained=False
    )
    ours = arm(
        "ours", {50: [2.0, 2.1, 2.21, 2.3, 2.4], 200: [3.0, 3.1, 3.21, 3.3, 3.4]}, trained=True
    )
    said = v.verdict(made(base, ours))
    assert "Inside the old window, against “base”: worse on 1 of 1 measure." in said
    assert any("at 50 tokens" in one and "worse than “base”" in one for one in said)


def test_absent_arms_are_named() -> None:
    values = {200: [1.0, 1.1, 1.3]}
    run = made(arm("base", values, trained=False), arm("ours", values, trained=True))
    assert any(
        "not compared: untrained scaling, a trained control" in one for one in v.verdict(run)
    )


def test_values_that_do_not_pair_give_no_interval() -> None:
    base = arm("base", {200: [4.0, 4.1, 4.2, 4.3]}, trained=False)
    ours = arm("ours", {200: [1.0, 1.1, 1.2]}, trained=True)
    [one] = v.comparisons(made(base, ours))
    assert one.significance == "not significant"
    assert "no interval from 0 pairs" in one.interval


def test_nothing_trained_and_nothing_evaluated_are_said() -> None:
    assert "nothing to judge" in v.verdict(made(arm("base", {}, trained=False)))[0]
    assert "nothing can be claimed" in v.verdict(made(arm("ours", {}, trained=True)))[0]


numbers = st.floats(-5, 5, allow_nan=False).map(lambda x: round(x, 3))


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12))
def test_swapping_the_arms_swaps_the_outcome(pairs: list[tuple[float, float]]) -> None:
    one, two = (list(side) for side in zip(*pairs, strict=True))

    def significance(ours: list[float], other: list[float]) -> str:
        run = made(arm("base", {200: other}, trained=False), arm("ours", {200: ours}, trained=True))
        return v.comparisons(run)[0].significance

    mirror = {"better": "worse", "worse": "better", "not significant": "not significant"}
    assert significance(one, two) == mirror[significance(two, one)]
