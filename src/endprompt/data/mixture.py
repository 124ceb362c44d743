"""Several sources as one sequence of rows: one after the other, or mixed by weight."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from endprompt import yaml_text
from endprompt.data.encoder import Encoder
from endprompt.data.readers import Document, Item, Render
from endprompt.data.sources import Meter, Source, open_source
from endprompt.errors import DataError, TextError

_PROBE_DOCUMENTS = 64
_PROBE_CHARACTERS = 2**18


@dataclass(frozen=True)
class Weighted:
    """A source and its share of the tokens, relative to the others'; None: all of it."""

    source: Source
    weight: float | None = None


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    source: str
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    column: str | None = None
    split: str = "train"


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sources: Annotated[list[_Entry], Field(min_length=1)]


def load_mixture(path: Path, *, render: Render | None = None) -> list[Weighted]:
    """Sources and weights of a YAML file; with `render`, all of them hold chats.

        sources:
          - {source: books/*.txt, weight: 3}
          - {source: owner/name, weight: 1, column: content, split: train}

    Raises TextError when the file can't be read, or names the key that is wrong.
    """
    try:
        spec = _Spec.model_validate(yaml_text.load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise TextError(f"mixture {path}: {where}: {first['msg']}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise TextError(f"cannot read mixture {path}: {detail}") from error
    if any(entry.source == "-" for entry in spec.sources):
        raise TextError(f"mixture {path}: standard input has no weight: give it as SOURCE alone")
    return [
        Weighted(
            open_source(entry.source, column=entry.column, split=entry.split, render=render),
            entry.weight,
        )
        for entry in spec.sources
    ]


@dataclass(frozen=True)
class Cursor:
    """Where reading stands.

    taken    rows read of each source
    content  digest of those rows, so that resuming over changed sources is noticed
    spent    tokens that each source has given, as estimated: decides whose turn it is
    dry      the source that ran out first and so ended a mixture, or None
    """

    taken: list[int]
    content: list[str]
    spent: list[float]
    dry: int | None = None


class WeightedReader:
    """Rows of several sources as one sequence; iterating gives (number of the source, item).

    Without weights: every source in turn, whole. With weights: always the source that is
    furthest behind its share of the tokens, until one of them runs dry; so the shares hold from
    the first part to the last, with no randomness and nothing that depends on speed.

    rates  tokens per character of each source (`token_rates`), unused without weights
    """

    def __init__(self, sources: Sequence[Weighted], rates: Sequence[float], meter: Meter) -> None:
        self._sources, self._rates = sources, rates
        self._readers = [entry.source.rows(meter) for entry in sources]
        self._taken = [0] * len(sources)
        self._hashes = [hashlib.blake2b(digest_size=16) for _ in sources]
        self._spent = [0.0] * len(sources)
        self._dry: int | None = None

    def cursor(self) -> Cursor:
        """Where reading stands now."""
        content = [digest.hexdigest() for digest in self._hashes]
        return Cursor(self._taken[:], content, self._spent[:], self._dry)

    def skip_to(self, cursor: Cursor) -> None:
        """Read again what was read before, which is quick beside tokenising it.

        Raises DataError when it is not the same any more.
        """
        for number, (count, content) in enumerate(zip(cursor.taken, cursor.content, strict=True)):
            while self._taken[number] < count and self._next(number) is not None:
                pass
            if self._hashes[number].hexdigest() != content:
                raise DataError(
                    f"{self._sources[number].source.name} changed in what was read of it before: "
                    "use --force to start anew"
                )
        self._spent = cursor.spent[:]

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        if any(entry.weight is None for entry in self._sources):
            for number in range(len(self._sources)):
                while (item := self._next(number)) is not None:
                    yield number, item
            return
        weights = [entry.weight or 1.0 for entry in self._sources]
        while True:
            number = min(range(len(weights)), key=lambda n: (self._spent[n] / weights[n], n))
            item = self._next(number)
            if item is None:
                self._dry = number
                return
            self._spent[number] += self._rates[number] * size(item)
            yield number, item

    def _next(self, number: int) -> Item | None:
        item = next(self._readers[number], None)
        if item is not None:
            self._taken[number] += 1
            self._hashes[number].update(_content(item))
        return item


def _content(item: Item) -> bytes:
    """Bytes that differ where items do."""
    if not isinstance(item, Document):
        data = item.reason.encode()
    elif item.text is not None:
        data = item.text.encode()
    else:
        data = np.asarray(item.ids).astype("<u4").tobytes()
    return len(data).to_bytes(8, "little") + data


def token_rates(sources: Sequence[Weighted], encoder: Encoder) -> list[float]:
    """Tokens per character at the beginning of each source; ids count one each.

    A rate and not the true count decides about turns, so that reading may run ahead of
    tokenising without the result depending on how far.
    """
    rates = []
    for entry in sources:
        texts: list[str] = []
        characters = 0
        for item in islice(entry.source.rows(), _PROBE_DOCUMENTS):
            if isinstance(item, Document) and item.text and characters < _PROBE_CHARACTERS:
                texts.append(item.text[:_PROBE_CHARACTERS])
                characters += len(texts[-1])
        tokens = sum(len(ids) for ids in encoder(texts))
        rates.append(tokens / characters if characters else 1.0)
    return rates


def size(item: Item) -> int:
    """Characters of a document, or its token ids where it came tokenised."""
    if not isinstance(item, Document):
        return 0
    return (
        len(item.text) if item.text is not None else len(item.ids if item.ids is not None else ())
    )


def describe(sources: Sequence[Weighted]) -> list[dict[str, Any]]:
    """What the user asked for, as settings that a resumed run must share."""
    return [
        {
            "source": entry.source.name,
            "column": entry.source.columns.name,
            "split": getattr(entry.source, "split", None),
            "weight": entry.weight,
            **({"chat": True} if entry.source.columns.render else {}),
        }
        for entry in sources
    ]
