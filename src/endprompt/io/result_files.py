"""Single files that a command writes where the user says: never over a file of the user's.

Every such file holds a mark of its command, and only a file with that mark is replaced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from endprompt.errors import OutputError
from endprompt.io import files, provenance

KEY = "made_by"
"""Key of the mark in JSON and in rows of JSONL."""
MARKS = {
    ".html": b'<meta name="generator" content="endprompt">',
    ".svg": b"<dc:title>endprompt</dc:title>",
    ".png": b"Software\0endprompt",
    ".jsonl": b'"made_by": "endprompt ',
}
"""Stands within the first MARK_BYTES bytes, by suffix."""
MARK_BYTES = 4096


def mark(command: str) -> dict[str, str]:
    """The mark of a command, such as `eval window`, in JSON."""
    return {KEY: f"endprompt {command}"}


def write(path: Path, command: str, value: dict[str, Any]) -> None:
    """Write figures as JSON, with their provenance and the mark of the command."""
    files.write_json(path, {**provenance.provenance(), **mark(command), **value})


def require_replaceable(path: Path | None, command: str, *, force: bool) -> None:
    """Raise OutputError for a file that is there, unless `force` and this command wrote it."""
    if path is None or not (path.exists() or path.is_symlink()):
        return
    if not _made_by(path, command):
        raise OutputError(
            f"{path} is there already and `endprompt {command}` did not write it: "
            f"choose another name"
        )
    if not force:
        raise OutputError(f"{path} is there already: give --force to overwrite it")


def _made_by(path: Path, command: str) -> bool:
    if not path.is_file():
        return False
    try:
        if path.suffix in MARKS:
            with path.open("rb") as file:
                return MARKS[path.suffix] in file.read(MARK_BYTES)
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get(KEY) == mark(command)[KEY]
