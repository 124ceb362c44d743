"""What the guides say can be done: recipes in them build and make rows, errors are all there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from endprompt import __version__, errors, methods
from endprompt import recipe as recipes
from endprompt.cli.app import VERBS

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["method", "cue"])
def test_a_recipe_of_the_guide_makes_rows_as_an_outsider_would(block: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(block)
    recipe = recipes.load(tmp_path / "mine.yaml")
    assert recipe.name == "mine"
    assert recipe.jumps
    rows = methods.row_source(recipe, 512, target=4096, count=8)
    ends = [int(rows.row(index).positions_T.max()) for index in range(8)]
    assert all(len(rows.row(index).tokens_T) == 512 for index in range(8))
    assert max(ends) > 512
    assert np.all(np.array(ends) < 4096)


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
