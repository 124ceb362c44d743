"""Functions of this package in processes of one thread each, for `io.jobs.schedule`.

Many short pieces of work share the imports of a few workers. What they give does not depend on how
many there are.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from endprompt.io.jobs import Running


@dataclass(frozen=True)
class Call:
    """A function with its arguments, and the names of what must be finished before.

    kind  calls of one kind take about the same time
    """

    kind: str
    name: str
    label: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    needs: tuple[str, ...] = ()
    takes: int = 1
    begins: bool = True
    done: bool = False


@dataclass(frozen=True)
class _Running:
    future: concurrent.futures.Future[Any]

    def ended(self) -> bool:
        if not self.future.done():
            return False
        self.future.result()
        return True

    def stop(self) -> None:
        self.future.cancel()

    def wait(self) -> None:
        """The pool ends its processes."""


@contextmanager
def pool(count: int) -> Generator[Callable[[Call, list[int]], Running]]:
    """What starts a call in one of so many processes. They end with this block, or this process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(count, context, become_worker) as executor:
        try:
            yield lambda call, _: _Running(executor.submit(call.function, *call.arguments))
        except BaseException:
            for process in list((getattr(executor, "_processes", None) or {}).values()):
                process.terminate()
            executor.shutdown(wait=True, cancel_futures=True)
            raise


def become_worker() -> None:
    """One thread, no chatter, and an end when the parent ends, however it does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    from endprompt.io.silence import silence_libraries

    torch.set_num_threads(1)
    silence_libraries()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
