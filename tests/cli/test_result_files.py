"""A command that writes one file where the user says never writes over a file of the user's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from endprompt.cli.app import app, run
from tiny_checkpoint import save_tiny

COMMANDS: dict[str, list[str]] = {
    "plan": ["llama-3-8b", "--to", "64k"],
    "doctor": ["{tiny}", "--to", "2048"],
    "eval perplexity": ["{tiny}", "--tokens", "{text}", "--window", "64"],
    "eval window": ["{tiny}", "--data", "{text}", "--lengths", "64"],
    "eval needle": ["{tiny}", "--text", "{text}", "--lengths", "64"],
    "eval compare": ["{text}", "{text}"],
    "eval score ruler": ["--task", "qa_1", "--predictions", "{text}"],
    "eval score longbench": ["--dataset", "qasper", "--predictions", "{text}"],
}
"""Words of each command with --json."""


def _with_json(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[str, bool]]:
    """Name of every command that has --json, and whether it has --force."""
    for word, inner in getattr(command, "commands", {}).items():
        yield from _with_json(inner, (*name, word))
    options = {option for part in command.params for option in part.opts}
    if "--json" in options:
        yield " ".join(name), "--force" in options


FORCED = dict(_with_json(get_command(app)))


def test_the_table_has_every_command_with_json() -> None:
    assert set(COMMANDS) == set(FORCED)


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_file_of_the_users_is_refused_with_force_too(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, text = tmp_path / "mine.json", tmp_path / "text.txt"
    mine.write_text('{"versions": 1}')
    text.write_text("some text")
    places = {"tiny": save_tiny(tmp_path / "tiny"), "text": text}
    words = [*verb.split(), *(word.format(**places) for word in COMMANDS[verb])]
    for force in ([], ["--force"]) if FORCED[verb] else ([],):
        assert run([*words, "--json", str(mine), *force]) == 1
        assert "endprompt did not write it" in capsys.readouterr().err
    assert mine.read_text() == '{"versions": 1}'


def test_a_file_of_ours_is_overwritten_with_force_alone(tmp_path: Path) -> None:
    words = ["plan", "llama-3-8b", "--to", "64k", "--json", str(tmp_path / "plan.json")]
    assert run(words) == 0
    assert run(words) == 1
    assert run([*words, "--force"]) == 0
