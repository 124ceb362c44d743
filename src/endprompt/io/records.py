"""The one reader of files that this package writes, and of JSON that comes from outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from endprompt.errors import DataError, EndPromptError
from endprompt.record import SCHEMA_VERSION, Record

Kind = TypeVar("Kind", bound=Record)
Shape = TypeVar("Shape")
LARGEST_BYTES = 2**30
"""More than any record of ours holds; a larger file is not read."""


def read(path: Path, kind: type[Kind], *, error: type[EndPromptError] = DataError) -> Kind:
    """The record in a JSON file.

    Raises `error` in one line, with file, key and remedy, when the file can't be read, is damaged
    or cut short, nests too deeply, lacks a key, has a value of another type, or comes from a later
    version.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise error(f"{path} is larger than {LARGEST_BYTES >> 30} GiB: {kind.remedy}")
        content = path.read_bytes()
    except OSError as problem:
        raise error(f"cannot read {path} ({problem.strerror or problem}): {kind.remedy}") from None
    try:
        record = kind.model_validate_json(content, strict=True)
    except ValidationError as problem:
        raise error(f"{path} {_fault(problem)}: {kind.remedy}") from None
    if record.schema_version > SCHEMA_VERSION:
        raise error(
            f"{path} has schema_version {record.schema_version}, this version reads up to "
            f"{SCHEMA_VERSION}: update endprompt"
        )
    return record


def read_as(path: Path, kind: type[Record], shape: type[Shape], inside: str | None = None) -> Shape:
    """A record, or the value at one of its keys, as a dataclass. Raises as `read` does."""
    value: Any = read(path, kind).plain()
    try:
        return TypeAdapter(shape).validate_python(value if inside is None else value.get(inside))
    except ValidationError as problem:
        raise DataError(f"{path} {_fault(problem)}: {kind.remedy}") from None


def parse(text: str | bytes) -> Any:
    """A JSON value from outside. Raises ValueError for what is none or nests too deeply.

    Of integers with more digits than Python converts, and of lone surrogates, too.
    """
    try:
        values = json.loads(text)
        json.dumps(values, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    return values


def _fault(problem: ValidationError) -> str:
    """The first fault of a file in words, its key dotted."""
    fault = problem.errors(include_url=False, include_context=False, include_input=False)[0]
    if fault["type"] == "json_invalid":
        return f"is not whole JSON ({fault['msg'].removeprefix('Invalid JSON: ')})"
    key = ".".join(str(word) for word in fault["loc"])
    if fault["type"] == "missing":
        return f"lacks {key}"
    message = fault["msg"]
    return f"has a wrong {key or 'value'} ({message[:1].lower()}{message[1:]})"
