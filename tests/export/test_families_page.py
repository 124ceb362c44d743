"""docs/models.md is what the command prints, and `doctor` shows the same for one model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from endprompt.export import families as listing
from endprompt.models import known
from tiny_checkpoint import save_tiny

DOCS = Path(__file__).parents[2] / "docs"


def test_page_is_what_the_command_prints(endprompt: Callable[..., Any]) -> None:
    done = endprompt("doctor", "--families")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (DOCS / "models.md").read_text()


def test_page_names_every_known_family_as_extended_or_refused() -> None:
    extended, refused = listing.markdown().split("## Refused")
    for name, family in known.FAMILIES.items():
        assert family.example in (refused if family.refused else extended), name


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "gemma"
    return save_tiny(folder, "gemma3_text", num_hidden_layers=6, sliding_window=16)


def test_doctor_begins_with_the_layers(gemma: Path, endprompt: Callable[..., Any]) -> None:
    done = endprompt("doctor", gemma, "--to", "1k")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "gemma3_text: window 128, to 1,024 tokens"
    assert lines[2].split("  ")[0] == "5 local"
    assert "16 positions back" in lines[2]
    assert lines[2].endswith("from positions")
    assert "linear by 8" in lines[3] or "yarn by 8" in lines[3]


def test_doctor_says_which_engine_cannot_express_it(
    gemma: Path, endprompt: Callable[..., Any]
) -> None:
    done = endprompt("doctor", gemma, "--to", "1k", "--scaling", "longrope")
    assert "llama.cpp can't serve it: its converter has no LongRoPE factors" in done.stdout


def test_doctor_without_a_target_says_what_is_missing(
    gemma: Path, endprompt: Callable[..., Any]
) -> None:
    done = endprompt("doctor", gemma)
    assert done.returncode != 0
    assert "--to is missing: give the target window" in done.stderr
