"""Bytes of one file -> documents, for each format. Every fault of a row is told, never raised.

A fault of the *file* (broken, cut short, without the column) raises TextError; a fault of one
*row* comes out as a Fault in its place, so that the caller may stop at it or count it. Rows keep
their number either way: row n of a file is its n-th item, which is what resuming counts in.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from endprompt.errors import TextError

LIMIT_BYTES = 2**30
"""Longest document, in bytes of UTF-8: one is held in memory at a time."""

TEXT_COLUMNS = ("text", "content")
IDS_COLUMN = "input_ids"
KINDS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BATCH_ROWS = 256


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
    """A row that gives no document: one of a few reasons, and the whole story in one line."""

    reason: str
    message: str


Item = Document | Fault


def read(name: str, origin: str, raw: BinaryIO, kind: str, column: str | None) -> Iterator[Item]:
    """Items of one open file.

    name    what documents are called after, usually the file's name
    kind    one of KINDS' values
    column  the column with the text or the token ids; None: `text`, `content`, `input_ids`, or
            else the only column of text

    Raises TextError when the file is broken, or has no such column.
    """
    if kind == "text":
        yield _whole_text(name, origin, raw)
    elif kind == "jsonl":
        yield from _rows(name, origin, _jsonl_rows(name, raw), column)
    elif kind == "csv":
        yield from _csv(name, origin, raw, column)
    else:
        batches = _parquet_batches if kind == "parquet" else _arrow_batches
        yield from _tables(name, origin, batches(raw, column, name))


def from_rows(
    name: str, origin: str, rows: Iterator[dict[str, Any]], column: str | None
) -> Iterator[Item]:
    """Items of rows that are dictionaries already, as `datasets` gives them."""
    return _rows(name, origin, rows, column)


def choose_column(name: str, columns: dict[str, str], wanted: str | None) -> str:
    """The column to read.

    columns  {name: "text", "ids", "nothing" (a null), or another word for what it holds}

    Raises TextError that lists the columns there are.

    >>> choose_column("a.csv", {"id": "int64", "body": "text"}, None)
    'body'
    """
    listed = ", ".join(columns) or "none"
    if wanted is not None:
        if wanted not in columns:
            raise TextError(f"{name} has no column {wanted!r}: choose --column from {listed}")
        if columns[wanted] not in ("text", "ids", "nothing"):
            raise TextError(
                f"column {wanted!r} of {name} holds {columns[wanted]}, no text and no token ids: "
                f"choose --column from {listed}"
            )
        return wanted
    for known in TEXT_COLUMNS:
        if columns.get(known) in ("text", "nothing"):
            return known
    if columns.get(IDS_COLUMN) == "ids":
        return IDS_COLUMN
    texts = [column for column, holds in columns.items() if holds == "text"]
    if len(texts) == 1:
        return texts[0]
    raise TextError(f"which column of {name} is the text? Choose --column from {listed}")


def item_of_text(text: str, name: str, origin: str) -> Item:
    """A document, or why this text is none."""
    if not text or text.isspace():
        return Fault("empty", f"{name} is empty: give a text, or leave it out")
    if "\0" in text:
        return Fault("NUL byte", f"{name} holds a NUL byte: it is binary, or not UTF-8")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where = f"character {error.start + 1}"
            return Fault("invalid UTF-8", f"{name} is not UTF-8 at {where}: convert it to UTF-8")
    return Document(text, None, name, origin)


def item_of_bytes(data: bytes, name: str, origin: str) -> Item:
    """The same for bytes, which should be UTF-8; a byte order mark is taken off."""
    if len(data) > LIMIT_BYTES:
        return _too_long(name)
    try:
        return item_of_text(data.decode("utf-8-sig"), name, origin)
    except UnicodeDecodeError as error:
        if b"\0" in data:
            return Fault("NUL byte", f"{name} holds a NUL byte: it is binary, or not UTF-8")
        where = f"byte {error.start + 1}"
        return Fault("invalid UTF-8", f"{name} is not UTF-8 at {where}: convert it to UTF-8")


def item_of_value(value: Any, name: str, origin: str, column: str) -> Item:
    """The same for a value of a row: text, or a list of token ids."""
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
            if ids.min() < 0:
                return Fault("not text", f"{name} has a negative token id: {ids.min()}")
            return Document(None, ids, name, origin)
    held = type(value).__name__
    return Fault("not text", f"column {column!r} of {name} holds {held}, no text and no token ids")


def _too_long(name: str) -> Fault:
    limit = LIMIT_BYTES / 2**30
    return Fault("too long", f"{name} is longer than {limit:g} GiB: split it into documents")


def _broken(name: str, error: BaseException) -> TextError:
    detail = " ".join(str(error).split())[:200]
    return TextError(f"{name} is broken or cut short ({detail}): fetch it again, or leave it out")


def _whole_text(name: str, origin: str, raw: BinaryIO) -> Item:
    item = item_of_bytes(raw.read(LIMIT_BYTES + 1), name, origin)
    if isinstance(item, Document) and item.text and "\r\n" in item.text:
        return Document(item.text.replace("\r\n", "\n"), None, name, origin)
    return item


def _lines(raw: BinaryIO, name: str) -> Iterator[tuple[str, bytes | Fault]]:
    """Numbered lines; one above the limit is skipped without being held in memory."""
    number = 0
    while line := raw.readline(LIMIT_BYTES + 1):
        number += 1
        here = f"{name}:{number}"
        if len(line) > LIMIT_BYTES:
            while line and not line.endswith(b"\n"):
                line = raw.readline(LIMIT_BYTES)
            yield here, _too_long(here)
        else:
            yield here, line


def _jsonl_rows(name: str, raw: BinaryIO) -> Iterator[dict[str, Any] | Fault]:
    for here, line in _lines(raw, name):
        if isinstance(line, Fault):
            yield line
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            where = f"byte {error.start + 1}"
            yield Fault("invalid UTF-8", f"{here} is not UTF-8 at {where}: convert it to UTF-8")
        except (ValueError, RecursionError) as error:
            if not line.strip():
                yield Fault("empty", f"{here} is an empty line: leave it out")
            else:
                yield Fault("invalid JSON", f"{here} is no JSON ({error}): repair the line")
        else:
            if isinstance(row, dict):
                yield row
            else:
                held = type(row).__name__
                yield Fault("invalid JSON", f'{here} is no JSON object but {held}: {{"text": ...}}')


def _holds(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and (not value or isinstance(value[0], int)):
        return "ids"
    return "nothing" if value is None else type(value).__name__


def _rows(
    name: str, origin: str, rows: Iterator[dict[str, Any] | Fault], column: str | None
) -> Iterator[Item]:
    """Items of rows without a schema: the first good row settles which column is read."""
    chosen: str | None = None
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Fault):
            yield row
            continue
        here = f"{name}:{number}"
        if chosen is None:
            chosen = choose_column(name, {key: _holds(v) for key, v in row.items()}, column)
        if chosen not in row:
            listed = ", ".join(row) or "none"
            yield Fault("no column", f"{here} has no {chosen!r}: it has {listed}")
        else:
            yield item_of_value(row[chosen], here, origin, chosen)


def _csv(name: str, origin: str, raw: BinaryIO, column: str | None) -> Iterator[Item]:
    csv.field_size_limit(LIMIT_BYTES)
    # What is not UTF-8 becomes lone surrogates, which `item_of_text` then finds row by row.
    text = io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, strict=True)
    try:
        header = next(rows, [])
        chosen = choose_column(name, dict.fromkeys(header, "text"), column)
        place = header.index(chosen)
        for number, row in enumerate((row for row in rows if row), start=1):
            here = f"{name}:{number}"
            if place < len(row):
                yield item_of_text(row[place], here, origin)
            else:
                yield Fault("no column", f"{here} has {len(row)} columns, not {place + 1}")
    except csv.Error as error:
        raise _broken(name, error) from error
    finally:
        text.detach()


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
        return str(kind)

    return {field.name: holds(field.type) for field in schema}


def _parquet_batches(raw: BinaryIO, column: str | None, name: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(raw, page_checksum_verification=True) as file:
        chosen = choose_column(name, _schema(file.schema_arrow), column)
        yield from file.iter_batches(_BATCH_ROWS, columns=[chosen])


def _arrow_batches(raw: BinaryIO, column: str | None, name: str) -> Iterator[Any]:
    import pyarrow as pa

    start = raw.read(6)
    raw.seek(0)
    if start == b"ARROW1":
        file = pa.ipc.open_file(raw)
        chosen = choose_column(name, _schema(file.schema), column)
        batches = (file.get_batch(index) for index in range(file.num_record_batches))
    else:
        stream = pa.ipc.open_stream(raw)
        chosen = choose_column(name, _schema(stream.schema), column)
        batches = iter(stream)
    for batch in batches:
        batch = batch.select([chosen])
        batch.validate(full=False)
        for start_row in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start_row, _BATCH_ROWS)


def _tables(name: str, origin: str, batches: Iterator[Any]) -> Iterator[Item]:
    import pyarrow as pa

    number = 0
    try:
        for batch in batches:
            chosen = batch.schema.names[0]
            for value in _values(batch.column(0)):
                number += 1
                here = f"{name}:{number}"
                if isinstance(value, bytes):
                    yield item_of_bytes(value, here, origin)
                else:
                    yield item_of_value(value, here, origin, chosen)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _broken(name, error) from error


def _values(array: Any) -> Iterator[bytes | np.ndarray | list[Any] | None]:
    """Bytes of texts, arrays of token ids, None where there is nothing."""
    import pyarrow as pa
    import pyarrow.types as kinds

    # Arrow trusts what it decodes: unchecked, a flipped bit leads it out of the file's memory.
    if kinds.is_dictionary(array.type):
        words = _checked(array.dictionary)
        array.indices.validate(full=True)
        array = pa.DictionaryArray.from_arrays(array.indices, words).dictionary_decode()
    array = _checked(array)
    kind = array.type
    if kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind):
        for value in array:
            yield value.as_py()
        return
    for value in array:
        if not value.is_valid:
            yield None
        elif value.values.null_count:
            yield value.values.to_pylist()
        else:
            yield value.values.to_numpy(zero_copy_only=False)


def _checked(array: Any) -> Any:
    """The array, with every offset inside its buffers; text as binary, whose bytes are free."""
    import pyarrow as pa

    binary = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    binary[pa.string_view()] = pa.binary_view()
    if array.type in binary:
        array = array.view(binary[array.type])
    array.validate(full=True)
    return array
