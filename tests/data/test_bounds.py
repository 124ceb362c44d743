"""No input takes more memory than its bound, and what is left out is counted."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from endprompt.data import bounds, json_rows
from endprompt.data.sources import open_source
from endprompt.errors import TextError

GROWTH_MIB = 420
"""What reading may add to a process; with a model's tokenizer and torch it stays below 1 GiB."""
READ = """
import resource, sys
from collections import Counter
import pyarrow.parquet, numpy
from endprompt.data.sources import open_source
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
dropped = Counter()
found = sum(1 for _ in open_source(sys.argv[1]).documents(dropped))
print(peak() - before, found, dict(dropped), sep="|")
"""


def read_in_child(path: Path) -> tuple[int, int, dict[str, int]]:
    """MiB that reading added, documents, and what was left out."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    growth, found, dropped = done.stdout.strip().split("|")
    return int(growth), int(found), eval(dropped)


def compressed(path: Path, *pieces: tuple[bytes, int]) -> None:
    """Each piece so many times, packed by the ending of the name."""
    opened = gzip.open if path.suffix == ".gz" else zstandard.open
    with opened(path, "wb") as file:
        for piece, times in pieces:
            file.write(piece * times)


def huge_field(path: Path) -> None:
    compressed(
        path,
        (b'text,n\ngood,1\n"', 1),
        *[(b"x" * 2**20, 64)] * 12,
        (b'\n""quoted""",2\nlast,3\n', 1),
    )


def huge_line(path: Path) -> None:
    compressed(
        path,
        (b'{"text": "good"}\n{"text": "', 1),
        *[(b"x" * 2**20, 64)] * 8,
        (b'"}\n{"text": "last"}\n', 1),
    )


def many_values(path: Path) -> None:
    row = b'{"text": "good"}\n{"text": [', b"[]," * 2**20, b'0]}\n{"text": "last"}\n'
    compressed(path, (row[0], 1), (row[1], 10), (row[2], 1))


def many_objects(path: Path) -> None:
    row = b'{"text": "good"}\n{"text": [', b'{"":0},' * 2**20, b'0]}\n{"text": "last"}\n'
    compressed(path, (row[0], 1), (row[1], 4), (row[2], 1))


def array_with_a_huge_element(path: Path) -> None:
    compressed(
        path,
        (b'[{"text": "good"}, {"text": "', 1),
        *[(b"x" * 2**20, 64)] * 12,
        (b'"}, {"text": "last"}]', 1),
    )


