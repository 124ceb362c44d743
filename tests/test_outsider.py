"""What CONTRIBUTING shows works as it stands there, in a package that is not ours."""

from __future__ import annotations

import json
import os
import re
import runpy
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from endprompt import cues, positions, rope
from endprompt import recipe as recipes
from endprompt.analysis import coverage
from endprompt.errors import RecipeError
from endprompt.models import checkpoint as models

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
TARGET = 512


@pytest.fixture
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of the page under the names in their first lines, installed as pip would."""
    for body in re.findall(r"```\w+\n(# .*?)```", PAGE.read_text(), re.DOTALL):
        file = tmp_path / body.splitlines()[0].removeprefix("# ")
        file.parent.mkdir(exist_ok=True)
        file.write_text(body)
    points = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["entry-points"]
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in found.items())
            for group, found in points.items()
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_method_a_cue_and_a_scaling_rule_of_another_package(outsider: Path, tiny: Path) -> None:
    recipe = recipes.load(outsider / "mine.yaml").resolve(window=128, target=TARGET, gpu=False)
    base = rope.read_base(models.load_config(str(tiny)))
    config = models.scaled_config(str(tiny), recipe, TARGET)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": base.theta * 16}
    ends = 0
    for row in coverage.drawn_rows(recipe, 64, target=TARGET, count=20):
        assert len(row.tokens_T) == 64
        if row.positions_T[-1] == TARGET - 1:
            ends += 1
            assert row.tokens_T[-8:].tolist() == row.tokens_T[:8].tolist()
    assert 0 < ends < 20, "half of the rows, by chance"


def test_a_layout_is_one_entry_of_a_table(outsider: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"layout: 'halves' is none of contiguous, pose"):
        recipes.load("short").replace({"rows.kinds.0.prefix.layout": "halves"})
    monkeypatch.setattr(positions, "LAYOUTS", dict(positions.LAYOUTS))
    runpy.run_path(str(outsider / "my_layout.py"))
    recipe = recipes.load("short").replace({"rows.kinds.0.prefix.layout": "halves"})
    recipe = recipe.resolve(window=128, target=TARGET, gpu=False)
    (row,) = coverage.drawn_rows(recipe, 64, target=TARGET, count=1)
    assert row.positions_T.tolist() == [*range(32), *range(TARGET - 32, TARGET)]


def test_a_cue_is_one_entry_of_a_table(outsider: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"rows.kinds": [{"terminal": {"cue": "the-end"}}]}
    with pytest.raises(RecipeError, match=r"cue: 'the-end' is none of ep1, ep2"):
        recipes.load("endprompt").replace(words)
    monkeypatch.setattr(cues, "CUES", dict(cues.CUES))
    runpy.run_path(str(outsider / "my_cue.py"))
    for cue, tokens in (("the-end", 5), ("numbered", 2)):
        words["rows.kinds"][0]["terminal"]["cue"] = cue
        recipe = recipes.load("endprompt").replace(words)
        recipe = recipe.resolve(window=128, target=TARGET, gpu=False)
        (row,) = coverage.drawn_rows(recipe, 64, target=TARGET, count=1)
        assert row.segments_T.sum() == tokens
        assert row.positions_T[-tokens:].tolist() == list(range(TARGET - tokens, TARGET))


def test_a_rule_is_one_entry_of_a_table(outsider: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope, "RULES", dict(rope.RULES))
    runpy.run_path(str(outsider / "my_rule.py"))
    recipe = recipes.load("short").replace({"rope.scaling": "half"})
    base = rope.Base(theta=10_000.0, rotary_size=64, window=128)
    found = rope.parameters(base, recipe.rope.scaling, 4.0)
    assert (found["rope_type"], found["factor"]) == ("linear", 2.0)


def test_every_example_of_the_page_is_run() -> None:
    named = re.findall(r"```\w+\n# (.*?)\n", PAGE.read_text())
    tested = Path(__file__).read_text()
    assert [name for name in named if Path(name).stem not in tested] == []
    assert len(named) > 5


def test_other_processes_find_them_as_well(outsider: Path, endprompt: Callable[..., Any]) -> None:
    paths = os.pathsep.join([str(outsider), os.environ.get("PYTHONPATH", "")])
    words = ["methods", "mine.yaml"]
    done = endprompt(*words, cwd=outsider, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout
    without = endprompt(*words, cwd=outsider / "tasks")
    assert without.returncode == 1


def test_without_the_package_the_names_are_unknown(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"rope.scaling: 'abf' is none of none, pi, ntk"):
        recipes.load("short").replace({"rope.scaling": "abf"})
    with pytest.raises(RecipeError, match=r"cue: 'recal' \(did you mean 'recall'\?\) is none of"):
        recipes.load("endprompt").replace({"rows.kinds.0.terminal.cue": "recal"})


def test_a_task_in_a_folder(outsider: Path, tiny: Path, endprompt: Callable[..., Any]) -> None:
    rows = [{"text": f"the river ran {n}", "word": "ran"} for n in range(2)]
    (outsider / "last_word.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = endprompt(
        "eval", "run", tiny, "--tasks", "short", "--short", "last_word", "--include", "tasks",
        "--out", "out", cwd=outsider,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    kept = (outsider / "out" / "short" / "last_word.jsonl").read_text().splitlines()
    assert len(kept) == 2
    assert all("exact_match" in line for line in kept)
