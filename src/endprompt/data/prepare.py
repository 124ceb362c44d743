"""Sources -> a folder of tokenised documents that can be stopped and resumed anywhere.

Every part is written whole before the journal names it, and the journal says how many rows of
each source lie in the parts so far. A run that was killed therefore resumes behind its last part
and ends with the same bytes as one that was not. Reading runs one batch ahead of tokenising;
memory holds two batches and one part, whatever the size of the sources.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from endprompt.data import copies, holdout, parts
from endprompt.data.encoder import BATCH_CHARACTERS, Encoder
from endprompt.data.manifest import (
    FORMAT_VERSION,
    JOURNAL,
    MANIFEST,
    histogram,
    load,
    seal,
    write_datasets_files,
)
from endprompt.data.mixture import Cursor, Weighted, WeightedReader, describe, size, token_rates
from endprompt.data.readers import Document, Item
from endprompt.data.sources import Meter
from endprompt.data.tokens import encode_documents
from endprompt.data.words import Words
from endprompt.errors import DataError, TextError
from endprompt.io import claims
from endprompt.io.files import sha256_file, sha256_of, write_json, writing

PART_TOKENS = 2**24
BATCH_DOCUMENTS = 4096
TRAIN, HOLDOUT = "train", "holdout"
PART, CLEAN = "data-", "-without-copies.arrow"


@dataclass(frozen=True)
class Options:
    """What decides about the result, beside the sources and the tokenizer.

    holdout              share of documents, chosen by their content, that training never sees,
                         nor copies of them
    max_tokens           stop with the document that reaches it; None: take everything
    min_document_tokens  shorter documents are dropped
    part_tokens          a part is closed by the first batch that reaches it
    """

    holdout: float = 0.0
    max_tokens: int | None = None
    min_document_tokens: int = 1
    part_tokens: int = PART_TOKENS


@dataclass(frozen=True)
class Progress:
    """How far a run is. `share` lies in 0..1, None where the size of the sources is unknown."""

    documents: int
    tokens: int
    share: float | None


@dataclass
class _Tally:
    """What the journal keeps: counts of each source, parts of each split, where reading is."""

    cursor: Cursor
    documents: list[int]
    tokens: list[int]
    dropped: list[dict[str, int]]
    parts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    finished: bool = False


def prepare(
    sources: Sequence[Weighted],
    tokenizer: Any,
    folder: Path,
    *,
    options: Options = Options(),
    force: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Tokenise sources into `folder`, or resume an interrupted run.

    tokenizer  a Transformers tokenizer
    force      throw away prepared data that lies in the folder

    Returns the manifest. Raises TextError for sources that can't be read or hold nothing;
    DataError when the folder holds data of other settings, sources or tokenizer, or a token id
    lies outside the vocabulary; OutputError when the folder can't be used or the disk is full.
    """
    encoder = Encoder(tokenizer)
    settings = {
        "format_version": FORMAT_VERSION,
        "tokenizer": encoder.digest,
        "sources": describe(sources),
        "chat_template": _chat_template(sources, tokenizer),
        **asdict(options),
    }
    name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    reads = [name, *(entry.source.spec for entry in sources)]
    with claims.output(folder, "prepare", reads=reads, ours=_is_ours) as held:
        if force:
            _clear(folder)
        done = _finished(folder, settings, sources)
        if done is not None:
            return done
        run = _Run(sources, tokenizer, encoder, held, options, settings, report)
        tally = run.tokenise()
        return run.finish(tally, name)


