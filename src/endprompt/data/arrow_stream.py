"""Arrow's stream format with a bound on every batch and an end that has to be there.

Arrow itself takes a stream that stops between two batches for a whole one, and reads a batch into
memory whatever its size. The messages' own headers (Message.fbs, Schema.fbs of Apache Arrow) say
how large each is, unpacked, before a byte of it is read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import BinaryIO

from endprompt.data import bounds

FILE_MAGIC = b"ARROW1"
_CONTINUED = 0xFFFFFFFF
_DICTIONARY, _BATCH = 2, 3
_HEADER_BYTES = 2**24


class BrokenStream(ValueError):
    """Bytes that are no whole Arrow stream."""


@dataclass
class BoundedStream:
    """What Arrow reads in place of the file: the same bytes without batches above the bound.

    passed_over  rows of the batches that were left out since somebody last looked
    """

    raw: BinaryIO
    passed_over: int = 0
    _waiting: bytes = b""
    _body: int = 0
    _ended: bool = field(default=False)
    _incomplete: bool = field(default=False)
    closed: bool = field(default=False)

    def __post_init__(self) -> None:
        if self.raw.read(len(FILE_MAGIC)) == FILE_MAGIC:  # the file format: a stream, then an index
            self.raw.seek(-len(FILE_MAGIC), 2)
            if self.raw.read() != FILE_MAGIC:
                raise BrokenStream("no end mark")
            self.raw.seek(8)
        else:
            self.raw.seek(0)

    def readable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Nothing: the file is another's."""

    def flush(self) -> None:
        """Nothing."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, as a file does."""
        buffer = bytearray()
        while len(buffer) < size:
            if self._waiting:
                piece = self._waiting[: size - len(buffer)]
                self._waiting = self._waiting[len(piece) :]
            elif self._body:
                piece = self.raw.read(min(self._body, size - len(buffer)))
                if not piece:
                    raise BrokenStream("a batch is cut short")
                self._body -= len(piece)
            elif self._ended:
                break
            else:
                self._message()
                continue
            if not buffer and len(piece) == size:
                return bytes(piece)
            buffer += piece
        return bytes(buffer)

    def _message(self) -> None:
        """Read the next message's header, and decide whether Arrow sees the message."""
        start = self.raw.read(4)
        size = _unpack("<I", start, 0)
        if size == _CONTINUED:
            more = self.raw.read(4)
            start, size = start + more, _unpack("<I", more, 0)
        if size == 0:
            self._waiting, self._ended = start, True
            return
        if size > _HEADER_BYTES:
            raise BrokenStream(f"a header of {size} bytes")
        header = self.raw.read(size)
        if len(header) < size:
            raise BrokenStream("a header is cut short")
        message = _Table(header, _unpack("<I", header, 0))
        kind, body = message.number(1, "<B"), message.number(3, "<q")
        if body < 0:
            raise BrokenStream("a body of negative size")
        rows = 0
        if kind in (_DICTIONARY, _BATCH):
            batch = message.table(2) if kind == _BATCH else message.table(2).table(1)
            rows = batch.number(0, "<q") if kind == _BATCH else 0
            too_large = self._unpacked(batch, body) > bounds.BATCH_BYTES
            if too_large or (self._incomplete and kind == _BATCH):
                self._incomplete = self._incomplete or kind == _DICTIONARY
                self.passed_over += max(rows, 0)
                self.raw.seek(body, 1)
                return
        self._waiting, self._body = start + header, body

    def _unpacked(self, batch: _Table, body: int) -> int:
        """Bytes that the body of a batch takes in memory."""
        compressed, at = batch.at(3), batch.at(2)
        if not compressed or not at or body > bounds.BATCH_BYTES:
            return body
        here, total = self.raw.tell(), 0
        at += _unpack("<I", batch.data, at)
        for number in range(_unpack("<I", batch.data, at)):
            offset, length = struct.unpack_from("<qq", batch.data, at + 4 + 16 * number)
            if length > 0:
                self.raw.seek(here + offset)
                size = _unpack("<q", self.raw.read(8), 0)
                total += length if size == -1 else size
                if size < -1:
                    raise BrokenStream("a buffer of negative size")
        self.raw.seek(here)
        return total


@dataclass(frozen=True)
class _Table:
    """A table of a flatbuffer: its fields are found through the offsets that it begins with."""

    data: bytes
    start: int

    def at(self, field_number: int) -> int:
        """Where a field lies, 0 where the table does not have it."""
        offsets = self.start - _unpack("<i", self.data, self.start)
        place = 4 + 2 * field_number
        if place >= _unpack("<H", self.data, offsets):
            return 0
        offset = _unpack("<H", self.data, offsets + place)
        return self.start + offset if offset else 0

    def number(self, field_number: int, form: str) -> int:
        """A field that is a number, 0 where it is left out."""
        at = self.at(field_number)
        return _unpack(form, self.data, at) if at else 0

    def table(self, field_number: int) -> _Table:
        """A field that is a table. Raises BrokenStream where it is left out."""
        at = self.at(field_number)
        if not at:
            raise BrokenStream("a message without its content")
        return _Table(self.data, at + _unpack("<I", self.data, at))


def _unpack(form: str, data: bytes, at: int) -> int:
    if at < 0:
        raise BrokenStream("an offset outside of its header")
    try:
        return struct.unpack_from(form, data, at)[0]
    except struct.error as error:
        raise BrokenStream("no end mark, or a header is cut short") from error
