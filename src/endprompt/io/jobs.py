"""Run other `endprompt` commands side by side, show the progress of each, resume after a kill.

A job is finished when its result file is there; finished jobs are not run again. Jobs are child
processes with a fixed number of threads, so that results do not depend on what runs beside them,
and with GPUs of their own where there are any. They end with this process, however it ends (on
Linux even by SIGKILL).
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endprompt.errors import EndPromptError, OutputError
from endprompt.io import progress

POLL_SECONDS = 0.3
PARENT = "ENDPROMPT_PARENT"
ALLOCATION = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}
"""glibc keeps freed activations; else a tenth of the time goes into giving pages back and forth."""
FULL_BYTES = 2**20
"""A disk with less room than this is full."""


@dataclass(frozen=True)
class Job:
    """One command, what it leaves, and what must be finished before it starts."""

    name: str
    label: str
    arguments: list[str]
    result: Path
    needs: tuple[str, ...] = ()
    seconds: float = 60.0
    """Estimate, for the time left."""
    tells: bool = True
    """False: a command without `--progress`."""
    takes: int = 1
    """Of what jobs run on side by side: GPUs, or shares of a CPU."""

    @property
    def line(self) -> str:
        """As typed in a shell."""
        return shlex.join(["endprompt", *self.arguments])


class JobError(EndPromptError):
    """A job failed; the message is its own."""


Watcher = Callable[[Job, "dict[str, Any] | None"], None]
"""Called with a job and its last progress; None: it is finished."""


def run(
    jobs: list[Job],
    folder: Path,
    *,
    at_once: int,
    threads: int,
    watch: Watcher,
    lock: int,
    gpus: Sequence[str] = (),
) -> dict[str, float]:
    """Run jobs as their needs allow and return the seconds each took in this process.

    folder   for progress files and logs
    at_once  jobs side by side, of those that take one place; others take several
    threads  of a job, and of each of its processes
    lock     open file that children keep open, so that nobody else takes the run over meanwhile
    gpus     `at_once` names for CUDA_VISIBLE_DEVICES: a job sees those that it takes
    Raises JobError with the message of the first job that fails; the others are stopped and go
    on the next time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not job.result.exists()]
    done = {job.name for job in jobs if job.result.exists()}
    running: dict[str, tuple[Job, subprocess.Popen[bytes], float]] = {}
    seconds: dict[str, float] = {}
    free = list(range(at_once))
    held: dict[str, list[int]] = {}
    assert all(1 <= job.takes <= at_once for job in jobs)
    for job in jobs:
        if job.name in done:
            watch(job, None)
    try:
        while waiting or running:
            for job in [job for job in waiting if set(job.needs) <= done]:
                if job.takes <= len(free):
                    waiting.remove(job)
                    held[job.name], free = free[: job.takes], free[job.takes :]
                    seen = [gpus[place] for place in held[job.name]] if gpus else None
                    child = _start(job, folder, threads, lock, seen)
                    running[job.name] = job, child, time.perf_counter()
            time.sleep(POLL_SECONDS)
            for name, (job, child, began) in list(running.items()):
                if child.poll() is None:
                    watch(job, progress.read(folder / f"{name}.progress.json") or {})
                    continue
                del running[name]
                free = sorted([*free, *held.pop(name)])
                seconds[name] = time.perf_counter() - began
                if child.returncode or not job.result.exists():
                    raise _failure(job, child.returncode, folder / f"{name}.log")
                done.add(name)
                watch(job, None)
    finally:
        for _, child, _ in running.values():
            child.terminate()
        for _, child, _ in running.values():
            child.wait()
    return seconds


def _start(
    job: Job, folder: Path, threads: int, lock: int, gpus: list[str] | None
) -> subprocess.Popen[bytes]:
    shown = folder / f"{job.name}.progress.json"
    shown.unlink(missing_ok=True)
    environment = {
        **ALLOCATION,
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        PARENT: str(os.getpid()),
        **({} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}),
    }
    with (folder / f"{job.name}.log").open("wb") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "endprompt",
                *job.arguments,
                *(["--progress", str(shown)] if job.tells else []),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[lock],
        )


def end_with_parent() -> None:
    """In a job: ask Linux to kill it when the process that started it dies (PR_SET_PDEATHSIG).

    The job asks by itself: Python code between fork and exec hangs now and then, when another
    thread held a lock at the fork.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)


def _failure(job: Job, code: int, log: Path) -> EndPromptError:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("endprompt: ") for line in lines if line.startswith("endprompt: ")]
    if errors:
        return JobError(errors[-1])
    if shutil.disk_usage(log.parent).free < FULL_BYTES:  # its last words found no room either
        return OutputError(
            f"no space left on the disk ({job.label}): free some on the disk of "
            f"{log.parent.parent} and run again to resume"
        )
    if code == -signal.SIGKILL:
        return OutputError(
            f"{job.label} was killed by the system, most often for memory: run again to resume, "
            f"with shorter rows or lengths"
        )
    last = lines[-1] if lines else "no word"
    return JobError(f"{job.label} failed with code {code} ({last}); its log is {log}")
