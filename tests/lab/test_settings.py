"""No setting of a recipe is dropped in silence: an arm keeps it, or a list says who decides it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from endprompt import recipe as recipes
from endprompt.lab import arms
from endprompt.lab.arms import Regime
from endprompt.recipe import WORDS, Recipe

BASE: dict[str, Any] = {
    "name": "mine",
    "rope": {"scaling": "yarn"},
    "rows": {"kinds": [{"terminal": {"cue": "recall"}}]},
}
OTHER = {
    "rope.long_factor": (2.0,) * 16,
    "rope.short_factor": (1.5,) * 16,
    "rope.attention_factor": 1.25,
    "rope.factor": 12.0,
    "rows.kinds.share": 0.5,
    "rows.kinds.prefix.layout": "pose",
    "rows.kinds.terminal.cue": "continuation",
    "rows.kinds.terminal.place": "random",
    "rows.kinds.terminal.text": "end here",
    "rows.kinds.terminal.pool": ("one", "two"),
    "rows.kinds.terminal.anchors": 2,
    "rows.kinds.terminal.tokens": 40,
    "rows.kinds.terminal.recall.cue_tokens": (6, 8),
    "rows.kinds.terminal.recall.answer_tokens": (12, 16),
    "rows.gap_keys": 100,
    "rows.gap_bank": 50,
    "training.trainable": "lora",
    "training.prefix_loss": "base",
    "training.attention": "shifted",
}
"""Values other than the default, where the type alone does not give one."""
NO_SETTING = {"name", *WORDS}


def leaves(model: type[BaseModel], path: str = "") -> dict[str, FieldInfo]:
    """Every plain setting below a settings class, by its dotted key without indices."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        key = f"{path}{name}"
        inner = [one for one in _types(field.annotation) if isinstance(one, type)]
        nested = [one for one in inner if issubclass(one, BaseModel)]
        if nested:
            found |= leaves(nested[0], f"{key}.")
        elif key not in NO_SETTING:
            found[key] = field
    return found


def _types(annotation: Any) -> list[Any]:
    inside = get_args(annotation)
    return [one for part in inside for one in _types(part)] if inside else [annotation]


def changed(key: str, field: FieldInfo) -> Any:
    """A value that is not the default."""
    if key in OTHER:
        return OTHER[key]
    default = field.get_default(call_default_factory=True)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default * 0.75 if isinstance(default, float) else default + 1
    words = [one for one in _literals(field.annotation) if one != default]
    if words:
        return words[0]
    raise AssertionError(f"give a value for {key} in OTHER")


def _literals(annotation: Any) -> list[Any]:
    inside = get_args(annotation)
    if not inside:
        return [annotation] if isinstance(annotation, str | bool) else []
    return [one for part in inside for one in _literals(part)]


def value(recipe: Recipe, key: str) -> Any:
    """The value at a dotted key, of the first kind of row."""
    found: Any = recipe
    for word in key.split("."):
        found = getattr(found, word)
        if word == "kinds":
            found = found[0]
    return found


LEAVES = leaves(Recipe)


@pytest.mark.parametrize("key", sorted(LEAVES))
def test_an_arm_keeps_each_setting_or_says_what_decides_it(key: str) -> None:
    if key in arms.OVERRIDDEN:
        return
    wanted = changed(key, LEAVES[key])
    path = key.replace("kinds.", "kinds.0.")
    try:
        own = recipes.build(BASE, "mine").replace({path: wanted})
        adapted = arms.adapt(own, Regime(), "yarn", factor=8, seed=0)
    except recipes.RecipeError:
        # refused in words is no silence
        return
    assert value(adapted, key) == value(own, key)


def test_the_list_of_overridden_settings_names_settings() -> None:
    assert set(arms.OVERRIDDEN) <= set(LEAVES)


@pytest.mark.parametrize(
    ("rope", "factor"),
    [({}, 12.0), ({"factor": 10}, 10.0), ({"headroom": 1}, 8.0), ({"headroom": 0.5}, 4.0)],
)
def test_an_arm_trains_with_the_factor_of_its_recipe(rope: dict[str, Any], factor: float) -> None:
    own = recipes.build({"name": "mine", "rope": {"scaling": "yarn", **rope}}, "mine")
    assert arms.adapt(own, Regime(), "yarn", factor=8, seed=0).rope.factor == factor


def test_a_grid_of_headrooms_names_its_arms() -> None:
    own = arms.load("pose")
    found = arms.adapt(own, Regime(), "yarn", factor=8, seed=0, headroom=1.5)
    assert (found.name, found.rope.factor) == ("pose-h1.5", 12.0)
    untrained = arms.untrained("yarn", factor=8, headroom=2.0)
    assert (untrained.name, untrained.rope.factor) == ("yarn-h2", 16.0)
    assert untrained.rope.beta_fast == found.rope.beta_fast
