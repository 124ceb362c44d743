"""`endprompt report` writes one page, and overwrites nothing without being told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from endprompt.cli.app import run as command


@pytest.fixture
def folder(run: dict[str, Any], tmp_path: Path) -> Path:
    for part in ("coverage", "example_row"):  # drawing takes the time here
        del run[part]
    for arm in run["arms"]:
        del arm["evaluation"]
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "run.json").write_text(json.dumps(run))
    return tmp_path / "demo"


def test_page_lands_in_the_run_and_is_not_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert command(["report", str(folder)]) == 1
    assert "give --force" in capsys.readouterr().err
    assert command(["report", str(folder), "--force"]) == 0


def test_a_page_of_something_else_is_never_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "mine.html"
    page.write_text("<!doctype html><p>all about endprompt")
    for force in ([], ["--force"]):
        assert command(["report", str(folder), "--out", str(page), *force]) == 1
        assert "did not write it" in capsys.readouterr().err
    assert page.read_text() == "<!doctype html><p>all about endprompt"


def test_several_runs_go_into_one_page_with_their_files(folder: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "run.json").write_text((folder / "run.json").read_text())
    out = tmp_path / "both.html"
    assert command(["report", str(folder), str(twin / "run.json"), "-o", str(out), "--assets"]) == 0
    assert "2 runs compared: demo, twin" in out.read_text()
    assert (tmp_path / "both-files" / "training.png").exists()


def test_no_such_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["report", str(tmp_path / "absent")]) == 1
    error = capsys.readouterr().err
    assert "no run.json" in error
    assert error.count("\n") == 1
