"""The documentation: every page is in the navigation, and every command in it can be given."""

from __future__ import annotations

import contextlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from endprompt.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROSE = re.compile(r"`(endprompt\s[^`]+)`", re.DOTALL)
UsageError: Any = typer.BadParameter.__mro__[1]  # typer exports no other name for it
FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)


def commands(page: str) -> Iterator[list[str]]:
    """Words of each `endprompt ...` in code, in fences and between backquotes."""
    blocks = FENCED.findall(page)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [line.removeprefix("$ ") for line in lines] + PROSE.findall(FENCED.sub("", page))
    for line in found:
        for part in re.split(r"[|;]|&&| > ", line):
            with contextlib.suppress(ValueError):  # no shell words: not a command
                words = shlex.split(part, comments=True)
                if words[:1] == ["endprompt"] or words[1:3] == ["-m", "endprompt"]:
                    yield words[words.index("endprompt") + 1 :]


def fault(words: list[str], whole: bool) -> str | None:
    """Why the command line refuses these words, None where it takes them.

    whole  a command as it would be given; else a mention, which may leave required words out
    """
    group: Any = get_command(app)
    above = None
    try:
        while True:
            context = group.make_context(group.name, list(words), parent=above)
            if not hasattr(group, "commands"):
                return None
            left = [*context._protected_args, *context.args]
            _, command, words = group.resolve_command(context, left)
            group, above = command, context
    except typer.Exit:
        return None
    except UsageError as error:
        missing = type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError")
        return error.format_message() if whole or not missing else None


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_in_the_guides_is_one(page: Path) -> None:
    text = page.read_text()
    said = [words for words in commands(text) if words and words != ["..."]]
    wrong = []
    for words in said:
        whole = "..." not in words and not all(word.islower() and word.isalpha() for word in words)
        given = [word for word in words if word not in ("...", "…")]
        why = fault(given, whole)
        if why:
            wrong.append(f"{shlex.join(words)}: {why}")
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("extnd my-llama", "No such command"),
        ("extend my-llama --too 64k", "No such option"),
        ("train --model m --data d --to 64k --out o", "Missing argument"),
        ("export verify", "Missing argument"),
        ("eval ruler-data", "No such command"),
        ("chat my-llama --tokens many", "valid integer"),
    ],
)
def test_the_check_of_commands_can_fail(line: str, says: str) -> None:
    assert says.lower() in (fault(shlex.split(line), whole=True) or "").lower()


def test_commands_are_found_in_fences_pipes_and_prose() -> None:
    page = (
        "`endprompt\nlab` x\n```\n$ echo a | endprompt chat m  # asks\n  b && endprompt plan\n```"
    )
    assert list(commands(page)) == [["chat", "m"], ["plan"], ["lab"]]


def pages_in(nav: list[Any]) -> Iterator[str]:
    """Files that a navigation names."""
    for entry in nav:
        for value in entry.values():
            yield from pages_in(value) if isinstance(value, list) else [value]


def test_the_navigation_names_every_page_once() -> None:
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    docs = ROOT / "docs"
    pages = sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))
    assert sorted(pages_in(nav)) == pages


def test_the_python_page_names_what_is_there() -> None:
    from importlib import import_module

    names = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert len(names) > 8
    for name in names:
        module, _, thing = name.rpartition(".")
        with contextlib.suppress(ModuleNotFoundError):
            import_module(name)
            continue
        assert hasattr(import_module(module), thing), name
