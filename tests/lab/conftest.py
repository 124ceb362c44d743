"""A laboratory of toys: bases that know nothing, trained for three steps."""

from __future__ import annotations

import pytest

from endprompt.lab import arms
from endprompt.lab.arms import Regime
from endprompt.lab.model import Base
from endprompt.lab.study import Study
from tiny_checkpoint import RECALL_POSE


@pytest.fixture(scope="session")
def regime() -> Regime:
    base = Base(width=32, mlp=16, steps=3, tokens_per_step=256)
    return Regime(base=base, tokens_per_step=256, steps={"pi": 2}, examinations=2)


@pytest.fixture(scope="session")
def toy(regime: Regime) -> Study:
    recipes = tuple(arms.load(name) for name in ("short", "pose", str(RECALL_POSE)))
    return Study(recipes, scalings=("pi",), factors=(2,), seeds=(100, 101), regime=regime)
