"""What the guides say is there: errors, links, verbs, versions."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml

from endprompt import __version__, errors
from endprompt.cli.app import VERBS

ROOT = Path(__file__).parents[1]


def test_every_error_has_its_remedy() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    names = {
        name
        for name, thing in inspect.getmembers(errors, inspect.isclass)
        if issubclass(thing, errors.EndPromptError) and thing is not errors.EndPromptError
    }
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == names


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda path: path.name
)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [link for link in links if not link.startswith(("http", "mailto"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_verbs_in_the_guides_are_there() -> None:
    known = {{"evaluate": "eval"}.get(verb, verb) for verb in VERBS}
    for page in [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL):
            said = set(re.findall(r"^endprompt ([a-z]+)", block, re.MULTILINE))
            assert said <= known, page.name


def test_versions_agree() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
