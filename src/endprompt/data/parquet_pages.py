"""How large the pages of a parquet column are, read from their headers before any is unpacked.

Arrow unpacks a page at a time, whatever its size, and repeats a dictionary's entries for every row
that names them; the footer gives sums of row groups only. Headers are Thrift's compact protocol
(parquet.thrift: PageHeader).
"""

from __future__ import annotations

from typing import Any, BinaryIO

from endprompt.data import bounds

BATCH_ROWS = 256
_HEAD_BYTES = 2**12
_LONGEST_HEAD_BYTES = 2**24
_DEEPEST = 16


def rows_at_once(raw: BinaryIO, group: Any, column: str) -> int:
    """How many rows of a row group's column may be decoded together; 0: not even one.

    group  pyarrow's RowGroupMetaData

    A value is no longer than its page, or than the dictionary that it stands in. So rows times
    the largest page is the most that they take.
    Raises ValueError where a page's header is none.
    """
    largest = 1
    for index in range(group.num_columns):
        chunk = group.column(index)
        path = chunk.path_in_schema
        if path != column and not path.startswith(f"{column}."):
            continue
        nested = path != column
        values = chunk.num_values * 8 if nested else 0
        largest = max(largest, values // max(1, group.num_rows))
        largest = max(largest, _largest_page(raw, chunk, nested=nested))
    return min(BATCH_ROWS, bounds.BATCH_BYTES // largest)


def _largest_page(raw: BinaryIO, chunk: Any, *, nested: bool) -> int:
    """Bytes of the largest page, unpacked; eight a value where a row holds many."""
    at = chunk.data_page_offset
    if chunk.dictionary_page_offset:
        at = min(at, chunk.dictionary_page_offset)
    end = at + chunk.total_compressed_size
    largest = chunk.total_uncompressed_size if end <= at else 0
    while at < end:
        header, length = _page_header(raw, at)
        unpacked, packed = header.get(2), header.get(3)
        if (
            not isinstance(unpacked, int)
            or not isinstance(packed, int)
            or min(unpacked, packed) < 0
        ):
            raise ValueError("a page without its size")
        largest = max(largest, unpacked)
        counts = header.get(5) or header.get(8) or {}
        if nested and isinstance(counts, dict):
            largest = max(largest, 8 * counts.get(1, 0))
        at += length + packed
    return largest


def _page_header(raw: BinaryIO, at: int) -> tuple[dict[int, Any], int]:
    """Fields of the page header at an offset, and its length in bytes."""
    size = _HEAD_BYTES
    while True:
        raw.seek(at)
        reader = _Compact(raw.read(size))
        try:
            return reader.struct(), reader.at
        except IndexError:
            if len(reader.data) < size or size >= _LONGEST_HEAD_BYTES:
                raise ValueError("a page's header is cut short") from None
            size *= 16


class _Compact:
    """Thrift's compact protocol, as much of it as headers need."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """{number of the field: value} of a struct."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int, *, in_list: bool = False) -> Any:
        if depth > _DEEPEST:
            raise ValueError("a page's header is nested too deep")
        if kind in (1, 2):
            return self._byte() == 1 if in_list else kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind in (7, 8):
            length = 8 if kind == 7 else self._unsigned()
            if self.at + length > len(self.data):
                raise IndexError
            self.at += length
            return None
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 != 15 else self._unsigned()
            for _ in range(count):
                self._value(head & 15, depth + 1, in_list=True)
            return None
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError("a page's header is broken")

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a page's header is broken")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
