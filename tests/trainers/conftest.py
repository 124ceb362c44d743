"""Rows of the tiny checkpoint, and its scaled base."""

from __future__ import annotations

from pathlib import Path

import pytest

from endprompt.cli.app import run as command
from rows_given import SETTINGS, STEPS, TARGET, Given


@pytest.fixture(scope="session")
def given(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("rows")
    found = Given(tiny, folder / "data", folder / "rows", folder / "scaled")
    assert command(["prepare", str(text), "-t", str(tiny), "--out", str(found.data)]) == 0
    words = ["rows", "pose", "--model", str(tiny), "--data", str(found.data), "--to", str(TARGET),
             "--count", str(STEPS), "--out", str(found.rows),
             "--scaled-base", str(found.scaled)]  # fmt: skip
    for key, value in SETTINGS.items():
        words += ["--set", f"{key}={value}"]
    assert command(words) == 0
    return found
