"""What is shown of jobs where there is no terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from endprompt.cli import screen
from endprompt.io.jobs import Job


def test_time_left_is_of_the_progress_seen_so_far(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = iter([100.0, 160.0, 220.0])
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock))
    job, shown = Job("a", "train a", [], tmp_path / "a.json"), screen.Screen()
    for done in (20, 40, 60):  # resumed at a fifth
        shown.watch(job, {"done": done, "total": 100})
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["train a: 40%, 3.0 min left  ", "train a: 60%, 2.0 min left  "]
