"""`endprompt inspect` on recipes and on a model, in the terminal and into a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from endprompt.cli.app import run


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.mark.usefixtures("wide")
def test_recipes_are_drawn_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "seen"
    command = ["inspect", "endprompt", "short", "none", "--window", "256", "--to", "2k"]
    assert run([*command, "--rows", "4", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    bars = {line.split()[0]: line for line in shown.splitlines() if "█" in line}
    assert bars["endprompt"].rstrip()[-1] != "█" or "  " in bars["endprompt"].strip()
    assert "256 to 2,047" in shown  # the first gap of plain rows
    assert {path.name for path in out.iterdir()} - {"claim.json"} == {
        "coverage.svg", "coverage.png", "coverage.csv", "coverage.md",
    }  # fmt: skip
    assert run([*command, "--out", str(out)]) == 1
    assert "or give --force" in capsys.readouterr().err


@pytest.mark.usefixtures("wide")
def test_a_model_shows_its_bounds_and_its_far_heads(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words stand here and there, and then others. " * 60)
    out = tmp_path / "seen"
    command = ["inspect", str(tiny), "--text", str(text), "--tokens", "64", "--to", "512"]
    assert run([*command, "--pairs", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for scaling in ("none", "pi", "ntk", "yarn"):
        assert scaling in shown
    assert "Heads that look farthest" in shown
    assert len(list(out.glob("*.csv"))) == 4
    assert run([*command[:-4], "--tokens", "100000", "--to", "512"]) == 1
    assert "--tokens asks for 100000" in capsys.readouterr().err


def test_an_unknown_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "endpromt"]) == 1
    error = capsys.readouterr().err
    assert "endpromt" in error
    assert "endprompt" in error
    assert error.count("\n") == 1
