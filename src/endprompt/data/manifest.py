"""The manifest of prepared data: what it holds, what it was made of, and how that is verified.

A folder of `endprompt prepare` is what `datasets.load_from_disk` loads:

    manifest.json                    written last: its presence says that the folder is complete
    dataset_dict.json
    train/data-00000.arrow ...       parts (`endprompt.data.parts`)
    train/dataset_info.json, state.json
    holdout/...                      the same, where a part is held out
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from endprompt.data import parts
from endprompt.errors import DataError
from endprompt.io.files import sha256_file, sha256_of, write_json

MANIFEST = "manifest.json"
JOURNAL = ".progress.json"
FORMAT_VERSION = 1


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the checksum of all that it says."""
    return {**manifest, "checksum": sha256_of(manifest)}


def load(folder: Path) -> dict[str, Any]:
    """Read and check a manifest.

    Raises DataError when there is none, when it was changed, or comes from a later version.
    """
    path = folder / MANIFEST
    if not path.exists():
        if (folder / JOURNAL).exists():
            raise DataError(f"{folder} is not complete: run the same prepare again to finish it")
        raise DataError(f"{folder} holds no prepared data (no {MANIFEST}): see endprompt prepare")
    try:
        manifest = json.loads(path.read_bytes())
        checksum = manifest.pop("checksum")
        if manifest["format_version"] > FORMAT_VERSION:
            raise DataError(f"{path} was written by a later endprompt: update this one")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is broken: run prepare again with --force") from error
    if checksum != sha256_of(manifest):
        raise DataError(f"{path} was changed after it was written: run prepare again with --force")
    return manifest


def verify(folder: Path) -> list[str]:
    """Read everything; each fault found, in one line. No fault, an empty list.

    Raises DataError when the manifest itself is missing or broken.
    """
    manifest = load(folder)
    faults: list[str] = []
    for name, expected in sorted(manifest["files"].items()):
        faults += _differs(folder, name, expected)
    for split in manifest["splits"].values():
        for entry in split["parts"]:
            fault = _differs(folder, entry["file"], entry["sha256"])
            faults += fault
            if not fault:
                faults += _contents(folder, entry, manifest["tokenizer"]["vocabulary"])
    return faults


def _differs(folder: Path, name: str, expected: str) -> list[str]:
    path = folder / name
    try:
        same = sha256_file(path) == expected
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}"]
    return [] if same else [f"{path} differs from its checksum: bytes were changed or lost"]


def _contents(folder: Path, entry: dict[str, Any], vocabulary: int) -> list[str]:
    """A part whose checksum is right must also hold what the manifest counts."""
    part = parts.read(folder / entry["file"])
    lengths = part.lengths_N
    highest = int(part.values_T.max(initial=0))
    if len(lengths) != entry["documents"] or int(lengths.sum()) != entry["tokens"]:
        return [f"{entry['file']} holds other numbers of documents or tokens than counted"]
    return [] if highest < vocabulary else [f"{entry['file']} holds id {highest} >= {vocabulary}"]


def histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """Documents and tokens by length, in bins that double: [from, below).

    lengths  int64[N]

    >>> histogram(np.array([3, 3, 9]))
    [{'from': 2, 'below': 4, 'documents': 2, 'tokens': 6}, \
{'from': 8, 'below': 16, 'documents': 1, 'tokens': 9}]
    """
    bins = np.frexp(np.maximum(lengths, 1).astype(np.float64))[1] - 1
    return [
        {
            "from": 2 ** int(k),
            "below": 2 ** int(k + 1),
            "documents": int((bins == k).sum()),
            "tokens": int(lengths[bins == k].sum()),
        }
        for k in np.unique(bins)
    ]


def write_datasets_files(folder: Path, splits: dict[str, list[str]], dtype: np.dtype) -> list[str]:
    """The small files by which `datasets.load_from_disk` finds the parts.

    splits  {split: names of its parts, relative to its folder}

    Returns the names of the files, relative to `folder`.
    """
    features = {
        "input_ids": {"feature": {"dtype": dtype.name, "_type": "Value"}, "_type": "List"},
        "name": {"dtype": "string", "_type": "Value"},
    }
    write_json(folder / "dataset_dict.json", {"splits": list(splits)})
    written = ["dataset_dict.json"]
    for split, names in splits.items():
        info = {"citation": "", "description": "", "features": features, "homepage": ""}
        state = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": sha256_of([split, names])[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        write_json(folder / split / "dataset_info.json", {**info, "license": ""})
        write_json(folder / split / "state.json", state)
        written += [f"{split}/dataset_info.json", f"{split}/state.json"]
    return written
