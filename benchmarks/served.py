"""What the scripts that hold an engine's server against the model as trained share.

`measure` starts a server of one export of `tiny_exports.py`, asks it by `endprompt export verify
--url`, lets it answer the prompts of `endprompt eval run --server` beside the same prompts here,
and stops it. With the case `LOST` the served copy has the base's own RoPE: the check has to fail.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tiny_exports import EXPORTS, SMOLLM2, TINY_WINDOW, make, tiny_known

from endprompt.errors import EvaluationError
from endprompt.export import reference
from endprompt.export.verify import Verified, verify_server
from endprompt.io import files
from endprompt.models import checkpoint, embedded, families

NAME = "served"
LOST = "RoPE as the base's"
TASKS = ("needle", "passkey", "key-value")
Start = Callable[[Path, int, str, Path], AbstractContextManager[str]]
"""(export, longest prompt in tokens, dtype, folder for files) to a server's address with /v1"""


def lose_scaling(folder: Path, name: str, out: Path) -> None:
    """The export with the base's own RoPE and the window kept, weights linked."""
    out.mkdir(parents=True)
    for path in folder.iterdir():
        if path.name != "config.json":
            (out / path.name).symlink_to(path.resolve())
    config = json.loads((folder / "config.json").read_text())
    if name == SMOLLM2:
        own = families.read(checkpoint.load_config(str(embedded.model()))).base.own
    else:
        own = families.read(tiny_known(EXPORTS[name])).base.own
    written = config["rope_parameters"]
    by_kind = families.GLOBAL in written
    config["rope_parameters"] = {**written, families.GLOBAL: own} if by_kind else own
    config.pop("rope_scaling", None)
    config |= families.older_layout(config)
    files.write_json(out / "config.json", config)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(
    words: list[str], surroundings: Mapping[str, str], address: str, log: Path
) -> Iterator[None]:
    """A server's process once `address` answers; it and its children are stopped on the way out."""
    given = {**os.environ, **surroundings}
    given.pop("PYTHONPATH", None)
    with log.open("w") as out:
        child = subprocess.Popen(
            words, stdout=out, stderr=subprocess.STDOUT, env=given, start_new_session=True
        )
    try:
        wait_for(address, child, log)
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(child.pid, number)
                child.wait(30)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def wait_for(address: str, child: subprocess.Popen[bytes], log: Path, seconds: float = 600) -> None:
    """Return when the server answers; exit with its log's last lines when it won't."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if child.poll() is not None:
                break
            time.sleep(1)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise SystemExit(f"no server after {seconds:g} s at most; {log} ends with:\n{tail}")


def endprompt(*words: object) -> subprocess.CompletedProcess[str]:
    """The command line, as a user has it."""
    given = [sys.executable, "-m", "endprompt", *map(str, words)]
    return subprocess.run(given, capture_output=True, text=True, check=False)


def answers(folder: Path) -> dict[str, str | None]:
    """What was answered, by question, in a folder of `eval run`."""
    lines = [line for path in folder.glob("*/samples.jsonl") for line in path.open()]
    return {one["id"]: one["prediction"] for one in map(json.loads, lines)}


def questions(folder: Path, work: Path, url: str | None, lengths: str, real: bool) -> Path:
    """`eval run` through the server, or here; returns its folder."""
    out = work / ("served" if url else "here")
    shutil.rmtree(out, ignore_errors=True)
    where = (NAME, "--server", url, "--tokenizer", folder) if url else (folder,)
    tasks, depths = (TASKS[1], 1) if real else (",".join(TASKS), 3)
    done = endprompt("eval", "run", *where, "--tasks", tasks, "--lengths", lengths,
                     "--depths", depths, "--out", out)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"eval run failed: {done.stderr or done.stdout}")
    return out


def measure(start: Start, name: str, case: str, exports: Path, work: Path) -> dict[str, Any]:
    """One export in one precision, or with its scaling lost."""
    folder = make(name, exports, work / "scratch")
    expected = reference.read(folder)
    served, dtype = folder, case
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if case == LOST:
        served, dtype = work / "lost", "float32"
        lose_scaling(folder, name, served)
    began = time.monotonic()
    real = name == SMOLLM2
    length = 10240 if real else expected.target
    with start(served, length, dtype, work) as url:
        up = time.monotonic() - began
        said = endprompt("export", "verify", folder, "--url", url, "--name", NAME, "--dtype", dtype)
        refused, found = "", Verified([], [])
        try:
            found = verify_server(folder, url, NAME, dtype)  # once more, for its numbers
        except EvaluationError as error:
            if case != LOST:
                raise
            refused = str(error)
        asked = "4k,9k" if real else f"{TINY_WINDOW - 112},{expected.target - 24}"
        told = None if case != "float32" else questions(folder, work, url, asked, real)
    result = {
        "export": name,
        "case": case,
        "rope": families.read(checkpoint.load_config(str(folder))).base.own,
        "window": expected.window,
        "target": expected.target,
        "seconds_to_start": round(up, 1),
        "verify_exit_code": said.returncode,
        "server_refused": refused,
        "checks": [vars(check) for check in found.checks],
        "unscaled_differs_by": {
            where: expected.sensitivity(past=past)
            for where, past in (("inside", False), ("past", True))
        },
        "likeliest_token": [vars(each) for each in found.predictions],
    }
    if told is not None:
        mine, theirs = answers(questions(folder, work, None, asked, real)), answers(told)
        result["answers"] = {
            "asked": len(mine), "equal": sum(theirs[key] == mine[key] for key in mine),
            "lengths": asked, "unanswered": sum(theirs[key] is None for key in theirs),
        }  # fmt: skip
    return result


def stop_on_sigterm() -> None:
    """Let SIGTERM end the script by an exception, so that servers are stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def measure_all(
    start: Start, cases: list[tuple[str, str]], work: Path, file: Path, said: dict[str, Any]
) -> int:
    """Measure the cases that `file` doesn't hold, each written as it comes; 1 where one is wrong.

    said  what the file holds beside the results
    """
    stop_on_sigterm()
    results = json.loads(file.read_text())["results"] if file.is_file() else []
    done = {(each["export"], each["case"]) for each in results}
    for name, case in cases:
        if (name, case) in done:
            continue
        found = measure(start, name, case, work / "exports", work / f"{name}-{case.split()[0]}")
        results.append(found)
        files.write_json(file, {**said, "results": results})
        print(name, case, f"up after {found['seconds_to_start']:.0f} s", flush=True)
        for check in found["checks"]:
            print("ok  " if check["passed"] else "FAIL", check["name"], check["detail"], sep="  ")
        print("answers", found.get("answers"), flush=True)
    return int(any((r["verify_exit_code"] == 0) == (r["case"] == LOST) for r in results))
