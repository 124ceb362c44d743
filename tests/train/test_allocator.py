"""Large blocks go back to the system when they are freed, whatever the heap looks like."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

GLIBC = platform.libc_ver()[0] == "glibc"
PROGRAM = """
import os, sys, torch
from endprompt.train import allocator
from endprompt.cost.memory import LARGE_BLOCK

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

torch.ones(30 * 2**20, dtype=torch.uint8)  # freed: glibc keeps blocks up to 30 MiB in its heap now
if sys.argv[1] == "mapped":
    allocator.map_large_blocks()
large = [torch.ones(LARGE_BLOCK + 2**20, dtype=torch.uint8) for _ in range(10)]
above = torch.ones(2**20, dtype=torch.uint8)  # on top of them, so that the heap can't shrink
before = resident()
del large
print(before - resident())
"""


@pytest.mark.skipif(not GLIBC, reason="another C library")
@pytest.mark.parametrize("kind", ["mapped", "as it is"])
def test_large_blocks_are_given_back_only_when_mapped_apart(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, check=True
    )
    given_back = int(done.stdout) / 2**20
    assert (given_back > 150) == (kind == "mapped")
