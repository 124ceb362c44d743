"""Calls in worker processes: run as scheduled, stopped on a failure, gone with their parent."""

from __future__ import annotations

import operator
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from typing import Any

import psutil
import pytest

from endprompt.io import jobs, workers
from endprompt.io.workers import Call


def finished(*calls: Call, **options: Any) -> list[str]:
    with (
        workers.pool(1) as start,
        closing(jobs.schedule(calls, start, **{"at_once": 1} | options)) as ended,
    ):
        return [call.name for call, _ in ended]


def call(name: str, **options: Any) -> Call:
    return Call("kind", name, name, operator.add, (1, 1), **options)


def test_calls_run_in_the_order_of_their_needs() -> None:
    assert finished(call("b", needs=("a",)), call("a"), call("c", done=True)) == ["a", "b"]


def test_a_call_that_fails_raises_what_it_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        finished(Call("kind", "bad", "bad", operator.truediv, (1, 0)), call("after"))


def test_when_the_budget_is_spent_only_what_was_begun_is_finished() -> None:
    rest = call("rest", needs=("begun",), begins=False)
    begun = call("begun", done=True)
    assert finished(begun, rest, call("new"), budget_seconds=0.0) == ["rest"]


def test_workers_end_with_a_parent_that_is_killed() -> None:
    program = """
import multiprocessing, concurrent.futures, os, time
from endprompt.io import workers
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, workers.become_worker) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(program)
        file.flush()
        with subprocess.Popen([sys.executable, file.name], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            worker = int(parent.stdout.readline())
            parent.kill()
    for _ in range(100):
        if not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie":
            return
        time.sleep(0.1)
    raise AssertionError(f"worker {worker} outlives its parent")
