"""`--help`: every command stands under a heading, with its summary whole at 80 columns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from endprompt.cli.app import app
from endprompt.cli.groups import in_sections


def pages(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Words of every group of commands whose help lists some."""
    visible = {n: c for n, c in getattr(command, "commands", {}).items() if not c.hidden}
    if visible and "\0" not in command.commands:
        yield path
    for name, below in visible.items():
        yield from pages(below, (*path, name))


PAGES = list(pages(get_command(app)))


def help_of(path: tuple[str, ...]) -> str:
    """What `endprompt PATH --help` prints into a pipe."""
    result = CliRunner().invoke(app, [*path, "--help"], terminal_width=80)
    assert result.exit_code == 0
    return result.output


def listed(text: str) -> dict[str, list[tuple[str, str]]]:
    """Heading -> names and summaries under it, of a page of help."""
    sections: dict[str, list[tuple[str, str]]] = {}
    heading = ""
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            heading = line[:-1]
        elif line.startswith("  ") and heading not in ("", "Options"):
            name, _, summary = line.strip().partition(" ")
            sections.setdefault(heading, []).append((name, summary.strip()))
    return sections


@pytest.mark.parametrize("path", PAGES, ids=" ".join)
def test_summaries_are_whole_sentences_on_one_line_of_80_columns(path: tuple[str, ...]) -> None:
    text = help_of(path)
    assert max(map(len, text.splitlines())) <= 80
    rows = [row for rows in listed(text).values() for row in rows]
    assert len(rows) > 1
    assert [row for row in rows if not row[1].endswith((".", "?")) or "..." in row[1]] == []


@pytest.mark.parametrize("path", [(), ("eval",)], ids=" ".join)
def test_every_visible_command_is_under_a_heading(path: tuple[str, ...]) -> None:
    group: Any = get_command(app)
    for name in path:
        group = group.commands[name]
    visible = {name for name, command in group.commands.items() if not command.hidden}
    sections = listed(help_of(path))
    assert "Other" not in sections
    names = [name for rows in sections.values() for name, _ in rows]
    assert sorted(names) == sorted(visible)


def test_help_in_a_pipe_is_plain_text() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "endprompt", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout


def test_a_command_in_no_section_is_listed_last_and_markup_is_printed_as_it_is() -> None:
    two = typer.Typer(cls=in_sections({"Known": ("known",)}), rich_markup_mode=None)
    two.command("new", help="A [red]new[/red] one.")(lambda: None)
    two.command("known", help="It is known.")(lambda: None)
    sections = listed(CliRunner().invoke(two, ["--help"]).output)
    assert list(sections) == ["Known", "Other"]
    assert sections["Other"] == [("new", "A [red]new[/red] one.")]
