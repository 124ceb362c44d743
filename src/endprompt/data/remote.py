"""Prepared data on object storage: fetched once, checked, then mapped like any other.

Rows are read in random order, a few kilobytes here and there, and a billion tokens are two
gigabytes: a local copy costs less than one epoch of ranged requests. Streaming loaders shuffle
within a buffer and carry a state of their own, where here row `i` is a function of seed and `i`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from endprompt.data.manifest import MANIFEST, load
from endprompt.errors import DataError, DependencyError
from endprompt.io.files import cache_folder, sha256_file, sha256_of, writing
from endprompt.io.secrets import redact


def local(folder: str | Path) -> Path:
    """A folder of this machine with what lies at `folder`, a path or a URL (s3://, gs://, ...).

    A fetch that was interrupted resumes; each file is checked against the manifest's checksum.
    Raises DataError when there is no prepared data, or a file differs from its checksum;
    DependencyError when fsspec needs a package for this kind of URL.
    """
    if "://" not in str(folder):
        return Path(folder)
    import fsspec

    url = str(folder).rstrip("/")
    try:
        filesystem, root = fsspec.url_to_fs(url)
        head = filesystem.cat_file(f"{root}/{MANIFEST}")
        checksum = json.loads(head)["checksum"]
    except ImportError as error:
        raise DependencyError(f"cannot open {redact(url)}: {redact(str(error))}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"no prepared data at {redact(url)} (no readable {MANIFEST})") from error
    kept = cache_folder() / "data" / sha256_of([url, checksum])[:16]
    if (kept / MANIFEST).exists():
        return kept
    begun = kept.with_name(f"{kept.name}.begun")
    with writing(begun / MANIFEST) as partial:
        partial.write_bytes(head)
    for name, digest in _files(load(begun)):
        path = begun / name
        if path.exists() and sha256_file(path) == digest:
            continue
        with writing(path) as partial:
            with partial.open("wb") as file:
                for chunk in _chunks(filesystem, f"{root}/{name}", f"{url}/{name}"):
                    file.write(chunk)
            if sha256_file(partial) != digest:
                raise DataError(f"{redact(url)}/{name} differs from its checksum: upload it again")
    begun.rename(kept)
    return kept


def _chunks(filesystem: Any, path: str, url: str) -> Iterator[bytes]:
    try:
        with filesystem.open(path, "rb") as file:
            while chunk := file.read(2**22):
                yield chunk
    except OSError as error:
        detail = redact(f"{url} ({' '.join(str(error).split())})")[:300]
        raise DataError(
            f"cannot read {detail}: what was fetched stays, give the command again"
        ) from error


def _files(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Every file of prepared data with its checksum; names that lead elsewhere are refused."""
    parts = [part for split in manifest["splits"].values() for part in split["parts"]]
    listed = [*manifest["files"].items(), *((part["file"], part["sha256"]) for part in parts)]
    for name, _ in listed:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"the manifest names {name!r}, outside of its folder: it was tampered")
    return listed