def wide_characters(path: Path) -> None:
    long = ("\U0001f98a" * (bounds.DOCUMENT_BYTES // 4 - 8)).encode()
    compressed(
        path,
        *[(b'{"text": "' + long + b'"}\n', 1)] * 2,
        (b'{"text": "' + b"\\ud83e" * (bounds.DOCUMENT_BYTES // 4) + b'"}\n', 1),
    )


def long_text(path: Path) -> None:
    compressed(path, *[(b"word " * 2**18 + b"\n", 10)] * 8)


def cells() -> pa.Table:
    return pa.table({"text": ["good", "x" * (700 * 2**20), "last"]})


def huge_cell_of_parquet(path: Path) -> None:
    table = cells()
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        writer.write_table(table.slice(0, 1))
        writer.write_table(table.slice(1, 2))
        writer.write_table(table.slice(0, 1))


def repeated_dictionary_of_parquet(path: Path) -> None:
    long = "x" * (bounds.DOCUMENT_BYTES - 8)
    table = pa.table({"text": pa.array([long] * 40).dictionary_encode().cast(pa.string())})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=2**30)


def huge_cell_of_arrow(path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    table = cells()
    with pa.ipc.new_stream(path, table.schema, options=options) as stream:
        stream.write_table(table.slice(0, 1))
        stream.write_table(table.slice(1, 2))
        stream.write_table(table.slice(0, 1))


def repeated_dictionary_of_arrow(path: Path) -> None:
    words = pa.array(["x" * (bounds.DOCUMENT_BYTES - 8)])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), words)
    table = pa.table({"text": column})
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)


BOMBS: dict[str, tuple[str, Callable[[Path], None], int, dict[str, int]]] = {
    "csv field": ("a.csv.zst", huge_field, 2, {"too long": 1}),
    "json line": ("a.jsonl.gz", huge_line, 2, {"too long": 1}),
    "json lists": ("a.jsonl.zst", many_values, 2, {"too long": 1}),
    "json objects": ("a.jsonl.zst", many_objects, 2, {"too long": 1}),
    "json element": ("a.json.zst", array_with_a_huge_element, 2, {"too long": 1}),
    "wide characters": ("a.jsonl.zst", wide_characters, 2, {"invalid UTF-8": 1}),
    "long text": ("a.txt.zst", long_text, 7, {}),
    "parquet cell": ("a.parquet", huge_cell_of_parquet, 2, {"too long": 2}),
    "parquet dictionary": ("a.parquet", repeated_dictionary_of_parquet, 40, {}),
    "arrow cell": ("a.arrow", huge_cell_of_arrow, 2, {"too long": 2}),
    "arrow dictionary": ("a.arrow", repeated_dictionary_of_arrow, 40, {}),
}


@pytest.mark.parametrize("case", BOMBS)
def test_memory_has_a_bound_and_the_rest_is_read(tmp_path: Path, case: str) -> None:
    name, write, documents, dropped = BOMBS[case]
    path = tmp_path / name
    write(path)
    growth, found, counted = read_in_child(path)
    assert growth < GROWTH_MIB
    assert (found, counted) == (documents, dropped)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_header_that_lies_about_sizes_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    table = pa.table({"text": ["one", "two"]})
    if kind == "parquet":
        pq.write_table(table, path, compression="none")
        data = bytearray(path.read_bytes())
        data[4:24] = b"\xff" * 20
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
        data = bytearray(path.read_bytes())
        data[4:8] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(TextError, match=r"a\.\w+ is broken"):
        list(open_source(path).documents(Counter()))


@pytest.mark.parametrize("container", ["stream", "file"])
def test_an_arrow_stream_that_stops_between_two_batches_is_cut_short(
    tmp_path: Path, container: str
) -> None:
    table = pa.table({"text": [f"row {n}" for n in range(40)]})
    path = tmp_path / "a.arrow"
    new = pa.ipc.new_stream if container == "stream" else pa.ipc.new_file
    with new(path, table.schema) as writer:
        for start in range(0, 40, 10):
            writer.write_table(table.slice(start, 10))
    whole = path.read_bytes()
    assert len(list(open_source(path).documents())) == 40
    borders = [at for at in range(len(whole)) if whole.startswith(b"\xff\xff\xff\xff", at)]
    assert len(borders) >= 6  # schema, four batches, end mark
    for at in borders[1:]:
        path.write_bytes(whole[:at])
        with pytest.raises(TextError, match="broken or cut short"):
            list(open_source(path).documents())


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(VALUES, max_size=8),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_elements_of_an_array_are_those_that_json_finds(
    values: list[object], indent: int | None, ascii_only: bool, chunk: int
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    before, json_rows._CHUNK_BYTES = json_rows._CHUNK_BYTES, chunk
    try:
        raw = io.BytesIO(text.encode("utf-8", "surrogatepass"))
        found = list(json_rows.elements(raw))
    finally:
        json_rows._CHUNK_BYTES = before
    assert [json.loads(element.decode("utf-8", "surrogatepass")) for element in found] == values


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
            min_size=2,
            max_size=2,
        ),
        max_size=8,
    ),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_csv_rows_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], end: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(
            [["n", "text"], *rows]
        )
    dropped: Counter[str] = Counter()
    expected = [row[1] for row in rows if row[1] and not row[1].isspace()]
    if not expected:
        with pytest.raises(TextError):
            list(open_source(path).documents(dropped))
        return
    assert [d.text for d in open_source(path).documents(dropped)] == expected


def test_a_row_above_the_bound_does_not_leak_into_the_next(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bounds, "ROW_BYTES", 200)
    path = tmp_path / "a.csv"
    long = 'no, "words"\nfalse,row\n' * 30
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "n"], ["good", 1], [long, 2], ["last", 3]])
    dropped: Counter[str] = Counter()
    assert [d.text for d in open_source(path).documents(dropped)] == ["good", "last"]
    assert dropped == {"too long": 1}


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1
    ).filter(lambda text: bool(text.strip()))
)
def test_stretches_of_a_long_text_are_the_text(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    before, bounds.DOCUMENT_BYTES = bounds.DOCUMENT_BYTES, 8
    try:
        found = list(open_source(path).rows())
    finally:
        bounds.DOCUMENT_BYTES = before
    joined = "".join(getattr(item, "text", "") or "" for item in found)
    faults = [item for item in found if not hasattr(item, "text")]
    assert joined == text.removeprefix("\ufeff") or all(f.reason == "empty" for f in faults)
    assert all(len((getattr(item, "text", "") or "").encode()) <= 8 for item in found)
