"""How files and folders come to be: whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

from endprompt.errors import OutputError

PARTIAL = re.compile(r"\..+\.endprompt-\d+\.partial")
"""Names of files and folders that are being written, of this product alone."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
TORCH_ON_A_FULL_DISK = (
    "No space left", "PytorchStreamWriter", "unexpected pos", "os error 28", "iostream error"
)  # fmt: skip
"""torch and safetensors raise a RuntimeError, or an error of their own, in these words."""


def cache_folder() -> Path:
    """Where this product keeps what it can make again: $ENDPROMPT_CACHE or ~/.cache/endprompt."""
    return Path(os.environ.get("ENDPROMPT_CACHE", "~/.cache/endprompt")).expanduser()


@contextlib.contextmanager
def writing(path: Path) -> Generator[Path]:
    """Give a temporary path beside `path`; move it there when the block ends well.

    An interrupted or failed block leaves `path` as it was and no partial file under its name.
    Raises OutputError when the disk is full or the folder can't be written.
    """
    partial = _partial(path)
    with writing_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def building(folder: Path, *, replace: bool = False) -> Generator[Path]:
    """Give an empty folder beside `folder`; move it there when the block ends well.

    replace  a folder of that name is this run's own (the caller holds its claim): it goes when
             the new one is whole. False: OutputError where something is there

    A killed block leaves a hidden folder, which the next one with this name removes.
    """
    clear_unfinished(folder)
    partial = _partial(folder)
    with writing_errors(folder):
        partial.mkdir(parents=True)
        lock = os.open(partial, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a network file system without it: never cleared
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield partial
            _put_in_place(partial, folder, replace=replace)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


def _put_in_place(partial: Path, folder: Path, *, replace: bool) -> None:
    if folder.is_symlink():
        raise OutputError(f"{folder} is a link: remove it, or choose another --out")
    if not replace or not folder.is_dir():
        try:
            partial.rename(folder)  # an empty folder gives way
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise OutputError(f"{folder} is there already: choose another --out") from None
        return
    before = _partial(folder.with_name(f"{folder.name}.before"))
    folder.rename(before)
    partial.rename(folder)
    shutil.rmtree(before, ignore_errors=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.endprompt-{os.getpid()}.partial")


def clear_leavings(folder: Path, *, below: str = "claim.json") -> None:
    """Remove what killed processes left half-written in a folder that the caller holds.

    below  a subfolder with a file of this name belongs to another command: it stays
    """
    for place, folders, names in os.walk(folder):
        inside = [name for name in folders if not Path(place, name, below).exists()]
        folders[:] = [name for name in inside if not PARTIAL.fullmatch(name)]
        for name in (name for name in [*inside, *names] if PARTIAL.fullmatch(name)):
            path = Path(place, name)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def clear_unfinished(folder: Path) -> bool:
    """Remove what killed processes left of building a folder, beside it; living ones keep theirs.

    True: a process was killed between two renames, and the folder's former content is back.
    """
    back = False
    for path in sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*.partial")):
        own = re.fullmatch(
            rf"\.{re.escape(folder.name)}(\.before)?\.endprompt-\d+\.partial", path.name
        )
        if own is None or not path.is_dir() or path.is_symlink():
            continue
        with contextlib.suppress(OSError), _locked(path):
            if own[1] and not (folder.is_dir() and any(folder.iterdir())):
                path.rename(folder)
                back = True
            else:
                shutil.rmtree(path, ignore_errors=True)
    return back


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Hold a folder. Raises OSError where another process does, or where it can't be locked."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def writing_errors(path: Path) -> Generator[None]:
    """Turn what a full disk or an unwritable place raises, in any library, into one line."""
    try:
        yield
    except OSError as error:
        if not _says_full(error) and (error.errno is None or _elsewhere(error, path)):
            raise
        raise full_disk(error, path) from error
    except Exception as error:  # torch: RuntimeError; safetensors, tokenizers: their own
        if isinstance(error, OutputError) or not _says_full(error):
            raise
        raise OutputError(_full(path)) from error


def _elsewhere(error: OSError, path: Path) -> bool:
    """Whether an error names a file that has nothing to do with `path`: one that is read."""
    if not isinstance(error.filename, str | os.PathLike) or error.errno in NO_ROOM:
        return False
    named, here = Path(error.filename).absolute(), path.absolute()
    return here.parent not in named.parents and named not in (here, *here.parents)


def full_disk(error: OSError, path: Path) -> OutputError:
    """An OSError met while writing `path`, in one line with its remedy."""
    if error.errno in NO_ROOM or _says_full(error):
        return OutputError(_full(path))
    return OutputError(f"cannot write {path}: {error.strerror or error}")


def _says_full(error: Exception) -> bool:
    return any(words in str(error) for words in TORCH_ON_A_FULL_DISK)


def _full(path: Path) -> str:
    return f"no space left on the disk while writing {path}: free some, run again"


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise OutputError where the disk of a folder can't hold `needed` bytes for `what`."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OutputError(
            f"the disk of {folder} has {free / 2**30:.3g} GiB free, and {what} need "
            f"{needed / 2**30:.3g} GiB: free some, or choose another --out"
        )


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
