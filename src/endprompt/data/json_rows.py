"""JSON in pieces that have a bound: lines, elements of an array, the values of one row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from endprompt.data import bounds

_BORDER = re.compile(rb'["\[\]{}]')
_BORDER_OF_ELEMENT = re.compile(rb'["\[\]{},]')
_BYTES_OF = {b",": 64, b"[": 72, b"{": 240}
"""What CPython takes for a value, a list and a dictionary, about."""
_CHUNK_BYTES = 2**20


class TooLarge(Exception):
    """A piece above its bound; it was passed over, and reading continues behind it."""


class CutShort(Exception):
    """The array has no end, or something else stands behind it."""


def lines(raw: BinaryIO) -> Iterator[bytes | TooLarge]:
    r"""Lines, which end at `\n` alone; one above the bound is passed over."""
    while line := raw.readline(bounds.ROW_BYTES + 1):
        if len(line) <= bounds.ROW_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = raw.readline(_CHUNK_BYTES)
        yield TooLarge()


def parse(data: bytes) -> Any:
    """The value of some bytes of JSON.

    Raises TooLarge where its values might take more memory than VALUES_BYTES, counted by its
    commas and brackets, those of its texts included; ValueError (UnicodeDecodeError among them)
    or RecursionError where it is no JSON.
    """
    if sum(data.count(mark) * size for mark, size in _BYTES_OF.items()) > bounds.VALUES_BYTES:
        raise TooLarge
    return json.loads(data.decode("utf-8-sig"))


def elements(raw: BinaryIO) -> Iterator[bytes | TooLarge]:
    """Elements of the array that the bytes hold, unparsed; one above the bound is passed over.

    Raises CutShort where the array does not end, or is not all there is.
    """
    held, dropped = bytearray(), False
    depth, in_string, escaped = 0, False, False
    while chunk := raw.read(_CHUNK_BYTES):
        start = at = 0
        if escaped:
            at, escaped = 1, False
        while True:
            if in_string:
                quote = chunk.find(b'"', at)
                escape = chunk.find(b"\\", at, quote if quote >= 0 else len(chunk))
                if escape >= 0:
                    at, escaped = escape + 2, escape + 1 == len(chunk)
                elif quote >= 0:
                    at, in_string = quote + 1, False
                else:
                    break
                continue
            border = (_BORDER_OF_ELEMENT if depth == 1 else _BORDER).search(chunk, at)
            if border is None:
                break
            at, mark = border.end(), border.group()
            if mark == b'"':
                in_string = True
            elif mark in b"[{":
                depth += 1
                if depth == 1:
                    start = at
            elif mark in b"]}":
                depth -= 1
            if (mark == b"," and depth == 1) or (mark == b"]" and depth == 0):
                held += chunk[start : at - 1]
                if dropped or len(held) > bounds.ROW_BYTES:
                    yield TooLarge()
                elif mark == b"," or held.strip():
                    yield bytes(held)
                held, dropped, start = bytearray(), False, at
                if depth == 0:
                    _require_nothing(chunk[at:], raw)
                    return
        held += chunk[start:]
        if len(held) > bounds.ROW_BYTES:
            held, dropped = bytearray(), True
    raise CutShort("its array has no end")


def _require_nothing(rest: bytes, raw: BinaryIO) -> None:
    while not rest.strip():
        rest = raw.read(_CHUNK_BYTES)
        if not rest:
            return
    raise CutShort("something stands behind its array")
