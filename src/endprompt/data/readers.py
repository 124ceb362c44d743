"""Bytes of one file -> documents, for each format. Every fault of a row is reported, never raised.

A fault of the *file* (broken, cut short, without the column) raises TextError; a fault of one
*row* comes out as a Fault in its place, so that the caller may stop at it or count it. Rows keep
their number either way: row n of a file is its n-th item, which is what resuming counts in.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import numpy as np

from endprompt.data import bounds, json_rows, parquet_pages
from endprompt.data.arrow_stream import BoundedStream
from endprompt.errors import TextError

TEXT_COLUMNS = ("text", "content")
IDS_COLUMN = "input_ids"
CHAT_COLUMN = "messages"
KINDS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BATCH_ROWS = 256
_CSV_VALUES = 2**21

Render = Callable[[list[Any]], str]
"""Messages of a chat to the text of its document."""


@dataclass(frozen=True)
class Columns:
    """Which column of a row is read, and as what.

    name    the column; None: `text`, `content`, `input_ids`, or else the only column of text
    render  writes a chat as text; the column is then `messages` unless it is named. None: rows
            that are chats are refused
    """

    name: str | None = None
    render: Render | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One document: its text, or its token ids where the source was tokenised already.

    name    "book.txt", or "data.jsonl:17" for row 17 (counted from 1)
    origin  the file, URL or data set that it was read from
    """

    text: str | None
    ids: np.ndarray | None
    name: str
    origin: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that gives no document: one of a few reasons, and the whole story in one line.

    rows  how many rows it stands for: those of a batch are left out together
    """

    reason: str
    message: str
    rows: int = 1


Item = Document | Fault


def read(name: str, origin: str, raw: BinaryIO, kind: str, columns: Columns) -> Iterator[Item]:
    """Items of one open file.

    name  what documents are called after, usually the file's name
    raw   with `readline`; parquet and Arrow also seek
    kind  one of KINDS' values

    Raises TextError when the file is broken, or has no such column.
    """
    if kind == "text":
        yield from _stretches(name, origin, raw)
    elif kind == "jsonl":
        yield from _rows(name, origin, _json_lines(name, raw), columns)
    elif kind == "json":
        yield from _rows(name, origin, _json_file(name, raw), columns)
    elif kind == "csv":
        yield from _csv(name, origin, raw, columns)
    else:
        batches = _parquet_batches if kind == "parquet" else _arrow_batches
        yield from _tables(name, origin, batches(raw, columns, name), columns.render)


def from_rows(
    name: str, origin: str, rows: Iterator[dict[str, Any]], columns: Columns
) -> Iterator[Item]:
    """Items of rows that are dictionaries already, as `datasets` gives them."""
    return _rows(name, origin, rows, columns)


def choose_column(name: str, columns: dict[str, str], wanted: Columns) -> str:
    """The column to read.

    columns  {name: "text", "ids", "chat", "nothing" (a null), or another word for what it holds}

    Raises TextError that lists the columns there are.

    >>> choose_column("a.csv", {"id": "int64", "body": "text"}, Columns())
    'body'
    """
    listed = ", ".join(columns) or "none"
    readable = ("text", "ids", "nothing", *(["chat"] if wanted.render else []))
    chats = [column for column, holds in columns.items() if holds == "chat"]
    as_chat = f"{name} holds chats in column {{!r}}: --chat writes them with the chat template"
    if wanted.name is not None:
        if wanted.name not in columns:
            raise TextError(f"{name} has no column {wanted.name!r}: choose --column from {listed}")
        if wanted.name in chats and not wanted.render:
            raise TextError(as_chat.format(wanted.name))
        if columns[wanted.name] not in readable:
            raise TextError(
                f"column {wanted.name!r} of {name} holds {columns[wanted.name]}, no text and no "
                f"token ids: choose --column from {listed}"
            )
        return wanted.name
    if wanted.render:
        if CHAT_COLUMN in chats or len(chats) == 1:
            return CHAT_COLUMN if CHAT_COLUMN in chats else chats[0]
        raise TextError(
            f"{name} has no column of chats ({CHAT_COLUMN!r}): leave --chat out, or choose "
            f"--column from {listed}"
        )
    for known in TEXT_COLUMNS:
        if columns.get(known) in ("text", "nothing"):
            return known
    if columns.get(IDS_COLUMN) == "ids":
        return IDS_COLUMN
    texts = [column for column, holds in columns.items() if holds == "text"]
    if chats and len(texts) != 1:
        raise TextError(as_chat.format(chats[0]))
    if len(texts) == 1:
        return texts[0]
    raise TextError(f"which column of {name} is the text? Choose --column from {listed}")


def item_of_text(text: str, name: str, origin: str) -> Item:
    """A document, or why this text is none."""
    if not text or text.isspace():
        return Fault("empty", f"{name} is empty: give a text, or leave it out")
    if "\0" in text:
        return Fault("NUL byte", f"{name} holds a NUL byte: it is binary, or not UTF-8")
    if len(text) > bounds.DOCUMENT_BYTES:
        return _too_long(name)
    if not text.isascii():
        try:
            if len(text.encode()) > bounds.DOCUMENT_BYTES:
                return _too_long(name)
        except UnicodeEncodeError as error:
            where = f"character {error.start + 1}"
            return Fault("invalid UTF-8", f"{name} is not UTF-8 at {where}: convert it to UTF-8")
    return Document(text, None, name, origin)


def item_of_bytes(data: bytes | memoryview, name: str, origin: str) -> Item:
    """The same for bytes, which should be UTF-8; a byte order mark is taken off."""
    if len(data) > bounds.DOCUMENT_BYTES:
        return _too_long(name)
    try:
        return item_of_text(str(data, "utf-8-sig"), name, origin)
    except UnicodeDecodeError as error:
        if b"\0" in bytes(data):
            return Fault("NUL byte", f"{name} holds a NUL byte: it is binary, or not UTF-8")
        where = f"byte {error.start + 1}"
        return Fault("invalid UTF-8", f"{name} is not UTF-8 at {where}: convert it to UTF-8")


def item_of_value(
    value: Any, name: str, origin: str, column: str, render: Render | None = None
) -> Item:
    """The same for a value of a row: text, a list of token ids, or with `render` a chat."""
    if render and isinstance(value, list) and value and isinstance(value[0], dict):
        try:
            return item_of_text(render(value), name, origin)
        except Exception as error:  # templates are programs of the model's makers
            detail = " ".join(str(error).split())[:200]
            return Fault("no chat", f"{name} does not suit the chat template: {detail}")
    if value is None:
        return Fault("empty", f"{name} has nothing in column {column!r}: leave it out")
    if isinstance(value, str):
        return item_of_text(value, name, origin)
    if isinstance(value, (list, np.ndarray)):
        try:
            ids = np.asarray(value)
        except ValueError:
            ids = np.empty(0, dtype=object)
        if len(value) == 0:
            return Fault("empty", f"{name} has no token ids: leave it out")
        if ids.ndim == 1 and ids.dtype.kind in "iu":
            if len(ids) > bounds.DOCUMENT_BYTES:
                return _too_long(name)
            if ids.min() < 0:
                return Fault("not text", f"{name} has a negative token id: {ids.min()}")
            return Document(None, ids, name, origin)
    held = type(value).__name__
    return Fault("not text", f"column {column!r} of {name} holds {held}, no text and no token ids")


def _too_long(name: str, rows: int = 1) -> Fault:
    limit = bounds.DOCUMENT_BYTES / 2**20
    which = f"{rows:,} rows of {name} lie in one batch that" if rows > 1 else name
    return Fault("too long", f"{which} is longer than {limit:g} MiB: split it into documents", rows)


def _broken(name: str, error: BaseException) -> TextError:
    detail = " ".join(str(error).split())[:200]
    return TextError(f"{name} is broken or cut short ({detail}): fetch it again, or leave it out")


def _stretches(name: str, origin: str, raw: BinaryIO) -> Iterator[Item]:
    """The whole text; one above the bound as several documents, cut at ends of lines."""
    held = raw.read(bounds.DOCUMENT_BYTES + 1)
    if len(held) <= bounds.DOCUMENT_BYTES:
        yield _with_newlines(item_of_bytes(held, name, origin))
        return
    number = 0
    while held:
        number += 1
        stop = _end_of_stretch(held) if len(held) > bounds.DOCUMENT_BYTES else len(held)
        yield _with_newlines(item_of_bytes(held[:stop], f"{name}:{number}", origin))
        held = held[stop:]
        held += raw.read(bounds.DOCUMENT_BYTES + 1 - len(held))


def _end_of_stretch(data: bytes) -> int:
    """Behind the last line, or else the last word or character, that is within the bound."""
    half = bounds.DOCUMENT_BYTES // 2
    for mark in (b"\n", b" "):
        if (end := data.rfind(mark, half, bounds.DOCUMENT_BYTES)) != -1:
            return end + 1
    stop = bounds.DOCUMENT_BYTES
    while stop > half and data[stop] & 0xC0 == 0x80:  # inside of a character of UTF-8
        stop -= 1
    return stop


def _with_newlines(item: Item) -> Item:
    if isinstance(item, Document) and item.text and "\r\n" in item.text:
        return Document(item.text.replace("\r\n", "\n"), None, item.name, item.origin)
    return item


def _json_lines(name: str, raw: BinaryIO) -> Iterator[dict[str, Any] | Fault]:
    for number, line in enumerate(json_rows.lines(raw), start=1):
        yield _json_row(f"{name}:{number}", line)


def _json_file(name: str, raw: BinaryIO) -> Iterator[dict[str, Any] | Fault]:
    """Elements of an array; lines where the first is an object by itself; or else one object."""
    start = raw.read(2**12)
    head = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[:1] == b"[":
        try:
            for number, element in enumerate(json_rows.elements(_Rejoined(head, raw)), start=1):
                yield _json_row(f"{name}:{number}", element)
        except json_rows.CutShort as error:
            raise _broken(name, error) from error
        return
    if head[:1] != b"{":
        raise TextError(
            f"{name} holds no JSON records: give an array of objects, or one object a line"
        )
    rejoined = _Rejoined(head, raw)
    line = rejoined.readline(bounds.ROW_BYTES + 1)
    first = _json_row(f"{name}:1", line) if len(line) <= bounds.ROW_BYTES else None
    if isinstance(first, dict):
        yield first
        yield from islice(_json_lines(name, _Rejoined(b"\n", rejoined)), 1, None)
        return
    rest = rejoined.read(bounds.ROW_BYTES + 1 - len(line)) if first is not None else b""
    whole = len(line) + len(rest) <= bounds.ROW_BYTES
    yield _json_row(f"{name}:1", line + rest if whole else json_rows.TooLarge())


class _Rejoined(io.BufferedReader):
    """A stream with bytes that were read from it put back."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        super().__init__(_Joined(head, rest), 2**20)


