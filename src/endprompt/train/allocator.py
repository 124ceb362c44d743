"""How the C library hands memory out, where training on a CPU keeps much of it."""

from __future__ import annotations

import contextlib
import ctypes
import platform

from endprompt.cost.memory import LARGE_BLOCK

MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of glibc's malloc.h."""


def map_large_blocks() -> None:
    """Give large blocks back to the system as soon as they are freed; glibc only.

    Left alone, glibc raises their size to that of the largest block that was freed, up to 32 MiB,
    and the activations of a long row then lie in a heap with holes that take as much again.
    Smaller blocks stay in the heap: giving them back costs a fifth of the time of a short row
    (docs/log.md).
    """
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").mallopt(MMAP_THRESHOLD, LARGE_BLOCK)
