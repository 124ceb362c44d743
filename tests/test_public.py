"""The public interface: its names, and that each can be had by itself, twice."""

from __future__ import annotations

import numpy as np
import pytest

import endprompt as ep

NAMES = {
    "EndPromptError", "EvalConfig", "GuardCallback", "Recipe", "RowSource", "anchor",
    "collate", "evaluate",
    "extend", "guard", "load_recipe", "positions", "rope", "theory", "write_rows",
}  # fmt: skip


def test_public_names_are_these() -> None:
    assert set(ep.__all__) == NAMES
    assert set(dir(ep)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_gives_the_same_thing_twice(name: str) -> None:
    assert getattr(ep, name) is getattr(ep, name)


def test_extend_is_a_function_also_after_its_module_was_imported() -> None:
    import endprompt.extension.run

    assert ep.extend is endprompt.extension.run.extend


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'extnd'"):
        ep.extnd  # noqa: B018


def test_anchor_of_the_readme() -> None:
    row = ep.anchor(np.arange(3), np.array([9, 9]), target=16)
    assert row.positions.tolist() == [0, 1, 2, 14, 15]
