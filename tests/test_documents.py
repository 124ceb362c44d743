"""What the guides say is there: errors, links, verbs, versions."""

from __future__ import annotations

import inspect
import json
import re
import runpy
from pathlib import Path

import pytest
import yaml

from endprompt import __version__, errors
from endprompt.cli.app import SECTIONS

ROOT = Path(__file__).parents[1]


def test_every_error_has_its_remedy() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    names = {
        name
        for name, thing in inspect.getmembers(errors, inspect.isclass)
        if issubclass(thing, errors.EndPromptError) and thing is not errors.EndPromptError
    }
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == names


def test_messages_on_the_page_of_errors_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message may go over several lines
    messages = re.findall(r"^\| `([^`]* [^`]*)` \|", page, re.MULTILINE)
    checks = re.findall(r"\*([^*]+)\*", page.partition("## The position check failed")[2])
    assert len(messages) > 15
    assert len(checks) > 5
    for message in [*messages, *checks]:
        parts = [re.escape(part) for part in message.split("…")]
        assert re.search(".+".join(parts), source), message


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda path: path.name
)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [link for link in links if not link.startswith(("http", "mailto"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_verbs_in_the_guides_are_there() -> None:
    known = {verb for verbs in SECTIONS.values() for verb in verbs}
    for page in [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL):
            said = set(re.findall(r"^endprompt ([a-z]+)", block, re.MULTILINE))
            assert said <= known, page.name


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_tables_of_the_demo_are_those_of_its_record(page: str) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "demo_table.py"))
    run = json.loads(script["RECORD"].read_text())
    text = (ROOT / page).read_text()
    assert text.count("<!-- demo: ") == 1
    assert script["filled"](text, run) == text
    run["arms"][2]["evaluation"]["loss"][str(run["target"])]["mean"] += 0.01
    assert script["filled"](text, run) != text


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("![") == 1
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    results = [table for table in tables if "loss" in table]
    assert [table.count("\n") - 2 for table in results] == [5]


def test_versions_agree() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
