"""How files come to be: whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from endprompt.errors import OutputError


@contextlib.contextmanager
def writing(path: Path) -> Generator[Path]:
    """Give a temporary path beside `path`; move it there when the block ends well.

    An interrupted or failed block leaves `path` as it was and no partial file under its name.
    Raises OutputError when the disk is full or the folder can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise full_disk(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


def full_disk(error: OSError, path: Path) -> OutputError:
    """An OSError met while writing `path`, in one line with its remedy."""
    if error.errno == errno.ENOSPC:
        return OutputError(f"no space left on the disk while writing {path}: free some, run again")
    return OutputError(f"cannot write {path}: {error.strerror or error}")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with writing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all, in a stable form: sorted keys, no NaN."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(value: Any) -> str:
    """Hex digest of a JSON-able value in its canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
