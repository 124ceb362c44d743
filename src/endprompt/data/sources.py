"""Anything -> documents: files, folders, globs, URLs, hub data sets, standard input.

One txt or md file is one document; in jsonl, csv, parquet and arrow each row is one. Files may be
compressed (.gz, .zst). Order is that of the sorted names, rows in order, always the same.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import sys
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from endprompt.data.readers import COMPRESSIONS, KINDS, Document, Fault, Item, from_rows, read
from endprompt.errors import DependencyError, TextError, nearest

__all__ = [
    "Document",
    "Fault",
    "FileSource",
    "HubSource",
    "Meter",
    "Source",
    "StdinSource",
    "open_source",
]

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_READABLE = ", ".join(suffix.removeprefix(".") for suffix in KINDS)


@dataclass
class Meter:
    """How far reading has come, in bytes as they are stored."""

    bytes_read: int = 0


@dataclass(frozen=True)
class Source(ABC):
    """Where documents come from; reading starts afresh with each call of `rows`.

    spec    what the user named
    column  the column to read; None: see `readers.choose_column`
    """

    spec: str
    column: str | None = None

    @abstractmethod
    def rows(self, meter: Meter | None = None) -> Iterator[Item]:
        """Every row in order: a Document, or the Fault that it has instead.

        meter  told how far reading has come
        """

    def documents(self, dropped: Counter[str] | None = None) -> Iterator[Document]:
        """Documents in order.

        dropped  where faulty rows are counted by reason ("empty", "NUL byte", "invalid UTF-8",
                 "invalid JSON", "no column", "not text", "too long"); without it the first one
                 raises

        Raises TextError for a faulty row, a broken file, or when there is no document at all.
        """
        found, first = 0, None
        for item in self.rows():
            if isinstance(item, Document):
                found += 1
                yield item
            elif dropped is None:
                raise TextError(item.message)
            else:
                dropped[item.reason] += 1
                first = first or item.message
        if not found:
            raise TextError(f"no text in {self.spec}" + (f": {first}" if first else ""))

    def identity(self) -> list[dict[str, Any]]:
        """What says whether the source is still the same: files with size and time of change."""
        return []

    def size(self) -> int | None:
        """Bytes to read in all, None where nobody knows."""
        return None


@dataclass(frozen=True)
class FileSource(Source):
    """Files of this machine, or of anything that fsspec opens."""

    files: tuple[str, ...] = ()

    def rows(self, meter: Meter | None = None) -> Iterator[Item]:
        """Rows of all files, file by file."""
        for file in self.files:
            yield from self._file(file, meter or Meter())

    @cached_property
    def _root(self) -> str:
        """The deepest folder of all files; documents are named from there on."""
        common = os.path.commonprefix(self.files)  # noqa: RUF071 (commonpath folds the // of URLs)
        return common[: common.rfind("/") + 1]

    def _file(self, file: str, meter: Meter) -> Iterator[Item]:
        kind, compression = _kind(file)
        name = file.removeprefix(self._root)
        try:
            with contextlib.ExitStack() as stack:
                stored = stack.enter_context(_open(file))
                raw = stored
                if compression:
                    raw = _decompress(raw, compression, stack, seekable=kind in _SEEKING)
                before = meter.bytes_read
                for item in read(name, file, raw, kind, self.column):
                    meter.bytes_read = before + stored.tell()
                    yield item
        except OSError as error:
            detail = error.strerror or " ".join(str(error).split())[:200]
            raise TextError(
                f"cannot read {file} ({detail}): fetch it again, or leave it out"
            ) from error

    def identity(self) -> list[dict[str, Any]]:
        """Each file with its size in bytes and, on this machine, the time of its last change."""
        found: list[dict[str, Any]] = []
        for file in self.files:
            if "://" in file:
                size = _filesystem(file)[0].size(file)
                found.append({"file": file, "bytes": size})
            else:
                status = Path(file).stat()
                found.append(
                    {"file": file, "bytes": status.st_size, "changed_ns": status.st_mtime_ns}
                )
        return found

    def size(self) -> int:
        """Bytes of all files, compressed as they are."""
        return sum(entry["bytes"] for entry in self.identity())


@dataclass(frozen=True)
class HubSource(Source):
    """A data set of the hub, streamed through `datasets`."""

    split: str = "train"

    def rows(self, meter: Meter | None = None) -> Iterator[Item]:
        """Rows of the split in its own order, fetched as they are asked for."""
        del meter
        import datasets
        from datasets.exceptions import DatasetNotFoundError

        name, _, config = self.spec.partition(":")
        try:
            rows = datasets.load_dataset(name, config or None, split=self.split, streaming=True)
            yield from from_rows(name, name, (dict(row) for row in rows), self.column)
        except (DatasetNotFoundError, FileNotFoundError) as error:
            raise TextError(
                f"no file, folder or hub data set {name!r} (for a private one: hf auth login)"
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            detail = " ".join(str(error).split())[:300]
            raise TextError(
                f"{self.spec!r} is no file or folder here and cannot be read from the hub: {detail}"
            ) from error


@dataclass(frozen=True)
class StdinSource(Source):
    """Standard input: jsonl when it starts with '{', or else one plain text."""

    def rows(self, meter: Meter | None = None) -> Iterator[Item]:
        """Rows as they arrive."""
        del meter
        raw = io.BufferedReader(cast(io.RawIOBase, sys.stdin.buffer), 2**20)
        try:
            kind = "jsonl" if raw.peek(1)[:1] == b"{" else "text"
            yield from read("stdin", "-", cast(BinaryIO, raw), kind, self.column)
        finally:
            raw.detach()


def open_source(spec: str | Path, *, column: str | None = None, split: str = "train") -> Source:
    """Find out what `spec` names; nothing is read but names.

    spec    a file, folder or glob; a URL (s3://, gs://, https://, hf://); `-` for standard
            input; or a hub data set, `owner/name` or `owner/name:config`. What exists as a path
            is a path. A folder gives all its readable files; a single file of an unknown kind
            is read as plain text
    column  the column with the text or the token ids (`input_ids`, taken as they are)
    split   of a hub data set

    Raises TextError when there is no such file, or no readable file in a folder.
    """
    spec = str(spec)
    if spec == "-":
        return StdinSource(spec, column)
    if "://" in spec:
        return FileSource(spec, column, _remote_files(spec))
    path = Path(spec).expanduser()
    if path.is_dir():
        return FileSource(spec, column, _folder_files(path))
    if path.exists():
        return FileSource(spec, column, (str(path),))
    if glob.has_magic(spec):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (an absolute pattern)
        found = sorted(file for file in matches if Path(file).is_file())
        if not found:
            raise TextError(f"no file matches {spec!r}: look at the pattern and the folder")
        return FileSource(spec, column, tuple(found))
    if _looks_like_path(spec):
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        hint = nearest(path.name, (entry.name for entry in beside))
        raise TextError(f"no such file: {spec}{hint}")
    return HubSource(spec, column, split)


def _kind(file: str) -> tuple[str, str | None]:
    """Kind of file and compression, from its name: ("jsonl", "gzip") for "a.jsonl.gz"."""
    path = PurePosixPath(file.partition("?")[0].lower())
    compression = COMPRESSIONS.get(path.suffix)
    if compression:
        path = path.with_suffix("")
    return KINDS.get(path.suffix, "text"), compression


def _is_readable(file: str) -> bool:
    path = PurePosixPath(file.lower())
    if path.suffix in COMPRESSIONS:
        path = path.with_suffix("")
    return path.suffix in KINDS


def _looks_like_path(spec: str) -> bool:
    return (
        spec.startswith(("/", ".", "~"))
        or spec.endswith("/")
        or _is_readable(spec)
        or PurePosixPath(spec.lower()).suffix in COMPRESSIONS
        or not _HUB_NAME.fullmatch(spec)
        or ("/" in spec and Path(spec).parent.is_dir())
    )


def _folder_files(folder: Path) -> tuple[str, ...]:
    found = sorted(
        str(path)
        for path in folder.rglob("*")
        if _is_readable(path.name)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not found:
        raise TextError(f"nothing to read in {folder}: it has no {_READABLE} (also .gz, .zst)")
    return tuple(found)


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        filesystem, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise DependencyError(f"cannot open {url}: {error}") from error
    except ValueError as error:
        raise TextError(f"cannot open {url}: {error}") from error
    return filesystem, path


def _remote_files(url: str) -> tuple[str, ...]:
    filesystem, path = _filesystem(url)
    try:
        if glob.has_magic(path) and "?" not in path:
            found = sorted(filesystem.glob(path))
        elif not url.startswith("http") and filesystem.isdir(path):
            found = sorted(file for file in filesystem.find(path) if _is_readable(file))
        else:
            return (url,)
    except OSError as error:
        raise TextError(f"cannot list {url}: {error}") from error
    if not found:
        raise TextError(f"nothing to read at {url}: no {_READABLE} (also .gz, .zst)")
    return tuple(filesystem.unstrip_protocol(file) for file in found)


@contextlib.contextmanager
def _open(file: str) -> Generator[BinaryIO]:
    if "://" in file:
        filesystem, path = _filesystem(file)
        with filesystem.open(path, "rb") as raw:
            yield raw
    else:
        with Path(file).open("rb") as raw:
            yield raw


_SEEKING = ("parquet", "arrow")


def _decompress(
    raw: BinaryIO, compression: str, stack: contextlib.ExitStack, *, seekable: bool
) -> BinaryIO:
    """The bytes inside; formats that are read from their end go through a temporary file."""
    import shutil

    import pyarrow as pa

    # Arrow's stream checks checksums and notices a missing end; zstandard's reader does not.
    inner = stack.enter_context(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression))
    buffered = io.BufferedReader(cast(io.RawIOBase, inner), 2**20)
    stack.callback(buffered.detach)  # or its end would close `raw`, which others still use
    plain = cast(BinaryIO, buffered)
    if not seekable:
        return plain
    spool = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile()))  # noqa: SIM115
    shutil.copyfileobj(plain, spool, 2**20)
    spool.seek(0)
    return spool
