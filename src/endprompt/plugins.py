"""Scaling rules and cues of other packages, found by name when a recipe asks for one.

A package names them in its pyproject.toml, and every process of a run finds them there:

    [project.entry-points."endprompt.scaling"]
    half = "my_package:half"            # (rope.Base, factor) -> rope_parameters of Transformers

    [project.entry-points."endprompt.cue"]
    echo = "my_package:echo"            # (CueWriter, Terminal, text_T, rng) -> cues.Content
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Literal

Group = Literal["endprompt.scaling", "endprompt.cue"]


def find(group: Group, name: str) -> Callable[..., Any] | None:
    """The function that an installed package gives that name, or None."""
    for point in entry_points(group=group, name=name):
        return point.load()
    return None


def known(group: Group, name: str, own: tuple[str, ...]) -> str:
    """The name, when it is one of ours or of an installed package. Raises ValueError."""
    if name in own or entry_points(group=group, name=name):
        return name
    from endprompt.errors import nearest

    others = tuple(point.name for point in entry_points(group=group))
    choices = own + others
    raise ValueError(f"{name!r}{nearest(name, choices)} is none of {', '.join(choices)}")
