"""The verdict of a run in plain words, written from its numbers by rule.

Arms are compared on the same documents and needles, so the interval is that of the paired
differences (`endprompt.stats`, 95 %). It covers the choice of documents and needles, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from endprompt import stats
from endprompt.report.reading import (
    METRICS,
    Arm,
    Measured,
    Metric,
    Role,
    Run,
    label,
    lengths,
    measured,
    roles,
    window,
)

Outcome = Literal["better", "worse", "not significant"]
OUTCOMES: tuple[Outcome, ...] = ("better", "worse", "not significant")
STANDING = {
    frozenset({"better", "worse"}): "better on some measures and worse on others than",
    frozenset({"better"}): "better on some measures and worse on none than",
    frozenset({"worse"}): "worse on some measures and better on none than",
    frozenset(): "not significantly different from",
}
"""How a headline sums up outcomes, those not significant aside."""


@dataclass(frozen=True)
class Comparison:
    """One arm against another by one metric at one length. `gain` above 0 is better."""

    metric: Metric
    length: int
    arm: str
    other: str
    role: Role
    mean: float
    other_mean: float
    gain: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def outcome(self) -> Outcome:
        """Better or worse only where the interval leaves zero out."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "not significant"
        return "better" if self.low > 0 else "worse"

    @property
    def interval(self) -> str:
        """The gain with its interval, or why there is none."""
        if self.low is None or self.high is None:
            return f"{self.gain:+.3f}, no interval from {plural(self.pairs, 'pair')}"
        return f"{self.gain:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def _gain(metric: Metric, one: Measured, two: Measured) -> tuple[float, float | None, float | None]:
    sign = 1 if metric.higher_is_better else -1
    gain = sign * (one.mean - two.mean)
    if not one.values or len(one.values) != len(two.values):
        return gain, None, None
    gains = [sign * (a - b) for a, b in zip(one.values, two.values, strict=True)]
    found = stats.of_differences(gains)
    return gain, found.low, found.high


def comparisons(run: Run) -> list[Comparison]:
    """The run's method against every other arm, by every metric, at every shared length."""
    parts = roles(run)
    method = next((arm for arm, role in parts if role == "method"), None)
    if method is None:
        return []
    found = []
    for metric in METRICS:
        for length in lengths(run, metric, among=[method]):
            one = measured(method, metric, length)
            for arm, role in parts:
                two = measured(arm, metric, length)
                if arm is method or one is None or two is None:
                    continue
                gain, low, high = _gain(metric, one, two)
                pairs = len(one.values) if len(one.values) == len(two.values) else 0
                found.append(
                    Comparison(
                        metric, length, label(method), label(arm), role,
                        one.mean, two.mean, gain, low, high, pairs,
                    )
                )  # fmt: skip
    return found


def verdict(run: Run) -> list[str]:
    """Sentences: first the tally against each arm, then every metric and length by itself.

    Losses are named as plainly as gains, and what was not measured is said.
    """
    everything = comparisons(run)
    method = next((arm for arm, role in roles(run) if role == "method"), None)
    if method is None:
        return ["No arm of this run was trained: there is nothing to judge."]
    if not everything:
        return [f"“{label(method)}” was not evaluated beside another arm: nothing can be claimed."]
    old, target = window(run), run.get("target")
    if old is None:
        return ["The model's own window is not recorded: what lies past it is unknown."]
    past = [one for one in everything if one.length > old]
    inside = [one for one in everything if one.length <= old]
    if past:
        said = [_headline(past, old), *_tally(past, "Past the old window")]
    else:
        said = [f"Nothing was measured past the old window of {old:,} tokens."]
    if target is not None:
        said += _at_target(past, method, int(target))
    said += _missing_roles(run)
    said += [sentence for group in _groups(past) for sentence in [_sentence(group)]]
    said += _tally(inside, "Inside the old window")
    said += [_sentence(group) for group in _groups(inside) if _any(group, "worse")]
    said.append(_limits(everything))
    return said


def _groups(some: Sequence[Comparison]) -> list[list[Comparison]]:
    keys = dict.fromkeys((one.metric.name, one.length) for one in some)
    return [[one for one in some if (one.metric.name, one.length) == key] for key in keys]


def _any(some: Sequence[Comparison], outcome: Outcome) -> bool:
    return any(one.outcome == outcome for one in some)


def _headline(past: Sequence[Comparison], old: int) -> str:
    standing: dict[str, list[str]] = {}
    for other in dict.fromkeys(one.other for one in past):
        mine = {one.outcome for one in past if one.other == other}
        word = STANDING[frozenset(mine - {"not significant"})]
        if mine in ({"better"}, {"worse"}):
            word = f"{next(iter(mine))} on every measure than"
        standing.setdefault(word, []).append(f"“{other}”")
    parts = [f"{word} {', '.join(others)}" for word, others in standing.items()]
    return f"Past the old window of {old:,} tokens, “{past[0].arm}” is {'; '.join(parts)}."


def _tally(some: Sequence[Comparison], where: str) -> list[str]:
    said = []
    for other in dict.fromkeys(one.other for one in some):
        mine = [one.outcome for one in some if one.other == other]
        counts = [f"{word} on {mine.count(word)}" for word in OUTCOMES if word in mine]
        said.append(
            f"{where}, against “{other}”: {', '.join(counts)} of {plural(len(mine), 'measure')}."
        )
    return said


def _at_target(past: Sequence[Comparison], method: Arm, target: int) -> list[str]:
    here = [one for one in past if one.length == target]
    if here:
        return _tally(here, f"At the target itself, {target:,} tokens")
    farthest = max((one.length for one in past), default=0)
    reached = f"; the farthest length measured is {farthest:,}" if farthest else ""
    return [
        f"At the target itself, {target:,} tokens, “{label(method)}” was not measured{reached}: "
        "nothing is claimed there."
    ]


def _missing_roles(run: Run) -> list[str]:
    there = {role for _, role in roles(run)}
    names = {"base": "the base", "untrained": "untrained scaling", "control": "a trained control"}
    absent = [name for role, name in names.items() if role not in there]
    if not absent:
        return []
    return [f"Not in this run, so not compared: {', '.join(absent)}."]


def _sentence(group: Sequence[Comparison]) -> str:
    first = group[0]
    parts = []
    for outcome in OUTCOMES:
        mine = [one for one in group if one.outcome == outcome]
        if mine:
            word = STANDING[frozenset()] if outcome == "not significant" else f"{outcome} than"
            parts.append(f"{word} " + ", ".join(f"“{one.other}” ({one.interval})" for one in mine))
    return (
        f"{first.metric.label} at {first.length:,} tokens ({first.mean:.3f} {first.metric.unit}): "
        + "; ".join(parts)
        + "."
    )


def _limits(everything: Sequence[Comparison]) -> str:
    resolved = [one for one in everything if one.low is not None]
    if not resolved:
        return f"No comparison has {stats.FEWEST} paired values or more: nothing is established."
    sizes = sorted({one.pairs for one in resolved})
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return (
        "Gains are differences in the metric's own unit, above zero is better, with 95 % "
        f"intervals over {size} paired values from one training run; other seeds and other "
        f"texts are not covered. Of {plural(len(resolved), 'comparison')}, about "
        f"{max(1, round(0.05 * len(resolved)))} would seem to differ by chance alone."
    )


def plural(count: int, noun: str) -> str:
    """'1 pair', '2 pairs'."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
