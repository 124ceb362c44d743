"""Rows of a recipe on disk, for trainers other than this package's.

A folder of parts of equal rows in columns that every trainer reads, `rows.json` with what they
were made of, and `rows.npy` with two hashes a row, by which a row is known again wherever a
trainer hands it to the model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from endprompt.data.rows import IGNORED, RowSource
from endprompt.errors import DataError
from endprompt.io import claims, files, records
from endprompt.record import RowFiles

log = logging.getLogger(__name__)
Format = Literal["arrow", "parquet", "jsonl"]
FORMATS: tuple[Format, ...] = ("arrow", "parquet", "jsonl")
MANIFEST, HASHES = "rows.json", "rows.npy"
TOKENS_OF_A_PART = 16 * 2**20
WITHOUT_WEIGHTS = ("TRL", "Axolotl", "LLaMA-Factory", "Unsloth", "torchtitan")
"""Trainers that have no column for loss weights."""


def example(source: RowSource, index: int) -> dict[str, np.ndarray]:
    """Row `index` in columns: int32[T] ids, positions, labels, mask; float32[T] weights.

    Labels are the tokens themselves, -100 where nothing is trained.
    """
    row = source.row(index)
    trained = row.weights_T != 0
    trained[0] = False  # nothing comes before the first token
    tokens = row.tokens_T.astype(np.int32)
    return {
        "input_ids": tokens,
        "position_ids": row.positions_T.astype(np.int32),
        "labels": np.where(trained, tokens, IGNORED).astype(np.int32),
        "attention_mask": np.ones(len(tokens), np.int32),
        "loss_weights": row.weights_T,
    }


def weighted(source: RowSource) -> bool:
    """Whether some row has loss weights other than 0 and 1; eight rows of each kind are asked."""
    asked: dict[int, int] = {}
    for index in range(len(source)):
        kind = id(source.kind(index))
        asked[kind] = asked.get(kind, 0) + 1
        if asked[kind] <= 8 and not np.isin(source.row(index).weights_T[1:], (0, 1)).all():
            return True
        if index > 1000:
            break
    return False


def hash_of(tokens_T: Any) -> int:
    """64 bits that stand for a row's tokens or positions."""
    held = np.ascontiguousarray(tokens_T, dtype="<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(held, digest_size=8).digest(), "little")


def write(
    source: RowSource,
    out: Path,
    *,
    facts: dict[str, Any],
    card: str,
    form: Format = "arrow",
    reads: tuple[str | Path, ...] = (),
    claimed: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] | None = None,
) -> RowFiles:
    """Write all rows of a source; a killed run resumes with the parts that it had not written.

    facts     what decides about the rows: recipe, base, tokenizer, scaling, target, text
    card      text of the README.md
    claimed   called when the folder is known to be this call's, before any row is written
    progress  called with rows written and rows in all

    Rows that are there already are verified and left as they are; a part of a killed run is
    compared with its rows, and written again where its bytes differ. Raises OutputError for a
    folder of other rows, DataError for rows of unequal length and for whole rows that have changed.
    """
    settings = {**facts, "format": form, "rows": len(source)}
    with claims.output(out, "rows", reads=reads) as held, files.writing_errors(out):
        held.claim(settings)
        claimed()
        if (out / MANIFEST).is_file():
            return verify(out)
        keep_weights = weighted(source)
        files_by_name, hashes = {}, []
        for name, start, stop in _parts(source, facts["row_tokens"], form):
            rows = [example(source, index) for index in range(start, stop)]
            _require_equal(rows, facts["row_tokens"], start)
            hashes += [[hash_of(row["input_ids"]), hash_of(row["position_ids"])] for row in rows]
            if not keep_weights:
                rows = [
                    {key: value for key, value in row.items() if key != "loss_weights"}
                    for row in rows
                ]
            files_by_name[name] = _put_part(rows, out / name, form)
            if progress:
                progress(stop, len(source))
        with files.writing(out / HASHES) as partial, partial.open("wb") as file:
            np.save(file, np.array(hashes, np.uint64))
        files_by_name[HASHES] = files.sha256_file(out / HASHES)
        if form == "arrow":
            files_by_name |= _write_datasets_files(
                out, sorted(set(files_by_name) - {HASHES}), keep_weights
            )
        files.write_text(out / "README.md", card)
        files.write_json(
            out / MANIFEST,
            {"schema_version": 1, **settings, "loss_weights": keep_weights, "files": files_by_name},
        )
        return records.read(out / MANIFEST, RowFiles)


