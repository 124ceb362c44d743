"""Digests of what a run reads: every byte, each file once until it changes.

A digest is kept beside the size, the times and the inode of its file, in one file of the cache
folder. XXH3 runs faster than disks read; it finds changes, and is no guard against forgery.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import xxhash

from endprompt.errors import OutputError
from endprompt.io import files

KEPT = "digests.json"
MOST_KEPT = 4096
"""Files whose digests are kept; the ones asked longest ago are forgotten."""
SETTLED_SECONDS = 2.0
"""A file changed more recently may change again within the clock's tick: it is not kept."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
TOKENIZER = (
    "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "spiece.model", "sentencepiece*.model", "chat_template*",
)  # fmt: skip
CONFIG = ("config.json", "generation_config.json", "adapter_config.json")


def of_files(paths: Iterable[Path], *, fresh: bool = False) -> dict[str, str]:
    """XXH3-128 of each file's bytes, hex, by the path as it was given.

    fresh  read the bytes again, to see damage that leaves size and times alone

    Raises OSError for a file that can't be read.
    """
    kept = _read_kept()
    before = dict(kept)
    digests = {}
    for path in paths:
        key, stamp = os.path.realpath(path), _stamp(path)
        digest = kept.pop(key, ["", ""])
        if fresh or digest[0] != stamp:
            digest = [stamp, _of_bytes(path)]
        digests[str(path)] = digest[1]
        if time.time() - path.stat().st_ctime > SETTLED_SECONDS and _stamp(path) == stamp:
            kept[key] = digest  # at the end: asked last
    if kept != before:
        with contextlib.suppress(OutputError):  # it is computed again the next time
            files.write_text(
                files.cache_folder() / KEPT, json.dumps(dict(list(kept.items())[-MOST_KEPT:]))
            )
    return digests


def of_file(path: Path) -> str:
    """XXH3-128 of a file's bytes, hex."""
    return of_files([path])[str(path)]


def of_folder(folder: Path, *, fresh: bool = False) -> dict[str, str]:
    """Digests of all files below a folder, by their path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = of_files(paths, fresh=fresh)
    return {str(path.relative_to(folder)): digests[str(path)] for path in paths}


def of_model(model: str) -> dict[str, str]:
    """What decides about a checkpoint's results: digests of weights, tokenizer and config.

    A model of the hub is known by its commit, once its config has been loaded. Those of its base
    stand beside an adapter's, with `base_` before their names.
    """
    folder = Path(model)
    if not folder.is_dir():
        return {"commit": _commit(model)}
    groups = {"weights": WEIGHTS, "tokenizer": TOKENIZER, "config": CONFIG}
    chosen = {
        name: sorted({path for pattern in patterns for path in folder.glob(pattern)})
        for name, patterns in groups.items()
    }
    digests = of_files(path for paths in chosen.values() for path in paths)
    base = _base_of_adapter(folder)
    return {f"base_{name}": digest for name, digest in (of_model(base) if base else {}).items()} | {
        f"{name}_digest": xxhash.xxh3_128_hexdigest(
            json.dumps([[path.name, digests[str(path)]] for path in paths]).encode()
        )
        for name, paths in chosen.items()
    }


def _base_of_adapter(folder: Path) -> str | None:
    """The base that an adapter's settings name; None for other folders."""
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
        named = json.loads((folder / "adapter_config.json").read_bytes()).get(
            "base_model_name_or_path"
        )
        if isinstance(named, str) and named:
            places = [place for place in (Path(named), folder / named) if place.is_dir()]
            base = str(places[0]) if places else named
            return None if Path(base).resolve() == folder.resolve() else base
    return None


def _commit(model: str) -> str:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):
        cached_config = try_to_load_from_cache(model, "config.json")
        if isinstance(cached_config, str):
            return Path(cached_config).parent.name
    return ""


def _of_bytes(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(2**22)
        while size := file.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
    return digest.hexdigest()


def _stamp(path: Path) -> str:
    """What changes with a file's bytes. The time of change (ctime) can't be set back by hand."""
    at = path.stat()
    return f"{at.st_size} {at.st_mtime_ns} {at.st_ctime_ns} {at.st_dev} {at.st_ino}"


def _read_kept() -> dict[str, list[str]]:
    """What was kept; nothing where the file is damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
        kept = json.loads((files.cache_folder() / KEPT).read_bytes())
        return {
            key: value
            for key, value in kept.items()
            if isinstance(value, list) and list(map(type, value)) == [str, str]
        }
    return {}
