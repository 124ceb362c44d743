"""The page of other trainers says what was measured, and each trainer's own page names its file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from endprompt.trainers import settings

ROOT = Path(__file__).parents[2]
FOUND = json.loads((ROOT / "benchmarks" / "results" / "trainers.json").read_text())
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", FOUND["trainers"])
def test_the_table_holds_the_figures_of_each_run(name: str) -> None:
    found = FOUND["trainers"][name]
    assert found["passed"]
    row = next(
        line for line in (DOCS / "trainers.md").read_text().splitlines()
        if f"(trainers/{name}.md)" in line and line.startswith("|")
    )  # fmt: skip
    said = [cell.strip() for cell in row.split("|")[2:5]]
    assert said == [
        f"{found['versions'][name]}, {found['versions']['transformers']}",
        f"{found['largest_difference_in_loss']:.1e}",
        f"{found['largest_difference_in_weights']:.1e}",
    ]
    assert found["versions"][name] in (DOCS / "trainers" / f"{name}.md").read_text()


@pytest.mark.parametrize("name", FOUND["trainers"])
def test_what_the_guard_is_said_to_say_is_what_it_said(name: str) -> None:
    said = " ".join(fault["guard"] for fault in FOUND["trainers"][name]["faults"])
    page = (DOCS / "trainers" / f"{name}.md").read_text()
    for quoted in re.findall(r'\| "([^"]+)" \|', page):
        for part in quoted.split("..."):
            assert part.strip(" ,{}") in said


@pytest.mark.parametrize("name", settings.TRAINERS)
def test_each_trainer_has_a_page_with_its_command(name: str) -> None:
    assert f"--for {name}" in (DOCS / "trainers" / f"{name}.md").read_text()
