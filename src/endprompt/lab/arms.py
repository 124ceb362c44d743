"""Recipes at the laboratory's size: the same rows and training, spans and amounts made smaller."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from endprompt import recipe as recipes
from endprompt.errors import RecipeError
from endprompt.lab.examine import Questions
from endprompt.lab.model import Base
from endprompt.recipe import Recipe, Rope, Terminal
from endprompt.rope import usual_headroom

STANDARD = (
    "short",
    "short-recall",
    "endprompt",
    "endprompt-random",
    "endprompt-split",
    "pose",
    "endprompt-pose",
    "fact-anchors",
    "recall-anchors",
    "distilled-anchors",
    "continuation",
    "full",
)
QUICK = ("short", "endprompt", "pose", "fact-anchors")
SCALINGS = ("pi", "yarn", "ntk", "llama3")
STANDARD_SCALINGS = ("pi", "yarn")
OVERRIDDEN = {
    "rope.scaling": "--scaling",
    "rope.factor": "--factor",
    "rope.headroom": "--headroom",
    "rows.tokens": "the laboratory's window",
    "rows.kinds.terminal.tokens": "a quarter of a continuation's",
    "rows.kinds.terminal.recall.cue_tokens": "a quarter",
    "rows.kinds.terminal.recall.answer_tokens": "a quarter",
    "training.tokens": "--steps",
    "training.tokens_per_step": "1,024",
    "training.learning_rate": "by scaling",
    "training.schedule": "cosine",
    "training.warmup_steps": "20",
    "training.save_steps": "none",
    "training.seed": "the base's",
    "training.dtype": "float32",
    "training.gradient_checkpointing": "off",
}
"""Settings that an arm does not take from its recipe, and what decides them. All others stay."""
UNSCALED = "none"
SHRINK = 4
"""Recall spans and continuations are divided by this: the window is 128 tokens, not thousands."""


Number = TypeVar("Number", int, float)


def by_scaling(pi: Number, others: Number) -> dict[str, Number]:
    """A value for each scaling: PI changes every frequency and needs more training."""
    return {scaling: pi if scaling == "pi" else others for scaling in SCALINGS}


@dataclass(frozen=True)
class Regime:
    """Sizes of an extension in the laboratory, the same for every arm.

    beta_fast, beta_slow  YaRN's ramp where a recipe names none; the usual 32 rotations need a
                          window of thousands
    steps, learning_rate  by scaling, chosen on a base that no table shows: PI has more to mend
    """

    base: Base = field(default_factory=Base)
    tokens_per_step: int = 1024
    steps: dict[str, int] = field(default_factory=lambda: by_scaling(1200, 300))
    learning_rate: dict[str, float] = field(default_factory=lambda: by_scaling(3e-3, 5e-4))
    beta_fast: float = 8.0
    beta_slow: float = 1.0
    examinations: int = 16

    def questions(self, factor: int) -> Questions:
        """What is asked of every arm at this factor."""
        window = self.base.window
        doubled = {window * 2**n for n in range(factor.bit_length()) if 2**n < factor}
        lengths = tuple(sorted(doubled | {window * factor}))
        return Questions(
            self.base.kinds, lengths, self.examinations, loss_lengths=(window, lengths[-1])
        )


def untrained(
    scaling: str,
    regime: Regime | None = None,
    *,
    factor: int = 1,
    headroom: float | None = None,
) -> Recipe:
    """The base as it is (`none`) or with a scaling and no training; headroom None: its own."""
    rope: dict[str, Any] = {"scaling": scaling, "headroom": 1.0}
    total = factor * (usual_headroom(scaling, factor) if headroom is None else headroom)
    if scaling != UNSCALED:
        rope |= {"factor": float(total), **_betas(regime or Regime(), scaling, Rope())}
    return recipes.build(
        {
            "name": named(scaling, headroom),
            "summary": f"untrained, scaling {scaling}, factor {total:g}",
            "rope": rope,
            "training": {"trainable": "nothing"},
        },
        f"arm {scaling!r}",
    )


def named(name: str, headroom: float | None) -> str:
    """An arm's name, its headroom in it where one was asked for.

    >>> named("pose", None), named("pose", 1.5)
    ('pose', 'pose-h1.5')
    """
    return name if headroom is None else f"{name}-h{headroom:g}"


def _betas(regime: Regime, scaling: str, own: Rope) -> dict[str, float]:
    """YaRN's ramp: the recipe's own where it names one."""
    usual = Rope()
    if scaling != "yarn" or (own.beta_fast, own.beta_slow) != (usual.beta_fast, usual.beta_slow):
        return {}
    return {"beta_fast": regime.beta_fast, "beta_slow": regime.beta_slow}


def load(name: str) -> Recipe:
    """An arm by the name of a recipe, a mixture of recipes, or the path of a YAML file."""
    recipe = recipes.load(Path(name) if name.endswith((".yaml", ".yml")) else name)
    if not recipe.trained:
        raise RecipeError(
            f"arm {name!r} trains nothing: the base without and with scaling are always there"
        )
    return recipe


def adapt(
    recipe: Recipe,
    regime: Regime,
    scaling: str,
    *,
    factor: int,
    seed: int,
    headroom: float | None = None,
) -> Recipe:
    """A recipe with the laboratory's scaling, amounts and learning rate, and smaller spans.

    What makes a method (layout, cue, place, shares, weights, what it trains, its RoPE settings)
    stays as it is; `OVERRIDDEN` lists what does not.

    factor    L / L0. A recipe's own `rope.factor`, or its headroom times this, is what it trains
              with
    headroom  in place of the recipe's; None: the recipe's own factor or headroom

    Raises RecipeError when a row cannot hold the recipe's terminals.
    """
    window = regime.base.window
    steps = regime.steps[scaling]
    kinds = tuple(
        kind.model_copy(update={"terminal": kind.terminal and _smaller(kind.terminal)})
        for kind in recipe.rows.kinds
    )
    own = recipe.rope
    rope: dict[str, Any] = own.model_dump() | _betas(regime, scaling, own)
    rope |= {"scaling": scaling if own.scaling != UNSCALED else UNSCALED, "headroom": 1.0}
    if headroom is not None or own.factor is None:
        if headroom is None and own.headroom != "auto":
            rope["factor"] = float(own.headroom * factor)
        else:
            rope["factor"] = float(factor * (headroom or usual_headroom(scaling, factor)))
    values: dict[str, Any] = recipe.model_dump() | {
        "rope": rope,
        "rows": recipe.rows.model_dump() | {"kinds": [kind.model_dump() for kind in kinds]},
        "training": recipe.training.model_dump()
        | {
            "tokens": steps * regime.tokens_per_step,
            "tokens_per_step": regime.tokens_per_step,
            "learning_rate": regime.learning_rate[scaling],
            "schedule": "cosine",
            "warmup_steps": 20,
            "save_steps": steps + 1,
            "seed": seed,
        },
    }
    if recipe.rows.tokens not in ("auto", "window", "target"):
        values["rows"]["tokens"] = window
    if values["rows"]["tokens"] == "target" and window * factor > regime.tokens_per_step:
        values["training"]["tokens_per_step"] = window * factor
    if headroom is not None:
        values["name"] = named(recipe.name, headroom)
    resolved = recipes.build(values, f"arm {recipe.name!r}")
    return resolved.resolve(window=window, target=window * factor, gpu=False)


def _smaller(terminal: Terminal) -> Terminal:
    """Spans of a recall terminal, and a continuation, at the laboratory's size."""
    recall, tokens = terminal.recall, terminal.tokens
    if terminal.cue == "continuation":
        tokens = max(1, tokens // SHRINK)

    def span(low: int, high: int) -> tuple[int, int]:
        return max(1, low // SHRINK), max(1, high // SHRINK)

    return terminal.model_copy(
        update={
            "tokens": tokens,
            "recall": recall.model_copy(
                update={
                    "cue_tokens": span(*recall.cue_tokens),
                    "answer_tokens": span(*recall.answer_tokens),
                }
            ),
        }
    )
