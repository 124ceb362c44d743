"""The verdict of a run in plain words, written from its numbers by rule.

Arms are compared on the same documents and needles, so the interval is that of the paired
differences (`endprompt.stats`, 95 %). It covers the choice of documents and needles, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from endprompt import stats
from endprompt.report.run_files import (
    Arm,
    Measured,
    Metric,
    Role,
    Run,
    label,
    lengths,
    measured,
    metrics,
    roles,
    window,
)
from endprompt.stats import Estimate, Significance

SIGNIFICANCES: tuple[Significance, ...] = ("better", "worse", "not significant")
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
    gain: Estimate
    pairs: int

    @property
    def significance(self) -> Significance:
        """Better or worse only where the interval leaves zero out."""
        return self.gain.significance

    @property
    def interval(self) -> str:
        """The gain with its interval, or why there is none."""
        if self.gain.low is None:
            return f"{self.gain}, no interval from {plural(self.pairs, 'pair')}"
        return str(self.gain)


def _gain(metric: Metric, ours: Measured, theirs: Measured) -> tuple[Estimate, int]:
    """What ours is better by, and the number of pairs; no interval where values are no pairs."""
    first, other = (ours, theirs) if metric.higher_is_better else (theirs, ours)
    gain = Estimate(first.estimate.mean - other.estimate.mean, None, None)
    sizes = [len(values) for some in (ours, theirs) for (values,) in some.scores.bases.values()]
    if len(sizes) < 2 or sizes[0] != sizes[1]:
        return gain, 0
    gaps = first.scores.minus(other.scores)
    return gain if gaps is None else replace(gaps.estimate, mean=gain.mean), sizes[0]


def comparisons(run: Run) -> list[Comparison]:
    """The run's method against every other arm, by every metric, at every shared length."""
    parts = roles(run)
    method = next((arm for arm, role in parts if role == "method"), None)
    if method is None:
        return []
    listed = []
    for metric in metrics(run):
        for length in lengths(run, metric, among=[method]):
            ours = measured(method, metric, length)
            for arm, role in parts:
                two = measured(arm, metric, length)
                if arm is method or ours is None or two is None:
                    continue
                means = ours.estimate.mean, two.estimate.mean
                listed.append(
                    Comparison(metric, length, label(method), label(arm), role, *means,
                               *_gain(metric, ours, two))
                )  # fmt: skip
    return listed


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
    past = [comparison for comparison in everything if comparison.length > old]
    inside = [comparison for comparison in everything if comparison.length <= old]
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
    keys = dict.fromkeys((comparison.metric.name, comparison.length) for comparison in some)
    return [
        [comparison for comparison in some if (comparison.metric.name, comparison.length) == key]
        for key in keys
    ]


def _any(some: Sequence[Comparison], significance: Significance) -> bool:
    return any(comparison.significance == significance for comparison in some)


def _headline(past: Sequence[Comparison], old: int) -> str:
    standing: dict[str, list[str]] = {}
    for other in dict.fromkeys(comparison.other for comparison in past):
        mine = {comparison.significance for comparison in past if comparison.other == other}
        word = STANDING[frozenset(mine - {"not significant"})]
        if mine in ({"better"}, {"worse"}):
            word = f"{next(iter(mine))} on every measure than"
        standing.setdefault(word, []).append(f"“{other}”")
    parts = [f"{word} {', '.join(others)}" for word, others in standing.items()]
    return f"Past the old window of {old:,} tokens, “{past[0].arm}” is {'; '.join(parts)}."


def _tally(some: Sequence[Comparison], where: str) -> list[str]:
    said = []
    for other in dict.fromkeys(comparison.other for comparison in some):
        mine = [comparison.significance for comparison in some if comparison.other == other]
        counts = [f"{word} on {mine.count(word)}" for word in SIGNIFICANCES if word in mine]
        said.append(
            f"{where}, against “{other}”: {', '.join(counts)} of {plural(len(mine), 'measure')}."
        )
    return said


def _at_target(past: Sequence[Comparison], method: Arm, target: int) -> list[str]:
    here = [comparison for comparison in past if comparison.length == target]
    if here:
        return _tally(here, f"At the target itself, {target:,} tokens")
    farthest = max((comparison.length for comparison in past), default=0)
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
    for significance in SIGNIFICANCES:
        mine = [comparison for comparison in group if comparison.significance == significance]
        if mine:
            word = (
                STANDING[frozenset()]
                if significance == "not significant"
                else f"{significance} than"
            )
            parts.append(
                f"{word} "
                + ", ".join(f"“{comparison.other}” ({comparison.interval})" for comparison in mine)
            )
    return (
        f"{first.metric.label} at {first.length:,} tokens ({first.mean:.3f} {first.metric.unit}): "
        + "; ".join(parts)
        + "."
    )


def _limits(everything: Sequence[Comparison]) -> str:
    resolved = [comparison for comparison in everything if comparison.gain.low is not None]
    if not resolved:
        return f"No comparison has {stats.FEWEST} paired values or more: nothing is established."
    sizes = sorted({comparison.pairs for comparison in resolved})
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
