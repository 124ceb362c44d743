"""Anything -> documents: files, folders, globs, URLs, hub data sets, standard input.

One txt or md file is one document; in jsonl, json, csv, parquet and arrow each row is one. Files
may be compressed (.gz, .zst). Order is that of the sorted names, rows in order, always the same.
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
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from endprompt.data import json_rows
from endprompt.data.readers import (
    COMPRESSIONS,
    KINDS,
    Columns,
    Document,
    Fault,
    Item,
    Render,
    from_rows,
    read,
)
from endprompt.errors import DependencyError, TextError, nearest
from endprompt.io import claims
from endprompt.io.secrets import redact

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
REFUSED = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), "HTML"),
    ".xml": "XML",
    ".ipynb": "a notebook",
    ".rtf": "RTF",
    ".pdf": "PDF",
    **dict.fromkeys((".doc", ".docx", ".odt", ".epub"), "a formatted document"),
}
"""Files that nobody wants to train as plain text, by the end of their names."""
_READABLE = ", ".join(suffix.removeprefix(".") for suffix in KINDS if suffix != ".json")


@dataclass
class Meter:
    """How far reading has come, in bytes as they are stored."""

    bytes_read: int = 0


@dataclass(frozen=True)
class Source(ABC):
    """Where documents come from; reading starts afresh with each call of `rows`.

    spec     what the user named; `name` is the same without secrets
    columns  which column of a row is read
    """

    spec: str
    columns: Columns = field(default_factory=Columns)

    @property
    def name(self) -> str:
        """What the user named, for files and messages: without user info and query of a URL."""
        return shown(self.spec)

    @abstractmethod
    def rows(self, meter: Meter | None = None) -> Iterator[Item]:
        """Every row in order: a Document, or the Fault that it has instead.

        meter  counts what has been read
        """

    def documents(self, dropped: Counter[str] | None = None) -> Iterator[Document]:
        """Documents in order.

        dropped  where faulty rows are counted by reason ("empty", "NUL byte", "invalid UTF-8",
                 "invalid JSON", "no column", "not text", "no chat", "too long"); without it the
                 first one raises

        Raises TextError for a faulty row, a broken file, or when there is no document at all.
        """
        count, first = 0, None
        for item in self.rows():
            if isinstance(item, Document):
                count += 1
                yield item
            elif dropped is None:
                raise TextError(item.message)
            else:
                dropped[item.reason] += item.rows
                first = first or item.message
        if not count:
            raise TextError(f"no text in {self.name}" + (f": {first}" if first else ""))

    def notes(self) -> list[str]:
        """What the user should know of how it is read."""
        return []

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
    passed_over: int = 0
    """Files of JSON in the folder, which may be anything: they are read where they are named."""

    def rows(self, meter: Meter | None = None) -> Iterator[Item]:
        """Rows of all files, file by file."""
        for file in self.files:
            yield from self._file(file, meter or Meter())

    @cached_property
    def _root(self) -> str:
        """The deepest folder of all files; documents are named from there on."""
        common = os.path.commonprefix([*map(_without_query, self.files)])  # noqa: RUF071 (commonpath folds the // of URLs)
        return common[: common.rfind("/") + 1]

    def _file(self, file: str, meter: Meter) -> Iterator[Item]:
        kind, compression = _kind(file)
        origin = shown(file)
        name = shown(_without_query(file).removeprefix(self._root))
        try:
            with contextlib.ExitStack() as stack:
                stored = stack.enter_context(_open(file))
                raw = _ready(stored, compression, stack, seekable=kind in _SEEKING)
                before = meter.bytes_read
                for item in read(name, origin, raw, kind, self.columns):
                    meter.bytes_read = before + stored.tell()
                    yield item
        except (OSError, EOFError) as error:
            raise TextError(f"cannot read {origin} ({_detail(error)}): fetch it again, or leave "
                            "it out") from error  # fmt: skip

    def notes(self) -> list[str]:
        """Files that are read as plain text though their names don't say so, or not at all."""
        notes = []
        plain = [file for file in self.files if not _is_readable(file)]
        if plain:
            more = f" and {len(plain) - 1} more" if len(plain) > 1 else ""
            notes.append(f"read as plain text: {shown(plain[0].removeprefix(self._root))}{more}")
        if self.passed_over:
            notes.append(
                f"passed over in {self.name}: {self.passed_over} .json (records in JSON are read "
                f"by name: '{self.name.rstrip('/')}/*.json')"
            )
        return notes

    def identity(self) -> list[dict[str, Any]]:
        """Each file with its size in bytes and, on this machine, the time of its last change."""
        files: list[dict[str, Any]] = []
        for file in self.files:
            if "://" in file:
                files.append({"file": shown(file), "bytes": _remote_size(file)})
            else:
                status = Path(file).stat()
                files.append(
                    {"file": shown(file), "bytes": status.st_size, "changed_ns": status.st_mtime_ns}
                )
        return files

    def size(self) -> int | None:
        """Bytes of all files, compressed as they are; None where a server does not say."""
        sizes = [entry["bytes"] for entry in self.identity()]
        return None if None in sizes else sum(sizes)


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
            yield from from_rows(name, name, (dict(row) for row in rows), self.columns)
        except (DatasetNotFoundError, FileNotFoundError) as error:
            raise TextError(
                f"no file, folder or hub data set {name!r} (for a private one: hf auth login)"
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            raise TextError(
                f"{self.spec!r} is no file or folder here and cannot be read from the hub: "
                f"{_detail(error)}"
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
            yield from read("stdin", "-", cast(BinaryIO, raw), kind, self.columns)
        finally:
            raw.detach()


def open_source(
    spec: str | Path,
    *,
    column: str | None = None,
    split: str = "train",
    render: Render | None = None,
) -> Source:
    """Find out what `spec` names; nothing is read but names.

    spec    a file, folder or glob; a URL (s3://, gs://, https://, hf://); `-` for standard
            input; or a hub data set, `owner/name` or `owner/name:config`. What exists as a path
            is a path. A folder gives all its readable files but .json, which may be anything;
            a single file of an unknown kind is read as plain text. `Source.notes` says so
    column  the column with the text or the token ids (`input_ids`, taken as they are)
    split   of a hub data set
    render  writes the messages of a chat as text (`chats.renderer`)

    Raises TextError when there is no such file, no readable file in a folder, or a file is
    marked-up text (.html, .ipynb, ...).
    """
    spec = str(spec)
    columns = Columns(column, render)
    if spec == "-":
        return StdinSource(spec, columns)
    if "://" in spec:
        return FileSource(spec, columns, _plain(_remote_files(spec)))
    path = Path(spec).expanduser()
    if path.is_dir():
        return FileSource(spec, columns, *_folder_files(path))
    if path.exists():
        return FileSource(spec, columns, _plain((str(path),)))
    if glob.has_magic(spec):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (an absolute pattern)
        matched = sorted(file for file in matches if Path(file).is_file())
        if not matched:
            raise TextError(f"no file matches {shown(spec)!r}: look at the pattern and the folder")
        return FileSource(spec, columns, _plain(tuple(matched)))
    if _looks_like_path(spec):
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        hint = nearest(path.name, (entry.name for entry in beside))
        raise TextError(f"no such file: {shown(spec)}{hint}")
    return HubSource(spec, columns, split)


def lines_of(file: str) -> Iterator[bytes | json_rows.TooLarge]:
    r"""Lines of one file or URL, compressed or not; they end at `\n` alone and have a bound.

    Raises TextError when it can't be read, or is cut short.
    """
    compression = _kind(file)[1]
    try:
        with contextlib.ExitStack() as stack:
            stored = stack.enter_context(_open(file))
            yield from json_rows.lines(_ready(stored, compression, stack, seekable=False))
    except (OSError, EOFError) as error:
        raise TextError(f"cannot read {shown(file)}: {_detail(error)}") from error


def shown(name: str) -> str:
    r"""A path or URL as files and messages show it: without secrets, and UTF-8 throughout.

    >>> shown("https://me:pw@host/a.txt?sig=1"), shown("caf\udce9.txt")
    ('https://host/a.txt?left-out', 'caf\\xe9.txt')
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return redact(text) if "://" in text else text


def _detail(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return redact(" ".join(str(said).split()))[:300]


def _plain(files: tuple[str, ...]) -> tuple[str, ...]:
    """The same files. Raises TextError where plain text would be full of markup."""
    for file in files:
        suffix = _suffix(file)
        if suffix in REFUSED:
            raise TextError(
                f"{shown(file)} is {REFUSED[suffix]}, which would be trained as it stands: make "
                "plain text of it first (or name it .txt to take it as it is)"
            )
    return files


def _kind(file: str) -> tuple[str, str | None]:
    """Kind of file and compression, from its name: ("jsonl", "gzip") for "a.jsonl.gz"."""
    path = PurePosixPath(_without_query(file).lower())
    return KINDS.get(_suffix(file), "text"), COMPRESSIONS.get(path.suffix)


def _without_query(file: str) -> str:
    return file.partition("?")[0] if "://" in file else file


def _suffix(file: str) -> str:
    """How a name ends, before the ending of its compression."""
    path = PurePosixPath(_without_query(file).lower())
    return path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix


def _is_readable(file: str) -> bool:
    return _suffix(file) in KINDS


def _looks_like_path(spec: str) -> bool:
    return (
        spec.startswith(("/", ".", "~"))
        or spec.endswith("/")
        or _is_readable(spec)
        or _suffix(spec) in REFUSED
        or PurePosixPath(spec.lower()).suffix in COMPRESSIONS
        or not _HUB_NAME.fullmatch(spec)
        or ("/" in spec and Path(spec).parent.is_dir())
    )


def _folder_files(folder: Path) -> tuple[tuple[str, ...], int]:
    """Readable files of a folder, and the number of those of JSON beside them.

    Folders within it that endprompt wrote are no text: without this, data that was prepared beside
    its sources would be read again as one more source.
    """
    files, passed_over = [], 0
    written = {
        claim.parent
        for claim in folder.rglob(claims.CLAIM)
        if claim.parent != folder and claims.is_claimed(claim.parent)
    }
    for path in sorted(folder.rglob("*"), key=str):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not _is_readable(path.name) or not path.is_file():
            continue
        if not written.isdisjoint(path.parents):
            continue
        if _suffix(path.name) == ".json":
            passed_over += 1
        else:
            files.append(str(path))
    if not files:
        hint = f", but {passed_over} .json: name them, '{folder}/*.json'" if passed_over else ""
        raise TextError(
            f"nothing to read in {shown(str(folder))}: it has no {_READABLE} (also .gz, .zst){hint}"
        )
    return tuple(files), passed_over


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        filesystem, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise DependencyError(f"cannot open {shown(url)}: {_detail(error)}") from error
    except ValueError as error:
        raise TextError(f"cannot open {shown(url)}: {_detail(error)}") from error
    return filesystem, path


def _remote_size(url: str) -> int | None:
    filesystem, path = _filesystem(url)
    try:
        return filesystem.size(path)
    except _failures() as error:
        raise TextError(f"cannot read {shown(url)} ({_detail(error)}): look at the address") from (
            error
        )


def _failures() -> tuple[type[Exception], ...]:
    """What reading a URL may raise: aiohttp's errors are no OSErrors."""
    try:
        from aiohttp import ClientError
    except ImportError:
        return (OSError, ValueError)
    return (OSError, ValueError, ClientError)


def _remote_files(url: str) -> tuple[str, ...]:
    filesystem, path = _filesystem(url)
    try:
        if glob.has_magic(path) and "?" not in path:
            files = sorted(filesystem.glob(path))
        elif not url.startswith("http") and filesystem.isdir(path):
            files = sorted(
                file
                for file in filesystem.find(path)
                if _is_readable(file) and _suffix(file) != ".json"
            )
        else:
            return (url,)
    except _failures() as error:
        raise TextError(f"cannot list {shown(url)}: {_detail(error)}") from error
    if not files:
        raise TextError(f"nothing to read at {shown(url)}: no {_READABLE} (also .gz, .zst)")
    return tuple(filesystem.unstrip_protocol(file) for file in files)


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


class _Reader(io.RawIOBase):
    """Any object with `read` as a raw file: some filesystems' own `readline` takes no limit."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._inner.read(len(buffer))
        except OSError:
            raise
        except _failures() as error:
            raise OSError(_detail(error)) from error
        buffer[: len(piece)] = piece
        return len(piece)


def _ready(
    stored: BinaryIO, compression: str | None, stack: contextlib.ExitStack, *, seekable: bool
) -> BinaryIO:
    """The bytes inside; formats that are read from their end go through a temporary file."""
    import shutil

    inner: Any = stored
    if compression:
        import pyarrow as pa

        # Arrow's stream checks checksums and notices a missing end; zstandard's reader does not.
        inner = pa.CompressedInputStream(pa.PythonFile(stored, mode="r"), compression)
        stack.enter_context(inner)
    if seekable and inner is stored and stored.seekable():
        return stored
    if inner is stored and isinstance(stored, io.BufferedIOBase):
        return stored
    plain = cast(BinaryIO, io.BufferedReader(_Reader(inner), 2**20))
    if not seekable:
        return plain
    spool = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile()))  # noqa: SIM115
    shutil.copyfileobj(plain, spool, 2**20)
    spool.seek(0)
    return spool
