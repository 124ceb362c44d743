"""Anything readable gives its documents; anything else one line that says what and what to do."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from endprompt.data import bounds, readers, sources
from endprompt.data.readers import Columns
from endprompt.data.sources import Document, Meter, open_source
from endprompt.errors import DependencyError, TextError

ROWS = ["the first document", "zwölf Boxkämpfer\njagen", "第三 の 文書"]
IDS = [[5, 6, 7], [8, 9]]


def write_text(path: Path, rows: list[str]) -> None:
    path.write_text(rows[0], encoding="utf-8")


def write_jsonl(path: Path, rows: list[str]) -> None:
    path.write_text("".join(json.dumps({"id": 1, "text": row}) + "\n" for row in rows))


def write_json_array(path: Path, rows: list[str]) -> None:
    path.write_text(json.dumps([{"id": 1, "text": row} for row in rows], indent=1))


def write_json_lines(path: Path, rows: list[str]) -> None:
    path.write_text("".join(json.dumps({"id": 1, "text": row}) + "\n" for row in rows))


def write_parquet(path: Path, rows: list[str]) -> None:
    table = pa.table({"id": list(range(len(rows))), "text": rows})
    pq.write_table(table, path, row_group_size=2, write_page_checksum=True)


def write_arrow(path: Path, rows: list[str]) -> None:
    table = pa.table({"id": list(range(len(rows))), "text": rows})
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)


def write_dictionary(path: Path, rows: list[str]) -> None:
    table = pa.table({"id": range(len(rows)), "text": pa.array(rows).dictionary_encode()})
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)


def write_views(path: Path, rows: list[str]) -> None:
    table = pa.table({"id": range(len(rows)), "text": pa.array(rows, pa.string_view())})
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)


def write_arrow_file(path: Path, rows: list[str]) -> None:
    table = pa.table({"id": list(range(len(rows))), "text": pa.array(rows).dictionary_encode()})
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)


def write_csv(path: Path, rows: list[str]) -> None:
    table = pa.table({"text": rows, "id": list(range(len(rows)))})
    pyarrow.csv.write_csv(table, path)


WRITERS = {
    "a.txt": write_text,
    "a.md": write_text,
    "a.jsonl": write_jsonl,
    "a.json": write_json_array,
    "lines.json": write_json_lines,
    "a.parquet": write_parquet,
    "a.arrow": write_arrow,
    "file.arrow": write_arrow_file,
    "dictionary.arrow": write_dictionary,
    "views.arrow": write_views,
    "a.csv": write_csv,
}
PACKERS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def make(folder: Path, name: str, suffix: str = "", rows: list[str] = ROWS) -> Path:
    plain = folder / name
    WRITERS[name](plain, rows)
    data = plain.read_bytes()
    plain.unlink()
    path = folder / (name + suffix)
    path.write_bytes(PACKERS[suffix](data))
    return path


def read_or_message(path: Path) -> tuple[list[Document], str]:
    """All documents, or none and the message of the one error that is allowed."""
    try:
        return list(open_source(path).documents(Counter())), ""
    except TextError as error:
        return [], str(error)


def texts(spec: object, **options: object) -> list[str | None]:
    return [document.text for document in open_source(spec, **options).documents()]  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_its_rows(tmp_path: Path, name: str, suffix: str) -> None:
    path = make(tmp_path, name, suffix)
    expected = ROWS[:1] if name in ("a.txt", "a.md") else ROWS
    source = open_source(path)
    found = list(source.documents())
    assert [document.text for document in found] == expected
    assert all(document.origin == str(path) and document.ids is None for document in found)
    one = name + suffix
    rows = [f"{one}:{n + 1}" for n in range(len(expected))]
    assert [document.name for document in found] == ([one] if len(expected) == 1 else rows)
    assert source.size() == path.stat().st_size


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("a.txt", "a.md")])
def test_every_format_cut_short_is_an_error(tmp_path: Path, name: str, suffix: str) -> None:
    path = make(tmp_path, name, suffix, ROWS * 500)
    data = path.read_bytes()
    for cut in (len(data) // 2, len(data) - 3):
        path.write_bytes(data[:cut])
        if name in ("a.jsonl", "a.csv", "lines.json") and not suffix:
            read_or_message(path)  # a lost end can't always be noticed
            continue
        with pytest.raises(TextError, match=r"broken or cut short|cannot read") as error:
            list(open_source(path).documents(Counter()))
        assert path.name in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet"])
def test_wrong_checksum_is_an_error(tmp_path: Path, name: str, suffix: str) -> None:
    path = make(tmp_path, name, suffix)
    data = bytearray(path.read_bytes())
    data[-6 if suffix == ".gz" else -2] ^= 0x10
    path.write_bytes(bytes(data))
    with pytest.raises(TextError, match=r"broken or cut short|cannot read"):
        list(open_source(path).documents(Counter()))


@pytest.mark.parametrize("name", ["a.parquet", *(n for n in WRITERS if n.endswith(".arrow"))])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_bytes_give_documents_or_one_error(tmp_path: Path, name: str, data) -> None:
    path = make(tmp_path, name)
    bytes_ = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(bytes_) - 1), min_size=1, max_size=4)):
        bytes_[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(bytes_))
    found, message = read_or_message(path)
    assert "\n" not in message
    for document in found:
        assert isinstance(document.text, str) or isinstance(document.ids, np.ndarray)


@pytest.mark.parametrize("suffix", [*(n for n in readers.KINDS), ".jsonl.gz", ".csv.zst"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=300))
def test_any_bytes_give_documents_or_one_error(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    found, message = read_or_message(path)
    assert not message or (path.name in message and "\n" not in message)
    for document in found:
        assert document.text is not None
        assert document.text.encode()
        assert "\0" not in document.text


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.one_of(
            st.text(),
            st.none(),
            st.integers(),
            st.lists(st.integers(-5, 70000)),
            st.lists(st.text(max_size=2), max_size=2),
            st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2),
        ),
        max_size=6,
    )
)
def test_every_json_row_is_a_document_or_a_counted_drop(rows: list[object]) -> None:
    lines = "".join(json.dumps({"text": row}) + "\n" for row in ["start", *rows])
    raw = io.BytesIO(lines.encode())
    items = list(readers.read("a.jsonl", "a.jsonl", raw, "jsonl", Columns()))
    assert len(items) == len(rows) + 1
    for row, item in zip(rows, items[1:], strict=True):
        if isinstance(row, str) and row.strip() and "\0" not in row:
            assert isinstance(item, Document)
            assert item.text == row
        elif isinstance(row, list) and row and all(isinstance(i, int) and i >= 0 for i in row):
            assert isinstance(item, Document)
            assert item.ids is not None
            assert item.ids.tolist() == row
        else:
            assert not isinstance(item, Document)


BAD_ROWS = {
    "empty": (b"", "empty"),
    "blank": (b" \n\t ", "empty"),
    "nul": (b"a\0b", "NUL byte"),
    "latin1": ("für".encode("latin-1"), "invalid UTF-8"),
    "binary": (bytes(range(256)), "NUL byte"),
    "utf16": ("text".encode("utf-16"), "NUL byte"),
    "cut utf-8": ("ü".encode()[:1], "invalid UTF-8"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_text_is_an_error_alone_and_a_drop_among_others(tmp_path: Path, case: str) -> None:
    data, reason = BAD_ROWS[case]
    bad = tmp_path / "bad.txt"
    bad.write_bytes(data)
    with pytest.raises(TextError, match=r"bad\.txt") as error:
        list(open_source(bad).documents())
    with pytest.raises(TextError, match=r"no text in .*bad\.txt"):
        list(open_source(bad).documents(Counter()))
    assert "\n" not in str(error.value)
    (tmp_path / "good.txt").write_text("good")
    dropped: Counter[str] = Counter()
    assert [d.text for d in open_source(tmp_path).documents(dropped)] == ["good"]
    assert dropped == {reason: 1}


@pytest.mark.parametrize("case", BAD_ROWS)
@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow"])
def test_bad_bytes_in_a_table_are_a_drop(case: str, kind: str) -> None:
    data, reason = BAD_ROWS[case]
    if kind == "csv":
        quoted = b'"' + data.replace(b'"', b'""') + b'"'
        raw = io.BytesIO(b"id,text\n1," + quoted + b"\n2,good\n")
    else:
        column = pa.array([data, b"good"], pa.binary()).view(pa.string())
        table = pa.table({"id": [1, 2], "text": column})
        raw = io.BytesIO()
        if kind == "parquet":
            pq.write_table(table, raw)
        else:
            with pa.ipc.new_stream(raw, table.schema) as stream:
                stream.write_table(table)
        raw.seek(0)
    bad, good = readers.read("a", "a", raw, kind, Columns())
    assert isinstance(bad, readers.Fault)
    assert bad.reason == reason
    assert isinstance(good, Document)
    assert (good.text, good.name) == ("good", "a:2")


def test_rows_of_jsonl_that_are_no_documents_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "good"}\n\n{"text": "\xff"}\n{"text"\n[1]\n{"other": 1}\n{"text": 7}\n'
        b'{"text": "\\ud800"}\n{"text": null}\n{"text": []}\n' + b"[" * 100_000 + b"\n"
        b'{"text": [1, null]}\n{"text": [[1], [2, 3]]}\n{"text": [-1]}\n'
    )
    dropped: Counter[str] = Counter()
    found = list(open_source(path).documents(dropped))
    assert [document.text for document in found] == ["good"]
    assert dropped == {
        "empty": 3,
        "invalid UTF-8": 2,
        "invalid JSON": 3,
        "no column": 1,
        "not text": 4,
    }


def test_short_rows_of_csv_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,"quoted, ""twice""\nand on"\n\n2\n')
    dropped: Counter[str] = Counter()
    assert [d.text for d in open_source(path).documents(dropped)] == ['quoted, "twice"\nand on']
    assert dropped == {"no column": 1}


def test_csv_with_an_open_quote_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\n"never closed\n')
    with pytest.raises(TextError, match=r"a\.csv is broken"):
        list(open_source(path).documents())


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_document_above_the_limit_is_a_drop(kind: str, monkeypatch) -> None:
    monkeypatch.setattr(bounds, "DOCUMENT_BYTES", 100)
    long = "x" * 250
    if kind == "jsonl":
        lines = [json.dumps({"text": text}) for text in ("good", long, "good")]
        raw = io.BytesIO("\n".join(lines).encode())
    elif kind == "csv":
        raw = io.BytesIO(f"text\ngood\n{long}\ngood\n".encode())
    else:
        raw = io.BytesIO()
        pq.write_table(pa.table({"text": ["good", long, "good"]}), raw)
        raw.seek(0)
    items = list(readers.read("a", "a", raw, kind, Columns()))
    assert len(items) == 3
    assert [item.reason for item in items if isinstance(item, readers.Fault)] == ["too long"]


def test_a_line_of_many_megabytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    long = "word " * 3_000_000
    path.write_text(json.dumps({"text": long}) + "\n" + json.dumps({"text": "next"}) + "\n")
    assert texts(path) == [long, "next"]


def test_text_files_lose_their_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert texts(path) == ["one\ntwo\n"]


COLUMN_CASES = {
    "missing": ("nope", r"has no column 'nope': choose --column from id, body, note"),
    "no text": ("id", r"column 'id' of .* holds"),
    "several": (None, r"which column of .* Choose --column from id, body, note"),
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
@pytest.mark.parametrize("case", COLUMN_CASES)
def test_a_wrong_column_is_an_error_that_lists_them(tmp_path: Path, case: str, kind: str) -> None:
    column, message = COLUMN_CASES[case]
    path = tmp_path / f"a.{kind}"
    table = pa.table({"id": [1], "body": ["text"], "note": ["text"]})
    if kind == "jsonl":
        path.write_text(json.dumps(table.to_pylist()[0]))
    elif kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    with pytest.raises(TextError, match=message):
        list(open_source(path, column=column).documents(Counter()))
    assert texts(path, column="note") == ["text"]


def test_a_wrong_column_of_csv_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,body\n1,x\n")
    with pytest.raises(TextError, match="no column 'text': choose --column from id, body"):
        list(open_source(path, column="text").documents())
    path.write_text("")
    with pytest.raises(TextError, match="from none"):
        list(open_source(path, column="text").documents())


def test_a_null_in_the_first_row_does_not_settle_its_type(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": null}\n{"text": "good"}\n')
    assert [d.text for d in open_source(path).documents(Counter())] == ["good"]
    path.write_text('{"body": null}\n{"body": "good"}\n')
    assert [d.text for d in open_source(path, column="body").documents(Counter())] == ["good"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
@pytest.mark.parametrize("type_", [pa.list_(pa.int64()), pa.large_list(pa.uint16())])
def test_token_ids_are_taken_as_they_are(tmp_path: Path, kind: str, type_: pa.DataType) -> None:
    path = tmp_path / f"a.{kind}"
    table = pa.table(
        {
            "input_ids": pa.array([*IDS, None, []], type_),
            "attention_mask": pa.array([[1], [1], [1], [1]]),
        }
    )
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    dropped: Counter[str] = Counter()
    found = list(open_source(path).documents(dropped))
    assert [document.ids.tolist() for document in found if document.ids is not None] == IDS
    assert all(document.text is None for document in found)
    assert dropped == {"empty": 2}


def test_token_ids_with_a_null_inside_are_a_drop() -> None:
    raw = io.BytesIO()
    pq.write_table(pa.table({"input_ids": [[1, None], [2]]}), raw)
    raw.seek(0)
    bad, good = readers.read("a", "a", raw, "parquet", Columns())
    assert isinstance(bad, readers.Fault)
    assert bad.reason == "not text"
    assert isinstance(good, Document)


def test_an_arrow_table_of_many_rows_is_read_in_pieces(tmp_path: Path) -> None:
    rows = [f"row {n}" for n in range(1000)]
    assert texts(make(tmp_path, "a.arrow", rows=rows)) == rows


def test_a_folder_gives_its_readable_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b" / ".git").mkdir(parents=True)
    make(tmp_path / "b", "a.jsonl", ".gz", ["three"])
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "a.md").write_text("two")
    (tmp_path / "b" / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "trap.txt").mkdir()
    found = list(open_source(tmp_path).documents())
    assert [d.text for d in found] == ["two", "one", "three"]
    assert [d.name for d in found] == ["a.md", "a.txt", "b/a.jsonl.gz:1"]


def test_a_glob_gives_what_it_matches(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text(f"text {n}")
    (tmp_path / "sub.txt").mkdir()
    assert texts(f"{tmp_path}/[01]*.txt") == ["text 0", "text 1"]
    assert texts(f"{tmp_path}/**/*.txt") == ["text 0", "text 1", "text 2"]
    with pytest.raises(TextError, match="no file matches"):
        open_source(f"{tmp_path}/*.md")


def test_a_single_file_of_unknown_kind_is_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "notes.tex"
    path.write_text(r"\section{One}")
    assert texts(path) == [r"\section{One}"]


@pytest.mark.parametrize("spec", ["books.txt", "./books", "/no/such", "~/no-such-x", "a/b/c", "d/"])
def test_what_looks_like_a_path_must_exist(tmp_path: Path, spec: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TextError, match="no such file"):
        open_source(spec)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "books.txt").write_text("x")
    with pytest.raises(TextError, match=r"did you mean 'books\.txt'"):
        open_source(tmp_path / "boks.txt")


def test_a_file_missing_from_a_folder_that_is_there_is_no_hub_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    with pytest.raises(TextError, match="no such file"):
        open_source("corpus/books")


def test_an_empty_folder_says_what_could_be_read(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"nothing to read in .* jsonl"):
        open_source(tmp_path)


def test_a_file_that_vanishes_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    source = open_source(path)
    path.unlink()
    with pytest.raises(TextError, match=r"cannot read .*a\.txt \(No such file"):
        list(source.documents())


def test_the_meter_counts_stored_bytes_of_all_files(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text("x" * (n + 1))
    source, meter = open_source(tmp_path), Meter()
    assert len(list(source.rows(meter))) == 3
    assert meter.bytes_read == source.size() == 6


class _Input:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),
        (b"plain\ntext\n", ["plain\ntext\n"]),
    ],
)
def test_standard_input_is_jsonl_or_one_text(data: bytes, expected, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", _Input(data))
    source = open_source("-")
    assert source.identity() == []
    assert source.size() is None
    assert [document.text for document in source.documents()] == expected


@pytest.fixture
def bucket():
    filesystem = fsspec.filesystem("memory")
    for name, text in (("one.txt", "one"), ("sub/two.md", "two"), ("three.bin", "three")):
        with filesystem.open(f"/bucket/{name}", "w") as file:
            file.write(text)
    yield "memory://bucket"
    filesystem.rm("/bucket", recursive=True)


def test_urls_are_read_through_fsspec(bucket: str) -> None:
    assert texts(f"{bucket}/one.txt") == ["one"]
    assert texts(bucket) == ["one", "two"]
    assert texts(f"{bucket}/*.txt") == ["one"]
    source = open_source(bucket)
    assert [entry["bytes"] for entry in source.identity()] == [3, 3]
    assert [document.name for document in source.documents()] == ["one.txt", "sub/two.md"]


def test_urls_that_lead_nowhere_are_one_line(bucket: str, monkeypatch) -> None:
    with pytest.raises(TextError, match="nothing to read at memory://"):
        open_source(f"{bucket}/*.jsonl")
    with pytest.raises(TextError, match=r"cannot read memory://bucket/none\.txt"):
        texts(f"{bucket}/none.txt")
    with pytest.raises(TextError, match="cannot open nosuch://"):
        open_source("nosuch://bucket/a.txt")

    def no_s3fs(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", no_s3fs)
    with pytest.raises(DependencyError, match="Install s3fs"):
        open_source("s3://bucket/a.txt")


def test_a_listing_that_fails_is_one_line(bucket: str, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "isdir", refuse)
    with pytest.raises(TextError, match="cannot list memory://bucket: Access Denied"):
        open_source(bucket)


def hub(rows: list[dict], seen: list) -> object:
    def load(*arguments: object, **options: object) -> list[dict]:
        seen.append((arguments, options))
        return rows

    return load


def test_a_hub_data_set_is_streamed(monkeypatch) -> None:
    seen: list = []
    rows = [{"id": 1, "body": "one"}, {"id": 2, "body": "two"}]
    monkeypatch.setattr(datasets, "load_dataset", hub(rows, seen))
    source = open_source("owner/name:config", column="body", split="test")
    assert [(d.text, d.name) for d in source.documents()] == [
        ("one", "owner/name:1"),
        ("two", "owner/name:2"),
    ]
    assert seen == [(("owner/name", "config"), {"split": "test", "streaming": True})]
    assert source.size() is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("x"), "no file, folder or hub data set 'books'"),
        (ConnectionError("Couldn't reach\nthe hub"), "cannot be read from the hub: Couldn't reach"),
        (ValueError("Unknown split"), "Unknown split"),
    ],
)
def test_hub_failures_are_one_line(error: Exception, message: str, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(TextError, match=message) as caught:
        texts("books")
    assert "\n" not in str(caught.value)


def test_kinds_are_read_from_names() -> None:
    assert sources._kind("s3://b/a.JSONL.GZ") == ("jsonl", "gzip")
    assert sources._kind("https://h/a.parquet?download=true") == ("parquet", None)
    assert sources._kind("notes.zst") == ("text", "zstd")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"text": "one"}, {"text": "two"}]', ["one", "two"]),
        ('\ufeff \n[\n{"text": "one"}\n]\n', ["one"]),
        ('{"text": "one"}\n{"text": "two"}', ["one", "two"]),
        ('{"text": "one"}', ["one"]),
        ('{\n  "text": "one"\n}\n', ["one"]),
    ],
)
def test_json_is_read_as_records(tmp_path: Path, content: str, expected: list[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    assert texts(path) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "one"}', "broken or cut short"),
        ('[{"text": "one"}] {"text": "two"}', "broken or cut short"),
        ("plain words", "holds no JSON records"),
        ("", "holds no JSON records"),
        ('{"data": [{"text": "one"}]}', "which column of a.json is the text"),
    ],
)
def test_json_that_holds_no_records_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(TextError, match=message):
        list(open_source(path).documents(Counter()))


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085", "\v", "\x1c", "\r"])
@pytest.mark.parametrize("suffix", PACKERS)
def test_a_line_of_json_ends_at_a_line_feed_alone(
    tmp_path: Path, character: str, suffix: str
) -> None:
    rows = [f"one{character}two", "three"]
    path = tmp_path / f"a.jsonl{suffix}"
    lines = "".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(PACKERS[suffix](lines.encode()))
    assert texts(path) == rows


@pytest.mark.parametrize("name", ["page.html", "feed.XML", "notes.ipynb", "paper.pdf.gz"])
def test_marked_up_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<p>text</p>")
    for spec in (tmp_path / name, f"{tmp_path}/*"):
        with pytest.raises(TextError, match="make plain text of it first"):
            open_source(spec)


def test_a_file_of_another_kind_says_what_it_is_taken_for(tmp_path: Path) -> None:
    for name in ("a.py", "b.tex", "c.txt"):
        (tmp_path / name).write_text("x = 1")
    assert open_source(tmp_path / "a.py").notes() == ["read as plain text: a.py"]
    assert open_source(f"{tmp_path}/*").notes() == ["read as plain text: a.py and 1 more"]
    assert open_source(tmp_path / "c.txt").notes() == []


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def write_chats(path: Path) -> None:
    table = pa.table({"messages": [CHAT, CHAT[:1]], "id": [1, 2]})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_chats_are_written_with_the_template_on_request_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    write_chats(path)
    for column in (None, "messages"):
        with pytest.raises(TextError, match="holds chats in column 'messages': --chat writes"):
            texts(path, column=column)

    def render(messages: list[dict[str, str]]) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)

    assert texts(path, render=render) == ["<user>Hi<assistant>Hello.", "<user>Hi"]


def test_rows_that_the_template_refuses_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [CHAT, "no chat", [{"role": "user"}], None]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    dropped: Counter[str] = Counter()
    source = open_source(path, render=lambda messages: messages[0]["content"])
    assert [d.text for d in source.documents(dropped)] == ["Hi", "no chat"]
    assert dropped == {"no chat": 1, "empty": 1}


def test_names_that_are_not_utf8_are_read_and_shown_as_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("text")
    for spec in (tmp_path, tmp_path / name):
        (document,) = open_source(spec).documents()
        assert (document.text, document.name) == ("text", "caf\\xe9.txt")
        assert document.origin.encode()
    assert open_source(tmp_path).identity()[0]["file"].encode()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path):
    """A folder and the address at which it is served, without ranges."""
    handler = partial(_Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_read_over_http(served, name: str, suffix: str) -> None:
    folder, address = served
    path = make(folder, name, suffix)
    expected = ROWS[:1] if name in ("a.txt", "a.md") else ROWS
    assert texts(f"{address}/{path.name}") == expected


def test_no_secret_of_an_url_is_in_names_or_errors(served) -> None:
    folder, address = served
    make(folder, "a.jsonl")
    url = address.replace("//", "//me:hunter2@")
    source = open_source(f"{url}/a.jsonl?X-Amz-Signature=ab12cd&n=a/b")
    documents = list(source.documents())
    assert documents[0].name == "a.jsonl:1"
    told = [source.name, str(source.identity()), *(d.origin + d.name for d in documents)]
    with pytest.raises(TextError) as error:
        list(open_source(f"{url}/none.jsonl?X-Amz-Signature=ab12cd").documents())
    for text in (*told, str(error.value)):
        assert "hunter2" not in text
        assert "ab12cd" not in text


def test_json_in_a_folder_is_passed_over_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "config.json").write_text('{"key": 1}')
    source = open_source(tmp_path)
    assert [d.text for d in source.documents()] == ["one"]
    assert source.notes() == [
        f"passed over in {tmp_path}: 1 .json (records in JSON are read by name: "
        f"'{tmp_path}/*.json')"
    ]
    (tmp_path / "a.txt").unlink()
    with pytest.raises(TextError, match=r"but 1 \.json: name them"):
        open_source(tmp_path)