def add_configuration(folder: Path, name: str, text: str) -> RowFiles:
    """Write a trainer's configuration beside the rows, and its digest into their manifest.

    It is there to be edited: one that was changed since it was written is kept, with a warning.
    Raises OutputError for a folder that is not of `endprompt rows` or that another process holds.
    """
    path, digest = folder / name, hashlib.sha256(text.encode()).hexdigest()
    with claims.output(folder, "rows"), files.writing_errors(folder):
        record = records.read(folder / MANIFEST, RowFiles)
        written = (digest, record.configurations.get(name))
        if path.is_file() and files.sha256_file(path) not in written:
            log.warning(
                "%s was changed after it was written and is kept: remove it to get it anew", path
            )
            return record
        files.write_text(path, text)
        held = {**record.plain(), "configurations": {**record.configurations, name: digest}}
        files.write_json(folder / MANIFEST, held)
        return records.read(folder / MANIFEST, RowFiles)


def verify(folder: Path) -> RowFiles:
    """What was written in a folder. Raises DataError for files that are missing or have changed."""
    record = records.read(folder / MANIFEST, RowFiles)
    for name, digest in record.files.items():
        if not (folder / name).is_file() or files.sha256_file(folder / name) != digest:
            raise DataError(f"{folder / name} is missing or has changed: write the rows again")
    return record


def _parts(source: RowSource, row_tokens: int, form: Format) -> Iterator[tuple[str, int, int]]:
    """Name, first row and end of each part."""
    size = max(1, TOKENS_OF_A_PART // row_tokens)
    count = math.ceil(len(source) / size)
    for number in range(count):
        name = f"train-{number:05}-of-{count:05}.{form}"
        yield name, number * size, min(len(source), (number + 1) * size)


def _require_equal(rows: list[dict[str, np.ndarray]], row_tokens: int, start: int) -> None:
    for index, row in enumerate(rows, start):
        if len(row["input_ids"]) != row_tokens:
            raise DataError(
                f"row {index} has {len(row['input_ids'])} tokens and the others {row_tokens}: "
                "give another rows.tokens"
            )


def _put_part(rows: list[dict[str, np.ndarray]], path: Path, form: Format) -> str:
    """Write a part and return its digest; warn where other bytes were there."""
    before = files.sha256_file(path) if path.is_file() else None
    with files.writing(path) as partial:
        _write_part(rows, partial, form)
        digest = files.sha256_file(partial)
    if before not in (None, digest):
        log.warning("%s was not as it had been written: it was written again", path)
    return digest


def _write_part(rows: list[dict[str, np.ndarray]], path: Path, form: Format) -> None:
    if form == "jsonl":
        with path.open("w", encoding="utf-8") as file:
            for row in rows:
                plain = {key: value.tolist() for key, value in row.items()}
                file.write(json.dumps(plain, separators=(",", ":")) + "\n")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    for key in rows[0]:
        values = pa.array(np.concatenate([row[key] for row in rows]))
        offsets = np.cumsum([0, *(len(row[key]) for row in rows)]).astype(np.int32)
        columns[key] = pa.ListArray.from_arrays(pa.array(offsets), values)
    table = pa.table(columns)
    if form == "parquet":
        pq.write_table(table, path)
        return
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def _write_datasets_files(out: Path, names: list[str], keep_weights: bool) -> dict[str, str]:
    """The small files by which `datasets.load_from_disk` finds the parts; their digests."""
    columns = {"input_ids": "int32", "position_ids": "int32", "labels": "int32",
               "attention_mask": "int32"}  # fmt: skip
    if keep_weights:
        columns["loss_weights"] = "float32"
    features = {
        key: {"feature": {"dtype": dtype, "_type": "Value"}, "_type": "List"}
        for key, dtype in columns.items()
    }
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": files.sha256_of(names)[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    files.write_json(out / "dataset_info.json", info)
    files.write_json(out / "state.json", state)
    small = ("dataset_info.json", "state.json")
    return {name: files.sha256_file(out / name) for name in small}
