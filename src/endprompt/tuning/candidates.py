"""Which RoPE scalings are tried, in what order, and which of them are verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from endprompt import recipe as recipes
from endprompt import rope
from endprompt.errors import RopeError
from endprompt.models import checkpoint as models
from endprompt.models.families import Family
from endprompt.recipe import Recipe

USUAL = ("yarn", "ntk", "longrope")
"""Rules that are tried where nobody names any: a ramp, a raised theta, factors of one parameter."""
HEADROOMS = (1.0, 1.5, 2.0, 3.0)
"""Multiples of L / L0 that each rule is tried with at first."""
BEST = 3
"""Candidates that are verified as the probe's best."""


@dataclass(frozen=True)
class Candidate:
    """A scaling as a recipe names it: rule, multiple of L / L0, settings of the rule."""

    scaling: str
    headroom: float
    settings: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        """Short, and fit for a file.

        >>> Candidate("yarn", 1.5, (("beta_fast", 16.0),)).name
        'yarn-1.5-beta_fast-16'
        """
        words = [f"{key}-{value:g}" for key, value in self.settings]
        return "-".join([self.scaling, f"{self.headroom:g}", *words])

    @property
    def overrides(self) -> dict[str, Any]:
        """Keys of a recipe and their values, as `--set` takes them."""
        return {
            "rope.scaling": self.scaling,
            "rope.headroom": self.headroom,
            **{f"rope.{key}": value for key, value in self.settings},
        }

    @property
    def recipe(self) -> Recipe:
        """A recipe that scales so and trains nothing."""
        return recipes.load("none").replace(self.overrides)


def searched(family: Family, target: int, asked: Sequence[str]) -> list[str]:
    """Rules to try: those asked for, else the usual ones that the model can have.

    Raises RopeError for a rule that was asked for and is unknown or has no form for the model.
    """
    if asked:
        for scaling in asked:
            if scaling == "none":
                raise RopeError("scaling 'none' scales nothing: name a rule")
            models.scaled_parameters(family, Candidate(scaling, 1.0).recipe, target)
        return list(dict.fromkeys(asked))
    allowed = []
    for scaling in dict.fromkeys([family.suited(USUAL[0]), *USUAL]):
        try:
            models.scaled_parameters(family, Candidate(scaling, 1.0).recipe, target)
        except RopeError:
            continue
        allowed.append(scaling)
    if not allowed:  # says why the model's own rule can't be extended
        models.scaled_parameters(family, Candidate(family.suited(USUAL[0]), 1.0).recipe, target)
    return allowed


def by_factor(scalings: Sequence[str]) -> list[Candidate]:
    """Every rule with every headroom of `HEADROOMS`."""
    return [Candidate(scaling, headroom) for scaling in scalings for headroom in HEADROOMS]


def between(best: Candidate) -> list[Candidate]:
    """The best with headrooms half-way to its neighbours; above the last one, 4.

    >>> [found.headroom for found in between(Candidate("yarn", 1.5))]
    [1.25, 1.75]
    """
    steps = [(low + high) / 2 for low, high in pairwise(HEADROOMS)]
    place = HEADROOMS.index(best.headroom)
    near = [*steps[max(place - 1, 0) : place + 1], *([4.0] if place == len(HEADROOMS) - 1 else [])]
    return [Candidate(best.scaling, headroom) for headroom in near]


def varied(best: Candidate, base: rope.Base, parameters: rope.Parameters) -> list[Candidate]:
    """The best with each setting of its rule changed, one at a time.

    parameters  `rope_parameters` of the best

    Ends of a ramp are halved and doubled; the factor on cos and sin is .05 less and more. A base
    that is scaled already keeps its own ramp.
    """
    rule = rope.RULES.get(best.scaling)
    keys = rule.keys if rule else ()
    values: list[tuple[str, float]] = []
    if "attention_factor" in keys:
        _, size = rope.inverse_frequencies(parameters, base.rotary_size, window=base.window)
        values += [("attention_factor", round(size + step, 3)) for step in (-0.05, 0.05)]
    if base.parameters is None:
        ramp = [key for key in rope.USUAL if key in keys]
        values += [(key, rope.USUAL[key] * times) for key in ramp for times in (0.5, 2.0)]
    return [Candidate(best.scaling, best.headroom, (value,)) for value in values]


def to_verify(ranked: Sequence[str], plain: str, count: int) -> list[str]:
    """Names to read at the true length, of candidates from the best to the worst.

    plain  the one with factor L / L0

    The best three, the plain one and the worst, so that a rank correlation has something to rank;
    then the one in the middle, and further ones from the top.

    >>> to_verify(["a", "b", "c", "d", "e", "f", "g"], "f", 6)
    ['a', 'b', 'c', 'f', 'g', 'd']
    """
    middle = ranked[len(ranked) // 2]
    order = [*ranked[:BEST], plain, ranked[-1], middle, *ranked]
    return list(dict.fromkeys(order))[:count]
