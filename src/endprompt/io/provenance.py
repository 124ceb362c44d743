"""What every artefact says of where it came from."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from endprompt.io.secrets import redact
from endprompt.record import SCHEMA_VERSION, Exact

PACKAGES = ("endprompt", "torch", "transformers", "accelerate", "datasets", "peft", "trl", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def commit() -> str | None:
    """Commit of the source tree this package runs from, with '+changes' if it was edited."""
    root = Path(__file__).parents[3]
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
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpus"] = torch.cuda.device_count()
    return facts


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


class Computation(Exact):
    """How numbers were computed: what they may differ by where nothing else differs.

    precision   of weights, activations and cache: float32, bfloat16, ...; in training, of the
                matrix multiplications (weights and optimizer are float32)
    device      torch's name: cpu, cuda
    processor   name of that device
    attention   Transformers' name of the backend: sdpa, eager, ...
    threads     of torch in this process
    """

    precision: str
    device: str
    processor: str
    attention: str
    threads: int

    @classmethod
    def of(cls, model: Any, precision: str = "") -> Computation:
        """That of a Transformers model where it is now; `precision` in place of the weights'."""
        import torch

        device = next(model.parameters()).device
        cuda = device.type == "cuda"
        return cls(
            precision=precision or str(model.dtype).removeprefix("torch."),
            device=device.type,
            processor=torch.cuda.get_device_name(device) if cuda else _processor(),
            attention=str(model.config._attn_implementation),
            threads=torch.get_num_threads(),
        )

    def deciding(self) -> dict[str, str]:
        """What an interrupted evaluation has to share with its continuation."""
        return self.model_dump(include={"precision", "device", "attention"})

    def line(self) -> str:
        """In words, for a table."""
        return (
            f"{self.precision}, {self.device} ({self.processor}), {self.attention} attention, "
            f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        )


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


def command() -> str:
    """The command line of this process, as a shell takes it, without secrets."""
    return redact(shlex.join(["endprompt", *(os.fsencode(word).decode("utf-8", "backslashreplace")
                                             for word in sys.argv[1:])]))  # fmt: skip