class _Run:
    """One run over the sources; everything that its steps share."""

    def __init__(
        self,
        sources: Sequence[Weighted],
        tokenizer: Any,
        encoder: Encoder,
        held: claims.Output,
        options: Options,
        settings: dict[str, Any],
        report: Callable[[Progress], None],
    ) -> None:
        self.sources, self.encoder, self.held, self.folder = sources, encoder, held, held.folder
        self.options, self.settings, self.report = options, settings, report
        self.tokenizer = tokenizer
        self.dtype = parts.dtype_for(encoder.vocabulary)
        self.meter = Meter()
        sizes = [entry.source.size() for entry in sources]
        self.bytes = sum(n for n in sizes if n) if all(n is not None for n in sizes) else None
        self.waiting: dict[str, list[tuple[str, np.ndarray]]] = {TRAIN: [], HOLDOUT: []}
        self.waiting_tokens = 0

    def tokenise(self) -> _Tally:
        """Write the parts that are still to be written."""
        tally = self._begin()
        if tally.finished:
            return tally
        weighted = all(entry.weight is not None for entry in self.sources)
        rates = token_rates(self.sources, self.encoder) if weighted else []
        reader = WeightedReader(self.sources, rates, self.meter)
        reader.skip_to(tally.cursor)
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for batch in chain(_batches(reader), [None]):
                documents = [i for _, i in batch.items if isinstance(i, Document)] if batch else []
                encoded = pool.submit(encode_documents, self.encoder, documents) if batch else None
                if ahead is not None:
                    self._take(tally, ahead[0], ahead[1].result())
                if batch is None or encoded is None or tally.finished:
                    break
                ahead = batch, encoded
        tally.finished = True
        self._close_parts(tally)
        return tally

    def _begin(self) -> _Tally:
        """The state that the journal describes, its parts checked, or a fresh one."""
        path = self.folder / JOURNAL
        if not path.exists():
            count = len(self.sources)
            start = WeightedReader(self.sources, [], Meter()).cursor()
            return _Tally(start, [0] * count, [0] * count, [{} for _ in range(count)])
        journal = _read_journal(path)
        _require_same(self.folder, journal["settings"], self.settings)
        kept = journal["tally"]
        tally = _Tally(cursor=Cursor(**kept.pop("cursor")), **kept)
        for part in chain.from_iterable(tally.parts.values()):
            if not part["documents"]:
                continue
            path = self.folder / part["file"]
            if not path.exists() or sha256_file(path) != part["sha256"]:
                raise DataError(f"part {path} was changed or lost: use --force to start anew")
        return tally

    def _take(self, tally: _Tally, batch: _Batch, arrays: list[np.ndarray]) -> None:
        """Count a tokenised batch and put its documents where they belong."""
        ids_of = iter(arrays)
        least, most = self.options.min_document_tokens, self.options.max_tokens
        for source, item in batch.items:
            if isinstance(item, Document):
                ids = next(ids_of).astype(self.dtype)
                if len(ids) >= least:
                    split = HOLDOUT if _is_held_out(ids, self.options.holdout) else TRAIN
                    self.waiting[split].append((item.name, ids))
                    self.waiting_tokens += len(ids)
                    tally.documents[source] += 1
                    tally.tokens[source] += len(ids)
                    if most is not None and sum(tally.tokens) >= most:
                        tally.finished = True
                        break
                    continue
                reason, rows = f"fewer than {least} tokens", 1
            else:
                reason, rows = item.reason, item.rows
            tally.dropped[source][reason] = tally.dropped[source].get(reason, 0) + rows
        tally.cursor = batch.cursor
        if self.waiting_tokens >= self.options.part_tokens and not tally.finished:
            self._close_parts(tally)
        self.report(Progress(sum(tally.documents), sum(tally.tokens), self._share(tally)))

    def _share(self, tally: _Tally) -> float | None:
        shares = []
        if self.options.max_tokens:
            shares.append(sum(tally.tokens) / self.options.max_tokens)
        if self.bytes:
            shares.append(self.meter.bytes_read / self.bytes)
        return min(1.0, max(shares)) if shares else None

    def _close_parts(self, tally: _Tally) -> None:
        """Write what waits, one part a split, and only then let the journal name the parts."""
        for split, waiting in self.waiting.items():
            if not waiting:
                continue
            self.held.claim({})  # the settings are the journal's, and the manifest's
            listed = tally.parts.setdefault(split, [])
            listed.append(self._write_part(f"{split}/{PART}{len(listed):05d}.arrow", waiting))
            waiting.clear()
        self.waiting_tokens = 0
        if tally.parts:
            self._write_journal(tally)

    def _write_part(self, name: str, documents: list[tuple[str, np.ndarray]]) -> dict[str, Any]:
        """Write a part, and what the journal says of it."""
        names, arrays = zip(*documents, strict=True)
        with writing(self.folder / name) as partial:
            parts.write(partial, arrays, names, self.dtype)
            return {
                "file": name,
                "documents": len(arrays),
                "tokens": sum(map(len, arrays)),
                "bytes": partial.stat().st_size,
                "sha256": sha256_file(partial),
            }

    def _leave_out_copies(self, tally: _Tally) -> None:
        """Take copies of held-out documents out of the training parts.

        A part is written anew under another name, and the journal names it before the old one
        goes, so that a run that is killed here resumes as everywhere.
        """
        held, train = tally.parts.get(HOLDOUT, []), tally.parts.get(TRAIN, [])
        if not held or not train:
            return
        marks = copies.Fingerprints.of(
            (ids for entry in held for _, ids in parts.read(self.folder / entry["file"])),
            Words(self.tokenizer),
        )
        for number, entry in enumerate(train):
            if "copied" in entry:
                continue
            duplicates = [
                (name, ids, marks.copies(ids))
                for name, ids in parts.read(self.folder / entry["file"])
            ]
            if not any(copied for *_, copied in duplicates):
                continue
            kept = [(name, self._rest(ids, copied)) for name, ids, copied in duplicates]
            kept = [(name, ids) for name, ids in kept if len(ids)]
            after: dict[str, Any] = {"file": "", "documents": 0, "tokens": 0}
            if kept:
                after = self._write_part(entry["file"].removesuffix(".arrow") + CLEAN, kept)
            after["copied"] = {
                "documents": entry["documents"] - after["documents"],
                "tokens": entry["tokens"] - after["tokens"],
            }
            train[number] = after
            self._write_journal(tally)
        for number, entry in enumerate(train):
            if "copied" in entry:
                (self.folder / f"{TRAIN}/{PART}{number:05d}.arrow").unlink(missing_ok=True)

    def _rest(self, ids: np.ndarray, copied: list[tuple[int, int]]) -> np.ndarray:
        """A document without its copied stretches; what is left reads as documents of its own."""
        if not copied:
            return ids
        bos, eos = self.encoder.bos, self.encoder.eos
        joined: list[np.ndarray] = []
        for start, stop in copies.rests(copied, len(ids)):
            if bos is not None and start and ids[0] == bos:
                joined.append(np.array([bos]))
            joined.append(ids[start:stop])
            if eos is not None and stop < len(ids) and ids[-1] == eos:
                joined.append(np.array([eos]))
        return np.concatenate([np.empty(0, self.dtype), *joined]).astype(self.dtype)

    def _write_journal(self, tally: _Tally) -> None:
        journal = {"settings": self.settings, "tally": asdict(tally)}
        write_json(self.folder / JOURNAL, seal(journal))

    def finish(self, tally: _Tally, tokenizer_name: str) -> dict[str, Any]:
        """Leave copies out, write the files of `datasets`, the manifest, and drop the journal."""
        self._leave_out_copies(tally)
        listed = tally.parts.get(TRAIN, [])
        copied = {
            key: sum(part.get("copied", {}).get(key, 0) for part in listed)
            for key in ("documents", "tokens")
        }
        tally.parts[TRAIN] = [part for part in listed if part["documents"]]
        if not tally.parts[TRAIN]:
            dropped = _total(tally.dropped)
            if copied["documents"]:
                dropped[copies.REASON] = copied["documents"]
            reasons = _join_counts(dropped) or "the sources are empty"
            (self.folder / JOURNAL).unlink(missing_ok=True)
            raise TextError(f"no document left to train on: {reasons}")
        splits = dict(sorted(tally.parts.items(), reverse=True))
        names = {
            split: [Path(part["file"]).name for part in listed] for split, listed in splits.items()
        }
        small = [claims.CLAIM, *write_datasets_files(self.folder, names, self.dtype)]
        encoder = self.encoder
        manifest = {
            "format_version": FORMAT_VERSION,
            "settings": self.settings,
            "tokenizer": {
                "name": tokenizer_name,
                "digest": encoder.digest,
                "vocabulary": encoder.vocabulary,
                "bos": encoder.bos,
                "eos": encoder.eos,
            },
            "documents": sum(tally.documents) - copied["documents"],
            "tokens": sum(tally.tokens) - copied["tokens"],
            "copied": copied,
            "dropped": _total(tally.dropped),
            "sources": [
                {
                    **asked,
                    "files": self.sources[n].source.identity(),
                    "content": tally.cursor.content[n],
                    "documents": tally.documents[n],
                    "tokens": tally.tokens[n],
                    "dropped": tally.dropped[n],
                    "ran_dry": tally.cursor.dry == n,
                }
                for n, asked in enumerate(self.settings["sources"])
            ],
            "splits": {split: self._split(listed) for split, listed in splits.items()},
            "files": {name: sha256_file(self.folder / name) for name in small},
        }
        write_json(self.folder / MANIFEST, seal(manifest))
        (self.folder / JOURNAL).unlink()
        return manifest

    def _split(self, listed: list[dict[str, Any]]) -> dict[str, Any]:
        lengths = [parts.read(self.folder / part["file"]).lengths_N for part in listed]
        return {
            "documents": sum(part["documents"] for part in listed),
            "tokens": sum(part["tokens"] for part in listed),
            "lengths": histogram(np.concatenate(lengths)),
            "parts": listed,
        }


