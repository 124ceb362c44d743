"""What every artefact says of itself, and how files come to be: whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Generator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from endprompt.errors import OutputError

SCHEMA_VERSION = 1
PACKAGES = ("endprompt", "torch", "transformers", "accelerate", "datasets", "peft", "trl", "numpy")


@contextlib.contextmanager
def writing(path: Path) -> Generator[Path]:
    """Give a temporary path beside `path`; move it there when the block ends well.

    An interrupted or failed block leaves `path` as it was and no partial file under its name.
    Raises OutputError when the disk is full or the folder can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise full_disk(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


def full_disk(error: OSError, path: Path) -> OutputError:
    """An OSError met while writing `path`, in one line with its remedy."""
    if error.errno == errno.ENOSPC:
        return OutputError(f"no space left on the disk while writing {path}: free some, run again")
    return OutputError(f"cannot write {path}: {error.strerror or error}")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with writing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def claim(path: Path, settings: dict[str, Any], *, alone: bool = False) -> None:
    """Note in a run's folder what the run is; refuse a folder whose run is another.

    alone  a run that begins has to find its folder empty

    Raises OutputError that names the settings which differ.
    """
    folder = path.parent
    if not path.is_file():
        if alone and folder.is_dir() and any(folder.iterdir()):
            raise OutputError(f"{folder} holds other files: choose another --out")
        write_json(path, settings)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise OutputError(f"{path} is not a run's record: choose another --out")
    now = json.loads(json.dumps(settings))
    differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differing:
        raise OutputError(
            f"{folder} holds a run with another {', '.join(differing)}: "
            "choose another --out, or remove the folder"
        )


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all, in a stable form: sorted keys, no NaN."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(value: Any) -> str:
    """Hex digest of a JSON-able value in its canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str | None:
    """Commit of the source tree this package runs from, with '+changes' if it was edited."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.TimeoutExpired):
        return None


def device() -> dict[str, Any]:
    """Processor, cores and memory; the GPU's name where torch is loaded and sees one."""
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpus"] = torch.cuda.device_count()
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def provenance() -> dict[str, Any]:
    """Schema, time, versions, commit and device: the head of every record."""
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "commit": commit(),
        "device": device(),
    }


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
