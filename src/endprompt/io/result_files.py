"""Single files of figures that a command writes where the user says: never over a user's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from endprompt.errors import OutputError
from endprompt.io import files, provenance

MARK = b"endprompt"
"""What stands at the beginning of every page and picture of ours."""
MARK_BYTES = 4096


def write(path: Path, value: dict[str, Any]) -> None:
    """Write figures as JSON with where they came from, by which they are known as ours."""
    files.write_json(path, {**provenance.provenance(), **value})


def require_replaceable(path: Path | None, *, force: bool) -> None:
    """Raise OutputError for a file that is there, unless it is ours and `force` is given."""
    if path is None or not (path.exists() or path.is_symlink()):
        return
    if not is_ours(path):
        raise OutputError(
            f"{path} is there already and endprompt did not write it: choose another name"
        )
    if not force:
        raise OutputError(f"{path} is there already: give --force to overwrite it")


def is_ours(path: Path) -> bool:
    """Whether a command of this package wrote a file: its provenance, or its mark, stands in it."""
    if not path.is_file():
        return False
    try:
        if path.suffix != ".json":
            with path.open("rb") as file:
                return MARK in file.read(MARK_BYTES)
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    versions = value.get("versions") if isinstance(value, dict) else None
    return isinstance(versions, dict) and "endprompt" in versions