@dataclass(frozen=True)
class _Batch:
    """Rows to tokenise together, and where reading stands behind them."""

    items: list[tuple[int, Item]]
    cursor: Cursor


def _batches(reader: WeightedReader) -> Iterator[_Batch]:
    items: list[tuple[int, Item]] = []
    characters = 0
    for number, item in reader:
        items.append((number, item))
        characters += size(item)
        if characters >= BATCH_CHARACTERS or len(items) >= BATCH_DOCUMENTS:
            yield _Batch(items, reader.cursor())
            items, characters = [], 0
    yield _Batch(items, reader.cursor())


def _chat_template(sources: Sequence[Weighted], tokenizer: Any) -> str | None:
    """Digest of the template that chats are written with; None where there are none."""
    if not any(entry.source.columns.render for entry in sources):
        return None
    return sha256_of(tokenizer.chat_template)


def _is_held_out(ids: np.ndarray, share: float) -> bool:
    """Decided by the document's content, so that equal documents fall on the same side."""
    if not share:
        return False
    digest = hashlib.blake2b(ids.astype("<u4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _is_ours(folder: Path) -> bool:
    """Whether a folder without a claim was prepared by a version that wrote none."""
    if not any((folder / name).is_file() for name in (MANIFEST, JOURNAL)):
        return False
    with contextlib.suppress(DataError):
        if (folder / MANIFEST).is_file():
            load(folder)
        else:
            _read_journal(folder / JOURNAL)
        return True
    return False


def _finished(
    folder: Path, settings: dict[str, Any], sources: Sequence[Weighted]
) -> dict[str, Any] | None:
    """The manifest of a finished run of just these settings and files, None where none is.

    Raises DataError when the run was another one.
    """
    if not (folder / MANIFEST).exists():
        return None
    manifest = load(folder)
    _require_same(folder, manifest["settings"], settings)
    for entry, before in zip(sources, manifest["sources"], strict=True):
        if before["files"] != entry.source.identity():
            raise DataError(
                f"files of {entry.source.name} are not those that {folder} was made of: "
                "choose another --out, or --force to replace it"
            )
    (folder / JOURNAL).unlink(missing_ok=True)
    return manifest


def _require_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key in now:
        if before.get(key) == now[key]:
            continue
        words = {
            "tokenizer": "another tokenizer",
            "sources": "other sources, columns or weights",
            "chat_template": "another chat template",
        }
        plain = f"{key} {json.dumps(before.get(key))}, not {json.dumps(now[key])}"
        raise DataError(
            f"{folder} was prepared with {words.get(key, plain)}: choose another --out, "
            "or --force to replace it"
        )


def _clear(folder: Path) -> None:
    """Remove prepared data, and nothing else; the manifest first, so that no half is complete."""
    for name in (MANIFEST, JOURNAL, "dataset_dict.json", holdout.FILE):
        (folder / name).unlink(missing_ok=True)
    for split in (TRAIN, HOLDOUT):
        numbered = PART + 5 * "[0-9]"
        for pattern in (
            f"{numbered}.arrow",
            f"{numbered}{CLEAN}",
            "dataset_info.json",
            "state.json",
        ):
            for path in (folder / split).glob(pattern):
                path.unlink()


def _read_journal(path: Path) -> dict[str, Any]:
    try:
        journal = json.loads(path.read_bytes())
        checksum = journal.pop("checksum")
        if seal(journal)["checksum"] == checksum:
            return journal
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise DataError(f"{path} is broken: use --force to start anew")


def _total(dropped: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for counts in dropped:
        for reason, count in counts.items():
            total[reason] = total.get(reason, 0) + count
    return total


def _join_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
