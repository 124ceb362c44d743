"""Results of arms to what can be said of them: means, paired differences, intervals, recovery.

An interval is a bootstrap over bases and, inside a base, over its questions, kind by kind. Two
arms are paired: they share bases and questions, so their differences are resampled, not they.
NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from endprompt.compare.results import Result, Scores
from endprompt.stats import Estimate, Floats

Json = dict[str, Any]
LOSS = "loss"
"""The task whose values are losses of a text's quarters."""

CONTROL, RIVAL = "short", "pose"
"""The two arms that every other arm is compared with."""
RECOVERED = 0.9
"""An arm has regained the window when it keeps this part of the base's accuracy inside it."""


def read(record: Json) -> Result:
    """A `record.LabResult` as a result: a task is a kind of question, or `LOSS`."""
    answers = {
        (kind, int(length)): [(depth, float(right)) for depth, right in asked]
        for length, kinds in record["answers"].items()
        for kind, asked in kinds.items()
    }
    losses = {
        (LOSS, int(length)): [
            ((quarter + 0.5) / 4, loss) for text in texts for quarter, loss in enumerate(text)
        ]
        for length, texts in record["loss"].items()
    }
    return Result(
        record["arm"],
        record["seed"],
        record["trained"],
        answers | losses,
        recipe=record["recipe"],
        tokens=record["tokens"],
        seconds=record["train_seconds"],
        flops=record["flops"],
        provenance=record["provenance"],
    )


@dataclass(frozen=True)
class Arms:
    """Results of one arm under one scaling and factor, a base each, and the records they are of."""

    name: str
    scaling: str
    factor: int
    records: tuple[Json, ...]

    @cached_property
    def results(self) -> tuple[Result, ...]:
        return tuple(read(record) for record in self.records)

    @property
    def seeds(self) -> list[int]:
        return [result.base for result in self.results]

    @property
    def trained(self) -> bool:
        return self.results[0].trained

    @cached_property
    def lengths(self) -> list[int]:
        return sorted(int(length) for length in self.records[0]["answers"])

    @property
    def kinds(self) -> list[str]:
        return list(self.records[0]["answers"][str(self.lengths[0])])

    def scores(self, length: int, kinds: Sequence[str] = ()) -> Scores:
        """A base, a kind: float[questions] of 0 and 1."""
        return self._scores(kinds or self.kinds, length, (None,))

    def far_scores(self, length: int) -> Scores:
        """The same of needles in the farthest quarter of the length; counting has no place."""
        return self.quarter_scores(length, 0)

    def quarter_scores(self, length: int, quarter: int) -> Scores:
        """A base, a kind with places: float[questions] of one quarter, 0 the farthest."""
        return self._scores([kind for kind in self.kinds if kind != "count"], length, (quarter,))

    def losses(self, length: int) -> Scores:
        """A base, a quarter: float[texts], nats per token."""
        return self._scores([LOSS], length, range(4))

    def _scores(self, tasks: Sequence[str], length: int, quarters: Iterable[int | None]) -> Scores:
        return Scores(
            {
                result.base: [
                    group
                    for quarter in quarters
                    for group in result.groups(tasks, length, quarter=quarter)
                ]
                for result in self.results
            }
        )

    def accuracy(self, length: int, kinds: Sequence[str] = ()) -> list[float]:
        """Of each base, the mean over kinds."""
        bases = self.scores(length, kinds).bases.values()
        return [float(np.mean([kind.mean() for kind in base])) for base in bases]

    def loss(self, length: int) -> Floats:
        """float[4], the mean loss of each quarter over bases."""
        bases = self.losses(length).bases.values()
        return np.array([[quarter.mean() for quarter in base] for base in bases]).mean(axis=0)

    def of(self, seeds: Sequence[int]) -> Arms:
        """The same on these bases only."""
        kept = tuple(record for record in self.records if record["seed"] in seeds)
        return Arms(self.name, self.scaling, self.factor, kept)


def between(first: Arms, other: Arms, length: int, *, what: str = "scores") -> Estimate | None:
    """Paired difference of two arms on the bases that both have; None where there is none."""
    mine, yours = (getattr(arm, what)(length) for arm in (first, other))
    gaps = mine.minus(yours)
    return None if gaps is None else gaps.estimate