class _Joined(io.RawIOBase):
    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(piece) :]
        buffer[: len(piece)] = piece
        return len(piece)


def _json_row(here: str, data: bytes | json_rows.TooLarge) -> dict[str, Any] | Fault:
    if isinstance(data, json_rows.TooLarge):
        return _too_long(here)
    try:
        row = json_rows.parse(data)
    except json_rows.TooLarge:
        return _too_long(here)
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1}"
        return Fault("invalid UTF-8", f"{here} is not UTF-8 at {where}: convert it to UTF-8")
    except (ValueError, RecursionError) as error:
        if not data.strip():
            return Fault("empty", f"{here} is an empty line: leave it out")
        return Fault("invalid JSON", f"{here} is no JSON ({error}): repair the line")
    if isinstance(row, dict):
        return row
    held = type(row).__name__
    return Fault("invalid JSON", f'{here} is no JSON object but {held}: {{"text": ...}}')


def _holds(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and (not value or isinstance(value[0], int)):
        return "ids"
    if isinstance(value, list) and isinstance(value[0], dict) and "role" in value[0]:
        return "chat"
    return "nothing" if value is None else type(value).__name__


def _rows(
    name: str, origin: str, rows: Iterator[dict[str, Any] | Fault], columns: Columns
) -> Iterator[Item]:
    """Items of rows without a schema: the first good row settles which column is read."""
    chosen: str | None = None
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Fault):
            yield row
            continue
        here = f"{name}:{number}"
        if chosen is None:
            chosen = choose_column(name, {key: _holds(v) for key, v in row.items()}, columns)
        if chosen not in row:
            listed = ", ".join(row) or "none"
            yield Fault("no column", f"{here} has no {chosen!r}: it has {listed}")
        else:
            yield item_of_value(row[chosen], here, origin, chosen, columns.render)


