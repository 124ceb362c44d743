"""Jobs run side by side, are not run twice, and a failure is told in its own words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from endprompt.errors import EndPromptError, OutputError
from endprompt.io import jobs


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the `endprompt` module whose commands are small Python programs."""
    (tmp_path / "endprompt.py").write_text(
        "import sys, pathlib, time, os, json\n"
        "told = pathlib.Path(sys.argv[sys.argv.index('--progress') + 1])\n"
        "exec(sys.argv[1])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def a_job(folder: Path, name: str, program: str = "", **options: Any) -> jobs.Job:
    result = folder / name
    return jobs.Job(name, f"job {name}", [f"{program}\n{writes(result)}"], result, **options)


def writes(path: Path) -> str:
    return f"pathlib.Path({str(path)!r}).write_text(str(time.time()))"


def run(folder: Path, *some: jobs.Job, **options: Any) -> list[tuple[str, Any]]:
    seen: list[tuple[str, Any]] = []
    with (folder / "lock").open("w") as lock:
        jobs.run(
            list(some), folder / "logs", lock=lock.fileno(),
            watch=lambda job, told: seen.append((job.name, told)),
            **{"at_once": 2, "threads": 1} | options,
        )  # fmt: skip
    return seen


def test_a_job_starts_after_what_it_needs_and_progress_is_told(fake: Path) -> None:
    first = a_job(fake, "first", "told.write_text(json.dumps({'done': 1})); time.sleep(1.2)")
    second = a_job(fake, "second", needs=("first",))
    seen = run(fake, second, first)
    assert float(second.result.read_text()) > float(first.result.read_text())
    assert ("first", {"done": 1}) in seen
    assert [entry for entry in seen if entry[1] is None] == [("first", None), ("second", None)]


def test_a_finished_job_is_not_run_again(fake: Path) -> None:
    job = a_job(fake, "once")
    run(fake, job)
    before = job.result.read_text()
    assert run(fake, job) == [("once", None)]
    assert job.result.read_text() == before


def test_the_failing_job_speaks_and_the_others_are_stopped(fake: Path) -> None:
    slow = a_job(fake, "slow", "time.sleep(60)")
    bad = a_job(fake, "bad", "print('endprompt: the text is empty'); sys.exit(1)")
    began = time.monotonic()
    with pytest.raises(EndPromptError, match=r"^the text is empty$"):
        run(fake, slow, bad)
    assert time.monotonic() - began < 30
    assert not slow.result.exists()


def test_a_job_killed_for_memory_is_told_with_its_remedy(fake: Path) -> None:
    job = a_job(fake, "killed", "os.kill(os.getpid(), 9)")
    with pytest.raises(OutputError, match="killed by the system, most often for memory"):
        run(fake, job)


def test_a_job_without_words_on_a_full_disk_is_told_so(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "FULL_BYTES", 2**70)
    with pytest.raises(OutputError, match=r"no space left on the disk \(job mute\): free some"):
        run(fake, a_job(fake, "mute", "sys.exit(1)"))


def test_a_crash_names_the_log(fake: Path) -> None:
    job = a_job(fake, "crash", "raise KeyError('weights')")
    with pytest.raises(EndPromptError, match=r"code 1 \(KeyError: 'weights'\); its log is .*crash"):
        run(fake, job)


def test_threads_are_fixed_for_every_job(fake: Path) -> None:
    job = a_job(fake, "threads", f"{fake!s:.0}assert os.environ['OMP_NUM_THREADS'] == '3'")
    run(fake, job, threads=3)


def test_a_job_has_the_gpus_that_it_takes_for_itself(fake: Path) -> None:
    seen = "pathlib.Path(sys.argv[0]).with_name(f'{told.name[0]}-gpus').write_text"
    program = seen + "(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.5)"
    both, left, right = (
        a_job(fake, name, program, takes=takes) for name, takes in (("a", 2), ("b", 1), ("c", 1))
    )
    run(fake, both, left, right, gpus=("3", "5"))
    assert [(fake / f"{name}-gpus").read_text() for name in "abc"] == ["3,5", "3", "5"]
    starts = [float(job.result.read_text()) for job in (both, left, right)]
    assert min(starts[1:]) > starts[0]
    assert abs(starts[1] - starts[2]) < 0.5 + 2 * jobs.POLL_SECONDS, "these ran side by side"


@pytest.mark.skipif(sys.platform != "linux", reason="children end with their parent on Linux only")
def test_jobs_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    os.mkfifo(recipe)  # reading it holds the job up for ever
    words = ["train", str(recipe), "--model", "m", "--data", "d", "--to", "1k", "--out", "o"]
    program = (
        "from pathlib import Path\nfrom endprompt.io import jobs\n"
        f"job = jobs.Job('child', '', {words!r}, Path('never'))\n"
        "jobs.run([job], Path('logs'), at_once=1, threads=1, watch=lambda *_: None, lock=1)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    held = os.open(recipe, os.O_WRONLY)  # waits for the job to open it
    (child,) = psutil.Process(parent.pid).children()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        if not _alive(child.pid):
            os.close(held)
            return
        time.sleep(0.05)
    child.kill()
    pytest.fail("the job outlived its parent")


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_progress_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    from endprompt.io import progress

    path = tmp_path / "told.json"
    assert progress.read(path) is None
    progress.tell(path, 2, 5, loss=1.5)
    assert progress.read(path) == {"done": 2, "total": 5, "loss": 1.5}
    path.write_text(json.dumps({"done": 2})[:5])
    assert progress.read(path) is None
    progress.tell(None, 1, 2)
