"""The list of methods: distances from the sampler that trains, costs from the count."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from endprompt import recipe as recipes
from endprompt import rope
from endprompt.analysis import coverage, methods
from endprompt.cost import flops
from endprompt.cues import CUES

Run = Callable[..., subprocess.CompletedProcess[str]]


def line(name: str, **options: int) -> methods.Line:
    sizes = {"window": 1024, "target": 8192, "rows": 60} | options
    return methods.table([name], **sizes)[0]


def test_endprompt_trains_the_papers_two_intervals_and_nothing_between() -> None:
    terminal = 11  # words and marks of EP_1
    prefix = 1024 - terminal
    assert line("endprompt").intervals == [(1, prefix - 1), (8192 - 1024 + 1, 8191)]


def test_controls_stay_inside_their_rows() -> None:
    for name in ("short", "short-recall"):
        assert line(name).intervals == [(1, 1023)]
        assert line(name).far == 0


def test_full_rows_see_every_distance_and_longlora_those_of_a_group() -> None:
    full, longlora = line("full", rows=2), line("longlora", rows=2)
    assert full.intervals == [(1, 8191)]
    assert full.share == 1
    assert longlora.intervals == [(1, 8192 // 4 - 1)]
    pairs = np.arange(8192, 0, -1)
    assert full.far == pytest.approx(pairs[1024:].sum() / pairs[1:].sum())


def test_share_and_far_agree_with_all_pairs_written_out() -> None:
    found = line("pose", rows=5)
    rows = coverage.drawn_rows(recipes.load("pose"), 1024, target=8192, count=5)
    counts = np.zeros(8192, dtype=int)
    for row in rows:
        p = row.positions_T
        distances = (p[:, None] - p)[np.tril_indices(1024, -1)]
        counts += np.bincount(distances, minlength=8192)
    assert found.share == (counts[1:] > 0).mean()
    assert found.far == pytest.approx(counts[1024:].sum() / counts.sum())


@pytest.mark.parametrize("name", ["longlora", "endprompt", "pose", "short"])
def test_inspect_and_methods_count_the_same_distances(name: str, endprompt: Run) -> None:
    """One recipe, one window, one target: the share that both commands show."""
    sizes = ("--to", "4k", "--window", "1k", "--row-tokens", "1k", "--rows", "8")
    shown = [endprompt(verb, name, *sizes, env=wide()).stdout for verb in ("methods", "inspect")]
    shares = [re.search(rf"{name} +│? *(\d+\.\d%)", text) for text in shown]
    assert shares[0] is not None, shown[0]
    assert shares[1] is not None, shown[1]
    assert shares[0][1] == shares[1][1]


def test_costs_are_relative_to_short_at_equal_tokens() -> None:
    assert line("pose", rows=1).cost == line("short", rows=1).cost == 1
    assert line("pi", rows=1).cost == 0
    short, full = (flops.training(methods.LLAMA_3_8B, tokens).total for tokens in (1024, 8192))
    expected = full / short / 8
    assert line("full", rows=1).cost == pytest.approx(expected)
    assert line("longlora", rows=1).cost < line("longlora-full", rows=1).cost < expected


def test_command_lists_what_was_asked_for(endprompt: Run) -> None:
    done = endprompt("methods", "pose", "0.5pose+0.5short", "--to", "4k", "--window", "1k",
                     "--rows", "20", env=wide())  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    rows = done.stdout.splitlines()
    assert rows[0].split()[:4] == ["method", "share", "far", "cost"]
    assert rows[1].startswith("pose ")
    assert rows[2].startswith("0.5pose+0.5short ")


def test_page_holds_every_recipe_with_its_source(endprompt: Run) -> None:
    done = endprompt("methods", "--markdown", "--to", "2k", "--window", "1k", "--rows", "3")
    assert done.returncode == 0
    for name in recipes.names():
        assert f"| `{name}` |" in done.stdout
        assert f"- **`{name}`** follows {recipes.load(name).source}." in done.stdout
    assert "window of 1,024 tokens, a target of 2,048" in done.stdout


def test_unknown_method_is_one_line(endprompt: Run) -> None:
    done = endprompt("methods", "poes")
    assert done.returncode == 1
    assert "unknown method 'poes' (did you mean 'pose'?)" in done.stderr
    assert "Traceback" not in done.stderr


def wide() -> dict[str, str]:
    import os

    return {**os.environ, "COLUMNS": "200"}


def test_page_in_the_docs_is_not_stale() -> None:
    """Made anew by `endprompt methods --markdown > docs/methods.md`."""
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    for name in recipes.names():
        recipe = recipes.load(name)
        assert f"| `{name}` | {recipe.summary} |" in page
        assert f"- **`{name}`** follows {recipe.source}." in page
    for name, cue in CUES.items():
        assert f"| `{name}` | {cue.what} |" in page
    for name, rule in rope.RULES.items():
        if rule.headroom != 1:
            assert f"{rule.headroom:g} under {rope.TITLES[name]}" in page