def _csv(name: str, origin: str, raw: BinaryIO, columns: Columns) -> Iterator[Item]:
    csv.field_size_limit(bounds.ROW_BYTES)
    lines = _CsvLines(raw)
    rows = csv.reader(lines, strict=True)
    number, place = 0, None
    while True:
        here = f"{name}:{number}"
        lines.begin_row()
        try:
            row = next(rows)
        except StopIteration:
            break
        except json_rows.TooLarge:
            if place is None:
                raise TextError(f"the header of {name} has no end: is it csv?") from None
            number += 1
            yield _too_long(f"{name}:{number}")
            continue
        except csv.Error as error:
            raise _broken(name, error) from error
        if place is None:
            place = row.index(choose_column(name, dict.fromkeys(row, "text"), columns))
        elif row:
            number += 1
            here = f"{name}:{number}"
            if place < len(row):
                yield item_of_text(row[place], here, origin)
            else:
                yield Fault("no column", f"{here} has {len(row)} columns, not {place + 1}")
    if place is None:
        choose_column(name, {}, columns)


class _CsvLines:
    """Lines for `csv.reader`; a row above the bound is passed over, and raises TooLarge."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._waiting = raw, []
        self._size = self._quotes = self._commas = 0
        self._encoding = "utf-8-sig"

    def begin_row(self) -> None:
        """The next line begins a row."""
        self._size = self._quotes = self._commas = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._waiting:
            return self._waiting.pop()
        line = self._raw.readline(bounds.ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self._count(line)
        if self._size > bounds.ROW_BYTES or self._commas > _CSV_VALUES:
            while line and not (line.endswith(b"\n") and self._quotes % 2 == 0):
                line = self._raw.readline(2**20)
                self._count(line)
            raise json_rows.TooLarge
        # What is not UTF-8 becomes lone surrogates, which `item_of_text` then finds row by row.
        text = line.decode(self._encoding, errors="surrogateescape")
        self._encoding = "utf-8"
        if "\r" in text[:-2]:  # lines of old that end at \r alone
            self._waiting = re.findall(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+", text)[::-1]
            return self._waiting.pop()
        return text

    def _count(self, line: bytes) -> None:
        self._size += len(line)
        self._quotes += line.count(b'"')
        self._commas += line.count(b",")


def _schema(schema: Any) -> dict[str, str]:
    import pyarrow.types as kinds

    def holds(kind: Any) -> str:
        if kinds.is_dictionary(kind):
            kind = kind.value_type
        if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind):
            return "text"
        lists = kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
        if lists and kinds.is_integer(kind.value_type):
            return "ids"
        if lists and kinds.is_struct(kind.value_type):
            names = {kind.value_type.field(n).name for n in range(kind.value_type.num_fields)}
            return "chat" if "role" in names else str(kind)
        return str(kind)

    return {field.name: holds(field.type) for field in schema}


def _parquet_batches(raw: BinaryIO, columns: Columns, name: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(raw, page_checksum_verification=True, buffer_size=2**20) as file:
        chosen = choose_column(name, _schema(file.schema_arrow), columns)
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            rows = parquet_pages.rows_at_once(raw, group, chosen)
            if rows:
                yield from file.iter_batches(rows, row_groups=[number], columns=[chosen])
            else:
                yield group.num_rows


def _arrow_batches(raw: BinaryIO, columns: Columns, name: str) -> Iterator[Any]:
    import pyarrow as pa

    bounded = BoundedStream(raw)
    stream = pa.ipc.open_stream(bounded)
    chosen = choose_column(name, _schema(stream.schema), columns)
    while True:
        batch = next(stream, None)
        if bounded.passed_over:
            yield bounded.passed_over
            bounded.passed_over = 0
        if batch is None:
            return
        batch = batch.select([chosen])
        batch.validate(full=False)
        for start_row in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start_row, _BATCH_ROWS)


def _tables(
    name: str, origin: str, batches: Iterator[Any], render: Render | None
) -> Iterator[Item]:
    """Items of record batches; in place of one above the bound comes its number of rows."""
    import pyarrow as pa

    number = 0
    try:
        for batch in batches:
            if isinstance(batch, int):
                yield _too_long(f"{name}:{number + 1}" if batch == 1 else name, batch)
                number += batch
                continue
            chosen = batch.schema.names[0]
            for value in _values(batch.column(0)):
                number += 1
                here = f"{name}:{number}"
                if isinstance(value, memoryview):
                    yield item_of_bytes(value, here, origin)
                else:
                    yield item_of_value(value, here, origin, chosen, render)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _broken(name, error) from error


def _values(array: Any) -> Iterator[memoryview | np.ndarray | list[Any] | None]:
    """Bytes of texts, arrays of token ids, lists of messages, None where there is nothing."""
    import pyarrow.types as kinds

    # Arrow trusts what it decodes: unchecked, a flipped bit leads it out of the file's memory.
    if kinds.is_dictionary(array.type):
        words = _checked(array.dictionary)
        array.indices.validate(full=True)
        for index in array.indices.to_pylist():
            if index is not None and not 0 <= index < len(words):
                raise ValueError("an index outside of its dictionary")
            yield None if index is None else _value(words[index])
        return
    for value in _checked(array):
        yield _value(value)


def _value(value: Any) -> memoryview | np.ndarray | list[Any] | None:
    import pyarrow.types as kinds

    if not value.is_valid:
        return None
    if hasattr(value, "as_buffer"):
        return memoryview(value.as_buffer())
    if value.values.null_count or kinds.is_struct(value.values.type):
        return value.values.to_pylist()
    return value.values.to_numpy(zero_copy_only=False)


def _checked(array: Any) -> Any:
    """The array, with every offset inside its buffers; text as binary, whose bytes are free."""
    import pyarrow as pa

    binary = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    binary[pa.string_view()] = pa.binary_view()
    if array.type in binary:
        array = array.view(binary[array.type])
    array.validate(full=True)
    return array