@dataclass(frozen=True)
class Group:
    """All arms of one scaling and factor, the unscaled base among them."""

    scaling: str
    factor: int
    arms: tuple[Arms, ...]

    def find(self, name: str) -> Arms | None:
        """The arm of this name."""
        return next((arm for arm in self.arms if arm.name == name), None)

    @property
    def base(self) -> Arms | None:
        return self.find("none")

    @property
    def control(self) -> Arms | None:
        return self.find(CONTROL)

    @property
    def rival(self) -> Arms | None:
        return self.find(RIVAL)

    @property
    def window(self) -> int:
        return self.arms[0].lengths[0]

    @property
    def target(self) -> int:
        return self.arms[0].lengths[-1]

    def recovered(self, arm: Arms) -> list[int]:
        """Bases on which the arm has regained the accuracy inside the window."""
        if self.base is None:
            return []
        before = dict(zip(self.base.seeds, self.base.accuracy(self.window), strict=True))
        return [
            seed
            for seed, after in zip(arm.seeds, arm.accuracy(self.window), strict=True)
            if seed in before and after >= RECOVERED * before[seed]
        ]

    def best_loss(self) -> float:
        """The lowest mean loss at the target among trained arms."""
        losses = [arm.loss(self.target).mean() for arm in self.arms if arm.trained]
        return float(min(losses, default=np.nan))


def groups(results: Sequence[Json]) -> list[Group]:
    """Results by scaling and factor, arms in the order in which they come."""
    keys = dict.fromkeys(
        (result["factor"], result["scaling"]) for result in results if result["scaling"] != "none"
    )
    grouped = []
    for factor, scaling in keys:
        mine = [
            result
            for result in results
            if result["factor"] == factor and result["scaling"] in (scaling, "none")
        ]
        names = dict.fromkeys(result["arm"] for result in mine)
        arms = tuple(
            Arms(
                name,
                scaling,
                factor,
                tuple(arm_result for arm_result in mine if arm_result["arm"] == name),
            )
            for name in names
        )
        grouped.append(Group(scaling, factor, arms))
    return grouped


VERDICTS = {1: "better", 0: "no better", -1: "worse"}
UNDECIDED = "one base, undecided"


def verdict(gap: Estimate) -> str:
    """`better` and `worse` only where the interval leaves zero out."""
    return UNDECIDED if gap.low is None else VERDICTS[gap.sign]


def sentences(group: Group) -> list[str]:
    """In words, what holds at the target (its mean and its farthest quarter) and what does not."""
    said = []
    for other, title in ((group.control, f"the control ({CONTROL})"), (group.rival, RIVAL)):
        if other is not None:
            said += _against(group, other, title)
    trained = [arm for arm in group.arms if arm.trained]
    if trained:
        best = max(trained, key=lambda arm: float(np.mean(arm.accuracy(group.target))))
        excess = best.loss(group.target).mean() / group.best_loss() - 1
        said.append(
            f"Best accuracy at {group.target:,} tokens: {best.name} "
            f"({np.mean(best.accuracy(group.target)):.3f}). Its loss there is "
            f"{100 * excess:.1f} % above the lowest of all trained arms."
        )
        said.append(_farthest(group, trained))
    return said


def _against(group: Group, other: Arms, title: str) -> list[str]:
    """Arms that are better, worse or neither than one of them, mean and farthest quarter apart."""
    said = []
    for what, where in (("scores", ""), ("far_scores", ", farthest quarter")):
        words: dict[str, list[str]] = {}
        for arm in group.arms:
            gap = between(arm, other, group.target, what=what)
            if arm.name != other.name and arm.trained and gap is not None:
                words.setdefault(verdict(gap), []).append(f"{arm.name} ({gap})")
        for judgement in (*VERDICTS.values(), UNDECIDED):
            if judgement in words:
                note = ", the interval holds zero" if judgement == "no better" else ""
                beside = "beside" if judgement == UNDECIDED else "than"
                said.append(
                    f"{judgement.capitalize()} {beside} {title} at {group.target:,} tokens{where}"
                    f"{note}: {'; '.join(words[judgement])}."
                )
    return said


def _farthest(group: Group, trained: Sequence[Arms]) -> str:
    """The best arm of the farthest quarter, beside what the base has in its own."""
    best = max(trained, key=lambda arm: arm.far_scores(group.target).estimate.mean)
    far = best.far_scores(group.target).estimate.mean
    base = group.base
    said = (
        f"Best in the farthest quarter of {group.target:,} tokens: {best.name} ({far:.3f}; "
        f"{np.mean(best.accuracy(group.target)):.3f} over the whole length)."
    )
    if base is None:
        return said
    own = base.far_scores(group.window).estimate.mean
    return f"{said} The base has {own:.3f} in the farthest quarter of its own {group.window:,}."
