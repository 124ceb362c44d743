"""Open what `endprompt prepare` wrote, on this machine or on object storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from endprompt.data import parts
from endprompt.data.encoder import Encoder
from endprompt.data.manifest import load
from endprompt.data.remote import local
from endprompt.data.tokens import TokenDocuments
from endprompt.errors import DataError
from endprompt.io.files import sha256_of


def open_documents(
    folder: str | Path, *, split: str = "train", tokenizer: Any = None
) -> TokenDocuments:
    """Map what `endprompt prepare` wrote.

    folder     a path, or a URL that is fetched once (see `remote.local`)
    split      "train" or "holdout"
    tokenizer  what the documents must have been made with; None: not checked

    Raises DataError when the folder is incomplete or broken, has no such split, or belongs
    to another tokenizer. Checksums are `endprompt prepare verify`'s task.
    """
    folder = local(folder)
    manifest = load(folder)
    made_by = manifest["tokenizer"]
    if tokenizer is not None and Encoder(tokenizer).digest != made_by["digest"]:
        raise DataError(
            f"{folder} was made with another tokenizer ({made_by['name']}): "
            "prepare the text again with this model's"
        )
    if split not in manifest["splits"]:
        known = ", ".join(manifest["splits"])
        raise DataError(f"{folder} has no split {split!r}, only {known}: prepare with --holdout")
    listed = manifest["splits"][split]["parts"]
    chunks = []
    for entry in listed:
        path = folder / entry["file"]
        if not path.exists() or path.stat().st_size != entry["bytes"]:
            raise DataError(f"part {path} is missing or cut short: see endprompt prepare verify")
        chunks.append(parts.read(path))
    return TokenDocuments(
        chunks,
        bos=made_by["bos"],
        eos=made_by["eos"],
        vocabulary=made_by["vocabulary"],
        tokenizer_digest=made_by["digest"],
        reopen=(_reopen, (folder.absolute(), split)),
        fingerprint=sha256_of([made_by["digest"], [entry["sha256"] for entry in listed]]),
    )


def _reopen(folder: Path, split: str) -> TokenDocuments:
    return open_documents(folder, split=split)


def push_to_hub(folder: Path, name: str) -> None:
    """As parquet, which the hub shows; `endprompt prepare NAME` takes its input_ids as they are.

    Raises OutputError without a token, with a refused one, and without network.
    """
    import datasets

    from endprompt.io import hub

    secret = hub.token()
    with hub.errors(name, secret):
        datasets.load_from_disk(str(folder)).push_to_hub(name, private=True, token=secret)
    hub.push(folder, name, kind="dataset", message="Say what the tokens are", only="manifest.json")
