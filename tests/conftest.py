"""A tiny real checkpoint, text, and a runner of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from hypothesis import settings

from chromium import browser  # noqa: F401
from tiny_checkpoint import WORDS, save_tiny

settings.register_profile("busy", deadline=None)  # machines are shared: time proves nothing
settings.load_profile("busy")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama checkpoint."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three documents of words in a drawn order."""
    import numpy as np

    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for name, words in (("one", 1200), ("two", 900), ("three", 700)):
        (folder / f"{name}.txt").write_text(" ".join(rng.choice(WORDS, words)))
    return folder


@pytest.fixture(scope="session")
def endprompt() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `endprompt ...` in a process of its own, as a user does."""

    def run(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "endprompt", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=540,
            **options,
        )

    return run
