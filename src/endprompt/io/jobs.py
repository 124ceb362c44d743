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
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

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
    begins: bool = True
    """False: it continues what another job began, even when the budget is spent."""

    @property
    def line(self) -> str:
        """As typed in a shell."""
        return shlex.join(["endprompt", *self.arguments])

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return self.result.exists()


class JobError(EndPromptError):
    """A job failed; the message is its own."""


Watcher = Callable[[Job, "dict[str, Any] | None"], None]
"""Called with a job and its last progress; None: it is finished."""


class Work(Protocol):
    """What can be scheduled: a `Job`, or a call in a worker (`io.workers`)."""

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def takes(self) -> int: ...
    @property
    def begins(self) -> bool: ...
    @property
    def done(self) -> bool: ...


class Running(Protocol):
    """Work that was started."""

    def ended(self) -> bool:
        """Whether it is finished. Raises what it failed with."""

    def stop(self) -> None:
        """Ask it to end; it may have ended already."""

    def wait(self) -> None:
        """Return when it has ended."""


W = TypeVar("W", bound=Work)


def schedule(
    work: Sequence[W],
    start: Callable[[W, list[int]], Running],
    *,
    at_once: int,
    budget_seconds: float | None = None,
) -> Generator[tuple[W, float]]:
    """Run what is not done as its needs allow, and give each with its seconds when it is finished.

    start           given a piece of work and the places that it takes, of 0 .. at_once-1
    budget_seconds  after this nothing is started that begins something

    What stands first is started first. Raises what the first failure raises; what runs then is
    stopped.
    """
    waiting = [job for job in work if not job.done]
    assert all(1 <= job.takes <= at_once for job in waiting)
    done = {job.name for job in work if job.done}
    running: dict[str, tuple[W, Running, list[int], float]] = {}
    free = list(range(at_once))
    began = time.perf_counter()
    try:
        while True:
            spent = budget_seconds is not None and time.perf_counter() - began >= budget_seconds
            for job in [job for job in waiting if not (spent and job.begins)]:
                if job.takes <= len(free) and set(job.needs) <= done:
                    waiting.remove(job)
                    places, free = free[: job.takes], free[job.takes :]
                    running[job.name] = job, start(job, places), places, time.perf_counter()
            if not running:
                return
            time.sleep(POLL_SECONDS)
            for name, (job, started, places, since) in list(running.items()):
                if started.ended():
                    del running[name]
                    free = sorted([*free, *places])
                    done.add(name)
                    yield job, time.perf_counter() - since
    finally:
        for _, started, _, _ in running.values():
            started.stop()
        for _, started, _, _ in running.values():
            started.wait()


def run(
    jobs: Sequence[Job],
    folder: Path,
    *,
    at_once: int,
    threads: int,
    watch: Watcher,
    lock: int,
    gpus: Sequence[str] = (),
) -> dict[str, float]:
    """Run jobs as their needs allow and return the seconds each took in this process.

    at_once  jobs side by side, of those that take one place; others take several
    The rest is that of `starter`. Raises JobError with the message of the first job that fails; the
    others are stopped and resume the next time.
    """
    for job in jobs:
        if job.done:
            watch(job, None)
    start = starter(folder, threads=threads, watch=watch, lock=lock, gpus=gpus)
    seconds = {}
    for job, took in schedule(jobs, start, at_once=at_once):
        seconds[job.name] = took
        watch(job, None)
    return seconds


def starter(
    folder: Path, *, threads: int, watch: Watcher, lock: int, gpus: Sequence[str] = ()
) -> Callable[[Job, list[int]], Running]:
    """What starts a job in a process of its own, for `schedule`.

    folder   for progress files and logs
    threads  of a job, and of each of its processes
    watch    called with the progress of each job
    lock     open file that children keep open, so that nobody else takes the run over meanwhile
    gpus     `at_once` names for CUDA_VISIBLE_DEVICES: a job sees those that it takes
    """
    folder.mkdir(parents=True, exist_ok=True)

    def start(job: Job, places: list[int]) -> Running:
        seen = [gpus[place] for place in places] if gpus else None
        return _Child(job, _start(job, folder, threads, lock, seen), folder, watch)

    return start


@dataclass(frozen=True)
class _Child:
    """A job in a process of its own."""

    job: Job
    process: subprocess.Popen[bytes]
    folder: Path
    watch: Watcher

    def ended(self) -> bool:
        name, code = self.job.name, self.process.poll()
        if code is None:
            self.watch(self.job, progress.read(self.folder / f"{name}.progress.json") or {})
            return False
        if code or not self.job.done:
            raise _failure(self.job, code, self.folder / f"{name}.log")
        return True

    def stop(self) -> None:
        self.process.terminate()

    def wait(self) -> None:
        self.process.wait()


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
