"""The notebook runs from top to bottom, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def cells() -> list[tuple[list[str], str]]:
    """Tags and source of each code cell."""
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return [
        (cell["metadata"].get("tags", []), "".join(cell["source"]))
        for cell in found
        if cell["cell_type"] == "code"
    ]


@pytest.mark.xdist_group("extend")
def test_every_cell_of_the_notebook_runs(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MPLBACKEND", "agg")
    small = {
        "rows.kinds.0.terminal.recall": {"verbatim": 1}, "rows.tokens": 128,
        "training.tokens": 512, "training.save_steps": 100,
    }  # fmt: skip
    chosen: dict[str, Any] = {
        "MODEL": str(tiny), "TEXT": str(text), "TARGET": "2048", "SETTINGS": small,
        "LENGTHS": ["1024", "2048"], "NEEDLES": 2,
        "OUT": str(tmp_path / "run"),
    }  # fmt: skip
    names: dict[str, Any] = {}
    for tags, source in cells():
        if "install" in tags:
            continue
        exec(compile(source, NOTEBOOK.name, "exec"), names)
        if "parameters" in tags:
            assert set(chosen) <= set(names)
            names |= chosen
    said = capsys.readouterr().out
    assert "distances trained: [ 0  1" in said
    assert "2048 positions" in said
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_notebook_holds_no_output() -> None:
    found = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell.get("outputs") for cell in found)
