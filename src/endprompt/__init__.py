"""Longer context windows for RoPE language models, trained on short sequences, and proved.

The names below are the public interface; each is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "EndPromptError": "errors",
    "EvalConfig": "eval.config",
    "GuardCallback": "trainers.guard",
    "Recipe": "recipe",
    "RowSource": "data.rows",
    "anchor": "positions",
    "collate": "data.rows",
    "evaluate": "eval.run",
    "extend": "extension.run",
    "guard": "trainers.guard",
    "load_recipe": "recipe:load",
    "positions": "",
    "rope": "",
    "theory": "",
    "write_rows": "trainers.rows",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    place = _PUBLIC.get(name)
    if place is None:
        raise AttributeError(f"module 'endprompt' has no attribute {name!r}")
    module, _, inside = place.partition(":")
    if not module:
        return import_module(f"endprompt.{name}")
    return getattr(import_module(f"endprompt.{module}"), inside or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
